"""Stable Diffusion 3 and 3.5: two CLIP encoders, and T5 where it is there (Esser et al. 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslib.teachers.flow import Flow
from sdslib.teachers.texts import pack, read_clip, unpack

TOKENS = 256  # of T5 at most, as diffusers' pipeline takes


class StableDiffusion3(Flow):
    """CLIP's last states but one, widened to T5's with zeros, then T5's; both pooled texts.

    Without T5 (a null in `model_index.json`) zeros stand in its place, as in diffusers.
    """

    def _encode_texts(self, captions: list[str]) -> Tensor:
        clips = zip(self.text_encoder[:2], self.tokenizer, strict=False)
        width = self.unet.config.joint_attention_dim
        with self._own_precision():
            read = [read_clip(e, self._tokens(t, captions).input_ids) for e, t in clips]
            states = torch.cat([states for states, _ in read], -1)
            long = states.new_zeros(len(captions), TOKENS, width)
            if len(self.text_encoder) > 2:
                tokens = self._tokens(self.tokenizer[2], captions, TOKENS)
                long = self.text_encoder[2](tokens.input_ids).last_hidden_state.float()
        states = torch.cat([F.pad(states, (0, width - states.shape[-1])), long], 1)
        return pack(states, torch.cat([pooled for _, pooled in read], -1))

    def _denoise(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        states, pooled = unpack(text, self.unet.config.pooled_projection_dim)
        return self.unet(
            x, encoder_hidden_states=states, pooled_projections=pooled, timestep=t
        ).sample
