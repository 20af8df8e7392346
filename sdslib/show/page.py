"""The door to the templates: a view is `render`ed from `templates/NAME.html.j2`, escaped.

What is Markup already stays so, all other text is escaped, and a value that a template asks for and
nobody gives is an error. No view refers to a resource outside the page, so it reads the same
offline, through nbconvert, and in a screen reader.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from sdslib.io.progress import notebook_shell
from sdslib.results import takeaway
from sdslib.results.formatting import few as number

THUMBNAIL = 160  # pixels of the longer side
_FEW_BYTES = 4096
_FULL = (0, 114, 178)  # Okabe and Ito's blue


def render(view: str, /, **values: Any) -> Markup:
    """The template `view`.html.j2 with these values in it."""
    return Markup(_VIEWS.get_template(f"{view}.html.j2").render(values))


def markdown(view: str, /, **values: Any) -> str:
    """The template `view`.md.j2 with these values in it, in which nothing is escaped."""
    return _VIEWS.get_template(f"{view}.md.j2").render(values)


def asset(name: str) -> Markup:
    """A style or script that lies beside the templates; in a template `asset("atlas.css")`."""
    return Markup(files("sdslib.show").joinpath("templates", name).read_text("utf-8"))


@cache
def program() -> str:
    """A hash of all that draws pages and figures: one of another program is drawn anew."""
    show, digest = Path(__file__).parent, hashlib.sha256()
    homes = show, show / "templates", show.parent / "results"
    for path in sorted(path for home in homes for path in home.iterdir() if path.is_file()):
        digest.update(f"{path.name}\n{path.read_text('utf-8')}\n".encode())
    return digest.hexdigest()[:16]


def data_uri(image: Image.Image, side: int = THUMBNAIL, kind: str = "jpeg") -> str:
    """The picture itself as an address, `side` pixels; in a template `image | data_uri`.

    Small pictures of few colors, as drawn ones, are kept exactly (PNG), others as `kind`.
    """
    small = image.convert("RGB")
    small.thumbnail((side, side))
    data = io.BytesIO()
    if max(image.size) <= THUMBNAIL:
        small.save(data, "png", optimize=True)
        if data.tell() <= _FEW_BYTES:
            return file_uri(data.getvalue())
    small.save(data := io.BytesIO(), kind, quality={"jpeg": 82, "webp": 75}[kind])
    return file_uri(data.getvalue(), f"image/{kind}")


def file_uri(data: bytes, kind: str = "image/png") -> str:
    """A file as an address; in a template `bytes | file_uri` for a picture."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def shade(values: Sequence[float] | np.ndarray) -> list[str]:
    """A background for each value, from white (the lowest) to a blue on which black is legible."""
    array = np.asarray(values, dtype=float)
    depth = (array - array.min()) / (np.ptp(array) or 1) * 0.85
    colors = np.rint(255 + (np.array(_FULL) - 255) * depth[:, None]).astype(int)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colors]


_VIEWS = Environment(
    loader=PackageLoader("sdslib.show"),
    autoescape=lambda name: not (name or "").endswith(".md.j2"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_VIEWS.filters |= {"data_uri": data_uri, "file_uri": file_uri, "number": number, "shade": shade}
_VIEWS.globals |= {
    "asset": asset,
    "take": lambda frame, name: Markup(takeaway.of_table(frame, name)),
    "take_figure": lambda drawn: Markup(takeaway.of_figure(drawn.svg(), drawn.head)),
}


def is_live() -> bool:
    """Whether a person's notebook front end runs this cell.

    papermill and nbconvert run cells too, but forbid input; a widget they show would stay empty.
    Voilà forbids it as well, and says in the kernel's environment that it is there.
    """
    if os.environ.get("SERVER_SOFTWARE", "").startswith("voila/"):
        return True
    return bool(getattr(getattr(notebook_shell(), "kernel", None), "_allow_stdin", False))


class Live:
    """A widget and its static twin: two outputs of one cell, of which a reader sees one.

    The twin hides beside the living widget. Where that has no kernel to live in (a saved notebook
    opened again, nbconvert, a viewer without widgets) it shows, and hides JupyterLab's "model not
    found", which would stand in the widget's place. The twin of a panel, a `view` with a `result`,
    is the last result that it showed.
    """

    def __init__(self, widget: Any, markup: str) -> None:
        self.widget, self.markup = getattr(widget, "view", widget), markup
        if (result := getattr(widget, "result", None)) is not None:
            result.observe(lambda change: self._keep(change["new"]), "value")

    def bundles(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The MIME bundles of the widget, and of the twin."""
        # what `atlas.css` shows the focus by, and what the twin hides beside
        self.widget.add_class("live-view").add_class(self._name)
        live = self.widget._repr_mimebundle_() | {"text/html": "", "text/plain": "live controls"}
        return live, self._twin()

    @property
    def _name(self) -> str:
        return f"live-{self.widget.model_id}"

    def _twin(self) -> dict[str, Any]:
        twin = str(render("live", name=self._name, view=Markup(self.markup)))
        return {"text/html": twin, "text/plain": "the live controls as a page"}

    def _keep(self, markup: str) -> None:
        """Have the twin show another result."""
        from IPython.display import publish_display_data

        if markup:
            self.markup = markup
            publish_display_data(self._twin(), transient={"display_id": self._name}, update=True)

    def _ipython_display_(self) -> None:
        from IPython.display import publish_display_data

        live, twin = self.bundles()
        publish_display_data(live)
        publish_display_data(twin, transient={"display_id": self._name})


def live_or_saved(widget: Callable[[], Any], markup: Callable[[], str]) -> Any:
    """What a cell shows: a live widget where somebody sits at the notebook, else its static twin.

    `widget` may make a panel instead, see `Live`.
    """
    from IPython.display import HTML

    if is_live():
        return Live(widget(), markup())
    return HTML(render("live", name="", view=Markup(markup())))
