"""The report says what the runs kept, holds all it shows, and is the same for the same runs."""

import base64
import csv
import io
import re
from urllib.parse import unquote

import pages
import pandas as pd
import pytest
from finished import finish
from PIL import Image
from test_failures import score_table
from test_page import EVIL
from test_pdf import pdf_text

from sdslib import experiment
from sdslib.checks.notebooks import ReportConfig
from sdslib.config import FinetuneConfig
from sdslib.io.sources import AccessError
from sdslib.results import answers, failures, finetuned, formatting, settings
from sdslib.sets.roles import load_set
from sdslib.show import atlas, modelcard, pdf, report, seen

CHAPTERS = ["Question and answer", "Method", "Data", "Results", "Examples", "Parameters",
            "Versions", "How to run it again", "Appendix"]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("place") / "runs"
    for seed in (0, 1):
        finish(root, "clip-only", seed)
        finish(root, "sds", seed, weights=seed == 0)
    return ReportConfig(runs=str(root))


@pytest.fixture(scope="module")
def found(config):
    return settings.collect(config)


@pytest.fixture(scope="module")
def told(config, found):
    return report.build(config, found)


@pytest.fixture(scope="module")
def saved(told):
    """The table of files, the page, and the PDF's words."""
    table = report.save(told)
    words = " ".join(pdf_text((told.folder / "report.pdf").read_bytes()))
    return table, (told.folder / "report.html").read_text(), flat(words)


