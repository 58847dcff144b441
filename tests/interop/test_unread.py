"""Requests over HTTP/1.1 that are answered before all of them has come."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest

from mesh_middleware.config import MAX_UNREAD_BODY
from mesh_middleware.dev import DevAgent
from mesh_middleware.servers._hypercorn.repairs.h11_unread_body import expects_continue

from ..attack.raw import dial, read_all
from .conftest import Serve
from .test_hypercorn import caller

APP = """
from mesh_middleware import MeshAuthz


async def app(scope, receive, send):
    assert scope["type"] == "http", scope["type"]
    status = 200 if scope["method"] == "GET" else 405
    head = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": b"no"})


app = MeshAuthz(app)
"""
HEAD = b"POST %b HTTP/1.1\r\nHost: tax\r\n"
NEXT = b"GET / HTTP/1.1\r\nHost: tax\r\n\r\n"
LONG = 4 << 20
"""Bytes: more than is read for nothing."""
SHORT = 400_000
"""Bytes: more than one read takes, and less than is read for nothing."""
PIECE = 1 << 16
MOST = MAX_UNREAD_BODY + (24 << 20)
"""Bytes that a caller can get rid of at most: the bound, and what the sockets buffer."""


def one(connection: ssl.SSLSocket) -> int:
    """Read one whole answer; returns its status, 0 where the connection has ended."""
    found = b""
    while b"\r\n\r\n" not in found:
        part = connection.recv(1)
        if not part:
            return 0
        found += part
    status, head = int(found[9:12]), found.lower()
    if status == 100:
        return one(connection)
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while length:
        length -= len(connection.recv(length))
    return status


def sends_the_rest_late(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """The body comes after the answer, and the next request with it."""
    connection.sendall(HEAD % path + b"Content-Length: 100000\r\n\r\nbegun")
    refused = one(connection)
    connection.sendall(bytes(100_000 - 5) + NEXT)
    return [refused, one(connection)]


def sends_chunks(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """A body that does not say how long it is."""
    connection.sendall(HEAD % path + b"Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n")
    refused = one(connection)
    connection.sendall(b"4\r\nmore\r\n0\r\nTrailer: 1\r\n\r\n")
    connection.sendall(NEXT + NEXT)
    return [refused, one(connection), one(connection)]


def reads_when_all_is_sent(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """As most clients do, httpx among them."""
    connection.sendall(HEAD % path + b"Content-Length: %d\r\n\r\n" % SHORT + bytes(SHORT))
    refused = one(connection)
    connection.sendall(NEXT)
    return [refused, one(connection)]


def asks_to_close(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """It is the connection's last request; the answer is not lost for it."""
    head = HEAD % path + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % SHORT
    connection.sendall(head + bytes(SHORT))
    return [one(connection), one(connection)]


