"""Writes the photographs and their captions as the real sets' authors lay theirs out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps
from tiny import png, write_json

from realworld.questions import (
    ATTRIBUTIONS,
    CLASSES,
    GRIDS,
    LEXICON,
    MIRRORED,
    RELATIONS,
    SUGARCREPE,
)
from sdslib.sets import shuffles

HERE = Path(__file__).parent
PHOTOGRAPHS = HERE / "photographs"
CAPTIONS: dict[str, list[str]] = json.loads((HERE / "captions.json").read_text())
FIRST_VAL = "000000391895"
SPLITS = {
    "train": [name for name in CAPTIONS if name < FIRST_VAL],
    "val": [name for name in CAPTIONS if name >= FIRST_VAL],
}


def coco(folder: Path) -> Path:
    """COCO 2017: annotations/captions_*.json beside train2017/ and val2017/."""
    for split, names in SPLITS.items():
        _copy(names, folder / f"{split}2017")
        images = [_coco_image(name, split) for name in names]
        notes = [
            {"image_id": int(name), "id": 5 * i + k + 1, "caption": caption}
            for i, name in enumerate(names)
            for k, caption in enumerate(CAPTIONS[name])
        ]
        info = {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017,
                "contributor": "COCO Consortium", "date_created": "2017/09/01"}  # fmt: skip
        document = {
            "info": info,
            "licenses": [{"id": 7, "name": "No known copyright restrictions", "url": ""}],
            "images": images,
            "annotations": notes[::-1],  # theirs are in no order of images either
        }
        write_json(folder / "annotations" / f"captions_{split}2017.json", document)
    return folder


def coco_crops(folder: Path) -> Path:
    """120 pairs in COCO's layout: six parts of each training photograph, with its captions."""
    home, images, notes = folder / "train2017", [], []
    home.mkdir(parents=True)
    for name in SPLITS["train"]:
        whole = _photograph(name)
        for k in range(6):
            own, x, y = 10 * int(name) + k, (k % 3) * whole.width // 6, (k // 3) * whole.height // 4
            part = whole.crop((x, y, x + 2 * whole.width // 3, y + 3 * whole.height // 4))
            part.save(home / f"{own:012d}.jpg")
            images.append({"id": own, "file_name": f"{own:012d}.jpg"})
            notes += [
                {"image_id": own, "id": len(notes) + i, "caption": caption}
                for i, caption in enumerate(CAPTIONS[name])
            ]
    document = {"info": {}, "licenses": [], "images": images, "annotations": notes}
    write_json(folder / "annotations" / "captions_train2017.json", document)
    return folder


def _coco_image(name: str, split: str) -> dict:
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as image:
        width, height = image.size
    return {
        "license": 7,
        "file_name": f"{name}.jpg",
        "coco_url": f"http://images.cocodataset.org/{split}2017/{name}.jpg",
        "height": height,
        "width": width,
        "date_captured": "2013-11-14 17:02:52",
        "flickr_url": "",
        "id": int(name),
    }


def karpathy(folder: Path) -> Path:
    """coco_karpathy_train.json: a row a caption, paths from `folder` into train2014/."""
    _copy(SPLITS["train"], folder / "train2014", "COCO_train2014_")
    rows = []
    for name in SPLITS["train"]:
        own = {"image": f"train2014/COCO_train2014_{name}.jpg", "image_id": f"coco_{int(name)}"}
        rows += [{"caption": caption} | own for caption in CAPTIONS[name]]
    return write_json(folder / "coco_karpathy_train.json", rows)


def coco_order(folder: Path) -> Path:
    """coco_karpathy_test.json, a row an image, and its frozen negatives, by word lists of nouns."""
    _copy(SPLITS["val"], folder / "val2014", "COCO_val2014_")
    rows = [
        {"image": f"val2014/COCO_val2014_{name}.jpg", "caption": CAPTIONS[name]}
        for name in SPLITS["val"]
    ]
    path = write_json(folder / "coco_karpathy_test.json", rows)
    truths = {f"{i}#{k}": c for i, row in enumerate(rows) for k, c in enumerate(row["caption"])}
    tagger = shuffles.lexicon_tagger(*LEXICON)
    shuffles.freeze(truths, tagger, path.with_name("coco_karpathy_test_negatives.json"))
    return path


def winoground_parquet(folder: Path) -> Path:
    """The one parquet file of the Hub's repository, its images as structs of bytes and path."""
    rows = []
    for row, images in _grids():
        cells = {
            f"image_{k}": {"bytes": png(image), "path": f"ex_{row['id']}_img_{k}.png"}
            for k, image in enumerate(images)
        }
        rows.append(row | cells)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = [(name, pa.string()) for name in ("caption_0", "caption_1", "tag", "secondary_tag")]
    schema = pa.schema([
        ("id", pa.int32()), ("image_0", image), ("image_1", image), *texts,
        ("num_main_preds", pa.int32()), ("collapsed_tag", pa.string()),
    ])  # fmt: skip
    path = folder / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def winoground_jsonl(folder: Path) -> Path:
    """examples.jsonl beside images/, whose names stand there without their ending."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for row, images in _grids():
        names = {f"image_{k}": f"ex_{row['id']}_img_{k}" for k in range(2)}
        for name, image in zip(names.values(), images, strict=True):
            (folder / "images" / f"{name}.png").write_bytes(png(image))
        lines.append(json.dumps(row | names))
    (folder / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _grids() -> Iterator[tuple[dict, tuple[Image.Image, Image.Image]]]:
    """Photographs with their mirror images, then two photographs stacked both ways."""
    pictures = [(image := _photograph(name), ImageOps.mirror(image)) for name, *_ in MIRRORED]
    texts = [row[1:] for row in MIRRORED]
    for upper, lower, *text in GRIDS:
        parts = _photograph(upper), _photograph(lower)
        pictures.append((_stacked(*parts), _stacked(*parts[::-1])))
        texts.append(tuple(text))
    keys = ("caption_0", "caption_1", "tag", "secondary_tag", "num_main_preds", "collapsed_tag")
    for i, (pair, text) in enumerate(zip(pictures, texts, strict=True)):
        yield {"id": i} | dict(zip(keys, text, strict=True)), pair


def _photograph(name: str) -> Image.Image:
    with Image.open(PHOTOGRAPHS / f"{name}.jpg") as image:
        return ImageOps.contain(ImageOps.exif_transpose(image).convert("RGB"), (128, 128))


def _stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    page = Image.new("RGB", (128, upper.height + lower.height))
    page.paste(upper, (0, 0))
    page.paste(lower, (0, upper.height))
    return page


def aro(folder: Path) -> Path:
    """visual_genome_*.json over images/ of Visual Genome's names; boxes in pixels as stored."""
    for kind, rows in (("relation", RELATIONS), ("attribution", ATTRIBUTIONS)):
        write_json(folder / f"visual_genome_{kind}.json", [_aro_row(kind, row) for row in rows])
    for name in {row[0] for row in [*RELATIONS, *ATTRIBUTIONS]}:
        _copy([name], folder / "images", as_name=_visual_genome(name))
    return folder


def _visual_genome(name: str) -> str:
    return f"{2_315_000 + int(name) % 100_000}.jpg"


def _aro_row(kind: str, row: tuple) -> dict:
    name, box, (a, b), what = row
    own = _visual_genome(name)
    if kind == "relation":
        said = {"relation_name": what}
        true, false = f"the {a} is {what} the {b}", f"the {b} is {what} the {a}"
    else:
        said, (x, y) = {"attributes": list(what)}, what
        true, false = f"the {x} {a} and the {y} {b}", f"the {y} {a} and the {x} {b}"
    said |= dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), box, strict=True))
    said |= {"image_id": own.removesuffix(".jpg"), "image_path": own}
    captions = {"true_caption": true, "false_caption": false}
    return said | {"obj1_name": a, "obj2_name": b} | captions


def sugarcrepe(folder: Path) -> Path:
    """Seven files, each an object of rows by number, beside val2017/."""
    _copy(SPLITS["val"], folder / "val2017")
    for subset, rows in SUGARCREPE.items():
        found = {
            str(i): {"filename": f"{name}.jpg", "caption": true, "negative_caption": false}
            for i, (name, true, false) in enumerate(rows)
        }
        write_json(folder / f"{subset}.json", found)
    return folder


def class_folders(folder: Path) -> Path:
    """test/CLASS/photograph, in JPEG, PNG and WebP."""
    for own, files in CLASSES.items():
        (folder / "test" / own).mkdir(parents=True)
        for file in files:
            shutil.copyfile(PHOTOGRAPHS / file, folder / "test" / own / file)
    return folder


def _copy(names: list[str], folder: Path, prefix: str = "", as_name: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        own = as_name or f"{prefix}{name}.jpg"
        shutil.copyfile(PHOTOGRAPHS / f"{name}.jpg", folder / own)
