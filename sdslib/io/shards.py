"""WebDataset shards, here or behind http(s): indexed once, then read at any place.

A shard is an uncompressed tar of KEY.jpg with KEY.txt or KEY.json ("caption"), no dot in KEY.
Random access keeps the order of training a pure function of the seed, and no shard has to be on
disk.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import tarfile
import warnings
from pathlib import Path, PurePosixPath
from typing import Any

import braceexpand
import pyarrow as pa
import pyarrow.parquet as pq

from sdslib.io import storage
from sdslib.io.images import ENDINGS
from sdslib.io.paths import project_path, project_root
from sdslib.io.sources import (
    DataError,
    caption_at,
    http_tag,
    is_remote,
    opened,
    read_part,
    refuse_pointer,
)

_Row = dict[str, Any]
LEFT_OUT = b"left out"  # members that belong to no sample: how many, and the first of them
LAYOUT = 2  # of the index; another one has other columns
MEMBER_LIMIT = 256 * 2**20


def index_shards(pattern: str) -> pa.Table:
    """All samples of `shards/{000..099}.tar`, `*.tar` or a folder: id, name, captions, shard,
    offset, size, and the sha256 of the encoded image.

    A folder's name is taken as it stands: only the last name may be a pattern. A remote shard is
    read through once, without being kept; its index is, under data/cache/shards. Warns of members
    that belong to no sample. Raises `DataError` for a shard that is absent or cut, a sample without
    image or caption or with two images, and a member that is a link, leads out of its folder, or
    is larger than 256 MB.
    """
    tables = [_index(shard) for shard in _shards(pattern)]
    left = [json.loads(table.schema.metadata[LEFT_OUT]) for table in tables]
    if count := sum(count for count, _ in left):
        example = next(name for _, name in left if name)
        warnings.warn(_left_out(count, example, pattern), stacklevel=2)
    return pa.concat_tables([table.replace_schema_metadata() for table in tables])


def _left_out(count: int, example: str, source: str) -> str:
    stem, _, ending = PurePosixPath(example).name.partition(".")
    return (
        f"{source}: {count} members are neither image nor caption and are left out, as {example!r} "
        f"(key {stem!r} ends at the first dot, {ending!r} is no ending that is read)"
    )


def read_sample(row: _Row) -> bytes:
    """The encoded image of one row of the index."""
    return read_part(row["shard"], row["offset"], row["size"])


def _shards(pattern: str) -> list[str]:
    if is_remote(pattern):
        return list(braceexpand.braceexpand(pattern))
    path = project_path(pattern)
    if path.is_dir():
        return sorted(map(str, path.glob("*.tar")))
    if path.is_file():
        return [str(path)]
    names = braceexpand.braceexpand(path.name)
    return [shard for name in names for shard in _matching(path.parent, name)]


def _matching(folder: Path, name: str) -> list[str]:
    found = sorted(glob.glob(name, root_dir=folder)) if glob.has_magic(name) else [name]
    if not found or not (folder / found[0]).is_file():
        where = "" if folder.is_dir() else f": there is no folder {folder}, taken as it is written"
        raise DataError(
            f"no shard {folder / name}{where}; give a folder, shards/{{000..099}}.tar or "
            "shards/*.tar, only the last name a pattern"
        )
    return [str(folder / one) for one in found]


def _index(shard: str) -> pa.Table:
    if not is_remote(shard):
        return _table(shard)
    key = hashlib.sha256(f"{LAYOUT} {shard} {http_tag(shard)}".encode()).hexdigest()[:32]
    kept = project_root() / "data" / "cache" / "shards" / f"{key}.parquet"
    if not kept.is_file():
        pq.write_table(_table(shard), buffer := io.BytesIO())
        kept.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(kept, buffer.getvalue())
    return storage.read_parquet(kept)


def _table(shard: str) -> pa.Table:
    samples: dict[str, _Row] = {}
    refuse_pointer(shard)
    left, name = list[str](), PurePosixPath(shard).name
    try:
        with opened(shard) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.isdir():
                    continue
                _check_member(member, name)
                if not _add_member(tar, member, samples, name):
                    left.append(member.name)
    except (tarfile.ReadError, EOFError) as reason:
        raise DataError(f"{shard} is not a whole, uncompressed tar file ({reason})") from None
    if not samples:
        why = f": {_left_out(len(left), left[0], name)}" if left else ""
        raise DataError(f"{shard}: has no samples{why}")
    rows = [_sample(key, sample, name) | {"shard": shard} for key, sample in samples.items()]
    about = {LEFT_OUT: json.dumps([len(left), left[0] if left else ""])}
    return pa.Table.from_pylist(rows).replace_schema_metadata(about)


def _sample(key: str, sample: _Row, name: str) -> _Row:
    """One row; the .txt is the caption itself, whatever the .json beside it says."""
    told = [sample.pop(ending) for ending in ("txt", "json") if ending in sample]
    captions = next((found for one in told if (found := _captions(*one))), None)
    if captions is None or "offset" not in sample:
        what = "caption (.txt or .json)" if "offset" in sample else "image"
        raise DataError(f"{name}: sample {key!r} has no {what}")
    return sample | {"captions": captions}


def _check_member(member: tarfile.TarInfo, name: str) -> None:
    pure = PurePosixPath(member.name)
    if not member.isreg() or pure.is_absolute() or ".." in pure.parts:
        raise DataError(f"{name}: member {member.name!r} is a link or leads out of its folder")
    if member.size > MEMBER_LIMIT:
        raise DataError(f"{name}: member {member.name!r} has {member.size} bytes; too many")


def _add_member(
    tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict[str, _Row], name: str
) -> bool:
    """Whether the member is an image or a caption of a sample, whose key ends at the first dot."""
    pure = PurePosixPath(member.name)
    stem, _, ending = pure.name.partition(".")
    key, ending, where = str(pure.parent / stem), ending.lower(), f"{name}:{member.name}"
    file = tar.extractfile(member)
    if file is None or not stem or (f".{ending}" not in ENDINGS and ending not in ("txt", "json")):
        return False
    sample = samples.setdefault(key, {"id": key})
    if f".{ending}" not in ENDINGS:
        sample[ending] = (file.read(), ending, where)
        return True
    if sample.get("name", where) != where:
        raise DataError(f"{name}: sample {key!r} has two images, the other is {member.name!r}")
    content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    sample |= {"name": where, "offset": member.offset_data, "size": member.size, "sha256": content}
    return True


def _captions(data: bytes, ending: str, where: str) -> list[str]:
    """The captions, none for a .json that has none."""
    try:
        text = data.decode("utf-8")
        found: Any = text.strip() if ending == "txt" else json.loads(text).get("caption")
    except (ValueError, AttributeError, RecursionError) as reason:
        raise DataError(f"{where}: not a caption ({reason})") from None
    listed = found if isinstance(found, list) else [] if found is None else [found]
    return [caption_at(one, where) for one in listed]
