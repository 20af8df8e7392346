"""The teacher's verdicts on training pairs: which of an image's captions it holds for true.

One parquet file, one row an image and caption: the image's content key, the caption and after it
its false ones, their kinds, and the teacher's log-likelihoods of them all. A passport in it says
who judged, and on what. Whoever has the file trains `teacher-choice` with no teacher at all.
K false captions, N rows.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sdslib.io.paths import project_path
from sdslib.io.sources import DataError
from sdslib.io.storage import read_parquet, write_bytes
from sdslib.pairs import Pairs

SCHEMA = pa.schema(
    {
        "image": pa.string(),
        "captions": pa.list_(pa.string()),
        "kinds": pa.list_(pa.string()),
        "log_likelihoods": pa.list_(pa.float32()),
        "rechecked": pa.bool_(),
    }
)
_PASSPORT = b"sdslib.verdicts"
ASKED = 32  # images that are looked up before a run starts
KEPT = 2**16  # verdicts that stay unpacked, so that an epoch need not look them up again
FEWEST = 0.5  # share of their captions that must have a verdict
MOST = 0.8  # share under which it is told that some have none


class Verdict(NamedTuple):
    """The captions [1 + K] of an image, and the teacher's log-likelihood of each."""

    captions: tuple[str, ...]
    log_likelihoods: tuple[float, ...]

    def some(self, count: int, seed: int) -> Verdict:
        """The first caption with `count` of the others, all where there are not so many.

        Which ones is drawn from the seed and the caption, so that an image's captions differ in it.
        """
        others = len(self.captions) - 1
        if count >= others:
            return self
        first = (seed + zlib.crc32(self.captions[0].encode())) % others
        kept = [0, *(1 + (first + n) % others for n in range(count))]
        return Verdict(
            tuple(self.captions[i] for i in kept), tuple(self.log_likelihoods[i] for i in kept)
        )


class Verdicts:
    """A file of verdicts, opened; a row is found by its image's content and one of its captions."""

    def __init__(self, table: pa.Table, passport: Mapping[str, Any], source: str) -> None:
        self.table, self.passport, self.source = table, passport, source
        self._places: dict[str, list[int]] = {}
        for place, image in enumerate(table["image"].to_pylist()):
            self._places.setdefault(image, []).append(place)
        self.of = lru_cache(KEPT)(self._of)

    def _of(self, image: str, caption: str) -> Verdict | None:
        """The verdict on this caption of the image (its content key), the caption itself first.

        Where it was judged only as the false caption of another, that row tells; None where it was
        not judged.
        """
        rows = [self.table.slice(place, 1).to_pylist()[0] for place in self._places.get(image, ())]
        rows = sorted((r for r in rows if caption in r["captions"]),
                      key=lambda row: row["captions"].index(caption))  # fmt: skip
        if not rows:
            return None
        captions, likelihoods = rows[0]["captions"], rows[0]["log_likelihoods"]
        own = captions.index(caption)
        order = [own, *(i for i in range(len(captions)) if i != own)]
        return Verdict(
            tuple(captions[i] for i in order), tuple(float(likelihoods[i]) for i in order)
        )

    def on(self, pairs: Pairs) -> Callable[[Sequence[int], Sequence[str]], list[Verdict | None]]:
        """The verdicts on pairs by their number; each image's content key is made once.

        DataError where hardly any of the pairs was judged.
        """
        key = lru_cache(maxsize=None)(lambda index: pairs.ref(index).key)
        step = max(1, len(pairs) // ASKED)
        asked = [(i, c) for i in range(0, len(pairs), step)[:ASKED] for c in pairs.captions(i)]
        known = sum(self.of(key(i), caption) is not None for i, caption in asked)
        if known < FEWEST * len(asked):
            raise DataError(
                f"{self.source} tells of {known} of {len(asked)} captions of {pairs.source} that "
                "were looked up; it is of other pairs, images or captions: make verdicts on these "
                "(python -m sdslib.lab.verdicts)"
            )
        if known < MOST * len(asked):
            warnings.warn(
                f"{self.source} tells of {known} of {len(asked)} captions that were looked up; of "
                "the others the teacher teaches nothing",
                stacklevel=2,
            )
        return lambda index, captions: [
            self.of(key(int(i)), caption) for i, caption in zip(index, captions, strict=True)
        ]


def load_verdicts(source: str) -> Verdicts:
    """Open a file of verdicts; DataError where it is missing, damaged, or no such file."""
    path = project_path(source)
    if not path.is_file():
        raise DataError(
            f"no verdicts {source!r}; `python -m sdslib.lab.verdicts {source}` makes them"
        )
    try:
        table = read_parquet(path, SCHEMA.names)
        passport = json.loads((table.schema.metadata or {})[_PASSPORT])
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except (OSError, ValueError, KeyError) as reason:
        raise DataError(f"{source}: not a file of verdicts ({reason}); make it again") from reason
    lengths = [pc.list_value_length(table[name]) for name in ("captions", "log_likelihoods")]
    finite = pc.fill_null(pc.is_finite(pc.list_flatten(table["log_likelihoods"])), False)
    if not (lengths[0].equals(lengths[1]) and pc.all(finite).as_py()):
        raise DataError(f"{source}: a caption has no finite log-likelihood; make it again")
    return Verdicts(table, passport, source)


def save_verdicts(path: Path, table: pa.Table, passport: Mapping[str, Any]) -> None:
    """The rows with their passport as one parquet file; equal rows give equal bytes."""
    told = {_PASSPORT: json.dumps(passport, sort_keys=True).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.cast(SCHEMA).combine_chunks().replace_schema_metadata(told), sink, compression="zstd"
    )
    write_bytes(path, sink.getvalue().to_pybytes())
