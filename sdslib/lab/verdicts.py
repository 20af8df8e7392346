"""The teacher's verdicts on training pairs, made once: `arms.verdicts` keeps and reads them.

    python -m sdslib.lab.verdicts data/verdicts.parquet -p preset paper --workers 4

Pairs are judged in blocks of 64, each a file of its own until all are there: who was killed goes on
with the next block, and processes or machines share them out. A block is the same whoever makes it,
bit for bit where as many threads do.
K false captions, D draws.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from sdslib import metrics
from sdslib.arms.negatives import Negatives, named
from sdslib.arms.verdicts import SCHEMA, Verdicts, load_verdicts, save_verdicts
from sdslib.checks import captions, teacher_files
from sdslib.checks.fingerprints import of_files
from sdslib.checks.guard import validate
from sdslib.checks.notebooks import VerdictsConfig, from_shell
from sdslib.config import false_captions, is_mini
from sdslib.experiment import pick_device
from sdslib.io import exits
from sdslib.io.paths import project_path, project_root
from sdslib.io.progress import track
from sdslib.io.state import plain_torch
from sdslib.io.worlds import ensure
from sdslib.lab.near_ties import MARGIN, smallest_lead
from sdslib.losses import caption_log_likelihoods
from sdslib.pairs import load_pairs
from sdslib.results import formatting
from sdslib.results.executors import Job, opened, require
from sdslib.scorers.diffusion import ErrorBank, Row, shared_draws
from sdslib.teacher import Teacher, load_teacher

BLOCK = 64  # pairs
PASSES = 64  # latents that the UNet sees at once
NOTEBOOK = project_root() / "notebooks" / "08_verdicts.ipynb"
ASKED = 512  # pairs from which the cost of all is told
KNOWN = 32  # pairs that are judged in both precisions, to learn what low precision does to a lead


class Judgement:
    """What is to be judged, and how: the pairs, their false captions, and what is done of it."""

    def __init__(self, config: VerdictsConfig) -> None:
        ensure(config.train_data)
        source = false_captions(config.negatives, config.train_data)
        self.config, self.negatives = config, named(source)
        self.pairs = load_pairs(config.train_data, config.train_pairs)
        self.output = project_path(config.output)

    @cached_property
    def passport(self) -> dict[str, Any]:
        """Who judges what, and how: content, no place and no time, so that it can be compared."""
        config = self.config
        how = ("precision", "choice_draws", "t_min", "t_max", "seed")
        return {
            "teacher": config.teacher,
            "teacher_revision": config.teacher_revision,
            "teacher_sha256": of_files(
                teacher_files.fingerprints(config.teacher, config.teacher_revision, config.variant)
            ),
            "pairs": config.train_data,
            "pairs_sha256": self.pairs.fingerprint,
            "images": len(self.pairs),
            "negatives": self.negatives.fingerprint(),
            **{name: getattr(config, name) for name in how},
        }

    @cached_property
    def parts(self) -> Path:
        """The folder of the blocks, beside the file that they become."""
        own = hashlib.sha256(json.dumps(self.passport, sort_keys=True).encode()).hexdigest()[:10]
        return self.output.with_name(f"{self.output.name}.{own}.parts")

    @cached_property
    def blocks(self) -> list[range]:
        """The numbers of the pairs of each block."""
        whole = range(len(self.pairs))
        return [whole[start : start + BLOCK] for start in whole[::BLOCK]]

    @property
    def label(self) -> str:
        """What stands on a figure: where its numbers come from."""
        return "mini-world" if is_mini(self.config.train_data) else self.config.train_data

    def part(self, number: int) -> Path:
        """The file of one block."""
        return self.parts / f"{number:06}.parquet"

    def missing(self) -> list[int]:
        """The blocks of this shard that are not done; none where the whole file is there."""
        if self.is_done():
            return []
        own = range(self.config.shard or 0, len(self.blocks), self.config.shards)
        return [number for number in own if not self.part(number).is_file()]

    def is_done(self) -> bool:
        """Whether the output is there, of just these pairs and this teacher."""
        if not self.output.is_file():
            return False
        found = load_verdicts(self.config.output).passport
        return self.passport.items() <= found.items()

    def rows(self, block: Iterable[int]) -> list[Row]:
        """Each image with each of its captions and that one's false ones, if it has any."""
        return [
            Row(self.pairs.ref(index), (caption, *self.negatives.of(caption)))
            for index in block
            for caption in dict.fromkeys(self.pairs.captions(index))
        ]


