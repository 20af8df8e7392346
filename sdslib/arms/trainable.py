"""Which of the student's parameters train: sets by name, LoRA among them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from sdslib.checks.student_files import nearest
from sdslib.student import Student, has_lora, plain_name

# What trains, by regular expressions over open_clip's parameter names. A group named `last` keeps
# the highest number that occurs. BatchNorm counts as a norm (its running statistics never move).
TRAINABLE: dict[str, tuple[str, ...]] = {
    "layernorm": (
        r"(^|\.)(ln|ln_\w+|norm\d?|norm_\w+|\w+_norm|\w*LayerNorm|bn\d?)\.\w+$",
        r"^visual\.layer\d\.\d+\.downsample\.1\.",
        r"^visual\.trunk\.(stem\.1|stages\.\d\.downsample\.0)\.(weight|bias)$",  # ConvNeXt
        r"\.identity\.(weight|bias)$",  # FastViT
    ),
    "bias": (r"bias$",),
    "projection": (
        r"^visual\.(proj$|attnpool\.c_proj\.|head\.|trunk\.head\.(fc\.)?(weight|bias)$)",
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
        r"^visual\.trunk\.stages\.(?P<stage>\d+)\.blocks\.(?P<last>\d+)\.",
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


def set_trainable(
    student: Student, names: str, train_scale: bool = False, seed: int = 0
) -> list[tuple[str, nn.Parameter]]:
    """Let the sets `names` ("layernorm", or several as "layernorm+projection") train, only them.

    Returns their names and parameters; if `train_scale`, logit_scale and a SigLIP's logit_bias
    last. `seed` draws the start of "lora" (rank 8), whose adapters begin as the identity.
    ValueError for an unknown set and for one that matches no parameter of this student.
    """
    sets = names.split("+")
    for name in sets:
        if name not in TRAINABLE:
            raise ValueError(f"unknown trainable {name!r}{nearest(name, TRAINABLE)}")
    if "lora" in sets and not has_lora(student.model):
        plain = copy.deepcopy(student.model)
        _add_lora(student.model, seed)
        student._plain_model = [(plain, -1)]
    student.requires_grad_(False)
    candidates = {
        n: p for n, p in student.model.named_parameters() if not _APART.match(plain_name(n))
    }
    chosen: set[str] = set()
    for name in sets:
        matched = set(_matching(candidates, TRAINABLE[name], name == "lora"))
        if not matched:
            raise ValueError(f"trainable {name!r} matches no parameter of {student.origin.name}")
        chosen |= matched
    found = [(name, value) for name, value in candidates.items() if name in chosen]
    if train_scale:
        found += [(n, p) for n, p in student.model.named_parameters() if n.startswith("logit_")]
    for _, value in found:
        value.requires_grad_(True)
    return found


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
            group = "logit scale" if name.startswith("logit_") else group
            values.setdefault(group, []).append(value)
    if bridge is not None:
        values["bridge"] = [value for value in bridge.parameters() if value.requires_grad]
    rows = [(g, len(v), sum(p.numel() for p in v)) for g, v in values.items() if v]
    rows.append(("all that trains", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    table = pd.DataFrame(rows, columns=["group", "tensors", "parameters"])
    return table.assign(share=table["parameters"] / max(1, rows[-1][2]))


def _matching(names: Iterable[str], patterns: Sequence[str], adapters: bool) -> Iterator[str]:
    """The names that a pattern finds; adapters belong to the set "lora" alone."""
    plain = {name: plain_name(name) for name in names if (".lora_" in name) == adapters}
    for pattern in patterns:
        hits = {name: re.search(pattern, text) for name, text in plain.items()}
        found = {name: hit for name, hit in hits.items() if hit}
        if "(?P<last>" in pattern:
            place = {name: [*map(int, hit.groupdict().values())] for name, hit in found.items()}
            last = max(place.values(), default=None)
            found = {name: hit for name, hit in found.items() if place[name] == last}
        yield from found


def _add_lora(model: nn.Module, seed: int) -> None:
    """Wrap the weights of `LORA_WEIGHTS`; A is drawn from `seed`, B is zero."""
    matrices = [n for n, v in model.named_parameters() if v.ndim == 2 and not _APART.match(n)]
    targets = [name for name in matrices if name.endswith(LORA_WEIGHTS)]
    if not targets:
        raise ValueError("trainable 'lora' matches no parameter: it needs transformer blocks")
    import peft  # half a second that whoever trains without LoRA saves

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
