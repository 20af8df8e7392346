"""Classes as captions: folders, CIFAR, ImageNet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sdslib import metrics
from sdslib.benchmarks import HUB_CLASSES, PHOTO, Benchmark, Item
from sdslib.evaluate import ClipScorer
from sdslib.io.hub import hub_dataset, is_repo
from sdslib.io.images import ENDINGS, ImageRef
from sdslib.io.paths import project_path
from sdslib.io.sources import DataError, ImageCells, Root, cell_bytes, file_refs, image_columns


def zero_shot(
    source: str | Path,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = PHOTO,
    name: str = "zeroshot",
) -> Benchmark:
    """Images with class labels, to be named by prompts `template.format(class)`.

    `source` is a folder with one folder of images a class (below test or val, if it is there),
    cifar10, cifar100, imagenet, or the id of a Hub set with an image and a label column. `classes`
    replaces the names, in order (of the sorted folders). Tagged `class`. Raises `DataError`.
    """
    bad = [t for t in templates if t.count("{}") != 1]
    if bad or not templates:
        raise DataError(f"each prompt template needs one {{}}; got {bad or 'none'}")
    folder = project_path(source)
    if folder.is_dir():
        labels, refs, found = _class_folders(_tested(folder))
    elif str(source) in HUB_CLASSES or is_repo(str(source)):
        labels, refs, found = _class_hub(str(source))
    else:
        raise DataError(
            f"{source!r}: no folder {folder}, and none of {', '.join(HUB_CLASSES)} or owner/name"
        )
    names = list(classes or found)
    if len(names) != len(found):
        raise DataError(f"{source}: {len(names)} class names for {len(found)} classes")
    prompts = tuple(tuple(t.format(n) for t in templates) for n in names)
    first = tuple(group[0] for group in prompts)
    items = tuple(
        Item(ref.name, (ref,), first, label, tags={"class": names[label]})
        for label, ref in zip(labels, refs, strict=True)
    )
    return Benchmark(name, "classes", items, len(items), str(source), prompts)


def _tested(folder: Path) -> Path:
    """The folder of what is tested, under any name that is in use, or the folder itself."""
    names = ("test", "val", "validation")
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _class_folders(folder: Path) -> tuple[list[int], list[ImageRef], list[str]]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{folder}: expected one folder of images a class, found {names or 'none'}")
    labels, refs, root = [], [], Root(folder)
    for label, name in enumerate(names):
        files = sorted(p.name for p in (folder / name).iterdir() if p.suffix.lower() in ENDINGS)
        if not files:
            raise DataError(f"{folder / name}: has no images ({', '.join(sorted(ENDINGS))})")
        labels += [label] * len(files)
        refs += file_refs(root, [(f"{name}/{file}", folder.name) for file in files])
    return labels, refs, [name.replace("_", " ") for name in names]


def _class_hub(source: str) -> tuple[list[int], list[ImageRef], list[str]]:
    repo, split, label = HUB_CLASSES.get(source, (source, "test", ""))
    found = hub_dataset(repo, split, local="a folder with one folder of images a class")
    images = image_columns(found)
    named = [column for column, feature in found.features.items() if hasattr(feature, "names")]
    label = label or next(iter(named), "")
    if len(images) != 1 or label not in named:
        raise DataError(f"{repo}: expected an image and a label column; has {found.column_names}")
    ImageCells(found, images[0], repo)
    refs = [ImageRef(f"{repo}[{row}]", partial(cell_bytes, found, row, images[0]))
            for row in range(len(found))]  # fmt: skip
    # ImageNet's names list synonyms: "tench, Tinca tinca"
    names = [n.split(",")[0].replace("_", " ") for n in found.features[label].names]
    return list(found[label]), refs, names


def known_classes(name: str, source: str, wordnet: Sequence[str] | None = None) -> Benchmark:
    """One of `HUB_CLASSES`: from `source`, else from its folder under data, else from the Hub."""
    folder = f"data/{name}"
    source = source or (folder if project_path(folder).is_dir() else name)
    # ImageNet's folders of classes are named by WordNet's ids
    ids = [*_tested(project_path(source)).glob("n" + "[0-9]" * 8)]
    return zero_shot(source, wordnet if len(ids) == 1000 else None, name=name)


def rank_classes(
    scorer: ClipScorer, items: Sequence[Item], prompts: Sequence[Sequence[str]]
) -> pd.DataFrame:
    """Zero-shot classification: the rank of each item's `answer` among the classes.

    `prompts` are the captions of each class; a class is the mean of their unit embeddings, made
    unit again (Radford et al. 2021, section 3.1.4). `margin` is the lead over the best other
    class; a class with an equal score ranks before the true one.
    """
    images, image = scorer.embed_images([item.images[0] for item in items])
    emb, row = scorer.embed_texts([prompt for group in prompts for prompt in group])
    ends = np.cumsum([len(group) for group in prompts])
    means = np.array([part.mean(0) for part in np.split(emb[row], ends[:-1])])
    scores = images[image] @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    answer, ids = np.array([item.answer for item in items]), [item.id for item in items]
    own = scores[np.arange(len(items)), answer][:, None]
    table = pd.DataFrame([{"id": item.id, "answer": item.answer, **item.tags} for item in items])
    return table.astype({"answer": "Int64"}).assign(
        n_images=1, n_captions=len(prompts), n_true=1,
        margin=metrics.choice_margin(scores, answer, ids),
        predicted=scores.argmax(axis=1), rank=(scores >= own).sum(axis=1) - 1,
    )  # fmt: skip
