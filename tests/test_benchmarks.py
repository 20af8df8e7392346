"""Each set is read from files in its authors' schema, written here, and faults are named."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.catalog import each, fault, refused
from PIL import Image
from tiny import png, write_json

from sdslib.benchmarks import Benchmark, Item, load_benchmark
from sdslib.config import derive_seed
from sdslib.io.images import ImageError, ImageRef
from sdslib.io.sources import AccessError, DataError
from sdslib.miniworld import sets
from sdslib.sets.aro import aro_attribution, aro_relation, coco_order, flickr_order
from sdslib.sets.retrieval import retrieval
from sdslib.sets.shuffles import (
    SHUFFLES,
    Tagger,
    clean_caption,
    freeze,
    lexicon_tagger,
    read_frozen,
    shuffles_of,
)
from sdslib.sets.sugarcrepe import SUGARCREPE, sugarcrepe
from sdslib.sets.winoground import winoground
from sdslib.sets.zero_shot import zero_shot

RED = (255, 0, 0)


def picture(index, size=(20, 10)) -> Image.Image:
    return Image.new("RGB", size, (index % 256, index // 256, 7))


# --- Winoground ----------------------------------------------------------------------------------


def winoground_row(index) -> dict:
    row = {"id": index, "caption_0": f"a {index} on b", "caption_1": f"b on a {index}"}
    row |= {"tag": "Noun", "secondary_tag": "Series" if index % 2 else "", "num_main_preds": 1}
    return row | {"collapsed_tag": "Object"}


def winoground_table(count=4, change=lambda rows: None) -> pa.Table:
    """The columns, order and types of the parquet on the Hub."""
    rows = []
    for i in range(count):
        images = {
            f"image_{k}": {"bytes": png(picture(2 * i + k)), "path": f"ex_{i}_img_{k}.png"}
            for k in (0, 1)
        }
        rows.append(images | winoground_row(i))
    change(rows)
    return pa.Table.from_pylist(rows)


@pytest.fixture
def parquet(tmp_path):
    (tmp_path / "data").mkdir()
    for n in (0, 1):
        part = winoground_table().slice(2 * n, 2)
        pq.write_table(part, tmp_path / "data" / f"test-0000{n}-of-00002.parquet")
    return tmp_path


def test_winoground_parquet_gives_grids_whose_captions_belong_to_their_images(parquet):
    found = winoground(str(parquet))
    assert (found.kind, [item.id for item in found.items]) == ("grid", ["0", "1", "2", "3"])
    item = found.items[3]
    assert item.captions == ("a 3 on b", "b on a 3")
    assert [np.array(ref.load())[0, 0, 0] for ref in item.images] == [6, 7]
    tags = {"collapsed_tag": "Object", "tag": "Noun", "secondary_tag": "Series"}
    assert item.tags == tags | {"num_main_preds": "1"}


def old_winoground(folder, text=lambda rows: "\n".join(map(json.dumps, rows)), name="jsonl"):
    """The layout of examples.jsonl beside images/, of two items."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(2):
        names = {f"image_{k}": f"ex_{i}_img_{k}" for k in (0, 1)}
        rows.append(winoground_row(i) | names)
        for k in (0, 1):
            picture(2 * i + k).save(folder / "images" / f"ex_{i}_img_{k}.png")
    (folder / f"examples.{name}").write_text(text(rows), "utf-8")
    return folder


def test_winoground_as_one_list_is_read_as_its_lines_are(tmp_path):
    lines = winoground(str(old_winoground(tmp_path / "lines")))
    found = winoground(str(old_winoground(tmp_path / "list", json.dumps, "json")))
    assert found.fingerprint == lines.fingerprint
    named = winoground(str(tmp_path / "list" / "examples.json"))
    assert named.fingerprint == lines.fingerprint
    with pytest.raises(DataError, match=r"examples\.json\[0\]\.image_0: expected the name"):
        winoground(str(old_winoground(tmp_path / "odd", lambda rows: "[3]", "json")))


def test_a_line_separator_within_a_caption_ends_no_line(tmp_path):
    def text(rows):
        rows[1]["caption_0"] = "a\u2028b"
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)

    found = winoground(str(old_winoground(tmp_path / "old", text)))
    assert found.items[1].captions[0] == "a\u2028b"


