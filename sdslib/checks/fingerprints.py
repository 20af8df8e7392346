"""What a run's models are, by the content of their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from sdslib.checks.student_files import fingerprints as student_files
from sdslib.checks.teacher_files import fingerprints as teacher_files
from sdslib.config import ARMS, FinetuneConfig, ModelsConfig
from sdslib.io.model_files import WeightsError
from sdslib.io.paths import project_path
from sdslib.io.storage import file_sha256


def has_teacher(config: ModelsConfig) -> bool:
    """Whether the arm, where there is one, needs a teacher at all."""
    return not isinstance(config, FinetuneConfig) or ARMS[config.arm].asks(config.verdicts)


def of_files(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for files by their names and hashes."""
    lines = [f"{file} {digest}" for file, digest in sorted(hashes.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


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
            hashes = files()
        except WeightsError:
            if needed:
                raise
            continue
        if hashes:
            found[name] = of_files(hashes)
    if isinstance(config, FinetuneConfig) and config.verdicts and config.has_verdicts:
        path = project_path(config.verdicts)
        found |= {"verdicts_sha256": file_sha256(path)} if path.is_file() else {}
    return found
