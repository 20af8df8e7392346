"""A small data world of photographs in the real sets' own formats, without a drawn scene.

Committed: `photographs/` (30 JPEGs under names as COCO's, 8 PNG and WebP; README.md says whose they
are) and `captions.json` (five captions a photograph). `make` writes out of them, with `sets`, COCO
and Karpathy captions, Winoground in both layouts, ARO, COCO-Order with its frozen negatives,
SugarCrepe and class folders, and, with `models`, a tiny CLIP and a tiny Stable Diffusion of random
weights, both with CLIP's own tokenizer of 49,408 entries.
"""

from dataclasses import dataclass
from pathlib import Path

from realworld import models, sets


@dataclass(frozen=True)
class World:
    """Where everything stands, each as the notebooks' parameters take it."""

    root: Path
    train_data: str
    val_data: str
    many_pairs: str
    karpathy: str
    winoground: str
    winoground_jsonl: str
    aro_relation: str
    aro_attribution: str
    coco_order: str
    sugarcrepe: str
    zeroshot: str
    clip_model: str
    teacher: str

    @property
    def models(self) -> dict[str, str]:
        """The two parameters that name the models."""
        return {"clip_model": self.clip_model, "teacher": self.teacher}


def make(root: Path) -> World:
    """Write all sets and both models below `root`, some 20 MB in two seconds."""
    root = Path(root).resolve()
    coco = sets.coco(root / "coco")
    folder = {
        "winoground": sets.winoground_parquet(root / "winoground"),
        "winoground_jsonl": sets.winoground_jsonl(root / "winoground-files"),
        "aro": sets.aro(root / "aro"),
        "coco_order": sets.coco_order(coco),
        "sugarcrepe": sets.sugarcrepe(root / "sugarcrepe"),
        "zeroshot": sets.class_folders(root / "zeroshot"),
    }
    return World(
        root=root,
        train_data=f"{coco}/annotations/captions_train2017.json::{coco}/train2017",
        val_data=f"{coco}/annotations/captions_val2017.json::{coco}/val2017",
        many_pairs=str(sets.coco_crops(root / "coco-crops")),
        karpathy=f"{sets.karpathy(coco)}::{coco}",
        winoground=f"winoground:{folder['winoground']}",
        winoground_jsonl=f"winoground:{folder['winoground_jsonl']}",
        aro_relation=f"aro-relation:{folder['aro']}",
        aro_attribution=f"aro-attribution:{folder['aro']}",
        coco_order=f"coco-order:{folder['coco_order']}",
        sugarcrepe=f"sugarcrepe:{folder['sugarcrepe']}",
        zeroshot=f"zeroshot:{folder['zeroshot']}",
        clip_model=f"local-dir:{models.student(root / 'ViT-S-16-tiny')}",
        teacher=str(models.teacher(root / "stable-diffusion-tiny")),
    )
