"""The soak itself: what it counts, what it would find, and five rounds of it."""

import gc
import json
import mmap
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soak
import torch

from sdslib import experiment


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return soak.world(tmp_path_factory.mktemp("soak"))


def memory(grows, seed=0):
    """Samples of a process that gains `grows` MB in 1,000 steps, with neighbours alike."""
    rng, noise = np.random.default_rng(seed), [0.0]
    for _ in range(299):
        noise.append(0.8 * noise[-1] + rng.normal(0, 0.05))
    steps = np.arange(300) * 20
    return pd.DataFrame({"step": steps, "mb": 500 + grows * steps / 1000 + noise, "files": 9})


def test_the_slope_is_that_of_the_samples_and_its_interval_holds_it():
    held = [soak.slope(memory(2.0, seed)) for seed in range(40)]
    assert np.mean([middle for middle, *_ in held]) == pytest.approx(2.0, abs=0.02)
    assert sum(low < 2.0 < high for _, low, high in held) >= 34


def test_growth_of_memory_and_of_open_files_is_a_fault(capsys):
    assert soak.show_memory(memory(0.1)) == []
    (said,) = soak.show_memory(memory(3.0))
    assert said.startswith("memory grows by")
    leaking = memory(0.0).assign(files=range(300))
    assert soak.show_memory(leaking) == ["open files grow"]
    assert "memory slope" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_not_that_of_libraries_another_process_shares():
    """What is written counts, what is mapped does not: it comes and goes with others."""
    torch.ones(8) @ torch.ones(8)
    first = soak.own_mb()
    # Asked of the kernel: an array may be given pages that the process has written before.
    held = mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"1" * len(held))
    assert soak.own_mb() - first == pytest.approx(len(held) / 2**20, abs=4)
    held.close()
    code = "import torch; print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as other:
        assert other.stdout.readline() == b"1\n"
        beside = soak.own_mb()
        other.communicate(b"\n")
    assert soak.own_mb() == pytest.approx(beside, abs=4)


@pytest.mark.slow
def test_a_run_that_ends_differently_is_a_fault(tmp_path, config):
    """Two finished runs of other seeds stand for one that was resumed wrongly."""
    tally, folders = soak.Tally(), []
    for seed in (0, 1):
        own = config.model_copy(
            update={"seed": seed, "steps": 2, "runs": str(tmp_path / f"{seed}")}
        )
        Path(own.runs).mkdir()
        soak.complete(own, tally)
        folders.append(own)
    assert not tally.faults
    expected = soak.digest(soak.find_run(soak.folder_of(folders[0])))
    soak.settle(folders[0], expected, tally)
    assert (tally.exact, tally.faults) == (1, [])
    (soak.folder_of(folders[0]) / ".part-x-1").write_text("")
    soak.settle(folders[0], expected, tally)
    soak.settle(folders[1], expected, tally)
    assert [text.split(":")[0] for text in tally.faults] == ["left behind", "not bit-exact"]


def test_a_checkpoint_that_vanishes_is_counted_as_lost(tmp_path):
    tally = soak.Tally()
    (tmp_path / "identity.json").write_text("{}")
    status = {"state": "finished", "pid": 1, "step": 9, "updated": "", "message": "finished"}
    (tmp_path / "status.json").write_text(json.dumps(status))
    soak.after_kill(tmp_path, had=True, tally=tally)
    assert tally.lost == 1


def test_models_leave_memory_when_nobody_holds_them(config):
    """What a notebook does before the next one: `del`, and the teacher is gone."""
    data = experiment.load_data(config)
    models = experiment.load_models(config, data.pairs, torch.device("cpu"))
    next(iter(soak.Loop(config, models, data.pairs)))
    gone = weakref.ref(models.teacher.unet), weakref.ref(models.student.model)
    del models
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.slow
def test_five_rounds_lose_nothing(capsys):
    assert soak.main(["--rounds", "5"]) == 0
    out = capsys.readouterr().out
    assert "kill rounds survived  5" in out
    assert "checkpoints lost      0" in out
    assert out.endswith("soak passed\n")


@pytest.mark.slow
def test_a_short_run_prints_its_memory_slope_and_keeps_its_table(tmp_path, capsys):
    table = str(tmp_path / "memory.csv")
    assert soak.main(["--rounds", "0", "--minutes", "0.1", "--table", table]) == 0
    assert list(pd.read_csv(table)) == ["step", "mb", "files"]
    out = capsys.readouterr().out
    assert "MB per 1,000 steps [" in out
    assert "open files" in out


@pytest.mark.slow
def test_without_a_mount_the_full_disk_is_injected(tmp_path, config, monkeypatch):
    monkeypatch.setattr(soak.shutil, "which", lambda name: None)
    tally = soak.kills(config, tmp_path, 0)
    assert soak.show_kills(tally) == []
    tally = soak.full_disks(config, tmp_path, 3)
    assert soak.show_full(tally) == []
    assert tally.full > 0
