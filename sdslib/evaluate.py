"""Scores of images with captions, by the student or by the teacher, and tables made from them.

A scorer takes items and gives each a grid [I, K], higher is better; `score_grids` makes the score
table that `tables` describes. I images an item, K captions an item, D draws of (t, eps), P
independent draws (antithetic pairs), N items, T captions.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from sdslib import metrics
from sdslib.config import derive_seed
from sdslib.io.images import LONGEST
from sdslib.losses import denoising_loss
from sdslib.student import caption_lengths
from sdslib.tables import (
    NOTES,
    Caution,
    TableError,
    cautions,
    cell_columns,
    compare,
    compare_over_seeds,
    read_scores,
    summary,
    tabulate,
    tags_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdslib.benchmarks import Benchmark, Item
    from sdslib.io.images import ImageRef
    from sdslib.student import Student
    from sdslib.teacher import Teacher

__all__ = [
    "ClipScorer",
    "DiffusionScorer",
    "Draws",
    "clip_scorer",
    "compare",
    "compare_over_seeds",
    "diffusion_scorer",
    "error_profile",
    "error_table",
    "evaluate_student",
    "rank_classes",
    "rank_retrieval",
    "read_scores",
    "score_grids",
    "scores_from_errors",
    "sequential_diffusion_scorer",
    "shared_draws",
    "summary",
    "tabulate",
]


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
        with ThreadPoolExecutor(self.workers) as pool, _scoring(self.student) as device:
            for batch in _chunks(list(distinct.values()), self.batch_size):
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
        tokens = [self.student.tokenize(list(some)).cpu() for some in _chunks(strings, 1024)]
        distinct, row = np.unique(torch.cat(tokens).numpy(), axis=0, return_inverse=True)
        lengths, found = caption_lengths(torch.from_numpy(distinct)), []
        order = np.argsort(lengths.numpy(), kind="stable")
        with _scoring(self.student) as device:
            for batch in _chunks(order, self.batch_size):
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


@dataclass(frozen=True)
class Draws:
    """Shared randomness of a diffusion score: t [D] int64 and eps [D, C, H, W].

    `group` consecutive draws make one independent draw: 2 for antithetic pairs (eps, -eps).
    """

    t: Tensor
    eps: Tensor
    group: int


def shared_draws(
    latent_shape: Sequence[int],
    draws: int,
    seed: int,
    t_range: tuple[int, int] = (20, 980),
    antithetic: bool = True,
) -> Draws:
    """Draws that depend on the seed and their index alone, so that all cells of all items share.

    t is stratified over t_range (inclusive), one draw a stratum; the strata come in bit-reversed
    order, so that every prefix is spread over the range (van der Corput). Antithetic pairs share
    t and use eps and -eps, which cancels the odd part of the error's noise.
    """
    group = 2 if antithetic else 1
    if draws < group or draws % group:
        raise TableError(f"draws={draws} must be a positive multiple of {group}")
    low, high = t_range
    if not 0 <= low <= high:
        raise TableError(f"t_range={t_range} must be ordered and not negative")
    count = draws // group
    bits = max(1, (count - 1).bit_length())
    order = [int(f"{n:0{bits}b}"[::-1], 2) for n in range(2**bits)]
    t, eps = [], []
    for index, stratum in enumerate(s for s in order if s < count):
        generator = torch.Generator().manual_seed(derive_seed(seed, "score", index))
        place = (stratum + float(torch.rand((), generator=generator))) / count
        noise = torch.randn(tuple(latent_shape), generator=generator)
        t += [low + int(place * (high - low + 1))] * group
        eps += [noise, -noise][:group]
    return Draws(torch.tensor(t), torch.stack(eps), group)


class Row(NamedTuple):
    """One image with the captions of its item: the unit that is drawn for and settled."""

    ref: ImageRef
    captions: tuple[str, ...]


class ErrorBank:
    """Denoising errors of (image, caption) pairs under shared draws, each computed once.

    Holds one latent an image and one text state a caption in memory (64 kB and 236 kB for
    Stable Diffusion 1). `counts` says how many images, captions and UNet samples it computed.
    """

    def __init__(
        self, teacher: Teacher, draws: Draws, empty: bool, batch_size: int, mode: str
    ) -> None:
        self.teacher, self.draws, self.empty = teacher, draws, empty
        self.batch_size, self.mode = batch_size, mode
        self.counts = {"images": 0, "captions": 0, "unet_evaluations": 0}
        self._latents: dict[str, Tensor] = {}
        self._texts: dict[str, Tensor] = {}
        self._errors: dict[tuple[str, str], list[float]] = {}

    def measure(self, rows: Sequence[Row], count: int) -> None:
        """Bring every distinct pair of the rows to `count` errors, in full batches."""
        self._encode(rows)
        pairs = dict.fromkeys(pair for row in rows for pair in self._pairs(row))
        jobs = []
        for pair in pairs:
            jobs += [(pair, d) for d in range(len(self._errors.setdefault(pair, [])), count)]
        for batch in _chunks(jobs, self.batch_size):
            for (pair, _), error in zip(batch, self._batch(batch), strict=True):
                self._errors[pair].append(error)

    def errors(self, row: Row, count: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The first `count` errors of the row's captions [K, count], and of the empty one."""
        own = np.array([self._errors[row.ref.key, c][:count] for c in self.captions(row)])
        return own, np.array(self._errors[row.ref.key, ""][:count]) if self.empty else None

    def cost(self, row: Row) -> int:
        """UNet evaluations of one draw for this row alone."""
        return len(set(self._pairs(row)))

    def captions(self, row: Row) -> list[str]:
        """The row's captions, one that reads the same to the teacher replaced by its twin."""
        found: list[str] = []
        for caption in row.captions:
            text = self._texts[caption]
            same = (c for c in found if torch.allclose(self._texts[c], text, 1e-4, 1e-5))
            found.append(next(same, caption))
        return found

    def _pairs(self, row: Row) -> Iterator[tuple[str, str]]:
        captions = [*self.captions(row), ""] if self.empty else self.captions(row)
        return ((row.ref.key, caption) for caption in captions)

    def _encode(self, rows: Sequence[Row]) -> None:
        refs = {row.ref.key: row.ref for row in rows}
        new = [ref for key, ref in refs.items() if key not in self._latents]
        for batch in _chunks(new, self.batch_size):
            pixels = torch.stack([self.teacher.transform(ref.load(), self.mode) for ref in batch])
            with _scoring(self.teacher) as device:
                latents = self.teacher.encode_images(pixels.to(device))
            self._latents |= {ref.key: z for ref, z in zip(batch, latents, strict=True)}
        captions = dict.fromkeys(c for row in rows for c in row.captions)
        captions |= {"": None} if self.empty else {}
        fresh = [c for c in captions if c not in self._texts]
        for batch in _chunks(fresh, self.batch_size):
            with _scoring(self.teacher):
                states = self.teacher.embed_texts(list(batch))
            self._texts |= dict(zip(batch, states, strict=True))
        self.counts["images"] += len(new)
        self.counts["captions"] += len(fresh)

    def _batch(self, jobs: Sequence[tuple[tuple[str, str], int]]) -> list[float]:
        """Mean squared eps error of each job ((image, caption), draw)."""
        index = torch.tensor([d for _, d in jobs])
        z = torch.stack([self._latents[key] for (key, _), _ in jobs])
        text = torch.stack([self._texts[caption] for (_, caption), _ in jobs])
        with _scoring(self.teacher) as device:
            t, eps = self.draws.t[index].to(device), self.draws.eps[index].to(device)
            alpha_bar = self.teacher.alpha_bar.to(device)[t]
            predict = self.teacher.predict_noise
            errors = denoising_loss(predict, z, text, t, eps, alpha_bar, reduction="mean")
        self.counts["unet_evaluations"] += len(jobs)
        return errors.tolist()


