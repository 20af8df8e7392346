"""Many pictures at once: what a folder or a CSV says, and that each gets what it gets alone."""

import base64
import re

import pages
import pandas as pd
import pytest
import tiny
from test_cli import run
from test_demo import at_once
from test_questions import FALSE, TRUE
from test_questions import build as build
from test_questions import models as models

from sdslib.io.sources import DataError
from sdslib.show import batch, demo, explain
from sdslib.show.panels import BatchPanel

COLORS = {"a.png": "red", "deep/b.jpg": "blue"}


@pytest.fixture
def folder(tmp_path):
    for name, color in COLORS.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny.png(color))
    (tmp_path / "mine" / "a.txt").write_text(f"{TRUE}\n\n{FALSE}\n")
    return tmp_path / "mine"


def said(asked):
    return {one.about: one.captions for one in asked}


def test_a_folder_says_captions_beside_its_pictures_or_for_all(folder):
    found = batch.gather(str(folder), ("a circle",))
    assert said(found) == {"a.png": (TRUE, FALSE), "deep/b.jpg": ("a circle",)}
    assert found[0].ref.load().getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(DataError, match=r"deep/b\.jpg has no caption, and none were given"):
        batch.gather(str(folder))


@pytest.mark.parametrize("head", ["image,caption", "caption,file_name", "Text,Image_Path"])
def test_a_csv_says_pictures_and_captions_by_its_head(folder, head):
    rows = [("a.png", TRUE), ("a.png", FALSE), ("deep/b.jpg", "a circle"), ("a.png", TRUE)]
    turned = not head.startswith("image")
    lines = [",".join(row[::-1] if turned else row) for row in rows]
    (folder / "list.csv").write_text("\n".join([head, *lines]), "utf-8-sig")
    found = batch.gather(str(folder / "list.csv"))
    assert said(found) == {"a.png": (TRUE, FALSE), "deep/b.jpg": ("a circle",)}


@pytest.mark.parametrize(
    ("text", "told"),
    [("picture,caption\na.png,x", "needs columns image and caption; it has 'picture', 'caption'"),
     ("image,caption\n", "it has no rows"), ("image,caption\na.png,x", "leave out --captions"),
     ("image\na.png", r"a\.png has no caption"), (None, "no folder with pictures and no CSV")],
)  # fmt: skip
def test_what_is_no_batch_is_refused(tmp_path, text, told):
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=told):
        batch.gather(str(path), ("a circle",) if "leave out" in told else ())


def test_a_picture_is_no_batch_of_them(folder):
    with pytest.raises(DataError, match=r"is a picture; give a folder or a CSV"):
        batch.gather(str(folder / "a.png"))


def test_each_picture_gets_what_it_gets_alone_and_a_problem_stays_in_its_row(models, folder):
    (folder / "c.png").write_text("no picture")
    captions = (TRUE, "a purple circle", "?!", FALSE)
    asked = batch.gather(str(folder), captions)
    table = batch.score(models, asked, teacher=True)
    assert table["image"].tolist() == ["a.png"] * 2 + ["c.png"] * 4 + ["deep/b.jpg"] * 4
    for one in (asked[0], asked[2]):
        good = [c for c in one.captions if c in (TRUE, FALSE)]
        alone = explain.score_table(models.scorers(True), one.ref, good)
        own = table[(table["image"] == one.about) & (table["problem"] == "")].set_index("caption")
        for row in alone.itertuples():
            for column in ("score", "margin", "noise"):
                found = own.loc[row.caption, f"{column} {row.model}"]
                assert found == pytest.approx(getattr(row, column), abs=1e-9)
    problems = table[table["image"] == "deep/b.jpg"].set_index("caption")["problem"]
    assert "'purple'" in problems["a purple circle"]
    assert "has no word" in problems["?!"]
    assert table["problem"].str.contains("is not an image").sum() == 2
    assert table["score untouched"].notna().sum() == (table["problem"] == "").sum() == 4


def test_the_verb_writes_the_csv_that_the_panel_gives_to_take_away(
    build, tiny_models, folder, tmp_path
):
    models, out = build(), tmp_path / "out.csv"
    given = ["--captions", f"{TRUE}|{FALSE}", *(f"--{k.replace('_', '-')}={v}" for k, v in
             tiny_models.items())]  # fmt: skip
    done = run("score", str(folder), "--out", str(out), *given)
    assert done.exit_code == 0, done.stderr
    assert f"{out}\n4 rows, 0 with a problem\n{batch.LEGEND}\n" in done.stdout
    table = pd.read_csv(out)
    assert (table["wins untouched"] == (table["margin untouched"] > table["noise untouched"])).all()
    again = ["--captions", "a purple circle|a red sphere", *given[2:]]
    (folder / "a.txt").unlink()
    done = run("score", str(folder), "--out", str(tmp_path / "bad.csv"), *again)
    assert done.exit_code == 1
    assert "a.png: caption 'a purple circle' has words" in done.stdout
    panel = BatchPanel(models, at_once)
    panel.source.value, panel.captions.value = str(folder), f"{TRUE}\n{FALSE}"
    panel.button.click()
    link = pages.read(panel.result.value).select_one("a[download]")["href"]
    data = base64.b64decode(re.fullmatch("data:text/csv;base64,(.*)", link)[1])
    assert data == out.read_bytes()
    assert len(pd.read_csv(out)) == 4
    assert panel.message.value == ""
    panel.source.value = ""
    panel.button.click()
    assert "give a folder or a CSV" in panel.message.value
    assert panel.result.value == ""
    assert "sdsclip score" in demo.many(models).data
