"""One fine-tuning experiment, end to end: load the models, train, score, compare.

A finished run is never computed twice: `finetune` gives it back. The rooms below do the work;
this one knows in which order. N pairs, D embedding, C,H,W latent. As a program it is what torchrun
and `accelerate launch` run: `accelerate launch -m sdslib.experiment -p preset paper`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sdslib import evaluate, tables
from sdslib.arms import negatives
from sdslib.arms.trainable import interpolate, set_trainable, trained_weights
from sdslib.arms.verdicts import load_verdicts
from sdslib.benchmarks import Benchmark
from sdslib.bridge import Bridge, random_start, ridge_start
from sdslib.checks import captions
from sdslib.checks.fingerprints import has_teacher, weights_fingerprints
from sdslib.checks.guard import override, validate
from sdslib.checks.models import gives_tokens, no_tokens, reads_tokens, space_problem
from sdslib.checks.notebooks import from_shell
from sdslib.checks.teacher_files import shape_folder
from sdslib.config import ARMS, UNTOUCHED, FinetuneConfig, derive_seed
from sdslib.io import distributed, launch, shared
from sdslib.io.model_files import PASSPORT
from sdslib.io.paths import without_places
from sdslib.io.runs import Run, find_run, open_run
from sdslib.io.state import plain_torch
from sdslib.io.stopping import Stop, stop_requested
from sdslib.io.storage import read_json, write_json
from sdslib.io.wording import ParameterError
from sdslib.pairs import Pairs
from sdslib.sets.roles import Data, load_data
from sdslib.student import Student, load_student
from sdslib.teacher import Teacher, load_teacher
from sdslib.train import Loop, Models, Step


def pick_device(name: str) -> torch.device:
    """The device of the parameter `device`; `auto` takes CUDA, then MPS, then the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, is_there in there.items() if is_there), "cpu"))
    if not there.get(name, True):
        raise ParameterError([f"device '{name}' is not available here; use device 'auto' or 'cpu'"])
    return torch.device(name)


def load_models(config: FinetuneConfig, pairs: Pairs, device: torch.device) -> Models:
    """Student, and where the arm needs them teacher and started bridge, frozen as declared."""
    student = load_student(config.clip_model, config.clip_pretrained, device)
    captions.check_markers(student.marks, pairs.all_captions(), student.origin.name)
    negative = negatives.load_negatives(config).pick if config.needs_false_captions else None
    reader = (config.arm, config.bridge_input)
    if reads_tokens(*reader) and not gives_tokens(student.origin.model_cfg):
        raise ParameterError([no_tokens(*reader, config.clip_model)])
    start = copy.deepcopy(student) if ARMS[config.arm].distils else None
    if not has_teacher(config):
        said = load_verdicts(config.verdicts or "").on(pairs) if config.has_verdicts else None
        trained = what_trains(student, config)
        return Models(student, trained, negative=negative, verdicts=said, untouched=start)
    if config.sds_space != "eps":  # the guard knows no Hub id beside those of the package
        folder = str(shape_folder(config.teacher, config.teacher_revision))
        if problem := space_problem(config.arm, config.sds_space, folder):
            raise ParameterError([problem])
    teacher = load_teacher(
        config.teacher,
        config.teacher_revision,
        device,
        config.precision,
        derive_seed(config.seed, "random teacher") if config.arm == "random-teacher" else None,
        config.checkpointing,
        config.variant,
    )
    captions.check_markers(teacher.marks, pairs.all_captions(), teacher.name)
    latents, bridge = LatentCache(teacher, pairs), None
    if has_bridge(config):
        bridge = start_bridge(config, student, latents, pairs).to(device)
    trained = what_trains(student, config)
    return Models(student, trained, teacher, bridge, negative, latents, untouched=start)


def has_bridge(config: FinetuneConfig) -> bool:
    """Whether the arm has a map h_w."""
    return has_teacher(config) and ARMS[config.arm].maps


def what_trains(student: Student, config: FinetuneConfig) -> list[torch.nn.Parameter]:
    """The parameters of the student that learn, everything else frozen."""
    chosen = set_trainable(student, config.trainable, config.logit_scale == "trained")
    return [parameter for _, parameter in chosen]


