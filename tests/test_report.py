"""The report says what the runs kept, holds all it shows, and is the same for the same runs."""

import re

import pandas as pd
import pytest
from finished import finish
from test_document import Page, pdf_text
from test_failures import score_table

from sdslib import experiment
from sdslib.config import FinetuneConfig, ReportConfig
from sdslib.io.sources import AccessError
from sdslib.results import cases, failures, formatting
from sdslib.show import atlas, document, modelcard, report

CHAPTERS = ["Question and answer", "Method", "Data", "Results", "Examples", "Parameters",
            "Versions", "How to run it again"]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("place") / "runs"
    for seed in (0, 1):
        finish(root, "clip-only", seed)
        finish(root, "sds", seed, weights=seed == 0)
    return ReportConfig(runs=str(root))


@pytest.fixture(scope="module")
def found(config):
    return cases.collect(config)


@pytest.fixture(scope="module")
def told(config, found):
    return report.build(config, found)


@pytest.fixture(scope="module")
def saved(told):
    table = report.save(told)
    return (
        table,
        (told.folder / "report.html").read_text(),
        (told.folder / "report.pdf").read_bytes(),
    )


def test_the_page_holds_all_it_shows_and_every_picture_has_its_words(saved):
    page = Page(saved[1])
    assert not page.outside
    assert len(page.alts) >= page.figures >= 7 + 2 * 10
    assert all(alt and alt.strip() for alt in page.alts)
    assert page.open == []


def test_no_figure_of_the_page_is_without_a_picture(saved):
    for figure in re.findall(r"<figure>.*?</figure>", saved[1], re.S):
        assert re.search(r'<img [^>]*alt="[^"]+', figure)


def test_page_and_paper_have_every_chapter_and_the_same_figures(told, saved):
    assert [heading.text for heading in told.document.chapters] == CHAPTERS
    text = " ".join(pdf_text(saved[2]))
    flat = re.sub(r"\s+", " ", text)
    for chapter in CHAPTERS:
        assert f">{chapter}</h2>" in saved[1]
        assert chapter in flat
    table = experiment.before_after(told.cases[0].scores)
    for row in table.itertuples():
        shown = formatting.share(row.accuracy, row.low, row.high)
        assert f"<td>{shown}</td>" in saved[1]
        assert shown in flat


def test_differences_carry_interval_tests_flips_and_what_could_have_been_shown(told, saved):
    for row in told.cases[0].paired.itertuples():
        cells = (
            formatting.points(row.difference, row.low, row.high),
            formatting.p_value(row.p),
            formatting.p_value(row.p_holm),
            f"+{row.up}/−{row.down}",
            f"{100 * row.mdd:.1f}",
        )
        assert "".join(f"<td>{cell}</td>" for cell in cells).replace("<0", "&lt;0") in saved[1]


def test_every_part_of_the_mini_world_says_so(told, saved):
    assert "no evidence about real CLIP" in saved[1]
    assert told.document.subtitle.endswith("mini-world")
    assert all("mini-world" in figure.alt for figure in told.figures.values())
    assert "small run" not in saved[1]


@pytest.mark.parametrize(
    ("train_data", "benchmark", "how"),
    [
        ("mini", "mini:winoground", "trained and measured"),
        ("pairs.json::images", "mini:winoground", "measured"),
        ("mini", "winoground:data/winoground", "trained"),
        ("pairs.json::images", "winoground:data/winoground", ""),
    ],
)
def test_only_what_is_drawn_is_called_mini_world(train_data, benchmark, how):
    config = FinetuneConfig(train_data=train_data, benchmark=benchmark, clip_model="ViT-B-16")
    assert modelcard.drawn(config) == how
    told = {
        name: report._told(name, config).endswith("(mini-world)")
        for name in (train_data, "validation", "mini-winoground", "sugarcrepe", "ViT-B-16")
    }
    assert told[train_data] == ("trained" in how)
    assert told["validation"] == ("measured" in how)
    assert told["mini-winoground"]
    assert not told["sugarcrepe"]
    assert not told["ViT-B-16"]
    assert report._told("local-dir:data/mini/student", config).endswith("(mini-world)")


def test_a_part_of_a_set_says_of_how_many_items():
    table = pd.DataFrame({"id": range(16)})
    assert report._count(table) == "16 items"
    table.attrs["total"] = 400
    assert report._count(table) == "16 of 400 items"


