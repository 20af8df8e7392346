"""How far a long job is: one line of HTML in a notebook, log lines elsewhere.

A saved notebook holds exactly one output with the final state and no widget, so that it reads the
same in JupyterLab, through nbconvert and offline. (tqdm leaves a widget there, or an output for
each redraw, and fills a log.)
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from typing import Any, TextIO, TypeVar

T = TypeVar("T")
_REDRAW_S = 0.2
LOG_S = 5.0


class Progress(AbstractContextManager):
    """Shows `done` of `total` with the time left; use it in a `with` block, which closes it.

    In a Jupyter kernel it redraws one output; elsewhere it writes a line to `stream` (stderr)
    every few seconds. The last state is always shown.
    """

    def __init__(self, total: int, label: str = "", stream: TextIO | None = None) -> None:
        self.total, self.label, self.done, self.note = total, label, 0, ""
        self._stream, self._over = stream, False
        self._begun = self._shown = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._handle = _display(self._html()) if stream is None and notebook_shell() else None

    def update(self, done: int, note: str = "") -> None:
        """Set how many are done, and what to say beside it."""
        self.done, self.note = done, note
        if self._first is None:  # the first item pays for what is loaded late
            self._first = (done, time.monotonic())
        every = LOG_S if self._handle is None else _REDRAW_S
        if time.monotonic() - self._shown >= every:
            self._show()

    def close(self) -> None:
        """Show the final state; a job that ended early is said to have stopped."""
        if not self._over:
            self._over = True
            self._show()

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(self) -> str:
        """The state in words, as `fine-tuning 30/150 · 0:41 left · text 0.31`."""
        if self._over:
            spent = clock(time.monotonic() - self._begun)
            state = f"{'done in' if self.done >= self.total else 'stopped after'} {spent}"
        else:
            state = self._left()
        count = f"{self.label} {self.done}/{self.total}".strip()
        return " · ".join(part for part in (count, state, self.note) if part)

    def _left(self) -> str:
        if self._first is None or self.done <= self._first[0]:
            return "starting"
        pace = (time.monotonic() - self._first[1]) / (self.done - self._first[0])
        return f"{clock(pace * max(self.total - self.done, 0))} left"

    def _show(self) -> None:
        self._shown = time.monotonic()
        if self._handle is None:
            print(self.text(), file=self._stream or sys.stderr, flush=True)
        else:
            from IPython.display import HTML

            self._handle.update(HTML(self._html()))

    def _html(self) -> str:
        label, text = html.escape(self.label or "progress"), html.escape(self.text())
        bar = f'<progress value="{self.done}" max="{max(self.total, 1)}" aria-label="{label}">'
        return f'<div style="font-variant-numeric:tabular-nums">{bar}</progress> {text}</div>'


def track(label: str = "") -> Callable[..., Iterator[Any]]:
    """A function `(items, total)` that passes items on and shows how many went by.

    `total` may be left out where `items` has a length. Of an item its `part`, `loss` and `note`
    are shown, if it has them.
    """

    def follow(items: Iterable[T], total: int | None = None) -> Iterator[T]:
        if total is None:
            if not isinstance(items, Sized):
                raise ValueError("total is needed where the items have no length")
            total = len(items)
        with Progress(total, label) as progress:
            for done, item in enumerate(items, start=1):
                progress.update(done, _note(item))
                yield item

    return follow


def _note(item: object) -> str:
    part, loss, note = (getattr(item, name, None) for name in ("part", "loss", "note"))
    shown = f"loss {loss:.4g}" if isinstance(loss, float) else None
    return " · ".join(str(text) for text in (part, shown, note) if text)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours too, as `0:41` and `2:03:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def notebook_shell() -> Any:
    """IPython's shell, where this process is the kernel of a notebook; else None."""
    module = sys.modules.get("IPython")  # a plain process need not pay for importing it
    shell = module.get_ipython() if module is not None else None
    return shell if getattr(shell, "kernel", None) is not None else None


def _display(markup: str) -> Any:
    from IPython.display import HTML, display

    return display(HTML(markup), display_id=True)
