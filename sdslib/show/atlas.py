"""The failure atlas: every item of a set with what each model does to it, to read, filter and step.

One self-contained HTML page, which needs no kernel and, but for its controls, no script. What a
filter keeps is decided here, once: a control asks for a named set of items (`ASKS`) that `Atlas`
has, and the page's script only looks it up. A verdict is one model's word on one item.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pandas as pd

from sdslib.benchmarks import Benchmark, Item
from sdslib.lab.baseline import TEACHER, rule_of
from sdslib.metrics import groups_of, labels_of
from sdslib.results import answers, failures, formatting
from sdslib.show import explain, page
from sdslib.show.page import THUMBNAIL
from sdslib.show.style import Picture
from sdslib.tables import TableError, grids_of, is_triplet, tabulate, tags_of

CHANGES = {"flips": ("gained", "lost"), **{flip: (flip,) for flip in failures.FLIPS}}
# Which set of items a control asks for: that of these controls' values, under the control's name.
ASKS = {
    "model": ("model",),
    "outcome": ("model", "metric", "outcome"),
    "against": ("against",),
    "change": ("against", "model", "metric", "change"),
    "tag": ("tag",),
    "ties": ("model", "ties"),
}
# The same of an order of items.
SORTS = {
    "in order": (),
    "smallest margin first": ("model", "metric"),
    "largest margin first": ("model", "metric"),
    "closest first": ("model", "metric"),
    "largest change first": ("against", "model", "metric"),
}
MANY, LARGE = 400, 320  # with more items than that the page's pictures are small ones
Key = tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """What to show of an atlas: the page's controls that ask for a set of items or an order.

    Outcome and ties are those of `model` (else the first) under `metric` (else the first);
    `change` compares it with `against`, the model before. A tag is given as "column: label".
    """

    model: str = ""
    metric: str = ""
    outcome: str = ""
    against: str = ""
    change: str = ""
    tag: str = ""
    ties: str = ""
    sort: str = "in order"


@dataclass(frozen=True)
class Verdict:
    """One model's grid [I, K] of one item, taken apart as `failures.anatomy` says.

    `leads` are by `failures.INEQUALITIES`, where the item has them; `right` and `margins` are in
    the order of the atlas's metrics. Within `near` a lead decides nothing, at `reach` its bar ends.
    """

    scores: np.ndarray
    leads: dict[str, float]
    right: tuple[bool, ...]
    margins: tuple[float, ...]
    mode: str
    tie: bool
    near: float
    reach: float


@dataclass(frozen=True)
class Atlas:
    """One set's score tables by model, each taken apart; the first is what others are held against.

    A model may have scored some of the items only (the teacher does). `items` has captions and
    images by id, where they are at hand; `absent` says why where they are not. `passports` say of
    which run a model is, `remarks` what a reader has to know of the choice. `begun` is the student
    that the last one is held against where that is not the first: the page begins with their flips.
    `doubts` are `explain.doubt` of the models that are at hand. `maps` (see `show.seen`) are filled
    in by id, of items that somebody looks at.
    """

    title: str
    note: str
    tables: dict[str, pd.DataFrame]
    items: dict[str, Item] = field(default_factory=dict)
    absent: str = ""
    passports: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    begun: str = ""
    doubts: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    maps: dict[str, Picture] = field(default_factory=dict, repr=False, compare=False)

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

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """What tells right from wrong: text, image and group of grids, accuracy of choices."""
        first, *others = self.parts.values()
        return tuple(m for m in failures.metrics_of(first) if all(m in part for part in others))

    @property
    def students(self) -> list[str]:
        """The models beside the teacher; alone it is one of them."""
        return [name for name in self.tables if name != TEACHER] or [*self.tables]

    @cached_property
    def compared(self) -> tuple[str, str]:
        """The student that the last one is held against, and the last; alone it is both."""
        return self.begun or self.students[0], self.students[-1]

    @cached_property
    def answer(self) -> answers.Sentence:
        """How the last student fails, and what it changed; between two runs that comes first."""
        first, last = self.compared
        parts, change, metric = self.parts[last], "", self.metrics[0]
        if first != last:
            pairs = failures.margin_pairs(self.parts[first], parts, metric)
            gained, lost = (int((pairs["flip"] == way).sum()) for way in ("gained", "lost"))
            by = f"the {metric} score" if self.modes else metric
            items = "items" if gained != 1 else "item"
            who = last if self.begun else "it"
            change = f"Against {first} {who} gains {gained} {items} by {by} and loses {lost}."
        note = "" if f"{len(parts)} items" in self.note else self.note
        told = answers.failing(failures.kinds(parts), last, len(parts), note)
        return answers.Sentence(" ".join([change, told] if self.begun else [told, change]).strip())

    @cached_property
    def ids(self) -> list[str]:
        """The items, in order."""
        return self.first["id"].astype(str).tolist()

    @cached_property
    def tags(self) -> list[str]:
        """The tag columns; those with a value for each item tell nothing."""
        return [c for c in tags_of(self.first) if self.first[c].nunique() <= 100]

    @cached_property
    def verdicts(self) -> dict[str, dict[str, Verdict]]:
        """Model -> id -> its verdict."""
        found: dict[str, dict[str, Verdict]] = {}
        for name, table in self.tables.items():
            scored, parts = (table, self.rules[name]), self.parts[name].to_dict("records")
            square, grids = failures.is_square(table), [*grids_of(*scored)]
            if not square:  # one image, and not all items have as many captions
                grids = [np.ma.masked_array(grid).compressed()[None] for grid in grids]
            leads = failures.leads_of(*scored).tolist() if square else [()] * len(parts)
            # of a model that is not at hand rounding alone, and its items' largest lead
            usual = explain.rounding() * max(1, *(abs(grid).max() for grid in grids))
            near, far = self.doubts.get(name, (usual, abs(np.array(leads)).max(initial=0)))
            for part, grid, leading in zip(parts, grids, leads, strict=True):
                named = dict(zip(failures.INEQUALITIES, leading, strict=False))
                right = tuple(part[metric] for metric in self.metrics)
                margins = tuple(part[f"margin_{metric}"] for metric in self.metrics)
                told = part["mode"], part["tie"], near, max([far, *map(abs, leading)])
                verdict = Verdict(grid, named, right, margins, *told)
                found.setdefault(name, {})[part["id"]] = verdict
        return found

    @cached_property
    def placed(self) -> dict[str, pd.DataFrame]:
        """`parts` with a row for each item of the atlas, empty where a model has not scored it."""
        return {name: part.set_index("id").reindex(self.ids) for name, part in self.parts.items()}

    @cached_property
    def sets(self) -> dict[Key, np.ndarray]:
        """The items, [N] bool, of everything that can be asked for, see `ASKS`."""
        found: dict[Key, np.ndarray] = {}
        for model, part in self.placed.items():
            there = part["mode"].notna().to_numpy()
            found |= {("model", model): there, ("against", model): there}
            found["ties", model, "ties only"] = part["tie"].eq(True).to_numpy()
            for metric in self.metrics:
                right = part[metric].eq(True).to_numpy()
                own = {mode: part["mode"].eq(mode).to_numpy() for mode in self.modes}
                own |= {"right": right, "wrong": there & ~right}
                found |= {("outcome", model, metric, name): of for name, of in own.items()}
        for before, model in permutations(self.tables, 2):
            both = found["model", before] & found["model", model]
            for metric in self.metrics:
                a, b = (found["outcome", name, metric, "right"] for name in (before, model))
                flips = failures.flips(a, b)
                found |= {("change", before, model, metric, change): both & np.isin(flips, meant)
                          for change, meant in CHANGES.items()}  # fmt: skip
        for column in self.tags:
            groups, places = groups_of(self.first[column]), np.arange(len(self.ids))
            for label, of in groups.items() if len(groups) > 1 else ():
                found["tag", f"{column}: {label}"] = np.isin(places, of)
        return found

    @cached_property
    def modes(self) -> tuple[str, ...]:
        """Ways to fail beside right and wrong."""
        known = failures.modes_of(next(iter(self.parts.values())))
        return tuple(mode for mode in known if mode not in ("right", "wrong"))

    @cached_property
    def margins(self) -> dict[Key, np.ndarray]:
        """Margins of the items, [N], by model and metric; NaN where it has not scored them."""
        return {(model, metric): part[f"margin_{metric}"].to_numpy(float)
                for model, part in self.placed.items() for metric in self.metrics}  # fmt: skip

    @cached_property
    def orders(self) -> dict[Key, np.ndarray]:
        """Places of the items in every order that can be asked for, see `SORTS`."""
        found: dict[Key, np.ndarray] = {("in order",): np.zeros(len(self.ids))}
        for (model, metric), margin in self.margins.items():
            signed = {"smallest": margin, "largest": -margin}
            found |= {(f"{way} margin first", model, metric): by for way, by in signed.items()}
            found["closest first", model, metric] = abs(margin)
        for before, model in permutations(self.tables, 2):
            for metric in self.metrics:
                moved = abs(self.margins[model, metric] - self.margins[before, metric])
                found["largest change first", before, model, metric] = -moved
        return {name: by.argsort(kind="stable") for name, by in found.items()}

    def captions(self, item: str) -> tuple[str, ...]:
        """The item's captions, none where they are not at hand."""
        return self.items[item].captions if item in self.items else ()

    def words(self, item: str) -> str:
        """What a search looks through: the item's id and captions."""
        return " ".join([item, *self.captions(item)]).lower()

    @cached_property
    def true(self) -> dict[str, tuple[int, ...]]:
        """The places of the true captions by item, none in a grid."""
        if is_triplet(self.first):
            return dict.fromkeys(self.ids, (0, 1))
        answers = self.first["answer"]
        return {i: () if pd.isna(k) else (int(k),) for i, k in zip(self.ids, answers, strict=True)}

    def labels(self, item: str) -> list[str]:
        """The item's tags in words, each once."""
        row = self.first.iloc[self.ids.index(item)]
        known = [(c, label) for c in self.tags for label in labels_of(row[c])]
        told = [formatting.tag(*pair) for pair in known if pair[1] != "untagged"]
        return list(dict.fromkeys(told))


