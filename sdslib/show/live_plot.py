"""Training as somebody at the notebook sees it: curves that grow.

The notebook's own stop button (interrupt the kernel) ends it after the step, with a checkpoint; see
`experiment.stop_requested`. Where nobody sits at the notebook (papermill, nbconvert, a terminal)
there is the line of `progress` alone; the notebook's own figure of the history comes after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pandas as pd

from sdslib.config import FinetuneConfig
from sdslib.io.progress import track
from sdslib.results.objectives import own_term
from sdslib.show import figures, page

if TYPE_CHECKING:
    from sdslib.experiment import Show
    from sdslib.train import Step

_REDRAW_S = 3.0
_SHARE = 0.05  # of the time that drawing may take


def training(label: str, config: FinetuneConfig) -> Show:
    """A function `(steps, total)` that passes steps on and shows how training goes.

    At a live notebook: the line with the time left and the curves of `figures.history`. After the
    last step the curves go, since the whole history is drawn next; of training that ended early
    they stay.
    """

    def follow(steps: Iterable[Step], total: int) -> Iterator[Step]:
        tracked = track(label)(steps, total)
        return _with_curves(tracked, total, config) if page.is_live() else tracked

    return follow


def _with_curves(steps: Iterator[Step], total: int, config: FinetuneConfig) -> Iterator[Step]:
    from IPython.display import HTML, display

    handle: Any = display(HTML(""), display_id=True)
    rows: list[dict[str, Any]] = []
    due = time.monotonic() + _REDRAW_S

    def draw() -> None:
        table = pd.DataFrame(rows)
        table.attrs["term"] = own_term(config)
        curves = figures.history(table, config.label, absent="not measured so far")
        curves.grows = True
        handle.update(curves)

    try:
        for step in steps:
            rows.append(step.row())
            start = time.monotonic()
            if start >= due:
                draw()
                now = time.monotonic()
                due = now + max(_REDRAW_S, (now - start) / _SHARE)
            yield step
    finally:
        if len(rows) == total:
            handle.update(HTML(""))
        elif rows:
            draw()
