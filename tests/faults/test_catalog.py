"""The table of faults is what the tests say, and a fault that is not told as promised shows."""

import os
import subprocess
import sys

import pytest

from faults.catalog import DOCUMENT, TESTS, Fault, document, fault, faults, table


def test_the_committed_table_is_what_the_tests_say():
    assert DOCUMENT.read_text("utf-8") == document(faults()), "run make faults"


def test_all_faults_have_a_test():
    found = faults()
    assert {row.number for row in found} >= set(range(1, 55))
    assert len({(row.number, row.title) for row in found}) == len(found)


def test_a_message_that_was_not_said_fails_the_test():
    @fault(1, "a title", "file … is cut; get it again")
    def said(text):
        return text

    said("error: file x.bin is cut; get it again")
    with pytest.raises(AssertionError, match=r"expected: file … is cut"):
        said("file x.bin is cut")
    with pytest.raises(AssertionError, match="does not return what was said"):
        said(None)


def test_bars_and_ticks_in_a_message_do_not_break_the_table():
    line = document([Fault(3, "a | b", "say `x`\nor y")]).splitlines()[-1]
    assert line == r"| 3 | a \| b | ``say `x` or y`` |"


def test_the_last_line_counts_what_passed():
    text = table([(Fault(2, "two", "b"), False), (Fault(1, "one", "a"), True)])
    assert text.splitlines()[1].endswith("| yes")
    assert text.splitlines()[-1] == "1 passed, 1 failed"


def test_the_command_runs_every_marked_test_and_fails_with_one_of_them(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\nfrom faults.catalog import fault\n\n"
        "@fault(1, 'one', 'a')\ndef test_one():\n    return 'a'\n\n"
        "@fault(2, 'two', 'b')\n@pytest.mark.parametrize('x', ['b', 'c'])\n"
        "def test_two(x):\n    return x\n\ndef test_unmarked():\n    assert False\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "faults", str(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-4:] == [
        " 1 one | a       | yes",
        " 2 two | b       | NO",
        "",
        "1 passed, 1 failed",
    ]
    assert done.returncode == 1
