"""SugarCrepe: seven kinds of false captions written by a model and filtered; and SugarCrepe++."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from sdslib.benchmarks import TOTALS, Benchmark, Item
from sdslib.io.hub import is_repo
from sdslib.io.paths import project_path
from sdslib.io.sources import (
    Caption,
    DataError,
    Root,
    check_rows,
    file_refs,
    read_json,
    unique_ids,
)
from sdslib.sets.origins import VAL2017, image_home, located
from sdslib.sets.packaged import packaged

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att",
              "swap_obj")  # fmt: skip


PLUS_PLUS = {  # subset -> how its file is called in the repository, and on the Hub
    "replace_obj": ("replace_obj", "replace_object"),
    "replace_att": ("replace_att", "replace_attribute"),
    "replace_rel": ("replace_rel", "replace_relation"),
    "swap_obj": ("swap_obj", "swap_object"),
    "swap_att": ("swap_att", "swap_attribute", "swap_atribute"),
}


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
    default a folder val2017 beside them); or it is a package on the Hub, which has no such tag.
    Raises `DataError` where a subset is missing.
    """
    if is_repo(str(root)):
        return packaged("sugarcrepe", str(root), total)
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
    place = project_path(images) if images else image_home(folder, "sugarcrepe", ("val2017",))
    where = Root(place, VAL2017)
    files = [(row.filename, f"{name}.json[{key}].filename") for name, key, row in rows]
    items = tuple(
        Item(f"{name}/{key}", (ref,), (row.caption, row.negative_caption), 0, tags={"subset": name})
        for (name, key, row), ref in zip(rows, file_refs(where, files), strict=True)
    )
    return Benchmark("sugarcrepe", "choice", items, total or len(items), str(root))


class PlusPlusRow(SugarCrepeRow):
    """One test case of SugarCrepe++ (Dumpala et al., NeurIPS 2024), with a second true caption."""

    id: int
    caption2: Caption


def sugarcrepe_pp(source: str | Path, total: int | None = TOTALS["sugarcrepe++"]) -> Benchmark:
    """SugarCrepe++: two true captions of other words and a false one, in this order.

    `source` holds replace_obj.json ... swap_att.json, itself or in `data/`; the images are COCO's
    val2017 beside them or in data/coco. Tagged `subset`. Scored as `metrics.both_above_false`
    says, with the image and by the texts alone. Raises `DataError` where a subset is missing.
    """
    items = list[Item]()
    for subset, names in PLUS_PLUS.items():
        patterns = [f"{folder}{name}.json" for folder in ("", "data/") for name in names]
        (path, *_) = located("sugarcrepe++", source, patterns)
        rows = check_rows(read_json(path), PlusPlusRow, path.name)
        unique_ids((row.id for row in rows), path.name)
        where = Root(image_home(path.parent, "sugarcrepe++", ("val2017",)), VAL2017)
        named = [(row.filename, f"{path.name}[{i}].filename") for i, row in enumerate(rows)]
        items += [
            Item(f"{subset}/{row.id}", (ref,), (row.caption, row.caption2, row.negative_caption),
                 tags={"subset": subset}, n_true=2)
            for row, ref in zip(rows, file_refs(where, named), strict=True)
        ]  # fmt: skip
    return Benchmark("sugarcrepe++", "triplet", tuple(items), total or len(items), str(source))
