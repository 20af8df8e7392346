"""The report of finished runs, to hand on: one HTML page and its PDF, each complete in itself.

It says what was asked, how, on which data, what came out and how sure that is, shows the most
telling examples, and names parameters, versions and the exact lines that run it again. Equal runs
give equal files. The words are those of `templates/report.html.j2`; here is what they tell of.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sdslib.checks import fingerprints
from sdslib.checks.notebooks import ReportConfig
from sdslib.config import CONTROL, UNTOUCHED, FinetuneConfig, is_mini
from sdslib.io import storage
from sdslib.io.paths import shown_path, without_places
from sdslib.io.run import Run
from sdslib.io.runs import runs_root
from sdslib.io.sources import DataError
from sdslib.results import answers, failures, finetuned, formatting, objectives, settings
from sdslib.results.formatting import span
from sdslib.results.settings import SMALL, Setting
from sdslib.sets.roles import RETRIEVAL, VALIDATION, load_set
from sdslib.show import atlas, figures, item_figures, modelcard, page, pdf, seen, style
from sdslib.show.atlas import Atlas, Query

NAME = "report"
TITLE = "Does a diffusion teacher make CLIP compositional?"
# What an arm weighs beside L_CLIP, by `objectives.own_term`, and the words for who cannot see it.
TERMS = {
    "SDS": (
        r"L_{\mathrm{SDS}} = \mathbb{E}_{t,\epsilon}\,\left\Vert \epsilon_\theta\left("
        r"\sqrt{\bar\alpha_t}\,z + \sqrt{1-\bar\alpha_t}\,\epsilon,\ t,\ c\right) - \epsilon"
        r"\right\Vert_2^2, \qquad z = h_w\left(f_\phi(x)\right)",
        "L SDS is the mean over timesteps t and noise epsilon of the squared distance between the "
        "noise that the teacher epsilon theta predicts, from the noised latent under caption c, "
        "and the noise epsilon; the latent z is the linear map h w of CLIP's embedding f of x",
    ),
    "margin": (
        r"L_{\mathrm{margin}} = \mathbb{E}_{t,\epsilon}\,\log\left(1 + e^{E(c) - E(c')}\right), "
        r"\qquad E(c) = \left\Vert \epsilon_\theta(z_t,\ t,\ c) - \epsilon\right\Vert_2^2",
        "L margin is the mean of the softplus of E of c minus E of c prime, where E is the "
        "teacher's squared error under a caption",
    ),
    "regression": (
        r"L_{\mathrm{regression}} = \left\Vert h_w\left(f_\phi(x)\right) - z\right\Vert_2^2",
        "L regression is the squared distance between the linear map of CLIP's embedding and z, "
        "the latent of the image",
    ),
    "choice": (
        r"L_{\mathrm{choice}} = -\sum_k p_\theta(c_k \mid x)\,\log\,q_\phi(c_k \mid x)",
        "L choice is minus the sum over captions of the teacher's probability p of a caption, "
        "given the image x, times the logarithm of the student's, q",
    ),
}


@dataclass(frozen=True)
class Report:
    """The page, its figures by name, the cases it tells of, and where it goes."""

    page: str
    figures: dict[str, style.Picture]
    cases: tuple[Setting, ...]
    folder: Path


def build(config: ReportConfig, cases: Sequence[Setting]) -> Report:
    """The page of these cases and its figures; reads what the runs kept. Models are asked where the
    words of the first example are seen, if their weights are here."""
    told = [_case(case) for case in cases]
    runs = [run for run, _ in settings.members(cases)]
    count = sum(len(case.runs) for case in cases)
    mini = any(case.config.in_mini_world for case in cases)
    examples = _examples(config, cases[0])
    whole = page.render(
        NAME,
        title=config.title or TITLE,
        subtitle=f"SDS-CLIP, {count} run{'s' * (count > 1)}{' · mini-world' * mini}",
        # when the last of the runs ended: a report of the same runs stays the same
        date=max(datetime.fromisoformat(run.status()["updated"]) for run in runs).isoformat(),
        drawn=list(dict.fromkeys(filter(None, (modelcard.drawn(c.config) for c in cases)))),
        small=any(case.run.name.startswith(f"{SMALL}-") for case in cases),
        methods=_methods(cases),
        glance=answers.at_a_glance(cases) if len(cases) > 1 else None,
        data=_data(cases[0]),
        cases=told,
        before=UNTOUCHED,
        **examples,
        **_parameters(runs),
        **_versions(runs),
        **_again(cases, runs),
    )
    drawn = {f"{n}-{k}": fig for n, one in enumerate(told, 1) for k, fig in one["figures"].items()}
    drawn |= {"1-maps": examples["maps"]} if examples["maps"] else {}
    return Report(whole, drawn, tuple(cases), settings.output_folder(config))


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
    for run, control in settings.members(report.cases):
        if run.weights.is_dir():
            rows.append((shown_path(modelcard.write(run, control)), "model card"))
    return pd.DataFrame(rows, columns=["file", "holds"], dtype=object)  # paths stay links


def changes(report: Report) -> pd.DataFrame:
    """The differences that the answer tells of: one row a setting, comparison and metric.

    `smallest` is what one seed would show, see `formatting.differences`.
    """
    parts = []
    for case in report.cases:
        one = case.paired[case.paired["tag"] == "all"]
        rows = one.assign(seeds=1) if case.over_seeds is None else case.over_seeds
        told = list(map(formatting.gap, rows.itertuples()))
        smallest = [f"{100 * mdd:.1f}" for mdd in one["mdd"]]
        facts = {"setting": case.title, "difference": told, "smallest": smallest}
        parts.append(rows[["comparison", "metric", "seeds", "n"]].assign(**facts))
    keys = ["setting", "comparison", "metric"]
    return pd.concat(parts).rename(columns={"n": "items"}).set_index(keys)


def answer(report: Report) -> answers.Sentence:
    """What each setting, by its run, came to, and what is handed on of it."""
    told = [answers.of_setting(case) for case in report.cases]
    named = [f"{case.run.name}: " * (len(told) > 1) for case in report.cases]
    cards = sum((run.path / modelcard.NAME).is_file() for run, _ in settings.members(report.cases))
    handed = (
        f"Handed on in {shown_path(report.folder)}: page, PDF and {len(report.figures)} figures"
    )
    lines = [f"{name}{one}" for name, one in zip(named, told, strict=True)]
    return answers.together([*lines, f"{handed}; {cards} model cards beside their weights."])


def push(config: ReportConfig, report: Report) -> str:
    """Send the first run's weights and card to `push_to` on the Hub; without it, say so."""
    case = report.cases[0]
    if config.push_to is None:
        return "nothing was sent: push_to is None"
    where = modelcard.push(case.run, config.push_to, case.control)
    return f"{case.run.name} was sent to {where}"


