"""The ablations: which runs they need, and the tables and figures made of them.

`grid reduced` shows in minutes how a study looks; `full` is the study. Runs that are finished are
read, also those of another study that are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sdslib.arms import negatives
from sdslib.arms.trainable import set_trainable
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import AblateTrainableConfig, AblateWeightConfig, SweepConfig
from sdslib.config import ARMS as KNOWN
from sdslib.config import TRAINABLE, FinetuneConfig
from sdslib.io.paths import shown_path
from sdslib.io.runs import Run
from sdslib.io.wording import ParameterError, suggest
from sdslib.results import finetuned, studies, sweep
from sdslib.results.grid import combine, literal
from sdslib.results.studies import Pair, Setting, StudyError
from sdslib.show import figures
from sdslib.student import load_student

FINETUNE = "notebooks/02_finetune.ipynb"
Given = dict[str, Any]
# What a reduced grid takes from a run: enough to draw every figure, too little to believe any.
SMALL: Given = {"steps": 20, "warmup": 4, "eval_items": 200, "eval_every": 0, "bridge_pairs": 512}
WEIGHTS = {"reduced": "0,1e-3,1e-1", "full": "0,1e-4,1e-3,1e-2,1e-1,1"}
ARMS = (
    "clip-only",
    "sds",
    "sds-only",
    "shuffled-captions",
    "random-teacher",
    "latent-regression",
    "hard-negatives",
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
class Part:
    """One question of a study: settings by what is varied in them, in the order of the grid."""

    settings: tuple[Setting, ...]
    values: tuple[Given, ...]


@dataclass(frozen=True)
class Study:
    """The runs of an ablation, and which of them answer which of its questions."""

    sweep: sweep.Sweep
    parts: Mapping[str, Part]
    note: str

    @property
    def summary(self) -> str:
        """Where the table of all runs is kept, as a reader should see it."""
        return shown_path(self.sweep.summary)

    def settings(self, part: str) -> tuple[Setting, ...]:
        """What there is of a part; StudyError where none of its runs finished."""
        found = self.parts[part].settings
        if not found:
            raise StudyError(f"no run of {part} finished; the table of failures says why")
        return found

    @property
    def states(self) -> pd.DataFrame:
        """How many runs there are, by state; see `failures` for those that are not finished."""
        return self.sweep.table().groupby("state", as_index=False).size()


# --- which runs ----------------------------------------------------------------------------------


def weights(config: AblateWeightConfig) -> Study:
    """Run what `03_ablate_loss_weight` asks for: the curve over weights, the panels, the arms.

    Raises ParameterError, before anything runs, for lists that cannot be read.
    """
    fixed = _fixed(config)
    chosen = [literal(w) for w in _listed(config.weights or WEIGHTS[config.grid])]
    curve: list[Given] = [{"sds_weight": weight} for weight in chosen]
    base = {"sds_weight": config.sds_weight}
    parts = {"weights": _cells(curve, fixed, config.seeds or SEEDS[config.grid])}
    few = min(config.seeds or 99, PANEL_SEEDS[config.grid])
    for panel in _chosen("panels", config.panels, PANELS):
        parts[panel] = _cells(list(PANELS[panel]), fixed | base, few)
    unasked = [] if config.arms else ARMS
    usual = [arm for arm in unasked if not _left_out(fixed | _of_arm(arm, base))]
    arms = [_of_arm(arm, base) for arm in _chosen("arms", config.arms, usual, KNOWN)]
    if arms:
        parts["arms"] = _cells(arms, fixed, few if config.grid == "reduced" else config.seeds or 5)
    return _run(config, parts)


def trainable(config: AblateTrainableConfig) -> Study:
    """Run what `04_ablate_trainable` asks for: every set of parameters at one weight of L_SDS.

    The set that L_SDS does not reach is trained without it, which gives the same student.
    """
    fixed = _fixed(config) | {"sds_weight": config.sds_weight}
    sets: list[Given] = [
        {"trainable": name} for name in _listed(config.sets or ",".join(TRAINABLE))
    ]
    if fixed.get("arm", "sds") == "sds":
        sets = [s | {"sds_weight": 0.0} if s["trainable"] == UNREACHED else s for s in sets]
    cells = _cells(sets, fixed, config.seeds or PANEL_SEEDS[config.grid])
    return _run(config, {"trainable": cells})


def arms(given: Given | None = None, seeds: int = 5, **options: Any) -> Study:
    """Run every arm with the same data, order, steps and seeds; `options` as `sweep.Options`.

    `given` are further parameters of all runs. `arm_table` shows them beside the untouched student.
    """
    base = {"sds_weight": 1e-3} | (given or {})
    weight = {"sds_weight": base.pop("sds_weight")}
    cells = _cells([_of_arm(arm, weight) for arm in ARMS], base, seeds)
    return _swept({"arms": cells}, sweep.Options(**options))


def _left_out(given: Given) -> bool:
    """Whether an arm that nobody named has no false captions here; the warning says why."""
    why = negatives.problem(validate(FinetuneConfig, given))
    if why:
        warnings.warn(f"left out of the arms: {why}", stacklevel=2)
    return why is not None


def _of_arm(arm: str, weight: Given) -> Given:
    return {"arm": arm} if KNOWN[arm].sds is None else {"arm": arm} | weight


def _fixed(config: SweepConfig) -> Given:
    """What all runs of a study share: what is small about a reduced one, and what was asked for."""
    found: Given = dict(SMALL) if config.grid == "reduced" else {}
    asked: Given = {"steps": config.steps, "eval_items": config.eval_items}
    asked |= {"threads": config.threads}
    asked |= {"device": config.device} if config.device != "auto" else {}
    found |= {name: value for name, value in asked.items() if value is not None}
    for name, text in _assigned(config.fixed or ""):
        found[name] = literal(text)
    return found | {"preset": config.preset} if config.preset != "mini" else found


def _assigned(text: str) -> list[tuple[str, str]]:
    """The pairs of `name=value,name=value`; a word without a sign goes on with a value's list."""
    found: list[tuple[str, str]] = []
    for word in _listed(text):
        name, sign, value = word.partition("=")
        if sign and name.strip().isidentifier():
            found.append((name.strip(), value.strip()))
        elif found:
            found[-1] = (found[-1][0], f"{found[-1][1]},{word}")
        else:
            raise ParameterError([f"fixed is name=value,name=value; got {word!r}"])
    return found


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _chosen(
    name: str, text: str | None, default: Iterable[str], known: Iterable[str] = ()
) -> list[str]:
    if text == NONE:
        return []
    default, known = list(default), list(known) or list(default)
    words = _listed(text) if text else default
    for word in words:
        if word not in known:
            close = suggest(word, known)
            hint = f"; did you mean {close!r}?" if close else f"; there are {', '.join(known)}"
            raise ParameterError([f"unknown {name} {word!r}{hint}"])
    return words


