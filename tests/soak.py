"""Kill a training process again and again, fill its disk, let it run long: what is left must agree.

`python -m soak --rounds 50 --minutes 60`. A real run (tiny student, tiny teacher, files on disk) is
killed with SIGKILL at random moments, half of them inside a save, and goes on in the next round.
Processes are forked from this one, which has torch loaded and one thread.
"""

import argparse
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
import realworld
import statsmodels.api as sm
import torch

from sdslib import experiment
from sdslib import student as student_room
from sdslib.checks.guard import override
from sdslib.config import FinetuneConfig
from sdslib.io.runs import Run, RunWarning, code_hash, find_run
from sdslib.train import Loop

LIMIT_MB, ENOUGH = 1.0, 5000  # of growth in 1,000 steps; steps below which nothing is concluded
LEFTOVERS = (".stage-*", ".trash-*", ".part-*", "*.old", "lock")


@dataclass
class Tally:
    """What the rounds have shown; `faults` is empty when all is well."""

    rounds: int = 0
    inside_saves: int = 0
    looks: int = 0
    exact: int = 0
    resumed: int = 0
    lost: int = 0
    full: int = 0
    faults: list[str] = field(default_factory=list)


def world(root: Path) -> FinetuneConfig:
    """A run of 16 steps on tiny models, 12 photographs and 4 Winoground-shaped items."""
    photos = realworld.make(root)
    return FinetuneConfig(
        **photos.models,
        train_data=photos.train_data,
        train_pairs=12,
        benchmark=photos.winoground,
        eval_items=4,
        steps=16,
        batch_size=4,
        warmup=2,
        lr=1e-2,
        sds_weight=0.05,
        bridge_pairs=12,
        eval_every=0,
        checkpoint_every=2,
        device="cpu",
        threads=1,
        runs=str(root / "reference"),
    )


def fork(job: Callable[[], object], log: Path) -> int:
    """A child that does the job and ends with 0, or 1 and its error in the log."""
    if (child := os.fork()) != 0:
        return child
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            warnings.simplefilter("ignore")
            job()
            code = 0
    except BaseException:
        with log.open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def folder_of(config: FinetuneConfig) -> Path | None:
    """The folder of the only run there, once it says who it is."""
    found = list(Path(str(config.runs)).glob("*/identity.json"))
    return found[0].parent if found else None


