"""Stopping after a step: a signal is obeyed where nothing is cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from sdslib.io.progress import notebook_shell


class Terminated(SystemExit):
    """SIGTERM was obeyed after a step; the process ends with status 143, as the shell has it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signal.SIGTERM


class Stop(threading.Event):
    """Whether a signal asked to stop, and which."""

    number = signal.SIGINT

    def obey(self, step: int) -> NoReturn:
        """Raise Terminated or KeyboardInterrupt, as the signal would have."""
        message = f"stopped after step {step}; run again to go on"
        raise (Terminated if self.number == signal.SIGTERM else KeyboardInterrupt)(message)


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """An event that the first SIGINT or SIGTERM sets, so that a step is never cut in two.

    A second signal ends the process as usual. Outside the main thread signals stay as they are.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, frame: object) -> None:
        stop.number = signal.Signals(number)
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def stop_calmly() -> None:
    """In a notebook, have a cell that is stopped say so in one line, without a traceback."""
    if shell := notebook_shell():
        shell.set_custom_exc((KeyboardInterrupt,), _tell)


def _tell(shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: Any = None) -> None:
    line = str(error) or "stopped; run the cell again to go on"
    error._render_traceback_ = lambda: [line]  # type: ignore[attr-defined]  # IPython's hook
    shell.showtraceback((kind, error, trace))
