"""The student behind its door: strict loading, what trains, and folders that open_clip can read."""

import json
import re
import subprocess
import sys
from functools import cache

import numpy as np
import open_clip
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from realworld import models
from safetensors.torch import load_file, save_file

from sdslib import config, experiment, student
from sdslib.arms.trainable import (
    TRAINABLE,
    interpolate,
    set_trainable,
    trainable_table,
    trained_weights,
)
from sdslib.bridge import Bridge
from sdslib.checks import student_files
from sdslib.checks.captions import VocabularyError
from sdslib.config import FinetuneConfig
from sdslib.io.model_files import WeightsError
from sdslib.lab import random_models
from sdslib.lab.random_models import random_student
from sdslib.student import caption_lengths, load_student

CAPTIONS = ["a red circle left of a blue square", "the small green triangle", "A White Circle"]
KINDS = ("vit", "resnet", "coca")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("students")
    resnet = tiny.student_config(vision_cfg=tiny.RESNET)
    return {
        "vit": tiny.save_student(root / "vit"),
        "resnet": tiny.save_student(root / "resnet", resnet),
        "coca": tiny.save_student(root / "coca", tiny.coca_config()),
    }


@pytest.fixture
def load(folders):
    return lambda kind="vit": load_student(str(folders[kind]), None)


@pytest.fixture
def copied(folders, tmp_path):
    """A ViT folder to spoil."""
    return tiny.save_student(tmp_path / "spoilt")


def pixels(count=4, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def loss_of(one, seed=0):
    tokens = one.tokenize(CAPTIONS)
    emb = one.encode_images(pixels(3, seed)) @ one.encode_texts(tokens).T
    return F.cross_entropy(one.scale * emb, torch.arange(3))


def optimizer_steps(one, chosen, count=2):
    optimizer = torch.optim.AdamW([p for _, p in chosen], lr=1e-2, weight_decay=0.1)
    for seed in range(count):
        optimizer.zero_grad()
        loss_of(one.train(), seed).backward()
        optimizer.step()


# --- embeddings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_open_clips_of_unit_length(load, folders, kind):
    one = load(kind)
    reference, _ = open_clip.create_model_from_pretrained(f"local-dir:{folders[kind]}")
    reference.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folders[kind]}")(CAPTIONS)
    with torch.no_grad():
        image, text = one.encode_images(pixels()), one.encode_texts(one.tokenize(CAPTIONS))
        assert torch.equal(image, reference.encode_image(pixels(), normalize=True))
        assert torch.equal(text, reference.encode_text(tokens, normalize=True))
    torch.testing.assert_close(image.norm(dim=-1), torch.ones(4))
    assert one.width == image.shape[1] == 16


@pytest.mark.parametrize("kind", KINDS)
def test_projecting_the_pooled_output_gives_the_embedding(load, kind):
    one = load(kind)
    pooled = one.pooled_images(pixels())
    assert pooled.shape == (4, one.pooled_width)
    visual = one.model.visual
    projected = visual.attnpool.c_proj(pooled) if kind == "resnet" else pooled @ visual.proj
    torch.testing.assert_close(F.normalize(projected, dim=-1), one.encode_images(pixels()))


def test_patches_enter_the_map_averaged_over_squares_of_the_image_row_by_row(load):
    one = load()
    _, patches = one.encode_patches(pixels())
    rows = patches.unflatten(1, (4, 4))  # 32 pixels in patches of 8
    quarters = [rows[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2))
                for r in (0, 1) for c in (0, 1)]  # fmt: skip
    found = one.map_input(pixels(), "tokens-2").unflatten(1, (one.width, 4)).mT
    torch.testing.assert_close(found, torch.stack(quarters, 1))
    assert one.map_width("tokens-2") == 4 * one.width
    assert torch.equal(one.map_input(pixels(), "tokens-4"), patches.mT.flatten(1))
    torch.testing.assert_close(one.map_input(pixels(), "tokens-1"), patches.mean(1))


