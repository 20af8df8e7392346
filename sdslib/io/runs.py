"""A run's folder: parameters, status, history, scores, weights.

Nothing is overwritten, nothing is unpickled, and a kill at any moment loses at most the steps
since the last checkpoint. `step` counts finished optimizer steps, in history and checkpoints.

Whatever is kept has a checksum, which every reading holds it to: a line of the history its own, the
status one inside it, a folder its manifest, every other file one in `sums.json`. A run of before
that, or a published one (the manifest of its study has its sums), is read without.
`python -m sdslib.io.runs list`, `show RUN` and `verify [RUN …]` tell what is there.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import hashlib
import json
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
import warnings
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdslib.io import storage
from sdslib.io.paths import path_problem, project_path, project_root, shown_path
from sdslib.io.storage import LockedError, StorageError, read_json, write_json
from sdslib.io.wording import suggest

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sdslib.config import Config

__all__ = ["Checkpoint", "LockedError", "Run", "RunError", "find_run", "list_runs", "open_run"]

_AFTER_THE_RUN = ("lab/", "results/", "show/")  # wings that read what a run has left
_PACKAGES = (
    "accelerate",
    "datasets",
    "diffusers",
    "numpy",
    "open_clip_torch",
    "pandas",
    "papermill",
    "peft",
    "pillow",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "sds-clip-workbench",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
_DECIDES_BITS = ("python", "packages", "threads", "device", "code")
_STATUS_EVERY_S = 1.0
_REMEDY = "take it from a copy, or delete the run's folder and run again"
_NOWHERE = "a run cannot be kept in {}: {}; name a folder that can be written with runs"
_CRC = "crc32"
_SUMMED_LINE = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}\n', re.DOTALL)
_open_here: weakref.WeakValueDictionary[Path, Run] = weakref.WeakValueDictionary()


class RunError(RuntimeError):
    """A run cannot be opened, found or written; the message says which and what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: the reader of a notebook needs the message, not our stack.
        return [str(self)]


class RunWarning(UserWarning):
    """Something of a run was skipped or differs; the work goes on."""


class Checkpoint(NamedTuple):
    """What was saved after `step` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def open_run(
    config: Config, fingerprints: Mapping[str, Any] | None = None, root: Path | str | None = None
) -> Run:
    """The run of these parameters and data, new, continued, or (finished) read-only.

    `fingerprints` names the data by content, as `{"pairs": "…", "benchmark": "…", "teacher": "…"}`.
    With `config.resume` an unfinished run keeps its newest good checkpoint and the history up to
    it; without, both are dropped. Raises LockedError while another process has it, and RunError
    when `config.run` names a run of other parameters.
    """
    root = runs_root(config, root)
    identity = identify(config, fingerprints or {})
    folder = _folder_of(root, config, identity)
    _make(folder)
    if (folder / "status.json").exists() and Run(folder).finished:
        return _as_it_is(Run(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(_NOWHERE.format(shown_path(folder), "it is read-only"))
    storage.acquire(folder)
    run = Run(folder, writable=True)
    if run.finished:  # while we waited for the lock
        storage.release(folder)
        return _as_it_is(Run(folder))
    run._begin(config, identity)
    return run


def _as_it_is(run: Run) -> Run:
    if run.environment.get("code", code_hash()) != code_hash():
        text = f"{run.name} was computed by another state of the code, under the same recipe"
        warnings.warn(f"{text}: its figures stand as they are", RunWarning, stacklevel=3)
    return run


def runs_root(config: Config | None = None, root: Path | str | None = None) -> Path:
    """Where runs are kept: `root`, else the config's `runs`, else `reports/runs`."""
    chosen = root or (config and config.runs) or "reports/runs"
    return project_path(chosen)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(_NOWHERE.format(shown_path(folder.parent), error.strerror)) from error


