"""Finished runs by setting and seed: means with intervals, paired differences, figures by tag.

A setting is what runs share that differ in their seed alone. Every run comes with its control, the
same run with L_CLIP alone (itself where it is one). Intervals are 95% bootstraps over seeds and
items at once. Nothing here loads torch. S seeds, N items.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sdslib import metrics, tables
from sdslib.config import FinetuneConfig, set_name
from sdslib.io.identity import recipe_of
from sdslib.io.runs import Run
from sdslib.results import comparison, statistics

UNTOUCHED, CONTROL = "untouched", "L_CLIP only"
Pair = tuple[Run, Run]
_APART = ("seed", "sds_weight", "arm")


class StudyError(ValueError):
    """Runs that do not make a study; says which is missing and what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: the reader of a notebook needs the message, not our stack.
        return [str(self)]


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone, each with its control, by seed."""

    label: str
    values: Mapping[str, Any]
    pairs: tuple[Pair, ...]

    @property
    def runs(self) -> list[Run]:
        """The runs, by seed."""
        return [run for run, _ in self.pairs]

    @property
    def controls(self) -> list[Run]:
        """Their controls, in the same order."""
        return [control for _, control in self.pairs]


# --- which runs belong together ------------------------------------------------------------------


def config_of(run: Run) -> FinetuneConfig:
    """The run's parameters as a config; what a younger library added has its default."""
    known = {k: v for k, v in run.params.items() if k in FinetuneConfig.model_fields}
    return FinetuneConfig(**known)


class Controls:
    """Finds a run's control among others: the same parameters and data, with L_CLIP alone.

    Of several the one of the same recipe, then the newest. A run with L_CLIP alone is its own.
    """

    def __init__(self, among: Iterable[Run]) -> None:
        self._known: dict[str, list[Run]] = {}
        for run in among:
            if run.params.get("arm") == "clip-only":
                self._known.setdefault(_control_key(run), []).append(run)

    def of(self, run: Run) -> Run | None:
        """The run's control, or None where it is not among those given."""
        if run.params["arm"] == "clip-only":
            return run
        own = run.identity
        same = [r for r in self._known.get(_control_key(run), ()) if _same_data(r, own["data"])]
        made = recipe_of(own)
        alike = {r.path: recipe_of(r.identity) == made for r in same} if len(same) > 1 else {}
        newest = sorted(same, key=lambda r: str(r.status()["updated"])) if len(same) > 1 else same
        return max(newest[::-1], key=lambda r: alike.get(r.path, True), default=None)


def _control_key(run: Run) -> str:
    plain = config_of(run).model_copy(update={"arm": "clip-only", "sds_weight": 0.0})
    return _key(plain.identity())


def _same_data(run: Run, data: Mapping[str, Any]) -> bool:
    """Whether what both read had the same content; a control reads no teacher."""
    own = run.identity["data"]
    return all(own[name] == data[name] for name in own.keys() & data.keys())


def paired(runs: Iterable[Run], among: Iterable[Run] | None = None) -> list[Pair]:
    """Every run with its control, which is one of `among` (the runs themselves by default).

    StudyError names a run whose control is missing.
    """
    runs = list(runs)
    controls, found = Controls(runs if among is None else among), []
    for run in runs:
        there = controls.of(run)
        if there is None:
            raise StudyError(f"the control of {run.name} is missing; it stands beside its run")
        found.append((run, there))
    return found


def settings(pairs: Iterable[Pair]) -> list[Setting]:
    """The pairs by setting, in the order in which settings first occur; labels say what differs."""
    groups: dict[str, list[tuple[dict[str, Any], Pair]]] = {}
    for pair in pairs:
        values = config_of(pair[0]).identity()
        shared = {name: value for name, value in values.items() if name != "seed"}
        groups.setdefault(_key(shared), []).append((values, pair))
    firsts = [group[0][0] for group in groups.values()]
    found = []
    for first, group in zip(firsts, groups.values(), strict=True):
        by_seed = sorted(group, key=lambda entry: entry[0]["seed"])
        chosen = tuple(pair for _, pair in by_seed)
        found.append(Setting(label(first, firsts), first, chosen))
    return found


