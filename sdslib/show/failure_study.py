"""The study of failures: from score files, runs or the untouched student to an atlas and figures.

What it computes (scores of the untouched student, the teacher's verdict) is kept in a run, whose
folder `atlas` holds the page and the figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pandas as pd
from IPython.display import Markdown

from sdslib.benchmarks import Benchmark, load_benchmark
from sdslib.config import (
    FailuresConfig,
    ModelsConfig,
    ParameterError,
    folder_at,
    project_path,
    set_name,
)
from sdslib.evaluate import clip_scorer, score_grids
from sdslib.experiment import pick_device
from sdslib.io.runs import Run, find_run, finished_runs, open_run
from sdslib.io.sources import DataError
from sdslib.lab import baseline
from sdslib.miniworld import drawing
from sdslib.results import failures
from sdslib.results.studies import Controls
from sdslib.show import figures, page
from sdslib.show.atlas import HOW_TO_GET, Atlas, Browser, build, document, html
from sdslib.student import load_student
from sdslib.tables import WINOGROUND_TAGS, read_scores, tabulate, tags_of

Follow = Callable[[Iterable, int], Iterable]
RUNS = "reports/runs"
UNTOUCHED, CONTROL, TEACHER = "untouched", "L_CLIP only", "teacher"


@dataclass(frozen=True)
class Study:
    """An atlas and the run that keeps what it took to make it."""

    atlas: Atlas
    run: Run


def collect(config: FailuresConfig, progress: Follow = lambda items, total: items) -> Study:
    """The atlas that the parameters ask for: of score files, of runs, or of the untouched student.

    `runs` names runs, or one folder that holds runs. Without `scores` and named runs it takes the
    newest finished run of the benchmark and its L_CLIP-only control. The teacher's verdict is
    added on `teacher_items` items where there are images. What is computed is kept in the run.
    """
    benchmark, absent = _benchmark(config)
    found = _given(config) if config.scores else _of_runs(config)
    if config.scores and not (benchmark and _is_of(found, benchmark)):
        benchmark, absent = None, absent or HOW_TO_GET
    prints = {"scores": _digest(found)} | baseline.weights_fingerprints(config)
    prints |= {} if benchmark is None else {"benchmark": benchmark.fingerprint}
    run = open_run(config, prints, _root(config))
    baseline.use_threads(config)
    with run if not run.finished else nullcontext():
        if not found and benchmark is not None:
            found = {UNTOUCHED: _kept(run, UNTOUCHED, lambda: _untouched(config, benchmark))}
        found = _sampled(found, config)
        if benchmark is not None and config.teacher_items:
            verdict = _kept(run, TEACHER, lambda: _verdict(config, benchmark, found, progress))
            found[TEACHER] = verdict
    rules = {name: baseline.rule_of(table) for name, table in found.items()}
    return Study(build(found, benchmark, rules, note=_note(config, found), absent=absent), run)


def _benchmark(config: FailuresConfig) -> tuple[Benchmark | None, str]:
    """The set with its images, or why it is not here; without `scores` it has to be."""
    try:
        if config.benchmark.startswith("mini:") and not config.scores:
            drawing.ensure_world()
        return _grids(load_benchmark(config.benchmark)), ""
    except DataError as reason:
        if not config.scores:
            raise
        return None, f"{page.text(reason)}. {HOW_TO_GET}"


def _grids(benchmark: Benchmark) -> Benchmark:
    if benchmark.kind == "grid":
        return benchmark
    raise ParameterError([
        f"benchmark {benchmark.name!r} has no grids of two images and two captions, of which the "
        "atlas is made; 01_baseline shows it, and 02_finetune what changes on it"
    ])  # fmt: skip


def _given(config: FailuresConfig) -> dict[str, pd.DataFrame]:
    """The tables of the score files, by the files' names."""
    paths = [project_path(name.strip()) for name in str(config.scores).split(",")]
    return {path.stem: read_scores(path) for path in paths}


def _is_of(found: Mapping[str, pd.DataFrame], benchmark: Benchmark) -> bool:
    """Whether the score file is of this benchmark: its ids are there and carry the same tags.

    Ids alone prove nothing, since every set counts from 0.
    """
    table, items = next(iter(found.values())), {str(i.id): i for i in benchmark.items}
    rows = table.to_dict("records")
    if not all(str(row["id"]) in items for row in rows):
        return False
    tags = {str(row["id"]): items[str(row["id"])].tags for row in rows}
    shared = set(tags_of(table)) & {tag for found in tags.values() for tag in found}
    return bool(shared) and all(
        str(row[tag]) == tags[str(row["id"])].get(tag, "") for row in rows for tag in shared
    )


