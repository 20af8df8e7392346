"""Items on which two runs differ, with their pictures: which one is right, and what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from sdslib.benchmarks import Item
from sdslib.io.sources import DataError
from sdslib.results import failures
from sdslib.results.settings import config_of, reported
from sdslib.results.side_by_side import Beside
from sdslib.sets.roles import load_set
from sdslib.show import page
from sdslib.tables import grids_of, is_grid, outcomes


def show(found: Beside, count: int) -> HTML:
    """`count` items on which the first two models differ, gained and lost in turn, in order.

    They are of the first set that both scored; where its pictures are not at hand it says why.
    """
    (of, scored), (first, other, *_) = next(iter(found.scores.items())), found.runs
    tables = {name: scored[name] for name in (first, other) if name in scored}
    if len(tables) < 2:
        return HTML(page.render("flipped", told=f"{other} did not score {of}.", rows=[], models=[]))
    outcome = {name: outcomes(table) for name, table in tables.items()}
    metric = next(iter(outcome[first]))
    right = {name: by[metric] for name, by in outcome.items()}
    changes = failures.flips(right[other], right[first])
    ways = [np.flatnonzero(changes == way) for way in ("gained", "lost")]
    told = f"Items of {of} on which {first} is right ({metric}) and {other} is not: {len(ways[0])};"
    told += f" the other way round: {len(ways[1])}."
    places = [int(place) for place in failures.in_turn(*ways)][:count]
    items, absent = _items(found, of)
    rows = [_row(items, tables, right, place) for place in places]
    whole = " ".join(filter(None, [told, f"Shown are {len(rows)}." if rows else "", absent]))
    return HTML(page.render("flipped", told=whole, rows=rows, models=list(tables)))


def _items(found: Beside, of: str) -> tuple[dict[str, Item], str]:
    """The items of the set by id, or why they are not at hand."""
    run = next((run for run in found.known.values() if reported(run) == of), None)
    if run is None:
        return {}, "No run names the source of its pictures."
    try:
        return {str(item.id): item for item in load_set(config_of(run).benchmark).items}, ""
    except DataError as reason:
        return {}, f"Pictures and captions are not at hand: {reason}"


def _row(
    items: dict[str, Item], tables: dict[str, pd.DataFrame], right: dict[str, np.ndarray], at: int
) -> dict[str, Any]:
    """What the template shows of the item in row `at` of the tables."""
    name = str(next(iter(tables.values()))["id"].iloc[at])
    item, said = items.get(name), []
    for model, table in tables.items():
        taken = _taken(item, table, at)
        said.append(("right" if right[model][at] else "wrong") + (f": “{taken}”" if taken else ""))
    pictures = [] if item is None else [
        (ref.load(), _true_of(item, n)) for n, ref in enumerate(item.images)
    ]  # fmt: skip
    return {"id": name, "pictures": pictures, "said": said}


def _true_of(item: Item, image: int) -> str:
    """The caption that is true of an image."""
    paired = item.answer is None and len(item.images) > 1
    return item.captions[image if paired else item.answer or 0]


def _taken(item: Item | None, table: pd.DataFrame, at: int) -> str:
    """The caption that a model takes for an item's one image; nothing of a grid."""
    if item is None or is_grid(table):
        return ""
    if "predicted" in table:
        return item.captions[int(table["predicted"].iloc[at])]
    if "rank" in table:
        return ""
    return item.captions[int(grids_of(table.iloc[[at]])[0, 0].argmax())]
