"""The mini-world: scenes of one or two shapes, drawn and captioned in the real sets' own files.

A scene is two things and an axis: on axis "h" the first stands left of the second, on "v" above
it. Everything is a function of (seed, purpose, index), so the files are the same on every machine.
Splits share no pair {shape, shape} x {color, color}; `HELD_OUT` pairs appear in test items alone.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import math
import os
import random
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from sdslib.config import derive_seed, project_root, shown_path
from sdslib.io.sources import DataError

SIZE = 64
SEED = 2307
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 60),
    "blue": (40, 80, 214),
    "yellow": (240, 208, 36),
    "purple": (140, 60, 176),
    "orange": (246, 136, 24),
    "black": (28, 28, 28),
    "cyan": (64, 204, 220),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES = {"small": 7.5, "large": 11.0}
HELD_OUT = {("purple", "star"), ("cyan", "triangle"), ("black", "heart"), ("orange", "cross")}
SPLITS = {"train": 0.60, "val": 0.13, "test": 0.27}
COUNTS = {
    "coco_train": 4096,
    "coco_val": 512,
    "aro": 400,
    "sugarcrepe": 200,
    "zeroshot_per_class": 40,
}
WINOGROUND = {
    "val": {"Object": 240, "Relation": 240, "Both": 120},
    "test": {"Object": 480, "Relation": 480, "Both": 240},
}


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
        return f"{self.size} {self.color} {self.shape}"


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
        return split_of(self.things)


# --- drawing -------------------------------------------------------------------------------------


def _outline(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    def ring(n: int, start: float, radii: Sequence[float]) -> list[tuple[float, float]]:
        step = 2 * math.pi / n
        return [
            (
                x + radii[i % len(radii)] * math.sin(start + i * step),
                y - radii[i % len(radii)] * math.cos(start + i * step),
            )
            for i in range(n)
        ]

    if shape == "square":
        s = 0.86 * r
        return [(x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s)]
    if shape == "triangle":
        return ring(3, 0.0, [1.15 * r])
    if shape == "star":
        return ring(10, 0.0, [1.15 * r, 0.48 * r])
    if shape == "cross":
        a, b = 0.34 * r, r
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        return [(x + u, y + v) for u, v in corners + [(-u, -v) for u, v in corners]]
    if shape == "heart":
        turns = [2 * math.pi * i / 48 for i in range(48)]
        return [
            (
                x + r * 1.02 * math.sin(u) ** 3,
                y - r * (0.83 * math.cos(u) - 0.32 * math.cos(2 * u) - 0.13 * math.cos(3 * u)),
            )
            for u in turns
        ]
    return ring(64, 0.0, [r])


def _places(scene: Scene, rng: random.Random) -> list[tuple[float, float]]:
    if len(scene.things) == 1:
        return [(rng.uniform(15, 49), rng.uniform(15, 49))]
    near, far = rng.uniform(14, 20), rng.uniform(44, 50)
    across = [rng.uniform(25, 39), rng.uniform(25, 39)]
    if scene.axis == "h":
        return [(near, across[0]), (far, across[1])]
    return [(across[0], near), (across[1], far)]


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
        r = SIZES[thing.size] * rng.uniform(0.95, 1.05)
        pen.polygon(_outline(thing.shape, x * zoom, y * zoom, r * zoom), fill=shade)
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
        return _name_one(things[0], rng)
    if kind < 0.90:
        x, y = (_partial(thing, rng) for thing in things)
        return say(rng.choice(PAIRED), x=x, y=y)
    return rng.choice(relation_captions(scene))


def _name_one(thing: Thing, rng: random.Random) -> str:
    return say(rng.choice(NAMED), x=_partial(thing, rng))


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
    if len(scene.things) == 1:
        return alt_caption(scene, rng)
    if kind < 0.16:
        return alt_caption(scene, rng)
    if kind < 0.26:  # where one thing stands
        i = rng.randrange(2)
        return say("a {x} {place}", x=scene.things[i].name, place=PLACES[scene.axis][i])
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
    one, other = (
        say("a {x} {place}", x=scene.things[j].name, place=PLACES[scene.axis][j])
        for j in (i, 1 - i)
    )
    single = 0.12 if placed < 0.4 else 0.08
    if kind < 0.20 + single:
        return one
    if kind < 0.20 + single + placed:
        return f"{one} and {other}"
    return rng.choice(relation_captions(scene))


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
    core.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>",
        special_tokens=[("<start>", ids["<start>"]), ("<end>", ids["<end>"])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<start>",
        eos_token="<end>",
        unk_token="[UNK]",
        pad_token="[PAD]",
        model_max_length=context_length,
    ).save_pretrained(folder)


# --- which scenes belong where -------------------------------------------------------------------


def split_of(things: Sequence[Thing]) -> str:
    """The split of a scene, drawn from its shapes and colors alone: swaps stay inside it."""
    shapes = ",".join(sorted(t.shape for t in things))
    colors = ",".join(sorted(t.color for t in things))
    if len(things) < 2 or len({t.shape for t in things}) < 2 or len({t.color for t in things}) < 2:
        return "train"
    share = random.Random(derive_seed(SEED, f"split {shapes} {colors}")).random()
    for name, width in SPLITS.items():
        if share < width:
            return name
        share -= width
    return "test"


def _held_out(things: Sequence[Thing]) -> bool:
    return any((t.color, t.shape) in HELD_OUT for t in things)


def _random_thing(rng: random.Random) -> Thing:
    return Thing(rng.choice(SHAPES), rng.choice(list(COLORS)), rng.choice(list(SIZES)))


def scenes(split: str, purpose: str, single: float = 0.0) -> Iterator[Scene]:
    """Endless scenes of a split, from (SEED, purpose); held-out pairs only in "test"."""
    for index in itertools.count():
        rng = random.Random(derive_seed(SEED, f"{purpose} scene", index))
        count = 1 if rng.random() < single else 2
        things = tuple(_random_thing(rng) for _ in range(count))
        scene = Scene(things, rng.choice("hv"), rng.getrandbits(48))
        # a scene of two equal things has no relation to tell
        if count == 2 and things[0].name == things[1].name:
            continue
        if scene.split == split and (split == "test" or not _held_out(things)):
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


# --- files in the real sets' formats -------------------------------------------------------------


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def winoground_rows(split: str) -> list[dict]:
    """Winoground-shaped items: two scenes, two captions of the same words."""
    tags = {"Object": "Adjective-Color", "Relation": "Noun Phrase", "Both": "Noun"}
    rows: list[dict] = []
    for kind, count in WINOGROUND[split].items():
        seen: set[frozenset] = set()
        for scene in scenes(split, f"winoground {split} {kind}"):
            a, b = scene.things
            if a.shape == b.shape or a.color == b.color:
                continue
            other = swapped(scene, kind)
            if split != "test" and _held_out(other.things):
                continue
            key = frozenset((s.things, s.axis) for s in (scene, other))
            if key in seen:
                continue
            seen.add(key)
            rows.append(_winoground_row(len(rows), scene, other, kind, tags[kind]))
            if len(seen) == count:
                break
    return rows


def _winoground_row(index: int, scene: Scene, other: Scene, kind: str, tag: str) -> dict:
    rng = random.Random(derive_seed(SEED, "winoground form", scene.place))
    other = replace(other, place=rng.getrandbits(48))
    form = rng.choice(RELATIONS[scene.axis])
    names = [[thing.name for thing in s.things] for s in (scene, other)]
    captions = [say(form, a=a, b=b) for a, b in names]
    held_out = _held_out(scene.things) or _held_out(other.things)
    row: dict = {"id": index}
    for i, s in enumerate((scene, other)):
        row[f"image_{i}"] = {"bytes": _png(draw(s)), "path": f"ex_{index}_img_{i}.png"}
    row |= {"caption_0": captions[0], "caption_1": captions[1], "tag": tag}
    row |= {"secondary_tag": "Held-out pair" if held_out else "", "collapsed_tag": kind}
    return row | {"num_main_preds": 2 if " and " in form else 1}


def _write_winoground(root: Path) -> None:
    (root / "winoground").mkdir(parents=True)
    for split in ("val", "test"):
        table = pa.Table.from_pylist(winoground_rows(split))
        pq.write_table(table, root / "winoground" / f"{split}.parquet")


def _write_coco(root: Path) -> None:
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        folder = root / "coco" / split
        folder.mkdir()
        count = COUNTS[f"coco_{split}"]
        images: list[dict] = []
        notes: list[dict] = []
        for index, scene in enumerate(itertools.islice(scenes(split, f"coco {split}"), count)):
            name = f"{index:06d}.png"
            (folder / name).write_bytes(_png(draw(scene)))
            images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
            rng = random.Random(derive_seed(SEED, f"coco {split} caption", index))
            for caption in coco_captions(scene, rng):
                notes.append({"id": len(notes), "image_id": index, "caption": caption})
        info = {"description": "mini-world", "version": "1"}
        document = {"info": info, "licenses": [], "images": images, "annotations": notes}
        _dump(root / "coco" / "annotations" / f"captions_{split}.json", document)


def _test_scenes(purpose: str, count: int) -> list[Scene]:
    def tells(scene: Scene) -> bool:
        a, b = scene.things
        return a.shape != b.shape and a.color != b.color

    return list(itertools.islice(filter(tells, scenes("test", purpose)), count))


def _box(image: Image.Image) -> dict:
    """The box round everything that is drawn, with a margin, as ARO's relation boxes hold both."""
    from PIL import ImageChops

    ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
    mask = ImageChops.difference(image, ground).convert("L").point(lambda v: 255 * (v > 8))
    x0, y0, x1, y1 = mask.getbbox() or (0, 0, *image.size)
    x0, y0 = max(0, x0 - 3), max(0, y0 - 3)
    x1, y1 = min(image.width, x1 + 3), min(image.height, y1 + 3)
    return {"bbox_x": x0, "bbox_y": y0, "bbox_w": x1 - x0, "bbox_h": y1 - y0}


