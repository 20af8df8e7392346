"""Every knob once, its presets, and the guard that checks a notebook's parameters.

Nothing here imports torch: a typo is refused before anything heavy is loaded. Relative paths mean
"from the project root", never from the working directory. All draws come from `derive_seed`.
"""

import ast
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

# Part of every run's id: raise it whenever equal parameters, data and weights come to give other
# numbers, so that no run of before is taken for one of after. tests/test_recipe.py holds to it.
RECIPE = 1
Arm = Literal[
    "sds",
    "clip-only",
    "sds-only",
    "shuffled-captions",
    "random-teacher",
    "latent-regression",
    "hard-negatives",
    "sds-text",
    "sds-margin",
    "teacher-choice",
]
TRAINABLE = (
    "layernorm",
    "bias",
    "projection",
    "attention",
    "last-block",
    "image-tower",
    "text-tower",
    "lora",
    "all",
)
# What each arm leaves unread; it stays out of the run id, so that one control serves many runs.
_SDS_KNOBS = frozenset(
    [
        "sds_weight",
        "sds_gradient",
        "sds_reduction",
        "sds_share",
        "t_min",
        "t_max",
        "bridge_start",
        "bridge_pairs",
        "bridge_input",
        "teacher",
        "teacher_revision",
        "variant",
    ]
)
WEIGHTLESS: tuple[Arm, ...] = ("clip-only", "hard-negatives")  # arms without a teacher's term
TEXT_ARMS: tuple[Arm, ...] = (*WEIGHTLESS, "sds-text", "teacher-choice")
# Arms that are taught by false captions of the words of a true one.
ARMS_WITH_NEGATIVES: tuple[Arm, ...] = ("hard-negatives", "sds-margin", "teacher-choice")
_OVERLAP_KNOBS = frozenset(["overlap", "apart_from", "vg_image_data"])  # unread in a mere report
_BRIDGE_KNOBS = frozenset(["bridge_start", "bridge_pairs", "bridge_input"])
UNREAD: dict[str, frozenset[str]] = {arm: frozenset({"choice_draws"}) for arm in get_args(Arm)} | {
    "clip-only": _SDS_KNOBS | {"choice_draws"},
    "hard-negatives": _SDS_KNOBS | {"choice_draws"},
    "latent-regression": frozenset({"sds_gradient", "t_min", "t_max", "choice_draws"}),
    "sds-margin": frozenset({"sds_gradient", "choice_draws"}),
    "teacher-choice": _BRIDGE_KNOBS | {"sds_gradient", "sds_reduction"},
}
# What changes no number, or (device, threads) only its last bits; it is recorded in env.json.
NOT_IN_ID = frozenset(
    [
        *("preset", "run", "runs", "resume", "checkpoint_every", "tracker"),
        *("num_workers", "device", "threads", "processes", "micro_batch", "checkpointing"),
        "dry_run",
    ]
)
TEACHER_CONFIGS = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)
TEACHER_WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes, on Linux and macOS
FEWEST_RIDGE = 10  # pairs that `bridge.ridge_start` takes at least
_NOT_PARAMETERS = frozenset(
    ["In", "Out", "exit", "quit", "get_ipython", "open", "display", "guard"]
)
_FLAT = (type(None), bool, int, float, str, list, tuple, dict)


class ParameterError(ValueError):
    """Some parameters cannot be used; the message names all of them, one a line."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("invalid parameters: " + "\n".join(self.problems))

    def _render_traceback_(self) -> list[str]:
        # IPython's hook: the reader of a notebook needs the message, not our stack.
        return [str(self)]


def project_root() -> Path:
    """The folder with `pyproject.toml` and `sdslib/`, above this file or above the working folder.

    Raises FileNotFoundError when neither has one.
    """
    for start in (Path(__file__).resolve(), Path.cwd() / "here"):
        for folder in start.parents:
            if (folder / "pyproject.toml").is_file() and (folder / "sdslib").is_dir():
                return folder
    raise FileNotFoundError(f"no project root above {Path.cwd()}: start inside the repository")


def project_path(path: str | Path) -> Path:
    """An absolute path; a relative one is meant from the project root.

    ParameterError for one that no file system takes.
    """
    if problem := path_problem(str(path)):
        raise ParameterError([problem])
    return project_root() / Path(path).expanduser()


def path_problem(text: str) -> str | None:
    """Why no file system takes this as a path, and what to do; None where one does."""
    shown = repr(text if len(text) <= 60 else f"{text[:40]}…{text[-10:]}")
    sizes = [len(part.encode("utf-8", "surrogatepass")) for part in text.split("/")]
    if "\0" in text:
        return f"path {shown} holds a NUL character; leave it out"
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) > _LONGEST_PATH:
        most = f"{_LONGEST_NAME} bytes a name and {_LONGEST_PATH:,} in all"
        return f"path {shown} is too long; a file system takes {most}, so name a shorter one"
    try:
        Path(text).expanduser()
    except RuntimeError:
        user = text.partition("/")[0]
        return f"path {shown}: there is no user {user.removeprefix('~')!r} here; write it in full"
    return None


def folder_at(text: str) -> Path | None:
    """The folder of this name, where there is one; a text that is no path names none."""
    if path_problem(text):
        return None
    path = project_path(text)
    return path if path.is_dir() else None


def shown_path(path: Path) -> str:
    """A file's path as a reader should see it: from the project root where it lies below."""
    root, full = project_root().resolve(), path.resolve()
    return (full.relative_to(root) if full.is_relative_to(root) else path).as_posix()


