"""What a student is loaded from: open_clip's names and tags, the Hub, folders, files of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from open_clip.pretrained import download_pretrained
from torch import Tensor

from sdslib.io import hub, model_files
from sdslib.io.model_files import TOKENIZERS, WeightsError, shown, student_file_problem
from sdslib.io.paths import project_path
from sdslib.io.sources import AccessError
from sdslib.io.storage import file_sha256

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB_WEIGHTS = (WEIGHTS, "open_clip_pytorch_model.safetensors")  # as open_clip itself prefers them
LOCAL = "clip_model a local-dir: folder"


def weights_problem(model: str, pretrained: str | None) -> str | None:
    """What is missing for `load_student`, and how to get it; None where all is there. No network.

    Files are looked at, not read whole.
    """
    try:
        if model in open_clip.list_models():
            _known_tag(model, pretrained)
        elif not model.startswith(HF_HUB_PREFIX):
            check_folder(model)
            return None
        wanted = _hub_names(model, pretrained)
        if wanted is None:
            return None
        repo, names = wanted
        found = hub.cached(repo)
        chosen = _choose(found, names) if found else None
        if found is not None and chosen is not None:
            hub.bring(found, chosen)
            return None
    except (WeightsError, AccessError) as error:
        return str(error)
    by_hand = [names[-1], *([CONFIG, *(f"{t}*" for t in TOKENIZERS)] if CONFIG in names else [])]
    return (
        f"the weights of {repo} are not in the local cache; where there is a network run "
        f"`{hub.get_by_hand(repo, by_hand)}` (licence: https://huggingface.co/{repo}), or give "
        f"{LOCAL}"
    )


def fingerprints(model: str, pretrained: str | None) -> dict[str, str]:
    """SHA-256 of every file that loading reads, by name: alike of the Hub's and a local copy.

    Nothing for a tag whose weights are not on the Hub.
    """
    if _hub_names(model, pretrained) is not None:
        found, chosen = _looked_up(model, pretrained)
        return model_files.reached("student", lambda: hub.hashes(found, chosen))
    if model in open_clip.list_models():
        file = project_path(pretrained or "")
        return {file.name: file_sha256(file)} if file.is_file() else {}
    folder = check_folder(model)
    names = [p.name for p in folder.iterdir() if p.name == CONFIG or p.name.startswith(TOKENIZERS)]
    files = [*sorted(names), model_files.find_weights(folder, HUB_WEIGHTS).name]
    return {name: file_sha256(folder / name) for name in files}


def _choose(found: hub.Snapshot, names: Sequence[str]) -> list[str] | None:
    """What is read of a repository, the weights last; None where something is not there."""
    *configs, last = [name for name in names if name in found.files] or [""]
    if not last.endswith(".safetensors") or (CONFIG in names and CONFIG not in configs):
        return None
    if CONFIG not in names:
        return [last]
    extra = [n for n in found.files if "/" not in n and n.startswith(TOKENIZERS)]
    return [CONFIG, *sorted(extra), last]


def tokenizer_source(model: str, source: str, folder: Path | None) -> str:
    """Where open_clip finds the tokenizer: beside the weights, else where its config says."""
    if folder is None or not model.startswith(HF_HUB_PREFIX):
        return source
    there = any(p.name.startswith(TOKENIZERS) for p in folder.iterdir())
    named = open_clip.get_model_config(source)["text_cfg"].get("hf_tokenizer_name")
    return source if there or not named else model


def check_folder(model: str) -> Path:
    """The folder, once its files are known to be whole and to fit each other."""
    folder, config = described(model)
    there = sorted(file.name for file in folder.iterdir())
    pickled = [file for file in there if file.endswith(model_files.PICKLES)]
    if pickled and not any(file.endswith(".safetensors") for file in there):
        given = model.removeprefix(LOCAL_DIR_PREFIX)
        model_files.refuse_pickle(f"{given}/{pickled[0]}", given)
    model_files.find_weights(folder, (WEIGHTS,))
    model_files.check_passport(folder, config)
    model_files.check_manifest(folder)
    return folder


def described(model: str) -> tuple[Path, Mapping[str, Any]]:
    """A student's folder and its config, whatever weights there are."""
    folder = project_path(model.removeprefix(LOCAL_DIR_PREFIX))
    if folder.is_file():
        raise WeightsError(student_file_problem(model.removeprefix(LOCAL_DIR_PREFIX)))
    if not folder.is_dir():
        if model.startswith(LOCAL_DIR_PREFIX) or "/" in model:
            close = nearest(model.replace("/", "-"), open_clip.list_models(), 0.8)
            raise WeightsError(f"student folder {model!r} does not exist{close}")
        raise WeightsError(f"unknown model {model!r}{nearest(model, open_clip.list_models())}")
    config = model_files.read_config(folder / CONFIG)
    if not isinstance(config.get("model_cfg"), dict):
        raise WeightsError(f"{shown(folder / CONFIG)} has no 'model_cfg'")
    return folder, config