def _write_aro(root: Path) -> None:
    folder = root / "aro" / "images"
    folder.mkdir(parents=True)
    relation, attribution, order = [], [], []
    for index, scene in enumerate(_test_scenes("aro", COUNTS["aro"])):
        image = draw(scene)
        name = f"{index}.png"
        (folder / name).write_bytes(_png(image))
        base = {"image_id": str(index), "image_path": name} | _box(image)
        rng = random.Random(derive_seed(SEED, "aro", index))
        relation.append(base | _relation_row(scene, rng))
        attribution.append(base | _attribution_row(scene))
        order.append({"image": f"images/{name}", "caption": coco_captions(scene, rng)[:2]})
    _dump(root / "aro" / "visual_genome_relation.json", relation)
    _dump(root / "aro" / "visual_genome_attribution.json", attribution)
    _dump(root / "aro" / "coco_order.json", order)


def _relation_row(scene: Scene, rng: random.Random) -> dict:
    turn = rng.randrange(2)
    first, second = scene.things[turn], scene.things[1 - turn]
    name = RELATION_NAMES[scene.axis][turn]
    true = f"the {first.name} is {name} the {second.name}"
    false = f"the {second.name} is {name} the {first.name}"
    return {"relation_name": name, "true_caption": true, "false_caption": false}


