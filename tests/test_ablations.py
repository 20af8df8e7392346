"""The ablations: the runs they ask for, and the tables and figures made of finished ones."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import finish
from realworld import make
from sweeping import InProcess
from sweeping import data_read_once as data_read_once

from sdslib import experiment
from sdslib.checks import fingerprints
from sdslib.checks.notebooks import AblateTrainableConfig, AblateWeightConfig
from sdslib.config import FinetuneConfig
from sdslib.io.identity import identify
from sdslib.io.paths import project_root
from sdslib.io.wording import ParameterError
from sdslib.results import ablations, executors, formatting, sweep
from sdslib.results.grid import check
from sdslib.results.settings import StudyError
from sdslib.show import ablation_figures
from sdslib.show.style import Picture
from sdslib.student import load_student


class Here(InProcess):
    """Leaves finished runs with published scores, and weights whose LayerNorms moved by 1%."""

    def train(self, job):
        given = {k: v for k, v in job.parameters.items() if k not in ("runs", "threads")}
        (cell,) = check(job.notebook, [given])
        root = Path(job.parameters["runs"])
        for config in (cell.config, experiment.control(cell.config)):
            self.leave(root, config)

    def leave(self, root, config):
        prints = experiment.load_data(config).fingerprints()
        prints |= fingerprints.weights_fingerprints(config)
        if list(root.glob(f"*-{identify(config, prints)['id']}")):
            return
        values = config.model_dump(exclude={"arm", "seed", "runs", "run"})
        run = finish(root, config.arm, config.seed, 40, data=prints, **values)
        student = load_student(config.clip_model, None)
        with torch.no_grad():
            for name, value in student.model.named_parameters():
                if ".ln_1." in name:
                    value.mul_(1.01)
        student.save(run.weights)


@pytest.fixture(scope="module")
def quick():
    """Sweeps whose cells are finished in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executors, "Local", Here)
        yield


@pytest.fixture(scope="module")
def weights(quick, tmp_path_factory):
    config = AblateWeightConfig(
        weights="0,0.001,0.1", panels="sds_gradient,t_range", arms="clip-only,sds,hard-negatives",
        runs=str(tmp_path_factory.mktemp("runs")),
    )  # fmt: skip
    return ablations.weights(config)


@pytest.fixture(scope="module")
def sets(quick, tmp_path_factory):
    runs = str(tmp_path_factory.mktemp("runs"))
    return ablations.trainable(AblateTrainableConfig(sets="layernorm,lora,text-tower", runs=runs))


def planned(config):
    """The cells that a study would run."""
    cells, weights = [], isinstance(config, AblateWeightConfig)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run", lambda notebook, found, options: cells.extend(found) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            (ablations.weights if weights else ablations.trainable)(config)
    return cells


def cells_of(study):
    return [cell.config for cell in study.sweep.cells]


def test_a_reduced_grid_is_small_and_its_runs_are_shared_between_the_questions(weights):
    configs = cells_of(weights)
    # 3 weights x 2 seeds, then one route and two ranges of t, and one arm; the rest is there
    assert len(configs) == 6 + 1 + 2 + 1
    assert {config.steps for config in configs} == {20}
    assert weights.states.to_dict("records") == [{"state": "finished", "size": 10}]
    assert ablations.failures(weights).empty


def test_a_full_grid_is_the_study():
    curve = planned(AblateWeightConfig(grid="full", panels="none", arms="none"))
    panels = planned(AblateWeightConfig(grid="full", weights="0", arms="none", seeds=3))
    arms = planned(AblateWeightConfig(grid="full", weights="0", panels="none"))
    sets = planned(AblateTrainableConfig(grid="full"))
    assert len({c["sds_weight"] for c in curve}) >= 5
    assert {c["seed"] for c in curve} == set(range(5))
    assert "steps" not in curve[0]
    assert len(panels) == 3 + 3 * (2 + 3 + 3 + 3)
    assert len({c["arm"] for c in arms if "arm" in c}) == 7
    assert len(sets) == 9 * 3


@pytest.mark.parametrize(
    ("grid", "seeds", "curve", "panel"),
    [("full", None, 5, 3), ("full", 1, 1, 1), ("full", 7, 7, 3), ("reduced", None, 2, 1)],
)
def test_panels_take_as_many_seeds_as_are_asked_for_and_no_more_than_they_need(
    grid, seeds, curve, panel
):
    given = {"weights": "0.5", "panels": "sds_gradient", "arms": "none"}
    asked = planned(AblateWeightConfig(grid=grid, seeds=seeds, **given))
    by = {key: {c["seed"] for c in asked if ("sds_gradient" in c) == key} for key in (True, False)}
    assert by == {True: set(range(panel)), False: set(range(curve))}


