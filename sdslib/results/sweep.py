"""Many runs of one notebook: a grid of parameters, each cell one papermill run of its own.

A cell whose run is finished is skipped by the run's id and starts no process; one that failed or
was cut off is tried again and goes on from its last checkpoint. Two cells that would write the same
run (also the same L_CLIP-only control) never run at once. Nothing here outlives the sweep: a cell
is killed with the process that started it, its kernel with the cell.

    python -m sdslib.results.sweep notebooks/02_finetune.ipynb \
        --grid sds_weight=0,1e-3,1e-1 --seeds 5
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from sdslib.checks.guard import validate
from sdslib.checks.notebooks import SweepConfig
from sdslib.config import NOT_IN_ID
from sdslib.io import lock, storage
from sdslib.io.launch import die_with, temporary
from sdslib.io.paths import path_problem
from sdslib.io.progress import Progress
from sdslib.io.runs import Run, runs_root
from sdslib.io.wording import ParameterError
from sdslib.results.grid import Cell, PlanError, check, combine, literal, plan

if TYPE_CHECKING:
    import pandas as pd

DEATHS = 2  # attempts of a cell whose process dies; one that ends with an error is not repeated
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
RANKED_BY = ("validation.text", "mini-winoground.text", "winoground.text")
# No figures are sent home, GPUs stay as they are, and a busy machine may take its time to start.
_RAY_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_register_timeout_seconds": "300",
}
_CELL = "from sdslib import sweep; sweep._run_cell()"
_DIED, _KERNEL_DIED = "died: ", 3
_POLL_S = 0.05
_ASK_S = 20.0


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


# --- one cell ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What a process needs to know to run one cell; plain values, so that it travels."""

    key: str
    notebook: str
    parameters: dict[str, Any]
    output: str
    log: str
    threads: int


def start(job: Job, scratch: Path | None = None) -> subprocess.Popen:
    """Start papermill on the cell in a process of its own, which dies with this one.

    What it leaves of temporary files, where it is killed, lies in `scratch`.
    """
    share = dict.fromkeys(THREADS, str(job.threads))
    share |= {"TMPDIR": str(scratch)} if scratch else {}
    with open(job.log, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _CELL, str(os.getpid()), json.dumps(asdict(job))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | share,
            start_new_session=True,  # a Ctrl-C is the sweep's; it ends its cells itself
        )


def verdict(job: Job, code: int) -> str | None:
    """None where the cell's process ended well, else the last thing it said."""
    if code == 0:
        return None
    lines = Path(job.log).read_text("utf-8", "replace").strip().splitlines() or ["no word"]
    if code < 0:
        return f"{_DIED}the process was ended by signal {-code}"
    return (_DIED if code == _KERNEL_DIED else "") + lines[-1]


def _run_cell() -> None:
    """The life of a cell's process: execute the notebook and keep what it shows."""
    parent, words = int(sys.argv[1]), json.loads(sys.argv[2])
    die_with(parent)
    job = Job(**words)
    import papermill

    try:
        executed = papermill.execute_notebook(
            job.notebook,
            job.output,
            job.parameters,
            progress_bar=False,
            extra_arguments=["--InteractiveShellApp.extra_extensions=['sdslib.results.sweep']"],
        )
    except papermill.exceptions.PapermillExecutionError as error:
        print(f"{error.ename}: {error.evalue}".replace("\n", "; "))
        sys.exit(1)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "))
        sys.exit(_KERNEL_DIED if type(error).__name__ == "DeadKernelError" else 1)
    executed.metadata.pop("papermill", None)  # it names folders of this machine
    storage.write_bytes(Path(job.output), (json.dumps(executed, indent=1) + "\n").encode())


def load_ipython_extension(shell: object) -> None:
    """Loaded by a cell's kernel before its first line: the kernel dies with the cell."""
    die_with(int(os.environ["JPY_PARENT_PID"]))


# --- executors -----------------------------------------------------------------------------------