class Judge:
    """The teacher, in full precision too where it computes in less."""

    def __init__(self, work: Judgement) -> None:
        config = work.config
        device = pick_device(config.device)
        place = (config.teacher, config.teacher_revision, device)

        def load(precision: str) -> Teacher:
            return load_teacher(*place, precision, variant=config.variant)

        self.teacher = load(config.precision)
        self.full = None if config.precision == "fp32" else load("fp32")
        captions.check_markers(self.teacher.marks, work.pairs.all_captions(), self.teacher.name)
        span = (config.t_min, config.t_max)
        self.draws = shared_draws(
            self.teacher.latent_shape, config.choice_draws, config.seed, span, antithetic=False
        )
        self.margin = 0.0
        if self.full:
            known = [
                row
                for row in work.rows(range(min(KNOWN, len(work.pairs))))
                if len(row.captions) > 1
            ]
            low, high = (self._leads(one, known) for one in (self.teacher, self.full))
            self.margin = MARGIN * float(np.sqrt(np.mean((low - high) ** 2)))

    def _leads(self, teacher: Teacher, rows: Sequence[Row]) -> np.ndarray:
        return np.concatenate([np.diff(values) for values in self._said(teacher, rows)])

    def _said(self, teacher: Teacher, rows: Sequence[Row]) -> list[np.ndarray]:
        """Log-likelihoods of each row's captions; a lone caption has nothing to be told from."""
        bank, number = ErrorBank(teacher, self.draws, False, PASSES, "crop"), len(self.draws.t)
        bank.measure([row for row in rows if len(row.captions) > 1], number)
        elements = int(np.prod(teacher.latent_shape))

        def said(row: Row) -> np.ndarray:
            if len(row.captions) == 1:
                return np.zeros(1)
            errors = torch.tensor(bank.errors(row, number)[0])
            return caption_log_likelihoods(errors[None], elements)[0].numpy()

        return list(map(said, rows))

    def block(self, rows: Sequence[Row], negatives: Negatives) -> pa.Table:
        """The verdicts on these rows; near ties of low precision are judged again in full."""
        said = self._said(self.teacher, rows)
        near = [i for i, values in enumerate(said) if self._is_near(values)]
        if near and self.full:
            again = self._said(self.full, [rows[i] for i in near])
            said = [dict(zip(near, again, strict=True)).get(i, v) for i, v in enumerate(said)]
        columns = {
            "image": [row.ref.key for row in rows],
            "captions": [list(row.captions) for row in rows],
            "kinds": [list(negatives.kinds(row.captions[0])) for row in rows],
            "log_likelihoods": said,
            "rechecked": [i in near for i in range(len(rows))],
        }
        return pa.table(columns, SCHEMA)

    def _is_near(self, values: np.ndarray) -> bool:
        return smallest_lead(values[None]) < self.margin


def judge(
    work: Judgement, follow: Callable[[Iterable[int]], Iterable[int]] = iter
) -> Verdicts | None:
    """Judge what is missing; the verdicts, or None for one shard of several, which ends there."""
    if work.config.threads:
        torch.set_num_threads(work.config.threads)
    if missing := work.missing():
        work.parts.mkdir(parents=True, exist_ok=True)
        with plain_torch():
            judge = Judge(work)
            for number in follow(missing):
                table = judge.block(work.rows(work.blocks[number]), work.negatives)
                save_verdicts(work.part(number), table, work.passport)
    return gather(work) if work.config.shard is None or work.is_done() else None


def gather(work: Judgement) -> Verdicts | None:
    """One file of all blocks, which go; None while some are missing."""
    if not work.is_done():
        parts = [work.part(number) for number in range(len(work.blocks))]
        if not all(part.is_file() for part in parts):
            return None
        table = pa.concat_tables([load_verdicts(str(part)).table for part in parts])
        counts = pc.list_value_length(table["kinds"]).to_numpy()
        told = {
            "captions": len(table),
            "false_captions": int(counts.sum()),
            "captions_without": int((counts == 0).sum()),
            "unet_evaluations": int((counts + (counts > 0)).sum()) * work.config.choice_draws,
            "rechecked": int(pc.sum(table["rechecked"]).as_py()),
        }
        save_verdicts(work.output, table, work.passport | told)
        shutil.rmtree(work.parts, ignore_errors=True)
    return load_verdicts(work.config.output)