class DiffusionScorer:
    """Negative mean denoising error over shared draws, each image until its choice is settled.

    `looks` are the numbers of draws after which `is_settled` is asked about the errors [K, P] of
    an image; none means the whole budget for every image.
    """

    name = "diffusion"

    def __init__(
        self,
        bank: ErrorBank,
        profile: pd.DataFrame | None,
        looks: Sequence[int] = (),
        is_settled: Callable[[np.ndarray], bool] = lambda errors: False,
    ) -> None:
        self.bank, self.looks, self.is_settled = bank, looks, is_settled
        self.weights = None if profile is None else relative_weights(profile, bank.draws.t)

    @property
    def counts(self) -> dict[str, int]:
        """Images, captions and UNet samples computed so far."""
        return self.bank.counts

    def __call__(self, items: Sequence[Item]) -> Iterator[Scored]:
        """Score the items in blocks; within one, images not yet settled draw on together."""
        total = len(self.bank.draws.t)
        for block in _chunks(items, 128):
            rows = [[Row(ref, item.captions) for ref in item.images] for item in block]
            drawn = iter(self._draw([row for some in rows for row in some]))
            for some in rows:
                counts, captions = list(islice(drawn, len(some))), self.bank.captions(some[0])
                cost = sum(self.bank.cost(row) * n for row, n in zip(some, counts, strict=True))
                notes = {
                    "equal_captions": len(set(captions)) < len(captions),
                    "draws": max(counts),
                    "settled": max(counts) < total,
                    "unet_evaluations": cost,
                }
                yield Scored(self._grids(some, counts), notes)

    def _grids(self, rows: Sequence[Row], counts: Sequence[int]) -> dict[str, np.ndarray]:
        """Scores [I, K] by rule: an image's level from the draws that all images of the item have,
        so that images compare, and its captions' differences from all its own draws."""
        grids: dict[str, list[np.ndarray]] = {}
        for row, count in zip(rows, counts, strict=True):
            for rule, values in self._values(row, count).items():
                own, common = values.mean(-1), values[:, : min(counts)].mean(-1)
                same = count == min(counts)
                score = own if same else own - own.mean() + common.mean()
                grids.setdefault(rule, []).append(-score)
        return {rule: np.array(grid) for rule, grid in grids.items()}

    def _values(self, row: Row, count: int) -> dict[str, np.ndarray]:
        errors, empty = self.bank.errors(row, count)
        return weighted_errors(
            errors, empty, None if self.weights is None else self.weights[:count]
        )

    def _draw(self, rows: Sequence[Row]) -> list[int]:
        """Draws taken for every row: the look that settled its choice, or the whole budget."""
        total, group = len(self.bank.draws.t), self.bank.draws.group
        result, active = [total] * len(rows), dict(enumerate(rows))
        for count in self.looks:
            self.bank.measure(list(active.values()), count)
            for index, row in list(active.items()):
                values = self._values(row, count)
                decides = values.get("relative", values[""])
                if self.is_settled(decides.reshape(len(decides), -1, group).mean(-1)):
                    result[index] = count
                    del active[index]
        self.bank.measure(list(active.values()), total)
        return result


