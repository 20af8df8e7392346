"""False captions: by word lists, by swaps within real captions, and from files."""

import csv
import json
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import realworld
import realworld.sets
from faults.catalog import each, refused
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from sdslib import experiment
from sdslib.arms import negatives
from sdslib.arms.negatives import named, said
from sdslib.arms.phrases import read
from sdslib.config import FinetuneConfig
from sdslib.io.sources import DataError
from sdslib.pairs import load_pairs
from sdslib.results import finetuned

# --- word lists ----------------------------------------------------------------------------------


def test_the_word_lists_exchange_colors_or_shapes_or_both():
    found, caption = named("mini"), "a red circle left of a blue square"
    assert found.of(caption) == (
        "a blue circle left of a red square",
        "a red square left of a blue circle",
        "a blue square left of a red circle",
    )
    assert found.kinds(caption) == ("color", "shape", "both")
    assert [found.pick(caption, seed) for seed in range(4)] == [
        *found.of(caption),
        found.of(caption)[0],
    ]
    assert found.of("a red circle") == ()
    assert found.pick("a red circle", 3) == "a red circle"


# --- swaps ---------------------------------------------------------------------------------------

SWAPPED = {
    "A brown dog chases a white cat.": {
        "A white dog chases a brown cat.": "attribute swap",
        "A brown cat chases a white dog.": "noun swap",
        "A white cat chases a brown dog.": "phrase",
    },
    "Two men are riding the bus to a game.": {
        "Two men are riding a game to the bus.": "phrase",
    },
    "a man on an old horse": {
        "a horse on an old man": "noun swap",
        "an old horse on a man": "phrase",
        "a man under an old horse": "preposition",
    },
    "The woman's hat is on top of a fire hydrant": {
        "The woman's hat is underneath a fire hydrant": "preposition",
        "A fire hydrant is on top of the woman's hat": "phrase",
    },
    "A very large bus drives on a road.": {
        "A road drives on a very large bus.": "phrase",
        "A very large bus drives under a road.": "preposition",
    },
    "A black and white cow stands behind a group of small children.": {
        "A small cow stands behind a group of black and white children.": "attribute swap",
        "A black and white cow stands in front of a group of small children.": "preposition",
    },
    "SEVERAL PLATES OF FOOD ARE ON A TABLE": {
        "SEVERAL PLATES OF FOOD ARE UNDER A TABLE": "preposition",
    },
    "Man in a suit. The dog sits inside the car!": {
        "The dog in a suit. Man sits inside the car!": "phrase",
        "A suit in man. The dog sits inside the car!": "phrase",
        "Man in a suit. The dog sits outside the car!": "preposition",
    },
}


@pytest.mark.parametrize("caption", SWAPPED)
def test_phrases_of_a_caption_are_swapped_and_places_turned(caption):
    found = dict(zip(named("swap").of(caption), named("swap").kinds(caption), strict=True))
    assert found.items() >= SWAPPED[caption].items()


TRUE_AS_WELL = {
    "over and": ("a cat and a dog", ()),
    "over next to": ("A man standing next to a horse.", ("A man standing far away from a horse.",)),
    "over with": ("a bench with some flowers, a lamp and a bin", ()),
    "of one thing's name": ("a red car and a blue car", ()),
    "of a collocation": ("a hot dog", ()),
    "of what is no thing": ("A dog on a sunny day", ()),
    "of a verb's number": ("A man is holding two kites", ()),
    "before an owner": ("a girl and her brown dog", ()),
    "after a verb": ("he is trying on a tie", ()),
}


@pytest.mark.parametrize("why", TRUE_AS_WELL)
def test_what_would_be_true_or_no_english_is_not_made(why):
    caption, expected = TRUE_AS_WELL[why]
    assert named("swap").of(caption) == expected


def test_what_holds_one_of_two_neighbors_tells_them_apart():
    found = named("swap").of("A man rides a horse next to a car")
    assert "A man rides a car next to a horse" in found
    colored = named("swap").of("a brown dog next to a white cat")
    assert colored[:2] == ("a white dog next to a brown cat", "a brown cat next to a white dog")


def test_phrases_keep_their_amounts_compounds_and_owners():
    words, phrases = read("A large group of people watch the man's stuffed animal near a bus stop")
    lows = [word.low for word in words]
    assert [" ".join(lows[p.lead : p.whole]) for p in phrases] == [
        "a large group of people",
        "the man 's stuffed animal",
        "a bus stop",
    ]


