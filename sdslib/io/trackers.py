"""What accelerate's trackers are told: a run's folder, and that nothing leaves this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def options(name: str, folder: Path, done: int) -> dict[str, Any]:
    """How the tracker is begun for the run in `folder`, of which `done` steps are behind it.

    TensorBoard drops what an interrupted run logged past its checkpoint. wandb cannot: a run that
    goes on is a further one of its group there. It stays offline unless WANDB_MODE says otherwise
    (`wandb sync` sends it), and says nothing of machine, user, code and commit.
    """
    if name == "tensorboard":
        return {"purge_step": done + 1}
    place = folder / "tracker"
    place.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    quiet = (
        "disable_git",
        "disable_code",
        "x_disable_meta",
        "x_disable_stats",
        "x_disable_machine_info",
    )
    return {
        "mode": os.environ.get("WANDB_MODE", "offline"),
        "dir": str(place),
        "group": folder.name,
        "name": f"{folder.name} from step {done + 1}",
        "reinit": "finish_previous",
        "settings": dict.fromkeys(quiet, True) | {"console": "off"},
    }


def end(trackers: Iterable[Any]) -> None:
    """Close what accelerate began, and wandb's own process, which would outlive the run.

    `Accelerator.end_training` would also take the process group away that scoring still needs.
    """
    for tracker in trackers:
        tracker.finish()
        if tracker.name == "wandb":
            import wandb

            wandb.teardown()
