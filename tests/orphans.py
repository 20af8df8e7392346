"""Kill who started processes, one of them, a sweep, a first drawing: nothing may be left running.

`python -m orphans --rounds 20` (`--only parent|rank|sweep|drawing`). Each round starts the real
thing on a tiny world, kills one process with SIGKILL at a random moment, and then looks for what
still runs (by a mark in its environment), for files in its own folder of temporary files, and for a
checkpoint that was there before. What was cut goes on in the next round, and at the end is whole.
"""

import argparse
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import soak

from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig
from sdslib.io import launch
from sdslib.io.paths import project_root
from sdslib.io.runs import find_run

MARK, GRACE_S, WAIT_S = "SDSLIB_TRIAL", 10.0, 240.0
TRAIN = (
    "import json, sys; from sdslib import experiment; from sdslib.config import FinetuneConfig;"
    "experiment.finetune(FinetuneConfig(**json.loads(sys.argv[1])))"
)
DRAW = (
    "import sys; from pathlib import Path; from sdslib.miniworld import files;"
    "files.ensure_world(Path(sys.argv[1]))"
)


@dataclass
class Tally:
    """What the rounds of one kind have shown."""

    kind: str
    rounds: int = 0
    processes: int = 0
    faults: list[str] = field(default_factory=list)


class Trial:
    """One process and all below it, which carry a mark and have a folder for temporary files."""

    def __init__(self, root: Path, *words: str) -> None:
        self.mark, self.temporary = secrets.token_hex(8), root / "tmp"
        self.temporary.mkdir(exist_ok=True)
        env = os.environ | {MARK: self.mark, "TMPDIR": str(self.temporary)}
        with (root / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words], cwd=project_root(), env=env, stdout=log, stderr=log
            )

    def living(self) -> list[psutil.Process]:
        """All processes with the mark, zombies aside."""
        found = []
        for process in psutil.process_iter():
            try:
                marked = process.environ().get(MARK) == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ranks(self) -> list[psutil.Process]:
        """The processes that train, as far as they have begun."""
        return [p for p in self.living() if "--params" in _words(p) and "RANK" in _env(p)]

    def settle(self, tally: Tally) -> None:
        """What is left after the kill is a fault, and then ended."""
        deadline = time.monotonic() + GRACE_S
        while (left := self.living()) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.process.wait()
        if left:
            tally.faults.append(f"left running: {[_words(p)[-4:] for p in left]}")
        for process in left:
            process.kill()
        for folder in self.temporary.glob("sdslib-*/owner.json") if tally.kind == "sweep" else []:
            tempfile.tempdir = str(folder.parents[1])
            launch.clear()  # as the next start does
            tempfile.tempdir = None
        # where wandb is installed, timm imports it, and it makes two empty folders when imported
        kept = [p for p in self.temporary.rglob("*") if "wandb-" not in p.name or [*p.glob("*")]]
        if files := [str(p) for p in kept]:
            tally.faults.append(f"left behind: {files[:3]}")
        print(f"{tally.kind}: {tally.rounds + 1} done, {tally.faults}", file=sys.stderr)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _env(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def wait(trial: Trial, ready: Callable[[], object], rng: random.Random) -> bool:
    """Wait until it is ready and a random moment more; whether the process still runs."""
    deadline = time.monotonic() + WAIT_S
    while not ready() and trial.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 1))
    return trial.process.poll() is None


def steps(config: FinetuneConfig) -> int:
    """How many steps the history of the only run there has."""
    folder = soak.folder_of(config)
    path = folder / "history.jsonl" if folder else None
    return len(path.read_bytes().splitlines()) if path and path.exists() else 0


def moment(trial: Trial, config: FinetuneConfig, rng: random.Random) -> Callable[[], object]:
    """A moment to kill at: the launcher is there, all ranks are, or a few steps are done."""
    done, more = steps(config), rng.randint(1, 6)
    return rng.choice([
        lambda: len(trial.living()) > 1,
        lambda: len(trial.ranks()) == 2,
        lambda: steps(config) >= done + more,
        lambda: steps(config) >= done + more,
    ])  # fmt: skip


def trained(root: Path, rounds: int, rng: random.Random, rank: bool) -> Tally:
    """Kills of the process that follows the run, or of one of the two that train."""
    tally = Tally("rank" if rank else "parent")
    config = override(soak.world(root), processes=2, steps=600, checkpoint_every=1)
    Path(str(config.runs)).mkdir()
    for _ in range(rounds):
        trial = Trial(root, "-c", TRAIN, config.model_dump_json())
        ready = (lambda: len(trial.ranks()) == 2) if rank else moment(trial, config, rng)  # noqa: B023
        if wait(trial, ready, rng):
            tally.processes += len(trial.living())
            had = bool((folder := soak.folder_of(config)) and soak.is_good(folder))
            victim = rng.choice(trial.ranks()) if rank else psutil.Process(trial.process.pid)
            victim.kill()
            if rank:
                trial.process.wait(WAIT_S)
            trial.settle(tally)
            tally.rounds += 1
            look(root, config, had, tally, rank)
        else:
            tally.faults.append((root / "log").read_text()[-500:])
            trial.settle(tally)
    return tally


