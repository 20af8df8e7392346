"""The cells of a grid over a notebook's parameters: checked first, and named by their runs' ids.

Two cells that leave the same run are one cell. Nothing here starts a run, and a wrong grid is
refused before torch is loaded.
"""

from __future__ import annotations

import ast
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdslib.checks.guard import validate
from sdslib.checks.notebooks import MODELS
from sdslib.config import RECIPE, Config, FinetuneConfig
from sdslib.io import storage
from sdslib.io.identity import identify
from sdslib.io.paths import project_root, shown_path
from sdslib.io.run import Run, RunError
from sdslib.io.wording import ParameterError, suggest

_OURS = ("run", "runs")  # the sweep says where runs are kept, their parameters name them


@dataclass(frozen=True)
class Cell:
    """One run of the notebook: the parameters given to papermill, checked as its guard does.

    `ids` are the runs that the cell leaves, its own first; empty where only the notebook knows.
    `count` says how many cells of the grid are this run.
    """

    notebook: Path
    given: Mapping[str, Any]
    config: Config
    ids: tuple[str, ...] = ()
    count: int = 1

    @cached_property
    def key(self) -> str:
        """What two cells share that are the same run."""
        return self.ids[0] if self.ids else identify(self.config, {})["id"]

    def runs(self, root: Path) -> list[Run | None]:
        """The runs that the cell leaves, as far as they are there; its own first."""
        if self.ids:
            folders = [[p.parent for p in root.glob(f"*-{i}/identity.json")] for i in self.ids]
            return [Run(found[0]) if found else None for found in folders]
        params = self.config.identity()
        for folder in sorted(root.glob("*/identity.json"), key=lambda p: -p.stat().st_mtime):
            try:
                identity = Run(folder.parent).identity
            except (RunError, storage.StorageError):
                continue  # damaged; `runs verify` names it
            if identity["params"] == params and identity.get("recipe") == RECIPE:
                return [Run(folder.parent)]
        return [None]

    def pair(self, root: Path) -> tuple[Run, Run] | None:
        """The cell's run and its L_CLIP-only control (the run itself where it is one).

        None unless both are finished: a control never stands for a run that failed.
        """
        runs = self.runs(root)
        done = [run for run in runs if run and run.finished]
        return (done[0], done[-1]) if len(done) == len(runs) else None

    def unfinished(self, root: Path) -> set[str]:
        """The ids (or the key) of the runs that are still to do."""
        runs = zip(self.ids or (self.key,), self.runs(root), strict=True)
        return {name for name, run in runs if run is None or not run.finished}

    def known_done(self, root: Path) -> bool:
        """Whether no process is needed; a notebook whose runs it alone can name is asked again."""
        return bool(self.ids) and not self.unfinished(root)


