"""Where the cells of a sweep run: each a process of papermill, on this machine, Ray or SLURM.

A cell dies with whoever started it, and its kernel with the cell. joblib's processes would not do:
they go on for as long as their tasks take when the sweep is killed, and when one of them is killed
every other task fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from sdslib.checks.notebooks import literal
from sdslib.io import storage
from sdslib.io.launch import die_with, temporary
from sdslib.io.wording import ParameterError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DIED, _KERNEL_DIED = "died: ", 3  # how a verdict begins, and a status says, that it may be repeated
# No figures are sent home, GPUs stay as they are, and a busy machine may take its time to start.
_RAY_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_register_timeout_seconds": "300",
}
_CELL = "from sdslib.results import executors; executors._run_cell()"
_POLL_S = 0.05
ASK_S = 20.0
PATIENCE_S = 180.0  # that a job of SLURM waits for a sign of the sweep; folders on nets lag behind
Ended = list[tuple[str, str | None]]  # (key, error or None) of jobs


class ExecutorError(RuntimeError):
    """Where cells should run nothing can be started; the message says why and what to do."""


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
        return f"{DIED}the process was ended by signal {-code}"
    return (DIED if code == _KERNEL_DIED else "") + lines[-1]


def _run_cell() -> None:
    """The life of a cell's process: execute the notebook and keep what it shows."""
    die_with(int(sys.argv[1]))
    job = Job(**json.loads(sys.argv[2]))
    import papermill

    extension = "--InteractiveShellApp.extra_extensions=['sdslib.results.executors']"
    options = {"progress_bar": False, "extra_arguments": [extension]}
    try:
        executed = papermill.execute_notebook(job.notebook, job.output, job.parameters, **options)
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


class Executor(Protocol):
    """Runs jobs at the same time; used from one thread."""

    def cores(self) -> tuple[int, int]:
        """How many cores there are in all, and on the smallest machine."""

    def submit(self, job: Job) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Ended:
        """Jobs that have ended, at once or after so many seconds."""

    def close(self) -> None:
        """End whatever still runs."""


def _awaited(ended: Callable[[], Ended], seconds: float) -> Ended:
    deadline = time.monotonic() + seconds
    while not (found := ended()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found


def _outcome(ask: Callable[[], str | None], given_up: type[Exception]) -> str | None:
    """The job's verdict; of one that a cluster gave up the cluster's words."""
    try:
        return ask()
    except given_up as error:
        return DIED + " ".join(str(error).split())[:300]


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
        self._live[job.key] = (job, start(job, self._scratch))

    def wait(self, seconds: float) -> Ended:
        return _awaited(self._ended, seconds)

    def _ended(self) -> Ended:
        codes = {key: process.poll() for key, (_, process) in self._live.items()}
        return [(key, verdict(self._live.pop(key)[0], code))
                for key, code in codes.items() if code is not None]  # fmt: skip

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
            reason = f"Ray did not start: {' '.join(str(error).split())}"
            raise ExecutorError(f"{reason}; `--executor local` needs none") from error
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

    def wait(self, seconds: float) -> Ended:
        """Jobs whose task has ended; one that Ray gave up carries Ray's words."""
        if not self._live:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(self._live), timeout=seconds)
        given_up = self._ray.exceptions.RayError
        return [(self._live.pop(ref).key, _outcome(partial(self._ray.get, ref), given_up))
                for ref in ready]  # fmt: skip

    def close(self) -> None:
        """Leave the cluster; it ends the tasks of this sweep, and a local one ends altogether."""
        self._ray.shutdown()


def _on_ray(job: dict[str, Any]) -> str | None:
    mine = Job(**job)
    return verdict(mine, start(mine).wait())


