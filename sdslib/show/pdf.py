"""A page as a PDF: what its `<main>` holds, in order, with real text, bookmarks and page numbers.

The page says it all, also subject and date of the file, so equal pages give equal bytes. Known are
headings, paragraphs, lists, lines of code, figures, tables (in `div.scroll`) and sections. Of a
section stand its heading, its figures side by side, and the table in `.paper`, which no screen
shows.
"""

from __future__ import annotations

import base64
import io
import re
from datetime import datetime
from typing import Any

from bs4 import BeautifulSoup, Tag
from fpdf import FPDF, FontFace
from PIL import Image

from sdslib.show import figures

# What libraries make of the same page was compared in November 2026: xhtml2pdf 0.2 puts captions
# beside figures and shrinks long tables until nobody can read them, fpdf2's own `write_html` cuts
# wide figures and knows no floats, and WeasyPrint, which does well, needs pango on the system.
_MARGIN, _PICTURE = 18, 30  # millimeters
_PX = 25.4 / 110  # millimeters a pixel: 110 are as wide as an inch of a figure
_BODY, _SMALL, _CODE = 9.5, 7.5, 8.0  # points
_HEADS = {"h1": 17, "h2": 13, "h3": 10.5}
_INK, _PALE, _LINK = (17, 17, 17), (85, 85, 85), (0, 84, 140)


def from_page(page: str) -> bytes:
    """The page as a PDF on A4 paper."""
    soup = BeautifulSoup(page, "html.parser")
    paper = Paper(soup)
    for element in soup.select("main > *"):
        getattr(paper, f"put_{element.name}")(element)
    return bytes(paper.output())


