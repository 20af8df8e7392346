"""Where each set comes from: licence, size, gate and the way to get it, in one table.

What a loader says of a set that is not here, and what `lab.doctor` says of every set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sdslib.io.hub import data_set_files, is_repo
from sdslib.io.paths import project_path
from sdslib.io.sources import MissingFile

VAL2017 = "COCO's val2017, http://images.cocodataset.org/zips/val2017.zip"
GENOME = "Visual Genome's, https://homes.cs.washington.edu/~ranjay/visualgenome"


class Provenance(NamedTuple):
    """Whose a set is and how one gets it; `gate` says what the Hub asks for, `images` whose they
    are where the annotations come without them."""

    licence: str
    size: str
    get: str = ""  # of those whose loader says it itself
    gate: str = "open"
    images: str = ""
    package: str = ""  # mteb's on the Hub, at the revision that mteb pins

    @property
    def told(self) -> str:
        """Licence, size, gate and images in a few words."""
        images = f"; its images are {self.images}" if self.images else ""
        package = f"; or give {self.package}, with its images" if self.package else ""
        return f"licence {self.licence}; {self.size}; {self.gate}{images}{package}"


_ARO = "23,937 relations and 28,748 attributes"
ORIGINS = {
    "winoground": Provenance(
        "non-commercial", "400 items, 0.4 GB",
        gate="gated: accept its terms at https://huggingface.co/datasets/facebook/winoground, then "
        "`export HF_TOKEN=...` with a token of https://huggingface.co/settings/tokens",
    ),
    "aro-relation": Provenance(
        "MIT", _ARO, images=GENOME,
        package="aro-relation:mteb/ARO-Visual-Relation@53c1115ab5871ab33b09d5bb8856236d46bdaf2d",
    ),
    "aro-attribution": Provenance(
        "MIT", _ARO, images=GENOME,
        package="aro-attribution:mteb/ARO-Visual-Attribution@25fe9b460426ff67cdb0608a737c94f8f49a901e",
    ),
    "coco-order": Provenance(
        "CC BY 4.0", "25,010 captions", images="COCO's val2014",
        package="coco-order:mteb/ARO-COCO-order@53c20afc02a87fed8c0245dde2e00f054da4b861",
    ),
    "flickr-order": Provenance(
        "research only", "5,000 captions", images="Flickr30k's, on request",
        package="flickr-order:mteb/ARO-Flickr-Order@e5d7f3502345b2c398a6645b4d09b44e650287bf",
    ),
    "sugarcrepe": Provenance(
        "MIT", "7,511 items", images=VAL2017,
        package="sugarcrepe:mteb/SUGARCREPE_fmt@e9e0e3ce40c94023c819d3413edb5d090ec9f0d8",
    ),
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
    "sugarcrepe++": Provenance(
        "CC BY 4.0", "4,757 items, 1.4 MB without images",
        "give sugarcrepe++:Aman-J/SugarCrepe_pp to read its captions from the Hub, or a folder "
        "with the files of https://github.com/Sri-Harsha/scpp (its folder data)",
        images=VAL2017,
    ),
    "whatsup": Provenance(
        "MIT", "4,958 items of six parts",
        "give a folder with controlled_images_dataset.json, controlled_clevr_dataset.json, "
        "coco_qa_*_obj.json, vg_qa_*_obj.json and their folders of images; "
        "https://github.com/amitakamath/whatsup_vlms has the address",
        images="in controlled_images.tar.gz and controlled_clevr.tar.gz beside the files, COCO's "
        "val2017, and Visual Genome's in vg_images.tar.gz",
    ),
    "valse": Provenance(
        "MIT", "7,702 items of eleven pieces, by its votes, of 8,782; 6 MB without images",
        "give a folder with existence.json ... foil-it.json of "
        "https://github.com/Heidelberg-NLP/VALSE (its folder data)",
        images="Visual7W's, COCO's val2017 and val2014, SWiG's and VisDial's",
    ),
    "negbench": Provenance(
        "MIT", "10,945 questions of two parts",
        "give a folder with COCO_val_mcq_llama3.1_rephrased.csv and "
        "VOC2007_mcq_llama3.1_rephrased.csv, whose address is in "
        "https://github.com/m1k2zoo/negbench",
        images=f"{VAL2017}, and VOC2007's, "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/VOCtrainval_06-Nov-2007.tar",
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
        raise MissingFile(f"{home} holds no {' or '.join(patterns)}; {get}")
    return found


def image_home(home: Path, name: str, folders: Sequence[str]) -> Path:
    """The first of these folders that is beside a set's file, above it, in data/NAME or data/coco;
    else where one would put it."""
    own = project_path(f"data/{name}")
    homes = (home, home.parent, own, project_path("data/coco"))
    places = [place / folder for place in homes for folder in folders]
    cached = home.parent.name == "snapshots"  # what is in the Hub's cache stays as it is
    return next((p for p in places if p.is_dir()), own / folders[0] if cached else places[0])
