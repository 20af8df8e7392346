"""The atlas: one page and one widget that say the same, whatever the captions hold."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pages
import pandas as pd
import pytest
import tiny
from PIL import Image
from test_failures import GRIDS, score_table

from sdslib.benchmarks import Benchmark, Item
from sdslib.io.images import ImageRef
from sdslib.results import failures
from sdslib.show import atlas, figures, page
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
    assert [card["data-id"] for card in found.select("noscript article")] == list("012345")
    images = found.select("img")
    assert len(images) == 12
    assert "a blue square left of item 3" in images[7]["alt"]
    assert all(image["src"].startswith("data:image/png;base64,") for image in images)


def test_the_page_can_be_read_without_its_script(whole):
    text = atlas.document(whole)
    assert not pages.read(text).select("article[hidden], noscript[hidden], form:not([hidden])")
    for words in ("caption 0: a red circle above item 4", "untouched : image wrong", "6 items",
                  "text ✓ by +1.0000, image ✗ by −2.0000, group ✗"):  # fmt: skip
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


# --- items with one image ------------------------------------------------------------------------


def choices(n_true=0):
    """Three items of one image and three captions, the second with two; item 2 is a tie."""
    cells = np.array([[1, 3, 2], [2, 1, 0], [2, 2, 1]], float)
    table = pd.DataFrame(cells, columns=["s_0_0", "s_0_1", "s_0_2"])
    table = table.assign(id=list("abc"), n_images=1, n_captions=3, subset=list("xyx"))
    if n_true:
        return table.assign(n_true=n_true, answer=pd.array([0, 0, 0], "Int64"))
    return table.assign(answer=pd.array([1, 1, 0], "Int64"), n_captions=[3, 2, 3])


@pytest.mark.parametrize(
    ("n_true", "metric", "right", "cells"),
    [(0, "accuracy", "a", [3, 2, 3]), (2, "image-to-text", "bc", [3, 3, 3])],
)
def test_items_with_one_image_list_their_captions_with_every_models_score(
    n_true, metric, right, cells
):
    items = [Item(i, (ImageRef(i, lambda: tiny.png((9, 9, 9))),), ("red", "blue", "gray")[:n], 1)
             for i, n in zip("abc", cells, strict=True)]  # fmt: skip
    known = Benchmark("sugarcrepe", "choice", tuple(items), 3, "made by the test")
    found = atlas.build({"untouched": choices(n_true), "sds": choices(n_true)}, known)
    assert found.metrics == (metric,)
    assert "".join(atlas.select(found, atlas.Query(outcome="right"))) == right
    for item, count in zip("abc", cells, strict=True):
        card = pages.read(atlas.card(found, item))
        assert len(card.select("td.cell")) == 2 * count
        assert len(card.select("td.own")) == 2 * (n_true or 1)
        assert len(card.select("img")) == 1
    assert "tie" in pages.words(atlas.card(found, "c")) or n_true
    text = atlas.document(found)
    assert f"gains 0 items by {metric}" in text
    assert "one caption for both" not in text


# --- selecting -----------------------------------------------------------------------------------

FLIPS = {"model": "sds", "against": "untouched"}
BY_HAND = {
    "the metric decides": ({"outcome": "right", "metric": "image"}, "024"),
    "a mode": ({"outcome": "text wrong"}, "24"),
    "ties": ({"ties": "ties only"}, "4"),
    "a label of a joined tag": ({"tag": "finer: b"}, "015"),
    "an empty tag": ({"tag": "finer: untagged"}, "2"),
    "what was lost": (FLIPS | {"change": "lost"}, "01"),
    "what flips": (FLIPS | {"change": "flips"}, "0145"),
    "the teacher's items alone": ({"model": "teacher"}, "0235"),
    "items that both have judged": ({"against": "teacher"}, "0235"),
    "smallest margin first": ({"sort": "smallest margin first"}, "235401"),
    "largest margin first": ({"sort": "largest margin first"}, "014352"),
    "closest first": ({"sort": "closest first", "metric": "group"}, "403125"),
}
TYPED = {  # what only the page has
    "words in any order": ({"words": "3 RED item"}, "3"),
    "an id": ({"words": "5"}, "5"),
    "margins": ({"low": "-1", "high": "0"}, "345"),
    "margins and an outcome": ({"low": "-1", "high": "0", "outcome": "text wrong"}, "4"),
}
CANNOT = [
    ({"change": "flips"}, "change"),
    ({"change": "lost", "against": "untouched"}, "change"),
    ({"sort": "largest change first"}, "sort"),
]


@pytest.mark.parametrize("case", BY_HAND)
def test_a_query_keeps_what_it_says(case, whole):
    asked, expected = BY_HAND[case]
    assert "".join(atlas.select(whole, atlas.Query(**asked))) == expected


@pytest.mark.parametrize(("asked", "control"), CANNOT)
def test_a_filter_that_cannot_apply_says_what_it_needs(whole, asked, control):
    with pytest.raises(TableError, match=f"{control} .* needs another model in 'against'"):
        atlas.select(whole, atlas.Query(**asked))


# --- the page in a real browser ------------------------------------------------------------------


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens an atlas, and fails at the end where the page complained, or asked for anything."""
    troubles = []

    def go(shown, fragment="", **context):
        path = tmp_path / "atlas.html"
        path.write_text(atlas.document(shown), "utf-8")
        tab = chromium.new_page(**context)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("dialog", lambda dialog: troubles.append(dialog.message) or dialog.dismiss())
        tab.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or
               troubles.append(r.url))  # fmt: skip
        tab.goto(f"{path.as_uri()}#{fragment}")
        return tab

    yield go
    assert not troubles


