"""A run in several processes: the same as in one, and clear about a process that ends early."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from safetensors.torch import load_file
from test_experiment import SETTINGS

from sdslib import experiment
from sdslib.config import FinetuneConfig
from sdslib.io import launch, lock, stopping
from sdslib.io.launch import ProcessError, Workers
from sdslib.io.runs import find_run
from sdslib.io.wording import ParameterError

RIVALS = ("hard-negatives", "ce-clip", "fsc-clip", "degla")


def workers(folder, code):
    """Workers whose launcher is a few lines of Python that write their words to the log."""
    with (folder / "log").open("wb") as log:
        words = [sys.executable, "-c", code]
        return Workers(folder, subprocess.Popen(words, stdout=log, stderr=log))


def test_rows_are_those_that_the_history_grows_by(tmp_path):
    history = tmp_path / "history.jsonl"
    history.write_text('{"step": 1}\n{"step": 2}\n')
    code = f"""if True:
        import time
        time.sleep(0.3)
        with open({str(history)!r}, "a") as file:
            for text in ('{{"step": 3}}\\n{{"ste', 'p": 4}}\\n'):
                file.write(text); file.flush(); time.sleep(0.3)
    """
    (tmp_path / "opened.json").write_text(
        json.dumps({"path": str(tmp_path), "done": 2, "steps": 4})
    )
    found = list(workers(tmp_path, code).rows())
    assert [row["step"] for row in found if row] == [3, 4]
    assert None in found


@pytest.mark.parametrize(
    ("words", "files", "reason"),
    [
        ("", {}, "a process of the run ended with status 3; run again to go on from the last"),
        ("rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: 12)", {},
         "process 1 of the run was killed by signal 9; run again to go on from the last"),
        ("", {"rank-0": "PeerLost: process 0 of 2 lost another one",
              "rank-1": "TrainingError: step 3: L_SDS is not finite"},
         "TrainingError: step 3: L_SDS is not finite"),
    ],
)  # fmt: skip
def test_the_reason_is_the_first_cause_in_one_line(words, files, reason, tmp_path):
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    one = workers(tmp_path, f"print({words!r}); raise SystemExit(3)")
    with pytest.raises(ProcessError, match=reason):
        one.opened()


def test_what_a_process_tells_is_kept_for_who_started_it(tmp_path, monkeypatch):
    monkeypatch.delenv(launch.NEWS, raising=False)
    launch.tell_opened(tmp_path, 1, 2)
    launch.tell_error(0, ValueError("no"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv(launch.NEWS, str(tmp_path))
    launch.tell_opened(tmp_path, 1, 2)
    launch.tell_opened(tmp_path, 0, 0)
    launch.tell_error(3, ValueError("no"))
    assert json.loads((tmp_path / "opened.json").read_text())["done"] == 1
    assert (tmp_path / "rank-3.txt").read_text() == "ValueError: no"


def test_processes_share_the_cores_and_their_launcher_is_torchrun(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert launch.environment({"threads": None}, 2)["OMP_NUM_THREADS"] == "4"
    assert launch.environment({"threads": 3}, 2)["OMP_NUM_THREADS"] == "3"
    words = launch.command(tmp_path, 2)
    assert {"--standalone", "--nproc-per-node=2", "sdslib.experiment"} <= set(words)
    assert "launch._serve" in words[2]


def test_the_number_of_processes_does_not_name_a_run():
    one, two = (FinetuneConfig(processes=n).identity() for n in (1, 2))
    assert one == two


@pytest.fixture
def sleeper(monkeypatch):
    """In place of torchrun a process that would run for a minute, and tells that it has opened."""
    code = f"""if True:
        import json, os, pathlib, time
        folder = pathlib.Path(os.environ[{launch.NEWS!r}])
        assert json.loads((folder / "params.json").read_text()) is not None
        (folder / "history.jsonl").write_text('{{"step": 1}}\\n')
        told = {{"path": str(folder), "done": 0, "steps": 9}}
        (folder / "part").write_text(json.dumps(told))
        (folder / "part").rename(folder / "opened.json")
        time.sleep(60)
    """
    monkeypatch.setattr(launch, "command", lambda folder, count: [sys.executable, "-c", code])


def test_whatever_happens_no_process_is_left(sleeper):
    with pytest.raises(ZeroDivisionError), launch.workers({}, 2) as found:  # noqa: PT012
        assert found.opened()["steps"] == 9
        assert next(found.rows()) == {"step": 1}
        1 / 0  # noqa: B018
    assert found.process.poll() is not None
    assert not found.folder.exists()


def begun(code):
    """A process of Python that says its own number and those of what it started, and waits."""
    words = [sys.executable, "-c", code]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    return process, [int(word) for word in process.stdout.readline().split()]


def assert_gone(number):
    _, left = psutil.wait_procs([p for p in psutil.process_iter() if p.pid == number], 10)
    assert not left


@pytest.mark.parametrize("portable", [False, True], ids=["system", "thread"])
def test_a_process_ends_with_its_parent_by_the_system_or_by_a_thread(portable):
    other = "sys.platform = 'other';" if portable else ""
    child = (
        "import os, sys, time; from sdslib.io import launch;"
        f"{other} launch.die_with(os.getppid());"
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process, (number,) = begun(parent)
    process.kill()
    process.wait()
    assert_gone(number)


def test_a_killed_parent_leaves_neither_the_launcher_nor_its_folder(tmp_path):
    """torchrun is replaced by one that tells its number and waits."""
    (tmp_path / "torch" / "distributed").mkdir(parents=True)
    for name in ("torch/__init__.py", "torch/distributed/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "torch/distributed/run.py").write_text(
        "import os, time\n"
        "def main(words):\n"
        "    print(os.getpid(), os.environ['SDSLIB_LAUNCHER'], flush=True)\n"
        "    time.sleep(600)\n"
    )
    folder = tmp_path / "sdslib-x"
    folder.mkdir()
    parent = f"""if True:
        import os, pathlib, subprocess, sys
        from sdslib.io import launch
        words = launch.command(pathlib.Path({str(folder)!r}), 2)
        path = os.pathsep.join([{str(tmp_path)!r}, os.environ.get("PYTHONPATH", "")])
        subprocess.run(words, env=os.environ | {{"PYTHONPATH": path}}, cwd={str(tmp_path)!r})
    """
    process, (number, launcher) = begun(parent)
    assert number == launcher
    process.kill()
    process.wait()
    assert_gone(number)
    assert not folder.exists()


def test_the_next_start_removes_the_folder_of_a_launch_that_was_killed(
    sleeper, tmp_path, monkeypatch
):
    monkeypatch.setattr(launch.tempfile, "tempdir", str(tmp_path))
    for name, owner in (("dead", {"started": 1.0}), ("alive", {}), ("made", None)):
        (tmp_path / f"sdslib-{name}").mkdir()
        if owner is not None:
            text = json.dumps(lock.myself() | owner)
            (tmp_path / f"sdslib-{name}" / "owner.json").write_text(text)
    with launch.workers({}, 2) as found:
        found.opened()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sdslib-alive", "sdslib-made"]


def test_a_request_to_stop_reaches_the_processes_and_is_obeyed(sleeper):
    with stopping.stop_requested() as stop, launch.workers({}, 2) as found:
        found.opened()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit, match="stopped after step 0; run again") as end:
            list(experiment._steps(found, stop))
        assert end.value.code == 143
        assert found.process.poll() is not None


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    cuda = experiment.torch.device("cuda")
    monkeypatch.setattr(experiment, "pick_device", lambda name: cuda)
    monkeypatch.setattr(experiment.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ParameterError, match="processes 2 but 1 GPUs; a process needs one"):
        experiment.finetune(FinetuneConfig(processes=2, device="cuda"))


# --- whole runs ----------------------------------------------------------------------------------


def settings(tmp_path, **changes):
    return FinetuneConfig(**(SETTINGS | changes), runs=str(tmp_path), threads=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"logit_scale": "trained", "tracker": "tensorboard"},
        {"arm": "shuffled-captions", "sds_share": 0.4, "micro_batch": 1, "checkpointing": True},
        *({"arm": arm, "sds_weight": 0.0, "negatives_each": 2} for arm in RIVALS),
    ],
    ids=["sds", "shuffled-captions", *RIVALS],
)
def test_one_and_two_processes_have_the_same_losses_and_weights(changes, tmp_path):
    seen = []

    def show(steps, total):
        assert total == 4
        for step in steps:
            seen.append(step)
            yield step

    one = experiment.finetune(settings(tmp_path / "one", **changes))
    two = experiment.finetune(settings(tmp_path / "two", processes=2, **changes), show)
    assert two.finished
    assert one.name == two.name
    assert [step.step for step in seen] == [1, 2, 3, 4]
    first, second = (r.history().drop(columns="seconds").astype(float) for r in (one, two))
    np.testing.assert_allclose(second, first, rtol=2e-4, atol=1e-6)
    weights = [load_file(next(r.weights.glob("open_clip*.safetensors"))) for r in (one, two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-3, atol=1e-4)
    assert two.score_names() == one.score_names()
    alone, both = (json.loads((r.path / "env.json").read_text())["noted"] for r in (one, two))
    assert both == alone | {"processes": 2}
    assert experiment.finetune(settings(tmp_path / "two", processes=2, **changes)).finished


def long(tmp_path):
    return settings(tmp_path, steps=400, checkpoint_every=1, eval_every=0, processes=2)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_with_a_clear_line_and_it_goes_on(tmp_path):
    def kill(steps, total):
        for step in steps:
            if step.step == 2:
                children = psutil.Process().children(recursive=True)
                second = [p for p in children if "sdslib.experiment" in p.cmdline()
                          and p.environ().get("RANK") == "1"]  # fmt: skip
                assert len(second) == 1
                second[0].kill()
            yield step

    with pytest.raises(ProcessError, match="process 1 of the run was killed by signal 9; run aga"):
        experiment.finetune(long(tmp_path), kill)
    run = find_run(next(tmp_path.iterdir()))
    status = run.status()
    assert status["state"] in ("failed", "interrupted")
    assert run.latest_checkpoint().step >= 2
    again = settings(tmp_path, steps=400, checkpoint_every=1, eval_every=0)
    with pytest.raises(KeyboardInterrupt):
        experiment.finetune(again, stop_after(1))
    assert find_run(run.path).status()["step"] > run.latest_checkpoint().step - 2
    assert not psutil.Process().children(recursive=True)


def stop_after(count):
    def cut(steps, total):
        for number, step in enumerate(steps, 1):
            if number == count:
                os.kill(os.getpid(), signal.SIGINT)
            yield step

    return cut


@pytest.mark.slow
def test_a_signal_stops_all_processes_after_a_step_with_a_checkpoint(tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step \d+; run again to go on"):
        experiment.finetune(long(tmp_path), stop_after(2))
    run = find_run(next(tmp_path.iterdir()))
    assert run.status()["state"] == "interrupted"
    assert run.latest_checkpoint().step == len(run.history())
    for _ in range(50):
        left = psutil.Process().children(recursive=True)
        if not left:
            break
        time.sleep(0.1)
    assert not left


@pytest.mark.slow
def test_a_process_that_fails_says_why(tmp_path, monkeypatch):
    with pytest.raises(ProcessError, match="DataError") as caught:
        experiment.finetune(settings(tmp_path, processes=2, train_data="data/nothing.json::data"))
    assert len(str(caught.value).splitlines()) == 1


def test_the_program_takes_parameters_as_papermill_does(tmp_path, monkeypatch, capsys):
    taken = []

    class Found:
        path, shown_path = tmp_path, "reports/runs/x"

    monkeypatch.setattr(experiment, "finetune", lambda config: taken.append(config) or Found)
    assert experiment.main(["-p", "sds_weight", "1e-2", "-p", "steps", "3"]) == 0
    assert (taken[0].sds_weight, taken[0].steps) == (0.01, 3)
    assert capsys.readouterr().out == "reports/runs/x\n"
    file = tmp_path / "params.json"
    file.write_text(taken[0].model_dump_json())
    assert experiment.main(["--params", str(file)]) == 0
    assert taken[1] == taken[0]
    assert experiment.main(["-p", "sds_wieght", "1"]) == 2
    assert "did you mean 'sds_weight'?" in capsys.readouterr().err
