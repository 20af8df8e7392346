"""What training holds in memory when it trains on more pairs.

Each set is trained on in a process of its own, which tells its own peak: the most that it held
resident, from start to end, the reading of the captions included. That is the figure that a machine
must have room for, and nothing is taken off it: not what is shared with other processes (nothing
but the libraries' code is), nor file pages that the kernel could drop. It is read as `VmHWM`;
`ru_maxrss`, of the same name elsewhere, is inherited by a child on Linux, so that every figure
would be at least this process's own.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.harness import Row
from sdslib import experiment
from sdslib.config import FinetuneConfig
from sdslib.lab import dry_run
from sdslib.pairs import load_pairs
from sdslib.train import Loop

PAIRS = (1_000, 10_000, 100_000)
STREAMED = 100_000
SHARD = 5_000  # samples of a shard
ROOT = Path(__file__).parents[1]


def training(sizes: Sequence[int] = PAIRS, streamed: int = STREAMED, steps: int = 10) -> list[Row]:
    """Peaks of training on COCO-shaped sets of these sizes, and on tar shards; largest/smallest."""
    with tempfile.TemporaryDirectory(prefix="bench-pairs-") as folder:
        sources = {f"{n:,} pairs": coco(Path(folder) / str(n), n) for n in sizes}
        sources[f"{streamed:,} pairs in shards"] = shards(Path(folder) / "shards", streamed)
        peaks = {name: peak(source, steps) for name, source in sources.items()}
    note = ", ".join(f"{name}: {bytes_ / 1e6:,.0f} MB" for name, bytes_ in peaks.items())
    ratio = max(peaks.values()) / min(peaks.values())
    return [
        Row("G12", "peak memory of training, largest / smallest set", ratio, 1.05, 1.02,
            least=True, note=note)
    ]  # fmt: skip


def pairs(count: int) -> Iterator[tuple[int, tuple[str, ...], bytes]]:
    """Numbers, captions and encoded pictures: the mini-world's, as often as it takes.

    Each time with other bytes after the picture's end, for pictures of the same bytes are one.
    """
    own = load_pairs("mini")
    known = [(own.captions(i), own.ref(i).data()) for i in range(min(count, len(own)))]
    found = ((i, *known[i % len(known)]) for i in range(count))
    return ((i, captions, data + str(i).encode()) for i, captions, data in found)


def coco(folder: Path, count: int) -> str:
    """A captions file beside a folder of its pictures."""
    images, notes = [], []
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    for i, captions, data in pairs(count):
        path = folder / "train2017" / f"{i:012d}.png"
        path.write_bytes(data)
        images.append({"id": i, "file_name": path.name, "width": 64, "height": 64})
        notes += [{"id": len(notes) + k, "image_id": i, "caption": captions[k]}
                  for k in range(len(captions))]  # fmt: skip
    text = json.dumps({"images": images, "annotations": notes})
    (folder / "annotations" / "captions_train2017.json").write_text(text)
    return str(folder)


def shards(folder: Path, count: int) -> str:
    """Tar files of `SHARD` samples, each a picture and its captions as JSON."""
    folder.mkdir(parents=True)
    found = list(pairs(count))
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:05d}.tar", "w") as tar:
            for i, captions, data in found[start : start + SHARD]:
                text = json.dumps({"caption": captions}).encode()
                for ending, content in (("png", data), ("json", text)):
                    member = tarfile.TarInfo(f"{i:09d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return f"{folder}/*.tar"


def peak(source: str, steps: int) -> int:
    """Bytes that a fresh process held at its peak while it trained on these pairs."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", source, str(steps)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"training on {source} ended with {done.returncode}: {done.stderr}")
    told = json.loads(done.stdout.splitlines()[-1])
    if told["steps"] != steps:
        raise RuntimeError(f"training on {source} took {told['steps']} steps of {steps}")
    return told["peak"]


def main() -> None:
    """Train the mini-world's student on a source for some steps; print steps and peak as JSON."""
    torch.set_num_threads(1)
    config = FinetuneConfig(
        train_data=sys.argv[1], steps=int(sys.argv[2]), eval_every=0, bridge_start="random"
    )
    found = load_pairs(config.train_data)
    found.fingerprint  # noqa: B018  as a run's id needs it: every caption is read once
    models = experiment.load_models(config, found, torch.device("cpu"))
    steps = sum(1 for _ in Loop(config, models, found))
    print(json.dumps({"steps": steps, "peak": dry_run.peak(torch.device("cpu"))}))


if __name__ == "__main__":
    main()
