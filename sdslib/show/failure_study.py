"""The study of failures: from score files, runs or the untouched student to an atlas and figures.

What it computes (scores of the untouched student, the teacher's verdict) is kept in a run, whose
folder `atlas` holds the page and the figures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown, display

from sdslib.benchmarks import Benchmark
from sdslib.checks.fingerprints import weights_fingerprints
from sdslib.checks.notebooks import FailuresConfig
from sdslib.config import CONTROL, UNTOUCHED, ModelsConfig, set_name
from sdslib.evaluate import clip_scorer, score_grids
from sdslib.experiment import pick_device
from sdslib.io.paths import project_path, shown_path
from sdslib.io.runs import Run, find_run, finished_runs, open_run
from sdslib.io.sources import DataError
from sdslib.io.storage import staged_folder
from sdslib.io.wording import ParameterError
from sdslib.lab import baseline
from sdslib.lab.baseline import TEACHER
from sdslib.results import answers, failures, formatting
from sdslib.results.comparison import names_of, read_scores
from sdslib.results.settings import Controls, made_by, named_runs, root, run_folder
from sdslib.results.side_by_side import newest
from sdslib.results.sweep import swept
from sdslib.sets.roles import load_set
from sdslib.show import figures, item_figures, page, seen, style
from sdslib.show.atlas import Atlas, build, document, flipped, html
from sdslib.show.run_picker import RunPicker
from sdslib.student import load_student
from sdslib.tables import WINOGROUND_TAGS, TableError, tabulate, tags_of

Follow = Callable[[Iterable, int], Iterable]
DRAWN_BY = "drawn_by"  # beside the page
MAPPED = 6  # items whose maps the page has


@dataclass(frozen=True)
class Study:
    """An atlas, the run that keeps what it took to make it, and the world if that is drawn."""

    atlas: Atlas
    run: Run
    world: str
    config: FailuresConfig


def collect(config: FailuresConfig, progress: Follow = lambda items, total: items) -> Study:
    """The atlas that the parameters ask for: of score files, of runs, or of the untouched student.

    `runs` names runs, or one folder that holds runs. Without `scores` and named runs it takes the
    newest finished run of the benchmark (see `chosen`) and its control. The teacher's verdict is
    added on `teacher_items` items where there are images. What is computed is kept in the run.
    """
    benchmark, absent = _benchmark(config)
    models = {} if config.scores else chosen(config)
    found = _of_runs(models)
    if config.scores:
        paths = [project_path(name.strip()) for name in config.scores.split(",")]
        found = {name: read_scores(path) for path, name in names_of(paths).items()}
        if not (benchmark and _is_of(found, benchmark)):
            benchmark = None
    text = "".join(f"{name}\n{table.to_csv(index=False)}" for name, table in found.items())
    prints = {"scores": hashlib.sha256(text.encode()).hexdigest()} | weights_fingerprints(config)
    prints |= {} if benchmark is None else {"benchmark": benchmark.fingerprint}
    run = open_run(config, prints, root(config))
    baseline.use_threads(config)
    with run if not run.finished else nullcontext():
        if not found and benchmark is not None:
            found = {UNTOUCHED: _kept(run, UNTOUCHED, lambda: _untouched(config, benchmark))}
        found = _sampled(found, config)
        if benchmark is not None and config.teacher_items:
            verdict = _kept(run, TEACHER, lambda: _verdict(config, benchmark, found, progress))
            found[TEACHER] = verdict
    world = config.label if config.in_mini_world and not config.scores else ""
    note = _counted(world, next(iter(found.values())))
    title = f"{benchmark.name} failures" if benchmark else "Failures"
    atlas = build(found, benchmark, title, note, absent)
    told = {label: made_by(model) for label, model in models.items()}
    named = models if named_runs(config) else {}
    remarks = tuple(_remarks(config, found))
    atlas = replace(atlas, passports=told, remarks=remarks, begun=_begun(named))
    return Study(atlas, run, world, config)


def _begun(models: Mapping[str, Run]) -> str:
    """Of two or more runs that somebody named the first; the last is held against it."""
    return next(iter(models)) if len(models) > 1 else ""


def _remarks(config: FailuresConfig, found: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Where fewer items are there than were asked for, and which runs were not taken."""
    there = len(next(iter(found.values())))
    if config.eval_items and config.eval_items > there:
        yield f"{config.eval_items} items were asked for; {there} are there, and all are shown."
    judged = len(found.get(TEACHER, ()))
    if judged and config.teacher_items > judged:
        yield f"The teacher was to judge {config.teacher_items} items; {judged} are there."
    if not config.scores and (left := left_out(config)):
        yield left


