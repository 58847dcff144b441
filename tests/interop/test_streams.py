"""Streams of HTTP/2 that end by themselves: refused, too many, or the last ones of a peer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamEnded, StreamReset
from hyperframe.frame import GoAwayFrame

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
    for stream in range(1, 2 * LIMIT, 2):
        connection._h2.end_stream(stream)
    connection._flush()
    seen += await read(connection, lambda seen: len(seen) == LIMIT)
    send(connection, 2 * (LIMIT + 2) + 1, NOTHING_ODD, whole=True)
    return seen + await read(connection, never)


async def shakes_hands_wrongly(connection: Http2) -> Seen:
    """It names no version of WebSocket: the server refuses it, and no application is asked."""
    send(connection, 1, NOTHING_ODD | WEBSOCKET, whole=False)
    return await read(connection, never)


CLOSED = (ConnectionTerminated, 0, 0)
"""Of an idle connection."""
CALLERS: Mapping[Callable[[Http2], Awaitable[Seen]], Seen] = {
    says_goaway: [(StreamEnded, 1, 0), CLOSED],
    begins_too_many: [
        *((StreamReset, stream, ErrorCodes.REFUSED_STREAM) for stream in (7, 9)),
        *((StreamEnded, stream, 0) for stream in (1, 3, 5, 11)),
        CLOSED,
    ],
    shakes_hands_wrongly: [(StreamEnded, 1, 0), CLOSED],
}


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
        APP, worker_class=worker, keep_alive_timeout=0.3, h2_max_concurrent_streams=LIMIT
    )
    found = dict(zip(CALLERS, asyncio.run(all_of_them()), strict=True))
    found[begins_too_many][2:-2] = sorted(found[begins_too_many][2:-2], key=lambda each: each[1])
    assert found == CALLERS
