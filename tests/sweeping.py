"""A notebook that leaves runs as `02_finetune` does, in seconds: for the mechanics of a sweep."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from sdslib import experiment
from sdslib.checks import fingerprints
from sdslib.config import FinetuneConfig
from sdslib.io.paths import project_root
from sdslib.sets import roles

STEP_S = 0.1
_PARAMETERS = """\
seed = 0
arm = None
sds_weight = None
trainable = None
steps = 3
run = None
runs = None
threads = None
"""
_GUARD = """\
from sdslib import guard
config = guard(globals(), "finetune")
"""
_WORK = """\
import json, os, time
import pandas as pd
from sdslib.checks.guard import override
from sdslib.config import derive_seed
from sdslib.io.runs import open_run

with open({prints!r}) as file:
    prints = json.load(file)

def score(config, name):
    right = [derive_seed(config.seed, name, i) % 3 for i in range(8)]
    rows = [{{"id": str(i), "answer": None, "n_images": 2, "n_captions": 2, "s_0_0": r, "s_1_1": r,
              "s_0_1": 1.0, "s_1_0": 0.5}} for i, r in enumerate(right)]
    return pd.DataFrame(rows).astype({{"s_0_0": float, "s_1_1": float}})

def train(config):
    run = open_run(config, prints)
    if run.finished:
        return run
    with run:
        for step in range(1, config.steps + 1):
            time.sleep({pause})
            row = {{"step": step, "clip": 1 / step, "sds": 2.0, "seconds": time.time()}}
            run.append_history(row)
        if config.seed == {poison}:
            raise ValueError("this seed is poison")
        for name in ("mini-winoground", "validation", "untouched-mini-winoground"):
            run.save_scores(name, score(config, name))
        run.finish()
    return run

train(config)
train(override(config, arm="clip-only", run=None))
"""


def light_notebook(folder, pause=STEP_S, poison=-1):
    """Write the notebook below `folder`; a run of seed `poison` fails. Returns its path."""
    config = FinetuneConfig()
    prints = experiment.load_data(config).fingerprints() | fingerprints.weights_fingerprints(config)
    (folder / "prints.json").write_text(json.dumps(prints))
    work = _WORK.format(prints=str(folder / "prints.json"), pause=pause, poison=poison)
    tagged = new_code_cell(_PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
        cells=[tagged, new_code_cell(_GUARD), new_code_cell(work)],
    )
    path = folder / "light.ipynb"
    nbformat.write(notebook, path)
    return path


def remembered(load_data):
    """`experiment.load_data` that opens the same sets once."""
    known = {}

    def load(config):
        key = roles.named_data(config)
        if key not in known:
            known[key] = load_data(config)
        return known[key]

    return load


@pytest.fixture(autouse=True, scope="module")
def data_read_once():
    """The sets do not change while these tests run, and are the dear part of naming a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "load_data", remembered(experiment.load_data))
        yield


class InProcess:
    """An executor that trains here and when it is asked to wait: last started, first done."""

    def __init__(self):
        self.jobs, self.order, self.closed = [], [], False

    def cores(self):
        return 2, 2

    def submit(self, job):
        self.jobs.append(job)
        self.order.append(job)

    def wait(self, seconds):
        job = self.jobs.pop()
        self.train(job)
        return [(job.key, None)]

    def close(self):
        self.closed = True


def begin(*words):
    """Start the sweep's command as a user would, from the project's root."""
    command = [sys.executable, "-m", "sdslib.results.sweep", *map(str, words)]
    env = os.environ | {"PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, cwd=project_root(), env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def diary(runs: Path):
    """What the sweeps on this folder of runs started and ended, in order."""
    path = runs / "sweeps" / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(condition, seconds=600.0):
    """Wait until the condition gives something true, and give it back."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")
