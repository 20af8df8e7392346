"""A table in, a figure out: every picture of the workbench, in one style; nothing is computed here.

Colors are Okabe and Ito's, always with a second cue (marker, dash or hatch). Shares are fractions
in tables and percent on axes. Every figure takes a `note` (e.g. "mini-world"), which stands in its
title, and carries its alternative text in `alt`. The native size fits half a page's width.
"""

from __future__ import annotations

import base64
import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from sdslib.io.storage import write_bytes
from sdslib.metrics import HUMAN_WINOGROUND
from sdslib.results import formatting

OKABE_ITO = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "purple": "#CC79A7",
    "gray": "#999999",
}
HALF, FULL = 3.5, 7.0  # inches
SCREEN_DPI, PRINT_DPI = 144, 300
FONTS = FilePath(mpl.get_data_path()) / "fonts" / "ttf"  # DejaVu, which all figures use
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.facecolor": "white",
    "svg.hashsalt": "sdslib",
    "svg.fonttype": "none",  # letters stay letters, to be searched and edited
    "pdf.fonttype": 42,
    "mathtext.fontset": "stix",
}
_BLUES = LinearSegmentedColormap.from_list("counts", ["#ffffff", OKABE_ITO["blue"]])


@dataclass(frozen=True)
class Look:
    """How one series looks: a color and three second cues, one of which every figure uses."""

    color: str
    marker: str = "o"
    dash: Any = "-"
    hatch: str = ""


LOOKS = (
    Look(OKABE_ITO["black"], "o", "-", ""),
    Look(OKABE_ITO["blue"], "s", (0, (4, 1.5)), "///"),
    Look(OKABE_ITO["vermillion"], "^", (0, (6, 1, 1, 1)), "..."),
    Look(OKABE_ITO["green"], "D", (0, (1, 1)), "xxx"),
    Look(OKABE_ITO["purple"], "v", (0, (3, 1, 1, 1, 1, 1)), "\\\\\\"),
    Look(OKABE_ITO["orange"], "P", (0, (8, 2)), "---"),
    Look(OKABE_ITO["sky"], "X", (0, (2, 2)), "+++"),
    Look(OKABE_ITO["gray"], "*", (0, (1, 2)), "ooo"),
)
_KNOWN = {"untouched": 0, "student": 0, "clip-only": 1, "L_CLIP": 1, "sds": 2, "teacher": 3}
MODE_LOOKS = {
    "right": Look(OKABE_ITO["green"], "o", "-", ""),
    "image wrong": Look(OKABE_ITO["sky"], "s", "-", "///"),
    "text wrong": Look(OKABE_ITO["orange"], "^", "-", "\\\\\\"),
    "both wrong": Look(OKABE_ITO["vermillion"], "X", "-", "xxx"),
    "tie": Look(OKABE_ITO["black"], "D", "-", "..."),
}
FLIP_LOOKS = {
    "stays right": Look(OKABE_ITO["gray"], "o"),
    "stays wrong": Look(OKABE_ITO["black"], "."),
    "gained": Look(OKABE_ITO["blue"], "^"),
    "lost": Look(OKABE_ITO["vermillion"], "v"),
}


class Picture(Figure):
    """A matplotlib figure that a notebook shows without pyplot, with its alternative text."""

    alt = ""

    def png(self, dpi: float = SCREEN_DPI * 1.5) -> bytes:
        """The picture as a PNG file; equal figures give equal bytes."""
        with style():
            data = io.BytesIO()
            self.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
        return data.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple:
        data = base64.b64encode(self.png()).decode()
        width, height = (round(side * SCREEN_DPI * 0.85) for side in self.get_size_inches())
        shown = {"image/png": data, "text/plain": self.alt}
        return shown, {"image/png": {"alt": self.alt, "width": width, "height": height}}


@contextmanager
def style() -> Iterator[None]:
    """The one style, as a context or a decorator; all functions here draw inside it."""
    with mpl.rc_context(_STYLE):
        yield


