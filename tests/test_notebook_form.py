"""Every notebook has the same form: question, parameters, guard, then sentences and short cells."""

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.inspection import inspect_notebook

from sdslib.checks import notebooks
from sdslib.checks.notebooks import SELDOM
from sdslib.results.grid import read_notebook

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 12
FORBIDDEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.While, ast.Try, ast.Lambda)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_parameters(cell) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def lines_of_code(cell) -> int:
    lines = (line.strip() for line in cell.source.splitlines())
    return sum(bool(line) and not line.startswith("#") for line in lines)


def is_literal(statement: ast.stmt) -> bool:
    """`name = literal`, the only thing that papermill can inject over."""
    match statement:
        case ast.Assign(targets=[ast.Name()], value=value) | ast.AnnAssign(value=value):
            try:
                ast.literal_eval(value)
            except (ValueError, TypeError):
                return False
            return True
    return False


def calls_guard(statement: ast.stmt) -> bool:
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) in ("guard", "config.guard") for call in calls)


def before_guard(cell) -> list[ast.stmt] | None:
    """The statements of a cell ahead of its call of `guard`; None if it has none."""
    body = ast.parse(cell.source).body
    return next((body[:i] for i, s in enumerate(body) if calls_guard(s)), None)


def imports_config_alone(statement: ast.stmt) -> bool:
    match statement:
        case ast.ImportFrom(module="sdslib.config" | "sdslib.checks.guard", level=0):
            return True
        case ast.ImportFrom(module="sdslib", names=[ast.alias(name="config" | "guard")]):
            return True
    return False


def first_cell(notebook) -> list[str]:
    cell = notebook.cells[0]
    if cell.cell_type != "markdown" or not cell.source.startswith("# "):
        return ["does not begin with a markdown title"]
    missing = [word for word in ("Reads", "Writes", "Takes") if f"*{word}*" not in cell.source]
    return [f"first cell does not say *{word}*" for word in missing]


def parameters_cell(notebook) -> list[str]:
    tagged = [i for i, cell in enumerate(code_cells(notebook)) if is_parameters(cell)]
    if tagged != [0]:
        return [f"the first code cell alone is tagged parameters, found {tagged}"]
    body = ast.parse(code_cells(notebook)[0].source).body
    return [
        f"parameter is no literal: {ast.unparse(statement)}"
        for statement in body
        if not is_literal(statement)
    ]


def guard_cell(notebook) -> list[str]:
    """The guard stands right after the parameters: papermill puts its own cell between the two."""
    first = next((i for i, cell in enumerate(notebook.cells) if is_parameters(cell)), None)
    if first is None or first + 1 == len(notebook.cells):
        return ["no guard cell after the parameters"]
    cell = notebook.cells[first + 1]
    ahead = before_guard(cell) if cell.cell_type == "code" else None
    if ahead is None:
        return ["the cell after the parameters does not call guard"]
    return [
        f"runs before the guard: {ast.unparse(s)}" for s in ahead if not imports_config_alone(s)
    ]


def clean_source(notebook) -> list[str]:
    found = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("kernelspec is not python3")
    if {"papermill", "widgets"} & notebook.metadata.keys():
        found.append("metadata of an execution")
    for i, cell in enumerate(code_cells(notebook)):
        if cell.outputs or cell.execution_count is not None:
            found.append(f"code cell {i} carries outputs")
        if {"papermill", "execution"} & cell.metadata.keys():
            found.append(f"code cell {i} carries metadata of an execution")
    return found


def thin_cells(notebook) -> list[str]:
    found = []
    for i, cell in enumerate(code_cells(notebook)):
        if lines_of_code(cell) > LONGEST_CELL and not is_parameters(cell):
            found.append(f"code cell {i} has more than {LONGEST_CELL} lines")
        tree = ast.parse(cell.source)
        kinds = {type(node).__name__ for node in ast.walk(tree) if isinstance(node, FORBIDDEN)}
        found += [f"code cell {i} holds a {kind}, which belongs into sdslib" for kind in kinds]
    return found


def told_cells(notebook) -> list[str]:
    """After the guard a sentence introduces one cell, or a computation and its picture."""
    kinds = [cell.cell_type[0] for cell in notebook.cells]
    start = kinds.index("c") + 2 if "c" in kinds else 0
    story = "".join(kinds[start:])
    if story.startswith("c"):
        return ["the first cell after the guard has no sentence before it"]
    return ["more than two code cells follow one sentence"] if "ccc" in story else []


def ends_with_the_answer(notebook) -> list[str]:
    told, last = notebook.cells[-2:]
    if last.cell_type != "code" or not told.source.startswith("The answer"):
        return ["the last cell is no answer with a sentence before it that says so"]
    return []


def settings_in_force(notebook) -> list[str]:
    first = next((i for i, cell in enumerate(notebook.cells) if is_parameters(cell)), None)
    after = notebook.cells[first + 2 : first + 4] if first is not None else []
    shown = any("in_force(config, globals())" in cell.source for cell in after)
    return [] if shown else ["no table of the settings in force after the guard"]


