"""Tables of results as people read them: percent with intervals, models side by side.

The tables of `tables` are to compute with: fractions, one row a model. Here they become text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from sdslib.checks.guard import from_preset
from sdslib.checks.notebooks import SELDOM
from sdslib.config import Config
from sdslib.io.paths import Shown
from sdslib.results import takeaway

FEWEST_ITEMS = 6  # items with which McNemar's exact test can reach 0.05 at all
LEVEL = 0.05
_LEFT = (
    ".listing th, .listing td { text-align: left !important; vertical-align: top; } "
    ".listing td + td { overflow-wrap: anywhere; }"
)


def share(mean: float, low: float, high: float) -> str:
    """A share with its interval, in percent."""
    return f"{100 * mean:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def points(mean: float, low: float, high: float) -> str:
    """A difference of shares with its interval, in points."""
    return f"{100 * mean:+.1f} ({span(low, high)})".replace("-", "−")


def gap(row: Any) -> str:
    """The difference of a row in points; where its interval means nothing a dash and the reason."""
    told = points(row.difference, row.low, row.high)
    why = "no item changed" if row.low == row.high else ""
    why = f"{row.n} items are too few for an interval" if row.n < FEWEST_ITEMS else why
    return f"{told.partition(' ')[0]} (–: {why})" if why else told


def _remark(row: Any) -> str:
    """Where the interval and the exact test of a difference disagree; the test knows few flips."""
    apart = row.n >= FEWEST_ITEMS and (row.low > 0 or row.high < 0) != (row.p < LEVEL)
    told = f"interval and exact test disagree over {row.up + row.down} flips: nothing is claimed"
    return told if apart else ""


def span(low: float, high: float) -> str:
    """From one difference of shares to another, in points."""
    return f"{100 * low:+.1f} to {100 * high:+.1f}".replace("-", "−")


def number(mean: float, low: float, high: float) -> str:
    """What is no share, with its interval."""
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


def few(value: float, sign: bool = False) -> str:
    """A score or a lead in few characters; a lead that would round to zero keeps its power."""
    form = ("+" if sign else "") + (".1e" if 0 < abs(value) < 5e-5 else ".4f")
    return f"{value:{form}}".replace("-", "−")


def p_value(p: float) -> str:
    """A p value in three places."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def tag(column: str, label: str) -> str:
    """A label of a tag column in words: Winoground counts predicates, other numbers keep their
    column's name."""
    if column.startswith("num_"):
        return f"{label} predicate{'s' * (label != '1')}"
    return f"{column} {label}" if label.isdigit() else label


def shares(table: pd.DataFrame, empty: str = "none") -> Any:
    """Shares of right items, one row a metric and label, one column a model.

    Rows of `tables.tabulate` with a column model, and with set and over where they tell sets
    apart. A model that scored fewer items than others says how many. Chance and ties, summed over
    the models, come last where the table has them. Of a table without rows `empty` is said.
    """
    if table.empty:
        return listing(table, empty)
    told = _in_words(table)
    keys = [key for key in ("set", "metric", "over", "label") if key in told]
    apart = [*keys, "tag"] if "tag" in told else keys  # labels of two tags may be one word
    models, rows = list(dict.fromkeys(told["model"])), []
    for key, part in told.groupby(apart, sort=False):
        most, by = part["n"].max(), part.set_index("model")
        row = dict(zip(keys, key, strict=False)) | {"items": int(most)} | dict.fromkeys(models, "")
        row |= {model: _cell(of, most) for model, of in by.iterrows()}
        if "chance" in part:
            row["chance"] = f"{100 * part['chance'].iloc[0]:.1f}%"
        if "ties" in part:
            known = part["ties"].dropna()
            row["ties"] = int(known.sum()) if len(known) else ""
        rows.append(row)
    return pd.DataFrame(rows).set_index(keys)


def _cell(row: pd.Series, most: int) -> str:
    """A share; where the items say nothing of its spread a dash with the reason."""
    few = f" of {row['n']}" if row["n"] < most else ""
    why = "each label all right or all wrong" if row["low"] == row["high"] else ""
    ties = row.get("ties")  # unknown where the metric has none
    why = "all tied" if pd.notna(ties) and ties == row["n"] else why
    told = share(row["accuracy"], row["low"], row["high"])
    return (f"{percent_of(row['accuracy'])} (–: {why})" if why else told) + few


LEGEND = (
    "Differences are in points of the share of right items, with a 95% bootstrap interval; p is "
    "McNemar's exact one, p Holm corrected over those tested together; flips are items that went "
    "right and wrong; smallest is the true difference that so many items and flips show with power "
    "0.8. text, image: right when captions, or images, are chosen between; group: both."
)