def test_pooled_output_passes_gradients_to_the_tower(load):
    one = load()
    chosen = set_trainable(one, "layernorm")
    one.pooled_images(pixels()).sum().backward()
    moved = [n for n, p in chosen if p.grad is not None and p.grad.any()]
    assert any(n.startswith("visual.ln_pre") for n in moved)


def test_scoring_sees_open_clips_own_evaluation_transform_the_same_each_time(load, folders):
    one = load()
    _, train, evaluate = open_clip.create_model_and_transforms(f"local-dir:{folders['vit']}")
    noise = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    assert torch.equal(one.transform(picture), one.transform(picture))
    assert torch.equal(one.transform(picture), evaluate(picture))
    assert not torch.equal(train(picture), evaluate(picture))


def test_scale_is_the_clamped_exponential(load):
    one = load()
    assert one.scale.item() == pytest.approx(1 / 0.07)
    one.model.logit_scale.data.fill_(10.0)
    assert one.scale.item() == 100
    assert one.scale.shape == ()


def test_transform_is_the_folders_preprocessing(load):
    gray = Image.new("RGB", (50, 40), (128, 128, 128))
    out = load().transform(gray)
    assert out.shape == (3, 32, 32)
    assert np.allclose(out, (128 / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(3_000_000, 1), (1, 3_000_000)])
def test_a_picture_of_one_pixels_height_costs_the_transform_no_more_than_its_middle(
    tmp_path, resize_mode, size
):
    folder = tiny.save_student(tmp_path)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = resize_mode
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    blue = Image.new("RGB", size, (0, 0, 255))
    pixels = load_student(f"local-dir:{folder}", None).transform(blue)
    assert tuple(pixels.shape) == (3, 32, 32)
    assert torch.equal(pixels[:, 16, 16], torch.tensor([-2.0, -2.0, 2.0]))


@pytest.mark.parametrize("mark", ["[END]", "[start]", "[PAD]", "[UNK]"])
def test_a_caption_with_a_mark_of_its_own_tokenizer_is_refused(load, mark):
    with pytest.raises(VocabularyError, match=r"a mark of .* tokenizer and no word; write it"):
        load().tokenize([f"a red circle {mark} left of a blue square"])


@pytest.mark.parametrize(
    "text", ["a <end_of_text> b", "A<START_OF_TEXT>b", "a &lt;end_of_text&gt; b"]
)
def test_a_caption_with_a_mark_of_clips_tokenizer_is_refused(text):
    one = random_models.random_student("ViT-B-32", "meta")
    plain = one.tokenize(["a <|endoftext|> b"])  # no mark of open_clip's own tokenizer
    assert int((plain == plain.max()).sum()) == 1
    with pytest.raises(VocabularyError, match="_of_text>', a mark"):
        one.tokenize([text])


def test_caption_lengths_end_at_the_first_padding_token():
    rows = [[2, 5, 9, 0, 0], [2, 5, 6, 7, 9], [2, 9, 9, 9, 9], [3, 3, 3, 3, 3], [0, 0, 9, 0, 0]]
    assert caption_lengths(torch.tensor(rows)).tolist() == [4, 5, 2, 1, 4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["layernorm", "lora"])
def test_short_texts_have_the_embeddings_of_padded_ones(load, kind, names):
    one = load(kind)
    optimizer_steps(one, set_trainable(one, names))
    tokens = one.tokenize(["a red circle", "A White Circle"])
    with torch.no_grad():
        torch.testing.assert_close(one.encode_short_texts(tokens), one.encode_texts(tokens))


# --- words ---------------------------------------------------------------------------------------


def test_tokens_are_padded_ids_with_the_end_token_highest(load):
    tokens = load().tokenize(["A red  circle"])
    words = {w: i + 3 for i, w in enumerate(tiny.WORDS)}
    end = len(tiny.WORDS) + 3
    expected = [2, words["a"], words["red"], words["circle"], end]
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [expected + [0] * (tiny.CONTEXT - 5)]


