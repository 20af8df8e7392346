"""Every knob once, its presets, the table of arms, and what does not go together.

Nothing here imports torch: a typo is refused before anything heavy is loaded. Relative paths mean
"from the project root", never from the working directory. All draws come from `derive_seed`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sdslib.io.paths import portable
from sdslib.io.trackers import TRACKERS
from sdslib.io.wording import ParameterError, one_of

# Part of every run's id: raise it whenever equal parameters, data and weights come to give other
# numbers, so that no run of before is taken for one of after. tests/test_recipe.py holds to it.
RECIPE = 1
UNTOUCHED, CONTROL = "untouched", "L_CLIP only"  # what a run's student is held against
NEGATIVES = ("mini", "swap")  # word lists of the mini-world's; a tagger's words swapped
_MAP_KNOBS = frozenset({"bridge_start", "bridge_pairs", "bridge_input"})
_SDS_KNOBS = _MAP_KNOBS | {
    *("sds_weight", "sds_gradient", "sds_reduction", "sds_space", "sds_share", "t_min", "t_max"),
    *("teacher", "teacher_revision", "variant"),
}


class Arm(NamedTuple):
    """What is known of an arm: its two terms, each as `room:function`, and what they read."""

    sds: str | None = "train:sds_term"  # in the place of L_SDS; None: no teacher is needed
    clip: str | None = "train:clip_term"  # in the place of L_CLIP
    weighs: str = "SDS"  # the name of the second term, after L_
    teacher: bool = True  # its second term asks the teacher
    denoises: bool = True  # its second term is a denoising error of z = h_w(f(x))
    maps: bool = True  # it has a map h_w
    text: bool = False  # its second term teaches the text tower too
    negatives: bool = False  # it is taught by false captions of the words of a true one
    judged: bool = False  # the teacher may have said what the term needs before: `verdicts`
    several: bool = False  # it reads `negatives_each` and `negative_weight` with no verdicts
    tokens: bool = False  # it reads the student's patches and words
    distils: bool = False  # the untouched student takes part
    ignores: frozenset[str] = frozenset()  # parameters that its second term never reads

    def asks(self, verdicts: object) -> bool:
        """Whether it needs a teacher, where these verdicts are named."""
        return self.sds is not None and self.teacher and not (self.judged and verdicts)

    @property
    def unread(self) -> frozenset[str]:
        """Parameters that change nothing: outside the run id, so that one control serves many."""
        unread = set() if self.judged else {"choice_draws"}
        unread |= set() if self.negatives else {"negatives"}
        unread |= set() if self.several else {"negative_weight"}
        if self.sds is None:
            return _SDS_KNOBS | unread
        unread |= set() if self.teacher else _SDS_KNOBS - {"sds_weight", "sds_share"}
        return self.ignores | unread | (frozenset() if self.maps else _MAP_KNOBS)


ARMS: dict[str, Arm] = {
    "sds": Arm(),
    "clip-only": Arm(sds=None),
    "sds-only": Arm(clip=None),
    "shuffled-captions": Arm("arms.controls:shuffled_term"),
    "random-teacher": Arm(),
    "latent-regression": Arm(
        "arms.controls:regression_term",
        weighs="regression",
        denoises=False,
        ignores=frozenset({"sds_gradient", "sds_space", "t_min", "t_max"}),
    ),
    # rivals
    "hard-negatives": Arm(None, "arms.controls:hard_negative_term", negatives=True),
    "ce-clip": Arm(None, "arms.rivals:ce_clip_term", negatives=True, several=True),
    "fsc-clip": Arm(None, "arms.rivals:fsc_clip_term", negatives=True, several=True, tokens=True),
    "degla": Arm(None, "arms.rivals:degla_term", negatives=True, several=True, distils=True),
    # extensions: not in the paper
    "sds-text": Arm("arms.text:text_term", text=True),
    "sds-margin": Arm(
        "arms.margin:margin_term",
        weighs="margin",
        denoises=False,
        negatives=True,
        ignores=frozenset({"sds_gradient", "sds_space"}),
    ),
    "teacher-choice": Arm(
        "arms.choice:choice_term",
        weighs="choice",
        denoises=False,
        maps=False,
        text=True,
        negatives=True,
        judged=True,
        ignores=frozenset({"sds_gradient", "sds_reduction", "sds_space"}),
    ),
}
if TYPE_CHECKING:
    ArmName = str
    TrackerName = str
else:
    ArmName = Literal[tuple(ARMS)]
    TrackerName = Literal[tuple(TRACKERS)]
TRAINABLE = (
    *("layernorm", "bias", "projection", "attention", "last-block"),
    *("image-tower", "text-tower", "lora", "all"),
)
_OVERLAP_KNOBS = frozenset(["overlap", "apart_from", "vg_image_data"])  # unread in a mere report
# What changes no number, or (device, threads) only its last bits; it is recorded in env.json.
NOT_IN_ID = frozenset(
    [
        *("preset", "run", "runs", "resume", "checkpoint_every", "tracker"),
        *("num_workers", "device", "threads", "processes", "micro_batch", "checkpointing"),
        *("dry_run", "verdicts"),  # of verdicts the content is in the id
    ]
)
# Parameters younger than published runs: at their default they are in no id, so those runs stay.
NEWER = frozenset({"caption_noise", "sds_space"})
# What asks the teacher, which verdicts from a file make idle.
_JUDGE_KNOBS = frozenset(
    [
        *("teacher", "teacher_revision", "variant", "precision", "t_min", "t_max"),
        *("choice_draws", "negatives"),
    ]
)
_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
INERT = 0.01  # share of L_CLIP's gradient norm under which a term does nothing to the student
FEWEST_RIDGE = 10  # pairs that `bridge.ridge_start` takes at least


def set_name(source: str) -> str:
    """The name under which a benchmark's scores are kept, from what names the benchmark alone.

    `mini:NAME[:SPLIT]` is `mini-NAME`, `NAME[:SOURCE]` is NAME: a file's path is in no name.
    """
    name, _, rest = source.partition(":")
    return f"mini-{rest.partition(':')[0].replace('_', '-')}" if name == "mini" else name


def is_mini(source: str) -> bool:
    """Whether what this names is drawn: `mini`, `mini:NAME`, or its pairs as `retrieval:mini`."""
    return source.removeprefix("retrieval:").partition(":")[0] == "mini"


def false_captions(negatives: str | None, train_data: str) -> str:
    """What `negatives` amounts to; None is `mini` for pairs that are drawn, and else `swap`."""
    return negatives or ("mini" if is_mini(train_data) else "swap")


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
Source = Annotated[str, Field(min_length=1), AfterValidator(portable)]
Sets = Annotated[str, AfterValidator(lambda names: "+".join(sorted(set(names.split("+")))))]
Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]


class Config(BaseModel):
    """The validated parameters of one notebook: frozen, flat scalars, no unknown names."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )
    recipe: ClassVar[int] = RECIPE

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
        return settle_arm({"arm": cls.model_fields["arm"].default} | values)

    @model_validator(mode="after")
    def _no_conflict(self) -> "Config":
        problems = conflicts(self.model_dump(), frozenset())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def world(self) -> str:
        """What its runs are called after: the preset, or of other data the set they measure on."""
        if self.preset != "mini" or getattr(self, "in_mini_world", True):
            return self.preset
        return re.sub(r"[^\w.-]+", "-", set_name(getattr(self, "benchmark", "")))

    def identity(self) -> dict[str, Any]:
        """The parameters that change numbers, with those this arm never reads left out."""
        arm = arm_of(getattr(self, "arm", None))
        unread = NOT_IN_ID | (arm.unread if arm else frozenset())
        unread |= _OVERLAP_KNOBS if getattr(self, "overlap", "report") == "report" else frozenset()
        judged = getattr(self, "verdicts", None) and arm and arm.judged
        several = arm and arm.several
        unread |= _JUDGE_KNOBS if judged else set() if several else {"negatives_each"}
        fields = {n: f for n, f in type(self).model_fields.items() if n in NEWER}
        unread |= {name for name, field in fields.items() if getattr(self, name) == field.default}
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
    arms that have no such term, `clip-only` and the rivals, have weight 0. The arms `sds-text`,
    `sds-margin` and `teacher-choice` are extensions that the paper does not have; their terms are
    of other sizes than L_SDS, so choose `sds_weight` for them. `None` in `train_pairs` and
    `eval_items` means all; steps and epochs exclude each other; `t_min` and `t_max` are both drawn.

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

    `negatives` says where an arm that reads false captions has them from: `mini` (word lists),
    `swap` (words and phrases of the caption swapped), or a file; see `arms.negatives`.
    """

    arm: ArmName = "sds"
    sds_weight: Weight = 1e-3
    sds_gradient: Literal["through", "residual"] = "through"
    sds_reduction: Literal["sum", "mean"] = "sum"
    sds_space: Literal["eps", "v", "u"] = "eps"  # what the teacher's error is an error of
    sds_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    trainable: Sets = "layernorm"
    train_data: Source = "mini"
    train_pairs: Count | None = None
    caption_noise: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of captions made false
    apart_from: str | None = None
    overlap: Literal["report", "exclude"] = "report"
    vg_image_data: Source = "data/aro/image_data.json"
    validation: Source | None = None
    keep: Source | None = None
    negatives: Source | None = None
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
    bridge_input: Literal["projected", "pooled", "tokens-1", "tokens-2", "tokens-4"] = "projected"
    choice_draws: Count = 4  # (t, eps) draws a caption with which `teacher-choice` asks the teacher
    negatives_each: Count = 1  # false captions a caption in a step, of rivals and by verdicts
    negative_weight: Weight = 1.0  # a factor on what a rival adds to its contrastive loss
    verdicts: Source | None = None  # a file in which the teacher has answered `teacher-choice`
    logit_scale: Literal["frozen", "trained"] = "frozen"
    eval_every: Whole = 50
    checkpoint_every: Whole = 50
    micro_batch: Count | None = None  # pairs that the teacher sees at once
    checkpointing: bool = False  # the UNet's activations are computed again, not kept
    processes: Several = 1
    dry_run: bool = False
    resume: bool = True
    tracker: TrackerName | None = None

    @property
    def has_verdicts(self) -> bool:
        """Whether a file says what the arm would ask the teacher, so that none is needed."""
        return self.verdicts is not None and ARMS[self.arm].judged

    @property
    def needs_false_captions(self) -> bool:
        """Whether the arm makes captions false itself; verdicts bring them along."""
        return ARMS[self.arm].negatives and not self.has_verdicts

    @property
    def false_captions(self) -> str:
        """What `negatives` amounts to here."""
        return false_captions(self.negatives, self.train_data)

    def identity(self) -> dict[str, Any]:
        """As of every config; the word lists are left out, for runs of before knew no others."""
        found = super().identity()
        if "negatives" not in found:
            return found
        told = {"negatives": self.false_captions} if self.false_captions != "mini" else {}
        return {k: v for k, v in found.items() if k != "negatives"} | told


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


def inert(config: FinetuneConfig, ratio: float) -> str:
    """That a term does next to nothing where its gradient is so large a share of L_CLIP's."""
    if not 0 < ratio < INERT:
        return ""
    weight, share = config.sds_weight, f"its gradient is {100 * ratio:.2g}% of L_CLIP's"
    told = f"L_{ARMS[config.arm].weighs} is inert at sds_weight {weight:g}: {share}"
    return f"{told}; sds_weight {0.1 * weight / ratio:.1g} would make it 10%"


