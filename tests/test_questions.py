"""What may be asked of the demo's models, and that they answer as the library does."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import tiny
from test_atlas import benchmark
from test_evaluate import noise

from sdslib.benchmarks import Item
from sdslib.checks.notebooks import DemoConfig
from sdslib.config import CONTROL, FinetuneConfig
from sdslib.evaluate import clip_scorer, score_grids
from sdslib.io import runs
from sdslib.io.images import ImageError
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.lab import baseline
from sdslib.results import settings
from sdslib.show import demo, explain, failure_study, panels, questions, views
from sdslib.show.questions import Question, QuestionError
from sdslib.student import load_student

TRUE, FALSE = "a red circle left of a blue square", "a blue square left of a red circle"


@pytest.fixture
def build(tiny_models, tmp_path, monkeypatch):
    """Loads tiny models, no run of this machine, and six pairs that they can read."""
    words = benchmark(captions=("a red circle above a square", "a red square above a circle"))
    monkeypatch.setattr(settings, "RUNS", str(tmp_path / "runs"))
    for room in (demo, baseline):
        monkeypatch.setattr(room, "load_set", lambda source: words)
    return lambda **changes: demo.load(DemoConfig(draws=4, **(tiny_models | changes)))


@pytest.fixture
def models(build):
    return build()


def question(*captions):
    return Question(noise(0), captions or (TRUE, FALSE), "noise")


# --- models --------------------------------------------------------------------------------------


def test_without_a_run_there_is_the_untouched_student_and_no_teacher_until_asked(models):
    models.ask(question())
    assert list(models.students) == list(models.scorers()) == ["untouched"]
    assert "teacher" not in vars(models)
    assert models.table()["model"].tolist() == ["untouched", "teacher (asked on request)"]


def finished_run(folder, student, **params):
    run = runs.open_run(FinetuneConfig(runs=str(folder), **params), {}, folder)
    with run:
        with run.staged("weights") as stage:
            student.save(stage)
        run.finish()
    return run


def test_runs_stand_beside_the_student_that_they_began_with(build, tiny_models, tmp_path):
    taught = load_student(f"local-dir:{tiny.save_student(tmp_path / 'taught', seed=3)}", None)
    folder, model = tmp_path / "runs", tiny_models["clip_model"]
    found = [
        finished_run(folder, taught, clip_model=model, arm=arm) for arm in ("clip-only", "sds")
    ]
    models = build(runs=", ".join(str(run.path) for run in found))
    assert list(models.students) == list(build().students) == ["untouched", CONTROL, "sds"]
    table = explain.score_table(models.students, noise(0), (TRUE, FALSE))
    scores = {m: part["score"].to_numpy() for m, part in table.groupby("model")}
    expected = explain.score(clip_scorer(taught), noise(0), (TRUE, FALSE))
    np.testing.assert_allclose(scores["sds"], expected, atol=1e-6)
    assert not np.allclose(scores["sds"], scores["untouched"])


def test_a_run_of_another_student_brings_its_own_untouched_one(build, tiny_models, tmp_path):
    other = tiny.save_student(tmp_path / "other", seed=5)
    student = load_student(str(other), None)
    sources = (tiny_models["clip_model"], f"local-dir:{other}")
    found = [finished_run(tmp_path / "runs", student, clip_model=s) for s in sources]
    models = build(runs=",".join(run.name for run in found))
    assert list(models.students)[:2] == ["untouched", "untouched 2"]
    assert len(models.students) == 4


def test_other_runs_are_asked_once_they_are_picked(build, tiny_models, tmp_path):
    folder, model = tmp_path / "runs", tiny_models["clip_model"]
    taught = load_student(f"local-dir:{tiny.save_student(tmp_path / 'taught', seed=3)}", None)
    found = [finished_run(folder, taught, clip_model=model, seed=seed) for seed in (0, 1)]
    models = build(runs=found[0].name)
    first, told = models.first, failure_study.made_by(found[1])
    assert models.table()["made by"].tolist()[:2] == ["no run", failure_study.made_by(found[0])]
    assert first.passports == {"sds": failure_study.made_by(found[0])}
    assert first.passports["sds"] in views.html(first)
    panel, there = panels.CaptionPanel(models, first, lambda job: job()), demo.run_picker(models)
    assert len(there.offered) == 2
    assert there.runs.value == (failure_study.made_by(found[0]),)
    assert "1 more finished runs" in demo.pick(models).data
    there.runs.value = [told]
    there.button.click()
    assert "1 run shown from the next question on" in there.message.value
    assert models.first is not first
    panel.score()  # the same question, but of another student
    assert told in panel.result.value


def test_a_name_that_is_no_run_is_refused(build):
    with pytest.raises(runs.RunError, match="no run 'nothing'"):
        build(runs="nothing")


def test_a_benchmark_that_is_not_here_leaves_the_rest_and_says_why(build, monkeypatch):
    def refuse(source):
        raise DataError("winoground: accept the terms first")

    monkeypatch.setattr(demo, "load_set", refuse)
    models = build()
    assert "untouched" in views.html(models.ask(questions.start(models)))
    with pytest.raises(QuestionError, match="accept the terms"):
        models.item("0")


# --- what may be asked ---------------------------------------------------------------------------


def test_captions_are_lines_without_blanks_and_doubles():
    assert questions.lines("  a \n\n b\na\r\n") == ("a", "b")
    for empty in ("", " \n\t\n"):
        with pytest.raises(QuestionError, match="no caption yet"):
            questions.lines(empty)
    with pytest.raises(QuestionError, match="13 captions are more than 12"):
        questions.lines("\n".join(map(str, range(13))))


def test_an_upload_is_a_picture_or_refused_by_name():
    assert questions.upload_ref("mine.png", tiny.png("red")).load().size == (24, 24)
    with pytest.raises(ImageError, match=r"text\.png is not an image \(starts with 'hello'\)"):
        questions.upload_ref("text.png", b"hello")


def test_the_parameters_ask_the_first_question(build, tmp_path):
    (tmp_path / "mine.png").write_bytes(tiny.png("red"))
    given = {"image": str(tmp_path / "mine.png"), "captions": "a red circle | a square"}
    asked = questions.start(build(**given))
    assert asked.ref.load().size == (24, 24)
    assert asked.captions == ("a red circle", "a square")
    models = build(item="2")
    assert questions.start(models).captions == models.benchmark.items[2].captions
    assert questions.start_pair(models) == models.benchmark.items[2]
    with pytest.raises(ParameterError, match="item: no item '77' in winoground; there are 0 to 5"):
        questions.start(build(item="77"))
    with pytest.raises(ParameterError, match=r"image: none\.png does not exist"):
        questions.start(build(image=str(tmp_path / "none.png")))


def test_a_set_of_photographs_begins_with_its_first_item_and_draws_no_scene(build, tmp_path):
    (tmp_path / "mine.png").write_bytes(tiny.png("red"))
    models = build(benchmark="winoground:data/winoground")
    first = models.benchmark.items[0]
    asked = questions.start(models)
    assert asked.captions == first.captions
    assert questions.start_pair(models) == first
    assert "mini-world" not in demo.pictures(models).alt + asked.about
    panel = panels.CaptionPanel(models, models.ask(asked))
    assert panel.picker.source.value == "given"
    alone = questions.start(build(benchmark="winoground:x", image=str(tmp_path / "mine.png")))
    assert (alone.about, alone.captions) == ("mine.png", first.captions)
    absent = replace(models, benchmark=None, absent="it is not here")
    assert questions.start(absent).about.startswith("a drawn scene of the mini-world")
    assert "mini-world" in demo.pictures(absent).alt


# --- answers -------------------------------------------------------------------------------------


def test_scores_equal_the_librarys(models):
    table = models.ask(question()).scores
    item = Item("0", (noise(0),), (TRUE, FALSE), 0)
    own = replace(models.benchmark, kind="choice", items=(item,))
    expected = score_grids(clip_scorer(models.students["untouched"].student), own)
    assert table["score"].to_numpy() == pytest.approx(expected[["s_0_0", "s_0_1"]].to_numpy()[0])


def test_the_teacher_answers_on_request_draw_by_draw(models):
    answer = models.ask(question(), teacher=True)
    assert answer.scores["model"].tolist() == ["untouched"] * 2 + ["teacher"] * 2
    assert list(answer.errors.columns) == ["t", 0, 1]
    assert len(answer.errors) == 4
    text = views.html(answer)
    values = answer.errors[[0, 1]].to_numpy()
    for k, wins in enumerate(np.bincount(values.argmin(axis=1), minlength=2)):
        assert f"smallest in {wins} of 4 draws" in text
        assert f"mean error {values[:, k].mean():.4f}" in text
    assert "All 4 draws" in text
    assert text.count("<td>✓ ") == 4
    assert models.ask(question()).errors is None


def scores_of(models, asked):
    return models.ask(asked).scores


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
    told = "of its 20 words each student reads the first 14"
    assert told in views.html(models.ask(question(long, TRUE)))
