"""CLIP behind `encode_images`, `encode_texts` and `scale`; what trains is data.

B pairs, D embedding, P width before projection, S pixels a side, M token length.
The only door to open_clip and peft.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import pandas as pd
import peft
import torch
import torch.nn.functional as F
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from open_clip.pretrained import download_pretrained
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sdslib.io import hub, model_files
from sdslib.io.images import central
from sdslib.io.model_files import WeightsError, shown, student_file_problem
from sdslib.io.paths import project_path
from sdslib.io.sources import AccessError
from sdslib.io.storage import MANIFEST, file_sha256, manifest_problem, staged_folder, write_json

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
HUB_WEIGHTS = (WEIGHTS, "open_clip_pytorch_model.safetensors")  # as open_clip itself prefers them
TOKENIZERS = ("tokenizer", "vocab", "merges", "special_tokens")
Found = TypeVar("Found")
LOCAL = "clip_model a local-dir: folder"

# What trains, by regular expressions over open_clip's parameter names. A group named `last` keeps
# the highest number that occurs. BatchNorm counts as a norm (its running statistics never move).
TRAINABLE: dict[str, tuple[str, ...]] = {
    "layernorm": (
        r"(^|\.)(ln|ln_\w+|norm\d?|norm_\w+|\w+_norm|\w*LayerNorm|bn\d?)\.\w+$",
        r"^visual\.layer\d\.\d+\.downsample\.1\.",
        r"^visual\.trunk\.(stem\.1|stages\.\d\.downsample\.0)\.",  # ConvNeXt
    ),
    "bias": (r"bias$",),
    "projection": (
        r"^visual\.(proj$|attnpool\.c_proj\.|head\.)",
        r"^(text\.)?text_projection",
        r"^text\.proj\.",
    ),
    "attention": (
        r"\.(attn|attention|self_attn)\.",
        r"^visual\.attnpool\.[kqvc]_proj\.",
        r"^visual\.attn_pool\w*\.(query$|attn\.)",
    ),
    "last-block": (
        r"^visual\.transformer\.resblocks\.(?P<last>\d+)\.",
        r"^visual\.layer4\.(?P<last>\d+)\.",
        r"^visual\.trunk\.blocks\.(?P<last>\d+)\.",
        r"^(text\.)?transformer\.(resblocks|encoder\.layer)\.(?P<last>\d+)\.",
    ),
    "image-tower": (r"^visual\.",),
    "text-tower": (r"^(?!visual\.)",),
    "lora": (r"\.lora_[AB]\.",),
    "all": (r"",),
}
# Never in a set: the temperature has its own switch, and CoCa's decoder is in neither loss.
_APART = re.compile(r"^(logit_scale|logit_bias|text_decoder\.)")
# Rank 8 on the attention's input projections and on both MLP layers of every transformer block.
# A ModifiedResNet has none and is not adapted. Weights are adapted as parameters, not as layers:
# the sum W + BA is formed before use, so that the merged weights give the very same embeddings.
LORA_RANK, LORA_ALPHA = 8, 16
LORA_WEIGHTS = (
    *("attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),  # open_clip's own blocks
    *("attn.qkv.weight", "mlp.fc1.weight", "mlp.fc2.weight"),  # timm's
)
# The matrix after pooling, and the axis of its input.
_PROJECTIONS = {"proj": 0, "attnpool.c_proj.weight": 1, "head.proj.weight": 1}


@dataclass(frozen=True)
class Origin:
    """Where a student came from: its short name, and open_clip's own description of it."""

    name: str
    model_cfg: dict[str, Any]


