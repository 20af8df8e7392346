"""What a caption must satisfy before a tokenizer sees it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

_TOLD = 6  # unknown words that an error names
_FEW = 60  # words of a vocabulary that an error lists


class VocabularyError(ValueError):
    """A caption has words that the tokenizer can only write as unknown."""


def check_markers(markers: Iterable[str], captions: Sequence[str], owner: str) -> None:
    """Refuse captions that hold a tokenizer's own marks, of which it would make a beginning or an
    end: `a red circle <end> left of` reads as `a red circle`."""
    # One sign alone is how people write: Stable Diffusion XL's second tokenizer pads with "!".
    known = [mark.lower() for mark in dict.fromkeys(markers) if len(mark) > 1]
    for caption in captions:
        text = caption.lower()
        if mark := next((mark for mark in known if mark in text), None):
            raise VocabularyError(
                f"caption {shortened(caption)!r} has {mark!r}, a mark of {owner}'s tokenizer and "
                "no word; write it otherwise"
            )


def shortened(caption: str, most: int = 200) -> str:
    """As much of a caption as an error should repeat."""
    return caption if len(caption) <= most else caption[: most - 1] + "…"


def check_words(tokenizer: Any, captions: Sequence[str], owner: str) -> None:
    """Refuse captions with words outside a closed vocabulary or with the tokenizer's own marks.

    A vocabulary is closed where the unknown token is a token of its own; CLIP's byte-pair
    tokenizer uses its end token there and can write any word.
    """
    check_markers(getattr(tokenizer, "all_special_tokens", ()), captions, owner)
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return
    whole = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = tokenizer(list(captions), **whole)
    for caption, ids, spans in zip(
        captions, found["input_ids"], found["offset_mapping"], strict=True
    ):
        pairs = zip(ids, spans, strict=True)
        words = dict.fromkeys(caption[start:end] for i, (start, end) in pairs if i == unknown)
        if words:
            known = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
            told = [f"{word!r}{_nearest(word, known)}" for word in [*words][:_TOLD]]
            more = f" and {len(words) - _TOLD} more" if len(words) > _TOLD else ""
            raise VocabularyError(
                f"caption {shortened(caption)!r} has words outside {owner}'s vocabulary: "
                + ", ".join(told)
                + more
                + (f"; it knows {' '.join(sorted(known))}" if len(known) <= _FEW else "")
            )


def _nearest(word: str, known: Iterable[str]) -> str:
    """The known words that are spelt most like it."""
    close = difflib.get_close_matches(word.lower(), sorted(known), 3, 0.4)
    return f" (known are {', '.join(map(repr, close))})" if close else ""
