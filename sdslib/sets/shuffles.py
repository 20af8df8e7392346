"""ARO's order negatives: a caption's words shuffled in four ways, made once, frozen and hashed.

Nouns and adjectives come from a tagger: word lists for a closed vocabulary, or the authors' spaCy.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from sdslib.config import derive_seed
from sdslib.io import storage
from sdslib.io.sources import Caption, DataError, check_rows, read_json
from sdslib.io.wording import first_line

SHUFFLES = ("nouns_and_adjectives", "all_but_nouns_and_adjectives", "within_trigrams", "trigrams")
MAX_WORDS = 30


@dataclass(frozen=True)
class Tagger:
    """Splits a caption into (word, "noun" | "adjective" | "other"); the name is kept on file."""

    name: str
    tag: Callable[[str], list[tuple[str, str]]]


def lexicon_tagger(nouns: Sequence[str], adjectives: Sequence[str]) -> Tagger:
    """A tagger for captions of a closed vocabulary: words by lists, no model needed."""
    kind = dict.fromkeys(adjectives, "adjective") | dict.fromkeys(nouns, "noun")

    def tag(text: str) -> list[tuple[str, str]]:
        return [(w, kind.get(w.lower(), "other")) for w in re.findall(r"[\w'-]+|[^\w\s]", text)]

    return Tagger("lexicon", tag)


def spacy_tagger(kept: Path) -> Tagger:
    """The tagger of ARO's authors, for negatives that will be kept; `DataError` where it lacks."""
    model = "en_core_web_sm"
    try:
        spacy = importlib.import_module("spacy")  # no dependency: one data set of many needs it
        nlp = spacy.load(model)
    except (ImportError, OSError) as reason:
        raise DataError(
            f"negatives for real captions need spaCy's {model} ({first_line(reason)}): "
            f"`pip install spacy` and `python -m spacy download {model}`; or put a file of frozen "
            f"negatives in their place: {kept}"
        ) from None
    kinds = {"NN": "noun", "JJ": "adjective"}
    name = f"spacy {spacy.__version__} {model} {nlp.meta['version']}"
    return Tagger(name, lambda text: [(w.text, kinds.get(w.tag_[:2], "other")) for w in nlp(text)])


def clean_caption(text: str) -> str:
    """A caption as ARO scores it: lower case, without . ! " ( ) * # : ; ~, at most 30 words."""
    return " ".join(re.sub(r'[.!"()*#:;~]', " ", text.lower()).split()[:MAX_WORDS])


def shuffles_of(text: str, tagger: Tagger, rng: np.random.Generator) -> list[str]:
    """ARO's four shuffles of a caption: its nouns among themselves and its adjectives among
    themselves; all other words; the words within each trigram; the trigrams."""
    tagged = tagger.tag(text)
    words = [word for word, _ in tagged]
    nouns, adjectives, others = ([i for i, (_, k) in enumerate(tagged) if k == kind]
                                 for kind in ("noun", "adjective", "other"))  # fmt: skip
    swapped = _shuffled(_shuffled(words, nouns, rng), adjectives, rng)
    rest = _shuffled(words, others, rng)
    trigrams = [words[i : i + 3] for i in range(0, len(words), 3)]
    within = [w for part in trigrams for w in _shuffled(part, range(len(part)), rng)]
    moved = [w for i in rng.permutation(len(trigrams)) for w in trigrams[i]]
    return [" ".join(found) for found in (swapped, rest, within, moved)]


def _shuffled(words: Sequence[str], places: Sequence[int], rng: np.random.Generator) -> list[str]:
    found, order = list(words), rng.permutation(len(places))
    for place, other in zip(places, order, strict=True):
        found[place] = words[places[other]]
    return found


def unchanged(captions: Sequence[str]) -> str:
    """The shuffles that gave the true caption, the first, back: ties for any model."""
    return "|".join(p for p, c in zip(SHUFFLES, captions[1:], strict=True) if c == captions[0])


class FrozenRow(BaseModel):
    """The five captions of one item, the true one first."""

    id: str
    captions: Annotated[list[Caption], Field(min_length=5, max_length=5)]


def freeze(truths: Mapping[str, str], tagger: Tagger, path: Path, seed: int = 0) -> None:
    """Make the negatives of all captions, item by item from (seed, "order negatives", number), and
    write them with their hash."""
    rows = []
    for number, (key, text) in enumerate(truths.items()):
        rng = np.random.default_rng(derive_seed(seed, "order negatives", number))
        captions = [text, *shuffles_of(text, tagger, rng)]
        rows.append({"id": key, "captions": [clean_caption(c) for c in captions]})
    head = {"seed": seed, "tagger": tagger.name, "shuffles": SHUFFLES}
    try:
        storage.write_json(path, head | {"sha256": _rows_hash(rows), "rows": rows})
    except OSError as reason:
        raise DataError(
            f"{path} cannot be written ({reason.strerror}); name another file in `negatives`"
        ) from None


def read_frozen(path: Path, truths: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Frozen options by item id; raises `DataError` if they were changed or of other captions."""
    document = read_json(path)
    rows = document.get("rows") if isinstance(document, dict) else None
    checked = check_rows(rows, FrozenRow, f"{path.name}.rows")
    if document.get("sha256") != _rows_hash(rows):
        raise DataError(
            f"{path.name}: the rows do not have the hash on file; delete it or restore it"
        )
    found = {row.id: tuple(row.captions) for row in checked}
    wrong = [k for k, text in truths.items() if found.get(k, ("",))[0] != clean_caption(text)]
    if wrong or len(found) != len(truths):
        raise DataError(
            f"{path.name}: frozen for other captions (first difference: item "
            f"{(wrong or sorted(found.keys() - truths.keys()))[0]}); give the file made of these"
        )
    return found


def _rows_hash(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
