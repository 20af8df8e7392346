"""Controls: what a gain must not also come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdslib import losses
from sdslib.config import FinetuneConfig, derive_seed
from sdslib.io import distributed
from sdslib.pairs import Batch
from sdslib.train import (
    Models,
    TermInputs,
    denoise,
    embed_captions,
    map_images,
    of_all_processes,
    there,
)


def shuffled_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """L_SDS under the caption of the batch's next image: the same gradient scale, no meaning."""
    return denoise(models, seen, seen.batch.others, config)


def regression_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """The bridge regresses the VAE latent of the image: a dense target, and no diffusion model."""
    z_hat = map_images(models, seen, config)
    z = there(models.latents, "the pairs' latents", config)(seen.batch.index)
    return losses.latent_regression_loss(z_hat, z.to(z_hat), config.sds_reduction)


def hard_negative_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """L_CLIP in which every image also sees the batch's false captions, where there are some."""
    wrong = false_captions(models, seen.batch, config)
    captions = [*seen.batch.captions, *wrong]
    text_emb, negative_emb = embed_captions(models, captions, seen.image_emb).chunk(2)
    image_emb, text_emb, negative_emb = of_all_processes(seen.image_emb, text_emb, negative_emb)
    own = torch.zeros(len(wrong), device=image_emb.device)
    own[told_apart(seen.batch, wrong)] = 1
    false = distributed.gather(own)
    return models.student.contrast_with_negatives(image_emb, text_emb, negative_emb, false)


def told_apart(batch: Batch, wrong: Sequence[str]) -> list[int]:
    """The places of the pairs that have a false caption: the others got their own again."""
    both = enumerate(zip(batch.captions, wrong, strict=True))
    return [place for place, (caption, other) in both if other != caption]


def false_captions(models: Models, batch: Batch, config: FinetuneConfig) -> list[str]:
    """A false caption for each of the batch, drawn from the seed and the pair alone.

    A caption that has none comes back itself.
    """
    negative = there(models.negative, "swapped captions", config)
    return [
        negative(caption, derive_seed(config.seed, "negative", int(index)))
        for caption, index in zip(batch.captions, batch.index, strict=True)
    ]


def several_false(models: Models, batch: Batch, config: FinetuneConfig) -> list[list[str]]:
    """`negatives_each` false captions for each of the batch, distinct; all where there are fewer.

    The first is the one of `false_captions`.
    """
    negative = there(models.negative, "swapped captions", config)

    def some(caption: str, index: int) -> list[str]:
        seed = derive_seed(config.seed, "negative", index)
        drawn = (negative(caption, seed + n) for n in range(config.negatives_each))
        return [text for text in dict.fromkeys(drawn) if text != caption]

    return [some(*pair) for pair in zip(batch.captions, batch.index.tolist(), strict=True)]
