"""One image, several captions: VALSE, What'sUp, NegBench and SugarCrepe++ as their authors do."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from faults.catalog import fault, refused
from hub.server import Hub
from test_hub import point_at
from tiny import png, save_student, write_json

from sdslib import evaluate, metrics, tables
from sdslib.benchmarks import TOTALS, load_benchmark
from sdslib.io.sources import DataError
from sdslib.sets.choices import NEGBENCH, VALSE, WHATSUP
from sdslib.sets.sugarcrepe import PLUS_PLUS
from sdslib.student import load_student

SUBSETS = list(PLUS_PLUS)
NOUNS = ("circle", "square", "triangle", "small circle", "large square")


def put(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(png((sum(map(ord, name)) % 256, len(name), 0)))


def sugarcrepe_pp(folder, rows=2):
    for subset, noun in zip(SUBSETS, NOUNS, strict=True):
        found = [
            {"id": 3 * i, "filename": f"{i:012d}.jpg", "caption": f"a red {noun} on the {side}",
             "caption2": f"on the {side} is a {noun} red",
             "negative_caption": f"a blue {noun} on the {side}"}
            for i, side in enumerate(("left", "right")[:rows])
        ]  # fmt: skip
        write_json(folder / "data" / f"{subset}.json", found)
    put(folder / "val2017", *(f"{i:012d}.jpg" for i in range(rows)))
    return folder


def valse(folder, votes=(3, 1, 2)):
    for n, (piece, (folders, _)) in enumerate(VALSE.items()):
        names = [f"{piece}_{i}.jpg" for i in range(len(votes))]
        rows = {
            f"{piece}_{i}": {"dataset": "x", "original_split": "test", "image_file": name,
                             "linguistic_phenomena": "x", "caption": f"a red circle {n} {i}",
                             "foil": f"a blue circle {n} {i}", "classes": "red",
                             "mturk": {"foil": 0, "caption": vote, "other": 3 - vote}}
            for i, (name, vote) in enumerate(zip(names, votes, strict=True))
        }  # fmt: skip
        write_json(folder / f"{piece}.json", rows)
        put(folder / folders[0], *names)
    return folder


RELATIONS = {"A": ("on", "under", "left_of", "right_of"),
             "B": ("in-front_of", "behind", "left_of", "right_of")}  # fmt: skip


def whatsup(folder):
    for part, things in (("A", ("mug", "cap")), ("B", ("bowl", "can", "cup"))):
        rows, own = [], WHATSUP[part]
        for thing in things:
            options = [f"A {thing} {r.replace('_', ' ')} a plate" for r in RELATIONS[part]]
            for k, relation in enumerate(RELATIONS[part]):
                name = f"{thing}_{relation}_plate.jpeg"
                put(folder / own.folders[0], name)
                order = [options[k], *options[:k], *options[k + 1 :]]
                path = f"data/{own.folders[0]}/{name}"
                rows.append({"image_path": path, "caption_options": order})
        write_json(folder / own.file, rows)
    for part in ("coco-one", "coco-two", "gqa-one", "gqa-two"):
        rows = [[f"{7 * i}", f"a dog {part} on the left {i}", f"a dog {part} on the right {i}"]
                for i in range(1, 3)]  # fmt: skip
        write_json(folder / WHATSUP[part].file, rows)
        wide = 12 if part.startswith("coco") else 0
        put(folder / WHATSUP[part].folders[0], *(f"{row[0].zfill(wide)}.jpg" for row in rows))
    return folder


def negbench(folder, answers=(0, 2)):
    for part, own in NEGBENCH.items():
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / own.file).open("w", newline="") as file:
            texts = [f"caption_{k}" for k in range(4)]
            write = csv.DictWriter(file, ["", "image_path", "correct_answer", *texts,
                                          "correct_answer_template"])  # fmt: skip
            write.writeheader()
            for i, answer in enumerate(answers):
                row = {"": i, "image_path": f"data/somebody/{part}{i}.jpg"}
                row |= {text: f"{part} {i}, no {k}" for k, text in enumerate(texts)}
                write.writerow(
                    row | {"correct_answer": answer, "correct_answer_template": "hybrid"}
                )
        put(folder / own.folders[0], *(f"{part}{i}.jpg" for i in range(len(answers))))
    return folder


MADE = {"sugarcrepe++": sugarcrepe_pp, "valse": valse, "whatsup": whatsup, "negbench": negbench}


@pytest.mark.parametrize(
    ("name", "count", "last", "captions", "tags"),
    [
        ("sugarcrepe++", 10, "swap_att/3",
         ("a red large square on the right", "on the right is a large square red",
          "a blue large square on the right"), {"subset": "swap_att"}),
        ("valse", 22, "foil-it/foil-it_2", ("a red circle 10 2", "a blue circle 10 2"),
         {"subset": "foil-it"}),
        ("whatsup", 28, "gqa-two/1",
         ("a dog gqa-two on the left 2", "a dog gqa-two on the right 2"),
         {"subset": "gqa-two", "preposition": "", "set": "", "pair": ""}),
        ("negbench", 4, "voc2007/1", tuple(f"voc2007 1, no {k}" for k in range(4)),
         {"subset": "voc2007", "template": "hybrid"}),
    ],
)  # fmt: skip
def test_each_set_is_read_in_its_authors_layout(tmp_path, name, count, last, captions, tags):
    found = load_benchmark(f"{name}:{MADE[name](tmp_path)}")
    assert found.label == f"{name} (partial: {count} of {TOTALS[name]})"
    item = found.items[-1]
    assert (item.id, item.captions, item.tags) == (last, captions, tags)
    assert found.kind == ("triplet" if name == "sugarcrepe++" else "choice")
    assert item.answer == {"sugarcrepe++": None, "negbench": 2}.get(name, 0)
    assert len({i.id for i in found.items}) == count
    assert not found.duplicates()
    for item in found.items:
        assert item.images[0].load().size == (24, 24)


def test_photographs_of_whatsup_tell_their_pairs_and_sets(tmp_path):
    items = load_benchmark(f"whatsup:{whatsup(tmp_path)}").items
    assert items[5].tags == {"subset": "A", "preposition": "under", "set": "A/cap_plate",
                             "pair": "A/cap_plate/height"}  # fmt: skip
    assert items[8].tags["pair"] == "B/bowl_plate/depth"
    assert items[8].captions[0] == "A bowl in-front of a plate"


def test_votes_decide_which_foils_count(tmp_path):
    """Two of three annotators: 7,702 of 8,782 in the authors' files."""
    found = load_benchmark(f"valse:{valse(tmp_path, votes=(0, 1, 2, 3))}")
    assert {item.id.rpartition("_")[2] for item in found.items} == {"2", "3"}


