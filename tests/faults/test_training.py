"""While it trains and saves: stopped before the weights move, and nothing saved is lost."""

import json
import os
import warnings

import psutil
import pytest
import torch
from saving import config as run_config
from saving import full_disk, saved, tensors
from test_train import SomePairs, config, folders, moved, parties, run, state  # noqa: F401

from faults.catalog import fault
from sdslib.io import lock, storage
from sdslib.io.lock import LockedError
from sdslib.io.runs import RunError, RunWarning, find_run, open_run
from sdslib.io.storage import StorageError
from sdslib.train import Loop, TrainingError


def stopped(some, settings):
    """The error of a run that must leave student and bridge as they were."""
    before = state(some.student), state(some.bridge)
    with pytest.raises(TrainingError) as caught:
        run(some, settings)
    assert moved(before[0], state(some.student)) == set()
    assert moved(before[1], state(some.bridge)) == set()
    return caught.value


def told(call, *args):
    """What `call` warns of, in its order."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call(*args)
    return [str(one.message) for one in said if issubclass(one.category, RunWarning)]


@fault(
    40,
    "L_SDS that is not finite",
    "step 1: L_SDS is not finite for pairs […]; the weights are as they were",
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite(parties, value):  # noqa: F811
    some = parties()
    predict = some.teacher.predict_noise
    some.teacher.predict_noise = lambda *args: predict(*args) * float(value)
    return stopped(some, config())


@fault(
    40,
    "L_CLIP that is not finite",
    "step 1: L_CLIP is not finite for pairs […]; the weights are as they were",
)
def test_a_contrastive_loss_that_is_not_finite(parties):  # noqa: F811
    some = parties()
    encode = some.student.encode_texts
    some.student.encode_texts = lambda tokens: encode(tokens) * float("nan")
    return stopped(some, config())


@fault(
    40,
    "gradient that is not finite",
    "step 1: the gradient of the bridge is nan; the weights are as they were. Pairs […]",
)
def test_a_gradient_that_is_not_finite(parties):  # noqa: F811
    """The losses are finite; only the way back is not."""
    some = parties()
    some.bridge.linear.weight.register_hook(lambda grad: grad * float("nan"))
    return stopped(some, config())


@fault(40, "NaN after a checkpoint", "failed at step 2: TrainingError: step 3: L_SDS is not finite")
def test_the_last_good_checkpoint_stays(parties, tmp_path):  # noqa: F811
    some, settings = parties(), config()
    predict = some.teacher.predict_noise
    loop = Loop(settings, some, SomePairs())
    kept = open_run(settings, root=tmp_path)

    def train():
        with kept:
            for step in loop:
                kept.append_history(step.row())
                kept.save_checkpoint(loop.done, loop.pack(), {})
                if step.step == 2:
                    some.teacher.predict_noise = lambda *args: predict(*args) * float("nan")

    with pytest.raises(TrainingError):
        train()
    found = find_run(kept.path).latest_checkpoint()
    assert found.step == 2
    assert all(value.isfinite().all() for value in found.tensors.values())
    return kept.status()["message"]


@fault(
    41,
    "L_SDS that teaches nothing",
    "L_SDS gives no gradient to any trainable parameter of the student",
)
def test_a_term_without_gradient(parties):  # noqa: F811
    some = parties()
    torch.nn.init.zeros_(some.bridge.linear.weight)
    return stopped(some, config(arm="sds-only"))


@fault(
    41,
    "image embedding cut from the graph",
    "L_SDS gives no gradient to any trainable parameter of the student",
)
def test_a_detached_image(parties):  # noqa: F811
    some = parties()
    forward = some.bridge.forward
    some.bridge.forward = lambda emb: forward(emb.detach())
    return stopped(some, config())


@fault(
    41,
    "weight at which L_SDS does nothing",
    "L_SDS is inert at this weight: its gradient is …% of L_CLIP's (sds_weight 1e-09 under 'sum')",
)
def test_an_inert_weight(parties):  # noqa: F811
    with pytest.warns(UserWarning, match="inert") as said:
        run(parties(), config(sds_weight=1e-9), stop=1)
    return said[0].message


@fault(
    43,
    "out of memory within a step",
    "step 1: out of memory (…); nothing of the step is kept. Take a batch_size below 2, precision "
    "'bf16' in place of 'fp32', or less to train than 'layernorm'; micro_batch and checkpointing "
    "need less too",
)
def test_out_of_memory(parties):  # noqa: F811
    """Asks the allocator for more than there is, and looks for what the step held."""
    some, held = parties(), []

    def predict(z_t, t, text):
        held.append(z_t)
        torch.empty(2**60)

    some.teacher.predict_noise = predict
    said = stopped(some, config())
    assert all(p.grad is None for p in some.trained)
    assert said.__context__ is None, "its traceback would keep the step's tensors"
    return said


@fault(
    44,
    "disk full while a checkpoint is written",
    "disk full: need at least … MB, have … MB for …; what was saved before is intact",
)
def test_a_full_disk(tmp_path, monkeypatch):
    kept = saved(tmp_path)
    full_disk(monkeypatch)
    with pytest.raises(StorageError) as caught:
        kept.save_checkpoint(40, tensors(40), {})
    monkeypatch.undo()
    assert kept.latest_checkpoint().step == 30
    assert not list(kept.path.rglob(".*"))
    return caught.value


def damaged(root, steps, file="tensors.safetensors"):
    for step in steps:
        path = root / "checkpoints" / f"step-{step:08d}" / file
        os.truncate(path, path.stat().st_size // 2)


@fault(
    45,
    "newest checkpoint damaged",
    "skipped checkpoint step-00000030, tensors.safetensors has … bytes in place of …",
)
def test_the_newest_checkpoint_damaged(tmp_path):
    kept = saved(tmp_path)
    damaged(kept.path, [30])
    said = told(open_run, run_config(), {"pairs": "aa", "test": "bb", "teacher": "cc"}, tmp_path)
    assert find_run(kept.path).latest_checkpoint().step == 20
    return said


@fault(45, "no checkpoint that is whole", "no checkpoint is whole; starting afresh at step 0")
def test_no_checkpoint_that_is_whole(tmp_path):
    kept = saved(tmp_path)
    damaged(kept.path, [20, 30])
    said = told(open_run, run_config(), {"pairs": "aa", "test": "bb", "teacher": "cc"}, tmp_path)
    assert find_run(kept.path).history().empty
    return said


@fault(
    46,
    "going on with other parameters, data or recipe",
    "run 'mine' exists with other parameters (lr was 0.001, now 0.5; data pairs was 'aa', now "
    "'zz'; recipe was 0, now 1); choose another name",
)
def test_going_on_with_something_else(tmp_path):
    first = open_run(run_config(run="mine"), {"pairs": "aa"}, tmp_path)
    identity = storage.read_json(first.path / "identity.json")
    identity["recipe"] = 0
    first.keep("identity.json", storage.json_bytes(identity))
    with pytest.raises(RunError) as caught:
        open_run(run_config(run="mine", lr=0.5), {"pairs": "zz"}, tmp_path)
    return caught.value


@fault(
    47,
    "going on with other threads",
    "goes on with other threads than it began with; its result is not bit-exact",
)
def test_going_on_with_other_threads(tmp_path):
    kept = saved(tmp_path)
    env = storage.read_json(kept.path / "env.json")
    kept.keep("env.json", storage.json_bytes(env | {"threads": 77}))
    said = told(open_run, run_config(), {"pairs": "aa", "test": "bb", "teacher": "cc"}, tmp_path)
    assert storage.read_json(kept.path / "env.json")["bit_exact"] is False
    return said


@fault(48, "history with a torn line", "history.jsonl: skipped line 4, which is torn")
def test_a_torn_line(tmp_path):
    kept = saved(tmp_path)
    with (kept.path / "history.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    said = told(kept.history)
    assert len(said) == 1
    return said


@fault(
    48,
    "clock that was set while a run is open",
    "is locked by pid … on host … since …; wait for it or stop it",
)
def test_a_clock_that_was_set(tmp_path, monkeypatch):
    """Start times move with the clock; a lock that then looks stale would be taken."""
    (tmp_path / "x").mkdir()
    parent = psutil.Process(os.getppid())
    began = {"started": parent.create_time(), "boot": psutil.boot_time()}
    owner = lock.myself() | began | {"pid": parent.pid, "since": storage.now()}
    (tmp_path / "x" / "lock").write_text(json.dumps(owner))
    boot, born = psutil.boot_time(), psutil.Process.create_time
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: born(self) + 3600)
    with pytest.raises(LockedError) as caught:
        lock.acquire(tmp_path / "x")
    return caught.value


@fault(
    68, "writing to a finished run", "is finished; open_run with other parameters makes a new one"
)
def test_writing_to_a_finished_run(tmp_path):
    kept = saved(tmp_path)
    kept.finish()
    with pytest.raises(RunError) as caught:
        find_run(kept.path).append_history({"step": 31})
    return caught.value


@fault(69, "run that is not there", "no run 'mimi-sds-…'; did you mean 'mini-sds-…'?")
def test_a_run_that_is_not_there(tmp_path):
    name = saved(tmp_path).name
    with pytest.raises(RunError) as caught:
        find_run(name.replace("mini", "mimi"), tmp_path)
    return caught.value


@fault(
    70,
    "status file that was damaged",
    "status.json is not JSON: …; open the run again to go on from its checkpoint",
)
def test_a_damaged_status(tmp_path):
    kept = saved(tmp_path)
    os.truncate(kept.path / "status.json", 20)
    said = find_run(kept.path).status()["message"]
    again = open_run(run_config(), {"pairs": "aa", "test": "bb", "teacher": "cc"}, tmp_path)
    assert again.latest_checkpoint().step == 30
    return said