def models(study: Study) -> Any:
    """Beside every model's name its run, steps, seed and items; and what a reader has to know."""
    atlas = study.atlas
    rows = [(name, atlas.passports.get(name, "no run"), len(t)) for name, t in atlas.tables.items()]
    table = pd.DataFrame(rows, columns=["model", "made by", "items shown"])
    return formatting.listing(table, more=atlas.remarks)


def _benchmark(config: FailuresConfig) -> tuple[Benchmark | None, str]:
    """The set with its images, or why it is not here; without `scores` it has to be."""
    try:
        found = load_set(config.benchmark)
    except DataError as reason:
        if not config.scores:
            raise
        return None, str(reason)
    if found.kind in ("grid", "choice", "triplet"):
        return found, ""
    raise ParameterError([
        f"benchmark {found.name!r} has no captions to choose from for each item, of which the "
        "atlas is made; 01_baseline shows it, and 02_finetune what changes on it"
    ])  # fmt: skip


def _is_of(found: Mapping[str, pd.DataFrame], benchmark: Benchmark) -> bool:
    """Whether the score file is of this benchmark: its ids are there and carry the same tags.

    Ids alone prove nothing, since every set counts from 0.
    """
    table, tags = next(iter(found.values())), {str(i.id): i.tags for i in benchmark.items}
    ids = table["id"].astype(str)
    if not ids.isin(list(tags)).all():
        return False
    own = pd.DataFrame([tags[i] for i in ids], table.index).fillna("")
    shared = own.columns.intersection(tags_of(table))
    return bool(len(shared)) and bool((own[shared] == table[shared].astype(str)).all(axis=None))


def _of_runs(models: Mapping[str, Run]) -> dict[str, pd.DataFrame]:
    """Score tables of runs by what they are called; that of the untouched student first."""
    found: dict[str, pd.DataFrame] = {}
    for label, run in models.items():
        name = set_name(run.params["benchmark"])
        found.setdefault(UNTOUCHED, run.scores(f"{UNTOUCHED}-{name}"))
        found[label] = run.scores(name)
    return found


def chosen(config: ModelsConfig) -> dict[str, Run]:
    """The runs that `runs` names, by what to call them; else the newest one and its control.

    A sweep's runs are never the newest, and a control is none by itself. RunError for a name that
    is none. Empty where no such run of the same student and benchmark is done.
    """
    names, folder = named_runs(config), root(config)
    found = [find_run(run_folder(name) or name, folder) for name in names]
    return called(found or newest(_finished(config), folder)[::-1])


def called(runs: Sequence[Run]) -> dict[str, Run]:
    """Runs by what to call them: their arm; a run with L_CLIP alone is the control of its run."""
    controls, taught = Controls(runs), [r for r in runs if r.params["arm"] != "clip-only"]
    own = {control.path for run in taught if (control := controls.of(run))}
    found: dict[str, Run] = {}
    for run in runs:
        arm = run.params["arm"]
        if arm == "clip-only":
            arm = CONTROL if run.path in own or not taught else f"{CONTROL}, not their control"
        found[arm if arm not in found else f"{arm} {run.id}"] = run
    return found


def offered(config: ModelsConfig) -> dict[str, Run]:
    """The finished runs of this benchmark and student by their passports, the newest first."""
    there = swept(root(config))
    return {made_by(run) + " (a sweep's)" * (run.id in there): run for run in _finished(config)}


def left_out(config: ModelsConfig) -> str:
    """How many finished runs were not taken for the newest because they are a sweep's."""
    if named_runs(config):
        return ""
    there = swept(root(config))
    count = sum(run.id in there for run in _finished(config))
    told = f"{count} finished run{'s are' if count != 1 else ' is'} a sweep's"
    return f"{told}, and none of a sweep's is taken as the newest: name one." if count else ""


