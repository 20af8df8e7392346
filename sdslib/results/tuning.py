"""Arms tuned alike: the same number of trials each, chosen on validation alone.

A trial is a run of its own, named by its id. Nothing else is kept: a search that was killed asks
the seeded sampler again, finds its finished runs, and goes on. Trials are asked for in rounds of
`ROUND` an arm, whatever the number of workers, so that a machine with more of them asks the same.

    python -m sdslib.results.tuning --arms clip-only,hard-negatives -p steps 600 \
        --search lr=1e-5:1e-3:log --search interpolation=.1:1 --trials 8 --workers 2
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import optuna
import pandas as pd
from nbformat.v4 import new_code_cell
from optuna.distributions import FloatDistribution, IntDistribution

from sdslib.checks.guard import validate
from sdslib.checks.notebooks import SweepConfig, from_shell, literal
from sdslib.config import UNTOUCHED, FinetuneConfig, derive_seed, is_mini, set_name
from sdslib.io import storage
from sdslib.io.exits import EXITS, ended
from sdslib.io.paths import project_root
from sdslib.io.run import Run
from sdslib.io.runs import runs_root
from sdslib.io.wording import ParameterError, did_you_mean, listed, suggest
from sdslib.results import sweep
from sdslib.results.executors import ExecutorError
from sdslib.results.grid import Cell, check, guarded_part, run_ids
from sdslib.results.settings import papermill_of

FINETUNE = "notebooks/02_finetune.ipynb"
RUN_SEED = 100  # of the runs: a report's are the small numbers
ROUND = 4  # trials of an arm that are asked for at once; the first round is drawn at random
ALLOWED = 0.01  # that a set of `keep` may lose before its loss counts
VALIDATION = "validation"


class Range(NamedTuple):
    """Where a parameter is looked for, both ends included."""

    low: float
    high: float
    log: bool = False

    @property
    def distribution(self) -> FloatDistribution | IntDistribution:
        """The same for Optuna."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def rounded(self, value: float) -> float:
        """The value with three digits, within the range; a whole number as it is."""
        short = value if isinstance(value, int) else float(f"{value:.3g}")
        return min(max(short, self.low), self.high)


@dataclass(frozen=True)
class Search:
    """What is tuned: arms, the parameters that are given, and the ranges of those that are not."""

    arms: tuple[str, ...]
    given: Mapping[str, Any]
    ranges: Mapping[str, Range]
    trials: int
    seed: int = RUN_SEED

    def parameters(self, arm: str) -> dict[str, Any]:
        """What every trial of the arm is given; of sets, validation alone where none is named."""
        return {"keep": "none"} | dict(self.given) | {"arm": arm, "seed": self.seed}

    def space(self, arm: str) -> dict[str, Range]:
        """The ranges of what the arm reads."""
        read = validate(FinetuneConfig, self.parameters(arm)).identity()
        return {name: found for name, found in self.ranges.items() if name in read}

    def checked(self) -> Search:
        """Itself; ParameterError with all that is wrong with it."""
        problems = list(self._problems())
        if problems:
            raise ParameterError(problems)
        unread = [n for n in self.ranges if not any(n in self.space(arm) for arm in self.arms)]
        if unread:
            raise ParameterError([f"no arm of {', '.join(self.arms)} reads {n!r}" for n in unread])
        for arm in self.arms:
            for end in ("low", "high"):
                ends = {name: getattr(found, end) for name, found in self.space(arm).items()}
                validate(FinetuneConfig, self.parameters(arm) | ends)
        return self

    def _problems(self) -> Iterator[str]:
        known = FinetuneConfig.model_fields
        if not self.arms or not self.ranges or self.trials < 1:
            yield "give an arm, a range to search, and at least one trial"
        for name, found in self.ranges.items():
            if name not in known:
                yield f"unknown parameter {name!r}{did_you_mean(suggest(name, known))}"
            elif type(known[name].default) not in (int, float):
                yield f"--search takes numbers, and {name!r} is none; give it one value"
            elif name in self.given:
                yield f"{name} is given twice: a value and a range; leave one out"
            elif not found.low < found.high or (found.log and found.low <= 0):
                yield f"--search {name} needs LOW below HIGH, and LOW above 0 for log"
        own = {"arm": "--arms", "seed": "--seed"}
        yield from (
            f"{name} is among the given values; use {own[name]}"
            for name in own
            if name in self.given
        )
        if self.given.get(VALIDATION) == "none":
            yield "trials are chosen on validation; leave validation 'none' out, or name a set"
        for source in listed(self.given.get("keep")):
            if is_mini(source) and not source.endswith(":val"):
                yield f"keep {source!r} is reported, and not to choose by; name sets ending in :val"

    @property
    def name(self) -> str:
        """What the table is called: longer searches of the same go on in it."""
        told = [self.arms, dict(self.given), self.ranges, self.seed]
        return "tuning-" + hashlib.sha256(json.dumps(told).encode()).hexdigest()[:8]


