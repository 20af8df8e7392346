"""What runs share: the same numbers with it and without, and no file of it is ever trusted."""

import io
import os
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import realworld
import saving
import tiny
import torch
from faults.catalog import fault
from PIL import Image
from safetensors.torch import load_file

from sdslib import evaluate, experiment
from sdslib.benchmarks import Benchmark, Item
from sdslib.config import FinetuneConfig
from sdslib.io import pictures as pictures_room
from sdslib.io import shared
from sdslib.io.images import ImageRef
from sdslib.io.shared import SharedWarning
from sdslib.student import Student, load_student
from sdslib.tables import Caution
from sdslib.teacher import Teacher, load_teacher

SMALL = {"steps": 2, "batch_size": 4, "warmup": 1, "bridge_pairs": 16, "validation": "none"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(shared.SWITCH, str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(place):
    return sorted(path.name for path in place.glob("*"))


def kinds(place):
    return {name.partition("-")[0] for name in names(place)}


def counted(calls, value=1.0):
    """What makes a tensor, and notes that it was asked."""
    return lambda: calls.append(1) or {"x": torch.full((3,), value)}


def get(calls, what="a", value=1.0):
    return shared.tensors("kind", lambda: {"what": what}, counted(calls, value))["x"]


# --- runs ----------------------------------------------------------------------------------------


def computed(config, cache, monkeypatch):
    monkeypatch.setenv(shared.SWITCH, str(cache))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Caution)
        return experiment.finetune(config)


def assert_same(run, other):
    """The same weights, history and scores, to the last bit."""
    for file in sorted(run.weights.glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(other.weights / file.name)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    rows = [one.history().drop(columns="seconds") for one in (run, other)]
    pd.testing.assert_frame_equal(*rows, check_exact=True)
    assert run.score_names() == other.score_names()
    for name in run.score_names():
        ours, theirs = run.scores(name), other.scores(name)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
        assert ours.attrs | {"seconds": 0} == theirs.attrs | {"seconds": 0}


@pytest.mark.parametrize("arm", ["sds", "latent-regression"])
@pytest.mark.parametrize("where", ["mini", "photographs"])
def test_a_run_is_the_same_with_what_others_left_with_nothing_left_and_without(
    tmp_path, monkeypatch, photos, where, arm
):
    data = {"keep": "none", "eval_items": 12}
    if where == "photographs":
        data = {"train_data": photos.train_data, "benchmark": photos.winoground} | photos.models
    caches = {"none": "off", "cold": tmp_path / "cache", "warm": tmp_path / "cache"}
    runs = {}
    for name, cache in caches.items():
        config = FinetuneConfig(**SMALL | data, arm=arm, sds_weight=0.5, runs=str(tmp_path / name))
        if name == "warm" and arm == "sds":  # the other arm encodes pairs on the way
            monkeypatch.setattr(Teacher, "encode_images", lambda *_: pytest.fail("encoded"))
        runs[name] = computed(config, cache, monkeypatch)
    assert_same(runs["cold"], runs["none"])
    assert_same(runs["warm"], runs["none"])
    assert kinds(tmp_path / "cache") >= {"embeddings", "latents", "scores"}


def test_another_run_of_the_same_models_encodes_no_image_before_its_first_step(
    place, tmp_path, monkeypatch
):
    data = SMALL | {"keep": "none", "eval_items": 12, "runs": str(tmp_path)}
    computed(FinetuneConfig(**data), place, monkeypatch)
    encode, asked = Student.encode_images, []
    monkeypatch.setattr(
        Student,
        "encode_images",
        lambda self, x: asked.append(torch.is_grad_enabled()) or encode(self, x),
    )
    run = computed(FinetuneConfig(**data, sds_weight=0.5), place, monkeypatch)
    assert asked[:2] == [True, True]  # both steps; then the trained student is scored
    assert not any(asked[2:])
    assert {name for name in run.score_names() if name.startswith("untouched")}


def test_deleting_it_between_or_during_runs_changes_nothing(place, tmp_path, monkeypatch):
    data = SMALL | {"keep": "none", "eval_items": 12}
    first = computed(FinetuneConfig(**data, runs=str(tmp_path / "a")), place, monkeypatch)
    tensors = shared.tensors

    def deleting(*args):
        shutil.rmtree(place, ignore_errors=True)
        return tensors(*args)

    monkeypatch.setattr(shared, "tensors", deleting)
    second = computed(FinetuneConfig(**data, runs=str(tmp_path / "b")), place, monkeypatch)
    assert_same(first, second)


def test_a_caution_is_said_of_shared_scores_too(place):
    student = load_student("local-dir:data/mini/student", None)
    benchmark = grid([noise(0), noise(1)], ("a red circle", "A red  circle"))
    for _ in range(2):
        with pytest.warns(Caution, match="captions that are one to the model"):
            experiment.score(student, benchmark)
    assert len([name for name in names(place) if name.startswith("scores")]) == 1


# --- what decides --------------------------------------------------------------------------------


def noise(seed):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)


def ref(pixels, name="picture.png"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return ImageRef(name, buffer.getvalue)


def grid(pictures, captions):
    items = (Item("0", tuple(map(ref, pictures)), tuple(captions)),)
    return Benchmark("some", "grid", items, 1, "here")


CAPTIONS = ("a red circle", "a blue square")


def decided(student, benchmark, **options):
    known = evaluate.clip_scorer(student, **options).decided_by(benchmark)
    return shared.key(known)


@pytest.fixture
def student(tmp_path):
    return load_student(f"local-dir:{tiny.save_student(tmp_path / 'student')}", None)


def test_a_weight_a_pixel_a_caption_a_transform_and_a_batch_each_give_another_key(student):
    pictures = [noise(0), noise(1)]
    usual = decided(student, grid(pictures, CAPTIONS))
    assert decided(student, grid(pictures, CAPTIONS)) == usual
    pictures[1][5, 5, 0] ^= 1
    found = [
        decided(student, grid(pictures, CAPTIONS)),
        decided(student, grid([noise(0), noise(1)], reversed(CAPTIONS))),
        decided(student, grid([noise(0), noise(1)], CAPTIONS), batch_size=32),
        decided(student, grid([noise(0), noise(1)], CAPTIONS), mode="pad"),
    ]
    student.model.visual.preprocess_cfg["mean"] = (0.5, 0.5, 0.25)
    found.append(decided(student, grid([noise(0), noise(1)], CAPTIONS)))
    with torch.no_grad():
        next(student.parameters()).view(-1)[0] += 1e-7
    found.append(decided(student, grid([noise(0), noise(1)], CAPTIONS)))
    assert len({usual, *found}) == 7


def test_another_tokenizer_over_the_same_weights_gives_another_key(student, tmp_path):
    usual = decided(student, grid([noise(0), noise(1)], CAPTIONS))
    other = load_student(f"local-dir:{tmp_path / 'student'}", None)
    vocab = other.tokenizer.tokenizer.backend_tokenizer.get_vocab()
    swapped = [word for word in tiny.WORDS if word not in ("red", "blue")]
    assert "red" in vocab
    other.tokenizer.tokenizer = tiny.build_tokenizer(["red", "blue", *swapped])
    assert decided(other, grid([noise(0), noise(1)], CAPTIONS)) != usual


def test_the_teachers_vae_and_size_decide_about_latents_and_its_unet_does_not(tmp_path):
    teacher = load_teacher(str(tiny.save_teacher(tmp_path / "teacher")))
    usual = shared.key(teacher.encodes())
    with torch.no_grad():
        next(teacher.unet.parameters()).view(-1)[0] += 1
    assert shared.key(teacher.encodes()) == usual
    teacher.image_size *= 2
    sized = shared.key(teacher.encodes())
    with torch.no_grad():
        next(teacher.vae.parameters()).view(-1)[0] += 1e-7
    assert len({usual, sized, shared.key(teacher.encodes())}) == 3


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (os, "environ", {"MKL_CBWR": "COMPATIBLE"}),
        (shared, "code_hash", lambda: "other"),
        (shared, "versions", lambda: {"torch": "0"}),
        (shared, "_processor", lambda: ["another"]),
        (torch, "get_num_threads", lambda: 77),
        (torch, "get_default_dtype", lambda: torch.float64),
        (torch, "is_autocast_enabled", lambda kind: True),
    ],
)
def test_code_libraries_processor_and_settings_of_torch_decide_too(monkeypatch, where, name, value):
    usual = shared.key({"what": 1})
    assert shared.key({"what": 1}) == usual
    monkeypatch.setattr(where, name, value)
    assert shared.key({"what": 1}) != usual


