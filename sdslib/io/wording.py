"""How a problem is told: what was meant, what there is, and the error that lists all of them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any


class InWords(Exception):
    """An error whose message is for the reader of a notebook, without our stack."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [str(self)]


class ParameterError(InWords, ValueError):
    """Some parameters cannot be used; the message names all of them, one a line."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("invalid parameters: " + "\n".join(self.problems))


def warn_in_words() -> None:
    """From now on a warning is one line, without the line of code that it is from."""

    def told(message: Any, category: type, *_: Any, **__: Any) -> str:
        return f"{message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"

    warnings.formatwarning = told


def suggest(name: str, options: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The option that `name` most likely meant; case and punctuation count little."""

    def likeness(option: str) -> tuple[float, int]:
        ratio = SequenceMatcher(None, _bare(name), _bare(option)).ratio()
        return ratio, -len(option)

    best = max(options, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= cutoff else None


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def listed(text: str | None) -> list[str]:
    """The words between commas of a parameter that is a list, none where it is not given."""
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def first_line(error: object) -> str:
    """The first line of an error's message, or what the error is where it has none."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def did_you_mean(option: str | None) -> str:
    """What is added to a message where one option was most likely meant."""
    return f"; did you mean {option!r}?" if option else ""


def quoted(options: Iterable[str]) -> str:
    """All options, quoted, with commas between."""
    return ", ".join(repr(option) for option in options)


def a_few(options: Sequence[str]) -> str:
    """The first six options, quoted, and how many more there are."""
    return quoted(options[:6]) + (f" and {len(options) - 6} more" if len(options) > 6 else "")


def one_of(name: str, value: object, options: Iterable[str]) -> str:
    """That a value is none of the options, and which was most likely meant."""
    options = list(options)
    close = suggest(value, options) if isinstance(value, str) else None
    return f"{name} must be one of {quoted(options)}, got {value!r}{did_you_mean(close)}"