def look(root: Path, config: FinetuneConfig, had: bool, tally: Tally, rank: bool) -> None:
    """What the kill left of the run: its checkpoint, its state, each step once, sound files."""
    said = (root / "log").read_text().strip().splitlines()
    if rank and not (said and "run again to go on from the last checkpoint" in said[-1]):
        tally.faults.append(f"a rank was killed and it said {said[-1:]}")
    folder = soak.folder_of(config)
    if folder is None:
        return
    if had and not soak.is_good(folder):
        tally.faults.append("a checkpoint was lost")
    run = find_run(folder)
    deadline = time.monotonic() + GRACE_S
    while run.status()["state"] == "running" and time.monotonic() < deadline:
        time.sleep(0.1)  # a process that is being ended has lost its mark already
    if run.status()["state"] == "running":
        tally.faults.append("its status is still running")
    done = run.history()["step"].tolist() if steps(config) else []
    if done != list(range(1, len(done) + 1)):
        tally.faults.append("a step is missing or there twice")
    if problems := run.problems():
        tally.faults.append(f"damaged: {problems}")


def swept(root: Path, rounds: int, rng: random.Random) -> Tally:
    """Kills of a sweep whose cell trains in two processes."""
    tally, world = Tally("sweep"), soak.world(root)
    config = override(world, processes=2, steps=600, checkpoint_every=1, eval_every=0)
    Path(str(config.runs)).mkdir()
    names = sorted(world.model_fields_set - {"runs", "threads"} | {"processes"})
    words = [word for name in names for word in ("--set", f"{name}={getattr(config, name)}")]
    words += ["--grid", "seed=0", "--runs", str(config.runs)]
    for _ in range(rounds):
        trial = Trial(root, "-m", "sdslib.results.sweep", "notebooks/02_finetune.ipynb", *words)
        ready = rng.choice([lambda: len(trial.living()) > 2, lambda: len(trial.ranks()) == 2])  # noqa: B023
        if wait(trial, ready, rng):
            tally.processes += len(trial.living())
            trial.process.kill()
            trial.settle(tally)
            tally.rounds += 1
            look(root, config, False, tally, False)
        else:
            tally.faults.append((root / "log").read_text()[-500:])
            trial.settle(tally)
    return tally


def drawn(root: Path, rounds: int, rng: random.Random) -> Tally:
    """Kills of the first drawing; the last one is let end, and only the world is there."""
    tally, world = Tally("drawing"), root / "mini" / "world"
    for number in range(rounds + 1):
        trial = Trial(root, "-c", DRAW, str(world))
        if number == rounds:
            trial.process.wait(WAIT_S)
            trial.settle(tally)
        elif wait(trial, lambda: list(world.parent.glob("world*/*")), rng):
            tally.processes += len(trial.living())
            trial.process.kill()
            trial.settle(tally)
            tally.rounds += 1
        left = sorted(p.name for p in world.parent.iterdir())
        if number < rounds and (world.exists() or len(left) > 1):
            tally.faults.append(f"after a kill there are {left}")
    if left != ["world"]:
        tally.faults.append(f"at the end there are {left}")
    return tally


KINDS: dict[str, Callable[[Path, int, random.Random], Tally]] = {
    "parent": lambda root, rounds, rng: trained(root, rounds, rng, rank=False),
    "rank": lambda root, rounds, rng: trained(root, rounds, rng, rank=True),
    "sweep": swept,
    "drawing": drawn,
}


def main(words: list[str] | None = None) -> int:
    """Print what the rounds show; 1 where something was left or lost."""
    parser = argparse.ArgumentParser(prog="python -m orphans", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="kills of each kind")
    parser.add_argument("--only", choices=KINDS, action="append", help="a kind (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    faults = []
    for kind in options.only or KINDS:
        with tempfile.TemporaryDirectory(prefix="orphans-") as folder:
            tally = KINDS[kind](Path(folder), options.rounds, random.Random(options.seed))
        print(f"{kind:<8} {tally.rounds} of {options.rounds} kills, {tally.processes} processes "
              f"below, {len(tally.faults)} faults", flush=True)  # fmt: skip
        faults += [f"{kind}: {text}" for text in tally.faults]
    for text in faults:
        print(f"FAULT {text}", file=sys.stderr)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
