"""Scores of images with captions, by the student or by the teacher, and tables made from them.

A scorer takes items and gives each a grid [I, K], higher is better; `score_grids` makes the score
table that `tables` describes. I images an item, K captions an item, D draws of (t, eps), P
independent draws (antithetic pairs), N items, T captions.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sdslib import metrics
from sdslib.io import pictures, shared
from sdslib.io.images import LONGEST
from sdslib.io.lazy import named
from sdslib.student import caption_lengths
from sdslib.tables import NOTES, TEXTS, Caution, TableError, cautions, cell_columns

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdslib.benchmarks import Benchmark, Item
    from sdslib.io.images import ImageRef
    from sdslib.student import Student


@dataclass(frozen=True)
class Scored:
    """What a scorer says of one item: a grid [I, K] for each rule ("" is the main one), notes."""

    grids: dict[str, np.ndarray]
    notes: dict[str, int | bool] = field(default_factory=dict)


class Scorer(Protocol):
    """Gives one `Scored` an item, in order; counts what it computed."""

    name: str

    @property
    def counts(self) -> dict[str, int]:
        """How many of what went through the models."""
        ...

    def __call__(self, items: Sequence[Item]) -> Iterator[Scored]:
        """Score the items; each distinct image and caption is computed once a call."""
        ...


class ClipScorer:
    """Cosine of the student's embeddings in float64; see `clip_scorer`."""

    name = "clip"

    def __init__(self, student: Student, batch_size: int, workers: int, mode: str | None) -> None:
        self.student, self.batch_size, self.workers, self.mode = student, batch_size, workers, mode
        self.counts = {"images": 0, "captions": 0}

    def __call__(self, items: Sequence[Item]) -> Iterator[Scored]:
        """Embed every distinct image and caption of the items once, then fill the grids."""
        images, image_row = self.embed_images([ref for item in items for ref in item.images])
        texts, text_row = self.embed_texts([c for item in items for c in item.captions])
        images_left, texts_left = iter(image_row), iter(text_row)
        for item in items:
            rows = list(islice(texts_left, len(item.captions)))
            image_emb = images[list(islice(images_left, len(item.images)))]
            grid = (image_emb[:, None] * texts[rows][None]).sum(-1)
            grids, equal = {"": grid}, len(set(rows)) < len(rows)
            if item.n_true > 1:  # the captions with one another: true-true, and each with the false
                grids[TEXTS] = (texts[rows][[0, 0, 1]] * texts[rows][[1, 2, 2]]).sum(-1)[None]
                equal = rows[-1] in rows[:-1]
            yield Scored(grids, {"equal_captions": equal})

    def embed_images(self, refs: Sequence[ImageRef]) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings [R, D] in float64 of the distinct images, and the row [N] of each.

        Images are loaded by threads, one batch at a time.
        """
        distinct, found = {ref.key: ref for ref in refs}, []
        row = {key: number for number, key in enumerate(distinct)}
        with evaluating(self.student) as device:
            for pixels in self._batches(list(distinct.values())):
                emb = self.student.encode_images(pixels.to(device))
                found.append(emb.double().cpu().numpy())
        self.counts["images"] += len(distinct)
        return np.concatenate(found), np.array([row[ref.key] for ref in refs])

    def _batches(self, refs: Sequence[ImageRef]) -> Iterator[Tensor]:
        shape, told = self.student.image_size, [self.student.preprocessing, self.mode]
        with ThreadPoolExecutor(self.workers) as pool:
            yield from pictures.batches(
                refs,
                self.batch_size,
                shape,
                self.student.transform,
                told,
                lambda batch: torch.stack(list(pool.map(self._pixels, batch))),
            )

    def _pixels(self, ref: ImageRef) -> Tensor:
        image = ref.load()
        return self.student.transform(image if self.mode is None else squared(image, self.mode))

    def decided_by(self, benchmark: Benchmark) -> dict[str, Any]:
        """What decides a benchmark's scores to the last bit, for `shared.table`."""
        rows = self.student.tokenize(sorted(set(captions_of(benchmark))))
        return self.student.embeds() | {
            "set": [benchmark.content, benchmark.total],
            "tokens": hashlib.sha256(rows.numpy().tobytes()).hexdigest(),
            "images": [self.batch_size, self.mode],
        }

    def embed_texts(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings [R, D] in float64 of the distinct token rows, and the row [N] of each.

        Captions that become equal under the tokenizer share a row, so that their scores are
        equal to the last bit and count as a tie.
        """
        strings, place = np.unique(np.array(captions, dtype=object), return_inverse=True)
        tokens = self.student.tokenize(strings.tolist()).numpy()
        distinct, row = np.unique(tokens, axis=0, return_inverse=True)
        lengths, found = caption_lengths(torch.from_numpy(distinct)), []
        order = np.argsort(lengths.numpy(), kind="stable")
        with evaluating(self.student) as device:
            for batch in chunks(order, self.batch_size):
                emb = self.student.encode_short_texts(torch.from_numpy(distinct[batch]).to(device))
                found.append(emb.double().cpu().numpy())
        self.counts["captions"] += len(distinct)
        return np.concatenate(found)[np.argsort(order)], row.reshape(-1)[place]


def clip_scorer(
    student: Student, batch_size: int = 64, workers: int = 2, mode: str | None = None
) -> ClipScorer:
    """A scorer by cosine similarity that embeds each distinct image and caption once a benchmark.

    `mode` crops, squashes or pads images to a square first (see `squared`); None leaves that to
    the model's own preprocessing. `counts` says how many images and captions went through.
    """
    return ClipScorer(student, batch_size, workers, mode)


def score_grids(
    scorer: Scorer,
    benchmark: Benchmark,
    limit: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """The score table of a benchmark's items, or of its first `limit`.

    Sets of classes and retrieval sets give a CLIP scorer's ranks over the whole set, see
    `sets.zero_shot` and `sets.retrieval`. Raises `metrics.ScoreError` with the item's id where a
    score is not finite, and warns (`tables.Caution`) of what `tables.cautions` says. `attrs` holds
    benchmark, scorer, total, seconds and the scorer's counts, and survives parquet. `progress`
    wraps the iterator over items.
    """
    return cautioned(grids_table(scorer, benchmark, limit, progress))


def grids_table(
    scorer: Scorer,
    benchmark: Benchmark,
    limit: int | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> pd.DataFrame:
    """`score_grids` without its warnings."""
    items, start, before = list(benchmark.items)[:limit], time.perf_counter(), dict(scorer.counts)
    if benchmark.kind == "classes" and isinstance(scorer, ClipScorer):
        table = named("sets.zero_shot:rank_classes")(scorer, items, benchmark.prompts)
    elif benchmark.kind == "retrieval":
        table = named("sets.retrieval:rank_retrieval")(scorer, items)
    else:
        pairs = progress(zip(items, scorer(items), strict=True))
        table = pd.DataFrame([_row(item, scored) for item, scored in pairs])
        table["answer"] = table["answer"].astype("Int64")
    table.attrs = {
        "benchmark": benchmark.name,
        "scorer": scorer.name,
        "total": benchmark.total,
        "seconds": time.perf_counter() - start,
        "counts": {key: value - before.get(key, 0) for key, value in scorer.counts.items()},
    }
    return table


def shared_grids(scorer: ClipScorer, benchmark: Benchmark, limit: int | None) -> pd.DataFrame:
    """`score_grids`, computed once by all runs whose student is the same."""
    table = shared.table(
        "scores",
        lambda: scorer.decided_by(benchmark) | {"limit": limit},
        lambda: grids_table(scorer, benchmark, limit),
    )
    return cautioned(table)


def cautioned(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, after a warning of what `tables.cautions` says of it."""
    for text in cautions(table):
        names = f"{table.attrs['benchmark']}, {table.attrs['scorer']}"
        warnings.warn(f"{names}: {text}", Caution, stacklevel=3)
    return table


def _row(item: Item, scored: Scored) -> dict:
    for grid in scored.grids.values():
        metrics.require_finite(grid[None], [item.id])
    clash = set(item.tags) & {"id", "answer", *NOTES}
    if clash:
        raise TableError(f"tag {sorted(clash)[0]!r} of item {item.id!r} is a reserved column")
    shape = {"n_images": len(item.images), "n_captions": len(item.captions)}
    shape |= {"n_true": item.n_true} if item.n_true > 1 else {}
    head = {"id": item.id, "answer": item.answer}
    return head | dict(item.tags) | shape | scored.notes | cell_columns(scored.grids)


def captions_of(benchmark: Benchmark) -> list[str]:
    """All captions of the items, or of a set of classes the prompts, in order."""
    groups = benchmark.prompts or [item.captions for item in benchmark.items]
    return [caption for group in groups for caption in group]


def chunks(values: Sequence | np.ndarray, size: int) -> Iterator:
    """Parts of at most `size`."""
    return (values[start : start + size] for start in range(0, len(values), size))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, the mode put back afterwards; yields the device."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield next(module.parameters()).device
    finally:
        module.train(training)


def squared(image: Image, mode: str) -> Image:
    """The image as a square: its center ("crop"), distorted ("squash") or on black ("pad").

    What is longer than 8,000 pixels is shrunk to that first: its square would be too large.
    """
    if mode not in ("crop", "squash", "pad"):
        raise TableError(f"mode must be 'crop', 'squash' or 'pad', not {mode!r}")
    if mode != "crop" and max(image.size) > LONGEST:
        image = image.copy()
        image.thumbnail((LONGEST, LONGEST))
    side = min(image.size) if mode == "crop" else max(image.size)
    if mode == "squash":
        return image.resize((side, side))
    left, top = ((length - side) // 2 for length in image.size)
    return image.crop((left, top, left + side, top + side))