def test_words_outside_the_vocabulary_are_named(load):
    one = load()
    with pytest.raises(VocabularyError) as caught:
        one.tokenize(["a red circle", "a purple Dog left of a red dog"])
    message = str(caught.value)
    assert message.startswith("caption 'a purple Dog left of a red dog' has words outside ")
    assert re.search(r"'s vocabulary: 'purple'.*, 'Dog'.*, 'dog'", message)
    assert "/vit's vocabulary" in message


def test_a_word_after_the_cut_is_named_too(load):
    with pytest.raises(VocabularyError, match="'zebra'"):
        load().tokenize(["red " * 30 + "zebra"])


def test_a_byte_pair_vocabulary_is_open(tmp_path):
    cfg = tiny.student_config()
    cfg["text_cfg"] = {k: v for k, v in cfg["text_cfg"].items() if k != "hf_tokenizer_name"}
    cfg["text_cfg"]["vocab_size"] = 49408
    one = load_student(str(tiny.save_student(tmp_path / "bpe", cfg)), None)
    tokens = one.tokenize(["a purple zebra", "naïve café ☕"])
    assert tokens.max() == 49407
    one.save(tmp_path / "again")
    assert torch.equal(load_student(str(tmp_path / "again"), None).tokenize(["a dog"]),
                       one.tokenize(["a dog"]))  # fmt: skip


# --- what trains ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [*TRAINABLE, "layernorm+projection", "lora+bias"])
def test_only_what_was_declared_trainable_moves(load, kind, names):
    one = load(kind)
    chosen = set_trainable(one, names)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    optimizer_steps(one, chosen)
    moved = {n for n, v in one.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved <= {name for name, _ in chosen}
    towers = {name.startswith("visual.") for name in moved}
    one_sided = {"image-tower": {True}, "text-tower": {False}}
    if kind == "resnet" and names == "lora":
        one_sided["lora"] = {False}
    assert towers == one_sided.get(names, {True, False})
    assert not any(name.startswith(("text_decoder", "logit_scale")) for name in moved)


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_pattern_finds_every_norm_layer_and_nothing_else(load, kind):
    one = load(kind)
    norms = (torch.nn.LayerNorm, torch.nn.modules.batchnorm._BatchNorm)
    expected = {
        f"{module_name}.{name}"
        for module_name, module in one.model.named_modules()
        if isinstance(module, norms) and not module_name.startswith("text_decoder")
        for name, _ in module.named_parameters()
    }
    assert {name for name, _ in set_trainable(one, "layernorm")} == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"), [("ViT-B-32", 65_536), ("ViT-B-16-quickgelu", 65_536), ("ViT-L-14", 140_800)]
)
def test_layernorms_of_real_towers_have_the_known_size(name, count):
    cfg = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(**cfg)
    one = student.Student.__new__(student.Student)
    torch.nn.Module.__init__(one)
    one.model, one.origin = model, student.Origin(name, cfg)
    chosen = set_trainable(one, "layernorm")
    assert sum(value.numel() for _, value in chosen) == count


def test_last_block_is_the_highest_of_each_tower(load):
    names = {name.rsplit("resblocks.")[1][0] for name, _ in set_trainable(load(), "last-block")}
    assert names == {"1"}
    resnet = [n for n, _ in set_trainable(load("resnet"), "last-block") if n.startswith("visual.")]
    assert all(name.startswith("visual.layer4.0.") for name in resnet)


def test_logit_scale_trains_only_when_asked(load):
    one = load()
    assert "logit_scale" not in dict(set_trainable(one, "all"))
    chosen = set_trainable(one, "layernorm", train_scale=True)
    before = one.scale.item()
    optimizer_steps(one, chosen)
    assert chosen[-1][0] == "logit_scale"
    assert one.scale.item() != before


