"""The mini-world on disk: its scenes in the real sets' own files, drawn once."""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops

from sdslib.config import derive_seed
from sdslib.io.paths import project_root, shown_path
from sdslib.io.sources import DataError
from sdslib.miniworld.drawing import (
    COLORS,
    RELATION_NAMES,
    RELATIONS,
    SEED,
    SHAPES,
    SIZE,
    Scene,
    Thing,
    coco_captions,
    draw,
    random_thing,
    say,
    scenes,
    swapped,
)
from sdslib.sets.sugarcrepe import SUGARCREPE

COUNTS = {"coco_train": 4096, "coco_val": 512, "aro": 400, "sugarcrepe": 200,
          "zeroshot_per_class": 40}  # fmt: skip
WINOGROUND = {
    "val": {"Object": 240, "Relation": 240, "Both": 120},
    "test": {"Object": 480, "Relation": 480, "Both": 240},
}
TAGS = {"Object": "Adjective-Color", "Relation": "Noun Phrase", "Both": "Noun"}
ZEROSHOT_VAL = "zeroshot-val"
MARGIN = 3  # pixels between a box and what is drawn in it


def _rng(purpose: str, *index: int) -> random.Random:
    return random.Random(derive_seed(SEED, purpose, *index))


def png(scene: Scene) -> bytes:
    """The encoded picture of a scene."""
    buffer = io.BytesIO()
    draw(scene).save(buffer, format="PNG")
    return buffer.getvalue()


def _dump(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=None, separators=(",", ":")))


# --- Winoground ----------------------------------------------------------------------------------


def _write_winoground(root: Path) -> None:
    (root / "winoground").mkdir()
    for split, counts in WINOGROUND.items():
        rows: list[dict] = []
        for kind, count in counts.items():
            for both in itertools.islice(_minimal_pairs(split, kind), count):
                rows.append(_winoground_row(len(rows), kind, *both))
        pq.write_table(pa.Table.from_pylist(rows), root / "winoground" / f"{split}.parquet")


def _minimal_pairs(split: str, kind: str) -> Iterator[tuple[Scene, Scene]]:
    """Scenes with their swaps, each two of them once."""
    seen: set[frozenset] = set()
    for scene in scenes(split, f"winoground {split} {kind}"):
        other = swapped(scene, kind)
        key = frozenset((s.things, s.axis) for s in (scene, other))
        allowed = split == "test" or not other.held_out
        if scene.differ and allowed and key not in seen:
            seen.add(key)
            yield scene, other


def _winoground_row(index: int, kind: str, scene: Scene, other: Scene) -> dict:
    rng = _rng("winoground form", scene.place)
    both = (scene, replace(other, place=rng.getrandbits(48)))
    form = rng.choice(RELATIONS[scene.axis])
    images = {f"image_{i}": {"bytes": png(s), "path": f"ex_{index}_img_{i}.png"}
              for i, s in enumerate(both)}  # fmt: skip
    captions = {f"caption_{i}": _said(form, s) for i, s in enumerate(both)}
    held_out = "Held-out pair" if any(s.held_out for s in both) else ""
    tags = {"tag": TAGS[kind], "secondary_tag": held_out, "collapsed_tag": kind}
    count = 2 if " and " in form else 1
    return {"id": index} | images | captions | tags | {"num_main_preds": count}


def _said(form: str, scene: Scene) -> str:
    return say(form, a=scene.things[0].name, b=scene.things[1].name)


# --- COCO ----------------------------------------------------------------------------------------


