"""Every notebook, executed by papermill as a user would, on a reduced setting."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from finished import finish

from sdslib.io.paths import project_root

ROOT = project_root()
REDUCED = {
    "00_miniworld": {"teacher_items": 6, "draws": 8},
    "01_baseline": {"teacher_items": 6, "draws": 8},
    "02_finetune": {"steps": 6, "warmup": 1, "batch_size": 8, "eval_every": 3, "bridge_pairs": 64,
                    "eval_items": 60, "sds_weight": 0.001},
    "03_ablate_loss_weight": {"weights": "0,0.001", "panels": "sds_gradient", "seeds": 1,
                              "arms": "clip-only,sds", "steps": 2, "eval_items": 12},
    "04_ablate_trainable": {"sets": "layernorm,lora", "steps": 2, "eval_items": 12},
    "05_winoground_failures": {"teacher_items": 6},
    "07_report": {"examples": 3},
    "06_caption_demo": {"ask_teacher": True, "draws": 8},
    "09_compare": {"items": 3},
    "08_verdicts": {"train_pairs": 24, "choice_draws": 2, "t_min": 380},
}  # fmt: skip


def papermill(notebook, out, parameters, cwd=ROOT):
    command = [
        str(Path(sys.executable).with_name("papermill")),
        f"notebooks/{notebook}.ipynb",
        str(out),
    ]
    for name, value in parameters.items():
        command += ["-p", name, str(value)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)


def outputs(path):
    notebook = json.loads(path.read_text())
    return [o for cell in notebook["cells"] for o in cell.get("outputs", [])]


def words(cell):
    """What a cell's outputs say, without markup."""
    told = [o.get("data", {}).get("text/html") or o.get("text", "") for o in cell["outputs"]]
    page = BeautifulSoup(" ".join("".join(lines) for lines in told), "html.parser")
    for style in page.select("style"):
        style.decompose()
    return page.get_text(" ")


def not_above(path):
    """The figures of the last cell that no output before it shows."""
    *before, last = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    above = " ".join(map(words, before))
    assert 'class="answer"' in json.dumps(last["outputs"]).replace("\\", "")
    figures = re.findall(r"[+−]?\d+(?:\.\d+)?%?", words(last))
    return [f for f in figures if not re.search(rf"(?<![\d.]){re.escape(f)}(?!\.?\d)", above)]


def test_every_notebook_has_a_reduced_setting():
    assert set(REDUCED) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REDUCED))
def test_notebook_runs_and_leaves_figures_and_tables(name, tmp_path):
    out = tmp_path / "out.ipynb"
    (tmp_path / "runs").mkdir()
    own = {"output": tmp_path / "verdicts.parquet"} if name == "08_verdicts" else {}
    for arm in ("clip-only", "sds") if name == "09_compare" else ():
        finish(tmp_path / "runs", arm)
    done = papermill(name, out, REDUCED[name] | {"runs": tmp_path / "runs"} | own)
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = [kind for output in outputs(out) for kind in output.get("data", {})]
    assert "image/png" in kinds
    assert "text/html" in kinds
    assert "application/vnd.jupyter.widget-view+json" not in kinds
    assert [o["text"] for o in outputs(out) if o.get("name") == "stderr"] == []  # no warning
    assert not_above(out) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sds_wieght": 0.001}, "unknown parameter 'sds_wieght'; did you mean 'sds_weight'?"),
        ({"sds_weight": "nan"}, "sds_weight"),
        ({"sds_weight": -1}, "sds_weight"),
        ({"batch_size": 7.5}, "batch_size must be a whole number"),
        ({"trainable": "layernorms"}, "did you mean 'layernorm'?"),
        ({"t_min": 900, "t_max": 100}, "t_min must not be above t_max"),
        ({"clip_model": "ViT-B-23"}, "did you mean 'ViT-B-32'?"),
        ({"device": "gpu"}, "device"),
    ],
)
def test_a_wrong_parameter_ends_with_one_clear_line(parameters, message, tmp_path):
    done = papermill("02_finetune", tmp_path / "out.ipynb", parameters)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "invalid parameters: " in last
    assert message in last


@pytest.mark.slow
def test_folders_without_their_parts_are_refused(tmp_path):
    for part in ("student", "teacher"):
        (tmp_path / part).mkdir()
    (tmp_path / "student" / "open_clip_config.json").write_text("{}")
    (tmp_path / "teacher" / "model_index.json").write_text("{}")
    for parameters, message in (
        ({"teacher": tmp_path / "teacher"}, "unet"),
        ({"clip_model": f"local-dir:{tmp_path / 'student'}"}, "weights"),
    ):
        done = papermill("02_finetune", tmp_path / "out.ipynb", parameters)
        assert done.returncode != 0
        assert "invalid parameters: " in done.stderr
        assert message in done.stderr.strip().splitlines()[-1]
