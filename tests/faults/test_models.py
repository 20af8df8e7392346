"""Models and weights: refused before the first step, with what to do."""

import ast
import json
import shutil
import time
import warnings

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from faults.catalog import TESTS, fault
from sdslib.checks.captions import VocabularyError
from sdslib.checks.guard import guard
from sdslib.checks.student_files import CONFIG, WEIGHTS
from sdslib.io.model_files import PASSPORT, WeightsError
from sdslib.io.storage import MANIFEST, seal
from sdslib.io.wording import ParameterError
from sdslib.student import load_student
from sdslib.teacher import load_teacher

UNET = "unet/diffusion_pytorch_model.safetensors"
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


def refused(call, *args, error=WeightsError):
    with pytest.raises(error) as caught:
        call(*args)
    return caught.value


def of_student(folder):
    return refused(load_student, str(folder), None)


def of_teacher(folder):
    return refused(load_teacher, str(folder))


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


@fault(30, "student folder without weights", "bare has no weights; put a .safetensors file there")
def test_a_student_without_weights(copy):
    folder = copy("bare")
    (folder / WEIGHTS).unlink()
    return of_student(folder)


@fault(
    30,
    "named model without a tag, which would start random",
    "ViT-B-32 needs weights; clip_pretrained is one of openai, ",
)
def test_a_named_model_without_a_tag():
    return refused(load_student, "ViT-B-32", None)


@fault(
    31,
    "weights of no bytes",
    "bare/open_clip_model.safetensors is not a safetensors file; get it again",
)
def test_weights_of_no_bytes(copy):
    folder = copy("bare")
    (folder / WEIGHTS).write_bytes(b"")
    return of_student(folder)


@fault(
    31,
    "web page saved as weights",
    "bare/open_clip_model.safetensors is not a safetensors file; get it again",
)
def test_a_web_page_saved_as_weights(copy):
    folder = copy("bare")
    (folder / WEIGHTS).write_bytes(b"<html>" * 99)
    return of_student(folder)


@fault(
    31,
    "Git-LFS pointer in place of weights",
    "bare/open_clip_model.safetensors is a Git-LFS pointer, not weights; git lfs pull",
)
def test_a_pointer_in_place_of_weights(copy):
    folder = copy("bare")
    (folder / WEIGHTS).write_bytes(POINTER)
    return of_student(folder)


@fault(31, "weights cut short", "bare/open_clip_model.safetensors is cut: … of … MB; get it again")
def test_weights_cut_short(copy):
    folder = copy("bare")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1000])
    return of_student(folder)


@fault(
    31,
    "teacher's UNet cut short",
    "unet/diffusion_pytorch_model.safetensors is cut: … of … MB; get it again",
)
def test_a_unet_cut_short(copy):
    folder = copy("teacher")
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-9])
    return of_teacher(folder)


