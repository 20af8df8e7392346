"""Finished runs by setting: which belong together, the control of each, and their names in words.

A setting is what runs share that differ in their seed alone. A run's control is the same run with
L_CLIP alone (itself where it is one). Loads torch only where a first run has to be made.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sdslib.checks.notebooks import CompareConfig, ReportConfig
from sdslib.config import ARMS, CONTROL, UNTOUCHED, FinetuneConfig, ModelsConfig, preset, set_name
from sdslib.io import runs
from sdslib.io.identity import recipe_of
from sdslib.io.paths import folder_at, project_path, without_places
from sdslib.io.run import Run
from sdslib.io.wording import InWords, ParameterError, listed
from sdslib.results import comparison
from sdslib.results.objectives import objective_in_words, own_term

if TYPE_CHECKING:
    from sdslib.experiment import Show

RUNS, SMALL = "reports/runs", "small"
# What is made where there is no run yet: enough to fill every part of a report in a minute.
SMALL_RUN: dict[str, Any] = {
    **{"run": SMALL, "steps": 20, "batch_size": 16, "warmup": 3, "sds_weight": 0.01},
    **{"bridge_pairs": 256, "eval_items": 200, "eval_every": 10},
}
_APART = ("seed", "sds_weight", "arm")  # of a label: told first, or not at all
TERM_WEIGHTS = ("negative_weight", "sds_weight")
# How an objective is followed, which a search finds for each arm, L_CLIP alone among them.
TUNED = frozenset({"lr", "weight_decay", "warmup", "grad_clip", "interpolation"})
CONTENT = "fingerprint"  # among the attrs of scores, of a set that is not in the run's id
Pair = tuple[Run, Run | None]


class StudyError(InWords, ValueError):
    """Runs that do not make a study; says which is missing and what to do."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone, by seed, each with its control where there is one.

    What is told by item is of the first.
    """

    label: str
    pairs: tuple[Pair, ...]

    @property
    def runs(self) -> list[Run]:
        """The runs, by seed."""
        return [run for run, _ in self.pairs]

    @property
    def run(self) -> Run:
        """The run that stands for the setting."""
        return self.pairs[0][0]

    @property
    def control(self) -> Run | None:
        """The control of that run."""
        return self.pairs[0][1]

    @cached_property
    def config(self) -> FinetuneConfig:
        """The parameters of that run."""
        return config_of(self.run)

    @cached_property
    def values(self) -> dict[str, Any]:
        """Those that change numbers."""
        return self.config.identity()

    @property
    def title(self) -> str:
        """What was trained, in a few words."""
        c = self.config
        return f"{objective_in_words(c)}: {c.trainable}, {duration(c)} of {c.batch_size} pairs"

    @property
    def note(self) -> str:
        """What stands in the titles of figures."""
        return self.config.label

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Score tables on the reported set by model: untouched, L_CLIP only, and the arm."""
        return score_tables(self.run, self.control)

    @cached_property
    def paired(self) -> pd.DataFrame:
        """`comparison.paired` of these: the arm against each other model."""
        return comparison.paired(self.scores)

    @cached_property
    def over_seeds(self) -> pd.DataFrame | None:
        """The same over all seeds, see `comparison.compare_over_seeds`; None where there is one,
        or where one has a control and another has none."""
        if len(self.runs) == 1 or len({control is None for _, control in self.pairs}) > 1:
            return None
        return comparison.paired_over_seeds([score_tables(*pair) for pair in self.pairs])


# --- which runs belong together ------------------------------------------------------------------


def config_of(run: Run) -> FinetuneConfig:
    """The run's parameters as a config; what a younger library added has its default."""
    known = {k: v for k, v in run.params.items() if k in FinetuneConfig.model_fields}
    return FinetuneConfig(**known)


def reported(run: Run) -> str:
    """The name under which a run keeps the scores of the benchmark that it reports."""
    return set_name(run.params["benchmark"])


def content_of(run: Run, name: str) -> str | None:
    """The fingerprint of a set that the run has scored; None where none was kept."""
    return run.identity["data"].get(name) or run.scores(name).attrs.get(CONTENT)


