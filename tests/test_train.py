"""The loop, with a real tiny CLIP, a real tiny Stable Diffusion and pictures of four scenes."""

import copy
import gc
import itertools
import math
import os
import warnings
import weakref
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
from PIL import Image
from scipy import stats
from tiny import save_student, save_teacher

from sdslib import pairs, train
from sdslib.arms import controls
from sdslib.arms.choice import spread_draws
from sdslib.arms.trainable import set_trainable
from sdslib.bridge import Bridge, random_start
from sdslib.config import ARMS, FinetuneConfig
from sdslib.io.state import plain_torch
from sdslib.pairs import batches
from sdslib.student import load_student
from sdslib.teacher import load_teacher
from sdslib.train import (
    Loop,
    Models,
    Step,
    TrainingError,
    draw_noise,
    draw_rows,
    in_parts,
    learning_rate,
    make_optimizer,
    objective,
    total_steps,
)

CAPTIONS = [
    "a red circle left of a blue square",
    "a blue square above a green circle",
    "a green triangle on a red square",
    "a small yellow circle and a white triangle",
    "the white square is below the red triangle",
    "a large blue circle right of a yellow square",
]


class SomePairs:
    """Six pictures of noise with a caption each, in the form that `pairs.batches` reads."""

    source = "test"

    def __len__(self):
        return len(CAPTIONS)

    def image(self, index):
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))

    def captions(self, index):
        return (CAPTIONS[index], CAPTIONS[index].replace("a ", "the ", 1))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return save_student(root / "student"), save_teacher(root / "teacher")


def config(**changes):
    values = {
        "steps": 6,
        "batch_size": 2,
        "sds_weight": 0.05,
        "lr": 1e-2,
        "warmup": 2,
        "eval_every": 3,
    }
    return FinetuneConfig(**(values | changes))


@pytest.fixture
def models(folders):
    def make(settings=None, teacher=True):
        settings = settings or config()
        student = load_student(f"local-dir:{folders[0]}", None)
        trained = [p for _, p in set_trainable(student, settings.trainable)]
        if not teacher:
            return Models(student, trained, negative=lambda caption, seed: caption[::-1])
        frozen = load_teacher(str(folders[1]))
        bridge = Bridge(student.width, frozen.latent_shape)
        bridge.load_state_dict(random_start(student.width, frozen.latent_shape, 0))
        return Models(student, trained, frozen, bridge)

    return make


def run(models, settings, stop=None):
    loop = Loop(settings, models, SomePairs())
    rows = []
    for step in loop:
        rows.append(step)
        if stop is not None and loop.done == stop:
            break
    return loop, rows


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_declared_parameters_and_the_bridge_move(models):
    some = models()
    before = [state(m) for m in (some.student, some.teacher, some.bridge)]
    run(some, config())
    after = [state(m) for m in (some.student, some.teacher, some.bridge)]
    declared = {id(p) for p in some.trained}
    names = {n for n, p in some.student.named_parameters() if id(p) in declared}
    assert moved(before[0], after[0]) <= names
    assert len(moved(before[0], after[0])) > 0.8 * len(names)
    assert moved(before[1], after[1]) == set()
    assert moved(before[2], after[2]) == {"linear.weight", "linear.bias"}
    assert not some.teacher.training


def test_zero_weight_is_clip_only_bit_for_bit(models):
    settings = config(sds_weight=0.0)
    assert settings.arm == "clip-only"
    alone = models(teacher=False)
    run(alone, settings)
    both = models()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = Loop(settings.model_copy(update={"arm": "sds"}), both, SomePairs())
        loop._ratio = lambda terms, step: None
        list(loop)
    assert moved(state(alone.student), state(both.student)) == set()


