"""Connections that nobody uses: Hypercorn's own rule, ``keep_alive_timeout``, kept by our timer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import h11
import pytest
from h2.errors import ErrorCodes
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.events import RawData

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers.hypercorn_ends import LINGER, LOOK_EVERY, close_in_order
from mesh_middleware.servers.hypercorn_mend import _open_of

from ..support.servers import PATIENCE
from .apps import APPS
from .callers import Http1, Http2, connect, outsider_context
from .conftest import Serve
from .test_hypercorn import caller

IDLE = 1.0
"""Seconds after which these servers close a connection that nobody uses."""

SLOW = """
import anyio

from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "http", "no lifespan"
    with anyio.move_on_after(%s):
        await anyio.sleep_forever()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


app = MeshAuthz(app)
""" % (IDLE * 1.5)
"""Answers later than a connection may be idle."""


HEEDS = """
import os

from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "http", "no lifespan"
    while scope["path"] == "/wait":
        if (await receive())["type"] == "http.disconnect":
            return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"pid": %d}' % os.getpid()})


app = MeshAuthz(app)
"""
"""Works on one request until it is cancelled, and does not answer it then."""


async def silence(connection: Http1 | Http2, seconds: float) -> bool:
    """Hear nothing for so long; ``False`` when the connection ends meanwhile."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            # HTTP/2 says goodbye before it ends.
            while await connection._reader.read(65536):
                pass
            return False
    return True


async def use_and_leave(agent: DevAgent, protocol: str, port: int) -> float:
    """Use a connection again and again, then leave it idle; returns how long it is kept then."""
    tls = outsider_context(caller(agent).pem, alpn="h2" if protocol == "h2" else None)
    async with connect(protocol, port, tls) as connection:
        assert isinstance(connection, Http1 | Http2)
        for _ in range(3):
            assert (await connection.ask("/who"))[0].status == 200
            assert await silence(connection, IDLE / 2), "closed although it was used"
        assert (await connection.ask("/who"))[0].status == 200
        began = time.monotonic()
        assert not await silence(connection, 20), "never closed"
        return time.monotonic() - began


