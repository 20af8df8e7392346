"""Repositories with the true layout, file names and configs; widths shrunk, weights drawn.

Stable Diffusion 1.4, 1.5 and 2.1 as diffusers' first releases left them on the Hub (old names of
the VAE's attention, `position_ids` in the text encoder, pickles and fp16 variants beside, a safety
checker, a checkpoint at the root); XL, 3.5 medium and FLUX.1-dev in the pieces that the Hub lists;
open_clip's models, Winoground, and sets beside it.
"""

import io
import json
import shutil
from pathlib import Path

import datasets
import open_clip
import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from realworld.models import END
from realworld.models import vocabulary as clip_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from sdslib.checks.models import SHAPES
from sdslib.io.families import encoders_of, parts_of, tokenizer_of
from sdslib.io.model_files import teacher_index
from sdslib.lab.random_models import drawn
from sdslib.sets.packaged import PACKAGES
from sdslib.teacher import class_of

TEXT, SIDE = 32, 8  # width of the text encoder, and latents a side
OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
TAGS = ("Object", "Relation", "Both")


def stable_diffusion(folder: Path, shape: str = "stable-diffusion-v1-4", seed: int = 0) -> Path:
    """A pipeline's repository by the name of its configs in the package."""
    torch.manual_seed(seed)
    for name in (p.relative_to(SHAPES / shape) for p in (SHAPES / shape).rglob("*.json")):
        write(folder / name, json.loads((SHAPES / shape / name).read_text()))
    clip_tokenizer(folder / "tokenizer")
    unet = UNet2DConditionModel.from_config(edit(folder / "unet/config.json", shrink_unet))
    vae = AutoencoderKL.from_config(edit(folder / "vae/config.json", shrink_vae))
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(**edit(folder / "text_encoder/config.json", shrink_text))
    )
    keep(folder / "unet", "diffusion_pytorch_model", unet.state_dict())
    keep(folder / "vae", "diffusion_pytorch_model", old_names(vae.state_dict()))
    places = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    state = {f"text_model.{n.removeprefix('text_model.')}": v for n, v in text.state_dict().items()}
    keep(folder / "text_encoder", "model", state | places, "pytorch_model")
    edit(folder / "model_index.json", add_checker)
    write(folder / "feature_extractor/preprocessor_config.json", {"crop_size": 224})
    write(folder / "safety_checker/config.json", {"model_type": "clip"})
    keep(folder / "safety_checker", "model", {"concept_embeds": torch.ones(2, 2)}, "pytorch_model")
    torch.save({"state_dict": {"x": torch.ones(1)}}, folder / checkpoint_name(shape))
    (folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\n---\n")
    return folder


# Widths of a later family's parts; the first row is SDXL's UNet.
SMALL = {
    "UNet2DConditionModel": {
        "block_out_channels": [32, 32, 64], "layers_per_block": 1, "attention_head_dim": [2, 2, 4],
        "transformer_layers_per_block": [1, 1, 1], "cross_attention_dim": 2 * TEXT,
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + TEXT,
        "sample_size": SIDE},
    "SD3Transformer2DModel": {
        "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "caption_projection_dim": 32, "joint_attention_dim": 2 * TEXT,
        "pooled_projection_dim": 2 * TEXT, "dual_attention_layers": [0], "sample_size": SIDE,
        "pos_embed_max_size": SIDE},
    "FluxTransformer2DModel": {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32,
        "num_attention_heads": 2, "axes_dims_rope": [8, 12, 12], "joint_attention_dim": 2 * TEXT,
        "pooled_projection_dim": TEXT},
    "T5EncoderModel": {"d_model": 2 * TEXT, "d_kv": 16, "d_ff": 64, "num_layers": 1,
                       "num_heads": 2},
}  # fmt: skip
# In how many pieces a part's weights are; those in half precision beside are in as many.
PIECES = {
    "stable-diffusion-3.5-medium": {"text_encoder_3": 2},
    "FLUX.1-dev": {"transformer": 3, "text_encoder_2": 2},
}


def later_teacher(folder: Path, shape: str, seed: int = 0) -> Path:
    """The repository of a later family, by the name of its configs in the package.

    XL's has all parts in half precision too, 3.5's its text encoders, FLUX's none.
    """
    torch.manual_seed(seed)
    shutil.copytree(SHAPES / shape, folder, dirs_exist_ok=True)
    for part, kind in parts_of(index := teacher_index(folder)).items():
        library, _, name = kind.partition(".")
        own = {"vae": shrink_vae}.get(part, shrink_text)
        own = (lambda config, own=SMALL[name]: config | own) if name in SMALL else own
        module = drawn(class_of(kind), edit(folder / part / "config.json", own))
        half = shape.endswith("xl-base-1.0") or (part in encoders_of(index) and "3.5" in shape)
        stem = "diffusion_pytorch_model" if library == "diffusers" else "model"
        for tag in ("", ".fp16") if half else ("",):
            state = {n: v.half() if tag else v for n, v in module.state_dict().items()}
            state.pop("encoder.embed_tokens.weight", None)  # T5's, one with `shared.weight`
            in_pieces(folder / part, stem, tag, state, PIECES.get(shape, {}).get(part, 1))
    for encoder in encoders_of(index):
        is_t5 = parts_of(index)[encoder].endswith("T5EncoderModel")
        own = folder / tokenizer_of(encoder)
        t5_tokenizer(own) if is_t5 else clip_tokenizer(own, "!" if encoder.endswith("_2") else END)
    (folder / f"{shape}.safetensors").write_bytes(b"all weights in one file, which nobody reads")
    (folder / "README.md").write_text("---\nlibrary_name: diffusers\n---\n")
    return folder


def in_pieces(folder: Path, stem: str, tag: str, state: dict, count: int) -> None:
    """Weights in one file, or in several with a table that says which holds what."""
    names, made = sorted(state), {}
    for n in range(count):
        number = f"-{n + 1:05}-of-{count:05}" if count > 1 else ""
        part = {name: state[name].contiguous() for name in names[n::count]}
        save_file(part, folder / f"{stem}{tag}{number}.safetensors", metadata={"format": "pt"})
        made |= dict.fromkeys(part, f"{stem}{tag}{number}.safetensors")
    if count > 1:
        size = sum(value.nbytes for value in state.values())
        table = {"metadata": {"total_size": size}, "weight_map": made}
        write(folder / f"{stem}.safetensors.index{tag}.json", table)


def t5_tokenizer(folder: Path) -> None:
    """T5's form, `tokenizer.json` of a unigram model, with a vocabulary of letters alone."""
    marks, letters = (
        ["<pad>", "</s>", "<unk>"],
        "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,0123456789",
    )
    words = [(mark, 0.0) for mark in marks] + [(letter, -2.0) for letter in letters]
    made = Tokenizer(Unigram(words, unk_id=2))
    made.pre_tokenizer = Metaspace()
    made.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(marks)
    made.save(str(folder / "tokenizer.json"))


def checkpoint_name(shape: str) -> str:
    return {"stable-diffusion-v1-4": "sd-v1-4.ckpt", "stable-diffusion-v1-5":
            "v1-5-pruned-emaonly.ckpt"}.get(shape, "v2-1_768-ema-pruned.ckpt")  # fmt: skip


def shrink_unet(config: dict) -> dict:
    heads = config["attention_head_dim"]
    return config | {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1,
                     "attention_head_dim": [2, 2, 4, 4] if isinstance(heads, list) else heads,
                     "cross_attention_dim": TEXT, "sample_size": SIDE}  # fmt: skip


def shrink_vae(config: dict) -> dict:
    return config | {"block_out_channels": [32] * 4, "layers_per_block": 1,
                     "sample_size": 8 * SIDE}  # fmt: skip


def shrink_text(config: dict) -> dict:
    return config | {"hidden_size": TEXT, "intermediate_size": 2 * TEXT, "num_hidden_layers": 2,
                     "num_attention_heads": 2, "projection_dim": TEXT}  # fmt: skip


def add_checker(index: dict) -> dict:
    return index | {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "_diffusers_version": "0.2.2",
    }


def old_names(state: dict) -> dict:
    """The VAE's attention under the names that these weights still have on the Hub."""
    found = {}
    for name, value in state.items():
        for new, old in OLD.items():
            name = name.replace(new, old)
        found[name] = value
    return found


def keep(folder: Path, name: str, state: dict, pickled: str | None = None) -> None:
    """The weights in all forms that stand beside each other: fp32 and fp16, pickled too."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.clone().contiguous() for key, value in state.items()}
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    for tag, values in (("", state), (".fp16", half)):
        save_file(values, folder / f"{name}{tag}.safetensors", metadata={"format": "pt"})
        torch.save(values, folder / f"{pickled or name}{tag}.bin")


def open_clip_model(
    folder: Path, name: str = "ViT-B-16", small: bool = True, seed: int = 0, pickled: bool = True
) -> Path:
    """A repository of open_clip's: its config, weights in both forms, and CLIP's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = open_clip.get_model_config(name)
    if small:
        config["embed_dim"] = 16
        config["vision_cfg"] |= {"width": 32, "layers": 2, "head_width": 16, "image_size": 32}
        config["vision_cfg"]["patch_size"] = 8
        config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    means = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    clip_tokenizer(folder)
    write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer",
                                             "model_max_length": 77})  # fmt: skip
    return _open_clip(folder, config, means, seed, pickled)


