"""Requests over HTTP/2 that are none: each ends alone, and not the others of its connection."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, StreamEnded, StreamReset

from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE
from .callers import Http2, connect, outsider_context
from .conftest import Serve
from .test_hypercorn import caller

APP = """
from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "http", scope["type"]
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


app = MeshAuthz(app)
"""

NOTHING_ODD = {b":method": b"POST", b":path": b"/", b":scheme": b"https", b":authority": b"tax"}
WEBSOCKET = {b":method": b"CONNECT", b":protocol": b"websocket"}
MALFORMED = {
    "path": NOTHING_ODD | {b":path": b"/\xff"},
    "query": NOTHING_ODD | {b":path": b"/\xff?\xff"},
    "method": NOTHING_ODD | {b":method": b"G\xff"},
    "no path": {b":method": b"CONNECT", b":authority": b"tax"},
    "websocket's path": NOTHING_ODD | WEBSOCKET | {b":path": b"/\xff"},
    "websocket's extensions": NOTHING_ODD | WEBSOCKET | {b"sec-websocket-extensions": b"\xff"},
}


def send(connection: Http2, stream: int, head: dict[bytes, bytes], *, whole: bool) -> None:
    """Begin a request."""
    connection._h2.send_headers(stream, sorted(head.items()), end_stream=whole)
    connection._flush()


async def ask_beside(
    odd: dict[bytes, bytes], port: int, tls: ssl.SSLContext
) -> list[tuple[type, int]]:
    """Ask in stream 1, and what is odd in 3 and 5; returns what became of each, to the end."""
    async with connect("h2", port, tls) as connection:
        assert isinstance(connection, Http2)
        connection._h2.config.validate_outbound_headers = False
        send(connection, 1, NOTHING_ODD, whole=False)
        send(connection, 3, odd, whole=True)
        seen: list[tuple[type, int]] = []
        while data := await connection._reader.read(65536):
            for event in connection._h2.receive_data(data):
                if isinstance(event, StreamReset):
                    assert event.error_code == ErrorCodes.PROTOCOL_ERROR
                if not isinstance(event, StreamReset | StreamEnded | ConnectionTerminated):
                    continue
                seen.append((type(event), getattr(event, "stream_id", 0)))
                if seen == [(StreamReset, 3)]:
                    connection._h2.end_stream(1)
                    connection._flush()
                elif seen == [(StreamReset, 3), (StreamEnded, 1)]:
                    send(connection, 5, odd, whole=True)
        return seen


@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_a_malformed_request_ends_alone(worker: str, agent: DevAgent, serve: Serve) -> None:
    """Who waits for an answer beside it gets it; and a connection of nothing else is idle."""
    tls = outsider_context(caller(agent).pem, alpn="h2")

    async def ask() -> list[list[tuple[type, int]]]:
        asked = (ask_beside(odd, server.port(), tls) for odd in MALFORMED.values())
        return await asyncio.wait_for(asyncio.gather(*asked), PATIENCE)

    server = serve(APP, worker_class=worker, keep_alive_timeout=0.3)
    told = [(StreamReset, 3), (StreamEnded, 1), (StreamReset, 5), (ConnectionTerminated, 0)]
    assert dict(zip(MALFORMED, asyncio.run(ask()), strict=True)) == dict.fromkeys(MALFORMED, told)