# --- the Hub, and what is absent -----------------------------------------------------------------


def test_captions_come_from_the_hub_and_images_from_here(tmp_path, monkeypatch):
    """Under the Hub's names of the subsets, one of which is misspelt there."""
    there = Hub(tmp_path / "served")
    repo = there.folder("Aman-J/SugarCrepe_pp", "datasets")
    local = sugarcrepe_pp(tmp_path / "local")
    for subset, names in PLUS_PLUS.items():
        shutil.copy(local / "data" / f"{subset}.json", repo / f"{names[-1]}.json")
    point_at(there.url, tmp_path / "cache", monkeypatch)
    told = r"data/sugarcrepe\+\+/val2017 is not a folder; .*val2017\.zip"
    with pytest.raises(DataError, match=told):
        load_benchmark("sugarcrepe++:Aman-J/SugarCrepe_pp")
    usual, commit = {"data/coco": local}, there.commit("Aman-J/SugarCrepe_pp", "datasets")
    monkeypatch.setattr(
        "sdslib.sets.origins.project_path", lambda p: usual.get(str(p), tmp_path / str(p))
    )
    found = load_benchmark(f"sugarcrepe++:Aman-J/SugarCrepe_pp@{commit}")
    assert found.fingerprint == load_benchmark(f"sugarcrepe++:{local}").fingerprint
    there.stop()


