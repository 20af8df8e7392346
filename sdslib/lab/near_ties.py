"""A teacher in half precision whose near ties are decided again in full precision.

Right and wrong captions of a hard item differ by a part in ten thousand of the denoising error, and
bf16 rounds at 4 in a thousand: most decisions survive, those near a tie do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdslib.evaluate import Scored
from sdslib.scorers.diffusion import DiffusionScorer, error_table, scores_from_errors

if TYPE_CHECKING:
    import pandas as pd

    from sdslib.benchmarks import Item

MARGIN = 3.0  # times the rounding, below which a lead is a near tie
_BLOCK = 128


class RecheckedScorer:
    """The scores of `low`, but those of `full` for items of which a lead is a near tie.

    `rounding` is what low precision does to a lead after the whole budget, root mean square (see
    the function); after n of D draws it is taken as sqrt(D / n) times that. The note
    `rechecked` tells which items were decided again, and `counts` what that cost.
    """

    name = "diffusion"

    def __init__(self, low: DiffusionScorer, full: DiffusionScorer, rounding: float) -> None:
        self.low, self.full, self.rounding = low, full, rounding

    @property
    def counts(self) -> dict[str, int]:
        """Images, captions and UNet samples in low precision, and `rechecked_...` in full."""
        again = {f"rechecked_{name}": count for name, count in self.full.counts.items()}
        return self.low.counts | again

    def __call__(self, items: Sequence[Item]) -> Iterator[Scored]:
        """Score the items in blocks, each first in low precision."""
        for start in range(0, len(items), _BLOCK):
            block = items[start : start + _BLOCK]
            found = list(self.low(block))
            near = [n for n, scored in enumerate(found) if self._is_near(scored)]
            for n, scored in zip(near, self.full([block[n] for n in near]), strict=True):
                found[n] = scored
            for n, scored in enumerate(found):
                yield replace(scored, notes=scored.notes | {"rechecked": n in near})

    def _is_near(self, scored: Scored) -> bool:
        draws = len(self.low.bank.draws.t) / scored.notes["draws"]
        grid = scored.grids.get("relative", scored.grids[""])
        return smallest_lead(grid) < MARGIN * self.rounding * np.sqrt(draws)


def rounding(
    low: DiffusionScorer,
    full: DiffusionScorer,
    items: Sequence[Item],
    profile: pd.DataFrame | None = None,
) -> float:
    """Root mean square of low precision's change of a lead, over the decisions of these items.

    Needs no labels. Both scorers take their whole budget of the same draws here, which their banks
    keep. ValueError where the draws differ.
    """
    if not torch.equal(low.bank.draws.t, full.bank.draws.t):
        raise ValueError("both precisions must be scored at the same draws (t, eps)")
    rule, changes = "" if profile is None else r"relative\.", []
    for item in items:
        scores = [scores_from_errors(error_table(one, [item]), profile) for one in (low, full)]
        grids = (table.filter(regex=f"^{rule}s_").to_numpy() for table in scores)
        before, after = (_leads(grid.reshape(len(item.images), -1)) for grid in grids)
        changes.append(before - after)
    return float(np.sqrt(np.mean(np.concatenate(changes) ** 2)))


def smallest_lead(grid: np.ndarray) -> float:
    """The least lead of a best caption of an image, or of a best image of a caption, in [I, K]."""
    leads = [np.sort(part, axis=-1) for part in (grid, grid.T) if part.shape[-1] > 1]
    return min((float((rows[:, -1] - rows[:, -2]).min()) for rows in leads), default=np.inf)


def _leads(grid: np.ndarray) -> np.ndarray:
    """Every difference that may decide: captions of one image, images of one caption."""
    return np.concatenate([np.diff(part, axis=-1).ravel() for part in (grid, grid.T)])
