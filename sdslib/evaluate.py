"""Scores of images with captions, by the student or by the teacher, and tables made from them.

A scorer takes items and gives each a grid [I, K], higher is better; `score_grids` makes the score
table that `tables` describes. I images an item, K captions an item, D draws of (t, eps), P
independent draws (antithetic pairs), N items, T captions.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sdslib import metrics
from sdslib.io.images import LONGEST
from sdslib.student import caption_lengths
from sdslib.tables import NOTES, Caution, TableError, cautions, cell_columns

if TYPE_CHECKING:
    from PIL.Image import Image

if TYPE_CHECKING:
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
            yield Scored({"": grid}, {"equal_captions": len(set(rows)) < len(rows)})

    def embed_images(self, refs: Sequence[ImageRef]) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings [R, D] in float64 of the distinct images, and the row [N] of each.

        Images are loaded by threads, one batch at a time.
        """
        distinct, found = {ref.key: ref for ref in refs}, []
        row = {key: number for number, key in enumerate(distinct)}
        with ThreadPoolExecutor(self.workers) as pool, evaluating(self.student) as device:
            for batch in chunks(list(distinct.values()), self.batch_size):
                pixels = pool.map(self._pixels, batch)
                emb = self.student.encode_images(torch.stack(list(pixels)).to(device))
                found.append(emb.double().cpu().numpy())
        self.counts["images"] += len(distinct)
        return np.concatenate(found), np.array([row[ref.key] for ref in refs])

    def _pixels(self, ref: ImageRef) -> Tensor:
        image = ref.load()
        return self.student.transform(image if self.mode is None else squared(image, self.mode))

    def embed_texts(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings [R, D] in float64 of the distinct token rows, and the row [N] of each.

        Captions that become equal under the tokenizer share a row, so that their scores are
        equal to the last bit and count as a tie.
        """
        strings, place = np.unique(np.array(captions, dtype=object), return_inverse=True)
        tokens = [self.student.tokenize(list(some)).cpu() for some in chunks(strings, 1024)]
        distinct, row = np.unique(torch.cat(tokens).numpy(), axis=0, return_inverse=True)
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
    `rank_classes` and `rank_retrieval`. Raises `metrics.ScoreError` with the item's id where a
    score is not finite, and warns (`tables.Caution`) of what `tables.cautions` says. `attrs` holds
    benchmark, scorer, total, seconds and the scorer's counts, and survives parquet. `progress`
    wraps the iterator over items (tqdm).
    """
    items, start, before = list(benchmark.items)[:limit], time.perf_counter(), dict(scorer.counts)
    if benchmark.kind == "classes" and isinstance(scorer, ClipScorer):
        table = rank_classes(scorer, items, benchmark.prompts)
    elif benchmark.kind == "retrieval":
        table = rank_retrieval(scorer, items)
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
    for text in cautions(table):
        warnings.warn(f"{benchmark.name}, {scorer.name}: {text}", Caution, stacklevel=2)
    return table


def evaluate_student(
    student: Student, benchmarks: Iterable[Benchmark], batch_size: int = 64
) -> dict[str, pd.DataFrame]:
    """The student's score table of every benchmark, by name."""
    return {b.name: score_grids(clip_scorer(student, batch_size), b) for b in benchmarks}


def rank_classes(
    scorer: ClipScorer, items: Sequence[Item], prompts: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Zero-shot classification: the rank of each item's `answer` among the classes.

    `prompts` are the captions of each class; a class is the mean of their unit embeddings, made
    unit again (Radford et al. 2021, section 3.1.4). `margin` is the lead over the best other
    class; a class with an equal score ranks before the true one.
    """
    images, image = scorer.embed_images([item.images[0] for item in items])
    emb, row = scorer.embed_texts([prompt for group in prompts for prompt in group])
    ends = np.cumsum([len(group) for group in prompts])
    means = np.array([part.mean(0) for part in np.split(emb[row], ends[:-1])])
    scores = images[image] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    answer, ids = np.array([item.answer for item in items]), [item.id for item in items]
    margin = metrics.choice_margin(scores, answer, ids)
    own = scores[np.arange(len(items)), answer][:, None]
    table = pd.DataFrame([{"id": item.id, "answer": item.answer, **item.tags} for item in items])
    table["answer"] = table["answer"].astype("Int64")
    fixed = {"n_images": 1, "n_captions": len(prompts), "n_true": 1, "margin": margin}
    rank = (scores >= own).sum(axis=1) - 1
    return table.assign(**fixed, predicted=scores.argmax(axis=1), rank=rank)


def rank_retrieval(scorer: Scorer, items: Sequence[Item]) -> pd.DataFrame:
    """Retrieval over all items at once: the rank of the best true partner of every query.

    The tag `way` is `image_to_text` (one row an item, its id) or `text_to_image` (one row a
    caption, `id#k`); recall at k is the share of ranks below k. See `metrics.retrieval_ranks`.
    """
    if not isinstance(scorer, ClipScorer):
        raise TableError(f"retrieval needs embeddings; the {scorer.name} scorer has none")
    images, image = scorer.embed_images([item.images[0] for item in items])
    owner = np.repeat(np.arange(len(items)), [len(item.captions) for item in items])
    emb, row = scorer.embed_texts([caption for item in items for caption in item.captions])
    ranks = metrics.retrieval_ranks(images[image] @ emb[row].T, owner)
    ids = [f"{item.id}#{k}" for item in items for k in range(len(item.captions))]
    to_text = pd.DataFrame({"id": [str(item.id) for item in items], "way": "image_to_text"})
    to_text = to_text.assign(n_captions=len(owner), n_true=np.bincount(owner))
    to_image = pd.DataFrame({"id": ids, "way": "text_to_image"})
    to_image = to_image.assign(n_captions=len(items), n_true=1)
    to_text["rank"], to_image["rank"] = ranks["image_to_text"], ranks["text_to_image"]
    return pd.concat([to_text, to_image], ignore_index=True)


def _row(item: Item, scored: Scored) -> dict:
    for grid in scored.grids.values():
        metrics.require_finite(grid[None], [item.id])
    clash = set(item.tags) & {"id", "answer", *NOTES}
    if clash:
        raise TableError(f"tag {sorted(clash)[0]!r} of item {item.id!r} is a reserved column")
    shape = {"n_images": len(item.images), "n_captions": len(item.captions)}
    head = {"id": item.id, "answer": item.answer}
    return head | dict(item.tags) | shape | scored.notes | cell_columns(scored.grids)


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
