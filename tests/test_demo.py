"""The demo: one view for the live panel and the saved notebook, and inputs that cannot hurt it."""

import html
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pages
import pandas as pd
import psutil
import pytest
import tiny
from faults.catalog import each, fault
from test_atlas import ATTACK
from test_evaluate import noise
from test_images import png_header
from test_questions import FALSE, TRUE, question
from test_questions import build as build
from test_questions import models as models

from sdslib.io import images
from sdslib.miniworld import composing
from sdslib.miniworld.drawing import Scene, Thing
from sdslib.results import failures
from sdslib.show import demo, explain, page, questions, views
from sdslib.show.panels import CaptionPanel, PairPanel
from sdslib.show.questions import Demo, Question

WIDGET = "application/vnd.jupyter.widget-view+json"


def whole(models, *captions, teacher=False):
    return models.explained(models.ask(question(*captions), teacher))


# --- the view ------------------------------------------------------------------------------------


def test_the_page_says_in_text_what_the_answer_holds(models):
    answer = whole(models)
    text = views.html(answer)
    for value in answer.scores["score"]:
        assert f'<b class="score">{page.number(value)}</b>' in text
    lead = answer.scores["margin"].max()
    assert f"✓ best by {page.number(lead)}<" in text
    assert f"✗ behind by {page.number(lead)}<" in text
    assert text.count('class="word ') == len(answer.words["untouched"]) == 16
    assert text.count("◆ ") == answer.words["untouched"]["decides"].sum()
    for row in answer.harder["untouched"].itertuples():
        assert f'<td class="text">{row.text}</td><td>{page.number(row.score)}</td>' in text
    assert 'alt="noise"' in text


def test_the_maps_are_of_the_caption_that_wins(models):
    for captions in ((TRUE, "circle"), ("circle", TRUE)):
        answer = models.mapped(models.ask(question(*captions)))
        best = answer.scores["score"].argmax()
        assert answer.maps.names[1:] == captions[best].split()
        assert f"“{captions[best]}”, which scores highest by untouched" in views.html(answer)


def test_a_tie_and_a_lone_caption_are_told(models):
    assert views.html(whole(models, TRUE, TRUE.upper())).count("= tie") == 2
    alone = views.html(whole(models, "circle"))
    assert "the only caption" in alone
    assert "has none" in alone


@pytest.mark.parametrize(
    ("values", "noise_of", "signs"),
    [
        ([0.5, 0.25], 0.1, "✓✗"),
        ([-2.0, -1.0], 0.1, "✗✓"),
        ([0.5, 0.4], 0.2, "≈≈"),
        ([0.0, 0.0], 0.0, "=="),
        ([0.5, 0.5, 0.1], 1e-3, "==✗"),
        ([0.5, 0.49, 0.1], 0.1, "≈≈✗"),
        ([0.5, 0.2], np.inf, "≈≈"),
    ],
)
def test_a_margins_bar_begins_in_the_middle_and_nothing_wins_within_the_noise(
    models, values, noise_of, signs
):
    asked = question(*(TRUE, FALSE, "a circle")[: len(values)])
    table = pd.DataFrame(
        {"model": "untouched", "caption": asked.captions, "score": values, "far": 0.1}
    )
    margin = explain.margins(np.array(values))
    text = views.html(questions.Answer(asked, table.assign(margin=margin, noise=noise_of)))
    cells = pages.read(text).select("table.answers td:nth-of-type(2)")
    assert "".join(cell.select(".bar ~ span")[0].text.strip()[0] for cell in cells) == signs
    assert ("best by" in text) == ("✓" in signs)
    for cell, lead in zip(cells, margin, strict=True):
        drawn = [bar["style"] for bar in cell.select(".bar > *")]
        (left, across), (start, length) = (map(float, re.findall(r":([\d.]+)%", s)) for s in drawn)
        assert left + across / 2 == pytest.approx(50)
        assert (start + length if lead < 0 else start) == pytest.approx(50, abs=0.11)
        assert (length <= across / 2 + 0.11) == (abs(lead) <= noise_of)
        assert -0.1 <= start <= start + length <= 100.1


