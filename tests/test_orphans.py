"""A round of each kill: what `python -m orphans` does twenty times."""

import orphans
import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", sorted(orphans.KINDS))
def test_after_a_kill_nothing_runs_on_and_nothing_is_lost(kind, capsys):
    assert orphans.main(["--rounds", "1", "--only", kind]) == 0
    assert "1 of 1 kills" in capsys.readouterr().out
