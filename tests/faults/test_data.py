"""Data that are odd in ways that no room's own test returns: each is named by its place."""

import re
import sys

import pytest
from test_benchmarks import crepe, karpathy  # noqa: F401

from faults.catalog import each, fault, refused
from sdslib.checks.captions import VocabularyError
from sdslib.io.sources import CAPTION_LIMIT, DataError, check_caption
from sdslib.sets.aro import coco_order
from sdslib.sets.shuffles import freeze, lexicon_tagger, read_frozen
from sdslib.sets.sugarcrepe import sugarcrepe
from sdslib.student import load_student

# --- annotations ---------------------------------------------------------------------------------


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
