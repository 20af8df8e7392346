"""`make fuzz PARSER=coco SECONDS=600`: coverage-guided fuzzing of one parser, or of all.

Each parser runs in a process of its own, from the committed seeds; inputs that raise an undeclared
error are kept and named. Needs the extra `fuzz` (Linux on x86-64).
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("annotations", "coco", "parquet", "run", "checkpoint", "config", "shard", "image")
CORPUS, FOUND = Path(__file__).parent / "corpus", Path(tempfile.gettempdir()) / "fuzz-found"


def run(name: str, seconds: int) -> bool:
    """Fuzz one parser for so long; says how often it was called and whether it held."""
    FOUND.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "fuzz", name, "--child", work]
        options = [work, str(CORPUS / name), f"-max_total_time={seconds}", "-timeout=60",
                   "-rss_limit_mb=4096", "-max_len=32768", "-print_final_stats=1",
                   f"-artifact_prefix={FOUND}/{name}-"]  # fmt: skip
        done = subprocess.run([*command, *options], capture_output=True, text=True)
    calls = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    held = done.returncode == 0 and calls is not None
    print(f"{name:<12} {calls[1] if calls else '?':>9} inputs  {'held' if held else 'FAILED'}")
    if not held:
        print(done.stderr[-3000:], file=sys.stderr)
        print(f"the input is in {FOUND}; put it into {CORPUS / name} once it is fixed")
    return held


def child(name: str, options: list[str]) -> None:
    """The fuzzing process: sees coverage of our parsers and of the readers in Python."""
    import atheris

    with atheris.instrument_imports(include=["sdslib", "tarfile", "json"]):
        from fuzz.parsers import feed

    home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def one(data: bytes) -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        feed(name, data, home)

    atheris.Setup([sys.argv[0], *options], one)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(home, ignore_errors=True)


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
        child(sys.argv[1], sys.argv[3 + 1 :])
    else:
        sys.exit(main())
