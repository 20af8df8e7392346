"""What the mini-world offers by its name: its sets, pairs, and words; see `io.worlds.World`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdslib.benchmarks import Benchmark
from sdslib.io.paths import project_root
from sdslib.io.sources import DataError
from sdslib.miniworld.drawing import COLORS, SHAPES, SIZES
from sdslib.miniworld.files import ZEROSHOT_VAL, ensure_world
from sdslib.pairs import Pairs
from sdslib.sets.aro import aro_attribution, aro_relation, coco_order
from sdslib.sets.pair_files import coco_pairs
from sdslib.sets.shuffles import Tagger, lexicon_tagger
from sdslib.sets.sugarcrepe import sugarcrepe
from sdslib.sets.winoground import winoground
from sdslib.sets.zero_shot import zero_shot

__all__ = ["KEEP", "PAIRS", "SETS", "VALIDATION", "WORDS", "benchmark", "ensure_world", "pairs"]

NAMES = ("winoground", "aro-relation", "aro-attribution", "coco-order", "sugarcrepe",
         "zeroshot-color", "zeroshot-shape")  # fmt: skip
SETS = tuple(f"mini:{name}" for name in NAMES)
WITH_VAL = ("winoground", "zeroshot-color", "zeroshot-shape")
VALIDATION, PAIRS = "mini:winoground:val", "retrieval:mini:val"
KEEP = ("mini:zeroshot-color", "mini:zeroshot-shape", PAIRS)
WORDS = {"color": tuple(COLORS), "shape": SHAPES}
PROMPTS = {
    "color": ("the {} shape", "the {} object"),
    "shape": ("a {}", "a photo of a {}", "a picture of a {}", "the {}"),
}


def benchmark(source: str) -> Benchmark:
    """`mini:NAME[:SPLIT]`, read by the loader of the real set.

    Winoground and the zero-shot sets have a split "val" beside "test". Raises `DataError` if the
    world is not drawn.
    """
    _, name, split = (*source.split(":", 2), "", "")[:3]
    name, split, world = name.replace("_", "-"), split or "test", _world()
    if name not in NAMES:
        raise DataError(f"no mini set {name!r}; there are {', '.join(NAMES)}")
    if split != "test" and not (split == "val" and name in WITH_VAL):
        raise DataError(f"the mini set {name} has no split {split!r}")
    return replace(_read(name, split, world), name=f"mini-{name}")


def _read(name: str, split: str, world: Path) -> Benchmark:
    aro = world / "aro"
    if name == "winoground":
        return winoground(str(world / "winoground" / f"{split}.parquet"), split, None)
    if name == "coco-order":
        return coco_order(aro / "coco_order.json", tagger=tagger(), total=None)
    if name == "sugarcrepe":
        return sugarcrepe(world / "sugarcrepe", aro / "images", None)
    if name.startswith("zeroshot-"):
        task = name.removeprefix("zeroshot-")
        folder = world / (ZEROSHOT_VAL if split == "val" else "zeroshot")
        return zero_shot(folder / task, templates=PROMPTS[task])
    return aro_relation(aro, None) if name == "aro-relation" else aro_attribution(aro, None)


def pairs(source: str) -> Pairs:
    """`mini` or `mini:val`, read as COCO's files are; `DataError` if the world is not drawn."""
    split, root = source.partition(":")[2] or "train", _world() / "coco"
    return coco_pairs(root / "annotations" / f"captions_{split}.json", root / split)


def _world() -> Path:
    world = project_root() / "data" / "mini" / "world"
    if not world.is_dir():
        raise DataError(
            "the mini-world is not drawn yet; run notebooks/00_miniworld.ipynb or make miniworld"
        )
    return world


def tagger() -> Tagger:
    """The mini-world's nouns and adjectives."""
    return lexicon_tagger(SHAPES, [*COLORS, *SIZES])
