"""The teacher judges training pairs once; whoever has its verdicts trains without a teacher."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from faults.catalog import each, fault, refused
from PIL import Image, ImageDraw
from test_notebooks_run import ROOT, papermill
from tiny import save_student, save_teacher

from sdslib import experiment, losses, train
from sdslib.arms import choice
from sdslib.arms.verdicts import SCHEMA, Verdict, load_verdicts, save_verdicts
from sdslib.checks.guard import override, validate
from sdslib.checks.notebooks import VerdictsConfig
from sdslib.config import FinetuneConfig
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.lab import verdicts
from sdslib.pairs import Batch, load_pairs
from sdslib.scorers.diffusion import shared_draws
from sdslib.teacher import load_teacher

COUNT, DRAWS = 20, 2  # pairs, in two blocks of 16
THINGS = [("red", "circle"), ("blue", "square"), ("green", "triangle"), ("yellow", "circle")]


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "BLOCK", 16)
        yield


def scene(number):
    """A picture, and two captions of it; every seventh names a single thing."""
    first, second = THINGS[number % 4], THINGS[(number + 1 + number // 4 % 3) % 4]
    image = Image.new("RGB", (40, 36), (number * 3 % 256, 40, 200))
    ImageDraw.Draw(image).rectangle((4, 4, 4 + number % 20, 20), fill=first[0])
    said = f"a {first[0]} {first[1]} left of a {second[0]} {second[1]}"
    return image, ["a red circle"] if number % 7 == 0 else [said, said.replace("a ", "the ", 1)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A COCO file with its pictures, and the tiny models."""
    root = tmp_path_factory.mktemp("verdicts")
    (root / "images").mkdir()
    coco = {"images": [], "annotations": []}
    for number in range(COUNT):
        image, captions = scene(number)
        name = f"{number:012}.png"
        image.save(root / "images" / name)
        coco["images"].append({"id": number, "file_name": name})
        coco["annotations"] += [{"image_id": number, "caption": text} for text in captions]
    (root / "captions.json").write_text(json.dumps(coco))
    save_teacher(root / "teacher")
    save_student(root / "student")
    return root


def asked(world, output, **changes):
    values = {
        "train_data": f"{world}/captions.json::{world}/images",
        "teacher": str(world / "teacher"),
        "negatives": "mini",
        "choice_draws": DRAWS,
        "output": str(output),
    }
    return verdicts.Judgement(validate(VerdictsConfig, values | changes))


@pytest.fixture(scope="module")
def made(world):
    """A file of verdicts, and the UNet evaluations that it took."""
    counted = []
    with pytest.MonkeyPatch.context() as patch:
        predict = verdicts.Teacher.predict_noise
        patch.setattr(
            verdicts.Teacher, "predict_noise",
            lambda self, z, *rest: counted.append(len(z)) or predict(self, z, *rest),
        )  # fmt: skip
        verdicts.judge(asked(world, world / "made.parquet"))
    return world / "made.parquet", sum(counted)


def config(world, path, **changes):
    values = {
        "arm": "teacher-choice",
        "sds_weight": 1.0,
        "trainable": "all",
        "train_data": f"{world}/captions.json::{world}/images",
        "clip_model": f"local-dir:{world}/student",
        "teacher": str(world / "nowhere"),
        "benchmark": f"retrieval:{world}/captions.json::{world}/images",
        "validation": "none",
        "keep": "none",
        "eval_items": 4,
        "steps": 2,
        "batch_size": 8,
        "eval_every": 0,
        "verdicts": str(path),
        "negatives_each": 9,
    }
    return FinetuneConfig(**(values | changes))


def test_every_caption_is_judged_once_with_its_false_ones(made):
    found = load_verdicts(str(made[0]))
    rows = found.table.to_pylist()
    assert len(rows) == sum(len(set(scene(n)[1])) for n in range(COUNT))
    for row in rows:
        assert len(row["captions"]) == len(row["log_likelihoods"]) == 1 + len(row["kinds"])
        assert len(set(row["captions"])) == len(row["captions"])
    alone = [row for row in rows if len(row["captions"]) == 1]
    assert {row["captions"][0] for row in alone} == {"a red circle"}
    judged = sum(len(row["captions"]) for row in rows if len(row["captions"]) > 1)
    # Two captions of one image have no text in common here, so that none is judged twice.
    assert made[1] == judged * DRAWS == found.passport["unet_evaluations"]
    assert found.passport["captions_without"] == len(alone)


