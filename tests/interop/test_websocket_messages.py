"""WebSocket messages that are too large, also when decompressed, and frames that break a rule."""

from __future__ import annotations

import ssl
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from wsproto.frame_protocol import CloseReason, FrameDecoder, Opcode, RsvBits

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers._hypercorn.repairs.websocket_message_size import BoundedDeflate

from ..attack.raw import Frames, dial, read_all
from .conftest import Serve
from .test_hypercorn import caller

LIMIT = 100_000
"""``websocket_max_message_size`` of the server under test."""

APP = """
from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "websocket", scope["type"]
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        size = len(event["bytes"] or event["text"].encode())
        await send({"type": "websocket.send", "text": str(size)})


app = MeshAuthz(app)
"""
UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: tax\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: %b\r\n\r\n"
)
CONNECT = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":path", b"/"),
    (b":scheme", b"https"),
    (b":authority", b"tax"),
    (b"sec-websocket-version", b"13"),
    (b"sec-websocket-extensions", b"permessage-deflate"),
]
FIN, RSV1, RSV2, TEXT, BINARY, MORE = 0x80, 0x40, 0x20, 1, 2, 0


def frame(first: int, payload: bytes) -> bytes:
    """A frame with a mask of zeros."""
    size = len(payload)
    if size < 126:
        head = bytes([first, 0x80 | size])
    elif size < 1 << 16:
        head = bytes([first, 0x80 | 126]) + struct.pack(">H", size)
    else:
        head = bytes([first, 0x80 | 127]) + struct.pack(">Q", size)
    return head + bytes(4) + payload


def deflate(data: bytes) -> bytes:
    """As it stands in frames."""
    work = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (work.compress(data) + work.flush(zlib.Z_SYNC_FLUSH))[:-4]


