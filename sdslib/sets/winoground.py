"""Winoground, from the authors' files, their folder, or the Hub."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from sdslib.benchmarks import TOTALS, Benchmark, Item
from sdslib.io.hub import hub_dataset, is_repo
from sdslib.io.images import ENDINGS, ImageRef
from sdslib.io.paths import project_path
from sdslib.io.sources import (
    Caption,
    DataError,
    ImageCells,
    Root,
    cell_bytes,
    check_rows,
    file_refs,
    is_list,
    read_json,
    read_json_lines,
    unique_ids,
)
from sdslib.sets.image_tables import Ref, image_table


class WinogroundRow(BaseModel):
    """The text of one Winoground item (Thrush et al., CVPR 2022)."""

    id: int
    caption_0: Caption
    caption_1: Caption
    tag: str
    secondary_tag: Annotated[str, BeforeValidator(lambda v: "" if v is None else v)] = ""
    num_main_preds: Annotated[int, Field(ge=1)]
    collapsed_tag: str


IMAGES = ("image_0", "image_1")
WINOGROUND_COLUMNS = (*IMAGES, *WinogroundRow.model_fields)
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
        rows, ref = _from_files(local, split)
        home = local if local.is_dir() else local.parent
    elif source == "winoground" or is_repo(source):
        repo = "facebook/winoground" if source == "winoground" else source
        rows, ref = _from_hub(repo, split)
        home = project_path("data/winoground")
    else:
        raise DataError(f"{source!r} is no Winoground: give a Hub id or {WINOGROUND_LOCAL}")
    checked = check_rows(rows, WinogroundRow, f"{Path(source).name}:{split}")
    unique_ids((row.id for row in checked), f"{Path(source).name}:{split}")
    finer, items = _diwan_tags(home / DIWAN_TAGS), []
    for index, row in enumerate(checked):
        names = ("collapsed_tag", "tag", "secondary_tag", "num_main_preds")
        tags = {name: str(getattr(row, name)) for name in names}
        if finer is not None:
            tags["diwan_tags"] = "|".join(finer.get(str(row.id), ()))
        images = tuple(ref(index, column) for column in IMAGES)
        items.append(Item(str(row.id), images, (row.caption_0, row.caption_1), tags=tags))
    return Benchmark("winoground", "grid", tuple(items), total or len(items), source)


def _diwan_tags(path: Path) -> dict[str, list[str]] | None:
    if not path.is_file():
        return None
    found = read_json(path)
    lists = found.values() if isinstance(found, dict) else [None]
    if not all(isinstance(v, list) and all(isinstance(t, str) for t in v) for v in lists):
        raise DataError(f"{path.name}: expected an object of lists of tags, one an item id")
    return found


def _from_files(path: Path, split: str) -> tuple[list, Ref]:
    found = [path]
    if path.is_dir():
        patterns = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}.parquet",
                    "examples.json*", "data/examples.json*")  # fmt: skip
        found = next((f for p in patterns if (f := sorted(path.glob(p)))), [])
    if not found:
        raise DataError(f"{path} holds no Winoground; give {WINOGROUND_LOCAL}")
    if found[0].suffix == ".parquet":
        return image_table(found, [*WinogroundRow.model_fields], IMAGES)
    return _from_jsonl(found[0])


def _from_jsonl(path: Path) -> tuple[list, Ref]:
    rows, named = read_json(path) if is_list(path) else read_json_lines(path), []
    homes = [home for home in (path.parent, path.parent.parent) if (home / "images").is_dir()]
    if not homes:
        raise DataError(f"{path.parent / 'images'} is not a folder; put Winoground's images there")
    places = [*itertools.product(range(len(rows)), IMAGES)]
    for row, column in places:
        where = f"{path.name}[{row}].{column}"
        name = rows[row].get(column) if isinstance(rows[row], dict) else None
        if not isinstance(name, str):
            raise DataError(f"{where}: expected the name of an image, got {name!r}")
        ending = "" if Path(name).suffix.lower() in ENDINGS else ".png"
        named.append((f"images/{name}{ending}", where))
    refs = dict(zip(places, file_refs(Root(homes[0]), named), strict=True))
    return rows, lambda row, column: refs[row, column]


def _from_hub(repo: str, split: str) -> tuple[list, Ref]:
    found = hub_dataset(repo, split, local=WINOGROUND_LOCAL)
    if missing := set(WINOGROUND_COLUMNS) - set(found.column_names):
        raise DataError(f"{repo}: columns missing: {', '.join(sorted(missing))}")
    rows = found.select_columns(list(WinogroundRow.model_fields)).to_list()
    for column in IMAGES:
        ImageCells(found, column, repo)

    def ref(row: int, column: str) -> ImageRef:
        return ImageRef(f"{repo}[{row}].{column}", partial(cell_bytes, found, row, column))

    return rows, ref
