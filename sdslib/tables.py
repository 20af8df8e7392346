"""Score tables: one row an item, and the figures made from them.

Columns: `id`, `answer` (empty for grids), tags, `n_images`, `n_captions`, notes of the scorer, and
`s_i_k`, the score of image i with caption k (higher is better); a further rule of the scorer adds
`rule.s_i_k`. A table of ranks has `rank` (0 is first) of `n_captions` instead of scores. N items,
I images, K captions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from sdslib import metrics
from sdslib.io import storage

NOTES = (
    *("n_images", "n_captions", "equal_captions", "draws", "settled", "unet_evaluations"),
    *("rank", "n_true", "predicted", "margin", "rechecked"),
)
NO_SPREAD = 1e-6  # below this, scores of float32 embeddings differ by rounding alone
MACRO_TAGS = ("relation", "attributes", "subset")
WINOGROUND_TAGS = ("collapsed_tag", "num_main_preds", "diwan_tags")
_CELL = re.compile(r"^(?:(?P<rule>\w+)\.)?s_(?P<image>\d+)_(?P<caption>\d+)$")
_AUTHORS_CELL = re.compile(r"^c(?P<caption>\d+)_i(?P<image>\d+)$")


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
    return "rank" not in table.columns and bool(table["answer"].isna().all())


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

    Grids: `text`, `image`, `group`; choices: `accuracy`; classes: `accuracy`, `top5`; retrieval:
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
    answer = table["answer"].to_numpy(dtype=np.int64)
    return {"accuracy": metrics.CHOICE_RULES[convention](grids_of(table, rule)[:, 0], answer, ids)}


def _cutoffs(table: pd.DataFrame) -> dict[str, int]:
    """Metrics of a table of ranks: right where the rank is below the number."""
    if "way" in table.columns:
        return {"recall@1": 1, "recall@5": 5, "recall@10": 10}
    return {"accuracy": 1, "top5": 5}


def ties_of(table: pd.DataFrame, rule: str = "") -> np.ndarray:
    """Items with an exactly equal comparison that decides, [N] bool; see `metrics.ties`."""
    if "rank" in table.columns:
        return np.zeros(len(table), dtype=bool)
    if is_grid(table):
        return metrics.ties(grids_of(table, rule))
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
    with several labels, joined by "|", counts in each. Without a benchmark the table is taken to
    be whole.
    """
    tied, rows = ties_of(scores, rule), []
    for metric, correct in outcomes(scores, rule, convention).items():
        groups = [("all", "all", np.arange(len(scores)))]
        for tag in tags_of(scores) if by is None else by:
            groups += [(tag, label, i) for label, i in metrics.groups_of(scores[tag]).items()]
        for tag, label, index in groups:
            share = metrics.wilson(correct[index])
            rows.append(_table_row(tag, label, metric, share, int(tied[index].sum())))
        for tag in tags_of(scores) if by is None else by:
            rows += _averages(tag, metric, correct, scores[tag], tied)
    table = pd.DataFrame(rows)
    table["chance"] = table["metric"].map(_chance(scores))
    table["partial"] = benchmark is not None and (
        benchmark.partial or len(scores) < len(benchmark.items)
    )
    return table


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
    return {"accuracy": float((1 / scores["n_captions"]).mean())}


