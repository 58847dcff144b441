"""
The door of WSGI applications.

Owns the translation of an environ into facts and of refusals into answers. On Hypercorn the
environ is what the application sees, so it is what is judged (design 3.3).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from http.client import responses
from typing import Any

from .answers import refusal
from .config import Mode
from .doors import Door, claim_headers
from .gate import current_peer
from .intentions import WsgiFacts
from .mesh import Mesh
from .trace import remember_trace

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

KEY = "mesh_middleware.caller"
"""Where the environ holds the `mesh_middleware.doors.Caller`."""


class MeshAuthzWSGI:
    """
    WSGI middleware that lets through what the intentions allow.

    Args:
        app: the application inside.
        mesh: judges; the process's own mesh unless given.
        exempt: canonical paths that anyone may call, besides the configured ones.
        mode: ``shadow`` lets every request pass and logs the denial.
        shadow: canonical paths at and below which the mode is ``shadow``.

    Raises:
        SystemExit: Hypercorn's trio worker imports the application; it cannot run WSGI.
    """

    def __init__(
        self,
        app: App,
        *,
        mesh: Mesh | None = None,
        exempt: Iterable[str] = (),
        mode: Mode | None = None,
        shadow: Iterable[str] = (),
    ) -> None:
        self.app = app
        self._door = Door(mesh, exempt=exempt, mode=mode, shadow=shadow)
        if "hypercorn.config" in sys.modules:
            from .servers.hypercorn_tls import refuse_wsgi_on_trio

            refuse_wsgi_on_trio()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Judge one request."""
        # A caller cannot set this key: what clients send is in the environ under HTTP_ names.
        environ.pop(KEY, None)
        peer = current_peer() if environ.get("wsgi.url_scheme") == "https" else None
        verdict = self._door.judge(peer, WsgiFacts(environ))
        if not verdict.passes:
            status, headers, body = refusal(verdict.decision)
            start_response(f"{status} {responses[status]}", _end_to_end(headers))
            return [body]
        environ[KEY] = verdict.caller
        for name, value in claim_headers(verdict.caller).items():
            key = f"HTTP_{name.upper().replace('-', '_')}"
            environ.pop(key, None)
            if value is not None:
                environ[key] = value
        remember_trace(_trace(environ))
        return self.app(environ, start_response)


def _trace(environ: Environ) -> list[tuple[bytes, bytes]]:
    keys = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE")
    return [
        (key[5:].lower().encode(), environ[key].encode("latin-1")) for key in keys if key in environ
    ]


def _end_to_end(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # PEP 3333 leaves hop-by-hop headers to the server.
    return [(name, value) for name, value in headers if name != "connection"]
