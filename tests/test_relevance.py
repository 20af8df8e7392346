"""Where a word is seen: the equations against autograd, and that what a map names matters."""

import numpy as np
import pytest
import realworld.models
import tiny
import torch
from PIL import Image
from test_evaluate import CAPTIONS, noise
from torch import nn

from sdslib.lab import relevance
from sdslib.lab.relevance import WHOLE, agreement, maps, student_maps, teacher_maps
from sdslib.miniworld.drawing import COLORS
from sdslib.sets.roles import load_set
from sdslib.show import item_figures
from sdslib.student import load_student
from sdslib.teacher import load_teacher


def by_autograd(student, pixels, direction):
    """Relevance with every attention matrix a leaf, one block after the other written out."""
    visual, kept = student.model.visual, []

    def attention(layer, x):
        parts = nn.functional.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
        q, k, v = (p.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for p in parts)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).requires_grad_()
        weights.retain_grad()
        kept.append(weights)
        return layer.out_proj((weights @ v).transpose(1, 2).flatten(2))

    x = visual.conv1(pixels.clone().requires_grad_()).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
    x = visual.ln_pre(x + visual.positional_embedding)
    for block in visual.transformer.resblocks:
        x = x + attention(block.attn, block.ln_1(x))
        x = x + block.mlp(block.ln_2(x))
    x = visual.ln_post(x)
    pooled = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(1)
    emb = nn.functional.normalize(pooled @ visual.proj, dim=-1)
    (emb @ direction).sum().backward()
    found = torch.eye(x.shape[1])
    for weights in kept:
        found = found + (weights * weights.grad).clamp(min=0).mean(1)[0].detach() @ found
    rows = found[:1] if visual.pool_type == "tok" else found[1:]
    return rows.mean(0)[1:].unflatten(0, visual.grid_size)


@pytest.mark.parametrize("pool", ["tok", "avg"])
def test_a_students_maps_are_the_rollout_of_what_each_word_adds(tmp_path, pool):
    config = tiny.student_config()
    config["vision_cfg"] |= {"pool_type": pool}
    student = load_student(str(tiny.save_student(tmp_path, config)), None)
    caption, image = "a red circle", noise(0).load()
    found = student_maps(student, image, caption)
    with torch.no_grad():
        texts = [caption, "red circle", "a circle", "a red"]
        emb = student.encode_texts(student.tokenize(texts))
    for n in range(4):
        expected = by_autograd(
            student, student.transform(image)[None], emb[0] - (emb[n] if n else 0)
        )
        np.testing.assert_allclose(found[n], expected, rtol=1e-3, atol=1e-7)
    assert not student.training
    assert all(value.grad is None for value in student.parameters())


@pytest.mark.parametrize("tower", ["resnet", "pooled", "timm"])
def test_a_tower_without_maps_is_refused_with_a_sentence(tmp_path, student, tower):
    config = {"resnet": tiny.student_config(vision_cfg=tiny.RESNET), "pooled": tiny.coca_config()}
    if tower == "timm":
        odd = load_student(str(tiny.save_student(tmp_path)), None)
        odd.model.visual.transformer.resblocks[1].attn = nn.Identity()
    else:
        odd = load_student(str(tiny.save_student(tmp_path, config[tower])), None)
    found = maps({"one": student, "odd": odd}, noise(0).load(), CAPTIONS[0])
    assert list(found.by_model) == ["one"]
    assert "its attention says nothing of places" in found.refused["odd"]


def test_a_teachers_map_is_its_mean_attention_to_the_words_tokens(teacher):
    caption, image = "a red circle", noise(0).load()
    found = teacher_maps(teacher, image, caption, draws=4)
    assert found.shape == (4, *tiny.LATENT[1:])
    np.testing.assert_allclose(found[0], found[1:].sum(0), atol=1e-12)
    marks = 1 - found[0]  # what goes to [START], [END] and the padding
    assert ((found > 0).all(), (marks > 0).all()) == (True, True)
    again = teacher_maps(teacher, image, caption, draws=4)
    assert (again == found).all()
    assert not any(m._forward_pre_hooks for m in teacher.unet.modules())
    whole = [layer for name, layer in teacher.unet.named_modules() if name.endswith("attn2")]
    for layer in whole:  # attention that sees no difference shares evenly among all tokens
        layer.to_q.weight.data.zero_()
    try:
        even = teacher_maps(teacher, image, caption, draws=2)
        np.testing.assert_allclose(even[1:], 1 / tiny.CONTEXT, atol=1e-6)
    finally:
        for layer in whole:
            nn.init.xavier_uniform_(layer.to_q.weight)


