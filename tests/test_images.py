"""Whatever a file holds, an RGB picture comes out or an error that names the file and the cause."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from faults.catalog import each, refused
from PIL import Image, ImageOps, features
from PIL.PngImagePlugin import PngInfo

from sdslib.io.images import ENDINGS, FORMATS, ImageError, ImageRef, central, open_crop, open_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


def encode(image, form="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(width=48, height=24) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width, height) -> bytes:
    """A PNG that claims to be this large and has no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9**6) + b"IDAT"


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_a_lossless_picture_comes_back_pixel_by_pixel(form, tmp_path):
    path = tmp_path / "a.img"
    path.write_bytes(encode(photo(), form))
    assert np.array_equal(open_image(path), photo())


def test_a_hidden_color_under_full_transparency_shows_white():
    rgba = Image.new("RGBA", (4, 2), (*RED, 0))
    rgba.putpixel((0, 0), (*RED, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    image = open_image(encode(rgba))
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in (0, 2)] == [RED, WHITE]
    assert image.getpixel((1, 0)) == (127, 127, 127)


def test_gray_with_alpha_and_rgb_with_a_color_key_show_white():
    assert open_image(encode(Image.new("LA", (2, 2), (0, 0)))).getpixel((0, 0)) == WHITE
    keyed = encode(Image.new("RGB", (2, 2), RED), transparency=RED)
    assert open_image(keyed).getpixel((0, 0)) == WHITE


def test_a_palette_is_looked_up_and_its_transparent_entry_shows_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert open_image(encode(palette)).getpixel((1, 0)) == (0, 0, 255)
    assert open_image(encode(palette, transparency=0)).getpixel((0, 0)) == WHITE


def test_cmyk_jpeg_keeps_its_colors():
    image = open_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.array(image.getpixel((8, 8))) - RED).max() < 8


