"""The model card beside a run's weights, and the way of both to the Hub, which only `push` takes.

The card is `README.md` in the run's folder, made from what the run kept; the weights' own folder
and its manifest stay as they are.
"""

from __future__ import annotations

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

from sdslib.checks import fingerprints
from sdslib.config import FinetuneConfig, is_mini, set_name
from sdslib.io import storage
from sdslib.io.paths import without_places
from sdslib.io.runs import Run
from sdslib.results import comparison, finetuned
from sdslib.results.cases import config_of, duration, objective, score_tables
from sdslib.results.formatting import p_value, points, share
from sdslib.show import page

NAME = "README.md"
MINI_LIMITS = (
    "The mini-world holds colored shapes on a plain ground and captions of one kind. Nothing "
    "outside it was measured."
)
REAL_LIMITS = (
    "Measured on the sets above alone. It keeps the biases of the base model, of the teacher and "
    "of the captions that it was trained on; examine it on your own data before you use it."
)


class PushError(RuntimeError):
    """Nothing, or not all, could be sent to the Hub; the message says why and what to do."""


def write(run: Run, control: Run | None = None) -> Path:
    """Write the card of a finished run into its folder; says where it is.

    `control` is the run with L_CLIP alone that the results stand beside, where there is one.
    """
    return run.keep(NAME, str(card(run, control)).encode())


def card(run: Run, control: Run | None = None, source: str | None = None) -> ModelCard:
    """The card of a finished run; `source` is where a reader will load the weights from."""
    config = config_of(run)
    scores = score_tables(run, control)
    whole = finetuned.before_after(scores).query("tag == 'all'")
    return ModelCard.from_template(
        _metadata(run, config, whole),
        template_str=page.asset("modelcard.md"),
        title=f"SDS-CLIP student {run.name}",
        mini=is_mini(config.benchmark),
        drawn=drawn(config).capitalize(),
        objective=objective(config),
        base=described(config.clip_model, config.clip_pretrained),
        teacher=_teacher(config),
        data=_data(config),
        params=without_places(run.params),
        duration=duration(config),
        run=run.name,
        source=source or f"local-dir:{run.shown_path}/weights",
        bridge=(run.weights / "bridge.safetensors").is_file(),
        items=len(next(iter(scores.values()))),
        benchmark=without_places(config.benchmark),
        scores=_score_rows(whole),
        differences=_difference_rows(scores),
        limits=MINI_LIMITS if is_mini(config.benchmark) else REAL_LIMITS,
        licence=_licence(config)[1],
    )


def push(run: Run, repo: str, control: Run | None = None, api: HfApi | None = None) -> str:
    """Send a run's weights and card to `repo` ("owner/name") in one commit; returns its address.

    Nothing else ever sends anything. A repository that is new is made private. The token is that
    of HF_TOKEN or of `hf auth login`. PushError says what is missing.
    """
    problem = storage.manifest_problem(run.weights)
    if problem:
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
        raise PushError(f"the Hub refused {repo!r}: {_first_line(error)}") from error
    except (httpx2.HTTPError, OSError) as error:
        raise PushError(
            f"the Hub cannot be reached for {repo!r} ({_first_line(error)}); try again online"
        ) from error
    return str(done.repo_url)


def described(model: str, tag: str | None) -> str:
    """A model's name with its tag."""
    name = without_places(model.removeprefix("local-dir:"))
    return f"`{name}`" + (f", weights `{tag}`" if tag else "")


def drawn(config: FinetuneConfig) -> str:
    """What happened in the mini-world: `trained and measured`, one of the two, or nothing ("")."""
    done = (("trained", config.train_data), ("measured", config.benchmark))
    return " and ".join(what for what, source in done if is_mini(source))


def _teacher(config: FinetuneConfig) -> str:
    if not fingerprints.has_teacher(config):
        return "none"
    return described(config.teacher, config.teacher_revision)


def _data(config: FinetuneConfig) -> str:
    name = (
        "the mini-world's captions"
        if config.train_data == "mini"
        else f"`{without_places(config.train_data)}`"
    )
    return name if config.train_pairs is None else f"{name}, the first {config.train_pairs} pairs"


def _licence(config: FinetuneConfig) -> tuple[dict[str, str], str]:
    """The licence as metadata and in words: weights made here, or derived from others' weights."""
    if config.clip_model == "local-dir:data/mini/student":
        return {"license": "mit"}, "MIT, as the base model and the code that trained it."
    text = (
        "The weights derive from the base model's, so the base model's licence holds; read it, and "
        "that of the teacher, before you pass them on. The code that trained them is under MIT."
    )
    return {"license": "other", "license_name": "as-the-base-model"}, text


def _metadata(run: Run, config: FinetuneConfig, whole: pd.DataFrame) -> ModelCardData:
    hub = config.clip_model.removeprefix("hf-hub:")
    more: dict[str, Any] = _licence(config)[0]
    if hub != config.clip_model:
        more["base_model"] = hub
    name = without_places(config.benchmark)
    return ModelCardData(
        library_name="open_clip",
        pipeline_tag="zero-shot-image-classification",
        language="en",
        tags=["clip", "sds-clip", *(["mini-world"] if config.in_mini_world else [])],
        model_name=run.name,
        eval_results=[
            EvalResult(
                task_type="image-text-matching",
                dataset_type=set_name(name),
                dataset_name=name + (" (mini-world)" if is_mini(config.benchmark) else ""),
                metric_type=row.metric,
                metric_name=f"{row.metric} (share of right items)",
                metric_value=round(float(row.accuracy), 4),
            )
            for row in whole[whole["model"] == whole["model"].iloc[-1]].itertuples()
        ],
        **more,
    )


def _score_rows(whole: pd.DataFrame) -> str:
    metrics = list(dict.fromkeys(whole["metric"]))
    rows = [["model", *metrics], ["---"] * (1 + len(metrics))]
    for model, part in whole.groupby("model", sort=False):
        cells = [share(row.accuracy, row.low, row.high) for row in part.itertuples()]
        rows.append([str(model), *cells])
    chance = whole.drop_duplicates("metric")["chance"]
    rows.append(["chance", *(f"{100 * value:.1f}%" for value in chance)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _difference_rows(scores: dict[str, pd.DataFrame]) -> str:
    head = ["comparison", "metric", "difference", "p", "smallest shown"]
    rows = [head, ["---"] * len(head)]
    *others, last = scores
    for other in others:
        for row in comparison.compare(scores[other], scores[last], by=()).itertuples():
            change = points(row.difference, row.low, row.high)
            smallest = f"{100 * row.mdd:.1f}"
            rows.append([f"{last} against {other}", row.metric, change, p_value(row.p), smallest])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
