"""The demo: `questions` and their answers as a page, and as panels where somebody can use them.

The same view is a saved notebook's static twin.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd

from sdslib.benchmarks import Item
from sdslib.checks.captions import shortened
from sdslib.checks.notebooks import DemoConfig
from sdslib.config import UNTOUCHED, is_mini
from sdslib.experiment import pick_device
from sdslib.io.images import ENDINGS, ImageRef
from sdslib.io.run import Run
from sdslib.io.sources import DataError
from sdslib.lab import baseline
from sdslib.lab.baseline import TEACHER
from sdslib.miniworld import composing
from sdslib.results import answers
from sdslib.results.settings import made_by
from sdslib.sets.roles import load_set
from sdslib.show import atlas, failure_study, figures, page, questions
from sdslib.show.controls import Keys, Upload
from sdslib.show.explain import Remembering
from sdslib.show.questions import OWN, Answer, Demo, Question, QuestionError
from sdslib.show.run_picker import RunPicker
from sdslib.show.style import Picture
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

    there = failure_study.offered(demo.config)
    shown = [run for run in there.values() if made_by(run) in demo.passports.values()]
    return RunPicker(there, shown, take)


# --- the view ------------------------------------------------------------------------------------


def html(answer: Answer) -> str:
    """An answer as one piece of HTML that refers to nothing outside it; see `page`."""
    models = _bars(answer.scores).groupby("model", sort=False)
    orders = [table.assign(model=model) for model, table in answer.harder.items()]
    rows = pd.concat(orders).sort_values("caption", kind="stable") if orders else pd.DataFrame()
    return page.render(
        "demo",
        answer=answer,
        captions=[shortened(caption) for caption in answer.question.captions],
        picture=answer.question.ref.load(),
        seen=answer.seen,
        about=answer.question.about,
        scores={model: part.to_dict("records") for model, part in models},
        orders=list(rows.itertuples()),
        beaten=sum(row.lead < 0 for row in rows.itertuples()),
        teacher=TEACHER,
    )


def _bars(scores: pd.DataFrame) -> pd.DataFrame:
    """With `left`, `width` and `near` in percent of each margin's bar, whose middle is zero.

    `near` is how far to both sides the margin decides nothing.
    """
    known = scores[["margin", "noise", "far"]].abs().replace(np.inf, np.nan)
    reach = known.max(axis=1).groupby(scores["model"]).transform("max")
    # square roots, or a caption that is far behind would hide what is close
    share = scores[["margin", "noise"]].abs().div(reach.where(reach > 0, 1), axis=0).clip(upper=1)
    margin, near = (50 * np.sqrt(share[name].fillna(0)) for name in share)
    return scores.assign(left=50 - margin * (scores["margin"] < 0), width=margin, near=near)


def compare(demo: Demo, item: Item, teacher: bool = False, notes: Sequence[str] = ()) -> str:
    """Two images and two captions as HTML: every model's grid, and which inequality holds."""
    card = atlas.card(demo.grids(item, teacher), str(item.id))
    return page.render("demo_pair", card=card, notes=notes)


def message(reason: object) -> str:
    """A sentence about what went wrong, for the reader's eyes and for a screen reader."""
    said = str(reason) or f"it ended with {type(reason).__name__}"
    return page.render("message", role="alert", said=said)


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


def winoground(demo: Demo) -> Any:
    """Two pictures and two captions: live where somebody sits at the notebook, else as a page."""
    pair, teacher = questions.start_pair(demo), demo.config.ask_teacher
    shown = partial(compare, demo, pair, teacher)
    return page.live_or_saved(lambda: PairPanel(demo, pair), shown)


# --- the live twin -------------------------------------------------------------------------------


