"""The demo: `questions` and their answers as a page, and as panels where somebody can use them.

The same view is a saved notebook's static twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets as w
import pandas as pd

from sdslib.benchmarks import Item
from sdslib.checks.captions import shortened
from sdslib.checks.notebooks import DemoConfig
from sdslib.config import UNTOUCHED
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
    columns = _bars(answer.scores).groupby("model", sort=False)
    orders = [table.assign(model=model) for model, table in answer.harder.items()]
    rows = pd.concat(orders).sort_values("caption", kind="stable") if orders else pd.DataFrame()
    return page.render(
        "demo",
        answer=answer,
        captions=[shortened(caption) for caption in answer.question.captions],
        picture=answer.question.ref.load(),
        scores={model: column.to_dict("records") for model, column in columns},
        orders=list(rows.itertuples()),
        teacher=TEACHER,
    )


def _bars(scores: pd.DataFrame) -> pd.DataFrame:
    """With `left` and `width` in percent of each score's bar, which begins at zero."""
    score, by = scores["score"], scores.groupby("model")["score"]
    low, high = by.transform("min").clip(upper=0), by.transform("max").clip(lower=0)
    percent = 100 / (high - low).where(high > low, 1)
    return scores.assign(left=percent * (score.clip(upper=0) - low), width=percent * score.abs())


def compare(demo: Demo, item: Item, teacher: bool = False) -> str:
    """Two images and two captions as HTML: every model's grid, and which inequality holds."""
    return page.render("demo_pair", card=atlas.card(demo.grids(item, teacher), str(item.id)))


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
    return page.live_or_saved(lambda: CaptionPanel(demo, answer).view, lambda: html(answer))


def told(demo: Demo) -> answers.Sentence:
    """The question that the parameters ask, answered in words."""
    return answers.captions(demo.first.scores, demo.first.words)


def winoground(demo: Demo) -> Any:
    """Two pictures and two captions: live where somebody sits at the notebook, else as a page."""
    pair, teacher = questions.start_pair(demo), demo.config.ask_teacher
    shown = partial(compare, demo, pair, teacher)
    return page.live_or_saved(lambda: PairPanel(demo, pair).view, shown)


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
        kinds, wide = ",".join(sorted(ENDINGS)), w.Layout(width="16em")
        self.upload = w.FileUpload(description=f"{title}choose a file", accept=kinds, layout=wide)
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
        self.upload.observe(self._take, "value")
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
            return questions.image_of(item, self.image.value)
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
            self.preview.value = page.render("preview", picture=asked.ref.load(), about=asked.about)
        except Exception as reason:
            self.preview.value = message(reason)

    def _take(self, change: Mapping[str, Any]) -> None:
        """Open what was uploaded; a file that is no picture leaves none, and says why."""
        if not change["new"]:
            return
        (uploaded,) = change["new"]
        self._file, self.preview.value = None, ""
        try:
            self._file = questions.upload_ref(uploaded["name"], bytes(uploaded["content"]))
        except Exception as reason:
            self.preview.value = message(reason)
        else:
            self._picked()

    def _picked(self) -> None:
        if not self._quiet:
            self.show()
            self.changed()


class Panel:
    """What both panels have: models, whether the teacher is asked, a message and a result."""

    def __init__(self, demo: Demo, label: str) -> None:
        self.demo, self.message, self.result = demo, w.HTML(), w.HTML()
        apart = w.Layout(width="auto", margin="2px 2px 2px 1em")
        asked = demo.config.ask_teacher
        self.teacher = w.Checkbox(description=label, value=asked, indent=False, layout=apart)
        self.style = w.HTML(page.render("demo_style"))

    def wait(self) -> None:
        """Say that the models work; loading the teacher takes the longest."""
        loads = self.teacher.value and "teacher" not in vars(self.demo)
        said = "loading the teacher and its mean errors, once …" if loads else "scoring …"
        self.result.value, self.message.value = "", page.render("message", role="status", said=said)

    def refuse(self, reason: Exception) -> None:
        """Say why there is no answer; an old one would be taken for the new question's."""
        self.result.value, self.message.value = "", message(reason)


class CaptionPanel(Panel):
    """One picture, captions typed one a line, and what every model says of them.

    `view` is the widget; `score` is what the button does. The same question is scored once,
    however often the button is pressed.
    """

    def __init__(self, demo: Demo, answer: Answer) -> None:
        asked, config = answer.question, demo.config
        super().__init__(demo, f"ask the teacher too ({config.draws} draws)")
        given = config.image is not None or questions.beginning(demo) is not None
        self.picker = Picker(demo, lambda: None, given=asked if given else None)
        text: dict[str, Any] = {"value": "\n".join(asked.captions), "rows": 4}
        text["placeholder"] = "a red circle left of a blue square"
        self.captions = _labelled(w.Textarea, "captions, one a line", **text)
        self.suggest = w.Button(description="suggest captions", tooltip="captions of this picture")
        self.button = w.Button(description="score", button_style="primary", tooltip="score them")
        self.result.value = html(answer)
        self._asked = self._key(asked, config.ask_teacher)
        self.suggest.on_click(lambda _: self._suggest())
        self.button.on_click(lambda _: self.score())
        row = _row(self.button, self.suggest, self.teacher)
        parts = [self.style, self.picker.view, self.captions, row, self.message, self.result]
        self.view = w.VBox(parts)

    def score(self) -> None:
        """Answer what the controls ask, scores first; what cannot be asked gets a message."""
        try:
            found, teacher = self.picker.read(), self.teacher.value
            question = Question(found.ref, questions.lines(self.captions.value), found.about)
            asked = self._key(question, teacher)
            if asked == self._asked and self.result.value:
                return
            self._asked, self.button.disabled = asked, True
            self.wait()
            answer = self.demo.ask(question, teacher)
            self.result.value = html(answer)
            self.result.value = html(self.demo.explained(answer))
            self.message.value = ""
        except Exception as reason:
            self.refuse(reason)
        finally:
            self.button.disabled = False

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

    def __init__(self, demo: Demo, pair: Item) -> None:
        super().__init__(demo, "ask the teacher too")
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
        boxes, first = _row(*(p.view for p in self.pickers)), _row(self.item, self.teacher)
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
        self.wait()
        try:
            found = [caption.value.strip() for caption in self.captions]
            if not all(found):
                raise QuestionError(f"caption {found.index('')} is empty: write one")
            refs = tuple(picker.read().ref for picker in self.pickers)
            item = Item(OWN, refs, tuple(map(questions.checked, found)))
            self.result.value = compare(self.demo, item, self.teacher.value)
            self.message.value = ""
        except Exception as reason:
            self.refuse(reason)


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
