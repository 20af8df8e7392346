"""Tables of results as people read them: percent with intervals, models side by side.

The tables of `tables` are to compute with: fractions, one row a model. Here they become text.
"""

from __future__ import annotations

import html
from typing import Any

import pandas as pd

_LEFT = (
    "<style>.listing th, .listing td { text-align: left !important; vertical-align: top; }</style>"
)


def share(mean: float, low: float, high: float) -> str:
    """A share with its interval, in percent."""
    return f"{100 * mean:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def points(mean: float, low: float, high: float) -> str:
    """A difference of shares with its interval, in points."""
    text = f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return text.replace("-", "−")


def p_value(p: float) -> str:
    """A p value in three places."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def tag(column: str, label: str) -> str:
    """A label of a tag column in words: Winoground counts predicates, other numbers keep their
    column's name."""
    if column.startswith("num_"):
        return f"{label} predicate{'s' * (label != '1')}"
    return f"{column} {label}" if label.isdigit() else label


def shares(table: pd.DataFrame) -> pd.DataFrame:
    """Shares of right items, one row a metric and label, one column a model.

    Rows of `tables.tabulate` with a column model, and with set and over where they tell sets
    apart. A model that scored fewer items than others says how many. Chance and ties, summed over
    the models, come last where the table has them.
    """
    told = _in_words(table)
    keys = [key for key in ("set", "metric", "over", "label") if key in told]
    apart = [*keys, "tag"] if "tag" in told else keys  # labels of two tags may be one word
    models, rows = list(dict.fromkeys(told["model"])), []
    for key, part in told.groupby(apart, sort=False):
        most, by = part["n"].max(), part.set_index("model")
        row = dict(zip(keys, key, strict=False)) | {"items": int(most)}
        row |= {m: _cell(by.loc[m], most) if m in by.index else "" for m in models}
        if "chance" in part:
            row["chance"] = f"{100 * part['chance'].iloc[0]:.1f}%"
        if "ties" in part:
            row["ties"] = int(part["ties"].fillna(0).sum())
        rows.append(row)
    return pd.DataFrame(rows).set_index(keys)


def _cell(row: pd.Series, most: int) -> str:
    few = f" of {row['n']}" if row["n"] < most else ""
    return share(row["accuracy"], row["low"], row["high"]) + few


def differences(paired: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in points, one row a comparison, metric and label.

    Rows of `tables.compare` with a column comparison. `flips` are items that went right and wrong,
    `smallest` is the difference that so many items and flips would show with power 0.8.
    """
    told = _in_words(paired)
    rows = [
        {
            "comparison": row.comparison, "metric": row.metric, "label": row.label,
            "items": row.n, "difference": points(row.difference, row.low, row.high),
            "p": p_value(row.p), "p Holm": p_value(row.p_holm),
            "flips": f"+{row.up}/−{row.down}", "smallest": f"{100 * row.mdd:.1f}",
        }
        for row in told.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index(["comparison", "metric", "label"])


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    if "tag" not in table:
        return table
    words = [tag(*pair) for pair in zip(table["tag"], table["label"].astype(str), strict=True)]
    return table.assign(label=words)


def percent(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with these columns of shares in percent."""
    return table.assign(**{c: [f"{100 * value:.1f}%" for value in table[c]] for c in columns})


def listing(table: pd.DataFrame, empty: str = "none") -> Any:
    """A table of words, whole where pandas would cut them; `empty` stands where it has no rows."""
    from IPython.display import HTML

    if table.empty:
        return HTML(f"<p>{html.escape(empty)}</p>")
    with pd.option_context("display.max_colwidth", None):
        return HTML(f'<div class="listing">{_LEFT}{table.to_html(index=False, border=0)}</div>')
