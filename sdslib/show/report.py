"""The report of finished runs, to hand on: one HTML page and its PDF, each complete in itself.

It says what was asked, how, on which data, what came out and how sure that is, shows the most
telling examples, and names parameters, versions and the exact lines that run it again. Equal runs
give equal files.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sdslib import experiment, tables
from sdslib.benchmarks import Benchmark
from sdslib.config import (
    FinetuneConfig,
    ReportConfig,
    is_mini,
    shown_path,
)
from sdslib.experiment import CONTROL, UNTOUCHED
from sdslib.io import storage
from sdslib.io.runs import Run, runs_root
from sdslib.io.sources import DataError
from sdslib.results import failures, formatting
from sdslib.results.cases import (
    SMALL,
    Case,
    config_of,
    members,
    output_folder,
    papermill_line,
    score_tables,
)
from sdslib.results.formatting import p_value, points
from sdslib.sets.roles import RETRIEVAL, load_set
from sdslib.show import atlas, document, figures, modelcard, page
from sdslib.show.atlas import Atlas, Query
from sdslib.show.document import (
    Block,
    Card,
    Code,
    Document,
    Drawing,
    Heading,
    Link,
    Table,
    paragraph,
)

NAME = "report"
TITLE = "Does a diffusion teacher make CLIP compositional?"
PAPER = Link(
    "Basu et al., Distilling Knowledge from Text-to-Image Generative Models Improves "
    "Visio-Linguistic Reasoning in CLIP (EMNLP 2024)",
    "https://arxiv.org/abs/2307.09233",
)
EQUATIONS = (
    (
        r"L_{\mathrm{total}} = L_{\mathrm{CLIP}} + \lambda\, L_{\mathrm{SDS}}",
        "L total equals L CLIP plus lambda times L SDS; lambda is the parameter sds_weight",
    ),
    (
        r"L_{\mathrm{SDS}} = \mathbb{E}_{t,\epsilon}\,\left\Vert \epsilon_\theta\left("
        r"\sqrt{\bar\alpha_t}\,z + \sqrt{1-\bar\alpha_t}\,\epsilon,\ t,\ c\right) - \epsilon"
        r"\right\Vert_2^2, \qquad z = h_w\left(f_\phi(x)\right)",
        "L SDS is the mean over timesteps t and noise epsilon of the squared distance between the "
        "noise that the teacher epsilon theta predicts, from the noised latent under caption c, "
        "and the noise epsilon; the latent z is the linear map h w of CLIP's embedding f of x",
    ),
)


@dataclass(frozen=True)
class Report:
    """A document, its figures by name, the cases it tells of, and where it goes."""

    document: Document
    figures: dict[str, figures.Picture]
    cases: tuple[Case, ...]
    folder: Path


# --- the whole -----------------------------------------------------------------------------------


def build(config: ReportConfig, cases: Sequence[Case]) -> Report:
    """The document of these cases and its figures; reads what the runs kept, computes no model."""
    drawn: dict[str, figures.Picture] = {}
    results = [block for n, case in enumerate(cases) for block in _case(case, n, drawn)]
    mini = any(case.config.in_mini_world for case in cases)
    count = sum(len(case.runs) for case in cases)
    told = Document(
        config.title or TITLE,
        f"SDS-CLIP, {count} run{'s' * (count > 1)}{' · mini-world' * mini}",
        _date(cases),
        [
            *_warnings(cases),
            *_question(cases),
            *_method(cases),
            *_data(cases),
            Heading("Results"),
            *results,
            *_examples(config, cases[0]),
            *_parameters(cases),
            *_versions(cases),
            *_again(cases),
        ],
    )
    return Report(told, drawn, tuple(cases), output_folder(config))


def save(report: Report) -> pd.DataFrame:
    """Write page, PDF, figures (PNG, SVG, PDF) and a model card a run; says what is where.

    Files are `report.html`, `report.pdf`, `report_figures/` and, in each run that has weights,
    `README.md`.
    """
    report.folder.mkdir(parents=True, exist_ok=True)
    text = document.html(report.document, page.asset("atlas.css"))
    wrote = {
        report.folder / f"{NAME}.html": text.encode(),
        report.folder / f"{NAME}.pdf": document.pdf(report.document),
    }
    for path, data in wrote.items():
        storage.write_bytes(path, data)
    drawn = report.folder / f"{NAME}_figures"
    for name, figure in report.figures.items():
        figures.save(figure, drawn, name)
    rows = [(shown_path(path), f"{len(data) / 1000:.0f} kB") for path, data in wrote.items()]
    rows.append((shown_path(drawn), f"{len(report.figures)} figures as PNG, SVG and PDF"))
    for run, control in members(report.cases):
        if run.weights.is_dir():
            rows.append((shown_path(modelcard.write(run, control)), "model card"))
    return pd.DataFrame(rows, columns=["file", "holds"])


def push(config: ReportConfig, report: Report) -> str:
    """Send the first run's weights and card to `push_to` on the Hub; without it, say so."""
    case = report.cases[0]
    if config.push_to is None:
        return "nothing was sent: push_to is None"
    where = modelcard.push(case.run, config.push_to, case.control)
    return f"{case.run.name} was sent to {where}"