def _finished(config: ModelsConfig) -> list[Run]:
    """The finished fine-tunings of this benchmark and student, the newest first."""
    same = ("benchmark", "clip_model")
    return [
        r
        for r in finished_runs(root(config))
        if all(r.params[k] == getattr(config, k) for k in same)
    ]


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


def _counted(world: str, table: pd.DataFrame) -> str:
    return f"{world}, {len(table)} items".removeprefix(", ")


def _tags(table: pd.DataFrame) -> list[str]:
    """The tags by which Winoground's authors tell its results, or others of few labels, where they
    tell items apart."""
    known = WINOGROUND_TAGS if failures.is_square(table) else tags_of(table)
    return [tag for tag in known if tag in table and 1 < table[tag].nunique() <= 30]


def scores(study: Study) -> pd.DataFrame:
    """`tables.tabulate` of every model by the tags that have few labels, with a column `model`."""
    atlas, rows = study.atlas, []
    for name, table in atlas.tables.items():
        found = tabulate(None, table, rule=atlas.rules[name], by=_tags(table))
        rows.append(found[~found["label"].str.startswith("macro")].assign(model=name))
    found = pd.concat(rows, ignore_index=True)
    return found[["model", *(c for c in found if c not in ("model", "partial"))]].round(4)


def draw(study: Study) -> dict[str, Any]:
    """The figures of the atlas by name; a sentence where one would need another model or set."""
    atlas, parts, note = study.atlas, study.atlas.parts, study.atlas.note
    students, metric = atlas.students, atlas.metrics[0]
    first, last = atlas.compared
    people = "human, real set" if study.world else "human"
    shares = failures.mode_shares(atlas.tables[last], parts[last], _tags(atlas.first))
    alone = Markdown("One model only: two score files, or runs, show what changes between them.")
    drawn = {
        "scores": figures.scores_by_tag(scores(study), note, human_label=people),
        "modes": item_figures.failure_modes(shares, note, f"What {last} gets wrong, by tag"),
        "choices": Markdown("Items with one image: no image is taken for two captions."),
        "calibration": item_figures.calibration(_calibration(atlas), note),
        "margins": alone,
        "flips": alone,
        "agreement": Markdown("No teacher's verdict: it needs images, and teacher_items above 0."),
    }
    if atlas.modes:
        choices = failures.choice_counts(parts[last])
        drawn["choices"] = figures.agreement({"": choices}, note, f"Text against image, {last}")
    if len(students) > 1:
        pairs = failures.margin_pairs(parts[first], parts[last], metric)
        drawn["margins"] = item_figures.margins(pairs, note, (first, last), metric)
        drawn["flips"] = item_figures.flips(failures.flows({s: parts[s] for s in students}), note)
    if TEACHER in atlas.tables:
        right = {name: part.set_index("id")[metric] for name, part in parts.items()}
        teacher = right[TEACHER]
        counts = {s: failures.agreement(right[s].loc[teacher.index], teacher, (s, TEACHER))
                  for s in students}  # fmt: skip
        drawn["agreement"] = figures.agreement(counts, _counted(study.world, atlas.tables[TEACHER]))
    return drawn


def kinds(study: Study) -> pd.DataFrame:
    """The kinds of failure of the last student, see `failures.kinds`."""
    return failures.kinds(study.atlas.parts[study.atlas.students[-1]])


def _calibration(atlas: Atlas) -> pd.DataFrame:
    """`failures.calibration` of every model; one that scored fewer items says how many."""
    whole, rows = len(atlas.first), []
    for name, table in atlas.tables.items():
        told = name if len(table) == whole else f"{name} ({len(table)} items)"
        rows.append(failures.calibration({told: table}, atlas.rules[name]))
    return pd.concat(rows, ignore_index=True)


