"""ARO's four sets: relations and attributes of Visual Genome, and captions out of order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from sdslib.benchmarks import TOTALS, Benchmark, Item
from sdslib.io.hub import is_repo
from sdslib.io.paths import project_path
from sdslib.io.sources import (
    ALL_SPLITS,
    Caption,
    DataError,
    Root,
    check_rows,
    file_refs,
    read_json,
)
from sdslib.sets.packaged import packaged
from sdslib.sets.pair_files import KarpathyRow
from sdslib.sets.shuffles import Tagger, freeze, read_frozen, spacy_tagger, unchanged


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

    @property
    def tags(self) -> dict[str, str]:
        return {"relation": self.relation_name}


class AttributionRow(AroRow):
    """VG-Attribution names the two attributes that are exchanged."""

    attributes: Annotated[list[str], Field(min_length=2, max_length=2)]

    @property
    def tags(self) -> dict[str, str]:
        return {"attributes": "_".join(self.attributes)}


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


def _aro(
    name: str, root: str | Path, model: type[RelationRow | AttributionRow], total: int | None
) -> Benchmark:
    if is_repo(str(root)):
        return packaged(name, str(root), total)
    folder = project_path(root)
    path = folder / f"visual_genome_{name.removeprefix('aro-')}.json"
    if not path.is_file() or not (folder / "images").is_dir():
        raise DataError(f"{folder} holds no {path.name} with images/; give {ARO_LOCAL}")
    rows = check_rows(read_json(path), model, path.name)
    names = [(row.image_path, f"{path.name}[{i}].image_path") for i, row in enumerate(rows)]
    boxes = [(row.bbox_x, row.bbox_y, row.bbox_w, row.bbox_h) for row in rows]
    refs = file_refs(Root(folder / "images", "in vgr_vga_images.zip"), names, boxes)
    items = tuple(
        Item(str(i), (ref,), (row.false_caption, row.true_caption), 1, ref.box, row.tags)
        for i, (row, ref) in enumerate(zip(rows, refs, strict=True))
    )
    return Benchmark(name, "choice", items, total or len(items), str(root))


def coco_order(
    annotations: str | Path,
    images: str | Path | None = None,
    negatives: str | Path | None = None,
    tagger: Tagger | None = None,
    total: int | None = TOTALS["coco-order"],
) -> Benchmark:
    """COCO-Order: the caption among four shuffles of it, the true one first.

    `annotations` is coco_karpathy_test.json, `images` the folder its paths start from (its own by
    default); or it is a package on the Hub. The authors shuffle anew at every load; the negatives
    of a package are what its makers drew, here they are made once, from seed 0 and by `tagger`
    (spaCy by default), frozen in `negatives` (NAME_negatives.json beside the annotations by
    default) and checked against their hash ever after. Tagged `identity`: the shuffles that gave
    the true caption back, ties for any model. Raises `DataError`.
    """
    if is_repo(str(annotations)):
        return packaged("coco-order", str(annotations), total)
    path = project_path(annotations)
    root = Root(project_path(images) if images else path.parent)
    found = read_json(path)
    if isinstance(found, dict) and "images" in found:
        raise DataError(f"{path.name}: {ALL_SPLITS}")
    rows = check_rows(found, KarpathyRow, path.name)
    refs = file_refs(root, [(r.image, f"{path.name}[{i}].image") for i, r in enumerate(rows)])
    truths = {f"{i}#{k}": c for i, row in enumerate(rows) for k, c in enumerate(row.caption)}
    kept = project_path(negatives) if negatives else path.with_name(f"{path.stem}_negatives.json")
    if not kept.exists():
        freeze(truths, tagger or spacy_tagger(kept), kept)
    options = read_frozen(kept, truths)
    items = tuple(
        Item(
            key,
            (refs[int(key.split("#")[0])],),
            captions,
            0,
            tags={"identity": unchanged(captions)},
        )
        for key, captions in options.items()
    )
    return Benchmark("coco-order", "choice", items, total or len(items), str(annotations))


def flickr_order(
    annotations: str | Path,
    images: str | Path | None = None,
    negatives: str | Path | None = None,
    tagger: Tagger | None = None,
    total: int | None = TOTALS["flickr-order"],
) -> Benchmark:
    """Flickr30k-Order, from flickr30k_test.json; otherwise as `coco_order`."""
    found = coco_order(annotations, images, negatives, tagger, total)
    return replace(found, name="flickr-order")
