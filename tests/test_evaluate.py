"""Scorers on tiny real models: each thing computed once, noise shared, the reference reproduced."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import reference
import tiny
import torch
from PIL import Image
from scipy import stats

from sdslib import evaluate, metrics, tables
from sdslib.benchmarks import Benchmark, Item
from sdslib.io.images import ImageRef
from sdslib.results import comparison
from sdslib.scorers import diffusion, sequential
from sdslib.student import load_student

CAPTIONS = (
    "a red circle left of a blue square",
    "a blue square left of a red circle",
    "a green triangle above a white square",
    "a white square above a green triangle",
    "a large red triangle",
    "a small red triangle",
)


def noise(seed) -> ImageRef:
    """A PNG of noise, 48 by 40 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    data = tiny.png(Image.fromarray(pixels))
    return ImageRef(f"noise-{seed}", lambda: data)


def item(name, images, captions, answer=None, **tags):
    return Item(name, tuple(images), tuple(captions), answer, tags=tags)


def benchmark(items, kind="grid", total=None, prompts=()):
    return Benchmark("toy", kind, tuple(items), total or len(items), "made here", tuple(prompts))


def grid_items(count=4):
    """Winoground-shaped items that share images and captions with their neighbours."""
    refs = [noise(n) for n in range(count + 1)]
    return [
        item(f"g{n}", refs[n : n + 2], (CAPTIONS[n % 6], CAPTIONS[(n + 1) % 6]), kind="ab"[n % 2])
        for n in range(count)
    ]


@pytest.fixture
def unet_batches(teacher, monkeypatch):
    """Sizes of the batches that reach the UNet."""
    sizes, real = [], teacher.predict_noise

    def counted(z_t, t, text):
        sizes.append(len(z_t))
        return real(z_t, t, text)

    monkeypatch.setattr(teacher, "predict_noise", counted)
    return sizes


def test_clip_scores_equal_pair_by_pair_encoding(student):
    items = grid_items()
    found = tables.grids_of(evaluate.score_grids(evaluate.clip_scorer(student), benchmark(items)))
    np.testing.assert_allclose(found, reference.clip_grids(student, items), atol=1e-6)


def test_every_distinct_image_and_caption_is_encoded_exactly_once(student, monkeypatch):
    rows = {"images": 0, "captions": 0}
    for name, key in (("encode_image", "images"), ("encode_text", "captions")):
        real = getattr(student.model, name)

        def counted(batch, real=real, key=key, **options):
            rows[key] += len(batch)
            return real(batch, **options)

        monkeypatch.setattr(student.model, name, counted)
    items = grid_items(7)
    scorer = evaluate.clip_scorer(student, batch_size=4)
    table = evaluate.score_grids(scorer, benchmark(items))
    assert rows == scorer.counts == table.attrs["counts"] == {"images": 8, "captions": 6}


def test_captions_equal_after_tokenization_are_a_tie_and_are_listed(student):
    """The tiny tokenizer lower-cases."""
    twins = item("twins", [noise(1), noise(2)], ("a red circle", "A RED circle"))
    table = evaluate.score_grids(evaluate.clip_scorer(student), benchmark([*grid_items(), twins]))
    assert table["equal_captions"].tolist() == [False] * 4 + [True]
    assert tables.ties_of(table)[-1]
    assert not tables.outcomes(table)["text"][-1]


def test_scoring_once_is_at_least_three_times_faster_than_pair_by_pair(student):
    """ARO-shaped items: five captions an image; best of three rounds, in alternation."""
    items = [
        item(f"o{n}", [noise(n)], [f"{c} and {w}" for c in CAPTIONS[:5]], answer=0)
        for n, w in enumerate(tiny.WORDS[:12])
    ]
    once, pairwise = [], []
    for _ in range(3):
        start = time.perf_counter()
        evaluate.score_grids(evaluate.clip_scorer(student), benchmark(items, "choice"))
        once.append(time.perf_counter() - start)
        start = time.perf_counter()
        reference.clip_grids(student, items)
        pairwise.append(time.perf_counter() - start)
    assert min(pairwise) / min(once) >= 3


