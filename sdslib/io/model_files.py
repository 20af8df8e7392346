"""Files of weights, whoever wrote them: what they must satisfy, and a teacher's layout."""

from __future__ import annotations

import hashlib
import json
import shlex
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from sdslib.io.families import FAMILIES, configs_of, family_of, weights_of
from sdslib.io.sources import AccessError
from sdslib.io.storage import MANIFEST, manifest_problem
from sdslib.io.wording import a_few

if TYPE_CHECKING:
    from torch import Tensor

PASSPORT = "passport.json"
TOKENIZERS = ("tokenizer", "vocab", "merges", "special_tokens")  # how their files' names begin
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Found = TypeVar("Found")


class WeightsError(ValueError):
    """A model cannot be loaded as asked; says what, where, and what to do."""


def shown(path: str | Path) -> str:
    """The last two names of a path: enough to find it, and nothing of the machine."""
    return "/".join(Path(path).parts[-2:])


def find_weights(folder: Path, preferred: Sequence[str] = ()) -> Path:
    """The safetensors file of a folder, whole by its own header.

    WeightsError for no weights, a Git-LFS pointer, a file cut short.
    """
    files = sorted(folder.glob("*.safetensors"))
    files.sort(key=lambda file: file.name not in preferred)
    if files:
        check_safetensors(files[0])
        return files[0]
    raise WeightsError(f"{shown(folder)} has no weights; put a .safetensors file there")


def reached(who: str, call: Callable[[], Found]) -> Found:
    """What the call gives; a refusal of the Hub is a WeightsError of the student or the teacher."""
    try:
        return call()
    except AccessError as error:
        raise WeightsError(f"{who} {error}") from error


def check_manifest(folder: Path) -> None:
    """Refuse a folder that is not as its manifest, where it has one, says."""
    problem = manifest_problem(folder) if (folder / MANIFEST).is_file() else None
    if problem:
        raise WeightsError(f"{shown(folder)}: {problem}; get it again")


def refuse_pickle(file: str, model: str) -> None:
    """WeightsError with the command that converts a student's file; it is never unpickled here."""
    if not file.endswith(".safetensors"):
        raise WeightsError(student_conversion(file, model))


