"""Many pictures against their captions at once: a folder or a CSV in, a CSV of scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePath

import pandas as pd

from sdslib.io.images import ENDINGS, ImageError, ImageRef
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError, check_caption, read_csv, read_text
from sdslib.io.wording import quoted
from sdslib.pairs import CAPTION_COLUMNS
from sdslib.sets.pair_files import IMAGE_COLUMNS
from sdslib.show import explain
from sdslib.show.questions import Demo, Question

LEGEND = (
    "score: a cosine, of the teacher an error with its sign turned; margin: score less the best of "
    "the other captions; noise: within ± so much a margin decides nothing; wins: margin above noise"
)


def gather(source: str, captions: Sequence[str] = ()) -> list[Question]:
    """The pictures of a folder or of a CSV, each with its captions.

    A CSV has a column `image`, a path from where the CSV lies, and a column `caption`; rows of one
    picture belong together. Beside a picture of a folder its captions stand in a .txt of the same
    name, one a line. Where none stand `captions` are taken. DataError says what is missing.
    """
    path, found = project_path(source), dict[str, list[str]]()
    if not source:
        raise DataError("no pictures are named: give a folder or a CSV of them")
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS):
            beside = file.with_suffix(".txt")
            lines = read_text(beside).splitlines() if beside.is_file() else ()
            found[file.relative_to(path).as_posix()] = [*filter(str.strip, lines)]
    elif path.suffix.lower() in ENDINGS:
        told = "is a picture; give a folder or a CSV, or ask `sdsclip demo --image`"
        raise DataError(f"{source} {told}")
    elif path.is_file():
        rows = read_csv(path, ())
        names = {name.strip().lower(): name for name in (rows[0] if rows else ())}
        image = next((names[name] for name in IMAGE_COLUMNS if name in names), None)
        text = next((names[name] for name in CAPTION_COLUMNS if name in names), None)
        if image is None:
            has = f"it has {quoted(names)}" if names else "it has no rows"
            raise DataError(f"{path.name}: needs columns image and caption; {has}")
        for row in rows:
            found.setdefault(row[image], []).extend([row[text]] if text and row[text] else ())
    if not found:
        raise DataError(f"{source!r} is no folder with pictures and no CSV of them")
    root = path if path.is_dir() else path.parent
    asked = [Question(ImageRef(name, (root / name).read_bytes), (*dict.fromkeys(own or captions),),
                      name) for name, own in found.items()]  # fmt: skip
    if bare := next((one.about for one in asked if not one.captions), None):
        ways = f'--captions "A|B", {PurePath(bare).stem}.txt beside it, or a column caption'
        raise DataError(f"{source}: {bare} has no caption, and none were given for all ({ways})")
    if captions and all(found.values()):
        raise DataError(f"{source}: every picture has captions of its own; leave out --captions")
    return asked


def score(
    demo: Demo,
    asked: Sequence[Question],
    teacher: bool = False,
    progress: Callable[[Sequence], Iterable] = iter,
) -> pd.DataFrame:
    """One row a picture and caption: image, caption, and every model's score, margin and noise.

    `wins` says whether the margin is above the noise, so that the model takes the caption.
    What cannot be scored keeps its row, and `problem` says why.
    """
    tables = [_rows(demo, one, teacher) for one in progress(asked)]
    return pd.concat(tables, ignore_index=True)


def told(demo: Demo, table: pd.DataFrame) -> list[str]:
    """What a reader of the CSV has to know: problems, columns, and which run a model is of."""
    bad = table[table["problem"] != ""]
    some = [f"{row.image}: {row.problem}" for row in bad.head(3).itertuples()]
    whose = [f"{name}: {run}" for name, run in demo.passports.items()]
    return [f"{len(table)} rows, {len(bad)} with a problem", *some, LEGEND, *whose]


def _rows(demo: Demo, asked: Question, teacher: bool) -> pd.DataFrame:
    table = pd.DataFrame({"image": asked.about, "caption": [*asked.captions], "problem": ""})
    with demo.turn:
        problems = dict(_unreadable(asked.captions))
        known = [caption for caption in asked.captions if caption not in problems]
        problems |= demo.refused(known, teacher)
        good = replace(asked, captions=tuple(c for c in known if c not in problems))
        try:
            if good.captions:
                asking = demo.scorers(teacher), good.ref, good.captions
                scores = explain.score_table(*asking).pivot(index="caption", columns="model")
                for column in ("score", "margin", "noise"):
                    wide = scores[column].add_prefix(f"{column} ")
                    table = table.join(wide, on="caption")
                for model in scores["margin"]:
                    margin, near = table[f"margin {model}"], table[f"noise {model}"]
                    table[f"wins {model}"] = (margin > near).where(margin.notna())
        except ImageError as reason:
            problems |= dict.fromkeys(good.captions, str(reason))
    return table.assign(problem=[problems.get(c, "") for c in asked.captions])


def _unreadable(captions: Sequence[str]) -> Iterator[tuple[str, str]]:
    for caption in captions:
        try:
            check_caption(caption)
        except ValueError as reason:
            yield caption, str(reason)
