"""The recipe of the mini-world's models: how long, at which rates, on which t and captions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor, nn

from sdslib.config import derive_seed
from sdslib.io.state import pack_state, unpack_state
from sdslib.io.storage import write_bytes
from sdslib.miniworld import drawing

EVERY, KEEP_EVERY = 10, 200  # steps between reports, and between checkpoints


class Progress(NamedTuple):
    """How far one part's training is."""

    part: str
    step: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """How the three models are made; the committed weights follow these defaults."""

    seed: int = drawing.SEED
    pool: int = 16384
    single: float = 0.3
    vae_steps: int = 1400
    vae_batch: int = 32
    vae_lr: float = 2e-3
    vae_kl: float = 1e-4
    teacher_steps: int = 2700
    teacher_batch: int = 128
    teacher_lr: float = 1e-3
    # Three stages, each found wanting without the next: the caption's words; from `binding_from`
    # on which color belongs to which shape; from `layout_from` on what stands where. See `draw_t`.
    binding_from: int = 1000
    layout_from: int = 1600
    pairs_from: int = 2000  # from here on scenes of two things alone
    snr_clip: float = 100.0
    high_noise: float = 0.8
    high_range: tuple[int, int] = (400, 980)
    wide_range: tuple[int, int] = (50, 980)
    student_steps: int = 1000
    student_batch: int = 128
    student_lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.995


class Turn(NamedTuple):
    """One warm-up and cosine of the learning rate: aims at `horizon` steps, may be cut before."""

    start: int
    end: int
    horizon: int


def teacher_turns(recipe: Recipe) -> list[Turn]:
    """The teacher's stages; all but the last are cut short before their learning rate is down."""
    first, second, third = recipe.binding_from, recipe.layout_from, recipe.pairs_from
    last = recipe.teacher_steps
    return [Turn(0, first, 2 * first),
            Turn(first, second, 5 * (second - first) // 2),
            Turn(second, third, 3 * (third - second) // 2),
            Turn(third, last, last - third)]  # fmt: skip


def cosine_lr(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


class Ema(nn.Module):
    """An exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        for name, value in module.named_parameters():
            self.register_buffer(name.replace(".", "|"), value.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.buffers(), module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for mean, value in zip(self.buffers(), module.parameters(), strict=True):
            value.copy_(mean)


def fit(
    name: str,
    modules: dict[str, nn.Module],
    loss: Callable[[int, torch.Generator], Tensor],
    recipe: Recipe,
    root: Path,
) -> Iterator[Progress]:
    """Train `modules` on `loss(step, generator)`; resumes from its own checkpoint file.

    Yields every `EVERY` steps. All draws derive from (seed, name, step).
    """
    steps, lr = getattr(recipe, f"{name}_steps"), getattr(recipe, f"{name}_lr")
    turns = [Turn(0, steps, steps)] if name != "teacher" else teacher_turns(recipe)
    trained = nn.ModuleDict({k: v for k, v in modules.items() if not k.startswith("ema")})
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    saved = root / "cache" / f"{name}.safetensors"
    first, before = 0, 0.0
    if saved.exists():
        tensors = load_file(saved)
        first, before = int(tensors.pop("step")), float(tensors.pop("seconds"))
        unpack_state(tensors, modules, optimizer if first < steps else None)
    start = time.perf_counter()
    for step in range(first, steps):
        turn = next(turn for turn in turns if step < turn.end)
        for group in optimizer.param_groups:
            group["lr"] = cosine_lr(step - turn.start, turn.horizon, lr, recipe.warmup)
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, name, step))
        value = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        for key, module in modules.items():
            if isinstance(module, Ema):
                module.update(modules[key.removeprefix("ema_")], step)
        seconds = before + time.perf_counter() - start
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == steps:
            tensors = pack_state(modules, optimizer)
            tensors |= {"step": torch.tensor(step + 1), "seconds": torch.tensor(seconds)}
            save(tensors, saved)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            yield Progress(name, step + 1, steps, float(value.detach()), seconds)
    if first >= steps:
        yield Progress(name, steps, steps, float("nan"), before)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write the tensors in one step that a kill leaves whole or undone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, serialized({k: v.contiguous() for k, v in tensors.items()}))


def is_binding(recipe: Recipe, step: int) -> bool:
    """Whether the step is in the stage that teaches which color belongs to which shape."""
    return recipe.binding_from <= step < recipe.layout_from


def draw_t(recipe: Recipe, step: int, count: int, generator: torch.Generator) -> Tensor:
    """Timesteps [count]: all alike while binding is taught, else mostly high.

    Only at high noise does the caption alone know the layout; but a shape shows later than its
    color, so that binding is learnt at the middle levels.
    """
    if is_binding(recipe, step):
        return torch.randint(*recipe.wide_range, (count,), generator=generator)
    wide = torch.randint(0, 1000, (count,), generator=generator)
    noisy = torch.randint(*recipe.high_range, (count,), generator=generator)
    chosen = torch.rand(count, generator=generator) < recipe.high_noise
    return torch.where(chosen, noisy, wide)


def error_weights(recipe: Recipe, step: int, alpha_bar: Tensor) -> Tensor:
    """Weight of the eps error at each t [T], of mean one over the t that the stage draws.

    1/SNR, clipped, for words and layout: plain eps-MSE gives next to nothing to the levels that
    tell them. Its square root while binding is taught.
    """
    noise_to_signal = (1 - alpha_bar) / alpha_bar
    if is_binding(recipe, step):
        weight, drawn = noise_to_signal.sqrt(), recipe.wide_range
    else:
        weight, drawn = noise_to_signal.clamp(1.0, recipe.snr_clip), recipe.high_range
    return weight / weight[slice(*drawn)].mean()


def stage_caption(recipe: Recipe, step: int, scene: drawing.Scene, rng: random.Random) -> str:
    """A caption for one picture at one step: from layout in passing to layout above all."""
    if step < recipe.binding_from:
        return drawing.teacher_caption(scene, rng)
    return drawing.layout_caption(scene, rng, 0.35 if is_binding(recipe, step) else 0.55)


def scaled(scale: float) -> Recipe:
    """The recipe with a share of its steps and pictures, for trying it out."""
    full = Recipe()
    names = [name for name in asdict(full) if name.endswith(("_steps", "_from"))]
    counts = {name: max(2, round(scale * getattr(full, name))) for name in names}
    return replace(full, **counts, pool=max(512, round(scale * full.pool)))
