"""The committed models are what their recipe says, and the recipe makes such models."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sdslib import experiment, tables
from sdslib.benchmarks import load_benchmark
from sdslib.checks.notebooks import MiniworldConfig
from sdslib.io.paths import project_root
from sdslib.miniworld import examine, files, models
from sdslib.miniworld.recipe import Recipe, cosine_lr, draw_t, error_weights, teacher_turns
from sdslib.teacher import load_teacher

HOME = project_root() / "data" / "mini"
TINY = Recipe(
    pool=64, vae_steps=2, teacher_steps=4, binding_from=1, layout_from=2, pairs_from=3,
    student_steps=2, vae_batch=4, teacher_batch=4, student_batch=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def student(drawn):
    return experiment.load_student(f"local-dir:{HOME / 'student'}", None)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(str(HOME / "teacher"))


def test_committed_files_are_those_of_the_recipe():
    table = models.provenance(HOME)
    assert table["as recorded"].all()
    assert table["kB"].sum() < 25_000
    recorded = json.loads((HOME / "recipe.json").read_text())
    assert recorded["recipe"] == json.loads(json.dumps(models.asdict(Recipe())))


def test_the_student_names_colors_and_shapes(student):
    named = examine.naming(student)
    right = named[named["metric"] == "accuracy"].set_index("task")["accuracy"]
    assert right["color"] >= 0.9
    assert right["shape"] >= 0.9


def test_the_student_does_not_know_relations(student):
    scores = experiment.score(student, load_benchmark("mini:winoground:val"))
    relation = scores[scores["collapsed_tag"] == "Relation"]
    assert experiment.shares(relation)["text"] <= 0.25


def test_the_pipeline_samples_pictures_of_the_right_size_and_color(teacher):
    pipeline = StableDiffusionPipeline.from_pretrained(HOME / "teacher")
    assert pipeline.unet.config.sample_size == 8
    images = teacher.sample(["a red circle", "a blue circle"], 20, 3.0, 0)
    red, blue = (np.asarray(image, float).min(axis=(0, 1)) for image in images)
    assert images[0].size == (64, 64)
    saturation = [np.asarray(i, float).max(-1) - np.asarray(i, float).min(-1) for i in images]
    assert all(values.max() > 80 for values in saturation)
    assert red[2] < red[0] + 60
    assert blue[0] < blue[2]


@pytest.mark.slow
def test_rebuilding_goes_on_where_it_was_cut_and_ends_the_same(tmp_path):
    def train(root, stop=None):
        found, pool = models.pixel_pool(TINY, "pool")
        for part, make in models.PARTS.items():
            for progress in make(TINY, found, pool, root):
                if stop == (part, progress.step):
                    return {}
        return {k: v["sha256"] for k, v in models.digest(root).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdslib.miniworld.recipe.EVERY", 1)
        patch.setattr("sdslib.miniworld.recipe.KEEP_EVERY", 1)
        whole = train(tmp_path / "whole")
        train(tmp_path / "cut", ("teacher", 3))
        again = train(tmp_path / "cut")
    assert again == whole
    assert any(name.startswith("teacher/unet/") for name in whole)
    load_teacher(str(tmp_path / "whole" / "teacher"))
    experiment.load_student(f"local-dir:{tmp_path / 'whole' / 'student'}", None)


def test_a_finished_build_replaces_the_models_at_once(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text(name)
    models.swap_in(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "weights").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]


def test_rebuild_puts_models_recipe_and_hashes_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "scaled", lambda scale: TINY)
    config = MiniworldConfig(rebuild=True, folder=str(tmp_path), threads=1)
    seen = []
    models.ensure_models(config, lambda steps, total: seen.append(total) or steps)
    assert seen == [3]
    assert models.provenance(tmp_path)["as recorded"].all()
    student, teacher = examine.load(config)
    assert student.width == 128
    assert teacher.latent_shape == (4, 8, 8)


def test_stages_weigh_the_error_with_mean_one_over_what_they_draw():
    alpha_bar = models.new_scheduler().alphas_cumprod
    recipe = Recipe()
    stages = (
        (0, "high_range"),
        (recipe.binding_from, "wide_range"),
        (recipe.layout_from, "high_range"),
    )
    for step, name in stages:
        drawn = getattr(recipe, name)
        weight = error_weights(recipe, step, alpha_bar)
        assert weight[slice(*drawn)].mean() == pytest.approx(1.0, rel=1e-5)
        assert (weight.diff() >= 0).all()


def test_stages_draw_t_from_their_ranges():
    recipe, generator = Recipe(), torch.Generator().manual_seed(0)
    first = draw_t(recipe, 0, 4000, generator)
    second = draw_t(recipe, recipe.binding_from, 4000, generator)
    low, high = recipe.wide_range
    assert second.min() >= low
    assert second.max() < high
    share = ((first >= recipe.high_range[0]) & (first < recipe.high_range[1])).float().mean()
    assert share == pytest.approx(0.8 + 0.2 * 0.58, abs=0.03)


def test_stages_follow_each_other_and_the_last_falls_to_zero():
    turns = teacher_turns(Recipe())
    assert [t.start for t in turns[1:]] == [t.end for t in turns[:-1]]
    assert turns[-1].end == Recipe().teacher_steps == turns[-1].start + turns[-1].horizon


def test_cosine_warms_up_and_ends_near_zero():
    rates = [cosine_lr(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.001


def test_spread_takes_as_many_of_each_tag_as_can_be(drawn):
    chosen = examine.spread(load_benchmark("mini:winoground:val").items, 30)
    tags = [item.tags["collapsed_tag"] for item in chosen]
    assert {tag: tags.count(tag) for tag in set(tags)} == {"Object": 10, "Relation": 10, "Both": 10}


def test_who_knows_compares_student_and_teacher_on_the_same_items(student, teacher):
    table = examine.who_knows(student, teacher, 6, 4)
    assert set(table["model"]) == {"student", "teacher"}
    whole = table[(table["tag"] == "all") & (table["metric"] == "text")]
    assert set(whole["n"]) == {6}
    assert tables.is_grid(experiment.score(student, load_benchmark("mini:winoground:val"), 4))


def test_contents_and_examples_show_what_was_drawn(drawn):
    table = examine.contents().set_index("set")["items"]
    assert table["COCO-shaped pairs, train"] == files.COUNTS["coco_train"]
    images, titles = examine.examples("winoground", 3)
    assert len(images) == len(titles) == 6
    assert len(examine.examples("coco", 4)[0]) == 4
