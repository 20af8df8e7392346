"""What a run needs, what of it is here, and how to get the rest; nothing is loaded or downloaded.

`python -m sdslib.lab.doctor --preset paper` says it within seconds, also without a network, and
ends with status 0 where all is there and 1 where something is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import psutil
import torch

from sdslib import benchmarks, experiment, student, teacher
from sdslib.arms import negatives
from sdslib.benchmarks import LOADERS
from sdslib.config import FinetuneConfig, ParameterError, project_path, project_root, validate
from sdslib.io.hub import hub_access, is_repo
from sdslib.io.model_files import WeightsError
from sdslib.io.runs import runs_root
from sdslib.io.sources import DataError
from sdslib.io.worlds import world_of
from sdslib.lab.dry_run import random_parties
from sdslib.train import Parties

COCO = (
    "get http://images.cocodataset.org/zips/train2017.zip (18 GB) and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip (0.3 GB) and unpack "
    "both in data/coco; the captions are CC BY 4.0, the images under their Flickr terms"
)
WINOGROUND = (
    ". It is gated: accept its terms at https://huggingface.co/datasets/facebook/winoground, then "
    "`export HF_TOKEN=...` with a token of https://huggingface.co/settings/tokens"
)
CHECKPOINTS = 3  # the two that are kept, and the one that is being written
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Finding(NamedTuple):
    """One thing that a run needs (or only can use), whether it is here, and what to do if not."""

    what: str
    state: str  # here, partial, missing, or optional: missing and not needed for this run
    said: str


def examine(config: FinetuneConfig) -> pd.DataFrame:
    """One row a thing: what, state (see `Finding`), said. For a notebook's cell."""
    return pd.DataFrame(findings(config), columns=list(Finding._fields))


def findings(config: FinetuneConfig) -> Iterator[Finding]:
    """Everything that `02_finetune` of this config needs, then what other notebooks can use."""
    absent = set()
    problem = student.weights_problem(config.clip_model, config.clip_pretrained)
    absent |= {"student"} if problem else set()
    name = f"{config.clip_model} {config.clip_pretrained or ''}".strip()
    yield _finding("student", problem, name)
    if experiment.has_teacher(config):
        problem = teacher.weights_problem(config.teacher, config.teacher_revision, config.variant)
        absent |= {"teacher"} if problem else set()
        yield _finding("teacher", problem, config.teacher)
    yield _finding("training pairs", _train_problem(config), config.train_data)
    needed = config.benchmark.partition(":")[0]
    yield _benchmark("benchmark", config.benchmark)
    yield from _costs(config, absent)
    world = world_of(config.preset)
    for other in world.SETS if world else LOADERS:
        if other not in (needed, config.benchmark):
            found = _benchmark(f"benchmark {other}", other, "of 01_baseline")
            yield found._replace(state="optional") if found.state == "missing" else found


def _finding(what: str, problem: str | None, name: str) -> Finding:
    return Finding(what, "missing" if problem else "here", problem or name)


def _train_problem(config: FinetuneConfig) -> str | None:
    problem = _pairs_problem(config.train_data)
    try:
        return problem or negatives.problem(config)
    except DataError as error:
        return str(error)


def _pairs_problem(source: str) -> str | None:
    if source.startswith("mini"):
        return None  # drawn where it is not there yet
    if "::" in source:
        absent = [part for part in source.split("::", 1) if not project_path(part).exists()]
        hint = COCO if "coco" in source else "give captions.json::image_folder"
        return f"{' and '.join(absent)} not there: {hint}" if absent else None
    if source.startswith(("http://", "https://")) or project_path(source).is_dir():
        return None
    if source.endswith(".tar"):
        there = any(project_path(source).parent.glob("*.tar"))
        return None if there else f"no shards at {source}; give shards/{{000..099}}.tar or a folder"
    repo = source.partition(":")[0]
    if is_repo(repo):
        refused = hub_access(repo, "a COCO folder or captions.json::image_folder")
        return str(refused) if refused else None
    return f"{source!r} is no source of pairs; {COCO}"


