"""Finished runs scored on more sets: the student, its start, and the control. Nothing is trained.

The sets that a run was given are in its id; those that come afterwards are not, and change nothing
of it. They stand beside the others, and whatever reads a run's scores tells of them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdslib import experiment
from sdslib.benchmarks import Benchmark
from sdslib.config import UNTOUCHED
from sdslib.io.run import Run, RunError
from sdslib.io.state import plain_torch
from sdslib.io.wording import ParameterError, listed
from sdslib.results.settings import CONTENT, Controls, config_of, content_of
from sdslib.sets.roles import load_set
from sdslib.student import Student, load_student


def add_sets(
    chosen: Sequence[Run], sets: str, among: Sequence[Run], device: str = "auto"
) -> Iterator[str]:
    """Score the runs, their starts and their controls, one of `among`, on `sets` (commas between).

    Says of each run and set what was added, once it is kept. A set that a run has is not scored
    again; one of another content whose name is taken gets a number. Before anything is scored
    RunError for a run that is not finished or whose weights are gone, ParameterError for no set.
    """
    controls = Controls(among)
    found = {run.path: run for run in chosen}
    found |= {own.path: own for run in chosen if (own := controls.of(run))}
    for run in found.values():
        if not run.finished:
            raise RunError(f"{run.name} is not finished ({run.status()['message']}); let it finish")
        if not run.weights.is_dir():
            raise RunError(f"{run.name} has no weights, so it cannot be scored; train it again")
    if not (benchmarks := [load_set(source) for source in listed(sets)]):
        raise ParameterError(["sets: name one or more, as `keep` does"])
    where = experiment.pick_device(device)
    with plain_torch():
        for run in found.values():
            config = config_of(run)
            students = {f"{UNTOUCHED}-": (config.clip_model, config.clip_pretrained),
                        "": (f"local-dir:{run.weights}", None)}  # fmt: skip
            loaded = {prefix: load_student(*of, where) for prefix, of in students.items()}
            yield from (_add(run, benchmark, loaded) for benchmark in benchmarks)


def _add(run: Run, benchmark: Benchmark, students: dict[str, Student]) -> str:
    """Keep the scores of each student, the run's own last; what a kill left out is added."""
    name, is_there = _name(run, benchmark)
    if is_there:
        return f"{run.name}: {name} was scored already"
    for prefix, student in students.items():
        if f"{prefix}{name}" not in run.score_names():
            table = experiment.score(student, benchmark)
            table.attrs[CONTENT] = benchmark.fingerprint
            run.add_scores(f"{prefix}{name}", table)
    return f"{run.name}: {name}, {len(benchmark.items)} items"


def _name(run: Run, benchmark: Benchmark) -> tuple[str, bool]:
    """Under which name the set is kept, and whether it is there already."""
    there = run.score_names()
    for name in (benchmark.name, *(f"{benchmark.name}-{n}" for n in range(2, 99))):
        kept = next((n for n in (name, f"{UNTOUCHED}-{name}") if n in there), None)
        if kept is None or content_of(run, kept) == benchmark.fingerprint:
            return name, kept == name
    raise RunError(f"{run.name} has 98 sets called {benchmark.name}")
