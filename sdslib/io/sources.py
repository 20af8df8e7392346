"""Where data come from: files inside a root, rows checked against a schema, files behind http.

Each failure is one sentence that names the place (`visual_genome_relation.json[3].bbox_w`), what
was expected, and what to do next. The only door to `datasets`.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pyarrow.compute as pc
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError

from sdslib.io.images import Box, ImageRef
from sdslib.io.storage import BLANK, POINTER
from sdslib.io.wording import did_you_mean

if TYPE_CHECKING:
    import datasets
    import httpx2

CAPTION_LIMIT = 10_000
WORD_LIMIT = 1_000  # letters in a row: the time of CLIP's tokenizer grows with their square
COCO_SPLIT = re.compile("(?:train|val|test)20(?:14|17)")
COCO_NAME = re.compile(r"(?:^|[/:]|(?<!VisualDialog_val2018)_)(\d{12})\.\w+$")  # not VisDial's
DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
REPO_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:@[\w./-]+)?$")  # at a revision
UNREADABLE = re.compile("[\0\ud800-\udfff]")
HTTP_TIMEOUT_S = 30.0
Model = TypeVar("Model", bound=BaseModel)


class DataError(ValueError):
    """Data that cannot be used as they are: says where, what was expected, and what to do."""


ALL_SPLITS = (
    "is Karpathy's file of all splits, of which one is needed; give a list of "
    '{"image": …, "caption": [ … ]} as coco_karpathy_test.json or flickr30k_test.json are'
)


class MissingFile(DataError):
    """A file that annotations name and a folder does not hold."""


class AccessError(DataError):
    """Something of the Hub that is out of reach; `reason` is one of those in `hub`."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def check_caption(text: str) -> str:
    """A caption that a tokenizer can take: with a word or a sign, no NUL, no half of a surrogate
    pair; HTML entities count as what they stand for, as in CLIP's own cleaning."""
    if not text.strip():
        raise ValueError("is empty")
    if len(text) > CAPTION_LIMIT:
        raise ValueError(f"has {len(text)} characters; the limit is {CAPTION_LIMIT}")
    if UNREADABLE.search(text):
        raise ValueError("has a NUL character or half a surrogate pair")
    if (longest := max(map(len, text.split()))) > WORD_LIMIT:
        raise ValueError(f"has a word of {longest} characters; the limit is {WORD_LIMIT}")
    # what is no space, control, mark, punctuation or ASCII sign
    said = (s for s in html.unescape(html.unescape(text)) if s not in string.punctuation)
    if all(unicodedata.category(sign)[0] in "ZCPM" for sign in said):
        raise ValueError(f"has no word: {text[:20]!r}")
    return text


Caption = Annotated[str, AfterValidator(check_caption)]


def caption_at(text: Any, where: str) -> str:
    """A checked caption; `where` says in the `DataError` which one is at fault."""
    if not isinstance(text, str):
        raise DataError(f"{where}: expected text, got {_kind(text)}")
    try:
        return check_caption(text)
    except ValueError as reason:
        raise DataError(f"{where}: {reason}") from None


# --- files ---------------------------------------------------------------------------------------


