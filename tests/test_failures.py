"""Why an item fails: modes, choices, margins and flips of grids worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sdslib import metrics, tables
from sdslib.results import failures

#        s00 s01 s10 s11
GRIDS = [
    (2, 1, 0, 3),  # right
    (1, 0, 3, 4),  # text right; image 1 is taken for both captions
    (1, 3, 0, 4),  # image right; caption 1 is taken for both images
    (0, 1, 1, 0),  # both reversed
    (1, 1, 0, 2),  # image 0 cannot tell its captions apart: a tie is wrong
    (3, 4, 1, 2),  # caption 1 for both images, image 0 for both captions
]


def score_table(grids=GRIDS, **tags):
    table = pd.DataFrame(grids, columns=["s_0_0", "s_0_1", "s_1_0", "s_1_1"], dtype=float)
    table.insert(0, "id", [str(n) for n in range(len(table))])
    empty = pd.array([pd.NA] * len(table), "Int64")
    return table.assign(n_images=2, n_captions=2, answer=empty, **tags)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        ("mode", "right, image wrong, text wrong, both wrong, text wrong, both wrong"),
        ("tie", "False, False, False, False, True, False"),
        ("text_choice", "right, right, one caption for both, reversed, tie, one caption for both"),
        ("image_choice", "right, one image for both, right, reversed, right, one image for both"),
    ],
)
def test_what_becomes_of_every_item_is_named(column, told):
    assert ", ".join(map(str, failures.anatomy(score_table())[column])) == told


def test_failed_inequalities_are_listed_by_name():
    failed = failures.anatomy(score_table())["failed"]
    assert failed[0] == ""
    assert failed[1] == "caption 0 prefers its image"
    assert failed[2] == "image 0 prefers its caption"
    assert failed[3].count("|") == 3
    assert failed[4] == "image 0 prefers its caption"


def test_leads_are_differences_from_the_true_pair():
    assert failures.leads_of(score_table())[0].tolist() == [1, 3, 2, 2]
    assert failures.leads_of(score_table())[1].tolist() == [1, 1, -2, 4]


@given(arrays(float, (7, 4), elements=st.integers(-3, 3).map(float)))
def test_modes_margins_and_inequalities_tell_the_same_story(grids):
    table = score_table(grids)
    parts, leads = failures.anatomy(table), failures.leads_of(table)
    right = metrics.winoground_correct(tables.grids_of(table))
    assert (parts["mode"].eq("right") == right["group"]).all()
    assert (parts["mode"].isin(["right", "image wrong"]) == right["text"]).all()
    assert (parts["failed"].eq("") == right["group"]).all()
    assert np.array_equal(parts["margin_group"], leads.min(axis=1))
    assert (parts["tie"] == (leads == 0).any(axis=1)).all()


@given(arrays(float, (9, 4), elements=st.floats(-1, 1, width=16)))
def test_captions_reversed_while_images_are_right_cannot_be(grids):
    """s00 < s01, s11 < s10, s00 > s10 and s11 > s01 would close a circle of inequalities."""
    parts = failures.anatomy(score_table(grids))
    assert not (parts["text_choice"].eq("reversed") & parts["image_choice"].eq("right")).any()
    assert not (parts["text_choice"].eq("right") & parts["image_choice"].eq("reversed")).any()


def test_exchanging_images_and_captions_exchanges_text_and_image():
    table = score_table()
    turned = table.rename(columns={"s_0_1": "s_1_0", "s_1_0": "s_0_1"})
    parts, other = failures.anatomy(table), failures.anatomy(turned)
    assert parts["margin_text"].tolist() == other["margin_image"].tolist()
    assert parts["image"].tolist() == other["text"].tolist()


def test_choices_are_right_or_wrong_by_their_margin_and_have_no_inequalities():
    choice = score_table().drop(columns=["s_1_0", "s_1_1"])
    choice = choice.assign(answer=pd.array([0] * 6, "Int64"), n_images=1)
    with pytest.raises(tables.TableError, match="two images and two captions"):
        failures.leads_of(choice)
    parts = failures.anatomy(choice)
    assert parts["margin_accuracy"].tolist() == [1, 1, -2, -1, 0, -1]
    assert parts["mode"].tolist() == ["right"] * 2 + ["wrong"] * 4
    kinds = failures.kinds(parts).set_index("kind")["items"]
    assert kinds.to_dict() == {"takes a false caption": 3, "ties exactly": 1}
    shares = failures.mode_shares(choice, parts, []).set_index("mode")["share"]
    assert shares.to_dict() == {"right": 2 / 6, "wrong": 4 / 6}
    (row,) = failures.calibration({"a": choice}, bins=1).itertuples()
    assert (row.accuracy, row.chance) == (2 / 6, 0.5)


def test_a_score_that_is_not_finite_names_its_item():
    broken = score_table()
    broken.loc[3, "s_1_0"] = np.nan
    with pytest.raises(metrics.ScoreError, match="'3'"):
        failures.anatomy(broken)


def test_flips_are_named():
    flips = failures.flips([False, False, True, True], [False, True, False, True])
    assert flips.tolist() == ["stays wrong", "gained", "lost", "stays right"]


def test_mode_shares_of_a_label_add_up_to_one():
    table = score_table(kind=["a|b", "a", "a", "b", "b", "b"])
    shares = failures.mode_shares(table, failures.anatomy(table), ["kind"])
    sums = shares.groupby(["tag", "label"])["share"].sum()
    assert sums.to_numpy() == pytest.approx(1.0)
    part = shares[(shares["label"] == "a") & (shares["mode"] == "right")].iloc[0]
    assert (part["n"], part["share"]) == (3, pytest.approx(1 / 3))


def test_margins_are_paired_by_id_whatever_the_order():
    before = failures.anatomy(score_table())
    after = failures.anatomy(score_table([(2, 1, 0, 3)] * 6)).iloc[::-1]
    pairs = failures.margin_pairs(before, after).set_index("id")
    assert pairs["before"].tolist() == before["margin_text"].tolist()
    assert pairs["flip"].tolist() == ["stays right"] * 2 + ["gained"] * 4


def test_flows_keep_every_item():
    first, turned = score_table(), score_table(GRIDS[::-1])
    parts = {"before": failures.anatomy(first), "after": failures.anatomy(turned)}
    flow = failures.flows(parts)
    assert flow["n"].sum() == 6
    assert list(flow.columns) == ["before", "after", "n"]
    assert flow.query("before == 'right' and after == 'both wrong'")["n"].item() == 1


def test_choice_counts_hold_all_items_and_leave_out_ties_where_there_are_none():
    counts = failures.choice_counts(failures.anatomy(score_table()))
    assert counts.to_numpy().sum() == 6
    assert counts.loc["tie", "right"] == 1
    assert "tie" not in counts.columns
    assert (counts.index.name, counts.columns.name) == ("captions", "images")


def test_agreement_and_kappa_by_hand():
    first = np.array([True] * 6 + [False] * 4)
    second = np.array([True] * 4 + [False] * 2 + [True] + [False] * 3)
    counts = failures.agreement(first, second)
    assert counts.to_numpy().tolist() == [[4, 2], [1, 3]]
    # observed 0.7, by chance 0.6 * 0.5 + 0.4 * 0.5
    assert failures.kappa(counts) == pytest.approx((0.7 - 0.5) / 0.5)


def test_kappa_is_undefined_where_an_answer_never_occurs():
    always = np.ones(5, dtype=bool)
    assert np.isnan(failures.kappa(failures.agreement(always, always)))


def test_calibration_bins_hold_every_choice_once_in_order_of_their_size():
    rng = np.random.default_rng(0)
    table = score_table(rng.normal((0.5, 0, 0, 0.5), size=(50, 4)))
    found = failures.calibration({"model": table}, bins=5)
    assert found["n"].sum() == 100
    assert found["margin"].is_monotonic_increasing
    lead = failures.leads_of(table)[:, :2]
    assert np.average(found["accuracy"], weights=found["n"]) == pytest.approx((lead > 0).mean())
