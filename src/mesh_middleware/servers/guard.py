"""
What a server of the mesh puts before the application it runs.

Owns the note of a WSGI request's own path, and the last resort: an application in which MeshAuthz
or MeshNative was forgotten would answer everyone, without a word. Where no door was made by the
time the server starts, one is put before the application until it makes its own: frameworks make a
mounted application's as late as with its first request. Knows the doors only as functions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

_log = logging.getLogger("mesh_middleware.door")


SENT = "mesh_middleware.sent"
"""Where an environ holds the path as the server made it, before any middleware."""


class Doors(NamedTuple):
    """
    What a server has to know of doors, which know servers themselves.

    Args:
        made: how many this process has made.
        asgi: puts one before an ASGI application.
        wsgi: puts one before a WSGI application.
    """

    made: Callable[[], int]
    asgi: Callable[[Any], Any]
    wsgi: Callable[[Any], Any]


def guard(wrapper: Any, doors: Doors) -> None:
    """
    Put a door before the application that a server runs, unless there is one; and note WSGI paths.

    Args:
        wrapper: Hypercorn's, around the application: an ``ASGIWrapper`` or a ``WSGIWrapper``.
        doors: where it comes from.
    """
    asgi = type(wrapper).__name__ == "ASGIWrapper"
    if not asgi:
        wrapper.app = _Noting(wrapper.app)
    if doors.made():
        return
    _log.warning(
        "the application has no MeshAuthz, MeshAuthzWSGI or MeshNative yet: "
        "until it has one, the server judges its requests"
    )
    wrapper.app = _AsgiGuard(wrapper.app, doors) if asgi else _WsgiGuard(wrapper.app, doors)


class _Noting:
    """
    Notes the path of a WSGI request.

    Middlewares before the door may change it by the caller's word: Werkzeug's ``ProxyFix`` takes
    ``SCRIPT_NAME`` from a header.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: Any, start_response: Any) -> Any:
        environ[SENT] = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        return self._app(environ, start_response)


class _AsgiGuard:
    def __init__(self, app: Any, doors: Doors) -> None:
        self._app, self._judged, self._doors = app, doors.asgi(app), doors
        self._made = doors.made()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        has_its_own = self._doors.made() > self._made
        await (self._app if has_its_own else self._judged)(scope, receive, send)


class _WsgiGuard:
    def __init__(self, app: Any, doors: Doors) -> None:
        self._app, self._judged, self._doors = app, doors.wsgi(app), doors
        self._made = doors.made()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        has_its_own = self._doors.made() > self._made
        return (self._app if has_its_own else self._judged)(environ, start_response)