class OnSlurm:
    """Jobs of SLURM by submitit, each of which starts its cell as a process.

    `address` says what to ask SLURM for: `partition=gpu,gpus_per_node=1,timeout_min=1440`. A job
    ends soon after the sweep, however that ends: it watches a file that the sweep touches. The
    nodes need this library and the folder of runs at the same path.
    """

    def __init__(self, folder: Path, address: str | None = None, cluster: str = "slurm") -> None:
        import submitit

        asked = {"cpus_per_task": 4, "timeout_min": 24 * 60} | slurm_parameters(address)
        self._cores = int(asked["cpus_per_task"])
        self._incomplete = submitit.core.utils.UncompletedJobError
        self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        self._executor.update_parameters(name="sdslib", **asked)
        self._live = dict[str, Any]()
        self._sign = folder / f"alive-{socket.gethostname()}-{os.getpid()}"
        self._sign.touch()

    def cores(self) -> tuple[int, int]:
        """As many as there are cells: SLURM keeps those waiting that it has no room for."""
        return sys.maxsize, self._cores

    def submit(self, job: Job) -> None:
        task = self._executor.submit(_on_node, asdict(job), str(self._sign), PATIENCE_S)
        self._live[job.key] = task

    def wait(self, seconds: float) -> Ended:
        """Jobs that SLURM has ended; one that it gave up carries its words."""
        return _awaited(self._ended, seconds)

    def _ended(self) -> Ended:
        self._sign.touch()
        ended = [key for key, task in self._live.items() if task.done()]
        return [(key, _outcome(self._live.pop(key).result, self._incomplete)) for key in ended]

    def close(self) -> None:
        """Cancel the jobs of this sweep that still wait or run."""
        for task in self._live.values():
            task.cancel(check=False)
        self._sign.unlink(missing_ok=True)


def _on_node(job: dict[str, Any], sign: str, patience: float) -> str | None:
    """A cell on a node, as long as somebody touches its sign of life."""
    mine = Job(**job)
    process, last, since = start(mine), "", time.monotonic()
    while process.poll() is None:
        now = str(os.stat(sign).st_mtime_ns) if os.path.exists(sign) else "gone"
        if now != last and now != "gone":
            last, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            process.kill()
        time.sleep(_POLL_S)
    return verdict(mine, process.wait())


def slurm_parameters(address: str | None) -> dict[str, Any]:
    """submitit's parameters for `name=value,name=value`; what only SLURM knows has its prefix."""
    general = ("cpus_per_task", "gpus_per_node", "mem_gb", "nodes", "timeout_min")
    found: dict[str, Any] = {}
    for word in filter(None, (address or "").split(",")):
        name, sign, value = word.strip().partition("=")
        if not sign or not name.isidentifier() or not value:
            text = f"of executor 'slurm' address is as partition=gpu,timeout_min=60; got {word!r}"
            raise ParameterError([text])
        found[name if name in general else f"slurm_{name}"] = literal(value)
    return found


def opened(name: str, address: str | None, folder: Path) -> Executor:
    """The executor `local`, `ray` or `slurm`; what a cluster needs to keep lies in `folder`."""
    if name == "slurm":
        return OnSlurm(folder / "slurm", address)
    return OnRay(address) if name == "ray" else Local()


def require(name: str, address: str | None) -> None:
    """ParameterError where this executor cannot be had: in seconds, before anything is started."""
    if name == "local":
        return
    library, problem = {"ray": "Ray", "slurm": "submitit"}[name], None
    if importlib.util.find_spec(library.lower()) is None:
        problem = f"executor {name!r} needs {library}; pip install 'sds-clip-workbench[{name}]'"
    elif name == "ray":
        address = address or os.environ.get("RAY_ADDRESS")
        problem = ray_problem(address) if address else None
    elif shutil.which("sbatch") is None:
        problem = "executor 'slurm' needs sbatch; call it where SLURM takes jobs"
    if problem:
        raise ParameterError([problem])
    if name == "slurm":
        slurm_parameters(address)


def ray_problem(address: str) -> str | None:
    """Why no Ray cluster can be had at the address; None where one answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    ask = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        if not address.startswith("ray://"):  # Ray's client asks by itself
            subprocess.run(ask, capture_output=True, check=True, timeout=ASK_S)
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
