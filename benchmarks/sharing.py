"""What a run costs beside its training, with what others left of the same models and without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

from benchmarks.harness import Row, paired
from sdslib.io.shared import OFF, SWITCH


def children() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    spent = os.times()
    return spent.children_user + spent.children_system


def second_run(rounds: int) -> list[Row]:
    """A default run cut to one step, in a process of its own: import, start, all scores.

    No two have the same `sds_weight`: what is shared is the start and the untouched student.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = count(1)

        def run(cache: str) -> None:
            given = {"steps": 1, "warmup": 0, "eval_every": 0, "sds_weight": next(weights) / 1000}
            given |= {"threads": 1, "runs": f"{folder}/runs"}
            words = [word for name, value in given.items() for word in ("-p", name, str(value))]
            subprocess.run(
                [sys.executable, "-m", "sdslib.experiment", *words],
                cwd=Path(__file__).parents[1],
                env=os.environ | {SWITCH: cache},
                stdout=subprocess.DEVNULL,
                check=True,
            )

        times = paired(lambda: run(f"{folder}/cache"), lambda: run(OFF), rounds, children)
    seconds = statistics.median(times.first)
    return [
        Row("C1", "run of one step, all computed / with what runs share", times.ratio, 2, 3,
            note=times.spread),
        Row("C2", "CPU seconds of it, import included", seconds, 20, 15, least=True,
            note="the scores of the trained student are most of them"),
    ]  # fmt: skip
