"""Trains the mini-world's models: a KL-VAE, a Stable Diffusion and an open_clip student.

Each part is one resumable function from a `Recipe` to a folder that the ordinary loaders read.
Letters: B images, C,H,W latent (4, 8, 8), L tokens, E text width. Images are in [-1, 1].
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdslib import evaluate
from sdslib.config import MiniworldConfig, derive_seed, project_path, project_root
from sdslib.io.state import pack_state, unpack_state
from sdslib.io.storage import file_sha256, write_json
from sdslib.losses import add_noise
from sdslib.miniworld import drawing
from sdslib.miniworld.sets import benchmark
from sdslib.pairs import load_pairs
from sdslib.student import Student, load_student
from sdslib.teacher import Teacher, load_teacher

TOKENIZER = ["transformers", "PreTrainedTokenizerFast"]
EVERY, KEEP_EVERY = 10, 200  # steps between reports, and between checkpoints


class Progress(NamedTuple):
    """How far one part's training is."""

    part: str
    step: int
    steps: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """How the three models are made; the committed weights follow these defaults."""

    seed: int = drawing.SEED
    pool: int = 16384
    single: float = 0.3
    vae_steps: int = 1400
    vae_batch: int = 32
    vae_lr: float = 2e-3
    vae_kl: float = 1e-4
    teacher_steps: int = 2700
    teacher_batch: int = 128
    teacher_lr: float = 1e-3
    # Three stages, each found wanting without the next: the caption's words; from `binding_from`
    # on which color belongs to which shape; from `layout_from` on what stands where. See `draw_t`.
    binding_from: int = 1000
    layout_from: int = 1600
    pairs_from: int = 2000  # from here on scenes of two things alone
    snr_clip: float = 100.0
    high_noise: float = 0.8
    high_range: tuple[int, int] = (400, 980)
    wide_range: tuple[int, int] = (50, 980)
    student_steps: int = 1000
    student_batch: int = 128
    student_lr: float = 1e-3
    warmup: int = 100
    ema: float = 0.995


def pixel_pool(recipe: Recipe, purpose: str) -> tuple[list[drawing.Scene], Tensor]:
    """The training scenes and their pictures, uint8 (N, 3, 64, 64)."""
    found = list(itertools.islice(drawing.scenes("train", purpose, recipe.single), recipe.pool))
    arrays = np.stack([np.asarray(drawing.draw(scene)) for scene in found])
    return found, torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels as the diffusion model's floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


class Turn(NamedTuple):
    """One warm-up and cosine of the learning rate: aims at `horizon` steps, may be cut before."""

    start: int
    end: int
    horizon: int


def teacher_turns(recipe: Recipe) -> list[Turn]:
    """The teacher's stages; all but the last are cut short before their learning rate is down."""
    first, second, third = recipe.binding_from, recipe.layout_from, recipe.pairs_from
    last = recipe.teacher_steps
    return [
        Turn(0, first, 2 * first),
        Turn(first, second, 5 * (second - first) // 2),
        Turn(second, third, 3 * (third - second) // 2),
        Turn(third, last, last - third),
    ]


def cosine_lr(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup))))


