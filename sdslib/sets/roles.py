"""Which sets a run trains on, chooses on, reports, and must not do worse on.

The mini-world has its own; for everything else validation is held out of the training pairs, and
the sets that must not suffer are those that are at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sdslib import benchmarks
from sdslib.arms.negatives import check as check_negatives
from sdslib.arms.negatives import load_negatives
from sdslib.arms.noise import noisy
from sdslib.benchmarks import Benchmark
from sdslib.config import ARMS, FinetuneConfig, derive_seed
from sdslib.io.hub import cached_dataset
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError
from sdslib.io.wording import ParameterError, listed
from sdslib.io.worlds import ensure, world_of
from sdslib.pairs import Pairs, load_pairs, some
from sdslib.sets import overlap, retrieval
from sdslib.sets.overlap import Shared
from sdslib.student import imagenet_classes
from sdslib.train import total_steps

VALIDATION = "validation"
HELD_OUT, NONE = "held-out", "none"
MOST_HELD_OUT, FEWEST_HELD_OUT = 500, 10  # pairs; a tenth of all between these
RETRIEVAL = "retrieval"
COCO_VAL = "data/coco/annotations/captions_val2017.json::data/coco/val2017"
FEW_TRUE = 0.05  # share of captions that cannot lie, above which `caption_noise` is told of it
MOST_LR = 0.1  # a hundred times the learning rate of the mini-world
KEEP = (*benchmarks.HUB_CLASSES, "zeroshot", RETRIEVAL)


@dataclass(frozen=True)
class Data:
    """What a run trains on, reports on and chooses on; the sets in `keep` must not suffer."""

    pairs: Pairs
    test: Benchmark
    validation: Benchmark | None
    keep: dict[str, Benchmark]
    shared: tuple[Shared, ...] = ()  # with the pairs, or with what was left out of them

    def scored(self) -> dict[str, Benchmark]:
        """All sets to score under the names that their scores are kept by."""
        found = {self.test.name: self.test} | self.keep
        return found if self.validation is None else found | {VALIDATION: self.validation}

    def fingerprints(self) -> dict[str, str]:
        """Content hashes that go into the run's id."""
        sets = {name: benchmark.fingerprint for name, benchmark in self.scored().items()}
        return {"pairs": self.pairs.fingerprint} | sets

    def told(self) -> list[dict[str, Any]]:
        """One row a set: what it is for, its name, and how many items it has."""
        kept = [("must not suffer", name, b) for name, b in self.keep.items()]
        rows = [("reported", self.test.name, self.test), *kept]
        if self.validation is not None:
            rows.append((VALIDATION, self.validation.name, self.validation))
        trained = {"for": "training", "set": "pairs", "items": len(self.pairs)}
        return [trained, *({"for": r, "set": n, "items": len(b.items)} for r, n, b in rows)]


def named_data(config: FinetuneConfig) -> tuple:
    """The parameters that decide which sets a run has."""
    apart = (config.overlap, config.apart_from, config.vg_image_data)
    others = (config.validation, config.keep, config.batch_size)
    lies = (config.caption_noise, config.false_captions, config.seed)
    return (config.train_data, config.train_pairs, config.benchmark, config.eval_items,
            lies if config.caption_noise else 0.0,
            *apart, *others)  # fmt: skip


def load_set(source: str) -> Benchmark:
    """A benchmark by name (see `benchmarks.load_benchmark`), or `retrieval:PAIRS`.

    PAIRS is any source of pairs, COCO's val2017 by default. A folder of ImageNet with one folder a
    WordNet id gets the classes' names. The mini-world is drawn where it is asked for.
    """
    ensure(source)
    name, _, rest = source.partition(":")
    if len(named := listed(source)) > 1 and not project_path(rest).exists():
        told = f"{source!r} names {len(named)} sets, and one is asked for"
        raise DataError(f"{told}; give the others to keep, which scores them too")
    if name == RETRIEVAL:
        return retrieval.retrieval(load_pairs(rest or COCO_VAL))
    if name == "imagenet":
        return benchmarks.load_benchmark(source, imagenet_classes())
    return benchmarks.load_benchmark(source)


def load_data(config: FinetuneConfig) -> Data:
    """The sets of a run; the mini-world's are drawn first if they are not there yet.

    Raises ParameterError where the sets do not allow the parameters, and `DataError`.
    """
    ensure(config.train_data)
    check_negatives(config)
    whole = load_set(config.benchmark)
    pairs, shared = _apart(config, whole)
    pairs, validation = _validated(config, pairs)
    held = validation is not None and _validation(config) == HELD_OUT
    left = f"{config.train_data} less what validation holds out" if held else config.train_data
    pairs = some(pairs, config.train_pairs, left)
    told = [f"{row.shared} of the training images are in {row.set}; overlap='exclude' leaves them "
            "out" for row in shared if row.shared and config.overlap == "report"]  # fmt: skip
    for text in (*told, *cautions(config, pairs)):
        warnings.warn(text, stacklevel=2)
    keep = dict(_kept(config, {whole.name, VALIDATION}))
    return Data(
        noisy(pairs, config), whole.sample(config.eval_items), validation, keep, tuple(shared)
    )


