"""Rival methods, each as its own paper has it, on the run's own false captions and pairs.

They differ from the published ones in the data: CE-CLIP's false captions are of a masked language
model, DeGLA's two million of an LLM, and neither is made here; `negatives` may name a file of them.
The weights in front of the terms are those of the released recipes; `negative_weight` is a factor
on them all. K is `negatives_each`; B pairs, b of them of this process, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from sdslib.arms.controls import several_false
from sdslib.arms.rival_losses import (
    calibrated_loss,
    distance,
    local_logits,
    logits_to,
    own_caption_loss,
    rank_loss,
)
from sdslib.config import FinetuneConfig
from sdslib.io import distributed
from sdslib.student import Student
from sdslib.train import Models, TermInputs, of_all_processes, there

# CE-CLIP: scripts/run_multiple_nodes.sh of github.com/lezhang7/Enhance-FineGrained.
INTRA_MODAL, RANK = 0.3, 0.2
# FSC-CLIP on COCO: README of github.com/ytaek-oh/fsc-clip.
GLOBAL, LOCAL = 0.5, 0.2
# DeGLA: scripts/train_DeGLA.sh of github.com/xiaoxing2001/DeGLA. Its 0.005 is on the sum over a
# batch of 8 * 32 pairs, where every other term is a mean.
GROUNDED, DISTILLED, TEXT_SCALE = 0.1, 0.005 * 8 * 32, 10.0


class Compared(NamedTuple):
    """Unit embeddings of all processes' pairs: images [B, D], captions [B, 1 + K, D], the own one
    first, and which of the K false ones there are, [B, K]."""

    images: Tensor
    captions: Tensor
    there: Tensor

    def contrast(self, student: Student) -> Tensor:
        """L_CLIP in which every image also sees all false captions of the batch: [B]."""
        own, false = self.captions[:, 0], self.captions[:, 1:].flatten(0, 1)
        there = self.there.flatten()
        return student.contrast_with_negatives(self.images, own, false, there)


def ce_clip_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """CE-CLIP (Zhang et al., CVPR 2024): hard negatives, intra-modal contrast, cross-modal rank."""
    wrong, scale = several_false(models, seen.batch, config), models.student.scale
    all_ = compared(models.student, seen.image_emb, seen.batch.captions, wrong, config)
    across = logits_to(all_.images, all_.captions, scale)
    within = logits_to(all_.captions[:, 0], all_.captions[:, 1:], scale)
    within = torch.cat([across[:, :1], within], 1)
    extra = INTRA_MODAL * own_caption_loss(within, all_.there)
    extra = extra + RANK * rank_loss(across, all_.there)
    return all_.contrast(models.student) + config.negative_weight * extra


def fsc_clip_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """FSC-CLIP (Oh et al., EMNLP 2024): L_CLIP, and two calibrated hard negative losses.

    The global one compares embeddings, the local one patches with words. The images go through
    the student a second time, for their patches.
    """
    student, batch = models.student, seen.batch
    wrong = several_false(models, batch, config)
    image_emb, patches = student.encode_patches(batch.pixels)
    texts = [*batch.captions, *chain.from_iterable(wrong)]
    emb, words, real = student.encode_words(student.tokenize(texts).to(image_emb.device))
    owner = [*range(len(wrong)), *(i for i, some in enumerate(wrong) for _ in some)]
    local = local_logits(patches[owner], words, real, student.scale)
    captions, taken = in_places(emb, wrong, config)
    extra = GLOBAL * calibrated_loss(logits_to(image_emb, captions, student.scale), taken)
    extra = extra + LOCAL * calibrated_loss(in_places(local, wrong, config)[0], taken)
    images, own = of_all_processes(image_emb, captions[:, 0])
    contrast = student.contrast(images, own)
    return contrast + config.negative_weight * distributed.gather(extra)


def degla_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """DeGLA-like (Hu et al. 2025): hard negatives, two grounded contrasts, self-distillation.

    The teacher is the untouched student. DeGLA's is a moving average that starts as the untouched
    student and keeps 0.9996 of itself a step: some hundreds of steps hardly move it.
    """
    wrong, scale = several_false(models, seen.batch, config), models.student.scale
    texts, untouched = seen.batch.captions, there(models.untouched, "its own start", config)
    all_ = compared(models.student, seen.image_emb, texts, wrong, config)
    with torch.no_grad():
        image_emb = untouched.encode_images(seen.batch.pixels)
        kept = compared(untouched, image_emb, texts, wrong, config)
    by_image = logits_to(all_.images, all_.captions, scale)
    anchored = torch.cat([kept.captions[:, :1], all_.captions[:, 1:]], 1)
    by_text = logits_to(all_.captions[:, 0], anchored, TEXT_SCALE)
    extra = GROUNDED * own_caption_loss(by_image, all_.there)
    extra = extra + GROUNDED * own_caption_loss(by_text, all_.there)
    moved = distance(all_.captions, kept.captions).sum(1) + distance(all_.images, kept.images)
    return all_.contrast(models.student) + config.negative_weight * (extra + DISTILLED * moved)


def compared(
    student: Student,
    image_emb: Tensor,
    captions: Sequence[str],
    wrong: Sequence[Sequence[str]],
    config: FinetuneConfig,
) -> Compared:
    """What a student makes of the b pairs' captions and their false ones, of all processes."""
    texts = [*captions, *chain.from_iterable(wrong)]
    emb = student.encode_short_texts(student.tokenize(texts).to(image_emb.device))
    all_, taken = in_places(emb, wrong, config)
    images, *each = of_all_processes(image_emb, *all_.unbind(1))
    return Compared(images, torch.stack(each, 1), distributed.gather(taken.float()).bool())


def in_places(
    rows: Tensor, wrong: Sequence[Sequence[str]], config: FinetuneConfig
) -> tuple[Tensor, Tensor]:
    """Rows of b captions and after them of all their false ones -> [b, 1 + K, ...], zeros where
    there are fewer than K; and which there are, [b, K]."""
    counts = torch.tensor([len(some) for some in wrong], device=rows.device)
    taken = torch.arange(config.negatives_each, device=rows.device) < counts[:, None]
    false = rows.new_zeros(*taken.shape, *rows.shape[1:])
    false = false.index_put(taken.nonzero(as_tuple=True), rows[len(wrong) :])
    return torch.cat([rows[: len(wrong), None], false], 1), taken