class Controls:
    """Finds a run's control among others: the same parameters and data, with L_CLIP alone.

    Of several one of the same recipe, then of the same folder, then the newest.
    """

    def __init__(self, among: Iterable[Run]) -> None:
        self._known: dict[str, list[Run]] = {}
        for run in among:
            if run.params.get("arm") == "clip-only":
                self._known.setdefault(_control_key(run), []).append(run)

    def of(self, run: Run) -> Run | None:
        """The run's control, itself where it is one; None where it is not among those given."""
        if run.params["arm"] == "clip-only":
            return run
        own, folder = run.identity, run.path.parent
        same = [r for r in self._known.get(_control_key(run), ()) if _same_data(r, own["data"])]
        if len(same) < 2:  # nearly always; then no more files are read
            return same[0] if same else None

        def rank(other: Run) -> tuple[bool, bool, str]:
            alike = recipe_of(other.identity) == recipe_of(own)
            return alike, other.path.parent == folder, str(other.status()["updated"])

        return max(same, key=rank)

    @cached_property
    def _tuned(self) -> dict[str, list[Run]]:
        """All of them by what a search leaves as it is."""
        found: dict[str, list[Run]] = {}
        for run in (run for alike in self._known.values() for run in alike):
            found.setdefault(_control_key(run, TUNED), []).append(run)
        return found

    def tuned(self, run: Run) -> Run | None:
        """L_CLIP alone as it was tuned for itself: like the run's control in all but `TUNED`.

        None where none is there, or several are and nothing says which.
        """
        found, data = self._tuned.get(_control_key(run, TUNED), ()), run.identity["data"]
        same = [other for other in found if _same_data(other, data)]
        return same[0] if len(same) == 1 else None


def _control_key(run: Run, without: Collection[str] = ()) -> str:
    values = control_of(config_of(run)).identity()
    return _key({name: value for name, value in values.items() if name not in without})


def control_of(config: FinetuneConfig) -> FinetuneConfig:
    """The parameters of the same run with L_CLIP alone, of files that need not be there."""
    return config.model_copy(update={"arm": "clip-only", "sds_weight": 0.0, "run": None})


def _same_data(run: Run, data: Mapping[str, Any]) -> bool:
    """Whether what both read had the same content; a control reads no teacher."""
    own = run.identity["data"]
    return all(own[name] == data[name] for name in own.keys() & data.keys())


def paired(found: Iterable[Run], among: Iterable[Run] | None = None) -> list[tuple[Run, Run]]:
    """Every run with its control, which is one of `among` (the runs themselves by default).

    Where arms were tuned each for itself, that is L_CLIP alone as it was tuned, if it is one of the
    runs. StudyError names a run whose control is missing.
    """
    found = list(found)
    own = Controls(found)
    controls, pairs = own if among is None else Controls(among), []
    for run in found:
        control = controls.of(run) or own.tuned(run)
        if control is None:
            raise StudyError(
                f"the control of {run.name} is missing; give L_CLIP alone with the same seed too, "
                f"the same but for {', '.join(sorted(TUNED))} at most"
            )
        pairs.append((run, control))
    return pairs


def settings(pairs: Iterable[Pair], untold: Collection[str] = ()) -> list[Setting]:
    """The pairs by setting, in the order in which settings first occur; labels say what differs,
    without the parameters `untold`.

    A seed that was run twice (with other code or data) is no second seed: it goes to a further
    setting.
    """
    groups: dict[tuple[str, int], list[tuple[dict[str, Any], Pair]]] = {}
    times: Counter[str] = Counter()
    for pair in pairs:
        values = config_of(pair[0]).identity()
        shared = {name: value for name, value in values.items() if name != "seed"}
        groups.setdefault((_key(shared), times[_key(values)]), []).append((values, pair))
        times[_key(values)] += 1
    among = [group[0][0] for group in groups.values()]
    found = []
    for (_, time), group in groups.items():
        words = label(group[0][0], among, untold) + f" ({time + 1})" * (time > 0)
        group.sort(key=lambda entry: entry[0]["seed"])
        found.append(Setting(words, tuple(pair for _, pair in group)))
    return found


def group(chosen: Iterable[Run], there: Iterable[Run] | None = None) -> list[Setting]:
    """The chosen runs by setting, each with its control, which has not to be among them.

    It is one of `there`, by default of all finished runs of their folders. A run with L_CLIP alone
    is a setting of its own only where no other chosen run has it as control.
    """
    chosen = list({run.path: run for run in chosen}.values())
    if there is None:
        folders = dict.fromkeys(run.path.parent for run in chosen)
        there = [run for folder in folders for run in runs.finished_runs(folder)]
    controls = Controls(there)
    pairs = [(run, controls.of(run)) for run in chosen]
    used = {control.path for run, control in pairs if control and control.path != run.path}
    return settings(pair for pair in pairs if pair[0].path not in used)