def flat(text):
    return " ".join(text.split())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small run without control whose models and data lie elsewhere, its title, its report."""
    root = tmp_path_factory.mktemp("home") / "runs"
    places = {"clip_model": f"local-dir:{root}/student", "train_data": f"{root}/a.json::{root}/b"}
    finish(root, items=20, run="small", teacher=str(root / "teacher"), **places)
    config = ReportConfig(runs=str(root), title=EVIL, examples=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "load_set", refuse)
        return root, report.build(config, settings.collect(config)).page


def refuse(source):
    raise AccessError(f"winoground: the terms are not accepted; {EVIL}", "terms-not-accepted")


def test_the_page_holds_all_it_shows_and_every_picture_has_its_words(saved):
    assert not pages.outside(saved[1])
    assert pages.Nesting(saved[1]).open == []
    figures = pages.read(saved[1]).select("figure")
    assert len(figures) >= 7 + 2 * 10
    assert all(figure.img["alt"].strip() for figure in figures)


def test_markup_in_a_title_or_a_message_stays_text(small):
    assert "<script" not in small[1]
    assert small[1].count("&lt;script&gt;") == 3
    assert pages.Nesting(small[1]).open == []


def test_no_place_of_this_machine_is_shown(small):
    root, text = small
    assert str(root.parent) not in text
    for words in ("local-dir:runs/student", "runs/a.json::runs/b", "runs/teacher"):
        assert f">{words}<" in text
        assert words in text.partition("<pre>")[2]
    assert "stands here by its last two names" in text


def test_links_within_the_page_lead_to_its_chapters(saved):
    page = pages.read(saved[1])
    *inside, paper = (link["href"] for link in page.select("a:not([download])"))
    assert inside == ["#" + c.lower().replace(" ", "-") for c in CHAPTERS]
    assert all(page.select(link) for link in inside)
    assert paper == "https://arxiv.org/abs/2307.09233"


def test_the_first_page_has_the_answer_and_its_figure_and_long_tables_stand_last(told, saved):
    first = saved[1].partition(">Method</h2>")[0]
    assert flat(answers.of_setting(told.cases[0])) in flat(first)
    assert pages.read(first).find("img", alt=told.figures["1-headline"].alt)
    whole, _, last = saved[1].partition('id="appendix"')
    assert max(len(table.select("tr")) for table in pages.read(whole).select(".scroll table")) < 10
    assert len(pages.read(last).select("table")) == 3


def test_figures_and_tables_can_be_taken_away(saved):
    page = pages.read(saved[1])
    for table in page.select("main > .scroll table"):
        links = table.parent.find_next_sibling("p").select("a[download]")
        assert [link["download"].rpartition(".")[2] for link in links] == ["csv", "tex"]
        text = unquote(links[0]["href"].partition(",")[2])
        rows = list(csv.reader(io.StringIO(text)))
        shown = [[cell.text for cell in row.select("th, td")] for row in table.select("tr")]
        assert rows == shown
    for figure in page.select("main > figure:has(figcaption)"):
        assert [a["download"][-3:] for a in figure.select("a[download]")] == ["png", "svg"]


def test_the_picture_in_the_page_is_the_figure(told, saved):
    figure = told.figures["1-scores"]
    image = pages.read(saved[1]).find("img", alt=figure.alt)
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
        assert picture.format == "PNG"
        wanted = figure.get_figwidth() / figure.get_figheight()
        assert picture.width / picture.height == pytest.approx(wanted, rel=0.05)


def test_page_and_paper_have_every_chapter_and_the_same_figures(told, saved):
    assert re.findall("<h2[^>]*>(.*?)</h2>", saved[1].partition("<section")[0]) == CHAPTERS[:5]
    for chapter in CHAPTERS:
        assert f">{chapter}</h2>" in saved[1]
        assert chapter in saved[2]
    table = finetuned.before_after(told.cases[0].scores)
    for row in table.itertuples():
        shown = formatting.share(row.accuracy, row.low, row.high)
        assert f"<td>{shown}</td>" in saved[1]
        assert shown in saved[2]


def test_differences_carry_interval_tests_flips_and_what_could_have_been_shown(told, saved):
    for row in told.cases[0].paired.itertuples():
        tests = map(formatting.p_value, (row.p, row.p_holm))
        cells = formatting.gap(row), *tests, f"+{row.up}/−{row.down}", f"{100 * row.mdd:.1f}"
        assert "".join(f"<td>{cell}</td>" for cell in cells).replace("<0", "&lt;0") in saved[1]


def test_every_part_of_the_mini_world_says_so_and_seeds_are_summed_up(told, saved):
    for words in ("no evidence about real CLIP", "Over all seeds", "over 2 seeds",
                  '<p class="subtitle">SDS-CLIP, 2 runs · mini-world</p>'):  # fmt: skip
        assert words in flat(saved[1])
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
        name: report.source(name, config).endswith("(mini-world)")
        for name in (train_data, "validation", "mini-winoground", "sugarcrepe", "ViT-B-16")
    }
    assert told[train_data] == ("trained" in how)
    assert told["validation"] == ("measured" in how)
    assert told["mini-winoground"]
    assert not told["sugarcrepe"]
    assert not told["ViT-B-16"]
    assert report.source("local-dir:data/mini/student", config).endswith("(mini-world)")


def test_a_part_of_a_set_says_of_how_many_items():
    table = pd.DataFrame({"id": range(16)})
    assert report.count(table) == "16 items"
    table.attrs["total"] = 400
    assert report.count(table) == "16 of 400 items"
    table.attrs["total"] = 4
    assert report.count(table) == "16 questions about 4 items"


@pytest.mark.slow
def test_a_report_of_several_settings_begins_with_their_runs(tmp_path):
    for arm in ("sds", "sds-margin", "clip-only"):
        finish(tmp_path, arm, items=20, **{} if arm == "clip-only" else {"sds_weight": 0.01})
    config = ReportConfig(runs=str(tmp_path), examples=0)
    told = report.build(config, settings.collect(config))
    first = pages.read(told.page.partition(">Method</h2>")[0])
    rows = [[cell.text for cell in row.select("th, td")] for row in first.select("tr")][1:]
    assert rows == answers.at_a_glance(told.cases).to_numpy().tolist()
    assert [row[0] for row in rows] == [case.run.name for case in told.cases]
    assert len(first.select("main > figure")) == len(rows) == 2
    assert all(name in "".join(c.text for c in first.select("figcaption")) for name, *_ in rows)


def test_the_answer_is_one_sentence_a_setting_and_holds_the_figures_above_it(told, saved):
    (first,) = (answers.of_setting(case) for case in told.cases)
    assert first.split(": ")[1].startswith("over 2 seeds")
    assert flat(first) in flat(saved[1])
    assert first in report.answer(told)
    assert "page, PDF and 7 figures; 1 model card" in report.answer(told)
    row = report.changes(told).xs("text", level="metric").iloc[0]
    change, _, interval = row["difference"].partition(" ")
    assert f"{change} points {interval}" in first
    assert f"{row['smallest']} points or more" in first


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


def test_examples_stand_with_their_pictures_and_captions_on_page_and_paper(told, saved):
    cards = pages.read(saved[1]).select("section")
    assert len(cards) == 10
    for card in cards:
        assert len(card.select("figure img")) == 2
        for words in (card.h3.contents[0], card.figcaption.text, card.select(".paper td")[0].text):
            assert words in saved[2]
    assert saved[1].count("<article") == 10


def test_where_the_first_examples_words_are_seen_stands_with_how_far_student_and_teacher_agree(
    told, saved
):
    maps, page = told.figures["1-maps"], pages.read(saved[1])
    assert page.find("img", alt=maps.alt).find_parent("figure").find_next("section")
    assert "untouched with the teacher over the whole caption: r" in maps.alt
    assert re.search(r"Over the whole caption: untouched: r 0\.\d\d", saved[2])
    assert "No map of sds: caption" in saved[2]  # whose tiny student has no such words


def test_models_that_are_not_here_have_no_map_and_a_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    run = finish(tmp_path / "runs", items=4)
    places = {"clip_model": f"local-dir:{tmp_path}/gone", "teacher": f"{tmp_path}/teacher"}
    config = settings.config_of(run).model_copy(update=places)
    models = seen.at_hand(config, {"sds": run}, True)
    assert not models.students
    assert not models.teachers
    told = [sentence.partition(":")[0] for sentence in models.absent]
    assert sorted(told) == ["No map of sds", "No map of teacher", "No map of untouched"]
    assert str(tmp_path) not in " ".join(models.absent)
    item = load_set("mini:winoground").items[0]
    assert seen.figure(seen.maps(models, item), item) is None


@pytest.mark.parametrize(
    "words",
    [
        "the terms are not accepted",
        "may be a gain of fine-tuning and not of the teacher",
        "It is too short and its set too small",
    ],
)
def test_what_a_small_run_without_pictures_and_control_cannot_say_is_said(small, words):
    assert words in flat(small[1])


def test_a_set_whose_pictures_are_not_here_is_reported_without_them(small):
    cards = pages.read(small[1]).select("section")
    assert len(cards) == 2
    assert not any(card.img for card in cards)
    assert pdf.from_page(small[1])


def test_a_run_without_control_is_beside_no_other(small):
    tables = pages.read(small[1]).select("table")
    assert "L_CLIP only" not in "".join(table.text for table in tables)


def test_sets_of_other_kinds_are_reported_without_margins_and_examples(tmp_path):
    for arm in ("clip-only", "sds"):
        finish(tmp_path, arm, items=30, benchmark="mini:zeroshot-shape")
    config = ReportConfig(runs=str(tmp_path))
    told = report.build(config, settings.collect(config))
    assert set(told.figures) == {"1-headline", "1-scores", "1-change", "1-training"}
    assert "sets of two images and two captions" in told.page


def test_parameters_versions_and_lines_are_those_of_the_runs(told, saved):
    text = saved[1]
    for name in ("sds_weight", "bridge_pairs", "t_max", "batch_size"):
        assert f">{name}<" in text
    packages = re.search(r">packages</th><td class=\"long\">([^<]*)", text)[1]
    assert re.search(r"torch \d+\.\d+", packages)
    places = str(told.folder), told.folder.name
    for run in told.cases[0].runs:
        line = settings.papermill_of(settings.config_of(run)).replace(*places)
        assert f"\n{line}\n" in text.replace("<code>", "\n")
    assert "papermill notebooks/07_report.ipynb out_report.ipynb" in text


@pytest.mark.slow
def test_files_are_whole_named_and_the_same_for_the_same_runs(config, saved, told):
    table, text, _ = saved
    there = {path.name for path in told.folder.iterdir()}
    assert there == {"runs", "report.html", "report.pdf", "report_figures"}
    kinds = {path.suffix for path in (told.folder / "report_figures").iterdir()}
    assert kinds == {".png", ".svg", ".pdf"}
    assert (told.cases[0].run.path / "README.md").is_file()
    assert not (told.cases[0].control.path / "README.md").exists()  # it kept no weights
    assert len(table) == 4
    assert report.build(config, settings.collect(config)).page == text
    assert pdf.from_page(text) == (told.folder / "report.pdf").read_bytes()


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
    monkeypatch.setattr(settings, "SMALL_RUN", settings.SMALL_RUN | few)
    (tmp_path / "runs").mkdir()
    config = ReportConfig(runs=str(tmp_path / "runs"), examples=2)
    told = report.build(config, settings.collect(config))
    report.save(told)
    assert "making a small one first" in capsys.readouterr().out
    assert "It is too short" in (tmp_path / "report.html").read_text()
    assert not pages.outside((tmp_path / "report.html").read_text())
    monkeypatch.setattr(experiment, "finetune", lambda *args: pytest.fail("made it again"))
    assert settings.collect(config)[0].run.path == told.cases[0].run.path
