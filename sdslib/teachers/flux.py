"""FLUX.1: four latent elements are one token with a place, and guidance is an input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslib.teachers.flow import Flow
from sdslib.teachers.texts import pack, unpack

TOKENS = 512  # of T5 at most, as diffusers' pipeline takes
GUIDANCE = 1.0  # of a guidance-distilled model: above 1, u_hat points beyond the caption's own


class Flux(Flow):
    """T5's states, and CLIP's pooled text; a token of the picture is a square of 2×2 elements."""

    def _encode_texts(self, captions: list[str]) -> Tensor:
        clip, t5 = self.text_encoder
        tokens = self._tokens(self.tokenizer[0], captions)
        long = self._tokens(self.tokenizer[1], captions, TOKENS)
        with self._own_precision():
            pooled = clip(tokens.input_ids).pooler_output
            states = t5(long.input_ids).last_hidden_state
        return pack(states.float(), pooled.float())

    def _denoise(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        config, (height, width) = self.unet.config, x.shape[2:]
        states, pooled = unpack(text, config.pooled_projection_dim)
        found = self.unet(
            F.pixel_unshuffle(x, 2).flatten(2).mT,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            timestep=t / 1000,  # the transformer takes it times 1000
            img_ids=_places(height // 2, width // 2).to(x),
            txt_ids=x.new_zeros(states.shape[1], 3),
            guidance=t.new_full((len(x),), GUIDANCE) if config.guidance_embeds else None,
        ).sample
        return F.pixel_shuffle(found.mT.unflatten(2, (height // 2, width // 2)), 2)


def _places(rows: int, columns: int) -> Tensor:
    """(0, row, column) of each token [rows * columns, 3]."""
    return torch.cartesian_prod(*(torch.arange(n) for n in (1, rows, columns)))
