"""Pairs from files in the real schemas, and batches that any step can be resumed at."""

import hashlib
import io
import itertools
import json
import multiprocessing
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from faults.catalog import each, fault, refused
from PIL import Image
from scipy import stats

from sdslib import pairs as module
from sdslib.io import pictures
from sdslib.io.hub import hub_dataset
from sdslib.io.images import ImageError
from sdslib.io.sources import DataError, Root
from sdslib.pairs import batches, load_pairs
from sdslib.sets import pair_files
from sdslib.sets.pair_files import coco_pairs, dataset_pairs


def to_pixels(image: Image.Image) -> torch.Tensor:
    pixels = np.array(image.resize((8, 8), Image.Resampling.BOX))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def shade(index: int) -> Image.Image:
    return Image.new("RGB", (16, 12), (index, 2 * index % 256, 255 - index))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def coco_document(count=10, captions=3) -> dict:
    """COCO's captions schema with ids that neither start at 0 nor follow each other."""
    images = [
        {"id": 7 * i + 100, "file_name": f"{i:012d}.png", "width": 16, "height": 12, "license": 1}
        for i in range(count)
    ]
    notes = [
        {
            "id": 900 - n,
            "image_id": 7 * (n % count) + 100,
            "caption": f"caption {n // count} of {n % count}",
        }
        for n in range(count * captions)
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": notes}


def write_coco(root, document=None, count=10, name="train2017"):
    (root / "annotations").mkdir(parents=True)
    (root / name).mkdir()
    for i in range(count):
        (root / name / f"{i:012d}.png").write_bytes(png(shade(i)))
    text = json.dumps(document or coco_document(count))
    (root / "annotations" / f"captions_{name}.json").write_text(text)
    return root / "annotations" / f"captions_{name}.json", root / name


@pytest.fixture
def coco(tmp_path):
    return write_coco(tmp_path)


# --- sources -------------------------------------------------------------------------------------


def test_every_coco_image_keeps_its_own_captions(coco):
    pairs = coco_pairs(*coco)
    assert len(pairs) == 10
    assert pairs.ids[:2] == ["100", "107"]
    assert pairs.captions(4) == ("caption 0 of 4", "caption 1 of 4", "caption 2 of 4")
    assert np.array_equal(pairs.image(4), shade(4))


def test_a_folder_a_pair_of_paths_and_a_byte_order_mark_give_the_same_pairs(coco, tmp_path):
    annotations, images = coco
    before = load_pairs(str(tmp_path)).fingerprint
    annotations.write_bytes(b"\xef\xbb\xbf" + annotations.read_bytes())
    assert load_pairs(f"{annotations}::{images}").fingerprint == before


def test_the_fingerprint_sees_a_changed_caption_and_a_changed_image(coco):
    annotations, images = coco
    seen = {coco_pairs(*coco).fingerprint}
    (images / f"{3:012d}.png").write_bytes(png(photo()))
    seen.add(coco_pairs(*coco).fingerprint)
    annotations.write_text(annotations.read_text().replace("caption 0 of 4", "Caption 0 of 4"))
    seen.add(coco_pairs(*coco).fingerprint)
    assert len(seen) == 3


def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))


def edited(change):
    document = coco_document()
    change(document)
    return document


@each(
    {
        "missing key": lambda d: d["annotations"][3].pop("image_id"),
        "no pairs at all": lambda d: d.update(images=[], annotations=[]),
    },
    (lambda d: d["annotations"][3].update(caption=" "), "annotations[3].caption: is empty"),
    (lambda d: d["annotations"][3].update(caption=None), "[3].caption: expected text"),
    (lambda d: d["annotations"][3].update(caption="a\0b"), "[3].caption: has a NUL"),
    (lambda d: d["annotations"][3].update(caption="x" * 10**6), "has 1000000 characters"),
    (lambda d: d["annotations"][3].update(image_id=1), "[3].image_id: 1 is not among"),
    (lambda d: d["images"][1].update(id=100), "images[1].id: image 100 appears twice"),
    (lambda d: d["images"][1].update(id="x"), "images[1].id: expected integer, got 'x'"),
    (lambda d: d.pop("images"), "a list 'images'"),
    (lambda d: d.update(annotations=[]), "a list 'annotations'"),
    (lambda d: d["images"][2].update(file_name="../a.png"), "image 114: …escapes the data"),
    (lambda d: d["images"][2].update(file_name="/etc/passwd"), "escapes the data root"),
    (lambda d: d["images"][2].update(file_name="C:\\a.png"), "escapes the data root"),
    (lambda d: d["images"][2].update(file_name="none.png"), "image 114: …does not exist"),
    (lambda d: d["images"][2].update(file_name="000000000002.PNG"), "mean '000000000002"),
)
def test_a_fault_in_a_captions_file_is_named_by_its_path(tmp_path, given):
    return refused(DataError, coco_pairs, *write_coco(tmp_path, edited(given)))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"images": [{"id": 1,}]}', '{"images": [{"id": NaN}]}']
)
def test_what_is_not_a_captions_file_is_refused(coco, text):
    coco[0].write_text(text)
    with pytest.raises(DataError, match=r"captions_train2017.json"):
        coco_pairs(*coco)


