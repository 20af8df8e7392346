"""Tables as people read them, against the fractions that they come from."""

import pandas as pd
import pytest

from sdslib import guard
from sdslib.results import formatting


@pytest.fixture
def table():
    """Two models by metric and tag; the teacher scored a part of the items."""
    rows = [
        ("student", "all", "all", "text", 1200, 0.2217, 0.1991, 0.246, 3, 0.25),
        ("student", "num_main_preds", "1", "text", 974, 0.2269, 0.2017, 0.2542, 2, 0.25),
        ("student", "num_main_preds", "2", "text", 226, 0.1991, 0.1523, 0.256, 1, 0.25),
        ("teacher", "all", "all", "text", 6, 1.0, 0.6097, 1.0, 1, 0.25),
        ("teacher", "num_main_preds", "1", "text", 6, 1.0, 0.6097, 1.0, None, 0.25),
    ]
    names = ["model", "tag", "label", "metric", "n", "accuracy", "low", "high", "ties", "chance"]
    return pd.DataFrame(rows, columns=names)


def test_models_stand_side_by_side_and_a_part_is_called_one(table):
    told = formatting.shares(table)
    assert list(told.index.names) == ["metric", "label"]
    assert list(told.columns) == ["items", "student", "teacher", "chance", "ties"]
    whole = told.loc[("text", "all")]
    shares = ["22.2% (19.9 to 24.6)", "100.0% (61.0 to 100.0) of 6", "25.0%"]
    assert whole.tolist() == [1200, *shares, 4]
    assert told.loc[("text", "1 predicate"), "ties"] == 2
    assert told.loc[("text", "2 predicates"), "teacher"] == ""


def test_every_row_of_a_table_of_sets_is_told_once():
    rows = [
        ("colors", "student", "accuracy", 320, 1.0, 0.988, 1.0),
        ("colors", "tuned", "accuracy", 320, 0.5, 0.45, 0.55),
        ("shapes", "student", "accuracy", 240, 0.9, 0.85, 0.93),
    ]
    names = ["set", "model", "metric", "n", "accuracy", "low", "high"]
    told = formatting.shares(pd.DataFrame(rows, columns=names))
    assert list(told.columns) == ["items", "student", "tuned"]
    assert told.loc[("colors", "accuracy"), "tuned"] == "50.0% (45.0 to 55.0)"
    assert told.loc[("shapes", "accuracy"), "tuned"] == ""


def test_labels_of_two_tags_that_are_one_word_stay_two_rows():
    rows = [
        (model, tag, "red", "accuracy", n, accuracy, 0.0, 1.0)
        for model, accuracy in (("student", 0.5), ("tuned", 0.75))
        for tag, n in (("first", 8), ("second", 4))
    ]
    names = ["model", "tag", "label", "metric", "n", "accuracy", "low", "high"]
    told = formatting.shares(pd.DataFrame(rows, columns=names))
    assert told["items"].tolist() == [8, 4]
    assert told["student"].tolist() == ["50.0% (0.0 to 100.0)"] * 2
    assert told["tuned"].tolist() == ["75.0% (0.0 to 100.0)"] * 2


def test_differences_are_points_with_flips():
    row = {
        "comparison": "b against a", "tag": "all", "label": "all", "metric": "text", "n": 60,
        "difference": -0.05, "low": -0.1, "high": 0.02, "p": 0.0004, "p_holm": 0.25, "up": 1,
        "down": 4, "mdd": 0.1,
    }  # fmt: skip
    words = [60, "−5.0 (−10.0 to +2.0)", "0.375", "0.250", "+1/−4", "10.0"]
    told = formatting.differences(pd.DataFrame([row | {"p": 0.375}]))
    assert told.loc[("b against a", "text", "all")].tolist() == words
    apart = formatting.differences(pd.DataFrame([row])).iloc[0]  # p 0.0004
    assert apart["p"] == "<0.001"
    assert "disagree over 5 flips: nothing is claimed" in apart["remark"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"n": 60, "low": 0.0, "high": 0.0}, "no item changed"),
        ({"n": 5, "low": -0.1, "high": 0.1}, "5 items are too few for an interval"),
    ],
)
def test_an_interval_that_means_nothing_is_a_dash_with_the_reason(row, said):
    row |= {"setting": "s", "measure": "m", "against": "u", "difference": 0.0, "seeds": 1}
    found = formatting.over_seeds(pd.DataFrame([row | {"smallest": 0.0, "largest": 0.0}]))
    assert found.iloc[0].tolist() == [1, row["n"], f"+0.0 (–: {said})", "–"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"accuracy": 0.5, "low": 0.5, "high": 0.5}, "50.0% (–: each label all right or all wrong"),
        ({"accuracy": 0.0, "low": 0.0, "high": 0.1, "ties": 60}, "0.0% (–: all tied"),
        ({"accuracy": 0.5, "low": 0.4, "high": 0.6, "ties": pd.NA}, "50.0% (40.0 to 60.0"),
    ],
)
def test_a_share_whose_items_say_nothing_of_its_spread_has_a_dash(row, said):
    row |= {"model": "a", "metric": "text", "n": 60}
    assert formatting.shares(pd.DataFrame([row])).loc["text", "a"] == f"{said})"


