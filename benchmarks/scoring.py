"""What scores cost: forward passes counted exactly, times beside the plain way of doing it."""

from __future__ import annotations

import tempfile

import numpy as np
import pandas as pd
import torch
from reference import clip_grids, score_grid_with_one_pair_at_a_time, score_grid_with_vae_inside

from benchmarks import errors
from benchmarks.harness import Row, paired
from sdslib import evaluate, tables
from sdslib.benchmarks import Benchmark, load_benchmark
from sdslib.checks.notebooks import BaselineConfig
from sdslib.lab import baseline, near_ties
from sdslib.miniworld import models, sets
from sdslib.pairs import load_pairs
from sdslib.scorers import diffusion
from sdslib.scorers.sequential import sequential_diffusion_scorer
from sdslib.sets.retrieval import retrieval
from sdslib.student import Student, load_student
from sdslib.teacher import Teacher, load_teacher

ARO = ("aro-relation", "aro-attribution", "coco-order")


def student() -> Student:
    """The mini-world's student on the CPU."""
    return load_student(BaselineConfig().clip_model, None)


def sequential(items: int) -> list[Row]:
    """UNet evaluations of the sequential scorer beside a fixed budget of 64 draws."""
    judge = baseline.load_judge(BaselineConfig())
    teacher, profile = judge.teacher, judge.profile
    found = load_benchmark("mini:winoground").sample(items, 0)
    fixed = diffusion.diffusion_scorer(teacher, 64, 0, profile, empty=False, batch_size=128)
    stopping = sequential_diffusion_scorer(teacher, 64, 0, profile=profile, batch_size=128)
    whole, part = (evaluate.score_grids(scorer, found) for scorer in (fixed, stopping))
    right = [tables.outcomes(scores, "relative")["text"] for scores in (whole, part)]
    text = [float(one.mean()) for one in right]
    evaluations = [scorer.counts["unet_evaluations"] for scorer in (fixed, stopping)]
    note = (
        f"text score {text[0]:.1%} and {text[1]:.1%}, the same choice on "
        f"{np.mean(right[0] == right[1]):.1%} of {len(whole)} items; "
        f"{evaluations[1] / (4 * len(whole)):.1f} evaluations a pair"
    )
    return [
        Row("S1", "UNet evaluations, 64 draws / sequential", evaluations[0] / evaluations[1], 4, 5,
            note=note),
        Row("S2", "text score lost by it, points", 100 * (text[0] - text[1]), 1, 0, least=True),
    ]  # fmt: skip


def against_every_timestep() -> list[Row]:
    """The sequential scorer beside the error at each of 1,000 timesteps, on the same items."""
    t, table, ids = errors.read()
    judge = baseline.load_judge(BaselineConfig())
    assert judge.profile is not None
    weights = diffusion.relative_weights(judge.profile, t.tolist())
    whole = (table * weights).mean(-1)  # [N, I, K]
    scorer = sequential_diffusion_scorer(
        judge.teacher, 64, 0, profile=judge.profile, batch_size=128
    )
    scores = evaluate.score_grids(scorer, errors.items())
    assert scores["id"].tolist() == ids
    own = -tables.grids_of(scores, "relative")
    same = (own.argmin(-1) == whole.argmin(-1)).mean()
    text = [float((one.argmin(-1) == [0, 1]).all(-1).mean()) for one in (whole, own)]
    each = scorer.counts["unet_evaluations"] / own.size
    note = f"{each:.1f} evaluations a pair; text score {text[0]:.1%} and {text[1]:.1%}"
    return [
        Row("G3", "UNet evaluations, every timestep / sequential", len(t) / each, 15, 60,
            note=note),
        Row("G3a", "choices of a caption that agree, percent", 100 * same, 98, 100,
            note=f"{2 * len(own)} choices"),
        Row("G3b", "text score lost by it, points", 100 * (text[0] - text[1]), 0.5, 0, least=True),
    ]  # fmt: skip


def half_precision(items: int) -> list[Row]:
    """Decisions of a bf16 teacher that differ from fp32's, near ties decided again or not.

    The trained teacher leads by a hundred times its rounding; one with random weights has the near
    ties that a re-check is for.
    """
    source, found = BaselineConfig().teacher, load_benchmark("mini:winoground").sample(items, 0)
    rows = []
    for name, weights, seed in (("G10", "trained", None), ("G10a", "random weights", 0)):
        low, full = (
            load_teacher(source, None, "cpu", precision, seed) for precision in ("bf16", "fp32")
        )
        rows.append(_rechecked(name, weights, low, full, found))
    return rows


