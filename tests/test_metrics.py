"""Laws of the metrics: chance, ties, hand-worked grids, coverage and power by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from statsmodels.stats.multitest import multipletests

from sdslib import metrics
from sdslib.results import statistics

# Image 0 prefers its own caption and image 1 does not care which of them; both captions
# prefer image 0: text wrong by a tie, image wrong by caption 1.
TIED = [[0.9, 0.2], [0.1, 0.1]]
ALL_RIGHT = [[0.9, 0.1], [0.2, 0.8]]
TEXT_ONLY = [[0.9, 0.8], [0.1, 0.2]]
IMAGE_ONLY = [[0.9, 0.1], [0.8, 0.2]]
NONE_RIGHT = [[0.1, 0.9], [0.8, 0.2]]
GRIDS = np.array([ALL_RIGHT, TEXT_ONLY, IMAGE_ONLY, NONE_RIGHT, TIED])


def test_winoground_outcomes_of_grids_worked_out_by_hand():
    correct = metrics.winoground_correct(GRIDS)
    assert correct["text"].tolist() == [True, True, False, False, False]
    assert correct["image"].tolist() == [True, False, True, False, False]
    assert correct["group"].tolist() == [True, False, False, False, False]
    assert metrics.ties(GRIDS).tolist() == [False, False, False, False, True]


def test_margins_of_grids_worked_out_by_hand():
    margins = metrics.winoground_margins(GRIDS)
    np.testing.assert_allclose(margins["text"], [0.6, 0.1, -0.6, -0.8, 0.0])
    np.testing.assert_allclose(margins["image"], [0.7, -0.6, 0.1, -0.7, -0.1])
    np.testing.assert_allclose(margins["group"], [0.6, -0.6, -0.6, -0.8, -0.1])


@given(hnp.arrays(np.float64, (6, 2, 2), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_a_transposed_grid_swaps_text_and_image(scores):
    straight, swapped = (metrics.winoground_correct(s) for s in (scores, scores.swapaxes(1, 2)))
    assert (straight["text"] == swapped["image"]).all()
    assert (straight["image"] == swapped["text"]).all()
    assert (straight["group"] == swapped["group"]).all()
    assert (metrics.ties(scores) == metrics.ties(scores.swapaxes(1, 2))).all()


@given(hnp.arrays(np.float64, (6, 2, 2), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])))
def test_an_item_is_right_exactly_where_its_margin_is_positive(scores):
    correct, margins = metrics.winoground_correct(scores), metrics.winoground_margins(scores)
    for name in ("text", "image", "group"):
        assert (correct[name] == (margins[name] > 0)).all()


def test_random_scores_are_at_chance():
    scores = np.random.default_rng(0).normal(size=(60_000, 2, 2))
    for name, correct in metrics.winoground_correct(scores).items():
        chance = metrics.CHANCE_GRID[name]
        assert abs(correct.mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / len(scores))


def test_a_constant_scorer_is_never_right_and_every_item_is_a_tie():
    grids, choices = np.full((7, 2, 2), 0.3), np.full((7, 5), 0.3)
    answer = np.array([0, 1, 2, 3, 4, 0, 1])
    assert not any(correct.any() for correct in metrics.winoground_correct(grids).values())
    assert not metrics.choice_correct(choices, answer).any()
    assert metrics.ties(grids).all()
    assert metrics.ties(choices, answer).all()
    assert metrics.retrieval_ranks(np.ones((3, 6)), np.repeat([0, 1, 2], 2))["image_to_text"].all()


def test_every_tie_convention_of_the_authors():
    """The same ties, counted wrong by ARO's VG tasks and SugarCrepe, right by ARO's Order."""
    scores = np.array([[0.5, 0.5], [0.5, 0.5], [0.7, 0.1], [0.1, 0.7]])
    answer = np.array([0, 1, 0, 0])
    by = {name: rule(scores, answer).tolist() for name, rule in metrics.CHOICE_RULES.items()}
    assert by["strict"] == by["sugarcrepe"] == by["aro-vg"] == [False, False, True, False]
    assert by["aro-order"] == [True, True, True, False]
    assert by["argmax"] == [True, False, True, False]
    tied = metrics.GRID_RULES["argmax"](np.full((1, 2, 2), 0.1))
    assert not tied["text"].any()
    assert not tied["image"].any()


@pytest.mark.parametrize("gold", [0, 1])
def test_tie_conventions_equal_an_argmax_over_the_authors_caption_order(gold):
    """ARO puts the true caption at index 1 (VG) or 0 (Order) and takes numpy's argmax."""
    scores = np.random.default_rng(gold).integers(0, 3, size=(500, 2)).astype(float)
    theirs = scores.argmax(axis=-1) == gold
    rule = metrics.CHOICE_RULES["aro-vg" if gold else "aro-order"]
    assert (rule(scores, np.full(500, gold)) == theirs).all()
    assert metrics.ties(scores, np.full(500, gold)).any()


