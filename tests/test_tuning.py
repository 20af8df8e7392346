"""Arms are tuned with the same number of trials, on validation alone, and a search goes on."""

from collections import Counter

import optuna
import pandas as pd
import pytest
import realworld
from golden import some_pairs
from sweeping import InProcess, diary
from sweeping import data_read_once as data_read_once

from sdslib import experiment
from sdslib.checks.guard import validate
from sdslib.config import FinetuneConfig
from sdslib.io import storage
from sdslib.io.runs import list_runs, open_run
from sdslib.io.wording import ParameterError
from sdslib.results import sweep, tuning
from sdslib.results.sweep import Options
from sdslib.results.tuning import Range, Search, read_range, tune, worth

RANGES = {"lr": Range(1e-5, 1e-3, log=True), "interpolation": Range(0.1, 1.0)}
ITEMS = 40


def scores(share):
    """A Winoground-shaped table of which this share of items is right."""
    right = [i < round(share * ITEMS) for i in range(ITEMS)]
    shape = {"answer": None, "n_images": 2, "n_captions": 2, "s_0_1": 1.0, "s_1_0": 0.5}
    rows = [{"id": str(i), "s_0_0": 2.0 * r, "s_1_1": 2.0 * r} | shape for i, r in enumerate(right)]
    return pd.DataFrame(rows)


class Here(InProcess):
    """The score is best at the middle of both ranges, and on test worst."""

    def __init__(self, stop=None, faults=()):
        super().__init__()
        self.started, self.stop, self.faults = [], stop, set(faults)

    def wait(self, seconds):
        if len(self.started) == self.stop:
            raise KeyboardInterrupt
        self.started.append(self.jobs[-1])
        if len(self.started) in self.faults:
            return [(self.jobs.pop().key, "ValueError: no")]
        return super().wait(seconds)

    def train(self, job):
        config = validate(FinetuneConfig, job.parameters)
        prints = experiment.fingerprints(config, experiment.load_data(config).fingerprints())
        with open_run(config, prints) as run:
            near = 1 - abs(config.interpolation - 0.5) - abs(config.lr / 1e-3 - 0.1)
            for name, share in (("validation", near), ("mini-winoground", 1 - near)):
                run.save_scores(name, scores(max(0, share)))
            run.finish()


@pytest.fixture
def search_with(monkeypatch, tmp_path):
    """A search of two arms by an executor of this process: its table, and what was started."""

    def made(root="runs", executor=None, **changes):
        usual = {"arms": ("clip-only", "hard-negatives"), "given": {"steps": 2}, "ranges": RANGES}
        search = Search(**(usual | {"trials": 6} | changes))
        executor = executor or Here()
        monkeypatch.setattr(sweep, "opened", lambda *given: executor)
        with open("/dev/null", "w") as nowhere:
            table = tune(search, Options(runs=str(tmp_path / root), workers=2), stream=nowhere)
        return table, executor.started

    return made


def test_the_same_seed_gives_the_same_trials_and_every_arm_as_many(search_with):
    table, started = search_with()
    again, _ = search_with("others")
    pd.testing.assert_frame_equal(table, again)
    assert table["arm"].value_counts().to_dict() == {"clip-only": 6, "hard-negatives": 6}
    assert len(started) == table["id"].nunique() == 12
    first = {arm: rows[list(RANGES)].head(4) for arm, rows in table.groupby("arm")}
    assert first["clip-only"].equals(first["hard-negatives"].set_axis(first["clip-only"].index))
    other, _ = search_with("third", seed=7)
    assert not set(other["id"]) & set(table["id"])
    assert not set(other["lr"]) & set(table["lr"])
    for name, found in RANGES.items():
        assert table[name].between(found.low, found.high).all()


