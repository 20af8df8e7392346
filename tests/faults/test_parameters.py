"""Parameters, notebooks, data and where runs go: told before anything heavy is loaded.

What the guard alone says of a parameter is in tests/test_config.py.
"""

import json
import os
import signal
import subprocess
import sys
import warnings

import pytest
import test_notebook_form as form
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from faults.catalog import each, fault, refused
from sdslib.checks.guard import guard
from sdslib.config import FinetuneConfig
from sdslib.io.runs import RunError, find_run, open_run
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError
from sdslib.sets import roles


def notebook(kernel="python3", tags=(["parameters"],)):
    return new_notebook(
        metadata={"kernelspec": {"name": kernel, "display_name": "P"}} if kernel else {},
        cells=[
            new_markdown_cell("# A question?\n\n*Reads* a.\n*Writes* b.\n*Takes* c."),
            *(new_code_cell("steps = 3", metadata={"tags": tag}) for tag in tags),
            new_code_cell("from sdslib import guard\n\nconfig = guard(globals())"),
        ],
    )


@each({"no cell tagged parameters": [[]], "two cells tagged so": [["parameters"]] * 2})
def test_one_cell_is_tagged_parameters(given):
    return form.parameters_cell(notebook(tags=given))


@fault("no kernelspec, or another")
@pytest.mark.parametrize("kernel", [None, "julia"])
def test_another_kernel(kernel):
    return form.clean_source(notebook(kernel))


@fault("runs into a file")
def test_runs_into_a_file(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    return refused(ParameterError, guard, {"runs": str(tmp_path / "notes.txt" / "runs")})


@fault("runs into a read-only folder")
def test_runs_into_a_read_only_folder(tmp_path):
    """In a process of nobody's: root may write anywhere."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    for part in [tmp_path, *tmp_path.parents][:-2]:
        part.chmod(part.stat().st_mode | 0o055)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        said = refused(ParameterError, guard, {"runs": str(tmp_path / "closed" / "runs")})
        os.write(write, str(said).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        return said.read()


STOPPED = """
import os, signal
from sdslib import experiment
from sdslib.config import FinetuneConfig
from sdslib.io.runs import open_run
with open_run(FinetuneConfig(), root={root!r}) as run, experiment.stop_requested() as stop:
    run.append_history({{"step": 3}})
    os.kill(os.getpid(), {number})
    assert stop.is_set()
    stop.obey(3)
"""


@each(
    {
        "Ctrl-C within a step": (signal.SIGINT, -signal.SIGINT),
        "SIGTERM within a step": (signal.SIGTERM, 128 + signal.SIGTERM),
    }
)
def test_a_signal_within_a_step(tmp_path, given):
    number, code = given
    program = STOPPED.format(root=str(tmp_path), number=int(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    (run,) = tmp_path.iterdir()
    return find_run(run).status()["message"]


@fault("executed notebook cut short")
def test_a_cut_notebook(tmp_path):
    run = open_run(FinetuneConfig(), root=tmp_path)
    whole = json.dumps({"cells": [{"outputs": [{"text": f"reports/runs/{run.name}"}]}]})
    (tmp_path / "out.ipynb").write_text(whole)
    assert find_run(tmp_path / "out.ipynb", tmp_path).path == run.path
    (tmp_path / "out.ipynb").write_text(whole[:-9])
    said = refused(RunError, find_run, tmp_path / "out.ipynb", tmp_path)
    assert f"byte {len(whole) - 9})" in str(said)
    return said


@fault("hardware that is not there")
def test_a_device_that_is_not_there(monkeypatch):
    import torch

    from sdslib import experiment

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return refused(ParameterError, experiment.pick_device, "cuda")


# --- parameters that the data do not allow -------------------------------------------------------


@pytest.fixture
def real(photos):
    return photos.train_data


@each(
    {
        "arm without false captions": {
            **{"arm": "hard-negatives", "train_data": "REAL", "negatives": "mini"},
        },
        "too few pairs to hold some out": {
            **{"train_data": "REAL", "validation": "held-out", "batch_size": 4},
        },
        "more pairs than validation leaves": {"validation": "held-out", "train_pairs": 4000},
        "set to keep that is not known": {"keep": "cifar11", "eval_items": 4},
        "set to keep that is not here": {"keep": "retrieval:no/captions.json::no"},
    }
)
def test_parameters_that_the_data_do_not_allow(real, given):
    given = {name: real if value == "REAL" else value for name, value in given.items()}
    return refused((ParameterError, DataError), roles.load_data, FinetuneConfig(**given))


@each({"batch of one": {"batch_size": 1}, "learning rate far too high": {"lr": 1e9}})
def test_settings_that_lead_to_nothing(given):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        roles.load_data(FinetuneConfig(**given, eval_items=4, keep="none"))
    return "\n".join(str(warning.message) for warning in told)