def test_a_log_likelihood_is_that_of_the_shared_draws(world, made):
    table = load_verdicts(str(made[0])).table.to_pylist()
    row = next(row for row in table if len(row["captions"]) == 4)
    teacher = load_teacher(str(world / "teacher"))
    pairs = load_pairs(f"{world}/captions.json::{world}/images")
    place = next(i for i in range(COUNT) if pairs.ref(i).key == row["image"])
    z = teacher.encode_images(teacher.transform(pairs.image(place))[None])
    draws = shared_draws(teacher.latent_shape, DRAWS, 0, (20, 980), antithetic=False)
    errors = torch.zeros(4, DRAWS)
    for k, caption in enumerate(row["captions"]):
        for d in range(DRAWS):
            t, eps = draws.t[d : d + 1], draws.eps[d : d + 1]
            abar = teacher.alpha_bar[t].view(1, 1, 1, 1)
            noisy = abar.sqrt() * z + (1 - abar).sqrt() * eps
            with torch.no_grad():
                predicted = teacher.predict_noise(noisy, t, teacher.embed_texts([caption]))
            errors[k, d] = ((predicted - eps) ** 2).mean()
    expected = -z.numel() / 2 * (errors / errors.mean(0)).mean(1)
    np.testing.assert_allclose(row["log_likelihoods"], expected, rtol=1e-4)


def test_a_killed_job_goes_on_and_leaves_the_same_bytes(world, made, tmp_path):
    def dies_after_one(blocks):
        yield next(iter(blocks))
        raise KeyboardInterrupt

    work = asked(world, tmp_path / "cut.parquet")
    with pytest.raises(KeyboardInterrupt):
        verdicts.judge(work, dies_after_one)
    assert work.missing() == [1]
    assert verdicts.judge(asked(world, tmp_path / "cut.parquet")) is not None
    assert (tmp_path / "cut.parquet").read_bytes() == made[0].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.parquet"]


def test_a_block_that_was_damaged_is_told_by_name(world, tmp_path):
    work = asked(world, tmp_path / "some.parquet", shards=2, shard=0)
    assert verdicts.judge(work) is None
    work.part(0).write_bytes(work.part(0).read_bytes()[:100])
    rest = asked(world, tmp_path / "some.parquet")
    with pytest.raises(DataError, match=r"000000.parquet: not a file of verdicts"):
        verdicts.judge(rest)


def test_shards_make_the_same_file_in_any_order(world, made, tmp_path):
    for shard in (1, 0):
        work = asked(world, tmp_path / "all.parquet", shards=2, shard=shard)
        assert work.missing() == [shard]
        assert verdicts.judge(work) is None
    whole = asked(world, tmp_path / "all.parquet")
    assert whole.missing() == []
    assert verdicts.judge(whole) is not None
    assert (tmp_path / "all.parquet").read_bytes() == made[0].read_bytes()


def test_other_draws_are_not_mixed_with_those_that_are_there(world, made, tmp_path):
    target = tmp_path / "made.parquet"
    target.write_bytes(made[0].read_bytes())
    assert asked(world, target).missing() == []
    assert asked(world, target, choice_draws=1).missing() == [0, 1]


def test_near_ties_of_half_precision_are_judged_again_in_full(world, made, tmp_path):
    low = verdicts.judge(asked(world, tmp_path / "low.parquet", precision="bf16"))
    full = load_verdicts(str(made[0])).table.to_pylist()
    seen = {True: 0, False: 0}
    for half, whole in zip(low.table.to_pylist(), full, strict=True):
        same = half["log_likelihoods"] == pytest.approx(whole["log_likelihoods"], rel=1e-6)
        if len(half["captions"]) > 1:
            seen[half["rechecked"]] += 1
            assert same or not half["rechecked"]
    assert seen[True] == low.passport["rechecked"] > 0
    assert seen[False] > 0


@pytest.mark.parametrize("name", ["same", "as a false one"])
def test_a_verdict_is_found_by_any_of_its_captions(made, name):
    found = load_verdicts(str(made[0]))
    row = next(r for r in found.table.to_pylist() if len(r["captions"]) == 4)
    caption = row["captions"][0 if name == "same" else 2]
    verdict = found.of(row["image"], caption)
    assert verdict.captions[0] == caption
    told = dict(zip(row["captions"], row["log_likelihoods"], strict=True))
    assert dict(zip(verdict.captions, verdict.log_likelihoods, strict=True)) == told
    assert found.of(row["image"], "a caption of nobody") is None
    assert found.of("another image", caption) is None


