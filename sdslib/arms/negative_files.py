"""False captions from a file, in the forms that people keep them in.

NegCLIP's TSV, which FSC-CLIP reads too, has the columns `title` and `neg_caption`, a list as Python
writes it. CE-CLIP keeps rows with `caption` and `relation_aug_caption`, `adj_aug_caption`,
`noun_aug_caption`, `verb_aug_caption`, where `###` is none: here as JSON or JSON lines. Our own is
a parquet file with the columns caption (text) and negatives (list of text).
"""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdslib.io.sources import DataError, caption_at, read_json, read_json_lines, read_text
from sdslib.io.storage import read_parquet
from sdslib.io.wording import quoted

CAPTIONS = ("caption", "title")
LISTS = ("negatives", "neg_caption", "neg_captions", "hard_negatives")
BY_KIND = "_aug_caption"  # how CE-CLIP's columns end, one a kind
ABSENT = ("", "###")  # in the place of a false caption that could not be made
MASK = "<mask>"  # a word that CE-CLIP's language model has yet to fill in

Raw = Any  # the false captions of a row as the file has them: read when they are asked for


def read_negatives(path: Path) -> list[tuple[str, Raw]]:
    """Each row's caption and its false ones, which `texts` reads; raises `DataError`."""
    readers = {
        ".tsv": _delimited, ".csv": _delimited, ".json": _json, ".jsonl": read_json_lines,
        ".parquet": _parquet,
    }  # fmt: skip
    if path.suffix not in readers:
        raise DataError(
            f"{path.name}: false captions are read from {', '.join(readers)}, never from what is "
            "pickled, as .npy; write JSON, rows with caption and negatives"
        )
    rows = readers[path.suffix](path)
    if not isinstance(rows, Iterable):
        raise DataError(f"{path.name}: expected a list of rows with caption and negatives")
    found = [_row(row, f"{path.name}[{number}]") for number, row in enumerate(rows)]
    if not found:
        raise DataError(f"{path.name}: has no rows")
    return found


def texts(raw: Raw, where: str) -> list[str]:
    """The false captions of a row, without those that stand for none; raises `DataError`."""
    try:
        found = ast.literal_eval(raw) if isinstance(raw, str) else raw
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise DataError(f"{where}: expected a list of texts, got {str(raw)[:60]!r}")
    return [caption_at(v, where) for v in found if v not in ABSENT and MASK not in str(v)]


def _row(row: Any, where: str) -> tuple[str, Raw]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected an object with caption and negatives")
    caption = next((row[name] for name in CAPTIONS if name in row), None)
    raw = next((row[name] for name in LISTS if name in row), None)
    if raw is None:
        raw = [text for name, text in row.items() if name.endswith(BY_KIND)] or None
    if not isinstance(caption, str) or raw is None:
        names = f"a caption ({quoted(CAPTIONS)}) and its false ones ({quoted(LISTS)})"
        raise DataError(f"{where}: expected {names}; it has {quoted(map(str, row))}")
    return caption, raw


def _delimited(path: Path) -> Iterable[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # a long list is one field
    text, sign = io.StringIO(read_text(path), newline=""), "\t" if path.suffix == ".tsv" else ","
    try:
        yield from csv.DictReader(text, delimiter=sign, strict=True)
    except csv.Error as reason:
        raise DataError(f"{path.name}: {reason}") from None


def _json(path: Path) -> Any:
    document = read_json(path)
    return document.get("annotations") if isinstance(document, dict) else document


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    try:
        table = read_parquet(path, ["caption", "negatives"])
    except (OSError, ValueError) as reason:
        raise DataError(f"{path.name}: {reason}") from None
    for batch in table.to_batches():
        yield from batch.to_pylist()