def test_items_may_have_different_numbers_of_captions_if_the_absent_ones_are_masked():
    scores = np.ma.masked_array(
        [[0.1, 0.3, 9.0], [0.1, 0.3, 0.9]], mask=[[False, False, True], [False] * 3]
    )
    assert metrics.choice_correct(scores, np.array([1, 1])).tolist() == [True, False]
    np.testing.assert_allclose(metrics.choice_margin(scores, np.array([1, 1])), [0.2, -0.6])
    with pytest.raises(metrics.ScoreError, match="answer among them"):
        metrics.choice_correct(scores, np.array([2, 2]))


def test_a_score_that_is_not_finite_stops_with_the_items_id():
    grids = GRIDS.copy()
    grids[3, 1, 0] = np.nan
    with pytest.raises(metrics.ScoreError, match="item 'wg-3' is not finite"):
        metrics.winoground_correct(grids, ids=[f"wg-{i}" for i in range(5)])
    with pytest.raises(metrics.ScoreError, match="item 'b'"):
        metrics.choice_correct(np.array([[1, 2], [np.inf, 0]]), np.array([0, 0]), ids=["a", "b"])
    masked = np.ma.masked_array([[1.0, np.nan, 0.5]], mask=[[False, False, True]])
    with pytest.raises(metrics.ScoreError, match="item '0'"):
        metrics.choice_correct(masked, np.array([0]))


def test_a_grid_of_the_wrong_shape_is_refused():
    with pytest.raises(metrics.ScoreError, match=r"\[N, 2, 2\]"):
        metrics.winoground_correct(np.zeros((4, 2, 3)))


def test_retrieval_ranks_worked_out_by_hand():
    """Two captions an image; ties rank against the truth; any own caption counts."""
    scores = np.array([[0.9, 0.1, 0.3, 0.3], [0.2, 0.8, 0.8, 0.1], [0.0, 0.0, 0.0, 0.0]])
    ranks = metrics.retrieval_ranks(scores, np.array([0, 0, 1, 2]))
    assert ranks["image_to_text"].tolist() == [0, 1, 3]
    assert ranks["text_to_image"].tolist() == [0, 1, 0, 2]


def test_random_retrieval_is_at_chance():
    scores = np.random.default_rng(1).normal(size=(1000, 1000))
    for rank in metrics.retrieval_ranks(scores, np.arange(1000)).values():
        assert abs((rank < 100).mean() - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 1000)


def macro(correct, labels, **left_out):
    return metrics.macro_interval(correct, labels, 0, **left_out).mean


def test_a_macro_average_leaves_out_symmetric_relations_and_small_groups():
    """One symmetric relation, one small group: three figures, all different."""
    relation = ["on"] * 4 + ["next to"] * 4 + ["riding"] * 2
    correct = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], dtype=bool)
    symmetric = metrics.ARO_SYMMETRIC_RELATIONS
    assert macro(correct, relation) == pytest.approx((0.75 + 0 + 1) / 3)
    assert macro(correct, relation, exclude=symmetric) == pytest.approx(0.875)
    assert macro(correct, relation, min_count=3) == pytest.approx(0.375)


def test_macro_interval_is_centred_on_the_macro_average_and_covers_the_truth():
    labels, rng, covered = ["a"] * 40 + ["b"] * 20 + ["c"] * 10, np.random.default_rng(0), 0
    truth = (0.8 + 0.3 + 0.5) / 3
    for trial in range(100):
        correct = rng.random(70) < np.repeat([0.8, 0.3, 0.5], [40, 20, 10])
        found = metrics.macro_interval(correct, labels, seed=trial)
        shares = [correct[:40].mean(), correct[40:60].mean(), correct[60:].mean()]
        assert found.mean == pytest.approx(np.mean(shares))
        covered += found.low <= truth <= found.high
    assert covered >= 88


def test_a_scorer_without_an_opinion_retrieves_nothing_either_way():
    scores, owner = np.full((4, 8), 0.3), np.repeat(np.arange(4), 2)
    ranks = metrics.retrieval_ranks(scores, owner)
    assert set(ranks["image_to_text"]) == {6}  # behind all that is another image's
    assert set(ranks["text_to_image"]) == {3}


