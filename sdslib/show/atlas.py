"""The failure atlas: every item of a set with what each model does to it, to read, filter and step.

One view in two forms: a self-contained HTML page that needs no kernel and no script to be read,
and a live widget with the same controls. A verdict is one model's word on one item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd

from sdslib.benchmarks import Benchmark, Item
from sdslib.lab.baseline import TEACHER, rule_of
from sdslib.metrics import labels_of
from sdslib.results import answers, failures, formatting
from sdslib.results.failures import METRICS
from sdslib.show import page
from sdslib.tables import TableError, grids_of, tabulate, tags_of

OUTCOMES = ("right", "wrong", *failures.MODES[1:])
CHANGES = ("flips", *failures.FLIPS)
# The order of items by their margin and by how far it moved from the model before.
SORTS: dict[str, Callable[[float, float], float]] = {
    "in order": lambda margin, moved: 0.0,
    "smallest margin first": lambda margin, moved: margin,
    "largest margin first": lambda margin, moved: -margin,
    "closest first": lambda margin, moved: abs(margin),
    "largest change first": lambda margin, moved: -abs(moved),
}


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
    """One model's grid [2, 2] of one item, taken apart as `failures.anatomy` says.

    `leads` are by `failures.INEQUALITIES`; `right` and `margins` are in the order of METRICS.
    """

    scores: np.ndarray
    leads: dict[str, float]
    right: tuple[bool, ...]
    margins: tuple[float, ...]
    mode: str
    tie: bool


@dataclass(frozen=True)
class Atlas:
    """One set's score tables by model, each taken apart; the first is what others are held against.

    A model may have scored some of the items only (the teacher does). `items` has captions and
    images by id, where they are at hand; `absent` says why where they are not. `passports` say of
    which run a model is, `remarks` what a reader has to know of the choice.
    """

    title: str
    note: str
    tables: dict[str, pd.DataFrame]
    items: dict[str, Item] = field(default_factory=dict)
    absent: str = ""
    passports: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @cached_property
    def rules(self) -> dict[str, str]:
        """The rule by which each model's table decides."""
        return {name: rule_of(table) for name, table in self.tables.items()}

    @cached_property
    def parts(self) -> dict[str, pd.DataFrame]:
        """`failures.anatomy` of every model's table."""
        return {name: failures.anatomy(t, self.rules[name]) for name, t in self.tables.items()}

    @property
    def first(self) -> pd.DataFrame:
        """The table whose items are those of the atlas."""
        return next(iter(self.tables.values()))

    @property
    def students(self) -> list[str]:
        """The models beside the teacher; alone it is one of them."""
        return [name for name in self.tables if name != TEACHER] or [*self.tables]

    @cached_property
    def answer(self) -> answers.Sentence:
        """How the last student fails, and what it changed against the first."""
        first, last = self.students[0], self.students[-1]
        parts, change = self.parts[last], ""
        if first != last:
            both = self.parts[first].merge(parts, on="id")
            counts = pd.Series(failures.flips(both["text_x"], both["text_y"])).value_counts()
            change = f" Against {first} it gains {counts.get('gained', 0)} items by the text score "
            change += f"and loses {counts.get('lost', 0)}."
        note = "" if f"{len(parts)} items" in self.note else self.note
        told = answers.failing(failures.kinds(parts), last, len(parts), note)
        return answers.Sentence(told + change)

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
        found: dict[str, dict[str, Verdict]] = {}
        for name, table in self.tables.items():
            scored, parts = (table, self.rules[name]), self.parts[name].to_dict("records")
            both = zip(parts, grids_of(*scored), failures.leads_of(*scored).tolist(), strict=True)
            for part, grid, leads in both:
                named = dict(zip(failures.INEQUALITIES, leads, strict=True))
                right, margins = ([part[f"{of}{m}"] for m in METRICS] for of in ("", "margin_"))
                verdict = Verdict(
                    grid, named, tuple(right), tuple(margins), part["mode"], part["tie"]
                )
                found.setdefault(name, {})[part["id"]] = verdict
        return found

    def captions(self, item: str) -> tuple[str, ...]:
        """The item's captions, none where they are not at hand."""
        return self.items[item].captions if item in self.items else ()

    def words(self, item: str) -> str:
        """What a search in captions looks through."""
        return " ".join(self.captions(item)).lower()

    def labels(self, item: str) -> list[str]:
        """The item's tags in words, each once."""
        known = [(c, label) for c, labels in self.tags[item].items() for label in labels]
        told = [formatting.tag(*pair) for pair in known if pair[1] != "untagged"]
        return list(dict.fromkeys(told))


def build(
    tables: Mapping[str, pd.DataFrame],
    benchmark: Benchmark | None = None,
    title: str = "Winoground failures",
    note: str = "",
    absent: str = "",
) -> Atlas:
    """The atlas of one set from score tables by model; the others are held against the first.

    Every model's items must be among the first one's, and the benchmark's must hold them all;
    TableError names one that is not. Without a benchmark `absent` may say why there is none.
    """
    if not tables:
        raise TableError("an atlas needs at least one score table")
    tables = {name: t.assign(id=t["id"].astype(str)) for name, t in tables.items()}
    known = next(iter(tables.values()))["id"]
    sources = {name: set(table["id"]) - set(known) for name, table in tables.items()}
    items = {str(item.id): item for item in benchmark.items} if benchmark else {}
    sources |= {benchmark.name: set(known) - set(items)} if benchmark else {}
    for name, odd in sources.items():
        if odd:
            raise TableError(f"{name} is of other items: {len(odd)} do not fit, e.g. {min(odd)!r}")
    return Atlas(title, note, tables, {i: items[i] for i in known if items}, absent)


