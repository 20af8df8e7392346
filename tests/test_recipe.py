"""Equal parameters give equal numbers as long as `config.RECIPE` is the same."""

import json

import golden
import numpy as np
import pytest

from sdslib.config import RECIPE

KEPT = json.loads(golden.KEPT.read_text())
TOLERANCE = 1e-4  # relative; processors differ in the last bits, and a step passes them on
ANEW = "PYTHONPATH=tests python -m golden"


def assert_same(name, kept, found):
    same = np.allclose(np.array(kept), np.array(found), rtol=TOLERANCE, atol=1e-7)
    assert same, (
        f"the numbers of {name!r} are others than recipe {RECIPE} gave: {found}, were {kept}. "
        f"Where that is meant, raise config.RECIPE and write the golden runs anew: {ANEW}"
    )


def test_the_golden_runs_are_of_this_recipe_and_of_every_setting():
    assert KEPT["recipe"] == RECIPE, f"write the golden runs anew: {ANEW}"
    assert KEPT["runs"].keys() == {*golden.SETTINGS, "scores"}


@pytest.mark.parametrize("name", golden.SETTINGS)
def test_a_setting_gives_the_numbers_of_its_recipe(name, tmp_path):
    assert_same(name, KEPT["runs"][name], golden.run(tmp_path, name))


def test_scores_are_those_of_the_recipe(tmp_path):
    found = golden.run(tmp_path, "scores")
    assert found.keys() == KEPT["runs"]["scores"].keys()
    for name, kept in KEPT["runs"]["scores"].items():
        assert_same(name, kept, found[name])
    assert all(np.std(values) > 0 for values in found.values())


def test_a_change_of_the_loss_is_noticed(tmp_path, monkeypatch):
    from sdslib import losses

    real = losses.contrastive_loss
    monkeypatch.setattr(losses, "contrastive_loss", lambda *a: real(*a) * 1.001)
    with pytest.raises(AssertionError, match=r"raise config\.RECIPE"):
        assert_same("sds", KEPT["runs"]["sds"], golden.run(tmp_path, "sds"))
