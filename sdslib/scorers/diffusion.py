"""The teacher's denoising error as a score.

I images an item, K captions an item, D draws of (t, eps), P independent draws (antithetic pairs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sdslib.config import derive_seed
from sdslib.evaluate import Scored, chunks, evaluating
from sdslib.losses import denoising_loss
from sdslib.tables import TableError, cell_columns

if TYPE_CHECKING:
    from sdslib.benchmarks import Item
    from sdslib.io.images import ImageRef
    from sdslib.teacher import Teacher


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
        for batch in chunks(jobs, self.batch_size):
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
        for batch in chunks(new, self.batch_size):
            pixels = torch.stack([self.teacher.transform(ref.load(), self.mode) for ref in batch])
            with evaluating(self.teacher) as device:
                latents = self.encode(batch, pixels.to(device))
            self._latents |= {ref.key: z for ref, z in zip(batch, latents, strict=True)}
        captions = dict.fromkeys(c for row in rows for c in row.captions)
        captions |= {"": None} if self.empty else {}
        fresh = [c for c in captions if c not in self._texts]
        for batch in chunks(fresh, self.batch_size):
            with evaluating(self.teacher):
                states = self.teacher.embed_texts(list(batch))
            self._texts |= dict(zip(batch, states, strict=True))
        self.counts["images"] += len(new)
        self.counts["captions"] += len(fresh)

    def encode(self, refs: Sequence[ImageRef], pixels: Tensor) -> Tensor:
        """The latents [B, C, H, W] of these images, of pixels [B, 3, S, S]."""
        return self.teacher.encode_images(pixels)

    def _batch(self, jobs: Sequence[tuple[tuple[str, str], int]]) -> list[float]:
        """Mean squared eps error of each job ((image, caption), draw)."""
        index = torch.tensor([d for _, d in jobs])
        z = torch.stack([self._latents[key] for (key, _), _ in jobs])
        text = torch.stack([self._texts[caption] for (_, caption), _ in jobs])
        with evaluating(self.teacher) as device:
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
        for block in chunks(items, 128):
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
    bank = ErrorBank(teacher, as_draws(teacher, draws, seed), empty, batch_size, mode)
    return DiffusionScorer(bank, profile)


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


def as_draws(teacher: Teacher, draws: int | Draws, seed: int) -> Draws:
    """The draws themselves, or so many shared ones of the seed."""
    shape: Any = teacher.latent_shape
    return draws if isinstance(draws, Draws) else shared_draws(shape, draws, seed)