class Ema(nn.Module):
    """An exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.names = [name.replace(".", "|") for name, _ in module.named_parameters()]
        for name, (_, value) in zip(self.names, module.named_parameters(), strict=True):
            self.register_buffer(name, value.detach().clone())

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in zip(self.names, module.parameters(), strict=True):
            getattr(self, name).lerp_(value, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for name, value in zip(self.names, module.parameters(), strict=True):
            value.copy_(getattr(self, name))


def _fit(
    name: str,
    modules: dict[str, nn.Module],
    loss: Callable[[int, torch.Generator], Tensor],
    recipe: Recipe,
    root: Path,
) -> Iterator[Progress]:
    """Train `modules` on `loss(step, generator)`; resumes from its own checkpoint file.

    Yields every `EVERY` steps. All draws derive from (seed, name, step).
    """
    steps, lr = getattr(recipe, f"{name}_steps"), getattr(recipe, f"{name}_lr")
    turns = [Turn(0, steps, steps)] if name != "teacher" else teacher_turns(recipe)
    trained = nn.ModuleDict({k: v for k, v in modules.items() if not k.startswith("ema")})
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.98))
    saved = root / "cache" / f"{name}.safetensors"
    first, before = 0, 0.0
    if saved.exists():
        tensors = load_file(saved)
        first, before = int(tensors.pop("step")), float(tensors.pop("seconds"))
        if first < steps:  # the optimizer's slots exist only once it has stepped
            unpack_state(tensors, modules, optimizer)
        else:
            unpack_state(tensors, modules)
    start = time.perf_counter()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            turn = next(turn for turn in turns if step < turn.end)
            at, of = step - turn.start, turn.horizon
            group["lr"] = cosine_lr(at, of, lr, recipe.warmup)
        generator = torch.Generator().manual_seed(derive_seed(recipe.seed, name, step))
        value = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        for key, module in modules.items():
            if isinstance(module, Ema):
                module.update(modules[key.removeprefix("ema_")], step)
        seconds = before + time.perf_counter() - start
        if (step + 1) % KEEP_EVERY == 0 or step + 1 == steps:
            tensors = pack_state(modules, optimizer)
            tensors |= {"step": torch.tensor(step + 1), "seconds": torch.tensor(seconds)}
            _save(tensors, saved)
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            yield Progress(name, step + 1, steps, float(value.detach()), seconds)
    if first >= steps:
        yield Progress(name, steps, steps, float("nan"), before)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, stage)
    stage.replace(path)


# --- the VAE -------------------------------------------------------------------------------------


def new_vae(seed: int) -> Any:
    """A KL autoencoder with factor 8 and four latent channels, small."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=drawing.SIZE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train_vae(
    recipe: Recipe, found: list[drawing.Scene], pool: Tensor, root: Path
) -> Iterator[Progress]:
    """Reconstruct the pool's pictures; saves `teacher/vae` with its measured scaling factor."""
    vae = new_vae(recipe.seed)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (recipe.vae_batch,), generator=generator)
        x = to_unit(pool[index])
        # half the fp32 time on two cores; the other two models gain nothing from it
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            eps = torch.randn(posterior.mean.shape, generator=generator)
            y = vae.decode(posterior.mean + posterior.std * eps).sample.float()
        # nine tenths of a picture are ground: without weights the shapes' corners come last
        thing = ((x - x[:, :, :1, :1]).abs().amax(1, keepdim=True) > 0.1).float()
        error = (y - x).abs() + (y - x).square()
        rebuilt = ((1 + 4 * thing) * error).mean()
        return rebuilt + recipe.vae_kl * posterior.kl().float().mean() / posterior.mean[0].numel()

    yield from _fit("vae", {"vae": vae}, loss, recipe, root)
    vae.eval()
    with torch.no_grad():
        z = vae.encode(to_unit(pool[:512])).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / z.std()))
    vae.half().save_pretrained(root / "teacher" / "vae")


@torch.no_grad()
def encode_pool(vae: Any, pool: Tensor) -> Tensor:
    """Scaled VAE means of all the pool's pictures, (N, 4, 8, 8)."""
    rows = [vae.encode(to_unit(rows)).latent_dist.mean for rows in pool.split(256)]
    return torch.cat(rows) * vae.config.scaling_factor


# --- the diffusion teacher -----------------------------------------------------------------------


