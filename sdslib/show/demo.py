"""Any picture against any captions, by every student and on request by the teacher.

`Demo` holds the models, `ask` and `compare` answer a question, `html` shows an answer; the panels
at the end are widgets around these. The same view is a saved notebook's static twin. K captions.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sdslib import benchmarks
from sdslib.benchmarks import Benchmark, Item
from sdslib.checks.captions import shortened
from sdslib.checks.notebooks import DemoConfig
from sdslib.config import is_mini
from sdslib.evaluate import Scorer
from sdslib.experiment import UNTOUCHED, pick_device
from sdslib.io import worlds
from sdslib.io.images import ENDINGS, ImageError, ImageRef, open_image
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError, check_caption
from sdslib.io.wording import ParameterError
from sdslib.lab import baseline
from sdslib.miniworld import drawing
from sdslib.miniworld.drawing import COLORS, SHAPES, SIZES, Scene, Thing, say
from sdslib.scorers.diffusion import DiffusionScorer, diffusion_scorer
from sdslib.show import atlas, explain, failure_study, figures, page
from sdslib.show.explain import Remembering
from sdslib.show.style import Picture
from sdslib.student import load_student

TEACHER = failure_study.TEACHER
PROFILE_ITEMS = 4  # that tell the teacher's mean errors: nobody should wait for all of them
MOST = 12  # captions a question
LONGEST = 1000  # characters of a caption: some 170 words, of which CLIP reads 75 tokens
OWN = "of your own"
OFFERED = ",".join(sorted(ENDINGS))  # what a chooser of files shows
DRAWN = "a drawn scene of the mini-world"
# What the first thing is to the second: the axis, and whether the second is drawn first.
RELATIONS = {
    "left of": ("h", False), "right of": ("h", True),
    "above": ("v", False), "below": ("v", True),
}  # fmt: skip
START = Scene((Thing("circle", "red", "large"), Thing("square", "blue", "large")))


class QuestionError(ValueError):
    """A question that cannot be asked: says what is missing and what to do."""


@dataclass(frozen=True)
class Question:
    """A picture (named `about` for who cannot see it) and the captions it is held against."""

    ref: ImageRef
    captions: tuple[str, ...]
    about: str


@dataclass(frozen=True)
class Answer:
    """What the models say of a question, as `probes` makes it.

    `words` and `harder` are by student; `errors` are the teacher's, if it was asked. `notes` are
    sentences that a reader has to know.
    """

    question: Question
    scores: pd.DataFrame
    words: dict[str, pd.DataFrame] = field(default_factory=dict)
    harder: dict[str, pd.DataFrame] = field(default_factory=dict)
    errors: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demo:
    """The models by name, what they start from, and where pictures come from.

    One question at a time: a live notebook runs its cells and its widgets' events in two threads,
    and a model is changed for a moment while it embeds a caption.
    """

    config: DemoConfig
    students: dict[str, Remembering]
    benchmark: Benchmark | None
    absent: str = ""
    turn: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @cached_property
    def teacher(self) -> DiffusionScorer:
        """Loaded when it is first asked."""
        judge = baseline.load_judge(self.config, PROFILE_ITEMS)
        teacher, profile = judge.full or judge.teacher, judge.profile
        draws, seed = self.config.draws, self.config.seed
        return diffusion_scorer(teacher, draws, seed, profile, empty=False, batch_size=128)

    def scorers(self, teacher: bool = False) -> dict[str, Scorer]:
        """Every student, and the teacher if it is asked."""
        return {**self.students, **({TEACHER: self.teacher} if teacher else {})}

    def item(self, key: str) -> Item:
        """The benchmark's item of this id; QuestionError says which ids there are."""
        if self.benchmark is None:
            raise QuestionError(self.absent)
        items = {str(item.id): item for item in self.benchmark.items}
        if key not in items:
            ids = list(items)
            raise QuestionError(
                f"no item {key!r} in {self.benchmark.name}; there are {ids[0]} to {ids[-1]}"
            )
        return items[key]

    def table(self) -> pd.DataFrame:
        """One row a model: its name here, and where its weights are."""
        names = {name: s.student.origin.name for name, s in self.students.items()}
        rows = [{"model": name, "weights": origin} for name, origin in names.items()]
        asked = "asked on request" if not self.config.ask_teacher else "asked"
        return pd.DataFrame([*rows, {"model": f"{TEACHER} ({asked})",
                                     "weights": self.config.teacher}])  # fmt: skip