def _cells(values: Sequence[Given], fixed: Given, seeds: int) -> list[tuple[Given, Given]]:
    """(what is varied, the cell's parameters) of every value and seed."""
    return [
        (value, cell)
        for value in values
        for cell in combine({name: [v] for name, v in value.items()}, seeds, _without(fixed, value))
    ]


def _without(fixed: Given, value: Given) -> Given:
    return {name: held for name, held in fixed.items() if name not in value}


def _run(config: SweepConfig, parts: Mapping[str, list[tuple[Given, Given]]]) -> Study:
    return _swept(parts, sweep.Options.of(config))


def _swept(parts: Mapping[str, list[tuple[Given, Given]]], options: sweep.Options) -> Study:
    cells = [cell for part in parts.values() for _, cell in part]
    done = sweep.run(FINETUNE, cells, options)
    found = {name: _part(done, part) for name, part in parts.items()}
    first = next(iter(done.cells)).config
    assert isinstance(first, FinetuneConfig)
    return Study(done, found, finetuned.note(first))


def _part(done: sweep.Sweep, cells: Sequence[tuple[Given, Given]]) -> Part:
    """The finished runs of these cells by setting; a setting without one is left out."""
    groups: dict[str, tuple[Given, list[Pair]]] = {}
    for value, cell in cells:
        config = validate(FinetuneConfig, cell)
        same = [c for c in done.cells if c.config.identity() == config.identity()]
        if pair := same[0].pair(done.root) if same else None:
            groups.setdefault(str(value), (value, []))[1].append(pair)
    return Part(
        tuple(
            Setting(_said(value), studies.config_of(pairs[0][0]).identity(), tuple(pairs))
            for value, pairs in groups.values()
        ),
        tuple(value for value, _ in groups.values()),
    )