class Executor(Protocol):
    """Runs jobs at the same time; used from one thread."""

    def cores(self) -> tuple[int, int]:
        """How many cores there are in all, and on the smallest machine."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> list[tuple[str, str | None]]:
        """(key, error or None) of jobs that have ended, at once or after so many seconds."""

    def close(self) -> None:
        """End whatever still runs."""


class Local:
    """Processes of this machine."""

    def __init__(self) -> None:
        self._live: dict[str, tuple[Job, subprocess.Popen]] = {}
        self._held = ExitStack()
        self._scratch = self._held.enter_context(temporary())

    def cores(self) -> tuple[int, int]:
        """Cores that this process may use, twice: there is one machine."""
        able = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return able, able

    def submit(self, job: Job) -> None:
        """Start a job as a process."""
        self._live[job.key] = (job, start(job, self._scratch))

    def wait(self, seconds: float) -> list[tuple[str, str | None]]:
        """Jobs whose process has ended."""
        deadline = time.monotonic() + seconds
        while True:
            codes = {key: process.poll() for key, (_, process) in self._live.items()}
            ended = [(key, code) for key, code in codes.items() if code is not None]
            if ended or time.monotonic() >= deadline:
                return [(key, verdict(self._live.pop(key)[0], code)) for key, code in ended]
            time.sleep(_POLL_S)

    def close(self) -> None:
        """Kill what still runs; a run goes on from its last checkpoint another time."""
        for _, process in self._live.values():
            process.kill()
        for _, process in self._live.values():
            process.wait()
        self._live.clear()
        self._held.close()


class OnRay:
    """Tasks of a Ray cluster, each of which starts its cell as a process.

    Without an address (or `RAY_ADDRESS`) a cluster is started on this machine. Ray gives a task
    whose worker dies to another worker; the cell dies with the worker, so its run is free. On
    several machines they need this library and the folder of runs at the same path.
    """

    def __init__(self, address: str | None = None) -> None:
        for name, value in _RAY_ENV.items():
            os.environ.setdefault(name, value)
        import ray

        address = address or os.environ.get("RAY_ADDRESS")
        own = {} if address else {"num_cpus": Local().cores()[0], "include_dashboard": False}
        try:
            ray.init(address=address or "local", logging_level="error", log_to_driver=False, **own)
        except Exception as error:  # Ray raises bare Exceptions where its own processes failed
            reason = " ".join(str(error).split())
            raise PlanError(
                f"Ray did not start: {reason}; `--executor local` needs none"
            ) from error
        self._ray, self._live = ray, dict[Any, Job]()

    def cores(self) -> tuple[int, int]:
        """Cores of the cluster, and of its smallest machine that has any."""
        nodes = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
        able = [int(count) for count in nodes if count >= 1]
        return sum(able) or 1, min(able, default=1)

    def submit(self, job: Job) -> None:
        """Hand a job to the cluster, with as many cores as it has threads and a GPU if there is."""
        gpus = min(1, self._ray.cluster_resources().get("GPU", 0))
        task = self._ray.remote(num_cpus=job.threads, num_gpus=gpus, max_retries=5)(_on_ray)
        self._live[task.remote(asdict(job))] = job

    def wait(self, seconds: float) -> list[tuple[str, str | None]]:
        """Jobs whose task has ended; one that Ray gave up carries Ray's words."""
        if not self._live:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._live), timeout=seconds)
        return [(self._live.pop(ref).key, self._outcome(ref)) for ref in ready]

    def _outcome(self, ref: Any) -> str | None:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return _DIED + " ".join(str(error).split())[:300]

    def close(self) -> None:
        """Leave the cluster; it ends the tasks of this sweep, and a local one ends altogether."""
        self._ray.shutdown()


def _on_ray(job: dict[str, Any]) -> str | None:
    mine = Job(**job)
    return verdict(mine, start(mine).wait())


def require_ray(address: str | None) -> None:
    """Refuse a missing Ray, and an address at which none answers: in seconds, before `ray.init`.

    Raises ParameterError.
    """
    if importlib.util.find_spec("ray") is None:
        raise ParameterError(["executor 'ray' needs Ray; pip install 'sds-clip-workbench[ray]'"])
    address = address or os.environ.get("RAY_ADDRESS")
    problem = _ray_problem(address) if address else None
    if problem:
        raise ParameterError([problem])


