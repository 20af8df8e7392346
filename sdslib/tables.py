"""Score tables: one row an item, and the figures made from them.

Columns: `id`, `answer` (empty for grids), tags, `n_images`, `n_captions`, notes of the scorer, and
`s_i_k`, the score of image i with caption k (higher is better); a further rule of the scorer adds
`rule.s_i_k`. A table of ranks has `rank` (0 is first) of `n_captions` instead of scores. N items,
I images, K captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from sdslib import metrics

NOTES = (
    *("n_images", "n_captions", "equal_captions", "draws", "settled", "unet_evaluations"),
    *("rank", "n_true", "predicted", "margin", "rechecked"),
)
NO_SPREAD = 1e-6  # below this, scores of float32 embeddings differ by rounding alone
MACRO_TAGS = ("relation", "attributes", "subset", "pattern", "category")
GROUPS = {"pair": 2, "set": 4}  # tags that name items of which all have to be right, and how many
TEXTS = "text"  # the rule of a triplet's captions with one another
WINOGROUND_TAGS = ("collapsed_tag", "num_main_preds", "diwan_tags")
_CELL = re.compile(r"^(?:(?P<rule>\w+)\.)?s_(?P<image>\d+)_(?P<caption>\d+)$")


class Listed(Protocol):
    """What a table needs to know of its benchmark."""

    @property
    def items(self) -> Sequence:
        """All items that are there."""

    @property
    def partial(self) -> bool:
        """Whether items of the full set are missing."""


class Caution(UserWarning):
    """What has to be said above a figure, see `cautions`."""


class TableError(ValueError):
    """Scores or tables that do not fit what is asked of them; says what to do."""


def cell_columns(grids: dict[str, np.ndarray]) -> dict[str, float]:
    """The cells of one item's grids [I, K] under their column names; rule "" has no prefix."""
    return {
        f"{rule}.s_{i}_{k}".lstrip("."): float(value)
        for rule, grid in grids.items()
        for (i, k), value in np.ndenumerate(grid)
    }


def grids_of(table: pd.DataFrame, rule: str = "") -> np.ndarray:
    """The scores [N, I, K] of a rule; cells an item does not have are masked."""
    cells = [(c, m) for c in table.columns if (m := _CELL.match(c)) and (m["rule"] or "") == rule]
    if not cells:
        known = sorted({m["rule"] or "" for c in table.columns if (m := _CELL.match(c))})
        raise TableError(f"no scores of rule {rule!r} in the table; it has {known}")
    places = [(int(m["image"]), int(m["caption"])) for _, m in cells]
    shape = tuple(max(index) + 1 for index in zip(*places, strict=True))
    grid = np.zeros((len(table), *shape))
    for (column, _), (i, k) in zip(cells, places, strict=True):
        grid[:, i, k] = table[column]
    images = np.arange(shape[0]) >= table["n_images"].to_numpy()[:, None]
    captions = np.arange(shape[1]) >= table["n_captions"].to_numpy()[:, None]
    absent = images[:, :, None] | captions[:, None, :]
    return np.ma.masked_array(grid, absent) if absent.any() else grid


def tags_of(table: pd.DataFrame) -> list[str]:
    """The tag columns of a score table."""
    fixed = {"id", "answer", *NOTES}
    return [c for c in table.columns if c not in fixed and not _CELL.match(c)]


def is_grid(table: pd.DataFrame) -> bool:
    """Whether the items are Winoground-like: every image with every caption, no single answer."""
    open_ = "rank" not in table.columns and bool(table["answer"].isna().all())
    return open_ and not is_triplet(table)


def is_triplet(table: pd.DataFrame) -> bool:
    """Whether the items are SugarCrepe++-like: two true captions of an image and a false one."""
    return "rank" not in table.columns and "n_true" in table.columns


def cautions(table: pd.DataFrame) -> list[str]:
    """What has to be said above any figure made from the table, one sentence each; often nothing.

    Captions that no scorer could tell apart, and a model that tells nothing apart.
    """
    found, ids = [], table["id"].astype(str)
    if "equal_captions" in table and (equal := table["equal_captions"].astype(bool)).any():
        some = ", ".join(ids[equal][:3]) + (", ..." if equal.sum() > 3 else "")
        found.append(
            f"{equal.sum()} of {len(table)} items have captions that are one to the model (case, "
            f"HTML and what lies beyond its last token aside): {some}; they are ties, never right"
        )
    if len(table) and float(_spread(table).max()) <= NO_SPREAD:
        found.append(
            f"scores are constant: the captions of each of the {len(table)} items have one score; "
            "no figure of them says anything, look at the weights and the preprocessing"
        )
    return found