class Run:
    """One run's folder; made by `open_run` (for writing) or `find_run` (for reading)."""

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        self._writable = writable
        self._last_step: int | None = None
        self._status_due = 0.0
        if writable:
            earlier = _open_here.get(path)
            if earlier is not None:  # the cell was run again: the new handle takes over
                earlier._writable = False
            _open_here[path] = self
            atexit.register(self._close)

    def __repr__(self) -> str:
        return f"Run({self.name}: {self.status()['message']})"

    @property
    def name(self) -> str:
        """The folder's name, `<name or preset-arm>-<id>`."""
        return self.path.name

    @property
    def id(self) -> str:
        """The hash of the parameters that matter, the data, the weights and the recipe."""
        return str(self._read("identity.json", "id")["id"])

    @property
    def params(self) -> dict[str, Any]:
        """The validated parameters, as in the Config."""
        return self._read("params.json")

    @property
    def weights(self) -> Path:
        """The trained student's open_clip folder; written inside `staged("weights")`."""
        return self.path / "weights"

    @property
    def identity(self) -> dict[str, Any]:
        """What the id is a hash of: params, data by content, and recipe."""
        return self._read("identity.json", "id", "params", "data")

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, device and threads that it was computed with, and what was noted."""
        return self._read("env.json")

    def origin(self) -> dict[str, Any]:
        """Where this run's weights come from, for their passport: parameters, data, environment."""
        identity = self.identity
        return {k: v for k, v in identity.items() if k != "model"} | {
            "environment": self.environment
        }

    @property
    def finished(self) -> bool:
        """Whether the run is complete; it is read-only then."""
        return self.status()["state"] == "finished"

    @property
    def shown_path(self) -> str:
        """The folder as a reader should see it: from the project root where it lies below."""
        return shown_path(self.path)

    def status(self) -> dict[str, Any]:
        """state (running, finished, failed, interrupted, died), pid, step, updated, message.

        `died` is concluded by the reader: the file says running and the process is gone.
        """
        return read_status(self.path)

    def _read(self, name: str, *keys: str) -> dict[str, Any]:
        """A JSON object of the folder; RunError where it is damaged or lacks a key."""
        self._check(name)
        found = read_json(self.path / name)
        if not isinstance(found, dict) or not found.keys() >= set(keys):
            raise RunError(f"{self.name}/{name} has not the expected form; delete the run's folder")
        return found

    def _check(self, name: str) -> None:
        """RunError where a file is not as it was written."""
        if problem := storage.sum_problem(self.path, name, self._sums()):
            raise RunError(f"{self.name}/{problem}; {_REMEDY}")

    def _sums(self) -> dict[str, list[str | None]]:
        try:
            return storage.sums_of(self.path)
        except StorageError as error:
            raise RunError(f"{error}; {_REMEDY}") from error

    def problems(self, folders: bool = True) -> list[str]:
        """What of the run is not as it was written, each with its file; [] where all is well.

        `folders` adds weights, checkpoints and the atlas, whose hashing takes its time.
        """
        try:
            sums = storage.sums_of(self.path)
        except StorageError as error:
            return [str(error).partition("/")[2] or str(error)]
        found = [storage.sum_problem(self.path, name, sums) for name in sums]
        found += [self._status_problem(), *_line_problems(self.path / "history.jsonl")]
        for manifest in sorted(self.path.rglob(storage.MANIFEST)) if folders else []:
            problem = storage.manifest_problem(manifest.parent)
            place = manifest.parent.relative_to(self.path).as_posix()
            found.append(problem and f"{place}/{problem}")
        return [problem for problem in found if problem]

    def _status_problem(self) -> str | None:
        try:
            _status(self.path)
        except StorageError as error:
            return str(error).partition("/")[2]
        return None

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add one row, flushed to the system; numbers that are not finite are kept as null."""
        self._need_writable()
        storage.append_line(self.path / "history.jsonl", _line(row))
        if row.get("step") is not None:
            self._last_step = int(row["step"])
            if time.monotonic() >= self._status_due:
                self._set("running", f"running at step {self._last_step}")

    def history(self) -> pd.DataFrame:
        """All rows; a line cut by a kill is skipped with a warning, a finished run's has none."""
        import pandas as pd

        self._check("history.jsonl")
        problems = _line_problems(self.path / "history.jsonl") if self.finished else []
        if problems:
            raise RunError(f"{self.name}/{problems[0]}; {_REMEDY}")
        return pd.DataFrame([row for row, _ in _rows(self.path / "history.jsonl")])

    def save_scores(self, name: str, table: pd.DataFrame) -> Path:
        """Keep one row an item, every score, as `scores/<name>.parquet`."""
        self._need_writable()
        return self._write_table(self._scores_path(name), table)

    def scores(self, name: str) -> pd.DataFrame:
        """The table that `save_scores` kept under this name; RunError lists what there is."""
        return self._read_table(self._scores_path(name))

    def score_names(self) -> list[str]:
        """The names under which scores are kept."""
        return sorted(p.stem for p in (self.path / "scores").glob("*.parquet"))

    def save_results(self, table: pd.DataFrame) -> Path:
        """Keep the run's table of results, `results.parquet`.

        It is drawn from the scores, so a finished run's may be written again.
        """
        return self._write_table(self.path / "results.parquet", table)

    def results(self) -> pd.DataFrame:
        """The table that `save_results` kept."""
        return self._read_table(self.path / "results.parquet")

    def keep(self, name: str, data: bytes) -> Path:
        """Keep a file beside what was computed, as the executed notebook; also of a finished run.

        It is new, or replaced; a run of before there were checksums gets none by it.
        """
        if (self.path / storage.SUMS).exists():
            self._sums()
            storage.keep(self.path, {name: data})
        else:
            storage.write_bytes(self.path / name, data)
        return self.path / name

    def _write_table(self, path: Path, table: pd.DataFrame) -> Path:
        path.parent.mkdir(exist_ok=True)
        data = table.to_parquet(index=False)
        return self.keep(path.relative_to(self.path).as_posix(), data)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """Yield an empty folder that becomes `<run>/<name>`, with a manifest, if all goes well."""
        self._need_writable()
        with storage.staged_folder(self.path / name) as stage:
            yield stage

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int = 2
    ) -> Path:
        """Save everything needed to go on after `step`; then drop all but the newest `keep`.

        `tensors` go to safetensors, `meta` (plain scalars, lists, dicts) to JSON. Older
        checkpoints go only after the new one was read back and agrees with its manifest.
        StorageError when the disk is full; what was saved before is intact.
        """
        from safetensors.torch import save_file

        self._need_writable()
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        folder = self.path / "checkpoints" / f"step-{step:08d}"
        with storage.staged_folder(folder) as stage:
            plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
            save_file(plain, stage / "tensors.safetensors")
            write_json(stage / "meta.json", {"step": step, "meta": dict(meta)})
        problem = storage.manifest_problem(folder)
        if problem:
            raise StorageError(f"{self.name}: {folder.name} was written but {problem}")
        self._prune(keep)
        self._last_step = step
        self._set("running", f"running at step {step}")
        return folder

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that agrees with its manifest, or None; warns of each skipped."""
        from safetensors.torch import load_file

        folder = self._newest_good()
        if folder is None:
            return None
        meta = read_json(folder / "meta.json")
        return Checkpoint(meta["step"], load_file(folder / "tensors.safetensors"), meta["meta"])

    def note(self, **facts: Any) -> None:
        """Add facts under `noted` in `env.json`, as the device that was really used."""
        self._need_writable()
        env = self.environment
        noted = env.get("noted", {}) | {k: _plain(v) for k, v in facts.items()}
        self.keep("env.json", storage.json_bytes(env | {"noted": noted}))

    def finish(self) -> None:
        """Mark the run complete; from here on it is read-only."""
        self._need_writable()
        self._settle()
        self._end("finished", "finished")

    def fail(self, error: BaseException | str) -> None:
        """Mark the run failed, with the error's words."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._end("failed", f"failed at step {self._step_text()}: {text}")

    def interrupt(self, reason: str = "on request") -> None:
        """Mark the run interrupted; `open_run` continues it."""
        self._end("interrupted", f"interrupted at step {self._step_text()} {reason}")

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._writable or error is None:
            return
        if not self._is_there():
            self._leave()
        elif isinstance(error, (KeyboardInterrupt, SystemExit)):
            self.interrupt(f"by {type(error).__name__}{f': {error}' if str(error) else ''}")
        else:
            self.fail(error)

    def _begin(self, config: Config, identity: dict[str, Any]) -> None:
        storage.sweep(self.path)
        env = self._compared(environment(config))
        _adopt(self.path)
        told = {"params": config.model_dump(mode="json"), "env": env, "identity": identity}
        storage.keep(self.path, {f"{k}.json": storage.json_bytes(v) for k, v in told.items()})
        resume = getattr(config, "resume", True)
        if not resume:
            storage.discard(self.path / "checkpoints")
        good = self._newest_good()
        if good is None and _checkpoints(self.path):
            text = f"{self.name}: no checkpoint is whole; starting afresh at step 0"
            warnings.warn(text, RunWarning, stacklevel=3)
        step = int(good.name.split("-")[1]) if good else 0
        _truncate_history(self.path / "history.jsonl", step)
        self._last_step = step or None
        self._set("running", f"running at step {step}")

    def _compared(self, new: dict[str, Any]) -> dict[str, Any]:
        """The environment, beside what the run began with."""
        if not (self.path / "env.json").exists():
            return new
        try:
            old = self.environment
        except (RunError, StorageError) as error:
            text = f"{error}. It is written anew; whether the run is bit-exact cannot be told"
            warnings.warn(text, RunWarning, stacklevel=4)
            return new | {"bit_exact": False}
        both = [k for k in _DECIDES_BITS if old.get(k) is not None and new[k] is not None]
        changed = [key for key in both if old[key] != new[key]]
        exact = bool(old.get("bit_exact", True)) and not changed
        if changed:
            warnings.warn(
                f"{self.name} goes on with other {' and '.join(changed)} than it began with; "
                "its result is not bit-exact",
                RunWarning,
                stacklevel=4,
            )
        began = {key: old[key] for key in changed} | old.get("began_with", {})
        kept = {"noted": old["noted"]} if "noted" in old else {}
        return new | kept | {"bit_exact": exact, "began_with": began}

    def _newest_good(self) -> Path | None:
        for folder in _checkpoints(self.path):
            problem = storage.manifest_problem(folder)
            if problem is None:
                return folder
            text = f"{self.name}: skipped checkpoint {folder.name}, {problem}"
            warnings.warn(text, RunWarning, stacklevel=3)
        return None

    def _prune(self, keep: int) -> None:
        good = 0
        for folder in _checkpoints(self.path):
            if good < keep and storage.manifest_problem(folder) is None:
                good += 1
            else:
                storage.discard(folder)

    def _scores_path(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"scores name {name!r} must be letters, digits, '.', '-' and '_'")
        return self.path / "scores" / f"{name}.parquet"

    def _read_table(self, path: Path) -> pd.DataFrame:
        if not path.is_file():
            there = ", ".join(self.score_names()) or "none"
            raise RunError(f"{self.name} has no {path.stem}; scores there: {there}")
        self._check(path.relative_to(self.path).as_posix())
        try:
            return storage.read_frame(path)
        except (OSError, ValueError) as error:
            place = path.relative_to(self.path.parent)
            reason = str(error).split("\n")[0]
            raise RunError(f"{place} cannot be read ({reason}); score again") from error

    def _need_writable(self) -> None:
        if self._writable and self._is_there():
            return
        if self._writable:
            raise RunError(
                f"run {self.name} is gone: its folder was deleted or moved while it was written "
                "to; put it back and run again, or run again to begin anew"
            )
        why = "is finished" if self.finished else "was opened for reading"
        raise RunError(f"run {self.name} {why}; open_run with other parameters makes a new one")

    def _is_there(self) -> bool:
        return (self.path / "identity.json").is_file()

    def _settle(self) -> None:
        """Give every file of the run that is to stay the one sum that it has to have from now."""
        sums = self._sums()
        named = {path.relative_to(self.path).as_posix() for path in _files(self.path)}
        found = {name: storage.file_sha256(self.path / name) for name in sorted(named)}
        settled = {
            name: [digest] if digest in sums.get(name, [digest]) else sums[name]
            for name, digest in found.items()
        }
        storage.write_summed(self.path / storage.SUMS, {"files": settled})

    def _step_text(self) -> int:
        return self._last_step or 0

    def _set(self, state: str, message: str) -> None:
        self._status_due = time.monotonic() + _STATUS_EVERY_S
        status = storage.myself() | {
            "state": state,
            "step": self._last_step,
            "updated": storage.now(),
            "message": message,
        }
        storage.write_summed(self.path / "status.json", status)

    def _end(self, state: str, message: str) -> None:
        self._need_writable()
        self._set(state, message)
        self._leave()

    def _leave(self) -> None:
        self._writable = False
        if self.path.is_dir():
            storage.release(self.path)
        atexit.unregister(self._close)

    def _close(self) -> None:
        """The interpreter ends in good order, but nobody said how the run ended."""
        if self._writable and self._is_there() and self.status()["pid"] == os.getpid():
            self.interrupt("because the process ended")


