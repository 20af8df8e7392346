"""SugarCrepe: seven kinds of false captions written by a model and filtered."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from sdslib.benchmarks import TOTALS, Benchmark, Item
from sdslib.io.paths import project_path
from sdslib.io.sources import Caption, DataError, Root, check_rows, file_refs, read_json
from sdslib.sets.origins import VAL2017

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att",
              "swap_obj")  # fmt: skip


class SugarCrepeRow(BaseModel):
    """One test case of SugarCrepe (Hsieh et al., NeurIPS 2023)."""

    filename: str
    caption: Caption
    negative_caption: Caption


def sugarcrepe(
    root: str | Path, images: str | Path | None = None, total: int | None = TOTALS["sugarcrepe"]
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
    rows: list[tuple[str, str, SugarCrepeRow]] = []
    for name in SUGARCREPE:
        found = read_json(home / f"{name}.json")
        if not isinstance(found, dict):
            raise DataError(f"{name}.json: expected an object of rows by number, got a list")
        checked = check_rows(list(found.values()), SugarCrepeRow, f"{name}.json", list(found))
        rows += [(name, *pair) for pair in zip(found, checked, strict=True)]
    where = Root(project_path(images) if images else folder / "val2017", VAL2017)
    files = [(row.filename, f"{name}.json[{key}].filename") for name, key, row in rows]
    items = tuple(
        Item(f"{name}/{key}", (ref,), (row.caption, row.negative_caption), 0, tags={"subset": name})
        for (name, key, row), ref in zip(rows, file_refs(where, files), strict=True)
    )
    return Benchmark("sugarcrepe", "choice", items, total or len(items), str(root))
