"""Student and teacher on every set at hand: scored once, kept item by item, told with its cost."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_atlas import benchmark

from sdslib import evaluate, tables
from sdslib.benchmarks import Benchmark, Item
from sdslib.checks.guard import override
from sdslib.checks.notebooks import BaselineConfig
from sdslib.io.images import ImageRef
from sdslib.io.sources import DataError
from sdslib.lab import baseline
from sdslib.sets import text_only

COLORS = ("red", "blue", "green", "yellow")


def picture(n):
    return ImageRef(f"{n}.png", lambda: tiny.png((20 * n, 90, 200 - 20 * n)))


def grids():
    return benchmark(captions=("a red circle above a square", "a red square above a circle"))


def choices(count=8):
    items = tuple(
        Item(str(n), (picture(n % 4),), (f"a {COLORS[n % 4]} circle", "the large white triangle"),
             answer=n % 2, tags={"relation": ("left", "above")[n % 2]})
        for n in range(count)
    )  # fmt: skip
    return Benchmark("aro-relation", "choice", items, count, "made by the test")


def classes():
    prompts = tuple((f"a {color} circle", f"the {color} circle") for color in COLORS)
    captions = tuple(group[0] for group in prompts)
    items = tuple(Item(str(n), (picture(n),), captions, answer=n % 4) for n in range(6))
    return Benchmark("zeroshot-color", "classes", items, 6, "made by the test", prompts)


def pairs():
    items = tuple(Item(str(n), (picture(n),), (f"a {COLORS[n]} square",)) for n in range(4))
    return Benchmark("retrieval", "retrieval", items, 4, "made by the test")


class Corpus:
    """Captions that say nothing of triangles."""

    fingerprint = "made by the test"

    def all_captions(self):
        return [f"a {color} circle" for color in COLORS]


@pytest.fixture
def config(tmp_path, tiny_models):
    return BaselineConfig(**tiny_models, runs=str(tmp_path / "runs"), teacher_items=5, draws=4)


@pytest.fixture
def measured(config, monkeypatch):
    """The run of these sets."""

    def measure(*sets):
        monkeypatch.setattr(baseline, "load_sets", lambda config: (sets, []))
        monkeypatch.setattr(baseline, "load_set", lambda source: grids())
        monkeypatch.setattr(baseline, "corpus", lambda config: (Corpus(), []))
        return baseline.measure(config)

    return measure


@pytest.fixture
def run(measured):
    return measured(choices(), grids(), classes(), pairs())


def test_equal_captions_are_a_row_to_read_and_no_warning(measured, recwarn):
    odd = choices()
    same = replace(odd.items[0], captions=("a red circle", "A red circle"))
    told = baseline.cautions(measured(replace(odd, items=(same, *odd.items[1:]))))
    assert not [w for w in recwarn if "ties" in str(w.message) or "constant" in str(w.message)]
    row = told.set_index("model").loc["student"]
    assert row["set"] == "aro-relation"
    assert row["caution"].startswith("1 of 8 items have captions that are one to the model")
    assert not set(told["model"]) & set(baseline.BLIND)


def test_every_set_is_scored_by_whom_it_suits(run):
    expected = {
        *((s, "student") for s in ("winoground", "aro-relation", "zeroshot-color", "retrieval")),
        *((s, "teacher") for s in ("winoground", "aro-relation", "zeroshot-color")),
        ("aro-relation", "shorter caption"),
        ("aro-relation", "text alone"),
    }
    found = baseline.scored(run)
    assert set(found) == expected
    assert next(iter(found)) == ("winoground", "student")
    assert [name for name, _ in found][-1] == "retrieval"
    assert run.finished


def test_the_teachers_part_is_labelled_partial(run):
    table = baseline.overview(run).query("over == 'all'").set_index(["set", "model"])
    assert table.loc[("aro-relation", "teacher"), "n"].item() == 5
    assert table.loc[("aro-relation", "teacher"), "partial"].item()
    assert not table.loc[("aro-relation", "student"), "partial"].item()


def test_results_are_those_of_the_kept_scores(run):
    scores = baseline.scored(run)["aro-relation", "student"]
    right = tables.outcomes(scores)["accuracy"]
    table = run.results().query("set == 'aro-relation' and model == 'student'").set_index("label")
    assert table.loc["all", "accuracy"] == right.mean()
    by_hand = np.mean([right[scores["relation"] == r].mean() for r in ("left", "above")])
    assert table.loc["macro", "accuracy"] == pytest.approx(by_hand)


@pytest.mark.parametrize("model", baseline.BLIND)
def test_a_blind_baseline_sees_no_image(run, model):
    scores = baseline.scored(run)["aro-relation", model]
    # the first caption is the shorter and the likelier one, and the answer of every second item
    assert tables.outcomes(scores)["accuracy"].tolist() == [True, False] * 4


def test_each_distinct_image_goes_through_a_tower_once(run):
    costs = baseline.costs(run).set_index(["set", "model"])
    assert costs.loc[("aro-relation", "student"), "images"] == 4  # of eight items
    assert costs.loc[("aro-relation", "student"), "captions"] == 5
    assert costs.loc[("winoground", "student"), "images"] == 12
    assert costs.loc[("aro-relation", "student"), "UNet evaluations"] == 0
    assert costs.loc[("winoground", "teacher"), "UNet an item"] == 16  # 4 pairs, 4 draws
    assert (costs["ms an item"] >= 0).all()


def test_agreement_is_counted_on_the_items_that_both_scored(run):
    found, counts = baseline.scored(run), baseline.agreements(run)["aro-relation"]
    student, teacher = found["aro-relation", "student"], found["aro-relation", "teacher"]
    student = student.set_index("id").loc[teacher["id"]].reset_index()
    one = tables.outcomes(student)["accuracy"]
    other = tables.outcomes(teacher, "relative")["accuracy"]
    assert counts.to_numpy().tolist() == [
        [(one & other).sum(), (one & ~other).sum()],
        [(~one & other).sum(), (~one & ~other).sum()],
    ]
    table = baseline.agreement_table(run).set_index("set")
    assert table.loc["aro-relation", "n"] == 5
    assert "retrieval" not in table.index


def test_of_a_large_set_the_teacher_scores_a_random_part_by_the_seed(config, monkeypatch):
    whole, asked = choices(40), []

    def score(judge, part, config):
        asked.append([item.id for item in part.items])
        return evaluate.score_grids(text_only.LengthScorer(), part)

    monkeypatch.setattr(baseline, "load_sets", lambda config: ([whole], []))
    monkeypatch.setattr(baseline, "corpus", lambda config: (None, ["not here"]))
    monkeypatch.setattr(baseline, "load_judge", lambda config: "the teacher")
    monkeypatch.setattr(baseline, "teacher_scores", score)
    for seed in (0, 3):
        baseline.measure(override(config, seed=seed))
        assert asked[-1] == [item.id for item in whole.sample(5, seed).items]
    assert asked[0] != asked[1]


def test_agreement_tells_who_is_right_alone(monkeypatch):
    """Of ten items both get one, the student three alone, the teacher two alone, none four."""
    student = np.repeat([True, True, False, False], [1, 3, 2, 4])
    teacher = np.repeat([True, False, True, False], [1, 3, 2, 4])
    monkeypatch.setattr(baseline, "_paired", lambda run: [("set", (student, teacher))])
    row = baseline.agreement_table(None).iloc[0]
    told = ["n", "both right", "student alone", "teacher alone", "none"]
    assert row[told].tolist() == [10, 0.1, 0.3, 0.2, 0.4]
    by_chance = 0.4 * 0.3 + 0.6 * 0.7
    assert row["kappa"] == pytest.approx((0.5 - by_chance) / (1 - by_chance), abs=5e-4)


def test_a_finished_baseline_is_read_and_not_computed_again(run, config, monkeypatch):
    def refuse(*args):
        raise AssertionError("loaded a model again")

    monkeypatch.setattr(baseline, "load_student", refuse)
    monkeypatch.setattr(baseline, "load_teacher", refuse)
    again = baseline.measure(config)
    assert again.path == run.path
    assert baseline.costs(again).equals(baseline.costs(run))


def test_other_weights_are_another_baseline(run, config, tmp_path):
    before = baseline.weights_fingerprints(config)
    other = f"local-dir:{tiny.save_student(tmp_path / 'other', seed=1)}"
    after = baseline.weights_fingerprints(config.model_copy(update={"clip_model": other}))
    assert before["student"] != after["student"]
    assert before["teacher"] == after["teacher"]


def test_tables_for_the_figures_have_one_row_a_mark(run):
    table = baseline.by_set(run)
    assert not table.duplicated(["set", "model"]).any()
    assert set(table["set"]) == {"winoground", "aro-relation", "zeroshot-color", "retrieval"}
    tags = baseline.by_tag(run)
    assert set(tags["set"]) == {"winoground"}
    assert not tags.duplicated(["model", "tag", "label", "metric"]).any()


def test_sets_that_are_not_here_are_listed_with_the_reason(tmp_path, monkeypatch):
    here, load = {"aro-relation": choices(), "zeroshot": classes()}, baseline.load_set
    monkeypatch.setattr(baseline, "load_set", lambda name: here.get(name) or load(name))
    sets, absent = baseline.at_hand(BaselineConfig(preset="paper", benchmark="all"))
    assert [b.name for b in sets] == ["aro-relation", "zeroshot-color"]
    missing = absent.set_index("set")["why"]
    assert {"winoground", "coco-order", "sugarcrepe"} <= set(missing.index)
    assert missing.str.len().min() > 20
    with pytest.raises(DataError, match="no benchmark is at hand"):
        baseline.at_hand(BaselineConfig(preset="paper", benchmark="sugarcrepe"))


def test_the_real_sets_have_no_profile_and_the_teachers_plain_errors_decide(config):
    paper = config.model_copy(update={"preset": "paper"})
    judge = baseline.load_judge(paper)
    assert judge.profile is None
    found = baseline.teacher_scores(judge, choices(), paper)
    assert baseline.rule_of(found) == ""


def test_a_teacher_in_half_precision_has_its_near_ties_decided_in_full(config):
    half = override(config, precision="bf16")
    judge = baseline.load_judge(half.model_copy(update={"preset": "paper"}))
    assert (judge.teacher.unet.dtype, judge.full.unet.dtype) == (torch.bfloat16, torch.float32)
    assert judge.teacher.vae is judge.full.vae
    assert judge.teacher.text_encoder is judge.full.text_encoder
    found = baseline.teacher_scores(judge, choices(), half)
    assert "rechecked" in found
    assert found.attrs["counts"]["rechecked_unet_evaluations"] > 0


def test_the_teacher_squares_pictures_as_asked(config):
    sides = Image.linear_gradient("L").rotate(90).resize((64, 32)).convert("RGB")
    wide = ImageRef("wide.png", lambda: tiny.png(sides))
    items = (Item("0", (wide,), ("a red circle", "a blue square"), answer=0),)
    one = Benchmark("wide", "choice", items, 1, "made by the test")
    paper = config.model_copy(update={"preset": "paper"})
    judge = baseline.load_judge(paper)
    grids = [
        tables.grids_of(baseline.teacher_scores(
            judge, one, paper.model_copy(update={"image_mode": mode})))
        for mode in ("crop", "squash", "pad")
    ]  # fmt: skip
    assert len({float(grid[0, 0, 0]) for grid in grids}) == 3


def test_captions_to_learn_from_that_are_not_here_are_named(config, monkeypatch):
    here = override(config, corpus="nowhere.json::nothing", benchmark="mini:aro-relation")
    known, why = baseline.corpus(here)
    assert known is None
    assert "nowhere.json" in why[0]
    absent = baseline.at_hand(here)[1]
    assert absent.to_dict("records") == [{"set": "text alone", "why": why[0]}]
