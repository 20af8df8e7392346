"""A sweep computes each run once: skipped, retried, killed, continued, here and on Ray."""

import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import psutil
import pytest
from sweeping import InProcess, begin, diary, light_notebook, wait_for
from sweeping import data_read_once as data_read_once

from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig
from sdslib.io import lock, storage
from sdslib.io.paths import project_root
from sdslib.io.progress import Progress
from sdslib.io.run import Run
from sdslib.io.runs import list_runs, open_run
from sdslib.io.wording import ParameterError
from sdslib.results import executors, sweep
from sdslib.results.executors import Job, Local
from sdslib.results.grid import check, combine, plan
from sdslib.results.sweep import Board, Desk, Options

WAIT_S = 900.0  # far beyond what any sweep here takes on an idle machine
FINETUNE = "notebooks/02_finetune.ipynb"
TEN = ("--grid", "sds_weight=0,1e-4,1e-3,1e-2,1e-1", "--seeds", "2")


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    return light_notebook(tmp_path_factory.mktemp("light"))


# --- the desk, with an executor of this process --------------------------------------------------


class Here(InProcess):
    """Trains like the notebook."""

    def __init__(self, root, faults=()):
        super().__init__()
        self.root, self.faults, self.most = root, list(faults), 0

    def cores(self):
        return 4, 2

    def submit(self, job):
        super().submit(job)
        self.most = max(self.most, len(self.jobs))
        shared = Counter(n for j in self.jobs for n in self.cells[j.key].unfinished(self.root))
        assert max(shared.values(), default=1) == 1, "two cells at once train the same run"

    def wait(self, seconds):
        error = self.faults.pop(0) if self.faults else None
        if error is KeyboardInterrupt:
            raise error
        return [(self.jobs.pop().key, error)] if error else super().wait(seconds)

    def train(self, job):
        own = self.cells[job.key].config
        prints = prints_beside(Path(job.notebook))
        for config in (own, override(own, arm="clip-only")):
            run = open_run(config, prints)
            if not run.finished:
                run.append_history({"step": 1, "clip": 0.5, "grad_ratio": 0.25})
                run.finish()


def prints_beside(notebook):
    return json.loads(notebook.with_name("prints.json").read_text())


def desk(light, root, cells, **options):
    return Desk(plan(check(light, cells, str(root))), Options(runs=str(root), **options))


def work(light, root, cells, executor=None, **options):
    """A sweep of the cells by an executor of this process; the desk, when all is done."""
    found = desk(light, root, cells, **options)
    board = Board(found.cells, io.StringIO())
    executor = executor or Here(root)
    executor.cells = {cell.key: cell for cell in found.cells}
    found.work(executor, board)
    found.show(board)
    return found, executor


def test_a_finished_run_is_skipped_and_starts_no_process(light, tmp_path):
    cells = combine({"sds_weight": [0, 1e-3]}, 2)
    _, executor = work(light, tmp_path, cells)
    assert len(executor.order) == 4
    assert desk(light, tmp_path, cells).pending == []
    assert len(list_runs(tmp_path)) == 4


def test_controls_come_first_and_no_run_is_trained_by_two_cells_at_once(light, tmp_path):
    _, executor = work(light, tmp_path, combine({"sds_weight": [1e-3, 1e-2, 0]}, 2), workers=4)
    first = [job.parameters["sds_weight"] for job in executor.order[:2]]
    assert first == [0, 0]
    assert executor.most > 1


def test_a_control_that_no_cell_asks_for_is_trained_once(light, tmp_path):
    _, executor = work(light, tmp_path, combine({"sds_weight": [1e-3, 1e-2, 1e-1]}), workers=3)
    assert len(executor.order) == 3
    assert list_runs(tmp_path)["arm"].value_counts().to_dict() == {"sds": 3, "clip-only": 1}


def test_a_run_whose_control_is_missing_is_not_done(light, tmp_path):
    (cell,) = plan(check(light, [{"sds_weight": 1e-3}], str(tmp_path)))
    prints = prints_beside(light)
    open_run(cell.config, prints).finish()
    assert cell.unfinished(tmp_path) == {cell.ids[1]}


def test_cores_are_divided_among_the_cells_of_the_whole_grid(light, tmp_path):
    _, executor = work(light, tmp_path, combine({}, 2))
    assert {job.threads for job in executor.order} == {2}
    assert {job.parameters["threads"] for job in executor.order} == {2}
    _, executor = work(light, tmp_path, [{"threads": 3, "steps": 2}])
    assert executor.order[0].threads == 3


