"""The later families behind the same three verbs: what diffusers' examples compute, as noise."""

import json
import shutil

import diffusers
import pytest
import test_evaluate
import test_verdicts
import tiny
import torch
import torch.nn.functional as F
from faults.catalog import each, fault, refused

from sdslib import evaluate, experiment, tables
from sdslib.checks import models, teacher_files
from sdslib.checks.captions import VocabularyError
from sdslib.checks.guard import validate
from sdslib.config import FinetuneConfig
from sdslib.io.model_files import WeightsError
from sdslib.io.wording import ParameterError
from sdslib.lab import doctor, dry_run, relevance, verdicts
from sdslib.lab.random_models import random_teacher
from sdslib.losses import denoising_loss, space_weight
from sdslib.pairs import load_pairs
from sdslib.scorers import diffusion
from sdslib.teacher import load_teacher
from sdslib.teachers.texts import pack, unpack

CAPTIONS = ["a red circle left of a blue square", "a blue circle left of a red square"]
SAVED = {"xl": tiny.save_xl, "sd3": tiny.save_sd3, "flux": tiny.save_flux}
SPACES = {"xl": "eps", "sd3": "u", "flux": "u", "v": "v"}  # of diffusers' training example
FLOWS = ["sd3", "flux"]
world = test_verdicts.world  # a COCO file of twenty drawn pictures
each_family = pytest.mark.parametrize("family", SAVED)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    return {name: save(root / name) for name, save in SAVED.items()}


