"""Half precision decides what is clear; near ties are decided again in full precision."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_evaluate import CAPTIONS, benchmark, item, noise

from sdslib import evaluate, tables
from sdslib.lab import near_ties
from sdslib.scorers import diffusion
from sdslib.teacher import load_teacher


@pytest.fixture(scope="module")
def teachers(tiny_models):
    folder = tiny_models["teacher"]
    return load_teacher(folder, precision="bf16"), load_teacher(folder)


@pytest.fixture(scope="module")
def items():
    return [item(str(n), [noise(2 * n), noise(2 * n + 1)], CAPTIONS[:2]) for n in range(12)]


def scorers(teachers, draws=4):
    return [diffusion.diffusion_scorer(one, draws, empty=False, batch_size=16) for one in teachers]


def test_near_ties_carry_the_scores_of_full_precision_and_the_rest_those_of_half(teachers, items):
    low, full = scorers(teachers)
    tables_of = [evaluate.score_grids(one, benchmark(items)) for one in (low, full)]
    grids = [tables.grids_of(table) for table in tables_of]
    leads = [near_ties.smallest_lead(grid) for grid in grids[0]]
    rounding = float(np.median(leads)) / near_ties.MARGIN
    checked = near_ties.RecheckedScorer(*scorers(teachers), rounding)
    found = evaluate.score_grids(checked, benchmark(items))
    near = np.array(leads) < np.median(leads)
    assert found["rechecked"].tolist() == near.tolist()
    assert 0 < near.sum() < len(near)
    np.testing.assert_allclose(
        tables.grids_of(found), np.where(near[:, None, None], grids[1], grids[0]), rtol=1e-6
    )
    counts = found.attrs["counts"]
    assert counts["unet_evaluations"] == 12 * 4 * 4
    assert counts["rechecked_unet_evaluations"] == near.sum() * 4 * 4


def test_fewer_draws_make_more_items_near(teachers, items):
    stop = diffusion.DiffusionScorer(scorers(teachers)[0].bank, None, [2], lambda errors: True)
    whole, early = (
        near_ties.RecheckedScorer(low, scorers(teachers)[1], 1.0)
        for low in (scorers(teachers)[0], stop)
    )
    scored = evaluate.Scored({"": np.array([[0.0, 4.0], [5.0, 0.0]])}, {"draws": 4})
    assert not whole._is_near(scored)
    assert early._is_near(evaluate.Scored(scored.grids, {"draws": 2}))


def change_of_leads(low, full, items, rule=""):
    """Root mean square of the differences between two scorers' leads, of images and captions."""
    found = (evaluate.score_grids(one, benchmark(items)) for one in (low, full))
    grids = [tables.grids_of(table, rule) for table in found]
    change = [np.diff(grids[0] - grids[1], axis=axis).ravel() for axis in (1, 2)]
    return np.sqrt(np.mean(np.concatenate(change) ** 2))


def test_the_rounding_is_measured_between_the_precisions_at_the_same_draws(teachers, items):
    low, full = scorers(teachers)
    found = near_ties.rounding(low, full, items)
    assert found == pytest.approx(change_of_leads(low, full, items), rel=1e-4)
    assert found > 0
    assert near_ties.rounding(full, full, items) == 0
    other = diffusion.diffusion_scorer(teachers[1], 4, seed=1, empty=False)
    with pytest.raises(ValueError, match="the same draws"):
        near_ties.rounding(low, other, items)


def test_the_smallest_lead_is_that_of_the_decisions():
    assert near_ties.smallest_lead(np.array([[1.0, 4.0], [3.0, 3.5]])) == pytest.approx(0.5)
    assert near_ties.smallest_lead(np.array([[3.0, 1.0, 2.5]])) == pytest.approx(0.5)
    assert near_ties.smallest_lead(np.array([[3.0]])) == np.inf


def test_a_near_tie_among_images_is_as_near_as_one_among_captions():
    grid = np.array([[1.0, 4.0], [1.125, 9.0]])
    assert near_ties.smallest_lead(grid) == near_ties.smallest_lead(grid.T) == 0.125
    for seed in range(20):
        some = np.random.default_rng(seed).normal(size=(3, 4))
        leads = [np.diff(np.sort(part)[-2:]) for part in (*some, *some.T)]
        assert near_ties.smallest_lead(some) == near_ties.smallest_lead(some.T) == np.min(leads)


PROFILE = pd.DataFrame({"t": [0, 300, 999], "error": [0.02, 0.5, 4.0]})


def test_with_a_profile_the_rounding_is_that_of_the_relative_leads(teachers, items):
    low, full = (
        diffusion.diffusion_scorer(one, 4, profile=PROFILE, empty=False, batch_size=16)
        for one in teachers
    )
    found = near_ties.rounding(low, full, items[:4], PROFILE)
    assert found == pytest.approx(change_of_leads(low, full, items[:4], "relative"), rel=1e-4)
    assert found != pytest.approx(near_ties.rounding(low, full, items[:4]), rel=0.1)


def test_with_a_profile_the_relative_scores_tell_what_is_near(teachers):
    checked = near_ties.RecheckedScorer(*scorers(teachers), 1.0)
    clear, close = np.array([[0.0, 9.0], [18.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 0.0]])
    for plain, relative, near in ((clear, close, True), (close, clear, False)):
        both, alone = {"": plain, "relative": relative}, {"": plain}
        found = [checked._is_near(evaluate.Scored(grids, {"draws": 4})) for grids in (both, alone)]
        assert found == [near, not near]


def test_the_residual_and_the_schedule_stay_in_full_precision(teachers):
    low = teachers[0]
    z = torch.zeros(1, *low.latent_shape)
    eps = low.predict_noise(z, torch.tensor([5]), low.embed_texts([CAPTIONS[0]]))
    assert eps.dtype == low.alpha_bar.dtype == torch.float32
