"""Text, tables and figures in order, printed twice: as one HTML page and as a PDF.

Both hold everything they show, and nothing of the machine or the hour that made them: the same
blocks give the same bytes. The PDF has real text, bookmarks, page numbers and repeated table heads.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

from fpdf import FPDF, FontFace
from PIL import Image

from sdslib.show import figures, page

_MARGIN, _PICTURE = 18, 30  # millimeters
_BODY, _SMALL, _CODE = 9.5, 7.5, 8.0  # points
_HEADS = {1: 17, 2: 13, 3: 10.5}
_INK, _PALE, _LINK = (17, 17, 17), (85, 85, 85), (0, 84, 140)
_DPI = 220
_LONG = ' class="long"'  # cells that may be broken; all others keep to one line, and scroll


@dataclass(frozen=True)
class Link:
    """Words that lead somewhere; followed only when a reader asks."""

    text: str
    url: str


class Block(Protocol):
    """A piece of a document that knows how to stand on a page and on paper."""

    def html(self) -> str:
        """The block as HTML that refers to nothing outside itself."""

    def print(self, pdf: Paper) -> None:
        """Put the block at the paper's current place."""


@dataclass(frozen=True)
class Heading:
    """The title of a section; level 2 is a chapter, 3 a part of one."""

    text: str
    level: int = 2

    @property
    def anchor(self) -> str:
        """The name that links within the page use."""
        return re.sub(r"\W+", "-", self.text.lower()).strip("-")

    def html(self) -> str:
        """An `<h2>` or `<h3>` with its anchor."""
        tag = f"h{self.level}"
        return f'<{tag} id="{page.text(self.anchor)}">{page.text(self.text)}</{tag}>'

    def print(self, pdf: Paper) -> None:
        """A heading that stays with what follows, and a bookmark."""
        pdf.need(60 if self.level == 2 else 35)  # a chapter's first part has a heading of its own
        pdf.ln(3 if self.level == 2 else 1.5)
        pdf.start_section(self.text, self.level - 2)
        pdf.ink(_HEADS[self.level], bold=True)
        pdf.multi_cell(0, _HEADS[self.level] * 0.5, self.text, new_x="LMARGIN", new_y="NEXT")
        pdf.ln(1)


@dataclass(frozen=True)
class Paragraph:
    """Sentences, with links among them; `kind` "warning" sets them apart, "item" makes a bullet."""

    pieces: Sequence[str | Link]
    kind: str = ""

    def html(self) -> str:
        """A `<p>`."""
        inner = "".join(
            f'<a href="{page.text(p.url)}">{page.text(p.text)}</a>'
            if isinstance(p, Link) else page.text(p)
            for p in self.pieces
        )  # fmt: skip
        return f'<p class="{self.kind}">{inner}</p>' if self.kind else f"<p>{inner}</p>"

    def print(self, pdf: Paper) -> None:
        """The sentences, broken to the paper's width."""
        if self.kind == "warning":
            pdf.boxed("".join(p.text if isinstance(p, Link) else p for p in self.pieces))
            return
        pdf.need(10)
        for piece in ("•  " if self.kind == "item" else "", *self.pieces):
            if isinstance(piece, Link):
                pdf.ink(_BODY, color=_LINK)
                pdf.write(4.6, piece.text, piece.url)
            else:
                pdf.ink(_BODY)
                pdf.write(4.6, piece)
        pdf.ln(4.6 if self.kind == "item" else 6.4)