def _said(value: Given) -> str:
    if value.keys() == {"t_min", "t_max"}:
        return f"t {value['t_min']}–{value['t_max']}"
    if "trainable" in value:
        return ", ".join([value["trainable"]] + [studies.CONTROL] * ("sds_weight" in value))
    if "arm" in value:
        return studies.CONTROL if value["arm"] == "clip-only" else str(value["arm"])
    return ", ".join(f"{name} {'all' if v is None else v}" for name, v in value.items())


# --- what they show ------------------------------------------------------------------------------


def failures(study: Study) -> pd.DataFrame:
    """Which cells did not finish, and their last word; empty where all did."""
    failed = study.sweep.failed
    rows = [{**cell.given, "error": failed[cell.key]} for cell in study.sweep.cells
            if cell.key in failed]  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["error"])


def curve(study: Study) -> pd.DataFrame:
    """The trade-off over `sds_weight`, see `studies.curve`."""
    return studies.curve(study.settings("weights"))


def draw_curve(study: Study) -> figures.Picture:
    """The same as a figure."""
    return figures.tradeoff(curve(study), study.note, plain=["gradient ratio"])


def compared(study: Study, *parts: str) -> pd.DataFrame:
    """The settings of these parts against the untouched student and L_CLIP alone, paired."""
    found = [s for name in parts if name in study.parts for s in study.parts[name].settings]
    return studies.differences(found)


def panels(study: Study) -> pd.DataFrame:
    """Text score and retention of the panels: `studies.means` with a column `panel`."""
    rows = [
        studies.means(part.settings).assign(panel=name)
        for name, part in study.parts.items()
        if name in PANELS
    ]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def draw_panels(study: Study) -> figures.Picture | str:
    """The panels as bars with intervals, or a sentence where none was asked for."""
    table = panels(study)
    if table.empty:
        return "no panels were asked for"
    table = studies.drawn(table)
    title = "Route, timesteps, start and data"
    return figures.bars_by_set(table.rename(columns={"setting": "set"}), study.note, title)


def arm_table(study: Study) -> pd.DataFrame:
    """All arms beside the untouched student, with paired differences of the reported score.

    Columns arm, seeds, that score (text), low, high, then the difference, its interval and the
    range over seeds against the untouched student and against L_CLIP alone, then the shares that
    must not suffer.
    """
    part = study.parts.get("arms")
    if part is None:
        return pd.DataFrame()
    shares, pairs = studies.means(part.settings), studies.differences(part.settings)
    measure = shares["measure"].iloc[0]
    own = shares.loc[shares["measure"] == measure]
    rows = [{"arm": studies.UNTOUCHED, measure: own["reference"].iloc[0]}]
    rows[0] |= _kept(shares[shares["setting"] == part.settings[0].label], "reference")
    for setting in part.settings:
        mine = shares[shares["setting"] == setting.label]
        row = {"arm": setting.label} | mine.iloc[0][["seeds", "mean", "low", "high"]].to_dict()
        row[measure] = row.pop("mean")
        of = pairs[(pairs["setting"] == setting.label) & (pairs["measure"] == measure)]
        for _, difference in of.iterrows():
            row[f"against {difference['against']}"] = _points(difference)
        rows.append(row | _kept(mine, "mean"))
    order = ["arm", "seeds", measure, "low", "high"]
    table = pd.DataFrame(rows).astype({"seeds": "Int64"})  # the untouched student has none
    return table[[*order, *(c for c in table if c not in order)]]