def save(figure: Figure, folder: FilePath | str, name: str) -> list[FilePath]:
    """Write `name`.png, .svg and .pdf, each whole or not at all; equal figures give equal files."""
    folder, alt = FilePath(folder), getattr(figure, "alt", "")
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, dict] = {
        "png": {"Description": alt, "Software": None},
        "svg": {"Title": alt, "Date": None, "Creator": None},
        "pdf": {"Title": alt, "CreationDate": None, "Producer": None, "Creator": None},
    }
    paths = []
    for kind, metadata in about.items():
        data = io.BytesIO()
        with style():
            figure.savefig(data, format=kind, dpi=PRINT_DPI, metadata=metadata)
        paths.append(folder / f"{name}.{kind}")
        write_bytes(paths[-1], data.getvalue())
    return paths


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name: known models always have theirs, the others what is left, in order."""
    names = list(dict.fromkeys(names))
    taken: dict[str, int] = {}
    for name in names:
        index = _KNOWN.get(name.split(" ")[0])
        if index is not None and index not in taken.values():
            taken[name] = index
    free = [index for index in range(len(LOOKS)) if index not in taken.values()]
    cycle = itertools.cycle(free or range(len(LOOKS)))
    return {name: LOOKS[taken[name] if name in taken else next(cycle)] for name in names}


# --- training ------------------------------------------------------------------------------------

_PANELS = {
    "clip": "L_CLIP (nats)",
    "sds": "L_SDS (squared error)",
    "eps_error": "eps error per element",
    "grad_ratio": "|grad L_SDS| / |grad L_CLIP|",
    "lr": "learning rate",
}


@style()
def history(
    table: pd.DataFrame,
    note: str = "",
    chance: float = 0.25,
    absent: str = "not part of this run",
) -> Picture:
    """Six curves of a run's history over its steps.

    Columns step and, where the arm has them, clip, sds, eps_error (mean squared, per latent
    element), grad_ratio (weighted L_SDS over L_CLIP), lr, and of the validation set `val_` and its
    metrics, of which the first is drawn. A column `run` draws several. `absent` is what the panel
    of an empty column says. `chance` is that of val_text.
    """
    table = table if "run" in table else table.assign(run="run")
    figure, axes = _canvas("Training", note, FULL, 3.6, 2, 3)
    kinds = looks(table["run"].unique())
    chosen = next((c for c in table if c.startswith("val_")), "val_text")
    panels = _PANELS | {chosen: f"validation {chosen.removeprefix('val_')} score (%)"}
    for ax, (column, label) in zip(axes.flat, panels.items(), strict=True):
        ax.set_title(label)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        drawn = _curves(ax, table, column, kinds, absent)
        if column == "lr" and drawn:
            ax.yaxis.set_major_formatter(_short)
        if column == "grad_ratio" and drawn:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
            ax.yaxis.set_major_formatter(_short)
            ax.yaxis.set_minor_locator(NullLocator())
            low, high = ax.get_ylim()  # the line is in the panel, with room for the words below it
            ax.set_ylim(min(0.004, low), max(0.015, high))
            _mark_line(ax, 0.01, "inert below 1%", horizontal=True, below=True)
        if column == chosen and drawn:
            ax.yaxis.set_major_formatter(_percent)
            if column == "val_text":
                _mark_line(ax, chance, "chance", horizontal=True)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    if len(kinds) > 1:
        _legend(figure, kinds, "dash")
    last = table.groupby("run").last(numeric_only=True).to_dict("index")
    figure.alt = _alt("Training curves", note, (_last_words(run, row) for run, row in last.items()))
    return figure


def _curves(
    ax: Axes, table: pd.DataFrame, column: str, kinds: Mapping[str, Look], absent: str
) -> bool:
    """Draw one column of all runs; a column that is empty says so in its panel."""
    drawn = False
    for run, part in table.groupby("run", sort=False):
        part = part.dropna(subset=[column]) if column in part else part.iloc[:0]
        if part.empty:
            continue
        look, few = kinds[run], len(part) <= 24
        ax.plot(part["step"], part[column], color=look.color, ls=look.dash,
                marker=look.marker if few else "", lw=1.4 if few else 0.9)  # fmt: skip
        drawn = True
    if not drawn:
        ax.text(0.5, 0.5, absent, transform=ax.transAxes, ha="center", color="#666")
        ax.set(xticks=[], yticks=[])
    else:
        ax.grid(axis="y")
    return drawn


def _last_words(run: str, row: Mapping[str, float]) -> str:
    names = ["clip", "sds", *(c for c in row if c.startswith("val_"))][:3]
    known = ((c, row.get(c)) for c in names)
    return f"{run} ends with " + ", ".join(f"{c} {v:.3g}" for c, v in known if pd.notna(v))


# --- scores and differences ----------------------------------------------------------------------


@style()
def scores_by_tag(
    table: pd.DataFrame,
    note: str = "",
    human: Mapping[str, float] | None = HUMAN_WINOGROUND,
    title: str = "Right items by tag",
    human_label: str = "human",
) -> Picture:
    """Shares with their intervals: one panel a metric, one row a label, one mark a model.

    Rows of `tables.tabulate` with a column `model`. The chance line is the table's; `human` maps
    metrics to shares (Winoground's by default; None where the set has none); say in `human_label`
    where they were measured on another set.
    """
    labels = _labels(table)
    kinds, metrics = looks(table["model"]), list(dict.fromkeys(table["metric"]))
    height = 1.2 + len(labels) * max(0.2, 0.085 * len(kinds) + 0.06)
    figure, axes = _canvas(title, note, _width(metrics), height, 1, len(metrics), True)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        part = table[table["metric"] == metric]
        ax.set_title(f"{metric} (%)", pad=12)
        for model, place, row in _dodged(part, labels, kinds):
            _interval(ax, row["accuracy"], row["low"], row["high"], place, kinds[model])
        _share_axis(ax, labels)
        _mark_line(ax, float(part["chance"].iloc[0]), "chance")
        if human and metric in human:
            _mark_line(ax, human[metric], human_label, dash=(0, (1, 1.5)))
    _legend(figure, _with_few(table, kinds), "marker")
    whole = table[table["label"] == "all"]
    figure.alt = _alt(title, note, (_share_words(row) for _, row in whole.iterrows()))
    return figure


@style()
def scores_by_set(
    table: pd.DataFrame, note: str = "", title: str = "Right items by set"
) -> Picture:
    """Shares with their intervals, one row a set; the gray mark of a row is its chance.

    Columns set, metric, model, n, accuracy, low, high, chance.
    """
    sets = {("set", s): f"{s}\n({m})" for s, m in zip(table["set"], table["metric"], strict=True)}
    kinds = looks(table["model"])
    figure, axes = _canvas(title, note, FULL * 0.75, 1.1 + 0.36 * len(sets), 1, 1)
    ax = axes[0, 0]
    rows = table.assign(tag="set", label=table["set"])
    for model, place, row in _dodged(rows, sets, kinds):
        _interval(ax, row["accuracy"], row["low"], row["high"], place, kinds[model])
    for place, (_, name) in enumerate(sets):
        chance = table.loc[table["set"] == name, "chance"].iloc[0]
        ax.plot([chance] * 2, [place - 0.42, place + 0.42], color="#888888", lw=2.5, zorder=0)
        if place == 0:
            ax.annotate("chance", (chance, place - 0.5), ha="center", va="bottom", fontsize=6.5,
                        color="#444444", annotation_clip=False)  # fmt: skip
    _share_axis(ax, sets)
    ax.set_xlabel("right items (%)")
    _legend(figure, kinds, "marker")
    words = (f"{r.set}: {r.model} {r.accuracy:.1%}" for r in table.itertuples())
    figure.alt = _alt(title, note, words)
    return figure


@style()
def before_after(table: pd.DataFrame, note: str = "", title: str = "Change of score") -> Picture:
    """Paired differences with their intervals; the gray band is too small for this set to show.

    Rows of `tables.compare`; a column `model` or `comparison` draws several differences a label.
    Numbers at the right are items that went right and wrong, and Holm's p where it is below 0.05.
    """
    table = table.rename(columns={"comparison": "model"})
    table = table if "model" in table else table.assign(model="after against before")
    labels = _labels(table)
    kinds, metrics = _compared_looks(table["model"]), list(dict.fromkeys(table["metric"]))
    height = 1.1 + len(labels) * max(0.2, 0.13 * len(kinds) + 0.06)
    figure, axes = _canvas(title, note, _width(metrics), height, 1, len(metrics), True)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        ax.set_title(f"{metric} (points)")
        for model, place, row in _dodged(table[table["metric"] == metric], labels, kinds):
            half = 0.4 / len(kinds)
            box = ((-row["mdd"], place - half), 2 * row["mdd"], 2 * half)
            ax.add_patch(Rectangle(*box, color="#e8e8e8", lw=0, zorder=0))
            _interval(ax, row["difference"], row["low"], row["high"], place, kinds[model])
            sure = _p_words(row["p_holm"])
            ax.annotate(f"+{row['up']:.0f}/−{row['down']:.0f}{sure}", (1.01, place),
                        xycoords=("axes fraction", "data"), va="center", fontsize=6)  # fmt: skip
        ax.axvline(0, color="black", lw=0.8)
        _share_axis(ax, labels, limits=None)
    if len(kinds) > 1:
        _legend(figure, kinds, "marker")
    whole = table[table["label"] == "all"]
    figure.alt = _alt(title, note, (_difference_words(row) for _, row in whole.iterrows()))
    return figure


def _compared_looks(names: Iterable[str]) -> dict[str, Look]:
    """Looks of comparisons: "a against b" looks as b does, where that tells them apart."""
    names = list(dict.fromkeys(names))
    if len(names) == 1:
        return dict.fromkeys(names, LOOKS[1])
    others = [name.partition(" against ")[2] or name for name in names]
    if len(set(others)) < len(names):
        return looks(names)
    return {name: looks(others)[other] for name, other in zip(names, others, strict=True)}


def _p_words(p: float) -> str:
    if p >= 0.05:
        return ""
    return " p<.001" if p < 0.001 else f" p={p:.3f}".replace("0.", ".")


def _dodged(part: pd.DataFrame, labels: Mapping, kinds: Mapping[str, Look]) -> Iterable[tuple]:
    """(model, y, row) of every row, models of one label side by side."""
    place = {key: index for index, key in enumerate(labels)}
    step = 0.8 / max(2, len(kinds))
    offset = {m: (i - (len(kinds) - 1) / 2) * step for i, m in enumerate(kinds)}
    for _, row in part.iterrows():
        model = row["model"]
        yield model, place[row["tag"], row["label"]] + offset[model], row


def _labels(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(tag, label) -> tick text, in the table's order; macro averages have no n of items."""
    found: dict[tuple[str, str], str] = {}
    for row in table.itertuples():
        words = "all" if row.tag == "all" else formatting.tag(row.tag, str(row.label))
        text = textwrap.shorten(words, 26, placeholder="…")
        found.setdefault((row.tag, row.label), f"{text} ({row.n})")
    return found


def _with_few(table: pd.DataFrame, kinds: Mapping[str, Look]) -> dict[str, Look]:
    """The looks by names that say so where a model scored fewer items than others."""
    most = table.groupby("model")["n"].max()
    few = {m: f"{m} ({most[m]} items)" for m in kinds if most[m] < most.max()}
    return {few.get(m, m): look for m, look in kinds.items()}


def _share_axis(ax: Axes, labels: Mapping, limits: tuple | None = (-0.02, 1.02)) -> None:
    ax.set_yticks(range(len(labels)), list(labels.values()))
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_formatter(_percent)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    if limits:
        ax.set_xlim(*limits)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    tags = [tag for tag, _ in labels]
    for index in range(1, len(tags)):
        if tags[index] != tags[index - 1]:
            ax.axhline(index - 0.5, color="#bbbbbb", lw=0.6)


def _share_words(row: pd.Series) -> str:
    span = f"{row['accuracy']:.1%} ({row['low']:.1%} to {row['high']:.1%})"
    return f"{row['model']} {row['metric']} {span}"


def _difference_words(row: pd.Series) -> str:
    span = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    return f"{row['model']} {row['metric']} {100 * row['difference']:+.1f} points ({span})"


# --- one item at a time --------------------------------------------------------------------------


@style()
def matrices(tables: Mapping[str, pd.DataFrame], title: str, note: str = "") -> Picture:
    """Count tables as heat maps side by side; the names of index and columns label the axes."""
    rows, columns = next(iter(tables.values())).shape
    count = min(4, len(tables))
    lines = -(-len(tables) // count)
    size = (max(HALF, count * (0.75 + 0.62 * columns)), lines * (0.85 + 0.45 * rows) + 0.2)
    figure, axes = _canvas(title, note, *size, lines, count)
    for ax in axes.flat[len(tables) :]:
        ax.set_axis_off()
    for ax, (name, counts) in zip(axes.flat, tables.items(), strict=False):
        _matrix(ax, counts, name)
    words = (f"{name}: {_cell_words(counts)}" for name, counts in tables.items())
    figure.alt = _alt(title, note, words)
    return figure


def agreement(
    tables: Mapping[str, pd.DataFrame], note: str = "", title: str = "Student and teacher"
) -> Picture:
    """Counts of items by whether student (rows) and teacher (columns) are right, one map a set.

    Without a set that both scored it says so.
    """
    alone = "The teacher scored no item: there is nothing to compare."
    return matrices(tables, title, note) if tables else _sentence(title, note, alone)


def confusion(table: pd.DataFrame, note: str = "", title: str = "Text against image") -> Picture:
    """Counts of items by what happens in text (rows) and in image choice (columns)."""
    return matrices({"": table}, title, note)


def _matrix(ax: Axes, counts: pd.DataFrame, name: str) -> None:
    values = counts.to_numpy(dtype=float)
    total = max(values.sum(), 1.0)
    ax.imshow(values / total, cmap=_BLUES, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ax.text(j, i, f"{value:.0f}\n{value / total:.0%}", ha="center", va="center",
                color=_ink(value / total))  # fmt: skip
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fc="none", ec="#bbbbbb", lw=0.5))
    ax.set_xticks(range(counts.shape[1]), [textwrap.fill(str(c), 13) for c in counts.columns])
    ax.set_yticks(range(counts.shape[0]), [textwrap.fill(str(c), 13) for c in counts.index])
    ax.set(xlabel=counts.columns.name, ylabel=counts.index.name)
    ax.set_title("" if name == counts.index.name else name)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _ink(depth: float) -> str:
    """Letters that are legible on `_BLUES` at a depth of 0 to 1: black but on the darkest."""
    return "white" if depth > 0.92 else "black"


def _cell_words(counts: pd.DataFrame) -> str:
    row, column = counts.index.name or "row", counts.columns.name or "column"
    return ", ".join(
        f"{row} {r} and {column} {c} {counts.loc[r, c]}" for r in counts.index for c in counts
    )


@style()
def failure_modes(
    table: pd.DataFrame, note: str = "", title: str = "What fails, by tag"
) -> Picture:
    """Stacked shares of outcomes: columns tag, label, n (of the label), mode, share."""
    labels, modes = _labels(table), list(dict.fromkeys(table["mode"]))
    kinds = _mode_looks(modes)
    figure, axes = _canvas(title, note, FULL * 0.75, 1.0 + 0.24 * len(labels), 1, 1)
    ax = axes[0, 0]
    for place, (tag, label) in enumerate(labels):
        left = 0.0
        part = table[(table["tag"] == tag) & (table["label"] == label)].set_index("mode")["share"]
        for mode in modes:
            width = float(part.get(mode, 0.0))
            ax.barh(place, width, 0.78, left, color=kinds[mode].color, hatch=kinds[mode].hatch,
                    edgecolor="white", lw=0.4)  # fmt: skip
            if width >= 0.07:
                _boxed(ax, left + width / 2, place, f"{width:.0%}")
            left += width
    _share_axis(ax, labels, limits=(0, 1))
    ax.set_xlabel("items (%)")
    handles = [Rectangle((0, 0), 1, 1, fc=kinds[m].color, hatch=kinds[m].hatch, ec="white")
               for m in modes]  # fmt: skip
    figure.legend(handles, modes, loc="outside lower center", ncols=len(modes))
    whole = table[table["label"] == "all"]
    figure.alt = _alt(title, note, (f"{r.mode} {r.share:.1%}" for r in whole.itertuples()))
    return figure


@style()
def margins(
    table: pd.DataFrame,
    note: str = "",
    names: tuple[str, str] = ("before", "after"),
    title: str = "Margin of every item",
) -> Picture:
    """Margins before and after, one point an item; the quadrants are right and wrong.

    Columns before, after, flip ("gained", "lost", "stays right", "stays wrong").
    """
    figure, axes = _canvas(title, note, HALF, 3.5, 1, 1)
    ax = axes[0, 0]
    reach = 1.05 * max(float(table[["before", "after"]].abs().to_numpy().max()), 1e-9)
    for flip, look in FLIP_LOOKS.items():
        part = table[table["flip"] == flip]
        ax.scatter(part["before"], part["after"], s=14, marker=look.marker, color=look.color,
                   alpha=0.75, lw=0)  # fmt: skip
    ax.axhline(0, color="black", lw=0.7)
    ax.axvline(0, color="black", lw=0.7)
    ax.plot([-reach, reach], [-reach, reach], color="#aaaaaa", lw=0.7, ls=(0, (2, 2)))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    ax.set(xlabel=f"margin, {names[0]}", ylabel=f"margin, {names[1]}")
    counts = table["flip"].value_counts()
    corners = {"gained": (0, 1), "stays right": (1, 1), "stays wrong": (0, 0), "lost": (1, 0)}
    for flip, (x, y) in corners.items():
        ax.annotate(f"{flip} {counts.get(flip, 0)}", (x, y), xycoords="axes fraction",
                    xytext=(3 - 6 * x, 3 - 6 * y), textcoords="offset points",
                    ha=("left", "right")[x], va=("bottom", "top")[y],
                    bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1})  # fmt: skip
    figure.alt = _alt(title, note, (f"{counts.get(flip, 0)} {flip}" for flip in corners))
    return figure


