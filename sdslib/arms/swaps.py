"""False captions of a real one: words or phrases swapped, or a place turned into its opposite.

Two phrases are swapped where that is a lie: not over "and" or "next to", which say the same both
ways; and where the grammar allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

from sdslib.arms.phrases import OPPOSITES, OWN, Phrase, Word, place_at, read, word_set

FAR = 3  # phrases that stand further apart are not swapped
AND = word_set("and or , &")
NEARBY = AND | word_set(  # says the same both ways, with words on how things stand
    "next to near by beside with close along alongside adjacent together standing stands stand "
    "sitting sits sit lying laying lies lays is are was were that which who parked walking walks "
    "walk resting posing talking talks speaking hugging kissing facing meeting seated "
    "right very while being"
)
ALONE = word_set("inside outside indoors outdoors above below behind")  # no noun need follow
SCREENS = word_set("phone phones cellphone cellphones computer laptop tv television")
HELD_BY = word_set(  # behind these "on" and "near" are no places
    "put puts putting try trying turn turned turning based going hold holding all right very so "
    "directly just up too pretty really"
)
VOWEL = re.compile(r"(?!uni|us[eu]|eur|one\b|once|ute)[aeiou]|hour|honest|heir|8|1[18]\b", re.I)
ARTICLE = re.compile(r"\b(a)n?(?=\s+(\w+))", re.I)

Span = tuple[int, int]  # the first word and that behind the last
Two = Iterator[tuple[Span, Span]]


class Negative(NamedTuple):
    """A false caption, and how it was made false."""

    text: str
    kind: str


def swaps(caption: str) -> Iterator[Negative]:
    """All that can be made of a caption: by attributes, nouns, whole phrases, and places."""
    words, phrases = read(caption)
    made = {"attribute swap": _attributes, "noun swap": _nouns, "phrase": _wholes}
    for kind, spans in made.items():
        for pair in spans(words, phrases):
            yield Negative(_exchanged(caption, words, *pair), kind)
    for (at, end), place in _opposites(words, phrases):
        start, behind = words[at].start, words[end - 1].end
        place = _cased(place, caption[start:behind])
        text = caption[:start] + place + caption[behind:]
        yield Negative(_articles(text), "preposition")


# --- which phrases -------------------------------------------------------------------------------


def _pairs(phrases: Sequence[Phrase]) -> Iterator[tuple[int, int]]:
    for i, j in combinations(range(len(phrases)), 2):
        if j - i <= FAR and phrases[i].whole <= phrases[j].lead:
            yield i, j


def _attributes(words: Sequence[Word], phrases: Sequence[Phrase]) -> Two:
    """Adjectives of two phrases that have some; of two things of one name as whole phrases."""
    for i, j in _pairs(phrases):
        one, other = phrases[i], phrases[j]
        described = one.more < one.noun and other.more < other.noun
        alike = _lows(words, one.noun, one.end) == _lows(words, other.noun, other.end)
        if described and not (alike and _both_ways(words, phrases, i, j)):
            yield (one.more, one.noun), (other.more, other.noun)


def _nouns(words: Sequence[Word], phrases: Sequence[Phrase]) -> Two:
    """Nouns of one number behind the same determiner; over "and" where the adjectives differ."""
    for i, j in _pairs(phrases):
        one, other = phrases[i], phrases[j]
        fits = one.plural == other.plural and _lead(words, one) == _lead(words, other)
        simple = one.whole == one.end and other.whole == other.end
        differ = _lows(words, one.more, one.noun) != _lows(words, other.more, other.noun)
        if fits and simple and (differ or not _both_ways(words, phrases, i, j)):
            yield (one.noun, one.end), (other.noun, other.end)


def _wholes(words: Sequence[Word], phrases: Sequence[Phrase]) -> Two:
    """Whole phrases, where the verbs go with both and no "his" comes before its owner."""
    for i, j in _pairs(phrases):
        one, other = phrases[i], phrases[j]
        owned = any(OWN & {*_lows(words, p.lead, p.whole)} for p in (one, other))
        fits = one.plural == other.plural or not (_is_ruled(words, one) or _is_ruled(words, other))
        same = _lows(words, one.more, one.whole) == _lows(words, other.more, other.whole)
        if fits and not (owned or same or _both_ways(words, phrases, i, j)):
            yield (one.lead, one.whole), (other.lead, other.whole)


def _lows(words: Sequence[Word], start: int, end: int) -> list[str]:
    return [word.low for word in words[start:end]]


def _lead(words: Sequence[Word], phrase: Phrase) -> list[str]:
    return ["a" if low == "an" else low for low in _lows(words, phrase.lead, phrase.more)]


def _is_ruled(words: Sequence[Word], phrase: Phrase) -> bool:
    """Whether a verb has the number of the phrase: "… is", "… who are", "there is …".

    That of a sentence's first phrase may come later: "a man in shorts runs".
    """
    if _opens(words, phrase.lead):
        return any(word.sign == "F" for word in words[phrase.whole :])
    relative = _lows(words, phrase.whole, phrase.whole + 1) in (["who"], ["that"], ["which"])
    after = phrase.whole + relative
    near = (*words[after : after + 1], *words[max(0, phrase.lead - 1) : phrase.lead])
    return any(word.sign == "F" for word in near)


def _both_ways(words: Sequence[Word], phrases: Sequence[Phrase], i: int, j: int) -> bool:
    """Whether what stands between two phrases says the same of both: "and", or "next to".

    What holds the first of them may still tell them apart: "a man on a horse next to a car".
    """

    def said(known: frozenset[str], links: range) -> bool:
        spans = ((phrases[n].whole, phrases[n + 1].lead) for n in links)
        return all(low in known for span in spans for low in _lows(words, *span))

    held = i > 0 and not said(NEARBY, range(i - 1, i))
    return said(AND, range(i, j)) or (not held and said(NEARBY, range(i, j)))


# --- places --------------------------------------------------------------------------------------


def _opposites(words: list[Word], phrases: Sequence[Phrase]) -> Iterator[tuple[Span, str]]:
    lows, at = _lows(words, 0, len(words)), 0
    starts = {phrase.lead: phrase for phrase in phrases}
    while at < len(words):
        place = place_at(lows, at)
        end = at + len((place or "x").split())
        if place in OPPOSITES and _can_turn(words, place, (at, end), starts.get(end)):
            yield (at, end), OPPOSITES[place]
        at = end


def _can_turn(words: Sequence[Word], place: str, span: Span, phrase: Phrase | None) -> bool:
    at, end = span
    if at and words[at - 1].low in HELD_BY and (place == "on" or "far" in OPPOSITES[place]):
        return False
    if place == "on":
        if phrase is None or words[phrase.end - 1].low in SCREENS:
            return False
        return phrase.plural or phrase.lead < phrase.more
    followed = end < len(words) and words[end].sign in "DPQCJVGNSRK"
    return followed or place in ALONE or place.startswith(("on the", "in the"))


# --- text ----------------------------------------------------------------------------------------


def _exchanged(caption: str, words: Sequence[Word], one: Span, other: Span) -> str:
    (a, b), (c, d) = ((words[s].start, words[e - 1].end) for s, e in (one, other))
    first, second = caption[a:b], caption[c:d]
    if _opens(words, one[0]) != _opens(words, other[0]) and not _is_title(caption, words):
        first, second = _cased(first, second), _cased(second, first)
    return _articles(caption[:a] + second + caption[b:c] + first + caption[d:])


def _opens(words: Sequence[Word], at: int) -> bool:
    """Whether a sentence begins at this word."""
    return at == 0 or words[at - 1].low in (".", "!", "?")


def _is_title(caption: str, words: Sequence[Word]) -> bool:
    """Whether capital letters are more than the start of a sentence: a title, or a name."""
    return len(words) > 1 and caption[words[1].start].isupper()


def _cased(text: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return text.upper()
    return (text[0].upper() if like[0].isupper() else text[0].lower()) + text[1:]


def _articles(text: str) -> str:
    """The text with "a" and "an" as the words behind them sound."""
    return ARTICLE.sub(lambda m: m[1] + "n" * bool(VOWEL.match(m[2])), text)
