"""Whole small experiments with the committed student and teacher: cut off, resumed, read again."""

import hashlib
import importlib.util
import json
import os
import signal
import sqlite3
import struct

import combinations
import numpy as np
import open_clip
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file
from test_pairs import coco_document, write_coco

from sdslib import benchmarks, experiment
from sdslib.checks.captions import VocabularyError
from sdslib.checks.guard import override
from sdslib.config import ARMS, NOT_IN_ID, Arm, FinetuneConfig
from sdslib.io import stopping
from sdslib.io.paths import project_path
from sdslib.io.runs import find_run
from sdslib.io.wording import ParameterError
from sdslib.miniworld import files
from sdslib.pairs import load_pairs
from sdslib.results import comparison, finetuned
from sdslib.results.settings import score_tables
from sdslib.sets import roles
from sdslib.sets.pair_files import coco_pairs
from sdslib.teacher import load_teacher
from sdslib.train import Loop

SETTINGS = {
    "steps": 4,
    "batch_size": 8,
    "warmup": 1,
    "eval_every": 2,
    "checkpoint_every": 2,
    "bridge_pairs": 64,
    "eval_items": 30,
    "sds_weight": 0.01,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return FinetuneConfig(**SETTINGS, runs=str(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def finished(config):
    return experiment.finetune(config)


@pytest.fixture(scope="module")
def bare(config):
    """The same training without the sets beside the benchmark, whose scores take most of a run."""
    return override(config, keep="none", validation="none")


@pytest.fixture(scope="module")
def trained(bare):
    return experiment.finetune(bare)


@pytest.fixture(scope="module")
def control(config):
    return experiment.finetune(experiment.control(config))


def pairs_of(folder, captions):
    """Pairs of as many pictures as captions."""
    document = coco_document(len(captions), 1)
    for note, text in zip(document["annotations"], captions, strict=True):
        note["caption"] = text
    return coco_pairs(*write_coco(folder, document, len(captions)))


def test_settings_that_lead_to_nothing_are_told(tmp_path):
    two = pairs_of(tmp_path / "two", ["a red circle", "A  blue square"] * 32)
    many = pairs_of(tmp_path / "many", [f"a circle {i}" for i in range(64)])
    usual = FinetuneConfig()
    assert roles.cautions(usual, many) == []
    (told,) = roles.cautions(usual, two)
    assert told.startswith("64 images have 2 different captions, fewer than batch_size 32: L_CLIP")
    assert roles.cautions(override(usual, arm="sds-only"), two) == []
    alone, fast = override(usual, batch_size=1), override(usual, lr=1e9)
    assert roles.cautions(alone, many)[0].startswith("batch_size 1: L_CLIP is 0")
    assert roles.cautions(override(alone, arm="hard-negatives"), many) == []
    assert roles.cautions(fast, many)[0].startswith("lr 1e+09 is far above what trains CLIP")
    (short,) = roles.cautions(override(usual, steps=20), many)
    assert short.startswith("warmup 15 of 20 steps: ")
    assert short.endswith("a warmup of 2")
    assert roles.cautions(override(usual, steps=20, warmup=10), many) == []
    assert roles.cautions(override(usual, epochs=10), many) == [short]
    assert roles.cautions(override(usual, steps=1), many) == []


def test_the_cautions_of_a_run_are_warned_of_when_its_data_load(config):
    with pytest.warns(UserWarning, match=r"lr 1e\+09 is far above"):
        experiment.load_data(override(config, lr=1e9))


@pytest.mark.parametrize("mark", ["<end>", "<START>"])
def test_a_training_caption_with_a_mark_of_the_tokenizer_is_refused_before_the_first_step(
    config, tmp_path, mark
):
    pairs = pairs_of(tmp_path, ["a red circle", f"a red circle {mark} left of a blue square"])
    with pytest.raises(
        VocabularyError, match=f"left of a blue square' has '{mark.lower()}', a mark"
    ):
        experiment.load_models(config, pairs, torch.device("cpu"))


def digest(run):
    """Hash of the weights that a run ended with."""
    files = sorted((run.path / "weights").glob("*.safetensors"))
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def losses(run):
    return run.history().drop(columns="seconds").to_json()


def test_a_finished_run_is_read_and_never_computed_again(config, finished, monkeypatch):
    monkeypatch.setattr(Loop, "__iter__", lambda self: pytest.fail("computed again"))
    again = experiment.finetune(config)
    assert again.path == finished.path
    assert again.finished


def test_a_run_cut_off_by_a_signal_goes_on_to_the_same_end(bare, trained, tmp_path):
    elsewhere = override(bare, runs=str(tmp_path))

    def cut(steps, total):
        for step in steps:
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3; run again to go on"):
        experiment.finetune(elsewhere, cut)
    folder = next(tmp_path.iterdir())
    assert find_run(folder).status()["state"] == "interrupted"
    again = experiment.finetune(elsewhere)
    assert again.finished
    assert digest(again) == digest(trained)
    assert losses(again) == losses(trained)


def test_signals_are_put_back_after_training():
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(kind) for kind in kinds]
    with stopping.stop_requested() as stop:
        assert all(signal.getsignal(kind) not in before for kind in kinds)
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
    assert [signal.getsignal(kind) for kind in kinds] == before


@pytest.mark.slow
def test_interpolation_ends_between_the_untouched_and_the_trained_weights(bare, trained, tmp_path):
    part = experiment.finetune(override(bare, interpolation=0.25, runs=str(tmp_path)))
    start, end, found = (
        load_file(folder / "open_clip_model.safetensors")
        for folder in (project_path("data/mini/student"), trained.weights, part.weights)
    )
    assert any(not torch.equal(start[name], end[name]) for name in start)
    for name, value in found.items():
        torch.testing.assert_close(value, start[name] + 0.25 * (end[name] - start[name]))
    pd.testing.assert_frame_equal(
        part.history().drop(columns="seconds"), trained.history().drop(columns="seconds")
    )


def test_open_clip_alone_gives_the_scores_of_the_run_bit_for_bit(finished):
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{finished.weights}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{finished.weights}")
    item = benchmarks.load_benchmark("mini:winoground").sample(30).items[0]
    pixels = torch.stack([transform(ref.load()) for ref in item.images])
    with torch.no_grad():
        image = model.eval().encode_image(pixels, normalize=True).double().numpy()
        text = model.encode_text(tokenizer(list(item.captions)), normalize=True).double().numpy()
    row = finished.scores("mini-winoground").set_index("id").loc[item.id]
    kept = np.array([[row[f"s_{i}_{k}"] for k in (0, 1)] for i in (0, 1)])
    np.testing.assert_allclose(image @ text.T, kept, atol=1e-6)


def test_the_control_is_one_run_for_all_weights(config):
    controls = [experiment.control(override(config, sds_weight=w)) for w in (0.01, 10.0)]
    assert controls[0].identity() == controls[1].identity()
    assert controls[0].arm == "clip-only"


def test_the_control_has_neither_bridge_nor_teacher(control):
    assert not (control.path / "weights" / "bridge.safetensors").exists()
    assert control.history()["sds"].isna().all()


def test_untouched_scores_are_those_before_training(config, finished):
    student = experiment.load_student(config.clip_model, config.clip_pretrained)
    benchmark = benchmarks.load_benchmark("mini:winoground").sample(30)
    before = experiment.score(student, benchmark)
    kept = finished.scores("untouched-mini-winoground")
    pd.testing.assert_frame_equal(before, kept, check_dtype=False)


def test_tables_hold_all_models_with_intervals_and_paired_tests(finished, control):
    scores = score_tables(finished, control)
    assert list(scores) == ["untouched", "L_CLIP only", "sds"]
    table = finetuned.before_after(scores)
    assert set(table["model"]) == set(scores)
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()
    paired = comparison.paired(scores)
    assert set(paired["comparison"]) == {"sds against untouched", "sds against L_CLIP only"}
    assert {"p", "p_holm", "mdd", "up", "down"} <= set(paired)


def test_retention_covers_zero_shot_and_retrieval(finished, control):
    kept = finetuned.retention(finished, control)
    assert set(kept["set"]) == {"mini-zeroshot-color", "mini-zeroshot-shape", "retrieval"}
    assert len(kept) == len(kept.drop_duplicates(["set", "model", "metric"]))


def test_results_are_kept_in_the_run(finished, control):
    scores = score_tables(finished, control)
    table = finetuned.before_after(scores)
    shown = finetuned.save_results(finished, before_after=table)
    assert shown.endswith(finished.name)
    assert len(finished.results()) == len(table)


def test_parameters_and_environment_are_recorded(finished):
    assert finished.params["sds_weight"] == 0.01
    env = json.loads((finished.path / "env.json").read_text())
    assert {"packages", "threads", "device"} <= env.keys()


def test_the_parameter_table_counts_layernorms_and_bridge(config):
    table = finetuned.parameter_table(config).set_index("group")
    assert table.loc["bridge", "parameters"] == (128 + 1) * 4 * 8 * 8
    assert table.loc["image tower", "parameters"] == 2 * 128 * (2 * 4 + 2)


def test_every_latent_is_encoded_once(config, drawn):
    pairs = load_pairs("mini", 6)
    teacher = load_teacher(config.teacher)
    seen = []
    encode = teacher.encode_images
    teacher.encode_images = lambda pixels: seen.append(len(pixels)) or encode(pixels)
    cache = experiment.LatentCache(teacher, pairs)
    first, again = cache([0, 1, 1, 2]), cache([2, 0])
    assert seen == [3]
    assert torch.equal(first[[3, 0]], again)


def test_pooled_embeddings_can_enter_the_bridge(bare):
    settings = override(bare, bridge_input="pooled", steps=1)
    assert experiment.finetune(settings).finished


def test_a_device_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError, match="device 'cuda' is not available here"):
        experiment.pick_device("cuda")
    assert experiment.pick_device("cpu").type == "cpu"


def test_figures_of_the_mini_world_say_so(config):
    assert finetuned.note(config) == "mini-world"
    assert finetuned.human(config) is None
    assert files.ensure_world().is_dir()


def of_tensorboard(folder):
    """What the tracker's own reader finds: (step, value) by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)]
            for name in events.Tags()["scalars"]}  # fmt: skip


def wandb_records(data):
    """The records of a .wandb file: LevelDB's log format behind a head of 7 bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of its parts
            yield record
            record = b""


def of_wandb(folder):
    """The same of its offline runs, one for each time that the run was gone on with."""
    internal, found = pytest.importorskip("wandb.proto.wandb_internal_pb2"), {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for data in wandb_records(path.read_bytes()):
            history = internal.Record.FromString(data).history
            for item in history.item:
                name = item.key or item.nested_key[0]
                found.setdefault(name, {})[history.step.num] = json.loads(item.value_json)
    return {name: list(values.items()) for name, values in found.items()}


def of_mlflow(folder):
    """The same of its file store."""
    client = pytest.importorskip("mlflow").MlflowClient(folder.as_uri())
    begun = client.search_runs([e.experiment_id for e in client.search_experiments()])
    found = {}
    for run in sorted(begun, key=lambda run: run.info.start_time):
        assert run.data.tags["group"] == folder.parent.name
        for name in run.data.metrics:
            told = client.get_metric_history(run.info.run_id, name)
            found.setdefault(name, {}).update({m.step: m.value for m in told})
    return {name: list(values.items()) for name, values in found.items()}


def of_trackio(folder):
    """The same of the file that the runs of a folder share."""
    with sqlite3.connect(folder.parents[1] / "trackio" / "tracker.db") as file:
        rows = file.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    found = {}
    for step, metrics in rows:
        for name, value in json.loads(metrics).items():
            found.setdefault(name, {})[step] = value
    return {name: list(values.items()) for name, values in found.items()}


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tensorboard", of_tensorboard),
        pytest.param("wandb", of_wandb, marks=pytest.mark.slow),
        pytest.param("mlflow", of_mlflow, marks=pytest.mark.slow),
        pytest.param("trackio", of_trackio, marks=pytest.mark.slow),
    ],
)
def test_a_tracker_gets_every_step_of_the_history_and_nothing_twice(
    bare, tmp_path, name, read, monkeypatch, capsys
):
    if importlib.util.find_spec(name) is None:  # imported, trackio would have chosen its folder
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the reader
    monkeypatch.setenv("HF_TOKEN", "hf_none")  # which nobody asks the Hub about
    before = dict(os.environ)
    settings = override(bare, tracker=name, runs=str(tmp_path))
    assert settings.identity() == bare.identity()

    def cut(steps, total):
        for step in steps:
            if step.step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    settings = override(settings, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        experiment.finetune(settings, cut)
    run = experiment.finetune(settings)
    events, history = read(run.path / "tracker"), run.history()
    for name in ("loss", "clip", "sds", "lr", "grad_ratio"):
        told = history.dropna(subset=[name])
        assert [step for step, _ in events[name]] == told["step"].tolist()
        np.testing.assert_allclose([v for _, v in events[name]], told[name], rtol=1e-6)
    assert run.problems() == []
    assert dict(os.environ) == before
    assert "Uploading" not in capsys.readouterr().out
    assert not [p for p in psutil.Process().children(recursive=True) if name in p.name()]


def test_without_a_tracker_a_run_has_no_folder_for_it(finished):
    assert not (finished.path / "tracker").exists()


@pytest.mark.slow
def test_random_settings_end_with_finite_weights_or_are_refused_in_one_line(tmp_path):
    for settings in combinations.draws(6, seed=1):
        good, said = combinations.outcome(settings, tmp_path)
        assert good, said


ONE_OF = {"epochs": {"steps": None}}  # they are given one for the other


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_parameter_of_a_runs_id_changes_the_run(tmp_path):
    """One was in ids, documented, and reached no pair."""
    asked = combinations.MOVES.keys() | combinations.NAMES
    assert asked == FinetuneConfig.model_fields.keys() - NOT_IN_ID
    for name, (value, under) in combinations.MOVES.items():
        still = combinations.made(under, tmp_path)
        moved = combinations.made(under | {name: value} | ONE_OF.get(name, {}), tmp_path)
        assert moved != still, name


def test_an_own_term_needs_no_teacher_and_may_have_the_untouched_student(config, monkeypatch):
    def own_term(models, seen, config):
        kept = models.untouched.encode_images(seen.batch.pixels)
        return 1 - (seen.image_emb * kept).sum(-1)

    monkeypatch.setattr("sdslib.arms.text.own_term", own_term, raising=False)
    row = Arm("arms.text:own_term", weighs="own", teacher=False, denoises=False, maps=False)
    monkeypatch.setitem(ARMS, "sds-text", row._replace(distils=True))
    own = override(config, arm="sds-text", teacher="no/such/teacher", steps=2)
    assert "sds_weight" in own.identity()
    assert not {"teacher", "t_min", "bridge_start"} & own.identity().keys()
    pairs = load_pairs(own.train_data)
    models = experiment.load_models(own, pairs, torch.device("cpu"))
    assert (models.teacher, models.bridge) == (None, None)
    first, second = Loop(own, models, pairs)
    assert first.sds == pytest.approx(0, abs=1e-6)
    assert second.sds > first.sds