def differences(paired: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in points, one row a comparison, metric and label; or set and metric.

    Rows of `tables.compare` with a column comparison; `LEGEND` says what the columns mean. A column
    `remark` stands where an interval and its exact test disagree.
    """
    told = _in_words(paired)
    keys = ["comparison", *(["set", "metric"] if "set" in told else ["metric", "label"])]
    rows = [
        {**{key: getattr(row, key) for key in keys},
         "items": row.n, "difference": gap(row),
         "p": p_value(row.p), "p Holm": p_value(row.p_holm),
         "flips": f"+{row.up}/−{row.down}", "smallest": f"{100 * row.mdd:.1f}",
         "remark": _remark(row)}
        for row in told.itertuples()
    ]  # fmt: skip
    found = pd.DataFrame(rows).set_index(keys)
    return found if found["remark"].any() else found.drop(columns="remark")


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    if "tag" not in table:
        return table
    words = [tag(*pair) for pair in zip(table["tag"], table["label"].astype(str), strict=True)]
    return table.assign(label=words)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with their intervals beside the untouched student's share.

    Rows of `studies.means`, with whatever else tells them apart in front. A measure without items
    is no share but a plain number, and stays one.
    """
    if table.empty:
        return pd.DataFrame()
    keys = [c for c in table if c not in ("seeds", "n", "mean", "low", "high", "reference")]
    told = table[[*keys, "seeds"]].assign(items=table["n"].astype("Int64"))
    told = told.astype({"items": object}).where(told.notna(), "")
    told["mean"] = [
        (number if pd.isna(row.n) else share)(row.mean, row.low, row.high)
        for row in table[["n", "mean", "low", "high"]].itertuples()
    ]
    told["untouched"] = [percent_of(value) for value in table["reference"]]
    return told.set_index(keys)


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Paired differences over seeds in points, one row a setting and measure.

    Rows of `studies.differences`. Beside each difference stands the range over single seeds, or a
    dash where there is one seed.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table.itertuples():
        told = rows.setdefault((row.setting, row.measure), {"seeds": row.seeds, "items": row.n})
        told[f"against {row.against}"] = gap(row)
        alone = row.seeds == 1
        told[f"single seeds, {row.against}"] = "–" if alone else span(row.smallest, row.largest)
    found = pd.DataFrame.from_dict(rows, orient="index").fillna("")
    return found.rename_axis(["setting", "measure"]) if rows else found


def percent(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The table with these columns of shares in percent, by default all that hold fractions."""
    named = columns or table.select_dtypes("float").columns
    told = table.assign(**{c: [percent_of(value) for value in table[c]] for c in named})
    return told.astype(object).where(told.notna(), "")


def percent_of(value: float) -> str:
    """A share in percent; nothing where there is none."""
    return "" if pd.isna(value) else f"{100 * value:.1f}%"


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown."""
    rows = [[*table.columns], ["---"] * len(table.columns), *table.to_numpy().tolist()]
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def varying(table: pd.DataFrame, *always: str) -> pd.DataFrame:
    """The columns in which the rows differ, and those that shall always stand."""
    differ = table.astype(str).nunique() > 1
    return table[[c for c in table if c in always or differ[c]]]


def narrowed(table: pd.DataFrame) -> pd.DataFrame:
    """The table without the levels of its index in which all rows agree."""
    alike = [n for n in table.index.names if table.index.get_level_values(n).nunique() == 1]
    return table.droplevel(alike) if len(alike) < table.index.nlevels else table


def listing(table: pd.DataFrame, empty: str = "none", more: Iterable[str] = ()) -> Any:
    """A table of words, whole where pandas would cut them; `empty` stands where it has no rows.

    Below it stand the sentences of `more`.
    """
    from IPython.display import HTML

    below = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in more)
    shown = f"<p>{html.escape(empty)}</p>" if table.empty else _listed(table)
    return HTML(shown + takeaway.of_table(table) + below)


def _listed(table: pd.DataFrame) -> str:
    told = table.map(_escaped).rename(columns=_escaped)
    with pd.option_context("display.max_colwidth", None):
        text = f"<style>{_LEFT}</style>{told.to_html(index=False, border=0, escape=False)}"
    return f'<div class="listing">{text}</div>'


def _escaped(cell: Any) -> Any:
    if isinstance(cell, Shown):
        return cell._repr_html_()
    return html.escape(cell, quote=False) if isinstance(cell, str) else cell


def in_force(config: Config, namespace: Mapping[str, Any]) -> Any:
    """The settings of a notebook after its guard; those seldom given are folded.

    From here on the notebook's tables can be taken away, see `takeaway`.
    Columns parameter, in force, preset (what it gave), asked (what was asked for in its place).
    """
    from IPython.display import HTML

    takeaway.in_notebook()
    table = settings_table(config, namespace["_guarded"])
    usual = table["in force"].eq(table["preset"]) & table["asked"].eq("")
    seldom = table["parameter"].isin(SELDOM) & usual
    folded = f"<details><summary>{seldom.sum()} that are seldom given, as the preset has them"
    folded += f"</summary>{_listed(table[seldom])}</details>"
    return HTML(_listed(table[~seldom]) + folded * bool(seldom.any()))


def settings_table(config: Config, asked: Mapping[str, Any]) -> pd.DataFrame:
    """One row a parameter, see `in_force`, as text; in the order of the notebook's cell."""
    preset, values = from_preset(type(config), config.preset), config.model_dump()
    values = {name: values[name] for name in (*asked, *values)}
    rows = [
        {"parameter": name, "in force": str(value), "preset": str(preset[name]),
         "asked": "" if asked.get(name) in (None, preset[name]) else str(asked[name])}
        for name, value in values.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)