def test_parts_without_images_or_file_are_left_out_with_a_word(tmp_path):
    whatsup(tmp_path)
    shutil.rmtree(tmp_path / "vg_images")
    (tmp_path / WHATSUP["B"].file).unlink()
    told = r"of 6 parts: .*controlled_clevr.*; gqa-one: none of its 2 images is here .*Vis"
    with pytest.warns(UserWarning, match=told):
        found = load_benchmark(f"whatsup:{tmp_path}")
    assert {item.tags["subset"] for item in found.items} == {"A", "coco-one", "coco-two"}
    assert found.partial


@pytest.mark.parametrize("name", MADE)
def test_an_absent_set_says_how_to_get_it_and_absent_images_are_counted(tmp_path, name):
    with pytest.raises(DataError, match=rf"{tmp_path.name} holds no .*; give .*github"):
        load_benchmark(f"{name}:{tmp_path}")
    folder = MADE[name](tmp_path)
    for path in [*folder.rglob("*.jp*g")]:
        path.unlink()
    told = r"does not exist .*; \d+ of \d+ images are missing \(they are (COCO's|Vis|in What)"
    with pytest.raises(DataError, match=told):
        load_benchmark(f"{name}:{folder}")
    for path in [p for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir())]:
        path.rmdir()
    with pytest.raises(DataError, match=r"none of its|is not a folder"):
        load_benchmark(f"{name}:{folder}")


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("sugarcrepe++", "data/swap_obj.json", lambda r: r[1].pop("caption2"),
         r"swap_obj\.json\[1\]\.caption2: is missing"),
        ("sugarcrepe++", "data/swap_obj.json", lambda r: r[1].update(id=0),
         r"swap_obj\.json\[1\]: id 0 appears twice"),
        ("valse", "plurals.json", lambda r: r["plurals_0"]["mturk"].update(caption="many"),
         r"plurals\.json\[plurals_0\]\.mturk\.caption: expected integer, got 'many'"),
        ("valse", "relations.json", lambda r: r["relations_0"].update(image_file="../x.jpg"),
         r"relations\.json\[relations_0\]\.image_file: '\.\./x\.jpg' escapes"),
        ("whatsup", "controlled_images_dataset.json", lambda r: r[2]["caption_options"].pop(),
         r"dataset\.json\[2\]\.caption_options: "),
        ("whatsup", "coco_qa_two_obj.json", lambda r: r[1].pop(), r"two_obj\.json\[1\]\[2\]: is"),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_its_place(tmp_path, name, file, change, message):
    path = MADE[name](tmp_path) / file
    rows = json.loads(path.read_text())
    change(rows)
    write_json(path, rows)
    with pytest.raises(DataError, match=message):
        load_benchmark(f"{name}:{tmp_path}")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",2,", ",4,", r"csv\[1\]\.correct_answer: .*3, got '4'"),
        (",2,", ",two,", r"csv\[1\]\.correct_answer: expected integer, got 'two'"),
    ],
)
def test_a_fault_in_negbench_is_named_by_its_place(tmp_path, old, new, message):
    path = negbench(tmp_path) / NEGBENCH["coco"].file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        load_benchmark(f"negbench:{tmp_path}")


# --- the authors' figures ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return load_student(f"local-dir:{save_student(tmp_path_factory.mktemp('s') / 'student')}", None)


def test_triplets_are_scored_with_the_image_and_by_the_texts(student, tmp_path):
    """Against the authors' two comparisons, on embeddings taken one by one."""
    found = load_benchmark(f"sugarcrepe++:{sugarcrepe_pp(tmp_path)}")
    table = evaluate.score_grids(evaluate.clip_scorer(student, 4), found)
    right = tables.outcomes(table)
    for one, item in enumerate(found.items):
        image = student.encode_images(student.transform(item.images[0].load())[None]).double()[0]
        p1, p2, n = student.encode_texts(student.tokenize(list(item.captions))).double()
        both = bool(p1 @ image > n @ image) and bool(p2 @ image > n @ image)
        assert right["image-to-text"][one] == both
        texts = table.loc[one, [f"text.s_0_{k}" for k in range(3)]]
        told = [float(p1 @ p2), float(p1 @ n), float(p2 @ n)]
        assert texts.tolist() == pytest.approx(told, abs=1e-5)
        assert right["text-to-text"][one] == bool(p1 @ p2 > p1 @ n and p1 @ p2 > p2 @ n)
    assert tables.is_triplet(table)
    assert not tables.is_grid(table)
    told = tables.tabulate(found, table, by=("subset",)).set_index(["label", "metric"])
    assert set(told.index.get_level_values("metric")) == {"image-to-text", "text-to-text"}
    assert told.loc[("macro", "text-to-text"), "n"].item() == 10
    assert set(told["chance"]) == {1 / 3}


def test_a_caption_that_is_said_twice_is_no_tie_of_a_triplet(student, tmp_path):
    folder = sugarcrepe_pp(tmp_path, rows=1)
    for subset, twice in (("swap_obj", "caption2"), ("swap_att", "negative_caption")):
        path = folder / "data" / f"{subset}.json"
        rows = json.loads(path.read_text())
        rows[0][twice] = rows[0]["caption"]
        write_json(path, rows)
    found = load_benchmark(f"sugarcrepe++:{folder}")
    with pytest.warns(tables.Caution, match=r"1 of 5 items have captions .* swap_att/0"):
        table = evaluate.score_grids(evaluate.clip_scorer(student, 4), found)
    assert tables.ties_of(table).sum() <= 1
    assert not tables.outcomes(table)["image-to-text"][4]


def test_chance_is_what_a_thousand_random_scorers_reach():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 3))
    both = metrics.both_above_false(scores).mean()
    assert both == pytest.approx(metrics.CHANCE_TRIPLET["image-to-text"], abs=0.01)
    first = metrics.choice_correct(scores, np.zeros(len(scores), dtype=int)).mean()
    assert first == pytest.approx(metrics.CHANCE_TRIPLET["text-to-text"], abs=0.01)
    assert not metrics.both_above_false(np.zeros((5, 3))).any()
    with pytest.raises(metrics.ScoreError, match=r"are \[N, 3\], not \[5, 2\]"):
        metrics.both_above_false(np.zeros((5, 2)))


def whatsup_authors(names, correct, opposite):
    """Pair and set accuracy as the authors' loop counts them, by words of the file names."""
    found = {}
    for name, right in zip(names, correct, strict=True):
        words = name.split("_")
        found.setdefault((words[0], words[-1][:-5]), {})[words[1]] = right
    pairs = sum(o["left"] and o["right"] for o in found.values())
    pairs += sum(o[opposite[0]] and o[opposite[1]] for o in found.values())
    sets = sum(sum(o.values()) == 4 for o in found.values())
    return pairs / (len(names) / 2), sets / (len(names) / 4)


def scored(items, right, seed=0):
    """A table of choices in which the items of `right` have their true caption above the others."""
    rng = np.random.default_rng(seed)
    rows = []
    for item, good in zip(items, right, strict=True):
        grid = rng.uniform(size=(1, len(item.captions)))
        grid[0, item.answer] = 2 if good else -1
        row = {"id": item.id, "answer": item.answer, **item.tags, "n_images": 1}
        row |= {"n_captions": len(item.captions), **tables.cell_columns({"": grid})}
        rows.append(row)
    return pd.DataFrame(rows).astype({"answer": "Int64"})


