"""Files that survive a kill: staged, synced, hashed, renamed; tables and JSON read with care.

A reader sees the old content or the new, never a mixture. A folder counts only if every file in
it agrees with `manifest.json`, which is written last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sdslib.io.wording import InWords

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MANIFEST = "manifest.json"  # of a folder that was made at once
PARTS = (".stage-", ".trash-", ".part-")  # how names begin that a killed writer may leave behind
SUMS = "sums.json"  # of a folder that grows file by file
# Of a parquet file: far above any table of scores, and 800 MB where each is a number.
MOST_CELLS = 100_000_000
POINTER = b"version https://git-lfs"  # what Git LFS leaves in the place of a file
GONE = (  # said of a folder
    "deleted or moved while it was written to; put it back and run again, "
    "or run again to begin anew"
)
BLANK = b"\xef\xbb\xbf \r\n\t"  # before the first character of a text
Sums = Mapping[str, Sequence[str | None]]


class StorageError(InWords, OSError):
    """Something could not be written or read; the message says what, where, and what to do."""


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
        _explain(error, path, len(data))
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
        _explain(error, path, len(line))
        raise


def read_json(path: Path) -> Any:
    """The parsed file; StorageError names a file that is missing or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StorageError(f"{_short(path)} is missing") from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{_short(path)} is not JSON: {error}") from error


def now() -> str:
    """The time in UTC, to the millisecond, so that of two runs the later one is told."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- tables --------------------------------------------------------------------------------------


@contextmanager
def declared() -> Iterator[None]:
    """Whatever a library's reader trips over in a damaged file, as OSError or ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as reason:
        raise ValueError(f"{type(reason).__name__}: {reason}") from None


def read_parquet(path: Path | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a parquet file, or these columns of it; OSError or ValueError if damaged."""
    import pyarrow.parquet as pq

    with declared(), pq.ParquetFile(path) as file:
        metadata = file.metadata
        # Memory is taken for as many rows as the metadata claims, so the claim is checked first;
        # of the groups only: pyarrow aborts the process at a column whose statistics are damaged.
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise ValueError("its metadata contradicts itself about the number of rows")
        if sum(rows) * metadata.num_columns > MOST_CELLS:
            raise ValueError(f"it claims more than {MOST_CELLS:,} cells")
        _columns(file.schema_arrow.names, columns)
        found = file.read(None if columns is None else list(columns))
        found.validate(full=True)  # offsets and UTF-8, which readers take on trust
        return found


def read_arrow(path: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of a file as `datasets` saves it, mapped and not copied into memory; raises as
    `read_parquet` does."""
    import pyarrow as pa

    with declared(), pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
        _columns(stream.schema.names, columns)
        found = stream.read_all().select(list(columns))
        found.validate(full=True)
        return found


def _columns(names: Sequence[str], wanted: Sequence[str] | None) -> None:
    _unlike(names)
    if missing := sorted(set(wanted or ()) - set(names)):
        raise ValueError(f"columns missing: {', '.join(missing)}")


def read_frame(path: Path | BinaryIO) -> pd.DataFrame:
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


# --- checksums -----------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        known, found = sums.get(name, [None]), _sum_now(folder / name)
        old = found if found in known else known[-1]
        sums[name] = list(dict.fromkeys([old, hashlib.sha256(data).hexdigest()]))
    write_sums(folder, sums)
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_bytes(folder / name, data)


def write_sums(folder: Path, sums: Sums) -> None:
    """The sums of a folder's files, for `sums_of`."""
    write_summed(folder / SUMS, {"files": sums})


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


def sum_problem(folder: Path, name: str, sums: Sums) -> str | None:
    """How a file of the folder differs from its sum among `sums`, or None."""
    if name not in sums:
        return None
    found = _sum_now(folder / name)
    if found in sums[name]:
        return None
    return f"{name} differs from its sha256" if found else f"{name} is missing"


def _sum_now(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def manifest_problem(folder: Path) -> str | None:
    """Why the folder must not be used, or None when all its files agree with the manifest."""
    try:
        entries = read_json(folder / MANIFEST)
        for name, entry in entries.items():
            path, size = folder / name, entry["bytes"]
            if path.is_file() and (found := path.stat().st_size) != size:
                return f"{name} has {found} bytes in place of {size}"
            if problem := sum_problem(folder, name, {name: [str(entry["sha256"])]}):
                return problem
    except StorageError as error:
        return str(error)
    except (AttributeError, KeyError, TypeError):
        return f"{MANIFEST} has not the expected form"
    return None if entries else f"{MANIFEST} is empty"


# --- folders -------------------------------------------------------------------------------------


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
    old = final.with_name(final.name + ".old")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    try:
        yield stage
        seal(stage)
        if final.exists():
            discard(old)
            os.replace(final, old)
        os.replace(stage, final)
        sync(final.parent)
    except BaseException as error:
        needed = sum(file.stat().st_size for file in stage.rglob("*") if file.is_file())
        shutil.rmtree(stage, ignore_errors=True)
        _explain(error, final, needed)
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


def discard(folder: Path) -> None:
    """Remove a folder so that a kill half-way leaves no half folder under its name."""
    if folder.exists():
        trash = folder.with_name(f".trash-{folder.name}-{os.getpid()}")
        shutil.rmtree(trash, ignore_errors=True)
        os.replace(folder, trash)
        shutil.rmtree(trash, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Undo what killed writers left below the folder; only the lock's holder may call it."""
    for old in list(folder.rglob("*.old")):
        final = old.with_suffix("")
        discard(old) if final.exists() else os.replace(old, final)
    for begin in PARTS:
        for path in list(folder.rglob(f"{begin}*")):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(True)


def _short(path: Path) -> str:
    return "/".join(path.parts[-2:])


def _explain(error: BaseException, path: Path, needed: int) -> None:
    """StorageError where the disk is full or the folder gone; else the error stands as it is."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        free = shutil.disk_usage(path.parent).free
        raise StorageError(
            f"disk full: need at least {needed / 1e6:.1f} MB, have {free / 1e6:.1f} MB for "
            f"{_short(path)}; what was saved before is intact"
        ) from error
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        what = f"{_short(path)} cannot be written: its folder is gone"
        raise StorageError(f"{what}, {GONE}") from error
