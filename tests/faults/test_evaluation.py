"""Scores, figures, pages and widgets: no number that lies, no picture that runs."""

import warnings

import numpy as np
import pandas as pd
import torch
from test_evaluate import benchmark, grid_items, item, noise

from faults.catalog import fault, refused
from sdslib import evaluate, metrics, tables
from sdslib.checks import fingerprints
from sdslib.config import FinetuneConfig
from sdslib.io import images, runs
from sdslib.io.runs import open_run
from sdslib.results import comparison
from sdslib.show import questions


def cautions(scorer, items):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        table = evaluate.score_grids(scorer, benchmark(items))
    return table, [str(one.message) for one in said]


@fault("captions that differ beyond the last token only")
def test_captions_that_differ_beyond_the_last_token(student):
    start = " ".join(["a red circle left of a blue square and"] * 2)
    twins = item("long", [noise(1), noise(2)], (f"{start} a white square", f"{start} a red circle"))
    table, said = cautions(evaluate.clip_scorer(student), [*grid_items(3), twins])
    assert tables.ties_of(table).tolist() == [False, False, False, True]
    assert not any(right[-1] for right in tables.outcomes(table).values())
    return said


@fault("captions that are equal to the model")
def test_captions_that_are_equal_to_the_model(student):
    both = [
        item(name, [noise(1), noise(2)], captions)
        for name, captions in (
            ("A", ("a red circle", "A RED Circle")),
            ("B", ("a red  circle", "a red circle")),
        )
    ]
    assert benchmark(both).duplicates() == ["A", "B"]
    return cautions(evaluate.clip_scorer(student), both)[1]


@fault("score that is not a number")
def test_a_score_that_is_not_a_number():
    grids = np.ones((2, 2, 2))
    grids[1, 0, 1] = np.nan
    return refused(metrics.ScoreError, metrics.GRID_RULES["strict"], grids, ["a", "b"])


@fault("model whose embeddings are not numbers")
def test_a_model_whose_embeddings_are_not_numbers(student, monkeypatch):
    encode = student.encode_images
    monkeypatch.setattr(student, "encode_images", lambda pixels: encode(pixels) * np.nan)
    scorer = evaluate.clip_scorer(student)
    return refused(metrics.ScoreError, evaluate.score_grids, scorer, benchmark(grid_items(2)))


@fault("ties, which an argmax would hand out")
def test_ties_are_counted_apart_and_wrong():
    """Item 0 is right; in item 1 both captions have one score."""
    rows = {
        "id": ["a", "b"],
        "answer": pd.array([pd.NA] * 2, "Int64"),
        "n_images": 2,
        "n_captions": 2,
    }
    cells = {"s_0_0": [2.0, 1.0], "s_0_1": [1.0, 1.0], "s_1_0": [0.0, 1.0], "s_1_1": [3.0, 1.0]}
    found = tables.tabulate(None, pd.DataFrame(rows | cells)).set_index("metric").loc["text"]
    choice = pd.DataFrame({"id": ["a"], "answer": pd.array([0], "Int64"), "n_images": 1,
                           "n_captions": 2, "s_0_0": [1.0], "s_0_1": [1.0]})  # fmt: skip
    assert not tables.outcomes(choice)["accuracy"].any()
    lenient = tables.outcomes(choice, convention="argmax")["accuracy"].mean()
    return (
        f"text {found['accuracy']}, {found['ties']} of {found['n']} tied; as the authors' argmax "
        f"counts: accuracy {lenient}"
    )


@fault("model that tells nothing apart")
def test_a_model_that_tells_nothing_apart(student, monkeypatch):
    one = torch.nn.functional.normalize(torch.ones(1, student.width), dim=-1)
    for name in ("encode_images", "encode_short_texts"):
        monkeypatch.setattr(student, name, lambda batch: one.expand(len(batch), -1))
    table, said = cautions(evaluate.clip_scorer(student), grid_items(3))
    assert tables.ties_of(table).all()
    return said


def test_a_model_that_tells_things_apart_gets_no_caution(student):
    assert not cautions(evaluate.clip_scorer(student), grid_items(3))[1]


@fault("weights or preprocessing changed since they were scored")
def test_changed_weights_are_another_run(tmp_path):
    """Nothing that was computed with other weights, preprocessing or precision is read again."""
    import tiny

    folder = tiny.save_student(tmp_path / "student")
    settings = FinetuneConfig(clip_model=f"local-dir:{folder}", arm="clip-only", run="mine")
    before = open_run(settings, fingerprints.weights_fingerprints(settings), tmp_path)
    text = (folder / "open_clip_config.json").read_text()
    (folder / "open_clip_config.json").write_text(text.replace("0.25", "0.26"))
    other = settings.model_copy(update={"precision": "bf16"})
    assert runs.identify(other, {})["id"] != before.id
    now = fingerprints.weights_fingerprints(settings)
    return refused(runs.RunError, open_run, settings, now, tmp_path)


@fault("score file that is damaged")
def test_a_damaged_score_file(tmp_path):
    (tmp_path / "grid.parquet").write_bytes(b"PAR1 and no more")
    return refused(tables.TableError, comparison.read_scores, tmp_path / "grid.parquet")


def test_images_of_the_demo_come_through_the_one_decoder():
    assert questions.open_image is images.open_image