@pytest.mark.parametrize("seed", range(6))
def test_pair_and_set_accuracy_are_the_authors(tmp_path, seed):
    items = load_benchmark(f"whatsup:{whatsup(tmp_path)}").items
    right = np.random.default_rng(seed).random(len(items)) < 0.7
    table = scored(items, right)
    told = tables.tabulate(None, table, by=("subset",)).set_index(["metric", "label"])["accuracy"]
    for part, opposite in (("A", ("on", "under")), ("B", ("in-front", "behind"))):
        own = [i for i, item in enumerate(items) if item.tags["subset"] == part]
        names = [items[i].images[0].name for i in own]
        pair, whole = whatsup_authors(names, right[own], opposite)
        assert told["pair", part] == pytest.approx(pair)
        assert told["set", part] == pytest.approx(whole)
        assert told["accuracy", part] == pytest.approx(right[own].mean())
    assert told["accuracy", "macro"] == pytest.approx(
        np.mean([told["accuracy", part] for part in WHATSUP])
    )


def test_groups_that_lack_an_item_do_not_count(tmp_path):
    items = load_benchmark(f"whatsup:{whatsup(tmp_path)}").items
    table = scored(items, np.ones(len(items)))
    told = tables.tabulate(None, table.iloc[1:], by=()).set_index("metric")
    assert told["n"].to_dict() == {"accuracy": 27, "pair": 9, "set": 4}
    assert told["chance"].to_dict() == pytest.approx(
        {"accuracy": (19 / 4 + 8 / 2) / 27, "pair": (9 / 16 + 1 / 4) / 10, "set": 0}, abs=1
    )
    alone = table[table["set"] == ""]
    assert set(tables.tabulate(None, alone, by=())["metric"]) == {"accuracy"}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_group_is_right_where_all_of_it_is(size):
    """With independent items at rate p the share of right groups is p to the size."""
    right = np.random.default_rng(1).random(8000) < 0.8
    groups = [f"g{i // size}" for i in range(8000)]
    found = metrics.all_right(right, groups, size)
    assert len(found) == 8000 // size
    assert np.mean(list(found.values())) == pytest.approx(0.8**size, abs=0.02)
    assert list(found.values()).count(True) == sum(
        right[i : i + size].all() for i in range(0, 8000, size)
    )


def test_a_model_that_tells_nothing_apart_gets_nothing_of_negbench(tmp_path):
    """The authors' argmax would give it all, for the true caption stands first in their files."""
    items = load_benchmark(f"negbench:{negbench(tmp_path, answers=(0, 0))}").items
    table = scored(items, np.ones(4))
    table[[c for c in table if c.startswith("s_")]] = 0.5
    assert tables.outcomes(table)["accuracy"].mean() == 0
    assert tables.outcomes(table, convention="argmax")["accuracy"].mean() == 1


# --- rows of docs/faults.md ----------------------------------------------------------------------


@fault("part of a set without its images")
def test_a_part_of_a_set_without_its_images(tmp_path):
    shutil.rmtree(whatsup(tmp_path) / "vg_images")
    with pytest.warns(UserWarning, match="left out") as warned:
        load_benchmark(f"whatsup:{tmp_path}")
    return warned[0].message


@fault("photograph whose name tells no relation")
def test_a_photograph_whose_name_tells_no_relation(tmp_path):
    path = whatsup(tmp_path) / WHATSUP["A"].file
    rows = json.loads(path.read_text())
    rows[2]["image_path"] = "a/b.jpeg"
    write_json(path, rows)
    return refused(DataError, load_benchmark, f"whatsup:{tmp_path}")


@fault("CSV without a column")
def test_a_csv_without_a_column(tmp_path):
    path = negbench(tmp_path) / NEGBENCH["coco"].file
    path.write_text(path.read_text().replace("caption_3", "caption_4"))
    return refused(DataError, load_benchmark, f"negbench:{tmp_path}")
