"""What accelerate's trackers are told: where to write, and that nothing leaves this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple


class Tracker(NamedTuple):
    """How a run is begun with it, how it is installed, what it reads from the environment, and how
    that of it is closed which would outlive a run."""

    options: Callable[[Path, int], dict[str, Any]]
    install: str
    settings: Callable[[Path], dict[str, str]] = lambda folder: {}
    close: Callable[[], None] = lambda: None


def _of_wandb(folder: Path, done: int) -> dict[str, Any]:
    quiet = (
        *("disable_git", "disable_code", "x_disable_meta", "x_disable_stats"),
        "x_disable_machine_info",
    )
    return {
        "mode": os.environ.get("WANDB_MODE", "offline"),
        "dir": str(_made(folder)),
        "group": folder.name,
        "name": _name(folder, done),
        "reinit": "finish_previous",
        "settings": dict.fromkeys(quiet, True) | {"console": "off"},
    }


def _of_mlflow(folder: Path, done: int) -> dict[str, Any]:
    about = {"group": folder.name, "mlflow.source.name": __package__, "mlflow.user": ""}
    return {"run_name": _name(folder, done), "tags": about}


def _of_trackio(folder: Path, done: int) -> dict[str, Any]:
    alone = dict.fromkeys(("auto_log_cpu", "auto_log_gpu", "embed"), False)
    return {"name": _name(folder, done), "group": folder.name} | alone


def _close_wandb() -> None:
    import wandb

    wandb.teardown()  # its own process


def _close_trackio() -> None:
    import trackio

    with suppress(RuntimeError):  # in a process that began none
        trackio.finish()


def _made(folder: Path) -> Path:
    place = folder / "tracker"
    place.mkdir(parents=True, exist_ok=True)
    return place


def _name(folder: Path, done: int) -> str:
    return f"{folder.name} from step {done + 1}"


_PINNED = "pip install -c constraints.txt"
TRACKERS = {
    "tensorboard": Tracker(lambda _, done: {"purge_step": done + 1}, f"{_PINNED} tensorboard"),
    "wandb": Tracker(
        _of_wandb,
        f"{_PINNED} wandb",
        lambda folder: {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"},
        _close_wandb,
    ),
    "mlflow": Tracker(
        _of_mlflow,
        f"{_PINNED} mlflow-skinny",
        lambda folder: {
            "MLFLOW_TRACKING_URI": _made(folder).as_uri(),
            "MLFLOW_ALLOW_FILE_STORE": "true",  # from 3.17 on refused without
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
    ),
    # It wants a Pillow below 13, whose resizing has other last bits, and works with ours; and it
    # looks once a process where to write, so that the runs of a folder share its file.
    "trackio": Tracker(
        _of_trackio,
        f"{_PINNED} --no-deps trackio gradio-client orjson brotli uvicorn starlette "
        "python-multipart",
        lambda folder: {"TRACKIO_DIR": str(folder.parent / "trackio")},
        _close_trackio,
    ),
}


@contextmanager
def begun(accelerator: Any, name: str | None, folder: Path | None, done: int) -> Iterator[None]:
    """Log to the tracker for the run in `folder`, of which `done` steps are behind it.

    TensorBoard drops what an interrupted run logged past its checkpoint. The others cannot: a run
    that goes on is a further one of its group there. WANDB_MODE, MLFLOW_TRACKING_URI and
    TRACKIO_SPACE_ID send a run elsewhere; else it stays here, and says nothing of machine and user.
    """
    if name is None or folder is None:
        yield
        return
    tracker = TRACKERS[name]
    with _set(tracker.settings(folder)):
        with _alone(name):
            options = {name: tracker.options(folder, done)}
            accelerator.init_trackers("tracker", init_kwargs=options)
        try:
            yield
        finally:
            with _alone(name):
                # `end_training` would also take the process group away that scoring still needs
                for logged in accelerator.trackers:
                    logged.finish()
                    tracker.close()


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """trackio asks the Hub whose token there is, and tells of an upload where there is none."""
    if name != "trackio" or os.environ.get("TRACKIO_SPACE_ID"):
        yield
        return
    from sdslib.io.hub import unasked

    with unasked(), redirect_stdout(StringIO()):
        yield


@contextmanager
def _set(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables that are there meanwhile; those that were set before stay."""
    new = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)