def _date(cases: Sequence[Case]) -> datetime:
    """When the last of the runs ended: a report of the same runs stays the same."""
    return max(datetime.fromisoformat(run.status()["updated"]) for run, _ in members(cases))


# --- chapters ------------------------------------------------------------------------------------


def _warnings(cases: Sequence[Case]) -> list[Block]:
    found: list[Block] = []
    for how in dict.fromkeys(filter(None, (modelcard.drawn(case.config) for case in cases))):
        text = (
            f"Mini-world: {how} on small drawn scenes. This shows the method and "
            "tests the code; it is no evidence about real CLIP."
        )
        found.append(paragraph(text, kind="warning"))
    if any(case.run.name.startswith(f"{SMALL}-") for case in cases):
        text = (
            "A small run: made only because there was no finished one. It is too short and its set "
            "too small to answer the question; it shows what a report holds."
        )
        found.append(paragraph(text, kind="warning"))
    return found


def _question(cases: Sequence[Case]) -> list[Block]:
    asked = paragraph(
        "CLIP names what is in a picture and hardly sees how it is arranged. A text-to-image "
        "diffusion model has to. Does fine-tuning CLIP with the denoising error of a frozen "
        "Stable Diffusion (SDS-CLIP) make it tell apart captions of the same words, and more than "
        "fine-tuning by L_CLIP alone on the same pairs does? After ",
        PAPER,
        ".",
    )
    answers = [
        paragraph(f"{case.title}: {line}" if len(cases) > 1 else line, kind="item")
        for case in cases
        for line in _answers(case)
    ]
    return [Heading("Question and answer"), asked, *answers]


def _answers(case: Case) -> list[str]:
    """One sentence a comparison: the first metric, its interval, and what follows from it."""
    if len(case.runs) > 1 and all(case.controls):
        table = _over_seeds(case)
        table = table.assign(p=float("nan"), mdd=float("nan"))
    else:
        table = case.paired
        table = table[table["tag"] == "all"]
    table = table[table["metric"] == table["metric"].iloc[0]]
    return [_verdict(row) for row in table.itertuples()]


def _verdict(row: Any) -> str:
    """A comparison in words; an interval that holds 0 shows no difference."""
    found = "higher" if row.low > 0 else "lower" if row.high < 0 else "no difference shown"
    change = points(row.difference, row.low, row.high)
    head = f"{row.comparison}, {row.metric} score: {change} points"
    if pd.isna(row.p):
        return f"{head} over {row.seeds} seeds: {found}."
    limit = f"; {row.n} items show differences from about {100 * row.mdd:.1f} points on"
    sure = f"p {p_value(row.p)}" if row.p < 0.001 else f"p = {p_value(row.p)}"
    return f"{head}, {sure}: {found}{limit}."


