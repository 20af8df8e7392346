"""The parameters of each notebook, with their defaults; `02_finetune` has `FinetuneConfig`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field

from sdslib.config import (
    Config,
    Count,
    FinetuneConfig,
    ModelsConfig,
    Precision,
    Rate,
    Several,
    Source,
    Whole,
)


class MiniworldConfig(Config):
    """`00_miniworld`: show the world, or train its two models again."""

    rebuild: bool = False
    scale: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the recipe's training steps
    folder: Source | None = None
    resume: bool = True
    teacher_items: Count = 60
    draws: Annotated[int, Field(ge=2, multiple_of=2)] = 32  # antithetic pairs


class BaselineConfig(ModelsConfig):
    """`01_baseline`: where CLIP and the diffusion score stand."""

    benchmark: Source = "all"
    corpus: Source | None = None  # captions for the blind baseline; None: the preset's train_data
    batch_size: Count = 64
    teacher_items: Whole = 100
    draws: Annotated[int, Field(ge=2, multiple_of=2)] = 32  # antithetic pairs
    image_mode: Literal["crop", "squash", "pad"] = "crop"


class SweepConfig(Config):
    """What the two ablation notebooks have in common.

    `fixed` holds further parameters of all runs in one string, as `lr=3e-3,trainable=all`.
    """

    grid: Literal["reduced", "full"] = "reduced"
    fixed: str | None = None
    sds_weight: Rate = 1e-3
    seeds: Count | None = None
    steps: Count | None = None
    eval_items: Count | None = None
    workers: Several | None = None
    executor: Literal["local", "ray", "slurm"] = "local"
    address: str | None = None


class AblateWeightConfig(SweepConfig):
    """`03_ablate_loss_weight`: lists in one string, `weights` as `0,1e-3,1e-1`.

    `panels` and `arms` name what stands beside the curve at `sds_weight`; `none` is nothing.
    """

    weights: str | None = None
    panels: str | None = None
    arms: str | None = None


class AblateTrainableConfig(SweepConfig):
    """`04_ablate_trainable`: `sets` is a list in one string, as `layernorm,bias`."""

    sets: str | None = None


class FailuresConfig(ModelsConfig):
    """`05_winoground_failures`: from `runs` or bare `scores` (a CSV), each a list with commas."""

    runs: str | None = None
    scores: str | None = None
    teacher_items: Whole = 100
    draws: Annotated[int, Field(ge=2, multiple_of=2)] = 32  # antithetic pairs


class DemoConfig(ModelsConfig):
    """`06_caption_demo`: score any image against any captions.

    `image` is a file, `item` an id of the benchmark; `captions` has `|` or a line's end between.
    """

    runs: str | None = None
    image: str | None = None
    item: str | None = None
    captions: str | None = None
    ask_teacher: bool = False
    draws: Annotated[int, Field(ge=2, multiple_of=2)] = 32  # antithetic pairs


class ReportConfig(Config):
    """`07_report`: from the runs named (commas between), or all finished ones of a folder `runs`.

    `output` None is the folder that the folder of runs is in.
    """

    runs: str | None = None
    output: Source | None = None
    title: Annotated[str, Field(min_length=1)] | None = None
    examples: Whole = 10
    push_to: str | None = None


class VerdictsConfig(Config):
    """`08_verdicts`: what the teacher says of pairs; parameters as `02_finetune` has them.

    Of `shards` processes this one is number `shard`, from 0; None judges what is missing of all.
    """

    train_data: Source = "mini"
    train_pairs: Count | None = None
    negatives: Source | None = None
    teacher: Source = "data/mini/teacher"
    teacher_revision: str | None = None
    variant: Literal["fp16"] | None = None
    precision: Precision = "fp32"
    choice_draws: Count = 4
    t_min: Annotated[int, Field(ge=0, le=999)] = 20
    t_max: Annotated[int, Field(ge=0, le=999)] = 980
    output: Source = "data/verdicts.parquet"
    shard: Whole | None = None
    shards: Several = 1


class CompareConfig(Config):
    """`09_compare`: the first of `runs` against the others; of a folder (or by default) the newest
    fine-tuning against its control.
    """

    runs: str | None = None
    items: Whole = 12


MODELS: dict[str, type[Config]] = {
    "miniworld": MiniworldConfig,
    "baseline": BaselineConfig,
    "finetune": FinetuneConfig,
    "ablate_weight": AblateWeightConfig,
    "ablate_trainable": AblateTrainableConfig,
    "failures": FailuresConfig,
    "demo": DemoConfig,
    "report": ReportConfig,
    "verdicts": VerdictsConfig,
    "compare": CompareConfig,
}


# --- a parameter in words --------------------------------------------------------------------


@cache
def _schemas(cls: type[Config]) -> dict[str, Any]:
    return cls.model_json_schema()["properties"]


def schema_of(cls: type[Config], name: str) -> dict[str, Any]:
    """What a field takes where it is given; a single choice is an enum too."""
    schema = _schemas(cls)[name]
    schema = schema | next((s for s in schema.get("anyOf", []) if s["type"] != "null"), {})
    return schema | ({"enum": [schema["const"]]} if "const" in schema else {})


def kind(cls: type[Config], name: str) -> str:
    """The Python type of a field's value where it is given, as annotations write it."""
    names = {"integer": "int", "number": "float", "boolean": "bool"}
    return names.get(schema_of(cls, name)["type"], "str")


def choices(cls: type[Config], name: str) -> list[str]:
    """The values that a field may have, where they can be listed; else nothing."""
    return list(map(str, schema_of(cls, name).get("enum", [])))


def ranged(schema: Mapping[str, Any], before: str = "") -> str:
    """The range that a schema sets, with `before` in front of it."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    texts = [f"{sign} {schema[key]:.10g}" for key, sign in signs.items() if key in schema]
    texts += [f"a multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
    return f"{before} {' and '.join(texts)}" if texts else ""


# What is seldom given: it stands below the rest in notebooks, and folded in tables and helps.
SELDOM = frozenset(
    [
        *("sds_gradient", "sds_share", "sds_reduction", "sds_space", "t_min", "t_max"),
        *("bridge_start", "bridge_pairs", "bridge_input", "choice_draws", "negatives_each"),
        *("negative_weight", "logit_scale"),
        *("caption_noise", "apart_from", "overlap", "vg_image_data", "corpus", "image_mode"),
        *("warmup", "weight_decay", "grad_clip", "interpolation", "eval_every", "fixed"),
        *("checkpoint_every", "tracker", "precision", "micro_batch", "checkpointing", "threads"),
        *("processes", "num_workers", "resume", "address", "teacher_revision", "variant"),
    ]
)


def literal(text: str) -> Any:
    """A value as papermill reads it from a command line: True, None, a number, or else text."""
    known = {"True": True, "False": False, "None": None}
    if text in known:
        return known[text]
    for kind in (int, float):
        with suppress(ValueError):
            found = kind(text)
            # the revision 12e4567 is no number that can be held
            return text if abs(found) == math.inf and any(c.isdigit() for c in text) else found
    return text


def from_shell(
    parser: argparse.ArgumentParser, words: Sequence[str] | None, notebook: str = "02_finetune"
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """A command line's own options, and the notebook's parameters that `-p NAME VALUE` gives."""
    told = f"a parameter of {notebook}, as for papermill"
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        dest="given", help=told)  # fmt: skip
    options = parser.parse_args(words)
    return options, {name: literal(text) for name, text in options.given}