def test_an_error_fails_a_cell_and_the_next_sweep_tries_it_again(light, tmp_path):
    cells = combine({}, 2)
    found, executor = work(light, tmp_path, cells, Here(tmp_path, ["ValueError: no"]))
    assert list(found.failed.values()) == ["ValueError: no"]
    assert len(executor.order) == 2
    again, executor = work(light, tmp_path, cells)
    assert not again.failed
    assert len(executor.order) == 1


@pytest.mark.parametrize(
    ("faults", "failed", "tries"),
    [
        pytest.param(["died: by signal 9"], 0, 2, id="died once"),
        pytest.param(["died: by signal 9"] * 9, 1, sweep.DEATHS, id="dies for ever"),
        pytest.param(["LockedError: run a is locked by pid 1 on host b"], 0, 2, id="is taken"),
    ],
)
def test_a_cell_that_dies_or_is_taken_is_tried_again(light, tmp_path, faults, failed, tries):
    found, executor = work(light, tmp_path, [{}], Here(tmp_path, faults))
    assert (len(found.failed), len(executor.order)) == (failed, tries)


def test_a_run_at_work_elsewhere_is_left_alone(light, tmp_path):
    found = desk(light, tmp_path, [{"seed": 0}, {"seed": 1}])
    run = open_run(found.pending[0].config, prints_beside(light))
    assert [cell.config.seed for cell in found._free()] == [1]
    run.interrupt()
    assert [cell.config.seed for cell in found._free()] == [0, 1]


def test_a_run_that_trained_in_a_notebook_that_failed_is_tried_again(light, tmp_path):
    class Trained(Here):
        def wait(self, seconds):
            job = self.jobs.pop()
            self.train(job)
            return [(job.key, "KeyError: 'model'")]

    found, _ = work(light, tmp_path, [{}], Trained(tmp_path))
    assert list(found.failed.values()) == ["KeyError: 'model'"]
    assert pd.read_parquet(found.summary)["state"].tolist() == ["notebook failed"]
    again, executor = work(light, tmp_path, [{}])
    assert len(executor.order) == 1
    assert not again.failed
    assert desk(light, tmp_path, [{}]).pending == []


def test_a_notebook_that_was_cut_after_its_training_is_executed_again(light, tmp_path):
    found, _ = work(light, tmp_path, [{}])
    found._note(found.cells[0], "started")  # as of a sweep that was killed
    assert len(desk(light, tmp_path, [{}]).pending) == 1


def test_a_run_held_on_another_host_is_waited_for_with_a_word(light, tmp_path, capsys):
    found = desk(light, tmp_path, [{}])
    run = open_run(found.pending[0].config, prints_beside(light))
    status = storage.read_summed(run.path / "status.json") | {"host": "elsewhere"}
    storage.write_summed(run.path / "status.json", status)
    owner = lock.myself() | {"host": "elsewhere", "since": "then"}
    (run.path / "lock").write_text(json.dumps(owner))
    assert [list(found._free()), list(found._free())] == [[], []]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"waiting for {run.name}: pid {os.getpid()} on host elsewhere has it")
    assert said[0].endswith(f"delete {run.shown_path}/lock")
    (run.path / "lock").unlink()
    assert run.status()["state"] == "died"
    assert len(list(found._free())) == 1


def test_a_notebook_that_leaves_no_run_has_failed(light, tmp_path):
    class Idle(Here):
        def train(self, job):
            """Do nothing."""

    found, _ = work(light, tmp_path, [{}], Idle(tmp_path))
    assert "left no finished run" in next(iter(found.failed.values()))


def test_the_summary_tells_nothing_of_order_or_time(light, tmp_path):
    cells = combine({"sds_weight": [0, 1e-3]}, 2)
    tables = []
    for name, workers in (("a", 1), ("b", 4)):
        found, _ = work(light, tmp_path / name, cells, workers=workers)
        tables.append(found.summary.read_bytes())
    assert tables[0] == tables[1]
    table = pd.read_parquet(found.summary)
    assert table["sds_weight"].tolist() == [0, 0, 1e-3, 1e-3]
    assert table["state"].tolist() == ["finished"] * 4
    assert table["clip"].tolist() == [0.5] * 4
    assert table["grad_ratio"].tolist() == [0.25] * 4
    assert not {"seconds", "updated", "runs", "threads"} & set(table.columns)


