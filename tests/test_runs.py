"""A run survives kills, torn files, full disks and second openers, and says what happened."""

import errno
import json
import multiprocessing
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
from hypothesis import given
from hypothesis import strategies as st

from sdslib.config import FinetuneConfig, mini, preset
from sdslib.io import runs, storage
from sdslib.io.runs import (
    LockedError,
    Run,
    RunError,
    RunWarning,
    find_run,
    identify,
    list_runs,
    main,
    open_run,
)
from sdslib.io.storage import StorageError, manifest_problem, staged_folder, write_bytes

FORK = multiprocessing.get_context("fork")
DATA = {"pairs": "aa", "test": "bb", "teacher": "cc"}


def config(**changes) -> FinetuneConfig:
    return FinetuneConfig(**(mini().model_dump() | changes))


def tensors(step: int, width: int = 64) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((width, width), float(step)), "count": torch.tensor(step)}


def saved(root: Path, steps=(10, 20, 30)) -> Run:
    run = open_run(config(), DATA, root)
    for step in steps:
        run.append_history({"step": step, "loss": 1 / step})
        run.save_checkpoint(step, tensors(step), {"steps": 99})
    return run


def gone(target, *args) -> int:
    """The number of a process that has run `target` and was killed by SIGKILL."""
    child = FORK.Process(target=_then_die, args=(target, *args))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    return child.pid


def _then_die(target, *args) -> None:
    target(*args)
    os.kill(os.getpid(), signal.SIGKILL)


# What a run keeps


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    run = open_run(config(), DATA, tmp_path)
    given = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "n": torch.tensor([2**40])}
    run.save_checkpoint(7, given, {"lr": 0.1 + 0.2, "order": [1, 2], "name": "é"})
    step, loaded, meta = run.latest_checkpoint()
    assert (step, meta) == (7, {"lr": 0.1 + 0.2, "order": [1, 2], "name": "é"})
    assert loaded.keys() == given.keys()
    assert all(
        torch.equal(loaded[k], given[k]) and loaded[k].dtype == given[k].dtype for k in given
    )


def test_a_new_run_has_no_checkpoint(tmp_path):
    assert open_run(config(), DATA, tmp_path).latest_checkpoint() is None


def test_history_scores_and_results_come_back(tmp_path):
    run = saved(tmp_path)
    table = pd.DataFrame({"id": ["x", "y"], "s": [0.25, 1.5]})
    run.save_scores("winoground", table)
    run.save_results(table)
    pd.testing.assert_frame_equal(run.scores("winoground"), table)
    pd.testing.assert_frame_equal(run.results(), table)
    assert list(run.history()["step"]) == [10, 20, 30]
    with pytest.raises(RunError, match=r"has no aro; scores there: winoground"):
        run.scores("aro")
    with pytest.raises(ValueError, match="must be letters"):
        run.save_scores("../x", table)


def test_numbers_that_are_not_finite_are_null_in_history(tmp_path):
    run = open_run(config(), DATA, tmp_path)
    run.append_history({"step": 1, "loss": float("nan"), "ratio": torch.tensor(0.5), "by": [1e999]})
    line = (run.path / "history.jsonl").read_text()
    row = json.loads(line)
    assert row.pop("crc32")
    assert row == {"step": 1, "loss": None, "ratio": 0.5, "by": [None]}


def test_the_folder_holds_the_parameters_the_environment_and_the_status(tmp_path):
    run = saved(tmp_path)
    assert FinetuneConfig(**run.params) == config()
    env = json.loads((run.path / "env.json").read_text())
    assert env["packages"]["torch"] == torch.__version__.split("+")[0]
    assert env["threads"] == torch.get_num_threads()
    assert env["git"] is None or len(env["git"]["commit"]) == 40
    text = (run.path / "env.json").read_text() + (run.path / "status.json").read_text()
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text
    assert run.status()["state"] == "running"
    assert run.status()["step"] == 30


def test_the_newest_two_checkpoints_stay(tmp_path):
    run = saved(tmp_path, range(1, 6))
    assert [p.name for p in runs._checkpoints(run.path)] == ["step-00000005", "step-00000004"]
    run.save_checkpoint(6, tensors(6), {}, keep=1)
    assert [p.name for p in runs._checkpoints(run.path)] == ["step-00000006"]
    with pytest.raises(ValueError, match="keep must be at least 1"):
        run.save_checkpoint(7, tensors(7), {}, keep=0)


