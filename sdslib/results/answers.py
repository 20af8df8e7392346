"""The answer to a notebook's question in plain words, made of the figures of its tables.

A difference is claimed only where its interval leaves out zero and, over one seed, the exact test
agrees. Where an interval means nothing a dash stands in its place, with the reason.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import pandas as pd

from sdslib.checks.captions import shortened
from sdslib.config import CONTROL, UNTOUCHED, inert
from sdslib.results.formatting import FEWEST_ITEMS, LEVEL, few, gap, percent_of, share
from sdslib.results.objectives import objective_in_words
from sdslib.results.settings import Setting, control_of, sdsclip_of


class Sentence(str):
    """A text that a notebook shows as a paragraph, not as a string."""

    def _repr_html_(self) -> str:
        return f'<p class="answer">{html.escape(self)}</p>'.replace("\n", "<br>")

    def __repr__(self) -> str:
        return str(self)


# --- differences ---------------------------------------------------------------------------------


def shown(row: Any) -> int:
    """1 where a row of `comparison` shows a gain, -1 where a loss, and 0 where neither.

    Over one seed McNemar's p decides too; where a table has none, the six net flips that the test
    needs at least.
    """
    if row.n < FEWEST_ITEMS:
        return 0
    if getattr(row, "seeds", 1) == 1:
        net = abs(row.difference) * row.n > FEWEST_ITEMS - 0.5
        if not (row.p < LEVEL if hasattr(row, "p") else net):
            return 0
    return int(row.low > 0) - int(row.high < 0)


def change(row: Any) -> str:
    """A difference in points with its interval, or with why there is none."""
    return gap(row).replace(" (", " points (", 1)


def limit(n: int, mdd: float, seeds: int = 1) -> str:
    """The least difference that so many items show: `mdd` of one run."""
    if n < FEWEST_ITEMS:
        return f"{n} items can show no difference at all"
    who = "such a set" if seeds == 1 else "one seed here"
    least = f"{100 * mdd:.1f} points or more four times in five"
    return f"{who} shows a true change of {least}, a smaller one less often"


def gain(first: pd.DataFrame, over: pd.DataFrame | None = None, note: str = "") -> Sentence:
    """Whether the arm gained on its reported set, and more than L_CLIP alone did.

    `first` is `comparison.paired` of one seed, `over` the same over several (`Setting.over_seeds`).
    """
    single = _by_other(first[first["tag"] == "all"])
    rows = single if over is None else _by_other(over)
    row, control = rows[UNTOUCHED], rows.get(CONTROL)
    seeds = getattr(row, "seeds", 1)
    told = f"over {_seeds(seeds)} the {row.metric} score changed by {change(row)}"
    end = limit(row.n, single[UNTOUCHED].mdd, seeds)
    if not row.comparison.startswith(f"{CONTROL} "):
        end = f"{_beside(control)}; {end}"
    return Sentence(f"{_verdict(row, control)}{_noted(note)}: {told}; {end}.")


def of_setting(setting: Setting) -> Sentence:
    """`judged`, and the line that makes the control where there is none, for this machine."""
    told: list[str] = [judged(setting)]
    if setting.control is None:
        told.append(f"The run with L_CLIP alone: {sdsclip_of(control_of(setting.config))}")
    return together(told)


def judged(setting: Setting) -> Sentence:
    """`gain` of a setting, over its seeds where each has its control, and whether it was inert."""
    told: list[str] = [gain(setting.paired, setting.over_seeds, setting.note)]
    history = setting.run.history()
    ratio = history["grad_ratio"].median() if "grad_ratio" in history else 0.0
    if why := inert(setting.config, ratio):
        told.append(f"By its history {why}.")
    return together(told)


def at_a_glance(settings: Iterable[Setting]) -> pd.DataFrame:
    """The verdict of `gain` on each setting, by run, and the differences that it is made of."""
    rows = []
    for setting in settings:
        over = setting.over_seeds
        by = _by_other(setting.paired.query("tag == 'all'") if over is None else over)
        told = {f"against {other}": gap(by[other]) if other in by else "–"
                for other in (UNTOUCHED, CONTROL)}  # fmt: skip
        gained = _verdict(by[UNTOUCHED], by.get(CONTROL))
        first = {"run": setting.run.name, "trained by": objective_in_words(setting.config)}
        rows.append({**first, "gain": gained, "metric": by[UNTOUCHED].metric, **told})
    return pd.DataFrame(rows)


def beside(differences: pd.DataFrame, note: str = "") -> Sentence:
    """Where a run is ahead of each other one: in the first score, and in which others.

    Frame of `side_by_side.differences`. A claim holds over all sets and metrics (Holm).
    """
    rows = differences.assign(p=differences["p_holm"])
    told = [
        _held(list(part.itertuples()), note) for _, part in rows.groupby("comparison", sort=False)
    ]
    end = "Each model is one run: what another seed would bring is in no interval."
    return together([*told, end])


def _held(rows: list[Any], note: str) -> str:
    first, *others = rows
    head = ("no difference shown", "ahead", "behind")[shown(first)]
    told = (
        f"{first.comparison}{_noted(note)}: {head} on {first.set}, where the {first.metric} score"
    )
    told += f" differs by {change(first)}; {limit(first.n, first.mdd)}."
    ways = {word: [f"{row.set} {row.metric} by {change(row)}" for row in others if shown(row) == s]
            for word, s in (("ahead", 1), ("behind", -1))}  # fmt: skip
    moved = [f"{word} in {', '.join(found) or 'none'}" for word, found in ways.items()]
    return told + f" Of the other scores it is {', '.join(moved)}." * bool(others)


def _by_other(table: pd.DataFrame) -> dict[str, Any]:
    """The rows of the first metric, by the model that the arm is held against."""
    rows = table[table["metric"] == table["metric"].iloc[0]].itertuples()
    return {row.comparison.partition(" against ")[2]: row for row in rows}


def _verdict(row: Any, control: Any) -> str:
    if row.comparison.startswith(f"{CONTROL} "):
        head = ("No difference shown", "A gain", "A loss")[shown(row)]
        return f"{head}, and no teacher was at work"
    signs = {shown(row), 0 if control is None else shown(control)}
    if -1 in signs:
        return "No"
    if shown(row) == 0:
        return "No gain shown"
    if control is None:
        return "Not told"
    return "Yes" if signs == {1} else "No gain of the teacher's shown"


def _beside(control: Any) -> str:
    if control is None:
        return "no run with L_CLIP alone stands beside it, so whose doing that is cannot be told"
    told = f"the difference to L_CLIP alone is {change(control)}"
    if control.n < FEWEST_ITEMS:
        return told
    words = "L_CLIP alone did as well, as far as is shown", "more than L_CLIP alone", ""
    return f"{words[shown(control)] or 'L_CLIP alone did better'}: {told}"


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def _noted(note: str) -> str:
    return f" ({note})" if note else ""


# --- ablations -----------------------------------------------------------------------------------


def best(differences: pd.DataFrame, note: str = "", name: str = "") -> Sentence:
    """Which setting gains most over L_CLIP alone, whether that is shown, and what it costs.

    `differences` is that of `studies`; the first measure is what is gained, the others what must
    not suffer. `name` is what the settings are called where they differ, as "sets".
    """
    if differences.empty:
        return Sentence("No run finished, so there is nothing to tell.")
    own = differences["measure"].iloc[0]
    rows = differences.query("measure == @own and against == @CONTROL")
    if rows.empty:
        return Sentence(f"No {name or 'setting'} with a teacher has a control beside it: not told.")
    ranked = sorted(rows.itertuples(), key=lambda row: row.difference, reverse=True)
    first = ranked[0]
    named = f"the best of {len(ranked)}, {first.setting}," if len(ranked) > 1 else first.setting
    head = f"{first.setting} gains most" if shown(first) == 1 else "None shows a gain"
    losing = sum(shown(row) == -1 for row in ranked)
    told = f"{named} changed the {own} score by {change(first)} against L_CLIP "
    parts = [
        f"{told}alone, over {_seeds(first.seeds)}",
        f"{losing} of {len(ranked)} lose" if losing else "",
        _price(differences, first.setting, own),
        "it was picked on the items that tell of it" if len(ranked) > 1 else "",
    ]
    return Sentence(f"{head}{_noted(note)}: {'; '.join(filter(None, parts))}.")


def _price(differences: pd.DataFrame, setting: str, own: str) -> str:
    """What must not suffer, of one setting against L_CLIP alone."""
    rows = differences.query("setting == @setting and measure != @own and against == @CONTROL")
    lost = [f"{row.measure} {change(row)}" for row in rows.itertuples() if shown(row) == -1]
    if lost:
        return f"its price: {', '.join(lost)}"
    return f"no price shown in {', '.join(rows['measure'])}" if len(rows) else ""


def moved(differences: pd.DataFrame, layers: pd.DataFrame, note: str = "") -> Sentence:
    """`best` over sets of parameters, and the layer that moved most in each one's best."""
    told = best(differences, note, "set")
    if layers.empty:
        return told
    top = layers.loc[layers["relative"].idxmax()]
    most = f"{top['layer']} of {top['set']} moved farthest, by {percent_of(top['relative'])}"
    return Sentence(f"{told} Of all layers {most} of its norm.")


