"""What a training step costs beside its parts: the bare UNet, the plain step, the import."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import Row, paired
from sdslib import losses, train
from sdslib.arms.negatives import named
from sdslib.arms.trainable import set_trainable
from sdslib.arms.verdicts import Verdict
from sdslib.bridge import Bridge, random_start
from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig
from sdslib.pairs import Batch, batches, load_pairs
from sdslib.student import load_student
from sdslib.teacher import Teacher, load_teacher

BATCH = 32
Job = Callable[[], None]


def gradients(rounds: int) -> list[Row]:
    """Both gradient routes of L_SDS beside the UNet's forward pass on the same latents."""
    return route_rows(load_teacher(FinetuneConfig().teacher), BATCH, rounds, (3.1, 2.9))


def route_rows(
    teacher: Teacher,
    batch: int,
    rounds: int,
    through_must_aim: tuple[float, float],
    clock: Callable[[], float] = time.process_time,
) -> list[Row]:
    """G5 and G6 by the clock; what the gradient through the UNet must reach is the device's."""
    forward, residual, through = routes(teacher, batch)
    without = paired(forward, residual, rounds, clock)
    whole = paired(forward, through, rounds, clock)
    return [
        Row("G5", "residual gradient of L_SDS / bare UNet forward", without.ratio, 1.10, 1.03,
            least=True, note=without.spread),
        Row("G6", "gradient through the UNet / bare UNet forward", whole.ratio, *through_must_aim,
            least=True, note=whole.spread),
    ]  # fmt: skip


def routes(teacher: Teacher, batch: int) -> tuple[Job, Job, Job]:
    """The UNet's bare forward pass, and L_SDS with its residual gradient and with that through it.

    All three on the same latents, timesteps and caption.
    """
    generator, device = torch.Generator().manual_seed(0), teacher.device
    z, eps = torch.randn(2, batch, *teacher.latent_shape, generator=generator).to(device)
    t = torch.linspace(20, 980, batch).long().to(device)
    text = teacher.embed_texts(["a red circle left of a blue square"] * batch)

    def forward() -> None:
        with torch.no_grad():
            teacher.predict_noise(z, t, text)

    def backward(loss: Callable) -> None:
        latent = z.clone().requires_grad_()
        alpha_bar = teacher.alpha_bar[t]
        loss(teacher.predict_noise, latent, text, t, eps, alpha_bar, "sum").mean().backward()

    return (
        forward,
        lambda: backward(losses.score_distillation_loss),
        lambda: backward(losses.denoising_loss),
    )


def whole_step(rounds: int) -> list[Row]:
    """A step of L_CLIP + L_SDS beside a step of L_CLIP and the teacher's part by itself."""
    config = FinetuneConfig()
    both, plain = _loop(config), _loop(override(config, arm="clip-only", sds_weight=0.0))
    batch = _batch(config, both)
    teacher, bridge = both.models.teacher, both.models.bridge
    assert teacher is not None
    assert bridge is not None
    image_emb = both.models.student.encode_images(batch.pixels).detach()

    def apart() -> None:
        plain._step(batch)
        t, eps = train.draw_noise(0, BATCH, teacher.latent_shape, config)
        z = bridge(image_emb).detach().requires_grad_()
        text, alpha_bar = teacher.embed_texts(batch.captions), teacher.alpha_bar[t]
        losses.denoising_loss(
            teacher.predict_noise, z, text, t, eps, alpha_bar, "sum"
        ).mean().backward()

    times = paired(apart, lambda: both._step(batch), rounds)
    return [
        Row("G7", "step with L_SDS / (plain step + teacher alone)", times.ratio, 1.15, 1.05,
            least=True, note=times.spread)
    ]  # fmt: skip


def choice_step(rounds: int) -> list[Row]:
    """A step of `teacher-choice` by verdicts beside one of `hard-negatives`: one false caption
    each, and all that there are."""
    config = FinetuneConfig(arm="hard-negatives", trainable="all", sds_weight=0.0)
    find = named("mini")

    def verdicts(index: Sequence[int], captions: Sequence[str]) -> list[Verdict]:
        said = [(caption, *find.of(caption)) for caption in captions]
        return [Verdict(texts, (0.0, *[-9.0] * (len(texts) - 1))) for texts in said]

    told = _loop(config)
    told.models = replace(told.models, negative=find.pick)
    batch, rows = _batch(config, told), list[Row]()
    for name, each, must in (("one false caption", 1, 1.1), ("all of them", 99, None)):
        chosen = {"arm": "teacher-choice", "sds_weight": 1.0, "negatives_each": each}
        judged = _loop(config.model_copy(update=chosen))
        judged.models = replace(judged.models, verdicts=verdicts)
        times = paired(partial(told._step, batch), partial(judged._step, batch), rounds)
        what = f"step by verdicts on {name} / step of hard negatives"
        rows.append(Row("G17", what, times.ratio, must, must, least=True, note=times.spread))
    return rows


def _loop(config: FinetuneConfig) -> train.Loop:
    student = load_student(config.clip_model, None)
    trained = [p for _, p in set_trainable(student, config.trainable)]
    teacher = load_teacher(config.teacher) if config.arm == "sds" else None
    bridge = None
    if teacher is not None:
        bridge = Bridge(student.width, teacher.latent_shape)
        bridge.load_state_dict(random_start(student.width, teacher.latent_shape, config.seed))
    models = train.Models(student, trained, teacher, bridge)
    return train.Loop(override(config, steps=10_000), models, load_pairs("mini"))


def _batch(config: FinetuneConfig, loop: train.Loop) -> Batch:
    pairs, transform = load_pairs("mini"), loop.models.student.transform
    return next(iter(batches(pairs, transform, BATCH, config.seed, range(1))))


def importing() -> list[Row]:
    """CPU seconds of `import sdslib` in a fresh interpreter, less an empty one's."""
    root = Path(__file__).parents[1]

    def run(code: str) -> float:
        code = f"{code}\nimport time; print(time.process_time())"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
        )
        return float(done.stdout)

    found = sorted(run("import sdslib") - run("") for _ in range(5))
    return [Row("G11", "CPU seconds of `import sdslib`", found[2], 0.5, 0.2, least=True)]
