"""The diffusion score with draws until an item is settled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from sdslib.scorers.diffusion import DiffusionScorer, Draws, ErrorBank, as_draws

if TYPE_CHECKING:
    from sdslib.teacher import Teacher


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
    shared = as_draws(teacher, draws, seed)
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
