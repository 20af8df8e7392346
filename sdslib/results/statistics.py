"""Intervals over seeds and items, and the correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as _mcnemar

from sdslib.metrics import Interval, ScoreError

_KEPT_ITEMS = 5000  # up to so many items a bootstrap's draws are kept, 100 MB at most each


def over_seeds(
    values: np.ndarray, seed: int, level: float = 0.95, resamples: int = 5000
) -> Interval:
    """Mean of values[S, N] with a bootstrap over seeds and items at once.

    Seeds and items are crossed (all seeds answer the same items), so each resample draws seeds
    and, for all of them, items (Owen, The pigeonhole bootstrap, 2007). Give outcomes, or paired
    differences of outcomes. With S seeds the spread between seeds is understated by (S-1)/S.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise ScoreError(f"values must be finite and [S, N], not {list(table.shape)}")
    s, n = table.shape
    # Sums of whole numbers (right, wrong, their differences) are exact in any order: the same bytes
    # on any machine, and single precision holds them.
    whole = (table == np.rint(table)).all() and np.abs(table).max() * n < 2**24
    kind = np.float32 if whole else np.float64
    drawn = _drawn if n <= _KEPT_ITEMS else _drawn.__wrapped__
    means = [
        (items.astype(kind, copy=False) @ table.T.astype(kind) * seeds).sum(axis=1) / (s * n)
        for seeds, items in drawn(s, n, seed, resamples)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(table.mean()), float(low), float(high), n)


@lru_cache(maxsize=10)
def _drawn(s: int, n: int, seed: int, resamples: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """How often each resample draws each seed and item, in chunks; all comparisons share them."""
    rng, chunk = np.random.default_rng(seed), max(1, 2_000_000 // n)
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    return [
        (rng.multinomial(s, np.full(s, 1 / s), size),
         rng.multinomial(n, np.full(n, 1 / n), size).astype(np.float32))
        for size in sizes
    ]  # fmt: skip


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm-adjusted p values of one family of tests, e.g. the labels of one tag."""
    # Not statsmodels' own, which collects the garbage of the whole process: 0.3 s beside torch.
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)
    grown = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(grown, 1)[np.argsort(order)]


def _paired(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    before, after = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ScoreError(f"a paired test needs the same items, not {before.shape}, {after.shape}")
    return before, after


def flips(before: np.ndarray, after: np.ndarray) -> tuple[int, int]:
    """Number of items that went from wrong to right, and from right to wrong."""
    before, after = _paired(before, after)
    return int((~before & after).sum()), int((before & ~after).sum())


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Two-sided p of the exact McNemar test on paired outcomes [N]; 1 where nothing flips."""
    up, down = flips(before, after)
    return float(_mcnemar([[0, up], [down, 0]], exact=True).pvalue)


def paired_difference(
    before: np.ndarray, after: np.ndarray, seed: int, level: float = 0.95, resamples: int = 5000
) -> Interval:
    """Difference of the shares, after minus before, with its paired percentile bootstrap."""
    before, after = _paired(before, after)
    mean = float(after.mean() - before.mean())
    if (after == before).all():
        return Interval(0.0, 0.0, 0.0, len(after))
    found = stats.bootstrap(
        (after.astype(np.float64), before.astype(np.float64)),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // len(after)),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), len(after))


def minimum_detectable_difference(
    n: int, discordant: float, level: float = 0.05, power: float = 0.8
) -> float:
    """Smallest difference of two paired shares that n items would show with the given power.

    `discordant` is the share of items that flip either way. Solves Connor's sample-size formula
    for McNemar's test (Biometrics 43, 1987) for the difference, and never goes below the
    number of one-way flips that the exact test needs at all (6 items at level 0.05).
    """
    z_level, z_power = stats.norm.ppf(1 - level / 2), stats.norm.ppf(power)
    a, b = z_level * np.sqrt(discordant), n + z_power**2
    root = a**2 * n - b * (a**2 - z_power**2 * discordant)
    difference = (a * np.sqrt(n) + np.sqrt(max(root, 0.0))) / b
    fewest = np.ceil(1 + np.log2(1 / level)) / n
    return float(min(1.0, max(difference, fewest)))
