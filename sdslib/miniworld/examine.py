"""What the mini-world's files and models hold, for its notebook's tables and pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from PIL import Image

from sdslib import evaluate, tables
from sdslib.checks.notebooks import MiniworldConfig
from sdslib.miniworld.models import target
from sdslib.miniworld.sets import benchmark
from sdslib.pairs import load_pairs
from sdslib.scorers import diffusion
from sdslib.student import Student, load_student
from sdslib.teacher import Teacher, load_teacher

SHOWN = ("winoground:val", "winoground:test", "aro-relation:test", "aro-attribution:test",
         "zeroshot-color:test", "zeroshot-shape:test")  # fmt: skip


def load(config: MiniworldConfig) -> tuple[Student, Teacher]:
    """Both models of `target(config)`, by the loaders that real models go through."""
    home = target(config)
    return load_student(f"local-dir:{home / 'student'}", None), load_teacher(str(home / "teacher"))


def examples(kind: str, count: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures with titles: training pairs ("coco") or both sides of items ("winoground")."""
    if kind == "coco":
        pairs = load_pairs("mini")
        return [pairs.image(i) for i in range(count)], [pairs.captions(i)[0] for i in range(count)]
    items = spread(benchmark("mini:winoground:test").items, count)
    captions = [caption for item in items for caption in item.captions]
    return [ref.load() for item in items for ref in item.images], captions


def contents() -> pd.DataFrame:
    """What the drawn files hold: one row a set."""
    rows = {f"COCO-shaped pairs, {split}": len(load_pairs(f"mini:{split}"))
            for split in ("train", "val")}  # fmt: skip
    for source in SHOWN:
        items = benchmark(f"mini:{source}").items
        kinds = sorted({item.tags.get("collapsed_tag", "") for item in items} - {""})
        label = source.replace(":", ", ") + (f" ({', '.join(kinds)})" if kinds else "")
        rows[label] = len(items)
    return pd.DataFrame(rows.items(), columns=["set", "items"])


def samples(teacher: Teacher, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures that the teacher draws for captions of validation items."""
    items = spread(benchmark("mini:winoground:val").items, 6)
    captions = [caption for item in items for caption in item.captions]
    return teacher.sample(captions, 50, 3.0, seed), captions


def naming(student: Student) -> pd.DataFrame:
    """Zero-shot accuracy of the student on the labelled single-object images."""
    rows = []
    for task in ("color", "shape"):
        named = benchmark(f"mini:zeroshot-{task}")
        scores = evaluate.score_grids(evaluate.clip_scorer(student), named)
        rows.append(tables.tabulate(named, scores, by=()).assign(task=task))
    found = pd.concat(rows, ignore_index=True)
    return found[["task", "metric", "n", "accuracy", "low", "high", "chance"]]


def who_knows(student: Student, teacher: Teacher, items: int, draws: int) -> pd.DataFrame:
    """`tables.tabulate` of student and teacher on `items` validation items, even over the tags.

    The teacher's errors are divided by their mean at each t (the relative rule); the means come
    from items that are not scored.
    """
    whole = benchmark("mini:winoground:val")
    chosen = replace(whole, items=spread(whole.items, items))
    rest = [item for item in whole.items if item not in chosen.items]
    errors = diffusion.error_table(diffusion.diffusion_scorer(teacher, draws), rest[-24:])
    own = {"profile": diffusion.error_profile(errors), "empty": False, "batch_size": 128}
    scorers: tuple[tuple[str, evaluate.Scorer, str], ...] = (
        ("student", evaluate.clip_scorer(student), ""),
        ("teacher", diffusion.diffusion_scorer(teacher, draws, **own), "relative"),
    )
    rows = []
    for name, scorer, rule in scorers:
        scores = evaluate.score_grids(scorer, chosen)
        table = tables.tabulate(whole, scores, rule=rule, by=("collapsed_tag",))
        table.insert(0, "model", name)
        rows.append(table)
    return pd.concat(rows, ignore_index=True)


def spread(items: Sequence, count: int) -> tuple:
    """`count` of the items, as many of each collapsed tag as can be."""
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(item.tags["collapsed_tag"], []).append(item)
    turns = itertools.zip_longest(*groups.values())
    return tuple(item for turn in turns for item in turn if item is not None)[:count]