def _attribution_row(scene: Scene) -> dict:
    a, b = scene.things
    return {
        "attributes": [a.color, b.color],
        "obj1_name": a.shape,
        "obj2_name": b.shape,
        "true_caption": f"the {a.name} and the {b.name}",
        "false_caption": f"the {b.color} {a.shape} and the {a.color} {b.shape}",
    }


def _negative(subset: str, scene: Scene, form: str, rng: random.Random) -> str:
    a, b = scene.things
    if subset == "swap_obj":
        a, b = b, a
    elif subset == "swap_att":
        a, b = replace(a, color=b.color), replace(b, color=a.color)
    elif subset == "replace_obj":
        a = replace(a, shape=rng.choice([s for s in SHAPES if s not in (a.shape, b.shape)]))
    elif subset == "replace_att":
        a = replace(a, color=rng.choice([c for c in COLORS if c not in (a.color, b.color)]))
    elif subset == "replace_rel":
        # the opposite phrase with its arguments exchanged back: "a left of b" -> "a right of b"
        forms = RELATIONS[scene.axis]
        form, a, b = forms[forms.index(form) ^ 1], b, a
    text = say(form, a=a.name, b=b.name)
    if subset == "add_obj":
        third = [Thing(s, c).name for s in SHAPES for c in COLORS if s not in (a.shape, b.shape)]
        return say(text + " and a {x}", x=rng.choice(third))
    if subset == "add_att":
        wrong = {"small": "large", "large": "small"}[a.size]
        article = "the" if f"the {a.name}" in text else "a"
        return re.sub(rf"\b(a|an|the) {a.name}", f"{article} {wrong} {a.name}", text)
    return text


SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att",
              "swap_obj")  # fmt: skip


def _write_sugarcrepe(root: Path) -> None:
    """Negatives as SugarCrepe's seven kinds; the images are those of the ARO-shaped set."""
    (root / "sugarcrepe").mkdir()
    drawn = _test_scenes("aro", COUNTS["sugarcrepe"])
    for subset in SUGARCREPE:
        rows = {}
        for index, scene in enumerate(drawn):
            rng = random.Random(derive_seed(SEED, f"sugarcrepe {subset}", index))
            form = rng.choice(RELATIONS[scene.axis])
            caption = say(form, a=scene.things[0].name, b=scene.things[1].name)
            row = {"filename": f"{index}.png", "caption": caption}
            rows[str(index)] = row | {"negative_caption": _negative(subset, scene, form, rng)}
        _dump(root / "sugarcrepe" / f"{subset}.json", rows)


def _write_zeroshot(root: Path) -> None:
    per_class = COUNTS["zeroshot_per_class"]
    for task, names in (("color", tuple(COLORS)), ("shape", SHAPES)):
        for label in names:
            folder = root / "zeroshot" / task / label
            folder.mkdir(parents=True)
            for index in range(per_class):
                rng = random.Random(derive_seed(SEED, f"zeroshot {task} {label}", index))
                thing = replace(_random_thing(rng), **{task: label})
                while _held_out([thing]):
                    thing = replace(_random_thing(rng), **{task: label})
                scene = Scene((thing,), place=rng.getrandbits(48))
                (folder / f"{index:03d}.png").write_bytes(_png(draw(scene)))


def _dump(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=None, separators=(",", ":")))


def _stage(root: Path) -> Path:
    """An empty folder to draw in, named by who draws; those of processes that are gone go."""
    root.parent.mkdir(parents=True, exist_ok=True)
    own = f"{root.name}.drawing-{socket.gethostname()}-"
    for left in root.parent.glob(f"{glob.escape(own)}*"):
        number = left.name.removeprefix(own)
        if not (number.isdigit() and psutil.pid_exists(int(number))):
            shutil.rmtree(left, ignore_errors=True)
    stage = root.with_name(f"{own}{os.getpid()}")
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir()
    return stage


def ensure_world(root: Path | None = None) -> Path:
    """Draw every set of the mini-world once; the folder returned is whole or absent.

    DataError where it cannot be written.
    """
    root = root or project_root() / "data" / "mini" / "world"
    if root.is_dir():
        return root
    try:
        stage = _stage(root)
    except OSError as error:
        raise DataError(
            f"the mini-world cannot be drawn: {shown_path(root.parent)} cannot be written to "
            f"({error.strerror}); make it writable, or copy a drawn world to {shown_path(root)}"
        ) from error
    try:
        for write in (_write_coco, _write_winoground, _write_aro, _write_sugarcrepe,
                      _write_zeroshot):  # fmt: skip
            write(stage)
        stage.chmod(0o755)
        os.replace(stage, root)
    except OSError:
        # another process may have finished first
        if not root.is_dir():
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return root
