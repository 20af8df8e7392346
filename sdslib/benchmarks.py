"""The sets that CLIP is measured on as items, in the authors' own files.

An item has images, captions and, where there is a choice, the place of the true caption. Captions
stand in the authors' order: with argmax for a strict `>` their treatment of ties comes out too.
Every set says how many items it should have; one with fewer calls itself partial.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from sdslib.config import derive_seed
from sdslib.io.images import Box, ImageRef
from sdslib.io.lazy import named
from sdslib.io.sources import DataError
from sdslib.io.wording import did_you_mean, suggest
from sdslib.io.worlds import world_of

TOTALS = {
    "winoground": 400,
    "aro-relation": 23_937,
    "aro-attribution": 28_748,
    "coco-order": 25_010,
    "flickr-order": 5_000,
    "sugarcrepe": 7_511,
    "mmvp": 135,
    "bivlc": 2_933,
    "colorswap": 300,
    "cola": 210,
    "vismin": 2_084,
    "sugarcrepe++": 4_757,
    "whatsup": 4_958,
    "valse": 7_702,
    "negbench": 10_945,
}
HUB_CLASSES = {
    "cifar10": ("uoft-cs/cifar10", "test", "label"),
    "cifar100": ("uoft-cs/cifar100", "test", "fine_label"),
    "imagenet": ("ILSVRC/imagenet-1k", "validation", "label"),
}
PHOTO = ("a photo of a {}.",)


@dataclass(frozen=True)
class Item:
    """One question: images, captions, which caption is true (None in a grid), and its tags.

    In a grid, caption k belongs to image k; in a triplet the first `n_true` captions are true and
    the last is not. `box` is what was cut out of the image, if anything.
    """

    id: str
    images: tuple[ImageRef, ...]
    captions: tuple[str, ...]
    answer: int | None = None
    box: Box | None = None
    tags: dict[str, str] = field(default_factory=dict)
    n_true: int = 1


@dataclass(frozen=True)
class Benchmark:
    """A set of items of one kind, from one source; `total` is how many the whole set has.

    Of a set of classes, an item's captions are the prompts of the first template, one a class;
    `prompts[class]` holds those of all templates.
    """

    name: str
    kind: Literal["grid", "choice", "triplet", "classes", "retrieval"]
    items: tuple[Item, ...]
    total: int
    source: str
    prompts: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError(f"{self.source}: {self.name} has no items")

    @property
    def partial(self) -> bool:
        """Whether items are missing or in excess, so that figures are not the benchmark's."""
        return len(self.items) != self.total

    @property
    def label(self) -> str:
        """The name, with `(partial: 399 of 400)` where it is."""
        count = f" (partial: {len(self.items)} of {self.total})" if self.partial else ""
        return self.name + count

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, captions, answers, tags, prompts, boxes, image names and their sizes.

        The sizes stand for the images' content, which would take minutes to read.
        """
        return self._hash(lambda ref: (ref.name, ref.size, ref.box))

    @cached_property
    def content(self) -> str:
        """The same with the images by their content, which is read."""
        return self._hash(lambda ref: ref.key)

    def _hash(self, told: Callable[[ImageRef], Any]) -> str:
        digest = hashlib.sha256(json.dumps([self.name, self.kind, self.prompts]).encode())
        for item in self.items:
            images = [told(ref) for ref in item.images]
            row = [item.id, item.captions, item.answer, item.tags, images]
            row += [item.n_true] if item.n_true > 1 else []
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()

    def sample(self, count: int | None, seed: int = 0) -> Benchmark:
        """`count` of the items drawn at random, in their order; fewer make the set partial."""
        if count is None or count >= len(self.items):
            return self
        order = np.random.default_rng(derive_seed(seed, "sample", len(self.items)))
        chosen = sorted(order.permutation(len(self.items))[:count])
        return replace(self, items=tuple(self.items[i] for i in chosen))

    def duplicates(self) -> list[str]:
        """Ids of items with two captions that read the same (case, spaces, HTML entities aside)."""
        return [i.id for i in self.items if len({_plain(c) for c in i.captions}) < len(i.captions)]


def _plain(caption: str) -> str:
    return " ".join(html.unescape(html.unescape(caption)).casefold().split())


def load_benchmark(source: str, wordnet: Sequence[str] | None = None) -> Benchmark:
    """A benchmark by name: `mini:winoground`, `mini:winoground:val`, `winoground`, `cifar10`, or
    NAME:SOURCE, as `aro-relation:data/aro`, `coco-order:data/coco/coco_karpathy_test.json`,
    `bivlc:imirandam/BiVLC@REVISION`.

    CIFAR and ImageNet are read from the folder `data/NAME` where there is one, else from the Hub;
    `wordnet` names the classes of a folder whose 1,000 folders are WordNet ids. Raises `DataError`
    for an unknown name, with those that there are.
    """
    name, _, rest = source.partition(":")
    if world := world_of(name):
        return world.benchmark(source)
    if name in HUB_CLASSES:
        found: Benchmark = named("sets.zero_shot:known_classes")(name, rest, wordnet)
        return found
    if name not in LOADERS:
        known = [*LOADERS, *HUB_CLASSES]
        close = did_you_mean(suggest(name.lower(), known))
        raise DataError(
            f"no benchmark {name!r}; there are {', '.join(known)}, mini:NAME, and "
            "NAME:SOURCE for a file, folder or Hub id, as winoground:FOLDER" + close
        )
    place, default = LOADERS[name]
    found = named(place)(rest or default)
    return found


LOADERS: dict[str, tuple[str, str]] = {  # name -> its loader, and where it usually lies
    "winoground": ("sets.winoground:winoground", "winoground"),
    "aro-relation": ("sets.aro:aro_relation", "data/aro"),
    "aro-attribution": ("sets.aro:aro_attribution", "data/aro"),
    "coco-order": ("sets.aro:coco_order", "data/coco/coco_karpathy_test.json"),
    "flickr-order": ("sets.aro:flickr_order", "data/flickr30k/flickr30k_test.json"),
    "sugarcrepe": ("sets.sugarcrepe:sugarcrepe", "data/sugarcrepe"),
    "sugarcrepe++": ("sets.sugarcrepe:sugarcrepe_pp", "data/sugarcrepe++"),
    **{name: (f"sets.choices:{name}", f"data/{name}") for name in ("valse", "whatsup", "negbench")},
    **{name: (f"sets.grids:{name}", f"data/{name}")
       for name in ("mmvp", "bivlc", "colorswap", "cola", "vismin")},
    "zeroshot": ("sets.zero_shot:zero_shot", "data/zeroshot"),
}  # fmt: skip
