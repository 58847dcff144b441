"""Callers that leave in the middle: of what belonged to their connections nothing stays behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from h2.events import Event, StreamEnded

from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE
from .callers import Http1, Http2, connect, outsider_context
from .conftest import Serve
from .test_hypercorn import caller

APP = """
import gc

import anyio
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol

from mesh_middleware import MeshAuthz


def count(kind):
    return sum(issubclass(type(each), kind) for each in gc.get_objects())


async def app(scope, receive, send):
    while scope["type"] == "websocket":
        if (await receive())["type"] == "websocket.disconnect":
            return
    assert scope["type"] == "http", "no lifespan"
    body = b"{}"
    if scope["path"] == "/count":
        gc.collect()
        body = b"%d %d" % (count(H2Protocol), count(H11Protocol))
    if scope["path"] == "/never":
        await anyio.sleep_forever()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] != "/":
        with anyio.move_on_after(0.1):
            await anyio.sleep_forever()
    for _ in range(100 if scope["path"] == "/large" else 0):
        await send({"type": "http.response.body", "body": b"x" * 20000, "more_body": True})
    await send({"type": "http.response.body", "body": body})


app = MeshAuthz(app)
"""
"""Reads no body. It tells how many connections the server holds, of HTTP/2 and of HTTP/1.1."""

PIECES = 100
"""More than the queue of an application holds."""

Way = Callable[[Http1 | Http2], Awaitable[None]]


async def before_the_body(connection: Http1 | Http2) -> None:
    """The application sends it when nobody is there any more."""
    await begin(connection, "/slow")


async def in_the_body(connection: Http1 | Http2) -> None:
    """The application waits for room to write."""
    await begin(connection, "/large")
    await connection._reader.read(1000)


async def with_an_upload(connection: Http1 | Http2) -> None:
    """The application answers without having read it."""
    if isinstance(connection, Http1):
        head = b"POST / HTTP/1.1\r\nHost: tax\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection._writer.write(head + b"1\r\nx\r\n" * PIECES)
    else:
        names = ((":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "tax"))
        stream = connection._h2.get_next_available_stream_id()
        connection._h2.send_headers(stream, names)
        for _ in range(PIECES):
            connection._h2.send_data(stream, b"x")
        connection._flush()
    await connection._reader.read(1000)


async def before_a_handshake_ends(connection: Http1 | Http2) -> None:
    """What comes before a WebSocket is accepted is refused; the application has begun."""
    words = {"sec-websocket-version": "13"}
    if isinstance(connection, Http1):
        words |= {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x" * 24}
        lines = "".join(f"{name}: {value}\r\n" for name, value in words.items())
        connection._writer.write(f"GET / HTTP/1.1\r\nhost: tax\r\n{lines}\r\nx".encode())
    else:
        words |= {":method": "CONNECT", ":protocol": "websocket", ":path": "/"}
        words |= {":scheme": "https", ":authority": "tax"}
        events: list[Event] = []
        stream = connection._h2.get_next_available_stream_id()
        connection._h2.send_headers(stream, sorted(words.items()))
        connection._h2.send_data(stream, b"x")
        connection._flush()
        while not any(isinstance(event, StreamEnded) for event in events):
            events = connection._h2.receive_data(await connection._reader.read(1000))
        return
    assert b" 400 " in await connection._reader.readline()


async def by_an_error(connection: Http1 | Http2) -> None:
    """A frame that breaks the protocol ends all; an application beside it does not wait on."""
    assert isinstance(connection, Http2)
    connection._open("/large")
    connection._flush()
    connection._writer.write(b"\x00\x00\x01\x00\x00\x00\x00\x00\x00x")  # DATA of no stream
    while await connection._reader.read(65536):
        pass


async def begin(connection: Http1 | Http2, path: str) -> None:
    """Send a request, and read the head of its answer."""
    assert isinstance(connection, Http2)
    await connection.ask("/")
    connection._open(path)
    connection._flush()
    await connection._reader.read(1000)


@pytest.mark.parametrize(
    ("protocol", "leave"),
    [
        ("h2", before_the_body),
        ("h2", in_the_body),
        ("h2", with_an_upload),
        ("h1", with_an_upload),
        ("h2", before_a_handshake_ends),
        ("h1", before_a_handshake_ends),
        ("h2", by_an_error),
    ],
)
@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_who_leaves_in_the_middle_leaves_nothing_behind(
    worker: str, protocol: str, leave: Way, agent: DevAgent, serve: Serve
) -> None:
    """No application that waits for ever, no connection: one peer could fill the memory."""

    async def come_and_go() -> None:
        pem = caller(agent).pem
        tls = outsider_context(pem, alpn="h2" if protocol == "h2" else None)
        for _ in range(5):
            async with connect(protocol, server.port(), tls) as connection:
                assert isinstance(connection, Http1 | Http2)
                async with asyncio.timeout(PATIENCE):
                    await leave(connection)
        async with connect("h1", server.port(), outsider_context(pem)) as last:
            async with asyncio.timeout(PATIENCE):
                while (await last.ask("/count"))[0].body != b"0 1":
                    pass

    server = serve(APP, worker_class=worker, keep_alive_timeout=60)
    asyncio.run(come_and_go())
