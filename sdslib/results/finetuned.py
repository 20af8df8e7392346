"""What one finished run says beside its controls: the tables of `02_finetune`."""

from __future__ import annotations

import pandas as pd

from sdslib import tables
from sdslib.arms.trainable import trainable_table
from sdslib.bridge import Bridge
from sdslib.checks.teacher_files import latent_shape
from sdslib.config import FinetuneConfig, set_name
from sdslib.experiment import CONTROL, UNTOUCHED, has_bridge, reported, what_trains
from sdslib.io.runs import Run
from sdslib.metrics import HUMAN_WINOGROUND
from sdslib.results import comparison
from sdslib.sets.overlap import Shared
from sdslib.sets.roles import VALIDATION
from sdslib.student import load_student


def note(config: FinetuneConfig) -> str:
    """The label under every figure: mini-world figures are no evidence about real CLIP."""
    return config.label


def human(config: FinetuneConfig) -> dict[str, float] | None:
    """What people reach on the benchmark, where somebody measured it."""
    return HUMAN_WINOGROUND if set_name(config.benchmark) == "winoground" else None


def parameter_table(config: FinetuneConfig) -> pd.DataFrame:
    """What trains: groups of the student's parameters and the bridge, with counts and shares."""
    student = load_student(config.clip_model, config.clip_pretrained, "cpu")
    what_trains(student, config)
    bridge = None
    if has_bridge(config):
        width = student.pooled_width if config.bridge_input == "pooled" else student.width
        bridge = Bridge(width, latent_shape(config.teacher, config.teacher_revision))
    return trainable_table(student, bridge)


def sets_table(run: Run) -> pd.DataFrame:
    """What the run was trained on, chosen on and measured on, with counts."""
    rows = run.environment.get("noted", {}).get("sets", [])
    found = pd.DataFrame(rows, columns=["for", "set", "items"])
    for use, missing in (
        (VALIDATION, "none: nothing was chosen on the way"),
        ("must not suffer", "none at hand; keep names some"),
    ):
        if len(found) and use not in set(found["for"]):
            found.loc[len(found)] = [use, missing, 0]
    return found


def overlap_table(run: Run) -> pd.DataFrame:
    """How many images of each test set the run was trained on, or had left out of its training."""
    rows = run.environment.get("noted", {}).get("overlap", [])
    left_out = run.params.get("overlap") == "exclude"
    found = pd.DataFrame([Shared(**row) for row in rows], columns=list(Shared._fields))
    told = found["shared"].map(lambda n: "cannot be told" if pd.isna(n) else f"{int(n):,}")
    names = {"known": "with a COCO id", "shared": "left out" if left_out else "trained on"}
    return found.assign(shared=told).rename(columns=names)


def models(finished: Run, control: Run, name: str | None = None) -> dict[str, pd.DataFrame]:
    """Score tables of the untouched student, the L_CLIP-only one and this run's, in this order.

    `name` is that of a scored set; the reported benchmark by default.
    """
    name = name or reported(finished)
    found = {UNTOUCHED: finished.scores(f"{UNTOUCHED}-{name}"), CONTROL: control.scores(name)}
    arm = finished.params["arm"]
    return found if arm == "clip-only" else found | {arm: finished.scores(name)}


def before_after(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`tables.tabulate` of all models by collapsed tag, with a column `model`."""
    rows = [
        tables.tabulate(None, table, by=[t for t in ("collapsed_tag",) if t in table])
        for table in scores.values()
    ]
    found = pd.concat([r.assign(model=m) for m, r in zip(scores, rows, strict=True)])
    found = found[found["label"] != "macro"]
    return found[["model", *(c for c in found if c != "model")]].reset_index(drop=True)


def paired(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The last model against each other one, paired by item, by collapsed tag."""
    *others, last = scores
    rows = [
        comparison.compare(
            scores[other], scores[last], by=[t for t in ("collapsed_tag",) if t in scores[last]]
        ).assign(comparison=f"{last} against {other}")
        for other in others
    ]
    found = pd.concat(rows, ignore_index=True)
    return found[["comparison", *(c for c in found if c != "comparison")]]


def retention(finished: Run, control: Run) -> pd.DataFrame:
    """The sets that must not suffer: shares of right items of all models, with their intervals."""
    done = {reported(finished), VALIDATION}
    names = [n for n in finished.score_names() if not n.startswith(UNTOUCHED) and n not in done]
    rows = [
        tables.tabulate(None, table, by=()).assign(set=name, model=model)
        for name in names
        for model, table in models(finished, control, name).items()
    ]
    columns = ["set", "model", "metric", "n", "accuracy", "low", "high"]
    found = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return found[columns]


def save_results(run: Run, **tables_: pd.DataFrame) -> str:
    """Write the tables as one long `results.parquet`, and say where the run is."""
    rows = [table.assign(table=name) for name, table in tables_.items() if len(table)]
    run.save_results(pd.concat(rows, ignore_index=True))
    return run.shown_path
