"""Image-caption pairs in the forms that people keep them in: COCO, Karpathy, shards, Hub."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import ijson
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, BeforeValidator

from sdslib.io.hub import hub_dataset, is_repo
from sdslib.io.images import alike
from sdslib.io.paths import project_path
from sdslib.io.shards import index_shards, read_sample
from sdslib.io.sources import (
    ALL_SPLITS,
    Caption,
    DataError,
    ImageCells,
    Root,
    caption_at,
    cell_bytes,
    check_row,
    coco_id,
    image_columns,
    is_list,
    read_csv,
    read_json_lines,
    read_part,
    refuse_pointer,
    undecoded,
)
from sdslib.io.worlds import world_of
from sdslib.pairs import CAPTION_COLUMNS, ID_COLUMNS, METADATA, Pairs, Row

IMAGE_COLUMNS = ("file_name", "filepath", "image", "image_path", "filename", "path")
_TEXT_COLUMNS = (*CAPTION_COLUMNS, "title")  # the last is open_clip's
LOOKED_AT = 20  # images that are looked for before anything is read in whole
FORMS = (
    "give captions.json::image_folder (COCO's or Karpathy's form), metadata.jsonl::image_folder or "
    "table.csv::image_folder (file_name and caption, or filepath and title), a COCO folder, "
    "shards/*.tar or owner/name"
)


def open_pairs(source: str) -> Pairs:
    """All pairs of a source, as `pairs.load_pairs` names it; raises `DataError`."""
    if world := world_of(source.partition(":")[0]):
        return world.pairs(source)
    if "::" in source:
        annotations, images = (project_path(part) for part in source.split("::", 1))
        return _form_of(annotations).pairs(annotations, images)
    if source.endswith(".tar"):
        return _shard_pairs(source)
    folder = project_path(source)
    if folder.is_dir():
        if (folder / METADATA).is_file():
            return metadata_pairs(folder / METADATA, folder)
        return _shard_pairs(source) if any(folder.glob("*.tar")) else _coco_folder(folder)
    repo, _, split = source.partition(":")
    if is_repo(repo):
        return hub_pairs(repo, split or "train")
    raise DataError(f"{source!r} is no source of pairs: there is no folder {folder}; {FORMS}")


def _shard_pairs(source: str) -> Pairs:
    table, place = index_shards(source), dict[str, int]()
    first = [place.setdefault(one, row) for row, one in enumerate(table["sha256"].to_pylist())]
    return Pairs(_joined(table.drop_columns("sha256"), first, source), read_sample, source)


class CocoImage(BaseModel):
    """One entry of `images` in COCO's caption files."""

    id: int
    file_name: str