def test_batchnorm_statistics_stay_when_the_rest_trains(load):
    one = load("resnet").train()
    assert one.training
    assert not any(
        module.training for module in one.modules() if isinstance(module, torch.nn.BatchNorm2d)
    )


def test_choosing_again_freezes_the_first_choice(load):
    one = load()
    set_trainable(one, "all", train_scale=True)
    chosen = dict(set_trainable(one, "projection"))
    assert set(chosen) == {"visual.proj", "text_projection"}
    assert {n for n, p in one.model.named_parameters() if p.requires_grad} == set(chosen)


def test_unknown_and_empty_sets_are_refused(load, folders):
    with pytest.raises(
        ValueError, match=r"unknown trainable 'layernrom'; did you mean 'layernorm'"
    ):
        set_trainable(load(), "layernrom")
    one = load()
    one.model.visual.proj = one.model.text_projection = None
    with pytest.raises(ValueError, match=r"'projection' matches no parameter of .*/vit"):
        set_trainable(one, "projection")


def test_every_set_of_the_config_is_known_here():
    assert tuple(TRAINABLE) == config.TRAINABLE


def test_trainable_table_counts_what_trains(load):
    one = load()
    set_trainable(one, "layernorm", train_scale=True)
    bridge = Bridge(16, (4, 4, 4))
    table = trainable_table(one, bridge).set_index("group")
    assert table.loc["image tower", "parameters"] == 2 * 32 * 6  # pre, post, and two a block
    assert table.loc["text tower", "parameters"] == 2 * 32 * 5
    assert table.loc["bridge", "parameters"] == 16 * 64 + 64
    assert table.loc["logit scale", "tensors"] == 1
    assert table["share"].iloc[:-1].sum() == pytest.approx(1)
    assert table["share"].iloc[-1] == 1


# --- LoRA ----------------------------------------------------------------------------------------


def test_lora_starts_as_the_identity_and_is_drawn_from_its_seed(load):
    plain, first, again, other = load(), load(), load(), load()
    for one, seed in ((first, 1), (again, 1), (other, 2)):
        torch.manual_seed(99 + seed)  # the global generator must not matter
        set_trainable(one, "lora", seed=seed)
    with torch.no_grad():
        assert torch.equal(first.encode_images(pixels()), plain.encode_images(pixels()))
    torch.testing.assert_close(first.encode_images(pixels()), plain.encode_images(pixels()))
    draws = [dict(set_trainable(one, "lora")) for one in (first, again, other)]
    name = "visual.transformer.resblocks.0.attn.lora_A.default.weight"
    assert torch.equal(draws[0][name], draws[1][name])
    assert not torch.equal(draws[0][name], draws[2][name])


@pytest.mark.parametrize("names", ["layernorm+projection", "lora"])
def test_interpolation_takes_what_was_added_back_by_a_share(load, names):
    """What a weight gained in training shrinks by the share, for LoRA in the merged weights."""

    def merged_weights():
        return {name: value.clone() for name, value in student._merged(one.model).items()}

    one = load()
    set_trainable(one, names)
    start, before = trained_weights(one), merged_weights()
    with torch.no_grad():
        for value in one.model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.1)
    after = merged_weights()
    interpolate(one, start, 0.25)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    for name, value in merged_weights().items():
        expected = before[name] + 0.25 * (after[name] - before[name])
        torch.testing.assert_close(value, expected if name in moved else before[name])


