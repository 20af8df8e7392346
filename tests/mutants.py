"""Which plausible mistakes the fast tests notice: `PYTHONPATH=tests python -m mutants`.

`mutants.toml` names them: each is a fragment of a room and what a slip would make of it. One at a
time they are put into a copy of the project in a temporary folder, and the fast tests of the room
run there until one fails. A test that never ends has noticed too.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sdslib.io.paths import project_root
from sdslib.io.wording import suggest

TABLE = Path(__file__).with_name("mutants.toml")
FAST = "not slow and not browser and not ray and not gpu"
# A snapshot notices any change and says of none that it is wrong.
NO_SNAPSHOT = "not the_committed_tables"
TIMEOUT_S = 600
MISSED = "MISSED"
_SKIPPED = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "runs", "*.ipynb_checkpoints"
)


@dataclass(frozen=True)
class Mutant:
    """One mistake: `old` stands exactly once in the room's source, and becomes `new`.

    `tests` are the files of the room; `key` names the mistake and `group` the list it comes from.
    """

    key: str
    room: str
    old: str
    new: str
    tests: tuple[str, ...]
    group: str


def load(path: Path = TABLE) -> list[Mutant]:
    """The table; a ValueError names an entry whose key is used twice."""
    document = tomllib.loads(path.read_text("utf-8"))
    usual = document["tests"]
    found = [
        Mutant(
            f"{room}: {entry['name']}",
            room,
            entry["old"],
            entry["new"],
            tuple(entry.get("tests", usual.get(room, [f"tests/test_{leaf(room)}.py"]))),
            entry["group"],
        )
        for room, entries in document["rooms"].items()
        for entry in entries
    ]
    keys = [mutant.key for mutant in found]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"{path.name}: named twice: {', '.join(sorted(twice))}")
    return found


def leaf(room: str) -> str:
    """`runs` of `io.runs`."""
    return room.rpartition(".")[2]


def source_of(room: str, tree: Path) -> Path:
    """The file of a room, as `io.runs`, in a copy of the project."""
    return tree / "sdslib" / f"{room.replace('.', '/')}.py"


def mutated(source: str, mutant: Mutant) -> str:
    """The source with the mistake in it; a LookupError where its fragment is not there once."""
    count = source.count(mutant.old)
    if count != 1:
        raise LookupError(f"{mutant.key}: its fragment occurs {count} times in {mutant.room}.py")
    return source.replace(mutant.old, mutant.new)


def noticed(mutant: Mutant, tree: Path) -> str:
    """The first fast test that fails with the mistake in the tree's copy, or `MISSED`.

    The file is as it was afterwards.
    """
    path = source_of(mutant.room, tree)
    before = path.read_text("utf-8")
    path.write_text(mutated(before, mutant), "utf-8")
    try:
        return _first_failure(tree, mutant.tests)
    finally:
        path.write_text(before, "utf-8")


def _first_failure(tree: Path, tests: tuple[str, ...]) -> str:
    command = [
        *_nice(),
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-rfE",
        "--tb=no",
        "-m",
        FAST,
        "-k",
        NO_SNAPSHOT,
        *tests,
    ]
    env = os.environ | {"PYTHONPATH": f"{tree}:{tree / 'tests'}", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"(no end within {TIMEOUT_S} s)"
    if done.returncode == 0:
        return MISSED
    hit = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if hit is None and done.returncode in (4, 5):  # pytest's own: bad usage, no test collected
        raise RuntimeError(f"no test ran: {(done.stdout + done.stderr).strip()[-300:]}")
    return hit[1] if hit else f"(exit status {done.returncode})"


def _nice() -> list[str]:
    return ["nice"] if shutil.which("nice") else []


def chosen(mutants: list[Mutant], asked: argparse.Namespace) -> list[Mutant]:
    """Those that the command asks for; SystemExit where that is none, with the nearest room."""
    found = [
        m
        for m in mutants
        if (not asked.only or asked.only.lower() in m.key.lower())
        and (not asked.room or m.room in asked.room.split(","))
        and (not asked.group or m.group == asked.group)
    ]
    if not found:
        close = suggest(asked.room or "", {m.room for m in mutants})
        raise SystemExit("no such mistake" + (f"; did you mean room {close!r}?" if close else ""))
    return found


def main(words: list[str] | None = None) -> int:
    """Run the mistakes asked for and print which test noticed each; status 1 where one was not.

    A fragment that does not fit the source any more is told and counts as missed.
    """
    parser = argparse.ArgumentParser(prog="python -m mutants", description=main.__doc__)
    parser.add_argument("--only", metavar="NAME", help="mistakes with this in their name")
    parser.add_argument("--room", help="rooms, commas between")
    parser.add_argument("--group", help="mistakes of one list: listed, own")
    parser.add_argument("--check", action="store_true", help="only that each fragment fits")
    asked = parser.parse_args(words)
    some, missed = chosen(load(), asked), 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = project_root()
        if not asked.check:
            tree = Path(folder, "tree")
            shutil.copytree(project_root(), tree, ignore=_SKIPPED, symlinks=True)
        for mutant in some:
            start = time.monotonic()
            try:
                if asked.check:
                    mutated(source_of(mutant.room, tree).read_text("utf-8"), mutant)
                    continue
                word = noticed(mutant, tree)
            except LookupError as reason:
                word = f"{MISSED}: {reason}"
            missed += word.startswith(MISSED)
            seconds = f"{time.monotonic() - start:.0f} s"
            print(f"| {mutant.group} | {mutant.key} | {word} | {seconds} |", flush=True)
    word = "fit" if asked.check else "noticed"
    print(f"{len(some)} mistakes: {len(some) - missed} {word}, {missed} do not")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