def _ray_problem(address: str) -> str | None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    ask = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        if not address.startswith("ray://"):
            subprocess.run(ask, capture_output=True, check=True, timeout=_ASK_S)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        if b"AuthenticationError" not in (getattr(error, "stderr", None) or b""):
            return (
                f"no Ray cluster answers at address {address!r}; `ray start --head` starts one "
                "and prints its address; without one the sweep does"
            )
        if address != "auto":  # there Ray takes the user's token by itself
            return (
                f"the Ray cluster at address {address!r} wants a token; set RAY_AUTH_MODE=token, "
                "and RAY_AUTH_TOKEN where the token is not in ~/.ray/auth_token"
            )
    return None


# --- the sweep -----------------------------------------------------------------------------------


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
    if options.executor == "ray":
        require_ray(options.address)
    desk = Desk(plan(checked), options)
    board = Board(desk.cells, stream)
    with board:
        if desk.pending:
            executor = OnRay(options.address) if options.executor == "ray" else Local()
            try:
                desk.work(executor, board)
            finally:
                executor.close()
                desk.show(board)
        desk.show(board)
    return Sweep(desk.cells, desk.root, desk.summary, desk.failed)


class Desk:
    """Which cells are to do, which run, and which failed."""

    def __init__(self, cells: Sequence[Cell], options: Options) -> None:
        self.cells, self.root = tuple(cells), runs_root(root=options.runs)
        self.folder = self.root / "sweeps"
        self.summary = _summary_path(self.cells, self.folder, options.summary)
        self.failed: dict[str, str] = {}
        self._where = {"runs": str(self.root)} if options.runs else {}
        self._workers = options.workers
        self._running: dict[str, tuple[Cell, float]] = {}
        self._deaths: dict[str, int] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._told: set[str] = set()
        (self.folder / "cells").mkdir(parents=True, exist_ok=True)
        # Trained, but its notebook has not come to its end: that is executed again.
        cut = {key for key, event in self._outcomes().items() if event != "finished"}
        self._again = {cell.key for cell in self.cells} & cut
        # Those that leave one run alone come first: they are the controls of the others.
        self.pending = sorted(
            (c for c in self.cells if c.key in self._again or not c.known_done(self.root)),
            key=lambda cell: len(cell.ids),
        )

    def _outcomes(self) -> dict[str, str]:
        """By cell the last event of the diary of all sweeps here."""
        rows, path = list[Any](), self.folder / "attempts.jsonl"
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with suppress(ValueError):  # cut by a kill
                rows.append(json.loads(line))
        return {str(row["id"]): str(row["event"]) for row in rows if isinstance(row, dict)}

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
            if todo & ours or any(self._at_work(run) for run in cell.runs(self.root)):
                continue
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

    def _submit(self, cell: Cell, executor: Executor, threads: int) -> None:
        threads = cell.config.threads or threads
        given = dict(cell.given) | self._where | {"threads": threads}
        base = self.folder / "cells" / cell.key
        paths = {"output": f"{base}.ipynb", "log": f"{base}.log"}
        job = Job(cell.key, str(cell.notebook), given, threads=threads, **paths)
        self.pending.remove(cell)
        self._again.discard(cell.key)
        self._running[cell.key] = (cell, time.monotonic())
        self._note(cell, "started")
        executor.submit(job)

    def _ended(self, key: str, error: str | None) -> None:
        cell, since = self._running.pop(key)
        if error is None and cell.unfinished(self.root):
            error = "the notebook ended well and left no finished run of these parameters"
        seconds = round(time.monotonic() - since, 2)
        self._note(cell, "finished" if error is None else "failed", seconds=seconds, error=error)
        if error is None:
            self._keep_notebook(cell)
        elif "is locked by pid" in error:  # another sweep took it between our look and our start
            self.pending.append(cell)
        elif error.startswith(_DIED) and self._deaths.get(key, 0) + 1 < DEATHS:
            self._deaths[key] = self._deaths.get(key, 0) + 1
            self._again.add(key)
            self.pending.insert(0, cell)
        else:
            self.failed[key] = error

    def _keep_notebook(self, cell: Cell) -> None:
        base, run = self.folder / "cells" / cell.key, cell.runs(self.root)[0]
        if run is not None and Path(f"{base}.ipynb").is_file():
            run.keep("notebook.ipynb", Path(f"{base}.ipynb").read_bytes())
            Path(f"{base}.ipynb").unlink()
            Path(f"{base}.log").unlink(missing_ok=True)

    def _note(self, cell: Cell, event: str, **facts: Any) -> None:
        """One line of `sweeps/attempts.jsonl`, the diary of every process that was started."""
        row = {"id": cell.key, "event": event, "at": storage.now(), "given": dict(cell.given)}
        row |= {k: v for k, v in facts.items() if v is not None}
        storage.append_line(self.folder / "attempts.jsonl", json.dumps(row))

    def show(self, board: Board) -> None:
        """Bring the summary and the board up to date where a run has changed its state."""
        done = {c.key for c in self.cells if self._over(c)}
        if done == self._rows.keys() and self.summary.is_file():
            board.tick()
            return
        import pandas as pd

        for cell in self.cells:
            if cell.key in done and cell.key not in self._rows:
                self._rows[cell.key] = _row(cell, self.root)
                if cell.key in self.failed and self._rows[cell.key]["state"] == "finished":
                    self._rows[cell.key]["state"] = "notebook failed"
        rows = [self._rows.get(cell.key) or _row(cell, self.root) for cell in self.cells]
        table = pd.DataFrame(rows)
        storage.write_frame(self.summary, table)
        board.standing(len(done), leaderboard(table, varied(self.cells)), len(self.failed))

    def _over(self, cell: Cell) -> bool:
        if cell.key in self._rows or cell.key in self.failed:
            return True
        busy = cell.key in self._running or any(cell is other for other in self.pending)
        return not busy


