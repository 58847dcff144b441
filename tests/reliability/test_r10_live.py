"""R10: WebSockets and streams while the policy flips, roots go, and certificates expire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import websockets

from mesh_middleware.dev import DevAgent

from ..interop.callers import HOST, Answer, Identity, connect, outsider_context
from ..interop.conftest import Serve
from ..interop.test_hypercorn import caller
from ..support.servers import PATIENCE
from .apps import STREAMS
from .conftest import LONG

FLIPS = 10 if LONG else 2
WITHIN = 1.0
"""Seconds until a live stream whose caller is denied has ended."""


@asynccontextmanager
async def websocket(port: int, identity: Identity, path: str) -> AsyncIterator[Any]:
    """A WebSocket of *identity*."""
    async with websockets.connect(
        f"wss://{HOST}:{port}{path}", ssl=outsider_context(identity.pem), proxy=None,
        ping_interval=None,
    ) as opened:  # fmt: skip
        yield opened


async def drained(opened: Any) -> tuple[int | None, str]:
    """Read until the end; its close code and reason."""
    async with asyncio.timeout(PATIENCE):
        try:
            while True:
                await opened.recv()
        except websockets.ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, "cut")


async def h1_stream_ends(port: int, identity: Identity, started: asyncio.Event) -> None:
    """Read server-sent events over HTTP/1.1 until the connection ends."""
    reader, writer = await asyncio.open_connection(HOST, port, ssl=outsider_context(identity.pem))
    writer.write(b"GET /events HTTP/1.1\r\nHost: tax\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readuntil(b"data: 0")
    started.set()
    rest = await reader.read()
    assert not rest.endswith(b"0\r\n\r\n"), "a stream that was cut does not look complete"
    writer.close()


async def h2_stream_ends(port: int, identity: Identity, started: asyncio.Event) -> None:
    """The same over HTTP/2, until the stream is reset; the connection may live on."""
    tls = outsider_context(identity.pem, alpn="h2")
    reader, writer = await asyncio.open_connection(HOST, port, ssl=tls)
    link = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    link.initiate_connection()
    names = ((":method", "GET"), (":path", "/events"), (":scheme", "https"), (":authority", "tax"))
    link.send_headers(1, list(names), end_stream=True)
    writer.write(link.data_to_send())
    ended = False
    while not ended and (data := await reader.read(65536)):
        for event in link.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                started.set()
                link.acknowledge_received_data(event.flow_controlled_length, 1)
            assert not isinstance(event, h2.events.StreamEnded), "what was cut looks complete"
            ended |= isinstance(event, h2.events.StreamReset)
        writer.write(link.data_to_send())
    assert ended
    writer.transport.abort()


async def deny_stream(agent: DevAgent, port: int, kind: str) -> float:
    started = asyncio.Event()
    streams = {"h1": h1_stream_ends, "h2": h2_stream_ends}
    reading = asyncio.ensure_future(streams[kind](port, caller(agent), started))
    waiting = asyncio.ensure_future(started.wait())
    await asyncio.wait({reading, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert started.is_set(), "nothing came"
    began = time.monotonic()
    agent.deny("invoice", "tax")
    await asyncio.wait_for(reading, PATIENCE)
    return time.monotonic() - began


async def deny_websocket(agent: DevAgent, port: int, path: str) -> tuple[float, int | None]:
    async with websocket(port, caller(agent), path) as opened:
        if path == "/ws":
            await opened.send("hello")
        await opened.recv()
        began = time.monotonic()
        agent.deny("invoice", "tax")
        code, _ = await drained(opened)
        return time.monotonic() - began, code


@pytest.mark.timeout(20 + 25 * FLIPS)
@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_r10_live_streams_end_within_a_second(worker: str, agent: DevAgent, serve: Serve) -> None:
    """
    Denied: a WebSocket closes with 4403, idle or busy; an event stream ends, on either protocol.

    Flip after flip leaves no task behind.
    """
    server = serve(STREAMS, worker_class=worker)
    port = server.port()

    async def flips() -> None:
        before = None
        for _ in range(FLIPS):
            for path in ("/ws", "/speak"):
                took, code = await deny_websocket(agent, port, path)
                assert (code, took < WITHIN) == (4403, True), (path, took, code)
                await allowed_again(agent, port)
            for kind in ("h1", "h2"):
                took = await deny_stream(agent, port, kind)
                assert took < WITHIN, (kind, took)
                await allowed_again(agent, port)
            if worker != "trio":
                left = await tasks(agent, port)
                before = left if before is None else before
                assert left <= before + 2, "no task leak"

    asyncio.run(asyncio.wait_for(flips(), 25 * FLIPS))
    assert "Traceback" not in server.output, server.output


async def allowed_again(agent: DevAgent, port: int) -> None:
    agent.delete("invoice", "tax")
    await ask_until(agent, port, "invoice", "/who", lambda answer: answer.status == 200)


async def tasks(agent: DevAgent, port: int) -> int:
    """Tasks of the server, as soon as none of an earlier connection is left."""
    found = await ask_until(agent, port, "observer", "/tasks", lambda a: a.json["tasks"] < 20)
    return int(found.json["tasks"])


async def ask_until(
    agent: DevAgent, port: int, name: str, path: str, right: Callable[[Answer], bool]
) -> Answer:
    """Ask again on one connection, whose like Hypercorn keeps the tasks of for seconds."""
    never = asyncio.Event()
    async with connect("h1", port, outsider_context(caller(agent, name).pem)) as fresh:
        async with asyncio.timeout(PATIENCE):
            while True:
                (answer,) = await fresh.ask(path)
                if right(answer):
                    return answer
                # Not in haste: a connection ends after a thousand requests.
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await never.wait()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("path", ["/ws", "/speak"])
def test_r10_websocket_ends_when_its_caller_expires(
    path: str, agent: DevAgent, serve: Serve
) -> None:
    """A certificate of some seconds: a socket that was opened with it does not outlive it long."""
    server = serve(STREAMS)

    async def expire() -> float:
        identity = Identity.of(*agent.issue("invoice", lifetime=timedelta(seconds=62)))
        async with websocket(server.port(), identity, path) as opened:
            began = time.monotonic()
            await drained(opened)
            return time.monotonic() - began

    assert asyncio.run(expire()) < 2.0 + 5.0 + 1.0, "its life, a sweep, and the way there"


@pytest.mark.parametrize("path", ["/ws", "/speak"])
def test_r10_websocket_ends_when_its_root_is_removed(
    path: str, agent: DevAgent, serve: Serve
) -> None:
    """Whoever stands on a root that Consul dropped goes within the grace, though it be silent."""
    server = serve(STREAMS)

    async def drop() -> float:
        identity = caller(agent)
        async with websocket(server.port(), identity, path) as opened:
            if path == "/ws":
                await opened.send("hello")
            await opened.recv()
            agent.rotate_ca()
            began = time.monotonic()
            agent.prune_roots()
            await drained(opened)
            return time.monotonic() - began

    assert asyncio.run(drop()) < 5.0 + WITHIN
