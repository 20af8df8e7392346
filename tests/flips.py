"""Flip single bits of what is kept: whatever then reads differently is named and refused.

`python -m flips --rounds 300` takes so many random bits of each kind of file of a finished run and
of a published study. A flip that changes nothing of what is read (a space in JSON) may pass; every
other one is named by `verify` and refused by report and publication, or, in a published file, by
the tables.
"""

import argparse
import json
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from finished import finish

from sdslib.checks.notebooks import ReportConfig
from sdslib.io import storage
from sdslib.io.run import Run
from sdslib.io.wording import ParameterError
from sdslib.results import publish, settings
from sdslib.results.settings import StudyError

SCORES = "scores/mini-winoground.parquet"
OWN = (
    *("params.json", "identity.json", "env.json", "status.json", "sums.json", "history.jsonl"),
    *(SCORES, "results.parquet", "notebook.ipynb", "atlas/atlas.html", "atlas/manifest.json"),
)
PUBLISHED = ("params.json", "identity.json", "history.jsonl", SCORES, "../manifest.json")


def read(path: Path) -> object:
    """What a reader without checksums would take the file for; None where it cannot be read.

    Of parquet every bit counts: some flips end the process of a reader that trusts the file.
    """
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in path.read_bytes().splitlines()]
        return json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
    except Exception:
        return None


def flipped(data: bytes, rng: random.Random) -> tuple[bytes, int]:
    """The bytes with one random bit turned, and its place."""
    place = rng.randrange(8 * len(data))
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed), place


def refuses(call: Callable[[], object], kind: type[Exception], name: str) -> bool:
    """Whether the call ends in that error, and its words name the file."""
    try:
        call()
    except kind as error:
        return name in str(error)
    return False


def finished_run(root: Path) -> Run:
    """A finished run with every kind of file that is kept beside it."""
    run = finish(root / "runs", "clip-only", items=8)
    run.save_results(run.scores("mini-winoground").head(2))
    run.keep("notebook.ipynb", b'{"cells": []}')
    with storage.staged_folder(run.path / "atlas") as folder:
        (folder / "atlas.html").write_text("<p>seen</p>")
    return run


def faults_of_run(run: Run, name: str) -> list[str]:
    """What does not name or refuse the damaged file of a finished run."""
    known, found = _named(name), list[str]()
    if not any(known in problem for problem in run.problems()):
        found.append("verify does not name it")
    if name.startswith("atlas/") or not run.finished:
        return found  # it is not read; or the run counts as unfinished, which all of them refuse
    config = ReportConfig(runs=str(run.path))
    if not refuses(lambda: settings.collect(config), ParameterError, known):
        found.append("the report takes it")
    if not refuses(lambda: publish.study("a", [run], run.path.parent.parent), StudyError, known):
        found.append("it can be published")
    return found


def faults_of_study(folder: Path, name: str) -> list[str]:
    """What does not refuse the damaged file of the published study `small`."""
    refused = refuses(lambda: publish.published("small", folder), StudyError, _named(name))
    return [] if refused else ["the tables take it"]


def _named(name: str) -> str:
    """What must be named: the file, or of a manifest (any file may disagree with it) its folder."""
    folder, _, file = name.rpartition("/")
    return folder.strip(".") if file == storage.MANIFEST else file


def trial(rounds: int, seed: int = 0) -> pd.DataFrame:
    """One row a kind of file: flips, how many changed what is read, and what was not noticed."""
    rng, rows = random.Random(seed), []
    with tempfile.TemporaryDirectory(prefix="flips-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(name)
        run = finished_run(root)
        publish.study("small", [run], root / "published")
        home = root / "published" / "small" / run.name
        kinds = [(run.path, own, lambda own: faults_of_run(run, own)) for own in OWN]
        kinds += [
            (home, n, lambda own: faults_of_study(root / "published", own)) for n in PUBLISHED
        ]
        for folder, own, check in kinds:
            assert not check_all(run, root / "published"), "damaged before the first flip"
            rows.append(flip(folder / own, own, check, rounds, rng) | {"of": folder.parent.name})
    return pd.DataFrame(rows)


def check_all(run: Run, published: Path) -> list[str]:
    """The problems of the run and the study as they are."""
    publish.published("small", published)
    return run.problems()


def flip(
    path: Path, own: str, check: Callable[[str], list[str]], rounds: int, rng: random.Random
) -> dict:
    """The file's row of the trial; it is left as it was."""
    whole, before, changed, missed = path.read_bytes(), read(path), 0, list[str]()
    for _ in range(rounds):
        data, place = flipped(whole, rng)
        path.write_bytes(data)
        if read(path) != before:
            changed += 1
            missed += [f"bit {place}: {text}" for text in check(own)]
    path.write_bytes(whole)
    return {"file": own, "flips": rounds, "changed": changed, "missed": len(missed),
            "as": missed[0] if missed else ""}  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Print the table; 1 where a flip that changes what is read was not noticed."""
    parser = argparse.ArgumentParser(prog="python -m flips", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="flips of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    table = trial(options.rounds, options.seed)
    print(table.to_string(index=False))
    print(f"{table['changed'].sum()} changed what is read, {table['missed'].sum()} not noticed")
    return int(table["missed"].any())


if __name__ == "__main__":
    sys.exit(main())
