"""The diagnosis holds its laws: planted signals are found, noise is not, and sums are whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sdslib import experiment
from sdslib.arms.trainable import set_trainable
from sdslib.bridge import Bridge, ridge_start
from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig
from sdslib.io.runs import RunError, find_run, open_run
from sdslib.io.state import pack_state
from sdslib.lab import diagnosis, probes
from sdslib.lab.probes import AGAIN, HELD, QUESTIONS, SWAPS
from sdslib.miniworld import drawing
from sdslib.pairs import batches, load_pairs
from sdslib.student import load_student
from sdslib.teacher import load_teacher
from sdslib.train import Models, draw_noise, objective

CONFIG = FinetuneConfig(trainable="all", batch_size=8, bridge_pairs=24)
COLOR, SHAPE = "color of the left or upper", "shape of the left or upper"


@pytest.fixture(scope="module")
def worlds():
    return probes.changes(probes.world("val", 200, 0), 0)


@pytest.fixture(scope="module")
def fit():
    return probes.world("train", 400, 0)


@pytest.fixture(scope="module")
def student():
    return load_student(CONFIG.clip_model, None)


@pytest.fixture(scope="module")
def teacher():
    return load_teacher(CONFIG.teacher)


def few(worlds, count):
    return {n: probes.World(w.scenes[:count], w.forms[:count]) for n, w in worlds.items()}


# --- scenes --------------------------------------------------------------------------------------


def test_worlds_are_of_their_split_and_share_no_pair_of_shapes_and_colors(fit, worlds):
    assert {scene.split for scene in fit.scenes} == {"train"}
    assert {scene.split for shown in worlds.values() for scene in shown.scenes} == {"val"}
    for shown in worlds.values():
        for thing in (thing for scene in shown.scenes for thing in scene.things):
            assert (thing.color, thing.shape) not in drawing.HELD_OUT


def test_a_world_is_the_same_for_the_same_seed_and_no_longer_one_begins_differently(fit):
    assert probes.world("train", 400, 0) == fit
    assert probes.world("train", 30, 0).scenes == fit.scenes[:30]
    assert probes.world("train", 30, 1).scenes != fit.scenes[:30]


@pytest.mark.parametrize("kind", SWAPS)
def test_a_swap_says_the_same_words_of_another_scene(worlds, kind):
    for one, other in zip(worlds[HELD].captions, worlds[kind].captions, strict=True):
        assert one != other
        # "an" before a vowel is the one word that a swap may change
        assert sorted(one.replace("an ", "a ").split()) == sorted(
            other.replace("an ", "a ").split()
        )


def test_drawn_anew_the_things_stay_and_the_picture_changes(worlds):
    for one, other in zip(worlds[HELD].scenes, worlds[AGAIN].scenes, strict=True):
        assert (one.things, one.axis) == (other.things, other.axis)
        assert one.place != other.place


def test_a_world_as_pairs_shows_its_own_scenes(worlds):
    pairs = few(worlds, 3)["Object"].pairs
    for n, scene in enumerate(worlds["Object"].scenes[:3]):
        np.testing.assert_array_equal(np.array(pairs.image(n)), np.array(drawing.draw(scene)))
        assert pairs.captions(n) == (worlds["Object"].captions[n],)


# --- probes --------------------------------------------------------------------------------------


def planted(shown, mark, width=24, noise=0.3, seed=0):
    """Embeddings [N, width] that hold one-hot marks of the scenes among noise, turned at random."""
    generator = torch.Generator().manual_seed(seed)
    emb = noise * torch.randn(len(shown.scenes), width, generator=generator)
    for row, pair in zip(emb, zip(shown.scenes, shown.captions, strict=True), strict=True):
        row[mark(*pair)] += 1
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(7)))
    return emb @ turn.Q


def left_color(scene, caption):
    return probes.COLORS.index(scene.things[0].color)


def asked(fit, held, **towers):
    """The probe table of planted embeddings, by tower and question."""
    known, seen = ({n: planted(w, m, seed=s) for n, m in towers.items()}
                   for s, w in enumerate((fit, held)))  # fmt: skip
    table = probes.probe_table(known, seen, fit, held, 0)
    return table.set_index(["read from", "question"])


def test_a_probe_finds_what_is_planted_and_nothing_else(fit, worlds):
    table = asked(fit, worlds[HELD], image=left_color).loc["image"]
    assert table.loc[COLOR, "low"] > 0.95
    for other in (SHAPE, "beside or above", "color named first"):
        assert table.loc[other, "low"] < table.loc[other, "chance"] < table.loc[other, "high"]


def test_of_noise_every_question_is_answered_by_chance(fit, worlds):
    table = asked(fit, worlds[HELD], image=lambda scene, caption: []).loc["image"]
    assert table["n"].eq(200).all()
    two = table[table["chance"] == 0.5]
    assert two["mean"].to_numpy() == pytest.approx(0.5, abs=3.5 * (0.25 / 200) ** 0.5)
    assert table.loc["which two colors", "mean"] < 0.2
    assert table.loc["which two shapes", "mean"] < 0.2


def test_captions_that_say_it_in_the_images_direction_are_read_by_the_images_probe(fit, worlds):
    table = asked(fit, worlds[HELD], image=left_color, caption=left_color)
    assert table.loc[("caption by image", COLOR), "low"] > 0.95


def test_captions_that_say_it_in_another_direction_are_not(fit, worlds):
    table = asked(fit, worlds[HELD], image=left_color, caption=lambda s, c: 12 + left_color(s, c))
    assert table.loc[("caption", COLOR), "low"] > 0.95
    row = table.loc[("caption by image", COLOR)]
    assert row["low"] < 0.5 < row["high"]


def test_a_tie_is_no_right_answer():
    options = [[(0,), (1,)], [(0, 1), (1, 2)], [(2,), (0,), (1,)]]
    scores = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    assert probes.answers(scores, options).tolist() == [False, True, True]


def test_a_swap_of_the_things_turns_the_questions_about_them_round(worlds):
    pairs = [list(zip(w.scenes, w.captions, strict=True)) for w in worlds.values()]
    for name in (COLOR, SHAPE):
        choose = QUESTIONS[name][1]
        for own, swapped in zip(pairs[0], pairs[list(worlds).index("Relation")], strict=True):
            assert choose(*own) == choose(*swapped)[::-1]


def test_swaps_are_told_apart_by_what_they_change_alone(fit, worlds):
    seen = {n: {"image": planted(w, left_color, seed=k)} for k, (n, w) in enumerate(worlds.items())}
    table = probes.swap_table({"image": planted(fit, left_color, seed=9)}, fit, seen, worlds, 0)
    table = table.set_index("swap")
    assert (table.loc[["Object", "Relation"], "low"] > 0.95).all()
    assert table.loc["Both", "low"] < 0.5 < table.loc["Both", "high"]  # there the shapes change
    assert table.loc["Both", "cosine with swap"] > table.loc["Object", "cosine with swap"]


def test_a_swap_is_told_by_which_color_has_which_shape_where_it_changes_that(fit, worlds):
    def bound(scene, caption):
        return list(probes._bound(scene)[0])

    seen = {n: {"image": planted(w, bound, 60, seed=k)} for k, (n, w) in enumerate(worlds.items())}
    known = {"image": planted(fit, bound, 60, seed=9)}
    table = probes.swap_table(known, fit, seen, worlds, 0).set_index("swap")
    assert (table.loc[["Object", "Both"], "binding"] > 0.95).all()
    assert np.isnan(table.loc["Relation", "binding"])
    assert (table["low"] < 0.6).all()  # where the things stand is not planted


def test_embeddings_are_those_of_the_student(worlds, student):
    shown = few(worlds, 3)[HELD]
    found = probes.embed(student, shown)
    pixels = torch.stack([student.transform(drawing.draw(scene)) for scene in shown.scenes])
    with torch.no_grad():
        torch.testing.assert_close(found["image"], student.encode_images(pixels))
        pooled = nn.functional.normalize(student.pooled_images(pixels), dim=-1)
        torch.testing.assert_close(found["image, pooled"], pooled)
        text = student.encode_texts(student.tokenize(shown.captions))
        torch.testing.assert_close(found["caption"], text, atol=1e-5, rtol=1e-4)


# --- h_w -----------------------------------------------------------------------------------------


def test_an_exactly_linear_map_explains_everything():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 32, generator=generator, dtype=torch.float64)
    emb = {n: torch.randn(80, 6, generator=generator) for n in (HELD, *SWAPS, AGAIN)}
    true = {n: (x.double() @ weight + 1).float().unflatten(1, (2, 4, 4)) for n, x in emb.items()}
    bridge = Bridge(6, (2, 4, 4))
    bridge.load_state_dict(ridge_start(emb[HELD], true[HELD]).state)
    with torch.no_grad():
        table = diagnosis.reconstruction({n: bridge(x) for n, x in emb.items()}, true)
    assert table["r2"].to_numpy() == pytest.approx(1, abs=1e-6)
    assert len(table) == 1 + 2 + 4


def test_the_mean_explains_nothing_and_half_a_difference_three_quarters():
    generator = torch.Generator().manual_seed(0)
    true = {n: torch.randn(80, 2, 4, 4, generator=generator) for n in (HELD, *SWAPS, AGAIN)}
    mean = {n: true[HELD].mean(0).expand(80, -1, -1, -1) for n in true}
    assert diagnosis.reconstruction(mean, true)["r2"].to_numpy() == pytest.approx(0, abs=1e-6)
    half = diagnosis.reconstruction({n: z / 2 for n, z in true.items()}, true).set_index("of")
    assert half.loc["difference: Object", "r2"] == pytest.approx(0.75)


def test_the_teacher_chooses_rightly_on_the_latent_and_blindly_without(
    worlds, teacher, monkeypatch
):
    monkeypatch.setattr(diagnosis, "CHOSEN", 4)
    monkeypatch.setattr(diagnosis, "DRAWS", 4)
    shown = few(worlds, 4)
    true = {name: diagnosis._latents(teacher, shown[name]) for name in (HELD, *SWAPS)}
    table = diagnosis.choices(teacher, true, shown, 0)
    assert table["swap"].tolist() == list(SWAPS)
    assert table["images"].mean() > 0.9
    blind = diagnosis.choices(teacher, {n: z.zero_() for n, z in true.items()}, shown, 0)
    assert blind["mean"].tolist() == [0, 0, 0]  # the same caption for both images: one of two
    assert blind["images"].tolist() == [0.5, 0.5, 0.5]


def test_true_and_swapped_captions_exchanged_the_choice_by_t_is_the_opposite(
    worlds, teacher, monkeypatch
):
    monkeypatch.setattr(diagnosis, "BINS", 4)
    shown = few(worlds, 3)
    z = diagnosis._latents(teacher, shown[HELD])
    table = diagnosis.choice_by_t(teacher, z, shown, CONFIG, 0)
    exchanged = shown | {HELD: shown["Object"], "Object": shown[HELD]}
    back = diagnosis.choice_by_t(teacher, z, exchanged, CONFIG, 0)
    own, other = (x[x["swap"] == "Object"] for x in (table, back))
    assert own["mean"].to_numpy() == pytest.approx(1 - other["mean"].to_numpy())
    assert table["mean"].mean() > 0.75
    assert own["t from"].tolist() == [CONFIG.t_min, *(own["to"][:-1] + 1)]
    assert own["to"].iloc[-1] == CONFIG.t_max


# --- gradients -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step(student, teacher, drawn):
    """A student in which everything may move, with its bridge, and the first step's batch."""
    pairs = load_pairs("mini", 32)
    cache = experiment.LatentCache(teacher, pairs)
    bridge = experiment.start_bridge(CONFIG, student, cache, pairs)
    trained = [value for _, value in set_trainable(student, "all")]
    batch = next(batches(pairs, student.transform, 8, 0, range(1)))
    draws = draw_noise(0, 8, teacher.latent_shape, CONFIG)
    yield Models(student, trained, teacher, bridge), batch, *draws
    student.requires_grad_(False)


