"""Which runs a report tells of, which control stands beside each, and the line that makes it."""

import shlex

import pytest
from finished import finish
from papermill.cli import _resolve_type

from sdslib import experiment
from sdslib.checks.guard import override, validate
from sdslib.checks.notebooks import ReportConfig
from sdslib.config import FinetuneConfig, preset
from sdslib.io import runs
from sdslib.io.wording import ParameterError
from sdslib.results import answers, settings


def collect(root, **parameters):
    return settings.collect(ReportConfig(**({"runs": str(root)} | parameters)))


def names(found):
    return [[run.name for run in case.runs] for case in found]


def test_a_run_stands_beside_its_control_and_seeds_of_one_setting_stand_together(tmp_path):
    arms = {(arm, seed): finish(tmp_path, arm, seed, items=20)
            for seed in (1, 0) for arm in ("clip-only", "sds")}  # fmt: skip
    (case,) = collect(tmp_path)
    assert [run.path for run in case.runs] == [arms["sds", seed].path for seed in (0, 1)]
    controls = [arms["clip-only", seed].path for seed in (0, 1)]
    assert [control.path for _, control in case.pairs] == controls
    assert list(case.scores) == ["untouched", "L_CLIP only", "sds"]
    assert len(settings.members([case])) == 4
    assert settings.listing([case]).loc[0, "seeds"] == "0, 1"


def test_one_seed_run_twice_is_no_second_seed(tmp_path):
    """As after an edit of the code or the data: equal parameters, another run."""
    twice = [finish(tmp_path, items=20, data={"pairs": mark}) for mark in ("one", "other")]
    other = finish(tmp_path, "sds", 1, items=20, data={"pairs": "one"})
    found = collect(tmp_path)
    assert sorted(len(case.runs) for case in found) == [1, 2]
    assert {run.path for case in found for run in case.runs} == {r.path for r in (*twice, other)}
    assert all(len({run.params["seed"] for run in case.runs}) == len(case.runs) for case in found)


def test_other_parameters_or_other_data_make_no_control(tmp_path):
    taught = finish(tmp_path, items=20)
    finish(tmp_path, "clip-only", items=20, lr=0.5)
    finish(tmp_path, "clip-only", items=20, data={"pairs": "other"})
    found = collect(tmp_path, runs=str(taught.path))
    assert found[0].control is None
    assert list(found[0].scores) == ["untouched", "sds"]


def test_l_clip_alone_as_it_was_tuned_is_a_control_if_there_is_one_way(tmp_path):
    run, own = finish(tmp_path, lr=2e-3, items=4), finish(tmp_path, "clip-only", lr=3e-3, items=4)
    assert settings.Controls([run, own]).of(run) is None
    assert [control.path for _, control in settings.paired([run, own])] == [own.path, own.path]
    other = finish(tmp_path, "clip-only", lr=4e-3, items=4)
    with pytest.raises(settings.StudyError, match="but for grad_clip, interpolation, lr, warmup"):
        settings.paired([run, own, other])
    longer = finish(tmp_path, "clip-only", lr=3e-3, steps=151, items=4)
    with pytest.raises(settings.StudyError, match="the control of"):
        settings.paired([run, longer])


def test_seeds_without_a_control_are_told_of_together_against_the_untouched_student(tmp_path):
    for seed in (0, 1):
        finish(tmp_path, seed=seed, items=40)
    (case,) = collect(tmp_path)
    assert list(case.over_seeds["comparison"].unique()) == ["sds against untouched"]
    assert "over 2 seeds" in answers.of_setting(case)
    finish(tmp_path, "clip-only", items=40)
    (case,) = collect(tmp_path)
    assert case.over_seeds is None  # one seed has its control, and the other none


def test_a_damaged_run_is_left_out_by_name_and_refused_where_it_is_asked_for(tmp_path):
    good, bad = (finish(tmp_path, items=8, sds_weight=w) for w in (0.001, 0.1))
    path = bad.path / "scores" / "mini-winoground.parquet"
    path.write_bytes(good.scores("mini-winoground").head(3).to_parquet(index=False))
    with pytest.warns(runs.RunWarning, match=f"left out: {bad.name}/scores/mini-winoground.parq"):
        assert names(collect(tmp_path)) == [[good.name]]
    with pytest.raises(ParameterError, match=r"mini-winoground.parquet differs from its sha256"):
        collect(tmp_path, runs=str(bad.path))


def test_grouping_reads_each_run_a_fixed_number_of_times(tmp_path, monkeypatch):
    read, reads = runs.Run._read, []
    monkeypatch.setattr(
        runs.Run, "_read", lambda self, *words: (reads.append(words), read(self, *words))[1]
    )
    counts = []
    for seed in (0, 1, 2):
        for arm in ("sds", "clip-only"):
            finish(tmp_path, arm, seed, items=4)
        reads.clear()
        collect(tmp_path)
        counts.append(len(reads))
    assert counts[2] - counts[1] == counts[1] - counts[0]