@fault("script in a caption or a tag")
def test_markup_in_captions_and_names_stays_text(models):
    answer = whole(models)
    spoilt = replace(answer, question=Question(noise(0), (ATTACK, FALSE), ATTACK), notes=(ATTACK,))
    spoilt.words["untouched"]["word"] = ATTACK
    spoilt.harder["untouched"]["text"] = ATTACK
    said = views.message(ATTACK)
    for text in (views.html(spoilt), said):
        found = pages.read(text)
        assert not found.select("script")
        assert not pages.outside(text)
        assert not any(name.startswith("on") for tag in found.find_all(True) for name in tag.attrs)
    return said


def test_the_page_refers_to_nothing_outside(models):
    pair = views.pair_html(models, questions.start_pair(models))
    text = views.html(whole(models, teacher=True)) + pair
    assert not pages.outside(text)
    assert not pages.read(text).select("[href], img:not([alt]), img[alt='']")


def test_two_images_and_two_captions_are_the_atlas_card(models):
    item = models.benchmark.items[1]
    text, found = views.pair_html(models, item, teacher=True), models.grids(item, teacher=True)
    assert "<b>untouched</b>" in text
    assert "<b>teacher</b>" in text
    signs, cells = "", pages.read(text).select("td.lead")
    for model, (near, _) in found.doubts.items():
        leads = list(found.verdicts[model][item.id].leads.values())
        leads = [leads[n] for n in (0, 2, 3, 1)]  # as the card has them
        signs += "".join("≈" if abs(v) <= near else "✓" if v > 0 else "✗" for v in leads)
    assert "".join(cell.text.strip()[0] for cell in cells) == signs
    assert {"✓", "✗", "≈"} == set(signs)
    assert all(len(cell.select(".bar > *")) == 2 for cell in cells)


def test_the_teachers_doubt_is_two_standard_errors_of_its_largest_lead_over_independent_draws(
    models,
):
    asked, teacher = (models.benchmark.items[1].images, (TRUE, FALSE)), models.teacher
    tables = [explain.draw_errors(teacher, ref, asked[1]).drop(columns="t") for ref in asked[0]]
    drawn = np.stack([table * teacher.weights[:, None] for table in tables], 1)
    pairs = (drawn[::2] + drawn[1::2]) / 2
    leads = [pairs[:, a, b] - pairs[:, c, d] for (a, b), (c, d) in failures.INEQUALITIES.values()]
    near = max(2 * lead.std(ddof=1) / len(lead) ** 0.5 for lead in leads)
    assert explain.doubt(teacher, *asked) == pytest.approx((near, 5 * near))
    student = models.students["untouched"]
    assert explain.doubt(student, *asked)[0] == explain.rounding(student.student)


# --- what the notebook shows ---------------------------------------------------------------------


@pytest.mark.parametrize("show", [demo.captions, demo.winoground])
def test_a_saved_notebook_shows_the_twin_and_a_live_one_keeps_it_beside_the_widget(
    models, monkeypatch, show
):
    saved = show(models)
    assert 'class="demo"' in saved.data
    assert "make lab" in saved.data
    assert not hasattr(saved, "bundles")
    monkeypatch.setattr(page, "is_live", lambda: True)
    live, twin = show(models).bundles()
    assert WIDGET in live
    assert WIDGET not in twin
    assert 'class="demo"' in twin["text/html"]
    assert live["text/html"] == ""  # or who has no widgets would see the twin twice


def test_the_pictures_to_begin_with_have_their_captions(models):
    drawn = demo.pictures(models)
    for words in (TRUE, FALSE, "mini-world"):
        assert words in drawn.alt


# --- the live panels -----------------------------------------------------------------------------


def at_once(job):
    job()


@pytest.fixture
def panel(models):
    return CaptionPanel(models, whole(models), at_once)


@pytest.fixture
def pair(models):
    return PairPanel(models, questions.start_pair(models), at_once)


@pytest.fixture
def asked(monkeypatch):
    """Captions of the questions that were answered."""
    found, real = [], Demo.ask

    def counted(models, asked, teacher=False):
        found.append(asked.captions)
        return real(models, asked, teacher)

    monkeypatch.setattr(Demo, "ask", counted)
    return found


def score(panel, *captions):
    panel.captions.value = "\n".join(captions)
    panel.button.click()