@style()
def flips(table: pd.DataFrame, note: str = "", title: str = "Where the items go") -> Picture:
    """An alluvial plot: columns are models in order, each holding an outcome, and `n` items.

    Ribbons that stay in their outcome are pale; those that change are strong.
    """
    stages = [column for column in table.columns if column != "n"]
    modes = [m for m in MODE_LOOKS if (table[stages] == m).to_numpy().any()]
    modes += [m for m in pd.unique(table[stages].to_numpy().ravel()) if m not in modes]
    kinds, total = _mode_looks(modes), float(table["n"].sum())
    figure, axes = _canvas(title, note, max(HALF, 1.2 + 1.9 * len(stages)), 3.0, 1, 1)
    ax, gap = axes[0, 0], 0.03
    tops = [_blocks(ax, table, stages, k, kinds, gap * total) for k in range(len(stages))]
    for k in range(len(stages) - 1):
        _ribbons(ax, table, stages[k : k + 2], k, tops[k : k + 2], kinds)
    ax.set_xticks(range(len(stages)), [textwrap.fill(s, 20) for s in stages])
    ax.set(xlim=(-0.62, len(stages) - 0.38), yticks=[])
    ax.set_ylim(total * (1 + gap * len(modes)), -0.02 * total)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    moved = table[table[stages[0]] != table[stages[-1]]]
    words = (f"{r['n']} from {r[stages[0]]} to {r[stages[-1]]}" for _, r in moved.iterrows())
    figure.alt = _alt(title, note, words)
    return figure


