"""CE-CLIP, FSC-CLIP and one like DeGLA, against loops over their papers' equations in float64."""

import copy
import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import realworld
import reference
import tiny
import torch
import torch.nn.functional as F
from test_train import SomePairs, moved, state

from sdslib import experiment
from sdslib.arms import rival_losses, rivals
from sdslib.arms.controls import false_captions, several_false
from sdslib.arms.trainable import set_trainable
from sdslib.checks.guard import guard
from sdslib.checks.models import gives_tokens
from sdslib.config import ARMS, FinetuneConfig
from sdslib.io.wording import ParameterError
from sdslib.pairs import batches
from sdslib.student import load_student
from sdslib.train import Loop, Models, objective

RIVALS = [name for name, arm in ARMS.items() if arm.several]
THERE = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
FALSE = ["a green circle", "the blue square on a triangle", "a small red circle"]
RAGGED = [["a blue circle"] * n for n in (3, 1, 0, 2)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the papers' equations, one number at a time -------------------------------------------------


def shares(own, false):
    top = max([own, *false])
    weights = [math.exp(x - top) for x in [own, *false]]
    return [weight / sum(weights) for weight in weights]


def choice(own, false):
    return -math.log(shares(own, false)[0])


def ranks(owns, falses, most=10.0):
    gaps = [[own - x for x in false] for own, false in zip(owns, falses, strict=True)]
    known = [gap for some in gaps for gap in some]
    threshold = min(max(sum(known) / max(1, len(known)), 0), most)
    return [sum(max(0, threshold - g) for g in some) / max(1, len(some)) for some in gaps]


def calibrated(own, false, focus=2.0, smoothing=0.02):
    found = 0.0
    for place, p in enumerate(shares(own, false) if false else ()):
        label = (place == 0) * (1 - smoothing) + smoothing / (1 + len(false))
        found -= label * (1 - p) ** focus * math.log(p)
    return found


def local(patches, words, scale):
    exps = []
    for word in words:
        near = [float(word @ patch) for patch in patches]
        weights = [(x - min(near)) / (max(near) - min(near)) for x in near]
        seen = sum(w / sum(weights) * patch for w, patch in zip(weights, patches, strict=True))
        exps.append(scale * float(word @ seen) / float(word.norm() * seen.norm()))
    return max(exps) + math.log(sum(math.exp(x - max(exps)) for x in exps))


def each(loss, logits, there=THERE):
    return [loss(float(row[0]), [float(x) for x in row[1:][there[i]]])
            for i, row in enumerate(logits)]  # fmt: skip


@pytest.mark.parametrize("size", [0.1, 3.0, 30.0])
def test_the_losses_are_the_papers_loops(size):
    logits = size * draw(4, 4, seed=1)
    falses = [row[1:][there].tolist() for row, there in zip(logits, THERE, strict=True)]
    for got, expected in (
        (rival_losses.own_caption_loss(logits, THERE), each(choice, logits)),
        (rival_losses.calibrated_loss(logits, THERE), each(calibrated, logits)),
        (rival_losses.rank_loss(logits, THERE), ranks(logits[:, 0].tolist(), falses)),
    ):
        assert got.tolist() == pytest.approx(expected, abs=1e-12)
        assert got[2] == 0


def test_local_logits_are_the_loop_and_padding_says_nothing():
    patches, words = draw(3, 5, 8, seed=1), draw(3, 6, 8, seed=2)
    real = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]]).bool()
    got = rival_losses.local_logits(patches, words, real, torch.tensor(7.0))
    expected = [local(patches[i], words[i][real[i]], 7.0) for i in range(3)]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    one_patch = rival_losses.local_logits(patches[:, :1], words, real, torch.tensor(7.0))
    assert one_patch.isfinite().all()


@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_values_and_gradients_are_finite_where_similarities_are_extreme(size, sign):
    for there in (THERE, torch.zeros_like(THERE), torch.ones_like(THERE)):
        logits = torch.full((4, 4), -size * sign)
        logits[:, 0] = size * sign
        logits.requires_grad_()
        found = [loss(logits, there) for loss in (rival_losses.own_caption_loss,
                 rival_losses.rank_loss, rival_losses.calibrated_loss)]  # fmt: skip
        (slope,) = torch.autograd.grad(torch.stack(found).sum(), logits)
        assert torch.stack(found).isfinite().all()
        assert slope.isfinite().all()
        assert (slope[~there.any(1)] == 0).all()
        assert (slope[:, 1:][~there] == 0).all()
    still = torch.ones(2, 3, 4, requires_grad=True)  # every patch alike
    value = rival_losses.local_logits(still, torch.ones(2, 5, 4), torch.ones(2, 5).bool(), 100.0)
    (slope,) = torch.autograd.grad(value.sum(), still)
    assert value.isfinite().all()
    assert slope.isfinite().all()


# --- the terms -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rivals")
    resnet = tiny.student_config(vision_cfg=tiny.RESNET)
    return {
        "vit": tiny.save_student(root / "vit"),
        "resnet": tiny.save_student(root / "resnet", resnet),
        "coca": tiny.save_student(root / "coca", tiny.coca_config()),
    }


