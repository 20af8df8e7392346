"""The real-shaped world itself: every set loads by its loader, and the tokenizers are CLIP's."""

import warnings
from collections import Counter

import open_clip
import pytest
import torch
from realworld import models, sets
from transformers import AutoTokenizer

from sdslib.benchmarks import load_benchmark
from sdslib.miniworld import drawing
from sdslib.pairs import load_pairs
from sdslib.student import load_student
from sdslib.teacher import load_teacher


def test_the_photographs_are_small_and_of_many_kinds():
    files = sorted(sets.PHOTOGRAPHS.iterdir())
    committed = [*files, *(p for p in sets.HERE.iterdir() if p.is_file())]
    assert sum(path.stat().st_size for path in committed) < 2_000_000
    kinds, shapes = Counter(), set()
    for path in files:
        with sets.Image.open(path) as image:
            kinds[image.format, image.mode] += 1
            kinds["turned"] += image.getexif().get(0x0112, 1) != 1
            shapes.add((image.width > image.height) - (image.width < image.height))
            shapes.add("tiny" if max(image.size) <= 64 else "")
    assert sum(count for kind, count in kinds.items() if kind != "turned") == 38
    for kind in (("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("WEBP", "RGB")):
        assert kinds[kind], kind
    assert kinds["turned"] == 2
    assert shapes >= {-1, 0, 1, "tiny"}


@pytest.mark.parametrize(
    ("name", "pairs", "captions"),
    [("train_data", 20, 100), ("val_data", 10, 50), ("karpathy", 20, 100)],
)
def test_pairs_load_with_five_captions_an_image(photos, name, pairs, captions):
    found = load_pairs(getattr(photos, name))
    assert (len(found), len(found.all_captions())) == (pairs, captions)
    for i in range(pairs):
        assert set(found.captions(i)) == set(sets.CAPTIONS[f"{int(found.ids[i]):012d}"])
        assert found.image(i).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "kind", "items", "captions"),
    [
        ("winoground", "grid", 16, 2),
        ("winoground_jsonl", "grid", 16, 2),
        ("aro_relation", "choice", 10, 2),
        ("aro_attribution", "choice", 8, 2),
        ("coco_order", "choice", 50, 5),
        ("sugarcrepe", "choice", 21, 2),
        ("zeroshot", "classes", 14, 4),
    ],
)
def test_every_set_loads_by_its_own_loader(photos, name, kind, items, captions):
    found = load_benchmark(getattr(photos, name))
    assert (found.kind, len(found.items)) == (kind, items)
    assert {len(item.captions) for item in found.items} == {captions}
    assert found.partial == (name != "zeroshot")
    if name != "coco_order":  # a shuffle may give the caption back
        assert not found.duplicates()
    for item in found.items:
        for ref in item.images:
            assert min(ref.load().size) > 8


def test_the_parts_of_photographs_are_enough_to_hold_some_out(photos):
    found = load_pairs(photos.many_pairs)
    assert (len(found), len(found.all_captions())) == (120, 600)
    assert len({found.ref(i).key for i in range(120)}) == 120


def test_both_layouts_of_winoground_hold_the_same_pictures(photos):
    first, second = (
        load_benchmark(photos.winoground),
        load_benchmark(photos.winoground_jsonl),
    )
    for one, other in zip(first.items, second.items, strict=True):
        assert (one.captions, one.tags) == (other.captions, other.tags)
        assert [ref.key for ref in one.images] == [ref.key for ref in other.images]


def test_no_training_image_is_in_a_test_set(photos):
    train, val = (load_pairs(source).coco_ids for source in (photos.train_data, photos.val_data))
    assert all(train)
    assert not set().union(*train) & set().union(*val)


def test_the_tokenizers_are_clips_and_agree(photos):
    student, teacher = load_student(photos.clip_model, None), load_teacher(photos.teacher)
    assert isinstance(student.tokenizer, open_clip.SimpleTokenizer)
    assert student.tokenizer.vocab_size == len(teacher.tokenizer) == 49_408
    assert teacher.tokenizer.model_max_length == 77
    captions = [c for five in sets.CAPTIONS.values() for c in five]
    ours = teacher.tokenizer(captions, padding="max_length", max_length=77)["input_ids"]
    theirs = student.tokenize(captions)
    for row, other in zip(torch.tensor(ours), theirs, strict=True):
        end = int((other == 49_407).nonzero()[0])
        assert torch.equal(row[: end + 1], other[: end + 1])
        assert (row[end:] == 49_407).all()
        assert (other[end + 1 :] == 0).all()
    # known ids of CLIP's vocabulary
    assert theirs[0, 0] == 49_406
    assert student.tokenize(["a photo of a cat"])[0, :7].tolist() == [
        49_406, 320, 1_125, 539, 320, 2_368, 49_407]  # fmt: skip


def test_the_models_load_without_a_word_and_differ_by_seed(photos, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student, teacher = (
            load_student(photos.clip_model, None),
            load_teacher(photos.teacher),
        )
    image = load_pairs(photos.train_data).image(0)
    assert student.encode_images(student.transform(image)[None]).shape == (1, 32)
    assert teacher.latent_shape == (4, 8, 8)
    other = load_student(f"local-dir:{models.student(tmp_path / 'other', seed=1)}", None)
    tokens = student.tokenize(["a cat"])
    assert not torch.equal(student.encode_texts(tokens), other.encode_texts(tokens))


def test_the_teachers_folder_holds_the_files_of_a_stable_diffusion(photos):
    folder = photos.root / "stable-diffusion-tiny" / "tokenizer"
    assert sorted(path.name for path in folder.iterdir()) == [
        "merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json"]  # fmt: skip
    assert type(AutoTokenizer.from_pretrained(folder)).__name__ == "CLIPTokenizer"


def test_no_caption_is_one_of_the_mini_world():
    known = set(drawing.vocabulary())
    words = [set(c.lower().strip(".").split()) for five in sets.CAPTIONS.values() for c in five]
    assert not [caption for caption in words if caption <= known]
