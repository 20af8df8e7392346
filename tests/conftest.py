"""Tests reach no network, open no window and stay on a bounded number of threads."""

import functools
import ipaddress
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

# Before anything imports torch, matplotlib or a library of the Hub.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MPLBACKEND="Agg",
    TOKENIZERS_PARALLELISM="false",
    SDS_CACHE="off",  # what one test computes is no other's
)
for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

# Examples are the same on every machine, and a busy machine fails nothing.
hypothesis.settings.register_profile("workbench", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("workbench")


class NetworkBlocked(OSError):
    """A test tried to leave this machine."""


def _is_local(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(name).split("%")[0]).is_loopback
    except ValueError:
        return False


def _refuse(host: object) -> None:
    raise NetworkBlocked(f"tests use no network, but something asked for {host!r}")


def _guarded(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(self: socket.socket, *args: object) -> object:
        address = args[-1]
        if self.family != socket.AF_UNIX and not _is_local(address[0]):
            _refuse(address[0])
        return method(self, *args)

    return call


def _guarded_lookup(host: object, *args: object, **kwargs: object) -> object:
    if not _is_local(host):
        _refuse(host)
    return _LOOKUP(host, *args, **kwargs)


_LOOKUP = socket.getaddrinfo


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", _guarded_lookup)
        yield


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The parameters that name a tiny student and a tiny teacher, into which nobody writes."""
    import tiny

    root = tmp_path_factory.mktemp("models")
    student = f"local-dir:{tiny.save_student(root / 'student')}"
    return {"clip_model": student, "teacher": str(tiny.save_teacher(root / "teacher"))}


@pytest.fixture(scope="module")
def student(tiny_models: dict[str, str]) -> Any:
    """The tiny student; a test leaves it as it found it."""
    from sdslib.student import load_student

    return load_student(tiny_models["clip_model"], None)


@pytest.fixture(scope="module")
def teacher(tiny_models: dict[str, str]) -> Any:
    """The tiny teacher, in full precision."""
    from sdslib.teacher import load_teacher

    return load_teacher(tiny_models["teacher"])


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The world of `realworld`, into which nobody writes."""
    import realworld

    return realworld.make(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def drawn() -> None:
    """The mini-world's files, which whoever comes first draws."""
    from sdslib.miniworld import files

    files.ensure_world()


@pytest.fixture
def chromium() -> Iterator[Any]:
    """A browser; where there is none the test is skipped, and failed in continuous integration."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None and os.environ.get("CI"):
        pytest.fail("chromium is not installed; `apt-get install chromium`")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """One Ray at a time; and what needs a GPU is left out, as deselected, where there is none."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]
