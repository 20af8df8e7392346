"""False captions of the words of a true one, for the arms that are taught by them.

The word lists are the mini-world's: a caption without two different words of a kind has no false
one here, and an arm that would train on such captions alone is refused before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from sdslib.config import ARMS, FinetuneConfig, is_mini
from sdslib.io.wording import ParameterError
from sdslib.io.worlds import exchanged_words
from sdslib.pairs import load_pairs

Negative = Callable[[str, int], str]  # (caption, seed) -> a caption of the same words
ASKED = 4096  # captions that tell what share has a false one
MOST = 0.5  # share of captions without a false one that an arm may be trained on


def swapped_caption(caption: str, seed: int) -> str:
    """The caption with two words of a kind (colors, or shapes, or the things) swapped.

    A caption with no two different words of a kind comes back unchanged in its words' order: it
    then is a tie for the loss, not a lie.
    """
    words = caption.split()
    places = {
        kind: [i for i, word in enumerate(words) if word in known]
        for kind, known in exchanged_words().items()
    }
    able = [kind for kind, at in places.items() if len({words[i] for i in at}) == 2]
    if not able:
        return caption
    kinds = [*able, "both"] if len(able) == 2 else able
    chosen = kinds[seed % len(kinds)]
    for kind in able if chosen == "both" else [chosen]:
        i, j = places[kind][:2]
        words[i], words[j] = words[j], words[i]
    return " ".join(words)


def share_without(captions: Sequence[str], negative: Negative = swapped_caption) -> float:
    """The share of captions that get themselves back (spaces aside)."""
    return float(np.mean([negative(text, 0).split() == text.split() for text in captions]))


def problem(config: FinetuneConfig) -> str | None:
    """Why the arm cannot have its false captions from these pairs, or None; reads captions only.

    Raises `DataError` where the pairs cannot be read.
    """
    if not ARMS[config.arm].negatives or is_mini(config.train_data):
        return None
    share = _share_of(config.train_data)
    if share <= MOST:
        return None
    return (
        f"arm {config.arm!r} needs false captions, and {share:.0%} of the captions of "
        f"{config.train_data} have none: only the mini-world's colors and shapes are known to be "
        "swapped; take another arm"
    )


def check(config: FinetuneConfig) -> None:
    """ParameterError where the arm cannot have its false captions."""
    if text := problem(config):
        raise ParameterError([text])


@lru_cache(maxsize=8)
def _share_of(source: str) -> float:
    captions = load_pairs(source).all_captions()
    return share_without(captions[:: max(1, len(captions) // ASKED)])
