"""Equal runs have one id, whatever moved beside them; the code is recorded and names no run."""

import warnings

import pytest
from faults.catalog import each, refused
from saving import DATA, config, opened, saved

from sdslib.config import FinetuneConfig
from sdslib.io import identity, runs, storage
from sdslib.io.history import RunWarning
from sdslib.io.identity import identify
from sdslib.io.runs import RunError, open_run


def test_the_same_parameters_open_the_same_run_under_any_name(tmp_path):
    first = saved(tmp_path)
    assert first.name == f"mini-sds-{first.id}"
    assert opened(tmp_path, run="other", device="cpu", num_workers=2).path == first.path
    assert opened(tmp_path, seed=1).id != first.id
    assert open_run(config(), DATA | {"pairs": "changed"}, tmp_path).id != first.id


def test_the_control_of_two_sds_runs_is_one_run_whatever_the_teacher(tmp_path):
    one = open_run(config(sds_weight=0.0, t_min=50), DATA | {"teacher": "x"}, tmp_path)
    two = opened(tmp_path, arm="clip-only", sds_gradient="residual")
    assert one.path == two.path
    assert one.name.startswith("mini-clip-only-")


@each(
    {
        "run's name taken by other parameters": ({"clip_model": "local-dir:other"}, "aa", 1),
        "going on with other parameters, data or recipe": ({"lr": 0.5}, "zz", 0),
    }
)
def test_a_name_that_is_taken_tells_what_differs(tmp_path, given):
    changes, pairs, recipe = given
    first = open_run(config(run="mine"), {"pairs": "aa"}, tmp_path)
    first.keep("identity.json", storage.json_bytes(first.identity | {"recipe": recipe}))
    return refused(RunError, open_run, config(run="mine", **changes), {"pairs": pairs}, tmp_path)


def test_two_presets_with_equal_values_are_one_run():
    plain = config().model_dump() | {"preset": "paper"}
    assert identify(FinetuneConfig(**plain), DATA)["id"] == identify(config(), DATA)["id"]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A library of one's own, whose code `digest` writes and hashes."""
    monkeypatch.setattr(identity, "project_root", lambda: tmp_path)

    def digest(text, name="train.py"):
        path = tmp_path / "sdslib" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        identity.code_hash.cache_clear()
        return identity.code_hash()

    yield digest
    identity.code_hash.cache_clear()


def test_the_codes_hash_follows_the_code_and_not_its_comments_or_docstrings(house):
    form = "{0}class A:\n    {0}\n    X = 1\n    def f(self):\n        {0}\n        return 'a'\n"
    bare = house(form.format("").replace("        \n", "").replace("    \n", ""))
    assert house(form.format('"""Docs."""\n').replace("\n\n", "\n")) == bare
    assert house(form.format("# why\n")) == bare
    assert house(form.format("").replace("'a'", "'b'")) != bare  # a text that is returned counts


def test_the_codes_hash_leaves_out_what_reads_a_finished_run(house):
    assert house("X = 1\n", "io/a.py") != house("X = 2\n", "io/a.py")
    assert house("X = 1\n", "show/a.py") == house("X = 2\n", "show/a.py")


def test_the_id_follows_the_recipe_and_not_the_code(monkeypatch):
    before = identify(config(), DATA)["id"]
    monkeypatch.setattr(identity, "code_hash", lambda: "another")
    assert identify(config(), DATA)["id"] == before
    monkeypatch.setattr(FinetuneConfig, "recipe", FinetuneConfig.recipe + 1)
    assert identify(config(), DATA)["id"] != before


def test_a_run_of_another_code_is_given_back_with_a_remark(tmp_path, monkeypatch):
    opened(tmp_path).finish()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(tmp_path)
    monkeypatch.setattr(runs, "code_hash", lambda: "another")
    with pytest.warns(
        RunWarning,
        match="another state of the code, under the same recipe.*to train it again, remove",
    ):
        assert opened(tmp_path).finished
