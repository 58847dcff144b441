"""
No wrong identity, ever: many connections of many identities at once, on every combination.

Each caller knows which certificate its connection shows, and compares it with the identity that the
application saw. Handshakes run while others send requests (that is when a binding made in the wrong
place goes wrong); then all wait for each other, so that all connections are open at once; then all
send again. Plaintext connections of the same process send all the while, and have no identity.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent

from ..support.servers import Hypercorn, mesh_file
from .callers import Caller, Identity, connect, outsider_context

IDENTITIES = 20
ROUND = 5
"""Requests of one connection before, and as many after, all connections are open."""

STARLETTE = """
import anyio.lowlevel
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from mesh_middleware import MeshAuthz
from mesh_middleware.gate import current_peer


def show(peer):
    return [peer.id.uri, peer.serial_number] if peer else None


async def told(connection):
    first = show(connection.state.mesh.peer)
    await anyio.lowlevel.checkpoint()
    return [first, show(connection.state.mesh.peer), show(current_peer())]


async def who(request):
    return JSONResponse(await told(request))


async def talk(websocket):
    await websocket.accept()
    async for _ in websocket.iter_text():
        await websocket.send_json(await told(websocket))


routes = [Route("/who", who), Route("/open", who), WebSocketRoute("/ws", talk)]
app = Starlette(routes=[*routes, WebSocketRoute("/open", talk)])
app.add_middleware(MeshAuthz)
"""

FLASK = """
import os

from flask import Flask, request

from mesh_middleware import MeshNative
from mesh_middleware.flask import mesh_peer
from mesh_middleware.gate import current_peer
from mesh_middleware.wsgi import KEY

app = Flask(__name__)
MeshNative(app)


def show(peer):
    return [peer.id.uri, peer.serial_number] if peer else None


@app.get("/who")
def who():
    first = show(mesh_peer)
    os.sched_yield()
    return [first, show(mesh_peer), show(current_peer())]


@app.get("/open")
def open_to_all():
    return [show(request.environ[KEY].peer)] * 2 + [show(current_peer())]
"""

WRONG = """
# Before STARLETTE: the peer of the last handshake counts as the peer of every request.
from mesh_middleware import gate

right, last = gate.GatedObject.do_handshake, [None]


def do_handshake(self):
    right(self)
    last[0] = self.mesh_peer


