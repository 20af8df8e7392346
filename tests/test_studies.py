"""Runs by setting and seed: who belongs together, and figures that agree with the rooms below."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from finished import finish

from sdslib import tables
from sdslib.config import FinetuneConfig
from sdslib.io.run import Run
from sdslib.io.runs import find_run, open_run
from sdslib.results import comparison, settings, statistics, studies
from sdslib.results.settings import StudyError
from sdslib.show import figures


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two weights and the control, two seeds each, in no order."""
    root = tmp_path_factory.mktemp("runs")
    return [
        *(finish(root, "sds", seed, sds_weight=w) for w in (1e-2, 1e-3) for seed in (1, 0)),
        *(finish(root, "clip-only", seed) for seed in (1, 0)),
    ]


@pytest.fixture(scope="module")
def found(runs):
    return settings.settings(settings.paired(runs))


def test_runs_that_differ_in_their_seed_are_one_setting(found):
    assert [setting.label for setting in found] == ["sds, 0.01", "sds, 0.001", "L_CLIP only"]
    assert [[run.params["seed"] for run in setting.runs] for setting in found] == [[0, 1]] * 3


def test_every_run_stands_beside_its_own_control(found):
    for setting in found:
        for run, control in setting.pairs:
            assert control.params["arm"] == "clip-only"
            assert control.params["seed"] == run.params["seed"]
    assert all(run is control for run, control in found[2].pairs)


def test_a_run_without_its_control_is_named(runs):
    with pytest.raises(StudyError, match="the control of mini-sds-"):
        settings.paired(runs[:1])


def test_a_control_is_found_by_parameters_and_data_and_of_several_by_recipe(tmp_path):
    taught, plain = (finish(tmp_path, arm, items=4) for arm in ("sds", "clip-only"))
    for other in ({"warmup": 3}, {"lr": 0.5}, {"data": {"pairs": "zz"}}):
        finish(tmp_path, "clip-only", items=4, **other)
    among = [Run(path.parent) for path in tmp_path.glob("*/identity.json")]
    assert settings.Controls(among).of(taught).path == plain.path
    assert settings.Controls([]).of(taught) is None
    assert settings.Controls([]).of(plain) is plain
    newer = Run(shutil.copytree(plain.path, tmp_path / "newer"))
    newer.keep("identity.json", json.dumps(plain.identity | {"recipe": 0}).encode())
    assert settings.Controls([newer, *among]).of(taught).path == plain.path
    assert settings.Controls([newer]).of(taught) is newer


def test_labels_say_what_differs_and_nothing_else(tmp_path):
    cases = [{}, {"trainable": "bias"}, {"train_pairs": 1024}]
    made = [finish(tmp_path, "clip-only", 0, **case) for case in cases]
    labels = [setting.label for setting in settings.settings(settings.paired(made))]
    assert labels == [
        "L_CLIP only, trainable layernorm, train_pairs all",
        "L_CLIP only, trainable bias, train_pairs all",
        "L_CLIP only, trainable layernorm, train_pairs 1024",
    ]


def test_the_untouched_student_stands_beside_every_mean(found):
    table = studies.means(found)
    assert table["measure"].unique().tolist() == ["text", "zero-shot shape"]
    before = tables.outcomes(found[0].runs[0].scores("untouched-mini-winoground"))["text"]
    assert table["reference"][0] == pytest.approx(before.mean())


def test_a_reference_that_was_not_kept_is_left_open(tmp_path):
    run = finish(tmp_path, "clip-only")
    (run.path / "scores" / "untouched-mini-zeroshot-shape.parquet").unlink()
    found = settings.settings(settings.paired([run]))
    assert studies.means(found)["reference"].isna().tolist() == [False, True]
    assert "zero-shot shape" not in studies.differences(found)["measure"].tolist()


def test_differences_are_paired_with_the_untouched_student_and_the_control(found):
    table = studies.differences(found)
    own = table[(table["setting"] == "sds, 0.01") & (table["measure"] == "text")]
    assert own["against"].tolist() == ["untouched", "L_CLIP only"]
    name, setting = "mini-winoground", found[0]
    want = comparison.compare_over_seeds(
        [control.scores(name) for _, control in setting.pairs],
        [run.scores(name) for run in setting.runs],
    ).iloc[0]
    got = own.iloc[1]
    for column in ("before", "after", "difference", "low", "high", "smallest", "largest"):
        assert got[column] == pytest.approx(want[column])
    assert "L_CLIP only" not in table[table["setting"] == "L_CLIP only"]["against"].tolist()