def how_many(caption):
    """How many false captions it has: none, one, two or three."""
    return sum(map(ord, caption)) % 4


def negative(caption, seed):
    known, count = FALSE, how_many(caption)
    return known[seed % count] if count else caption


def settings(arm, **changes):
    usual = {"steps": 3, "batch_size": 4, "negatives_each": 3, "warmup": 0, "eval_every": 0}
    return FinetuneConfig(arm=arm, **(usual | changes))


def models(folder, trainable="all"):
    student = load_student(f"local-dir:{folder}", None)
    start = copy.deepcopy(student)
    trained = [value for _, value in set_trainable(student, trainable)]
    return Models(student, trained, negative=negative, untouched=start)


def a_batch(student):
    return next(batches(SomePairs(), student.transform, 4, 0, range(1)))


def expected(arm, some, batch, weight):
    """The arm's loss of each pair by loops: embeddings of one caption at a time, in float64."""
    student, old, scale = some.student, some.untouched, float(some.student.scale)
    wrong = several_false(some, batch, settings(arm))
    with torch.no_grad():
        texts, before = (
            [[one.encode_texts(one.tokenize([c]))[0].double() for c in (own, *false)]
             for own, false in zip(batch.captions, wrong, strict=True)]
            for one in (student, old)
        )  # fmt: skip
        images, kept = (one.encode_images(batch.pixels).double() for one in (student, old))
        patches = student.encode_patches(batch.pixels)[1].double()
    falses = [text for row in texts for text in row[1:]] if arm != "fsc-clip" else ()
    base = reference.contrastive(images, [row[0] for row in texts], scale, falses)
    sims = [[scale * float(images[i] @ text) for text in row] for i, row in enumerate(texts)]
    if arm == "ce-clip":
        within = [[scale * float(row[0] @ text) for text in row[1:]] for row in texts]
        rank = ranks([row[0] for row in sims], [row[1:] for row in sims])
        extra = [0.3 * choice(s[0], w) + 0.2 * r
                 for s, w, r in zip(sims, within, rank, strict=True)]  # fmt: skip
    elif arm == "fsc-clip":
        near = []
        for i, false in enumerate(wrong):
            found = [words_of(student, text) for text in (batch.captions[i], *false)]
            near.append([local(patches[i], words, scale) for words in found])
        extra = [0.5 * calibrated(s[0], s[1:]) + 0.2 * calibrated(n[0], n[1:])
                 for s, n in zip(sims, near, strict=True)]  # fmt: skip
    else:
        extra = []
        for i, row in enumerate(texts):
            by_text = [10 * float(row[0] @ text) for text in (before[i][0], *row[1:])]
            grounded = choice(sims[i][0], sims[i][1:]) + choice(by_text[0], by_text[1:])
            pairs = [(images[i], kept[i]), *zip(row, before[i], strict=True)]
            moves = sum(float((a - b).square().sum()) for a, b in pairs)
            extra.append(0.1 * grounded + 1.28 * moves)
    return [one + weight * more for one, more in zip(base, extra, strict=True)]


def words_of(student, text):
    with torch.no_grad():
        tokens = student.tokenize([text])
        _, words, real = student.encode_words(tokens)
    assert int(real.sum()) == len(text.split()) + 1  # and the end
    return words[0][real[0]].double()


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("arm", RIVALS)
def test_a_term_is_the_papers_objective(folders, arm, weight):
    some = models(folders["vit"])
    with torch.no_grad():  # the student has moved from where it began
        for value in some.trained:
            value += 0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    batch = a_batch(some.student)
    counts = {len(false) for false in several_false(some, batch, settings(arm))}
    assert 0 in counts
    assert len(counts) > 2
    _, terms = objective(some, batch, None, None, settings(arm, negative_weight=weight))
    assert terms["clip"].tolist() == pytest.approx(expected(arm, some, batch, weight), rel=2e-5)


@pytest.mark.parametrize("arm", RIVALS)
def test_where_no_caption_has_a_false_one_what_is_left_is_l_clip(folders, arm):
    some = replace(models(folders["vit"]), negative=lambda caption, seed: caption)
    batch = a_batch(some.student)
    loss, terms = objective(some, batch, None, None, settings(arm))
    alone = objective(some, batch, None, None, settings("clip-only"))[1]
    torch.testing.assert_close(terms["clip"], alone["clip"])
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in some.trained)


def test_false_captions_of_a_pair_are_distinct_drawn_by_its_seed_and_begin_with_the_one(folders):
    some, one = models(folders["vit"]), settings("ce-clip", negatives_each=1)
    batch, three = a_batch(some.student), settings("ce-clip")
    found = several_false(some, batch, three)
    assert found == several_false(some, batch, three)
    assert [len(set(texts)) for texts in found] == [*map(how_many, batch.captions)]
    firsts = false_captions(some, batch, three)
    assert [(*texts, c)[0] for texts, c in zip(found, batch.captions, strict=True)] == firsts
    assert several_false(some, batch, one) == [texts[:1] for texts in found]
    other = settings("ce-clip", seed=5)
    assert any(several_false(some, batch, other)[i] != texts for i, texts in enumerate(found))


