"""The published studies as tables and figures: the committed ones are those of the files."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest
from finished import finish
from PIL import Image

from sdslib.io.paths import project_root
from sdslib.results import publish, studies
from sdslib.results.settings import StudyError
from sdslib.show import figures, published

ROOT = project_root()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [finish(root, arm, seed) for arm in ("sds", "clip-only") for seed in (0, 1)]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    publish.study("small", runs[:2], folder)
    return folder


def test_tables_and_figures_are_the_same_each_time(folder, tmp_path):
    made = [published.rebuild(folder, tmp_path / n, tmp_path / n / "drawn") for n in ("a", "b")]
    parts = [f"small-{part}.csv" for part in ("scores", "differences", "by-tag", "gradients")]
    assert [path.name for path in made[0]] == [*parts, "small.md", "small.png"]
    for one, other in zip(*made, strict=True):
        assert one.read_bytes() == other.read_bytes()
    page = (tmp_path / "a" / "small.md").read_text()
    assert "mini-world, 2 seeds" in page
    scores = pd.read_csv(tmp_path / "a" / "small-scores.csv")
    share = scores[scores["measure"] == "text"].iloc[0]
    assert f"{100 * share['mean']:.1f}% (" in page
    with Image.open(tmp_path / "a" / "drawn" / "small.png") as picture:
        assert picture.width > 1000


def test_every_figure_of_a_page_lies_within_its_interval_and_every_range_runs_upwards(
    folder, tmp_path
):
    published.rebuild(folder, tmp_path, tmp_path)
    page, number = (tmp_path / "small.md").read_text().replace("−", "-"), r"[+-]?\d+\.\d+"
    intervals = re.findall(rf"({number})%? \(({number}) to ({number})\)", page)
    ranges = re.findall(rf"\| ({number}) to ({number}) \|", page)
    assert len(intervals) > 20
    assert len(ranges) > 8
    assert all(float(low) <= float(mean) <= float(high) for mean, low, high in intervals)
    assert all(float(low) <= float(high) for low, high in ranges)
    assert any(float(low) < float(high) for low, high in ranges)
    pairs = pd.read_csv(tmp_path / "small-differences.csv")
    assert (pairs["smallest"] <= pairs["difference"]).all()
    assert (pairs["difference"] <= pairs["largest"]).all()


def test_weights_are_a_curve_in_their_order(tmp_path):
    weights = (1e-3, 1e-4)
    made = [finish(tmp_path / "runs", "sds", sds_weight=weight) for weight in weights]
    made.append(finish(tmp_path / "runs", "clip-only"))
    publish.study("weights", made, tmp_path / "published")
    published.rebuild(tmp_path / "published", tmp_path / "t", tmp_path / "f")
    scores = pd.read_csv(tmp_path / "t" / "weights-scores.csv")
    assert list(dict.fromkeys(scores["setting"])) == ["L_CLIP only", "sds, 0.0001", "sds, 0.001"]
    assert (tmp_path / "f" / "weights.png").is_file()


def test_many_settings_are_bars_with_the_arms_beside_each_other(tmp_path, monkeypatch):
    names, drawn = ("all", "bias", "layernorm", "projection"), []
    arms = ("sds", "clip-only")
    made = [finish(tmp_path / "runs", arm, trainable=n) for arm in arms for n in names]
    publish.study("many", made, tmp_path / "published")
    draw = figures.bars_by_set

    def noted(table, *rest):
        drawn.append(table)
        return draw(table, *rest)

    monkeypatch.setattr(figures, "bars_by_set", noted)
    written = published.rebuild(tmp_path / "published", tmp_path / "t", tmp_path / "f")
    assert (tmp_path / "f" / "many.png") in written
    (table,) = drawn
    assert list(dict.fromkeys(table["set"])) == [f"trainable {n}" for n in names]
    assert list(dict.fromkeys(table["series"])) == ["L_CLIP only", "sds"]


def test_settings_stand_over_a_number_that_was_measured_of_them(tmp_path):
    inputs, weights = ("projected", "pooled", "tokens-4"), (1e-3, 1e-2)
    made = [finish(tmp_path / "runs", "sds", bridge_input=i, sds_weight=w)
            for i in inputs for w in weights]  # fmt: skip
    made.append(finish(tmp_path / "runs", "clip-only"))
    (tmp_path / "m.csv").write_text(
        "bridge_input,R2 of swaps\ntokens-4,.6\npooled,-.1\nprojected,0"
    )
    publish.study("dial", made, tmp_path / "published", tmp_path / "m.csv")
    found = publish.in_order(publish.published("dial", tmp_path / "published"))
    places = publish.places_in(tmp_path / "published" / "dial" / publish.PLACES)
    table = studies.placed(found, places)
    assert table["R2 of swaps"].tolist() == [-0.1, 0, 0.6] * 2
    assert list(dict.fromkeys(table["series"])) == ["sds_weight 0.001", "sds_weight 0.01"]
    told = studies.differences(found).query("against == 'L_CLIP only' and measure == 'text'")
    assert sorted(table["mean"]) == sorted(told["difference"])
    published.rebuild(tmp_path / "published", tmp_path / "t", tmp_path / "f")
    assert (tmp_path / "f" / "dial.png").is_file()
    with pytest.raises(StudyError, match=r"places has no R2 of swaps of bridge_input pooled$"):
        studies.placed(found, places.query("bridge_input != 'pooled'"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bridge_inputs,R2\npooled,1", "a parameter's values .* found bridge_inputs, R2"),
        ("bridge_input,R2\npooled,much", "a parameter's values and a number"),
        ("bridge_input\npooled", "a parameter's values and a number"),
        ("", "cannot be read"),
    ],
)
def test_a_table_of_places_that_is_none_is_refused_before_anything_is_kept(
    runs, tmp_path, text, said
):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(StudyError, match=said):
        publish.study("dial", runs, tmp_path / "published", tmp_path / "m.csv")
    assert not (tmp_path / "published").exists()


@pytest.fixture
def tuned(tmp_path):
    """Arms each with settings of its own, L_CLIP alone among them; two seeds."""
    own = {"clip-only": {"lr": 2e-3}, "hard-negatives": {"lr": 1e-3},
           "fsc-clip": {"lr": 1e-3, "negative_weight": 3.0, "negatives_each": 3},
           "sds": {"lr": 4e-3, "interpolation": 0.5}}  # fmt: skip
    return {arm: [finish(tmp_path / "tuned", arm, seed, 40, **values) for seed in (0, 1)]
            for arm, values in own.items()}  # fmt: skip


def test_arms_tuned_each_for_itself_stand_against_l_clip_alone_as_it_was_tuned(tuned, tmp_path):
    folder = tmp_path / "published"
    publish.study("tuned", [run for runs in tuned.values() for run in runs], folder)
    found = publish.in_order(publish.published("tuned", folder))
    labels = [setting.label for setting in found]
    assert labels == ["L_CLIP only", "fsc-clip", "hard-negatives", "sds"]
    controls = [run.name for run in tuned["clip-only"]]
    assert all([control.name for _, control in s.pairs] == controls for s in found)
    published.rebuild(folder, tmp_path / "tables", tmp_path / "drawn")
    page = (tmp_path / "tables" / "tuned.md").read_text()
    rows = page.split("## What was tuned for each arm")[1].split("##")[0]
    assert "| arm | interpolation | lr | negative_weight | sds_weight |" in rows
    assert "| sds | 0.5 | 0.004 |  | 0.001 |" in rows
    assert "| fsc-clip | 1 | 0.001 | 3 |  |" in rows


def test_of_two_ways_that_l_clip_alone_was_tuned_none_is_taken(tuned, tmp_path):
    other = finish(tmp_path / "tuned", "clip-only", 0, 40, lr=3e-3)
    with pytest.raises(StudyError, match="the same but for grad_clip, interpolation, lr"):
        publish.study("a", [*tuned["sds"], *tuned["clip-only"], other], tmp_path / "published")
    with pytest.raises(StudyError, match="the control of"):  # those beside are not of the study
        publish.study("a", tuned["sds"], tmp_path / "published")


FAST = ("gradient-route",)  # the others take a minute together


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in publish.names()]
)
def test_the_committed_tables_are_those_of_the_published_files(name, tmp_path):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / name).symlink_to(ROOT / publish.PUBLISHED / name)
    told, drawn = tmp_path / "tables", tmp_path / "figures"
    written = published.rebuild(tmp_path / "all", told, drawn)
    for path in (p for p in written if p.parent.name == "tables"):
        assert path.read_bytes() == (ROOT / published.TABLES / path.name).read_bytes(), path.name
    for path in (p for p in written if p.parent.name == "figures"):
        with Image.open(path) as new, Image.open(ROOT / published.FIGURES / path.name) as old:
            assert new.size == old.size


def test_no_table_is_left_of_a_study_that_is_not_published():
    ends = ("-by-tag.csv", "-differences.csv", "-gradients.csv", "-scores.csv", ".md")
    names = {path.name for path in (ROOT / published.TABLES).iterdir()}
    assert names == {name + end for name in publish.names() for end in ends}


def test_the_command_publishes_by_name_and_by_summary(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "rebuild", lambda: [])
    monkeypatch.setattr(publish, "PUBLISHED", str(tmp_path))
    root = str(runs[0].path.parent)
    assert published.main(["study", "one", runs[0].name, "--runs", root]) == 0
    assert len(publish.published("one", tmp_path)) == 2
    summary = tmp_path / "summary.parquet"
    pd.DataFrame({"run": [r.name for r in runs[:2]]}).to_parquet(summary)
    assert published.main(["study", "two", str(summary), "--runs", root]) == 0
    assert len(publish.published("two", tmp_path)) == 4
    pd.DataFrame({"run": ["mini-sds-0000000000", None]}).to_parquet(summary)
    assert published.main(["study", "three", str(summary), "--runs", root]) == 3
    assert "2 of its runs are not there, as mini-sds-0000000000" in capsys.readouterr().err


def test_the_command_rebuilds_the_tables_without_torch(tmp_path):
    code = (
        "import sys; from sdslib.show import published; published.rebuild = lambda: [];"
        "sys.exit(published.main(['tables']) or int('torch' in sys.modules))"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env).returncode == 0
