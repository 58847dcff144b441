"""No sequence of calls on one connection, from whichever threads, crashes or hangs the process."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from mesh_middleware.tls import Generation, client_context, server_context
from tests.support.certs import Ca
from tests.support.servers import PATIENCE, until


@pytest.fixture
def ends(ca: Ca) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Both ends of a TLS connection on real sockets, blocking."""
    yield from connected(ca)


def connected(ca: Ca) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Connect, and close at the end."""
    tax, invoice = ca.leaf("tax").pair, ca.leaf("invoice").pair
    ours, theirs = Generation(tax, ca.roots(), 1), Generation(invoice, ca.roots(), 1)
    calling = client_context(lambda: theirs, lambda: datetime.now(UTC), tax.leaf.id)
    serving = server_context(lambda: ours, lambda: datetime.now(UTC))
    left, right = socket.socketpair()
    made: list[ssl.SSLSocket] = []
    accept = threading.Thread(
        target=lambda: made.append(serving.wrap_socket(right, server_side=True))
    )
    accept.start()
    client = calling.wrap_socket(left)
    accept.join(PATIENCE)
    client.settimeout(PATIENCE)
    made[0].settimeout(PATIENCE)
    yield client, made[0]
    for each in (client, made[0]):
        each.close()


def goodbye(tls: ssl.SSLSocket) -> None:
    """What the pools did: goodbye without waiting, and then the end."""
    with contextlib.suppress(OSError, ValueError):
        tls.settimeout(0.0)
        tls.unwrap()
    tls.close()


ENDINGS: dict[str, Callable[[ssl.SSLSocket], None]] = {
    "close": lambda tls: tls.close(),
    "close twice": lambda tls: (tls.close(), tls.close()) and None,
    "goodbye and close": goodbye,
    "shutdown and close": lambda tls: (tls.shutdown(socket.SHUT_RDWR), tls.close()) and None,
}


@pytest.mark.parametrize("end", ENDINGS)
@pytest.mark.parametrize("side", [0, 1], ids=["client", "server"])
def test_a_reader_is_woken_by_the_end_of_its_connection(
    end: str, side: int, ends: tuple[ssl.SSLSocket, ssl.SSLSocket]
) -> None:
    """It sees the end, or an error of its socket; the last to leave closes the file."""
    tls, results = ends[side], []

    def read() -> None:
        try:
            results.append(tls.recv(10))
        except (OSError, ValueError) as error:
            results.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    until(lambda: tls.mesh_inside == 1, "the reader to be inside")
    ENDINGS[end](tls)
    reader.join(PATIENCE)
    assert not reader.is_alive() and len(results) == 1
    assert results[0] == b"" or isinstance(results[0], OSError)
    assert tls.fileno() == -1
    with pytest.raises((OSError, ValueError)):
        tls.recv(10)


def test_alone_it_says_goodbye(ends: tuple[ssl.SSLSocket, ssl.SSLSocket]) -> None:
    """The other end can tell it from a cut."""
    client, server = ends
    goodbye(client)
    assert server.recv(10) == b""


def test_many_threads_end_what_others_read(ca: Ca) -> None:
    """Each connection is read by one thread, and ended by three in every way at once."""
    for round_ in range(20):
        for client, server in connected(ca):
            tls = (client, server)[round_ % 2]
            threads = [threading.Thread(target=suppressed, args=(tls.recv, 10))]
            threads += [
                threading.Thread(target=suppressed, args=(e, tls)) for e in ENDINGS.values()
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert not any(thread.is_alive() for thread in threads)
            assert tls.fileno() == -1


def suppressed(call: Callable[..., object], *args: object) -> None:
    """Call, whatever the socket says."""
    with contextlib.suppress(OSError, ValueError):
        call(*args)


PROGRAM = """
import faulthandler, sys
faulthandler.enable()
faulthandler.dump_traceback_later(50, exit=True)
import httpx_ws
from mesh_middleware import Client, Mesh

with Mesh("order", agent=sys.argv[1], plugins=()) as mesh:
    assert mesh.ready(20)
    for round in range(32):
        with Client(mesh=mesh) as client:
            with httpx_ws.connect_ws("https://audit/stream", client) as ws:
                ws.send_text("hello")
                assert ws.receive_text(timeout=20) == "hello"
print("lived", flush=True)
"""

ECHO = """
async def app(scope, receive, send):
    assert scope["type"] == "websocket", scope["type"]
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": event["text"]})


from mesh_middleware import MeshAuthz

app = MeshAuthz(app)
"""
