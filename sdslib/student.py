"""CLIP behind `encode_images`, `encode_texts` and `scale`; what trains is data.

B pairs, D embedding, P width before projection, S pixels a side, M token length.
The only door to open_clip and peft.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sdslib import losses
from sdslib.checks.captions import check_markers, check_words
from sdslib.checks.student_files import (
    CONFIG,
    WEIGHTS,
    check_folder,
    check_shapes,
    check_tag,
    of_hub,
    tokenizer_source,
)
from sdslib.io import model_files
from sdslib.io.images import central
from sdslib.io.model_files import WeightsError, shown
from sdslib.io.shared import digest
from sdslib.io.storage import staged_folder, write_json

_MOST_TEXTS = 2**16  # captions whose tokens are remembered
# The matrix after pooling, and the axis of its input.
_PROJECTIONS = {"proj": 0} | dict.fromkeys(
    ["attnpool.c_proj.weight", "head.proj.weight", "trunk.head.weight", "trunk.head.fc.weight"], 1
)


@dataclass(frozen=True)
class Origin:
    """Where a student came from: its short name, and open_clip's own description of it."""

    name: str
    model_cfg: dict[str, Any]


class Student(nn.Module):
    """A CLIP of open_clip, in float32; embeddings have unit length.

    `train()` leaves BatchNorms in evaluation mode, so that running statistics never move.
    """

    model: Any

    def __init__(self, model: nn.Module, tokenizer: Any, origin: Origin) -> None:
        super().__init__()
        self.model, self.tokenizer, self.origin = model, tokenizer, origin
        preprocess = PreprocessCfg(**self.model.visual.preprocess_cfg)
        self._transform = image_transform_v2(preprocess, is_train=False)
        self._crops = preprocess.resize_mode != "squash"
        self.width: int = origin.model_cfg["embed_dim"]
        self._tokens: dict[str, Tensor] = {}
        # With LoRA: the model before it was wrapped, in a list so that it is no submodule.
        self._plain_model: list[tuple[nn.Module, int]] = []

    def train(self, mode: bool = True) -> Student:
        """As any module's, except that BatchNorms stay in evaluation mode."""
        super().train(mode)
        _hold_statistics(self)
        return self

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings [B, D], float32, of transformed images [B, 3, S, S]."""
        with self._as_saved() as model:
            return F.normalize(model.encode_image(pixels, normalize=False).float(), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings [B, D], float32, of token ids [B, M]."""
        with self._as_saved() as model:
            return F.normalize(model.encode_text(tokens, normalize=False).float(), dim=-1)

    def encode_short_texts(self, tokens: Tensor) -> Tensor:
        """`encode_texts`, the padding that all rows share left out where that changes nothing.

        It changes nothing where no token sees a later one and the highest id is taken as the end:
        in CLIP's own text tower. Any other tower gets the full length.
        """
        width, mask = int(caption_lengths(tokens).max()), getattr(self.model, "attn_mask", None)
        causal = mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
        by_id = getattr(self.model, "text_pool_type", "") == "argmax"
        if not causal or not by_id or width >= tokens.shape[1]:
            return self.encode_texts(tokens)
        with self._as_saved() as model:
            short = {
                "model.positional_embedding": model.positional_embedding[:width],
                "model.attn_mask": model.attn_mask[:width, :width],
            }
            emb = torch.func.functional_call(_TextTower(model), short, tokens[:, :width])
            return F.normalize(emb.float(), dim=-1)

    def encode_patches(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`encode_images` [B, D], and the patches [B, P, D] in the same space, of any length.

        For a student of which `checks.models.gives_tokens`, as `encode_words`.
        """
        with self._as_saved() as model, _output(model.visual.ln_post) as found:
            emb = self.encode_images(pixels)
            return emb, (found[0][:, 1:] @ model.visual.proj).float()

    def encode_words(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`encode_short_texts` [B, D], and the words [B, M, D] in the same space, of any length.

        Which of M are words, or the end of the caption, is the third: [B, M].
        """
        with self._as_saved() as model, _output(model.ln_final) as found:
            emb, to_joint = self.encode_short_texts(tokens), model.text_projection
            words = to_joint(found[0]) if callable(to_joint) else found[0] @ to_joint
        place = torch.arange(words.shape[1], device=tokens.device)
        return emb, words.float(), (place > 0) & (place <= tokens.argmax(-1, keepdim=True))

    @contextmanager
    def _as_saved(self) -> Iterator[Any]:
        """The model; without gradients in the very form in which `save` would write it.

        matmul picks its kernel by `requires_grad` even where no gradient is asked for, so a frozen
        model differs in the last bit from the fresh one that open_clip makes of the folder.
        """
        if torch.is_grad_enabled():
            yield self.model
            return
        model = self._merged_model() if self._plain_model else self.model
        frozen = [value for value in model.parameters() if not value.requires_grad]
        for value in frozen:
            value.requires_grad_(True)
        try:
            yield model
        finally:
            for value in frozen:
                value.requires_grad_(False)

    def _merged_model(self) -> nn.Module:
        """The plain architecture with LoRA merged in, brought up to date when a weight moved."""
        moves = sum(value._version for value in self.model.parameters())
        plain, known = self._plain_model[0]
        if moves != known:
            plain.load_state_dict(_merged(self.model))
            device = next(self.model.parameters()).device
            self._plain_model[0] = (plain.to(device), moves)
        return _hold_statistics(plain.train(self.training))

    def pooled_images(self, pixels: Tensor) -> Tensor:
        """The image tower's pooled output [B, P] before projection, not normalized.

        Computed with the projection replaced by the identity; ValueError for a tower without one.
        """
        visual, name = self.model.visual, self._projection()
        weight = visual.get_parameter(name)
        eye = torch.eye(self.pooled_width, dtype=weight.dtype, device=weight.device)
        stand_in = {name: eye}
        bias = name.replace("weight", "bias")
        if bias != name and bias in dict(visual.named_parameters()):
            stand_in[bias] = torch.zeros_like(eye[0])
        out = torch.func.functional_call(visual, stand_in, pixels)
        return (out[0] if isinstance(out, tuple) else out).float()

    def map_input(self, pixels: Tensor, kind: str) -> Tensor:
        """What enters h_w as `bridge_input` says, [B, `map_width`], not always of unit length.

        "projected" is the embedding, "pooled" stands before its projection, and "tokens-G" are the
        last layer's patches in the joint space, averaged over G×G squares of the image.
        """
        if kind == "projected":
            return self.encode_images(pixels)
        if kind == "pooled":
            return self.pooled_images(pixels)
        _, patches = self.encode_patches(pixels)
        grid = patches.mT.unflatten(2, self.model.visual.grid_size)
        return F.adaptive_avg_pool2d(grid, int(kind.removeprefix("tokens-"))).flatten(1)

    def map_width(self, kind: str) -> int:
        """The width of what enters h_w."""
        if kind == "pooled":
            return self.pooled_width
        squares = int(kind.partition("-")[2] or 1) ** 2
        return squares * self.width

    @property
    def pooled_width(self) -> int:
        """P: the image tower's width before projection."""
        name = self._projection()
        return self.model.visual.get_parameter(name).shape[_PROJECTIONS[name]]

    def _projection(self) -> str:
        names = dict(self.model.visual.named_parameters())
        for name in _PROJECTIONS:
            if name in names:
                return name
        raise ValueError(
            f"{self.origin.name}: the image tower has no final projection; "
            "use bridge_input='projected'"
        )

    @property
    def scale(self) -> Tensor:
        """The exponential of logit_scale, a scalar tensor; a CLIP's at most 100, as in training."""
        scale = self.model.logit_scale.exp().squeeze()
        return scale.clamp(max=100) if self.bias is None else scale

    @property
    def bias(self) -> Tensor | None:
        """What a SigLIP adds to its logits, a scalar tensor; None for a CLIP."""
        bias = self.model.logit_bias
        return None if bias is None else bias.squeeze()

    def contrast(self, image_emb: Tensor, text_emb: Tensor) -> Tensor:
        """L_CLIP [B] of matched embeddings [B, D], by the loss that the student was trained with.

        SigLIP's where it has a logit bias, else CLIP's.
        """
        if self.bias is None:
            return losses.contrastive_loss(image_emb, text_emb, self.scale)
        return losses.sigmoid_loss(image_emb, text_emb, self.scale, self.bias)

    def contrast_with_negatives(
        self, image_emb: Tensor, text_emb: Tensor, negative_emb: Tensor, false: Tensor
    ) -> Tensor:
        """`contrast` [B] with false captions [N, D] for every image, where false [N] says so."""
        emb = (image_emb, text_emb, negative_emb, false)
        if self.bias is None:
            return losses.contrastive_loss_with_negatives(*emb, self.scale)
        return losses.sigmoid_loss_with_negatives(*emb, self.scale, self.bias)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """open_clip's description of `transform`."""
        return dict(self.model.visual.preprocess_cfg)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what `transform` gives, in pixels."""
        size = self.preprocessing["size"]
        return (size, size) if isinstance(size, int) else tuple(size)

    def transform(self, image: Image.Image) -> Tensor:
        """The model's own evaluation preprocessing: [3, S, S]."""
        return self._transform(central(image) if self._crops else image)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids int64 [B, M]; VocabularyError names what is no word to it.

        Those of the last captions are remembered: epochs say them again, and runs score sets twice.
        """
        new = [text for text in dict.fromkeys(captions) if text not in self._tokens]
        for start in range(0, len(new), 1024):
            some = new[start : start + 1024]
            self._tokens |= zip(some, self._read(some), strict=True)
        found = torch.stack([self._tokens[text] for text in captions])
        for text in [*islice(self._tokens, max(0, len(self._tokens) - _MOST_TEXTS))]:
            del self._tokens[text]
        return found

    def _read(self, captions: list[str]) -> Tensor:
        inner = getattr(self.tokenizer, "tokenizer", None)
        texts = [self.tokenizer.clean_fn(caption) for caption in captions]
        if inner is not None:
            check_words(inner, texts, self.origin.name)
        else:
            check_markers(self.marks, texts, self.origin.name)
        return self.tokenizer(captions).long().cpu()

    @property
    def marks(self) -> list[str]:
        """What the tokenizer reads as its own marks wherever it stands in a caption."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is not None:
            return list(inner.all_special_tokens)
        return [self.tokenizer.decoder[own] for own in self.tokenizer.all_special_ids]

    def embeds(self) -> dict[str, Any]:
        """All that embeddings depend on, as plain values; the weights as `save` writes them."""
        with torch.no_grad(), self._as_saved() as model:
            known = {"weights": digest(model), "model": self.origin.model_cfg}
        return known | {
            "preprocessing": self.preprocessing,
            "device": model.logit_scale.device.type,
        }

    def weights(self) -> dict[str, Tensor]:
        """A copy of every weight under open_clip's name, as `save` writes it: LoRA merged in."""
        return _merged(self.model)

    def save(self, folder: str | Path) -> None:
        """Write an open_clip `local-dir:` folder in one rename: config, float32 weights, tokenizer.

        `open_clip.create_model_from_pretrained("local-dir:FOLDER")` gives the same embeddings bit
        for bit; LoRA is merged into the base weights there, and stays apart here.
        """
        document = {
            "model_cfg": self.origin.model_cfg,
            "preprocess_cfg": self.model.visual.preprocess_cfg,
        }
        with staged_folder(Path(folder)) as stage:
            (stage / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
            save_file(self.weights(), stage / WEIGHTS)
            if hasattr(self.tokenizer, "save_pretrained"):
                self.tokenizer.save_pretrained(stage)
            passport = {"model": self.origin.name, "precision": "fp32"}
            write_json(
                stage / model_files.PASSPORT, passport | model_files.passport(document, stage)
            )


@contextmanager
def _output(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a layer gives while the model runs."""
    found = list[Tensor]()
    hook = module.register_forward_hook(lambda _, args, out: found.append(out))
    try:
        yield found
    finally:
        hook.remove()


class _TextTower(nn.Module):
    """`encode_text` as a forward, which `functional_call` can run with other tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens, normalize=False)


def caption_lengths(tokens: Tensor) -> Tensor:
    """Tokens [N] of each row [N, M] up to the first of its trailing run of equal (padding) ones."""
    same = (tokens == tokens[:, -1:]).flip(1)
    run = same.long().cumprod(dim=1).sum(dim=1)
    return tokens.shape[1] - run + 1


def _hold_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """The model's own state, LoRA added in; a copy is merged, so that training can go on."""
    if has_lora(model):
        import peft

        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.merge()
    return {
        plain_name(name): value.detach().cpu().clone().contiguous()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }


# --- loading -------------------------------------------------------------------------------------


def load_student(model: str, pretrained: str | None, device: str | torch.device = "cpu") -> Student:
    """Load an open_clip model by name and tag, from the Hub ("hf-hub:ID") or from a folder.

    `model` may be "local-dir:PATH" or a plain folder, relative to the project. Everything is
    frozen until `set_trainable`. WeightsError (what, where, what to do) for weights that are
    missing, pickled, cut, not finite, or do not fit, for an activation that is not the one the
    weights were trained with, for a folder that is not what its passport or manifest says, and for
    unknown names.
    """
    folder, preprocess = None, dict[str, Any]()
    if model.startswith(HF_HUB_PREFIX):
        name = model.removeprefix(HF_HUB_PREFIX)
        folder, pretrained = check_folder(str(of_hub(model, pretrained)[0])), None
        source = f"{LOCAL_DIR_PREFIX}{folder}"
    elif model in open_clip.list_models():
        source, name = model, f"{model}/{pretrained}"
        pretrained, preprocess = check_tag(model, pretrained)
    else:
        folder, pretrained = check_folder(model), None
        source, name = f"{LOCAL_DIR_PREFIX}{folder}", shown(folder)
    try:
        network = open_clip.create_model(
            source, pretrained, require_pretrained=True, force_preprocess_cfg=preprocess
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise WeightsError(f"{name}: the weights do not fit the config: {reason}") from error
    state = network.state_dict()
    model_files.check_finite(state.items(), name)
    scale = float(state["logit_scale"].exp().max())
    if network.logit_bias is None and scale > 100.5:  # OpenAI's stand at 100 within rounding
        past = f"{name}: exp(logit_scale) is {scale:.0f}, past 100"
        warnings.warn(f"{past}; used as 100, as in CLIP's training", stacklevel=2)
    if folder is not None:
        check_shapes(state, model_files.find_weights(folder, (WEIGHTS,)), name)
    tokenizer = open_clip.get_tokenizer(tokenizer_source(model, source, folder))
    cfg = open_clip.get_model_config(source)
    student = Student(network, tokenizer, Origin(name, cfg)).requires_grad_(False)
    return student.to(device).eval()


# --- what trains ---------------------------------------------------------------------------------


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1,000 classes as CLIP's prompts name them, in the order of their WordNet ids."""
    return tuple(open_clip.IMAGENET_CLASSNAMES)


def plain_name(name: str) -> str:
    """open_clip's own name of a parameter that peft has wrapped."""
    return name.replace("base_layer.", "")


def has_lora(model: nn.Module) -> bool:
    """Whether some layer of it has a low-rank addition."""
    return any(".lora_" in name for name, _ in model.named_parameters())