_PLACE = re.compile(r"(?:^|(?<=[:,=]))(?:~|/(?!/)|[A-Za-z]:[\\/])[^:,]*")


def without_places(value: Any) -> Any:
    """The same value, each absolute path in it cut to its last two names: for what is handed on."""
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return _PLACE.sub(lambda m: "/".join(re.split(r"[\\/]+", m[0].rstrip("\\/"))[-2:]), value)


def resolved(source: str) -> str:
    """The same source with its folder made absolute; a name that is no folder stays a name."""
    prefix, folder = _split_source(source)
    path = project_path(folder)
    return f"{prefix}{path}" if prefix or path.exists() else source


def _split_source(source: str) -> tuple[str, str]:
    prefix = "local-dir:" if source.startswith("local-dir:") else ""
    return prefix, source.removeprefix(prefix)


def _portable(source: str) -> str:
    """Write a path below the project root relative to it, so that ids agree between machines."""
    prefix, folder = _split_source(source)
    try:
        inside = Path(folder).relative_to(project_root())
    except (ValueError, FileNotFoundError):
        return source
    return prefix + inside.as_posix()


def set_name(source: str) -> str:
    """The name under which a benchmark's scores are kept, from what names the benchmark alone.

    `mini:NAME[:SPLIT]` is `mini-NAME`, `NAME[:SOURCE]` is NAME: a file's path is in no name.
    """
    name, _, rest = source.partition(":")
    return f"mini-{rest.partition(':')[0].replace('_', '-')}" if name == "mini" else name


def is_mini(source: str) -> bool:
    """Whether what this names is drawn: `mini`, `mini:NAME`, or its pairs as `retrieval:mini`."""
    return source.removeprefix("retrieval:").partition(":")[0] == "mini"


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed for one draw: equal on every platform, in every process and thread.

    `purpose` names the stream ("order", "noise"), `index` the place in it (epoch, step, item).
    Distinct arguments give independent seeds (first eight bytes of a SHA-256).
    """
    key = json.dumps([seed, purpose, *index], separators=(",", ":")).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Several = Annotated[int, Field(ge=1, le=1024)]  # threads or processes, of which each costs
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Source = Annotated[str, Field(min_length=1), AfterValidator(_portable)]
Sets = Annotated[str, AfterValidator(lambda names: "+".join(sorted(set(names.split("+")))))]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]


class Config(BaseModel):
    """The validated parameters of one notebook: frozen, flat scalars, no unknown names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )
    preset: Literal["mini", "paper"] = "mini"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Device = "auto"
    threads: Several | None = None
    runs: Source | None = None

    @model_validator(mode="before")
    @classmethod
    def _settle_arm(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "arm" not in cls.model_fields:
            return values
        return _settle_arm({"arm": cls.model_fields["arm"].default} | values)

    @model_validator(mode="after")
    def _no_conflict(self) -> "Config":
        problems = _conflicts(self.model_dump(), frozenset())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def identity(self) -> dict[str, Any]:
        """The parameters that change numbers, with those this arm never reads left out."""
        unread = NOT_IN_ID | UNREAD.get(getattr(self, "arm", ""), frozenset())
        unread |= _OVERLAP_KNOBS if getattr(self, "overlap", "report") == "report" else frozenset()
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in unread}


