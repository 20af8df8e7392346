"""A student as transformers' `CLIPModel`: the same embeddings, or words that say why not."""

import json
import subprocess
import sys

import pytest
import realworld.models
import realworld.sets
import tiny
import torch
from faults.catalog import each, refused
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPProcessor

from sdslib.arms.trainable import set_trainable
from sdslib.io.images import open_image
from sdslib.io.model_files import PASSPORT, WeightsError
from sdslib.io.storage import read_json
from sdslib.lab import to_transformers
from sdslib.lab.random_models import random_student
from sdslib.student import load_student

WORDS = ["a red circle left of a blue square", "The  small GREEN triangle", "red " * 40]
TEXTS = [
    "A woman’s “suit” &amp; helmet",
    "Zwei naïve  Katzen, 3 ﬁsh!",
    "no " * 90 + "end",
    "ТЕСТ 日本",
]


def saved(folder, preprocess=None, **changes):
    """A tiny student whose config has these entries too, by `vision_cfg`, `text_cfg` or its own."""
    config = tiny.student_config()
    for name, value in changes.items():
        config[name] = config.get(name, {}) | value if isinstance(value, dict) else value
    tiny.save_student(folder, config)
    file = folder / "open_clip_config.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"preprocess_cfg": document["preprocess_cfg"]
                                           | (preprocess or {})}))  # fmt: skip
    return load_student(str(folder), None)


def written(student, folder):
    folder.mkdir()
    return to_transformers.write(student, folder)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A student of photographs with open_clip's own tokenizer, and its other form."""
    folder = tmp_path_factory.mktemp("real")
    student = load_student(str(realworld.models.student(folder / "own")), None)
    written(student, folder / "clip")
    return student, folder / "clip"


def has_lora(student):
    torch.manual_seed(0)
    for _, value in set_trainable(student, "lora+layernorm"):
        value.data.add_(torch.randn_like(value) * 0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quick_gelu": True},
        {"vision_cfg": {"act_kwargs": {"approximate": "tanh"}}},
        {"text_cfg": {"norm_kwargs": {"eps": 1e-3}}},
        {"text_cfg": {"pool_type": "eos", "eos_id": len(tiny.WORDS) + 3}},
        {"vision_cfg": {"mlp_ratio": 2.0, "block_type": "custom", "patch_size": 16}},
        {"nonscalar_logit_scale": True, "embed_dim": 24},
        {"preprocess": {"resize_mode": "squash", "interpolation": "bilinear"}},
    ],
)
def test_embeddings_are_the_students_within_a_hundred_thousandth(tmp_path, changes):
    student = saved(tmp_path / "own", **changes)
    assert written(student, tmp_path / "clip") <= 1e-5
    assert to_transformers.difference(student, tmp_path / "clip", seed=1) <= 1e-5
    made = CLIPModel.from_pretrained(tmp_path / "clip")
    assert made.logit_scale.exp().item() == pytest.approx(student.scale.item())
    kept = read_json(tmp_path / "clip" / PASSPORT)
    assert kept["model"] == student.origin.name
    assert kept["from"]["weights"] == student.embeds()["weights"]


def test_lora_is_merged_and_a_scale_past_100_is_the_100_that_the_student_takes(tmp_path):
    student = saved(tmp_path / "own")
    before = student.encode_images(torch.ones(1, 3, 32, 32))
    has_lora(student)
    student.model.logit_scale.data.fill_(5)
    assert written(student, tmp_path / "clip") <= 1e-5
    assert (student.encode_images(torch.ones(1, 3, 32, 32)) - before).abs().max() > 1e-3
    made = CLIPModel.from_pretrained(tmp_path / "clip")
    assert made.logit_scale.exp().item() == pytest.approx(student.scale.item()) == 100


