"""Whatever a file holds, its parser gives a result or one of its declared errors."""

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import __main__ as driver
from fuzz.parsers import CORPUS, PARSERS, feed

SEEDS = [(path.parent.name, path) for path in sorted(CORPUS.glob("*/*"))]


def test_every_parser_has_seeds_and_a_place_in_the_driver():
    assert set(driver.NAMES) == set(PARSERS) == {name for name, _ in SEEDS}
    assert all(path.stat().st_size <= 32_768 for _, path in SEEDS)


@pytest.mark.parametrize(("name", "path"), SEEDS, ids=[f"{n}-{p.name}" for n, p in SEEDS])
def test_a_seed_is_read_or_refused(name, path, tmp_path):
    feed(name, path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name, tmp_path, data):
    """A seed with some bytes changed, taken out, put in twice, or cut at the end."""
    found = [path for kind, path in SEEDS if kind == name and path.stat().st_size < 4096]
    content = bytearray(data.draw(st.sampled_from(found)).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)))
        to = data.draw(st.integers(at, min(len(content), at + 40)))
        match data.draw(st.sampled_from(("change", "remove", "repeat", "cut"))):
            case "change":
                content[at : at + 4] = data.draw(st.binary(min_size=1, max_size=4))
            case "remove":
                del content[at:to]
            case "repeat":
                content[at:at] = content[at:to] * data.draw(st.integers(1, 50))
            case "cut":
                del content[at:]
    feed(name, bytes(content), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="atheris has wheels for Linux on x86-64 alone")
def test_the_fuzzer_runs(tmp_path):
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "config", "--seconds", "3"],
        cwd=CORPUS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "held" in done.stdout
