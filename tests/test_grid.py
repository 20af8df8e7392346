"""A grid over a notebook's parameters: refused in one line, or cells named by their runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from papermill.cli import _resolve_type
from sweeping import data_read_once as data_read_once

from sdslib import experiment
from sdslib.checks.notebooks import BaselineConfig, literal
from sdslib.config import FinetuneConfig
from sdslib.io.paths import project_root
from sdslib.io.runs import open_run
from sdslib.io.wording import ParameterError
from sdslib.results import grid
from sdslib.results.grid import check, combine, plan, read_notebook, run_ids

FINETUNE = "notebooks/02_finetune.ipynb"


def names(grid_of, **fixed):
    return plan(check(FINETUNE, [given | fixed for given in grid_of]))


def test_a_grid_is_the_product_of_its_values_with_the_seeds_fastest():
    found = combine({"sds_weight": [0, 1e-3], "trainable": ["bias"]}, 2, {"steps": 2})
    assert found == [
        {"steps": 2, "sds_weight": weight, "trainable": "bias", "seed": seed}
        for weight in (0, 1e-3)
        for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    "text",
    ["0", "07", "0x10", "1_0", "1e-4", "inf", "-inf", "True", "true", "None", "[1]", "'a'", "a"],
)
def test_values_are_read_as_papermill_reads_them(text):
    assert literal(text) == _resolve_type(text)
    assert type(literal(text)) is type(_resolve_type(text))


def test_nan_is_a_number_and_digits_beyond_all_numbers_stay_text():
    assert np.isnan(literal("nan"))
    assert [literal(text) for text in ("12e4567", "-1e999")] == ["12e4567", "-1e999"]


@pytest.mark.parametrize(
    ("axes", "seeds", "fixed", "message"),
    [
        ({}, None, {}, "the grid is empty"),
        ({"sds_weight": []}, None, {}, "--grid sds_weight= has no value"),
        ({"seed": [0]}, 2, {}, "seed stands in --grid and in --seeds"),
        ({"steps": [2]}, None, {"steps": 3}, "steps is given twice"),
    ],
)
def test_an_empty_or_double_grid_is_refused(axes, seeds, fixed, message):
    with pytest.raises(ParameterError, match=message):
        combine(axes, seeds, fixed)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sds_wieght": 0}, "unknown parameter 'sds_wieght'; did you mean 'sds_weight'?"),
        ({"sds_weight": -1}, "sds_weight must be finite and ≥ 0, got -1"),
        ({"run": "mine"}, "run is the sweep's own; use --runs DIR"),
        ({"arm": "sds-only", "sds_weight": 0}, "learns nothing at sds_weight 0"),
    ],
)
def test_a_wrong_cell_is_named_before_anything_is_loaded(given, message):
    with pytest.raises(ParameterError) as error:
        check(FINETUNE, [{}, given, given])
    assert str(error.value).count(message) == 1


def test_no_cells_are_no_grid():
    with pytest.raises(ParameterError, match="the grid is empty"):
        check(FINETUNE, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        ("no json", "is no notebook"),
        ('{"cells": []}', "has no guard cell"),
    ],
)
def test_what_is_no_notebook_of_the_form_is_refused(content, message, tmp_path):
    path = tmp_path / "a.ipynb"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ParameterError, match=message):
        read_notebook(path)


def test_a_misspelt_notebook_is_told_the_nearest():
    with pytest.raises(ParameterError, match=r"did you mean 'notebooks/02_finetune\.ipynb'"):
        check("notebooks/02_finetun.ipynb", [{}])


def test_a_notebook_tells_its_config_and_its_own_defaults(tmp_path):
    assert read_notebook(project_root() / FINETUNE)[0] is FinetuneConfig
    source = [
        {"cell_type": "markdown", "source": "# A"},
        {"cell_type": "code", "source": "steps = 7", "metadata": {"tags": ["parameters"]}},
        {"cell_type": "code", "source": "%load_ext x"},
        {"cell_type": "code", "source": ["config = ", "guard(globals(), 'baseline')"]},
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": source}))
    assert read_notebook(path) == (BaselineConfig, {"steps": 7})


def test_what_the_notebooks_own_cell_says_holds_unless_the_grid_says_otherwise(tmp_path):
    code = [("steps = 7\nlr = None", ["parameters"]), ("guard(globals())", [])]
    source = [
        {"cell_type": "code", "source": text, "metadata": {"tags": tags}} for text, tags in code
    ]
    path = tmp_path / "a.ipynb"
    path.write_text(json.dumps({"cells": source}))
    found = check(path, [{}, {"steps": 3}, {"seed": 1}])
    assert [cell.config.steps for cell in found] == [7, 3, 7]
    assert {cell.config.lr for cell in found} == {FinetuneConfig().lr}


def test_a_cells_pair_is_there_only_once_both_of_its_runs_are_finished(tmp_path):
    config = FinetuneConfig(steps=2, runs=str(tmp_path))
    both = [open_run(c, {}, tmp_path) for c in (config, experiment.control(config))]
    cell = grid.Cell(Path(FINETUNE), {}, config, tuple(run.id for run in both))
    assert cell.pair(tmp_path) is None
    assert cell.unfinished(tmp_path) == set(cell.ids)
    both[1].finish()
    assert cell.pair(tmp_path) is None
    assert cell.unfinished(tmp_path) == {cell.ids[0]}
    both[0].finish()
    assert [run.id for run in cell.pair(tmp_path)] == list(cell.ids)
    assert cell.known_done(tmp_path)
    alone = replace(cell, ids=cell.ids[1:])
    assert [run.id for run in alone.pair(tmp_path)] == [cell.ids[1]] * 2


def test_checking_a_grid_loads_no_torch():
    code = (
        "import sys; from sdslib.results.grid import check;"
        f"check({FINETUNE!r}, [{{'seed': i}} for i in range(9)]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project_root())


def test_cells_that_are_one_run_are_one_cell():
    weights = [*combine({"sds_weight": [0, 1e-3]}), {"arm": "clip-only"}]
    found = names(weights, steps=2)
    assert [cell.count for cell in found] == [2, 1]
    assert found[1].config.sds_weight == 1e-3


def test_every_weight_of_a_seed_shares_one_control():
    found = names(combine({"sds_weight": [1e-3, 1e-2]}, 2), steps=2)
    controls = [cell.ids[1] for cell in found]
    assert controls[0] == controls[2] != controls[1]
    own = names([{"arm": "clip-only", "seed": 0}], steps=2)
    assert own[0].ids == (controls[0],)


def test_data_that_do_not_allow_the_parameters_are_told_in_one_line():
    with pytest.raises(ParameterError, match="999999 pairs asked for, but mini has"):
        run_ids([FinetuneConfig(train_pairs=999_999)])


def test_a_notebook_whose_runs_it_alone_can_name_is_found_by_its_parameters(tmp_path):
    (cell,) = plan(check("notebooks/00_miniworld.ipynb", [{"draws": 8}], str(tmp_path)))
    assert cell.ids == ()
    assert cell.unfinished(tmp_path) == {cell.key}
    with open_run(cell.config, {"data": "its own"}) as run:
        run.finish()
    assert not cell.unfinished(tmp_path)
    assert cell.runs(tmp_path)[0].path == Path(run.path)
    assert not cell.known_done(tmp_path)
