"""What becomes of the items: what fails, by how much, and who loses what another one gained."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator
from PIL import Image

from sdslib.show import style
from sdslib.show.figures import share_axis, tag_labels
from sdslib.show.style import FULL, HALF, Kinds, Look, Picture, looks, styled

if TYPE_CHECKING:
    from sdslib.lab.relevance import Maps

MODE_LOOKS = {
    "right": Look(style.GREEN, hatch=""),
    "image wrong": Look(style.SKY, hatch="///"),
    "text wrong": Look(style.ORANGE, hatch="\\\\\\"),
    "both wrong": Look(style.VERMILLION, hatch="xxx"),
    "tie": Look(style.BLACK, hatch="..."),
}
FLIP_LOOKS = {
    "stays right": Look(style.GRAY, "o"),
    "stays wrong": Look(style.BLACK, "."),
    "gained": Look(style.BLUE, "^"),
    "lost": Look(style.VERMILLION, "v"),
}
_BOX = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 0.8}  # letters are legible on any hatch


def _mode_looks(modes: Collection[str]) -> dict[str, Look]:
    """Looks by outcome, the usual ones first and in their order."""
    known = MODE_LOOKS | {"wrong": MODE_LOOKS["both wrong"]}  # the one way of items with one image
    usual = {mode: look for mode, look in known.items() if mode in modes}
    return usual | looks(mode for mode in modes if mode not in usual)


@styled()
def failure_modes(table: pd.DataFrame, note: str = "", title: str = "What fails") -> Picture:
    """Stacked shares of outcomes: columns tag, label, n (of the label), mode, share."""
    labels, kinds = tag_labels(table), _mode_looks(table["mode"].unique())
    shares = table.pivot(index=["tag", "label"], columns="mode", values="share").fillna(0)
    shares = shares.reindex(list(labels))
    figure, (ax,) = style.canvas(title, note, FULL * 0.75, 1.0 + 0.24 * len(labels))
    left, rows = np.zeros(len(labels)), range(len(labels))
    # seaborn's stacked bars have no hatch, which is what tells outcomes apart without color
    for mode, look in kinds.items():
        share = shares[mode].to_numpy()
        bars = ax.barh(rows, share, 0.78, left, color=look.color, hatch=look.hatch, label=mode,
                       edgecolor="white", lw=0.4)  # fmt: skip
        words = [f"{width:.0%}" if width >= 0.07 else "" for width in share]
        ax.bar_label(bars, words, label_type="center", fontsize=6.5, bbox=_BOX)
        left += share
    share_axis(ax, labels)
    ax.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1], xlabel="items (%)")
    figure.legend(loc="outside lower center", ncols=len(kinds))
    whole = table[table["label"] == "all"]
    return figure.telling(f"{r.mode} {r.share:.1%}" for r in whole.itertuples())


@styled()
def margins(
    table: pd.DataFrame, note: str, names: tuple[str, str], metric: str = "text"
) -> Picture:
    """Margins of two models by `names`, one point an item; quadrants are right and wrong.

    Columns before, after, flip ("gained", "lost", "stays right", "stays wrong").
    """
    import seaborn

    figure, (ax,) = style.canvas(f"{metric.capitalize()} margin of every item", note, HALF, 3.5)
    reach = 1.05 * max(table[["before", "after"]].abs().to_numpy().max(), 1e-9)
    dots = style.cues("flip", FLIP_LOOKS) | {"s": 16, "alpha": 0.75, "linewidth": 0}
    dots["clip_on"] = False
    seaborn.scatterplot(table, x="before", y="after", ax=ax, **dots)
    ax.axhline(0, color="black", lw=0.7)
    ax.axvline(0, color="black", lw=0.7)
    ax.plot([-reach, reach], [-reach, reach], color="#aaaaaa", lw=0.7, ls=(0, (2, 2)))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel=f"margin, {names[0]}", ylabel=f"margin, {names[1]}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(style.plain)
    counts = table["flip"].value_counts()
    corners = {"gained": (0, 1), "stays right": (1, 1), "stays wrong": (0, 0), "lost": (1, 0)}
    for flip, (x, y) in corners.items():
        ax.annotate(f"{flip} {counts.get(flip, 0)}", (x, y), xycoords="axes fraction",
                    xytext=(3 - 6 * x, 3 - 6 * y), textcoords="offset points",
                    ha=("left", "right")[x], va=("bottom", "top")[y], bbox=_BOX)  # fmt: skip
    return figure.telling(f"{counts.get(flip, 0)} {flip}" for flip in corners)


@styled()
def flips(table: pd.DataFrame, note: str = "") -> Picture:
    """An alluvial plot: columns are models in order, each holding an outcome, and `n` items.

    Ribbons that stay in their outcome are pale; those that change are strong.
    """
    stages, total = [column for column in table.columns if column != "n"], table["n"].sum()
    kinds = _mode_looks(pd.unique(table[stages].to_numpy().ravel()))
    width, gap = max(HALF, 1.2 + 1.9 * len(stages)), 0.03 * total
    figure, (ax,) = style.canvas("Where the items go", note, width, 3.0)
    tops: list[pd.Series] = []
    for k, stage in enumerate(stages):
        sizes = table.groupby(stage)["n"].sum().reindex(list(kinds), fill_value=0)
        tops.append((sizes + gap).cumsum() - sizes - gap)
        ax.bar(k, sizes, 0.1, tops[k], color=[look.color for look in kinds.values()],
                      hatch=[look.hatch for look in kinds.values()], edgecolor="white", lw=0.4,
                      zorder=3)  # fmt: skip
        _name_blocks(ax, k, sizes, tops[k], last=stage == stages[-1])
    for k, pair in enumerate(itertools.pairwise(stages)):
        _ribbons(ax, k, table.groupby(list(pair))["n"].sum(), tops[k : k + 2], kinds)
    ax.set_xticks(range(len(stages)), [textwrap.fill(s, 20) for s in stages])
    ax.set(xlim=(-0.62, len(stages) - 0.38), yticks=[])
    ax.set_ylim(total + gap * len(kinds), -0.02 * total)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    moved = table[table[stages[0]] != table[stages[-1]]]
    return figure.telling(
        f"{r['n']} from {r[stages[0]]} to {r[stages[-1]]}" for _, r in moved.iterrows()
    )


def _name_blocks(ax: Axes, k: int, sizes: pd.Series, tops: pd.Series, last: bool) -> None:
    """Outcomes and numbers beside the first and the last blocks, numbers on those between."""
    for mode, size in sizes[sizes > 0].items():
        middle, words = tops[mode] + size / 2, f"{mode} {size:.0f}"
        if k == 0 or last:
            side, ha = (0.08, "left") if k else (-0.08, "right")
            ax.text(k + side, middle, words, va="center", ha=ha, fontsize=7)
        else:
            ax.text(k, middle, f"{size:.0f}", va="center", ha="center", fontsize=6.5, bbox=_BOX)


def _ribbons(ax: Axes, k: int, flow: pd.Series, tops: Sequence[pd.Series], kinds: Kinds) -> None:
    """The flows from stage k to the next, in the order of the outcomes on both sides."""
    x = np.linspace(0, 1, 60)
    bend = x**2 * (3 - 2 * x)
    left, right = (side.to_dict() for side in tops)
    for source, target in itertools.product(kinds, kinds):
        size = flow.get((source, target), 0)
        edge = left[source] + (right[target] - left[source]) * bend
        color, alpha = kinds[source].color, 0.22 if source == target else 0.65
        ax.fill_between(k + 0.05 + 0.9 * x, edge, edge + size, color=color, alpha=alpha, lw=0)
        left[source] += size
        right[target] += size


@styled()
def calibration(table: pd.DataFrame, note: str = "") -> Picture:
    """Share of right choices by the size of their margin.

    Columns model, margin (center of a bin; its unit is the scorer's, so each model has a panel),
    accuracy, low, high, chance.
    """
    kinds = looks(table["model"])
    width, title = max(HALF, 2.3 * len(kinds)), "Does a larger margin mean more?"
    figure, axes = style.canvas(title, note, width, 2.4, len(kinds))
    for ax, (model, part) in zip(axes, table.groupby("model", sort=False), strict=True):
        style.curves(ax, part, "margin", "accuracy", "model", kinds)
        ax.set(title=model, xlabel="size of the margin", ylim=(0, 1.02))
        ax.set_xlim(left=0)
        ax.yaxis.set_major_formatter(style.percent)
        style.mark_line(ax, part["chance"].iloc[0], "chance", side="above")
    axes[0].set_ylabel("right choices (%)")
    ends = table.groupby("model", sort=False)["accuracy"].agg(["first", "last"])
    return figure.telling(
        f"{m}: {a:.0%} at the smallest, {b:.0%} at the largest" for m, a, b in ends.itertuples()
    )


_MAPS, _TILE = 14, (96, 96)  # of a model that fit beside one another, and the pixels of each


@styled()
def relevance(maps: Maps, note: str = "", teacher: str = "teacher") -> Picture:
    """Where each model sees the caption and its first words, by `lab.relevance.maps`.

    A row a model, each map from its weakest cell (none) to its strongest (full color); below a
    student's, Pearson's r with the teacher's map of the same word.
    """
    names, models = maps.names[:_MAPS], list(maps.by_model)
    if len(names) < len(maps.names):
        note = f"{note}, the first {_MAPS - 1} of its words".strip(", ")
    size = 0.72 * len(names) + 0.9, 0.6 + 0.86 * len(models)
    figure, (ax,) = style.canvas("Where each word is seen", note, *size)
    hot, told = np.array(to_rgb(style.VERMILLION)), list[str]()
    gray = np.asarray(maps.image.convert("L").resize(_TILE), float)[..., None] / 255
    for top, model in zip(1.22 * np.arange(len(models)), models, strict=True):
        agree = teacher in models and model != teacher
        r = maps.agreements(model, teacher) if agree else [np.nan] * len(maps.names)
        for left, (seen, share) in enumerate(zip(maps.by_model[model][:_MAPS], r, strict=False)):
            cells = Image.fromarray(((seen - seen.min()) / (np.ptp(seen) or 1)).astype(np.float32))
            full = 0.85 * np.asarray(cells.resize(_TILE, Image.Resampling.BILINEAR))[..., None]
            tile = (0.35 + 0.65 * gray) * (1 - full) + hot * full
            ax.imshow(tile, extent=(left, left + 0.94, top + 0.94, top))
            told_r = "" if np.isnan(share) else f"r {share:.2f}".replace("-", "−")
            ax.text(left + 0.47, top + 0.97, told_r, ha="center", va="top", fontsize=7)
        ax.text(-0.06, top + 0.47, textwrap.fill(model, 12), rotation=90, ha="right", va="center")
        told += [f"{model} with the teacher over the whole caption: r {r[0]:.2f}"] * agree
    for left, name in enumerate(names):
        ax.text(left + 0.47, -0.06, textwrap.fill(name, 9), ha="center", va="bottom", fontsize=7)
    ax.set(xlim=(0, len(names) - 0.06), ylim=(1.22 * len(models) - 0.28, 0), aspect="equal")
    ax.set_axis_off()
    figure.photos = True
    return figure.telling(told or [f"{', '.join(models)}: {', '.join(names)}"])