def test_seeds_are_summed_up_over_seeds_and_items(told, saved):
    assert "Over all seeds" in saved[1]
    assert "over 2 seeds" in saved[1]


def test_the_answer_follows_from_the_interval():
    row = {"comparison": "b against a", "metric": "text", "difference": 0.02, "low": 0.01,
           "high": 0.03, "p": 0.0001, "mdd": 0.015, "n": 9, "seeds": 3}  # fmt: skip
    said = {}
    for name, low, high in (("up", 0.01, 0.03), ("down", -0.03, -0.01), ("none", -0.01, 0.01)):
        said[name] = report._verdict(type("Row", (), row | {"low": low, "high": high})())
    assert "p <0.001: higher; 9 items show differences from about 1.5 points on." in said["up"]
    assert ": lower" in said["down"]
    assert "no difference shown" in said["none"]
    over = report._verdict(type("Row", (), row | {"p": float("nan")})())
    assert over.endswith("over 3 seeds: higher.")


def test_the_examples_are_flips_both_ways_and_then_the_largest_changes(told):
    scores = told.cases[0].scores
    whole = atlas.build(scores)
    pairs = failures.margin_pairs(*(failures.anatomy(scores[m]) for m in ("untouched", "sds")))
    pairs = pairs.assign(change=(pairs["after"] - pairs["before"]).abs()).set_index("id")
    flips = {way: pairs[pairs["flip"] == way]["change"] for way in ("gained", "lost")}
    chosen = report.telling(whole, "untouched", "sds", 10)
    assert len(set(chosen)) == len(chosen) == 10
    kinds = pairs.loc[chosen, "flip"].tolist()
    moved = sum(kind in flips for kind in kinds)
    assert moved == min(7, sum(map(len, flips.values())))
    assert all(kind in flips for kind in kinds[:moved])
    for way, changes in flips.items():
        mine = [item for item in chosen if pairs.loc[item, "flip"] == way]
        assert (
            mine == changes.sort_values(ascending=False, kind="stable").index[: len(mine)].tolist()
        )
    rest = pairs.drop(index=chosen)["change"].max()
    assert pairs.loc[chosen[moved:], "change"].min() >= rest or moved < 7
    assert report.telling(whole, "untouched", "sds", 0) == []


def test_the_first_example_is_gained_and_gains_and_losses_take_turns():
    """Items 0 to 3 are lost and 4 to 6 gained, the later the more; the rest stays right."""
    right, wrong = [(2, 1, 0, 3 + n) for n in range(12)], [(0, 1, 1, -n) for n in range(12)]
    before = score_table(right[:4] + wrong[4:7] + right[7:])
    after = score_table(wrong[:4] + right[4:7] + right[7:])
    found = atlas.build({"untouched": before, "sds": after})
    chosen = report.telling(found, "untouched", "sds", 9)
    assert set(chosen[:6:2]) == {"4", "5", "6"}
    assert set(chosen[1:6:2]) < {"0", "1", "2", "3"}
    assert report.telling(found, "untouched", "sds", 1)[0] in {"4", "5", "6"}


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(-0.01, 0.05, "no difference"), (0.0, 0.05, "no difference"), (0.001, 0.05, "higher"),
     (-0.05, 0.0, "no difference"), (-0.05, -0.001, "lower")],
)  # fmt: skip
def test_only_an_interval_beside_0_shows_a_difference_whatever_its_middle(low, high, word):
    row = {"comparison": "b against a", "metric": "text", "difference": (low + high) / 2,
           "low": low, "high": high, "p": float("nan"), "seeds": 3}  # fmt: skip
    assert f": {word}" in report._verdict(type("Row", (), row)())


def test_examples_stand_with_their_pictures_and_captions_on_page_and_paper(told, saved):
    cards = [block for block in told.document.blocks if isinstance(block, document.Card)]
    assert len(cards) == 10
    text = re.sub(r"\s+", " ", " ".join(pdf_text(saved[2])))
    for card in cards:
        assert len(card.pictures) == 2
        assert card.title.split(":")[0] in text
    assert saved[1].count("<article") == 10


