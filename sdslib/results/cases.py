"""Which finished runs a report tells of: grouped by setting, each beside its L_CLIP-only control.

Where no run is finished yet a small one is made first, so that there is something to see.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from sdslib import experiment
from sdslib.checks.notebooks import ReportConfig
from sdslib.config import ARMS, FinetuneConfig, preset
from sdslib.experiment import Show
from sdslib.io import runs
from sdslib.io.paths import folder_at, project_path
from sdslib.io.runs import Run
from sdslib.io.wording import ParameterError
from sdslib.results import finetuned, studies
from sdslib.results.studies import config_of

SMALL = "small"
# What is made where there is no run yet: enough to fill every part of a report in a minute.
SMALL_RUN: dict[str, Any] = {
    "run": SMALL,
    "steps": 20,
    "batch_size": 16,
    "warmup": 3,
    "sds_weight": 0.01,
    "bridge_pairs": 256,
    "eval_items": 200,
    "eval_every": 10,
}


@dataclass(frozen=True)
class Case:
    """Runs that differ in their seed alone, each with its L_CLIP-only control where there is one.

    Tables by item and examples are those of the first.
    """

    runs: tuple[Run, ...]
    controls: tuple[Run | None, ...]

    @property
    def run(self) -> Run:
        """The run that stands for the case."""
        return self.runs[0]

    @property
    def control(self) -> Run | None:
        """The control of that run."""
        return self.controls[0]

    @property
    def config(self) -> FinetuneConfig:
        """The parameters of that run."""
        return config_of(self.run)

    @property
    def title(self) -> str:
        """What was trained, in a few words."""
        c = self.config
        return f"{objective(c)}: {c.trainable}, {duration(c)} of {c.batch_size} pairs"

    @property
    def note(self) -> str:
        """What stands in the titles of figures."""
        return finetuned.note(self.config)

    @cached_property
    def scores(self) -> dict[str, pd.DataFrame]:
        """Score tables on the reported set by model: untouched, L_CLIP only, and the arm."""
        return score_tables(self.run, self.control)

    @cached_property
    def paired(self) -> pd.DataFrame:
        """`finetuned.paired` of these: the arm against each other model."""
        return finetuned.paired(self.scores)


def members(cases: Sequence[Case]) -> list[tuple[Run, Run | None]]:
    """Every run of the report once, with its control; a control stands by itself."""
    found: dict[Path, tuple[Run, Run | None]] = {}
    for case in cases:
        for run, control in zip(case.runs, case.controls, strict=True):
            found[run.path] = (run, control)
            if control is not None:
                found.setdefault(control.path, (control, control))
    return list(found.values())


def collect(config: ReportConfig, progress: Callable[[str], Show] | None = None) -> list[Case]:
    """The cases to report on: the runs named, or all finished ones, the newest first.

    Where none is finished a small run and its control are made first. `progress(label)` gives what
    shows their steps. ParameterError names a run that is not there or not finished.
    """
    names = _names(config)
    there = None if names else runs.finished_runs(root(config))
    chosen = there if there is not None else [_named(name, config) for name in names]
    return group(chosen, there) if chosen else group([_small(config, progress)])


def listing(cases: Sequence[Case]) -> pd.DataFrame:
    """One row a case: what was trained, with which seeds, on what it is measured, its folders."""
    rows = [
        {
            "setting": case.title,
            "seeds": ", ".join(str(run.params["seed"]) for run in case.runs),
            "set": f"{case.config.benchmark}, {len(case.scores[experiment.UNTOUCHED])} items",
            "run": case.run.name,
            "control": case.control.name if case.control else "none found",
        }
        for case in cases
    ]
    return pd.DataFrame(rows)


def root(config: ReportConfig) -> Path:
    """The folder of runs: `runs` where that is a folder that holds runs, else reports/runs."""
    folder = folder_at(config.runs or "reports/runs")
    is_root = folder is not None and not (folder / "identity.json").is_file()
    return folder if folder is not None and is_root else runs.runs_root()


def output_folder(config: ReportConfig) -> Path:
    """Where the report goes: `output`, or the folder that the folder of runs is in."""
    return project_path(config.output) if config.output else root(config).parent


def _names(config: ReportConfig) -> list[str]:
    names = [name.strip() for name in (config.runs or "").split(",") if name.strip()]
    return [] if names and root(config) == folder_at(config.runs or "") else names


def _named(name: str, config: ReportConfig) -> Run:
    path = folder_at(name)
    try:
        known = path is not None and (path / "identity.json").is_file()
        run = runs.find_run(path if path and known else name, root(config))
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


def _small(config: ReportConfig, progress: Callable[[str], Show] | None) -> Run:
    settings = FinetuneConfig(
        **SMALL_RUN,
        seed=config.seed,
        device=config.device,
        threads=config.threads,
        runs=str(root(config)),
    )
    follow = progress or (lambda label: lambda steps, total: steps)
    print(f"no finished run in {config.runs or 'reports/runs'}: making a small one first")
    experiment.finetune(experiment.control(settings), follow("L_CLIP alone"))
    return experiment.finetune(settings, follow("a small run"))


def group(chosen: Sequence[Run], there: Sequence[Run] | None = None) -> list[Case]:
    """Cases of the chosen runs, each with its control, which has not to be among them.

    It is one of `there`, by default of all finished runs of their folders.

    Runs that differ in their seed alone are one case. A seed that was run twice (with other code or
    data) is no second seed: it goes to a further case. A run with L_CLIP alone is a case of its own
    only where no other chosen run has it as control.
    """
    chosen = list({run.path: run for run in chosen}.values())
    if there is None:
        folders = dict.fromkeys(run.path.parent for run in chosen)
        there = [run for folder in folders for run in runs.finished_runs(folder)]
    among = {f: studies.Controls(some) for f, some in _by_folder(there).items()}
    controls = {
        run.path: among.get(run.path.parent, studies.Controls([])).of(run) for run in chosen
    }
    used = {c.path for path, c in controls.items() if c is not None and c.path != path}
    settings: dict[tuple[str, int], list[Run]] = {}
    times: Counter[str] = Counter()
    for run in chosen:
        if run.path not in used:
            config = config_of(run)
            own = str(sorted(config.identity().items()))
            same = str(sorted(config.model_copy(update={"seed": 0}).identity().items()))
            settings.setdefault((same, times[own]), []).append(run)
            times[own] += 1
    ordered = (sorted(some, key=lambda run: run.params["seed"]) for some in settings.values())
    return [Case(tuple(some), tuple(controls[run.path] for run in some)) for some in ordered]


def _by_folder(some: Sequence[Run]) -> dict[Path, list[Run]]:
    found: dict[Path, list[Run]] = {}
    for run in some:
        found.setdefault(run.path.parent, []).append(run)
    return found


# --- one run -------------------------------------------------------------------------------------


def score_tables(run: Run, control: Run | None, name: str | None = None) -> dict[str, pd.DataFrame]:
    """`finetuned.models`, also where no run with L_CLIP alone stands beside this one."""
    found = finetuned.models(run, control or run, name)
    if control is None and run.params["arm"] != "clip-only":
        found.pop(experiment.CONTROL)
    return found


def objective(config: FinetuneConfig) -> str:
    """The run's objective in one line."""
    weighed = f"{config.sds_weight:g} * "
    return {
        "sds": f"L_CLIP + {weighed}L_SDS",
        "clip-only": "L_CLIP",
        "hard-negatives": "L_CLIP with swapped captions as negatives",
        "sds-only": f"{weighed}L_SDS",
    }.get(config.arm, f"L_CLIP + {weighed}L_SDS, arm {config.arm}")


def duration(config: FinetuneConfig) -> str:
    """How long the run trained, in its own unit."""
    return f"{config.steps} steps" if config.steps else f"{config.epochs} epochs"


def papermill_line(run: Run) -> str:
    """The line that makes this run: every parameter in which it differs from its preset."""
    config = config_of(run)
    standard = preset(config.preset).model_dump()
    given = {k: v for k, v in config.model_dump().items() if v is not None and v != standard[k]}
    if config.runs == "reports/runs":
        given.pop("runs")
    for name in ("device", "threads", "num_workers", "resume", "tracker", "preset"):
        given.pop(name, None)
    if ARMS[config.arm].sds is None:
        given.pop("sds_weight", None)
    if config.preset != "mini":
        given = {"preset": config.preset} | given
    words = ["papermill", "notebooks/02_finetune.ipynb", "out.ipynb"]
    for name, value in given.items():
        # papermill reads numbers and truth values out of -p; what is text goes through -r.
        words += ["-r" if isinstance(value, str) else "-p", name, shlex.quote(str(value))]
    return " ".join(words)
