"""Applications that send to callers that are gone: they are told, and hold nothing up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE, Hypercorn
from .callers import Http1, Http2, connect, outsider_context
from .conftest import Serve
from .test_hypercorn import caller

APP = """
import anyio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute

from mesh_middleware import MeshAuthz

seen = {}


def note(what, value=1):
    seen[what] = seen.get(what, 0) + value


async def begin(send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def piece(send, body=b"x" * 1000):
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def endless(scope, receive, send):
    note(scope["asgi"]["spec_version"])
    try:
        await begin(send)
        while True:
            await piece(send)
    except OSError as error:
        note(f"endless {type(error).__name__}")
        raise


async def swallows(scope, receive, send):
    told = 0
    try:
        await begin(send)
        while True:
            try:
                await piece(send)
            except OSError:
                told += 1
    finally:
        note("swallows told", told)


async def waits(scope, receive, send):
    await begin(send)
    await piece(send)
    while (await receive())["type"] != "http.disconnect":
        pass
    try:
        while True:
            await piece(send)
    except OSError:
        note("waits told")


async def late(scope, receive, send):
    while (await receive())["type"] != "http.disconnect":
        pass
    await begin(send)
    await send({"type": "http.response.body", "body": b"{}"})
    note("late completed")


async def generate():
    while True:
        yield "x" * 1000


async def nothing():
    yield "x" * 1000
    await anyio.sleep_forever()


async def idle(request):
    return StreamingResponse(nothing())


async def stream(request):
    return StreamingResponse(generate())


async def background(request):
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return PlainTextResponse("", background=BackgroundTask(note, "background ran"))


async def state(request):
    return JSONResponse(seen)


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        return await call_next(request)


async def socket(scope, receive, send):
    note("websocket " + scope["asgi"]["spec_version"])
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": "x" * 1000})
    except OSError as error:
        note(f"websocket {type(error).__name__}")
        await send({"type": "websocket.close"})
        raise


async def stubborn(scope, receive, send):
    told = 0
    await receive()
    await send({"type": "websocket.accept"})
    try:
        while True:
            try:
                await send({"type": "websocket.send", "text": "x" * 1000})
            except OSError:
                told += 1
    finally:
        note("stubborn told", told)


async def endpoint(websocket):
    await websocket.accept()
    while True:
        await websocket.send_text("x" * 1000)


routes = [Route("/stream", stream), Route("/background", background), Route("/state", state)]
routes += [WebSocketRoute("/endpoint", endpoint), Route("/idle", idle)]
inside = Starlette(routes=[*routes, Mount("/base", Starlette(
    routes=routes, middleware=[Middleware(Passing)]))])
RAW = (endless, swallows, waits, late, socket, stubborn)
RAW = {f"/{each.__name__}": each for each in RAW}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await inside(scope, receive, send)
        return
    note("running")
    try:
        await RAW.get(scope["path"], inside)(scope, receive, send)
    finally:
        note("running", -1)


app = MeshAuthz(app)
"""

PATHS = ("endless", "swallows", "waits", "late", "stream", "background", "base/stream")
SOCKETS = ("socket", "stubborn", "endpoint")
ONCE = {
    "2.4": 1,
    "endless ClientDisconnected": 1,
    "swallows told": 100,
    "waits told": 1,
    "late completed": 1,
    "background ran": 1,
    "websocket 2.4": 1,
    "websocket ClientDisconnected": 1,
    "stubborn told": 100,
}
"""What these applications note when each has lost one caller."""
WANTED = {name: 2 * count for name, count in ONCE.items()} | {"running": 1}
"""After one of each protocol; the request that asks for it runs."""
PROTOCOLS = ("h1", "h2")
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
CONNECT = {
    ":method": "CONNECT",
    ":protocol": "websocket",
    ":scheme": "https",
    ":authority": "tax",
    "sec-websocket-version": "13",
}


async def ask_and_leave(protocol: str, port: int, tls: Any, path: str) -> None:
    """Ask, wait until the answer begins where it does before the end, and reset the connection."""
    async with connect(protocol, port, tls) as connection:
        if isinstance(connection, Http1):
            words = UPGRADE if path in SOCKETS else ""
            connection._writer.write(f"GET /{path} HTTP/1.1\r\nHost: tax\r\n{words}\r\n".encode())
        else:
            assert isinstance(connection, Http2)
            await connection.ask("/state")  # with the settings, that WebSockets are served
            if path in SOCKETS:
                head = CONNECT | {":path": f"/{path}"}
                stream = connection._h2.get_next_available_stream_id()
                connection._h2.send_headers(stream, sorted(head.items()))
            else:
                connection._open(f"/{path}")
            connection._flush()
        if path not in ("late", "background"):
            await connection._reader.readexactly(1000)
        else:
            await connection._writer.drain()


async def state(port: int, tls: Any) -> dict[str, int]:
    async with connect("h1", port, tls) as connection:
        (answer,) = await connection.ask("/state")
        found: dict[str, int] = json.loads(answer.body)
        return found


async def all_leave(port: int, tls: Any, pem: str) -> dict[str, int]:
    """One caller after the other; then what the applications have noted."""
    async with asyncio.timeout(PATIENCE):
        for protocol in PROTOCOLS:
            spoken = outsider_context(pem, alpn="h2") if protocol == "h2" and tls else tls
            for path in (*PATHS, *SOCKETS):
                await ask_and_leave(protocol, port, spoken, path)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE / 2):
                while (found := await state(port, tls)) != WANTED:
                    pass
        return found


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def server(request: pytest.FixtureRequest, serve: Serve) -> Iterator[Hypercorn]:
    server = serve(
        APP,
        {"service": "tax", "exempt": [f"/{path}" for path in (*PATHS, *SOCKETS, "idle", "state")]},
        worker_class=request.param,
        insecure_bind="127.0.0.1:0",
        listeners=2,
    )
    yield server
    server.stop(PATIENCE)
    assert "Traceback" not in server.output
    assert "Error" not in server.output.replace("Lifespan error", "")


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_who_streams_to_a_caller_that_is_gone_is_told(
    scheme: str, agent: DevAgent, server: Hypercorn
) -> None:
    """Others are answered, the application ends, and the log has no word of it."""
    pem = caller(agent).pem
    tls = outsider_context(pem) if scheme == "https" else None
    found = asyncio.run(all_leave(server.port(scheme), tls, pem))
    assert found == WANTED
    assert server.stop(PATIENCE) == 0


def test_a_stream_that_has_nothing_to_send_ends_with_its_caller(
    agent: DevAgent, server: Hypercorn
) -> None:
    """Starlette does not listen for the disconnect, since it is told that ``send`` raises."""
    pem, port = caller(agent).pem, server.port()
    tls = outsider_context(pem)

    async def leave() -> None:
        async with asyncio.timeout(PATIENCE):
            for protocol in PROTOCOLS:
                spoken = outsider_context(pem, alpn="h2") if protocol == "h2" else tls
                await ask_and_leave(protocol, port, spoken, "idle")
            while (await state(port, tls))["running"] != 1:
                pass

    asyncio.run(leave())
