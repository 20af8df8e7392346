"""What is kept: a changed bit, a folder that is gone or closed, a name that is no name."""

import shutil

import pytest
from finished import finish
from saving import saved

from faults.catalog import fault
from sdslib.checks.guard import guard
from sdslib.io.history import RunWarning
from sdslib.io.run import RunError
from sdslib.io.runs import list_runs, main
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.miniworld import files
from sdslib.results import publish, sweep
from sdslib.results.settings import StudyError


def refused(**given):
    with pytest.raises(ParameterError) as caught:
        guard(given)
    return caught.value


@fault(
    71,
    "bit that changed in a file that a run keeps",
    "mini-sds-…/params.json differs from its sha256; take it from a copy, or delete the run's "
    "folder and run again",
)
def test_a_changed_bit(tmp_path):
    kept = saved(tmp_path)
    path = kept.path / "params.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1'))
    assert main(["verify", "--runs", str(tmp_path)]) == 1
    with pytest.raises(RunError) as caught:
        _ = kept.params
    return caught.value


@fault(71, "damaged run beside others", "left out: mini-sds-…/params.json differs from its sha256")
def test_a_damaged_run(tmp_path):
    kept = saved(tmp_path)
    (kept.path / "params.json").write_text("{")
    with pytest.warns(RunWarning) as said:
        assert list_runs(tmp_path)["state"].tolist() == ["damaged"]
    return said[0].message


@fault(
    71,
    "damaged run to be published",
    "mini-clip-only-…/scores/mini-winoground.parquet differs from its sha256; take it from a copy, "
    "or make it again",
)
def test_a_damaged_study(tmp_path):
    kept = finish(tmp_path, "clip-only", items=4)
    path = kept.path / "scores" / "mini-winoground.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StudyError) as caught:
        publish.study("a", [kept], tmp_path / "published")
    return caught.value


@fault(
    72,
    "run folder deleted while it trains",
    "run mini-sds-… is gone: its folder was deleted or moved while it was written to; put it back "
    "and run again, or run again to begin anew",
)
def test_a_deleted_folder(tmp_path):
    kept = saved(tmp_path)
    shutil.rmtree(kept.path)
    with pytest.raises(RunError) as caught:
        kept.append_history({"step": 31})
    return caught.value


@fault(
    72,
    "mini-world that cannot be drawn",
    "the mini-world cannot be drawn: … cannot be written to (…); make it writable, or copy a drawn "
    "world to …",
)
def test_an_undrawn_world(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError) as caught:
        files.ensure_world(tmp_path / "file" / "world")
    return caught.value


@fault(73, "name that no file system takes", "path 'xxx…' is too long; a file system takes 255")
def test_a_long_name():
    return refused(runs="x" * 300)


@fault(73, "NUL in a path", r"path 'a\x00b' holds a NUL character; leave it out")
def test_a_nul():
    return refused(runs="a\0b")


@fault(
    73, "home of a user who is not there", "there is no user 'nosuchuser' here; write it in full"
)
def test_no_such_user():
    return refused(runs="~nosuchuser/runs")


@fault(74, "a billion threads", "threads must be a whole number ≥ 1 and ≤ 1024, got 1000000000")
def test_too_many_threads():
    return refused(threads=10**9)


@fault(
    74,
    "too few pairs to fit the map",
    "bridge_start 'ridge' needs 10 pairs or more, got bridge_pairs 5; take more, or bridge_start "
    "'random'",
)
def test_too_few_pairs():
    return refused(bridge_pairs=5)


@fault(
    74,
    "text that papermill takes for a number",
    "run must be text, got 100000.0 (float); -p made a number of the text, so write -r run and the "
    "text as it was",
)
def test_a_name_like_a_number():
    return refused(run=1e5)


@fault(
    75,
    "study that would replace another folder",
    "study name '../../docs' must be letters, digits, '.', '-' and '_'; it is kept below "
    "reports/published",
)
def test_a_study_elsewhere(tmp_path):
    kept = finish(tmp_path / "runs", "clip-only", items=4)
    with pytest.raises(StudyError) as caught:
        publish.study("../../docs", [kept], tmp_path / "published")
    return caught.value


@fault(
    75,
    "summary that would replace another file",
    "--summary notes.md must end with .parquet, which it is written as",
)
def test_a_summary_elsewhere(capsys):
    words = ["notebooks/02_finetune.ipynb", "--seeds", "1", "--summary", "notes.md"]
    assert sweep.main(words) == 2
    return capsys.readouterr().err