def tune(search: Search, options: sweep.Options, stream: TextIO | None = None) -> pd.DataFrame:
    """Run all trials, and give their table, which is kept beside the sweeps' summaries.

    Columns: arm, trial, the parameters, run, id, state, score (the validation set's first metric),
    lost (by the sets of `keep`, see `worth`), objective, and error of a trial that failed, which
    the next search tries again. ParameterError for what cannot be, before anything runs.
    """
    root = runs_root(root=options.runs)
    where = root / "sweeps" / f"{search.checked().name}.parquet"
    sweep.require(options.executor, options.address)
    options, notebook = replace(options, summary=str(where)), _notebook(root)
    spaces = {arm: search.space(arm) for arm in search.arms}
    studies, rows = {arm: _study(search) for arm in search.arms}, list[dict[str, Any]]()
    states = optuna.trial.TrialState
    for start in range(0, search.trials, ROUND):
        arms = [a for a in search.arms for _ in range(start, min(start + ROUND, search.trials))]
        asked = [_ask(studies[arm], spaces[arm]) for arm in arms]
        given = [search.parameters(arm) | own for arm, (_, own) in zip(arms, asked, strict=True)]
        cells = _cells(notebook, given, options)
        done = sweep.bring(list({cell.key: cell for cell in cells}.values()), options, stream)
        for arm, (trial, own), cell in zip(arms, asked, cells, strict=True):
            row = _row(cell, done)
            state = states.COMPLETE if row["state"] == "finished" else states.FAIL
            studies[arm].tell(trial, row.get("objective"), state)
            rows.append({"arm": arm, "trial": trial.number} | own | row)
        storage.write_frame(where, pd.DataFrame(rows))
    return pd.DataFrame(rows)


def _study(search: Search) -> optuna.Study:
    """An empty study; every arm begins with the same draws."""
    seed = derive_seed(search.seed, "tuning") % 2**32
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=ROUND)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _ask(study: optuna.Study, space: Mapping[str, Range]) -> tuple[optuna.Trial, dict[str, Any]]:
    trial = study.ask({name: found.distribution for name, found in space.items()})
    return trial, {name: space[name].rounded(value) for name, value in trial.params.items()}


def _cells(notebook: Path, given: Sequence[dict[str, Any]], options: sweep.Options) -> list[Cell]:
    """A cell for each trial, which leaves its own run and no control."""
    from sdslib import experiment

    cells = check(notebook, given, options.runs)
    ids = run_ids([cell.config for cell in cells])
    first = cells[0].config
    assert isinstance(first, FinetuneConfig)
    if experiment.load_data(first).validation is None:
        raise ParameterError(["nothing is held out to choose by; name a set as validation"])
    return [replace(cell, ids=(own[0],)) for cell, own in zip(cells, ids, strict=True)]


def _notebook(root: Path) -> Path:
    """02's parameters and guard, and then the run alone: a trial needs no control."""
    path = root / "sweeps" / "trial.ipynb"
    document = guarded_part(project_root() / FINETUNE)
    alone = new_code_cell("from sdslib import finetune\n\nfinetune(config)", id="run")
    document["cells"].append(alone)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, document)
    return path


def _row(cell: Cell, done: sweep.Sweep) -> dict[str, Any]:
    run = cell.runs(done.root)[0]
    if run is None or not run.finished:
        error = done.failed.get(cell.key, "not run")
        return {"run": run.name if run else None, "id": cell.key, "state": "failed", "error": error}
    return {"run": run.name, "id": run.id, "state": "finished"} | worth(run)


