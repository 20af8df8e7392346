"""Which items are right, how sure that is, and whether two models differ.

Arrays in, arrays and intervals out; no model is known here. `scores[n, i, k]` is the score of
image i with caption k in item n (choice tasks: `scores[n, k]`), and higher is better.
N items, I images an item, K captions an item, S seeds.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

CHANCE_GRID = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
"""Chance of independent continuous scores; `group` is 2! 2! / 4!, not 1/16."""

CHANCE_TRIPLET = {"image-to-text": 1 / 3, "text-to-text": 1 / 3}
"""The same: of three scores a given one is the least, or the greatest."""

HUMAN_WINOGROUND = {"text": 0.895, "image": 0.885, "group": 0.855}
"""Human agreement on Winoground's 400 items (Thrush et al., CVPR 2022)."""

# Relations the authors of ARO leave out of their macro average of VG-Relation, from the
# notebook of their release, because swapping the two nouns can leave the sentence true.
ARO_SYMMETRIC_RELATIONS = frozenset(
    """adjusting|around|attached to|beside|between|bigger than|biting|boarding|brushing|by
    |chewing|cleaning|climbing|close to|coming from|coming out of|contain|crossing|dragging
    |draped over|drinking|drinking from|driving|driving down|driving on|eating from|eating in
    |enclosing|exiting|facing|filled with|floating in|floating on|flying|flying above|flying in
    |flying over|flying through|full of|going down|going into|going through|grazing in
    |growing in|growing on|guiding|hanging from|hanging in|hanging off|hanging over|higher than
    |holding onto|hugging|in between|jumping off|jumping on|jumping over|kept in|larger than
    |leading|leaning over|leaving|licking|longer than|looking in|looking into|looking out
    |looking over|looking through|lying next to|lying on top of|making|mixed with|mounted on
    |moving|near|next to|of|on the back of|on the edge of|on the front of
    |on the other side of|on the side of|opening|painted on|parked at|parked beside|parked by
    |parked in|parked in front of|parked near|parked next to|perched on|petting|piled on
    |playing|playing in|playing on|playing with|pouring|reaching for|reading|reflected on
    |riding on|running in|running on|running through|seen through|sitting behind
    |sitting beside|sitting by|sitting in front of|sitting near|sitting next to|sitting under
    |skiing down|skiing on|sleeping in|sleeping on|smiling at|sniffing|splashing|sprinkled on
    |stacked on|standing against|standing around|standing behind|standing beside
    |standing in front of|standing near|standing next to|staring at|stuck in|surrounding
    |swimming in|swinging|talking to|topped with|touching|traveling down|traveling on|tying
    |typing on|underneath|wading in|waiting for|walking across|walking by|walking down
    |walking next to|walking through|with|working in|working on|worn on|wrapped around
    |wrapped in""".replace("\n    ", "").split("|")
)

ARO_ATTRIBUTE_MIN_COUNT = 25
"""ARO's VG-Attribution leaves attribute pairs with fewer cases out of its macro average."""


class ScoreError(ValueError):
    """Scores that no decision may rest on: not finite, or of the wrong shape."""


@dataclass(frozen=True)
class Interval:
    """A figure with its interval; `n` is the number of items behind it."""

    mean: float
    low: float
    high: float
    n: int


def require_finite(scores: np.ndarray, ids: Sequence | None = None) -> np.ndarray:
    """The scores as float64 (masked entries stay masked); a NaN or inf raises, naming its item."""
    array = np.ma.asarray(scores, dtype=np.float64)
    wrong = ~np.isfinite(array.filled(0.0)) if np.ma.is_masked(array) else ~np.isfinite(array.data)
    bad = np.flatnonzero(wrong.reshape(len(array), -1).any(axis=1))
    if bad.size:
        first = ids[bad[0]] if ids is not None else bad[0]
        raise ScoreError(
            f"score of item {str(first)!r} is not finite ({bad.size} of {len(array)} items); "
            "a decision on it would be noise: score the item again or leave it out by name"
        )
    return array if np.ma.is_masked(array) else array.data


def _grids(scores: np.ndarray, ids: Sequence | None = None) -> np.ndarray:
    grid = require_finite(scores, ids)
    if grid.ndim != 3 or grid.shape[1:] != (2, 2):
        raise ScoreError(f"grids must be [N, 2, 2] (image, caption), not {list(grid.shape)}")
    return grid


def winoground_margins(scores: np.ndarray, ids: Sequence | None = None) -> dict[str, np.ndarray]:
    """Smallest lead of the true pairing over the false one: `text`, `image`, `group`, each [N].

    `text` leads over the other caption of the same image, `image` over the other image of the
    same caption; `group` is the smaller of both. Positive exactly where the item is right.
    """
    s = _grids(scores, ids)
    text = np.minimum(s[:, 0, 0] - s[:, 0, 1], s[:, 1, 1] - s[:, 1, 0])
    image = np.minimum(s[:, 0, 0] - s[:, 1, 0], s[:, 1, 1] - s[:, 0, 1])
    return {"text": text, "image": image, "group": np.minimum(text, image)}


