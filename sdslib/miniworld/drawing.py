"""The mini-world: scenes of one or two shapes, how they are drawn, and what is said of them.

A scene is two things and an axis: on axis "h" the first stands left of the second, on "v" above
it. Everything is a function of (seed, purpose, index), so it is the same on every machine.
Splits share no pair {shape, shape} x {color, color}; `HELD_OUT` pairs appear in test items alone.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

from sdslib.config import derive_seed

SIZE = 64
SEED = 2307
COLORS = {
    "red": (214, 39, 40), "green": (44, 160, 60), "blue": (40, 80, 214), "yellow": (240, 208, 36),
    "purple": (140, 60, 176), "orange": (246, 136, 24), "black": (28, 28, 28),
    "cyan": (64, 204, 220),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = {"small": 7.5, "large": 11.0}
HELD_OUT = {("purple", "star"), ("cyan", "triangle"), ("black", "heart"), ("orange", "cross")}
SPLITS = {"train": 0.60, "val": 0.13, "test": 0.27}


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: str
    color: str
    size: str = "small"

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def full(self) -> str:
        return f"{self.size} {self.name}"


@dataclass(frozen=True)
class Scene:
    """One or two things; with two, `things[0]` is left of (axis "h") or above (axis "v") the other.

    `place` seeds where exactly they stand, the background and the shade.
    """

    things: tuple[Thing, ...]
    axis: str = "h"
    place: int = 0

    @property
    def split(self) -> str:
        """Drawn from the shapes and colors alone: swaps stay inside it."""
        if not self.differ:
            return "train"
        shapes, colors = (sorted(getattr(t, of) for t in self.things) for of in ("shape", "color"))
        key = f"split {','.join(shapes)} {','.join(colors)}"
        share = random.Random(derive_seed(SEED, key)).random()
        for name, width in SPLITS.items():
            if share < width:
                return name
            share -= width
        return "test"

    @property
    def differ(self) -> bool:
        """Whether these are two things of two shapes and two colors."""
        return len({t.shape for t in self.things}) == len({t.color for t in self.things}) == 2

    @property
    def held_out(self) -> bool:
        """Whether a thing is one that only test items show."""
        return any((thing.color, thing.shape) in HELD_OUT for thing in self.things)


# --- drawing -------------------------------------------------------------------------------------

Corners = list[tuple[float, float]]


def _ring(count: int, *radii: float) -> Corners:
    turns = [2 * math.pi * i / count for i in range(count)]
    both = zip(itertools.cycle(radii), turns)
    return [(r * math.sin(turn), -r * math.cos(turn)) for r, turn in both]


def _heart(u: float) -> tuple[float, float]:
    height = 0.83 * math.cos(u) - 0.32 * math.cos(2 * u) - 0.13 * math.cos(3 * u)
    return 1.02 * math.sin(u) ** 3, -height


_CROSS = [(-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34)]
# Corners of each shape about its middle, y downwards, a thing's size being 1.
OUTLINES: dict[str, Corners] = {
    "circle": _ring(64, 1.0),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": _ring(3, 1.15),
    "star": _ring(10, 1.15, 0.48),
    "cross": [*_CROSS, *((-x, -y) for x, y in _CROSS)],
    "heart": [_heart(2 * math.pi * i / 48) for i in range(48)],
}


def _places(scene: Scene, rng: random.Random) -> Corners:
    if len(scene.things) == 1:
        return [(rng.uniform(15, 49), rng.uniform(15, 49))]
    along = rng.uniform(14, 20), rng.uniform(44, 50)
    across = rng.uniform(25, 39), rng.uniform(25, 39)
    x, y = (along, across) if scene.axis == "h" else (across, along)
    return list(zip(x, y, strict=True))


def draw(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene, the same picture for the same scene: RGB, `size` x `size` px."""
    rng = random.Random(derive_seed(SEED, "place", scene.place))
    zoom = 4 * size / SIZE
    light = rng.randint(226, 250)
    ground = tuple(light + rng.randint(-5, 5) for _ in range(3))
    image = Image.new("RGB", (4 * size, 4 * size), ground)
    pen = ImageDraw.Draw(image)
    for thing, (x, y) in zip(scene.things, _places(scene, rng), strict=True):
        shade = tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in COLORS[thing.color])
        r = zoom * (SIZES[thing.size] * rng.uniform(0.95, 1.05))
        corners = [(x * zoom + r * u, y * zoom + r * v) for u, v in OUTLINES[thing.shape]]
        pen.polygon(corners, fill=shade)
    return image.resize((size, size), Image.Resampling.BOX)