@fault("link that leaves the data")
@pytest.mark.filterwarnings("ignore:.*1 images are there already")
def test_a_link_that_leaves_the_data_root_is_refused(coco, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(shade(1)))
    inside = coco[1] / f"{1:012d}.png"
    inside.unlink()
    inside.symlink_to(coco[1] / f"{2:012d}.png")
    assert np.array_equal(coco_pairs(*coco).image(1), shade(2))
    inside.unlink()
    inside.symlink_to(secret)
    return refused(DataError, coco_pairs, *coco)


def test_a_linked_folder_that_leaves_the_data_root_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(png(shade(1)))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "in").symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match="folder 'in' is a link that escapes"):
        Root(tmp_path / "root").path("in/a.png")


def test_images_without_a_caption_are_left_out_with_a_warning(tmp_path):
    def drop(document):
        document["annotations"] = [n for n in document["annotations"] if n["image_id"] != 107]

    with pytest.warns(UserWarning, match="1 images have no caption"):
        pairs = coco_pairs(*write_coco(tmp_path, edited(drop)))
    assert len(pairs) == 9
    assert pairs.captions(1)[0] == "caption 0 of 2"
    assert np.array_equal(pairs.image(1), shade(2))


def test_a_limit_takes_a_subset_that_grows(coco, tmp_path):
    small, large = (set(load_pairs(str(tmp_path), n).ids) for n in (3, 7))
    assert len(small) == 3
    assert small < large
    with pytest.raises(DataError, match=r"11 pairs asked for, but .* has 10"):
        load_pairs(str(tmp_path), 11)


def test_missing_images_are_counted_with_where_they_come_from(tmp_path):
    annotations, images = write_coco(tmp_path)
    for i in range(1, 10):
        (images / f"{i:012d}.png").unlink()
    told = (
        r"image 107: '0+1\.png' does not exist in .*; 9 of 10 images are missing \(they are COCO's "
        r"train2017, http://images\.cocodataset\.org/zips/train2017\.zip\)"
    )
    with pytest.raises(DataError, match=told):
        coco_pairs(annotations, images)
    with pytest.raises(DataError, match=r"is not a folder; .*zips/val2017\.zip"):
        Root(tmp_path / "val2017")


@pytest.mark.parametrize("name", ["22:06.png", "a:b.png", "a b.png", "ü.png", "-.png", "[1].png"])
def test_an_odd_name_of_a_file_is_a_name(tmp_path, name):
    document = coco_document()
    document["images"][3]["file_name"] = name
    annotations, images = write_coco(tmp_path, document)
    (images / name).write_bytes(png(shade(77)))
    assert np.array_equal(coco_pairs(annotations, images).image(3), shade(77))


def write_metadata(folder, rows):
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png(shade(i)))
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.mark.parametrize("column", ["caption", "text"])
def test_a_folder_of_images_with_metadata_is_a_set_of_pairs(tmp_path, column):
    rows = [{"file_name": f"{i}.png", column: f"text {i}"} for i in (2, 0, 2)]
    folder = write_metadata(tmp_path / "set", [*rows[:2], rows[2] | {column: ["a", "b"]}])
    for source in (str(folder), f"{folder / 'metadata.jsonl'}::{folder}"):
        pairs = load_pairs(source)
        assert [pairs.captions(i) for i in range(2)] == [("text 2", "a", "b"), ("text 0",)]
        assert np.array_equal(pairs.image(0), shade(2))


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("b.csv", "\t"), ("c.csv", ",")])
@pytest.mark.parametrize("columns", [("filepath", "title"), ("image", "caption")])
def test_a_table_of_images_and_captions_is_a_set_of_pairs(tmp_path, name, mark, columns):
    folder = write_metadata(tmp_path / "set", [])
    rows = [columns, ("2.png", '"a ""big"" dog"'), ("0.png", '"two\nlines"'), ("2.png", "🐕 ü")]
    (tmp_path / name).write_text("".join(f"{mark.join(row)}\n" for row in rows), "utf-8-sig")
    pairs = load_pairs(f"{tmp_path / name}::{folder}")
    assert [pairs.captions(i) for i in range(2)] == [('a "big" dog', "🐕 ü"), ("two\nlines",)]
    assert np.array_equal(pairs.image(0), shade(2))