BOMB = deflate(bytes(200 << 20))
CASES = {
    "largest": (frame(FIN | BINARY, bytes(LIMIT)), str(LIMIT)),
    "largest, deflated": (frame(FIN | RSV1 | BINARY, deflate(bytes(LIMIT))), str(LIMIT)),
    "largest text": (frame(FIN | TEXT, "é".encode() * (LIMIT // 2)), str(LIMIT)),
    "too large": (frame(FIN | BINARY, bytes(LIMIT + 1)), 1009),
    "too large, deflated": (frame(FIN | RSV1 | BINARY, deflate(bytes(LIMIT + 1))), 1009),
    "too large text": (frame(FIN | TEXT, "é".encode() * (LIMIT // 2 + 1)), 1009),
    "bomb": (frame(FIN | RSV1 | BINARY, BOMB), 1009),
    "bomb in fragments": (
        frame(RSV1 | BINARY, BOMB[:50_000]) + frame(FIN | MORE, BOMB[50_000:]),
        1009,
    ),
    "bomb of text": (frame(FIN | RSV1 | TEXT, deflate(b"a" * (50 << 20))), 1009),
    "fragments": (frame(BINARY, b"") + frame(MORE, bytes(LIMIT)) + frame(FIN | MORE, b"a"), 1009),
    "what follows is not read": (
        frame(FIN | BINARY, bytes(LIMIT + 1)) + frame(FIN | BINARY, bytes(LIMIT)) * 100,
        1009,
    ),
    "no deflate": (frame(FIN | RSV1 | BINARY, b"\xff" * 100), 1007),
    "no UTF-8": (frame(FIN | TEXT, b"\xff"), 1007),
    "reserved bit": (frame(FIN | RSV2 | BINARY, b""), 1002),
    "length": (b"\x82\xff" + b"\xff" * 8, 1002),
    "no mask": (b"\x82\x01a", 1002),
    "opcode": (frame(FIN | 7, b""), 1002),
    "continuation of nothing": (frame(FIN | MORE, b"a"), 1002),
}
"""What a caller sends, and what it is told: the size of its message, or the code of the close."""


def opened(port: int, pem: str, offer: bytes = b"permessage-deflate") -> ssl.SSLSocket:
    connection = dial(port, pem)
    connection.sendall(UPGRADE % offer)
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(1)
    assert head.startswith(b"HTTP/1.1 101 ")
    return connection


def told(answer: bytes) -> str | int:
    """Read one frame of the server."""
    payload = answer[2 : 2 + answer[1]]
    if answer[0] & 0x0F == 8:
        return int.from_bytes(payload[:2], "big")
    if answer[0] & RSV1:
        payload = zlib.decompressobj(-15).decompress(payload + b"\0\0\xff\xff")
    return payload.decode()


def is_whole(answer: bytes) -> bool:
    return len(answer) > 1 and len(answer) >= 2 + answer[1]


def over_http1(port: int, pem: str, sent: bytes) -> str | int:
    """Send it; after a close frame comes the end, and no reset before it."""
    with opened(port, pem) as connection:
        with suppress(ConnectionError, ssl.SSLError):
            connection.sendall(sent)
        answer = b""
        while not is_whole(answer):
            part = connection.recv(1)
            assert part, "the connection ended without a close frame"
            answer += part
        found = told(answer)
        assert isinstance(found, str) or read_all(connection) == b""
        return found


def over_http2(port: int, pem: str, sent: bytes) -> str | int:
    """The same in a stream, which ends; the connection goes on."""
    with Frames(port, pem) as frames:
        stream = frames.ask(CONNECT, end=False)
        while stream not in frames.statuses:
            frames.read()
        while sent and stream not in frames.ended:
            room = min(frames.h2.local_flow_control_window(stream), 16_384)
            frames.h2.send_data(stream, sent[:room])
            sent = sent[room:]
            frames.flush()
            if not room:
                frames.read()
        while not is_whole(frames.bodies.get(stream, b"")):
            frames.read()
            assert not frames.lost
        found = told(frames.bodies[stream])
        if isinstance(found, int):
            frames.until(stream)
        assert not frames.lost
        return found


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_a_message_is_held_to_the_limit_and_a_broken_rule_is_named(
    worker: str, agent: DevAgent, serve: Serve
) -> None:
    """The limit is for what comes out; whoever is over it, or breaks a rule, is told the code."""
    server = serve(APP, worker_class=worker, websocket_max_message_size=LIMIT)
    port, pem = server.port(), caller(agent).pem
    with ThreadPoolExecutor(4) as pool:
        asked = {
            (name, speak.__name__): pool.submit(speak, port, pem, sent)
            for name, (sent, _) in CASES.items()
            for speak in (over_http1, over_http2)
        }
        seen = {key: found.result() for key, found in asked.items()}
    assert seen == {key: CASES[key[0]][1] for key in seen}
    assert "Traceback" not in server.output


OFFERS = (
    b"permessage-deflate; client_max_window_bits=x",
    b"permessage-deflate; client_max_window_bits=99",
    b"permessage-deflate; server_max_window_bits=",
    b"permessage-deflate; server_max_window_bits=1=2",
)


def test_an_offer_that_cannot_be_read_is_declined(agent: DevAgent, serve: Serve) -> None:
    """The WebSocket goes on without the extension, and the log has no traceback."""
    server = serve(APP)
    port, pem = server.port(), caller(agent).pem
    for offer in OFFERS:
        with opened(port, pem, offer) as connection:
            connection.sendall(frame(FIN | BINARY, b"abc"))
            assert told(connection.recv(3)) == "3"
    assert "Traceback" not in server.output


@pytest.mark.parametrize("piece", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("over", [False, True], ids=["largest", "too large"])
def test_no_more_comes_out_than_a_message_may_have(piece: int, over: bool) -> None:
    """Whatever the pieces in which it comes; and each message counts by itself."""
    extension, decoder = BoundedDeflate(), FrameDecoder(client=False)
    extension.max_message_size = LIMIT
    sent = deflate(bytes(LIMIT + over))
    for _ in range(3):
        extension.frame_inbound_header(decoder, Opcode.BINARY, RsvBits(True, False, False), 0)
        size, last = 0, None
        for start in range(0, len(sent), piece):
            found = extension.frame_inbound_payload_data(decoder, sent[start : start + piece])
            if isinstance(found, CloseReason):
                last = found
                break
            size += len(found)
        if over:
            assert (last, size <= LIMIT) == (CloseReason.MESSAGE_TOO_BIG, True)
            return
        rest = extension.frame_inbound_complete(decoder, True)
        assert (last, size, rest) == (None, LIMIT, b"")
