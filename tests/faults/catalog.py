"""A fault is a test that returns what the user was told; its decorator holds the words to that.

`docs/faults.md` is read off the decorators, without importing the tests.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "faults.md"
HEAD = """# What can go wrong

Every row is a test: `make faults` runs them all and prints this table with its results. `…` stands
for what differs from case to case. A message says what is wrong, where, and what to do; parameters
are refused before a model is loaded, data and weights before the first step.
"""


class Fault(NamedTuple):
    """One row of the table."""

    number: int
    title: str
    message: str


def fault(number: int, title: str, message: str) -> Callable[[Callable], Callable]:
    """Mark a test that returns what was said, and fail it if that does not hold `message`.

    `…` in the message stands for any text. Several rows may share a number.
    """
    expected = re.compile(".*?".join(re.escape(part) for part in message.split("…")), re.DOTALL)

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def checked(*args: object, **kwargs: object) -> None:
            said = test(*args, **kwargs)
            assert said is not None, f"{test.__name__} does not return what was said"
            assert expected.search(str(said)), f"expected: {message}\n    said: {said}"

        return pytest.mark.fault(number, title, message)(checked)

    return decorate


def faults(folder: Path = TESTS) -> list[Fault]:
    """All faults that the tests below the folder are decorated with, by number."""
    found = [row for path in sorted(folder.rglob("test_*.py")) for row in _of_file(path)]
    return sorted(found, key=lambda row: row.number)


def _of_file(path: Path) -> Iterator[Fault]:
    text = path.read_text("utf-8")
    if "@fault(" not in text:
        return
    for node in ast.parse(text).body:
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "fault":
                yield Fault(*(ast.literal_eval(argument) for argument in call.args))


def document(rows: list[Fault]) -> str:
    """`docs/faults.md`, as the tests have it."""
    lines = ["| # | fault | what is said |", "|--:|---|---|"]
    lines += [f"| {row.number} | {_cell(row.title)} | {_code(row.message)} |" for row in rows]
    return HEAD + "\n" + "\n".join(lines) + "\n"


def _code(text: str) -> str:
    ticks = "``" if "`" in text else "`"
    return f"{ticks}{_cell(text)}{ticks}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def table(results: list[tuple[Fault, bool]]) -> str:
    """`fault | message | passed`, and how many passed as the last line."""
    results = sorted(results, key=lambda row: row[0].number)
    rows = [("fault", "message", "passed")]
    rows += [
        (f"{f.number:>2} {f.title}", " ".join(f.message.split()), "yes" if ok else "NO")
        for f, ok in results
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{a:<{widths[0]}} | {b:<{widths[1]}} | {c}" for a, b, c in rows]
    passed = sum(ok for _, ok in results)
    return "\n".join([*lines, "", f"{passed} passed, {len(results) - passed} failed"])