def members(found: Iterable[Setting]) -> list[Pair]:
    """Every run once, with its control; a control stands by itself."""
    once: dict[Path, Pair] = {}
    for run, control in (pair for setting in found for pair in setting.pairs):
        once[run.path] = (run, control)
        if control is not None:
            once.setdefault(control.path, (control, control))
    return list(once.values())


def score_tables(run: Run, control: Run | None, name: str | None = None) -> dict[str, pd.DataFrame]:
    """Scores by model: the untouched student's, L_CLIP's alone where it is there, and the run's.

    `name` is that of a scored set; the reported one by default.
    """
    name = name or reported(run)
    arm = CONTROL if run.params["arm"] == "clip-only" else run.params["arm"]
    found = {UNTOUCHED: run.scores(f"{UNTOUCHED}-{name}")}
    found |= {CONTROL: control.scores(name)} if control and name in control.score_names() else {}
    return found | {arm: run.scores(name)}


# --- in words ------------------------------------------------------------------------------------


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def of_arms(among: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was tuned for each arm: numbers that differ between arms and within none."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for values in among:
        arms.setdefault(values["arm"], []).append(values)
    told = {n: [{_key(v[n]) for v in alike if n in v} for alike in arms.values()]
            for n in sorted({*TUNED, *TERM_WEIGHTS})}  # fmt: skip
    one_each = {n: found for n, found in told.items() if all(len(own) < 2 for own in found)}
    return [n for n, found in one_each.items() if len(set[str]().union(*found)) > 1]


def label(
    values: Mapping[str, Any], among: Sequence[Mapping[str, Any]], untold: Collection[str] = ()
) -> str:
    """What distinguishes these values: the arm, its weight where arms have several, the rest."""
    return ", ".join(filter(None, label_parts(values, among, untold)))


def label_parts(
    values: Mapping[str, Any], among: Sequence[Mapping[str, Any]], untold: Collection[str] = ()
) -> tuple[str, str]:
    """A label's two halves: the arm and its weight, and what else differs (often nothing)."""
    names = [n for n in values if n not in _APART and n not in untold]
    alike = [v for v in among if v["arm"] == values["arm"]]
    names = [n for n in names if len({_key(v.get(n)) for v in among if n in v or v in alike}) > 1]
    weights = {_key(v.get("sds_weight")) for v in alike}
    words = [said("arm", values["arm"])]
    words += [f"{values['sds_weight']:g}"] if len(weights) > 1 else []
    return ", ".join(words), ", ".join(said(name, values[name]) for name in names)


def said(name: str, value: Any) -> str:
    """A parameter and its value in words; an arm is called by its own name."""
    if name == "arm":
        return CONTROL if value == "clip-only" else str(value)
    return f"{name} {'all' if value is None else value}"


def duration(config: FinetuneConfig) -> str:
    """How long the run trained, in its own unit."""
    return f"{config.steps} steps" if config.steps else f"{config.epochs} epochs"


def made_by(run: Run) -> str:
    """What stands beside a model's name: its run, how long that trained, seed, and items."""
    name = reported(run)
    items = f", {len(run.scores(name))} items" if name in run.score_names() else ""
    return f"run {run.name}: {duration(config_of(run))}, seed {run.params['seed']}{items}"


def histories(found: Mapping[str, Run]) -> pd.DataFrame:
    """The histories of runs below one another, with what they are called in a column `run`, and the
    name of the term that the first of them weighs in `attrs`."""
    parts = [run.history().assign(run=name) for name, run in found.items()]
    whole = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    whole.attrs["term"] = next(filter(None, (own_term(config_of(r)) for r in found.values())), "")
    return whole


def parameters_as_text(found: Sequence[Run]) -> pd.DataFrame:
    """Every parameter of runs as text: a row a run, by name; without where they are kept."""
    params = {run.name: without_places(config_of(run).model_dump()) for run in found}
    told = pd.DataFrame(params, dtype=object).T.map(str)
    return told.drop(columns=["run", "runs"]).rename_axis("run")


def papermill_of(config: FinetuneConfig) -> str:
    """The line that makes the run: every parameter in which it differs from its preset."""
    words = ["papermill", "notebooks/02_finetune.ipynb", "out.ipynb"]
    for name, value in _given(config).items():
        # papermill reads numbers and truth values out of -p; what is text goes through -r.
        words += ["-r" if isinstance(value, str) else "-p", name, shlex.quote(str(value))]
    return " ".join(words)


def sdsclip_of(config: FinetuneConfig) -> str:
    """The same as a line of `sdsclip`; its switches change no number."""
    words = [f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
             for name, value in _given(config).items() if not isinstance(value, bool)]  # fmt: skip
    return " ".join(["sdsclip finetune", *words])


def _given(config: FinetuneConfig) -> dict[str, Any]:
    """The parameters that make a run, beside those of the preset."""
    standard = preset(config.preset).model_dump()
    given = {k: v for k, v in config.model_dump().items() if v is not None and v != standard[k]}
    left_out = {"device", "threads", "num_workers", "resume", "tracker", "preset"}
    left_out |= {"runs"} if config.runs == "reports/runs" else set()
    left_out |= ARMS[config.arm].unread | {"verdicts"} if ARMS[config.arm].sds is None else set()
    given = {name: value for name, value in given.items() if name not in left_out}
    return ({"preset": config.preset} if config.preset != "mini" else {}) | given


# --- of which a report tells ---------------------------------------------------------------------


def collect(config: ReportConfig, progress: Callable[[str], Show] | None = None) -> list[Setting]:
    """The settings to report on: of the runs named, or of all finished ones, the newest first.

    Where none is finished a small run and its control are made first. `progress(label)` gives what
    shows their steps. ParameterError names a run that is not there or not finished.
    """
    if names := named_runs(config):
        there, chosen = None, [named(name, root(config)) for name in names]
    else:
        there = chosen = runs.finished_runs(root(config))
    return group(chosen, there) if chosen else group([small(config, progress)])


def listing(found: Iterable[Setting]) -> pd.DataFrame:
    """One row a setting: what was trained, with which seeds, what measures it, its folders."""
    rows = [
        {
            "setting": setting.title,
            "seeds": ", ".join(str(run.params["seed"]) for run in setting.runs),
            "set": f"{setting.config.benchmark}, {len(setting.scores[UNTOUCHED])} items",
            "run": setting.run.name,
            "control": setting.control.name if setting.control else "none found",
        }
        for setting in found
    ]
    return pd.DataFrame(rows)


def root(config: ReportConfig | CompareConfig | ModelsConfig) -> Path:
    """The folder of runs: `runs` where that is a folder that holds runs, else `RUNS`."""
    folder = folder_at(name := config.runs or RUNS)
    return folder if folder and not run_folder(name) else runs.runs_root(root=RUNS)


def named_runs(config: ReportConfig | CompareConfig | ModelsConfig) -> list[str]:
    """The runs that `runs` names; none where it is the folder that holds them."""
    return [] if root(config) == folder_at(config.runs or "") else listed(config.runs)


def run_folder(name: str) -> Path | None:
    """The run's folder of this name, if it is one; a relative name is meant from the project."""
    folder = folder_at(name)
    return folder if folder and (folder / "identity.json").is_file() else None


def output_folder(config: ReportConfig) -> Path:
    """Where the report goes: `output`, or the folder that the folder of runs is in."""
    return project_path(config.output) if config.output else root(config).parent


def named(name: str, folder: Path | str | None = None) -> Run:
    """A finished fine-tuning by id, name or folder; ParameterError says what it is not."""
    try:
        run = runs.find_run(run_folder(name) or name, folder)
    except runs.RunError as error:
        raise ParameterError([f"runs: {error}"]) from error
    if problems := run.problems(folders=False):
        raise ParameterError([f"runs: {run.name}/{problem}; leave it out" for problem in problems])
    if "arm" not in run.params:
        raise ParameterError([f"runs: {run.name} is no fine-tuning; give runs of 02_finetune"])
    if not run.finished:
        state = run.status()["message"]
        raise ParameterError([f"runs: {run.name} is not finished ({state}); run it again first"])
    return run


def small(config: ReportConfig | CompareConfig, progress: Callable[[str], Show] | None) -> Run:
    """A small run, made with its control where there is none, see `SMALL_RUN`."""
    from sdslib import experiment

    kept = {name: getattr(config, name) for name in ("seed", "device", "threads")}
    small = FinetuneConfig(**SMALL_RUN, **kept, runs=str(root(config)))
    follow = progress or (lambda label: lambda steps, total: steps)
    print(f"no finished run in {config.runs or 'reports/runs'}: making a small one first")
    experiment.finetune(experiment.control(small), follow("L_CLIP alone"))
    return experiment.finetune(small, follow("a small run"))
