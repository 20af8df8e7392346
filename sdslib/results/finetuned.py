"""What one finished run says beside its controls: the tables of `02_finetune`."""

from __future__ import annotations

import pandas as pd

from sdslib import tables
from sdslib.arms.trainable import trainable_table
from sdslib.bridge import Bridge
from sdslib.checks.teacher_files import latent_shape
from sdslib.config import UNTOUCHED, FinetuneConfig, set_name
from sdslib.experiment import has_bridge, what_trains
from sdslib.io.runs import Run
from sdslib.metrics import HUMAN_WINOGROUND
from sdslib.results import comparison
from sdslib.results.settings import reported, score_tables
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
        width = student.map_width(config.bridge_input)
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


def before_after(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`tables.tabulate` of all models by collapsed tag, with a column `model`."""
    rows = {
        name: tables.tabulate(None, table, by=comparison.usual_tags(table))
        for name, table in scores.items()
    }
    found = pd.concat(rows, names=["model"]).reset_index("model")
    return found[found["label"] != "macro"].reset_index(drop=True)


def retention(finished: Run, control: Run) -> pd.DataFrame:
    """The sets that must not suffer: shares of right items of all models, with their intervals."""
    done = {reported(finished), VALIDATION}
    rows = [
        tables.tabulate(None, table, by=()).assign(set=name, model=model)
        for name in finished.score_names()
        if not name.startswith(UNTOUCHED) and name not in done
        for model, table in score_tables(finished, control, name).items()
    ]
    columns = ["set", "model", "metric", "n", "accuracy", "low", "high"]
    found = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)
    return found[columns]


def save_results(run: Run, **tables_: pd.DataFrame) -> str:
    """Write the tables as one long `results.parquet`, and say where the run is."""
    rows = [table.assign(table=name) for name, table in tables_.items() if len(table)]
    run.save_results(pd.concat(rows, ignore_index=True))
    return run.shown_path