WHO = ("A man", "Two women", "A young girl", "A black dog", "An old woman", "Some people",
       "A brown horse", "A small bird", "Three children", "A gray cat")  # fmt: skip
DOES = ("riding", "standing on", "looking at", "sitting in front of", "carrying", "lying under",
        "walking towards", "next to", "with", "behind")  # fmt: skip
WHAT = ("a blue bicycle", "a wooden bench", "the bus", "an umbrella", "a white truck", "the water",
        "a surfboard", "a bowl of fruit", "a parked car", "a teddy bear")  # fmt: skip
WHERE = ("", " on a busy street", " in a park", " near the beach", " at night", " and a tall tree",
         ", with a red kite in the background")  # fmt: skip


def thousand(folder):
    """A COCO file of 1,000 captions: the photographs' own, and of a small grammar."""
    own = json.loads((realworld.sets.HERE / "captions.json").read_text())
    draw = Random(0)
    made = [
        f"{draw.choice(WHO)} {draw.choice(DOES)} {draw.choice(WHAT)}{draw.choice(WHERE)}."
        for _ in range(1000 - sum(map(len, own.values())))
    ]
    texts = [text for some in own.values() for text in some] + made
    names = sorted(own)
    images = [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate(names)]
    rows = [{"id": n, "image_id": n % len(names), "caption": t} for n, t in enumerate(texts)]
    for image in images:
        (folder / image["file_name"]).write_text(f"{image['id']} is not read")
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": rows}))
    return f"{folder / 'captions.json'}::{folder}"


def test_of_a_thousand_real_captions_four_fifths_have_a_false_one(tmp_path):
    source, found = thousand(tmp_path), named("swap")
    captions, encode = load_pairs(source).all_captions(), SimpleTokenizer()
    assert len(captions) == 1000
    assert sum(map(bool, map(found.of, captions))) >= 800
    for caption in captions:
        tokens = [tuple(row) for row in encode([caption, *found.of(caption)]).tolist()]
        assert len(set(tokens)) == len(tokens)
    config = FinetuneConfig(arm="hard-negatives", train_data=source)
    assert negatives.problem(config) is None
    (row,) = negatives.told(config, load_pairs(source))
    assert row["set"] == "captions without a false one (negatives swap)"
    assert row["items"] == sum(not found.of(caption) for caption in captions)
    assert negatives.told(replace_arm(config), load_pairs(source)) == []


def replace_arm(config):
    return config.model_copy(update={"arm": "sds"})


@given(st.text(max_size=60) | st.lists(st.sampled_from([*" ".join(
    (*WHO, *DOES, *WHAT, *WHERE)).split(), "'s", ".", "of", "and", "is", "İ"]), max_size=20).map(
    " ".join))  # fmt: skip
def test_any_text_gives_the_same_distinct_captions_that_are_not_itself(caption):
    found = named("swap").of(caption)
    assert len({said(caption), *map(said, found)}) == len(found) + 1
    fresh = negatives.Negatives(named("swap")._make, "")
    assert fresh.of(caption) == found


def test_what_stands_behind_the_last_token_is_no_difference():
    caption = "There is " + "so " * 80 + "on it a man on a horse"
    assert named("swap").of(caption) == ()


# --- files ---------------------------------------------------------------------------------------

GIVEN = {"A man on a horse": ["A horse on a man .", "a man on a horse."], "A dog": []}


def negclip(path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["", "title", "filepath", "neg_caption", "neg_image"])
        for number, (caption, texts) in enumerate(GIVEN.items()):
            writer.writerow([number, caption, "coco/val2014/1.jpg", str(texts), "[1, 2]"])


def ceclip(path):
    names = ("relation", "adj")
    rows = [
        {"id": n, "caption": caption, "valid_caption": [1, 1, 0], "noun_aug_caption": "a <mask>"}
        | {f"{k}_aug_caption": t for k, t in zip(names, (*texts, "###", "###"), strict=False)}
        for n, (caption, texts) in enumerate(GIVEN.items())
    ]
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows)
    path.write_text(text)


def listed(path):
    rows = [{"caption": caption, "negatives": texts} for caption, texts in GIVEN.items()]
    path.write_text(json.dumps({"annotations": rows}))


def parquet(path):
    columns = {"caption": list(GIVEN), "negatives": list(GIVEN.values())}
    pq.write_table(pa.table(columns), path)


