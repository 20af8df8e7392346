"""The atlas: one page and one widget that say the same, whatever the captions hold."""

import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pages
import pytest
import tiny
from PIL import Image
from test_failures import GRIDS, score_table

from sdslib.benchmarks import Benchmark, Item
from sdslib.io.images import ImageRef
from sdslib.results import failures
from sdslib.show import atlas, page
from sdslib.tables import TableError

TAGS = {
    "collapsed_tag": ["Object", "Relation", "Both"] * 2,
    "finer": ["a|b", "b", "", "a", "c", "b"],
}
ATTACK = '<img src=x onerror=alert(1)> "quoted" </script><script>alert(2)</script>'


def benchmark(count=6, captions=None):
    items = []
    for n in range(count):
        refs = tuple(
            ImageRef(f"{n}-{k}.png", lambda n=n, k=k: tiny.png((40 * n, 99 * k, 9))) for k in (0, 1)
        )
        words = captions or (f"a red circle above item {n}", f"a blue square left of item {n}")
        tags = {name: cells[n] for name, cells in TAGS.items()}
        items.append(Item(str(n), refs, words, tags=tags))
    return Benchmark("winoground", "grid", tuple(items), count, "made by the test")


def three_models():
    """Two students and a teacher that judged four of the items."""
    before, after = score_table(**TAGS), score_table(GRIDS[::-1], **TAGS)
    teacher = score_table([(9, 1, 2, 8)] * 6, **TAGS).iloc[[0, 2, 3, 5]]
    return {"untouched": before, "sds": after, "teacher": teacher}


@pytest.fixture(scope="module")
def whole():
    return atlas.build(three_models(), benchmark(), note="mini-world")


# --- the page ------------------------------------------------------------------------------------


def test_the_page_has_a_card_an_item_with_both_pictures_described(whole):
    found = pages.read(atlas.document(whole))
    assert [card["data-id"] for card in found.select("article")] == list("012345")
    images = found.select("img")
    assert len(images) == 12
    assert "a blue square left of item 3" in images[7]["alt"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)


def test_the_page_can_be_read_without_its_script(whole):
    text = atlas.document(whole)
    assert not pages.read(text).select("article[hidden], form:not([hidden])")
    for words in ("caption 0: a red circle above item 4", "untouched : image wrong", "6 items"):
        assert words in pages.words(text)


def test_the_page_refers_to_nothing_outside_itself(whole):
    bare = atlas.build({"scores": score_table()})
    for source in (atlas.document(whole), atlas.document(bare)):
        assert not pages.outside(source)
        assert not any(word in source for word in ("@import", "url(", "fetch(", "XMLHttp"))


def test_every_number_of_a_grid_is_on_its_card(whole):
    text = pages.words(atlas.card(whole, "1"))
    for value in (*map(page.number, GRIDS[1]), "✗ −2.0000", "✓ +4.0000"):
        assert value in text


def test_between_two_cells_stands_by_how_much_they_differ(whole):
    """Whatever the place in the grid, and with the words of the image or caption it is of."""
    alone = replace(whole, tables={"untouched": whole.first})
    for item in "012345":
        table = pages.read(atlas.card(alone, item)).select_one(".grids")
        marks = [cell["title"].partition(":")[0] for cell in table.select("td[title]")]
        assert marks == [
            "image 0 prefers its caption", "caption 0 prefers its image",
            "caption 1 prefers its image", "image 1 prefers its caption",
        ]  # fmt: skip
        text = pages.words(table).replace("−", "-")
        numbers = [float(n) for n in re.findall(r"(?<!margin )[+-]?\d\.\d{4}", text)]
        *_, a, across, b, first, second, c, below, d = numbers
        assert (abs(across), abs(below)) == pytest.approx((abs(a - b), abs(c - d)))
        assert (abs(first), abs(second)) == pytest.approx((abs(a - c), abs(b - d)))


def test_a_mark_says_in_words_which_inequality_it_is(whole):
    card = pages.read(atlas.card(whole, "4"))
    assert card.select("td[title='image 0 prefers its caption: a tie']")
    assert card.select("td[title='image 1 prefers its caption: yes']")


def test_cards_say_what_changes_from_the_first_model_to_the_others(whole):
    text = pages.words(atlas.card(whole, "0"))
    assert "untouched → sds: text lost, image lost, group lost" in text
    assert "untouched → teacher: text stays right" in text
    assert "teacher" not in atlas.card(whole, "1")


