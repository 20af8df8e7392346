"""What a run needs, what of it is here, and how to get the rest; nothing is loaded or downloaded.

`python -m sdslib.lab.doctor --preset paper` says it within seconds, also without a network, and
ends with status 0 where all is there and 1 where something is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from sdslib import benchmarks, experiment
from sdslib.arms import negatives
from sdslib.arms.verdicts import load_verdicts
from sdslib.checks import fingerprints, student_files, teacher_files
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import from_shell
from sdslib.config import FinetuneConfig
from sdslib.io.hub import hub_access, is_repo
from sdslib.io.model_files import WeightsError
from sdslib.io.paths import project_path, project_root
from sdslib.io.runs import runs_root
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError, listed
from sdslib.io.worlds import world_of
from sdslib.lab import dry_run
from sdslib.sets import pair_files, roles
from sdslib.sets.origins import ORIGINS

COCO = (
    "get http://images.cocodataset.org/zips/train2017.zip (18 GB) and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip (0.3 GB) and unpack "
    "both in data/coco; the captions are CC BY 4.0, the images under their Flickr terms"
)
CHECKPOINTS = 3  # the two that are kept, and the one that is being written
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Finding(NamedTuple):
    """One thing that a run needs (or only can use), whether it is here, and what to do if not."""

    what: str
    state: str  # here, partial, missing, or optional: missing and not needed for this run
    said: str


def findings(config: FinetuneConfig) -> Iterator[Finding]:
    """Everything that `02_finetune` of this config needs, then what other notebooks can use."""
    problems = {"student": student_files.weights_problem(config.clip_model, config.clip_pretrained)}
    student = f"{config.clip_model} {config.clip_pretrained or ''}".strip()
    yield _finding("student", problems["student"], student)
    if fingerprints.has_teacher(config):
        source = (config.teacher, config.teacher_revision, config.variant)
        problems["teacher"] = teacher_files.weights_problem(*source)
        yield _finding("teacher", problems["teacher"], config.teacher)
    missing = train_problem(config)
    yield _finding("training pairs", missing, config.train_data)
    if config.needs_false_captions and not missing and not world_of(config.train_data):
        share = negatives.share_without(config)
        said = f"negatives {config.false_captions}: {share:.0%} of the captions have none"
        yield Finding("false captions", "here", said)
    if config.has_verdicts:
        verdicts = config.verdicts or ""
        yield _finding("verdicts", _problem(lambda: load_verdicts(verdicts)), verdicts)
    yield _benchmark("benchmark", config.benchmark)
    for use in ("validation", "keep", "apart_from"):
        for other in listed(getattr(config, use)):
            if other not in (roles.NONE, roles.HELD_OUT):
                yield _benchmark(use.replace("_", " "), other)
    yield from _costs(config, [name for name, problem in problems.items() if problem])
    world, needed = world_of(config.preset), config.benchmark.partition(":")[0]
    for other in world.SETS if world else benchmarks.LOADERS:
        if other not in (needed, config.benchmark):
            found = _benchmark(f"benchmark {other}", other, "of 01_baseline")
            yield found._replace(state="optional") if found.state == "missing" else found


def _finding(what: str, problem: str | None, name: str) -> Finding:
    return Finding(what, "missing" if problem else "here", problem or name)


def _problem(look: Callable[[], object]) -> str | None:
    try:
        look()
    except DataError as error:
        return str(error)
    return None


def train_problem(config: FinetuneConfig) -> str | None:
    """Why the config cannot be trained on its pairs, or None; at most their captions are read."""
    try:
        return pairs_problem(config.train_data) or negatives.problem(config)
    except DataError as error:
        return str(error)


def pairs_problem(source: str) -> str | None:
    """Why a source of pairs cannot be read, or None; of a file its first rows are looked at."""
    if world_of(source):
        return None  # made where it is not there yet
    if "::" in source:
        absent = [part for part in source.split("::", 1) if not project_path(part).exists()]
        hint = COCO if "coco" in source else "give captions.json::image_folder"
        if absent:
            return f"{' and '.join(absent)} not there: {hint}"
        return _problem(lambda: pair_files.look(*map(project_path, source.split("::", 1))))
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
    """Whether a set is here, and whether all of it is; whose it is, and what one needs for it."""
    if world_of(source):
        return _finding(what, None, use or source)
    origin = ORIGINS.get(source.partition(":")[0])
    about = f" ({origin.told})" if origin else ""
    try:
        found = roles.load_set(source)
    except (DataError, OSError) as error:
        return _finding(what, str(error).rstrip(".") + about, source)
    if not found.partial:
        return _finding(what, None, (use or source) + about)
    told = f"{source}: {len(found.items)} of {found.total} items; no figure from it is the set's"
    return Finding(what, "partial", told + about)


def _costs(config: FinetuneConfig, absent: Sequence[str]) -> Iterator[Finding]:
    """Device, memory and disk, against what the parameters alone take; `absent` is to download."""
    try:
        device = experiment.pick_device(config.device)
    except ParameterError as error:
        yield Finding("device", "missing", error.problems[0])
        return
    slow = " (a real Stable Diffusion wants a GPU)" if device.type == "cpu" else ""
    name, have = dry_run.name_and_memory(device)
    yield Finding("device", "here", f"{name}{slow if config.preset == 'paper' else ''}")
    try:
        counts = dry_run.parameters(dry_run.stand_ins(config, torch.device("meta")))
    except WeightsError as error:
        yield Finding("memory", "optional", f"not counted: {error}")
        return
    memory, need = weights_bytes(counts, config.precision), disk_bytes(counts)
    text = f"{memory / 1e9:.2f} GB for weights and optimizer of {have / 1e9:.1f} GB; a dry run"
    text += " (-p dry_run True) measures the rest"
    yield Finding("memory", "here" if memory < have else "missing", text)
    text = f"{need / 1e9:.2f} GB for a run and its checkpoints"
    sizes = {"student": 4 * counts["student"], "teacher": 4 * _of_teacher(counts)}
    for name in absent:
        need += sizes[name]
        text += f", {sizes[name] / 1e9:.2f} GB for the {name}'s weights"
    runs = runs_root(config)
    root = next((p for p in (runs, *runs.parents) if p.exists()), project_root())
    free = shutil.disk_usage(root).free
    text += f"; {free / 1e9:.1f} GB are free"
    yield Finding("disk", "here" if need < free else "missing", text)


def _of_teacher(counts: Mapping[str, int]) -> int:
    return sum(counts.get(part, 0) for part in ("UNet", "VAE", "text encoder"))


def _learning(counts: Mapping[str, int]) -> int:
    return counts["of them trained"] + counts.get("h_w, trained", 0)


def weights_bytes(counts: Mapping[str, int], precision: str) -> int:
    """What `dry_run.parameters` and the optimizer's state take: float32, but the UNet and T5.

    Each number that learns has a gradient and two moments beside it.
    """
    whole = counts["student"] + counts.get("h_w, trained", 0) + _of_teacher(counts)
    unet, low = counts.get("UNet", 0), counts.get("of it in bf16", 0)
    return 4 * (whole - unet) - 2 * low + BYTES[precision] * unet + 3 * 4 * _learning(counts)


def disk_bytes(counts: Mapping[str, int]) -> int:
    """What a run's folder takes: checkpoints with both moments, and the whole student once."""
    return 4 * (CHECKPOINTS * 3 * _learning(counts) + counts["student"])


def main(words: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Say what a run of these parameters needs and what of it is missing, one line a thing."""
    parser = argparse.ArgumentParser(prog="python -m sdslib.lab.doctor", description=main.__doc__)
    parser.add_argument("--preset", default="mini", help="mini or paper")
    try:
        options, values = from_shell(parser, words)
        config = validate(FinetuneConfig, {"preset": options.preset} | values)
    except ParameterError as error:
        for problem in error.problems:
            say(f"missing   parameters: {problem}")
        return 1
    missing = False
    for row in findings(config):
        missing |= row.state == "missing"
        say(f"{row.state:<9} {row.what}: {row.said}")
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
