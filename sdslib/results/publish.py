"""What stands behind a published figure, and the tables and figures made of it.

`reports/published/<study>/<run>/` holds parameters, history and the scores of every item, and no
weights. `tables` rebuilds `reports/tables` and `reports/figures` from it in seconds; `reproduce`
trains the studies again.

    python -m sdslib.results.publish study NAME RUN… | tables | reproduce [NAME…]
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sdslib.checks.guard import validate
from sdslib.config import NOT_IN_ID, FinetuneConfig
from sdslib.io import storage
from sdslib.io.paths import project_path, shown_path
from sdslib.io.runs import Run, RunError, find_run, finished_runs, list_runs
from sdslib.io.wording import ParameterError
from sdslib.results import studies, sweep
from sdslib.results.studies import Setting, StudyError
from sdslib.show import figures

PUBLISHED, TABLES, FIGURES = "reports/published", "reports/tables", "reports/figures"
FINETUNE = "notebooks/02_finetune.ipynb"
_FILES = ("identity.json", "history.jsonl")
_SHOWN = 5  # more settings than this are bars by setting, not marks by tag
_DIGITS = "%.4f"


# --- publishing ----------------------------------------------------------------------------------


def study(name: str, runs: Sequence[Run], folder: Path | None = None) -> Path:
    """Keep what stands behind these runs and their controls as the study `name`, in one rename.

    The study is exactly these runs: what it was before is replaced. StudyError for a run that is
    not finished, and for one whose control is neither among them nor beside them.
    """
    for run in runs:
        _sound(run.name, run.problems(folders=False))
        if not run.finished:
            raise StudyError(f"run {run.name} is not finished: {run.status()['message']}")
    beside = [r for folder in {run.path.parent for run in runs} for r in finished_runs(folder)]
    there = {r.path: r for r in (*runs, *beside)}
    pairs = studies.paired(runs, there.values())
    kept = {run.path: run for pair in pairs for run in pair}
    for run in kept.values():
        _sound(run.name, run.problems(folders=False))
    final = _place_of(name, folder or project_path(PUBLISHED))
    with storage.staged_folder(final) as stage:
        for run in kept.values():
            _copy(run, stage / run.name)
    return final


def _place_of(name: str, folder: Path) -> Path:
    """Where the study is kept; StudyError for what is no plain name, or no study's folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise StudyError(
            f"study name {name!r} must be letters, digits, '.', '-' and '_'; it is kept below "
            f"{PUBLISHED}"
        )
    final = folder / name
    if final.exists() and not (final / storage.MANIFEST).is_file():
        raise StudyError(
            f"{shown_path(final)} is there and is no published study; choose another name"
        )
    return final


def _sound(name: str, problems: Sequence[str | None]) -> None:
    """StudyError where there is a problem: what is damaged is not published, and not shown."""
    found = [problem for problem in problems if problem]
    if found:
        raise StudyError(f"{name}/{'; '.join(found)}; take it from a copy, or make it again")


def _copy(run: Run, target: Path) -> None:
    (target / "scores").mkdir(parents=True)
    for name in _FILES:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, target / name)
    for name in run.score_names():
        table = run.scores(name)
        # Without what differs from run to run, equal scores are equal files, which git keeps once.
        table.attrs.pop("seconds", None)
        storage.write_frame(target / "scores" / f"{name}.parquet", table)
    # Where the runs lay is of this machine.
    storage.write_json(target / "params.json", run.params | {"runs": None})


def names(folder: Path | None = None) -> list[str]:
    """The studies that are published."""
    folder = folder or project_path(PUBLISHED)
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def published(name: str, folder: Path | None = None) -> list[Run]:
    """The runs of a study; StudyError lists the studies where there is none of that name.

    And where a file is not as it was published, by the manifest of the study.
    """
    folder = folder or project_path(PUBLISHED)
    found = [Run(path.parent) for path in sorted((folder / name).glob("*/params.json"))]
    if not found:
        raise StudyError(f"no study {name!r} is published; there are {', '.join(names(folder))}")
    if (folder / name / storage.MANIFEST).exists():
        _sound(name, [storage.manifest_problem(folder / name)])
    return found


# --- tables and figures --------------------------------------------------------------------------