class Student(nn.Module):
    """A CLIP of open_clip, in float32; embeddings have unit length.

    `train()` leaves BatchNorms in evaluation mode, so that running statistics never move.
    """

    model: Any

    def __init__(self, model: nn.Module, tokenizer: Any, origin: Origin) -> None:
        super().__init__()
        self.model, self.tokenizer, self.origin = model, tokenizer, origin
        preprocess = PreprocessCfg(**self.model.visual.preprocess_cfg)
        self._transform = image_transform_v2(preprocess, is_train=False)
        self._crops = preprocess.resize_mode != "squash"
        self.width: int = origin.model_cfg["embed_dim"]
        # With LoRA: the model before it was wrapped, in a list so that it is no submodule.
        self._plain_model: list[tuple[nn.Module, int]] = []

    def train(self, mode: bool = True) -> Student:
        """As any module's, except that BatchNorms stay in evaluation mode."""
        super().train(mode)
        _hold_statistics(self)
        return self

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Unit embeddings [B, D], float32, of transformed images [B, 3, S, S]."""
        with self._as_saved() as model:
            return F.normalize(model.encode_image(pixels, normalize=False).float(), dim=-1)

    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Unit embeddings [B, D], float32, of token ids [B, M]."""
        with self._as_saved() as model:
            return F.normalize(model.encode_text(tokens, normalize=False).float(), dim=-1)

    def encode_short_texts(self, tokens: Tensor) -> Tensor:
        """`encode_texts`, the padding that all rows share left out where that changes nothing.

        It changes nothing where no token sees a later one and the highest id is taken as the end:
        in CLIP's own text tower. Any other tower gets the full length.
        """
        width, mask = int(caption_lengths(tokens).max()), getattr(self.model, "attn_mask", None)
        causal = mask is not None and torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))
        by_id = getattr(self.model, "text_pool_type", "") == "argmax"
        if not causal or not by_id or width >= tokens.shape[1]:
            return self.encode_texts(tokens)
        with self._as_saved() as model:
            short = {
                "model.positional_embedding": model.positional_embedding[:width],
                "model.attn_mask": model.attn_mask[:width, :width],
            }
            emb = torch.func.functional_call(_TextTower(model), short, tokens[:, :width])
            return F.normalize(emb.float(), dim=-1)

    @contextmanager
    def _as_saved(self) -> Iterator[Any]:
        """The model; without gradients in the very form in which `save` would write it.

        matmul picks its kernel by `requires_grad` even where no gradient is asked for, so a frozen
        model differs in the last bit from the fresh one that open_clip makes of the folder.
        """
        if torch.is_grad_enabled():
            yield self.model
            return
        model = self._merged_model() if self._plain_model else self.model
        frozen = [value for value in model.parameters() if not value.requires_grad]
        for value in frozen:
            value.requires_grad_(True)
        try:
            yield model
        finally:
            for value in frozen:
                value.requires_grad_(False)

    def _merged_model(self) -> nn.Module:
        """The plain architecture with LoRA merged in, brought up to date when a weight moved."""
        moves = sum(value._version for value in self.model.parameters())
        plain, known = self._plain_model[0]
        if moves != known:
            plain.load_state_dict(_merged(self.model))
            device = next(self.model.parameters()).device
            self._plain_model[0] = (plain.to(device), moves)
        return _hold_statistics(plain.train(self.training))

    def pooled_images(self, pixels: Tensor) -> Tensor:
        """The image tower's pooled output [B, P] before projection, not normalized.

        Computed with the projection replaced by the identity; ValueError for a tower without one.
        """
        visual, name = self.model.visual, self._projection()
        weight = visual.get_parameter(name)
        eye = torch.eye(self.pooled_width, dtype=weight.dtype, device=weight.device)
        stand_in = {name: eye}
        bias = name.replace("weight", "bias")
        if bias != name and bias in dict(visual.named_parameters()):
            stand_in[bias] = torch.zeros_like(eye[0])
        out = torch.func.functional_call(visual, stand_in, pixels)
        return (out[0] if isinstance(out, tuple) else out).float()

    @property
    def pooled_width(self) -> int:
        """P: the image tower's width before projection."""
        name = self._projection()
        return self.model.visual.get_parameter(name).shape[_PROJECTIONS[name]]

    def _projection(self) -> str:
        names = dict(self.model.visual.named_parameters())
        for name in _PROJECTIONS:
            if name in names:
                return name
        raise ValueError(
            f"{self.origin.name}: the image tower has no final projection; "
            "use bridge_input='projected'"
        )

    @property
    def scale(self) -> Tensor:
        """The exponential of logit_scale, at most 100 as in CLIP's training: a scalar tensor."""
        return self.model.logit_scale.exp().clamp(max=100).squeeze()

    def transform(self, image: Image.Image) -> Tensor:
        """The model's own evaluation preprocessing: [3, S, S]."""
        return self._transform(central(image) if self._crops else image)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """Token ids int64 [B, M]; VocabularyError names what is no word to it."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        texts = [self.tokenizer.clean_fn(caption) for caption in captions]
        if inner is not None:
            model_files.check_words(inner, texts, self.origin.name)
        else:
            model_files.check_markers(self.marks, texts, self.origin.name)
        return self.tokenizer(list(captions)).long()

    @property
    def marks(self) -> list[str]:
        """What the tokenizer reads as its own marks wherever it stands in a caption."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is not None:
            return list(inner.all_special_tokens)
        return [self.tokenizer.decoder[own] for own in self.tokenizer.all_special_ids]

    def save(self, folder: str | Path) -> None:
        """Write an open_clip `local-dir:` folder in one rename: config, float32 weights, tokenizer.

        `open_clip.create_model_from_pretrained("local-dir:FOLDER")` gives the same embeddings bit
        for bit; LoRA is merged into the base weights there, and stays apart here.
        """
        document = {
            "model_cfg": self.origin.model_cfg,
            "preprocess_cfg": self.model.visual.preprocess_cfg,
        }
        with staged_folder(Path(folder)) as stage:
            (stage / CONFIG).write_text(json.dumps(document, indent=2) + "\n")
            save_file(_merged(self.model), stage / WEIGHTS)
            if hasattr(self.tokenizer, "save_pretrained"):
                self.tokenizer.save_pretrained(stage)
            passport = {"model": self.origin.name, "precision": "fp32"}
            write_json(
                stage / model_files.PASSPORT, passport | model_files.passport(document, stage)
            )


