"""The house keeps its order: who may import whom, and which room is the door to which library.

The places (the method at the top of `sdslib`, and its wings) are read from the package's docstring,
the imports from the syntax trees of the rooms. Imports under `if TYPE_CHECKING:` do not run and do
not count.
"""

import ast
import importlib
import itertools
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sdslib
from sdslib import benchmarks

HOUSE = Path(sdslib.__file__).parent
makers_of = cache(packages_distributions)
ROOMS = sorted(
    p.relative_to(HOUSE).with_suffix("").as_posix().replace("/", ".")
    for p in HOUSE.rglob("*.py")
    if p.stem not in ("__init__", "__main__")
)
WINGS = sorted(p.parent.name for p in HOUSE.glob("*/__init__.py"))

# Each place may import what stands before it; at `experiment` the method meets the wings.
ORDER = (
    *("io", "config", "checks", "method", "teachers", "scorers", "arms", "sets", "miniworld"),
    *("experiment", "results", "lab", "show", "commands"),
)
LEVEL = {place: level for level, place in enumerate(ORDER)}

# Library -> the rooms that may import it. The mini-world builds models, so it knows their makers.
DOORS = {
    "open_clip": {"student", "lab.random_models", "checks.student_files", "miniworld.models"},
    "peft": {"student", "arms.trainable"},
    "diffusers": {"teacher", "miniworld.models"},
    "transformers": {
        *("teacher", "lab.random_models", "lab.to_transformers", "miniworld.models"),
        "miniworld.drawing",
    },
    "tokenizers": {"miniworld.drawing"},
    "datasets": {"io.sources", "io.hub"},
    "huggingface_hub": {"io.hub", "show.modelcard"},
    "httpx2": {"io.sources", "io.hub", "show.modelcard"},
    "bs4": {"show.pdf"},
    "fpdf": {"show.pdf"},
    "nltk": {"sets.text_only", "lab.conventions"},
    "textblob": {"arms.phrases"},
    "accelerate": {"train"},
    "statsmodels": {"metrics", "results.statistics", "results.failures"},
    "scipy": {"results.statistics", "tables", "scorers.diffusion", "scorers.sequential"},
    "matplotlib": {"show.style", "show.figures", "show.item_figures"},
    "seaborn": {"show.style", "show.figures", "show.item_figures"},
    "anywidget": {"show.panels"},
    "ipywidgets": {"show.panels", "show.run_picker"},
    "jinja2": {"show.page"},
    "markupsafe": {"show.page"},
    "optuna": {"results.tuning"},
    "papermill": {"results.executors"},
    "ray": {"results.executors"},
    "submitit": {"results.executors"},
    "typer": {"commands.verbs", "commands.program"},
    "pydantic": {
        *("config", "checks.guard", "checks.notebooks", "io.sources", "sets.pair_files"),
        *("sets.shuffles", "sets.overlap", "sets.aro", "sets.sugarcrepe", "sets.winoground"),
        *("sets.grids", "sets.choices", "sets.packaged"),
    },
    "spacy": {"sets.shuffles"},
    "safetensors": {
        "io.model_files",
        "io.run",
        "io.shared",
        "bridge",
        "student",
        "miniworld.recipe",
    },
}
# Installed by whoever needs it, past a pin or with a language model; one is told so without it.
OPTIONAL = {"spacy", "trackio"}
LIGHT = [
    *("config", "metrics", "io.runs", "io.images", "io.sources", "io.storage"),
    *("miniworld.drawing", "miniworld.files", "show.figures", "show.item_figures"),
]


def place(room: str) -> str:
    """The wing of a room; `method` for those at the top, `config` and `experiment` themselves."""
    wing, dot, _ = room.rpartition(".")
    return wing if dot else room if room in LEVEL else "method"


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
    return ast.parse((HOUSE / f"{room.replace('.', '/')}.py").read_text())


def neighbors(module: ast.Module) -> set[str]:
    names = {name.removeprefix("sdslib.") for name in imports(module)}
    return {room for room in ROOMS if room in names}


def libraries(module: ast.Module) -> set[str]:
    names = {name.split(".")[0] for name in imports(module)}
    return names - set(sys.stdlib_module_names) - {"sdslib"}