RULES: list[Callable] = [
    ends_with_the_answer,
    settings_in_force,
    first_cell,
    parameters_cell,
    guard_cell,
    clean_source,
    thin_cells,
    told_cells,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_keeps_the_form(path, rule):
    assert not rule(nbformat.read(path, as_version=4))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_as_it_lies_on_disk(path):
    nbformat.validate(json.loads(path.read_text(encoding="utf-8")))


def run_up_to_the_guard(notebook) -> str:
    """The parameters and the guard cell as a program that tells whether torch came along."""
    first = next(i for i, cell in enumerate(notebook.cells) if is_parameters(cell))
    statements = ast.parse(notebook.cells[first + 1].source).body
    last = len(before_guard(notebook.cells[first + 1])) + 1
    guard = "\n".join(ast.unparse(s) for s in statements[:last])
    return f"{notebook.cells[first].source}\n{guard}\nimport sys\nassert 'torch' not in sys.modules"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_defaults_pass_its_guard_before_torch_is_loaded(path):
    code = run_up_to_the_guard(nbformat.read(path, as_version=4))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_misspelt_parameter_stops_the_notebook_before_torch_is_loaded(path):
    code = "sede = 1\n" + run_up_to_the_guard(nbformat.read(path, as_version=4))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "invalid parameters: unknown parameter 'sede'; did you mean 'seed'?" in done.stderr


@pytest.fixture
def good():
    notebook = new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            new_markdown_cell("# A question?\n\n*Reads* a.\n*Writes* b.\n*Takes* c."),
            new_code_cell("steps = 3  # how many\nlr = None", metadata={"tags": ["parameters"]}),
            new_code_cell("from sdslib import guard\n\nconfig = guard(globals())"),
            new_markdown_cell("The settings."),
            new_code_cell("formatting.in_force(config, globals())"),
            new_markdown_cell("The answer."),
            new_code_cell("from sdslib import figures"),
        ],
    )
    return deepcopy(notebook)


def test_a_notebook_of_the_form_breaks_no_rule(good):
    assert not [fault for rule in RULES for fault in rule(good)]


def edit(cell: int, source: str) -> Callable:
    return lambda notebook: notebook.cells[cell].update(source=source)


def add(*cells) -> Callable:
    return lambda notebook: notebook.cells.extend(cells)


BROKEN = {
    "no title": (first_cell, edit(0, "A question?")),
    "no Takes": (first_cell, edit(0, "# A question?\n*Reads* a. *Writes* b.")),
    "begins with code": (first_cell, lambda n: n.cells.pop(0)),
    "no parameters": (parameters_cell, lambda n: n.cells[1].metadata.clear()),
    "two parameters": (parameters_cell, lambda n: n.cells[4].metadata.update(tags=["parameters"])),
    "computed parameter": (parameters_cell, edit(1, "steps = 2 * 3 + len('a')")),
    "import among parameters": (parameters_cell, edit(1, "import os")),
    "no guard": (guard_cell, edit(2, "config = globals()")),
    "guard elsewhere": (guard_cell, lambda n: n.cells.insert(2, new_markdown_cell("Text."))),
    "torch before the guard": (guard_cell, edit(2, "import torch\nguard(globals())")),
    "work before the guard": (guard_cell, edit(2, "x = 1\nguard(globals())")),
    "another room's guard": (guard_cell, edit(2, "from sdslib import config, train\nguard({})")),
    "kernel of another name": (clean_source, lambda n: n.metadata.kernelspec.update(name="ir")),
    "execution count": (clean_source, lambda n: n.cells[4].update(execution_count=1)),
    "papermill's metadata": (clean_source, lambda n: n.metadata.update(papermill={})),
    "a long cell": (thin_cells, edit(4, "\n".join(f"x{i} = {i}" for i in range(13)))),
    "a function": (thin_cells, edit(4, "def f():\n    return 1")),
    "a lambda": (thin_cells, edit(4, "sorted([], key=lambda x: x)")),
    "a class": (thin_cells, edit(4, "class A:\n    pass")),
    "a while": (thin_cells, edit(4, "while False:\n    pass")),
    "a try": (thin_cells, edit(4, "try:\n    pass\nfinally:\n    pass")),
    "no sentence": (told_cells, lambda n: n.cells.pop(3)),
    "no answer": (ends_with_the_answer, lambda n: n.cells.pop()),
    "another end": (ends_with_the_answer, add(new_markdown_cell("More."), new_code_cell("1"))),
    "no settings": (settings_in_force, edit(4, "config")),
    "three cells in a row": (told_cells, add(new_code_cell("1"), new_code_cell("2"))),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_break_of_the_form_is_seen(case, good):
    rule, harm = BROKEN[case]
    harm(good)
    assert rule(good)


def test_an_output_is_seen(good):
    good.cells[4].outputs.append(nbformat.v4.new_output("stream", text="3"))
    assert clean_source(good)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_papermills_help_tells_of_every_parameter_its_type_and_range(path):
    cls, defaults = read_notebook(path)
    told = inspect_notebook(path)
    assert list(told) == list(defaults)
    for name, parameter in told.items():
        assert parameter["inferred_type_name"] == notebooks.kind(cls, name)
        limits = notebooks.ranged(notebooks.schema_of(cls, name)).strip()
        assert parameter["help"].startswith(limits.removesuffix(f" and < {2**32}"))  # a seed's bits
        few = notebooks.choices(cls, name)
        missing = [choice for choice in few if choice not in parameter["help"]]
        assert not missing or "..." in parameter["help"]
    seldom = [name in SELDOM for name in told]
    assert seldom == sorted(seldom)  # they stand below the rest
    assert ("# seldom given" in nbformat.read(path, as_version=4).cells[1].source) == any(seldom)
