"""Where student and teacher stand, untouched, on every benchmark at hand.

Each set is scored once and kept in a run: `<set>.<model>` holds one row an item. The teacher scores
a random part of a set, which is then labelled partial; of triplets none, where it would stop at the
best caption, while both true ones have to be above the false. Baselines that see no image stand
beside the sets whose false captions are written, not found.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from sdslib import benchmarks, evaluate, tables
from sdslib.benchmarks import Benchmark
from sdslib.checks.fingerprints import weights_fingerprints
from sdslib.checks.notebooks import BaselineConfig
from sdslib.config import ModelsConfig
from sdslib.config import preset as preset_named
from sdslib.experiment import pick_device
from sdslib.io.runs import Run, open_run
from sdslib.io.sources import DataError
from sdslib.io.wording import listed
from sdslib.io.worlds import world_of
from sdslib.lab import near_ties
from sdslib.pairs import Pairs, load_pairs
from sdslib.results import failures
from sdslib.scorers import diffusion, sequential
from sdslib.sets import text_only
from sdslib.sets.roles import RETRIEVAL, load_set
from sdslib.student import load_student
from sdslib.teacher import Teacher, load_teacher

STUDENT, TEACHER = "student", "teacher"
BLIND = (text_only.LengthScorer.name, text_only.LikelihoodScorer.name)
MODELS = (STUDENT, TEACHER, *BLIND)
# The tags by which a set's authors tell its results.
TOLD = (*tables.WINOGROUND_TAGS, *tables.MACRO_TAGS, "way", "type", "template")
CORPUS = 50_000  # captions that the text-only baseline learns from, at most
PROFILE_ITEMS = 24  # validation items that tell the teacher's mean error at each t
ROUNDED = 16  # items that tell, without their labels, what half precision does to a lead


def at_hand(config: BaselineConfig) -> tuple[list[Benchmark], pd.DataFrame]:
    """The benchmarks of `benchmark`, and a table (set, why) of what is not here.

    `benchmark` is one name or several with commas between; "all" is every set of the mini-world, or
    under another preset every benchmark by its usual name, retrieval included.
    """
    found, absent = load_sets(config)
    absent += [(text_only.LikelihoodScorer.name, why) for why in corpus(config)[1]]
    return found, pd.DataFrame(absent, columns=["set", "why"])


def load_sets(config: BaselineConfig) -> tuple[list[Benchmark], list[tuple[str, str]]]:
    """The benchmarks of `at_hand`, and set and reason of those that are not here."""
    world, found, absent = world_of(config.preset), list[Benchmark](), list[tuple[str, str]]()
    known = [*world.SETS, world.PAIRS] if world else [*benchmarks.LOADERS, RETRIEVAL]
    for name in known if config.benchmark == "all" else listed(config.benchmark):
        try:
            found.append(load_set(name))
        except DataError as reason:
            absent.append((name, str(reason)))
    if not found:
        raise DataError("no benchmark is at hand: " + "; ".join(why for _, why in absent))
    return [benchmark.sample(config.eval_items, config.seed) for benchmark in found], absent


def corpus(config: BaselineConfig) -> tuple[Pairs | None, list[str]]:
    """The captions that the blind baseline learns from, or why there are none."""
    try:
        usual = preset_named("mini" if config.in_mini_world else "paper").train_data
        return load_pairs(config.corpus or usual), []
    except DataError as reason:
        return None, [str(reason)]


def contents(sets: Sequence[Benchmark]) -> pd.DataFrame:
    """One row a set: its kind, how many of its items are here, and where they come from."""
    rows = [(b.name, b.kind, len(b.items), b.total, b.partial, len(b.items[0].captions))
            for b in sets]  # fmt: skip
    head = ["set", "kind", "items", "of", "partial", "captions an item"]
    return pd.DataFrame(rows, columns=head)


def measure(config: BaselineConfig, progress: Callable[[Sequence], Iterable] = iter) -> Run:
    """Score every benchmark at hand by student, teacher and blind baseline, or give back the run.

    `progress` wraps the list of benchmarks to show how far it is.
    """
    sets, _ = load_sets(config)
    prints = {b.name: b.fingerprint for b in sets} | weights_fingerprints(config)
    known, _ = corpus(config)
    prints |= {"corpus": known.fingerprint} if known else {}
    run = open_run(config, prints, config.runs)
    if run.finished:
        return run
    with run:
        use_threads(config)
        device = pick_device(config.device)
        student = load_student(config.clip_model, config.clip_pretrained, device)
        # "crop" is what CLIP's own preprocessing does
        mode = None if config.image_mode == "crop" else config.image_mode
        clip = evaluate.clip_scorer(student, config.batch_size, mode=mode)
        judge = load_judge(config) if config.teacher_items else None
        readers: list[evaluate.Scorer] = [text_only.LengthScorer()]
        if known:
            readers.append(text_only.likelihood_scorer(known.all_captions()[:CORPUS]))
        for benchmark in progress(sets):
            # `cautions` tells them of the kept scores
            with warnings.catch_warnings(action="ignore", category=tables.Caution):
                found = {STUDENT: evaluate.score_grids(clip, benchmark)}
                if judge is not None and benchmark.kind not in ("retrieval", "triplet"):
                    part = benchmark.sample(config.teacher_items, config.seed)
                    found[TEACHER] = teacher_scores(judge, part, config)
                for reader in readers if benchmark.kind in ("choice", "triplet") else ():
                    found[reader.name.replace(" ", "-")] = evaluate.score_grids(reader, benchmark)
            for name, table in found.items():
                run.save_scores(f"{benchmark.name}.{name}", table)
        run.save_results(results(run, sets))
        run.finish()
    return run


def use_threads(config: ModelsConfig) -> None:
    """Compute on as many CPU threads as `threads` says, if it says."""
    if config.threads:
        torch.set_num_threads(config.threads)


# --- scoring -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TeacherScorer:
    """The teacher, its mean error at each t where known, and the same in full precision.

    `full` is set where `teacher` computes in half precision.
    """

    teacher: Teacher
    profile: pd.DataFrame | None = None
    full: Teacher | None = None


def load_judge(config: ModelsConfig, items: int = PROFILE_ITEMS) -> TeacherScorer:
    """The teacher and its mean error at each t in the mini-world.

    The means come from `items` of the validation split, by which nothing is scored; without one (a
    real set has none here) the teacher's plain errors decide.
    """
    place = (config.teacher, config.teacher_revision, pick_device(config.device))
    teacher = load_teacher(*place, config.precision, variant=config.variant)
    full = None if config.precision == "fp32" else load_teacher(*place, variant=config.variant)
    if full is not None:  # precision is the UNet's; one VAE and one text encoder serve both
        teacher.vae, teacher.text_encoder = full.vae, full.text_encoder
    world = world_of(config.preset if config.benchmark == "all" else config.benchmark)
    if world is None:
        return TeacherScorer(teacher, None, full)
    known = load_set(world.VALIDATION).sample(items, config.seed)
    whole = full or teacher
    scorer = diffusion.diffusion_scorer(whole, 32, config.seed, empty=False, batch_size=128)
    profile = diffusion.error_profile(diffusion.error_table(scorer, known.items))
    return TeacherScorer(teacher, profile, full)


def teacher_scores(
    judge: TeacherScorer,
    benchmark: Benchmark,
    config: ModelsConfig,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> pd.DataFrame:
    """The teacher's score table; an item stops drawing once its decision is settled.

    Near ties of half precision are decided again in full (see `recheck`). `progress(items, total)`
    wraps the iterator over items.
    """
    items = benchmark.items
    low = _stopping(judge.teacher, judge, config)
    scorer: evaluate.Scorer = low
    if judge.full is not None:
        full = _stopping(judge.full, judge, config)
        rounding = near_ties.rounding(low, full, items[:ROUNDED], judge.profile)
        scorer = near_ties.RecheckedScorer(low, full, rounding)
    found = evaluate.score_grids(scorer, benchmark, progress=lambda s: progress(s, len(items)))
    found.attrs["counts"] = dict(scorer.counts)  # with what the rounding took
    return found


def _stopping(
    teacher: Teacher, judge: TeacherScorer, config: ModelsConfig
) -> diffusion.DiffusionScorer:
    return sequential.sequential_diffusion_scorer(
        teacher,
        getattr(config, "draws", 32),
        config.seed,
        profile=judge.profile,
        batch_size=128,
        mode=getattr(config, "image_mode", "crop"),
    )


def rule_of(table: pd.DataFrame) -> str:
    """The rule that decides: the teacher's errors relative to their means where it has them."""
    return "relative" if any(c.startswith("relative.") for c in table.columns) else ""


# --- what the notebook shows ---------------------------------------------------------------------


def scored(run: Run) -> dict[tuple[str, str], pd.DataFrame]:
    """(set, model) -> score table of everything the run keeps."""
    pairs = (name.rpartition(".") for name in run.score_names())
    found = {(s, m.replace("-", " ")): run.scores(f"{s}.{m}") for s, _, m in pairs}
    return {key: found[key] for key in sorted(found, key=_place)}


def _place(key: tuple[str, str]) -> tuple[int, str, int]:
    """Winoground first, then as the loaders are listed, retrieval and others last."""
    name, model = key
    bare, known = name.removeprefix("mini-"), [*benchmarks.LOADERS]
    place = next((n for n, other in enumerate(known) if bare.startswith(other)), len(known))
    return place, name, MODELS.index(model)


def results(run: Run, sets: Sequence[Benchmark]) -> pd.DataFrame:
    """`tables.tabulate` of every set and model, with columns set and model in front."""
    known, rows = {b.name: b for b in sets}, []
    for (name, model), table in scored(run).items():
        tags = [t for t in TOLD if t in table]
        found = tables.tabulate(known[name], table, rule=rule_of(table), by=tags)
        rows.append(found.assign(set=name, model=model))
    found = pd.concat(rows, ignore_index=True)
    return found[["set", "model", *(c for c in found if c not in ("set", "model"))]]


def overview(run: Run) -> pd.DataFrame:
    """One row a set, model and metric: all items, and macro averages as the authors take them."""
    table = run.results()
    averages = table["label"].str.startswith(("macro", "micro")) & table["n"].gt(0)
    table = table[averages | table["label"].eq("all") | table["tag"].eq("way")]
    table = table.drop(columns=["tag"]).rename(columns={"label": "over"})
    return table.astype({"ties": "Int64"}).round(4).reset_index(drop=True)


def cautions(run: Run) -> pd.DataFrame:
    """One row a set and model that needs a word before its figures are read; often none.

    What sees no image cannot tell captions of one length apart: that is no fault.
    """
    rows = [(*key, text) for key, table in scored(run).items() if key[1] not in BLIND
            for text in tables.cautions(table)]  # fmt: skip
    return pd.DataFrame(rows, columns=["set", "model", "caution"])


def by_tag(run: Run) -> pd.DataFrame:
    """The rows of Winoground, or of the first set, for `figures.scores_by_tag`."""
    table = run.results()
    names = table["set"].unique()
    name = next((n for n in names if n.endswith("winoground")), names[0])
    return table[(table["set"] == name) & ~table["label"].str.startswith(("macro", "micro"))]


def by_set(run: Run) -> pd.DataFrame:
    """All items of every set by its first metric, for `figures.scores_by_set`."""
    table = run.results()
    table = table[table["label"].eq("all")]
    first = table.groupby("set", sort=False)["metric"].transform("first")
    teacher = table["model"].eq(TEACHER) & table["metric"].eq("accuracy")
    return table[table["metric"].eq(first) | teacher].reset_index(drop=True)


def agreements(run: Run) -> dict[str, pd.DataFrame]:
    """Set -> counts of items by whether student and teacher are right, on the teacher's items."""
    return {name: failures.agreement(*both) for name, both in _paired(run)}


def agreement_table(run: Run) -> pd.DataFrame:
    """One row a set: shares of items that both, one or none gets right, and Cohen's kappa."""
    rows = []
    for name, counts in agreements(run).items():
        cells = counts.to_numpy().ravel()
        rows.append((name, cells.sum(), *(cells / cells.sum()), failures.kappa(counts)))
    told = ["set", "n", "both right", "student alone", "teacher alone", "none", "kappa"]
    return pd.DataFrame(rows, columns=told).round(3)


def _paired(run: Run) -> Iterator[tuple[str, tuple]]:
    """(set, (student right [N], teacher right [N])) on the items that both scored."""
    found = scored(run)
    for (name, model), table in found.items():
        if model == TEACHER:
            student = found[name, STUDENT].set_index("id").loc[table["id"]].reset_index()
            yield name, (first_metric(student), first_metric(table, rule_of(table)))


def first_metric(table: pd.DataFrame, rule: str = "") -> pd.Series:
    """Right or wrong by a set's first metric: text, accuracy or top1."""
    return next(iter(tables.outcomes(table, rule).values()))


def costs(run: Run) -> pd.DataFrame:
    """What each score table cost: forward passes of each kind, UNet evaluations and ms an item."""
    rows = []
    seen = {key: table for key, table in scored(run).items() if key[1] not in BLIND}
    for key, table in seen.items():
        counts, n = table.attrs["counts"], len(table)
        unet, seconds = counts.get("unet_evaluations", 0), table.attrs["seconds"]
        passes = (counts["images"], counts["captions"], unet)
        rows.append((*key, n, *passes, unet / n, 1000 * seconds / n))
    told = ["set", "model", "items", "images", "captions", "UNet evaluations", "UNet an item",
            "ms an item"]  # fmt: skip
    return pd.DataFrame(rows, columns=told).round(1)


def human_label(config: ModelsConfig) -> str:
    """What to call the line of people's scores, which were measured on the real Winoground."""
    return "human, real set" if config.in_mini_world else "human"
