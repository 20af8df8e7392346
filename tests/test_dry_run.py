"""What a run would cost: counted exactly where it can be counted, on tiny real architectures."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch

from sdslib.config import FinetuneConfig
from sdslib.io.paths import project_root
from sdslib.io.wording import ParameterError
from sdslib.lab import dry_run
from sdslib.lab.dry_run import Rehearsal, Trial, rehearse
from sdslib.train import TrainingError


@pytest.fixture
def folders(tiny_models):
    return tiny_models | {"eval_items": 3}


@pytest.fixture
def config(folders):
    return lambda **changes: FinetuneConfig(
        **(folders | {"steps": 40, "batch_size": 4, "threads": 1} | changes)
    )


@pytest.mark.parametrize(
    ("changes", "evaluations"),
    [
        ({}, 40 * 4),
        ({"sds_share": 0.5}, 40 * 2),
        ({"arm": "sds-text"}, 40 * 4 * 2),
        ({"arm": "latent-regression"}, 0),
        ({"arm": "clip-only", "sds_weight": 0.0}, 0),
        ({"steps": None, "epochs": 3, "train_pairs": 10}, 3 * 2 * 4),
        ({"micro_batch": 1, "sds_gradient": "residual"}, 40 * 4),
        ({"processes": 2}, 40 * 4),
    ],
)
def test_evaluations_of_the_unet_are_counted_exactly(config, changes, evaluations):
    found = rehearse(config(**changes))
    assert found.evaluations == evaluations
    assert found.fits
    assert found.hours == pytest.approx(found.seconds * found.steps / 3600)


def test_the_table_tells_parameters_memory_time_and_whether_it_fits(config, folders):
    found = rehearse(config())
    assert found.whole
    student = tiny.student_config()
    assert found.parameters["student"] > found.parameters["of them trained"] > 0
    assert found.parameters["h_w, trained"] == (student["embed_dim"] + 1) * 4 * 4 * 4
    table = found.table().set_index("what")
    assert table.loc["fits", "value"] == "yes"
    assert table.loc["steps of the run", "value"] == "40"
    assert {"seconds a step", "peak of memory", "hours of the run's steps"} <= set(table.index)


def test_nothing_of_a_run_is_opened(config, tmp_path):
    rehearse(config(runs=str(tmp_path / "runs")))
    assert not (tmp_path / "runs").exists()


LINE = (Trial(1, 2.0, 10_000, 1.0), Trial(2, 3.0, 12_000, 2.0))


def test_what_is_too_large_to_try_is_told_from_the_line_through_two_trials():
    config = FinetuneConfig(batch_size=32, steps=3600)
    found = Rehearsal(config, {}, LINE, 3600, "cpu", 50_000)
    assert (found.memory, found.seconds, found.hours) == (72_000, 33.0, 33.0)
    assert not found.fits
    assert "micro_batch" in found.table().set_index("what").loc["fits", "how"]
    half = Rehearsal(config.model_copy(update={"processes": 2}), {}, LINE, 3600, "cpu", 50_000)
    assert (half.memory, half.evaluations) == (40_000, 32 * 3600)
    assert half.fits


def test_a_batch_that_would_not_fit_is_not_tried(config, monkeypatch):
    sizes = []

    def attempt(config, models, size):
        sizes.append(size)
        return Trial(size, 1.0, 10**9 * size, float(size))

    monkeypatch.setattr(dry_run, "attempt", attempt)
    monkeypatch.setattr(dry_run, "name_and_memory", lambda device: ("cpu", 3 * 10**9))
    found = rehearse(config())
    assert sizes == [1, 2]
    assert not found.fits
    assert found.memory == 4 * 10**9


def test_a_batch_that_memory_refuses_is_told(config, monkeypatch):
    def attempt(config, models, size):
        if size > 2:
            raise TrainingError("step 1: out of memory (no); nothing of the step is kept")
        return Trial(size, 1.0, 10 * size, float(size))

    monkeypatch.setattr(dry_run, "attempt", attempt)
    found = rehearse(config())
    assert not found.fits
    assert found.table().set_index("what").loc["fits", "how"] == "step 1: out of memory (no)"


def test_pairs_of_coco_are_known_and_others_must_be_there_or_be_given(config):
    paper = {"train_data": "data/nowhere/captions_train2017.json::data/nowhere/train2017"}
    assert dry_run.steps_of(config(steps=None, epochs=5, batch_size=32, **paper)) == 5 * 3696
    with pytest.raises(ParameterError, match="a dry run needs steps or train_pairs"):
        dry_run.steps_of(config(steps=None, epochs=1, train_data="nothing/here.json::x"))


def test_pictures_differ_and_come_again():
    some = dry_run.Pictures(4)
    assert some.image(0).size == (640, 480)
    assert some.image(0).tobytes() == some.image(0).tobytes() != some.image(1).tobytes()
    assert len({some.captions(i) for i in range(4)}) == 4
    assert len(some) == 4


def test_the_program_prints_the_table_and_refuses_a_misspelt_parameter(config, folders, capsys):
    words = [word for name, value in folders.items() for word in ("-p", name, str(value))]
    assert dry_run.main([*words, "-p", "steps", "3", "-p", "batch_size", "2"]) == 0
    assert "UNet evaluations of the run" in capsys.readouterr().out
    assert dry_run.main(["-p", "stepps", "3"]) == 2
    assert "did you mean 'steps'?" in capsys.readouterr().err


def test_a_notebook_goes_on_where_no_dry_run_is_asked_for(config, monkeypatch):
    dry_run.end_if_dry(config())
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    with pytest.raises(SystemExit) as end:
        dry_run.end_if_dry(config(dry_run=True))
    assert end.value.code == 0
    assert "hours of the run's steps" in shown[0]["what"].tolist()


def test_a_dry_run_is_no_other_run(config):
    assert config(dry_run=True).identity() == config().identity()


@pytest.mark.slow
def test_a_dry_notebook_ends_well_after_its_table_and_opens_no_run(tmp_path, folders):
    words = [str(Path(sys.executable).with_name("papermill")), "notebooks/02_finetune.ipynb"]
    words.append(str(tmp_path / "out.ipynb"))
    given = folders | {"dry_run": True, "steps": 4, "batch_size": 2, "runs": tmp_path / "runs"}
    words += [word for name, value in given.items() for word in ("-p", name, str(value))]
    done = subprocess.run(words, cwd=project_root(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    cells = [c for c in json.loads((tmp_path / "out.ipynb").read_text())["cells"]
             if c["cell_type"] == "code"]  # fmt: skip
    last = next(i for i, c in enumerate(cells) if "end_if_dry" in "".join(c["source"]))
    assert "hours of the run" in json.dumps(cells[last]["outputs"])
    assert all(cell["execution_count"] is None for cell in cells[last + 1 :])
    assert not (tmp_path / "runs").exists()


def test_the_peak_of_memory_is_that_of_what_was_used_since(tmp_path):
    dry_run.reset_peak(torch.device("cpu"))
    before = dry_run.peak(torch.device("cpu"))
    block = torch.ones(60_000_000)
    grown = dry_run.peak(torch.device("cpu")) - before
    assert block.numel() == 60_000_000
    assert 200e6 < grown < 500e6