def test_weights_of_l_sds_are_settings_of_their_own_with_one_control(tmp_path):
    plain = finish(tmp_path, "clip-only", items=20)
    first, second = (finish(tmp_path, items=20, sds_weight=w) for w in (0.001, 0.1))
    found = collect(tmp_path)
    assert {case.run.path for case in found} == {first.path, second.path}
    assert {case.control.path for case in found} == {plain.path}


def test_a_control_alone_is_reported_against_the_untouched_student(tmp_path):
    plain = finish(tmp_path, "clip-only", items=20)
    (case,) = collect(tmp_path)
    assert case.run.path == case.control.path == plain.path
    assert list(case.scores) == ["untouched", "L_CLIP only"]


def test_named_runs_alone_are_told_of_in_their_order(tmp_path):
    first, second = (finish(tmp_path, items=20, sds_weight=w) for w in (0.001, 0.1))
    found = collect(tmp_path, runs=f"{second.path}, {first.path}, {second.path}")
    assert names(found) == [[second.name], [first.name]]


def test_a_run_that_is_not_there_or_not_done_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RUNS", str(tmp_path))
    run = finish(tmp_path, items=20)
    typo = run.name[:-1] + "x"
    with pytest.raises(ParameterError, match=f"runs: no run '{typo}'; did you mean '{run.name}'"):
        collect(tmp_path, runs=typo)
    cut = runs.open_run(FinetuneConfig(seed=9), {}, tmp_path)
    cut.interrupt()
    with pytest.raises(ParameterError, match=r"is not finished [(]interrupted"):
        collect(tmp_path, runs=cut.name)
    other = runs.open_run(ReportConfig(), {}, tmp_path)
    other.finish()
    with pytest.raises(ParameterError, match="is no fine-tuning"):
        collect(tmp_path, runs=other.name)


def test_the_report_lies_beside_the_folder_of_runs_or_where_it_is_told(tmp_path):
    (tmp_path / "runs").mkdir()
    config = ReportConfig(runs=str(tmp_path / "runs"))
    assert settings.output_folder(config) == tmp_path
    assert settings.output_folder(override(config, output=str(tmp_path / "x"))) == tmp_path / "x"
    usual = settings.output_folder(ReportConfig(runs="one,two"))
    assert usual == settings.runs.runs_root().parent


def test_without_a_finished_run_a_small_one_and_its_control_are_made_and_said_so(
    tmp_path, monkeypatch, capsys
):
    made = []

    def finetune(config, progress=None):
        made.append(config)
        return finish(tmp_path, config.arm, items=20, **settings.SMALL_RUN | {"run": config.run})

    monkeypatch.setattr(experiment, "finetune", finetune)
    (case,) = collect(tmp_path)
    assert [config.arm for config in made] == ["clip-only", "sds"]
    assert made[1].steps == settings.SMALL_RUN["steps"]
    assert case.run.name.startswith("small-")
    assert case.control is not None
    assert "making a small one first" in capsys.readouterr().out


CHANGED = [
    {},
    {"sds_weight": 0.05, "trainable": "layernorm+bias", "seed": 3},
    {"arm": "clip-only", "steps": 20},
    {"arm": "hard-negatives", "lr": 5e-05},
    {"arm": "sds-only", "bridge_start": "zero", "run": "my-run"},
    {"epochs": 2, "steps": None, "teacher_revision": "0123", "eval_every": 0},
    {"logit_scale": "trained", "train_data": "a b.json::x y", "weight_decay": 0.1},
]


@pytest.mark.parametrize("base", ["mini", "paper"])
@pytest.mark.parametrize("changed", CHANGED, ids=lambda c: "+".join(c) or "as it is")
def test_the_line_makes_the_run_again(base, changed, tmp_path):
    changed = {"steps": 7, **changed} if base == "paper" and "epochs" not in changed else changed
    config = override(preset(base), **changed)
    run = runs.open_run(config, {}, tmp_path)
    run.finish()
    words = shlex.split(settings.papermill_of(settings.config_of(run)))
    assert words[:3] == ["papermill", "notebooks/02_finetune.ipynb", "out.ipynb"]
    given = {}
    for flag, name, value in zip(*(iter(words[3:]),) * 3, strict=True):
        given[name] = _resolve_type(value) if flag == "-p" else value
    assert validate(FinetuneConfig, given).identity() == config.identity()
    assert given.get("run") == config.run


def test_what_one_of_two_runs_of_an_arm_leaves_out_tells_them_apart():
    lists = FinetuneConfig(arm="hard-negatives").identity()
    swaps = FinetuneConfig(arm="hard-negatives", negatives="swap").identity()
    assert settings.label(lists, [lists, swaps]) == "hard-negatives"
    assert settings.label(swaps, [lists, swaps]) == "hard-negatives, negatives swap"