def test_a_word_of_many_tokens_has_all_of_them_and_one_behind_the_end_none(tmp_path):
    real = load_teacher(str(realworld.models.teacher(tmp_path)))
    caption = "an  extraordinarily photogenic grandmother"
    owner = relevance._words_of_tokens(real, caption)
    assert owner[0] == owner[-1] == -1
    assert set(owner[1:-1]) == {0, 1, 2, 3}
    assert owner[1:-1] == sorted(owner[1:-1])
    assert len(owner) > 6
    found = teacher_maps(real, noise(0).load(), " ".join(["red"] * 90), draws=2)
    assert found.shape[0] == 91
    assert (found[80:] == 0).all()
    assert (found[1:70] > 0).all()


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (2, 2)])
def test_agreement_is_pearsons_r_on_the_coarser_cells(shape):
    rng = np.random.default_rng(0)
    one, other = rng.random((4, 4)), rng.random(shape)
    cells = min(shape, (4, 4))

    def down(m):
        return m.reshape(cells[0], len(m) // cells[0], cells[1], -1).mean((1, 3)).ravel()

    assert agreement(one, other) == pytest.approx(np.corrcoef(down(one), down(other))[0, 1])
    assert agreement(one, one) == pytest.approx(1)
    assert np.isnan(agreement(one, np.ones(shape)))


def test_the_figure_says_how_far_student_and_teacher_agree(student, teacher):
    found = maps({"one": student}, noise(0).load(), CAPTIONS[0], {"teacher": teacher})
    drawn = item_figures.relevance(found)
    r = found.agreements("one", "teacher")
    assert found.names == [WHOLE, *CAPTIONS[0].split()]
    labels = [text.get_text() for text in drawn.axes[0].texts]
    assert [t for t in labels if t[:2] == "r "] == [f"r {v:.2f}".replace("-", "−") for v in r]
    assert {"one", "teacher", *(name.replace(" ", "\n") for name in found.names)} < {*labels}
    assert f"one with the teacher over the whole caption: r {r[0]:.2f}" in drawn.alt


# --- faithfulness --------------------------------------------------------------------------------


def covered(image, cells):
    """The picture with these cells [h, w] in the color of its background."""
    pixels = np.array(image)
    mask = np.kron(cells, np.ones(np.array(pixels.shape[:2]) // cells.shape))[..., None] > 0
    return Image.fromarray(np.where(mask, np.median(pixels, (0, 1)).astype(np.uint8), pixels))


def strongest(seen, share=0.1):
    cells = np.zeros(seen.size)
    cells[np.argsort(-seen.ravel())[: round(share * seen.size)]] = 1
    return cells.reshape(seen.shape)


def cosines(student, images, captions):
    with torch.no_grad():
        emb = student.encode_images(torch.stack([student.transform(image) for image in images]))
        return (emb @ student.encode_texts(student.tokenize(captions)).T).numpy()


@pytest.mark.slow
def test_covering_what_a_map_names_costs_more_than_covering_as_much_elsewhere(drawn):
    """Over 100 items: the caption's region against the same shape elsewhere; and a color's region
    against that of the caption's other color, by what the color adds to the score."""
    student, rng = load_student("data/mini/student", None), np.random.default_rng(0)
    whole, words = [], []
    for item in load_set("mini:winoground").items[::12]:
        image, caption = item.images[0].load(), item.captions[0]
        found, split = student_maps(student, image, caption), caption.split()
        named = strongest(found[0])
        moved = [np.roll(named, rng.integers(1, 8, 2), (0, 1)) for _ in range(5)]
        score = cosines(student, [image, *(covered(image, m) for m in (named, *moved))], [caption])
        lost = (score[0] - score[1:]).ravel()
        whole.append((lost[0], lost[1:].mean()))
        own = [n for n, word in enumerate(split) if word in COLORS]
        if len(own) == 2 and split[own[0]] != split[own[1]]:
            pictures = [image, *(covered(image, strongest(found[1 + n])) for n in own)]
            texts = [caption, *(" ".join([*split[:n], *split[n + 1 :]]) for n in own)]
            score = cosines(student, pictures, texts)
            adds = score[:, :1] - score[:, 1:]  # picture, color
            words.append([(adds[0] - adds[1 + k])[[k, 1 - k]] for k in (0, 1)])
    whole, words = np.array(whole), np.array(words)
    assert len(whole) == 100
    assert (whole[:, 0] > whole[:, 1]).mean() > 0.95
    assert whole[:, 0].mean() > 5 * whole[:, 1].mean()
    assert len(words) > 30
    assert (words[..., 0] > words[..., 1]).mean() > 0.8
