"""Controls that ipywidgets lacks: keys that press a button, an upload that shows how far it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget

from sdslib.show import page


class Keys(anywidget.AnyWidget):
    """Calls `pressed` when Ctrl+Enter (⌘+Enter) is pressed in the box that it stands in."""

    def __init__(self, pressed: Callable[[], object]) -> None:
        super().__init__(_esm=str(page.asset("keys.js")))
        self.on_msg(lambda *_: pressed())


class Upload(anywidget.AnyWidget):
    """A file chosen in the browser, which comes in pieces; `taken` gets its name and bytes.

    A file of any size comes through: one message could hold no more than 10 MB.
    """

    def __init__(self, label: str, kinds: str, taken: Callable[[str, bytes], object]) -> None:
        settings = json.dumps({"label": label, "kinds": kinds})
        super().__init__(_esm=f"const SETTINGS = {settings};\n{page.asset('upload.js')}")
        self.description, self.kinds, self.taken, self._data = label, kinds, taken, bytearray()
        self.on_msg(self.take)

    def take(self, _: Any, told: Mapping[str, Any], parts: Sequence[Any]) -> None:
        """One more piece; how much is here is what the next one begins at."""
        if told["start"] == 0:
            self._data = bytearray()
        for part in parts:
            self._data += part
        self.send({"have": len(self._data)})
        if len(self._data) >= told["size"]:
            self.taken(told["name"], bytes(self._data))
