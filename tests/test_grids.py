"""Two images, two captions: each set is read as its authors lay it out, here and from the Hub."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.catalog import each, fault, refused
from hub import layouts
from hub.server import TOKEN, Hub
from test_hub import point_at
from tiny import png, write_json

from sdslib import metrics
from sdslib.benchmarks import TOTALS, load_benchmark
from sdslib.io import hub
from sdslib.io.sources import AccessError, DataError
from sdslib.sets.packaged import PACKAGES

REPOS = {"mmvp": "MMVP/MMVP_VLM", "bivlc": "imirandam/BiVLC", "vismin": "mair-lab/vismin-bench",
         "colorswap": "stanfordnlp/colorswap"}  # fmt: skip


def cola(folder):
    """Its file at the root of a clone's data/, images under the last part of their addresses."""
    there = "https://cs-people.bu.edu/array/data/vg_gqa_images"
    rows = []
    for i in range(3):
        rows.append([f"{there}/{2 * i}.png", f"red cup on blue plate {i}",
                     f"{there}/{2 * i + 1}.png", f"blue cup on red plate {i}"])  # fmt: skip
        for k in (2 * i, 2 * i + 1):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            (folder / "images" / f"{k}.png").write_bytes(png((k, 0, 0)))
    write_json(folder / "data" / "COLA_multiobjects_matching_benchmark.json", rows)
    return folder


def drive_colorswap(folder):
    """What the authors' archive holds: test.json beside images/."""
    rows = []
    for i in range(2):
        rows.append({"id": 9 + i, "caption_1": f"a red cat in a blue hat {i}",
                     "caption_2": f"a blue cat in a red hat {i}", "image_source": "midjourney",
                     "caption_source": "human"})  # fmt: skip
        for k in (1, 2):
            rows[-1][f"image_{k}"] = f"images/img_{i}_{k}.png"
            (folder / "images").mkdir(parents=True, exist_ok=True)
            (folder / "images" / f"img_{i}_{k}.png").write_bytes(png((i, k, 0)))
    write_json(folder / "test.json", rows)
    return folder


MADE = {name: getattr(layouts, name) for name in REPOS} | {"cola": cola}


@pytest.mark.parametrize(
    ("name", "count", "first", "captions", "tags"),
    [
        ("mmvp", 3, "1-2", "a photo of a dog, facing right 1", {"pattern": "Orientation"}),
        ("bivlc", 6, "0", "a dog beside cat 0", {"type": "replace", "subtype": "obj"}),
        ("colorswap", 4, "9", "a blue raft on white water 0",
         {"image_source": "midjourney", "caption_source": "human"}),
        ("vismin", 8, "0", "one cat 0", {"category": "object"}),
        ("cola", 3, "0", "red cup on blue plate 0", {}),
    ],
)  # fmt: skip
def test_each_set_is_read_in_its_authors_layout(tmp_path, name, count, first, captions, tags):
    found = load_benchmark(f"{name}:{MADE[name](tmp_path / name)}")
    assert (found.name, found.kind, len(found.items)) == (name, "grid", count)
    assert found.label == f"{name} (partial: {count} of {TOTALS[name]})"
    item = found.items[0]
    assert (item.id, item.captions[0], item.tags, item.answer) == (first, captions, tags, None)
    assert not found.duplicates()
    assert len(item.captions[1].split()) == len(item.captions[0].split())
    pictures = [np.asarray(ref.load()) for item in found.items for ref in item.images]
    assert len({p.tobytes() for p in pictures}) == 2 * count


@pytest.fixture
def served(tmp_path, monkeypatch):
    there = Hub(tmp_path / "served")
    for name, repo in REPOS.items():
        MADE[name](there.folder(repo, "datasets"))
    there.gated.add(REPOS["colorswap"])
    point_at(there.url, tmp_path / "cache", monkeypatch)
    yield there
    there.stop()


