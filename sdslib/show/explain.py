"""One image and any captions, taken apart: margins, words that decide, hardest re-orderings.

A scorer is one of `evaluate`'s; `Remembering` is CLIP's, made for the same picture and nearly the
same captions over and over. K captions, D embedding, W words.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from sdslib import metrics
from sdslib.benchmarks import Benchmark, Item
from sdslib.config import derive_seed
from sdslib.evaluate import ClipScorer, Scorer, score_grids
from sdslib.io.images import ImageRef
from sdslib.scorers.diffusion import DiffusionScorer, error_table
from sdslib.student import Student

WORDS = 80  # of a caption that change places; CLIP reads 75 tokens
REORDERINGS = 160  # of one caption that are scored
_MOST_READ = 2400  # words in all of them, so that a long caption costs no more than a short one
PARTS = 24  # of a caption that are left out one by one; a longer one is left out in runs of words
ROUNDINGS = 4  # that a cosine's margin may be off; measured 1.5 at most
ALL_ORDERS = 5  # words up to which every order is scored
Part = tuple[float, float, float, float]  # of a picture: left, top, width, height as shares of it
_KEPT = 20_000  # caption embeddings kept in memory, 4 kB each


class Remembering(ClipScorer):
    """`evaluate.clip_scorer` that keeps every image and caption it ever embedded.

    A caption is known by its token ids, so that two which read the same tie exactly.
    """

    def __init__(self, student: Student, batch_size: int = 64) -> None:
        super().__init__(student, batch_size, 1, None)
        self._images: dict[str, np.ndarray] = {}
        self._texts: dict[bytes, np.ndarray] = {}

    def embed_images(self, refs: Sequence[ImageRef]) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings [R, D] of the distinct images, and the row [N] of each."""
        return _known(self._images, [ref.key for ref in refs], refs, super().embed_images)

    def embed_texts(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Unit embeddings [R, D] of the distinct token rows, and the row [N] of each."""
        keys = [row.tobytes() for row in self.student.tokenize(list(captions)).cpu().numpy()]
        if len(self._texts) > _KEPT:
            self._texts.clear()
        return _known(self._texts, keys, captions, super().embed_texts)

    def reads(self, caption: str) -> str:
        """The caption as far as the student's tokens go: what follows changes nothing."""
        words, whole = caption.split(), self.student.tokenize([caption])

        def same(count: int) -> bool:
            return torch.equal(self.student.tokenize([" ".join(words[:count])]), whole)

        return " ".join(words[: bisect_left(range(len(words)), True, lo=1, key=same)])


def _known(
    known: dict, keys: Sequence, asked: Sequence, embed: Callable
) -> tuple[np.ndarray, np.ndarray]:
    new = {key: one for key, one in zip(keys, asked, strict=True) if key not in known}
    if new:
        emb, row = embed(list(new.values()))
        known |= dict(zip(new, emb[row], strict=True))
    distinct = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    return np.stack([known[key] for key in distinct]), np.array([distinct[key] for key in keys])


def score(scorer: Scorer, ref: ImageRef, captions: Sequence[str]) -> np.ndarray:
    """Scores [K], higher is better; the teacher's are relative to its mean errors if it has them.

    Raises `checks.VocabularyError` for a word outside a closed vocabulary and `images.ImageError`.
    """
    (found,) = scorer([Item("0", (ref,), tuple(captions))])
    return found.grids.get("relative", found.grids[""])[0]


def margins(scores: np.ndarray) -> np.ndarray:
    """By how much each of the scores [K] leads the best other one; not a number if it is alone."""
    if len(scores) < 2:
        return np.full(len(scores), np.nan)
    return metrics.choice_margin(np.tile(scores, (len(scores), 1)), np.arange(len(scores)))


def rounding(student: Student | None = None) -> float:
    """By how much a margin of cosines may be off for the precision of the student's numbers; of a
    student that is not at hand, of single precision."""
    return ROUNDINGS * torch.finfo(student.scale.dtype if student else torch.float32).eps


def noise(scorer: Scorer, ref: ImageRef, captions: Sequence[str]) -> np.ndarray:
    """Within ± how much a caption's margin [K] decides nothing.

    Of cosines it is `rounding`; of the teacher's errors two standard errors of their difference
    over independent draws, which is infinite where there is one.
    """
    if not isinstance(scorer, DiffusionScorer):
        return np.full(len(captions), rounding(scorer.student))  # type: ignore[attr-defined]
    drawn = _drawn(scorer, ref, captions)
    if len(drawn) < 2:
        return np.full(len(captions), np.inf)
    best, *second = np.argsort(drawn.mean(0), kind="stable")[:2]
    rival = np.full(len(captions), best)
    rival[best] = second[0] if second else best
    return 2 * (drawn - drawn[:, rival]).std(0, ddof=1) / np.sqrt(len(drawn))


def _drawn(scorer: DiffusionScorer, ref: ImageRef, captions: Sequence[str]) -> np.ndarray:
    """The teacher's errors [P, K] of independent draws, by which it scores."""
    errors = draw_errors(scorer, ref, captions).drop(columns="t").to_numpy()
    errors = errors if scorer.weights is None else errors * scorer.weights[:, None]
    return errors.reshape(-1, scorer.bank.draws.group, len(captions)).mean(1)


def doubt(scorer: Scorer, refs: Sequence[ImageRef], captions: Sequence[str]) -> tuple[float, float]:
    """Within ± the first a lead in a grid decides nothing, see `noise`; from the second on it
    leaves none, see `score_table`."""
    if not isinstance(scorer, DiffusionScorer):
        near = rounding(scorer.student)  # type: ignore[attr-defined]
        return near, _far(scorer, near)
    drawn = np.stack([_drawn(scorer, ref, captions) for ref in refs], 1)
    leads = [np.diff(drawn, axis=way).reshape(len(drawn), -1) for way in (1, 2)]
    spread = np.concatenate(leads, 1).std(0, ddof=1) if len(drawn) > 1 else np.array([np.inf])
    near = 2 * float(spread.max()) / np.sqrt(len(drawn))
    return near, _far(scorer, near)


def _far(scorer: Scorer, near: Any) -> Any:
    """From which lead on there is no doubt: by CLIP's temperature odds of 20 to 1, of the teacher
    five times the noise."""
    student = getattr(scorer, "student", None)
    return np.log(20) / float(student.scale) if student else 5 * near


def score_table(
    scorers: Mapping[str, Scorer], ref: ImageRef, captions: Sequence[str]
) -> pd.DataFrame:
    """One row a model and caption: model, caption, score, margin (to the best other caption),
    `noise`, within which it decides nothing, and `far`, from which on it leaves no doubt."""
    parts = []
    for name, scorer in scorers.items():
        found, near = score(scorer, ref, captions), noise(scorer, ref, captions)
        told = {"score": found, "margin": margins(found), "noise": near, "far": _far(scorer, near)}
        parts.append(pd.DataFrame({"model": name, "caption": [*captions]} | told))
    return pd.concat(parts, ignore_index=True)


def leave_one_out(scorer: Remembering, ref: ImageRef, captions: Sequence[str]) -> pd.DataFrame:
    """What every word that is read is worth: the caption's score less its score without it.

    Of a caption of over 24 words, what runs of two, three or more are worth.
    One row a word: `caption` (its number), `place`, `word`, `change`, and `decides`, whether the
    caption would win without the word where it loses, or lose where it wins.
    """
    rows = []
    for k, words in enumerate(scorer.reads(caption).split() for caption in captions):
        for n in range(0, len(words), step := -(-len(words) // PARTS)):
            word, rest = " ".join(words[n : n + step]), " ".join([*words[:n], *words[n + step :]])
            rows.append({"caption": k, "place": n, "word": word, "without": rest})
    table = pd.DataFrame(rows)
    found = score(scorer, ref, [*captions, *table["without"]])
    whole, without = found[: len(captions)], found[len(captions) :]
    number = table["caption"].to_numpy()
    margin, change = margins(whole)[number], whole[number] - without
    near = rounding(scorer.student)
    decides = (len(captions) > 1) & ((margin > near) != (margin - change > near))
    return table.drop(columns="without").assign(change=change, decides=decides)


def reorderings(caption: str, seed: int = 0) -> list[str]:
    """Other orders of the caption's words, the caption itself not among them.

    Up to five words in every order; of longer captions, two runs of one to three words exchanged,
    which swaps words and names and keeps most of the grammar. At most `REORDERINGS`, drawn by the
    seed and fewer of a long caption, and none beyond the first 80 words, which every order keeps
    after them.
    """
    words, rest = caption.split()[:WORDS], caption.split()[WORDS:]
    rng = np.random.default_rng(derive_seed(seed, "re-orderings"))
    orders = itertools.permutations(words) if len(words) <= ALL_ORDERS else _exchanged(words)
    found = [o for o in dict.fromkeys(map(tuple, orders)) if o != tuple(words)]
    most = min(REORDERINGS, _MOST_READ // max(1, len(words)))
    drawn = sorted(rng.permutation(len(found))[:most])
    return [" ".join([*found[n], *rest]) for n in drawn]


def _exchanged(words: Sequence[str]) -> Iterator[list[str]]:
    """The words with two runs of one to three of them exchanged, in every way."""
    for n in (1, 2, 3):
        for i in range(len(words) - n):
            for j in range(i + n, len(words) - n + 1):
                yield [*words[:i], *words[j : j + n], *words[i + n : j], *words[i : i + n],
                       *words[j + n :]]  # fmt: skip


def hardest(
    scorer: Remembering, ref: ImageRef, captions: Sequence[str], count: int = 3, seed: int = 0
) -> pd.DataFrame:
    """The `count` re-orderings of what is read of each caption that score highest, highest first.

    One row each: `caption` (its number), `text`, `score`, `lead` (the caption's score less its).
    """
    orders = [reorderings(scorer.reads(caption), seed=seed) for caption in captions]
    found = score(scorer, ref, [*captions, *itertools.chain(*orders)])
    number = np.repeat(np.arange(len(captions)), [len(texts) for texts in orders])
    table = pd.DataFrame({"caption": number, "text": list(itertools.chain(*orders))})
    table = table.assign(score=found[len(captions) :])
    table["lead"] = found[number] - table["score"]
    table = table.sort_values(["caption", "score"], ascending=[True, False], kind="stable")
    return table.groupby("caption").head(count).reset_index(drop=True)


def seen(student: Student, size: tuple[int, int]) -> Part:
    """What the student sees of a picture (width, height): all of it where it distorts or pads."""
    if student.preprocessing["resize_mode"] != "shortest":
        return 0.0, 0.0, 1.0, 1.0
    height, width = student.image_size
    scale = min(size[0] / width, size[1] / height)
    across, down = width * scale / size[0], height * scale / size[1]
    return (1 - across) / 2, (1 - down) / 2, across, down


def cut_off(scorers: Mapping[str, Remembering], captions: Sequence[str]) -> dict[str, str]:
    """The captions that are longer than a student reads, and how many words each of them reads."""
    found = {}
    for caption in captions:
        total = len(caption.split())
        read = {name: len(scorer.reads(caption).split()) for name, scorer in scorers.items()}
        if min(read.values()) < total:
            alike = len(set(read.values())) == 1
            by = {"each student": next(iter(read.values()))} if alike else read
            told = ", ".join(f"{name} reads the first {count}" for name, count in by.items())
            found[caption] = f"of its {total:,} words {told}; the rest counts for nothing"
    return found


def draw_errors(scorer: DiffusionScorer, ref: ImageRef, captions: Sequence[str]) -> pd.DataFrame:
    """The teacher's denoising error of every draw: columns t and 0...K-1, one row a draw."""
    table = error_table(scorer, [Item("0", (ref,), tuple(captions))])
    table = table[table["caption"] >= 0]
    return table.pivot_table("error", ["draw", "t"], "caption").reset_index("t")


def grid(
    scorers: Mapping[str, Scorer], refs: Sequence[ImageRef], captions: Sequence[str], name: str
) -> tuple[Benchmark, dict[str, pd.DataFrame]]:
    """Two images and two captions as a set of one item, and every model's score table of it."""
    item = Item(name, tuple(refs), tuple(captions))
    own = Benchmark("own", "grid", (item,), 1, "made by hand")
    return own, {model: score_grids(scorer, own) for model, scorer in scorers.items()}