class _TextTower(nn.Module):
    """`encode_text` as a forward, which `functional_call` can run with other tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens, normalize=False)


def caption_lengths(tokens: Tensor) -> Tensor:
    """Tokens [N] of each row [N, M] up to the first of its trailing run of equal (padding) ones."""
    same = (tokens == tokens[:, -1:]).flip(1)
    run = same.long().cumprod(dim=1).sum(dim=1)
    return tokens.shape[1] - run + 1


def _hold_statistics(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def _merged(model: nn.Module) -> dict[str, Tensor]:
    """The model's own state, LoRA added in; a copy is merged, so that training can go on."""
    if _has_lora(model):
        model = copy.deepcopy(model)
        for module in model.modules():
            if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
                module.merge()
    return {
        _plain(name): value.detach().cpu().clone().contiguous()
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }


# --- loading -------------------------------------------------------------------------------------


def load_student(model: str, pretrained: str | None, device: str | torch.device = "cpu") -> Student:
    """Load an open_clip model by name and tag, from the Hub ("hf-hub:ID") or from a folder.

    `model` may be "local-dir:PATH" or a plain folder, relative to the project. Everything is
    frozen until `set_trainable`. WeightsError (what, where, what to do) for weights that are
    missing, pickled, cut, not finite, or do not fit, for an activation that is not the one the
    weights were trained with, for a folder that is not what its passport or manifest says, and for
    unknown names.
    """
    folder, preprocess = None, dict[str, Any]()
    if model.startswith(HF_HUB_PREFIX):
        name = model.removeprefix(HF_HUB_PREFIX)
        folder, pretrained = _check_folder(str(_of_hub(model, pretrained)[0]), name), None
        source = f"{LOCAL_DIR_PREFIX}{folder}"
    elif model in open_clip.list_models():
        source, name = model, f"{model}/{pretrained}"
        pretrained, preprocess = _check_tag(model, pretrained)
    else:
        folder, pretrained = _check_folder(model), None
        source, name = f"{LOCAL_DIR_PREFIX}{folder}", shown(folder)
    try:
        network = open_clip.create_model(
            source, pretrained, require_pretrained=True, force_preprocess_cfg=preprocess
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:400]
        raise WeightsError(f"{name}: the weights do not fit the config: {reason}") from error
    state = network.state_dict()
    model_files.check_finite(state.items(), name)
    if float(state["logit_scale"].exp().max()) > 100.5:  # OpenAI's stand at 100 within rounding
        warnings.warn(
            f"{name}: exp(logit_scale) is {float(state['logit_scale'].exp().max()):.0f}, past 100; "
            "used as 100, as in CLIP's training",
            stacklevel=2,
        )
    if folder is not None:
        _check_shapes(state, model_files.find_weights(folder, (WEIGHTS,)), name)
    tokenizer = open_clip.get_tokenizer(_tokenizer_source(model, source, folder))
    cfg = open_clip.get_model_config(source)
    student = Student(network, tokenizer, Origin(name, cfg)).requires_grad_(False)
    return student.to(device).eval()