def _named(config: ModelsConfig) -> list[str]:
    """The runs in `runs`, none where it is a folder that holds runs."""
    names = [name.strip() for name in (config.runs or "").split(",") if name.strip()]
    return [] if _root(config) != RUNS else names


def _root(config: ModelsConfig) -> str:
    """Where runs are kept: the folder `runs` if it is one that is no run itself."""
    folder = folder_at(config.runs) if config.runs else None
    return str(folder) if folder and not (folder / "identity.json").is_file() else RUNS


def _run(name: str) -> Run:
    """A run by name, id or folder; a relative folder is meant from the project root."""
    folder = folder_at(name)
    known = folder is not None and (folder / "identity.json").is_file()
    return find_run(folder if folder and known else name, RUNS)


def _of_runs(config: FailuresConfig) -> dict[str, pd.DataFrame]:
    """Score tables of the runs named, or of the newest finished ones; the untouched first."""
    found: dict[str, pd.DataFrame] = {}
    for label, run in chosen(config).items():
        name = set_name(run.params["benchmark"])
        found.setdefault(UNTOUCHED, run.scores(f"{UNTOUCHED}-{name}"))
        found[label] = run.scores(name)
    return found


def chosen(config: ModelsConfig) -> dict[str, Run]:
    """The runs that `runs` names, by what to call them; else the newest finished ones.

    RunError for a name that is none. Empty where no run of the same student and benchmark is done.
    """
    found: dict[str, Run] = {}
    for run in [_run(name) for name in _named(config)] or _newest(config):
        arm = CONTROL if run.params["arm"] == "clip-only" else run.params["arm"]
        found[arm if arm not in found else f"{arm} {run.id}"] = run
    return found


def _newest(config: ModelsConfig) -> list[Run]:
    """The newest finished fine-tuning of this benchmark and student, its control before it."""
    same = ("benchmark", "clip_model")
    runs = finished_runs(_root(config))
    runs = [r for r in runs if all(r.params[k] == getattr(config, k) for k in same)]
    if not runs:
        return []
    controls = Controls(runs)
    control = controls.of(runs[0])
    if control is None or control.path != runs[0].path:
        return [control, runs[0]] if control else [runs[0]]
    # a control finishes after the run it stands beside
    arms = (r for r in runs[1:] if (c := controls.of(r)) and c.path == control.path)
    return [control, *islice(arms, 1)]