@pytest.fixture(scope="module")
def teachers(folders):
    return {name: load_teacher(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def pipelines(folders):
    found = {n: diffusers.DiffusionPipeline.from_pretrained(f) for n, f in folders.items()}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


def latents(count=2, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *tiny.LATENT, generator=generator).to(dtype)


# --- diffusers' training examples, in their own words --------------------------------------------


def xl_example(pipe, z, eps, t):
    """train_text_to_image_sdxl: squared error of the noise."""
    states, _, pooled, _ = pipe.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    scheduler = diffusers.DDPMScheduler.from_config(pipe.scheduler.config)
    ids = torch.tensor([[tiny.SIZE, tiny.SIZE, 0, 0, tiny.SIZE, tiny.SIZE]]).repeat(len(z), 1)
    given = {"time_ids": ids, "text_embeds": pooled}
    found = pipe.unet(scheduler.add_noise(z, eps, t), t, states, added_cond_kwargs=given).sample
    return ((found - eps) ** 2).flatten(1).mean(1)


def v_example(pipe, z, eps, t):
    """train_text_to_image of a v-prediction model: its target is the scheduler's velocity."""
    states, _ = pipe.encode_prompt(CAPTIONS, "cpu", 1, False)
    found = pipe.unet(pipe.scheduler.add_noise(z, eps, t), t, states).sample
    return ((found - pipe.scheduler.get_velocity(z, eps, t)) ** 2).flatten(1).mean(1)


def flow_example(pipe, z, eps, t, predict):
    """What train_dreambooth_sd3 and _flux share: sigmas by place, and the error of eps - z."""
    scheduler = pipe.scheduler  # timesteps descend from T to 1
    place = len(scheduler.timesteps) - t
    sigmas, times = scheduler.sigmas[place].view(-1, 1, 1, 1), scheduler.timesteps[place]
    found = predict((1.0 - sigmas) * z + sigmas * eps, times)
    return ((found - (eps - z)) ** 2).flatten(1).mean(1)


def sd3_example(pipe, z, eps, t):
    """train_dreambooth_sd3."""
    states, _, pooled, _ = pipe.encode_prompt(
        CAPTIONS, None, None, do_classifier_free_guidance=False, max_sequence_length=tiny.CONTEXT
    )

    def predict(x, times):
        return pipe.transformer(
            hidden_states=x, timestep=times, encoder_hidden_states=states,
            pooled_projections=pooled, return_dict=False,
        )[0]  # fmt: skip

    return flow_example(pipe, z, eps, t, predict)


def flux_example(pipe, z, eps, t):
    """train_dreambooth_flux, at guidance 1."""
    states, pooled, txt_ids = pipe.encode_prompt(CAPTIONS, None, max_sequence_length=tiny.CONTEXT)
    count, channels, height, width = z.shape

    def predict(x, times):
        found = pipe.transformer(
            hidden_states=pipe._pack_latents(x, count, channels, height, width),
            timestep=times / 1000,
            guidance=torch.tensor([1.0]).expand(count),
            pooled_projections=pooled, encoder_hidden_states=states, txt_ids=txt_ids,
            img_ids=pipe._prepare_latent_image_ids(
                count, height // 2, width // 2, "cpu", torch.float32),
            return_dict=False,
        )[0]  # fmt: skip
        return pipe._unpack_latents(found, tiny.SIZE, tiny.SIZE, 8)

    return flow_example(pipe, z, eps, t, predict)


EXAMPLES = {"xl": xl_example, "sd3": sd3_example, "flux": flux_example, "v": v_example}


@pytest.fixture(scope="module")
def velocity(tmp_path_factory):
    folder = tiny.save_teacher(tmp_path_factory.mktemp("velocity"), "v_prediction")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    return load_teacher(str(folder)), pipeline


@pytest.mark.parametrize("family", EXAMPLES)
@pytest.mark.parametrize("t", [(20, 500), (3, 980)])
def test_the_denoising_loss_is_that_of_diffusers_training_example(
    teachers, pipelines, velocity, family, t
):
    """In the example's own space, into which `space_weight` takes the error of eps."""
    one, pipeline = velocity if family == "v" else (teachers[family], pipelines[family])
    t, z, eps = torch.tensor(t), latents(), latents(seed=1)
    with torch.no_grad():
        text, alpha_bar = one.embed_texts(CAPTIONS), one.alpha_bar[t]
        found = denoising_loss(one.predict_noise, z, text, t, eps, alpha_bar, "mean")
        loss = EXAMPLES[family](pipeline, z, eps, t)
    found = found * space_weight(alpha_bar, SPACES[family])
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], F.mse_loss(z[0], eps[0]), rtol=1e-2)


@pytest.mark.parametrize(
    ("family", "space", "told"),
    [
        ("xl", "u", r"'u' belongs to a teacher of flow matching, .* betas; take 'eps' or 'v'"),
        ("flux", "v", "'v' belongs to a teacher of a schedule of betas"),
        ("stabilityai/stable-diffusion-3.5-medium", "v", "'v' belongs to"),
        ("xl", "v", None),
        ("sd3", "u", None),
        ("who/knows", "u", None),
    ],
)
def test_a_space_that_is_not_the_teachers_is_refused_by_the_guard(folders, family, space, told):
    given = {"teacher": str(folders.get(family, family)), "sds_space": space}
    for arm in ("sds", "sds-margin"):
        if told and arm == "sds":
            with pytest.raises(ParameterError, match=told):
                validate(FinetuneConfig, given | {"arm": arm})
        else:
            found = validate(FinetuneConfig, given | {"arm": arm})
            assert ("sds_space" in found.identity()) == (arm == "sds")


@fault("error in a space that is not the teacher's")
def test_an_error_in_a_space_that_is_not_the_teachers(folders):
    given = {"teacher": str(folders["sd3"]), "sds_space": "v"}
    return refused(ParameterError, validate, FinetuneConfig, given)


def test_a_space_that_the_guard_could_not_refuse_is_refused_before_weights_load(world, folders):
    found = settings(world, folders["sd3"]).model_copy(update={"sds_space": "v"})
    with pytest.raises(ParameterError, match="'v' belongs to a teacher of a schedule of betas"):
        experiment.load_models(found, load_pairs(found.train_data), torch.device("cpu"))


@each_family
def test_the_gradient_to_z_t_agrees_with_finite_differences(folders, family):
    """diffusers' transformers normalize and rotate in float32, which bounds the agreement."""
    one = load_teacher(str(folders[family])).double()
    z, t = latents(dtype=torch.float64).requires_grad_(), torch.tensor([300, 900])
    text, target = one.embed_texts(CAPTIONS).double(), latents(seed=1, dtype=torch.float64)

    def loss(z):
        return ((one.predict_noise(z, t, text) - target) ** 2).sum()

    gradient = torch.autograd.grad(loss(z), z)[0]
    direction, step = latents(seed=2, dtype=torch.float64), 0.01
    with torch.no_grad():
        one_step, two = ((loss(z + k * step * direction) - loss(z - k * step * direction)) / k
                         for k in (1, 2))  # fmt: skip
    slope = (4 * one_step - two) / (6 * step)
    exact = 1e-6 if family == "xl" else 1e-5
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=exact)


