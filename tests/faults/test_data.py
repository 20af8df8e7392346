"""Pictures, captions, annotations, shards and the Hub: each fault is named by its place."""

import json
import re
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import test_images as pictures
from PIL import Image
from test_benchmarks import aro, winoground_table, write  # noqa: F401
from test_pairs import coco_document, die, hub, png, shade, to_pixels, write_coco  # noqa: F401
from test_shards import write_shard

from faults.catalog import fault
from sdslib.io.images import ImageError, open_crop, open_image
from sdslib.io.sources import CAPTION_LIMIT, DataError, check_caption
from sdslib.pairs import batches, load_pairs
from sdslib.sets.aro import aro_relation
from sdslib.sets.pair_files import coco_pairs
from sdslib.sets.winoground import winoground


def refused(call, *args, error=DataError):
    with pytest.raises(error) as caught:
        call(*args)
    return caught.value


def of_image(data):
    return refused(open_image, data, "images/12.jpg", error=ImageError)


# --- pictures ------------------------------------------------------------------------------------


@fault(13, "image of no bytes", "images/12.jpg is empty (0 bytes); fetch it again")
def test_an_image_of_no_bytes():
    return of_image(b"")


@fault(13, "web page saved as an image", "images/12.jpg is not an image (starts with '<html>')")
def test_a_web_page_saved_as_an_image():
    return of_image(b"<html>\n<body>404")


@fault(
    13,
    "Git-LFS pointer in place of an image",
    "images/12.jpg is not an image (a Git LFS pointer; run git lfs pull)",
)
def test_a_pointer_in_place_of_an_image():
    return of_image(b"version https://git-lfs.github.com/spec/v1\noid sha256:0")


@fault(
    14,
    "JPEG cut short",
    "images/12.jpg is truncated or damaged (900 bytes: …); fetch it again",
)
def test_a_jpeg_cut_short():
    return of_image(pictures.encode(pictures.photo(), "JPEG")[:900])


@fault(14, "PNG with a flipped byte", "images/12.jpg is truncated or damaged (…); fetch it again")
def test_a_png_with_a_flipped_byte():
    data = bytearray(pictures.encode(pictures.photo()))
    data[200] ^= 0xFF
    return of_image(bytes(data))


@fault(15, "decompression bomb", "images/12.jpg: 144 MP exceeds the 64 MP limit; scale it down")
def test_a_decompression_bomb_is_seen_in_its_header():
    return of_image(pictures.png_header(12_000, 12_000))


@fault(
    16,
    "box beside its image",
    "7.png: bbox (x, y, w, h) = (48, 0, 5, 5) does not overlap the image of 48×24; correct the "
    "box or drop the row",
)
def test_a_box_beside_its_image():
    data = pictures.encode(pictures.photo())
    return refused(open_crop, data, (48, 0, 5, 5), "7.png", error=ImageError)


@fault(
    16,
    "box larger than any image may be",
    "7.png: bbox (x, y, w, h) = (0, 0, 100000, 1000) exceeds the 64 MP limit; correct the box or "
    "drop the row",
)
def test_a_box_larger_than_any_image_may_be():
    data = pictures.encode(pictures.photo())
    return refused(open_crop, data, (0, 0, 10**5, 10**3), "7.png", error=ImageError)


@fault(16, "empty box", "visual_genome_relation.json[1].bbox_w: expected integer >= 1, got 0")
def test_an_empty_box(aro):  # noqa: F811
    return of_aro_row(aro, "bbox_w", 0)


@fault(
    17,
    "pixels without a known white",
    "depth.tiff: F pixels from … have no known white; convert it to 8-bit RGB",
)
def test_float_pixels():
    """The other modes have one right reading each: see tests/test_images.py."""
    data = pictures.encode(Image.new("F", (2, 2), 0.5), "TIFF")
    return refused(open_image, data, "depth.tiff", error=ImageError)


