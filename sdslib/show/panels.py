"""Questions and their answers as panels, where somebody can use them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import anywidget
import ipywidgets as w

from sdslib.benchmarks import Item
from sdslib.config import is_mini
from sdslib.io.images import ENDINGS, ImageRef
from sdslib.miniworld import composing
from sdslib.show import batch, page, questions
from sdslib.show.questions import OWN, Answer, Demo, Question, QuestionError
from sdslib.show.views import html, message, pair_html


class Keys(anywidget.AnyWidget):
    """Calls `pressed` when Ctrl+Enter (⌘+Enter) is pressed in the box that it stands in."""

    def __init__(self, pressed: Callable[[], object]) -> None:
        super().__init__(_esm=str(page.asset("keys.js")))
        self.on_msg(lambda *_: pressed())


class Upload(anywidget.AnyWidget):
    """A file chosen in the browser, which comes in pieces; `taken` gets its name and bytes.

    A file of any size comes through: one message could hold no more than 10 MB.
    """

    def __init__(self, label: str, kinds: str, taken: Callable[[str, bytes], object]) -> None:
        settings = json.dumps({"label": label, "kinds": kinds})
        super().__init__(_esm=f"const SETTINGS = {settings};\n{page.asset('upload.js')}")
        self.description, self.kinds, self.taken, self._data = label, kinds, taken, bytearray()
        self.on_msg(self.take)

    def take(self, _: Any, told: Mapping[str, Any], parts: Sequence[Any]) -> None:
        """One more piece; how much is here is what the next one begins at."""
        if told["start"] == 0:
            self._data = bytearray()
        for part in parts:
            self._data += part
        self.send({"have": len(self._data)})
        if len(self._data) >= told["size"]:
            self.taken(told["name"], bytes(self._data))


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
        yield html(answer := self.demo.explained(answer))
        yield html(self.demo.mapped(answer))

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


class BatchPanel(Panel):
    """A folder or a CSV of pictures and captions, and their scores as a CSV to take away."""

    def __init__(self, demo: Demo, start: Start = _aside) -> None:
        super().__init__(demo, "ask the teacher for each of them", start)
        self.source = _text("folder or CSV", "")
        self.source.placeholder = "my/pictures, or my.csv with columns image and caption"
        self.captions = _labelled(w.Textarea, "captions of those that have none", rows=2)
        self.button = w.Button(description="score all", button_style="primary")
        self.button.on_click(lambda _: self.score())
        row = _row(self.button, self.cancel, self.teacher, Keys(self.score))
        parts = [self.style, self.source, self.captions, row, self.message, self.result]
        self.view = w.VBox(parts).add_class("demo-panel")

    def score(self) -> None:
        """Score what the field names; what cannot be read gets a message."""
        try:
            text = self.captions.value
            asked = batch.gather(self.source.value.strip(), questions.lines(text) if text else ())
        except Exception as reason:
            self.refuse(reason)
            return
        self.work(self._tables(asked))

    def _tables(self, asked: list[Question]) -> Iterator[str]:
        table = batch.score(self.demo, asked, self.teacher.value, self._follow)
        csv = page.file_uri(table.to_csv(index=False).encode(), "text/csv")
        yield page.render("batch", table=table, notes=self.demo.cautions(*asked), csv=csv)

    def _follow(self, asked: Sequence[Question]) -> Iterator[Question]:
        for done, one in enumerate(asked):
            said = f"scoring picture {done + 1} of {len(asked)} …"
            self.message.value = page.render("message", role="status", said=said)
            yield one


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
        yield pair_html(self.demo, item, self.teacher.value, notes)


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
