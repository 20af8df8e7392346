"""The teacher's error at every timestep for 100 items: what the cheap scores are held against.

`python -m benchmarks.errors` computes it anew, by 400,000 UNet evaluations, into `errors.npz`: the
ids [N], t [D], errors [N, I, K, D] (mean squared, of eps) and the sha256 of the teacher's UNet.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

from sdslib import benchmarks
from sdslib.checks.notebooks import BaselineConfig
from sdslib.io.paths import project_path
from sdslib.io.progress import track
from sdslib.io.storage import file_sha256, write_bytes
from sdslib.miniworld import files
from sdslib.scorers import diffusion
from sdslib.teacher import load_teacher

FILE = Path(__file__).with_name("errors.npz")
ITEMS, STEPS = 100, 1000


def unet_sha256() -> str:
    """The weights that the table belongs to."""
    teacher = project_path(BaselineConfig().teacher)
    return file_sha256(teacher / "unet" / "diffusion_pytorch_model.safetensors")


def items() -> benchmarks.Benchmark:
    """The items of the table, of the test split."""
    return benchmarks.load_benchmark("mini:winoground").sample(ITEMS, 0)


def read() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(t [D], errors [N, I, K, D], ids [N]); ValueError if they are another teacher's."""
    with np.load(FILE, allow_pickle=False) as found:
        if str(found["unet"]) != unet_sha256():
            raise ValueError(f"{FILE.name} is another teacher's; run python -m benchmarks.errors")
        return found["t"], found["errors"].astype(np.float64), found["ids"].tolist()


def main() -> int:
    """Compute the table item by item, one noise a timestep, the same for all."""
    files.ensure_world()
    teacher, found = load_teacher(BaselineConfig().teacher), items()
    draws = diffusion.shared_draws(teacher.latent_shape, STEPS, 1, (0, STEPS - 1), antithetic=False)
    rows = []
    for item in track("items")(found.items):
        scorer = diffusion.diffusion_scorer(teacher, draws, empty=False, batch_size=250)
        table = diffusion.error_table(scorer, [item])
        rows.append(table.pivot_table("error", ["image", "caption"], "draw").to_numpy())
    errors = np.stack(rows).reshape(ITEMS, 2, 2, STEPS).astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, ids=np.array([item.id for item in found.items]), t=draws.t.numpy(), errors=errors,
        unet=np.array(unet_sha256()),
    )  # fmt: skip
    write_bytes(FILE, buffer.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main())