@pytest.mark.parametrize("name", REPOS)
def test_a_set_is_the_same_from_the_hub_at_a_revision_offline_and_from_a_folder(
    served, name, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = served.folder(REPOS[name], "datasets")
    local, there = load_benchmark(f"{name}:{folder}"), load_benchmark(f"{name}:{REPOS[name]}")
    assert there.fingerprint == local.fingerprint
    assert there.content == local.content
    commit = served.commit(REPOS[name], "datasets")
    for path in folder.rglob("*.*"):
        path.unlink()
    (folder / "README.md").write_text("emptied")
    again = load_benchmark(f"{name}:{REPOS[name]}@{commit}")
    assert again.fingerprint == local.fingerprint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.look.cache_clear()
    assert load_benchmark(f"{name}:{REPOS[name]}@{commit}").content == local.content


def test_what_the_hub_refuses_or_does_not_hold_is_told_with_the_local_form(served):
    with pytest.raises(AccessError, match=r"colorswap: reading it needs a token .* the authors"):
        load_benchmark("colorswap:stanfordnlp/colorswap")
    with pytest.raises(AccessError, match=r"BiVLC: it has no revision 'v9'"):
        load_benchmark("bivlc:imirandam/BiVLC@v9")


@pytest.mark.parametrize("name", MADE)
def test_an_absent_set_says_how_to_get_it(tmp_path, name):
    with pytest.raises(DataError, match=rf"{tmp_path.name} holds no .*; give .*{name}|github"):
        load_benchmark(f"{name}:{tmp_path}")
    with pytest.raises(DataError, match=rf"data/{name} holds no"):
        load_benchmark(name)


def test_colorswap_as_its_authors_archive_holds_it(tmp_path):
    found = load_benchmark(f"colorswap:{drive_colorswap(tmp_path)}")
    assert [item.id for item in found.items] == ["9", "10"]
    assert found.items[1].images[0].load().getpixel((0, 0)) == (1, 1, 0)
    for path in [*(tmp_path / "images").iterdir()][:3]:
        path.unlink()
    with pytest.raises(DataError, match=r"test\.json\[\d\]\.image_\d: .*3 of 4 images are missing"):
        load_benchmark(f"colorswap:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("cola", "data/COLA_multiobjects_matching_benchmark.json", lambda r: r[1].pop(),
         r"benchmark\.json\[1\]\[3\]: is missing"),
        ("cola", "data/COLA_multiobjects_matching_benchmark.json",
         lambda r: r[2].__setitem__(1, " "), r"benchmark\.json\[2\]\[1\]: is empty"),
        ("cola", "data/COLA_multiobjects_matching_benchmark.json",
         lambda r: r[0].__setitem__(0, "http://x/y/99.jpg"),
         r"\[0\]\[0\]: '99\.jpg' does not exist .*\(they are Visual Genome's"),
    ],
)  # fmt: skip
def test_a_fault_in_cola_is_named_by_its_place(tmp_path, name, file, change, message):
    path = MADE[name](tmp_path) / file
    rows = json.loads(path.read_text())
    change(rows)
    write_json(path, rows)
    with pytest.raises(DataError, match=message):
        load_benchmark(f"{name}:{tmp_path}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "Statement",
            "Text",
            r"csv: columns missing: Statement; it has 'Que",
        ),
        (
            "\r\n3,",
            "\r\nthree,",
            r"csv\[2\]\.Question ID: expected integer, got 'three'",
        ),
        ("\r\n3,", "\r\n13,", r"questions 4 .* no pair"),
        (",Orientation,", ",../Orientation,", r"escapes the data root"),
        ('\r\n6,Orientation,"a dog, facing left 6"', "", "5 questions make no pairs"),
        ('"a dog, facing left 6"', "a dog, facing left", r"Questions\.csv\[5\]: expected 3 fields"),
        ('"a dog, facing left 6"', '" "', r"Questions\.csv\[5\]\.Statement: is empty"),
    ],
)
def test_a_fault_in_mmvp_is_named_by_its_place(tmp_path, old, new, message):
    path = layouts.mmvp(tmp_path) / "Questions.csv"
    path.write_bytes(path.read_bytes().decode().replace(old, new).encode())
    with pytest.raises(DataError, match=message):
        load_benchmark(f"mmvp:{tmp_path}")


def test_questions_in_another_order_and_with_a_mark_are_the_same_pairs(tmp_path):
    path = layouts.mmvp(tmp_path) / "Questions.csv"
    before = load_benchmark(f"mmvp:{tmp_path}").fingerprint
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *lines[::-1]]), encoding="utf-8-sig")
    assert load_benchmark(f"mmvp:{tmp_path}").fingerprint == before


def test_images_of_mmvp_that_are_not_there_are_counted_and_told_whose_they_are(tmp_path):
    for path in (layouts.mmvp(tmp_path) / "MLLM_VLM Images" / "Orientation").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"4 of 6 images are missing \(they are MMVP-VLM's, https"):
        load_benchmark(f"mmvp:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bivlc", lambda r: r[1].update(caption=None), r"\[1\]\.caption: expected text, got None"),
        ("bivlc", lambda r: r[1].update(image=None), r"parquet\[1\]\.image: has no bytes"),
        ("bivlc", lambda r: [row.pop("type") for row in r], r"cannot be read \(columns missing: t"),
        ("colorswap", lambda r: r[1].update(id=9), r"\[1\]: id '9' appears twice"),
    ],
)  # fmt: skip
def test_a_fault_in_a_table_is_named_by_its_place(tmp_path, name, change, message):
    MADE[name](tmp_path / "whole")
    parts = sorted((tmp_path / "whole" / "data").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(p) for p in parts]).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match=message):
        load_benchmark(f"{name}:{tmp_path}")


def test_one_of_several_arrow_files_is_read_by_its_name(tmp_path):
    layouts.vismin(tmp_path)
    first = min((tmp_path / "data" / "test").glob("*.arrow"))
    assert load_benchmark(f"vismin:{first}").items[0].captions == ("one cat 0", "two cats 0")


def test_images_that_tell_a_coco_id_keep_it_in_their_names(tmp_path):
    items = load_benchmark(f"bivlc:{layouts.bivlc(tmp_path)}").items
    names = [ref.name.rpartition("[")[2] for ref in items[3].images]
    assert names == ["3].image:000000000003.jpg", "3].negative_image"]