def load(config: DemoConfig) -> Demo:
    """The untouched student, the students of the runs that `runs` names or of the newest ones, and
    the benchmark if it is at hand; raises what the loaders raise, and ParameterError."""
    baseline.use_threads(config)
    worlds.ensure(config.benchmark)
    chosen, device = failure_study.chosen(config), pick_device(config.device)
    own = [(config.clip_model, config.clip_pretrained)]
    starts = [(r.params["clip_model"], r.params["clip_pretrained"]) for r in chosen.values()] or own
    sources = {
        UNTOUCHED if n == 0 else f"{UNTOUCHED} {n + 1}": start
        for n, start in enumerate(dict.fromkeys(starts))
    }
    sources |= {name: (f"local-dir:{run.weights}", None) for name, run in chosen.items()}
    students = {
        name: Remembering(load_student(*source, device)) for name, source in sources.items()
    }
    try:
        found, absent = benchmarks.load_benchmark(config.benchmark), ""
    except DataError as reason:
        found, absent = None, str(reason)
    return Demo(config, students, found, absent)


# --- questions -----------------------------------------------------------------------------------


def compose(first: Thing, relation: str, second: Thing, place: int = 0) -> Scene:
    """The mini-world's scene in which the first thing is `relation` (of `RELATIONS`) the second."""
    axis, turned = RELATIONS[relation]
    return Scene((second, first) if turned else (first, second), axis, place)


def scene_ref(scene: Scene) -> ImageRef:
    """The scene's picture as a reference, as any other picture is."""
    data = io.BytesIO()
    drawing.draw(scene).save(data, format="PNG")
    return ImageRef(f"{scene_captions(scene)[0]}.png", data.getvalue)


def scene_captions(scene: Scene) -> tuple[str, str]:
    """A true caption of a scene of two things, and the false one that has the same words."""
    form = drawing.RELATIONS[scene.axis][0]
    a, b = (thing.name for thing in scene.things)
    return say(form, a=a, b=b), say(form, a=b, b=a)


def upload_ref(name: str, data: bytes) -> ImageRef:
    """An uploaded file as a reference, once it has been opened; raises `images.ImageError`."""
    open_image(data, name)
    return ImageRef(name, lambda: data)


def lines(text: str) -> tuple[str, ...]:
    """The captions in a text, one a line; QuestionError where there is none or there are many."""
    found = tuple(dict.fromkeys(line for raw in text.split("\n") if (line := raw.strip())))
    if not found:
        raise QuestionError("there is no caption yet: write one a line, two or more to compare")
    if len(found) > MOST:
        raise QuestionError(f"{len(found)} captions are more than {MOST}: leave some out")
    return tuple(map(_checked, found))


def _checked(caption: str) -> str:
    """The caption, if models can take it; QuestionError."""
    if len(caption) > LONGEST:
        raise QuestionError(
            f"caption “{shortened(caption, 40)}” has {len(caption):,} characters, more than "
            f"{LONGEST:,}: shorten it, the models read no more than some 75 words"
        )
    try:
        return check_caption(caption)
    except ValueError as reason:
        raise QuestionError(f"caption “{shortened(caption, 40)}” {reason}") from None


def beginning(demo: Demo) -> Item | None:
    """The item to begin with: `item`, or the first of a set of photographs; None draws a scene."""
    if demo.config.item is not None:
        return demo.item(demo.config.item)
    drawn = demo.benchmark is None or is_mini(demo.config.benchmark)
    return None if drawn or demo.benchmark is None else demo.benchmark.items[0]


def start(demo: Demo) -> Question:
    """The question that the parameters ask: `image`, `item` or what to begin with, `captions`."""
    config = demo.config
    ref = scene_ref(START)
    own: tuple[str, ...] = scene_captions(START)
    about = f"{DRAWN}: {own[0]}"
    try:
        item = beginning(demo)
        if item is not None:
            ref, own, about = item.images[0], item.captions[:MOST], f"image 0 of item {item.id}"
        if config.image is not None:
            path = project_path(config.image)
            data = ImageRef(path.name, path.read_bytes).data()
            ref, about = upload_ref(path.name, data), path.name
        given = config.captions
        captions = lines(given.replace("|", "\n")) if given is not None else own
    except ImageError as reason:
        raise ParameterError([f"image: {reason}"]) from None
    except QuestionError as reason:
        raise ParameterError([f"{'captions' if config.captions else 'item'}: {reason}"]) from None
    return Question(ref, captions, about)


