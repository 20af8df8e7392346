"""Sets of two images and two captions beside Winoground: MMVP-VLM, BiVLC, ColorSwap, Cola, VisMin.

Image k belongs to caption k, and the outcomes are Winoground's text, image and group
(`metrics.winoground_correct`). BiVLC's authors call text I2T and image T2I; MMVP-VLM's and Cola's
give image alone, which one gets right who finds the image of each caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, Field, RootModel

from sdslib.benchmarks import TOTALS, Benchmark, Item
from sdslib.io.hub import is_repo
from sdslib.io.images import ImageRef
from sdslib.io.sources import (
    Caption,
    DataError,
    Root,
    check_rows,
    file_refs,
    read_csv,
    read_json,
    unique_ids,
)
from sdslib.sets.image_tables import image_table
from sdslib.sets.origins import ORIGINS, image_home, located


class BivlcRow(BaseModel):
    """The text of one instance of BiVLC (Miranda et al., NeurIPS 2024), which has no id."""

    caption: Caption
    negative_caption: Caption
    type: str
    subtype: str


class ColorSwapRow(BaseModel):
    """The text of one example of ColorSwap (Burapacheep et al., ACL Findings 2024)."""

    id: int
    caption_1: Caption
    caption_2: Caption
    image_source: str
    caption_source: str


class VisMinRow(BaseModel):
    """The text of one sample of VisMin (Awal et al., NeurIPS 2024)."""

    id: int | str
    text_0: Caption
    text_1: Caption
    category: str


class Layout(NamedTuple):
    """Which columns of a set are what, and the files that hold them; those found first count."""

    row: type[BaseModel]
    images: tuple[str, str]
    captions: tuple[str, str]
    tags: tuple[str, ...]
    files: tuple[str, ...]


LAYOUTS = {
    "bivlc": Layout(
        BivlcRow, ("image", "negative_image"), ("caption", "negative_caption"), ("type", "subtype"),
        ("data/test-*.parquet", "test-*.parquet"),
    ),
    "colorswap": Layout(
        ColorSwapRow, ("image_1", "image_2"), ("caption_1", "caption_2"),
        ("image_source", "caption_source"),
        ("data/test-*.parquet", "test-*.parquet", "data/test.json", "test.json"),
    ),
    "vismin": Layout(
        VisMinRow, ("image_0", "image_1"), ("text_0", "text_1"), ("category",),
        ("data/test/data-*.arrow", "test/data-*.arrow", "data-*.arrow", "data/test-*.parquet"),
    ),
}  # fmt: skip


def bivlc(source: str | Path, total: int | None = TOTALS["bivlc"]) -> Benchmark:
    """BiVLC, from its parquet files: COCO's image and caption, and SugarCrepe's false caption with
    an image made of it. Tagged type and subtype; raises `DataError`."""
    return _from_layout("bivlc", source, total)


def colorswap(source: str | Path, total: int | None = TOTALS["colorswap"]) -> Benchmark:
    """ColorSwap's test split, from parquet or from test.json beside images/: the words of both
    captions are the same, their colors exchanged. Raises `DataError`."""
    return _from_layout("colorswap", source, total)


def vismin(source: str | Path, total: int | None = TOTALS["vismin"]) -> Benchmark:
    """VisMin's benchmark, from its arrow files: one object, attribute, count or place changed.

    Tagged category, by which its authors tell the figures. Raises `DataError`.
    """
    return _from_layout("vismin", source, total)


def _from_layout(name: str, source: str | Path, total: int | None) -> Benchmark:
    layout = LAYOUTS[name]
    files = located(name, source, layout.files)
    if files[0].suffix == ".json":
        rows, ref = _named_images(files[0], layout)
    else:
        rows, ref = image_table(files, [*layout.row.model_fields], layout.images)
    told = "+".join(file.name for file in files)
    checked = check_rows(rows, layout.row, told)
    ids = [str(getattr(row, "id", index)) for index, row in enumerate(checked)]
    unique_ids(ids, told)
    items = [
        Item(
            ids[index],
            tuple(ref(index, column) for column in layout.images),
            tuple(getattr(row, caption) for caption in layout.captions),
            tags={tag: getattr(row, tag) for tag in layout.tags},
        )
        for index, row in enumerate(checked)
    ]
    return Benchmark(name, "grid", tuple(items), total or len(items), str(source))


def _named_images(path: Path, layout: Layout) -> tuple[Any, Callable[[int, str], ImageRef]]:
    """The rows of a JSON list, whose images are files named beside it."""
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path.name}: expected a list of objects")
    places = [(index, column) for index in range(len(rows)) for column in layout.images]
    named = []
    for index, column in places:
        image, where = rows[index].get(column), f"{path.name}[{index}].{column}"
        if not isinstance(image, str):
            raise DataError(f"{where}: expected the name of an image, got {image!r}")
        named.append((image, where))
    refs = dict(zip(places, file_refs(Root(path.parent), named), strict=True))
    return rows, lambda index, column: refs[index, column]


# --- MMVP-VLM ------------------------------------------------------------------------------------


class MmvpRow(BaseModel):
    """One question of MMVP-VLM (Tong et al., CVPR 2024); 2k - 1 and 2k are a pair."""

    id: Annotated[int, Field(alias="Question ID", ge=1)]
    pattern: Annotated[str, Field(alias="Type")]
    statement: Annotated[Caption, Field(alias="Statement")]


HUB_OF_MMVP = "MMVP-VLM's, https://huggingface.co/datasets/MMVP/MMVP_VLM"
MMVP_IMAGES = ("MLLM_VLM Images", "MMVP_VLM_Images", "MLLM_VLM_Images")


def mmvp(source: str | Path, total: int | None = TOTALS["mmvp"]) -> Benchmark:
    """MMVP-VLM: pairs of images that CLIP takes for one another, tagged by visual `pattern`.

    `source` holds Questions.csv beside the folder of images, one folder a pattern. Captions are
    "a photo of " and the statement, as in the authors' evaluation. Raises `DataError`.
    """
    (path, *_) = located("mmvp", source, ["Questions.csv", "*/[0-9]*.jpg"])
    home = path.parent
    fields = [str(field.alias) for field in MmvpRow.model_fields.values()]
    rows = check_rows(read_csv(path, fields), MmvpRow, "Questions.csv")
    unique_ids((row.id for row in rows), "Questions.csv")
    rows.sort(key=lambda row: row.id)
    if len(rows) % 2:
        raise DataError(f"Questions.csv: {len(rows)} questions make no pairs; fetch it again")
    pairs = [*zip(rows[::2], rows[1::2], strict=True)]
    for first, second in pairs:
        if second.id != first.id + 1 or first.id % 2 == 0 or first.pattern != second.pattern:
            raise DataError(
                f"Questions.csv: questions {first.id} ({first.pattern}) and {second.id} "
                f"({second.pattern}) are no pair; fetch it again"
            )
    # a snapshot of the Hub's cache holds links to `blobs` above it
    store = home.parent.parent / "blobs" if is_repo(str(source)) else None
    root = Root(image_home(home, "mmvp", MMVP_IMAGES), HUB_OF_MMVP, store)
    refs = file_refs(root, [(f"{row.pattern}/{row.id}.jpg", f"Questions.csv, question {row.id}")
                            for row in rows])  # fmt: skip
    items = tuple(
        Item(f"{first.id}-{second.id}", tuple(refs[2 * k : 2 * k + 2]),
             (f"a photo of {first.statement}", f"a photo of {second.statement}"),
             tags={"pattern": first.pattern})
        for k, (first, second) in enumerate(pairs)
    )  # fmt: skip
    return Benchmark("mmvp", "grid", items, total or len(items), str(source))


# --- Cola ----------------------------------------------------------------------------------------


class ColaRow(RootModel[tuple[str, Caption, str, Caption]]):
    """One row of Cola's multi-object matching (Ray et al., NeurIPS 2023): image, caption, twice."""


def cola(source: str | Path, total: int | None = TOTALS["cola"]) -> Benchmark:
    """Cola's multi-object setting: attributes and objects that change places.

    `source` is the folder with COLA_multiobjects_matching_benchmark.json; the images, which it
    names by their addresses, lie in images/ or vg_gqa_images/ beside it. Raises `DataError`.
    """
    name = "COLA_multiobjects_matching_benchmark.json"
    (path, *_) = located("cola", source, [name, f"data/{name}"])
    rows = [row.root for row in check_rows(read_json(path), ColaRow, path.name)]
    folder = image_home(path.parent, "cola", ("images", "vg_gqa_images"))
    root = Root(folder, ORIGINS["cola"].images)
    named = [
        (row[column].rsplit("/", 1)[-1], f"{path.name}[{index}][{column}]")
        for index, row in enumerate(rows)
        for column in (0, 2)
    ]
    refs: Sequence[ImageRef] = file_refs(root, named)
    items = tuple(
        Item(str(k), tuple(refs[2 * k : 2 * k + 2]), (row[1], row[3])) for k, row in enumerate(rows)
    )
    return Benchmark("cola", "grid", items, total or len(items), str(source))