LABELS = ("Object", "Relation", "Both")


def answered(rng, items=30):
    """A score table of random text outcomes whose rows stand in an order of their own."""
    right = rng.random(items) < rng.uniform(0.3, 0.7)
    table = pd.DataFrame({"id": [f"{n:02d}" for n in range(items)], "answer": pd.NA})
    table = table.assign(collapsed_tag=[LABELS[n % 3] for n in range(items)])
    table = table.assign(n_images=2, n_captions=2, s_0_0=np.where(right, 1.0, 0.0), s_0_1=0.5)
    table = table.assign(s_1_0=0.25, s_1_1=0.75, answer=table["answer"].astype("Int64"))
    return table.iloc[rng.permutation(items)].reset_index(drop=True)


def right_by_id(run, name):
    """Text outcomes of a run in the order of the ids, from the scores themselves."""
    table = run.scores(name).set_index("id").sort_index()
    return ((table["s_0_0"] > table["s_0_1"]) & (table["s_1_1"] > table["s_1_0"])).to_numpy(float)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Three seeds whose scores, items' order and untouched student all differ, and controls."""
    root, rng = tmp_path_factory.mktemp("apart"), np.random.default_rng(3)
    for arm, seed in itertools.product(("sds", "clip-only"), range(3)):
        run = open_run(FinetuneConfig(arm=arm, seed=seed, runs=str(root)), {}, root)
        with run:
            for name in ("mini-winoground", "untouched-mini-winoground"):
                run.save_scores(name, answered(rng))
            run.finish()
    made = [find_run(path, root) for path in sorted(root.glob("mini-*"))]
    return settings.settings(settings.paired(made))


def test_means_are_of_the_items_by_id_and_of_every_seed(apart):
    table = studies.means(apart)
    for setting, row in zip(apart, table.itertuples(), strict=True):
        right = np.array([right_by_id(run, "mini-winoground") for run in setting.runs])
        share = statistics.over_seeds(right, 0)
        assert (row.seeds, row.n) == (3, 30)
        assert row.mean == pytest.approx(right.mean())
        assert (row.low, row.high) == pytest.approx((share.low, share.high))


def test_each_seed_is_held_against_its_own_untouched_student_and_control(apart):
    table = studies.differences(apart).set_index(["setting", "against"])
    setting = next(s for s in apart if s.values["arm"] == "sds")
    after = [right_by_id(run, "mini-winoground") for run in setting.runs]
    others = {
        "untouched": [right_by_id(run, "untouched-mini-winoground") for run in setting.runs],
        "L_CLIP only": [right_by_id(run, "mini-winoground") for _, run in setting.pairs],
    }
    for against, before in others.items():
        change, row = np.array(after) - np.array(before), table.loc[(setting.label, against)]
        single = change.mean(axis=1)
        assert len(set(np.round(single, 6))) == 3
        assert row["before"] == pytest.approx(np.mean(before))
        assert row["difference"] == pytest.approx(change.mean())
        assert (row["smallest"], row["largest"]) == pytest.approx((single.min(), single.max()))


def test_figures_by_tag_are_of_the_items_that_carry_it_and_of_every_seed(apart):
    table = studies.by_tag(apart).query("metric == 'text'").set_index(["model", "label"])
    for setting in apart:
        right = np.array([right_by_id(run, "mini-winoground") for run in setting.runs])
        parts = [("all", slice(None)), *((x, slice(n, None, 3)) for n, x in enumerate(LABELS))]
        for label, index in parts:
            row = table.loc[(setting.label, label)]
            share = statistics.over_seeds(right[:, index], 0)
            assert (row["seeds"], row["n"]) == (3, share.n)
            assert row["accuracy"] == pytest.approx(share.mean)
            assert (row["low"], row["high"]) == pytest.approx((share.low, share.high))
    for run in apart[0].runs:
        assert studies.outcomes(run, "mini-winoground")["text"].tolist() == list(
            right_by_id(run, "mini-winoground")
        )