def _files(folder: Path) -> Iterator[Path]:
    """The files that `sums.json` of a finished run tells of: those without a sum elsewhere."""
    sealed = {path.parent for path in folder.rglob(storage.MANIFEST)}
    for path in folder.rglob("*"):
        alone = path.parent == folder and path.name in (storage.SUMS, "status.json", "lock")
        part = path.name.startswith((".part-", ".stage-", ".trash-"))
        if path.is_file() and not alone and not part and sealed.isdisjoint(path.parents):
            yield path


def _adopt(folder: Path) -> None:
    """Go on with what an earlier process kept; what is damaged is dropped, and computed again.

    A run of before there were checksums gets them now.
    """
    tables = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.parquet"))
    if not (folder / storage.SUMS).exists():
        _sum_lines(folder / "history.jsonl")
        found = {name: [storage.file_sha256(folder / name)] for name in tables}
        storage.write_summed(folder / storage.SUMS, {"files": found})
        return
    try:
        sums = storage.sums_of(folder)
    except StorageError as error:
        warnings.warn(f"{error}; it is written anew", RunWarning, stacklevel=5)
        sums = {}
    for name in tables:
        problem = storage.sum_problem(folder, name, {name: sums.get(name, [])})
        if problem:
            text = f"{folder.name}/{problem}; it is computed again"
            warnings.warn(text, RunWarning, stacklevel=5)
            (folder / name).unlink()
    kept = {name: sums[name] for name in tables if (folder / name).exists()}
    storage.write_summed(folder / storage.SUMS, {"files": kept})