def test_the_sds_loss_gives_the_text_tower_exactly_no_gradient(step):
    table = diagnosis.gradients(*step, CONFIG).set_index(["part", "kind"])
    assert table.loc["text tower", "sds"].eq(0).all()
    assert table.loc["text tower", "clip"].gt(0).all()
    assert table.loc["bridge", "clip"].eq(0).all()
    assert table.loc["image tower", ["clip", "sds"]].gt(0).all(axis=None)
    assert (
        table["cosine with clip"]
        .notna()
        .eq(table.index.get_level_values("part") == "image tower")
        .all()
    )


def test_kinds_of_parameters_add_up_to_their_tower_and_norms_to_the_whole(step):
    table = diagnosis.gradients(*step, CONFIG).assign(whole=lambda x: x["kind"] == "all")
    for name in ("clip", "sds"):
        squares = (table[name] ** 2).groupby([table["part"], table["whole"]]).sum().unstack()
        np.testing.assert_allclose(squares[True], squares[False], rtol=1e-9)
    counts = table.groupby(["part", "whole"])["parameters"].sum().unstack()
    assert (counts[True] == counts[False]).all()
    trained = sum(value.numel() for value in step[0].trained)
    assert counts.loc[["image tower", "text tower"], True].sum() == trained
    terms = objective(*step, CONFIG)[1]
    grads = torch.autograd.grad(terms["clip"].mean(), step[0].trained)
    norm = torch.stack([g.double().norm() for g in grads]).norm()
    assert np.sqrt(squares_of(table, "clip")) == pytest.approx(float(norm), rel=1e-6)


