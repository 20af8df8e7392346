"""Parameters, notebooks and where runs go: told in one line, before anything heavy is loaded."""

import json
import os
import signal
import subprocess
import sys

import pytest
import test_notebook_form as form
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from faults.catalog import fault
from sdslib.checks.guard import guard, validate
from sdslib.config import FinetuneConfig
from sdslib.io import paths
from sdslib.io.paths import project_root
from sdslib.io.runs import RunError, find_run, main, open_run
from sdslib.io.wording import ParameterError


def refused(**given):
    with pytest.raises(ParameterError) as caught:
        guard(given)
    return caught.value


@fault(
    1,
    "misspelt parameter",
    "invalid parameters: unknown parameter 'sds_wieght'; did you mean 'sds_weight'?",
)
def test_a_misspelt_parameter():
    return refused(sds_wieght=0.001)


@fault(
    2,
    "number as text, which YAML makes of 1e-3",
    "sds_weight must be a number, got '1e-3' (str); in YAML write 1.0e-3",
)
def test_a_number_as_text():
    return refused(sds_weight="1e-3")


@fault(2, "word for a number", "sds_weight must be a number, got 'high' (str)")
def test_a_word_for_a_number():
    return refused(sds_weight="high")


@fault(3, "infinite weight", "sds_weight must be finite and ≥ 0, got inf")
def test_an_infinite_weight():
    return refused(sds_weight=float("inf"))


@fault(3, "weight that is not a number", "sds_weight must be finite and ≥ 0, got nan")
def test_a_weight_that_is_not_a_number():
    return refused(sds_weight=float("nan"))


@fault(3, "negative weight", "sds_weight must be finite and ≥ 0, got -1")
def test_a_negative_weight():
    return refused(sds_weight=-1)


@fault(4, "fraction of a step", "steps must be a whole number ≥ 1, got 7.5")
def test_a_fraction_of_a_step():
    return refused(steps=7.5)


@fault(4, "True for a count", "steps must be a whole number ≥ 1, got True (bool)")
def test_a_bool_for_a_count():
    return refused(steps=True)


@fault(
    5, "timesteps in the wrong order", "t_min must not be above t_max, got t_min 900 and t_max 100"
)
def test_timesteps_in_the_wrong_order():
    return refused(t_min=900, t_max=100)


@fault(5, "batch larger than the data", "train_pairs 8 is less than one batch; lower batch_size 32")
def test_a_batch_larger_than_the_data():
    return refused(train_pairs=8)


@fault(
    5,
    "run's name taken by other parameters",
    "run 'mine' exists with other parameters (clip_model was 'local-dir:data/mini/student', now "
    "'local-dir:other'); choose another name",
)
def test_going_on_with_another_model(tmp_path):
    open_run(FinetuneConfig(run="mine"), root=tmp_path)
    with pytest.raises(RunError) as caught:
        open_run(FinetuneConfig(run="mine", clip_model="local-dir:other"), root=tmp_path)
    return caught.value


def notebook(kernel="python3", tags=(["parameters"],)):
    return new_notebook(
        metadata={"kernelspec": {"name": kernel, "display_name": "P"}} if kernel else {},
        cells=[
            new_markdown_cell("# A question?\n\n*Reads* a.\n*Writes* b.\n*Takes* c."),
            *(new_code_cell("steps = 3", metadata={"tags": tag}) for tag in tags),
            new_code_cell("from sdslib import guard\n\nconfig = guard(globals())"),
        ],
    )


@fault(6, "no cell tagged parameters", "the first code cell alone is tagged parameters, found []")
def test_no_cell_tagged_parameters():
    return form.parameters_cell(notebook(tags=[[]]))


@fault(6, "two cells tagged so", "the first code cell alone is tagged parameters, found [0, 1]")
def test_two_cells_tagged_parameters():
    return form.parameters_cell(notebook(tags=[["parameters"]] * 2))


@fault(6, "no kernelspec, or another", "kernelspec is not python3")
@pytest.mark.parametrize("kernel", [None, "julia"])
def test_another_kernel(kernel):
    return form.clean_source(notebook(kernel))


