"""The real architectures at full size, with random weights: they fit, and every route works."""

import json
import shutil
import subprocess
import sys

import pytest

from sdslib.checks.models import SHAPES

LIMIT = 12e9  # bytes, of the whole process at its peak
STEPS = """if True:
    import json, resource, sys
    from dataclasses import asdict
    import torch
    from sdslib.lab import dry_run
    from sdslib.config import FinetuneConfig
    from sdslib.train import Loop

    torch.set_num_threads(2)
    told = {}
    settings = FinetuneConfig(clip_model="ViT-B-16-quickgelu", clip_pretrained="openai",
                              teacher=sys.argv[1], checkpointing=True, batch_size=1, steps=1,
                              eval_every=0)
    models = dry_run.stand_ins(settings, torch.device("cpu"))
    counts = dry_run.parameters(models)
    for route in ("through", "residual"):
        config = settings.model_copy(update={"sds_gradient": route})
        before = [p.detach().clone() for p in models.trained]
        loop = Loop(config, models, dry_run.Pictures(1))
        calls = []
        first = models.teacher.unet.down_blocks[0].resnets[0]
        hook = first.register_forward_pre_hook(lambda *_: calls.append(1))
        step = next(iter(loop))
        hook.remove()
        moved = sum(not torch.equal(a, b) for a, b in zip(before, models.trained))
        told[route] = asdict(step) | {"moved": moved, "unet": len(calls)}
        for a, b in zip(before, models.trained):
            b.data.copy_(a)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "counts": counts, "latent": models.teacher.latent_shape}
                     | told))
"""


@pytest.mark.slow
def test_a_step_of_each_route_at_full_size_stays_within_twelve_gigabytes(tmp_path):
    folder = tmp_path / "sd-1.4-at-256"
    shutil.copytree(SHAPES / "stable-diffusion-v1-4", folder)
    unet = folder / "unet" / "config.json"
    unet.write_text(json.dumps(json.loads(unet.read_text()) | {"sample_size": 32}))
    done = subprocess.run([sys.executable, "-c", STEPS, str(folder)], capture_output=True,
                          text=True, timeout=1000)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["counts"]["UNet"] == 859_520_964
    assert told["counts"]["student"] == 149_620_737
    assert told["latent"] == [4, 32, 32]
    assert told["peak"] <= LIMIT, f"{told['peak'] / 1e9:.1f} GB"
    through, residual = told["through"], told["residual"]
    assert through["sds"] > 0
    assert residual["grad_norm"] > 0
    assert through["grad_norm"] > 0
    assert through["moved"] > 0
    assert residual["moved"] > 0
    # The weights are put back, the bridge took one step of 1e-3/15 between the two.
    assert residual["eps_error"] == pytest.approx(through["eps_error"], rel=0.1)
    # Checkpointed: computed once, and again for each of the two gradients (ratio and step).
    assert through["unet"] == 3
    assert residual["unet"] == 1