@fault("Winoground without its images")
def test_winoground_without_its_images_names_the_folder_that_they_belong_into(tmp_path):
    folder = old_winoground(tmp_path / "old")
    for k in (0, 1):
        (folder / "images" / f"ex_1_img_{k}.png").unlink()
    with pytest.raises(
        DataError, match=r"examples\.jsonl\[1\]\.image_0: .*2 of 4 images are missing"
    ):
        winoground(str(folder))
    shutil.rmtree(folder / "images")
    return refused(DataError, winoground, str(folder))


@each(
    {"file that is no parquet": b"<html>"},
    (
        b"version https://git-lfs.github.com/spec/v1\n",
        "test.parquet is a Git LFS pointer…git lfs pull",
    ),
)
def test_what_is_no_parquet_is_named(tmp_path, given):
    (tmp_path / "test.parquet").write_bytes(given)
    return refused(DataError, winoground, str(tmp_path))


@fault("benchmark that is not whole")
def test_a_winoground_that_is_not_400_items_calls_itself_partial(parquet):
    found = winoground(str(parquet))
    assert found.partial
    assert found.label == "winoground (partial: 4 of 400)"
    assert not winoground(str(parquet), total=None).partial
    assert winoground(str(parquet), total=None).sample(3).partial
    return found.label


def test_of_several_files_the_one_that_cannot_be_read_is_named(parquet):
    (parquet / "data" / "test-00001-of-00002.parquet").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"^test-00001-of-00002\.parquet cannot be read"):
        winoground(str(parquet))


def test_the_finer_tags_are_read_where_their_file_is(parquet):
    finer = {"0": [], "1": ["Unusual Text"], "2": ["Non Minimal", "Unusual Image"], "3": []}
    write_json(parquet / "new_tag_assignments.json", finer)
    tags = [item.tags["diwan_tags"] for item in winoground(str(parquet)).items]
    assert tags == ["", "Unusual Text", "Non Minimal|Unusual Image", ""]
    write_json(parquet / "new_tag_assignments.json", {"0": "Unusual Text"})
    with pytest.raises(DataError, match="object of lists of tags"):
        winoground(str(parquet))


@each(
    {
        "blank caption": lambda rows: rows[2].update(caption_1=" \n"),
        "no caption": lambda rows: rows[2].update(caption_1=None),
        "id given twice": lambda rows: rows[3].update(id=1),
        "parquet without a column": lambda rows: [row.pop("tag") for row in rows],
    },
    (lambda rows: rows[2].update(num_main_preds=0), "[2].num_main_preds: expected int"),
    (lambda rows: rows[1].update(image_0=None), "[1].image_0: has no bytes"),
)
def test_a_fault_in_winoground_is_named_by_its_path(tmp_path, given):
    pq.write_table(winoground_table(4, given), tmp_path / "test.parquet")
    return refused(DataError, winoground, str(tmp_path))


def test_a_folder_without_the_split_says_what_it_should_hold(tmp_path):
    with pytest.raises(DataError, match=r"holds no Winoground; give .* data/test-\*\.parquet"):
        winoground(str(tmp_path), split="val")


def test_every_kind_of_image_in_winoground_loads(tmp_path):
    palette = Image.new("P", (9, 5))
    palette.putpalette(RED)
    clear = Image.new("RGBA", (9, 5), (*RED, 0))
    deep = Image.fromarray(np.full((5, 9), 65535, np.uint16))

    def change(rows):
        for cell, image in zip(("image_0", "image_1"), (palette, clear), strict=True):
            rows[0][cell]["bytes"] = png(image)
        rows[1]["image_0"]["bytes"] = png(deep)
        rows[1]["image_1"]["bytes"] = b"version https://git-lfs.github.com/spec/v1\n"

    pq.write_table(winoground_table(2, change), tmp_path / "test.parquet")
    items = winoground(str(tmp_path)).items
    loaded = [items[0].images[0], items[0].images[1], items[1].images[0]]
    assert [ref.load().getpixel((4, 2)) for ref in loaded] == [RED, (255,) * 3, (255,) * 3]
    with pytest.raises(ImageError, match=r"test\.parquet\[1\]\.image_1 .* run git lfs pull"):
        items[1].images[1].load()


