"""Finished runs without training: published per-item scores and histories in new run folders."""

import json

import pandas as pd
import tiny

from sdslib.config import FinetuneConfig
from sdslib.io import runs
from sdslib.io.paths import project_root

PUBLISHED = project_root() / "reports" / "published" / "loss-weight"
NAME = "mini-winoground"
SETS = (NAME, "mini-zeroshot-shape")
DATA = {"pairs": "aa11", NAME: "bb22", "student": "cc33"}


def published(arm="sds", seed=0):
    """The folder of the published run of this arm, its weight at the default, and seed."""
    for folder in sorted(PUBLISHED.glob("*/params.json")):
        params = json.loads(folder.read_text())
        usual = params["sds_weight"] in (0, FinetuneConfig().sds_weight)
        if usual and (params["arm"], params["seed"]) == (arm, seed):
            return folder.parent
    raise LookupError(f"no published run of arm {arm} and seed {seed}")


def _after(table, seed):
    """The table as scored in its own time, which published ones are without."""
    table.attrs["seconds"] = 1.0 + seed
    return table


def finish(root, arm="sds", seed=0, items=80, weights=False, data=DATA, **params):
    """A finished run in `root` with the published scores of the first `items` items."""
    source = published("clip-only" if arm == "clip-only" else "sds", seed)
    config = FinetuneConfig(arm=arm, seed=seed, runs=str(root), **params)
    run = runs.open_run(config, data, root)
    with run:
        for line in (source / "history.jsonl").read_text().splitlines():
            run.append_history(json.loads(line))
        for name in SETS:
            table = pd.read_parquet(source / "scores" / f"{name}.parquet").head(items)
            run.save_scores(name, _after(table, seed))
            before = source / "scores" / f"untouched-{name}.parquet"
            table = pd.read_parquet(before).head(items) if before.exists() else table
            run.save_scores(f"untouched-{name}", _after(table, seed))
        if weights:
            with run.staged("weights") as folder:
                tiny.save_student(folder)
        run.finish()
    return runs.find_run(run.path)