def test_lora_adds_twice_ba_to_the_weights_it_adapts(load):
    """alpha / rank = 16 / 8 (Hu et al. 2022, section 4.1); A starts uniform within 1 / sqrt(in)."""
    one, plain = load(), load().model.state_dict()
    set_trainable(one, "lora")
    named = dict(one.model.named_parameters())
    pairs = {n.replace(".lora_A.", "."): (v, named[n.replace(".lora_A.", ".lora_B.")])
             for n, v in named.items() if ".lora_A." in n}  # fmt: skip
    for a, b in pairs.values():
        bound = a.shape[1] ** -0.5
        assert 0.9 * bound < a.abs().max() <= bound
        assert a.mean().abs() < 0.2 * bound
        torch.nn.init.normal_(b, generator=torch.Generator().manual_seed(len(pairs)))
    merged = student._merged(one.model)
    gained = {n: v - plain[n] for n, v in merged.items() if not torch.equal(v, plain[n])}
    assert len(gained) == len(pairs) > 0
    products = [2 * (b @ a).detach() for a, b in pairs.values()]
    for value in gained.values():
        fits = [
            p for p in products if p.shape == value.shape and torch.allclose(p, value, atol=1e-5)
        ]
        assert len(fits) == 1


def test_evaluation_sees_the_weights_of_the_latest_step(load):
    one = load()
    chosen = set_trainable(one, "lora")
    optimizer_steps(one, chosen, 2)
    scored = []
    for _ in range(3):
        live = one.eval().encode_images(pixels()).detach()
        with torch.no_grad():
            scored.append(one.encode_images(pixels()))
        torch.testing.assert_close(scored[-1], live)
        optimizer_steps(one, chosen, 1)
    assert (scored[0] - scored[1]).abs().max() > 1e-4
    assert (scored[1] - scored[2]).abs().max() > 1e-4


def test_lora_moves_attention_and_mlp_and_leaves_the_base_alone(load):
    one = load()
    chosen = set_trainable(one, "lora")
    optimizer_steps(one, chosen, 3)
    live = one.eval().encode_images(pixels())
    assert (live - load().encode_images(pixels())).abs().max() > 1e-3
    with torch.no_grad():  # the merged copy follows the weights
        torch.testing.assert_close(one.encode_images(pixels()), live)
    unmoved = [n for n, p in chosen if ".lora_B." in n and not p.any()]
    assert unmoved == []


# --- saving --------------------------------------------------------------------------------------

FRESH = """
import sys, torch, open_clip
from safetensors.torch import load_file, save_file
folder, *captions = sys.argv[1:]
pixels, found = load_file(folder + "/pixels.safetensors")["pixels"], {}
for name in ("vit-layernorm", "vit-lora+layernorm", "resnet-all", "coca-lora"):
    source = f"local-dir:{folder}/{name}"
    model, _ = open_clip.create_model_from_pretrained(source)
    model.eval()
    tokens = open_clip.get_tokenizer(source)(captions)
    with torch.no_grad():
        image = model.encode_image(pixels, normalize=True)
        text = model.encode_text(tokens, normalize=True)
    found |= {f"{name}.image": image, f"{name}.text": text, f"{name}.scores": image @ text.T}
save_file(found, folder + "/fresh.safetensors")
assert "sdslib" not in sys.modules
"""


# --- other families ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A student of a family, built at the first time of asking."""

    @cache
    def built(name):
        return tiny.save_student(tmp_path_factory.mktemp(name), tiny.family_config(name))

    return lambda name: load_student(str(built(name)), None)