def start_pair(demo: Demo) -> Item:
    """The two images and two captions to begin with: an item if it is a pair, else a drawn one."""
    item = beginning(demo)
    if item is not None and len(item.images) == 2:
        return item
    other = replace(drawing.swapped(START, "Relation"), place=1)
    return Item(OWN, (scene_ref(START), scene_ref(other)), scene_captions(START))


# --- answers -------------------------------------------------------------------------------------


def ask(demo: Demo, question: Question, teacher: bool = False) -> Answer:
    """Scores and margins, and per-draw errors where the teacher is asked too."""
    with demo.turn:
        scorers = demo.scorers(teacher)
        scores = explain.score_table(scorers, question.ref, question.captions)
        asked = (demo.teacher, question.ref, question.captions) if teacher else None
        errors = explain.draw_errors(*asked) if asked else None
        first = next(iter(demo.students.values())).student
        notes = tuple(
            f"“{caption}” is longer than {first.origin.name} can read; its end counts for nothing"
            for caption in explain.cut_off(first, question.captions)
        )
    return Answer(question, scores, errors=errors, notes=notes)


def explained(demo: Demo, answer: Answer) -> Answer:
    """The same answer with the words that decide and the hardest re-orderings, by student."""
    asked = answer.question.ref, answer.question.captions
    seed, students = demo.config.seed, demo.students.items()
    with demo.turn:
        words = {name: explain.leave_one_out(s, *asked) for name, s in students}
        harder = {name: explain.hardest(s, *asked, seed=seed) for name, s in students}
    return replace(answer, words=words, harder=harder)


def compare(demo: Demo, item: Item, teacher: bool = False) -> str:
    """Two images and two captions as HTML: every model's grid, and which inequality holds."""
    with demo.turn:
        own, tables = explain.grid(demo.scorers(teacher), item.images, item.captions, str(item.id))
    card = atlas.card(atlas.build(tables, own), str(item.id))
    return _framed(f'<div class="atlas">{card}</div>{_GRID_LEGEND}')


_GRID_LEGEND = (
    "<details><summary>How to read the grids</summary><p>A cell is the score of an image (row) "
    "with a caption (column); the framed diagonal holds the true pairs. Between two cells stands "
    "by how much the true pair leads: ✓ on green with a solid frame, the inequality holds; ✗ on "
    "orange with a dashed frame, it fails; = is an exact tie, which counts as wrong. Across, an "
    "image chooses its caption (text); down, a caption chooses its image (image).</p></details>"
)


# --- the view ------------------------------------------------------------------------------------


def html(answer: Answer) -> str:
    """An answer as one piece of HTML that refers to nothing outside it; see `page`."""
    asked = answer.question
    picture = page.image_tag(asked.ref.load(), asked.about)
    shown = [f"<figure>{picture}<figcaption>{page.text(asked.about)}</figcaption></figure>"]
    shown += [f'<p class="message">{page.text(note)}</p>' for note in answer.notes]
    shown.append(_score_view(answer.scores, asked.captions))
    if answer.errors is not None:
        shown.append(_draw_view(answer.errors, asked.captions))
    if answer.words:
        shown.append(_word_view(answer.words, asked.captions))
    if answer.harder:
        shown.append(_order_view(answer.harder, asked.captions))
    return _framed("".join(shown))


def _framed(body: str) -> str:
    style = page.asset("atlas.css") + page.asset("demo.css")
    return f'<div class="demo"><style>{style}</style>{body}</div>'


def message(reason: object) -> str:
    """A sentence about what went wrong, for the reader's eyes and for a screen reader."""
    said = str(reason) or f"it ended with {type(reason).__name__}"
    return f'<p class="message" role="alert">⚠ {page.text(said)}</p>'


