"""A table in, a figure out: training, scores, differences and studies; nothing is computed here.

Shares are fractions in tables and percent on axes. Every figure takes a `note` (e.g. "mini-world"),
which stands in its title.
"""

from __future__ import annotations

import functools
import itertools
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image

from sdslib.metrics import HUMAN_WINOGROUND
from sdslib.results import formatting
from sdslib.show import style
from sdslib.show.style import FULL, HALF, LOOKS, Kinds, Picture, looks, styled

CHANGE = "Change of score"
Labels = Mapping[tuple[str, str], str]  # tag and label -> the text beside its row

# --- training ------------------------------------------------------------------------------------

_PANELS = {
    "clip": "L_CLIP (nats)",
    "sds": "L_{term} ({unit})",
    "eps_error": "eps error per element",
    "grad_ratio": "|grad L_{term}| / |grad L_CLIP|",
    "lr": "learning rate",
}


@styled()
def history(table: pd.DataFrame, note: str = "", absent: str = "not part of this run") -> Picture:
    """Six curves of a run's history over its steps.

    Columns step and, where the arm has them, clip, sds, eps_error (mean squared, per latent
    element), grad_ratio (weighted L_SDS over L_CLIP), lr, and of the validation set `val_` and its
    metrics, of which the first is drawn. A column `run` draws several. `absent` is what the panel
    of an empty column says. The table's `attrs` may name the term that is none of SDS.
    """
    term = table.attrs.get("term") or "SDS"
    unit = "nats" if term in ("choice", "margin") else "squared error"
    table = table if "run" in table else table.assign(run="")
    kinds = looks(table["run"])
    chosen = next((c for c in table if c.startswith("val_")), "val_text")
    panels = _PANELS | {chosen: f"validation {chosen.removeprefix('val_')} score (%)"}
    figure, axes = style.canvas("Training curves", note, FULL, 3.6, len(panels), columns=3)
    for ax, (column, label) in zip(axes, panels.items(), strict=True):
        part = table.dropna(subset=[column]) if column in table else table.iloc[:0]
        if part.empty:
            ax.text(0.5, 0.5, absent, transform=ax.transAxes, ha="center", color="#666")
            ax.set(title=label.format(term=term, unit=unit))
            ax.set_axis_off()
            continue
        style.curves(ax, part, "step", column, "run", kinds)
        ax.set_title(label.format(term=term, unit=unit))
        ax.yaxis.set_major_formatter(style.percent if column == chosen else style.plain)
        if column == "grad_ratio":
            style.log_axis(ax, 0.004, 0.015)  # the line is in the panel, with room for its words
            style.mark_line(ax, 0.01, "inert below 1%", side="below")
        if column == "val_text":
            style.mark_line(ax, 0.25, "chance", side="above")
    for ax in axes[-3:]:
        ax.set_xlabel("step")
    style.legend(figure, kinds)
    told = table.filter(["run", "clip", "sds", chosen]).groupby("run").last(numeric_only=True)
    ends = {run: [f"{c} {v:.3g}" for c, v in row.dropna().items()] for run, row in told.iterrows()}
    return figure.telling(
        f"{run or 'the run'} ends with " + ", ".join(e) for run, e in ends.items()
    )


# --- scores and differences ----------------------------------------------------------------------


@styled()
def scores_by_tag(
    table: pd.DataFrame,
    note: str = "",
    human: Mapping[str, float] | None = HUMAN_WINOGROUND,
    human_label: str = "human",
) -> Picture:
    """Shares with their intervals: one panel a metric, one row a label, one mark a model.

    Rows of `tables.tabulate` with a column `model`. The chance line is the table's; `human` maps
    metrics to shares (Winoground's by default; None where the set has none); say in `human_label`
    where they were measured on another set.
    """
    most = table.groupby("model")["n"].max()  # a model that scored fewer items than others says so
    few = {model: f"{model} ({n} items)" for model, n in most.items() if n < most.max()}
    table = table.replace({"model": few}).rename(columns={"accuracy": "mean"})
    kinds = looks(table["model"])
    figure, panels = _rows("Right items by tag", note, table, tag_labels(table), kinds)
    for ax, part in panels:
        ax.set(xlim=(-0.02, 1.02), xticks=[0, 0.25, 0.5, 0.75, 1])
        style.mark_line(ax, part["chance"].iloc[0], "chance")
        if human and (metric := part["metric"].iloc[0]) in human:
            style.mark_line(ax, human[metric], human_label, dash=(0, (1, 1.5)))
    return figure.telling(
        f"{r.model} {r.metric} {r.mean:.1%} ({r.low:.1%} to {r.high:.1%})"
        for r in table[table["label"] == "all"].itertuples()
    )