def paragraph(*pieces: str | Link, kind: str = "") -> Paragraph:
    """A paragraph of these pieces."""
    return Paragraph(pieces, kind)


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    lines: Sequence[str]

    def html(self) -> str:
        """A `<pre>`, which wraps rather than hides what is long."""
        return f"<pre><code>{page.text(chr(10).join(self.lines))}</code></pre>"

    def print(self, pdf: Paper) -> None:
        """Lines of equal letters on a gray ground."""
        pdf.ink(_CODE, family="mono")
        pdf.set_fill_color(244, 246, 248)
        for line in self.lines:
            pdf.multi_cell(0, 4.2, line, fill=True, align="L", padding=(1, 2),
                           new_x="LMARGIN", new_y="NEXT")  # fmt: skip
        pdf.set_fill_color(255, 255, 255)
        pdf.ln(2)


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; the first column names the row."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """A `<table>` with scoped heads, in a frame that scrolls on narrow screens."""
        head = "".join(f'<th scope="col">{page.text(h)}</th>' for h in self.head)
        rows = "".join(
            f'<tr><th scope="row">{page.text(first)}</th>'
            + "".join(f"<td{_LONG * (len(cell) > 60)}>{page.text(cell)}</td>" for cell in rest)
            + "</tr>"
            for first, *rest in self.rows
        )
        caption = page.text(self.caption)
        return (
            f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">'
            f"<table><caption>{caption}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )

    def print(self, pdf: Paper) -> None:
        """The table over the whole width; its head stands again on every further page."""
        pdf.need(30)
        if self.caption:
            pdf.ink(_SMALL, color=_PALE)
            pdf.multi_cell(0, 3.8, self.caption, align="L", new_x="LMARGIN", new_y="NEXT")
            pdf.ln(0.8)
        pdf.ink(_SMALL, bold=True)  # as wide as the widest letters need
        cells = [self.head, *self.rows]
        widths = [
            min(110.0, max(pdf.get_string_width(row[n]) for row in cells)) + 3
            for n in range(len(self.head))
        ]
        pdf.ink(_SMALL)
        pdf.set_draw_color(205, 205, 205)
        with pdf.table(
            col_widths=tuple(widths),
            width=min(pdf.epw, sum(widths)),
            align="LEFT",
            text_align="LEFT",
            line_height=4.0,
            padding=(0.5, 1),
            borders_layout="HORIZONTAL_LINES",
            headings_style=FontFace(emphasis="BOLD", fill_color=(238, 241, 244)),
        ) as table:
            for cells_of_row in cells:
                row = table.row()
                for cell in cells_of_row:
                    row.cell(cell)
        pdf.ln(3.5)


@dataclass(frozen=True)
class Drawing:
    """A figure of `figures` with its caption; its alternative text is the figure's own."""

    figure: figures.Picture
    caption: str = ""

    @cached_property
    def png(self) -> bytes:
        """The picture's file, for page and paper."""
        return self.figure.png(_DPI)

    def html(self) -> str:
        """A `<figure>` that holds the picture itself."""
        width = round(self.figure.get_size_inches()[0] * 110)
        data = base64.b64encode(self.png).decode()
        under = f"<figcaption>{page.text(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure><img width="{width}" src="data:image/png;base64,{data}" '
            f'alt="{page.text(self.figure.alt)}">{under}</figure>'
        )

    def print(self, pdf: Paper) -> None:
        """The figure in its native size, at most the paper's width, with its caption."""
        picture = Image.open(io.BytesIO(self.png))
        width = min(pdf.epw, picture.width / _DPI * 25.4)
        height = width * picture.height / picture.width
        pdf.need(height + (10 if self.caption else 2))
        pdf.image(picture, w=width, alt_text=self.figure.alt)
        pdf.ln(1)
        if self.caption:
            pdf.ink(_SMALL, color=_PALE)
            pdf.multi_cell(0, 3.8, self.caption, align="L", new_x="LMARGIN", new_y="NEXT")
            pdf.ln(3)


@dataclass(frozen=True)
class Card:
    """One example: pictures with their captions beside a small table; `page` is its HTML."""

    title: str
    pictures: Sequence[tuple[Image.Image, str, str]]  # picture, alternative text, caption
    table: Table
    page: str

    def html(self) -> str:
        """The HTML it was given."""
        return self.page

    def print(self, pdf: Paper) -> None:
        """Title, pictures side by side, and the table below, on one page."""
        pdf.need(_PICTURE + 38)
        pdf.ink(_BODY, bold=True)
        pdf.multi_cell(0, 5, self.title, align="L", new_x="LMARGIN", new_y="NEXT")
        top, below = pdf.get_y() + 0.5, pdf.get_y()
        for n, (picture, alt, caption) in enumerate(self.pictures):
            left = pdf.l_margin + n * 88
            pdf.image(picture.convert("RGB"), x=left, y=top, w=_PICTURE, h=_PICTURE, alt_text=alt,
                      keep_aspect_ratio=True)  # fmt: skip
            pdf.set_xy(left + _PICTURE + 2, top)
            pdf.ink(_SMALL + 1)
            pdf.multi_cell(50, 4.2, caption, align="L", new_x="LMARGIN", new_y="NEXT")
            below = max(below, top + _PICTURE, pdf.get_y())
        pdf.set_xy(pdf.l_margin, below + 1.5)
        self.table.print(pdf)
        pdf.ln(2)


