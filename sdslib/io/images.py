"""Pictures read safely: whatever the file holds, an RGB image comes out or an error says why not.

`data` is a whole encoded file, `name` how an error calls it, a box is (x, y, w, h) in pixels of
the stored image, origin at the upper left.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from sdslib.io.storage import BLANK, POINTER

PIXEL_LIMIT = 64_000_000
LIMIT_MP = PIXEL_LIMIT // 10**6
LONGEST = math.isqrt(PIXEL_LIMIT)  # side of the largest square
_AVIF = features.check("avif")  # a part of Pillow that may be left out where it is built
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
FORMATS += ("AVIF",) if _AVIF else ()
ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
ENDINGS |= {".avif"} if _AVIF else set()
PIECE = 4096  # bytes by which two files of one size are told apart, nearly always
READERS = 16  # at once: a disk behind a network answers each after a while
MOST_STRETCHED = 16  # times as long as wide, as which a transform gets a picture at most
Box = tuple[int, int, int, int]
# EXIF's orientation, and what turns the stored picture upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# TIFF's tags
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339


class ImageError(ValueError):
    """A file that gives no picture: says which one, why, and what to do."""


def open_image(source: Path | str | bytes, name: str | None = None) -> Image.Image:
    """Open an image as a viewer shows it: RGB, upright by its EXIF, transparency over white.

    The first frame of an animation; CMYK converted; deep gray scaled to 8 bits by the file's own
    depth, not clipped; EXIF that cannot be read turns nothing. Raises `ImageError` if it is
    missing, empty, truncated, no image, or over 64 megapixels (told by the header alone).
    """
    data, name = _read(source, name)
    return _rgb(_upright(_decode(data, name)), name)


def open_crop(source: Path | str | bytes, box: Box, name: str | None = None) -> Image.Image:
    """Cut a box out of an image as stored, EXIF ignored: ARO's boxes count in stored pixels.

    What lies outside the image is black, as in the authors' crop. Raises `ImageError` as
    `open_image` does, where the box is empty or does not touch the image at all, and where it has
    over 64 megapixels itself.
    """
    data, name = _read(source, name)
    image, fault = _rgb(_decode(data, name), name), ""
    x, y, w, h = box
    if w < 1 or h < 1 or x >= image.width or y >= image.height or x + w <= 0 or y + h <= 0:
        fault = f"does not overlap the image of {image.width}×{image.height}"
    elif w * h > PIXEL_LIMIT:
        fault = f"exceeds the {LIMIT_MP} MP limit"
    if fault:
        where = f"{name}: bbox (x, y, w, h) = ({', '.join(map(_short, box))})"
        raise ImageError(f"{where} {fault}; correct the box or drop the row")
    return image.crop((x, y, x + w, y + h))


def central(image: Image.Image) -> Image.Image:
    """The picture, of one stretched beyond 16:1 its middle, for a transform that crops after it
    resizes the shorter side: what that keeps stays, and what it would blow up first is gone."""
    width, height = image.size
    most = MOST_STRETCHED * min(image.size)
    if max(image.size) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def _short(number: int) -> str:
    text = str(number)
    return text if len(text) <= 12 else f"{text[:9]}…"


@dataclass(frozen=True)
class ImageRef:
    """A picture that can be loaded: `read` returns the encoded file, `box` cuts a part out of it.

    Picklable if `read` is. The key is the content's, so the same bytes under two names are one
    picture, and each (picture, box) has to be encoded only once. `size` is the file's, in bytes.
    """

    name: str
    read: Callable[[], bytes]
    box: Box | None = None
    size: int = -1

    @cached_property
    def key(self) -> str:
        """SHA-256 of the encoded file (first 32 hex digits) and the box; reads the file once."""
        part = "" if self.box is None else "@" + ",".join(map(str, self.box))
        return hashlib.sha256(self.data()).hexdigest()[:32] + part

    def data(self) -> bytes:
        """The encoded file; raises `ImageError` where it cannot be read."""
        return _got(self.read, self.name)

    def load(self) -> Image.Image:
        """The picture, RGB; see `open_image` and, with a box, `open_crop`."""
        if self.box is None:
            return open_image(self.data(), self.name)
        return open_crop(self.data(), self.box, self.name)


def alike(sizes: Sequence[int], read: Callable[[int, int, int], bytes]) -> list[int]:
    """For each of N encoded files, the first one that holds the same bytes.

    `read(file, start, count)` gives a part. Nothing is read of a file whose size no other has, and
    of two of one size first 4 kB from their middle: of 118,287 photographs 0.2 GB instead of 18. A
    file that cannot be read is like no other.
    """

    def digest(file: int, start: int, count: int) -> str:
        try:
            return hashlib.sha256(read(file, start, count)).hexdigest()
        except OSError:
            return str(file)

    keys: list[Any] = list(sizes)
    for piece in (PIECE, None):
        times = Counter(keys)
        members = [file for file, key in enumerate(keys) if times[key] > 1]
        counts = [piece or sizes[file] for file in members]
        starts = [max(0, (sizes[m] - count) // 2) for m, count in zip(members, counts, strict=True)]
        with ThreadPoolExecutor(READERS) as pool:
            found = [*pool.map(digest, members, starts, counts)]
        for file, content in zip(members, found, strict=True):
            keys[file] = (keys[file], content)
    first: dict[Any, int] = {}
    return [first.setdefault(key, file) for file, key in enumerate(keys)]


def _read(source: Path | str | bytes, name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, name or "image"
    name = name or str(source)
    return _got(Path(source).read_bytes, name), name


def _got(read: Callable[[], bytes], name: str) -> bytes:
    try:
        return read()
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except OSError as reason:
        raise ImageError(f"{name} cannot be read ({reason.strerror or reason})") from None


def _decode(data: bytes, name: str) -> Image.Image:
    """Decode the first frame; `verify()` would let a truncated JPEG pass, so everything is read."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); fetch it again")
    image = _header(data, name)
    if (pixels := image.width * image.height) > PIXEL_LIMIT:
        raise _too_large(name, pixels)
    if not pixels:
        raise ImageError(f"{name} has no pixels ({image.width}×{image.height}); fetch it again")
    try:
        image.load()
    except MemoryError:
        raise ImageError(f"{name} takes more memory than there is; scale it down") from None
    except Exception as reason:  # each decoder has its own way to fail: OSError, SyntaxError, ...
        raise ImageError(
            f"{name} is truncated or damaged ({len(data)} bytes: {reason}); fetch it again"
        ) from reason
    return image


