"""
The door of ASGI applications: Starlette, FastAPI, or any other.

Owns the translation of scopes into facts and of refusals into messages. Judges every HTTP request
and every WebSocket handshake; starts nothing at construction and reads the peer only from the
connection that carried the request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from .answers import refusal
from .certificates import Peer
from .config import Mode
from .doors import Door
from .gate import UNBOUND, current_bond
from .intentions import AsgiFacts, Decision
from .intentions.facts import asgi_key
from .live import Ended, LiveRequests
from .mesh import Mesh
from .trace import remember_trace

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("mesh_middleware.asgi")
_SECURE = frozenset({"https", "wss"})
POLICY_CLOSE = 4403
"""WebSocket close code of a refusal by policy."""


class MeshAuthz:
    """
    ASGI middleware that lets through what the intentions allow.

    ``app.add_middleware(MeshAuthz)``, added last so that it is outermost.

    Args:
        app: the application inside.
        mesh: judges; the process's own mesh unless given.
        exempt: canonical paths that anyone may call, besides the configured ones.
        mode: ``shadow`` lets every identified or plaintext request pass and logs the denial.
        shadow: canonical paths at and below which the mode is ``shadow``.
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
        self._live = LiveRequests(self._denied_now)
        self._heard: Mesh | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request or WebSocket; pass the lifespan through and close the mesh after it."""
        kind = scope["type"]
        if kind == "lifespan":
            await self.app(scope, receive, self._closing(send))
            return
        # The scheme is the server's word on this very connection: plaintext has no identity,
        # whatever a context variable might say.
        bond = current_bond() if scope.get("scheme") in _SECURE else UNBOUND
        key = asgi_key(scope)
        verdict = self._door.recall(bond.peer, key)
        if verdict is None:
            verdict = self._door.judge(bond.peer, AsgiFacts(scope, key), key)
            if not verdict.passes:
                await _refuse(scope, receive, send, verdict.decision)
                return
        caller = verdict.caller
        if caller.mesh is not self._heard and caller.mesh is not None:
            self._heard = caller.mesh
            caller.mesh.after_change(self._live.sweep_soon)
        remember_trace(scope.get("headers", ()))
        # What the application sees. Written out, as all that each request pays for.
        inner, state = dict(scope), scope.get("state")
        inner["state"] = {**state, "mesh": caller} if state else {"mesh": caller}
        if verdict.handed:
            inner["headers"] = _replaced(scope.get("headers", ()), verdict.handed)
        work = self.app(inner, receive, send)
        live = self._live
        task = live.enter(bond, scope)
        try:
            if task is None:
                await live.run_on_trio(work, bond, scope)
            else:
                await work
        except Ended:
            pass
        except asyncio.CancelledError:
            if task is None or not live.was_ended(task):
                raise
        else:
            return
        finally:
            if task is not None:
                live.leave(task)
        # What was begun over HTTP says no end of its own, so that nobody takes it for complete: the
        # server closes the connection or, over HTTP/2, resets the stream.
        if kind == "websocket":
            close = {"type": "websocket.close", "code": POLICY_CLOSE, "reason": "denied by policy"}
            await send(close)

    def _denied_now(self, peer: Peer | None, scope: Mapping[str, Any]) -> bool:
        mesh = self._door.mesh
        ending = mesh is not None and mesh.ending
        return ending or not self._door.passes_still(peer, AsgiFacts(scope))

    def _closing(self, send: Send) -> Send:
        async def watch(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                self._door.close()
            await send(message)

        return watch


def _replaced(
    headers: Iterable[tuple[bytes, bytes]], handed: Mapping[str, str | None]
) -> list[tuple[bytes, bytes]]:
    # A name with underscores goes too: what serves WSGI below would take it for the same.
    gone = {name.replace("_", "-").encode() for name in handed}
    kept = [(k, v) for k, v in headers if k.lower().replace(b"_", b"-") not in gone]
    return kept + [(k.encode(), v.encode()) for k, v in handed.items() if v is not None]


async def _refuse(scope: Scope, receive: Receive, send: Send, decision: Decision) -> None:
    status, headers, body = refusal(decision)
    if scope["type"] == "http":
        await _answer("http.response", scope, send, status, headers, body)
    elif scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" in scope.get("extensions", {}):
            await _answer("websocket.http.response", scope, send, status, headers, body)
        else:
            await send({"type": "websocket.close", "code": POLICY_CLOSE, "reason": "denied"})
    else:
        _log.error("refused an unknown kind of scope: %r", scope["type"])
        raise RuntimeError(f"MeshAuthz judges http and websocket, not {scope['type']!r}")


async def _answer(
    prefix: str,
    scope: Scope,
    send: Send,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    # HTTP/2 knows no connection header; RFC 9113, 8.2.2.
    one = str(scope.get("http_version", "1.1")).startswith("1")
    sent = [(k.encode(), v.encode()) for k, v in headers if one or k != "connection"]
    await send({"type": f"{prefix}.start", "status": status, "headers": sent})
    await send({"type": f"{prefix}.body", "body": body, "more_body": False})
