"""Baselines that see no image: what can be had from a caption's length, or from its words alone.

A benchmark whose false captions are written, not found, can be solved in part without looking
(Hsieh et al. 2023, SugarCrepe, section 3). A model says something about images only by what it
gets right beyond these. N items, I images an item, K captions an item.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from nltk.lm import WittenBellInterpolated
from nltk.lm.preprocessing import padded_everygram_pipeline, padded_everygrams

from sdslib.benchmarks import Item
from sdslib.evaluate import Scored

ORDER = 3  # words of an n-gram


class LengthScorer:
    """The shorter caption (in characters) is better."""

    name = "shorter caption"

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def __call__(self, items: Sequence[Item]) -> Iterator[Scored]:
        """Score every caption by its negative length, whatever the image."""
        return (_tiled(item, [-float(len(caption)) for caption in item.captions]) for item in items)


class LikelihoodScorer:
    """The caption that reads more like the training captions is better; see `likelihood_scorer`."""

    name = "text alone"

    def __init__(self, model: WittenBellInterpolated) -> None:
        self.model, self.counts = model, {"captions": 0}
        self._known: dict[str, float] = {}

    def __call__(self, items: Sequence[Item]) -> Iterator[Scored]:
        """Score every distinct caption once, whatever the image."""
        for item in items:
            yield _tiled(item, [self.log_likelihood(caption) for caption in item.captions])

    def log_likelihood(self, caption: str) -> float:
        """Mean log2 probability of the caption's words and its end, each after the two before.

        The mean, not the sum, so that it says nothing of the length.
        """
        if caption not in self._known:
            grams = [g for g in padded_everygrams(ORDER, words(caption)) if len(g) == ORDER]
            scores = [self.model.logscore(gram[-1], gram[:-1]) for gram in grams]
            self._known[caption] = float(np.mean(scores))
            self.counts["captions"] += 1
        return self._known[caption]


def likelihood_scorer(captions: Iterable[str]) -> LikelihoodScorer:
    """A trigram model of `captions` (Witten-Bell interpolation), which must not be a benchmark's.

    One word that no caption has is counted too, so that nothing is impossible. ValueError without
    a caption. Two captions of equal likelihood are a tie.
    """
    corpus = [words(caption) for caption in captions]
    if not corpus:
        raise ValueError("no captions to learn word order from; give a source with captions")
    model = WittenBellInterpolated(ORDER)
    model.fit(*padded_everygram_pipeline(ORDER, [*corpus, [model.vocab.unk_label]]))
    return LikelihoodScorer(model)


def words(caption: str) -> list[str]:
    """The caption's words in lower case, punctuation left out."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", caption.lower())


def _tiled(item: Item, row: Sequence[float]) -> Scored:
    return Scored({"": np.tile(row, (len(item.images), 1))})