# --- captions ------------------------------------------------------------------------------------

# {a} is the first thing (left or upper), {b} the second.
RELATIONS = {
    "h": (
        "a {a} left of a {b}",
        "a {b} right of a {a}",
        "a {a} to the left of a {b}",
        "a {b} to the right of a {a}",
        "a {a} on the left and a {b} on the right",
        "a {b} on the right and a {a} on the left",
        "there is a {a} on the left of a {b}",
        "there is a {b} on the right of a {a}",
        "the {a} is left of the {b}",
        "the {b} is right of the {a}",
    ),
    "v": (
        "a {a} above a {b}",
        "a {b} below a {a}",
        "a {a} over a {b}",
        "a {b} under a {a}",
        "a {a} at the top and a {b} at the bottom",
        "a {b} at the bottom and a {a} at the top",
        "there is a {a} above a {b}",
        "there is a {b} below a {a}",
        "the {a} is above the {b}",
        "the {b} is below the {a}",
    ),
}
RELATION_NAMES = {"h": ("left of", "right of"), "v": ("above", "below")}
PLACES = {"h": ("on the left", "on the right"), "v": ("at the top", "at the bottom")}
NAMED = ("{x}", "a {x}", "a photo of a {x}", "a picture of a {x}", "the {x}", "an image of a {x}")
PAIRED = ("{x} and {y}", "a {x} and a {y}", "a {x} with a {y}", "a picture of a {x} and a {y}",
          "the {x} and the {y}", "a {x} next to a {y}")  # fmt: skip


def say(form: str, **names: str) -> str:
    """The form with its names filled in, and "an" before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", form.format(**names))


def relation_captions(scene: Scene) -> list[str]:
    """All the ways to say what stands where, colors and shapes named."""
    a, b = (thing.name for thing in scene.things)
    return [say(form, a=a, b=b) for form in RELATIONS[scene.axis]]


def coco_captions(scene: Scene, rng: random.Random) -> list[str]:
    """Five full captions, as COCO has: most of them state the relation, some the sizes."""
    a, b = scene.things
    forms = rng.sample(RELATIONS[scene.axis], 4)
    names = [(a.name, b.name)] * 3 + [(a.full, b.full)]
    captions = [say(f, a=x, b=y) for f, (x, y) in zip(forms, names, strict=True)]
    x, y = rng.sample([a.name, b.name], 2)
    return [*captions, say(rng.choice(PAIRED), x=x, y=y)]


def alt_caption(scene: Scene, rng: random.Random) -> str:
    """One alt-text-like caption: partial and mostly unordered, as CLIP's pre-training text is."""
    things = list(scene.things)
    rng.shuffle(things)
    kind = rng.random()
    if len(things) == 1 or kind < 0.45:
        return say(rng.choice(NAMED), x=_partial(things[0], rng))
    if kind < 0.90:
        x, y = (_partial(thing, rng) for thing in things)
        return say(rng.choice(PAIRED), x=x, y=y)
    return rng.choice(relation_captions(scene))