def rebuild(
    folder: Path | None = None, tables: Path | None = None, drawn: Path | None = None
) -> list[Path]:
    """Write the tables (CSV, and one page of Markdown a study) and figures of every study.

    Equal published files give equal tables, byte for byte.
    """
    tables, drawn = tables or project_path(TABLES), drawn or project_path(FIGURES)
    tables.mkdir(parents=True, exist_ok=True)
    drawn.mkdir(parents=True, exist_ok=True)
    written = []
    for name in names(folder):
        found = sorted(studies.settings(studies.paired(published(name, folder))), key=_place)
        by_tag = studies.by_tag(found)
        parts = {
            "scores": studies.means(found),
            "differences": studies.differences(found, every_metric=True),
            "by-tag": by_tag,
            "gradients": studies.gradient_ratio(found),
        }
        for part, table in parts.items():
            text = table.to_csv(index=False, float_format=_DIGITS, lineterminator="\n")
            written.append(_write(tables / f"{name}-{part}.csv", text.encode()))
        written.append(_write(tables / f"{name}.md", _page(name, found, parts).encode()))
        picture = _picture(name, found, by_tag, parts["scores"])
        written.append(_write(drawn / f"{name}.png", picture.png()))
    return written


def _place(setting: Setting) -> tuple:
    """Where a setting stands: by arm, then by the values of its parameters, numbers as numbers."""
    values = studies.config_of(setting.runs[0]).model_dump(exclude={"arm", "seed"}).values()
    words = [(v is None, v if isinstance(v, (int, float)) else 0, str(v)) for v in values]
    return setting.values["arm"], words


def _write(path: Path, data: bytes) -> Path:
    storage.write_bytes(path, data)
    return path


def note_of(found: Sequence[Setting]) -> str:
    """The label of everything from a study: mini-world figures are no evidence about real CLIP."""
    params = found[0].runs[0].params
    world = "mini-world" if params["preset"] == "mini" else params["clip_model"]
    seeds = max(len(setting.pairs) for setting in found)
    return f"{world}, {seeds} seed{'s' * (seeds > 1)}"


def _picture(
    name: str, found: Sequence[Setting], by_tag: pd.DataFrame, scores: pd.DataFrame
) -> figures.Picture:
    if studies.is_curve(found):
        return figures.tradeoff(studies.curve(found), note_of(found), plain=["gradient ratio"])
    if len(found) <= _SHOWN:
        return figures.scores_by_tag(by_tag, note_of(found), human=None)
    among = [setting.values for setting in found]
    parts = {s.label: studies.label_parts(s.values, among) for s in found}
    shown = studies.drawn(scores)
    arms, rest = ([parts[s][half] for s in shown["setting"]] for half in (0, 1))
    shown = shown.assign(set=rest, series=arms) if all(rest) else shown.assign(set=arms)
    return figures.bars_by_set(shown, note_of(found), name.replace("-", " ").capitalize())


def _page(name: str, found: Sequence[Setting], parts: dict[str, pd.DataFrame]) -> str:
    """The study on one page: its tables in words, from shares to percent."""
    runs = [run.name for setting in found for run in setting.runs]
    lines = [
        f"# {name} · {note_of(found)}",
        "",
        f"Made by `make tables` from `{PUBLISHED}/{name}/` ({len(runs)} runs). Shares in percent,",
        "differences in points, with 95% bootstrap intervals over seeds and items at once.",
    ]
    scores, pairs, tags = parts["scores"], parts["differences"], parts["by-tag"]
    lines += _section(
        "Right items",
        {
            "setting": scores["setting"],
            "measure": scores["measure"],
            "seeds": scores["seeds"],
            "items": scores["n"],
            "right": _percents(scores, "mean"),
            "untouched": [f"{100 * v:.1f}" if pd.notna(v) else "" for v in scores["reference"]],
        },
    )
    lines += _section(
        "Paired differences",
        {
            "setting": pairs["setting"],
            "measure": [
                metric if measure == "text" else measure
                for measure, metric in zip(pairs["measure"], pairs["metric"], strict=True)
            ],
            "against": pairs["against"],
            "difference": _percents(pairs, "difference", "+"),
            "by seed": [
                f"{100 * a:+.1f} … {100 * b:+.1f}"
                for a, b in zip(pairs["smallest"], pairs["largest"], strict=True)
            ],
        },
    )
    lines += _section(
        "By tag",
        {
            "model": tags["model"],
            "label": tags["label"],
            "metric": tags["metric"],
            "items": tags["n"],
            "right": _percents(tags, "accuracy"),
        },
    )
    ratio = parts["gradients"]
    if len(ratio):
        lines += _section(
            "Gradient of the weighted L_SDS over that of L_CLIP",
            {
                "setting": ratio["setting"],
                "mean": [f"{v:.3g}" for v in ratio["mean"]],
                "range over seeds": [
                    f"{a:.3g} … {b:.3g}" for a, b in zip(ratio["low"], ratio["high"], strict=True)
                ],
            },
        )
    lines += ["", "## Runs", "", *(f"- `{run}`" for run in runs), ""]
    return "\n".join(lines)


