"""Figures: what is drawn is what the table says, legible, in colors all can tell apart."""

import base64
import io
import itertools
import os
import warnings
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pages
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from sdslib import tables
from sdslib.metrics import HUMAN_WINOGROUND
from sdslib.results import comparison
from sdslib.show import figures, item_figures, style

NOTE = "mini-world, 300 of 1200 items"
MODES = list(item_figures.MODE_LOOKS)
NAMES = ("untouched", "sds")


def scores(seed=0, lead=0.0):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"id": range(30), "collapsed_tag": ["Object", "Relation", "Both"] * 10})
    table["num_main_preds"] = ["1", "2"] * 15
    for i, k in np.ndindex(2, 2):
        table[f"s_{i}_{k}"] = rng.normal(size=30) + lead * (i == k)
    return table.assign(n_images=2, n_captions=2, answer=pd.array([pd.NA] * 30, "Int64"))


def shares():
    parts = {"untouched": scores(), "clip-only": scores(1, 0.5), "sds 1a2b": scores(2, 1.0)}
    found = [tables.tabulate(None, t).assign(model=m) for m, t in parts.items()]
    table = pd.concat(found)
    return table[~table["label"].str.startswith("macro")]


def sets():
    table = shares().query("label == 'all' and metric == 'text'")
    return pd.concat([table.assign(set="winoground"), table.assign(set="aro-relation", chance=0.5)])


def differences():
    return comparison.compare(scores(), scores(2, 1.0))


def beside():
    table = differences().query("label == 'all'").assign(comparison="a against b")
    return pd.concat([table.assign(set=name) for name in ("winoground", "aro-relation")])


def run_history(steps=60):
    step = np.arange(1, steps + 1)
    due = step % 20 == 0
    return pd.DataFrame({
        "step": step, "clip": 2.0 / step, "sds": 260.0 - step, "eps_error": 1.0 - step / 100,
        "lr": 1e-3 / step, "grad_ratio": np.where(due, 0.02, np.nan),
        "val_text": np.where(due, 0.3, np.nan),
    })  # fmt: skip


def counts():
    rows, columns = pd.Index(["right", "wrong"], name="student"), ["right", "wrong"]
    return pd.DataFrame([[40, 5], [50, 7]], rows, pd.Index(columns, name="teacher"))


def modes():
    rows = [(t, lab, 10, m, 0.2) for t, lab in (("all", "all"), ("tag", "Noun")) for m in MODES]
    return pd.DataFrame(rows, columns=["tag", "label", "n", "mode", "share"])


def paired_margins():
    before = np.array([-0.02, -0.01, 0.01, 0.02, 0.03])
    after = np.array([0.01, -0.02, -0.01, 0.03, 0.01])
    flip = ["gained", "stays wrong", "lost", "stays right", "stays right"]
    return pd.DataFrame({"before": before, "after": after, "flip": flip})


def flows():
    rows = [("right", "right", 10), ("right", "both wrong", 2), ("both wrong", "right", 7)]
    return pd.DataFrame([*rows, ("both wrong", "tie", 1)], columns=["untouched", "sds", "n"])


def bins():
    part = pd.DataFrame({"margin": [0.01, 0.02], "accuracy": [0.5, 0.9]})
    part = part.assign(low=part["accuracy"] - 0.1, high=part["accuracy"] + 0.05, chance=0.5)
    return pd.concat([part.assign(model="untouched"), part.assign(model="teacher")])


def study(column, values):
    part = pd.DataFrame({column: values, "mean": np.linspace(0.3, 0.6, len(values))})
    part = part.assign(low=part["mean"] - 0.05, high=part["mean"] + 0.05, reference=0.28)
    return pd.concat([part.assign(measure=m) for m in ("text", "zero-shot")])


def by_weight():
    return study("sds_weight", [0, 1e-4, 1e-2, 1.0])


def by_set():
    table = study("set", ["layernorm", "bias", "all"])
    return table.assign(parameters=["0.3%", "0.5%", "100%"] * 2)


def moved():
    layers = ["visual.block 0", "visual.block 1"]
    return pd.DataFrame({"layernorm": [0.0, 2e-4], "all": [0.03, 1.0]}, index=layers)


def some_pictures(note=""):
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "blue", "green")]
    captions = ["a red square", "a blue square that is described at some length", "a green one"]
    return figures.pictures(images, captions, 2, note, "Scenes")