def check_shapes(state: dict[str, Tensor], file: Path, name: str) -> None:
    """open_clip stretches positional embeddings of another size without a word."""
    for key, shape in model_files.check_safetensors(file).items():
        if key in state and state[key].numel() > 1 and tuple(state[key].shape) != shape:
            wanted = tuple(state[key].shape)
            raise WeightsError(f"{name}: weight {key!r} is {shape}, the config says {wanted}")


def check_tag(model: str, tag: str | None) -> tuple[str, dict[str, Any]]:
    """The file of a tag's weights, and how images enter; nothing pickled, nothing out of reach."""
    cfg = _known_tag(model, tag)
    if not cfg:
        return str(project_path(tag or "")), {}
    if "hf_hub" in cfg:
        folder, name = of_hub(model, tag)
        file = folder / name
    else:
        file = _from_url(f"{model}/{tag}", cfg)
    model_files.check_safetensors(file)
    known = ("mean", "std", "interpolation", "resize_mode")
    return str(file), {key: cfg[key] for key in known if cfg.get(key) is not None}


def _from_url(name: str, cfg: dict[str, Any]) -> Path:
    """Weights that are not on the Hub, brought into open_clip's cache."""
    model_files.refuse_pickle(Path(str(cfg.get("url", ""))).name, name.partition("/")[0])
    try:
        return Path(download_pretrained(cfg))
    except Exception as error:  # urllib raises a dozen unrelated types
        raise WeightsError(
            f"the weights of {name} could not be downloaded ({type(error).__name__}); load them "
            "once where there is a network, or give a folder"
        ) from error


def nearest(name: str, options: Iterable[str], cutoff: float = 0.4) -> str:
    """What is added to a message where one option is near."""
    lower = {option.lower(): option for option in options}
    close = [lower[key] for key in get_close_matches(name.lower(), lower, 3, cutoff)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _hub_names(model: str, pretrained: str | None) -> tuple[str, list[str]] | None:
    """The repository of a model and what is read of it, the weights last and in either name."""
    if model.startswith(HF_HUB_PREFIX):
        return model.removeprefix(HF_HUB_PREFIX), [CONFIG, *reversed(HUB_WEIGHTS)]
    if model not in open_clip.list_models():
        return None
    cfg = _known_tag(model, pretrained)
    if "hf_hub" not in cfg:
        return None
    repo, _, file = str(cfg["hf_hub"]).rpartition("/")
    return repo, [f"{Path(file).stem}.safetensors"] if file else [*reversed(HUB_WEIGHTS)]


def _looked_up(model: str, pretrained: str | None) -> tuple[hub.Snapshot, list[str]]:
    """What the repository of a model holds, and the files of it that are read."""
    wanted = _hub_names(model, pretrained)
    assert wanted is not None
    repo, names = wanted
    found = model_files.reached("student", lambda: hub.look(repo, None, LOCAL))
    chosen = _choose(found, names)
    if chosen is None:
        raise WeightsError(_incomplete(found, names))
    return found, chosen


def of_hub(model: str, pretrained: str | None) -> tuple[Path, str]:
    """The folder with a model's files, brought into the cache, and the name of its weights."""
    found, chosen = _looked_up(model, pretrained)
    return model_files.reached("student", lambda: hub.bring(found, chosen)), chosen[-1]


def _incomplete(found: hub.Snapshot, names: Sequence[str]) -> str:
    """Why a repository (or what the cache holds of it) cannot be loaded, from its listing."""
    if found.refused is not None:
        return f"{found.refused}"
    absent = [CONFIG] if CONFIG in names and CONFIG not in found.files else []
    absent += [] if any(n in found.files for n in names if n != CONFIG) else [names[-1]]
    weights = [n for n in found.files if n.endswith((".safetensors", *model_files.PICKLES))]
    told = f"; there are {', '.join(sorted(weights)[:6])}" if weights else ""
    pickle = next((n for n in sorted(weights) if n.endswith(model_files.PICKLES)), None)
    if names[-1] in absent and pickle:
        told += f": {model_files.student_conversion(pickle, where=' where you have it')}"
    return f"{found.repo} has no {', '.join(absent)}{told}"


def _known_tag(model: str, tag: str | None) -> dict[str, Any]:
    """open_clip's entry of the tag, or nothing for a file of weights, which is checked here."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag:
        raise WeightsError(f"{model} needs weights; clip_pretrained is one of {', '.join(tags)}")
    cfg, base = open_clip.get_pretrained_cfg(model, tag), model.removesuffix("-quickgelu")
    if not cfg and tag in open_clip.list_pretrained_tags_by_model(base):
        cfg = open_clip.get_pretrained_cfg(base, tag)
    if not cfg:
        file = project_path(tag)
        if not file.is_file():
            raise WeightsError(f"unknown weights {tag!r} for {model}{nearest(tag, tags)}")
        model_files.refuse_pickle(tag, model)
        model_files.check_safetensors(file)
        return {}
    quick = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    if bool(cfg.get("quick_gelu", False)) != quick:
        raise WeightsError(
            f"weights {tag!r} were trained with {'GELU' if quick else 'QuickGELU'} and {model} has "
            f"the other activation; use {base if quick else base + '-quickgelu'}"
        )
    return cfg
