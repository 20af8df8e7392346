"""Every row of docs/faults.md has a test, and a fault that is not told as promised shows."""

import os
import re
import subprocess
import sys

import pytest

from faults import catalog
from faults.catalog import DOCUMENT, ROWS, TESTS, Fault, each, fault, rows, table


def test_every_row_has_a_test_and_every_number_a_row():
    marked = [path.read_text("utf-8") for path in sorted(TESTS.rglob("test_*.py"))]
    marked = "\n".join(text for text in marked if "from faults.catalog import" in text)
    assert [title for title in ROWS if marked.count(f'"{title}"') != 1] == []
    assert {row.number for row in ROWS.values()} >= set(range(1, 55))
    assert len(ROWS) == len(re.findall(r"^\| \d", DOCUMENT.read_text("utf-8"), re.MULTILINE))


def test_a_message_that_was_not_said_fails_the_test(monkeypatch):
    monkeypatch.setattr(catalog, "ROWS", rows("| 1 | a title | `file … is cut; get it again` |"))

    @fault("a title")
    def said(text):
        return text

    said("error: file x.bin is\ncut; get it again")
    with pytest.raises(AssertionError, match=r"expected: file … is cut"):
        said("file x.bin is cut")
    with pytest.raises(AssertionError, match="does not return what was said"):
        said(None)
    with pytest.raises(LookupError, match="has no row 'another'; add it"):
        each({"another": 1})


def test_bars_and_ticks_in_a_message_do_not_break_the_table():
    assert rows(r"| 3 | a | ``say `x` \| `y``` |") == {"a": Fault(3, "a", "say `x` | `y`")}


def test_the_last_line_counts_what_passed():
    text = table([(Fault(1, "one", "a"), True), (Fault(2, "two", "b"), False)])
    assert text.splitlines()[1].endswith("| yes")
    assert text.splitlines()[-1] == "1 passed, 1 failed"


def test_the_command_runs_every_marked_test_and_fails_with_one_of_them(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\nfrom faults import catalog\nfrom faults.catalog import each, fault\n\n"
        "catalog.ROWS = catalog.rows('| 1 | one | `a` |\\n| 2 | two | `b` |\\n| 3 | no | `c` |')\n"
        "@each({'one': 'a'})\ndef test_one(given):\n    return given\n\n"
        "@fault('two')\n@pytest.mark.parametrize('x', ['b', 'c'])\n"
        "def test_two(x):\n    return x\n\ndef test_unmarked():\n    assert False\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "faults", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-5:] == [
        " 1 one | a       | yes",
        " 2 two | b       | NO",
        " 3 no  | c       | NO",
        "",
        "1 passed, 2 failed",
    ]
    assert done.returncode == 1