def test_every_other_mode_is_read_as_a_viewer_shows_it():
    deep = Image.fromarray(np.array([[0, 65535]], np.uint16))
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    for image in (deep, clear):
        assert open_image(pictures.encode(image)).getpixel((1, 0)) == (255, 255, 255)


# --- names of files ------------------------------------------------------------------------------


def of_aro_row(folder, key, value):
    path = folder / "visual_genome_relation.json"
    rows = json.loads(path.read_text())
    rows[1][key] = value
    write(path, rows)
    return refused(aro_relation, folder)


@fault(
    18,
    "path that climbs out of the data",
    "visual_genome_relation.json[1].image_path: '../../etc/passwd' escapes the data root …; use "
    "paths below it",
)
def test_a_path_that_climbs_out(aro):  # noqa: F811
    return of_aro_row(aro, "image_path", "../../etc/passwd")


@fault(18, "absolute path", "'/etc/passwd' escapes the data root …; use paths below it")
def test_an_absolute_path(aro):  # noqa: F811
    return of_aro_row(aro, "image_path", "/etc/passwd")


@fault(18, "name in the wrong case", "'0.PNG' does not exist in …; did you mean '0.png'?")
def test_a_name_in_the_wrong_case(aro):  # noqa: F811
    return of_aro_row(aro, "image_path", "0.PNG")


@fault(18, "missing image", "'9.png' does not exist in …; fetch it or correct the annotation")
def test_a_missing_image(aro):  # noqa: F811
    return of_aro_row(aro, "image_path", "9.png")


@fault(
    18,
    "link that leaves the data",
    "is a link that escapes the data root …; give the folder that it points into",
)
def test_a_link_that_leaves_the_data(aro, tmp_path_factory):  # noqa: F811
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    secret.write_bytes(png(shade(1)))
    (aro / "images" / "0.png").unlink()
    (aro / "images" / "0.png").symlink_to(secret)
    return refused(aro_relation, aro)


# --- captions ------------------------------------------------------------------------------------


def of_winoground(tmp_path, change, rows=4):
    pq.write_table(winoground_table(rows, change), tmp_path / "test.parquet")
    return refused(winoground, str(tmp_path))


@fault(19, "blank caption", "test[2].caption_1: is empty")
def test_a_blank_caption(tmp_path):
    return of_winoground(tmp_path, lambda rows: rows[2].update(caption_1=" \n"))


@fault(19, "no caption", "test[2].caption_1: expected text, got None")
def test_no_caption(tmp_path):
    return of_winoground(tmp_path, lambda rows: rows[2].update(caption_1=None))


@fault(22, "half a surrogate pair, or NUL", "has a NUL character or half a surrogate pair")
@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"])
def test_half_a_character(text):
    return refused(check_caption, text, error=ValueError)


@fault(22, "caption of a megabyte", "has 1000000 characters; the limit is 10000")
def test_a_caption_of_a_megabyte():
    return refused(check_caption, "x" * 10**6, error=ValueError)


@pytest.mark.parametrize("text", ["שלום עולם", "🟥 ⬅️ 🟦", "e\u0301", "\u202egnp.exe"])
def test_other_scripts_and_signs_are_captions(text):
    assert check_caption(text) == text
    assert len(text) < CAPTION_LIMIT


# --- annotations ---------------------------------------------------------------------------------


@fault(
    23,
    "annotations that are no list",
    "visual_genome_relation.json: expected a list of rows, got an object",
)
def test_annotations_that_are_no_list(aro):  # noqa: F811
    return of_aro_text(aro, '{"image_path": "0.png"}')


@fault(
    23,
    "comma before the end",
    "visual_genome_relation.json:1:…: not valid JSON (…); the text starts with",
)
def test_a_comma_before_the_end(aro):  # noqa: F811
    return of_aro_text(aro, '[{"a": 1},]')