@pytest.mark.parametrize(
    ("column", "label", "words"),
    [
        ("num_main_preds", "1", "1 predicate"),
        ("num_main_preds", "2", "2 predicates"),
        ("way", "3", "way 3"),
        ("collapsed_tag", "Object", "Object"),
    ],
)
def test_labels_are_words(column, label, words):
    assert formatting.tag(column, label) == words


def test_shares_turn_into_percent_and_the_rest_stays(table):
    told = formatting.percent(table, "accuracy", "chance")
    assert told["accuracy"].tolist()[:2] == ["22.2%", "22.7%"]
    assert told["low"].tolist() == table["low"].tolist()


def test_long_words_stay_whole_and_escaped():
    long = "/" + "folder/" * 20 + "<b>.html"
    shown = formatting.listing(pd.DataFrame({"file": [long]})).data
    assert "/" + "folder/" * 20 + "&lt;b&gt;.html" in shown


def test_a_table_without_rows_says_so():
    shown = formatting.listing(pd.DataFrame(columns=["set", "why"]), "Every <set> is at hand.").data
    assert shown == "<p>Every &lt;set&gt; is at hand.</p>"


def test_means_over_seeds_keep_their_keys_and_plain_numbers():
    rows = [
        (0.001, "text", 2, 12, 0.25, 0.2, 0.3, 0.22),
        (0.001, "gradient ratio", 2, None, 0.0668, 0.06, 0.07, None),
    ]
    names = ["sds_weight", "measure", "seeds", "n", "mean", "low", "high", "reference"]
    told = formatting.means(pd.DataFrame(rows, columns=names))
    text, ratio = (told.loc[(0.001, name)].tolist() for name in ("text", "gradient ratio"))
    assert text == [2, 12, "25.0% (20.0 to 30.0)", "22.0%"]
    assert ratio == [2, "", "0.0668 (0.06 to 0.07)", ""]


def test_differences_over_seeds_tell_those_of_single_seeds():
    row = {
        "setting": "sds", "measure": "text", "against": "untouched", "seeds": 5, "n": 1200,
        "difference": 0.003, "low": -0.009, "high": 0.015, "smallest": -0.01, "largest": 0.02,
    }  # fmt: skip
    other = row | {"against": "L_CLIP only", "difference": -0.001}
    alone = row | {"setting": "L_CLIP only"}
    told = formatting.over_seeds(pd.DataFrame([alone, row, other]))
    assert told.columns.tolist() == [
        "seeds", "items", "against untouched", "single seeds, untouched",
        "against L_CLIP only", "single seeds, L_CLIP only",
    ]  # fmt: skip
    assert told.loc[("sds", "text")].tolist() == [
        5, 1200, "+0.3 (−0.9 to +1.5)", "−1.0 to +2.0", "−0.1 (−0.9 to +1.5)", "−1.0 to +2.0",
    ]  # fmt: skip
    assert told.loc[("L_CLIP only", "text")].tolist()[4:] == ["", ""]
    assert formatting.over_seeds(pd.DataFrame()).empty


def test_what_is_not_there_is_blank():
    table = pd.DataFrame({"arm": ["untouched", "sds"], "text": [0.2, 0.3], "gain": [None, 0.1]})
    assert formatting.percent(table)["gain"].tolist() == ["", "10.0%"]


def test_only_what_varies_is_listed():
    table = pd.DataFrame({"run": ["a", "b"], "state": "finished", "seed": 0, "arm": ["x", "y"]})
    assert list(formatting.varying(table, "state")) == ["run", "state", "arm"]


def test_the_settings_in_force_say_what_the_preset_gave_and_what_was_asked():
    namespace = {"lr": 0.01, "epochs": 2, "sds_weight": 0, "seed": 0, "steps": None, "arm": None}
    config = guard(namespace)
    told = formatting.settings_table(config, namespace["_guarded"]).set_index("parameter")
    assert list(told.index[:6]) == [name for name in namespace if name != "_guarded"]
    wanted = {
        "lr": ["0.01", "0.001", "0.01"],
        "epochs": ["2", "None", "2"],
        "steps": ["None", "150", ""],
        "arm": ["clip-only", "sds", ""],
        "sds_weight": ["0.0", "0.001", "0"],
        "seed": ["0", "0", ""],
        "warmup": ["15", "15", ""],
    }
    assert {name: told.loc[name].tolist() for name in wanted} == wanted
    page = formatting.in_force(config, namespace | {"threads": None}).data
    shown, _, folded = page.partition("<details>")
    assert "<td>warmup</td>" in folded
    assert "<td>arm</td>" in shown
    changed = formatting.in_force(guard({"warmup": 3}), {"_guarded": {"warmup": 3}}).data
    assert "<td>warmup</td>" in changed[:2000]


@pytest.mark.parametrize(
    ("rows", "kept"),
    [("ax ay", ["b"]), ("ax bx", ["a"]), ("ax by", ["a", "b"]), ("ax", ["a", "b"])],
)
def test_a_level_in_which_all_rows_agree_is_left_out_but_never_all_of_them(rows, kept):
    index = pd.MultiIndex.from_tuples([tuple(row) for row in rows.split()], names=["a", "b"])
    assert list(formatting.narrowed(pd.DataFrame({"n": 1}, index)).index.names) == kept
