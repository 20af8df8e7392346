"""The laws of the losses, against loops, open_clip, float64 and finite differences."""

import math

import open_clip
import pytest
import reference
import torch
import torch.nn.functional as F
from tiny import LATENT, tiny_unet

from sdslib.losses import (
    add_noise,
    caption_log_likelihoods,
    choice_loss,
    contrastive_loss,
    contrastive_loss_with_negatives,
    denoising_loss,
    denoising_margin_loss,
    latent_regression_loss,
    score_distillation_loss,
    sigmoid_loss,
    sigmoid_loss_with_negatives,
)

SCALE = torch.tensor(14.3)


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def units(count, seed):
    return F.normalize(draw(count, 16, seed=seed), dim=-1)


@pytest.fixture(scope="module")
def predict():
    """A real UNet in float64, so that finite differences have digits to spare."""
    torch.manual_seed(0)
    unet = tiny_unet(block_out_channels=(32, 32)).double().eval().requires_grad_(False)
    return lambda z_t, t, text: unet(z_t, t, encoder_hidden_states=text).sample


def one_step(seed=0, pairs=2):
    """Arguments after predict_noise, in float64."""
    z, eps = (draw(pairs, *LATENT, seed=seed + i, dtype=torch.float64) for i in (1, 2))
    text = draw(pairs, 6, 32, seed=seed + 3, dtype=torch.float64)
    t = torch.tensor([40, 700][:pairs])
    alpha_bar = torch.tensor([0.97, 0.2][:pairs], dtype=torch.float64)
    return z, text, t, eps, alpha_bar


def test_contrastive_loss_is_the_double_loop():
    image, text = units(5, 1), units(5, 2)
    expected = torch.tensor(reference.contrastive(image, text, float(SCALE)))
    torch.testing.assert_close(contrastive_loss(image, text, SCALE), expected)


def test_contrastive_loss_averages_to_open_clip_and_to_the_symmetric_cross_entropy():
    image, text = units(7, 1), units(7, 2)
    mean = contrastive_loss(image, text, SCALE).mean()
    logits = SCALE * image @ text.T
    target = torch.arange(7)
    symmetric = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(mean, open_clip.ClipLoss()(image, text, SCALE))
    torch.testing.assert_close(mean, symmetric)


def test_negatives_are_extra_columns_for_the_images_only():
    image, text, negative = units(4, 1), units(4, 2), units(4, 3)
    for false in ([True] * 4, [True, False, False, True], [False] * 4):
        expected = reference.contrastive(image, text, float(SCALE), negative[false])
        got = contrastive_loss_with_negatives(image, text, negative, torch.tensor(false), SCALE)
        torch.testing.assert_close(got, torch.tensor(expected))
        assert (got > contrastive_loss(image, text, SCALE)).all() == any(false)


BIAS = torch.tensor(-9.5)


def test_sigmoid_loss_averages_to_open_clips():
    image, text = units(7, 1), units(7, 2)
    mean = sigmoid_loss(image, text, SCALE, BIAS).mean()
    torch.testing.assert_close(mean, open_clip.loss.SigLipLoss()(image, text, SCALE, BIAS))


def test_negatives_of_a_sigmoid_are_captions_that_match_no_image():
    image, text, negative = units(4, 1), units(4, 2), units(4, 3)
    false = torch.tensor([True, False, True, True])
    wrong = [math.log1p(math.exp(float(SCALE * image[i] @ c + BIAS))) for i in range(4)
             for c in negative[false]]  # fmt: skip
    got = sigmoid_loss_with_negatives(image, text, negative, false, SCALE, BIAS)
    expected = sigmoid_loss(image, text, SCALE, BIAS) + torch.tensor(wrong).view(4, 3).sum(1)
    torch.testing.assert_close(got, expected)


