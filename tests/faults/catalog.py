"""A fault is a row of `docs/faults.md` and a test that returns what the user was told.

Its number, title and words stand in that table alone; the test names it by its title.
"""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "faults.md"


class Fault(NamedTuple):
    """One row of the table."""

    number: int
    title: str
    message: str


def rows(document: str) -> dict[str, Fault]:
    """The rows of the table by title."""
    found = re.findall(r"^\| (\d+) \| (.+?) \| (`+)(.*)\3 \|$", document, re.MULTILINE)
    return {
        title: Fault(int(number), title, message.replace(r"\|", "|"))
        for number, title, _, message in found
    }


ROWS = rows(DOCUMENT.read_text("utf-8"))


def fault(title: str) -> Callable[[Callable], Callable]:
    """Mark a test that returns what was said, and fail it if that does not hold the row's message.

    `…` in the message stands for any text, a space for a new line too.
    """
    message = _message(title)

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def checked(*args: object, **kwargs: object) -> None:
            _hold(message, test(*args, **kwargs))

        return pytest.mark.fault(title)(checked)

    return decorate


def each(
    cases: Mapping[str, object], *others: tuple[object, str]
) -> Callable[[Callable], Callable]:
    """Run a test with an argument `given` for each fault of {title: what is given}.

    Of `others`, which are no rows of the table, each is what is given and what is then said.
    """
    rows = [
        pytest.param((given, _message(title)), marks=pytest.mark.fault(title), id=title)
        for title, given in cases.items()
    ] + [pytest.param(pair, id=pair[1]) for pair in others]

    def decorate(test: Callable) -> Callable:
        @functools.wraps(test)
        def checked(*args: object, given: tuple[object, str], **kwargs: object) -> None:
            _hold(given[1], test(*args, given=given[0], **kwargs))

        return pytest.mark.parametrize("given", rows)(checked)

    return decorate


def refused(
    error: type[Exception] | tuple, call: Callable, *args: object, **kwargs: object
) -> Exception:
    """The error of this kind that the call raises."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    return caught.value


def _message(title: str) -> str:
    if title not in ROWS:
        raise LookupError(f"docs/faults.md has no row {title!r}; add it")
    return ROWS[title].message


def _hold(message: str, said: object) -> None:
    assert said is not None, "the test does not return what was said"
    parts = (re.escape(part).replace(r"\ ", r"\s") for part in message.split("…"))
    found = re.search(".*?".join(parts), str(said), re.DOTALL)
    assert found, f"expected: {message}\n    said: {said}"


def table(results: list[tuple[Fault, bool]]) -> str:
    """`fault | message | passed`, and how many passed as the last line."""
    cells = [("fault", "message", "passed")]
    cells += [(f"{f.number:>2} {f.title}", f.message, "yes" if ok else "NO") for f, ok in results]
    widths = [max(len(row[column]) for row in cells) for column in (0, 1)]
    lines = [f"{a:<{widths[0]}} | {b:<{widths[1]}} | {c}" for a, b, c in cells]
    passed = sum(ok for _, ok in results)
    return "\n".join([*lines, "", f"{passed} passed, {len(results) - passed} failed"])
