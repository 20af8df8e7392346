"""Measure every row, print the table, and fail where a figure is not what it must be."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the rivals are in tests/reference.py

from benchmarks import memory, scoring, sharing, training
from benchmarks.harness import Row, table
from sdslib.io.shared import OFF, SWITCH
from sdslib.miniworld import files

ROWS: dict[str, Callable[[], list[Row]]] = {
    "sequential": lambda: scoring.sequential(100),
    "timesteps": scoring.against_every_timestep,
    "precision": lambda: scoring.half_precision(100),
    "baseline": scoring.whole_baseline,
    "clip": lambda: scoring.clip_evaluation(100, 5),
    "again": lambda: scoring.evaluation_again(100, 3),
    "encodes": scoring.encodes,
    "diffusion": lambda: scoring.equal_evaluations(6, 16, 5),
    "gradients": lambda: training.gradients(9),
    "step": lambda: training.whole_step(9),
    "verdicts": lambda: training.choice_step(9),
    "second-run": lambda: sharing.second_run(3),
    "import": training.importing,
    "memory": memory.training,
}


def main() -> int:
    """Print one line a row; 1 if a row falls short of what it must reach."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=main.__doc__)
    parser.add_argument("only", nargs="*", help=f"some of {', '.join(ROWS)}; all by default")
    chosen = parser.parse_args().only or list(ROWS)
    unknown = [name for name in chosen if name not in ROWS]
    if unknown:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}")
    torch.set_num_threads(1)
    os.environ.setdefault(SWITCH, OFF)  # a row measures what it computes
    files.ensure_world()
    rows: list[Row] = []
    for name in chosen:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        rows += ROWS[name]()
    print(table(rows))
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
