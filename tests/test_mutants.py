"""The tool that puts mistakes in: what it tells of one that is noticed, one that is not, and its
own table."""

from dataclasses import replace

import mutants
import pytest
from mutants import MISSED, Mutant

SOURCE = "def double(x):\n    return 2 * x\n\n\ndef triple(x):\n    return 3 * x\n"
TEST = """\
import pytest
from sdslib.room import double

def test_doubling_adds_a_number_to_itself():
    assert double(3) == 3 + 3

@pytest.mark.slow
def test_that_would_notice_and_takes_long():
    from sdslib.room import triple
    assert triple(1) == 3
"""
RIGHT = Mutant("room: doubles wrongly", "room", "2 * x", "4 * x", ("tests/test_room.py",), "own")


@pytest.fixture
def tree(tmp_path):
    for name, text in (("sdslib/room.py", SOURCE), ("tests/test_room.py", TEST)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: takes long\n")
    return tmp_path


def test_a_mistake_is_told_with_the_fast_test_that_noticed_it_or_as_missed(tree):
    missed = replace(RIGHT, old="3 * x", new="4 * x")
    test = "tests/test_room.py::test_doubling_adds_a_number_to_itself"
    assert mutants.noticed(RIGHT, tree) == test
    assert mutants.noticed(missed, tree) == MISSED
    assert (tree / "sdslib" / "room.py").read_text() == SOURCE
    with pytest.raises(RuntimeError, match="no test ran"):
        mutants.noticed(replace(RIGHT, tests=("tests/test_other.py",)), tree)
    assert (tree / "sdslib" / "room.py").read_text() == SOURCE


def test_a_test_without_an_end_has_noticed_too(tree, monkeypatch):
    monkeypatch.setattr(mutants, "TIMEOUT_S", 0.01)
    assert mutants.noticed(RIGHT, tree) == "(no end within 0.01 s)"
    assert (tree / "sdslib" / "room.py").read_text() == SOURCE


@pytest.mark.parametrize(("old", "count"), [("return", 2), ("gone", 0)])
def test_a_fragment_that_does_not_stand_there_once_is_named(tree, old, count):
    with pytest.raises(LookupError, match=f"doubles wrongly: its fragment occurs {count} times"):
        mutants.noticed(replace(RIGHT, old=old), tree)


def test_the_table_names_each_mistake_once_with_tests_that_are_there():
    found = mutants.load()
    assert all(mutant.old != mutant.new for mutant in found)
    root = mutants.project_root()
    assert {
        path for mutant in found for path in mutant.tests if not (root / path).is_file()
    } == set()
    assert {
        mutant.room for mutant in found if not mutants.source_of(mutant.room, root).is_file()
    } == set()


def test_a_room_that_is_not_in_the_table_is_told_the_nearest():
    with pytest.raises(SystemExit, match="did you mean room 'tables'"):
        mutants.main(["--room", "tabels"])