def test_what_a_run_is_chosen_on_is_not_among_what_it_is_judged_by(tmp_path):
    run = open_run(FinetuneConfig(arm="clip-only", runs=str(tmp_path)), {}, tmp_path)
    with run:
        for name in ("validation", "mini-winoground", "mini-other", "untouched-mini-other"):
            run.save_scores(name, answered(np.random.default_rng(0)))
        run.finish()
    assert studies.measures(settings.Setting("", ((run, run),))) == {
        "text": ("mini-winoground", "text"),
        "other": ("mini-other", "text"),
    }
    control = open_run(FinetuneConfig(arm="clip-only", seed=9, runs=str(tmp_path)), {}, tmp_path)
    with control:
        control.save_scores("mini-winoground", answered(np.random.default_rng(0)))
        control.finish()
    found = studies.measures(settings.Setting("", ((run, control),)))
    assert found == {"text": ("mini-winoground", "text")}


def test_the_ratio_of_a_run_is_its_median_over_the_steps(tmp_path):
    run = open_run(FinetuneConfig(runs=str(tmp_path)), {}, tmp_path)
    with run:
        for step, ratio in enumerate((0.5, None, 0.1, 9.0, None), 1):
            run.append_history({"step": step, "grad_ratio": ratio})
        run.finish()
    setting = settings.Setting("sds", ((run, run),))
    row = studies.gradient_ratio([setting]).iloc[0]
    assert (row["mean"], row["low"], row["high"]) == (0.5, 0.5, 0.5)


def test_every_metric_of_the_reported_set_can_be_compared(found):
    table = studies.differences(found[:1], every_metric=True)
    own = table[table["measure"] == "text"]["metric"]
    assert own.unique().tolist() == ["text", "image", "group"]
    assert table[table["measure"] != "text"]["metric"].unique().tolist() == ["accuracy"]


def test_tags_are_those_of_the_items(found):
    table = studies.by_tag(found)
    names = ["untouched", "sds, 0.01", "sds, 0.001", "L_CLIP only"]
    assert table["model"].unique().tolist() == names
    scores = found[0].runs[0].scores("mini-winoground")
    sizes = scores["collapsed_tag"].value_counts()
    rows = table[(table["model"] == "sds, 0.01") & (table["metric"] == "text")]
    assert dict(zip(rows["label"], rows["n"], strict=True)) == {"all": len(scores)} | dict(sizes)


def test_the_gradients_ratio_is_the_median_of_a_run_and_the_range_over_seeds(found):
    table = studies.gradient_ratio(found)
    assert table["setting"].tolist() == ["sds, 0.01", "sds, 0.001"]
    medians = [pd.Series(run.history()["grad_ratio"]).median() for run in found[0].runs]
    row = table.iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((min(medians), max(medians)))
    assert studies.gradient_ratio(found[2:]).empty


def test_settings_of_one_arm_over_its_weight_are_a_curve_from_weight_0(found, tmp_path):
    assert studies.dial(found) == "sds_weight"
    assert studies.dial(found[:2]) is None
    other = finish(tmp_path, "clip-only", trainable="bias")
    assert studies.dial([*found, *settings.settings(settings.paired([other]))]) is None
    table, shares = studies.curve(found), studies.means(found)
    assert table.loc[table["measure"] == "text", "sds_weight"].tolist() == [1e-2, 1e-3, 0]
    same = table[table["measure"] != "gradient ratio"]["mean"].to_numpy()
    np.testing.assert_array_equal(same, shares["mean"])
    ratios = table[table["measure"] == "gradient ratio"]
    assert ratios["mean"].tolist() == studies.gradient_ratio(found)["mean"].tolist()


def test_arms_over_another_number_are_a_curve_each(tmp_path):
    def made(*noises):
        runs = [finish(tmp_path, arm, caption_noise=noise)
                for noise in noises for arm in ("clip-only", "hard-negatives")]  # fmt: skip
        return settings.settings(settings.paired(runs))

    three = made(0.0, 0.3, 0.45)
    assert studies.dial(three[:4]) is None
    assert studies.dial(three) == "caption_noise"
    table = studies.curve(three, "caption_noise").query("measure == 'text'")
    assert [*zip(table["series"], table["caption_noise"], strict=True)] == [
        (arm, noise) for noise in (0, 0.3, 0.45) for arm in ("L_CLIP only", "hard-negatives")
    ]
    ax = figures.tradeoff(table, over="caption_noise").axes[0]
    assert (ax.get_xscale(), ax.get_xlabel()) == ("linear", "caption_noise")
