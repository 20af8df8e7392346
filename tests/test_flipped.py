"""Items on which two runs differ are counted, and shown with what each run takes."""

import pandas as pd
import pytest
from finished import NAME, finish
from pages import Nesting, outside, read, words

from sdslib.benchmarks import Item
from sdslib.results import side_by_side
from sdslib.sets.roles import load_set
from sdslib.show import flipped


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    finish(root, "clip-only", run="plain", items=200)
    finish(root, run="taught", items=200)
    return side_by_side.beside(["taught", "plain"], root)


def test_flips_are_counted_as_the_paired_table_counts_them_and_have_their_pictures(found):
    row = side_by_side.differences(found).iloc[0]
    page = str(flipped.show(found, 3).data)
    told = f"on which sds is right (text) and L_CLIP only is not: {row['up']}; the other way round:"
    assert f"Items of {NAME} {told} {row['down']}. Shown are 3." in words(page)
    assert len(read(page).select("tr")) == 1 + 3
    items = {str(item.id): item for item in load_set("mini:winoground").items}
    for line in read(page).select("tr")[1:]:
        captions = items[line.th.text].captions
        assert [img["alt"] for img in line.select("img")] == list(captions)
        assert [td.text for td in line.select("td")[1:]] in (["right", "wrong"], ["wrong", "right"])
    assert outside(page) == []
    assert Nesting(page).open == []


def test_without_items_there_are_counts_alone(found):
    assert "<table" not in flipped.show(found, 0).data


def test_a_set_whose_pictures_are_not_there_says_so(found, monkeypatch):
    monkeypatch.setattr(flipped, "config_of", lambda run: type("C", (), {"benchmark": "nothing"}))
    page = str(flipped.show(found, 2).data)
    assert "Pictures and captions are not at hand: no benchmark 'nothing'" in words(page)
    assert "<img" not in page


CHOICE = Item("7", (), ("a dog", "a cat"), 1)
SCORES = {"s_0_0": 0.3, "s_0_1": 0.2, "n_images": 1, "n_captions": 2, "answer": 1}


@pytest.mark.parametrize(
    ("item", "row", "taken"),
    [
        (CHOICE, SCORES, "a dog"),
        (CHOICE, SCORES | {"predicted": 1, "rank": 0}, "a cat"),
        (CHOICE, SCORES | {"rank": 3}, ""),
        (CHOICE, SCORES | {"answer": pd.NA}, ""),
        (None, SCORES, ""),
    ],
)
def test_the_caption_that_a_model_takes_is_named(item, row, taken):
    assert flipped._taken(item, pd.DataFrame([row]), 0) == taken


@pytest.mark.parametrize(
    ("images", "answer", "true"), [(2, None, "ab"), (1, 1, "b"), (1, None, "a"), (1, 0, "a")]
)
def test_what_is_true_of_a_picture(images, answer, true):
    item = Item("1", (None,) * images, ("a", "b"), answer)
    assert "".join(flipped._true_of(item, n) for n in range(images)) == true