def weights_problem(model: str, pretrained: str | None) -> str | None:
    """What is missing for `load_student`, and how to get it; None where all is there. No network.

    Files are looked at, not read whole.
    """
    try:
        if model in open_clip.list_models():
            _known_tag(model, pretrained)
        elif not model.startswith(HF_HUB_PREFIX):
            _check_folder(model)
            return None
        wanted = _hub_names(model, pretrained)
        if wanted is None:
            return None
        repo, names = wanted
        found = hub.cached(repo)
        chosen = _choose(found, names) if found else None
        if found is not None and chosen is not None:
            hub.bring(found, chosen)
            return None
    except (WeightsError, AccessError) as error:
        return str(error)
    by_hand = [names[-1], *([CONFIG, *(f"{t}*" for t in TOKENIZERS)] if CONFIG in names else [])]
    return (
        f"the weights of {repo} are not in the local cache; where there is a network run "
        f"`{hub.get_by_hand(repo, by_hand)}` (licence: https://huggingface.co/{repo}), or give "
        f"{LOCAL}"
    )


def fingerprints(model: str, pretrained: str | None) -> dict[str, str]:
    """SHA-256 of every file that loading reads, by name: alike of the Hub's and a local copy.

    Nothing for a tag whose weights are not on the Hub.
    """
    if _hub_names(model, pretrained) is not None:
        found, chosen = _looked_up(model, pretrained)
        return _reached(lambda: hub.hashes(found, chosen))
    if model in open_clip.list_models():
        file = project_path(pretrained or "")
        return {file.name: file_sha256(file)} if file.is_file() else {}
    folder = _check_folder(model)
    names = [p.name for p in folder.iterdir() if p.name == CONFIG or p.name.startswith(TOKENIZERS)]
    files = [*sorted(names), model_files.find_weights(folder, HUB_WEIGHTS).name]
    return {name: file_sha256(folder / name) for name in files}


def _hub_names(model: str, pretrained: str | None) -> tuple[str, list[str]] | None:
    """The repository of a model and what is read of it, the weights last and in either name."""
    if model.startswith(HF_HUB_PREFIX):
        return model.removeprefix(HF_HUB_PREFIX), [CONFIG, *reversed(HUB_WEIGHTS)]
    if model not in open_clip.list_models():
        return None
    cfg = _known_tag(model, pretrained)
    if "hf_hub" not in cfg:
        return None
    repo, _, file = str(cfg["hf_hub"]).rpartition("/")
    return repo, [f"{Path(file).stem}.safetensors"] if file else [*reversed(HUB_WEIGHTS)]


def _choose(found: hub.Snapshot, names: Sequence[str]) -> list[str] | None:
    """What is read of a repository, the weights last; None where something is not there."""
    *configs, last = [name for name in names if name in found.files] or [""]
    if not last.endswith(".safetensors") or (CONFIG in names and CONFIG not in configs):
        return None
    if CONFIG not in names:
        return [last]
    extra = [n for n in found.files if "/" not in n and n.startswith(TOKENIZERS)]
    return [CONFIG, *sorted(extra), last]


