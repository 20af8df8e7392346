"""Image-caption pairs, from COCO files, the Hub or WebDataset shards, and the order they come in.

A pair is one image with its K captions; one of them is drawn an epoch, so no batch ever holds two
captions of one image. Every draw derives from (seed, purpose, epoch, index): any step can be made
from nothing, by any number of workers. Letters: B pairs a batch, S image side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from sdslib.config import derive_seed
from sdslib.io.images import ImageRef
from sdslib.io.lazy import named
from sdslib.io.pictures import Kept
from sdslib.io.sources import DataError, coco_id

Transform = Callable[[Image.Image], torch.Tensor]
Row = dict[str, Any]
CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "sentences", "raw", "en", "sentence")
METADATA = "metadata.jsonl"
ID_COLUMNS = ("image_id", "cocoid", "img_id", "imgid", "id", "__key__")
_SMALL = 2**14  # pairs of which training keeps the captions unpacked
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

    def keys(self, index: Sequence[int]) -> list[str]:
        """The content keys of these images, which are read."""
        return [self.ref(i).key for i in index]

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

    def saying(self, change: Callable[[int, tuple[str, ...]], list[str]]) -> Pairs:
        """The same images with the captions that `change(number, captions)` makes of theirs."""
        table, place = self._all.table(), self._all.table().column_names.index("captions")
        said = [change(index, self.captions(index)) for index in range(len(self))]
        column = pa.array(said, table.schema.field("captions").type)
        return Pairs(table.set_column(place, "captions", column), self._read, self.source)

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
    pairs: Pairs = named("sets.pair_files:open_pairs")(source)
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
        self._kept = Kept(transform, len(pairs))
        self._said: dict[int, tuple[str, ...]] = {}

    def __getitem__(self, step: int) -> Batch:
        epoch, place = divmod(step, steps_per_epoch(self.pairs, self.batch_size))
        order = epoch_order(self.seed, epoch, len(self.pairs))
        whole = order[place * self.batch_size : (place + 1) * self.batch_size]
        index = whole[self.part]
        pixels = self._kept(index.tolist(), lambda i: self.transform(self.pairs.image(i)))
        captions = tuple(self._caption(epoch, int(i)) for i in whole)
        others = captions[1:] + captions[:1]
        return Batch(
            torch.from_numpy(index.copy()),
            pixels,
            captions[self.part],
            others[self.part],
            torch.from_numpy(whole.copy()),
        )

    def _caption(self, epoch: int, index: int) -> str:
        captions = self._said.get(index) or self.pairs.captions(index)
        if len(self.pairs) <= _SMALL:
            self._said[index] = captions
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
