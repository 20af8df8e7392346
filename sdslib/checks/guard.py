"""The guard of a notebook's parameters: every problem in one message, before torch is imported.

A typo, a value of the wrong kind, two parameters that contradict each other, a model that is not
there: all are told in words, with what to do.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from pydantic import ValidationError

from sdslib.checks.models import (
    is_folder,
    reads_tokens,
    space_problem,
    student_problem,
    teacher_problem,
    tokens_problem,
)
from sdslib.checks.notebooks import MODELS, ranged, schema_of
from sdslib.config import ARMS, NEGATIVES, PRESETS, Config, arm_of, conflicts, mini, settle_arm
from sdslib.io.paths import path_problem, project_path
from sdslib.io.stopping import stop_calmly
from sdslib.io.trackers import TRACKERS
from sdslib.io.wording import ParameterError, did_you_mean, one_of, quoted, suggest, warn_in_words

_NOT_PARAMETERS = {"In", "Out", "exit", "quit", "get_ipython", "open", "display", "guard"}
_FLAT = (type(None), bool, int, float, str, list, tuple, dict)
# Parameters of some arms alone, and by which fact of an arm they are read.
_OF_ARMS = {"verdicts": "judged", "negative_weight": "several"}
C = TypeVar("C", bound=Config)


def guard(namespace: dict[str, Any], model: str = "finetune") -> Any:
    """The validated Config of a notebook whose globals hold its parameters and nothing else yet.

    `None` means "as the preset says". On a second call in the same kernel the names that later
    cells made are left alone, unless they look like a misspelt parameter. Raises ParameterError.
    """
    __tracebackhide__ = True
    stop_calmly()
    if "get_ipython" in namespace:  # a kernel, and not a test or script
        warn_in_words()
    if model not in MODELS:
        raise ParameterError([one_of("notebook", model, MODELS)])
    cls, before = MODELS[model], namespace.get("_guarded")
    values = {k: v for k, v in namespace.items() if _is_parameter(k, v, k in cls.model_fields)}
    if before is not None:
        values = {
            k: v if isinstance(v, _FLAT) else before.get(k)
            for k, v in values.items()
            if k in cls.model_fields or suggest(k, cls.model_fields, cutoff=0.75)
        }
    config = validate(cls, values)
    namespace["_guarded"] = values
    return config


def _is_parameter(name: str, value: object, known: bool) -> bool:
    if name.startswith(("_", "PAPERMILL_")) or name in _NOT_PARAMETERS:
        return False
    return known or not (isinstance(value, ModuleType) or callable(value))


def validate(cls: type[C], values: Mapping[str, Any]) -> C:
    """A config of `cls` from its preset and `values` (None = as the preset says).

    Checks also what is on disk: model names, weights, the teacher's parts. Raises ParameterError
    with every problem found, not only the first.
    """
    __tracebackhide__ = True
    given = {k: v for k, v in values.items() if v is not None}
    unknown = [name for name in given if name not in cls.model_fields]
    merged = _on_preset(cls, {k: v for k, v in given.items() if k not in unknown})
    problems = [_unknown(name, cls) for name in unknown]
    problems += _contradictions(given) if "arm" in cls.model_fields else []
    config, bad = _field_problems(cls, merged)
    problems += bad.values()
    problems += conflicts(merged, bad.keys())
    problems += _missing_files(merged, bad.keys())
    if cls.model_fields["runs"].annotation == Config.model_fields["runs"].annotation:
        problems += _runs_problems(merged["runs"], bad.keys())
    if problems or config is None:
        raise ParameterError(problems)
    return config


def override(config: C, **changes: Any) -> C:
    """The same config with some fields changed, checked like a notebook's parameters."""
    dumped = {k: v for k, v in config.model_dump().items() if k not in changes}
    for one, other in (("steps", "epochs"), ("epochs", "steps")):
        if changes.get(one) is not None:
            dumped.pop(other, None)
    arm = arm_of(changes.get("arm"))
    if arm and arm.sds is None and "sds_weight" not in changes:
        dumped.pop("sds_weight", None)
    return validate(type(config), dumped | changes)


def _on_preset(cls: type[Config], given: dict[str, Any]) -> dict[str, Any]:
    base = {name: field.default for name, field in cls.model_fields.items()}
    name = given.get("preset", "mini")
    chosen = PRESETS.get(name, mini)() if isinstance(name, str) else mini()
    standard = mini().model_dump()  # where a notebook differs from it, its own default stands
    base |= {k: v for k, v in chosen.model_dump().items() if k in base and base[k] == standard[k]}
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if one in given and other not in given and other in base:
            base[other] = None
    if is_folder(given.get("clip_model")) and "clip_pretrained" not in given:
        base["clip_pretrained"] = None
    merged = base | given
    return settle_arm(merged) if "arm" in merged else merged


def _field_problems(cls: type[C], values: dict[str, Any]) -> tuple[C | None, dict[str, str]]:
    try:
        return cls(**values), {}
    except ValidationError as error:
        fields = [str(e["loc"][0]) for e in error.errors() if e["loc"]]
        return None, {name: _requirement(cls, name, values[name]) for name in fields}


