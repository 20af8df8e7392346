"""A student as transformers' `CLIPModel`, with its tokenizer and image processor.

What is written is loaded again and held to the student before it is used by anybody.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

from sdslib.io import model_files
from sdslib.io.model_files import WeightsError
from sdslib.io.storage import write_json
from sdslib.student import Student

TOLERANCE = 1e-5  # between unit embeddings in float32, of the same picture or caption
# open_clip's names of weights as transformers'; the second part is of one block.
_NAMES = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # as it is spelt there
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection(\.weight)?$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_TRANSPOSED = ("visual.proj", "text_projection")
# What open_clip's cleaning makes of single characters, and of the commonest entities of HTML; its
# repair of text that was decoded wrongly (ftfy) is no table.
_CLEANED = {
    **{"‘": "'", "’": "'", "‛": "'", "“": '"', "”": '"', "‟": '"'},
    **{"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "ft", "ﬆ": "st"},
    **{"&amp;": "&", "&quot;": '"', "&#39;": "'", "&lt;": "<", "&gt;": ">", "&nbsp;": " "},
}


def write(student: Student, folder: Path) -> float:
    """Fill an empty folder with `CLIPModel`, `CLIPProcessor` and a passport; says how near it is.

    That is the largest difference of any number of the unit embeddings of pictures and captions
    from the student's. WeightsError where `CLIPModel` has no place for something of the student,
    or the difference is above `TOLERANCE`.
    """
    stays = f"{student.origin.name} stays in open_clip's form"
    if told := "; ".join(problems(student)):
        raise WeightsError(f"{stays}: transformers' CLIPModel has no place for it ({told})")
    transformers.utils.logging.disable_progress_bar()
    tokenizer = _tokenizer(student)
    model = CLIPModel(_config(student, tokenizer)).eval()
    _fill(model, student, stays)
    model.save_pretrained(folder)
    CLIPProcessor(_image_processor(student), tokenizer).save_pretrained(folder)
    found = difference(student, folder)
    if not found <= TOLERANCE:
        raise WeightsError(
            f"{stays}: embeddings of transformers' form differ from it by {found:.1e}, "
            f"more than {TOLERANCE:.0e}"
        )
    passport = {"model": student.origin.name, "form": "transformers.CLIPModel", "precision": "fp32",
                "difference": found, "from": student.embeds()}  # fmt: skip
    write_json(folder / model_files.PASSPORT, passport)
    return found


def problems(student: Student) -> Iterator[str]:
    """What of the student `CLIPModel` has no place for, in words, besides weights."""
    model = student.model
    kind, image = type(model).__name__, type(model.visual).__name__
    if kind != "CLIP":
        yield f"it is a {kind}"
    elif image != "VisionTransformer":
        yield f"its image tower is a {image}"
    else:
        yield from (said for said, holds in _small_print(student).items() if holds)


def _small_print(student: Student) -> dict[str, bool]:
    """What no weight tells of a model of CLIP's own two towers."""
    model, visual, pool = student.model, student.model.visual, student.model.text_pool_type
    causal = torch.full((model.context_length,) * 2, -math.inf).triu(1)
    cleaning = student.tokenizer.clean_fn.__name__
    return {
        "its image tower does not read the class token": visual.pool_type != "tok",
        # By the end token whose id is 2, transformers would take the highest id of a caption.
        f"its text tower pools by {pool!r}": (pool, model.text_eos_id) == ("eos", 2)
        or pool not in ("argmax", "eos"),
        "its words see later ones": model.attn_mask is None
        or not torch.equal(model.attn_mask.cpu(), causal),
        "its pictures or patches are not square": len({*visual.image_size}) > 1
        or len({*visual.patch_size}) > 1,
        "it has a logit bias, as SigLIP's": model.logit_bias is not None,
        "its pictures are padded": student.preprocessing.get("resize_mode") == "longest",
        "its captions lose their punctuation": "canonicalize" in cleaning,
    }


# --- the model -----------------------------------------------------------------------------------


def _config(student: Student, tokenizer: Any) -> CLIPConfig:
    model, visual = student.model, student.model.visual
    # 2 has transformers take the highest id of a caption, as open_clip does. The token's own id is
    # clearer, and the same where it is the highest that there is.
    end = tokenizer.eos_token_id if tokenizer.eos_token_id == len(tokenizer) - 1 else 2
    words = {
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context_length,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": end if model.text_pool_type == "argmax" else model.text_eos_id,
    }
    pixels = {"image_size": visual.image_size[0], "patch_size": visual.patch_size[0]}
    return CLIPConfig(
        text_config=_tower(model.transformer, model.ln_final, student.width) | words,
        vision_config=_tower(visual.transformer, visual.ln_post, student.width) | pixels,
        projection_dim=student.width,
    )


def _tower(transformer: Any, norm: nn.LayerNorm, projection: int) -> dict[str, Any]:
    """What both towers are described by."""
    block = transformer.resblocks[0]
    act, parts = block.mlp.gelu, block.modules()  # LoRA wraps the attention
    plain = "gelu" if getattr(act, "approximate", "none") == "none" else "gelu_pytorch_tanh"
    return {
        "hidden_size": norm.weight.numel(),
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": next(m.num_heads for m in parts if hasattr(m, "num_heads")),
        "hidden_act": "quick_gelu" if type(act).__name__ == "QuickGELU" else plain,
        "layer_norm_eps": norm.eps,
        "projection_dim": projection,
    }


