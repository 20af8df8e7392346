"""Runs to kill and to damage: a small one in a folder, and processes that write to it and die."""

import errno
import multiprocessing
import os
import signal
from pathlib import Path

import torch

from sdslib.config import FinetuneConfig, mini
from sdslib.io import runs
from sdslib.io.runs import Run, open_run

FORK = multiprocessing.get_context("fork")
DATA = {"pairs": "aa", "test": "bb", "teacher": "cc"}


def config(**changes) -> FinetuneConfig:
    return FinetuneConfig(**(mini().model_dump() | changes))


def opened(root: Path, **changes) -> Run:
    return open_run(config(**changes), DATA, root)


def tensors(step: int, width: int = 64) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((width, width), float(step)), "count": torch.tensor(step)}


def saved(root: Path, steps=(10, 20, 30)) -> Run:
    """A run with a row and a checkpoint of each of these steps."""
    run = opened(root)
    for step in steps:
        run.append_history({"step": step, "loss": 1 / step})
        run.save_checkpoint(step, tensors(step), {"steps": 99})
    return run


def only_run(root: Path) -> Run:
    """The one run there is, for reading."""
    (folder,) = runs.run_folders(root)
    return Run(folder)


def begun(target, *args):
    """A process that does this."""
    child = FORK.Process(target=target, args=args)
    child.start()
    return child


def gone(target, *args) -> int:
    """The number of a process that has run `target` and was killed by SIGKILL."""
    child = begun(_then_die, target, *args)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    return child.pid


def _then_die(target, *args) -> None:
    target(*args)
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at(moment: int, *names: str) -> None:
    """Kill this process at the `moment`-th call of these functions of `os`, together."""
    left = [moment]

    def dying(operation):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return call

    for name in names:
        setattr(os, name, dying(getattr(os, name)))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def full_disk(monkeypatch, after: int = 0) -> None:
    """No sync finds room any more, after so many that do."""
    left, sync = [after], os.fsync

    def full(handle):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