class ModelsConfig(Config):
    """What every notebook that loads the two models has in common."""

    clip_model: Source = "local-dir:data/mini/student"
    clip_pretrained: str | None = None
    teacher: Source = "data/mini/teacher"
    teacher_revision: str | None = None
    variant: Literal["fp16"] | None = None  # of the teacher's weights
    benchmark: Source = "mini:winoground"
    eval_items: Count | None = None
    precision: Precision = "fp32"
    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    run: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)] | None = None

    @property
    def in_mini_world(self) -> bool:
        """Whether training or measuring happens in the mini-world, which tells nothing of others.

        The sets called "all" are the mini-world's under the preset `mini`.
        """
        drawn = any(map(is_mini, (self.benchmark, getattr(self, "train_data", ""))))
        return drawn or (self.benchmark == "all" and self.preset == "mini")

    @property
    def label(self) -> str:
        """What stands on every figure: where its numbers come from."""
        student = self.clip_model.rpartition(":")[2].rstrip("/").rpartition("/")[2]
        return "mini-world" if self.in_mini_world else f"{student}, {set_name(self.benchmark)}"


class FinetuneConfig(ModelsConfig):
    """Everything that decides one fine-tuning run; the defaults are the preset `mini`.

    With `sds_weight` 0 an arm that weighs a term of the teacher *is* the arm `clip-only`; and the
    arms `clip-only` and `hard-negatives` have weight 0. The arms `sds-text`, `sds-margin` and
    `teacher-choice` are extensions that the paper does not have; their terms are of other sizes
    than L_SDS, so choose `sds_weight` for them. `None` in `train_pairs` and `eval_items`
    means all; steps and epochs exclude each other; `t_min` and `t_max` are both drawn.

    `sds_share` below 1 shows the teacher a random part of each batch, its term scaled so that the
    gradient is right on average. `micro_batch` and `checkpointing` save memory and `processes`
    divide the batch; they change the last bits of a number, nothing else.

    `interpolation` below 1 ends with the untouched weights plus this share of their change.

    Training images that `benchmark`, or one of the sets in `apart_from` (commas between), holds are
    told by their COCO ids; `overlap` reports them or leaves them out. For ARO `vg_image_data` says
    which images are COCO's.

    `validation` is a benchmark, `held-out` (retrieval on a tenth of the pairs, 500 at most, which
    are not trained on) or `none`; None is the mini-world's own for its benchmarks, and elsewhere
    what can be held out. `keep` names sets that must not suffer, with commas between, or `none`;
    None is those that are at hand.
    """

    arm: Arm = "sds"
    sds_weight: Weight = 1e-3
    sds_gradient: Literal["through", "residual"] = "through"
    sds_reduction: Literal["sum", "mean"] = "sum"
    sds_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    trainable: Sets = "layernorm"
    train_data: Source = "mini"
    train_pairs: Count | None = None
    apart_from: str | None = None
    overlap: Literal["report", "exclude"] = "report"
    vg_image_data: Source = "data/aro/image_data.json"
    validation: Source | None = None
    keep: Source | None = None
    steps: Count | None = 150
    epochs: Count | None = None
    batch_size: Count = 32
    lr: Rate = 1e-3
    weight_decay: Weight = 0.0
    warmup: Whole = 15
    grad_clip: Rate = 1.0
    interpolation: Annotated[float, Field(gt=0, le=1)] = 1.0
    t_min: Annotated[int, Field(ge=0, le=999)] = 20
    t_max: Annotated[int, Field(ge=0, le=999)] = 980
    bridge_start: Literal["ridge", "random", "zero"] = "ridge"
    bridge_pairs: Count = 2048
    bridge_input: Literal["projected", "pooled"] = "projected"
    choice_draws: Count = 4  # (t, eps) draws a caption with which `teacher-choice` asks the teacher
    logit_scale: Literal["frozen", "trained"] = "frozen"
    eval_every: Whole = 50
    checkpoint_every: Whole = 50
    micro_batch: Count | None = None  # pairs that the teacher sees at once
    checkpointing: bool = False  # the UNet's activations are computed again, not kept
    processes: Several = 1
    dry_run: bool = False
    resume: bool = True
    tracker: Literal["tensorboard"] | None = None


def mini() -> FinetuneConfig:
    """The embedded default: a small CLIP and a small Stable Diffusion in the mini-world."""
    return FinetuneConfig()