# --- shares --------------------------------------------------------------------------------------


def of_chance(row: Any) -> str:
    """A share with its interval beside chance, and on which side of it that is."""
    side = "above" if row.low > row.chance else "below" if row.high < row.chance else "not off"
    told = share(row.accuracy, row.low, row.high)
    return f"{told} of {row.n} items, {side} chance ({percent_of(row.chance)})"


def miniworld(naming: pd.DataFrame, knows: pd.DataFrame) -> Sentence:
    """How well the student names things, and who knows where they stand."""
    first = naming.drop_duplicates("task")  # its first metric, top1
    named = [f"{row.task} {of_chance(row)}" for row in first.itertuples()]
    rows = knows.query("tag == 'all' and metric == 'text'").itertuples()
    where = [f"the {row.model} {of_chance(row)}" for row in rows]
    named_, where_ = ", ".join(named), ", ".join(where)
    return Sentence(
        f"The student names things: {named_}. Where they stand, by the text score: {where_}."
    )


def standing(by_set: pd.DataFrame, agreement: pd.DataFrame) -> Sentence:
    """Student and teacher on the first set, on how many sets each is above chance, and together.

    Frames as of `lab.baseline`: `by_set`, and `agreement_table`.
    """
    first = by_set["set"].iloc[0]
    # rounded as the table of the sets is, so that both say the same figure
    both = by_set[by_set["model"].isin(("student", "teacher"))].round(4)
    own = both[both["set"] == first].drop_duplicates("model")
    here = [f"the {row.model} is right in {of_chance(row)}" for row in own.itertuples()]
    above = both[both["low"] > both["chance"]].groupby("model")["set"].nunique()
    sets = both.groupby("model")["set"].nunique()
    count = [f"the {m} on {above.get(m, 0)} of {n}" for m, n in sets.items()]
    parts = [f"On {first} {', '.join(here)}", f"Above chance are {', '.join(count)} sets"]
    for row in agreement[agreement["set"] == first].to_dict("records"):
        alone = [f"the {m} alone in {percent_of(row[f'{m} alone'])}" for m in sets.index]
        parts.append(f"Of the {row['n']} items that both scored, {', '.join(alone)} is right")
    return Sentence(". ".join(parts) + ".")