def test_places_keep_each_row_with_its_own_pair():
    rows = torch.arange(10.0)
    values, taken = rivals.in_places(rows, RAGGED, settings("degla"))
    assert values.tolist() == [[0, 4, 5, 6], [1, 7, 0, 0], [2, 0, 0, 0], [3, 8, 9, 0]]
    assert torch.equal(taken, THERE)


@pytest.mark.parametrize("arm", RIVALS)
def test_training_moves_the_student_and_not_what_it_was(folders, arm):
    some = models(folders["vit"], "layernorm")
    before = [state(module) for module in (some.student, some.untouched)]
    rows = list(Loop(settings(arm), some, SomePairs()))
    after = [state(module) for module in (some.student, some.untouched)]
    assert all(math.isfinite(row.loss) and row.grad_norm > 0 for row in rows)
    assert moved(before[0], after[0])
    assert moved(before[1], after[1]) == set()
    assert not some.untouched.training
    assert not any(value.requires_grad for value in some.untouched.parameters())


# --- patches and words ---------------------------------------------------------------------------


def test_patches_and_words_are_those_behind_the_embeddings(folders):
    student = load_student(str(folders["vit"]), None)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = student.tokenize(["a red circle", "the small blue square on a circle"])
    with torch.no_grad():
        image_emb, patches = student.encode_patches(pixels)
        text_emb, words, real = student.encode_words(tokens)
        visual = student.model.visual
        visual.output_tokens = True
        _, own = visual(pixels)
        visual.output_tokens = False
        torch.testing.assert_close(image_emb, student.encode_images(pixels))
        torch.testing.assert_close(text_emb, student.encode_texts(tokens))
    torch.testing.assert_close(patches, own @ visual.proj)
    assert real.sum(1).tolist() == [4, 8]
    for i, end in enumerate((4, 8)):  # the embedding is that of the end
        torch.testing.assert_close(F.normalize(words[i, end], dim=-1), text_emb[i])
    assert not visual.ln_post._forward_hooks


def test_lora_keeps_patches_and_words_with_their_embeddings(folders):
    some = models(folders["vit"], "lora")
    with torch.no_grad():
        for value in some.trained:
            value += 0.1
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    learning = some.student.encode_patches(pixels)[1]
    with torch.no_grad():
        still = some.student.encode_patches(pixels)[1]
    torch.testing.assert_close(learning, still, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["resnet", "coca"])
@pytest.mark.parametrize(
    ("reader", "wanted"),
    [({"arm": "fsc-clip"}, "arm 'fsc-clip' compares patches with words, .* or arm 'ce-clip'"),
     ({"bridge_input": "tokens-2"}, "bridge_input 'tokens-2' takes patches, .* 'projected'")],
)  # fmt: skip
def test_a_student_without_patches_and_words_is_refused_before_anything_is_loaded(
    folders, kind, reader, wanted
):
    given = {"clip_model": str(folders[kind])} | reader
    with pytest.raises(ParameterError, match=wanted):
        guard(dict(given))
    assert guard(given | {"arm": "ce-clip"}).arm == "ce-clip"  # which has no map either
    unseen = FinetuneConfig(**given)
    with pytest.raises(ParameterError, match=wanted):  # a model of the Hub is told here
        experiment.load_models(unseen, Captioned(), torch.device("cpu"))


class Captioned:
    """Pairs of which only the captions are read."""

    def all_captions(self):
        return ["a red circle left of a blue square"] * 4


@pytest.mark.parametrize(
    ("name", "gives"),
    [("ViT-B-32", True), ("ViT-L-14-quickgelu", True), ("RN50", False), ("coca_ViT-B-32", False),
     ("ViT-B-16-SigLIP", False), ("convnext_base", False), ("roberta-ViT-B-32", False)],
)  # fmt: skip
def test_which_of_open_clips_models_give_patches_and_words(name, gives):
    config = open_clip.get_model_config(name)
    assert gives_tokens(config) == gives


# --- on photographs ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arm", RIVALS)
def test_a_rival_trains_on_photographs_and_goes_on_where_it_was_cut_off(arm, tmp_path):
    world = realworld.make(tmp_path / "world")
    config = FinetuneConfig(
        arm=arm, train_data=world.train_data, negatives="swap", negatives_each=3, device="cpu",
        **world.models, benchmark=world.winoground, keep="none", validation="none", eval_items=4,
        steps=4, batch_size=8, warmup=1, eval_every=0, checkpoint_every=2, trainable="all",
    )  # fmt: skip

    def cut(steps, total):
        for step in steps:
            yield step
            if step.step == 2:
                raise KeyboardInterrupt

    whole = experiment.finetune(config.model_copy(update={"runs": str(tmp_path / "whole")}))
    parts = config.model_copy(update={"runs": str(tmp_path / "parts")})
    with pytest.raises(KeyboardInterrupt):
        experiment.finetune(parts, cut)
    again = experiment.finetune(parts)
    losses = [run.history()["loss"].tolist() for run in (whole, again)]
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0]).all()
    assert not list(whole.path.rglob("*untouched*.safetensors"))
