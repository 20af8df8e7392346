"""Runs are found, listed and held to their checksums; what stands in the way is told."""

import os
import subprocess
import sys

import pytest
from faults.catalog import fault, refused
from saving import DATA, config, flip, gone, only_run, opened, saved

from sdslib.config import preset
from sdslib.io.history import RunWarning
from sdslib.io.runs import RunError, find_run, list_runs, main, open_run
from sdslib.io.storage import StorageError


def test_runs_go_where_the_config_says(tmp_path):
    run = open_run(config(runs=str(tmp_path / "there")), DATA)
    assert run.path.parent == tmp_path / "there"
    assert run.shown_path == run.path.as_posix()
    assert preset("mini").runs is None


def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    words = r"a run cannot be kept in .*file: .*; name a folder that can"
    with pytest.raises(RunError, match=words):
        opened(tmp_path / "file")
    saved(tmp_path / "runs").finish()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert opened(tmp_path / "runs").finished
    with pytest.raises(RunError, match="it is read-only; name a folder that can be written"):
        opened(tmp_path / "runs", seed=3)


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, "mini-sds-"),
        ({"train_data": "coco.json"}, "mini-sds-"),
        ({"train_data": "coco.json", "benchmark": "winoground:rows/of mine"}, "winoground-sds-"),
        ({"train_data": "coco.json", "benchmark": "pictures/of mine.csv"}, "pictures-of-mine.csv-"),
        ({"preset": "paper", "benchmark": "winoground"}, "paper-sds-"),
        ({"run": "mine", "benchmark": "winoground", "train_data": "coco.json"}, "mine-"),
    ],
)
def test_a_run_is_called_after_the_world_that_it_measures_on(tmp_path, changes, begins):
    run = opened(tmp_path, **changes)
    assert run.name.startswith(begins)
    assert find_run(run.name, tmp_path).name == run.name


@fault("run that is not there")
def test_a_run_is_found_by_id_beginning_name_and_path(tmp_path):
    run, other = opened(tmp_path, run="mine"), opened(tmp_path, seed=5)
    for key in (run.id, run.id[:4], run.name, "mine", run.path, str(run.path)):
        assert find_run(key, tmp_path).path == run.path
    with pytest.raises(RunError, match="names several runs"):
        find_run("", tmp_path)
    for name in ("x" * 300, "a\0b", "~nosuchuser/x"):  # no path, and no error of the system
        with pytest.raises(RunError, match="no run '"):
            find_run(name, tmp_path)
    assert set(list_runs(tmp_path)["run"]) == {run.name, other.name}
    return refused(RunError, find_run, f"mime-{run.id}", tmp_path)


@pytest.mark.parametrize("name", ["params.json", "identity.json", "env.json", "sums.json"])
def test_a_changed_bit_is_named_and_not_read(tmp_path, name, capsys):
    run = saved(tmp_path)
    run.finish()
    flip(run.path / name)
    with pytest.raises((RunError, StorageError), match=f"{run.name}/{name} differs|is not JSON"):
        _ = run.params, run.identity, run.environment
    assert main(["verify", run.name, "--runs", str(tmp_path)]) == 1
    assert f"{run.name}/{name} " in capsys.readouterr().out


@fault("damaged run beside others")
def test_one_damaged_run_hides_no_other(tmp_path, capsys):
    good, bad = saved(tmp_path), opened(tmp_path, seed=1)
    (bad.path / "params.json").write_text("{")
    with pytest.warns(RunWarning) as said:
        table = list_runs(tmp_path)
    assert table.set_index("run")["state"].to_dict() == {good.name: "running", bad.name: "damaged"}
    with pytest.warns(RunWarning, match=f"left out: {bad.name}/params.json"):
        assert main(["list", "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "running   30 " in shown.out
    return said[0].message


@fault("kernel killed, as for want of memory")
def test_the_command_line_lists_and_shows(tmp_path, capsys):
    gone(saved, tmp_path, (10, 412))
    run = only_run(tmp_path)
    flip(run.path / "checkpoints" / "step-00000412" / "meta.json")
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert "died" in capsys.readouterr().out
    assert main(["show", run.name, "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{run.name}: died at step 412 while running"
    assert "step-00000010 verified" in out
    assert "step-00000412 meta.json differs from its sha256" in out
    assert main(["show", "nothing", "--runs", str(tmp_path)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    return out


@fault("no run to show")
def test_the_module_runs_as_a_command(tmp_path):
    words = [sys.executable, "-m", "sdslib.io.runs", "list", "--runs", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout
