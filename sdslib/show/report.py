"""The report of finished runs, to hand on: one HTML page and its PDF, each complete in itself.

It says what was asked, how, on which data, what came out and how sure that is, shows the most
telling examples, and names parameters, versions and the exact lines that run it again. Equal runs
give equal files. The words are those of `templates/report.html.j2`; here is what they tell of.
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
from sdslib.checks.notebooks import ReportConfig
from sdslib.config import FinetuneConfig, is_mini
from sdslib.experiment import CONTROL, UNTOUCHED
from sdslib.io import storage
from sdslib.io.paths import shown_path, without_places
from sdslib.io.run import Run
from sdslib.io.runs import runs_root
from sdslib.io.sources import DataError
from sdslib.results import comparison, failures, finetuned, formatting
from sdslib.results.formatting import p_value, points, span
from sdslib.results.settings import (
    SMALL,
    Setting,
    config_of,
    members,
    output_folder,
    papermill_line,
    score_tables,
)
from sdslib.sets.roles import RETRIEVAL, VALIDATION, load_set
from sdslib.show import atlas, figures, item_figures, modelcard, page, pdf, style
from sdslib.show.atlas import Atlas, Query

NAME = "report"
TITLE = "Does a diffusion teacher make CLIP compositional?"
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
    """The page, its figures by name, the cases it tells of, and where it goes."""

    page: str
    figures: dict[str, style.Picture]
    cases: tuple[Setting, ...]
    folder: Path


def build(config: ReportConfig, cases: Sequence[Setting]) -> Report:
    """The page of these cases and its figures; reads what the runs kept, computes no model."""
    told = [_case(case) for case in cases]
    runs = [run for run, _ in members(cases)]
    count = sum(len(case.runs) for case in cases)
    mini = any(case.config.in_mini_world for case in cases)
    whole = page.render(
        NAME,
        title=config.title or TITLE,
        subtitle=f"SDS-CLIP, {count} run{'s' * (count > 1)}{' · mini-world' * mini}",
        # when the last of the runs ended: a report of the same runs stays the same
        date=max(datetime.fromisoformat(run.status()["updated"]) for run in runs).isoformat(),
        drawn=list(dict.fromkeys(filter(None, (modelcard.drawn(c.config) for c in cases)))),
        small=any(case.run.name.startswith(f"{SMALL}-") for case in cases),
        equations=[figures.equation(tex, words) for tex, words in EQUATIONS],
        through=cases[0].config.sds_gradient == "through",
        data=_data(cases[0]),
        cases=told,
        before=UNTOUCHED,
        **_examples(config, cases[0]),
        **_parameters(runs),
        **_versions(runs),
        **_again(cases, runs),
    )
    drawn = {
        f"{n}-{k}": fig for n, case in enumerate(told, 1) for k, fig in case["figures"].items()
    }
    return Report(whole, drawn, tuple(cases), output_folder(config))


def save(report: Report) -> pd.DataFrame:
    """Write page, PDF, figures (PNG, SVG, PDF) and a model card a run; says what is where.

    Files are `report.html`, `report.pdf`, `report_figures/` and, in each run that has weights,
    `README.md`.
    """
    report.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for ending, data in ("html", report.page.encode()), ("pdf", pdf.from_page(report.page)):
        path = report.folder / f"{NAME}.{ending}"
        storage.write_bytes(path, data)
        rows.append((shown_path(path), f"{len(data) / 1000:.0f} kB"))
    drawn = report.folder / f"{NAME}_figures"
    for name, figure in report.figures.items():
        style.save(figure, drawn, name)
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


# --- question, answer and data -------------------------------------------------------------------


def verdict(row: Any) -> str:
    """A row of `tables.compare` in words; an interval that holds 0 shows no difference."""
    found = "higher" if row.low > 0 else "lower" if row.high < 0 else "no difference shown"
    change = points(row.difference, row.low, row.high)
    head = f"{row.comparison}, {row.metric} score: {change} points"
    if not hasattr(row, "p"):  # over seeds and items at once there is no test by item
        return f"{head} over {row.seeds} seeds: {found}."
    limit = f"; {row.n} items show differences from about {100 * row.mdd:.1f} points on"
    sure = f"p {p_value(row.p)}" if row.p < 0.001 else f"p = {p_value(row.p)}"
    return f"{head}, {sure}: {found}{limit}."


def _data(case: Setting) -> pd.DataFrame:
    """What was read: part, source, use and the beginning of its content's SHA-256."""
    config, run = case.config, case.run
    pairs = "all" if config.train_pairs is None else f"the first {config.train_pairs}"
    parts = [("training pairs", config.train_data, pairs, "pairs")]
    uses = {
        VALIDATION: "chosen on, never reported",
        experiment.reported(run): "reported",
    }
    for name in _sets(run):
        use = f"{count(run.scores(name))}, {uses.get(name, 'must not suffer')}"
        parts.append(("set", name, use, name))
    student = f"{config.clip_model} {config.clip_pretrained or ''}"
    teacher = f"{config.teacher} {config.teacher_revision or ''}"
    parts.append(("student", student.strip(), f"{config.trainable} trained", "student"))
    parts.append(("teacher", teacher.strip(), f"frozen, {config.precision}", "teacher"))
    prints = run.identity["data"]
    rows = [
        (part, source(name, config), use, str(prints.get(key, "by its name"))[:12])
        for part, name, use, key in parts
    ]
    return pd.DataFrame(rows, columns=["part", "source", "use", "content"])


