"""Pairs in shards, here or behind http, are read at any place; what is no sample is told."""

import io
import itertools
import json
import os
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from faults.catalog import each, fault, refused
from test_pairs import photo, png, same, seen, shade

from sdslib.io import shards
from sdslib.io.sources import DataError
from sdslib.pairs import load_pairs


def write_shard(path, samples, extra=None) -> str:
    with tarfile.open(path, "w") as shard:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            shard.addfile(member, io.BytesIO(data))
        if extra:
            shard.addfile(extra)
    return str(path)


def one(key, color, caption=b"text", ending="txt"):
    return [(f"{key}.png", png(shade(color))), (f"{key}.{ending}", caption)]


@pytest.fixture
def shard(tmp_path):
    """A function that writes the only shard there is, and gives its path."""
    return lambda samples, extra=None: write_shard(tmp_path / "0.tar", samples, extra)


def test_shards_are_read_at_random_places(tmp_path):
    notes = [
        [json.dumps({"caption": [f"a {i}", f"b {i}"], "url": "-"}).encode() for i in range(3)],
        [f"text 1 {i}\n".encode() for i in range(3)],
    ]
    for s, ending in enumerate(("json", "txt")):
        samples = [one(f"{s}{i:04d}", 10 * s + i, notes[s][i], ending) for i in range(3)]
        write_shard(tmp_path / f"{s:05d}.tar", itertools.chain(*samples))
    pairs = load_pairs(str(tmp_path))
    assert len(pairs) == 6
    assert pairs.captions(1) == ("a 1", "b 1")
    assert pairs.captions(4) == ("text 1 1",)
    assert np.array_equal(pairs.image(5), shade(12))
    assert load_pairs(str(tmp_path / "{00000..00001}.tar")).ids == pairs.ids


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run[12]", "run*", "run{1,2}", "a?b"])
def test_a_folder_is_what_it_is_called_and_no_pattern(tmp_path, name):
    for folder, color in ((name, 1), ("run1", 2), ("run2", 3), ("axb", 4)):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "0.tar", one("a", color))
    home = tmp_path / name
    for source in (f"{home}", f"{home}/*.tar", f"{home}/{{0..0}}.tar"):
        pairs = load_pairs(source)
        assert len(pairs) == 1
        assert np.array_equal(pairs.image(0), shade(1))


def test_a_shard_whose_own_name_is_a_pattern_is_taken_as_it_is_called(tmp_path):
    for name, color in (("[01].tar", 5), ("0.tar", 6)):
        write_shard(tmp_path / name, one("a", color))
    assert np.array_equal(load_pairs(str(tmp_path / "[01].tar")).image(0), shade(5))


@fault("pattern in the name of a shard's folder")
@pytest.mark.parametrize("source", ["run*/0.tar", "run[12]/*.tar"])
def test_a_pattern_in_a_folders_name_is_refused(tmp_path, source):
    (tmp_path / "run1").mkdir()
    write_shard(tmp_path / "run1" / "0.tar", one("a", 1))
    return refused(DataError, load_pairs, str(tmp_path / source))


@fault("shard cut short")
@pytest.mark.parametrize("size", [600, 700])
def test_a_cut_shard_and_an_absent_one_are_named(shard, tmp_path, size):
    path = shard([("a.png", png(photo())), ("a.txt", b"text")])
    os.truncate(path, size)
    with pytest.raises(DataError, match="no shard"):
        load_pairs(str(tmp_path / "{1..2}.tar"))
    return refused(DataError, load_pairs, path)


# --- members -------------------------------------------------------------------------------------


def test_members_that_belong_to_no_sample_are_counted_with_an_example(remote, shard, tmp_path):
    path = shard(one("a", 1) + one("22.06", 2) + [("c.cls", b"7")])
    told = r"3 members are neither image nor caption and are left out, as '22\.06\.png' \(key '22'"
    with pytest.warns(UserWarning, match=told):
        assert load_pairs(path).ids == ["a"]
    url, handler = remote
    handler.data = (tmp_path / "0.tar").read_bytes()
    for _ in range(2):  # the second time from the kept index
        with pytest.warns(UserWarning, match=told):
            load_pairs(url)


@each(
    {
        "shard whose members belong to no sample": [("s0.input.jpg", png(shade(1)))],
        "two images of one sample": [*one("a", 1), ("a.jpg", png(shade(2)))],
    }
)
def test_samples_that_are_none_or_double_are_told(shard, given):
    return refused(DataError, load_pairs, shard(given))


@pytest.mark.parametrize("image", ["PNG", "Png", "png"])
@pytest.mark.parametrize("ending", ["TXT", "Txt", "JSON"])
def test_endings_count_in_any_case(shard, image, ending):
    text = b'{"caption": "text"}' if ending == "JSON" else b"text"
    path = shard([(f"a.{image}", png(shade(1))), (f"a.{ending}", text)])
    assert load_pairs(path).captions(0) == ("text",)