LAST = {
    "siglip": "visual.trunk.blocks.5",
    "convnext": "visual.trunk.stages.3.blocks.1",
    "eva": "visual.trunk.blocks.11",
    "mobileclip": "visual.trunk.stages.3.blocks.1",
}
SMALL = [*("siglip", "convnext"),
         *(pytest.param(n, marks=pytest.mark.slow) for n in ("eva", "mobileclip"))]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_layernorms_of_a_family_are_all_its_norms_and_its_last_block_is_of_the_last_stage(
    family, name
):
    one = family(name)
    norms = {
        f"{where}.{own}"
        for where, module in one.model.named_modules()
        if "Norm" in type(module).__name__
        for own, _ in module.named_parameters(recurse=False)
    }
    assert {n for n, _ in set_trainable(one, "layernorm")} == norms
    blocks = {re.match(r".*blocks\.\d+", n)[0] for n, _ in set_trainable(one, "last-block")}
    assert {block.removeprefix("text.") for block in blocks} == {
        LAST[name], "transformer.resblocks.1"}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_a_family_has_a_projection_that_gives_its_embedding_or_says_that_it_has_none(family, name):
    one = family(name).eval()
    x = torch.randn(2, 3, *one.image_size, generator=torch.Generator().manual_seed(0))
    if name == "siglip":
        with pytest.raises(ValueError, match="no final projection; use bridge_input='projected'"):
            one.pooled_images(x)
        return
    head = dict(one.model.visual.named_parameters())
    weight = head[one._projection()]
    bias = head.get(one._projection().replace("weight", "bias"), torch.zeros(len(weight)))
    with torch.no_grad():
        own = F.normalize(one.pooled_images(x) @ weight.T + bias, dim=-1)
        torch.testing.assert_close(own, one.encode_images(x))


def test_a_siglip_is_taught_by_its_own_loss_with_scale_and_bias_as_they_are(family):
    one = family("siglip")
    one.model.logit_scale.data.fill_(4.76)
    assert one.scale.item() == pytest.approx(np.exp(4.76), rel=1e-6)  # past 100, as SigLIP's is
    chosen = dict(set_trainable(one, "layernorm", train_scale=True))
    assert [*chosen][-2:] == ["logit_scale", "logit_bias"]
    image, text = one.encode_images(pixels(3)), one.encode_texts(one.tokenize(CAPTIONS))
    loss = one.contrast(image, text).mean()
    expected = open_clip.loss.SigLipLoss()(image, text, one.scale, one.bias)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(value.grad is not None for value in chosen.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", LAST)
def test_a_family_is_fine_tuned_on_photographs_and_saved_as_open_clip_reads_it(
    name, photos, tmp_path
):
    text = {"context_length": 77, "vocab_size": models.VOCABULARY}
    config = tiny.family_config(name, **text)
    del config["text_cfg"]["hf_tokenizer_name"]
    folder = models.student(tmp_path / "student", config=config)
    settings = FinetuneConfig(
        arm="hard-negatives", negatives="swap", train_data=photos.train_data, device="cpu",
        clip_model=f"local-dir:{folder}", benchmark=photos.winoground, eval_items=4, keep="none",
        validation="none", steps=2, batch_size=4, warmup=1, eval_every=0, trainable="all",
        logit_scale="trained", runs=str(tmp_path / "runs"),
    )  # fmt: skip
    run = experiment.finetune(settings)
    assert np.isfinite(run.history()["loss"]).all()
    ours = load_student(str(run.weights), None)
    theirs = open_clip.create_model(f"local-dir:{run.weights}").eval()
    x = torch.randn(2, 3, *ours.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(ours.encode_images(x), F.normalize(theirs.encode_image(x), dim=-1))
    before = load_file(folder / "open_clip_model.safetensors")["logit_scale"]
    assert not torch.equal(ours.weights()["logit_scale"], before)


@pytest.mark.slow
def test_saved_students_are_the_same_to_open_clip_alone_bit_for_bit(load, tmp_path):
    expected = {}
    for name in ("vit-layernorm", "vit-lora+layernorm", "resnet-all", "coca-lora"):
        kind, names = name.split("-")
        one = load(kind)
        optimizer_steps(one, set_trainable(one, names))
        one.save(tmp_path / name)
        with torch.no_grad():
            one.eval()
            image, text = one.encode_images(pixels()), one.encode_texts(one.tokenize(CAPTIONS))
        expected |= {f"{name}.image": image, f"{name}.text": text, f"{name}.scores": image @ text.T}
    save_file({"pixels": pixels()}, tmp_path / "pixels.safetensors")
    command = [sys.executable, "-c", FRESH, str(tmp_path), *CAPTIONS]
    subprocess.run(command, check=True, cwd=tmp_path)
    fresh = load_file(tmp_path / "fresh.safetensors")
    assert fresh.keys() == expected.keys()
    assert [name for name in fresh if not torch.equal(fresh[name], expected[name])] == []


def test_saving_leaves_the_student_as_it_was_and_can_be_repeated(load, tmp_path):
    one = load()
    chosen = set_trainable(one, "lora")
    optimizer_steps(one, chosen)
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.save(tmp_path / "saved")
    one.save(tmp_path / "saved")
    assert before.keys() == one.model.state_dict().keys()
    assert all(torch.equal(v, before[n]) for n, v in one.model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    weights = load_file(tmp_path / "saved" / student_files.WEIGHTS)
    assert weights.keys() == load().model.state_dict().keys()
    assert load_student(str(tmp_path / "saved"), None).width == 16


def test_half_precision_weights_are_lifted_to_float32(tmp_path):
    half = tiny.save_student(tmp_path / "half", dtype=torch.float16)
    one = load_student(f"local-dir:{half}", None)
    stored = load_file(half / student_files.WEIGHTS)
    for name, value in one.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, stored[name].float())


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("no/such/folder", None), "student folder 'no/such/folder' does not exist"),
        (
            ("ViT-B-32-quickgelu", "laion2b_s34b_b79k"),
            "weights 'laion2b_s34b_b79k' were trained with GELU and ViT-B-32-quickgelu has the "
            "other activation; use ViT-B-32",
        ),
    ],
)
def test_names_that_give_no_student_are_refused(names, said):
    """The others, and folders that were spoilt, are in tests/faults/test_models.py."""
    with pytest.raises(WeightsError, match=f"^{said}$"):
        load_student(*names)


