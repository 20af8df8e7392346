"""False captions of the words of a true one, for the arms that are taught by them.

They are looked up or made when a caption is first asked for: by the mini-world's word lists, by
swapping what a tagger finds, or from a file. What cannot be false is dropped: a caption that is
the true one again but for case, spacing and punctuation.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from sdslib.arms import phrases, swaps
from sdslib.arms.negative_files import read_negatives, texts
from sdslib.arms.swaps import Negative
from sdslib.config import NEGATIVES, FinetuneConfig, is_mini
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError
from sdslib.io.storage import file_sha256
from sdslib.io.wording import ParameterError, quoted
from sdslib.io.worlds import ensure, exchanged_words
from sdslib.pairs import Pairs, load_pairs

ASKED = 4096  # captions that tell what share has a false one
MOST = 0.5  # share of captions without a false one that an arm may be trained on
KEPT = 2**16  # captions whose false ones stay in memory
SEEN = 40  # words that surely fit CLIP's 77 tokens: what differs behind them is not seen


Make = Callable[[str], Iterable[Negative]]


class Negatives:
    """The false captions of every caption, in a fixed order.

    `make` gives a caption's candidates, of which those that are usable are kept.
    """

    def __init__(self, make: Make, fingerprint: str) -> None:
        self._make, self._fingerprint = make, fingerprint
        self.made = lru_cache(KEPT)(lambda caption: tuple(_usable(caption, make(caption))))

    def of(self, caption: str) -> tuple[str, ...]:
        """All false captions, distinct and none the caption itself; () where there is none."""
        return tuple(text for text, _ in self.made(caption))

    def kinds(self, caption: str) -> tuple[str, ...]:
        """How each of them was made false, in the order of `of`."""
        return tuple(kind for _, kind in self.made(caption))

    def pick(self, caption: str, seed: int) -> str:
        """One of them by the seed; the caption itself where there is none."""
        found = self.made(caption)
        return found[seed % len(found)].text if found else caption

    def fingerprint(self) -> str:
        """What decides them: word lists, tagger and its lexicon, or the file's SHA-256."""
        return self._fingerprint

    def share_without(self, captions: Sequence[str]) -> float:
        """The share of captions that have none, told from `ASKED` of them, evenly spread."""
        some = captions[:: max(1, len(captions) // ASKED)]
        return sum(not self.made(text) for text in some) / len(some)


def said(caption: str) -> tuple[str, ...]:
    """The words as a tokenizer sees them, without case, spacing and punctuation."""
    text = unicodedata.normalize("NFC", html.unescape(html.unescape(caption)))
    return tuple(re.findall(r"[^\W_]+", text.lower())[:SEEN])


def _usable(caption: str, found: Iterable[Negative]) -> Iterator[Negative]:
    known = {said(caption), ()}
    for negative in found:
        words = said(negative.text)
        if words not in known:
            known.add(words)
            yield negative


def load_negatives(config: FinetuneConfig) -> Negatives:
    """Where the config's false captions come from."""
    return named(config.false_captions)


def told(config: FinetuneConfig, pairs: Pairs) -> list[dict[str, Any]]:
    """A row for the table of what a run is trained on; none where the arm reads none."""
    if not config.needs_false_captions:
        return []
    captions = pairs.all_captions()
    count = round(load_negatives(config).share_without(captions) * len(captions))
    name = f"captions without a false one (negatives {Path(config.false_captions).name})"
    return [{"for": "training", "set": name, "items": count}]


def fingerprints(config: FinetuneConfig) -> dict[str, str]:
    """What goes into the run's id beside the parameter; nothing where the arm reads none."""
    if not config.needs_false_captions:
        return {}
    return {"negatives": load_negatives(config).fingerprint()}


def named(source: str) -> Negatives:
    """The false captions of `mini` (word lists), `swap` (a tagger), or a file.

    Raises `DataError` where the file cannot be read.
    """
    if source in NEGATIVES:
        return _made(source)
    path = project_path(source)
    if not path.is_file():
        raise DataError(f"{path} does not exist; negatives names a file, or {quoted(NEGATIVES)}")
    return _given(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _given(path: Path, changed: int) -> Negatives:
    known: dict[str, list[Any]] = {}
    for caption, raw in read_negatives(path):
        known.setdefault(_key(caption), []).append(raw)

    def make(caption: str) -> Iterator[Negative]:
        for raw in known.get(_key(caption), ()):
            where = f"{path.name}, of {caption!r}"
            yield from (Negative(text, "given") for text in texts(raw, where))

    return Negatives(make, f"file {file_sha256(path)}")


def _key(caption: str) -> str:
    return " ".join(said(caption))


@lru_cache(maxsize=2)
def _made(source: str) -> Negatives:
    if source == "mini":
        words = {kind: sorted(words) for kind, words in exchanged_words().items()}
        digest = hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
        return Negatives(_exchanged, f"words {digest}")
    return Negatives(swaps.swaps, phrases.fingerprint())


def _exchanged(caption: str) -> Iterator[Negative]:
    """The caption with two words of a kind (colors, or shapes) exchanged, and with both."""
    words = caption.split()
    places = {
        kind: [i for i, word in enumerate(words) if word in known]
        for kind, known in exchanged_words().items()
    }
    able = [kind for kind, at in places.items() if len({words[i] for i in at}) == 2]
    for kinds in [[kind] for kind in able] + ([able] if len(able) == 2 else []):
        found = list(words)
        for kind in kinds:
            i, j = places[kind][:2]
            found[i], found[j] = found[j], found[i]
        yield Negative(" ".join(found), kinds[0] if len(kinds) == 1 else "both")


def problem(config: FinetuneConfig) -> str | None:
    """Why the arm cannot have its false captions from these pairs, or None; reads captions only.

    Raises `DataError` where the pairs cannot be read.
    """
    drawn, listed = is_mini(config.train_data), config.false_captions in NEGATIVES
    if not config.needs_false_captions or (drawn and listed):
        return None
    ensure(config.train_data)
    share = share_without(config)
    if share <= MOST:
        return None
    return (
        f"arm {config.arm!r} needs false captions, and {share:.0%} of the captions of "
        f"{config.train_data} have none by negatives {config.false_captions!r}; take 'swap' or a "
        "file of them, or another arm"
    )


def check(config: FinetuneConfig) -> None:
    """ParameterError where the arm cannot have its false captions."""
    if text := problem(config):
        raise ParameterError([text])


def share_without(config: FinetuneConfig) -> float:
    """The share of the training captions that have no false one; raises `DataError`."""
    return _share_without(config.train_data, load_negatives(config))


@lru_cache(maxsize=8)
def _share_without(train_data: str, negatives: Negatives) -> float:
    return negatives.share_without(load_pairs(train_data).all_captions())