@fault(23, "NaN in annotations", "visual_genome_relation.json: NaN is not JSON")
def test_nan_in_annotations(aro):  # noqa: F811
    return of_aro_text(aro, '[{"bbox_x": NaN}]')


@fault(23, "key given twice", "visual_genome_relation.json: key 'a' appears twice in one object")
def test_a_key_given_twice(aro):  # noqa: F811
    return of_aro_text(aro, '[{"a": 1, "a": 2}]')


@fault(23, "id given twice", "test[3]: id 1 appears twice; remove one of the rows")
def test_an_id_given_twice(tmp_path):
    return of_winoground(tmp_path, lambda rows: rows[3].update(id=1))


@fault(23, "missing key", "captions_train2017.json.annotations[3].image_id: is missing")
def test_a_missing_key(tmp_path):
    document = coco_document()
    document["annotations"][3].pop("image_id")
    return refused(coco_pairs, *write_coco(tmp_path, document))


def of_aro_text(folder, text):
    (folder / "visual_genome_relation.json").write_text(text)
    return refused(aro_relation, folder)


@fault(
    24,
    "file that is no parquet",
    "test.parquet cannot be read (…); expected parquet with the columns image_0, image_1, id",
)
def test_a_file_that_is_no_parquet(tmp_path):
    (tmp_path / "test.parquet").write_bytes(b"<html>")
    return refused(winoground, str(tmp_path))


@fault(
    24,
    "parquet without a column",
    "test.parquet cannot be read (columns missing: tag); expected parquet with the columns …",
)
def test_a_parquet_without_a_column(tmp_path):
    return of_winoground(tmp_path, lambda rows: [row.pop("tag") for row in rows])


@fault(26, "benchmark that is not whole", "winoground (partial: 4 of 400)")
def test_a_benchmark_that_is_not_whole(tmp_path):
    pq.write_table(winoground_table(4), tmp_path / "test.parquet")
    return winoground(str(tmp_path)).label


# --- the Hub -------------------------------------------------------------------------------------


def of_hub(hub, repo, token):  # noqa: F811
    if token:
        hub.setenv("HF_TOKEN", token)
    said = refused(winoground, repo)
    assert "Without the Hub: give a folder with data/test-*.parquet" in str(said)
    return said


@fault(
    25,
    "Hub out of reach",
    "who/gated: the Hub cannot be reached (…) and the local cache does not hold it. Connect, or "
    "unset HF_HUB_OFFLINE, and run again",
)
def test_the_hub_out_of_reach(hub):  # noqa: F811
    hub.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    return of_hub(hub, "who/gated", None)


@fault(
    25,
    "gated data without a token",
    "who/gated: reading it needs a token (none was found). Accept its terms at …, make a read "
    "token at https://huggingface.co/settings/tokens, then set HF_TOKEN or run `hf auth login`",
)
def test_gated_data_without_a_token(hub):  # noqa: F811
    return of_hub(hub, "who/gated", None)


@fault(
    25,
    "gated data whose terms were not accepted",
    "who/gated: your account has not accepted its terms (or awaits approval). Open … with the "
    "account of your token and accept them",
)
def test_terms_not_accepted(hub):  # noqa: F811
    return of_hub(hub, "who/gated", "fresh")


@fault(25, "token that has expired", "who/open: reading it needs a token (it was refused)")
def test_a_token_that_has_expired(hub):  # noqa: F811
    return of_hub(hub, "who/open", "stale")


@fault(
    25,
    "data set that is not there",
    "who/absent: there is no such data set at …, or it is private. Check the spelling",
)
def test_a_data_set_that_is_not_there(hub):  # noqa: F811
    return of_hub(hub, "who/absent", None)


# --- batches and shards --------------------------------------------------------------------------


@fault(
    27,
    "fewer pairs than a batch",
    "0 batches: … has 10 pairs, batch_size is 11; lower batch_size or take more pairs",
)
def test_fewer_pairs_than_a_batch(tmp_path):
    pairs = coco_pairs(*write_coco(tmp_path))
    return refused(batches, pairs, to_pixels, 11, 0, 0, 5)