def test_a_staged_folder_of_a_run_appears_whole_or_not_at_all(tmp_path):
    run = saved(tmp_path)
    with run.staged("weights") as folder:
        (folder / "a.json").write_text("1")
        assert not run.weights.exists()
    assert manifest_problem(run.weights) is None
    with pytest.raises(RuntimeError), run.staged("weights") as folder:
        raise RuntimeError
    assert (run.weights / "a.json").read_text() == "1"
    assert not list(run.path.glob(".*"))


# Which run it is


def test_the_same_parameters_open_the_same_run_under_any_name(tmp_path):
    first = saved(tmp_path)
    assert first.name == f"mini-sds-{first.id}"
    again = open_run(config(run="other", device="cpu", num_workers=2), DATA, tmp_path)
    assert again.path == first.path
    assert open_run(config(seed=1), DATA, tmp_path).id != first.id
    assert open_run(config(), DATA | {"pairs": "changed"}, tmp_path).id != first.id


def test_the_control_of_two_sds_runs_is_one_run_whatever_the_teacher(tmp_path):
    one = open_run(config(sds_weight=0.0, t_min=50), DATA | {"teacher": "x"}, tmp_path)
    two = open_run(config(arm="clip-only", sds_gradient="residual"), DATA, tmp_path)
    assert one.path == two.path
    assert one.name.startswith("mini-clip-only-")


def test_a_name_that_is_taken_tells_what_differs(tmp_path):
    open_run(config(run="mine"), DATA, tmp_path)
    with pytest.raises(RunError) as caught:
        open_run(config(run="mine", lr=0.5), DATA | {"test": "zz"}, tmp_path)
    assert str(caught.value) == (
        "run 'mine' exists with other parameters (lr was 0.001, now 0.5; "
        "data test was 'bb', now 'zz'); choose another name"
    )


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A library of one's own, whose code `digest` writes and hashes."""
    monkeypatch.setattr(runs, "project_root", lambda: tmp_path)

    def digest(text, name="train.py"):
        path = tmp_path / "sdslib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        runs.code_hash.cache_clear()
        return runs.code_hash()

    yield digest
    runs.code_hash.cache_clear()


def test_the_codes_hash_follows_the_code_and_not_its_comments_or_docstrings(house):
    form = "{0}class A:\n    {0}\n    X = 1\n    def f(self):\n        {0}\n        return 'a'\n"
    bare = house(form.format("").replace("        \n", "").replace("    \n", ""))
    assert house(form.format('"""Docs."""\n').replace("\n\n", "\n")) == bare
    assert house(form.format("# why\n")) == bare
    assert house(form.format("").replace("'a'", "'b'")) != bare  # a text that is returned counts


def test_the_codes_hash_leaves_out_what_reads_a_finished_run(house):
    assert house("X = 1\n", "io/a.py") != house("X = 2\n", "io/a.py")
    assert house("X = 1\n", "show/a.py") == house("X = 2\n", "show/a.py")


def test_the_id_follows_the_recipe_and_not_the_code(tmp_path, monkeypatch):
    before = identify(config(), DATA)["id"]
    monkeypatch.setattr(runs, "code_hash", lambda: "another")
    assert identify(config(), DATA)["id"] == before
    monkeypatch.setattr(FinetuneConfig, "recipe", FinetuneConfig.recipe + 1)
    assert identify(config(), DATA)["id"] != before


def test_a_run_of_another_code_is_given_back_with_a_remark(tmp_path, monkeypatch):
    with open_run(config(), DATA, tmp_path) as run:
        run.finish()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_run(config(), DATA, tmp_path)
    monkeypatch.setattr(runs, "code_hash", lambda: "another")
    with pytest.warns(RunWarning, match="another state of the code, under the same recipe"):
        assert open_run(config(), DATA, tmp_path).finished


def test_two_presets_with_equal_values_are_one_run():
    plain = config().model_dump() | {"preset": "paper"}
    assert identify(FinetuneConfig(**plain), DATA)["id"] == identify(config(), DATA)["id"]


# How it ended