def _fill(model: CLIPModel, student: Student, stays: str) -> None:
    """Give the model the student's weights; WeightsError names what has no place in it."""
    there, found = model.state_dict(), dict[str, Tensor]()
    for name, value in student.weights().items():
        for new, part in _renamed(name, value):
            if new not in there or there[new].shape != part.shape:
                raise WeightsError(f"{stays}: transformers' CLIPModel has no place for {name!r}")
            found[new] = part.contiguous()
    if lacking := sorted(there.keys() - found):
        raise WeightsError(
            f"{stays}: it has no {lacking[0]!r}, which transformers' CLIPModel needs"
        )
    model.load_state_dict(found)


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A weight under its name, or names, in transformers."""
    if name == "logit_scale":  # above 100 the student takes 100, and so does CLIP's training
        yield name, value.clamp(max=math.log(100)).reshape(())
        return
    new = name
    for old, other in _NAMES:
        new = re.sub(old, other, new)
    if ".in_proj_" in new:
        for part, rows in zip("qkv", value.chunk(3), strict=True):
            yield new.replace(".in_proj_", f".{part}_proj."), rows
    else:
        yield new, value.T if name in _TRANSPOSED else value


# --- what pictures and captions go through -------------------------------------------------------


def _image_processor(student: Student) -> CLIPImageProcessorPil:
    """The student's preprocessing; with Pillow, as open_clip resizes."""
    cfg, side = student.preprocessing, student.image_size[0]
    square = {"height": side, "width": side}
    squash, bilinear = cfg.get("resize_mode") == "squash", cfg.get("interpolation") == "bilinear"
    return CLIPImageProcessorPil(
        size=square if squash else {"shortest_edge": side},
        crop_size=square,
        do_center_crop=not squash,
        resample=Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC,
        image_mean=list(cfg["mean"]),
        image_std=list(cfg["std"]),
    )


def _tokenizer(student: Student) -> Any:
    """The student's tokenizer as transformers', cleaning included."""
    own = student.tokenizer
    inner = getattr(own, "tokenizer", None) or _byte_pairs(own)
    backend = json.loads(inner.backend_tokenizer.to_str())
    steps: list[Any] = [
        *({"type": "Replace", "pattern": {"String": old}, "content": new}
          for old, new in _CLEANED.items()),
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Lowercase"} if "lower" in own.clean_fn.__name__ else None,
        backend["normalizer"],
    ]  # fmt: skip
    backend["normalizer"] = {"type": "Sequence", "normalizers": [s for s in steps if s]}
    marks = {n: str(v) for n, v in inner.special_tokens_map.items() if not isinstance(v, list)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(inner.backend_tokenizer).from_str(json.dumps(backend)),
        model_max_length=own.context_length,
        **marks,
    )


def _byte_pairs(own: Any) -> transformers.CLIPTokenizerFast:
    """open_clip's tokenizer, its two marks named as CLIP's are in transformers."""
    named = dict(zip(own.all_special_ids, ("<|startoftext|>", "<|endoftext|>"), strict=True))
    vocab = {named.get(number, word): number for word, number in own.encoder.items()}
    return transformers.CLIPTokenizerFast(vocab=vocab, merges=[*own.bpe_ranks])


# --- is it the same ------------------------------------------------------------------------------


def difference(student: Student, folder: Path, seed: int = 0) -> float:
    """How far the folder's unit embeddings are from the student's, at most, on drawn examples."""
    pictures, captions = _pictures(student, seed), _captions(student, seed)
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor.from_pretrained(folder, backend="pil")
    given = processor(
        text=captions, images=pictures, return_tensors="pt", padding=True, truncation=True
    )
    student.eval()
    device = student.scale.device
    with torch.no_grad():
        found = model(**given)
        pixels = torch.stack([student.transform(picture) for picture in pictures]).to(device)
        image = student.encode_images(pixels).cpu() - found.image_embeds
        text = student.encode_texts(student.tokenize(captions).to(device)).cpu() - found.text_embeds
    return max(float(image.abs().max()), float(text.abs().max()))


def _pictures(student: Student, seed: int) -> list[Image.Image]:
    """Smooth noise, square, wide and tall, of the student's size and larger.

    None exceeds the square by 4 k + 3 pixels: there transformers crops one pixel beside open_clip.
    """
    rng, side = np.random.default_rng(seed), student.image_size[0]
    found = []
    for k, more in enumerate((0, 1, 2, 4 * (side // 8), 4 * (side // 4) + 1, 4 * side)):
        noise = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        size = [(1 + k % 3) * side, (1 + k % 3) * (side + more)]
        found.append(noise.resize(size[:: 1 - 2 * (k % 2)], Image.Resampling.BICUBIC))
    return found


def _captions(student: Student, seed: int) -> list[str]:
    """Words of the student's vocabulary, some captions longer than it reads."""
    rng, own = np.random.default_rng(seed), student.tokenizer
    inner = getattr(own, "tokenizer", None)
    vocab = own.encoder if inner is None else inner.get_vocab()
    words = sorted(
        w for w in (v.removesuffix("</w>") for v in vocab) if w.isascii() and w.isalpha()
    )
    lengths = (1, 2, 3, 5, 8, 13, 21, 2 * own.context_length)
    captions = [" ".join(rng.choice(words, size=n)) for n in lengths]
    free = ["A man’s “hat” &amp; 2 ﬁsh, café!", "  naïve\n  TEXT "] if inner is None else []
    return captions + free
