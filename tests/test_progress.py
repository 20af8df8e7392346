"""Progress is one line that stays in the saved notebook, and plain log lines elsewhere."""

import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from sdslib.io import progress
from sdslib.io.paths import project_root
from sdslib.io.progress import Progress, clock, track


@dataclass
class Item:
    loss: float
    part: str = "vae"


def test_items_pass_through_and_the_last_line_tells_the_end(capsys):
    assert list(track("training")(iter([Item(0.5), Item(0.25)]), 2)) == [Item(0.5), Item(0.25)]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "training 2/2 · done in 0:00 · vae · loss 0.25\n"


def test_a_line_is_logged_every_few_seconds(monkeypatch):
    now, stream = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(100, "job", stream) as shown:
        for done in range(1, 41):
            now[0] += 0.5
            shown.update(done)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20 // progress.LOG_S + 1
    assert lines[0] == "job 10/100 · 0:45 left"
    assert lines[-1] == "job 40/100 · stopped after 0:20"


def test_the_first_item_is_left_out_of_the_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(11, "", io.StringIO())
    now[0] = 60.0
    shown.update(1)
    assert "starting" in shown.text()
    now[0] = 62.0
    shown.update(2)
    assert "0:18 left" in shown.text()


def test_a_job_that_breaks_is_said_to_have_stopped(capsys):
    with pytest.raises(ZeroDivisionError), Progress(4, "job") as shown:
        shown.update(1 // 0)
    assert "job 0/4 · stopped after 0:00" in capsys.readouterr().err


def test_the_total_comes_from_the_length_or_must_be_given():
    assert list(track()([1, 2])) == [1, 2]
    with pytest.raises(ValueError, match="total is needed"):
        list(track()(iter([1])))


def test_labels_and_notes_are_escaped():
    shown = Progress(1, '<b>"x', io.StringIO())
    shown.update(1, "<script>")
    assert "<b>" not in shown._html()
    assert "<script>" not in shown._html()


def test_times_read_like_a_clock():
    assert [clock(s) for s in (0, 59.6, 61, 7384)] == ["0:00", "1:00", "1:01", "2:03:04"]


@pytest.mark.slow
def test_a_saved_notebook_holds_one_output_with_the_final_state_and_no_widget(tmp_path):
    """And with the settings of `make setup` nobody reads of encryption on one machine."""
    own = tmp_path / "ipython" / "profile_default" / "ipython_kernel_config.py"
    own.parent.mkdir(parents=True)
    own.write_text((project_root() / "etc" / own.name).read_text())
    book = nbformat.v4.new_notebook()
    source = (
        "import time\nfrom sdslib.io.progress import track\n\n"
        "for _ in track('fine-tuning')(range(8)):\n    time.sleep(0.06)\n"
        "get_ipython().kernel.parent.log.warning('what else there is')"
    )
    book.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "P"}
    nbformat.write(book, tmp_path / "in.ipynb")
    words = ["-m", "papermill", "in.ipynb", "out.ipynb", "--no-progress-bar"]
    env = os.environ | {"IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, check=True, capture_output=True,
                          text=True, env=env)  # fmt: skip
    assert "what else there is" in done.stderr
    assert "encryption" not in done.stderr
    saved = nbformat.read(tmp_path / "out.ipynb", 4)
    (output,) = saved.cells[0].outputs
    assert output.output_type == "display_data"
    assert '<progress value="8" max="8" aria-label="fine-tuning">' in output.data["text/html"]
    assert re.search(r"fine-tuning 8/8 · done in 0:0\d", output.data["text/html"])
    assert "widgets" not in saved.metadata


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import time; print('there'); time.sleep(60)", "stopped; run the cell again to go on"),
        (
            "from sdslib.io.stopping import stop_requested\nwith stop_requested() as stop:\n"
            "    print('there'); stop.wait(60); stop.obey(3)",
            "stopped after step 3; run again to go on",
        ),
    ],
)
def test_a_cell_that_is_stopped_says_so_in_one_line(source, line):
    manager, client = start_new_kernel()
    told = []

    def hear(message):
        told.append(message)
        if message["content"].get("text", "").strip() == "there":
            manager.interrupt_kernel()

    try:
        client.execute_interactive("from sdslib.io.stopping import stop_calmly; stop_calmly()")
        reply = client.execute_interactive(source, timeout=60, output_hook=hear)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "error"  # so that no further cell runs
    (error,) = (m["content"] for m in told if m["msg_type"] == "error")
    assert error["traceback"] == [line]
