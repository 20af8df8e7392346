"""Probes of one image and any captions: each checked against the definition, word by word."""

import copy

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate import CAPTIONS, noise
from torch.nn import functional

from sdslib import evaluate
from sdslib.benchmarks import Item
from sdslib.checks.captions import VocabularyError
from sdslib.scorers import diffusion
from sdslib.show import explain
from sdslib.show.explain import Remembering, reorderings
from sdslib.student import load_student


@pytest.fixture
def scorer(student):
    return Remembering(student)


def test_scores_are_those_of_the_clip_scorer(student, scorer):
    items = [Item("0", (noise(0), noise(1)), CAPTIONS[:3]), Item("1", (noise(1),), CAPTIONS[2:])]
    pairs = zip(scorer(items), evaluate.clip_scorer(student)(items), strict=True)
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine.grids[""], theirs.grids[""], atol=1e-6)
        assert mine.notes == theirs.notes


def test_what_was_embedded_once_is_not_embedded_again(scorer):
    first = explain.score(scorer, noise(0), CAPTIONS)
    counts = dict(scorer.counts)
    assert counts == {"images": 1, "captions": 6}
    assert (explain.score(scorer, noise(0), CAPTIONS[::-1]) == first[::-1]).all()
    assert scorer.counts == counts
    explain.score(scorer, noise(1), [*CAPTIONS, "a green circle"])
    assert scorer.counts == {"images": 2, "captions": 7}


def test_captions_that_read_the_same_tie_exactly_even_when_asked_one_by_one(scorer):
    alone = [explain.score(scorer, noise(0), [c])[0] for c in (CAPTIONS[0], CAPTIONS[0].upper())]
    assert alone[0] == alone[1]


def test_memory_is_bounded(scorer, monkeypatch):
    monkeypatch.setattr(explain, "_KEPT", 3)
    before = explain.score(scorer, noise(0), CAPTIONS)
    np.testing.assert_allclose(explain.score(scorer, noise(0), CAPTIONS[:2]), before[:2], atol=1e-6)
    assert len(scorer._texts) == 2


def test_a_word_outside_the_vocabulary_is_named(scorer):
    with pytest.raises(VocabularyError, match="'zebra'"):
        explain.score(scorer, noise(0), ["a red zebra"])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([3, 1, 2], [1, -2, -1]), ([2, 2, 0], [0, 0, -2]), ([5, 9], [-4, 4]), ([0.3], [np.nan])],
)
def test_a_margin_is_the_lead_over_the_best_other_caption(scores, expected):
    np.testing.assert_array_equal(explain.margins(np.array(scores, dtype=float)), expected)


def test_the_score_table_has_one_row_a_model_and_caption(student, scorer):
    table = explain.score_table({"a": scorer, "b": scorer}, noise(0), CAPTIONS[:3])
    assert table["model"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["caption"].tolist() == [*CAPTIONS[:3]] * 2
    own = table[table["model"] == "a"].set_index("caption")
    best = own["score"].idxmax()
    assert own["margin"].gt(0).sum() == 1
    assert own["margin"][best] == own["score"][best] - own["score"].drop(best).max()


def test_a_words_worth_is_the_score_less_the_score_without_it(scorer):
    captions = ["a red circle", "square", CAPTIONS[1]]
    table = explain.leave_one_out(scorer, noise(0), captions)
    whole = explain.score(scorer, noise(0), captions)
    assert table["word"].tolist() == " ".join(captions).split()
    for row in table.itertuples():
        words = captions[row.caption].split()
        assert words.pop(row.place) == row.word
        without = explain.score(scorer, noise(0), [" ".join(words)])[0]
        assert row.change == pytest.approx(whole[row.caption] - without, abs=1e-6)
        others = np.delete(whole, row.caption).max()
        assert row.decides == ((whole[row.caption] > others) != (without > others))
    assert table["decides"].any()


def test_no_word_of_a_caption_alone_decides(scorer):
    assert not explain.leave_one_out(scorer, noise(0), CAPTIONS[:1])["decides"].any()


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["a", "red", "circle", "left", "of"]), min_size=1, max_size=12))
def test_a_reordering_is_another_order_of_the_same_words(words):
    caption = " ".join(words)
    found = reorderings(caption)
    assert caption not in found
    assert len(set(found)) == len(found) <= explain.REORDERINGS
    assert all(sorted(text.split()) == sorted(words) for text in found)


