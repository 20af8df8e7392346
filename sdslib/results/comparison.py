"""Differences between two models on the same items, and figures of score grids kept in files.

`python -m sdslib.results.comparison --scores GRIDS.csv --json` prints them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdslib import metrics, tables
from sdslib.io import storage
from sdslib.io.exits import ended
from sdslib.io.wording import first_line
from sdslib.results import statistics
from sdslib.tables import TableError, outcomes, tags_of

_AUTHORS_CELL = re.compile(r"^c(?P<caption>\d+)_i(?P<image>\d+)$")


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
            adjusted = statistics.holm([float(row["p"]) for row in family])
            rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    order = ["tag", "label", "metric", "n", "before", "after", "difference", "low", "high"]
    return pd.DataFrame(rows)[[*order, "p", "p_holm", "up", "down", "mdd"]]


def _comparison(old: np.ndarray, new: np.ndarray, seed: int) -> dict[str, float]:
    found = statistics.paired_difference(old, new, seed)
    up, down = statistics.flips(old, new)
    return {
        "n": found.n,
        "before": float(old.mean()),
        "after": float(new.mean()),
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": statistics.mcnemar(old, new),
        "up": up,
        "down": down,
        "mdd": statistics.minimum_detectable_difference(found.n, (up + down) / found.n),
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


def paired(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The last model against each other one, paired by item, by collapsed tag."""
    tags = usual_tags([*scores.values()][-1])
    return _last_against_each(scores, partial(compare, by=tags))


def usual_tags(table: pd.DataFrame) -> list[str]:
    """The tags by which a run's tables are told: Winoground's collapsed one, where it is there."""
    return [tag for tag in ("collapsed_tag",) if tag in table]


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
        found, single = statistics.over_seeds(change, seed), change.mean(axis=1)
        rows.append({
            "metric": metric, "seeds": len(change), "n": found.n,
            "before": float(np.mean([a[metric] for a in old])),
            "after": float(np.mean([b[metric] for b in new])),
            "difference": found.mean, "low": found.low, "high": found.high,
            "smallest": float(single.min()), "largest": float(single.max()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def paired_over_seeds(scores: Sequence[dict[str, pd.DataFrame]]) -> pd.DataFrame:
    """As `paired`, of several seeds' scores: `compare_over_seeds` with a column comparison."""
    by_model = {model: [seed[model] for seed in scores] for model in scores[0]}
    return _last_against_each(by_model, compare_over_seeds)


def _last_against_each(scores: Mapping[str, Any], compared: Callable) -> pd.DataFrame:
    *others, last = scores
    rows = {f"{last} against {other}": compared(scores[other], scores[last]) for other in others}
    return pd.concat(rows, names=["comparison"]).reset_index("comparison").reset_index(drop=True)


def names_of(paths: Iterable[Path]) -> dict[Path, str]:
    """What to call files: as much of the end of their paths as tells them apart, without ending."""
    parts = {path: path.with_suffix("").parts for path in paths}
    found = dict[Path, str]()
    for path, own in parts.items():
        others = [other for another, other in parts.items() if another != path]
        counts = range(1, len(own))
        count = next((n for n in counts if all(o[-n:] != own[-n:] for o in others)), len(own))
        # files that differ in their ending alone
        found[path] = path.name if own in others else "/".join(own[-count:])
    return found


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
        told = f"{path} cannot be read ({first_line(reason)}); write it again"
        raise TableError(told) from None
    found = {c: m for c in table.columns if (m := _AUTHORS_CELL.match(c))}
    table = table.rename(columns={c: f"s_{m['image']}_{m['caption']}" for c, m in found.items()})
    cells = {c: m for c in table.columns if (m := tables._CELL.match(c))}
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
        metrics.require_finite(tables.grids_of(table, rule), table["id"].to_list())
    return table


def summary(scores: pd.DataFrame, by: Sequence[str] | None = None) -> dict:
    """The figures of a score table as plain JSON: n, a share a metric, ties, and the same by tag.

    `by` defaults to those of Winoground's tags that the table has, or else all its tags.
    """
    tags = by or [tag for tag in tables.WINOGROUND_TAGS if tag in scores.columns] or tags_of(scores)
    correct, tied = outcomes(scores), tables.ties_of(scores)

    def shares(index: np.ndarray) -> dict:
        right = {metric: float(hits[index].mean()) for metric, hits in correct.items()}
        return {"n": len(index), **right, "ties": int(tied[index].sum())}

    groups = {
        tag: {label: shares(index) for label, index in metrics.groups_of(scores[tag]).items()}
        for tag in tags
    }
    return {**shares(np.arange(len(scores))), "by": groups}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a file of score grids."""
    parser = argparse.ArgumentParser(
        prog="python -m sdslib.results.comparison", description=main.__doc__
    )
    parser.add_argument("--scores", required=True, metavar="FILE", help="CSV or parquet of grids")
    parser.add_argument("--by", help="tag columns, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    by = options.by.split(",") if options.by else None
    try:
        scores = read_scores(options.scores)
        missing = set(by or ()) - set(scores.columns)
        if missing:
            raise TableError(f"no tag {sorted(missing)[0]!r}; there are {tags_of(scores)}")
        found = summary(scores, by)
        for text in tables.cautions(scores):
            print(f"caution: {text}", file=sys.stderr)
    except (TableError, metrics.ScoreError) as reason:
        return ended(reason)
    if options.json:
        print(json.dumps(found))
    else:
        print(tables.tabulate(None, scores, by=list(found["by"])).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
