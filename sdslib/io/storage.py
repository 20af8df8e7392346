"""Files that survive a kill: staged, synced, hashed, renamed; and the lock of a folder.

A reader sees the old content or the new, never a mixture. A folder counts only if every file in
it agrees with `manifest.json`, which is written last.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MANIFEST = "manifest.json"  # of a folder that was made at once
SUMS = "sums.json"  # of a folder that grows file by file
# Of a parquet file: far above any table of scores, and 800 MB where each is a number.
MOST_CELLS = 100_000_000
# Two clocks may disagree on when a process began (boot time is rounded and drifts).
_SAME_START_S = 2.0


class StorageError(OSError):
    """Something could not be written or read; the message says what, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: the reader of a notebook needs the message, not our stack.
        return [str(self)]


class LockedError(StorageError):
    """A living process holds the folder."""


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the file's content in one step that survives a crash or leaves the old content."""
    part = path.with_name(f".part-{path.name}-{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(path.parent)
    except OSError as error:
        with suppress(OSError):  # a folder that is gone has no part either
            part.unlink(missing_ok=True)
        _raise_if_full(error, path, len(data))
        _raise_if_gone(error, path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), sorted as given, written as `write_bytes` does."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def append_line(path: Path, line: str) -> None:
    """Add a line, handed to the system; a kill may cut it, and a reader must bear that."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        _raise_if_full(error, path, len(line))
        _raise_if_gone(error, path)
        raise


@contextmanager
def declared() -> Iterator[None]:
    """Whatever a library's reader raises on a damaged file, as OSError or ValueError.

    Damaged metadata trips such readers in ways that they do not declare (KeyError, TypeError, …).
    """
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as reason:
        raise ValueError(f"{type(reason).__name__}: {reason}") from None


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a parquet file, or these columns of it.

    Memory is taken for as many rows as the metadata claims, so the claim is checked first.
    Raises OSError or ValueError where the file cannot be read.
    """
    import pyarrow.parquet as pq

    with declared(), pq.ParquetFile(path) as file:
        metadata = file.metadata
        # of the groups only: pyarrow aborts the process at a column whose statistics are damaged
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise ValueError("its metadata contradicts itself about the number of rows")
        if sum(rows) * metadata.num_columns > MOST_CELLS:
            raise ValueError(f"it claims more than {MOST_CELLS:,} cells")
        names = file.schema_arrow.names
        _unlike(names)
        if missing := sorted(set(columns or ()) - set(names)):
            raise ValueError(f"columns missing: {', '.join(missing)}")
        found = file.read(None if columns is None else list(columns))
        found.validate(full=True)  # offsets and UTF-8, which readers take on trust
        return found


def read_frame(path: Path) -> pd.DataFrame:
    """A parquet file for pandas; raises as `read_parquet` does."""
    with declared():
        frame = read_parquet(path).to_pandas()
        _unlike(frame.columns)  # whose names are in metadata of pandas' own
        return frame


def write_frame(path: Path, table: pd.DataFrame) -> None:
    """A table as a parquet file that `read_frame` reads, without its index; as `write_bytes`."""
    write_bytes(path, table.to_parquet(index=False))


def _unlike(names: Iterable[str]) -> None:
    if twice := [str(name) for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"columns named twice: {', '.join(twice)}")


def read_json(path: Path) -> Any:
    """The parsed file; StorageError names a file that is missing or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StorageError(f"{_short(path)} is missing") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{_short(path)} is not JSON: {error}") from error


# --- checksums -----------------------------------------------------------------------------------


def write_summed(path: Path, value: Mapping[str, Any]) -> None:
    """A JSON object that holds the SHA-256 of the rest of it, for `read_summed`."""
    write_json(path, dict(value) | {"sha256": _sum_of(value)})


def read_summed(path: Path) -> dict[str, Any]:
    """What `write_summed` wrote; StorageError where as little as a bit of it has changed."""
    found = read_json(path)
    if not isinstance(found, dict) or found.pop("sha256", None) != _sum_of(found):
        raise StorageError(f"{_short(path)} differs from its checksum")
    return found


def _sum_of(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def keep(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a folder that has `sums.json`, or gets it now.

    The new sums are written first, and until then the old ones hold too: a kill at any moment
    leaves files that agree with one of theirs.
    """
    sums = sums_of(folder) if (folder / SUMS).exists() else {}
    for name, data in files.items():
        old = sums.get(name, [None])[-1:] if (folder / name).exists() else [None]
        sums[name] = list(dict.fromkeys([*old, hashlib.sha256(data).hexdigest()]))
    write_summed(folder / SUMS, {"files": sums})
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_bytes(folder / name, data)


def sums_of(folder: Path) -> dict[str, list[str | None]]:
    """The SHA-256 that each file of the folder may have; None is that of a file that is absent.

    From `sums.json`, or from the manifest of the folder that this one is in; empty where neither
    tells. StorageError where what tells is damaged.
    """
    if (folder / SUMS).exists():
        found = read_summed(folder / SUMS).get("files")
        return found if isinstance(found, dict) else {}
    above = folder.parent / MANIFEST
    if not above.is_file():
        return {}
    state = above.stat()
    return dict(_manifest_sums(above, state.st_mtime_ns, state.st_size).get(folder.name, {}))


@lru_cache(maxsize=64)
def _manifest_sums(manifest: Path, *state: int) -> dict[str, dict[str, list[str | None]]]:
    """The sums of a manifest by the folders just below it; `state` tells one that has changed."""
    found: dict[str, dict[str, list[str | None]]] = {}
    try:
        for name, entry in read_json(manifest).items():
            folder, _, file = name.partition("/")
            found.setdefault(folder, {})[file] = [entry["sha256"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise StorageError(f"{_short(manifest)} has not the expected form") from error
    return found


def sum_problem(folder: Path, name: str, sums: Mapping[str, Sequence[str | None]]) -> str | None:
    """How a file of the folder differs from its sum among `sums`, or None."""
    if name not in sums:
        return None
    path = folder / name
    found = file_sha256(path) if path.is_file() else None
    if found in sums[name]:
        return None
    return f"{name} differs from its sha256" if found else f"{name} is missing"


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block succeeds it becomes `final` in one rename.

    An older `final` stays readable as `<final>.old` until the new one is in place. When the block
    fails nothing is left behind and `final` is as it was.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    stage = final.with_name(f".stage-{final.name}-{os.getpid()}")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        seal(stage)
        old = final.with_name(final.name + ".old")
        if final.exists():
            discard(old)
            os.replace(final, old)
        os.replace(stage, final)
        sync(final.parent)
    except BaseException as error:
        needed = sum(file.stat().st_size for file in stage.rglob("*") if file.is_file())
        shutil.rmtree(stage, ignore_errors=True)
        _raise_if_full(error, final, needed)
        raise
    discard(old)


def seal(folder: Path) -> None:
    """Sync all files of the folder, then write the manifest of their sizes and SHA-256 last."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    entries = {}
    for file in files:
        sync(file)
        name = file.relative_to(folder).as_posix()
        entries[name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    for inner in {file.parent for file in files} - {folder}:
        sync(inner)
    write_json(folder / MANIFEST, entries)


def manifest_problem(folder: Path) -> str | None:
    """Why the folder must not be used, or None when all its files agree with the manifest."""
    try:
        entries = read_json(folder / MANIFEST)
        for name, entry in entries.items():
            file, size = folder / name, entry["bytes"]
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes in place of {size}"
            if file_sha256(file) != entry["sha256"]:
                return f"{name} differs from its sha256"
    except StorageError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError):
        return f"{MANIFEST} has not the expected form"
    return None if entries else f"{MANIFEST} is empty"


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def discard(folder: Path) -> None:
    """Remove a folder so that a kill half-way leaves no half folder under its name."""
    if not folder.exists():
        return
    trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
    shutil.rmtree(trash, ignore_errors=True)
    os.replace(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Undo what killed writers left below the folder; only the lock's holder may call it."""
    for old in list(folder.rglob("*.old")):
        final = old.with_suffix("")
        discard(old) if final.exists() else os.replace(old, final)
    for pattern in (".stage-*", ".trash-*", ".part-*"):
        for path in list(folder.rglob(pattern)):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)


def acquire(folder: Path) -> None:
    """Take the folder's `lock`, or raise LockedError naming the living process that has it.

    A lock whose process is gone, or whose number now belongs to a younger process, is replaced.
    A process may take its own lock again.
    """
    lock = folder / "lock"
    with _alone(folder):
        owner = _owner(lock)
        if owner is not None and not is_me(owner) and is_alive(owner):
            raise LockedError(
                f"run {folder.name} is locked by pid {owner['pid']} on host {owner['host']} "
                f"since {owner['since']}; wait for it or stop it"
                + ("" if owner["host"] == socket.gethostname() else ", or delete its file `lock`")
            )
        text = json.dumps(myself() | {"since": now()})
        write_bytes(lock, text.encode())


def holder(folder: Path) -> dict[str, Any] | None:
    """Who holds the folder's lock: pid, host, since; None where nobody lives who does."""
    owner = _owner(folder / "lock")
    return owner if owner is not None and is_alive(owner) else None


def release(folder: Path) -> None:
    """Give the folder's lock back; another process's lock is left alone."""
    with _alone(folder):
        owner = _owner(folder / "lock")
        if owner is not None and is_me(owner):
            (folder / "lock").unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes that find the same stale lock must not both replace it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _owner(lock: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(lock.read_bytes())
        boot = {"boot": owner["boot"]} if "boot" in owner else {}
        found = {key: owner[key] for key in ("pid", "host", "started", "since")} | boot
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # its writer died between creating and filling it, or we would not be alone
    return found if _names_a_process(found) else None


def _names_a_process(owner: Mapping[str, Any]) -> bool:
    """Whether number, host and times are such as `myself` writes."""
    number = type(owner.get("pid")) is int and 0 < owner["pid"] < 2**31
    times = (owner.get("started"), owner.get("boot", 0.0))
    finite = all(isinstance(t, (int, float)) and math.isfinite(t) for t in times)
    return number and isinstance(owner.get("host"), str) and finite


def myself() -> dict[str, Any]:
    """This process by number, host and start time; numbers are reused, the three are not.

    The boot time is kept beside it: a clock that is set moves both, and their difference stands.
    """
    began = {"started": psutil.Process().create_time(), "boot": psutil.boot_time()}
    return {"pid": os.getpid(), "host": socket.gethostname()} | began


def is_me(owner: dict[str, Any]) -> bool:
    """Whether the record names this very process."""
    return owner["pid"] == os.getpid() and owner["host"] == socket.gethostname() and is_alive(owner)


def is_alive(owner: dict[str, Any]) -> bool:
    """Whether the recorded process still runs; one on another host cannot be asked and counts.

    ValueError for a record that names no process.
    """
    if not _names_a_process(owner):
        raise ValueError("it names no process")
    if owner["host"] != socket.gethostname():
        return True
    try:
        process, boot = psutil.Process(owner["pid"]), psutil.boot_time()
        moved = boot - owner.get("boot", boot)
        same = abs(process.create_time() - owner["started"] - moved) < _SAME_START_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def now() -> str:
    """The time in UTC, to the millisecond, so that of two runs the later one is told."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _raise_if_gone(error: OSError, path: Path) -> None:
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        raise StorageError(
            f"{_short(path)} cannot be written: its folder is gone, deleted or moved while it was "
            "written to; put it back and run again, or run again to begin anew"
        ) from error


def _raise_if_full(error: BaseException, path: Path, needed: int) -> None:
    if getattr(error, "errno", None) != errno.ENOSPC and "No space left" not in str(error):
        return
    free = shutil.disk_usage(path.parent).free
    raise StorageError(
        f"disk full: need at least {needed / 1e6:.1f} MB, have {free / 1e6:.1f} MB for "
        f"{_short(path)}; what was saved before is intact"
    ) from error
