"""Where models see the words of an item: maps as a figure, where pictures and weights are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdslib.benchmarks import Item
from sdslib.checks import student_files, teacher_files
from sdslib.checks.captions import shortened
from sdslib.config import UNTOUCHED, ModelsConfig
from sdslib.experiment import pick_device
from sdslib.io.paths import without_places
from sdslib.io.run import Run
from sdslib.lab import relevance
from sdslib.lab.baseline import TEACHER
from sdslib.show import item_figures
from sdslib.show.style import Picture
from sdslib.student import Student, load_student
from sdslib.teacher import Teacher, load_teacher


@dataclass(frozen=True)
class AtHand:
    """Students and teacher by name, and of those that are not here a sentence that says why."""

    students: Mapping[str, Student]
    teachers: Mapping[str, Teacher]
    absent: tuple[str, ...]


def at_hand(
    config: ModelsConfig, runs: Mapping[str, Run], teacher: bool, device: str = "auto"
) -> AtHand:
    """The student that runs began with, theirs, and the teacher; nothing is fetched for it."""
    begun: dict[str, tuple[str, str | None]] = {
        UNTOUCHED: (config.clip_model, config.clip_pretrained)
    }
    sources = begun | {name: (f"local-dir:{run.weights}", None) for name, run in runs.items()}
    gone = {n: "its run kept no weights" for n, run in runs.items() if not run.weights.is_dir()}
    asked = {name: source for name, source in sources.items() if name not in gone}
    gone |= {n: _lost(s[0]) for n, s in asked.items() if student_files.weights_problem(*s)}
    place, where = (config.teacher, config.teacher_revision), pick_device(device)
    if teacher and teacher_files.weights_problem(*place, config.variant):
        gone[TEACHER] = _lost(config.teacher)
    students = {n: load_student(*s, where) for n, s in asked.items() if n not in gone}
    teacher = teacher and TEACHER not in gone
    teachers = {TEACHER: load_teacher(*place, where, variant=config.variant)} if teacher else {}
    absent = tuple(f"No map of {name}: {why}." for name, why in gone.items())
    return AtHand(students, teachers, absent)


def _lost(source: str) -> str:
    return f"the weights of {without_places(source)} are not here, or not whole"


def maps(models: AtHand, item: Item, place: int = 0, seed: int = 0) -> relevance.Maps:
    """Of an item's first image and the caption at this place."""
    asked = item.images[0].load(), item.captions[place]
    return relevance.maps(models.students, *asked, models.teachers, seed)


def figure(found: relevance.Maps, item: Item, note: str = "") -> Picture | None:
    """The maps as a figure, see `item_figures.relevance`; None where no student has some."""
    told = f"item {item.id}: {shortened(' '.join(found.names[1:]), 60)}"
    shown = {*found.by_model} - {TEACHER}
    return item_figures.relevance(found, f"{note}, {told}".strip(", ")) if shown else None