def test_the_term_is_the_cross_entropy_to_what_the_file_says(world, made):
    settings = config(world, made[0])
    pairs = load_pairs(settings.train_data)
    models = experiment.load_models(settings, pairs, torch.device("cpu"))
    assert models.teacher is None
    assert models.bridge is None
    student, places = models.student, torch.arange(4)
    captions = (*(scene(n)[1][0] for n in range(3)), "a caption of nobody")  # the first has no lie
    pixels = torch.stack([student.transform(pairs.image(i)) for i in range(4)])
    batch = Batch(places, pixels, captions)
    image_emb = student.encode_images(pixels)
    values = choice.choice_term(
        models, train.TermInputs(batch, image_emb, places, torch.empty(0)), settings
    )
    assert values[[0, 3]].tolist() == [0, 0]
    for i in (1, 2):
        verdict = load_verdicts(str(made[0])).of(pairs.ref(i).key, captions[i])
        text_emb = student.encode_texts(student.tokenize(list(verdict.captions)))
        logits = student.scale * text_emb @ image_emb[i]
        says = torch.tensor(verdict.log_likelihoods).softmax(0)
        expected = -(says * logits.log_softmax(0)).sum()
        torch.testing.assert_close(values[i], expected, rtol=1e-4, atol=1e-5)


def test_a_step_may_see_some_of_the_false_captions():
    whole = Verdict(tuple("abcd"), (0.0, -1.0, -2.0, -3.0))
    assert whole.some(3, 5) == whole
    seen = {whole.some(1, seed) for seed in range(30)}
    assert seen == {
        Verdict(("a", c), (0.0, v)) for c, v in zip("bcd", (-1.0, -2.0, -3.0), strict=True)
    }
    assert whole.some(2, 7) == whole.some(2, 7)
    assert len(set(whole.some(2, 7).captions)) == 3


def test_a_caption_that_is_not_there_takes_no_part_in_a_choice():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    says = torch.tensor([[0.0, -1.0, -torch.inf]])
    value = losses.choice_loss(logits, says)
    torch.testing.assert_close(value, losses.choice_loss(logits[:, :2], says[:, :2]))
    value.sum().backward()
    assert logits.grad[0, 2] == 0


def test_training_reads_verdicts_and_needs_no_teacher(world, made, tmp_path):
    settings = config(world, made[0], runs=str(tmp_path / "runs"))
    run = experiment.finetune(settings)
    assert (run.history()["sds"] > 0).tolist() == [True, True]
    moved = tmp_path / "elsewhere.parquet"
    moved.write_bytes(made[0].read_bytes())
    elsewhere = settings.model_copy(update={"verdicts": str(moved), "t_min": 500})
    assert experiment.finetune(elsewhere).id == run.id  # the content counts, not the place
    table = load_verdicts(str(made[0]))
    rows = table.table.to_pandas()
    rows["log_likelihoods"] = [values[::-1].copy() for values in rows["log_likelihoods"]]
    save_verdicts(moved, pa.Table.from_pandas(rows, SCHEMA), table.passport)
    assert experiment.finetune(elsewhere).id != run.id


def test_a_dry_run_with_verdicts_counts_no_evaluation(world, made):
    from sdslib.lab import dry_run

    settings = config(world, made[0], clip_model="ViT-B-32", clip_pretrained="openai")
    settings = override(settings, clip_model=f"local-dir:{world}/student", clip_pretrained=None)
    assert dry_run.rehearse(settings).evaluations == 0


@fault("verdicts that are not there")
def test_missing_verdicts_are_told_before_anything_is_loaded():
    given = {"arm": "teacher-choice", "verdicts": "nowhere.parquet", "sds_weight": 1.0}
    return refused(ParameterError, validate, FinetuneConfig, given)


@fault("verdicts on other pairs")
def test_verdicts_on_other_pairs_are_refused(world, made, tmp_path):
    other = tmp_path / "metadata"
    other.mkdir()
    Image.new("RGB", (40, 40), "white").save(other / "a.png")
    line = {"file_name": "a.png", "captions": ["a red circle left of a blue square"]}
    (other / "metadata.jsonl").write_text(json.dumps(line))
    return refused(DataError, load_verdicts(str(made[0])).on, load_pairs(str(other)))