# --- question, answer and data -------------------------------------------------------------------


def _methods(cases: Sequence[Setting]) -> list[tuple[str, list[style.Picture]]]:
    """Each objective once: in words and, where it weighs a term, in formulas."""
    told: dict[str, list[style.Picture]] = {}
    for config in (case.config for case in cases):
        name, first = objectives.own_term(config), config.arm != "sds-only"
        tex = r"L_{\mathrm{CLIP}} + " * first + rf"\lambda\, L_{{\mathrm{{{name}}}}}"
        words = "L CLIP plus " * first + f"lambda times L {name}; lambda is sds_weight"
        total = rf"L_{{\mathrm{{total}}}} = {tex}", f"L total equals {words}"
        formulas = [total, TERMS[name]] if name else []
        told[objectives.method(config)] = [figures.equation(*one) for one in formulas]
    return list(told.items())


def _data(case: Setting) -> pd.DataFrame:
    """What was read: part, source, use and the beginning of its content's SHA-256."""
    config, run, prints = case.config, case.run, case.run.identity["data"]
    pairs = "all" if config.train_pairs is None else f"the first {config.train_pairs}"
    parts = [("training pairs", config.train_data, pairs, "pairs")]
    own = settings.reported(run)
    uses = {VALIDATION: "chosen on, never reported", own: "reported"}
    sets = [n for n in run.score_names() if not n.startswith(f"{UNTOUCHED}-")]
    prints = {name: settings.content_of(run, name) for name in sets} | prints
    for name in sorted(sets, key=lambda n: (n != own, n)):
        use = f"{count(run.scores(name))}, {uses.get(name, 'must not suffer')}"
        parts.append(("set", name, use, name))
    student = f"{config.clip_model} {config.clip_pretrained or ''}"
    teacher = f"{config.teacher} {config.teacher_revision or ''}"
    parts.append(("student", student.strip(), f"{config.trainable} trained", "student"))
    taught = objectives.taught_by(config, source(teacher.strip(), config))
    told = f"frozen, {config.precision}" if fingerprints.has_teacher(config) else ""
    asked = "verdicts_sha256" if config.has_verdicts else "teacher"
    parts.append(("teacher", taught, told, asked if asked in prints or told else ""))
    rows = [(part, source(name, config) if part != "teacher" else name, use,
             str(prints.get(key) or "by its name")[:12] if key else "")
            for part, name, use, key in parts]  # fmt: skip
    return pd.DataFrame(rows, columns=["part", "source", "use", "content"])


def source(name: str, config: FinetuneConfig) -> str:
    """A part of the data by name, marked where it is the mini-world's.

    Validation and retrieval do not say whose they are: the reported set brings them.
    """
    own = name in (VALIDATION, RETRIEVAL) and is_mini(config.benchmark)
    drawn = own or is_mini(name) or name.startswith("mini-") or "data/mini/" in name
    return without_places(name) + " (mini-world)" * drawn


def count(scores: pd.DataFrame) -> str:
    """How many items were scored, and of how many where the set has more.

    Retrieval asks several questions about an item.
    """
    n, total = len(scores), scores.attrs.get("total", len(scores))
    if n > total:
        return f"{n} questions about {total} items"
    return f"{n} items" if n == total else f"{n} of {total} items"


# --- results -------------------------------------------------------------------------------------


def _case(case: Setting) -> dict[str, Any]:
    """One case by the template's names: names, answers, tables of words, and figures."""
    shares, over = finetuned.before_after(case.scores), case.over_seeds
    *_, last = case.scores
    whole = {
        "shares": _keyed(formatting.shares(shares), "metric, tag"),
        "paired": _keyed(formatting.differences(case.paired), "comparison", "metric, tag"),
    }
    short = {n: t[t["metric, tag"].str.endswith(", all")] for n, t in whole.items()}
    return {
        "setting": case,
        "model": last,
        "count": len(case.scores[last]),
        "human": bool(finetuned.human(case.config)),
        "answer": answers.judged(case),
        **short,
        "appendix": whole if len(short["shares"]) < len(whole["shares"]) else None,
        "over_seeds": None if over is None else _seed_rows(over),
        "kept": _kept(case),
        "figures": _figures(case, shares),
    }


def _keyed(told: pd.DataFrame, *first: str) -> pd.DataFrame:
    """A table of `formatting`; its keys fill the `first` columns, the last takes what is left."""
    alone = len(first) - 1
    rows = [(*key[:alone], ", ".join(key[alone:]), *row)
            for key, row in zip(told.index, told.to_numpy(), strict=True)]  # fmt: skip
    return pd.DataFrame(rows, columns=[*first, *told.columns])


def _seed_rows(over: pd.DataFrame) -> pd.DataFrame:
    rows = over[["comparison", "metric", "seeds"]].copy()
    rows["difference"] = list(map(formatting.gap, over.itertuples()))
    rows["single seeds"] = list(map(span, over["smallest"], over["largest"]))
    return rows


def _kept(case: Setting) -> pd.DataFrame | None:
    kept = finetuned.retention(case.run, case.control or case.run)
    if case.control is None and case.run.params["arm"] != "clip-only":
        kept = kept[kept["model"] != CONTROL]
    return None if kept.empty else _keyed(formatting.shares(kept), "set, metric")


def _figures(case: Setting, shares: pd.DataFrame) -> dict[str, style.Picture]:
    """The figures of a case by name; those of margins and outcomes need grids of two by two."""
    note, scores = case.note, case.scores
    *_, last = scores
    trained = ({CONTROL: case.control} if case.control else {}) | {last: case.run}
    found = {
        "headline": figures.before_after(case.paired[case.paired["tag"] == "all"], note),
        "scores": figures.scores_by_tag(shares, note, finetuned.human(case.config)),
        "change": figures.before_after(case.paired, note),
        "training": figures.history(settings.histories(trained), note),
    }
    if _is_winoground_like(case):
        parts = {name: failures.anatomy(table) for name, table in scores.items()}
        pairs = failures.margin_pairs(parts[UNTOUCHED], parts[last])
        found["margins"] = item_figures.margins(pairs, note, (UNTOUCHED, last))
        found["outcomes"] = item_figures.flips(failures.flows(parts), note)
    return found


def _is_winoground_like(case: Setting) -> bool:
    return all(map(failures.is_square, case.scores.values()))


# --- examples ------------------------------------------------------------------------------------


