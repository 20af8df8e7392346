"""One image and two to four captions, in parts with images from elsewhere: VALSE, What'sUp and
NegBench's multiple choice.

A part whose file or whose folder of images is not here is left out with a word, and the set is then
partial: nobody needs all of five image collections to measure on one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field, RootModel

from sdslib.benchmarks import TOTALS, Benchmark, Item
from sdslib.io.sources import (
    Caption,
    DataError,
    MissingFile,
    Root,
    check_rows,
    file_refs,
    read_csv,
    read_json,
)
from sdslib.sets.origins import GENOME, VAL2017, image_home, located


class Choice(NamedTuple):
    """One row: the name of its image and the place that names it, captions, which is true."""

    id: str
    image: str
    where: str
    captions: tuple[str, ...]
    answer: int
    tags: dict[str, str]


class Part(NamedTuple):
    """A part of a set: its file, the folders that its images may lie in, and whose they are."""

    file: str
    read: Callable[[Path, str], list[Choice]]
    folders: tuple[str, ...]
    images: str


def _load(name: str, source: str | Path, parts: dict[str, Part], total: int | None) -> Benchmark:
    items, absent = list[Item](), list[str]()
    for subset, part in parts.items():
        try:
            (path, *_) = located(
                name, source, [f"{f}{part.file}" for f in ("", "data/", "images/")]
            )
        except MissingFile as reason:
            absent.append(str(reason))
            continue
        questions = part.read(path, subset)
        folder = image_home(path.parent, name, part.folders)
        if not folder.is_dir():
            count = len({question.image for question in questions})
            absent.append(f"{subset}: none of its {count:,} images is here (they are "
                          f"{part.images}); put them into {folder}")  # fmt: skip
            continue
        named = [(question.image, question.where) for question in questions]
        refs = file_refs(Root(folder, part.images), named)
        items += [
            Item(q.id, (ref,), q.captions, q.answer, tags={"subset": subset} | q.tags)
            for q, ref in zip(questions, refs, strict=True)
        ]
    if not items:
        raise DataError(f"{name}: {absent[0]}")
    if absent:
        warnings.warn(f"{name}: left out, of {len(parts)} parts: {'; '.join(absent)}", stacklevel=3)
    return Benchmark(name, "choice", tuple(items), total or len(items), str(source))


# --- VALSE ---------------------------------------------------------------------------------------


class Votes(BaseModel):
    """How many of three annotators took the caption, but not the foil, for true."""

    caption: int


class ValseRow(BaseModel):
    """One sample of VALSE (Parcalabescu et al., ACL 2022)."""

    image_file: str
    caption: Caption
    foil: Caption
    mturk: Votes


VALID = 2  # votes of three, from which on a foil is valid (section 4.4)


def _valse_rows(path: Path, piece: str, votes: int = VALID) -> list[Choice]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise DataError(f"{path.name}: expected an object of samples by their names")
    rows = check_rows(list(found.values()), ValseRow, path.name, list(found))
    return [
        Choice(f"{piece}/{key}", row.image_file, f"{path.name}[{key}].image_file",
                 (row.caption, row.foil), 0, {})
        for key, row in zip(found, rows, strict=True) if row.mturk.caption >= votes
    ]  # fmt: skip


def _valse_part(piece: str, folders: tuple[str, ...], images: str) -> Part:
    return Part(f"{piece}.json", _valse_rows, folders, images)


_V7W = (("visual7w",), "Visual7W's, http://vision.stanford.edu/yukezhu/visual7w_images.zip")
_SWIG = (("swig", "images_512"), "SWiG's, https://github.com/allenai/swig")
_VISDIAL = (("visdial",), "VisDial v1.0's, https://visualdialog.org/data")
_VAL2014 = (("val2014",), "COCO's val2014, http://images.cocodataset.org/zips/val2014.zip")
VALSE = {
    "existence": _V7W, "plurals": (("val2017",), VAL2017), "counting-hard": _V7W,
    "counting-small-quant": _V7W, "counting-adversarial": _V7W,
    "relations": (("val2017",), VAL2017), "action-replacement": _SWIG, "actant-swap": _SWIG,
    "coreference-standard": _VISDIAL, "coreference-hard": _VISDIAL, "foil-it": _VAL2014,
}  # fmt: skip


def valse(source: str | Path, total: int | None = TOTALS["valse"]) -> Benchmark:
    """VALSE's eleven pieces, tagged `subset`: those foils that two of three annotators saw through,
    7,702 of 8,782. The true caption first.

    `source` holds existence.json ... foil-it.json, itself or in `data/`; folders of images as
    `VALSE` names them. Its authors' pairwise accuracy (acc_r) is `accuracy`. Raises `DataError`.
    """
    return _load("valse", source, {p: _valse_part(p, *of) for p, of in VALSE.items()}, total)


# --- What'sUp ------------------------------------------------------------------------------------


class ControlledRow(BaseModel):
    """One photograph of What'sUp (Kamath et al., EMNLP 2023) with four captions, the true first."""

    image_path: str
    caption_options: Annotated[list[Caption], Field(min_length=4, max_length=4)]


