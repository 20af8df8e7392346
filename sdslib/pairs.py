"""Image-caption pairs, from COCO files, the Hub or WebDataset shards, and the order they come in.

A pair is one image with its K captions; one of them is drawn an epoch, so no batch ever holds two
captions of one image. Every draw derives from (seed, purpose, epoch, index): any step can be made
from nothing, by any number of workers. Letters: B pairs a batch, S image side.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import ijson  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pydantic import BaseModel, BeforeValidator
from torch.utils.data import DataLoader, Dataset

from sdslib.config import derive_seed
from sdslib.io.hub import hub_dataset, is_repo
from sdslib.io.images import ImageRef, alike
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
    read_json_lines,
    read_part,
    refuse_pointer,
    undecoded,
)
from sdslib.io.worlds import world_of

Transform = Callable[[Image.Image], torch.Tensor]
Row = dict[str, Any]
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "raw", "en", "sentence")
METADATA = "metadata.jsonl"
ID_COLUMNS = ("image_id", "cocoid", "img_id", "imgid", "id", "__key__")
BLOCK = 128  # rows that are decompressed for one: 0.06 ms, and a third of Arrow's own memory


class Pairs:
    """Images with their captions, by number; the captions packed in memory, the images on disk.

    `table` has the columns id, name, captions (list of text) and whatever `read` needs to find the
    encoded image of a row. 118k COCO pairs take some 15 MB.
    """

    def __init__(self, table: pa.Table, read: Callable[[Row], bytes], source: str) -> None:
        if len(table) == 0:
            raise DataError(f"{source}: has no pairs")
        self.source = source
        self._read = read
        self._all = _Packed(table)
        self._texts = self._all.only(["captions"])
        self._rows = self._all.only([name for name in table.column_names if name != "captions"])

    def __len__(self) -> int:
        return len(self._all)

    @property
    def ids(self) -> list[str]:
        """The image ids of the source, in order."""
        return self._rows.table()["id"].to_pylist()

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of one image."""
        return tuple(self._texts.row(index)["captions"])

    def all_captions(self) -> list[str]:
        """Every caption of every image, in order."""
        return self._texts.table()["captions"].combine_chunks().flatten().to_pylist()

    def ref(self, index: int) -> ImageRef:
        """One image, unread, with its content key."""
        row = self._rows.row(index)
        return ImageRef(row["name"], partial(self._read, row))

    def image(self, index: int) -> Image.Image:
        """One image as RGB; raises `ImageError` where the file gives none."""
        return self.ref(index).load()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, captions, image names and, for local files, their sizes.

        It stands for the images' content without reading 18 GB of them.
        """
        digest = hashlib.sha256()
        blocks = iter(self._all)
        while rows := [row for block in islice(blocks, 1024 // BLOCK) for row in block.to_pylist()]:
            digest.update(json.dumps(rows, sort_keys=True).encode())
        return digest.hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs at these places, in this order."""
        return Pairs(self._all.table().take(pa.array(rows, pa.int64())), self._read, self.source)

    @property
    def coco_ids(self) -> list[set[str]]:
        """COCO's ids of each image, as far as its file names tell them: two where the same image
        is there twice."""
        table = self._rows.table()
        names = table["name"].to_pylist()
        also = table["also"].to_pylist() if "also" in table.column_names else [()] * len(table)
        both = zip(map(coco_id, names), also, strict=True)
        return [{own for own in (first, *rest) if own} for first, rest in both]


class _Packed:
    """A table compressed in blocks of rows; any row is had by decompressing its block alone."""

    def __init__(self, table: pa.Table) -> None:
        sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, table.schema, options=options) as file:
            file.write_table(table.combine_chunks(), max_chunksize=BLOCK)
        self._buffer, self._count = sink.getvalue(), len(table)
        self._fields = list(range(table.num_columns))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (self._blocks.get_batch(i) for i in range(self._blocks.num_record_batches))

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked opens its own reader.
        return {name: value for name, value in vars(self).items() if name != "_blocks"}

    @cached_property
    def _blocks(self) -> Any:
        # One thread: blocks are small, and Arrow's pool of threads does not come along in a fork.
        options = pa.ipc.IpcReadOptions(use_threads=False, included_fields=self._fields)
        return pa.ipc.open_file(pa.BufferReader(self._buffer), options=options)

    def only(self, columns: Collection[str]) -> _Packed:
        """The same memory, of which these columns alone are decompressed."""
        found = copy(self)
        found._fields = [i for i, name in enumerate(self._blocks.schema.names) if name in columns]
        return found

    def row(self, index: int) -> Row:
        """One row by its place."""
        block, place = divmod(range(self._count)[index], BLOCK)
        return self._blocks.get_batch(block).slice(place, 1).to_pylist()[0]

    def table(self) -> pa.Table:
        """All rows, decompressed."""
        return self._blocks.read_all()


