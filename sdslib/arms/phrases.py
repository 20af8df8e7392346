"""The noun phrases of a caption, and what stands between them, by a tagger without downloads.

The tagger is TextBlob's (Brill's, as in De Smedt and Daelemans' Pattern), whose lexicon is part of
its package. It learnt from newspapers; the word lists here know what photographs show.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

LISTS = 1  # raised with every change here or in `swaps` that makes other captions of the same ones


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


DETERMINERS = word_set("a an the this these those some another every several many few both all any")
ONE = word_set("a an another one this")
OWN = word_set("his her its their my our your")
COLORS = word_set(
    "red orange yellow green blue purple pink brown black white gray grey silver gold"
)
AMOUNTS = word_set(  # followed by "of"
    "group groups couple bunch lot lots pair herd flock number variety row rows set crowd team "
    "piece pieces slice slices bowl bowls plate plates glass cup bottle pile piles stack bouquet "
    "basket box bag tray collection assortment line series kind kinds type types hundreds dozens"
)
VERBS = word_set(  # that the tagger takes for plurals
    "rides stands sits walks plays looks waits rests holds flies runs jumps poses eats drinks hits "
    "sleeps swings surfs watches carries leaps grazes perches smiles talks bites chews touches"
)
DOING = word_set("skiing surfing siting balancing petting reading spraying grazing skating playing")
NAMING = word_set("parking living dining cutting swimming shopping cooking washing")  # living room
NAMES = word_set(
    "hot-dog hot-dogs polar-bear polar-bears stuffed-animal stuffed-animals french-fries "
    "remote-control remote-controls high-chair double-decker orange-juice wild-animals baked-goods"
)
# Heads with which nothing is swapped: when, where in the picture, sports, and what is no thing.
NO_THING = word_set(
    "day night morning evening afternoon time year summer winter sunset sunrise dusk dawn way side "
    "middle top bottom front back end edge center left right background foreground distance air "
    "midair mid-air space angle view display action sunlight shade weather thing something someone "
    "somebody everyone nobody everything nothing each other one ones it no part rest line order "
    "place progress sort range tennis baseball soccer football golf polo picture photo image "
    "photograph shot scene close-up closeup up down look"
)
OPPOSITES = {
    one: other
    for pair in (
        ("to the left of", "to the right of"),
        ("on the left of", "on the right of"),
        ("on the left side of", "on the right side of"),
        ("on the left", "on the right"),
        ("at the top of", "at the bottom of"),
        ("in the foreground", "in the background"),
        ("left of", "right of"),
        ("in front of", "behind"),
        ("on top of", "underneath"),
        ("above", "below"),
        ("over", "under"),
        ("inside of", "outside of"),
        ("inside", "outside"),
        ("indoors", "outdoors"),
        ("into", "out of"),
        ("towards", "away from"),
        ("next to", "far away from"),
    )
    for one, other in (pair, pair[::-1])
}
OPPOSITES |= dict.fromkeys(("beside", "near", "close to"), "far away from")
OPPOSITES |= {"on": "under", "under": "on top of", "beneath": "on top of", "toward": "away from"}
PLACES = (  # without an opposite
    *("on the side of", "at the side of", "in the middle of", "in the back of", "on the back of"),
    *("at the end of", "at the edge of", "on the edge of", "in the center of", "each other"),
    *("picture of", "photo of", "image of", "view of", "shot of", "close up of", "up close of"),
)
_BY_FIRST: dict[str, list[list[str]]] = {}
for _parts in sorted((p.split() for p in (*OPPOSITES, *PLACES)), key=len, reverse=True):
    _BY_FIRST.setdefault(_parts[0], []).append(_parts)

SIGNS = {
    word: sign
    for sign, words in (
        ("D", DETERMINERS),
        ("P", OWN),
        ("C", word_set("one two three four five six seven eight nine ten dozen")),
        ("Q", word_set("other same such different various multiple numerous more most next last")),
        ("F", word_set("is are was were has have had be been do does did can will")),
        (
            "N",
            word_set(
                "bear sink stop monitor curb remote platter bat fan surf ski kid building sports"
            ),
        ),
        (
            "S",
            word_set(
                "bears sinks tracks leaves skis kids monitors people men women children sheep"
            ),
        ),
        ("A", word_set("and or &")),
        ("O", {"of"}),
        ("H", {"'s"}),
        (",", {","}),
    )
    for word in words
}
WORD = re.compile(r"['’]s\b|\w+(?:[-'’](?!s\b)\w+)*|[^\w\s]")
# Of a sign a word: "a large group of", then "black and white", then "fire hydrant".
PHRASE = re.compile(
    r"(?P<lead>(?:[DPQC]*[JV]*KO)?[DPQC]*)"
    r"(?P<more>(?:[JV](?:,?A?[JV])*)?)"
    r"(?P<noun>(?:[GJ]?[NS]+H)?G?[NS]+)"
)


class Word(NamedTuple):
    """A word in lower case, where it stands in the caption, and its sign.

    D determiner, P possessive, C number, Q other, K amount, O of, J adjective, V participle, G
    -ing, N and S noun in singular and plural, H 's, A and, F finite verb, R place, X the rest.
    """

    low: str
    start: int
    end: int
    sign: str


class Phrase(NamedTuple):
    """A noun phrase by the numbers of its words: lead <= more <= noun < end <= whole.

    `lead` begins its determiner or amount, `more` its adjectives; `whole` ends an "of …" behind.
    """

    lead: int
    more: int
    noun: int
    end: int
    whole: int
    plural: bool


def fingerprint() -> str:
    """The tagger, its version, a hash of its lexicon, and the version of the lists here."""
    folder, digest = Path(str(import_module("textblob.en").__file__)).parent, hashlib.sha256()
    for path in sorted(folder.glob("en-*.txt")):
        digest.update(path.read_bytes())
    return f"lists {LISTS}, textblob {version('textblob')} {digest.hexdigest()}"


@cache
def _tagger() -> Any:
    return import_module("textblob.en").parser


def read(caption: str) -> tuple[list[Word], list[Phrase]]:
    """The words of a caption and its noun phrases, from left to right."""
    found = list(WORD.finditer(caption))
    lows = [match[0].lower().replace("’", "'") for match in found]
    signs = _with_places(lows, _signs(lows, [tag for _, tag in _tagger().find_tags(lows)]))
    for match in PHRASE.finditer("".join(signs)):
        if match["noun"][-2:] == "NS" and lows[match.end("lead") - 1] in ONE:
            signs[match.end() - 1] = "F"  # a bus drives
    words = [Word(low, *m.span(), s) for low, m, s in zip(lows, found, signs, strict=True)]
    return words, list(_phrases(lows, "".join(signs)))


def place_at(lows: list[str], start: int) -> str | None:
    """The longest of the known places that begins at this word."""
    known = _BY_FIRST.get(lows[start], ())
    found = (parts for parts in known if lows[start : start + len(parts)] == parts)
    return " ".join(next(found, ())) or None


def _with_places(lows: list[str], signs: list[str]) -> list[str]:
    at = 0
    while at < len(lows):
        count = len((place_at(lows, at) or "").split())
        signs[at : at + count] = "R" * count
        at += max(1, count)
    return signs


def _signs(lows: Sequence[str], tags: Sequence[str]) -> list[str]:
    signs = [""]
    following = [*zip(lows[1:], tags[1:], strict=True), ("", "")]
    for low, tag, (after, next_tag) in zip(lows, tags, following, strict=False):
        signs.append(_listed(low, after) or _tagged(low, tag, signs[-1], (after, next_tag)))
    return signs[1:]


def _listed(low: str, after: str) -> str | None:
    if low in AMOUNTS:
        return "K" if after == "of" else None
    return "N" if f"{low}-{after}" in NAMES else SIGNS.get(low)


def _tagged(low: str, tag: str, before: str, following: tuple[str, str]) -> str:
    """The sign by the tag, the sign before, and the word and tag that follow."""
    after, within, continues = following[0], before in set("DPQCJV"), _continues(*following)
    if low in COLORS or tag[:2] == "JJ":
        return "J" if continues else "N" if before in set("DPQC") else "X"
    if tag == "RB":
        return "J" if within and continues else "X"  # a very large dog
    ruled = tag == "NNS" and after in DETERMINERS | OWN  # a fence lines the street
    if (not within and (low in VERBS or ruled)) or (before == "S" and tag in ("NN", "NNS")):
        return "F"  # two zebras drink
    if tag == "VBG" or low in DOING:
        return "G" if low in NAMING or (within and continues) else "X"
    if tag in ("VBN", "VBD"):
        compound = before == "N" and following[1][:2] == "NN"  # a grass covered field
        return "N" if compound else "V" if continues and before not in ("N", "S") else "X"
    if tag in ("VB", "VBP", "VBZ"):
        return ("S" if tag == "VBZ" else "N") if within else "F"
    if tag == "CD":
        return "C"
    return {"NNS": "S", "NNPS": "S"}.get(tag, "N" if tag[:2] == "NN" else "X")


def _continues(low: str, tag: str) -> bool:
    """Whether a word may follow an adjective within a phrase."""
    tagged = tag[:2] in ("NN", "JJ", "CC") or tag in ("VBN", "VBD", "VB")
    return tagged or low in COLORS | NAMING or SIGNS.get(low) in ("N", "S", ",")


def _phrases(lows: Sequence[str], signs: str) -> Iterator[Phrase]:
    found = {match.start(): match for match in PHRASE.finditer(signs)}
    taken = set()
    for start, match in found.items():
        whole, amount = match.end(), match["lead"].find("K")
        plural = match["noun"][-1] == "S" or (amount >= 0 and lows[start + amount][-1] == "s")
        plural &= match["lead"] == "" or lows[match.end("lead") - 1] not in ONE
        while (behind := found.get(whole + 1)) and signs[whole] in "OA":
            if signs[whole] == "A":  # a cat and dog
                if behind["lead"] or behind["noun"][-1] == "S" or not match["lead"]:
                    break
                plural = True
                taken.add(whole + 1)
            whole = behind.end()
        torn = signs[max(0, start - 2) : start] == "DX"  # its determiner is before another word
        if lows[match.end() - 1] not in NO_THING and start not in taken and not torn:
            yield Phrase(start, match.end("lead"), match.end("more"), match.end(), whole, plural)
