"""Runs side by side: a folder's in one table, and a few of them set by set on what they share."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sdslib.checks.notebooks import CompareConfig, literal
from sdslib.config import UNTOUCHED, FinetuneConfig
from sdslib.io import runs
from sdslib.io.history import RunWarning
from sdslib.io.paths import project_path
from sdslib.io.run import Run, RunError
from sdslib.io.storage import StorageError
from sdslib.io.wording import ParameterError, a_few, did_you_mean, suggest
from sdslib.metrics import ScoreError
from sdslib.results import comparison, formatting, settings, statistics
from sdslib.results.settings import config_of, reported
from sdslib.results.sweep import swept
from sdslib.tables import TableError, outcomes

if TYPE_CHECKING:
    from sdslib.experiment import Show

SCORED = ["set", "metric", "items", "score", "change"]
SAME = ("id", "n_images", "n_captions", "answer", "n_true")  # what makes two rows one item


# --- all runs of a folder ------------------------------------------------------------------------


def overview(
    root: Path | str | None = None, where: Sequence[str] = (), sort: str | None = None
) -> pd.DataFrame:
    """One row a run, as `runs.list_runs`, with the first metric of the set that it reports.

    Columns more: `SCORED`, where score and change (against the untouched student) are shares.
    `where` keeps the rows of NAME=VALUE, `sort` names a column (`-score`: the largest first); both
    take parameters too, which become columns. ParameterError for a name that is none.
    """
    pairs = [text.partition("=") for text in where]
    if odd := [text for text, sign, _ in pairs if not sign]:
        raise ParameterError([f"where is NAME=VALUE, as arm=sds, got {odd[0]!r}"])
    wanted = [name for name, _, _ in pairs] + ([sort.removeprefix("-")] if sort else [])
    known = dict.fromkeys([*runs.LISTED, *SCORED, *FinetuneConfig.model_fields])
    if unknown := [name for name in wanted if name not in known]:
        close = did_you_mean(suggest(unknown[0], known))
        raise ParameterError([f"no column or parameter {unknown[0]!r}{close}"])
    more = [name for name in dict.fromkeys(wanted) if name not in (*runs.LISTED, *SCORED)]
    table = runs.list_runs(root, more)
    folder = runs.runs_root(root=root)
    scores = [_scored(Run(folder / name)) for name in table["run"]]
    table = table.join(pd.DataFrame(scores, index=table.index, columns=SCORED))
    table["items"] = table["items"].astype("Int64")
    for name, _, text in pairs:
        there, table = table, table[[_is(value, text) for value in table[name].astype(object)]]
        if len(there) > len(table) == 0:
            values = a_few([*map(str, there[name].dropna().unique())])
            warnings.warn(f"no run has {name} {text!r}; there are {values}", RunWarning, 2)
    if sort:
        down, name = sort.startswith("-"), sort.removeprefix("-")
        table = table.sort_values(name, ascending=not down, kind="stable", key=_sortable)
    return table.reset_index(drop=True)


def _is(value: Any, text: str) -> bool:
    asked = literal(text)
    return str(value) == text or value == asked or (asked is None and pd.isna(value))


def _sortable(column: pd.Series) -> pd.Series:
    """Numbers as numbers, all else as text: a column of both has no order."""
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers if numbers.notna().sum() == column.notna().sum() else column.map(str)


def _scored(run: Run) -> dict[str, Any]:
    """What `SCORED` says of a fine-tuning; nothing of a run that has no scores yet."""
    try:
        if "arm" not in run.params or (name := reported(run)) not in run.score_names():
            return {}
        right = outcomes(run.scores(name))
        metric, hits = next(iter(right.items()))
        told = {"set": name, "metric": metric, "items": len(hits), "score": hits.mean()}
        before = f"{UNTOUCHED}-{name}"
        if before in run.score_names():
            told["change"] = hits.mean() - outcomes(run.scores(before))[metric].mean()
    except (RunError, StorageError, TableError, ScoreError) as error:
        warnings.warn(f"without scores: {error}", RunWarning, stacklevel=3)
        return {}
    return told


def as_text(table: pd.DataFrame, form: str) -> str:
    """The `overview` as a table, markdown or csv; the first two in percent and points."""
    if form == "csv":
        return table.to_csv(index=False).rstrip("\n")
    told = formatting.percent(table, "score").astype(object)
    told["change"] = ["" if pd.isna(x) else f"{100 * x:+.1f}" for x in table["change"]]
    told = told.where(table.notna(), "")
    return formatting.markdown(told) if form == "markdown" else told.to_string(index=False)


# --- a few of them -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """Models by name, each with its run (None of a score file); the first is held against others.

    `scores` has by set the tables of the models that scored it, on the items that they share and in
    one order; `left_out` says in sentences what is in one of them only.
    """

    runs: Mapping[str, Run | None]
    scores: Mapping[str, dict[str, pd.DataFrame]]
    left_out: tuple[str, ...]

    @property
    def known(self) -> dict[str, Run]:
        """Those that are runs."""
        return {name: run for name, run in self.runs.items() if run is not None}

    @property
    def letters(self) -> dict[str, str]:
        """A, B, … in the tables, where names may be as long as all that tells runs apart."""
        return {name: chr(65 + n % 26) + str(n // 26 or "") for n, name in enumerate(self.runs)}

    @property
    def legend(self) -> str:
        """What each letter is."""
        kinds = [f"run {run.name}" if run else "a file of scores" for run in self.runs.values()]
        told = zip(self.letters.items(), kinds, strict=True)
        return "; ".join(f"{letter} is {name} ({kind})" for (name, letter), kind in told) + "."

    @property
    def note(self) -> str:
        """What stands in the titles of figures."""
        return ", ".join(dict.fromkeys(config_of(run).label for run in self.known.values()))


def chosen(config: CompareConfig, progress: Callable[[str], Show] | None = None) -> Beside:
    """The models that `runs` names; of a folder the newest fine-tuning with a control, and that.

    Where there is none a small one is made first.
    """
    folder = settings.root(config)
    if words := settings.named_runs(config):
        return beside(words, folder)
    if not (pair := newest(_controlled(folder), folder)):
        settings.small(config, progress)
        pair = newest(_controlled(folder), folder)
    return beside([run.path for run in pair], folder)


def _controlled(folder: Path) -> list[Run]:
    """The finished runs that have a control, the newest first; a control is its own."""
    there = runs.finished_runs(folder)
    controls = settings.Controls(there)
    return [run for run in there if controls.of(run)]


def newest(found: Sequence[Run], folder: Path) -> list[Run]:
    """The first of these with a teacher that no sweep made, and its control where there is one."""
    there = swept(folder)
    own = (run for run in found if run.params["arm"] != "clip-only" and run.id not in there)
    first = next(own, None)
    control = settings.Controls(found).of(first) if first else None
    return [run for run in (first, control) if run]


def beside(words: Sequence[str | Path], root: Path | str | None = None) -> Beside:
    """Runs by id, name or folder, and files of score grids (.csv, .parquet), side by side.

    A file that does not say of which set it is counts as of what the first run reports.
    ParameterError for fewer than two, and for a run that is not there or not finished.
    """
    is_file = {str(w): Path(w).suffix in (".csv", ".parquet") for w in words}
    found = {w: None if file else settings.named(w, root) for w, file in is_file.items()}
    there = {run.path: run for run in found.values() if run is not None}
    files = comparison.names_of(project_path(w) for w, file in is_file.items() if file)
    if (count := len(files) + len(there)) < 2:
        raise ParameterError([f"runs: two or more are needed to compare, got {count}"])
    short = dict(zip(there, names(list(there.values())), strict=True))
    read = {path: comparison.read_scores(path) for path in files}
    named = (table.attrs["benchmark"] for table in read.values() if "benchmark" in table.attrs)
    own = next((reported(run) for run in there.values()), next(named, "scores"))
    models: dict[str, Run | None] = {}
    tables: dict[str, dict[str, pd.DataFrame]] = {}
    called: dict[str, str] = {}
    for word, run in found.items():
        if run is None:
            name, table = files[project_path(word)], read[project_path(word)]
            scored = {str(table.attrs.get("benchmark", own)): table}
        else:
            name = short[run.path]
            scored = _scores(run, called)
        models[name] = run
        for of, table in scored.items():
            tables.setdefault(of, {})[name] = table
    return _shared(models, dict(sorted(tables.items(), key=lambda one: one[0] != own)))


def _scores(run: Run, called: dict[str, str]) -> dict[str, pd.DataFrame]:
    """A run's score tables, with what their sets hold in `attrs`; a set that another run has under
    another name is called by that, which `called` has by content."""
    found = {}
    for name in run.score_names():
        if not name.startswith(f"{UNTOUCHED}-"):
            table, content = run.scores(name), settings.content_of(run, name)
            table.attrs[settings.CONTENT] = content
            found[called.setdefault(content, name) if content else name] = table
    return found


def names(found: Sequence[Run]) -> list[str]:
    """What to call runs: what tells them apart, their seeds, and ids where all that is one."""
    values = [config_of(run).identity() for run in found]
    told = [settings.label(own, values) for own in values]
    if len({own["seed"] for own in values}) > 1:
        told = [f"{text}, seed {own['seed']}" for text, own in zip(told, values, strict=True)]
    often = Counter(told)
    return [f"{text} {run.id}" if often[text] > 1 else text
            for text, run in zip(told, found, strict=True)]  # fmt: skip


def _shared(
    models: Mapping[str, Run | None], tables: Mapping[str, dict[str, pd.DataFrame]]
) -> Beside:
    """Of every set the models that scored what the first model did, on the items of them all."""
    first, kept, left = next(iter(models)), {}, []
    for of, scored in tables.items():
        absent = [name for name in models if name not in scored]
        contents = {name: table.attrs.get(settings.CONTENT) for name, table in scored.items()}
        odd = [name for name, own in contents.items() if own not in (None, contents.get(first))]
        if absent:
            left.append(f"{of}: not scored by {', '.join(absent)}.")
        if odd and first in scored:
            left.append(f"{of}: of {', '.join(odd)} left out, its files have another content.")
        if first not in scored or len(alike := [n for n in scored if n not in odd]) < 2:
            continue
        found = _on_common({name: scored[name] for name in models if name in alike})
        count, most = len(found[first]), max(len(scored[name]) for name in alike)
        if count < most:
            left.append(f"{of}: {count} of {most} items are common, the others are left out.")
        if count:
            kept[of] = found
    return Beside(models, kept, tuple(left))


def _on_common(scored: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables cut to the items that are one in all, in the order of the first."""
    same = [column for column in SAME if all(column in table for table in scored.values())]
    keyed = {name: table.set_axis(_keys(table[same])) for name, table in scored.items()}
    first, *others = (table.index for table in keyed.values())
    order = [key for key in first if all(key in other for other in others)]
    return {name: table.loc[order].reset_index(drop=True) for name, table in keyed.items()}


