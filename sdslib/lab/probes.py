"""Linear probes: what a student's towers encode of scenes, and what swaps change in them.

Scenes of the mini-world's train and validation splits alone. A world is N scenes shown with a
caption each; beside the validation world stand its changes, row by row: the three swaps, and the
same scenes drawn and worded anew. D embedding, M columns of a probe's target.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from sdslib import metrics
from sdslib.bridge import ridge_start
from sdslib.config import derive_seed
from sdslib.evaluate import clip_scorer
from sdslib.experiment import embed_pairs
from sdslib.miniworld import drawing, files
from sdslib.miniworld.drawing import Scene
from sdslib.pairs import Pairs
from sdslib.student import Student

SWAPS = ("Object", "Relation", "Both")
HELD, AGAIN = "", "drawn anew"  # the validation world itself, and its scenes once more
COLORS, SHAPES = list(drawing.COLORS), list(drawing.SHAPES)


@dataclass(frozen=True)
class World:
    """N scenes of two things, and which of the ten forms captions each of them."""

    scenes: tuple[Scene, ...]
    forms: tuple[int, ...]

    @cached_property
    def captions(self) -> list[str]:
        """One caption a scene: it says what stands where."""
        said = map(drawing.relation_captions, self.scenes)
        return [forms[form] for forms, form in zip(said, self.forms, strict=True)]

    @cached_property
    def pairs(self) -> Pairs:
        """The same as image-caption pairs, the images in memory."""
        images = list(map(files.png, self.scenes))
        names = [str(n) for n in range(len(images))]
        columns = {"id": names, "name": names, "captions": [[c] for c in self.captions]}
        return Pairs(pa.table(columns), lambda row: images[int(row["id"])], "diagnosis")


def world(split: Literal["train", "val"], count: int, seed: int) -> World:
    """The first `count` drawn scenes of two shapes and two colors whose swaps are allowed too."""
    drawn = (scene for scene in drawing.scenes(split, f"diagnosis {seed}")
             if scene.differ and not drawing.swapped(scene, "Object").held_out)  # fmt: skip
    return _worded(tuple(itertools.islice(drawn, count)), seed, f"form {split}")


def changes(held: World, seed: int) -> dict[str, World]:
    """The world and its changes, row by row: see the module's first lines.

    A swap keeps places, background and form of the caption; drawn anew, they alone change.
    """
    turned = {kind: tuple(drawing.swapped(s, kind) for s in held.scenes) for kind in SWAPS}
    found = {HELD: held} | {kind: World(some, held.forms) for kind, some in turned.items()}
    anew = tuple(replace(s, place=derive_seed(seed, "anew", s.place)) for s in held.scenes)
    return found | {AGAIN: _worded(anew, seed, "form anew")}


def _worded(scenes: tuple[Scene, ...], seed: int, purpose: str) -> World:
    rng, count = random.Random(derive_seed(seed, purpose)), len(drawing.RELATIONS["h"])
    return World(scenes, tuple(rng.randrange(count) for _ in scenes))


Columns = tuple[int, ...]
Options = Callable[[Scene, str], list[Columns]]


def _present(names: Sequence[int], count: int) -> list[Columns]:
    true = tuple(sorted(names))
    return [true, *(pair for pair in itertools.combinations(range(count), 2) if pair != true)]


def _colors(scene: Scene) -> list[int]:
    return [COLORS.index(thing.color) for thing in scene.things]


def _shapes(scene: Scene) -> list[int]:
    return [SHAPES.index(thing.shape) for thing in scene.things]


def _bound(scene: Scene) -> list[Columns]:
    (c, d), (s, r), n = _colors(scene), _shapes(scene), len(SHAPES)
    return [(c * n + s, d * n + r), (c * n + r, d * n + s)]


def _named(caption: str) -> list[int]:
    return [COLORS.index(word) for word in caption.split() if word in COLORS]


def _turn(way: bool) -> list[Columns]:
    return [(int(way),), (int(not way),)]


# What a probe is asked: the columns of its target, and of (scene, caption) those that are true,
# then all that could be mistaken for them; guessing is right once in so many. The last two are of
# the caption's words: of images a control.
QUESTIONS: dict[str, tuple[int, Options]] = {
    "which two colors": (8, lambda s, c: _present(_colors(s), 8)),
    "which two shapes": (6, lambda s, c: _present(_shapes(s), 6)),
    "beside or above": (2, lambda s, c: _turn(s.axis == "v")),
    "which color has which shape": (48, lambda s, c: _bound(s)),
    "color of the left or upper": (8, lambda s, c: [(n,) for n in _colors(s)]),
    "shape of the left or upper": (6, lambda s, c: [(n,) for n in _shapes(s)]),
    "color named first": (8, lambda s, c: [(n,) for n in _named(c)]),
    "left or upper named first": (2, lambda s, c: _turn(_named(c) == _colors(s))),
}


def embed(student: Student, shown: World) -> dict[str, Tensor]:
    """Unit embeddings [N, D] of a world by tower; the image tower's pooled output too."""
    every, scorer = range(len(shown.scenes)), clip_scorer(student)
    text, row = scorer.embed_texts(shown.captions)
    return {
        "image, pooled": embed_pairs(student, shown.pairs, every, "pooled"),
        "image": embed_pairs(student, shown.pairs, every, "projected"),
        "caption": torch.from_numpy(text[row]).float(),
    }