def _benchmark(what: str, source: str, use: str | None = None) -> Finding:
    """Whether a set is here, and whether all of it is."""
    if source.partition(":")[0] == "mini":
        return _finding(what, None, use or source)
    try:
        found = benchmarks.load_benchmark(source)
    except (DataError, OSError) as error:
        told = str(error).rstrip(".")
        return _finding(what, told + (WINOGROUND if _needs_terms(source, told) else ""), source)
    if not found.partial:
        return _finding(what, None, use or source)
    told = f"{source}: {len(found.items)} of {found.total} items; no figure from it is the set's"
    return Finding(what, "partial", told)


def _needs_terms(source: str, told: str) -> bool:
    return source == "winoground" and "HF_TOKEN" not in told


def _costs(config: FinetuneConfig, absent: set[str]) -> Iterator[Finding]:
    """Device, memory and disk, against what the parameters alone take; `absent` is to download."""
    try:
        device = experiment.pick_device(config.device)
    except ParameterError as error:
        yield Finding("device", "missing", error.problems[0])
        return
    slow = " (a real Stable Diffusion wants a GPU)" if device.type == "cpu" else ""
    yield Finding("device", "here", f"{_name(device)}{slow if config.preset == 'paper' else ''}")
    try:
        parties = random_parties(config, torch.device("meta"))
    except WeightsError as error:
        yield Finding("memory", "optional", f"not counted: {error}")
        return
    memory = weights_bytes(parties, config)
    have = _memory(device)
    text = f"{memory / 1e9:.2f} GB for weights and optimizer of {have / 1e9:.1f} GB; a dry run"
    text += " (-p dry_run True) measures the rest"
    yield Finding("memory", "here" if memory < have else "missing", text)
    need, root = disk_bytes(parties), _there(runs_root(config))
    text = f"{need / 1e9:.2f} GB for a run and its checkpoints"
    for name in sorted(absent):
        weights = 4 * sum(p.numel() for p in getattr(parties, name).parameters())
        need, text = need + weights, f"{text}, {weights / 1e9:.2f} GB for the {name}'s weights"
    free = shutil.disk_usage(root).free
    text += f"; {free / 1e9:.1f} GB are free"
    yield Finding("disk", "here" if need < free else "missing", text)


def weights_bytes(parties: Parties, config: FinetuneConfig) -> int:
    """What the parties and the optimizer's state take: float32, the UNet in its precision."""
    learning = _learning(parties)
    count = sum(p.numel() for p in parties.student.parameters())
    total = 4 * count + 3 * 4 * learning  # gradient and two moments
    if parties.bridge is not None:
        total += 4 * sum(p.numel() for p in parties.bridge.parameters())
    if parties.teacher is not None:
        unet = sum(p.numel() for p in parties.teacher.unet.parameters())
        rest = sum(p.numel() for p in parties.teacher.parameters()) - unet
        total += BYTES[config.precision] * unet + 4 * rest
    return total


def disk_bytes(parties: Parties) -> int:
    """What a run's folder takes: checkpoints with both moments, and the whole student once."""
    whole = sum(p.numel() for p in parties.student.parameters())
    return 4 * (CHECKPOINTS * 3 * _learning(parties) + whole)


def _learning(parties: Parties) -> int:
    bridge = parties.bridge.parameters() if parties.bridge is not None else ()
    return sum(p.numel() for p in (*parties.trained, *bridge))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _there(path: Path) -> Path:
    return next((p for p in (path, *path.parents) if p.exists()), project_root())


def main(words: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Say what a run of these parameters needs and what of it is missing, one line a thing."""
    parser = argparse.ArgumentParser(prog="python -m sdslib.lab.doctor", description=main.__doc__)
    parser.add_argument("--preset", default="mini", help="mini or paper")
    given = parser.add_argument("-p", nargs=2, action="append", default=[], dest="given")
    given.metavar, given.help = ("NAME", "VALUE"), "a parameter of 02_finetune, as for papermill"
    options = parser.parse_args(words)
    values = {name: experiment.literal(text) for name, text in options.given}
    try:
        config = validate(FinetuneConfig, {"preset": options.preset} | values)
    except ParameterError as error:
        for problem in error.problems:
            say(f"missing   parameters: {problem}")
        return 1
    found = []
    for row in findings(config):
        found.append(row.state)
        say(f"{row.state:<9} {row.what}: {row.said}")
    return int("missing" in found)


if __name__ == "__main__":
    sys.exit(main())
