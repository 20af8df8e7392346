"""Where in a picture a word is seen: by a student's attention and by the teacher's.

A student's map is gradient-weighted attention rollout (Chefer et al. 2021, equations 5 and 6) of
what the word adds to the score; the teacher's is its cross-attention to the word, averaged over
heads, layers and t (DAAM, Tang et al. 2023, section 3). Both are of the square that the models see.
W words, N tokens of the image tower, H heads, L tokens of the caption, h,w cells of a map.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sdslib.checks.captions import VocabularyError
from sdslib.evaluate import evaluating, squared
from sdslib.losses import add_noise
from sdslib.scorers.diffusion import shared_draws
from sdslib.student import Student
from sdslib.teacher import Teacher

WHOLE = "whole caption"


class NoMapError(ValueError):
    """A model whose attention says nothing of places; the message says why."""


@dataclass(frozen=True)
class Maps:
    """Maps [1 + W, h, w] of one picture and caption by model, the whole caption's first.

    `image` is the square that is seen, `refused` says of which model there are none, and why.
    """

    image: Image.Image
    names: list[str]
    by_model: dict[str, np.ndarray]
    refused: dict[str, str]

    def agreements(self, model: str, other: str) -> list[float]:
        """How far two models see each name in the same places, see `agreement`."""
        both = zip(self.by_model[model], self.by_model[other], strict=True)
        return [agreement(*pair) for pair in both]


def maps(
    students: Mapping[str, Student],
    image: Image.Image,
    caption: str,
    teachers: Mapping[str, Teacher] | None = None,
    seed: int = 0,
) -> Maps:
    """The maps of every word for each model that has some."""
    makers = {name: partial(student_maps, one) for name, one in students.items()}
    makers |= {n: partial(teacher_maps, one, seed=seed) for n, one in (teachers or {}).items()}
    found, refused = dict[str, np.ndarray](), dict[str, str]()
    for name, make in makers.items():
        try:
            found[name] = make(image, caption)
        except (NoMapError, VocabularyError) as reason:
            refused[name] = str(reason)
    return Maps(squared(image, "crop"), [WHOLE, *caption.split()], found, refused)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two maps [h, w], the finer one averaged down to the other's cells;
    not a number where one of them is even."""
    shape = np.minimum(one.shape, other.shape).tolist()
    a, b = (F.adaptive_avg_pool2d(torch.tensor(m)[None].double(), shape).numpy().ravel()
            for m in (one, other))  # fmt: skip
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float(a @ b / scale) if scale > 1e-12 * max(1, a.size) else float("nan")


# --- the student ---------------------------------------------------------------------------------


def student_maps(student: Student, image: Image.Image, caption: str) -> np.ndarray:
    """Maps [1 + W, h, w] of what the caption, and each word beside the others, adds to the score.

    A word's target is the cosine less the cosine without it. NoMapError for a tower other than
    open_clip's own ViT.
    """
    words, visual = caption.split(), student.model.visual
    layers = _attentions(student)
    texts = [caption, *(" ".join([*words[:n], *words[n + 1 :]]) for n in range(len(words)))]
    kept: list[tuple[Tensor, Tensor]] = []  # what goes into each layer and comes out: [B, N, D]

    def keep(layer: nn.Module, given: tuple[Tensor, ...], out: tuple[Tensor, ...]) -> None:
        kept.append((given[0], out[0]))

    with evaluating(student) as device, ExitStack() as hooks:
        text = student.encode_texts(student.tokenize(texts).to(device))
        target = torch.cat([text[:1], text[:1] - text[1:]])
        pixels = student.transform(image).to(device).expand(len(target), -1, -1, -1)
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(keep))
        with torch.enable_grad():
            score = (student.encode_images(pixels.clone().requires_grad_()) * target).sum()
            grads = torch.autograd.grad(score, [out for _, out in kept])
        relevance = torch.eye(kept[0][0].shape[1], device=device)
        for layer, (inside, _), grad in zip(layers, kept, grads, strict=True):
            relevance = relevance + _weighted(layer, inside, grad) @ relevance
    rows = relevance[:, :1] if visual.pool_type == "tok" else relevance[:, 1:]
    return rows.mean(1)[:, 1:].unflatten(1, visual.grid_size).double().cpu().numpy()


