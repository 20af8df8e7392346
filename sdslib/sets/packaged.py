"""ARO and SugarCrepe as mteb packages them on the Hub: images inside, ARO's shuffles frozen."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field

from sdslib.benchmarks import Benchmark, Item
from sdslib.io.hub import hub_dataset
from sdslib.io.images import Box, ImageRef
from sdslib.io.sources import Caption, DataError, ImageCells, cell_bytes, check_rows
from sdslib.sets.shuffles import unchanged


class Package(NamedTuple):
    """Which columns of a package are what; captions in the order of the authors' own loader."""

    image: str
    captions: tuple[str, ...]
    answer: int = 0
    tag: tuple[str, str] = ("", "")  # its name here, and the column
    split: str = "test"


_FALSE_FIRST = ("false_caption", "true_caption")
_ORDER = Package("images", ("correct_caption", *(f"hard_text_{n}" for n in range(1, 5))))
PACKAGES = {
    "aro-relation": Package("image", _FALSE_FIRST, 1, ("relation", "relation_name")),
    "aro-attribution": Package("image", _FALSE_FIRST, 1, ("attributes", "attributes")),
    "coco-order": _ORDER,
    "flickr-order": _ORDER,
    "sugarcrepe": Package("images", ("caption", "negative_caption"), split="train"),
}


class Rectangle(BaseModel):
    """What ARO cuts out of an image, in pixels."""

    x: float
    y: float
    w: Annotated[float, Field(ge=1)]
    h: Annotated[float, Field(ge=1)]

    @property
    def box(self) -> Box:
        return int(self.x), int(self.y), int(self.w), int(self.h)


class PackagedRow(BaseModel):
    """One row, its captions together."""

    captions: list[Caption]
    tag: str | list[str] | None = None
    bbox: Rectangle | None = None


def packaged(name: str, repo: str, total: int | None) -> Benchmark:
    """A set of `PACKAGES` from `owner/name` or `owner/name@REVISION` of the Hub.

    Items in the package's order, ARO's images cut as their rows say; SugarCrepe's package does not
    say which of its seven kinds a row is of. Raises `DataError`, or `AccessError` of the Hub.
    """
    package = PACKAGES[name]
    found = hub_dataset(repo, package.split, local="the authors' files")
    if missing := {package.image, *package.captions} - {*found.column_names}:
        raise DataError(f"{repo}: columns missing: {', '.join(sorted(missing))}; it is no {name}")
    sizes = ImageCells(found, package.image, repo).sizes
    rows = check_rows(_texts(found, package), PackagedRow, repo)
    items = []
    for index, row in enumerate(rows):
        read = partial(cell_bytes, found, index, package.image)
        box = row.bbox.box if row.bbox else None
        ref = ImageRef(f"{repo}[{index}].{package.image}", read, box, sizes[index])
        tags = _tags(row, package)
        items.append(Item(str(index), (ref,), tuple(row.captions), package.answer, box, tags))
    return Benchmark(name, "choice", tuple(items), total or len(items), repo)


def _texts(found: Any, package: Package) -> list[dict[str, Any]]:
    wanted = {*package.captions, package.tag[1], "bbox"}
    rows = found.select_columns([c for c in found.column_names if c in wanted]).to_list()
    return [
        {"captions": [row[c] for c in package.captions], "tag": row.get(package.tag[1]),
         "bbox": row.get("bbox")}
        for row in rows
    ]  # fmt: skip


def _tags(row: PackagedRow, package: Package) -> dict[str, str]:
    if package is _ORDER:
        return {"identity": unchanged(row.captions)}
    value = row.tag if isinstance(row.tag, str) else "_".join(row.tag or ())
    return {package.tag[0]: value} if value else {}