def _rechecked(name: str, weights: str, low: Teacher, full: Teacher, found: Benchmark) -> Row:
    half, whole, spare = (
        diffusion.diffusion_scorer(one, 32, 0, empty=False, batch_size=128)
        for one in (low, full, full)
    )
    rounding = near_ties.rounding(half, spare, found.items[: baseline.ROUNDED])
    checked = near_ties.RecheckedScorer(half, spare, rounding)
    exact, raw, again = (evaluate.score_grids(scorer, found) for scorer in (whole, half, checked))
    differ = [100 * float((_choices(one) != _choices(exact)).mean()) for one in (raw, again)]
    note = (
        f"of {4 * len(again)} choices, {differ[0]:.2g}% in bf16 alone; "
        f"{again['rechecked'].mean():.1%} of the items decided again"
    )
    what = f"bf16 decisions unlike fp32's after the re-check, percent, {weights}"
    return Row(name, what, differ[1], 0.5, 0.2, least=True, note=note)


def _choices(scores: pd.DataFrame) -> np.ndarray:
    """Every image's caption and every caption's image, [N, 4]."""
    grids = tables.grids_of(scores)
    return np.concatenate([grids.argmax(2), grids.argmax(1)], axis=1)


def whole_baseline() -> list[Row]:
    """UNet evaluations that the teacher's baseline takes on all of mini-Winoground."""
    config, found = BaselineConfig(), load_benchmark("mini:winoground")
    scores = baseline.teacher_scores(baseline.load_judge(config), found, config)
    pairs = sum(len(item.images) * len(item.captions) for item in found.items)
    spent = scores.attrs["counts"]["unet_evaluations"]
    text = float(tables.outcomes(scores, baseline.rule_of(scores))["text"].mean())
    return [
        Row("G4", "UNet evaluations, 1,000 a pair / mini-Winoground baseline", 1000 * pairs / spent,
            20, 100, note=f"{spent} on {len(found.items)} items, counted; text score {text:.1%}")
    ]  # fmt: skip


def clip_evaluation(items: int, rounds: int) -> list[Row]:
    """Student on the ARO-shaped sets beside one pair at a time, on the same items."""
    model = student()
    sets = [load_benchmark(f"mini:{name}").sample(items, 0) for name in ARO]

    def ours() -> list[np.ndarray]:
        return [evaluate.score_grids(evaluate.clip_scorer(model), one) for one in sets]

    def rival() -> list[np.ndarray]:
        return [clip_grids(model, one.items) for one in sets]

    _agree(ours(), rival(), [len(one.items[0].captions) for one in sets])
    times = paired(ours, rival, rounds)
    cells = sum(len(item.captions) for one in sets for item in one.items)
    return [
        Row("G9a", "mini-ARO, pair by pair / ours, cold", times.ratio, 3, 8,
            note=f"{times.spread}; {cells} pairs")
    ]  # fmt: skip


def evaluation_again(items: int, rounds: int) -> list[Row]:
    """The same with other weights, and as the workbench answers when nothing has changed."""
    other = student()
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.add_(1e-3 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(number)))  # fmt: skip
    sets = [load_benchmark(f"mini:{name}").sample(items, 0) for name in ARO]
    rows = []
    with tempfile.TemporaryDirectory() as runs:
        scorer = evaluate.clip_scorer(student())
        for one in sets:
            evaluate.score_grids(scorer, one)
        scorer.student = other
        times = paired(
            lambda: [evaluate.score_grids(scorer, one) for one in sets],
            lambda: [clip_grids(other, one.items) for one in sets],
            rounds,
        )
        rows.append(Row("G9b", "mini-ARO, pair by pair / ours, new weights", times.ratio, 3, 8,
                        note=times.spread))  # fmt: skip
        configs = [
            BaselineConfig(benchmark=f"mini:{name}", teacher_items=0, runs=runs, threads=1)
            for name in ARO
        ]
        whole = [load_benchmark(f"mini:{name}") for name in ARO]
        for config in configs:
            baseline.measure(config)
        times = paired(
            lambda: [_stored(config) for config in configs],
            lambda: [clip_grids(other, one.items) for one in whole],
            1,
        )
        rows.append(Row("G9c", "mini-ARO, pair by pair / ours, unchanged", times.ratio, 50, 200,
                        note=f"whole sets, {sum(len(one.items) for one in whole)} items; "
                             "hashing data and weights included"))  # fmt: skip
    return rows


