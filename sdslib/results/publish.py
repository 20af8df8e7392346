"""What stands behind a published figure: kept, read again, and trained again.

`reports/published/<study>/<run>/` holds parameters, history and the scores of every item, and no
weights. `show.published` makes the tables and figures of it, and is the command.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sdslib.checks.guard import validate
from sdslib.config import NOT_IN_ID, FinetuneConfig
from sdslib.io import storage
from sdslib.io.paths import project_path, shown_path
from sdslib.io.run import Run
from sdslib.io.runs import find_run, finished_runs, list_runs
from sdslib.io.wording import first_line
from sdslib.results import sweep
from sdslib.results.settings import Setting, StudyError, config_of, of_arms, paired, settings

PUBLISHED = "reports/published"
FINETUNE = "notebooks/02_finetune.ipynb"
PLACES = "places.csv"
_FILES = ("identity.json", "history.jsonl")


def study(
    name: str, runs: Sequence[Run], folder: Path | None = None, places: Path | None = None
) -> Path:
    """Keep what stands behind these runs and their controls as the study `name`, in one rename.

    The study is exactly these runs: what it was before is replaced. `places` is a table that
    `studies.placed` reads, kept with them. A run may be taken from another study. StudyError for a
    run that is not finished, and for one whose control is neither among them nor beside them.
    """
    table = None if places is None else places_in(places)
    for run in runs:
        _sound(run.name, run.problems(folders=False))
        if (run.path.parent / storage.MANIFEST).is_file():  # of another study
            _sound(run.path.parent.name, [storage.manifest_problem(run.path.parent)])
        elif not run.finished:
            raise StudyError(f"run {run.name} is not finished: {run.status()['message']}")
    beside = [r for folder in {run.path.parent for run in runs} for r in finished_runs(folder)]
    pairs = paired(runs, {r.path: r for r in (*runs, *beside)}.values())
    return _keep(name, [run for pair in pairs for run in pair], folder, table)


def _keep(name: str, runs: Iterable[Run], folder: Path | None, table: pd.DataFrame | None) -> Path:
    """These runs and no others as the study `name`."""
    kept = {run.path: run for run in runs}
    for run in kept.values():
        _sound(run.name, run.problems(folders=False))
    final = _place_of(name, folder or project_path(PUBLISHED))
    with storage.staged_folder(final) as stage:
        for run in kept.values():
            _copy(run, stage / run.name)
        if table is not None:
            table.to_csv(stage / PLACES, index=False, lineterminator="\n")
    return final


def places_of(name: str, folder: Path | None = None) -> Path | None:
    """Where a study keeps its table of places, if it has one."""
    path = (folder or project_path(PUBLISHED)) / name / PLACES
    return path if path.exists() else None


def places_in(path: Path) -> pd.DataFrame:
    """A table of a parameter's values and a number that was measured of each; else StudyError."""
    try:
        found = pd.read_csv(path)
    except (OSError, ValueError) as reason:
        raise StudyError(f"{path} cannot be read ({first_line(reason)})") from None
    if (
        len(found.columns) != 2
        or found.columns[0] not in FinetuneConfig.model_fields
        or (not pd.api.types.is_numeric_dtype(found.iloc[:, 1]))
    ):
        raise StudyError(
            f"{path}: expected two columns, a parameter's values and a number measured of each, "
            f"found {', '.join(found.columns)}"
        )
    return found