def _score_view(scores: pd.DataFrame, captions: Sequence[str]) -> str:
    """Captions down, models across; every cell has a bar from zero, the score and its margin."""
    models = list(dict.fromkeys(scores["model"]))
    columns = {m: scores[scores["model"] == m] for m in models}
    rows = [
        f'<th scope="row">{page.text(caption)}</th>'
        + "".join(_score_cell(columns[m], k) for m in models)
        for k, caption in enumerate(captions)
    ]
    head = ["caption", *(page.text(m) + _unit(m) for m in models)]
    return (
        f"<h4>Scores</h4>{_table(head, rows, 'answers')}<p><small>Bars begin at zero, each model's "
        "in its own unit: the cosine similarity, or minus the teacher's denoising error (over its "
        "mean at each t where that is known). The margin is the lead over the best other caption."
        "</small></p>"
    )


def _table(head: Sequence[str], rows: Sequence[str], kind: str = "") -> str:
    """A table of cells that are HTML already; wider than the page, it scrolls by itself."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table class="plain {kind}"><tr>{top}</tr>{body}</table></div>'


def _unit(model: str) -> str:
    unit = "minus the denoising error" if model == TEACHER else "cosine similarity"
    return f"<br><small>{unit}</small>"


def _score_cell(column: pd.DataFrame, k: int) -> str:
    values = column["score"].to_numpy()
    value, margin = values[k], column["margin"].iloc[k]
    low, high = min(0.0, values.min()), max(0.0, values.max())
    reach = (high - low) or 1.0
    left, width = (min(value, 0.0) - low) / reach, abs(value) / reach
    bar = (
        f'<div class="bar" aria-hidden="true"><i class="{"first" if margin > 0 else ""}" '
        f'style="left:{100 * left:.1f}%;width:{100 * width:.1f}%"></i></div>'
    )
    return f'<td>{bar}<b class="score">{page.number(value)}</b> {_margin(margin)}</td>'


def _margin(margin: float) -> str:
    if np.isnan(margin):
        return '<span class="alone">the only caption</span>'
    kind, sign = _verdict(margin)
    word = {"holds": "best by", "fails": "behind by", "even": "tie"}[kind]
    size = "" if kind == "even" else f" {page.number(abs(margin))}"
    return f'<span class="{kind}">{sign} {word}{size}</span>'


def _verdict(lead: float) -> tuple[str, str]:
    """How a lead is shown: a class for its color, and a sign for who cannot tell the colors."""
    return ("holds", "✓") if lead > 0 else ("fails", "✗") if lead < 0 else ("even", "=")


def _draw_view(errors: pd.DataFrame, captions: Sequence[str]) -> str:
    """In how many draws each caption has the smallest error, and every draw as a table."""
    values = errors[list(range(len(captions)))].to_numpy()
    wins = np.bincount(values.argmin(axis=1), minlength=len(captions))
    told = "".join(
        f"<li>{page.text(caption)}: mean error {page.number(mean)}, smallest in {win} of "
        f"{len(values)} draws</li>"
        for caption, mean, win in zip(captions, values.mean(axis=0), wins, strict=True)
    )
    rows = [
        f'<th scope="row">{t}</th>'
        + "".join(f"<td>{'✓ ' if k == row.argmin() else ''}{page.number(v)}</td>"
                  for k, v in enumerate(row))
        for t, row in zip(errors["t"], values, strict=True)
    ]  # fmt: skip
    return (
        f"<h4>The teacher, draw by draw</h4><ul>{told}</ul><details><summary>All {len(values)} "
        f"draws</summary>{_table(['t', *map(page.text, captions)], rows)}</details>"
    )


def _word_view(words: Mapping[str, pd.DataFrame], captions: Sequence[str]) -> str:
    """Every caption once a model, each word with what the score loses without it."""
    parts = []
    for model, table in words.items():
        parts.append(f"<p><b>{page.text(model)}</b></p>")
        for k in range(len(captions)):
            rows = table[table["caption"] == k].itertuples()
            parts.append(f'<p class="words">{"".join(map(_word, rows))}</p>')
    return (
        "<h4>Which words decide</h4><p><small>Below each word, by how much the score falls without "
        "it: solid blue, it speaks for the caption; dashed orange, against it; framed and marked "
        f"◆, without it the winner would change.</small></p>{''.join(parts)}"
    )


def _word(row: Any) -> str:
    kind = "up" if row.change > 0 else "down" if row.change < 0 else ""
    kind, mark = (f"{kind} decides", "◆ ") if row.decides else (kind, "")
    return (
        f'<span class="word {kind}">{page.text(row.word)}'
        f"<small>{mark}{page.number(row.change, sign=True)}</small></span>"
    )


def _order_view(harder: Mapping[str, pd.DataFrame], captions: Sequence[str]) -> str:
    rows = [
        f'<th scope="row">{page.text(captions[row.caption])}</th><td>{page.text(model)}</td>'
        f'<td class="text">{page.text(row.text)}</td><td>{page.number(row.score)}</td>'
        f"<td>{_lead(row.lead)}</td>"
        for k in range(len(captions))
        for model, table in harder.items()
        for row in table[table["caption"] == k].itertuples()
    ]
    if not rows:
        return "<h4>Hardest re-orderings</h4><p>A caption of one word has none.</p>"
    head = ("caption", "model", "the same words", "score", "the caption's lead")
    return (
        "<h4>Hardest re-orderings</h4><p><small>Orders of a caption's own words that score "
        f"highest; ✗ scores above the caption itself.</small></p>{_table(head, rows)}"
    )


def _lead(lead: float) -> str:
    kind, sign = _verdict(lead)
    return f'<span class="{kind}">{sign} {page.number(lead, sign=True)}</span>'


# --- what the notebook shows ---------------------------------------------------------------------


def pictures(demo: Demo) -> Picture:
    """The pair of images to begin with, each above the caption that belongs to it."""
    item = start_pair(demo)
    drawn = item.id == OWN or is_mini(demo.config.benchmark)
    note = "mini-world" if drawn else f"{demo.config.label}, item {item.id}"
    images = [ref.load() for ref in item.images]
    return figures.pictures(images, item.captions, 2, note, "Same words, other scene")


def captions(demo: Demo) -> Any:
    """One picture and any captions: live where somebody sits at the notebook, else as a page."""
    answer = explained(demo, ask(demo, start(demo), demo.config.ask_teacher))
    return page.live_or_saved(lambda: CaptionPanel(demo, answer).view, lambda: html(answer))


def winoground(demo: Demo) -> Any:
    """Two pictures and two captions: live where somebody sits at the notebook, else as a page."""
    pair, teacher = start_pair(demo), demo.config.ask_teacher
    return page.live_or_saved(
        lambda: PairPanel(demo, pair).view, lambda: compare(demo, pair, teacher)
    )


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
        changed: Callable[[], None],
        title: str = "",
        scene: Scene = START,
        given: tuple[ImageRef, str] | None = None,
    ) -> None:
        import ipywidgets as w

        self.demo, self.changed, self.given, self._quiet = demo, changed, given, False
        self._file: ImageRef | None = None
        sources = [("a scene of the mini-world", "scene"), ("a file", "file")]
        sources += [(f"an item of {demo.benchmark.name}", "item")] if demo.benchmark else []
        sources = [("as the parameters say", "given"), *sources] if given else sources
        self.source = _dropdown(f"{title}picture", sources, sources[0][1], "24em")
        self.scene = _scene_controls(scene, title)
        self.upload = w.FileUpload(description=f"{title}choose a file", accept=OFFERED)
        self.upload.layout.width = "16em"
        self.item = _text(f"{title}item", "0", "14em")
        self.image = _dropdown(f"{title}image of the item", [("0", 0), ("1", 1)], 0, "16em")
        parts = list(self.scene.values())
        rows = (parts[:3], [parts[3], parts[-1]], parts[4:7])  # a thing, the relation, a thing
        self.boxes = {
            "given": w.Box(),
            "scene": w.VBox([w.HBox(row, layout=_wrapping()) for row in rows]),
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

    def read(self) -> tuple[ImageRef, str, tuple[str, ...]]:
        """The picture, what it is in words, and captions to suggest for it.

        Raises QuestionError where none is picked, ImageError where it cannot be opened.
        """
        source = self.source.value
        if source == "scene":
            scene = self._scene()
            own = scene_captions(scene)
            return scene_ref(scene), f"{DRAWN}: {own[0]}", own
        if source == "item":
            item, number = self.demo.item(self.item.value.strip()), self.image.value
            if number >= len(item.images):
                raise QuestionError(f"item {item.id} has one image only: pick image 0")
            return item.images[number], f"image {number} of item {item.id}", item.captions[:MOST]
        found = self.given[0] if source == "given" and self.given else self._file
        if found is None:
            raise QuestionError("there is no picture yet: choose a picture file")
        return found, self.given[1] if source == "given" and self.given else found.name, ()

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
            ref, about, _ = self.read()
            tag = page.image_tag(ref.load(), about)
            self.preview.value = f'<div class="demo preview">{tag}</div>'
        except Exception as reason:
            self.preview.value = f'<div class="demo">{message(reason)}</div>'

    def _scene(self) -> Scene:
        said = {name: control.value for name, control in self.scene.items()}
        first, second = (
            Thing(*(said[f"{which} {part}"] for part in ("shape", "color", "size")))
            for which in ("first", "second")
        )
        return compose(first, said["relation"], second, said["variant"])

    def _take(self, change: Mapping[str, Any]) -> None:
        """Open what was uploaded; a file that is no picture leaves none, and says why."""
        if not change["new"]:
            return
        (uploaded,) = change["new"]
        self._file, self.preview.value = None, ""
        try:
            self._file = upload_ref(uploaded["name"], bytes(uploaded["content"]))
        except Exception as reason:
            self.preview.value = f'<div class="demo">{message(reason)}</div>'
            return
        self._picked()

    def _picked(self) -> None:
        if not self._quiet:
            self.show()
            self.changed()


class CaptionPanel:
    """One picture, captions typed one a line, and what every model says of them.

    `view` is the widget; `score` is what the button does. The same question is scored once,
    however often the button is pressed.
    """

    def __init__(self, demo: Demo, answer: Answer) -> None:
        import ipywidgets as w

        asked, config = answer.question, demo.config
        given = config.image is not None or beginning(demo) is not None
        self.demo = demo
        self.picker = Picker(demo, _nothing, given=(asked.ref, asked.about) if given else None)
        self.captions = w.Textarea(
            value="\n".join(asked.captions),
            description="captions, one a line",
            placeholder="a red circle left of a blue square",
            rows=4,
            style={"description_width": "initial"},
            layout=w.Layout(width="44em", max_width="98%"),
        )
        self.teacher = _checkbox(f"ask the teacher too ({config.draws} draws)", config.ask_teacher)
        self.suggest = w.Button(description="suggest captions", tooltip="captions of this picture")
        self.button = w.Button(description="score", button_style="primary", tooltip="score them")
        self.message, self.result = w.HTML(), w.HTML(html(answer))
        self._asked: tuple | None = (asked.ref.key, asked.captions, config.ask_teacher)
        self.suggest.on_click(lambda _: self._suggest())
        self.button.on_click(lambda _: self.score())
        row = w.HBox([self.button, self.suggest, self.teacher], layout=_wrapping())
        parts = [_style(), self.picker.view, self.captions, row, self.message, self.result]
        self.view = w.VBox(parts)

    def score(self) -> None:
        """Answer what the controls ask, scores first; what cannot be asked gets a message."""
        try:
            ref, about, _ = self.picker.read()
            question = Question(ref, lines(self.captions.value), about)
            asked = (ref.key, question.captions, self.teacher.value)
        except Exception as reason:
            self._refuse(reason)
            return
        if asked == self._asked:
            return
        self._asked, self.result.value = None, ""  # the old answer is not this question's
        self.button.disabled, self.message.value = True, _waiting(self.demo, self.teacher.value)
        try:
            answer = ask(self.demo, question, self.teacher.value)
            self.result.value = html(answer)
            self.result.value = html(explained(self.demo, answer))
            self._asked, self.message.value = asked, ""
        except Exception as reason:
            self._refuse(reason)
        finally:
            self.button.disabled = False

    def _refuse(self, reason: Exception) -> None:
        """Say why there is no answer; an old one would be taken for the new question's."""
        self._asked, self.result.value = None, ""
        self.message.value = f'<div class="demo">{message(reason)}</div>'

    def _suggest(self) -> None:
        try:
            own = self.picker.read()[2]
        except Exception as reason:
            self._refuse(reason)
            return
        if own:
            self.captions.value = "\n".join(own)
        else:
            self._refuse(QuestionError("a file brings no captions: write one a line"))


