"""Winoground, ARO, SugarCrepe, zero-shot and retrieval sets as items, in the authors' own files.

An item has images, captions and, where there is a choice, the place of the true caption. Captions
stand in the authors' order: with argmax for a strict `>` their treatment of ties comes out too.
Every set says how many items it should have; one with fewer calls itself partial.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, BeforeValidator, Field

from sdslib.config import derive_seed
from sdslib.io import storage
from sdslib.io.hub import hub_dataset, is_repo
from sdslib.io.images import ENDINGS, Box, ImageRef
from sdslib.io.paths import project_path
from sdslib.io.sources import (
    ALL_SPLITS,
    Caption,
    DataError,
    ImageCells,
    Root,
    cell_bytes,
    check_rows,
    image_columns,
    is_list,
    read_json,
    read_json_lines,
    refuse_pointer,
    unique_ids,
)
from sdslib.io.worlds import world_of
from sdslib.sets.shuffles import (
    SHUFFLES,
    Tagger,
    freeze,
    read_frozen,
    spacy_tagger,
)

TOTALS = {
    "winoground": 400,
    "aro-relation": 23_937,
    "aro-attribution": 28_748,
    "coco-order": 25_010,
    "flickr-order": 5_000,
    "sugarcrepe": 7_511,
}
SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att",
              "swap_obj")  # fmt: skip
VAL2017 = "COCO's val2017, http://images.cocodataset.org/zips/val2017.zip"
HUB_CLASSES = {
    "cifar10": ("uoft-cs/cifar10", "test", "label"),
    "cifar100": ("uoft-cs/cifar100", "test", "fine_label"),
    "imagenet": ("ILSVRC/imagenet-1k", "validation", "label"),
}
PHOTO = ("a photo of a {}.",)


@dataclass(frozen=True)
class Item:
    """One question: images, captions, which caption is true (None in a grid), and its tags.

    In a grid, caption k belongs to image k. `box` is what was cut out of the image, if anything.
    """

    id: str
    images: tuple[ImageRef, ...]
    captions: tuple[str, ...]
    answer: int | None = None
    box: Box | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """A set of items of one kind, from one source; `total` is how many the whole set has.

    Of a set of classes, an item's captions are the prompts of the first template, one a class;
    `prompts[class]` holds those of all templates.
    """

    name: str
    kind: Literal["grid", "choice", "classes", "retrieval"]
    items: tuple[Item, ...]
    total: int
    source: str
    prompts: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.items:
            raise DataError(f"{self.source}: {self.name} has no items")

    @property
    def partial(self) -> bool:
        """Whether items are missing or in excess, so that figures are not the benchmark's."""
        return len(self.items) != self.total

    @property
    def label(self) -> str:
        """The name, with `(partial: 399 of 400)` where it is."""
        count = f" (partial: {len(self.items)} of {self.total})" if self.partial else ""
        return self.name + count

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, captions, answers, tags, prompts, boxes, image names and their sizes.

        The sizes stand for the images' content, which would take minutes to read.
        """
        digest = hashlib.sha256(json.dumps([self.name, self.kind, self.prompts]).encode())
        for item in self.items:
            images = [(ref.name, ref.size, ref.box) for ref in item.images]
            row = [item.id, item.captions, item.answer, item.tags, images]
            digest.update(json.dumps(row, sort_keys=True).encode())
        return digest.hexdigest()

    def sample(self, count: int | None, seed: int = 0) -> Benchmark:
        """`count` of the items drawn at random, in their order; fewer make the set partial."""
        if count is None or count >= len(self.items):
            return self
        order = np.random.default_rng(derive_seed(seed, "sample", len(self.items)))
        chosen = sorted(order.permutation(len(self.items))[:count])
        return replace(self, items=tuple(self.items[i] for i in chosen))

    def duplicates(self) -> list[str]:
        """Ids of items with two captions that read the same (case, spaces, HTML entities aside)."""
        return [i.id for i in self.items if len({_plain(c) for c in i.captions}) < len(i.captions)]


def _plain(caption: str) -> str:
    return " ".join(html.unescape(html.unescape(caption)).casefold().split())


# --- Winoground ----------------------------------------------------------------------------------


class WinogroundRow(BaseModel):
    """The text of one Winoground item (Thrush et al., CVPR 2022)."""

    id: int
    caption_0: Caption
    caption_1: Caption
    tag: str
    secondary_tag: Annotated[str, BeforeValidator(lambda v: "" if v is None else v)] = ""
    num_main_preds: Annotated[int, Field(ge=1)]
    collapsed_tag: str


WINOGROUND_COLUMNS = ("image_0", "image_1", *WinogroundRow.model_fields)
WINOGROUND_LOCAL = (
    "a folder with data/test-*.parquet, or with examples.jsonl and images/ (for example "
    "benchmark='winoground:data/winoground')"
)
DIWAN_TAGS = "new_tag_assignments.json"


def winoground(
    source: str, split: str = "test", total: int | None = TOTALS["winoground"]
) -> Benchmark:
    """Winoground as grids of two images and two captions.

    `source` is a folder or file in one of its two layouts (parquet, or jsonl beside `images/`), a
    Hub id, or `winoground`: data/winoground if it is there, else facebook/winoground. Items are
    tagged collapsed_tag, tag, secondary_tag, num_main_preds and, where new_tag_assignments.json
    (Diwan et al., EMNLP 2022) is in the folder, diwan_tags. `total=None` takes the rows found for
    the whole. Raises `DataError` or, from the Hub, `AccessError`.
    """
    local = project_path("data/winoground" if source == "winoground" else source)
    if local.exists():
        rows, refs, home = _winoground_local(local, split)
    elif source == "winoground" or is_repo(source):
        repo = "facebook/winoground" if source == "winoground" else source
        rows, refs = _winoground_hub(repo, split)
        home = project_path("data/winoground")
    else:
        raise DataError(f"{source!r} is no Winoground: give a Hub id or {WINOGROUND_LOCAL}")
    checked = check_rows(rows, WinogroundRow, f"{Path(source).name}:{split}")
    unique_ids((row.id for row in checked), f"{Path(source).name}:{split}")
    finer = _diwan_tags(home / DIWAN_TAGS)
    items = tuple(_winoground_item(row, refs, i, finer) for i, row in enumerate(checked))
    return Benchmark("winoground", "grid", items, total or len(items), source)


def _winoground_item(
    row: WinogroundRow, refs: Callable[[int, str], ImageRef], index: int, finer: Mapping | None
) -> Item:
    names = ("collapsed_tag", "tag", "secondary_tag", "num_main_preds")
    tags = {name: str(getattr(row, name)) for name in names}
    if finer is not None:
        tags["diwan_tags"] = "|".join(finer.get(str(row.id), ()))
    images = (refs(index, "image_0"), refs(index, "image_1"))
    return Item(str(row.id), images, (row.caption_0, row.caption_1), tags=tags)


def _diwan_tags(path: Path) -> dict[str, list[str]] | None:
    if not path.is_file():
        return None
    found = read_json(path)
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(v, list) and all(isinstance(t, str) for t in v) for v in lists):
        raise DataError(f"{path.name}: expected an object of lists of tags, one an item id")
    return found


def _winoground_local(path: Path, split: str) -> tuple[list, Callable[[int, str], ImageRef], Path]:
    home = path if path.is_dir() else path.parent
    if path.is_dir():
        patterns = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.parquet",
                    "examples.json*", "data/examples.json*")  # fmt: skip
        found = next((f for p in patterns if (f := sorted(path.glob(p)))), [])
    else:
        found = [path]
    if not found:
        raise DataError(f"{path} holds no Winoground; give {WINOGROUND_LOCAL}")
    if found[0].suffix == ".parquet":
        return *_winoground_parquet(found), home
    return *_winoground_jsonl(found[0]), home


def _winoground_parquet(paths: Sequence[Path]) -> tuple[list, Callable[[int, str], ImageRef]]:
    names, images, parts = "+".join(path.name for path in paths), ["image_0", "image_1"], []
    for path in paths:
        refuse_pointer(path)
        with _as_winoground(path.name):
            parts.append(storage.read_parquet(path, WINOGROUND_COLUMNS))
    with _as_winoground(names):
        table = pa.concat_tables(parts, promote_options="permissive")
        rows = table.drop_columns(images).to_pylist()
        cells = {
            name: table[name].combine_chunks().field("bytes").cast(pa.binary()) for name in images
        }

    def ref(row: int, column: str) -> ImageRef:
        name, cell = f"{names}[{row}].{column}", cells[column][row]
        if not cell.is_valid:
            raise DataError(f"{name}: has no bytes; fetch the file again")
        return ImageRef(name, cell.as_py, size=len(cell.as_buffer()))

    return rows, ref


@contextmanager
def _as_winoground(name: str) -> Iterator[None]:
    try:
        with storage.declared():
            yield
    except (OSError, ValueError) as reason:
        raise DataError(
            f"{name} cannot be read ({reason}); expected parquet with the columns "
            f"{', '.join(WINOGROUND_COLUMNS)}"
        ) from None


def _winoground_jsonl(path: Path) -> tuple[list, Callable[[int, str], ImageRef]]:
    rows = read_json(path) if is_list(path) else read_json_lines(path)
    homes = [home for home in (path.parent, path.parent.parent) if (home / "images").is_dir()]
    if not homes:
        raise DataError(f"{path.parent / 'images'} is not a folder; put Winoground's images there")
    places = [(row, column) for row in range(len(rows)) for column in ("image_0", "image_1")]
    named = [_winoground_image(rows[row], column, f"{path.name}[{row}]") for row, column in places]
    refs = dict(zip(places, _file_refs(Root(homes[0]), named), strict=True))
    return rows, lambda row, column: refs[row, column]


def _winoground_image(row: Any, column: str, where: str) -> tuple[str, str]:
    name = row.get(column) if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise DataError(f"{where}.{column}: expected the name of an image, got {name!r}")
    ending = "" if Path(name).suffix.lower() in ENDINGS else ".png"
    return f"images/{name}{ending}", f"{where}.{column}"


def _winoground_hub(repo: str, split: str) -> tuple[list, Callable[[int, str], ImageRef]]:
    found = hub_dataset(repo, split, local=WINOGROUND_LOCAL)
    missing = set(WINOGROUND_COLUMNS) - set(found.column_names)
    if missing:
        raise DataError(f"{repo}: columns missing: {', '.join(sorted(missing))}")
    rows = found.select_columns(list(WinogroundRow.model_fields)).to_list()
    for column in ("image_0", "image_1"):
        ImageCells(found, column, repo)

    def ref(row: int, column: str) -> ImageRef:
        return ImageRef(f"{repo}[{row}].{column}", partial(cell_bytes, found, row, column))

    return rows, ref


def _file_refs(
    root: Root, names: Sequence[tuple[str, str]], boxes: Sequence[Box | None] | None = None
) -> list[ImageRef]:
    """Images by their names, each with the row that asks for it, all looked for at once."""
    paths, boxes = root.paths(names), boxes or [None] * len(names)
    return [
        ImageRef(name, path.read_bytes, box, path.stat().st_size)
        for (name, _), path, box in zip(names, paths, boxes, strict=True)
    ]


# --- ARO -----------------------------------------------------------------------------------------


class AroRow(BaseModel):
    """One test case of VG-Relation or VG-Attribution (Yuksekgonul et al., ICLR 2023)."""

    image_path: str
    bbox_x: int
    bbox_y: int
    bbox_w: Annotated[int, Field(ge=1)]
    bbox_h: Annotated[int, Field(ge=1)]
    true_caption: Caption
    false_caption: Caption


class RelationRow(AroRow):
    """VG-Relation names the relation whose two nouns are exchanged."""

    relation_name: str


class AttributionRow(AroRow):
    """VG-Attribution names the two attributes that are exchanged."""

    attributes: Annotated[list[str], Field(min_length=2, max_length=2)]


ARO_LOCAL = (
    "the folder with visual_genome_relation.json, visual_genome_attribution.json and images/ "
    "(vgr_vga_images.zip unpacked); https://github.com/mertyg/vision-language-models-are-bows "
    "says where to fetch them"
)


def aro_relation(root: str | Path, total: int | None = TOTALS["aro-relation"]) -> Benchmark:
    """VG-Relation: is it "a on b" or "b on a"? Tagged `relation`; false caption first."""
    return _aro("aro-relation", root, RelationRow, total)


def aro_attribution(root: str | Path, total: int | None = TOTALS["aro-attribution"]) -> Benchmark:
    """VG-Attribution: which attribute belongs to which noun? Tagged `attributes`, as "red_tall"."""
    return _aro("aro-attribution", root, AttributionRow, total)


def _aro(name: str, root: str | Path, model: type[AroRow], total: int | None) -> Benchmark:
    folder = project_path(root)
    path = folder / f"visual_genome_{name.removeprefix('aro-')}.json"
    if not path.is_file() or not (folder / "images").is_dir():
        raise DataError(f"{folder} holds no {path.name} with images/; give {ARO_LOCAL}")
    rows = check_rows(read_json(path), model, path.name)
    names = [(row.image_path, f"{path.name}[{i}].image_path") for i, row in enumerate(rows)]
    boxes = [(row.bbox_x, row.bbox_y, row.bbox_w, row.bbox_h) for row in rows]
    refs = _file_refs(Root(folder / "images", "in vgr_vga_images.zip"), names, boxes)
    items = tuple(_aro_item(*pair, i) for i, pair in enumerate(zip(rows, refs, strict=True)))
    return Benchmark(name, "choice", items, total or len(items), str(root))


def _aro_item(row: Any, image: ImageRef, index: int) -> Item:
    if isinstance(row, RelationRow):
        tags = {"relation": row.relation_name}
    else:
        tags = {"attributes": "_".join(row.attributes)}
    return Item(str(index), (image,), (row.false_caption, row.true_caption), 1, image.box, tags)


# --- ARO's order sets ----------------------------------------------------------------------------


class OrderRow(BaseModel):
    """One image of the Karpathy split files with its captions."""

    image: str
    caption: Annotated[list[Caption], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]


def coco_order(
    annotations: str | Path,
    images: str | Path | None = None,
    negatives: str | Path | None = None,
    tagger: Tagger | None = None,
    total: int | None = TOTALS["coco-order"],
) -> Benchmark:
    """COCO-Order: the caption among four shuffles of it, the true one first.

    `annotations` is coco_karpathy_test.json, `images` the folder its paths start from (its own by
    default). The authors shuffle anew at every load; here the negatives are made once, from seed 0
    and by `tagger` (spaCy by default), frozen in `negatives` (NAME_negatives.json beside the
    annotations by default) and checked against their hash ever after. Tagged `identity`: the
    shuffles that gave the true caption back, ties for any model. Raises `DataError`.
    """
    return _order("coco-order", annotations, images, negatives, tagger, total)


def flickr_order(
    annotations: str | Path,
    images: str | Path | None = None,
    negatives: str | Path | None = None,
    tagger: Tagger | None = None,
    total: int | None = TOTALS["flickr-order"],
) -> Benchmark:
    """Flickr30k-Order, from flickr30k_test.json; otherwise as `coco_order`."""
    return _order("flickr-order", annotations, images, negatives, tagger, total)


def _order(
    name: str,
    annotations: str | Path,
    images: str | Path | None,
    negatives: str | Path | None,
    tagger: Tagger | None,
    total: int | None,
) -> Benchmark:
    path = project_path(annotations)
    root = Root(project_path(images) if images else path.parent)
    found = read_json(path)
    if isinstance(found, dict) and "images" in found:
        raise DataError(f"{path.name}: {ALL_SPLITS}")
    rows = check_rows(found, OrderRow, path.name)
    refs = _file_refs(root, [(r.image, f"{path.name}[{i}].image") for i, r in enumerate(rows)])
    truths = {f"{i}#{k}": c for i, row in enumerate(rows) for k, c in enumerate(row.caption)}
    kept = project_path(negatives) if negatives else path.with_name(f"{path.stem}_negatives.json")
    if not kept.exists():
        freeze(truths, tagger or _spacy(kept), kept)
    options = read_frozen(kept, truths)
    items = tuple(
        Item(key, (refs[int(key.split("#")[0])],), captions, 0, tags={"identity": _same(captions)})
        for key, captions in options.items()
    )
    return Benchmark(name, "choice", items, total or len(items), str(annotations))


def _spacy(kept: Path) -> Tagger:
    try:
        return spacy_tagger()
    except DataError as reason:
        raise DataError(f"{reason}: {kept}") from None


def _same(captions: Sequence[str]) -> str:
    return "|".join(p for p, c in zip(SHUFFLES, captions[1:], strict=True) if c == captions[0])


# --- SugarCrepe ----------------------------------------------------------------------------------


class SugarCrepeRow(BaseModel):
    """One test case of SugarCrepe (Hsieh et al., NeurIPS 2023)."""

    filename: str
    caption: Caption
    negative_caption: Caption


def sugarcrepe(
    root: str | Path,
    images: str | Path | None = None,
    total: int | None = TOTALS["sugarcrepe"],
) -> Benchmark:
    """All seven subsets of SugarCrepe, tagged `subset`; the true caption first.

    `root` holds add_att.json ... swap_obj.json, itself or in `data/`; `images` is COCO val2017 (by
    default a folder val2017 beside them). Raises `DataError` where a subset is missing.
    """
    folder = project_path(root)
    home = folder if (folder / "add_att.json").is_file() else folder / "data"
    missing = [f"{name}.json" for name in SUGARCREPE if not (home / f"{name}.json").is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)} of SugarCrepe; fetch the folder data/ of "
            "https://github.com/RAIVNLab/sugar-crepe"
        )
    rows = [row for name in SUGARCREPE for row in _sugarcrepe_subset(home, name)]
    where = Root(project_path(images) if images else folder / "val2017", VAL2017)
    refs = _file_refs(
        where, [(row.filename, f"{name}.json[{key}].filename") for name, key, row in rows]
    )
    items = tuple(
        Item(f"{name}/{key}", (ref,), (row.caption, row.negative_caption), 0, tags={"subset": name})
        for (name, key, row), ref in zip(rows, refs, strict=True)
    )
    return Benchmark("sugarcrepe", "choice", items, total or len(items), str(root))


def _sugarcrepe_subset(home: Path, name: str) -> list[tuple[str, str, SugarCrepeRow]]:
    found = read_json(home / f"{name}.json")
    if not isinstance(found, dict):
        raise DataError(f"{name}.json: expected an object of rows by number, got a list")
    rows = check_rows(list(found.values()), SugarCrepeRow, f"{name}.json", list(found))
    return [(name, key, row) for key, row in zip(found, rows, strict=True)]


# --- zero-shot classification --------------------------------------------------------------------


def zero_shot(
    source: str | Path,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = PHOTO,
    split: str = "test",
    name: str = "zeroshot",
) -> Benchmark:
    """Images with class labels, to be named by prompts `template.format(class)`.

    `source` is a folder with one folder of images a class (below `split` or val, if it is there),
    cifar10, cifar100, imagenet, or the id of a Hub set with an image and a label column. `classes`
    replaces the names, in order (of the sorted folders). Tagged `class`. Raises `DataError`.
    """
    bad = [t for t in templates if t.count("{}") != 1]
    if bad or not templates:
        raise DataError(f"each prompt template needs one {{}}; got {bad or 'none'}")
    folder = project_path(source)
    if folder.is_dir():
        labels, refs, found = _class_folders(_split_of(folder, split))
    elif str(source) in HUB_CLASSES or is_repo(str(source)):
        labels, refs, found = _class_hub(str(source), split)
    else:
        raise DataError(
            f"{source!r}: no folder {folder}, and none of {', '.join(HUB_CLASSES)} or owner/name"
        )
    names = list(classes or found)
    if len(names) != len(found):
        raise DataError(f"{source}: {len(names)} class names for {len(found)} classes")
    prompts = tuple(tuple(t.format(n) for t in templates) for n in names)
    first = tuple(group[0] for group in prompts)
    items = tuple(
        Item(ref.name, (ref,), first, label, tags={"class": names[label]})
        for label, ref in zip(labels, refs, strict=True)
    )
    return Benchmark(name, "classes", items, len(items), str(source), prompts)


def _split_of(folder: Path, split: str) -> Path:
    """The folder of a split, under any of the names that are in use, or the folder itself."""
    names = (split, "val", "validation")
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _class_folders(folder: Path) -> tuple[list[int], list[ImageRef], list[str]]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{folder}: expected one folder of images a class, found {names or 'none'}")
    labels, refs, root = [], [], Root(folder)
    for label, name in enumerate(names):
        files = sorted(p.name for p in (folder / name).iterdir() if p.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(f"{folder / name}: has no images ({', '.join(sorted(ENDINGS))})")
        labels += [label] * len(files)
        refs += _file_refs(root, [(f"{name}/{file}", folder.name) for file in files])
    return labels, refs, [name.replace("_", " ") for name in names]


def _class_hub(source: str, split: str) -> tuple[list[int], list[ImageRef], list[str]]:
    repo, split, label = HUB_CLASSES.get(source, (source, split, ""))
    found = hub_dataset(repo, split, local="a folder with one folder of images a class")
    images, named = (
        image_columns(found),
        [c for c, f in found.features.items() if hasattr(f, "names")],
    )
    label = label or (named[0] if named else "")
    if len(images) != 1 or label not in named:
        raise DataError(f"{repo}: expected an image and a label column; has {found.column_names}")
    ImageCells(found, images[0], repo)
    refs = [
        ImageRef(f"{repo}[{row}]", partial(cell_bytes, found, row, images[0]))
        for row in range(len(found))
    ]
    # ImageNet's names list synonyms: "tench, Tinca tinca"
    names = [n.split(",")[0].replace("_", " ") for n in found.features[label].names]
    return list(found[label]), refs, names


# --- retrieval -----------------------------------------------------------------------------------


class HasPairs(Protocol):
    """What `retrieval` needs of `pairs.Pairs`."""

    source: str

    @property
    def ids(self) -> list[str]: ...
    def captions(self, index: int) -> tuple[str, ...]: ...
    def ref(self, index: int) -> ImageRef: ...


def retrieval(pairs: HasPairs, captions: int = 5) -> Benchmark:
    """Image-text retrieval over a whole set of pairs; the first five captions of each image count,
    as in the COCO and Flickr30k protocols."""
    items = tuple(
        Item(own, (pairs.ref(i),), pairs.captions(i)[:captions]) for i, own in enumerate(pairs.ids)
    )
    return Benchmark("retrieval", "retrieval", items, len(items), pairs.source)


# --- by name -------------------------------------------------------------------------------------


def load_benchmark(source: str, wordnet: Sequence[str] | None = None) -> Benchmark:
    """A benchmark by name: `mini:winoground`, `mini:winoground:val`, `winoground`, `cifar10`, or
    NAME:SOURCE, as `aro-relation:data/aro`, `coco-order:data/coco/coco_karpathy_test.json`.

    CIFAR and ImageNet are read from the folder `data/NAME` where there is one, else from the Hub;
    `wordnet` names the classes of a folder whose 1,000 folders are WordNet ids. Raises `DataError`
    for an unknown name, with those that there are.
    """
    name, _, rest = source.partition(":")
    if world := world_of(name):
        return world.benchmark(source)
    if name in HUB_CLASSES:
        folder = f"data/{name}"
        source = rest or (folder if project_path(folder).is_dir() else name)
        return zero_shot(source, wordnet if _is_wordnet(source) else None, name=name)
    if name not in LOADERS:
        known = ", ".join([*LOADERS, *HUB_CLASSES])
        raise DataError(f"no benchmark {name!r}; there are {known}, and mini:NAME")
    load, default = LOADERS[name]
    return load(rest or default)


def _is_wordnet(source: str) -> bool:
    """Whether the classes' folders are named by WordNet ids, as ImageNet's are."""
    folder = _split_of(project_path(source), "test")
    return folder.is_dir() and len([*folder.glob("n" + "[0-9]" * 8)]) == 1000


LOADERS: dict[str, tuple[Callable[[str], Benchmark], str]] = {
    "winoground": (winoground, "winoground"),
    "aro-relation": (aro_relation, "data/aro"),
    "aro-attribution": (aro_attribution, "data/aro"),
    "coco-order": (coco_order, "data/coco/coco_karpathy_test.json"),
    "flickr-order": (flickr_order, "data/flickr30k/flickr30k_test.json"),
    "sugarcrepe": (sugarcrepe, "data/sugarcrepe"),
    "zeroshot": (zero_shot, "data/zeroshot"),
}
