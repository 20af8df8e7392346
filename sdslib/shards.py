"""WebDataset shards, here or behind http(s): indexed once, then read at any place.

A shard is an uncompressed tar of KEY.jpg with KEY.txt or KEY.json ("caption"). Random access keeps
the order of training a pure function of the seed, and no shard has to be on disk.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import braceexpand
import pyarrow as pa
import pyarrow.parquet as pq

from sdslib import storage
from sdslib.config import project_path, project_root
from sdslib.sources import DataError, caption_at, http_stream, http_tag, read_range

Row = dict[str, Any]
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")
MEMBER_LIMIT = 256 * 2**20


def index_shards(pattern: str) -> pa.Table:
    """All samples of `shards/{000..099}.tar` or `*.tar`: id, name, captions, shard, offset, size.

    A remote shard is read through once, without being kept; its index is, under data/cache/shards.
    Raises `DataError` for a shard that is absent or cut, a sample without image or caption, and a
    member that is a link, leads out of its folder, or is larger than 256 MB.
    """
    shards = [shard for part in braceexpand.braceexpand(pattern) for shard in _matching(part)]
    return pa.concat_tables([_index(shard) for shard in shards])


def read_sample(row: Row) -> bytes:
    """The encoded image of one row of the index."""
    if _is_remote(row["shard"]):
        return read_range(row["shard"], row["offset"], row["size"])
    with open(row["shard"], "rb") as file:
        file.seek(row["offset"])
        return file.read(row["size"])


def _is_remote(shard: str) -> bool:
    return shard.startswith(("http://", "https://"))


def _matching(part: str) -> list[str]:
    if _is_remote(part):
        return [part]
    path = str(project_path(part))
    found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
    if not found or not Path(found[0]).is_file():
        raise DataError(f"no shard {path}; give shards/{{000..099}}.tar or a pattern with *")
    return found


def _index(shard: str) -> pa.Table:
    if not _is_remote(shard):
        return _table(shard)
    key = hashlib.sha256(f"{shard} {http_tag(shard)}".encode()).hexdigest()[:32]
    kept = project_root() / "data" / "cache" / "shards" / f"{key}.parquet"
    if not kept.is_file():
        buffer = io.BytesIO()
        pq.write_table(_table(shard), buffer)
        kept.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(kept, buffer.getvalue())
    return storage.read_parquet(kept)


def _table(shard: str) -> pa.Table:
    samples: dict[str, Row] = {}
    name = PurePosixPath(shard).name
    try:
        with _stream(shard) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                _add_member(tar, member, samples, name)
    except (tarfile.ReadError, EOFError) as reason:
        raise DataError(f"{shard} is not a whole, uncompressed tar file ({reason})") from None
    for key, sample in samples.items():
        absent = [part for part in ("offset", "captions") if part not in sample]
        if absent:
            what = "image" if "offset" in absent else "caption (.txt or .json)"
            raise DataError(f"{name}: sample {key!r} has no {what}")
    if not samples:
        raise DataError(f"{shard}: has no samples")
    return pa.Table.from_pylist([sample | {"shard": shard} for sample in samples.values()])


@contextmanager
def _stream(shard: str) -> Iterator[IO[bytes]]:
    if _is_remote(shard):
        with http_stream(shard) as stream:
            yield stream
    else:
        with open(shard, "rb") as file:
            yield file


def _add_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, Row], name: str
) -> None:
    pure = PurePosixPath(member.name)
    if member.isdir():
        return
    if not member.isreg() or pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"{name}: member {member.name!r} is a link or leads out of its folder")
    if member.size > MEMBER_LIMIT:
        raise DataError(f"{name}: member {member.name!r} has {member.size} bytes; too many")
    stem, _, ending = pure.name.partition(".")
    key = str(pure.parent / stem)
    if ending.lower() in IMAGE_ENDINGS:
        row = {"id": key, "name": f"{name}:{member.name}"}
        samples.setdefault(key, {}).update(row, offset=member.offset_data, size=member.size)
    elif ending in ("txt", "json"):
        file = tar.extractfile(member)
        captions = _captions(file.read() if file else b"", ending, f"{name}:{member.name}")
        sample = samples.setdefault(key, {})
        # the .txt is the caption itself, whatever the .json beside it says
        if captions and (ending == "txt" or "captions" not in sample):
            sample["captions"] = captions


def _captions(data: bytes, ending: str, where: str) -> list[str]:
    try:
        text = data.decode("utf-8")
        found: Any = text.strip() if ending == "txt" else json.loads(text).get("caption", [])
    except (ValueError, AttributeError, RecursionError) as reason:
        raise DataError(f"{where}: not a caption ({reason})") from None
    return [caption_at(one, where) for one in (found if isinstance(found, list) else [found])]