def is_good(folder: Path) -> bool:
    """Whether there is a checkpoint that can be loaded, read as a resuming process would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        return find_run(folder).latest_checkpoint() is not None


def in_save(folder: Path) -> bool:
    """Whether a save is half done: a stage, or what a rename sets aside."""
    return any(next(folder.rglob(pattern), None) for pattern in LEFTOVERS[:-1])


def digest(run: Run) -> dict[str, object]:
    """What two runs must have in common to the last bit: weights, history, scores."""
    weights = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.weights.glob("*.safetensors"))
    }
    history = run.history().drop(columns="seconds").to_json()
    scores = {name: run.scores(name).to_json(double_precision=15) for name in run.score_names()}
    return {"weights": weights, "history": history, "scores": scores}


# --- kills ---------------------------------------------------------------------------------------


def kill_round(config: FinetuneConfig, tally: Tally, rng: random.Random, length: float) -> bool:
    """Train until the kill; True when the run was finished before it.

    The process is also stopped a few times on the way: what a reader finds then is exactly what a
    kill at that moment would leave.
    """
    before = folder_of(config)
    had = before is not None and is_good(before)
    child = fork(lambda: experiment.finetune(config), Path(str(config.runs)) / "log")
    aim_at_save, started = rng.random() < 0.5, time.monotonic()
    looks = sorted(rng.uniform(0, length) for _ in range(3))
    moment, saves = rng.uniform(0, 1.1 * length), rng.randint(1, 6)
    seen = False
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        passed, folder = time.monotonic() - started, folder_of(config)
        if looks and passed > looks[0]:
            looks.pop(0)
            had = look(child, folder, had, tally)
        if aim_at_save and folder is not None and (now := in_save(folder)) != seen:
            seen, saves = now, saves - now
            if saves == 0:
                time.sleep(rng.choice((0, 0, rng.uniform(0, 0.004))))
                break
        if passed > moment and not aim_at_save:
            break
        time.sleep(0.0001 if aim_at_save else 0.005)
    else:
        return finished(config, tally, had)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    after_kill(folder_of(config), had, tally)
    return False


def look(child: int, folder: Path | None, had: bool, tally: Tally) -> bool:
    """Stop the process, count a lost checkpoint, let it go on; whether there is one now."""
    os.kill(child, signal.SIGSTOP)
    deadline = time.monotonic() + 5
    while psutil.Process(child).status() == psutil.STATUS_RUNNING and time.monotonic() < deadline:
        time.sleep(0.001)
    good = folder is not None and is_good(folder)
    os.kill(child, signal.SIGCONT)
    tally.looks += 1
    tally.lost += had and not good
    return had or good


def after_kill(folder: Path | None, had: bool, tally: Tally) -> None:
    if folder is None:
        return
    tally.inside_saves += in_save(folder)
    good = is_good(folder)
    tally.lost += had and not good
    tally.resumed += good
    state = find_run(folder).status()["state"]
    if state not in ("died", "finished"):
        tally.faults.append(f"killed, but its status is {state}")


def finished(config: FinetuneConfig, tally: Tally, had: bool) -> bool:
    """The process ended by itself: it must have finished."""
    folder = folder_of(config)
    if folder is None or not find_run(folder).finished:
        tally.faults.append((Path(str(config.runs)) / "log").read_text()[-2000:])
    tally.resumed += had
    return True


def settle(config: FinetuneConfig, expected: dict[str, object], tally: Tally) -> None:
    """Compare a finished run with the one that was never killed, and look for leftovers."""
    folder = folder_of(config)
    if folder is None or not find_run(folder).finished:
        tally.faults.append(f"a process ended by itself and left no finished run in {config.runs}")
        return
    found = digest(find_run(folder))
    wrong = [part for part, value in expected.items() if found[part] != value]
    if wrong:
        tally.faults.append(f"not bit-exact: {', '.join(wrong)} of {folder}")
    else:
        tally.exact += 1
    left = [str(path) for pattern in LEFTOVERS for path in folder.rglob(pattern)]
    if left:
        tally.faults.append(f"left behind: {left}")


def complete(config: FinetuneConfig, tally: Tally) -> None:
    """Let the run end in peace."""
    os.waitpid(fork(lambda: experiment.finetune(config), Path(str(config.runs)) / "log"), 0)
    finished(config, tally, False)


def chain(config: FinetuneConfig, root: Path, number: int) -> FinetuneConfig:
    """The same run in a folder of its own."""
    folder = root / f"chain-{number}"
    folder.mkdir()
    return override(config, runs=str(folder))


def kills(config: FinetuneConfig, root: Path, rounds: int, seed: int = 0) -> Tally:
    """`rounds` kills; each finished run is compared, and the last one is let finish."""
    tally, rng = Tally(), random.Random(seed)
    Path(str(config.runs)).mkdir()
    code_hash()  # the code as it is now, for all processes: an edit would be remarked
    start = time.monotonic()
    complete(config, tally)
    length, reference = time.monotonic() - start, folder_of(config)
    if reference is None or tally.faults:
        return tally
    expected, number = digest(find_run(reference)), 0
    current, done = chain(config, root, 0), False
    while tally.rounds < rounds:
        done = kill_round(current, tally, rng, length)
        tally.rounds += not done
        if done:
            settle(current, expected, tally)
            number += 1
            current = chain(config, root, number)
    complete(current, tally)
    settle(current, expected, tally)
    return tally


# --- a full disk ---------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Mount a tmpfs where that is allowed; yields whether it is."""
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(folder)]
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(["mount", *options], capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def full_disks(config: FinetuneConfig, root: Path, rounds: int, seed: int = 1) -> Tally:
    """The disk is full after a random number of bytes; room is made, and the run goes on."""
    tally, rng = Tally(), random.Random(seed)
    reference = folder_of(config)
    assert reference is not None
    expected = digest(find_run(reference))
    needed = sum(path.stat().st_size for path in reference.rglob("*") if path.is_file())
    with small_disk(root / "disk", 4 * needed // 2**20 + 2) as mounted:
        for number in range(rounds):
            own = chain(config, root / "disk", number)
            run_full(own, rng, tally, needed if mounted else None)
            complete(own, tally)
            settle(own, expected, tally)
            shutil.rmtree(str(own.runs))
            tally.rounds += 1
    return tally


def run_full(config: FinetuneConfig, rng: random.Random, tally: Tally, needed: int | None) -> None:
    """One process whose disk is too small for it; it must say so and keep what it had."""
    folder = Path(str(config.runs))
    filler, log = folder.parent / "filler", folder.parent.parent / "full.log"
    if needed is not None:
        free = shutil.disk_usage(folder).free
        with filler.open("wb") as file:
            file.write(b"\0" * max(0, free - rng.randint(1, needed)))
        job = lambda: experiment.finetune(config)  # noqa: E731
    else:
        after = rng.randint(1, 60)
        job = lambda: (inject(after), experiment.finetune(config))  # noqa: E731
    code = os.waitstatus_to_exitcode(os.waitpid(fork(job, log), 0)[1])
    said = log.read_text()
    filler.unlink(missing_ok=True)
    if code == 0:
        return
    tally.full += 1
    if "disk full: need at least" not in said:
        tally.faults.append(f"the disk was full and it said: {said[-600:]}")
    run = folder_of(config)
    if run is not None and list((run / "checkpoints").glob("step-*")) and not is_good(run):
        tally.lost += 1


def inject(after: int) -> None:
    """Fail the write number `after` as a full disk does, half of the file written."""
    import safetensors.torch

    left, real, sync = [after], safetensors.torch.save_file, os.fsync

    def full() -> bool:
        left[0] -= 1
        return left[0] <= 0

    def save(tensors: dict, path: Path, *args: object, **kwargs: object) -> None:
        real(tensors, path, *args, **kwargs)
        if full():
            os.truncate(path, Path(path).stat().st_size // 2)
            raise OSError(errno.ENOSPC, "No space left on device")

    def fsync(handle: int) -> None:
        if full():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    safetensors.torch.save_file = student_room.save_file = save
    os.fsync = fsync


# --- a long run ----------------------------------------------------------------------------------


def own_mb() -> float:
    """Megabytes that this process has written; its libraries' pages are not counted.

    Those are its own while nobody else has them mapped: 330 MB of "unique set size" come and go
    with another process that imports torch.
    """
    rollup = Path("/proc/self/smaps_rollup")
    if not rollup.exists():
        return psutil.Process().memory_full_info().uss / 2**20
    sizes = dict(line.split(":", 1) for line in rollup.read_text().splitlines()[1:])
    return sum(int(sizes[name].split()[0]) for name in ("Anonymous", "Swap")) / 1024


def long_run(
    config: FinetuneConfig, minutes: float, every: int = 20, kept: Path | None = None
) -> pd.DataFrame:
    """Memory of its own (MB) and open files of one process that trains and scores for so long.

    `kept` is a file that holds the table as far as it is.
    """
    config = override(config, steps=10**7)
    data = experiment.load_data(config)
    models = experiment.load_models(config, data.pairs, torch.device("cpu"))
    rows, process, end = [], psutil.Process(), time.monotonic() + 60 * minutes
    for step in Loop(config, models, data.pairs):
        if step.step % every == 0:
            experiment.score(models.student, data.test)
            rows.append({"step": step.step, "mb": own_mb(), "files": process.num_fds()})
            ended = time.monotonic() > end and len(rows) >= 12
            if kept is not None and (ended or len(rows) % 100 == 0):
                pd.DataFrame(rows).to_csv(kept, index=False)
            if ended:
                return pd.DataFrame(rows)
    raise AssertionError("the steps ran out before the minutes")


def slope(table: pd.DataFrame) -> tuple[float, float, float]:
    """MB per 1,000 steps and its 95% interval, the first fifth left out as warm-up.

    Neighbouring samples resemble each other, so errors are Newey and West's.
    """
    late = table.iloc[len(table) // 5 :]
    lags = max(1, round(len(late) ** 0.5))
    fit = sm.OLS(late["mb"], sm.add_constant(late["step"] / 1000)).fit(
        cov_type="HAC", cov_kwds={"maxlags": lags}
    )
    low, high = fit.conf_int().loc["step"]
    return float(fit.params["step"]), float(low), float(high)


def main(words: list[str] | None = None) -> int:
    """Print what the rounds and the minutes show; 1 where something was lost or grew."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="kills, and a fifth of it full disks")
    parser.add_argument("--minutes", type=float, default=0.0, help="of training to watch memory in")
    parser.add_argument("--table", type=Path, help="file for what was seen in these minutes (CSV)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        root = Path(folder)
        config = world(root)
        if options.rounds:
            faults += show_kills(kills(config, root, options.rounds, options.seed))
            faults += show_full(full_disks(config, root, max(2, options.rounds // 5)))
        if options.minutes:
            faults += show_memory(long_run(config, options.minutes, kept=options.table))
    for text in faults:
        print(f"FAULT {text}", file=sys.stderr)
    print("soak passed" if not faults else f"soak failed: {len(faults)} faults")
    return int(bool(faults))


def show_kills(tally: Tally) -> list[str]:
    """The tally of the kills in words; its faults."""
    print(f"kill rounds survived  {tally.rounds} ({tally.inside_saves} inside a save)")
    print(f"checkpoints lost      {tally.lost} ({tally.looks} looks on the way, one at each end)")
    print(f"resumed               {tally.resumed} times from a checkpoint")
    print(f"bit-exact at the end  {tally.exact} runs")
    return tally.faults + (["a checkpoint was lost"] if tally.lost else [])


def show_full(tally: Tally) -> list[str]:
    """The tally of the full disks in words; its faults."""
    print(
        f"disk full             {tally.full} of {tally.rounds} runs, {tally.exact} bit-exact after"
    )
    return tally.faults + (["a checkpoint was lost on a full disk"] if tally.lost else [])


def show_memory(table: pd.DataFrame) -> list[str]:
    """Slope and open files in words; a fault where they surely grow."""
    middle, low, high = slope(table)
    first, last = table["files"].iloc[[len(table) // 5, -1]]
    print(
        f"memory slope          {middle:+.3f} MB per 1,000 steps [{low:+.3f}, {high:+.3f}], "
        f"{table['step'].iloc[-1]} steps, {len(table)} evaluations"
    )
    print(f"open files            {first} before, {last} after")
    grown = [f"memory grows by {middle:.2f} MB in 1,000 steps"] if low > LIMIT_MB else []
    if table["step"].iloc[-1] < ENOUGH:
        print(f"                      too few steps to conclude anything: take {ENOUGH} or more")
        grown = []
    return grown + (["open files grow"] if last > first + 2 else [])


if __name__ == "__main__":
    sys.exit(main())