class Root:
    """A folder whose files are named by somebody else's annotations, so nothing may lead out of it.

    Folders are listed once each, so that 118,287 names cost no 118,287 system calls. `origin` says
    where the images come from; of COCO's the names tell it. Links may lead into `store`, too.
    """

    def __init__(
        self, folder: Path | str, origin: str = "", store: Path | str | None = None
    ) -> None:
        self.folder, self.origin = Path(folder), origin
        self._store = store and os.path.realpath(store)
        if not self.folder.is_dir():
            what = f"{self.folder} is not a folder; give the folder that holds the images"
            raise DataError(what + self._from(self.folder.name))
        self._real = os.path.realpath(self.folder)
        self._escapes = f"escapes the data root {self.folder}"
        self._listings: dict[str, dict[str, bool]] = {}  # folder -> name -> is it a link

    def path(self, name: str, where: str = "") -> Path:
        """The file called `name` below the root; `where` says which row asks for it.

        DataError for absolute names, `..`, links that lead out, and files that are missing.
        """
        prefix = f"{where}: " if where else ""
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or DRIVE.match(name) or "\0" in name:
            raise DataError(f"{prefix}{name!r} {self._escapes}; use paths below it")
        listing = self._listing(str(pure.parent), prefix)
        if pure.name not in listing:
            alike = next((n for n in listing if n.casefold() == pure.name.casefold()), None)
            hint = did_you_mean(alike) or "; fetch it or correct the annotation"
            raise MissingFile(f"{prefix}{str(pure)!r} does not exist in {self.folder}{hint}")
        if listing[pure.name] and not self._inside(os.path.realpath(self.folder / pure)):
            what = f"{prefix}{name!r} is a link that {self._escapes}"
            raise DataError(f"{what}; give the folder that it points into")
        return self.folder / pure

    def paths(self, names: Sequence[tuple[str, str]]) -> list[Path]:
        """The files of many names, each with the row that asks for it, as `path` gives one; says
        how many are missing, the first of them, and where they come from."""
        found, missing = list[Path](), dict[str, MissingFile]()
        for name, where in names:
            try:
                found.append(self.path(name, where))
            except MissingFile as reason:
                missing.setdefault(name, reason)
        if not missing:
            return found
        first, total = str(next(iter(missing.values()))), len({name for name, _ in names})
        told = f"; {len(missing):,} of {total:,} images are missing" if len(missing) > 1 else ""
        raise MissingFile(first + told + self._from(first))

    def _from(self, text: str) -> str:
        split = COCO_SPLIT.search(text)
        zipped = "http://images.cocodataset.org/zips"
        origin = self.origin or (split and f"COCO's {split[0]}, {zipped}/{split[0]}.zip")
        return f" (they are {origin})" if origin else ""

    def _listing(self, parent: str, prefix: str) -> dict[str, bool]:
        if parent not in self._listings:
            real = os.path.realpath(self.folder / parent)
            if not self._inside(real):
                raise DataError(f"{prefix}folder {parent!r} is a link that {self._escapes}")
            self._listings[parent] = {}
            with suppress(OSError), os.scandir(real) as entries:
                self._listings[parent] = {entry.name: entry.is_symlink() for entry in entries}
        return self._listings[parent]

    def _inside(self, real: str) -> bool:
        homes = [home.rstrip(os.sep) + os.sep for home in (self._real, self._store) if home]
        return real == self._real or real.startswith(tuple(homes))


def read_text(path: Path) -> str:
    """A file's text in UTF-8 (a byte-order mark is allowed); raises `DataError`."""
    refuse_pointer(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError) as reason:
        raise DataError(f"{path} cannot be read as UTF-8 text ({reason})") from None


def read_json(path: Path | str) -> Any:
    """Parse a JSON file (a byte-order mark is allowed, NaN and double keys are not)."""
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise DataError(f"{path} is empty; fetch it again")
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_double_keys)
    except json.JSONDecodeError as reason:
        where = f"{path.name}:{reason.lineno}:{reason.colno}: not valid JSON ({reason.msg})"
        raise DataError(f"{where}; the text starts with {text.strip()[:20]!r}") from None
    except (ValueError, RecursionError) as reason:
        raise DataError(f"{path.name}: {reason}") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; raises `DataError` with the line that is none."""
    rows = []
    # not by splitlines, which splits at U+2028 too, and JSON allows that within a text
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line, parse_constant=_no_constant))
            except (ValueError, RecursionError) as reason:
                raise DataError(f"{path.name}:{number}: not valid JSON ({reason})") from None
            if not isinstance(rows[-1], dict):
                raise DataError(f"{path.name}:{number}: expected an object, got {_kind(rows[-1])}")
    return rows


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header, of tabs where that has one; raises `DataError`."""
    text = read_text(path)
    tabs = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=tabs)
    try:
        rows, names = [*reader], reader.fieldnames or ()
    except csv.Error as reason:
        raise DataError(f"{path.name}:{reader.line_num}: not valid CSV ({reason})") from None
    if missing := [name for name in columns if name not in names]:
        first = _kind(",".join(names))
        raise DataError(f"{path.name}: columns missing: {', '.join(missing)}; it has {first}")
    for index, row in enumerate(rows):
        if None in row or None in row.values():
            raise DataError(f"{path.name}[{index}]: expected {len(names)} fields; fetch it again")
    return rows


