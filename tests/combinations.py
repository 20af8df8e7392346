"""Random settings of a fine-tuning: each ends with finite weights, or is refused in one line.

`PYTHONPATH=tests python -m combinations --rounds 40` draws them from a seed and prints a row each;
it ends with status 1 where one of them did neither.
"""

import argparse
import hashlib
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from safetensors.torch import load_file

from sdslib import experiment
from sdslib.checks.guard import validate
from sdslib.config import ARMS, TRAINABLE, FinetuneConfig
from sdslib.io.wording import ParameterError

SMALL = {"steps": 3, "batch_size": 8, "warmup": 1, "eval_every": 2, "eval_items": 8,
         "bridge_pairs": 32, "train_pairs": 64, "keep": "none", "validation": "none"}  # fmt: skip
CHOICES: dict[str, tuple[Any, ...]] = {
    "arm": tuple(ARMS),
    "sds_weight": (0.0, 1e-4, 1e-2, 1.0),
    "trainable": (*TRAINABLE, "bias+projection", "lora+layernorm"),
    "sds_gradient": ("through", "residual"),
    "sds_reduction": ("sum", "mean"),
    "bridge_start": ("ridge", "random", "zero"),
    "bridge_input": ("projected", "pooled", "tokens-2"),
    "precision": ("fp32", "fp32", "bf16"),
    "micro_batch": (None, 1, 3),
    "sds_share": (1.0, 0.5, 0.1),
    "checkpointing": (False, True),
    "processes": (1, 1, 1, 2),
    "interpolation": (1.0, 0.3),
    "logit_scale": ("frozen", "trained"),
    "choice_draws": (1, 2, 4),
    "negatives_each": (1, 3),
    "negative_weight": (1.0, 0.0),
    "batch_size": (8, 8, 2),
    "weight_decay": (0.0, 0.1),
    "seed": (0, 1, 2**31),
}

# What of a run's id names files or sets, or tells what sets have in common; tested elsewhere
NAMES = {
    *("clip_model", "clip_pretrained", "teacher", "teacher_revision", "variant", "benchmark"),
    *("train_data", "apart_from", "overlap", "vg_image_data"),
}
# Every other parameter of the id, with a value that must change a run, and under what
MOVES: dict[str, tuple[Any, dict[str, Any]]] = {
    "seed": (1, {}),
    "eval_items": (4, {}),
    "precision": ("bf16", {}),
    "arm": ("clip-only", {}),
    "sds_weight": (0.1, {}),
    "sds_gradient": ("residual", {}),
    "sds_reduction": ("mean", {}),
    "sds_space": ("v", {}),
    "sds_share": (0.5, {}),
    "trainable": ("bias", {}),
    "train_pairs": (32, {}),
    "caption_noise": (0.5, {}),
    "validation": ("mini:aro-relation", {}),
    "keep": ("mini:aro-attribution", {}),
    "negatives": ("swap", {"arm": "hard-negatives"}),
    "steps": (2, {}),
    "epochs": (1, {}),
    "batch_size": (4, {}),
    "lr": (1e-2, {}),
    "weight_decay": (0.5, {"trainable": "all"}),
    "warmup": (2, {}),
    "grad_clip": (1e-3, {}),
    "interpolation": (0.5, {}),
    "t_min": (900, {}),
    "t_max": (100, {}),
    "bridge_start": ("random", {}),
    "bridge_pairs": (48, {}),
    "bridge_input": ("pooled", {}),
    "choice_draws": (1, {"arm": "teacher-choice"}),
    "negatives_each": (2, {"arm": "fsc-clip"}),
    "negative_weight": (0.5, {"arm": "fsc-clip"}),
    "logit_scale": ("trained", {}),
    "eval_every": (1, {"validation": "mini:aro-relation"}),
}


def draws(count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """So many settings, each a value of every choice."""
    random = Random(seed)
    for _ in range(count):
        yield SMALL | {name: random.choice(values) for name, values in CHOICES.items()}


def outcome(settings: dict[str, Any], runs: Path) -> tuple[bool, str]:
    """Whether it went as it must, and how: finished, or the line that refused it."""
    try:
        config = validate(FinetuneConfig, settings | {"runs": str(runs)})
    except ParameterError as error:
        return all("\n" not in text for text in error.problems), f"refused: {error.problems[0]}"
    run = experiment.finetune(config)
    files = sorted((run.path / "weights").glob("*.safetensors"))
    finite = all(bool(v.isfinite().all()) for file in files for v in load_file(file).values())
    return run.finished and finite and bool(files), "finished" if finite else "weights not finite"


def made(settings: dict[str, Any], runs: Path) -> str:
    """A digest of all that a run is for: its history, its scores and its weights."""
    told = {name: value for name, value in (SMALL | settings).items() if value is not None}
    run = experiment.finetune(validate(FinetuneConfig, told | {"runs": str(runs)}))
    tables = [run.history().drop(columns="seconds"), *map(run.scores, run.score_names())]
    words = [*run.score_names(), *(table.to_csv() for table in tables)]
    files = [path.read_bytes() for path in sorted(run.weights.glob("*.safetensors"))]
    return hashlib.sha256(b"".join([*(w.encode() for w in words), *files])).hexdigest()


def main(words: list[str] | None = None) -> int:
    """Draw settings, train each for a few steps, and print what became of them."""
    parser = argparse.ArgumentParser(prog="python -m combinations", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options, bad = parser.parse_args(words), 0
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, settings in enumerate(draws(options.rounds, options.seed)):
            start = time.perf_counter()
            try:
                good, said = outcome(settings, Path(folder))
            except Exception as error:
                good, said = False, f"{type(error).__name__}: {error}"
            bad += not good
            told = " ".join(f"{k}={settings[k]}" for k in CHOICES if settings[k] is not None)
            seconds = time.perf_counter() - start
            print(f"{number:>3} {'ok ' if good else 'BAD'} {seconds:5.1f} s  {said}\n      {told}",
                  flush=True)  # fmt: skip
    print(f"{options.rounds - bad} of {options.rounds} went as they must")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
