"""Applications that do not read what was sent to them, over connections that others use, too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
import wsproto
from wsproto.events import CloseConnection, Message, TextMessage

from mesh_middleware.dev import DevAgent

from ..attack.raw import BASE, Frames
from .conftest import Serve
from .test_hypercorn import caller

APP = """
import hashlib, json

import anyio

from mesh_middleware import MeshAuthz

made, told = [], []


def go():
    if not made:
        made.append(anyio.Event())
    return made[0]


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await go().wait()
        while (event := await receive())["type"] != "websocket.disconnect":
            told.append(event.get("text"))
        return
    assert scope["type"] == "http", scope["type"]
    if scope["path"] == "/late":
        await go().wait()
    size, seen, more = 0, hashlib.sha256(), True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        size, more = size + len(event["body"]), event["more_body"]
        seen.update(event["body"])
    if scope["path"] == "/go":
        go().set()
    answer = told if scope["path"] == "/told" else [size, seen.hexdigest()]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


app = MeshAuthz(app)
"""
WINDOW = 65_535
MOST = 1 << 20
"""Bytes: far more than may wait for one application."""


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def frames(request: pytest.FixtureRequest, agent: DevAgent, serve: Serve) -> Iterator[Frames]:
    """A connection to an application that reads what came to ``/late`` after ``/go`` was asked."""
    server = serve(APP, worker_class=request.param)
    with Frames(server.port(), caller(agent).pem) as frames:
        yield frames
    assert "Traceback" not in server.output


def post(frames: Frames, path: bytes) -> int:
    return frames.get(path, b"POST", end=False)


def ask(frames: Frames, path: bytes, *more: int) -> bytes:
    """Ask, and wait for the answer, and for the ends of other streams."""
    stream = frames.get(path)
    frames.until(stream, *more)
    assert not frames.lost
    return frames.bodies[stream]


def right(body: bytes) -> bytes:
    return f'[{len(body)}, "{hashlib.sha256(body).hexdigest()}"]'.encode()


def fill(frames: Frames, stream: int) -> bytes:
    """Send as much as there is room for; a round trip later there is no more of it."""
    sent = b""
    while (room := frames.h2.local_flow_control_window(stream)) and len(sent) < MOST:
        while room := min(room, 16_384):
            piece = (b"%07d\n" % len(sent)) * 2048
            frames.h2.send_data(stream, piece[:room])
            sent += piece[:room]
            room = frames.h2.local_flow_control_window(stream)
        frames.flush()
        ask(frames, b"/other")
    return sent


def send_all(frames: Frames, stream: int, body: bytes) -> None:
    """Send *body* as there comes room for it, and the end."""
    sent = 0
    while sent < len(body):
        room = min(frames.h2.local_flow_control_window(stream), 16_384)
        frames.h2.send_data(stream, body[sent : sent + room])
        sent += room
        frames.flush()
        if not room:
            frames.read()
            assert not frames.lost
    frames.h2.end_stream(stream)
    frames.flush()


@pytest.mark.parametrize("size", [1, 1000], ids=str)
def test_an_upload_that_nobody_reads_holds_up_no_other(frames: Frames, size: int) -> None:
    """Others are answered meanwhile; and it is read whole, however small its pieces are."""
    upload, sent = post(frames, b"/late"), b""
    for number in range(WINDOW // 2 // size):
        piece = (b"%04d" % number * size)[:size]
        frames.h2.send_data(upload, piece)
        sent += piece
    frames.flush()
    assert ask(frames, b"/other") == right(b"")
    frames.h2.end_stream(upload)
    frames.flush()
    assert ask(frames, b"/go", upload) == right(b"")
    assert frames.bodies[upload] == right(sent)


def test_room_is_given_when_it_is_read(frames: Frames) -> None:
    """What may wait is bounded, for each stream by itself: the connection has room for others."""
    upload, other = post(frames, b"/late"), post(frames, b"/other")
    sent = fill(frames, upload)
    assert 0 < len(sent) < MOST
    also, more = b"x" * 2 * WINDOW, b"y" * 4 * WINDOW
    send_all(frames, other, also)
    ask(frames, b"/go", other)
    assert frames.bodies[other] == right(also)
    send_all(frames, upload, more)
    frames.until(upload)
    assert frames.bodies[upload] == right(sent + more)


def test_who_gives_up_what_nobody_reads_disturbs_no_other(frames: Frames) -> None:
    """Its application is told when it reads; the connection goes on."""
    upload = post(frames, b"/late")
    fill(frames, upload)
    frames.h2.reset_stream(upload)
    frames.flush()
    assert ask(frames, b"/go") == ask(frames, b"/other") == right(b"")


def test_messages_wait_in_order(frames: Frames) -> None:
    """Those of a WebSocket, and its end behind them."""
    words = {b"sec-websocket-version": b"13", b":protocol": b"websocket", b":path": b"/"}
    head = [(b":method", b"CONNECT"), *BASE, *words.items()]
    stream = frames.ask(sorted(head), end=False)
    while stream not in frames.statuses:
        frames.read()
    client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    texts = [str(number) for number in range(50)]
    events: list[Message | CloseConnection] = [TextMessage(text) for text in texts]
    for event in [*events, CloseConnection(1000)]:
        frames.h2.send_data(stream, client.send(event))
    frames.flush()
    ask(frames, b"/go", stream)
    # The stream has ended; the application reads on.
    while (told := json.loads(ask(frames, b"/told"))) != texts:
        assert told == texts[: len(told)]
