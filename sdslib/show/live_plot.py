"""Training as somebody at the notebook sees it: curves that grow.

The notebook's own stop button (interrupt the kernel) ends it after the step, with a checkpoint; see
`experiment.stop_requested`. Where nobody sits at the notebook (papermill, nbconvert, a terminal)
there is the line of `progress` alone; the notebook's own figure of the history comes after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

import pandas as pd

from sdslib.io.progress import track
from sdslib.show import figures, page

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

    At a live notebook: the line with the time left and the curves of `figures.history`. After the
    last step the curves go, since the whole history is drawn next; of training that ended early
    they stay.
    """

    def follow(steps: Iterable[S], total: int) -> Iterator[S]:
        if not page.is_live():
            yield from track(label)(steps, total)
            return
        with Curves(total, note) as curves:
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
