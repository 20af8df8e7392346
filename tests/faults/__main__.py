"""`make faults`: run the test of every row of `docs/faults.md`, and print the table."""

import contextlib
import sys
from pathlib import Path

import pytest

from faults import catalog


class Results:
    """Whether all tests of each fault ran and passed; its cases and parameters count as one."""

    def pytest_configure(self, config: pytest.Config) -> None:
        config.addinivalue_line("markers", "fault(title): a row of docs/faults.md")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        marked = {item.nodeid: item.get_closest_marker("fault") for item in session.items}
        self.titles = {nodeid: mark.args[0] for nodeid, mark in marked.items()}
        self.passed, self.called = dict.fromkeys(self.titles.values(), True), set[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        title = self.titles[report.nodeid]
        self.passed[title] &= report.passed
        if report.when == "call":
            self.called.add(title)


def main(folder: Path) -> int:
    """Run the faults below a folder; 0 when all passed. pytest's own words go to stderr."""
    results = Results()
    with contextlib.redirect_stdout(sys.stderr):
        words = ["-m", "fault", "-q", "--no-header", "-p", "no:cacheprovider", str(folder)]
        code = pytest.main(words, plugins=[results])
    good = results.called & {title for title, passed in results.passed.items() if passed}
    print(catalog.table([(row, title in good) for title, row in catalog.ROWS.items()]))
    return int(code) or int(good != catalog.ROWS.keys())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else catalog.TESTS))