# --- ARO and SugarCrepe as mteb packages them ----------------------------------------------------


def package(tmp_path, name, monkeypatch, change=lambda rows: None):
    """The package from a Hub that `datasets` would read; its rows changed."""
    files = sorted((layouts.mteb(tmp_path / name, name) / "data").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(p) for p in files]).to_pylist()
    change(rows)
    found, column = datasets.Dataset.from_list(rows), PACKAGES[name].image
    found = found.cast_column(column, datasets.Image(decode=False))
    monkeypatch.setattr("sdslib.sets.packaged.hub_dataset", lambda *args, **options: found)
    return load_benchmark(f"{name}:mteb/Some@v1")


@pytest.mark.parametrize(
    ("name", "captions", "tags"),
    [
        ("aro-relation", ("false_caption of 1", "true_caption of 1"), {"relation": "left of"}),
        ("aro-attribution", ("false_caption of 1", "true_caption of 1"),
         {"attributes": "red_tall 1"}),
        ("coco-order", ("correct_caption of 1", *(f"hard_text_{n} of 1" for n in range(1, 5))),
         {"identity": ""}),
        ("flickr-order", ("correct_caption of 1", *(f"hard_text_{n} of 1" for n in range(1, 5))),
         {"identity": ""}),
        ("sugarcrepe", ("caption of 1", "negative_caption of 1"), {}),
    ],
)  # fmt: skip
def test_a_package_is_the_set_with_its_frozen_captions(tmp_path, monkeypatch, name, captions, tags):
    found = package(tmp_path, name, monkeypatch)
    assert (found.name, found.kind, found.total) == (name, "choice", TOTALS[name])
    item = found.items[1]
    assert (item.captions, item.tags) == (captions, tags)
    assert item.captions[item.answer].startswith(("true", "correct", "caption"))
    pictures = [item.images[0] for item in found.items]
    cut = name in ("aro-relation", "aro-attribution")
    assert len({ref.key for ref in pictures}) == (4 if cut else 2)
    assert (pictures[1].load().size == (8, 6)) is cut
    assert pictures[0].size == len(layouts.picture(0)["bytes"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("aro-relation", lambda r: r[1]["bbox"].update(w=0.0), r"\[1\]\.bbox\.w: "),
        ("coco-order", lambda r: r[1].update(hard_text_2=" "), r"\[1\]\.captions\[2\]: is empty"),
        ("coco-order", lambda r: r[1].update(images=None), r"\[1\]\.images: has no image"),
    ],
)  # fmt: skip
def test_a_fault_in_a_package_is_named_by_its_place(tmp_path, monkeypatch, name, change, message):
    with pytest.raises(DataError, match=message):
        package(tmp_path, name, monkeypatch, change)


@fault("package of another set")
def test_a_package_of_another_set(tmp_path, monkeypatch):
    def spoil(rows):
        for row in rows:
            row.pop("caption")

    return refused(DataError, package, tmp_path, "sugarcrepe", monkeypatch, spoil)


def bivlc_authors(s):
    """I2T, T2I and group as BiVLC's evaluation loops over them; s[image, caption]."""
    i2t = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
    t2i = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
    return {"text": i2t, "image": t2i, "group": i2t and t2i}


def mmvp_authors(s):
    """Softmax over both images for each statement; above one half is the first image."""
    share = np.exp(s) / np.exp(s).sum(axis=0)
    return share[0, 0] > 0.5 and not share[0, 1] > 0.5


def test_the_outcomes_are_those_of_the_authors_own_loops():
    """Without ties: at a tie MMVP's second image wins, here none does."""
    scores = np.random.default_rng(0).normal(size=(400, 2, 2))
    found = metrics.winoground_correct(scores)
    for one, grid in enumerate(scores):
        assert {name: values[one] for name, values in found.items()} == bivlc_authors(grid)
        assert found["image"][one] == mmvp_authors(grid)


# --- rows of docs/faults.md ----------------------------------------------------------------------


@fault("set that is not here")
def test_a_set_that_is_not_here():
    return refused(DataError, load_benchmark, "bivlc")


@fault("data set without the files of a set")
def test_a_data_set_without_the_files_of_a_set(served):
    return refused(DataError, load_benchmark, "bivlc:MMVP/MMVP_VLM")


@each(
    {
        "two rows that are no pair": ("4,Structural Character", "4,Orientation"),
        "CSV with a quote that is not closed": ('"a dog, facing left 6"', '"a dog'),
    }
)
def test_questions_that_are_damaged(tmp_path, given):
    path = layouts.mmvp(tmp_path) / "Questions.csv"
    path.write_bytes(path.read_bytes().decode().replace(*given).encode())
    return refused(DataError, load_benchmark, f"mmvp:{tmp_path}")


@fault("arrow file cut short")
def test_an_arrow_file_cut_short(tmp_path):
    path = min((layouts.vismin(tmp_path) / "data" / "test").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:900])
    return refused(DataError, load_benchmark, f"vismin:{tmp_path}")
