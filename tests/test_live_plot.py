"""Training at a live notebook: curves that grow; one line elsewhere."""

from dataclasses import dataclass

import pytest

from sdslib.config import FinetuneConfig
from sdslib.show import live_plot, page


@dataclass
class Step:
    step: int
    loss: float = 0.5

    def row(self):
        return {"step": self.step, "clip": self.loss, "sds": None, "lr": 1e-3}


class Shown(list):
    """What a display handle was given, in order."""

    def update(self, thing):
        self.append(thing)


@pytest.fixture
def notebook(monkeypatch):
    """A live front end: every display, in order of its first appearance."""
    displays = []

    def display(thing, display_id=True):
        displays.append(Shown([thing]))
        return displays[-1]

    monkeypatch.setattr(page, "is_live", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live_plot, "_REDRAW_S", 0.0)
    return displays


def last(shown):
    return shown[-1]._repr_html_() if hasattr(shown[-1], "_repr_html_") else shown[-1]


def test_elsewhere_there_is_one_line(capsys):
    steps = [Step(1), Step(2)]
    assert list(live_plot.training("fine-tuning", FinetuneConfig())(iter(steps), 2)) == steps
    assert capsys.readouterr().err == "fine-tuning 2/2 · done in 0:00 · loss 0.5\n"


def test_curves_grow_and_go_when_the_whole_history_is_drawn_next(notebook):
    steps = [Step(n) for n in range(1, 4)]
    assert list(live_plot.training("fine-tuning", FinetuneConfig())(iter(steps), 3)) == steps
    (curves,) = notebook
    pictures = [thing for thing in curves if hasattr(thing, "alt")]
    assert pictures
    assert "clip 0.5" in pictures[0].alt
    assert last(curves) == ""


def test_curves_of_training_that_ended_early_stay(notebook):
    following = live_plot.training("fine-tuning", FinetuneConfig())(iter([Step(1), Step(2)]), 9)
    next(following)
    following.close()
    (curves,) = notebook
    assert curves[-1].alt.startswith("Training curves")


@pytest.mark.parametrize(("arm", "term"), [("sds", "L_SDS"), ("teacher-choice", "L_choice")])
def test_curves_name_the_term_of_their_arm(notebook, arm, term):
    steps = [Step(1), Step(2)]
    config = FinetuneConfig(arm=arm)
    assert len(list(live_plot.training("fine-tuning", config)(iter(steps), 3))) == 2
    (drawn,) = (thing for thing in notebook[0][-1:] if hasattr(thing, "axes"))
    assert any(term in ax.get_title(loc="left") for ax in drawn.axes)
