"""Any picture against any captions: what may be asked, and what the models answer.

`Demo` holds the models and puts one `Question` at a time to them. K captions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import pandas as pd
from torch.nn.modules.module import register_module_forward_pre_hook

from sdslib.benchmarks import Benchmark, Item
from sdslib.checks.captions import VocabularyError, check_words, shortened
from sdslib.checks.notebooks import DemoConfig
from sdslib.config import is_mini
from sdslib.evaluate import Scorer
from sdslib.io.images import ImageError, ImageRef, open_image
from sdslib.io.paths import project_path
from sdslib.io.sources import check_caption
from sdslib.io.wording import ParameterError
from sdslib.io.worlds import world_of
from sdslib.lab import baseline, relevance
from sdslib.lab.baseline import TEACHER
from sdslib.miniworld import composing, drawing
from sdslib.scorers.diffusion import DiffusionScorer, diffusion_scorer
from sdslib.show import atlas, explain
from sdslib.show.atlas import Atlas
from sdslib.show.explain import Remembering

PROFILE_ITEMS = 4  # that tell the teacher's mean errors: nobody should wait for all of them
MOST = 12  # captions a question
OWN = "of your own"


class QuestionError(ValueError):
    """A question that cannot be asked: says what is missing and what to do."""


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """Raises Cancelled in this thread at the next layer of any model once the event is set."""
    thread = threading.get_ident()

    def look(*_: object) -> None:
        if event.is_set() and threading.get_ident() == thread:
            raise Cancelled("cancelled: nothing was scored")

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


@dataclass(frozen=True)
class Question:
    """A picture (named `about` for who cannot see it) and the captions it is held against.

    `drawn` says whether it is of the mini-world.
    """

    ref: ImageRef
    captions: tuple[str, ...]
    about: str
    drawn: bool = False


@dataclass(frozen=True)
class Answer:
    """What the models say of a question, as `explain` makes it.

    `seen` is the part of the picture that the first student sees (see `explain.seen`); `words` and
    `harder` are by student; `errors` are the teacher's, if it was asked;
    `maps` are of the `winner`. `left_out` says why a caption is not there, `notes` are sentences
    that a reader has to know, `passports` say which run a student is of.
    """

    question: Question
    scores: pd.DataFrame
    seen: explain.Part = (0.0, 0.0, 1.0, 1.0)
    words: dict[str, pd.DataFrame] = field(default_factory=dict)
    harder: dict[str, pd.DataFrame] = field(default_factory=dict)
    errors: pd.DataFrame | None = None
    maps: relevance.Maps | None = None
    notes: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)
    passports: dict[str, str] = field(default_factory=dict)

    @property
    def taker(self) -> str:
        """The last student, whose winner is mapped."""
        return [name for name in self.scores["model"] if name != TEACHER][-1]

    @property
    def winner(self) -> int:
        """The number of the caption that scores highest by the `taker`."""
        return int(self.scores.loc[self.scores["model"] == self.taker, "score"].argmax())


@dataclass(frozen=True)
class Demo:
    """The models by name, what they start from, and where pictures come from.

    What is in `watchers` is called when other students are asked from now on.
    One question at a time: a live notebook runs its cells and its widgets' events in two threads,
    and a model is changed for a moment while it embeds a caption.
    """

    config: DemoConfig
    students: dict[str, Remembering]
    benchmark: Benchmark | None
    absent: str = ""
    passports: dict[str, str] = field(default_factory=dict)
    watchers: list[Callable[[], object]] = field(default_factory=list, repr=False, compare=False)
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
        return self.mapped(self.explained(self.ask(start(self), self.config.ask_teacher)))

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
        for watcher in self.watchers:
            watcher()

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
        """Scores and margins, and per-draw errors where the teacher is asked too.

        A caption that some model cannot write is left out, and a note says why.
        """
        with self.turn:
            refused = self.refused(question.captions, teacher)
            left = tuple(c for c in question.captions if c not in refused)
            if not left:
                raise QuestionError("\n".join(refused.values()))
            question = replace(question, captions=left)
            asked = question.ref, question.captions
            scores = explain.score_table(self.scorers(teacher), *asked)
            errors = explain.draw_errors(self.teacher, *asked) if teacher else None
            cut, seen = explain.cut_off(self.students, question.captions), self.seen(question)
        notes = [f"left out: {reason}" for reason in refused.values()]
        notes += [f"“{shortened(caption, 40)}”: {told}" for caption, told in cut.items()]
        notes += self.cautions(question)
        told = Answer(question, scores, seen, errors=errors, notes=tuple(notes))
        return replace(told, left_out=refused, passports={**self.passports})

    def seen(self, question: Question) -> explain.Part:
        """The part of the picture that the first student sees."""
        first = next(iter(self.students.values())).student
        return explain.seen(first, question.ref.load().size)

    def refused(self, captions: Sequence[str], teacher: bool) -> dict[str, str]:
        """The captions that a model cannot write, and why."""
        readers: list[Callable] = [known.student.tokenize for known in self.students.values()]
        if teacher:
            asked = self.teacher.bank.teacher
            readers.append(partial(check_words, asked.tokenizer, owner=asked.name))
        found = {}
        for caption in captions:
            try:
                for read in readers:
                    read(captions=[caption])
            except VocabularyError as reason:
                found[caption] = str(reason)
        return found

    def cautions(self, *asked: Question) -> list[str]:
        """What has to be known of students that were never shown pictures as these."""
        if all(question.drawn for question in asked):
            return []
        names = [name for name, known in self.students.items() if is_of_world(known)]
        told = "know drawn scenes of the mini-world alone; what they say of another picture"
        return [f"{' and '.join(names)} {told} means nothing"] if names else []

    def explained(self, answer: Answer) -> Answer:
        """The same answer with the words that decide and the hardest re-orderings, by student."""
        asked = answer.question.ref, answer.question.captions
        seed, students = self.config.seed, self.students.items()
        with self.turn:
            words = {name: explain.leave_one_out(s, *asked) for name, s in students}
            harder = {name: explain.hardest(s, *asked, seed=seed) for name, s in students}
        return replace(answer, words=words, harder=harder)

    def mapped(self, answer: Answer) -> Answer:
        """The same answer with where the words of the winning caption are seen, by all asked."""
        question, asks = answer.question, answer.errors is not None
        with self.turn:
            first = next(iter(self.students.values()))
            students = {name: known.student for name, known in self.students.items()}
            teachers = {TEACHER: self.teacher.bank.teacher} if asks else {}
            asked = question.ref.load(), first.reads(question.captions[answer.winner])
            maps = relevance.maps(students, *asked, teachers, self.config.seed)
        return replace(answer, maps=maps)

    def grids(self, item: Item, teacher: bool = False) -> Atlas:
        """Every model's grid of two images and two captions, as the atlas of one item."""
        asked = item.images, item.captions, str(item.id)
        with self.turn:
            scorers = self.scorers(teacher)
            own, tables = explain.grid(scorers, *asked)
            doubts = {name: explain.doubt(s, *asked[:2]) for name, s in scorers.items()}
        return replace(atlas.build(tables, own), passports={**self.passports}, doubts=doubts)


