"""How the mini-world's models are trained: a KL-VAE, a Stable Diffusion, an open_clip student.

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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdslib.checks.notebooks import MiniworldConfig
from sdslib.config import derive_seed
from sdslib.io.paths import project_path, project_root
from sdslib.io.storage import file_sha256, write_json
from sdslib.losses import add_noise
from sdslib.miniworld import drawing
from sdslib.miniworld import recipe as stages
from sdslib.miniworld.recipe import EVERY, Ema, Progress, Recipe, fit, save, scaled


def pixel_pool(recipe: Recipe, purpose: str) -> tuple[list[drawing.Scene], Tensor]:
    """The training scenes and their pictures, uint8 (N, 3, 64, 64)."""
    found = list(itertools.islice(drawing.scenes("train", purpose, recipe.single), recipe.pool))
    arrays = np.stack([np.asarray(drawing.draw(scene)) for scene in found])
    return found, torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 pixels as the diffusion model's floats in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


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

    yield from fit("vae", {"vae": vae}, loss, recipe, root)
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
        captions = [stages.stage_caption(recipe, step, found[i], rng) for i in index.tolist()]
        t = stages.draw_t(recipe, step, len(index), generator)
        z = latents[index]
        eps = torch.randn(z.shape, generator=generator)
        z_t = add_noise(z, eps, alpha_bar[t])
        ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        eps_hat = unet(z_t, t, text_encoder(ids).last_hidden_state).sample
        error = (eps_hat - eps).square().mean(dim=(1, 2, 3))
        return (stages.error_weights(recipe, step, alpha_bar)[t] * error).mean()

    yield from fit("teacher", {"both": both, "ema_both": ema}, loss, recipe, root)
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
    changes: dict[str, dict] = {
        # the class that every release of transformers knows, whatever name this one has for it
        "model_index.json": {"tokenizer": ["transformers", "PreTrainedTokenizerFast"]},
        # where the VAE was read from is nobody's business
        "vae/config.json": {"_name_or_path": "vae"},
    }
    for name, change in changes.items():
        document = json.loads((folder / name).read_text()) | change
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")


# --- the student ---------------------------------------------------------------------------------

STUDENT_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": drawing.SIZE, "layers": 4, "width": 128, "head_width": 32,
                   "patch_size": 8},
    "text_cfg": {"context_length": 24, "width": 128, "heads": 4, "layers": 4,
                 "hf_tokenizer_name": "tokenizer", "tokenizer_kwargs": {"clean": "lower"}},
}  # fmt: skip


def train_student(
    recipe: Recipe, found: list[drawing.Scene], pool: Tensor, root: Path
) -> Iterator[Progress]:
    """Pre-train the student contrastively on alt-text-like captions; saves the `student` folder."""
    import open_clip

    folder = root / "student"
    drawing.build_tokenizer(folder)
    text = STUDENT_CONFIG["text_cfg"] | {"vocab_size": len(drawing.vocabulary()) + 4}
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    document = {"model_cfg": STUDENT_CONFIG | {"text_cfg": text}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2))
    torch.manual_seed(recipe.seed)
    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=False)
    model.logit_scale.requires_grad_(True)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    mean, std = (torch.tensor(preprocess[name]).view(3, 1, 1) for name in ("mean", "std"))

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

    yield from fit("student", {"student": model}, loss, recipe, root)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save(weights, folder / "open_clip_model.safetensors")


# --- all of them, and where they are from --------------------------------------------------------

PARTS = {"vae": train_vae, "teacher": train_teacher, "student": train_student}


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
    found = (p for name in ("student", "teacher") for p in (folder / name).rglob("*"))
    return {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": file_sha256(p)}
        for p in sorted(p for p in found if p.is_file())
    }


def write_recipe(recipe: Recipe, seconds: dict[str, float], folder: Path) -> None:
    """`recipe.json`: recipe, seconds of each part, threads, and the digest of the files."""
    document = {"recipe": asdict(recipe), "seconds": seconds, "threads": torch.get_num_threads()}
    write_json(folder / "recipe.json", document | {"files": digest(folder)})


def provenance(folder: Path) -> pd.DataFrame:
    """The files beside `recipe.json`: size, hash, and whether they are the ones it names."""
    recorded = json.loads((folder / "recipe.json").read_text())["files"]
    rows = [(name, there["bytes"] / 1000, there["sha256"][:12],
             there["sha256"] == recorded.get(name, {}).get("sha256"))
            for name, there in digest(folder).items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["file", "kB", "sha256", "as recorded"])


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
