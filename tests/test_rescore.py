"""Finished runs scored on more sets: what is added, where, and that the run stays what it was."""

import shutil

import pytest
from typer.testing import CliRunner

from sdslib import experiment, tables
from sdslib.benchmarks import load_benchmark
from sdslib.checks.guard import validate
from sdslib.commands import program
from sdslib.config import FinetuneConfig
from sdslib.io.run import RunError
from sdslib.io.runs import find_run
from sdslib.io.wording import ParameterError
from sdslib.lab.rescore import add_sets
from sdslib.results import settings, side_by_side, studies, tuning

SET = "mini:sugarcrepe"


def score(*given):
    """What adding sets says."""
    return list(add_sets(*given))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run and its control, each really trained for two steps, with nothing to keep."""
    root = tmp_path_factory.mktemp("runs")
    given = {"arm": "hard-negatives", "steps": 2, "warmup": 0, "batch_size": 8, "eval_items": 20}
    config = validate(FinetuneConfig, given | {"keep": "none", "lr": 0.01, "trainable": "all",
                                               "runs": str(root)})  # fmt: skip
    return [experiment.finetune(one) for one in (config, experiment.control(config))]


@pytest.fixture
def both(trained, tmp_path):
    return [find_run(shutil.copytree(run.path, tmp_path / run.name)) for run in trained]


def test_student_start_and_control_are_scored_and_the_id_stays(both):
    run, control = both
    before = run.identity
    told = score([run], SET, both, "cpu")
    assert told == [f"{one.name}: mini-sugarcrepe, 1400 items" for one in both]
    assert run.identity == before
    assert not run.problems()
    students = [run.scores("untouched-mini-sugarcrepe"), run.scores("mini-sugarcrepe"),
                control.scores("mini-sugarcrepe")]  # fmt: skip
    hits = [tables.outcomes(table)["accuracy"].tolist() for table in students]
    assert (
        hits[0] == tables.outcomes(control.scores("untouched-mini-sugarcrepe"))["accuracy"].tolist()
    )
    assert hits[0] != hits[1]
    again = experiment.load_student(f"local-dir:{run.weights}", None)
    once = experiment.score(again, load_benchmark(SET))
    assert tables.outcomes(once)["accuracy"].tolist() == hits[1]


def test_what_is_added_is_told_of_and_a_search_does_not_choose_by_it(both):
    run, control = both
    worth = tuning.worth(run)
    score([run], SET, both, "cpu")
    assert tuning.worth(run) == worth
    (setting,) = settings.group([run], both)
    assert "sugarcrepe" in studies.measures(setting)
    found = side_by_side.beside([run.path, control.path])
    assert set(found.scores) == {"mini-winoground", "mini-sugarcrepe", "validation"}
    (control.path / "scores" / "mini-sugarcrepe.parquet").unlink()
    assert "sugarcrepe" not in studies.measures(setting)
    assert list(settings.score_tables(run, control, "mini-sugarcrepe")) == [
        "untouched", "hard-negatives"
    ]  # fmt: skip


def test_a_set_is_scored_once_and_another_of_its_name_gets_a_number(both, monkeypatch):
    run, _ = both
    score([run], SET, [], "cpu")
    monkeypatch.setattr(experiment, "score", lambda *_: 1 / 0)
    assert score([run], SET, [], "cpu") == [f"{run.name}: mini-sugarcrepe was scored already"]
    monkeypatch.undo()
    of_all = score([run], "mini:winoground", [], "cpu")  # the run has 20 of its items
    assert of_all == [f"{run.name}: mini-winoground-2, 1200 items"]


def test_what_a_kill_left_out_is_added(both, monkeypatch):
    run, _ = both
    keep = run.add_scores

    def killed(self, name, table):
        if not name.startswith("untouched-"):
            raise KeyboardInterrupt
        return keep(name, table)

    monkeypatch.setattr(type(run), "add_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        score([run], SET, [], "cpu")
    monkeypatch.undo()
    assert "untouched-mini-sugarcrepe" in run.score_names()
    assert score([run], SET, [], "cpu") == [f"{run.name}: mini-sugarcrepe, 1400 items"]
    assert not run.problems()


def test_what_cannot_be_scored_is_said_before_anything_is(both, tmp_path):
    run, control = both
    shutil.rmtree(control.weights)
    with pytest.raises(RunError, match=f"{control.name} has no weights, .*train it again"):
        score([run], SET, both, "cpu")
    assert "mini-sugarcrepe" not in run.score_names()
    with pytest.raises(ParameterError, match="sets: name one or more"):
        score([run], " ", [], "cpu")
    other = experiment.open_run(
        settings.config_of(run).model_copy(update={"seed": 7}), {}, tmp_path
    )
    with pytest.raises(RunError, match="let it finish"):
        score([other], SET, [], "cpu")
    other.interrupt()


def test_a_set_that_another_run_has_under_another_name_is_compared(both):
    run, control = both
    score([run], "mini:zeroshot-shape:val", [], "cpu")
    score(both, "mini:zeroshot-shape", [], "cpu")
    assert {"mini-zeroshot-shape", "mini-zeroshot-shape-2"} <= {*run.score_names()}
    assert "mini-zeroshot-shape-2" not in control.score_names()
    found = side_by_side.beside([run.path, control.path])
    assert "mini-zeroshot-shape-2" in found.scores
    assert any(text.startswith("mini-zeroshot-shape: not scored by") for text in found.left_out)


def test_the_verb_says_what_was_added(both):
    run, _ = both
    words = ["rescore", run.name, "--sets", SET, "--runs", str(run.path.parent), "--device", "cpu"]
    done = CliRunner().invoke(program.app(words), words, prog_name="sdsclip")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) == 2
    words[3] = "mini:sugarcrep"
    assert CliRunner().invoke(program.app(words), words, prog_name="sdsclip").exit_code == 3
