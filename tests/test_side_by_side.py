"""Runs side by side: what they share is compared, and what they do not is said."""

import warnings

import pandas as pd
import pytest
from finished import DATA, NAME, finish

from sdslib.checks.notebooks import CompareConfig
from sdslib.io import storage
from sdslib.io.history import RunWarning
from sdslib.io.runs import find_run
from sdslib.io.wording import ParameterError
from sdslib.results import answers, comparison, formatting, settings, side_by_side
from sdslib.tables import TableError

ZERO = "mini-zeroshot-shape"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    finish(root, "clip-only", run="plain")
    finish(root, run="taught")
    finish(root, seed=1, items=50, run="short")
    finish(root, seed=2, data=DATA | {NAME: "other"}, run="other")
    finish(root, lr=0.5, data=DATA | {NAME: "x", ZERO: "x"}, run="far")
    return root


def test_only_items_and_sets_that_are_shared_are_compared(root):
    found = side_by_side.beside(["taught", "short"], root)
    table = side_by_side.differences(found)
    assert dict(table.groupby("set")["n"].first()) == {NAME: 50, ZERO: 50}
    assert f"{NAME}: 50 of 80 items are common, the others are left out." in found.left_out
    own, other = found.scores[NAME].values()
    assert list(own["id"]) == list(other["id"])
    expected = comparison.compare(other, own, by=()).loc[0, ["difference", "low", "high"]]
    assert table.loc[0, ["difference", "low", "high"]].equals(expected)
    shown = formatting.differences(table)
    assert shown.index.names == ["comparison", "set", "metric"]


def test_a_set_of_another_content_is_left_out_and_named(root):
    found = side_by_side.beside(["taught", "plain", "other"], root)
    assert f"{NAME}: of sds, seed 2 left out, its files have another content." in found.left_out
    table = side_by_side.differences(found)
    pairs = table.groupby("set")["comparison"].unique().map(len)
    assert dict(pairs) == {NAME: 1, ZERO: 2}
    far = side_by_side.beside(["taught", "far"], root)
    with pytest.raises(TableError, match=f"no set has items that these .* {NAME}: of .*lr 0.5"):
        side_by_side.differences(far)


def test_an_item_whose_candidates_differ_is_another_item(root):
    found = side_by_side.beside(["taught", "plain"], root)
    tables = found.scores[ZERO]
    odd = next(iter(tables.values())).copy()
    odd.loc[:9, "n_captions"] += 1
    assert {len(t) for t in side_by_side._on_common(tables | {"odd": odd}).values()} == {70}


def test_parameters_that_differ_stand_beside_each_other(root):
    found = side_by_side.beside(["taught", "far"], root)
    rows = side_by_side.parameters(found).set_index("parameter")
    assert list(rows.columns) == ["A", "B"]
    first, far = rows.loc["run"]
    own, other = found.runs
    assert found.legend == f"A is {own} (run {first}); B is {other} (run {far})."
    assert "lr 0.5" in other
    assert list(rows.loc["lr"]) == ["0.001", "0.5"]
    assert set(rows.index) == {"run", "lr"}


def test_a_file_of_scores_stands_beside_a_run(root, tmp_path):
    side_by_side.beside(["taught", "plain"], root).scores[NAME]["sds"].to_csv(
        tmp_path / "mine.csv", index=False
    )
    found = side_by_side.beside(["taught", tmp_path / "mine.csv"], root)
    table = side_by_side.differences(found)
    assert set(table["set"]) == {NAME}
    assert not table["difference"].any()
    assert f"{ZERO}: not scored by mine." in found.left_out


def test_files_of_one_name_are_told_apart_by_their_folders(root, tmp_path):
    scored = side_by_side.beside(["taught", "plain"], root).scores[NAME]
    for folder, table in zip("ab", scored.values(), strict=True):
        (tmp_path / folder).mkdir()
        table.to_csv(tmp_path / folder / "scores.csv", index=False)
    files = [tmp_path / folder / "scores.csv" for folder in "ab"]
    assert [*side_by_side.beside([*files, "taught"], root).runs][:2] == ["a/scores", "b/scores"]
    named = comparison.names_of([*files, tmp_path / "c.csv", tmp_path / "c.parquet"])
    assert [*named.values()] == ["a/scores", "b/scores", "c.csv", "c.parquet"]


def test_a_file_that_says_of_another_set_is_no_rival_on_this_one(root, tmp_path):
    table = find_run("taught", root).scores(NAME)
    table.attrs["benchmark"] = "colorswap"
    storage.write_frame(tmp_path / "other.parquet", table)
    found = side_by_side.beside(["taught", "plain", tmp_path / "other.parquet"], root)
    assert [*found.scores[NAME]] == [*found.runs][:2]
    assert f"{NAME}: not scored by other." in found.left_out


@pytest.mark.parametrize("again", [[], ["taught-"]])
def test_one_run_is_not_compared_with_itself(root, again):
    same = [next(root.glob(f"{name}*")) for name in again]
    with pytest.raises(ParameterError, match="two or more are needed to compare, got 1"):
        side_by_side.beside(["taught", *same], root)


def test_by_default_the_newest_with_a_control_stands_beside_it(root):
    found = side_by_side.chosen(CompareConfig(runs=str(root)))
    assert [run.params["arm"] for run in found.runs.values()] == ["sds", "clip-only"]
    assert [run.params["seed"] for run in found.runs.values()] == [0, 0]


def test_where_no_run_has_a_control_a_small_one_is_made_first(tmp_path, monkeypatch):
    finish(tmp_path)
    made = []
    monkeypatch.setattr(settings, "small", lambda *_: made.append(finish(tmp_path, "clip-only")))
    found = side_by_side.chosen(CompareConfig(runs=str(tmp_path)))
    assert list(found.runs) == ["sds", "L_CLIP only"]
    assert len(made) == 1


def test_a_run_without_readable_scores_is_listed_without(root, tmp_path):
    run = finish(tmp_path)
    (run.path / "scores" / f"{NAME}.parquet").write_bytes(b"")
    with pytest.warns(RunWarning, match="without scores: "):
        table = side_by_side.overview(tmp_path)
    assert pd.isna(table["score"].item())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert side_by_side.overview(root, sort="lr")["lr"].iloc[-1] == 0.5


def test_the_answer_counts_sets_and_claims_only_what_holds_over_all(root):
    table = side_by_side.differences(side_by_side.beside(["taught", "plain"], root))
    told = answers.beside(table, "mini-world")
    assert told.startswith(f"A against B (mini-world): no difference shown on {NAME}")
    sure = table.assign(p_holm=0.01, difference=0.1, low=0.05, high=0.15)
    words = f"{ZERO} accuracy by +10.0 points (+5.0 to +15.0), {ZERO} top5 by +10.0"
    assert words in answers.beside(sure)
    assert "ahead in none, behind in none" in answers.beside(sure.assign(p_holm=0.2, p=0.01))
