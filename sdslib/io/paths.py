"""Paths as people write them: relative ones are meant from the project root, on every machine."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdslib.io.wording import ParameterError

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, on Linux and macOS


def project_root() -> Path:
    """The folder with `pyproject.toml` and `sdslib/`, above this file or above the working folder.

    Raises FileNotFoundError when neither has one.
    """
    for start in (Path(__file__).resolve(), Path.cwd() / "here"):
        for folder in start.parents:
            if (folder / "pyproject.toml").is_file() and (folder / "sdslib").is_dir():
                return folder
    raise FileNotFoundError(f"no project root above {Path.cwd()}: start inside the repository")


def project_path(path: str | Path) -> Path:
    """An absolute path; a relative one is meant from the project root.

    ParameterError for one that no file system takes.
    """
    if problem := path_problem(str(path)):
        raise ParameterError([problem])
    return project_root() / Path(path).expanduser()


def path_problem(text: str) -> str | None:
    """Why no file system takes this as a path, and what to do; None where one does."""
    shown = repr(text if len(text) <= 60 else f"{text[:40]}…{text[-10:]}")
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in text.split("/")]
    if "\0" in text:
        return f"path {shown} holds a NUL character; leave it out"
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
        most = f"{_LONGEST_NAME} bytes a name and {_LONGEST_PATH:,} in all"
        return f"path {shown} is too long; a file system takes {most}, so name a shorter one"
    try:
        Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        return f"path {shown}: there is no user {user.removeprefix('~')!r} here; write it in full"
    return None


def folder_at(text: str) -> Path | None:
    """The folder of this name, where there is one; a text that is no path names none."""
    if path_problem(text):
        return None
    path = project_path(text)
    return path if path.is_dir() else None


class Shown(str):
    """A path as a reader should see it, which a notebook's output shows as a link.

    The link starts where the kernel does, in the notebook's folder; JupyterLab opens what lies
    below the folder that it serves.
    """

    def _repr_html_(self) -> str:
        if not (full := project_path(self)).exists():
            return html.escape(self)
        href = quote(os.path.relpath(full.resolve()).replace(os.sep, "/"))
        return f'<a href="{href}">{html.escape(self)}</a>'

    def __repr__(self) -> str:
        return str(self)


def shown_path(path: Path) -> Shown:
    """A file's path as a reader should see it: from the project root where it lies below."""
    root, full = project_root().resolve(), path.resolve()
    return Shown((full.relative_to(root) if full.is_relative_to(root) else path).as_posix())


_PLACE = re.compile(r"(?:^|(?<=[:,=]))(?:~|/(?!/)|[A-Za-z]:[\\/])[^:,]*")


def without_places(value: Any) -> Any:
    """The same value, each absolute path in it cut to its last two names: for what is handed on."""
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _PLACE.sub(lambda m: "/".join(re.split(r"[\\/]+", m[0].rstrip("\\/"))[-2:]), value)


def split_source(source: str) -> tuple[str, str]:
    """`local-dir:`, where the source has it, and the rest."""
    prefix = "local-dir:" if source.startswith("local-dir:") else ""
    return prefix, source.removeprefix(prefix)


def portable(source: str) -> str:
    """Write a path below the project root relative to it, so that ids agree between machines."""
    prefix, folder = split_source(source)
    try:
        inside = Path(folder).relative_to(project_root())
    except (ValueError, FileNotFoundError):
        return source
    return prefix + inside.as_posix()