def _default_workers(cells: Sequence[Cell], cores: int) -> int:
    """A cell of the mini-world keeps one core busy; real models want the machine to themselves."""
    return 1 if cells[0].config.preset == "paper" else min(cores, len(cells))


def _given_summary(name: str) -> Path:
    """The file of this name; ParameterError where it is not the sweep's to write."""
    if problem := path_problem(name):
        raise ParameterError([f"--summary: {problem}"])
    path = Path(name).expanduser().absolute()
    if path.suffix != ".parquet":
        raise ParameterError([f"--summary {name} must end with .parquet, which it is written as"])
    if path.exists() and not _is_summary(path):
        problem = f"--summary {name} is there and is no sweep's summary; choose another name"
        raise ParameterError([problem])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"--summary {name} cannot be written: {error.strerror}; name another folder"
        raise ParameterError([problem]) from error
    return path


def _is_summary(path: Path) -> bool:
    try:
        return {"run", "id", "state"} <= set(storage.read_frame(path).columns)
    except (OSError, ValueError):
        return False


def _summary_path(cells: Sequence[Cell], folder: Path, name: str | None) -> Path:
    if name:
        return _given_summary(name)
    text = " ".join(cell.key for cell in cells)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return folder / f"{cells[0].notebook.stem}-{digest}.parquet"


def _row(cell: Cell, root: Path) -> dict[str, Any]:
    """A run's row of the summary: see `Sweep.table`."""
    run, params = cell.runs(root)[0], cell.config.model_dump(mode="json")
    params = {name: value for name, value in params.items() if name not in NOT_IN_ID}
    row = {"run": None, "id": cell.key, "state": "not run", "cells": cell.count} | params
    if run is None:
        return row
    row |= {"run": run.name, "id": run.id, "state": run.status()["state"]}
    return row | metrics_of(run) if run.finished else row


def metrics_of(run: Run) -> dict[str, float]:
    """A finished run's figures under flat names; see `Sweep.table`."""
    from sdslib import tables

    found: dict[str, float] = {}
    for name in run.score_names():
        right = tables.outcomes(run.scores(name))
        found |= {f"{name}.{metric}": float(hits.mean()) for metric, hits in right.items()}
    if not (run.path / "history.jsonl").is_file():
        return found
    history = run.history()
    last = [c for c in ("clip", "sds", "eps_error") if c in history and history[c].notna().any()]
    found |= {column: float(history[column].dropna().iloc[-1]) for column in last}
    if "grad_ratio" in history and history["grad_ratio"].notna().any():
        found["grad_ratio"] = float(history["grad_ratio"].median())
    return found


