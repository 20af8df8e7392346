"""Answers as HTML that refers to nothing outside it: of the live panels and of saved notebooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sdslib.benchmarks import Item
from sdslib.checks.captions import shortened
from sdslib.lab.baseline import TEACHER
from sdslib.show import atlas, item_figures, page
from sdslib.show.questions import Answer, Demo


def html(answer: Answer) -> str:
    """An answer as one piece of HTML that refers to nothing outside it; see `page`."""
    known = answer.scores[["margin", "noise", "far"]].abs().replace(np.inf, np.nan).max(axis=1)
    reach = known.groupby(answer.scores["model"]).transform("max")  # where a model's bars end
    models = answer.scores.assign(reach=reach).groupby("model", sort=False)
    orders = [table.assign(model=model) for model, table in answer.harder.items()]
    rows = pd.concat(orders).sort_values("caption", kind="stable") if orders else pd.DataFrame()
    return page.render(
        "demo",
        answer=answer,
        captions=[shortened(caption) for caption in answer.question.captions],
        picture=answer.question.ref.load(),
        seen=answer.seen,
        about=answer.question.about,
        scores={model: part.to_dict("records") for model, part in models},
        orders=list(rows.itertuples()),
        beaten=sum(row.lead < 0 for row in rows.itertuples()),
        teacher=TEACHER,
        maps=answer.maps and item_figures.relevance(answer.maps),
    )


def pair_html(demo: Demo, item: Item, teacher: bool = False, notes: Sequence[str] = ()) -> str:
    """Two images and two captions as HTML: every model's grid, and which inequality holds."""
    card = atlas.card(demo.grids(item, teacher), str(item.id))
    return page.render("demo_pair", card=card, notes=notes)


def message(reason: object) -> str:
    """A sentence about what went wrong, for the reader's eyes and for a screen reader."""
    said = str(reason) or f"it ended with {type(reason).__name__}"
    return page.render("message", role="alert", said=said)
