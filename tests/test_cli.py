"""`sdsclip`: every verb has typed help and completion, and ends with a status that says why."""

import csv
import importlib
import re
import subprocess
import sys
import time
import tomllib

import pandas as pd
import pytest
from finished import finish
from typer.testing import CliRunner

from sdslib import experiment
from sdslib.checks import notebooks
from sdslib.commands import program
from sdslib.io import exits, runs, storage
from sdslib.io.history import RunWarning
from sdslib.io.paths import project_root
from sdslib.io.sources import DataError
from sdslib.lab import to_transformers
from sdslib.results import comparison, formatting, settings
from sdslib.student import load_student
from sdslib.tables import outcomes
from sdslib.train import TrainingError

VERBS = list(program.REGISTERED)


def run(*words, **env):
    """Status, stdout and stderr of the program, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        done = CliRunner().invoke(program.app(words), [*map(str, words)], prog_name="sdsclip")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def flat(text):
    return " ".join(text.replace("│", " ").split())


def test_the_verbs_are_those_that_there_are():
    assert set(VERBS) == {
        *("finetune", "evaluate", "sweep", "runs", "compare", "doctor", "dry-run", "diagnose"),
        *("report", "demo", "publish", "export", "convert", "verdicts", "scoreboard", "tune"),
        *("score", "rescore"),
    }
    text = flat(run("--help").output)
    assert all(name in text for name in VERBS)
    for code, (said, _) in exits.EXITS.items():
        assert f"{code}: {said}" in text


def test_the_help_costs_less_than_half_a_second_and_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)"
    code = f"import sys, time, sdslib.commands.program as program\ntry: program.main(['--help'])\nexcept SystemExit: pass\nprint({heavy}, time.process_time())"  # fmt: skip # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, seconds = done.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert loaded == "set()"
    assert float(seconds) < 0.5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_typed_help(verb):
    done = run(verb, "--help", COLUMNS="200")
    assert done.exit_code == 0
    text = flat(done.output)
    known = program.REGISTERED[verb]
    assert flat(known.function.__doc__) in text
    for name, told in program.told_of(known.notebook).items() if known.notebook else ():
        if name in known.without:
            continue
        kind = notebooks.kind(notebooks.MODELS[known.model], name)
        option = f"--{name.replace('_', '-')}"
        assert option in text
        assert told.split("; ")[0] in text
        words = text[text.index(f"{option} ") :].split()
        assert kind == "bool" or words[1] == kind.upper()


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_option_ends_with_2_and_what_was_meant(verb):
    option = next(w for w in run(verb, "--help").output.split() if w.startswith("--"))
    done = run(verb, f"{option[:-1]}{option[-2:]}x", "3")
    assert done.exit_code == 2
    assert "No such option" in done.stderr
    assert option in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_verb_ends_with_2_and_a_suggestion(verb):
    done = run(f"{verb[:-2]}x{verb[-2:]}")
    assert done.exit_code == 2
    assert f"Did you mean '{verb}'" in flat(done.stderr)


def completed(*words):
    """What a bash offers at the end of these words."""
    line = " ".join(("sdsclip", *words))
    env = {"_SDSCLIP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    return run(**env).output.split()


def test_the_shell_completes_verbs_options_and_values():
    assert set(completed("")) == set(VERBS)
    assert completed("dry") == ["dry-run"]
    assert "--sds-weight" in completed("finetune", "--sds")
    assert completed("finetune", "--arm", "sds-") == ["sds-only", "sds-text", "sds-margin"]
    assert set(completed("sweep", "--executor", "")) == {"local", "ray", "slurm"}
    for verb in VERBS:
        assert "--help" in completed(verb, "--h")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["finetune", "--arm", "sdss"], "did you mean 'sds'?"),
        (["finetune", "--steps", "x", "--lr", "-1"], "steps must be a whole number ≥ 1"),
        (["finetune", "--clip_model", "ViT-B-23"], "did you mean 'ViT-B-32'?"),
        (["dry-run", "--steps", "0"], "steps must be a whole number ≥ 1"),
        (["verdicts", "--choice-draws", "0"], "choice_draws must be"),
        (["runs", "show", "nothing"], "no run 'nothing'; `sdsclip runs` shows them"),
        (["tune", "--arms", "clip-onyl", "--search", "lr=1e-5:1"], "did you mean 'clip-only'?"),
        (
            ["tune", "--arms", "sds", "--search", "lr=1e-5:1", "--set", "stesp=3"],
            "did you mean 'steps'?",
        ),
        (["compare", "nothing"], "no run 'nothing'"),
        (["compare", "nothing", "more"], "no run 'nothing'"),
        (["runs", "--where", "sede=1"], "did you mean 'seed'?"),
        (["runs", "--where", "seed"], "where is NAME=VALUE"),
        (["runs", "--sort", "scor"], "did you mean 'score'?"),
        (["export", "nothing", "there"], "no run 'nothing'"),
        (["export", "nothing", "--to", "transformer"], "did you mean 'transformers'?"),
        (["export", "nothing", "--to", "open_clip"], "no run 'nothing'"),
        (["finetune", "--sds-wieght", "3"], "did you mean '--sds-weight'?"),
        (["score", "a.csv", "--captions", "?!"], "has no word"),
        (["score", "a.csv", "--item", "3"], "No such option: --item"),
        (["compare", "nothing", "--table", "a.xls"], "ends with none of .csv, .md, .tex"),
        (
            ["compare", "nothing", "--table", "no/where.csv"],
            "table: no/where.csv cannot be written",
        ),
        (["score", "a.csv", "--out", "README.md/a.csv"], "out: README.md/a.csv cannot be written"),
        (["score", "a.csv", "--out", "a.csv"], "out: a.csv is what is scored"),
        (
            ["sweep", "notebooks/02_finetun.ipynb", "--seeds", "1"],
            "did you mean 'notebooks/02_finetune.ipynb'?",
        ),
    ],
)
def test_a_wrong_value_ends_with_2_and_says_what_is_right(words, said, capfd):
    done = run(*words)
    assert done.exit_code == 2
    assert said in done.stderr + capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no pairs"), 3),
        (storage.StorageError("cut"), 3),
        (TrainingError("the loss is not finite"), 4),
        (KeyboardInterrupt("stopped after step 3; run again to go on"), 130),
    ],
)
def test_what_ends_a_verb_is_said_and_has_its_own_status(error, code, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(experiment, "finetune", fail)
    done = run("finetune")
    assert done.exit_code == code
    assert str(error) in done.stderr


def test_a_dry_run_is_asked_for_in_two_ways_and_trains_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(experiment, "finetune", lambda *_: asked.append("trained"))
    monkeypatch.setattr("sdslib.lab.dry_run.main", lambda words: asked.append(words) or 1)
    assert run("finetune", "--steps", "3", "--dry-run").exit_code == 1
    assert run("dry-run", "--steps", "3").exit_code == 1
    assert asked == [["-p", "steps", "3", "-p", "dry_run", "True"], ["-p", "steps", "3"]]


@pytest.mark.parametrize(
    ("words", "arms"),
    [
        ([], ["sds", "clip-only"]),
        (["--no-control"], ["sds"]),
        (["--arm", "clip-only"], ["clip-only"]),
    ],
)
def test_a_fine_tuning_makes_its_control_too(words, arms, monkeypatch, tmp_path):
    made = []

    def train(config, progress):
        made.append(finish(tmp_path, config.arm, items=20))
        return made[-1]

    monkeypatch.setattr(experiment, "finetune", train)
    done = run("finetune", *words)
    assert [found.params["arm"] for found in made] == arms
    told = re.search("The run with L_CLIP alone: sdsclip finetune .*--arm clip-only", done.stdout)
    assert bool(told) == (words == ["--no-control"])


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(experiment, "finetune", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("finetune")


def test_every_error_of_the_table_is_there():
    for _, errors in exits.EXITS.values():
        for room, name in (error.split(":") for error in errors):
            found = getattr(importlib.import_module(f"sdslib.{room}"), name)
            assert exits.status(found.__new__(found)) in exits.EXITS


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    finish(root, "clip-only")
    finish(root, weights=True, run="taught")
    return root


def test_a_run_is_compared_with_its_control_and_with_another(root):
    alone = run("compare", "taught", "--runs", root)
    assert alone.exit_code == 0
    assert "sds against L_CLIP only" in alone.output
    assert "over one seed the text score changed by" in alone.output
    control = next(p.name for p in root.iterdir() if "clip-only" in p.name)
    both = run("compare", "taught", control, "--runs", root)
    told = " ".join(both.output.split())
    assert "A against B (mini-world): " in told
    assert f"B is L_CLIP only (run {control})." in told
    assert formatting.LEGEND in told
    assert formatting.LEGEND in " ".join(alone.output.split())
    assert re.search(r"arm +sds +clip-only", both.output)
    tables = [runs.find_run(name, root).scores("mini-winoground") for name in (control, "taught")]
    row = comparison.compare(*tables).iloc[0]
    assert f"+{row['up']}/−{row['down']}" in both.output


def test_a_comparison_is_kept_as_a_table(root, tmp_path):
    files = {form: tmp_path / f"kept.{form}" for form in ("csv", "md", "tex")}
    for file in files.values():
        assert run("compare", "taught", "--runs", root, "--table", file).exit_code == 0
    (setting,) = settings.group([runs.find_run("taught", root)])
    kept = pd.read_csv(files["csv"])
    assert kept["difference"].tolist() == pytest.approx(setting.paired["difference"].tolist())
    assert files["md"].read_text().startswith("| comparison | ")
    assert files["tex"].read_text().startswith("\\begin{tabular}")
    control = next(p.name for p in root.iterdir() if "clip-only" in p.name)
    run("compare", "taught", control, "--runs", root, "--table", files["csv"])
    assert set(pd.read_csv(files["csv"])["comparison"]) == {"sds against L_CLIP only"}


def test_runs_are_listed_with_their_scores_sorted_and_filtered(root):
    def rows(*words):
        listed = run("runs", "--format", "csv", "--runs", root, *words).output
        return list(csv.DictReader(listed.splitlines()))

    best = rows("--sort", "-score")
    assert [float(row["score"]) for row in best] == sorted(
        (float(row["score"]) for row in rows()), reverse=True
    )
    (taught,) = rows("--where", "arm=sds", "--where", "lr=1e-3")
    table = runs.find_run("taught", root).scores("mini-winoground")
    assert float(taught["score"]) == outcomes(table)["text"].mean()
    assert int(taught["items"]) == len(table)
    told = run("runs", "--format", "markdown", "--runs", root, "--where", "arm=sds").output
    assert f"| {100 * float(taught['score']):.1f}% | " in told
    assert run("runs", "--runs", root, "--where", "arm=mse").stdout == "no runs\n"
    with pytest.warns(RunWarning, match="no run has arm 'mse'; there are 'clip-only', 'sds'"):
        run("runs", "--runs", root, "--where", "arm=mse")


@pytest.mark.parametrize(
    ("captions", "status"),
    [("a red ball|a blue square", 1), ("a red ball|a blue square|a circle", 0), ("a circle", 0)],
)
def test_a_caption_of_unknown_words_is_told_and_one_that_is_left_decides_nothing(
    captions, status, tiny_models, tmp_path
):
    given = ("--clip-model", tiny_models["clip_model"], "--runs", tmp_path, "--benchmark", tmp_path)
    done = run("demo", *given, "--captions", captions, COLUMNS="300")
    assert done.exit_code == status
    assert "06_caption_demo" in done.stdout
    left_out = "left out: caption 'a red ball' has words outside" in done.stdout
    assert left_out == ("ball" in captions) == ("'ball' (known are" in done.stdout)


def test_exported_weights_are_loaded_by_open_clip_and_bring_their_card(root, tmp_path):
    folder = tmp_path / "out" / "student"
    assert run("export", "taught", folder, "--runs", root).exit_code == 0
    assert "SDS-CLIP student taught" in (folder / "README.md").read_text()
    assert load_student(f"local-dir:{folder}", None).width
    again = run("export", "taught", folder, "--runs", root)
    assert again.exit_code == 3
    assert "is there already" in again.stderr
    assert run("runs", "verify", "--runs", root).exit_code == 0


def test_a_student_exported_to_transformers_brings_a_card_that_says_how_near_it_is(
    root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run("export", "taught", "--to", "transformers", "--runs", root).exit_code == 0
    (folder,) = tmp_path.glob("taught-*-transformers")
    card = (folder / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "differ from open_clip's by " in card
    code = re.search(r"```python\n(.*?)```", card, re.S)[1]
    names = {}
    exec(code, names)
    student = load_student(str(next(root.glob("taught*")) / "weights"), None)
    tokens = names["processor"](text=["a red circle"], return_tensors="pt")
    found = names["model"].get_text_features(**tokens).pooler_output
    expected = student.encode_texts(student.tokenize(["a red circle"]))
    assert (found / found.norm() - expected).abs().max() < 1e-5
    assert storage.manifest_problem(folder) is None


def test_a_student_that_transformers_cannot_hold_is_not_exported(root, tmp_path, monkeypatch):
    monkeypatch.setattr(to_transformers, "problems", lambda _: ["it is a CoCa"])
    done = run("export", "taught", tmp_path / "new", "--to", "transformers", "--runs", root)
    assert done.exit_code == 3
    assert "stays in open_clip's form" in done.stderr
    assert not list(tmp_path.iterdir())


def test_numbers_are_read_as_papermill_reads_them_and_text_stays_text():
    given = {"lr": "1e-3", "steps": "3", "run": "100000", "resume": False, "seed": None}
    assert program._read("finetune", given) == {
        "lr": 0.001, "steps": 3, "run": "100000", "resume": False,
    }  # fmt: skip


def test_the_module_and_the_console_script_are_one_program():
    scripts = tomllib.loads((project_root() / "pyproject.toml").read_text())["project"]["scripts"]
    room, _, name = scripts["sdsclip"].partition(":")
    assert getattr(importlib.import_module(room), name) is program.main
    begun = time.monotonic()
    words = [sys.executable, "-m", "sdslib", "runs", "lst"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=project_root())
    assert done.returncode == 2, time.monotonic() - begun
    assert "'list'" in done.stderr
