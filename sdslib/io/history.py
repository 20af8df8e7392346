"""The history of a run: one JSON object a line, each with its CRC-32.

A line that a kill has torn is left out with a warning, and a changed one named. A run of before
there were checksums (its folder has no `sums.json`) has lines without.
"""

from __future__ import annotations

import json
import math
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdslib.io import storage

NAME = "history.jsonl"
_CRC = "crc32"
_SUMMED_LINE = re.compile(rb'(\{.*), "crc32": "([0-9a-f]{8})"\}\n', re.DOTALL)


class RunWarning(UserWarning):
    """Something of a run was skipped or differs; the work goes on."""


def append(folder: Path, row: Mapping[str, Any]) -> None:
    """Add one row, flushed to the system; numbers that are not finite are kept as null."""
    storage.append_line(folder / NAME, _line(row))


def rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Each readable row; warns of every line that is not one."""
    for number, row, _ in _numbered(folder):
        if row is not None:
            yield row
        else:
            text = f"{folder.name}/{NAME}: skipped line {number}, which is torn"
            warnings.warn(text, RunWarning, stacklevel=3)


def last_step(folder: Path, known: int | None) -> int:
    """The last step of which there is a row, or the one that is known."""
    steps = [row.get("step") for _, row, _ in _numbered(folder) if row is not None]
    return max([known or 0, *(s for s in steps if isinstance(s, int))])


def problems(folder: Path) -> list[str]:
    """The damaged lines; the last one may be torn by a kill while it was written."""
    lines = list(_numbered(folder))
    torn = {lines[-1][0]} if lines and not lines[-1][2].endswith(b"\n") else set()
    return [
        f"{NAME} line {number} differs from its checksum"
        for number, row, _ in lines
        if row is None and number not in torn
    ]


def cut(folder: Path, step: int) -> None:
    """Drop what is torn and all rows after `step`; lines of before get their checksums."""
    path = folder / NAME
    if path.exists():
        kept = [row for row in rows(folder) if row.get("step") is None or row["step"] <= step]
        data = "".join(f"{_line(row)}\n" for row in kept).encode()
        if data != path.read_bytes():
            storage.write_bytes(path, data)


def plain(value: Any) -> Any:
    """What strict JSON can hold: numpy and torch scalars unwrapped, not-finite numbers null."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def _numbered(folder: Path) -> Iterator[tuple[int, dict[str, Any] | None, bytes]]:
    """Each line by its number from 1, with its row, or None where it is torn or damaged."""
    path, summed = folder / NAME, (folder / storage.SUMS).exists()
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
        yield number, _row(line, summed), line


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(plain({k: v for k, v in row.items() if k != _CRC}), allow_nan=False)
    return f'{text[:-1]}, "{_CRC}": "{zlib.crc32(text.encode()):08x}"}}'


def _row(line: bytes, summed: bool) -> dict[str, Any] | None:
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