@fault("button pressed twice")
def test_a_double_click_scores_once_and_the_button_rests_meanwhile(panel, asked, monkeypatch):
    states, real = [], Demo.explained
    monkeypatch.setattr(
        Demo, "explained", lambda *a: states.append(panel.button.disabled) or real(*a)
    )
    score(panel, TRUE, "a green triangle")
    panel.button.click()
    said = f"scored {len(asked)} time"
    assert states == [True]
    assert not panel.button.disabled
    score(panel, "a green triangle")
    assert asked == [(TRUE, "a green triangle"), ("a green triangle",)]
    return said


@each(
    {
        "question without a caption": " \n",
        "word that a model cannot write, typed into the demo": "a purple circle",
    },
    ("", "no caption yet"),
    (ATTACK, "vocabulary"),
)
def test_a_question_that_cannot_be_answered_gets_a_message(panel, given):
    score(panel, given)
    said = panel.message.value
    assert 'role="alert"' in said
    assert "<img" not in said
    assert panel.result.value == ""
    assert not panel.button.disabled
    score(panel, TRUE)
    assert panel.message.value == ""
    assert TRUE in panel.result.value
    return html.unescape(said)


@pytest.mark.parametrize(
    ("caption", "told"),
    [
        ("x " * 5001, "has 10001 characters; the limit is 10000"),
        ("x" * 1001, "has a word of 1001 characters"),
        ("&nbsp;", "has no word"),
        ("?!", "has no word"),
        ("a red circle [end] left of a blue square", "a mark of"),
    ],
)
def test_a_caption_that_is_none_is_refused_before_anything_is_computed(
    panel, pair, asked, caption, told
):
    score(panel, caption, TRUE)
    assert told in panel.message.value + panel.result.value
    assert len(asked) == (told == "a mark of")
    pair.captions[0].value = caption
    assert told in pair.message.value
    assert pair.result.value == ""


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("by none"), KeyError("k")])
def test_no_error_leaves_an_old_answer_or_picture_standing(panel, pair, monkeypatch, error):
    def fail(*args):
        assert panel.result.value == ""
        raise error

    assert panel.result.value
    assert panel.picker.preview.value
    monkeypatch.setattr(Demo, "ask", fail)
    monkeypatch.setattr(Demo, "grids", fail)
    score(panel, TRUE)
    pair.captions[0].value = FALSE
    monkeypatch.setattr(composing, "png", fail)
    panel.picker.scene["first color"].value = "green"
    for said in (panel.message, pair.message, panel.picker.preview):
        assert (str(error).strip("'") or "MemoryError") in said.value
    assert panel.result.value == pair.result.value == ""
    assert "<img" not in panel.picker.preview.value
    assert not panel.button.disabled


def test_five_thousand_characters_cost_what_is_read_of_them(panel, asked):
    caption = " ".join(["a red circle left of a blue square and"] * 128)[:5000].strip()
    before, begun = psutil.Process().memory_info().rss, time.process_time()
    score(panel, caption, TRUE)
    assert time.process_time() - begun < 3
    assert psutil.Process().memory_info().rss - before < 1.5e9
    assert asked == [(caption, TRUE)]
    said = pages.read(panel.result.value)
    assert "each student reads the first 14" in said.select_one(".message").text
    words = said.select(".words")[0].select(".word")
    assert len(words) == 14
    assert len(re.sub('base64,[^"]*', "", panel.result.value)) < 40_000


def upload(panel, name, data, piece=1 << 19):
    """As the browser does: a piece, and the next one from where the answer says."""
    panel.picker.source.value, control, have = "file", panel.picker.upload, [0]
    control.send = lambda told: have.append(told["have"])
    while True:
        start = have[-1]
        told = {"name": name, "size": len(data), "start": start}
        control.take(control, told, [memoryview(data[start : start + piece])])
        if have[-1] >= len(data):
            return have


def test_an_upload_comes_in_pieces_and_says_how_much_is_here(panel):
    data = tiny.png(noise(0).load())
    assert upload(panel, "good.png", data, 100) == [0, *range(100, len(data), 100), len(data)]
    assert panel.picker.read().ref.data() == data
    upload(panel, "other.png", tiny.png("blue"), 50)
    assert panel.picker.read().ref.data() == tiny.png("blue")


