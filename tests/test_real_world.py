"""Every notebook, as a user executes it, on photographs, real formats and CLIP's own tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import realworld
from test_choices import MADE
from test_notebooks_run import ROOT, papermill

from sdslib.checks.guard import guard
from sdslib.io import runs
from sdslib.io.wording import ParameterError
from sdslib.lab.rescore import add_sets

pytestmark = pytest.mark.slow
TRAINING = {"steps": 4, "warmup": 1, "batch_size": 8, "eval_every": 2, "bridge_pairs": 16,
            "sds_weight": 1.0}  # fmt: skip


@dataclass(frozen=True)
class Workshop:
    """The world, and a folder of runs that its tests fill one after the other."""

    world: realworld.World
    folder: Path

    def execute(self, notebook, runs_in="runs", **parameters):
        """What the notebook shows, as one text, once its last cell ran; cautions are allowed."""
        out, place = self.folder / "out.ipynb", self.folder / runs_in
        place.mkdir(exist_ok=True)
        done = papermill(notebook, out, {"runs": place} | parameters)
        assert done.returncode == 0, done.stderr[-3000:]
        cells = [c for c in nbformat.read(out, 4).cells if c.cell_type == "code"]
        assert all(cell.execution_count for cell in cells)
        shown = [output for cell in cells for output in cell.outputs]
        warned = [o["text"] for o in shown if o.get("name") == "stderr"]
        assert [text for text in warned if "Caution: " not in text] == []
        return "\n".join(_text(output) for output in shown)


def _text(output):
    parts = [output.get("text", "")]
    parts += [v for k, v in output.get("data", {}).items() if k.startswith("text/")]
    return "\n".join(parts)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real-world")
    return Workshop(realworld.make(folder / "world"), folder)


@pytest.fixture(scope="module")
def finetuned(shop):
    """What 02 shows on COCO's format and Winoground's parquet; its two runs are in `runs`."""
    data = {"train_data": shop.world.train_data, "benchmark": shop.world.winoground}
    return shop.execute("02_finetune", **shop.world.models, **data, **TRAINING)


def results(folder):
    """The rows of the one results.parquet that 02 leaves, once its two runs are finished."""
    table = runs.list_runs(folder)
    assert list(table["state"]) == ["finished"] * 2, table
    (path,) = folder.glob("*/results.parquet")
    return pd.read_parquet(path)


def test_the_fine_tuning_ends_with_paired_differences(shop, finetuned):
    found = results(shop.folder / "runs")
    paired = found[(found["table"] == "paired") & (found["tag"] == "all")]
    assert set(paired["metric"]) == {"text", "image", "group"}
    assert set(paired["n"]) == {16}
    shares = found[found["table"] == "before_after"]
    assert {"Object", "Relation", "Both"} <= set(shares["label"])
    assert "mini-world" not in finetuned


def test_a_finished_run_is_scored_on_sets_that_come_afterwards(shop, finetuned):
    (run,) = (r for r in runs.finished_runs(shop.folder / "runs") if r.params["arm"] == "sds")
    sets = f"{shop.world.aro_attribution},{shop.world.zeroshot},retrieval:{shop.world.val_data}"
    told = list(add_sets([run], sets, runs.finished_runs(shop.folder / "runs")))
    assert [text.partition(": ")[2] for text in told] == [
        "aro-attribution, 8 items", "zeroshot, 14 items", "retrieval, 10 items"
    ] * 2  # fmt: skip
    assert not run.problems()
    shop.execute("07_report")
    page = (shop.folder / "report.html").read_text()
    assert all(name in page for name in ("aro-attribution", "recall@1"))


@pytest.mark.parametrize(
    ("pairs", "benchmark", "more", "items"),
    [
        ("karpathy", "winoground_jsonl", {}, 16),
        ("train_data", "mini:winoground:val", {"validation": "none", "eval_items": 8}, 8),
        ("train_data", "aro_relation", {"keep": "none"}, 10),
        (
            "many_pairs",
            "sugarcrepe",
            {"validation": "held-out", "keep": ("zeroshot", "aro_attribution")},
            21,
        ),
        ("karpathy", "zeroshot", {"validation": "winoground"}, 14),
        ("train_data", "coco_order", {"validation": "none", "keep": "none"}, 50),
    ],
)
def test_any_set_can_be_the_benchmark(shop, pairs, benchmark, more, items):
    world, own = shop.world, f"runs-{benchmark.replace(':', '-')}"
    source = getattr(world, benchmark, benchmark)
    keep = more.get("keep", ())
    named = () if keep == "none" else tuple(getattr(world, name) for name in keep)
    given = more | ({"keep": ",".join(named)} if named else {})
    if "validation" in more:
        given["validation"] = getattr(world, more["validation"], more["validation"])
    data = {"train_data": getattr(world, pairs), "benchmark": source}
    shown = shop.execute("02_finetune", own, **world.models, **data, **TRAINING, **given)
    found = results(shop.folder / own)
    paired = found[(found["table"] == "paired") & (found["tag"] == "all")]
    assert set(paired["n"]) == {items}
    assert ("mini-world" in shown) == benchmark.startswith("mini:")
    tables = set(found["table"])
    assert "before_after" in tables
    if keep == "none":
        assert "retention" not in tables
    for name in named:
        kept = found[found["table"] == "retention"]
        assert name.partition(":")[0] in " ".join(kept["set"].astype(str)), kept


def test_triplets_are_reported_and_sets_in_parts_kept_from_suffering(shop, tmp_path):
    own, made = "runs-triplets", {name: make(tmp_path / name) for name, make in MADE.items()}
    data = {
        "train_data": shop.world.train_data,
        "benchmark": f"sugarcrepe++:{made['sugarcrepe++']}",
    }
    keep = f"whatsup:{made['whatsup']},negbench:{made['negbench']}"
    given = data | TRAINING | {"validation": "none", "keep": keep}
    shop.execute("02_finetune", own, **shop.world.models, **given)
    found = results(shop.folder / own)
    paired = found[found["table"] == "paired"]
    assert set(paired["metric"]) == {"image-to-text", "text-to-text"}
    kept = found[found["table"] == "retention"]
    assert set(kept[kept["set"] == "whatsup"]["metric"]) == {"accuracy", "pair", "set"}
    assert "negbench" in set(kept["set"])


@pytest.mark.parametrize(
    ("name", "teacher_items", "models", "items"),
    [("winoground", 3, {"student", "teacher"}, 16), ("sugarcrepe", 0, {"student"}, 21)],
)
def test_the_baseline_stands_on_any_set(shop, name, teacher_items, models, items):
    world, own = shop.world, f"runs-01-{name}"
    given = {"benchmark": getattr(world, name), "corpus": world.train_data, "draws": 4}
    shown = shop.execute("01_baseline", own, **world.models, **given, teacher_items=teacher_items)
    assert "mini-world" not in shown
    (path,) = (shop.folder / own).glob("*/results.parquet")
    found = pd.read_parquet(path)
    assert models <= set(found["model"])
    assert items in set(found["n"])


def test_the_failures_of_a_run_come_with_their_photographs(shop, finetuned):
    given = {"benchmark": shop.world.winoground, "teacher_items": 3, "draws": 4}
    shown = shop.execute("05_winoground_failures", **shop.world.models, **given)
    assert "mini-world" not in shown
    (path,) = (shop.folder / "runs").glob("*/atlas/atlas.html")
    atlas = path.read_text()
    assert "mini-world" not in atlas
    assert "the handle is left of the spoon" in atlas
    assert "data:image" in atlas
    for name in ("untouched", "L_CLIP only", "sds", "teacher"):
        assert name in atlas


def test_the_demo_asks_about_photographs(shop, finetuned):
    world = shop.world
    photo = realworld.sets.PHOTOGRAPHS / "000000007281.jpg"
    asked = {"benchmark": world.winoground, "image": photo, "ask_teacher": True, "draws": 4}
    words = "a cat with green eyes|a rocket at night"
    shown = shop.execute("06_caption_demo", **world.models, **asked, captions=words)
    assert "a cat with green eyes" in shown
    assert "the flag is left of the shuttle" in shown  # the set's first item, no drawn scene
    assert "drawn scene" not in shown
    assert "mini-world" not in shown


@pytest.mark.parametrize(
    ("notebook", "axes"),
    [
        ("03_ablate_loss_weight", {"weights": "0,0.001", "panels": "none", "arms": "none"}),
        ("04_ablate_trainable", {"sets": "layernorm"}),
    ],
)
def test_an_ablation_sweeps_over_photographs(shop, notebook, axes):
    world = shop.world
    fixed = {"train_data": world.train_data, "benchmark": world.winoground} | world.models
    fixed |= {name: value for name, value in TRAINING.items() if name != "steps"}
    words = ",".join(f"{name}={value}" for name, value in fixed.items())
    small = {"steps": 4, "eval_items": 16, "seeds": 1, "workers": 1}
    shown = shop.execute(notebook, "runs-sweep", **axes, **small, fixed=words)
    assert "mini-world" not in shown
    assert "Every run finished." in shown
    states = runs.list_runs(shop.folder / "runs-sweep")
    assert set(states["state"].dropna()) == {"finished"}


def test_the_report_of_photographs_says_nothing_of_drawn_scenes(shop, finetuned):
    out = shop.folder / "report"
    given = {"runs": shop.folder / "runs", "output": out, "examples": 3}
    shown = shop.execute("07_report", **given)
    assert "mini-world" not in shown
    told = (out / "report.html").read_text()
    for absent in ("mini-world", "Mini-world", "drawn scenes"):
        assert absent not in told
    assert "winoground" in told
    assert "data:image" in told
    assert (out / "report.pdf").read_bytes().startswith(b"%PDF")
    for card in (shop.folder / "runs").glob("*/README.md"):
        assert "ini-world" not in card.read_text()


def test_two_runs_of_photographs_stand_side_by_side_with_their_pictures(shop, finetuned):
    shown = shop.execute("09_compare", items=2)
    assert "mini-world" not in shown
    assert "A against B (ViT-S-16-tiny, winoground): " in shown
    assert ('<img src="data:image' in shown) == ("Shown are" in shown)


def test_the_notebook_about_the_mini_world_takes_no_other_data():
    first = nbformat.read(ROOT / "notebooks" / "00_miniworld.ipynb", 4).cells[0].source
    assert "mini-world" in first.splitlines()[0]
    with pytest.raises(ParameterError, match="unknown parameter 'benchmark'"):
        guard({"benchmark": "winoground", "seed": 0}, "miniworld")