class KarpathyRow(BaseModel):
    """One row of coco_karpathy_*.json or flickr30k_*.json: all captions of an image, or one."""

    image: str
    caption: Annotated[list[Caption], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


class CocoAnnotation(BaseModel):
    """One entry of `annotations` in COCO's caption files."""

    image_id: int
    caption: Caption


def coco_pairs(annotations: Path, images: Path) -> Pairs:
    """Pairs of a COCO captions file; it is read as a stream, so memory holds the captions alone.

    Images without a caption are left out with a warning. Raises `DataError` with the path of the
    first fault, as `captions_val.json.annotations[3].caption: is empty`.
    """
    names: dict[int, str] = {}
    for where, entry in _stream(annotations, "images", CocoImage):
        if entry.id in names:
            raise DataError(f"{where}.id: image {entry.id} appears twice; remove one of the two")
        names[entry.id] = entry.file_name
    has, lists = _coco_captions(annotations, {own: row for row, own in enumerate(names)})
    if len(has) < len(names):
        warnings.warn(
            f"{annotations.name}: {len(names) - len(has)} images have no caption; left out",
            stacklevel=2,
        )
    ids, files = list(names), list(names.values())
    return _file_pairs(annotations, images, ((str(ids[i]), files[i]) for i in has), lists)


def karpathy_pairs(annotations: Path, images: Path) -> Pairs:
    """Pairs of a Karpathy split file, as retrieval takes them; rows of one image are joined.

    `images` is the folder that the file's paths start from. The id is COCO's where the name tells.
    """
    entries = _stream(annotations, "", KarpathyRow)
    return _named_pairs(annotations, images, ((row.image, row.caption) for _, row in entries))


def metadata_pairs(annotations: Path, images: Path) -> Pairs:
    """Pairs of rows with an image's name and a caption.

    They are a metadata.jsonl, as `datasets` reads it beside images, or a CSV or TSV with a header,
    as open_clip's training reads it.
    """
    named = ((entry.image, entry.caption) for entry in _rows(annotations))
    return _named_pairs(annotations, images, named)


def _rows(annotations: Path) -> Iterator[KarpathyRow]:
    lines = annotations.suffix == ".jsonl"
    rows = read_json_lines(annotations) if lines else read_csv(annotations, ())
    for number, row in enumerate(rows):
        name, text = (
            next((column for column in columns if column in row), columns[0])
            for columns in (IMAGE_COLUMNS, _TEXT_COLUMNS)
        )
        found = {"image": row.get(name), "caption": row.get(text)}
        yield check_row(found, KarpathyRow, f"{annotations.name}[{number}]")


class Form(NamedTuple):
    """A form of captions in a file: how it is read, and the names of its images one by one."""

    pairs: Callable[[Path, Path], Pairs]
    images: Callable[[Path], Iterator[str]]


_COCO = Form(coco_pairs, lambda path: (e.file_name for _, e in _stream(path, "images", CocoImage)))
_KARPATHY = Form(karpathy_pairs, lambda path: (e.image for _, e in _stream(path, "", KarpathyRow)))
_ROWS = Form(metadata_pairs, lambda path: (entry.image for entry in _rows(path)))


def _form_of(annotations: Path) -> Form:
    if annotations.is_dir() or annotations.suffix not in (".json", ".jsonl", ".csv", ".tsv"):
        raise DataError(f"{annotations.name} is no file of captions; {FORMS}")
    if annotations.suffix != ".json":
        return _ROWS
    return _KARPATHY if is_list(annotations) else _COCO


def look(annotations: Path, images: Path) -> None:
    """Raises `DataError` where a file is no captions, or its first images are not in the folder."""
    names = [*islice(_form_of(annotations).images(annotations), LOOKED_AT)]
    if names and not any((images / name).is_file() for name in names):
        raise DataError(
            f"{images} holds none of the first {len(names)} images of {annotations.name}, as "
            f"{names[0]}; name the folder that its paths start from"
        )


def _named_pairs(annotations: Path, images: Path, named: Iterator[tuple[str, list[str]]]) -> Pairs:
    """Pairs of images by their file names, the rows of one joined."""
    row_of: dict[str, int] = {}
    rows, texts = array("q"), list[str]()
    for image, captions in named:
        row = row_of.setdefault(image, len(row_of))
        rows.extend([row] * len(captions))
        texts.extend(captions)
    _, lists = _grouped(np.frombuffer(rows, np.int64), pa.chunked_array([texts], pa.string()))
    return _file_pairs(annotations, images, ((coco_id(n) or n, n) for n in row_of), lists)


def _file_pairs(
    annotations: Path, images: Path, named: Iterator[tuple[str, str]], lists: pa.ListArray
) -> Pairs:
    root, found, sizes = Root(images), list(named), array("q")
    paths = root.paths([(name, f"{annotations.name}, image {own}") for own, name in found])
    sizes.extend(path.stat().st_size for path in paths)
    first = alike(sizes, lambda i, start, count: read_part(images / found[i][1], start, count))
    columns = {
        "id": pa.array((own for own, _ in found), pa.string()),
        "name": pa.array((name for _, name in found), pa.string()),
        "captions": lists,
        "size": pa.array(sizes, pa.int64()),
    }
    source = f"{annotations}::{images}"
    return Pairs(_joined(pa.table(columns), first, source), partial(_read_file, images), source)


def _coco_captions(path: Path, row_of: dict[int, int]) -> tuple[np.ndarray, pa.ListArray]:
    rows, texts = array("q"), list[str]()
    chunks: list[pa.Array] = []  # Arrow as we go: half a million str objects take 80 MB
    for where, note in _stream(path, "annotations", CocoAnnotation):
        if note.image_id not in row_of:
            raise DataError(f"{where}.image_id: {note.image_id} is not among the images")
        rows.append(row_of[note.image_id])
        texts.append(note.caption)
        if len(texts) == 8192:
            chunks.append(pa.array(texts, pa.string()))
            texts.clear()
    chunks.append(pa.array(texts, pa.string()))
    return _grouped(np.frombuffer(rows, np.int64), pa.chunked_array(chunks))


def _coco_folder(folder: Path) -> Pairs:
    """The training split of a folder laid out as COCO's downloads are."""
    found = sorted((folder / "annotations").glob("captions_*.json"))
    train = [path for path in found if "train" in path.name] or found
    if len(train) == 1:
        split = train[0].stem.removeprefix("captions_")
        for images in (folder / split, folder / "images" / split):
            if images.is_dir():
                return coco_pairs(train[0], images)
    raise DataError(
        f"{folder} is not one COCO split: needs annotations/captions_NAME.json and a folder NAME, "
        f"found {[path.name for path in found] or 'no captions file'}; "
        "name the two as captions.json::image_folder"
    )


def _stream(path: Path, key: str, model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """The entries of one top-level list, or of the list that the file is (`key` ""), each with its
    place, without the whole file in memory."""
    index, prefix = -1, f"{key}.item" if key else "item"
    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            for index, entry in enumerate(ijson.items(file, prefix, use_float=True)):
                where = f"{path.name}.{key}[{index}]" if key else f"{path.name}[{index}]"
                if isinstance(entry, dict) and "sentences" in entry:
                    raise DataError(f"{path.name}: {ALL_SPLITS}")
                yield where, check_row(entry, model, where)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except DataError:
        raise
    except (ijson.JSONError, ValueError) as reason:
        raise DataError(
            f"{path.name}: not valid JSON near {key}[{index + 1}] ({_first_line(reason)})"
        ) from None
    if index < 0:
        raise DataError(f"{path.name}: expected an object with a list {key!r} that is not empty")


def _first_line(reason: Exception) -> str:
    text = reason.args[0] if reason.args else reason
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return text.strip().split("\n")[0]


def _grouped(rows: np.ndarray, texts: pa.ChunkedArray) -> tuple[np.ndarray, pa.ListArray]:
    """Texts as lists by row number: the rows that have any, ascending, and their lists."""
    order = np.argsort(rows, kind="stable")
    has, starts = np.unique(rows[order], return_index=True)
    offsets = pa.array(np.append(starts, len(rows)), pa.int32())
    values = texts.take(pa.array(order)).combine_chunks()
    return has, pa.ListArray.from_arrays(offsets, values)


def _joined(table: pa.Table, first: Sequence[int], source: str) -> pa.Table:
    """One row an image, which `first` tells by its content, with the captions of all its rows."""
    double = [row for row, own in enumerate(first) if own != row]
    if not double:
        return table
    ids = table["id"].to_pylist()
    if other := [row for row in double if ids[row] != ids[first[row]]]:
        warnings.warn(
            f"{source}: {len(other)} images are there already under another id, as "
            f"{ids[other[0]]!r} is {ids[first[other[0]]]!r}; their captions are joined",
            stacklevel=2,
        )
    texts = table["captions"].combine_chunks()
    rows = np.repeat(np.asarray(first, np.int64), texts.value_lengths())
    has, lists = _grouped(rows, pa.chunked_array([texts.flatten()]))
    names, also = table["name"].to_pylist(), dict[int, list[str]]()
    for row in double:
        if own := coco_id(names[row]):
            also.setdefault(first[row], []).append(own)
    place = table.schema.get_field_index("captions")
    table = table.take(pa.array(has)).set_column(place, "captions", lists)
    if not also:
        return table
    column = pa.array([also.get(row, []) for row in has.tolist()], pa.list_(pa.string()))
    return table.append_column("also", column)


def _read_file(folder: Path, row: Row) -> bytes:
    return (folder / row["name"]).read_bytes()


def hub_pairs(repo: str, split: str) -> Pairs:
    """Pairs of a Hub data set with one image column and a column of captions (text or list)."""
    found = hub_dataset(repo, split, local="a COCO folder or captions.json::image_folder")
    return dataset_pairs(found, f"{repo}:{split}")


def dataset_pairs(found: Any, name: str) -> Pairs:
    """Pairs of a `datasets.Dataset`; rows whose images have the same bytes are joined."""
    found = undecoded(found)
    images = image_columns(found)
    texts = [column for column in CAPTION_COLUMNS if column in found.column_names]
    if len(images) != 1 or not texts:
        raise DataError(
            f"{name}: expected one image column and one of {', '.join(CAPTION_COLUMNS)}; "
            f"found {', '.join(found.column_names)}"
        )
    captions = [
        [caption_at(text, f"{name}[{row}].{texts[0]}")
         for text in ([cell] if isinstance(cell, str) else cell or [None])]
        for row, cell in enumerate(found[texts[0]])
    ]  # fmt: skip
    # What a data set calls its rows, or their numbers: a label, which tells no image from another,
    # for it may be null, or a caption's.
    known = next((column for column in ID_COLUMNS if column in found.column_names), None)
    ids = found[known] if known else range(len(found))
    cells = ImageCells(found, images[0], name)
    columns = {
        "id": [f"row {row}" if own is None else str(own) for row, own in enumerate(ids)],
        "name": [f"{name}[{row}]" for row in range(len(found))],
        "captions": pa.array(captions, pa.list_(pa.string())),
        "row": list(range(len(found))),
    }
    table = _joined(pa.table(columns), alike(cells.sizes, cells.read), name)
    return Pairs(table, partial(_read_cell, found, images[0]), name)


def _read_cell(found: Any, column: str, row: Row) -> bytes:
    return cell_bytes(found, row["row"], column)