FORMS = {"negclip.tsv": negclip, "ceclip.json": ceclip, "ceclip.jsonl": ceclip,
         "listed.json": listed, "own.parquet": parquet}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_file_gives_what_it_holds_but_for_the_caption_itself(name, tmp_path):
    FORMS[name](tmp_path / name)
    found = named(str(tmp_path / name))
    assert found.of("a man on a horse!") == ("A horse on a man .",)
    assert found.kinds("A man on a horse") == ("given",)
    assert found.of("A dog") == found.of("A cat") == ()
    before = found.fingerprint()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    assert name.endswith(".parquet") or named(str(tmp_path / name)).fingerprint() != before


WRONG = {
    "m.json": ("[3]", r"m.json\[0\]: expected an object with caption and negatives"),
    "o.json": ('{"a": 1}', "o.json: expected a list of rows with caption and negatives"),
    "p.json": ("[]", "p.json: has no rows"),
    "n.tsv": ('title\tneg_caption\n"a\tb', "n.tsv: unexpected end of data"),
    "n.parquet": ("no", r"n.parquet: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_none_of_these_is_refused_with_its_place(name, tmp_path):
    text, message = WRONG[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        named(str(tmp_path / name))


@each(
    {
        "pickled false captions": ("n.npy", ""),
        "false captions by names that are not known": ("n.json", '[{"title": "a"}]'),
        "false captions that are code": ("n.tsv", "title\tneg_caption\na\t__import__('os')\n"),
    }
)
def test_files_that_are_read_by_nobody(given, tmp_path):
    name, text = given
    (tmp_path / name).write_text(text)
    return refused(DataError, lambda: named(str(tmp_path / name)).of("A."))


def test_a_file_that_is_gone_is_told():
    with pytest.raises(DataError, match=r"o.tsv does not exist; negatives names a file, or 'mini'"):
        named("no/o.tsv")


# --- a run ---------------------------------------------------------------------------------------


def test_where_false_captions_come_from_is_in_the_id_of_arms_that_read_them(tmp_path):
    listed(tmp_path / "n.json")
    config = FinetuneConfig(arm="teacher-choice", sds_weight=1.0)
    own = config.identity()
    assert "negatives" not in own
    assert config.model_copy(update={"negatives": "mini"}).identity() == own
    for source in ("swap", str(tmp_path / "n.json")):
        other = config.model_copy(update={"negatives": source})
        assert other.identity() == own | {"negatives": source}
        assert negatives.fingerprints(other) == {"negatives": named(source).fingerprint()}
        assert replace_arm(other).identity() == replace_arm(config).identity()
        assert negatives.fingerprints(replace_arm(other)) == {}
    real = FinetuneConfig(arm="hard-negatives", train_data="captions.json::images")
    assert real.identity()["negatives"] == "swap"


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["hard-negatives", "teacher-choice"])
def test_a_file_of_the_swaps_trains_as_the_swaps_do(arm, tmp_path):
    world, found = realworld.make(tmp_path / "world"), named("swap")
    captions = load_pairs(world.train_data).all_captions()
    rows = [f"{text}\t{list(found.of(text))}" for text in captions]
    (tmp_path / "n.tsv").write_text("\n".join(["title\tneg_caption", *rows]))
    one = [{"caption": c, "relation_aug_caption": (found.of(c) or ("###",))[0]} for c in captions]
    (tmp_path / "n.json").write_text(json.dumps(one))
    small = {"steps": 3, "batch_size": 8, "warmup": 1, "eval_every": 0, "choice_draws": 2}
    sets = {"benchmark": world.winoground, "keep": "none", "validation": "none", "eval_items": 4}
    weight = {"sds_weight": 1.0} if arm == "teacher-choice" else {}
    config = FinetuneConfig(
        arm=arm, train_data=world.train_data, runs=str(tmp_path / "runs"), device="cpu",
        **world.models, **small, **sets, **weight,
    )  # fmt: skip
    by = {
        name: experiment.finetune(config.model_copy(update={"negatives": name}))
        for name in ("swap", str(tmp_path / "n.tsv"), str(tmp_path / "n.json"))
    }
    swap, tsv, first = (run.history()["loss"].tolist() for run in by.values())
    assert swap == tsv != first
    assert len({run.path for run in by.values()}) == 3
    told = finetuned.sets_table(next(iter(by.values())))["set"].tolist()
    assert "captions without a false one (negatives swap)" in told