def ask(tab, **asked):
    tab.evaluate("""asked => {
      const form = document.querySelector('.controls');
      for (const c of form.elements) { if (c.options) c.value = c.options[0].value;
        else { c.checked = false; if (c.type !== 'checkbox') c.value = ''; } }
      for (const [name, text] of Object.entries(asked)) {
        const c = form.elements[name]; c.value = text; c.checked = true; }
      form.dispatchEvent(new Event('input', { bubbles: true })); }""", asked)  # fmt: skip


def shown(tab):
    return tab.eval_on_selector_all(".items > *", "found => found.map(a => a.dataset.id)")


@pytest.mark.browser
def test_the_page_filters_and_sorts_as_the_library_does(whole, visit):
    tab = visit(whole, "view=cards")
    for asked, expected in (BY_HAND | TYPED).values():
        ask(tab, **asked)
        assert "".join(shown(tab)) == expected, asked
    metrics, changes = failures.metrics_of(whole.parts["sds"]), atlas.CHANGES
    for metric, change, sort in itertools.product(metrics, changes, atlas.SORTS):
        asked = FLIPS | {"metric": metric, "change": change, "sort": sort}
        ask(tab, **asked)
        assert shown(tab) == atlas.select(whole, atlas.Query(**asked)), asked
    for asked, control in CANNOT:
        ask(tab, **asked)
        assert not shown(tab)
        told = tab.get_by_role("alert").inner_text()
        assert told == f"“{control}: {asked[control]}” needs another model in “before”"
    ask(tab)
    assert len(shown(tab)) == 6
    assert not tab.get_by_role("alert").is_visible()


@pytest.mark.browser
def test_keys_buttons_and_clicks_step_and_markup_in_captions_does_nothing(visit):
    known = benchmark(captions=(ATTACK, "harmless"))
    tab = visit(atlas.build({"a": score_table(**TAGS)}, known))
    assert shown(tab) == list("012345")
    tab.locator(".tile").nth(2).click()
    assert shown(tab) == ["2"]
    tab.focus(".atlas")
    for key, expected in (("ArrowRight", "3"), ("j", "4"), ("ArrowLeft", "3"), ("k", "2")):
        tab.keyboard.press(key)
        assert shown(tab) == [expected]
    tab.get_by_role("button", name="next").click()
    assert tab.inner_text(".count") == "6 of 6 items, at 4"
    tab.locator("article img").first.press("Enter")
    assert tab.locator(".zoom img").bounding_box()["width"] > 500
    assert tab.locator(".zoom").inner_text().endswith("caption: " + ATTACK)
    tab.keyboard.press("Escape")
    assert not tab.locator(".zoom").is_visible()
    tab.locator(".atlas").press("/")
    assert tab.evaluate("document.activeElement.name") == "words"
    tab.keyboard.type("harm")
    assert tab.inner_text(".count").startswith("6 of 6")
    tab.locator(".atlas").press("Escape")
    assert len(shown(tab)) == 6
    ask(tab, words="no such word")
    assert tab.inner_text(".count") == "0 of 6 items"
    assert tab.get_by_role("button", name="next").is_disabled()


