"""`preset paper` to its last cell through a Hub of our own: ViT-B-16 at true size, SD 1.4 tiny."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hub import layouts
from hub.server import TOKEN, Hub

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "preset": "paper", "steps": 2, "batch_size": 2, "bridge_start": "random", "eval_items": 2,
    "eval_every": 0, "checkpoint_every": 0, "num_workers": 0, "warmup": 0, "device": "cpu",
    "threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    there = Hub(tmp_path_factory.mktemp("hub"))
    repo = there.folder("timm/vit_base_patch16_clip_224.openai")
    layouts.open_clip_model(repo, "ViT-B-16-quickgelu", small=False, pickled=False)
    layouts.stable_diffusion(there.folder("CompVis/stable-diffusion-v1-4"))
    layouts.winoground(there.folder("facebook/winoground", "datasets"))
    there.gated.add("facebook/winoground")
    yield there
    there.stop()


def python(folder, *words, **environment):
    """What a module prints, with an empty cache of the Hub's in the folder."""
    hub = {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
           "TRANSFORMERS_OFFLINE": "0", "OMP_NUM_THREADS": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT, env=os.environ | hub | environment, capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def papermill(folder, name, given, **environment):
    words = [w for key, value in (SETTINGS | given).items() for w in ("-p", key, str(value))]
    out = folder / f"{name}.ipynb"
    python(folder, "papermill", "notebooks/02_finetune.ipynb", str(out), *words, **environment)
    return json.loads(out.read_text())


def identity(runs, arm):
    found = [json.loads(p.read_text()) for p in runs.glob("*/identity.json")]
    (one,) = (i for i in found if i["params"]["arm"] == arm)
    return one


@pytest.mark.slow
def test_preset_paper_runs_through_the_hub_and_then_offline_to_the_same_run(served, tmp_path):
    pairs = layouts.coco(tmp_path / "coco")
    given = {"train_data": pairs, "runs": tmp_path / "online"}
    papermill(tmp_path, "online", given, HF_ENDPOINT=served.url, HF_TOKEN=TOKEN)
    online = identity(tmp_path / "online", "sds")
    assert {"student", "teacher", "winoground"} <= online["data"].keys()
    results = list((tmp_path / "online").glob("*/results.parquet"))
    assert results
    (passport,) = (json.loads(p.read_text()) for p in
                   (tmp_path / "online" / online["id"]).parent.glob("*sds*/weights/passport.json")
                   if json.loads(p.read_text())["run"]["id"] == online["id"])  # fmt: skip
    assert passport["run"]["data"]["teacher"] == online["data"]["teacher"]
    assert str(tmp_path) not in json.dumps(passport)
    asked = len(served.asked)
    given["runs"] = tmp_path / "offline"
    papermill(tmp_path, "offline", given, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1")
    assert identity(tmp_path / "offline", "sds")["id"] == online["id"]
    assert len(served.asked) == asked


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["stable-diffusion-xl-base-1.0", "stable-diffusion-3.5-medium"])
def test_preset_paper_runs_with_a_teacher_of_a_later_family(served, tmp_path, shape):
    repo = f"stabilityai/{shape}"
    layouts.later_teacher(served.folder(repo), shape)
    layouts.open_clip_model(served.folder("laion/small"), pickled=False)
    given = {"train_data": layouts.coco(tmp_path / "coco"), "runs": tmp_path, "teacher": repo}
    given["clip_model"] = "hf-hub:laion/small"
    papermill(tmp_path, "out", given, HF_ENDPOINT=served.url, HF_TOKEN=TOKEN)
    found = identity(tmp_path, "sds")
    assert found["params"]["teacher"] == repo
    assert {"student", "teacher", "winoground"} <= found["data"].keys()
    assert list(tmp_path.glob("*/results.parquet"))


SETS = {"bivlc": "imirandam/BiVLC", "mmvp": "MMVP/MMVP_VLM", "colorswap": "stanfordnlp/colorswap",
        "aro-relation": "mteb/ARO-Visual-Relation",
        "coco-order": "mteb/ARO-COCO-order"}  # fmt: skip


@pytest.mark.slow
def test_sets_of_the_hub_are_scored_in_one_table_and_then_offline_alike(served, tmp_path):
    for name, repo in SETS.items():
        folder = served.folder(repo, "datasets")
        layouts.mteb(folder, name) if "mteb" in repo else getattr(layouts, name)(folder)
    served.gated.add(SETS["colorswap"])
    layouts.open_clip_model(served.folder("laion/small"), pickled=False)
    named = ",".join(f"{name}:{repo}" for name, repo in SETS.items())
    boards = []
    for way in ({"HF_ENDPOINT": served.url, "HF_TOKEN": TOKEN}, {"HF_HUB_OFFLINE": "1"}):
        asked, table = len(served.asked), tmp_path / f"{len(boards)}.csv"
        given = {"benchmark": named, "clip_model": "hf-hub:laion/small", "device": "cpu",
                 "runs": str(tmp_path / table.stem)}  # fmt: skip
        words = [w for pair in given.items() for w in ("-p", *pair)]
        said = python(tmp_path, "sdslib.lab.scoreboard", "--table", str(table), *words, **way)
        assert all(f"{name} " in said for name in SETS)
        assert (len(served.asked) == asked) == ("HF_HUB_OFFLINE" in way)
        boards.append(pd.read_csv(table))
    assert boards[0].equals(boards[1])
    counts = boards[0][boards[0]["over"] == "all"].groupby("set")["n"].first().to_dict()
    assert counts == {"bivlc": 6, "mmvp": 3, "colorswap": 4, "aro-relation": 4, "coco-order": 4}
    assert boards[0]["partial"].all()
