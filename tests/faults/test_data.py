"""Data that are odd in ways that no room's own test returns: each is named by its place."""

import re
import shutil
import sys

import pytest
from test_benchmarks import crepe, karpathy, old_winoground  # noqa: F401
from test_pairs import die, encoded, hub_like, to_pixels, write_coco

from faults.catalog import each, fault, refused
from sdslib.checks.captions import VocabularyError
from sdslib.io.images import ImageError
from sdslib.io.sources import CAPTION_LIMIT, DataError, check_caption
from sdslib.pairs import batches, load_pairs
from sdslib.sets.aro import coco_order
from sdslib.sets.pair_files import coco_pairs, dataset_pairs
from sdslib.sets.shuffles import freeze, lexicon_tagger, read_frozen
from sdslib.sets.sugarcrepe import sugarcrepe
from sdslib.sets.winoground import winoground
from sdslib.student import load_student

# --- annotations ---------------------------------------------------------------------------------


@fault("Winoground without its images")
def test_winoground_without_its_images(tmp_path):
    shutil.rmtree(old_winoground(tmp_path / "old") / "images")
    return refused(DataError, winoground, str(tmp_path / "old"))


@fault("missing images")
def test_missing_images(crepe, tmp_path):  # noqa: F811
    (tmp_path / "elsewhere").mkdir()
    return refused(DataError, sugarcrepe, crepe, tmp_path / "elsewhere")


@fault("order negatives without spaCy")
def test_order_negatives_without_spacy(karpathy, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "spacy", None)
    return refused(DataError, coco_order, karpathy)


@fault("negatives that were edited")
def test_negatives_that_were_edited(tmp_path):
    truths, file = {"0#0": "a red circle left of a blue square"}, tmp_path / "negatives.json"
    freeze(truths, lexicon_tagger(["circle", "square"], ["red", "blue"]), file)
    file.write_text(re.sub("left of", "right of", file.read_text(), count=1))
    return refused(DataError, read_frozen, file, truths)


@fault("mini-world that is not drawn")
def test_a_mini_world_that_is_not_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr("sdslib.miniworld.sets.project_root", lambda: tmp_path)
    return refused(DataError, load_pairs, "mini")


# --- captions ------------------------------------------------------------------------------------


@fault("half a surrogate pair, or NUL")
@pytest.mark.parametrize("text", ["a\ud800b", "a\0b"])
def test_half_a_character(text):
    return refused(ValueError, check_caption, text)


@fault("caption without a word")
@pytest.mark.parametrize(
    "text", ["&nbsp;", "&amp;nbsp;", "\ufeff", "?!", " - \u200b", "\u0301", "…"]
)
def test_a_caption_without_a_word(text):
    return refused(ValueError, check_caption, text)


@each({"caption of a megabyte": "x" * 10**6, "word without an end": "a " + "x" * 1001})
def test_a_caption_that_is_too_long(given):
    return refused(ValueError, check_caption, given)


@pytest.mark.parametrize(
    "text",
    [
        *("שלום עולם", "🟥 ⬅️ 🟦", "e\u0301", "\u202egnp.exe"),
        *("3", "→", "♥", "Q&amp;A", "&eacute;", "二", "?a"),
    ],
)
def test_other_scripts_signs_and_one_letter_are_captions(text):
    assert check_caption(text) == text
    assert len(text) < CAPTION_LIMIT


@fault("caption with a mark of the tokenizer")
def test_a_caption_with_a_mark_of_the_tokenizer():
    own = load_student("local-dir:data/mini/student", None)
    text = "a red circle <end> left of a blue square"
    return refused(VocabularyError, own.tokenize, [text])


# --- data sets of the Hub ------------------------------------------------------------------------


@fault("rows of a data set without an image")
def test_rows_without_an_image():
    rows = [{"image": encoded(i) if i % 2 == 0 else None, "caption": f"t {i}"} for i in range(4)]
    return refused(DataError, dataset_pairs, hub_like(rows), "who/what:train")


# --- batches -------------------------------------------------------------------------------------


@fault("fewer pairs than a batch")
def test_fewer_pairs_than_a_batch(tmp_path):
    pairs = coco_pairs(*write_coco(tmp_path))
    return refused(DataError, batches, pairs, to_pixels, 11, 0, 0, 5)


@fault("worker that dies")
def test_a_worker_that_dies(tmp_path):
    pairs = coco_pairs(*write_coco(tmp_path))
    return refused(RuntimeError, list, batches(pairs, die, 3, 0, range(2, 4), num_workers=1))


@fault("image that breaks while training")
def test_an_image_that_breaks_while_training(tmp_path):
    annotations, images = write_coco(tmp_path)
    pairs = coco_pairs(annotations, images)
    (images / f"{4:012d}.png").write_bytes(b"<html>")
    return refused(ImageError, list, batches(pairs, to_pixels, 5, 0, range(2)))
