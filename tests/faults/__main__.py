"""`make faults`: run every fault, print the table, write `docs/faults.md`."""

import contextlib
import sys
from pathlib import Path

import pytest

from faults.catalog import DOCUMENT, TESTS, Fault, document, faults, table


class Results:
    """Collects for every test marked `fault` whether it passed; parameters count as one."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[Fault, bool]] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "fault(number, title, message): a row of docs/faults.md")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            marker = item.get_closest_marker("fault")
            self.rows[_name(item.nodeid)] = Fault(*marker.args), False
        self.ran = dict.fromkeys(self.rows, True)
        self.called: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = _name(report.nodeid)
        self.ran[name] &= report.passed
        if report.when == "call":
            self.called.add(name)

    def outcome(self) -> list[tuple[Fault, bool]]:
        """Each fault with whether all of its tests ran and passed."""
        done = {name for name, ok in self.ran.items() if ok} & self.called
        return [(fault, name in done) for name, (fault, _) in self.rows.items()]


def _name(nodeid: str) -> str:
    return nodeid.split("[")[0]


def main(folder: Path) -> int:
    """Run the faults below a folder; 0 when all passed. pytest's own words go to stderr."""
    results = Results()
    with contextlib.redirect_stdout(sys.stderr):
        words = ["-m", "fault", "-q", "--no-header", "-p", "no:cacheprovider", str(folder)]
        code = pytest.main(words, plugins=[results])
    if folder == TESTS and code == 0:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(document(faults()), "utf-8")
    if not results.rows:
        print("0 passed, 0 failed")
        return 1
    print(table(results.outcome()))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else TESTS))