def test_winoground_from_the_hub_is_read_as_bytes_and_refusals_name_the_local_form(monkeypatch):
    table = winoground_table()
    hub = datasets.Dataset.from_list(table.to_pylist())
    hub = hub.cast_column("image_0", datasets.Image(decode=False))
    hub = hub.cast_column("image_1", datasets.Image(decode=False))
    monkeypatch.setattr("sdslib.sets.winoground.hub_dataset", lambda *args, **options: hub)
    found = winoground("facebook/winoground")
    assert np.array(found.items[3].images[1].load())[0, 0, 0] == 7
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AccessError, match=r"examples.jsonl and images/") as caught:
        winoground("facebook/winoground-of-nobody")
    assert caught.value.reason == "offline"
    with pytest.raises(DataError, match="is no Winoground: give a Hub id or a folder"):
        winoground("no such folder")


# --- ARO -----------------------------------------------------------------------------------------


def aro_rows(extra) -> list[dict]:
    """Keys as in the authors' files, image 0 under two boxes."""
    boxes = [(0, 0, 10, 10), (10, 0, 10, 10), (5, 5, 30, 20)]
    rows = []
    for i, (x, y, w, h) in enumerate(boxes):
        row = {"image_id": str(i), "image_path": f"{max(0, i - 1)}.png", "object1_id": 5}
        row |= {"bbox_x": x, "bbox_y": y, "bbox_w": w, "bbox_h": h}
        rows.append(row | {"true_caption": f"a{i} b", "false_caption": f"b a{i}"} | extra(i))
    return rows


def edited(path, change):
    """The same file with its rows changed."""
    rows = json.loads(path.read_text())
    change(rows)
    return write_json(path, rows)


@pytest.fixture
def aro(tmp_path):
    relations = aro_rows(lambda i: {"relation_name": ("left of", "on", "left of")[i]})
    write_json(tmp_path / "visual_genome_relation.json", relations)
    named = {"attributes": ["red", "tall"], "obj1_name": "x", "obj2_name": "y"}
    write_json(tmp_path / "visual_genome_attribution.json", aro_rows(lambda i: named))
    (tmp_path / "images").mkdir()
    halves = picture(1)
    halves.paste(RED, (10, 0, 20, 10))
    (tmp_path / "images" / "0.png").write_bytes(png(halves))
    (tmp_path / "images" / "1.png").write_bytes(png(picture(2, (40, 30))))
    return tmp_path


def test_aro_puts_the_false_caption_first_as_its_authors_do(aro):
    found = aro_relation(aro)
    assert found.items[0].captions == ("b a0", "a0 b")
    assert {item.answer for item in found.items} == {1}
    assert [item.tags["relation"] for item in found.items] == ["left of", "on", "left of"]
    assert aro_attribution(aro).items[0].tags == {"attributes": "red_tall"}
    assert found.total == 23_937
    assert found.partial


def test_aro_crops_each_box_and_two_boxes_of_one_image_are_two_pictures(aro):
    items = aro_relation(aro).items
    assert items[1].images[0].load().getpixel((0, 0)) == RED
    assert items[0].images[0].load().getpixel((9, 0)) == (1, 0, 7)
    assert items[2].images[0].load().size == (30, 20)
    assert items[0].images[0].key != items[1].images[0].key
    assert items[0].images[0].key == aro_attribution(aro).items[0].images[0].key


@each(
    {
        "empty box": {"bbox_w": 0},
        "path that climbs out of the data": {"image_path": "../../etc/passwd"},
        "absolute path": {"image_path": "/etc/passwd"},
        "name in the wrong case": {"image_path": "0.PNG"},
        "missing image": {"image_path": "9.png"},
    },
    ({"bbox_h": "x"}, "[1].bbox_h: expected integer, got 'x'"),
    ({"bbox_x": 2.5}, "[1].bbox_x: expected integer, got 2.5"),
    ({"bbox_y": None}, "[1].bbox_y: expected integer, got None"),
    ({"true_caption": ""}, "[1].true_caption: is empty"),
    ({"false_caption": ["x"]}, "[1].false_caption: expected text, got a list"),
    ({"false_caption": "\ud800"}, "[1].false_caption: has a NUL character or half"),
    ({"relation_name": ...}, "[1].relation_name: is missing"),
)
def test_a_fault_in_an_aro_row_is_named_by_its_path(aro, given):
    def change(rows):
        rows[1] = {k: v for k, v in (rows[1] | given).items() if v is not ...}

    edited(aro / "visual_genome_relation.json", change)
    return refused(DataError, aro_relation, aro)