def _header(data: bytes, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow only warns up to twice its limit; ours is lower and is checked by the caller
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as reason:
        found = re.search(r"\((\d+) pixels\)", str(reason))
        raise _too_large(name, int(found[1]) if found else 2 * PIXEL_LIMIT) from None
    except Exception as reason:
        raise ImageError(f"{name} is not an image ({_looks_like(data, reason)})") from None


def _too_large(name: str, pixels: int) -> ImageError:
    megapixels = math.ceil(pixels / 1e6)
    return ImageError(f"{name}: {megapixels} MP exceeds the {LIMIT_MP} MP limit; scale it down")


def _looks_like(data: bytes, reason: Exception) -> str:
    if data.startswith(POINTER):
        return "a Git LFS pointer; run git lfs pull"
    start = data[:48].lstrip(BLANK).split(b"\n")[0][:24]
    if start.isascii() and start.decode("ascii").isprintable():
        return f"starts with '{start.decode('ascii').strip()}'"
    if isinstance(reason, Image.UnidentifiedImageError):
        return f"starts with bytes {start[:8].hex(' ')}; read are {', '.join(FORMATS)}"
    return str(reason)


def _upright(image: Image.Image) -> Image.Image:
    """`ImageOps.exif_transpose` without writing EXIF anew, which fails for what others wrote."""
    try:
        with warnings.catch_warnings(action="ignore"):
            turn = _UPRIGHT.get(image.getexif().get(0x0112, 1))
    except Exception:  # as many ways to fail as there are writers; a viewer shows it as stored
        turn = None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _scaled_gray(image, name).convert("RGB")
    try:
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            if image.format == "BMP" and rgba.getchannel("A").getextrema() == (0, 0):
                return image.convert("RGB")  # a BMP's fourth byte is most often left unused
            white = Image.new("RGBA", rgba.size, "white")
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")
    except ValueError as reason:
        raise ImageError(
            f"{name}: cannot turn mode {image.mode} into RGB ({reason}); convert it to 8-bit RGB"
        ) from None


def _scaled_gray(image: Image.Image, name: str) -> Image.Image:
    values, (white, inverted) = np.asarray(image), _white(image)
    if white is None or values.min() < 0 or values.max() > white:
        raise ImageError(
            f"{name}: {image.mode} pixels from {values.min()} to {values.max()} have no known "
            "white; convert it to 8-bit RGB"
        )
    scaled = np.rint(values / np.float32(white / 255)).astype(np.uint8)
    scaled = 255 - scaled if inverted else scaled
    return Image.fromarray(np.where(values == image.info.get("transparency", -1), 255, scaled))


def _white(image: Image.Image) -> tuple[int | None, bool]:
    """The whitest value of deep gray, None where nothing tells, and whether it stands for black.

    A TIFF says it by its bits a sample, up to 16; PNG and PPM come out of Pillow with 16.
    """
    tags = getattr(image, "tag_v2", {})
    (bits, *_), (kind, *_) = tags.get(_BITS, (16,)), tags.get(_SAMPLE_FORMAT, (1,))
    if image.mode == "F" or bits > 16 or kind > 2:
        return None, False
    return 2 ** (bits - (kind == 2)) - 1, tags.get(_PHOTOMETRIC) == 0
