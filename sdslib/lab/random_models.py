"""Models of a real architecture with random weights, for what they cost to run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX

from sdslib.checks.student_files import described
from sdslib.checks.teacher_files import check_configs, shape_folder
from sdslib.io.families import encoders_of, parts_of, tokenizer_of
from sdslib.io.model_files import WeightsError, read_config, shown
from sdslib.student import Origin, Student
from sdslib.teacher import Teacher, assemble, class_of, load_tokenizer, lower


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
    configs = check_configs(folder)
    index = configs["model_index.json"]
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        parts = {
            part: drawn(class_of(kind), configs[f"{part}/config.json"])
            for part, kind in parts_of(index).items()
        }
    denoiser = next(iter(parts.values()))
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    lower(index, parts, precision)
    tokenizers = [
        _tokenizer(folder, tokenizer_of(encoder), parts[encoder].config.vocab_size)
        for encoder in encoders_of(index)
    ]
    scheduler = configs["scheduler/scheduler_config.json"]
    name = f"{shown(source)}, random weights"
    return assemble(index, parts, tokenizers, scheduler, name).to(device)


def drawn(kind: Any, config: Mapping[str, Any]) -> Any:
    """A part with weights as its library draws them."""
    if hasattr(kind, "config_class"):  # transformers'
        return kind(kind.config_class(**config))
    return kind.from_config(dict(config))


def _tokenizer(folder: Path, part: str, vocabulary: int) -> Any:
    own = folder / part
    if any(own.glob("*vocab*")) or (own / "tokenizer.json").exists():
        return load_tokenizer(folder, part)
    length = read_config(own / "tokenizer_config.json")["model_max_length"]
    return ByteTokens(length, vocabulary)


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
