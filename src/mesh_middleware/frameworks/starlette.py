"""
Recognises a Starlette or FastAPI application in which `MeshAuthz` is outermost.

Owns the proof. Starlette builds its stack of middlewares once, with the lifespan or the first
request; here it is built for it, so that what is proven is what runs. The only things outside of
``user_middleware[0]`` may be the frameworks' own that answer nothing before an error.

Source: Starlette, ``starlette.applications``; FastAPI, ``fastapi.applications``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ..doors import Door
from ..inbound.host import Middleware
from .generic import is_original, own_door

_HOMES = {"Starlette": "starlette.applications", "FastAPI": "fastapi.applications"}
_OUTSIDE = {
    "ServerErrorMiddleware": "starlette.middleware.errors",
    "ExceptionTelemetryMiddleware": "fastapi.telemetry._asgi",
    "AppBodyLimitMiddleware": "fastapi._body_limit",
}
"""What the frameworks themselves put outside of the first middleware, by name and module. None of
them answers a request before an error, where no size of bodies is set."""

_METHODS = ("__call__", "build_middleware_stack")


class StarletteRecogniser:
    """For Starlette and FastAPI."""

    def outermost(self, app: object) -> Door | None:
        """The application is exactly one of the two, unchanged, and MeshAuthz is its first."""
        kind = type(app)
        home = _HOMES.get(kind.__name__)
        if home is None or getattr(sys.modules.get(home), kind.__name__, None) is not kind:
            return None
        if any(name in vars(app) for name in _METHODS):
            return None
        if not all(_is_own(kind, name) for name in _METHODS):
            return None
        return _first_in_stack(app)

    def inner(self, app: object) -> Iterator[object]:
        """Its middlewares, made or not, and the applications that it mounts."""
        module: Any = sys.modules.get("starlette.applications")
        if module is not None and isinstance(app, module.Starlette):
            yield from _listed(app)
            yield from app.routes
        routes = getattr(app, "routes", None)
        if type(app).__module__ == "starlette.routing" and isinstance(routes, list):
            yield from routes


def _is_own(kind: type, name: str) -> bool:
    # FastAPI has its own of either, or Starlette's, by version.
    homes = [home for home in _HOMES.values() if home in sys.modules]
    return any(is_original(kind, name, home) for home in homes)


def _first_in_stack(app: Any) -> Door | None:
    if not app.user_middleware or own_kind(app.user_middleware[0].cls) is None:
        return None
    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    stack = app.middleware_stack
    for _ in _OUTSIDE:
        kind = type(stack)
        home = _OUTSIDE.get(kind.__name__)
        if home is None or getattr(sys.modules.get(home), kind.__name__, None) is not kind:
            break
        if not is_original(kind, "__call__", home) or _limits_bodies(app):
            return None
        stack = stack.app
    return own_door(stack)


def _limits_bodies(app: Any) -> bool:
    """Whether the framework itself may answer a request, for the size of its body."""
    return getattr(app, "max_body_size", None) is not None


def _listed(app: Any) -> Iterator[Middleware]:
    for each in app.user_middleware:
        kind = own_kind(each.cls)
        if kind is not None and app.middleware_stack is None:
            given = {k: v for k, v in each.kwargs.items() if k != "mode" or v == "shadow"}
            yield Middleware(tuple(name for name, value in given.items() if value))
    if app.middleware_stack is not None:
        yield app.middleware_stack


def own_kind(kind: object) -> type | None:
    """*kind* where it is `MeshAuthz` or a subclass of it with the same ``__call__``."""
    module: Any = sys.modules.get("mesh_middleware.asgi")
    own = getattr(module, "MeshAuthz", None)
    if own is None or not isinstance(kind, type) or not issubclass(kind, own):
        return None
    return kind if kind.__call__ is own.__call__ else None
