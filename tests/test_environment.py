"""One list of dependencies, told three times: ranges, exact versions, conda's list."""

import json
import re
import socket
import sys
import tomllib
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
import yaml
from jupyter_client.manager import KernelManager
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import sdslib
from sdslib.io.trackers import TRACKERS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUNTIME = [Requirement(d) for d in PROJECT["dependencies"]]
DECLARED = RUNTIME + [Requirement(d) for extra in EXTRAS.values() for d in extra]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
PINS = {canonicalize_name(name): version for name, version in PINS.items()}

locked = pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11),
    reason="constraints.txt is resolved for Python 3.11 on Linux",
)


def conda_pip_section() -> list[str]:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    return next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))


def required_by(names: list[str]) -> set[str]:
    """Everything that the named distributions pull in on this machine, themselves included."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(r.name), e) for r in map(Requirement, names) for e in
               ("", *r.extras)]  # fmt: skip
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for r in map(Requirement, distribution(name).requires or []):
            if r.marker is None or r.marker.evaluate({"extra": extra}):
                waiting += [(canonicalize_name(r.name), e) for e in ("", *r.extras)]
    return {name for name, _ in seen}


def test_conda_installs_what_the_project_declares():
    listed = [entry for entry in conda_pip_section() if not entry.startswith("--")]
    assert listed == PROJECT["dependencies"]


def test_conda_pins_as_pip_does_and_installs_the_library():
    options = [entry for entry in conda_pip_section() if entry.startswith("--")]
    assert options == ["--constraint constraints.txt", "--editable ."]


def test_dependencies_are_declared_once_and_in_order():
    names = [requirement.name.lower() for requirement in RUNTIME]
    assert names == sorted(set(names))


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda r: r.name)
def test_the_pin_lies_in_the_declared_range(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_the_installed_version_lies_in_the_declared_range(requirement):
    assert requirement.specifier.contains(distribution(requirement.name).version)


@locked
def test_every_package_that_comes_along_is_pinned():
    unpinned = required_by(PROJECT["dependencies"] + EXTRAS["dev"]) - PINS.keys()
    assert not unpinned, f"run make lock; not in constraints.txt: {sorted(unpinned)}"


@locked
def test_every_pinned_version_installs_on_the_oldest_python_that_the_project_admits():
    oldest = PROJECT["requires-python"].removeprefix(">=") + ".0"
    asked = {d.name: SpecifierSet(d.metadata["Requires-Python"] or "") for d in distributions()}
    assert [name for name, python in asked.items() if oldest not in python] == []


@pytest.mark.parametrize("name", ["constraints.txt", "environment.yml", "pyproject.toml"])
def test_versions_name_no_host_and_no_path(name):
    text = (ROOT / name).read_text()
    assert not re.search(
        r"://| @ |\bfile:|--(extra-)?index-url|--find-links|/(home|root|opt)/", text
    )


def test_what_the_slow_tests_install_past_a_pin_is_what_the_guard_says():
    make = (ROOT / "Makefile").read_text()
    words = TRACKERS["trackio"].install.removeprefix("pip install ").split()
    assert f"pip install -q {' '.join(words)}\n" in make
    assert {canonicalize_name(name) for name in words[words.index("--no-deps") + 1 :]} <= set(PINS)


def test_the_kernel_python3_is_the_python_that_runs_the_tests():
    manager = KernelManager(kernel_name="python3")
    assert Path(manager.kernel_spec.resource_dir).is_relative_to(sys.prefix)
    assert manager.format_kernel_cmd()[0] == sys.executable


def test_every_way_to_install_brings_the_settings_of_kernels():
    """conda, Binder and Colab too: all of them install the project itself with pip."""
    config = Path("etc/ipython/ipython_kernel_config.py")
    # several: what was built leaves one, without files
    ours = [d for d in distributions() if d.name == PROJECT["name"]]
    owned = {file.locate().resolve() for d in ours for file in d.files or []}
    assert (Path(sys.prefix) / config).resolve() in owned
    assert (sys.prefix / config).read_text() == (ROOT / "etc" / config.name).read_text()


def test_the_library_is_installed_from_this_checkout():
    assert PROJECT["name"] in {d.name for d in distributions()}
    assert Path(sdslib.__file__).parent == ROOT / "sdslib"


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0)])
def test_a_socket_cannot_leave_this_machine(address):
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    with (
        socket.socket(family, socket.SOCK_STREAM) as s,
        pytest.raises(OSError, match="tests use no network"),
    ):
        s.connect(address)


def test_a_host_name_cannot_be_looked_up():
    with pytest.raises(OSError, match="tests use no network"):
        socket.create_connection(("example.org", 443), timeout=1)


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


CONTAINER = ROOT / ".devcontainer"


def instructions() -> list[str]:
    """The Dockerfile's instructions, comments left out and broken lines joined."""
    text = re.sub(r"(?m)^#.*\n", "", (CONTAINER / "Dockerfile").read_text())
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def test_the_image_is_a_slim_python_of_the_pinned_version_and_sets_up_as_a_person_does():
    found = instructions()
    images = [line.split()[1] for line in found if line.startswith("FROM ")]
    assert images == ["python:3.11-slim", "tools"]
    assert "RUN make setup" in found
    assert any("install" in line and " make" in line for line in found)
    order = [next(n for n, line in enumerate(found) if line.startswith(word)) for word in
             ("FROM tools", "COPY . .", "RUN make setup", "CMD ")]  # fmt: skip
    assert order == sorted(order)
    assert "//" not in " ".join(found)


def test_the_image_starts_what_setup_installs():
    command = json.loads(next(line for line in instructions() if line.startswith("CMD "))[4:])
    assert command[:2] == [".venv/bin/jupyter", "lab"]
    assert (ROOT / command[2].removeprefix("--notebook-dir=")).is_dir()
    assert not any("token" in word or "password" in word for word in command)


def test_the_image_leaves_out_what_is_ignored_and_keeps_what_setup_reads():
    left_out = (CONTAINER / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", "reports/runs", "data/mini/world"} <= set(left_out)
    kept = {"pyproject.toml", "constraints.txt", "Makefile", "README.md", "sdslib", "notebooks"}
    assert not kept & set(left_out)


def test_the_development_container_is_the_same_image_before_setup():
    container = json.loads((CONTAINER / "devcontainer.json").read_text())
    build = container["build"]
    assert (CONTAINER / build["dockerfile"]).is_file()
    assert (CONTAINER / build["context"]).resolve() == ROOT.resolve()
    assert f"FROM python:3.11-slim AS {build['target']}" in instructions()
    assert container["postCreateCommand"] == "make setup"


def test_binder_builds_from_the_list_for_conda_and_nothing_stands_before_it():
    before = ("Dockerfile", "binder", ".binder", "environment.yaml", "runtime.txt", "postBuild")
    assert not [name for name in before if (ROOT / name).exists()]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["dependencies"][0] == "python=3.11"
    for option, name in (entry.split() for entry in conda_pip_section() if entry.startswith("--")):
        assert option in ("--constraint", "--editable")  # both make Binder copy the project first
        assert (ROOT / name).exists()
