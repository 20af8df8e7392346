"""False captions of a real one: two words or phrases of it swapped, by a tagger without downloads.

The tagger is TextBlob's, with the lexicon that it ships (Brill's rules as in De Smedt's Pattern).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple


class Negative(NamedTuple):
    """A false caption, and how it was made false."""

    text: str
    kind: str


def fingerprint() -> str:
    """The tagger, its version, and a hash of its lexicon."""
    folder, digest = Path(str(import_module("textblob.en").__file__)).parent, hashlib.sha256()
    for path in sorted(folder.glob("en-*.txt")):
        digest.update(path.read_bytes())
    return f"textblob {version('textblob')} {digest.hexdigest()}"


def swaps(caption: str) -> Iterator[Negative]:
    """The caption with two nouns, or two adjectives, swapped."""
    words = re.findall(r"[\w'’-]+|[^\w\s]|\s+", caption)
    tags = _tags(tuple(word for word in words if not word.isspace()))
    places = [i for i, word in enumerate(words) if not word.isspace()]
    for kind, tag in (("attribute swap", "JJ"), ("noun swap", "NN")):
        at = [place for place, found in zip(places, tags, strict=True) if found == tag]
        for i, j in combinations(at, 2):
            found = list(words)
            found[i], found[j] = words[j], words[i]
            yield Negative("".join(found), kind)


@cache
def _parser() -> Any:
    return import_module("textblob.en").parser


def _tags(words: tuple[str, ...]) -> list[str]:
    return [tag for _, tag in _parser().find_tags(list(words))]
