"""Every file that is parsed, as a function of its bytes, and the errors that it may raise.

A parser takes the bytes and an empty folder; whatever else it raises is a fault of ours.
"""

import contextlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save

from sdslib import tables
from sdslib.benchmarks import load_benchmark
from sdslib.io import lock, model_files, runs, sources, storage
from sdslib.io.images import ImageError, open_image
from sdslib.metrics import ScoreError
from sdslib.pairs import load_pairs
from sdslib.results import comparison
from sdslib.sets.aro import aro_relation
from sdslib.sets.pair_files import coco_pairs
from sdslib.sets.sugarcrepe import PLUS_PLUS
from sdslib.sets.winoground import winoground

CORPUS = Path(__file__).parent / "corpus"


class Parser(NamedTuple):
    """What reads the bytes, what it may raise, and files to start from."""

    read: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], dict[str, bytes]]


def feed(name: str, data: bytes, folder: Path) -> None:
    """Parse the bytes; raises only what the parser does not declare."""
    parser = PARSERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(*parser.errors):
            parser.read(data, folder)


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


def annotations(data: bytes, folder: Path) -> None:
    """ARO's annotation JSON, with an image that it may name."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "0.png").write_bytes(_png())
    (folder / "visual_genome_relation.json").write_bytes(data)
    for item in aro_relation(folder).items:
        item.images[0].load()


def coco(data: bytes, folder: Path) -> None:
    """COCO's and Karpathy's captions, read as a stream."""
    (folder / "0.png").write_bytes(_png())
    (folder / "captions.json").write_bytes(data)
    coco_pairs(folder / "captions.json", folder)
    load_pairs(f"{folder / 'captions.json'}::{folder}")


def parquet(data: bytes, folder: Path) -> None:
    """Winoground's parquet, and a table of scores."""
    (folder / "test.parquet").write_bytes(data)
    first: Exception | None = None
    try:
        for item in winoground(str(folder)).items:
            item.images[0].load()
    except sources.DataError as error:
        first = error
    comparison.read_scores(folder / "test.parquet")
    if first is not None:
        raise first


# Set -> the files that its reader takes
READ = {"mmvp": ["Questions.csv"], "bivlc": ["test-0.parquet"], "vismin": ["data-0.arrow"],
        "colorswap": ["test.json"], "sugarcrepe++": [f"{name}.json" for name in PLUS_PLUS],
        "valse": ["existence.json"],
        "whatsup": ["controlled_images_dataset.json", "coco_qa_two_obj.json"],
        "negbench": ["COCO_val_mcq_llama3.1_rephrased.csv"],
        "cola": ["COLA_multiobjects_matching_benchmark.json"]}  # fmt: skip


def benchmark_files(data: bytes, folder: Path) -> None:
    """Each set's own file in turn, with an image that it may name."""
    for name, files in READ.items():
        home = folder / name
        for images in ("images", "MLLM_VLM Images/P", "val2017", "visual7w", "controlled_images"):
            (home / images).mkdir(parents=True, exist_ok=True)
            for image in ("1.jpg", "000000000001.jpg", "a_on_b.jpg"):
                (home / images / image).write_bytes(_png())
        for file in files:
            (home / file).write_bytes(data)
        with contextlib.suppress(sources.DataError, ImageError):
            for item in load_benchmark(f"{name}:{home}").items:
                item.images[0].load()


def run(data: bytes, folder: Path) -> None:
    """A run's folder in which each file holds the bytes in turn."""
    home = folder / "runs" / "mini-sds-0"
    home.mkdir(parents=True, exist_ok=True)
    whole = run_files()
    for damaged in whole:
        for name, content in whole.items():
            (home / name).write_bytes(data if name == damaged else content)
        for read in (
            lambda: runs.list_runs(folder / "runs"),
            lambda: runs.describe(runs.find_run(home)),
            lambda: runs.find_run(home).history(),
            lambda: lock.holder(home),
            lambda: storage.manifest_problem(home),
        ):
            try:
                read()
            except (runs.RunError, storage.StorageError):
                continue


def run_files() -> dict[str, bytes]:
    """The JSON files of a run that died."""
    status = {"state": "running", "pid": 2**22 - 3, "host": "h", "started": 0.0, "step": 3}
    documents = {
        "identity.json": {"id": "0", "params": {}, "data": {}},
        "params.json": {"arm": "sds", "seed": 0},
        "env.json": {"device": "cpu", "threads": 1, "python": "3.11"},
        "status.json": status | {"updated": "then", "message": "running at step 3"},
        "history.jsonl": {"step": 3, "loss": 1.5},
        "lock": status | {"since": "then"},
        "manifest.json": {"params.json": {"bytes": 27, "sha256": "0"}},
    }
    return {name: json.dumps(content).encode() + b"\n" for name, content in documents.items()}


def checkpoint(data: bytes, folder: Path) -> None:
    """Weights: what passes the check must load."""
    file = folder / "tensors.safetensors"
    file.write_bytes(data)
    model_files.check_safetensors(file)
    load_file(file)
    (folder / "open_clip_config.json").write_bytes(data)
    model_files.read_config(folder / "open_clip_config.json")


def model_config(data: bytes, folder: Path) -> None:
    """A model's JSON config, and its passport."""
    (folder / "config.json").write_bytes(data)
    (folder / model_files.PASSPORT).write_bytes(data)
    config = model_files.read_config(folder / "config.json")
    if isinstance(config.get("model_cfg"), dict):
        model_files.check_passport(folder, config)


def shard(data: bytes, folder: Path) -> None:
    """A WebDataset tar, and its first image."""
    (folder / "0.tar").write_bytes(data)
    load_pairs(str(folder / "0.tar")).image(0)