def deep_tiff(values, bits, kind=1, photometric=1, order="<") -> bytes:
    """An uncompressed gray TIFF of one row, written by hand: 12 bits are packed, two in three."""
    if bits == 12:
        joined = "".join(f"{v:012b}" for v in values)
        data = int(joined.ljust(-(-len(joined) // 8) * 8, "0"), 2).to_bytes(-(-len(joined) // 8))
    else:
        form = {16: "hH", 32: "iI"}[bits][kind == 1]
        data = struct.pack(f"{order}{len(values)}{form}", *values)
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1,
            278: 1, 279: len(data), 339: kind}  # fmt: skip
    at = 8 + len(data) + len(data) % 2
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", at)
    shorts = {258, 259, 262, 277, 339}
    rows = b"".join(
        struct.pack(f"{order}HHIH2x" if tag in shorts else f"{order}HHII",
                    tag, 3 if tag in shorts else 4, 1, value)
        for tag, value in tags.items()
    )  # fmt: skip
    ifd = struct.pack(f"{order}H", len(tags)) + rows + bytes(4)
    return head + data + bytes(len(data) % 2) + ifd


def gray_of(data) -> list[int]:
    return np.asarray(open_image(data, "depth.tiff"))[0, :, 0].tolist()


DEEP = Image.fromarray(np.array([[0, 255, 257 * 10, 257 * 128, 65535]], np.uint16))


@pytest.mark.parametrize(
    ("data", "gray"),
    [
        *((encode(DEEP, form), [0, 1, 10, 128, 255]) for form in ("PNG", "TIFF")),
        (encode(DEEP, transparency=255), [0, 255, 10, 128, 255]),
        (deep_tiff([0, 2048, 4095, 1365], 12), [0, 128, 255, 85]),
        (deep_tiff([0, 257 * 128, 65535], 16), [0, 128, 255]),
        (deep_tiff([0, 257 * 128, 65535], 16, order=">"), [0, 128, 255]),
        (deep_tiff([0, 16384, 32767], 16, kind=2), [0, 128, 255]),
        (deep_tiff([0, 257 * 10, 65535], 16, photometric=0), [255, 245, 0]),  # zero is white
        (b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095), [0, 128, 255]),
    ],
    ids=["PNG", "TIFF", "clear", "12", "16", "big-endian", "signed", "turned", "PGM"],
)
def test_deep_gray_is_scaled_by_the_files_own_white_and_its_clear_value_is_white(data, gray):
    assert gray_of(data) == gray


@each(
    {
        "pixels without a known white": encode(Image.new("F", (2, 2), 0.5), "TIFF"),
        "32-bit pixels": deep_tiff([0, 255], 32, kind=2),
    },
    (deep_tiff([0, 255], 32), "depth.tiff: I pixels from 0 to 255 have no known white"),
    (deep_tiff([0, 2**31 - 1], 32, kind=2), "I pixels from 0 to 2147483647 have no known white"),
)
def test_pixels_that_can_be_read_in_two_ways_are_refused(given):
    return refused(ImageError, open_image, given, "depth.tiff")


def test_a_bitmap_whose_every_alpha_is_zero_is_opaque():
    assert open_image(bitmap([(*RED, 0), (*RED, 0)])).getpixel((0, 0)) == RED
    assert open_image(bitmap([(*RED, 0), (*RED, 255)])).getpixel((0, 0)) == WHITE


def bitmap(pixels) -> bytes:
    """A BMP of one row that declares four masks, alpha among them."""
    data = b"".join(bytes((b, g, r, a)) for r, g, b, a in pixels)
    head = struct.pack("<IiiHHIIiiII", 108, len(pixels), 1, 1, 32, 3, len(data), 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = (head + masks).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + len(data), 0, 0, 122) + head + data


def test_exif_rotation_turns_the_picture_upright():
    upright = photo()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise to view
    stored = encode(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    assert np.array_equal(open_image(stored), upright)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_every_orientation_is_turned_as_pillow_turns_it(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo(), form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(open_image(data), expected)


def with_raw_profile(text) -> bytes:
    info = PngInfo()
    info.add_text("Raw profile type exif", text)
    return encode(photo(), pnginfo=info)


@pytest.mark.parametrize(
    "data",
    [
        *(encode(photo(), f, exif=e, **({"lossless": True} if f == "WEBP" else {}))
          for f in ("PNG", "WEBP")
          for e in (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"garbage that is no EXIF",
                    b"Exif\0\0II*\0\xff\xff\xff\x7f")),
        with_raw_profile("\nexif\n  12\nnot hexadecimal"),
        with_raw_profile("\nexif\n  12\nabc"),
        with_raw_profile(""),
    ],
)  # fmt: skip
def test_exif_that_cannot_be_read_leaves_the_picture_as_it_is_stored(data):
    assert np.array_equal(open_image(data), photo())


def test_a_box_counts_in_stored_pixels_whatever_the_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_crop(encode(photo(), exif=exif), (40, 2, 8, 20))
    assert np.array_equal(image, photo().crop((40, 2, 48, 22)))


def test_a_box_partly_outside_is_black_there_as_in_the_authors_crop():
    image = open_crop(encode(Image.new("RGB", (10, 10), "white")), (8, -2, 4, 4))
    assert image.size == (4, 4)
    assert image.getpixel((0, 3)) == WHITE
    assert image.getpixel((3, 3)) == image.getpixel((0, 0)) == (0, 0, 0)


@each(
    {
        "box beside its image": (48, 0, 5, 5),
        "box larger than any image may be": (0, 0, 10**5, 10**3),
    },
    *(
        (box, f"7.png: bbox …= ({box[0]}, 0, {box[2]}, {box[3]}) does not overlap the image of 48×")
        for box in ((0, 0, 0, 5), (0, 0, 5, -1), (-5, 0, 5, 5))
    ),
    *(
        ((1 - w // 2, 0, w, 10**3), "7.png: bbox …, 1000) exceeds the 64 MP limit; correct")
        for w in (10**90, 10**4000)
    ),
)
def test_a_box_that_cuts_nothing_out_is_refused(given):
    return refused(ImageError, open_crop, encode(photo()), given, "7.png")


def test_an_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == RED


def flipped_png():
    data = bytearray(encode(photo()))
    data[200] ^= 0xFF
    return bytes(data)


@each(
    {
        "image of no bytes": b"",
        "web page saved as an image": b"<html>\n<body>404",
        "Git-LFS pointer in place of an image": b"version https://git-lfs.github.com/spec/v1\noid",
        "JPEG cut short": encode(photo(), "JPEG")[:900],
        "PNG with a flipped byte": flipped_png(),
        "decompression bomb": png_header(12_000, 12_000),  # told by the header alone
    },
    (b"<html><body>404", "12.jpg is not an image (starts with '<html><body>404')"),
    (b"\x00\x01\x02\x03", "not an image …00 01 02 03"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", "starts with '%!PS-Adobe"),
    (encode(photo())[:600], "12.jpg is truncated or damaged"),
    (encode(photo())[:20], "images/12.jpg"),
    (png_header(8001, 8001), "12.jpg: 65 MP exceeds the 64 MP limit"),
    (png_header(30_000, 30_000), "12.jpg: 900 MP exceeds the 64 MP limit"),
    (
        b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\x02\0;",
        "12.jpg is not an image (starts with bytes 47 49 46",
    ),
)
def test_a_file_without_a_picture_is_named_with_the_cause(given):
    return refused(ImageError, open_image, given, "images/12.jpg")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read():
    image = open_image(encode(Image.new("RGB", (16, 16), RED), "AVIF", quality=95))
    assert np.abs(np.array(image.getpixel((8, 8))) - RED).max() < 12


def test_every_ending_is_of_a_format_that_is_read():
    known = Image.registered_extensions()
    assert {known[ending] for ending in ENDINGS} == set(FORMATS)


@pytest.mark.parametrize("size", [(48, 24), (160, 10), (10, 160), (1, 1)])
def test_an_ordinary_picture_reaches_a_transform_untouched(size):
    image = photo(*size)
    assert central(image) is image


def test_of_a_very_long_picture_the_middle_reaches_a_transform():
    image = photo(1001, 3)
    assert np.array_equal(central(image), image.crop((476, 0, 524, 3)))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(central(turned), turned.crop((0, 476, 3, 524)))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png does not exist"):
        open_image(tmp_path / "none.png")


def test_the_key_is_the_contents_and_the_boxs(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(encode(photo()))
    a, b = (ImageRef(name, (tmp_path / name).read_bytes) for name in "ab")
    assert a.key == b.key
    assert ImageRef("a", (tmp_path / "a").read_bytes, (0, 0, 4, 4)).key != a.key
    (tmp_path / "b").write_bytes(encode(photo(20, 20)))
    assert ImageRef("b", (tmp_path / "b").read_bytes).key != a.key
    assert np.array_equal(pickle.loads(pickle.dumps(a)).load(), photo())  # noqa: S301