@each(
    {
        "student that CLIPModel cannot hold": {"vision_cfg": tiny.RESNET | {"patch_size": None}},
        "student with a bias that CLIPModel lacks": {"init_logit_bias": -10.0},
    },
    (tiny.coca_config(), "it is a CoCa"),
    ({"custom_text": True}, "it is a CustomTextCLIP"),
    ({"vision_cfg": {"pool_type": "avg"}}, "its image tower does not read the class token"),
    ({"text_cfg": {"pool_type": "last"}}, "its text tower pools by 'last'"),
    ({"text_cfg": {"pool_type": "eos"}}, "its text tower pools by 'eos'"),
    ({"text_cfg": {"no_causal_mask": True}}, "its words see later ones"),
    ({"vision_cfg": {"image_size": [32, 64]}}, "its pictures or patches are not square"),
    ({"preprocess": {"resize_mode": "longest"}}, "its pictures are padded"),
    ({"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}, "lose their punctuation"),
    ({"vision_cfg": {"ls_init_value": 0.1}}, "no place for 'visual…ls_1.gamma'"),
    ({"vision_cfg": {"qk_norm": True}}, "no place for 'visual…attn.ln_q"),
    ({"vision_cfg": {"no_ln_pre": True}}, "it has no 'vision_model.pre_layrnorm"),
)
def test_what_clip_model_cannot_hold_is_refused_in_words(tmp_path, given):
    student = saved(tmp_path / "own", **given)
    said = refused(WeightsError, written, student, tmp_path / "clip")
    assert "/own stays in open_clip's form: " in str(said)
    return said


@pytest.mark.parametrize("found", [2e-5, float("nan")])
def test_embeddings_that_differ_are_refused(tmp_path, found, monkeypatch):
    student = saved(tmp_path / "own")
    monkeypatch.setattr(to_transformers, "difference", lambda *_: found)
    with pytest.raises(WeightsError, match=rf"differ from it by {found:.1e}, more than 1e-05"):
        written(student, tmp_path / "clip")


@pytest.mark.parametrize("name", ["visual.proj", "text_projection", "positional_embedding"])
def test_the_check_sees_a_weight_that_moved(tmp_path, name):
    student = saved(tmp_path / "own")
    written(student, tmp_path / "clip")
    student.model.get_parameter(name).data[0] *= 1.5
    assert to_transformers.difference(student, tmp_path / "clip") > 1e-5


def test_the_end_of_a_caption_is_found_where_open_clip_finds_it(real, tmp_path):
    """By its own id where that is the highest, else, as id 2 asks, by the highest of a caption."""

    def end(folder):
        return CLIPModel.from_pretrained(folder).config.text_config.eos_token_id

    own = saved(tmp_path / "own")
    written(own, tmp_path / "clip")
    assert end(tmp_path / "clip") == len(tiny.WORDS) + 3
    assert end(real[1]) == 49407
    saved(tmp_path / "more", text_cfg={"vocab_size": len(tiny.WORDS) + 5})
    tokenizer = tiny.build_tokenizer()
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(tmp_path / "more")
    student = load_student(str(tmp_path / "more"), None)
    assert written(student, tmp_path / "highest") <= 1e-5
    assert end(tmp_path / "highest") == 2


def excess(path, side=48):
    """By how many pixels a picture's longer side exceeds the student's, once resized."""
    size = open_image(path).size
    return int(side * max(size) / min(size)) - side


def test_photographs_enter_as_the_students_unless_their_middle_lies_between_two_pixels(real):
    """torchvision rounds to the even pixel there, transformers down: one of four margins."""
    student, folder = real
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    for path in sorted(realworld.sets.PHOTOGRAPHS.iterdir()):
        image = open_image(path)
        pixels = processor(images=image, return_tensors="pt").pixel_values[0]
        same = torch.allclose(pixels, student.transform(image), atol=1e-5)
        assert same == (excess(path) % 4 != 3), path.name


ALONE = """
import sys
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPProcessor
from transformers.image_utils import load_image

found = {}
for folder, captions, *paths in eval(sys.argv[1]):
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    given = dict(padding=True, truncation=True, return_tensors="pt")
    out = model(**processor(text=captions, images=[load_image(p) for p in paths], **given))
    found |= {folder + " image": out.image_embeds, folder + " text": out.text_embeds}
save_file({name: value.detach().contiguous() for name, value in found.items()}, sys.argv[2])
assert not {"sdslib", "open_clip"} & set(sys.modules)
"""


@pytest.mark.slow
def test_transformers_alone_gives_the_embeddings_of_picture_files_and_raw_captions(real, tmp_path):
    drawn = load_student("data/mini/student", None)
    tuned = saved(tmp_path / "own", quick_gelu=True)
    has_lora(tuned)
    folders = [str(real[1]), str(tmp_path / "drawn"), str(tmp_path / "tuned")]
    written(drawn, tmp_path / "drawn")
    written(tuned, tmp_path / "tuned")
    photos = [p for p in sorted(realworld.sets.PHOTOGRAPHS.iterdir()) if excess(p) % 4 != 3]
    square = [str(p) for p in photos if len({*open_image(p).size}) == 1]
    cases = [(real[0], TEXTS, [*map(str, photos)]), (drawn, WORDS, square), (tuned, WORDS, square)]
    told = [(f, texts, *paths) for f, (_, texts, paths) in zip(folders, cases, strict=True)]
    done = [sys.executable, "-c", ALONE, repr(told), str(tmp_path / "found.safetensors")]
    subprocess.run(done, check=True, cwd=tmp_path, env={"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin"})
    found = load_file(tmp_path / "found.safetensors")
    for folder, (student, texts, paths) in zip(folders, cases, strict=True):
        with torch.no_grad():
            images = torch.stack([student.transform(open_image(path)) for path in paths])
            image = student.encode_images(images)
            text = student.encode_texts(student.tokenize(texts))
        torch.testing.assert_close(found[f"{folder} image"], image, atol=1e-5, rtol=0)
        torch.testing.assert_close(found[f"{folder} text"], text, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-quickgelu"])
def test_the_papers_students_fit_at_full_size(tmp_path, name):
    assert written(random_student(name), tmp_path / "clip") <= 1e-5
