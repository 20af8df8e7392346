"""What sees no image: the caption's length, and the likelihood of its words."""

import numpy as np
import pytest
from nltk.lm import WittenBellInterpolated

from sdslib import evaluate, tables
from sdslib.benchmarks import Benchmark, Item
from sdslib.sets import text_only

CORPUS = ["a red circle left of a blue square", "A blue circle, below a red star.", "a red star"]


def choice(captions, name="c", answer=0):
    return Item(name, (None,), captions, answer)


def scores(scorer, *items):
    return evaluate.score_grids(
        scorer, Benchmark("choices", "choice", items, len(items), "made here")
    )


def test_the_shorter_caption_is_preferred_whatever_the_answer():
    captions = ("a red circle", "a large red circle")
    table = scores(text_only.LengthScorer(), choice(captions), choice(captions, "d", answer=1))
    assert tables.outcomes(table)["accuracy"].tolist() == [True, False]


def test_the_caption_in_the_order_of_the_corpus_is_preferred():
    captions = ("a red circle", "circle red a")
    table = scores(text_only.likelihood_scorer(CORPUS), choice(captions))
    assert tables.outcomes(table)["accuracy"].tolist() == [True]


def test_likelihood_is_the_mean_log_probability_of_words_and_end():
    scorer = text_only.likelihood_scorer(CORPUS)
    model = scorer.model
    padded = ["<s>", "<s>", "a", "red", "star", "</s>", "</s>"]
    expected = [np.log2(model.score(padded[i], padded[i - 2 : i])) for i in range(2, len(padded))]
    assert scorer.log_likelihood("A red star!") == pytest.approx(np.mean(expected))
    assert isinstance(model, WittenBellInterpolated)


def test_probabilities_of_all_words_sum_to_one():
    model = text_only.likelihood_scorer(CORPUS).model
    for context in (["a", "red"], ["left", "of"], ["never", "seen"]):
        assert sum(model.score(word, context) for word in set(model.vocab)) == pytest.approx(1)


def test_a_word_the_corpus_lacks_is_unlikely_and_finite():
    scorer = text_only.likelihood_scorer(CORPUS)
    known, unknown = map(scorer.log_likelihood, ("a red star", "a red zebra"))
    assert np.isfinite(unknown)
    assert unknown < known


def test_each_distinct_caption_is_read_once():
    scorer = text_only.likelihood_scorer(CORPUS)
    scores(scorer, choice(("a red star", "a star red")), choice(("a red star", "star"), "d"))
    assert scorer.counts == {"captions": 3}


def test_no_corpus_is_refused():
    with pytest.raises(ValueError, match="no captions to learn word order from"):
        text_only.likelihood_scorer([])


def test_words_are_lower_case_without_punctuation():
    assert text_only.words("A dog's red-hot Éclair, 2 left!") == [
        "a", "dog's", "red", "hot", "éclair", "2", "left",
    ]  # fmt: skip