def test_the_weight_changes_what_the_student_becomes(models):
    one, other = models(), models()
    run(one, config(sds_weight=0.05))
    run(other, config(sds_weight=0.5))
    assert moved(state(one.student), state(other.student))


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(models, cut):
    whole = models()
    _, rows = run(whole, config())
    first = models()
    loop, head = run(first, config(), stop=cut)
    tensors = loop.pack()
    again = models()
    rest = Loop(config(), again, SomePairs())
    rest.unpack(tensors, cut)
    tail = list(rest)
    assert moved(state(whole.student), state(again.student)) == set()
    assert moved(state(whole.bridge), state(again.bridge)) == set()
    assert [replace(s, seconds=0) for s in head + tail] == [replace(s, seconds=0) for s in rows]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_MIXED_PRECISION", "bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "inductor"),
    ],
)
def test_no_setting_of_the_environment_changes_a_number(models, monkeypatch, name, value):
    plain = models()
    run(plain, config(steps=3))
    monkeypatch.setenv(name, value)
    other = models()
    run(other, config(steps=3))
    assert os.environ[name] == value
    assert moved(state(plain.student), state(other.student)) == set()


def test_no_default_of_torch_changes_a_number(models):
    plain, other = models(), models()
    run(plain, config(steps=3))
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run(other, config(steps=3))
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert moved(state(plain.student), state(other.student)) == set()


@pytest.mark.parametrize("backend", ["cuda", "mkldnn"])
def test_a_precision_set_for_one_backend_is_set_aside_and_comes_back(backend, models):
    """PyTorch's newer way to ask for TF32, after which its older question raises an error."""
    products = getattr(torch.backends, backend).matmul
    before = products.fp32_precision
    plain, other = models(), models()
    run(plain, config(steps=3))
    try:
        products.fp32_precision = "tf32"
        run(other, config(steps=3))
        with plain_torch():
            assert products.fp32_precision == "ieee"
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before
    assert moved(state(plain.student), state(other.student)) == set()


