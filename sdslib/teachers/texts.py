"""What several text encoders make of a caption, in one tensor that caches and scorers hand on.

The tokens' states [B, L, E] and a pooled text [B, D] stand in one [B, L + P, E]: the pooled text
fills the last P = ceil(D / E) rows, with zeros behind it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pack(states: Tensor, pooled: Tensor) -> Tensor:
    """Both in one: [B, L, E] and [B, D] -> [B, L + P, E]."""
    width = states.shape[2]
    rows = F.pad(pooled, (0, -pooled.shape[1] % width)).unflatten(1, (-1, width))
    return torch.cat([states, rows], 1)


def unpack(text: Tensor, pooled: int) -> tuple[Tensor, Tensor]:
    """Both again, of a pooled text of that width."""
    rows = -(-pooled // text.shape[2])
    return text[:, :-rows], text[:, -rows:].flatten(1)[:, :pooled]


def read_clip(encoder: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The last states but one [B, L, E], and the pooled text [B, D], projected where it can be."""
    out = encoder(ids, output_hidden_states=True)
    pooled = out.text_embeds if "text_embeds" in out else out.pooler_output
    return out.hidden_states[-2].float(), pooled.float()