def paper() -> FinetuneConfig:
    """SDS-CLIP's recipe on real models (arXiv 2307.09233): COCO, 5 epochs of batch 32 at 5e-5."""
    return FinetuneConfig(
        preset="paper",
        clip_model="ViT-B-16-quickgelu",
        clip_pretrained="openai",
        teacher="CompVis/stable-diffusion-v1-4",
        train_data="data/coco/annotations/captions_train2017.json::data/coco/train2017",
        benchmark="winoground",
        steps=None,
        epochs=5,
        lr=5e-5,
        warmup=500,
        bridge_pairs=4096,
        eval_every=1000,
        checkpoint_every=500,
        num_workers=4,
        precision="bf16",
    )


PRESETS: dict[str, Callable[[], FinetuneConfig]] = {"mini": mini, "paper": paper}


def preset(name: str) -> FinetuneConfig:
    """The named preset; an unknown name is a ParameterError."""
    if name not in PRESETS:
        raise ParameterError([_one_of("preset", name, PRESETS)])
    return PRESETS[name]()


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
    executor: Literal["local", "ray"] = "local"
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


MODELS: dict[str, type[Config]] = {
    "miniworld": MiniworldConfig,
    "baseline": BaselineConfig,
    "finetune": FinetuneConfig,
    "ablate_weight": AblateWeightConfig,
    "ablate_trainable": AblateTrainableConfig,
    "failures": FailuresConfig,
    "demo": DemoConfig,
    "report": ReportConfig,
}
C = TypeVar("C", bound=Config)


def guard(namespace: dict[str, Any], model: str = "finetune") -> Any:
    """The validated Config of a notebook whose globals hold its parameters and nothing else yet.

    `None` means "as the preset says". On a second call in the same kernel the names that later
    cells made are left alone, unless they look like a misspelt parameter. Raises ParameterError.
    """
    __tracebackhide__ = True
    if model not in MODELS:
        raise ParameterError([_one_of("notebook", model, MODELS)])
    cls, before = MODELS[model], namespace.get("_guarded")
    values = {k: v for k, v in namespace.items() if _is_parameter(k, v, k in cls.model_fields)}
    if before is not None:
        values = {k: v for k, v in values.items() if k in cls.model_fields or _near(k, cls)}
        values = {k: v if isinstance(v, _FLAT) else before.get(k) for k, v in values.items()}
    config = validate(cls, values)
    namespace["_guarded"] = values
    return config


def _is_parameter(name: str, value: object, known: bool) -> bool:
    if name.startswith(("_", "PAPERMILL_")) or name in _NOT_PARAMETERS:
        return False
    return known or not (isinstance(value, ModuleType) or callable(value))


def _near(name: str, cls: type[Config]) -> bool:
    return suggest(name, cls.model_fields, cutoff=0.75) is not None


def validate(cls: type[C], values: Mapping[str, Any]) -> C:
    """A config of `cls` from its preset and `values` (None = as the preset says).

    Checks also what is on disk: model names, weights, the teacher's parts. Raises ParameterError
    with every problem found, not only the first.
    """
    __tracebackhide__ = True
    given = {k: v for k, v in values.items() if v is not None}
    unknown = [name for name in given if name not in cls.model_fields]
    merged = _on_preset(cls, {k: v for k, v in given.items() if k not in unknown})
    problems = [_unknown(name, cls) for name in unknown]
    problems += _contradictions(given)
    config, bad = _field_problems(cls, merged)
    problems += bad.values()
    problems += _conflicts(merged, bad.keys())
    problems += _missing_files(merged, bad.keys())
    if cls.model_fields["runs"].annotation == Config.model_fields["runs"].annotation:
        problems += _runs_problems(merged["runs"], bad.keys())
    if problems or config is None:
        raise ParameterError(problems)
    return config


def override(config: C, **changes: Any) -> C:
    """The same config with some fields changed, checked like a notebook's parameters."""
    dumped = {k: v for k, v in config.model_dump().items() if k not in changes}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if changes.get(one) is not None:
            dumped.pop(other, None)
    if changes.get("arm") in WEIGHTLESS and "sds_weight" not in changes:
        dumped.pop("sds_weight", None)
    return validate(type(config), dumped | changes)


def _on_preset(cls: type[Config], given: dict[str, Any]) -> dict[str, Any]:
    base = {name: field.default for name, field in cls.model_fields.items()}
    name = given.get("preset", "mini")
    chosen = PRESETS.get(name, mini)() if isinstance(name, str) else mini()
    standard = mini().model_dump()  # where a notebook differs from it, its own default stands
    base |= {k: v for k, v in chosen.model_dump().items() if k in base and base[k] == standard[k]}
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if one in given and other not in given and other in base:
            base[other] = None
    if _is_folder(given.get("clip_model")) and "clip_pretrained" not in given:
        base["clip_pretrained"] = None
    merged = base | given
    return _settle_arm(merged) if "arm" in merged else merged