def test_the_same_seed_repeats_and_another_differs(models):
    losses = [[s.loss for s in run(models(), config(seed=seed))[1]] for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_loss_of_a_step_is_the_weighted_sum_of_its_terms(models):
    _, rows = run(models(), config(), stop=1)
    step = rows[0]
    assert step.loss == pytest.approx(step.clip + 0.05 * step.sds, rel=1e-6)
    assert step.eps_error == pytest.approx(step.sds / math.prod((4, 4, 4)), rel=1e-6)


@pytest.mark.parametrize("changes", [{}, {"sds_gradient": "residual", "micro_batch": 1}])
def test_the_space_of_the_error_is_a_weight_of_each_pair(models, changes):
    some, t = models(), torch.tensor([20, 900])
    batch = next(iter(batches(SomePairs(), some.student.transform, 2, 0, range(1))))
    _, eps = draw_noise(0, 2, some.teacher.latent_shape, config())
    found = {space: objective(some, batch, t, eps, config(sds_space=space, **changes))[1]["sds"]
             for space in ("eps", "v")}  # fmt: skip
    torch.testing.assert_close(found["v"], found["eps"] / some.teacher.alpha_bar[t])
    _, rows = run(models(), config(sds_space="v", **changes), stop=1)
    assert rows[0].eps_error is None


def test_gradient_ratio_is_that_of_the_two_terms_alone(models):
    some, settings = models(), config()
    loop = Loop(settings, some, SomePairs())
    step = next(iter(loop))
    fresh = Loop(settings, models(), SomePairs())
    norms = {}
    for name in ("clip", "sds"):
        own = fresh.models
        own.student.zero_grad()
        from sdslib.pairs import batches

        batch = next(batches(SomePairs(), own.student.transform, 2, 0, range(6)))
        own.student.train()
        t, eps = draw_noise(0, 2, own.teacher.latent_shape, settings)
        objective(own, batch, t, eps, settings)[1][name].mean().backward()
        grads = [p.grad for p in own.trained if p.grad is not None]
        norms[name] = math.sqrt(sum(float(g.double().square().sum()) for g in grads))
    assert step.grad_ratio == pytest.approx(0.05 * norms["sds"] / norms["clip"], rel=1e-4)


def test_an_inert_weight_is_said_to_be_inert(models):
    with pytest.warns(UserWarning, match="L_SDS is inert at sds_weight 1e-09"):
        run(models(), config(sds_weight=1e-9), stop=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(models(), config(sds_weight=10.0), stop=1)


def test_a_loss_that_is_not_finite_stops_before_the_weights_move(models):
    some = models()
    before = state(some.student)
    predict = some.teacher.predict_noise
    some.teacher.predict_noise = lambda *args: predict(*args) * float("nan")
    with pytest.raises(TrainingError, match=r"step 1: L_SDS is not finite for pairs \[\d, \d\]"):
        run(some, config())
    assert moved(before, state(some.student)) == set()


def test_a_bridge_that_blocks_the_gradient_is_an_error(models):
    some = models()
    torch.nn.init.zeros_(some.bridge.linear.weight)
    with pytest.raises(TrainingError, match="gives no gradient to any trainable parameter"):
        run(some, config(arm="sds-only"))


def test_a_map_that_starts_at_zero_hands_gradient_on_after_its_first_step(models):
    some = models()
    torch.nn.init.zeros_(some.bridge.linear.weight)
    _, rows = run(some, config(arm="sds-only", bridge_start="zero", eval_every=1), stop=2)
    assert [row.grad_norm > 0 for row in rows] == [False, True]
    some = models()
    torch.nn.init.zeros_(some.bridge.linear.weight)
    _, rows = run(some, config(bridge_start="zero"), stop=2)
    assert rows[0].grad_ratio is None
    assert rows[1].grad_ratio > 0


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_every_arm_takes_a_step(models, arm):
    alone = ARMS[arm].sds is None
    weight = {"sds_weight": 0.0} if alone else {}
    settings = config(arm=arm, choice_draws=2, **weight)
    some = models(settings, teacher=not alone)
    latents = torch.randn(6, *(4, 4, 4), generator=torch.Generator().manual_seed(0))
    some = replace(some, latents=lambda index: latents[index], negative=lambda c, seed: CAPTIONS[0],
                   untouched=copy.deepcopy(some.student))  # fmt: skip
    _, rows = run(some, settings, stop=1)
    assert math.isfinite(rows[0].loss)
    assert (rows[0].clip is None) == (arm == "sds-only")
    assert (rows[0].sds is None) == alone


def test_shuffled_captions_change_the_error_and_nothing_else(models):
    rows = {arm: run(models(), config(arm=arm), stop=1)[1][0] for arm in
            ("sds", "shuffled-captions")}  # fmt: skip
    assert rows["sds"].clip == rows["shuffled-captions"].clip
    assert rows["sds"].sds != rows["shuffled-captions"].sds


def test_latent_regression_never_asks_the_unet(models):
    settings = config(arm="latent-regression")
    some = replace(models(), latents=lambda index: torch.zeros(len(index), 4, 4, 4))
    some.teacher.predict_noise = None
    _, rows = run(some, settings, stop=1)
    assert rows[0].eps_error is None
    assert rows[0].sds > 0


def choice_values(models, negative, **changes):
    """The second term of `teacher-choice` for the six pairs, and the models."""
    settings = config(arm="teacher-choice", batch_size=6, **changes)
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    some = replace(models(), latents=lambda index: latents[index], negative=negative)
    batch = next(iter(batches(SomePairs(), some.student.transform, 6, 0, range(1))))
    t, eps = draw_noise(0, 6, some.teacher.latent_shape, settings)
    return objective(some, batch, t, eps, settings)[1]["sds"], (some, batch, latents, t, eps)


def test_the_teachers_choice_is_that_of_its_errors_on_the_true_latents(models):
    values, (some, batch, latents, t, eps) = choice_values(models, lambda c, seed: CAPTIONS[0])
    values = values.detach()
    for i, caption in enumerate(batch.captions):
        if caption == CAPTIONS[0]:
            continue
        z = latents[batch.index[i]].numpy()
        draws = [(20 + (int(t[i]) - 20 + 961 * d // 4) % 961, eps[(i + d) % 6]) for d in range(4)]
        both = [caption, CAPTIONS[0]]
        grids = [reference.denoising_grid(some.teacher, [z], both, [draw]) for draw in draws]
        grids = np.array(grids)[:, 0]
        shares = (grids / grids.mean(1, keepdims=True)).mean(0)
        chosen = torch.tensor(-32 * shares).softmax(0)
        image = some.student.encode_images(batch.pixels[i : i + 1])
        texts = some.student.encode_texts(some.student.tokenize(both))
        own = (some.student.scale * image @ texts.T).log_softmax(-1)[0].double()
        expected = float(-(chosen * own.detach()).sum())
        assert values[i].item() == pytest.approx(expected, rel=1e-4)


def test_a_caption_without_another_one_teaches_nothing(models):
    values, _ = choice_values(models, lambda caption, seed: caption)
    assert values.tolist() == [0] * 6
    assert not values.requires_grad


def test_the_teachers_choice_moves_both_towers(models):
    values, (some, *_) = choice_values(models, lambda c, seed: CAPTIONS[0])
    values.mean().backward()
    moved = [n for n, p in some.student.named_parameters() if p.grad is not None and p.grad.any()]
    assert any(".visual." in name for name in moved)
    assert any(".transformer." in name and ".visual." not in name for name in moved)


def test_spread_draws_cover_the_range_evenly_with_noises_of_their_own():
    settings = config(arm="teacher-choice", batch_size=6, choice_draws=4)
    t, eps = draw_noise(0, 6, (4, 4, 4), settings)
    spread, noises = spread_draws(t, eps, settings)
    assert spread.dtype == torch.int64
    assert torch.equal(spread[0], t)
    gaps = spread.sort(dim=0).values.diff(dim=0)
    assert set(gaps.flatten().tolist()) <= {240, 241}
    assert 20 <= spread.min() <= spread.max() <= 980
    for pair in range(6):
        assert len({noise[pair].sum().item() for noise in noises}) == 4


def test_the_loss_on_the_text_embedding_reaches_the_text_tower(models):
    reached = {}
    for arm in ("sds", "sds-text"):
        some, settings = models(), config(arm=arm)
        batch = next(iter(batches(SomePairs(), some.student.transform, 2, 0, range(1))))
        t, eps = draw_noise(0, 2, some.teacher.latent_shape, settings)
        objective(some, batch, t, eps, settings)[1]["sds"].mean().backward()
        reached[arm] = {
            name.split(".")[1]
            for name, p in some.student.named_parameters()
            if p.grad is not None and p.grad.any()
        }
    assert reached["sds"] == {"visual"}
    assert reached["sds-text"] > {"visual"}


@pytest.mark.parametrize("gradient", ["through", "residual"])
def test_both_gradient_routes_show_the_same_loss_and_move_the_student_apart(models, gradient):
    some, other = models(), models()
    _, rows = run(some, config(sds_gradient=gradient), stop=2)
    _, through = run(other, config(), stop=2)
    assert rows[0].sds == through[0].sds
    same = moved(state(some.student), state(other.student)) == set()
    assert same == (gradient == "through")


def test_t_is_uniform_and_stratified_over_the_batch():
    settings = config(t_min=20, t_max=979)
    drawn = torch.stack([draw_noise(s, 32, (1,), settings)[0] for s in range(300)])
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 20
    assert drawn.max() <= 979
    strata = ((drawn.sort(dim=1).values - 20) // 30).tolist()
    assert all(row == list(range(32)) for row in strata)
    uniform = stats.kstest(drawn[:, 0].numpy(), stats.randint(20, 980).cdf)
    assert uniform.pvalue > 0.001


def test_noise_of_a_step_does_not_depend_on_what_came_before():
    one = draw_noise(5, 4, (2, 2), config())
    draw_noise(6, 4, (2, 2), config())
    torch.manual_seed(3)
    again = draw_noise(5, 4, (2, 2), config())
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


def test_learning_rate_warms_up_peaks_and_falls_to_zero():
    settings = config(lr=1.0, warmup=10)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == 1.0 == max(rates)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3


def test_decay_shrinks_matrices_and_leaves_vectors_where_they_are(models):
    settings = config(weight_decay=0.5, trainable="all")
    some = models(settings)
    params = [*some.trained, *some.bridge.parameters()]
    before = [p.detach().clone() for p in params]
    optimizer = make_optimizer(some, settings)
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert {p.ndim > 1 for p in params} == {True, False}
    for p, old in zip(params, before, strict=True):
        kept = 1 - settings.lr * settings.weight_decay if p.ndim > 1 else 1
        torch.testing.assert_close(p.detach(), kept * old, rtol=1e-6, atol=0)


@pytest.mark.parametrize("limit", [1e-3, 0.1, 1e6])
def test_student_and_bridge_are_clipped_apart_at_the_norm_that_is_asked(models, limit):
    some = models()
    _, rows = run(some, config(grad_clip=limit), stop=1)
    for params, norm in (
        (some.trained, rows[0].grad_norm),
        (some.bridge.parameters(), rows[0].bridge_grad_norm),
    ):
        left = torch.cat([p.grad.flatten() for p in params if p.grad is not None]).norm()
        assert float(left) == pytest.approx(min(norm, limit), rel=1e-3)


@pytest.mark.parametrize("arm", ["clip-only", "hard-negatives"])
def test_a_trained_scale_gets_the_gradient_of_the_contrastive_loss(models, arm):
    """Against a difference quotient of the reference in double precision.

    The caption that is its own false one is no column.
    """
    some = replace(models(teacher=False), negative=lambda caption, seed: CAPTIONS[0])
    student = some.student.eval()
    set_trainable(student, "layernorm", train_scale=True)
    batch = next(batches(SomePairs(), student.transform, 4, 0, range(1)))
    losses = objective(some, batch, None, None, config(arm=arm, sds_weight=0.0))[1]["clip"]
    losses.mean().backward()
    with torch.no_grad():
        image = student.encode_images(batch.pixels).double()
        text, wrong = (
            student.encode_texts(student.tokenize(list(some_captions))).double()
            for some_captions in (batch.captions, [CAPTIONS[0]] * 4)
        )
        wrong = wrong[[caption != CAPTIONS[0] for caption in batch.captions]]
    extra, at = (wrong if arm == "hard-negatives" else ()), student.model.logit_scale.item()
    value, above, below = (
        np.mean(reference.contrastive(image, text, math.exp(at + step), extra))
        for step in (0, 1e-4, -1e-4)
    )
    assert losses.mean().item() == pytest.approx(value, rel=1e-5)
    assert student.model.logit_scale.grad.item() == pytest.approx((above - below) / 2e-4, rel=1e-3)


def test_no_two_draws_of_a_step_share_their_seed(monkeypatch):
    """Pairs, captions, noise, negatives and the teacher's share are streams of their own."""
    drawn = []
    for room in (train, pairs, controls):
        derive = room.derive_seed

        def noted(seed, purpose, *index, derive=derive):
            drawn.append((seed, purpose, *index))
            return derive(seed, purpose, *index)

        monkeypatch.setattr(room, "derive_seed", noted)
    settings = config(batch_size=4, sds_share=0.5, seed=11)
    pairs.epoch_order.cache_clear()
    batch = next(batches(SomePairs(), lambda image: torch.zeros(1), 4, 11, range(1)))
    draw_noise(0, 2, (1,), settings)
    draw_rows(0, settings)
    given = []
    some = Models(None, [], negative=lambda caption, seed: given.append(seed) or caption)
    controls.false_captions(some, batch, settings)
    assert len(drawn) == len(set(drawn)) == 1 + 4 + 1 + 1 + 4
    assert {seed for seed, *_ in drawn} == {11}
    assert len(set(given)) == 4  # a pair's negative is drawn for itself
    again = []
    some = Models(None, [], negative=lambda caption, seed: again.append(seed) or caption)
    controls.false_captions(some, batch.take(torch.tensor([2, 0])), settings)
    assert again == [given[2], given[0]]  # and is the pair's own wherever it stands


def second_term(some, batch, draws, **changes):
    """The second term of the arm for the batch, one value a pair."""
    return objective(some, batch, *draws, config(batch_size=4, **changes))[1]["sds"].detach()


def test_sds_text_is_half_of_each_towers_error(models):
    some = models()
    batch = next(batches(SomePairs(), some.student.transform, 4, 0, range(1)))
    draws = draw_noise(0, 4, some.teacher.latent_shape, config())
    both, by_image = (second_term(some, batch, draws, arm=arm) for arm in ("sds-text", "sds"))
    t, eps = draws
    with torch.no_grad():
        text_emb = some.student.encode_texts(some.student.tokenize(list(batch.captions)))
        errors = [
            reference.denoising_grid(some.teacher, [z], [caption], [(int(t[i]), eps[i])])[0, 0]
            for i, (z, caption) in enumerate(
                zip(some.bridge(text_emb), batch.captions, strict=True)
            )
        ]
    by_text = 64 * torch.tensor(errors).float()
    torch.testing.assert_close(both, (by_image + by_text) / 2, rtol=1e-4, atol=1e-3)


def test_the_margin_is_between_the_caption_and_the_false_one_that_is_given(models):
    other = [f"{caption} below" for caption in CAPTIONS]
    some = replace(models(), negative=lambda caption, seed: other[(len(caption) + seed) % 6])
    batch = next(batches(SomePairs(), some.student.transform, 4, 0, range(1)))
    draws = draw_noise(0, 4, some.teacher.latent_shape, config())
    false = controls.false_captions(some, batch, config(batch_size=4))
    assert tuple(false) != batch.others
    right, wrong = (
        second_term(some, replace(batch, captions=tuple(told), others=()), draws, arm="sds")
        for told in (batch.captions, false)
    )
    found = second_term(some, batch, draws, arm="sds-margin")
    torch.testing.assert_close(found, (1 + (right - wrong).exp()).log(), rtol=1e-4, atol=1e-5)
    same = replace(some, negative=lambda caption, seed: caption)
    level = second_term(same, batch, draws, arm="sds-margin")
    assert level.tolist() == [0] * 4
    first = replace(some, negative=lambda caption, seed: false[0] if caption == batch.captions[0]
                    else caption)  # fmt: skip
    partly = second_term(first, batch, draws, arm="sds-margin")
    torch.testing.assert_close(partly[:1], found[:1], rtol=1e-4, atol=1e-5)
    assert partly[1:].tolist() == [0] * 3


@pytest.mark.parametrize("entry", ["projected", "pooled", "tokens-1", "tokens-2"])
def test_what_enters_the_map_has_unit_length(models, entry):
    some, entered = models(), []
    width = some.student.map_width(entry)
    bridge = Bridge(width, some.teacher.latent_shape)
    bridge.load_state_dict(random_start(width, some.teacher.latent_shape, 0))
    bridge.register_forward_pre_hook(lambda module, given: entered.append(given[0].detach()))
    some = replace(some, bridge=bridge)
    batch = next(batches(SomePairs(), some.student.transform, 4, 0, range(1)))
    second_term(some, batch, draw_noise(0, 4, (4, 4, 4), config()), bridge_input=entry)
    assert len(entered) == 1
    torch.testing.assert_close(entered[0].norm(dim=-1), torch.ones(4))
    direct = some.student.map_input(batch.pixels, entry).detach()
    assert direct.shape == (4, width)
    cosine = torch.nn.functional.cosine_similarity(entered[0], direct)
    torch.testing.assert_close(cosine, torch.ones(4))


def test_a_pack_is_what_it_was_whatever_is_trained_afterwards(models):
    some = models()
    loop = Loop(config(), some, SomePairs())
    steps = iter(loop)
    next(steps)
    packed = loop.pack()
    kept = {name: value.clone() for name, value in packed.items()}
    next(steps)
    assert moved(kept, packed) == set()
    assert len(moved(kept, loop.pack())) > 0.8 * len(kept)
    assert any(name.endswith("exp_avg_sq") for name in kept)


def test_epochs_count_full_batches():
    settings = FinetuneConfig(steps=None, epochs=3, batch_size=4)
    assert total_steps(settings, SomePairs()) == 3


def test_validation_is_called_when_due_and_at_the_end(models):
    some, seen = models(), []
    loop = Loop(config(steps=5, eval_every=2), some, SomePairs(),
                lambda student: seen.append(1) or {"text": 0.5})  # fmt: skip
    rows = [step.row() for step in loop]
    assert [row["step"] for row in rows if "val_text" in row] == [2, 4, 5]


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_objective_is_l_clip_plus_the_weight_times_l_sds(models, weight):
    some, settings = models(), config(sds_weight=weight)
    batch = next(batches(SomePairs(), some.student.transform, 2, 0, range(1)))
    draws = draw_noise(0, len(batch.index), some.teacher.latent_shape, settings)
    loss, terms = objective(some, batch, *draws, settings)
    assert float(loss) == pytest.approx(float(terms["clip"].mean() + weight * terms["sds"].mean()))


@pytest.mark.gpu
def test_the_first_losses_on_a_gpu_agree_with_the_cpu(folders):
    losses = {}
    for device in ("cpu", "cuda"):
        student = load_student(f"local-dir:{folders[0]}", None, device)
        trained = [p for _, p in set_trainable(student, "layernorm")]
        teacher = load_teacher(str(folders[1]), device=device)
        bridge = Bridge(student.width, teacher.latent_shape)
        bridge.load_state_dict(random_start(student.width, teacher.latent_shape, 0))
        some = Models(student, trained, teacher, bridge.to(device))
        losses[device] = [step.loss for step in Loop(config(steps=20), some, SomePairs())]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


def gradient_of(some, settings, batch, draws, rows=None):
    """The gradient of the whole objective with respect to everything that learns."""
    t, eps = draws
    loss, terms = objective(some, batch, t, eps, settings, rows)
    params = [*some.trained, *some.bridge.parameters()]
    grads = torch.autograd.grad(loss, params, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in
                      zip(grads, params, strict=True)]).double(), terms  # fmt: skip


@pytest.mark.parametrize("arm", ["sds", "sds-only", "shuffled-captions", "sds-text", "sds-margin"])
def test_the_teacher_on_a_share_of_the_pairs_gives_the_full_gradient_on_average(models, arm):
    settings = config(arm=arm, batch_size=4, sds_share=0.5)
    some = replace(models(), negative=lambda caption, seed: "a green circle")
    batch = next(batches(SomePairs(), some.student.transform, 4, 0, range(1)))
    t, eps = draw_noise(0, 4, some.teacher.latent_shape, settings)
    full, terms = gradient_of(some, settings, batch, (t, eps))
    found, means = [], []
    for rows in map(torch.tensor, itertools.combinations(range(4), 2)):
        grad, parts = gradient_of(some, settings, batch, (t[rows], eps[rows]), rows)
        assert parts["sds"].nonzero().flatten().tolist() == rows.tolist()
        found.append(grad)
        means.append(parts["sds"].mean().item())
    average = torch.stack(found).mean(0)
    assert (average - full).norm() < 1e-5 * full.norm()
    assert (found[0] - full).norm() > 1e-2 * full.norm()
    assert np.mean(means) == pytest.approx(terms["sds"].mean().item(), rel=1e-5)


def test_every_set_of_pairs_is_as_likely_to_be_shown_to_the_teacher():
    settings = config(batch_size=4, sds_share=0.5)
    drawn = [tuple(draw_rows(step, settings).tolist()) for step in range(1200)]
    counts = [drawn.count(pair) for pair in itertools.combinations(range(4), 2)]
    assert sum(counts) == 1200
    assert stats.chisquare(counts).pvalue > 0.001
    assert draw_rows(0, config(batch_size=4)) is None
    assert len(draw_rows(0, config(batch_size=4, sds_share=0.01))) == 1


def test_the_teacher_is_asked_about_its_share_alone_and_resumes_with_it(models):
    settings, seen = config(batch_size=4, sds_share=0.5, steps=4), []
    some = models()
    predict = some.teacher.predict_noise
    some.teacher.predict_noise = lambda z, t, text: seen.append(len(z)) or predict(z, t, text)
    loop, rows = run(some, settings, stop=2)
    assert seen == [2, 2]
    assert rows[0].loss == pytest.approx(rows[0].clip + 0.05 * rows[0].sds, rel=1e-6)
    again = Loop(settings, models(), SomePairs())
    again.unpack(loop.pack(), 2)
    _, whole = run(models(), settings)
    assert [s.loss for s in again] == [s.loss for s in whole[2:]]


@pytest.mark.parametrize("gradient", ["through", "residual"])
@pytest.mark.parametrize("arm", ["sds", "sds-margin"])
def test_few_pairs_at_once_give_the_values_and_gradient_of_all_at_once(models, gradient, arm):
    settings = config(arm=arm, batch_size=5, sds_gradient=gradient)
    some = replace(models(), negative=lambda caption, seed: "a green circle")
    batch = next(batches(SomePairs(), some.student.transform, 5, 0, range(1)))
    draws, seen = draw_noise(0, 5, some.teacher.latent_shape, settings), []
    predict = some.teacher.predict_noise
    some.teacher.predict_noise = lambda z, t, text: seen.append(len(z)) or predict(z, t, text)
    whole, terms = gradient_of(some, settings, batch, draws)
    times = len(seen)
    parts, few = gradient_of(some, settings.model_copy(update={"micro_batch": 2}), batch, draws)
    assert seen == [5] * times + [n for n in (2, 2, 1) for _ in range(times)]
    torch.testing.assert_close(few["sds"], terms["sds"], rtol=1e-5, atol=1e-5)
    assert (parts - whole).norm() < 1e-5 * whole.norm()


class Kept:
    """A tensor that autograd keeps for the backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_few_pairs_at_once_keep_no_activation_of_the_unet(models):
    some, alive = models(), {}
    z = torch.ones(4, 4, 4, 4, requires_grad=True)
    text = some.teacher.embed_texts(CAPTIONS[:4])

    def values(z, rows):
        t = torch.full((len(z),), 9)
        return some.teacher.predict_noise(z, t, text[rows]).flatten(1).sum(1)

    for size in (None, 2):
        kept = weakref.WeakSet()

        def pack(tensor, kept=kept):
            one = Kept(tensor)
            kept.add(one)
            return one

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
            found = in_parts(values, z, size)
        gc.collect()
        alive[size] = sum(one.tensor.numel() for one in kept)
        assert found.requires_grad
    assert alive[2] <= 2 * z.numel()  # the slopes
    assert alive[None] > 100 * alive[2]


def test_another_caption_is_the_next_ones_of_the_whole_batch_whatever_the_part():
    def transform(image):
        return torch.zeros(3, 2, 2)

    whole = next(batches(SomePairs(), transform, 4, 0, range(1)))
    halves = [next(batches(SomePairs(), transform, 4, 0, range(1), part=part))
              for part in (slice(0, 2), slice(2, 4))]  # fmt: skip
    assert whole.others == whole.captions[1:] + whole.captions[:1]
    assert sum((half.captions for half in halves), ()) == whole.captions
    assert sum((half.others for half in halves), ()) == whole.others
    assert torch.equal(torch.cat([half.index for half in halves]), whole.index)
    assert all(torch.equal(half.whole, whole.index) for half in halves)


def test_a_step_comes_back_from_its_row(models):
    _, rows = run(models(), config(), stop=1)
    step = replace(rows[0], validation={"text": 0.25})
    assert Step.from_row(step.row() | {"later": 1}) == step


def test_a_run_that_saves_memory_goes_as_one_that_does_not(models, folders):
    settings = config(batch_size=3, steps=3)
    _, rows = run(models(), settings)
    saving = settings.model_copy(update={"micro_batch": 1, "checkpointing": True})
    some = replace(models(), teacher=load_teacher(str(folders[1]), checkpointing=True))
    _, few = run(some, saving)
    for one, other in zip(rows, few, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
        assert other.bridge_grad_norm == pytest.approx(one.bridge_grad_norm, rel=1e-4)
