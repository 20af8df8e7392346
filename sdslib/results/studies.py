"""What settings show over their seeds: means, paired differences, figures by tag, trade-offs.

Every run has its control. Intervals are 95% bootstraps over seeds and items at once. Nothing here
loads torch. S seeds, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdslib import metrics, tables
from sdslib.config import CONTROL, UNTOUCHED
from sdslib.io.run import Run
from sdslib.results import comparison, statistics
from sdslib.results.settings import Setting, StudyError, reported, said


def measures(setting: Setting) -> dict[str, tuple[str, str]]:
    """What a setting is judged by: name -> (scored set, metric); the text score first.

    Then the sets that must not suffer, each by its first metric, if all its runs and controls have
    scored them. Validation is not among them: it is chosen on, not reported.
    """
    run, own = setting.run, reported(setting.run)
    every = [{*other.score_names()} for pair in setting.pairs for other in pair if other]
    scored = sorted(set.intersection(*every))
    names = [n for n in scored if not n.startswith(UNTOUCHED) and n != "validation"]
    first = {name: next(iter(outcomes(run, name))) for name in names}
    found = {first[own]: (own, first[own])}
    others = {n.removeprefix("mini-").replace("zeroshot-", "zero-shot "): n for n in names}
    return found | {short: (n, first[n]) for short, n in others.items() if n != own}


def drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of at most three measures, as many as fit beside each other: the reported one, and
    of those that must not suffer the last two."""
    names = list(dict.fromkeys(table["measure"]))
    return table[table["measure"].isin([*names[:1], *names[1:][-2:]])]


def outcomes(run: Run, name: str) -> dict[str, np.ndarray]:
    """Right or wrong of every item, [N] a metric, in the order of the items' ids."""
    return _outcomes(run.path, name)


@lru_cache(maxsize=4096)
def _outcomes(path: Path, name: str) -> dict[str, np.ndarray]:
    return tables.outcomes(_by_id(Run(path), name))


def _by_id(run: Run, name: str) -> pd.DataFrame:
    return run.scores(name).sort_values("id", kind="stable", ignore_index=True)


def _stack(runs: Sequence[Run], name: str, metric: str) -> np.ndarray:
    return np.array([outcomes(run, name)[metric] for run in runs], dtype=float)


def _kept(run: Run, name: str) -> str | None:
    """Under which name the scores of the untouched student on a set are kept, if they are."""
    return kept if (kept := f"{UNTOUCHED}-{name}") in run.score_names() else None


def means(found: Sequence[Setting]) -> pd.DataFrame:
    """Shares of right items by setting and measure.

    Columns setting, measure, seeds, n, mean, low, high, reference (the untouched student's share,
    where it is kept).
    """
    rows = []
    for setting in found:
        for measure, (name, metric) in measures(setting).items():
            share = statistics.over_seeds(_stack(setting.runs, name, metric), 0)
            before = _kept(setting.run, name)
            rows.append({
                "setting": setting.label, "measure": measure, "seeds": len(setting.pairs),
                "n": share.n, "mean": share.mean, "low": share.low, "high": share.high,
                "reference": outcomes(setting.run, before)[metric].mean() if before else None,
            })  # fmt: skip
    return pd.DataFrame(rows)


def differences(found: Sequence[Setting], every_metric: bool = False) -> pd.DataFrame:
    """Each setting against the untouched student and against L_CLIP alone, paired by seed and item.

    Columns setting, measure, against, and those of `tables.compare_over_seeds`. `every_metric`
    adds image and group scores to the text score. A set whose scores of the untouched student were
    not kept has no row against it.
    """
    rows = []
    for setting in found:
        for measure, (name, metric) in measures(setting).items():
            others = {}
            if before := _kept(setting.run, name):
                others[UNTOUCHED] = [run.scores(before) for run in setting.runs]
            if setting.values["arm"] != "clip-only":
                others[CONTROL] = [control.scores(name) for _, control in setting.pairs if control]
            after = [run.scores(name) for run in setting.runs]
            for against, scores in others.items():
                table = comparison.compare_over_seeds(scores, after)
                if not (every_metric and name == reported(setting.run)):
                    table = table[table["metric"] == metric]
                facts = {"setting": setting.label, "measure": measure, "against": against}
                rows += [facts | row for row in table.to_dict("records")]
    return pd.DataFrame(rows)