def failing(kinds: pd.DataFrame, model: str, n: int, note: str = "") -> Sentence:
    """Why a model fails: its kinds of failure (columns kind, items, share of n), the most frequent
    first, as `failures.kinds` gives them."""
    there = kinds[kinds["items"] > 0]
    if there.empty:
        return Sentence(f"{model} fails on none of {n} items{_noted(note)}.")
    first, *rest = [f"{row.kind} ({percent_of(row.share)})" for row in there.itertuples()]
    more = f"; it also {', '.join(rest)}" if rest else ""
    ways = " An item can fail in several ways." if rest else ""
    return Sentence(f"Of {n} items{_noted(note)}, {model} most often {first}{more}.{ways}")


def verdicts(kinds: pd.DataFrame, sureness: pd.DataFrame) -> Sentence:
    """How often the teacher holds the true caption for likelier, and what its sureness is worth.

    Frames of `lab.verdicts`: `by_kind` and `by_sureness`.
    """
    *each, whole = kinds.itertuples()
    side = "above" if whole.low > whole.reference else "not above"
    told = f"The true one in {share(whole.mean, whole.low, whole.high)} of {whole.n} questions"
    parts = [f"{told}, {side} chance ({percent_of(whole.reference)})"]
    if len(each) > 1:
        ranked = sorted(each, key=lambda row: row.mean)
        ends = [f"“{row.set}” ({percent_of(row.mean)})" for row in (ranked[-1], ranked[0])]
        parts.append(f"best where {ends[0]} is false, worst where {ends[1]} is")
    if len(sureness):
        top = [*sureness.itertuples()][-1]
        word = "too sure" if top.said > top.high else "no surer than right"
        said = f"where it is surest ({percent_of(top.said)}), it is right in {percent_of(top.mean)}"
        parts.append(f"{said} of {top.n}: {word}")
    return Sentence("; ".join(parts) + ".")


# --- one picture ---------------------------------------------------------------------------------


def captions(scores: pd.DataFrame, words: dict[str, pd.DataFrame]) -> Sentence:
    """Which caption each model takes, by how much, and the words without which it would not.

    `scores` and `words` as an answer of the demo has them, the latter by model.
    """
    told = []
    for model, rows in scores.groupby("model", sort=False):
        rows = rows.reset_index(drop=True)
        first = rows.loc[rows["score"].idxmax()]
        caption = shortened(first["caption"])
        if len(rows) == 1:
            told.append(f"{model}: “{caption}” stands alone, so nothing is decided.")
            continue
        if not first["margin"] > first.get("noise", 0.0):
            how = "are too close to call" if first["margin"] else "tie"
            told.append(f"{model}: cannot tell, the best captions {how}.")
            continue
        lead = f"takes “{caption}”, {few(first['margin'])} ahead"
        told.append(f"{model}: {lead}{_decide(words.get(str(model)), int(first.name))}.")
    return Sentence("\n".join(told))


def _decide(words: pd.DataFrame | None, number: int) -> str:
    """The words of a caption that decide, the heaviest first, with what each adds to the score,
    as the table of words has it; or that none does."""
    if words is None:
        return ""
    own = words[words["caption"] == number]
    ranked = own[own["decides"]].sort_values("change", ascending=False, kind="stable")
    found = [f"“{row.word}” ({few(row.change, sign=True)})" for row in ranked.itertuples()]
    if len(found) > 1:
        return f"; without any one of {', '.join(found)} it would not, the heaviest first"
    if found:
        return f"; without {found[0]} it would not"
    return "; it would without any one word"


def together(lines: Iterable[str]) -> Sentence:
    """Several answers, one a line."""
    return Sentence("\n".join(lines))
