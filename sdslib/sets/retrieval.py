"""Pairs as a benchmark: which caption belongs to which image of them all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from sdslib import metrics
from sdslib.benchmarks import Benchmark, Item
from sdslib.evaluate import ClipScorer, Scorer
from sdslib.io.images import ImageRef
from sdslib.tables import TableError


class HasPairs(Protocol):
    """What `retrieval` needs of `pairs.Pairs`."""

    source: str

    @property
    def ids(self) -> list[str]: ...
    def captions(self, index: int) -> tuple[str, ...]: ...
    def ref(self, index: int) -> ImageRef: ...


def retrieval(pairs: HasPairs, captions: int = 5) -> Benchmark:
    """Image-text retrieval over a whole set of pairs; the first five captions of each image count,
    as in the COCO and Flickr30k protocols."""
    items = tuple(
        Item(own, (pairs.ref(i),), pairs.captions(i)[:captions]) for i, own in enumerate(pairs.ids)
    )
    return Benchmark("retrieval", "retrieval", items, len(items), pairs.source)


def score_all(scorer: ClipScorer, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """Scores [I, T] of every item's image with all captions of all items, and each one's item."""
    images, image = scorer.embed_images([item.images[0] for item in items])
    owner = np.repeat(np.arange(len(items)), [len(item.captions) for item in items])
    emb, row = scorer.embed_texts([caption for item in items for caption in item.captions])
    return images[image] @ emb[row].T, owner


def rank_retrieval(scorer: Scorer, items: Sequence[Item]) -> pd.DataFrame:
    """Retrieval over all items at once: the rank of the best true partner of every query.

    The tag `way` is `image_to_text` (one row an item, its id) or `text_to_image` (one row a
    caption, `id#k`); recall at k is the share of ranks below k. See `metrics.retrieval_ranks`.
    """
    if not isinstance(scorer, ClipScorer):
        raise TableError(f"retrieval needs embeddings; the {scorer.name} scorer has none")
    scores, owner = score_all(scorer, items)
    ranks = metrics.retrieval_ranks(scores, owner)
    ids = [f"{item.id}#{k}" for item in items for k in range(len(item.captions))]
    to_text = pd.DataFrame({"id": [str(item.id) for item in items], "way": "image_to_text"})
    to_text = to_text.assign(n_captions=len(owner), n_true=np.bincount(owner))
    to_image = pd.DataFrame({"id": ids, "way": "text_to_image"})
    to_image = to_image.assign(n_captions=len(items), n_true=1)
    to_text["rank"], to_image["rank"] = ranks["image_to_text"], ranks["text_to_image"]
    return pd.concat([to_text, to_image], ignore_index=True)