def save(study: Study, drawn: Mapping[str, Any]) -> str:
    """Write the page and the figures into the run's folder `atlas`; says where the page is.

    Those of a finished run are left, unless another program drew them: its scores never change.
    """
    run = study.run
    if not run.finished:
        with run, run.staged("atlas") as folder:
            _write(folder, study, drawn)
        run.save_results(scores(study))
        run.finish()
    elif not _is_drawn(run) and os.access(run.path, os.W_OK):
        with staged_folder(run.path / "atlas") as folder:
            _write(folder, study, drawn)
    return _page_of(run)


def _write(folder: Path, study: Study, drawn: Mapping[str, Any]) -> None:
    _map(study, MAPPED)
    (folder / "atlas.html").write_text(document(study.atlas), "utf-8")
    (folder / DRAWN_BY).write_text(page.program())
    for name, figure in drawn.items():
        if isinstance(figure, style.Picture):
            style.save(figure, folder, name)


def _is_drawn(run: Run) -> bool:
    """Whether the run has its page, and by this program, see `page.program`."""
    kept = run.path / "atlas" / DRAWN_BY
    return kept.is_file() and kept.read_text() == page.program()


def look(study: Study) -> Any:
    """Where student and teacher see the words of one item's caption: of the first that changed, or
    the first. A sentence where pictures or weights are not there.

    The page has them of the first `MAPPED`; of a finished study they are not made again.
    """
    said = _map(study, 1 if _is_drawn(study.run) else MAPPED)
    return next(iter(study.atlas.maps.values()), Markdown(said))


def _map(study: Study, count: int) -> str:
    """Bring the atlas to have the maps of `count` items; says why it has none."""
    atlas, config = study.atlas, study.config
    if config.scores or not atlas.items:
        return "No maps: they need pictures, and the students' weights."
    items = [atlas.items[i] for i in dict.fromkeys([*flipped(atlas), *atlas.ids])][:count]
    if len(atlas.maps) >= len(items):
        return ""
    models = seen.at_hand(config, chosen(config), TEACHER in atlas.tables, config.device)
    for item in items:
        place = (atlas.true[str(item.id)] or (0,))[0]
        maps = seen.maps(models, item, place, config.seed)
        if drawn := seen.figure(maps, item, study.world):
            atlas.maps[str(item.id)] = drawn
    return " ".join(models.absent) or "No maps: these students' attention says nothing of places."


def told(study: Study) -> answers.Sentence:
    """The answer, and where the page is."""
    return answers.together([study.atlas.answer, f"The page: {_page_of(study.run)}"])


def show(study: Study) -> Any:
    """The atlas, with a list of the finished runs above it where somebody can pick others."""
    if not page.is_live():
        return HTML(html(study.atlas))

    def put(atlas: Atlas) -> bool:
        shown.update(HTML(html(atlas)))
        return True

    kept = page.render("kept", path=_page_of(study.run))
    display(page.Live(run_picker(study, put).view, kept))
    shown = display(HTML(html(study.atlas)), display_id=True)
    return None


def run_picker(study: Study, put: Callable[[Atlas], Any]) -> RunPicker:
    """The list of runs; the atlas of those that are marked is `put` in its place."""
    there, shown = {} if study.config.scores else offered(study.config), study.atlas.passports
    return RunPicker(there, shown.values(), lambda runs: put(of_runs(study, runs)))


def of_runs(study: Study, runs: Sequence[Run]) -> Atlas:
    """The study's atlas with the students of other runs; TableError where they have other items."""
    old, models = study.atlas, called(runs)
    found = _of_runs(models) or {UNTOUCHED: old.tables[UNTOUCHED]}
    found = {name: t[t["id"].astype(str).isin(old.ids)] for name, t in found.items()}
    if short := [name for name, table in found.items() if len(table) < len(old.ids)]:
        raise TableError(f"{short[0]} has not scored all {len(old.ids)} items that are shown here")
    found |= {name: table for name, table in old.tables.items() if name == TEACHER}
    told = {label: made_by(run) for label, run in models.items()}
    return replace(build(found), title=old.title, note=old.note, items=old.items,
                   absent=old.absent, passports=told, begun=_begun(models))  # fmt: skip


def _page_of(run: Run) -> str:
    return shown_path(run.path / "atlas" / "atlas.html")