def _method(cases: Sequence[Case]) -> list[Block]:
    formulas = [Drawing(figures.equation(tex, words)) for tex, words in EQUATIONS]
    config = cases[0].config
    trained = paragraph(
        "L_CLIP is CLIP's symmetric contrastive loss over the batch; f is the student's image "
        "tower, h_w a linear map that is trained along, c the image's caption, t and the noise "
        "are drawn anew at every step, and the teacher is frozen. The gradient of L_SDS goes "
        + ("through the UNet." if config.sds_gradient == "through"
           else "past the UNet, as in DreamFusion (residual).")
    )  # fmt: skip
    measured = paragraph(
        "Every model scores the same items. An item of 2 images and 2 captions counts for text "
        "where each image prefers its caption, for image where each caption prefers its image, "
        "for group where both hold; an exact tie counts as wrong. Shares have 95% Wilson "
        "intervals, differences a paired bootstrap and the exact McNemar test, with Holm's "
        "correction over the labels of a tag. The control is the same student, trained on the "
        "same pairs in the same order by L_CLIP alone: what it gains too is no gain of the "
        "teacher's."
    )
    return [Heading("Method"), *formulas, trained, measured]


def _data(cases: Sequence[Case]) -> list[Block]:
    config = cases[0].config
    prints = cases[0].run.identity["data"]
    pairs = "all" if config.train_pairs is None else f"the first {config.train_pairs}"
    rows = [("training pairs", _told(config.train_data, config), pairs, _short(prints, "pairs"))]
    for name in _sets(cases[0].run):
        what = "reported" if name == experiment.reported(cases[0].run) else "must not suffer"
        what = "chosen on, never reported" if name == experiment.VALIDATION else what
        count = f"{_count(cases[0].run.scores(name))}, {what}"
        rows.append(("set", _told(name, config), count, _short(prints, name)))
    model = f"{config.clip_model} {config.clip_pretrained or ''}".strip()
    moved = f"{config.trainable} trained"
    rows.append(("student", _told(model, config), moved, _short(prints, "student")))
    teacher = f"{config.teacher} {config.teacher_revision or ''}".strip()
    frozen = f"frozen, {config.precision}"
    rows.append(("teacher", _told(teacher, config), frozen, _short(prints, "teacher")))
    caption = "What was read, by name and by the beginning of its content's SHA-256."
    return [Heading("Data"), Table(caption, ("part", "source", "use", "content"), rows)]


def _told(name: str, config: FinetuneConfig) -> str:
    """A part of the data by name, marked where it is the mini-world's.

    Validation and retrieval do not say whose they are: the reported set brings them.
    """
    own = name in (experiment.VALIDATION, RETRIEVAL) and is_mini(config.benchmark)
    drawn = own or is_mini(name) or name.startswith("mini-") or "data/mini/" in name
    return f"{name} (mini-world)" if drawn else name


def _count(scores: pd.DataFrame) -> str:
    """How many items were scored, and of how many where the set has more."""
    n, total = len(scores), scores.attrs.get("total", len(scores))
    return f"{n} items" if n == total else f"{n} of {total} items"


def _short(prints: Mapping[str, str], name: str) -> str:
    return str(prints.get(name, "by its name"))[:12]


def _sets(run: Run) -> list[str]:
    """The scored sets of a run, the reported one first."""
    names = [n for n in run.score_names() if not n.startswith(f"{UNTOUCHED}-")]
    return sorted(names, key=lambda n: (n != experiment.reported(run), n))


# --- results -------------------------------------------------------------------------------------