class LatentCache:
    """VAE latents of training pairs, each encoded once: indices [N] -> [N, C, H, W]."""

    def __init__(self, teacher: Teacher, pairs: Pairs, batch_size: int = 64) -> None:
        self.teacher, self.pairs, self.batch_size = teacher, pairs, batch_size
        self._known: dict[int, Tensor] = {}

    def start(self, index: Sequence[int]) -> Tensor:
        """The same for the first pairs that are asked for; runs share them, in these batches."""
        z = shared.tensors(
            "latents",
            lambda: (
                self.teacher.encodes()
                | {"images": self.pairs.keys(index), "batch": self.batch_size}
            ),
            lambda: {"z": self(index)},
        )["z"]
        self._known |= dict(zip(index, z, strict=True))
        return z

    def __call__(self, index: Iterable[int]) -> Tensor:
        index = [int(i) for i in index]
        new = [i for i in dict.fromkeys(index) if i not in self._known]
        device = next(self.teacher.parameters()).device
        for start in range(0, len(new), self.batch_size):
            rows = new[start : start + self.batch_size]
            pixels = torch.stack([self.teacher.transform(self.pairs.image(i)) for i in rows])
            z = self.teacher.encode_images(pixels.to(device)).cpu()
            self._known |= dict(zip(rows, z, strict=True))
        return torch.stack([self._known[i] for i in index])


def start_bridge(
    config: FinetuneConfig, student: Student, latents: LatentCache, pairs: Pairs
) -> Bridge:
    """The bridge as `bridge_start` says; ridge regression takes `bridge_pairs` of the pairs."""
    width = student.map_width(config.bridge_input)
    bridge = Bridge(width, latents.teacher.latent_shape)
    if config.bridge_start == "random":
        seed = derive_seed(config.seed, "bridge")
        bridge.load_state_dict(random_start(width, bridge.latent_shape, seed))
    elif config.bridge_start == "ridge" and distributed.is_main():  # the others are given it
        rng = np.random.default_rng(derive_seed(config.seed, "bridge"))
        index = rng.permutation(len(pairs))[: config.bridge_pairs].tolist()
        emb = shared.tensors(
            "embeddings",
            lambda: student.embeds() | {"images": pairs.keys(index), "input": config.bridge_input},
            lambda: {"emb": embed_pairs(student, pairs, index, config.bridge_input)},
        )["emb"]
        bridge.load_state_dict(ridge_start(emb, latents.start(index)).state)
    return bridge


@torch.no_grad()
def embed_pairs(student: Student, pairs: Pairs, index: Iterable[int], kind: str) -> Tensor:
    """What enters the bridge, [N, D] of unit length, for the pairs' images."""
    device, rows, index = next(student.parameters()).device, [], list(index)
    student.eval()
    for start in range(0, len(index), 64):
        images = [student.transform(pairs.image(int(i))) for i in index[start : start + 64]]
        pixels = torch.stack(images).to(device)
        emb = student.map_input(pixels, kind)
        rows.append(torch.nn.functional.normalize(emb, dim=-1).cpu())
    return torch.cat(rows)


# --- training ------------------------------------------------------------------------------------


Show = Callable[[Iterable[Step], int], Iterable[Step]]


@contextmanager
def shown(progress: Show | None, steps: Iterable[Step], total: int) -> Iterator[Iterable[Step]]:
    """The steps as `progress` passes them on; what shows them ends with them, however they end."""
    found = progress(steps, total) if progress else steps
    try:
        yield found
    finally:
        if isinstance(found, Generator):
            found.close()


def finetune(
    config: FinetuneConfig,
    progress: Show | None = None,
) -> Run:
    """Train, score and store one run, or give back the finished one; resumes what was cut off.

    `progress(steps, total)` wraps the iterator of steps to show it. With `config.processes` above
    the number that torchrun or accelerate has launched, they are launched, and followed here. Of
    several processes all come here, and the main one alone writes.
    """
    if config.processes > distributed.count():
        return _follow(config, progress)
    with plain_torch():
        return _train(config, progress)


def _train(config: FinetuneConfig, progress: Show | None) -> Run:
    device = distributed.join(pick_device(config.device))
    if config.threads:
        torch.set_num_threads(config.threads)
    data = distributed.main_first(lambda: load_data(config))
    run = _open_together(config, data)
    if run.finished:
        return run
    with run, stop_requested() as stop:
        models = load_models(config, data.pairs, device)
        start = trained_weights(models.student) if config.interpolation < 1 else {}
        if distributed.is_main():
            told = [*data.told(), *negatives.told(config, data.pairs)]
            run.note(overlap=[row._asdict() for row in data.shared], sets=told)
            if distributed.count() > 1:
                run.note(processes=distributed.count())
            save_all_scores(run, models, data, f"{UNTOUCHED}-")
        validate_ = validator(data) if distributed.is_main() else None
        loop = Loop(config, models, data.pairs, validate_, run.path)
        _resume(loop, run)
        with shown(progress, loop, loop.steps - loop.done) as steps:
            for step in steps:
                stopping = distributed.anywhere(stop.is_set(), device)
                last = loop.done == loop.steps
                if distributed.is_main():
                    run.append_history(step.row())
                    due = config.checkpoint_every and loop.done % config.checkpoint_every == 0
                    if last or stopping or due:
                        run.save_checkpoint(loop.done, loop.pack(), {"steps": loop.steps})
                if stopping and not last:
                    stop.obey(loop.done)
        if distributed.is_main():
            interpolate(models.student, start, config.interpolation)
            save_student(run, models)
            save_all_scores(run, models, data)
            run.finish()
    return run