def varied(cells: Iterable[Cell]) -> list[str]:
    """The parameters that the grid varies, the seed aside."""
    cells = list(cells)
    names: dict[str, None] = dict.fromkeys(name for cell in cells for name in cell.given)
    names.pop("seed", None)
    values = {name: {str(getattr(cell.config, name)) for cell in cells} for name in names}
    return [name for name, found in values.items() if len(found) > 1]


def leaderboard(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The settings of a summary, best first, by what is chosen on: the validation score.

    Columns: the parameters `by`, finished (as 3/5), and the mean, lowest and highest over seeds.
    """
    metric = next((m for m in RANKED_BY if m in table), None)
    metric = metric or next((c for c in table if c.endswith((".text", ".accuracy"))), None)
    rows = []
    groups = table.groupby(list(by), sort=False, dropna=False) if by else [((), table)]
    for key, part in groups:
        done = part[part["state"] == "finished"]
        row = dict(zip(by, key, strict=True)) | {"finished": f"{len(done)}/{len(part)}"}
        if metric:
            row |= {metric: done[metric].mean(), "low": done[metric].min()}
            row |= {"high": done[metric].max()}
        rows.append(row)
    found = type(table)(rows)
    return found.sort_values(metric, ascending=False, kind="stable") if metric else found


class Board(Progress):
    """Progress of a sweep with the time left, and below it the settings, best first."""

    def __init__(self, cells: Sequence[Cell], stream: TextIO | None = None) -> None:
        self._table: pd.DataFrame | None = None
        super().__init__(len(cells), "runs", stream)

    def standing(self, done: int, table: pd.DataFrame, failed: int) -> None:
        """Show that so many runs are over, with this leaderboard."""
        self._table, self._shown = table, time.monotonic()  # so that `update` leaves it to us
        self.update(done, f"{failed} failed" if failed else "")
        self._show()

    def tick(self) -> None:
        """Let the time left run on where it can be redrawn."""
        if self._handle is not None:
            self.update(self.done, self.note)

    def text(self) -> str:
        """The state in words, and the ten best settings below it."""
        line = super().text()
        if self._table is None or not len(self._table.columns):
            return line
        shown = self._table.head(10).to_string(index=False, float_format="{:.4f}".format)
        return line + "".join(f"\n    {row}" for row in shown.splitlines())

    def _html(self) -> str:
        table, self._table = self._table, None  # the words alone stand beside the bar
        bar = super()._html()
        self._table = table
        if table is None:
            return bar
        return bar + table.head(10).to_html(index=False, border=0, float_format="{:.4f}".format)


# --- the command ---------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Run a notebook over a grid. Exit status: 0 all finished, 1 some failed, 2 nothing was run."""
    parser = argparse.ArgumentParser(
        prog="python -m sdslib.results.sweep", description=main.__doc__
    )
    say = parser.add_argument
    say("notebook", help="as notebooks/02_finetune.ipynb")
    say("--grid", action="append", default=[], metavar="NAME=A,B", help="values; may be repeated")
    say("--set", action="append", default=[], metavar="NAME=A", help="one value for all cells")
    say("--seeds", type=literal, help="so many seeds, from 0")
    say("--runs", help="the folder of runs (default: reports/runs)")
    say("--workers", type=literal, help="cells at a time (default: one a core)")
    say("--executor", default="local", help="local or ray")
    say("--address", help="of a running Ray cluster, as HOST:6379 or auto")
    say("--summary", help="the parquet of all runs (default: below the folder of runs)")
    try:
        asked = parser.parse_args(words)
        kept = {name: getattr(asked, name) for name in ("runs", "workers", "executor", "address")}
        config = validate(SweepConfig, kept | {"seeds": asked.seeds})
        axes = _assignments("--grid", asked.grid, several=True)
        cells = combine(axes, config.seeds, _assignments("--set", asked.set, several=False))
        sweep = run(asked.notebook, cells, replace(Options.of(config), summary=asked.summary))
    except (ParameterError, PlanError) as error:
        problems = getattr(error, "problems", None)
        line = f"invalid parameters: {'; '.join(problems)}" if problems else str(error)
        print(line, file=sys.stderr)
        return 2
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
        parts = [part.strip() for part in text.split(",") if part.strip()]
        found[name] = [literal(part) for part in parts] if several else literal(text)
    return found


if __name__ == "__main__":
    sys.exit(main())