# --- texts and images ----------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "pooled", "rows"), [(8, 24, 3), (8, 20, 3), (64, 24, 1)])
def test_states_and_pooled_text_come_back_from_one_tensor(width, pooled, rows):
    states, whole = torch.randn(2, 5, width), torch.randn(2, pooled)
    text = pack(states, whole)
    assert text.shape == (2, 5 + rows, width)
    assert all(torch.equal(*two) for two in zip(unpack(text, pooled), (states, whole), strict=True))


@each_family
def test_a_caption_is_embedded_once_and_words_outside_the_vocabulary_are_refused(teachers, family):
    one = teachers[family]
    text = one.embed_texts([*CAPTIONS, CAPTIONS[0]])
    assert text.ndim == 3
    assert torch.equal(text[0], text[2])
    assert not torch.equal(text[0], text[1])
    assert torch.equal(one.embed_texts(CAPTIONS[1:])[0], text[1])
    with pytest.raises(VocabularyError, match="'zebra'"):
        one.embed_texts(["a red zebra"])
    with pytest.raises(NotImplementedError, match="only Stable Diffusion 1 and 2 draw"):
        one.sample(CAPTIONS, 1)


@each_family
def test_latents_are_shifted_and_scaled_as_the_pipelines_are(teachers, pipelines, family):
    one, vae = teachers[family], pipelines[family].vae
    pixels = torch.rand(2, 3, tiny.SIZE, tiny.SIZE) * 2 - 1
    mean = vae.encode(pixels).latent_dist.mean
    expected = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    torch.testing.assert_close(one.encode_images(pixels), expected.detach())
    assert tuple(expected.shape[1:]) == one.latent_shape
    assert one.image_size == tiny.SIZE


@pytest.mark.parametrize("family", FLOWS)
def test_a_flow_is_the_same_noising_and_its_levels_are_those_of_diffusers(
    teachers, pipelines, family
):
    signal = teachers[family].alpha_bar.double().sqrt()
    noise = (1 - teachers[family].alpha_bar.double()).sqrt()
    s = noise / (signal + noise)
    sigmas = pipelines[family].scheduler.sigmas[:1000].flip(0).double()  # of t = 1 ... 1000
    torch.testing.assert_close(s[20:], sigmas[19:-1], rtol=1e-4, atol=0)
    assert s[0] == 0


def test_without_t5_zeros_stand_in_its_place_as_in_diffusers(tmp_path):
    folder = tiny.save_sd3(tmp_path / "sd3", t5=False)
    nothing = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **nothing)
    expected, _, pooled, _ = pipe.encode_prompt(
        CAPTIONS, None, None, do_classifier_free_guidance=False
    )
    text = load_teacher(str(folder)).embed_texts(CAPTIONS)
    states, found = unpack(text, pooled.shape[1])
    torch.testing.assert_close((states, found), (expected, pooled))
    fingerprints = teacher_files.fingerprints(str(folder))
    assert not [name for name in fingerprints if "_3" in name]