def load_pairs(source: str, limit: int | None = None) -> Pairs:
    """Open a set of image-caption pairs.

    `source` is `mini` or `mini:val`; a COCO folder (`annotations/captions_*.json` beside the image
    folders), or one with images and their `metadata.jsonl`; `captions.json::image_folder`, of COCO,
    a Karpathy split or metadata.jsonl; WebDataset shards
    (`shards/{000..099}.tar`, a pattern with `*`, a folder of them, or http addresses); or a Hub id,
    `owner/name` or `owner/name:split`. `limit` takes a random subset, the same every time, the
    smaller inside the larger. Raises `DataError`.
    """
    pairs = _open(source)
    pa.default_memory_pool().release_unused()  # of the columns that are packed by now
    return some(pairs, limit, source)


def some(pairs: Pairs, limit: int | None, source: str) -> Pairs:
    """A random subset, the same every time, the smaller inside the larger; None is all.

    Raises `DataError` where there are fewer, with the name `source`.
    """
    if limit is None:
        return pairs
    if limit > len(pairs):
        raise DataError(
            f"{limit} pairs asked for, but {source} has {len(pairs)}; lower train_pairs or leave it"
        )
    order = np.random.default_rng(derive_seed(0, "limit", len(pairs))).permutation(len(pairs))
    return pairs.take(np.sort(order[:limit]))


def _open(source: str) -> Pairs:
    if world := world_of(source.partition(":")[0]):
        return world.pairs(source)
    if "::" in source:
        annotations, images = (project_path(part) for part in source.split("::", 1))
        if annotations.suffix == ".jsonl":
            return metadata_pairs(annotations, images)
        return (karpathy_pairs if is_list(annotations) else coco_pairs)(annotations, images)
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
    raise DataError(
        f"{source!r} is no source of pairs: no folder {folder}, and not of the form mini, "
        "captions.json::image_folder, shards/*.tar or owner/name"
    )


def _shard_pairs(source: str) -> Pairs:
    table = index_shards(source)
    place: dict[str, int] = {}
    first = [place.setdefault(one, row) for row, one in enumerate(table["sha256"].to_pylist())]
    return Pairs(_joined(table.drop_columns("sha256"), first, source), read_sample, source)


# --- COCO ----------------------------------------------------------------------------------------


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
    """Pairs of a metadata.jsonl as `datasets` reads it beside images: file_name and a caption."""
    named = []
    for number, row in enumerate(read_json_lines(annotations)):
        column = next((one for one in CAPTION_COLUMNS if one in row), CAPTION_COLUMNS[0])
        found = {"image": row.get("file_name"), "caption": row.get(column)}
        entry = check_row(found, KarpathyRow, f"{annotations.name}[{number}]")
        named.append((entry.image, entry.caption))
    return _named_pairs(annotations, images, iter(named))


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


# --- the Hub -------------------------------------------------------------------------------------


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
        [caption_at(text, f"{name}[{row}].{texts[0]}") for text in _listed(cell)]
        for row, cell in enumerate(found[texts[0]])
    ]
    cells = ImageCells(found, images[0], name)
    columns = {
        "id": _row_ids(found),
        "name": [f"{name}[{row}]" for row in range(len(found))],
        "captions": pa.array(captions, pa.list_(pa.string())),
        "row": list(range(len(found))),
    }
    table = _joined(pa.table(columns), alike(cells.sizes, cells.read), name)
    return Pairs(table, partial(_read_cell, found, images[0]), name)


def _listed(cell: Any) -> list[Any]:
    return [cell] if isinstance(cell, str) else cell or [None]


def _row_ids(found: Any) -> list[str]:
    """What a data set calls its rows, or their numbers; a label, which tells no image from another:
    it may be null, or a caption's."""
    known = [column for column in ID_COLUMNS if column in found.column_names]
    ids = found[known[0]] if known else range(len(found))
    return [f"row {row}" if own is None else str(own) for row, own in enumerate(ids)]