def test_a_sweep_gives_its_runs_with_their_controls(light, tmp_path):
    found, _ = work(light, tmp_path, combine({"sds_weight": [0, 1e-3]}, 2))
    done = sweep.Sweep(found.cells, found.root, found.summary, found.failed)
    assert done.text() == "4 runs: 4 finished, 0 failed"
    assert [run.params["seed"] for run in done.runs(sds_weight=1e-3)] == [0, 1]
    run, control = done.pairs(sds_weight=1e-3, seed=1)[0]
    assert (run.params["arm"], control.params["arm"]) == ("sds", "clip-only")
    assert done.pairs(seed=0, sds_weight=0.0)[0][0].id == done.pairs(seed=0)[0][1].id
    assert len(done.table()) == 4


def test_what_was_not_run_is_counted(light, tmp_path):
    found = desk(light, tmp_path, combine({}, 3))
    done = sweep.Sweep(found.cells, found.root, found.summary, {found.cells[0].key: "no"})
    assert done.text() == "3 runs: 0 finished, 1 failed, 2 not run"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The command's local executor is one of this process."""
    executor = Here(tmp_path)

    def planned(cells):
        found = plan(cells)
        executor.cells = {cell.key: cell for cell in found}
        return found

    monkeypatch.setattr(sweep, "plan", planned)
    monkeypatch.setattr(executors, "Local", lambda: executor)
    return executor


# --- what is shown -------------------------------------------------------------------------------


def test_the_leaderboard_ranks_settings_by_their_validation_score():
    rows = [
        ("a", 0, "finished", 0.2),
        ("a", 1, "finished", 0.4),
        ("b", 0, "finished", 0.5),
        ("b", 1, "not run", None),
        ("c", 0, "not run", None),
    ]
    table = pd.DataFrame(rows, columns=["trainable", "seed", "state", "validation.text"])
    table["mini-winoground.text"] = [1.0, 1.0, 0.0, None, None]  # chosen on is validation alone
    found = sweep.leaderboard(table, ["trainable"])
    assert found["trainable"].tolist() == ["b", "a", "c"]
    assert found["finished"].tolist() == ["1/2", "2/2", "0/1"]
    assert found["validation.text"].tolist()[:2] == [0.5, pytest.approx(0.3)]


