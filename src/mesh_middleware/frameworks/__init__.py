"""
What servers have to know of frameworks: where a middleware of ours is outermost in an application.

Each module looks at a framework only where the process has loaded it. `RECOGNISERS` is what a
server's adapter is given.
"""

from __future__ import annotations

from ..inbound.host import Recogniser
from .flask import FlaskRecogniser
from .generic import GenericRecogniser
from .quart import QuartRecogniser
from .starlette import StarletteRecogniser

RECOGNISERS: tuple[Recogniser, ...] = (
    GenericRecogniser(),
    StarletteRecogniser(),
    FlaskRecogniser(),
    QuartRecogniser(),
)
"""One for each framework, and one for our own middlewares and usual wrappers."""
