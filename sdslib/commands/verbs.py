"""The verbs: what each does with what was given. Nothing heavy is imported before one does it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Optional

import typer

from sdslib.io.paths import project_path
from sdslib.io.wording import ParameterError

if TYPE_CHECKING:
    import pandas as pd

Words = Optional[list[str]]  # noqa: UP045 - typer reads it
Where = Literal["local", "ray", "slurm"]
RUN = "a run's id, name or folder"
RUNS = "the folder of runs; reports/runs by default"
FORMS = (".csv", ".md", ".tex")
REGISTERED: dict[str, Verb] = {}


class Verb(NamedTuple):
    """What does it, and of whose fields its options are, less those that it does not read."""

    function: Callable[..., int | None]
    notebook: str
    model: str
    without: tuple[str, ...]


def verb(notebook: str = "", model: str = "", without: tuple[str, ...] = ()) -> Callable:
    """Make a function a verb; with a notebook its options are the fields of that `model`.

    The function gets those that are given as the dictionary `given`, and returns a status.
    """

    def register(function: Callable[..., int | None]) -> Callable:
        name = function.__name__.replace("_", "-")
        REGISTERED[name] = Verb(function, notebook, model, without)
        return function

    return register


# --- the notebooks' verbs ------------------------------------------------------------------------


@verb("02_finetune", "finetune")
def finetune(
    given: dict[str, Any],
    control: Annotated[bool, typer.Option(help="train L_CLIP alone beside it")] = True,
) -> int | None:
    """Fine-tune CLIP with L_CLIP + sds_weight * L_SDS, and say what came of it."""
    from sdslib import experiment
    from sdslib.arms.negatives import check
    from sdslib.io.progress import track
    from sdslib.results import answers, settings

    config = _checked("finetune", given)
    check(config)
    if config.dry_run:
        return dry_run(given)
    run = experiment.finetune(config, track("fine-tuning"))
    if control and config.arm != "clip-only":
        experiment.finetune(experiment.control(config), track("L_CLIP alone"))
    (setting,) = settings.group([run])
    print(run.shown_path, answers.of_setting(setting), sep="\n")
    return None


@verb("01_baseline", "baseline")
def evaluate(given: dict[str, Any]) -> None:
    """Score the student as it is, and the teacher, on every benchmark at hand."""
    from sdslib.io.progress import track
    from sdslib.lab import baseline
    from sdslib.results import answers, formatting

    found = baseline.measure(_checked("baseline", given), track("benchmarks"))
    print(formatting.shares(baseline.overview(found)).to_string())
    print(answers.standing(baseline.by_set(found), baseline.agreement_table(found)))


@verb("01_baseline", "baseline")
def scoreboard(
    given: dict[str, Any],
    table: Annotated[Path | None, typer.Option(help="keep the table as CSV")] = None,
) -> int:
    """The student on every set at hand in one table, with what captions alone reach."""
    from sdslib.lab import scoreboard

    return scoreboard.main([*_as_papermill(given), *_words(table=table)])


@verb("02_finetune", "finetune")
def doctor(given: dict[str, Any]) -> int:
    """Which weights, data, disk and memory a run of these parameters is missing."""
    from sdslib.lab import doctor

    return doctor.main(_as_papermill(given))


@verb("02_finetune", "finetune")
def dry_run(given: dict[str, Any]) -> int:
    """A few steps with random weights: what the run would cost, and whether it fits."""
    from sdslib.lab import dry_run

    return dry_run.main(_as_papermill(given))


@verb("07_report", "report")
def report(given: dict[str, Any]) -> None:
    """One page, its PDF, figures and model cards of finished runs."""
    from sdslib.io.progress import track
    from sdslib.results import settings
    from sdslib.show import report

    config = _checked("report", given)
    found = report.build(config, settings.collect(config, track))
    print(report.save(found).to_string(index=False))
    print(report.answer(found), report.push(config, found), sep="\n")


@verb("06_caption_demo", "demo")
def demo(given: dict[str, Any]) -> int:
    """Which caption fits a picture, and which word decides; 1 where one caption alone is left."""
    from sdslib.show import demo

    models = demo.load(_checked("demo", given))
    first, way = models.first, "Maps of where each word is seen: notebooks/06_caption_demo.ipynb"
    print(first.scores.drop(columns="far").to_string(index=False, na_rep="–"))
    print(*first.notes, demo.told(models), way, sep="\n")
    return int(bool(first.left_out) and len(first.question.captions) == 1)


@verb("06_caption_demo", "demo", without=("image", "item", "benchmark"))
def score(
    given: dict[str, Any],
    source: Annotated[str, typer.Argument(help="a folder of pictures, or a CSV: image, caption")],
    out: Annotated[Path, typer.Option(help="the CSV that is written")] = Path("scores.csv"),
) -> int:
    """Score many pictures with their captions: a folder or a CSV in, a CSV out."""
    from sdslib.io.progress import track
    from sdslib.io.storage import write_bytes
    from sdslib.show import batch, demo, questions

    config = _checked("demo", given)
    if project_path(source).resolve() == out.resolve():
        raise ParameterError([f"out: {out} is what is scored; name another file"])
    _can_be_written("out", out)
    asked = batch.gather(source, questions.given(config.captions))
    models = demo.load(config)
    table = batch.score(models, asked, config.ask_teacher, track("pictures"))
    replaced = ", in place of the file that was there" if out.exists() else ""
    write_bytes(out, table.to_csv(index=False).encode())
    print(f"{out}{replaced}", *batch.told(models, table), *models.cautions(*asked), sep="\n")
    return int((table["problem"] != "").all())


@verb("08_verdicts", "verdicts")
def verdicts(
    given: dict[str, Any],
    workers: Annotated[int, typer.Option(min=1, help="processes that judge")] = 1,
    executor: Annotated[Where, typer.Option(help="where they run")] = "local",
    address: Annotated[str | None, typer.Option(help="of Ray, or what to ask SLURM for")] = None,
) -> int:
    """Let the teacher judge every caption of the pairs once, for the arm teacher-choice."""
    from sdslib.checks.notebooks import VerdictsConfig
    from sdslib.lab import verdicts

    output = given.pop("output", VerdictsConfig.model_fields["output"].default)
    own = _words(workers=workers, executor=executor, address=address)
    return verdicts.main([output, *own, *_as_papermill(given)])


# --- many runs -----------------------------------------------------------------------------------


@verb()
def sweep(  # noqa: PLR0913 - a verb's arguments are its options
    notebook: Annotated[Path, typer.Argument(help="as notebooks/02_finetune.ipynb")],
    grid: Annotated[Words, typer.Option(metavar="NAME=A,B", help="values; may be repeated")] = None,
    set_: Annotated[
        Words, typer.Option("--set", metavar="NAME=A", help="one value for all cells")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="so many seeds, from 0")] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="cells at a time; one a core")] = None,
    executor: Annotated[Where, typer.Option(help="where cells run")] = "local",
    address: Annotated[str | None, typer.Option(help="of Ray, or what to ask SLURM for")] = None,
    summary: Annotated[Path | None, typer.Option(help="the parquet of all runs")] = None,
) -> int:
    """Run a notebook over a grid of its parameters."""
    from sdslib.results import sweep

    given = _words(grid=grid, set=set_, seeds=seeds, runs=runs, workers=workers, summary=summary)
    return sweep.main([str(notebook), *given, *_words(executor=executor, address=address)])


@verb()
def tune(  # noqa: PLR0913 - a verb's arguments are its options
    arms: Annotated[str, typer.Option(help="with commas; each gets the same number of trials")],
    search: Annotated[
        Words, typer.Option(metavar="NAME=LOW:HIGH[:log]", help="a range; may be repeated")
    ] = None,
    set_: Annotated[
        Words, typer.Option("--set", metavar="NAME=A", help="one value for all trials")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="of each arm")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="of runs and search")] = 100,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="trials at a time; one a core")] = None,
    executor: Annotated[Where, typer.Option(help="where trials run")] = "local",
    address: Annotated[str | None, typer.Option(help="of Ray, or what to ask SLURM for")] = None,
) -> int:
    """Tune arms with the same number of trials each, chosen on validation alone."""
    from sdslib.results import tuning

    given = _words(arms=arms, search=search, trials=trials, seed=seed, runs=runs, workers=workers)
    given += _as_papermill({n: v for n, _, v in (one.partition("=") for one in set_ or ())})
    return tuning.main([*given, *_words(executor=executor, address=address)])


@verb()
def runs(
    does: Annotated[
        Literal["list", "show", "verify"],
        typer.Argument(metavar="[list|show|verify]", help="what to do"),
    ] = "list",
    names: Annotated[Words, typer.Argument(metavar="[RUN]...", help=RUN)] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    where: Annotated[
        Words, typer.Option(metavar="NAME=VALUE", help="a column or parameter; may be repeated")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="as score; -score has the largest first")
    ] = None,
    format_: Annotated[
        Literal["table", "csv", "markdown"], typer.Option("--format", help="of the list")
    ] = "table",
) -> int:
    """List all runs with their scores, show one, or hold their files to their checksums."""
    from sdslib.io import runs as room
    from sdslib.results import side_by_side

    if does != "list":
        return room.main([does, *(names or ()), *_words(runs=runs)])
    table = side_by_side.overview(runs, where or (), sort)
    print(side_by_side.as_text(table, format_) if len(table) else "no runs")
    return 0


@verb()
def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help=f"{RUN}, or a file of score grids")
    ],
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    table: Annotated[
        Path | None, typer.Option(help="keep the table: .csv (all digits), .md, or .tex (booktabs)")
    ] = None,
) -> None:
    """The first run against each other one, on every set; one alone against start and control."""
    from sdslib.io.runs import find_run
    from sdslib.results import answers, formatting, settings, side_by_side

    if table and table.suffix not in FORMS:
        raise ParameterError([f"table: {table} ends with none of {', '.join(FORMS)}"])
    _can_be_written("table", table)
    if len(names) == 1:
        (setting,) = settings.group([find_run(names[0], runs)])
        print(formatting.differences(setting.paired).to_string(), formatting.LEGEND, sep="\n")
        _keep(setting.paired, table)
        print(answers.of_setting(setting))
        return
    here = [str(Path(word).resolve()) if Path(word).is_file() else word for word in names]
    found = side_by_side.beside(here, runs)
    differences = side_by_side.differences(found)
    print(found.legend)
    if found.known:
        print(side_by_side.parameters(found).to_string(index=False))
    print()
    shown = formatting.differences(differences).to_string()
    print(shown, formatting.LEGEND, *found.left_out, sep="\n")
    print(answers.beside(differences, found.note))
    _keep(side_by_side.by_name(differences, found), table)


@verb()
def rescore(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help=RUN)],
    sets: Annotated[str, typer.Option(help="as `keep` names them, with commas between")],
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = "auto",
) -> None:
    """Score finished runs, their starts and their controls on more sets; nothing is trained."""
    from sdslib.io.runs import find_run, finished_runs, runs_root
    from sdslib.lab.rescore import add_sets

    chosen, among = [find_run(name, runs) for name in names], finished_runs(runs_root(root=runs))
    for told in add_sets(chosen, sets, among, device):
        print(told, flush=True)


@verb()
def diagnose(
    names: Annotated[Words, typer.Argument(metavar="[RUN]...", help=RUN)] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    scenes: Annotated[int, typer.Option(min=10, help="scenes that probes are fitted to")] = 2048,
    seed: Annotated[int, typer.Option(min=0, help="of the scenes and probes")] = 0,
) -> int:
    """What the untouched student and those of runs encode, and what moves them."""
    from sdslib.lab import diagnosis

    return diagnosis.main([*(names or ()), *_words(runs=runs, scenes=scenes, seed=seed)])


@verb()
def publish(
    does: Annotated[
        Literal["study", "tables", "reproduce"],
        typer.Argument(metavar="study|tables|reproduce", help="what to do"),
    ],
    names: Annotated[
        Words, typer.Argument(metavar="[NAME]...", help="a study and its runs; studies")
    ] = None,
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="runs at a time")] = None,
    places: Annotated[
        str | None, typer.Option(help="of a study: a CSV with a number measured of each setting")
    ] = None,
) -> int:
    """Keep a study's runs, rebuild tables and figures, or train the studies again."""
    from sdslib.show import published

    return published.main(
        [does, *(names or ()), *_words(runs=runs, workers=workers, places=places)]
    )


@verb()
def export(
    run: Annotated[str, typer.Argument(help=RUN)],
    folder: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it
        typer.Argument(help="a new folder; RUN-open_clip or RUN-transformers here by default"),
    ] = None,
    to: Annotated[
        Literal["open-clip", "transformers"], typer.Option(help="what will load it")
    ] = "open-clip",
    runs: Annotated[str | None, typer.Option(help=RUNS)] = None,
) -> None:
    """A run's weights as a folder that open_clip or transformers loads, with their model card."""
    from sdslib.io.runs import find_run
    from sdslib.results.settings import group
    from sdslib.show import modelcard

    (setting,) = group([find_run(run, runs)])
    write = modelcard.export if to == "open-clip" else modelcard.export_to_transformers
    usual = f"{setting.run.name}-{to.replace('-', '_')}"
    print(write(setting.run, folder or Path(usual), setting.control))


@verb()
def convert(
    file: Annotated[Path, typer.Argument(help="a checkpoint, as open_clip's epoch_N.pt")],
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    model: Annotated[
        str, typer.Option(help="open_clip's name of the model that was trained, or its folder")
    ],
) -> None:
    """A checkpoint of open_clip's training as a folder that a run takes as clip_model."""
    from sdslib.lab import checkpoints

    model = str(Path(model).resolve()) if Path(model).is_dir() else model
    print(checkpoints.convert(file, model, folder.resolve()))


# --- what several of them need ------------------------------------------------------------------


def _checked(model: str, given: dict[str, Any]) -> Any:
    from sdslib.checks.guard import validate
    from sdslib.checks.notebooks import MODELS

    return validate(MODELS[model], given)


def _can_be_written(option: str, file: Path | None) -> None:
    """ParameterError where the file of an option has no place, before its content is made."""
    if file and (file.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK)):
        raise ParameterError([f"{option}: {file} cannot be written; name a file in a folder that "
                              "is there and can be written to"])  # fmt: skip


def _keep(found: pd.DataFrame, table: Path | None) -> None:
    """Comparisons in the file that is named, if one is: of `FORMS`, checked before."""
    from sdslib.io.storage import write_bytes
    from sdslib.results import formatting, takeaway

    if table:
        shown = formatting.differences(found)
        made = {".csv": lambda: takeaway.csv(found), ".tex": lambda: takeaway.latex(shown),
                ".md": lambda: formatting.markdown(shown.reset_index())}[table.suffix]  # fmt: skip
        write_bytes(table, made().encode())


def _as_papermill(given: dict[str, Any]) -> list[str]:
    return [word for name, value in given.items() for word in ("-p", name, str(value))]


def _words(**given: Any) -> list[str]:
    """Options as a program's own parser reads them; those that are None are left out."""
    pairs = [(f"--{name}", value) for name, many in given.items()
             for value in (many if isinstance(many, list) else [many])]  # fmt: skip
    return [word for name, value in pairs if value is not None for word in (name, str(value))]
