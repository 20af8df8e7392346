"""Models of a real architecture with random weights, for what they cost to run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import diffusers
import open_clip
import torch
import transformers
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from torch import nn

from sdslib.checks.student_files import described
from sdslib.checks.teacher_files import check_configs, shape_folder
from sdslib.io.model_files import WeightsError, shown
from sdslib.student import Origin, Student
from sdslib.teacher import PRECISIONS, Teacher, load_tokenizer


def random_student(model: str, device: str | torch.device = "cpu", seed: int = 0) -> Student:
    """An open_clip model by name, or a folder's, with weights drawn from `seed`: for its costs.

    No weights are read or downloaded. WeightsError for unknown names, and where the tokenizer of
    the model is on the Hub and the Hub is out of reach.
    """
    source, name = model, model
    if model not in open_clip.list_models() and not model.startswith(HF_HUB_PREFIX):
        source, name = f"{LOCAL_DIR_PREFIX}{described(model)[0]}", shown(model)
    bare: Any = {"load_weights": False, "pretrained_text": False, "device": device}
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        try:
            with _quiet():  # open_clip would say that there are no weights
                network = open_clip.create_model(source, **bare)
            tokenizer = open_clip.get_tokenizer(source)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            told = f"{name}: its config or tokenizer is out of reach: {reason}"
            raise WeightsError(told) from error
    origin = Origin(f"{name}, random weights", open_clip.get_model_config(source))
    return Student(network, tokenizer, origin).requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def random_teacher(
    source: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    seed: int = 0,
    checkpointing: bool = False,
) -> Teacher:
    """A teacher of the real architecture with weights drawn from `seed`, for what it costs to run.

    Nothing is downloaded for the ids of `KNOWN`. Captions become tokens byte by byte where the
    tokenizer's own files are not in the folder: as many tokens, without their meaning.
    """
    folder = shape_folder(source, revision)
    _, unet, vae, text, scheduler, tokens = check_configs(folder).values()
    text_config = transformers.CLIPTextConfig(**text)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        parts = (
            diffusers.UNet2DConditionModel.from_config(dict(unet)),
            diffusers.AutoencoderKL.from_config(dict(vae)),
            transformers.CLIPTextModel(text_config),
        )
    if checkpointing:
        parts[0].enable_gradient_checkpointing()
    own = folder / "tokenizer"
    tokenizer: Any = ByteTokens(tokens["model_max_length"], text_config.vocab_size)
    if any(own.glob("*vocab*")) or (own / "tokenizer.json").exists():
        tokenizer = load_tokenizer(folder)
    nn.Module.to(parts[0], PRECISIONS[precision])
    name = f"{shown(source)}, random weights"
    return Teacher(*parts, tokenizer, scheduler, name).to(device)


class ByteTokens:
    """As much of a tokenizer as an architecture without weights needs: a token a byte."""

    unk_token_id = None

    def __init__(self, model_max_length: int, vocabulary: int) -> None:
        self.model_max_length, self.vocabulary = model_max_length, vocabulary

    def __call__(self, captions: Sequence[str], **_: Any) -> transformers.BatchEncoding:
        """Token ids [B, L] and their mask, cut and padded to L."""
        ids = torch.zeros(len(captions), self.model_max_length, dtype=torch.int64)
        for row, caption in zip(ids, captions, strict=True):
            data = list(caption.encode())[: self.model_max_length]
            row[: len(data)] = torch.tensor(data) % self.vocabulary
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})
