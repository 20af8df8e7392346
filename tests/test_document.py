"""One set of blocks, printed as a page and on paper, each whole and the same every time."""

import base64
import io
import re
import zlib
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest
from PIL import Image

from sdslib.show import document, figures
from sdslib.show.document import Card, Code, Document, Drawing, Heading, Link, Table, paragraph

LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest"}
DATE = datetime(2024, 5, 6, 7, 8, tzinfo=UTC)


class Page(HTMLParser):
    """What a page refers to, its pictures' alternative texts, and its words."""

    def __init__(self, text):
        super().__init__()
        self.outside, self.alts, self.links, self.anchors, self.words = [], [], [], [], []
        self.open, self.figures = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.append(given.get("id"))
        if tag == "figure":
            self.figures += 1
        if tag == "a":
            self.links.append(given["href"])
        elif "href" in given or "xlink:href" in given:
            self.outside.append(self.get_starttag_text())
        if tag == "img":
            self.alts.append(given.get("alt"))
        if tag in ("iframe", "embed", "object", "base") or given.get("http-equiv") == "refresh":
            self.outside.append(self.get_starttag_text())
        for name in LOADS & given.keys():
            if not given[name].startswith("data:image/"):
                self.outside.append(f"{name}={given[name]}")
        self.look(given.get("style") or "")
        if tag not in ("img", "meta", "br", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.look(data)
        else:
            self.words.append(data)

    def look(self, style):
        self.outside += re.findall(r"@import[^;]*|url\([^)]*\)", style)


@pytest.mark.parametrize(
    "markup",
    [
        '<img src="https://a.org/x.png" alt="x">',
        '<script src="x.js"></script>',
        '<link rel="stylesheet" href="x.css">',
        "<style>@import 'x.css';</style>",
        '<p style="background: url(x.png)">x</p>',
        '<iframe srcdoc="x"></iframe>',
        '<meta http-equiv="refresh" content="0">',
        '<svg><use href="x.svg#a"></use></svg>',
    ],
)
def test_what_leads_outside_a_page_is_seen(markup):
    assert Page(markup).outside


def pdf_text(data):
    """The text of each page of a PDF, through the fonts' own maps from glyphs to letters."""
    objects = dict(re.findall(rb"(\d+) 0 obj\n(.*?)endobj", data, re.DOTALL))

    def stream(number):
        body = objects[number].partition(b"stream\n")[2].rpartition(b"\nendstream")[0]
        return zlib.decompress(body) if b"FlateDecode" in objects[number] else body

    maps = {}
    for name, number in set(re.findall(rb"/(F\d+) (\d+) 0 R", data)):
        unicode_map = re.search(rb"/ToUnicode (\d+) 0 R", objects[number])[1]
        pairs = re.findall(rb"<([0-9A-Fa-f]{4})> <([0-9A-Fa-f]+)>", stream(unicode_map))
        maps[name] = {int(g, 16): bytes.fromhex(u.decode()).decode("utf-16-be") for g, u in pairs}
    pages = []
    for body in objects.values():
        if not re.search(rb"/Type /Page\b", body):
            continue
        content = stream(re.search(rb"/Contents (\d+) 0 R", body)[1])
        font, text = b"", []
        for name, shown in re.findall(rb"/(F\d+) [\d.]+ Tf|\(((?:\\.|[^\\)])*)\)", content, re.S):
            font = name or font
            plain = re.sub(rb"\\(.)", lambda m: {b"r": b"\r", b"n": b"\n"}.get(m[1], m[1]), shown,
                           flags=re.S)  # fmt: skip
            glyphs = [int.from_bytes(plain[i : i + 2], "big") for i in range(0, len(plain), 2)]
            text.append("".join(maps[font].get(g, "?") for g in glyphs))
        pages.append(" ".join(text))
    return pages


@pytest.fixture
def picture():
    return Drawing(figures.equation(r"a_\theta = b", "a theta equals b"), "What <it> says.")


@pytest.fixture
def whole(picture):
    square = Image.new("RGB", (64, 64), "orange")
    few = Table("", ("model", "margin"), [("untouched", "−0.1")])
    return Document(
        "Title & more",
        "below",
        DATE,
        [
            paragraph("Beware & <b>behold</b>.", kind="warning"),
            Heading("First chapter"),
            paragraph("After ", Link("a paper", "https://arxiv.org/abs/2307.09233?a=1&b=2"), "."),
            paragraph("one", kind="item"),
            picture,
            Heading("A part", 3),
            Table("Numbers of 2 things.", ("metric", "share"), [("text, all", "30.4% (27 to 33)")]),
            Heading("Second chapter"),
            Card("item 7", [(square, "an orange square", "caption 0: a <square>")], few,
                 '<article><img src="data:image/png;base64,AA" alt="x"></article>'),
            Code(["papermill a.ipynb b.ipynb -p x 1"]),
        ],
    )  # fmt: skip


def test_the_page_refers_to_nothing_outside_and_every_picture_says_what_it_shows(whole):
    found = Page(document.html(whole, ".x { color: red }"))
    assert not found.outside
    assert found.alts == ["a theta equals b", "x"]
    assert found.open == []


def test_markup_in_text_stays_text(whole):
    text = document.html(whole)
    assert "<b>" not in text
    assert "&lt;b&gt;behold" in text
    assert "<title>Title &amp; more</title>" in text
    assert "Title & more" in "".join(Page(text).words)


def test_links_within_the_page_lead_to_its_chapters(whole):
    found = Page(document.html(whole))
    inside = [link[1:] for link in found.links if link.startswith("#")]
    assert inside == ["first-chapter", "second-chapter"]
    assert set(inside) <= set(found.anchors)
    assert found.links[-1] == "https://arxiv.org/abs/2307.09233?a=1&b=2"


def test_the_picture_in_the_page_is_the_figure(picture):
    data = re.search(r"base64,([^\"]+)", picture.html())[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.format == "PNG"
        assert image.width / image.height == pytest.approx(
            picture.figure.get_figwidth() / picture.figure.get_figheight(), rel=0.05
        )


def test_the_pdf_can_be_searched_and_says_its_title_language_and_pictures(whole):
    data = document.pdf(whole)
    (text,) = pdf_text(data)
    for words in ("Title & more", "behold", "30.4% (27 to 33)", "−0.1", "papermill", "1 / 1"):
        assert words in re.sub(r"\s+", " ", text)
    assert b"/Lang (en)" in data
    for words in ("First chapter", "an orange square", "a theta equals b"):
        coded = words.encode("utf-16-be")
        assert words.encode() in data or coded in data or coded.hex().upper().encode() in data
    assert b"https://arxiv.org/abs/2307.09233?a=1&b=2" in data


def test_a_long_table_goes_on_with_its_head_on_the_next_page():
    rows = [(f"row {n}", str(n)) for n in range(150)]
    pages = pdf_text(document.pdf(Document("T", "", DATE, [Table("Long.", ("name", "n"), rows)])))
    assert len(pages) > 2
    assert all("name" in text for text in pages)
    assert "row 149" in pages[-1]


def test_what_belongs_together_is_not_torn_by_the_end_of_a_page(picture):
    filler = [paragraph("x") for _ in range(36)]
    told = Document("T", "", DATE, [*filler, Heading("Last chapter"), paragraph("its words")])
    pages = pdf_text(document.pdf(told))
    at = [n for n, text in enumerate(pages) if "Last chapter" in text]
    assert at == [n for n, text in enumerate(pages) if "its words" in text]


def test_the_same_blocks_give_the_same_bytes(whole):
    assert document.html(whole) == document.html(whole)
    assert document.pdf(whole) == document.pdf(whole)