def squares_of(table, name):
    return (table.loc[table["whole"], name] ** 2).sum()


def test_the_weight_scales_the_second_gradient_and_no_cosine(step):
    one, two = (diagnosis.gradients(*step, override(CONFIG, sds_weight=w)) for w in (1e-3, 2e-3))
    np.testing.assert_allclose(two["sds"], 2 * one["sds"], rtol=1e-6)
    cosines = [column for column in one if column.startswith("cosine")]
    np.testing.assert_allclose(two[cosines], one[cosines], rtol=1e-5)


def test_captions_that_no_swap_changes_leave_the_gradient_as_it_is(step):
    models, batch, *draws = step
    plain = replace(batch, captions=("a red circle", "a blue square") * 4, others=("",) * 8)
    table = diagnosis.gradients(models, plain, *draws, CONFIG).set_index(["part", "kind"])
    image = table.loc["image tower"]
    assert image["cosine with swapped"].to_numpy() == pytest.approx(1)
    assert (image["cosine with shuffled"] < 0.999).all()


# --- runs and the command line -------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run of two steps, cut off: it has a checkpoint and no weights."""
    config = FinetuneConfig(runs=str(tmp_path), steps=4)
    with open_run(config, {"pairs": "aa11"}, tmp_path) as run:
        student = load_student(config.clip_model, None)
        chosen = [value for _, value in set_trainable(student, config.trainable)]
        for value in chosen:
            value.data += 0.01
        run.save_checkpoint(2, pack_state({"student": nn.ParameterList(chosen)}), {"steps": 4})
        run.interrupt()
    return find_run(run.path), student.requires_grad_(False)


