"""The live notebooks as a person meets them: JupyterLab on this machine, driven in Chromium."""

import json
import os
import re
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from sdslib.benchmarks import Benchmark, Item
from sdslib.checks.notebooks import DemoConfig
from sdslib.evaluate import clip_scorer, score_grids
from sdslib.io.paths import project_root
from sdslib.io.runs import find_run, list_runs
from sdslib.miniworld import composing
from sdslib.sets.roles import load_set
from sdslib.show import atlas
from sdslib.student import load_student

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]

WAIT = 240_000  # ms; a busy machine is slow, and a missing thing stays missing
WIDGET = "application/vnd.jupyter.widget-view+json"
NO_UPDATES = "jupyterlab.NeverCheckForUpdate"
ATTACK = "<img src=x onerror=alert(1)>"
CAPTIONS = ("a green star above a black heart", "a black heart above a green star")
SCENE = {
    "first size": "large", "first color": "green", "first shape": "star", "relation": "above",
    "second size": "small", "second color": "black", "second shape": "heart",
}  # fmt: skip

# Steps enough to be stopped in the middle.
LONG = {
    "steps": 5000, "batch_size": 8, "eval_every": 0, "checkpoint_every": 5000, "eval_items": 20,
    "bridge_pairs": 256,
}  # fmt: skip


@pytest.fixture(scope="module")
def student():
    config = DemoConfig()
    return load_student(config.clip_model, config.clip_pretrained)


@pytest.fixture(scope="module")
def items():
    """Twelve pairs of the mini-world of all kinds."""
    whole = load_set("mini:winoground")
    return replace(whole, items=whole.items[::100])


@pytest.fixture(scope="module")
def scores(student, items):
    return score_grids(clip_scorer(student), items)


@dataclass
class Lab:
    """A JupyterLab of its own: address, token, and the folders of notebooks and runs."""

    url: str
    token: str
    folder: Path
    runs: Path

    def address(self, notebook, workspace=None):
        """In a workspace of its own, where no other notebook stands open."""
        space = workspace or notebook
        return (
            f"{self.url}/lab/workspaces/{space}/tree/notebooks/{notebook}.ipynb?token={self.token}"
        )

    def ask(self, method, path):
        """The server's answer to a request of its interface."""
        headers = {"Authorization": f"token {self.token}"}
        request = urllib.request.Request(f"{self.url}/api/{path}", None, headers, method=method)
        return urllib.request.urlopen(request, timeout=30).read()


@pytest.fixture(scope="module")
def lab(tmp_path_factory, scores):
    """Serves a whole project, as `make lab` does, in the dark theme."""
    root, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    folder, runs = root / "notebooks", str(root / "runs")
    for path in (folder, root / "runs"):
        path.mkdir()
    scores.drop(columns=["n_images", "n_captions", "answer", "equal_captions"]).to_csv(
        home / "student.csv", index=False
    )
    copy_notebook("06_caption_demo", folder, runs=runs)
    copy_notebook("05_winoground_failures", folder, runs=runs, teacher_items=0,
                  scores=str(home / "student.csv"))  # fmt: skip
    copy_notebook("02_finetune", folder, runs=runs, **LONG)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, log = secrets.token_hex(16), (home / "log").open("w")
    process = subprocess.Popen(
        command(root, port), env=own_home(home, token), stdout=log, stderr=subprocess.STDOUT
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/api?token={token}", process, home / "log")
        yield Lab(url, token, folder, root / "runs")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()


def copy_notebook(name, folder, **parameters):
    book = load_notebook_node(str(project_root() / "notebooks" / f"{name}.ipynb"))
    nbformat.write(parameterize_notebook(book, parameters), folder / f"{name}.ipynb")


def command(folder, port):
    return [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly"),
        *("--LabApp.news_url=None", f"--LabApp.check_for_updates_class={NO_UPDATES}"),
    ]  # fmt: skip


def own_home(home, token):
    """An environment in which JupyterLab finds no settings of a person, and asks for no news."""
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    (settings / "themes.jupyterlab-settings").write_text('{"theme": "JupyterLab Dark"}')
    folders = {f"JUPYTER_{kind.upper()}_DIR": kind for kind in ("config", "data", "runtime")}
    folders |= {f"JUPYTERLAB_{kind.upper()}_DIR": kind for kind in ("settings", "workspaces")}
    own = {name: str(home / kind) for name, kind in (folders | {"IPYTHONDIR": "ipython"}).items()}
    return os.environ | own | {"JUPYTER_TOKEN": token}


def wait_for(url, process, log):
    for _ in range(600):
        with suppress(OSError):
            return urllib.request.urlopen(url, timeout=5).read()
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@dataclass
class Seen:
    """What the page did that it should not."""

    errors: list = field(default_factory=list)
    dialogs: list = field(default_factory=list)
    outside: list = field(default_factory=list)

    def watch(self, page):
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", self.dialog)
        page.on("websocket", lambda socket: self.request(socket.url))
        page.route("**/*", self.route)

    def dialog(self, dialog):
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def request(self, url):
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "localhost") or parts.scheme in ("data", "blob")
        if not local:
            self.outside.append(url)
        return local

    def route(self, route):
        if self.request(route.request.url):
            route.continue_()
        else:
            route.abort()


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
def page(chromium, seen):
    page = chromium.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(WAIT)
    seen.watch(page)
    return page