class Picker:
    """Controls that pick one picture: a composed scene, a file, an item of the benchmark.

    `title` is put before every label, so that two pickers can be told apart without seeing where
    they stand. `given` is a picture to begin with that none of them made. `view` is the widget;
    `changed` is called without arguments when the picture may have changed.
    """

    def __init__(
        self,
        demo: Demo,
        changed: Callable[[], object],
        title: str = "",
        scene: composing.Words = composing.START,
        given: Question | None = None,
    ) -> None:
        self.demo, self.changed, self.given, self._quiet = demo, changed, given, False
        self._file: ImageRef | None = None
        sources = [("as the parameters say", "given")] if given else []
        sources += [(f"a {composing.SCENE}", "scene"), ("a file", "file")]
        sources += [(f"an item of {demo.benchmark.name}", "item")] if demo.benchmark else []
        self.source = _dropdown(f"{title}picture", sources, sources[0][1], "24em")
        self.scene = {
            name: _dropdown(title + name, options, scene[name], "15em")
            for name, options in composing.CHOICES.items()
        }
        variant = {"value": scene["variant"], "min": 0, "max": 9999}
        self.scene["variant"] = _labelled(w.BoundedIntText, f"{title}variant", "10em", **variant)
        kinds = ",".join(sorted(ENDINGS))
        self.upload = Upload(f"{title}choose a file", kinds, self._take)
        self.item = _text(f"{title}item", "0", "14em")
        self.image = _dropdown(f"{title}image of the item", [("0", 0), ("1", 1)], 0, "16em")
        parts = list(self.scene.values())
        rows = (parts[:3], [parts[3], parts[-1]], parts[4:7])  # a thing, the relation, a thing
        self.boxes = {
            "given": w.Box(),
            "scene": w.VBox([_row(*row) for row in rows]),
            "file": w.HBox([self.upload]),
            "item": w.HBox([self.item, self.image]),
        }
        self.preview = w.HTML()
        for control in (self.source, *self.scene.values(), self.item, self.image):
            control.observe(lambda _: self._picked(), "value")
        controls = w.VBox([self.source, *self.boxes.values()], layout=w.Layout(flex="1"))
        self.view = w.HBox([self.preview, controls])
        self.show()

    def read(self) -> Question:
        """The picture, what it is in words, and captions to suggest for it, none for a file.

        Raises QuestionError where none is picked, ImageError where it cannot be opened.
        """
        source = self.source.value
        if source == "scene":
            return questions.scene({name: control.value for name, control in self.scene.items()})
        if source == "item":
            item = self.demo.item(self.item.value.strip())
            return questions.image_of(item, self.image.value, is_mini(self.demo.config.benchmark))
        if source == "given" and self.given:
            return replace(self.given, captions=())
        if self._file is None:
            raise QuestionError("there is no picture yet: choose a picture file")
        return Question(self._file, (), self._file.name)

    def put_item(self, key: str, number: int) -> None:
        """Pick an image of an item, without a call of `changed`."""
        self._quiet = True
        self.source.value, self.item.value, self.image.value = "item", key, number
        self._quiet = False
        self.show()

    def show(self) -> None:
        """The controls of the chosen source, and the picture or why there is none."""
        for name, box in self.boxes.items():
            box.layout.display = None if name == self.source.value else "none"
        self.preview.value = ""
        try:
            asked = self.read()
            self.preview.value = page.render(
                "preview", picture=asked.ref.load(), about=asked.about, seen=self.demo.seen(asked)
            )
        except Exception as reason:
            self.preview.value = message(reason)

    def _take(self, name: str, data: bytes) -> None:
        """Open what was uploaded; a file that is no picture leaves none, and says why."""
        self._file, self.preview.value = None, ""
        try:
            self._file = questions.upload_ref(name, data)
        except Exception as reason:
            self.preview.value = message(reason)
            self.changed()
        else:
            self._picked()

    def _picked(self) -> None:
        if not self._quiet:
            self.show()
            self.changed()


Start = Callable[[Callable[[], None]], object]


def _aside(job: Callable[[], None]) -> None:
    """Do it in a thread of its own, so that controls answer meanwhile."""
    threading.Thread(target=job, daemon=True).start()


