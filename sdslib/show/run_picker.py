"""A live list of finished runs, to say which models are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets as w

from sdslib.io.run import Run
from sdslib.show import page


class RunPicker:
    """Runs to mark, by their passports, and a button that has the marked ones shown.

    `show` gets them; where it returns nothing they are shown later. `view` is the widget.
    """

    def __init__(
        self,
        offered: Mapping[str, Run],
        chosen: Sequence[Run],
        show: Callable[[list[Run]], Any],
    ) -> None:
        self.offered, self._show = offered, show
        there = {run.path for run in chosen}
        marked = [told for told, run in offered.items() if run.path in there]
        wide = w.Layout(width="98%")
        self.runs = w.SelectMultiple(
            options=[*offered],
            value=marked,
            description="runs",
            rows=max(1, min(8, len(offered))),
            layout=wide,
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
        said = f"{count} run{'s' * (count != 1)} shown" + " from the next question on" * (
            found is None
        )
        self.message.value = page.render("message", role="status", said=said)
