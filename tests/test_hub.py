"""Through a Hub on loopback: what is loaded is what was asked for, or one line says why not."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny
import torch
from faults.catalog import each, fault
from finished import finish
from hub import layouts
from hub.server import STRANGER, TOKEN, Hub
from safetensors.torch import load_file, save_file
from saving import flip

from sdslib import student, teacher
from sdslib.checks import fingerprints, student_files, teacher_files
from sdslib.checks.captions import VocabularyError
from sdslib.checks.guard import guard
from sdslib.checks.notebooks import BaselineConfig
from sdslib.config import FinetuneConfig
from sdslib.io import hub, model_files
from sdslib.io.model_files import WeightsError
from sdslib.io.paths import without_places
from sdslib.io.sources import AccessError
from sdslib.io.wording import ParameterError
from sdslib.lab import baseline
from sdslib.show import modelcard

SD, CLIP = "CompVis/stable-diffusion-v1-4", "laion/CLIP-ViT-B-16"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    layouts.stable_diffusion(root / "sd")
    layouts.open_clip_model(root / "clip")
    return root


@pytest.fixture
def served(made, tmp_path, monkeypatch):
    """A Hub with Stable Diffusion 1.4 and a CLIP, an empty cache, and no token."""
    there = Hub(tmp_path / "served")
    shutil.copytree(made / "sd", there.folder(SD), dirs_exist_ok=True)
    shutil.copytree(made / "clip", there.folder(CLIP), dirs_exist_ok=True)
    point_at(there.url, tmp_path / "cache", monkeypatch)
    yield there
    there.stop()


def point_at(url, cache, monkeypatch):
    from huggingface_hub import constants

    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.01))
    hub.look.cache_clear()


@pytest.fixture
def offline(monkeypatch):
    def switch():
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        hub.look.cache_clear()

    return switch


def refused(call, *args, **options):
    with pytest.raises((WeightsError, AccessError)) as caught:
        call(*args, **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def weights_fetched(served):
    return [line for line in served.asked if line.startswith("GET /lfs/")]


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize(
    "shape",
    [
        "stable-diffusion-v1-4",
        "stable-diffusion-2-1",
        pytest.param("stable-diffusion-v1-5", marks=pytest.mark.slow),
    ],
)
def test_a_teacher_of_the_true_layout_is_the_same_from_the_hub_and_from_a_folder(
    served, shape, tmp_path
):
    local = layouts.stable_diffusion(served.folder(f"who/{shape}"), shape)
    there = teacher.load_teacher(f"who/{shape}")
    assert same(there, teacher.load_teacher(str(local)))
    assert teacher_files.fingerprints(f"who/{shape}") == teacher_files.fingerprints(str(local))
    stored = load_file(local / "vae/diffusion_pytorch_model.safetensors")
    old, new = ("encoder.mid_block.attentions.0." + n for n in ("query.weight", "to_q.weight"))
    assert torch.equal(there.vae.state_dict()[new], stored[old])
    assert there.is_velocity == (shape == "stable-diffusion-2-1")
    assert len(weights_fetched(served)) == 3  # no pickle, no fp16, no checkpoint, no checker
    assert there.embed_texts(["a man rides a horse"]).shape == (1, 77, layouts.TEXT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "files", "tokens", "pads"),
    [
        ("stable-diffusion-xl-base-1.0", 4, (77 + 1, 2 * layouts.TEXT), "!"),
        ("stable-diffusion-3.5-medium", 6, (77 + 256 + 1, 2 * layouts.TEXT), "!"),
        ("FLUX.1-dev", 7, (512 + 1, 2 * layouts.TEXT), "<pad>"),
    ],
)
def test_a_later_family_of_the_true_layout_is_the_same_from_the_hub_and_from_a_folder(
    served, shape, files, tokens, pads, offline
):
    local = layouts.later_teacher(served.folder(f"who/{shape}"), shape)
    before = teacher_files.fingerprints(f"who/{shape}")
    assert not weights_fetched(served)
    assert set(teacher_files.latent_shape(f"who/{shape}")[1:]) == {layouts.SIDE}
    there = teacher.load_teacher(f"who/{shape}")
    assert same(there, teacher.load_teacher(str(local)))
    assert len(weights_fetched(served)) == files
    assert before == teacher_files.fingerprints(str(local))
    assert there.embed_texts(["a man rides a horse! {~}"]).shape == (1, *tokens)  # T5 lacks braces
    assert [one.pad_token for one in there.tokenizers[:2]] == [layouts.END, pads]
    with pytest.raises(VocabularyError, match="a mark of"):
        there.embed_texts(["a man <unk> horse" if "xl" not in shape else "a <|endoftext|> man"])
    assert there.latent_shape == (there.vae.config.latent_channels, layouts.SIDE, layouts.SIDE)
    z, t = torch.randn(1, *there.latent_shape), torch.tensor([500])
    assert there.predict_noise(z, t, there.embed_texts(["a man"])).isfinite().all()
    offline()
    assert teacher_files.weights_problem(f"who/{shape}") is None
    assert teacher_files.fingerprints(f"who/{shape}") == before
    if shape.endswith("xl-base-1.0"):  # the others have no denoiser in half precision
        assert same(teacher.load_teacher(str(local), variant="fp16"), there) is False
    else:
        problem = teacher_files.weights_problem(str(local), variant="fp16")
        assert problem.endswith("; leave out variant")


@pytest.mark.parametrize("repo", [CLIP, "laion/CLIP-ViT-B-32", "timm/ViT-B-16-SigLIP"])
def test_a_student_of_the_true_layout_is_the_same_from_the_hub_and_from_a_folder(served, repo):
    if repo.endswith("SigLIP"):
        layouts.siglip(served.folder(repo))
    elif repo != CLIP:
        layouts.open_clip_model(served.folder(repo), repo.removeprefix("laion/CLIP-"))
    local, remote = str(served.folder(repo)), f"hf-hub:{repo}"
    one, other = student.load_student(remote, None), student.load_student(local, None)
    assert same(one, other)
    assert one.origin.name == repo
    assert torch.equal(one.tokenize(["a man"]), other.tokenize(["a man"]))
    assert student_files.fingerprints(remote, None) == student_files.fingerprints(local, None)
    assert len(weights_fetched(served)) == 1
    assert (one.bias is None) == ("SigLIP" not in repo)


def test_weights_are_told_before_they_are_fetched_and_offline_as_online(served, offline):
    config = FinetuneConfig(clip_model=f"hf-hub:{CLIP}", teacher=SD)
    before = fingerprints.weights_fingerprints(config, needed=True)
    assert before.keys() == {"student", "teacher"}
    assert not weights_fetched(served)
    teacher.load_teacher(SD)
    student.load_student(f"hf-hub:{CLIP}", None)
    offline()
    assert fingerprints.weights_fingerprints(config, needed=True) == before
    assert teacher.load_teacher(SD).name == SD


def test_weights_that_move_on_main_are_another_run_and_one_process_sees_one_of_them(served):
    config = FinetuneConfig(clip_model=f"hf-hub:{CLIP}", teacher=SD)
    before = fingerprints.weights_fingerprints(config)
    old = student.load_student(f"hf-hub:{CLIP}", None)
    layouts.move_weights(served.folder(CLIP) / student_files.WEIGHTS)
    layouts.move_weights(served.folder(SD) / UNET)
    assert fingerprints.weights_fingerprints(config) == before
    assert same(student.load_student(f"hf-hub:{CLIP}", None), old)
    hub.look.cache_clear()  # another process
    after = fingerprints.weights_fingerprints(config)
    assert after["student"] != before["student"]
    assert after["teacher"] != before["teacher"]
    assert not same(student.load_student(f"hf-hub:{CLIP}", None), old)


def test_a_commit_that_moves_no_weights_makes_no_new_run_and_an_old_one_can_be_named(served):
    before, old = teacher_files.fingerprints(SD), served.commit(SD)
    (served.folder(SD) / "README.md").write_text("moved")
    hub.look.cache_clear()
    assert teacher_files.fingerprints(SD) == before
    layouts.move_weights(served.folder(SD) / UNET)
    hub.look.cache_clear()
    assert teacher_files.fingerprints(SD) != before
    assert teacher_files.fingerprints(SD, old) == before


def blob(served, name, repo=SD):
    found = hub.cached(repo)
    return (hub.cache_folder(repo) / "snapshots" / found.commit / name).resolve()


@pytest.mark.parametrize("name", [UNET, "unet/config.json"])
def test_a_damaged_file_of_the_cache_is_dropped_and_fetched_once_more(served, name):
    teacher.load_teacher(SD)
    flip(blob(served, name))
    assert same(teacher.load_teacher(SD), teacher.load_teacher(str(served.folder(SD))))
    assert sum(line == "GET /lfs/" + blob(served, UNET).name for line in served.asked) == (
        2 if name == UNET else 1
    )


@fault("file damaged in the cache")
def test_a_damaged_file_of_the_cache_is_named_offline(served, offline):
    teacher.load_teacher(SD)
    flip(blob(served, UNET))
    offline()
    said = refused(teacher.load_teacher, SD)
    assert said.startswith(f"teacher {SD}: the cached {UNET}")
    assert f"Delete models--CompVis--stable-diffusion-v1-4/blobs/{blob(served, UNET).name}" in said
    assert said == f"teacher {teacher_files.weights_problem(SD)}"
    return said


@fault("file damaged on its way, twice")
def test_a_file_damaged_on_its_way_is_fetched_once_more_and_then_refused(served):
    served.fault("GET /lfs/", "flip")
    teacher.load_teacher(SD)
    layouts.move_weights(served.folder(SD) / UNET)
    hub.look.cache_clear()
    served.fault("GET /lfs/", "flip", 2)
    said = refused(teacher.load_teacher, SD)
    teacher.load_teacher(SD)  # nothing damaged was left behind
    return said


def test_a_connection_that_drops_in_the_middle_of_a_file_is_taken_up_again(served):
    served.fault("GET /lfs/", "drop")
    assert same(teacher.load_teacher(SD), teacher.load_teacher(str(served.folder(SD))))


@each(
    {
        "gated model without a token": lambda served: served.gated.add(SD),
        "gated model whose terms were not accepted": lambda served: (
            served.gated.add(SD) or STRANGER
        ),
        "model that is not there, or private": lambda served: served.private.add(SD),
        "revision that is not there": "v9",
        "busy Hub": lambda served: served.fault("/api/", "429", 9),
        "failing Hub": lambda served: served.fault("/api/", "500", 9),
    },
    (lambda served: served.stop(), "the Hub cannot be reached (ConnectError"),
)
def test_each_cause_of_a_refusal_has_its_own_words(served, given, monkeypatch):
    """Given is a revision, or what happens to the Hub, and with which token it is asked."""
    if callable(given) and (token := given(served)):
        monkeypatch.setenv("HF_TOKEN", token)
    said = refused(teacher.load_teacher, SD, None if callable(given) else given)
    assert said.startswith(f"teacher {SD}")
    assert "give teacher a folder" in said or "give a folder" in said
    return said


def test_a_gated_model_is_read_with_a_token_and_then_from_the_cache_without(served, monkeypatch):
    served.gated.add(SD)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    teacher.load_teacher(SD)
    monkeypatch.delenv("HF_TOKEN")
    hub.look.cache_clear()
    assert teacher.load_teacher(SD).name == SD


@pytest.mark.parametrize("status", ["429", "503", "500"])
def test_a_hub_that_is_busy_for_a_moment_is_asked_again(served, status):
    served.fault("/api/models", status, 2)
    served.fault("HEAD ", status, 2)
    assert teacher.load_teacher(SD).name == SD


@fault("Hub that never answers")
def test_an_answer_that_never_comes_is_told_of_and_given_up(served, monkeypatch, capfd):
    monkeypatch.setenv("SDS_HUB_PATIENCE", "0.6")
    monkeypatch.setattr(hub, "WORD_S", 0.1)
    served.fault("/api/models", "hang", 1)
    said = refused(teacher.load_teacher, SD)
    assert f"still waiting for the Hub: {SD}" in capfd.readouterr().err
    return said


def remove(folder, *patterns):
    for file in [file for pattern in patterns for file in folder.glob(pattern)]:
        file.unlink(missing_ok=True)


@each(
    {
        "repository without a scheduler": ["scheduler/*"],
        "repository with half precision alone": ["*/*model.safetensors"],
        "repository with a pickled teacher alone": ["*/*.safetensors"],
    },
    (["unet/*n_pytorch_model.safetensors"],
     f"{SD} has no {UNET}; there are 'unet/diffusion_pytorch_model.bin'"),
)  # fmt: skip
def test_a_layout_is_judged_by_its_listing_alike_by_guard_and_loader(served, given):
    folder = served.folder(SD)
    remove(folder, *given)
    said = refused(teacher.load_teacher, SD)
    assert not weights_fetched(served)
    fetched = [line for line in served.asked if "/resolve/" in line]
    assert all("model_index.json" in line for line in fetched)
    with pytest.raises(ParameterError) as caught:
        guard({"teacher": str(folder)})
    (problem,) = caught.value.problems
    assert problem.endswith(said.removeprefix(f"{SD} "))
    assert teacher_files.weights_problem(str(folder)).endswith(said.removeprefix(f"{SD} "))
    return said


def test_the_fp16_variant_is_taken_from_the_hub_and_from_a_folder(served):
    folder = served.folder(SD)
    remove(folder, "*/*model.safetensors", "*/*.bin")
    guard({"teacher": str(folder), "variant": "fp16"})
    there = teacher.load_teacher(SD, variant="fp16")
    assert same(there, teacher.load_teacher(str(folder), variant="fp16"))
    stored = load_file(folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert all(torch.equal(there.unet.state_dict()[n], v.float()) for n, v in stored.items())
    assert teacher_files.weights_problem(SD, variant="fp16") is None


@fault("variant that is not cached, without a network")
def test_a_variant_that_is_not_cached(served, offline):
    offline()
    said = refused(teacher.load_teacher, SD, variant="fp16")
    assert "Hub cannot be reached" in said
    return said


@fault("repository with a pickled student alone")
def test_a_student_with_a_pickle_alone_is_refused_before_it_is_fetched(served):
    (served.folder(CLIP) / student_files.WEIGHTS).unlink()
    said = refused(student.load_student, f"hf-hub:{CLIP}", None)
    assert f"{CLIP} has no {student_files.WEIGHTS}; there are open_clip_pytorch_model.bin" in said
    assert "convert open_clip_pytorch_model.bin open_clip_pytorch_model --model MODEL" in said
    assert not weights_fetched(served)
    return said


@pytest.mark.parametrize("what", ["student", "teacher"])
def test_the_doctors_command_brings_what_is_missing(served, tmp_path, what, monkeypatch):
    revision = served.commit(SD)
    ask = {
        "student": lambda: student_files.weights_problem(f"hf-hub:{CLIP}", None),
        "teacher": lambda: teacher_files.weights_problem(SD, revision),
    }[what]
    command = ask().split("`")[1]
    assert f"--revision {revision}" in command or what == "student"
    arguments = [word.strip("'") for word in command.split()[1:]]
    program = "from huggingface_hub.cli.hf import main; main()"
    environment = {"HF_ENDPOINT": served.url, "HF_HUB_CACHE": str(tmp_path / "cache")}
    environment |= {"HF_HUB_OFFLINE": "0", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ask() is None
    assert not any(line.endswith(".bin") for line in served.asked)


def test_no_hub_is_asked_for_a_name_of_a_folder_that_is_not_here():
    assert not hub.is_repo("data/zeroshot")
    assert hub.is_repo("facebook/winoground")


def test_an_edited_config_beside_the_same_weights_is_another_run(tmp_path):
    folder = tiny.save_student(tmp_path / "student")
    configs = [c(clip_model=f"local-dir:{folder}") for c in (FinetuneConfig, BaselineConfig)]
    before = [baseline.weights_fingerprints(c)["student"] for c in configs]
    file = folder / student_files.CONFIG
    document = json.loads(file.read_text())
    document["preprocess_cfg"]["mean"] = [0.4, 0.5, 0.5]
    file.write_text(json.dumps(document))
    after = [baseline.weights_fingerprints(c)["student"] for c in configs]
    assert after[0] != before[0]
    assert after == [after[0]] * 2
    assert before == [before[0]] * 2


def test_a_push_goes_through_and_holds_no_place_of_this_machine(served, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # plain LFS
    pairs = f"{tmp_path}/captions.json::{tmp_path}/train2017"
    run = finish(tmp_path / "runs", weights=True, train_data=pairs)
    url = modelcard.push(run, "tester/student")
    folder = served.folder("tester/student")
    assert url.endswith("tester/student")
    assert "tester/student" in served.private
    sent = {p.name for p in folder.iterdir()}
    assert {"README.md", student_files.CONFIG, student_files.WEIGHTS} <= sent
    assert (folder / student_files.WEIGHTS).read_bytes() == (
        run.weights / student_files.WEIGHTS
    ).read_bytes()
    assert str(tmp_path) not in "".join(p.read_text() for p in folder.glob("*.[mj]*"))
    assert "captions.json::" in (folder / "README.md").read_text()


def test_what_is_handed_on_holds_no_place_of_this_machine():
    stays = {"c": "https://host/a/b", "d": "a/b", "e": 3}
    given = {"a": "local-dir:/home/me/models/clip", "b": ["/x/y/captions.json::/x/y/train2017"]}
    found = without_places(given | stays | {"f": "winoground:~/w/t.parquet"})
    told = {"a": "local-dir:models/clip", "b": ["y/captions.json::y/train2017"]}
    assert found == told | stays | {"f": "winoground:w/t.parquet"}


def shared(state):
    return state | {"a": (one := torch.arange(4.0)), "b": one, "c": torch.ones(4, 4).t()}


@pytest.mark.parametrize("form", [dict, shared])
def test_the_command_that_converts_a_teachers_pickle_works_on_every_form(
    form, tmp_path, monkeypatch
):
    state = {"weight": torch.randn(3, 4), "bias": torch.randn(3)}
    torch.save(form(state), tmp_path / "unet.bin")
    program = model_files.conversion("unet/unet.bin").split('python -c "')[1].partition('"')[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "the command", "exec"), {})
    found = load_file(tmp_path / "unet.safetensors")
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_the_guard_names_the_command_and_the_model_for_a_checkpoint(tmp_path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "epoch_3.pt")
    with pytest.raises(ParameterError, match=r"convert \S+epoch_3.pt epoch_3 --model ViT-B-32,"):
        guard({"clip_model": "ViT-B-32", "clip_pretrained": str(tmp_path / "epoch_3.pt")})


def test_a_file_in_place_of_a_students_folder_is_called_a_file(tmp_path):
    file = tmp_path / "open_clip_model.safetensors"
    save_file({"x": torch.ones(1)}, file)
    with pytest.raises(ParameterError, match="is a file; name the model and the file"):
        guard({"clip_model": str(file)})
    assert "is a file; name the model" in refused(student.load_student, str(file), None)