def _keys(rows: pd.DataFrame) -> pd.Index:
    return pd.Index([" ".join(map(str, row)) for row in rows.itertuples(index=False)])


def parameters(found: Beside) -> pd.DataFrame:
    """The run of each model and the parameters in which they differ, one row a parameter."""
    if not found.known:
        return pd.DataFrame()
    table = formatting.varying(settings.parameters_as_text(list(found.known.values())))
    letters = [found.letters[name] for name in found.known]
    table = table.set_axis(letters).T.rename_axis("parameter")
    run = pd.DataFrame([[run.name for run in found.known.values()]], ["run"], letters)
    return pd.concat([run, table]).rename_axis("parameter").reset_index()


def differences(found: Beside) -> pd.DataFrame:
    """The first model against each other one on every set, as `comparison.compare`.

    Columns more: comparison, by `letters`, and set. `p_holm` is over all sets and metrics of a
    comparison.
    """
    called, first, parts = found.letters, next(iter(found.runs)), []
    for of, tables in found.scores.items():
        for name in [name for name in tables if name != first]:
            part = comparison.compare(tables[name], tables[first], by=())
            pair = f"{called[first]} against {called[name]}"
            parts.append(part.assign(set=of, comparison=pair))
    if not parts:
        sets = " ".join(found.left_out)
        raise TableError(f"no set has items that these runs share, so nothing compares. {sets}")
    table = pd.concat(parts, ignore_index=True)
    table["p_holm"] = table.groupby("comparison")["p"].transform(statistics.holm)
    return table


def by_name(table: pd.DataFrame, found: Beside) -> pd.DataFrame:
    """The same table with the models' names in place of letters, to be read without the legend."""
    names = {letter: name for name, letter in found.letters.items()}
    pairs = (text.split(" against ") for text in table["comparison"])
    return table.assign(comparison=[f"{names[a]} against {names[b]}" for a, b in pairs])