def compare(
    before: pd.DataFrame,
    after: pd.DataFrame,
    rule: str = "",
    by: Sequence[str] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Paired comparison of two score tables of the same items, all and by tag.

    Columns tag, label, metric, n, before, after, difference, low, high (95% paired bootstrap), p
    (exact McNemar), p_holm (within the labels of a tag), up, down (items that flip), mdd (smallest
    difference that this many items and flips would show with power 0.8). Raises where the ids
    differ.
    """
    after = _aligned(before, after)
    rows = []
    old, new = outcomes(before, rule), outcomes(after, rule)
    for metric in old:
        for tag in ("all", *(tags_of(before) if by is None else by)):
            cells = ["all"] * len(before) if tag == "all" else before[tag]
            family = [
                _comparison(old[metric][index], new[metric][index], seed)
                | {"tag": tag, "label": label, "metric": metric}
                for label, index in metrics.groups_of(cells).items()
            ]
            adjusted = metrics.holm([float(row["p"]) for row in family])
            rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    order = ["tag", "label", "metric", "n", "before", "after", "difference", "low", "high"]
    return pd.DataFrame(rows)[[*order, "p", "p_holm", "up", "down", "mdd"]]


def _comparison(old: np.ndarray, new: np.ndarray, seed: int) -> dict[str, float]:
    found = metrics.paired_difference(old, new, seed)
    up, down = metrics.flips(old, new)
    return {
        "n": found.n,
        "before": float(old.mean()),
        "after": float(new.mean()),
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": metrics.mcnemar(old, new),
        "up": up,
        "down": down,
        "mdd": metrics.minimum_detectable_difference(found.n, (up + down) / found.n),
    }


def _aligned(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """`after` in the order of `before`; a difference in the ids raises and names one."""
    odd = set(before["id"]) ^ set(after["id"])
    if odd or before["id"].duplicated().any() or len(before) != len(after):
        raise TableError(
            f"a paired comparison needs the same items: {len(odd)} ids are in one table only"
            + (f", e.g. {min(map(str, odd))!r}" if odd else "; some id occurs twice")
        )
    return after.set_index("id").loc[before["id"]].reset_index()


def compare_over_seeds(
    before: Sequence[pd.DataFrame], after: Sequence[pd.DataFrame], rule: str = "", seed: int = 0
) -> pd.DataFrame:
    """Mean difference over S runs of each kind, with a bootstrap over seeds and items at once.

    Pairs before[s] with after[s]; all tables have the same items. Columns metric, seeds, n,
    before, after, difference, low, high, smallest, largest (difference of a single seed).
    """
    first, rows = before[0], []
    old = [outcomes(_aligned(first, table), rule) for table in before]
    new = [outcomes(_aligned(first, table), rule) for table in after]
    for metric in old[0]:
        pairs = zip(old, new, strict=True)
        change = np.array([b[metric].astype(float) - a[metric] for a, b in pairs])
        found, single = metrics.over_seeds(change, seed), change.mean(axis=1)
        rows.append({
            "metric": metric, "seeds": len(change), "n": found.n,
            "before": float(np.mean([a[metric] for a in old])),
            "after": float(np.mean([b[metric] for b in new])),
            "difference": found.mean, "low": found.low, "high": found.high,
            "smallest": float(single.min()), "largest": float(single.max()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def read_scores(path: str | Path) -> pd.DataFrame:
    """A score table from parquet or CSV, with cells named `s_i_k` or Winoground's `c<k>_i<i>`.

    Tags stay text, blanks become "untagged" in tables. Raises `TableError` where the file,
    its cells or its ids are not usable, `metrics.ScoreError` where a score is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise TableError(f"no score file at {path}; give a CSV or parquet of score grids")
    try:
        if path.suffix == ".parquet":
            table = storage.read_frame(path)
        else:
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as reason:
        first = str(reason).split("\n")[0]
        raise TableError(f"{path} cannot be read ({first}); write it again") from None
    found = {c: m for c in table.columns if (m := _AUTHORS_CELL.match(c))}
    table = table.rename(columns={c: f"s_{m['image']}_{m['caption']}" for c, m in found.items()})
    cells = {c: m for c in table.columns if (m := _CELL.match(c))}
    if "id" not in table.columns or not cells or table.empty:
        raise TableError(f"{path}: needs rows with a column id and scores s_<i>_<k>")
    if not table["id"].map(pd.api.types.is_scalar).all():
        raise TableError(f"{path}: ids must be text or numbers")
    if table["id"].duplicated().any():
        twice = table.loc[table["id"].duplicated(), "id"].iloc[0]
        raise TableError(f"{path}: id {twice!r} occurs twice")
    for column in cells:
        table[column] = pd.to_numeric(table[column], errors="coerce")
    for column, name in (("n_images", "image"), ("n_captions", "caption")):
        if column not in table.columns:
            table[column] = 1 + max(int(m[name]) for m in cells.values())
        table[column] = table[column].astype(np.int64)
    if "answer" not in table.columns:
        table["answer"] = pd.NA
    table["answer"] = table["answer"].replace("", pd.NA).astype("Int64")
    for rule in {m["rule"] or "" for m in cells.values()}:
        metrics.require_finite(grids_of(table, rule), table["id"].to_list())
    return table


def summary(scores: pd.DataFrame, by: Sequence[str] | None = None) -> dict:
    """The figures of a score table as plain JSON: n, a share a metric, ties, and the same by tag.

    `by` defaults to those of Winoground's tags that the table has, or else all its tags.
    """
    tags = by or [tag for tag in WINOGROUND_TAGS if tag in scores.columns] or tags_of(scores)
    correct, tied = outcomes(scores), ties_of(scores)

    def shares(index: np.ndarray) -> dict:
        right = {metric: float(hits[index].mean()) for metric, hits in correct.items()}
        return {"n": len(index), **right, "ties": int(tied[index].sum())}

    groups = {
        tag: {label: shares(index) for label, index in metrics.groups_of(scores[tag]).items()}
        for tag in tags
    }
    return {**shares(np.arange(len(scores))), "by": groups}