def test_a_killed_search_goes_on_and_computes_nothing_twice(search_with, tmp_path):
    whole, all_started = search_with("whole")
    with pytest.raises(KeyboardInterrupt):
        search_with("cut", Here(stop=9))
    done = list_runs(tmp_path / "cut")
    assert len(done) == 9
    table, started = search_with("cut")
    assert len(started) == len(all_started) - 9
    pd.testing.assert_frame_equal(table, whole)
    assert search_with("cut")[1] == []
    (kept,) = (tmp_path / "cut" / "sweeps").glob("tuning-*.parquet")
    pd.testing.assert_frame_equal(storage.read_frame(kept), table)
    longer, more = search_with("cut", trials=8)
    assert len(more) == 4
    assert set(whole["id"]) < set(longer["id"])


def test_a_trial_that_fails_is_told_and_the_search_goes_on(search_with):
    table, started = search_with(executor=Here(faults={3}))
    assert Counter(table["state"]) == {"finished": 11, "failed": 1}
    assert table.loc[table["state"] == "failed", "objective"].isna().all()
    assert table["error"].dropna().tolist() == ["ValueError: no"]
    assert len(started) == 12


def test_what_is_found_is_near_the_best_and_the_test_set_says_nothing(search_with):
    table, _ = search_with(trials=24, arms=("clip-only",))
    best = table.loc[table["objective"].idxmax()]
    assert best["objective"] == best["score"] == table["score"].max()
    late, early = (part["score"].mean() for part in (table.tail(12), table.head(4)))
    assert late > early
    assert abs(best["interpolation"] - 0.5) < 0.2


def test_an_arm_is_not_asked_for_what_it_does_not_read(search_with):
    ranges = RANGES | {"negative_weight": Range(0.1, 2.0), "warmup": Range(0, 20)}
    table, _ = search_with(arms=("clip-only", "ce-clip"), ranges=ranges, trials=2)
    assert table.groupby("arm")["negative_weight"].count().to_dict() == {
        "ce-clip": 2,
        "clip-only": 0,
    }
    search = Search(("clip-only", "ce-clip"), {"steps": 2}, ranges, 2)
    lines = "\n".join(tuning.best_lines(search, table)).splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["clip-only", "ce-clip"]
    assert all(line.startswith("papermill notebooks/02_finetune.ipynb") for line in lines[1::2])
    assert ("negative_weight" in lines[1], "negative_weight" in lines[3]) == (False, True)
    assert " seed " not in lines[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges": {"interpolaton": Range(0.1, 1.0)}}, "'interpolaton'; did you mean 'interpol"),
        ({"given": {"stesp": 2}}, "unknown parameter 'stesp'; did you mean 'steps'?"),
        ({"arms": ("clip-onyl",)}, "got 'clip-onyl'; did you mean 'clip-only'?"),
        ({"arms": ()}, "give an arm, a range to search, and at least one trial"),
        ({"trials": 0}, "give an arm, a range"),
        ({"ranges": {"trainable": Range(0, 1)}}, "--search takes numbers, and 'trainable' is none"),
        ({"ranges": {"resume": Range(0, 1)}}, "--search takes numbers, and 'resume' is none"),
        ({"ranges": {"lr": Range(1e-3, 1e-5)}}, "--search lr needs LOW below HIGH"),
        ({"ranges": {"lr": Range(0.0, 1e-5, True)}}, "and LOW above 0 for log"),
        ({"ranges": {"interpolation": Range(0.5, 2.0)}}, "interpolation must be finite and > 0"),
        ({"ranges": {"sds_weight": Range(0.1, 2.0)}}, "no arm of clip-only, hard-negatives reads"),
        ({"given": {"lr": 1e-3}}, "lr is given twice: a value and a range"),
        ({"given": {"seed": 1}}, "seed is among the given values; use --seed"),
        ({"given": {"runs": "x"}}, "runs is the sweep's own; use --runs DIR"),
        ({"given": {"validation": "none"}}, "trials are chosen on validation; leave"),
        ({"given": {"keep": "mini:zero-shape"}}, "'mini:zero-shape' is reported, and not to"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_runs(search_with, changes, message):
    executor = Here()
    with pytest.raises(ParameterError) as error:
        search_with(executor=executor, **changes)
    assert message in str(error.value)
    assert executor.started == []


def test_a_search_with_nothing_to_choose_by_is_refused_before_anything_runs(search_with, tmp_path):
    some_pairs(tmp_path)  # too few to hold some out
    few = {"train_data": f"{tmp_path}/captions.json::{tmp_path}", "batch_size": 4}
    executor = Here()
    with pytest.raises(ParameterError, match="nothing is held out to choose by; name a set"):
        search_with(executor=executor, given=few | {"benchmark": "mini:winoground:val"})
    assert executor.started == []


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("lr=1e-5:1e-3:log", ("lr", Range(1e-5, 1e-3, True))),
        ("interpolation=.1:1", ("interpolation", Range(0.1, 1.0))),
        ("warmup=0:50", ("warmup", Range(0, 50))),
    ],
)
def test_a_range_is_read_from_a_word(word, found):
    assert read_range(word) == found
    assert isinstance(read_range(word)[1].low, type(found[1].low))