def _place_of(name: str, folder: Path) -> Path:
    """Where the study is kept; StudyError for what is no plain name, or no study's folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise StudyError(
            f"study name {name!r} must be letters, digits, '.', '-' and '_'; it is kept below "
            f"{PUBLISHED}"
        )
    final = folder / name
    if final.exists() and not (final / storage.MANIFEST).is_file():
        raise StudyError(
            f"{shown_path(final)} is there and is no published study; choose another name"
        )
    return final


def _sound(name: str, problems: Iterable[str | None]) -> None:
    """StudyError where there is a problem: what is damaged is not published, and not shown."""
    found = [problem for problem in problems if problem]
    if found:
        raise StudyError(f"{name}/{'; '.join(found)}; take it from a copy, or make it again")


def _copy(run: Run, target: Path) -> None:
    (target / "scores").mkdir(parents=True)
    for name in _FILES:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target / name)
    for name in run.score_names():
        table = run.scores(name)
        # Without what differs from run to run, equal scores are equal files, which git keeps once.
        table.attrs.pop("seconds", None)
        storage.write_frame(target / "scores" / f"{name}.parquet", table)
    # Where the runs lay is of this machine.
    storage.write_json(target / "params.json", run.params | {"runs": None})


def names(folder: Path | None = None) -> list[str]:
    """The studies that are published."""
    folder = folder or project_path(PUBLISHED)
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def published(name: str, folder: Path | None = None) -> list[Run]:
    """The runs of a study; StudyError lists the studies where there is none of that name.

    And where a file is not as it was published, by the manifest of the study.
    """
    folder = folder or project_path(PUBLISHED)
    found = [Run(path.parent) for path in sorted((folder / name).glob("*/params.json"))]
    if not found:
        raise StudyError(f"no study {name!r} is published; there are {', '.join(names(folder))}")
    if (folder / name / storage.MANIFEST).exists():
        _sound(name, [storage.manifest_problem(folder / name)])
    return found


def in_order(runs: Iterable[Run]) -> list[Setting]:
    """The settings of a study's runs: by arm, then by their parameters, numbers as numbers."""
    pairs = paired(runs)
    tuned = of_arms([config_of(run).identity() for run, _ in pairs])
    return sorted(settings(pairs, tuned), key=_place)


def _place(setting: Setting) -> tuple:
    values = setting.config.model_dump(exclude={"arm", "seed"}).values()
    words = [(v is None, v if isinstance(v, (int, float)) else 0, str(v)) for v in values]
    return setting.values["arm"], words


def reproduce(chosen: Sequence[str], options: sweep.Options, folder: Path | None = None) -> bool:
    """Train every run of the studies again and publish them; all studies where none is chosen.

    Runs that are finished under the same id are read. True where all of them finished; a study
    with a run that failed stays as it was published.
    """
    good = True
    for name in chosen or names(folder):
        done = sweep.run(FINETUNE, [given(run) for run in published(name, folder)], options)
        print(f"{name}: {done.text()}")
        if done.failed:
            good = False
            continue
        places = places_of(name, folder)  # the controls are among them, also where arms were tuned
        _keep(name, done.runs(), folder, places_in(places) if places else None)
    return good


def given(run: Run) -> dict[str, Any]:
    """The parameters to hand to the notebook so that it trains this run: those off the default.

    StudyError where today's parameters cannot say it.
    """
    params, standard = run.params, FinetuneConfig()
    found = {
        name: value
        for name, value in params.items()
        if name not in NOT_IN_ID and value is not None and value != getattr(standard, name, None)
    }
    found |= {} if params["preset"] == "mini" else {"preset": params["preset"]}
    if config_of(run).has_verdicts:  # their content is in the id, and they have to be named
        found["verdicts"] = params["verdicts"]
    if validate(FinetuneConfig, found).identity() != config_of(run).identity():
        raise StudyError(f"{run.name}: today's parameters do not give this run any more")
    return found


def named(word: str, root: str | None) -> list[Run]:
    """The runs that a word of the command means: one, or those of a sweep's summary."""
    if not word.endswith(".parquet"):
        return [find_run(word, root)]
    try:
        table = storage.read_frame(Path(word))
    except (OSError, ValueError) as reason:
        first = first_line(reason)
        raise StudyError(f"{word} cannot be read ({first}); give the summary of a sweep") from None
    known = set(list_runs(root)["run"])
    missing = [str(name) for name in table["run"] if name not in known]
    if missing:
        raise StudyError(f"{word}: {len(missing)} of its runs are not there, as {missing[0]}")
    return [find_run(name, root) for name in table["run"]]