def worth(run: Run) -> dict[str, float]:
    """What a finished run is chosen by: its validation score, less what sets of `keep` lost.

    Of each such set counts what its first metric fell by against the untouched student, beyond
    `ALLOWED`. Scores of the benchmark are not looked at.
    """
    found, names = sweep.metrics_of(run), run.score_names()
    first = {name: next(v for k, v in found.items() if k.startswith(f"{name}.")) for name in names}
    given = run.identity["data"].keys() - {VALIDATION, set_name(run.params["benchmark"])}
    kept = [n for n in names if f"{UNTOUCHED}-{n}" in first and n in given]
    lost = sum(max(0.0, first[f"{UNTOUCHED}-{n}"] - first[n] - ALLOWED) for n in kept)
    return {"score": first[VALIDATION], "lost": lost, "objective": first[VALIDATION] - lost}


# --- the command ---------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """Tune arms. Exit status: 0 all trials finished, 1 some failed, 2 nothing was run."""
    program = "python -m sdslib.results.tuning"
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    say = parser.add_argument
    say("--arms", required=True, help="with commas; each gets the same number of trials")
    say("--search", action="append", default=[], metavar="NAME=LOW:HIGH[:log]", help="a range")
    say("--trials", type=int, default=8, help="of each arm (default: 8)")
    say("--seed", type=int, default=RUN_SEED, help="of runs and search, apart from the report's")
    say("--runs", help="the folder of runs (default: reports/runs)")
    say("--workers", type=literal, help="trials at a time (default: one a core)")
    say("--executor", default="local", help="local, ray or slurm")
    say("--address", help="a Ray cluster's, HOST:6379 or auto; for SLURM partition=gpu")
    asked, given = from_shell(parser, words)
    kept = {name: getattr(asked, name) for name in ("runs", "workers", "executor", "address")}
    try:
        arms, ranges = dict.fromkeys(listed(asked.arms)), dict(map(read_range, asked.search))
        search = Search(tuple(arms), given, ranges, asked.trials, asked.seed)
        table = tune(search, sweep.Options.of(validate(SweepConfig, kept)))
    except (ParameterError, ExecutorError) as error:
        return ended(error)
    except KeyboardInterrupt:
        print(EXITS[130][0], file=sys.stderr)
        return 130
    failed = table[table["state"] != "finished"]
    for row in failed.itertuples():
        print(f"failed: {row.arm}, trial {row.trial}: {row.error}")
    print("\n".join(best_lines(search, table)))
    return int(len(failed) > 0)


def read_range(word: str) -> tuple[str, Range]:
    """`NAME=LOW:HIGH` or `NAME=LOW:HIGH:log`; ParameterError for anything else."""
    name, _, text = word.partition("=")
    ends, rest = [literal(end) for end in text.split(":")[:2]], text.split(":")[2:]
    numbers = len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if not name.isidentifier() or not numbers or rest not in ([], ["log"]):
        raise ParameterError([f"--search needs NAME=LOW:HIGH or NAME=LOW:HIGH:log, got {word!r}"])
    known = FinetuneConfig.model_fields
    whole = name in known and type(known[name].default) is int
    low, high = ends if whole else map(float, ends)
    return name, Range(low, high, bool(rest))


def best_lines(search: Search, table: pd.DataFrame) -> Iterator[str]:
    """For each arm its best trial: what it reached, and the line that trains it, with seed 0."""
    for arm in search.arms:
        done = table[(table["arm"] == arm) & (table["state"] == "finished")]
        if done.empty:
            yield f"{arm}: no trial finished"
            continue
        best = done.loc[done["objective"].idxmax()]
        space = search.space(arm).items()
        own = {name: type(found.low)(best[name]) for name, found in space}
        config = validate(FinetuneConfig, search.parameters(arm) | own | {"seed": 0})
        told = f"trial {best['trial']}, objective {best['objective']:.3f}"
        yield f"{arm}: {told}\n{papermill_of(config)}"


if __name__ == "__main__":
    sys.exit(main())
