"""What equal parameters, data and weights give: the numbers that `config.RECIPE` stands for.

A few steps of every arm and of what else decides a number, on the committed small models and on
pictures of noise, and scores of the same models. `PYTHONPATH=tests python -m golden` writes
`golden.json` anew, which is right only together with a higher RECIPE.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdslib.benchmarks import Benchmark, Item
from sdslib.config import ARMS, RECIPE, FinetuneConfig
from sdslib.evaluate import clip_scorer, score_grids
from sdslib.experiment import load_models
from sdslib.io.images import ImageRef
from sdslib.io.state import plain_torch
from sdslib.pairs import Pairs, load_pairs
from sdslib.scorers.diffusion import diffusion_scorer
from sdslib.train import Loop

KEPT = Path(__file__).with_name("golden.json")
CAPTIONS = (
    "a red circle left of a blue square",
    "a small blue square above a green circle",
    "a green triangle right of a large red square",
    "a yellow circle below a purple triangle",
)
SETTINGS = {arm: {"arm": arm} for arm in ARMS} | {
    **{name: {"arm": name, "negatives_each": 2} for name, arm in ARMS.items() if arm.several},
    "all parameters": {"trainable": "all", "logit_scale": "trained"},
    "lora": {"trainable": "lora", "bridge_start": "random"},
    "residual gradient": {"sds_gradient": "residual", "sds_share": 0.5},
    "mean, from zero": {"sds_reduction": "mean", "sds_weight": 1.0, "bridge_start": "zero"},
    "pooled": {"bridge_input": "pooled", "weight_decay": 0.1, "trainable": "all"},
}


def pictures(folder: Path) -> list[Path]:
    """Sixteen pictures of noise, each with a patch of one color."""
    found = []
    for index in range(16):
        rng = np.random.default_rng(index)
        pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        pixels[16:48, 16:48] = rng.integers(0, 255, 3)
        found.append(folder / f"{index:012d}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


def some_pairs(folder: Path) -> Pairs:
    """The pictures with a caption each, as COCO's annotations have them."""
    files = pictures(folder)
    document = {
        "images": [{"id": i, "file_name": path.name} for i, path in enumerate(files)],
        "annotations": [
            {"id": i, "image_id": i, "caption": CAPTIONS[i % len(CAPTIONS)]}
            for i in range(len(files))
        ],
    }
    (folder / "captions.json").write_text(json.dumps(document))
    return load_pairs(f"{folder / 'captions.json'}::{folder}")


def steps_of(pairs: Pairs, **given) -> list[list[float]]:
    """Of each step loss and gradient norms."""
    usual = {"steps": 4, "batch_size": 8, "bridge_pairs": 16, "warmup": 1, "eval_every": 0}
    config = FinetuneConfig(**(usual | {"choice_draws": 2, "sds_weight": 0.1} | given))
    with plain_torch(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop = Loop(config, load_models(config, pairs, torch.device("cpu")), pairs)
        rows = list(loop)
    return [[row.loss, row.grad_norm, row.bridge_grad_norm or 0.0] for row in rows]


def scores(pairs: Pairs) -> dict[str, list[float]]:
    """Two Winoground-shaped items by the student and by the teacher's denoising error."""
    refs = [ImageRef(ref.name, ref.read) for ref in map(pairs.ref, range(4))]
    items = tuple(
        Item(str(i), (refs[2 * i], refs[2 * i + 1]), CAPTIONS[2 * i : 2 * i + 2]) for i in (0, 1)
    )
    benchmark = Benchmark("golden", "grid", items, len(items), "golden")
    models = load_models(FinetuneConfig(bridge_start="zero"), pairs, torch.device("cpu"))
    found = {}
    for scorer in (clip_scorer(models.student), diffusion_scorer(models.teacher, 4, seed=1)):
        with plain_torch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = score_grids(scorer, benchmark)
        cells = table[[name for name in table if str(name).split(".")[-1].startswith("s_")]]
        found[scorer.name] = cells.to_numpy(float).flatten().tolist()
    return found


def run(folder: Path, name: str) -> list:
    """The numbers of one of `SETTINGS`, or of the `scores`."""
    pairs = some_pairs(folder)
    return scores(pairs) if name == "scores" else steps_of(pairs, **SETTINGS[name])


def main() -> int:
    """Write the file anew."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(Path(folder), name) for name in (*SETTINGS, "scores")}
    KEPT.write_text(json.dumps({"recipe": RECIPE, "runs": found}, indent=1) + "\n")
    print(f"{KEPT.name}: {len(found)} settings under recipe {RECIPE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
