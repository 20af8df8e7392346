"""Losses of rivals that fine-tune CLIP on false captions: tensors in, one value a pair out.

B pairs, K places for a pair's false captions, of which `there` [B, K] says which are taken; logits
[B, 1 + K] are similarities times CLIP's scale, the own caption's first. D embedding, N captions,
P patches, M words. A pair that has no false caption has the value 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def logits_to(anchor: Tensor, captions: Tensor, scale: Tensor | float) -> Tensor:
    """scale * cosine of each anchor [B, D] with its captions [B, K, D], of unit length -> [B, K].

    In float32 or better: half-precision logits near 100 are 0.5 apart.
    """
    with torch.autocast(anchor.device.type, enabled=False):
        dtype = torch.promote_types(anchor.dtype, torch.float32)
        return scale * (anchor.to(dtype)[:, None] * captions.to(dtype)).sum(-1)


def own_caption_loss(logits: Tensor, there: Tensor) -> Tensor:
    """-log softmax of the own caption's logit among it and its false ones -> [B].

    DeGLA's image-grounded contrast where the logits are an image's with captions, its text-grounded
    one where they are a caption's with captions (Hu et al. 2025, arXiv 2504.16801). CE-CLIP's
    intra-modal contrast where the own one is image with caption and the false ones are caption with
    false caption (Zhang et al. 2024, arXiv 2306.08832, L_imc; with its numerator in its denominator
    too, so that it is never negative).
    """
    return -_log_shares(logits, there)[:, 0]


def rank_loss(logits: Tensor, there: Tensor, most: float = 10.0) -> Tensor:
    """CE-CLIP's cross-modal rank: max(0, s(I, T') - s(I, T) + Th), a pair's mean over T' -> [B].

    The threshold Th is the mean gap of the batch, between 0 and `most`, with no gradient: as the
    student gets better, more is asked (Zhang et al. 2024, L_cmr). They take the gap of the step
    before and one of each kind of false caption; here it is this step's and one of all kinds, so
    that a run that goes on needs no memory of the last batch.
    """
    gaps = (logits[:, :1] - logits[:, 1:]).masked_fill(~there, 0)
    threshold = (gaps.detach().sum() / there.sum().clamp(min=1)).clamp(0, most)
    short = (threshold - gaps).clamp(min=0).masked_fill(~there, 0)
    return short.sum(1) / there.sum(1).clamp(min=1)


def calibrated_loss(
    logits: Tensor, there: Tensor, focus: float = 2.0, smoothing: float = 0.02
) -> Tensor:
    """FSC-CLIP's hard negative loss under its selective calibrated regularization -> [B].

    Sum over the own caption and its false ones of y_k (1 - p_k)^focus (-log p_k), p the softmax of
    the logits, y the label smoothed by `smoothing` over those that are there (Oh et al. 2024, arXiv
    2410.05210, selective calibrated regularization; the constants are of the released recipe).
    """
    log_shares = _log_shares(logits, there)
    log_shares = torch.cat([log_shares[:, :1], log_shares[:, 1:].masked_fill(~there, 0)], 1)
    smooth = smoothing / (1 + there.sum(1, keepdim=True).to(logits.dtype))
    label = torch.cat([1 - smoothing + smooth, smooth * there], 1)
    return -(label * (-torch.expm1(log_shares)) ** focus * log_shares).sum(1)


def local_logits(patches: Tensor, words: Tensor, real: Tensor, scale: Tensor) -> Tensor:
    """How well the words of N captions find themselves in the patches of their images -> [N].

    patches [N, P, D], words [N, M, D] of any length, real [N, M] says which are words. Each word
    has the mean of the patches, weighed by their similarity to it (minimum 0, maximum 1 over the
    patches, no gradient through the weights); the logit is logsumexp over the words of scale *
    cosine of word and its mean (Oh et al. 2024, local hard negative loss).
    """
    near = (words @ patches.mT).detach()
    low, high = near.amin(-1, keepdim=True), near.amax(-1, keepdim=True)
    weights = torch.where(high > low, (near - low) / (high - low).clamp(min=1e-12), 1.0)
    seen = weights / weights.sum(-1, keepdim=True) @ patches
    cosines = (F.normalize(seen, dim=-1) * F.normalize(words, dim=-1)).sum(-1)
    return (scale * cosines).masked_fill(~real, -torch.inf).logsumexp(-1)


def distance(emb: Tensor, kept: Tensor) -> Tensor:
    """Squared distances of embeddings [..., D] from what they were -> [...]: self-distillation."""
    return (emb - kept).square().sum(-1)


def _log_shares(logits: Tensor, there: Tensor) -> Tensor:
    """log softmax over the own caption's logit and those of the false ones that are there."""
    false = logits[:, 1:].masked_fill(~there, -torch.inf)
    return torch.cat([logits[:, :1], false], 1).log_softmax(1)
