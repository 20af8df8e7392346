"""A page on paper: real text, nothing torn, and the same bytes every time."""

import re
import zlib

import pytest
from PIL import Image

from sdslib.show import page, pdf

SQUARE = Image.new("RGB", (64, 64), "orange")


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


def whole(body):
    return f"""<title>Title &amp; more</title><meta name="description" content="below">
    <meta name="date" content="2024-05-06T07:08:00+00:00"><main>{body}</main>"""


def table(rows, caption=""):
    head, *rest = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{row}</tr>" for row in rest)
    return f"<div><table>{caption}<thead><tr>{head}</tr></thead>{body}</table></div>"


FIGURE = f'<figure><img width="64" src="{page.data_uri(SQUARE)}" alt="an orange {{}}"></figure>'
PAGE = whole(
    f"""<h1>Title &amp; more</h1><p class="subtitle">below</p><nav>not on paper</nav>
    <p class="warning">Beware &amp; <b>behold</b>.</p>
    <h2>First chapter</h2><p>After
    <a href="https://arxiv.org/abs/2307.09233?a=1&amp;b=2">a paper</a>.</p>
    <ul><li>one</li></ul>{FIGURE.format("square")}
    <h3>A part</h3>{table([("metric", "share"), ("text", "30.4% (27 to 33)")], "Of two.")}
    <section><h3>item 7 <small>Object</small></h3>{FIGURE.format("box")[:-9]}
    <figcaption>caption 0: a &lt;box&gt;</figcaption></figure><figure>no picture</figure>
    <table><tr><td>only on a screen</td></tr></table>
    <div class="paper" hidden>{table([("model", "margin"), ("untouched", "−0.1")])}</div></section>
    <pre><code>papermill a.ipynb b.ipynb -p x 1</code></pre>"""
)


def test_the_pdf_can_be_searched_and_says_its_title_language_and_pictures():
    data = pdf.from_page(PAGE)
    (text,) = pdf_text(data)
    flat = re.sub(r"\s+", " ", text)
    for words in ("Title & more", "Beware & behold.", "30.4% (27 to 33)", "−0.1", "papermill",
                  "item 7: Object", "caption 0: a <box>", "1 / 1"):  # fmt: skip
        assert words in flat
    assert "not on paper" not in flat
    assert "only on a screen" not in flat
    assert b"/Lang (en)" in data
    for words in ("Title & more", "below", "First chapter", "an orange square", "an orange box"):
        coded = words.encode("utf-16-be")
        assert words.encode() in data or coded in data or coded.hex().upper().encode() in data
    assert b"https://arxiv.org/abs/2307.09233?a=1&b=2" in data
    assert b"D:20240506070800" in data


def test_a_long_table_goes_on_with_its_head_on_the_next_page():
    rows = [("name", "n"), *((f"row {n}", n) for n in range(150))]
    pages = pdf_text(pdf.from_page(whole(table(rows))))
    assert len(pages) > 2
    assert all("name" in text for text in pages)
    assert "row 149" in pages[-1]


@pytest.mark.parametrize("lines", range(34, 38))
def test_what_belongs_together_is_not_torn_by_the_end_of_a_page(lines):
    body = "<p>x</p>" * lines + "<h2>Last chapter</h2><p>its words</p>"
    pages = pdf_text(pdf.from_page(whole(body)))
    at = [n for n, text in enumerate(pages) if "Last chapter" in text]
    assert at == [n for n, text in enumerate(pages) if "its words" in text]


def test_the_same_page_gives_the_same_bytes():
    assert pdf.from_page(PAGE) == pdf.from_page(PAGE)


def test_a_narrow_column_beside_wide_ones_keeps_its_words_whole():
    wide = [f"{'many words ' * 12}{n}" for n in range(5)]
    (text,) = pdf_text(pdf.from_page(whole(table([["metric", *wide], ["text", *wide]]))))
    assert "metric" in text.split()