@styled()
def scores_by_set(table: pd.DataFrame, note: str = "") -> Picture:
    """Shares with their intervals, one row a set; the gray mark of a row is its chance.

    Columns set, metric, model, n, accuracy, low, high, chance.
    """
    labels = {("set", r.set): f"{r.set}\n({r.metric})" for r in table.itertuples()}
    table = table.rename(columns={"accuracy": "mean"})
    table = table.assign(tag="set", label=table["set"], metric="right items")
    kinds = looks(table["model"])
    figure, ((ax, part),) = _rows("Right items by set", note, table, labels, kinds)
    ax.set(xlim=(-0.02, 1.02), xticks=[0, 0.25, 0.5, 0.75, 1])
    chances, places = part.drop_duplicates("set")["chance"], np.arange(len(labels))
    ax.vlines(chances, places - 0.42, places + 0.42, color="#888888", lw=2.5, zorder=0)
    ax.annotate("chance", (chances.iloc[0], -0.5), ha="center", va="bottom", fontsize=6.5,
                color="#444444", annotation_clip=False)  # fmt: skip
    return figure.telling(f"{r.set}: {r.model} {r.mean:.1%}" for r in table.itertuples())


@styled()
def before_after(
    table: pd.DataFrame, note: str = "", labels: Labels | None = None, title: str = CHANGE
) -> Picture:
    """Paired differences with their intervals; the gray band is too small for this set to show.

    Rows of `comparison.compare`; a column `model` or `comparison` draws several a label.
    Numbers at the right are items that went right and wrong, and Holm's p where it is below 0.05.
    """
    table = table.rename(columns={"comparison": "model", "difference": "mean"})
    table = table if "model" in table else table.assign(model="")
    names = table["model"].unique()
    kinds = looks(names) if len(names) > 1 else {names[0]: LOOKS[1]}
    figure, panels = _rows(title, note, table, labels or tag_labels(table), kinds, "points")
    for ax, part in panels:
        ax.use_sticky_edges = False
        widths, left, thick = 2 * part["mdd"], -part["mdd"], 0.8 / len(kinds)
        ax.barh(part["place"], widths, thick, left, color="#e8e8e8", lw=0, zorder=0)
        ax.axvline(0, color="black", lw=0.8)
        for r in part.itertuples():
            sure = f" p {formatting.p_value(r.p_holm)}" if r.p_holm < 0.05 else ""
            ax.annotate(f"+{r.up:.0f}/−{r.down:.0f}{sure}", (1.01, r.place), va="center",
                        xycoords=("axes fraction", "data"), fontsize=6)  # fmt: skip
    return figure.telling(
        f"{r.model} {r.metric if labels is None else f'{r.tag} {r.label}'} ".lstrip()
        + f"{100 * r.mean:+.1f} points "
        + f"({100 * r.low:+.1f} to {100 * r.high:+.1f})"
        for r in (table[table["label"] == "all"] if labels is None else table).itertuples()
    )


def differences_by_set(table: pd.DataFrame, note: str = "") -> Picture:
    """`before_after` of `side_by_side.differences`: one row a set and metric."""
    rows = table.assign(tag=table["set"], label=table["metric"])
    labels = {(r.set, r.metric): f"{r.set}\n{r.metric} ({r.n})" for r in table.itertuples()}
    return before_after(rows.assign(metric="difference"), note, labels, "Difference on every set")


