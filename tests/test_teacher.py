"""The teacher behind its door: frozen, always noise out, schedule exact, folders checked."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import tiny
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from sdslib import teacher as room
from sdslib.checks import teacher_files
from sdslib.checks.captions import VocabularyError, check_markers
from sdslib.checks.models import KNOWN, SHAPES
from sdslib.checks.teacher_files import latent_shape
from sdslib.io.families import configs_of, weights_of
from sdslib.io.model_files import WeightsError, files_below, teacher_index
from sdslib.lab import random_models
from sdslib.lab.random_models import random_teacher
from sdslib.losses import add_noise, denoising_loss, score_distillation_loss
from sdslib.teacher import Teacher, load_teacher

CAPTIONS = ["a red circle left of a blue square", "a blue circle left of a red square"]
T = torch.tensor([1, 640])
WEIGHTS = {name.partition("/")[0]: name for name in weights_of({})}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teachers") / "eps")


@pytest.fixture(scope="module")
def velocity_folder(tmp_path_factory):
    return tiny.save_teacher(tmp_path_factory.mktemp("teachers") / "v", "v_prediction")


@pytest.fixture(scope="module")
def one(folder):
    return load_teacher(str(folder))


@pytest.fixture
def copied(folder, tmp_path):
    """A folder to spoil."""
    return shutil.copytree(folder, tmp_path / "spoilt")


def latents(count=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *tiny.LATENT, generator=generator).to(dtype)


# --- frozen --------------------------------------------------------------------------------------


def test_teacher_stays_frozen_and_in_eval_mode_under_a_training_parent(folder):
    one = load_teacher(str(folder))
    parent = torch.nn.ModuleDict({"teacher": one, "other": torch.nn.Linear(2, 2)})
    parent.train()
    assert parent["other"].training
    assert not any(module.training for module in one.modules())
    assert not any(value.requires_grad for value in one.parameters())


def test_a_step_through_the_teacher_leaves_it_as_it_was(folder):
    one = load_teacher(str(folder))
    before = {name: value.clone() for name, value in one.state_dict().items()}
    z = latents().requires_grad_()
    optimizer = torch.optim.AdamW([z, *one.parameters()], lr=0.1, weight_decay=0.5)
    text = one.embed_texts(CAPTIONS)
    loss = denoising_loss(one.predict_noise, z, text, T, latents(seed=1), one.alpha_bar[T])
    loss.sum().backward()
    optimizer.step()
    assert z.grad.any()
    assert all(value.grad is None for value in one.parameters())
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


# --- the schedule --------------------------------------------------------------------------------


def test_alpha_bar_is_the_float64_product_rounded_once(one):
    expected = reference.alpha_bar_table(0.00085, 0.012, 1000)
    assert one.alpha_bar.dtype == torch.float32
    assert torch.equal(one.alpha_bar, torch.tensor(expected).float())


def test_noisy_latents_match_float64_at_the_ends(one):
    table = reference.alpha_bar_table(0.00085, 0.012, 1000)
    z, eps = latents(3), latents(3, seed=1)
    t = torch.tensor([0, 1, 999])
    z_t = add_noise(z, eps, one.alpha_bar[t])
    for i, step in enumerate(t.tolist()):
        expected = torch.tensor(reference.noised(z[i], eps[i], table[step]))
        torch.testing.assert_close(z_t[i].double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_schedules_are_those_of_diffusers(kind):
    config = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": kind}
    expected = DDIMScheduler(**config).alphas_cumprod
    torch.testing.assert_close(
        teacher_files.alpha_bar(config).float(), expected, rtol=1e-4, atol=1e-7
    )
    betas = [0.1, 0.2]
    assert teacher_files.alpha_bar({"trained_betas": betas}).tolist() == pytest.approx([0.9, 0.72])


# --- noise out -----------------------------------------------------------------------------------


class Velocity(torch.nn.Module):
    """A UNet that knows the same as another one, and says it as v."""

    def __init__(self, unet, alpha_bar):
        super().__init__()
        self.unet, self.alpha_bar = unet, alpha_bar
        self.config, self.dtype = unet.config, unet.dtype

    def forward(self, z_t, t, encoder_hidden_states):
        eps = self.unet(z_t, t, encoder_hidden_states=encoder_hidden_states).sample
        signal = self.alpha_bar[t].view(-1, 1, 1, 1)
        z_0 = (z_t - (1 - signal).sqrt() * eps) / signal.sqrt()
        return SimpleNamespace(sample=signal.sqrt() * eps - (1 - signal).sqrt() * z_0)


def test_eps_and_v_prediction_teachers_give_the_same_z_0(folder):
    eps = load_teacher(str(folder)).double()
    unet = Velocity(eps.unet, eps.alpha_bar)
    scheduler = eps.scheduler | {"prediction_type": "v_prediction"}
    v = Teacher(unet, eps.vae, eps.text_encoder, eps.tokenizer, scheduler).double()
    v.alpha_bar = eps.alpha_bar
    t = torch.tensor([0, 1, 500, 999])
    z_t, text = latents(4, dtype=torch.float64), eps.embed_texts(CAPTIONS * 2).double()
    assert v.is_velocity
    assert not eps.is_velocity
    for name in ("predict_noise", "predict_latent"):
        given, expected = (getattr(teacher, name)(z_t, t, text) for teacher in (v, eps))
        torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_z_0_is_that_of_diffusers_scheduler(folder, velocity_folder, kind):
    one = load_teacher(str(folder if kind == "epsilon" else velocity_folder))
    scheduler = DDIMScheduler.from_config(one.scheduler)
    scheduler.set_timesteps(1000)
    text = one.embed_texts(CAPTIONS[:1])
    for step in (5, 300, 900):
        t, z_t = torch.tensor([step]), latents(1, step)
        raw = one.unet(z_t, t, encoder_hidden_states=text).sample
        expected = scheduler.step(raw, step, z_t).pred_original_sample
        torch.testing.assert_close(one.predict_latent(z_t, t, text), expected, rtol=1e-4, atol=1e-4)


def test_gradient_through_the_teacher_agrees_with_finite_differences(velocity_folder):
    one = load_teacher(str(velocity_folder)).double()
    z, eps = latents(dtype=torch.float64).requires_grad_(), latents(seed=1, dtype=torch.float64)
    text, signal = one.embed_texts(CAPTIONS).double(), one.alpha_bar[T]

    def loss(z):
        return denoising_loss(one.predict_noise, z, text, T, eps, signal).sum()

    gradient = torch.autograd.grad(loss(z), z)[0]
    direction, step = latents(seed=2, dtype=torch.float64), 1e-5
    with torch.no_grad():
        slope = (loss(z + step * direction) - loss(z - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_residual_gradient_is_eps_hat_minus_eps_times_the_chain_rule(one):
    z, eps, text = latents().requires_grad_(), latents(seed=1), one.embed_texts(CAPTIONS)
    signal = one.alpha_bar[T]
    loss = score_distillation_loss(one.predict_noise, z, text, T, eps, signal)
    gradient = torch.autograd.grad(loss.sum(), z)[0]
    residual = one.predict_noise(add_noise(z, eps, signal), T, text) - eps
    expected = 2 * signal.sqrt().view(-1, 1, 1, 1) * residual
    torch.testing.assert_close(gradient, expected.detach())
    through = denoising_loss(one.predict_noise, z, text, T, eps, signal)
    torch.testing.assert_close(loss, through)


def test_batched_cells_equal_single_calls(one):
    z = latents(2)
    draws = [(50, latents(1, 5)[0]), (600, latents(1, 6)[0])]
    expected = reference.denoising_grid(one, list(z), CAPTIONS, draws)
    cells = [(i, k, t, eps) for i in range(2) for k in range(2) for t, eps in draws]
    t = torch.tensor([cell[2] for cell in cells])
    text = one.embed_texts([CAPTIONS[cell[1]] for cell in cells])
    errors = denoising_loss(
        one.predict_noise, z[[cell[0] for cell in cells]], text, t,
        torch.stack([cell[3] for cell in cells]), one.alpha_bar[t], "mean",
    )  # fmt: skip
    grid = errors.view(2, 2, 2).mean(2).numpy()
    assert np.allclose(grid, expected, rtol=1e-5)
    assert len(np.unique(expected)) == 4


def test_arguments_that_do_not_fit_are_refused(one):
    text = one.embed_texts(CAPTIONS)
    with pytest.raises(ValueError, match=r"z_t \(2, 4, 4, 4\), t \(1,\) and text"):
        one.predict_noise(latents(), T[:1], text)
    with pytest.raises(ValueError, match=r"do not fit each other and latents of \(4, 4, 4\)"):
        one.predict_noise(torch.zeros(2, 4, 8, 8), T, text)


# --- precision and memory ------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_low_precision_stays_inside_the_unet(folder, one, precision, tolerance):
    low = load_teacher(str(folder), precision=precision)
    assert {value.dtype for value in low.unet.parameters()} == {room.PRECISIONS[precision]}
    for part in (low.vae, low.text_encoder):
        assert {value.dtype for value in part.parameters()} == {torch.float32}
    text = low.embed_texts(CAPTIONS)
    z = latents().requires_grad_()
    eps_hat = low.predict_noise(z, T, text)
    eps_hat.square().sum().backward()
    assert text.dtype == eps_hat.dtype == z.grad.dtype == low.alpha_bar.dtype == torch.float32
    expected = one.predict_noise(latents(), T, text)
    assert (eps_hat - expected).norm() < tolerance * expected.norm()
    assert not torch.equal(eps_hat, expected)


def test_an_autocast_around_does_not_change_the_teacher(one):
    text = one.embed_texts(CAPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        inside = one.predict_noise(latents(), T, text)
    assert torch.equal(inside, one.predict_noise(latents(), T, text))


def test_checkpointing_keeps_less_and_gives_the_same_gradient(folder, one):
    text, found = one.embed_texts(CAPTIONS), []
    for teacher in (one, load_teacher(str(folder), checkpointing=True)):
        kept = []

        def pack(tensor, kept=kept):
            kept.append(tensor.nbytes)
            return tensor

        z = latents().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            eps_hat = teacher.predict_noise(z, T, text)
        eps_hat.square().sum().backward()
        found.append((sum(kept), z.grad))
    assert found[1][0] < 0.5 * found[0][0]
    torch.testing.assert_close(found[1][1], found[0][1])


# --- texts ---------------------------------------------------------------------------------------


def test_texts_are_those_of_diffusers_pipeline(one, folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    expected, _ = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)
    torch.testing.assert_close(one.embed_texts(CAPTIONS), expected)


def test_each_caption_is_embedded_once(folder, monkeypatch):
    one, asked = load_teacher(str(folder)), []
    inner = one._encode_texts

    def counted(captions):
        asked.extend(captions)
        return inner(captions)

    monkeypatch.setattr(one, "_encode_texts", counted)
    first = one.embed_texts([CAPTIONS[0], CAPTIONS[1], CAPTIONS[0]])
    again = one.embed_texts(CAPTIONS[::-1])
    assert asked == CAPTIONS
    assert torch.equal(first[[1, 0]], again)
    assert torch.equal(first[0], first[2])
    monkeypatch.setattr(room, "CACHE_BYTES", 3 * first[0].nbytes)
    for word in tiny.WORDS:
        one.embed_texts([word])
    assert list(one._texts) == list(tiny.WORDS[-3:])


def test_captions_with_unknown_words_are_refused_everywhere(one):
    with pytest.raises(VocabularyError, match=r"has words outside .*/eps's vocabulary: 'zebra'"):
        one.embed_texts(["a red zebra"])
    with pytest.raises(VocabularyError, match="'zebra'"):
        one.sample(["a red zebra"], 1)


@pytest.mark.parametrize("mark", ["[END]", "[START]", "[PAD]", "[UNK]"])
def test_captions_with_a_mark_of_the_tokenizer_are_refused(one, mark):
    with pytest.raises(VocabularyError, match=r"a mark of .* tokenizer and no word"):
        one.embed_texts([f"a red circle {mark} left of a blue square"])


def test_a_mark_of_one_sign_is_what_people_write():
    check_markers(["!", "<end>"], ["a cat!"], "Stable Diffusion XL")
    with pytest.raises(VocabularyError, match="has '<end>', a mark"):
        check_markers(["!", "<end>"], ["a cat<end>!"], "Stable Diffusion XL")


# --- images --------------------------------------------------------------------------------------


def test_transform_cuts_squashes_or_pads_into_minus_one_to_one(one):
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 8, 32))  # a blue edge that the central square leaves out
    crop, squash, pad = (one.transform(image, mode) for mode in ("crop", "squash", "pad"))
    assert {tuple(pixels.shape) for pixels in (crop, squash, pad)} == {(3, 32, 32)}
    assert torch.equal(crop[:, 16, 0], torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(squash[:, 16, 0], torch.tensor([-1.0, -1.0, 1.0]))
    assert torch.equal(pad[:, 0, 16], torch.tensor([-1.0, -1.0, -1.0]))
    with pytest.raises(ValueError, match="mode must be"):
        one.transform(image, "stretch")


@pytest.mark.parametrize("mode", ["crop", "squash", "pad"])
@pytest.mark.parametrize("size", [(3_000_000, 1), (1, 3_000_000)])
def test_a_picture_of_one_pixels_height_costs_the_transform_no_more_than_its_middle(
    one, mode, size
):
    pixels = one.transform(Image.new("RGB", size, (0, 0, 255)), mode)
    assert tuple(pixels.shape) == (3, 32, 32)
    assert torch.equal(pixels[:, 16, 16], torch.tensor([-1.0, -1.0, 1.0]))


def test_latents_are_the_scaled_mean_and_repeat(one):
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = one.encode_images(pixels)
    assert torch.equal(z, one.encode_images(pixels))
    assert tuple(z.shape[1:]) == one.latent_shape == tiny.LATENT
    expected = one.vae.encode(pixels).latent_dist.mean * 0.5
    torch.testing.assert_close(z, expected)
    assert not z.requires_grad


def test_samples_depend_on_seed_and_place_alone(one):
    both = one.sample(CAPTIONS, 2, 3.0, seed=1)
    alone = one.sample(CAPTIONS[:1], 2, 3.0, seed=1)
    other = one.sample(CAPTIONS[:1], 2, 3.0, seed=2)
    assert both[0].size == (32, 32)
    difference = np.abs(np.asarray(both[0], int) - np.asarray(alone[0], int))
    assert difference.max() <= 1  # batches of two round differently
    assert np.abs(np.asarray(alone[0], int) - np.asarray(other[0], int)).max() > 1


# --- loading -------------------------------------------------------------------------------------


def test_one_caption_asked_twice_gives_two_pictures(one):
    first, second = (np.asarray(picture, int) for picture in one.sample(CAPTIONS[:1] * 2, 2, 3.0))
    assert np.abs(first - second).max() > 1


def test_random_teacher_forgets_the_unet_and_nothing_else(folder, one):
    state = torch.random.get_rng_state()
    first, again, other = (load_teacher(str(folder), random_weights_seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [teacher.unet.conv_in.weight for teacher in (first, again, other, one)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    for part in ("vae", "text_encoder"):
        kept, new = (getattr(teacher, part).state_dict() for teacher in (one, first))
        assert all(torch.equal(value, kept[name]) for name, value in new.items())
    assert torch.equal(first.alpha_bar, one.alpha_bar)
    assert not any(value.requires_grad for value in first.parameters())


def test_half_precision_folders_are_lifted_to_float32(tmp_path):
    half = tiny.save_teacher(tmp_path / "half", dtype=torch.float16)
    one = load_teacher(str(half))
    stored = load_file(half / WEIGHTS["unet"])
    assert {value.dtype for value in one.parameters()} == {torch.float32}
    for name, value in one.unet.state_dict().items():
        assert torch.equal(value, stored[name].float())


def test_latent_shape_is_read_without_weights(copied):
    shutil.rmtree(copied / "vae")
    (copied / WEIGHTS["unet"]).unlink()
    assert latent_shape(str(copied)) == tiny.LATENT


def test_teachers_out_of_reach_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match="teacher folder 'no/such/folder' does not exist"):
        load_teacher("no/such/folder")
    for ask in (load_teacher, latent_shape):
        with pytest.raises(WeightsError) as caught:
            ask("CompVis/stable-diffusion-v1-4", "abc")
        message = str(caught.value)
        assert (
            "CompVis/stable-diffusion-v1-4 at revision 'abc': the Hub cannot be reached" in message
        )
        assert len(message.splitlines()) == 1
    with pytest.raises(ValueError, match="precision must be fp32, bf16 or fp16, got 'int8'"):
        load_teacher("anything", precision="int8")


# Parameters of UNet, VAE and text encoder, as published for the weights on the Hub.
V1, V2 = (859_520_964, 83_653_863, 123_060_480), (865_910_724, 83_653_863, 340_387_840)
REAL = {
    "CompVis/stable-diffusion-v1-4": (V1, 64, False),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (V1, 64, False),
    "stabilityai/stable-diffusion-2-1-base": (V2, 64, False),
    "stabilityai/stable-diffusion-2-1": (V2, 96, True),
}


@pytest.mark.parametrize("source", REAL)
def test_the_papers_teachers_are_built_at_full_size_without_network_or_weights(source):
    counts, side, velocity = REAL[source]
    teacher = random_teacher(source, device="meta")
    parts = (teacher.unet, teacher.vae, teacher.text_encoder)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in parts) == counts
    assert teacher.latent_shape == latent_shape(source) == (4, side, side)
    assert (teacher.image_size, teacher.is_velocity) == (8 * side, velocity)
    assert len(teacher.alpha_bar) == 1000
    assert teacher.vae.config.scaling_factor == 0.18215
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("name", sorted(set(KNOWN.values())))
def test_committed_shapes_hold_the_configs_of_a_pipeline_and_no_weights(name):
    index = teacher_index(SHAPES / name)
    assert files_below(SHAPES / name) == sorted(configs_of(index))
    teacher_files.check_configs(SHAPES / name)


def test_an_architecture_without_weights_tells_captions_apart_and_repeats_by_seed(folder):
    one, again, other = (random_teacher(str(folder), seed=seed) for seed in (0, 0, 1))
    assert one.name.endswith("random weights")
    z, text = torch.ones(2, 4, 4, 4), one.embed_texts(CAPTIONS)
    assert torch.equal(one.predict_noise(z, T, text), again.predict_noise(z, T, text))
    assert not torch.equal(one.predict_noise(z, T, text), other.predict_noise(z, T, text))
    tokens = random_models.ByteTokens(8, 300)(["ab", "a longer caption", ""])
    assert tokens.input_ids.shape == (3, 8)
    assert tokens.input_ids[0].tolist() == [97, 98, 0, 0, 0, 0, 0, 0]
    assert tokens.attention_mask.sum(1).tolist() == [2, 8, 0]


def test_half_precision_and_checkpointing_reach_a_teacher_of_random_weights(folder):
    teacher = random_teacher(str(folder), precision="bf16", checkpointing=True)
    assert teacher.unet.dtype == torch.bfloat16
    assert teacher.vae.dtype == torch.float32
    assert any(getattr(m, "gradient_checkpointing", False) for m in teacher.unet.modules())
