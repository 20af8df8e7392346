"""The one look of every figure: seaborn's paper theme, and a marker, dash or hatch beside a color.

Every figure has its note (e.g. "mini-world") in its title and its alternative text in `alt`. The
native size fits half a page's width.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from sdslib.io.storage import write_bytes
from sdslib.results import takeaway

# Okabe and Ito's colors, which color-blind readers tell apart
BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, ORANGE, SKY, GRAY = "#CC79A7", "#E69F00", "#56B4E9", "#999999"
HALF, FULL = 3.5, 7.0  # inches
SCREEN_DPI, PRINT_DPI = 144, 300
FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"  # DejaVu, which all figures use
_STYLE: Any = {
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same on every machine
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "svg.hashsalt": "sdslib",
    "svg.fonttype": "none",  # letters stay letters, to be searched and edited
    "pdf.fonttype": 42,
    "mathtext.fontset": "stix",
}


# White becomes the dark theme's back, and every color keeps its hue. Photographs would be their
# negative: what shows some is there twice.
_DARK = (
    ".drawn { max-width: 100%; height: auto; } .drawn.night { display: none; } "
    ":is([data-jp-theme-light=false], .vscode-dark) { "
    ".drawn:not(.day, .night) { filter: invert(.93) hue-rotate(180deg); } "
    ".drawn.day { display: none; } .drawn.night { display: inline; } } "
    "@media (prefers-color-scheme: dark) { :root:has(> body > .atlas) { "
    ".drawn.day { display: none; } .drawn.night { display: inline; } } }"
)
_PAPER, _INK = "#111111", "#e8e8e8"  # of a picture in a dark theme


@dataclass(frozen=True)
class Look:
    """How one series looks: a color and three second cues, one of which every figure uses."""

    color: str
    marker: str = "o"
    dash: tuple[float, ...] = ()
    hatch: str = ""


Kinds = Mapping[str, Look]  # of the series of a figure, by name
LOOKS = (
    Look(BLACK, "o", (), ""),
    Look(BLUE, "s", (4, 1.5), "///"),
    Look(VERMILLION, "^", (6, 1, 1, 1), "..."),
    Look(GREEN, "D", (1, 1), "xxx"),
    Look(PURPLE, "v", (3, 1, 1, 1, 1, 1), "\\\\\\"),
    Look(ORANGE, "P", (8, 2), "---"),
    Look(SKY, "X", (2, 2), "+++"),
    Look(GRAY, "*", (1, 2), "ooo"),
)
_KNOWN = {"untouched": 0, "student": 0, "clip-only": 1, "L_CLIP": 1, "sds": 2, "teacher": 3}


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name: known models always have theirs, the others what is left, in order.

    A comparison "a against b" looks as b does, if nothing else looks so.
    """
    names = list(dict.fromkeys(names))
    known = [_KNOWN.get(name.split(" against ")[-1].split(" ")[0]) for name in names]
    owner = {index: name for name, index in zip(names[::-1], known[::-1], strict=True)}
    free = [index for index in range(len(LOOKS)) if index not in owner]
    others = itertools.cycle(free or range(len(LOOKS)))
    return {
        name: LOOKS[next(others) if index is None or owner[index] != name else index]
        for name, index in zip(names, known, strict=True)
    }


@contextmanager
def styled() -> Iterator[None]:
    """seaborn's paper theme with our letters and lines; all figures are drawn and saved inside."""
    import seaborn  # takes a second, so not before something is drawn

    theme = seaborn.plotting_context("paper", 8 / 8.8) | seaborn.axes_style("ticks")
    with mpl.rc_context(theme | _STYLE):
        yield


