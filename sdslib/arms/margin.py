"""`sds-margin`: the latent is to be denoised better under its caption than under a false one."""

from __future__ import annotations

from torch import Tensor

from sdslib import losses
from sdslib.arms.controls import false_captions
from sdslib.config import FinetuneConfig
from sdslib.train import Parties, Seen, in_parts, map_images, there


def margin_term(parties: Parties, seen: Seen, config: FinetuneConfig) -> Tensor:
    """z = h_w(f(x)) is to be denoised better under the image's caption than under a false one."""
    teacher = there(parties.teacher, "a teacher", config)
    right = teacher.embed_texts(seen.batch.captions)
    wrong = teacher.embed_texts(false_captions(parties, seen.batch, config))

    def values(z: Tensor, rows: slice) -> Tensor:
        return losses.denoising_margin_loss(
            teacher.predict_noise,
            z,
            (right[rows], wrong[rows]),
            seen.t[rows],
            seen.eps[rows],
            teacher.alpha_bar[seen.t[rows]],
            config.sds_reduction,
        )

    return in_parts(values, map_images(parties, seen, config), config.micro_batch)