@each(
    {
        "annotations that are no list": '{"image_path": "0.png"}',
        "comma before the end": '[{"a": 1},]',
        "NaN in annotations": '[{"bbox_x": NaN}]',
        "key given twice": '[{"a": 1, "a": 2}]',
    },
    ("", "is empty; fetch it again"),
    ("[]", "has no rows"),
    ("[1]", "relation.json[0]: expected object, got 1"),
    ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
    ("<html>", "starts with '<html>'"),
)
def test_what_is_not_an_aro_file_is_refused(aro, given):
    (aro / "visual_genome_relation.json").write_text(given)
    return refused(DataError, aro_relation, aro)


def test_an_absent_aro_says_how_to_get_it(tmp_path):
    with pytest.raises(DataError, match=r"visual_genome_relation\.json with images/; give the fol"):
        aro_relation(tmp_path)


def test_a_box_beside_the_image_is_refused_when_it_is_cut(aro):
    edited(aro / "visual_genome_relation.json", lambda rows: rows[0].update(bbox_x=20))
    with pytest.raises(ImageError, match=r"0\.png: bbox .* does not overlap the image of 20×10"):
        aro_relation(aro).items[0].images[0].load()


# --- ARO's order sets ----------------------------------------------------------------------------

CAPTION = "The small red circle is left of a large blue square, near a green star."
TAGGER = lexicon_tagger(["circle", "square", "star"], ["small", "red", "large", "blue", "green"])


def positions(words, kinds):
    return [w if TAGGER.tag(w)[0][1] in kinds else "_" for w in words]


