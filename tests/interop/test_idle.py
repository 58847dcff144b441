"""Connections that nobody uses: Hypercorn's own rule, ``keep_alive_timeout``, kept by our timer."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress

import pytest

from mesh_middleware.dev import DevAgent

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
    await anyio.sleep(%s)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


app = MeshAuthz(app)
""" % (IDLE * 2)
"""Answers later than a connection may be idle."""


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
        for _ in range(4):
            assert (await connection.ask("/who"))[0].status == 200
            assert await silence(connection, IDLE / 2), "closed although it was used"
        assert (await connection.ask("/who"))[0].status == 200
        began = time.monotonic()
        assert not await silence(connection, 20), "never closed"
        return time.monotonic() - began


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_connection_is_closed_once_it_was_idle_for_too_long(
    worker: str, protocol: str, agent: DevAgent, serve: Serve
) -> None:
    """Each request gives it another term; without one it ends, and not before the term does."""
    server = serve(worker_class=worker, keep_alive_timeout=IDLE)
    kept = asyncio.run(use_and_leave(agent, protocol, server.port()))
    # HTTP/2 waits a second more, for what may be on its way.
    assert IDLE * 0.9 <= kept < IDLE + 5


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
def test_a_connection_with_a_request_is_not_idle(
    worker: str, protocol: str, agent: DevAgent, serve: Serve
) -> None:
    """Not even for longer than an idle one is kept."""

    async def ask() -> None:
        tls = outsider_context(caller(agent).pem, alpn="h2" if protocol == "h2" else None)
        async with connect(protocol, server.port(), tls) as connection:
            assert [(await connection.ask("/"))[0].status for _ in range(2)] == [200, 200]

    server = serve(SLOW, worker_class=worker, keep_alive_timeout=IDLE)
    asyncio.run(ask())


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
