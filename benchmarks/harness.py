"""A row of the table, and how a ratio of two times is measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure with what it must reach, or has only an aim, or neither.

    `least` says that a smaller figure is the better one. A figure that is not a number reaches
    nothing.
    """

    id: str
    what: str
    measured: float
    must: float | None
    aim: float | None = None
    least: bool = False
    note: str = ""

    @property
    def reached(self) -> bool:
        """Whether the figure is as good as it must be."""
        return self._meets(self.must)

    def _meets(self, target: float | None) -> bool:
        if target is None:
            return True
        return self.measured <= target if self.least else self.measured >= target

    def cells(self) -> list[str]:
        """The row as text: id, what, measured, must, aim, verdict, note."""
        sign = "<=" if self.least else ">="
        must, aim = ("" if x is None else f"{sign} {x:g}" for x in (self.must, self.aim))
        target = self.aim if self.must is None else self.must
        verdict = "reached" if self._meets(target) else "falls short"
        verdict = "measured" if target is None else verdict
        return [self.id, self.what, f"{self.measured:.3g}", must, aim, verdict, self.note]


@dataclass(frozen=True)
class Paired:
    """Seconds of two pieces of work, run in turn."""

    first: list[float]
    second: list[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of second / first."""
        return statistics.median(b / a for a, b in zip(self.first, self.second, strict=True))

    @property
    def spread(self) -> str:
        """The smallest and the largest round, and how many rounds there were."""
        found = sorted(b / a for a, b in zip(self.first, self.second, strict=True))
        return f"{found[0]:.3g} to {found[-1]:.3g} in {len(found)} rounds"


def paired(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int = 5,
    clock: Callable[[], float] = time.process_time,
) -> Paired:
    """Run both in turn, once to warm up and `rounds` times; the order changes every round.

    Counts the process's CPU time, which a busy machine does not lengthen; the benchmarks compute
    on one thread, since waiting threads would count as work. A GPU has another `clock`.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        jobs = [(first, times[0]), (second, times[1])]
        for job, kept in jobs if number % 2 else reversed(jobs):
            start = clock()
            job()
            if number:
                kept.append(clock() - start)
    return Paired(*times)


def table(rows: list[Row]) -> str:
    """The rows as aligned columns under a head."""
    head = ["id", "row", "measured", "must", "aim", "verdict", "note"]
    lines = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
