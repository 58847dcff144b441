"""
The door of WSGI applications.

Owns the translation of an environ into facts and of refusals into answers, and the end of answers
that outlast their verdict. On Hypercorn the environ is what the application sees, so it is what is
judged (design 3.3).
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from http.client import responses
from typing import Any

from .answers import refusal
from .certificates import Peer
from .config import Mode
from .doors import Door, Verdict
from .gate import UNBOUND, current_bond
from .intentions import WsgiFacts
from .mesh import Mesh
from .servers.guard import SENT
from .snapshot import Snapshot
from .standing import Standing
from .trace import remember_trace

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

KEY = "mesh_middleware.caller"
"""Where the environ holds the `mesh_middleware.doors.Caller`."""

LOOK_EVERY = 1.0
"""Seconds after which a piece of an answer is judged although the snapshot is the same: a peer's
certificate may have expired, its root may have been dropped, a plugin may say no now."""


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
        peer, standing = current_bond() if environ.get("wsgi.url_scheme") == "https" else UNBOUND
        verdict, *others = (self._judge(peer, facts) for facts in _readings(environ))
        verdict = next((other for other in others if not other.passes), verdict)
        if not verdict.passes:
            status, headers, body = refusal(verdict.decision)
            start_response(f"{status} {responses[status]}", _end_to_end(headers))
            return [body]
        environ[KEY] = verdict.caller
        for name, value in verdict.handed.items():
            key = f"HTTP_{name.upper().replace('-', '_')}"
            environ.pop(key, None)
            if value is not None:
                environ[key] = value
        remember_trace(_trace(environ))
        if peer is None:
            return self.app(environ, start_response)
        judged = dict(environ)
        answer = self.app(environ, start_response)
        if isinstance(answer, list | tuple):
            return answer
        return _Pieces(answer, self._door, peer, standing, judged)

    def _judge(self, peer: Peer | None, facts: WsgiFacts) -> Verdict:
        key = facts.key
        return self._door.recall(peer, key) or self._door.judge(peer, facts, key)


class _Pieces:
    """
    An answer in pieces, cut before the first that its caller may not have any more.

    A policy changes, a certificate expires, a root is dropped while an answer goes on for hours.
    The thread that makes it cannot be cancelled; what it makes can be kept from the caller.

    Args:
        answer: the application's.
        door: judged the request, and judges it again.
        peer: who sent it.
        standing: what its connection stands on.
        environ: as it was judged; the application may have changed its own.
    """

    def __init__(
        self,
        answer: Iterable[bytes],
        door: Door,
        peer: Peer,
        standing: Standing | None,
        environ: Environ,
    ) -> None:
        self._answer, self._parts = answer, iter(answer)
        self._door, self._peer, self._environ = door, peer, environ
        self._standing = standing
        self._snapshot: Snapshot | None = None
        self._begun, self._due = False, 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self._parts)
        if not self._begun:
            self._begun = True  # judged a moment ago; most answers have no more than this piece
        elif self._is_over():
            # An end without the last chunk, or a stream that is reset, tells a cut answer from a
            # complete one. Hypercorn, which alone gives a peer here, takes a cancellation without a
            # word.
            raise asyncio.CancelledError
        return part

    def _is_over(self) -> bool:
        mesh, now = self._door.mesh, time.monotonic()
        if mesh is None:
            return True
        if mesh.snapshot is self._snapshot and now < self._due:
            return False
        self._snapshot, self._due = mesh.snapshot, now + LOOK_EVERY
        if mesh.ending or (self._standing is not None and self._standing.over()):
            return True
        readings = _readings(self._environ)
        return not all(self._door.passes_still(self._peer, facts) for facts in readings)

    def close(self) -> None:
        """Close the application's answer, as PEP 3333 asks."""
        close = getattr(self._answer, "close", None)
        if close is not None:
            close()


def _readings(environ: Environ) -> list[WsgiFacts]:
    """The request as the application sees it; and as it was sent, where its path was changed."""
    sent = environ.get(SENT)
    if sent is None or sent == environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""):
        return [WsgiFacts(environ)]
    return [WsgiFacts(environ), WsgiFacts({**environ, "SCRIPT_NAME": "", "PATH_INFO": sent})]


def _trace(environ: Environ) -> list[tuple[bytes, bytes]]:
    keys = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE")
    return [
        (key[5:].lower().encode(), environ[key].encode("latin-1")) for key in keys if key in environ
    ]


def _end_to_end(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # PEP 3333 leaves hop-by-hop headers to the server.
    return [(name, value) for name, value in headers if name != "connection"]