def flip(file):
    """One bit of the last tensor: the file stays loadable."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


@fault(
    32,
    "bit flipped in the student's weights",
    "saved: open_clip_model.safetensors differs from its sha256; get it again",
)
def test_a_bit_flipped_in_the_students_weights(copy):
    folder = copy("saved")
    flip(folder / WEIGHTS)
    return of_student(folder)


@fault(
    32,
    "bit flipped in the teacher's weights",
    "teacher: unet/diffusion_pytorch_model.safetensors differs from its sha256; get it again",
)
def test_a_bit_flipped_in_the_teachers_weights(copy):
    folder = copy("teacher")
    seal(folder)
    load_teacher(str(folder))
    flip(folder / UNET)
    return of_teacher(folder)


@fault(
    33,
    "weights that lack a tensor",
    'bare: the weights do not fit the config: … Missing key(s) in state_dict: "visual.proj"',
)
def test_weights_that_lack_a_tensor(copy):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, **{"visual.proj": None})
    return of_student(folder)


@fault(
    33,
    "weights with a tensor too many",
    'bare: the weights do not fit the config: … Unexpected key(s) in state_dict: "extra"',
)
def test_weights_with_a_tensor_too_many(copy):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, extra=torch.ones(2))
    return of_student(folder)


@fault(
    33,
    "positional embedding of another size, which open_clip stretches",
    "bare: weight 'positional_embedding' is (8, 32), the config says (16, 32)",
)
def test_a_positional_embedding_of_another_size(copy):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, positional_embedding=torch.ones(8, 32))
    return of_student(folder)


@fault(
    33,
    "teacher's part that lacks a tensor",
    "teacher/unet: the weights do not fit the config: 1 missing (conv_in.bias)",
)
def test_a_unet_that_lacks_a_tensor(copy):
    folder = copy("teacher")
    rewrite(folder / UNET, **{"conv_in.bias": None})
    return of_teacher(folder)


@fault(
    34,
    "weights that are not numbers",
    "bare: weight 'visual.proj' holds NaN or infinity; get it again",
)
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_numbers(copy, value):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, **{"visual.proj": torch.full((32, 16), float(value))})
    return of_student(folder)


@fault(
    35,
    "pickled weights",
    "bare/open_clip_pytorch_model.bin is a pickle, which can run code when loaded; if you trust "
    'it, convert it: python -c "import torch, safetensors.torch as s; w = '
    "torch.load('open_clip_pytorch_model.bin', map_location='cpu', weights_only=True); w = w.get(…",
)
def test_pickled_weights_are_refused_and_the_command_given_converts_them(copy, monkeypatch):
    folder = copy("bare")
    before = load_file(folder / WEIGHTS)
    torch.save(before, folder / "open_clip_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    said = of_student(folder)
    monkeypatch.chdir(folder)
    program = str(said).split('python -c "')[1].removesuffix('"')
    exec(compile(program, "the command", "exec"), {})
    after = load_file(folder / "open_clip_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    load_student(str(folder), None)
    return said


@fault(
    35, "pickle that would run code", "bare/weights.pt is a pickle, which can run code when loaded"
)
def test_a_pickle_that_would_run_code(copy):
    folder = copy("bare")
    (folder / WEIGHTS).unlink()
    (folder / "weights.pt").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    said = of_student(folder)
    assert not (folder / "ran").exists()
    return said


# --- names ---------------------------------------------------------------------------------------


@fault(36, "unknown model", "unknown model 'ViT-B32'; did you mean 'ViT-B-32' or ")
def test_an_unknown_model():
    return refused(load_student, "ViT-B32", "openai")


@fault(36, "unknown weights of a model", "unknown weights 'laion2b' for ViT-B-32; did you mean '")
def test_unknown_weights():
    return refused(load_student, "ViT-B-32", "laion2b")


@fault(
    37,
    "teacher whose parts belong to two models",
    "teacher: the UNet attends to text of width 32, the text encoder gives 64; they belong to "
    "different models",
)
def test_parts_of_two_models(copy):
    folder = copy("teacher")
    edit(folder / "text_encoder/config.json", lambda d: d.update(hidden_size=64))
    return of_teacher(folder)


@fault(
    37,
    "teacher that predicts something else",
    "prediction_type 'sample'; known are epsilon and v_prediction",
)
def test_a_teacher_that_predicts_something_else(copy):
    folder = copy("teacher")
    edit(folder / "scheduler/scheduler_config.json", lambda d: d.update(prediction_type="sample"))
    return of_teacher(folder)


@fault(
    37,
    "teacher without a scheduler",
    "…/teacher has no scheduler; diffusers' save_pretrained writes them",
)
def test_a_teacher_without_a_scheduler(copy):
    folder = copy("teacher")
    shutil.rmtree(folder / "scheduler")
    return of_teacher(folder)


@fault(
    37,
    "inpainting model as teacher",
    "teacher: the UNet takes 9 channels, the VAE gives 4; inpainting and upscaling models are no "
    "teachers",
)
def test_an_inpainting_model(copy):
    folder = copy("teacher")
    edit(folder / "unet/config.json", lambda d: d.update(in_channels=9))
    return of_teacher(folder)


@fault(
    38,
    "model that is not here, without a network",
    "teacher who/what at revision 'abc': the Hub cannot be reached (…) and the local cache does "
    "not hold it. Connect, or unset HF_HUB_OFFLINE, and run again. Without the Hub: give teacher a "
    "folder in diffusers' layout.",
)
def test_a_teacher_out_of_reach():
    start = time.monotonic()
    said = refused(load_teacher, "who/what", "abc")
    assert time.monotonic() - start < 20  # the bare libraries retry for longer
    return said


@fault(
    38,
    "student that is not here, without a network",
    "student timm/vit_base_patch32_clip_224.openai: the Hub cannot be reached (…) and the local "
    "cache does not hold it. Connect, or unset HF_HUB_OFFLINE, and run again. Without the Hub: "
    "give clip_model a local-dir: folder.",
)
def test_a_student_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    return refused(load_student, "ViT-B-32-quickgelu", "openai")


@fault(
    39,
    "code from the Hub asked for",
    "invalid parameters: trust_remote_code is never passed on: models are safetensors and JSON, "
    "and bring no code; leave it out",
)
def test_code_from_the_hub():
    for path in [*TESTS.parent.glob("sdslib/**/*.py"), *TESTS.parent.glob("notebooks/*.ipynb")]:
        if path.suffix == ".py":
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.keyword)]
            assert "trust_remote_code" not in {call.arg for call in calls}, path.name
        else:
            assert "trust_remote_code" not in path.read_text(), path.name
    return refused(guard, {"trust_remote_code": True}, error=ParameterError)


@fault(
    42,
    "temperature past its bound",
    "bare: exp(logit_scale) is 150, past 100; used as 100, as in CLIP's training",
)
def test_a_temperature_past_its_bound(copy):
    folder = copy("bare")
    rewrite(folder / WEIGHTS, logit_scale=torch.tensor(150.0).log())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loaded = load_student(str(folder), None)
    assert float(loaded.scale.detach()) == 100
    return said[-1].message


# --- passports -----------------------------------------------------------------------------------


@fault(
    62,
    "preprocessing that was swapped",
    "saved: the preprocessing was swapped: {'mean': [0.5, 0.5, 0.5]} became {'mean': [0.4, 0.5, "
    "0.5]}; restore preprocess_cfg",
)
@pytest.mark.parametrize("sealed_again", [False, True])
def test_a_swapped_preprocessing(copy, sealed_again):
    folder = copy("saved")
    edit(folder / CONFIG, lambda d: d["preprocess_cfg"].update(mean=[0.4, 0.5, 0.5]))
    if sealed_again:
        reseal(folder)
    return of_student(folder)


@fault(
    63,
    "activation that the weights were not trained with",
    "saved: the weights were trained with GELU, the config says QuickGELU; restore quick_gelu",
)
def test_another_activation_in_the_config(copy):
    folder = copy("saved")
    edit(folder / CONFIG, lambda d: d["model_cfg"].update(quick_gelu=True))
    return of_student(folder)


@fault(
    63,
    "named model of the other activation",
    "weights 'openai' were trained with QuickGELU and ViT-B-32 has the other activation; use "
    "ViT-B-32-quickgelu",
)
def test_a_named_model_of_the_other_activation():
    return refused(load_student, "ViT-B-32", "openai")


@fault(
    64,
    "context length that was changed",
    "saved: the weights take 16 tokens, the config says 12; restore it",
)
def test_another_context_length(copy):
    folder = copy("saved")
    edit(folder / CONFIG, lambda d: d["model_cfg"]["text_cfg"].update(context_length=12))
    return of_student(folder)


@fault(
    65,
    "tokenizer that was swapped",
    "saved: the tokenizer is not the one that the weights were trained with; get the folder again",
)
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


@fault(
    66,
    "word that the model cannot write",
    "caption 'a purple circle' has words outside …'s vocabulary: 'purple'",
)
def test_a_word_outside_the_vocabulary(folders):
    loaded = load_student(str(folders["bare"]), None)
    return refused(loaded.tokenize, ["a purple circle"], error=VocabularyError)
