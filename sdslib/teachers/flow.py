"""Rectified flow as noise: a teacher that predicts u = eps - z, behind the same `predict_noise`.

Its noisy latent x_s = (1-s) z + s eps is z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps scaled,
with alpha_bar = (1-s)^2 / ((1-s)^2 + s^2): only this room knows of it, and everyone else has one
way to add noise. `losses.space_weight` takes an error of eps into one of u.
"""

from __future__ import annotations

from torch import Tensor

from sdslib.teacher import Teacher


class Flow(Teacher):
    """eps_hat = x_s + (1-s) u_hat; the denoiser is told the time 1000 s."""

    def _noise(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        alpha_bar = self.alpha_bar[t].to(z_t.dtype)
        signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        s = noise / (signal + noise)
        scale = (signal + noise).view(-1, 1, 1, 1)
        u_hat = self._run(z_t / scale, 1000 * s, text)
        return (z_t + signal.view(-1, 1, 1, 1) * u_hat) / scale