def identify(config: Config, fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: parameters that matter, data, recipe, and the id of these.

    The fingerprint of a party that the arm never reads (`teacher` of `clip-only`) is left out.
    """
    kept = config.identity()
    data = {
        k: v for k, v in fingerprints.items() if k in kept or k not in type(config).model_fields
    }
    identity = {
        "model": type(config).__name__,
        "params": kept,
        "data": data,
        "recipe": config.recipe,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:10]} | identity


@cache
def code_hash() -> str:
    """A hash of the library's code when this process first asked, which is nearest to what it runs.

    Comments, docstrings and layout do not count: the code is hashed as `ast.unparse` prints it. It
    is recorded with a run, and is no part of its id: a message that is reworded makes no new run.
    """
    house, digest = project_root() / "sdslib", hashlib.sha256()
    for path in sorted(house.rglob("*.py")):
        name = path.relative_to(house).as_posix()
        if not name.startswith(_AFTER_THE_RUN):
            digest.update(f"{name}\n{_plain_code(path.read_text('utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def _plain_code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


def _is_text(node: ast.AST) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def recipe_of(identity: Mapping[str, Any]) -> Any:
    """What made the run's numbers: its recipe, or for a run of before there was one its code."""
    return identity.get("recipe", identity.get("code"))


def environment(config: Config) -> dict[str, Any]:
    """Versions, commit, device and threads of this process; no path and no name of the machine."""
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": _versions(),
        "git": _git(),
        "code": code_hash(),
        "device": _device(config.device),
        "threads": torch.get_num_threads() if torch is not None else config.threads,
        "cpus": os.cpu_count(),
    }