class PairPanel:
    """Two pictures and two captions, compared anew with every change."""

    def __init__(self, demo: Demo, pair: Item) -> None:
        import ipywidgets as w

        self.demo, self._quiet = demo, False
        scenes = (START, replace(drawing.swapped(START, "Relation"), place=1))
        self.pickers = [
            Picker(demo, self.update, f"{k}: ", scene) for k, scene in enumerate(scenes)
        ]
        self.captions = [_text(f"caption {k}", caption) for k, caption in enumerate(pair.captions)]
        self.teacher = _checkbox("ask the teacher too", demo.config.ask_teacher)
        self.item = _text("whole item, by its id", "", "18em")
        self.message, self.result = w.HTML(), w.HTML()
        for control in (*self.captions, self.teacher):
            control.observe(lambda _: self.update(), "value")
        self.item.observe(lambda change: self.take(change["new"].strip()), "value")
        boxes = w.HBox([picker.view for picker in self.pickers], layout=_wrapping())
        first = w.HBox([self.item, self.teacher], layout=_wrapping())
        self.view = w.VBox([_style(), first, boxes, *self.captions, self.message, self.result])
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
            self._refuse(reason)
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
        self.result.value, self.message.value = "", _waiting(self.demo, self.teacher.value)
        try:
            found = [caption.value.strip() for caption in self.captions]
            if not all(found):
                raise QuestionError(f"caption {found.index('')} is empty: write one")
            found = list(map(_checked, found))
            read = [picker.read() for picker in self.pickers]
            item = Item(OWN, tuple(ref for ref, *_ in read), tuple(found))
            self.result.value = compare(self.demo, item, self.teacher.value)
            self.message.value = ""
        except Exception as reason:
            self._refuse(reason)

    def _refuse(self, reason: Exception) -> None:
        self.result.value = ""
        self.message.value = f'<div class="demo">{message(reason)}</div>'


