"""Tiny real models in folders: the library only ever sees a path.

`save_student` writes an open_clip folder, `save_teacher` a diffusers folder; both hold a word-level
tokenizer of their own, as the mini-world's do.
"""

import io
import json
from pathlib import Path

import open_clip
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = (
    *("a", "an", "and", "above", "below", "blue", "circle", "green", "is", "large", "left", "of"),
    *("on", "red", "right", "small", "square", "the", "triangle", "white", "yellow"),
)
CONTEXT = 16  # tokens, start and end included
SIZE = 32  # pixels of the student's image side
LATENT = (4, 4, 4)  # of a 32-pixel image under the tiny VAE's factor 8


def png(picture, size=(24, 24)) -> bytes:
    """The PNG file of a picture, or of a plain color."""
    if not isinstance(picture, Image.Image):
        picture = Image.new("RGB", size, picture)
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


def write_json(path, document) -> Path:
    """Write a document into a folder that is made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def build_tokenizer(words=WORDS, length=CONTEXT) -> PreTrainedTokenizerFast:
    """Lower-casing word-level tokenizer; [PAD] is 0 and [END] has the highest id."""
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[START]", *words, "[END]"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[START] $A [END]",
        special_tokens=[(token, vocab[token]) for token in ("[START]", "[END]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="[START]",
        eos_token="[END]",
        model_max_length=length,
    )


def student_config(**changes) -> dict:
    """A two-layer ViT and a two-layer text tower of width 32, embedding width 16."""
    return {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": SIZE,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "head_width": 16,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": len(WORDS) + 4,
            "width": 32,
            "heads": 2,
            "layers": 2,
            "hf_tokenizer_name": "local",
        },
    } | changes


# timm's tower, open_clip's pooling and projection after it, and its pixels a side.
FAMILIES = {
    "siglip": ("test_vit", "map", "none", SIZE),
    "convnext": ("test_convnext", "", "linear", SIZE),
    "eva": ("eva02_tiny_patch14_224", "token", None, 224),
    "mobileclip": ("fastvit_mci0", "avg", None, 64),
}
RESNET = {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
COCA = {
    "custom_text": True,
    "multimodal_cfg": {
        "context_length": CONTEXT,
        "vocab_size": len(WORDS) + 4,
        "width": 32,
        "heads": 2,
        "layers": 2,
    },
}


def coca_config() -> dict:
    """A CoCa of the same size: attentional pooling and a text decoder."""
    config = student_config(**COCA)
    config["vision_cfg"] |= {
        "attentional_pool": True,
        "attn_pooler_queries": 4,
        "attn_pooler_heads": 2,
        "output_tokens": True,
    }
    config["text_cfg"] |= {"embed_cls": True, "output_tokens": True, "context_length": CONTEXT - 1}
    return config


def family_config(name: str, **text) -> dict:
    """A student of another family than CLIP's, its image tower one of timm's smallest."""
    tower, pool, projection, size = FAMILIES[name]
    vision = {"image_size": size, "timm_model_name": tower, "timm_model_pretrained": False}
    config = student_config(
        vision_cfg=vision | {"timm_pool": pool, "timm_proj": projection},
        custom_text=name != "convnext",
    )
    config["text_cfg"] |= text
    if name in ("siglip", "mobileclip"):
        config["text_cfg"] |= {"no_causal_mask": True}
    if name == "siglip":  # no projection after its image tower's attention pooling
        config |= {"embed_dim": 64, "init_logit_bias": -10}
        config["text_cfg"] |= {"proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    return config


def save_student(folder, config=None, seed=0, dtype=torch.float32) -> Path:
    """Write a randomly initialized open_clip model as a `local-dir:` folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "model_cfg": config or student_config(),
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(document))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}")
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)  # so that a moved BatchNorm statistic would show
        if name == "text_decoder.text_projection":
            value.normal_(std=0.1)  # open_clip leaves it as whatever the memory held
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    build_tokenizer().save_pretrained(folder)
    return folder


