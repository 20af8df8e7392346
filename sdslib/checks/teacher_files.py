"""What a teacher is loaded from: a folder in diffusers' layout or a repository, and its configs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdslib.checks.models import known_index, known_shapes
from sdslib.io import hub, model_files
from sdslib.io.families import (
    FIRST,
    configs_of,
    encoders_of,
    family_of,
    parts_of,
    pieces_of,
    tokenizer_of,
    weights_of,
)
from sdslib.io.model_files import WeightsError, files_below, layout_problem, shown, teacher_index
from sdslib.io.paths import project_path
from sdslib.io.sources import AccessError
from sdslib.io.storage import file_sha256

LOCAL = "teacher a folder in diffusers' layout"


def check_folder(folder: Path, variant: str | None = None) -> dict[str, Mapping[str, Any]]:
    """The folder's configs by file name, once they fit each other and all weights are whole."""
    names, index = files_below(folder), teacher_index(folder)
    problem = layout_problem(names, shown(folder), index, variant)
    if problem:
        raise WeightsError(problem)
    configs = check_configs(folder)
    for name in weights_of(index, variant, names):
        if name.endswith(".safetensors"):
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
            names, index = (found.files, _index(found)) if found else ((), known_index(source))
            if found is None or layout_problem(names, source, index, variant):
                wanted = [*configs_of(index), *weights_of(index, variant, names)]
                absent = [name for name in wanted if name not in names]
                tokenizers = (f"{tokenizer}/*" for tokenizer in _tokenizers(index))
                whole = [*wanted, *pieces_of(index, variant), *tokenizers]
                return (
                    f"{len(absent)} of the files of {source} are not in the local cache, as "
                    f"{absent[0]}; where there is a network run "
                    f"`{hub.get_by_hand(source, whole, revision)}` (licence: "
                    f"https://huggingface.co/{source}), or give {LOCAL}"
                )
            folder = hub.bring(found, wanted_files(found.files, index, variant))
        check_folder(folder, variant)
    except (WeightsError, AccessError) as error:
        return str(error)
    return None


def wanted_files(
    names: Iterable[str], index: Mapping[str, Any], variant: str | None = None
) -> list[str]:
    """Those of a teacher's files that loading reads: they decide its numbers."""
    names = sorted(names)
    read = {*configs_of(index), *weights_of(index, variant, names)}
    return [n for n in names if n in read or n.partition("/")[0] in _tokenizers(index)]


def _tokenizers(index: Mapping[str, Any]) -> list[str]:
    return [tokenizer_of(encoder) for encoder in encoders_of(index)]


def fingerprints(
    source: str, revision: str | None = None, variant: str | None = None
) -> dict[str, str]:
    """SHA-256 of every file that loading reads, by name: alike of the Hub's and a local copy."""
    folder = project_path(source)
    if folder.is_dir():
        names = wanted_files(files_below(folder), teacher_index(folder), variant)
        return {n: file_sha256(folder / n) for n in names}
    found = _look(source, revision)
    names = wanted_files(found.files, _index(found), variant)
    return model_files.reached("teacher", lambda: hub.hashes(found, names))


def check_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The folder's configs by file name, once they fit each other."""
    index, where = model_files.read_config(folder / "model_index.json"), shown(folder)
    configs = {name: model_files.read_config(folder / name) for name in configs_of(index)}
    family = family_of(index)
    if family is None:
        raise WeightsError(
            layout_problem((), where, {"_class_name": str(index.get("_class_name"))})
        )
    parts = {part: configs[f"{part}/config.json"] for part in parts_of(index)}
    name = {"unet": "UNet"}.get(family.denoiser, family.denoiser)
    for what, (takes, given) in family.widths(parts).items():
        if takes != given:
            encoder = "encoder gives" if len(encoders_of(index)) == 1 else "encoders give"
            raise WeightsError(
                f"{where}: the {name} attends to {what} of width {takes}, the text {encoder} "
                f"{given}; they belong to different models"
            )
    channels = parts[family.denoiser].get("in_channels")
    latent = parts["vae"].get("latent_channels") or 0
    if channels != family.packing * latent:
        raise WeightsError(
            f"{where}: the {name} takes {channels} channels, the VAE gives "
            f"{latent}; inpainting and upscaling models are no teachers"
        )
    if parts["vae"].get("latents_mean"):
        raise WeightsError(f"{where}: its VAE has latents_mean, a scale that no family here has")
    scheduler = configs["scheduler/scheduler_config.json"]
    if is_flow(scheduler) != family.is_flow:
        kind = "one of flow matching" if family.is_flow else "one with betas"
        told = f"{where} has the scheduler {scheduler.get('_class_name')}, and needs {kind}"
        raise WeightsError(f"{told}; take scheduler/ of the model that the weights belong to")
    is_velocity(scheduler)
    alpha_bar(scheduler)
    return configs