def _nothing() -> None:
    """What a new picture changes where a button has to be pressed."""


def _waiting(demo: Demo, teacher: bool) -> str:
    """What to say while the models work; loading the teacher takes the longest."""
    loads = teacher and "teacher" not in vars(demo)
    said = "loading the teacher and its mean errors, once …" if loads else "scoring …"
    return f'<div class="demo" role="status">{said}</div>'


def _style() -> Any:
    import ipywidgets as w

    return w.HTML(f"<style>{page.asset('atlas.css')}{page.asset('demo.css')}</style>")


def _wrapping() -> Any:
    import ipywidgets as w

    return w.Layout(flex_flow="row wrap")


def _dropdown(label: str, options: Sequence, value: Any, width: str = "13em") -> Any:
    import ipywidgets as w

    style, layout = {"description_width": "initial"}, w.Layout(width=width)
    return w.Dropdown(description=label, options=options, value=value, style=style, layout=layout)


def _text(label: str, value: str, width: str = "44em") -> Any:
    """A line of text that counts when it is left or Enter is pressed."""
    import ipywidgets as w

    style, layout = {"description_width": "initial"}, w.Layout(width=width, max_width="98%")
    return w.Text(
        description=label, value=value, style=style, layout=layout, continuous_update=False
    )


def _checkbox(label: str, value: bool) -> Any:
    import ipywidgets as w

    layout = w.Layout(width="auto", margin="2px 2px 2px 1em")
    return w.Checkbox(description=label, value=value, indent=False, layout=layout)


def _scene_controls(scene: Scene, title: str = "") -> dict[str, Any]:
    """Drop-downs for two things and their relation, and which of its many drawings to take."""
    import ipywidgets as w

    kinds = {"size": tuple(SIZES), "color": tuple(COLORS), "shape": SHAPES}

    def thing(which: str, of: Thing) -> dict[str, Any]:
        names = {f"{which} {part}": part for part in kinds}
        return {n: _dropdown(title + n, kinds[p], getattr(of, p), "15em") for n, p in names.items()}

    relation = "left of" if scene.axis == "h" else "above"
    variant = w.BoundedIntText(
        value=scene.place, min=0, max=9999, description=f"{title}variant",
        style={"description_width": "initial"}, layout=w.Layout(width="10em"),
    )  # fmt: skip
    return {
        **thing("first", scene.things[0]),
        "relation": _dropdown(f"{title}relation", tuple(RELATIONS), relation),
        **thing("second", scene.things[1]),
        "variant": variant,
    }
