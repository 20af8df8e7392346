"""One run in several processes of this machine, started by torchrun and followed by its history.

The processes live in a session of their own: a signal to a notebook or a terminal reaches them
once, through `Workers.ask`. None of them outlives the one that started it, however that ends.
For several machines, start torchrun or `accelerate launch` on `-m sdslib.experiment` there; this
room is not needed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdslib.io import lock
from sdslib.io.paths import project_root
from sdslib.io.storage import read_json, write_json
from sdslib.io.wording import InWords

NEWS = "SDSLIB_NEWS"  # the folder in which processes tell who started them how they are
LAUNCHER = "SDSLIB_LAUNCHER"  # the number of the process whose end is theirs
_PREFIX, _OWNER, _OPENED = "sdslib-", "owner.json", "opened.json"
_PR_SET_PDEATHSIG = 1
_LOST = signal.SIGUSR1  # what the launcher is sent when its parent has ended
_POLL_S = 0.1
_PATIENCE_S = 60.0  # for a step and a checkpoint after a request to stop


class ProcessError(InWords, RuntimeError):
    """A process of a run ended early; says which and why, and what to do."""


class Workers:
    """The processes of one run, seen from the one that started them."""

    def __init__(self, folder: Path, process: subprocess.Popen) -> None:
        self.folder, self.process = folder, process

    def opened(self, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """path of the run, steps done and steps in all, as soon as the first step can begin.

        `meanwhile()` is called again and again. ProcessError where the processes end before.
        """
        file = self.folder / _OPENED
        while not file.exists():
            meanwhile()
            if self.process.poll() is not None and not file.exists():
                raise ProcessError(self.reason())
            time.sleep(_POLL_S)
        return json.loads(file.read_bytes())

    def rows(self) -> Iterator[dict[str, Any] | None]:
        """The rows that the history grows by, and None while it does not, until all have ended.

        ProcessError where they do not end well.
        """
        opened = self.opened()
        history, read = Path(opened["path"]) / "history.jsonl", 0
        ended = False
        while not ended:
            ended = self.process.poll() is not None
            lines = history.read_bytes()[read:] if history.exists() else b""
            whole = lines[: lines.rfind(b"\n") + 1]
            read += len(whole)
            rows = [json.loads(line) for line in whole.splitlines()]
            yield from (row for row in rows if row.get("step", 0) > opened["done"])
            if not rows and not ended:
                yield None
                time.sleep(_POLL_S)
        if self.process.returncode:
            raise ProcessError(self.reason())

    def ask(self, number: int) -> None:
        """Pass a signal on to all processes, and wait until they have ended."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE_S)

    def reason(self) -> str:
        """Why the processes ended, in one line: their own words, else how the first one died."""
        told = {p.stem: p.read_text("utf-8").strip() for p in self.folder.glob("rank-*.txt")}
        if own := [text for text in told.values() if "PeerLost" not in text]:
            return own[0]
        log = (self.folder / "log").read_text("utf-8", "replace")
        dead = re.findall(r"\(local_rank: (\d+)\)|rank\s*:\s*(\d+)|exitcode\s*:\s*(-?\d+)", log)
        codes = [int(code) for *_, code in dead if code]
        ranks = [int(rank) for _, rank, _ in dead if rank]
        first = codes[-1] if codes else self.process.returncode
        how = f"was killed by signal {-first}" if first < 0 else f"ended with status {first}"
        which = f"process {ranks[-1]}" if ranks else "a process"
        return f"{which} of the run {how}; run again to go on from the last checkpoint"


@contextmanager
def workers(params: Mapping[str, Any], count: int) -> Iterator[Workers]:
    """Start `count` processes of `python -m sdslib.experiment` with these parameters.

    Whatever happens in the block, none of them is left when it ends. Where this process is killed
    they end at once, and their folder goes with them, or with the next start.
    """
    with temporary() as folder:
        write_json(folder / "params.json", dict(params))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command(folder, count), cwd=project_root(), stdout=log, stderr=log,
                env=environment(params, count) | {NEWS: str(folder)}, start_new_session=True,
            )  # fmt: skip
            found = Workers(folder, process)
            try:
                yield found
            finally:
                if process.poll() is None:
                    found.ask(signal.SIGTERM)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def command(folder: Path, count: int) -> list[str]:
    """torchrun on this machine alone, at a port that is free, which ends with this process."""
    serve = f"from sdslib.io import launch; launch._serve({os.getpid()}, {str(folder)!r})"
    torchrun = [sys.executable, "-c", serve, "--standalone"]
    local = [f"--nproc-per-node={count}", "--local-addr=127.0.0.1"]
    rank = ["-m", "sdslib.io.launch", "sdslib.experiment"]
    return [*torchrun, *local, *rank, "--params", str(folder / "params.json")]


def environment(params: Mapping[str, Any], count: int) -> dict[str, str]:
    """This process's, with the CPU's cores divided among the processes."""
    cores = params.get("threads") or max(1, (os.cpu_count() or 1) // count)
    return {"OMP_NUM_THREADS": str(cores)} | dict(os.environ)


@contextmanager
def temporary() -> Iterator[Path]:
    """A folder for temporary files; where this process is killed, the next such call removes it."""
    clear()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        write_json(Path(name) / _OWNER, lock.myself())
        yield Path(name)


def clear() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError, ValueError, AttributeError):  # another one's, or one just made
            if not lock.is_alive(read_json(folder / _OWNER)):
                shutil.rmtree(folder, ignore_errors=True)


def _serve(parent: int, folder: str) -> None:
    """The life of the launcher: torchrun, until it is done or its parent is gone."""

    def vanish(*_: object) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)  # which ends the processes below

    signal.signal(_LOST, vanish)
    die_with(parent, _LOST, vanish)
    os.environ |= {LAUNCHER: str(os.getpid()), "TMPDIR": folder}  # what torchrun leaves goes too
    from torch.distributed.run import main

    main(sys.argv[1:])


# --- what the processes themselves call ----------------------------------------------------------


def die_with(
    parent: int, number: int = signal.SIGKILL, gone: Callable[[], object] = lambda: os._exit(1)
) -> None:
    """Let this process end when `parent` does, which started it: by that signal, or by `gone()`.

    The system sends it on Linux, when the thread that started this process ends; elsewhere a
    thread of this process looks every half second.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        gone()

    on_linux = sys.platform == "linux"
    asked = on_linux and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) == 0
    if os.getppid() != parent:  # it ended before we asked
        gone()
    if not asked:
        threading.Thread(target=watch, daemon=True).start()


def die_with_launcher() -> None:
    """Let this process, one of several of a run, end when what launched them ends."""
    if LAUNCHER in os.environ:
        die_with(int(os.environ[LAUNCHER]))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        die_with(os.getppid())


def tell_opened(run: Path, done: int, steps: int) -> None:
    """Tell who started this process, if anybody did, which run it works on; the first time only."""
    if NEWS in os.environ and not (news := Path(os.environ[NEWS], _OPENED)).exists():
        write_json(news, {"path": str(run), "done": done, "steps": steps})


def tell_error(place: int, error: BaseException) -> None:
    """Tell who started this process, if anybody did, why it ends."""
    if NEWS in os.environ:
        news = Path(os.environ[NEWS], f"rank-{place}.txt")
        news.write_text(f"{type(error).__name__}: {error}", "utf-8")


if __name__ == "__main__":  # a module as a program, that ends with its launcher from the first
    die_with_launcher()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
