"""The figures of an ablation: which of `figures` shows each of its parts, and how.

Where a part was not asked for, a sentence stands in the place of its figure.
"""

from __future__ import annotations

import pandas as pd

from sdslib.results import ablations, studies
from sdslib.results.ablations import Ablation
from sdslib.show import figures
from sdslib.show.figures import Picture


def curve(ablation: Ablation) -> Picture:
    """The trade-off over `sds_weight`."""
    return figures.tradeoff(ablations.curve(ablation), ablation.note, plain=["gradient ratio"])


def panels(ablation: Ablation) -> Picture | str:
    """The panels as bars with intervals."""
    table = ablations.panels(ablation)
    if table.empty:
        return "no panels were asked for"
    return _bars(table, ablation.note, "Route, timesteps, start and data")


def arms(ablation: Ablation) -> Picture | str:
    """The arms as bars with intervals, the untouched student as a line."""
    if "arms" not in ablation.parts:
        return "no arms were asked for"
    table = studies.means(ablation.settings("arms"))
    return _bars(table, ablation.note, "Is it the diffusion model's knowledge?")


def gains(ablation: Ablation) -> Picture:
    """Text score and retention by trainable set, with the number of parameters beside each."""
    return _bars(ablations.gains(ablation), ablation.note, "Which parameters have to move")


def _bars(table: pd.DataFrame, note: str, title: str) -> Picture:
    return figures.bars_by_set(studies.drawn(table.rename(columns={"setting": "set"})), note, title)


def moved(ablation: Ablation) -> Picture:
    """How far each layer moved, as a map of layers by sets."""
    rows = ablations.moved(ablation)
    table = rows.pivot(index="layer", columns="set", values="relative")
    return figures.changes(table.loc[rows["layer"].unique(), rows["set"].unique()], ablation.note)