def _settle_arm(values: dict[str, Any]) -> dict[str, Any]:
    arm, weight = values["arm"], values.get("sds_weight")
    if arm in WEIGHTLESS and isinstance(weight, (int, float, type(None))):
        return values | {"sds_weight": 0.0}
    if arm != "sds-only" and not isinstance(weight, bool) and weight == 0:
        return values | {"arm": "clip-only"}
    return values


def _field_problems(cls: type[C], values: dict[str, Any]) -> tuple[C | None, dict[str, str]]:
    try:
        return cls(**values), {}
    except ValidationError as error:
        fields = [str(e["loc"][0]) for e in error.errors() if e["loc"]]
        return None, {name: _requirement(cls, name, values[name]) for name in fields}


def _conflicts(values: Mapping[str, Any], bad: Iterable[str]) -> list[str]:
    """Rules between fields; a rule is skipped while one of its fields is wrong in itself."""
    bad = set(bad)
    return [
        text
        for fields, rule in _RULES
        if bad.isdisjoint(fields) and all(f in values for f in fields)
        for text in [rule(*(values[f] for f in fields))]
        if text
    ]


def _t_order(t_min: int, t_max: int) -> str | None:
    if t_min <= t_max:
        return None
    return f"t_min must not be above t_max, got t_min {t_min} and t_max {t_max}"


def _one_duration(steps: int | None, epochs: int | None) -> str | None:
    if (steps is None) != (epochs is None):
        return None
    if steps is None:
        return "one of steps and epochs is needed, got neither"
    return f"steps and epochs exclude each other, got steps {steps} and epochs {epochs}"


def _hub_repository(push_to: str | None) -> str | None:
    if push_to is None or re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push_to):
        return None
    return f"push_to must be a repository of the Hub, owner/name, got {push_to!r}"


def _a_batch(train_pairs: int | None, batch_size: int) -> str | None:
    if train_pairs is None or train_pairs >= batch_size:
        return None
    return f"train_pairs {train_pairs} is less than one batch; lower batch_size {batch_size}"


def _enough_noise(arm: str, choice_draws: int, batch_size: int, sds_share: float) -> str | None:
    seen = max(1, round(sds_share * batch_size))
    if arm != "teacher-choice" or choice_draws <= seen:
        return None
    return f"choice_draws {choice_draws} needs as many pairs a batch; the teacher sees {seen}"


def _even_parts(batch_size: int, processes: int) -> str | None:
    if batch_size % processes == 0:
        return None
    return f"batch_size {batch_size} cannot be divided among {processes} processes"


def _noise_of_others(arm: str, processes: int) -> str | None:
    if arm != "teacher-choice" or processes == 1:
        return None
    return "arm 'teacher-choice' lends noises across the batch; leave processes at 1"


def _text_has_no_pooled(arm: str, bridge_input: str) -> str | None:
    if arm != "sds-text" or bridge_input == "projected":
        return None
    return "arm 'sds-text' maps text embeddings too; leave bridge_input at 'projected'"


def _reached(arm: str, trainable: str) -> str | None:
    """Only `TEXT_ARMS` teach the text tower; L_SDS is a loss on the image embedding."""
    if arm in TEXT_ARMS or trainable != "text-tower":
        return None
    return (
        f"arm {arm!r} gives trainable 'text-tower' no gradient of L_SDS; take arm 'clip-only', "
        "which trains the same student, or 'sds-text' or 'teacher-choice'"
    )


def _something_to_learn(arm: str, sds_weight: float) -> str | None:
    if arm == "sds-only" and sds_weight == 0:
        return "arm 'sds-only' learns nothing at sds_weight 0; give a weight above 0"
    return None


def _enough_for_ridge(
    arm: str, bridge_start: str, bridge_pairs: int, train_pairs: int | None, batch_size: int
) -> str | None:
    if bridge_start != "ridge" or "bridge_start" in UNREAD.get(arm, ()):
        return None
    whole = train_pairs is None or train_pairs < batch_size  # that is another problem
    counts = {"bridge_pairs": bridge_pairs} | ({} if whole else {"train_pairs": train_pairs})
    for name, count in counts.items():
        if count is not None and count < FEWEST_RIDGE:
            least = f"needs {FEWEST_RIDGE} pairs or more, got {name} {count}"
            return f"bridge_start 'ridge' {least}; take more, or bridge_start 'random'"
    return None