def test_the_four_shuffles_move_what_they_say_and_nothing_else():
    words = [word for word, _ in TAGGER.tag(CAPTION)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        named, others, within, trigrams = (s.split() for s in shuffles_of(CAPTION, TAGGER, rng))
        for found in (named, others, within, trigrams):
            assert sorted(found) == sorted(words)
        assert positions(named, {"other"}) == positions(words, {"other"})
        for kind in ("noun", "adjective"):
            moved = [TAGGER.tag(w)[0][1] == kind for w in named]
            assert moved == [TAGGER.tag(w)[0][1] == kind for w in words]
        assert positions(others, {"noun", "adjective"}) == positions(words, {"noun", "adjective"})
        parts = [words[i : i + 3] for i in range(0, len(words), 3)]
        assert [sorted(within[i : i + 3]) for i in range(0, len(words), 3)] == list(
            map(sorted, parts)
        )
        rest = trigrams
        while rest:
            part = next(p for p in parts if rest[: len(p)] == p)
            parts, rest = [p for p in parts if p is not part], rest[len(part) :]


def test_two_nouns_come_back_unmoved_in_half_of_the_shuffles():
    rng = np.random.default_rng(1)
    same = [
        shuffles_of("a circle near a square", TAGGER, rng)[0] == "a circle near a square"
        for _ in range(2000)
    ]
    assert abs(np.mean(same) - 0.5) < 4 * 0.5 / 2000**0.5


def test_captions_are_cleaned_and_cut_at_thirty_words():
    assert clean_caption('A "Red" cat, (small) #1: it~runs!  ') == "a red cat, small 1 it runs"
    assert len(clean_caption("word " * 40).split()) == 30


@pytest.fixture
def karpathy(tmp_path):
    rows = [
        {"image": f"val2014/{i}.png", "caption": [CAPTION, "a circle near a square"]}
        for i in range(3)
    ]
    (tmp_path / "val2014").mkdir()
    for i in range(3):
        (tmp_path / "val2014" / f"{i}.png").write_bytes(png(picture(i)))
    return write_json(tmp_path / "coco_karpathy_test.json", rows)


def test_order_items_put_the_true_caption_first_and_flag_identity_shuffles(karpathy):
    found = coco_order(karpathy, tagger=TAGGER)
    assert len(found.items) == 6
    for item in found.items:
        assert item.answer == 0
        assert len(item.captions) == 5
        same = [
            n for n, c in zip(SHUFFLES, item.captions[1:], strict=True) if c == item.captions[0]
        ]
        assert item.tags["identity"] == "|".join(same)
        assert (item.id in found.duplicates()) >= bool(same)
    assert found.items[3].captions[0] == "a circle near a square"
    assert found.items[3].images[0].load().getpixel((0, 0)) == (1, 0, 7)
    assert any(item.tags["identity"] for item in found.items)


def test_order_negatives_are_made_once_and_then_read(karpathy):
    def fail(text):
        raise AssertionError("shuffled again")

    first = coco_order(karpathy, tagger=TAGGER)
    assert coco_order(karpathy, tagger=Tagger("none", fail)).fingerprint == first.fingerprint
    kept = karpathy.with_name("coco_karpathy_test_negatives.json")
    kept.unlink()
    assert coco_order(karpathy, tagger=TAGGER).fingerprint == first.fingerprint
    elsewhere = karpathy.with_name("copy.json")
    shutil.move(kept, elsewhere)
    again = flickr_order(karpathy, negatives=elsewhere, tagger=Tagger("none", fail))
    assert [i.captions for i in again.items] == [i.captions for i in first.items]


def test_negatives_of_other_captions_are_refused(karpathy):
    coco_order(karpathy, tagger=TAGGER)
    karpathy.write_text(karpathy.read_text().replace("near a square", "near a star", 1))
    with pytest.raises(DataError, match=r"frozen for other captions .first difference: item 0#1"):
        coco_order(karpathy, tagger=TAGGER)


def test_images_are_looked_for_before_any_negative_is_made(karpathy):
    def fail(text):
        raise AssertionError("made before the images were found")

    for i in (0, 2):
        (karpathy.parent / "val2014" / f"{i}.png").unlink()
    with pytest.raises(DataError, match=r"2 of 3 images are missing .*zips/val2014\.zip"):
        coco_order(karpathy, tagger=Tagger("none", fail))
    assert not karpathy.with_name("coco_karpathy_test_negatives.json").exists()


def test_karpathys_file_of_all_splits_is_told_by_name_with_what_is_taken(tmp_path):
    path = write_json(tmp_path / "dataset_coco.json", {"images": [{"sentences": []}]})
    with pytest.raises(DataError, match=r"dataset_coco\.json: is Karpathy.s file of all splits"):
        coco_order(path)


def test_a_folder_without_writing_rights_asks_for_another_file(karpathy):
    with pytest.raises(DataError, match=r"cannot be written .* name another file in `negatives`"):
        coco_order(karpathy, tagger=TAGGER, negatives=karpathy.parent / "none" / "n.json")


# --- SugarCrepe ----------------------------------------------------------------------------------


@pytest.fixture
def crepe(tmp_path):
    for name in SUGARCREPE:
        rows = {
            str(3 * i): {
                "filename": f"{i:012d}.jpg",
                "caption": f"{name} true {i}",
                "negative_caption": f"{name} false {i}",
            }
            for i in range(2)
        }
        write_json(tmp_path / "data" / f"{name}.json", rows)
    (tmp_path / "val2017").mkdir()
    for i in range(2):
        picture(i).save(tmp_path / "val2017" / f"{i:012d}.jpg")
    return tmp_path


def test_sugarcrepe_holds_seven_subsets_with_the_true_caption_first(crepe):
    found = sugarcrepe(crepe)
    assert [item.tags["subset"] for item in found.items[::2]] == list(SUGARCREPE)
    item = found.items[13]
    assert item.id == "swap_obj/3"  # the authors removed rows, so the numbers have gaps
    assert (item.captions, item.answer) == (("swap_obj true 1", "swap_obj false 1"), 0)
    assert item.images[0].load().size == (20, 10)
    assert found.label == "sugarcrepe (partial: 14 of 7511)"


def test_missing_images_of_sugarcrepe_are_told_to_be_cocos(crepe):
    (crepe / "val2017" / f"{0:012d}.jpg").unlink()
    told = r"add_att\.json\[0\]\.filename: '0+\.jpg' does not exist in .*val2017\.zip\)"
    with pytest.raises(DataError, match=told):
        sugarcrepe(crepe)
    shutil.rmtree(crepe / "val2017")
    with pytest.raises(DataError, match=r"val2017 is not a folder; .*zips/val2017\.zip"):
        sugarcrepe(crepe)


def test_a_fault_in_sugarcrepe_is_named_by_the_files_own_numbers(crepe):
    path = crepe / "data" / "swap_att.json"
    edited(path, lambda rows: rows["3"].pop("negative_caption"))
    with pytest.raises(DataError, match=r"swap_att\.json\[3\]\.negative_caption: is missing"):
        sugarcrepe(crepe)
    path.unlink()
    with pytest.raises(DataError, match=r"lacks swap_att\.json of SugarCrepe; fetch"):
        sugarcrepe(crepe)


# --- zero-shot -----------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    for label, name in enumerate(("polar_bear", "cat")):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "test" / name / f"{i}.png").write_bytes(png(picture(10 * label + i)))
    (tmp_path / "test" / "cat" / ".hidden").write_text("no image")
    return tmp_path


def test_a_labelled_folder_gives_prompts_of_every_template_and_class(labelled):
    found = zero_shot(labelled, templates=("a photo of a {}.", "art of a {}"))
    assert found.kind == "classes"
    assert found.prompts == (
        ("a photo of a cat.", "art of a cat"),
        ("a photo of a polar bear.", "art of a polar bear"),
    )
    item = found.items[4]
    assert (item.id, item.answer, item.tags) == ("polar_bear/1.png", 1, {"class": "polar bear"})
    assert item.captions == ("a photo of a cat.", "a photo of a polar bear.")
    assert np.array(item.images[0].load())[0, 0, 0] == 1
    assert zero_shot(labelled, ["kitten", "bear"]).items[0].tags == {"class": "kitten"}


def test_faults_of_a_labelled_folder_are_named(labelled):
    with pytest.raises(DataError, match="1 class names for 2 classes"):
        zero_shot(labelled, ["cat"])
    with pytest.raises(DataError, match="each prompt template needs one"):
        zero_shot(labelled, templates=["a photo"])
    for path in (labelled / "test" / "cat").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"cat: has no images"):
        zero_shot(labelled)
    with pytest.raises(DataError, match="and none of cifar10, cifar100, imagenet or owner/name"):
        zero_shot("nowhere at all")


