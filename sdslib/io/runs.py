"""The runs that there are: opened, found, listed, and held to their checksums.

`python -m sdslib.io.runs list`, `show RUN` and `verify [RUN …]` tell what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdslib.io import history, lock, storage
from sdslib.io.exits import foreseen
from sdslib.io.history import RunWarning
from sdslib.io.identity import code_hash, identify
from sdslib.io.paths import path_problem, project_path, shown_path
from sdslib.io.run import REMEDY, Run, RunError
from sdslib.io.storage import StorageError
from sdslib.io.wording import suggest, warn_in_words

if TYPE_CHECKING:
    import pandas as pd

    from sdslib.config import Config

_NOWHERE = "a run cannot be kept in {}: {}; name a folder that can be written with runs"
LISTED = ["run", "id", "state", "step", "updated", "arm", "sds_weight", "trainable", "seed"]


def open_run(
    config: Config, fingerprints: Mapping[str, Any] | None = None, root: Path | str | None = None
) -> Run:
    """The run of these parameters and data, new, continued, or (finished) read-only.

    `fingerprints` names the data by content, as `{"pairs": "…", "benchmark": "…", "teacher": "…"}`.
    With `config.resume` an unfinished run keeps its newest good checkpoint and the history up to
    it; without, both are dropped. Raises LockedError while another process has it, and RunError
    when `config.run` names a run of other parameters.
    """
    identity = identify(config, fingerprints or {})
    folder = _folder_of(runs_root(config, root), config, identity)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(_NOWHERE.format(shown_path(folder.parent), error.strerror)) from error
    if (folder / "status.json").exists() and Run(folder).finished:
        return _as_it_is(Run(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(_NOWHERE.format(shown_path(folder), "it is read-only"))
    lock.acquire(folder)
    run = Run(folder, writable=True)
    if run.finished:  # while we waited for the lock
        lock.release(folder)
        return _as_it_is(Run(folder))
    run.begin(config, identity)
    return run


def _as_it_is(run: Run) -> Run:
    if run.environment.get("code", code_hash()) != code_hash():
        text = f"{run.name} was computed by another state of the code, under the same recipe"
        again = f"to train it again, remove {run.shown_path}"
        warnings.warn(f"{text}: its figures stand as they are; {again}", RunWarning, stacklevel=3)
    return run


def runs_root(config: Config | None = None, root: Path | str | None = None) -> Path:
    """Where runs are kept: `root`, else the config's `runs`, else `reports/runs`."""
    return project_path(root or (config and config.runs) or "reports/runs")


def run_folders(root: Path) -> list[Path]:
    """The folders of all runs there, by name."""
    return sorted(path.parent for path in root.glob("*/identity.json"))


def _folder_of(root: Path, config: Config, identity: dict[str, Any]) -> Path:
    folders, end = run_folders(root), f"-{identity['id']}"
    name = getattr(config, "run", None)
    for path in folders if name else ():
        if path.name.rpartition("-")[0] == name and not path.name.endswith(identity["id"]):
            differences = "; ".join(_differences(Run(path).identity, identity))
            raise RunError(
                f"run {name!r} exists with other parameters ({differences}); choose another name"
            )
    arm = getattr(config, "arm", type(config).__name__.removesuffix("Config").lower())
    new = root / f"{name or f'{config.world}-{arm}'}{end}"
    return next((path for path in folders if path.name.endswith(end)), new)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for part, prefix in (("params", ""), ("data", "data ")):
        for key in sorted(old[part].keys() | new[part].keys()):
            before, after = old[part].get(key), new[part].get(key)
            if before != after:
                yield f"{prefix}{key} was {before!r}, now {after!r}"
    if old.get("recipe") != new["recipe"]:
        yield f"recipe was {old.get('recipe', 'not told')}, now {new['recipe']}"


# --- reading runs back ---------------------------------------------------------------------------


def find_run(key: str | Path, root: Path | str | None = None) -> Run:
    """The run of this id (or its beginning), name, or path, for reading.

    An executed notebook stands for the run that it names last. RunError when there is none (with
    the nearest name) or more than one, and for a notebook that was cut.
    """
    path, key = Path(key), str(key)
    if path_problem(key) is None and (path / "identity.json").is_file():
        return Run(path.resolve())
    folders = run_folders(runs_root(root=root))
    if path.suffix == ".ipynb":
        return _run_of_notebook(path, folders)
    exact = [f for f in folders if key in (f.name, *f.name.rsplit("-", 1))]
    found = exact or [f for f in folders if f.name.rsplit("-", 1)[1].startswith(key)]
    if len(found) == 1:
        return Run(found[0])
    if found:
        raise RunError(f"{key!r} names several runs: {', '.join(f.name for f in found)}")
    close = suggest(key, [f.name for f in folders])
    hint = f"did you mean {close!r}?" if close else "`sdsclip runs` shows them"
    raise RunError(f"no run {key!r}; {hint}")


def _run_of_notebook(path: Path, folders: list[Path]) -> Run:
    if not path.is_file():
        raise RunError(f"{path.name} does not exist")
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        json.loads(text)
    except ValueError as error:
        raise RunError(
            f"{path.name} is not a complete notebook (cut at byte {path.stat().st_size}); execute "
            "it again: what its run had finished is read, not computed again"
        ) from error
    named = {text.rfind(folder.name): folder for folder in folders if folder.name in text}
    if not named:
        raise RunError(f"{path.name} names no run; `sdsclip runs` shows all")
    return Run(named[max(named)])


def list_runs(root: Path | str | None = None, more: Sequence[str] = ()) -> pd.DataFrame:
    """One row a run: name, id, state, step, when, the parameters that are most asked for, and more.

    A run that cannot be read has the state `damaged` and nothing more; a warning says why.
    """
    import pandas as pd

    rows = [_listed(Run(folder)) for folder in run_folders(runs_root(root=root))]
    return pd.DataFrame(rows, columns=[*LISTED, *more], dtype=object)  # 20 steps, not 20.0


def _listed(run: Run) -> dict[str, Any]:
    try:
        return run.params | run.status() | {"run": run.name, "id": run.id}
    except (RunError, StorageError) as error:
        warnings.warn(f"left out: {error}", RunWarning, stacklevel=4)
        return {"run": run.name, "state": "damaged"}


def finished_runs(root: Path | str | None = None) -> list[Run]:
    """The finished fine-tunings of a folder that are as they were written, the newest first.

    A warning names each that is damaged.
    """
    found = list_runs(root)
    found = found[found["state"].eq("finished") & found["arm"].notna()]
    newest = found.sort_values("updated", kind="stable")["run"][::-1]
    return [run for name in newest if _is_sound(run := Run(runs_root(root=root) / name))]


def _is_sound(run: Run) -> bool:
    problems = run.problems(folders=False)
    if problems:
        text = f"left out: {run.name}/{'; '.join(problems)}; {REMEDY}"
        warnings.warn(text, RunWarning, stacklevel=4)
    return not problems


# --- as a program --------------------------------------------------------------------------------


def describe(run: Run) -> str:
    """The run in words: how it ended, what is kept, with which parameters."""
    status, env = run.status(), run._read("env.json", "device", "threads", "python")
    good = [(f, storage.manifest_problem(f)) for f in run.checkpoints()]
    lines = [
        f"{run.name}: {status['message']}",
        f"updated      {status['updated']}",
        f"history      {len(list(history.rows(run.path)))} rows",
        *(f"checkpoint   {f.name} {problem or 'verified'}" for f, problem in good),
        f"scores       {', '.join(run.score_names()) or 'none'}",
        f"device       {env['device']}, {env['threads']} threads, python {env['python']}",
        *(f"{name:<12} {value}" for name, value in run.params.items()),
    ]
    return "\n".join(lines)


def _verify(names: Iterable[str], root: str | None) -> int:
    """Print of each run what is not as it was written; a name may be a folder of runs, too."""
    found: list[Run] = []
    for name in names:
        below = run_folders(project_path(name))
        found += [Run(folder) for folder in below] or [find_run(name, root)]
    found = found or [Run(folder) for folder in run_folders(runs_root(root=root))]
    problems = {run: run.problems() for run in found}
    print("\n".join(_verdict(run, problems[run]) for run in found) or "no runs yet")
    return int(any(problems.values()))


def _verdict(run: Run, problems: list[str]) -> str:
    if problems:
        return "\n".join(f"{run.name}/{problem}" for problem in problems)
    known = len(storage.sums_of(run.path))
    how = f"{known} files" if known else "no checksums, kept before there were any"
    return f"{run.name}: whole ({how})"


@foreseen
def main(words: list[str] | None = None) -> int:
    """`list` all runs, `show` one, or `verify` them: hold every file to its checksum.

    Exit status: 1 where `verify` finds a damaged file, 2 when there is no run of that name.
    """
    parser = argparse.ArgumentParser(prog="python -m sdslib.io.runs", description=main.__doc__)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--runs", help="the folder of runs (default: reports/runs)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="one line a run", parents=[where])
    show = verbs.add_parser("show", help="one run in full", parents=[where])
    show.add_argument("run", help="id, name or path")
    check = verbs.add_parser("verify", help="hold files to their checksums", parents=[where])
    check.add_argument("names", nargs="*", metavar="RUN", help="as above, or a published study")
    options = parser.parse_args(words)
    if options.verb == "verify":
        return _verify(options.names, options.runs)
    if options.verb == "list":
        table = list_runs(options.runs)
        print(table.to_string(index=False) if len(table) else "no runs yet")
    else:
        print(describe(find_run(options.run, options.runs)))
    return 0


if __name__ == "__main__":
    warn_in_words()
    sys.exit(main())
