"""
The middleware of WSGI applications.

Owns the translation of an environ into facts and of refusals into answers, and the end of answers
that outlast their verdict. Where the server has judged the request already, as on Hypercorn, only
an environ that another middleware has changed since then is judged again.
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
from .gate import UNBOUND, ActiveRequest, Bond, connection_bond, enter_request, leave_request
from .inbound.host import CALLER
from .inbound.judgement import Judgement, find_environ_judgement
from .intentions import WsgiFacts
from .mesh import Mesh
from .snapshot import Snapshot

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

KEY = CALLER
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
        shadow: canonical paths at and below which the mode is ``shadow``, besides the configured.

    Attributes:
        door: judges; a server asks it before the application runs.

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
        self.door = Door(mesh, exempt=exempt, mode=mode, shadow=shadow)
        if "hypercorn.config" in sys.modules:
            from .servers.hypercorn_tls import refuse_wsgi_on_trio

            refuse_wsgi_on_trio()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Judge one request."""
        # A caller cannot set these keys: what clients send is in the environ under HTTP_ names.
        outer = find_environ_judgement(environ)
        if isinstance(outer, Judgement):
            if outer.door is not self.door:
                self.door.tell_overruled()
            if outer.covers_environ(environ, self.door.mesh):
                environ[KEY] = outer.verdict.caller
                return self.app(environ, start_response)
        environ.pop(KEY, None)
        if outer is None:
            bond = connection_bond() if environ.get("wsgi.url_scheme") == "https" else UNBOUND
            facts = WsgiFacts(environ)
            verdict = self._judge(bond.peer, facts)
        else:
            bond = outer.bond if outer.alive else UNBOUND
            verdict = self.door.judge_all(bond.peer, [WsgiFacts(environ)])
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
        if outer is not None:
            return self.app(environ, start_response)
        return self._serve(environ, start_response, bond)

    def _serve(
        self, environ: Environ, start_response: StartResponse, bond: Bond
    ) -> Iterable[bytes]:
        judged = dict(environ)
        request = ActiveRequest(bond, _trace(environ))
        token = enter_request(request)
        try:
            answer = self.app(environ, start_response)
        except BaseException:
            request.alive = False
            raise
        finally:
            leave_request(token)
        if isinstance(answer, list | tuple):
            request.alive = False
            return answer
        return _Pieces(answer, self.door, request, judged)

    def _judge(self, peer: Peer | None, facts: WsgiFacts) -> Verdict:
        key = facts.key
        return self.door.recall(peer, key) or self.door.judge(peer, facts, key)


class _Pieces:
    """
    An answer in pieces, cut before the first that its caller may not have any more.

    A policy changes, a certificate expires, a root is dropped while an answer goes on for hours.
    The thread that makes it cannot be cancelled; what it makes can be kept from the caller.

    Args:
        answer: the application's.
        door: judged the request, and judges it again.
        request: what ends with it.
        environ: as it was judged; the application may have changed its own.
    """

    def __init__(
        self, answer: Iterable[bytes], door: Door, request: ActiveRequest, environ: Environ
    ) -> None:
        self._answer, self._parts = answer, iter(answer)
        self._door, self._request, self._environ = door, request, environ
        self._snapshot: Snapshot | None = None
        self._begun, self._due = False, 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        token = enter_request(self._request)
        try:
            part = next(self._parts)
        finally:
            leave_request(token)
        if not self._begun:
            self._begun = True  # judged a moment ago; most answers have no more than this piece
        elif self._request.bond.peer is not None and self._is_over():
            # An end without the last chunk, or a stream that is reset, tells a cut answer from a
            # complete one.
            raise asyncio.CancelledError
        return part

    def _is_over(self) -> bool:
        mesh, now = self._door.mesh, time.monotonic()
        if mesh is None:
            return True
        if mesh.snapshot is self._snapshot and now < self._due:
            return False
        self._snapshot, self._due = mesh.snapshot, now + LOOK_EVERY
        peer, standing = self._request.bond
        if mesh.ending or (standing is not None and standing.over()):
            return True
        return not self._door.passes_still(peer, WsgiFacts(self._environ))

    def close(self) -> None:
        """Close the application's answer, as PEP 3333 asks."""
        self._request.alive = False
        close = getattr(self._answer, "close", None)
        if close is not None:
            close()


def _trace(environ: Environ) -> list[tuple[bytes, bytes]]:
    keys = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE")
    return [
        (key[5:].lower().encode(), environ[key].encode("latin-1")) for key in keys if key in environ
    ]


def _end_to_end(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # PEP 3333 leaves hop-by-hop headers to the server.
    return [(name, value) for name, value in headers if name != "connection"]
