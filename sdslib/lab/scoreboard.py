"""The student on every set at hand in one table, beside chance and what captions alone reach.

`python -m sdslib.lab.scoreboard -p preset paper` scores what is here, says what is not and how to
get it, and prints the table; `--table FILE` keeps it as CSV. Parameters are those of `01_baseline`,
whose run it is; the teacher is left out unless `teacher_items` asks for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from sdslib import metrics
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import BaselineConfig, from_shell
from sdslib.io import exits
from sdslib.io.runs import Run
from sdslib.io.storage import write_bytes
from sdslib.lab import baseline
from sdslib.results import formatting

# The average that papers quote of a set; of others the share of all items.
AVERAGES = {
    "aro-relation": "macro, asymmetric", "aro-attribution": "macro, frequent",
    "sugarcrepe": "macro", "sugarcrepe++": "macro", "whatsup": "macro", "valse": "macro",
    "mmvp": "macro", "vismin": "macro",
}  # fmt: skip
ALONE = {"mmvp": "image", "cola": "image"}  # sets of which papers quote one metric of three
CAPTIONS = "captions only"


def table(run: Run) -> pd.DataFrame:
    """One row a set, metric and average of the student's, whose figure papers quote marked.

    Columns set, metric, over, n, value, low, high (95%), chance, captions only, quoted, partial.
    `captions only` is the better of the baselines that see no image, empty where one of them could
    not be asked; in a grid such a baseline takes one caption for both images and ties both for a
    caption, so that it has nothing right.
    """
    found = baseline.overview(run)
    keys = ["set", "metric", "over"]
    alone = found[found["model"].isin(baseline.BLIND)].groupby(keys)
    blind = alone["accuracy"].max()[alone["model"].nunique() == len(baseline.BLIND)]
    mine = found[found["model"] == baseline.STUDENT].set_index(keys)
    mine[CAPTIONS] = blind.reindex(mine.index)
    mine = mine.reset_index()
    mine.loc[mine["metric"].isin(metrics.CHANCE_GRID), CAPTIONS] = 0.0
    mine["quoted"] = [_is_quoted(*key) for key in mine[keys].itertuples(index=False)]
    columns = [*keys, "n", "accuracy", "low", "high", "chance", CAPTIONS, "quoted", "partial"]
    return mine[columns].rename(columns={"accuracy": "value"})


def _is_quoted(name: str, metric: str, over: str) -> bool:
    if metric.startswith("recall"):
        return over != "all"  # papers tell both ways apart
    bare = name.removeprefix("mini-")
    average = "all" if metric in ("pair", "set") else AVERAGES.get(bare, "all")
    return over == average and metric == ALONE.get(bare, metric)


def shown(board: pd.DataFrame) -> str:
    """The table as text, a `*` at what papers quote."""
    told = board[["set", "metric", "over", "n"]].copy()
    told["value"] = [formatting.share(*row) for row in board[["value", "low", "high"]].to_numpy()]
    told[["chance", CAPTIONS]] = formatting.percent(board[["chance", CAPTIONS]])
    told["quoted"] = board["quoted"].map({True: "*", False: ""})
    told["of"] = board["partial"].map({True: "a part", False: "all"})
    return told.to_string(index=False)


@exits.foreseen
def main(words: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Score the student on every set at hand and print one table."""
    parser = argparse.ArgumentParser(
        prog="python -m sdslib.lab.scoreboard", description=main.__doc__
    )
    parser.add_argument("--table", type=Path, help="keep the table as CSV under this name")
    options, values = from_shell(parser, words, "01_baseline")
    config = validate(BaselineConfig, {"teacher_items": 0} | values)
    for name, why in baseline.at_hand(config)[1].itertuples(index=False):
        say(f"not here  {name}: {why}")
    board = table(baseline.measure(config))
    say(shown(board))
    if options.table is not None:
        write_bytes(options.table, board.to_csv(index=False).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
