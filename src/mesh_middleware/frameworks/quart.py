"""
Recognises a Quart application in which `MeshAuthz` is outermost.

Source: Quart, ``quart.app.Quart.__call__``, which calls ``asgi_app``.
"""

from __future__ import annotations

from .flask import FlaskRecogniser


class QuartRecogniser(FlaskRecogniser):
    """For Quart: ``app.asgi_app = MeshAuthz(app.asgi_app)``."""

    home, kind, inside = "quart.app", "Quart", "asgi_app"
