"""
Recognises our own middlewares, and what usual wrappers hold inside.

Owns the proof that the served object itself is one of our middlewares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from types import FunctionType
from typing import Any

from ..doors import Door
from ..inbound.host import Middleware

_ATTRIBUTES = ("app", "_app", "application", "wsgi_app", "asgi_app", "wrapped", "__wrapped__")
_MAPPINGS = ("mounts", "apps")


def is_original(kind: type, name: str, home: str) -> bool:
    """
    Tell whether a method of a class is the one that its framework wrote.

    Instrumentation replaces methods; what it puts there may answer requests itself.

    Args:
        kind: the class.
        name: of the method.
        home: module of the framework that defines it.
    """
    found, module = getattr(kind, name, None), sys.modules.get(home)
    if type(found) is not FunctionType or module is None:
        return False
    return found.__code__.co_filename == module.__file__ and found.__module__ == home


def own_door(app: object) -> Door | None:
    """What judges in *app*, where that is one of our middlewares with its own ``__call__``."""
    for home, name in (("asgi", "MeshAuthz"), ("wsgi", "MeshAuthzWSGI")):
        module = sys.modules.get(f"{__package__.rpartition('.')[0]}.{home}")
        kind: Any = getattr(module, name, None)
        if kind is not None and isinstance(app, kind) and type(app).__call__ is kind.__call__:
            door: Door = app.door
            return door
    return None


class GenericRecogniser:
    """For every application."""

    def outermost(self, app: object) -> Door | None:
        """The application is one of our middlewares."""
        return own_door(app)

    def inner(self, app: object) -> Iterator[object]:
        """What *app* holds under a name that wrappers usually use."""
        door = own_door(app)
        if door is not None:
            yield Middleware(door.options, door)
        values: Any = getattr(app, "__dict__", None)
        if not isinstance(values, dict):
            return
        for name in _ATTRIBUTES:
            if values.get(name) is not None:
                yield values[name]
        for name in _MAPPINGS:
            if isinstance(values.get(name), Mapping):
                yield from values[name].values()
