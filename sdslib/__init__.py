"""SDS-CLIP: fine-tune CLIP with `L_CLIP + sds_weight * L_SDS`, a frozen diffusion model as teacher.

The method stands at the top of this folder and reads from top to bottom:

    config      every knob once, its presets, and which of them go together
    losses      what the student is taught: tensors in, one value per pair out
    student     CLIP behind `encode_images`, `encode_texts` and `scale`; what trains is data
    teacher     the diffusion model, frozen, behind `embed_texts`, `encode_images`, `predict_noise`
    bridge      the linear map from CLIP's embedding to the teacher's latent, and its start
    pairs       image-caption pairs and the order in which they are seen
    benchmarks  items with images, captions and answer, whatever set they are from
    train       the objective and the loop
    evaluate    scorers and score grids
    metrics     which items are right, with intervals and paired tests
    tables      scores in, tables out
    experiment  one fine-tuning, from loading to its scores

Everything else is in a wing, whose own page says what is inside. From the ground up, where each
may import what stands before it and nothing behind:

    io          disk, network and other processes
    checks      what is refused before anything heavy is loaded
    teachers    the families of teachers beyond Stable Diffusion 1 and 2
    scorers     scores of images with captions beside CLIP's cosine
    arms        what stands in the place of L_SDS, or beside L_CLIP
    sets        the sets beside Winoground, and which of them a run needs
    miniworld   the embedded default: a drawn world and two small models
    results     many runs together: sweeps, controls, ablations, published studies
    lab         studies of models as they are, and what a run needs and would cost
    show        figures, atlas, demo, report, model card
    commands    `sdsclip`: notebooks and studies as verbs of one command line

What a notebook or a script needs is offered here by name, as `from sdslib import finetune`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "config": "FinetuneConfig preset",
    "io.wording": "ParameterError",
    "checks.guard": "guard validate override",
    "student": "load_student",
    "teacher": "load_teacher",
    "bridge": "Bridge load_bridge ridge_start",
    "pairs": "load_pairs",
    "benchmarks": "load_benchmark",
    "train": "Loop Models",
    "evaluate": "clip_scorer score_grids",
    "scorers.diffusion": "diffusion_scorer",
    "tables": "tabulate",
    "arms.trainable": "set_trainable",
    "experiment": "finetune score",
    "results.comparison": "compare",
    "io.runs": "find_run list_runs open_run",
}
_OFFERED = {name: room for room, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"sdslib offers no {name!r}; it offers {', '.join(sorted(_OFFERED))}")
    return getattr(import_module(f"sdslib.{_OFFERED[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})
