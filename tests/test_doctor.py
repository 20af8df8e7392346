"""What a run needs and what of it is here: nothing is loaded, and no network is asked for long."""

import json
import re
import shutil

import pytest
import torch

from sdslib import benchmarks
from sdslib.checks import student_files, teacher_files
from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig, paper
from sdslib.io.families import configs_of, weights_of
from sdslib.io.paths import project_root
from sdslib.lab import doctor
from sdslib.lab.dry_run import parameters, stand_ins
from sdslib.sets.origins import ORIGINS


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub, repo, file, content="x"):
    """Put a file into the Hub's cache as a download would, at revision `main`."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    path = folder / "snapshots" / "abc" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("abc")
    return path


def run(*words):
    lines = []
    return doctor.main(list(words), lines.append), lines


def test_with_the_mini_preset_all_is_here():
    code, lines = run("--preset", "mini")
    assert code == 0
    assert {line.split()[0] for line in lines} == {"here"}
    told = {line.split(":")[0].removeprefix("here").strip() for line in lines}
    assert {"student", "teacher", "training pairs", "benchmark", "device", "disk"} <= told


def test_without_network_the_paper_preset_says_what_is_missing_and_how_to_get_it(
    empty_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pairs = f"{tmp_path}/coco/a.json::{tmp_path}/i"
    code, lines = run("--preset", "paper", "-p", "train_data", pairs)
    assert code == 1
    text = {line.split(":")[0]: line for line in lines}
    assert "hf download timm/vit_base_patch16_clip_224.openai" in text["missing   student"]
    assert "hf download CompVis/stable-diffusion-v1-4" in text["missing   teacher"]
    assert "https://huggingface.co/CompVis/stable-diffusion-v1-4" in text["missing   teacher"]
    assert "train2017.zip" in text["missing   training pairs"]
    assert "HF_TOKEN" in text["missing   benchmark"]
    for name in benchmarks.LOADERS.keys() - {"winoground", "zeroshot"}:
        said, origin = text[f"optional  benchmark {name}"], ORIGINS[name]
        assert f"licence {origin.licence}; {origin.size}; {origin.gate}" in said
        assert "give " in said
        assert origin.package in said
    disk = next(line for line in lines if " disk:" in line)
    assert "4.26 GB for the teacher's weights" in disk


def test_a_misspelt_parameter_is_said_too():
    code, lines = run("-p", "sds_wieght", "1")
    assert code == 1
    assert "did you mean 'sds_weight'?" in lines[0]


def test_a_device_that_is_not_here_is_missing(tiny_models):
    for device, state in (("cpu", "here"), ("mps", "missing")):
        found = doctor.findings(FinetuneConfig(**tiny_models, device=device))
        assert {row.what: row.state for row in found}["device"] == state


def test_weights_in_the_cache_are_found(empty_cache):
    repo = "timm/vit_base_patch16_clip_224.openai"
    name, tag = "ViT-B-16-quickgelu", "openai"
    assert "not in the local cache" in student_files.weights_problem(name, tag)
    cached(empty_cache, repo, "open_clip_model.safetensors")
    assert student_files.weights_problem(name, tag) is None
    assert "needs weights" in student_files.weights_problem(name, None)
    assert "other activation" in student_files.weights_problem("ViT-B-16", tag)
    assert "hf download a/b" in student_files.weights_problem("hf-hub:a/b", None)


def test_a_teacher_is_there_when_all_its_files_are(empty_cache, tiny_models):
    folder, repo = project_root() / tiny_models["teacher"], "some/teacher"
    assert teacher_files.weights_problem(tiny_models["teacher"]) is None
    assert f"hf download {repo}" in teacher_files.weights_problem(repo)
    names = [*configs_of({}), *weights_of({})]
    for name in names:
        shutil.copy(folder / name, cached(empty_cache, repo, name))
    assert teacher_files.weights_problem(repo) is None
    cached(empty_cache, repo, "unet/config.json", json.dumps({"cross_attention_dim": 3}))
    assert "they belong to different models" in teacher_files.weights_problem(repo)
    assert "does not exist" in teacher_files.weights_problem("no/such/teacher")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("mini", None),
        ("tests::notebooks", "tests is no file of captions; give captions.json::image_folder"),
        ("README.md::notebooks", "README.md is no file of captions"),
        ("tests", None),
        ("tests/none.json::notebooks", "tests/none.json not there: give captions.json::image"),
        ("nowhere/{000..009}.tar", "no shards at"),
        ("some/pairs", "cannot be reached"),
        ("nothing at all", "is no source of pairs"),
    ],
)
def test_training_pairs_are_looked_for_without_being_read(source, problem, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = doctor.pairs_problem(source)
    assert found is None if problem is None else problem in found


def test_pairs_without_false_captions_are_missing_for_an_arm_that_needs_them(photos):
    data = {"train_data": photos.train_data, "arm": "teacher-choice", "negatives": "mini"}
    config = FinetuneConfig(**data, **photos.models)
    assert "of the captions" in doctor.train_problem(config)
    assert doctor.train_problem(override(config, negatives="swap")) is None
    found = {f.what: f for f in doctor.findings(override(config, negatives="swap"))}
    told = found["false captions"].said
    assert re.fullmatch(r"negatives swap: [12]\d% of the captions have none", told)
    assert doctor.train_problem(override(config, arm="sds")) is None


def test_a_set_that_a_run_takes_is_one_that_the_doctor_finds(photos):
    for source, state in ((photos.train_data, "here"), ("none.json::none", "missing")):
        assert doctor._benchmark("benchmark", f"retrieval:{source}").state == state


def test_weights_and_disk_are_counted_from_shapes(tiny_models):
    config = paper().model_copy(update={"sds_weight": 0.001})
    models = stand_ins(config, torch.device("meta"))
    learning = sum(p.numel() for p in (*models.trained, *models.bridge.parameters()))
    counts = parameters(models)
    bridge, student_, unet, rest = (512 + 1) * 16384, 149_620_737, 859_520_964, 206_714_343
    assert learning - bridge == sum(p.numel() for p in models.trained)
    expected = 4 * (student_ + bridge + rest) + 2 * unet + 12 * learning
    assert doctor.weights_bytes(counts, config.precision) == expected
    assert doctor.disk_bytes(counts) == 4 * (9 * learning + student_)