def waits_for_leave(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """What comes now may be the body or, had it not been given leave, the next request: that is
    answered only where all of the body came before the server was done with its answer."""
    connection.sendall(HEAD % path + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    refused = one(connection)
    connection.sendall(b"begun" + NEXT)
    return [refused, int(read_all(connection)[9:12] not in (b"", b"200"))]


def breaks_off(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """The rest is no chunk."""
    connection.sendall(HEAD % path + b"Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n")
    refused = one(connection)
    connection.sendall(b"none\r\n" + NEXT)
    return [refused, len(read_all(connection))]


def never_ends(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """It is closed after ``unread_body_timeout``."""
    connection.sendall(HEAD % path + b"Content-Length: 100000\r\n\r\nbegun")
    return [one(connection), len(read_all(connection))]


def fill(connection: ssl.SSLSocket, piece: bytes) -> int:
    """Send *piece* again and again, until the connection ends; returns how many bytes went."""
    sent = 0
    try:
        while sent < 4 * MOST:
            connection.sendall(piece)
            sent += len(piece)
    except (ConnectionError, ssl.SSLError):
        pass
    return sent


def sends_for_ever(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """It reads when it cannot send any more: the answer has not been lost."""
    connection.sendall(HEAD % path + b"Content-Length: 1000000000000\r\n\r\n")
    bounded = fill(connection, bytes(PIECE)) < MOST
    return [one(connection), bounded, len(read_all(connection))]


def sends_chunks_for_ever(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """The same, without a length."""
    connection.sendall(HEAD % path + b"Transfer-Encoding: chunked\r\n\r\n")
    bounded = fill(connection, b"%x\r\n" % PIECE + bytes(PIECE) + b"\r\n") < MOST
    return [one(connection), bounded, len(read_all(connection))]


def sends_small_chunks_for_ever(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """Each of them costs as much time as a large one."""
    connection.sendall(HEAD % path + b"Transfer-Encoding: chunked\r\n\r\n")
    bounded = fill(connection, b"1\r\nx\r\n" * 10_000) < MOST
    return [one(connection), bounded, len(read_all(connection))]


def sends_too_much_at_once(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """As most clients do."""
    with suppress(ConnectionError, ssl.SSLError):
        connection.sendall(HEAD % path + b"Content-Length: %d\r\n\r\n" % LONG + bytes(LONG))
    return [one(connection), len(read_all(connection))]


def reads_while_it_sends(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """It finds the answer at once, and no reset before it."""
    connection.sendall(HEAD % path + b"Content-Length: 1000000000000\r\n\r\n" + bytes(PIECE))
    return [one(connection)]


Act = Callable[[ssl.SSLSocket, bytes], list[int]]
PATHS = (b"/denied", b"/unwanted")
CALLERS: Mapping[Act, list[int]] = {
    sends_the_rest_late: [200],
    sends_chunks: [200, 200],
    reads_when_all_is_sent: [200],
    asks_to_close: [0],
    waits_for_leave: [0],
    breaks_off: [0],
    never_ends: [0],
    sends_for_ever: [True, 0],
    sends_chunks_for_ever: [True, 0],
    sends_small_chunks_for_ever: [True, 0],
    sends_too_much_at_once: [0],
    reads_while_it_sends: [],
}


@pytest.mark.parametrize("name", [b"expect", b"Expect"], ids=["lower", "raw"])
def test_who_waits_for_leave_is_known_however_it_is_spelt(name: bytes) -> None:
    """With ``h11_pass_raw_headers`` Hypercorn leaves names as they came."""
    assert expects_continue(
        SimpleNamespace(scope={"headers": [(b"a", b"b"), (name, b"100-continue")]})
    )
    assert not expects_continue(SimpleNamespace(scope={"headers": [(b"a", b"expect")]}))
    assert not expects_continue(None)


@pytest.mark.parametrize("worker", ["asyncio", "uvloop", "trio"])
def test_an_early_answer_arrives_and_its_connection_goes_on(
    agent: DevAgent, serve: Serve, worker: str
) -> None:
    """Refused by policy, or not wanted: the answer is not lost, nor is the request after it."""
    agent.set_protocol("tax", "http")
    deny = {"Action": "deny", "HTTP": {"PathPrefix": "/denied"}}
    agent.permissions("invoice", "tax", [deny])
    server = serve(APP, worker_class=worker, keep_alive_timeout=1)
    port, pem = server.port(), caller(agent).pem

    def ask(act: Act, path: bytes) -> list[int]:
        with dial(port, pem, alpn="http/1.1") as connection:
            return act(connection, path)

    right = {
        (act.__name__, path): [refused, *rest]
        for path, refused in zip(PATHS, (403, 405), strict=True)
        for act, rest in CALLERS.items()
    }
    with ThreadPoolExecutor(8) as pool:
        asked = {
            (act.__name__, path): pool.submit(ask, act, path) for path in PATHS for act in CALLERS
        }
        seen = {key: found.result() for key, found in asked.items()}
    assert seen == right
    assert "Traceback" not in server.output