class SpatialRow(RootModel[tuple[int | str, Caption, Caption]]):
    """One row of its COCO and GQA parts: the image's id, the true caption and the false one."""


AXES = {"left": "sides", "right": "sides", "on": "height", "under": "height", "in-front": "depth",
        "behind": "depth"}  # fmt: skip


def _controlled(path: Path, subset: str) -> list[Choice]:
    """Photographs of two things in four relations: the name, thing_relation_thing, says which."""
    rows = check_rows(read_json(path), ControlledRow, path.name)
    found = []
    for index, row in enumerate(rows):
        name = row.image_path.replace("\\", "/").rsplit("/", 1)[-1]
        where = f"{path.name}[{index}].image_path"
        words = name.rsplit(".", 1)[0].split("_")
        if len(words) < 3 or words[1] not in AXES:
            raise DataError(f"{where}: {name!r} names no relation, as mug_left_of_plate.jpeg does")
        first, relation, last = words[0], words[1], words[-1]
        group = f"{subset}/{first}_{last}"
        tags = {"preposition": relation, "set": group, "pair": f"{group}/{AXES[relation]}"}
        captions = tuple(row.caption_options)
        found.append(Choice(f"{subset}/{index}", name, where, captions, 0, tags))
    return found


def _spatial(path: Path, subset: str) -> list[Choice]:
    rows = check_rows(read_json(path), SpatialRow, path.name)
    coco = subset.startswith("coco")
    return [
        Choice(f"{subset}/{index}", f"{str(image).zfill(12) if coco else image}.jpg",
                 f"{path.name}[{index}][0]", (true, false), 0,
                 {"preposition": "", "set": "", "pair": ""})
        for index, (image, true, false) in enumerate(row.root for row in rows)
    ]  # fmt: skip


WHATSUP = {
    "A": Part("controlled_images_dataset.json", _controlled, ("controlled_images",),
              "in What'sUp's controlled_images.tar.gz"),
    "B": Part("controlled_clevr_dataset.json", _controlled, ("controlled_clevr",),
              "in What'sUp's controlled_clevr.tar.gz"),
    "coco-one": Part("coco_qa_one_obj.json", _spatial, ("val2017",), VAL2017),
    "coco-two": Part("coco_qa_two_obj.json", _spatial, ("val2017",), VAL2017),
    "gqa-one": Part("vg_qa_one_obj.json", _spatial, ("vg_images",), GENOME),
    "gqa-two": Part("vg_qa_two_obj.json", _spatial, ("vg_images",), GENOME),
}  # fmt: skip


def whatsup(source: str | Path, total: int | None = TOTALS["whatsup"]) -> Benchmark:
    """What'sUp: where things stand, in photographs that differ in that alone (A, B; four captions)
    and in COCO's and GQA's (two captions). Tagged `subset`; the true caption first.

    The tags `pair` and `set` name the two and the four photographs of A and B that belong together,
    of which `tables` gives the authors' pair and set accuracy. Raises `DataError`.
    """
    return _load("whatsup", source, WHATSUP, total)


# --- NegBench ------------------------------------------------------------------------------------


class NegBenchRow(BaseModel):
    """One multiple-choice question of NegBench (Alhamoud et al., CVPR 2025)."""

    image_path: str
    correct_answer: Annotated[int, Field(ge=0, le=3)]
    caption_0: Caption
    caption_1: Caption
    caption_2: Caption
    caption_3: Caption
    correct_answer_template: str


def _negbench_rows(path: Path, subset: str) -> list[Choice]:
    """Of the paths, which are the authors' own, the last name counts."""
    found = read_csv(path, [*NegBenchRow.model_fields])
    return [
        Choice(f"{subset}/{index}", row.image_path.replace("\\", "/").rsplit("/", 1)[-1],
                 f"{path.name}[{index}].image_path",
                 (row.caption_0, row.caption_1, row.caption_2, row.caption_3),
                 row.correct_answer, {"template": row.correct_answer_template})
        for index, row in enumerate(check_rows(found, NegBenchRow, path.name))
    ]  # fmt: skip


_VOC = "VOC2007's, http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar"
NEGBENCH = {
    "coco": Part("COCO_val_mcq_llama3.1_rephrased.csv", _negbench_rows, ("val2017",), VAL2017),
    "voc2007": Part("VOC2007_mcq_llama3.1_rephrased.csv", _negbench_rows,
                    ("JPEGImages", "VOCdevkit/VOC2007/JPEGImages", "voc2007"), _VOC),
}  # fmt: skip


def negbench(source: str | Path, total: int | None = TOTALS["negbench"]) -> Benchmark:
    """NegBench's multiple choice on COCO (5,914) and VOC2007 (5,031): four captions with and
    without negation, tagged `subset` and `template` (positive, negative, hybrid).

    Its authors' argmax gives ties to the first caption, which is the true one in their files: a
    model that tells nothing apart would get all right. Here ties are wrong. Raises `DataError`.
    """
    return _load("negbench", source, NEGBENCH, total)