def test_contrastive_loss_keeps_float32_logits_under_autocast():
    image, text = units(6, 1), units(6, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(image, text, SCALE)
    assert torch.equal(inside, contrastive_loss(image, text, SCALE))


def test_add_noise_matches_float64_at_the_ends_of_the_schedule():
    table = reference.alpha_bar_table(0.00085, 0.012, 1000)
    z, eps = draw(3, *LATENT, seed=1), draw(3, *LATENT, seed=2)
    t = [0, 1, 999]
    z_t = add_noise(z, eps, torch.tensor(table[t], dtype=torch.float32))
    for i, step in enumerate(t):
        expected = torch.tensor(reference.noised(z[i], eps[i], table[step]))
        torch.testing.assert_close(z_t[i].double(), expected, rtol=0, atol=2e-6)


def test_add_noise_lifts_half_latents_and_refuses_a_half_schedule():
    z, eps = draw(2, *LATENT).bfloat16(), draw(2, *LATENT)
    alpha_bar = torch.tensor([0.9, 0.1])
    assert add_noise(z, eps, alpha_bar).dtype == torch.float32
    with pytest.raises(ValueError, match="keep the schedule in float32"):
        add_noise(z, eps, alpha_bar.half())


def test_both_routes_have_the_same_value(predict):
    arguments = one_step()
    for reduction in ("sum", "mean"):
        through = denoising_loss(predict, *arguments, reduction)
        residual = score_distillation_loss(predict, *arguments, reduction)
        assert torch.equal(through, residual)
        assert through.shape == (2,)


def test_denoising_loss_is_the_squared_norm_of_one_unet_call(predict):
    z, text, t, eps, alpha_bar = one_step()
    for i in range(2):
        z_t = torch.tensor(reference.noised(z[i], eps[i], float(alpha_bar[i])))[None]
        error = (predict(z_t, t[i : i + 1], text[i : i + 1])[0] - eps[i]).square()
        assert denoising_loss(predict, z, text, t, eps, alpha_bar)[i].item() == pytest.approx(
            error.sum().item(), rel=1e-9
        )
        assert denoising_loss(predict, z, text, t, eps, alpha_bar, "mean")[i].item() == (
            pytest.approx(error.mean().item(), rel=1e-9)
        )


def test_denoising_gradient_runs_through_the_unet(predict):
    z, text, t, eps, alpha_bar = one_step()
    z.requires_grad_()
    gradient = torch.autograd.grad(denoising_loss(predict, z, text, t, eps, alpha_bar).sum(), z)[0]
    step = 1e-5
    for seed in range(3):
        direction = draw(*z.shape, seed=10 + seed, dtype=torch.float64)
        with torch.no_grad():
            ahead = denoising_loss(predict, z + step * direction, text, t, eps, alpha_bar).sum()
            behind = denoising_loss(predict, z - step * direction, text, t, eps, alpha_bar).sum()
        slope = ((ahead - behind) / (2 * step)).item()
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(("reduction", "share"), [("sum", 1), ("mean", 64)])
def test_score_gradient_is_the_residual_times_the_chain_rule(predict, reduction, share):
    z, text, t, eps, alpha_bar = one_step()
    z.requires_grad_()
    loss = score_distillation_loss(predict, z, text, t, eps, alpha_bar, reduction).sum()
    gradient = torch.autograd.grad(loss, z)[0]
    with torch.no_grad():
        eps_hat = predict(add_noise(z, eps, alpha_bar), t, text)
    expected = 2 * alpha_bar.sqrt().view(-1, 1, 1, 1) * (eps_hat - eps) / share
    torch.testing.assert_close(gradient, expected)


def test_the_two_gradients_differ(predict):
    z, *rest = one_step()
    z.requires_grad_()
    gradients = [
        torch.autograd.grad(loss(predict, z, *rest).sum(), z)[0].flatten()
        for loss in (denoising_loss, score_distillation_loss)
    ]
    assert torch.cosine_similarity(*gradients, dim=0) < 0.999


def test_margin_is_softplus_of_two_errors_under_the_same_noise(predict):
    z, text, t, eps, alpha_bar = one_step()
    other = text.flip(0)
    margin = denoising_margin_loss(predict, z, (text, other), t, eps, alpha_bar)
    right, wrong = (denoising_loss(predict, z, c, t, eps, alpha_bar) for c in (text, other))
    torch.testing.assert_close(margin, torch.log1p((right - wrong).exp()))
    alike = denoising_margin_loss(predict, z, (text, text), t, eps, alpha_bar)
    torch.testing.assert_close(alike, torch.full_like(alike, 2.0).log())


def test_margin_gradient_runs_through_the_unet(predict):
    z, text, t, eps, alpha_bar = one_step(pairs=1)
    texts = (text, draw(1, 6, 32, seed=9, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda z: denoising_margin_loss(predict, z, texts, t, eps, alpha_bar, "mean"),
        z.requires_grad_(),
        fast_mode=True,
    )


def test_likelihoods_are_those_of_gaussians_with_the_captions_mean_error():
    errors = torch.tensor([[[1.0, 4.0], [3.0, 4.0]]], dtype=torch.float64)  # [B 1, K 2, D 2]
    found = caption_log_likelihoods(errors, 8)
    by_hand = [-8 / 2 * (1 / 2 + 4 / 4) / 2, -8 / 2 * (3 / 2 + 4 / 4) / 2]
    torch.testing.assert_close(found, torch.tensor([by_hand], dtype=torch.float64))
    # a draw's own size does not matter, only the captions' shares of it
    torch.testing.assert_close(caption_log_likelihoods(errors * torch.tensor([1, 50.0]), 8), found)


def test_choice_gradient_is_the_difference_of_the_two_choices():
    logits, teacher = draw(3, 4, seed=1), draw(3, 4, seed=2)
    logits.requires_grad_()
    choice_loss(logits, teacher).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - teacher.softmax(-1))


def test_latent_regression_is_the_squared_distance():
    z_hat, z = draw(3, *LATENT, seed=1), draw(3, *LATENT, seed=2)
    expected = torch.cdist(z_hat.flatten(1), z.flatten(1)).diag().square()
    torch.testing.assert_close(latent_regression_loss(z_hat, z), expected)
    torch.testing.assert_close(latent_regression_loss(z_hat, z, "mean"), expected / 64)


def test_wrong_shapes_and_types_are_refused_instead_of_broadcast(predict):
    z, text, t, eps, alpha_bar = one_step()
    with pytest.raises(ValueError, match=r"eps has shape \(1, 4, 4, 4\), expected \(2, 4, 4, 4\)"):
        add_noise(z, eps[:1], alpha_bar)
    with pytest.raises(ValueError, match="alpha_bar has shape"):
        add_noise(z, eps, alpha_bar[:1])
    with pytest.raises(ValueError, match="t must be int64"):
        denoising_loss(predict, z, text, t.float(), eps, alpha_bar)
    with pytest.raises(ValueError, match="reduction must be 'sum' or 'mean', got 'max'"):
        denoising_loss(predict, z, text, t, eps, alpha_bar, "max")
    with pytest.raises(ValueError, match="text_emb has shape"):
        contrastive_loss(units(4, 1), units(3, 2), SCALE)