def tag_labels(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(tag, label) -> tick text, in the table's order; macro averages have no n of items."""
    found: dict[tuple[str, str], str] = {}
    for row in table.itertuples():
        words = "all" if row.tag == "all" else formatting.tag(row.tag, str(row.label))
        text = textwrap.shorten(words, 26, placeholder="…")
        found.setdefault((row.tag, row.label), f"{text} ({row.n})")
    return found


def _rows(
    title: str, note: str, table: pd.DataFrame, labels: Labels, kinds: Kinds, unit: str = "%"
) -> tuple[Picture, list[tuple[Axes, pd.DataFrame]]]:
    """One panel a metric and one row a label, with an interval for each model.

    Columns metric, tag, label, model, mean, low, high. Gives each panel with its part of the table
    and, in the column `place`, where each mark stands.
    """
    import seaborn

    heights, middle = {key: index for index, key in enumerate(labels)}, (len(kinds) - 1) / 2
    beside = {m: (k - middle) * 0.8 / max(2, len(kinds)) for k, m in enumerate(kinds)}
    places = [heights[key] for key in zip(table["tag"], table["label"], strict=True)]
    table = table.assign(place=places + table["model"].map(beside))
    least = 0.3 if any("\n" in text for text in labels.values()) else 0.22
    height = 1.2 + len(labels) * max(least, 0.12 * len(kinds) + 0.03)
    parts = [part for _, part in table.groupby("metric", sort=False)]
    width = FULL if len(parts) > 1 else 0.75 * FULL
    figure, axes = style.canvas(title, note, width, height, len(parts))
    for ax, part in zip(axes, parts, strict=True):
        colors = [kinds[model].color for model in part["model"]]
        ax.hlines(part["place"], part["low"], part["high"], colors, lw=1.1)
        marks = {"s": 22, "linewidth": 0, "zorder": 3, "clip_on": False}
        marks |= style.cues("model", kinds)
        seaborn.scatterplot(part, x="mean", y="place", ax=ax, **marks)
        ax.set(xlabel="", ylabel="")
        ax.set_title(f"{part['metric'].iloc[0]} ({unit})", pad=12)
        share_axis(ax, labels)
        ax.tick_params(labelleft=ax is axes[0])
    style.legend(figure, kinds, ls="-")
    return figure, list(zip(axes, parts, strict=True))


def share_axis(ax: Axes, labels: Labels) -> None:
    """Shares along x; labels along y, with a line wherever their tag changes."""
    ax.set_yticks(range(len(labels)), list(labels.values()))
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.xaxis.set_major_formatter(style.percent)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_axisbelow(True)
    for index, ((tag, _), (after, _)) in enumerate(itertools.pairwise(labels)):
        if tag != after:
            ax.axhline(index + 0.5, color="#bbbbbb", lw=0.6)


# --- counts --------------------------------------------------------------------------------------


@styled()
def agreement(
    tables: Mapping[str, pd.DataFrame], note: str = "", title: str = "Student and teacher"
) -> Picture:
    """Counts of items by whether student (rows) and teacher (columns) are right, one map a set.

    The names of index and columns label the axes. Without a set that both scored it says so.
    """
    if not tables:
        figure, (ax,) = style.canvas(title, note, FULL, 0.7)
        ax.set_axis_off()
        alone = "The teacher scored no item: there is nothing to compare"
        ax.text(0, 0.5, f"{alone}.", va="center", transform=ax.transAxes)
        return figure.telling([alone])
    (rows, columns), count = next(iter(tables.values())).shape, min(4, len(tables))
    width = max(HALF, count * (0.75 + 0.62 * columns))
    height = -(-len(tables) // count) * (0.85 + 0.45 * rows) + 0.2
    figure, axes = style.canvas(title, note, width, height, len(tables), count)
    fold = functools.partial(textwrap.fill, width=13)
    for ax, (name, counts) in zip(axes, tables.items(), strict=True):
        shares = counts / max(counts.to_numpy().sum(), 1)
        words = counts.map("{:.0f}\n".format) + shares.map("{:.0%}".format)
        shares = shares.rename(index=fold, columns=fold)
        cells = {"linewidths": 0.5, "linecolor": "#bbbbbb", "clip_on": False}
        style.heatmap(ax, shares, words, vmin=0, vmax=1, cbar=False, **cells)
        ax.set_title("" if name == counts.index.name else name)
    words = {name: [f"{counts.index.name} {row} and {counts.columns.name} {column} {n}"
                    for (row, column), n in counts.stack().items()]
             for name, counts in tables.items()}  # fmt: skip
    return figure.telling(f"{name}: " + ", ".join(said) for name, said in words.items())


# --- studies -------------------------------------------------------------------------------------


@styled()
def tradeoff(
    table: pd.DataFrame,
    note: str = "",
    plain: Sequence[str] = (),
    over: str = "sds_weight",
    reference: str = "untouched",
    title: str = "",
) -> Picture:
    """Measures over a parameter (`sds_weight` as symmetric log, 0 included), each with its band.

    Columns `over`, measure, mean, low, high (shares) and, optionally, reference (a line, of the
    name `reference`) and series (several curves a panel, e.g. the arm). Measures in `plain` are no
    shares but positive numbers, and have a log axis.
    """
    table = table if "series" in table else table.assign(series="")
    measures, kinds = table["measure"].unique(), looks(table["series"])
    kinds = kinds if len(kinds) > 1 else dict.fromkeys(kinds, LOOKS[2])
    count, columns = len(measures), min(3, len(measures))
    width, height = max(HALF, 2.35 * columns), 0.5 + 2.0 * -(-count // columns)
    usual = {"sds_weight": "Gain and price of L_SDS"}
    title = title or usual.get(over, over.replace("_", " ").capitalize())
    figure, axes = style.canvas(title, note, width, height, count, columns)
    for ax, measure in zip(axes, measures, strict=True):
        part = table[table["measure"] == measure]
        style.curves(ax, part, over, "mean", "series", kinds)
        ax.set_xlabel(over)
        if over == "sds_weight":
            _weight_axis(ax, sorted(table[over].unique()))
        _reference_line(ax, part, "above", reference)
        if measure in plain:
            ax.set_title(measure)
            style.log_axis(ax)
        else:
            ax.set_title(f"{measure} (%)")
            ax.set_ylim(top=min(ax.get_ylim()[1], 1.005))  # no share is above 100%
            ax.yaxis.set_major_formatter(style.percent)
            ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    style.legend(figure, kinds)
    table = table[~table["measure"].isin(plain)]
    best = table.loc[table.groupby("measure", sort=False)["mean"].idxmax()]
    return figure.telling(
        f"{measure} is highest, {mean:.1%}, at {place:g}"
        for measure, mean, place in best[["measure", "mean", over]].itertuples(index=False)
    )


def _reference_line(ax: Axes, part: pd.DataFrame, side: str, name: str = "untouched") -> None:
    if "reference" in part and part["reference"].notna().any():
        style.mark_line(ax, part["reference"].dropna().iloc[0], name, side=side)


def _weight_axis(ax: Axes, weights: Sequence[float]) -> None:
    if positive := [w for w in weights if w > 0]:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.6)
        decades = np.arange(np.floor(np.log10(positive[0])), np.ceil(np.log10(positive[-1])) + 1)
        ticks = [0.0, *(10.0 ** decades[:: max(1, len(decades) // 4)])]
        ticks = [t for t in ticks if t <= positive[-1] * 1.01 and not 0 < t < positive[0]]
        ax.set_xticks(ticks if len(ticks) > 1 else [0, *positive])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(style.plain)
        ax.set_xlim(-positive[0] / 4, positive[-1] * 1.4)


@styled()
def bars_by_set(
    table: pd.DataFrame,
    note: str = "",
    title: str = "Which parameters have to move",
    reference: str = "untouched",
) -> Picture:
    """Shares by trainable set: one panel a measure, one row a set.

    Columns set, measure, mean, low, high and, optionally, parameters (millions or any text to put
    beside the set), reference (what the parameter `reference` names), series (e.g. the arm).
    """
    series, beside = table.get("series", ""), table.get("parameters")
    words = table["set"] if beside is None else table["set"] + "\n" + beside.astype(str)
    labels = dict(zip((("set", name) for name in table["set"]), words, strict=True))
    table = table.assign(metric=table["measure"], tag="set", label=table["set"], model=series)
    kinds = looks(table["model"])
    figure, panels = _rows(title, note, table, labels, kinds)
    for ax, part in panels:
        colors, thick = [kinds[model].color for model in part["model"]], 0.7 / max(2, len(kinds))
        ax.barh(part["place"], part["mean"], thick, color=colors, alpha=0.25, lw=0, zorder=0.9)
        ax.set_xlim(left=0)
        _reference_line(ax, part, "top", reference)
    return figure.telling(f"{r.measure} of {r.set} {r.mean:.1%}" for r in table.itertuples())


@styled()
def changes(table: pd.DataFrame, note: str = "") -> Picture:
    """Relative changes (norm of the change over the norm before): rows layers, columns sets.

    Blues are logarithmic from 0.01% to 100%; a layer that did not move is blank.
    """
    figure, (ax,) = style.canvas("What moved", note, FULL, 1.2 + 0.2 * len(table))
    words = table.map(lambda x: f"{100 * x:.0f}" if x >= 0.1 else f"{100 * x:.2g}")
    scale = {"format": style.percent, "label": "change (% of the norm)"}
    norm = LogNorm(1e-4, 1, clip=True)
    style.heatmap(ax, table, words, mask=table <= 0, norm=norm, cbar_kws=scale)
    ax.set_xticklabels(table.columns, rotation=30, ha="right")
    return figure.telling(f"{s} moves {layer} most" for s, layer in table.idxmax().items())


# --- pictures ------------------------------------------------------------------------------------


@styled()
def pictures(
    images: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int = 4,
    note: str = "",
    title: str = "",
) -> Picture:
    """A sheet of pictures, each with its caption below."""
    columns = max(1, min(columns, len(images)))
    width = max(HALF, min(FULL, 1.55 * columns))
    texts = [textwrap.fill(caption, int(width / columns * 15)) for caption in captions]
    tallest = max((text.count("\n") + 1 for text in texts), default=1)
    height = -(-len(images) // columns) * (width / columns * 0.92 + 0.14 * tallest + 0.06) + 0.25
    figure, axes = style.canvas(title, note, width, height, len(images), columns)
    for ax, image, text in zip(axes, images, texts, strict=False):
        small = max(image.size) <= 128
        ax.imshow(np.asarray(image), interpolation="nearest" if small else "antialiased")
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(text, fontsize=7, labelpad=2)
        ax.spines[:].set_visible(False)
    figure.head, figure.photos = figure.head or "Pictures", True
    return figure.telling(captions)


@styled()
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