@pytest.mark.parametrize("place", ["caption", "tag", "model", "id"])
def test_markup_in_the_data_stays_text(place):
    tables = {"untouched": score_table(**TAGS)}
    known = benchmark()
    if place == "caption":
        known = benchmark(captions=(ATTACK, "harmless"))
    elif place == "tag":
        tables["untouched"]["collapsed_tag"] = ATTACK
    elif place == "model":
        tables = {ATTACK: tables["untouched"]}
    else:
        tables["untouched"].loc[0, "id"] = ATTACK
        known = replace(known, items=(replace(known.items[0], id=ATTACK), *known.items[1:]))
    text = atlas.document(atlas.build(tables, known))
    found = pages.read(text)
    assert len(found.select("script")) == 2
    assert not found.select("[onerror]")
    assert not pages.outside(text)
    if place != "tag":
        assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_without_pictures_the_page_says_how_to_get_them():
    text = atlas.document(atlas.build({"scores": score_table(**TAGS)}))
    found = pages.read(text)
    assert len(found.select("div[role=img]")) == 12
    assert not found.select("img")
    for words in ("accept the terms", "HF_TOKEN", "-p benchmark winoground"):
        assert words in pages.words(text)
    (link,) = found.select("a")
    assert link["href"] == "https://huggingface.co/datasets/facebook/winoground"


def test_every_picture_is_loaded_once():
    loads = []
    known = benchmark()
    items = tuple(
        replace(item, images=tuple(
            ImageRef(ref.name, lambda ref=ref: loads.append(ref.name) or ref.read())
            for ref in item.images
        ))
        for item in known.items
    )  # fmt: skip
    atlas.document(atlas.build(three_models(), replace(known, items=items)))
    assert sorted(loads) == sorted(ref.name for item in items for ref in item.images)


def test_large_pictures_become_thumbnails():
    small = page.data_uri(Image.effect_noise((640, 480), 90))
    assert small.startswith("data:image/jpeg;base64,")
    assert len(small) < 40_000


def test_the_pages_data_are_the_library_s(whole):
    inside = pages.read(atlas.html(whole)).select_one("script.data").string
    data = {item["id"]: item for item in json.loads(inside)["items"]}
    parts = whole.parts["sds"].set_index("id")
    for name, found in data.items():
        assert found["models"]["sds"]["mode"] == parts.loc[name, "mode"]
        assert found["models"]["sds"]["margins"][0] == parts.loc[name, "margin_text"]
    assert "teacher" not in data["1"]["models"]
    assert data["0"]["tags"]["finer"] == ["a", "b"]


def test_items_of_another_set_are_refused():
    with pytest.raises(TableError, match=r"sds is of other items: 1 do not fit, e\.g\. '7'"):
        atlas.build({"a": score_table(), "sds": score_table().replace({"id": {"5": "7"}})})
    with pytest.raises(TableError, match="winoground is of other items"):
        atlas.build({"a": score_table(**TAGS)}, benchmark(5))


def test_a_heat_map_is_darkest_at_the_highest_score_and_readable_everywhere():
    shades = page.shade([0.1, 0.2, 0.3, 0.4])
    brightness = [luminance(back) for back in shades]
    assert brightness == sorted(brightness, reverse=True)
    assert shades[0] == "#ffffff"
    assert page.shade([1.0, 1.0]) == ["#ffffff"] * 2
    # WCAG 2's contrast with black ink
    assert all((luminance(c) + 0.05) / 0.05 > 4.5 for c in page.shade(np.linspace(0, 1, 50)))