def _open_clip(folder: Path, config: dict, pixels: dict, seed: int, pickled: bool = True) -> Path:
    write(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": pixels})
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}")
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    if pickled:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    (folder / "README.md").write_text("---\nlibrary_name: open_clip\n---\n")
    return folder


def siglip(folder: Path, repo: str = "timm/ViT-B-16-SigLIP", seed: int = 0) -> Path:
    """timm/ViT-B-16-SigLIP: a logit bias, a tower of timm's, a tokenizer of pieces as T5's."""
    config = open_clip.get_model_config(repo.split("/")[1])
    pieces = [
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((c, -3.0) for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    words = Tokenizer(
        Unigram([*pieces, *((f"\u2581{w}", -4.0) for w in ("a", "the", "man", "dog"))], unk_id=1)
    )
    words.pre_tokenizer, words.decoder = Metaspace(), MetaspaceDecoder()
    words.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    marks = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    folder.mkdir(parents=True, exist_ok=True)
    words.save(str(folder / "tokenizer.json"))
    write(folder / "special_tokens_map.json", marks)
    own = {"tokenizer_class": "T5Tokenizer", "model_max_length": 64, "extra_ids": 0}
    write(folder / "tokenizer_config.json", marks | own)
    config["embed_dim"] = 64
    config["vision_cfg"] |= {"image_size": 32, "timm_model_name": "test_vit"}
    config["text_cfg"] |= {"width": 32, "heads": 2, "layers": 2}
    half = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    return _open_clip(folder, config, half, seed)


def winoground(folder: Path, count: int = 18) -> Path:
    """facebook/winoground: its columns, its name of the parquet file, pictures of several sizes."""
    rows = [{
        "id": i, "image_0": picture(2 * i), "image_1": picture(2 * i + 1),
        "caption_0": f"an old person kisses young person {i}",
        "caption_1": f"a young person kisses old person {i}",
        "tag": "Adjective-Age", "secondary_tag": "", "num_main_preds": 1 + i % 2,
        "collapsed_tag": TAGS[i % 3]} for i in range(count)]  # fmt: skip
    image = datasets.Image()
    features = datasets.Features({
        "id": datasets.Value("int32"), "image_0": image, "image_1": image,
        **{n: datasets.Value("string") for n in ("caption_0", "caption_1", "tag", "secondary_tag")},
        "num_main_preds": datasets.Value("int32"), "collapsed_tag": datasets.Value("string"),
    })  # fmt: skip
    (folder / "data").mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(folder / "data/test-00000-of-00001-cff9a4fb5d0c4f4e.parquet")
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: test\n"
    (folder / "README.md").write_text(f"{card}    path: data/test-*\n---\n# Winoground\n")
    write(folder / "statistics/language_bias.json", {})
    return folder


def bivlc(folder: Path, count: int = 6) -> Path:
    """imirandam/BiVLC: two parquet files, the images under COCO's names."""
    rows = [{"image": picture(i) | {"path": f"{i:012d}.jpg"}, "caption": f"a dog beside cat {i}",
             "negative_caption": f"a cat beside dog {i}", "negative_image": picture(50 + i),
             "type": ("replace", "swap", "add")[i % 3], "subtype": ("obj", "att")[i % 2]}
            for i in range(count)]  # fmt: skip
    return _tables(folder, rows, ("image", "negative_image"))


def colorswap(folder: Path, count: int = 4) -> Path:
    """stanfordnlp/colorswap: parquet of its test split."""
    rows = [{"id": 9 + 2 * i, "image_1": picture(i), "image_2": picture(50 + i),
             "caption_1": f"a blue raft on white water {i}",
             "caption_2": f"a white raft on blue water {i}",
             "image_source": "midjourney", "caption_source": "human"}
            for i in range(count)]  # fmt: skip
    return _tables(folder, rows, ("image_1", "image_2"))


def vismin(folder: Path, count: int = 8) -> Path:
    """mair-lab/vismin-bench: arrow files below data/test, as `save_to_disk` leaves them."""
    kinds = ("object", "attribute", "counting", "relation")
    rows = [{"image_0": picture(i), "text_0": f"one cat {i}", "image_1": picture(50 + i),
             "text_1": f"two cats {i}", "id": str(i), "category": kinds[i % 4]}
            for i in range(count)]  # fmt: skip
    made = _dataset(rows, ("image_0", "image_1"))
    datasets.DatasetDict({"test": made}).save_to_disk(folder / "data", num_shards={"test": 2})
    return folder


def mmvp(folder: Path, pairs: int = 3) -> Path:
    """MMVP/MMVP_VLM: Questions.csv, and the images in one folder a pattern."""
    lines, patterns = ["Question ID,Type,Statement"], ("Orientation", "Structural Character")
    for i in range(1, 2 * pairs + 1):
        pattern = patterns[(i - 1) // 2 % 2]
        lines.append(f'{i},{pattern},"a dog, facing {("left", "right")[i % 2]} {i}"')
        home = folder / "MLLM_VLM Images" / pattern
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{i}.jpg").write_bytes(picture(i, "JPEG")["bytes"])
    (folder / "Questions.csv").write_text("\r\n".join(lines) + "\r\n")
    return folder


def mteb(folder: Path, name: str, count: int = 4) -> Path:
    """mteb/ARO-Visual-Relation and its like: two rows an image, which is inside."""
    package, rows = PACKAGES[name], []
    for i in range(count):
        row = {package.image: picture(i // 2)}
        row |= {column: f"{column} of {i}" for column in package.captions}
        if package.tag[1]:
            names = {"relation_name": ("on", "left of")[i % 2], "attributes": ["red", f"tall {i}"]}
            bbox = {"x": 4.0 * (i % 2), "y": 0.0, "w": 8.0, "h": 6.0}
            row |= {package.tag[1]: names[package.tag[1]], "bbox": bbox}
        rows.append(row)
    return _tables(folder, rows, (package.image,), package.split)


def _dataset(rows: list[dict], images: tuple[str, ...]) -> datasets.Dataset:
    made = datasets.Dataset.from_list(rows)
    for column in images:
        made = made.cast_column(column, datasets.Image(decode=False))
    return made


def _tables(folder: Path, rows: list[dict], images: tuple[str, ...], split: str = "test") -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    made = _dataset(rows, images)
    for n in range(2):
        made.shard(2, n).to_parquet(folder / f"data/{split}-0000{n}-of-00002.parquet")
    return folder


def picture(seed: int, ending: str = "PNG") -> dict:
    """A drawn picture as a cell of a data set: its encoded bytes."""
    generator = torch.Generator().manual_seed(seed)
    size = (40 + seed % 7, 36 + seed % 5, 3)
    noise = torch.randint(0, 255, size, generator=generator, dtype=torch.uint8)
    with io.BytesIO() as file:
        Image.fromarray(noise.numpy()).save(file, ending)
        return {"bytes": file.getvalue(), "path": f"ex_{seed}.png"}


def coco(folder: Path, count: int = 8) -> str:
    """A handful of pairs in COCO's layout; gives what `train_data` takes."""
    images = folder / "train2017"
    images.mkdir(parents=True, exist_ok=True)
    rows, notes = [], []
    for i in range(count):
        name = f"{i + 100:012d}.jpg"
        (images / name).write_bytes(picture(500 + i, "JPEG")["bytes"])
        rows.append({"id": i + 100, "file_name": name, "height": 40, "width": 36})
        notes.append({"id": i, "image_id": i + 100, "caption": f"A man number {i} rides a horse."})
    write(folder / "annotations/captions_train2017.json",
          {"images": rows, "annotations": notes})  # fmt: skip
    return f"{folder}/annotations/captions_train2017.json::{images}"


def write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2))


def edit(file: Path, change) -> dict:
    """Change a JSON file; gives what is in it now."""
    write(file, change(json.loads(file.read_text())))
    return json.loads(file.read_text())


def move_weights(file: Path, seed: int = 1) -> None:
    """Other weights under the same name, as a new commit on `main`."""
    torch.manual_seed(seed)
    state = {k: v + 0.01 * torch.randn_like(v) if v.is_floating_point() else v
             for k, v in load_file(file).items()}  # fmt: skip
    save_file(state, file, metadata={"format": "pt"})