def test_parts_the_wrong_way_round_and_images_of_another_folder_are_told(coco, tmp_path):
    annotations, images = coco
    with pytest.raises(DataError, match="train2017 is no file of captions; give captions"):
        load_pairs(f"{images}::{annotations}")
    pair_files.look(annotations, images)
    told = r"holds none of the first 10 images of .*json, as 0+\.png; name the folder that its"
    with pytest.raises(DataError, match=told):
        pair_files.look(annotations, tmp_path)


def test_a_fault_in_metadata_is_named_by_its_row(tmp_path):
    folder = write_metadata(tmp_path / "set", [{"file_name": "0.png", "label": 3}])
    with pytest.raises(DataError, match=r"metadata\.jsonl\[0\]\.caption: expected list, got None"):
        load_pairs(str(folder))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c", "\x1d"])
def test_no_mark_within_a_text_ends_a_line_of_json(tmp_path, mark):
    text = json.dumps({"file_name": "0.png", "text": "red MARK blue"}, ensure_ascii=False)
    folder = write_metadata(tmp_path / "set", [])
    if mark < " ":  # which JSON wants escaped
        mark = f"\\u{ord(mark):04x}"
    lines = text.replace("MARK", mark) + "\r\n"
    (folder / "metadata.jsonl").write_bytes(lines.encode())
    (caption,) = load_pairs(str(folder)).captions(0)
    assert caption.split() == ["red", "blue"] or caption[4:-5] == mark


KARPATHY = {
    "dataset": "coco",
    "images": [{"filename": "0.png", "filepath": "val2014", "split": "test", "cocoid": 7,
                "sentences": [{"raw": "a circle", "tokens": ["a", "circle"]}]}],
}  # fmt: skip


@fault("Karpathy's file of all splits")
def test_karpathys_file_of_all_splits_is_told_by_name_with_what_is_taken(coco, tmp_path):
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(KARPATHY))
    return refused(DataError, load_pairs, f"{path}::{coco[1]}")