def test_a_finished_run_is_read_only_and_opens_at_once(tmp_path):
    run = saved(tmp_path)
    run.finish()
    again = open_run(config(), DATA, tmp_path)
    assert again.finished
    assert again.latest_checkpoint().step == 30
    for write in (
        lambda: again.append_history({"step": 31}),
        lambda: again.save_checkpoint(31, tensors(31), {}),
        lambda: again.save_scores("x", pd.DataFrame()),
        again.finish,
    ):
        with pytest.raises(RunError, match="is finished"):
            write()
    again.save_results(pd.DataFrame({"a": [1]}))


def test_an_error_fails_the_run_and_ctrl_c_interrupts_it(tmp_path):
    with pytest.raises(ZeroDivisionError), saved(tmp_path) as run:
        1 / 0  # noqa: B018
    assert run.status()["message"] == "failed at step 30: ZeroDivisionError: division by zero"
    with pytest.raises(KeyboardInterrupt), open_run(config(), DATA, tmp_path) as run:
        raise KeyboardInterrupt
    assert run.status()["state"] == "interrupted"
    run = open_run(config(), DATA, tmp_path)
    assert run.status()["state"] == "running"


def test_a_killed_run_has_died_and_not_completed(tmp_path):
    gone(saved, tmp_path, (10, 411, 412))
    (folder,) = runs._run_folders(tmp_path)
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    status = Run(folder).status()
    assert status["state"] == "died"
    assert status["message"] == "died at step 412 while running"
    assert open_run(config(), DATA, tmp_path).status()["state"] == "running"


def test_a_killed_process_that_nobody_waited_for_counts_as_gone(tmp_path):
    child = FORK.Process(target=_then_die, args=(saved, tmp_path))
    child.start()
    process = psutil.Process(child.pid)
    deadline = time.monotonic() + 20
    while process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    (folder,) = runs._run_folders(tmp_path)
    assert Run(folder).status()["state"] == "died"
    assert process.status() == psutil.STATUS_ZOMBIE, "it was waited for, so nothing was tested"
    child.join(10)


