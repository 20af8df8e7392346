"""Scenes that a reader composes: two things and how they stand, said in the words of `CHOICES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdslib.io.images import ImageRef
from sdslib.miniworld import drawing
from sdslib.miniworld.drawing import COLORS, SHAPES, SIZES, Scene, Thing, say
from sdslib.miniworld.files import png

Words = Mapping[str, Any]  # what is chosen of each of `CHOICES`, and which variant
WORLD = "mini-world"
SCENE = f"scene of the {WORLD}"
# What the first thing is to the second: the axis, and whether the second is drawn first.
RELATIONS = {
    "left of": ("h", False), "right of": ("h", True),
    "above": ("v", False), "below": ("v", True),
}  # fmt: skip
_KINDS = {"size": tuple(SIZES), "color": tuple(COLORS), "shape": SHAPES}
CHOICES: dict[str, tuple[str, ...]] = {
    **{f"first {kind}": names for kind, names in _KINDS.items()},
    "relation": tuple(RELATIONS),
    **{f"second {kind}": names for kind, names in _KINDS.items()},
}
# What is begun with: two scenes that the same words can describe.
START = {
    "first size": "large", "first color": "red", "first shape": "circle", "relation": "left of",
    "second size": "large", "second color": "blue", "second shape": "square", "variant": 0,
}  # fmt: skip
OTHER = START | {
    "first color": "blue", "first shape": "square",
    "second color": "red", "second shape": "circle", "variant": 1,
}  # fmt: skip


def compose(said: Words) -> Scene:
    """The scene of these words; `variant` tells drawings of the same words apart."""
    first, second = (
        Thing(*(said[f"{which} {part}"] for part in ("shape", "color", "size")))
        for which in ("first", "second")
    )
    axis, turned = RELATIONS[said["relation"]]
    return Scene((second, first) if turned else (first, second), axis, said["variant"])


def captions(scene: Scene) -> tuple[str, str]:
    """A true caption of a scene of two things, and the false one that has the same words."""
    form = drawing.RELATIONS[scene.axis][0]
    a, b = (thing.name for thing in scene.things)
    return say(form, a=a, b=b), say(form, a=b, b=a)


def picture(scene: Scene) -> ImageRef:
    """The scene's picture as a reference, as any other picture is."""
    data = png(scene)
    return ImageRef(f"{captions(scene)[0]}.png", lambda: data)
