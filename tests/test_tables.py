"""Score tables: grids from files, figures worked out by hand, paired comparisons."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sdslib import metrics, tables
from sdslib.results import comparison, statistics

# Six items, cells c<caption>_i<image> as Winoground's authors name them. By hand (text, image,
# group): 0 yes yes yes, 1 yes no no, 2 no yes no, 3 no no no, 4 only ties, 7 yes yes yes.
GRID = """id,collapsed_tag,num_main_preds,diwan_tags,c0_i0,c0_i1,c1_i0,c1_i1
0,Object,1,,0.9,0.1,0.2,0.8
1,Object,1,Unusual Text,0.9,0.1,0.8,0.2
2,Object,2,Unusual Text|Non Minimal,0.9,0.8,0.1,0.2
3,Relation,1,Non Minimal,0.1,0.9,0.8,0.2
4,Relation,2,,0.5,0.5,0.5,0.5
7,Both,1,,0.7,0.3,0.4,0.6
"""
EXPECTED = {
    "n": 6, "text": 3 / 6, "image": 3 / 6, "group": 2 / 6, "ties": 1,
    "by": {
        "collapsed_tag": {
            "Both": {"n": 1, "text": 1.0, "image": 1.0, "group": 1.0, "ties": 0},
            "Object": {"n": 3, "text": 2 / 3, "image": 2 / 3, "group": 1 / 3, "ties": 0},
            "Relation": {"n": 2, "text": 0.0, "image": 0.0, "group": 0.0, "ties": 1},
        },
        "num_main_preds": {
            "1": {"n": 4, "text": 3 / 4, "image": 2 / 4, "group": 2 / 4, "ties": 0},
            "2": {"n": 2, "text": 0.0, "image": 1 / 2, "group": 0.0, "ties": 1},
        },
        "diwan_tags": {
            "Non Minimal": {"n": 2, "text": 0.0, "image": 1 / 2, "group": 0.0, "ties": 0},
            "Unusual Text": {"n": 2, "text": 1 / 2, "image": 1 / 2, "group": 0.0, "ties": 0},
            "untagged": {"n": 3, "text": 2 / 3, "image": 2 / 3, "group": 2 / 3, "ties": 1},
        },
    },
}  # fmt: skip


@pytest.fixture
def grid_file(tmp_path):
    path = tmp_path / "grids.csv"
    path.write_text(GRID)
    return path


def test_the_command_prints_the_figures_worked_out_by_hand(grid_file):
    command = [
        sys.executable,
        "-m",
        "sdslib.results.comparison",
        "--scores",
        str(grid_file),
        "--json",
    ]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == EXPECTED


def test_the_command_without_json_prints_a_table(grid_file, capsys):
    assert comparison.main(["--scores", str(grid_file), "--by", "num_main_preds"]) == 0
    printed = capsys.readouterr().out
    assert "num_main_preds" in printed
    assert "collapsed_tag" not in printed
    assert "0.250000" in printed  # chance


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.4,0.6", "nan,0.6", "item '7' is not finite"),
        ("0.4,0.6", ",0.6", "item '7' is not finite"),
        ("0.4,0.6", "high,0.6", "item '7' is not finite"),
        ("\n7,", "\n3,", "id '3' occurs twice"),
        ("id,", "item,", "column id"),
    ],
)
def test_a_file_that_no_figure_may_rest_on_is_refused(grid_file, capsys, old, new, message):
    grid_file.write_text(GRID.replace(old, new))
    assert comparison.main(["--scores", str(grid_file), "--json"]) == 3
    found = capsys.readouterr()
    assert message in found.err
    assert not found.out


def test_a_missing_file_and_an_unknown_tag_are_named(grid_file, capsys):
    assert comparison.main(["--scores", "no/such.csv"]) == 3
    assert "no score file at no/such.csv" in capsys.readouterr().err
    assert comparison.main(["--scores", str(grid_file), "--by", "colour"]) == 3
    assert "no tag 'colour'; there are ['collapsed_tag'" in capsys.readouterr().err


def test_a_table_survives_parquet(grid_file, tmp_path):
    table = comparison.read_scores(grid_file)
    table.to_parquet(tmp_path / "grids.parquet")
    again = comparison.read_scores(tmp_path / "grids.parquet")
    pd.testing.assert_frame_equal(again, table, check_dtype=False)
    assert comparison.summary(again) == EXPECTED


def test_tabulate_has_intervals_ties_chance_and_macro_rows(grid_file):
    table = tables.tabulate(None, comparison.read_scores(grid_file), by=["collapsed_tag"])
    rows = table.set_index(["tag", "label", "metric"])
    whole = rows.loc[("all", "all", "text")]
    share = metrics.wilson(np.array([True] * 3 + [False] * 3))
    assert (whole.n, whole.accuracy, whole.ties) == (6, 0.5, 1)
    assert (whole.low, whole.high) == (share.low, share.high)
    assert "macro" not in set(table.label)
    assert rows.loc[("all", "all", "group")].chance == pytest.approx(1 / 6)
    assert not table.partial.any()


def choice_table(scores, answer, **tags) -> pd.DataFrame:
    cells = {f"s_0_{k}": column for k, column in enumerate(np.transpose(scores))}
    table = pd.DataFrame({"id": [f"i{n}" for n in range(len(scores))], **tags, **cells})
    table["answer"] = pd.array(answer, dtype="Int64")
    return table.assign(n_images=1, n_captions=np.shape(scores)[1])


def test_aro_figures_with_and_without_symmetric_relations_stand_side_by_side():
    relation = ["on"] * 4 + ["next to"] * 4 + ["riding"] * 2
    right = [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    scores = choice_table([[0.2, 0.1 + 0.2 * r] for r in right], [1] * 10, relation=relation)
    rows = tables.tabulate(None, scores).set_index(["tag", "label"]).accuracy
    assert rows["all", "all"] == pytest.approx(0.5)
    assert rows["relation", "macro"] == pytest.approx(1.75 / 3)
    assert rows["relation", "macro, asymmetric"] == pytest.approx(0.875)
    assert rows["relation", "micro, asymmetric"] == pytest.approx(5 / 6)


def test_rare_attributes_are_left_out_of_one_macro_average_only():
    attributes = ["red_blue"] * 30 + ["old_new"] * 2
    scores = choice_table([[1.0, 0.0]] * 15 + [[0.0, 1.0]] * 17, [0] * 32, attributes=attributes)
    rows = tables.tabulate(None, scores).set_index(["tag", "label"]).accuracy
    assert rows["attributes", "macro"] == pytest.approx(0.25)
    assert rows["attributes", "macro, frequent"] == pytest.approx(0.5)


def test_choices_follow_the_named_tie_convention():
    scores = choice_table([[0.5, 0.5], [0.9, 0.1]], [0, 0])
    assert tables.outcomes(scores)["accuracy"].tolist() == [False, True]
    assert tables.outcomes(scores, convention="aro-order")["accuracy"].all()
    assert tables.ties_of(scores).tolist() == [True, False]
    with pytest.raises(tables.TableError, match="unknown tie convention 'lenient'"):
        tables.outcomes(scores, convention="lenient")


def test_items_with_fewer_captions_ignore_the_empty_cells():
    scores = choice_table([[0.5, 0.1, np.nan], [0.5, 0.1, 0.9]], [0, 0])
    scores["n_captions"] = [2, 3]
    assert tables.outcomes(scores)["accuracy"].tolist() == [True, False]
    scores["n_captions"] = [3, 3]
    with pytest.raises(metrics.ScoreError, match="item 'i0'"):
        tables.outcomes(scores)


def test_an_unknown_rule_names_the_ones_there_are(grid_file):
    with pytest.raises(tables.TableError, match=r"no scores of rule 'relative'.*\[''\]"):
        tables.grids_of(comparison.read_scores(grid_file), "relative")


def test_a_comparison_worked_out_by_hand():
    """Ten items: 2 flip up (both tag a), 1 flips down (tag b)."""
    old = [[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 4
    new = [[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 2
    tag = ["b"] * 6 + ["a"] * 4
    before, after = (choice_table(s, [0] * 10, kind=tag) for s in (old, new))
    table = comparison.compare(before, after.sample(frac=1, random_state=0))
    rows = table.set_index(["tag", "label"])
    whole = rows.loc[("all", "all")]
    assert (whole.up, whole.down, whole.n) == (2, 1, 10)
    assert whole.difference == pytest.approx(0.1)
    assert whole.p == whole.p_holm == pytest.approx(1.0)
    assert whole.mdd == statistics.minimum_detectable_difference(10, 0.3)
    assert whole.low <= 0.1 <= whole.high
    a, b = rows.loc[("kind", "a")], rows.loc[("kind", "b")]
    assert (a.p, a.p_holm, b.p_holm) == (0.5, 1.0, 1.0)


def scored_anew(seed, size=40):
    """Two tables of the same items that answer differently, neither in the order of the ids."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["a", "b", "a|b"], size)
    before, after = (choice_table(rng.random((size, 2)), [0] * size, kind=kind) for _ in range(2))
    return before.iloc[rng.permutation(size)], after.iloc[rng.permutation(size)]


