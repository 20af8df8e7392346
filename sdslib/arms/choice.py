"""`teacher-choice`: the student chooses between captions as the teacher does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sdslib import losses
from sdslib.arms.controls import false_captions, told_apart
from sdslib.config import FinetuneConfig, derive_seed
from sdslib.train import Models, TermInputs, embed_captions, in_parts, there


class Judged(NamedTuple):
    """What the teacher says of the pairs at `places` [A]: the captions of each as the student
    embeds them, [A, 1 + K, D], and their log-likelihoods [A, 1 + K], -inf where there are fewer."""

    places: list[int]
    text_emb: Tensor
    log_likelihoods: Tensor


def choice_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """The student chooses between a caption and others of the same words as the teacher does.

    The teacher sees the image itself, by its VAE latent, and is not told which caption is true. It
    is asked in the step, or has been: see `verdicts`. A caption that has no other one gives 0.
    """
    values = seen.image_emb.new_zeros(len(seen.batch.captions))
    judged = (looked_up if models.verdicts else asked)(models, seen, config)
    if judged is None:
        return values
    image_emb = seen.image_emb[judged.places]
    logits = models.student.scale * (image_emb[:, None] * judged.text_emb).sum(-1)
    found = losses.choice_loss(logits, judged.log_likelihoods.to(logits))
    return values.index_put((torch.tensor(judged.places, device=values.device),), found)


def asked(models: Models, seen: TermInputs, config: FinetuneConfig) -> Judged | None:
    """The teacher's word on each caption and one false one, by the step's own draws."""
    batch = seen.batch
    wrong = false_captions(models, batch, config)
    able = told_apart(batch, wrong)
    if not able:
        return None
    z = there(models.latents, "the pairs' latents", config)(batch.index)[able].to(seen.image_emb)
    captions = [[batch.captions[i] for i in able], [wrong[i] for i in able]]
    t, eps = (x[:, able] for x in spread_draws(seen.t, seen.eps, config))
    with torch.no_grad():
        errors = torch.stack([_errors(models, z, some, t, eps, config) for some in captions], 1)
    text_emb = torch.stack([embed_captions(models, some, seen.image_emb) for some in captions], 1)
    return Judged(able, text_emb, losses.caption_log_likelihoods(errors, z[0].numel()))


def looked_up(models: Models, seen: TermInputs, config: FinetuneConfig) -> Judged | None:
    """The teacher's word on each caption and on false ones, from a file of verdicts."""
    find = there(models.verdicts, "verdicts", config)
    index, captions = seen.batch.index.tolist(), seen.batch.captions
    known = {
        i: verdict.some(config.negatives_each, derive_seed(config.seed, "negative", index[i]))
        for i, verdict in enumerate(find(index, captions))
        if verdict and len(verdict.captions) > 1
    }
    if not known:
        return None
    texts = dict.fromkeys(c for verdict in known.values() for c in verdict.captions)
    emb, place = embed_once(models, list(texts), seen), dict(zip(texts, count(), strict=False))
    rows = [torch.tensor([place[c] for c in verdict.captions]) for verdict in known.values()]
    said = [torch.tensor(verdict.log_likelihoods) for verdict in known.values()]
    return Judged(list(known), emb[pad_sequence(rows, True)], pad_sequence(said, True, -torch.inf))


def embed_once(models: Models, texts: Sequence[str], seen: TermInputs) -> Tensor:
    """The texts as the student embeds them, [N, D]: those that L_CLIP has embedded not again."""
    student, new = models.student, [text for text in texts if text not in seen.known]
    found = dict(seen.known)
    if new:
        emb = student.encode_short_texts(student.tokenize(new).to(seen.image_emb.device))
        found |= zip(new, emb, strict=True)
    return torch.stack([found[text] for text in texts])


def _errors(
    models: Models,
    z: Tensor,
    captions: Sequence[str],
    t: Tensor,
    eps: Tensor,
    config: FinetuneConfig,
) -> Tensor:
    """The teacher's mean squared error [A, D] on latents z [A, ...] for t, eps [D, A, ...]."""
    teacher = there(models.teacher, "a teacher", config)
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