PROTOCOLS = ("h1", "h2")


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_connection_is_closed_once_it_was_idle_for_too_long(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """Each request gives it another term; without one it ends, and not before the term does."""

    async def use_both() -> list[float]:
        used = (use_and_leave(agent, protocol, server.port()) for protocol in PROTOCOLS)
        return await asyncio.gather(*used)

    server = serve(worker_class=worker, keep_alive_timeout=IDLE)
    for kept in asyncio.run(use_both()):
        # HTTP/2 waits a second more, for what may be on its way.
        assert IDLE * 0.9 <= kept < IDLE + 5


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_request_that_came_while_the_worker_stood_still_is_answered(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """It finds the end of the idle time first, and the request that waits in its socket after."""

    async def ask() -> bytes:
        async with connect("h1", server.port(), outsider_context(caller(agent).pem)) as connection:
            assert isinstance(connection, Http1)
            pid = (await connection.ask("/who"))[0].json["pid"]
            os.kill(pid, signal.SIGSTOP)
            try:
                assert await silence(connection, IDLE * 1.2)
                connection._writer.write(b"POST /who HTTP/1.1\r\nHost: tax\r\n\r\n")
                await connection._writer.drain()
            finally:
                os.kill(pid, signal.SIGCONT)
            return (await connection._reader.readline()).split()[1]

    server = serve(HEEDS, worker_class=worker, keep_alive_timeout=IDLE)
    assert asyncio.run(ask()) == b"200"


@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
def test_a_connection_with_a_request_is_not_idle(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """Not even for longer than an idle one is kept."""

    async def ask(protocol: str) -> None:
        tls = outsider_context(caller(agent).pem, alpn="h2" if protocol == "h2" else None)
        async with connect(protocol, server.port(), tls) as connection:
            assert [(await connection.ask("/"))[0].status for _ in range(2)] == [200, 200]

    async def ask_both() -> None:
        await asyncio.gather(*map(ask, PROTOCOLS))

    server = serve(SLOW, worker_class=worker, keep_alive_timeout=IDLE)
    asyncio.run(ask_both())


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_connection_whose_last_request_was_cancelled_is_idle(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """HTTP/2's caller says so in a frame, and keeps the connection."""

    async def cancel() -> bool:
        tls = outsider_context(caller(agent).pem, alpn="h2")
        async with connect("h2", server.port(), tls) as connection:
            assert isinstance(connection, Http2)
            assert (await connection.ask("/"))[0].status == 200
            stream = connection._open("/wait")
            connection._flush()
            assert await silence(connection, IDLE / 4)
            connection._h2.reset_stream(stream, ErrorCodes.CANCEL)
            connection._flush()
            return await silence(connection, IDLE + 10)

    server = serve(HEEDS, worker_class=worker, keep_alive_timeout=IDLE)
    assert not asyncio.run(cancel()), "never closed"


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_connection_that_has_asked_nothing_is_idle(worker: str, serve: Serve) -> None:
    """Also where HTTP/2 was spoken without being negotiated."""

    async def begin() -> bool:
        async with connect("h2", server.port("http"), None) as connection:
            assert isinstance(connection, Http2)
            connection._flush()
            return await silence(connection, IDLE + 10)

    server = serve(
        SLOW,
        worker_class=worker,
        keep_alive_timeout=IDLE,
        insecure_bind="127.0.0.1:0",
        listeners=2,
    )
    assert not asyncio.run(begin()), "never closed"


class Connection:
    """
    As much of Hypercorn's connection of HTTP/1.1 as its end looks at.

    Args:
        plain: its socket.
        comes: after how many looks a request comes.
        ends: whether the worker ends.
        stays: whether that request is still worked on at the next look.
    """

    def __init__(self, plain: socket.socket, comes: int, *, ends: bool, stays: bool = True) -> None:
        self.context = self.protocol = self.terminated = self.writer = self.transport = self
        self.stream: object = None
        self.keep_alive_requests = 0
        self.closed = False
        self._plain, self._comes, self._ends, self._stays = plain, comes, ends, stays
        self._look()

    def is_set(self) -> bool:
        """Whether the worker ends."""
        return self._ends

    def is_closing(self) -> bool:
        """Whether either side has closed it."""
        return self.closed

    def get_extra_info(self, name: str) -> object:
        """Its socket."""
        return self._plain

    async def sleep(self, seconds: float) -> None:
        """Time goes by."""
        self._comes -= 1
        self._look()

    def _look(self) -> None:
        if not self._comes:
            self.keep_alive_requests += 1
            self.stream = object() if self._stays else None

    async def handle(self, event: object) -> None:
        """Bytes came."""
        raise AssertionError("heard")

    async def _initiate_server_close(self) -> None:
        self.closed = True


LOOKS = round(LINGER / LOOK_EVERY)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("stays", [True, False], ids=["slow", "fast"])
@pytest.mark.parametrize(
    ("comes", "ends", "unread", "closed"),
    [
        (LOOKS, True, b"", False),
        (LOOKS + 1, True, b"", True),
        (LOOKS + 1, True, b"G", False),
        (1, False, b"", True),
        (1, False, b"G", False),
        (LOOKS, False, b"G", False),
        (LOOKS + 1, False, b"G", True),
    ],
)
def test_a_request_that_comes_at_the_last_moment_is_answered(
    pair: tuple[socket.socket, socket.socket],
    comes: int,
    ends: bool,
    unread: bytes,
    closed: bool,
    stays: bool,
) -> None:
    """When the worker has waited long enough, or something has come that it has not read yet."""

    class One(Connection):
        pass

    close_in_order(One)
    ours, theirs = pair
    theirs.send(unread)
    one = One(ours, comes, ends=ends, stays=stays)
    asyncio.run(one._initiate_server_close())
    assert one.closed is closed
    if closed:
        asyncio.run(one.handle(RawData(b"GET / HTTP/1.1")))


@pytest.mark.parametrize("ends", [True, False])
def test_a_request_of_the_very_moment_is_answered(
    pair: tuple[socket.socket, socket.socket], ends: bool
) -> None:
    """The connection was to be closed the next."""

    class One(Connection):
        pass

    close_in_order(One)
    one = One(pair[0], 0, ends=ends)
    asyncio.run(one._initiate_server_close())
    assert not one.closed


def test_a_request_without_a_stream_yet_is_a_use(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """Between the two, others run on trio."""

    class One(Connection):
        pass

    close_in_order(One)
    one: Any = One(pair[0], LOOKS, ends=False)
    one.connection = h11.Connection(h11.SERVER)
    one.connection.receive_data(b"GET / HTTP/1.1\r\nHost: tax\r\n\r\n")
    one.connection.next_event()
    asyncio.run(one._initiate_server_close())
    assert not one.closed


def test_the_first_connection_of_a_worker_that_has_ended_is_cut() -> None:
    """Its handshake took longer than the worker had: nothing may wait for its peer for ever."""

    async def come_too_late() -> None:
        context = WorkerContext(None)
        await context.terminated.set()
        ours, theirs = socket.socketpair()
        with theirs:
            _, writer = await asyncio.open_connection(sock=ours)
            late = TCPServer(None, None, None, context, None, None, writer)  # type: ignore[arg-type]
            _open_of(context, 0.01)[late] = ours
            async with asyncio.timeout(PATIENCE):
                with suppress(ConnectionError):
                    await writer.wait_closed()

    asyncio.run(come_too_late())


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_idle_connections_end_with_their_server(worker: str, agent: DevAgent, serve: Serve) -> None:
    """However long they might have been idle otherwise."""

    async def leave_and_stop() -> None:
        tls = outsider_context(caller(agent).pem)
        async with connect("h1", server.port(), tls) as connection:
            assert isinstance(connection, Http1)
            assert (await connection.ask("/who"))[0].status == 200
            server.signal(signal.SIGTERM)
            assert not await silence(connection, 10), "still open"

    server = serve(APPS["starlette"], worker_class=worker, keep_alive_timeout=600)
    asyncio.run(leave_and_stop())
    assert server.wait_end() == 0
