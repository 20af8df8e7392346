"""The door to the templates: what is text stays text, and what is missing is an error."""

import pages
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from sdslib.show import page

EVIL = '</title><script>alert("x")</script>\'{{ 1 }}'


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
    assert pages.outside(markup)


def test_text_is_escaped_wherever_it_stands_and_is_no_template():
    text = page.render("page", title=EVIL, body=EVIL)
    assert "<script>" not in text
    assert text.count("{{ 1 }}") == 2
    assert text.count("&lt;script&gt;alert(&#34;x&#34;)") == 2


def test_a_value_that_nobody_gives_is_an_error():
    with pytest.raises(UndefinedError, match="body"):
        page.render("page", title="t")


def test_a_view_within_a_view_stays_markup():
    inner = page.render("live", name="", view=EVIL)
    assert inner in page.render("page", title="t", body=inner)


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


@pytest.mark.parametrize(("server", "live"), [("voila/0.5", True), ("other/1", False), ("", False)])
def test_a_page_of_voila_is_live_though_its_kernel_takes_no_input(monkeypatch, server, live):
    monkeypatch.setenv("SERVER_SOFTWARE", server)
    assert page.is_live() == live
