"""The house keeps its floors: who may import whom, and which room is the door to which library.

The floors are read from the docstring of `sdslib`, the imports from the syntax trees of the rooms.
Imports under `if TYPE_CHECKING:` do not run and do not count.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sdslib

HOUSE = Path(sdslib.__file__).parent
makers_of = cache(packages_distributions)
ROOMS = sorted(
    p.relative_to(HOUSE).with_suffix("").as_posix().replace("/", ".")
    for p in HOUSE.rglob("*.py")
    if p.stem != "__init__"
)
WINGS = sorted(p.parent.name for p in HOUSE.glob("*/__init__.py"))

# Library -> the rooms that may import it. `minimodels` builds models, so it knows their makers.
DOORS = {
    "open_clip": {"student", "minimodels"},
    "peft": {"student"},
    "diffusers": {"teacher", "minimodels"},
    "transformers": {"teacher", "minimodels", "miniworld"},
    "tokenizers": {"miniworld"},
    "datasets": {"sources", "hub"},
    "huggingface_hub": {"hub", "modelcard"},
    "httpx2": {"sources", "hub", "modelcard"},
    "fpdf": {"document"},
    "nltk": {"blind"},
    "accelerate": {"train"},
    "statsmodels": {"metrics", "failures"},
    "scipy": {"metrics", "tables", "evaluate"},
    "matplotlib": {"figures"},
    "seaborn": {"figures"},
    "ipywidgets": {"demo", "atlas"},
    "papermill": {"sweep"},
    "ray": {"sweep"},
    "pydantic": {"config", "sources", "pairs", "benchmarks", "shuffles", "overlap"},
    "spacy": {"shuffles"},
    "safetensors": {"checks", "runs", "bridge", "student", "minimodels"},
}
# Installed by whoever needs it, as its language model is; the room says so when it is missing.
OPTIONAL = {"spacy"}
LIGHT = ["config", "runs", "metrics", "images", "sources", "storage", "miniworld", "figures"]


def floors(doc: str) -> dict[str, float]:
    """Room -> floor, as the map in the package's docstring has it."""
    found: dict[str, float] = {}
    for line in doc.splitlines():
        if heading := re.match(r"floor ([\d.]+), ", line):
            floor = float(heading[1])
        elif room := re.match(r" {4}(\w+) {2,}\S", line):
            found[room[1]] = floor
    return found


def _is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, at any depth; `from a import b` gives `a` and `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if _is_type_checking(node):
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["sdslib" if node.level else "", node.module]))
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            if isinstance(node, ast.Call) and _imports_by_name(node):
                yield ast.literal_eval(node.args[0])
            yield from imports(node)


def _imports_by_name(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    constant = bool(call.args) and isinstance(call.args[0], ast.Constant)
    return constant and name in ("import_module", "__import__", "LazyImport")


def tree(room: str) -> ast.Module:
    return ast.parse((HOUSE / f"{room}.py").read_text())


def neighbors(module: ast.Module) -> set[str]:
    parts = (name.split(".") for name in imports(module))
    return {p[1] for p in parts if p[0] == "sdslib" and len(p) > 1 and p[1] in ROOMS}


def libraries(module: ast.Module) -> set[str]:
    names = {name.split(".")[0] for name in imports(module)}
    return names - set(sys.stdlib_module_names) - {"sdslib"}


def too_high(room: str, module: ast.Module, floor: dict[str, float]) -> set[str]:
    return {other for other in neighbors(module) if floor.get(other, 99) >= floor.get(room, 99)}


def wrong_doors(room: str, module: ast.Module) -> set[str]:
    return {name for name in libraries(module) if room not in DOORS.get(name, {room})}


def test_the_map_names_every_room_and_no_other():
    assert floors(sdslib.__doc__).keys() == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_lower_floors(room):
    assert not too_high(room, tree(room), floors(sdslib.__doc__))


@pytest.mark.parametrize("room", ROOMS)
def test_a_library_is_imported_only_through_its_door(room):
    assert not wrong_doors(room, tree(room))


@pytest.mark.parametrize("room", ROOMS)
def test_every_imported_library_is_a_declared_dependency(room):
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(entry).name) for group in groups for entry in group}
    for library in libraries(tree(room)) - OPTIONAL:
        makers = {canonicalize_name(d) for d in makers_of().get(library, [library])}
        assert makers & declared, f"{room} imports {library}, which pyproject.toml does not name"


def test_light_rooms_do_not_load_torch():
    rooms = [room for room in LIGHT if room in ROOMS]
    code = """if True:
        import importlib, sys
        for room in sys.argv[1:]:
            importlib.import_module(f"sdslib.{room}")
            if "torch" in sys.modules:
                sys.exit(f"{room} loads torch")
    """
    done = subprocess.run([sys.executable, "-c", code, *rooms], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "source",
    [
        "import sdslib.train",
        "from sdslib import train",
        "from sdslib.train import fit",
        "from . import train",
        "from .train import fit",
        "def f():\n    from sdslib import train",
        "try:\n    import sdslib.train\nexcept ImportError:\n    pass",
        "import importlib\nimportlib.import_module('sdslib.train')",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import sdslib.train",
    ],
)
def test_an_import_from_above_is_seen_wherever_it_hides(source):
    assert too_high("losses", ast.parse(source), floors(sdslib.__doc__)) == {"train"}


def test_rooms_of_one_floor_do_not_know_each_other():
    assert too_high("train", ast.parse("import sdslib.evaluate"), floors(sdslib.__doc__))
    assert not too_high("train", ast.parse("import sdslib.losses"), floors(sdslib.__doc__))


def test_an_import_for_types_alone_does_not_count():
    source = "if TYPE_CHECKING:\n    import sdslib.train\n    import open_clip"
    assert not neighbors(ast.parse(source))
    assert not libraries(ast.parse(source))


@pytest.mark.parametrize("library", DOORS)
def test_a_second_door_is_seen(library):
    source = ast.parse(f"def f():\n    from {library}.deep import thing")
    assert wrong_doors("losses", source) == {library}