class Paper(FPDF):
    """A4 with the workbench's fonts (DejaVu, as in its figures), numbered pages, and a place."""

    def __init__(self, page: BeautifulSoup) -> None:
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
        said = {str(tag["name"]): str(tag["content"]) for tag in page.select("meta[name]")}
        self.set_title(words(the(page, "title")))
        self.set_subject(said["description"])
        self.set_creation_date(datetime.fromisoformat(said["date"]))
        self.set_producer("")
        self.add_page()

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

    def lines(self, text: str, height: float, width: float = 0, **options: Any) -> None:
        """Text broken to the width; what follows begins below it."""
        self.multi_cell(width, height, text, align="L", new_x="LMARGIN", new_y="NEXT", **options)

    def under(self, caption: Tag | None, after: float) -> None:
        """A caption in small, pale letters."""
        if caption is not None:
            self.ink(_SMALL, color=_PALE)
            self.lines(words(caption), 3.8)
            self.ln(after)

    def put_nav(self, _: Tag) -> None:
        """Nothing: the bookmarks are the paper's contents."""

    def put_h1(self, element: Tag) -> None:
        """The title."""
        self.ink(_HEADS["h1"], bold=True)
        self.lines(words(element), 8)

    def put_h2(self, element: Tag) -> None:
        """A heading that stays with what follows, and a bookmark."""
        chapter = element.name == "h2"
        self.need(60 if chapter else 35)  # a chapter's first part has a heading of its own
        self.ln(3 if chapter else 1.5)
        self.start_section(words(element), 0 if chapter else 1)
        self.ink(_HEADS[element.name], bold=True)
        self.lines(words(element), _HEADS[element.name] * 0.5)
        self.ln(1)

    put_h3 = put_h2

    def put_p(self, element: Tag) -> None:
        """Sentences broken to the paper's width; a subtitle is pale, a warning stands in a box."""
        kind = element.get_attribute_list("class")
        if "subtitle" in kind:
            self.ink(_BODY, color=_PALE)
            self.lines(words(element), 5)
            self.ln(2)
        elif "warning" in kind:
            self.need(16)
            self.ink(_BODY)
            self.set_fill_color(255, 247, 224)
            self.set_draw_color(230, 159, 0)
            self.lines(words(element), 4.6, border=1, fill=True, padding=(1.5, 2.5))
            self.set_fill_color(255, 255, 255)
            self.ln(3)
        else:
            self.need(10)
            self.write_pieces(element)
            self.ln(6.4)

    def put_ul(self, element: Tag) -> None:
        """A line or more for each item, behind a bullet."""
        for item in element.find_all("li"):
            self.need(10)
            self.ink(_BODY)
            self.write(4.6, "•  ")
            self.write_pieces(item)
            self.ln(4.6)

    def write_pieces(self, element: Tag) -> None:
        """Text with the links in it."""
        for piece in element.children:
            link = str(piece["href"]) if isinstance(piece, Tag) and piece.name == "a" else ""
            self.ink(_BODY, color=_LINK if link else _INK)
            self.write(4.6, re.sub(r"\s+", " ", piece.get_text()), link)

    def put_pre(self, element: Tag) -> None:
        """Lines of equal letters on a gray ground."""
        self.ink(_CODE, family="mono")
        self.set_fill_color(244, 246, 248)
        for line in element.get_text().splitlines():
            self.lines(line, 4.2, fill=True, padding=(1, 2))
        self.set_fill_color(255, 255, 255)
        self.ln(2)

    def put_div(self, element: Tag) -> None:
        """A table over the whole width; its head stands again on every further page."""
        self.need(30)
        self.under(element.caption, 0.8)
        rows = [[words(cell) for cell in row.select("th, td")] for row in element.find_all("tr")]
        self.ink(_SMALL, bold=True)  # as wide as the widest letters need
        columns = list(zip(*rows, strict=True))
        widths = [min(110.0, max(map(self.get_string_width, column))) + 3 for column in columns]
        self.ink(_SMALL)
        self.set_draw_color(205, 205, 205)
        with self.table(
            rows,
            col_widths=tuple(widths),
            width=min(self.epw, sum(widths)),
            align="LEFT",
            text_align="LEFT",
            line_height=4.0,
            padding=(0.5, 1),
            borders_layout="HORIZONTAL_LINES",
            headings_style=FontFace(emphasis="BOLD", fill_color=(238, 241, 244)),
        ):
            pass
        self.ln(3.5)

    def put_figure(self, element: Tag) -> None:
        """The figure in its native size, at most the paper's width, with its caption."""
        picture, alt = _picture(element)
        width = min(self.epw, int(str(the(element, "img")["width"])) * _PX)
        self.need(width * picture.height / picture.width + 10)
        self.image(picture, w=width, alt_text=alt)
        self.ln(1)
        self.under(element.figcaption, 3)

    def put_section(self, element: Tag) -> None:
        """An example on one page: its heading, its pictures side by side, the table below them."""
        self.need(_PICTURE + 38)
        self.ink(_BODY, bold=True)
        self.lines(": ".join(the(element, "h3").stripped_strings), 5)
        top = below = self.get_y() + 0.5
        for n, figure in enumerate(element.select("figure:has(img)")):
            left, (picture, alt) = _MARGIN + n * 88, _picture(figure)
            self.image(picture, left, top, _PICTURE, _PICTURE, keep_aspect_ratio=True, alt_text=alt)
            below = max(below, top + _PICTURE)
            self.set_xy(left + _PICTURE + 2, top)
            self.ink(_SMALL + 1)
            self.lines(words(the(figure, "figcaption")), 4.2, 50)
            below = max(below, self.get_y())
        self.set_xy(_MARGIN, below + 1.5)
        self.put_div(the(element, ".paper"))
        self.ln(2)


def the(element: Tag, selector: str) -> Tag:
    """The first element in this one that the selector finds."""
    return element.select(selector, limit=1)[0]


def words(element: Tag) -> str:
    """The element's text in one line."""
    return " ".join(element.get_text().split())


def _picture(element: Tag) -> tuple[Image.Image, str]:
    """The picture that an element holds, and what it says to who cannot see it."""
    img = the(element, "img")
    data = str(img["src"]).partition(";base64,")[2]
    return Image.open(io.BytesIO(base64.b64decode(data))), str(img["alt"])
