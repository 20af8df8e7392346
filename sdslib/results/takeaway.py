"""Figures and tables to take away: what stands below each of them, to download and to copy.

The files are in the page itself, so that they are there offline and in a notebook sent by mail.
"""

from __future__ import annotations

import base64
import html
import re
from urllib.parse import quote

import pandas as pd

from sdslib.io.progress import notebook_shell

LARGEST = 5000  # cells of a table; the files of a larger one are in its run's folder
_TEX = str.maketrans(
    {"−": "$-$", "–": "--", "·": r"$\cdot$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$",
     "→": r"$\to$", "“": "``", "”": "''", "…": r"\dots{}", "✓": "+", "✗": "$-$"}
)  # fmt: skip
_TEXT = "navigator.clipboard.writeText(decodeURIComponent(this.previousElementSibling.href.replace(/^[^,]*,/, '')))"  # noqa: E501
_PICTURE = "fetch(this.closest('figure').querySelector('img').src).then(r => r.blob()).then(b => navigator.clipboard.write([new ClipboardItem({'image/png': b})]))"  # noqa: E501
_PNG = "this.href = this.closest('figure').querySelector('img').src"


def csv(table: pd.DataFrame) -> str:
    """The table as CSV, with what names its rows."""
    return _flat(table).to_csv(index=False)


def latex(table: pd.DataFrame) -> str:
    """The same for LaTeX with booktabs, in characters that LaTeX has."""
    text = _flat(table).to_latex(index=False, escape=True, float_format="{:.4g}".format)
    return text.translate(_TEX)


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    named = any(name is not None for name in table.index.names)
    flat = table.reset_index(allow_duplicates=True) if named else table
    return flat.set_axis([" ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in flat],
                         axis=1)  # fmt: skip


def of_table(table: pd.DataFrame, name: str = "table") -> str:
    """The links below a table; none of an empty or a very large one."""
    if not 0 < table.size <= LARGEST:
        return ""
    files = {"CSV": ("csv", "text/csv", csv), "LaTeX": ("tex", "application/x-tex", latex)}
    links = [
        _link(label, f"{_named(name)}.{kind}", f"data:{mime};charset=utf-8,{quote(made(table))}")
        + _button(_TEXT, label)
        for label, (kind, mime, made) in files.items()
    ]
    return _below(links)


def of_figure(svg: bytes, name: str) -> str:
    """The links inside a `<figure>`, below its `<img>`, of which the PNG is."""
    name, data = _named(name), base64.b64encode(svg).decode()
    png = _link("PNG", f"{name}.png", "#", _PNG) + _button(_PICTURE, "PNG")
    return _below([png, _link("SVG", f"{name}.svg", f"data:image/svg+xml;base64,{data}")])


def in_notebook() -> None:
    """From here on a notebook shows every table with its links."""
    if shell := notebook_shell():
        formats = shell.display_formatter.formatters["text/html"]
        formats.for_type(pd.DataFrame, lambda table: table._repr_html_() + of_table(table))


def _named(title: str) -> str:
    """A file's name from a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "table"


def _link(label: str, file: str, address: str, script: str = "") -> str:
    click = f' onclick="{html.escape(script)}"' if script else ""
    return f'<a download="{file}" href="{address}"{click}>{label}</a>'


def _button(script: str, label: str) -> str:
    done = html.escape(f"{script}.then(() => {{ this.textContent = 'copied' }})")
    # no color of its own, so that it goes with a dark theme
    look = "font: inherit; color: inherit; background: none; border: 1px solid; margin-left: .4em"
    return f'<button style="{look}" aria-label="copy {label}" onclick="{done}">copy</button>'


def _below(links: list[str]) -> str:
    return f'<p class="take" style="font-size: .8em; margin: .3em 0">{" · ".join(links)}</p>'
