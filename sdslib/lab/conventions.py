"""Where we count otherwise than peers do: both figures of each convention beside each other.

`python -m sdslib.lab.conventions -p benchmark mini:winoground` prints them; parameters are those of
`01_baseline`, `teacher_items` says how many items the teacher sees. docs/conventions.md tells the
conventions and shows the mini-world's figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from nltk.tokenize import NLTKWordTokenizer
from torch import Tensor

from sdslib import evaluate, metrics
from sdslib.benchmarks import Benchmark
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import BaselineConfig, from_shell
from sdslib.config import derive_seed
from sdslib.io.exits import foreseen
from sdslib.io.images import ImageRef
from sdslib.io.worlds import world_of
from sdslib.scorers.diffusion import ErrorBank, Row, shared_draws
from sdslib.sets.retrieval import score_all
from sdslib.sets.roles import RETRIEVAL, is_at_hand, load_set
from sdslib.sets.shuffles import clean_caption
from sdslib.student import Student, load_student
from sdslib.tables import outcomes
from sdslib.teacher import Teacher, load_teacher

WORDS = NLTKWordTokenizer().tokenize


def table(config: BaselineConfig) -> pd.DataFrame:
    """One row a figure: convention, set, metric, ours, theirs, n and how many are `otherwise`.

    ours and theirs are shares of n right queries or items; of the trigrams' row, captions whose
    words both split alike. Rows of a set that is no grid, or not here, are left out.
    """
    student = load_student(config.clip_model, config.clip_pretrained)
    world = world_of(config.benchmark)
    whole = load_set(config.benchmark)
    rows = [*squares(student, whole), *trigrams(whole)]
    kept = world.KEEP if world else filter(is_at_hand, [RETRIEVAL])
    for name in (name for name in kept if name.startswith(RETRIEVAL)):
        rows += ties(student, load_set(name))
    if config.teacher_items and len(whole.items[0].images) == 2:
        teacher = load_teacher(config.teacher, config.teacher_revision, variant=config.variant)
        rows += denoised(teacher, whole.sample(config.teacher_items), config)
    return pd.DataFrame(rows)


def ties(student: Student, pairs: Benchmark) -> Iterator[dict[str, Any]]:
    """Recall at 1: of equal scores the wrong one first (ours), or whichever stands first."""
    scores, owner = score_all(evaluate.clip_scorer(student), pairs.items)
    ours = metrics.retrieval_ranks(scores, owner)
    first = {"image_to_text": owner[scores.argmax(1)] == np.arange(len(scores)),
             "text_to_image": scores.argmax(0) == owner}  # fmt: skip
    for way, right in first.items():
        yield _row("retrieval ties", pairs.name, f"recall@1 {way}", ours[way] == 0, right)


def squares(student: Student, items: Benchmark) -> Iterator[dict[str, Any]]:
    """Each metric of a set, the student's own square of an image (ours) or the image distorted."""
    ours, theirs = (
        outcomes(evaluate.score_grids(evaluate.clip_scorer(student, mode=mode), items))
        for mode in (None, "squash")
    )
    for metric, right in ours.items():
        yield _row("image squashed", items.name, metric, right, theirs[metric])


def trigrams(whole: Benchmark) -> Iterator[dict[str, Any]]:
    """Captions that split into the same words by blanks, as ours do when clean, and by nltk."""
    texts = sorted({caption for item in whole.items for caption in item.captions})
    same = [clean_caption(" ".join(WORDS(text))) == clean_caption(text) for text in texts]
    yield _row("trigrams of nltk's words", whole.name, "captions", [True] * len(same), same)


def denoised(
    teacher: Teacher, items: Benchmark, config: BaselineConfig
) -> Iterator[dict[str, Any]]:
    """Text and image score of the plain errors: mean latent and squared norm (ours), or other."""
    errors, sampled = (
        _errors(kind, teacher, items, config) for kind in (ErrorBank, SampledLatents)
    )
    for name, other in {"latent sampled": sampled, "norm not squared": np.sqrt(errors)}.items():
        ours, theirs = (metrics.winoground_correct(-e.mean(-1)) for e in (errors, other))
        for metric in ("text", "image"):
            yield _row(name, items.name, f"teacher, {metric}", ours[metric], theirs[metric])


class SampledLatents(ErrorBank):
    """An `ErrorBank` whose latents are samples of the VAE's posterior, each of its image alone."""

    def encode(self, refs: Sequence[ImageRef], pixels: Tensor) -> Tensor:
        """The sampled latents [B, C, H, W]."""
        seeds = [derive_seed(0, "posterior", crc32(ref.key.encode())) for ref in refs]
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = tuple(self.teacher.latent_shape)
        noise = torch.stack([torch.randn(shape, generator=draw) for draw in draws])
        return self.teacher.encode_images(pixels, noise.to(pixels))


def _errors(
    kind: type[ErrorBank], teacher: Teacher, whole: Benchmark, config: BaselineConfig
) -> np.ndarray:
    """Errors [N, I, K, D] of the items' cells."""
    shape: Any = teacher.latent_shape
    draws = shared_draws(shape, config.draws, config.seed)
    bank = kind(teacher, draws, False, config.batch_size, config.image_mode)
    rows = [[Row(ref, item.captions) for ref in item.images] for item in whole.items]
    bank.measure([row for some in rows for row in some], config.draws)
    return np.array([[bank.errors(row, config.draws)[0] for row in some] for some in rows])


def _row(
    convention: str, name: str, metric: str, ours: Iterable, theirs: Iterable
) -> dict[str, Any]:
    mine, other = (np.asarray(right, dtype=bool) for right in (ours, theirs))
    shares = {"ours": mine.mean(), "theirs": other.mean()}
    row = {"convention": convention, "set": name, "metric": metric} | shares
    return row | {"n": len(mine), "otherwise": int((mine != other).sum())}


@foreseen
def main(words: Sequence[str] | None = None, say: Callable[[str], None] = print) -> int:
    """Score by our conventions and by others', and print both figures."""
    parser = argparse.ArgumentParser(
        prog="python -m sdslib.lab.conventions", description=main.__doc__
    )
    _, values = from_shell(parser, words, "01_baseline")
    found = table(validate(BaselineConfig, {"benchmark": "mini:winoground"} | values))
    shares = {name: found[name].map("{:.1%}".format) for name in ("ours", "theirs")}
    say(found.assign(**shares).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
