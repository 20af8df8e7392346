"""What a run's models are, by the content of their files."""

from __future__ import annotations

import hashlib

from sdslib.checks.student_files import fingerprints as student_files
from sdslib.checks.teacher_files import fingerprints as teacher_files
from sdslib.config import ARMS, FinetuneConfig, ModelsConfig
from sdslib.io.model_files import WeightsError


def has_teacher(config: ModelsConfig) -> bool:
    """Whether the arm, where there is one, needs a teacher at all."""
    return not isinstance(config, FinetuneConfig) or ARMS[config.arm].sds is not None


def weights_fingerprints(config: ModelsConfig, needed: bool = False) -> dict[str, str]:
    """Hashes of the files that loading reads, so that other weights are not taken for the old.

    Of contents, not of a commit: a folder and the same files from the Hub have one hash, and a
    commit that touches a README makes no new run. What is out of reach is left out, unless it is
    `needed`: then WeightsError says why, before a run is opened.
    """
    asked = {"student": lambda: student_files(config.clip_model, config.clip_pretrained)}
    if has_teacher(config):
        place = (config.teacher, config.teacher_revision, config.variant)
        asked["teacher"] = lambda: teacher_files(*place)
    found = {}
    for name, files in asked.items():
        try:
            lines = [f"{file} {digest}" for file, digest in sorted(files().items())]
        except WeightsError:
            if needed:
                raise
            continue
        if lines:
            found[name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return found
