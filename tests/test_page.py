"""The door to the templates: what is text stays text, and what is missing is an error."""

import re
from html.parser import HTMLParser

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from sdslib.show import page

EVIL = '</title><script>alert("x")</script>\'{{ 1 }}'


LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction", "manifest"}


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


def test_text_is_escaped_wherever_it_stands_and_is_no_template():
    text = page.render("page", title=EVIL, style="", body=EVIL)
    assert "<script>" not in text
    assert text.count("{{ 1 }}") == 2
    assert text.count("&lt;script&gt;alert(&#34;x&#34;)") == 2


def test_a_value_that_nobody_gives_is_an_error():
    with pytest.raises(UndefinedError, match="body"):
        page.render("page", title="t", style="")


def test_a_view_within_a_view_stays_markup():
    inner = page.render("live", name="", view=EVIL)
    assert inner in page.render("page", title="t", style="", body=inner)


def parts(call, **values):
    door = '{% from "parts.html.j2" import image, table %}'
    return page._VIEWS.from_string(door + "{{ " + call + " }}").render(values)


def test_a_table_names_its_heads_and_breaks_only_long_cells():
    rows = [("<first>", "short", "x" * 61, 7, Markup("<b>bold</b>"))]
    text = parts("table(head, rows, 'A & B')", head=["h1", "h2", "h3", "h4", "h5"], rows=rows)
    assert '<th scope="col">h1</th>' in text
    assert '<th scope="row">&lt;first&gt;</th><td>short</td><td class="long">xxx' in text
    assert "<td>7</td><td><b>bold</b></td>" in text
    assert "<caption>A &amp; B</caption>" in text


@pytest.mark.parametrize(("name", "twin"), [("", False), ("live-1", True)])
def test_a_saved_view_says_how_to_get_the_live_one(name, twin):
    text = page.render("live", name=name, view=Markup("<p>it</p>"))
    assert "<p>it</p>" in text
    assert "make lab" in text
    assert ('id="twin-live-1"' in text) == twin
