"""Worlds that bring their own sets, by the first word of a source, as `mini` in `mini:winoground`.

The core looks a world up here; its module is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from sdslib.benchmarks import Benchmark
    from sdslib.pairs import Pairs

WORLDS = {"mini": "sdslib.miniworld.sets"}


class World(Protocol):
    """What the module of a world offers; every set is named as `benchmark` reads it."""

    SETS: Sequence[str]
    VALIDATION: str  # what is chosen on
    PAIRS: str  # what retrieval is asked of
    KEEP: Sequence[str]  # what must not suffer
    WORDS: Mapping[str, Sequence[str]]  # by kind: two of a kind exchanged make a caption false

    def benchmark(self, source: str) -> Benchmark:
        """A set; raises `DataError`."""

    def pairs(self, source: str) -> Pairs:
        """Image-caption pairs; raises `DataError`."""

    def ensure_world(self) -> Path:
        """Make what is not there yet, and say where it is; raises `DataError`."""


def world_of(source: str) -> World | None:
    """The world that a source is of (also `retrieval:SOURCE`), or that a preset is named after."""
    module = WORLDS.get(source.removeprefix("retrieval:").partition(":")[0])
    return cast(World, import_module(module)) if module else None


def ensure(source: str) -> None:
    """Make the world of a source, if it has one that is not there yet."""
    if world := world_of(source):
        world.ensure_world()


@cache
def exchanged_words() -> dict[str, frozenset[str]]:
    """Kinds of words of all worlds: no others are known to make a false caption of a true one."""
    worlds = [cast(World, import_module(module)) for module in WORLDS.values()]
    return {kind: frozenset(words) for world in worlds for kind, words in world.WORDS.items()}
