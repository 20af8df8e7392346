"""Answers say what the figures say, for every sign of them, and change when the figures do."""

import pandas as pd
import pytest
from finished import finish

from sdslib.results import answers, failures, formatting, settings
from sdslib.show import atlas, modelcard

UP, DOWN, FLAT = (0.04, 0.02, 0.06, 0.001), (-0.04, -0.06, -0.02, 0.001), (0.01, -0.01, 0.03, 0.3)

LEAST = "a true change of 2.1 points or more four times in five"


def paired(against, beside=None, n=400, arm="sds"):
    """`comparison.paired` of (difference, low, high, p) against the untouched student, L_CLIP."""
    rows = {"untouched": against} | ({"L_CLIP only": beside} if beside else {})
    head = ["difference", "low", "high", "p"]
    facts = {"tag": "all", "metric": "text", "n": n, "mdd": 0.021}
    return pd.DataFrame(
        [dict(zip(head, row, strict=True)) | facts | {"comparison": f"{arm} against {other}"}
         for other, row in rows.items()]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("against", "beside", "head", "words"),
    [
        (UP, UP, "Yes", "+4.0 points (+2.0 to +6.0); more than L_CLIP alone"),
        (UP, FLAT, "No gain of the teacher's shown", "L_CLIP alone did as well"),
        (UP, DOWN, "No", "L_CLIP alone did better"),
        (FLAT, FLAT, "No gain shown", "+1.0 points (−1.0 to +3.0)"),
        (FLAT, UP, "No gain shown", "more than L_CLIP alone"),
        (FLAT, DOWN, "No", "L_CLIP alone did better"),
        (DOWN, FLAT, "No", "−4.0 points (−6.0 to −2.0)"),
        (DOWN, UP, "No", "more than L_CLIP alone"),
        (UP, None, "Not told", "no run with L_CLIP alone stands beside it"),
        (DOWN, None, "No", "no run with L_CLIP alone stands beside it"),
        ((0.0, 0.0, 0.0, 1.0), FLAT, "No gain shown", "+0.0 points (–: no item changed)"),
        # an interval beside 0 and a test that is not sure: four flips of a hundred, all one way
        ((0.04, 0.01, 0.08, 0.125), FLAT, "No gain shown", "+4.0 points (+1.0 to +8.0)"),
    ],
)
def test_the_head_of_a_gain_is_what_its_figures_show(against, beside, head, words):
    told = answers.gain(paired(against, beside), note="mini-world")
    assert told.startswith(f"{head} (mini-world): over one seed the text score changed by ")
    assert words in told
    assert told.endswith(f"; such a set shows {LEAST}, a smaller one less often.")


def test_a_few_items_show_nothing_and_have_no_interval():
    told = answers.gain(paired(UP, UP, n=4))
    assert told.startswith("No gain shown: over one seed")
    assert told.count("(–: 4 items are too few for an interval)") == 2
    assert told.endswith("4 items can show no difference at all.")


def test_a_run_of_l_clip_alone_is_no_word_about_a_teacher():
    told = answers.gain(paired(UP, arm="L_CLIP only"))
    assert told.startswith("A gain, and no teacher was at work: over one seed")
    assert "beside it" not in told
    flat = answers.gain(paired(FLAT, arm="L_CLIP only"), note="mini-world")
    assert flat.startswith("No difference shown, and no teacher was at work (mini-world): over one")


def test_several_seeds_are_counted_and_need_no_test_by_item():
    over = paired(UP, FLAT).drop(columns=["p", "tag", "mdd"]).assign(seeds=3)
    told = answers.gain(paired(DOWN, DOWN), over)
    assert told.startswith("No gain of the teacher's shown: over 3 seeds")
    assert told.endswith(f"one seed here shows {LEAST}, a smaller one less often.")
    few = over.assign(seeds=1, n=100, difference=0.04)  # of one seed without a test: four net flips
    assert answers.gain(paired(DOWN), few.head(1)).startswith("No gain shown")


def differences(*rows):
    """Rows of `studies.differences`: setting, measure, against, difference, low, high."""
    head = ["setting", "measure", "against", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=head).assign(seeds=3, n=400)