def _stored(config: BaselineConfig) -> pd.DataFrame:
    """The scores that a finished run gives back, its data and weights compared by hash."""
    return baseline.measure(config).scores(f"{config.benchmark.replace(':', '-')}.student")


def _agree(scores: list, grids: list, captions: list[int]) -> None:
    """Both ways give the same scores, or there is nothing to compare."""
    for table, grid, count in zip(scores, grids, captions, strict=True):
        own = table[[f"s_0_{k}" for k in range(count)]].to_numpy()
        np.testing.assert_allclose(own, grid[:, 0], atol=1e-5)


def encodes() -> list[Row]:
    """Images and captions that went through the student, over the distinct ones of every set."""
    model, found = student(), [load_benchmark(name) for name in sets.SETS]
    found.append(retrieval(load_pairs("mini:val")))
    passed = distinct = 0
    for one in found:
        scorer = evaluate.clip_scorer(model)
        evaluate.score_grids(scorer, one)
        passed += sum(scorer.counts.values())
        distinct += len({ref.key for item in one.items for ref in item.images})
        distinct += _distinct_captions(model, one)
    return [
        Row("G8", "encodes / distinct images and captions", passed / distinct, 1, 1, least=True,
            note=f"{passed} encodes over {len(found)} sets, counted")
    ]  # fmt: skip


def _distinct_captions(model: Student, one: Benchmark) -> int:
    texts = [c for item in one.items for c in item.captions]
    texts = [p for group in one.prompts for p in group] if one.kind == "classes" else texts
    return len(model.tokenize(sorted(set(texts))).unique(dim=0))


def equal_evaluations(items: int, draws: int, rounds: int) -> list[Row]:
    """The diffusion score at equal (t, eps) beside two common ways of computing it."""
    teacher = proportioned_teacher()
    found = load_benchmark("mini:winoground").sample(items, 0).items
    shared = diffusion.shared_draws(teacher.latent_shape, draws, 0)

    def ours() -> np.ndarray:
        scorer = diffusion.diffusion_scorer(teacher, shared, empty=False, batch_size=64)
        return np.array([scored.grids[""] for scored in scorer(found)])

    def inside() -> np.ndarray:
        return np.array([score_grid_with_vae_inside(teacher, item, shared) for item in found])

    def alone() -> np.ndarray:
        return np.array(
            [score_grid_with_one_pair_at_a_time(teacher, item, shared) for item in found]
        )

    own = ours()
    for rival in (inside, alone):
        np.testing.assert_allclose(own, rival(), atol=1e-5)
    itm, alone_times = paired(ours, inside, rounds), paired(ours, alone, rounds)
    share = vae_share(teacher)
    return [
        Row("G1", "diffusion score, image encoded at every t / ours", itm.ratio, 2, 4,
            note=f"{itm.spread}; a VAE encode costs {share:.2f} UNet calls"),
        Row("G2", "diffusion score, one pair at a time / ours", alone_times.ratio, 1.2, 2,
            note=f"{alone_times.spread}; {draws} draws a pair"),
    ]  # fmt: skip


def proportioned_teacher() -> Teacher:
    """The mini teacher with an untrained VAE dear enough for Stable Diffusion's proportions.

    There one image's encoding costs 1.4 times a call of the UNet (1,117 and 803 GFLOP); here it
    takes 1.34 to 1.42 times its time on a CPU, and the row says what it took.
    """
    teacher = load_teacher(BaselineConfig().teacher)
    own = models.new_vae(0)
    shape = {"layers_per_block": 3, "block_out_channels": (16, 32, 80, 96)}
    torch.manual_seed(0)
    teacher.vae = type(own).from_config({**own.config, **shape}).eval().requires_grad_(False)
    return teacher


def vae_share(teacher: Teacher) -> float:
    """CPU time of encoding four images over that of the UNet on four latents."""
    size: int = teacher.image_size
    pixels = torch.zeros(4, 3, size, size)
    z = torch.zeros(4, *teacher.latent_shape)
    t, text = torch.full((4,), 500), teacher.embed_texts(["a red circle"] * 4)
    with torch.no_grad():
        times = paired(
            lambda: [teacher.predict_noise(z, t, text) for _ in range(4)],
            lambda: [teacher.encode_images(pixels) for _ in range(4)],
        )
    return times.ratio
