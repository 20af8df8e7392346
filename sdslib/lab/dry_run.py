"""What a run would cost, measured on the real architectures with random weights and pictures.

Nothing is downloaded and no run is opened: student and teacher are built from their public configs,
the real loop takes a few steps, and time and memory of the whole run are told from them.
`python -m sdslib.lab.dry_run -p preset paper` does it from a shell.
"""

from __future__ import annotations

import argparse
import copy
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from sdslib import experiment
from sdslib.arms.negatives import named
from sdslib.arms.trainable import set_trainable
from sdslib.arms.verdicts import Verdict
from sdslib.bridge import Bridge, random_start
from sdslib.checks.fingerprints import has_teacher
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import from_shell
from sdslib.config import ARMS, FinetuneConfig, derive_seed
from sdslib.io import exits
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.lab.random_models import random_student, random_teacher
from sdslib.pairs import Pairs, load_pairs
from sdslib.train import Loop, Models, TrainingError, seen_pairs

COCO_TRAIN2017 = 118_287  # images with captions in COCO's training set of 2017
STEPS = 2  # that are timed at each size, after one that is not
WHOLE_STEP_S = 60.0  # a whole batch is tried where a step of it should take less
ROOM = 0.95  # of a device's memory that a run may take


@dataclass(frozen=True)
class Trial:
    """Some steps at one size: pairs a step, the median seconds of one, and the peak of memory."""

    pairs: int
    seconds: float
    memory: int
    evaluations: float  # of the UNet a step, each one latent


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, and what follows for the whole run."""

    config: FinetuneConfig
    parameters: dict[str, int]
    trials: tuple[Trial, ...]
    steps: int  # of the whole run
    device: str
    device_memory: int
    failed: str | None = None  # why the whole batch was not to be had

    @property
    def pairs(self) -> int:
        """Pairs a step and process of the run itself."""
        return self.config.batch_size // self.config.processes

    @property
    def memory(self) -> int:
        """Bytes that the run needs at its peak: measured, or on the line through two trials."""
        return int(max(self._at(lambda trial: trial.memory), self.trials[-1].memory))

    @property
    def seconds(self) -> float:
        """Seconds a step, measured or on that line."""
        return self._at(lambda trial: trial.seconds)

    @property
    def hours(self) -> float:
        """Of all steps; what comes before and after them, as scoring, is not in it."""
        return self.seconds * self.steps / 3600

    @property
    def evaluations(self) -> int:
        """UNet evaluations of the whole run, in all processes; each is of one latent."""
        last = self.trials[-1]
        seen = seen_pairs(self.config.model_copy(update={"batch_size": last.pairs}))
        return round(last.evaluations / seen * seen_pairs(self.config) * self.steps)

    @property
    def fits(self) -> bool:
        """Whether the device has the memory."""
        return self.failed is None and self.memory <= ROOM * self.device_memory

    @property
    def whole(self) -> bool:
        """Whether the last trial was of the run's own size."""
        return self.trials[-1].pairs == self.pairs

    def _at(self, value: Callable[[Trial], float]) -> float:
        *before, last = self.trials
        if self.whole:
            return value(last)
        if not before:
            return value(last) * self.pairs / last.pairs
        slope = (value(last) - value(before[-1])) / (last.pairs - before[-1].pairs)
        return value(last) + max(0.0, slope) * (self.pairs - last.pairs)

    def table(self) -> pd.DataFrame:
        """Rows what, value, how: counted, measured, or told from what was measured."""
        told = "measured" if self.whole else f"told from {self.trials[-1].pairs} pairs a step"
        advice = "lower micro_batch or batch_size, set checkpointing, or take more processes"
        advice = f"at most {ROOM:.0%} of the device's memory" if self.fits else advice
        rows = [
            *((f"parameters, {k}", f"{v / 1e6:,.4g} M", "counted")
              for k, v in self.parameters.items()),
            ("device", self.device, f"memory {self.device_memory / 1e9:.3g} GB"),
            ("pairs a step and process", str(self.pairs), "batch_size / processes"),
            ("peak of memory", f"{self.memory / 1e9:.3g} GB", told),
            ("fits", "yes" if self.fits else "no", self.failed or advice),
            ("seconds a step", f"{self.seconds:.3g}", told),
            ("steps of the run", f"{self.steps:,}", "counted"),
            ("UNet evaluations of the run", f"{self.evaluations:,}", "counted"),
            ("hours of the run's steps", f"{self.hours:.3g}", "seconds a step × steps"),
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["what", "value", "how"])


def rehearse(config: FinetuneConfig) -> Rehearsal:
    """Build the models of `config` with random weights, try steps of growing size, and tell.

    The whole batch is tried where memory and `WHOLE_STEP_S` should allow it. WeightsError where an
    architecture is not known here and the Hub is out of reach; ParameterError where nobody can say
    how many pairs there are.
    """
    steps, device = steps_of(config), experiment.pick_device(config.device)
    if config.threads:
        torch.set_num_threads(config.threads)
    models = stand_ins(config, device)
    made = Rehearsal(config, parameters(models), (), steps, *name_and_memory(device))
    least = max(round(1 / config.sds_share), config.choice_draws * (ARMS[config.arm].judged))
    for size in sorted({min(least, made.pairs), min(2 * least, made.pairs), made.pairs}):
        if len(made.trials) == 2 and not (made.fits and made.seconds <= WHOLE_STEP_S):
            break
        try:
            made = replace(made, trials=(*made.trials, attempt(config, models, size)))
        except TrainingError as error:
            if not made.trials:
                raise
            return replace(made, failed=str(error).split(";")[0])
    return made


