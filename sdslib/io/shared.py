"""What runs of the same models and data have in common, computed once and kept by content.

Scores of the untouched student, latents, embeddings and decoded test images lie in plain files
under `reports/cache`, named KIND-KEY.SUM.ENDING. KEY is a hash of all that decides the values, down
to their last bits (`circumstances`); SUM is that of the file itself, which every reading compares.
So a file may be deleted at any time, two processes may write the same one, and a damaged one is
told of, dropped and computed again. Nothing is unpickled. What was read longest ago goes where all
would take more than `MOST_BYTES`. `SDS_CACHE=off` computes everything anew, and any other value of
that variable is the folder to take.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import features
from safetensors.torch import load, save
from torch import Tensor, nn

from sdslib.io import storage
from sdslib.io.identity import code_hash, versions
from sdslib.io.paths import project_path, project_root, shown_path
from sdslib.io.state import PRODUCTS

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
Decided = Callable[[], Mapping[str, Any]]  # asked where sharing is not switched off
SWITCH, OFF = "SDS_CACHE", "off"
MOST_BYTES = 4 * 2**30
_LARGEST = 4  # one file takes at most this part of it
_LEFT_S = 3600  # a part that nobody has finished by then was left by a writer that was killed
# Settings of libraries by which they choose another kernel, and so other last bits.
_SETTINGS = ("MKL_", "DNNL_", "ONEDNN_", "ATEN_", "CUBLAS_", "NVIDIA_TF32_")


class SharedWarning(UserWarning):
    """Something shared was damaged or could not be kept; it was computed, and nothing is wrong."""


def folder() -> Path | None:
    """Where it lies; None where it is switched off."""
    named = os.environ.get(SWITCH, "")
    if named == OFF:
        return None
    return project_path(named) if named else project_root() / "reports" / "cache"


def table(kind: str, decided_by: Decided, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table that `make` gives, or gave before for this kind and what decides it.

    `decided_by` gives plain values: hashes of models, images and captions, parameters, the device.
    """
    return _shared(
        kind,
        decided_by,
        "parquet",
        make,
        lambda found: found.to_parquet(index=False),
        lambda data: storage.read_frame(io.BytesIO(data)),
    )


def tensors(
    kind: str, decided_by: Decided, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The named tensors, on the CPU, that `make` gives, or gave before; as `table`."""
    return _shared(kind, decided_by, "safetensors", make, save, load)


def _shared(
    kind: str,
    decided_by: Decided,
    ending: str,
    make: Callable[[], T],
    write: Callable[[T], bytes],
    read: Callable[[bytes], T],
) -> T:
    place = folder()
    if place is None:
        return make()
    name = f"{kind}-{key(decided_by())}"
    data = _sound(place, name)
    if data is not None:
        return read(data)
    found = make()
    _keep(place, name, ending, write(found))
    return found


def _sound(place: Path, name: str) -> bytes | None:
    """The content of the file of this name that is as it was written; others are dropped."""
    for path in sorted(place.glob(f"{name}.*")):
        with suppress(OSError):  # deleted in between, or not to be read: as if it were not there
            data = path.read_bytes()
            if path.name.split(".")[1] == _sum(data):
                os.utime(path) if os.access(path, os.W_OK) else None
                return data
            warnings.warn(
                f"{shown_path(path)} differs from its checksum; it is dropped and computed again",
                SharedWarning,
                stacklevel=5,
            )
            path.unlink(missing_ok=True)
    return None


def _keep(place: Path, name: str, ending: str, data: bytes) -> None:
    if len(data) > MOST_BYTES // _LARGEST:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        make_room(place, len(data))
        storage.write_bytes(place / f"{name}.{_sum(data)}.{ending}", data)
    except OSError as error:
        _cannot_keep(place, error.strerror or str(error))


@cache
def _cannot_keep(place: Path, why: str) -> None:
    """Said once of a folder: a run does without."""
    text = f"{shown_path(place)}: what runs share cannot be kept ({why}); each computes it anew"
    warnings.warn(f"{text}. {SWITCH} names another folder, or is {OFF!r}", SharedWarning, 6)


def make_room(place: Path, coming: int = 0) -> None:
    """Delete what was read longest ago until so many bytes more are within `MOST_BYTES`.

    What killed writers left goes too.
    """
    there = []
    for entry in os.scandir(place):
        with suppress(FileNotFoundError):  # another process makes room, too
            state = entry.stat()
            if entry.name.startswith(".part-") and time.time() - state.st_mtime > _LEFT_S:
                os.unlink(entry)
            elif not entry.name.startswith("."):
                there.append((state.st_mtime, state.st_size, entry.path))
    taken = coming + sum(size for _, size, _ in there)
    for _, size, path in sorted(there):
        if taken <= MOST_BYTES:
            break
        Path(path).unlink(missing_ok=True)
        taken -= size


# --- keys ----------------------------------------------------------------------------------------


def key(decided_by: Mapping[str, Any]) -> str:
    """A hash of plain values, and of everything around them that moves the last bits."""
    device = torch.device(decided_by.get("device", "cpu"))
    told = {**decided_by, "circumstances": circumstances(device.type)}
    return _sum(json.dumps(told, sort_keys=True, default=str).encode())


def circumstances(device: str) -> dict[str, Any]:
    """What decides last bits beside models and data: code (RECIPE in it), libraries, processor.

    `torch` is told as it is set now: threads, default type, precision of products, autocast.
    """
    return {
        "code": code_hash(),
        "packages": versions(),
        "decoders": {name: features.version(name) for name in ("libjpeg_turbo", "webp", "zlib")},
        "processor": _processor() if device == "cpu" else torch.cuda.get_device_name()
        if device == "cuda" else device,
        "torch": [
            torch.get_num_threads(),
            str(torch.get_default_dtype()),
            *(products.fp32_precision for products in PRODUCTS),
            torch.is_autocast_enabled(device),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.allow_tf32,
            torch.backends.mkldnn.enabled,
            torch.backends.mha.get_fastpath_enabled(),
        ],
        "settings": {k: v for k, v in os.environ.items() if k.startswith(_SETTINGS)},
    }  # fmt: skip


@cache
def _processor() -> list[str]:
    """The processor's kind: libraries have other kernels for another."""
    found = [torch.backends.cpu.get_cpu_capability()]
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        found += sorted({line for line in lines if line.startswith("model name")})
    return found


def digest(module: nn.Module) -> str:
    """A hash of a module's weights and buffers: names, types, shapes and every bit."""
    found = hashlib.sha256()
    for name, value in module.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(bits(value))
    return found.hexdigest()


def bits(value: Tensor) -> memoryview:
    """The bytes of a tensor."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _sum(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
