"""A run has one writer: whoever comes second is told by whom, and a dead one holds nobody back."""

import json
import os
import time
from pathlib import Path

import psutil
import pytest
from faults.catalog import fault, refused
from saving import FORK, begun, gone, only_run, opened, saved

from sdslib.io import lock
from sdslib.io.lock import LockedError


@pytest.fixture
def left(tmp_path):
    """A function that leaves this lock at a run that nobody has open."""
    run = saved(tmp_path)
    run.interrupt()

    def leave(**changed):
        owner = lock.myself() | {"pid": os.getppid(), "since": "then"} | changed
        (run.path / "lock").write_text(json.dumps(owner))

    return leave


@fault("two processes in one run")
def test_a_second_process_is_refused_and_told_by_whom(tmp_path):
    run, answers = saved(tmp_path), FORK.Queue()
    child = begun(_try_to_open, tmp_path, answers)
    answer = answers.get(timeout=20)
    child.join(10)
    assert answer.startswith(f"run {run.name} is locked by pid {os.getpid()} on host ")
    run.finish()
    assert not (run.path / "lock").exists()
    return answer


def _try_to_open(root: Path, answers) -> None:
    try:
        opened(root)
        answers.put("opened")
    except LockedError as error:
        answers.put(str(error))


def test_of_many_openers_at_once_exactly_one_gets_a_stale_run(tmp_path):
    gone(saved, tmp_path, (1,))
    answers, go = FORK.Queue(), FORK.Event()
    children = [begun(_race, tmp_path, answers, go) for _ in range(4)]
    time.sleep(0.1)
    go.set()
    found = [answers.get(timeout=20)[:6] for _ in children]
    for child in children:
        child.kill()
        child.join(10)
    assert sorted(found) == ["opened", *["run mi"] * 3]


def _race(root: Path, answers, go) -> None:
    holder = lock.holder
    lock.holder = lambda folder: (holder(folder), time.sleep(0.2))[0]  # time to be overtaken
    go.wait(10)
    _try_to_open(root, answers)
    time.sleep(20)


def test_the_lock_of_a_dead_process_is_replaced(tmp_path):
    pid = gone(saved, tmp_path)
    path = only_run(tmp_path).path / "lock"
    assert json.loads(path.read_text())["pid"] == pid
    opened(tmp_path)
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_process_number_that_was_given_out_again_does_not_hold_the_lock(left, tmp_path):
    began = psutil.Process(os.getppid()).create_time()
    left(started=began)
    with pytest.raises(LockedError):
        opened(tmp_path)
    left(started=began - 500)
    opened(tmp_path)


def test_a_lock_of_another_host_is_kept_and_the_way_out_told(left, tmp_path):
    left(host="elsewhere")
    words = r"on host elsewhere since then; .*delete its file `lock`"
    with pytest.raises(LockedError, match=words):
        opened(tmp_path)


def test_an_empty_lock_left_by_a_kill_is_replaced(left, tmp_path):
    (only_run(tmp_path).path / "lock").write_text("")
    opened(tmp_path)


@fault("clock that was set while a run is open")
def test_a_lock_stays_whole_when_the_clock_is_set(left, tmp_path, monkeypatch):
    """Start times move with the clock; a lock that then looks stale would be taken."""
    boot, born = psutil.boot_time(), psutil.Process.create_time
    left(started=born(psutil.Process(os.getppid())), boot=boot)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 3600)
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: born(self) + 3600)
    return refused(LockedError, opened, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [{"pid": "x"}, {"pid": -1}, {"pid": 2**70}, {"pid": True}, {"host": 5}, {"started": None},
     {"started": "then"}, {"started": 10**400}, {"boot": [1]}, {"started": float("nan")}],
    ids=lambda changed: str(changed)[:30],
)  # fmt: skip
def test_a_lock_with_odd_values_holds_nobody_back(left, tmp_path, changed):
    left(**changed)
    assert opened(tmp_path).status()["state"] == "running"