def refuse_pointer(path: Path | str) -> None:
    """Raise `DataError` where Git LFS left its pointer in the place of a file."""
    if Path(path).is_file() and read_part(path, 0, len(POINTER)) == POINTER:
        raise DataError(f"{path} is a Git LFS pointer, not the data; run git lfs pull")


def is_list(path: Path) -> bool:
    """Whether a JSON file holds a list, by its first character; a missing file holds none."""
    return path.is_file() and read_part(path, 0, 64).lstrip(BLANK).startswith(b"[")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _no_double_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        double = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key {double!r} appears twice in one object")
    return found


def check_rows(
    rows: Any, model: type[Model], name: str, keys: Sequence[str] | None = None
) -> list[Model]:
    """Validate a list of rows; DataError with the first faults, as `x.json[3].w: expected integer`.

    `keys` are what the file calls its rows, if not 0, 1, 2, ...
    """
    if not isinstance(rows, list):
        raise DataError(f"{name}: expected a list of rows, got {_kind(rows)}")
    if not rows:
        raise DataError(f"{name}: has no rows")
    try:
        return TypeAdapter(list[model]).validate_python(rows)  # type: ignore[valid-type]
    except ValidationError as fault:
        raise DataError(describe(fault, name, keys)) from None


def check_row(row: Any, model: type[Model], name: str) -> Model:
    """Validate one row, as `check_rows` does a list."""
    try:
        return model.model_validate(row)
    except ValidationError as fault:
        raise DataError(describe(fault, name)) from None


def describe(fault: ValidationError, name: str, keys: Sequence[str] | None = None) -> str:
    """A pydantic error as lines `name[3].key: expected ..., got ...`, the first three of them."""
    errors = fault.errors(include_url=False)
    lines = [f"{name}{_place(e['loc'], keys)}: {_expected(e)}" for e in errors[:3]]
    more = len(errors) - 3
    return "\n".join(lines) + (f"\n... and {more} more" if more > 0 else "")


def _place(loc: Sequence[int | str], keys: Sequence[str] | None) -> str:
    if keys is not None and loc and isinstance(loc[0], int):
        return f"[{keys[loc[0]]}]" + _place(loc[1:], None)
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


# What pydantic calls a fault -> what we say of it
_EXPECTED = {
    "extra_forbidden": "is not a known key", "string_type": "expected text",
    "int_type": "expected integer", "int_parsing": "expected integer",
    "int_from_float": "expected integer", "float_type": "expected number",
    "list_type": "expected list", "model_type": "expected object",
    "dict_type": "expected object", "bytes_type": "expected bytes",
}  # fmt: skip


