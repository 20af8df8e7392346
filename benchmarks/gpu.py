"""Speed and memory at full size on a GPU: the preset `paper`, its models with random weights.

The same functions run anywhere, with any config; only the program asks for a GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Row, table
from benchmarks.training import route_rows, routes
from sdslib import experiment
from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig, preset
from sdslib.lab import dry_run
from sdslib.lab.dry_run import COCO_TRAIN2017, Trial
from sdslib.losses import PredictNoise
from sdslib.teacher import Teacher
from sdslib.train import Models, TrainingError

# What bf16 matrix products reach, in FLOP a second; a data sheet's figure (989e12) is out of reach.
ROOFLINES = {"H100": 790e12, "H200": 790e12}
TEACHERS = (
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-xl-base-1.0",
)
KEPT, AGAIN, PARTS = "activations kept", "activations computed again", "8 pairs at once"


def measure(config: FinetuneConfig, rounds: int = 5) -> list[Row]:
    """All rows, of the models of `config` with random weights on its device."""
    device = experiment.pick_device(config.device)
    models = dry_run.stand_ins(config, device)
    assert models.teacher is not None
    return [
        *training_rows(config, models, rounds),
        *speed_rows(models.teacher, config, 4 * rounds),
        *fitting(
            lambda batch: gradient_rows(models.teacher, batch, rounds), min(8, config.batch_size)
        ),
    ]


def fitting(rows: Callable[[int], list[Row]], batch: int) -> list[Row]:
    """The rows of this batch, or of half of it where memory does not suffice, and so on."""
    try:
        return rows(batch)
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
    torch.cuda.empty_cache()
    return fitting(rows, batch // 2)


def training_rows(config: FinetuneConfig, models: Models, rounds: int) -> list[Row]:
    """Seconds and memory of a step of each gradient route, and the hours of all the steps."""
    through = {
        KEPT: attempt(config, models, rounds),
        AGAIN: attempt(override(config, checkpointing=True), models, rounds),
        PARTS: attempt(override(config, micro_batch=min(8, config.batch_size)), models, rounds),
    }
    residual = attempt(override(config, sds_gradient="residual"), models, rounds)
    quickest = seconds(through.values())
    size = config.batch_size
    told = "; ".join(f"{way}: {_told(found)}" for way, found in through.items())
    return [
        Row("F1", f"seconds a step of {size} pairs, gradient through the UNet", quickest, None,
            least=True, note=told),
        Row("F2", f"seconds a step of {size} pairs, residual gradient", seconds([residual]), None,
            least=True, note=_told(residual)),
        Row("F3", f"GB at the peak of a step, {KEPT}", gigabytes(through[KEPT]), None, least=True),
        Row("F4", f"GB at the peak of a step, {AGAIN}", gigabytes(through[AGAIN]), None,
            least=True),
        Row("F5", "hours of the paper's COCO epochs, gradient through the UNet",
            hours(quickest, config), None, 1, least=True,
            note=f"{steps(config):,} steps; the residual gradient takes "
                 f"{hours(seconds([residual]), config):.3g}; pictures are read beside it"),
    ]  # fmt: skip


def speed_rows(teacher: Teacher, config: FinetuneConfig, rounds: int) -> list[Row]:
    """UNet evaluations a second, each of one latent, and their share of what the GPU could do."""
    forward, *_ = routes(teacher, config.batch_size)
    rate = config.batch_size / timed(forward, clock(teacher.device), rounds)
    z = torch.zeros(1, *teacher.latent_shape, device=teacher.device)
    count = flops(teacher.predict_noise, z, teacher.embed_texts(["a red circle"]))
    name, _ = dry_run.name_and_memory(teacher.device)
    roof = next((roof for known, roof in ROOFLINES.items() if known in name), None)
    known = f"of {roof / 1e12:g}" if roof else f"no roofline is known for {name}"
    return [
        Row("F6", "UNet evaluations a second", rate, None, 390,
            note=f"{name}, {config.precision}, batch {config.batch_size}"),
        Row("F7", "share of the bf16 roofline", rate * count / roof if roof else math.nan, None,
            0.4 if roof else None,
            note=f"{count / 1e9:.4g} GFLOP an evaluation, {rate * count / 1e12:.3g} TFLOP/s; "
                 + known),
    ]  # fmt: skip


def gradient_rows(teacher: Teacher, batch: int, rounds: int) -> list[Row]:
    """Both gradient routes of L_SDS beside the bare forward pass, by the device's time."""
    return route_rows(teacher, batch, rounds, (2.6, 2.3), clock(teacher.device))


def attempt(config: FinetuneConfig, models: Models, rounds: int) -> Trial | None:
    """Some steps of the whole batch by the training loop; None where memory does not suffice."""
    assert models.teacher is not None
    unet = models.teacher.unet
    if config.checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        return dry_run.attempt(config, models, config.batch_size, rounds)
    except TrainingError as error:
        if "out of memory" not in str(error):
            raise
        return None
    finally:
        unet.disable_gradient_checkpointing()


def seconds(trials: Collection[Trial | None]) -> float:
    """A step's seconds in the quickest of the trials; not a number where none succeeded."""
    return min((trial.seconds for trial in trials if trial), default=math.nan)


def gigabytes(trial: Trial | None) -> float:
    """The peak of a trial; not a number where it did not succeed."""
    return trial.memory / 1e9 if trial else math.nan


def steps(config: FinetuneConfig) -> int:
    """Steps of the config's epochs over COCO's training set of 2017."""
    return (config.epochs or 1) * (COCO_TRAIN2017 // config.batch_size)


def hours(seconds: float, config: FinetuneConfig) -> float:
    """Of all those steps, at so many seconds each."""
    return seconds * steps(config) / 3600


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds by which all that was asked of the device is done."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def timed(job: Callable[[], object], clock: Callable[[], float], rounds: int) -> float:
    """The median of the seconds that the job takes, after one time that does not count."""
    found = []
    for _ in range(rounds + 1):
        start = clock()
        job()
        found.append(clock() - start)
    return statistics.median(found[1:])


def flops(predict_noise: PredictNoise, z: Tensor, text: Tensor) -> int:
    """FLOP of an evaluation on one latent z [1, C, H, W]; a product and a sum are two."""
    t = torch.zeros(1, dtype=torch.long, device=z.device)
    # Attention as plain products: the counter does not know every fused kernel.
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        predict_noise(z, t, text)
    return counter.get_total_flops()


def _told(trial: Trial | None) -> str:
    if trial is None:
        return "out of memory"
    return f"{trial.seconds:.3g} s, {trial.memory / 1e9:.3g} GB"


def main(words: Sequence[str] | None = None) -> int:
    """Print one line a row of each teacher; 1 if one falls short of what it must reach, 2 where
    there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=main.__doc__)
    parser.add_argument("--teacher", action="append", help=f"by default {' and '.join(TEACHERS)}")
    teachers = parser.parse_args(words).teacher or TEACHERS
    if not torch.cuda.is_available():
        print(
            "bench-gpu: PyTorch finds no CUDA GPU on this machine; run it where nvidia-smi lists "
            "one, or `make bench` for the ratios on a CPU",
            file=sys.stderr,
        )
        return 2
    reached = True
    for teacher in teachers:
        rows = measure(override(preset("paper"), device="cuda", teacher=teacher))
        print(f"{teacher}\n{table(rows)}", flush=True)
        reached &= all(row.reached for row in rows)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