@fault(
    7, "runs into a file", "runs folder '…' cannot be made: 'notes.txt' is a file; name a folder"
)
def test_runs_into_a_file(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    return refused(runs=str(tmp_path / "notes.txt" / "runs"))


@fault(7, "runs into a read-only folder", "runs folder '…' cannot be written; name one that can")
def test_runs_into_a_read_only_folder(tmp_path):
    """In a process of nobody's: root may write anywhere."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0o555)
    folder = tmp_path / "closed" / "runs"
    for part in [tmp_path, *tmp_path.parents][:-2]:
        part.chmod(part.stat().st_mode | 0o055)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        if os.getuid() == 0:
            os.setuid(65534)
        os.write(write, str(refused(runs=str(folder))).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as said:
        return said.read()


@fault(8, "started outside the project", "no project root above …: start inside the repository")
def test_started_outside_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert project_root().joinpath("sdslib").is_dir(), "the installed library knows its project"
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "paths.py"))
    with pytest.raises(FileNotFoundError) as caught:
        project_root()
    return caught.value


@fault(9, "kernel killed, as for want of memory", "…: died at step 412 while running")
def test_a_killed_kernel(tmp_path, capsys):
    if (child := os.fork()) == 0:
        run = open_run(FinetuneConfig(), root=tmp_path)
        run.append_history({"step": 412})
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    (folder,) = tmp_path.iterdir()
    assert main(["show", folder.name, "--runs", str(tmp_path)]) == 0
    return capsys.readouterr().out.splitlines()[0]


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


@fault(
    10,
    "Ctrl-C within a step",
    "interrupted at step 3 by KeyboardInterrupt: stopped after step 3; run again to go on",
)
def test_ctrl_c_within_a_step(tmp_path):
    return stopped(tmp_path, signal.SIGINT, -signal.SIGINT)


@fault(
    10,
    "SIGTERM within a step",
    "interrupted at step 3 by Terminated: stopped after step 3; run again to go on",
)
def test_sigterm_within_a_step(tmp_path):
    return stopped(tmp_path, signal.SIGTERM, 128 + signal.SIGTERM)


def stopped(folder, number, code):
    program = STOPPED.format(root=str(folder), number=int(number))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    (run,) = folder.iterdir()
    return find_run(run).status()["message"]


@fault(
    11,
    "executed notebook cut short",
    "out.ipynb is not a complete notebook (cut at byte …); execute it again",
)
def test_a_cut_notebook(tmp_path):
    run = open_run(FinetuneConfig(), root=tmp_path)
    whole = json.dumps({"cells": [{"outputs": [{"text": f"reports/runs/{run.name}"}]}]})
    (tmp_path / "out.ipynb").write_text(whole)
    assert find_run(tmp_path / "out.ipynb", tmp_path).path == run.path
    (tmp_path / "out.ipynb").write_text(whole[:-9])
    with pytest.raises(RunError) as caught:
        find_run(tmp_path / "out.ipynb", tmp_path)
    assert f"byte {len(whole) - 9})" in str(caught.value)
    return caught.value


@fault(
    12,
    "two processes in one run",
    "run … is locked by pid … on host … since …; wait for it or stop it",
)
def test_two_processes_in_one_run(tmp_path):
    run = open_run(FinetuneConfig(), root=tmp_path)
    code = (
        "from pathlib import Path; from sdslib.io import lock\n"
        f"lock.acquire(Path({str(run.path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


@fault(
    55,
    "a word of another kind",
    "trainable must be one of …, got 'layernrom'; did you mean 'layernorm'?",
)
def test_a_choice_that_is_none():
    return refused(trainable="layernrom")


@fault(56, "several faults at once", "unknown parameter 'stpes'; did you mean 'steps'?\nlr must be")
def test_all_problems_at_once():
    return refused(stpes=3, lr=-1)


@fault(
    57,
    "hardware that is not there",
    "device 'cuda' is not available here; use device 'auto' or 'cpu'",
)
def test_a_device_that_is_not_there(monkeypatch):
    import torch

    from sdslib import experiment

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ParameterError) as caught:
        experiment.pick_device("cuda")
    return caught.value


@fault(
    58,
    "a teacher's folder without its parts",
    "teacher folder '…' has no unet, vae, text_encoder, scheduler, tokenizer; diffusers' "
    "save_pretrained writes them",
)
def test_a_teacher_without_its_parts(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    return refused(teacher=str(tmp_path))


def test_any_value_of_runs_that_can_be_made_is_taken(tmp_path):
    assert validate(FinetuneConfig, {"runs": str(tmp_path / "a" / "b")}).runs.endswith("b")