def test_hub_sets_of_classes_are_read_by_their_label_column(monkeypatch):
    features = datasets.Features(
        {
            "img": datasets.Image(decode=False),
            "fine_label": datasets.ClassLabel(names=["tench, Tinca tinca", "polar_bear"]),
            "coarse_label": datasets.ClassLabel(names=["animal"]),
        }
    )
    rows = [{"img": {"bytes": png(picture(i)), "path": None}, "fine_label": i, "coarse_label": 0}
            for i in (0, 1)]  # fmt: skip
    asked = []
    hub = datasets.Dataset.from_list(rows, features=features)
    monkeypatch.setattr(
        "sdslib.sets.zero_shot.hub_dataset", lambda *args, **options: asked.append(args) or hub
    )
    found = load_benchmark("cifar100")
    assert asked == [("uoft-cs/cifar100", "test")]
    assert [item.answer for item in found.items] == [0, 1]
    assert found.items[0].captions == ("a photo of a tench.", "a photo of a polar bear.")
    assert found.items[1].images[0].load().getpixel((0, 0)) == (1, 0, 7)


# --- retrieval and all ---------------------------------------------------------------------------


def test_hub_rows_without_an_image_are_named(monkeypatch):
    rows = [{"img": {"bytes": png(picture(i)), "path": None}, "label": i % 2} for i in range(3)]
    rows[1]["img"] = None
    hub = datasets.Dataset.from_list(rows)
    hub = hub.cast_column("img", datasets.Image(decode=False))
    hub = hub.cast_column("label", datasets.ClassLabel(names=["a", "b"]))
    monkeypatch.setattr("sdslib.sets.zero_shot.hub_dataset", lambda *args, **options: hub)
    with pytest.raises(DataError, match=r"who/what\[1\]\.img: has no image; leave them out"):
        zero_shot("who/what")


