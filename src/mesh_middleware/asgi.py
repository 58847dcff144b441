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
from .config import Mode
from .doors import Door
from .gate import (
    UNBOUND,
    active_request,
    connection_bond,
    enter_request,
    leave_request,
)
from .inbound.judgement import JUDGEMENT, Judgement, find_judgement, is_carried, routed_scope
from .intentions import AsgiFacts, Decision
from .intentions.facts import asgi_key
from .live import Ended, LiveRequests
from .mesh import Mesh

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

    ``app.add_middleware(MeshAuthz)``, added last so that it is outermost. Where it is not, the
    server judges before the application, by the settings; this middleware then judges again only
    what another middleware has changed, and its own `exempt`, `mode` and `shadow` allow nothing.

    Args:
        app: the application inside.
        mesh: judges; the process's own mesh unless given.
        exempt: canonical paths that anyone may call, besides the configured ones.
        mode: ``shadow`` lets every identified or plaintext request pass and logs the denial.
        shadow: canonical paths at and below which the mode is ``shadow``, besides the configured.

    Attributes:
        door: judges.
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
        self._set_up(app, Door(mesh, exempt=exempt, mode=mode, shadow=shadow))

    def _set_up(self, app: App, door: Door) -> None:
        self.app = app
        self.door = door
        self._live = LiveRequests(self._denied_now)
        self._heard: Mesh | None = None

    @classmethod
    def by_server(cls, app: App, door: Door | None = None) -> MeshAuthz:
        """
        Make the middleware that a server puts before an application.

        Args:
            app: what is served.
            door: judges; one by the settings alone unless given.
        """
        made = cls.__new__(cls)
        made._set_up(app, door or Door())
        return made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge one request or WebSocket; pass the lifespan through and close the mesh after it."""
        kind = scope["type"]
        if kind == "lifespan":
            await self.app(scope, receive, self._closing(send))
            return
        # One function, since each request pays for every call.
        outer = scope.get(JUDGEMENT) or active_request()
        if outer is not None or "wsgi_environ" in scope:
            outer = find_judgement(scope)
        routed: Mapping[str, Any] | None = None
        if outer is None:
            # The scheme only takes an identity away: plaintext has none, whatever a context says.
            bond = connection_bond() if scope.get("scheme") in _SECURE else UNBOUND
            key = asgi_key(scope)
            verdict = self.door.recall(bond.peer, key)
            if verdict is None:
                verdict = self.door.judge(bond.peer, AsgiFacts(scope, key), key)
        else:
            if isinstance(outer, Judgement):
                if outer.door is not self.door:
                    self.door.tell_overruled()
                if is_carried(scope, outer) and outer.covers(scope, self.door.mesh):
                    await self.app(_with_caller(scope, outer), receive, send)
                    return
                routed = routed_scope(scope, outer.root_path)
            bond = outer.bond if outer.alive else UNBOUND
            verdict = self.door.judge_all(bond.peer, _readings(scope, routed))
        if not verdict.passes:
            await _refuse(scope, receive, send, verdict.decision)
            return
        caller, live = verdict.caller, self._live
        mesh = caller.mesh
        if mesh is not self._heard and mesh is not None:
            self._heard = mesh
            mesh.after_change(live.sweep_soon)
        # What the application sees.
        inner, state = dict(scope), scope.get("state")
        inner["state"] = {**state, "mesh": caller} if state else {"mesh": caller}
        headers = scope.get("headers", ())
        if verdict.handed:
            headers = _replaced(headers, verdict.handed)
        inner["headers"] = [*headers]
        request = inner[JUDGEMENT] = Judgement(bond, headers, verdict, scope, self.door)
        own_task = False
        if outer is not None:
            request.routed = routed
            request.origin = outer if isinstance(outer, Judgement) else None
        elif mesh is None or mesh.server is None:
            send = _noting_the_end(request, send)
        else:
            own_task = True
        work = self.app(inner, receive, send)
        token = enter_request(request)
        task = live.enter(request)
        try:
            if task is None:
                await live.run_on_trio(work, request)
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
            request.alive = False
            # A context that ends with its task needs no cleaning, which costs as much as entering.
            if not own_task:
                leave_request(token)
            if task is not None:
                live.leave(task)
        # What was begun over HTTP says no end of its own, so that nobody takes it for complete: the
        # server closes the connection or, over HTTP/2, resets the stream.
        if kind == "websocket":
            close = {"type": "websocket.close", "code": POLICY_CLOSE, "reason": "denied by policy"}
            await send(close)

    def _denied_now(self, request: Judgement) -> bool:
        mesh = self.door.mesh
        if request.complete:
            return False
        if mesh is not None:
            if mesh.server is not None and mesh.server.is_complete(request.server_send):
                return False
            if mesh.ending:
                return True
        peer, standing = request.bond
        # Who only listens sends no bytes at whose coming the connection would end.
        if peer is not None and standing is not None and standing.over():
            return True
        if mesh is not None and request.holds is not None and mesh.holds(*request.holds):
            return False
        readings = _readings(request.scope, request.routed)
        if not self.door.passes_still(peer, *readings):
            return True
        request.holds = self.door.holds(peer, readings)
        return False

    def _closing(self, send: Send) -> Send:
        async def watch(message: Message) -> None:
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                self.door.close()
            await send(message)

        return watch


def _readings(scope: Mapping[str, Any], routed: Mapping[str, Any] | None) -> tuple[AsgiFacts, ...]:
    return (AsgiFacts(scope),) if routed is None else (AsgiFacts(scope), AsgiFacts(routed))


def _with_caller(scope: Scope, judged: Judgement) -> Scope:
    """The scope with ``state["mesh"]``, which a middleware in between may have dropped."""
    state = scope.get("state")
    if state and state.get("mesh") is judged.verdict.caller:
        return scope
    return {**scope, "state": {**(state or {}), "mesh": judged.verdict.caller}}


def _noting_the_end(request: Judgement, send: Send) -> Send:
    """Note the last byte of an answer, where the server does not tell the state of its streams."""

    async def noting(message: Message) -> None:
        await send(message)
        kind = message["type"]
        if kind == "websocket.close" or (
            kind == "http.response.body" and not message.get("more_body", False)
        ):
            request.complete = True

    return noting


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