def label(values: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """What distinguishes these values: the arm, its weight where arms have several, the rest."""
    arm, rest = label_parts(values, among)
    return ", ".join(filter(None, (arm, rest)))


def label_parts(values: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A label's two halves: the arm and its weight, and what else differs (often nothing)."""
    names = [n for n in values if n not in _APART]
    names = [n for n in names if len({_key(v[n]) for v in among if n in v}) > 1]
    weights = {_key(v.get("sds_weight")) for v in among if v["arm"] == values["arm"]}
    words = [CONTROL if values["arm"] == "clip-only" else str(values["arm"])]
    words += [f"{values['sds_weight']:g}"] if len(weights) > 1 else []
    rest = [f"{name} {'all' if values[name] is None else values[name]}" for name in names]
    return ", ".join(words), ", ".join(rest)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


# --- what they show ------------------------------------------------------------------------------


def reported(run: Run) -> str:
    """The name under which a run keeps the scores of the benchmark that it reports."""
    return set_name(run.params["benchmark"])


def measures(run: Run) -> dict[str, tuple[str, str]]:
    """What a run is judged by: name -> (scored set, metric); the text score first.

    Then the sets that must not suffer, each by its first metric. Validation is not among them: it
    is chosen on, not reported.
    """
    own = reported(run)
    names = [n for n in run.score_names() if not n.startswith(UNTOUCHED) and n != "validation"]
    first = {name: next(iter(outcomes(run, name))) for name in names}
    found = {first[own]: (own, first[own])}
    return found | {_short(n): (n, first[n]) for n in names if n != own}


def drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of at most three measures, as many as fit beside each other: the reported one, and
    of those that must not suffer the last two."""
    names = list(dict.fromkeys(table["measure"]))
    return table[table["measure"].isin([*names[:1], *names[1:][-2:]])]


def _short(name: str) -> str:
    return name.removeprefix("mini-").replace("zeroshot-", "zero-shot ")


def outcomes(run: Run, name: str) -> dict[str, np.ndarray]:
    """Right or wrong of every item, [N] a metric, in the order of the items' ids."""
    return _outcomes(run.path, name)


@lru_cache(maxsize=4096)
def _outcomes(path: Path, name: str) -> dict[str, np.ndarray]:
    table = Run(path).scores(name)
    return tables.outcomes(table.sort_values("id", kind="stable").reset_index(drop=True))


def means(found: Sequence[Setting], among: Sequence[str] | None = None) -> pd.DataFrame:
    """Shares of right items by setting and measure.

    Columns setting, measure, seeds, n, mean, low, high, reference (the untouched student's share,
    where it is kept). `among` chooses measures.
    """
    rows = []
    for setting in found:
        for measure, (name, metric) in measures(setting.runs[0]).items():
            if among is not None and measure not in among:
                continue
            share = statistics.over_seeds(_stack(setting.runs, name, metric), 0)
            before = _untouched(setting.runs[0], name)
            rows.append({
                "setting": setting.label, "measure": measure, "seeds": len(setting.pairs),
                "n": share.n, "mean": share.mean, "low": share.low, "high": share.high,
                "reference": float(before[metric].mean()) if before else None,
            })  # fmt: skip
    return pd.DataFrame(rows)


def _stack(runs: Sequence[Run], name: str, metric: str) -> np.ndarray:
    return np.array([outcomes(run, name)[metric] for run in runs], dtype=float)


def _untouched(run: Run, name: str) -> dict[str, np.ndarray] | None:
    kept = f"{UNTOUCHED}-{name}"
    return outcomes(run, kept) if kept in run.score_names() else None


def differences(found: Sequence[Setting], every_metric: bool = False) -> pd.DataFrame:
    """Each setting against the untouched student and against L_CLIP alone, paired by seed and item.

    Columns setting, measure, against, and those of `tables.compare_over_seeds`. `every_metric`
    adds image and group scores to the text score. A set whose scores of the untouched student were
    not kept has no row against it.
    """
    rows = []
    for setting in found:
        for measure, (name, metric) in measures(setting.runs[0]).items():
            others = {}
            if f"{UNTOUCHED}-{name}" in setting.runs[0].score_names():
                others[UNTOUCHED] = [r.scores(f"{UNTOUCHED}-{name}") for r in setting.runs]
            if setting.values["arm"] != "clip-only":
                others[CONTROL] = [run.scores(name) for run in setting.controls]
            after = [run.scores(name) for run in setting.runs]
            for against, before in others.items():
                table = comparison.compare_over_seeds(before, after)
                if not (every_metric and name == reported(setting.runs[0])):
                    table = table[table["metric"] == metric]
                facts = {"setting": setting.label, "measure": measure, "against": against}
                rows += [facts | row for row in table.to_dict("records")]
    return pd.DataFrame(rows)


def by_tag(found: Sequence[Setting], tag: str = "collapsed_tag") -> pd.DataFrame:
    """Means over seeds on the reported set, all items and by tag, the untouched student first.

    Columns as `figures.scores_by_tag` reads them: model, tag, label, metric, n, accuracy, low,
    high, chance. All runs report the same set.
    """
    first = found[0].runs[0]
    name, models = reported(first), dict[str, tuple[list[Run], str]]()
    if f"{UNTOUCHED}-{name}" in first.score_names():
        models[UNTOUCHED] = ([first], f"{UNTOUCHED}-{name}")
    models |= {setting.label: (setting.runs, name) for setting in found}
    table = first.scores(name).sort_values("id", kind="stable").reset_index(drop=True)
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
        medians = [_median_ratio(run) for run in setting.runs]
        values = np.array([value for value in medians if value is not None])
        if len(values):
            rows.append({
                "setting": setting.label, "measure": "gradient ratio", "seeds": len(values),
                "mean": values.mean(), "low": values.min(), "high": values.max(),
            })  # fmt: skip
    return pd.DataFrame(rows, columns=["setting", "measure", "seeds", "mean", "low", "high"])


def is_curve(found: Sequence[Setting]) -> bool:
    """Whether three settings or more differ in `sds_weight` alone (L_CLIP alone is weight 0)."""
    among = [setting.values for setting in found]
    alike = not any(label_parts(values, among)[1] for values in among)
    return alike and len(found) > 2 and {v["arm"] for v in among} <= {"sds", "clip-only"}


def curve(found: Sequence[Setting]) -> pd.DataFrame:
    """The trade-off over `sds_weight`: text score, what must not suffer, and the gradients' ratio.

    Columns sds_weight, measure, seeds, mean, low, high, reference, as `figures.tradeoff` reads it.
    """
    table = pd.concat([means(found), gradient_ratio(found)], ignore_index=True)
    weight = {setting.label: float(setting.values.get("sds_weight", 0)) for setting in found}
    table.insert(0, "sds_weight", table.pop("setting").map(weight))
    return table


def _median_ratio(run: Run) -> float | None:
    history = run.history()
    known = history["grad_ratio"].dropna() if "grad_ratio" in history else history.iloc[:0]
    return float(known.median()) if len(known) else None