gate.GatedObject.do_handshake = do_handshake
gate.current_peer = lambda: last[0]
gate.connection_bond = gate.current_bond = lambda: gate.Bond(last[0], None)
"""


@dataclass
class Tally:
    """What was counted."""

    connections: int = 0
    open_at_once: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    mismatches: list[tuple[Any, Any]] = field(default_factory=list)

    def expect(self, kind: str, seen: Any, right: Any) -> None:
        """Count one answer, and whether it is right."""
        self.requests[kind] += 1
        if seen != right:
            self.mismatches.append((right, seen))


class Crowd:
    """
    All the callers of one run.

    Args:
        server: the process that is called.
        identities: certificates in use.
        roots: what the callers trust.
        secure: connections over TLS per protocol.
        plain: plaintext connections per protocol.
    """

    def __init__(
        self,
        server: Hypercorn,
        identities: list[Identity],
        roots: str,
        secure: dict[str, int],
        plain: dict[str, int],
    ) -> None:
        self.tally = Tally()
        self._server, self._identities, self._roots = server, identities, roots
        self._secure = [kind for kind, count in secure.items() for _ in range(count)]
        self._plain = [kind for kind, count in plain.items() for _ in range(count)]
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}
        self._open = 0

    def run(self) -> Tally:
        """Let them all call, and tell what was counted."""
        asyncio.run(self._run())
        return self.tally

    async def _run(self) -> None:
        self._all_here = asyncio.Barrier(len(self._secure) + len(self._plain))
        async with asyncio.timeout(50), asyncio.TaskGroup() as group:
            for number, kind in enumerate(self._secure):
                identity = self._identities[number % len(self._identities)]
                group.create_task(self._call_secure(kind, identity))
            for kind in self._plain:
                group.create_task(self._call_plain(kind))

    async def _call_secure(self, kind: str, identity: Identity) -> None:
        right = [[identity.uri, identity.serial]] * 3
        port = self._server.port("https")
        async with connect(kind, port, self._context(kind, identity)) as caller:
            async for answer in self._rounds(caller, ["/who"] * ROUND):
                self.tally.expect(kind, (answer.status, answer.json), (200, right))

    async def _call_plain(self, kind: str) -> None:
        port = self._server.port("http")
        async with connect(kind, port, None, path="/open") as caller:
            paths = (["/open"] if kind == "ws" else ["/who", "/open"]) * ROUND
            async for answer in self._rounds(caller, paths):
                refused = kind != "ws" and "type" in answer.json
                seen = (answer.status, "refused" if refused else answer.json)
                rights = [(200, [None] * 3)] + [(403, "refused")] * (kind != "ws")
                self.tally.expect(f"plain {kind}", seen in rights, True)
                self.tally.requests[f"plain {kind} {answer.status}"] += 1

    async def _rounds(self, caller: Caller, paths: list[str]) -> Any:
        for answer in await caller.ask(*paths):
            yield answer
        self.tally.connections += 1
        self._open += 1
        await self._all_here.wait()
        self.tally.open_at_once = max(self.tally.open_at_once, self._open)
        for answer in await caller.ask(*paths):
            yield answer
        await self._all_here.wait()
        self._open -= 1

    def _context(self, kind: str, identity: Identity) -> ssl.SSLContext:
        alpn = "h2" if kind == "h2" else "http/1.1"
        if (identity.serial, alpn) not in self._contexts:
            made = outsider_context(identity.pem, roots=self._roots, alpn=alpn)
            self._contexts[identity.serial, alpn] = made
        return self._contexts[identity.serial, alpn]


@pytest.fixture(scope="module")
def agent() -> Iterator[DevAgent]:
    """One agent for all combinations."""
    with DevAgent() as agent:
        yield agent


@pytest.fixture(scope="module")
def identities(agent: DevAgent) -> list[Identity]:
    """Twenty identities, a certificate each."""
    return [Identity.of(*agent.issue(f"source-{number}")) for number in range(IDENTITIES)]


def serve(folder: Path, agent: DevAgent, app: str, worker: str) -> Hypercorn:
    """A server with a TLS and a plaintext listener, and a path that is exempt."""
    mesh = mesh_file(
        {"service": "tax", "exempt": ["/open"]},
        insecure_bind="127.0.0.1:0",
        worker_class=worker,
        backlog=1024,
        keep_alive_timeout=60,
    )
    return Hypercorn(folder, app, mesh, agent=agent.url)


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_each_asgi_request_carries_the_identity_of_its_connection(
    worker: str, tmp_path: Path, agent: DevAgent, identities: list[Identity]
) -> None:
    """Starlette: HTTP/1.1, HTTP/2 and WebSocket, 220 connections and 30 plain ones at once."""
    with serve(tmp_path, agent, STARLETTE, worker) as server:
        server.wait_ready(listeners=2)
        secure, plain = {"h1": 80, "h2": 80, "ws": 60}, {"h1": 10, "h2": 10, "ws": 10}
        tally = Crowd(server, identities, agent.roots_pem, secure, plain).run()
    assert tally.mismatches == []
    assert tally.connections == tally.open_at_once == 250
    assert sum(tally.requests[kind] for kind in secure) == 220 * 2 * ROUND
    assert tally.requests["plain h1 403"] == tally.requests["plain h1 200"] == 10 * 2 * ROUND
    assert tally.requests["plain h2 403"] == tally.requests["plain h2 200"] == 10 * 2 * ROUND


@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
def test_each_wsgi_request_carries_the_identity_of_its_connection(
    worker: str, tmp_path: Path, agent: DevAgent, identities: list[Identity]
) -> None:
    """Flask: HTTP/1.1 and HTTP/2, 200 connections and 20 plain ones at once, in a thread pool."""
    with serve(tmp_path, agent, FLASK, worker) as server:
        server.wait_ready(listeners=2)
        secure, plain = {"h1": 100, "h2": 100}, {"h1": 10, "h2": 10}
        tally = Crowd(server, identities, agent.roots_pem, secure, plain).run()
    assert tally.mismatches == []
    assert tally.connections == tally.open_at_once == 220
    assert sum(tally.requests[kind] for kind in secure) == 200 * 2 * ROUND
    assert tally.requests["plain h1 403"] == tally.requests["plain h1 200"] == 10 * 2 * ROUND


def test_this_crowd_sees_a_wrong_identity(
    tmp_path: Path, agent: DevAgent, identities: list[Identity]
) -> None:
    """A test that cannot fail proves nothing: an identity kept in a global is found out."""
    with serve(tmp_path, agent, WRONG + STARLETTE, "asyncio") as server:
        server.wait_ready(listeners=2)
        crowd = Crowd(server, identities, agent.roots_pem, {"h1": 20, "h2": 20}, {"h1": 2})
        assert crowd.run().mismatches