@pytest.mark.parametrize("word", ["lr", "lr=1", "lr=1:x", "lr=1:2:lgo", "=1:2", "lr=1:2:log:3"])
def test_what_is_no_range_is_said(word, capsys):
    words = ["--arms", "clip-only", "--search", word]
    assert tuning.main(words) == 2
    assert "--search needs NAME=LOW:HIGH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "log", "value", "rounded"),
    [
        (1e-5, 1e-3, True, 1.23456e-4, 1.23e-4),
        (0.1234, 1.0, False, 0.12341, 0.1234),
        (0, 9, False, 7, 7),
    ],
)
def test_values_have_three_digits_and_stay_within(low, high, log, value, rounded):
    found = Range(low, high, log)
    assert found.rounded(value) == rounded
    kinds = optuna.distributions.IntDistribution, optuna.distributions.FloatDistribution
    assert isinstance(found.distribution, kinds[isinstance(low, float)])


def test_what_kept_sets_lose_beyond_a_point_counts_and_the_benchmark_does_not(tmp_path):
    given = dict.fromkeys(("mini-winoground", "retrieval-a", "b", "validation"), "aa11")
    run = open_run(FinetuneConfig(), given, tmp_path)
    told = {"validation": 0.6, "mini-winoground": 0.1, "untouched-mini-winoground": 0.9,
            "retrieval-a": 0.5, "untouched-retrieval-a": 0.55, "b": 0.9, "untouched-b": 0.5,
            "untouched-validation": 0.7}  # fmt: skip
    for name, share in told.items():
        run.save_scores(name, scores(share))
    run.finish()
    found = worth(run)
    assert found["score"] == 0.6
    assert found["lost"] == pytest.approx(0.05 - 0.01)
    assert found["objective"] == pytest.approx(0.56)


@pytest.mark.slow
@pytest.mark.parametrize("of", ["mini", "photographs"])
def test_the_command_tunes_two_arms_and_starts_nothing_the_second_time(of, tmp_path, capsys):
    small = {"steps": 3, "batch_size": 8, "eval_items": 8, "eval_every": 0, "warmup": 1}
    given = {"keep": "retrieval:mini:val"}
    if of == "photographs":
        world = realworld.make(tmp_path / "world")
        given = world.models | {"train_data": world.many_pairs, "benchmark": world.winoground}
        given |= {"validation": "held-out", "keep": f"retrieval:{world.val_data}"}
    words = ["--arms", "clip-only,ce-clip", "--search", "lr=1e-4:1e-2:log", "--trials", "2"]
    words += ["--runs", str(tmp_path / "runs"), "--workers", "2"]
    words += [word for pair in (small | given).items() for word in ("-p", *map(str, pair))]
    assert tuning.main(words) == 0
    told = capsys.readouterr().out
    assert told.count("papermill notebooks/02_finetune.ipynb") == 2
    assert "-r arm ce-clip" in told
    runs = list_runs(tmp_path / "runs")
    assert Counter(runs["arm"]) == {"clip-only": 2, "ce-clip": 2}  # and no control beside
    (kept,) = (tmp_path / "runs" / "sweeps").glob("*.parquet")
    assert storage.read_frame(kept)["lost"].notna().all()
    events = len(diary(tmp_path / "runs"))
    assert tuning.main(words) == 0
    assert capsys.readouterr().out == told
    assert len(diary(tmp_path / "runs")) == events