def test_retrieval_counts_five_captions_an_image():
    pairs = SimpleNamespace(
        source="made here",
        ids=("10", "20"),
        captions=lambda index: tuple(f"{index} {k}" for k in range(7)),
        ref=lambda index: f"image {index}",
    )
    found = retrieval(pairs)
    assert (found.kind, [item.id for item in found.items]) == ("retrieval", ["10", "20"])
    assert found.items[1].captions == ("1 0", "1 1", "1 2", "1 3", "1 4")
    assert found.items[1].answer is None


def test_captions_that_read_the_same_are_reported(parquet, tmp_path):
    def change(rows):
        rows[1].update(caption_0="A CAT &amp; dog", caption_1="a cat  &amp;amp; dog")

    pq.write_table(winoground_table(3, change), tmp_path / "t.parquet")
    assert winoground(str(tmp_path / "t.parquet")).duplicates() == ["1"]


def test_a_sample_is_the_same_every_time_and_keeps_the_order(parquet):
    found = winoground(str(parquet))
    ids = [item.id for item in found.sample(3, seed=1).items]
    assert ids == sorted(ids)
    assert ids == [item.id for item in found.sample(3, seed=1).items]
    others = {tuple(item.id for item in found.sample(3, seed=s).items) for s in range(20)}
    assert len(others) == 4
    assert found.sample(None) is found


def test_the_fingerprint_sees_captions_tags_boxes_and_image_sizes(aro):
    path, seen = aro / "visual_genome_relation.json", set()
    rows = json.loads(path.read_text())
    seen.add(aro_relation(aro).fingerprint)
    for key, value in (("true_caption", "c"), ("relation_name", "in"), ("bbox_w", 9)):
        write_json(path, [rows[0] | {key: value}, *rows[1:]])
        seen.add(aro_relation(aro).fingerprint)
    write_json(path, rows)
    (aro / "images" / "1.png").write_bytes(png(picture(3, (41, 31))))
    seen.add(aro_relation(aro).fingerprint)
    assert len(seen) == 5


def test_every_field_that_is_scored_moves_the_fingerprint():
    """Where the set comes from and how many items it should have are told, not scored."""
    ref = ImageRef("a.png", bytes, (0, 0, 5, 5), 9)
    one = Item("0", (ref,), ("a b", "b a"), 0, ref.box, {"relation": "on"})
    other = replace(one, id="1")
    plain = Benchmark("set", "choice", (one, other), 2, "here", (("a {}",), ("the {}",)))
    items = [
        replace(one, **change)
        for change in (
            {"id": "2"}, {"captions": ("a b", "b c")}, {"captions": ("b a", "a b")}, {"answer": 1},
            {"answer": None}, {"tags": {"relation": "in"}}, {"tags": {"kind": "on"}},
            {"images": (ref, ref)}, *({"images": (replace(ref, **part),)} for part in (
                {"name": "b.png"}, {"box": (0, 0, 5, 6)}, {"box": None}, {"size": 8})),
        )
    ]  # fmt: skip
    changed = [replace(plain, items=(item, other)) for item in items]
    changed += [replace(plain, items=(other, one)), replace(plain, items=(one,))]
    changed += [replace(plain, name="other"), replace(plain, kind="classes")]
    changed += [replace(plain, prompts=prompts) for prompts in (
        (), (("the {}",), ("a {}",)), (("a {}", "the {}"),), (("a {}",), ("one {}",)))]  # fmt: skip
    prints = [found.fingerprint for found in (plain, *changed)]
    assert len(set(prints)) == len(prints)
    for told in (replace(plain, total=9), replace(plain, source="there")):
        assert told.fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("name", "repo", "split"),
    [
        ("cifar10", "uoft-cs/cifar10", "test"),
        ("cifar100", "uoft-cs/cifar100", "test"),
        ("imagenet", "ILSVRC/imagenet-1k", "validation"),
    ],
)
def test_each_hub_set_is_asked_for_the_split_that_has_labels(monkeypatch, name, repo, split):
    """ImageNet's test images have none."""
    asked = []

    def refuse(*names, **options):
        asked.append(names)
        raise DataError("not here")

    monkeypatch.setattr("sdslib.sets.zero_shot.hub_dataset", refuse)
    with pytest.raises(DataError, match="not here"):
        load_benchmark(name)
    assert asked == [(repo, split)]