def test_of_a_very_long_caption_the_beginning_is_reordered():
    words = [f"w{n}" for n in range(1000)]
    found = reorderings(" ".join(words))
    assert len(set(found)) == len(found) == 30
    for text in found:
        assert text.split()[explain.WORDS :] == words[explain.WORDS :]
        assert sorted(text.split()) == sorted(words)


READ = tiny.CONTEXT - 2  # words beside the marks of beginning and end


@pytest.mark.parametrize("count", [1, READ - 1, READ, READ + 1, 10 * READ])
def test_a_caption_is_taken_apart_as_far_as_it_is_read(scorer, count):
    words = [tiny.WORDS[n % len(tiny.WORDS)] for n in range(count)]
    caption, read = " ".join(words), words[:READ]
    assert scorer.reads(caption) == " ".join(read)
    assert explain.leave_one_out(scorer, noise(0), [caption])["word"].tolist() == read
    for text in explain.hardest(scorer, noise(0), [caption])["text"]:
        assert sorted(text.split()) == sorted(read)
    told = {caption: f"of its {count} words each student reads the first {READ}; the rest counts "
            "for nothing"}  # fmt: skip
    cut = explain.cut_off({"a": scorer, "b": scorer}, [caption])
    assert cut == (told if count > READ else {})


def test_of_a_long_caption_runs_of_words_are_left_out(scorer, monkeypatch):
    monkeypatch.setattr(explain, "PARTS", 5)
    words = list(tiny.WORDS[:READ])
    table = explain.leave_one_out(scorer, noise(0), [" ".join(words), "a red circle"])
    runs = [" ".join(words[n : n + 3]) for n in range(0, READ, 3)]
    assert table["word"].tolist() == [*runs, "a", "red", "circle"]
    whole, without = explain.score(scorer, noise(0), [" ".join(words), " ".join(words[3:])])
    assert table["change"][0] == pytest.approx(whole - without, abs=1e-6)


def test_students_that_read_less_or_more_of_a_caption_are_named(scorer, tmp_path):
    config = tiny.student_config()
    config["text_cfg"] |= {"context_length": 8}
    folder = tiny.save_student(tmp_path / "short", config)
    short, caption = Remembering(load_student(str(folder), None)), " ".join(["red"] * 20)
    told = explain.cut_off({"long": scorer, "short": short}, [caption])[caption]
    assert told.startswith(f"of its 20 words long reads the first {READ}, short reads the first 6;")


def test_a_short_caption_has_every_order_and_one_word_has_none():
    assert len(reorderings("red circle above blue square")) == 5 * 4 * 3 * 2 - 1
    assert sorted(reorderings("a a red")) == ["a red a", "red a a"]
    assert reorderings("circle") == reorderings("a a") == []


def test_a_long_caption_has_its_names_exchanged_and_its_words():
    found = reorderings("a red circle left of a blue square")
    assert "a blue square left of a red circle" in found  # two runs of two words
    assert "a blue circle left of a red square" in found
    assert "a red square left of a blue circle" in found


def test_too_many_reorderings_are_drawn_by_the_seed():
    long = " ".join(f"w{n}" for n in range(20))
    assert reorderings(long) == reorderings(long)
    assert reorderings(long) != reorderings(long, seed=1)
    assert len(reorderings(long)) == 120
    assert len(reorderings(" ".join(long.split()[:15]))) == explain.REORDERINGS


def test_the_hardest_reorderings_come_first_and_none_is_harder(scorer):
    captions = [CAPTIONS[0], "a red circle", "square"]
    table = explain.hardest(scorer, noise(0), captions, count=4)
    whole = explain.score(scorer, noise(0), captions)
    assert table["caption"].tolist() == [0] * 4 + [1] * 4
    for k, part in table.groupby("caption"):
        every = np.sort(explain.score(scorer, noise(0), reorderings(captions[k])))[::-1]
        np.testing.assert_allclose(part["score"], every[:4], atol=1e-6)
        np.testing.assert_allclose(part["lead"], whole[k] - part["score"], atol=1e-12)