def luminance(color):
    rgb = np.array([int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


# --- selecting -----------------------------------------------------------------------------------

BY_HAND = {
    "the metric decides": (atlas.Query(outcome="right", metric="image"), "024"),
    "a mode": (atlas.Query(outcome="text wrong"), "24"),
    "ties": (atlas.Query(ties=True), "4"),
    "a label of a joined tag": (atlas.Query(tag=("finer", "b")), "015"),
    "an empty tag": (atlas.Query(tag=("finer", "untagged")), "2"),
    "words in any order": (atlas.Query(words="3 RED item"), "3"),
    "margins": (atlas.Query(low=-1.0, high=0.0), "345"),
    "what was lost": (atlas.Query("sds", against="untouched", change="lost"), "01"),
    "what flips": (atlas.Query("sds", against="untouched", change="flips"), "0145"),
    "the teacher's items alone": (atlas.Query("teacher"), "0235"),
    "smallest margin first": (atlas.Query(sort="smallest margin first"), "235401"),
    "closest first": (atlas.Query(sort="closest first", metric="group"), "403125"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_query_keeps_what_it_says(case, whole):
    query, expected = BY_HAND[case]
    assert "".join(atlas.select(whole, query)) == expected


# --- the widget ----------------------------------------------------------------------------------


def test_the_widget_says_the_same_as_select(whole):
    browser = atlas.Browser(whole)
    assert browser.shown == whole.ids
    for query, _ in BY_HAND.values():
        browser = atlas.Browser(whole)
        set_controls(browser, query)
        assert browser.shown == atlas.select(whole, query)


def set_controls(browser, query):
    browser.controls["model"].value = query.model or "untouched"
    browser.controls["metric"].value = query.metric
    for name in ("outcome", "against", "change", "ties", "words", "sort"):
        browser.controls[name].value = getattr(query, name)
    browser.controls["tag"].value = "\t".join(query.tag or ())
    slider = browser.controls["margin"]
    low, high = query.low, query.high
    slider.value = (slider.min if low is None else low, slider.max if high is None else high)


def test_steps_go_through_the_items_left_and_stop_at_the_ends(whole):
    browser = atlas.Browser(whole)
    browser.controls["outcome"].value = "text wrong"
    seen = []
    for _ in range(4):
        seen.append(pages.read(browser.card.value).article["data-id"])
        browser.next.click()
    assert seen == ["2", "4", "4", "4"]
    browser.previous.click()
    browser.previous.click()
    assert pages.read(browser.card.value).article["data-id"] == "2"
    assert "item 1 among 2 of 6 items" in browser.count.value


def test_filters_that_leave_nothing_say_so(whole):
    browser = atlas.Browser(whole)
    browser.controls["words"].value = "no such word"
    assert browser.card.value == "no item fits these filters"
    browser.next.click()
    browser.controls["words"].value = ""
    assert browser.shown == whole.ids


def test_the_margin_slider_takes_each_models_own_reach(whole):
    browser = atlas.Browser(whole)
    browser.controls["model"].value = "teacher"
    slider = browser.controls["margin"]
    assert slider.max > 6
    assert browser.query.low is browser.query.high is None
    browser.controls["model"].value = "untouched"
    assert 3 > slider.max > 2


# --- page and library agree, in a real browser ---------------------------------------------------


def set_form(tab, query):
    tab.evaluate("document.querySelector('.controls').reset()")
    values = {
        name: str(getattr(query, name)) for name in ("metric", "outcome", "against", "change")
    }
    values |= {"model": query.model or "untouched", "sort": query.sort, "words": query.words}
    values["tag"] = "\t".join(query.tag or ())
    values |= {
        k: "" if getattr(query, k) is None else str(getattr(query, k)) for k in ("low", "high")
    }
    code = """([values, ties]) => { const f = document.querySelector('.controls');
      for (const [k, v] of Object.entries(values)) f.elements[k].value = v;
      f.elements.ties.checked = ties; f.dispatchEvent(new Event('input', {bubbles: true})); }"""
    tab.evaluate(code, [values, query.ties])


@pytest.mark.browser
def test_the_page_filters_and_sorts_as_the_library_does(whole, chromium, tmp_path):
    path = tmp_path / "atlas.html"
    path.write_text(atlas.document(whole), "utf-8")
    tab, troubles = chromium.new_page(), []
    tab.on("pageerror", lambda error: troubles.append(str(error)))
    tab.on("console", lambda message: troubles.append(message.text))
    tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or troubles.append(r.url))
    tab.goto(path.as_uri())
    queries = [query for query, _ in BY_HAND.values()]
    for metric, change, sort in itertools.product(failures.METRICS, atlas.CHANGES, atlas.SORTS):
        queries.append(atlas.Query("sds", metric, against="untouched", change=change, sort=sort))
    for query in queries:
        set_form(tab, query)
        shown = tab.eval_on_selector_all("article:not([hidden])", "l => l.map(a => a.dataset.id)")
        assert shown == atlas.select(whole, query), query
    assert not troubles


@pytest.mark.browser
def test_keys_and_buttons_step_and_markup_in_captions_does_nothing(chromium, tmp_path):
    path = tmp_path / "atlas.html"
    known = benchmark(captions=(ATTACK, "harmless"))
    path.write_text(atlas.document(atlas.build({"a": score_table(**TAGS)}, known)), "utf-8")
    tab, dialogs = chromium.new_page(), []
    tab.on("dialog", lambda dialog: dialogs.append(dialog.message) or dialog.dismiss())
    tab.goto(path.as_uri())
    current = "document.querySelector('[aria-current]')?.dataset.id"
    tab.focus(".atlas")
    for key, expected in (("ArrowRight", "0"), ("j", "1"), ("ArrowLeft", "0"), ("k", "0")):
        tab.keyboard.press(key)
        assert tab.evaluate(current) == expected
    tab.click(".next")
    assert tab.evaluate(current) == "1"
    assert tab.inner_text(".count") == "6 of 6 items, at 2"
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.name") == "words"
    tab.keyboard.type("harm")
    assert tab.inner_text(".count").startswith("6 of 6")
    assert not dialogs
