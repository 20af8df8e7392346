"""The model card beside a run's weights, and the way of both to the Hub, which only `push` takes.

The card is `README.md` in the run's folder, made from what the run kept; the weights' own folder
and its manifest stay as they are.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pandas as pd
from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sdslib.config import FinetuneConfig, is_mini, set_name
from sdslib.io import storage
from sdslib.io.paths import without_places
from sdslib.io.runs import Run
from sdslib.io.wording import first_line
from sdslib.results import answers, comparison, finetuned, formatting, objectives
from sdslib.results.formatting import share
from sdslib.results.settings import config_of, duration, score_tables
from sdslib.show import page

NAME = "README.md"
OWN = "local-dir:data/mini/student"  # made here, and not from others' weights


class PushError(RuntimeError):
    """Nothing, or not all, could be sent to the Hub; the message says why and what to do."""


def write(run: Run, control: Run | None = None) -> Path:
    """Write the card of a finished run into its folder; says where it is.

    `control` is the run with L_CLIP alone that the results stand beside, where there is one.
    """
    return run.keep(NAME, str(card(run, control)).encode())


def card(
    run: Run, control: Run | None = None, source: str | None = None, gap: float | None = None
) -> ModelCard:
    """The card of a finished run; `source` is where a reader will load the weights from.

    With `gap` it is that of transformers' form, whose embeddings differ so much from open_clip's.
    """
    config, scores = config_of(run), score_tables(run, control)
    whole = finetuned.before_after(scores).query("tag == 'all'")
    told = comparison.paired(scores).query("tag == 'all'")
    differences = formatting.differences(told).reset_index()
    differences = differences.rename(columns={"smallest": "smallest shown"})
    text = page.markdown(
        "modelcard",
        data=_metadata(
            run, config, whole, "open_clip" if gap is None else "transformers"
        ).to_yaml(),
        gap=gap,
        run=run.name,
        mini=is_mini(config.benchmark),
        drawn=drawn(config),
        objective=objectives.objective_in_words(config),
        term=objectives.OBJECTIVES[config.arm].term,
        taught=partial(objectives.taught_by, config),
        params=without_places(config.model_dump()),
        duration=duration(config),
        source=source or f"local-dir:{run.shown_path}/weights",
        bridge=(run.weights / "bridge.safetensors").is_file(),
        items=len(next(iter(scores.values()))),
        shares=_shares(whole),
        answer=answers.gain(told, note=config.label),
        differences=differences[["comparison", "metric", "difference", "p", "smallest shown"]],
        own=config.clip_model == OWN,
    )
    return ModelCard(text)


def export(run: Run, folder: Path, control: Run | None = None) -> Path:
    """Copy a run's weights into a new folder that open_clip loads, with their card; says where.

    StorageError where the weights are not whole, or the folder is there.
    """
    _check_exportable(run, folder)
    with storage.staged_folder(folder) as stage:
        shutil.copytree(run.weights, stage, dirs_exist_ok=True)
        (stage / NAME).write_text(str(card(run, control, f"local-dir:{folder}")), "utf-8")
    return folder


def export_to_transformers(run: Run, folder: Path, control: Run | None = None) -> Path:
    """`export` as a folder that transformers' `CLIPModel` loads; WeightsError where it cannot."""
    from sdslib.lab import to_transformers
    from sdslib.student import load_student

    _check_exportable(run, folder)
    student = load_student(f"local-dir:{run.weights}", None)
    with storage.staged_folder(folder) as stage:
        gap = to_transformers.write(student, stage)
        (stage / NAME).write_text(str(card(run, control, str(folder), gap)), "utf-8")
    return folder


def _check_exportable(run: Run, folder: Path) -> None:
    if folder.exists():
        raise storage.StorageError(f"{folder} is there already; name a new folder")
    if problem := storage.manifest_problem(run.weights):
        raise storage.StorageError(f"{run.name}: weights are not whole ({problem})")


def push(run: Run, repo: str, control: Run | None = None, api: HfApi | None = None) -> str:
    """Send a run's weights and card to `repo` ("owner/name") in one commit; returns its address.

    Nothing else ever sends anything. A repository that is new is made private. The token is that
    of HF_TOKEN or of `hf auth login`. PushError says what is missing.
    """
    if problem := storage.manifest_problem(run.weights):
        raise PushError(f"{run.name}: weights are not whole ({problem}); nothing was sent")
    if get_token() is None:
        raise PushError(
            f"no token for {repo!r}; export HF_TOKEN=… or run `hf auth login`; nothing was sent"
        )
    there = sorted(p for p in run.weights.rglob("*") if p.is_file())
    text = str(card(run, control, f"hf-hub:{repo}")).encode()
    parts = [CommitOperationAdd(p.relative_to(run.weights).as_posix(), p) for p in there]
    parts.append(CommitOperationAdd(NAME, text))
    api = api or HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        done = api.create_commit(repo, parts, commit_message=f"{run.name}: weights and model card")
    except OfflineModeIsEnabled as error:
        raise PushError(
            f"HF_HUB_OFFLINE is set; unset it to send {run.name} to {repo!r}"
        ) from error
    except HfHubHTTPError as error:
        raise PushError(f"the Hub refused {repo!r}: {first_line(error)}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise PushError(
            f"the Hub cannot be reached for {repo!r} ({first_line(error)}); try again online"
        ) from error
    return str(done.repo_url)


def drawn(config: FinetuneConfig) -> str:
    """What happened in the mini-world: `trained and measured`, one of the two, or nothing ("")."""
    done = (("trained", config.train_data), ("measured", config.benchmark))
    return " and ".join(what for what, source in done if is_mini(source))


def _metadata(run: Run, config: FinetuneConfig, whole: pd.DataFrame, library: str) -> ModelCardData:
    hub, name = config.clip_model.removeprefix("hf-hub:"), without_places(config.benchmark)
    more: dict[str, Any] = {"license": "other", "license_name": "as-the-base-model"}
    more |= {"base_model": hub} if hub != config.clip_model else {}
    return ModelCardData(
        library_name=library,
        pipeline_tag="zero-shot-image-classification",
        language="en",
        tags=["clip", "sds-clip", *(["mini-world"] if config.in_mini_world else [])],
        model_name=run.name,
        eval_results=[
            EvalResult(
                task_type="image-text-matching",
                dataset_type=set_name(name),
                dataset_name=name + " (mini-world)" * is_mini(config.benchmark),
                metric_type=row.metric,
                metric_name=f"{row.metric} (share of right items)",
                metric_value=round(float(row.accuracy), 4),
            )
            for row in whole[whole["model"] == whole["model"].iloc[-1]].itertuples()
        ],
        **({"license": "mit"} if config.clip_model == OWN else more),
    )


def _shares(whole: pd.DataFrame) -> pd.DataFrame:
    """One row a model, one column a metric, and what chance gives."""
    told = list(map(share, whole["accuracy"], whole["low"], whole["high"]))
    chance = whole.assign(model="chance", told=whole["chance"].map("{:.1%}".format))
    both = pd.concat([whole.assign(told=told), chance.drop_duplicates("metric")])
    return both.set_index(["model", "metric"])["told"].unstack(sort=False).reset_index()
