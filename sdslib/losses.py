"""What the student is taught: tensors in, one value per pair out.

B pairs, D embedding, C,H,W latent, L tokens, E text width. Randomness (t, eps) is an argument.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

PredictNoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z_t, t, text) -> eps_hat


def contrastive_loss(image_emb: Tensor, text_emb: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy over a batch of matched pairs.

    image_emb, text_emb [B, D] of unit length, scale [] (the exponential of logit_scale) -> [B].
    The mean over the batch is L_CLIP (Radford et al. 2021, figure 3).
    """
    _expect(text_emb, "text_emb", image_emb.shape)
    logits = _logits(image_emb, text_emb, scale)
    return (_cross_entropy(logits) + _cross_entropy(logits.T)) / 2


def contrastive_loss_with_negatives(
    image_emb: Tensor, text_emb: Tensor, negative_emb: Tensor, false: Tensor, scale: Tensor
) -> Tensor:
    """The contrastive loss with hard negative captions as extra columns for every image.

    negative_emb [N, D] of unit length, e.g. each caption with its objects swapped; false [N] says
    which of them are, for the others are no columns -> [B]. Negatives have no image, so the
    text-to-image direction is unchanged (NegCLIP, Yuksekgonul et al. 2023, section 4).
    """
    _expect(text_emb, "text_emb", image_emb.shape)
    _expect(negative_emb, "negative_emb", torch.Size((len(false), image_emb.shape[1])))
    to_text = _logits(image_emb, torch.cat([text_emb, negative_emb]), scale)
    columns = torch.cat([false.new_ones(len(text_emb), dtype=torch.bool), false.bool()])
    to_text = to_text.masked_fill(~columns, -torch.inf)
    to_image = _logits(text_emb, image_emb, scale)
    return (_cross_entropy(to_text) + _cross_entropy(to_image)) / 2


def sigmoid_loss(image_emb: Tensor, text_emb: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP's loss over a batch of matched pairs: every image and caption, a match or none.

    image_emb, text_emb [B, D] of unit length, scale and bias [] -> [B], the sum over an image's
    captions. The mean over the batch is L_CLIP of a SigLIP (Zhai et al. 2023, equation 1).
    """
    _expect(text_emb, "text_emb", image_emb.shape)
    logits = _logits(image_emb, text_emb, scale) + bias.float()
    matches = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(matches * logits).sum(1)


def sigmoid_loss_with_negatives(
    image_emb: Tensor,
    text_emb: Tensor,
    negative_emb: Tensor,
    false: Tensor,
    scale: Tensor,
    bias: Tensor,
) -> Tensor:
    """SigLIP's loss with hard negative captions, which match no image -> [B].

    Shapes as `contrastive_loss_with_negatives`.
    """
    _expect(negative_emb, "negative_emb", torch.Size((len(false), image_emb.shape[1])))
    logits = _logits(image_emb, negative_emb, scale) + bias.float()
    none = -(F.logsigmoid(-logits) * false.to(logits)).sum(1)
    return sigmoid_loss(image_emb, text_emb, scale, bias) + none


def add_noise(z: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps, in float32 or better.

    z, eps [B, C, H, W], alpha_bar [B] -> [B, C, H, W] (DDPM, Ho et al. 2020, equation 4).
    A half-precision alpha_bar is refused: 1 - alpha_bar loses 7% at small t.
    """
    _expect(eps, "eps", z.shape)
    _expect(alpha_bar, "alpha_bar", z.shape[:1])
    if alpha_bar.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"alpha_bar is {alpha_bar.dtype}; keep the schedule in float32 or better")
    dtype = torch.promote_types(z.dtype, torch.float32)
    alpha_bar = alpha_bar.to(dtype).view(-1, *[1] * (z.ndim - 1))
    return alpha_bar.sqrt() * z.to(dtype) + (1 - alpha_bar).sqrt() * eps.to(dtype)


def denoising_loss(
    predict_noise: PredictNoise,
    z: Tensor,
    text: Tensor,
    t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    reduction: str = "sum",
) -> Tensor:
    """||eps_theta(z_t, t, c) - eps||^2 with the gradient through the UNet: the paper's L_SDS.

    z, eps [B, C, H, W], text [B, L, E], t [B] int64, alpha_bar [B] (the schedule at t) -> [B].
    `reduction` over the latent elements: "sum" is the squared norm as printed, "mean" divides it
    by C*H*W. Basu et al. 2024 (arXiv 2307.09233), the second term of L_total.
    """
    _expect_timesteps(t, z)
    z_t = add_noise(z, eps, alpha_bar)
    return _per_example((predict_noise(z_t, t, text) - eps) ** 2, reduction)


_SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "eps": torch.ones_like,
    "v": lambda alpha_bar: 1 / alpha_bar,
    "u": lambda alpha_bar: (1 + ((1 - alpha_bar) / alpha_bar).sqrt()) ** 2,
}


