"""The program: from the words of a command line to a verb and its parameters.

The options of a verb that stands for a notebook are the notebook's parameters: types and ranges are
those of its model, the words those of its parameters cell, and the guard checks them.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from sdslib.commands.verbs import REGISTERED, Verb
from sdslib.io import exits
from sdslib.io.paths import project_path
from sdslib.io.wording import did_you_mean, suggest, warn_in_words

_REFUSED: Any = typer.BadParameter.__mro__[1]  # click's UsageError, or that of typer's own click


# --- from words to parameters --------------------------------------------------------------------


def told_of(notebook: str) -> dict[str, str]:
    """What a notebook's parameters cell says of each parameter."""
    cells = json.loads(project_path(f"notebooks/{notebook}.ipynb").read_bytes())["cells"]
    (cell,) = (c for c in cells if "parameters" in c["metadata"].get("tags", []))
    source = "".join(cell["source"]).splitlines()  # a list of lines, or one text
    lines = [line.partition("  # ") for line in source if ": " in line]
    return {left.partition(":")[0]: told for left, mark, told in lines if mark}


def _options(verb: Verb) -> list[inspect.Parameter]:
    """The parameters of a verb's notebook as typer reads a function's."""
    from sdslib.checks import notebooks
    from sdslib.checks.notebooks import MODELS, SELDOM

    cls, told, found = MODELS[verb.model], told_of(verb.notebook), []
    told = {name: text for name, text in told.items() if name not in verb.without}
    for name in (*(n for n in told if n not in SELDOM), *(n for n in told if n in SELDOM)):
        kind, choices = notebooks.kind(cls, name), notebooks.choices(cls, name)
        default = cls.model_fields[name].default
        option = typer.Option(
            metavar=None if kind == "bool" else kind.upper(),
            help=told[name],
            show_default=False if default is None else str(default),
            autocompletion=_completion(choices),
            rich_help_panel="Seldom given" if name in SELDOM else "Options",
        )
        python = Optional[bool] if kind == "bool" else Optional[str]  # noqa: UP045
        found.append(_keyword(name, Annotated[python, option]))
    return found


def _completion(choices: Sequence[str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _read(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """The values that were given; numbers as papermill reads them, text as it stands."""
    from sdslib.checks import notebooks

    cls = notebooks.MODELS[model]
    numbers = {n for n in given if notebooks.kind(cls, n) in ("int", "float")}
    return {n: notebooks.literal(value) if n in numbers else value
            for n, value in given.items() if value is not None}  # fmt: skip


# --- the program ---------------------------------------------------------------------------------


class _Verb(TyperCommand):
    """Says of a word that is not taken which one was most likely meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _REFUSED as error:
            word, options = getattr(error, "option_name", ""), getattr(error, "possibilities", ())
            if of := re.search("'([^']*)' is not one of '(.*)'", error.message):
                word, options, error.message = of[1], of[2].split("', '"), of[0]
            error.message += did_you_mean(suggest(word, options or ()))
            error.possibilities = ()
            raise


def _command(name: str, whole: bool) -> Callable[..., None]:
    """A verb as typer takes it; its notebook's options are there only where they are `whole`."""
    verb = REGISTERED[name]
    function = verb.function
    own = inspect.signature(function, eval_str=whole).parameters
    taken = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for n, p in own.items() if n != "given"]

    def call(**given: Any) -> None:
        if verb.notebook:
            mine = {p.name: given.pop(p.name) for p in taken}
            given = mine | {"given": _read(verb.model, given)}
        raise typer.Exit(_status(functools.partial(function, **given)))

    options = _options(verb) if verb.notebook and whole else []
    call.__doc__, call.__name__ = function.__doc__, function.__name__
    told = inspect.Signature([*taken, *options] if whole else [])
    call.__signature__ = told  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in (*taken, *options)} if whole else {}
    return call


def _status(does: Callable[[], int | None]) -> int:
    """The status with which a verb ends; an error that was foreseen is said in words."""
    try:
        return does() or 0
    except KeyboardInterrupt as stop:
        print(str(stop) or exits.EXITS[130][0], file=sys.stderr)
        return 130
    except Exception as error:
        return exits.ended(error)


def app(words: Sequence[str]) -> typer.Typer:
    """The program; only the verb that the words name has its options, unless they are completed."""
    asked = next((word for word in words if not word.startswith("-")), "")
    completing = any(name.startswith("_") and name.endswith("_COMPLETE") for name in os.environ)
    table = "\n\n".join(f"{code}: {said}" for code, (said, _) in exits.EXITS.items())
    made = typer.Typer(
        name="sdsclip",
        help="SDS-CLIP: fine-tune CLIP with a diffusion teacher, and say what came of it.",
        epilog=f"Exit status\n\n{table}",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    as_written = {"token_normalize_func": lambda option: option.replace("_", "-")}
    for name in REGISTERED:
        function = _command(name, completing or name == asked)
        made.command(name, cls=_Verb, context_settings=as_written)(function)
    made.callback()(lambda: None)
    return made


def main(words: Sequence[str] | None = None) -> None:
    """Run the verb that the words of the command line name; ends the process with its status."""
    given = [*(sys.argv[1:] if words is None else words)]
    warn_in_words()
    app(given)(given, prog_name="sdsclip")