def bring_folder(source: str, revision: str | None, variant: str | None) -> Path:
    """The folder with all that loading reads, brought from the Hub where it is not here."""
    folder = project_path(source)
    if folder.is_dir():
        return folder
    found = _look(source, revision)
    index = _index(found)
    problem = layout_problem(found.files, source, index, variant)
    if problem:
        out_of_reach = f". {found.refused}" if found.refused else ""  # the cache holds a part
        raise WeightsError(problem + out_of_reach)
    return _bring(found, wanted_files(found.files, index, variant))


def _check_id(source: str) -> None:
    if source.count("/") != 1 or project_path(source).parent.is_dir():
        raise WeightsError(f"teacher folder {source!r} does not exist")


def alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    """The share of signal at each timestep, float64 [T], from a scheduler's config.

    alpha_bar_t = prod_{s <= t} (1 - beta_s) (DDPM, Ho et al. 2020, equation 4). In float32 the
    product's error reaches 1e-4 of 1 - alpha_bar at small t.
    """
    if is_flow(scheduler):
        return _flow_alpha_bar(scheduler)
    count, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule")
    start, end = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    if "sigma_data" in scheduler:
        raise WeightsError("scheduler with sigma_data: EDM's noise levels are no schedule of betas")
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


def _flow_alpha_bar(scheduler: Mapping[str, Any]) -> Tensor:
    """The same of x_s = (1-s) z + s eps, which is z_t scaled: (1-s)^2 / ((1-s)^2 + s^2).

    t of T is diffusers' timestep before the shift, s = shift t/T / (1 + (shift-1) t/T); one that
    depends on the resolution (`use_dynamic_shifting`) shifts samples alone, as in diffusers'
    training examples.
    """
    count = scheduler.get("num_train_timesteps", 1000)
    shift = 1.0 if scheduler.get("use_dynamic_shifting") else scheduler.get("shift", 1.0)
    s = torch.arange(count, dtype=torch.float64) / count
    s = shift * s / (1 + (shift - 1) * s)
    return (1 - s) ** 2 / ((1 - s) ** 2 + s**2)


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether the schedule is rectified flow's, not one of betas."""
    return str(scheduler.get("_class_name", "")).startswith("FlowMatch")


def is_velocity(scheduler: Mapping[str, Any]) -> bool:
    """Whether the UNet predicts v in place of eps."""
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise WeightsError(f"prediction_type {kind!r}; known are epsilon and v_prediction")
    return kind == "v_prediction"


def _look(source: str, revision: str | None) -> hub.Snapshot:
    _check_id(source)
    return model_files.reached("teacher", lambda: hub.look(source, revision, LOCAL))


def _index(found: hub.Snapshot) -> Mapping[str, Any]:
    """What the repository's pipeline is made of; empty where its listing has no index."""
    if "model_index.json" not in found.files:
        return {}
    return teacher_index(_bring(found, ["model_index.json"]))


def _bring(found: hub.Snapshot, names: Iterable[str]) -> Path:
    return model_files.reached("teacher", lambda: hub.bring(found, names))


def latent_shape(source: str, revision: str | None = None) -> tuple[int, int, int]:
    """(C, H, W) of a teacher's latents, from its configs alone."""
    folder = shape_folder(source, revision)
    family = family_of(teacher_index(folder)) or FIRST
    denoiser = model_files.read_config(folder / family.denoiser / "config.json")
    own = "sample_size" in denoiser
    return shape_of(denoiser, {} if own else model_files.read_config(folder / "vae/config.json"))


def shape_of(denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int, int]:
    """The same of both configs; a denoiser without a size of its own takes the VAE's."""
    size = denoiser.get("sample_size")
    if size is None:
        size = vae["sample_size"] // vae_factor(vae)
    height, width = (size, size) if isinstance(size, int) else size
    return vae.get("latent_channels", denoiser["in_channels"]), height, width


def vae_factor(vae: Mapping[str, Any]) -> int:
    """Pixels a side of one latent element."""
    return 2 ** (len(vae["block_out_channels"]) - 1)


def shape_folder(source: str, revision: str | None = None) -> Path:
    """A folder with a teacher's configs: its own, the package's for a known id, or the Hub's."""
    folder = project_path(source)
    if folder.is_dir():
        return folder
    if (known := known_shapes(source)).is_dir() and revision is None:
        return known
    found = _look(source, revision)
    wanted = configs_of(_index(found))
    absent = [name for name in wanted if name not in found.files]
    if absent:
        raise WeightsError(f"{source} has no {', '.join(absent)}; a teacher is a whole pipeline")
    return _bring(found, wanted)
