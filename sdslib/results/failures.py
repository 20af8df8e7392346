"""What an item's grid says beyond right and wrong: which inequality failed, by how much, and what
changed between two models.

A grid [2, 2] holds s(image i, caption k); its four inequalities decide the item. N items.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import pandas as pd
from statsmodels.stats.inter_rater import cohens_kappa

from sdslib import metrics
from sdslib.tables import TableError, grids_of, is_grid, margins_of, outcomes, ties_of

# What has to hold: the score in the first cell (image, caption) above that in the second.
INEQUALITIES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "image 0 prefers its caption": ((0, 0), (0, 1)),
    "image 1 prefers its caption": ((1, 1), (1, 0)),
    "caption 0 prefers its image": ((0, 0), (1, 0)),
    "caption 1 prefers its image": ((1, 1), (0, 1)),
}
MODES = ("right", "image wrong", "text wrong", "both wrong")
TEXT_CHOICES = ("right", "one caption for both", "reversed", "tie")
IMAGE_CHOICES = ("right", "one image for both", "reversed", "tie")
FLIPS = ("gained", "lost", "stays right", "stays wrong")
T = TypeVar("T")


def is_square(table: pd.DataFrame) -> bool:
    """Whether its items are two images and two captions, which have `INEQUALITIES`."""
    return is_grid(table) and grids_of(table).shape[1:] == (2, 2)


def leads_of(table: pd.DataFrame, rule: str = "") -> np.ndarray:
    """By how much each of `INEQUALITIES` holds, [N, 4]; negative where it fails, 0 at a tie."""
    if not is_square(table):
        raise TableError("only grids of two images and two captions have these four inequalities")
    s = metrics.require_finite(grids_of(table, rule), table["id"].to_list())
    return np.stack([s[:, a, b] - s[:, c, d] for (a, b), (c, d) in INEQUALITIES.values()], axis=1)


def anatomy(table: pd.DataFrame, rule: str = "") -> pd.DataFrame:
    """One row an item of a table of grids: how it is decided, and why.

    Columns id; text, image, group (right or wrong); mode (of `MODES`); text_choice, image_choice
    (what is done with the two images, with the two captions); tie; margin_text, margin_image,
    margin_group (smallest lead, positive exactly where right); failed (names of the inequalities
    that do not hold, joined by "|"). Items with one image have id, their metrics, mode (right or
    wrong by the first of them), tie and a margin for each metric.
    """
    right, margins = outcomes(table, rule), margins_of(table, rule)
    found = pd.DataFrame({"id": table["id"].astype(str).to_numpy()}).assign(
        **right,
        tie=ties_of(table, rule),
        **{f"margin_{name}": values for name, values in margins.items()},
    )
    if not is_square(table):
        return found.assign(mode=np.where(next(iter(right.values())), "right", "wrong"))
    leads, names = leads_of(table, rule), np.array(list(INEQUALITIES))
    return found.assign(
        mode=np.array(MODES)[3 - 2 * right["text"].astype(int) - right["image"].astype(int)],
        text_choice=_choices(leads[:, :2], TEXT_CHOICES),
        image_choice=_choices(leads[:, 2:], IMAGE_CHOICES),
        failed=["|".join(names[row <= 0]) for row in leads],
    )


def _choices(leads: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """right where both leads are positive, reversed where both are negative, tie where one is 0."""
    positive = (leads > 0).sum(axis=1)
    found = np.array([names[2], names[1], names[0]])[positive]
    return np.where((leads == 0).any(axis=1), names[3], found)


def modes_of(parts: pd.DataFrame) -> tuple[str, ...]:
    """The modes that the items of `anatomy` can have."""
    return MODES if "text_choice" in parts else ("right", "wrong")


def metrics_of(parts: pd.DataFrame) -> tuple[str, ...]:
    """The metrics by which `anatomy` tells right from wrong."""
    return tuple(c.removeprefix("margin_") for c in parts if c.startswith("margin_"))


def flips(before: np.ndarray | Sequence[bool], after: np.ndarray | Sequence[bool]) -> np.ndarray:
    """`gained`, `lost`, `stays right` or `stays wrong` for outcomes [N] of the same items."""
    change = 2 * np.asarray(before, dtype=int) + np.asarray(after, dtype=int)
    return np.array(["stays wrong", "gained", "lost", "stays right"])[change]


def in_turn(*ways: Iterable[T]) -> list[T]:
    """The first of each way, then the second of each, as far as each goes; to show `flips`."""
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ways))
    return [one for one in turns if one is not None]


def mode_shares(table: pd.DataFrame, parts: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Share of each mode among all items and those of every label: tag, label, n, mode, share."""
    rows = []
    for tag in ("all", *by):
        cells = ["all"] * len(table) if tag == "all" else table[tag]
        for label, index in metrics.groups_of(cells).items():
            modes = parts["mode"].to_numpy()[index]
            head = {"tag": tag, "label": label, "n": len(index)}
            shares = {mode: float(np.mean(modes == mode)) for mode in modes_of(parts)}
            rows += [head | {"mode": mode, "share": share} for mode, share in shares.items()]
    return pd.DataFrame(rows)


