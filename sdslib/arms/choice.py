"""`teacher-choice`: the student chooses between captions as the teacher does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdslib import losses
from sdslib.arms.controls import false_captions
from sdslib.config import FinetuneConfig
from sdslib.train import Parties, Seen, embed_captions, in_parts, there


def choice_term(parties: Parties, seen: Seen, config: FinetuneConfig) -> Tensor:
    """The student chooses between a caption and one of the same words as the teacher does.

    The teacher sees the image itself, by its VAE latent, and is not told which caption is true.
    A caption that has no other one gives 0.
    """
    batch, image_emb = seen.batch, seen.image_emb
    wrong = false_captions(parties, batch, config)
    able = [i for i, pair in enumerate(zip(batch.captions, wrong, strict=True)) if len({*pair}) > 1]
    values = image_emb.new_zeros(len(batch.captions))
    if not able:
        return values
    z = there(parties.latents, "the pairs' latents", config)(batch.index)[able].to(image_emb)
    captions = [[batch.captions[i] for i in able], [wrong[i] for i in able]]
    t, eps = (x[:, able] for x in spread_draws(seen.t, seen.eps, config))
    with torch.no_grad():
        errors = torch.stack([_errors(parties, z, some, t, eps, config) for some in captions], 1)
    text_emb = torch.stack([embed_captions(parties, some, image_emb) for some in captions], 1)
    logits = parties.student.scale * (image_emb[able][:, None] * text_emb).sum(-1)
    teacher_says = losses.caption_log_likelihoods(errors, z[0].numel())
    found = losses.choice_loss(logits, teacher_says)
    return values.index_put((torch.tensor(able, device=values.device),), found)


def _errors(
    parties: Parties,
    z: Tensor,
    captions: Sequence[str],
    t: Tensor,
    eps: Tensor,
    config: FinetuneConfig,
) -> Tensor:
    """The teacher's mean squared error [A, D] on latents z [A, ...] for t, eps [D, A, ...]."""
    teacher = there(parties.teacher, "a teacher", config)
    draws, t_all, eps_all = len(t), t.flatten(), eps.flatten(0, 1)
    text = teacher.embed_texts(captions).repeat(draws, 1, 1)

    def values(z: Tensor, rows: slice) -> Tensor:
        t = t_all[rows]
        abar = teacher.alpha_bar[t]
        return losses.denoising_loss(
            teacher.predict_noise, z, text[rows], t, eps_all[rows], abar, "mean"
        )

    found = in_parts(values, z.repeat(draws, 1, 1, 1), config.micro_batch)
    return found.reshape(draws, -1).T


def spread_draws(t: Tensor, eps: Tensor, config: FinetuneConfig) -> tuple[Tensor, Tensor]:
    """`choice_draws` draws a pair from one: t [B], eps [B, C, H, W] -> [D, B], [D, B, C, H, W].

    A pair's D timesteps are evenly spread over t_min...t_max, its noises those of D pairs: each
    draw by itself is distributed as the one given, and a pair's draws are independent noises.
    """
    draws, span = config.choice_draws, config.t_max - config.t_min + 1
    shifts = [span * d // draws for d in range(draws)]
    spread = torch.stack([config.t_min + (t - config.t_min + shift) % span for shift in shifts])
    return spread, torch.stack([eps.roll(-d, dims=0) for d in range(draws)])
