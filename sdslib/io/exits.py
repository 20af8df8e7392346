"""With which status a program ends, and why: the one table of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")
# status -> what it says, and the errors that it stands for, each as `room:class`.
EXITS: dict[int, tuple[str, tuple[str, ...]]] = {
    0: ("done", ()),
    1: ("done, and it shows what is missing, damaged, failed or too large", ()),
    2: (
        "a verb, a parameter or a name that is none; nothing was done",
        (
            *("io.wording:ParameterError", "io.run:RunError", "show.questions:QuestionError"),
            "results.executors:ExecutorError",
        ),
    ),
    3: (
        "data, weights or runs that cannot be read, written or sent",
        (
            *("io.sources:DataError", "io.storage:StorageError", "io.images:ImageError"),
            *("io.model_files:WeightsError", "checks.captions:VocabularyError"),
            *("tables:TableError", "metrics:ScoreError", "results.settings:StudyError"),
            "show.modelcard:PushError",
        ),
    ),
    4: (
        "training failed",
        ("train:TrainingError", "io.launch:ProcessError", "io.distributed:PeerLost"),
    ),
    130: ("interrupted; the same line goes on where it was", ()),
}


def status(error: BaseException) -> int | None:
    """The status that an error ends with, None where it is none that was foreseen."""
    own = {f"{c.__module__.removeprefix('sdslib.')}:{c.__name__}" for c in type(error).__mro__}
    known = (code for code, (_, errors) in EXITS.items() if own & {*errors})
    return 130 if isinstance(error, KeyboardInterrupt) else next(known, None)


def foreseen(main: Callable[P, int]) -> Callable[P, int]:
    """A program that ends with the status of an error that is foreseen, and says it on stderr."""

    @wraps(main)
    def program(*given: P.args, **named: P.kwargs) -> int:
        try:
            return main(*given, **named)
        except Exception as error:
            return ended(error)

    return program


def ended(error: Exception) -> int:
    """Say the error on stderr, and give the status; one that was not foreseen is raised again."""
    code = status(error)
    if code is None:
        raise error
    print(error, file=sys.stderr)
    return code