def diffusion_scorer(
    teacher: Teacher,
    draws: int | Draws = 16,
    seed: int = 0,
    profile: pd.DataFrame | None = None,
    empty: bool = True,
    batch_size: int = 64,
    mode: str = "crop",
) -> DiffusionScorer:
    """A scorer by the teacher's denoising error over draws shared by all cells of all items.

    Columns: `s_i_k`, minus the mean squared eps error over t uniform on 20...980 (give `Draws`
    for another range); with `empty`, `normalized.s_i_k`, the same less the error under the empty
    caption (Krojer et al. 2023, DiffusionITM); with a `profile` of `error_profile`, `relative.`
    and `relative_normalized.`, each error divided by the profile's mean error at its t. `mode` is
    the teacher's preprocessing: crop, squash or pad.
    """
    bank = ErrorBank(teacher, _as_draws(teacher, draws, seed), empty, batch_size, mode)
    return DiffusionScorer(bank, profile)


def sequential_diffusion_scorer(
    teacher: Teacher,
    draws: int | Draws = 64,
    seed: int = 0,
    error_rate: float = 0.05,
    profile: pd.DataFrame | None = None,
    batch_size: int = 64,
    mode: str = "crop",
) -> DiffusionScorer:
    """The same, which stops drawing for an image when its best caption is settled.

    `error_rate` is the chance, at a true difference of zero and for normal errors, that an image's
    choice of caption differs from the choice after all `draws`; elsewhere it is smaller. See
    `choice_is_settled` and `look_level`. Decides by the relative rule where
    a profile is given. Made for the text score: see `DiffusionScorer` for what the image score
    then rests on. The column `unet_evaluations` says what each item cost.
    """
    shared = _as_draws(teacher, draws, seed)
    bank = ErrorBank(teacher, shared, False, batch_size, mode)
    total = len(shared.t) // shared.group
    looks = sorted({max(3, total * part // 16) for part in (2, 3, 4, 6, 8, 12)})
    looks = [count for count in looks if count < total]
    level = look_level(looks, total, error_rate) if looks else 0.0
    settled = partial(choice_is_settled, total=total, level=level)
    return DiffusionScorer(bank, profile, [count * shared.group for count in looks], settled)


def look_level(looks: Sequence[int], total: int, error_rate: float) -> float:
    """The level of each look at which `looks` together err at `error_rate`, by simulation.

    An error is to settle against the sign of the sum of all `total` draws. Calibrated on 40,000
    sequences of normal draws (always the same) of mean zero, where errors are most frequent.
    """
    draws = np.random.default_rng(0).standard_normal((40_000, total))
    against, smallest = -np.sign(draws.sum(axis=1)), np.ones(len(draws))
    for count in looks:
        part = draws[:, :count]
        scale = part.std(axis=1, ddof=1) * np.sqrt(count * (1 - count / total))
        smallest = np.minimum(smallest, stats.t.sf(against * part.sum(axis=1) / scale, count - 1))
    return float(np.quantile(smallest, error_rate))


def choice_is_settled(errors: np.ndarray, total: int, level: float) -> bool:
    """Whether the best caption of one image's errors [K, P] will stay best after `total` draws.

    A paired t test of the best against each other caption, with the finite-population factor
    1 - P / total: what can still change is only what has not been drawn. For normal draws, S their
    sum at the end and s its part so far, s - S P / total is independent of S, hence one look
    settles against the final sign with a chance of at most `level` whatever the true difference.
    The level is shared among the other captions. Exactly equal errors never settle.
    """
    captions, count = errors.shape
    threshold = stats.t.ppf(1 - level / max(1, captions - 1), count - 1)
    best = errors.mean(-1).argmin()
    lead = np.delete(errors - errors[best], best, axis=0)
    error = lead.std(-1, ddof=1) * np.sqrt((1 / count) * (1 - count / total))
    return bool((lead.mean(-1) > threshold * error).all())


def weighted_errors(
    errors: np.ndarray, empty: np.ndarray | None, weights: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Errors [..., K, D] under every rule that the inputs allow; "" is the plain mean's.

    empty [..., D] are the errors under the empty caption, weights [D].
    """
    values = {"": errors}
    if empty is not None:
        values["normalized"] = errors - empty[..., None, :]
    if weights is not None:
        values |= {f"relative_{rule}".rstrip("_"): v * weights for rule, v in values.items()}
    return values


def error_profile(errors: pd.DataFrame) -> pd.DataFrame:
    """Mean error at each t (columns t, error), from an error table of items kept apart.

    Needs no labels. Taken from the items that are scored it would let them choose their own
    weighting; take it from the validation split.
    """
    seen = errors[errors["caption"] >= 0]
    return seen.groupby("t", as_index=False)["error"].mean()


def relative_weights(profile: pd.DataFrame, t: Sequence[int] | Tensor) -> np.ndarray:
    """1 / mean error at each t, interpolated linearly in log error between the profile's t."""
    known = profile.sort_values("t")
    return np.exp(-np.interp(np.asarray(t), known["t"], np.log(known["error"])))


def error_table(scorer: DiffusionScorer, items: Sequence[Item]) -> pd.DataFrame:
    """Every error of the whole budget: columns id, image, caption (-1 is empty), draw, t, error.

    Any weighting follows from it without another UNet call: see `scores_from_errors`.
    """
    bank, t, parts = scorer.bank, scorer.bank.draws.t.numpy(), []
    rows = [
        (item.id, i, Row(r, item.captions)) for item in items for i, r in enumerate(item.images)
    ]
    bank.measure([row for *_, row in rows], len(t))
    for name, image, row in rows:
        errors, empty = bank.errors(row, len(t))
        cells = dict(enumerate(errors)) | ({} if empty is None else {-1: empty})
        for caption, values in cells.items():
            place = {"id": name, "image": image, "caption": caption, "draw": np.arange(len(t))}
            parts.append(pd.DataFrame(place | {"t": t, "error": values}))
    return pd.concat(parts, ignore_index=True)


def scores_from_errors(errors: pd.DataFrame, profile: pd.DataFrame | None = None) -> pd.DataFrame:
    """Score columns of every rule, one row an item, from a stored error table."""
    rows = []
    for name, part in errors.groupby("id", sort=False):
        cube = part.pivot_table("error", ["image", "caption"], "draw", sort=True)
        t = part.drop_duplicates("draw").sort_values("draw")["t"].to_numpy()
        captions = sorted(set(part["caption"]) - {-1})
        images = sorted(set(part["image"]))
        values = cube.loc[[(i, k) for i in images for k in captions]].to_numpy()
        values = values.reshape(len(images), len(captions), -1)
        empty = (
            cube.loc[[(i, -1) for i in images]].to_numpy() if -1 in set(part["caption"]) else None
        )
        weights = None if profile is None else relative_weights(profile, t)
        ruled = weighted_errors(values, empty, weights)
        rows.append({"id": name} | cell_columns({rule: -v.mean(-1) for rule, v in ruled.items()}))
    return pd.DataFrame(rows)


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


def _as_draws(teacher: Teacher, draws: int | Draws, seed: int) -> Draws:
    shape: Any = teacher.latent_shape
    return draws if isinstance(draws, Draws) else shared_draws(shape, draws, seed)


def _chunks(values: Sequence | np.ndarray, size: int) -> Iterator:
    return (values[start : start + size] for start in range(0, len(values), size))


@contextmanager
def _scoring(module: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients, the mode put back afterwards; yields the device."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield next(module.parameters()).device
    finally:
        module.train(training)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures of a file of score grids; see `python -m sdslib.evaluate --help`."""
    parser = argparse.ArgumentParser(prog="python -m sdslib.evaluate", description=main.__doc__)
    parser.add_argument("--scores", required=True, metavar="FILE", help="CSV or parquet of grids")
    parser.add_argument("--by", help="tag columns, separated by commas")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args(arguments)
    by = options.by.split(",") if options.by else None
    try:
        scores = read_scores(options.scores)
        missing = set(by or ()) - set(scores.columns)
        if missing:
            raise TableError(f"no tag {sorted(missing)[0]!r}; there are {tags_of(scores)}")
        found = summary(scores, by)
        for text in cautions(scores):
            print(f"caution: {text}", file=sys.stderr)
    except (TableError, metrics.ScoreError) as reason:
        print(f"error: {reason}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found))
    else:
        print(tabulate(None, scores, by=list(found["by"])).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
