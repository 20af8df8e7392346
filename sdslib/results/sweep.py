"""Many runs of one notebook: a grid of parameters, each cell one papermill run of its own.

A cell whose run is finished is skipped by the run's id and starts no process; one that failed or
was cut off is tried again and goes on from its last checkpoint. Two cells that would write the same
run (also the same L_CLIP-only control) never run at once. Nothing here outlives the sweep.

    python -m sdslib.results.sweep notebooks/02_finetune.ipynb \
        --grid sds_weight=0,1e-3,1e-1 --seeds 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sdslib.checks.guard import validate
from sdslib.checks.notebooks import SweepConfig, literal
from sdslib.config import NOT_IN_ID
from sdslib.io import lock, storage
from sdslib.io.exits import ended
from sdslib.io.paths import path_problem
from sdslib.io.progress import Progress
from sdslib.io.run import Run
from sdslib.io.runs import runs_root
from sdslib.io.wording import ParameterError, listed
from sdslib.results.executors import DIED, Executor, ExecutorError, Job, opened, require
from sdslib.results.grid import Cell, check, combine, plan

if TYPE_CHECKING:
    import pandas as pd

DEATHS = 2  # attempts of a cell whose process dies; one that ends with an error is not repeated
RANKED_BY = ("validation.text", "mini-winoground.text", "winoground.text")


@dataclass(frozen=True)
class Options:
    """Where and how the cells of a sweep run; None is the default of the place."""

    runs: str | None = None
    workers: int | None = None
    executor: str = "local"
    address: str | None = None
    summary: str | None = None

    @classmethod
    def of(cls, config: SweepConfig) -> Options:
        """The options among the parameters of an ablation's notebook."""
        return cls(config.runs, config.workers, config.executor, config.address)


@dataclass(frozen=True)
class Sweep:
    """What became of a sweep: its cells, where their runs are, and what failed, by cell."""

    cells: tuple[Cell, ...]
    root: Path
    summary: Path
    failed: Mapping[str, str]

    def table(self) -> pd.DataFrame:
        """One row a run: run, id, state, cells, seed and parameters, metrics; in the grid's order.

        Metrics are `<scored set>.<metric>` (share of right items), and of the history the last
        clip, sds and eps_error and the median grad_ratio. There is no time of day and no duration
        in it: a sweep that was cut off and went on leaves the same bytes.
        """
        return storage.read_frame(self.summary)

    def runs(self, **given: Any) -> list[Run]:
        """The finished runs of the cells whose config has these values, in the grid's order."""
        return [pair[0] for pair in self.pairs(**given)]

    def pairs(self, **given: Any) -> list[tuple[Run, Run]]:
        """The same, each with its L_CLIP-only control (the run itself where it is one)."""
        chosen = [c for c in self.cells if given.items() <= c.config.model_dump().items()]
        return [pair for cell in chosen if (pair := cell.pair(self.root))]

    def text(self) -> str:
        """How it ended, as `10 runs: 10 finished, 0 failed`."""
        rest = len(self.cells) - self.finished - len(self.failed)
        words = f"{len(self.cells)} runs: {self.finished} finished, {len(self.failed)} failed"
        return words + (f", {rest} not run" if rest else "")

    @cached_property
    def finished(self) -> int:
        """How many runs are complete."""
        done = (c for c in self.cells if c.key not in self.failed)
        return sum(not c.unfinished(self.root) for c in done)


def run(
    notebook: str | Path,
    cells: Sequence[Mapping[str, Any]],
    options: Options | None = None,
    stream: TextIO | None = None,
) -> Sweep:
    """Bring every cell to its finished run, and say how it went.

    `cells` are parameters of the notebook, as `combine` makes them; a problem in any of them raises
    ParameterError before anything runs. A cell that fails does not stop the others. Progress is
    shown in the notebook, or as lines on `stream` (stderr).
    """
    options = options or Options()
    checked = check(notebook, cells, options.runs)
    if options.summary:
        _given_summary(options.summary)
    require(options.executor, options.address)
    return bring(plan(checked), options, stream)


def bring(cells: Sequence[Cell], options: Options, stream: TextIO | None = None) -> Sweep:
    """Bring cells that are planned to the runs that they name."""
    desk = Desk(cells, options)
    with Board(desk.cells, stream) as board:
        if desk.pending:
            executor = opened(options.executor, options.address, desk.folder)
            try:
                desk.work(executor, board)
            finally:
                executor.close()
                desk.show(board)
        desk.show(board)
    return Sweep(desk.cells, desk.root, desk.summary, desk.failed)