def test_what_is_asked_for_reaches_every_run():
    config = AblateWeightConfig(
        fixed="lr=3e-3, trainable=all", steps=7, eval_items=9, device="cpu", threads=1
    )
    fixed = ablations._fixed(config)
    assert fixed["lr"] == 3e-3
    assert (fixed["trainable"], fixed["steps"], fixed["eval_items"]) == ("all", 7, 9)
    assert (fixed["device"], fixed["threads"]) == ("cpu", 1)
    assert ablations._fixed(AblateWeightConfig(grid="full")) == {}


def test_a_value_of_what_is_fixed_may_be_a_list():
    config = AblateWeightConfig(fixed="keep=cifar10,zeroshot:d, lr=1e-3", grid="full")
    assert ablations._fixed(config) == {"keep": "cifar10,zeroshot:d", "lr": 1e-3}


def test_arms_without_false_captions_are_left_out_unless_asked_for(tmp_path):
    fixed = f"train_data={make(tmp_path).train_data},negatives=mini"
    with pytest.warns(UserWarning, match="left out of the arms: arm 'hard-negatives' needs"):
        cells = planned(AblateWeightConfig(weights="0", panels="none", fixed=fixed))
    arms = {cell.get("arm") for cell in cells}
    assert {"sds-only", "shuffled-captions"} <= arms
    assert "hard-negatives" not in arms


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"panels": "t_rnge"}, "unknown panels 't_rnge'; did you mean 't_range'?"),
        ({"arms": "xyz"}, "unknown arms 'xyz'; there are"),
        ({"weights": "0,-1"}, "sds_weight must be finite and ≥ 0, got -1"),
        ({"weights": ","}, "the grid is empty"),
        ({"fixed": "lr"}, "fixed is name=value,name=value; got 'lr'"),
        ({"fixed": "lrr=1"}, "unknown parameter 'lrr'"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_line_before_anything_runs(given, message):
    nothing = {"panels": "none", "arms": "none"}
    with pytest.raises(ParameterError, match="invalid parameters") as error:
        ablations.weights(AblateWeightConfig(**(nothing | given)))
    assert message in str(error.value)


def test_the_curve_has_every_weight_measure_and_the_ratio_of_gradients(weights):
    table = ablations.curve(weights)
    assert sorted(table["sds_weight"].unique()) == [0, 1e-3, 1e-1]
    assert table["measure"].unique().tolist() == ["text", "zero-shot shape", "gradient ratio"]
    assert set(table[table["measure"] == "text"]["seeds"]) == {2}
    assert set(table[table["measure"] == "gradient ratio"]["sds_weight"]) == {1e-3, 1e-1}
    assert isinstance(ablation_figures.curve(weights), Picture)


def test_settings_are_compared_with_the_untouched_student_and_the_control(weights):
    table = ablations.compared(weights, "weights")
    assert set(table["against"]) == {"untouched", "L_CLIP only"}
    assert len(ablations.compared(weights, *ablations.PANELS)["setting"].unique()) == 5
    assert ablations.compared(weights, "bridge_start").empty


def test_panels_are_drawn_beside_each_other_or_said_to_be_absent(weights, sets):
    table = ablations.panels(weights)
    assert table["panel"].unique().tolist() == ["sds_gradient", "t_range"]
    assert "t 20–500" in table["setting"].tolist()
    assert isinstance(ablation_figures.panels(weights), Picture)
    assert ablations.panels(sets).empty
    assert ablation_figures.panels(sets) == "no panels were asked for"


def test_arms_stand_in_one_table_beside_the_untouched_student(weights, sets):
    table = ablations.arm_table(weights)
    assert table["arm"].tolist() == ["untouched", "L_CLIP only", "sds", "hard-negatives"]
    row = table.set_index("arm").loc["hard-negatives"]
    assert " to " in row["against untouched"]
    assert " to " in row["against L_CLIP only"]
    assert np.isfinite(row["zero-shot shape"])
    assert isinstance(ablation_figures.arms(weights), Picture)
    assert ablations.arm_table(sets).empty
    assert ablation_figures.arms(sets) == "no arms were asked for"


def test_a_difference_of_arms_stands_within_its_interval(weights):
    table, pairs = ablations.arm_table(weights), ablations.compared(weights, "arms")
    own = pairs[pairs["measure"] == "text"].set_index(["setting", "against"])
    for (arm, against), row in own.iterrows():
        text = table.set_index("arm").loc[arm, f"against {against}"]
        mean, low, high = map(float, re.findall(r"[+-]\d+\.\d", text.replace("−", "-")))
        assert low <= mean <= high
        assert (mean, low, high) == pytest.approx(
            tuple(100 * row[name] for name in ("difference", "low", "high")), abs=0.051
        )
    assert len(own) == 5


def test_a_part_that_was_left_out_can_be_shown_like_any_other(sets):
    assert formatting.means(ablations.panels(sets)).empty
    assert formatting.over_seeds(ablations.compared(sets, *ablations.PANELS)).empty
    assert formatting.percent(ablations.arm_table(sets)).empty


def test_where_no_run_finished_the_table_above_is_pointed_at(sets):
    none = replace(sets, parts=dict.fromkeys(("weights", "trainable"), ()))
    for show in (ablations.curve, ablations.parameter_counts, ablations.gains, ablations.moved):
        with pytest.raises(StudyError, match=r"no run of .* finished; the table of failures says"):
            show(none)


def test_a_run_that_failed_is_left_out_and_not_shown_by_its_control(quick, tmp_path, monkeypatch):
    leave = Here.leave

    def all_but_bias(self, root, config):
        if (config.trainable, config.arm) != ("bias", "sds"):
            leave(self, root, config)

    monkeypatch.setattr(Here, "leave", all_but_bias)
    study = ablations.trainable(AblateTrainableConfig(sets="layernorm,bias", runs=str(tmp_path)))
    assert [setting.label for setting in study.settings("trainable")] == ["layernorm"]
    assert study.sweep.runs(trainable="bias") == []
    assert [run.params["arm"] for run in study.sweep.runs()] == ["sds"]


def test_one_call_runs_all_arms(quick, tmp_path):
    study = ablations.arms(dict(ablations.SMALL, eval_items=12), 1, runs=str(tmp_path))
    assert ablations.arm_table(study)["arm"].tolist() == [
        "untouched", "L_CLIP only", *(arm for arm in ablations.COMPARED if arm != "clip-only"),
    ]  # fmt: skip
    assert len(cells_of(study)) == 7


def test_sets_are_told_with_their_parameters(sets):
    counts = ablations.parameter_counts(sets).set_index("set")
    student = load_student(FinetuneConfig().clip_model, None)
    norms = sum(v.numel() for n, v in student.model.named_parameters() if ".ln_" in f".{n}")
    assert counts.loc["layernorm", "parameters"] == norms
    table = ablations.gains(sets)
    assert table["set"].unique().tolist() == ["layernorm", "lora", "text-tower, L_CLIP only"]
    assert f"{norms:,}" in table["parameters"].iloc[0]
    assert isinstance(ablation_figures.gains(sets), Picture)


def test_the_set_that_l_sds_does_not_reach_is_trained_by_l_clip_and_says_so(sets):
    arms = {config.trainable: config.arm for config in cells_of(sets)}
    assert arms == {"layernorm": "sds", "lora": "sds", "text-tower": "clip-only"}
    table = ablations.compared(sets, "trainable")
    own = table[table["setting"] == "text-tower, L_CLIP only"]
    assert set(own["against"]) == {"untouched"}
    # L_SDS on the text embedding reaches it
    cells = planned(AblateTrainableConfig(sets="text-tower", fixed="arm=sds-text"))
    assert {cell["sds_weight"] for cell in cells} == {1e-3}


def test_what_moved_is_the_change_of_the_weights_by_layer(sets):
    table = ablations.moved(sets)
    one = table[table["set"] == "layernorm"].set_index("layer")
    assert one.loc["temperature", "change"] == 0
    assert one.loc["image input", "relative"] == 0
    block = one.loc["image block 0"]
    before = load_student(FinetuneConfig().clip_model, None).model.state_dict()
    own = {n: v for n, v in before.items() if n.startswith("visual.transformer.resblocks.0.")}
    norms = torch.cat([v.flatten() for n, v in own.items() if ".ln_1." in n]).double()
    assert block["change"] == pytest.approx(0.01 * norms.norm().item(), rel=1e-4)
    assert block["parameters"] == sum(v.numel() for v in own.values())
    whole = torch.cat([v.flatten() for v in own.values()]).double().norm().item()
    assert block["relative"] == pytest.approx(block["change"] / whole, rel=1e-4)
    assert isinstance(ablation_figures.moved(sets), Picture)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("visual.conv1.weight", "image input"),
        ("visual.transformer.resblocks.3.mlp.c_fc.weight", "image block 3"),
        ("visual.ln_post.weight", "image output"),
        ("visual.proj", "image output"),
        ("visual.trunk.blocks.11.attn.qkv.weight", "image block 11"),
        ("token_embedding.weight", "text input"),
        ("transformer.resblocks.0.ln_1.weight", "text block 0"),
        ("text_projection", "text output"),
        ("ln_final.bias", "text output"),
        ("logit_scale", "temperature"),
    ],
)
def test_a_parameter_belongs_to_a_layer(name, layer):
    assert ablations.layer_of(name) == layer


def test_the_summary_is_named_from_the_project_or_in_full(weights):
    assert Path(weights.summary).is_file() or (project_root() / weights.summary).is_file()