def test_a_process_that_ends_without_a_word_leaves_an_interrupted_run(tmp_path):
    code = (
        "from sdslib.config import mini\nfrom sdslib.io.runs import open_run\n"
        f"run = open_run(mini(), {{}}, {str(tmp_path)!r})\nrun.append_history({{'step': 3}})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    (folder,) = runs._run_folders(tmp_path)
    status = Run(folder).status()
    assert status["message"] == "interrupted at step 3 because the process ended"
    assert not (folder / "lock").exists()


# Kill, damage, and what is still there


def test_killed_at_random_moments_there_is_always_a_good_checkpoint(tmp_path):
    """Rounds of endless saves, each killed; step and content of the newest good one agree."""
    delay, last = random.Random(0), 0
    for round_ in range(10):
        ready = FORK.Event()
        child = FORK.Process(target=_save_without_end, args=(tmp_path, ready))
        child.start()
        assert ready.wait(20)
        time.sleep(delay.uniform(0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        child.join(10)
        (folder,) = runs._run_folders(tmp_path)
        step, loaded, meta = Run(folder).latest_checkpoint()
        assert step > last, f"round {round_} lost steps"
        assert meta == {"half": step / 2}
        assert loaded["weight"].unique().tolist() == [float(step)]
        last = step
    run = open_run(config(), DATA, tmp_path)
    assert list(run.history()["step"]) == [*range(1, last + 1)]
    names = [p.name for p in run.path.rglob("*")]
    assert not [n for n in names if n.startswith((".stage", ".trash", ".part"))]
    assert not [n for n in names if n.endswith(".old")]


@pytest.mark.parametrize("step", [2, 1], ids=["next", "same"])
def test_killed_at_each_file_operation_of_a_save_there_is_a_good_checkpoint(tmp_path, step):
    """Like the random kill, but at every sync, rename and removal in turn until a save survives."""
    for moment in range(1, 60):
        root = tmp_path / str(moment)
        child = FORK.Process(target=_save_and_die_at, args=(root, step, moment))
        child.start()
        child.join(20)
        (folder,) = runs._run_folders(root)
        found = Run(folder).latest_checkpoint()
        assert found.step in (1, step)
        assert found.tensors["weight"].unique().tolist() == [float(found.step)]
        reopened = open_run(config(), DATA, root)
        assert reopened.latest_checkpoint().step == found.step
        assert not list(reopened.path.rglob(".*"))
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert moment > 10, "the operations were not counted"


def _save_and_die_at(root: Path, step: int, moment: int) -> None:
    run = open_run(config(), DATA, root)
    run.save_checkpoint(1, tensors(1, 4), {}, keep=1)
    left = [moment]
    for module, name in ((os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir")):
        setattr(module, name, _dying(getattr(module, name), left))
    run.save_checkpoint(step, tensors(step, 4), {}, keep=1)


def _dying(operation, left: list[int]):
    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*args, **kwargs)

    return call


def _save_without_end(root: Path, ready) -> None:
    run = open_run(config(), DATA, root)
    found = run.latest_checkpoint()
    step = found.step if found else 0
    while True:
        step += 1
        run.append_history({"step": step})
        run.save_checkpoint(step, tensors(step, 256), {"half": step / 2}, keep=1)
        ready.set()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = [
    (_cut, "tensors.safetensors", "bytes in place of"),
    (_flip, "tensors.safetensors", "tensors.safetensors differs from its sha256"),
    (_flip, "meta.json", "meta.json differs from its sha256"),
    (_cut, "manifest.json", "manifest.json is not JSON"),
    (Path.unlink, "manifest.json", "manifest.json is missing"),
    (Path.unlink, "meta.json", "meta.json is missing"),
    (lambda p: p.write_text("[1]"), "manifest.json", "manifest.json has not the expected form"),
    (lambda p: p.write_text("{}"), "manifest.json", "manifest.json is empty"),
]


@pytest.mark.parametrize(("damage", "file", "words"), DAMAGE, ids=[f"{w}" for *_, w in DAMAGE])
def test_a_damaged_checkpoint_is_skipped_by_name_and_the_older_one_is_used(
    tmp_path, damage, file, words
):
    run = saved(tmp_path)
    damage(run.path / "checkpoints" / "step-00000030" / file)
    with pytest.warns(RunWarning, match=f"skipped checkpoint step-00000030, .*{words}"):
        assert run.latest_checkpoint().step == 20


def test_going_on_from_an_older_checkpoint_cuts_the_history_and_replaces_the_bad_one(tmp_path):
    run = saved(tmp_path)
    run.append_history({"step": 31})
    _flip(run.path / "checkpoints" / "step-00000030" / "tensors.safetensors")
    with pytest.warns(RunWarning, match="skipped checkpoint"):
        run = open_run(config(), DATA, tmp_path)
    assert list(run.history()["step"]) == [10, 20]
    run.save_checkpoint(30, tensors(30), {})
    assert run.latest_checkpoint().step == 30
    assert not list(run.path.rglob("*.old"))


def test_with_no_good_checkpoint_the_run_starts_afresh(tmp_path):
    run = saved(tmp_path, (10,))
    _cut(run.path / "checkpoints" / "step-00000010" / "tensors.safetensors")
    with pytest.warns(RunWarning, match="no checkpoint is whole; starting afresh at step 0"):
        run = open_run(config(), DATA, tmp_path)
    assert run.history().empty


def test_without_resume_checkpoints_and_history_are_dropped(tmp_path):
    saved(tmp_path).interrupt()
    run = open_run(config(resume=False), DATA, tmp_path)
    assert run.latest_checkpoint() is None
    assert run.history().empty


def test_an_old_checkpoint_left_by_a_kill_between_two_renames_still_counts(tmp_path):
    run = saved(tmp_path, (10,))
    folder = run.path / "checkpoints" / "step-00000010"
    folder.rename(folder.with_name(folder.name + ".old"))
    assert run.latest_checkpoint().step == 10
    assert open_run(config(), DATA, tmp_path).latest_checkpoint().step == 10
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["tensors.safetensors", "meta.json"])
def test_a_checkpoint_that_the_disk_spoils_is_told_and_the_older_ones_stay(
    tmp_path, monkeypatch, name
):
    run, staged = saved(tmp_path), storage.staged_folder

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
    kept = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert kept == ["step-00000020", "step-00000030", "step-00000040"]


def test_good_checkpoints_outlive_bad_ones_when_pruned(tmp_path):
    run = saved(tmp_path)
    _cut(run.path / "checkpoints" / "step-00000030" / "meta.json")
    run.save_checkpoint(40, tensors(40), {})
    kept = [p.name for p in runs._checkpoints(run.path)]
    assert kept == ["step-00000040", "step-00000020"]


@pytest.mark.parametrize("torn", [b'{"step": 4, "lo', b'{"step": 4}', b"\xff\xfe", b"[4]\n"])
def test_a_torn_line_is_skipped_with_a_warning(tmp_path, torn):
    run = saved(tmp_path)
    with (run.path / "history.jsonl").open("ab") as file:
        file.write(torn)
    with pytest.warns(RunWarning, match=r"history.jsonl: skipped line 4, which is torn"):
        assert list(run.history()["step"]) == [10, 20, 30]
    with pytest.warns(RunWarning):
        run = open_run(config(), DATA, tmp_path)
    run.append_history({"step": 31})
    assert list(run.history()["step"]) == [10, 20, 30, 31]


@given(st.binary(max_size=60))
def test_any_bytes_in_the_history_are_read_or_skipped(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("history") / "history.jsonl"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        assert all(isinstance(row, dict) for row, _ in runs._rows(path))


def full_disk(monkeypatch, after: int = 0) -> None:
    left, sync = [after], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)


def save_on(run) -> None:
    for step in range(40, 80):
        run.append_history({"step": step})
        run.save_checkpoint(step, tensors(step), {})


def test_a_disk_that_fills_at_any_sync_is_told(tmp_path, monkeypatch):
    for after in range(20):
        run = saved(tmp_path / str(after))
        full_disk(monkeypatch, after)
        with pytest.raises(StorageError, match="disk full"):
            save_on(run)
        monkeypatch.undo()
        assert run.latest_checkpoint().step >= 30


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's device that is always full")
def test_a_history_that_finds_no_room_says_so(tmp_path):
    run = saved(tmp_path)
    path = run.path / "history.jsonl"
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="disk full: need at least"):
        run.append_history({"step": 31})


def test_a_full_disk_is_told_in_numbers_and_leaves_what_was_saved(tmp_path, monkeypatch):
    run = saved(tmp_path)
    full_disk(monkeypatch)
    with pytest.raises(StorageError, match=r"disk full: need at least .* MB, have .* MB for "):
        run.save_checkpoint(40, tensors(40), {})
    with pytest.raises(StorageError, match="disk full"):
        write_bytes(run.path / "params.json", b"{}")
    monkeypatch.undo()
    assert run.latest_checkpoint().step == 30
    assert FinetuneConfig(**run.params) == config()
    assert not list(run.path.rglob(".*"))


def test_another_environment_goes_on_and_is_marked_not_bit_exact(tmp_path):
    run = saved(tmp_path)
    run.note(device_used="cpu")
    env = storage.read_json(run.path / "env.json")
    run.keep("env.json", storage.json_bytes(env | {"threads": 77}))
    with pytest.warns(RunWarning, match="goes on with other threads than it began with"):
        run = open_run(config(), DATA, tmp_path)
    env = storage.read_json(run.path / "env.json")
    assert (env["bit_exact"], env["began_with"]) == (False, {"threads": 77})
    assert env["noted"] == {"device_used": "cpu"}
    run = open_run(config(), DATA, tmp_path)
    assert storage.read_json(run.path / "env.json")["bit_exact"] is False


def test_of_three_environments_the_one_that_a_run_began_with_is_remembered(tmp_path):
    run = saved(tmp_path)
    for threads in (77, 55):
        env = storage.read_json(run.path / "env.json") | {"threads": threads}
        run.keep("env.json", storage.json_bytes(env))
        with pytest.warns(RunWarning, match="goes on with other threads"):
            run = open_run(config(), DATA, tmp_path)
    env = storage.read_json(run.path / "env.json")
    assert (env["bit_exact"], env["began_with"]) == (False, {"threads": 77})


# Locks


def test_a_second_process_is_refused_and_told_by_whom(tmp_path):
    run = saved(tmp_path)
    answers = FORK.Queue()
    child = FORK.Process(target=_try_to_open, args=(tmp_path, answers))
    child.start()
    answer = answers.get(timeout=20)
    child.join(10)
    expected = f"run {run.name} is locked by pid {os.getpid()} on host "
    assert answer.startswith(expected)
    assert answer.endswith("; wait for it or stop it")
    run.finish()
    assert not (run.path / "lock").exists()


def _try_to_open(root: Path, answers) -> None:
    try:
        open_run(config(), DATA, root)
        answers.put("opened")
    except LockedError as error:
        answers.put(str(error))


def test_of_many_openers_at_once_exactly_one_gets_a_stale_run(tmp_path):
    gone(saved, tmp_path, (1,))
    answers, go = FORK.Queue(), FORK.Event()
    children = [FORK.Process(target=_race, args=(tmp_path, answers, go)) for _ in range(4)]
    for child in children:
        child.start()
    time.sleep(0.1)
    go.set()
    found = [answers.get(timeout=20) for _ in children]
    for child in children:
        child.kill()
        child.join(10)
    assert sorted(found) == [*["locked"] * 3, "opened"]


def _race(root: Path, answers, go) -> None:
    owner = storage._owner
    storage._owner = lambda lock: (owner(lock), time.sleep(0.2))[0]  # time enough to be overtaken
    go.wait(10)
    try:
        open_run(config(), DATA, root)
        answers.put("opened")
    except LockedError:
        answers.put("locked")
    time.sleep(20)


def test_the_lock_of_a_dead_process_is_replaced(tmp_path):
    pid = gone(saved, tmp_path)
    (folder,) = runs._run_folders(tmp_path)
    assert json.loads((folder / "lock").read_text())["pid"] == pid
    run = open_run(config(), DATA, tmp_path)
    assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()


def test_a_process_number_that_was_given_out_again_does_not_hold_the_lock(tmp_path):
    saved(tmp_path).interrupt()
    (folder,) = runs._run_folders(tmp_path)
    parent = psutil.Process(os.getppid())
    owner = storage.myself() | {"pid": parent.pid, "since": "then"}
    (folder / "lock").write_text(json.dumps(owner | {"started": parent.create_time()}))
    with pytest.raises(LockedError):
        open_run(config(), DATA, tmp_path)
    (folder / "lock").write_text(json.dumps(owner | {"started": parent.create_time() - 500}))
    open_run(config(), DATA, tmp_path)


def test_a_lock_of_another_host_is_kept_and_the_way_out_told(tmp_path):
    saved(tmp_path).interrupt()
    (folder,) = runs._run_folders(tmp_path)
    owner = storage.myself() | {"host": "elsewhere", "since": "then"}
    (folder / "lock").write_text(json.dumps(owner))
    with pytest.raises(
        LockedError, match=r"on host elsewhere since then; .*delete its file `lock`"
    ):
        open_run(config(), DATA, tmp_path)


def test_an_empty_lock_left_by_a_kill_is_replaced(tmp_path):
    saved(tmp_path).interrupt()
    (folder,) = runs._run_folders(tmp_path)
    (folder / "lock").write_text("")
    open_run(config(), DATA, tmp_path)


def test_opening_again_in_one_process_takes_over_from_the_old_handle(tmp_path):
    first = saved(tmp_path)
    second = open_run(config(), DATA, tmp_path)
    second.append_history({"step": 31})
    with pytest.raises(RunError, match="opened for reading"):
        first.append_history({"step": 31})


# Checksums


@pytest.mark.parametrize("name", ["params.json", "identity.json", "env.json", "sums.json"])
def test_a_changed_bit_is_named_and_not_read(tmp_path, name, capsys):
    run = saved(tmp_path)
    run.finish()
    _flip(run.path / name)
    with pytest.raises((RunError, StorageError), match=f"{run.name}/{name} differs|is not JSON"):
        _ = run.params, run.identity, run.environment
    assert main(["verify", run.name, "--runs", str(tmp_path)]) == 1
    assert f"{run.name}/{name} " in capsys.readouterr().out


def test_a_changed_score_is_named_and_not_read(tmp_path):
    run = saved(tmp_path)
    run.save_scores("x", pd.DataFrame({"id": ["a"], "s": [0.5]}))
    whole = (run.path / "scores" / "x.parquet").read_bytes()
    other = pd.DataFrame({"id": ["a"], "s": [0.75]}).to_parquet(index=False)
    (run.path / "scores" / "x.parquet").write_bytes(other)
    with pytest.raises(RunError, match=r"scores/x.parquet differs from its sha256; take it from"):
        run.scores("x")
    (run.path / "scores" / "x.parquet").write_bytes(whole)
    assert run.problems() == []


def test_a_changed_digit_of_the_history_is_skipped_with_a_word_and_named(tmp_path):
    run = saved(tmp_path)
    path = run.path / "history.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss": 0.05', b'"loss": 0.04'))
    with pytest.warns(RunWarning, match="skipped line 2"):
        assert list(run.history()["step"]) == [10, 30]
    assert run.problems() == ["history.jsonl line 2 differs from its checksum"]
    run.finish()
    with pytest.raises(RunError, match=r"history.jsonl line 2 differs from its checksum; take"):
        run.history()


def test_a_damaged_score_of_an_unfinished_run_is_computed_again(tmp_path):
    run = saved(tmp_path)
    run.save_scores("x", pd.DataFrame({"s": [1.0]}))
    run.save_scores("y", pd.DataFrame({"s": [1.0]}))
    run.interrupt()
    _flip(run.path / "scores" / "x.parquet")
    with pytest.warns(RunWarning, match=r"scores/x.parquet differs from its sha256; it is comp"):
        again = open_run(config(), DATA, tmp_path)
    assert again.score_names() == ["y"]
    again.finish()
    assert again.problems() == []


def test_results_written_again_keep_the_sums_right(tmp_path):
    run = saved(tmp_path)
    run.save_results(pd.DataFrame({"a": [1]}))
    run.finish()
    run.save_results(pd.DataFrame({"a": [2]}))
    run.keep("notebook.ipynb", b"{}")
    assert run.problems() == []
    assert run.results()["a"].tolist() == [2]
    _flip(run.path / "notebook.ipynb")
    assert run.problems() == ["notebook.ipynb differs from its sha256"]


def test_killed_at_each_file_operation_of_a_kept_table_nothing_counts_as_damaged(tmp_path):
    for moment in range(1, 30):
        root = tmp_path / str(moment)
        child = FORK.Process(target=_keep_and_die_at, args=(root, moment))
        child.start()
        child.join(20)
        (folder,) = runs._run_folders(root)
        assert Run(folder).problems() == []
        assert Run(folder).results()["a"].tolist() in ([1], [2])
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert moment > 5, "the operations were not counted"


def _keep_and_die_at(root: Path, moment: int) -> None:
    run = open_run(config(), DATA, root)
    run.save_results(pd.DataFrame({"a": [1]}))
    run.finish()
    left = [moment]
    for module, name in ((os, "fsync"), (os, "replace")):
        setattr(module, name, _dying(getattr(module, name), left))
    run.save_results(pd.DataFrame({"a": [2]}))


def test_a_run_of_before_there_were_checksums_is_read_and_said_to_have_none(tmp_path, capsys):
    run = saved(tmp_path)
    run.finish()
    (run.path / "sums.json").unlink()
    status = storage.read_summed(run.path / "status.json")
    storage.write_json(run.path / "status.json", status)
    rows = [row for row, _ in runs._rows(run.path / "history.jsonl")]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.path / "history.jsonl").write_text(text)
    assert run.finished
    assert list(run.history()["step"]) == [10, 20, 30]
    assert main(["verify", "--runs", str(tmp_path)]) == 0
    assert f"{run.name}: whole (no checksums" in capsys.readouterr().out


def test_one_damaged_run_hides_no_other(tmp_path, capsys):
    good, bad = saved(tmp_path), open_run(config(seed=1), DATA, tmp_path)
    (bad.path / "params.json").write_text("{")
    with pytest.warns(RunWarning, match=f"left out: {bad.name}/params.json differs"):
        table = list_runs(tmp_path)
    assert table.set_index("run")["state"].to_dict() == {good.name: "running", bad.name: "damaged"}
    assert main(["list", "--runs", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "running" in shown.out
    assert f"left out: {bad.name}/params.json" in shown.err


@pytest.mark.slow
def test_of_ten_flips_in_each_kind_of_file_none_changes_what_is_read_unnoticed(capsys):
    assert flips.main(["--rounds", "10"]) == 0
    assert "0 not noticed" in capsys.readouterr().out


# What else may lie there


@pytest.mark.parametrize(
    "changed",
    [{"pid": "x"}, {"pid": -1}, {"pid": 2**70}, {"pid": True}, {"host": 5}, {"started": None},
     {"started": "then"}, {"boot": [1]}, {"started": float("nan")}],
    ids=str,
)  # fmt: skip
def test_a_lock_with_odd_values_holds_nobody_back(tmp_path, changed):
    saved(tmp_path).interrupt()
    (folder,) = runs._run_folders(tmp_path)
    owner = storage.myself() | {"pid": os.getppid(), "since": "then"} | changed
    (folder / "lock").write_text(json.dumps(owner))
    assert open_run(config(), DATA, tmp_path).status()["state"] == "running"


@pytest.mark.parametrize("step", ['"x"', "[1]", "1.5", "true", "NaN"])
def test_a_history_with_odd_steps_is_skipped_with_a_word(tmp_path, step):
    (tmp_path / "history.jsonl").write_text(f'{{"step": 1}}\n{{"step": {step}}}\n')
    with pytest.warns(RunWarning, match="skipped line 2"):
        assert [row["step"] for row, _ in runs._rows(tmp_path / "history.jsonl")] == [1]


def test_a_folder_that_is_deleted_while_it_is_written_to_is_said_to_be_gone(tmp_path):
    def train(run):
        with run:
            shutil.rmtree(run.path)
            run.append_history({"step": 31})

    run = saved(tmp_path)
    with pytest.raises(RunError, match=f"run {run.name} is gone: its folder was deleted"):
        train(run)
    with pytest.raises(StorageError, match=r"cannot be written: its folder is gone, deleted or m"):
        write_bytes(run.path / "x", b"")
    run = saved(tmp_path)
    shutil.rmtree(run.path)
    for write in (
        lambda: run.save_checkpoint(31, tensors(31), {}),
        lambda: run.save_scores("x", pd.DataFrame({"a": [1]})),
        run.finish,
    ):
        with pytest.raises(RunError, match=f"run {run.name} is gone: its folder was deleted"):
            write()
    assert not run.path.exists()
    assert saved(tmp_path).latest_checkpoint().step == 30


def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"a run cannot be kept in .*file: .*; name a folder that can"
    ):
        open_run(config(), DATA, tmp_path / "file")
    saved(tmp_path / "runs").finish()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert open_run(config(), DATA, tmp_path / "runs").finished
    with pytest.raises(RunError, match="it is read-only; name a folder that can be written"):
        open_run(config(seed=3), DATA, tmp_path / "runs")


def test_a_name_that_is_no_path_is_a_run_that_is_not_there(tmp_path):
    saved(tmp_path)
    for name in ("x" * 300, "a\0b", "~nosuchuser/x"):
        with pytest.raises(RunError, match="no run '"):
            find_run(name, tmp_path)


# Reading runs back


def test_a_run_is_found_by_id_beginning_name_and_path(tmp_path):
    run = open_run(config(run="mine"), DATA, tmp_path)
    other = open_run(config(seed=5), DATA, tmp_path)
    for key in (run.id, run.id[:4], run.name, "mine", run.path, str(run.path)):
        assert find_run(key, tmp_path).path == run.path
    with pytest.raises(RunError, match=f"no run 'mime-{run.id}'; did you mean '{run.name}'"):
        find_run(f"mime-{run.id}", tmp_path)
    with pytest.raises(RunError, match="names several runs"):
        find_run("", tmp_path)
    assert set(list_runs(tmp_path)["run"]) == {run.name, other.name}


def test_the_command_line_lists_and_shows(tmp_path, capsys):
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert "no runs yet" in capsys.readouterr().out
    gone(saved, tmp_path, (10, 412))
    (folder,) = runs._run_folders(tmp_path)
    _flip(folder / "checkpoints" / "step-00000412" / "meta.json")
    assert main(["list", "--runs", str(tmp_path)]) == 0
    assert "died" in capsys.readouterr().out
    assert main(["show", folder.name, "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{folder.name}: died at step 412 while running"
    assert "step-00000010 verified" in out
    assert "step-00000412 meta.json differs from its sha256" in out
    assert main(["show", "nothing", "--runs", str(tmp_path)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err


def test_the_module_runs_as_a_command(tmp_path):
    words = [sys.executable, "-m", "sdslib.io.runs", "list", "--runs", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "no runs yet"
    assert done.stderr == ""


def test_staging_survives_a_failure_without_leftovers(tmp_path):
    with pytest.raises(ValueError, match="half"), staged_folder(tmp_path / "x") as stage:
        raise ValueError(f"half, with {(stage / 'a').write_text('a')} letter")
    assert list(tmp_path.iterdir()) == []


def test_runs_go_where_the_config_says(tmp_path):
    run = open_run(config(runs=str(tmp_path / "there")), DATA)
    assert run.path.parent == tmp_path / "there"
    assert run.shown_path == run.path.as_posix()
    assert preset("mini").runs is None
