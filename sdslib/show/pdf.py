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
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from bs4 import BeautifulSoup, Tag
from fpdf import FPDF, FontFace
from PIL import Image

from sdslib.show.style import FONTS

# What libraries make of the same page was compared in November 2026: xhtml2pdf 0.2 puts captions
# beside figures and shrinks long tables until nobody can read them, fpdf2's own `write_html` cuts
# wide figures and knows no floats, and WeasyPrint, which does well, needs pango on the system.
_MARGIN, _PICTURE = 18, 30  # millimeters
_PX = 25.4 / 110  # millimeters a pixel: 110 are as wide as an inch of a figure
_BODY, _SMALL, _CODE = 9.5, 7.5, 8.0  # points
_INK, _PALE, _LINK = (17, 17, 17), (85, 85, 85), (0, 84, 140)


def from_page(page: str) -> bytes:
    """The page as a PDF on A4 paper."""
    soup = BeautifulSoup(page, "html.parser")
    paper = Paper(soup)
    for element in soup.select("main > :not(nav, .take)"):  # bookmarks are the paper's contents
        getattr(paper, f"put_{element.name}")(element)
    return bytes(paper.output())


class Paper(FPDF):
    """A4 with the workbench's fonts (DejaVu, as in its figures), numbered pages, and a place.

    `put_h1` to `put_section` each print an element of that name where the place is.
    """

    def __init__(self, page: BeautifulSoup) -> None:
        super().__init__(format="A4")
        self.add_font("sans", "", FONTS / "DejaVuSans.ttf")
        self.add_font("sans", "B", FONTS / "DejaVuSans-Bold.ttf")
        self.add_font("mono", "", FONTS / "DejaVuSansMono.ttf")
        self.set_margins(_MARGIN, _MARGIN)
        self.c_margin = 0  # text begins where tables and pictures do
        self.set_auto_page_break(True, _MARGIN)
        self.set_lang("en")
        said = {str(tag["name"]): str(tag["content"]) for tag in page.select("meta[name]")}
        self.set_title(_words(_the(page, "title")))
        self.set_subject(said["description"])
        self.set_creation_date(datetime.fromisoformat(said["date"]))
        self.set_producer("")
        self.add_page()

    def footer(self) -> None:
        """The page's number, as FPDF asks for it at the end of each page."""
        self.set_y(-12)
        self.ink(_SMALL, _PALE)
        self.cell(0, 4, f"{self.page_no()} / {{nb}}", align="R")

    def need(self, height: float) -> None:
        """Begin a new page where less than `height` millimeters are left on this one."""
        if self.will_page_break(height):
            self.add_page()

    def ink(self, size: float, color: tuple = _INK, style: str = "", family: str = "sans") -> None:
        """The letters from here on."""
        self.set_font(family, style, size)
        self.set_text_color(*color)

    def lines(self, text: str, height: float, width: float = 0, **options: Any) -> None:
        """Text broken to the width; what follows begins below it."""
        self.multi_cell(width, height, text, align="L", new_x="LMARGIN", new_y="NEXT", **options)
        self.set_fill_color(255, 255, 255)

    def under(self, caption: Tag | None, after: float) -> None:
        """A caption in small, pale letters."""
        if caption is not None:
            self.ink(_SMALL, _PALE)
            self.lines(_words(caption), 3.8)
            self.ln(after)

    def put_h1(self, element: Tag) -> None:
        self.ink(17, style="B")
        self.lines(_words(element), 8)

    def put_h2(self, element: Tag, size: float = 13, room: float = 60) -> None:
        # The heading stays with what follows: a chapter's first part has a heading of its own.
        self.need(room)
        self.ln(size * 0.23)
        self.start_section(_words(element), level=int(element.name == "h3"))
        self.ink(size, style="B")
        self.lines(_words(element), size * 0.5)
        self.ln(1)

    def put_h3(self, element: Tag) -> None:
        self.put_h2(element, size=10.5, room=35)

    def put_p(self, element: Tag) -> None:
        kind = element.get_attribute_list("class")
        if "subtitle" in kind:
            self.ink(_BODY, _PALE)
            self.lines(_words(element), 5)
            self.ln(2)
        elif "warning" in kind:
            self.need(16)
            self.ink(_BODY)
            self.set_fill_color(255, 247, 224)
            self.set_draw_color(230, 159, 0)
            self.lines(_words(element), 4.6, border=1, fill=True, padding=(1.5, 2.5))
            self.ln(3)
        else:
            self.write_pieces(element, after=6.4)

    def put_ul(self, element: Tag) -> None:
        for item in element.find_all("li"):
            self.write_pieces(item, before="•  ", after=4.6)
        self.ln(2)

    def write_pieces(self, element: Tag, after: float, before: str = "") -> None:
        """Text with the links in it."""
        self.need(10)
        self.ink(_BODY)
        self.write(4.6, before)
        for piece in element.children:
            link = str(piece["href"]) if isinstance(piece, Tag) and piece.name == "a" else ""
            self.ink(_BODY, _LINK if link else _INK)
            self.write(4.6, re.sub(r"\s+", " ", piece.get_text()), link)
        self.ln(after)

    def put_pre(self, element: Tag) -> None:
        self.ink(_CODE, family="mono")
        for line in element.get_text().splitlines():
            self.set_fill_color(244, 246, 248)
            self.lines(line, 4.2, fill=True, padding=(1, 2))
        self.ln(2)

    def put_div(self, element: Tag) -> None:
        # A table; its head stands again on every further page.
        self.need(30)
        self.under(element.caption, 0.8)
        rows = [[_words(cell) for cell in row.select("th, td")] for row in element.select("tr")]
        self.ink(_SMALL, style="B")  # as wide as the widest letters need
        widths = self.widths([*zip(*rows, strict=True)])
        self.ink(_SMALL)
        self.set_draw_color(205, 205, 205)
        look: dict[str, Any] = {"borders_layout": "HORIZONTAL_LINES", "padding": (0.5, 1)}
        look["headings_style"] = FontFace(emphasis="BOLD", fill_color=(238, 241, 244))
        look |= {"align": "LEFT", "text_align": "LEFT", "line_height": 4.0}
        with self.table(rows, col_widths=widths, width=min(self.epw, sum(widths)), **look):
            pass  # leaving prints it
        self.ln(3.5)

    def widths(self, columns: Sequence[Sequence[str]]) -> list[float]:
        """As wide as each column's texts; on paper too narrow, what its words leave free."""
        whole = [min(110.0, max(map(self.get_string_width, column))) + 3 for column in columns]
        words = [
            max(map(self.get_string_width, " ".join(column).split() or [""])) for column in columns
        ]
        least = [min(pair) for pair in zip(whole, (word + 3 for word in words), strict=True)]
        share = (self.epw - sum(least)) / max(sum(whole) - sum(least), 1e-9)
        share = min(max(share, 0.0), 1.0)
        return [a + share * (b - a) for a, b in zip(least, whole, strict=True)]

    def put_figure(self, element: Tag) -> None:
        picture, alt = _picture(element)
        width = min(self.epw, int(str(_the(element, "img")["width"])) * _PX)
        self.need(width * picture.height / picture.width + 10)
        self.image(picture, w=width, alt_text=alt)
        self.ln(1)
        self.under(element.figcaption, 3)

    def put_section(self, element: Tag) -> None:
        models = len(element.select(".paper tr"))
        self.need(_PICTURE + 30 + 6 * models)  # the item is not torn
        self.ink(_BODY, style="B")
        self.lines(": ".join(_the(element, "h3").stripped_strings), 5)
        top = below = self.get_y() + 0.5
        for n, figure in enumerate(element.select("figure:has(img)")):
            left, (picture, alt) = _MARGIN + n * 88, _picture(figure)
            self.image(picture, left, top, _PICTURE, _PICTURE, keep_aspect_ratio=True, alt_text=alt)
            self.set_xy(left + _PICTURE + 2, top)
            self.ink(_SMALL + 1)
            self.lines(_words(_the(figure, "figcaption")), 4.2, 50)
            below = max(below, top + _PICTURE, self.get_y())
        self.set_xy(_MARGIN, below + 1.5)
        self.put_grids(element.select("table.grid"))
        self.put_div(_the(element, ".paper"))
        self.ln(2)

    def put_grids(self, grids: Sequence[Tag]) -> None:
        """The scores of each model side by side: rows are images, columns captions."""
        self.need(18)
        top = self.get_y()
        for n, grid in enumerate(grids[:4]):
            left = _MARGIN + n * 44
            self.set_xy(left, top)
            self.ink(_SMALL - 1, style="B")
            self.cell(42, 3.6, self.fitting(_words(_the(grid, "caption b")), 41))
            for at, cell in enumerate(grid.select("td.cell")):
                shade = re.search("#([0-9a-f]{6})", str(cell.get("style")))
                self.set_xy(left + at % 2 * 20, top + 4 + at // 2 * 5)
                self.ink(_SMALL, style="B" * (at in (0, 3)))  # the true pairs
                self.set_fill_color(*bytes.fromhex(shade[1] if shade else "ffffff"))
                self.cell(20, 5, _words(cell), border=1, fill=True, align="C")
        self.set_xy(_MARGIN, top + (16 if grids else 0))
        self.set_fill_color(255, 255, 255)

    def fitting(self, text: str, width: float) -> str:
        """As much of the text as the width holds."""
        while self.get_string_width(text) > width:
            text = text[:-2].rstrip() + "…"
        return text


def _the(element: Tag, selector: str) -> Tag:
    return element.select(selector, limit=1)[0]


def _words(element: Tag) -> str:
    return " ".join(element.get_text().split())


def _picture(element: Tag) -> tuple[Image.Image, str]:
    img = _the(element, "img")
    data = str(img["src"]).partition(";base64,")[2]
    return Image.open(io.BytesIO(base64.b64decode(data))), str(img["alt"])