def _partial(thing: Thing, rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.60:
        return thing.name
    if kind < 0.72:
        return thing.shape
    if kind < 0.84:
        return f"{thing.color} {rng.choice(('shape', 'object'))}"
    return thing.full if kind < 0.94 else f"{thing.size} {thing.shape}"


def teacher_caption(scene: Scene, rng: random.Random) -> str:
    """A caption for the teacher's training: the layout in most, the rest partial or empty."""
    kind = rng.random()
    if kind < 0.08:
        return ""
    if len(scene.things) == 1 or kind < 0.16:
        return alt_caption(scene, rng)
    if kind < 0.26:
        return _placed(scene, rng.randrange(2))
    if kind < 0.38:
        return rng.choice(coco_captions(scene, rng))
    return rng.choice(relation_captions(scene))


def layout_caption(scene: Scene, rng: random.Random, placed: float = 0.35) -> str:
    """A caption that mostly says of each thing where it stands, next to its name.

    `placed` is the share of captions that do so of both things.
    """
    kind = rng.random()
    if kind < 0.08:
        return ""
    if len(scene.things) == 1 or kind < 0.20:
        return alt_caption(scene, rng)
    i = rng.randrange(2)
    single = 0.12 if placed < 0.4 else 0.08
    if kind < 0.20 + single:
        return _placed(scene, i)
    if kind < 0.20 + single + placed:
        return f"{_placed(scene, i)} and {_placed(scene, 1 - i)}"
    return rng.choice(relation_captions(scene))


def _placed(scene: Scene, i: int) -> str:
    """Where one thing stands."""
    return say("a {x} {place}", x=scene.things[i].name, place=PLACES[scene.axis][i])


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """Every word that a caption of the mini-world can hold, sorted."""
    forms = itertools.chain(*RELATIONS.values(), *PLACES.values(), NAMED, PAIRED)
    words = {w for form in forms for w in form.split() if not w.startswith("{")}
    words |= {"is", "of", "shape", "object", *COLORS, *SHAPES, *SIZES}
    return tuple(sorted(words))


def build_tokenizer(folder: Path, context_length: int = 24) -> None:
    """Save the word-level tokenizer that both text encoders share; the end token is the highest id.

    A word outside `vocabulary()` becomes `[UNK]`, which the student's and teacher's doors refuse.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    entries = ["[PAD]", "[UNK]", "<start>", *vocabulary(), "<end>"]
    ids = {word: i for i, word in enumerate(entries)}
    core = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, ids[token]) for token in ("<start>", "<end>")]
    core.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    special = {"bos_token": "<start>", "eos_token": "<end>", "unk_token": "[UNK]",
               "pad_token": "[PAD]"}  # fmt: skip
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, model_max_length=context_length, **special
    )
    made.save_pretrained(folder)


# --- which scenes belong where -------------------------------------------------------------------


def random_thing(rng: random.Random) -> Thing:
    """Any shape, color and size."""
    return Thing(rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice(list(SIZES)))


def scenes(split: str, purpose: str, single: float = 0.0) -> Iterator[Scene]:
    """Endless scenes of a split, from (SEED, purpose); held-out pairs only in "test"."""
    for index in itertools.count():
        rng = random.Random(derive_seed(SEED, f"{purpose} scene", index))
        things = tuple(random_thing(rng) for _ in range(1 if rng.random() < single else 2))
        scene = Scene(things, rng.choice("hv"), rng.getrandbits(48))
        # a scene of two equal things has no relation to tell
        equal = len(things) == 2 and things[0].name == things[1].name
        if not equal and scene.split == split and (split == "test" or not scene.held_out):
            yield scene


def swapped(scene: Scene, kind: str) -> Scene:
    """The scene that the same words can describe: "Object" swaps the colors, "Relation" the places
    of the whole things, "Both" the shapes, so that binding and places change together."""
    a, b = scene.things
    if kind == "Object":
        return replace(scene, things=(replace(a, color=b.color), replace(b, color=a.color)))
    if kind == "Relation":
        return replace(scene, things=(b, a))
    return replace(scene, things=(replace(b, color=a.color), replace(a, color=b.color)))