class Panel:
    """What both panels have: models, whether the teacher is asked, a message and a result.

    `start` has a job done, by default aside; one that is started ends the one before it.
    """

    def __init__(self, demo: Demo, label: str, start: Start = _aside) -> None:
        self.demo, self.message, self.result, self._start = demo, w.HTML(), w.HTML(), start
        apart = w.Layout(width="auto", margin="2px 2px 2px 1em")
        asked = demo.config.ask_teacher
        self.teacher = w.Checkbox(description=label, value=asked, indent=False, layout=apart)
        self.style = w.HTML(page.render("demo_style"))
        self.cancel = w.Button(description="cancel", tooltip="stop scoring", disabled=True)
        self._stop = threading.Event()
        self.cancel.on_click(lambda _: self._stop.set())

    def work(self, answers: Iterator[str]) -> None:
        """Show one result after the other until all are there or nobody waits any more."""
        self._stop.set()
        self._stop = threading.Event()
        loads = self.teacher.value and "teacher" not in vars(self.demo)
        said = "loading the teacher and its mean errors, once …" if loads else "scoring …"
        self.result.value, self.message.value = "", page.render("message", role="status", said=said)
        self.cancel.disabled = False
        self._start(partial(self._work, answers, self._stop))

    def _work(self, answers: Iterator[str], stop: threading.Event) -> None:
        said = ""
        try:
            with questions.cancelled_by(stop):
                for shown in answers:
                    if stop is not self._stop:
                        return
                    self.result.value = shown
        except Exception as reason:
            said = message(reason)
        if stop is self._stop:
            if said:  # an old result would be taken for the new question's
                self.result.value = ""
            self.message.value, self.cancel.disabled = said, True
            self.ended()

    def ended(self) -> None:
        """Called when the last job is over."""

    def refuse(self, reason: Exception) -> None:
        """Say why there is no answer; an old one would be taken for the new question's."""
        self._stop.set()
        self.result.value, self.message.value = "", message(reason)


class CaptionPanel(Panel):
    """One picture, captions typed one a line, and what every model says of them.

    `view` is the widget; `score` is what the button and Ctrl+Enter do. The same question is scored
    once, however often the button is pressed; the answer to another one is greyed.
    """

    def __init__(self, demo: Demo, answer: Answer, start: Start = _aside) -> None:
        asked, config = answer.question, demo.config
        super().__init__(demo, f"ask the teacher too ({config.draws} draws)", start)
        given = config.image is not None or questions.beginning(demo) is not None
        self.picker = Picker(demo, self.look, given=asked if given else None)
        text: dict[str, Any] = {"value": "\n".join(asked.captions), "rows": 4}
        text["placeholder"] = "a red circle left of a blue square"
        self.captions = _labelled(w.Textarea, "captions, one a line", **text)
        self.suggest = w.Button(description="suggest captions", tooltip="captions of this picture")
        self.button = w.Button(description="score", button_style="primary", tooltip="Ctrl+Enter")
        self.stale = w.HTML()
        self.result.value = html(answer)
        self._asked = self._key(asked, config.ask_teacher)
        self.suggest.on_click(lambda _: self._suggest())
        self.button.on_click(lambda _: self.score())
        for control in (self.captions, self.teacher, self.result):
            control.observe(lambda _: self.look(), "value")
        demo.watchers.append(self.look)
        row = _row(self.button, self.cancel, self.suggest, self.teacher, Keys(self.score))
        parts = [self.style, self.picker.view, self.captions, row, self.message, self.stale]
        self.view = w.VBox([*parts, self.result]).add_class("demo-panel")

    def question(self) -> Question:
        """What the controls ask; QuestionError, ImageError where that is nothing."""
        found = self.picker.read()
        return replace(found, captions=questions.lines(self.captions.value))

    def score(self) -> None:
        """Answer what the controls ask, scores first; what cannot be asked gets a message."""
        try:
            question, teacher = self.question(), self.teacher.value
        except Exception as reason:
            self.refuse(reason)
            return
        asked = self._key(question, teacher)
        if asked == self._asked and (self.result.value or self.button.disabled):
            return
        self._asked, self.button.disabled = asked, True
        self.work(self._answers(question, teacher))

    def _answers(self, question: Question, teacher: bool) -> Iterator[str]:
        answer = self.demo.ask(question, teacher)
        yield html(answer)
        yield html(self.demo.explained(answer))

    def ended(self) -> None:
        """The button can be pressed again."""
        self.button.disabled = False

    def look(self) -> None:
        """Grey an answer that no longer belongs to the question, and say so."""
        try:
            same = self._key(self.question(), self.teacher.value) == self._asked
        except Exception:
            same = False
        stale = bool(self.result.value) and not same
        self.result.remove_class("stale")
        if stale:
            self.result.add_class("stale")
        said = "The answer below is to an earlier question: press score (Ctrl+Enter)."
        self.stale.value = page.render("message", role="note", said=said) if stale else ""

    def _key(self, asked: Question, teacher: bool) -> tuple:
        """What makes two questions the same: picture, captions, and who is asked."""
        return asked.ref.key, asked.captions, teacher, tuple(self.demo.passports.values())

    def _suggest(self) -> None:
        try:
            own = self.picker.read().captions
            if not own:
                raise QuestionError("a file brings no captions: write one a line")
            self.captions.value = "\n".join(own)
        except Exception as reason:
            self.refuse(reason)