def kinds(parts: pd.DataFrame) -> pd.DataFrame:
    """How often an item fails in which way, from `anatomy`: kind, items, share, sorted.

    An item may fail for its images' choices and for its captions' ones, and is then in both.
    """
    if "text_choice" not in parts:  # items with one image
        return _counted({"takes a false caption": parts["mode"].eq("wrong") & ~parts["tie"],
                         "ties exactly": parts["tie"]})  # fmt: skip
    told = {
        "takes one caption for both images": parts["text_choice"] == TEXT_CHOICES[1],
        "takes one image for both captions": parts["image_choice"] == IMAGE_CHOICES[1],
        "exchanges the captions": parts["text_choice"] == TEXT_CHOICES[2],
        "exchanges the images": parts["image_choice"] == IMAGE_CHOICES[2],
        "ties exactly": parts["tie"],
    }
    return _counted(told)


def _counted(told: Mapping[str, pd.Series]) -> pd.DataFrame:
    rows = [(kind, int(hits.sum()), float(hits.mean())) for kind, hits in told.items()]
    found = pd.DataFrame(rows, columns=["kind", "items", "share"])
    return found.sort_values("items", ascending=False, kind="stable", ignore_index=True)


def margin_pairs(before: pd.DataFrame, after: pd.DataFrame, metric: str = "text") -> pd.DataFrame:
    """Margins of the same items under two models, from `anatomy`: id, before, after, flip."""
    both = before.merge(after, on="id", suffixes=("_0", "_1"), validate="one_to_one")
    return pd.DataFrame({
        "id": both["id"],
        "before": both[f"margin_{metric}_0"],
        "after": both[f"margin_{metric}_1"],
        "flip": flips(both[f"{metric}_0"].to_numpy(), both[f"{metric}_1"].to_numpy()),
    })  # fmt: skip


def flows(parts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many items (n) go through each sequence of modes: one column a model, in order."""
    first = next(iter(parts.values()))["id"]
    modes = {name: part.set_index("id").loc[first, "mode"] for name, part in parts.items()}
    return pd.DataFrame(modes).value_counts(sort=False).rename("n").reset_index()


def choice_counts(parts: pd.DataFrame) -> pd.DataFrame:
    """Items by what happens in text (rows) and image choice (columns), right first, ties last."""
    rows, columns = parts["text_choice"], parts["image_choice"]
    counts = pd.crosstab(rows, columns)
    order = [c for c in TEXT_CHOICES if c != "tie" or c in counts.index]
    across = [c for c in IMAGE_CHOICES if c != "tie" or c in counts.columns]
    counts = counts.reindex(index=order, columns=across, fill_value=0)
    return counts.rename_axis(index="captions", columns="images")


def agreement(
    first: np.ndarray, second: np.ndarray, names: tuple[str, str] = ("student", "teacher")
) -> pd.DataFrame:
    """Counts [2, 2] of items by whether each of two models is right."""
    words = pd.Categorical(np.where(first, "right", "wrong"), ["right", "wrong"])
    others = pd.Categorical(np.where(second, "right", "wrong"), ["right", "wrong"])
    counts = pd.crosstab(words, others, dropna=False)
    return counts.rename_axis(index=names[0], columns=names[1])


def kappa(counts: pd.DataFrame) -> float:
    """Cohen's kappa of a table of counts; NaN where one answer is never given by either."""
    values = counts.to_numpy()
    if (values.sum(axis=0) + values.sum(axis=1) == 0).any() or (values > 0).sum() == 1:
        return float("nan")
    return float(cohens_kappa(values, return_results=False))


def calibration(tables: Mapping[str, pd.DataFrame], rule: str = "", bins: int = 8) -> pd.DataFrame:
    """How often an image's better-scored caption is its own, by the size of its lead.

    Each item gives two choices, cut into bins of equal count. Columns model, margin (mean size in
    the bin), accuracy, low, high (Wilson), n, chance. The two choices of an item are not
    independent, so the intervals are a little too narrow. A tie counts as wrong. An item with one
    image gives one choice, by its first metric.
    """
    rows = []
    for model, table in tables.items():
        if is_square(table):
            lead, chance = leads_of(table, rule)[:, :2].ravel(), 0.5
        else:
            lead = next(iter(margins_of(table, rule).values()))
            chance = float((1 / table["n_captions"]).mean())
        order = np.argsort(np.abs(lead), kind="stable")
        for part in np.array_split(order, min(bins, len(lead))):
            share = metrics.wilson(lead[part] > 0)
            rows.append({"model": model, "margin": float(np.abs(lead[part]).mean()),
                         "accuracy": share.mean, "low": share.low, "high": share.high,
                         "n": share.n, "chance": chance})  # fmt: skip
    return pd.DataFrame(rows)
