"""The lock of a folder: who has it is written in it, and one whose process is gone holds nobody.

A lock of the system's own (flock, as filelock takes it) cannot say who has it and since when, and
not every disk of a cluster passes it on to other hosts; a record of the process does both.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from sdslib.io.storage import StorageError, now, write_bytes

# Two clocks may disagree on when a process began (boot time is rounded and drifts).
_SAME_START_S = 2.0


class LockedError(StorageError):
    """A living process holds the folder."""


def acquire(folder: Path) -> None:
    """Take the folder's `lock`, or raise LockedError naming the living process that has it.

    A lock whose process is gone, or whose number now belongs to a younger process, is replaced.
    A process may take its own lock again.
    """
    with _alone(folder):
        owner = holder(folder)
        if owner is not None and not _is_me(owner):
            raise LockedError(
                f"run {folder.name} is locked by pid {owner['pid']} on host {owner['host']} "
                f"since {owner['since']}; wait for it or stop it"
                + ("" if owner["host"] == socket.gethostname() else ", or delete its file `lock`")
            )
        write_bytes(folder / "lock", json.dumps(myself() | {"since": now()}).encode())


def release(folder: Path) -> None:
    """Give the folder's lock back; another process's lock is left alone."""
    with _alone(folder):
        owner = holder(folder)
        if owner is not None and _is_me(owner):
            (folder / "lock").unlink(missing_ok=True)


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the folder's lock: pid, host, since; None where nobody lives who does."""
    try:
        owner = json.loads((folder / "lock").read_bytes())
        return owner if "since" in owner and is_alive(owner) else None
    except (FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):
        return None  # its writer died between creating and filling it, or we would not be alone


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes that find the same stale lock must not both replace it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def myself() -> dict[str, Any]:
    """This process by number, host and start time; numbers are reused, the three are not.

    The boot time is kept beside it: a clock that is set moves both, and their difference stands.
    """
    began = {"started": psutil.Process().create_time(), "boot": psutil.boot_time()}
    return {"pid": os.getpid(), "host": socket.gethostname()} | began


def _is_me(owner: Mapping[str, Any]) -> bool:
    return owner["pid"] == os.getpid() and owner["host"] == socket.gethostname()


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Whether the recorded process still runs; one on another host cannot be asked and counts.

    ValueError for a record that names no process, as `myself` does.
    """
    number, times = owner.get("pid"), (owner.get("started"), owner.get("boot", 0.0))
    known = type(number) is int and 0 < number < 2**31 and isinstance(owner.get("host"), str)
    if not known or not all(isinstance(t, (int, float)) and abs(t) < 1e12 for t in times):
        raise ValueError("it names no process")
    if owner["host"] != socket.gethostname():
        return True
    try:
        process, boot = psutil.Process(number), psutil.boot_time()
        moved = boot - owner.get("boot", boot)
        same = abs(process.create_time() - owner["started"] - moved) < _SAME_START_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