def by_tag(found: Sequence[Setting], tag: str = "collapsed_tag") -> pd.DataFrame:
    """Means over seeds on the reported set, all items and by tag, the untouched student first.

    Columns as `figures.scores_by_tag` reads them: model, tag, label, metric, n, accuracy, low,
    high, chance. All runs report the same set.
    """
    first = found[0].run
    name = reported(first)
    kept = _kept(first, name)
    models = {UNTOUCHED: ([first], kept)} if kept else {}
    models |= {setting.label: (setting.runs, name) for setting in found}
    table = _by_id(first, name)
    groups = [("all", "all", np.arange(len(table)))]
    if tag in table:
        groups += [(tag, text, index) for text, index in metrics.groups_of(table[tag]).items()]
    chance = tables.tabulate(None, table, by=()).set_index("metric")["chance"]
    rows = []
    for model, (runs, scored) in models.items():
        for metric in outcomes(first, name):
            stack = _stack(runs, scored, metric)
            for group, text, index in groups:
                share = statistics.over_seeds(stack[:, index], 0)
                rows.append({
                    "model": model, "tag": group, "label": text, "metric": metric,
                    "seeds": len(runs), "n": len(index), "accuracy": share.mean,
                    "low": share.low, "high": share.high, "chance": float(chance[metric]),
                })  # fmt: skip
    return pd.DataFrame(rows)


def gradient_ratio(found: Sequence[Setting]) -> pd.DataFrame:
    """How strong L_SDS pulls at the student beside L_CLIP: |weight grad L_SDS| / |grad L_CLIP|.

    The median over the steps at which it was measured, then over seeds its mean and its range:
    columns setting, measure, seeds, mean, low, high. Settings without L_SDS have no row.
    """
    rows = []
    for setting in found:
        kept = [history for run in setting.runs if "grad_ratio" in (history := run.history())]
        values = np.array([history["grad_ratio"].median() for history in kept])
        values = values[~np.isnan(values)]
        if len(values):
            rows.append({
                "setting": setting.label, "measure": "gradient ratio", "seeds": len(values),
                "mean": values.mean(), "low": values.min(), "high": values.max(),
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["setting", "measure", "seeds", "mean", "low", "high"])


def dial(found: Sequence[Setting]) -> str | None:
    """The number in which an arm's settings differ, all else being alike; None where there is none.

    It takes three values or more. For `sds_weight` there is one arm, and L_CLIP alone is weight 0.
    """
    arms: dict[str, list[Setting]] = {}
    for setting in found:
        arms.setdefault(setting.values["arm"], []).append(setting)
    names = {name for alike in arms.values() for name in _differing(alike)}
    if len(names) != 1 or (names == {"sds_weight"} and not arms.keys() <= {"sds", "clip-only"}):
        return None
    places = [_at(setting, *names) for setting in found]
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in places)
    return names.pop() if numbers and len({*places}) > 2 else None


def _differing(alike: Sequence[Setting]) -> set[str]:
    names = {name for setting in alike for name in setting.values} - {"seed"}
    return {n for n in names if len({repr(getattr(s.config, n)) for s in alike}) > 1}


def _at(setting: Setting, name: str) -> Any:
    weightless = name == "sds_weight" and setting.values["arm"] == "clip-only"
    return 0.0 if weightless else getattr(setting.config, name)


def curve(found: Sequence[Setting], over: str = "sds_weight") -> pd.DataFrame:
    """The trade-off over a parameter: text score, what must not suffer, and the gradients' ratio.

    Columns `over`, measure, seeds, mean, low, high, reference, and series, the arm, except over
    `sds_weight`; as `figures.tradeoff` reads it.
    """
    rows = []
    for setting in found:
        series = "" if over == "sds_weight" else said("arm", setting.values["arm"])
        facts = {over: float(_at(setting, over)), "series": series}
        both = (means([setting]), gradient_ratio([setting]))
        rows += [table.drop(columns="setting").assign(**facts) for table in both if len(table)]
    return pd.concat(rows, ignore_index=True)


def placed(found: Sequence[Setting], places: pd.DataFrame) -> pd.DataFrame:
    """What each setting gains over L_CLIP alone, over a number that was measured of it.

    `places` has two columns: a parameter's values, and the number. Columns: the number's name,
    measure, mean, low, high, reference (0), and series, what else the settings differ in; as
    `figures.tradeoff` reads it. StudyError for a value without a number.
    """
    name, number = places.columns
    known = {str(value): place for value, place in places.itertuples(index=False)}
    own = [setting for setting in found if setting.values["arm"] != "clip-only"]
    if absent := {str(getattr(s.config, name)) for s in own} - known.keys():
        raise StudyError(f"places has no {number} of {name} {', '.join(sorted(absent))}")
    others, rows = _differing(own) - {name}, []
    for setting in own:
        first, table = next(iter(measures(setting))), differences([setting])
        gained = table[(table["measure"] == first) & (table["against"] == CONTROL)]
        series = ", ".join(said(n, setting.values[n]) for n in sorted(others))
        facts = {number: float(known[str(getattr(setting.config, name))]), "series": series,
                 "measure": f"{first} above {CONTROL}", "reference": 0.0}  # fmt: skip
        rows += [facts | {"mean": r.difference, "low": r.low, "high": r.high}
                 for r in gained.itertuples()]  # fmt: skip
    return pd.DataFrame(rows).sort_values(["series", number], ignore_index=True)