def too_high(room: str, module: ast.Module) -> set[str]:
    """The rooms of a place further up that the module imports; within a place it may import any."""
    own = LEVEL[place(room)]
    return {other for other in neighbors(module) if LEVEL[place(other)] > own}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Chains of rooms that end where they began."""
    try:
        tuple(TopologicalSorter(edges).static_order())
    except CycleError as error:
        return [error.args[1]]
    return []


def wrong_doors(room: str, module: ast.Module) -> set[str]:
    return {name for name in libraries(module) if room not in DOORS.get(name, {room})}


def test_the_map_names_every_place_and_no_other():
    named = re.findall(r"^ {4}(\w+) {2,}\S", sdslib.__doc__, re.M)
    method = {room for room in ROOMS if "." not in room}
    assert sorted(named) == sorted(method | set(WINGS))
    assert set(WINGS) | {"config", "method", "experiment"} == set(LEVEL)


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_says_what_is_inside_and_who_may_import_it(wing):
    module = importlib.import_module(f"sdslib.{wing}")
    assert "import" in module.__doc__
    inside = {room.rpartition(".")[2] for room in ROOMS if room.startswith(f"{wing}.")}
    named = set(re.findall(r"^ {4}(\w+) {2,}\S", module.__doc__, re.M))
    assert named == inside


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_nothing_from_places_further_up(room):
    assert not too_high(room, tree(room))


def test_no_rooms_import_one_another_in_a_circle():
    assert not circles({room: neighbors(tree(room)) for room in ROOMS})
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def public_names(module: ast.Module) -> Iterator[str]:
    """What a room defines for others: functions, classes and constants."""
    for node in module.body:
        targets = getattr(node, "targets", [getattr(node, "target", ast.Pass())])
        names = [leaf.id for t in targets for leaf in ast.walk(t) if isinstance(leaf, ast.Name)]
        yield from (n for n in (*names, getattr(node, "name", "_")) if not n.startswith("_"))


# Said of two rooms, and imported by itself from one of them: its room tells which one is meant.
TWICE = {
    *("COLORS", "MARGIN", "MODELS", "OWN", "Progress", "RELATIONS", "Row", "SHAPES"),
    *("SMALL", "TRAINABLE", "VALIDATION", "Verdict", "World", "batches", "build"),
    *("cautions", "changes", "check", "check_folder", "digest", "draw", "environment"),
    *("false_captions", "fingerprints", "html", "named", "opened", "outcomes", "paired", "plan"),
    *("read_json", "said", "save", "shown", "winoground"),
}


def test_a_name_that_is_imported_by_itself_has_one_home():
    trees = {room: tree(room) for room in ROOMS}
    homes = Counter(name for module in trees.values() for name in set(public_names(module)))
    alone = {
        name.rpartition(".")[2]
        for module in trees.values()
        for name in imports(module)
        if name.startswith("sdslib.") and name.removeprefix("sdslib.") not in (*ROOMS, *WINGS)
    }
    assert {name for name in alone if homes[name] > 1} == TWICE


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


# Declared and imported by no room, and why: the rest would be weight without use.
UNIMPORTED = {
    "ipykernel": "the kernel that notebooks run in",
    "jupyterlab": "`make lab`",
    "nbconvert": "JupyterLab's own, held above a known fault",
    "torchvision": "open_clip's own, whose version goes with torch's",
}


def test_every_declared_dependency_is_imported_somewhere():
    project = tomllib.loads((HOUSE.parent / "pyproject.toml").read_text())["project"]
    used = set().union(*(libraries(tree(room)) for room in ROOMS))
    makers = {canonicalize_name(d) for name in used for d in makers_of().get(name, [name])}
    declared = {canonicalize_name(Requirement(entry).name) for entry in project["dependencies"]}
    assert declared - makers == set(UNIMPORTED)


def test_what_the_package_offers_is_there_and_costs_nothing_until_it_is_asked_for():
    assert {name for name in sdslib._OFFERED if not hasattr(sdslib, name)} == set()
    assert {"finetune", "guard", "load_student", "score"} <= set(dir(sdslib))
    with pytest.raises(AttributeError, match=r"sdslib offers no 'fine_tune'; it offers .*finetune"):
        sdslib.fine_tune  # noqa: B018
    code = "import sdslib, sys; print({'torch', 'pydantic', 'numpy', 'pandas'} & set(sys.modules))"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_the_method_is_twelve_files_and_none_is_longer_than_five_hundred_lines():
    around = {"__init__", "__main__"}
    assert len({path.stem for path in HOUSE.glob("*.py")} - around) == 12
    lengths = {path: path.read_text().count("\n") for path in HOUSE.rglob("*.py")}
    assert {str(path): n for path, n in lengths.items() if n > 500} == {}


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
    assert too_high("io.runs", ast.parse(source)) == {"train"}


def test_a_wing_does_not_know_the_wings_above_it():
    source = ast.parse("from sdslib.show import figures")
    assert too_high("results.publish", source) == {"show.figures"}
    assert not too_high("show.report", source)
    assert not too_high("show.report", ast.parse("import sdslib.train"))


def test_an_import_for_types_alone_does_not_count():
    source = "if TYPE_CHECKING:\n    import sdslib.train\n    import open_clip"
    assert not neighbors(ast.parse(source))
    assert not libraries(ast.parse(source))


@pytest.mark.parametrize("library", DOORS)
def test_a_second_door_is_seen(library):
    source = ast.parse(f"def f():\n    from {library}.deep import thing")
    assert wrong_doors("losses", source) == {library}


def test_nothing_public_is_there_for_the_tests_alone():
    """A parameter once was in runs' ids, and the function behind it called by its tests alone."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(HOUSE.rglob("*.py"))}
    outside = [*HOUSE.parent.glob("notebooks/*.ipynb"), *HOUSE.parent.glob("benchmarks/*.py")]
    used = set(re.findall(r"\w+", " ".join(path.read_text() for path in outside)))
    used |= {*sdslib._OFFERED, *benchmarks.LOADERS}
    for node in itertools.chain.from_iterable(map(ast.walk, trees.values())):
        match node:
            case ast.ImportFrom(names=names):
                used |= {alias.name for alias in names}
            case ast.Attribute(attr=name):
                used.add(name)
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w.]*:\w+", text):
                used.add(text.rpartition(":")[2])
    for path, tree in trees.items():
        own = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        public = [n.name for n in public if not n.name.startswith("_") and not n.decorator_list]
        assert {*public} - used - own <= {"load_ipython_extension"}, path.name
