"""A run survives kills, torn files, full disks and second handles, and says what happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import flips
import pandas as pd
import psutil
import pytest
import torch
from faults.catalog import fault, refused
from hypothesis import given
from hypothesis import strategies as st
from saving import (
    FORK,
    begun,
    config,
    cut,
    dies_at,
    flip,
    full_disk,
    gone,
    only_run,
    opened,
    saved,
    tensors,
)

from sdslib.config import FinetuneConfig
from sdslib.io import history, runs, storage
from sdslib.io.history import RunWarning
from sdslib.io.run import RunError
from sdslib.io.storage import StorageError, manifest_problem, write_bytes


@pytest.fixture
def run(tmp_path):
    return saved(tmp_path)


def names(run) -> list[str]:
    return [path.name for path in run.checkpoints()]


# --- what a run keeps ----------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    run = opened(tmp_path)
    assert run.latest_checkpoint() is None
    given = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "n": torch.tensor([2**40])}
    meta = {"lr": 0.1 + 0.2, "order": [1, 2], "name": "é"}
    run.save_checkpoint(7, given, meta)
    step, loaded, read = run.latest_checkpoint()
    assert (step, read) == (7, meta)
    assert loaded.keys() == given.keys()
    assert all(
        torch.equal(loaded[k], given[k]) and loaded[k].dtype == given[k].dtype for k in given
    )


@fault("scores that a run does not have")
def test_history_scores_and_results_come_back(run):
    table = pd.DataFrame({"id": ["x", "y"], "s": [0.25, 1.5]})
    run.save_scores("winoground", table)
    run.save_results(table)
    pd.testing.assert_frame_equal(run.scores("winoground"), table)
    pd.testing.assert_frame_equal(run.results(), table)
    assert list(run.history()["step"]) == [10, 20, 30]
    with pytest.raises(ValueError, match="must be letters"):
        run.save_scores("../x", table)
    return refused(RunError, run.scores, "aro")


def test_numbers_that_are_not_finite_are_null_in_history(tmp_path):
    run = opened(tmp_path)
    run.append_history({"step": 1, "loss": float("nan"), "ratio": torch.tensor(0.5), "by": [1e999]})
    row = json.loads((run.path / "history.jsonl").read_text())
    assert row.pop("crc32")
    assert row == {"step": 1, "loss": None, "ratio": 0.5, "by": [None]}


def test_the_folder_holds_the_parameters_the_environment_and_the_status(run, tmp_path):
    assert FinetuneConfig(**run.params) == config()
    env = run.environment
    assert env["packages"]["torch"] == torch.__version__.split("+")[0]
    assert env["threads"] == torch.get_num_threads()
    assert env["git"] is None or len(env["git"]["commit"]) == 40
    text = (run.path / "env.json").read_text() + (run.path / "status.json").read_text()
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    assert (run.status()["state"], run.status()["step"]) == ("running", 30)


def test_the_newest_two_checkpoints_stay(tmp_path):
    run = saved(tmp_path, range(1, 6))
    assert names(run) == ["step-00000005", "step-00000004"]
    run.save_checkpoint(6, tensors(6), {}, keep=1)
    assert names(run) == ["step-00000006"]
    with pytest.raises(ValueError, match="keep must be at least 1"):
        run.save_checkpoint(7, tensors(7), {}, keep=0)


def test_a_checkpoint_that_a_kill_left_half_removed_is_no_damage(run):
    [newest, _] = run.checkpoints()
    half = shutil.copytree(newest, newest.with_name(f".trash-{newest.name}-1"))
    (half / "tensors.safetensors").unlink()
    assert run.problems() == []
    (newest / "tensors.safetensors").unlink()
    assert len(run.problems()) == 1


def test_a_staged_folder_of_a_run_appears_whole_or_not_at_all(run):
    with run.staged("weights") as folder:
        (folder / "a.json").write_text("1")
        assert not run.weights.exists()
    assert manifest_problem(run.weights) is None
    with pytest.raises(RuntimeError), run.staged("weights") as folder:
        raise RuntimeError
    assert (run.weights / "a.json").read_text() == "1"
    assert not list(run.path.glob(".*"))


# --- how it ended --------------------------------------------------------------------------------


@fault("writing to a finished run")
def test_a_finished_run_is_read_only_and_opens_at_once(run, tmp_path):
    run.finish()
    again = opened(tmp_path)
    assert again.finished
    assert again.latest_checkpoint().step == 30
    for write in (
        lambda: again.append_history({"step": 31}),
        lambda: again.save_checkpoint(31, tensors(31), {}),
        lambda: again.save_scores("x", pd.DataFrame()),
        again.finish,
    ):
        with pytest.raises(RunError, match="is finished") as caught:
            write()
    again.save_results(pd.DataFrame({"a": [1]}))
    return caught.value


def test_an_error_fails_the_run_and_ctrl_c_interrupts_it(run, tmp_path):
    with pytest.raises(ZeroDivisionError), run:
        1 / 0  # noqa: B018
    assert run.status()["message"] == "failed at step 30: ZeroDivisionError: division by zero"
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as run:
        raise KeyboardInterrupt
    assert run.status()["state"] == "interrupted"
    assert opened(tmp_path).status()["state"] == "running"


def test_a_killed_run_has_died_and_not_completed(tmp_path):
    gone(saved, tmp_path, (10, 411, 412))
    run = only_run(tmp_path)
    assert json.loads((run.path / "status.json").read_text())["state"] == "running"
    assert run.status()["state"] == "died"
    assert run.status()["message"] == "died at step 412 while running"
    assert opened(tmp_path).status()["state"] == "running"


def test_a_killed_process_that_nobody_waited_for_counts_as_gone(tmp_path):
    def die():
        saved(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)

    child = begun(die)
    process = psutil.Process(child.pid)
    deadline = time.monotonic() + 20
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert only_run(tmp_path).status()["state"] == "died"
    assert process.status() == psutil.STATUS_ZOMBIE, "it was waited for, so nothing was tested"
    child.join(10)


def test_a_process_that_ends_without_a_word_leaves_an_interrupted_run(tmp_path):
    code = (
        "from sdslib.config import mini\nfrom sdslib.io.runs import open_run\n"
        f"run = open_run(mini(), {{}}, {str(tmp_path)!r})\nrun.append_history({{'step': 3}})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    run = only_run(tmp_path)
    assert run.status()["message"] == "interrupted at step 3 because the process ended"
    assert not (run.path / "lock").exists()


def test_opening_again_in_one_process_takes_over_from_the_old_handle(run, tmp_path):
    opened(tmp_path).append_history({"step": 31})
    with pytest.raises(RunError, match="opened for reading"):
        run.append_history({"step": 31})


# --- kills ---------------------------------------------------------------------------------------


def test_killed_at_random_moments_there_is_always_a_good_checkpoint(tmp_path):
    """Rounds of endless saves, each killed; step and content of the newest good one agree."""
    delay, last = random.Random(0), 0
    for round_ in range(10):
        ready = FORK.Event()
        child = begun(_save_without_end, tmp_path, ready)
        assert ready.wait(20)
        time.sleep(delay.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
        step, loaded, meta = only_run(tmp_path).latest_checkpoint()
        assert step > last, f"round {round_} lost steps"
        assert meta == {"half": step / 2}
        assert loaded["weight"].unique().tolist() == [float(step)]
        last = step
    run = opened(tmp_path)
    assert list(run.history()["step"]) == [*range(1, last + 1)]
    left = [path.name for path in run.path.rglob("*")]
    assert not [n for n in left if n.startswith((".stage", ".trash", ".part"))]
    assert not [n for n in left if n.endswith(".old")]


def _save_without_end(root: Path, ready) -> None:
    run = opened(root)
    found = run.latest_checkpoint()
    step = found.step if found else 0
    while True:
        step += 1
        run.append_history({"step": step})
        run.save_checkpoint(step, tensors(step, 256), {"half": step / 2}, keep=1)
        ready.set()


def each_kill(tmp_path, work, least: int, times: int = 1):
    """For every sync, rename and removal of `work` in turn a folder in which it was killed there,
    `times` running, until it survives; of `work` what it yields first is only prepared."""
    for moment in range(1, 60):
        root = tmp_path / str(moment)
        for _ in range(times):
            child = begun(_work_and_die_at, work, root, moment)
            child.join(20)
        yield root
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert moment > least, "the operations were not counted"


def _work_and_die_at(work, root: Path, moment: int) -> None:
    steps = work(root)
    next(steps)
    dies_at(moment, "fsync", "replace", "unlink", "rmdir")
    list(steps)


@pytest.mark.parametrize("step", [2, 1], ids=["next", "same"])
def test_killed_at_each_file_operation_of_a_save_there_is_a_good_checkpoint(tmp_path, step):
    """Like the random kill, but at every moment of a save."""

    def work(root):
        run = opened(root)
        yield run.save_checkpoint(1, tensors(1, 4), {}, keep=1)
        run.save_checkpoint(step, tensors(step, 4), {}, keep=1)

    for root in each_kill(tmp_path, work, least=10):
        found = only_run(root).latest_checkpoint()
        assert found.step in (1, step)
        assert found.tensors["weight"].unique().tolist() == [float(found.step)]
        reopened = opened(root)
        assert reopened.latest_checkpoint().step == found.step
        assert not list(reopened.path.rglob(".*"))


def test_killed_at_each_file_operation_of_an_opening_the_run_goes_on_where_it_was(tmp_path):
    """Of a run of today, and of one of before there were checksums; a kill may follow a kill."""

    def work(root):
        if not root.exists():
            run = saved(root)
            run.save_scores("x", pd.DataFrame({"s": [1.0]}))
            run.interrupt()
            if int(root.name) % 2:
                without_checksums(run)
        yield
        opened(root)

    for root in each_kill(tmp_path, work, least=5, times=2):
        again = opened(root)
        assert again.environment["bit_exact"]
        assert list(again.history()["step"]) == [10, 20, 30]
        assert again.latest_checkpoint().step == 30
        assert again.scores("x")["s"].tolist() == [1.0]
        assert again.problems() == []


def test_killed_at_each_file_operation_of_a_kept_table_nothing_counts_as_damaged(tmp_path):
    def work(root):
        run = opened(root)
        run.save_results(pd.DataFrame({"a": [1]}))
        yield run.finish()
        run.save_results(pd.DataFrame({"a": [2]}))

    for root in each_kill(tmp_path, work, least=5):
        run = only_run(root)
        assert run.problems() == []
        assert run.results()["a"].tolist() in ([1], [2])


# --- damage, and what is still there -------------------------------------------------------------

DAMAGE = [
    (cut, "tensors.safetensors", "bytes in place of"),
    (flip, "tensors.safetensors", "tensors.safetensors differs from its sha256"),
    (flip, "meta.json", "meta.json differs from its sha256"),
    (cut, "manifest.json", "manifest.json is not JSON"),
    (Path.unlink, "manifest.json", "manifest.json is missing"),
    (Path.unlink, "meta.json", "meta.json is missing"),
    (lambda p: p.write_text("[1]"), "manifest.json", "manifest.json has not the expected form"),
    (lambda p: p.write_text("{}"), "manifest.json", "manifest.json is empty"),
]


@pytest.mark.parametrize(("damage", "file", "words"), DAMAGE, ids=[w for *_, w in DAMAGE])
def test_a_damaged_checkpoint_is_skipped_by_name_and_the_older_one_is_used(
    run, damage, file, words
):
    damage(run.path / "checkpoints" / "step-00000030" / file)
    with pytest.warns(RunWarning, match=f"skipped checkpoint step-00000030, .*{words}"):
        assert run.latest_checkpoint().step == 20


@fault("newest checkpoint damaged")
def test_going_on_from_an_older_checkpoint_cuts_the_history_and_replaces_the_bad_one(run, tmp_path):
    run.append_history({"step": 31})
    cut(run.path / "checkpoints" / "step-00000030" / "tensors.safetensors")
    with pytest.warns(RunWarning) as said:
        run = opened(tmp_path)
    assert list(run.history()["step"]) == [10, 20]
    run.save_checkpoint(30, tensors(30), {})
    assert run.latest_checkpoint().step == 30
    assert not list(run.path.rglob("*.old"))
    return said[0].message


@fault("no checkpoint that is whole")
def test_with_no_good_checkpoint_the_run_starts_afresh(tmp_path):
    run = saved(tmp_path, (10,))
    cut(run.path / "checkpoints" / "step-00000010" / "tensors.safetensors")
    with pytest.warns(RunWarning) as said:
        run = opened(tmp_path)
    assert run.history().empty
    return said[-1].message


def test_without_resume_checkpoints_and_history_are_dropped(run, tmp_path):
    run.interrupt()
    run = opened(tmp_path, resume=False)
    assert run.latest_checkpoint() is None
    assert run.history().empty


def test_an_old_checkpoint_left_by_a_kill_between_two_renames_still_counts(tmp_path):
    run = saved(tmp_path, (10,))
    folder = run.path / "checkpoints" / "step-00000010"
    folder.rename(folder.with_name(folder.name + ".old"))
    assert run.latest_checkpoint().step == 10
    assert opened(tmp_path).latest_checkpoint().step == 10
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["tensors.safetensors", "meta.json"])
def test_a_checkpoint_that_the_disk_spoils_is_told_and_the_older_ones_stay(run, monkeypatch, name):
    staged = storage.staged_folder

    @contextmanager
    def spoiling(folder):
        with staged(folder) as stage:
            yield stage
        data = bytearray((folder / name).read_bytes())
        data[-2] ^= 1
        (folder / name).write_bytes(data)

    monkeypatch.setattr(storage, "staged_folder", spoiling)
    with pytest.raises(StorageError, match=f"step-00000040 was written but {name} differs"):
        run.save_checkpoint(40, tensors(40), {})
    monkeypatch.undo()
    with pytest.warns(RunWarning, match="skipped checkpoint step-00000040"):
        assert run.latest_checkpoint().step == 30
    assert names(run) == ["step-00000040", "step-00000030", "step-00000020"]


def test_good_checkpoints_outlive_bad_ones_when_pruned(run):
    cut(run.path / "checkpoints" / "step-00000030" / "meta.json")
    run.save_checkpoint(40, tensors(40), {})
    assert names(run) == ["step-00000040", "step-00000020"]


@fault("history with a torn line")
@pytest.mark.parametrize("torn", [b'{"step": 4, "lo', b'{"step": 4}', b"\xff\xfe", b"[4]\n"])
def test_a_torn_line_is_skipped_with_a_warning(run, tmp_path, torn):
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(torn)
    with pytest.warns(RunWarning) as said:
        assert list(run.history()["step"]) == [10, 20, 30]
    with pytest.warns(RunWarning):
        run = opened(tmp_path)
    run.append_history({"step": 31})
    assert list(run.history()["step"]) == [10, 20, 30, 31]
    return said[0].message


@given(st.binary(max_size=60))
def test_any_bytes_in_the_history_are_read_or_skipped(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("history")
    (folder / "history.jsonl").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        assert all(isinstance(row, dict) for row in history.rows(folder))


@pytest.mark.parametrize("step", ['"x"', "[1]", "1.5", "true", "NaN"])
def test_a_history_with_odd_steps_is_skipped_with_a_word(tmp_path, step):
    (tmp_path / "history.jsonl").write_text(f'{{"step": 1}}\n{{"step": {step}}}\n')
    with pytest.warns(RunWarning, match="skipped line 2"):
        assert [row["step"] for row in history.rows(tmp_path)] == [1]


def test_a_disk_that_fills_at_any_sync_is_told(tmp_path, monkeypatch):
    def save_on(run):
        for step in range(40, 80):
            run.append_history({"step": step})
            run.save_checkpoint(step, tensors(step), {})

    for after in range(20):
        run = saved(tmp_path / str(after))
        full_disk(monkeypatch, after)
        with pytest.raises(StorageError, match="disk full"):
            save_on(run)
        monkeypatch.undo()
        assert run.latest_checkpoint().step >= 30


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_a_history_that_finds_no_room_says_so(run):
    path = run.path / "history.jsonl"
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="disk full: need at least"):
        run.append_history({"step": 31})


@fault("disk full while a checkpoint is written")
def test_a_full_disk_is_told_in_numbers_and_leaves_what_was_saved(run, monkeypatch):
    full_disk(monkeypatch)
    said = refused(StorageError, run.save_checkpoint, 40, tensors(40), {})
    with pytest.raises(StorageError, match="disk full"):
        write_bytes(run.path / "params.json", b"{}")
    monkeypatch.undo()
    assert run.latest_checkpoint().step == 30
    assert FinetuneConfig(**run.params) == config()
    assert not list(run.path.rglob(".*"))
    return said


@fault("run folder deleted while it trains")
def test_a_folder_that_is_deleted_while_it_is_written_to_is_said_to_be_gone(run, tmp_path):
    def train(run):
        with run:
            shutil.rmtree(run.path)
            run.append_history({"step": 31})

    gone_words = f"run {run.name} is gone: its folder was deleted"
    said = refused(RunError, train, run)
    with pytest.raises(StorageError, match=r"cannot be written: its folder is gone, deleted or m"):
        write_bytes(run.path / "x", b"")
    run = saved(tmp_path)
    shutil.rmtree(run.path)
    for write in (
        lambda: run.save_checkpoint(31, tensors(31), {}),
        lambda: run.save_scores("x", pd.DataFrame({"a": [1]})),
        run.finish,
    ):
        with pytest.raises(RunError, match=gone_words):
            write()
    assert not run.path.exists()
    assert saved(tmp_path).latest_checkpoint().step == 30
    return said


# --- environments --------------------------------------------------------------------------------


@fault("going on with other threads")
def test_another_environment_goes_on_and_the_one_it_began_with_is_remembered(run, tmp_path):
    run.note(device_used="cpu")
    for threads in (77, 55):
        env = run.environment | {"threads": threads}
        run.keep("env.json", storage.json_bytes(env))
        with pytest.warns(RunWarning) as said:
            run = opened(tmp_path)
        env = run.environment
        assert (env["bit_exact"], env["began_with"]) == (False, {"threads": 77})
        assert env["noted"] == {"device_used": "cpu"}
    assert opened(tmp_path).environment["bit_exact"] is False
    return said[0].message


# --- checksums -----------------------------------------------------------------------------------


@fault("kept scores that are damaged")
def test_a_changed_score_is_named_and_not_read(run):
    run.save_scores("x", pd.DataFrame({"id": ["a"], "s": [0.5]}))
    path = run.path / "scores" / "x.parquet"
    whole = path.read_bytes()
    pd.DataFrame({"id": ["a"], "s": [0.75]}).to_parquet(path, index=False)
    said = refused(RunError, run.scores, "x")
    path.write_bytes(whole)
    assert run.problems() == []
    return said


def test_a_changed_digit_of_the_history_is_skipped_with_a_word_and_named(run):
    path = run.path / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss": 0.05', b'"loss": 0.04'))
    with pytest.warns(RunWarning, match="skipped line 2"):
        assert list(run.history()["step"]) == [10, 30]
    assert run.problems() == ["history.jsonl line 2 differs from its checksum"]
    run.finish()
    with pytest.raises(RunError, match=r"history.jsonl line 2 differs from its checksum; take"):
        run.history()


def test_a_damaged_score_of_an_unfinished_run_is_computed_again(run, tmp_path):
    for name in "xy":
        run.save_scores(name, pd.DataFrame({"s": [1.0]}))
    run.interrupt()
    flip(run.path / "scores" / "x.parquet")
    with pytest.warns(RunWarning, match=r"scores/x.parquet differs from its sha256; it is comp"):
        again = opened(tmp_path)
    assert again.score_names() == ["y"]
    again.finish()
    assert again.problems() == []


def test_results_written_again_keep_the_sums_right(run):
    run.save_results(pd.DataFrame({"a": [1]}))
    run.finish()
    run.save_results(pd.DataFrame({"a": [2]}))
    run.keep("notebook.ipynb", b"{}")
    assert run.problems() == []
    assert run.results()["a"].tolist() == [2]
    flip(run.path / "notebook.ipynb")
    assert run.problems() == ["notebook.ipynb differs from its sha256"]


def without_checksums(run) -> None:
    """The run as it was kept before there were any."""
    rows = list(history.rows(run.path))
    status = storage.read_summed(run.path / "status.json")
    (run.path / "sums.json").unlink()
    storage.write_json(run.path / "status.json", status)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "history.jsonl").write_text(text)


def test_a_run_of_before_there_were_checksums_is_read_and_gets_them_when_it_goes_on(
    run, tmp_path, capsys
):
    run.save_scores("x", pd.DataFrame({"s": [1.0]}))
    run.interrupt()
    without_checksums(run)
    assert (run.status()["state"], list(run.history()["step"])) == ("interrupted", [10, 20, 30])
    again = opened(tmp_path)
    assert list(again.history()["step"]) == [10, 20, 30]
    assert again.scores("x")["s"].tolist() == [1.0]
    again.finish()
    assert again.problems() == []
    assert {"params.json", "history.jsonl", "scores/x.parquet"} <= storage.sums_of(run.path).keys()
    without_checksums(again)
    assert (again.finished, list(again.history()["step"])) == (True, [10, 20, 30])
    assert runs.main(["verify", "--runs", str(tmp_path)]) == 0
    assert f"{run.name}: whole (no checksums" in capsys.readouterr().out


@pytest.mark.slow
def test_of_ten_flips_in_each_kind_of_file_none_changes_what_is_read_unnoticed(capsys):
    assert flips.main(["--rounds", "10"]) == 0
    assert "0 not noticed" in capsys.readouterr().out
