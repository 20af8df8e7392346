"""Training as somebody at the notebook sees it: curves that grow, and a button that stops it.

Where nobody sits at the notebook (papermill, nbconvert, a terminal) there is the line of `progress`
alone; the notebook's own figure of the history comes after it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pandas as pd

from sdslib import figures, page
from sdslib.progress import track

_REDRAW_S = 3.0
_SHARE = 0.05  # of the time that drawing may take


class HasRow(Protocol):
    """A step of training that can tell what it saw."""

    def row(self) -> dict[str, Any]:
        """One flat record of the run's history."""
        ...


S = TypeVar("S", bound=HasRow)


def training(label: str, note: str = "") -> Callable[[Iterable[S], int], Iterator[S]]:
    """A function `(steps, total)` that passes steps on and shows how training goes.

    At a live notebook: the line with the time left, the curves of `figures.history`, and a stop
    button. After the last step curves and button go, since the whole history is drawn next; of
    training that ended early the curves stay.
    """

    def follow(steps: Iterable[S], total: int) -> Iterator[S]:
        if not page.is_live():
            yield from track(label)(steps, total)
            return
        with StopButton(), Curves(total, note) as curves:
            for step in track(label)(steps, total):
                curves.add(step.row())
                yield step

    return follow


class Curves:
    """The history so far as one picture that is drawn anew every few seconds."""

    def __init__(self, total: int, note: str = "") -> None:
        from IPython.display import HTML, display

        self.total, self.note, self.rows = total, note, list[dict[str, Any]]()
        self._empty = HTML("")
        self._handle: Any = display(self._empty, display_id=True)
        self._due = time.monotonic() + _REDRAW_S

    def add(self, row: dict[str, Any]) -> None:
        """Take in one step; draw if it is time."""
        self.rows.append(row)
        if time.monotonic() >= self._due:
            self._draw()

    def _draw(self) -> None:
        start = time.monotonic()
        table = pd.DataFrame(self.rows)
        self._handle.update(figures.history(table, self.note, absent="not measured so far"))
        now = time.monotonic()
        self._due = now + max(_REDRAW_S, (now - start) / _SHARE)

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if len(self.rows) == self.total:
            self._handle.update(self._empty)
        elif self.rows:
            self._draw()


class StopButton:
    """A button that asks training to stop after the step, with a checkpoint, as Ctrl-C does.

    JupyterLab answers it while the cell runs, since it sends the messages of widgets to a thread
    of their own (a subshell of the kernel).
    """

    def __init__(self) -> None:
        import ipywidgets as w
        from IPython.display import display

        self.button = w.Button(
            description="Stop after this step",
            icon="stop",
            tooltip="Saves a checkpoint; run the cell again to go on",
            layout=w.Layout(width="auto"),
        )
        self.button.on_click(self._ask)
        self._handle: Any = display(page.Live(self.button, ""), display_id=True)

    def _ask(self, _: object) -> None:
        self.button.disabled, self.button.description = True, "Stopping …"
        os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self) -> StopButton:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(""))
        self.button.close()