def check_safetensors(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, from the header; WeightsError for a file that is not whole."""
    if not file.is_file():
        raise WeightsError(f"{shown(file)} does not exist")
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if start == b"version ":
            raise WeightsError(f"{shown(file)} is a Git-LFS pointer, not weights; git lfs pull")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        head = opened.read(length) if 0 < length <= size - 8 else b""
    try:
        entries = json.loads(head)
        entries.pop("__metadata__", None)
        expected = 8 + length + max(entry["data_offsets"][1] for entry in entries.values())
        shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{shown(file)} is not a safetensors file; get it again") from error
    if size != expected:
        have, need = size / 1e6, expected / 1e6
        raise WeightsError(f"{shown(file)} is cut: {have:.3f} of {need:.3f} MB; get it again")
    try:
        with safe_open(file, "pt"):
            return shapes
    except SafetensorError as error:
        reason = str(error).splitlines()[0][:200]
        raise WeightsError(f"{shown(file)} cannot be read ({reason}); get it again") from error


def check_finite(tensors: Iterable[tuple[str, Tensor]], owner: str) -> None:
    """WeightsError naming the first tensor with a NaN or an infinity."""
    for name, value in tensors:
        if value.is_floating_point() and not value.isfinite().all():
            raise WeightsError(f"{owner}: weight {name!r} holds NaN or infinity; get it again")


def check_loaded(missing: Sequence[str], unexpected: Sequence[str], owner: str) -> None:
    """WeightsError for weights that do not cover the architecture exactly."""
    problems = [
        f"{len(names)} {kind} ({', '.join(list(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise WeightsError(f"{owner}: the weights do not fit the config: {'; '.join(problems)}")


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 over the folder's tokenizer files; of nothing where the tokenizer is open_clip's."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.name.startswith(TOKENIZERS):
            digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def passport(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What weights must meet again when they are loaded, from their config and tokenizer."""
    model, preprocess = config["model_cfg"], config.get("preprocess_cfg")
    text = model.get("text_cfg")
    return {
        "quick_gelu": bool(model.get("quick_gelu", False)),
        "preprocess": preprocess if isinstance(preprocess, dict) else {},
        "context_length": text.get("context_length", 77) if isinstance(text, dict) else None,
        "tokenizer": tokenizer_hash(folder),
    }


def check_passport(folder: Path, config: Mapping[str, Any]) -> None:
    """WeightsError where the folder is not what its `passport.json` says; without one, nothing."""
    if not (folder / PASSPORT).is_file():
        return
    kept, now, where = read_config(folder / PASSPORT), passport(config, folder), shown(folder)
    told = {
        "quick_gelu": "the weights were trained with {0}, the config says {1}; restore quick_gelu",
        "preprocess": "the preprocessing was swapped: {0} became {1}; restore preprocess_cfg",
        "context_length": "the weights take {0} tokens, the config says {1}; restore it",
        "tokenizer": "the tokenizer is not the one that the weights were trained with; "
        "get the folder again",
    }
    for key, text in told.items():
        was, found = kept.get(key), now[key]
        if was != found:
            if key == "quick_gelu":
                was, found = ("QuickGELU" if quick else "GELU" for quick in (was, found))
            if key == "preprocess":
                was, found = _difference(was, found)
            raise WeightsError(f"{where}: {text.format(was, found)}")


def _difference(old: Any, new: Mapping[str, Any]) -> tuple[Any, Any]:
    """The entries of two configs that are not the same."""
    old = old if isinstance(old, dict) else {}
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return {key: old.get(key) for key in keys}, {key: new.get(key) for key in keys}


def read_config(file: Path) -> Mapping[str, Any]:
    """A model's JSON config; WeightsError where it is missing or broken."""
    if not file.is_file():
        raise WeightsError(f"{shown(file)} does not exist; the folder is not complete")
    try:
        found = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{shown(file)} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{shown(file)} is not a JSON object")
    return found


def student_file_problem(source: str) -> str:
    """What is said of a file where a model is asked for: weights alone tell no architecture."""
    if source.endswith(PICKLES):
        return f"clip_model is a file: {student_conversion(source)}"
    return (
        f"clip_model {source!r} is a file; name the model and the file, as -p clip_model ViT-B-32 "
        "-p clip_pretrained FILE, or give a folder with open_clip_config.json"
    )


def files_below(folder: Path) -> list[str]:
    """The files of a folder, named from it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def teacher_index(folder: Path) -> Mapping[str, Any]:
    """A pipeline's `model_index.json`, which says what it is made of; empty where there is none."""
    file = folder / "model_index.json"
    return read_config(file) if file.is_file() else {}


def layout_problem(
    names: Collection[str], where: str, index: Mapping[str, Any], variant: str | None = None
) -> str | None:
    """What a teacher lacks, told from its files' names and its index: of a folder, or of a Hub
    listing.

    The one judge of a layout: guard, doctor and loader ask it, before weights are read or fetched.
    """
    if index.get("_class_name") and family_of(index) is None:
        return f"{where} is a {index['_class_name']}; a teacher is a {', '.join(FAMILIES)}"
    names = set(names)
    weights = weights_of(index, variant, names)
    absent = [name for name in (*configs_of(index), *weights) if name not in names]
    if not absent:
        return None
    homes = {name.partition("/")[0] for name in names}
    told = dict.fromkeys(n if n.partition("/")[0] in homes else n.partition("/")[0] for n in absent)
    said = f"{where} has no {', '.join(told)}"
    parts = tuple(f"{name.partition('/')[0]}/" for name in weights if name in absent)
    ends = (".safetensors", *PICKLES)
    beside = [name for name in sorted(names) if name.startswith(parts) and name.endswith(ends)]
    if not parts or not beside:
        return f"{said}; diffusers' save_pretrained writes them"
    said += f"; there are {a_few(beside)}"
    for other in {None, "fp16"} - {variant}:
        if names.issuperset(weights_of(index, other, names)):
            return f"{said}; {f'give variant {other!r}' if other else 'leave out variant'}"
    if all(name.endswith(PICKLES) for name in beside):
        said += f": {conversion(beside[0], ' where you have it')}"
    return said


def student_conversion(file: str, model: str = "MODEL", where: str = "") -> str:
    """What is said of a student's pickle: why it is not read, and the command that converts it.

    `model` is what `lab.checkpoints.convert` takes: open_clip's name, or the folder of the config.
    """
    new = shlex.quote(Path(file).stem)
    return (
        f"{file} is a pickle, which can run code when loaded; convert it{where}, which reads its "
        f"tensors alone: python -m sdslib convert {shlex.quote(file)} {new} "
        f"--model {shlex.quote(model)}, then give clip_model local-dir:{new}"
    )


def conversion(file: str, where: str = "") -> str:
    """The same of a part of a teacher; tensors that share memory are written apart."""
    name, stem = Path(file).name, Path(file).stem
    new = f"{'model' if stem == 'pytorch_model' else stem}.safetensors"  # transformers' two names
    return (
        f"{file} is a pickle, which can run code when loaded; if you trust it, convert it{where}: "
        f"""python -c "import torch, safetensors.torch as s; w = torch.load('{name}', """
        f"""map_location='cpu', weights_only=True); s.save_file({{k: v.clone().contiguous() """
        f"""for k, v in w.items()}}, '{new}', {{'format': 'pt'}})" """.rstrip()
    )