@dataclass(frozen=True)
class Document:
    """A title, what stands below it, and the blocks; `date` is that of what it tells of."""

    title: str
    subtitle: str
    date: datetime
    blocks: Sequence[Block] = field(default_factory=tuple)

    @property
    def chapters(self) -> Iterator[Heading]:
        """The headings that a table of contents names."""
        return (b for b in self.blocks if isinstance(b, Heading) and b.level == 2)


def html(document: Document, style: str = "") -> str:
    """The document as one page; `style` is added to its own."""
    links = " · ".join(f'<a href="#{page.text(h.anchor)}">{page.text(h.text)}</a>'
                       for h in document.chapters)  # fmt: skip
    body = "\n".join(block.html() for block in document.blocks)
    return page.document(
        document.title,
        f"<main><h1>{page.text(document.title)}</h1>"
        f'<p class="subtitle">{page.text(document.subtitle)}</p>'
        f'<nav aria-label="contents">{links}</nav>\n{body}</main>',
        page.asset("document.css") + style,
    )


def pdf(document: Document) -> bytes:
    """The document as a PDF on A4 paper."""
    paper = Paper(document)
    for block in document.blocks:
        block.print(paper)
    return bytes(paper.output())


class Paper(FPDF):
    """A4 with the workbench's fonts (DejaVu, as in its figures), numbered pages, and a place."""

    def __init__(self, document: Document) -> None:
        super().__init__(format="A4")
        for family, style, name in (
            ("sans", "", "DejaVuSans"),
            ("sans", "B", "DejaVuSans-Bold"),
            ("mono", "", "DejaVuSansMono"),
        ):
            self.add_font(family, style, figures.FONTS / f"{name}.ttf")
        self.set_margins(_MARGIN, _MARGIN)
        self.c_margin = 0  # text begins where tables and pictures do
        self.set_auto_page_break(True, _MARGIN)
        self.set_lang("en")
        self.set_title(document.title)
        self.set_subject(document.subtitle)
        self.set_creation_date(document.date)
        self.set_producer("")
        self.add_page()
        self.ink(_HEADS[1], bold=True)
        self.multi_cell(0, 8, document.title, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ink(_BODY, color=_PALE)
        self.multi_cell(0, 5, document.subtitle, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ln(2)

    def footer(self) -> None:
        """The page's number, as FPDF asks for it at the end of each page."""
        self.set_y(-12)
        self.ink(_SMALL, color=_PALE)
        self.cell(0, 4, f"{self.page_no()} / {{nb}}", align="R")

    def need(self, height: float) -> None:
        """Begin a new page where less than `height` millimeters are left on this one."""
        if self.will_page_break(height):
            self.add_page()

    def ink(
        self, size: float, bold: bool = False, color: tuple = _INK, family: str = "sans"
    ) -> None:
        """The letters from here on."""
        self.set_font(family, "B" if bold else "", size)
        self.set_text_color(*color)

    def boxed(self, text: str) -> None:
        """Sentences that must not be overlooked."""
        self.need(16)
        self.ink(_BODY)
        self.set_fill_color(255, 247, 224)
        self.set_draw_color(230, 159, 0)
        options: dict[str, Any] = {"border": 1, "fill": True, "padding": (1.5, 2.5), "align": "L"}
        self.multi_cell(0, 4.6, text, new_x="LMARGIN", new_y="NEXT", **options)
        self.set_fill_color(255, 255, 255)
        self.ln(3)