def _device(name: str) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None if name == "auto" else name
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    found = "mps" if torch.backends.mps.is_available() else "cpu"
    return found if name == "auto" else name


@cache
def _versions() -> dict[str, str]:
    return {name: found for name in _PACKAGES if (found := _version(name))}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git() -> dict[str, Any] | None:
    """The commit when this process first asked, as for `code_hash`."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout

    try:
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def read_status(folder: Path) -> dict[str, Any]:
    """The run's status as its file and its process tell it; see `Run.status`."""
    path = folder / "status.json"
    unknown = {"state": "died", "pid": None, "step": None, "updated": None}
    if not path.exists():
        return unknown | {"message": "never began"}
    try:
        status = _status(folder)
    except StorageError as error:
        return unknown | {"message": f"{error}; open the run again to go on from its checkpoint"}
    try:
        if status["state"] == "running" and not _is_running(folder, status):
            step = _last_step(folder, status["step"])
            message = f"died at step {step} while running"
            return status | {"state": "died", "step": step, "message": message}
        if not isinstance(status["message"], str) or not status.keys() >= unknown.keys():
            raise KeyError("message")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{folder.name}/status.json has not the expected form") from error
    return dict(status)


def _is_running(folder: Path, status: dict[str, Any]) -> bool:
    """Whether the process lives; one on another host counts while it has the lock."""
    here = status["host"] == socket.gethostname()
    return storage.is_alive(status) and (here or storage.holder(folder) is not None)


