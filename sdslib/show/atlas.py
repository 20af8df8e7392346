"""The failure atlas: every item of a set with what each model does to it, to read, filter and step.

One view in two forms: a self-contained HTML page that needs no kernel and no script to be read,
and a live widget with the same controls. A verdict is one model's word on one item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from sdslib.benchmarks import Benchmark, Item
from sdslib.metrics import labels_of
from sdslib.results import failures, formatting
from sdslib.show import page
from sdslib.tables import TableError, grids_of, tabulate, tags_of

WINOGROUND = "https://huggingface.co/datasets/facebook/winoground"
OUTCOMES = ("right", "wrong", *failures.MODES[1:])
CHANGES = ("flips", *failures.FLIPS)
SORTS = (
    "in order",
    "smallest margin first",
    "largest margin first",
    "closest first",
    "largest change first",
)


@dataclass(frozen=True)
class Query:
    """What to show of an atlas; the controls of the page and of the widget are these fields.

    `outcome`, margins and ties are those of `model` under `metric`; `change` compares it with
    `against` (the model before). Every word of `words` has to occur in the captions.
    """

    model: str = ""
    metric: str = "text"
    outcome: str = ""
    against: str = ""
    change: str = ""
    tag: tuple[str, str] | None = None
    ties: bool = False
    low: float | None = None
    high: float | None = None
    words: str = ""
    sort: str = "in order"


@dataclass(frozen=True)
class Verdict:
    """One model's grid [2, 2] of one item, taken apart as `failures.anatomy` says."""

    scores: np.ndarray
    leads: np.ndarray
    right: tuple[bool, ...]
    margins: tuple[float, ...]
    mode: str
    tie: bool


