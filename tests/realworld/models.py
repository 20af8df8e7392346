"""A CLIP and a Stable Diffusion of true layout and tokenizer, a thousand times too small."""

import gzip
import json
from pathlib import Path

import diffusers
import open_clip
import torch
from open_clip.tokenizer import bytes_to_unicode, default_bpe
from safetensors.torch import save_file
from tiny import tiny_unet, tiny_vae
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

VOCABULARY = 49_408
WIDTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"


def student(folder: Path, seed: int = 0, config: dict | None = None) -> Path:
    """A `local-dir:` folder of open_clip: no `hf_tokenizer_name`, so its own tokenizer is used."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"width": WIDTH, "layers": 1}
    config = config or {
        "embed_dim": WIDTH,
        "vision_cfg": sizes | {"image_size": 48, "head_width": 16, "patch_size": 16},
        "text_cfg": sizes | {"context_length": 77, "vocab_size": VOCABULARY, "heads": 2},
    }
    clip = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    document = {"model_cfg": config, "preprocess_cfg": clip}
    (folder / "open_clip_config.json").write_text(json.dumps(document, indent=2))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def teacher(folder: Path, seed: int = 0) -> Path:
    """A pipeline folder as Stable Diffusion 1.4's: 8×8 latents of 64 pixels, 77 tokens."""
    tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=tiny_vae(sample_size=64, scaling_factor=0.18215),
        text_encoder=_text_encoder(),
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"),
        unet=tiny_unet(sample_size=8),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink()  # Stable Diffusion's repositories have none
    tokenizer(folder / "tokenizer")
    index = folder / "model_index.json"
    named = {"tokenizer": ["transformers", "CLIPTokenizer"]}
    index.write_text(json.dumps(json.loads(index.read_text()) | named, indent=2))
    return folder


def tokenizer(folder: Path) -> None:
    """CLIP's tokenizer as a Stable Diffusion's four files."""
    special = vocabulary(folder)
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | special))


def vocabulary(folder: Path, pad: str = END) -> dict[str, str]:
    """CLIP's words, merges and special tokens in files, from the list that open_clip has."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    merges = lines[1 : VOCABULARY - 2 * 256 - 2 + 1]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in merges] + [START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    numbers = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    text = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(text, encoding="utf-8")
    return special


def _text_encoder() -> CLIPTextModel:
    """The ids of start, end and padding are those that Stable Diffusion's config has on file."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    )