class Picture(Figure):
    """A matplotlib figure that a notebook shows without pyplot, with its alternative text."""

    head, alt = "", ""
    grows = False  # a picture that is soon drawn anew is not to be taken away
    photos = False  # shows some, which no theme may invert

    def telling(self, words: Iterable[str]) -> Picture:
        """The figure itself, with its title and these words (the first twelve) as its `alt`."""
        self.alt = f"{self.head}. " + "; ".join(itertools.islice(words, 12)) + "."
        return self

    def png(self, dpi: float = SCREEN_DPI * 1.5) -> bytes:
        """The picture as a PNG file; equal figures give equal bytes."""
        return _file(self, "png", dpi, {"Software": None})

    def svg(self) -> bytes:
        """The picture as an SVG file, whose letters are letters."""
        return _file(self, "svg", PRINT_DPI, {"Title": self.alt, "Date": None, "Creator": None})

    def img(self, width: int, dpi: float = SCREEN_DPI * 1.5, png: bytes | None = None) -> str:
        """The picture in HTML, `width` pixels or less, with its words; goes with a dark theme.

        `png` is what `png(dpi)` gave, where it is at hand.
        """
        day = png or self.png(dpi)
        shown = {"drawn": day}
        if self.photos:
            shown = {"drawn day": day, "drawn night": self._night(dpi)}
        told = f'alt="{html.escape(self.alt)}" width="{width}"'
        uris = {kind: base64.b64encode(png).decode() for kind, png in shown.items()}
        return f"<style>{_DARK}</style>" + "".join(
            f'<img class="{kind}" {told} src="data:image/png;base64,{uri}">'
            for kind, uri in uris.items()
        )

    def _night(self, dpi: float) -> bytes:
        """The same in light letters on dark paper."""
        letters = [(text, text.get_color()) for text in self.findobj(Text)]
        self.set_facecolor(_PAPER)
        for text, _ in letters:
            text.set_color(_INK)
        try:
            return self.png(dpi)
        finally:
            self.set_facecolor("white")
            for text, color in letters:
                text.set_color(color)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple:
        width, height = (round(side * SCREEN_DPI * 0.85) for side in self.get_size_inches())
        # JupyterLab and nbconvert take the HTML, which keeps the words and goes with a dark theme
        below = "" if self.grows else takeaway.of_figure(self.svg(), self.head)
        png = self.png()
        markup = f'<figure style="margin: 0">{self.img(width, png=png)}{below}</figure>'
        data = base64.b64encode(png).decode()
        shown = {"image/png": data, "text/plain": self.alt, "text/html": markup}
        return shown, {"image/png": {"alt": self.alt, "width": width, "height": height}}


def save(figure: Picture, folder: Path | str, name: str) -> list[Path]:
    """Write `name`.png, .svg and .pdf, each whole or not at all; equal figures give equal files."""
    png = {"Description": figure.alt, "Software": None}
    pdf = {"Title": figure.alt, "CreationDate": None, "Producer": None, "Creator": None}
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = {
        Path(folder, f"{name}.png"): _file(figure, "png", PRINT_DPI, png),
        Path(folder, f"{name}.svg"): figure.svg(),
        Path(folder, f"{name}.pdf"): _file(figure, "pdf", PRINT_DPI, pdf),
    }
    for path, data in files.items():
        write_bytes(path, data)
    return list(files)


def _file(figure: Figure, kind: str, dpi: float, metadata: dict) -> bytes:
    data = io.BytesIO()
    with styled():
        figure.savefig(data, format=kind, dpi=dpi, metadata=metadata)
    return data.getvalue()


# --- pieces of figures ---------------------------------------------------------------------------

percent = FuncFormatter(lambda share, _: f"{100 * share:g}".replace("-", "−"))
plain = FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−"))


def canvas(
    title: str, note: str, width: float, height: float, count: int = 1, columns: int = 0
) -> tuple[Picture, list[Axes]]:
    """A figure with its title, and `count` axes, `columns` (else all) in a row."""
    columns = columns or count
    text = " · ".join(part for part in (title, note) if part)
    text = textwrap.fill(text, int(12.5 * width), break_on_hyphens=False)
    height += 0.15 * text.count("\n")
    figure = Picture(figsize=(width, height), layout="constrained")
    figure.head = f"{title} ({note})" if note else title
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    if text:
        figure.suptitle(text, x=0.01, ha="left", fontsize=9, weight="bold")
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def cues(by: str, kinds: Kinds) -> dict[str, Any]:
    """What seaborn is told so that each name in the column `by` has its look."""
    palette, markers = ({n: getattr(k, c) for n, k in kinds.items()} for c in ("color", "marker"))
    return {"hue": by, "style": by, "palette": palette, "markers": markers, "legend": False}


