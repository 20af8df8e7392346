"""The families of teachers: what each is made of, by the class of its pipeline."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
Widths = dict[str, tuple[int, int]]  # kind of text: what the denoiser takes, what encoders give
CLIP, POOLED, T5 = (
    f"transformers.{n}" for n in ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
)


class Family(NamedTuple):
    """A row: who runs it, and its parts with the class that loads each; the denoiser is first."""

    home: str
    parts: Mapping[str, str]
    widths: Callable[[Mapping[str, Fields]], Widths]
    optional: tuple[str, ...] = ()
    is_flow: bool = False
    packing: int = 1  # latent elements that the denoiser takes as one

    @property
    def velocity(self) -> str:
        """What the family's own error is of, beside eps: u of flow matching, or v."""
        return "u" if self.is_flow else "v"

    @property
    def denoiser(self) -> str:
        """The part that predicts: unet or transformer."""
        return next(iter(self.parts))


def _parts(denoiser: str, *encoders: str) -> dict[str, str]:
    name = "unet" if denoiser.startswith("UNet") else "transformer"
    parts = {name: f"diffusers.{denoiser}", "vae": "diffusers.AutoencoderKL"}
    return parts | {f"text_encoder_{n}".removesuffix("_1"): e for n, e in enumerate(encoders, 1)}


def _stable_diffusion(of: Mapping[str, Fields]) -> Widths:
    return {"text": (_of(of, "unet", "cross_attention_dim"), _of(of, "text_encoder"))}


def _xl(of: Mapping[str, Fields]) -> Widths:
    both = _of(of, "text_encoder") + _of(of, "text_encoder_2")
    pooled = _of(of, "unet", "projection_class_embeddings_input_dim")
    pooled -= 6 * _of(of, "unet", "addition_time_embed_dim")
    return {
        "text": (_of(of, "unet", "cross_attention_dim"), both),
        "pooled text": (pooled, _of(of, "text_encoder_2", "projection_dim")),
    }


def _three(of: Mapping[str, Fields]) -> Widths:
    takes = _of(of, "transformer", "joint_attention_dim")
    pooled = sum(_of(of, f"text_encoder{n}", "projection_dim") for n in ("", "_2"))
    return {
        "text": (takes, _of(of, "text_encoder_3", "d_model") if "text_encoder_3" in of else takes),
        "pooled text": (_of(of, "transformer", "pooled_projection_dim"), pooled),
    }


def _flux(of: Mapping[str, Fields]) -> Widths:
    pooled = _of(of, "transformer", "pooled_projection_dim")
    return {
        "text": (
            _of(of, "transformer", "joint_attention_dim"),
            _of(of, "text_encoder_2", "d_model"),
        ),
        "pooled text": (pooled, _of(of, "text_encoder")),
    }


def _of(parts: Mapping[str, Fields], part: str, key: str = "hidden_size") -> int:
    return parts[part].get(key) or 0


FIRST = Family("teacher:Teacher", _parts("UNet2DConditionModel", CLIP), _stable_diffusion)
FAMILIES = {
    "StableDiffusionPipeline": FIRST,
    "StableDiffusionXLPipeline": Family(
        "teachers.sdxl:StableDiffusionXL", _parts("UNet2DConditionModel", CLIP, POOLED), _xl
    ),
    "StableDiffusion3Pipeline": Family(
        "teachers.sd3:StableDiffusion3", _parts("SD3Transformer2DModel", POOLED, POOLED, T5),
        _three, optional=("text_encoder_3",), is_flow=True,
    ),
    "FluxPipeline": Family(
        "teachers.flux:Flux", _parts("FluxTransformer2DModel", CLIP, T5), _flux, is_flow=True,
        packing=4,
    ),
}  # fmt: skip


def family_of(index: Fields) -> Family | None:
    """The family of a pipeline by its `model_index.json`; None for one that is not known here."""
    name = str(index.get("_class_name", ""))
    return FIRST if name.startswith("StableDiffusionPipeline") else FAMILIES.get(name)


def parts_of(index: Fields) -> dict[str, str]:
    """The parts that this pipeline has, with the class of each: an optional one may be null."""
    family = family_of(index) or FIRST
    absent = {p for p in family.optional if index.get(p) in (None, [None, None])}
    return {part: kind for part, kind in family.parts.items() if part not in absent}


def encoders_of(index: Fields) -> list[str]:
    """The parts that read text; each has a tokenizer."""
    return [part for part in parts_of(index) if part.startswith("text_encoder")]


def tokenizer_of(encoder: str) -> str:
    """The folder of an encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


def configs_of(index: Fields) -> list[str]:
    """The files of a pipeline's configs."""
    tokenizers = [f"{tokenizer_of(e)}/tokenizer_config.json" for e in encoders_of(index)]
    parts = [f"{part}/config.json" for part in parts_of(index)]
    return ["model_index.json", *parts, "scheduler/scheduler_config.json", *tokenizers]


def weights_of(index: Fields, variant: str | None = None, names: Collection[str] = ()) -> list[str]:
    """The files of a pipeline's weights, as diffusers and transformers name those of a variant.

    A part whose weights are in pieces among `names` is its table and all pieces.
    """
    return [n for part, kind in parts_of(index).items() for n in _files(part, kind, variant, names)]


def pieces_of(index: Fields, variant: str | None = None) -> list[str]:
    """Patterns of weights in pieces, for who sees no listing; the first family has none."""
    stems = [_stem(part, kind, variant) for part, kind in parts_of(index).items()]
    later = family_of(index) not in (None, FIRST)
    return [name for stem, table in stems for name in (f"{stem}-*.safetensors", table) if later]


def _files(part: str, kind: str, variant: str | None, names: Collection[str]) -> list[str]:
    stem, table = _stem(part, kind, variant)
    whole = f"{stem}.safetensors"
    if table not in names or (whole in names and kind.startswith("transformers.")):
        return [whole]  # where both are there, diffusers reads the pieces
    piece = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-(\d{{5}})\.safetensors")
    count = max((int(found[1]) for name in names if (found := piece.fullmatch(name))), default=1)
    return [table, *(f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1))]


def _stem(part: str, kind: str, variant: str | None) -> tuple[str, str]:
    """How the files of a part's weights begin, and the table of those in pieces."""
    tag = f".{variant}" if variant else ""
    base = f"{part}/{'model' if kind.startswith('transformers.') else 'diffusion_pytorch_model'}"
    return f"{base}{tag}", f"{base}.safetensors.index{tag}.json"
