"""The mini-world: what it draws, what it says of it, and the files that hold both."""

import io
import itertools
import json
import os
import random
import socket
import subprocess
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transformers import AutoTokenizer

from sdslib.io.paths import project_root
from sdslib.io.sources import DataError
from sdslib.miniworld import drawing, files
from sdslib.miniworld.drawing import HELD_OUT, RELATIONS, Scene, Thing

SMALL = {"coco_train": 40, "coco_val": 12, "aro": 10, "sugarcrepe": 8, "zeroshot_per_class": 2}
FEW = {
    "val": {"Object": 6, "Relation": 6, "Both": 3},
    "test": {"Object": 8, "Relation": 8, "Both": 4},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "COUNTS", SMALL)
        patch.setattr(files, "WINOGROUND", FEW)
        yield files.ensure_world(tmp_path_factory.mktemp("mini") / "world")


def some(split, count=60, purpose="test"):
    return list(itertools.islice(drawing.scenes(split, purpose), count))


def center(image, color):
    """Mean (x, y) of the pixels nearest to a color."""
    distance = np.linalg.norm(np.asarray(image, float) - drawing.COLORS[color], axis=-1)
    y, x = np.nonzero(distance < 50)
    return x.mean(), y.mean()


def test_the_same_scene_is_the_same_picture_and_another_place_is_not():
    scene = Scene((Thing("star", "red"), Thing("heart", "blue")), "v", 7)
    again = drawing.draw(Scene((Thing("star", "red"), Thing("heart", "blue")), "v", 7))
    assert drawing.draw(scene).tobytes() == again.tobytes()
    other = drawing.draw(Scene(scene.things, "v", 8))
    assert drawing.draw(scene).tobytes() != other.tobytes()


@pytest.mark.parametrize("axis", ["h", "v"])
def test_the_first_thing_is_drawn_left_of_or_above_the_second(axis):
    for place in range(20):
        scene = Scene((Thing("circle", "red"), Thing("square", "blue", "large")), axis, place)
        first, second = (center(drawing.draw(scene), c) for c in ("red", "blue"))
        along = 0 if axis == "h" else 1
        assert first[along] + 10 < second[along]
        assert abs(first[1 - along] - second[1 - along]) < abs(first[along] - second[along])


def test_every_relation_phrase_says_where_the_things_are():
    scene = Scene((Thing("circle", "red"), Thing("square", "blue")), "h")
    said = " | ".join(drawing.relation_captions(scene))
    assert "a red circle left of a blue square" in said
    assert "a blue square right of a red circle" in said
    assert "red circle right of" not in said
    assert "blue square left of" not in said


@pytest.mark.parametrize("kind", ["Object", "Relation", "Both"])
def test_swapping_twice_is_the_identity_and_once_keeps_the_words(kind):
    for scene in some("test"):
        once = drawing.swapped(scene, kind)
        assert drawing.swapped(once, kind) == scene
        texts = [drawing.relation_captions(s)[0] for s in (scene, once)]
        assert Counter(texts[0].split()) == Counter(texts[1].split())


def test_swaps_stay_inside_their_split():
    for split, kind in itertools.product(("val", "test"), ("Object", "Relation", "Both")):
        assert all(drawing.swapped(scene, kind).split == split for scene in some(split))


def test_splits_share_no_pair_of_shapes_and_colors():
    keys = {
        split: {
            (frozenset(t.shape for t in s.things), frozenset(t.color for t in s.things))
            for s in some(split, 800)
        }
        for split in ("train", "val", "test")
    }
    for one, other in itertools.combinations(keys.values(), 2):
        assert not one & other
    assert all(len(found) > 30 for found in keys.values())


def test_held_out_pairs_occur_in_test_scenes_only():
    def held(split):
        return any((t.color, t.shape) in HELD_OUT for s in some(split, 600) for t in s.things)

    assert held("test")
    assert not held("train")
    assert not held("val")


def test_captions_use_the_vocabulary_and_an_before_a_vowel():
    words, rng = set(drawing.vocabulary()), random.Random(0)
    for scene in some("test", 200):
        captions = [*drawing.coco_captions(scene, rng), drawing.alt_caption(scene, rng)]
        for caption in [*captions, drawing.teacher_caption(scene, rng)]:
            assert set(caption.split()) <= words
            assert " a o" not in f" {caption}"


def test_alt_text_rarely_states_the_relation_and_coco_captions_mostly_do():
    rng, related = random.Random(0), ("left", "right", "above", "below", "over", "top", "under")
    alt = [drawing.alt_caption(s, rng) for s in some("train", 500)]
    coco = [c for s in some("train", 100) for c in drawing.coco_captions(s, rng)]
    share = [
        np.mean([any(w in c.split() for w in related) for c in found]) for found in (alt, coco)
    ]
    assert share[0] < 0.15
    assert share[1] > 0.7


def test_tokenizer_is_small_ends_with_the_highest_id_and_marks_unknown_words(tmp_path):
    drawing.build_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("A red circle", padding="max_length").input_ids
    assert len(tokenizer) <= 1000
    assert max(ids) == ids[4] == tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer("a red dog").input_ids[3] == tokenizer.unk_token_id
    longest = max((f for forms in RELATIONS.values() for f in forms), key=len)
    text = drawing.say(longest, a="small red circle", b="large blue square")
    assert len(tokenizer(text).input_ids) <= tokenizer.model_max_length