def _blocks(
    ax: Axes, table: pd.DataFrame, stages: Sequence[str], k: int, kinds: Mapping, gap: float
) -> dict[str, float]:
    """Draw the outcomes of stage k as stacked blocks and label them; gives the top of each."""
    sizes, top, tops = table.groupby(stages[k])["n"].sum(), 0.0, {}
    for mode, look in kinds.items():
        size = float(sizes.get(mode, 0))
        tops[mode] = top
        if size:
            ax.add_patch(Rectangle((k - 0.05, top), 0.1, size, fc=look.color, hatch=look.hatch,
                                   ec="white", lw=0.4, zorder=3))  # fmt: skip
            side = -1 if k == 0 else 1
            if k in (0, len(stages) - 1):
                ax.text(k + side * 0.08, top + size / 2, f"{mode} {size:.0f}", va="center",
                        ha="right" if side < 0 else "left", fontsize=7)  # fmt: skip
            else:
                _boxed(ax, k, top + size / 2, f"{size:.0f}")
        top += size + gap
    return tops


def _ribbons(
    ax: Axes, table: pd.DataFrame, pair: Sequence[str], k: int, tops: Sequence[dict], kinds: Mapping
) -> None:
    """Draw the flows between two stages, in the order of the outcomes on both sides."""
    flow = table.groupby(list(pair))["n"].sum()
    left, right = dict(tops[0]), dict(tops[1])
    for source, target in itertools.product(kinds, kinds):
        size = float(flow.get((source, target), 0))
        if not size:
            continue
        y0, y1 = left[source], right[target]
        left[source], right[target] = y0 + size, y1 + size
        x0, x1, half = k + 0.05, k + 0.95, k + 0.5
        points = [
            (x0, y0),
            (half, y0),
            (half, y1),
            (x1, y1),
            (x1, y1 + size),
            (half, y1 + size),
            (half, y0 + size),
            (x0, y0 + size),
            (x0, y0),
        ]
        codes = [1, 4, 4, 4, 2, 4, 4, 4, 79]  # fmt: skip
        alpha = 0.22 if source == target else 0.65
        patch = PathPatch(Path(points, codes), fc=kinds[source].color, alpha=alpha, lw=0)
        ax.add_patch(patch)