def test_attributes_are_told_in_the_order_of_the_caption(aro):
    path = aro / "visual_genome_attribution.json"
    edited(path, lambda rows: rows[0].update(attributes=["tall", "red"]))
    labels = [item.tags["attributes"] for item in aro_attribution(aro).items]
    assert labels == ["tall_red", "red_tall", "red_tall"]


def test_frozen_negatives_are_the_cleaned_shuffles_of_the_raw_captions(tmp_path):
    """Each item's from a stream of its own; the tagger sees capitals and punctuation."""
    told = []
    tagger = Tagger("noted", lambda text: told.append(text) or TAGGER.tag(text))
    truths = {"x": CAPTION, "y": CAPTION, "z": "A RED circle, near (a) square!", "w": CAPTION}
    path = tmp_path / "negatives.json"
    freeze(truths, tagger, path)
    assert told == list(truths.values())
    found = read_frozen(path, truths)
    for number, (key, text) in enumerate(truths.items()):
        rng = np.random.default_rng(derive_seed(0, "order negatives", number))
        wanted = [text, *shuffles_of(text, TAGGER, rng)]
        assert found[key] == tuple(map(clean_caption, wanted))
    assert len({found[key] for key in "xyw"}) == 3
    alone = tmp_path / "other.json"
    freeze({"v": "a square", "y": CAPTION}, TAGGER, alone)
    assert read_frozen(alone, {"v": "a square", "y": CAPTION})["y"] == found["y"]


def test_an_unknown_benchmark_is_answered_with_those_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "project_root", lambda: tmp_path)
    told = "no benchmark 'winogrond'; there are .*; did you mean 'winoground'"
    with pytest.raises(DataError, match=told):
        load_benchmark("winogrond")
    with pytest.raises(DataError, match=r"run notebooks/00_miniworld.ipynb or make miniworld"):
        load_benchmark("mini:winoground")
    (tmp_path / "data" / "mini" / "world").mkdir(parents=True)
    with pytest.raises(DataError, match="no mini set 'aro'; there are winoground, aro-relation"):
        load_benchmark("mini:aro")
    with pytest.raises(DataError, match="the mini set sugarcrepe has no split 'val'"):
        load_benchmark("mini:sugarcrepe:val")


def test_the_mini_sets_go_through_the_loaders_of_the_real_ones(tmp_path, aro, crepe, monkeypatch):
    monkeypatch.setattr(sets, "project_root", lambda: tmp_path / "world")
    world = tmp_path / "world" / "data" / "mini" / "world"
    shutil.copytree(aro, world / "aro", ignore=lambda *_: {"world", "test", "val2017", "data"})
    order = [{"image": "images/0.png", "caption": ["a small red circle near a cross"]}]
    write_json(world / "aro" / "coco_order.json", order)
    for i in range(2):
        picture(i).save(world / "aro" / "images" / f"{i:012d}.jpg")
    shutil.copytree(crepe / "data", world / "sugarcrepe")
    (world / "winoground").mkdir()
    pq.write_table(winoground_table(), world / "winoground" / "val.parquet")
    for task, names in (("color", ("red", "blue")), ("shape", ("circle", "cross"))):
        for name in names:
            (world / "zeroshot" / task / name).mkdir(parents=True)
            (world / "zeroshot" / task / name / "0.png").write_bytes(png(picture(1)))
    found = {n: load_benchmark(f"mini:{n}") for n in sets.NAMES if n != "winoground"}
    found["winoground"] = load_benchmark("mini:winoground:val")
    counts = [len(found[name].items) for name in sets.NAMES]
    assert counts == [4, 3, 3, 1, 14, 2, 2]
    assert not any(b.partial for b in found.values())
    assert all(b.name.startswith("mini-") for b in found.values())
    assert found["zeroshot-color"].items[0].captions == ("the blue shape", "the red shape")
    (world / "zeroshot").rename(world / "zeroshot-val")
    assert load_benchmark("mini:zeroshot_color:val").name == "mini-zeroshot-color"