def test_the_published_counts_are_what_a_study_needs():
    assert sum(files.WINOGROUND["test"].values()) >= 1000
    assert sum(files.WINOGROUND["val"].values()) >= 500


def test_winoground_file_has_the_real_schema_and_minimal_pairs(world):
    rows = pq.read_table(world / "winoground" / "test.parquet").to_pylist()
    assert Counter(r["collapsed_tag"] for r in rows) == FEW["test"]
    for row in rows:
        assert Counter(row["caption_0"].split()) == Counter(row["caption_1"].split())
        assert row["caption_0"] != row["caption_1"]
        images = [Image.open(io.BytesIO(row[f"image_{i}"]["bytes"])) for i in (0, 1)]
        assert all(image.size == (64, 64) for image in images)
        assert row["num_main_preds"] in (1, 2)
        assert row["tag"]
        assert "secondary_tag" in row


def test_coco_file_has_five_captions_an_image(world):
    document = json.loads((world / "coco" / "annotations" / "captions_train.json").read_text())
    count = Counter(note["image_id"] for note in document["annotations"])
    assert len(document["images"]) == SMALL["coco_train"]
    assert set(count.values()) == {5}
    assert all((world / "coco" / "train" / i["file_name"]).is_file() for i in document["images"])


def test_aro_boxes_hold_both_things(world):
    rows = json.loads((world / "aro" / "visual_genome_relation.json").read_text())
    for row in rows:
        image = Image.open(world / "aro" / "images" / row["image_path"])
        x, y, w, h = (row[f"bbox_{k}"] for k in "xywh")
        assert w > 0
        assert h > 0
        assert x + w <= image.width
        assert y + h <= image.height
        outside = np.asarray(image, int)
        ground = outside[0, 0]
        different = np.abs(outside - ground).max(-1) > 40
        different[y : y + h, x : x + w] = False
        assert not different.any()
        assert Counter(row["true_caption"].split()) == Counter(row["false_caption"].split())


@pytest.mark.parametrize("subset", files.SUGARCREPE)
def test_sugarcrepe_negatives_differ_from_their_captions(world, subset):
    rows = json.loads((world / "sugarcrepe" / f"{subset}.json").read_text())
    assert len(rows) == SMALL["sugarcrepe"]
    assert all(row["caption"] != row["negative_caption"] for row in rows.values())


def test_replacing_the_relation_says_the_opposite():
    scene = Scene((Thing("circle", "red"), Thing("square", "blue")), "h")
    for form in RELATIONS["h"]:
        wrong = files.negative("replace_rel", scene, form, random.Random(0))
        turned = Scene(scene.things[::-1], "h")
        assert wrong in drawing.relation_captions(turned)


def test_what_a_killed_drawing_left_goes_with_the_next_and_others_at_work_stay(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "COUNTS", SMALL)
    monkeypatch.setattr(files, "WINOGROUND", FEW)
    here = f"world.drawing-{socket.gethostname()}-"
    names = [f"{here}{2**22 + 1}", f"{here}{os.getppid()}", "world.drawing-elsewhere-7"]
    for name in names:
        (tmp_path / name).mkdir()
    files.ensure_world(tmp_path / "world")
    assert {p.name for p in tmp_path.iterdir()} == {"world", *names[1:]}


def test_a_world_drawn_before_a_part_was_thought_of_is_given_that_part(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "COUNTS", SMALL)
    parts = {name: files.PARTS[name] for name in ("zeroshot", files.ZEROSHOT_VAL)}
    monkeypatch.setattr(files, "PARTS", {"zeroshot": parts["zeroshot"]})
    root = files.ensure_world(tmp_path / "world")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    monkeypatch.setattr(files, "PARTS", parts)
    assert files.ensure_world(root) == root
    assert {path: path.stat().st_mtime_ns for path in before} == before
    drawn = [{p.relative_to(root / part): p.read_bytes() for p in (root / part).rglob("*.png")}
             for part in parts]  # fmt: skip
    assert drawn[0].keys() == drawn[1].keys()
    assert not {*drawn[0].values()} & {*drawn[1].values()}
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    monkeypatch.setattr(files, "PARTS", parts | {"later": lambda root: None})
    monkeypatch.setattr(files, "_stage", lambda root: (_ for _ in ()).throw(PermissionError()))
    assert files.ensure_world(root) == root


def test_a_world_that_cannot_be_drawn_says_where_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        DataError, match=r"the mini-world cannot be drawn: .*file cannot be written"
    ):
        files.ensure_world(tmp_path / "file" / "world")


def test_no_drawing_is_ever_offered_to_git():
    for name in ("world", "world.drawing-host-7"):
        words = ["git", "-C", str(project_root()), "check-ignore", "-q", f"data/mini/{name}/x"]
        assert subprocess.run(words).returncode == 0


def test_an_interrupted_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "COUNTS", SMALL)
    monkeypatch.setattr(files, "WINOGROUND", FEW)

    def full_disk(root):
        raise OSError("disk full")

    monkeypatch.setitem(files.PARTS, "aro", full_disk)
    with pytest.raises(OSError, match="disk full"):
        files.ensure_world(tmp_path / "world")
    assert list(tmp_path.iterdir()) == []