# --- files ---------------------------------------------------------------------------------------


def test_what_was_made_once_is_read_and_off_makes_it_every_time(place, monkeypatch):
    calls = []
    assert torch.equal(get(calls), get(calls))
    assert len(calls) == 1
    monkeypatch.setenv(shared.SWITCH, shared.OFF)
    get(calls)
    assert len(calls) == 2
    assert len(names(place)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\x80\x04" + data[2:],
    ],
)
@fault("damaged file of what runs share")
def test_a_damaged_file_is_told_of_dropped_and_made_again(place, damage):
    calls = []
    get(calls)
    (path,) = place.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(SharedWarning) as told:
        assert torch.equal(get(calls), torch.ones(3))
    assert len(calls) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(calls)
    assert len(calls) == 2
    return told[0].message


def test_two_files_of_one_key_are_both_right_and_a_damaged_one_hides_no_sound_one(place):
    calls = []
    get(calls)
    (path,) = place.iterdir()
    damaged = path.with_name(path.name.replace(path.name.split(".")[1], "0" * 32))
    damaged.write_bytes(b"nothing")
    with pytest.warns(SharedWarning):
        get(calls)
    assert (len(calls), damaged.exists(), path.exists()) == (1, False, True)


def write_often(place):
    for number in range(150):
        for what in range(3):
            assert get([], what, float(what)).tolist() == [float(what)] * 3
        if number % 10 == 0:
            for path in place.glob("kind-*"):
                path.unlink(missing_ok=True)