def _looked_up(model: str, pretrained: str | None) -> tuple[hub.Snapshot, list[str]]:
    """What the repository of a model holds, and the files of it that are read."""
    wanted = _hub_names(model, pretrained)
    assert wanted is not None
    repo, names = wanted
    found = _reached(lambda: hub.look(repo, None, LOCAL))
    chosen = _choose(found, names)
    if chosen is None:
        raise WeightsError(_incomplete(found, names))
    return found, chosen


def _of_hub(model: str, pretrained: str | None) -> tuple[Path, str]:
    """The folder with a model's files, brought into the cache, and the name of its weights."""
    found, chosen = _looked_up(model, pretrained)
    return _reached(lambda: hub.bring(found, chosen)), chosen[-1]


def _incomplete(found: hub.Snapshot, names: Sequence[str]) -> str:
    """Why a repository (or what the cache holds of it) cannot be loaded, from its listing."""
    if found.refused is not None:
        return f"{found.refused}"
    absent = [CONFIG] if CONFIG in names and CONFIG not in found.files else []
    absent += [] if any(n in found.files for n in names if n != CONFIG) else [names[-1]]
    weights = [n for n in found.files if n.endswith((".safetensors", *model_files.PICKLES))]
    told = f"; there are {', '.join(sorted(weights)[:6])}" if weights else ""
    pickle = next((n for n in sorted(weights) if n.endswith(model_files.PICKLES)), None)
    if names[-1] in absent and pickle:
        told += f": {model_files.conversion(pickle, ' where you have it')}"
    return f"{found.repo} has no {', '.join(absent)}{told}"


def _reached(call: Callable[[], Found]) -> Found:
    try:
        return call()
    except AccessError as error:
        raise WeightsError(f"student {error}") from error


def _tokenizer_source(model: str, source: str, folder: Path | None) -> str:
    """Where open_clip finds the tokenizer: beside the weights, else where its config says."""
    if folder is None or not model.startswith(HF_HUB_PREFIX):
        return source
    there = any(p.name.startswith(TOKENIZERS) for p in folder.iterdir())
    named = open_clip.get_model_config(source)["text_cfg"].get("hf_tokenizer_name")
    return source if there or not named else model


def random_student(model: str, device: str | torch.device = "cpu", seed: int = 0) -> Student:
    """An open_clip model by name, or a folder's, with weights drawn from `seed`: for its costs.

    No weights are read or downloaded. WeightsError for unknown names, and where the tokenizer of
    the model is on the Hub and the Hub is out of reach.
    """
    source, name = model, model
    if model not in open_clip.list_models() and not model.startswith(HF_HUB_PREFIX):
        source, name = f"{LOCAL_DIR_PREFIX}{_check_folder(model)}", shown(model)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        try:
            with _quiet():  # open_clip would say that there are no weights
                network = open_clip.create_model(
                    source, load_weights=False, pretrained_text=False, device=device
                )
            tokenizer = open_clip.get_tokenizer(source)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise WeightsError(
                f"{name}: its config or tokenizer is out of reach: {reason}"
            ) from error
    origin = Origin(f"{name}, random weights", open_clip.get_model_config(source))
    return Student(network, tokenizer, origin).requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def _check_folder(model: str, name: str | None = None) -> Path:
    """The folder, once its files are known to be whole and to fit each other; `name` is shown."""
    folder = project_path(model.removeprefix(LOCAL_DIR_PREFIX))
    if folder.is_file():
        raise WeightsError(student_file_problem(model.removeprefix(LOCAL_DIR_PREFIX)))
    if not folder.is_dir():
        if model.startswith(LOCAL_DIR_PREFIX) or "/" in model:
            close = _nearest(model.replace("/", "-"), open_clip.list_models(), 0.8)
            raise WeightsError(f"student folder {model!r} does not exist{close}")
        raise WeightsError(f"unknown model {model!r}{_nearest(model, open_clip.list_models())}")
    config = model_files.read_config(folder / CONFIG)
    if not isinstance(config.get("model_cfg"), dict):
        raise WeightsError(f"{shown(folder / CONFIG)} has no 'model_cfg'")
    model_files.find_weights(folder, (WEIGHTS,))
    model_files.check_passport(folder, config)
    problem = manifest_problem(folder) if (folder / MANIFEST).is_file() else None
    if problem:
        raise WeightsError(f"{shown(folder)}: {problem}; get it again")
    return folder