def _obey(stop: Stop, workers: launch.Workers, done: int) -> None:
    if stop.is_set():
        workers.ask(stop.number)
        stop.obey(done)


def fingerprints(
    config: FinetuneConfig, data: Mapping[str, str], needed: bool = False
) -> dict[str, str]:
    """Content hashes of all that the run reads beside its parameters, `data` those of its sets."""
    return {**data, **negatives.fingerprints(config), **weights_fingerprints(config, needed)}


def _open_together(config: FinetuneConfig, data: Data) -> Run:
    """The run, which the main process opens to write and the others to read."""
    opened: list[Run] = []

    def path() -> Path:
        found = open_run(config, fingerprints(config, data.fingerprints(), needed=True))
        opened.append(found)
        return found.path

    where = distributed.told(path)
    return opened[0] if opened else find_run(where)


def _resume(loop: Loop, run: Run) -> None:
    found = run.latest_checkpoint()
    if found is not None:
        done, tensors, _ = found
        loop.unpack(tensors, done)
    if distributed.is_main():
        launch.tell_opened(run.path, loop.done, loop.steps)


def save_all_scores(run: Run, models: Models, data: Data, prefix: str = "") -> None:
    """Score the student on every set, and keep the tables."""
    for name, benchmark in data.scored().items():
        run.save_scores(f"{prefix}{name}", score(models.student, benchmark))


def _follow(config: FinetuneConfig, progress: Show | None) -> Run:
    """The run, computed by `config.processes` processes of this machine."""
    device = pick_device(config.device)
    if device.type == "cuda" and torch.cuda.device_count() < config.processes:
        there = f"processes {config.processes} but {torch.cuda.device_count()} GPUs"
        raise ParameterError([f"{there}; a process needs one of its own"])
    with (
        stop_requested() as stop,
        launch.workers(config.model_dump(mode="json"), config.processes) as workers,
    ):
        opened = workers.opened(lambda: _obey(stop, workers, 0))
        left = opened["steps"] - opened["done"]
        with shown(progress, _steps(workers, stop), left) as steps:
            for _ in steps:
                pass
    return find_run(Path(opened["path"]))


def _steps(workers: launch.Workers, stop: Stop) -> Iterator[Step]:
    done = 0
    for row in workers.rows():
        _obey(stop, workers, done)
        if row is not None:
            step = Step.from_row(row)
            done = step.step
            yield step


def validator(data: Data) -> Callable[[Student], dict[str, float]] | None:
    """What `train` measures on the way: the validation set's metrics, `text` first."""
    validation = data.validation
    if validation is None:
        return None
    return lambda student: shares(score(student, validation))


def score(student: Student, benchmark: Benchmark, limit: int | None = None) -> pd.DataFrame:
    """The student's score table of a benchmark; runs share those of the same student."""
    return evaluate.shared_grids(evaluate.clip_scorer(student), benchmark, limit)


def shares(scores: pd.DataFrame) -> dict[str, float]:
    """The share of right items for every metric of a score table."""
    return {name: float(right.mean()) for name, right in tables.outcomes(scores).items()}


def save_student(run: Run, models: Models) -> None:
    """`weights/`: the student as an open_clip folder, and the bridge where there is one.

    Its passport, which loading holds the folder to, also tells where the weights came from: the
    run's parameters, data, code and environment.
    """
    with run.staged("weights") as folder:
        models.student.save(folder)
        passport = read_json(folder / PASSPORT)
        write_json(folder / PASSPORT, passport | {"run": without_places(run.origin())})
        if models.bridge is not None:
            models.bridge.save(folder / "bridge.safetensors")


# --- what the notebook shows ---------------------------------------------------------------------


def control(config: FinetuneConfig) -> FinetuneConfig:
    """The same run with L_CLIP alone: it has an id of its own, shared by all weights."""
    return override(config, arm="clip-only", run=None)


# --- as a program --------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """Fine-tune, in as many processes as torchrun or accelerate has launched of this program."""
    parser = argparse.ArgumentParser(prog="python -m sdslib.experiment", description=main.__doc__)
    parser.add_argument("--params", type=Path, help="a JSON file of all parameters, in their place")
    options, values = from_shell(parser, words)
    launch.die_with_launcher()
    try:
        if options.params:
            config = FinetuneConfig(**json.loads(options.params.read_bytes()))
        else:
            config = validate(FinetuneConfig, values)
        run = finetune(config)
    except Exception as error:
        launch.tell_error(distributed.place(), error)
        if isinstance(error, ParameterError):
            print(error, file=sys.stderr)
            return 2
        raise
    if distributed.is_main():
        launch.tell_opened(run.path, 0, 0)
        print(run.shown_path)
    distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