@each(
    {
        "upload that is no picture": ("notes.txt", b"dear diary"),
        "upload of too many pixels": ("big.png", png_header(30_000, 30_000)),
    },
    (("<b>.png", b"hello"), "<b>.png is not an image"),
)
def test_a_wrong_upload_gets_a_message_and_leaves_no_old_picture(panel, given):
    panel.picker.source.value = "file"
    assert "no picture yet" in panel.picker.preview.value
    upload(panel, "good.png", tiny.png("red"))
    panel.button.click()
    assert 'alt="good.png"' in panel.result.value
    upload(panel, *given)
    said = panel.picker.preview.value
    assert "<b>" not in said
    panel.button.click()
    assert "no picture yet: choose a picture file" in panel.message.value
    assert panel.result.value == ""
    return html.unescape(said)


def test_the_upload_offers_what_is_read_and_nothing_else(panel):
    assert set(panel.picker.upload.kinds.split(",")) == images.ENDINGS


def test_the_picture_follows_the_controls(panel):
    panel.picker.scene["relation"].value = "below"
    panel.picker.scene["second color"].value = "green"
    found = panel.picker.read()
    scene = Scene((Thing("square", "green", "large"), Thing("circle", "red", "large")), "v")
    assert found.ref.key == composing.picture(scene).key
    assert found.captions == composing.captions(scene)
    assert found.about in panel.picker.preview.value
    panel.picker.source.value = "item"
    panel.picker.item.value, panel.picker.image.value = "3", 1
    item = panel.demo.benchmark.items[3]
    assert panel.picker.read().ref is item.images[1]
    panel.suggest.click()
    assert tuple(panel.captions.value.split("\n")) == item.captions
    panel.picker.item.value = "99"
    assert "there are 0 to 5" in panel.picker.preview.value


def test_only_the_controls_of_the_chosen_source_are_shown(panel):
    for source in ("file", "item", "scene"):
        panel.picker.source.value = source
        boxes = panel.picker.boxes
        assert [n for n in boxes if boxes[n].layout.display != "none"] == [source]


def test_a_file_brings_no_captions(panel):
    upload(panel, "good.png", tiny.png("red"))
    panel.suggest.click()
    assert "write one a line" in panel.message.value


def test_a_picture_of_the_parameters_is_a_source_of_its_own(build, tmp_path):
    (tmp_path / "mine.png").write_bytes(tiny.png("blue"))
    models = build(image=str(tmp_path / "mine.png"))
    panel = CaptionPanel(models, models.ask(questions.start(models)), at_once)
    assert panel.picker.source.value == "given"
    assert panel.picker.read().ref.name == "mine.png"


def controls(widget):
    children = getattr(widget, "children", ())
    yield from [widget] if not children else []
    for child in children:
        yield from controls(child)


def test_every_control_has_a_label_of_its_own(panel, pair):
    for shown in (panel, pair):
        labels = [c.description for c in controls(shown.view) if hasattr(c, "keys")
                  and type(c).__name__ not in ("HTML", "Box", "Keys")]  # fmt: skip
        assert all(labels)
        assert len(set(labels)) == len(labels)


def test_a_pair_is_compared_anew_with_every_change(pair):
    first = pair.result.value
    assert "✓" in first or "✗" in first
    pair.captions[0].value = "a large green triangle"
    assert pair.result.value != first
    assert "a large green triangle" in pair.result.value
    pair.captions[1].value = " "
    assert "caption 1 is empty" in pair.message.value
    assert pair.result.value == ""
    pair.captions[1].value = FALSE
    assert pair.message.value == ""
    pair.pickers[0].scene["first color"].value = "green"
    assert "green circle left of a blue square" in pair.pickers[0].preview.value


def test_an_answer_to_another_question_is_greyed_and_says_so(panel, build):
    def changes():
        panel.captions.value = FALSE
        yield
        panel.captions.value = ""
        yield
        panel.captions.value = f"{TRUE}\n{FALSE}"
        panel.teacher.value = True
        yield
        panel.teacher.value = False
        panel.picker.scene["first color"].value = "green"
        yield
        panel.picker.scene["first color"].value = "red"
        panel.demo.take(panel.demo.students | {}, {"untouched": "another run"})
        yield

    panel.picker.source.value = "scene"
    score(panel, TRUE, FALSE)
    assert (panel.result.value != "", panel.stale.value) == (True, "")
    for _ in changes():
        assert "earlier question" in panel.stale.value
        assert "stale" in panel.result._dom_classes
    score(panel, TRUE, FALSE)
    assert panel.stale.value == ""
    assert "stale" not in panel.result._dom_classes