def _case(case: Case, number: int, drawn: dict[str, figures.Picture]) -> list[Block]:
    """Tables and figures of one case; the figures are also put into `drawn` by name."""
    scores, prefix = case.scores, f"{number + 1}-"
    shares, paired = experiment.before_after(scores), case.paired
    made = _figures(case, shares, paired)
    drawn |= {prefix + name: drawing.figure for name, drawing in made.items()}
    blocks: list[Block] = [Heading(case.title, 3), paragraph(_which(case))]
    if case.control is None:
        text = "No finished run with L_CLIP alone and the same parameters was found: whatever "
        text += "changes here may be a gain of fine-tuning and not of the teacher."
        blocks.append(paragraph(text, kind="warning"))
    blocks += [_share_table(shares, case), made["scores"], _paired_table(paired), made["change"]]
    if len(case.runs) > 1 and all(case.controls):
        blocks.append(_seed_table(case))
    kept = _kept_table(case)
    blocks += [kept] if kept else []
    blocks += [made[name] for name in ("training", "margins", "outcomes") if name in made]
    return blocks


def _which(case: Case) -> str:
    seeds = ", ".join(str(run.params["seed"]) for run in case.runs)
    names = f"Run {case.run.name}" + (f", control {case.control.name}" if case.control else "")
    several = f"; seeds {seeds}, of which the first is shown by item" if len(case.runs) > 1 else ""
    return f"{names}{several}. {len(next(iter(case.scores.values())))} items ({case.note})."


def _share_table(shares: pd.DataFrame, case: Case) -> Table:
    caption = f"Shares of right items with 95% intervals, before and after ({case.note})."
    return _table(caption, formatting.shares(shares), "metric, tag")


def _table(caption: str, told: pd.DataFrame, *first: str) -> Table:
    """A table of `readable`; its keys fill the `first` columns, the last takes what is left."""
    alone = len(first) - 1
    rows = [
        (*key[:alone], ", ".join(key[alone:]), *map(str, row))
        for key, row in zip(told.index, told.to_numpy(), strict=True)
    ]
    return Table(caption, (*first, *told.columns), rows)


def _paired_table(paired: pd.DataFrame) -> Table:
    caption = (
        "Paired differences on the same items, in points: bootstrap interval, exact McNemar p, "
        "Holm's p over the labels of a tag, items that went right and wrong, and the smallest "
        "difference that so many items and flips would show with power 0.8."
    )
    return _table(caption, formatting.differences(paired), "comparison", "metric, tag")


def _over_seeds(case: Case) -> pd.DataFrame:
    """`tables.compare_over_seeds` of the arm against each other model, with a column comparison."""
    pairs = zip(case.runs, case.controls, strict=True)
    by_seed = [score_tables(run, control) for run, control in pairs]
    *others, last = by_seed[0]
    rows = [
        tables.compare_over_seeds([s[other] for s in by_seed], [s[last] for s in by_seed]).assign(
            comparison=f"{last} against {other}"
        )
        for other in others
    ]
    return pd.concat(rows, ignore_index=True)


def _seed_table(case: Case) -> Table:
    rows = [
        (row.comparison, row.metric, str(row.seeds), points(row.difference, row.low, row.high),
         f"{100 * row.smallest:+.1f} to {100 * row.largest:+.1f}".replace("-", "−"))
        for row in _over_seeds(case).itertuples()
    ]  # fmt: skip
    caption = "Over all seeds, in points: mean difference, bootstrap over seeds and items at once."
    head = ("comparison", "metric", "seeds", "difference", "single seeds")
    return Table(caption, head, rows)


def _kept_table(case: Case) -> Table | None:
    kept = experiment.retention(case.run, case.control or case.run)
    if kept.empty:
        return None
    if case.control is None and case.run.params["arm"] != "clip-only":
        kept = kept[kept["model"] != CONTROL]
    caption = f"What it cost elsewhere: sets that must not suffer ({case.note})."
    return _table(caption, formatting.shares(kept), "set, metric")