def attempt(config: FinetuneConfig, models: Models, size: int, steps: int = STEPS) -> Trial:
    """Take `steps` steps of `size` pairs, and one before them that is not timed."""
    changes: dict[str, Any] = {"batch_size": size, "steps": steps + 1, "eval_every": 0}
    changes |= {"epochs": None, "train_pairs": None, "num_workers": 0, "tracker": None}
    device, evaluated = models.trained[0].device, list[int]()
    pictures = cast(Pairs, Pictures(size * (steps + 1)))  # as much of one as the loop asks for
    gc.collect()
    reset_peak(device)
    counted: Any = nullcontext()
    if models.teacher is not None:
        unet = models.teacher.unet
        counted = unet.register_forward_pre_hook(lambda _, args: evaluated.append(len(args[0])))
    with counted:
        loop = Loop(config.model_copy(update=changes), models, pictures)
        seconds = [step.seconds for step in loop]
        memory = peak(device)
    return Trial(size, statistics.median(seconds[1:]), memory, sum(evaluated) / (steps + 1))


def stand_ins(config: FinetuneConfig, device: torch.device) -> Models:
    """Who takes part, at full size, with weights drawn from the run's seed."""
    seed = derive_seed(config.seed, "rehearsal")
    student = random_student(config.clip_model, device, seed)
    start = copy.deepcopy(student) if ARMS[config.arm].distils else None
    chosen = set_trainable(student, config.trainable, config.logit_scale == "trained")
    trained, bridge = [value for _, value in chosen], None
    negative = named("mini").pick
    if not has_teacher(config):

        def verdicts(index: Sequence[int], captions: Sequence[str]) -> list[Verdict]:
            return [Verdict((caption, negative(caption, 0)), (0.0, -1.0)) for caption in captions]

        return Models(student, trained, negative=negative, verdicts=verdicts, untouched=start)
    source = (config.teacher, config.teacher_revision)
    teacher = random_teacher(*source, device, config.precision, seed, config.checkpointing)
    shape = teacher.latent_shape
    if ARMS[config.arm].maps:
        width = student.map_width(config.bridge_input)
        bridge = Bridge(width, shape)
        bridge.load_state_dict(random_start(width, shape, seed))
        bridge.to(device)

    def latents(index: Tensor) -> Tensor:
        return torch.randn(len(index), *shape, generator=torch.Generator().manual_seed(seed))

    return Models(student, trained, teacher, bridge, negative, latents)


class Pictures:
    """Random pictures with captions of four words that differ, in the form that training reads."""

    source = "random pictures"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> Image.Image:
        """Noise of 640×480, as large as COCO's."""
        rng = np.random.default_rng(derive_seed(0, "rehearsal picture", index))
        return Image.fromarray(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8))

    def captions(self, index: int) -> tuple[str, ...]:
        """Of words that every tokenizer here can write, a small closed vocabulary's too."""
        first, second = ("red", "blue")[:: 1 - 2 * (index % 2)]
        shape = ("circle", "square")[index // 2 % 2]
        return (f"a {first} {shape} left of a {second} square",)


def end_if_dry(config: FinetuneConfig) -> None:
    """In a notebook: where `dry_run` is asked for, show what the run would cost and end there.

    papermill and nbclient take SystemExit 0 for a good end: no later cell runs, the status is 0.
    """
    if config.dry_run:
        from IPython.display import display

        display(rehearse(config).table())
        raise SystemExit(0)


def steps_of(config: FinetuneConfig) -> int:
    """The steps of the whole run; ParameterError where nobody can say how many pairs there are."""
    if config.steps:
        return config.steps
    pairs = config.train_pairs
    if pairs is None:
        try:
            pairs = len(load_pairs(config.train_data))
        except DataError as error:
            if "train2017" not in config.train_data:
                raise ParameterError(
                    [f"a dry run needs steps or train_pairs where the pairs are absent ({error})"]
                ) from error
            pairs = COCO_TRAIN2017
    return (config.epochs or 1) * (pairs // config.batch_size)


def parameters(models: Models) -> dict[str, int]:
    """How many parameters each part has, and how many of them are trained."""

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    found = {"student": count(models.student)}
    found["of them trained"] = sum(p.numel() for p in models.trained)
    if models.bridge is not None:
        found["h_w, trained"] = count(models.bridge)
    if (teacher := models.teacher) is not None:
        found |= {"UNet": count(teacher.unet), "VAE": count(teacher.vae)}
        found["text encoder"] = count(teacher.text_encoder)
        low = [p for p in teacher.text_encoder.parameters() if p.dtype == torch.bfloat16]
        found |= {"of it in bf16": sum(p.numel() for p in low)} if low else {}
    return found


# --- memory --------------------------------------------------------------------------------------


def name_and_memory(device: torch.device) -> tuple[str, int]:
    """What the device is called, and its bytes of memory: of the CPU, the machine's."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return found.name, found.total_memory
    return str(device), psutil.virtual_memory().total


def reset_peak(device: torch.device) -> None:
    """Let `peak` count from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux forgets the peak when asked; elsewhere it is of the process
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """Bytes at the peak since `reset_peak`: of the GPU, or of this whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- from a shell --------------------------------------------------------------------------------


@exits.foreseen
def main(words: Sequence[str] | None = None) -> int:
    """Say what a run would cost; the status is 1 where it does not fit the device's memory."""
    parser = argparse.ArgumentParser(prog="python -m sdslib.lab.dry_run", description=main.__doc__)
    values, begun = from_shell(parser, words)[1], time.perf_counter()
    found = rehearse(validate(FinetuneConfig, values))
    print(found.table().to_string(index=False))
    print(f"(rehearsed in {time.perf_counter() - begun:.0f} s)")
    return 0 if found.fits else 1


if __name__ == "__main__":
    sys.exit(main())