def plan(work: Judgement) -> pd.DataFrame:
    """What is to be judged: columns what, value; the costs are told from `ASKED` pairs."""
    count = len(work.pairs)
    asked = range(0, count, max(1, count // ASKED))
    sizes = np.array([len(row.captions) for row in work.rows(asked)])
    judged = sizes[sizes > 1].sum() * count / len(asked)
    told = {
        "images": f"{count:,}",
        "captions without a false one": f"{(sizes == 1).mean():.1%}",
        "captions to tell apart, a caption": f"{sizes.mean():.2f}",
        "UNet evaluations": f"{judged * work.config.choice_draws:,.0f}",
        "blocks to do": f"{len(work.missing())} of {len(work.blocks)}",
    }
    return pd.DataFrame(list(told.items()), columns=["what", "value"])


def end_if_shard(found: Verdicts | None) -> None:
    """In a notebook: end here where this was one shard of several.

    papermill and nbclient take SystemExit 0 for a good end.
    """
    if found is None:
        print("This shard's blocks are done; with all of them there, a call without shard makes "
              "the file.")  # fmt: skip
        raise SystemExit(0)


def by_kind(verdicts: Verdicts) -> pd.DataFrame:
    """How often the teacher holds the true caption for likelier, by kind of false caption.

    Columns set (the kind), measure, n, said (the mean probability that it gives the true one),
    mean, low, high (the share, Wilson), reference (chance). A true caption against one false one
    is a question; it is taken that the caption is true.
    """
    asked = _questions(verdicts)
    rows = [_share(kind, part, "true") for kind, part in asked.groupby("kind")]
    return pd.DataFrame([*rows, _share("all kinds", asked, "true")])


def by_sureness(verdicts: Verdicts) -> pd.DataFrame:
    """The same by how sure the teacher is of its choice, whichever it is; `said` is the mean."""
    asked = _questions(verdicts)
    asked["sure"] = asked["true"].where(asked["true"] > 0.5, 1 - asked["true"])
    bins = pd.cut(asked["sure"], [0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1], include_lowest=True)
    rows = [
        _share(f"{max(span.left, 0.5):.0%} to {span.right:.0%}", part, "sure")
        for span, part in asked.groupby(bins, observed=True)
    ]
    return pd.DataFrame(rows)


def readable(shares: pd.DataFrame) -> pd.DataFrame:
    """The same as a table to be read: what the teacher says beside how often it is right."""
    said = {"set": "group", "n": "questions", "said": "it says", "mean": "it is right"}
    told = shares[[*said, "low", "high", "reference"]]
    return formatting.percent(told.rename(columns=said | {"reference": "chance"}))


def _questions(verdicts: Verdicts) -> pd.DataFrame:
    """One row a true caption and a false one: kind, and the probability `true` of the true one."""
    table = verdicts.table
    said = zip(table["kinds"].to_pylist(), table["log_likelihoods"].to_pylist(), strict=True)
    asked = pd.DataFrame(
        [(kind, own - other) for kinds, (own, *rest) in said
         for kind, other in zip(kinds, rest, strict=True)],
        columns=["kind", "lead"],
    )  # fmt: skip
    return asked.assign(true=1 / (1 + np.exp(-asked["lead"])))


def _share(name: str, part: pd.DataFrame, said: str) -> dict[str, Any]:
    right = metrics.wilson((part["lead"] > 0).to_numpy())
    told = {"set": name, "measure": "right", "n": len(part), "said": part[said].mean()}
    return told | {"mean": right.mean, "low": right.low, "high": right.high, "reference": 0.5}


def passport_table(verdicts: Verdicts) -> pd.DataFrame:
    """What the file says of itself."""
    return pd.DataFrame(list(verdicts.passport.items()), columns=["what", "value"])


# --- from a shell --------------------------------------------------------------------------------


def share_out(work: Judgement, workers: int, executor: str, address: str | None) -> dict[str, str]:
    """Let `workers` processes judge, each a run of the notebook; what failed, by shard."""
    folder = work.parts / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    with closing(opened(executor, address, folder)) as runner:
        cores, smallest = runner.cores()
        threads = max(1, min(cores // workers, smallest))
        live = {f"{number:03}" for number in range(workers)}
        for number, key in enumerate(sorted(live)):
            given = work.config.model_dump(exclude_none=True)
            given |= {"shard": number, "shards": workers, "threads": threads}
            place = {name: str(folder / f"{key}.{name}") for name in ("ipynb", "log")}
            runner.submit(Job(key, str(NOTEBOOK), given, place["ipynb"], place["log"], threads))
        while live:
            for key, error in runner.wait(0.5):
                live.discard(key)
                failed |= {key: error} if error else {}
    return failed


@exits.foreseen
def main(words: Sequence[str] | None = None) -> int:
    """Judge what is not judged yet, and say what came of it; the status is 1 where some failed."""
    parser = argparse.ArgumentParser(prog="python -m sdslib.lab.verdicts", description=main.__doc__)
    parser.add_argument("output", help="the file of verdicts, as data/verdicts.parquet")
    parser.add_argument("--workers", type=int, default=1, help="processes that judge")
    parser.add_argument("--executor", choices=("local", "ray", "slurm"), default="local")
    parser.add_argument("--address", help="of Ray, or what to ask SLURM for")
    options, values = from_shell(parser, words, "08_verdicts")
    work = Judgement(validate(VerdictsConfig, values | {"output": options.output}))
    if options.workers < 2 and options.executor == "local":
        found = judge(work, track("blocks"))
    else:
        require(options.executor, options.address)
        failed = share_out(work, options.workers, options.executor, options.address)
        for key, error in failed.items():
            print(f"shard {key}: {error}", file=sys.stderr)
        found = gather(work)
    if found is None:
        return 1
    print(readable(by_kind(found)).to_string(index=False))
    print(f"{options.output}: {found.passport['captions']:,} captions, "
          f"{found.passport['unet_evaluations']:,} UNet evaluations")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
