"""One command, one table: every set at hand, and what is not here with the way to get it."""

import numpy as np
import pandas as pd
import pytest
import test_choices
import test_grids

from sdslib import evaluate, tables
from sdslib.benchmarks import load_benchmark
from sdslib.lab import baseline, scoreboard
from sdslib.sets.text_only import LengthScorer

MADE = test_grids.MADE | test_choices.MADE


@pytest.fixture(scope="module")
def board(photos, tmp_path_factory):
    """Every set beside Winoground's kin, as its authors lay it out, by a tiny CLIP."""
    root, said = tmp_path_factory.mktemp("sets"), []
    sources = [f"{name}:{make(root / name)}" for name, make in MADE.items()]
    given = {
        "preset": "paper", "clip_model": photos.clip_model, "corpus": photos.train_data,
        "benchmark": ",".join([*sources, photos.winoground, photos.sugarcrepe, "flickr-order"]),
        "runs": str(root / "runs"), "device": "cpu",
    }  # fmt: skip
    words = [word for name, value in given.items() for word in ("-p", name, value)]
    file = root / "board.csv"
    assert scoreboard.main([*words, "--table", str(file)], said.append) == 0
    (results,) = (root / "runs").glob("*/results.parquet")
    return pd.read_csv(file), said, pd.read_parquet(results)


def test_every_set_has_its_figures_and_what_papers_quote_is_marked(board):
    table, said, _ = board
    assert set(table["set"]) == {*MADE, "winoground", "sugarcrepe"}
    quoted = table[table["quoted"]].groupby("set")[["metric", "over"]].agg(list)
    assert quoted.loc["mmvp"].tolist() == [["image"], ["macro"]]
    assert quoted.loc["cola"].tolist() == [["image"], ["all"]]
    assert quoted.loc["bivlc"].tolist() == [["text", "image", "group"], ["all"] * 3]
    assert quoted.loc["sugarcrepe++", "metric"] == ["image-to-text", "text-to-text"]
    assert quoted.loc["whatsup"].tolist() == [["accuracy", "pair", "set"], ["macro", "all", "all"]]
    assert quoted.loc["valse"].tolist() == [["accuracy"], ["macro"]]
    assert (table["low"] <= table["value"]).all()
    assert (table["value"] <= table["high"]).all()
    assert table["chance"].between(0, 0.5).all()
    assert table["partial"].all()
    assert said[0].startswith("not here  flickr-order: ")
    assert len(said[-1].splitlines()) == 1 + len(table)


def test_what_captions_alone_reach_stands_beside_the_sets_that_captions_can_solve(board):
    table = board[0].set_index(["set", "metric", "over"])["captions only"]
    for name in ("sugarcrepe", "valse", "negbench", "whatsup"):
        assert 0 <= table[name, "accuracy", "all"] <= 1
    assert not np.isnan(table["sugarcrepe++", "image-to-text", "all"])
    assert np.isnan(table["sugarcrepe++", "text-to-text", "all"])
    assert table["bivlc"].eq(0).all()
    found = board[2]
    found = found[found["model"].isin(baseline.BLIND) & found["label"].eq("all")]
    for name, part in found[found["metric"] == "accuracy"].groupby("set"):
        assert table[name, "accuracy", "all"] == part["accuracy"].max().round(4)
    assert found.groupby("set")["accuracy"].nunique().max() > 1  # else best and worst are one


@pytest.mark.parametrize("name", test_grids.MADE)
def test_a_scorer_that_sees_no_image_has_nothing_right_of_a_grid(tmp_path, name):
    """Which is why the table says 0 and does not run one."""
    found = load_benchmark(f"{name}:{MADE[name](tmp_path)}")
    right = tables.outcomes(evaluate.score_grids(LengthScorer(), found))
    assert {metric: values.sum() for metric, values in right.items()} == dict.fromkeys(right, 0)


def test_a_command_without_any_set_says_which_it_looked_for(capsys):
    words = ["-p", "preset", "paper", "-p", "benchmark", "bivlc,cola"]
    assert scoreboard.main(words) == 3
    told = capsys.readouterr().err
    assert "no benchmark is at hand" in told
    assert "give bivlc:imirandam/BiVLC" in told
    assert scoreboard.main(["-p", "benchmrk", "all"]) == 2
    assert "did you mean 'benchmark'?" in capsys.readouterr().err