def _percents(table: pd.DataFrame, column: str, sign: str = "") -> list[str]:
    columns = (table[name] for name in (column, "low", "high"))
    return [
        f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
        for mean, low, high in zip(*columns, strict=True)
    ]


def _section(title: str, columns: dict[str, Iterable[Any]]) -> list[str]:
    rows = [columns.keys(), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return ["", f"## {title}", "", *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


# --- training again ------------------------------------------------------------------------------


def reproduce(chosen: Sequence[str], options: sweep.Options, folder: Path | None = None) -> bool:
    """Train every run of the studies again, publish them and rebuild the tables.

    Runs that are finished under the same id are read. True where all of them finished; a study
    with a run that failed stays as it was published.
    """
    good = True
    for name in chosen or names(folder):
        done = sweep.run(FINETUNE, [given(run) for run in published(name, folder)], options)
        print(f"{name}: {done.text()}")
        if done.failed:
            good = False
            continue
        study(name, done.runs(), folder)
    return good


def given(run: Run) -> dict[str, Any]:
    """The parameters to hand to the notebook so that it trains this run: those off the default.

    StudyError where today's parameters cannot say it.
    """
    params, standard = run.params, FinetuneConfig()
    found = {
        name: value
        for name, value in params.items()
        if name not in NOT_IN_ID and value is not None and value != getattr(standard, name, None)
    }
    found |= {} if params["preset"] == "mini" else {"preset": params["preset"]}
    if validate(FinetuneConfig, found).identity() != studies.config_of(run).identity():
        raise StudyError(f"{run.name}: today's parameters do not give this run any more")
    return found


# --- the command ---------------------------------------------------------------------------------


def main(words: list[str] | None = None) -> int:
    """Publish a study, rebuild tables and figures, or train the studies again."""
    parser = argparse.ArgumentParser(
        prog="python -m sdslib.results.publish", description=main.__doc__
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    keep = verbs.add_parser("study", help="keep what stands behind runs, and behind their controls")
    keep.add_argument("name", help="as default")
    keep.add_argument("runs", nargs="+", help="ids, names or folders of runs, or a sweep's summary")
    keep.add_argument("--runs", dest="root", help="the folder of runs (default: reports/runs)")
    verbs.add_parser("tables", help=f"rebuild {TABLES} and {FIGURES}")
    again = verbs.add_parser("reproduce", help="train the published studies again")
    again.add_argument("names", nargs="*", help="studies (default: all)")
    again.add_argument("--runs", dest="root", help="the folder of runs (default: reports/runs)")
    again.add_argument("--workers", type=int, help="runs at a time")
    asked = parser.parse_args(words)
    try:
        if asked.verb == "study":
            found = [run for word in asked.runs for run in _named(word, asked.root)]
            print(f"{len(found)} runs: {shown_path(study(asked.name, found))}")
        good = asked.verb != "reproduce" or reproduce(
            asked.names, sweep.Options(asked.root, asked.workers)
        )
        for path in rebuild():
            print(shown_path(path))
    except (StudyError, RunError, ParameterError, storage.StorageError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if good else 1


def _named(word: str, root: str | None) -> list[Run]:
    if not word.endswith(".parquet"):
        return [find_run(word, root)]
    try:
        table = storage.read_frame(Path(word))
    except (OSError, ValueError) as reason:
        first = str(reason).split("\n")[0]
        raise StudyError(f"{word} cannot be read ({first}); give the summary of a sweep") from None
    known = set(list_runs(root)["run"])
    missing = [str(name) for name in table["run"] if name not in known]
    if missing:
        raise StudyError(f"{word}: {len(missing)} of its runs are not there, as {missing[0]}")
    return [find_run(name, root) for name in table["run"]]


if __name__ == "__main__":
    sys.exit(main())
