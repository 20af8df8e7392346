"""While it trains and saves: stopped before the weights move, and nothing saved is lost.

What a run's folder says of its damages is in tests/test_run.py.
"""

import pytest
import torch
from saving import cut, opened, saved
from test_train import SomePairs, config, folders, models, moved, run, state  # noqa: F401

from faults.catalog import each, fault, refused
from sdslib.io.runs import find_run, open_run
from sdslib.train import Loop, TrainingError


def stopped(some, settings):
    """The error of a run that must leave student and bridge as they were."""
    before = state(some.student), state(some.bridge)
    said = refused(TrainingError, run, some, settings)
    assert moved(before[0], state(some.student)) == set()
    assert moved(before[1], state(some.bridge)) == set()
    return said


def scale(owner, name, factor=float("nan")):
    """Have a method give so many times what it gave."""
    real = getattr(owner, name)
    setattr(owner, name, lambda *args: real(*args) * factor)


def detach(some):
    forward = some.bridge.forward
    some.bridge.forward = lambda emb: forward(emb.detach())


@each(
    {
        "L_SDS that is not finite": lambda some: scale(some.teacher, "predict_noise"),
        "L_CLIP that is not finite": lambda some: scale(some.student, "encode_texts"),
        "gradient that is not finite": lambda some: some.bridge.linear.weight.register_hook(
            lambda grad: grad * float("nan")  # the losses are finite; only the way back is not
        ),
        "image embedding cut from the graph": detach,
    }
)
def test_a_step_that_teaches_nonsense_or_nothing(models, given):  # noqa: F811
    some = models()
    given(some)
    return stopped(some, config())


def test_an_infinite_loss_stops_too(models):  # noqa: F811
    some = models()
    scale(some.teacher, "predict_noise", float("inf"))
    assert "L_SDS is not finite" in str(stopped(some, config()))


@fault("NaN after a checkpoint")
def test_the_last_good_checkpoint_stays(models, tmp_path):  # noqa: F811
    some, settings = models(), config()
    loop = Loop(settings, some, SomePairs())
    kept = open_run(settings, root=tmp_path)

    def train():
        with kept:
            for step in loop:
                kept.append_history(step.row())
                kept.save_checkpoint(loop.done, loop.pack(), {})
                if step.step == 2:
                    scale(some.teacher, "predict_noise")

    refused(TrainingError, train)
    found = find_run(kept.path).latest_checkpoint()
    assert found.step == 2
    assert all(value.isfinite().all() for value in found.tensors.values())
    return kept.status()["message"]


@fault("L_SDS that teaches nothing")
def test_a_term_without_gradient(models):  # noqa: F811
    some = models()
    torch.nn.init.zeros_(some.bridge.linear.weight)
    return stopped(some, config(arm="sds-only"))


@fault("weight at which L_SDS does nothing")
def test_an_inert_weight(models):  # noqa: F811
    with pytest.warns(UserWarning, match="inert") as said:
        run(models(), config(sds_weight=1e-9), stop=1)
    return said[0].message


@fault("out of memory within a step")
def test_out_of_memory(models):  # noqa: F811
    """Asks the allocator for more than there is, and looks for what the step held."""
    some, held = models(), []

    def predict(z_t, t, text):
        held.append(z_t)
        torch.empty(2**60)

    some.teacher.predict_noise = predict
    said = stopped(some, config())
    assert all(p.grad is None for p in some.trained)
    assert said.__context__ is None, "its traceback would keep the step's tensors"
    return said


@fault("status file that was damaged")
def test_a_damaged_status(tmp_path):
    kept = saved(tmp_path)
    cut(kept.path / "status.json")
    said = find_run(kept.path).status()["message"]
    assert opened(tmp_path).latest_checkpoint().step == 30
    return said
