"""Why a student composes or not: what it encodes, what h_w carries, what moves it, which t tell.

On the worlds of `probes`, scenes and their changes row by row. N scenes, C,H,W latent.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sdslib import losses, metrics
from sdslib.arms import negatives
from sdslib.arms.trainable import TRAINABLE, set_trainable
from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig, derive_seed, mini
from sdslib.experiment import LatentCache, embed_pairs, start_bridge
from sdslib.io import exits
from sdslib.io.runs import Run, RunError, find_run
from sdslib.io.state import unpack_state
from sdslib.lab import probes
from sdslib.lab.probes import AGAIN, HELD, SWAPS, World, changes, embed, world
from sdslib.miniworld import files
from sdslib.pairs import Batch, Pairs, batches, load_pairs
from sdslib.results import formatting
from sdslib.results.settings import config_of
from sdslib.scorers.diffusion import shared_draws
from sdslib.student import Student, load_student
from sdslib.teacher import Teacher, load_teacher
from sdslib.train import Models, draw_noise, objective

CHOSEN, DRAWS, BINS = 48, 8, 8  # pairs a swap and draws a choice; parts of the range of t
BATCH = 64  # pairs whose gradient is taken, and on which t are compared


# --- what h_w carries ----------------------------------------------------------------------------


def r2(true: Tensor, predicted: Tensor, center: Tensor | float = 0.0) -> float:
    """Share of the squares of `true` about `center` that `predicted` explains, pooled."""
    left, total = (true - predicted).double().square().sum(), (true - center).double().square()
    return float(1 - left / total.sum())


def reconstruction(mapped: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> pd.DataFrame:
    """R² of latents [N, C, H, W] by world that h_w gives, against the VAE's: rows of, r2.

    Of the validation world, of each channel, and of the difference to each of its changes.
    """
    z, z_hat = true[HELD], mapped[HELD]
    parts = {"latent": (z, z_hat)}
    parts |= {f"channel {n}": (z[:, n], z_hat[:, n]) for n in range(z.shape[1])}
    rows = {name: r2(own, told, own.mean(0)) for name, (own, told) in parts.items()}
    for name in (*SWAPS, AGAIN):
        rows[f"difference: {name}"] = r2(z - true[name], z_hat - mapped[name])
    return pd.DataFrame(rows.items(), columns=["of", "r2"])


@torch.no_grad()
def errors(teacher: Teacher, z: Tensor, captions: Sequence[str], t: Tensor, eps: Tensor) -> Tensor:
    """Mean squared eps errors [N] of latents [N, C, H, W], 128 at a time."""
    found = []
    for rows in torch.arange(len(z)).split(128):
        text = teacher.embed_texts([captions[n] for n in rows])
        draw = (z[rows], text, t[rows], eps[rows], teacher.alpha_bar[t[rows]])
        found.append(losses.denoising_loss(teacher.predict_noise, *draw, reduction="mean"))
    return torch.cat(found)


def choices(
    teacher: Teacher, latents: Mapping[str, Tensor], worlds: Mapping[str, World], seed: int
) -> pd.DataFrame:
    """Whether the teacher tells a caption from its swap, of both images: rows swap.

    `mean` is the share of `CHOSEN` pairs with both images right (the text score, chance 1/4),
    `images` that of single images (chance 1/2). `DRAWS` shared draws, `caption_log_likelihoods`.
    """
    draws = shared_draws(teacher.latent_shape, DRAWS, derive_seed(seed, "choice"))
    rows = []
    for kind in SWAPS:
        right = []
        for own, other in ((HELD, kind), (kind, HELD)):
            z = latents[own][:CHOSEN]
            said = [*worlds[own].captions[: len(z)], *worlds[other].captions[: len(z)]]
            t, eps = (x.repeat_interleave(len(said), 0) for x in (draws.t, draws.eps))
            z_all = z.repeat(2 * len(draws.t), 1, 1, 1)
            found = errors(teacher, z_all, said * len(draws.t), t, eps)
            cube = found.reshape(len(draws.t), 2, len(z)).permute(2, 1, 0)
            likely = losses.caption_log_likelihoods(cube, z[0].numel())
            right.append((likely[:, 0] > likely[:, 1]).numpy())
        row = {"swap": kind, **vars(metrics.wilson(right[0] & right[1]))}
        rows.append(row | {"images": float(np.mean(right))})
    return pd.DataFrame(rows)


# --- where the gradient goes, and which t tell ---------------------------------------------------


def gradients(
    models: Models, batch: Batch, t: Tensor, eps: Tensor, config: FinetuneConfig
) -> pd.DataFrame:
    """Norms of the gradients of L_CLIP and of sds_weight * L_SDS by part and kind of parameter.

    Parts are the image tower, the text tower and the bridge; kind `all` is the whole of one.
    Cosines of the second gradient: with L_CLIP's, and with itself under the captions swapped and
    under those of other images, at the same t and eps: 1 where the captions make no difference.
    """
    swaps = [negatives.named("mini").pick(c, derive_seed(config.seed, "swap", n))
             for n, c in enumerate(batch.captions)]  # fmt: skip
    terms = objective(models, batch, t, eps, config)[1]
    for name, captions in (("swapped", swaps), ("shuffled", batch.others)):
        _, false = objective(models, replace(batch, captions=tuple(captions)), t, eps, config)
        terms[name] = false["sds"]
    named = {n: p for n, p in models.student.model.named_parameters() if p.requires_grad}
    if models.bridge is not None:
        named |= {f"bridge.{n}": p for n, p in models.bridge.named_parameters()}
    parts: dict[tuple[str, str], list[int]] = {}
    for n, name in enumerate(named):
        part = {"bridge": "bridge", "visual": "image tower"}.get(name.split(".")[0], "text tower")
        for kind in ("all", _kind(name)):
            parts.setdefault((part, kind), []).append(n)
    found = {}
    for name, values in terms.items():
        grads = torch.autograd.grad(values.mean(), list(named.values()), retain_graph=True,
                                    allow_unused=True, materialize_grads=True)  # fmt: skip
        found[name] = [grad.double().flatten() for grad in grads]
    rows = []
    for (part, kind), places in parts.items():
        own = {name: torch.cat([grads[n] for n in places]) for name, grads in found.items()}
        norm = {name: float(grad.norm()) for name, grad in own.items()}
        row: dict[str, object] = {"part": part, "kind": kind, "parameters": len(own["sds"])}
        row |= {"clip": norm["clip"], "sds": config.sds_weight * norm["sds"]}
        for name in ("clip", "swapped", "shuffled"):
            both = norm["sds"] * norm[name]
            row[f"cosine with {name}"] = float(own["sds"] @ own[name]) / (both or np.nan)
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["part", "kind"], ignore_index=True)


def _kind(name: str) -> str:
    kinds = {kind: TRAINABLE[kind] for kind in ("layernorm", "attention", "projection")}
    kinds |= {"MLP": (r"\.mlp\.",), "weight and bias": (r"^bridge\.",)}
    found = (k for k, patterns in kinds.items() if any(re.search(p, name) for p in patterns))
    return next(found, "embedding")


def choice_by_t(
    teacher: Teacher, z: Tensor, worlds: Mapping[str, World], config: FinetuneConfig, seed: int
) -> pd.DataFrame:
    """How often one draw tells a caption from its swap on the image's own latent, by part of t.

    z [N, C, H, W] are the latents of `worlds`' first world. Each pair has one eps, for all parts
    and captions; its t are spread evenly over a part. Rows swap and part of t; `lead` is the mean
    of the swap's error less the caption's, by the caption's mean error.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "by t"))
    eps = torch.randn(z.shape, generator=generator)
    edges = np.linspace(config.t_min, config.t_max + 1, BINS + 1)
    rows = []
    for low, high in itertools.pairwise(edges):
        t = torch.from_numpy(low + (high - low) * (np.arange(len(z)) + 0.5) / len(z)).long()
        said = {name: worlds[name].captions[: len(z)] for name in (HELD, *SWAPS)}
        found = {name: errors(teacher, z, c, t, eps).numpy() for name, c in said.items()}
        for kind in SWAPS:
            lead = found[kind] - found[HELD]
            row = {"swap": kind, "t from": int(np.ceil(low)), "to": int(np.ceil(high)) - 1}
            row |= vars(metrics.wilson(lead > 0))
            rows.append(row | {"lead": float(lead.mean() / found[HELD].mean())})
    return pd.DataFrame(rows)