def _attentions(student: Student) -> list[nn.MultiheadAttention]:
    """The attention of every block of the image tower, in order."""
    visual = student.model.visual
    blocks = [*getattr(getattr(visual, "transformer", None), "resblocks", ())]
    attentions = (getattr(block, "attn", None) for block in blocks)
    found = [layer for layer in attentions if isinstance(layer, nn.MultiheadAttention)]
    pooled = getattr(visual, "attn_pool", None) or getattr(visual, "pool_type", "") == "none"
    if not found or len(found) < len(blocks) or pooled:
        raise NoMapError(
            f"{student.origin.name}: its image tower is no ViT of open_clip's own that pools one "
            "token or their mean, so its attention says nothing of places"
        )
    return found


def _weighted(layer: nn.MultiheadAttention, inside: Tensor, grad: Tensor) -> Tensor:
    """The mean over heads of attention times its gradient, where positive: [B, N, N].

    The gradient of A follows from that of the layer's output: it is A V through `out_proj`.
    """
    whole = F.linear(inside, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
    q, k, v, g = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
                  for part in (*whole, grad @ layer.out_proj.weight))  # fmt: skip
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (attention * (g @ v.transpose(-1, -2))).clamp(min=0).mean(1)


# --- the teacher ---------------------------------------------------------------------------------


def teacher_maps(
    teacher: Teacher, image: Image.Image, caption: str, seed: int = 0, draws: int = 16
) -> np.ndarray:
    """Maps [1 + W, h, w] at the latent's size: the share of attention that goes to each word.

    Averaged over `draws` of (t, eps), see `scorers.diffusion.shared_draws`. A word that the text
    encoder does not read has an even map of zeros.
    """
    if "cross_attention_dim" not in teacher.unet.config:
        raise NoMapError(f"{teacher.name}: no UNet whose attention to words has places")
    shared = shared_draws(teacher.latent_shape, draws, seed)
    seen: list[Tensor] = []

    def keep(layer: Any, given: tuple, named: Mapping[str, Any]) -> None:
        q, k = layer.to_q(given[0]), layer.to_k(named["encoder_hidden_states"])
        heads = layer.get_attention_scores(layer.head_to_batch_dim(q), layer.head_to_batch_dim(k))
        share = heads.float().mean(0).T  # [L, cells]: over heads and draws
        size = [round(n * (share.shape[1] / np.prod(shape)) ** 0.5) for n in shape]
        seen.append(F.interpolate(share.unflatten(1, size)[None], shape, mode="bilinear")[0])

    shape = teacher.latent_shape[1:]
    with evaluating(teacher) as device, ExitStack() as hooks:
        for name, layer in teacher.unet.named_modules():
            if name.endswith("attn2"):
                hooks.enter_context(layer.register_forward_pre_hook(keep, with_kwargs=True))
        z = teacher.encode_images(teacher.transform(image)[None].to(device))
        t, eps = shared.t.to(device), shared.eps.to(device)
        z_t = add_noise(z.expand(len(t), *z.shape[1:]), eps, teacher.alpha_bar[t])
        text = teacher.embed_texts([caption])
        teacher.predict_noise(z_t, t, text.expand(len(t), *text.shape[1:]))
    tokens = torch.stack(seen).mean(0)
    owner = _words_of_tokens(teacher, caption)
    parts = [tokens[[i for i, word in enumerate(owner) if word == n]].sum(0)
             for n in range(len(caption.split()))]  # fmt: skip
    return torch.stack([torch.stack(parts).sum(0), *parts]).double().cpu().numpy()


def _words_of_tokens(teacher: Teacher, caption: str) -> list[int]:
    """Of each token that is read, the number of its word; -1 for a mark."""
    tokenizer, spaces = teacher.tokenizers[0], " ".join(caption.split())
    asked = {"return_offsets_mapping": True, "return_special_tokens_mask": True}
    told = tokenizer(spaces, truncation=True, max_length=tokenizer.model_max_length, **asked)
    places = zip(told["offset_mapping"], told["special_tokens_mask"], strict=True)
    return [-1 if mark else spaces[:end].rstrip().count(" ") for (_, end), mark in places]
