"""Any picture against any captions: what may be asked, and what the models answer.

`Demo` holds the models and puts one `Question` at a time to them. K captions.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import cached_property

import pandas as pd

from sdslib.benchmarks import Benchmark, Item
from sdslib.checks.captions import shortened
from sdslib.checks.notebooks import DemoConfig
from sdslib.evaluate import Scorer
from sdslib.io.images import ImageError, ImageRef, open_image
from sdslib.io.paths import project_path
from sdslib.io.sources import check_caption
from sdslib.io.wording import ParameterError
from sdslib.io.worlds import world_of
from sdslib.lab import baseline
from sdslib.lab.baseline import TEACHER
from sdslib.miniworld import composing
from sdslib.scorers.diffusion import DiffusionScorer, diffusion_scorer
from sdslib.show import atlas, explain
from sdslib.show.atlas import Atlas
from sdslib.show.explain import Remembering

PROFILE_ITEMS = 4  # that tell the teacher's mean errors: nobody should wait for all of them
MOST = 12  # captions a question
OWN = "of your own"


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
    """What the models say of a question, as `explain` makes it.

    `words` and `harder` are by student; `errors` are the teacher's, if it was asked. `notes` are
    sentences that a reader has to know, `passports` say which run a student is of.
    """

    question: Question
    scores: pd.DataFrame
    words: dict[str, pd.DataFrame] = field(default_factory=dict)
    harder: dict[str, pd.DataFrame] = field(default_factory=dict)
    errors: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    passports: dict[str, str] = field(default_factory=dict)


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
    passports: dict[str, str] = field(default_factory=dict)
    turn: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

    @cached_property
    def teacher(self) -> DiffusionScorer:
        """Loaded when it is first asked."""
        judge = baseline.load_judge(self.config, PROFILE_ITEMS)
        teacher, draws, seed = judge.full or judge.teacher, self.config.draws, self.config.seed
        return diffusion_scorer(teacher, draws, seed, judge.profile, empty=False, batch_size=128)

    @cached_property
    def first(self) -> Answer:
        """The question that the parameters ask, taken apart; asked once."""
        return self.explained(self.ask(start(self), self.config.ask_teacher))

    def scorers(self, teacher: bool = False) -> dict[str, Scorer]:
        """Every student, and the teacher if it is asked."""
        return {**self.students, **({TEACHER: self.teacher} if teacher else {})}

    def table(self) -> pd.DataFrame:
        """One row a model: its name here, where its weights are, and the run that made them."""
        names = {name: s.student.origin.name for name, s in self.students.items()}
        asked = "asked" if self.config.ask_teacher else "asked on request"
        names[f"{TEACHER} ({asked})"] = self.config.teacher
        rows = [(name, *told, self.passports.get(name, "no run")) for name, *told in names.items()]
        return pd.DataFrame(rows, columns=["model", "weights", "made by"])

    def take(self, students: dict[str, Remembering], passports: dict[str, str]) -> None:
        """Ask these students from now on."""
        with self.turn:
            self.students.clear()
            self.students.update(students)
            self.passports.clear()
            self.passports.update(passports)
            vars(self).pop("first", None)

    def item(self, key: str) -> Item:
        """The benchmark's item of this id; QuestionError says which ids there are."""
        if self.benchmark is None:
            raise QuestionError(self.absent)
        items = {str(item.id): item for item in self.benchmark.items}
        if key not in items:
            first, *_, last = items
            raise QuestionError(
                f"no item {key!r} in {self.benchmark.name}; there are {first} to {last}"
            )
        return items[key]

    def ask(self, question: Question, teacher: bool = False) -> Answer:
        """Scores and margins, and per-draw errors where the teacher is asked too."""
        asked = question.ref, question.captions
        with self.turn:
            scores = explain.score_table(self.scorers(teacher), *asked)
            errors = explain.draw_errors(self.teacher, *asked) if teacher else None
            cut = explain.cut_off(self.students, question.captions)
        notes = tuple(f"“{shortened(caption, 40)}”: {told}" for caption, told in cut.items())
        return Answer(question, scores, errors=errors, notes=notes, passports={**self.passports})

    def explained(self, answer: Answer) -> Answer:
        """The same answer with the words that decide and the hardest re-orderings, by student."""
        asked = answer.question.ref, answer.question.captions
        seed, students = self.config.seed, self.students.items()
        with self.turn:
            words = {name: explain.leave_one_out(s, *asked) for name, s in students}
            harder = {name: explain.hardest(s, *asked, seed=seed) for name, s in students}
        return replace(answer, words=words, harder=harder)

    def grids(self, item: Item, teacher: bool = False) -> Atlas:
        """Every model's grid of two images and two captions, as the atlas of one item."""
        asked = item.images, item.captions, str(item.id)
        with self.turn:
            own, tables = explain.grid(self.scorers(teacher), *asked)
        return replace(atlas.build(tables, own), passports={**self.passports})


# --- what may be asked ---------------------------------------------------------------------------


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
    return tuple(map(checked, found))


def checked(caption: str) -> str:
    """The caption, if models can take it; QuestionError."""
    try:
        return check_caption(caption)
    except ValueError as reason:
        raise QuestionError(f"caption “{shortened(caption, 40)}” {reason}") from None


def scene(said: composing.Words) -> Question:
    """A composed scene against a true and a false caption of the same words."""
    drawn = composing.compose(said)
    own = composing.captions(drawn)
    return Question(composing.picture(drawn), own, f"a drawn {composing.SCENE}: {own[0]}")


def image_of(item: Item, number: int = 0) -> Question:
    """One of an item's images against its captions."""
    if number >= len(item.images):
        raise QuestionError(f"item {item.id} has one image only: pick image 0")
    about = f"image {number} of item {item.id}"
    return Question(item.images[number], item.captions[:MOST], about)


def beginning(demo: Demo) -> Item | None:
    """The item to begin with: `item`, or the first of a set of photographs; None draws a scene."""
    if demo.config.item is not None:
        return demo.item(demo.config.item)
    if demo.benchmark is None or world_of(demo.config.benchmark):
        return None
    return demo.benchmark.items[0]


def start(demo: Demo) -> Question:
    """The question that the parameters ask: `image`, `item` or what to begin with, `captions`."""
    config = demo.config
    try:
        item = beginning(demo)
        asked = image_of(item) if item else scene(composing.START)
        if config.image is not None:
            path = project_path(config.image)
            ref = upload_ref(path.name, ImageRef(path.name, path.read_bytes).data())
            asked = replace(asked, ref=ref, about=path.name)
        if config.captions is not None:
            asked = replace(asked, captions=lines(config.captions.replace("|", "\n")))
    except ImageError as reason:
        raise ParameterError([f"image: {reason}"]) from None
    except QuestionError as reason:
        raise ParameterError([f"{'captions' if config.captions else 'item'}: {reason}"]) from None
    return asked


def start_pair(demo: Demo) -> Item:
    """The two images and two captions to begin with: an item if it is a pair, else a drawn one."""
    item = beginning(demo)
    if item is not None and len(item.images) == 2:
        return item
    one, other = scene(composing.START), scene(composing.OTHER)
    return Item(OWN, (one.ref, other.ref), one.captions)