def _spread(table: pd.DataFrame) -> np.ndarray:
    """How far each item's scores lie apart, [N]; ranks tell it by their margin alone."""
    if "rank" in table.columns:
        known = "margin" in table.columns
        return np.abs(table["margin"].to_numpy()) if known else np.full(len(table), np.inf)
    grid = np.ma.masked_array(grids_of(table)).reshape(len(table), -1)
    return np.asarray(grid.max(axis=1) - grid.min(axis=1))


def outcomes(
    table: pd.DataFrame, rule: str = "", convention: str = "strict"
) -> dict[str, np.ndarray]:
    """Right or wrong, [N] for each metric of the table's kind.

    Grids: `text`, `image`, `group`; choices: `accuracy`; triplets: `image-to-text`, and
    `text-to-text` where the scorer compares captions; classes: `accuracy`, `top5`; retrieval:
    `recall@1`, `recall@5`, `recall@10`.
    `convention` is a key of `metrics.GRID_RULES` or `metrics.CHOICE_RULES`.
    """
    if "rank" in table.columns:
        return {name: table["rank"].to_numpy() < k for name, k in _cutoffs(table).items()}
    rules = (metrics.GRID_RULES if is_grid(table) else metrics.CHOICE_RULES).keys()
    if convention not in rules:
        raise TableError(f"unknown tie convention {convention!r}; there are {sorted(rules)}")
    ids = table["id"].to_list()
    if is_grid(table):
        return metrics.GRID_RULES[convention](grids_of(table, rule), ids)
    if is_triplet(table):
        return _triplets(table, rule, ids)
    answer = table["answer"].to_numpy(dtype=np.int64)
    return {"accuracy": metrics.CHOICE_RULES[convention](grids_of(table, rule)[:, 0], answer, ids)}


def _triplets(table: pd.DataFrame, rule: str, ids: Sequence) -> dict[str, np.ndarray]:
    found = {"image-to-text": metrics.both_above_false(grids_of(table, rule)[:, 0], ids)}
    if f"{TEXTS}.s_0_0" in table.columns:
        texts, first = grids_of(table, TEXTS)[:, 0], np.zeros(len(table), dtype=np.int64)
        found["text-to-text"] = metrics.choice_correct(texts, first, ids)
    return found


def _cutoffs(table: pd.DataFrame) -> dict[str, int]:
    """Metrics of a table of ranks: right where the rank is below the number."""
    if "way" in table.columns:
        return {"recall@1": 1, "recall@5": 5, "recall@10": 10}
    return {"accuracy": 1, "top5": 5}


def margins_of(table: pd.DataFrame, rule: str = "") -> dict[str, np.ndarray]:
    """By how much each metric of `outcomes` is right, [N]: positive exactly there, 0 at a tie.

    Ranks have none.
    """
    if is_grid(table):
        return metrics.winoground_margins(grids_of(table, rule), table["id"].to_list())
    if not is_triplet(table):
        answer = table["answer"].to_numpy(dtype=np.int64)
        return {"accuracy": metrics.choice_margin(grids_of(table, rule)[:, 0], answer)}
    found = {"image-to-text": metrics.both_margin(grids_of(table, rule)[:, 0])}
    if f"{TEXTS}.s_0_0" in table.columns:
        first = np.zeros(len(table), dtype=np.int64)
        found["text-to-text"] = metrics.choice_margin(grids_of(table, TEXTS)[:, 0], first)
    return found


def ties_of(table: pd.DataFrame, rule: str = "") -> np.ndarray:
    """Items with an exactly equal comparison that decides, [N] bool; see `metrics.ties`."""
    if "rank" in table.columns:
        return np.zeros(len(table), dtype=bool)
    if is_grid(table):
        return metrics.ties(grids_of(table, rule))
    if is_triplet(table):
        return metrics.both_margin(grids_of(table, rule)[:, 0]) == 0
    return metrics.ties(grids_of(table, rule)[:, 0], table["answer"].to_numpy(dtype=np.int64))


