"""A live list of finished runs, to say which models are shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import ipywidgets as w

from sdslib.io.run import Run
from sdslib.results.settings import made_by
from sdslib.show import page


class RunPicker:
    """Runs to mark, by their passports, and a button that has the marked ones shown.

    Marked are at first those whose passports are `shown`. `show` gets the marked ones; where it
    returns nothing they are shown later. `view` is the widget.
    """

    def __init__(
        self, offered: Mapping[str, Run], shown: Collection[str], show: Callable[[list[Run]], Any]
    ) -> None:
        self.offered, self._show = offered, show
        marked = [told for told, run in offered.items() if made_by(run) in shown]
        rows, wide = max(1, min(8, len(offered))), w.Layout(width="98%")
        self.runs = w.SelectMultiple(
            options=[*offered], value=marked, description="runs", rows=rows, layout=wide
        )
        self.button = w.Button(description="show these", tooltip="the marked runs")
        self.message = w.HTML()
        self.button.on_click(lambda _: self.pick())
        self.view = w.VBox([self.runs, self.button, self.message])

    def pick(self) -> None:
        """Show the marked runs; what cannot be shown is told, and what was shown stays."""
        try:
            found = self._show([self.offered[told] for told in self.runs.value])
        except Exception as reason:
            self.message.value = page.render("message", role="alert", said=str(reason))
            return
        count = len(self.runs.value)
        said = f"{count} run{'s' * (count != 1)} shown"
        said += " from the next question on" * (found is None)
        self.message.value = page.render("message", role="status", said=said)