@fault("Git-LFS pointer in place of captions")
def test_a_pointer_of_git_lfs_in_the_place_of_data_is_told(coco, tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 91865115\n"
    coco[0].write_bytes(pointer)
    (tmp_path / "metadata.jsonl").write_bytes(pointer)
    (tmp_path / "0.tar").write_bytes(pointer)
    for source in (str(tmp_path), str(tmp_path / "0.tar")):
        with pytest.raises(DataError, match="is a Git LFS pointer, not the data; run git lfs pull"):
            load_pairs(source)
    return refused(DataError, load_pairs, f"{coco[0]}::{coco[1]}")


def of_one_batch(pairs):
    (batch,) = batches(pairs, to_pixels, len(pairs), 0, range(1))
    return batch.pixels


def test_one_image_under_three_ids_is_one_pair_with_the_captions_of_all(tmp_path):
    annotations, images = write_coco(tmp_path)
    for i in (5, 9):
        (images / f"{i:012d}.png").write_bytes((images / f"{2:012d}.png").read_bytes())
    with pytest.warns(UserWarning, match=r"2 images are there already under another id, as '135'"):
        pairs = coco_pairs(annotations, images)
    assert len(pairs) == 8
    expected = {f"caption {k} of {i}" for k in range(3) for i in (2, 5, 9)}
    assert set(pairs.captions(2)) == expected
    assert np.array_equal(pairs.image(5), shade(6))
    assert len(np.unique(of_one_batch(pairs).numpy(), axis=0)) == 8


def test_no_file_is_opened_whose_size_no_other_has(tmp_path, monkeypatch):
    annotations, images = write_coco(tmp_path)
    for i in range(10):
        path = images / f"{i:012d}.png"
        path.write_bytes(b"x" * (100 + i))
    opened = []
    monkeypatch.setattr(
        "sdslib.sets.pair_files.read_part", lambda path, *part: opened.append(path.name) or b""
    )
    assert len(coco_pairs(annotations, images)) == 10
    assert opened == []


def test_an_unknown_source_says_what_would_do():
    with pytest.raises(DataError, match="is no source of pairs"):
        load_pairs("no-such-folder")


@fault("mini-world that is not drawn")
def test_an_absent_mini_world_says_how_to_draw_it(monkeypatch, tmp_path):
    monkeypatch.setattr("sdslib.miniworld.sets.project_root", lambda: tmp_path)
    said = refused(DataError, load_pairs, "mini:val")
    write_coco(tmp_path / "data" / "mini" / "world" / "coco", name="val")
    assert len(load_pairs("mini:val")) == 10
    return said


def test_a_karpathy_split_is_told_by_its_list_and_joins_the_rows_of_an_image(coco, tmp_path):
    rows = [{"image": f"train2017/{i:012d}.png", "caption": [f"a {i}", f"b {i}"]} for i in (3, 1)]
    rows.append({"image": rows[0]["image"], "caption": "c 3", "image_id": "coco_3"})
    path = tmp_path / "coco_karpathy_test.json"
    path.write_text("\n " + json.dumps(rows))
    pairs = load_pairs(f"{path}::{tmp_path}")
    assert pairs.ids == ["3", "1"]
    assert pairs.captions(0) == ("a 3", "b 3", "c 3")
    assert np.array_equal(pairs.image(1), shade(1))
    path.write_text(json.dumps([rows[0] | {"caption": []}, {"image": 1, "caption": "x"}]))
    with pytest.raises(DataError, match=r"coco_karpathy_test\.json\[1\]\.image: expected text"):
        load_pairs(f"{path}::{tmp_path}")


# --- Hub -----------------------------------------------------------------------------------------


def hub_like(rows) -> datasets.Dataset:
    found = datasets.Dataset.from_list(rows)
    return found.cast_column("image", datasets.Image(decode=False)).cast_column(
        "image", datasets.Image()
    )


def encoded(index) -> dict:
    return {"bytes": png(shade(index)), "path": None}


def test_hub_rows_of_one_image_are_joined():
    rows = [
        {"image": encoded(i // 2), "caption": f"text {i}", "image_id": i // 2} for i in range(6)
    ]
    pairs = dataset_pairs(hub_like(rows), "who/what:train")
    assert [pairs.captions(i) for i in range(3)] == [
        (f"text {2 * i}", f"text {2 * i + 1}") for i in range(3)
    ]
    assert np.array_equal(pairs.image(2), shade(2))


def test_hub_rows_with_lists_of_captions_and_no_ids_are_taken_as_they_are():
    rows = [{"image": encoded(i), "sentences": [f"a {i}", f"b {i}"]} for i in range(3)]
    found = hub_like(rows)
    pairs = dataset_pairs(found, "who/what:train")
    assert pairs.captions(1) == ("a 1", "b 1")
    assert pairs.ids == ["0", "1", "2"]
    with pytest.raises(DataError, match="expected one image column"):
        dataset_pairs(found.remove_columns("sentences"), "who/what:train")


@pytest.mark.parametrize("ids", [[None, None, None], [1, 1, None], ["a", "b", "c"]])
@pytest.mark.filterwarnings("ignore:.*1 images are there already")
def test_hub_rows_are_one_pair_where_their_images_are_whatever_their_ids(ids):
    rows = [{"image": encoded(i), "caption": f"text {i}", "image_id": ids[i]} for i in range(3)]
    assert len(dataset_pairs(hub_like(rows), "who/what:train")) == 3
    rows[2]["image"] = encoded(0)
    pairs = dataset_pairs(hub_like(rows), "who/what:train")
    assert [pairs.captions(i) for i in range(2)] == [("text 0", "text 2"), ("text 1",)]
    assert np.array_equal(pairs.image(1), shade(1))


def test_hub_images_that_lie_in_files_are_told_apart_as_others_are(tmp_path):
    rows = []
    for i, color in enumerate((1, 2, 1)):
        (tmp_path / f"{i}.png").write_bytes(png(shade(color)))
        rows.append({"image": {"bytes": None, "path": str(tmp_path / f"{i}.png")}, "text": f"t{i}"})
    with pytest.warns(UserWarning, match="1 images are there already"):
        pairs = dataset_pairs(hub_like(rows), "who/what:train")
    assert [pairs.captions(i) for i in range(2)] == [("t0", "t2"), ("t1",)]


@fault("rows of a data set without an image")
def test_hub_rows_without_an_image_are_counted_and_named(tmp_path):
    rows = [{"image": encoded(i), "caption": f"text {i}"} for i in range(4)]
    rows[1]["image"], rows[3]["image"] = None, {"bytes": None, "path": str(tmp_path / "none.png")}
    return refused(DataError, dataset_pairs, hub_like(rows), "who/what:train")


def test_an_empty_hub_caption_is_named():
    rows = [{"image": encoded(0), "caption": "a"}, {"image": encoded(1), "caption": None}]
    with pytest.raises(DataError, match=r"who/what:train\[1\]\.caption: expected text, got None"):
        dataset_pairs(hub_like(rows), "who/what:train")


class Gate(BaseHTTPRequestHandler):
    """Answers as the Hub's auth-check does for a gated, an absent and an open data set."""

    def do_GET(self):
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if "gated" in self.path and token != "accepted":
            self._answer(403 if token else 401, "GatedRepo")
        elif "absent" in self.path:
            self._answer(401, "RepoNotFound")
        elif token == "stale":
            self._answer(401, None, "Invalid credentials in Authorization header")
        else:
            self._answer(200, None)

    def _answer(self, status, code, message=None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = HTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    yield monkeypatch
    server.shutdown()
    server.server_close()


@each(
    {
        "gated data without a token": ("who/gated", None, "no-token"),
        "gated data whose terms were not accepted": ("who/gated", "fresh", "terms-not-accepted"),
        "token that has expired": ("who/open", "stale", "no-token"),
        "data set that is not there": ("who/absent", None, "not-found"),
    }
)
def test_each_refusal_of_the_hub_has_its_own_reason_and_next_action(hub, given):
    repo, token, reason = given
    if token:
        hub.setenv("HF_TOKEN", token)
    said = refused(DataError, hub_dataset, repo, "test", local="the folder with the parquet files")
    assert said.reason == reason
    assert "Without the Hub: give the folder with the parquet files" in str(said)
    return said


def test_a_revision_behind_the_name_is_the_one_that_is_loaded(monkeypatch):
    asked = []

    def load(repo, **told):
        asked.append((repo, told))
        return datasets.Dataset.from_dict({"caption": ["a"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("sdslib.io.hub.hub_access", lambda repo, local: asked.append(repo))
    for source, revision in (("who/what@v1.2", "v1.2"), ("who/what", None)):
        hub_dataset(source, "test")
        assert asked[-2:] == ["who/what", ("who/what", {"split": "test", "revision": revision})]


@fault("Hub out of reach")
def test_without_a_network_the_answer_comes_at_once(hub):
    hub.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nothing is there
    started = time.monotonic()
    said = refused(DataError, load_pairs, "who/gated")
    assert said.reason == "offline"
    assert time.monotonic() - started < 20  # the bare library retries for longer
    return said


def test_without_a_network_the_local_cache_is_used(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    rows = [{"image": encoded(i), "caption": f"text {i}"} for i in range(3)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    made = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=tmp_path / "made"
    )["train"]
    source = Path(made.cache_files[0]["filename"])
    kept = tmp_path / "who___what" / "default" / "0.0.0" / source.parent.name
    shutil.copytree(source.parent, kept)
    (kept / source.name).rename(kept / "what-train.arrow")
    info = json.loads((kept / "dataset_info.json").read_text())
    info |= {"dataset_name": "what", "config_name": "default", "builder_name": "parquet"}
    info["splits"]["train"]["dataset_name"] = "what"
    (kept / "dataset_info.json").write_text(json.dumps(info))
    found = hub_dataset("who/what", "train")
    assert found["caption"][:] == ["text 0", "text 1", "text 2"]


# --- in memory -----------------------------------------------------------------------------------


def many(count: int) -> module.Pairs:
    """Pairs of five captions of ten words, drawn from a hundred words; without their images."""
    rng = np.random.default_rng(0)
    words = np.array([f"{'aeiou'[i % 5]}word{i}" for i in range(100)])
    columns = {
        "id": [str(7 * i) for i in range(count)],
        "name": [f"{i:012d}.png" for i in range(count)],
        "captions": [[" ".join(text) for text in own]
                     for own in words[rng.integers(0, 100, (count, 5, 10))]],
    }  # fmt: skip
    return module.Pairs(pa.table(columns), lambda row: row["name"].encode(), "many")


@pytest.mark.parametrize("count", [1, module.BLOCK, module.BLOCK + 1, 1_100])
def test_any_row_of_any_block_is_its_own(count):
    pairs = many(count)
    texts = pairs.all_captions()
    assert (len(pairs), len(pairs.ids), len(texts)) == (count, count, 5 * count)
    for i in {0, count // 2, count - 1, min(module.BLOCK, count - 1)}:
        assert pairs.captions(i) == tuple(texts[5 * i : 5 * i + 5])
        assert pairs.ref(i).data() == f"{i:012d}.png".encode()
        assert pairs.ids[i] == str(7 * i)
    assert pairs.captions(-1) == pairs.captions(count - 1)
    for beyond in (count, -count - 1):
        with pytest.raises(IndexError):
            pairs.captions(beyond)


def test_the_fingerprint_is_that_of_the_rows_whatever_the_blocks(monkeypatch):
    pairs = many(2_100)
    rows = pairs._all.table().to_pylist()
    digest = hashlib.sha256()
    for start in range(0, 2_100, 1024):
        digest.update(json.dumps(rows[start : start + 1024], sort_keys=True).encode())
    assert pairs.fingerprint == digest.hexdigest()
    monkeypatch.setattr(module, "BLOCK", 512)
    assert many(2_100).fingerprint == pairs.fingerprint


def test_captions_take_less_than_half_of_what_they_are_in_arrow():
    before = pa.total_allocated_bytes()
    pairs = many(5_000)
    held = pa.total_allocated_bytes() - before
    assert 0 < held < 0.5 * pairs._all.table().nbytes


def test_pairs_can_be_sent_to_a_worker_that_is_not_forked(coco):
    pairs = coco_pairs(*coco)
    pairs.captions(3)  # so that its reader is open
    sender, receiver = multiprocessing.Pipe()
    sender.send(pairs)
    sent = receiver.recv()
    assert sent.captions(7) == pairs.captions(7)
    assert np.array_equal(sent.image(7), pairs.image(7))
    assert sent.fingerprint == pairs.fingerprint


# --- batches -------------------------------------------------------------------------------------


def seen(pairs, start=0, steps=7, workers=0, seed=1, batch_size=3, transform=to_pixels):
    made = batches(pairs, transform, batch_size, seed, range(start, steps), workers)
    return [(b.index.tolist(), b.pixels, b.captions) for b in made]


def same(left, right):
    return len(left) == len(right) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(left, right, strict=True)
    )


def test_a_run_resumed_at_any_step_sees_the_same_batches(coco):
    pairs = coco_pairs(*coco)
    whole = seen(pairs)
    assert len(whole) == 7
    for start in range(8):
        assert same(seen(pairs, start), whole[start:])


def test_workers_change_nothing(coco):
    pairs = coco_pairs(*coco)
    assert same(seen(pairs, workers=2), seen(pairs))


def test_an_epoch_shows_every_image_once_and_the_next_one_in_another_order(coco):
    pairs = coco_pairs(*coco)
    shown = [index for index, _, _ in seen(pairs, steps=4, batch_size=5)]
    first, second = shown[0] + shown[1], shown[2] + shown[3]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_batch_holds_each_images_pixels_with_one_of_its_own_captions(coco):
    pairs = coco_pairs(*coco)
    for index, pixels, captions in seen(pairs):
        assert len(set(index)) == len(index)
        for i, p, caption in zip(index, pixels, captions, strict=True):
            assert caption in pairs.captions(i)
            assert torch.equal(p, to_pixels(shade(i)))


def test_a_subset_is_drawn_from_all_pairs_and_smaller_ones_lie_inside(coco):
    whole = many(400)
    drawn = [module.some(whole, limit, "many").ids for limit in (40, 80, 400)]
    for few, more in itertools.pairwise(drawn):
        assert set(few) < set(more)
    for ids in drawn:
        assert ids == [own for own in whole.ids if own in set(ids)]  # in the order of the set
    places = np.array([int(own) // 7 for own in drawn[1]])
    assert stats.kstest(places / 400, "uniform").pvalue > 0.001
    assert drawn[1] != whole.ids[:80]


def test_every_caption_of_an_image_is_drawn_about_equally_often(coco):
    pairs = coco_pairs(*coco)
    made = seen(pairs, steps=300, batch_size=10, transform=lambda image: torch.zeros(1))
    drawn = [caption for _, _, captions in made for caption in captions]
    share = [sum(c.startswith(f"caption {k}") for c in drawn) / len(drawn) for k in range(3)]
    assert np.abs(np.array(share) - 1 / 3).max() < 0.035  # four standard errors of 3,000 draws


def test_every_seed_and_every_epoch_has_an_order_and_captions_of_its_own(coco):
    """Order and place of the caption are told apart: either could hide that the other stands."""
    pairs = coco_pairs(*coco)
    orders, places = {}, {}
    for seed in range(4):
        made = seen(pairs, seed=seed, steps=4, batch_size=5, transform=lambda image: torch.zeros(1))
        for epoch in (0, 1):
            index, told = (
                [value for batch in made[2 * epoch : 2 * epoch + 2] for value in batch[part]]
                for part in (0, 2)
            )
            orders[seed, epoch] = tuple(index)
            place = {i: pairs.captions(i).index(text) for i, text in zip(index, told, strict=True)}
            places[seed, epoch] = tuple(place[i] for i in range(10))
    for found in (orders, places):
        assert len(set(found.values())) == len(found) == 8
    assert all(len(set(found)) > 1 for found in places.values())


def test_the_places_of_two_images_captions_are_drawn_apart(coco):
    pairs = coco_pairs(*coco)
    made = seen(pairs, steps=200, batch_size=10, transform=lambda image: torch.zeros(1))
    told = [dict(zip(index, captions, strict=True)) for index, _, captions in made]
    place = [[pairs.captions(i).index(batch[i]) for batch in told] for i in (0, 1, 2)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        alike = np.mean(np.array(place[one]) == place[other])
        assert abs(alike - 1 / 3) < 4 * (2 / 9 / 200) ** 0.5


def test_the_seed_decides_order_and_captions_and_the_global_generator_is_left_alone(coco):
    pairs = coco_pairs(*coco)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert not same(seen(pairs, seed=1), seen(pairs, seed=2))
    seen(pairs, workers=2)
    assert torch.equal(before, torch.get_rng_state())


@fault("fewer pairs than a batch")
def test_fewer_pairs_than_a_batch_is_an_error_before_the_first_step(coco):
    return refused(DataError, batches, coco_pairs(*coco), to_pixels, 11, 0, range(5))


@fault("image that breaks while training")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_whoever_reads_it(coco, workers):
    pairs = coco_pairs(*coco)
    (coco[1] / f"{4:012d}.png").write_bytes(b"<html>")
    return refused(ImageError, seen, pairs, workers=workers)


def die(image):
    import os

    os._exit(9)


@fault("worker that dies")
def test_a_dead_worker_comes_with_a_hint(coco):
    pairs = coco_pairs(*coco)
    return refused(RuntimeError, list, batches(pairs, die, 3, 0, range(2, 4), num_workers=1))


def counted(transform, seen):
    """The transform, which notes each of its calls."""
    return lambda image: seen.append(1) or transform(image)


def normalized(image: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(image.resize((20, 20), Image.Resampling.BICUBIC)))
    return (pixels.permute(2, 0, 1).float() / 255 - 0.45) / torch.tensor([0.26, 0.27, 0.28])[
        :, None, None
    ]


def vignetted(image: Image.Image) -> torch.Tensor:
    return normalized(image) * torch.linspace(0.5, 1, 20)


@pytest.mark.parametrize(
    ("transform", "most", "read"),
    [(normalized, 2**28, 10), (vignetted, 2**28, 30), (normalized, 9, 30)],
)
def test_a_small_set_is_read_once_and_its_pixels_are_the_same_bits(
    coco, transform, most, read, monkeypatch
):
    monkeypatch.setattr(pictures, "_MOST_IN_MEMORY", most)
    seen, pairs = [], coco_pairs(*coco)
    for batch in batches(pairs, counted(transform, seen), 4, 0, range(5)):  # 2 batches an epoch
        fresh = torch.stack([transform(pairs.image(int(i))) for i in batch.index])
        assert torch.equal(batch.pixels, fresh)
    assert len(seen) <= read + 1  # the levels are one more
    assert len(seen) >= min(read, 20)