def save_teacher(folder, prediction_type="epsilon", seed=0, dtype=torch.float32, **unet) -> Path:
    """Write a Stable Diffusion of 0.8M parameters as a pipeline folder."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=build_tokenizer(),
        unet=tiny_unet(**unet),
        scheduler=noise_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _save(pipeline.to(dtype=dtype), folder)


def _save(pipeline, folder, **how) -> Path:
    pipeline.save_pretrained(folder, **how)
    index = Path(folder, "model_index.json")
    document = json.loads(index.read_text())
    for name in document.keys() & {"tokenizer", "tokenizer_2", "tokenizer_3"}:
        if document[name][0]:
            document[name] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(document, indent=2))
    return Path(folder)


def noise_scheduler(prediction_type="epsilon"):
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
        steps_offset=1,
    )


def save_xl(folder, seed=0, **how) -> Path:
    """A Stable Diffusion XL: a UNet that takes pooled text and sizes, and two text encoders."""
    torch.manual_seed(seed)
    sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return _save(
        StableDiffusionXLPipeline(
            vae=tiny_vae(scaling_factor=0.13025),
            text_encoder=tiny_text_encoder(),
            text_encoder_2=tiny_text_encoder(CLIPTextModelWithProjection, projection_dim=24),
            **_tokenizers(2),
            unet=tiny_unet(
                cross_attention_dim=64, projection_class_embeddings_input_dim=24 + 6 * 8, **sizes
            ),
            scheduler=noise_scheduler(),
            add_watermarker=False,
        ),
        folder,
        **how,
    )


def save_sd3(folder, seed=0, t5=True, **how) -> Path:
    """A Stable Diffusion 3.5: T5 wider than both CLIP encoders, or none; a shifted schedule."""
    torch.manual_seed(seed)
    projected = (tiny_text_encoder(CLIPTextModelWithProjection, projection_dim=n) for n in (24, 16))
    return _save(
        StableDiffusion3Pipeline(
            vae=tiny_vae(scaling_factor=1.5305, shift_factor=0.0609),
            **dict(zip(("text_encoder", "text_encoder_2"), projected, strict=True)),
            text_encoder_3=tiny_t5(72) if t5 else None,
            **_tokenizers(3 if t5 else 2),
            **({} if t5 else {"tokenizer_3": None}),
            transformer=SD3Transformer2DModel(
                sample_size=LATENT[1],
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=72,
                caption_projection_dim=32,
                pooled_projection_dim=24 + 16,
                pos_embed_max_size=4,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
        folder,
        **how,
    )


def save_flux(folder, seed=0, guidance=True, **how) -> Path:
    """A FLUX.1: packed latents, rotary places, guidance as an input, a dynamic shift."""
    torch.manual_seed(seed)
    return _save(
        FluxPipeline(
            vae=tiny_vae(scaling_factor=0.3611, shift_factor=0.1159),
            text_encoder=tiny_text_encoder(),
            text_encoder_2=tiny_t5(40),
            **_tokenizers(2),
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=40,
                pooled_projection_dim=32,
                guidance_embeds=guidance,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        ),
        folder,
        **how,
    )


def _tokenizers(count):
    names = ("tokenizer", "tokenizer_2", "tokenizer_3")[:count]
    return {name: build_tokenizer() for name in names}


def tiny_unet(**changes) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": LATENT[1],
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        | changes
    )


def tiny_vae(**changes) -> AutoencoderKL:
    return AutoencoderKL(
        **{
            "latent_channels": 4,
            "layers_per_block": 1,
            "sample_size": SIZE,
            "block_out_channels": (32,) * 4,
            "scaling_factor": 0.5,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        }
        | changes
    )


def tiny_t5(width) -> T5EncoderModel:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS) + 4, feed_forward_proj="gated-gelu", **sizes)
    )


def tiny_text_encoder(kind=CLIPTextModel, **changes):
    end = len(WORDS) + 3
    return kind(
        CLIPTextConfig(
            vocab_size=end + 1,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            bos_token_id=2,
            eos_token_id=end,
            pad_token_id=0,
            **changes,
        )
    )
