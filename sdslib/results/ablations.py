"""The ablations: which runs they need, and the tables made of them.

`grid reduced` shows in minutes how a study looks; `full` is the study. Runs that are finished are
read, also those of another study that are the same.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sdslib.arms import negatives
from sdslib.arms.trainable import set_trainable
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import AblateTrainableConfig, AblateWeightConfig, SweepConfig, literal
from sdslib.config import ARMS as KNOWN
from sdslib.config import CONTROL, TRAINABLE, UNTOUCHED, FinetuneConfig
from sdslib.io.paths import shown_path
from sdslib.io.run import Run
from sdslib.io.wording import ParameterError, listed, suggest
from sdslib.results import formatting, studies, sweep
from sdslib.results.grid import combine
from sdslib.results.settings import Pair, Setting, StudyError, config_of, said
from sdslib.student import load_student

FINETUNE = "notebooks/02_finetune.ipynb"
Given = dict[str, Any]
Varied = tuple[Given, Given]  # what is varied, and all parameters of the cell
# What a reduced grid takes from a run: enough to draw every figure, too little to believe any.
SMALL: Given = {"steps": 20, "warmup": 4, "eval_items": 200, "eval_every": 0, "bridge_pairs": 512}
_WEIGHTS = {"reduced": "0,1e-3,1e-1", "full": "0,1e-4,1e-3,1e-2,1e-1,1"}
COMPARED = (
    *("clip-only", "sds", "sds-only", "shuffled-captions"),
    *("random-teacher", "latent-regression", "hard-negatives"),
)
PANELS: dict[str, tuple[Given, ...]] = {
    "sds_gradient": ({"sds_gradient": "through"}, {"sds_gradient": "residual"}),
    "t_range": tuple({"t_min": a, "t_max": b} for a, b in ((20, 980), (20, 500), (500, 980))),
    "bridge_start": tuple({"bridge_start": start} for start in ("ridge", "random", "zero")),
    "train_pairs": tuple({"train_pairs": count} for count in (256, 1024, None)),
}
SEEDS = {"reduced": 2, "full": 5}
PANEL_SEEDS = {"reduced": 1, "full": 3}
# L_SDS is a loss on the image embedding: it gives this set no gradient, and L_CLIP trains it alone.
UNREACHED = "text-tower"
NONE = "none"  # of `panels` and `arms`: leave the part out


@dataclass(frozen=True)
class Ablation:
    """The runs of an ablation, and the settings that answer each of its questions, by part."""

    sweep: sweep.Sweep
    parts: Mapping[str, tuple[Setting, ...]]
    note: str

    @property
    def summary(self) -> str:
        """Where the table of all runs is kept, as a reader should see it."""
        return shown_path(self.sweep.summary)

    def settings(self, part: str) -> tuple[Setting, ...]:
        """What there is of a part; StudyError where none of its runs finished."""
        if not self.parts[part]:
            raise StudyError(f"no run of {part} finished; the table of failures says why")
        return self.parts[part]

    @property
    def states(self) -> pd.DataFrame:
        """How many runs there are, by state; see `failures` for those that are not finished."""
        return self.sweep.table().groupby("state", as_index=False).size()


# --- which runs ----------------------------------------------------------------------------------


def weights(config: AblateWeightConfig) -> Ablation:
    """Run what `03_ablate_loss_weight` asks for: the curve over weights, the panels, the arms.

    Raises ParameterError, before anything runs, for lists that cannot be read.
    """
    fixed = _fixed(config)
    chosen = [literal(word) for word in listed(config.weights or _WEIGHTS[config.grid])]
    base = {"sds_weight": config.sds_weight}
    curve = [{"sds_weight": weight} for weight in chosen]
    parts = {"weights": _cells(curve, fixed, config.seeds or SEEDS[config.grid])}
    few = min(config.seeds or 99, PANEL_SEEDS[config.grid])
    for panel in _chosen("panels", config.panels, PANELS):
        parts[panel] = _cells(PANELS[panel], fixed | base, few)
    unasked = [] if config.arms else COMPARED
    usual = [arm for arm in unasked if not _left_out(fixed | _of_arm(arm, base))]
    arms = [_of_arm(arm, base) for arm in _chosen("arms", config.arms, usual, KNOWN)]
    if arms:
        parts["arms"] = _cells(arms, fixed, few if config.grid == "reduced" else config.seeds or 5)
    return _swept(parts, sweep.Options.of(config))


def trainable(config: AblateTrainableConfig) -> Ablation:
    """Run what `04_ablate_trainable` asks for: every set of parameters at one weight of L_SDS.

    The set that L_SDS does not reach is trained without it, which gives the same student.
    """
    fixed = _fixed(config) | {"sds_weight": config.sds_weight}
    names = listed(config.sets or ",".join(TRAINABLE))
    sets: list[Given] = [{"trainable": name} for name in names]
    if fixed.get("arm", "sds") == "sds":
        sets = [s | {"sds_weight": 0.0} if s["trainable"] == UNREACHED else s for s in sets]
    cells = _cells(sets, fixed, config.seeds or PANEL_SEEDS[config.grid])
    return _swept({"trainable": cells}, sweep.Options.of(config))


def arms(given: Given | None = None, seeds: int = 5, **options: Any) -> Ablation:
    """Run every arm with the same data, order, steps and seeds; `options` as `sweep.Options`.

    `given` are further parameters of all runs. `arm_table` shows them beside the untouched student.
    """
    base = {"sds_weight": 1e-3} | (given or {})
    weight = {"sds_weight": base.pop("sds_weight")}
    cells = _cells([_of_arm(arm, weight) for arm in COMPARED], base, seeds)
    return _swept({"arms": cells}, sweep.Options(**options))


def _left_out(given: Given) -> bool:
    """Whether an arm that nobody named has no false captions here; the warning says why."""
    why = negatives.problem(validate(FinetuneConfig, given))
    if why:
        warnings.warn(f"left out of the arms: {why}", stacklevel=2)
    return why is not None


def _of_arm(arm: str, weight: Given) -> Given:
    return {"arm": arm} | (weight if KNOWN[arm].sds else {})


def _fixed(config: SweepConfig) -> Given:
    """What all runs of a study share: what is small about a reduced one, and what was asked for."""
    asked: Given = {name: getattr(config, name) for name in ("steps", "eval_items", "threads")}
    asked |= {"device": config.device if config.device != "auto" else None}
    found: Given = dict(SMALL) if config.grid == "reduced" else {}
    found |= {name: value for name, value in asked.items() if value is not None}
    found |= _assigned(config.fixed or "")
    return found | ({"preset": config.preset} if config.preset != "mini" else {})


def _assigned(text: str) -> Given:
    """The values of `name=value,name=value`, of which each may be a list with commas itself."""
    found = {}
    for part in filter(None, re.split(r",(?=\s*[^\W\d]\w*\s*=)", text)):
        name, sign, value = part.partition("=")
        if not sign or not name.strip().isidentifier():
            raise ParameterError([f"fixed is name=value,name=value; got {part.strip()!r}"])
        found[name.strip()] = literal(",".join(listed(value)))
    return found


def _chosen(
    name: str, text: str | None, default: Iterable[str], known: Iterable[str] = ()
) -> list[str]:
    if text == NONE:
        return []
    default, words = list(default), listed(text or "")
    known, words = list(known) or default, words if text else default
    for word in words:
        if word not in known:
            close = suggest(word, known)
            hint = f"; did you mean {close!r}?" if close else f"; there are {', '.join(known)}"
            raise ParameterError([f"unknown {name} {word!r}{hint}"])
    return words


def _cells(values: Iterable[Given], fixed: Given, seeds: int) -> list[Varied]:
    return [(value, cell) for value in values for cell in combine({}, seeds, fixed | value)]


def _swept(parts: Mapping[str, list[Varied]], options: sweep.Options) -> Ablation:
    done = sweep.run(FINETUNE, [cell for part in parts.values() for _, cell in part], options)
    first = done.cells[0].config
    assert isinstance(first, FinetuneConfig)
    return Ablation(done, {name: _part(done, part) for name, part in parts.items()}, first.label)


def _part(done: sweep.Sweep, cells: Iterable[Varied]) -> tuple[Setting, ...]:
    """The finished runs of these cells by setting; a setting without one is left out."""
    groups: dict[str, list[Pair]] = {}
    for value, cell in cells:
        identity = validate(FinetuneConfig, cell).identity()
        same = [c for c in done.cells if c.config.identity() == identity]
        if pair := same[0].pair(done.root) if same else None:
            groups.setdefault(_name(value), []).append(pair)
    return tuple(Setting(name, tuple(pairs)) for name, pairs in groups.items())


def _name(value: Given) -> str:
    """A setting by what is varied in it; the bare name of a set of parameters says enough."""
    if value.keys() == {"t_min", "t_max"}:
        return f"t {value['t_min']}–{value['t_max']}"
    if "trainable" in value:
        return ", ".join([value["trainable"]] + [CONTROL] * ("sds_weight" in value))
    shown = ["arm"] if "arm" in value else value
    return ", ".join(said(name, value[name]) for name in shown)


# --- what they show ------------------------------------------------------------------------------


def failures(ablation: Ablation) -> pd.DataFrame:
    """Which cells did not finish, and their last word; empty where all did."""
    done = ablation.sweep
    failed = [cell for cell in done.cells if cell.key in done.failed]
    rows = [{**cell.given, "error": done.failed[cell.key]} for cell in failed]
    return pd.DataFrame(rows, columns=None if rows else ["error"])


def curve(ablation: Ablation) -> pd.DataFrame:
    """The trade-off over `sds_weight`, see `studies.curve`."""
    return studies.curve(ablation.settings("weights"))


def compared(ablation: Ablation, *parts: str) -> pd.DataFrame:
    """The settings of these parts against the untouched student and L_CLIP alone, paired."""
    return studies.differences([s for name in parts for s in ablation.parts.get(name, ())])


def panels(ablation: Ablation) -> pd.DataFrame:
    """Text score and retention of the panels: `studies.means` with a column `panel`."""
    there = [name for name in ablation.parts if name in PANELS]
    rows = [studies.means(ablation.parts[name]).assign(panel=name) for name in there]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def arm_table(ablation: Ablation) -> pd.DataFrame:
    """All arms beside the untouched student, with paired differences of the reported score.

    Columns arm, seeds, that score (text), low, high, then the difference with its interval against
    the untouched student and against L_CLIP alone, then the shares that must not suffer.
    """
    found = ablation.parts.get("arms", ())
    if not found:
        return pd.DataFrame()
    shares, pairs = studies.means(found), studies.differences(found)
    own = shares["measure"].iloc[0]
    first = shares[shares["setting"] == found[0].label].set_index("measure")["reference"]
    rows = [{"arm": UNTOUCHED} | first.to_dict()]
    against = pairs[pairs["measure"] == own].groupby("setting", sort=False)
    for arm, part in shares.groupby("setting", sort=False):
        row = {"arm": arm} | part.iloc[0][["seeds", "low", "high"]].to_dict()
        row |= part.set_index("measure")["mean"].to_dict()
        for pair in against.get_group(arm).itertuples():
            row[f"against {pair.against}"] = formatting.gap(pair)
        rows.append(row)
    columns = ["arm", "seeds", own, "low", "high"]
    told = [f"against {other}" for other in dict.fromkeys(pairs["against"])]
    table = pd.DataFrame(rows).astype({"seeds": "Int64"})  # the untouched student has none
    return table[[*columns, *told, *(c for c in table if c not in (*columns, *told))]]


# --- what moved ----------------------------------------------------------------------------------


def parameter_counts(ablation: Ablation) -> pd.DataFrame:
    """How many of the student's parameters each set trains: columns set, parameters, share."""
    rows = []
    for setting in ablation.settings("trainable"):
        config = setting.config
        student = load_student(config.clip_model, config.clip_pretrained, "cpu")
        total = sum(value.numel() for value in student.parameters())
        trained = sum(v.numel() for _, v in set_trainable(student, config.trainable))
        rows.append({"set": setting.label, "parameters": trained, "share": trained / total})
    return pd.DataFrame(rows)


