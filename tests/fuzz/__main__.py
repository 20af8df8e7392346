"""`make fuzz PARSER=coco SECONDS=600`: coverage-guided fuzzing of one parser, or of all.

Each parser runs in a process of its own, from the committed seeds; inputs that raise an undeclared
error are kept and named. Seconds are of the processor's time, so that a busy machine fuzzes as much
as an idle one. Needs the extra `fuzz` (Linux on x86-64).
"""

import argparse
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("annotations", "coco", "parquet", "sets", "run", "checkpoint", "config", "shard", "image")
IDLE = 20  # times the processor's time that a parser may take on a busy machine
CORPUS, FOUND = Path(__file__).parent / "corpus", Path(tempfile.gettempdir()) / "fuzz-found"


def run(name: str, seconds: int) -> bool:
    """Fuzz one parser for so long; says how often it was called and whether it held."""
    FOUND.mkdir(exist_ok=True)
    memory, before = "/dev/shm" if Path("/dev/shm").is_dir() else None, cpu_seconds()
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory(dir=memory) as home:
        command = [sys.executable, "-m", "fuzz", name, "--child", str(seconds), home]
        options = [work, str(CORPUS / name), f"-max_total_time={IDLE * seconds}", "-timeout=60",
                   "-rss_limit_mb=4096", "-max_len=32768", "-print_final_stats=1",
                   f"-artifact_prefix={FOUND}/{name}-"]  # fmt: skip
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    calls = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    held = done.returncode == 0 and calls is not None
    print(f"{name:<12} {calls[1] if calls else '?':>9} inputs in {cpu_seconds() - before:.0f} s  "
          f"{'held' if held else 'FAILED'}", flush=True)  # fmt: skip
    if not held:
        print(done.stderr[-3000:], file=sys.stderr)
        print(f"the input is in {FOUND}; put it into {CORPUS / name} once it is fixed")
    return held


def cpu_seconds() -> float:
    """The processor's time that ended children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def child(name: str, seconds: int, home: Path, options: list[str]) -> None:
    """The fuzzing process: sees coverage of our parsers and of the readers in Python."""
    import atheris

    with atheris.instrument_imports(include=["sdslib", "tarfile", "json"]):
        from fuzz.parsers import feed

    end = time.process_time() + seconds

    def one(data: bytes) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        feed(name, data, home)
        if time.process_time() > end:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer's request for a graceful end

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


def main() -> int:
    """0 when every parser held."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("parser", choices=("all", *NAMES))
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    names = NAMES if options.parser == "all" else (options.parser,)
    return int(sum(not run(name, options.seconds) for name in names) > 0)


if __name__ == "__main__":
    if "--child" in sys.argv:
        name, _, seconds, home, *rest = sys.argv[1:]
        child(name, int(seconds), Path(home) / "input", rest)
    else:
        sys.exit(main())
