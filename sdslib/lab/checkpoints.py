"""Checkpoints of open_clip's training, `epoch_N.pt`, as `local-dir:` folders.

The only room that opens a pickle, and it builds tensors and plain values of it, never an object.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sdslib.io import model_files
from sdslib.io.model_files import WeightsError, shown
from sdslib.io.paths import shown_path
from sdslib.io.storage import StorageError
from sdslib.lab.random_models import random_student
from sdslib.student import Origin

HELD_UNDER = ("state_dict", "model", "model_state_dict")  # open_clip's, and what others call it
_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+")  # by several GPUs, and by torch.compile


def convert(file: Path, model: str, folder: Path) -> str:
    """Write the weights of a checkpoint as a folder that `load_student` and open_clip read.

    `model` is open_clip's name of what was trained, or a folder with its config. Says what a
    checkpoint does not tell and was taken from `model`. WeightsError for a file that cannot be
    read, and for weights that are not the model's, by name; StorageError where the folder exists.
    """
    if folder.exists():
        raise StorageError(f"{folder} is there already; name a new folder")
    state, trained = read_checkpoint(file)
    student = random_student(model)
    student.origin = Origin(shown(file), student.origin.model_cfg)
    named = "" if trained in (None, model.replace("/", "-")) else f"; its run was named {trained}"
    _fit(state, student.model.state_dict(), f"{shown(file)} as {model}{named}")
    student.model.load_state_dict(state)
    student.save(folder)
    quick = "QuickGELU" if student.origin.model_cfg.get("quick_gelu") else "GELU"
    pixels = ", ".join(f"{name} {value}" for name, value in student.preprocessing.items())
    taken = f"not in the checkpoint, so as {shown(model)} has it{named}: {quick}; {pixels}"
    return f"local-dir:{shown_path(folder)}\n{taken}"


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """The weights of a checkpoint by open_clip's names, and the model that its run's name tells.

    WeightsError for a file that is none, is damaged, or would need its code run.
    """
    if not file.is_file():
        raise WeightsError(f"{shown(file)} does not exist")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{shown(file)} holds more than tensors and plain values, or is damaged; nothing of it "
            "was run. Save its model's state_dict alone where it was trained"
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{shown(file)} is no checkpoint of torch ({reason})") from error
    found = found if isinstance(found, Mapping) else {}
    state = next((s for k in HELD_UNDER if isinstance(s := found.get(k), Mapping)), found)
    weights = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not weights:
        raise WeightsError(f"{shown(file)} holds no weights; open_clip's are under 'state_dict'")
    # A run that was given no name is called by its date, its model and its parameters.
    trained = re.search(r"-model_(.+?)-lr_", str(found.get("name")))
    named = {_WRAPPED.sub("", name): value for name, value in weights.items()}
    return named, trained and trained[1]


def _fit(state: dict[str, Tensor], wanted: Mapping[str, Tensor], owner: str) -> None:
    """Hold the weights to the model's: none missing, none more, each of its shape and finite."""
    missing = [name for name in wanted if name not in state]
    model_files.check_loaded(missing, [name for name in state if name not in wanted], owner)
    for name, value in state.items():
        if value.numel() == wanted[name].numel() == 1:  # logit_scale, a scalar or a vector of one
            state[name] = value.reshape(wanted[name].shape)
        elif value.shape != wanted[name].shape:
            now, then = tuple(wanted[name].shape), tuple(value.shape)
            raise WeightsError(f"{owner}: weight {name!r} is {then}, the model's is {now}")
    model_files.check_finite(state.items(), owner)
