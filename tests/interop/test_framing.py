"""Heads of HTTP/1.1 that two servers could read differently, and upgrades that TLS forbids."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers._hypercorn.repairs.h11_framing import MAX_HEADERS, FramingH11Protocol

from ..attack.raw import dial, read_all
from ..support.servers import PATIENCE
from .conftest import Serve
from .in_process import connected
from .test_hypercorn import caller

GET = b"GET / HTTP/1.1\r\nHost: tax\r\n"
NEXT = GET + b"\r\n"
CHUNKED, LENGTH = b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n"
BODY = b"\r\n0\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAA\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)

REFUSED = {
    "length and coding": (400, GET + LENGTH + CHUNKED + BODY),
    "coding and length": (400, GET + CHUNKED + LENGTH + BODY),
    "case": (400, GET + b"cOnTent-LENGTH: 5\r\ntransfer-Encoding: CHUNKED\r\n" + BODY),
    "no length": (400, GET + b"Content-Length: 0\r\n" + CHUNKED + BODY),
    "coding of 1.0": (400, b"GET / HTTP/1.0\r\n" + CHUNKED + BODY),
    "two lengths": (400, GET + LENGTH + b"Content-Length: 6\r\n\r\nabcdef"),
    "two lengths in one": (400, GET + b"Content-Length: 5, 6\r\n\r\nabcdef"),
    "signed length": (400, GET + b"Content-Length: +5\r\n\r\nabcde"),
    "two codings": (501, GET + CHUNKED + CHUNKED + BODY),
    "other coding": (501, GET + b"Transfer-Encoding: gzip, chunked\r\n" + BODY),
    "coding's space": (400, GET + b"Transfer-Encoding : chunked\r\n" + BODY),
    "version 2.0": (505, b"GET / HTTP/2.0\r\nHost: tax\r\n\r\n"),
    "version 1.9": (505, b"GET / HTTP/1.9\r\nHost: tax\r\n" + WEBSOCKET + b"\r\n"),
    "preface with headers": (505, b"PRI * HTTP/2.0\r\n" + H2C + b"\r\n"),
    "headers": (431, GET + b"a: b\r\n" * MAX_HEADERS + b"\r\n"),
    "websocket's header": (400, GET + WEBSOCKET + b"Sec-WebSocket-Protocol: \xff\r\n\r\n"),
}
SOUND = {
    "equal lengths": GET + LENGTH + LENGTH + b"\r\nabcde",
    "coding": GET + CHUNKED + BODY,
    "headers": GET + b"a: b\r\n" * (MAX_HEADERS - 1) + b"\r\n",
    "h2c": GET + H2C + b"\r\n",
    "h2c with a body": GET + H2C + LENGTH + b"\r\nabcde",
}


LAST = {
    "1.0": b"GET / HTTP/1.0\r\n" + LENGTH + b"\r\nabcde",
    "close": GET + b"Connection: close\r\n\r\n",
    "close, with a body": GET + b"Connection: close\r\n" + CHUNKED + BODY,
}


class App:
    """Notes the lengths that it is told."""

    def __init__(self) -> None:
        self.lengths: list[list[bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, and answer."""
        headers = scope["headers"]
        self.lengths.append([value for name, value in headers if name == b"content-length"])
        while (await receive()).get("more_body"):
            pass
        head = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b""})


async def ask(app: App, sent: bytes) -> list[int]:
    async with connected(FramingH11Protocol, app, ssl=True) as both:
        async with asyncio.timeout(PATIENCE):
            await both.come(sent + NEXT)
            return [await both.answer(), await both.answer()]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_request_with_faulty_framing_is_refused_and_ends_its_connection(name: str) -> None:
    """No application sees it, nor what comes behind it."""
    app, (status, sent) = App(), REFUSED[name]
    assert asyncio.run(ask(app, sent)) == [status, 0]
    assert app.lengths == []


@pytest.mark.parametrize("name", sorted(SOUND))
def test_a_request_with_sound_framing_is_served(name: str) -> None:
    """And the next one; repeated equal lengths are seen as one."""
    app = App()
    assert asyncio.run(ask(app, SOUND[name])) == [200, 200]
    assert all(len(lengths) <= 1 for lengths in app.lengths)


@pytest.mark.parametrize("name", sorted(LAST))
@pytest.mark.parametrize("behind", [b"\r\n", b"junk", NEXT], ids=["line", "junk", "request"])
def test_what_comes_behind_the_last_request_does_not_replace_its_response(
    name: str, behind: bytes
) -> None:
    """It is not read; the response is that of the application."""
    app = App()
    assert asyncio.run(ask(app, LAST[name] + behind)) == [200, 0]
    assert len(app.lengths) == 1


APP = """
from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "http", scope["type"]
    head = [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": scope["http_version"].encode().ljust(3)})


app = MeshAuthz(app)
"""


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_served_connection_ends_after_a_faulty_request(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """Every worker says 400, and that it is the last; and within TLS serves HTTP/1.1 on."""
    server = serve(APP, worker_class=worker)
    port, pem = server.port(), caller(agent).pem
    with dial(port, pem, alpn="http/1.1") as connection:
        connection.sendall(GET + LENGTH + CHUNKED + BODY + NEXT)
        refused = read_all(connection)
    assert refused.startswith(b"HTTP/1.1 400 ") and refused.count(b"HTTP/1.1") == 1
    assert b"connection: close" in refused.lower()
    with dial(port, pem, alpn="http/1.1") as connection:
        connection.sendall(GET + H2C + b"Connection: close\r\n\r\n")
        served = read_all(connection)
    assert served.startswith(b"HTTP/1.1 200 ") and served.endswith(b"1.1")
    assert "Traceback" not in server.output