@pytest.mark.parametrize("family", FLOWS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_t5_is_in_bf16_below_fp32_and_all_else_that_reads_text_in_fp32(
    folders, teachers, family, precision
):
    def read(one):
        text = one.embed_texts(CAPTIONS)
        return unpack(text, one.unet.config.pooled_projection_dim)

    low, whole = load_teacher(str(folders[family]), precision=precision), teachers[family]
    kinds = {e.config.model_type: e.dtype for e in low.text_encoder}
    assert kinds == {"clip_text_model": torch.float32, "t5": torch.bfloat16}
    assert {e.dtype for e in whole.text_encoder} == {torch.float32}
    (states, pooled), (exact, same) = read(low), read(whole)
    assert torch.equal(pooled, same)
    assert states.dtype == torch.float32
    assert 0 < (states - exact).norm() < 0.02 * exact.norm()


def test_guidance_is_told_only_to_a_transformer_that_takes_it(tmp_path, teachers):
    free = load_teacher(str(tiny.save_flux(tmp_path / "flux", guidance=False)))
    z, t, text = latents(), torch.tensor([20, 700]), free.embed_texts(CAPTIONS)
    assert free.predict_noise(z, t, text).isfinite().all()
    guidance = "time_text_embed.guidance_embedder.linear_1.weight"
    assert guidance in teachers["flux"].unet.state_dict()
    assert guidance not in free.unet.state_dict()


# --- folders -------------------------------------------------------------------------------------


def edit(name, **changes):
    return lambda f: tiny.write_json(f / name, json.loads((f / name).read_text()) | changes)


INDEX, SCHEDULE = "model_index.json", "scheduler/scheduler_config.json"
EULER = {"_class_name": "EulerDiscreteScheduler"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def lose_a_piece(folder):
    """As two files and their table, the second of which is not there."""
    part, first = folder / "text_encoder_3", "model-00001-of-00002.safetensors"
    (part / "model.safetensors").rename(part / first)
    tiny.write_json(part / "model.safetensors.index.json", {"weight_map": {"shared": first}})


@each(
    {
        "teacher of an unknown family": ("xl", edit(INDEX, _class_name="SanaPipeline")),
        "flow teacher with a schedule of betas": (
            "sd3", edit(SCHEDULE, **EULER)),
        "teacher's weights without one of their pieces": ("sd3", lose_a_piece),
    }
)  # fmt: skip
def test_a_folder_is_refused_alike_by_guard_doctor_and_loader(folders, tmp_path, given):
    family, break_it = given
    break_it(folder := shutil.copytree(folders[family], tmp_path / "teacher"))
    said = str(refused(WeightsError, load_teacher, str(folder)))
    assert teacher_files.weights_problem(str(folder)) == said
    guarded = models.teacher_problem(str(folder), None)
    assert guarded is None or guarded.endswith(said.partition(" ")[2])
    return said


@pytest.mark.parametrize(
    ("family", "break_it", "message"),
    [
        ("xl", edit("text_encoder_2/config.json", hidden_size=48), "text of width 64, .* give 80;"),
        ("xl", edit("text_encoder_2/config.json", projection_dim=8), "pooled .* 24, .* give 8;"),
        ("xl", edit("vae/config.json", latents_mean=[0.1] * 4), "its VAE has latents_mean"),
        ("xl", edit(SCHEDULE, sigma_data=0.5), "EDM's noise levels"),
        ("sd3", edit("text_encoder_3/config.json", d_model=32), "transformer .* 72, .* give 32;"),
        ("sd3", lambda f: shutil.rmtree(f / "tokenizer_3"), "has no tokenizer_3; diffusers"),
        ("flux", edit("vae/config.json", latent_channels=8), "takes 16 channels, the VAE gives 8"),
        ("flux", edit("text_encoder/config.json", hidden_size=64), "pooled .* 32, .* give 64;"),
        ("xl", edit(SCHEDULE, **FLOW), "and needs one with betas;"),
    ],
)
def test_parts_that_do_not_fit_are_refused(folders, tmp_path, family, break_it, message):
    break_it(folder := shutil.copytree(folders[family], tmp_path / "spoilt"))
    with pytest.raises(WeightsError, match=message):
        load_teacher(str(folder))
    assert teacher_files.weights_problem(str(folder))


@pytest.mark.parametrize(
    ("family", "size"),
    [
        pytest.param("xl", "1GB", marks=pytest.mark.slow),
        ("sd3", "100KB"),
        pytest.param("flux", "100KB", marks=pytest.mark.slow),
    ],
)
def test_fp16_weights_alone_load_whole_or_in_pieces_and_are_told_alike(tmp_path, family, size):
    folder = SAVED[family](tmp_path / "half", variant="fp16", max_shard_size=size)
    pieces = list(folder.rglob("*-of-*.safetensors"))
    assert bool(pieces) == (size == "100KB")
    with pytest.raises(WeightsError, match=r"; there are .*; give variant 'fp16'") as caught:
        load_teacher(str(folder))
    problem = models.teacher_problem(str(folder), None)
    assert problem == f"teacher folder {str(folder)!r} {str(caught.value).partition(' ')[2]}"
    assert teacher_files.weights_problem(str(folder)) == str(caught.value)
    assert models.teacher_problem(str(folder), "fp16") is None
    one = load_teacher(str(folder), variant="fp16")
    assert one.embed_texts(CAPTIONS).isfinite().all()
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.safetensors")} <= set(
        teacher_files.fingerprints(str(folder), variant="fp16")
    )
    for piece in pieces[:1]:
        piece.unlink()
        with pytest.raises(WeightsError, match=f"has no .*{piece.name}; there are"):
            load_teacher(str(folder), variant="fp16")


def test_the_command_for_a_known_model_that_is_not_here_brings_every_file_whatever_its_pieces():
    said = teacher_files.weights_problem("black-forest-labs/FLUX.1-dev")
    for name in ("transformer/diffusion_pytorch_model.safetensors.index.json",
                 "transformer/diffusion_pytorch_model-*.safetensors",
                 "text_encoder_2/model-*.safetensors", "tokenizer_2/*"):  # fmt: skip
        assert f"--include '{name}'" in said
    assert "unet" not in said


# Parameters of denoiser, VAE and all text encoders; UNet, VAE and T5 are counted so in public.
REAL = {
    "stabilityai/stable-diffusion-xl-base-1.0": (2_567_463_684, 83_653_863, 817_720_320, 4),
    "stabilityai/stable-diffusion-3.5-medium": (2_243_171_520, 83_819_683, 5_580_620_800, 16),
    "black-forest-labs/FLUX.1-dev": (11_901_408_320, 83_819_683, 4_885_371_136, 16),
}


@pytest.mark.slow
@pytest.mark.parametrize("source", REAL)
def test_public_models_are_built_at_full_size_without_network_or_weights(source):
    one = random_teacher(source, device="meta", checkpointing=True)
    parts = (one.unet, one.vae, one.text_encoder)
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert (*counts, one.latent_shape[0]) == REAL[source]
    assert one.latent_shape == teacher_files.latent_shape(source) == (REAL[source][3], 128, 128)
    assert one.image_size == 1024
    assert one.unet.is_gradient_checkpointing


# --- in use --------------------------------------------------------------------------------------


def settings(world, teacher, **changes):
    given = {"teacher": str(teacher), "sds_weight": 0.01, "bridge_pairs": 20, "arm": "sds"}
    return test_verdicts.config(world, "", verdicts=None, **given | changes)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("xl", {"precision": "bf16", "checkpointing": True}, marks=pytest.mark.slow),
        ("sd3", {"sds_gradient": "residual", "micro_batch": 3}),
        pytest.param(
            "flux",
            {"arm": "teacher-choice", "negatives": "mini", "choice_draws": 2},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_trains_by_each_family(world, folders, tmp_path, family, changes):
    found = settings(world, folders[family], runs=str(tmp_path), **changes)
    run = experiment.finetune(found)
    rows = run.history()
    assert run.finished
    assert len(rows) == 2
    assert (rows[["sds", "grad_norm"]] > 0).to_numpy().all()


def test_verdicts_of_a_family_are_made_and_tell_their_teacher(world, folders, tmp_path):
    work = test_verdicts.asked(world, tmp_path / "said.parquet", teacher=str(folders["sd3"]))
    found = verdicts.judge(work)
    assert all(torch.tensor(row).isfinite().all() for row in
               found.table["log_likelihoods"].to_pylist())  # fmt: skip
    assert found.passport["teacher"] == str(folders["sd3"])


def test_a_dry_run_counts_every_part_of_a_family(world, folders):
    counts = dry_run.parameters(
        dry_run.stand_ins(settings(world, folders["sd3"]), torch.device("cpu"))
    )
    assert counts["UNet"] > 0 < counts["VAE"]
    assert counts["text encoder"] == sum(
        p.numel() for p in load_teacher(str(folders["sd3"])).text_encoder.parameters()
    )


@pytest.mark.slow
@each_family
def test_the_scorer_tells_the_right_pair_from_the_wrong_of_items_that_were_fitted(folders, family):
    captions = ["a red circle", "a blue square and a green triangle"]
    one = load_teacher(str(folders[family]))
    refs = [test_evaluate.noise(n) for n in range(2)]
    pixels = torch.stack([one.transform(ref.load()) for ref in refs])
    spread = (one.encode_images(pixels) / one.vae.config.scaling_factor).std()
    one.vae.register_to_config(scaling_factor=float(1 / spread))
    z, text = one.encode_images(pixels), one.embed_texts(captions)
    rate = 0.01 if family == "xl" else 0.003
    optimizer = torch.optim.Adam(one.unet.requires_grad_(True).parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for _ in range(70):
        rows = torch.arange(2).repeat(8)
        t = torch.randint(600, 980, (16,), generator=generator)  # where the caption decides
        eps = torch.randn(16, *tiny.LATENT, generator=generator)
        loss = denoising_loss(
            one.predict_noise, z[rows], text[rows], t, eps, one.alpha_bar[t], "mean"
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    draws = diffusion.shared_draws(one.latent_shape, 16, 0, (600, 980))
    pair = test_evaluate.item("fitted", refs, tuple(captions), kind="a")
    table = evaluate.score_grids(
        diffusion.diffusion_scorer(one, draws), test_evaluate.benchmark([pair])
    )
    ((right, wrong), (other_wrong, other_right)) = tables.grids_of(table)[0]
    assert right > wrong
    assert other_right > other_wrong


def test_a_dry_run_counts_what_is_held_in_half_precision(world, folders):
    found = settings(world, folders["sd3"], precision="bf16")
    models = dry_run.stand_ins(found, torch.device("cpu"))
    held = [
        p for part in (models.student, models.teacher, models.bridge) for p in part.parameters()
    ]
    learning = [*models.trained, *models.bridge.parameters()]
    total = sum(p.nbytes for p in held) + 3 * sum(p.nbytes for p in learning)
    assert doctor.weights_bytes(dry_run.parameters(models), "bf16") == total


def test_a_word_is_seen_somewhere_by_a_unet_alone(teachers):
    image = test_evaluate.noise(0).load()
    found = relevance.teacher_maps(teachers["xl"], image, CAPTIONS[0], draws=2)
    assert found.shape == (1 + len(CAPTIONS[0].split()), *tiny.LATENT[1:])
    assert (found[1:].sum((1, 2)) > 0).all()
    for family in FLOWS:
        with pytest.raises(relevance.NoMapError, match="no UNet whose attention to words"):
            relevance.teacher_maps(teachers[family], image, CAPTIONS[0])