STUDY = differences(
    ("sds_weight 0", "text", "untouched", 0.0, -0.01, 0.01),
    ("sds_weight 1", "text", "L_CLIP only", 0.04, 0.02, 0.06),
    ("sds_weight 1", "retrieval", "L_CLIP only", -0.03, -0.05, -0.01),
    ("sds_weight 9", "text", "L_CLIP only", -0.05, -0.09, -0.01),
)


def test_the_best_setting_is_named_with_its_price_and_those_that_lose():
    told = answers.best(STUDY)
    assert told == (
        "sds_weight 1 gains most: the best of 2, sds_weight 1, changed the text score by +4.0 "
        "points (+2.0 to +6.0) against L_CLIP alone, over 3 seeds; 1 of 2 lose; its price: "
        "retrieval −3.0 points (−5.0 to −1.0); it was picked on the items that tell of it."
    )
    flat = STUDY.assign(low=-0.2, high=0.2)
    assert answers.best(flat).startswith("None shows a gain: ")
    assert "no price shown in retrieval" in answers.best(flat)
    assert "not told" in answers.best(STUDY.head(1))
    assert answers.best(STUDY.head(0)) == "No run finished, so there is nothing to tell."


SHARE = {"n": 60, "accuracy": 0.5, "low": 0.4, "high": 0.6, "chance": 0.25, "tag": "all"}
NAMING = pd.DataFrame([{"task": "color", **SHARE}])
KNOWS = pd.DataFrame([{"model": m, "metric": "text", **SHARE} for m in ("student", "teacher")])
SETS = pd.DataFrame([{"set": "winoground", "model": m, **SHARE} for m in ("student", "teacher")])
BOTH = pd.DataFrame([{"set": "winoground", "n": 60, "student alone": 0.1, "teacher alone": 0.3}])
LAYERS = pd.DataFrame([{"set": "lora", "layer": "image block 1", "relative": 0.031}])
KINDS = pd.DataFrame({"kind": ["takes one", "ties"], "items": [30, 0], "share": [0.5, 0.0]})
ASKED = {"n": 90, "said": 0.9, "mean": 0.7, "low": 0.6, "high": 0.8, "reference": 0.5}
SAID = pd.DataFrame([{"set": kind, **ASKED} for kind in ("swap", "color", "all kinds")])
SCORED = pd.DataFrame({"model": "sds", "caption": ["a b", "b a"], "score": [0.4, 0.1],
                       "margin": [0.3, -0.3]})  # fmt: skip
WORDS = pd.DataFrame(
    {"caption": [0, 0], "word": ["a", "b"], "decides": [True, False], "change": [0.35, 0.5]}
)
BESIDE = pd.concat([paired(UP).assign(set=name, p_holm=0.01) for name in ("winoground", "aro")])

# The answer of each notebook from its tables, and a column of each that the sentence tells of.
TOLD = {
    "00": (answers.miniworld, (NAMING, "accuracy"), (KNOWS, "accuracy")),
    "01": (answers.standing, (SETS, "accuracy"), (BOTH, "teacher alone")),
    "02": (answers.gain, (paired(UP, FLAT), "difference")),
    "03": (answers.best, (STUDY, "difference")),
    "04": (answers.moved, (STUDY, "difference"), (LAYERS, "relative")),
    "05": (lambda kinds: answers.failing(kinds, "sds", 60), (KINDS, "share")),
    "06": (lambda scores, words: answers.captions(scores, {"sds": words}), (SCORED, "margin"),
           (WORDS, "word")),
    "07": (answers.gain, (paired(UP), "mdd"), (paired(UP).assign(seeds=2), "high")),
    "08": (answers.verdicts, (SAID, "mean"), (SAID, "mean")),
    "09": (answers.beside, (BESIDE, "difference")),
}  # fmt: skip


@pytest.mark.parametrize("notebook", TOLD)
def test_other_figures_make_another_answer(notebook):
    say, *given = TOLD[notebook]
    tables = [table for table, _ in given]
    for n, (table, column) in enumerate(given):
        values = table[column]
        other = table.assign(**{column: values + "!" if values.dtype == "str" else values / 2})
        assert say(*tables[:n], other, *tables[n + 1 :]) != say(*tables)


