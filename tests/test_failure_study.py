"""From score files, runs or the untouched student to an atlas, its figures and its page."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from test_atlas import TAGS, benchmark
from test_failures import GRIDS, score_table

from sdslib.checks.notebooks import FailuresConfig
from sdslib.config import FinetuneConfig
from sdslib.io import runs
from sdslib.io.sources import AccessError
from sdslib.io.wording import ParameterError
from sdslib.lab import baseline
from sdslib.results import settings
from sdslib.sets.roles import load_set
from sdslib.show import failure_study
from sdslib.show.style import Picture
from sdslib.tables import TableError

# Winoground's own way to write a grid: c<caption>_i<image>
AUTHORS = {"s_0_0": "c0_i0", "s_0_1": "c1_i0", "s_1_0": "c0_i1", "s_1_1": "c1_i1"}


@pytest.fixture(autouse=True)
def own_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(failure_study, "load_set", lambda source: benchmark())


def csv(folder, name="scores", grids=GRIDS, **tags):
    table = score_table(grids, **tags).drop(columns=["n_images", "n_captions", "answer"])
    table.rename(columns=AUTHORS).to_csv(folder / f"{name}.csv", index=False)
    return str(folder / f"{name}.csv")


def test_a_score_file_alone_gives_the_whole_atlas(tmp_path):
    study = failure_study.collect(FailuresConfig(scores=csv(tmp_path)))
    drawn = failure_study.draw(study)
    failure_study.save(study, drawn)
    page = (study.run.path / "atlas" / "atlas.html").read_text()
    assert page.count("<article") == 6
    assert "HF_TOKEN" in page
    assert study.run.finished
    made = {name for name, figure in drawn.items() if isinstance(figure, Picture)}
    assert made == {"scores", "modes", "choices", "calibration"}
    written = {p.name for p in (study.run.path / "atlas").glob("*.svg")}
    assert written == {f"{name}.svg" for name in made}
    shares = failure_study.scores(study).query("label == 'all'").set_index("metric")["accuracy"]
    assert shares.to_dict() == {"text": round(2 / 6, 4), "image": 0.5, "group": round(1 / 6, 4)}


def test_two_score_files_show_what_changes(tmp_path):
    files = csv(tmp_path, "before", **TAGS), csv(tmp_path, "after", GRIDS[::-1], **TAGS)
    study = failure_study.collect(FailuresConfig(scores=", ".join(files), teacher_items=0))
    drawn = failure_study.draw(study)
    assert isinstance(drawn["margins"], Picture)
    assert isinstance(drawn["flips"], Picture)
    assert "2 gained" in drawn["margins"].alt


@pytest.mark.parametrize(
    ("tags", "pictures"),
    [
        pytest.param(TAGS, 12, id="same ids and tags"),
        pytest.param({}, 0, id="same ids, no tags"),
        pytest.param(TAGS | {"collapsed_tag": ["Both"] * 6}, 0, id="same ids, other tags"),
    ],
)
def test_pictures_stand_only_beside_scores_of_their_own_set(tmp_path, tags, pictures):
    config = FailuresConfig(scores=csv(tmp_path, **tags), teacher_items=0)
    page = failure_study.html(failure_study.collect(config).atlas)
    assert page.count("<img ") == pictures


def test_a_set_out_of_reach_is_named_on_the_page(tmp_path, monkeypatch):
    def refuse(source):
        raise AccessError("facebook/winoground: the terms are not accepted", "terms-not-accepted")

    monkeypatch.setattr(failure_study, "load_set", refuse)
    config = FailuresConfig(scores=csv(tmp_path), benchmark="winoground")
    assert "the terms are not accepted" in failure_study.html(failure_study.collect(config).atlas)
    with pytest.raises(AccessError):
        failure_study.collect(FailuresConfig(benchmark="winoground"))


def test_fewer_items_are_drawn_at_random_and_alike_from_every_table(tmp_path):
    files = csv(tmp_path, "before"), csv(tmp_path, "after", GRIDS[::-1])
    found = [
        failure_study.collect(FailuresConfig(scores=",".join(files), eval_items=3, seed=seed)).atlas
        for seed in (0, 0, 1, 2, 3)
    ]
    for atlas in found:
        before, after = (table["id"].tolist() for table in atlas.tables.values())
        assert before == after
        assert len(before) == 3
    assert found[0].ids == found[1].ids
    assert len({tuple(atlas.ids) for atlas in found}) > 1


def finished_run(name, scores, folder, **params):
    config = FinetuneConfig(run=name, runs=str(folder), **params)
    run = runs.open_run(config, {}, folder)
    with run:
        run.save_scores("untouched-mini-winoground", score_table(**TAGS))
        run.save_scores("mini-winoground", scores)
        run.finish()
    return run


@pytest.fixture
def two_runs(tmp_path):
    folder = tmp_path / "runs"
    return [
        finished_run("plain", score_table([(2, 1, 0, 3)] * 6, **TAGS), folder, arm="clip-only"),
        finished_run("taught", score_table(GRIDS[::-1], **TAGS), folder),
    ]


def test_runs_bring_the_untouched_student_the_control_and_the_taught_one(two_runs):
    names = ", ".join(run.name for run in two_runs)
    study = failure_study.collect(FailuresConfig(runs=names, teacher_items=0))
    assert list(study.atlas.tables) == ["untouched", "L_CLIP only", "sds"]
    assert failure_study.html(study.atlas).count("<img ") == 12
    answer, where = failure_study.told(study).split("\n")
    assert answer.startswith("Against L_CLIP only sds gains ")
    assert where == f"The page: {study.run.shown_path}/atlas/atlas.html"
    assert "weights" in failure_study.look(study).data
    for gathered in ({}, {"runs": two_runs[1].name}):  # nobody named two
        alone = failure_study.collect(FailuresConfig(teacher_items=0, **gathered))
        assert "Against untouched it gains " in alone.atlas.answer


def test_the_newest_finished_run_and_its_control_are_taken_by_default(two_runs, tmp_path):
    finished_run("other", score_table(**TAGS), tmp_path / "runs", arm="clip-only", seed=5)
    finished_run("newest", score_table(**TAGS), tmp_path / "runs", sds_weight=0.5)
    unfinished = runs.open_run(FinetuneConfig(run="cut", sds_weight=0.7), {}, tmp_path / "runs")
    unfinished.interrupt()
    study = failure_study.collect(FailuresConfig(teacher_items=0))
    assert list(study.atlas.tables) == ["untouched", "L_CLIP only", "sds"]
    control = study.atlas.tables["L_CLIP only"]
    assert (control["s_1_1"] == 3).all()  # the run `plain`, whose seed is that of `newest`


def test_a_control_that_finished_after_its_run_does_not_hide_it(tmp_path):
    """As `02_finetune` leaves them; a control without a run of its setting is not shown."""
    for name, given in (("sds", {}), ("control", {"arm": "clip-only"})):
        finished_run(name, score_table(**TAGS), tmp_path / "runs", **given)
    ask = FailuresConfig(runs=str(tmp_path / "runs"), teacher_items=0)
    assert list(failure_study.collect(ask).atlas.tables) == ["untouched", "L_CLIP only", "sds"]
    lonely = finished_run("lonely", score_table(**TAGS), tmp_path / "runs", arm="clip-only", seed=5)
    assert list(failure_study.collect(ask).atlas.tables) == ["untouched", "L_CLIP only", "sds"]
    named = FailuresConfig(runs=lonely.name, teacher_items=0)
    assert list(failure_study.chosen(named)) == ["L_CLIP only"]
    both = FailuresConfig(runs=f"{lonely.name},sds", teacher_items=0)
    assert list(failure_study.chosen(both)) == ["L_CLIP only, not their control", "sds"]


def test_a_sweeps_runs_are_not_the_newest_and_that_is_said(two_runs, tmp_path):
    made = finished_run("made", score_table(**TAGS), tmp_path / "runs", sds_weight=0.5)
    ask = FailuresConfig(runs=str(tmp_path / "runs"), teacher_items=0)
    assert failure_study.chosen(ask)["sds"].path == made.path
    assert failure_study.left_out(ask) == ""
    diary = tmp_path / "runs" / "sweeps" / "attempts.jsonl"
    diary.parent.mkdir()
    diary.write_text(json.dumps({"id": made.id, "event": "finished"}) + "\n{cut")
    assert failure_study.chosen(ask)["sds"].path == two_runs[1].path
    study = failure_study.collect(ask)
    (said,) = study.atlas.remarks
    assert said.startswith("1 finished run is a sweep's")
    assert said in failure_study.models(study).data.replace("&#x27;", "'")
    offered = failure_study.offered(ask)
    assert [told.endswith("(a sweep's)") for told in offered] == [True, False, False]
    assert list(failure_study.chosen(FailuresConfig(runs=made.name))) == ["sds"]


def test_beside_every_model_stand_its_run_steps_seed_and_items(two_runs):
    names = ", ".join(run.name for run in two_runs)
    study = failure_study.collect(FailuresConfig(runs=names, teacher_items=0))
    told = failure_study.models(study).data
    for run in two_runs:
        passport = f"run {run.name}: 150 steps, seed 0, 6 items"
        assert passport in told
        assert failure_study.html(study.atlas).count(passport) == 1 + 6  # above, and on every card


@pytest.mark.parametrize(
    ("asked", "said"), [(6, ()), (9, ("9 items were asked for; 6 are there",))]
)
def test_fewer_items_than_asked_are_told(tmp_path, asked, said):
    config = FailuresConfig(scores=csv(tmp_path), teacher_items=0, eval_items=asked)
    remarks = failure_study.collect(config).atlas.remarks
    assert [r.split(", and")[0] for r in remarks] == list(said)


def test_other_runs_can_be_picked_where_the_notebook_is_live(two_runs, tmp_path):
    other = finished_run("other", score_table(GRIDS, **TAGS), tmp_path / "runs", sds_weight=0.5)
    few = finished_run("few", score_table(**TAGS).head(3), tmp_path / "runs", sds_weight=0.7)
    study = failure_study.collect(FailuresConfig(runs=two_runs[1].name, teacher_items=0))
    put = []
    picker = failure_study.run_picker(study, lambda atlas: put.append(atlas) or True)
    (told,) = picker.runs.value
    assert two_runs[1].name in told
    by_name = {run.name: told for told, run in picker.offered.items()}
    picker.runs.value = (by_name[other.name], by_name[two_runs[0].name])
    picker.button.click()
    assert "2 runs shown" in picker.message.value
    assert [list(found.tables) for found in put] == [["untouched", "sds", "L_CLIP only"]]
    picker.runs.value = (by_name[few.name],)
    picker.button.click()
    assert "has not scored all 6 items" in picker.message.value
    assert len(put) == 1
    assert list(failure_study.of_runs(study, []).tables) == ["untouched"]


@pytest.mark.parametrize(
    "other",
    [
        *({"steps": 9}, {"lr": 0.5}, {"batch_size": 8}, {"seed": 4}, {"warmup": 3}),
        *({"weight_decay": 0.1}, {"grad_clip": 0.5}, {"interpolation": 0.5}),
    ],
)
def test_a_newer_run_with_other_parameters_is_no_control(two_runs, tmp_path, other):
    """05 and 06 took it, and showed its scores as those of L_CLIP alone."""
    finished_run("late", score_table(**TAGS), tmp_path / "runs", arm="clip-only", **other)
    finished_run("newest", score_table(**TAGS), tmp_path / "runs", sds_weight=0.5)
    chosen = failure_study.chosen(FailuresConfig(runs=str(tmp_path / "runs")))
    assert chosen["L_CLIP only"].path == two_runs[0].path
    finished_run("alone", score_table(**TAGS), tmp_path / "runs", **other)
    chosen = failure_study.chosen(FailuresConfig(runs=str(tmp_path / "runs")))
    assert chosen["L_CLIP only"].name.startswith("late-")


@pytest.mark.parametrize("other", [{"clip_model": "local-dir:other"}, {"benchmark": "winoground"}])
def test_a_newer_run_of_another_student_or_set_is_not_taken(two_runs, tmp_path, other):
    finished_run("elsewhere", score_table(**TAGS), tmp_path / "runs", **other)
    chosen = failure_study.chosen(FailuresConfig(runs=str(tmp_path / "runs")))
    assert {label: run.path for label, run in chosen.items()} == {
        "L_CLIP only": two_runs[0].path,
        "sds": two_runs[1].path,
    }


def test_a_run_may_be_given_by_its_folder_and_all_runs_by_theirs(two_runs, tmp_path, monkeypatch):
    by_folder = failure_study.collect(FailuresConfig(runs=str(two_runs[1].path), teacher_items=0))
    assert list(by_folder.atlas.tables) == ["untouched", "sds"]
    monkeypatch.setattr(settings, "RUNS", str(tmp_path / "elsewhere"))
    whole = failure_study.collect(FailuresConfig(runs=str(tmp_path / "runs"), teacher_items=0))
    assert list(whole.atlas.tables) == ["untouched", "L_CLIP only", "sds"]
    assert whole.run.path.parent == tmp_path / "runs"
    with pytest.raises(runs.RunError, match="no run"):
        failure_study.collect(FailuresConfig(runs=str(tmp_path / "missing"), teacher_items=0))


def test_runs_of_other_items_are_refused(two_runs, tmp_path):
    odd = score_table(**TAGS).assign(id=[str(n) for n in range(10, 16)])
    run = finished_run("odd", odd, tmp_path / "runs", sds_weight=0.25)
    with pytest.raises(TableError, match="other items"):
        failure_study.collect(FailuresConfig(runs=run.name, teacher_items=0))


@pytest.fixture
def models(tiny_models, monkeypatch):
    words = benchmark(captions=("a red circle above a square", "a red square above a circle"))
    monkeypatch.setattr(failure_study, "load_set", lambda source: words)
    monkeypatch.setattr(baseline, "load_set", lambda source: words)
    return tiny_models


@pytest.mark.slow
def test_without_runs_the_student_is_scored_as_it_is_and_judged_beside_the_teacher(
    models, monkeypatch
):
    config = FailuresConfig(teacher_items=4, draws=4, **models)
    study = failure_study.collect(config)
    assert list(study.atlas.tables) == ["untouched", "teacher"]
    assert len(study.atlas.tables["teacher"]) == 4
    assert study.atlas.rules == {"untouched": "", "teacher": "relative"}
    drawn = failure_study.draw(study)
    assert isinstance(drawn["agreement"], Picture)
    monkeypatch.setattr(failure_study, "MAPPED", 2)
    assert "untouched with the teacher over the whole caption: r" in failure_study.look(study).alt
    failure_study.save(study, drawn)
    page = (study.run.path / "atlas" / "atlas.html").read_text()
    assert page.count("<summary>Where each word is seen") == 2


def test_a_finished_study_is_read_and_not_computed_again(models, monkeypatch):
    config = FailuresConfig(teacher_items=4, draws=4, **models)
    first = failure_study.collect(config)
    failure_study.save(first, {})

    def refuse(*args):
        raise AssertionError("loaded a model again")

    monkeypatch.setattr(failure_study, "load_student", refuse)
    monkeypatch.setattr(baseline, "load_teacher", refuse)
    second = failure_study.collect(config)
    assert second.run.path == first.run.path
    for name, table in first.atlas.tables.items():
        pd.testing.assert_frame_equal(second.atlas.tables[name], table)
    assert failure_study.save(second, {}).endswith("atlas/atlas.html")


@pytest.mark.parametrize("kept", ["the same", "another", None])
def test_a_page_that_another_program_drew_is_drawn_anew_and_its_scores_stay(tmp_path, kept):
    config = FailuresConfig(scores=csv(tmp_path))
    study = failure_study.collect(config)
    failure_study.save(study, {})
    page, by = (study.run.path / "atlas" / name for name in ("atlas.html", "drawn_by"))
    whole, numbers = page.read_text(), (study.run.path / "results.parquet").read_bytes()
    page.write_text("old")
    by.write_text(kept) if kept == "another" else kept or by.unlink()
    again = failure_study.collect(config)
    failure_study.save(again, {})
    assert page.read_text() == ("old" if kept == "the same" else whole)
    assert (study.run.path / "results.parquet").read_bytes() == numbers
    assert bool(again.run.problems()) == (kept == "the same")  # it is as its manifest says


def test_the_notebook_holds_the_page_and_somebody_at_it_can_pick_other_runs(tmp_path, monkeypatch):
    study = failure_study.collect(FailuresConfig(scores=csv(tmp_path)))
    assert failure_study.show(study).data == failure_study.html(study.atlas)
    shown = []
    monkeypatch.setattr(failure_study.page, "is_live", lambda: True)
    monkeypatch.setattr(failure_study, "display", lambda view, **_: shown.append(view))
    assert failure_study.show(study) is None
    picker, page = shown
    live, twin = picker.bundles()
    assert "application/vnd.jupyter.widget-view+json" in live
    assert f"{study.run.shown_path}/atlas/atlas.html" in twin["text/html"]
    assert page.data == failure_study.html(study.atlas)


@pytest.mark.parametrize("name", ["sugarcrepe", "aro_relation", "coco_order"])
def test_a_set_whose_items_have_one_image_has_its_atlas_too(photos, monkeypatch, name):
    """The photographs' own sets, with the tags and captions that theirs have."""
    monkeypatch.setattr(failure_study, "load_set", load_set)
    source = getattr(photos, name)
    config = FailuresConfig(benchmark=source, teacher_items=0, **photos.models)
    study = failure_study.collect(config)
    drawn = failure_study.draw(study)
    made = [name for name, figure in drawn.items() if isinstance(figure, Picture)]
    assert made == ["scores", "modes", "calibration"]
    page = failure_study.html(study.atlas)
    assert page.count("<article") == page.count("<img ") == len(load_set(source).items)
    assert study.atlas.title == f"{name.replace('_', '-')} failures"
    assert "accuracy" in set(failure_study.scores(study)["metric"])


def test_a_set_without_captions_to_choose_from_is_refused_by_name(monkeypatch):
    classes = replace(benchmark(), name="cifar10", kind="classes")
    monkeypatch.setattr(failure_study, "load_set", lambda source: classes)
    with pytest.raises(ParameterError, match="'cifar10' has no captions to choose from"):
        failure_study.collect(FailuresConfig(benchmark="cifar10"))
