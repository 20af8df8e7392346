"""The demo: `questions` and their answers as a page, and as panels where somebody can use them.

The same view is a saved notebook's static twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from sdslib.checks.notebooks import DemoConfig
from sdslib.config import UNTOUCHED
from sdslib.experiment import pick_device
from sdslib.io.run import Run
from sdslib.io.sources import DataError
from sdslib.lab import baseline
from sdslib.miniworld import composing
from sdslib.results import answers
from sdslib.results.settings import made_by
from sdslib.sets.roles import load_set
from sdslib.show import failure_study, figures, page, questions
from sdslib.show.explain import Remembering
from sdslib.show.panels import BatchPanel, CaptionPanel, PairPanel
from sdslib.show.questions import OWN, Demo
from sdslib.show.run_picker import RunPicker
from sdslib.show.style import Picture
from sdslib.show.views import html, pair_html
from sdslib.student import load_student


def load(config: DemoConfig) -> Demo:
    """The untouched student, the students of the runs that `runs` names or of the newest ones, and
    the benchmark if it is at hand; raises what the loaders raise, and ParameterError."""
    baseline.use_threads(config)
    chosen = failure_study.chosen(config)
    told = {name: made_by(run) for name, run in chosen.items()}
    students = students_of(config, chosen)
    try:
        return Demo(config, students, load_set(config.benchmark), passports=told)
    except DataError as reason:
        return Demo(config, students, None, str(reason), told)


def students_of(config: DemoConfig, chosen: Mapping[str, Run]) -> dict[str, Remembering]:
    """The students of these runs by what they are called, those that they began with before them.

    Without a run it is the one that the parameters name.
    """
    device = pick_device(config.device)
    begun = [(run.params["clip_model"], run.params["clip_pretrained"]) for run in chosen.values()]
    starts = dict.fromkeys(begun or [(config.clip_model, config.clip_pretrained)])
    sources = {f"{UNTOUCHED} {n}".removesuffix(" 1"): s for n, s in enumerate(starts, 1)}
    sources |= {name: (f"local-dir:{run.weights}", None) for name, run in chosen.items()}
    return {name: Remembering(load_student(*s, device)) for name, s in sources.items()}


def pick(demo: Demo) -> Any:
    """Which runs' students are asked: a list to mark them in, or what a saved notebook may say."""
    rest = len(failure_study.offered(demo.config)) - len(demo.passports)
    more = f"{rest} more finished runs of this student and set can be named with runs." * (rest > 0)
    said = " ".join(filter(None, (failure_study.left_out(demo.config), more)))
    static = page.render("message", role="status", said=said or "No other run is there.")
    return page.live_or_saved(lambda: run_picker(demo).view, lambda: static)


def run_picker(demo: Demo) -> RunPicker:
    """The list of runs; those that are marked are asked from the next question on."""

    def take(runs: list[Run]) -> None:
        chosen = failure_study.called(runs)
        told = {name: made_by(run) for name, run in chosen.items()}
        demo.take(students_of(demo.config, chosen), told)

    return RunPicker(failure_study.offered(demo.config), demo.passports.values(), take)


# --- what the notebook shows ---------------------------------------------------------------------


def pictures(demo: Demo) -> Picture:
    """The pair of images to begin with, each above the caption that belongs to it."""
    item = questions.start_pair(demo)
    note = composing.WORLD if item.id == OWN else f"{demo.config.label}, item {item.id}"
    images = [ref.load() for ref in item.images]
    return figures.pictures(images, item.captions, 2, note, "Same words, other scene")


def captions(demo: Demo) -> Any:
    """One picture and any captions: live where somebody sits at the notebook, else as a page."""
    answer = demo.first
    return page.live_or_saved(lambda: CaptionPanel(demo, answer), lambda: html(answer))


def told(demo: Demo) -> answers.Sentence:
    """The question that the parameters ask, answered in words."""
    return answers.captions(demo.first.scores, demo.first.words)


def many(demo: Demo) -> Any:
    """A folder or a CSV of pictures: live where somebody sits at the notebook."""
    way = "Live, a folder or a CSV is scored here; from a shell, by: sdsclip score FOLDER"
    saved = page.render("message", role="note", said=way)
    return page.live_or_saved(lambda: BatchPanel(demo), lambda: saved)


def winoground(demo: Demo) -> Any:
    """Two pictures and two captions: live where somebody sits at the notebook, else as a page."""
    pair, teacher = questions.start_pair(demo), demo.config.ask_teacher
    shown = partial(pair_html, demo, pair, teacher)
    return page.live_or_saved(lambda: PairPanel(demo, pair), shown)
