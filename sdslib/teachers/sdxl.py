"""Stable Diffusion XL: two text encoders, pooled text and sizes beside (Podell et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdslib.teacher import Teacher
from sdslib.teachers.texts import pack, read_clip, unpack


class StableDiffusionXL(Teacher):
    """Both encoders' last states but one side by side, and the second one's pooled text.

    The UNet is told that the picture was S×S and is whole: every image here is a square of S.
    """

    def _encode_texts(self, captions: list[str]) -> Tensor:
        with self._own_precision():
            read = [
                read_clip(encoder, self._tokens(tokenizer, captions).input_ids)
                for encoder, tokenizer in zip(self.text_encoder, self.tokenizer, strict=True)
            ]
        return pack(torch.cat([states for states, _ in read], -1), read[-1][1])

    def _denoise(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        states, pooled = unpack(text, self.text_encoder[1].config.projection_dim)
        side = self.image_size
        sizes = text.new_tensor([side, side, 0, 0, side, side])  # the picture's, its corner, ours
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(x), -1)}
        return self.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=added).sample