@pytest.mark.browser
def test_a_link_opens_the_item_with_its_filter_and_the_rows_can_be_taken_away(whole, visit):
    tab = visit(whole)
    ask(tab, **FLIPS, change="flips", tag="finer: b")
    assert tab.inner_text(".tile[data-id='5'] small") == "5 text ✗ → ✓"
    tab.locator(".tile[data-id='5']").click()
    sent = tab.url.partition("#")[2]
    tab.evaluate("""Object.defineProperty(navigator, 'clipboard', { value: {
      writeText: text => Promise.resolve(window.copied = text) } })""")
    tab.get_by_role("button", name="copy link").click()
    tab.get_by_role("button", name="copied; send atlas.html with it").wait_for()
    assert tab.evaluate("copied") == f"atlas.html#{sent}"
    with tab.expect_download() as saved:
        tab.get_by_role("button", name="CSV").click()
    rows = pd.read_csv(saved.value.path(), dtype={"id": str})
    assert rows["id"].tolist() == list("015")
    assert rows["sds text"].tolist() == [False, False, True]
    assert rows["untouched s_0_1"].tolist() == [1, 0, 4]
    assert rows["caption 1"][2] == "a blue square left of item 5"
    again = visit(whole, sent)
    assert shown(again) == ["5"]
    assert again.inner_text(".count") == "3 of 6 items, at 3"
    assert again.get_by_label("before").input_value() == "untouched"
    assert shown(visit(whole, "model=nobody&view=cards&odd=1")) == list("012345")


@pytest.mark.browser
def test_of_two_runs_the_page_begins_with_what_flips_between_them(visit):
    tables = three_models()
    tab = visit(replace(atlas.build(tables | {"b": tables["untouched"]}), begun="sds"))
    assert shown(tab) == list("0145")
    assert tab.get_by_label("before").input_value() == "sds"
    assert tab.get_by_text("Against sds b gains").is_visible()
    tab.get_by_role("button", name="all items").click()
    tab.wait_for_function("location.hash === '#all'")
    tab.reload()
    assert shown(tab) == list("012345")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_at_800_pixels_and_no_slab_is_of_the_other_theme(whole, visit, scheme):
    maps = {"0": figures.pictures([Image.new("RGB", (9, 9))] * 9, ["a word"] * 9, 9)}
    told = dict.fromkeys(whole.tables, f"run {'x' * 40}: 150 steps")
    named = replace(whole, passports=told, maps=maps)
    tab = visit(named, color_scheme=scheme, viewport={"width": 800, "height": 900})
    assert tab.locator(".tile[data-id='0'] img").count() == 2
    for view in ("wall", "cards", "one"):
        ask(tab, view=view)
        for summary in tab.locator(".maps summary").all():
            summary.click()
            (seen,) = (img for img in tab.locator(".maps img").all() if img.is_visible())
            assert ("night" in seen.get_attribute("class")) == (scheme == "dark")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 800
        assert not tab.evaluate("""() => [...document.querySelectorAll('.atlas *')].filter(e =>
          e.getBoundingClientRect().right > 801).map(e => e.outerHTML.slice(0, 80))""")
        backs = tab.evaluate("""() => [document.documentElement, ...document.querySelectorAll(
          '.atlas, .atlas *:not(.cell, .bar *)')].map(e => getComputedStyle(e).backgroundColor)
          .filter(color => !color.endsWith(', 0)'))""")
        light = [sum(map(int, re.findall(r"\d+", back)[:3])) > 384 for back in backs]
        assert len(light) > 5
        assert set(light) == {scheme == "light"}


@pytest.mark.browser
def test_at_1200_items_the_page_is_as_tall_and_as_deep_as_at_100(visit):
    sizes = []
    for count in (100, 1200):
        known = benchmark(6)
        items = tuple(replace(known.items[n % 6], id=str(n)) for n in range(count))
        table = score_table([GRIDS[n % 6] for n in range(count)])
        tab = visit(atlas.build({"a": table}, replace(known, items=items, total=count)))
        sizes.append(tab.evaluate("""() => [document.documentElement.scrollHeight,
          document.querySelectorAll('*').length]"""))  # fmt: skip
        assert len(shown(tab)) == 48
    assert sizes[0] == sizes[1]
    tab.get_by_role("button", name="next").click()
    assert shown(tab)[0] == "48"
    assert tab.inner_text(".count") == "1200 of 1200 items, at 49 to 96"