def test_retrieval_of_the_transpose_swaps_the_ways_where_every_image_has_one_caption():
    scores = np.random.default_rng(5).integers(0, 4, (12, 12)).astype(float)
    there, back = (metrics.retrieval_ranks(s, np.arange(12)) for s in (scores, scores.T))
    assert (there["image_to_text"] == back["text_to_image"]).all()
    assert (there["text_to_image"] == back["image_to_text"]).all()


def test_the_macro_interval_is_as_wide_as_the_normal_one_of_its_strata():
    """Two labels of other sizes and shares: each has a variance of its own."""
    correct = np.repeat([True, False, True, False], [3000, 1000, 50, 50])
    labels = ["a"] * 4000 + ["b"] * 100
    variance = (0.75 * 0.25 / 4000 + 0.5 * 0.5 / 100) / 4
    found = metrics.macro_interval(correct, labels, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.06)


def test_a_label_with_exactly_the_least_number_of_items_counts():
    correct = np.repeat([True, False], [3, 2])
    labels = ["a"] * 3 + ["b"] * 2
    assert macro(correct, labels, min_count=2) == pytest.approx(0.5)
    assert macro(correct, labels, min_count=3) == pytest.approx(1.0)
    assert math.isnan(macro(correct, labels, min_count=4))
    assert metrics.macro_interval(correct, labels, 0, min_count=3).n == 3


def test_symmetric_relations_are_the_157_of_the_authors_list():
    assert len(metrics.ARO_SYMMETRIC_RELATIONS) == 157
    assert {"next to", "near", "wrapped in", "in between"} <= metrics.ARO_SYMMETRIC_RELATIONS
    assert not {"on", "to the left of", "holding", "under"} & metrics.ARO_SYMMETRIC_RELATIONS
    assert all(name == name.strip() for name in metrics.ARO_SYMMETRIC_RELATIONS)


def test_an_item_with_two_labels_counts_in_both_groups():
    by = metrics.groups_of(["a|b", "b", None])
    assert {label: index.tolist() for label, index in by.items()} == {
        "a": [0],
        "b": [0, 1],
        "untagged": [2],
    }


def test_whatever_holds_no_label_is_untagged():
    for cell in (None, float("nan"), "", "  ", "|", " | "):
        assert metrics.labels_of(cell) == ("untagged",)
    assert metrics.labels_of(" a | b|") == ("a", "b")
    assert metrics.labels_of(2) == ("2",)


