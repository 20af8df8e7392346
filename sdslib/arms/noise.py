"""Captions that lie: a share of the training captions have a false one in place of the truth.

Hard negatives are told which caption is true, and here are told wrong; the teacher looks itself.
"""

from __future__ import annotations

import numpy as np

from sdslib.arms.negatives import Negatives, load_negatives
from sdslib.config import FinetuneConfig, derive_seed
from sdslib.pairs import Pairs


def noisy(pairs: Pairs, config: FinetuneConfig) -> Pairs:
    """The pairs as `caption_noise` leaves them; the very same ones where it is 0.

    Whether a caption lies is drawn from the seed, its image's place and its own, so that of two
    shares the larger has the lies of the smaller. One that has no false one stays true.
    """
    if not config.caption_noise:
        return pairs
    negatives = load_negatives(config)
    return pairs.saying(
        lambda index, captions: [
            _said(caption, negatives, config, index, place)
            for place, caption in enumerate(captions)
        ]
    )


def _said(
    caption: str, negatives: Negatives, config: FinetuneConfig, index: int, place: int
) -> str:
    rng = np.random.default_rng(derive_seed(config.seed, "lie", index, place))
    lies, which = rng.random() < config.caption_noise, int(rng.integers(2**32))
    return negatives.pick(caption, which) if lies else caption
