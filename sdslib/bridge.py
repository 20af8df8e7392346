"""The one layer that is ours: from CLIP's image embedding to the teacher's latent.

N pairs, B pairs of a batch, D embedding, C,H,W latent. The paper calls the layer h_w.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from sdslib.config import FEWEST_RIDGE
from sdslib.io.storage import write_bytes

RIDGES = tuple(10.0**k for k in range(-5, 3))


class Bridge(nn.Module):
    """The paper's linear map h_w from an embedding [B, D] to a latent [B, C, H, W].

    Starts at zero; load the state of `ridge_start` or `random_start` for another beginning.
    """

    def __init__(self, width: int, latent_shape: Sequence[int]) -> None:
        super().__init__()
        self.width, self.latent_shape = width, tuple(latent_shape)
        self.linear = nn.Linear(width, math.prod(self.latent_shape))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, emb: Tensor) -> Tensor:
        """z = h_w(emb): [B, D] -> [B, C, H, W]."""
        if emb.shape[-1] != self.width:
            raise ValueError(
                f"the bridge takes embeddings of width {self.width}, got {emb.shape[-1]}"
            )
        return self.linear(emb).unflatten(-1, self.latent_shape)

    def save(self, path: str | Path) -> None:
        """Write weights and latent shape as one safetensors file, atomically."""
        shape = {"latent_shape": json.dumps(self.latent_shape)}
        tensors = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        write_bytes(Path(path), serialize(tensors, shape))


def load_bridge(path: str | Path) -> Bridge:
    """Read a file of `Bridge.save`; ValueError where it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            shape = json.loads(file.metadata()["latent_shape"])
            state = {name: file.get_tensor(name) for name in ("linear.weight", "linear.bias")}
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a saved bridge: {error}") from error
    bridge = Bridge(state["linear.weight"].shape[1], shape)
    bridge.load_state_dict(state)
    return bridge


def random_start(width: int, latent_shape: Sequence[int], seed: int, norm: float = 1.0) -> dict:
    """State whose latents have unit variance, as Stable Diffusion's do, for embeddings of `norm`.

    Weights are normal with standard deviation 1/norm, the bias is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(math.prod(latent_shape), width, generator=generator) / norm
    return {"linear.weight": weight, "linear.bias": torch.zeros(len(weight))}


class RidgeStart(NamedTuple):
    """A start for the bridge and how good it is on pairs it was not fitted to."""

    state: dict[str, Tensor]  # of a Bridge, fitted to all pairs with the chosen strength
    ridge: float  # the chosen strength, in units of the embeddings' mean variance per dimension
    r2: float  # share of the held-out latents' variance explained
    scale: float  # held-out latents' spread over the prediction's: 1 would be latent statistics
    r2_by_ridge: dict[float, float]


def ridge_start(
    emb: Tensor,
    z: Tensor,
    ridge: float | Sequence[float] = RIDGES,
    held_out: float = 0.2,
    seed: int = 0,
) -> RidgeStart:
    """Ridge regression of latents on embeddings in closed form, in float64.

    emb [N, D], z [N, C, H, W] (the VAE's mean latents). The strength is the one of `ridge` with
    the least error on a share `held_out` of the pairs, drawn by `seed`; then all pairs are fitted.
    The intercept is not penalized. ValueError for fewer than 10 pairs a non-finite value, or
    no variance.
    """
    if len(emb) != len(z) or len(emb) < FEWEST_RIDGE:
        least = f"ridge_start needs {FEWEST_RIDGE} pairs or more"
        raise ValueError(f"{least}, got {len(emb)} and {len(z)}")
    if not (emb.isfinite().all() and z.isfinite().all()):
        raise ValueError("ridge_start: an embedding or a latent is not finite")
    x, y = emb.detach().cpu().double(), z.detach().cpu().double().flatten(1)
    for name, values in (("embeddings", x), ("latents", y)):
        if values.var(0).mean() < 1e-12:
            raise ValueError(f"ridge_start: all {len(x)} {name} are the same")
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = max(2, round(held_out * len(x)))
    test, train = order[:cut], order[cut:]
    strengths = [ridge] if isinstance(ridge, (int, float)) else list(ridge)
    held = [_quality(x[test], y[test], fit) for fit in _fits(x[train], y[train], strengths)]
    best = max(range(len(held)), key=lambda i: held[i][0])
    weight, bias = next(_fits(x, y, [strengths[best]]))
    state = {"linear.weight": weight.T.float().contiguous(), "linear.bias": bias.float()}
    r2, scale = held[best]
    by_ridge = {s: quality[0] for s, quality in zip(strengths, held, strict=True)}
    return RidgeStart(state, strengths[best], r2, scale, by_ridge)


def _fits(x: Tensor, y: Tensor, strengths: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight [D, M] and bias [M] for each strength, from one eigendecomposition."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    xc = x - x_mean
    eigenvalues, vectors = torch.linalg.eigh(xc.T @ xc / len(x))
    projected = vectors.T @ (xc.T @ (y - y_mean)) / len(x)
    unit = eigenvalues.mean()
    for strength in strengths:
        weight = vectors @ (projected / (eigenvalues.clamp_min(0) + strength * unit)[:, None])
        yield weight, y_mean - x_mean @ weight


def _quality(x: Tensor, y: Tensor, fit: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """R^2 pooled over all latent elements, and the ratio of spreads."""
    predicted = x @ fit[0] + fit[1]
    total = (y - y.mean(0)).square().sum()
    spread = (predicted - predicted.mean(0)).square().sum()
    r2 = 1 - (y - predicted).square().sum() / total
    return r2.item(), (total / spread).sqrt().item()