def select(atlas: Atlas, query: Query) -> list[str]:
    """Ids of the items that the query keeps, sorted as it says; equals what the page shows."""
    model = query.model or next(iter(atlas.tables))
    after, before = atlas.verdicts[model], atlas.verdicts.get(query.against, {})
    metric, moved = METRICS.index(query.metric), dict[str, float]()
    kept = [i for i in atlas.ids if i in after and _keeps(atlas, query, i, after[i], metric)]
    if query.against:
        wanted = {"": failures.FLIPS, "flips": ("gained", "lost")}.get(
            query.change, (query.change,)
        )
        kept = [i for i in kept if i in before
                and failures.flips(before[i].right, after[i].right)[metric] in wanted]  # fmt: skip
        moved = {i: after[i].margins[metric] - before[i].margins[metric] for i in kept}
    order = SORTS[query.sort]
    return sorted(kept, key=lambda i: order(after[i].margins[metric], moved.get(i, 0.0)))


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
    data = {"items": [_data(atlas, item) for item in atlas.ids]}
    with ThreadPoolExecutor(4) as pool:  # pictures are read and shrunk
        cards = list(pool.map(lambda item: _card(atlas, item), atlas.ids))
    scores = {name: tabulate(None, table, rule=atlas.rules[name], by=())
              for name, table in atlas.tables.items()}  # fmt: skip
    views = {"scores": scores, "choices": _choices(atlas), "cards": cards, "data": data}
    return page.render("atlas", atlas=atlas, metrics=METRICS, **views)


def document(atlas: Atlas) -> str:
    """The atlas as a page of its own that refers to nothing outside itself."""
    return page.render("page", title=f"{atlas.title} {atlas.note}".strip(), body=html(atlas))


def card(atlas: Atlas, item: str) -> str:
    """One item: pictures, captions, every model's grid and verdict, tags, and what changed."""
    return page.render("card", card=_card(atlas, item))


def _card(atlas: Atlas, item: str) -> dict[str, Any]:
    """What `card.html.j2` shows of an item."""
    verdicts = {name: found[item] for name, found in atlas.verdicts.items() if item in found}
    own = {name: told for name, told in atlas.passports.items() if name in verdicts}
    images = atlas.items[item].images if item in atlas.items else ()
    pictures = [page.data_uri(ref.load()) for ref in images]
    named = {"id": item, "labels": atlas.labels(item), "captions": atlas.captions(item)}
    card = named | {"passports": own}
    first, *others = verdicts
    changes = []
    for other in others:
        flips = failures.flips(verdicts[first].right, verdicts[other].right)
        told = ", ".join(f"{m} {flip}" for m, flip in zip(METRICS, flips, strict=True))
        changes.append(f"{first} → {other}: {told}")
    return card | {"pictures": pictures, "verdicts": verdicts, "changes": changes}


def _choices(atlas: Atlas) -> dict[str, list[tuple[str, str]]]:
    """(text, value) of what each drop-down offers, by the query's field that it sets."""
    labels: dict[str, set[str]] = {}
    for columns in atlas.tags.values():
        for column, found in columns.items():
            labels.setdefault(column, set()).update(found)
    pairs = [(c, label) for c, found in labels.items() if len(found) > 1 for label in sorted(found)]
    offered: dict[str, tuple[list[tuple[str, str]], Iterable[str]]] = {
        "model": ([], atlas.tables),
        "metric": ([], METRICS),
        "outcome": ([("any", "")], OUTCOMES),
        "against": ([("–", "")], atlas.tables),
        "change": ([("any", "")], CHANGES),
        "tag": ([("any", ""), *((": ".join(pair), "\t".join(pair)) for pair in pairs)], ()),
        "sort": ([], SORTS),
    }
    return {field: [*first, *((n, n) for n in names)] for field, (first, names) in offered.items()}


def _data(atlas: Atlas, item: str) -> dict[str, Any]:
    """What the script filters an item by."""
    models = {
        name: {"right": v.right, "margins": v.margins, "mode": v.mode, "tie": v.tie}
        for name, found in atlas.verdicts.items()
        if (v := found.get(item))
    }
    words = atlas.words(item)
    return {"id": item, "tags": atlas.tags[item], "words": words, "models": models}


# --- the live twin -------------------------------------------------------------------------------


class Browser:
    """The atlas as a widget: the controls of the page, one item at a time.

    `view` is the widget, `query` what its controls say, `shown` the items left. Tab reaches every
    control; on the slider the arrow keys step.
    """

    def __init__(self, atlas: Atlas) -> None:
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
        head = w.HTML(page.render("browser", atlas=atlas))
        self.view = w.VBox([head, rows, steps, self.card])
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
        metric = METRICS.index(query.metric)
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
        self.card.value = f'<div class="atlas">{card(self.atlas, self.shown[at - 1])}</div>'


def _widgets(atlas: Atlas) -> dict[str, Any]:
    """The controls by the name of the query's field that they set."""
    labels = {"against": "before"}
    found = {name: w.Dropdown(options=options, description=labels.get(name, name))
             for name, options in _choices(atlas).items()}  # fmt: skip
    found["words"] = w.Text(description="words", placeholder="in captions")
    wide = w.Layout(width="34em")  # room for both ends of the readout
    reach = {"value": (-1, 1), "min": -1, "max": 1, "readout_format": ".4f"}
    found["margin"] = w.FloatRangeSlider(description="margin", layout=wide, **reach)
    apart = w.Layout(margin="2px 2px 2px 1em")
    found["ties"] = w.Checkbox(description="ties only", indent=False, layout=apart)
    return found