def _read_cell(found: Any, column: str, row: Row) -> bytes:
    return cell_bytes(found, row["row"], column)


# --- batches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What one step sees: places in the `Pairs`, pixels, and one caption an image."""

    index: torch.Tensor  # int64 [B]
    pixels: torch.Tensor  # [B, 3, S, S]
    captions: tuple[str, ...]
    others: tuple[str, ...] = ()  # each pair's next caption in the whole batch, as in a ring
    whole: torch.Tensor | None = None  # the index of all processes' pairs together

    def __post_init__(self) -> None:
        if not self.others:
            object.__setattr__(self, "others", self.captions[1:] + self.captions[:1])
        if self.whole is None:
            object.__setattr__(self, "whole", self.index)

    def to(self, device: torch.device) -> Batch:
        """The same with its pixels on the device."""
        return replace(self, pixels=self.pixels.to(device))

    def take(self, rows: torch.Tensor) -> Batch:
        """The pairs at these places [M] of the batch, each with the same other caption."""
        places = rows.tolist()
        return replace(
            self,
            index=self.index[rows],
            pixels=self.pixels[rows],
            captions=tuple(self.captions[i] for i in places),
            others=tuple(self.others[i] for i in places),
        )


def steps_per_epoch(pairs: Pairs, batch_size: int) -> int:
    """Full batches in the pairs, the rest dropped; raises `DataError` where there is none."""
    steps = len(pairs) // batch_size
    if steps == 0:
        raise DataError(
            f"0 batches: {pairs.source} has {len(pairs)} pairs, batch_size is {batch_size}; "
            "lower batch_size or take more pairs"
        )
    return steps


def batches(
    pairs: Pairs,
    transform: Transform,
    batch_size: int,
    seed: int,
    steps: range,
    num_workers: int = 0,
    part: slice = slice(None),
) -> Iterator[Batch]:
    """The batches of these `steps`, counted from 0 at the start of training.

    The order within an epoch is a permutation drawn from (seed, "order", epoch), the caption of an
    image from (seed, "caption", epoch, index); a step is the same whatever came before it and
    however many workers make it. Of each batch `part` is made, one process's of several.
    `transform` maps an RGB image to [3, S, S] and is to be deterministic. Raises `DataError` for 0
    batches, before the first one.
    """
    steps_per_epoch(pairs, batch_size)
    loader = DataLoader(
        _Steps(pairs, transform, batch_size, seed, part),
        sampler=steps,
        batch_size=None,
        num_workers=num_workers,
        collate_fn=_same,
        generator=torch.Generator(),  # the loader would draw from, and so move, torch's own
    )
    return _named_failures(loader, steps.start)


class _Steps(Dataset):
    """Step number to `Batch`."""

    def __init__(
        self, pairs: Pairs, transform: Transform, batch_size: int, seed: int, part: slice
    ) -> None:
        self.pairs, self.transform, self.batch_size = pairs, transform, batch_size
        self.seed, self.part = seed, part

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, steps_per_epoch(self.pairs, self.batch_size))
        order = epoch_order(self.seed, epoch, len(self.pairs))
        whole = order[place * self.batch_size : (place + 1) * self.batch_size]
        index = whole[self.part]
        pixels = [self.transform(self.pairs.image(int(i))) for i in index]
        captions = tuple(self._caption(epoch, int(i)) for i in whole)
        others = captions[1:] + captions[:1]
        return Batch(
            torch.from_numpy(index.copy()),
            torch.stack(pixels),
            captions[self.part],
            others[self.part],
            torch.from_numpy(whole.copy()),
        )

    def _caption(self, epoch: int, index: int) -> str:
        captions = self.pairs.captions(index)
        return captions[derive_seed(self.seed, "caption", epoch, index) % len(captions)]


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which one epoch sees `count` pairs; int64 [count]."""
    return np.random.default_rng(derive_seed(seed, "order", epoch)).permutation(count)


def _same(batch: Any) -> Any:
    return batch


def _named_failures(loader: DataLoader, done: int) -> Iterator[Batch]:
    try:
        for batch in loader:
            yield batch
            done += 1
    except RuntimeError as reason:
        if "DataLoader worker" not in str(reason):
            raise
        raise RuntimeError(
            f"{reason}; it read images for step {done + 1} or a later one and died, often for want "
            "of memory or /dev/shm: set num_workers=0 to read in this process"
        ) from reason
