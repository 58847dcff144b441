"""R12: SIGTERM with a hundred requests in flight."""

from __future__ import annotations

import asyncio
import signal
import socket
import time

import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import Answer, DevAgent, Request
from mesh_middleware.servers.hypercorn_tls import STREAMS_END

from ..interop.callers import HOST, Http1, outsider_context
from ..interop.conftest import Serve
from ..interop.test_hypercorn import caller, healthy, registered
from ..support.listening import close_server
from ..support.servers import PATIENCE, Hypercorn, until
from ..support.steps import yield_once
from .apps import LARGE, SLOW, STREAMS, TAKES
from .test_r10_live import drained, h1_stream_ends, websocket

IN_FLIGHT = 100


class Order:
    """What the agent was told of the end, in order."""

    def __init__(self, agent: DevAgent) -> None:
        self.told: list[str] = []
        agent.interpose = self._note

    async def _note(self, request: Request) -> Answer | None:
        if b"stopping" in request.body:
            self.told.append("critical")
        elif "/service/deregister/" in request.path:
            self.told.append("deregistered")
        return None


class Gate:
    """
    What requests in flight wait for: each holds a connection to it.

    Args:
        listening: the socket they come to.
    """

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._open, self._waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def __aenter__(self) -> Gate:
        self._server = await asyncio.start_server(self._hold, sock=self._listening)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open()
        await close_server(self._server)

    def open(self) -> None:
        """Let them go on."""
        self._open.set()

    async def holds(self, count: int) -> None:
        """Wait until *count* have come."""
        async with asyncio.timeout(PATIENCE):
            for _ in range(count):
                await self._waiting.acquire()

    async def _hold(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._waiting.release()
        await self._open.wait()
        writer.close()
        await reader.read()


async def hundred(
    agent: DevAgent, server: Hypercorn, order: Order, listening: socket.socket
) -> tuple[list[int], float]:
    """Send all, then the signal; the statuses, and how long the server took to answer."""
    tls = outsider_context(caller(agent).pem)
    connections = [Http1(server.port(), tls) for _ in range(IN_FLIGHT)]
    await asyncio.gather(*(connection.open() for connection in connections))
    async with Gate(listening) as gate:
        asked = [asyncio.ensure_future(connection.ask("/slow")) for connection in connections]
        await gate.holds(IN_FLIGHT)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        # All have begun before the signal, and none is answered before the end was announced.
        await asyncio.to_thread(until, lambda: "deregistered" in order.told, "the announcement")
        assert not any(asking.done() for asking in asked)
        gate.open()
        statuses = [(await asking)[0].status for asking in asked]
        took = time.monotonic() - began
    for connection in connections:
        await connection.close()
    await yield_once()
    return statuses, took


@pytest.mark.timeout(90)
@pytest.mark.parametrize("workers", [1, 2])
def test_r12_all_in_flight_finish(workers: int, agent: DevAgent, serve: Serve) -> None:
    """
    None is lost, with one worker or two: critical first, then deregistered, then the drain.

    The server has ended by itself, well within its term, and nothing of it is left.
    """
    with socket.create_server((HOST, 0), backlog=IN_FLIGHT) as listening:
        server = serve(
            SLOW,
            workers=workers,
            listeners=workers,
            environment={"GATE": str(listening.getsockname()[1])},
            backlog=1024,
            graceful_timeout=10,
        )
        healthy(agent, 1)
        order = Order(agent)
        statuses, took = asyncio.run(hundred(agent, server, order, listening))
    assert statuses == [200] * IN_FLIGHT
    assert server.wait_end() == 0
    until(lambda: registered(agent) == {}, "the deregistration")
    assert order.told[:2] == ["critical", "deregistered"]
    assert took < 10.0
    assert "Traceback" not in server.output, server.output


async def streams(agent: DevAgent, server: Hypercorn) -> float:
    """Open streams that never end by themselves, then send the signal; seconds until all ended."""
    identity = caller(agent)
    port, started = server.port(), asyncio.Event()
    async with (
        websocket(port, identity, "/speak") as busy,
        websocket(port, identity, "/ws") as idle,
    ):
        events = asyncio.ensure_future(h1_stream_ends(port, identity, started))
        await busy.recv()
        await asyncio.wait_for(started.wait(), PATIENCE)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        await asyncio.gather(drained(busy), drained(idle), asyncio.wait_for(events, PATIENCE))
        return time.monotonic() - began


@pytest.mark.timeout(90)
@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
def test_r12_live_streams_are_ended_in_time(worker: str, agent: DevAgent, serve: Serve) -> None:
    """
    WebSockets, idle and busy, and server-sent events: ended by us before the drain is over.

    Without that one open stream keeps Python 3.12 and 3.13 from ending at all.
    """
    server = serve(STREAMS, worker_class=worker, graceful_timeout=4)
    healthy(agent, 1)
    took = asyncio.run(streams(agent, server))
    assert took < 4.0 * STREAMS_END + 3.0
    assert server.wait_end(15.0) == 0
    assert registered(agent) == {}


UPLOAD = (
    b"POST /up HTTP/1.1\r\nHost: tax\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\nhalf"
)
ANSWER = b"GET /large HTTP/1.1\r\nHost: tax\r\n\r\n"


async def stall(agent: DevAgent, server: Hypercorn, request: bytes) -> int:
    """Send *request*, read no more than the first head, then send the signal; the exit code."""
    tls = outsider_context(caller(agent).pem)
    reader, writer = await asyncio.open_connection(HOST, server.port(), ssl=tls)
    writer.write(request)
    await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
    server.signal(signal.SIGTERM)
    code = await asyncio.to_thread(server.wait_end, 15.0)
    writer.transport.abort()
    return code


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("worker", "app", "request_"),
    [(worker, LARGE, ANSWER) for worker in ("asyncio", "uvloop", "trio")]
    + [(worker, TAKES, UPLOAD) for worker in ("asyncio", "uvloop")],
    ids=["asyncio-answer", "uvloop-answer", "trio-answer", "asyncio-upload", "uvloop-upload"],
)
def test_r12_a_peer_that_stalls_does_not_keep_the_server(
    worker: str, app: str, request_: bytes, agent: DevAgent, serve: Serve
) -> None:
    """
    One that stops in its upload, or does not read its answer: cut when the term is over.

    Without that trio waits for it for ever, asyncio from Python 3.12 on, and uvloop for 30 s.
    """
    server = serve(app, worker_class=worker, graceful_timeout=1)
    healthy(agent, 1)
    assert asyncio.run(stall(agent, server, request_)) == 0
    assert registered(agent) == {}


def test_r12_closing_is_quick_whenever_it_comes(agent: DevAgent) -> None:
    """In the midst of joining or registering, and long after: nothing waits for its own timeout."""
    slowest = 0.0
    for number in range(30):
        mesh = Mesh("tax", agent=agent.url, port=4711, plugins=()).start()
        if number % 3:
            assert mesh.ready(PATIENCE)
        if number % 3 == 2:
            assert mesh.wait_for(lambda _, m=mesh: m.status()["registered"], PATIENCE)
        began = time.monotonic()
        mesh.close()
        slowest = max(slowest, time.monotonic() - began)
        assert registered(agent) == {}
    assert slowest < 0.9