def test_verdicts_on_a_part_of_the_pairs_are_told(world, made, tmp_path):
    found = load_verdicts(str(made[0]))
    pairs = load_pairs(f"{world}/captions.json::{world}/images")
    save_verdicts(tmp_path / "part", found.table.slice(0, len(found.table) * 3 // 4), {})
    part = load_verdicts(str(tmp_path / "part"))
    with pytest.warns(UserWarning, match=r"tells of \d+ of \d+ captions .* teaches nothing"):
        part.on(pairs)


def without_numbers(path):
    found = load_verdicts(str(path))
    rows = found.table.to_pandas()
    rows.at[3, "log_likelihoods"] = [float("nan")] * len(rows["captions"][3])
    save_verdicts(path, pa.Table.from_pandas(rows, SCHEMA), found.passport)


@each(
    {
        "damaged file of verdicts": lambda path: path.write_bytes(path.read_bytes()[:-50]),
        "table that holds no verdicts": pd.DataFrame({"image": ["a"]}).to_parquet,
        "log-likelihood that is not a number": without_numbers,
    }
)
def test_a_file_that_is_none_is_told_with_what_to_do(made, tmp_path, given):
    path = tmp_path / "some.parquet"
    path.write_bytes(made[0].read_bytes())
    given(path)
    return refused(DataError, load_verdicts, str(path))


def test_the_committed_verdicts_are_the_mini_teachers_on_the_mini_pairs():
    given = {"output": "data/mini/verdicts.parquet", "choice_draws": 2}
    work = verdicts.Judgement(validate(VerdictsConfig, given))
    assert work.is_done()
    assert work.output.stat().st_size < 2_000_000


def written(path, rows):
    """A file of verdicts with these (kinds, log-likelihoods)."""
    columns = {
        "image": [str(i) for i in range(len(rows))],
        "captions": [[f"c{k}" for k in range(len(said))] for _, said in rows],
        "kinds": [kinds for kinds, _ in rows],
        "log_likelihoods": [said for _, said in rows],
        "rechecked": [False] * len(rows),
    }
    save_verdicts(path, pa.table(columns, SCHEMA), {})
    return load_verdicts(str(path))


def test_calibration_counts_by_kind_and_by_sureness(tmp_path):
    log3 = float(np.log(3))
    found = written(
        tmp_path / "some.parquet",
        [(["color", "both"], [0.0, -log3, 1.0]), (["color"], [0.0, log3]), ([], [0.0])],
    )
    kinds = verdicts.by_kind(found).set_index("set")
    assert kinds.loc["color", ["n", "mean", "said"]].tolist() == [2, 0.5, pytest.approx(0.5)]
    assert kinds.loc["both", ["n", "mean"]].tolist() == [1, 0]
    assert kinds.loc["all kinds", "n"] == 3
    sure = verdicts.readable(verdicts.by_sureness(found))
    assert sure["questions"].sum() == 3
    said = (0.75 + 0.75 + 1 / (1 + np.exp(-1))) / 3
    assert sure[["it says", "it is right"]].to_numpy().tolist() == [[f"{said:.1%}", "33.3%"]]


def test_the_plan_tells_what_it_will_cost(world, made, tmp_path):
    told = verdicts.plan(asked(world, tmp_path / "none.parquet")).set_index("what")["value"]
    assert told["UNet evaluations"] == f"{made[1]:,}"
    assert told["blocks to do"] == "2 of 2"


def shell(world, output, *words):
    """What `python -m sdslib.lab.verdicts` prints, and its status."""
    data = f"{world}/captions.json::{world}/images"
    given = {"train_data": data, "teacher": world / "teacher", "negatives": "mini"}
    words = [*words, *(w for k, v in (given | {"choice_draws": DRAWS}).items()
                       for w in ("-p", k, str(v)))]  # fmt: skip
    command = [sys.executable, "-m", "sdslib.lab.verdicts", str(output), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def test_the_command_says_what_is_wrong(world, tmp_path, capsys):
    assert verdicts.main([str(tmp_path / "x.parquet"), "-p", "choice_drafts", "3"]) == 2
    assert "did you mean 'choice_draws'?" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_processes_share_the_work(world, made, tmp_path, executor):
    done = shell(world, tmp_path / "two.parquet", "--workers", "2", "--executor", executor)
    assert done.returncode == 0, done.stderr
    assert "UNet evaluations" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["two.parquet"]
    found, alone = (load_verdicts(str(p)).table for p in (tmp_path / "two.parquet", made[0]))
    assert found.drop_columns("log_likelihoods") == alone.drop_columns("log_likelihoods")
    said = [table["log_likelihoods"].combine_chunks().flatten() for table in (found, alone)]
    np.testing.assert_allclose(*said, rtol=1e-5)  # of other threads the last bits differ


@pytest.mark.slow
def test_photographs_are_judged_and_train_a_student_without_the_teacher(tmp_path, photos):
    path, models = tmp_path / "verdicts.parquet", dict(photos.models)
    given = {"train_data": photos.train_data, "choice_draws": 2, "output": path}
    given |= {"teacher": models["teacher"], "negatives": "swap"}
    done = papermill("08_verdicts", tmp_path / "out.ipynb", given)
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_verdicts(str(path))
    assert found.passport["captions_without"] < found.passport["captions"] / 2
    models["teacher"] = tmp_path / "nowhere"
    training = {"arm": "teacher-choice", "sds_weight": 1.0, "verdicts": path, "steps": 4}
    training |= {"batch_size": 8, "eval_every": 2, "train_data": photos.train_data}
    training |= {"benchmark": photos.winoground, "runs": tmp_path / "runs"}
    (tmp_path / "runs").mkdir()
    done = papermill("02_finetune", tmp_path / "out2.ipynb", models | training)
    assert done.returncode == 0, done.stderr[-3000:]