def winoground_correct(scores: np.ndarray, ids: Sequence | None = None) -> dict[str, np.ndarray]:
    """Winoground's text, image and group outcomes of grids [N, 2, 2], strict: a tie is wrong."""
    s = _grids(scores, ids)
    text = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])
    image = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
    return {"text": text, "image": image, "group": text & image}


def winoground_correct_argmax(
    scores: np.ndarray, ids: Sequence | None = None
) -> dict[str, np.ndarray]:
    """The same by argmax, where a tie goes to index 0 (CLIP_benchmark's convention)."""
    s = _grids(scores, ids)
    text = (s.argmax(axis=2) == [0, 1]).all(axis=1)
    image = (s.argmax(axis=1) == [0, 1]).all(axis=1)
    return {"text": text, "image": image, "group": text & image}


def _choices(
    scores: np.ndarray, answer: np.ndarray, ids: Sequence | None
) -> tuple[np.ndarray, np.ndarray]:
    """Score of the answer [N] and best score of the others [N]."""
    array = np.ma.asarray(require_finite(scores, ids))
    answer = np.asarray(answer)
    if array.ndim != 2 or answer.shape != array.shape[:1] or answer.dtype.kind not in "iu":
        raise ScoreError(f"choices must be [N, K] with int answers [N], not {list(array.shape)}")
    mask, rows = np.ma.getmaskarray(array), np.arange(len(array))
    outside = (answer < 0) | (answer >= array.shape[1])
    if outside.any() or mask[rows, answer].any() or ((~mask).sum(axis=1) < 2).any():
        raise ScoreError("every item needs at least two captions and an answer among them")
    values = np.where(mask, -np.inf, array.data)
    gold = values[rows, answer]
    values[rows, answer] = -np.inf
    return gold, values.max(axis=1)


def choice_margin(
    scores: np.ndarray, answer: np.ndarray, ids: Sequence | None = None
) -> np.ndarray:
    """Lead of the answer over the best other caption, [N]; captions an item lacks are masked."""
    gold, best_other = _choices(scores, answer, ids)
    return gold - best_other


def choice_correct(
    scores: np.ndarray, answer: np.ndarray, ids: Sequence | None = None
) -> np.ndarray:
    """Whether the answer beats every other caption, [N] bool, strict (SugarCrepe's convention)."""
    gold, best_other = _choices(scores, answer, ids)
    return gold > best_other


def choice_correct_first(
    scores: np.ndarray, answer: np.ndarray, ids: Sequence | None = None
) -> np.ndarray:
    """The same with the answer put at index 0 of an argmax: a tie is right.

    ARO's convention for COCO-Order and Flickr30k-Order, and CLIP_benchmark's for SugarCrepe.
    """
    gold, best_other = _choices(scores, answer, ids)
    return gold >= best_other


def choice_correct_argmax(
    scores: np.ndarray, answer: np.ndarray, ids: Sequence | None = None
) -> np.ndarray:
    """The same by argmax in the order the captions stand in: the first of the best wins."""
    _choices(scores, answer, ids)
    return np.ma.filled(np.ma.asarray(scores), -np.inf).argmax(axis=1) == np.asarray(answer)


def both_above_false(scores: np.ndarray, ids: Sequence | None = None) -> np.ndarray:
    """Whether both true captions beat the false one, [N] bool, of scores [N, 3], the false last.

    SugarCrepe++'s image-to-text (Dumpala et al., NeurIPS 2024, section 4): strict. Its text-to-text
    is `choice_correct` of the similarities true-true, first-false, second-false, the first right.
    """
    return np.asarray(both_margin(scores, ids) > 0)


def both_margin(scores: np.ndarray, ids: Sequence | None = None) -> np.ndarray:
    """Lead of the worse of two true captions over the false one, [N]."""
    s = require_finite(scores, ids)
    if s.ndim != 2 or s.shape[1] != 3:
        raise ScoreError(f"two true captions and a false one are [N, 3], not {list(s.shape)}")
    return np.asarray(np.minimum(s[:, 0], s[:, 1]) - s[:, 2])


def all_right(correct: np.ndarray, groups: Sequence, size: int) -> dict[str, bool]:
    """Group -> whether all of its items are right, for the groups of `size` items.

    What'sUp's pair (2) and set (4) accuracy (Kamath et al., EMNLP 2023, section 3). Items without a
    group and groups that lack an item, as in a sample, are left out.
    """
    correct, found = np.asarray(correct), groups_of(groups)
    found.pop("untagged", None)
    return {g: bool(correct[index].all()) for g, index in found.items() if len(index) == size}