def _check_shapes(state: dict[str, Tensor], file: Path, name: str) -> None:
    """open_clip stretches positional embeddings of another size without a word."""
    for key, shape in model_files.check_safetensors(file).items():
        if key in state and state[key].numel() > 1 and tuple(state[key].shape) != shape:
            wanted = tuple(state[key].shape)
            raise WeightsError(f"{name}: weight {key!r} is {shape}, the config says {wanted}")


def _check_tag(model: str, tag: str | None) -> tuple[str, dict[str, Any]]:
    """The file of a tag's weights, and how images enter; nothing pickled, nothing out of reach."""
    cfg = _known_tag(model, tag)
    if not cfg:
        return str(project_path(tag or "")), {}
    if "hf_hub" in cfg:
        folder, name = _of_hub(model, tag)
        file = folder / name
    else:
        file = _from_url(f"{model}/{tag}", cfg)
    model_files.check_safetensors(file)
    known = ("mean", "std", "interpolation", "resize_mode")
    return str(file), {key: cfg[key] for key in known if cfg.get(key) is not None}


def _from_url(name: str, cfg: dict[str, Any]) -> Path:
    """Weights that are not on the Hub, brought into open_clip's cache."""
    model_files.refuse_pickle(Path(str(cfg.get("url", ""))))
    try:
        return Path(download_pretrained(cfg))
    except Exception as error:  # urllib raises a dozen unrelated types
        raise WeightsError(
            f"the weights of {name} could not be downloaded ({type(error).__name__}); load them "
            "once where there is a network, or give a folder"
        ) from error


def _known_tag(model: str, tag: str | None) -> dict[str, Any]:
    """open_clip's entry of the tag, or nothing for a file of weights, which is checked here."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not tag:
        raise WeightsError(f"{model} needs weights; clip_pretrained is one of {', '.join(tags)}")
    cfg, base = open_clip.get_pretrained_cfg(model, tag), model.removesuffix("-quickgelu")
    if not cfg and tag in open_clip.list_pretrained_tags_by_model(base):
        cfg = open_clip.get_pretrained_cfg(base, tag)
    if not cfg:
        file = project_path(tag)
        if not file.is_file():
            raise WeightsError(f"unknown weights {tag!r} for {model}{_nearest(tag, tags)}")
        model_files.refuse_pickle(file)
        model_files.check_safetensors(file)
        return {}
    quick = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    if bool(cfg.get("quick_gelu", False)) != quick:
        raise WeightsError(
            f"weights {tag!r} were trained with {'GELU' if quick else 'QuickGELU'} and {model} has "
            f"the other activation; use {base if quick else base + '-quickgelu'}"
        )
    return cfg


def _nearest(name: str, options: Iterable[str], cutoff: float = 0.4) -> str:
    lower = {option.lower(): option for option in options}
    close = [lower[key] for key in get_close_matches(name.lower(), lower, 3, cutoff)]
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


# --- what trains ---------------------------------------------------------------------------------


def set_trainable(
    student: Student, names: str, train_scale: bool = False, seed: int = 0
) -> list[tuple[str, nn.Parameter]]:
    """Let the sets `names` ("layernorm", or several as "layernorm+projection") train, only them.

    Returns their names and parameters, logit_scale's last if `train_scale`. `seed` draws the
    start of "lora" (rank 8), whose adapters begin as the identity. ValueError for an unknown set
    and for one that matches no parameter of this student.
    """
    sets = names.split("+")
    for name in sets:
        if name not in TRAINABLE:
            raise ValueError(f"unknown trainable {name!r}{_nearest(name, TRAINABLE)}")
    if "lora" in sets and not _has_lora(student.model):
        plain = copy.deepcopy(student.model)
        _add_lora(student.model, seed)
        student._plain_model = [(plain, -1)]
    student.requires_grad_(False)
    candidates = {n: p for n, p in student.model.named_parameters() if not _APART.match(_plain(n))}
    chosen: set[str] = set()
    for name in sets:
        matched = set(_matching(candidates, TRAINABLE[name], name == "lora"))
        if not matched:
            raise ValueError(f"trainable {name!r} matches no parameter of {student.origin.name}")
        chosen |= matched
    found = [(name, value) for name, value in candidates.items() if name in chosen]
    if train_scale:
        found.append(("logit_scale", student.model.logit_scale))
    for _, value in found:
        value.requires_grad_(True)
    return found


def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1,000 classes as CLIP's prompts name them, in the order of their WordNet ids."""
    return tuple(open_clip.IMAGENET_CLASSNAMES)