def test_processes_that_write_read_and_delete_at_once_get_what_is_right(place):
    children = [saving.begun(write_often, place) for _ in range(3)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert not [name for name in names(place) if name.startswith(".part")]


def die_while_writing():
    os.replace = lambda *_: os.kill(os.getpid(), 9)
    get([])


def test_a_writer_that_is_killed_leaves_a_part_that_nobody_reads_and_that_goes(place, monkeypatch):
    child = saving.begun(die_while_writing)
    child.join(60)
    assert child.exitcode == -9
    (part,) = place.iterdir()
    assert part.name.startswith(".part-")
    calls = []
    get(calls)
    assert len(calls) == 1
    os.utime(part, (0, 0))
    get(calls, "another")
    assert not part.exists()


def test_what_was_read_longest_ago_goes_first(place, monkeypatch):
    calls = []
    for number, what in enumerate("abc"):
        get(calls, what)
        for path in place.iterdir():
            if path.stat().st_mtime > 1000:
                os.utime(path, (number, number))
    size = next(place.iterdir()).stat().st_size
    get(calls, "a")  # reading makes it young again
    monkeypatch.setattr(shared, "MOST_BYTES", 3 * size)
    monkeypatch.setattr(shared, "_LARGEST", 1)
    get(calls, "d")
    assert len(names(place)) == 3
    del calls[:]
    for what in "acd":
        get(calls, what)
    assert not calls
    get(calls, "b")
    assert calls


def test_what_is_too_large_is_not_kept(place, monkeypatch):
    monkeypatch.setattr(shared, "MOST_BYTES", 100)
    calls = []
    get(calls)
    get(calls)
    assert len(calls) == 2


@fault("folder of what runs share that cannot be written")
def test_where_nothing_can_be_written_a_run_does_without_and_says_so_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(shared.SWITCH, str(tmp_path / "file" / "cache"))
    calls = []
    with pytest.warns(SharedWarning) as told:
        get(calls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(calls)
    assert len(calls) == 2
    return told[0].message


def test_by_default_it_lies_beside_the_runs_where_git_does_not_look(monkeypatch):
    monkeypatch.delenv(shared.SWITCH)
    root = shared.project_root()
    assert shared.folder() == root / "reports" / "cache"
    assert "/reports/cache/" in (root / ".gitignore").read_text().splitlines()


# --- pictures ------------------------------------------------------------------------------------


def shown(student, pictures, **options):
    """The batches of pixels that a scorer hands to the student."""
    scorer = evaluate.ClipScorer(student, 4, 2, options.get("mode"))
    return list(scorer._batches(pictures))


@pytest.mark.parametrize("mode", [None, "pad"])
def test_photographs_come_back_from_bytes_to_the_last_bit_in_the_same_batches(
    place, photos, monkeypatch, mode
):
    student = load_student(photos.clip_model, None)
    files = sorted((realworld.sets.PHOTOGRAPHS).rglob("*.jpg"))[:18]
    pictures = [ImageRef(file.name, file.read_bytes) for file in files]
    cold = shown(student, pictures, mode=mode)
    monkeypatch.setattr(ImageRef, "load", lambda self: pytest.fail("decoded again"))
    warm = shown(student, pictures, mode=mode)
    monkeypatch.undo()
    monkeypatch.setenv(shared.SWITCH, shared.OFF)
    none = shown(student, pictures, mode=mode)
    assert [len(part) for part in warm] == [4, 4, 4, 4, 2]
    for parts in zip(cold, warm, none, strict=True):
        assert torch.equal(parts[0], parts[2])
        assert torch.equal(parts[1], parts[2])
    assert all(
        value.dtype == torch.uint8 for f in place.iterdir() for value in load_file(f).values()
    )


def test_pixels_that_are_no_levels_are_kept_as_they_are(place, student, monkeypatch):
    plain = student.transform
    monkeypatch.setattr(student, "transform", lambda image: plain(image).cumsum(-1))
    pictures = [ref(noise(seed)) for seed in range(3)]
    cold, warm = shown(student, pictures), shown(student, pictures)
    assert torch.equal(cold[0], warm[0])
    (kept,) = (load_file(file)["pixels"] for file in place.iterdir())
    assert torch.equal(kept, torch.stack([student.transform(one.load()) for one in pictures]))


def test_a_set_that_would_leave_no_room_for_others_is_decoded_every_time(
    place, student, monkeypatch
):
    monkeypatch.setattr(pictures_room, "_MOST_BYTES", 3 * 3 * tiny.SIZE**2 - 1)
    shown(student, [ref(noise(seed)) for seed in range(3)])
    assert not place.exists()
    shown(student, [ref(noise(seed)) for seed in range(2)])
    assert kinds(place) == {"pixels"}
