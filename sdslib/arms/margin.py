"""`sds-margin`: the latent is to be denoised better under its caption than under a false one."""

from __future__ import annotations

import torch
from torch import Tensor

from sdslib import losses
from sdslib.arms.controls import false_captions, told_apart
from sdslib.config import FinetuneConfig
from sdslib.train import Models, TermInputs, in_parts, map_images, there


def margin_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """z = h_w(f(x)) is to be denoised better under the image's caption than under a false one.

    A caption that has no false one gives 0.
    """
    teacher = there(models.teacher, "a teacher", config)
    false = false_captions(models, seen.batch, config)
    able, found = told_apart(seen.batch, false), seen.image_emb.new_zeros(len(false))
    if not able:
        return found
    right = teacher.embed_texts([seen.batch.captions[i] for i in able])
    wrong = teacher.embed_texts([false[i] for i in able])
    t, eps = seen.t[able], seen.eps[able]

    def values(z: Tensor, rows: slice) -> Tensor:
        return losses.denoising_margin_loss(
            teacher.predict_noise,
            z,
            (right[rows], wrong[rows]),
            t[rows],
            eps[rows],
            teacher.alpha_bar[t[rows]],
            config.sds_reduction,
        )

    margins = in_parts(values, map_images(models, seen, config)[able], config.micro_batch)
    return found.index_put((torch.tensor(able, device=found.device),), margins)
