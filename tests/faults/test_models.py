"""Models and weights: refused before the first step, with what to do."""

import ast
import json
import shlex
import shutil
import time
import warnings

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from saving import flip

from faults.catalog import TESTS, each, fault, refused
from sdslib.checks.captions import VocabularyError
from sdslib.checks.student_files import CONFIG, WEIGHTS
from sdslib.commands import program
from sdslib.io.model_files import PASSPORT, WeightsError
from sdslib.io.storage import MANIFEST, seal
from sdslib.student import load_student
from sdslib.teacher import load_teacher

UNET = "unet/diffusion_pytorch_model.safetensors"
CODE = b"cos\nsystem\n(S'touch ran'\ntR."
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A bare student, one that was saved with passport and manifest, and a teacher."""
    root = tmp_path_factory.mktemp("models")
    bare = tiny.save_student(root / "bare")
    load_student(str(bare), None).save(root / "saved")
    return {"bare": bare, "saved": root / "saved", "teacher": tiny.save_teacher(root / "teacher")}


@pytest.fixture
def copy(folders, tmp_path):
    def make(name):
        return shutil.copytree(folders[name], tmp_path / name)

    return make


def of_student(folder):
    return refused(WeightsError, load_student, str(folder), None)


def of_teacher(folder):
    return refused(WeightsError, load_teacher, str(folder))


def rewrite(file, **changes):
    weights = {name: value.clone() for name, value in load_file(file).items()}
    weights = {n: v for n, v in (weights | changes).items() if v is not None}
    save_file(weights, file, metadata={"format": "pt"})


def edit(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def reseal(folder):
    """As one would who changes a folder by hand and wants it to pass."""
    (folder / MANIFEST).unlink()
    seal(folder)


def test_folders_that_nobody_touched_are_taken(copy):
    for name, has in (("saved", True), ("bare", False)):
        folder = copy(name)
        there = {path.name for path in folder.iterdir()}
        assert {PASSPORT, MANIFEST} & there == ({PASSPORT, MANIFEST} if has else set())
        load_student(str(folder), None)


# --- files ---------------------------------------------------------------------------------------


@each(
    {
        "student folder without weights": lambda file: file.unlink(),
        "weights of no bytes": lambda file: file.write_bytes(b""),
        "web page saved as weights": lambda file: file.write_bytes(b"<html>" * 99),
        "Git-LFS pointer in place of weights": lambda file: file.write_bytes(POINTER),
        "weights cut short": lambda file: file.write_bytes(file.read_bytes()[:-1000]),
        "weights that lack a tensor": lambda file: rewrite(file, **{"visual.proj": None}),
        "weights with a tensor too many": lambda file: rewrite(file, extra=torch.ones(2)),
        "positional embedding of another size, which open_clip stretches": (
            lambda file: rewrite(file, positional_embedding=torch.ones(8, 32))
        ),
    },
    (lambda file: rewrite(file, **{"visual.proj": torch.ones(32, 8)}),
     "do not fit the config…visual.proj"),
    (lambda file: rewrite(file, **{"visual.positional_embedding": torch.ones(26, 32)}),
     "(26, 32), the config say"),
    (lambda file: (file.parent / CONFIG).unlink(), "open_clip_config.json does not exist"),
    (lambda file: (file.parent / CONFIG).write_text("{"), "open_clip_config.json is not JSON"),
    (lambda file: (file.parent / CONFIG).write_text("{}"), "has no 'model_cfg'"),
)  # fmt: skip
def test_weights_of_a_student(copy, given):
    folder = copy("bare")
    given(folder / WEIGHTS)
    return of_student(folder)


@fault("weights that are not numbers")
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_numbers(copy, value):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, **{"visual.proj": torch.full((32, 16), float(value))})
    return of_student(folder)


def config(name, **changes):
    return lambda folder: edit(folder / name, lambda document: document.update(changes))


def weights(part, **changes):
    return lambda folder: rewrite(next((folder / part).glob("*.safetensors")), **changes)


def without(part):
    return lambda folder: shutil.rmtree(folder / part)


SCHEDULER = "scheduler/scheduler_config.json"


@each(
    {
        "teacher's UNet cut short": lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-9]),
        "teacher's part that lacks a tensor": weights("unet", **{"conv_in.bias": None}),
        "teacher whose parts belong to two models": config(
            "text_encoder/config.json", hidden_size=64
        ),
        "teacher that predicts something else": config(SCHEDULER, prediction_type="sample"),
        "inpainting model as teacher": config("unet/config.json", in_channels=9),
        "teacher without a scheduler": without("scheduler"),
    },
    (without("tokenizer"), "has no tokenizer; diffusers"),
    (without("unet"), "has no unet; diffusers"),
    (lambda f: (f / "model_index.json").unlink(), "has no …model_index.json"),
    (lambda f: (f / UNET).unlink(), f"has no {UNET}; diffusers"),
    (lambda f: (f / UNET).rename(f / UNET.replace("safetensors", "bin")),
     "is a pickle…convert it …: python -c"),
    (lambda f: (f / UNET).write_bytes(POINTER), "is a Git-LFS pointer"),
    (weights("unet", **{"conv_in.bias": torch.full((32,), float("nan"))}),
     "weight 'conv_in.bias' holds NaN"),
    (weights("text_encoder", **{"final_layer_norm.bias": None}), "1 missing"),
    (weights("vae", extra=torch.ones(1)), "1 unexpected (extra)"),
    (config(SCHEDULER, beta_schedule="sigmoid"), "beta_schedule 'sigmo"),
    (config(SCHEDULER, rescale_betas_zero_snr=True), "zero_snr"),
    (config("model_index.json", _class_name="PixArtSigmaPipeline"),
     "teacher is a PixArtSigmaPipeline; a teacher is a StableDiffusionPipeline, St"),
    (config("unet/config.json", block_out_channels=[64, 64]), "teacher/unet: "),
    (lambda f: (f / "vae/config.json").write_text("{"), "vae/config.json is not JSON"),
)  # fmt: skip
def test_a_teachers_folder(copy, given):
    folder = copy("teacher")
    given(folder)
    return of_teacher(folder)


@fault("bit flipped in the student's weights")
def test_a_bit_flipped_in_the_students_weights(copy):
    folder = copy("saved")
    flip(folder / WEIGHTS)
    return of_student(folder)


@fault("bit flipped in the teacher's weights")
def test_a_bit_flipped_in_the_teachers_weights(copy):
    folder = copy("teacher")
    seal(folder)
    load_teacher(str(folder))
    flip(folder / UNET)
    return of_teacher(folder)


@fault("pickled weights")
def test_pickled_weights_are_refused_and_the_command_given_converts_them(copy, monkeypatch):
    folder = copy("bare")
    before = load_file(folder / WEIGHTS)
    trained = {"epoch": 1, "name": "x", "state_dict": {f"module.{n}": v for n, v in before.items()}}
    torch.save(trained | {"optimizer": {}}, folder / "open_clip_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    said = of_student(folder)
    monkeypatch.chdir(folder)
    advice = str(said).split("python -m sdslib ")[1]
    with pytest.raises(SystemExit) as ended:
        program.main(shlex.split(advice.split(", then")[0]))
    assert ended.value.code == 0
    after = load_file(folder / "open_clip_pytorch_model" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "give clip_model local-dir:open_clip_pytorch_model" in advice
    load_student(f"local-dir:{folder / 'open_clip_pytorch_model'}", None)
    return said


@fault("pickle that would run code")
def test_a_pickle_that_would_run_code(copy):
    folder = copy("bare")
    (folder / WEIGHTS).unlink()
    (folder / "weights.pt").write_bytes(CODE)
    said = of_student(folder)
    assert not (folder / "ran").exists()
    return said


# --- names and configs ---------------------------------------------------------------------------


@each(
    {
        "named model without a tag, which would start random": ("ViT-B-32", None),
        "unknown model": ("ViT-B32", "openai"),
        "unknown weights of a model": ("ViT-B-32", "laion2b"),
        "named model of the other activation": ("ViT-B-32", "openai"),
    }
)
def test_names_of_a_student(given):
    return refused(WeightsError, load_student, *given)


@fault("model that is not here, without a network")
def test_a_teacher_out_of_reach():
    start = time.monotonic()
    said = refused(WeightsError, load_teacher, "who/what", "abc")
    assert time.monotonic() - start < 20  # the bare libraries retry for longer
    return said


@each(
    {"student that is not here, without a network": "ViT-B-32-quickgelu"},
    ("hf-hub:laion/CLIP-ViT-B-32-laion2B", "CLIP-ViT-B-32-laion2B: the Hub cannot be reached"),
)
def test_a_student_out_of_reach(tmp_path, monkeypatch, given):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    said = refused(WeightsError, load_student, given, "openai")
    assert "give clip_model a local-dir: folder" in str(said)
    assert len(str(said).splitlines()) == 1
    return said


def test_no_code_of_the_hub_is_asked_for_anywhere():
    for path in [*TESTS.parent.glob("sdslib/**/*.py"), *TESTS.parent.glob("notebooks/*.ipynb")]:
        text = path.read_text()
        if path.suffix == ".py":
            calls = [n.arg for n in ast.walk(ast.parse(text)) if isinstance(n, ast.keyword)]
        assert "trust_remote_code" not in (calls if path.suffix == ".py" else text), path.name


@fault("temperature past its bound")
def test_a_temperature_past_its_bound(copy):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, logit_scale=torch.tensor(150.0).log())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = load_student(str(folder), None)
    assert float(loaded.scale.detach()) == 100
    return said[-1].message


# --- passports -----------------------------------------------------------------------------------


@fault("preprocessing that was swapped")
@pytest.mark.parametrize("sealed_again", [False, True])
def test_a_swapped_preprocessing(copy, sealed_again):
    folder = copy("saved")
    edit(folder / CONFIG, lambda d: d["preprocess_cfg"].update(mean=[0.4, 0.5, 0.5]))
    if sealed_again:
        reseal(folder)
    return of_student(folder)


@each(
    {
        "activation that the weights were not trained with": lambda d: d.update(quick_gelu=True),
        "context length that was changed": lambda d: d["text_cfg"].update(context_length=12),
    }
)
def test_another_config_of_the_model(copy, given):
    folder = copy("saved")
    edit(folder / CONFIG, lambda d: given(d["model_cfg"]))
    return of_student(folder)


@fault("tokenizer that was swapped")
def test_a_swapped_tokenizer(copy):
    folder = copy("saved")
    tiny.build_tokenizer(words=tiny.WORDS[::-1]).save_pretrained(folder)
    reseal(folder)
    return of_student(folder)


def test_a_passport_tells_what_the_folder_must_be(copy):
    passport = json.loads((copy("saved") / PASSPORT).read_text())
    assert passport.keys() == {
        *("model", "precision", "quick_gelu", "preprocess", "context_length", "tokenizer"),
    }
    assert (passport["context_length"], passport["quick_gelu"]) == (16, False)
    assert passport["preprocess"]["mean"] == [0.5, 0.5, 0.5]


@fault("word that the model cannot write")
def test_a_word_outside_the_vocabulary(folders):
    loaded = load_student(str(folders["bare"]), None)
    return refused(VocabularyError, loaded.tokenize, ["a purple circle"])
