"""What makes two runs the same, and what one of them was computed with."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sdslib.io.paths import project_root

if TYPE_CHECKING:
    from sdslib.config import Config

DECIDES_BITS = ("python", "packages", "threads", "device", "code")  # of an environment
_AFTER_THE_RUN = ("lab/", "results/", "show/")  # wings that read what a run has left
_PACKAGES = (
    *("accelerate", "datasets", "diffusers", "numpy", "open_clip_torch", "pandas", "papermill"),
    *("peft", "pillow", "pyarrow", "pydantic", "safetensors", "scipy", "sds-clip-workbench"),
    *("tokenizers", "torch", "torchvision", "transformers"),
)


def identify(config: Config, fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two runs the same: parameters that matter, data, recipe, and the id of these.

    The fingerprint of a model that the arm never reads (`teacher` of `clip-only`) is left out.
    """
    kept, known = config.identity(), type(config).model_fields
    data = {k: v for k, v in fingerprints.items() if k in kept or k not in known}
    told = {"model": type(config).__name__, "params": kept, "data": data}
    identity = told | {"recipe": config.recipe}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {"id": hashlib.sha256(text.encode()).hexdigest()[:10]} | identity


def recipe_of(identity: Mapping[str, Any]) -> Any:
    """What made the run's numbers: its recipe, or for a run of before there was one its code."""
    return identity.get("recipe", identity.get("code"))


@cache
def code_hash() -> str:
    """A hash of the library's code when this process first asked, which is nearest to what it runs.

    Comments, docstrings and layout do not count: the code is hashed as `ast.unparse` prints it. It
    is recorded with a run, and is no part of its id: a message that is reworded makes no new run.
    """
    house, digest = project_root() / "sdslib", hashlib.sha256()
    for path in sorted(house.rglob("*.py")):
        name = path.relative_to(house).as_posix()
        if not name.startswith(_AFTER_THE_RUN):
            digest.update(f"{name}\n{_plain_code(path.read_text('utf-8'))}\n".encode())
    return digest.hexdigest()[:16]


def _plain_code(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = ast.get_docstring(node, clean=False) is not None
            node.body = node.body[said:] or [ast.Pass()]
    return ast.unparse(tree)


def environment(config: Config) -> dict[str, Any]:
    """Versions, commit, device and threads of this process; no path and no name of the machine."""
    torch = sys.modules.get("torch")
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": versions(),
        "git": _git(),
        "code": code_hash(),
        "device": _device(config.device),
        "threads": torch.get_num_threads() if torch is not None else config.threads,
        "cpus": os.cpu_count(),
    }


def _device(name: str) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None:
        return None if name == "auto" else name
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    found = "mps" if torch.backends.mps.is_available() else "cpu"
    return found if name == "auto" else name


@cache
def versions() -> dict[str, str]:
    """Those of the packages that numbers can depend on."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def _git() -> dict[str, Any] | None:
    """The commit when this process first asked, as for `code_hash`."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(project_root()), *words]
        return subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=20
        ).strip()

    try:
        dirty = bool(git("status", "--porcelain", "-uno"))
        return {"commit": git("rev-parse", "HEAD"), "dirty": dirty}
    except (OSError, subprocess.SubprocessError):
        return None
