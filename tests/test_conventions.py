"""Where peers count otherwise: each of both figures is what its own rule says."""

import pytest
import torch

from sdslib import evaluate, metrics
from sdslib.benchmarks import Benchmark, Item, load_benchmark
from sdslib.checks.notebooks import BaselineConfig
from sdslib.lab import conventions
from sdslib.student import load_student
from sdslib.teacher import load_teacher


@pytest.fixture(scope="module")
def found(photos):
    config = BaselineConfig(**photos.models, benchmark=photos.winoground, teacher_items=3, draws=2)
    return conventions.table(config).set_index(["convention", "metric"])


@pytest.fixture(scope="module")
def photographs(photos):
    """Items of one photograph each, with the same caption."""
    items = load_benchmark(photos.winoground).items[:4]
    return tuple(Item(str(n), item.images[:1], ("a red circle",)) for n, item in enumerate(items))


def test_of_equal_captions_ours_finds_none_and_theirs_the_first(photographs, student):
    pairs = Benchmark("r", "retrieval", photographs, 4, "")
    to_text = next(iter(conventions.ties(student, pairs)))
    assert to_text["metric"] == "recall@1 image_to_text"
    assert (to_text["ours"], to_text["theirs"], to_text["otherwise"]) == (0, 0.25, 1)


def test_a_squashed_photograph_is_scored_as_distorted(photos, found):
    items, one = load_benchmark(photos.winoground), load_student(photos.clip_model, None)
    for column, mode in {"ours": None, "theirs": "squash"}.items():
        scores = evaluate.score_grids(evaluate.clip_scorer(one, mode=mode), items)
        grids = scores[["s_0_0", "s_0_1", "s_1_0", "s_1_1"]].to_numpy().reshape(-1, 2, 2)
        right = {m: r.mean() for m, r in metrics.winoground_correct(grids).items()}
        assert found.loc["image squashed"][column].to_dict() == right


def test_sampled_latents_are_standard_normal_around_the_mean_and_of_their_image_alone(
    photos, photographs
):
    teacher = load_teacher(photos.teacher)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    refs = [item.images[0] for item in photographs[:2]]
    bank = conventions.SampledLatents(teacher, None, False, 2, "crop")
    with torch.no_grad():
        sampled = bank.encode(refs, pixels)
        std = teacher.vae.encode(pixels).latent_dist.std * teacher.vae.config.scaling_factor
    noise = (sampled - teacher.encode_images(pixels)) / std
    assert abs(noise.mean()) < 0.25
    assert 0.85 < noise.std() < 1.15
    torch.testing.assert_close(sampled[1:], bank.encode(refs[1:], pixels[1:]))


@pytest.mark.parametrize("name", ["latent sampled", "norm not squared"])
def test_the_teachers_figures_are_of_the_items_it_saw(found, name):
    assert found.loc[name]["n"].to_dict() == {"teacher, text": 3, "teacher, image": 3}


def test_words_that_nltk_splits_otherwise_are_counted(photos, found):
    row = found.loc["trigrams of nltk's words", "captions"]
    assert row["n"] == len({c for i in load_benchmark(photos.winoground).items for c in i.captions})
    assert row["otherwise"] == round(row["n"] * (1 - row["theirs"]))


def test_the_command_prints_both_figures_and_refuses_what_it_does_not_know(photos, capsys):
    given = photos.models | {"benchmark": photos.winoground, "teacher_items": "0"}
    assert conventions.main([w for k, v in given.items() for w in ("-p", k, v)]) == 0
    said = capsys.readouterr().out
    assert "image squashed" in said
    assert "latent sampled" not in said
    assert conventions.main(["-p", "banchmark", "x"]) == 2