def source(name: str, config: FinetuneConfig) -> str:
    """A part of the data by name, marked where it is the mini-world's.

    Validation and retrieval do not say whose they are: the reported set brings them.
    """
    own = name in (VALIDATION, RETRIEVAL) and is_mini(config.benchmark)
    drawn = own or is_mini(name) or name.startswith("mini-") or "data/mini/" in name
    return without_places(name) + " (mini-world)" * drawn


def count(scores: pd.DataFrame) -> str:
    """How many items were scored, and of how many where the set has more."""
    n, total = len(scores), scores.attrs.get("total", len(scores))
    return f"{n} items" if n == total else f"{n} of {total} items"


def _sets(run: Run) -> list[str]:
    """The scored sets of a run, the reported one first."""
    names = [n for n in run.score_names() if not n.startswith(f"{UNTOUCHED}-")]
    return sorted(names, key=lambda n: (n != experiment.reported(run), n))


# --- results -------------------------------------------------------------------------------------


def _case(case: Setting) -> dict[str, Any]:
    """One case by the template's names: names, answers, tables of words, and figures."""
    shares, over = finetuned.before_after(case.scores), _over_seeds(case)
    one = case.paired[case.paired["tag"] == "all"]
    asked = one if over is None else over
    first = asked[asked["metric"] == asked["metric"].iloc[0]]
    *_, last = case.scores
    return {
        "title": case.title,
        "note": case.note,
        "run": case.run.name,
        "control": case.control.name if case.control else "",
        "seeds": [run.params["seed"] for run in case.runs],
        "model": last,
        "count": len(case.scores[last]),
        "human": bool(finetuned.human(case.config)),
        "answers": [verdict(row) for row in first.itertuples()],
        "shares": _keyed(formatting.shares(shares), "metric, tag"),
        "paired": _keyed(formatting.differences(case.paired), "comparison", "metric, tag"),
        "over_seeds": None if over is None else _seed_rows(over),
        "kept": _kept(case),
        "figures": _figures(case, shares),
    }


def _keyed(told: pd.DataFrame, *first: str) -> pd.DataFrame:
    """A table of `formatting`; its keys fill the `first` columns, the last takes what is left."""
    alone = len(first) - 1
    rows = [
        (*key[:alone], ", ".join(key[alone:]), *row)
        for key, row in zip(told.index, told.to_numpy(), strict=True)
    ]
    return pd.DataFrame(rows, columns=[*first, *told.columns])


def _over_seeds(case: Setting) -> pd.DataFrame | None:
    """`tables.compare_over_seeds` of the arm against each other model, with a column comparison."""
    if len(case.runs) == 1 or not all(case.controls):
        return None
    by_seed = [score_tables(*pair) for pair in zip(case.runs, case.controls, strict=True)]
    *others, last = by_seed[0]
    rows = [
        comparison.compare_over_seeds(
            [s[other] for s in by_seed], [s[last] for s in by_seed]
        ).assign(comparison=f"{last} against {other}")
        for other in others
    ]
    return pd.concat(rows, ignore_index=True)


def _seed_rows(over: pd.DataFrame) -> pd.DataFrame:
    rows = [
        (row.comparison, row.metric, row.seeds, points(row.difference, row.low, row.high),
         span(row.smallest, row.largest))
        for row in over.itertuples()
    ]  # fmt: skip
    head = ["comparison", "metric", "seeds", "difference", "single seeds"]
    return pd.DataFrame(rows, columns=head)


def _kept(case: Setting) -> pd.DataFrame | None:
    kept = finetuned.retention(case.run, case.control or case.run)
    if kept.empty:
        return None
    if case.control is None and case.run.params["arm"] != "clip-only":
        kept = kept[kept["model"] != CONTROL]
    return _keyed(formatting.shares(kept), "set, metric")


def _figures(case: Setting, shares: pd.DataFrame) -> dict[str, style.Picture]:
    """The figures of a case by name; those of margins and outcomes need grids of two by two."""
    note, scores = case.note, case.scores
    *_, last = scores
    found = {
        "scores": figures.scores_by_tag(shares, note, finetuned.human(case.config)),
        "change": figures.before_after(case.paired, note),
        "training": figures.history(_history(case), note),
    }
    if _is_winoground_like(case):
        parts = {name: failures.anatomy(table) for name, table in scores.items()}
        pairs = failures.margin_pairs(parts[UNTOUCHED], parts[last])
        names = (UNTOUCHED, last)
        found["margins"] = item_figures.margins(pairs, note, names)
        found["outcomes"] = item_figures.flips(failures.flows(parts), note)
    return found


