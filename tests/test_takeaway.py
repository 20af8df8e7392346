"""Tables leave a page as CSV and as LaTeX that compiles; a notebook's tables have their links."""

import io
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pages
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbconvert import HTMLExporter
from test_figures import DRAWN

from sdslib.results import takeaway

TABLE = pd.DataFrame(
    {"a_b": ["50% & more", "x_y"], "difference": ["−1.0 (−2.0 to +0.1)", "+0.5 (–)"]},
    index=pd.Index(["text", "über"], name="metric"),
)


def test_a_table_in_latex_has_the_lines_of_booktabs_and_only_characters_that_latex_has():
    text = takeaway.latex(TABLE)
    assert re.findall(r"\\(\w+rule)", text) == ["toprule", "midrule", "bottomrule"]
    assert r"text & 50\% \& more & $-$1.0 ($-$2.0 to +0.1) \\" in text
    assert r"a\_b" in text
    assert {c for c in text if ord(c) > 127} == {"ü"}


def test_a_table_in_csv_comes_back_as_it_was():
    back = pd.read_csv(io.StringIO(takeaway.csv(TABLE)), index_col="metric")
    pd.testing.assert_frame_equal(back, TABLE)


def test_links_carry_the_files_and_nothing_else():
    page = pages.read(takeaway.of_table(TABLE, "Über <b> tables"))
    csv, tex = page.select("a")
    assert (csv["download"], tex["download"]) == ("ber-b-tables.csv", "ber-b-tables.tex")
    assert unquote(csv["href"].partition(",")[2]) == takeaway.csv(TABLE)
    assert unquote(tex["href"].partition(",")[2]) == takeaway.latex(TABLE)
    assert not pages.outside(str(page))
    assert all(button["aria-label"].startswith("copy ") for button in page.select("button"))


@pytest.mark.parametrize("table", [TABLE.head(0), pd.DataFrame({"x": range(5001)})])
def test_an_empty_or_a_very_large_table_has_no_links(table):
    assert takeaway.of_table(table) == ""


def test_a_table_whose_index_is_named_as_a_column_and_has_two_heads_leaves_too():
    table = TABLE.assign(metric=1)
    assert takeaway.csv(table).startswith("metric,a_b,difference,metric\n")
    two = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("a", "x"), ("a", "y")]))
    assert takeaway.csv(two) == "a x,a y\n1,2\n"


def test_a_notebook_shows_tables_with_their_links(monkeypatch):
    shell = InteractiveShell()
    monkeypatch.setattr(takeaway, "notebook_shell", lambda: shell)
    takeaway.in_notebook()
    shown = shell.display_formatter.format(TABLE)[0]["text/html"]
    assert len(pages.read(shown).select("table")) == 1
    assert [a.text for a in pages.read(shown).select("a")] == ["CSV", "LaTeX"]


def test_alternative_text_survives_nbconvert():
    figure = DRAWN["confusion"]("mini-world")
    data, metadata = figure._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[output])])
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    assert [img["alt"] for img in pages.read(page).select("img")] == [figure.alt]


@pytest.mark.browser
def test_in_a_browser_files_are_downloaded_and_copied(chromium, tmp_path):
    figure = DRAWN["confusion"]("mini-world")
    shown = figure._repr_mimebundle_()[0]["text/html"] + takeaway.of_table(TABLE)
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{shown}", "utf-8")
    context, troubles = chromium.new_context(), []
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.goto((tmp_path / "page.html").as_uri())
    files = {"PNG": figure.png(), "SVG": figure.svg()}
    files |= {"CSV": takeaway.csv(TABLE).encode(), "LaTeX": takeaway.latex(TABLE).encode()}
    for label, data in files.items():
        with tab.expect_download() as got:
            tab.get_by_role("link", name=label, exact=True).click()
        assert Path(got.value.path()).read_bytes() == data
    for label in ("CSV", "PNG"):
        tab.get_by_role("button", name=f"copy {label}").click()
        tab.get_by_text("copied").first.wait_for()
        if label == "CSV":
            assert tab.evaluate("navigator.clipboard.readText()") == takeaway.csv(TABLE)
    kinds = "navigator.clipboard.read().then(found => found[0].types)"
    tab.get_by_text("copied").nth(1).wait_for()
    assert "image/png" in tab.evaluate(kinds)
    assert troubles == []