def _contradictions(given: Mapping[str, Any]) -> list[str]:
    arm, weight = given.get("arm"), given.get("sds_weight")
    weighted = isinstance(weight, (int, float)) and not isinstance(weight, bool) and weight > 0
    if weighted and (known := arm_of(arm)) and known.sds is None:
        return [f"arm {arm!r} has no L_SDS; leave out sds_weight {weight} or set it to 0"]
    if arm is None and (idle := [name for name in _OF_ARMS if name in given]):
        readers = [name for name, known in ARMS.items() if getattr(known, _OF_ARMS[idle[0]])]
        told = f"{idle[0]} is read by other arms than 'sds', and arm is not given"
        return [f"{told}; name {quoted(readers)}, or leave {idle[0]} out"]
    return []


def _missing_files(values: Mapping[str, Any], bad: Iterable[str]) -> list[str]:
    bad, problems = set(bad), []
    if "clip_model" in values and bad.isdisjoint(("clip_model", "clip_pretrained")):
        problems.append(student_problem(values["clip_model"], values["clip_pretrained"]))
    arm, entering = arm_of(values.get("arm")), values.get("bridge_input")
    there = "clip_model" not in bad and not any(problems)
    if arm and there and reads_tokens(values["arm"], entering):
        problems.append(tokens_problem(values["arm"], entering, values["clip_model"]))
    idle = arm and not arm.asks(values.get("verdicts"))
    if "teacher" in values and not idle and bad.isdisjoint(("teacher", "variant")):
        problems.append(teacher_problem(values["teacher"], values.get("variant")))
        if arm and "sds_space" not in bad and problems[-1] is None:
            asked = (values["arm"], values["sds_space"], values["teacher"])
            problems.append(space_problem(*asked))
    files = {"verdicts": _verdicts_problem, "negatives": _negatives_problem}
    for name, problem in (files | {"tracker": _tracker_problem}).items():
        if values.get(name) and name not in bad:
            problems.append(problem(values[name]))
    return [text for text in problems if text]


def _verdicts_problem(source: str) -> str | None:
    if project_path(source).is_file():
        return None
    way = f"`python -m sdslib.lab.verdicts {source}` makes them"
    return f"verdicts {source!r} are not there; {way}, or leave verdicts out to ask the teacher"


def _negatives_problem(source: str) -> str | None:
    if source in NEGATIVES or (not path_problem(source) and project_path(source).is_file()):
        return None
    close = did_you_mean(suggest(source, NEGATIVES))
    return f"negatives must be {quoted(NEGATIVES)} or a file, and {source!r} is none{close}"


def _tracker_problem(name: str) -> str | None:
    if importlib.util.find_spec(name) is not None:
        return None
    way = f"`{TRACKERS[name].install}`, or leave tracker out"
    return f"tracker {name!r} needs its package; {way}"


def _runs_problems(source: str | None, bad: Iterable[str]) -> list[str]:
    """A folder of runs that cannot be written is told before any work starts."""
    if "runs" in bad:
        return []
    source = source or "reports/runs"
    if problem := path_problem(source):
        return [f"runs: {problem}"]
    folder = project_path(source)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        return [f"runs folder {source!r} cannot be made: {there.name!r} is a file; name a folder"]
    if not os.access(there, os.W_OK | os.X_OK):
        return [f"runs folder {source!r} cannot be written; name one that can"]
    return []


def _unknown(name: str, cls: type[Config]) -> str:
    if name == "trust_remote_code":
        return (
            "trust_remote_code is never passed on: models are safetensors and JSON, and bring no "
            "code; leave it out"
        )
    return f"unknown parameter {name!r}{did_you_mean(suggest(name, cls.model_fields))}"


def _requirement(cls: type[Config], name: str, value: object) -> str:
    """What the field wants and what it got, in words, from the field's own schema."""
    schema = schema_of(cls, name)
    if "enum" in schema:
        return one_of(name, value, schema["enum"])
    got = f"got {value!r}"
    typed = f"{got} ({type(value).__name__})"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if schema["type"] == "integer":
        return f"{name} must be a whole number{ranged(schema)}, {got if number else typed}"
    if schema["type"] == "number":
        if number:
            return f"{name} must be finite{ranged(schema, ' and')}, {got}"
        return f"{name} must be a number, {typed}{_yaml_hint(value)}"
    if schema["type"] == "boolean":
        return f"{name} must be True or False, {typed}"
    if value == "":
        return f"{name} must not be empty"
    if isinstance(value, str):
        return f"{name} must be letters, digits, dots, dashes and underscores, {got}"
    if isinstance(value, float):
        made = "-p made a number of the text"
        return f"{name} must be text, {typed}; {made}, so write -r {name} and the text as it was"
    return f"{name} must be text, {typed}; with papermill write -r {name} {value}"


def from_preset(cls: type[Config], name: str) -> dict[str, Any]:
    """What a preset gives a notebook whose parameters are all left out."""
    return _on_preset(cls, {"preset": name})


def _yaml_hint(value: object) -> str:
    try:
        mantissa, exponent = f"{float(value):e}".split("e")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    if isinstance(value, bool):
        return ""
    return f"; in YAML write {float(mantissa)}e{int(exponent):+d}"