@style()
def calibration(
    table: pd.DataFrame, note: str = "", title: str = "Does a larger margin mean more?"
) -> Picture:
    """Share of right choices by the size of their margin.

    Columns model, margin (center of a bin; its unit is the scorer's, so each model has a panel),
    accuracy, low, high, chance.
    """
    models = list(dict.fromkeys(table["model"]))
    kinds = looks(models)
    size = (max(HALF, 2.3 * len(models)), 2.4)
    figure, axes = _canvas(title, note, *size, 1, len(models), True)
    for ax, model in zip(axes.flat, models, strict=True):
        part, look = table[table["model"] == model], kinds[model]
        ax.fill_between(part["margin"], part["low"], part["high"], color=look.color, alpha=0.15,
                        lw=0)  # fmt: skip
        ax.plot(part["margin"], part["accuracy"], color=look.color, marker=look.marker)
        ax.set(title=model, xlabel="size of the margin", ylim=(0, 1.02))
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(_percent)
        ax.grid(axis="y")
        _mark_line(ax, float(part["chance"].iloc[0]), "chance", horizontal=True)
    axes[0, 0].set_ylabel("right choices (%)")
    ends = table.groupby("model", sort=False)["accuracy"].agg(["first", "last"])
    words = (
        f"{m}: {a:.0%} at the smallest, {b:.0%} at the largest" for m, a, b in ends.itertuples()
    )
    figure.alt = _alt(title, note, words)
    return figure