DRAWN = {
    "history": lambda note: figures.history(run_history(), note),
    "scores_by_tag": lambda note: figures.scores_by_tag(shares(), note),
    "scores_by_set": lambda note: figures.scores_by_set(sets(), note),
    "before_after": lambda note: figures.before_after(differences(), note),
    "differences_by_set": lambda note: figures.differences_by_set(beside(), note),
    "agreement": lambda note: figures.agreement({"winoground": counts(), "aro": counts()}, note),
    "confusion": lambda note: figures.agreement({"": counts()}, note),
    "failure_modes": lambda note: item_figures.failure_modes(modes(), note),
    "margins": lambda note: item_figures.margins(paired_margins(), note, NAMES),
    "flips": lambda note: item_figures.flips(flows(), note),
    "calibration": lambda note: item_figures.calibration(bins(), note),
    "tradeoff": lambda note: figures.tradeoff(by_weight(), note),
    "bars_by_set": lambda note: figures.bars_by_set(by_set(), note),
    "changes": lambda note: figures.changes(moved(), note),
    "pictures": some_pictures,
}


def texts_of(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text()]


def marks(ax):
    """Where along x the marks of all models stand."""
    points = [c for c in ax.collections if isinstance(c, PathCollection)]
    return sorted(np.concatenate([p.get_offsets()[:, 0] for p in points]))


def upright(ax):
    """Where along x an upright line stands."""
    return {x[0] for x in (line.get_xdata() for line in ax.lines) if x[0] == x[-1]}


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.filterwarnings("error")
def test_every_figure_shows_its_note_fits_its_page_and_has_alternative_text(name):
    figure = DRAWN[name](NOTE)
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.03
    assert max(drawn.x1 - width, drawn.y1 - height) < 0.03
    assert NOTE in figure.get_suptitle().replace("\n", " ")
    assert NOTE in figure.alt
    assert len(figure.alt) > 30
    assert min(t.get_fontsize() for t in texts_of(figure)) >= 6


def narrow(note):
    """A plain measure within a factor of 1.2, and a single weight beside 0."""
    table = by_weight().query("sds_weight < 0.001 and measure == 'text'").replace(1e-4, 5e-4)
    return figures.tradeoff(table.assign(mean=[0.3, 0.36]), note, plain=["text"])