def test_the_teachers_draws_have_the_mean_that_is_its_score(teacher):
    scorer = diffusion.diffusion_scorer(teacher, 4, empty=False)
    errors = explain.draw_errors(scorer, noise(0), CAPTIONS[:2])
    assert len(errors) == 4
    found = explain.score(scorer, noise(0), CAPTIONS[:2])
    np.testing.assert_allclose(-errors[[0, 1]].mean().to_numpy(), found, atol=1e-9)


@pytest.mark.parametrize("draws", [2, 16])
def test_the_noise_of_a_margin_is_two_standard_errors_of_the_draws(teacher, draws):
    known = pd.DataFrame({"t": [20, 980], "error": [0.5, 2.0]})
    for profile in (None, known):
        scorer = diffusion.diffusion_scorer(teacher, draws, profile=profile, empty=False)
        errors = explain.draw_errors(scorer, noise(0), CAPTIONS[:3])[[0, 1, 2]].to_numpy()
        errors = errors if profile is None else errors * scorer.weights[:, None]
        pairs = (errors[::2] + errors[1::2]) / 2  # eps and -eps are one draw
        order = errors.mean(0).argsort()
        found = explain.noise(scorer, noise(0), CAPTIONS[:3])
        for k in range(3):
            rival = order[1] if k == order[0] else order[0]
            own = pairs[:, k] - pairs[:, rival]
            expected = 2 * own.std(ddof=1) / len(own) ** 0.5 if draws > 2 else np.inf
            assert found[k] == pytest.approx(expected)
    assert explain.noise(scorer, noise(0), CAPTIONS[:1]) == (0 if draws > 2 else np.inf)


def test_the_noise_of_a_cosine_holds_what_rounding_does_and_little_more(student, scorer):
    refs = [noise(n) for n in range(8)]
    (found,) = scorer([Item("0", tuple(refs), CAPTIONS)])
    exact = copy.deepcopy(student).double()
    pixels = torch.stack([student.transform(ref.load()) for ref in refs]).double()
    with torch.no_grad():
        image = functional.normalize(exact.model.encode_image(pixels), dim=-1)
        text = functional.normalize(exact.model.encode_text(student.tokenize(CAPTIONS)), dim=-1)
    off = found.grids[""] - (image @ text.T).numpy()
    worst = np.abs(off[:, :, None] - off[:, None]).max()
    assert worst < explain.rounding(student) < 100 * worst
    assert explain.rounding(copy.deepcopy(student).bfloat16()) > 1000 * explain.rounding(student)


@pytest.mark.parametrize(
    ("mode", "size", "part"),
    [
        ("shortest", (60, 30), (0.25, 0, 0.5, 1)),
        ("shortest", (30, 120), (0, 0.375, 1, 0.25)),
        ("shortest", (30, 30), (0, 0, 1, 1)),
        ("longest", (60, 30), (0, 0, 1, 1)),
        ("squash", (60, 30), (0, 0, 1, 1)),
    ],
)
def test_a_student_sees_the_central_square_or_all(student, monkeypatch, mode, size, part):
    told = student.model.visual.preprocess_cfg | {"resize_mode": mode}
    monkeypatch.setattr(student.model.visual, "preprocess_cfg", told)
    assert explain.seen(student, size) == pytest.approx(part)


def test_a_pair_of_images_and_captions_is_scored_as_a_set_of_one_item(student, scorer):
    own, tables = explain.grid({"a": scorer}, (noise(0), noise(1)), CAPTIONS[:2], "mine")
    expected = evaluate.score_grids(evaluate.clip_scorer(student), own)
    cells = ["s_0_0", "s_0_1", "s_1_0", "s_1_1"]
    np.testing.assert_allclose(tables["a"][cells], expected[cells], atol=1e-6)
    assert tables["a"]["id"].tolist() == ["mine"]