def tabulate(
    benchmark: Listed | None,
    scores: pd.DataFrame,
    rule: str = "",
    convention: str = "strict",
    by: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Shares of right items: all, by every label of the tags, and ARO's macro averages.

    Columns tag, label, metric, n, accuracy, low, high (95%: Wilson; macro rows bootstrap), ties,
    chance, partial. `MACRO_TAGS` add the average over their labels, `relation` also the figures
    without ARO's symmetric relations, `attributes` the one over labels with enough items. An item
    with several labels, joined by "|", counts in each. The tags of `GROUPS` add metrics of their
    names, whose n are groups. Without a benchmark the table is taken to be whole.
    """
    told = [tag for tag in (tags_of(scores) if by is None else by) if tag not in GROUPS]
    tied, rows = ties_of(scores, rule), []
    for metric, correct in outcomes(scores, rule, convention).items():
        groups = [("all", "all", np.arange(len(scores)))]
        for tag in told:
            groups += [(tag, label, i) for label, i in metrics.groups_of(scores[tag]).items()]
        for tag, label, index in groups:
            share = metrics.wilson(correct[index])
            rows.append(_table_row(tag, label, metric, share, int(tied[index].sum())))
        for tag in told:
            rows += _averages(tag, metric, correct, scores[tag], tied)
        rows += _grouped(scores, correct, "subset" in told)
    table = pd.DataFrame(rows)
    table["chance"] = table["metric"].map(_chance(scores))
    table["partial"] = benchmark is not None and (
        benchmark.partial or len(scores) < len(benchmark.items)
    )
    return table


def _grouped(scores: pd.DataFrame, correct: np.ndarray, by_subset: bool) -> list[dict]:
    """Shares of the pairs and sets of which all items are right, in all and by subset."""
    rows = []
    for name, size in GROUPS.items():
        if not {name, "subset"} <= {*scores} or not (
            right := metrics.all_right(correct, scores[name], size)
        ):
            continue
        known = pd.Series(right)
        subset = scores.groupby(name)["subset"].first().reindex(known.index)
        parts = [("all", "all", known)]
        parts += [("subset", label, part) for label, part in known.groupby(subset)] * by_subset
        rows += [_table_row(tag, label, name, metrics.wilson(part.to_numpy()), None)
                 for tag, label, part in parts]  # fmt: skip
    return rows


def _averages(
    tag: str, metric: str, correct: np.ndarray, cells: pd.Series, tied: np.ndarray
) -> list[dict]:
    """Macro rows of a tag that has them, and micro without the symmetric relations."""
    if tag not in MACRO_TAGS:
        return []
    rules: dict[str, dict] = {"macro": {}}
    if tag == "relation":
        rules["macro, asymmetric"] = {"exclude": metrics.ARO_SYMMETRIC_RELATIONS}
    if tag == "attributes":
        rules["macro, frequent"] = {"min_count": metrics.ARO_ATTRIBUTE_MIN_COUNT}
    rows = [
        _table_row(tag, name, metric, metrics.macro_interval(correct, cells, 0, **rule), None)
        for name, rule in rules.items()
    ]
    if tag == "relation":
        keep = ~cells.isin(metrics.ARO_SYMMETRIC_RELATIONS).to_numpy()
        if keep.any():
            share = metrics.wilson(correct[keep])
            rows.append(_table_row(tag, "micro, asymmetric", metric, share, int(tied[keep].sum())))
    return rows


def _table_row(
    tag: str, label: str, metric: str, share: metrics.Interval, tied: int | None
) -> dict:
    interval = {"n": share.n, "accuracy": share.mean, "low": share.low, "high": share.high}
    return {"tag": tag, "label": label, "metric": metric} | interval | {"ties": tied}


def _chance(scores: pd.DataFrame) -> dict[str, float]:
    if "rank" in scores.columns:
        total, true = scores["n_captions"], scores["n_true"]
        drawn = {name: np.minimum(k, total) for name, k in _cutoffs(scores).items()}
        return {name: float(hypergeom.sf(0, total, true, k).mean()) for name, k in drawn.items()}
    if is_grid(scores):
        return dict(metrics.CHANCE_GRID)
    if is_triplet(scores):
        return dict(metrics.CHANCE_TRIPLET)
    found = {"accuracy": float((1 / scores["n_captions"]).mean())}
    for name in GROUPS:
        if name in scores and (whole := scores[scores[name].fillna("") != ""]).size:
            found[name] = float((1 / whole["n_captions"]).groupby(whole[name]).prod().mean())
    return found