def _kept(run: Run, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The score table that the run keeps under a name, made first if it is not there yet."""
    if name not in run.score_names():
        run.save_scores(name, make())
    return run.scores(name)


def _untouched(config: FailuresConfig, benchmark: Benchmark) -> pd.DataFrame:
    device = pick_device(config.device)
    student = load_student(config.clip_model, config.clip_pretrained, device)
    return score_grids(clip_scorer(student), benchmark.sample(config.eval_items, config.seed))


def _sampled(found: Mapping[str, pd.DataFrame], config: FailuresConfig) -> dict[str, pd.DataFrame]:
    """`eval_items` of the items drawn at random, in their order; the same in every table."""
    ids = next(iter(found.values()))["id"].astype(str)
    if config.eval_items is None or config.eval_items >= len(ids):
        return dict(found)
    left_out = ids.sample(len(ids) - config.eval_items, random_state=config.seed)
    return {name: t[~t["id"].astype(str).isin(left_out)] for name, t in found.items()}


def _verdict(
    config: FailuresConfig, benchmark: Benchmark, found: Mapping, progress: Follow
) -> pd.DataFrame:
    """The teacher's scores of items drawn at random among those of the atlas."""
    known = set(next(iter(found.values()))["id"].astype(str))
    items = tuple(item for item in benchmark.items if str(item.id) in known)
    part = replace(benchmark, items=items).sample(config.teacher_items, config.seed)
    return baseline.teacher_scores(baseline.load_judge(config), part, config, progress)


def _digest(found: Mapping[str, pd.DataFrame]) -> str:
    text = "".join(f"{name}\n{table.to_csv(index=False)}" for name, table in found.items())
    return hashlib.sha256(text.encode()).hexdigest()


def _note(config: FailuresConfig, found: Mapping[str, pd.DataFrame]) -> str:
    world = "mini-world" if config.in_mini_world and not config.scores else ""
    return _counted(world, next(iter(found.values())))


def _counted(world: str, table: pd.DataFrame) -> str:
    return f"{world}, {len(table)} items".removeprefix(", ")


def scores(study: Study) -> pd.DataFrame:
    """`tables.tabulate` of every model by the tags that have few labels, with a column `model`."""
    atlas, rows = study.atlas, []
    for name, table in atlas.tables.items():
        by = [tag for tag in WINOGROUND_TAGS if tag in table and table[tag].nunique() > 1]
        found = tabulate(None, table, rule=atlas.rules.get(name, ""), by=by)
        rows.append(found[~found["label"].str.startswith("macro")].assign(model=name))
    found = pd.concat(rows, ignore_index=True)
    return found[["model", *(c for c in found if c not in ("model", "partial"))]].round(4)


def draw(study: Study) -> dict[str, Any]:
    """The figures of the atlas by name; a sentence where one would need a second model."""
    atlas, note = study.atlas, study.atlas.note
    students = [name for name in atlas.tables if name != TEACHER]
    last, parts = students[-1], atlas.parts
    by = [t for t in WINOGROUND_TAGS if t in atlas.first and atlas.first[t].nunique() > 1]
    shares = failures.mode_shares(atlas.tables[last], parts[last], by)
    alone = Markdown("One model only: two score files, or runs, show what changes between them.")
    world = "mini-world" if note.startswith("mini") else ""
    label = "human, real set" if world else "human"
    drawn = {
        "scores": figures.scores_by_tag(scores(study), note, human_label=label),
        "modes": figures.failure_modes(shares, note, f"What {last} gets wrong, by tag"),
        "choices": figures.confusion(
            failures.choice_counts(parts[last]), note, f"Text against image, {last}"
        ),
        "calibration": figures.calibration(_calibration(atlas), note),
        "margins": alone,
        "flips": alone,
        "agreement": Markdown("No teacher's verdict: it needs images, and teacher_items above 0."),
    }
    if len(students) > 1:
        pairs = failures.margin_pairs(parts[students[0]], parts[last])
        drawn["margins"] = figures.margins(pairs, note, (students[0], last), "Text margins")
        drawn["flips"] = figures.flips(failures.flows({s: parts[s] for s in students}), note)
    if TEACHER in atlas.tables:
        seen = _counted(world, atlas.tables[TEACHER])
        drawn["agreement"] = figures.agreement(_agreements(atlas, students), seen)
    return drawn


def _calibration(atlas: Atlas) -> pd.DataFrame:
    whole = len(atlas.first)
    names = {
        name: name if len(table) == whole else f"{name} ({len(table)} items)"
        for name, table in atlas.tables.items()
    }
    rows = [
        failures.calibration({names[name]: table}, atlas.rules.get(name, ""))
        for name, table in atlas.tables.items()
    ]
    return pd.concat(rows, ignore_index=True)


def _agreements(atlas: Atlas, students: Sequence[str]) -> dict[str, pd.DataFrame]:
    teacher = atlas.parts[TEACHER].set_index("id")["text"]
    found = {}
    for name in students:
        student = atlas.parts[name].set_index("id").loc[teacher.index, "text"]
        found[name] = failures.agreement(student, teacher, (name, TEACHER))
    return found


def save(study: Study, drawn: Mapping[str, Any]) -> str:
    """Write the page and the figures into the run's folder `atlas`; says where the page is."""
    run = study.run
    if not run.finished:
        with run, run.staged("atlas") as folder:
            (folder / "atlas.html").write_text(document(study.atlas), "utf-8")
            for name, figure in drawn.items():
                if isinstance(figure, figures.Picture):
                    figures.save(figure, folder, name)
        run.save_results(scores(study))
        run.finish()
    return _page_of(run)


def show(study: Study) -> Any:
    """The live widget where somebody can use it, else the static page, for a saved notebook."""
    path = page.text(_page_of(study.run))
    kept = f"<p>All items, to read without a kernel: <code>{path}</code></p>"
    return page.live_or_saved(lambda: Browser(study.atlas).view, lambda: html(study.atlas), kept)


def _page_of(run: Run) -> str:
    return f"{run.shown_path}/atlas/atlas.html"
