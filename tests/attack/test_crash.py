"""One peer's bytes end that peer's requests, never those of others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent

from ..interop.callers import Identity, knock
from ..support.servers import Hypercorn, mesh_file
from .raw import BASE, Frames, Header, dial, read_all

APP = """
import anyio
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute

from mesh_middleware import MeshAuthz

waiting = []


async def wait(request):
    # Until somebody comes and releases it: no clock.
    event = anyio.Event()
    waiting.append(event)
    await event.wait()
    return PlainTextResponse("waited")


async def release(request):
    for event in waiting:
        event.set()
    return PlainTextResponse("ok")


async def talk(websocket):
    await websocket.accept()


routes = [Route("/wait", wait), Route("/release", release), WebSocketRoute("/ws", talk)]
app = Starlette(routes=routes)
app.add_middleware(MeshAuthz)
"""

SOCKET = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":path", b"/ws"), *BASE)
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: tax\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: \xff\r\n\r\n"
)
VERSION = (b"sec-websocket-version", b"13")

POISON: dict[str, tuple[Header, ...]] = {
    "path": ((b":method", b"GET"), (b":path", b"/\xff"), *BASE),
    "method": ((b":method", b"G\xff"), (b":path", b"/"), *BASE),
    "connect": ((b":method", b"CONNECT"), (b":authority", b"tax:443")),
    "subprotocol": (*SOCKET, VERSION, (b"sec-websocket-protocol", b"\xff")),
    "extensions": (*SOCKET, VERSION, (b"sec-websocket-extensions", b"permessage-deflate; x=\xff")),
}
"""Heads of a stream on which Hypercorn 0.18 raises, before the application is asked."""


class Served:
    """A server whose policy knows three callers."""

    def __init__(self, agent: DevAgent, server: Hypercorn) -> None:
        self.port, self.server = server.port(), server
        named = ("invoice", "reader", "stranger")
        self.pem = {name: Identity.of(*agent.issue(name)).pem for name in named}


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Served]:
    """One server for all: each attack leaves it as it was, or fails."""
    mesh = mesh_file({"service": "tax"}, worker_class=request.param)
    with DevAgent() as agent:
        agent.set_protocol("tax", "http")
        agent.deny("stranger", "tax")
        agent.permissions("reader", "tax", [{"Action": "deny", "HTTP": {"Methods": ["POST"]}}])
        folder = tmp_path_factory.mktemp(request.param)
        with Hypercorn(folder, APP, mesh, agent=agent.url) as server:
            yield Served(agent, server.wait_ready())


@pytest.mark.process
def test_poisoned_heads_end_their_own_connection_only(served: Served) -> None:
    """Sent by a caller whom the policy denies; another's request waits meanwhile, unharmed."""
    with Frames(served.port, served.pem["invoice"]) as well:
        waits = well.get(b"/wait")
        for poison in POISON.values():
            with Frames(served.port, served.pem["stranger"]) as frames:
                frames.until(frames.ask(poison))
        with dial(served.port, served.pem["stranger"]) as connection:
            connection.sendall(UPGRADE)
            assert not read_all(connection).startswith(b"HTTP/1.1 101")
        release(served, well, waits)


@pytest.mark.process
def test_a_refused_upload_ends_no_other_stream(served: Served) -> None:
    """The refusal comes before the body does; what arrives of it afterwards harms nobody."""
    with Frames(served.port, served.pem["reader"]) as frames:
        waits = frames.get(b"/wait")
        upload = frames.get(b"/upload", b"POST", end=False)
        frames.until(upload)
        assert frames.statuses == {upload: 403}
        for _ in range(3):
            frames.h2.send_data(upload, b"x" * 1000)
        frames.h2.end_stream(upload)
        release(served, frames, waits)


def release(served: Served, frames: Frames, waits: int) -> None:
    """Let the request that waits go on, and see it answered."""
    answer = knock(served.port, served.pem["invoice"], path="/release")
    assert answer.startswith(b"HTTP/1.1 200")
    frames.until(waits)
    assert (frames.lost, frames.statuses[waits], frames.bodies[waits]) == (False, 200, b"waited")