CHOICE_RULES: Mapping[str, Callable[..., np.ndarray]] = {
    "strict": choice_correct,
    "sugarcrepe": choice_correct,
    "aro-vg": choice_correct,
    "aro-order": choice_correct_first,
    "argmax": choice_correct_argmax,
}
"""Each author's convention for ties; `strict` is this project's.

ARO takes an argmax over captions that stand in a fixed order: the true one last in the VG tasks,
where a tie is therefore wrong, and first in the Order tasks, where it is right.
"""

GRID_RULES: Mapping[str, Callable[..., dict[str, np.ndarray]]] = {
    "strict": winoground_correct,
    "argmax": winoground_correct_argmax,
}


def ties(scores: np.ndarray, answer: np.ndarray | None = None) -> np.ndarray:
    """Items in which a comparison that decides is exactly equal, [N] bool.

    Grids [N, 2, 2]: any of the four comparisons. Choices [N, K]: the answer against the best
    other caption.
    """
    if answer is not None:
        return choice_margin(scores, answer) == 0
    s = _grids(scores)
    rows, columns = s[:, :, 0] == s[:, :, 1], s[:, 0, :] == s[:, 1, :]
    return rows.any(axis=1) | columns.any(axis=1)


def retrieval_ranks(scores: np.ndarray, image_of_caption: np.ndarray) -> dict[str, np.ndarray]:
    """Rank (0 = best) of the best true partner: `image_to_text` [I] and `text_to_image` [T].

    scores[i, t] is image i with caption t. A wrong candidate with an equal score ranks before
    the true one, so that a constant scorer finds nothing.
    """
    matrix, owner = require_finite(scores), np.asarray(image_of_caption)
    if matrix.ndim != 2 or owner.shape != matrix.shape[1:]:
        raise ScoreError(f"{list(matrix.shape)} scores need one image index a caption")
    true = owner[None, :] == np.arange(len(matrix))[:, None]
    if not true.any(axis=1).all():
        raise ScoreError(f"image {int(np.argmin(true.any(axis=1)))} has no caption")
    best_text = np.where(true, matrix, -np.inf).max(axis=1, keepdims=True)
    to_text = (~true & (matrix >= best_text)).sum(axis=1)
    own_image = matrix[owner, np.arange(len(owner))]
    to_image = (~true & (matrix >= own_image)).sum(axis=0)
    return {"image_to_text": to_text, "text_to_image": to_image}


def wilson(correct: np.ndarray, level: float = 0.95) -> Interval:
    """Share of right items with its Wilson interval."""
    count, n = int(np.sum(correct)), len(correct)
    if n == 0:
        raise ScoreError("no items: there is no share of nothing")
    from statsmodels.stats.proportion import proportion_confint  # a second that training saves

    low, high = proportion_confint(count, n, alpha=1 - level, method="wilson")
    return Interval(count / n, float(low), float(high), n)


def labels_of(cell: object, separator: str = "|") -> tuple[str, ...]:
    """The labels in one tag cell; several are joined by the separator, none is `untagged`."""
    if cell is None or cell is pd.NA or (isinstance(cell, float) and np.isnan(cell)):
        return ("untagged",)
    labels = tuple(part.strip() for part in str(cell).split(separator) if part.strip())
    return labels or ("untagged",)


def groups_of(cells: Sequence) -> dict[str, np.ndarray]:
    """Label -> item indices, in order of the labels; an item with two labels is in both groups."""
    found: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        for label in labels_of(cell):
            found.setdefault(label, []).append(index)
    return {label: np.array(found[label]) for label in sorted(found)}


def _macro_groups(
    cells: Sequence, exclude: Collection[str], min_count: int
) -> dict[str, np.ndarray]:
    return {
        label: index
        for label, index in groups_of(cells).items()
        if label not in exclude and len(index) >= min_count
    }


def macro_interval(
    correct: np.ndarray,
    cells: Sequence,
    seed: int,
    exclude: Collection[str] = (),
    min_count: int = 0,
) -> Interval:
    """Mean over labels of each label's share, with a 95% bootstrap of items within their labels.

    ARO's figure for its VG tasks: the paper's VG-Relation leaves out `ARO_SYMMETRIC_RELATIONS`, its
    VG-Attribution labels with fewer than `ARO_ATTRIBUTE_MIN_COUNT` items.
    """
    correct = np.asarray(correct)
    groups = [correct[index] for index in _macro_groups(cells, exclude, min_count).values()]
    if not groups:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    sizes, shares = np.array([len(g) for g in groups]), np.array([g.mean() for g in groups])
    draws = np.random.default_rng(seed).binomial(sizes, shares, (5000, len(sizes))) / sizes
    low, high = np.quantile(draws.mean(axis=1), [0.025, 0.975])
    return Interval(float(shares.mean()), float(low), float(high), int(sizes.sum()))