def new_unet(seed: int) -> Any:
    """A UNet with cross-attention at both of its resolutions."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
    )


def new_text_encoder(seed: int, tokenizer: Any) -> Any:
    """Stable Diffusion's text encoder, two layers deep."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=128,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> Any:
    """Stable Diffusion's own noise schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def is_binding(recipe: Recipe, step: int) -> bool:
    """Whether the step is in the stage that teaches which color belongs to which shape."""
    return recipe.binding_from <= step < recipe.layout_from


def draw_t(recipe: Recipe, step: int, count: int, generator: torch.Generator) -> Tensor:
    """Timesteps [count]: all alike while binding is taught, else mostly high.

    Only at high noise does the caption alone know the layout; but a shape shows later than its
    color, so that binding is learnt at the middle levels.
    """
    if is_binding(recipe, step):
        return torch.randint(*recipe.wide_range, (count,), generator=generator)
    wide = torch.randint(0, 1000, (count,), generator=generator)
    noisy = torch.randint(*recipe.high_range, (count,), generator=generator)
    chosen = torch.rand(count, generator=generator) < recipe.high_noise
    return torch.where(chosen, noisy, wide)


def error_weights(recipe: Recipe, step: int, alpha_bar: Tensor) -> Tensor:
    """Weight of the eps error at each t [T], of mean one over the t that the stage draws.

    1/SNR, clipped, for words and layout: plain eps-MSE gives next to nothing to the levels that
    tell them. Its square root while binding is taught.
    """
    noise_to_signal = (1 - alpha_bar) / alpha_bar
    if is_binding(recipe, step):
        weight, drawn = noise_to_signal.sqrt(), recipe.wide_range
    else:
        weight, drawn = noise_to_signal.clamp(1.0, recipe.snr_clip), recipe.high_range
    return weight / weight[slice(*drawn)].mean()


def stage_caption(recipe: Recipe, step: int, scene: drawing.Scene, rng: random.Random) -> str:
    """A caption for one picture at one step: from layout in passing to layout above all."""
    if step < recipe.binding_from:
        return drawing.teacher_caption(scene, rng)
    return drawing.layout_caption(scene, rng, 0.35 if is_binding(recipe, step) else 0.55)


def train_teacher(
    recipe: Recipe, found: list[drawing.Scene], pool: Tensor, root: Path
) -> Iterator[Progress]:
    """Train UNet and text encoder together; saves the `teacher` folder as a diffusers pipeline."""
    from diffusers import AutoencoderKL
    from transformers import AutoTokenizer

    drawing.build_tokenizer(root / "teacher" / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(root / "teacher" / "tokenizer")
    vae = AutoencoderKL.from_pretrained(root / "teacher" / "vae", torch_dtype=torch.float32).eval()
    unet = new_unet(recipe.seed).to(memory_format=torch.channels_last)
    text_encoder = new_text_encoder(recipe.seed, tokenizer)
    scheduler = new_scheduler()
    alpha_bar = scheduler.alphas_cumprod.float()
    latents = encode_pool(vae, pool)
    both = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    ema = Ema(both, recipe.ema)
    pairs = torch.tensor([i for i, scene in enumerate(found) if len(scene.things) == 2])

    def loss(step: int, generator: torch.Generator) -> Tensor:
        among = pairs if step >= recipe.pairs_from else torch.arange(len(pool))
        index = among[torch.randint(len(among), (recipe.teacher_batch,), generator=generator)]
        rng = random.Random(derive_seed(recipe.seed, "teacher caption", step))
        captions = [stage_caption(recipe, step, found[i], rng) for i in index.tolist()]
        t = draw_t(recipe, step, len(index), generator)
        z = latents[index]
        eps = torch.randn(z.shape, generator=generator)
        z_t = add_noise(z, eps, alpha_bar[t])
        ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        eps_hat = unet(z_t, t, text_encoder(ids).last_hidden_state).sample
        error = (eps_hat - eps).square().mean(dim=(1, 2, 3))
        return (error_weights(recipe, step, alpha_bar)[t] * error).mean()

    yield from _fit("teacher", {"both": both, "ema_both": ema}, loss, recipe, root)
    ema.copy_to(both)
    save_pipeline(vae, text_encoder, tokenizer, unet, scheduler, root / "teacher")


def save_pipeline(
    vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any, folder: Path
) -> None:
    """The folder that `StableDiffusionPipeline.from_pretrained` reads, weights in fp16."""
    from diffusers import StableDiffusionPipeline

    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    # the class that every release of transformers knows, whatever name this one has for it
    _edit(folder / "model_index.json", lambda document: document | {"tokenizer": TOKENIZER})
    # where the VAE was read from is nobody's business
    _edit(folder / "vae" / "config.json", lambda document: document | {"_name_or_path": "vae"})


def _edit(path: Path, change: Callable[[dict], dict]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=2) + "\n")


# --- the student ---------------------------------------------------------------------------------

STUDENT_CONFIG = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": drawing.SIZE,
        "layers": 4,
        "width": 128,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 24,
        "width": 128,
        "heads": 4,
        "layers": 4,
        "hf_tokenizer_name": "tokenizer",
        "tokenizer_kwargs": {"clean": "lower"},
    },
}


def train_student(
    recipe: Recipe, found: list[drawing.Scene], pool: Tensor, root: Path
) -> Iterator[Progress]:
    """Pre-train the student contrastively on alt-text-like captions; saves the `student` folder."""
    import open_clip

    folder = root / "student"
    drawing.build_tokenizer(folder)
    config = json.loads(json.dumps(STUDENT_CONFIG))
    config["text_cfg"]["vocab_size"] = len(drawing.vocabulary()) + 4
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2))
    torch.manual_seed(recipe.seed)
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=False)
    model.logit_scale.requires_grad_(True)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    mean = torch.tensor(preprocess["mean"]).view(3, 1, 1)
    std = torch.tensor(preprocess["std"]).view(3, 1, 1)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pool), (recipe.student_batch,), generator=generator)
        rng = random.Random(derive_seed(recipe.seed, "student caption", step))
        captions = [drawing.alt_caption(found[i], rng) for i in index.tolist()]
        image = model.encode_image((pool[index].float() / 255 - mean) / std, normalize=True)
        text = model.encode_text(tokenizer(captions), normalize=True)
        logits = model.logit_scale.exp().clamp(max=100.0) * image @ text.T
        # captions that are equal name each other's pictures too
        same = torch.tensor([[a == b for b in captions] for a in captions]).float()
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T)) / 2

    yield from _fit("student", {"student": model}, loss, recipe, root)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    _save(weights, folder / "open_clip_model.safetensors")


# --- building, measuring, provenance -------------------------------------------------------------

MINI_SETS = (
    ("winoground", "val"),
    ("winoground", "test"),
    ("aro-relation", "test"),
    ("aro-attribution", "test"),
    ("zeroshot-color", "test"),
    ("zeroshot-shape", "test"),
)
PARTS = {"vae": train_vae, "teacher": train_teacher, "student": train_student}


def scaled(scale: float) -> Recipe:
    """The recipe with a share of its steps and pictures, for trying it out."""
    full = Recipe()
    counts = {name: max(2, round(scale * getattr(full, name))) for name in
              ("vae_steps", "teacher_steps", "binding_from", "layout_from", "pairs_from",
               "student_steps")}  # fmt: skip
    return replace(full, **counts, pool=max(512, round(scale * full.pool)))


def target(config: MiniworldConfig) -> Path:
    """Where the models stand: `folder`, or data/mini."""
    return project_path(config.folder) if config.folder else project_root() / "data" / "mini"


def rebuild(config: MiniworldConfig) -> Iterator[Progress]:
    """Train all parts and put them into `target` when the last is done; goes on where it was cut.

    Works in `cache/build-<hash of the recipe>` beside them, so that the models that are there
    stay whole meanwhile.
    """
    recipe, home = scaled(config.scale), target(config)
    mark = hashlib.sha256(json.dumps(asdict(recipe)).encode()).hexdigest()[:8]
    work = home / "cache" / f"build-{mark}"
    if not config.resume:
        shutil.rmtree(work, ignore_errors=True)
    found, pool = pixel_pool(recipe, "pool")
    seconds: dict[str, float] = {}
    for part, make in PARTS.items():
        for progress in make(recipe, found, pool, work):
            seconds[part] = progress.seconds
            yield progress
    for name in ("teacher", "student"):
        swap_in(work / name, home / name)
    write_recipe(recipe, seconds, home)


def swap_in(new: Path, old: Path) -> None:
    """Put the folder `new` where `old` stands, in one rename once it is copied beside it."""
    stage = Path(tempfile.mkdtemp(prefix=f".{old.name}-", dir=old.parent))
    shutil.copytree(new, stage, dirs_exist_ok=True)
    stage.chmod(0o755)
    if old.exists():
        os.replace(old, stage.with_suffix(".old"))
    os.replace(stage, old)
    shutil.rmtree(stage.with_suffix(".old"), ignore_errors=True)


def digest(folder: Path) -> dict[str, dict]:
    """Size in bytes and sha256 of every file of the two models."""
    files = [p for name in ("student", "teacher") for p in (folder / name).rglob("*")]
    return {
        p.relative_to(folder).as_posix(): {
            "bytes": p.stat().st_size,
            "sha256": file_sha256(p),
        }
        for p in sorted(files)
        if p.is_file()
    }


def write_recipe(recipe: Recipe, seconds: dict[str, float], folder: Path) -> None:
    """`recipe.json`: recipe, seconds of each part, threads, and the digest of the files."""
    document = {"recipe": asdict(recipe), "seconds": seconds, "threads": torch.get_num_threads()}
    write_json(folder / "recipe.json", document | {"files": digest(folder)})


def provenance(folder: Path) -> pd.DataFrame:
    """The files beside `recipe.json`: size, hash, and whether they are the ones it names."""
    recorded = json.loads((folder / "recipe.json").read_text())["files"]
    there = digest(folder)
    rows = [
        {
            "file": name,
            "kB": there[name]["bytes"] / 1000,
            "sha256": there[name]["sha256"][:12],
            "as recorded": there[name]["sha256"] == recorded.get(name, {}).get("sha256"),
        }
        for name in there
    ]
    return pd.DataFrame(rows)


# --- what the notebook shows ---------------------------------------------------------------------


def ensure_models(
    config: MiniworldConfig, progress: Callable[[Iterable[Progress], int], Iterable[Progress]]
) -> None:
    """Rebuild the models where the config asks for it; otherwise they are as committed."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.rebuild:
        recipe = scaled(config.scale)
        reports = sum(-(-getattr(recipe, f"{part}_steps") // EVERY) for part in PARTS)
        for _ in progress(rebuild(config), reports):
            pass


def load(config: MiniworldConfig) -> tuple[Student, Teacher]:
    """Both models of `target(config)`, by the loaders that real models go through."""
    home = target(config)
    return load_student(f"local-dir:{home / 'student'}", None), load_teacher(str(home / "teacher"))


def examples(kind: str, count: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures with titles: training pairs ("coco") or both sides of items ("winoground")."""
    if kind == "coco":
        pairs = load_pairs("mini")
        return [pairs.image(i) for i in range(count)], [pairs.captions(i)[0] for i in range(count)]
    items = spread(benchmark("mini:winoground:test").items, count)
    images = [ref.load() for item in items for ref in item.images]
    return images, [caption for item in items for caption in item.captions]


def contents(world: Path) -> pd.DataFrame:
    """What the drawn files hold: one row a set."""
    rows = [{"set": f"COCO-shaped pairs, {split}", "items": len(load_pairs(source))}
            for split, source in (("train", "mini"), ("val", "mini:val"))]  # fmt: skip
    for name, split in MINI_SETS:
        found = benchmark(f"mini:{name}:{split}")
        labels = sorted({item.tags.get("collapsed_tag", "") for item in found.items} - {""})
        label = f"{name}, {split}" + (f" ({', '.join(labels)})" if labels else "")
        rows.append({"set": label, "items": len(found.items)})
    return pd.DataFrame(rows)


def samples(teacher: Teacher, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures that the teacher draws for captions of validation items."""
    items = spread(benchmark("mini:winoground:val").items, 6)
    captions = [caption for item in items for caption in item.captions]
    return teacher.sample(captions, 50, 3.0, seed), captions


def naming(student: Student) -> pd.DataFrame:
    """Zero-shot accuracy of the student on the labelled single-object images."""
    rows = []
    for task in ("color", "shape"):
        named = benchmark(f"mini:zeroshot-{task}")
        scores = evaluate.score_grids(evaluate.clip_scorer(student), named)
        rows.append(evaluate.tabulate(named, scores, by=()).assign(task=task))
    found = pd.concat(rows, ignore_index=True)
    return found[["task", "metric", "n", "accuracy", "low", "high", "chance"]]


def who_knows(
    student: Student, teacher: Teacher, items: int, draws: int, split: str = "val"
) -> pd.DataFrame:
    """`tables.tabulate` of student and teacher on `items` items of a split, even over the tags.

    The teacher's errors are divided by their mean at each t (the relative rule); the means come
    from validation items that are not scored.
    """
    whole = benchmark(f"mini:winoground:{split}")
    chosen = spread(whole.items, items)
    rest = [i for i in benchmark("mini:winoground:val").items if i not in chosen]
    errors = evaluate.error_table(evaluate.diffusion_scorer(teacher, draws), rest[-24:])
    scorers: dict[str, tuple[evaluate.Scorer, str]] = {
        "student": (evaluate.clip_scorer(student), ""),
        "teacher": (
            evaluate.diffusion_scorer(
                teacher, draws, profile=evaluate.error_profile(errors), empty=False, batch_size=128
            ),
            "relative",
        ),
    }
    rows = []
    for name, (scorer, rule) in scorers.items():
        scores = evaluate.score_grids(scorer, replace(whole, items=chosen))
        table = evaluate.tabulate(whole, scores, rule=rule, by=("collapsed_tag",))
        rows.append(table.assign(model=name))
    found = pd.concat(rows, ignore_index=True)
    return found[["model", *(c for c in found if c != "model")]]


def spread(items: Sequence, count: int) -> tuple:
    """`count` of the items, as many of each collapsed tag as can be."""
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(item.tags["collapsed_tag"], []).append(item)
    turns = itertools.zip_longest(*groups.values())
    return tuple(item for turn in turns for item in turn if item is not None)[:count]