def space_weight(alpha_bar: Tensor, space: str) -> Tensor:
    """What an error of eps at alpha_bar [B] is multiplied by to be that of v, or of u -> [B].

    1 / alpha_bar for v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z (Salimans & Ho 2022,
    section 4); (1 - s)^-2 for flow matching's u = eps - z, with s / (1 - s) the ratio of noise to
    signal (Esser et al. 2024, section 2); 1 for eps.
    """
    return _SPACES[space](alpha_bar)


def score_distillation_loss(
    predict_noise: PredictNoise,
    z: Tensor,
    text: Tensor,
    t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    reduction: str = "sum",
) -> Tensor:
    """The value of `denoising_loss`, with the UNet's Jacobian left out of the gradient.

    The gradient with respect to z is 2 sqrt(alpha_bar) (eps_hat - eps) under "sum"; it is not the
    gradient of the value. Same shapes as `denoising_loss` -> [B]. DreamFusion (Poole et al. 2023,
    equation 3) with w(t) = 2.
    """
    _expect_timesteps(t, z)
    z_t = add_noise(z, eps, alpha_bar)
    with torch.no_grad():
        residual = predict_noise(z_t, t, text) - eps
    # z_t - z_t.detach() is exactly zero, and passes the gradient on as an identity Jacobian.
    return _per_example((residual + (z_t - z_t.detach())) ** 2, reduction)


def denoising_margin_loss(
    predict_noise: PredictNoise,
    z: Tensor,
    texts: tuple[Tensor, Tensor],
    t: Tensor,
    eps: Tensor,
    alpha_bar: Tensor,
    reduction: str = "sum",
) -> Tensor:
    """softplus(E(c) - E(c')), E the denoising loss under the caption c or under a false one c'.

    `texts` are the states of (c, c'), the rest as `denoising_loss` -> [B]; both errors share t and
    eps. Small where the latent is denoised better under its own caption. Not in the paper; the
    difference is that of DiffusionITM's hard-negative tuning (Krojer et al. 2023, section 3.3),
    without its ceiling.
    """
    right, wrong = (
        denoising_loss(predict_noise, z, text, t, eps, alpha_bar, reduction) for text in texts
    )
    return F.softplus(right - wrong)


def caption_log_likelihoods(errors: Tensor, elements: int) -> Tensor:
    """What the diffusion model's errors say of which caption is true: [B, K, D] -> [B, K].

    errors [B, K, D] are mean squared errors of D draws of (t, eps) that an image's K captions
    share, `elements` is C * H * W. Each draw is a Gaussian log-likelihood whose variance is the
    draw's mean error over the captions; the D draws are averaged. Softmax over K gives Diffusion
    Classifier's posterior (Li et al. 2023, equation 5) with that weighting of t.
    """
    variance = errors.mean(dim=1, keepdim=True)
    return -elements / 2 * (errors / variance).mean(dim=-1)


def choice_loss(logits: Tensor, log_likelihoods: Tensor) -> Tensor:
    """Cross-entropy of the student's choice among K captions to the teacher's.

    logits, log_likelihoods [B, K] -> [B]; the gradient with respect to the logits is the
    difference of the two softmaxes. A log-likelihood of -inf says that there is no such caption.
    Hinton et al. 2015, section 2, at temperature 1.
    """
    _expect(log_likelihoods, "log_likelihoods", logits.shape)
    absent = log_likelihoods == -torch.inf
    logits = logits.masked_fill(absent, torch.finfo(logits.dtype).min)
    return F.cross_entropy(logits, log_likelihoods.softmax(dim=-1), reduction="none")


def latent_regression_loss(z_hat: Tensor, z: Tensor, reduction: str = "sum") -> Tensor:
    """||z_hat - z||^2 between the bridge's latent and the VAE's: the control without a UNet.

    z_hat, z [B, C, H, W] -> [B].
    """
    _expect(z, "z", z_hat.shape)
    return _per_example((z_hat - z) ** 2, reduction)


def _logits(rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
    with torch.autocast(rows.device.type, enabled=False):  # bf16 logits near 100 are 0.5 apart
        dtype = torch.promote_types(rows.dtype, torch.float32)
        return scale.to(dtype) * rows.to(dtype) @ columns.to(dtype).T


def _cross_entropy(logits: Tensor) -> Tensor:
    target = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, target, reduction="none")


def _per_example(squares: Tensor, reduction: str) -> Tensor:
    if reduction == "sum":
        return squares.flatten(1).sum(1)
    if reduction == "mean":
        return squares.flatten(1).mean(1)
    raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")


def _expect(value: Tensor, name: str, shape: torch.Size) -> None:
    if value.shape != shape:  # broadcasting would hide the mistake
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}")


def _expect_timesteps(t: Tensor, z: Tensor) -> None:
    _expect(t, "t", z.shape[:1])
    if t.dtype != torch.int64:
        raise ValueError(f"t must be int64, got {t.dtype}")