def aside(job):
    aside.thread = threading.Thread(target=job)
    aside.thread.start()


@pytest.mark.parametrize("ended_by", ["cancel", "another question"])
def test_scoring_ends_at_the_next_layer_once_nobody_waits(models, monkeypatch, ended_by):
    panel, began, go_on = PairPanel(models, questions.start_pair(models), aside), [], []
    aside.thread.join()
    real = Demo.grids

    def slow(self, *asked):
        began.append(asked)
        while len(began) == 1 and not go_on:
            time.sleep(0.001)
        return real(self, *asked)

    monkeypatch.setattr(Demo, "grids", slow)
    panel.captions[0].value = "a green circle"
    first = aside.thread
    if ended_by == "cancel":
        panel.cancel.click()
    else:
        panel.captions[0].value = "a yellow circle"
        aside.thread.join()
        said = panel.result.value
    go_on.append(True)
    first.join()
    if ended_by == "cancel":
        assert "cancelled" in panel.message.value
        assert panel.result.value == ""
    else:
        assert "a yellow circle" in said == panel.result.value
        assert panel.message.value == ""
    assert panel.cancel.disabled


def test_one_caption_of_unknown_words_is_left_out_and_the_rest_is_answered(panel):
    score(panel, "a redd circle", TRUE, FALSE)
    said = pages.read(panel.result.value)
    (told,) = (note.text for note in said.select(".message"))
    assert "left out: caption 'a redd circle'" in told
    assert "'redd' (known are 'red'" in told
    assert len(said.select("table.answers b.score")) == 2
    assert panel.demo.ask(question("a redd circle", TRUE)).left_out.keys() == {"a redd circle"}


def test_the_square_that_the_student_sees_is_framed(panel):
    upload(panel, "wide.png", tiny.png("red", (60, 30)))
    assert "left:25.00%;top:0.00%;width:50.00%;height:100.00%" in panel.picker.preview.value
    score(panel, TRUE)
    assert "the student sees what is framed" in panel.result.value
    upload(panel, "square.png", tiny.png("red", (30, 30)))
    assert "<i style" not in panel.picker.preview.value


def test_a_model_of_the_mini_world_carries_a_caution_beside_any_other_picture(panel, monkeypatch):
    told = "untouched know drawn scenes of the mini-world alone"
    score(panel, TRUE)
    assert told not in panel.result.value
    monkeypatch.setattr(questions.drawing, "vocabulary", lambda: tiny.WORDS)
    for source, expected in (("scene", False), ("file", True)):
        upload(panel, "good.png", tiny.png("red"))
        panel.picker.source.value = source
        score(panel, FALSE)
        assert (told in panel.result.value) == expected


def test_a_saved_notebook_keeps_the_last_answer(models, monkeypatch):
    published = []
    monkeypatch.setattr(page, "is_live", lambda: True)
    monkeypatch.setattr(
        "IPython.display.publish_display_data", lambda data, **rest: published.append((data, rest))
    )
    panel = CaptionPanel(models, whole(models), at_once)
    shown = page.Live(panel, "first")
    shown._ipython_display_()
    (_, _), (twin, first) = published
    score(panel, "a green triangle")
    last, later = published[-1]
    assert later["transient"] == first["transient"]
    assert later["update"]
    assert "first" in twin["text/html"]
    assert "a green triangle" in last["text/html"]
    assert shown.bundles()[1] == last


def test_a_whole_item_is_taken_by_its_id(models, pair):
    pair.item.value = "4"
    item = models.benchmark.items[4]
    assert tuple(c.value for c in pair.captions) == item.captions
    assert tuple(p.read().ref for p in pair.pickers) == item.images
    pair.item.value = "nope"
    assert "no item &#39;nope&#39;" in pair.message.value
    begun = PairPanel(models, item, at_once)
    assert tuple(c.value for c in begun.captions) == item.captions