@pytest.mark.parametrize("note", ['{"caption": null}', '{"caption": ""}', "no JSON", "[]", "{}"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_json_without_a_caption_beside_a_good_txt_is_no_error(shard, note, order):
    members = [("a.json", note.encode()), ("a.txt", b"text")][::order]
    path = shard([("a.png", png(shade(1))), *members])
    assert load_pairs(path).captions(0) == ("text",)
    shard(one("a", 1, note.encode(), "json"))
    with pytest.raises(DataError, match=r"0\.tar:a\.json|sample 'a' has no caption"):
        load_pairs(path)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_the_text_beside_an_image_is_its_caption_whatever_else_stands_there(shard, order):
    note = json.dumps({"caption": ["from json"]}).encode()
    members = [*one("a", 1, b"from text"), ("a.json", note)]
    assert load_pairs(shard([members[n] for n in order])).captions(0) == ("from text",)


def test_one_image_in_two_shards_is_one_pair(tmp_path):
    for s in range(2):
        write_shard(tmp_path / f"{s}.tar", one(f"k{s}", 1, b"text %d" % s) + one(f"o{s}", 2 + s))
    with pytest.warns(UserWarning, match="1 images are there already under another id, as 'k1'"):
        pairs = load_pairs(str(tmp_path))
    assert len(pairs) == 3
    assert pairs.captions(0) == ("text 0", "text 1")


def test_samples_of_one_name_in_two_folders_are_two(shard):
    pairs = load_pairs(shard(one("one/0", 0, b"of one") + one("two/0", 1, b"of two")))
    assert [pairs.captions(i) for i in range(len(pairs))] == [("of one",), ("of two",)]
    assert len(set(pairs.ids)) == 2
    for n in range(2):
        assert np.array_equal(pairs.image(n), shade(n))


@each(
    {
        "shard member that climbs out": ("../a.png", tarfile.REGTYPE),
        "shard member with an absolute name": ("/a.png", tarfile.REGTYPE),
        "shard member of gigabytes": ("b.png", tarfile.REGTYPE, 3 * 2**30),
        "link in a shard": ("b.png", tarfile.SYMTYPE),
    },
    (("b.png", tarfile.LNKTYPE), "member 'b.png' is a link or leads out of its folder"),
    (("b.png", tarfile.FIFOTYPE), "member 'b.png' is a link or leads out of its folder"),
    (("b.png", tarfile.REGTYPE), "sample 'b' has no caption"),
)
def test_a_shard_with_a_bad_member_is_refused(shard, given):
    name, kind, *size = given
    extra = tarfile.TarInfo(name)
    extra.type, extra.linkname, extra.size = kind, "/etc/passwd", sum(size)
    return refused(DataError, load_pairs, shard(one("a", 1), extra))


# --- behind http ---------------------------------------------------------------------------------


class Ranges(BaseHTTPRequestHandler):
    """Serves one file, whole or in parts, as object stores do."""

    data, asked, parts = b"", [], True

    def do_HEAD(self):
        self._answer(200, b"", len(self.data))

    def do_GET(self):
        wanted = self.headers.get("range")
        self.asked.append(wanted)
        if wanted and self.parts:
            start, end = map(int, wanted.removeprefix("bytes=").split("-"))
            self._answer(206, self.data[start : end + 1])
        else:
            self._answer(200, self.data)

    def _answer(self, status, body, length=None):
        self.send_response(status)
        self.send_header("ETag", str(hash(self.data)))
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Address of a served shard of six pairs; the index cache is below the test's own folder."""
    samples = [one(f"{i}", i, f"text {i}".encode()) for i in range(6)]
    write_shard(tmp_path / "0.tar", itertools.chain(*samples))
    handler = type("Handler", (Ranges,), {"data": (tmp_path / "0.tar").read_bytes(), "asked": []})
    monkeypatch.setattr(shards, "project_root", lambda: tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/0.tar", handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_shard_gives_the_batches_of_a_local_one(remote, tmp_path, workers):
    url, handler = remote
    there, here = load_pairs(url), load_pairs(str(tmp_path / "0.tar"))
    assert there.ids == here.ids
    assert same(seen(there, workers=workers), seen(here))
    assert handler.asked.count(None) == 1  # read through once, for the index
    assert load_pairs(url).fingerprint == there.fingerprint
    assert handler.asked.count(None) == 1


def test_a_changed_remote_shard_is_indexed_anew(remote):
    url, handler = remote
    before = load_pairs(url).fingerprint
    handler.data = handler.data.replace(b"text 3", b"TEXT 3")
    assert load_pairs(url).fingerprint != before


def test_a_remote_shard_that_cannot_be_read_is_named(remote):
    url, handler = remote
    pairs = load_pairs(url)
    handler.parts = False
    with pytest.raises(DataError, match=r"0\.tar: the server does not read parts of a file"):
        pairs.image(1)
    with pytest.raises(DataError, match=r"127\.0\.0\.1:9/x\.tar cannot be read"):
        load_pairs("http://127.0.0.1:9/x.tar")