# --- studies -------------------------------------------------------------------------------------


@style()
def tradeoff(
    table: pd.DataFrame,
    note: str = "",
    title: str = "Gain and price of L_SDS",
    plain: Sequence[str] = (),
) -> Picture:
    """Measures over `sds_weight` (symmetric log, 0 included), each with its band.

    Columns sds_weight, measure, mean, low, high (shares) and, optionally, reference (a line, e.g.
    the untouched student's share) and series (several curves a panel, e.g. the arm). Measures in
    `plain` are no shares but positive numbers, and have a log axis.
    """
    table = table if "series" in table else table.assign(series="")
    measures, kinds = list(dict.fromkeys(table["measure"])), looks(table["series"])
    if len(kinds) == 1:
        kinds = dict.fromkeys(kinds, LOOKS[2])
    columns = min(3, len(measures))
    lines = -(-len(measures) // columns)
    size = (max(HALF, 2.35 * columns), 0.5 + 2.0 * lines)
    figure, axes = _canvas(title, note, *size, lines, columns)
    for ax in axes.flat[len(measures) :]:
        ax.set_axis_off()
    weights = sorted(table["sds_weight"].unique())
    for ax, measure in zip(axes.flat, measures, strict=False):
        ax.set_title(measure if measure in plain else f"{measure} (%)")
        _weight_axis(ax, weights)
        _bands(ax, table[table["measure"] == measure], kinds)
        if measure not in plain:
            ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))  # no share is above 100%
        else:
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            ax.yaxis.set_minor_locator(NullLocator())
    if len(kinds) > 1:
        _legend(figure, kinds, "both")
    table = table[~table["measure"].isin(plain)]
    best = table.loc[table.groupby("measure", sort=False)["mean"].idxmax()]
    words = (
        f"{r.measure} is highest, {r.mean:.1%}, at {r.sds_weight:g}" for r in best.itertuples()
    )
    figure.alt = _alt(title, note, words)
    return figure