def is_of_world(scorer: Remembering) -> bool:
    """Whether the mini-world's words are all that a student can read."""
    inner = getattr(scorer.student.tokenizer, "tokenizer", None)
    words = set(inner.get_vocab()) - set(inner.all_special_tokens) if inner else set()
    return words == set(drawing.vocabulary())


# --- what may be asked ---------------------------------------------------------------------------


def upload_ref(name: str, data: bytes) -> ImageRef:
    """An uploaded file as a reference, once it has been opened; raises `images.ImageError`."""
    open_image(data, name)
    return ImageRef(name, lambda: data)


def given(captions: str | None) -> tuple[str, ...]:
    """The captions of the parameter, which has | between them; none where it is not given."""
    return () if captions is None else lines(captions.replace("|", "\n"))


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
    return Question(composing.picture(drawn), own, f"a drawn {composing.SCENE}: {own[0]}", True)


def image_of(item: Item, number: int = 0, drawn: bool = False) -> Question:
    """One of an item's images against its captions; `drawn` says whether the set is."""
    if number >= len(item.images):
        raise QuestionError(f"item {item.id} has one image only: pick image 0")
    about = f"image {number} of item {item.id}"
    return Question(item.images[number], item.captions[:MOST], about, drawn)


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
        asked = image_of(item, 0, is_mini(config.benchmark)) if item else scene(composing.START)
        if config.image is not None:
            path = project_path(config.image)
            ref = upload_ref(path.name, ImageRef(path.name, path.read_bytes).data())
            asked = replace(asked, ref=ref, about=path.name, drawn=False)
        if config.captions is not None:
            asked = replace(asked, captions=given(config.captions))
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