def _known_sets(trainable: str) -> str | None:
    wrong = [name for name in trainable.split("+") if name not in TRAINABLE]
    return _one_of("trainable", wrong[0], TRAINABLE) if wrong else None


_RULES: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("t_min", "t_max"), _t_order),
    (("steps", "epochs"), _one_duration),
    (("train_pairs", "batch_size"), _a_batch),
    (("arm", "sds_weight"), _something_to_learn),
    (("arm", "bridge_input"), _text_has_no_pooled),
    (("arm", "trainable"), _reached),
    (("arm", "choice_draws", "batch_size", "sds_share"), _enough_noise),
    (("batch_size", "processes"), _even_parts),
    (("arm", "processes"), _noise_of_others),
    (("arm", "bridge_start", "bridge_pairs", "train_pairs", "batch_size"), _enough_for_ridge),
    (("trainable",), _known_sets),
    (("push_to",), _hub_repository),
)


def _contradictions(given: Mapping[str, Any]) -> list[str]:
    arm, weight = given.get("arm"), given.get("sds_weight")
    weighted = isinstance(weight, (int, float)) and not isinstance(weight, bool) and weight > 0
    if arm in WEIGHTLESS and weighted:
        return [f"arm {arm!r} has no L_SDS; leave out sds_weight {weight} or set it to 0"]
    return []


def _missing_files(values: Mapping[str, Any], bad: Iterable[str]) -> list[str]:
    bad, problems = set(bad), []
    if "clip_model" in values and bad.isdisjoint(("clip_model", "clip_pretrained")):
        problems.append(_student_problem(values["clip_model"], values["clip_pretrained"]))
    if "teacher" in values and bad.isdisjoint(("teacher", "variant")):
        problems.append(_teacher_problem(values["teacher"], values.get("variant")))
    if values.get("tracker") and "tracker" not in bad:
        problems.append(_tracker_problem(values["tracker"]))
    return [text for text in problems if text]


def _is_folder(source: object) -> bool:
    if not isinstance(source, str) or source in _open_clip_names():
        return False
    prefix, folder = _split_source(source)
    return bool(prefix) or "/" in folder or project_path(folder).is_dir()


def _student_problem(source: str, pretrained: str | None) -> str | None:
    if source.startswith("hf-hub:"):
        return None
    if not _is_folder(source):
        return _open_clip_problem(source, pretrained)
    shown = _split_source(source)[1]
    folder = project_path(shown)
    if folder.is_file():
        return student_file_problem(shown)
    if not folder.is_dir():
        close = _did_you_mean(suggest(source, _open_clip_names(), cutoff=0.8))
        return f"clip_model folder {shown!r} does not exist{close or _rebuilt(shown)}"
    if not (folder / "open_clip_config.json").is_file():
        return f"clip_model folder {shown!r} has no open_clip_config.json"
    if any(folder.glob("*.safetensors")):
        return None
    pickle = next((p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES), None)
    way = conversion(pickle) if pickle else "put open_clip_model.safetensors there"
    return f"clip_model folder {shown!r} has no weights; {way}"


def student_file_problem(source: str) -> str:
    """What is said of a file where a model is asked for: weights alone tell no architecture."""
    if source.endswith(PICKLES):
        return f"clip_model is a file: {conversion(source)}, then name the model and this file"
    return (
        f"clip_model {source!r} is a file; name the model and the file, as -p clip_model ViT-B-32 "
        "-p clip_pretrained FILE, or give a folder with open_clip_config.json"
    )


def _open_clip_problem(name: str, pretrained: str | None) -> str | None:
    names = _open_clip_names()
    if names and name not in names:
        return f"unknown clip_model {name!r}{_did_you_mean(suggest(name, names))}"
    tags = _open_clip_tags().get(name.removesuffix("-quickgelu"), ())
    if pretrained is None:
        choice = f", one of {_some(tags)}" if tags else ""
        return f"clip_model {name!r} needs a clip_pretrained tag{choice}"
    if pretrained == "openai" and f"{name}-quickgelu" in names:
        return f"clip_pretrained 'openai' has QuickGELU; use clip_model '{name}-quickgelu'"
    if not tags or pretrained in tags:
        return None
    if pretrained.endswith((".safetensors", *PICKLES)) or "/" in pretrained:
        return _pretrained_file_problem(pretrained)
    close = _did_you_mean(suggest(pretrained, tags))
    way = close or f"; there are {_some(tags)}"
    return f"unknown clip_pretrained {pretrained!r} for {name!r}{way}"


