"""What each arm's objective is in words: its formula, what its own term is, who teaches."""

from __future__ import annotations

from typing import NamedTuple

from sdslib.config import ARMS, FinetuneConfig
from sdslib.io.paths import without_places


class Words(NamedTuple):
    """What an arm's own term is, after "where"; its formula, `{weighed}` that term with its weight;
    the teacher's row, `{}` its name."""

    term: str
    formula: str = "L_CLIP + {weighed}"
    teacher: str = "{}"


_DENOISED = "a frozen diffusion model denoises a linear map of CLIP's"
_SDS = f"L_SDS is the error with which {_DENOISED} image embedding under the"
OBJECTIVES = {
    "sds": Words(f"{_SDS} image's caption"),
    "clip-only": Words("no teacher takes part: the control", "L_CLIP", "none"),
    "sds-only": Words(f"{_SDS} image's caption", "{weighed}"),
    "shuffled-captions": Words(f"{_SDS} caption of another image of the batch: a control"),
    "random-teacher": Words(
        f"{_SDS} image's caption, and the diffusion model has learnt nothing: a control",
        teacher="{}, the weights of its UNet drawn at random",
    ),
    "latent-regression": Words(
        "L_regression is the squared distance between a linear map of CLIP's image embedding and "
        "the image's latent, and no UNet is asked: a control",
        teacher="{}, its VAE alone",
    ),
    "hard-negatives": Words(
        "every image is also held against false captions of the same words",
        "L_CLIP with swapped captions as negatives",
        "none",
    ),
    **{
        name: Words(
            "the losses are its paper's, on false captions of the same words",
            f"L_CLIP and {name}'s losses",
            "none",
        )
        for name, arm in ARMS.items()
        if arm.several
    },
    "sds-text": Words(
        f"L_SDS is the error with which {_DENOISED} embedding under the image's caption, half of "
        "it on the image's embedding and half on the caption's"
    ),
    "sds-margin": Words(
        f"L_margin is small where {_DENOISED} image embedding better under the image's caption c "
        "than under a false one c′ of its words; its gradient goes through the UNet"
    ),
    "teacher-choice": Words(
        "L_choice is the cross-entropy of the student's choice between a caption and false ones of "
        "its words to the choice of a frozen diffusion model, which sees the image and is not told "
        "the true one; no gradient goes through that model"
    ),
}


def objective_in_words(config: FinetuneConfig) -> str:
    """The run's objective in one line."""
    named = "" if ARMS[config.arm].sds is None or config.arm in ("sds", "sds-only") else config.arm
    weighed = f"{config.sds_weight:g} * L_{own_term(config)}"
    told = OBJECTIVES[config.arm].formula.format(weighed=weighed)
    return f"{told}, arm {named}" if named else told


def own_term(config: FinetuneConfig) -> str:
    """The name of the term that the arm weighs, as SDS; "" where it has none."""
    arm = ARMS[config.arm]
    return arm.weighs if arm.sds else ""


def taught_by(config: FinetuneConfig, teacher: str) -> str:
    """Who teaches, where `teacher` is what the run's is called; of verdicts their file."""
    if config.has_verdicts:
        return f"its verdicts, made before: {without_places(config.verdicts)}"
    return OBJECTIVES[config.arm].teacher.format(teacher)


def method(config: FinetuneConfig) -> str:
    """The objective and what its letters mean, in a few sentences."""
    arm, whole = ARMS[config.arm], f"{objective_in_words(config)}, where "
    told = f"{whole}{OBJECTIVES[config.arm].term}."
    if arm.sds and arm.maps:
        told += " f is the student's image tower, h_w a linear map that is trained along."
    if arm.sds and arm.denoises:
        past = "past the UNet, as in DreamFusion (residual)"
        way = "through the UNet" if config.sds_gradient == "through" else past
        told += f" t and the noise are drawn anew at every step. The gradient of L_SDS goes {way}."
    return told
