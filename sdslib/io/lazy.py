"""Names of things in rooms further up, which are imported when they are first asked for."""

from importlib import import_module
from typing import Any


def named(place: str) -> Any:
    """What `room:name` stands for, as `sets.aro:aro_relation`."""
    room, _, name = place.partition(":")
    return getattr(import_module(f"sdslib.{room}"), name)