def _bands(ax: Axes, part: pd.DataFrame, kinds: Mapping[str, Look]) -> None:
    for series, look in kinds.items():
        line = part[part["series"] == series].sort_values("sds_weight")
        ax.fill_between(line["sds_weight"], line["low"], line["high"], color=look.color,
                        alpha=0.18, lw=0)  # fmt: skip
        ax.plot(line["sds_weight"], line["mean"], color=look.color, ls=look.dash,
                marker=look.marker)  # fmt: skip
    if "reference" in part and part["reference"].notna().any():
        _mark_line(ax, float(part["reference"].dropna().iloc[0]), "untouched", horizontal=True)
    ax.yaxis.set_major_formatter(_percent)
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.grid(axis="y")


def _weight_axis(ax: Axes, weights: Sequence[float]) -> None:
    positive = [w for w in weights if w > 0]
    if positive:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.6)
        decades = np.arange(np.floor(np.log10(positive[0])), np.ceil(np.log10(positive[-1])) + 1)
        ticks = [0.0, *(10.0 ** decades[:: max(1, len(decades) // 4)])]
        ax.set_xticks([t for t in ticks if t <= positive[-1] * 1.01 and not 0 < t < positive[0]])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.set_xlim(-positive[0] / 4, positive[-1] * 1.4)
    ax.set_xlabel("sds_weight")


@style()
def bars_by_set(
    table: pd.DataFrame, note: str = "", title: str = "Which parameters have to move"
) -> Picture:
    """Shares by trainable set: one panel a measure, one row a set.

    Columns set, measure, mean, low, high and, optionally, parameters (millions or any text to put
    beside the set), reference (e.g. the untouched student), series (e.g. the arm).
    """
    table = table if "series" in table else table.assign(series="")
    kinds, measures = looks(table["series"]), list(dict.fromkeys(table["measure"]))
    sets = {("set", s): s for s in dict.fromkeys(table["set"])}
    if "parameters" in table:
        beside = table.drop_duplicates("set").set_index("set")["parameters"]
        sets = {key: f"{s}\n{beside[s]}" for key, s in sets.items()}
    height = 1.0 + len(sets) * max(0.3, 0.12 * len(kinds))
    figure, axes = _canvas(title, note, _width(measures), height, 1, len(measures), True)
    for ax, measure in zip(axes.flat, measures, strict=True):
        part = table[table["measure"] == measure]
        ax.set_title(f"{measure} (%)", pad=12)
        rows = part.assign(tag="set", label=part["set"], model=part["series"])
        for model, place, row in _dodged(rows, sets, kinds):
            _bar(ax, row, place, 0.7 / max(2, len(kinds)), kinds[model])
        _share_axis(ax, sets, limits=None)
        ax.set_xlim(left=0)
        if "reference" in part and part["reference"].notna().any():
            _mark_line(ax, float(part["reference"].dropna().iloc[0]), "untouched")
    if len(kinds) > 1:
        _legend(figure, kinds, "marker")
    words = (f"{r.measure} of {r.set} {r.mean:.1%}" for r in table.itertuples())
    figure.alt = _alt(title, note, words)
    return figure


@style()
def changes(table: pd.DataFrame, note: str = "", title: str = "What moved") -> Picture:
    """Relative changes (norm of the change over the norm before): rows layers, columns sets.

    Blues are logarithmic from 0.01% to 100%; a layer that did not move is blank.
    """
    figure, axes = _canvas(title, note, FULL, 1.2 + 0.2 * len(table), 1, 1)
    ax, values = axes[0, 0], table.to_numpy(dtype=float)
    shown = np.ma.masked_less_equal(values, 0)
    image = ax.imshow(shown, cmap=_BLUES, norm=LogNorm(1e-4, 1, clip=True), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if value > 0:
            color = _ink(float(image.norm(value)))
            text = f"{100 * value:.2g}"
            ax.text(column, row, text, ha="center", va="center", fontsize=6, color=color)
    ax.set_xticks(range(len(table.columns)), list(table.columns), rotation=30, ha="right")
    ax.set_yticks(range(len(table)), list(table.index))
    ax.tick_params(length=0)
    bar = figure.colorbar(image, ax=ax, fraction=0.03, format=_percent)
    bar.set_label("change (% of the norm)")
    most = table.idxmax()
    figure.alt = _alt(title, note, (f"{s} moves {layer} most" for s, layer in most.items()))
    return figure


def _bar(ax: Axes, row: pd.Series, place: float, thick: float, look: Look) -> None:
    ax.barh(place, row["mean"], thick, color=look.color, alpha=0.25, lw=0)
    _interval(ax, row["mean"], row["low"], row["high"], place, look)


@style()
def pictures(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int = 4,
    note: str = "",
    title: str = "",
) -> Picture:
    """A sheet of pictures, each with its caption below."""
    columns = max(1, min(columns, len(images)))
    lines = -(-len(images) // columns)
    width = max(HALF, min(FULL, 1.55 * columns))
    wrap = int(width / columns * 15)
    texts = [textwrap.fill(caption, wrap) for caption in captions]
    tallest = max((text.count("\n") + 1 for text in texts), default=1)
    side = width / columns * 0.92
    figure, axes = _canvas(title, note, width, lines * (side + 0.14 * tallest + 0.06) + 0.25,
                           lines, columns)  # fmt: skip
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, image, text in zip(axes.flat, images, texts, strict=False):
        small = max(image.size) <= 128
        ax.imshow(np.asarray(image), interpolation="nearest" if small else "antialiased")
        ax.set_xlabel(text, fontsize=7, labelpad=2)
    figure.alt = _alt(title or "Pictures", note, captions)
    return figure


@style()
def equation(tex: str, words: str) -> Picture:
    """A formula as a picture of its own size; `words` say it for who cannot see it."""
    figure = Picture(figsize=(FULL, 0.5))
    formula = figure.text(0, 0, f"${tex}$", fontsize=11)
    box = formula.get_window_extent()
    width, height = (side / figure.dpi + 0.06 for side in box.size)
    figure.set_size_inches(width, height)
    formula.set_position((0.03 / width, (0.03 - box.y0 / figure.dpi) / height))
    figure.alt = words
    return figure


# --- pieces --------------------------------------------------------------------------------------

_percent = FuncFormatter(lambda share, _: f"{100 * share:g}".replace("-", "−"))
_short = FuncFormatter(lambda value, _: f"{value:.3g}")


def _canvas(
    title: str,
    note: str,
    width: float,
    height: float,
    rows: int,
    columns: int,
    share_y: bool = False,
) -> tuple[Picture, np.ndarray]:
    """An empty figure with its title, and axes [rows, columns]."""
    text = " · ".join(part for part in (title, note) if part)
    text = textwrap.fill(text, int(12.5 * width), break_on_hyphens=False)
    with style():
        height += 0.15 * text.count("\n")
        figure = Picture(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=share_y)
        if text:
            figure.suptitle(text, x=0.01, ha="left", fontsize=9, weight="bold")
    return figure, axes


def _sentence(title: str, note: str, text: str) -> Picture:
    """A figure's title over the reason why there is nothing to draw."""
    figure, axes = _canvas(title, note, FULL, 0.7, 1, 1)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0, 0.5, text, va="center", transform=axes[0, 0].transAxes)
    figure.alt = _alt(title, note, [text.removesuffix(".")])
    return figure


def _width(panels: Sequence) -> float:
    return HALF if len(panels) == 1 else FULL


def _interval(ax: Axes, mean: float, low: float, high: float, y: float, look: Look) -> None:
    ax.plot([low, high], [y, y], color=look.color, lw=1.1, solid_capstyle="butt")
    ax.plot([mean], [y], color=look.color, marker=look.marker, ms=4.2, ls="")


def _mark_line(
    ax: Axes,
    value: float,
    label: str,
    horizontal: bool = False,
    dash: Any = (0, (4, 2)),
    below: bool = False,
) -> None:
    """A labelled reference line; the words stand above it, or `below` a horizontal one."""
    draw = ax.axhline if horizontal else ax.axvline
    draw(value, color="#666666", lw=0.9, ls=dash, zorder=1)
    place, frame = ((0.99, value), ("axes fraction", "data")) if horizontal else (
        (value, 1.0), ("data", "axes fraction"))  # fmt: skip
    ax.annotate(label, place, xycoords=frame, xytext=(0, -1.5 if below else 1.5),
                textcoords="offset points", ha="right" if horizontal else "center",
                va="top" if below else "bottom", fontsize=6.5, color="#444444")  # fmt: skip


def _boxed(ax: Axes, x: float, y: float, text: str) -> None:
    box = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 0.8}
    ax.text(x, y, text, ha="center", va="center", fontsize=6.5, bbox=box, zorder=4)


def _legend(figure: Figure, kinds: Mapping[str, Look], cue: str) -> None:
    handles = [
        mpl.lines.Line2D([], [], color=look.color,
                         marker=look.marker if cue != "dash" else "",
                         ls=look.dash if cue != "marker" else "-",
                         lw=1.1 if cue == "marker" else 1.4)
        for look in kinds.values()
    ]  # fmt: skip
    figure.legend(handles, list(kinds), loc="outside lower center", ncols=min(4, len(kinds)))


def _mode_looks(modes: Iterable[str]) -> dict[str, Look]:
    modes = list(modes)
    spare = looks(mode for mode in modes if mode not in MODE_LOOKS)
    return {mode: MODE_LOOKS.get(mode) or spare[mode] for mode in modes}


def _alt(title: str, note: str, words: Iterable[str]) -> str:
    head = f"{title} ({note})" if note else title
    return f"{head}. " + "; ".join(itertools.islice(words, 12)) + "."
