"""The demo: one view for the live panel and the saved notebook, and inputs that cannot hurt it."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image
from test_atlas import benchmark
from test_evaluate import noise

from sdslib import experiment
from sdslib.benchmarks import Item
from sdslib.checks.notebooks import DemoConfig
from sdslib.config import FinetuneConfig
from sdslib.evaluate import clip_scorer, score_grids
from sdslib.io import images, runs, worlds
from sdslib.io.images import ImageError
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.lab import baseline
from sdslib.miniworld import drawing
from sdslib.miniworld.drawing import Scene, Thing
from sdslib.show import demo, explain, failure_study, page
from sdslib.show.demo import CaptionPanel, PairPanel, Question, QuestionError
from sdslib.student import load_student

ATTACK = '<img src=x onerror=alert(1)> "quoted" </script><script>alert(2)</script>'
TRUE, FALSE = "a red circle left of a blue square", "a blue square left of a red circle"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    teacher = str(tiny.save_teacher(root / "teacher"))
    return {"clip_model": f"local-dir:{tiny.save_student(root / 'student')}", "teacher": teacher}


@pytest.fixture(autouse=True)
def own_world(tmp_path, monkeypatch):
    """No run of this machine, and a benchmark of six pairs that the tiny models can read."""
    words = benchmark(captions=("a red circle above a square", "a red square above a circle"))
    monkeypatch.setattr(failure_study, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(worlds, "ensure", lambda source: None)
    monkeypatch.setattr(demo.benchmarks, "load_benchmark", lambda source: words)
    monkeypatch.setattr(baseline.benchmarks, "mini", lambda name, split: replace(words))


@pytest.fixture
def build(folders):
    return lambda **changes: demo.load(DemoConfig(draws=4, **(folders | changes)))


@pytest.fixture
def models(build):
    return build()


@pytest.fixture
def live(monkeypatch):
    monkeypatch.setattr(page, "is_live", lambda: True)


def question(*captions, ref=None):
    return Question(ref or noise(0), captions or (TRUE, FALSE), "noise")


def scores_of(models, asked):
    return demo.ask(models, asked).scores


def whole(models, *captions, teacher=False):
    return demo.explained(models, demo.ask(models, question(*captions), teacher))


def png(color="red"):
    data = io.BytesIO()
    Image.new("RGB", (20, 20), color).save(data, format="PNG")
    return data.getvalue()


class Tags(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


# --- models --------------------------------------------------------------------------------------


def test_without_a_run_there_is_the_untouched_student_and_no_teacher_until_asked(models):
    assert list(models.students) == ["untouched"]
    assert list(models.scorers()) == ["untouched"]
    assert "teacher" not in vars(models)
    assert models.table()["model"].tolist() == ["untouched", "teacher (asked on request)"]


def finished_run(folder, student, seed=0, **params):
    run = runs.open_run(FinetuneConfig(runs=str(folder), seed=seed, **params), {}, folder)
    with run:
        with run.staged("weights") as stage:
            student.save(stage)
        run.finish()
    return run


def test_runs_stand_beside_the_student_that_they_began_with(build, folders, tmp_path):
    taught = load_student(f"local-dir:{tiny.save_student(tmp_path / 'taught', seed=3)}", None)
    folder, model = tmp_path / "runs", folders["clip_model"]
    found = [
        finished_run(folder, taught, clip_model=model, arm=arm) for arm in ("clip-only", "sds")
    ]
    models = build(runs=", ".join(str(run.path) for run in found))
    assert list(models.students) == ["untouched", experiment.CONTROL, "sds"]
    table = explain.score_table(models.students, noise(0), (TRUE, FALSE))
    scores = {m: part["score"].to_numpy() for m, part in table.groupby("model")}
    expected = explain.score(clip_scorer(taught), noise(0), (TRUE, FALSE))
    np.testing.assert_allclose(scores["sds"], expected, atol=1e-6)
    assert not np.allclose(scores["sds"], scores["untouched"])
    by_default = build()
    assert list(by_default.students) == ["untouched", experiment.CONTROL, "sds"]


def test_a_run_of_another_student_brings_its_own_untouched_one(build, folders, tmp_path):
    other = tiny.save_student(tmp_path / "other", seed=5)
    student = load_student(str(other), None)
    sources = (folders["clip_model"], f"local-dir:{other}")
    found = [finished_run(tmp_path / "runs", student, clip_model=s) for s in sources]
    models = build(runs=",".join(run.name for run in found))
    assert list(models.students)[:2] == ["untouched", "untouched 2"]
    assert len(models.students) == 4


def test_a_name_that_is_no_run_is_refused(build):
    with pytest.raises(runs.RunError, match="no run 'nothing'"):
        build(runs="nothing")


def test_a_benchmark_that_is_not_here_leaves_the_rest_and_says_why(build, monkeypatch):
    def refuse(source):
        raise DataError("winoground: accept the terms first")

    monkeypatch.setattr(demo.benchmarks, "load_benchmark", refuse)
    models = build()
    assert "untouched" in demo.html(demo.ask(models, demo.start(models)))
    with pytest.raises(QuestionError, match="accept the terms"):
        models.item("0")


# --- questions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "order", "axis"),
    [
        ("left of", ("circle", "star"), "h"),
        ("right of", ("star", "circle"), "h"),
        ("above", ("circle", "star"), "v"),
        ("below", ("star", "circle"), "v"),
    ],
)
def test_a_composed_scene_is_the_mini_worlds_own(relation, order, axis):
    first, second = Thing("circle", "red"), Thing("star", "blue", "large")
    scene = demo.compose(first, relation, second, 3)
    assert tuple(thing.shape for thing in scene.things) == order
    assert scene.axis == axis
    drawn = np.asarray(drawing.draw(scene))
    assert (np.asarray(demo.scene_ref(scene).load()) == drawn).all()
    said = f"a red circle {relation} a blue star"
    assert said in drawing.relation_captions(scene)
    true, false = demo.scene_captions(scene)
    assert true in drawing.relation_captions(scene)
    assert false not in drawing.relation_captions(scene)
    assert sorted(true.split()) == sorted(false.split())


def test_captions_are_lines_without_blanks_and_doubles():
    assert demo.lines("  a \n\n b\na\r\n") == ("a", "b")
    for empty in ("", " \n\t\n"):
        with pytest.raises(QuestionError, match="no caption yet"):
            demo.lines(empty)
    with pytest.raises(QuestionError, match="13 captions are more than 12"):
        demo.lines("\n".join(map(str, range(13))))


def test_an_upload_is_a_picture_or_refused_by_name():
    assert demo.upload_ref("mine.png", png()).load().size == (20, 20)
    with pytest.raises(ImageError, match=r"text\.png is not an image \(starts with 'hello'\)"):
        demo.upload_ref("text.png", b"hello")


def test_the_parameters_ask_the_first_question(build, tmp_path):
    (tmp_path / "mine.png").write_bytes(png())
    asked = demo.start(build(image=str(tmp_path / "mine.png"), captions="a red circle | a square"))
    assert asked.ref.load().size == (20, 20)
    assert asked.captions == ("a red circle", "a square")
    models = build(item="2")
    assert demo.start(models).captions == models.benchmark.items[2].captions
    assert demo.start_pair(models) == models.benchmark.items[2]
    with pytest.raises(ParameterError, match="item: no item '77' in winoground; there are 0 to 5"):
        demo.start(build(item="77"))
    with pytest.raises(ParameterError, match=r"image: none\.png cannot be read"):
        demo.start(build(image=str(tmp_path / "none.png")))


def test_a_set_of_photographs_begins_with_its_first_item_and_draws_no_scene(build, tmp_path):
    (tmp_path / "mine.png").write_bytes(png())
    models = build(benchmark="winoground:data/winoground")
    first = models.benchmark.items[0]
    assert demo.start(models).captions == first.captions
    assert demo.start_pair(models) == first
    assert "mini-world" not in demo.pictures(models).alt + demo.start(models).about
    assert CaptionPanel(models, demo.ask(models, demo.start(models))).picker.source.value == "given"
    alone = demo.start(build(benchmark="winoground:x", image=str(tmp_path / "mine.png")))
    assert (alone.about, alone.captions) == ("mine.png", first.captions)
    absent = replace(models, benchmark=None, absent="it is not here")
    assert demo.start(absent).about.startswith("a drawn scene of the mini-world")
    assert "mini-world" in demo.pictures(absent).alt


# --- answers -------------------------------------------------------------------------------------


def test_scores_equal_the_librarys(models):
    table = demo.ask(models, question()).scores
    item = Item("0", (noise(0),), (TRUE, FALSE), 0)
    own = replace(models.benchmark, kind="choice", items=(item,))
    expected = score_grids(clip_scorer(models.students["untouched"].student), own)
    assert table["score"].to_numpy() == pytest.approx(expected[["s_0_0", "s_0_1"]].to_numpy()[0])


def test_the_teacher_answers_on_request_draw_by_draw(models):
    answer = demo.ask(models, question(), teacher=True)
    assert answer.scores["model"].tolist() == ["untouched"] * 2 + ["teacher"] * 2
    assert list(answer.errors.columns) == ["t", 0, 1]
    assert len(answer.errors) == 4
    text = demo.html(answer)
    assert "smallest in" in text
    assert "All 4 draws" in text
    assert demo.ask(models, question()).errors is None


def test_a_teacher_that_is_not_asked_is_not_loaded(models):
    demo.ask(models, question())
    assert "teacher" not in vars(models)


def test_two_threads_that_ask_at_once_get_what_each_gets_alone(build):
    words = ("red", "circle", "above", "a", "blue", "square", "left", "of")
    asked = [question(" ".join(words[:n]), " ".join(words[n:])) for n in range(1, 8)]
    alone = [scores_of(build(), one) for one in asked]
    for _ in range(5):
        models = build()
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(partial(scores_of, models), asked))
        for found, expected in zip(together, alone, strict=True):
            pd.testing.assert_frame_equal(found, expected)


def test_a_caption_that_does_not_fit_is_told(models):
    long = " ".join(["red"] * 20)
    assert "its end counts for nothing" in demo.html(demo.ask(models, question(long, TRUE)))


# --- the view ------------------------------------------------------------------------------------


def test_the_page_says_in_text_what_the_answer_holds(models):
    answer = whole(models)
    text = demo.html(answer)
    for value in answer.scores["score"]:
        assert f'<b class="score">{page.number(value)}</b>' in text
    lead = answer.scores["margin"].max()
    assert f"✓ best by {page.number(lead)}" in text
    assert f"✗ behind by {page.number(lead)}" in text
    assert text.count('class="word ') == len(answer.words["untouched"]) == 16
    assert text.count("◆ ") == answer.words["untouched"]["decides"].sum()
    for row in answer.harder["untouched"].itertuples():
        assert page.text(row.text) in text
    assert 'alt="noise"' in text


def test_a_tie_and_a_lone_caption_are_told(models):
    assert demo.html(whole(models, TRUE, TRUE.upper())).count("= tie") == 2
    assert "the only caption" in demo.html(whole(models, "circle"))
    assert "has none" in demo.html(whole(models, "circle"))


def test_a_bar_begins_at_zero_and_stays_in_its_box(models):
    scores = explain.score_table(models.scorers(), noise(0), (TRUE, FALSE))
    for values in ([0.5, 0.25], [-1.0, -2.0], [0.5, -0.5], [0.0, 0.0]):
        table = scores.assign(score=values, margin=explain.margins(np.array(values)))
        text = demo.html(demo.Answer(question(), table))
        bars = re.findall(r'style="left:([\d.]+)%;width:([\d.]+)%"', text)
        ends = [(float(left), float(left) + float(width)) for left, width in bars]
        zero = -100 * min(0, *values) / ((max(0, *values) - min(0, *values)) or 1)
        for value, (left, right) in zip(values, ends, strict=True):
            assert (right if value < 0 else left) == pytest.approx(zero, abs=0.11)
            assert 0 <= left <= right <= 100.1


def test_markup_in_captions_and_names_stays_text(models):
    answer = whole(models)
    spoilt = replace(answer, question=Question(noise(0), (ATTACK, FALSE), ATTACK), notes=(ATTACK,))
    spoilt.words["untouched"]["word"] = ATTACK
    spoilt.harder["untouched"]["text"] = ATTACK
    for text in (demo.html(spoilt), demo.message(ATTACK)):
        found = Tags(text).found
        assert not any(tag == "script" for tag, _ in found)
        assert all(a["src"].startswith("data:") for tag, a in found if tag == "img")
        assert not any(name.startswith("on") for _, attributes in found for name in attributes)


def test_the_page_refers_to_nothing_outside(models):
    text = demo.html(whole(models, teacher=True)) + demo.compare(models, demo.start_pair(models))
    found = Tags(text).found
    assert not any({"href", "srcset"} & a.keys() or tag == "link" for tag, a in found)
    assert all(a["src"].startswith("data:") and a["alt"] for tag, a in found if tag == "img")
    assert "url(" not in text
    assert "@import" not in text


def test_two_images_and_two_captions_are_the_atlas_card(models):
    text = demo.compare(models, models.benchmark.items[1], teacher=True)
    assert "<b>untouched</b>" in text
    assert "<b>teacher</b>" in text
    assert text.count('class="lead ') == 8
    assert len(re.findall(r"[✓✗=]&nbsp;", text)) == 8


# --- what the notebook shows ---------------------------------------------------------------------


def test_a_saved_notebook_shows_the_static_twin_and_how_to_get_the_live_one(models):
    for shown in (demo.captions(models), demo.winoground(models)):
        assert 'class="demo"' in shown.data
        assert "make lab" in shown.data
        assert not hasattr(shown, "bundles")


def test_a_live_notebook_keeps_the_twin_beside_the_widget(models, live):
    for show in (demo.captions, demo.winoground):
        live, twin = show(models).bundles()
        assert WIDGET in live
        assert WIDGET not in twin
        assert 'class="demo"' in twin["text/html"]
        assert live["text/html"] == ""  # or who has no widgets would see the twin twice


def test_the_pictures_to_begin_with_have_their_captions(models):
    drawn = demo.pictures(models)
    assert TRUE in drawn.alt
    assert FALSE in drawn.alt
    assert "mini-world" in drawn.alt


# --- the live panels -----------------------------------------------------------------------------


@pytest.fixture
def panel(models):
    return CaptionPanel(models, whole(models))


@pytest.fixture
def asked(monkeypatch):
    """Questions that were answered."""
    found, real = [], demo.ask

    def counted(models, asked, teacher=False):
        found.append(asked.captions)
        return real(models, asked, teacher)

    monkeypatch.setattr(demo, "ask", counted)
    return found


def test_a_double_click_scores_once_and_the_button_rests_meanwhile(panel, asked, monkeypatch):
    states = []
    real = demo.explained
    monkeypatch.setattr(
        demo, "explained", lambda *a: states.append(panel.button.disabled) or real(*a)
    )
    panel.captions.value = f"{TRUE}\na green triangle"
    panel.button.click()
    panel.button.click()
    assert asked == [(TRUE, "a green triangle")]
    assert states == [True]
    assert not panel.button.disabled
    panel.captions.value = "a green triangle"
    panel.button.click()
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        ("", "no caption yet"),
        (" \n", "no caption yet"),
        (ATTACK, "vocabulary"),
        ("a red zebra", "&#x27;zebra&#x27;"),
    ],
)
def test_a_question_that_cannot_be_answered_gets_a_message(panel, captions, told):
    panel.captions.value = captions
    panel.button.click()
    assert told in panel.message.value
    assert 'role="alert"' in panel.message.value
    assert not any(tag == "img" for tag, _ in Tags(panel.message.value).found)
    assert panel.result.value == ""
    assert not panel.button.disabled
    panel.captions.value = TRUE
    panel.button.click()
    assert panel.message.value == ""
    assert TRUE in panel.result.value


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("x" * 999 + " y", "has 1,001 characters, more than 1,000: shorten it"),
        ("&nbsp;", "has no word"),
        ("?!", "has no word"),
        ("a red circle [end] left of a blue square", "a mark of"),
    ],
)
def test_a_caption_that_is_none_is_refused_before_anything_is_computed(
    models, panel, asked, caption, told
):
    panel.captions.value = f"{caption}\n{TRUE}"
    panel.button.click()
    assert told in panel.message.value
    assert len(asked) == (told == "a mark of")
    pair = PairPanel(models, demo.start_pair(models))
    pair.captions[0].value = caption
    assert told in pair.message.value
    assert pair.result.value == ""


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("by none"), KeyError("k")])
def test_no_error_leaves_an_old_answer_or_picture_standing(models, panel, monkeypatch, error):
    def fail(*args):
        assert panel.result.value == ""
        raise error

    pair = PairPanel(models, demo.start_pair(models))
    assert panel.result.value
    assert panel.picker.preview.value
    monkeypatch.setattr(demo, "ask", fail)
    monkeypatch.setattr(demo, "compare", fail)
    monkeypatch.setattr(page, "image_tag", fail)
    panel.captions.value = TRUE
    panel.button.click()
    pair.captions[0].value = FALSE
    panel.picker.scene["first color"].value = "green"
    for said, shown in (
        (panel.message, panel.result), (pair.message, pair.result), (panel.picker.preview, None)
    ):  # fmt: skip
        assert (str(error).strip("'") or "MemoryError") in said.value
        assert shown is None or shown.value == ""
    assert "<img" not in panel.picker.preview.value
    assert not panel.button.disabled


def test_a_caption_of_a_hundred_and_fifty_words_is_answered(panel):
    panel.captions.value = " ".join(["red", "circle", "a"] * 50)
    panel.button.click()
    assert panel.message.value == ""
    assert panel.result.value.count('<span class="word') == explain.WORDS


def upload(panel, name, data):
    panel.picker.upload.value = (
        {"name": name, "type": "image/png", "size": len(data), "content": memoryview(data),
         "last_modified": datetime.now(UTC)},
    )  # fmt: skip


def test_a_wrong_upload_gets_a_message_and_leaves_no_old_picture(panel):
    panel.picker.source.value = "file"
    assert "no picture yet" in panel.picker.preview.value
    upload(panel, "good.png", png())
    panel.button.click()
    assert 'alt="good.png"' in panel.result.value
    upload(panel, "<b>.png", b"hello")
    assert "&lt;b&gt;.png is not an image" in panel.picker.preview.value
    panel.button.click()
    assert "no picture yet" in panel.message.value
    assert panel.result.value == ""


def test_the_upload_offers_what_is_read_and_nothing_else(panel):
    assert set(panel.picker.upload.accept.split(",")) == images.ENDINGS


def test_the_picture_follows_the_controls(panel):
    panel.picker.scene["relation"].value = "below"
    panel.picker.scene["second color"].value = "green"
    ref, about, captions = panel.picker.read()
    scene = Scene((Thing("square", "green", "large"), Thing("circle", "red", "large")), "v")
    assert ref.key == demo.scene_ref(scene).key
    assert captions == demo.scene_captions(scene)
    assert page.text(about) in panel.picker.preview.value
    panel.picker.source.value = "item"
    panel.picker.item.value, panel.picker.image.value = "3", 1
    assert panel.picker.read()[0] is panel.demo.benchmark.items[3].images[1]
    panel.suggest.click()
    assert tuple(panel.captions.value.split("\n")) == panel.demo.benchmark.items[3].captions
    panel.picker.item.value = "99"
    assert "there are 0 to 5" in panel.picker.preview.value


def test_only_the_controls_of_the_chosen_source_are_shown(panel):
    for source in ("file", "item", "scene"):
        panel.picker.source.value = source
        boxes = panel.picker.boxes
        assert [n for n in boxes if boxes[n].layout.display != "none"] == [source]


def test_a_file_brings_no_captions(panel):
    panel.picker.source.value = "file"
    upload(panel, "good.png", png())
    panel.suggest.click()
    assert "write one a line" in panel.message.value


def test_a_picture_of_the_parameters_is_a_source_of_its_own(build, tmp_path):
    (tmp_path / "mine.png").write_bytes(png("blue"))
    models = build(image=str(tmp_path / "mine.png"))
    panel = CaptionPanel(models, demo.ask(models, demo.start(models)))
    assert panel.picker.source.value == "given"
    assert panel.picker.read()[0].name == "mine.png"


def controls(widget):
    children = getattr(widget, "children", ())
    yield from [widget] if not children else []
    for child in children:
        yield from controls(child)


def test_every_control_has_a_label_of_its_own(models):
    for panel in (CaptionPanel(models, whole(models)), PairPanel(models, demo.start_pair(models))):
        labels = [c.description for c in controls(panel.view) if hasattr(c, "keys")
                  and type(c).__name__ not in ("HTML", "Box")]  # fmt: skip
        assert all(labels)
        assert len(set(labels)) == len(labels)


def test_a_pair_is_compared_anew_with_every_change(models):
    panel = PairPanel(models, demo.start_pair(models))
    first = panel.result.value
    assert "✓" in first or "✗" in first
    panel.captions[0].value = "a large green triangle"
    assert panel.result.value != first
    assert "a large green triangle" in panel.result.value
    panel.captions[1].value = " "
    assert "caption 1 is empty" in panel.message.value
    assert panel.result.value == ""
    panel.captions[1].value = FALSE
    assert panel.message.value == ""
    panel.pickers[0].scene["first color"].value = "green"
    assert "green circle left of a blue square" in panel.pickers[0].preview.value


def test_a_whole_item_is_taken_by_its_id(models):
    panel = PairPanel(models, demo.start_pair(models))
    panel.item.value = "4"
    item = models.benchmark.items[4]
    assert tuple(c.value for c in panel.captions) == item.captions
    assert tuple(p.read()[0] for p in panel.pickers) == item.images
    panel.item.value = "nope"
    assert "no item &#x27;nope&#x27;" in panel.message.value
    begun = PairPanel(models, item)
    assert tuple(c.value for c in begun.captions) == item.captions