def _write_coco(root: Path) -> None:
    (root / "coco" / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        folder = root / "coco" / split
        folder.mkdir()
        drawn = itertools.islice(scenes(split, f"coco {split}"), COUNTS[f"coco_{split}"])
        images, notes = list[dict](), list[dict]()
        for index, scene in enumerate(drawn):
            name = f"{index:06d}.png"
            (folder / name).write_bytes(png(scene))
            images.append({"id": index, "file_name": name, "width": SIZE, "height": SIZE})
            for caption in coco_captions(scene, _rng(f"coco {split} caption", index)):
                notes.append({"id": len(notes), "image_id": index, "caption": caption})
        info = {"description": "mini-world", "version": "1"}
        document = {"info": info, "licenses": [], "images": images, "annotations": notes}
        _dump(root / "coco" / "annotations" / f"captions_{split}.json", document)


# --- ARO -----------------------------------------------------------------------------------------


def _aro_scenes(count: int) -> Iterator[Scene]:
    return itertools.islice((s for s in scenes("test", "aro") if s.differ), count)


def _box(image: Image.Image) -> dict:
    """The box round everything that is drawn, with a margin, as ARO's relation boxes hold both."""
    ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
    mask = ImageChops.difference(image, ground).convert("L").point(lambda v: 255 * (v > 8))
    x0, y0, x1, y1 = mask.getbbox() or (0, 0, *image.size)
    x0, y0 = max(0, x0 - MARGIN), max(0, y0 - MARGIN)
    x1, y1 = min(image.width, x1 + MARGIN), min(image.height, y1 + MARGIN)
    return {"bbox_x": x0, "bbox_y": y0, "bbox_w": x1 - x0, "bbox_h": y1 - y0}


def _write_aro(root: Path) -> None:
    folder = root / "aro" / "images"
    folder.mkdir(parents=True)
    relation, attribution, order = [], [], []
    for index, scene in enumerate(_aro_scenes(COUNTS["aro"])):
        name, rng = f"{index}.png", _rng("aro", index)
        (folder / name).write_bytes(png(scene))
        base = {"image_id": str(index), "image_path": name} | _box(draw(scene))
        relation.append(base | _relation_row(scene, rng.randrange(2)))
        attribution.append(base | _attribution_row(scene))
        order.append({"image": f"images/{name}", "caption": coco_captions(scene, rng)[:2]})
    _dump(root / "aro" / "visual_genome_relation.json", relation)
    _dump(root / "aro" / "visual_genome_attribution.json", attribution)
    _dump(root / "aro" / "coco_order.json", order)


def _relation_row(scene: Scene, turn: int) -> dict:
    first, second = scene.things[turn].name, scene.things[1 - turn].name
    name = RELATION_NAMES[scene.axis][turn]
    true, false = f"the {first} is {name} the {second}", f"the {second} is {name} the {first}"
    return {"relation_name": name, "true_caption": true, "false_caption": false}


def _attribution_row(scene: Scene) -> dict:
    (a, b), (c, d) = scene.things, swapped(scene, "Object").things
    true, false = f"the {a.name} and the {b.name}", f"the {c.name} and the {d.name}"
    row = {"attributes": [a.color, b.color], "obj1_name": a.shape, "obj2_name": b.shape}
    return row | {"true_caption": true, "false_caption": false}


# --- SugarCrepe ----------------------------------------------------------------------------------


def _write_sugarcrepe(root: Path) -> None:
    """Negatives as SugarCrepe's seven kinds; the images are those of the ARO-shaped set."""
    (root / "sugarcrepe").mkdir()
    drawn = list(_aro_scenes(COUNTS["sugarcrepe"]))
    for subset in SUGARCREPE:
        rows = {}
        for index, scene in enumerate(drawn):
            rng = _rng(f"sugarcrepe {subset}", index)
            form = rng.choice(RELATIONS[scene.axis])
            row = {"filename": f"{index}.png", "caption": _said(form, scene)}
            rows[str(index)] = row | {"negative_caption": negative(subset, scene, form, rng)}
        _dump(root / "sugarcrepe" / f"{subset}.json", rows)


def negative(subset: str, scene: Scene, form: str, rng: random.Random) -> str:
    """A caption in `form` that a subset's change makes false of the scene."""
    a, b = scene.things
    if subset == "swap_obj":
        a, b = b, a
    elif subset == "swap_att":
        a, b = swapped(scene, "Object").things
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


# --- zero-shot -----------------------------------------------------------------------------------


def _write_zeroshot(root: Path, name: str = "zeroshot") -> None:
    classes = [("color", color) for color in COLORS] + [("shape", shape) for shape in SHAPES]
    for task, label in classes:
        folder = root / name / task / label
        folder.mkdir(parents=True)
        for index in range(COUNTS["zeroshot_per_class"]):
            rng = _rng(f"{name} {task} {label}", index)
            while (scene := Scene((replace(random_thing(rng), **{task: label}),))).held_out:
                pass
            scene = replace(scene, place=rng.getrandbits(48))
            (folder / f"{index:03d}.png").write_bytes(png(scene))


# --- all of it -----------------------------------------------------------------------------------


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


PARTS: dict[str, Callable[[Path], None]] = {
    "coco": _write_coco,
    "winoground": _write_winoground,
    "aro": _write_aro,
    "sugarcrepe": _write_sugarcrepe,
    "zeroshot": _write_zeroshot,
    ZEROSHOT_VAL: partial(_write_zeroshot, name=ZEROSHOT_VAL),
}


def _bring(stage: Path, root: Path, parts: list[str]) -> None:
    """The drawn parts to where they stand; another process may have brought them first."""
    whole = not root.is_dir()
    for drawn, place in [(stage, root)] if whole else [(stage / p, root / p) for p in parts]:
        try:
            os.replace(drawn, place)
        except OSError:
            if not place.is_dir():
                raise


def ensure_world(root: Path | None = None) -> Path:
    """Draw every set of the mini-world once; each of its parts is whole or absent.

    A world that was drawn before a part was thought of is given that part. DataError where it
    cannot be written.
    """
    root = root or project_root() / "data" / "mini" / "world"
    missing = [part for part in PARTS if not (root / part).is_dir()]
    if not missing:
        return root
    try:
        stage = _stage(root)
    except OSError as error:
        if root.is_dir():  # what is missing may never be asked for
            return root
        raise DataError(
            f"the mini-world cannot be drawn: {shown_path(root.parent)} cannot be written to "
            f"({error.strerror}); make it writable, or copy a drawn world to {shown_path(root)}"
        ) from error
    try:
        for part in missing:
            PARTS[part](stage)
        stage.chmod(0o755)
        _bring(stage, root, missing)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return root