def cautions(config: FinetuneConfig, pairs: Pairs) -> list[str]:
    """What is allowed and leads to nothing: a batch of one, few captions, too high a rate, …"""
    found, size = list[str](), config.batch_size
    contrastive = ARMS[config.arm].clip is not None
    if size == 1 and ARMS[config.arm].clip == "train:clip_term":
        found.append("batch_size 1: L_CLIP is 0 whatever the student does, for it chooses within a "
                     "batch; take 2 or more")  # fmt: skip
    texts = len({" ".join(text.lower().split()) for text in pairs.all_captions()})
    if contrastive and texts < size:
        found.append(
            f"{len(pairs)} images have {texts} different captions, fewer than batch_size {size}: "
            "L_CLIP tells apart captions that are the same; take other pairs or smaller batches"
        )
    if config.caption_noise:
        without = load_negatives(config).share_without(pairs.all_captions())
        if without > FEW_TRUE:
            found.append(
                f"caption_noise {config.caption_noise:g}: {without:.0%} of the captions have no "
                f"false one and stay true, so that {config.caption_noise * (1 - without):.0%} lie"
            )
    steps = total_steps(config, pairs)
    if 2 * min(config.warmup, steps - 1) > steps:
        found.append(
            f"warmup {config.warmup} of {steps} steps: the rate climbs for most of the run; take "
            f"more steps, or a warmup of {steps // 10}"
        )
    if config.lr > MOST_LR:
        found.append(f"lr {config.lr:g} is far above what trains CLIP (1e-6 to 1e-2); lower it")
    return found


def _apart(config: FinetuneConfig, whole: Benchmark) -> tuple[Pairs, list[Shared]]:
    """The pairs to train on, and what test sets have in common with them or had before."""
    others = [name for name in listed(config.apart_from) if name != config.benchmark]
    tests, pairs = [whole, *map(load_set, others)], load_pairs(config.train_data)
    if config.overlap == "exclude":
        shared = overlap.shared(pairs, tests, config.vg_image_data)
        return overlap.without(pairs, tests, config.vg_image_data), shared
    seen = some(pairs, config.train_pairs, config.train_data)
    try:
        return pairs, overlap.shared(seen, tests, config.vg_image_data)
    except DataError:
        if config.apart_from is not None:
            raise
        return pairs, []


# --- validation ----------------------------------------------------------------------------------


def _validation(config: FinetuneConfig) -> str | None:
    """What `validation` asks for; None is what can be held out, if enough can."""
    if config.validation is not None:
        return config.validation
    world = world_of(config.benchmark)
    return world.VALIDATION if world and config.benchmark != world.VALIDATION else None


def _validated(config: FinetuneConfig, pairs: Pairs) -> tuple[Pairs, Benchmark | None]:
    """The pairs that are left to train on, and the set that is chosen on."""
    asked = _validation(config)
    if asked == NONE:
        return pairs, None
    if asked not in (None, HELD_OUT):
        return pairs, load_set(asked)
    count = min(MOST_HELD_OUT, len(pairs) // 10)
    if count >= FEWEST_HELD_OUT and len(pairs) - count >= config.batch_size:
        held, rest = hold_out(pairs, count)
        return rest, replace(retrieval.retrieval(held), name=HELD_OUT)
    if asked is None:
        return pairs, None
    raise ParameterError([
        f"validation 'held-out' takes a tenth of the pairs, at least {FEWEST_HELD_OUT}; "
        f"{pairs.source} has {len(pairs)}: name a benchmark, or 'none'"
    ])  # fmt: skip


def hold_out(pairs: Pairs, count: int) -> tuple[Pairs, Pairs]:
    """`count` pairs drawn at random, the same for every seed, and the others, both in order."""
    order = np.random.default_rng(derive_seed(0, HELD_OUT, len(pairs))).permutation(len(pairs))
    return pairs.take(np.sort(order[:count])), pairs.take(np.sort(order[count:]))


# --- what must not suffer ------------------------------------------------------------------------


def _kept(config: FinetuneConfig, taken: set[str]) -> Iterator[tuple[str, Benchmark]]:
    """The sets of `keep` by name; a name that is taken already gets a number."""
    if config.keep == NONE:
        return
    world = world_of(config.benchmark)
    # of itself a run keeps what can be read here and now: nothing is downloaded for it
    sources = listed(config.keep) or (world.KEEP if world else filter(is_at_hand, KEEP))
    for source in sources:
        if source == config.benchmark:
            continue
        found = load_set(source)
        names = (found.name, *(f"{found.name}-{n}" for n in range(2, 99)))
        name = next(n for n in names if n not in taken)
        taken.add(name)
        yield name, found


def is_at_hand(name: str) -> bool:
    """Whether a set of `KEEP` is in its usual place, or in the local cache of the Hub."""
    if name == RETRIEVAL:
        return all(project_path(part).exists() for part in COCO_VAL.split("::"))
    if project_path(f"data/{name}").is_dir():
        return True
    return name in benchmarks.HUB_CLASSES and cached_dataset(benchmarks.HUB_CLASSES[name][0])