def test_scoring_leaves_the_student_in_its_mode_and_without_gradients(student):
    student.train()
    list(evaluate.clip_scorer(student)(grid_items()))
    assert student.training
    student.eval()
    assert all(p.grad is None for p in student.parameters())


def test_batch_size_and_order_change_no_score(student):
    items = grid_items(6)
    one = evaluate.score_grids(evaluate.clip_scorer(student, batch_size=1), benchmark(items))
    many = evaluate.score_grids(evaluate.clip_scorer(student), benchmark(items[::-1]))
    np.testing.assert_allclose(tables.grids_of(one), tables.grids_of(many)[::-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
def test_no_square_is_larger_than_a_picture_may_be(mode):
    found = evaluate.squared(Image.new("RGB", (3_000_000, 2)), mode)
    assert found.width == found.height <= 8000


def test_preprocessing_modes_keep_the_middle_the_whole_or_the_shape(student, teacher):
    """A wide image, red left, green middle, blue right."""
    wide = Image.new("RGB", (90, 30))
    for n, color in enumerate(("red", "lime", "blue")):
        wide.paste(color, (30 * n, 0, 30 * n + 30, 30))
    crop, squash, pad = (evaluate.squared(wide, mode) for mode in ("crop", "squash", "pad"))
    assert crop.getcolors() == [(900, (0, 255, 0))]
    assert squash.size == pad.size == (90, 90)
    assert squash.getpixel((2, 2)) == (255, 0, 0)
    assert pad.getpixel((2, 2)) == (0, 0, 0)
    assert pad.getpixel((87, 45)) == (0, 0, 255)
    with pytest.raises(tables.TableError, match="mode must be"):
        evaluate.squared(wide, "stretch")
    for make in (
        lambda mode: evaluate.clip_scorer(student, mode=mode),
        lambda mode: diffusion.diffusion_scorer(teacher, 2, mode=mode),
    ):
        found = [
            tables.grids_of(evaluate.score_grids(make(m), benchmark(grid_items(1))))
            for m in ("crop", "squash", "pad")
        ]
        assert len({grid.tobytes() for grid in found}) == 3


def widths_of(student, monkeypatch) -> list[int]:
    """The token lengths that reach the text tower from now on."""
    seen, real = [], student.model.encode_text

    def watched(tokens, **options):
        seen.append(tokens.shape[1])
        return real(tokens, **options)

    monkeypatch.setattr(student.model, "encode_text", watched)
    return seen


def test_padding_that_all_captions_share_is_left_out_and_changes_nothing(student, monkeypatch):
    captions = [*CAPTIONS, "red", "a", "a red circle left of a blue square above a green triangle"]
    full = student.encode_texts(student.tokenize(captions)).detach().numpy()
    seen = widths_of(student, monkeypatch)
    emb, row = evaluate.clip_scorer(student, batch_size=2).embed_texts(captions)
    np.testing.assert_allclose(emb[row], full, rtol=0, atol=1e-6)
    assert seen[0] == 4  # start, one word, end, one padding token
    assert sorted(seen) == seen
    assert seen[-1] == 15


def test_a_tower_that_sees_its_padding_gets_all_of_it(tmp_path, monkeypatch):
    config = tiny.student_config()
    config["text_cfg"] |= {"no_causal_mask": True}
    both_ways = load_student(str(tiny.save_student(tmp_path, config)), None)
    full = both_ways.encode_texts(both_ways.tokenize(CAPTIONS)).detach().numpy()
    seen = widths_of(both_ways, monkeypatch)
    emb, row = evaluate.clip_scorer(both_ways).embed_texts(CAPTIONS)
    np.testing.assert_allclose(emb[row], full, rtol=0, atol=1e-6)
    assert seen == [tiny.CONTEXT]


def test_draws_are_stratified_shared_and_antithetic():
    draws = diffusion.shared_draws((4, 4, 4), 64, seed=3, t_range=(20, 980))
    again = diffusion.shared_draws((4, 4, 4), 64, seed=3, t_range=(20, 980))
    assert torch.equal(draws.eps, again.eps)
    assert torch.equal(draws.t, again.t)
    assert draws.t.dtype == torch.int64
    pairs = draws.eps.reshape(32, 2, 4, 4, 4)
    assert torch.equal(pairs[:, 0], -pairs[:, 1])
    assert torch.equal(draws.t[::2], draws.t[1::2])
    strata = ((draws.t[::2] - 20) * 32 // 961).tolist()
    assert sorted(strata) == list(range(32))
    for count in (2, 4, 8, 16):  # every prefix is spread over the range
        assert sorted(s * count // 32 for s in strata[:count]) == list(range(count))
    other = diffusion.shared_draws((4, 4, 4), 64, seed=4)
    assert not torch.equal(draws.eps, other.eps)


def test_draws_cover_the_range_to_both_ends_and_single_draws_are_independent():
    seen = torch.cat([diffusion.shared_draws((1,), 50, s, (3, 7), False).t for s in range(20)])
    assert sorted(set(seen.tolist())) == [3, 4, 5, 6, 7]
    single = diffusion.shared_draws((4, 4, 4), 8, seed=0, antithetic=False)
    assert single.group == 1
    assert abs(float((single.eps[0] * single.eps[1]).mean())) < 0.5


@pytest.mark.parametrize("bad", [{"draws": 0}, {"draws": 3}, {"draws": 4, "t_range": (9, 3)}])
def test_impossible_draws_are_refused(bad):
    with pytest.raises(tables.TableError, match="must be"):
        diffusion.shared_draws((4, 4, 4), **{"draws": 4, "seed": 0, **bad})


def test_diffusion_scores_equal_a_double_loop_of_single_evaluations(teacher):
    """Every cell, draw and batch place: an asymmetric fixture with all errors distinct."""
    items, draws = grid_items(3), diffusion.shared_draws(teacher.latent_shape, 6, seed=1)
    table = evaluate.score_grids(
        diffusion.diffusion_scorer(teacher, draws, batch_size=7), benchmark(items)
    )
    pairs = [(int(t), eps) for t, eps in zip(draws.t, draws.eps, strict=True)]
    for row, one in enumerate(items):
        pixels = [teacher.transform(ref.load())[None] for ref in one.images]
        latents = [teacher.encode_images(p)[0] for p in pixels]
        expected = reference.denoising_grid(teacher, latents, one.captions, pairs)
        np.testing.assert_allclose(tables.grids_of(table)[row], -expected, rtol=0, atol=1e-5)
        empty = reference.denoising_grid(teacher, latents, [""], pairs)
        normalized = tables.grids_of(table, "normalized")[row]
        np.testing.assert_allclose(normalized, empty - expected, rtol=0, atol=1e-5)
    assert len(np.unique(tables.grids_of(table))) == 10  # 12 cells, two of them seen twice


def test_batches_are_full_and_every_cell_is_evaluated_once(teacher, unet_batches):
    items = grid_items(3)
    scorer = diffusion.diffusion_scorer(teacher, 4, empty=False, batch_size=8)
    table = evaluate.score_grids(scorer, benchmark(items))
    distinct = {(ref.key, c) for i in items for ref in i.images for c in i.captions}
    assert sum(unet_batches) == scorer.counts["unet_evaluations"] == 4 * len(distinct)
    assert set(unet_batches[:-1]) == {8}
    assert table["unet_evaluations"].tolist() == [16, 16, 16]
    assert scorer.counts["images"] == 4
    assert scorer.counts["captions"] == 4
    list(scorer(items))
    assert sum(unet_batches) == 4 * len(distinct)  # nothing is computed twice


def test_the_same_caption_twice_is_exactly_a_tie(teacher):
    twins = item("t", [noise(1), noise(2)], ("a red circle", "a RED circle"))
    twice = item("u", [noise(1), noise(2)], ("a blue square", "a blue square"))
    scorer = diffusion.diffusion_scorer(teacher, 4, batch_size=3)
    table = evaluate.score_grids(scorer, benchmark([*grid_items(1), twins, twice]))
    assert table["equal_captions"].tolist() == [False, True, True]
    grids = tables.grids_of(table)[1:]
    assert (grids[:, :, 0] == grids[:, :, 1]).all()


def test_scores_do_not_depend_on_batch_size_order_or_company(teacher):
    items = grid_items(4)
    scores = [
        evaluate.score_grids(diffusion.diffusion_scorer(teacher, 4, batch_size=b), benchmark(some))
        for b, some in ((64, items), (3, items[::-1]), (1, items[:2]))
    ]
    first = scores[0].set_index("id")
    for table in scores[1:]:
        same = first.loc[table["id"]].reset_index()
        np.testing.assert_allclose(tables.grids_of(table), tables.grids_of(same), rtol=0, atol=1e-5)


def test_every_weighting_follows_from_the_stored_error_table(teacher, tmp_path):
    items = grid_items(3)
    apart = [item("v", [noise(77), noise(78)], CAPTIONS[:2])]
    profile = diffusion.error_profile(
        diffusion.error_table(diffusion.diffusion_scorer(teacher, 32, seed=9), apart)
    )
    scorer = diffusion.diffusion_scorer(teacher, 8, profile=profile)
    table = evaluate.score_grids(scorer, benchmark(items))
    path = tmp_path / "errors.parquet"
    diffusion.error_table(scorer, items).to_parquet(path)
    again = diffusion.scores_from_errors(pd.read_parquet(path), profile)
    assert again["id"].tolist() == ["g0", "g1", "g2"]
    rules = {"", "normalized", "relative", "relative_normalized"}
    for rule in rules:
        columns = [c for c in again.columns if c.startswith(f"{rule}.s_".lstrip("."))]
        assert len(columns) == 4
        np.testing.assert_allclose(again[columns], table[columns], rtol=1e-12)


def test_the_relative_rule_divides_by_the_mean_error_at_each_t(teacher):
    errors = pd.DataFrame({
        "id": "x", "image": 0, "caption": [0, 1, -1] * 2, "draw": [0, 0, 0, 1, 1, 1],
        "t": [100] * 3 + [900] * 3, "error": [3.0, 5.0, 9.0, 0.2, 0.6, 9.0],
    })  # fmt: skip
    profile = diffusion.error_profile(errors)
    assert profile["error"].tolist() == pytest.approx([4.0, 0.4])
    row = diffusion.scores_from_errors(errors, profile).iloc[0]
    assert row["relative.s_0_0"] == pytest.approx(-(3 / 4 + 0.2 / 0.4) / 2)
    assert row["s_0_1"] == pytest.approx(-2.8)
    assert row["normalized.s_0_0"] == pytest.approx(-(3 - 9 + 0.2 - 9) / 2)
    middle = diffusion.relative_weights(profile, [500])[0]
    assert 1 / middle == pytest.approx(np.sqrt(4.0 * 0.4))


def test_a_score_that_is_not_finite_stops_with_the_items_id(teacher, student, monkeypatch):
    monkeypatch.setattr(teacher, "predict_noise", lambda z_t, t, text: z_t * float("nan"))
    with pytest.raises(metrics.ScoreError, match="item 'g0' is not finite"):
        evaluate.score_grids(diffusion.diffusion_scorer(teacher, 2), benchmark(grid_items()))
    monkeypatch.setattr(
        student, "encode_short_texts", lambda tokens: torch.full((len(tokens), 16), np.nan)
    )
    with pytest.raises(metrics.ScoreError, match="item 'g0'"):
        evaluate.score_grids(evaluate.clip_scorer(student), benchmark(grid_items()))


def test_a_settled_choice_is_that_of_the_full_budget_at_the_stated_rate():
    """Wherever the true difference lies, zero and heavy tails included."""
    rng, total, looks, rate = np.random.default_rng(1), 32, (4, 6, 8, 12, 16, 24), 0.05
    level = sequential.look_level(looks, total, rate)
    assert rate / len(looks) < level < rate
    for effect in (0.0, 0.2, 1.0):
        for noise in (rng.normal(size=(500, total)), rng.standard_t(4, size=(500, total))):
            wrong = settled = 0
            for row in noise + effect:
                errors = np.stack([np.zeros(total), row])
                for count in looks:
                    if sequential.choice_is_settled(errors[..., :count], total, level):
                        settled += 1
                        wrong += (row[:count].mean() > 0) != (row.mean() > 0)
                        break
            assert wrong / 500 <= rate + 2 * np.sqrt(rate * (1 - rate) / 500)
        if effect == 1.0:
            assert settled > 480


def test_the_union_over_captions_keeps_the_stated_rate():
    rng, rate, wrong = np.random.default_rng(1), 0.1, 0
    level = sequential.look_level((6, 12), 24, rate)
    for _ in range(1500):
        errors = rng.normal(size=(5, 24))
        for count in (6, 12):
            if sequential.choice_is_settled(errors[..., :count], 24, level):
                wrong += errors[..., :count].mean(-1).argmin() != errors.mean(-1).argmin()
                break
    assert wrong / 1500 <= rate


def test_every_other_caption_has_to_be_beaten():
    own, worse, rival = np.zeros(8), np.linspace(0.9, 1.1, 8), np.linspace(-1.0, 1.1, 8)
    assert sequential.choice_is_settled(np.stack([own, worse]), 32, 0.01)
    assert sequential.choice_is_settled(np.stack([worse, own, worse]), 32, 0.01)
    assert not sequential.choice_is_settled(np.stack([own, worse, rival]), 32, 0.01)


def settled_by_a_t_test(errors, total, level):
    """The rule by scipy's t test: Bonferroni over the rivals, variance of what is still to come."""
    captions, count = errors.shape
    best = errors.mean(axis=1).argmin()
    for rival in range(captions):
        if rival != best:
            plain = stats.ttest_1samp(errors[rival] - errors[best], 0).statistic
            left = (total - count) / total
            if not stats.t.sf(plain / left**0.5, count - 1) < level / (captions - 1):
                return False
    return True


@pytest.mark.parametrize("captions", [2, 5])
@pytest.mark.parametrize("count", [4, 12, 28])
def test_the_stopping_rule_is_a_t_test_with_a_finite_population_and_a_shared_level(captions, count):
    rng, seen = np.random.default_rng(count), []
    for _ in range(100):
        errors = (
            rng.normal(size=(captions, count))
            + rng.uniform(0, 20) / count * np.arange(captions)[:, None]
        )
        seen.append(sequential.choice_is_settled(errors, 32, 0.02))
        assert seen[-1] == settled_by_a_t_test(errors, 32, 0.02)
    assert 10 < sum(seen) < 95


def test_what_settles_a_choice_is_the_error_that_decides(teacher):
    """Under a profile the relative one: its two orders of the captions would disagree."""
    asked, profile = [], pd.DataFrame({"t": [0, 500, 999], "error": [9.0, 1.0, 0.1]})
    bank = diffusion.diffusion_scorer(teacher, 8, empty=False).bank
    for known in (None, profile):
        asked.clear()
        scorer = diffusion.DiffusionScorer(bank, known, [4], lambda e: asked.append(e) or False)
        list(scorer(grid_items(1)))
        row = diffusion.Row(grid_items(1)[0].images[0], grid_items(1)[0].captions)
        weights = 1.0 if known is None else diffusion.relative_weights(known, bank.draws.t[:4])
        expected = (bank.errors(row, 4)[0] * weights).reshape(2, 2, 2).mean(-1)
        np.testing.assert_allclose(asked[0], expected)


def test_captions_are_twins_only_where_the_teacher_cannot_tell_them_apart(teacher):
    bank = diffusion.diffusion_scorer(teacher, 2).bank
    state = teacher.embed_texts([CAPTIONS[0]])[0]
    bank._texts = {"a": state, "near": state * 1.01, "same": state * (1 + 1e-6)}
    row = diffusion.Row(noise(1), ("a", "near", "same"))
    assert bank.captions(row) == ["a", "near", "a"]
    assert bank.captions(diffusion.Row(noise(1), ("near", "a"))) == ["near", "a"]


def test_t_is_uniform_within_its_stratum():
    drawn = [diffusion.shared_draws((1,), 8, seed, (0, 999), False).t for seed in range(300)]
    within = torch.stack(drawn).sort(dim=1).values - 125 * torch.arange(8)
    assert within.min() >= 0
    assert within.max() < 125
    for stratum in within.T.numpy():
        assert stats.kstest(stratum / 125, "uniform").pvalue > 1e-4


def test_cosines_are_taken_in_double_precision(student):
    scorer, items = evaluate.clip_scorer(student), grid_items(2)
    images, _ = scorer.embed_images([items[0].images[0]])
    texts, _ = scorer.embed_texts([items[0].captions[1]])
    (first, _) = scorer(items)
    assert first.grids[""].dtype == np.float64
    exact = math.fsum(a * b for a, b in zip(images[0], texts[0], strict=True))
    assert first.grids[""][0, 1] == pytest.approx(exact, rel=1e-14)


def test_models_are_in_evaluation_mode_while_they_score(student, teacher, monkeypatch):
    modes = []
    for module, name in (
        (student, "encode_images"), (student, "encode_short_texts"),
        (teacher, "encode_images"), (teacher, "embed_texts"), (teacher, "predict_noise"),
    ):  # fmt: skip
        real = getattr(module, name)

        def seen(*args, real=real, module=module, name=name):
            modes.append((name, module.training, torch.is_grad_enabled()))
            return real(*args)

        monkeypatch.setattr(module, name, seen)
        module.train()
    for scorer in (evaluate.clip_scorer(student), diffusion.diffusion_scorer(teacher, 2)):
        list(scorer(grid_items(1)))
    assert {name for name, *_ in modes} == {
        "encode_images", "encode_short_texts", "embed_texts", "predict_noise",
    }  # fmt: skip
    assert {tuple(mode) for _, *mode in modes} == {(False, False)}
    student.eval()


def test_of_two_classes_that_are_one_neither_is_ever_right(student):
    prompts = [("a red circle",), ("a red circle",), ("a blue square",)]
    items = [item(f"z{n}", [noise(n)], (), answer=n % 3) for n in range(9)]
    table = evaluate.score_grids(
        evaluate.clip_scorer(student), benchmark(items, kind="classes", prompts=prompts)
    )
    twins = table[table["answer"] < 2]
    assert (twins["rank"] >= 1).all()
    assert (twins["margin"] <= 0).all()
    assert (twins["margin"] == 0).any()


def test_a_null_runs_to_the_cap_and_ties():
    equal = np.ones((2, 8)) * np.linspace(1, 2, 8)
    assert not sequential.choice_is_settled(equal, 32, 0.49)


def test_sequential_scoring_spends_less_on_clear_items_and_decides_as_the_full_budget(
    teacher, unet_batches, monkeypatch
):
    """A teacher that is sure to reject one caption, and has no opinion on equal ones."""
    rejected, counted = teacher.embed_texts([CAPTIONS[1]])[0], teacher.predict_noise

    def sure(z_t, t, text):
        bad = (text == rejected).flatten(1).all(1)
        return counted(z_t, t, text) + bad.float()[:, None, None, None]

    monkeypatch.setattr(teacher, "predict_noise", sure)
    refs = [noise(1), noise(2)]
    items = [
        item("clear", refs, CAPTIONS[:2]),
        item("same", refs, (CAPTIONS[0],) * 2),
        item("clear too", refs, CAPTIONS[1:3]),
    ]
    scorer = sequential.sequential_diffusion_scorer(teacher, 64, batch_size=16)
    table = evaluate.score_grids(scorer, benchmark(items)).set_index("id")
    assert table["draws"].tolist() == [8, 64, 8]
    assert table["settled"].tolist() == [True, False, True]
    assert table["unet_evaluations"].tolist() == [4 * 8, 2 * 64, 4 * 8]
    assert scorer.counts["unet_evaluations"] == sum(unet_batches) == 2 * 64 + 4 * 8
    full = diffusion.diffusion_scorer(teacher, 64, empty=False)
    whole = evaluate.score_grids(full, benchmark(items)).set_index("id")
    for early, late in zip(tables.grids_of(table), tables.grids_of(whole), strict=True):
        assert (early.argmax(1) == late.argmax(1)).all()
    np.testing.assert_allclose(table.loc["same", "s_0_0"], whole.loc["same", "s_0_0"], rtol=1e-5)


def test_images_settled_at_different_draws_keep_levels_that_compare(teacher):
    """Only the first image's choice is settled early; its level comes from the common draws."""
    one = item("i", [noise(1), noise(2)], CAPTIONS[:2])
    draws = diffusion.shared_draws(teacher.latent_shape, 16, seed=0)
    full = diffusion.diffusion_scorer(teacher, draws, empty=False)
    errors = diffusion.error_table(full, [one]).pivot(
        index=["image", "caption"], columns="draw", values="error"
    )
    first = errors.loc[[(0, 0), (0, 1)]].to_numpy()[:, :8].reshape(2, 4, 2).mean(-1)
    part = diffusion.DiffusionScorer(full.bank, None, [8], lambda e: np.allclose(e, first))
    (scored,) = part([one])
    grid, early, late = scored.grids[""], errors.to_numpy()[:, :8].mean(1), errors.mean(axis=1)
    np.testing.assert_allclose(grid[0], -early[:2])
    assert grid[1, 0] - grid[1, 1] == pytest.approx(late[1, 1] - late[1, 0])
    assert grid[1].mean() == pytest.approx(-early[2:].mean())
    assert scored.notes["unet_evaluations"] == 2 * 8 + 2 * 16


def test_a_partial_run_is_labelled_partial_and_the_table_keeps_its_origin(student, tmp_path):
    whole = benchmark(grid_items(4))
    table = evaluate.score_grids(evaluate.clip_scorer(student), whole, limit=3)
    table.to_parquet(tmp_path / "scores.parquet")
    again = comparison.read_scores(tmp_path / "scores.parquet")
    assert again.attrs["benchmark"] == "toy"
    assert again.attrs["scorer"] == "clip"
    assert again.attrs["total"] == 4
    assert tables.tags_of(again) == ["kind"]
    assert tables.tabulate(whole, again)["partial"].all()
    pd.testing.assert_frame_equal(again, table)
    full = evaluate.score_grids(evaluate.clip_scorer(student), whole)
    assert not tables.tabulate(whole, full)["partial"].any()
    assert tables.tabulate(benchmark(grid_items(4), total=9), full)["partial"].all()


def test_items_with_different_numbers_of_captions_make_one_table(student):
    items = [
        item("two", [noise(1)], CAPTIONS[:2], answer=0),
        item("five", [noise(2)], CAPTIONS[:5], answer=4),
    ]
    table = evaluate.score_grids(evaluate.clip_scorer(student), benchmark(items))
    assert table["n_captions"].tolist() == [2, 5]
    assert tables.grids_of(table).mask.sum() == 3
    assert set(tables.outcomes(table)) == {"accuracy"}


def test_a_tag_with_the_name_of_a_column_is_refused(student):
    odd = item("odd", [noise(1)], CAPTIONS[:2], answer=0, settled="yes")
    with pytest.raises(tables.TableError, match="tag 'settled' of item 'odd'"):
        evaluate.score_grids(evaluate.clip_scorer(student), benchmark([odd]))


def test_evaluating_twice_gives_the_same_bits(student, teacher):
    items = grid_items(3)
    for make in (
        lambda: evaluate.clip_scorer(student),
        lambda: diffusion.diffusion_scorer(teacher, 4),
    ):
        one, two = (evaluate.score_grids(make(), benchmark(items)) for _ in range(2))
        pd.testing.assert_frame_equal(one, two, rtol=0, atol=0)


@torch.no_grad()
def test_zero_shot_ranks_equal_class_by_class_scores(student):
    """Two prompts a class; the class vector is the unit mean of the prompts' unit vectors."""
    prompts = [("a red circle", "a small red circle"), ("a blue square", "the blue square")]
    prompts += [("a green triangle", "a large green triangle")]
    items = [item(f"z{n}", [noise(n)], (), answer=n % 3, shape="abc"[n % 3]) for n in range(6)]
    scorer = evaluate.clip_scorer(student)
    table = evaluate.score_grids(scorer, benchmark(items, kind="classes", prompts=prompts))
    for row, one in zip(table.itertuples(), items, strict=True):
        image = student.encode_images(student.transform(one.images[0].load())[None])[0]
        scores = []
        for group in prompts:
            mean = student.encode_texts(student.tokenize(list(group))).mean(0)
            scores.append(float(image @ mean / mean.norm()))
        assert row.predicted == int(np.argmax(scores))
        assert row.rank == sorted(scores, reverse=True).index(scores[one.answer])
        others = max(s for k, s in enumerate(scores) if k != one.answer)
        assert row.margin == pytest.approx(scores[one.answer] - others, abs=1e-6)
    found = tables.tabulate(None, table).set_index(["label", "metric"])
    assert found.loc[("all", "accuracy")].accuracy == (table["rank"] == 0).mean()
    assert found.loc[("all", "accuracy")].chance == pytest.approx(1 / 3)
    assert found.loc[("a", "top5")].accuracy == 1
    assert tables.tags_of(table) == ["shape"]


def test_retrieval_ranks_equal_sorted_scores(student):
    items = [item(f"r{n}", [noise(n)], CAPTIONS[2 * n : 2 * n + 2]) for n in range(3)]
    toy = benchmark(items, kind="retrieval")
    table = evaluate.score_grids(evaluate.clip_scorer(student), toy)
    grid = reference.clip_grids(student, [item("all", [i.images[0] for i in items], CAPTIONS)])[0]
    for n in range(3):
        order = list(np.argsort(-grid[n]))
        best = min(order.index(2 * n), order.index(2 * n + 1))
        assert table.set_index("id").loc[f"r{n}", "rank"] == best
        for k in range(2):
            place = list(np.argsort(-grid[:, 2 * n + k])).index(n)
            assert table.set_index("id").loc[f"r{n}#{k}", "rank"] == place
    found = tables.tabulate(None, table).set_index(["label", "metric"])
    assert found.loc[("image_to_text", "recall@1")].chance == pytest.approx(2 / 6)
    assert found.loc[("text_to_image", "recall@1")].chance == pytest.approx(1 / 3)
    assert found.loc[("text_to_image", "recall@5")].chance == 1
