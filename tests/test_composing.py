"""Scenes composed in words are the mini-world's own."""

import numpy as np
import pytest

from sdslib.miniworld import composing, drawing
from sdslib.miniworld.drawing import Scene, Thing

WORDS = {
    "first size": "small", "first color": "red", "first shape": "circle",
    "second size": "large", "second color": "blue", "second shape": "star", "variant": 3,
}  # fmt: skip
CIRCLE, STAR = Thing("circle", "red"), Thing("star", "blue", "large")


@pytest.mark.parametrize(
    ("relation", "things", "axis"),
    [
        ("left of", (CIRCLE, STAR), "h"),
        ("right of", (STAR, CIRCLE), "h"),
        ("above", (CIRCLE, STAR), "v"),
        ("below", (STAR, CIRCLE), "v"),
    ],
)
def test_a_composed_scene_is_the_mini_worlds_own(relation, things, axis):
    scene = composing.compose(WORDS | {"relation": relation})
    assert scene == Scene(things, axis, 3)
    drawn = np.asarray(drawing.draw(scene))
    assert (np.asarray(composing.picture(scene).load()) == drawn).all()
    known = drawing.relation_captions(scene)
    assert f"a red circle {relation} a blue star" in known
    true, false = composing.captions(scene)
    assert true in known
    assert false not in known
    assert sorted(true.split()) == sorted(false.split())


def test_the_scenes_to_begin_with_have_the_same_words():
    start, other = map(composing.compose, (composing.START, composing.OTHER))
    assert composing.captions(start) == composing.captions(other)[::-1]
    for said in (composing.START, composing.OTHER):
        assert {*said} == {*composing.CHOICES, "variant"}
        assert all(said[name] in offered for name, offered in composing.CHOICES.items())