def test_a_comparison_is_of_items_whatever_order_the_tables_stand_in():
    before, after = scored_anew(0)
    both = before.merge(after, on="id", suffixes=("_0", "_1"))
    old, new = (both[f"s_0_0_{n}"] > both[f"s_0_1_{n}"] for n in (0, 1))
    for order in range(2):
        mixed = (table.sample(frac=1, random_state=order + 7 * n) for n, table in
                 enumerate((before, after)))  # fmt: skip
        row = comparison.compare(*mixed, by=()).iloc[0]
        assert (row.up, row.down) == ((~old & new).sum(), (old & ~new).sum())
        assert 0 < row.down < row.up + row.down


def test_seeds_are_compared_item_by_item_whatever_order_any_table_stands_in():
    found = [scored_anew(seed) for seed in range(3)]
    before, after = ([pair[n] for pair in found] for n in (0, 1))
    sorted_too = [[t.sort_values("id") for t in some] for some in (before, after)]
    row, plain = (
        comparison.compare_over_seeds(*some).iloc[0] for some in ((before, after), sorted_too)
    )
    for column in ("before", "after", "difference", "smallest", "largest"):
        assert row[column] == plain[column]
    # the interval rests on which item is which; only its draws go by place
    assert (row.low, row.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    table, mixed = before[0].sort_values("id"), before[0]
    for pair in (([table] * 2, [table, mixed]), ([table, mixed], [table] * 2)):
        row = comparison.compare_over_seeds(*pair).iloc[0]
        assert (row.low, row.high) == (0, 0)  # against itself in another order nothing changes


def test_chance_is_the_mean_over_items_of_one_in_as_many_captions():
    scores = choice_table([[0.9, 0.1, 0.2, 0.3]] * 4, [0] * 4).assign(n_captions=[2, 2, 4, 4])
    chance = tables.tabulate(None, scores).chance
    assert chance.tolist() == [pytest.approx((1 / 2 + 1 / 2 + 1 / 4 + 1 / 4) / 4)]


def test_top_5_are_the_ranks_0_to_4_and_its_chance_5_of_all_classes():
    scores = pd.DataFrame({"id": [*"abcdefg"], "rank": range(7), "n_captions": 10, "n_true": 1})
    right = tables.outcomes(scores)
    assert right["accuracy"].tolist() == [True] + [False] * 6
    assert right["top5"].tolist() == [True] * 5 + [False] * 2
    rows = tables.tabulate(None, scores).set_index("metric")
    assert rows.chance.to_dict() == {
        "accuracy": pytest.approx(0.1),
        "top5": pytest.approx(0.5),
    }


def test_ties_add_up_over_the_labels_of_a_tag():
    scores = choice_table(
        [[0.5, 0.5]] * 2 + [[0.9, 0.1]] * 3 + [[0.5, 0.5]], [0] * 6, kind=[*"aabbbc"]
    )
    rows = tables.tabulate(None, scores, by=["kind"]).set_index(["tag", "label"]).ties
    assert rows["kind"].to_dict() == {"a": 2, "b": 0, "c": 1}
    assert rows["kind"].sum() == rows["all", "all"] == 3


def test_holm_corrects_within_the_labels_of_a_tag():
    tag = ["a"] * 12 + ["b"] * 12
    before = choice_table([[0.0, 1.0]] * 24, [0] * 24, kind=tag)
    after = choice_table([[1.0, 0.0]] * 8 + [[0.0, 1.0]] * 16, [0] * 24, kind=tag)
    rows = comparison.compare(before, after).set_index(["tag", "label"])
    assert rows.loc[("kind", "a")].p_holm == pytest.approx(2 * rows.loc[("kind", "a")].p)
    assert rows.loc[("all", "all")].p_holm == rows.loc[("all", "all")].p


def test_tables_of_different_items_are_not_compared():
    table = choice_table([[1.0, 0.0]] * 3, [0] * 3)
    with pytest.raises(tables.TableError, match="2 ids are in one table only"):
        comparison.compare(table, table.assign(id=["i0", "i1", "other"]))


def test_seeds_are_summarized_with_their_spread():
    rng = np.random.default_rng(0)
    before = [choice_table(rng.random((200, 2)), [0] * 200) for _ in range(3)]
    after = [
        t.assign(s_0_0=t["s_0_0"] + boost) for t, boost in zip(before, (0.1, 0.2, 0.3), strict=True)
    ]
    row = comparison.compare_over_seeds(before, after).iloc[0]
    single = [
        tables.outcomes(a)["accuracy"].mean() - tables.outcomes(b)["accuracy"].mean()
        for a, b in zip(after, before, strict=True)
    ]
    assert row.difference == pytest.approx(np.mean(single))
    assert (row.smallest, row.largest) == (pytest.approx(min(single)), pytest.approx(max(single)))
    assert row.low < row.difference < row.high
    assert row.seeds == 3
