"""What open_clip's training leaves, `epoch_N.pt`, becomes a folder, and nothing of it is run."""

import pickle
import re
import subprocess
import sys

import open_clip
import pytest
import tiny
import torch
from faults.catalog import each, refused
from safetensors.torch import load_file

from sdslib.io.model_files import WeightsError
from sdslib.io.storage import StorageError
from sdslib.lab.checkpoints import convert, read_checkpoint
from sdslib.student import load_student

NAME = "2026_01_02-03_04_05-model_ViT-B-16-lr_0.0005-b_64-j_4-p_amp"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A folder with a config and tokenizer, whose weights are a pickle."""
    folder = tiny.save_student(tmp_path_factory.mktemp("config") / "own")
    (folder / "open_clip_model.safetensors").unlink()
    return folder


@pytest.fixture(scope="module")
def trained(config):
    """A model that has trained a step, and its optimizer."""
    torch.manual_seed(1)
    model = open_clip.create_model(f"local-dir:{config}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.encode_image(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def checkpoint(trained, tmp_path):
    """Write one as open_clip_train's main does, on several GPUs or one, changed by `how`."""

    def write(prefix="module.", how=lambda state: None, **more):
        model, optimizer = trained
        state = {prefix + name: value.clone() for name, value in model.state_dict().items()}
        how(state)
        kept = {"epoch": 3, "name": NAME, "state_dict": state, "optimizer": optimizer.state_dict()}
        torch.save(kept | more, tmp_path / "epoch_3.pt")
        return tmp_path / "epoch_3.pt"

    return write


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_checkpoint_becomes_a_folder_with_its_weights_and_no_optimizer(
    checkpoint, trained, config, tmp_path, prefix
):
    file = checkpoint(prefix, scaler={"scale": 65536.0, "growth_factor": 2.0})
    said = convert(file, str(config), tmp_path / "new")
    assert "its run was named ViT-B-16: GELU; size (32, 32)" in said
    kept = load_file(tmp_path / "new" / "open_clip_model.safetensors")
    own = trained[0].state_dict()
    assert kept.keys() == own.keys()
    assert all(torch.equal(kept[name], own[name]) for name in own)
    student = load_student(f"local-dir:{tmp_path / 'new'}", None)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = trained[0].eval().encode_image(pixels, normalize=True)
        assert torch.equal(student.encode_images(pixels), expected)


def test_a_compiled_models_state_and_a_scale_of_one_number_are_taken(trained, config, tmp_path):
    state = {n: v.half() for n, v in trained[0].state_dict().items()}
    state = {f"module._orig_mod.{name}": value for name, value in state.items()}
    scale = state["module._orig_mod.logit_scale"].reshape(1)
    named = {"model": state | {"module._orig_mod.logit_scale": scale}}  # compiled, by others
    torch.save(named, tmp_path / "w.bin")
    convert(tmp_path / "w.bin", str(config), tmp_path / "new")
    assert load_student(str(tmp_path / "new"), None).scale.shape == ()


@each(
    {"checkpoint of another model": lambda s: (s.clear(), s.update(w=torch.ones(2)))},
    (lambda s: s.pop("module.visual.proj"), "1 missing (visual.proj)"),
    (lambda s: s.update(extra=torch.ones(1)), "1 unexpected (extra)"),
    (lambda s: s.update({"module.visual.proj": torch.ones(8, 8)}), "is (8, 8), the model's"),
    (
        lambda s: s["module.positional_embedding"].resize_(8, 32),  # open_clip would stretch it
        "'positional_embedding' is (8, 32), the model's is (16, 32)",
    ),
    (lambda s: s["module.visual.proj"].fill_(torch.nan), "'visual.proj' holds NaN or infinity"),
)
def test_weights_that_are_not_the_models_are_named(checkpoint, config, tmp_path, given):
    said = refused(WeightsError, convert, checkpoint(how=given), str(config), tmp_path / "new")
    assert re.search("epoch_3.pt as .*was named ViT-B-16: ", str(said))
    assert not (tmp_path / "new").exists()
    return said


class Code:
    """What runs a program when it is unpickled."""

    def __reduce__(self):
        return subprocess.check_call, ([sys.executable, "-c", "open('ran', 'w')"],)


def scripted(file):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)


@each(
    {
        "checkpoint that would run code": lambda f: f.write_bytes(pickle.dumps(Code())),
        "checkpoint without weights": lambda f: torch.save({"epoch": 3}, f),
    },
    (lambda f: None, "does not exist"),
    (lambda f: f.write_bytes(b""), "is no checkpoint of torch"),
    (lambda f: f.write_bytes(b"<html>not found</html>"), "or is damaged; nothing of it was run"),
    (lambda f: torch.save({"state_dict": {}, "x": Code()}, f), "nothing of it was run"),
    (lambda f: torch.save(torch.nn.Linear(2, 2), f), "holds more than tensors"),
    (scripted, "TorchScript"),
    (lambda f: torch.save(torch.ones(2), f), "holds no weights"),
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_what_is_no_checkpoint_is_refused_and_never_run(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "bare" / "epoch_3.pt"
    file.parent.mkdir()
    given(file)
    said = refused(WeightsError, read_checkpoint, file)
    assert not (tmp_path / "ran").exists()
    return said


def test_a_checkpoint_that_was_cut_and_a_folder_that_is_there_are_refused(
    checkpoint, config, tmp_path
):
    file = checkpoint()
    with pytest.raises(StorageError, match="own is there already"):
        convert(file, str(config), config)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match=r"epoch_3.pt is no checkpoint of torch"):
        convert(file, str(config), tmp_path / "new")
    with pytest.raises(WeightsError, match="unknown model 'ViT-B-23'"):
        convert(checkpoint(), "ViT-B-23", tmp_path / "new")
