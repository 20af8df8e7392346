"""One run in several processes of this machine, started by torchrun and followed by its history.

The processes live in a session of their own: a signal to a notebook or a terminal reaches them
once, through `Workers.ask`. For several machines, start torchrun or `accelerate launch` on
`-m sdslib.experiment` there; this room is not needed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sdslib.config import project_root
from sdslib.storage import write_json

NEWS = "SDSLIB_NEWS"  # the folder in which processes tell who started them how they are
_OPENED = "opened.json"
_POLL_S = 0.1
_PATIENCE_S = 60.0  # for a step and a checkpoint after a request to stop


class ProcessError(RuntimeError):
    """A process of a run ended early; says which and why, and what to do."""


class Workers:
    """The processes of one run, seen from the one that started them."""

    def __init__(self, folder: Path, process: subprocess.Popen) -> None:
        self.folder, self.process = folder, process

    def opened(self, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """path of the run, steps done and steps in all, as soon as the first step can begin.

        `meanwhile()` is called again and again. Raises ProcessError where the processes end before.
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

        Raises ProcessError where they do not end well.
        """
        opened = self.opened()
        history, read = Path(opened["path"]) / "history.jsonl", 0
        while True:
            ended = self.process.poll() is not None
            lines = history.read_bytes()[read:] if history.exists() else b""
            whole = lines[: lines.rfind(b"\n") + 1]
            read += len(whole)
            rows = [json.loads(line) for line in whole.splitlines()]
            yield from (row for row in rows if row.get("step", 0) > opened["done"])
            if ended:
                break
            if not rows:
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
        own = [text for text in told.values() if "PeerLost" not in text]
        if own:
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

    Whatever happens in the block, none of them is left when it ends.
    """
    with tempfile.TemporaryDirectory(prefix="sdslib-") as name:
        folder = Path(name)
        write_json(folder / "params.json", dict(params))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command(folder, count),
                cwd=project_root(),
                env=environment(params, count) | {NEWS: str(folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
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
    """torchrun on this machine alone, at a port that is free."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    local = [f"--nproc-per-node={count}", "--local-addr=127.0.0.1"]
    return [*torchrun, *local, "-m", "sdslib.experiment", "--params", str(folder / "params.json")]


def environment(params: Mapping[str, Any], count: int) -> dict[str, str]:
    """This process's, with the CPU's cores divided among the processes."""
    cores = params.get("threads") or max(1, (os.cpu_count() or 1) // count)
    return {"OMP_NUM_THREADS": str(cores)} | dict(os.environ)


# --- what the processes themselves call ----------------------------------------------------------


def tell_opened(run: Path, done: int, steps: int) -> None:
    """Tell who started this process, if anybody did, which run it works on; the first time only."""
    folder = os.environ.get(NEWS)
    if folder and not (Path(folder) / _OPENED).exists():
        write_json(Path(folder) / _OPENED, {"path": str(run), "done": done, "steps": steps})


def tell_error(place: int, error: BaseException) -> None:
    """Tell who started this process, if anybody did, why it ends."""
    folder = os.environ.get(NEWS)
    if folder:
        text = f"{type(error).__name__}: {error}"
        (Path(folder) / f"rank-{place}.txt").write_text(text, "utf-8")