def trained_weights(student: Student) -> dict[str, Tensor]:
    """A copy of what trains, by name."""
    named = student.model.named_parameters()
    return {name: value.detach().clone() for name, value in named if value.requires_grad}


@torch.no_grad()
def interpolate(student: Student, start: Mapping[str, Tensor], share: float) -> None:
    """Take what trains back towards `start`, to start + share * (trained - start).

    A point on the line between two fine-tunings keeps most of the gain and loses little of what the
    first one knew (WiSE-FT; Wortsman et al., CVPR 2022). Of LoRA's BA, B alone is taken back, so
    that what is added shrinks by the same share.
    """
    for name, value in student.model.named_parameters():
        if name in start and ".lora_A." not in name:
            value.copy_(torch.lerp(start[name], value, share))


def trainable_table(student: Student, bridge: nn.Module | None = None) -> pd.DataFrame:
    """What trains: rows group, tensors, parameters, and their share of all parameters that train.

    Groups are the towers, the logit scale and the bridge; the last row is their sum.
    """
    values: dict[str, list[nn.Parameter]] = {"image tower": [], "text tower": []}
    for name, value in student.model.named_parameters():
        if value.requires_grad:
            group = "image tower" if name.startswith("visual.") else "text tower"
            group = "logit scale" if name == "logit_scale" else group
            values.setdefault(group, []).append(value)
    if bridge is not None:
        values["bridge"] = [value for value in bridge.parameters() if value.requires_grad]
    rows = [(g, len(v), sum(p.numel() for p in v)) for g, v in values.items() if v]
    rows.append(("all that trains", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    table = pd.DataFrame(rows, columns=["group", "tensors", "parameters"])
    return table.assign(share=table["parameters"] / max(1, rows[-1][2]))


def _matching(names: Iterable[str], patterns: Sequence[str], adapters: bool) -> Iterator[str]:
    """The names that a pattern finds; adapters belong to the set "lora" alone."""
    plain = {name: _plain(name) for name in names if (".lora_" in name) == adapters}
    for pattern in patterns:
        hits = {name: re.search(pattern, text) for name, text in plain.items()}
        found = {name: hit for name, hit in hits.items() if hit}
        if "(?P<last>" in pattern:
            last = max((int(hit["last"]) for hit in found.values()), default=0)
            found = {name: hit for name, hit in found.items() if int(hit["last"]) == last}
        yield from found


def _plain(name: str) -> str:
    """open_clip's own name of a parameter that peft has wrapped."""
    return name.replace("base_layer.", "")


def _has_lora(model: nn.Module) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


def _add_lora(model: nn.Module, seed: int) -> None:
    """Wrap the weights of `LORA_WEIGHTS`; A is drawn from `seed`, B is zero."""
    matrices = [n for n, v in model.named_parameters() if v.ndim == 2 and not _APART.match(n)]
    targets = [name for name in matrices if name.endswith(LORA_WEIGHTS)]
    if not targets:
        raise ValueError("trainable 'lora' matches no parameter: it needs transformer blocks")
    config = peft.LoraConfig(
        r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=[], target_parameters=targets
    )
    peft.inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if ".lora_A." in name:
            bound = value.shape[1] ** -0.5
            draw = torch.rand(value.shape, generator=generator) * 2 * bound - bound
            value.data.copy_(draw)