def _history(case: Setting) -> pd.DataFrame:
    *_, last = case.scores
    parts = [case.run.history().assign(run=last)]
    if case.control is not None and case.control.path != case.run.path:
        parts.insert(0, case.control.history().assign(run=CONTROL))
    return pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)


def _is_winoground_like(case: Setting) -> bool:
    return all(
        "rank" not in table and tables.is_grid(table) and tables.grids_of(table).shape[1:] == (2, 2)
        for table in case.scores.values()
    )


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


def _examples(config: ReportConfig, case: Setting) -> dict[str, Any]:
    """The most telling items of a case, each as the atlas's card and as a table for paper."""
    if not _is_winoground_like(case):
        return {"examples": None, "absent": ""}
    benchmark, absent = _benchmark(case.config)
    found = atlas.build(case.scores, benchmark, note=case.note, absent=absent)
    *_, last = case.scores
    chosen = telling(found, UNTOUCHED, last, config.examples)
    told = [{"card": atlas.card(found, item), "table": _margins(found, item)} for item in chosen]
    return {"examples": told, "absent": absent}


def _benchmark(config: FinetuneConfig) -> tuple[Benchmark | None, str]:
    """The reported set with its pictures, or why they are not here."""
    try:
        return load_set(config.benchmark), ""
    except DataError as reason:
        return None, f"Pictures and captions are not at hand: {reason}"


def _margins(found: Atlas, item: str) -> pd.DataFrame:
    """What each model says of an item, and what that changes against the first."""
    first, *_ = found.tables
    rows = []
    for name in found.tables:
        verdict = found.verdicts[name][item]
        right = [[found.verdicts[model][item].right[0]] for model in (first, name)]
        rows.append({
            "model": name,
            "outcome": verdict.mode + " (tie)" * verdict.tie,
            "text margin": _lead(verdict.margins[0]),
            "image margin": _lead(verdict.margins[1]),
            f"text against {first}": "" if name == first else failures.flips(*right)[0],
        })  # fmt: skip
    return pd.DataFrame(rows)


def _lead(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


# --- parameters, versions, how to run it again ---------------------------------------------------


def _parameters(runs: Sequence[Run]) -> dict[str, Any]:
    """Parameters that all runs share, and those in which they differ, one row a run."""
    told = pd.DataFrame(
        {run.name: without_places(config_of(run).model_dump()) for run in runs}, dtype=object
    ).T.map(str)
    told = told.drop(columns=["run", "runs"])
    odd = told.loc[:, told.nunique() > 1]
    same = told.drop(columns=odd.columns).iloc[0].rename_axis("parameter").reset_index(name="value")
    return {"same": same, "odd": None if odd.empty else odd.rename_axis("run").reset_index()}


def _versions(runs: Sequence[Run]) -> dict[str, Any]:
    """Versions of the first run, and how many runs had others."""
    first, *others = [run.environment for run in runs]
    packages = ", ".join(f"{name} {v}" for name, v in sorted(first["packages"].items()))
    rows = [
        ("python", first["python"]),
        ("platform", first["platform"]),
        ("device, threads", f"{first['device']}, {first['threads']}"),
        ("commit", _commit(first)),
        ("packages", packages),
    ]
    said = ("packages", "python", "device", "threads")
    odd = sum(any(env[key] != first[key] for key in said) for env in others)
    return {
        "versions": pd.DataFrame(rows, columns=["what", "version"]),
        "others": odd,
        "runs": len(runs),
    }


def _commit(env: Mapping[str, Any]) -> str:
    git = env.get("git") or {}
    if not git.get("commit"):
        return "unknown"
    return f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}"


def _again(cases: Sequence[Setting], runs: Sequence[Run]) -> dict[str, Any]:
    """The lines that make runs and report, and whether a folder in them had to be cut."""
    wanted = [run for run in runs if run.params["arm"] != "clip-only"] or runs
    names = ",".join(_callable(run) for case in cases for run in case.runs)
    last = f"papermill notebooks/07_report.ipynb out_report.ipynb -r runs {shlex.quote(names)}"
    lines = [*map(papermill_line, wanted), last]
    told = [shlex.join(without_places(shlex.split(line))) for line in lines]
    return {"lines": told, "cut": told != lines}


def _callable(run: Run) -> str:
    """What the parameter `runs` finds this run by: its name, or its folder where that is needed."""
    usual = run.path.parent.resolve() == runs_root().resolve()
    return run.name if usual else run.shown_path
