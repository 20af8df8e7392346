"""A frozen Stable Diffusion behind `embed_texts`, `encode_images` and `predict_noise`.

B pairs, C,H,W latent, L tokens, E text width, T timesteps, S pixels a side.
Stable Diffusion 1 and 2 stand here; `io.families` has a row for each later family, whose class, in
`teachers`, is this one with its own texts and its own call of the denoiser.
The only door to diffusers and transformers, besides the making of the mini-world's models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from sdslib.checks.captions import check_markers, check_words
from sdslib.checks.teacher_files import (
    alpha_bar,
    bring_folder,
    check_folder,
    is_velocity,
    shape_of,
    vae_factor,
)
from sdslib.config import derive_seed
from sdslib.io import model_files
from sdslib.io.families import T5, encoders_of, family_of, parts_of, tokenizer_of
from sdslib.io.images import central
from sdslib.io.lazy import named
from sdslib.io.model_files import WeightsError, shown
from sdslib.io.shared import digest

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CACHE_BYTES = 2**29  # of caption embeddings: 2,000 captions of Stable Diffusion 1


class Teacher(nn.Module):
    """A Stable Diffusion that stays frozen and in evaluation mode whatever its parent does.

    The UNet computes in `precision`, and T5 in bfloat16 with it; VAE, CLIP's text encoders,
    schedule and everything that goes in or comes out are float32. A later family's `unet` may be a
    transformer, and its text encoders and tokenizers are several, in lists.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    alpha_bar: Tensor

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Mapping[str, Any],
        name: str = "teacher",
    ) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder = unet, vae, text_encoder
        self.tokenizer, self.scheduler, self.name = tokenizer, dict(scheduler), name
        self.register_buffer("alpha_bar", alpha_bar(scheduler).float(), persistent=False)
        self.is_velocity = is_velocity(scheduler)
        self.latent_shape = shape_of(unet.config, vae.config)
        self.image_size = self.latent_shape[1] * vae_factor(vae.config)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self.requires_grad_(False).train()

    def train(self, mode: bool = True) -> Teacher:
        """Always evaluation mode: a teacher does not learn."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    def transform(self, image: Image.Image, mode: str = "crop") -> Tensor:
        """Pixels [3, S, S] in [-1, 1] at the teacher's size S.

        "crop" takes the central square after a resize of the shorter side, "squash" distorts,
        "pad" fits the longer side and fills with black.
        """
        size, image = self.image_size, image.convert("RGB")
        if mode == "squash":
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        elif mode in ("crop", "pad"):
            image = central(image) if mode == "crop" else image
            side = min(image.size) if mode == "crop" else max(image.size)
            width, height = (max(1, round(length * size / side)) for length in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - size) // 2, (height - size) // 2
            image = image.crop((left, top, left + size, top + size))
        else:
            raise ValueError(f"mode must be 'crop', 'squash' or 'pad', got {mode!r}")
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1

    @torch.no_grad()
    def encode_images(self, pixels: Tensor, eps: Tensor | None = None) -> Tensor:
        """The VAE's mean latents, scaled: pixels [B, 3, S, S] in [-1, 1] -> [B, C, H, W].

        The mean, so that the same image always has the same latent; with eps [B, C, H, W], which
        is standard normal, a sample of the posterior, mean + std * eps.
        """
        with self._own_precision():
            posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        z = posterior.mean if eps is None else posterior.mean + posterior.std * eps.to(pixels)
        shift = self.vae.config.get("shift_factor") or 0.0
        return (z.float() - shift) * self.vae.config.scaling_factor

    def encodes(self) -> dict[str, Any]:
        """All that latents of transformed images depend on, as plain values."""
        settings = {k: v for k, v in self.vae.config.items() if not k.startswith("_")}
        known = {"vae": digest(self.vae), "settings": settings, "size": self.image_size}
        return known | {"device": self.device.type}

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """The text encoder's last hidden states [B, L, E], each caption computed once.

        VocabularyError names words outside a closed vocabulary. Longer captions are cut at L
        tokens, as Stable Diffusion does. What a later family makes of a caption is one tensor
        [L, E] a caption too, see `teachers.texts`.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._texts]
        if new:
            self._check_words(new)
            self._texts.update(zip(new, self._encode_texts(new), strict=True))
        for caption in captions:
            self._texts.move_to_end(caption)
        found = torch.stack([self._texts[caption] for caption in captions]).to(self.device)
        while len(self._texts) * found[0].nbytes > CACHE_BYTES:
            self._texts.popitem(last=False)
        return found

    @property
    def tokenizers(self) -> list[Any]:
        """The tokenizer, or each of several."""
        return self.tokenizer if isinstance(self.tokenizer, list) else [self.tokenizer]

    @property
    def marks(self) -> list[str]:
        """What a tokenizer reads as its own marks wherever it stands in a caption."""
        return [m for one in self.tokenizers for m in getattr(one, "all_special_tokens", ())]

    def _check_words(self, captions: Sequence[str]) -> None:
        first, *others = self.tokenizers
        check_words(first, captions, self.name)  # T5, beside it, has no token for some rare signs
        for other in others:
            check_markers(other.all_special_tokens, captions, self.name)

    def _tokens(self, tokenizer: Any, captions: list[str], most: int | None = None) -> Any:
        """Token ids [B, L] and their mask, padded to the tokenizer's own L, or to `most`."""
        length = min(tokenizer.model_max_length, most or tokenizer.model_max_length)
        return tokenizer(
            captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(self.device)

    def _encode_texts(self, captions: list[str]) -> Tensor:
        tokens = self._tokens(self.tokenizer, captions)
        masked = getattr(self.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask if masked else None
        with self._own_precision():
            out = self.text_encoder(tokens.input_ids, attention_mask=mask)
        return out.last_hidden_state.float()

    def predict_noise(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps_hat [B, C, H, W] for noisy latents [B, C, H, W], t [B] int64, text [B, L, E].

        The gradient passes through the UNet to `z_t`. A v-prediction UNet's output is turned into
        noise: eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) z_t (Salimans & Ho 2022, section 4).
        float32 in and out; float64 stays float64 for a teacher made double.
        """
        if z_t.shape[1:] != self.latent_shape or len(t) != len(z_t) or len(text) != len(z_t):
            raise ValueError(
                f"z_t {tuple(z_t.shape)}, t {tuple(t.shape)} and text {tuple(text.shape)} do not "
                f"fit each other and latents of {self.latent_shape}"
            )
        with self._own_precision():
            return self._noise(z_t, t, text)

    def _noise(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """eps_hat from what the UNet predicts: eps, or v."""
        out = self._run(z_t, t, text)
        if not self.is_velocity:
            return out
        signal = self.alpha_bar[t].to(z_t.dtype).view(-1, 1, 1, 1)
        return signal.sqrt() * out + (1 - signal).sqrt() * z_t

    def _run(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """What the denoiser predicts of x at t, computed in its own precision."""
        dtype = self.unet.dtype
        return self._denoise(x.to(dtype), t, text.to(dtype)).to(x.dtype)

    def _denoise(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.unet(x, t, encoder_hidden_states=text).sample

    def predict_latent(self, z_t: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """z_0 = (z_t - sqrt(1 - alpha_bar) eps_hat) / sqrt(alpha_bar): what the UNet sees in z_t.

        Shapes as `predict_noise` (DDIM, Song et al. 2021, equation 9).
        """
        signal = self.alpha_bar[t].to(z_t.dtype).view(-1, 1, 1, 1)
        return (z_t - (1 - signal).sqrt() * self.predict_noise(z_t, t, text)) / signal.sqrt()

    def sample(
        self, captions: Sequence[str], steps: int = 50, guidance: float = 7.5, seed: int = 0
    ) -> list[Image.Image]:
        """Pictures of the captions by deterministic DDIM with classifier-free guidance.

        Each picture's noise derives from (seed, its place), so that it does not depend on the
        others. Runs through diffusers' own StableDiffusionPipeline.
        """
        if self.tokenizers != [self.tokenizer]:
            raise NotImplementedError(f"{self.name}: only Stable Diffusion 1 and 2 draw here")
        self._check_words(captions)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=diffusers.DDIMScheduler.from_config(self.scheduler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "sample", i))
            for i in range(len(captions))
        ]
        half = self.unet.dtype in (torch.float16, torch.bfloat16)
        with torch.autocast(self.device.type, self.unet.dtype if half else None, enabled=half):
            return pipeline(
                list(captions),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
            ).images

    def _own_precision(self) -> torch.autocast:
        """A surrounding autocast must not decide how the teacher computes."""
        return torch.autocast(self.device.type, enabled=False)


# --- loading -------------------------------------------------------------------------------------


def load_teacher(
    source: str,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    precision: str = "fp32",
    random_weights_seed: int | None = None,
    checkpointing: bool = False,
    variant: str | None = None,
) -> Teacher:
    """Load a pipeline of `io.families` from a folder, or from the Hub by id and revision.

    `precision` is the UNet's: fp32, bf16 or fp16; see `lower`. `random_weights_seed` draws the
    UNet's weights anew (the control without knowledge): the same architecture, schedule, VAE and
    text encoder. `checkpointing` recomputes the UNet's activations in the backward pass. `variant`
    takes the files of weights of that name (fp16), lifted to float32. WeightsError (what, where,
    what to do) for a folder that is not complete, not safetensors, or does not fit itself.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be fp32, bf16 or fp16, got {precision!r}")
    folder = bring_folder(source, revision, variant)
    configs = check_folder(folder, variant)
    index = configs["model_index.json"]
    parts = {part: _load(kind, folder, part, variant) for part, kind in parts_of(index).items()}
    denoiser = next(iter(parts))
    if random_weights_seed is not None:
        parts[denoiser] = _drawn_anew(parts[denoiser], random_weights_seed)
    if checkpointing:
        parts[denoiser].enable_gradient_checkpointing()
    lower(index, parts, precision)
    tokenizers = [load_tokenizer(folder, tokenizer_of(encoder)) for encoder in encoders_of(index)]
    scheduler = configs["scheduler/scheduler_config.json"]
    return assemble(index, parts, tokenizers, scheduler, shown(source)).to(device)


def lower(index: Mapping[str, Any], parts: Mapping[str, Any], precision: str) -> None:
    """The denoiser in its precision; below fp32 also T5, whose billions would take 19 GB.

    In bfloat16, for fp16's range is too small for T5's activations.
    """
    denoiser, *others = parts_of(index)
    nn.Module.to(parts[denoiser], PRECISIONS[precision])  # diffusers' own `to` warns of nothing
    for part in others:
        if precision != "fp32" and parts_of(index)[part] == T5:
            nn.Module.to(parts[part], torch.bfloat16)


def assemble(
    index: Mapping[str, Any],
    parts: Mapping[str, Any],
    tokenizers: list[Any],
    scheduler: Mapping[str, Any],
    name: str,
) -> Teacher:
    """The teacher of an index's family, from its parts and a tokenizer for each text encoder."""
    family = family_of(index)
    assert family is not None  # `check_configs` refuses the others
    unet, vae, *encoders = parts.values()
    texts = (encoders[0], tokenizers[0])
    if len(encoders) > 1:
        texts = (nn.ModuleList(encoders), tokenizers)
    return named(family.home)(unet, vae, *texts, scheduler, name)


def class_of(kind: str) -> Any:
    """The class that `library.Class` of a family's row stands for."""
    library, _, name = kind.partition(".")
    return getattr({"diffusers": diffusers, "transformers": transformers}[library], name)


def _load(kind: str, folder: Path, part: str, variant: str | None) -> Any:
    """One part in float32, every weight present and finite."""
    where = f"{shown(folder)}/{part}"
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        module, info = class_of(kind).from_pretrained(
            folder / part,
            dtype=torch.float32,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsError(f"{where}: {' '.join(str(error).split())[:400]}") from error
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith("position_ids")]
    model_files.check_loaded(sorted(info["missing_keys"]), sorted(unexpected), where)
    model_files.check_finite(module.state_dict().items(), where)
    return module


def load_tokenizer(folder: Path, part: str = "tokenizer") -> Any:
    """A tokenizer of a teacher's folder."""
    return transformers.AutoTokenizer.from_pretrained(folder / part, local_files_only=True)


def _drawn_anew(unet: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(unet).from_config(unet.config)
