"""Requests over HTTP/1.1 that are answered before all of them has come."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest

from mesh_middleware.dev import DevAgent
from mesh_middleware.servers.hypercorn_unread import MAX_UNREAD, _expects

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
"""Bytes: more than the buffers of both ends hold."""


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
    connection.sendall(HEAD % path + b"Content-Length: %d\r\n\r\n" % LONG + bytes(LONG))
    refused = one(connection)
    connection.sendall(NEXT)
    return [refused, one(connection)]


def asks_to_close(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """It is the connection's last request; the answer is not lost for it."""
    head = HEAD % path + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % LONG
    connection.sendall(head + bytes(LONG))
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
    """It is closed when it was idle for too long."""
    connection.sendall(HEAD % path + b"Content-Length: 100000\r\n\r\nbegun")
    return [one(connection), len(read_all(connection))]


def sends_too_much(connection: ssl.SSLSocket, path: bytes) -> list[int]:
    """It is not read for ever."""
    connection.sendall(HEAD % path + b"Transfer-Encoding: chunked\r\n\r\n")
    connection.sendall(b"5\r\nbegun\r\n")
    refused = one(connection)
    try:
        for _ in range(2 * MAX_UNREAD // LONG):
            connection.sendall(b"%x\r\n" % LONG + bytes(LONG) + b"\r\n")
    except (ConnectionError, ssl.SSLError):
        return [refused, 0]
    return [refused, len(read_all(connection))]


CALLERS: Mapping[Callable[[ssl.SSLSocket, bytes], list[int]], list[int]] = {
    sends_the_rest_late: [200],
    sends_chunks: [200, 200],
    reads_when_all_is_sent: [200],
    asks_to_close: [0],
    waits_for_leave: [0],
    breaks_off: [0],
    never_ends: [0],
    sends_too_much: [0],
}


@pytest.mark.parametrize("name", [b"expect", b"Expect"], ids=["lower", "raw"])
def test_who_waits_for_leave_is_known_however_it_is_spelt(name: bytes) -> None:
    """With ``h11_pass_raw_headers`` Hypercorn leaves names as they came."""
    assert _expects(SimpleNamespace(scope={"headers": [(b"a", b"b"), (name, b"100-continue")]}))
    assert not _expects(SimpleNamespace(scope={"headers": [(b"a", b"expect")]}))
    assert not _expects(None)


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
    seen, right = {}, {}
    for path, refused in ((b"/denied", 403), (b"/unwanted", 405)):
        for act, rest in CALLERS.items():
            with dial(port, pem, alpn="http/1.1") as connection:
                seen[act.__name__, path] = act(connection, path)
            right[act.__name__, path] = [refused, *rest]
    assert seen == right
    assert "Traceback" not in server.output
