"""Pairs as a benchmark: which caption belongs to which image of them all."""

from __future__ import annotations

from typing import Protocol

from sdslib.benchmarks import Benchmark, Item
from sdslib.io.images import ImageRef


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