def gains(ablation: Ablation) -> pd.DataFrame:
    """Text score and retention by trainable set, as `figures.bars_by_set` reads it."""
    table = studies.means(ablation.settings("trainable")).rename(columns={"setting": "set"})
    counts = parameter_counts(ablation).itertuples()
    words = {row.set: f"{row.parameters:,} ({row.share:.1%})" for row in counts}
    return table.assign(parameters=table["set"].map(words))


def moved(ablation: Ablation) -> pd.DataFrame:
    """How far each layer moved, by trainable set: |after - before| / |before|, mean over seeds.

    Columns set, layer, parameters, change (norm), relative. A layer is a block of a tower, its
    embeddings, or what follows its blocks.
    """
    found = [(s.label, run) for s in ablation.settings("trainable") for run in s.runs]
    table = pd.concat([_moved(run).assign(set=name) for name, run in found], ignore_index=True)
    by = table.groupby(["set", "layer"], sort=False, as_index=False)
    return by[["parameters", "change", "relative"]].mean().astype({"parameters": int})


def _moved(run: Run) -> pd.DataFrame:
    config = config_of(run)
    before = load_student(config.clip_model, config.clip_pretrained, "cpu").model.state_dict()
    after = load_student(str(run.weights), None, "cpu").model.state_dict()
    rows = []
    for name, old in before.items():
        if old.is_floating_point():
            change = (after[name].double() - old.double()).square().sum().item()
            norm = old.double().square().sum().item()
            rows.append((layer_of(name), old.numel(), change, norm))
    table = pd.DataFrame(rows, columns=["layer", "parameters", "change", "norm"])
    found = table.groupby("layer", sort=False, as_index=False).sum()
    root, norm = found["change"] ** 0.5, found.pop("norm") ** 0.5
    return found.assign(change=root, relative=(root / norm).where(norm > 0, 0.0))


def layer_of(name: str) -> str:
    """The layer of an open_clip parameter in words: its tower and block, or what is around them."""
    tower = "image" if name.startswith("visual.") else "text"
    if name in ("logit_scale", "logit_bias"):
        return "temperature"
    parts = name.split(".")
    number = next((part for part in parts[:-1] if part.isdigit()), None)
    if number is not None:
        return f"{tower} block {number}"
    ends = ("proj", "text_projection", "ln_post", "ln_final", "head", "attnpool")
    return f"{tower} output" if any(part in ends for part in parts) else f"{tower} input"