def _figures(case: Case, shares: pd.DataFrame, paired: pd.DataFrame) -> dict[str, Drawing]:
    """The figures of a case by name, each with its caption."""
    note, scores, human = case.note, case.scores, experiment.human(case.config)
    *_, last = scores
    found = {
        "scores": Drawing(
            figures.scores_by_tag(shares, note, human),
            "Shares of right items by tag, with 95% Wilson intervals; dashed lines are chance"
            + (" and people." if human else "."),
        ),
        "change": Drawing(
            figures.before_after(paired, note),
            "Paired differences. Inside the gray band a difference is too small for this set.",
        ),
        "training": Drawing(
            figures.history(_history(case), note), "Training. Losses are means of a batch."
        ),
    }
    if all(_is_winoground_like(table) for table in scores.values()):
        parts = {name: failures.anatomy(table) for name, table in scores.items()}
        pairs = failures.margin_pairs(parts[UNTOUCHED], parts[last])
        found["margins"] = Drawing(
            figures.margins(pairs, note, (UNTOUCHED, last), "Text margin of every item"),
            "A margin is the smaller of an item's two leads; right is above zero.",
        )
        found["outcomes"] = Drawing(
            figures.flips(failures.flows(parts), note),
            "Where items go from model to model; strong ribbons change their outcome.",
        )
    return found


def _history(case: Case) -> pd.DataFrame:
    *_, last = case.scores
    parts = [case.run.history().assign(run=last)]
    if case.control is not None and case.control.path != case.run.path:
        parts.insert(0, case.control.history().assign(run=CONTROL))
    return pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)


def _is_winoground_like(table: pd.DataFrame) -> bool:
    if "rank" in table or not tables.is_grid(table):
        return False
    return tables.grids_of(table).shape[1:] == (2, 2)


# --- examples ------------------------------------------------------------------------------------


