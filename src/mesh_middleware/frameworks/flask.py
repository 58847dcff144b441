"""
Recognises a Flask application in which `MeshNative` is outermost.

Owns the proof: it is exactly a ``flask.Flask``, its ``__call__`` is Flask's own, and its
``wsgi_app`` is our middleware.

Source: Flask, ``flask.app.Flask.__call__``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ..doors import Door
from .generic import is_original, own_door


class FlaskRecogniser:
    """For Flask."""

    home, kind, inside = "flask.app", "Flask", "wsgi_app"

    def outermost(self, app: object) -> Door | None:
        """The application is exactly the framework's own, unchanged, and our middleware in it."""
        module: Any = sys.modules.get(self.home)
        own = getattr(module, self.kind, None)
        if own is None or type(app) is not own or "__call__" in vars(app):
            return None
        if not is_original(own, "__call__", self.home):
            return None
        return own_door(vars(app).get(self.inside))

    def inner(self, app: object) -> Iterator[object]:
        """Nothing besides what every wrapper is looked at for."""
        return iter(())