def fit_probe(emb: Tensor, targets: Sequence[Columns], width: int, seed: int) -> nn.Linear:
    """Ridge regression of the targets' columns on embeddings [N, D]; see `bridge.ridge_start`."""
    wanted = torch.zeros(len(emb), width)
    for row, columns in zip(wanted, targets, strict=True):
        row[list(columns)] = 1
    state = ridge_start(emb, wanted, seed=derive_seed(seed, "probe")).state
    probe = nn.Linear(emb.shape[1], width)
    probe.load_state_dict({name.removeprefix("linear."): value for name, value in state.items()})
    return probe.requires_grad_(False)


def answers(scores: Tensor, options: Sequence[Sequence[Columns]]) -> np.ndarray:
    """Whether the first option's columns have the largest sum of scores [N, M]: bool [N]."""
    sums = ([float(row[list(columns)].sum()) for columns in choices]
            for row, choices in zip(scores, options, strict=True))  # fmt: skip
    return np.array([true > max(others) for true, *others in sums])


def probe_table(
    fitted: Mapping[str, Tensor], seen: Mapping[str, Tensor], fit: World, held: World, seed: int
) -> pd.DataFrame:
    """Linear probes fitted in one world and asked in another: rows read from, question.

    fitted, seen: embeddings of the two worlds by tower. A last reading is of captions by the
    probe of the images, each less its mean: whether both towers say it in the same direction.
    """
    read = {tower: (fitted[tower], seen[tower]) for tower in fitted}
    if {"image", "caption"} <= fitted.keys():
        image, caption = fitted["image"].mean(0), fitted["caption"].mean(0)
        read["caption by image"] = (fitted["image"] - image, seen["caption"] - caption)
    rows = []
    for name, (width, choose) in QUESTIONS.items():
        known, options = (list(map(choose, w.scenes, w.captions)) for w in (fit, held))
        for tower, (before, after) in read.items():
            probe = fit_probe(before, [true for true, *_ in known], width, seed)
            right = vars(metrics.wilson(answers(probe(after), options)))
            row = {"read from": tower, "question": name, **right}
            rows.append(row | {"chance": 1 / len(options[0])})
    return pd.DataFrame(rows)


# What tells a scene from its swap: the left or upper thing, and which color has which shape.
TOLD_BY: dict[str, tuple[int, Callable[[Scene], Columns]]] = {
    "place": (14, lambda s: (_colors(s)[0], len(COLORS) + _shapes(s)[0])),
    "binding": (48, lambda s: _bound(s)[0]),
}


def swap_table(
    fitted: Mapping[str, Tensor],
    fit: World,
    seen: Mapping[str, Mapping[str, Tensor]],
    worlds: Mapping[str, World],
    seed: int,
) -> pd.DataFrame:
    """How far a swap moves an embedding, and whether linear probes tell the two apart.

    seen: embeddings by world and tower. Mean cosines of a scene with its swap, with itself drawn
    anew, and with another. `mean` (with its interval) is the share of pairs that the probe of the
    left or upper thing's color and shape tells apart (chance 1/2), `binding` that of the probe of
    which color has which shape, where the swap changes that.
    """
    rows = []
    for tower, kind in itertools.product(fitted, SWAPS):
        own, swapped = seen[HELD][tower], seen[kind][tower]
        right = {}
        for name, (width, true) in TOLD_BY.items():
            probe = fit_probe(fitted[tower], [true(s) for s in fit.scenes], width, seed)
            ways = ([true(scene) for scene in worlds[name].scenes] for name in (HELD, kind))
            right[name] = answers(probe(own) - probe(swapped), list(zip(*ways, strict=True)))
        row = {"read from": tower, "swap": kind, "cosine with swap": _cosine(own, swapped)}
        row |= {AGAIN: _cosine(own, seen[AGAIN][tower]), "another": _cosine(own, own.roll(1, 0))}
        row |= vars(metrics.wilson(right["place"]))
        rows.append(row | {"binding": np.nan if kind == "Relation" else right["binding"].mean()})
    return pd.DataFrame(rows)


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(nn.functional.cosine_similarity(one, other, dim=-1).mean())
