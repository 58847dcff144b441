"""What a server says unasked is nobody's answer, however it is cut into records and packets."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from mesh_middleware.resolve import Endpoint

from ..support.steps import yield_times
from .driver import OWN, Driver, drivers
from .support import (
    PATIENCE,
    Authority,
    StaticMesh,
    server_context,
    service_id,
)
from .test_leaks import in_line

FIRST = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst"
STRAY = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
SOUND = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsound"


driver = drivers(OWN)


class End:
    """The server's end of one connection: what is sealed goes out when the test says so."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self._come, self._go = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._come, self._go, server_side=True)
        self._step(self._tls.do_handshake)

    def _step(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                found = None
                self.sock.sendall(self._go.read())
                data = self.sock.recv(65536)
                if not data:
                    return b""
                self._come.write(data)
            else:
                self.sock.sendall(self._go.read())
                return found

    def read_head(self) -> bytes:
        """Read the head of a request; empty when the other end has gone."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            try:
                part = self._step(lambda: self._tls.read(65536))
            except OSError:
                return b""
            if not part:
                return b""
            head += part
        return head

    def seal(self, data: bytes) -> bytes:
        """Make a record."""
        self._tls.write(data)
        return self._go.read()


@contextmanager
def _ends(authority: Authority, *scripts: Callable[[End], None]) -> Iterator[int]:
    """Serve connections one after the other, by a script each."""
    context = server_context(authority.root_pem, authority.issue(service_id("tax").uri))

    def run(listener: socket.socket) -> None:
        for script in scripts:
            with suppress(OSError):
                sock, _ = listener.accept()
                sock.settimeout(PATIENCE)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with sock:
                    script(End(sock, context))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, args=(listener,))
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(2 * PATIENCE)


def _sound(end: End) -> None:
    while end.read_head():
        end.sock.sendall(end.seal(SOUND))


@pytest.mark.parametrize("cut", [1, 5, 30, -1], ids=str)
@pytest.mark.parametrize("together", [True, False], ids=["with the answer", "after it"])
def test_half_a_record_of_a_stray_answer_ends_the_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver, cut: int, together: bool
) -> None:
    """A stray answer half of which came before the next request is not taken for its answer."""
    said = threading.Event()

    def stray(end: End) -> None:
        end.read_head()
        first, record = end.seal(FIRST), end.seal(STRAY)
        if together:
            end.sock.sendall(first + record[:cut])
        else:
            end.sock.sendall(first)
            end.sock.sendall(record[:cut])
        said.set()
        if end.read_head():
            end.sock.sendall(record[cut:])
            end.read_head()

    with _ends(authority, stray, _sound) as port, driver.client(mesh) as client:
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))
        assert client.get("https://tax/").text == "first"
        assert said.wait(PATIENCE)
        if driver.is_async:
            driver.run(yield_times, 5)
        assert client.get("https://tax/").text == "sound"


def test_a_stray_answer_is_not_for_who_stands_in_line(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A connection that has more to say than was asked is not handed to the next in line."""
    arrived, go_on = threading.Event(), threading.Event()

    def stray(end: End) -> None:
        end.read_head()
        arrived.set()
        assert go_on.wait(PATIENCE)
        end.sock.sendall(end.seal(FIRST) + end.seal(STRAY))
        end.read_head()

    limits = httpx.Limits(max_connections=1)
    with (
        _ends(authority, stray, _sound) as port,
        driver.client(mesh, limits=limits) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))
        first = threads.submit(client.get, "https://tax/")
        assert arrived.wait(PATIENCE)
        second = threads.submit(client.get, "https://tax/")
        in_line(client, 1)
        go_on.set()
        assert first.result(PATIENCE).text == "first"
        assert second.result(PATIENCE).text == "sound"


def test_a_post_in_line_gets_no_connection_that_was_closed(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A server that closes after its answer, without saying so, fails nobody who stood in line."""
    arrived, go_on = threading.Event(), threading.Event()

    def closing(end: End) -> None:
        end.read_head()
        arrived.set()
        assert go_on.wait(PATIENCE)
        sealed = end.seal(FIRST)
        with suppress(ssl.SSLError):
            end._tls.unwrap()
        end.sock.sendall(sealed + end._go.read())
        end.sock.shutdown(socket.SHUT_WR)
        end.read_head()

    limits = httpx.Limits(max_connections=1)
    with (
        _ends(authority, closing, _sound) as port,
        driver.client(mesh, limits=limits) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))
        first = threads.submit(client.get, "https://tax/")
        assert arrived.wait(PATIENCE)
        second = threads.submit(client.request, "POST", "https://tax/")
        in_line(client, 1)
        go_on.set()
        assert first.result(PATIENCE).text == "first"
        assert second.result(PATIENCE).text == "sound"
