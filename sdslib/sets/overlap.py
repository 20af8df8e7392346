"""Training images that a test set holds: told by COCO's ids, reported, and left out on request.

The file names of COCO, COCO-Order and SugarCrepe tell the id. ARO's and Cola's images are Visual
Genome's, whose image_data.json says which of them are COCO's. Of a picture without an id nothing
is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from sdslib.benchmarks import Benchmark
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError, check_rows, coco_id, read_json
from sdslib.pairs import Pairs

OF_VISUAL_GENOME = ("aro-relation", "aro-attribution", "cola")


class VgImage(BaseModel):
    """One entry of Visual Genome's image_data.json, part of which comes from COCO."""

    image_id: int
    coco_id: int | None


class Shared(NamedTuple):
    """What one test set has in common with the training images.

    `known` of its `images` have a COCO id; `shared` of those are training images too, None where
    no id is known on one of the two sides.
    """

    set: str
    images: int
    known: int
    shared: int | None


def coco_ids(benchmark: Benchmark, vg_image_data: str | Path | None = None) -> set[str]:
    """The COCO ids of a benchmark's images.

    Raises `DataError` for ARO and Cola where Visual Genome's image_data.json is absent.
    """
    names = {ref.name for item in benchmark.items for ref in item.images}
    if benchmark.name not in OF_VISUAL_GENOME:
        return {found for name in names if (found := coco_id(name))}
    if vg_image_data is None or not project_path(vg_image_data).is_file():
        raise DataError(
            f"{benchmark.name}: Visual Genome's image_data.json says which images are COCO's; "
            "fetch image_data.json.zip from https://homes.cs.washington.edu/~ranjay/visualgenome "
            "and name the file in vg_image_data"
        )
    path = project_path(vg_image_data)
    rows = check_rows(read_json(path), VgImage, path.name)
    known = {str(row.image_id): str(row.coco_id) for row in rows if row.coco_id is not None}
    return {known[stem] for name in names if (stem := Path(name).stem) in known}


def shared(
    pairs: Pairs, sets: Iterable[Benchmark], vg_image_data: str | Path | None = None
) -> list[Shared]:
    """One row a set; raises what `coco_ids` raises."""
    trained, rows = set[str]().union(*pairs.coco_ids), []
    for benchmark in sets:
        images = len({ref.name for item in benchmark.items for ref in item.images})
        held = coco_ids(benchmark, vg_image_data)
        common = len(held & trained) if held and trained else None
        rows.append(Shared(benchmark.name, images, len(held), common))
    return rows


def without(
    pairs: Pairs, sets: Sequence[Benchmark], vg_image_data: str | Path | None = None
) -> Pairs:
    """The pairs whose image none of the sets holds.

    Raises what `coco_ids` raises, and `DataError` where no training image has a COCO id: nothing
    could be left out, and that would look as if nothing had to be.
    """
    own = pairs.coco_ids
    if not any(own):
        raise DataError(
            f"{pairs.source}: the file names tell no COCO ids, so what it shares with a test set "
            "cannot be told; leave overlap at 'report'"
        )
    held = set[str]().union(*(coco_ids(b, vg_image_data) for b in sets))
    return pairs.take([i for i, image in enumerate(own) if not image & held])