def _expected(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind == "value_error":
        return str(context["error"])
    least = kind == "greater_than_equal"
    text = f"expected integer >= {context['ge']}" if least else _EXPECTED.get(kind, error["msg"])
    return f"{text}, got {_kind(error['input'])}"


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    kinds: dict[type, str] = {dict: "an object", list: "a list"}
    return kinds.get(type(value), type(value).__name__)


def coco_id(name: str) -> str | None:
    """The COCO image id that a file name tells: `val2014/COCO_val2014_000000391895.jpg`."""
    found = COCO_NAME.search(name)
    return str(int(found[1])) if found else None


def unique_ids(ids: Iterable[Any], name: str) -> None:
    """Raise `DataError` if an id appears twice: which of the two rows is right, nobody can say."""
    seen: set[Any] = set()
    for index, item in enumerate(ids):
        if item in seen:
            raise DataError(f"{name}[{index}]: id {item!r} appears twice; remove one of the rows")
        seen.add(item)


# --- here or behind http -------------------------------------------------------------------------


def is_remote(source: Path | str) -> bool:
    """Whether a source is a file behind http(s)."""
    return str(source).startswith(("http://", "https://"))


def http_tag(url: str) -> str:
    """What tells one version of a remote file from another: ETag, date and length."""
    with _told(url) as client:
        headers = client.head(url).raise_for_status().headers
    return " ".join(headers.get(k, "") for k in ("etag", "last-modified", "content-length"))


def read_part(source: Path | str, start: int, count: int) -> bytes:
    """`count` bytes of a file from byte `start`; of a remote one exactly so many, or DataError."""
    if not is_remote(source):
        with open(source, "rb") as file:
            file.seek(start)
            return file.read(count)
    wanted = {"range": f"bytes={start}-{start + count - 1}"}
    with _told(str(source)) as client:
        found = client.get(str(source), headers=wanted).raise_for_status()
    if found.status_code != 206 or len(found.content) != count:
        raise DataError(f"{source}: the server does not read parts of a file; fetch the shards")
    return found.content


@contextmanager
def opened(source: str) -> Iterator[Any]:
    """A file from its beginning, for tarfile to stream; `read` of a remote one gives a chunk, of
    whatever size."""
    if not is_remote(source):
        with open(source, "rb") as file:
            yield file
    else:
        with _told(source) as client, client.stream("GET", source) as answer:
            chunks = answer.raise_for_status().iter_bytes(2**20)
            yield SimpleNamespace(read=lambda count: next(chunks, b""))


@lru_cache(maxsize=1)
def _client(process: int) -> httpx2.Client:
    # one a process: a forked worker must not share its parent's connections
    import httpx2

    transport = httpx2.HTTPTransport(retries=2)
    return httpx2.Client(transport=transport, follow_redirects=True, timeout=HTTP_TIMEOUT_S)


@contextmanager
def _told(url: str) -> Iterator[httpx2.Client]:
    """This process's client, whose failures are told as those of this file."""
    import httpx2

    try:
        yield _client(os.getpid())
    except httpx2.HTTPError as reason:
        raise DataError(f"{url} cannot be read ({reason})") from None


# --- data sets -----------------------------------------------------------------------------------


def undecoded(found: datasets.Dataset) -> datasets.Dataset:
    """The same data set with its image columns as encoded bytes: one decoder for all, ours."""
    import datasets

    for column in image_columns(found):
        found = found.cast_column(column, datasets.Image(decode=False))
    return found


def image_columns(found: datasets.Dataset) -> list[str]:
    """The names of the columns that hold images."""
    import datasets

    return [name for name, kind in found.features.items() if isinstance(kind, datasets.Image)]


def cell_bytes(found: datasets.Dataset, row: int, column: str) -> bytes:
    """The encoded image in one cell of an `undecoded` data set."""
    cell = found[row][column]
    return cell["bytes"] if cell["bytes"] else Path(cell["path"]).read_bytes()


class ImageCells:
    """The encoded images of one column of an `undecoded` data set, of which nothing is read.

    `sizes` [N] in bytes; DataError names the rows without an image, with `name` for the set.
    """

    def __init__(self, found: datasets.Dataset, column: str, name: str) -> None:
        self._cells = found.select_columns([column]).with_format("arrow")
        self._column, self.sizes = column, list[int]()
        self._paths, absent = dict[int, Path](), list[int]()
        for part in self._cells.iter(1000):
            lengths = pc.binary_length(pc.struct_field(part[column], "bytes")).to_pylist()
            paths = pc.struct_field(part[column], "path").to_pylist()
            for row, (size, path) in enumerate(zip(lengths, paths, strict=True), len(self.sizes)):
                if not size and path and (there := Path(path)).is_file():
                    size, self._paths[row] = there.stat().st_size, there
                absent += [] if size else [row]
                self.sizes.append(size or 0)
        if absent:
            raise DataError(
                f"{name}[{absent[0]}].{column}: has no image"
                + (f", nor have {len(absent) - 1} more of {len(found)} rows" * (len(absent) > 1))
                + "; leave them out of the set or fetch it again"
            )

    def read(self, row: int, start: int, count: int) -> bytes:
        """`count` bytes of one image from byte `start`."""
        if row in self._paths:
            return read_part(self._paths[row], start, count)
        cell = self._cells[row][self._column][0]["bytes"].as_buffer()
        return cell.slice(start, min(count, cell.size - start)).to_pybytes()


def file_refs(
    root: Root, names: Sequence[tuple[str, str]], boxes: Sequence[Box | None] | None = None
) -> list[ImageRef]:
    """Images by their names, each with the row that asks for it, all looked for at once."""
    paths, boxes = root.paths(names), boxes or [None] * len(names)
    return [
        ImageRef(name, path.read_bytes, box, path.stat().st_size)
        for (name, _), path, box in zip(names, paths, boxes, strict=True)
    ]