def test_the_student_of_a_run_is_that_of_its_weights_or_of_its_newest_checkpoint(run):
    found, student = run
    tokens = student.tokenize(["a red circle above a blue square"])
    with torch.no_grad():
        wanted = student.encode_texts(tokens)
        untouched = load_student(CONFIG.clip_model, None).encode_texts(tokens)
        assert torch.equal(diagnosis.student_of(found).encode_texts(tokens), wanted)
        assert not torch.allclose(untouched, wanted, atol=1e-3)
        student.save(found.weights)
        assert torch.equal(diagnosis.student_of(found).encode_texts(tokens), wanted)


def test_a_run_without_weights_is_refused_by_name(tmp_path):
    with open_run(FinetuneConfig(runs=str(tmp_path)), {"pairs": "aa11"}, tmp_path) as run:
        run.interrupt()
    with pytest.raises(RunError, match="has neither weights nor a checkpoint"):
        diagnosis.student_of(find_run(run.path))


@pytest.mark.slow
def test_the_command_prints_every_table_of_every_student(run, teacher, monkeypatch, capsys):
    for name, value in (("CHOSEN", 4), ("DRAWS", 2), ("BINS", 1), ("BATCH", 4)):
        monkeypatch.setattr(diagnosis, name, value)
    monkeypatch.setattr(diagnosis, "mini", lambda: FinetuneConfig(bridge_pairs=16))
    monkeypatch.setattr(diagnosis, "load_teacher", lambda *place, **of: teacher)
    given = ["--scenes", "24", "--bridge-input", "tokens-2"]
    assert diagnosis.main([str(run[0].path), *given]) == 0
    text = capsys.readouterr().out
    for name in ("untouched", run[0].name):
        for title in ("linear probes", "swaps", "R2 of h_w", "the choice on h_w", "gradients"):
            assert text.count(f"\n{name}: {title}\n") == 1
    for title in ("linear probes of the latent", "the choice on the latent", "the choice by t"):
        assert text.count(f"\nteacher: {title}\n") == 1
    assert text.count("which color has which shape") == 3


def test_an_unknown_run_is_one_line_before_anything_is_computed(tmp_path, capsys):
    assert diagnosis.main(["nosuchrun", "--runs", str(tmp_path)]) == 2
    assert "no run 'nosuchrun'" in capsys.readouterr().err


def test_too_few_scenes_to_fit_a_probe_to_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        diagnosis.main(["--scenes", "9"])
    assert "--scenes is 10 or more, got 9" in capsys.readouterr().err