def numbers(axis):
    """The tick labels that stand within an axis."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [tick.label1.get_text() for tick in ticks if tick.label1.get_visible()]


# Pictures, blocks whose numbers stand beside them, and a title of columns have no axis of numbers.
NO_NUMBERS = {"pictures", "flips", "agreement", "confusion", "changes"}


@pytest.mark.parametrize("name", [*sorted(DRAWN.keys() - NO_NUMBERS), "narrow"])
def test_axes_have_numbers_that_do_not_touch_and_no_mark_is_cut(name):
    figure = DRAWN.get(name, narrow)(NOTE)
    figure.draw_without_rendering()
    for ax in figure.axes:
        if not ax.has_data():
            continue
        assert len(numbers(ax.xaxis)) >= 2
        assert numbers(ax.yaxis) or ax is not figure.axes[0]
        boxes = [t.label1.get_window_extent() for t in ax.xaxis.get_major_ticks()]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes) if a.width and b.width)
        marked = [line for line in ax.lines if line.get_marker() not in ("None", "", None)]
        points = [c for c in ax.collections if isinstance(c, PathCollection)]
        assert not any(mark.get_clip_on() for mark in (*marked, *points))


@pytest.mark.filterwarnings("error")
def test_figures_of_a_single_row_have_room():
    alone = shares().query("label == 'all'")
    for figure in (
        figures.scores_by_tag(alone, NOTE),
        figures.before_after(differences().query("label == 'all'"), NOTE),
        figures.scores_by_set(sets().query("set == 'winoground'"), NOTE),
        item_figures.failure_modes(modes().query("label == 'all'"), NOTE),
        figures.bars_by_set(by_set().query("set == 'bias'"), NOTE),
    ):
        figure.draw_without_rendering()
        heights = [ax.get_position().height * figure.get_figheight() for ax in figure.axes]
        assert min(heights) > 0.15, figure.alt


def test_differences_by_set_name_each_set_in_words():
    alt = figures.differences_by_set(beside(), NOTE).alt
    assert "a against b winoground text " in alt
    assert "a against b aro-relation text " in alt


def test_the_note_is_the_callers_and_not_a_constant():
    assert "mini-world" not in DRAWN["tradeoff"]("real").get_suptitle()


def test_scores_stand_where_the_table_says_beside_its_chance():
    table = shares()
    axes = figures.scores_by_tag(table).axes
    assert len(axes) == 3
    for ax, metric in zip(axes, ("text", "image", "group"), strict=True):
        part = table[table["metric"] == metric]
        assert marks(ax) == pytest.approx(sorted(part["accuracy"]))
        assert {part["chance"].iloc[0], HUMAN_WINOGROUND[metric]} <= upright(ax)


def test_each_set_has_its_own_chance():
    ax = figures.scores_by_set(sets()).axes[0]
    (chances,) = (c for c in ax.collections if isinstance(c, LineCollection) and c.get_lw() == 2.5)
    assert [ends[0, 0] for ends in chances.get_segments()] == [0.25, 0.5]


def test_a_set_without_human_scores_gets_no_human_line():
    ax = figures.scores_by_tag(shares(), human=None).axes[0]
    assert "human" not in [t.get_text() for t in ax.texts]


def test_before_after_draws_the_differences_and_what_the_set_could_not_show():
    table = differences()
    ax = figures.before_after(table).axes[0]
    part = table[table["metric"] == "text"]
    assert marks(ax) == pytest.approx(sorted(part["difference"]))
    widths = sorted(patch.get_width() for patch in ax.patches)
    assert widths == pytest.approx(sorted(2 * part["mdd"]))


def test_history_calls_the_term_as_its_arm_does():
    table = run_history()
    table.attrs["term"] = "choice"
    titles = [ax.get_title("left") for ax in figures.history(table).axes]
    assert {"L_choice (nats)", "|grad L_choice| / |grad L_CLIP|"} < set(titles)


def test_history_says_which_curves_the_arm_does_not_have():
    bare = run_history().assign(sds=np.nan).drop(columns=["eps_error", "grad_ratio"])
    titles = {ax.get_title("left"): texts_of(ax) for ax in figures.history(bare).axes}
    silent = [t for t, texts in titles.items()
              if "not part of this run" in [x.get_text() for x in texts]]  # fmt: skip
    assert silent == ["L_SDS (squared error)", "eps error per element",
                      "|grad L_SDS| / |grad L_CLIP|"]  # fmt: skip


@pytest.mark.parametrize("ratio", [1e-6, 1e-3, 0.1, 1e4])
def test_the_line_of_an_inert_gradient_is_in_its_panel_whatever_the_ratio(ratio):
    found = figures.history(run_history().assign(grad_ratio=ratio))
    (ax,) = (ax for ax in found.axes if "grad" in ax.get_title("left"))
    low, high = ax.get_ylim()
    assert low < min(0.01, ratio)
    assert max(0.01, ratio) < high
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.png()


def test_history_draws_every_run_in_its_own_dash():
    both = pd.concat([run_history().assign(run=r) for r in ("sds", "clip-only")])
    lines = figures.history(both).axes[0].lines
    assert len(lines) == 2
    assert lines[0].get_color() != lines[1].get_color()
    assert lines[0]._unscaled_dash_pattern != lines[1]._unscaled_dash_pattern


def test_an_alluvial_plot_keeps_every_item_on_both_sides():
    ax = item_figures.flips(flows()).axes[0]
    blocks = [
        p for p in ax.patches if hasattr(p, "get_height") and p.get_width() == pytest.approx(0.1)
    ]
    left = sum(b.get_height() for b in blocks if b.get_x() < 0.5)
    right = sum(b.get_height() for b in blocks if b.get_x() > 0.5)
    assert left == right == flows()["n"].sum()


def test_a_teacher_who_scored_nothing_is_said_and_not_drawn():
    found = figures.agreement({}, "a note")
    assert not any(ax.axison for ax in found.axes)
    assert "The teacher scored no item" in found.axes[0].texts[0].get_text()
    assert "The teacher scored no item" in found.alt
    found.png()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("margins", ["gained 1", "stays right 2", "stays wrong 1", "lost 1"]),
        ("confusion", ["40\n39%", "5\n5%", "50\n49%", "7\n7%"]),
    ],
)
def test_counts_stand_in_the_figure(name, words):
    assert [t.get_text() for t in DRAWN[name](NOTE).axes[0].texts] == words


def test_the_trade_off_axis_holds_zero_and_the_largest_weight():
    ax = figures.tradeoff(by_weight()).axes[0]
    assert ax.get_xscale() == "symlog"
    assert 0 in ax.get_xticks()
    assert ax.get_xlim()[0] < 0 < 1.0 < ax.get_xlim()[1]


def test_a_model_looks_the_same_whatever_stands_beside_it():
    alone = style.looks(["sds 1a2b"])["sds 1a2b"]
    assert style.looks(["teacher", "x", "sds 1a2b", "untouched"])["sds 1a2b"] == alone


def test_no_two_series_share_a_color_or_a_marker():
    found = list(style.looks(["untouched", "clip-only", "sds a", "sds b", "teacher", "x"]).values())
    for attribute in ("color", "marker", "dash"):
        assert len({str(getattr(look, attribute)) for look in found}) == len(found)


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
          [-0.003882, -0.048116, 1.051998]]  # fmt: skip
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
          [-0.011820, 0.042940, 0.968881]]  # fmt: skip


def lab(color, matrix):
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("matrix", [np.eye(3), PROTAN, DEUTAN], ids=["usual", "protan", "deutan"])
@pytest.mark.parametrize("group", [style.LOOKS[:5], tuple(item_figures.MODE_LOOKS.values())])
def test_colors_stay_apart_for_color_blind_readers(group, matrix):
    for one, other in itertools.combinations(group, 2):
        assert np.linalg.norm(lab(one.color, matrix) - lab(other.color, matrix)) > 12


def test_saving_writes_three_readable_files_that_are_equal_the_second_time(tmp_path):
    paths = style.save(DRAWN["confusion"]("mini-world"), tmp_path / "new", "confusion")
    assert [p.name for p in paths] == ["confusion.png", "confusion.svg", "confusion.pdf"]
    with Image.open(paths[0]) as image:
        assert image.width >= 3.5 * style.PRINT_DPI - 1
        assert "mini-world" in image.info["Description"]
    svg, pdf = ET.parse(paths[1]).getroot(), paths[2].read_bytes()
    assert svg.tag.endswith("svg")
    assert "mini-world" in " ".join(svg.itertext())  # letters stay letters
    assert pdf.startswith(b"%PDF")
    assert b"/FontFile2" in pdf
    first = [p.read_bytes() for p in paths]
    style.save(DRAWN["confusion"]("mini-world"), tmp_path / "new", "confusion")
    assert [p.read_bytes() for p in paths] == first
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    paths = style.save(DRAWN["confusion"]("old"), tmp_path, "x")
    before = paths[0].read_bytes()

    def refuse(*args):
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="input/output"):
        style.save(DRAWN["confusion"]("new"), tmp_path, "x")
    assert paths[0].read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_a_notebook_shows_the_picture_with_its_alternative_text_and_to_take_away():
    figure = DRAWN["confusion"]("mini-world")
    shown, metadata = figure._repr_mimebundle_()
    page = pages.read(shown["text/html"])
    assert page.img["alt"] == figure.alt
    assert page.img["src"].endswith(shown["image/png"])
    png, svg = page.select("a")
    assert (png["download"], svg["download"]) == ("student-and-teacher-mini-world.png",
                                                  "student-and-teacher-mini-world.svg")  # fmt: skip
    data = base64.b64decode(svg["href"].partition(",")[2])
    assert ET.fromstring(data).tag.endswith("svg")
    assert not pages.outside(shown["text/html"])
    figure.grows = True
    assert not pages.read(figure._repr_mimebundle_()[0]["text/html"]).select("a")
    with Image.open(io.BytesIO(base64.b64decode(shown["image/png"]))) as image:
        assert image.width > 500
    assert metadata["image/png"]["alt"] == figure.alt


def test_drawing_leaves_the_readers_own_style_alone():
    before = dict(matplotlib.rcParams)
    DRAWN["history"]("x")
    assert dict(matplotlib.rcParams) == before


def test_an_equation_is_as_large_as_its_letters_and_says_itself():
    short, long = (figures.equation(tex, "words") for tex in (r"a_\theta", r"a_\theta + b + c + d"))
    assert short.get_figwidth() < long.get_figwidth() < style.FULL
    assert short.alt == "words"
    with Image.open(io.BytesIO(long.png(200))) as image:
        dark = np.asarray(image.convert("L")) < 128
    assert dark.any()
    edges = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    assert not edges.any()  # nothing is cut off


def test_a_comparison_looks_as_the_model_that_it_is_against():
    names = ["sds against untouched", "sds against L_CLIP only"]
    found = style.looks(names)
    assert list(found.values()) == list(style.looks(["untouched", "L_CLIP only"]).values())
    apart = style.looks(["a against untouched", "b against untouched"])
    assert len(set(apart.values())) == 2
