"""Runs by setting and seed: who belongs together, and figures that agree with the rooms below."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from finished import finish

from sdslib import metrics, studies, tables
from sdslib.runs import Run
from sdslib.studies import StudyError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two weights and the control, two seeds each, in no order."""
    root = tmp_path_factory.mktemp("runs")
    return [
        *(
            finish(root, "sds", seed, sds_weight=weight)
            for weight in (1e-2, 1e-3)
            for seed in (1, 0)
        ),
        *(finish(root, "clip-only", seed) for seed in (1, 0)),
    ]


@pytest.fixture(scope="module")
def found(runs):
    return studies.settings(studies.paired(runs))


def test_runs_that_differ_in_their_seed_are_one_setting(found):
    assert [setting.label for setting in found] == ["sds, 0.01", "sds, 0.001", "L_CLIP only"]
    assert [[run.params["seed"] for run in setting.runs] for setting in found] == [[0, 1]] * 3


def test_every_run_stands_beside_its_own_control(found):
    for setting in found:
        for run, control in setting.pairs:
            assert control.params["arm"] == "clip-only"
            assert control.params["seed"] == run.params["seed"]
    assert found[2].runs == found[2].controls


def test_a_run_without_its_control_is_named(runs):
    with pytest.raises(StudyError, match="the control of mini-sds-"):
        studies.paired(runs[:1])


def test_a_control_is_found_by_parameters_and_data_and_of_several_by_code(tmp_path):
    taught, plain = (finish(tmp_path, arm, items=4) for arm in ("sds", "clip-only"))
    for other in ({"warmup": 3}, {"lr": 0.5}, {"data": {"pairs": "zz"}}):
        finish(tmp_path, "clip-only", items=4, **other)
    among = [Run(path.parent) for path in tmp_path.glob("*/identity.json")]
    assert studies.Controls(among).of(taught).path == plain.path
    assert studies.Controls([]).of(taught) is None
    assert studies.Controls([]).of(plain) is plain
    newer = Run(shutil.copytree(plain.path, tmp_path / "newer"))
    newer.keep("identity.json", json.dumps(plain.identity | {"code": {}}).encode())
    assert studies.Controls([newer, *among]).of(taught).path == plain.path
    assert studies.Controls([newer]).of(taught) is newer


def test_labels_say_what_differs_and_nothing_else(tmp_path):
    cases = [{}, {"trainable": "bias"}, {"train_pairs": 1024}]
    made = [finish(tmp_path, "clip-only", 0, **case) for case in cases]
    labels = [setting.label for setting in studies.settings(studies.paired(made))]
    assert labels == [
        "L_CLIP only, trainable layernorm, train_pairs all",
        "L_CLIP only, trainable bias, train_pairs all",
        "L_CLIP only, trainable layernorm, train_pairs 1024",
    ]


def test_a_mean_is_that_of_all_seeds_and_its_interval_the_bootstrap_over_both(found):
    table = studies.means(found)
    assert table["measure"].unique().tolist() == ["text", "zero-shot shape"]
    right = [tables.outcomes(run.scores("mini-winoground"))["text"] for run in found[0].runs]
    row = table.iloc[0]
    assert row["mean"] == pytest.approx(np.mean(right))
    share = metrics.over_seeds(np.array(right, dtype=float), 0)
    assert (row["low"], row["high"]) == pytest.approx((share.low, share.high), abs=0.03)
    before = tables.outcomes(found[0].runs[0].scores("untouched-mini-winoground"))["text"]
    assert row["reference"] == pytest.approx(before.mean())
    assert studies.means(found, ["text"])["measure"].unique().tolist() == ["text"]


def test_a_reference_that_was_not_kept_is_left_open(tmp_path):
    run = finish(tmp_path, "clip-only")
    (run.path / "scores" / "untouched-mini-zeroshot-shape.parquet").unlink()
    found = studies.settings(studies.paired([run]))
    assert studies.means(found)["reference"].isna().tolist() == [False, True]
    assert "zero-shot shape" not in studies.differences(found)["measure"].tolist()


def test_differences_are_paired_with_the_untouched_student_and_the_control(found):
    table = studies.differences(found)
    own = table[(table["setting"] == "sds, 0.01") & (table["measure"] == "text")]
    assert own["against"].tolist() == ["untouched", "L_CLIP only"]
    name, setting = "mini-winoground", found[0]
    want = tables.compare_over_seeds(
        [control.scores(name) for control in setting.controls],
        [run.scores(name) for run in setting.runs],
    ).iloc[0]
    got = own.iloc[1]
    for column in ("before", "after", "difference", "low", "high", "smallest", "largest"):
        assert got[column] == pytest.approx(want[column])
    assert "L_CLIP only" not in table[table["setting"] == "L_CLIP only"]["against"].tolist()


def test_every_metric_of_the_reported_set_can_be_compared(found):
    table = studies.differences(found[:1], every_metric=True)
    assert table[table["measure"] == "text"]["metric"].unique().tolist() == [
        "text",
        "image",
        "group",
    ]
    assert table[table["measure"] != "text"]["metric"].unique().tolist() == ["accuracy"]


def test_tags_are_those_of_the_items(found):
    table = studies.by_tag(found)
    assert table["model"].unique().tolist() == [
        "untouched",
        "sds, 0.01",
        "sds, 0.001",
        "L_CLIP only",
    ]
    scores = found[0].runs[0].scores("mini-winoground")
    sizes = scores["collapsed_tag"].value_counts()
    rows = table[(table["model"] == "sds, 0.01") & (table["metric"] == "text")]
    assert dict(zip(rows["label"], rows["n"], strict=True)) == {"all": len(scores)} | dict(sizes)
    whole = rows[rows["label"] == "all"]["accuracy"].iloc[0]
    parts = rows[rows["label"] != "all"]
    assert whole == pytest.approx(np.average(parts["accuracy"], weights=parts["n"]))


def test_the_gradients_ratio_is_the_median_of_a_run_and_the_range_over_seeds(found):
    table = studies.gradient_ratio(found)
    assert table["setting"].tolist() == ["sds, 0.01", "sds, 0.001"]
    medians = [pd.Series(run.history()["grad_ratio"]).median() for run in found[0].runs]
    row = table.iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((min(medians), max(medians)))
    assert studies.gradient_ratio(found[2:]).empty


def test_settings_of_one_arm_over_its_weight_are_a_curve_from_weight_0(found, tmp_path):
    assert studies.is_curve(found)
    assert not studies.is_curve(found[:2])
    other = finish(tmp_path, "clip-only", trainable="bias")
    assert not studies.is_curve([*found, *studies.settings(studies.paired([other]))])
    table, shares = studies.curve(found), studies.means(found)
    assert table.loc[table["measure"] == "text", "sds_weight"].tolist() == [1e-2, 1e-3, 0]
    same = table[table["measure"] != "gradient ratio"]["mean"].to_numpy()
    np.testing.assert_array_equal(same, shares["mean"])
    ratios = table[table["measure"] == "gradient ratio"]
    assert ratios["mean"].tolist() == studies.gradient_ratio(found)["mean"].tolist()