def _status(folder: Path) -> Any:
    """The file as it is; StorageError where it is not as it was written."""
    path = folder / "status.json"
    if not (folder / storage.SUMS).exists():  # of before there were checksums
        found = read_json(path) if path.exists() else None
        if not isinstance(found, dict) or "sha256" not in found:
            return found
    return storage.read_summed(path)


def _last_step(folder: Path, known: int | None) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        steps = [row.get("step") for row, _ in _rows(folder / "history.jsonl")]
    return max([known or 0, *(s for s in steps if isinstance(s, int))])


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Each readable row with its raw line; warns of every line that is not one."""
    for number, row, line in _numbered(path):
        if row is not None:
            yield row, line
        else:
            text = f"{path.parent.name}/{path.name}: skipped line {number}, which is torn"
            warnings.warn(text, RunWarning, stacklevel=4)


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any] | None, bytes]]:
    """Each line by its number from 1, with its row, or None where it is torn or damaged."""
    if not path.exists():
        return
    summed = (path.parent / storage.SUMS).exists()
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        yield number, _row_of(line, summed), line


def _line_problems(path: Path) -> list[str]:
    """The damaged lines of a history; the last one may be torn by a kill while it was written."""
    rows = list(_numbered(path))
    torn = {rows[-1][0]} if rows and not rows[-1][2].endswith(b"\n") else set()
    return [
        f"{path.name} line {number} differs from its checksum"
        for number, row, _ in rows
        if row is None and number not in torn
    ]


def _line(row: Mapping[str, Any]) -> str:
    """A row as a line of the history, its CRC-32 last."""
    plain = {str(k): _plain(v) for k, v in row.items() if k != _CRC}
    text = json.dumps(plain, allow_nan=False)
    return f'{text[:-1]}, "{_CRC}": "{zlib.crc32(text.encode()):08x}"}}'


def _row_of(line: bytes, summed: bool) -> dict[str, Any] | None:
    """The row of a whole line that agrees with its checksum, which `summed` ones must have."""
    match = _SUMMED_LINE.fullmatch(line)
    text = match[1] + b"}" if match else line
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    good = zlib.crc32(text) == int(match[2], 16) if match else not summed
    if not (good and isinstance(row, dict) and line.endswith(b"\n")):
        return None
    return row if row.get("step") is None or type(row["step"]) is int else None


def _sum_lines(path: Path) -> None:
    if path.exists():
        lines = [f"{_line(row)}\n".encode() for row, _ in _rows(path)]
        storage.write_bytes(path, b"".join(lines))


def _truncate_history(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line for row, line in _rows(path) if row.get("step") is None or row["step"] <= step]
    if b"".join(kept) != path.read_bytes():
        storage.write_bytes(path, b"".join(kept))


def _plain(value: Any) -> Any:
    """What strict JSON can hold: numpy and torch scalars unwrapped, not-finite numbers null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first; `.old` is what a kill during a rename can leave."""
    found = [
        path
        for path in (folder / "checkpoints").glob("step-*")
        if re.fullmatch(r"step-\d{8,}(\.old)?", path.name)
    ]
    return sorted(found, key=lambda p: (-int(p.name.split("-")[1].split(".")[0]), p.name))


def _folder_of(root: Path, config: Config, identity: dict[str, Any]) -> Path:
    there = [path for path in _run_folders(root) if path.name.endswith(f"-{identity['id']}")]
    name = getattr(config, "run", None)
    if name:
        _refuse_other(root, name, identity)
    if there:
        return there[0]
    arm = getattr(config, "arm", type(config).__name__.removesuffix("Config").lower())
    return root / f"{name or f'{config.preset}-{arm}'}-{identity['id']}"


def _refuse_other(root: Path, name: str, identity: dict[str, Any]) -> None:
    for path in _run_folders(root):
        if path.name.rpartition("-")[0] == name and not path.name.endswith(identity["id"]):
            differences = "; ".join(_differences(Run(path).identity, identity))
            raise RunError(
                f"run {name!r} exists with other parameters ({differences}); choose another name"
            )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for part, prefix in (("params", ""), ("data", "data ")):
        for key in sorted(old[part].keys() | new[part].keys()):
            before, after = old[part].get(key), new[part].get(key)
            if before != after:
                yield f"{prefix}{key} was {before!r}, now {after!r}"
    if old.get("recipe") != new["recipe"]:
        yield f"recipe was {old.get('recipe', 'not told')}, now {new['recipe']}"


def _run_folders(root: Path) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/identity.json"))


def find_run(key: str | Path, root: Path | str | None = None) -> Run:
    """The run of this id (or its beginning), name, or path, for reading.

    An executed notebook stands for the run that it names last. RunError when there is none (with
    the nearest name) or more than one, and for a notebook that was cut.
    """
    path = Path(key)
    if path_problem(str(key)) is None and (path / "identity.json").is_file():
        return Run(path.resolve())
    folders = _run_folders(runs_root(root=root))
    key = str(key)
    if path.suffix == ".ipynb":
        return _run_of_notebook(path, folders)
    exact = [f for f in folders if key in (f.name, *f.name.rsplit("-", 1))]
    found = exact or [f for f in folders if f.name.rsplit("-", 1)[1].startswith(key)]
    if len(found) == 1:
        return Run(found[0])
    if found:
        raise RunError(f"{key!r} names several runs: {', '.join(f.name for f in found)}")
    close = suggest(key, [f.name for f in folders])
    hint = f"did you mean {close!r}?" if close else "`python -m sdslib.io.runs list` shows them"
    raise RunError(f"no run {key!r}; {hint}")


def _run_of_notebook(path: Path, folders: list[Path]) -> Run:
    if not path.is_file():
        raise RunError(f"{path.name} does not exist")
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        json.loads(text)
    except ValueError as error:
        raise RunError(
            f"{path.name} is not a complete notebook (cut at byte {path.stat().st_size}); execute "
            "it again: what its run had finished is read, not computed again"
        ) from error
    named = {text.rfind(folder.name): folder for folder in folders if folder.name in text}
    if not named:
        raise RunError(f"{path.name} names no run; `python -m sdslib.io.runs list` shows all")
    return Run(named[max(named)])


def list_runs(root: Path | str | None = None) -> pd.DataFrame:
    """One row a run: name, id, state, step, when, and the parameters that are most asked for.

    A run that cannot be read has the state `damaged` and nothing more; a warning says why.
    """
    import pandas as pd

    columns = ["run", "id", "state", "step", "updated", "arm", "sds_weight", "trainable", "seed"]
    rows = [_listed(Run(folder)) for folder in _run_folders(runs_root(root=root))]
    return pd.DataFrame(rows, columns=columns)


def _listed(run: Run) -> dict[str, Any]:
    try:
        return run.params | run.status() | {"run": run.name, "id": run.id}
    except (RunError, StorageError) as error:
        warnings.warn(f"left out: {error}", RunWarning, stacklevel=4)
        return {"run": run.name, "state": "damaged"}


def finished_runs(root: Path | str | None = None) -> list[Run]:
    """The finished fine-tunings of a folder that are as they were written, the newest first.

    A warning names each that is damaged.
    """
    found = list_runs(root)
    found = found[found["state"].eq("finished") & found["arm"].notna()]
    newest = found.sort_values("updated", kind="stable")["run"][::-1]
    return [run for name in newest if _is_sound(run := Run(runs_root(root=root) / name))]


def _is_sound(run: Run) -> bool:
    problems = run.problems(folders=False)
    if problems:
        text = f"left out: {run.name}/{'; '.join(problems)}; {_REMEDY}"
        warnings.warn(text, RunWarning, stacklevel=4)
    return not problems


def verify(names: Iterable[str], root: Path | str | None = None) -> list[tuple[Run, list[str]]]:
    """The runs of these names, or all of a folder, each with what of it is not as it was written.

    A name may be a folder of runs, as that of a published study. RunError where there is none.
    """
    found: list[Run] = []
    for name in names:
        below = _run_folders(project_path(name))
        found += [Run(folder) for folder in below] or [find_run(name, root)]
    found = found or [Run(folder) for folder in _run_folders(runs_root(root=root))]
    return [(run, run.problems()) for run in found]


def _verdict(run: Run, problems: list[str]) -> str:
    if problems:
        return "\n".join(f"{run.name}/{problem}" for problem in problems)
    try:
        known = len(storage.sums_of(run.path))
    except StorageError as error:
        return str(error)
    how = f"{known} files" if known else "no checksums, kept before there were any"
    return f"{run.name}: whole ({how})"


def describe(run: Run) -> str:
    """The run in words: how it ended, what is kept, with which parameters."""
    status, env = run.status(), run._read("env.json", "device", "threads", "python")
    good = [(f, storage.manifest_problem(f)) for f in _checkpoints(run.path)]
    lines = [
        f"{run.name}: {status['message']}",
        f"updated      {status['updated']}",
        f"history      {sum(1 for _ in _rows(run.path / 'history.jsonl'))} rows",
        *(f"checkpoint   {f.name} {problem or 'verified'}" for f, problem in good),
        f"scores       {', '.join(run.score_names()) or 'none'}",
        f"device       {env['device']}, {env['threads']} threads, python {env['python']}",
        *(f"{name:<12} {value}" for name, value in run.params.items()),
    ]
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """`list` all runs, `show` one, or `verify` them: hold every file to its checksum.

    Exit status: 1 where `verify` finds a damaged file, 2 when there is no run of that name.
    """
    parser = argparse.ArgumentParser(prog="python -m sdslib.io.runs", description=main.__doc__)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--runs", help="the folder of runs (default: reports/runs)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="one line a run", parents=[where])
    show = verbs.add_parser("show", help="one run in full", parents=[where])
    show.add_argument("run", help="id, name or path")
    check = verbs.add_parser("verify", help="hold files to their checksums", parents=[where])
    check.add_argument("names", nargs="*", metavar="RUN", help="as above, or a published study")
    options = parser.parse_args(words)
    with warnings.catch_warnings():
        warnings.showwarning = lambda text, *_, **__: print(text, file=sys.stderr)
        return _obey(options)


def _obey(options: argparse.Namespace) -> int:
    try:
        if options.verb == "show":
            print(describe(find_run(options.run, options.runs)))
        elif options.verb == "verify":
            found = verify(options.names, options.runs)
            print("\n".join(_verdict(*one) for one in found) or "no runs yet")
            return int(any(problems for _, problems in found))
        else:
            table = list_runs(options.runs)
            print(table.to_string(index=False) if len(table) else "no runs yet")
    except (RunError, StorageError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