PRESETS: dict[str, Callable[[], FinetuneConfig]] = {"mini": mini, "paper": paper}


def preset(name: str) -> FinetuneConfig:
    """The named preset; an unknown name is a ParameterError."""
    if name not in PRESETS:
        raise ParameterError([one_of("preset", name, PRESETS)])
    return PRESETS[name]()


def arm_of(name: object) -> Arm | None:
    """The arm of this name, if it is one."""
    return ARMS.get(name) if isinstance(name, str) else None


def settle_arm(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the arm that they amount to: weight 0 is `clip-only`, which has weight 0."""
    name, weight = values["arm"], values.get("sds_weight")
    arm = arm_of(name)
    if arm and not arm.sds and isinstance(weight, (int, float, type(None))):
        return values | {"sds_weight": 0.0}
    if name != "sds-only" and not isinstance(weight, bool) and weight == 0:
        return values | {"arm": "clip-only"}
    return values


def conflicts(values: Mapping[str, Any], bad: Iterable[str]) -> list[str]:
    """Rules between fields; a rule is skipped while one of its fields is wrong in itself."""
    fine = {name: value for name, value in values.items() if name not in set(bad)}
    found = []
    for broken, text in _RULES:
        fields = inspect.signature(broken).parameters
        if fields.keys() <= fine.keys() and (why := broken(**{f: fine[f] for f in fields})):
            found.append(why if isinstance(why, str) else text.format(**fine))
    return found


def _few_for_ridge(
    arm: str, bridge_start: str, bridge_pairs: int, train_pairs: int | None, batch_size: int
) -> str | None:
    if bridge_start != "ridge" or "bridge_start" in ARMS[arm].unread:
        return None
    whole = train_pairs is None or train_pairs < batch_size  # that is another problem
    counts = {"bridge_pairs": bridge_pairs} | ({} if whole else {"train_pairs": train_pairs})
    for name, count in counts.items():
        if count is not None and count < FEWEST_RIDGE:
            least = f"needs {FEWEST_RIDGE} pairs or more, got {name} {count}"
            return f"bridge_start 'ridge' {least}; take more, or bridge_start 'random'"
    return None


def _unknown_set(trainable: str) -> str | None:
    wrong = [name for name in trainable.split("+") if name not in TRAINABLE]
    return one_of("trainable", wrong[0], TRAINABLE) if wrong else None


# What may not be, and what is said of it; a rule of several wordings gives its own.
_RULES: tuple[tuple[Callable[..., Any], str], ...] = (
    (
        lambda t_min, t_max: t_min > t_max,
        "t_min must not be above t_max, got t_min {t_min} and t_max {t_max}",
    ),
    (
        lambda steps, epochs: steps is None and epochs is None,
        "one of steps and epochs is needed, got neither",
    ),
    (
        lambda steps, epochs: steps is not None and epochs is not None,
        "steps and epochs exclude each other, got steps {steps} and epochs {epochs}",
    ),
    (
        lambda train_pairs, batch_size: train_pairs is not None and train_pairs < batch_size,
        "train_pairs {train_pairs} is less than one batch; lower batch_size {batch_size}",
    ),
    (
        lambda arm, sds_weight: arm == "sds-only" and sds_weight == 0,
        "arm 'sds-only' learns nothing at sds_weight 0; give a weight above 0",
    ),
    (
        lambda arm, bridge_input: arm == "sds-text" and bridge_input != "projected",
        "arm 'sds-text' maps text embeddings too; leave bridge_input at 'projected'",
    ),
    (  # L_SDS is a loss on the image embedding
        lambda arm, trainable: (
            trainable == "text-tower" and ARMS[arm].sds is not None and not ARMS[arm].text
        ),
        "arm {arm!r} gives trainable 'text-tower' no gradient of L_SDS; take arm 'clip-only', "
        "which trains the same student, or 'sds-text' or 'teacher-choice'",
    ),
    (
        lambda arm, choice_draws, batch_size, sds_share, verdicts: (
            ARMS[arm].judged
            and verdicts is None
            and choice_draws > (seen := max(1, round(sds_share * batch_size)))
            and f"choice_draws {choice_draws} needs as many pairs a batch; the teacher sees {seen}"
        ),
        "",
    ),
    (
        lambda batch_size, processes: batch_size % processes != 0,
        "batch_size {batch_size} cannot be divided among {processes} processes",
    ),
    (
        lambda arm, processes, verdicts: ARMS[arm].judged and verdicts is None and processes > 1,
        "arm {arm!r} lends noises across the batch; leave processes at 1, or name verdicts",
    ),
    (_few_for_ridge, ""),
    (_unknown_set, ""),
    (
        lambda push_to: push_to is not None and not re.fullmatch(_REPOSITORY, push_to),
        "push_to must be a repository of the Hub, owner/name, got {push_to!r}",
    ),
)