# --- which cell is next --------------------------------------------------------------------------


def swept(root: Path) -> set[str]:
    """Ids of the runs that sweeps of this folder have made, by their diary."""
    return set(_outcomes(root / "sweeps"))


def _outcomes(folder: Path) -> dict[str, str]:
    """By cell the last event of the diary of all sweeps here."""
    rows, path = list[Any](), folder / "attempts.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError):  # cut by a kill
            rows.append(json.loads(line))
    return {str(row["id"]): str(row["event"]) for row in rows if isinstance(row, dict)}


class Desk:
    """Which cells are to do, which run, and which failed."""

    def __init__(self, cells: Sequence[Cell], options: Options) -> None:
        self.cells, self.root = tuple(cells), runs_root(root=options.runs)
        self.folder = self.root / "sweeps"
        digest = hashlib.sha256(" ".join(cell.key for cell in cells).encode()).hexdigest()[:8]
        own = self.folder / f"{cells[0].notebook.stem}-{digest}.parquet"
        self.summary = _given_summary(options.summary) if options.summary else own
        self.failed: dict[str, str] = {}
        self._where = {"runs": str(self.root)} if options.runs else {}
        self._workers = options.workers
        self._running: dict[str, tuple[Cell, float]] = {}
        self._deaths: dict[str, int] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        # Trained, but its notebook has not come to its end: that is executed again.
        cut = {key for key, event in _outcomes(self.folder).items() if event != "finished"}
        self._again = {cell.key for cell in self.cells} & cut
        pending = [c for c in self.cells if c.key in self._again or not c.known_done(self.root)]
        # Those that leave one run alone come first: they are the controls of the others.
        self.pending = sorted(pending, key=lambda cell: len(cell.ids))

    def work(self, executor: Executor, board: Board) -> None:
        """Run what is pending; threads depend on the grid alone, so that no bit depends on luck."""
        cores, smallest = executor.cores()
        slots = self._workers or _default_workers(self.cells, cores)
        threads = max(1, min(cores // min(slots, len(self.cells)), smallest))
        while self.pending or self._running:
            for cell in self._free():
                if len(self._running) >= slots:
                    break
                self._submit(cell, executor, threads)
            self.show(board)
            for key, error in executor.wait(0.5):
                self._ended(key, error)

    def _free(self) -> Iterator[Cell]:
        """Pending cells whose runs nobody is at: no cell of ours, no other sweep."""
        for cell in list(self.pending):
            todo = cell.unfinished(self.root)
            if cell.ids and not todo and cell.key not in self._again:  # another sweep was faster
                self.pending.remove(cell)
                continue
            ours = set().union(*(c.unfinished(self.root) for c, _ in self._running.values()))
            if not todo & ours and not any(self._at_work(run) for run in cell.runs(self.root)):
                yield cell

    def _at_work(self, run: Run | None) -> bool:
        """Whether a process has the run; one that cannot be asked is told of, once a run."""
        owner = lock.holder(run.path) if run is not None else None
        if run is None or owner is None:
            return False
        if owner["host"] != socket.gethostname() and run.name not in self._told:
            self._told.add(run.name)
            print(
                f"waiting for {run.name}: pid {owner['pid']} on host {owner['host']} has it since "
                f"{owner['since']}, last heard of at {run.status()['updated']}; if that machine is "
                f"gone, delete {run.shown_path}/lock",
                file=sys.stderr,
            )
        return True

    def _file(self, cell: Cell, kind: str) -> Path:
        return self.folder / "cells" / f"{cell.key}.{kind}"

    def _submit(self, cell: Cell, executor: Executor, threads: int) -> None:
        threads = cell.config.threads or threads
        given = dict(cell.given) | self._where | {"threads": threads}
        output, log = (str(self._file(cell, kind)) for kind in ("ipynb", "log"))
        self.pending.remove(cell)
        self._again.discard(cell.key)
        self._running[cell.key] = (cell, time.monotonic())
        self._note(cell, "started")
        executor.submit(Job(cell.key, str(cell.notebook), given, output, log, threads))

    def _ended(self, key: str, error: str | None) -> None:
        cell, since = self._running.pop(key)
        if error is None and cell.unfinished(self.root):
            error = "the notebook ended well and left no finished run of these parameters"
        seconds = round(time.monotonic() - since, 2)
        self._note(cell, "finished" if error is None else "failed", seconds=seconds, error=error)
        if error is None:
            executed, run = self._file(cell, "ipynb"), cell.runs(self.root)[0]
            if run is not None and executed.is_file():
                run.keep("notebook.ipynb", executed.read_bytes())
                executed.unlink()
                self._file(cell, "log").unlink(missing_ok=True)
        elif "is locked by pid" in error:  # another sweep took it between our look and our start
            self.pending.append(cell)
        elif error.startswith(DIED) and self._deaths.get(key, 0) + 1 < DEATHS:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            self._again.add(key)
            self.pending.insert(0, cell)
        else:
            self.failed[key] = error

    def _note(self, cell: Cell, event: str, **facts: Any) -> None:
        """One line of `sweeps/attempts.jsonl`, the diary of every process that was started."""
        row = {"id": cell.key, "event": event, "at": storage.now(), "given": dict(cell.given)}
        row |= {k: v for k, v in facts.items() if v is not None}
        storage.append_line(self.folder / "attempts.jsonl", json.dumps(row))

    def show(self, board: Board) -> None:
        """Bring the summary and the board up to date where a cell has ended."""
        busy = self._running.keys() | {cell.key for cell in self.pending}
        done = [cell for cell in self.cells if cell.key not in busy]
        if len(done) == len(self._rows) and self.summary.is_file():
            board.tick()
            return
        import pandas as pd

        self._rows |= {c.key: self._row(c) for c in done if c.key not in self._rows}
        table = pd.DataFrame([self._rows.get(c.key) or self._row(c) for c in self.cells])
        storage.write_frame(self.summary, table)
        board.standing(len(done), leaderboard(table, varied(self.cells)), len(self.failed))

    def _row(self, cell: Cell) -> dict[str, Any]:
        """A run's row of the summary: see `Sweep.table`."""
        run, params = cell.runs(self.root)[0], cell.config.model_dump(mode="json")
        row: dict[str, Any] = {"run": None, "id": cell.key, "state": "not run", "cells": cell.count}
        row |= {name: value for name, value in params.items() if name not in NOT_IN_ID}
        if run is None:
            return row
        row |= {"run": run.name, "id": run.id, "state": run.status()["state"]}
        row |= metrics_of(run) if run.finished else {}
        failed = run.finished and cell.key in self.failed
        return row | ({"state": "notebook failed"} if failed else {})


def _default_workers(cells: Sequence[Cell], cores: int) -> int:
    """A cell of the mini-world keeps one core busy; real models want the machine to themselves."""
    return 1 if cells[0].config.preset == "paper" else min(cores, len(cells))


# --- what is kept and shown ----------------------------------------------------------------------


def _given_summary(name: str) -> Path:
    """The file of this name; ParameterError where it is not the sweep's to write."""
    if problem := path_problem(name):
        raise ParameterError([f"--summary: {problem}"])
    path, problem = Path(name).expanduser().absolute(), None
    if path.suffix != ".parquet":
        problem = "must end with .parquet, which it is written as"
    elif path.exists() and not _is_summary(path):
        problem = "is there and is no sweep's summary; choose another name"
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot be written: {error.strerror}; name another folder"
    if problem:
        raise ParameterError([f"--summary {name} {problem}"])
    return path


def _is_summary(path: Path) -> bool:
    try:
        return {"run", "id", "state"} <= set(storage.read_frame(path).columns)
    except (OSError, ValueError):
        return False


def metrics_of(run: Run) -> dict[str, float]:
    """A finished run's figures under flat names; see `Sweep.table`."""
    from sdslib import tables

    found: dict[str, float] = {}
    for name in run.score_names():
        right = tables.outcomes(run.scores(name))
        found |= {f"{name}.{metric}": float(hits.mean()) for metric, hits in right.items()}
    if not (run.path / "history.jsonl").is_file():
        return found
    history = run.history().dropna(axis="columns", how="all")
    last = [column for column in ("clip", "sds", "eps_error") if column in history]
    found |= {column: float(history[column].dropna().iloc[-1]) for column in last}
    if "grad_ratio" in history:
        found["grad_ratio"] = float(history["grad_ratio"].median())
    return found


def varied(cells: Iterable[Cell]) -> list[str]:
    """The parameters that the grid varies, the seed aside."""
    cells = list(cells)
    names = dict.fromkeys(name for cell in cells for name in cell.given if name != "seed")
    return [n for n in names if len({str(getattr(cell.config, n)) for cell in cells}) > 1]


def leaderboard(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The settings of a summary, best first, by what is chosen on: the validation score.

    Columns: the parameters `by`, finished (as 3/5), and the mean, lowest and highest over seeds.
    """
    known = [m for m in RANKED_BY if m in table]
    known += [c for c in table if c.endswith((".text", ".accuracy"))]
    done = table["state"].eq("finished")
    told: dict[str, Any] = {"finished": ("_done", lambda done: f"{done.sum()}/{len(done)}")}
    if known:
        score = {known[0]: "mean", "low": "min", "high": "max"}
        told |= {name: ("_score", how) for name, how in score.items()}
    table = table.assign(_all=0, _done=done, _score=table[known[0]].where(done) if known else 0)
    groups = table.groupby([*by] or ["_all"], sort=False, dropna=False)
    found = groups.agg(**told).reset_index().drop(columns="_all", errors="ignore")
    return found.sort_values(known[0], ascending=False, kind="stable") if known else found


class Board(Progress):
    """Progress of a sweep with the time left, and below it the ten best settings."""

    def __init__(self, cells: Sequence[Cell], stream: TextIO | None = None) -> None:
        self._best: pd.DataFrame | None = None
        super().__init__(len(cells), "runs", stream)

    def standing(self, done: int, table: pd.DataFrame, failed: int) -> None:
        """Show that so many runs are over, with this leaderboard."""
        self._best, self._shown = table.head(10), time.monotonic()  # so that `update` shows nothing
        self.update(done, f"{failed} failed" if failed else "")
        self._show()

    def tick(self) -> None:
        """Let the time left run on where it can be redrawn."""
        if self._handle is not None:
            self.update(self.done, self.note)

    def _show(self) -> None:
        super()._show()
        if self._handle is None and self._best is not None and len(self._best.columns):
            shown = self._best.to_string(index=False, float_format="{:.4f}".format)
            rows = "".join(f"    {row}\n" for row in shown.splitlines())
            print(rows, end="", file=self._stream or sys.stderr, flush=True)

    def _html(self) -> str:
        if self._best is None:
            return super()._html()
        table = self._best.to_html(index=False, border=0, float_format="{:.4f}".format)
        return super()._html() + table


# --- the command ---------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run a notebook over a grid. Exit status: 0 all finished, 1 some failed, 2 nothing was run."""
    program = "python -m sdslib.results.sweep"
    parser = argparse.ArgumentParser(prog=program, description=main.__doc__)
    say = parser.add_argument
    say("notebook", help="as notebooks/02_finetune.ipynb")
    say("--grid", action="append", default=[], metavar="NAME=A,B", help="values; may be repeated")
    say("--set", action="append", default=[], metavar="NAME=A", help="one value for all cells")
    say("--seeds", type=literal, help="so many seeds, from 0")
    say("--runs", help="the folder of runs (default: reports/runs)")
    say("--workers", type=literal, help="cells at a time (default: one a core)")
    say("--executor", default="local", help="local, ray or slurm")
    say("--address", help="a Ray cluster's, HOST:6379 or auto; for SLURM partition=gpu")
    say("--summary", help="the parquet of all runs (default: below the folder of runs)")
    try:
        asked = parser.parse_args(words)
        kept = {name: getattr(asked, name) for name in ("runs", "workers", "executor", "address")}
        config = validate(SweepConfig, kept | {"seeds": asked.seeds})
        axes = _assignments("--grid", asked.grid, several=True)
        cells = combine(axes, config.seeds, _assignments("--set", asked.set, several=False))
        sweep = run(asked.notebook, cells, replace(Options.of(config), summary=asked.summary))
    except (ParameterError, ExecutorError) as error:
        return ended(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    for cell in sweep.cells:
        if cell.key in sweep.failed:
            given = ", ".join(f"{name}={value}" for name, value in cell.given.items())
            print(f"failed: {given or 'the defaults'}: {sweep.failed[cell.key]}")
    cells_said = sum(cell.count for cell in sweep.cells)
    if cells_said > len(sweep.cells):
        print(f"{cells_said} cells are {len(sweep.cells)} runs: equal ids are computed once")
    print(f"summary: {sweep.summary}")
    print(sweep.text(), flush=True)
    return 1 if sweep.failed else 0


def _assignments(option: str, words: Sequence[str], several: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name.isidentifier():
            raise ParameterError([f"{option} needs NAME=VALUE, got {word!r}"])
        if name in found:
            raise ParameterError([f"{name} is given twice; leave one out"])
        found[name] = list(map(literal, listed(text))) if several else literal(text)
    return found


if __name__ == "__main__":
    sys.exit(main())