def test_named_model_takes_a_safetensors_file(tmp_path, monkeypatch, folders):
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS, "tiny-vit", json.loads(
            (folders["vit"] / student_files.CONFIG).read_text())["model_cfg"],
    )  # fmt: skip
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda source: None)
    one = load_student("tiny-vit", str(folders["vit"] / student_files.WEIGHTS))
    expected = load_student(str(folders["vit"]), None)
    assert torch.equal(one.encode_images(pixels()), expected.encode_images(pixels()))


# Parameters of the published weights (of CoCa without its decoder's buffers).
PAPERS = {
    "RN50-quickgelu": 102_007_137,
    "ViT-B-32-quickgelu": 151_277_313,
    "ViT-B-16-quickgelu": 149_620_737,
    "ViT-L-14-quickgelu": 427_616_513,
    "ViT-L-14-336-quickgelu": 427_944_193,
    "ViT-B-16": 149_620_737,
    "coca_ViT-B-32": 253_560_065,
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_students_are_built_at_full_size_without_weights(name):
    one = random_student(name, "meta")
    assert sum(p.numel() for p in one.parameters()) == PAPERS[name]
    found = set_trainable(one, "layernorm")
    share = sum(p.numel() for _, p in found) / PAPERS[name]
    assert 1e-4 < share < 1e-2


def test_a_student_of_random_weights_repeats_by_seed_and_has_the_folders_shape(folders):
    folder = str(folders["vit"])
    one, again, other = (random_student(folder, seed=seed) for seed in (5, 5, 6))
    loaded = load_student(folder, None)
    assert {n: v.shape for n, v in one.state_dict().items()} == {
        n: v.shape for n, v in loaded.state_dict().items()
    }
    found = [s.encode_images(pixels()) for s in (one, again, other, loaded)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])
    assert one.tokenize(CAPTIONS[:1]).shape == loaded.tokenize(CAPTIONS[:1]).shape


def test_a_student_of_random_weights_has_to_be_known():
    with pytest.raises(WeightsError, match="unknown model 'ViT-B-23'"):
        random_student("ViT-B-23")
