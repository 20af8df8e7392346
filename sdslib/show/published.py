"""The published studies as tables and figures, rebuilt in seconds from what stands behind them.

python -m sdslib.show.published study NAME RUN… | tables | reproduce [NAME…]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sdslib.config import CONTROL
from sdslib.io import storage
from sdslib.io.exits import ended
from sdslib.io.paths import project_path, shown_path
from sdslib.io.run import RunError
from sdslib.io.wording import ParameterError
from sdslib.results import formatting, publish, studies, sweep
from sdslib.results.settings import (
    TERM_WEIGHTS,
    Setting,
    StudyError,
    label_parts,
    of_arms,
    said,
)
from sdslib.show import figures
from sdslib.show.figures import Picture

TABLES, FIGURES = "reports/tables", "reports/figures"
_BY_TAG = 5  # more settings than this are bars by setting, not marks by tag


def rebuild(
    folder: Path | None = None, tables: Path | None = None, drawn: Path | None = None
) -> list[Path]:
    """Write the tables (CSV, and one page of Markdown a study) and figures of every study.

    Equal published files give equal tables, byte for byte.
    """
    tables, drawn = tables or project_path(TABLES), drawn or project_path(FIGURES)
    tables.mkdir(parents=True, exist_ok=True)
    drawn.mkdir(parents=True, exist_ok=True)
    files: dict[Path, bytes] = {}
    for name in publish.names(folder):
        found = publish.in_order(publish.published(name, folder))
        parts = {
            "scores": studies.means(found),
            "differences": studies.differences(found, every_metric=True),
            "by-tag": studies.by_tag(found),
            "gradients": studies.gradient_ratio(found),
        }
        for part, table in parts.items():
            text = table.to_csv(index=False, float_format="%.4f", lineterminator="\n")
            files[tables / f"{name}-{part}.csv"] = text.encode()
        files[tables / f"{name}.md"] = _page(name, found, parts).encode()
        title = name.replace("-", " ").capitalize()
        if places := publish.places_of(name, folder):
            shown = over_places(found, publish.places_in(places), title)
        else:
            shown = picture(found, parts["scores"], parts["by-tag"], title)
        files[drawn / f"{name}.png"] = shown.png()
    for path, data in files.items():
        storage.write_bytes(path, data)
    return list(files)


def picture(
    found: Sequence[Setting], scores: pd.DataFrame, by_tag: pd.DataFrame, title: str
) -> Picture:
    """A published study: a curve over a number, marks by tag, or bars where settings are many."""
    note = note_of(found)
    if over := studies.dial(found):
        return figures.tradeoff(studies.curve(found, over), note, ["gradient ratio"], over)
    if len(found) <= _BY_TAG:
        return figures.scores_by_tag(by_tag, note, human=None)
    among = [setting.values for setting in found]
    parts = {s.label: label_parts(s.values, among, of_arms(among)) for s in found}
    shown = studies.drawn(scores)
    arms, rest = ([parts[s][half] for s in shown["setting"]] for half in (0, 1))
    shown = shown.assign(set=rest, series=arms) if all(rest) else shown.assign(set=arms)
    return figures.bars_by_set(shown, note, title)


def over_places(found: Sequence[Setting], places: pd.DataFrame, title: str) -> Picture:
    """What settings gain over L_CLIP alone, over the number that `places` has of each."""
    number = places.columns[1]
    table = studies.placed(found, places)
    return figures.tradeoff(table, note_of(found), (), number, CONTROL, title)


def note_of(found: Sequence[Setting]) -> str:
    """The label of everything from a study: mini-world figures are no evidence about real CLIP."""
    params = found[0].run.params
    world = "mini-world" if params["preset"] == "mini" else params["clip_model"]
    seeds = max(len(setting.pairs) for setting in found)
    return f"{world}, {seeds} seed{'s' * (seeds > 1)}"


def _page(name: str, found: Sequence[Setting], parts: dict[str, pd.DataFrame]) -> str:
    """The study on one page: its tables in words, from shares to percent."""
    runs = [run.name for setting in found for run in setting.runs]
    pairs, tags, pulls = parts["differences"], parts["by-tag"], parts["gradients"]
    # of the reported set all metrics are told, elsewhere the one that the set is measured by
    measure = pairs["measure"].mask(pairs["measure"] == "text", pairs["metric"])
    items = tags[["model", "label", "metric", "n"]].rename(columns={"n": "items"})
    shares = [formatting.share(r.accuracy, r.low, r.high) for r in tags.itertuples()]
    ratios = [formatting.number(r.mean, r.low, r.high) for r in pulls.itertuples()]
    sections = {
        "What was tuned for each arm": _tuned(found),
        "Right items": formatting.means(parts["scores"]).reset_index(),
        "Paired differences": formatting.over_seeds(pairs.assign(measure=measure)).reset_index(),
        "By tag": items.assign(right=shares),
        "Gradient of the weighted L_SDS over that of L_CLIP, and its range over seeds":
            pulls[["setting", "seeds"]].assign(ratio=ratios),
    }  # fmt: skip
    lines = [
        f"# {name} · {note_of(found)}",
        "",
        f"Made by `make tables` from `{publish.PUBLISHED}/{name}/` ({len(runs)} runs). Differences",
        "in points, with 95% bootstrap intervals over seeds and items at once.",
    ]
    for title, table in sections.items():
        lines += ["", f"## {title}", "", formatting.markdown(table)] if len(table) else []
    return "\n".join([*lines, "", "## Runs", "", *(f"- `{run}`" for run in runs), ""])


def _tuned(found: Sequence[Setting]) -> pd.DataFrame:
    """A row an arm: the parameters that each arm has its own value of; no row where none has."""
    arms = {setting.values["arm"]: setting.values for setting in found}
    if not (own := of_arms([setting.values for setting in found])):
        return pd.DataFrame()
    names = [n for n in dict.fromkeys([*own, *TERM_WEIGHTS]) if any(n in v for v in arms.values())]
    rows = [{"arm": said("arm", arm)} | {n: f"{values[n]:g}" if n in values else "" for n in names}
            for arm, values in arms.items()]  # fmt: skip
    return pd.DataFrame(rows)


def main(words: list[str] | None = None) -> int:
    """Publish a study, rebuild tables and figures, or train the studies again."""
    parser = argparse.ArgumentParser("python -m sdslib.show.published", description=main.__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    keep = verbs.add_parser("study", help="keep what stands behind runs, and behind their controls")
    keep.add_argument("name", help="as default")
    keep.add_argument("runs", nargs="+", help="ids, names or folders of runs, or a sweep's summary")
    keep.add_argument(
        "--places",
        type=Path,
        help="a CSV of a parameter's values and a number measured of each, to draw the gains over",
    )
    verbs.add_parser("tables", help=f"rebuild {TABLES} and {FIGURES}")
    again = verbs.add_parser("reproduce", help="train the published studies again")
    again.add_argument("names", nargs="*", help="studies (default: all)")
    again.add_argument("--workers", type=int, help="runs at a time")
    for verb in (keep, again):
        verb.add_argument("--runs", dest="root", help="the folder of runs (default: reports/runs)")
    asked, good = parser.parse_args(words), True
    try:
        if asked.verb == "study":
            found = [run for word in asked.runs for run in publish.named(word, asked.root)]
            kept = publish.study(asked.name, found, places=asked.places)
            print(f"{len(found)} runs: {shown_path(kept)}")
        elif asked.verb == "reproduce":
            good = publish.reproduce(asked.names, sweep.Options(asked.root, asked.workers))
        for path in rebuild():
            print(shown_path(path))
    except (StudyError, RunError, ParameterError, storage.StorageError) as error:
        return ended(error)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