def image(data: bytes, folder: Path) -> None:
    """A picture of any kind."""
    open_image(data, "x.img")


def _aro_seed() -> dict[str, bytes]:
    row = {"image_path": "0.png", "bbox_x": 0, "bbox_y": 0, "bbox_w": 2, "bbox_h": 2}
    row |= {"true_caption": "a b", "false_caption": "b a", "relation_name": "on"}
    return {"row": json.dumps([row]).encode(), "deep": b"[" * 2000, "digits": b"[" + b"9" * 5000}


def _coco_seed() -> dict[str, bytes]:
    document = {
        "images": [{"id": 1, "file_name": "0.png"}],
        "annotations": [{"image_id": 1, "caption": "a b"}],
    }
    karpathy = [{"image": "0.png", "caption": ["a b", "c"]}]
    return {
        "coco": json.dumps(document).encode(),
        "karpathy": json.dumps(karpathy).encode(),
        "deep": b'{"images": [' + b'{"id": ' * 2000,
        "digits": b'{"images": [{"id": ' + b"9" * 5000 + b', "file_name": "0.png"}]}',
    }


def _parquet_seed() -> dict[str, bytes]:
    cell = {"bytes": _png(), "path": "a.png"}
    text = {"id": 0, "caption_0": "a", "caption_1": "b", "tag": "x", "secondary_tag": ""}
    row = {"image_0": cell, "image_1": cell} | text | {"num_main_preds": 1, "collapsed_tag": "y"}
    found = {}
    scores = pd.DataFrame({"id": ["a"], "s_0_0": [1.0], "s_0_1": [0.5]})
    for name, table in (
        ("winoground", pa.Table.from_pylist([row])),
        ("scores", pa.Table.from_pandas(scores)),
    ):
        file = io.BytesIO()
        pq.write_table(table, file, compression="none")
        found[name] = file.getvalue()
    return found


def _sets_seed() -> dict[str, bytes]:
    cell = {"bytes": _png(), "path": "000000000001.jpg"}
    images = {"image_0": cell, "image_1": cell}
    table = pa.Table.from_pylist(
        [images | {"id": 0, "text_0": "a", "text_1": "b", "category": "c"}]
    )
    file = io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    colors = {"id": 0, "caption_1": "a", "caption_2": "b", "image_1": "images/1.jpg",
              "image_2": "images/1.jpg", "image_source": "m", "caption_source": "h"}  # fmt: skip
    triplet = {"id": 0, "filename": "1.jpg", "caption": "a", "caption2": "b",
               "negative_caption": "c"}  # fmt: skip
    sample = {"image_file": "1.jpg", "caption": "a", "foil": "b", "mturk": {"caption": 3}}
    controlled = {"image_path": "x/a_on_b.jpg", "caption_options": ["a", "b", "c", "d"]}
    return {
        "arrow": file.getvalue(),
        "csv": b'Question ID,Type,Statement\n1,P,a\n2,P,"b, c"\n',
        "colors": json.dumps([colors]).encode(),
        "crepe": json.dumps([triplet]).encode(),
        "valse": json.dumps({"k": sample}).encode(),
        "controlled": json.dumps([controlled]).encode(),
        "spatial": json.dumps([["1", "a", "b"], [1, "a", "b"]]).encode(),
        "negation": b"image_path,correct_answer,caption_0,caption_1,caption_2,caption_3,"
        b"correct_answer_template\nx/1.jpg,0,a,b,c,d,hybrid\n",
        "cola": json.dumps([["http://h/1.jpg", "a", "http://h/1.jpg", "b"]]).encode(),
    }


def _shard_seed() -> dict[str, bytes]:
    found = {}
    for name, note in (("txt", b"a b"), ("json", b'{"caption": ["a", "b"]}')):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for member, data in (("a.png", _png()), (f"a.{name}", note)):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        found[name] = file.getvalue()[:3072]
    return found


def _image_seed() -> dict[str, bytes]:
    found, picture = {}, Image.new("RGB", (4, 3), "red")
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        file = io.BytesIO()
        picture.save(file, kind)
        found[kind.lower()] = file.getvalue()
    return found


def _weights_seed() -> dict[str, bytes]:
    tensors = {"a.weight": torch.ones(2, 3), "n": torch.tensor(4)}
    return {"tensors": save(tensors), "pointer": b"version https://git-lfs.github.com/spec/v1\n"}


def _config_seed() -> dict[str, bytes]:
    model = {"embed_dim": 16, "text_cfg": {"context_length": 16}, "quick_gelu": True}
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    return {"config": json.dumps(config).encode(), "deep": b'{"model_cfg": ' * 2000}


PARSERS = {
    "annotations": Parser(annotations, (sources.DataError, ImageError), _aro_seed),
    "coco": Parser(coco, (sources.DataError,), _coco_seed),
    "parquet": Parser(
        parquet, (sources.DataError, ImageError, tables.TableError, ScoreError), _parquet_seed
    ),
    "sets": Parser(benchmark_files, (), _sets_seed),
    "run": Parser(run, (), run_files),
    "checkpoint": Parser(checkpoint, (model_files.WeightsError,), _weights_seed),
    "config": Parser(model_config, (model_files.WeightsError,), _config_seed),
    "shard": Parser(shard, (sources.DataError, ImageError), _shard_seed),
    "image": Parser(image, (ImageError,), _image_seed),
}


def write_corpus() -> None:
    """Write the seeds; what the fuzzer found and was fixed stands beside them."""
    for name, parser in PARSERS.items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        for seed, data in parser.seeds().items():
            (CORPUS / name / seed).write_bytes(data)


if __name__ == "__main__":
    write_corpus()