def curves(ax: Axes, table: pd.DataFrame, x: str, y: str, by: str, kinds: Kinds) -> None:
    """A curve for each name in the column `by`, with a band where the table has low and high.

    So many points that marks would hide one another have none.
    """
    import seaborn

    few, whole = table[by].value_counts().max() <= 24, pd.api.types.is_integer_dtype(table[x])
    looked = cues(by, kinds) | ({"mew": 0, "ms": 5} if few else {"markers": False, "lw": 0.9})
    looked |= {"clip_on": False, "zorder": 3}  # no mark is cut where the axes end
    dashes = {name: look.dash or "" for name, look in kinds.items()}
    seaborn.lineplot(table, x=x, y=y, dashes=dashes, estimator=None, ax=ax, **looked)
    for name, part in table.sort_values(x).groupby(by) if "low" in table else ():
        fill: Any = {"color": kinds[name].color, "alpha": 0.18, "lw": 0}
        ax.fill_between(part[x], part["low"], part["high"], **fill)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=whole, steps=[1, 2, 5, 10]))
    ax.set(xlabel="", ylabel="")
    ax.grid(axis="y")


_WORDS = {"top": ("center", "bottom", 1.5), "above": ("right", "bottom", 1.5),
          "below": ("right", "top", -1.5)}  # fmt: skip


def mark_line(
    ax: Axes, value: float, label: str, side: str = "top", dash: Any = (0, (4, 2))
) -> None:
    """A labelled reference line: upright, or level with its words "above" or "below" it."""
    draw, (ha, va, away) = ax.axvline if side == "top" else ax.axhline, _WORDS[side]
    draw(value, color="#666666", lw=0.9, ls=dash, zorder=1)
    place, frame = ((value, 1), ax.get_xaxis_transform()) if side == "top" else (
        (0.99, value), ax.get_yaxis_transform())  # fmt: skip
    ax.annotate(label, place, xycoords=frame, xytext=(0, away), textcoords="offset points",
                ha=ha, va=va, fontsize=6.5, color="#444444")  # fmt: skip


def log_axis(ax: Axes, low: float = np.inf, high: float = 0.0) -> None:
    """A logarithmic y axis that reaches at least from low to high, and names values on its way."""
    ax.set_yscale("log")
    low, high = min(low, ax.get_ylim()[0]), max(high, ax.get_ylim()[1])
    ax.set_ylim(low, high)
    named = LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,), numticks=6)
    inside = [tick for tick in named.tick_values(low, high) if low <= tick <= high]
    # a narrow range has no round number in it
    ax.yaxis.set_major_locator(named if len(inside) > 1 else MaxNLocator(4))
    ax.yaxis.set_major_formatter(plain)
    ax.yaxis.set_minor_locator(NullLocator())


def heatmap(ax: Axes, values: pd.DataFrame, words: pd.DataFrame, **rest: Any) -> None:
    """seaborn's heat map in blues; `words` are the texts of the cells."""
    import seaborn

    # Black letters on all of them: seaborn's own choice of white or dark falls to a contrast of 2.3
    # in the middle, black on the last of these has 4.8.
    blues, ink = seaborn.blend_palette(["white", "#1f83bb"], as_cmap=True), {"color": "black"}
    seaborn.heatmap(values, annot=words, fmt="", cmap=blues, annot_kws=ink, ax=ax, **rest)
    ax.tick_params(length=0, rotation=0)


def legend(figure: Figure, kinds: Kinds, **fixed: Any) -> None:
    """The names of the series below the figure, with properties that all share; "" has no name."""
    handles = [
        Line2D([], [], **{"color": k.color, "marker": k.marker, "ls": (0, k.dash or None)} | fixed)
        for k in kinds.values()
    ]
    if any(kinds):
        figure.legend(handles, list(kinds), loc="outside lower center", ncols=min(4, len(kinds)))