def _pretrained_file_problem(file: str) -> str | None:
    if not project_path(file).is_file():
        return f"clip_pretrained file {file!r} does not exist"
    return f"clip_pretrained: {conversion(file)}" if file.endswith(PICKLES) else None


def _teacher_problem(source: str, variant: str | None) -> str | None:
    folder, where = project_path(source), f"teacher folder {source!r}"
    if folder.is_dir():
        return layout_problem(files_below(folder), where, variant)
    if folder.is_file():
        return f"teacher {source!r} is a file; give the folder in diffusers' layout that it is in"
    hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not folder.parent.is_dir()
    way = _rebuilt(source) or "; give a folder or a Hub id owner/name"
    return None if hub_id else f"{where} does not exist{way}"


def files_below(folder: Path) -> list[str]:
    """The files of a folder, named from it."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def teacher_weights(variant: str | None = None) -> dict[str, str]:
    """The file of weights of each part of a teacher, as diffusers names those of a variant."""
    if variant is None:
        return TEACHER_WEIGHTS
    return {p: n.replace(".safetensors", f".{variant}.safetensors") for p, n in
            TEACHER_WEIGHTS.items()}  # fmt: skip


def layout_problem(names: Collection[str], where: str, variant: str | None = None) -> str | None:
    """What a teacher lacks, told from its files' names alone: of a folder, or of a Hub listing.

    The one judge of a layout: guard, doctor and loader ask it, before anything is read or fetched.
    """
    names = set(names)
    weights = [f"{part}/{name}" for part, name in teacher_weights(variant).items()]
    absent = [name for name in (*TEACHER_CONFIGS, *weights) if name not in names]
    if not absent:
        return None
    homes = {name.partition("/")[0] for name in names}
    told = dict.fromkeys(n if n.partition("/")[0] in homes else n.partition("/")[0] for n in absent)
    said = f"{where} has no {', '.join(told)}"
    parts = tuple(f"{name.partition('/')[0]}/" for name in weights if name in absent)
    ends = (".safetensors", *PICKLES)
    beside = [name for name in sorted(names) if name.startswith(parts) and name.endswith(ends)]
    if not parts or not beside:
        return f"{said}; diffusers' save_pretrained writes them"
    said += f"; there are {_some(beside)}"
    for other in {None, "fp16"} - {variant}:
        if {f"{part}/{name}" for part, name in teacher_weights(other).items()} <= names:
            return f"{said}; {f'give variant {other!r}' if other else 'leave out variant'}"
    if all(name.endswith(PICKLES) for name in beside):
        said += f": {conversion(beside[0], ' where you have it')}"
    return said


def conversion(file: str, where: str = "") -> str:
    """What is said of a pickle: why it is not read, and the command that converts it once.

    open_clip's own checkpoints keep the weights under `state_dict`, with `module.` before each name
    where several GPUs trained; tensors that share memory are written apart.
    """
    name, stem = Path(file).name, Path(file).stem
    new = f"{'model' if stem == 'pytorch_model' else stem}.safetensors"  # transformers' two names
    return (
        f"{file} is a pickle, which can run code when loaded; if you trust it, convert it{where}: "
        f"""python -c "import torch, safetensors.torch as s; w = torch.load('{name}', """
        f"""map_location='cpu', weights_only=True); w = w.get('state_dict', w); """
        f"""s.save_file({{k.removeprefix('module.'): v.clone().contiguous() for k, v in """
        f"""w.items()}}, '{new}', {{'format': 'pt'}})" """.rstrip()
    )


def _tracker_problem(name: str) -> str | None:
    if importlib.util.find_spec(name) is not None:
        return None
    return f"tracker {name!r} needs its package; pip install {name}, or leave tracker out"


