"""Rows of text with their images inside: parquet, or arrow as `datasets` saves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from sdslib.io import storage
from sdslib.io.images import ImageRef
from sdslib.io.sources import DataError, coco_id, refuse_pointer

Ref = Callable[[int, str], ImageRef]  # of an image by its row and column


def image_table(
    paths: Sequence[Path], texts: Sequence[str], images: Sequence[str]
) -> tuple[list[dict], Ref]:
    """The texts of all rows, and the image of a row and column, from one or more files.

    An image whose stored path tells a COCO id is named by it too. Raises `DataError`.
    """
    names, parts = "+".join(path.name for path in paths), []
    columns = [*images, *texts]
    for path in paths:
        refuse_pointer(path)
        read = storage.read_arrow if path.suffix == ".arrow" else storage.read_parquet
        with _told(path.name, columns):
            parts.append(read(path, columns))
    with _told(names, columns):
        table = pa.concat_tables(parts, promote_options="permissive")
        rows = table.drop_columns([*images]).to_pylist()
        cells = {column: _cells(table[column]) for column in images}
        stored = {column: _paths(table[column]) for column in images}

    def ref(row: int, column: str) -> ImageRef:
        name, cell = f"{names}[{row}].{column}", cells[column][row]
        if not cell.is_valid:
            raise DataError(f"{name}: has no bytes; fetch the file again")
        if (path := stored[column][row]) and coco_id(path):
            name += f":{Path(path).name}"
        return ImageRef(name, cell.as_py, size=len(cell.as_buffer()))

    return rows, ref


def _cells(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The encoded images of a column of structs; chunks stay, for one may hold 2 GB at most."""
    parts = [part.field("bytes").cast(pa.binary()) for part in column.chunks]
    return pa.chunked_array(parts, pa.binary())


def _paths(column: pa.ChunkedArray) -> list:
    if column.type.get_field_index("path") < 0:
        return [None] * len(column)
    return [
        path for part in column.chunks for path in part.field("path").cast(pa.string()).to_pylist()
    ]


@contextmanager
def _told(name: str, columns: Sequence[str]) -> Iterator[None]:
    try:
        with storage.declared():
            yield
    except (OSError, ValueError) as reason:
        raise DataError(
            f"{name} cannot be read ({reason}); expected parquet with the columns "
            f"{', '.join(columns)}"
        ) from None