def test_a_set_whose_pictures_are_not_here_is_reported_without_them(config, found, monkeypatch):
    def refuse(source):
        raise AccessError("winoground: the terms are not accepted", "terms-not-accepted")

    monkeypatch.setattr(report, "load_set", refuse)
    blocks = report._examples(config, found[0])
    assert any("the terms are not accepted" in block.html() for block in blocks)
    assert not any(block.pictures for block in blocks if isinstance(block, document.Card))


def test_a_run_without_control_says_what_that_means(config, found):
    lone = cases.Case(found[0].runs[:1], (None,))
    told = report.build(config, [lone])
    text = document.html(told.document)
    assert "may be a gain of fine-tuning and not of the teacher" in text
    assert "L_CLIP only" not in "".join(b.html() for b in told.document.blocks
                                        if isinstance(b, document.Table))  # fmt: skip


def test_sets_of_other_kinds_are_reported_without_margins_and_examples(tmp_path):
    for arm in ("clip-only", "sds"):
        finish(tmp_path, arm, items=30, benchmark="mini:zeroshot-shape")
    config = ReportConfig(runs=str(tmp_path))
    told = report.build(config, cases.collect(config))
    assert set(told.figures) == {"1-scores", "1-change", "1-training"}
    assert "sets of two images and two captions" in document.html(told.document)


def test_a_small_run_is_named_as_what_it_is(tmp_path):
    finish(tmp_path, items=20, run="small")
    config = ReportConfig(runs=str(tmp_path), examples=0)
    told = report.build(config, cases.collect(config))
    assert "It is too short and its set too small" in document.html(told.document)


def test_parameters_versions_and_lines_are_those_of_the_runs(told, saved):
    text = saved[1]
    for name in ("sds_weight", "bridge_pairs", "t_max", "batch_size"):
        assert f">{name}<" in text
    packages = re.search(r">packages</th><td class=\"long\">([^<]*)", text)[1]
    assert re.search(r"torch \d+\.\d+", packages)
    for run in told.cases[0].runs:
        assert document.page.text(cases.papermill_line(run)) in text
    assert "papermill notebooks/07_report.ipynb out_report.ipynb" in text


def test_files_are_whole_named_and_the_same_for_the_same_runs(config, saved, told):
    table, page, pdf = saved
    there = {path.name for path in told.folder.iterdir()}
    assert there == {"runs", "report.html", "report.pdf", "report_figures"}
    kinds = {path.suffix for path in (told.folder / "report_figures").iterdir()}
    assert kinds == {".png", ".svg", ".pdf"}
    assert (told.cases[0].run.path / "README.md").is_file()
    assert not (told.cases[0].control.path / "README.md").exists()  # it kept no weights
    assert len(table) == 4
    again = report.build(config, cases.collect(config)).document
    assert document.html(again, document.page.asset("atlas.css")) == page
    assert document.pdf(again) == pdf


def test_nothing_is_sent_unless_push_to_names_a_place(config, told, monkeypatch):
    sent = []
    monkeypatch.setattr(modelcard, "push", lambda *args: sent.append(args) or "https://hub/me/x")
    assert report.push(config, told) == "nothing was sent: push_to is None"
    assert not sent
    asked = config.model_copy(update={"push_to": "me/x"})
    assert report.push(asked, told).endswith("was sent to https://hub/me/x")
    assert sent == [(told.cases[0].run, "me/x", told.cases[0].control)]


@pytest.mark.slow
def test_from_an_empty_folder_to_a_report(tmp_path, monkeypatch, capsys):
    few = {"steps": 2, "eval_items": 30, "batch_size": 8, "bridge_pairs": 64, "eval_every": 0}
    monkeypatch.setattr(cases, "SMALL_RUN", cases.SMALL_RUN | few)
    (tmp_path / "runs").mkdir()
    config = ReportConfig(runs=str(tmp_path / "runs"), examples=2)
    told = report.build(config, cases.collect(config))
    report.save(told)
    assert "making a small one first" in capsys.readouterr().out
    assert "It is too short" in (tmp_path / "report.html").read_text()
    assert not Page((tmp_path / "report.html").read_text()).outside
    monkeypatch.setattr(experiment, "finetune", lambda *args: pytest.fail("made it again"))
    assert cases.collect(config)[0].run.path == told.cases[0].run.path
