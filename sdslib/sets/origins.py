"""Where each set comes from: licence, size, gate and the way to get it, in one table.

What a loader says of a set that is not here, and what `lab.doctor` says of every set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdslib.io.hub import data_set_files, is_repo
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError

VAL2017 = "COCO's val2017, http://images.cocodataset.org/zips/val2017.zip"
GENOME = "Visual Genome's, https://homes.cs.washington.edu/~ranjay/visualgenome"


class Provenance(NamedTuple):
    """Whose a set is and how one gets it; `gate` says what the Hub asks for, `images` whose they
    are where the annotations come without them."""

    licence: str
    size: str
    get: str
    gate: str = "open"
    images: str = ""

    @property
    def told(self) -> str:
        """Licence, size, gate and images in a few words."""
        images = f"; its images are {self.images}" if self.images else ""
        return f"licence: {self.licence}; {self.size}; {self.gate}{images}"


ORIGINS = {
    "mmvp": Provenance(
        "MIT", "270 images",
        "give mmvp:MMVP/MMVP_VLM to read it from the Hub, or a folder with Questions.csv beside "
        "'MLLM_VLM Images'",
    ),
    "bivlc": Provenance(
        "MIT", "2,933 items, 0.5 GB",
        "give bivlc:imirandam/BiVLC to read it from the Hub, or a folder with its "
        "data/test-*.parquet",
    ),
    "colorswap": Provenance(
        "MIT", "300 items in its test split",
        "give colorswap:stanfordnlp/colorswap to read it from the Hub, or a folder with "
        "data/test-*.parquet or with the authors' test.json beside images/ "
        "(https://github.com/Top34051/colorswap)",
        gate="gated: accept its terms at https://huggingface.co/datasets/stanfordnlp/colorswap and "
        "set HF_TOKEN",
    ),
    "cola": Provenance(
        "MIT", "210 items, 0.1 MB without images",
        "give a folder with COLA_multiobjects_matching_benchmark.json of "
        "https://github.com/arijitray1993/COLA (its folder data) and images/ beside it",
        images=f"{GENOME}; the file has the address of each",
    ),
    "vismin": Provenance(
        "CC BY 4.0", "2,084 items, 1.5 GB",
        "give vismin:mair-lab/vismin-bench to read it from the Hub, or a folder with its "
        "data/test/data-*.arrow",
    ),
}  # fmt: skip


def located(name: str, source: str | Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a set that fit the first of the patterns that any fits.

    `source` is their folder, one such file, or `owner/name` or `owner/name@REVISION` of the Hub, of
    which the files of the patterns are brought. Raises `DataError` with the way to get the set.
    """
    get = ORIGINS[name].get
    if is_repo(str(source)):
        home = data_set_files(str(source), patterns, get.removeprefix("give "))
    else:
        home = project_path(source)
    if home.is_file():
        return [home]
    found = next((f for p in patterns if (f := sorted(home.glob(p)))), [])
    if not found:
        raise DataError(f"{home} holds no {' or '.join(patterns)}; {get}")
    return found


def image_home(home: Path, names: Sequence[str]) -> Path:
    """The first of these folders that is beside a set's file, or above it; else the first name."""
    places = [folder / name for folder in (home, home.parent) for name in names]
    return next((place for place in places if place.is_dir()), places[0])