def _runs_problems(source: str | None, bad: Iterable[str]) -> list[str]:
    """A folder of runs that cannot be written is told before any work starts."""
    if "runs" in bad:
        return []
    source = source or "reports/runs"
    if problem := path_problem(source):
        return [f"runs: {problem}"]
    folder = project_path(source)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return [f"runs folder {source!r} cannot be made: {there.name!r} is a file; name a folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"runs folder {source!r} cannot be written; name one that can"]
    return []


def _rebuilt(folder: str) -> str:
    inside = folder.startswith("data/mini/")
    return "; make it with notebooks/00_miniworld.ipynb -p rebuild True" if inside else ""


def _open_clip_folder() -> Path | None:
    spec = importlib.util.find_spec("open_clip")  # finds the files, runs none of them
    return Path(spec.origin).parent if spec and spec.origin else None


@cache
def _open_clip_names() -> frozenset[str]:
    folder = _open_clip_folder()
    return (
        frozenset(p.stem for p in (folder / "model_configs").glob("*.json"))
        if folder
        else frozenset()
    )


@cache
def _open_clip_tags() -> dict[str, tuple[str, ...]]:
    """Tags by model, read from the source text; empty where open_clip writes them another way."""
    folder = _open_clip_folder()
    source = folder / "pretrained.py" if folder else None
    if source is None or not source.is_file():
        return {}
    tables: dict[str, ast.expr] = {
        node.targets[0].id: node.value
        for node in ast.parse(source.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    models = tables.get("_PRETRAINED")
    if not isinstance(models, ast.Dict):
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for key, value in zip(models.keys, models.values, strict=True):
        table = tables.get(value.id) if isinstance(value, ast.Name) else value
        if isinstance(key, ast.Constant) and isinstance(table, ast.Call):
            found[str(key.value)] = tuple(k.arg for k in table.keywords if k.arg)
    return found


def suggest(name: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option that `name` most likely meant; case and punctuation count little."""

    def likeness(option: str) -> tuple[float, int]:
        ratio = SequenceMatcher(None, _bare(name), _bare(option)).ratio()
        return ratio, -len(option)

    best = max(options, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= cutoff else None


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _did_you_mean(option: str | None) -> str:
    return f"; did you mean {option!r}?" if option else ""


def _listed(options: Iterable[str]) -> str:
    return ", ".join(repr(option) for option in options)


def _some(options: Sequence[str]) -> str:
    return _listed(options[:6]) + (f" and {len(options) - 6} more" if len(options) > 6 else "")


def _unknown(name: str, cls: type[Config]) -> str:
    if name == "trust_remote_code":
        return (
            "trust_remote_code is never passed on: models are safetensors and JSON, and bring no "
            "code; leave it out"
        )
    return f"unknown parameter {name!r}{_did_you_mean(suggest(name, cls.model_fields))}"


def _one_of(name: str, value: object, options: Iterable[str]) -> str:
    options = list(options)
    close = suggest(value, options) if isinstance(value, str) else None
    return f"{name} must be one of {_listed(options)}, got {value!r}{_did_you_mean(close)}"


def _requirement(cls: type[Config], name: str, value: object) -> str:
    """What the field wants and what it got, in words, from the field's own schema."""
    schema = cls.model_json_schema()["properties"][name]
    schema = schema | next((s for s in schema.get("anyOf", []) if s["type"] != "null"), {})
    if "enum" in schema or "const" in schema:
        return _one_of(name, value, schema.get("enum") or [schema["const"]])
    got = f"got {value!r}"
    typed = f"{got} ({type(value).__name__})"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if schema["type"] == "integer":
        return f"{name} must be a whole number{_bounds(schema)}, {got if number else typed}"
    if schema["type"] == "number":
        if number:
            return f"{name} must be finite{_bounds(schema, ' and')}, {got}"
        return f"{name} must be a number, {typed}{_yaml_hint(value)}"
    if schema["type"] == "boolean":
        return f"{name} must be True or False, {typed}"
    if value == "":
        return f"{name} must not be empty"
    if isinstance(value, str):
        return f"{name} must be letters, digits, dots, dashes and underscores, {got}"
    if isinstance(value, float):
        made = "-p made a number of the text"
        return f"{name} must be text, {typed}; {made}, so write -r {name} and the text as it was"
    return f"{name} must be text, {typed}; with papermill write -r {name} {value}"


def _bounds(schema: Mapping[str, Any], before: str = "") -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    texts = [f"{sign} {schema[key]:.10g}" for key, sign in signs.items() if key in schema]
    return f"{before} {' and '.join(texts)}" if texts else ""


def _yaml_hint(value: object) -> str:
    try:
        mantissa, exponent = f"{float(value):e}".split("e")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    if isinstance(value, bool):
        return ""
    return f"; in YAML write {float(mantissa)}e{int(exponent):+d}"
