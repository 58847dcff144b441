"""Streams of HTTP/2 that end by themselves: refused, too many, a peer's last ones, broken off."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest
import wsproto
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame
from wsproto.events import CloseConnection, TextMessage

from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE
from .callers import Http2, connect, outsider_context
from .conftest import Serve
from .test_hypercorn import caller
from .test_malformed import APP, NOTHING_ODD, WEBSOCKET, send

LIMIT = 3
"""Streams that the server under test lets a connection have at once."""

Seen = list[tuple[type, int, int]]
"""What became of streams, and of the connection: the event, the stream, the error code."""


async def read(connection: Http2, until: Callable[[Seen], bool]) -> Seen:
    """Read what becomes of streams, until something has, or the connection ends."""
    seen: Seen = []
    while not until(seen) and (data := await connection._reader.read(65536)):
        for event in connection._h2.receive_data(data):
            if isinstance(event, StreamReset | StreamEnded | ConnectionTerminated):
                stream, code = getattr(event, "stream_id", 0), getattr(event, "error_code", 0)
                seen.append((type(event), stream, int(code)))
    return seen


def never(seen: Seen) -> bool:
    """Read to the end."""
    return False


async def says_goaway(connection: Http2) -> Seen:
    """It asks nothing more, and waits for what it has asked: Node's clients close so."""
    send(connection, 1, NOTHING_ODD, whole=False)
    connection._writer.write(GoAwayFrame(0, last_stream_id=0).serialize())
    connection._h2.end_stream(1)
    connection._flush()
    return await read(connection, never)


async def begins_too_many(connection: Http2) -> Seen:
    """It has not read yet how many it may have, and asks again when there is room."""
    for stream in range(1, 2 * (LIMIT + 2), 2):
        send(connection, stream, NOTHING_ODD, whole=False)
    seen = await read(connection, lambda seen: len(seen) == 2)
    connection._h2.end_stream(1)
    connection._flush()
    seen += await read(connection, lambda seen: len(seen) == 1)
    send(connection, 2 * (LIMIT + 2) + 1, NOTHING_ODD, whole=True)
    for stream in range(3, 2 * LIMIT, 2):
        connection._h2.end_stream(stream)
    connection._flush()
    return seen + await read(connection, never)


async def shakes_hands_wrongly(connection: Http2) -> Seen:
    """It names no version of WebSocket: the server refuses it, and no application is asked."""
    send(connection, 1, NOTHING_ODD | WEBSOCKET, whole=False)
    return await read(connection, never)


async def leaves_streams_open(connection: Http2) -> Seen:
    """It ends no request, and does not count those that were answered."""
    seen: Seen = []
    for stream in range(1, 2 * (LIMIT + 3), 2):
        send(connection, stream, NOTHING_ODD | WEBSOCKET, whole=False)
        seen += await read(connection, lambda seen: len(seen) == 1)
        settings = connection._h2.remote_settings
        settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 100
        settings.acknowledge()
    return seen + await read(connection, never)


CLOSED = (ConnectionTerminated, 0, 0)
"""Of an idle connection."""
CALLERS: Mapping[Callable[[Http2], Awaitable[Seen]], Seen] = {
    says_goaway: [(StreamEnded, 1, 0), CLOSED],
    begins_too_many: [
        *((StreamReset, stream, ErrorCodes.REFUSED_STREAM) for stream in (7, 9)),
        *((StreamEnded, stream, 0) for stream in (1, 3, 5, 11)),
        CLOSED,
    ],
    leaves_streams_open: [*((StreamEnded, stream, 0) for stream in (1, 3, 5, 7, 9, 11)), CLOSED],
    shakes_hands_wrongly: [(StreamEnded, 1, 0), CLOSED],
}


FAILING = """
from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] != "websocket.disconnect":
            if event.get("text") == "leave":
                break
        return
    assert scope["type"] == "http", scope["type"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    assert scope["path"] == "/leave"


app = MeshAuthz(app)
"""


async def next_events(connection: Http2) -> list[Event]:
    """Read what has come; it is an error when the connection ends."""
    data = await connection._reader.read(65536)
    assert data, "the connection has ended"
    return connection._h2.receive_data(data)


async def half_an_answer(connection: Http2, stream: int, path: bytes) -> tuple[bytes, int | None]:
    """Ask for it; returns what came, and the error code of the stream's end."""
    send(connection, stream, NOTHING_ODD | {b":path": path}, whole=True)
    came = b""
    while True:
        for event in await next_events(connection):
            if isinstance(event, StreamReset | StreamEnded):
                return came, getattr(event, "error_code", None)
            if isinstance(event, DataReceived):
                came += event.data


async def a_websocket(connection: Http2, stream: int, last: wsproto.events.Event) -> bytes:
    """Say *last* in it; returns what comes then, to the end of the stream."""
    words = {b"sec-websocket-version": b"13"}
    send(connection, stream, NOTHING_ODD | WEBSOCKET | words, whole=False)
    came, ours = b"", wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    while True:
        for event in await next_events(connection):
            if isinstance(event, ResponseReceived):
                connection._h2.send_data(stream, ours.send(last))
                connection._flush()
            elif isinstance(event, DataReceived):
                came += event.data
            assert not isinstance(event, StreamReset)
            if isinstance(event, StreamEnded):
                return came


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_who_waits_for_an_application_that_has_left_is_told(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """Its stream ends, after what it has said: an answer with an error, a WebSocket in order."""
    tls = outsider_context(caller(agent).pem, alpn="h2")

    async def ask() -> None:
        async with connect("h2", server.port(), tls) as connection, asyncio.timeout(PATIENCE):
            assert isinstance(connection, Http2)
            connection._h2.config.validate_outbound_headers = False
            for stream, path in ((1, b"/fail"), (3, b"/leave")):
                found = await half_an_answer(connection, stream, path)
                assert found == (b"half", ErrorCodes.INTERNAL_ERROR)
            leave, close = TextMessage("leave"), CloseConnection(1000)
            assert await a_websocket(connection, 5, leave) == b"\x88\x02" + (1011).to_bytes(2)
            assert await a_websocket(connection, 7, close) == b"\x88\x02" + (1000).to_bytes(2)

    server = serve(FAILING, worker_class=worker)
    asyncio.run(ask())


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_stream_ends_alone_and_its_connection_when_idle(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """What was begun is answered, the rest is refused; and what is idle then is closed."""
    tls = outsider_context(caller(agent).pem, alpn="h2")

    async def one(ask: Callable[[Http2], Awaitable[Seen]]) -> Seen:
        async with connect("h2", server.port(), tls) as connection:
            assert isinstance(connection, Http2)
            connection._h2.config.validate_outbound_headers = False
            async with asyncio.timeout(PATIENCE):
                return await ask(connection)

    async def all_of_them() -> list[Seen]:
        return await asyncio.gather(*map(one, CALLERS))

    server = serve(
        APP, worker_class=worker, keep_alive_timeout=1.0, h2_max_concurrent_streams=LIMIT
    )
    found = dict(zip(CALLERS, asyncio.run(all_of_them()), strict=True))
    found[begins_too_many][2:-1] = sorted(found[begins_too_many][2:-1], key=lambda each: each[1])
    assert found == CALLERS
