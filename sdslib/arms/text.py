"""`sds-text`: half of L_SDS on the text embedding, so that the text tower is taught too."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sdslib.config import FinetuneConfig
from sdslib.train import Models, TermInputs, denoise, embed_captions


def text_term(models: Models, seen: TermInputs, config: FinetuneConfig) -> Tensor:
    """Half of L_SDS on z = h_w(f(x)), half on z = h_w(g(c)): so the text tower is taught too."""
    captions = seen.batch.captions
    by_text = replace(seen, image_emb=embed_captions(models, captions, seen.image_emb))
    both = [denoise(models, one, captions, config) for one in (seen, by_text)]
    return torch.stack(both).mean(dim=0)