def test_wilson_interval_equals_its_formula_and_stays_inside_the_unit_interval():
    share, z = metrics.wilson(np.array([True] * 9 + [False])), stats.norm.ppf(0.975)
    centre = (0.9 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * np.sqrt(0.9 * 0.1 / 10 + z**2 / 400)
    assert (share.low, share.high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    assert metrics.wilson(np.ones(5, dtype=bool)).high == pytest.approx(1.0)
    assert 0 < metrics.wilson(np.ones(5, dtype=bool)).low < 1


def outcomes(up: int, down: int, both: int, neither: int):
    before = np.repeat([False, True, True, False], [up, down, both, neither])
    after = np.repeat([True, False, True, False], [up, down, both, neither])
    return before, after


@pytest.mark.parametrize(("up", "down"), [(9, 1), (5, 5), (0, 6), (0, 0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_flips(up, down):
    before, after = outcomes(up, down, 20, 30)
    expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert statistics.mcnemar(before, after) == pytest.approx(expected)
    assert statistics.flips(before, after) == (up, down)


def test_paired_interval_is_near_the_normal_one_and_narrower_than_an_unpaired_one():
    before, after = outcomes(30, 10, 160, 200)
    found = statistics.paired_difference(before, after, seed=0)
    sd = np.std(after.astype(float) - before) / np.sqrt(400)
    unpaired = np.sqrt((before.var() + after.var()) / 400)
    assert found.mean == pytest.approx(0.05)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sd, rel=0.06)
    assert found.high - found.low < 2 * 1.96 * unpaired
    assert found == statistics.paired_difference(before, after, seed=0)
    assert found != statistics.paired_difference(before, after, seed=1)


def test_equal_outcomes_differ_by_exactly_nothing():
    before, _ = outcomes(3, 4, 5, 6)
    found = statistics.paired_difference(before, before, seed=0)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_paired_tests_refuse_different_items():
    with pytest.raises(metrics.ScoreError, match="same items"):
        statistics.mcnemar(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize("kept", [0, 5000])
@pytest.mark.parametrize("whole", [False, True])
def test_the_bootstrap_over_seeds_is_a_plain_loop_over_resamples(monkeypatch, kept, whole):
    monkeypatch.setattr(statistics, "_KEPT_ITEMS", kept)
    table = np.random.default_rng(1).random((3, 50))
    table = np.rint(2 * table - 1) if whole else table
    rng, means = np.random.default_rng(7), []
    seeds = rng.multinomial(3, np.full(3, 1 / 3), 200)
    items = rng.multinomial(50, np.full(50, 1 / 50), 200)
    for of_seed, of_item in zip(seeds, items, strict=True):
        rows = np.repeat(table, of_seed, axis=0)
        means.append(np.repeat(rows, of_item, axis=1).mean())
    for _ in range(2):  # the second call reads the draws that were kept
        found = statistics.over_seeds(table, seed=7, resamples=200)
        assert (found.low, found.high) == pytest.approx(np.quantile(means, [0.025, 0.975]))
        assert found.mean == pytest.approx(table.mean())


def test_intervals_of_outcomes_are_the_same_to_the_last_bit_in_any_order_of_the_sums():
    table = np.rint(np.random.default_rng(2).random((5, 1200)))
    found = statistics.over_seeds(table, seed=0, resamples=100)
    means = [
        math.fsum((np.outer(seeds, items) * table).ravel()) / (5 * 1200)
        for part in statistics._drawn(5, 1200, 0, 100)
        for seeds, items in zip(*part, strict=True)
    ]
    assert (found.low, found.high) == tuple(np.quantile(means, [0.025, 0.975]))


def test_interval_over_seeds_covers_a_known_mean_and_is_wider_than_items_alone():
    """Difference = seed effect + item effect + noise, true mean 0, eight seeds."""
    rng, covered, wider = np.random.default_rng(0), 0, 0
    for trial in range(100):
        table = (
            rng.normal(0, 0.2, size=(8, 1))
            + rng.normal(0, 0.5, size=(1, 100))
            + rng.normal(size=(8, 100))
        )
        both = statistics.over_seeds(table, seed=trial, resamples=400)
        items = statistics.over_seeds(table.mean(axis=0, keepdims=True), seed=trial, resamples=400)
        covered += both.low <= 0 <= both.high
        wider += both.high - both.low > items.high - items.low
    assert covered >= 88
    assert wider >= 95


def test_one_seed_reduces_to_a_bootstrap_over_items():
    values = np.random.default_rng(3).random((1, 300)) < 0.4
    found = statistics.over_seeds(values, seed=0)
    assert found.mean == pytest.approx(values.mean())
    sd = values.std() / np.sqrt(300)
    assert found.high - found.low == pytest.approx(2 * 1.96 * sd, rel=0.08)


def test_holm_worked_out_by_hand():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert statistics.holm([]).shape == (0,)
    for seed in range(8):
        values = np.random.default_rng(seed).random(1 + seed % 8).round(seed % 4 + 1)
        expected = multipletests(values, method="holm")[1]
        np.testing.assert_array_equal(statistics.holm(values), expected)


@pytest.mark.parametrize(("n", "discordant"), [(400, 0.2), (1000, 0.1), (200, 0.4)])
def test_the_exact_test_has_about_the_stated_power_at_the_detectable_difference(n, discordant):
    difference = statistics.minimum_detectable_difference(n, discordant)
    up, rng, found = (discordant + difference) / 2, np.random.default_rng(0), 0
    for _ in range(500):
        ups, downs, _ = rng.multinomial(n, [up, discordant - up, 1 - discordant])
        found += stats.binomtest(ups, ups + downs).pvalue < 0.05 if ups + downs else 0
    assert 0.70 <= found / 500 <= 0.86


@pytest.mark.parametrize("power", [0.6, 0.8, 0.95])
def test_the_detectable_difference_solves_connors_formula(power):
    """n = (z_level sqrt(discordant) + z_power sqrt(discordant - d^2))^2 / d^2 (Connor 1987)."""
    for n, discordant in ((150, 0.5), (400, 0.2), (1000, 0.1)):
        found = statistics.minimum_detectable_difference(n, discordant, 0.05, power)
        levels = stats.norm.ppf(0.975), stats.norm.ppf(power)
        root = levels[0] * np.sqrt(discordant) + levels[1] * np.sqrt(discordant - found**2)
        assert (root / found) ** 2 == pytest.approx(n)


def test_the_detectable_difference_falls_with_n_and_never_below_six_flips():
    grow = [statistics.minimum_detectable_difference(n, 0.15) for n in (50, 400, 2000)]
    assert grow == sorted(grow, reverse=True)
    assert statistics.minimum_detectable_difference(400, 0.0) == pytest.approx(6 / 400)
    before, after = outcomes(6, 0, 0, 394)
    assert statistics.mcnemar(before, after) < 0.05 < statistics.mcnemar(*outcomes(5, 0, 0, 395))