def run_all(page, lab, notebook):
    """Open a notebook in JupyterLab and run all its cells by the menu, as a person would."""
    page.goto(lab.address(notebook))
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # before, JupyterLab asks for one
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def cell(page, source):
    """The cell that holds this source, scrolled to, so that JupyterLab draws it."""
    found = page.locator(".jp-CodeCell").filter(has_text=source)
    found.first.scroll_into_view_if_needed()
    return found


def appears(page, control):
    """Wait for a control, or fail with the message of the cell that broke before it."""
    broken = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    control.or_(broken).first.wait_for()
    assert not broken.count(), broken.first.inner_text()


def ask(panel, *captions, clicks=1):
    text = panel.get_by_label("captions, one a line")
    text.fill("\n".join(captions))
    text.blur()
    panel.get_by_role("button", name="score").click(click_count=clicks)


def answers(panel, *texts):
    """Wait until the panel shows these texts, or fail with what it says instead."""
    said = panel.get_by_role("alert")
    for text in texts:
        panel.get_by_text(text).or_(said).first.wait_for()
        assert not said.count(), said.first.inner_text()
    panel.locator("table.answers", has_text=texts[0]).wait_for()


def upload(panel, path):
    panel.get_by_label("choose a file").set_input_files(path)


def save(page, path):
    """Save by the keyboard, and read what was written."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    for _ in range(300):
        page.wait_for_timeout(100)
        if path.stat().st_mtime_ns != before:
            with suppress(nbformat.reader.NotJSONError):  # it is being written
                return nbformat.read(path, 4)
    return pytest.fail(f"{path.name} was not saved")


def stop_kernels(lab):
    for session in json.loads(lab.ask("GET", "sessions")):
        lab.ask("DELETE", f"sessions/{session['id']}")


def numbers(texts):
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in texts]


def library_scores(student, ref):
    own = Benchmark("own", "choice", (Item("0", (ref,), CAPTIONS, 0),), 1, "made by the test")
    return score_grids(clip_scorer(student), own)[["s_0_0", "s_0_1"]].iloc[0].tolist()


def test_the_demo_scores_as_the_library_and_survives_what_is_thrown_at_it(
    page, lab, seen, student, tmp_path
):
    run_all(page, lab, "06_caption_demo")
    shown = cell(page, "demo.captions(models)")
    panel = shown.locator(".widget-vbox").first  # the twin beside it has the same words
    appears(page, panel.get_by_role("button", name="score"))

    for label, value in SCENE.items():
        panel.get_by_label(label, exact=True).select_option(value)
    ask(panel, *CAPTIONS, clicks=2)
    answers(panel, CAPTIONS[0], "Hardest re-orderings")
    ref = composing.picture(composing.compose(SCENE | {"variant": 0}))
    expected = library_scores(student, ref)
    found = numbers(panel.locator("b.score").all_inner_texts())
    assert found == pytest.approx(expected, abs=6e-5)

    ask(panel, ATTACK)
    panel.get_by_role("alert").filter(has_text="vocabulary").wait_for()
    assert ATTACK in panel.get_by_role("alert").inner_text()
    ask(panel, "  ", " ")
    panel.get_by_role("alert").filter(has_text="no caption yet").wait_for()

    wrong = tmp_path / "picture.png"
    wrong.write_text("this is no picture")
    panel.get_by_label("picture", exact=True).select_option("a file")
    upload(panel, wrong)
    panel.get_by_role("alert").filter(has_text="picture.png is not an image").wait_for()

    good = tmp_path / "good.png"
    good.write_bytes(ref.data())
    upload(panel, good)
    panel.get_by_alt_text("good.png").wait_for()
    text = panel.get_by_label("captions, one a line")
    text.fill("\n".join(CAPTIONS[::-1]))
    text.press("Control+Enter")
    panel.get_by_text("Hardest re-orderings").wait_for()
    text.fill("\n".join(CAPTIONS))
    panel.get_by_text("to an earlier question").wait_for()
    assert panel.locator(".stale table.answers").count()
    ask(panel, *CAPTIONS)
    panel.get_by_text("to an earlier question").wait_for(state="hidden")
    answers(panel, CAPTIONS[0], "Where each word is seen")
    assert numbers(panel.locator("b.score").all_inner_texts()) == found

    saved = save(page, lab.folder / "06_caption_demo.ipynb")
    outputs = [o.get("data", {}) for c in saved.cells for o in c.get("outputs", [])]
    assert sum(WIDGET in data for data in outputs) == 4  # the picker, and three panels
    assert sum('class="demo"' in data.get("text/html", "") for data in outputs) == 4
    assert not shown.locator("[id^='twin-']").is_visible()
    assert seen == Seen()

    stop_kernels(lab)
    later = page.context.browser.new_page(viewport=page.viewport_size)
    later.set_default_timeout(WAIT)
    later.goto(lab.address("06_caption_demo", workspace="afterwards"))
    cell(later, "demo.captions(models)").locator("table.answers").wait_for()
    cell(later, "demo.captions(models)").get_by_alt_text("good.png").wait_for()
    lost = later.get_by_text("model not found")
    lost.first.wait_for(state="attached")
    assert not any(lost.nth(n).is_visible() for n in range(lost.count()))


def test_the_failure_atlas_is_filtered_and_stepped_through(page, lab, seen, scores, items):
    run_all(page, lab, "05_winoground_failures")
    panel = cell(page, "failure_study.show(study)")
    appears(page, panel.get_by_label("outcome", exact=True))
    built = atlas.build({"student": scores}, items)
    asked = atlas.Query(outcome="wrong", sort="smallest margin first")
    wrong = atlas.select(built, asked)
    assert 2 < len(wrong) < 12

    panel.get_by_label("outcome", exact=True).select_option(asked.outcome)
    panel.get_by_label("sort", exact=True).select_option(asked.sort)
    panel.get_by_label("view").select_option("one")
    for place, item in enumerate(wrong[:3], start=1):
        panel.locator(f"article[data-id='{item}']").wait_for()
        panel.get_by_text(f"{len(wrong)} of 12 items, at {place}").wait_for()
        panel.get_by_role("button", name="next").click()
    assert panel.get_by_role("button", name="show these").is_visible()  # the list of runs

    page.keyboard.press("Control+b")  # the list of files goes
    page.set_viewport_size({"width": 800, "height": 1000})
    cell(page, "failure_study.told").get_by_text(f"Of {len(items.items)} items").wait_for()
    assert page.locator("img.drawn").count() == 4
    assert page.evaluate(LAB_FAULTS) == []
    cell(page, "failure_study.save").get_by_role("link", name="atlas.html").click()
    page.get_by_role("tab", name="atlas.html").wait_for()
    assert seen == Seen()


# What is wider than its place, and what is light in a dark theme, a grid's shaded cells aside.
LAB_FAULTS = """() => {
  const back = e => (getComputedStyle(e).backgroundColor.match(/[\\d.]+/g) || []).map(Number);
  const light = e => { const [r, g, b, a = 1] = back(e); return a > 0.3 && r + g + b > 500; };
  const outputs = [...document.querySelectorAll('.jp-OutputArea-output')];
  const inside = outputs.flatMap(e => [e, ...e.querySelectorAll('*')]);
  return [
    ...outputs.filter(e => e.scrollWidth > e.clientWidth + 1),
    ...inside.filter(e => light(e) && !e.matches('.cell')),
    ...inside.filter(e => e.matches('img.drawn') && getComputedStyle(e).filter === 'none'),
  ].map(e => e.outerHTML.slice(0, 120));
}"""


def test_training_is_watched_and_stopped_after_a_step_with_a_checkpoint(page, lab, seen):
    run_all(page, lab, "02_finetune")
    panel = cell(page, "finished = experiment.finetune")
    appears(page, panel.locator("progress"))
    panel.locator("img").first.wait_for()
    line = panel.locator("progress").locator("..")
    assert " left" in line.inner_text()
    page.get_by_role("button", name="Interrupt the kernel").click()
    panel.get_by_text("run again to go on").first.wait_for()
    assert "stopped after" in line.inner_text()

    (name,) = list_runs(lab.runs).query("arm == 'sds'")["run"]
    run = find_run(name, lab.runs)
    done, _, _ = run.latest_checkpoint()
    assert 0 < done == run.history()["step"].max() < LONG["steps"]
    assert run.status()["state"] == "interrupted"
    saved = save(page, lab.folder / "02_finetune.ipynb")
    outputs = [o.get("data", {}) for c in saved.cells for o in c.get("outputs", [])]
    assert any("image/png" in data for data in outputs)
    (error,) = (o for c in saved.cells for o in c.get("outputs", []) if o.output_type == "error")
    assert error.traceback == [f"stopped after step {done}; run again to go on"]
    assert not any(WIDGET in data for data in outputs)
    assert (seen.dialogs, seen.outside) == ([], [])


def test_the_demo_as_a_page_shows_no_code_and_lets_nobody_in_without_its_token(
    page, seen, tmp_path
):
    (tmp_path / "runs").mkdir()
    copy_notebook("06_caption_demo", tmp_path, runs=str(tmp_path / "runs"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    recipe = re.search(r"^demo:.*\n\t(.*)$", (project_root() / "Makefile").read_text(), re.M)[1]
    setting, *words = shlex.split(recipe.replace("$(CURDIR)", str(project_root())))
    token, home = secrets.token_hex(16), own_home(tmp_path, "")
    words[words.index("--token")] = f"--token={token}"
    words[1] = str(tmp_path / "06_caption_demo.ipynb")
    home |= dict([setting.split("=", 1)])
    command = [sys.executable, "-m", *words, "--no-browser", f"--port={port}"]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, env=home, stdout=file, stderr=file) as it:
        try:
            url = f"http://127.0.0.1:{port}"
            assert b"panel" not in wait_for(f"{url}/", it, log)  # the way in, that asks for it
            page.goto(f"{url}/?token={token}")
            panel = page.locator(".demo-panel").first
            panel.get_by_role("button", name="score", exact=True).wait_for()
            text = panel.get_by_label("captions, one a line")
            text.fill("\n".join(CAPTIONS))
            text.press("Control+Enter")
            answers(panel, CAPTIONS[0], "Where each word is seen")
            assert not page.get_by_text("demo.captions(models)").count()
            twins = page.locator("[id^='twin-']")
            assert not any(twins.nth(n).is_visible() for n in range(twins.count()))
            assert seen == Seen()
        finally:
            it.terminate()