def combine(
    values: Mapping[str, Sequence[Any]],
    seeds: int | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The product of the values and the seeds 0…`seeds`-1, the seeds running fastest.

    Raises ParameterError for an empty grid and for a parameter that is given twice.
    """
    axes = {name: list(found) for name, found in values.items()}
    problems = [f"--grid {name}= has no value; write {name}=A,B" for name in axes if not axes[name]]
    if seeds is not None:
        problems += ["seed stands in --grid and in --seeds; leave one out"] * ("seed" in axes)
        axes["seed"] = list(range(seeds))
    problems += [f"{name} is given twice; leave one out" for name in axes if name in (fixed or {})]
    if not axes:
        problems.append("the grid is empty; give --grid name=A,B or --seeds N")
    if problems:
        raise ParameterError(problems)
    cells = itertools.product(*axes.values())
    return [dict(fixed or {}) | dict(zip(axes, cell, strict=True)) for cell in cells]


def read_notebook(notebook: Path) -> tuple[type[Config], dict[str, Any]]:
    """The Config of the notebook's guard cell, and the literals of its parameters cell."""
    try:
        cells = json.loads(notebook.read_bytes())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
    except FileNotFoundError as error:
        there = [p.name for p in (project_root() / "notebooks").glob("*.ipynb")]
        close = suggest(notebook.name, there)
        hint = f"; did you mean 'notebooks/{close}'?" if close else ""
        raise ParameterError([f"notebook {shown_path(notebook)!r} does not exist{hint}"]) from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ParameterError([f"{shown_path(notebook)!r} is no notebook"]) from error
    names = [name for cell in code if (name := _guarded_by("".join(cell["source"])))]
    if not names or names[0] not in MODELS:
        problem = f"notebook {shown_path(notebook)!r} has no guard cell; see CONTRIBUTING.md"
        raise ParameterError([problem])
    tagged = [c for c in code if "parameters" in c.get("metadata", {}).get("tags", [])]
    lines = ast.parse("".join(tagged[0]["source"]) if tagged else "").body
    pairs = [
        (line.target if isinstance(line, ast.AnnAssign) else line.targets[0], line.value)
        for line in lines
        if isinstance(line, (ast.Assign, ast.AnnAssign))
    ]
    return MODELS[names[0]], {
        name.id: ast.literal_eval(value)
        for name, value in pairs
        if isinstance(name, ast.Name) and value is not None
    }


def guarded_part(notebook: Path) -> dict[str, Any]:
    """The notebook up to its guard cell: a notebook with its parameters that does nothing yet."""
    document: dict[str, Any] = json.loads(notebook.read_bytes())
    cells = document["cells"]
    end = next(i for i, cell in enumerate(cells) if _guarded_by("".join(cell["source"])))
    return document | {"cells": cells[: end + 1]}


def _guarded_by(source: str) -> str | None:
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a cell of magics
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("guard", "config.guard"):
            names = [ast.literal_eval(word) for word in node.args[1:2]]
            return str(names[0]) if names else "finetune"
    return None


def check(
    notebook: str | Path, cells: Sequence[Mapping[str, Any]], runs: str | None = None
) -> list[Cell]:
    """The cells, each checked as the notebook's guard will; nothing heavy is loaded.

    Raises ParameterError with every problem of every cell.
    """
    path = Path(notebook)
    path = path if path.is_file() or path.is_absolute() else project_root() / path
    cls, written = read_notebook(path)
    found, problems = list[Cell](), dict[str, None]()
    if not cells:
        problems["the grid is empty; give it at least one cell"] = None
    for given in cells:
        problems |= {f"{n} is the sweep's own; use --runs DIR": None for n in _OURS if n in given}
        try:
            config = validate(cls, written | dict(given) | {"runs": runs})
            found.append(Cell(path.resolve(), dict(given), config))
        except ParameterError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ParameterError(problems)
    return found


def plan(cells: Sequence[Cell]) -> list[Cell]:
    """The cells with the ids of their runs; those that are one run become one cell.

    Raises ParameterError where the data do not allow the parameters.
    """
    found: dict[str, Cell] = {}
    ids = run_ids([cell.config for cell in cells])
    for cell in (replace(c, ids=tuple(i)) for c, i in zip(cells, ids, strict=True)):
        there = found.get(cell.key)
        found[cell.key] = replace(there, count=there.count + 1) if there else cell
    return list(found.values())


def run_ids(configs: Sequence[Config]) -> list[list[str]]:
    """For each config the ids of the runs that its notebook leaves; empty where it alone can tell.

    They depend on the data, whose rooms load torch. Raises ParameterError where the data do not
    allow the parameters.
    """
    from sdslib import experiment
    from sdslib.arms import negatives
    from sdslib.io.sources import DataError
    from sdslib.sets import roles

    data: dict[tuple, dict[str, str]] = {}

    def name(config: FinetuneConfig) -> str:
        wanted = roles.named_data(config)
        negatives.check(config)  # not only where its data are loaded, which other arms share
        if wanted not in data:
            data[wanted] = experiment.load_data(config).fingerprints()
        return str(identify(config, experiment.fingerprints(config, data[wanted]))["id"])

    def both(config: Config) -> list[str]:
        if not isinstance(config, FinetuneConfig):
            return []
        return list(dict.fromkeys([name(config), name(experiment.control(config))]))

    try:
        return [both(config) for config in configs]
    except DataError as error:
        raise ParameterError([str(error)]) from error