# --- all of it -----------------------------------------------------------------------------------


def student_of(run: Run) -> Student:
    """The student of a run's weights or else of its newest checkpoint; RunError without either."""
    if run.weights.is_dir():
        return load_student(f"local-dir:{run.weights}", None)
    config, found = config_of(run), run.latest_checkpoint()
    if found is None:
        raise RunError(f"{run.name} has neither weights nor a checkpoint; run it again to go on")
    student = load_student(config.clip_model, config.clip_pretrained)
    chosen = set_trainable(student, config.trainable, config.logit_scale == "trained")
    unpack_state(found.tensors, {"student": nn.ParameterList([value for _, value in chosen])})
    return student.requires_grad_(False)


@dataclass(frozen=True)
class Ground:
    """What all students are diagnosed on; `true` holds the VAE's latents of `worlds`."""

    config: FinetuneConfig
    teacher: Teacher
    pairs: Pairs
    cache: LatentCache
    fit: World
    worlds: dict[str, World]
    true: dict[str, Tensor]


def ground(config: FinetuneConfig, scenes: int) -> Ground:
    """`scenes` of the train split for fitting, a fifth as many of the validation split to ask."""
    files.ensure_world()
    pairs = load_pairs(config.train_data)
    teacher = load_teacher(config.teacher, config.teacher_revision, variant=config.variant)
    held = world("val", max(CHOSEN, scenes // 5), config.seed)
    worlds = changes(held, config.seed)
    true = {name: _latents(teacher, shown) for name, shown in worlds.items()}
    cache, fit = LatentCache(teacher, pairs), world("train", scenes, config.seed)
    return Ground(config, teacher, pairs, cache, fit, worlds, true)


def _latents(teacher: Teacher, shown: World) -> Tensor:
    return LatentCache(teacher, shown.pairs)(range(len(shown.scenes)))


def of_teacher(on: Ground) -> dict[str, pd.DataFrame]:
    """The tables that no student is needed for: what the latent holds, what the teacher tells."""
    seed, held = on.config.seed, on.worlds[HELD]
    known, asked = _latents(on.teacher, on.fit).flatten(1), on.true[HELD].flatten(1)
    trained = changes(world("train", BATCH, seed), seed)
    z = _latents(on.teacher, trained[HELD])
    both = {"VAE latent": known}, {"VAE latent": asked}
    return {
        "linear probes of the latent": probes.probe_table(*both, on.fit, held, seed),
        "the choice on the latent": choices(on.teacher, on.true, on.worlds, seed),
        "the choice by t": choice_by_t(on.teacher, z, trained, on.config, seed),
    }


def of_student(on: Ground, student: Student) -> dict[str, pd.DataFrame]:
    """One student's tables; its bridge is started anew, and all its parameters may move."""
    config, seed = on.config, on.config.seed
    bridge = start_bridge(config, student, on.cache, on.pairs)
    fitted = embed(student, on.fit)
    seen = {name: embed(student, shown) for name, shown in on.worlds.items()}
    entering = {
        name: embed_pairs(student, shown.pairs, range(len(shown.scenes)), config.bridge_input)
        for name, shown in on.worlds.items()
    }
    with torch.no_grad():
        mapped = {name: bridge(emb) for name, emb in entering.items()}
    trained = [value for _, value in set_trainable(student, config.trainable)]
    models = Models(student, trained, on.teacher, bridge, negatives.named("mini").pick, on.cache)
    draws = draw_noise(0, config.batch_size, on.teacher.latent_shape, config)
    batch = next(batches(on.pairs, student.transform, config.batch_size, seed, range(1)))
    return {
        "linear probes": probes.probe_table(fitted, seen[HELD], on.fit, on.worlds[HELD], seed),
        "swaps": probes.swap_table(fitted, on.fit, seen, on.worlds, seed),
        "R2 of h_w": reconstruction(mapped, on.true),
        "the choice on h_w": choices(on.teacher, mapped, on.worlds, seed),
        "gradients": gradients(models, batch, *draws, config),
    }


def told(table: pd.DataFrame) -> pd.DataFrame:
    """The table as people read it: shares in words, a column for each tower or swap."""
    if "mean" not in table:
        return table.round(4)
    right = list(map(formatting.share, table["mean"], table["low"], table["high"]))
    words = table.drop(columns=["mean", "low", "high", "n"]).assign(right=right).round(4)
    for row, column in (("question", "read from"), ("t from", "swap")):
        if row in words:
            values = [c for c in ("right", "lead") if c in words]
            keys = [c for c in words if c not in (column, *values)]
            return words.set_index([*keys, column])[values].unstack(column, sort=False)
    return words


@exits.foreseen
def main(words: Sequence[str] | None = None) -> int:
    """Say in numbers what the untouched student and those of runs encode, and what moves them."""
    parser = argparse.ArgumentParser("python -m sdslib.lab.diagnosis", description=main.__doc__)
    parser.add_argument("run", nargs="*", help="id, name or folder of a run")
    parser.add_argument("--runs", help="the folder of runs (default: reports/runs)")
    parser.add_argument("--scenes", type=int, default=2048, help="scenes that probes are fitted to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bridge-input", default="projected", help="what enters h_w")
    options = parser.parse_args(words)
    if options.scenes < 10:
        parser.error(f"--scenes is 10 or more, got {options.scenes}: a probe is fitted to them")
    asked = {"seed": options.seed, "bridge_input": options.bridge_input}
    config = override(mini(), trainable="all", batch_size=BATCH, **asked)
    found = [find_run(key, options.runs) for key in options.run]
    students = {"untouched": load_student(config.clip_model, None)}
    students |= {run.name: student_of(run) for run in found}
    on = ground(config, options.scenes)
    for name in ("teacher", *students):
        tables = of_student(on, students[name]) if name in students else of_teacher(on)
        for title, table in tables.items():
            print(f"\n{name}: {title}\n\n{told(table).to_string()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