@pytest.mark.parametrize(
    ("low", "high", "side"), [(0.3, 0.6, "above"), (0.1, 0.2, "below"), (0.2, 0.3, "not off")]
)
def test_a_share_stands_on_its_side_of_chance(low, high, side):
    row = SETS.assign(low=low, high=high).iloc[0]
    assert f"of 60 items, {side} chance (25.0%)" in answers.of_chance(row)


def test_a_model_that_never_fails_has_no_kind_of_failure():
    none = KINDS.assign(items=0, share=0.0)
    assert answers.failing(none, "sds", 60) == "sds fails on none of 60 items."
    assert answers.failing(KINDS, "sds", 60) == "Of 60 items, sds most often takes one (50.0%)."


@pytest.mark.parametrize(
    ("mean", "low", "high", "word"),
    [(0.7, 0.6, 0.8, "too sure"), (0.95, 0.91, 0.99, "no surer than right")],
)
def test_the_teachers_sureness_is_held_to_how_often_it_is_right(mean, low, high, word):
    told = answers.verdicts(SAID, SAID.assign(mean=mean, low=low, high=high))
    assert told.endswith(f"{word}.")


def test_a_caption_that_is_alone_or_ties_decides_nothing():
    told = answers.captions(SCORED, {"sds": WORDS})
    assert told == "sds: takes “a b”, 0.3000 ahead; without “a” (+0.3500) it would not."
    both = answers.captions(SCORED, {"sds": WORDS.assign(decides=True)})
    assert "; without any one of “b” (+0.5000), “a” (+0.3500) it would not, the heaviest" in both
    none = WORDS.assign(decides=False)
    assert answers.captions(SCORED, {"sds": none}).endswith("; it would without any one word.")
    assert "stands alone" in answers.captions(SCORED.head(1), {})
    for told in ({"score": 0.1, "margin": 0.0}, {"noise": 1.0}):
        assert "cannot tell" in answers.captions(SCORED.assign(**told), {})


@pytest.mark.parametrize(
    ("p", "words"),
    [
        ([0.01, 0.3, 0.3], "ahead on a, where the text score differs by +4.0 points"),
        ([0.3, 0.01, 0.3], "Of the other scores it is ahead in a image by +4.0 points (+2.0 to"),
        ([0.3, 0.3, 0.01], "ahead in b group by +4.0 points (+2.0 to +6.0), behind in none"),
        ([0.3, 0.3, 0.3], "Of the other scores it is ahead in none, behind in none"),
    ],
)
def test_every_metric_of_a_set_is_counted_by_itself(p, words):
    rows = [paired(UP).assign(set=of, metric=m, p_holm=value)
            for of, m, value in zip("aab", ("text", "image", "group"), p, strict=True)]  # fmt: skip
    assert words in answers.beside(pd.concat(rows))


def test_an_answer_is_shown_as_text_whatever_it_holds():
    shown = answers.Sentence("“<b>”\nover")._repr_html_()
    assert shown == '<p class="answer">“&lt;b&gt;”<br>over</p>'


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    control = finish(root, "clip-only")
    (found,) = settings.group([finish(root), control])
    return found


def test_an_inert_term_is_known_to_the_answer(setting, monkeypatch):
    history = pd.DataFrame({"grad_ratio": [None, 0.0014, 0.002]})
    monkeypatch.setattr(type(setting.run), "history", lambda _: history)
    assert "\nBy its history L_SDS is inert at sds_weight " in answers.of_setting(setting)


def test_model_card_and_atlas_say_the_notebooks_sentence(setting):
    (row,) = answers.at_a_glance([setting]).to_dict("records")
    assert answers.of_setting(setting).startswith(f"{row['gain']} (mini-world): over one seed")
    against = setting.paired.query("tag == 'all' and metric == 'text'").itertuples()
    assert list(row.values())[-2:] == [formatting.gap(one) for one in against]
    assert answers.of_setting(setting) in str(modelcard.card(setting.run, setting.control))
    whole = atlas.build(setting.scores, note=setting.note)
    parts = failures.anatomy(setting.scores["sds"])
    kinds = failures.kinds(parts)
    assert kinds["share"].is_monotonic_decreasing
    assert whole.answer.startswith(answers.failing(kinds, "sds", len(parts), setting.note))
    assert "Against untouched it gains " in whole.answer
    assert str(whole.answer) in atlas.html(whole)