def test_the_board_shows_time_left_and_the_standing_in_text_and_html(tmp_path):
    with (tmp_path / "log").open("w+") as log:
        board = Board([None] * 3, log)
        with board:
            board.standing(1, pd.DataFrame({"trainable": ["<bias>"], "x.text": [0.5]}), 1)
            board.tick()
        log.seek(0)
        text = log.read()
    assert "runs 1/3 · starting · 1 failed\n" in text
    assert "<bias>" in text
    assert "0.5000" in text
    assert "&lt;bias&gt;" in board._html()
    assert isinstance(board, Progress)


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "sds_wieght=0"], "unknown parameter 'sds_wieght'; did you mean 'sds_weight'?"),
        (["--grid", "sds_weight="], "--grid sds_weight= has no value"),
        (["--grid", "sds_weight"], "--grid needs NAME=VALUE, got 'sds_weight'"),
        (["--grid", "steps=2", "--grid", "steps=3"], "steps is given twice"),
        ([], "the grid is empty"),
        (["--seeds", "0"], "seeds must be a whole number ≥ 1, got 0"),
        (["--seeds", "2", "--workers", "none"], "workers must be a whole number"),
        (["--seeds", "2", "--executor", "rya"], "did you mean 'ray'?"),
        (["--grid", "sds_weight=inf"], "sds_weight must be finite"),
        (["--seeds", "2", "--executor", "ray", "--address", "127.0.0.1:9"], "no Ray cluster"),
        (["--seeds", "2", "--executor", "ray", "--address", "nowhere"], "no Ray cluster"),
        (["--seeds", "2", "--summary", "~nosuchuser/a.parquet"], "no user 'nosuchuser' here"),
    ],
)
def test_a_wrong_command_is_one_line_and_runs_nothing(words, message, tmp_path, capsys):
    began = time.monotonic()
    assert sweep.main([FINETUNE, *words, "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("invalid parameters: ")
    assert message in said[0]
    assert not (tmp_path / "runs").exists()
    assert time.monotonic() - began < 20


def test_a_file_that_is_no_summary_is_not_written_over(light, tmp_path):
    path = tmp_path / "scores.parquet"
    pd.DataFrame({"id": ["a"], "s_0_0": [1.0]}).to_parquet(path)
    before = path.read_bytes()
    with pytest.raises(ParameterError, match="is there and is no sweep's summary"):
        sweep.run(light, [{}], Options(runs=str(tmp_path / "runs"), summary=str(path)))
    assert path.read_bytes() == before
    found, _ = work(light, tmp_path, [{}], summary=str(tmp_path / "new.parquet"))
    again = desk(light, tmp_path, [{}], summary=str(tmp_path / "new.parquet"))
    assert again.summary == found.summary


@pytest.mark.slow
def test_another_server_is_no_ray_cluster():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        assert "no Ray cluster answers" in executors.ray_problem(address)
        assert time.monotonic() - began < 2 * executors.ASK_S
        assert executors.ray_problem(f"ray://{address}") is None  # Ray's client asks by itself


def test_the_command_ends_with_the_count_and_tells_what_failed(light, tmp_path, capsys, here):
    here.faults = ["ValueError: no"]
    words = [str(light), "--grid", "trainable=bias", "--set", "steps=2", "--seeds", "2"]
    words += ["--runs", str(tmp_path)]
    assert sweep.main([*words, "--summary", str(tmp_path / "s.parquet")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 runs: 1 finished, 1 failed"
    assert lines[0] == "failed: steps=2, trainable=bias, seed=1: ValueError: no"
    assert len(pd.read_parquet(tmp_path / "s.parquet")) == 2
    assert sweep.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 runs: 2 finished, 0 failed"


def test_cells_that_are_one_run_are_counted_once(light, tmp_path, capsys, here):
    words = [str(light), "--grid", "sds_weight=0,0.0,1e-3", "--runs", str(tmp_path)]
    assert sweep.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 cells are 2 runs: equal ids are computed once"
    assert lines[-1] == "2 runs: 2 finished, 0 failed"


def test_a_stop_by_hand_ends_the_cells_and_says_how_to_go_on(light, tmp_path, capsys, here):
    here.faults = [KeyboardInterrupt]
    assert sweep.main([str(light), "--seeds", "2", "--runs", str(tmp_path)]) == 130
    assert here.closed
    assert "goes on where it was" in capsys.readouterr().err


# --- processes -----------------------------------------------------------------------------------


def job(notebook, folder, **parameters):
    """A job of the notebook whose run is kept below the folder."""
    paths = {"output": str(folder / "out.ipynb"), "log": str(folder / "log")}
    return Job(
        "key", str(notebook), parameters | {"runs": str(folder / "runs")}, threads=1, **paths
    )


def test_a_verdict_is_the_last_word_of_the_cell(tmp_path):
    cell = job("a.ipynb", tmp_path)
    (tmp_path / "log").write_text("a warning\nValueError: no\n")
    assert executors.verdict(cell, 0) is None
    assert executors.verdict(cell, 1) == "ValueError: no"
    assert executors.verdict(cell, 3) == "died: ValueError: no"
    assert "signal 9" in executors.verdict(cell, -9)


def test_a_local_cell_is_a_process_that_ends_with_its_error(tmp_path):
    local = Local()
    assert local.cores()[0] >= 1
    assert local.wait(0) == []
    local.submit(job(tmp_path / "absent.ipynb", tmp_path))
    (ended,) = wait_for(lambda: local.wait(1), 120)
    assert ended[0] == "key"
    assert "absent.ipynb" in ended[1]
    local.submit(job(tmp_path / "absent.ipynb", tmp_path))
    local.close()
    assert local.wait(0) == []
    assert not local._scratch.exists()


def test_a_process_whose_parent_is_gone_already_ends(tmp_path):
    code = "from sdslib.io.launch import die_with; die_with(1 << 30); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def finished_once(runs, count):
    """Every run is finished, and its history has each step once."""
    table = list_runs(runs)
    assert table["state"].tolist() == ["finished"] * count
    for name in table["run"]:
        assert Run(runs / name).history()["step"].tolist() == [1, 2, 3]


@pytest.fixture(scope="module")
def uninterrupted(light, tmp_path_factory):
    runs = tmp_path_factory.mktemp("uninterrupted")
    process = begin(light, *TEN, "--runs", runs, "--summary", runs / "summary.parquet")
    said, errors = process.communicate(timeout=WAIT_S)
    assert said.splitlines()[-1] == "10 runs: 10 finished, 0 failed", errors
    return runs


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_sweep_leaves_no_orphan_goes_on_and_ends_as_an_uninterrupted_one(
    light, uninterrupted, tmp_path
):
    words = (light, *TEN, "--runs", tmp_path, "--summary", tmp_path / "summary.parquet")
    killed = begin(*words)
    wait_for(lambda: sum(row["event"] == "finished" for row in diary(tmp_path)) >= 4)
    below = psutil.Process(killed.pid).children(recursive=True)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    psutil.wait_procs(below, timeout=5)
    assert not [process for process in below if alive(process.pid)]
    done = [row["id"] for row in diary(tmp_path) if row["event"] == "finished"]
    assert 4 <= len(done) < 10
    said, errors = begin(*words).communicate(timeout=WAIT_S)
    assert said.splitlines()[-1] == "10 runs: 10 finished, 0 failed", errors
    finished_once(tmp_path, 10)
    rows = diary(tmp_path)
    assert max(Counter(r["id"] for r in rows if r["event"] == "finished").values()) == 1
    started = Counter(r["id"] for r in rows if r["event"] == "started")
    assert all(started[name] == 1 for name in done)
    assert (tmp_path / "summary.parquet").read_bytes() == (
        uninterrupted / "summary.parquet"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_executed_notebook_stays_in_the_run_and_names_no_folder(uninterrupted, light):
    for name in list_runs(uninterrupted)["run"]:
        text = (uninterrupted / name / "notebook.ipynb").read_text()
        assert str(light) not in text
        assert '"papermill": {' not in json.dumps(json.loads(text)["metadata"])
    assert not list((uninterrupted / "sweeps" / "cells").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_seed_that_fails_stops_no_other_and_is_tried_again(tmp_path):
    (tmp_path / "a").mkdir()
    poisoned = light_notebook(tmp_path / "a", poison=1)
    words = (poisoned, "--grid", "sds_weight=0", "--seeds", "3", "--runs", tmp_path / "runs")
    for _ in range(2):
        process = begin(*words)
        said, _ = process.communicate(timeout=WAIT_S)
        assert process.returncode == 1
        assert said.splitlines()[-1] == "3 runs: 2 finished, 1 failed"
        assert "failed: sds_weight=0, seed=1: ValueError: this seed is poison" in said
    assert Counter(row["event"] for row in diary(tmp_path / "runs"))["started"] == 4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_notebook_is_swept_and_its_runs_are_named_beforehand(tmp_path):
    tiny = ["steps=2", "batch_size=4", "eval_items=12", "bridge_pairs=64", "eval_every=0"]
    sets = [word for entry in tiny for word in ("--set", entry)]
    words = (FINETUNE, "--grid", "sds_weight=0,1e-3", *sets, "--runs", tmp_path)
    said, errors = begin(*words).communicate(timeout=WAIT_S)
    assert said.splitlines()[-1] == "2 runs: 2 finished, 0 failed", errors + said
    began = len(diary(tmp_path))
    said, _ = begin(*words).communicate(timeout=WAIT_S)
    assert said.splitlines()[-1] == "2 runs: 2 finished, 0 failed"
    assert len(diary(tmp_path)) == began
    assert len(list_runs(tmp_path)) == 2
    table = pd.read_parquet(next((tmp_path / "sweeps").glob("*.parquet")))
    assert table["grad_ratio"].notna().tolist() == [False, True]
    assert table["mini-winoground.text"].between(0, 1).all()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_on_ray_a_killed_worker_loses_nothing(light, uninterrupted, tmp_path):
    words = (light, *TEN, "--runs", tmp_path, "--summary", tmp_path / "summary.parquet")
    process = begin(*words, "--executor", "ray", "--workers", 2)

    def workers():
        below = psutil.Process(process.pid).children(recursive=True)
        found = [p for p in below if alive(p.pid) and "_on_ray" in " ".join(p.cmdline()[:1])]
        return found if len(found) >= 2 else None

    first, *_ = wait_for(workers)
    cells = wait_for(lambda: first.children(recursive=True))
    first.send_signal(signal.SIGKILL)
    psutil.wait_procs(cells, timeout=5)
    assert not [cell for cell in cells if alive(cell.pid)]
    said, errors = process.communicate(timeout=WAIT_S)
    assert said.splitlines()[-1] == "10 runs: 10 finished, 0 failed", errors
    finished_once(tmp_path, 10)
    assert (tmp_path / "summary.parquet").read_bytes() == (
        uninterrupted / "summary.parquet"
    ).read_bytes()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_sweep_joins_a_running_cluster_by_its_address(light, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    head = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    head += ["--port", str(port)]
    head += ["--num-cpus", "2", "--include-dashboard", "false"]
    log = tmp_path / "head.log"
    with log.open("w") as out:
        cluster = subprocess.Popen(head, stdout=out, stderr=subprocess.STDOUT)

    address = f"127.0.0.1:{port}"

    def answers():
        assert cluster.poll() is None, log.read_text()
        return executors.ray_problem(address) is None

    try:
        wait_for(answers)
        words = (light, "--grid", "sds_weight=0", "--seeds", "2", "--runs", tmp_path)
        process = begin(*words, "--executor", "ray", "--address", address)
        said, errors = process.communicate(timeout=WAIT_S)
        assert said.splitlines()[-1] == "2 runs: 2 finished, 0 failed", errors
        assert executors.ray_problem(address) is None  # the cluster is its owner's, and stays
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        problem = executors.ray_problem(address)
        assert (problem is None) if mode == "disabled" else ("set RAY_AUTH_MODE=token" in problem)
    finally:
        below = psutil.Process(cluster.pid).children(recursive=True)
        for one in [*below, psutil.Process(cluster.pid)]:
            one.kill()
        cluster.wait()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_rays_executor_runs_jobs_and_tells_their_errors(tmp_path):
    executor = executors.OnRay()
    try:
        assert executor.cores()[0] >= executor.cores()[1] >= 1
        assert executor.wait(0) == []
        executor.submit(job(tmp_path / "absent.ipynb", tmp_path))
        (ended,) = wait_for(lambda: executor.wait(1), 120)
        assert "absent.ipynb" in ended[1]
    finally:
        executor.close()


def test_jobs_of_slurm_tell_their_errors_and_are_cancelled_at_the_end(tmp_path):
    executor = executors.OnSlurm(tmp_path, "cpus_per_task=1,partition=gpu", cluster="local")
    try:
        assert executor.cores()[1] == 1
        assert executor.wait(0) == []
        executor.submit(job(tmp_path / "absent.ipynb", tmp_path))
        (ended,) = wait_for(lambda: executor.wait(1), 120)
        assert ended[0] == "key"
        assert "absent.ipynb" in ended[1]
        executor.submit(job(tmp_path / "absent.ipynb", tmp_path))
        (task,) = executor._live.values()
    finally:
        executor.close()
    wait_for(task.done, 30)
    assert not list(tmp_path.glob("alive-*"))


def test_a_job_of_slurm_ends_when_the_sweep_gives_no_sign_any_more(light, tmp_path):
    sign = tmp_path / "alive"
    sign.touch()
    assert "signal 9" in executors._on_node(asdict(job(light, tmp_path)), str(sign), 0.2)
    assert "signal 9" in executors._on_node(asdict(job(light, tmp_path)), "gone", 0.2)


def test_what_slurm_is_asked_for_is_read_from_the_address():
    found = executors.slurm_parameters("partition=gpu, gpus_per_node=1,account=me")
    assert found == {"slurm_partition": "gpu", "gpus_per_node": 1, "slurm_account": "me"}
    with pytest.raises(ParameterError, match="address is as partition=gpu,timeout_min=60; got 'g'"):
        executors.slurm_parameters("g")


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("ray", None, r"executor 'ray' needs Ray; pip install 'sds-clip-workbench\[ray\]'"),
        ("slurm", None, r"'slurm' needs submitit; pip install 'sds-clip-workbench\[slurm\]'"),
        ("slurm", "there", "needs sbatch; call it where"),
    ],
)
def test_an_executor_that_is_not_there_is_said(monkeypatch, name, module, message):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: module)
    monkeypatch.setattr(executors.shutil, "which", lambda name: None)
    with pytest.raises(ParameterError, match=message):
        executors.require(name, None)


def test_the_options_of_a_sweep_are_those_of_its_notebook():
    from sdslib.checks.notebooks import AblateWeightConfig

    config = AblateWeightConfig(workers=3, executor="ray", address="auto")
    assert Options.of(config) == Options(None, 3, "ray", "auto")


def test_defaults_leave_a_real_model_the_machine(light, tmp_path):
    cells = plan(check(light, combine({}, 3)))
    assert sweep._default_workers(cells, 8) == 3
    assert sweep._default_workers(cells, 2) == 2
    real = [cell.__class__(cell.notebook, {}, FinetuneConfig(preset="paper")) for cell in cells]
    assert sweep._default_workers(real, 8) == 1
    assert project_root().is_dir()