def telling(found: Atlas, before: str, after: str, count: int) -> list[str]:
    """Ids of the most telling items, text score: flips, both ways in turn, then large changes.

    Flips are those whose margin changes most; a third of the places, and what flips leave free,
    goes to items that stay right or wrong while their margin moves most.
    """
    query = Query(model=after, against=before, sort="largest change first")
    ways = [atlas.select(found, replace(query, change=way)) for way in ("gained", "lost")]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*ways))
    flips = [item for item in turns if item is not None]
    rest = [item for item in atlas.select(found, query) if item not in set(flips)]
    first = flips[: max(count - count // 3, count - len(rest))]
    return first + rest[: count - len(first)]


def _examples(config: ReportConfig, case: Case) -> list[Block]:
    """The most telling items of the first case as cards with their pictures."""
    head: list[Block] = [Heading("Examples")]
    scores = case.scores
    if not all(_is_winoground_like(table) for table in scores.values()):
        text = "Examples are shown for sets of two images and two captions an item."
        return [*head, paragraph(text)]
    benchmark, absent = _benchmark(case.config)
    found = atlas.build(scores, benchmark, note=case.note, absent=absent)
    *_, last = scores
    chosen = telling(found, UNTOUCHED, last, config.examples)
    text = (
        f"The {len(chosen)} most telling items between {UNTOUCHED} and {last} ({case.note}): "
        "flips of the text score, gained and lost in turn, then the largest changes of margin. "
        "They were chosen for what changed, so they say nothing about how often it does."
    )
    told = [paragraph(text)]
    if absent:
        told.append(paragraph(absent, kind="warning"))
    return [*head, *told, *(_card(found, item) for item in chosen)]


def _benchmark(config: FinetuneConfig) -> tuple[Benchmark | None, str]:
    """The reported set with its pictures, or why they are not here."""
    try:
        return load_set(config.benchmark), ""
    except DataError as reason:
        return None, f"Pictures and captions are not at hand: {reason}"


def _card(found: Atlas, item: str) -> Card:
    """One item for page and paper."""
    pictures = []
    for k, caption in enumerate(found.captions(item)):
        alt = f"image {k} of item {item}, which belongs to the caption: {caption}"
        pictures.append((found.items[item].images[k].load(), alt, f"caption {k}: {caption}"))
    first, *others = found.tables
    rows = []
    for name in found.tables:
        verdict = found.verdicts[name][item]
        text, image, _ = verdict.margins
        flip = ""
        if name in others:
            right = (found.verdicts[first][item].right[0], verdict.right[0])
            flip = str(failures.flips(*([value] for value in right))[0])
        rows.append((name, verdict.mode + " (tie)" * verdict.tie, _lead(text), _lead(image), flip))
    tags = {
        formatting.tag(column, label): None
        for column, labels in found.tags[item].items()
        for label in labels
        if label != "untagged"
    }
    table = Table(
        "", ("model", "outcome", "text margin", "image margin", f"text against {first}"), rows
    )
    title = f"item {item}: {', '.join(tags)}"
    return Card(title, pictures, table, f'<div class="atlas">{atlas.card(found, item)}</div>')


def _lead(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


# --- parameters, versions, how to run it again ---------------------------------------------------


def _parameters(cases: Sequence[Case]) -> list[Block]:
    """Parameters that all runs share, then those in which they differ, one column a run."""
    told = [run for run, _ in members(cases)]
    dumped = {run.name: config_of(run).model_dump() for run in told}
    names = [n for n in FinetuneConfig.model_fields if n not in ("run", "runs")]
    odd = [n for n in names if len({str(values[n]) for values in dumped.values()}) > 1]
    same = [(n, str(dumped[told[0].name][n])) for n in names if n not in odd]
    blocks: list[Block] = [Heading("Parameters")]
    if odd:
        rows = [(run, *(str(values[n]) for n in odd)) for run, values in dumped.items()]
        blocks.append(Table("In which the runs differ.", ("run", *odd), rows))
    blocks.append(Table("The same in all runs.", ("parameter", "value"), same))
    return blocks


def _versions(cases: Sequence[Case]) -> list[Block]:
    envs = [run.environment for run, _ in members(cases)]
    first = envs[0]
    rows = [
        ("python", str(first["python"])),
        ("platform", str(first["platform"])),
        ("device, threads", f"{first['device']}, {first['threads']}"),
        ("commit", _commit(first)),
        ("packages", ", ".join(f"{name} {v}" for name, v in sorted(first["packages"].items()))),
    ]
    said = ("packages", "python", "device", "threads")
    others = sum(any(env[key] != first[key] for key in said) for env in envs)
    more = f" {others} of the {len(envs)} runs had others: see their env.json." if others else ""
    caption = f"Of run {cases[0].run.name}.{more}"
    return [Heading("Versions"), Table(caption, ("what", "version"), rows)]


def _commit(env: Mapping[str, Any]) -> str:
    git = env.get("git") or {}
    if not git.get("commit"):
        return "unknown"
    return f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}"


def _again(cases: Sequence[Case]) -> list[Block]:
    told = [run for run, _ in members(cases)]
    text = "From a checkout of that commit; each line makes a run and its L_CLIP-only control, and "
    text += "a run that is finished is read, not made again. The last line makes this report."
    wanted = [r for r in told if r.params["arm"] != "clip-only"] or told
    names = ",".join(_callable(run) for case in cases for run in case.runs)
    last = f"papermill notebooks/07_report.ipynb out_report.ipynb -r runs {shlex.quote(names)}"
    lines = [papermill_line(run) for run in wanted]
    return [Heading("How to run it again"), paragraph(text), Code([*lines, last])]


def _callable(run: Run) -> str:
    """What the parameter `runs` finds this run by: its name, or its folder where that is needed."""
    usual = run.path.parent.resolve() == runs_root().resolve()
    return run.name if usual else run.shown_path
