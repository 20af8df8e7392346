"""Published evidence: complete, without weights and folders, and the committed tables are its."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from faults.catalog import fault, refused
from finished import finish

from sdslib.io.paths import project_root
from sdslib.io.run import Run, RunError
from sdslib.io.runs import open_run
from sdslib.results import publish, sweep
from sdslib.results.settings import StudyError, config_of

ROOT = project_root()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [finish(root, "sds", seed, weights=True) for seed in (0, 1)], [
        finish(root, "clip-only", seed) for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def folder(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    publish.study("small", runs[0], folder)
    return folder


def test_a_study_keeps_its_runs_and_their_controls_without_weights_or_folders(runs, folder):
    kept = publish.published("small", folder)
    by_name = {run.name: run for part in runs for run in part}
    assert {run.name for run in kept} == by_name.keys()
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    assert "history.jsonl" in files
    assert not [name for name in files if name.endswith(".safetensors")]
    for run in kept:
        assert run.params["runs"] is None
        for name in run.score_names():
            copy, source = run.scores(name), by_name[run.name].scores(name)
            pd.testing.assert_frame_equal(copy, source)
            assert copy.attrs == {k: v for k, v in source.attrs.items() if k != "seconds"}


def test_equal_scores_are_equal_files_whatever_they_took(runs, folder):
    (one, other), name = runs[0], "scores/untouched-mini-winoground.parquet"
    ours, theirs = (folder / "small" / run.name / name for run in (one, other))
    assert ours.read_bytes() == theirs.read_bytes()
    assert (one.path / name).read_bytes() != (other.path / name).read_bytes()


def test_a_study_is_exactly_what_is_named(runs, folder, tmp_path):
    publish.study("again", runs[0], tmp_path)
    publish.study("again", runs[1], tmp_path)
    assert {r.name for r in publish.published("again", tmp_path)} == {r.name for r in runs[1]}
    assert publish.names(tmp_path) == ["again"]
    assert publish.names(tmp_path / "absent") == []


def test_a_run_of_a_study_may_be_published_in_another(folder, tmp_path):
    own = folder / "small"
    publish.study("again", publish.published("small", folder), tmp_path)
    for path in own.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(own)).read_bytes()
    found = publish.published("again", tmp_path)
    next((tmp_path / "again").rglob("history.jsonl")).write_text("")
    with pytest.raises(StudyError, match=r"again/.*history"):
        publish.study("third", found, tmp_path)


def test_a_run_that_is_not_finished_is_refused(tmp_path):
    run = finish(tmp_path, "clip-only")
    other = open_run(config_of(run).model_copy(update={"seed": 3}), {}, tmp_path)
    with pytest.raises(StudyError, match="is not finished"):
        publish.study("a", [other], tmp_path)
    other.interrupt()


def test_a_run_whose_control_is_nowhere_is_refused(tmp_path):
    with pytest.raises(StudyError, match="the control of"):
        publish.study("a", [finish(tmp_path / "runs", "sds")], tmp_path)
    assert publish.names(tmp_path) == ["runs"]


@fault("damaged run to be published")
def test_what_is_damaged_is_not_published_and_not_shown(tmp_path):
    run = finish(tmp_path / "runs", "clip-only", items=4)
    publish.study("a", [run], tmp_path / "published")
    name = "scores/mini-winoground.parquet"
    other = run.scores("mini-winoground").head(2).to_parquet(index=False)
    (run.path / name).write_bytes(other)
    said = refused(StudyError, publish.study, "b", [run], tmp_path / "published")
    kept = tmp_path / "published" / "a" / run.name
    (kept / name).write_bytes(other)
    with pytest.raises(StudyError, match=f"a/{run.name}/{name} has .* bytes in place of"):
        publish.published("a", tmp_path / "published")
    with pytest.raises(RunError, match=f"{name} differs from its sha256"):
        Run(kept).scores("mini-winoground")
    return said


@fault("study that would replace another folder")
@pytest.mark.parametrize("name", ["../docs", "../../docs", "/tmp/x", "a/b", "", ".", "x" * 300])
def test_a_study_is_kept_nowhere_else_than_below_its_folder(tmp_path, name):
    run = finish(tmp_path / "runs", "clip-only", items=4)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "mine.md").write_text("mine")
    said = refused(StudyError, publish.study, name, [run], tmp_path / "published")
    assert (tmp_path / "docs" / "mine.md").read_text() == "mine"
    return said


def test_a_folder_that_is_no_study_is_not_replaced(tmp_path):
    run = finish(tmp_path / "runs", "clip-only", items=4)
    with pytest.raises(StudyError, match="runs is there and is no published study; choose anoth"):
        publish.study("runs", [run], tmp_path)
    assert run.problems() == []


def test_an_unknown_study_is_told_which_there_are(folder):
    with pytest.raises(StudyError, match="no study 'smal' is published; there are small"):
        publish.published("smal", folder)


def test_settings_stand_by_arm_and_then_by_their_numbers(tmp_path):
    made = [
        *(finish(tmp_path, "sds", steps=steps) for steps in (100, 5, 20)),
        *(finish(tmp_path, "clip-only", steps=steps) for steps in (20, 100, 5)),
    ]
    order = [(s.values["arm"], s.values["steps"]) for s in publish.in_order(made)]
    assert order == [(arm, steps) for arm in ("clip-only", "sds") for steps in (5, 20, 100)]


def test_the_published_studies_can_be_trained_again():
    for name in publish.names():
        for run in publish.published(name):
            given = publish.given(run)
            assert "runs" not in given
            assert given.get("arm", "sds") == run.params["arm"]


def test_a_run_by_verdicts_is_trained_again_by_the_same_file(tmp_path):
    told = {"verdicts": "data/mini/verdicts.parquet", "negatives_each": 3, "sds_weight": 1.0}
    run = finish(tmp_path, "teacher-choice", **told)
    assert publish.given(run) == {"arm": "teacher-choice"} | told


def test_parameters_that_are_no_more_are_told(folder, monkeypatch):
    run = publish.published("small", folder)[0]
    monkeypatch.setattr(type(run), "params", property(lambda self: json.loads(
        (self.path / "params.json").read_text()) | {"weight_decay": 0.5}))  # fmt: skip
    monkeypatch.setattr(publish, "validate", lambda cls, found: cls())
    with pytest.raises(StudyError, match="do not give this run any more"):
        publish.given(run)


def test_reproducing_trains_what_was_published_and_publishes_it(runs, folder, monkeypatch, capsys):
    asked = []

    class Done:
        failed = None

        def runs(self):
            return [run for part in runs for run in part]

        def text(self):
            return "4 runs: 4 finished, 0 failed"

    def run(notebook, cells, options):
        asked.extend(cells)
        return Done()

    monkeypatch.setattr(sweep, "run", run)
    before = {path.name for path in (folder / "small").iterdir()}
    assert publish.reproduce([], sweep.Options(), folder)
    assert {path.name for path in (folder / "small").iterdir()} == before
    assert len(asked) == 4
    assert "small: 4 runs: 4 finished, 0 failed" in capsys.readouterr().out
    Done.failed = {"a": "no"}
    assert not publish.reproduce(["small"], sweep.Options(), folder)


def test_a_study_of_tuned_arms_is_made_again_as_it_was(tmp_path, monkeypatch):
    """02 trains each run's own control beside it, with the run's rate: that is not of the study."""
    own = [finish(tmp_path / "runs", "sds", lr=2e-3), finish(tmp_path / "runs", "clip-only")]
    publish.study("tuned", own, tmp_path / "published")
    before = sorted(path.name for path in (tmp_path / "published" / "tuned").iterdir())
    finish(tmp_path / "runs", "clip-only", lr=2e-3)
    done = SimpleNamespace(failed={}, text=lambda: "", runs=lambda: own)
    monkeypatch.setattr(sweep, "run", lambda *_: done)
    assert publish.reproduce(["tuned"], sweep.Options(), tmp_path / "published")
    assert sorted(path.name for path in (tmp_path / "published" / "tuned").iterdir()) == before
