"""Straightforward re-implementations that the tests compare with: loops, one number at a time."""

import math

import numpy as np
import torch


def contrastive(image_emb, text_emb, scale, negative_emb=()):
    """Symmetric cross-entropy of pair i against all others, with optional extra captions."""
    count = len(image_emb)
    captions = [*text_emb, *negative_emb]
    losses = []
    for i in range(count):
        to_text = [scale * float(image_emb[i] @ caption) for caption in captions]
        to_image = [scale * float(image_emb[j] @ text_emb[i]) for j in range(count)]
        losses.append((_nll(to_text, i) + _nll(to_image, i)) / 2)
    return losses


def _nll(logits, target):
    top = max(logits)
    return top + math.log(sum(math.exp(x - top) for x in logits)) - logits[target]


def noised(z, eps, alpha_bar):
    """z_t of one example in float64."""
    z, eps = np.asarray(z, dtype=np.float64), np.asarray(eps, dtype=np.float64)
    return math.sqrt(alpha_bar) * z + math.sqrt(1 - alpha_bar) * eps


def alpha_bar_table(beta_start, beta_end, steps):
    """Stable Diffusion's "scaled linear" schedule in float64."""
    root = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=np.float64)
    return np.cumprod(1 - root**2)


def denoising_grid(teacher, latents, captions, draws):
    """Error grid [I, K] of one item: mean over the shared (t, eps) draws of the eps-MSE.

    One UNet call for each cell and draw; latents I of [C, H, W], draws (t, eps[C, H, W]).
    """
    grid = np.zeros((len(latents), len(captions)))
    with torch.no_grad():
        for i, z in enumerate(latents):
            for k, caption in enumerate(captions):
                text = teacher.embed_texts([caption])
                for t, eps in draws:
                    z_t = torch.tensor(noised(z, eps, float(teacher.alpha_bar[t]))).float()[None]
                    eps_hat = teacher.predict_noise(z_t, torch.tensor([t]), text)[0]
                    grid[i, k] += float(((eps_hat - eps) ** 2).double().mean()) / len(draws)
    return grid


def ridge(x, y, strength):
    """Weight [D, M] and intercept of ridge regression by the normal equations in float64."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    xc, yc = x - x.mean(0), y - y.mean(0)
    covariance = xc.T @ xc / len(x)
    unit = np.trace(covariance) / x.shape[1]
    weight = np.linalg.solve(covariance + strength * unit * np.eye(x.shape[1]), xc.T @ yc / len(x))
    return weight, y.mean(0) - x.mean(0) @ weight


def clip_grids(student, items):
    """Cosine grids [N, I, K], every image and caption encoded anew for each cell."""
    with torch.no_grad():
        return np.array([
            [[_cosine(student, ref, caption) for caption in item.captions] for ref in item.images]
            for item in items
        ])  # fmt: skip


def _cosine(student, ref, caption):
    image = student.encode_images(student.transform(ref.load())[None])[0]
    text = student.encode_texts(student.tokenize([caption]))[0]
    return float(image @ text)


def score_grid_with_vae_inside(teacher, item, draws):
    """Minus the mean eps-MSE [I, K]: at every (t, eps) all images are encoded anew.

    One example at a time, its cells one batch, as DiffusionITM scores a pair of images and
    captions, but with the VAE's mean, so that the scores can be compared.
    """
    cells = [(image, caption) for image in item.images for caption in item.captions]
    pixels = torch.stack([teacher.transform(image.load()) for image, _ in cells])
    with torch.no_grad():
        text = torch.cat([teacher._encode_texts([caption]) for _, caption in cells])
        total = torch.zeros(len(cells), dtype=torch.float64)
        for t, eps in zip(draws.t, draws.eps, strict=True):
            total += _errors(teacher, teacher.encode_images(pixels), eps[None], t[None], text)
    return (-total / len(draws.t)).reshape(len(item.images), len(item.captions)).numpy()


def score_grid_with_one_pair_at_a_time(teacher, item, draws):
    """Minus the mean eps-MSE [I, K]: each pair by itself, its draws one batch.

    As Diffusion Classifier scores Winoground: image and caption encoded once a pair.
    """
    grid = np.zeros((len(item.images), len(item.captions)))
    with torch.no_grad():
        for i, image in enumerate(item.images):
            for k, caption in enumerate(item.captions):
                z = teacher.encode_images(teacher.transform(image.load())[None])
                text = teacher._encode_texts([caption]).expand(len(draws.t), -1, -1)
                grid[i, k] = -float(_errors(teacher, z, draws.eps, draws.t, text).mean())
    return grid


def _errors(teacher, z, eps, t, text):
    """Mean squared eps error of each row in float64; z, eps and t may have one row for all."""
    count = len(text)
    z, eps, t = z.expand(count, -1, -1, -1), eps.expand(count, -1, -1, -1), t.expand(count)
    signal = teacher.alpha_bar[t][:, None, None, None]
    z_t = signal.sqrt() * z + (1 - signal).sqrt() * eps
    return ((teacher.predict_noise(z_t, t, text) - eps) ** 2).double().mean((1, 2, 3))