@fault(
    27,
    "no pairs at all",
    "captions_train2017.json: expected an object with a list 'images' that is not empty",
)
def test_no_pairs_at_all(tmp_path):
    return refused(coco_pairs, *write_coco(tmp_path, {"images": [], "annotations": []}))


@fault(
    28,
    "worker that dies",
    "DataLoader worker (pid(s) …) …; it read images for step 3 or a later one and died, often for "
    "want of memory or /dev/shm: set num_workers=0 to read in this process",
)
def test_a_worker_that_dies(tmp_path):
    pairs = coco_pairs(*write_coco(tmp_path))
    return refused(list, batches(pairs, die, 3, 0, range(2, 4), num_workers=1), error=RuntimeError)


def of_shard(tmp_path, name, kind=tarfile.REGTYPE, size=0):
    extra = tarfile.TarInfo(name)
    extra.type, extra.linkname, extra.size = kind, "/etc/passwd", size
    write_shard(tmp_path / "0.tar", [("a.png", png(shade(1))), ("a.txt", b"text")], extra)
    return refused(load_pairs, str(tmp_path / "0.tar"))


@fault(
    29,
    "shard member that climbs out",
    "0.tar: member '../a.png' is a link or leads out of its folder",
)
def test_a_member_that_climbs_out(tmp_path):
    return of_shard(tmp_path, "../a.png")


@fault(
    29,
    "shard member with an absolute name",
    "0.tar: member '/a.png' is a link or leads out of its folder",
)
def test_a_member_with_an_absolute_name(tmp_path):
    return of_shard(tmp_path, "/a.png")


@fault(29, "link in a shard", "0.tar: member 'b.png' is a link or leads out of its folder")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_in_a_shard(tmp_path, kind):
    return of_shard(tmp_path, "b.png", kind)


@fault(29, "shard member of gigabytes", "0.tar: member 'b.png' has 3221225472 bytes; too many")
def test_a_member_of_gigabytes(tmp_path):
    return of_shard(tmp_path, "b.png", size=3 * 2**30)


@fault(29, "shard cut short", "0.tar is not a whole, uncompressed tar file (…)")
def test_a_shard_cut_short(tmp_path):
    write_shard(tmp_path / "0.tar", [("a.png", png(shade(1))), ("a.txt", b"text")])
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:600])
    return refused(load_pairs, str(tmp_path / "0.tar"))


@fault(
    59,
    "image that breaks while training",
    "000000000004.png is not an image (starts with '<html>')",
)
def test_an_image_that_breaks_while_training(tmp_path):
    annotations, images = write_coco(tmp_path)
    pairs = coco_pairs(annotations, images)
    (images / f"{4:012d}.png").write_bytes(b"<html>")
    return refused(list, batches(pairs, to_pixels, 5, 0, range(2)), error=ImageError)


@fault(
    60,
    "mini-world that is not drawn",
    "the mini-world is not drawn yet; run notebooks/00_miniworld.ipynb or make miniworld",
)
def test_a_mini_world_that_is_not_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr("sdslib.miniworld.sets.project_root", lambda: tmp_path)
    return refused(load_pairs, "mini")


@fault(
    61,
    "negatives that were edited",
    "negatives.json: the rows do not have the hash on file; delete it or restore it",
)
def test_negatives_that_were_edited(tmp_path):
    from sdslib.sets.shuffles import freeze, lexicon_tagger, read_frozen

    truths = {"0#0": "a red circle left of a blue square"}
    freeze(
        truths, lexicon_tagger(["circle", "square"], ["red", "blue"]), tmp_path / "negatives.json"
    )
    text = (tmp_path / "negatives.json").read_text()
    (tmp_path / "negatives.json").write_text(re.sub("left of", "right of", text, count=1))
    return refused(read_frozen, tmp_path / "negatives.json", truths)
