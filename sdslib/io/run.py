"""A run's folder: parameters, status, history, scores, weights.

Nothing is overwritten, nothing is unpickled, and a kill at any moment loses at most the steps
since the last checkpoint. `step` counts finished optimizer steps, in history and checkpoints.

Whatever is kept has a checksum, which every reading holds it to: a line of the history its own, the
status one inside it, a folder its manifest, every other file one in `sums.json`. A run of before
that, or a published one (the manifest of its study has its sums), is read without.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdslib.io import history, lock, storage
from sdslib.io.history import RunWarning
from sdslib.io.identity import DECIDES_BITS, environment
from sdslib.io.paths import shown_path
from sdslib.io.storage import GONE, StorageError, read_json
from sdslib.io.wording import InWords

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from sdslib.config import Config

REMEDY = "take it from a copy, or delete the run's folder and run again"
_TOLD = ("params.json", "env.json", "identity.json")  # written whenever a run is opened
_STATUS_EVERY_S = 1.0
_UNKNOWN = {"state": "died", "pid": None, "step": None, "updated": None}
_open_here: weakref.WeakValueDictionary[Path, Run] = weakref.WeakValueDictionary()


class RunError(InWords, RuntimeError):
    """A run cannot be opened, found or written; the message says which and what to do."""


class Checkpoint(NamedTuple):
    """What was saved after `step` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Run:
    """One run's folder; made by `open_run` (for writing) or `find_run` (for reading)."""

    def __init__(self, path: Path, writable: bool = False) -> None:
        self.path = path
        self._writable, self._status_due = writable, 0.0
        self._last_step: int | None = None
        if writable:
            if (earlier := _open_here.get(path)) is not None:
                earlier._writable = False  # the cell was run again: the new handle takes over
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
        told = {k: v for k, v in self.identity.items() if k != "model"}
        return told | {"environment": self.environment}

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
        if not (self.path / "status.json").exists():
            return _UNKNOWN | {"message": "never began"}
        try:
            status = self._status()
        except StorageError as error:
            resume = "open the run again to go on from its checkpoint"
            return _UNKNOWN | {"message": f"{error}; {resume}"}
        try:
            if status["state"] == "running" and not self._is_running(status):
                step = history.last_step(self.path, status["step"])
                message = f"died at step {step} while running"
                return status | {"state": "died", "step": step, "message": message}
            if not isinstance(status["message"], str) or not status.keys() >= _UNKNOWN.keys():
                raise KeyError("message")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"{self.name}/status.json has not the expected form") from error
        return dict(status)

    def _status(self) -> Any:
        """The file as it is; StorageError where it is not as it was written."""
        path = self.path / "status.json"
        if not (self.path / storage.SUMS).exists():  # of before there were checksums
            found = read_json(path) if path.exists() else None
            if not isinstance(found, dict) or "sha256" not in found:
                return found
        return storage.read_summed(path)

    def _is_running(self, status: dict[str, Any]) -> bool:
        """Whether the process lives; one on another host counts while it has the lock."""
        here = status["host"] == socket.gethostname()
        return lock.is_alive(status) and (here or lock.holder(self.path) is not None)

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
            raise RunError(f"{self.name}/{problem}; {REMEDY}")

    def _sums(self) -> dict[str, list[str | None]]:
        try:
            return storage.sums_of(self.path)
        except StorageError as error:
            raise RunError(f"{error}; {REMEDY}") from error

    def problems(self, folders: bool = True) -> list[str]:
        """What of the run is not as it was written, each with its file; [] where all is well.

        `folders` adds weights, checkpoints and the atlas, whose hashing takes its time.
        """
        try:
            sums = storage.sums_of(self.path)
        except StorageError as error:
            return [str(error).partition("/")[2] or str(error)]
        found = [storage.sum_problem(self.path, name, sums) for name in sums]
        try:
            self._status()
        except StorageError as error:
            found.append(str(error).partition("/")[2])
        found += history.problems(self.path)
        for folder in sorted(self._sealed()) if folders else []:
            problem = storage.manifest_problem(folder)
            found.append(problem and f"{self._name_of(folder)}/{problem}")
        return [problem for problem in found if problem]

    def _name_of(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    # --- what is kept ----------------------------------------------------------------------------

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Add one row, flushed to the system; numbers that are not finite are kept as null."""
        self._need_writable()
        history.append(self.path, row)
        if row.get("step") is not None:
            self._last_step = int(row["step"])
            if time.monotonic() >= self._status_due:
                self._set("running", f"running at step {self._last_step}")

    def history(self) -> pd.DataFrame:
        """All rows; a line cut by a kill is skipped with a warning, a finished run's has none."""
        import pandas as pd

        self._check(history.NAME)
        if self.finished and (problems := history.problems(self.path)):
            raise RunError(f"{self.name}/{problems[0]}; {REMEDY}")
        return pd.DataFrame(list(history.rows(self.path)))

    def save_scores(self, name: str, table: pd.DataFrame) -> Path:
        """Keep one row an item, every score, as `scores/<name>.parquet`."""
        self._need_writable()
        return self._keep_table(self._scores_file(name), table)

    def add_scores(self, name: str, table: pd.DataFrame) -> Path:
        """Keep those of one set more, also of a finished run; of what it has none is replaced."""
        if (self.path / (path := self._scores_file(name))).exists():
            raise RunError(f"{self.name} has {name} already; scores are never replaced")
        return self._keep_table(path, table)

    def scores(self, name: str) -> pd.DataFrame:
        """The table that `save_scores` kept under this name; RunError lists what there is."""
        return self._read_table(self._scores_file(name))

    def score_names(self) -> list[str]:
        """The names under which scores are kept."""
        return sorted(p.stem for p in (self.path / "scores").glob("*.parquet"))

    def save_results(self, table: pd.DataFrame) -> Path:
        """Keep the table of results; it is drawn from the scores, so also of a finished run."""
        return self._keep_table("results.parquet", table)

    def results(self) -> pd.DataFrame:
        """The table that `save_results` kept."""
        return self._read_table("results.parquet")

    def keep(self, name: str, data: bytes) -> Path:
        """Keep a file beside what was computed, as the executed notebook; at any time."""
        if (self.path / storage.SUMS).exists():
            self._sums()
            storage.keep(self.path, {name: data})
        else:  # of before there were checksums; it gets none by one file
            storage.write_bytes(self.path / name, data)
        return self.path / name

    def note(self, **facts: Any) -> None:
        """Add facts under `noted` in `env.json`, as the device that was really used."""
        self._need_writable()
        env = self.environment
        noted = env.get("noted", {}) | {k: history.plain(v) for k, v in facts.items()}
        self.keep("env.json", storage.json_bytes(env | {"noted": noted}))

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """Yield an empty folder that becomes `<run>/<name>`, with a manifest, if all goes well."""
        self._need_writable()
        with storage.staged_folder(self.path / name) as stage:
            yield stage

    def _keep_table(self, name: str, table: pd.DataFrame) -> Path:
        (self.path / name).parent.mkdir(exist_ok=True)
        return self.keep(name, table.to_parquet(index=False))

    def _scores_file(self, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            raise ValueError(f"scores name {name!r} must be letters, digits, '.', '+', '-' and '_'")
        return f"scores/{name}.parquet"

    def _read_table(self, name: str) -> pd.DataFrame:
        path = self.path / name
        if not path.is_file():
            there = ", ".join(self.score_names()) or "none"
            raise RunError(f"{self.name} has no {path.stem}; scores there: {there}")
        self._check(name)
        try:
            return storage.read_frame(path)
        except (OSError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise RunError(f"{self.name}/{name} cannot be read ({reason}); score again") from error

    # --- checkpoints -----------------------------------------------------------------------------

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
            storage.write_json(stage / "meta.json", {"step": step, "meta": dict(meta)})
        if problem := storage.manifest_problem(folder):
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

    def checkpoints(self) -> list[Path]:
        """Their folders, the newest first; `.old` is what a kill during a rename can leave."""
        there = (self.path / "checkpoints").glob("step-*")
        found = [path for path in there if re.fullmatch(r"step-\d{8,}(\.old)?", path.name)]
        return sorted(found, key=lambda path: (-_step_of(path), path.name))

    def _newest_good(self) -> Path | None:
        for folder in self.checkpoints():
            problem = storage.manifest_problem(folder)
            if problem is None:
                return folder
            text = f"{self.name}: skipped checkpoint {folder.name}, {problem}"
            warnings.warn(text, RunWarning, stacklevel=3)
        return None

    def _prune(self, keep: int) -> None:
        good = 0
        for folder in self.checkpoints():
            if good < keep and storage.manifest_problem(folder) is None:
                good += 1
            else:
                storage.discard(folder)

    # --- how it begins and ends ------------------------------------------------------------------

    def begin(self, config: Config, identity: Mapping[str, Any]) -> None:
        """Write down what this is a run of, and go on from its newest good checkpoint.

        Only the holder of the folder's lock may call it.
        """
        storage.sweep(self.path)
        env = self._compared(environment(config))
        if not getattr(config, "resume", True):
            storage.discard(self.path / "checkpoints")
        good = self._newest_good()
        if good is None and self.checkpoints():
            text = f"{self.name}: no checkpoint is whole; starting afresh at step 0"
            warnings.warn(text, RunWarning, stacklevel=3)
        step = _step_of(good) if good else 0
        history.cut(self.path, step)
        self._adopt()
        told = {"params": config.model_dump(mode="json"), "env": env, "identity": identity}
        storage.keep(self.path, {f"{k}.json": storage.json_bytes(v) for k, v in told.items()})
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
        both = [k for k in DECIDES_BITS if old.get(k) is not None and new[k] is not None]
        changed = [key for key in both if old[key] != new[key]]
        exact = bool(old.get("bit_exact", True)) and not changed
        if changed:
            text = f"{self.name} goes on with other {' and '.join(changed)} than it began with"
            warnings.warn(f"{text}; its result is not bit-exact", RunWarning, stacklevel=4)
        began = {key: old[key] for key in changed} | old.get("began_with", {})
        kept = {"noted": old["noted"]} if "noted" in old else {}
        return new | kept | {"bit_exact": exact, "began_with": began}

    def _adopt(self) -> None:
        """Go on with what an earlier process kept; a damaged table is dropped, and made again.

        A run of before there were checksums gets them now.
        """
        tables = sorted(map(self._name_of, self.path.rglob("*.parquet")))
        there = [name for name in [*tables, *_TOLD] if (self.path / name).is_file()]
        sums: dict[str, list[str | None]]
        sums = {name: [storage.file_sha256(self.path / name)] for name in there}
        if (self.path / storage.SUMS).exists():
            try:
                known = storage.sums_of(self.path)
            except StorageError as error:
                warnings.warn(f"{error}; it is written anew", RunWarning, stacklevel=4)
                known = {}
            for name in [n for n in tables if sums[n][0] not in known.get(n, ())]:
                text = f"{self.name}/{name} differs from its sha256; it is computed again"
                warnings.warn(text, RunWarning, stacklevel=4)
                (self.path / name).unlink()
                del sums[name]
            sums |= {name: known[name] for name in _TOLD if name in known}
        storage.write_sums(self.path, sums)

    def finish(self) -> None:
        """Mark the run complete; from here on it is read-only."""
        self._need_writable()
        self._settle()
        self._end("finished", "finished")

    def fail(self, error: BaseException | str) -> None:
        """Mark the run failed, with the error's words."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self._end("failed", f"failed at step {self._last_step or 0}: {text}")

    def interrupt(self, reason: str = "on request") -> None:
        """Mark the run interrupted; `open_run` continues it."""
        self._end("interrupted", f"interrupted at step {self._last_step or 0} {reason}")

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

    def _settle(self) -> None:
        """Give every file of the run that is to stay the one sum that it has to have from now,
        where none stands elsewhere."""
        sums, sealed = self._sums(), self._sealed()
        alone = {self.path / name for name in (storage.SUMS, "status.json", "lock")}
        files = [p for p in self._kept("*") if p not in alone and sealed.isdisjoint(p.parents)]
        names = sorted(self._name_of(path) for path in files if path.is_file())
        found = {name: storage.file_sha256(self.path / name) for name in names}
        settled = {n: [d] if d in sums.get(n, [d]) else sums[n] for n, d in found.items()}
        storage.write_sums(self.path, settled)

    def _sealed(self) -> set[Path]:
        """The folders that were made at once, each with a manifest of its files."""
        return {path.parent for path in self._kept(storage.MANIFEST)}

    def _kept(self, pattern: str) -> Iterator[Path]:
        """Paths below the run's folder, without what a kill left half made or half removed."""
        for path in self.path.rglob(pattern):
            names = path.relative_to(self.path).parts
            if not any(name.startswith(storage.PARTS) for name in names):
                yield path

    def _need_writable(self) -> None:
        if self._writable and self._is_there():
            return
        if self._writable:
            raise RunError(f"run {self.name} is gone: its folder was {GONE}")
        why = "is finished" if self.finished else "was opened for reading"
        raise RunError(f"run {self.name} {why}; open_run with other parameters makes a new one")

    def _is_there(self) -> bool:
        return (self.path / "identity.json").is_file()

    def _set(self, state: str, message: str) -> None:
        self._status_due = time.monotonic() + _STATUS_EVERY_S
        told = {"step": self._last_step, "updated": storage.now(), "message": message}
        status = lock.myself() | {"state": state} | told
        storage.write_summed(self.path / "status.json", status)

    def _end(self, state: str, message: str) -> None:
        self._need_writable()
        self._set(state, message)
        self._leave()

    def _leave(self) -> None:
        self._writable = False
        if self.path.is_dir():
            lock.release(self.path)
        atexit.unregister(self._close)

    def _close(self) -> None:
        """The interpreter ends in good order, but nobody said how the run ended."""
        if self._writable and self._is_there() and self.status()["pid"] == os.getpid():
            self.interrupt("because the process ended")


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removesuffix(".old").removeprefix("step-"))