class PairPanel(Panel):
    """Two pictures and two captions, compared anew with every change."""

    def __init__(self, demo: Demo, pair: Item, start: Start = _aside) -> None:
        super().__init__(demo, "ask the teacher too", start)
        self._quiet = False
        self.pickers = [
            Picker(demo, self.update, f"{k}: ", scene)
            for k, scene in enumerate((composing.START, composing.OTHER))
        ]
        self.captions = [_text(f"caption {k}", caption) for k, caption in enumerate(pair.captions)]
        self.item = _text("whole item, by its id", "", "18em")
        for control in (*self.captions, self.teacher):
            control.observe(lambda _: self.update(), "value")
        self.item.observe(lambda change: self.take(change["new"].strip()), "value")
        boxes = _row(*(p.view for p in self.pickers))
        first = _row(self.item, self.teacher, self.cancel)
        self.view = w.VBox([self.style, first, boxes, *self.captions, self.message, self.result])
        if pair.id != OWN:
            self.take(pair.id)
        else:
            self.update()

    def take(self, key: str) -> None:
        """Take pictures and captions of an item that has two of each."""
        try:
            item = self.demo.item(key)
            if len(item.images) != 2 or len(item.captions) != 2:
                raise QuestionError(f"item {key} is no pair of images and captions")
        except QuestionError as reason:
            self.refuse(reason)
            return
        self._quiet = True
        for k in (0, 1):
            self.pickers[k].put_item(key, k)
            self.captions[k].value = item.captions[k]
        self._quiet = False
        self.update()

    def update(self) -> None:
        """Compare what the controls say; what cannot be compared gets a message."""
        if self._quiet:
            return
        try:
            found = [caption.value.strip() for caption in self.captions]
            if not all(found):
                raise QuestionError(f"caption {found.index('')} is empty: write one")
            asked = [picker.read() for picker in self.pickers]
            captions = tuple(map(questions.checked, found))
            item = Item(OWN, tuple(one.ref for one in asked), captions)
        except Exception as reason:
            self.refuse(reason)
            return
        self.work(self._grids(item, self.demo.cautions(*asked)))

    def _grids(self, item: Item, notes: Sequence[str]) -> Iterator[str]:
        yield compare(self.demo, item, self.teacher.value, notes)


def _row(*widgets: Any) -> Any:
    """Side by side where there is room."""
    return w.HBox(widgets, layout=w.Layout(flex_flow="row wrap"))


def _labelled(kind: Callable, label: str, width: str = "44em", **options: Any) -> Any:
    """A control whose label is not cut."""
    style, layout = {"description_width": "initial"}, w.Layout(width=width, max_width="98%")
    return kind(description=label, style=style, layout=layout, **options)


def _dropdown(label: str, options: Sequence, value: Any, width: str) -> Any:
    return _labelled(w.Dropdown, label, width, options=options, value=value)


def _text(label: str, value: str, width: str = "44em") -> Any:
    """A line of text that counts when it is left or Enter is pressed."""
    return _labelled(w.Text, label, width, value=value, continuous_update=False)