@dataclass(frozen=True)
class Atlas:
    """One set's score tables by model, each taken apart; the first is what others are held against.

    A model may have scored some of the items only (the teacher does). `items` has captions and
    images by id, where they are at hand; `absent` says how to get them where they are not.
    """

    title: str
    note: str
    tables: dict[str, pd.DataFrame]
    rules: dict[str, str] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    absent: str = ""

    @cached_property
    def parts(self) -> dict[str, pd.DataFrame]:
        """`failures.anatomy` of every model's table."""
        rule = self.rules.get
        return {m: failures.anatomy(t, rule(m, "")) for m, t in self.tables.items()}

    @property
    def first(self) -> pd.DataFrame:
        """The table whose items are those of the atlas."""
        return next(iter(self.tables.values()))

    @cached_property
    def ids(self) -> list[str]:
        """The items, in order."""
        return self.first["id"].astype(str).tolist()

    @cached_property
    def tags(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Labels of every item by tag column; tags with a value for each item tell nothing."""
        columns = [c for c in tags_of(self.first) if self.first[c].nunique() <= 100]
        cells = {c: [labels_of(cell) for cell in self.first[c]] for c in columns}
        return {i: {c: cells[c][n] for c in columns} for n, i in enumerate(self.ids)}

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Model -> id -> its verdict."""
        return {name: self._verdicts(name) for name in self.tables}

    def _verdicts(self, name: str) -> dict[str, Verdict]:
        table, rule, part = self.tables[name], self.rules.get(name, ""), self.parts[name]
        grids, leads = grids_of(table, rule), failures.leads_of(table, rule)
        right = part[list(failures.METRICS)].to_numpy().tolist()
        margins = part[[f"margin_{m}" for m in failures.METRICS]].to_numpy().tolist()
        rows = zip(part["id"], part["mode"], part["tie"].tolist(), strict=True)
        return {
            i: Verdict(grids[n], leads[n], tuple(right[n]), tuple(margins[n]), mode, tie)
            for n, (i, mode, tie) in enumerate(rows)
        }

    def captions(self, item: str) -> tuple[str, ...]:
        """The item's captions, none where they are not at hand."""
        return self.items[item].captions if item in self.items else ()

    def words(self, item: str) -> str:
        """What a search in captions looks through."""
        return " ".join(self.captions(item)).lower()


def build(
    tables: Mapping[str, pd.DataFrame],
    benchmark: Benchmark | None = None,
    rules: Mapping[str, str] | None = None,
    title: str = "Winoground failures",
    note: str = "",
    absent: str = "",
) -> Atlas:
    """The atlas of one set from score tables by model; the others are held against the first.

    `rules` names the rule of a model's table that decides. Every model's items must be among the
    first one's, and the benchmark's must hold them all; TableError names one that is not.
    """
    if not tables:
        raise TableError("an atlas needs at least one score table")
    tables = {name: t.assign(id=t["id"].astype(str)) for name, t in tables.items()}
    known = next(iter(tables.values()))["id"]
    sources = {name: set(table["id"]) - set(known) for name, table in tables.items()}
    items = {} if benchmark is None else {str(item.id): item for item in benchmark.items}
    sources |= {benchmark.name: set(known) - set(items)} if benchmark is not None else {}
    for name, odd in sources.items():
        if odd:
            raise TableError(f"{name} is of other items: {len(odd)} do not fit, e.g. {min(odd)!r}")
    if not items:
        absent = absent or HOW_TO_GET
    kept = {i: items[i] for i in known} if items else {}
    return Atlas(title, note, tables, dict(rules or {}), kept, absent)


HOW_TO_GET = (
    f"Pictures and captions are not in a score file. For Winoground: accept the terms at "
    f'<a href="{WINOGROUND}">{WINOGROUND}</a>, set HF_TOKEN (or put the files into '
    "<code>data/winoground</code>), and build again with <code>-p benchmark winoground</code>."
)


def select(atlas: Atlas, query: Query) -> list[str]:
    """Ids of the items that the query keeps, sorted as it says; equals what the page shows."""
    model = query.model or next(iter(atlas.tables))
    after, before = atlas.verdicts[model], atlas.verdicts.get(query.against, {})
    metric = failures.METRICS.index(query.metric)
    kept = [i for i in atlas.ids if i in after and _keeps(atlas, query, i, after[i], metric)]
    if query.against:
        kept = [i for i in kept if i in before]
        right = [(before[i].right[metric], after[i].right[metric]) for i in kept]
        flip = failures.flips(*np.array(right, dtype=int).reshape(-1, 2).T)
        kept = [i for i, f in zip(kept, flip, strict=True) if _changed(query.change, f)]
    keys = {
        "in order": lambda i: 0,
        "smallest margin first": lambda i: after[i].margins[metric],
        "largest margin first": lambda i: -after[i].margins[metric],
        "closest first": lambda i: abs(after[i].margins[metric]),
        "largest change first": lambda i: (
            -abs(after[i].margins[metric] - before[i].margins[metric]) if i in before else 0
        ),
    }
    return sorted(kept, key=keys[query.sort])


def _changed(wanted: str, flip: str) -> bool:
    return wanted in ("", flip) or (wanted == "flips" and flip in ("gained", "lost"))


def _keeps(atlas: Atlas, query: Query, item: str, verdict: Verdict, metric: int) -> bool:
    """The conditions on one item and one model's verdict."""
    margin, right = verdict.margins[metric], verdict.right[metric]
    outcomes = {"": True, "right": right, "wrong": not right}
    words = atlas.words(item)
    return (
        outcomes.get(query.outcome, verdict.mode == query.outcome)
        and (not query.ties or verdict.tie)
        and (query.low is None or margin >= query.low)
        and (query.high is None or margin <= query.high)
        and (query.tag is None or query.tag[1] in atlas.tags[item].get(query.tag[0], ()))
        and all(word in words for word in query.words.lower().split())
    )


# --- the static page -----------------------------------------------------------------------------


def html(atlas: Atlas) -> str:
    """The whole atlas as one HTML fragment: controls, one card an item, style and script inside."""
    with ThreadPoolExecutor(4) as pool:
        pictures = dict(zip(atlas.ids, pool.map(lambda i: _pictures(atlas, i), atlas.ids),
                            strict=True))  # fmt: skip
    cards = "\n".join(card(atlas, item, pictures[item]) for item in atlas.ids)
    way = f'<p class="way">{atlas.absent}</p>' if atlas.absent else ""
    note = f" · {page.text(atlas.note)}" if atlas.note else ""
    return (
        f'<div class="atlas" tabindex="0"><style>{page.asset("atlas.css")}</style>'
        f"<h2>{page.text(atlas.title)}{note}</h2>{_score_rows(atlas)}{_legend()}{way}"
        f'{_controls(atlas)}<p class="count" role="status">{len(atlas.ids)} items</p>'
        f'<div class="items">\n{cards}\n</div>'
        f'<script type="application/json" class="data">{_data(atlas)}</script>'
        f"<script>{page.asset('atlas.js')}</script></div>"
    )


def document(atlas: Atlas) -> str:
    """The atlas as a page of its own that refers to nothing outside itself."""
    return page.document(f"{atlas.title} {atlas.note}".strip(), html(atlas))


def card(atlas: Atlas, item: str, pictures: str | None = None) -> str:
    """One item: pictures, captions, every model's grid and verdict, tags, and what changed."""
    tags = {
        formatting.tag(column, label): None
        for column, labels in atlas.tags[item].items()
        for label in labels
    }
    shown = " · ".join(page.text(tag) for tag in tags if tag != "untagged")
    grids = "".join(
        _grid(name, found[item]) for name, found in atlas.verdicts.items() if item in found
    )
    name = page.text(item)
    return (
        f'<article data-id="{name}"><h3>item {name}<small>{shown}</small></h3>'
        f"{_pictures(atlas, item) if pictures is None else pictures}"
        f'<div class="grids">{grids}</div>'
        f"{_changes(atlas, item)}</article>"
    )


def _pictures(atlas: Atlas, item: str) -> str:
    """The two pictures with their captions, or what stands in their place."""
    captions, shown = atlas.captions(item), []
    for k in (0, 1):
        if captions:
            alt = f"image {k} of item {item}, which belongs to the caption: {captions[k]}"
            picture = page.image_tag(atlas.items[item].images[k].load(), alt)
            under = f"caption {k}: {page.text(captions[k])}"
        else:
            picture = (f'<div class="none" role="img" aria-label="image {k} is not at hand">'
                       f"image {k}<br>not at hand:<br>see the note above</div>")  # fmt: skip
            under = f"caption {k}: not in the score file"
        shown.append(f"<figure>{picture}<figcaption>{under}</figcaption></figure>")
    return f'<div class="pair">{"".join(shown)}</div>'


def _grid(name: str, verdict: Verdict) -> str:
    """A grid as a heat map, with each inequality's lead between the two cells that it compares."""
    values = verdict.scores.ravel()
    cells = [
        f'<td class="cell{" own" * (n in (0, 3))}" style="background:{back}">'
        f"{page.number(value)}</td>"
        for n, (value, back) in enumerate(zip(values, page.shade(values), strict=True))
    ]
    marks = [_mark(*pair) for pair in zip(failures.INEQUALITIES, verdict.leads, strict=True)]
    margins = ", ".join(
        f"{m} {page.number(v, sign=True)}"
        for m, v in zip(failures.METRICS[:2], verdict.margins, strict=False)
    )
    tie = " · tie" if verdict.tie else ""
    return (
        f'<table class="grid"><caption><b>{page.text(name)}</b>: {verdict.mode}{tie}'
        f"<br><small>margin {margins}</small></caption>"
        '<tr><td></td><th scope="col">caption 0</th><td></td><th scope="col">caption 1</th></tr>'
        f'<tr><th scope="row">image 0</th>{cells[0]}{marks[0]}{cells[1]}</tr>'
        f"<tr><td></td>{marks[2]}<td></td>{marks[3]}</tr>"
        f'<tr><th scope="row">image 1</th>{cells[2]}{marks[1]}{cells[3]}</tr></table>'
    )


def _mark(name: str, lead: float) -> str:
    kind, sign, word = (
        ("holds", "✓", "yes") if lead > 0 else ("fails", "✗", "no") if lead < 0
        else ("even", "=", "a tie")
    )  # fmt: skip
    return (f'<td class="lead {kind}" title="{name}: {word}">{sign}&nbsp;'
            f"{page.number(lead, sign=True)}</td>")  # fmt: skip


def _changes(atlas: Atlas, item: str) -> str:
    """What the item does between the first model and each other one."""
    first, *others = [name for name in atlas.tables if item in atlas.verdicts[name]]
    rows = []
    for other in others:
        before, after = (atlas.verdicts[name][item].right for name in (first, other))
        flip = failures.flips(before, after)
        words = ", ".join(f"{m} {f}" for m, f in zip(failures.METRICS, flip, strict=True))
        rows.append(f"{page.text(first)} → {page.text(other)}: {words}")
    return f'<p class="changes">{"<br>".join(rows)}</p>' if rows else ""


def _score_rows(atlas: Atlas) -> str:
    head = "".join(f"<th>{c}</th>" for c in ("model", "items", *failures.METRICS, "ties"))
    rows = [f"<tr>{head}</tr>"]
    for name, table in atlas.tables.items():
        whole = tabulate(None, table, rule=atlas.rules.get(name, ""), by=()).set_index("metric")
        shares = "".join(
            f"<td>{100 * row.accuracy:.1f}% <small>({100 * row.low:.1f} to {100 * row.high:.1f})"
            "</small></td>"
            for row in (whole.loc[m] for m in failures.METRICS)
        )
        ties = int(whole["ties"].iloc[0])
        rows.append(
            f"<tr><th>{page.text(name)}</th><td>{len(table)}</td>{shares}<td>{ties}</td></tr>"
        )
    return f'<table class="scores">{"".join(rows)}</table>'


def _legend() -> str:
    return (
        "<details><summary>How to read a card</summary><p>Cell (image i, caption k) holds the "
        "score of that pair; darker is higher, the framed diagonal holds the true pairs. Between "
        "two cells stands by how much the true pair leads: ✓ holds, ✗ fails, = is an exact tie, "
        "which counts as wrong. Across: an image chooses its caption (text). Down: a caption "
        "chooses its image (image). Right is an item where both hold (group). A margin is the "
        "smaller of two leads. Scores of different models have different units. "
        "Keys: → or j next, ← or k previous, / search.</p></details>"
    )


def _controls(atlas: Atlas) -> str:
    """The form that the script wakes; its fields are those of `Query`."""
    models = [(name, name) for name in atlas.tables]
    fields = [
        _choice("model", models),
        _choice("metric", [(m, m) for m in failures.METRICS]),
        _choice("outcome", [("", "any"), *((o, o) for o in OUTCOMES)]),
        _choice("against", [("", "–"), *models], "before"),
        _choice("change", [("", "any"), *((c, c) for c in CHANGES)]),
        _choice("tag", [("", "any"), *_tag_options(atlas)]),
        '<label><input type="checkbox" name="ties">ties only</label>',
        '<label>margin from <input type="number" step="any" name="low"></label>',
        '<label>to <input type="number" step="any" name="high"></label>',
        f"<label{'' if atlas.items else ' hidden'}>words in captions "
        '<input type="search" name="words"></label>',
        _choice("sort", [(s, s) for s in SORTS]),
        '<label><input type="checkbox" name="single">one at a time</label>',
        '<button type="button" class="previous">← previous</button>',
        '<button type="button" class="next">next →</button>',
        '<button type="reset">all items</button>',
    ]
    return f'<form class="controls" hidden aria-label="filters">{"".join(fields)}</form>'


def _choice(name: str, options: Sequence[tuple[str, str]], label: str = "") -> str:
    inner = "".join(f'<option value="{page.text(v)}">{page.text(t)}</option>' for v, t in options)
    return f'<label>{label or name} <select name="{name}">{inner}</select></label>'


def _tag_options(atlas: Atlas) -> list[tuple[str, str]]:
    """(value, text) of every label of every tag column that has more than one."""
    labels: dict[str, dict[str, None]] = {}
    for columns in atlas.tags.values():
        for column, found in columns.items():
            labels.setdefault(column, {}).update(dict.fromkeys(found))
    return [
        (f"{column}\t{label}", f"{column}: {label}")
        for column, found in labels.items() if len(found) > 1
        for label in sorted(found)
    ]  # fmt: skip


def _data(atlas: Atlas) -> str:
    """What the script filters by, as JSON that cannot end its element."""
    items = [
        {
            "id": item,
            "tags": atlas.tags[item],
            "words": atlas.words(item),
            "models": {
                name: {"right": v.right, "margins": v.margins, "mode": v.mode, "tie": v.tie}
                for name, found in atlas.verdicts.items()
                if (v := found.get(item)) is not None
            },
        }
        for item in atlas.ids
    ]
    return json.dumps({"items": items}, separators=(",", ":")).replace("<", "\\u003c")


# --- the live twin -------------------------------------------------------------------------------


class Browser:
    """The atlas as a widget: the controls of the page, one item at a time.

    `view` is the widget, `query` what its controls say, `shown` the items left. Tab reaches every
    control; on the slider the arrow keys step.
    """

    def __init__(self, atlas: Atlas) -> None:
        import ipywidgets as w

        self.atlas, self.shown = atlas, atlas.ids
        self.controls = _widgets(atlas)
        self.place = w.IntSlider(min=1, max=len(atlas.ids), description="item", readout=False)
        self.previous = w.Button(description="previous", icon="arrow-left", tooltip="previous item")
        self.next = w.Button(description="next", icon="arrow-right", tooltip="next item")
        self.count, self.card = w.HTML(), w.HTML()
        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        self.place.observe(lambda _: self._draw(), "value")
        for control in self.controls.values():
            control.observe(lambda _: self._filter(), "value")
        for name in ("model", "metric"):
            self.controls[name].observe(lambda _: self._scale(), "value")
        rows = w.HBox(list(self.controls.values()), layout=w.Layout(flex_flow="row wrap"))
        steps = w.HBox([self.previous, self.next, self.place, self.count])
        style = w.HTML(f"<style>{page.asset('atlas.css')}</style>")
        self.view = w.VBox([style, rows, steps, self.card])
        self._scale()

    @property
    def query(self) -> Query:
        """The query that the controls make; a slider at its end sets no limit."""
        said = {name: control.value for name, control in self.controls.items()}
        low, high = said.pop("margin")
        reach = self.controls["margin"]
        column, _, label = said.pop("tag").partition("\t")
        return Query(
            **said,
            tag=(column, label) if column else None,
            low=low if low > reach.min else None,
            high=high if high < reach.max else None,
        )

    def step(self, by: int) -> None:
        """Go to the next or an earlier item; at the ends it stays."""
        self.place.value = int(np.clip(self.place.value + by, self.place.min, self.place.max))

    def _scale(self) -> None:
        """Give the margin slider the reach of this model's margins, which have its own unit."""
        query, slider = self.query, self.controls["margin"]
        metric = failures.METRICS.index(query.metric)
        margins = [v.margins[metric] for v in self.atlas.verdicts[query.model].values()]
        reach = 1.05 * max(max(map(abs, margins)), 1e-12)
        with slider.hold_trait_notifications():
            slider.min, slider.max, slider.step = -reach, reach, reach / 200
            slider.value = (-reach, reach)
        self._filter()

    def _filter(self) -> None:
        self.shown = select(self.atlas, self.query)
        self.place.max = max(1, len(self.shown))
        self.place.value = 1
        self._draw()

    def _draw(self) -> None:
        at = self.place.value
        total = f"{len(self.shown)} of {len(self.atlas.ids)} items"
        if not self.shown:
            self.count.value, self.card.value = total, "no item fits these filters"
            return
        self.count.value = f"item {at} among {total}"
        body = card(self.atlas, self.shown[at - 1])
        way = f'<p class="way">{self.atlas.absent}</p>' if self.atlas.absent else ""
        self.card.value = f'<div class="atlas">{way}{body}</div>'


def _widgets(atlas: Atlas) -> dict[str, Any]:
    """The controls by the name of the query's field that they set."""
    import ipywidgets as w

    models = list(atlas.tables)
    blank = [("any", "")]
    choices: dict[str, Sequence] = {
        "model": models,
        "metric": failures.METRICS,
        "outcome": [*blank, *((o, o) for o in OUTCOMES)],
        "against": [("–", ""), *((m, m) for m in models)],
        "change": [*blank, *((c, c) for c in CHANGES)],
        "tag": [*blank, *((text, value) for value, text in _tag_options(atlas))],
        "sort": SORTS,
    }
    found = {n: w.Dropdown(options=o, description=n, value=_first(o)) for n, o in choices.items()}
    found["against"].description = "before"
    found["words"] = w.Text(description="words", placeholder="in captions")
    found["margin"] = w.FloatRangeSlider(
        value=(-1, 1),
        min=-1,
        max=1,
        description="margin",
        readout_format=".4f",
        layout=w.Layout(width="34em"),  # room for both ends of the readout
    )
    apart = w.Layout(margin="2px 2px 2px 1em")
    found["ties"] = w.Checkbox(description="ties only", indent=False, layout=apart)
    return found


def _first(options: Sequence) -> str:
    return options[0][1] if isinstance(options[0], tuple) else options[0]