def telling(found: Atlas, before: str, after: str, count: int) -> list[str]:
    """Ids of the most telling items, text score: flips, both ways in turn, then large changes.

    Flips are those whose margin changes most; a third of the places, and what flips leave free,
    goes to items that stay right or wrong while their margin moves most.
    """
    query = Query(model=after, against=before, sort="largest change first")
    ways = [atlas.select(found, replace(query, change=way)) for way in ("gained", "lost")]
    flips = failures.in_turn(*ways)
    rest = [item for item in atlas.select(found, query) if item not in flips]
    first = flips[: max(count - count // 3, count - len(rest))]
    return first + rest[: count - len(first)]


def _examples(config: ReportConfig, case: Setting) -> dict[str, Any]:
    """The most telling items of a case, each as the atlas's card and as a table for paper."""
    if not _is_winoground_like(case):
        return {"examples": None, "absent": "", "maps": None, "unseen": ()}
    benchmark, absent = None, ""
    try:
        benchmark = load_set(case.config.benchmark)
    except DataError as reason:
        absent = f"Pictures and captions are not at hand: {reason}"
    found = atlas.build(case.scores, benchmark, note=case.note, absent=absent)
    *_, last = case.scores
    chosen = telling(found, UNTOUCHED, last, config.examples)
    told = [{"card": atlas.card(found, item), "table": _margins(found, item)} for item in chosen]
    return {"examples": told, "absent": absent} | _maps(config, case, found, chosen)


def _maps(
    config: ReportConfig, case: Setting, found: Atlas, chosen: Sequence[str]
) -> dict[str, Any]:
    """Where the first example's words are seen before and after, and by the teacher; or why not."""
    told: dict[str, Any] = {"maps": None, "unseen": ()}
    if not chosen or not found.items:
        return told
    *_, last = case.scores
    models = seen.at_hand(case.config, {last: case.run}, True, config.device)
    maps = seen.maps(models, found.items[chosen[0]], seed=case.config.seed)
    unseen = (*models.absent, *(f"No map of {n}: {why}." for n, why in maps.refused.items()))
    return {"maps": seen.figure(maps, found.items[chosen[0]], case.note), "unseen": unseen}


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
            "text margin": page.number(verdict.margins[0], sign=True),
            "image margin": page.number(verdict.margins[1], sign=True),
            f"text against {first}": "" if name == first else failures.flips(*right)[0],
        })  # fmt: skip
    return pd.DataFrame(rows)


# --- parameters, versions, how to run it again ---------------------------------------------------


def _parameters(runs: Sequence[Run]) -> dict[str, Any]:
    """Parameters that all runs share, and those in which they differ, a row a run or, where there
    are more of them than runs, a parameter."""
    told = settings.parameters_as_text(runs)
    odd = formatting.varying(told)
    same = told.drop(columns=odd.columns).iloc[0].rename_axis("parameter").reset_index(name="value")
    if odd.shape[1] > len(runs):
        odd = odd.T.rename_axis(index="parameter", columns=None)
    return {"same": same, "odd": None if odd.empty else odd.reset_index()}


def _versions(runs: Sequence[Run]) -> dict[str, Any]:
    """Versions of the first run, and how many runs had others."""
    first, *others = [run.environment for run in runs]
    git = first.get("git") or {}
    commit = (git.get("commit") or "")[:12] + " with changes" * bool(git.get("dirty"))
    rows = {
        "python": first["python"],
        "platform": first["platform"],
        "device, threads": f"{first['device']}, {first['threads']}",
        "commit": commit if git.get("commit") else "unknown",
        "packages": ", ".join(f"{name} {v}" for name, v in sorted(first["packages"].items())),
    }
    said = ("packages", "python", "device", "threads")
    odd = sum(any(env[key] != first[key] for key in said) for env in others)
    table = pd.DataFrame(rows.items(), columns=["what", "version"])
    return {"versions": table, "others": odd, "runs": len(runs)}


def _again(cases: Sequence[Setting], runs: Sequence[Run]) -> dict[str, Any]:
    """The lines that make runs and report, and whether a folder in them had to be cut."""
    wanted = [run for run in runs if run.params["arm"] != "clip-only"] or runs
    # the parameter `runs` finds by its name what lies in the usual folder
    usual = runs_root().resolve()
    names = ",".join(run.name if run.path.parent.resolve() == usual else run.shown_path
                     for case in cases for run in case.runs)  # fmt: skip
    last = f"papermill notebooks/07_report.ipynb out_report.ipynb -r runs {shlex.quote(names)}"
    lines = [*(settings.papermill_of(settings.config_of(run)) for run in wanted), last]
    told = [shlex.join(without_places(shlex.split(line))) for line in lines]
    return {"lines": told, "cut": told != lines}