def _kept(shares: pd.DataFrame, column: str) -> dict[str, float]:
    kept = shares[shares["measure"] != shares["measure"].iloc[0]]
    return dict(zip(kept["measure"], kept[column], strict=True))


def _points(row: pd.Series) -> str:
    mean, low, high = (100 * row[name] for name in ("difference", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def draw_arms(study: Study) -> figures.Picture | str:
    """The arms as bars with intervals, the untouched student as a line."""
    part = study.parts.get("arms")
    if part is None:
        return "no arms were asked for"
    table = studies.drawn(studies.means(part.settings)).rename(columns={"setting": "set"})
    return figures.bars_by_set(table, study.note, "Is it the diffusion model's knowledge?")


# --- what moved ----------------------------------------------------------------------------------


def parameter_counts(study: Study) -> pd.DataFrame:
    """How many of the student's parameters each set trains: columns set, parameters, share."""
    rows = []
    for setting in study.settings("trainable"):
        config = studies.config_of(setting.runs[0])
        student = load_student(config.clip_model, config.clip_pretrained, "cpu")
        total = sum(value.numel() for value in student.parameters())
        trained = sum(v.numel() for _, v in set_trainable(student, config.trainable))
        rows.append({"set": setting.label, "parameters": trained, "share": trained / total})
    return pd.DataFrame(rows)


def gains(study: Study) -> pd.DataFrame:
    """Text score and retention by trainable set, as `figures.bars_by_set` reads it."""
    table = studies.means(study.settings("trainable"))
    counts = parameter_counts(study).set_index("set")
    table.insert(0, "set", table.pop("setting"))
    words = {r.Index: f"{r.parameters:,} ({r.share:.1%})" for r in counts.itertuples()}
    return table.assign(parameters=table["set"].map(words))


def draw_gains(study: Study) -> figures.Picture:
    """The same as bars, with the number of parameters beside each set."""
    return figures.bars_by_set(studies.drawn(gains(study)), study.note)


def moved(study: Study) -> pd.DataFrame:
    """How far each layer moved, by trainable set: |after - before| / |before|, mean over seeds.

    Columns set, layer, parameters, change (norm), relative. A layer is a block of a tower, its
    embeddings, or what follows its blocks.
    """
    rows = [
        _moved(run).assign(set=setting.label)
        for setting in study.settings("trainable")
        for run in setting.runs
    ]
    table = pd.concat(rows, ignore_index=True)
    by = table.groupby(["set", "layer"], sort=False, as_index=False)
    return by[["parameters", "change", "relative"]].mean().astype({"parameters": int})


def _moved(run: Run) -> pd.DataFrame:
    config = studies.config_of(run)
    before = load_student(config.clip_model, config.clip_pretrained, "cpu").model.state_dict()
    after = load_student(str(run.weights), None, "cpu").model.state_dict()
    squares: dict[str, list[float]] = {}
    for name, old in before.items():
        if not old.is_floating_point():
            continue
        new, sums = after[name].double(), squares.setdefault(layer_of(name), [0.0, 0.0, 0.0])
        parts = (old.numel(), (new - old.double()).square().sum(), old.double().square().sum())
        squares[layer_of(name)] = [a + float(b) for a, b in zip(sums, parts, strict=True)]
    rows = [
        {"layer": layer, "parameters": count, "change": change**0.5,
         "relative": (change / norm) ** 0.5 if norm else 0.0}
        for layer, (count, change, norm) in squares.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


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


def draw_moved(study: Study) -> figures.Picture:
    """The same as a map of layers by sets."""
    rows = moved(study)
    table = rows.pivot(index="layer", columns="set", values="relative")
    return figures.changes(table.loc[rows["layer"].unique(), rows["set"].unique()], study.note)