def build(
    tables: Mapping[str, pd.DataFrame],
    benchmark: Benchmark | None = None,
    title: str = "Failures",
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
    """Ids of the items that the query keeps, in its order; TableError where it cannot apply."""
    usual = {"model": next(iter(atlas.tables)), "metric": atlas.metrics[0]}
    given = vars(query) | {name: getattr(query, name) or first for name, first in usual.items()}
    wanted = {name: (name, *(given[n] for n in of)) for name, of in ASKS.items() if given[name]}
    order = (query.sort, *(given[name] for name in SORTS[query.sort]))
    odd = [name for name, key in wanted.items() if key not in atlas.sets]
    if odd or order not in atlas.orders:
        name = odd[0] if odd else "sort"
        raise TableError(
            f"{name} {given[name]!r} needs another model in 'against', and a known one"
        )
    kept = np.logical_and.reduce([atlas.sets[key] for key in wanted.values()])
    return [atlas.ids[place] for place in atlas.orders[order] if kept[place]]


def flipped(atlas: Atlas) -> list[str]:
    """Ids of the items that changed between the two that are compared; none where one is alone."""
    before, model = atlas.compared
    query = Query(model=model, against=before, change="flips")
    return select(atlas, query) if before != model else []


# --- the page ------------------------------------------------------------------------------------


def html(atlas: Atlas) -> str:
    """The whole atlas as one HTML fragment: controls, one card an item, style and script inside."""
    side = THUMBNAIL if len(atlas.ids) > MANY else LARGE
    with ThreadPoolExecutor(4) as pool:  # pictures are read and shrunk
        cards = list(pool.map(lambda item: _card(atlas, item, side, "webp"), atlas.ids))
    scores = {name: tabulate(None, table, rule=atlas.rules[name], by=())
              for name, table in atlas.tables.items()}  # fmt: skip
    views = {"scores": scores, "choices": _choices(atlas), "cards": cards, "data": _data(atlas)}
    return page.render("atlas", atlas=atlas, **views)


def document(atlas: Atlas) -> str:
    """The atlas as a page of its own that refers to nothing outside itself."""
    return page.render("page", title=f"{atlas.title} {atlas.note}".strip(), body=html(atlas))


def card(atlas: Atlas, item: str) -> str:
    """One item: pictures, captions, every model's grid and verdict, tags, and what changed."""
    return page.render("card", card=_card(atlas, item))


def _card(atlas: Atlas, item: str, side: int = THUMBNAIL, kind: str = "jpeg") -> dict[str, Any]:
    """What `card.html.j2` shows of an item."""
    verdicts = {name: found[item] for name, found in atlas.verdicts.items() if item in found}
    own = {name: told for name, told in atlas.passports.items() if name in verdicts}
    known = atlas.items.get(item)
    pictures = [page.data_uri(ref.load(), side, kind) for ref in known.images] if known else []
    first, *others = verdicts
    changes = []
    for other in others:
        flips = failures.flips(verdicts[first].right, verdicts[other].right)
        told = ", ".join(f"{m} {flip}" for m, flip in zip(atlas.metrics, flips, strict=True))
        changes.append(f"{first} → {other}: {told}")
    return {
        "id": item, "labels": atlas.labels(item), "captions": atlas.captions(item),
        "passports": own, "pictures": pictures, "verdicts": verdicts, "changes": changes,
        "metrics": atlas.metrics, "true": atlas.true[item], "maps": atlas.maps.get(item),
    }  # fmt: skip


def _choices(atlas: Atlas) -> dict[str, list[tuple[str, str]]]:
    """(text, value) of what each drop-down offers, by the query's field that it sets."""
    tags = [key[1] for key in atlas.sets if key[0] == "tag"]
    offered: dict[str, tuple[str, Iterable[str]]] = {
        "model": ("", atlas.tables),
        "metric": ("", atlas.metrics),
        "outcome": ("any", ("right", "wrong", *atlas.modes)),
        "against": ("–", atlas.tables),
        "change": ("any", CHANGES),
        "tag": ("any", tags),
        "sort": ("", SORTS),
    }
    return {name: [(none, "")] * bool(none) + [(n, n) for n in names]
            for name, (none, names) in offered.items()}  # fmt: skip


def _data(atlas: Atlas) -> dict[str, Any]:
    """What the script looks up: sets as bits in hexadecimal, orders, margins, lines of CSV."""
    named = {
        "sets": {key: np.packbits(kept).tobytes().hex() for key, kept in atlas.sets.items()},
        "orders": {key: order.tolist() for key, order in atlas.orders.items()},
        "margins": {key: [None if np.isnan(m) else m for m in margins.tolist()]
                    for key, margins in atlas.margins.items()},
    }  # fmt: skip
    told = {
        what: {"\t".join(key): of for key, of in found.items()} for what, found in named.items()
    }
    return told | {"asks": ASKS, "sorts": SORTS, "rows": _rows(atlas), "ids": atlas.ids,
                   "words": [*map(atlas.words, atlas.ids)], "begin": _begin(atlas)}  # fmt: skip


def _begin(atlas: Atlas) -> str:
    """What the page asks for where no link does: the flips between two runs, if there are any."""
    before, model = atlas.compared
    change = {"change": "flips"} if flipped(atlas) else {}
    return urlencode({"model": model, "against": before} | change) if atlas.begun else ""


def _rows(atlas: Atlas) -> list[str]:
    """The lines of a CSV file with all that is known of each item, their head first."""
    known = atlas.first.set_index("id")[tags_of(atlas.first)]
    texts = pd.DataFrame([dict(enumerate(atlas.captions(i))) for i in atlas.ids], atlas.ids)
    tables = [known, texts.add_prefix("caption ")]
    for name, part in atlas.placed.items():
        told = part[[*atlas.metrics, "mode", "tie", *(f"margin_{m}" for m in atlas.metrics)]]
        cells = atlas.tables[name].set_index("id").filter(regex=r"^s_\d+_\d+$")
        tables += [told.add_prefix(f"{name} "), cells.add_prefix(f"{name} ")]
    whole = pd.concat(tables, axis=1).astype(object)
    rows = whole.where(whole.notna(), "").itertuples(name=None)
    return [_line(cells) for cells in (("id", *whole.columns), *rows)]


def _line(cells: Iterable) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue()
