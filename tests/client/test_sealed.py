"""TLS of our own connections: however its bytes come, whatever the other end does to it."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from mesh_middleware.httpx import AsyncClient, MeshConnectError, UpstreamMismatchError
from mesh_middleware.resolve import Endpoint

from ..support.steps import yield_once
from .driver import OWN, Driver, drivers
from .support import (
    PATIENCE,
    Authority,
    GatedContext,
    ScriptServer,
    StaticMesh,
    Wire,
    answering,
    server_context,
    service_id,
    serving,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


driver = drivers(OWN)


def _pass_on(source: socket.socket, sink: socket.socket, piece: int) -> None:
    with suppress(OSError):
        while data := source.recv(64 * 1024):
            for at in range(0, len(data), piece):
                sink.sendall(data[at : at + piece])
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def _relay(port: int, piece: int) -> Iterator[int]:
    """Stand between caller and server, and hand on what the server says in pieces."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        ends: list[socket.socket] = []

        def run() -> None:
            caller, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port), PATIENCE)
            ends.extend((caller, server))
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there = threading.Thread(target=_pass_on, args=(caller, server, 64 * 1024))
            there.start()
            _pass_on(server, caller, piece)
            there.join(PATIENCE)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(PATIENCE)
        for end in ends:
            end.close()


@pytest.mark.parametrize("piece", [1, 7, 5000], ids=str)
def test_records_may_come_in_pieces(
    authority: Authority, mesh: StaticMesh, driver: Driver, piece: int
) -> None:
    """Handshake, answers and the end are the same when no read holds a whole record."""
    body = bytes(range(256)) * 80  # two records

    with serving(authority, answering(body)) as server, _relay(server.port, piece) as port:
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))
        with driver.client(mesh) as client:
            assert [client.get("https://tax/").content for _ in range(2)] == [body, body]
        assert server.connections == 1


def test_many_records_come_at_once(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """An answer of many small records is one answer; what fills a record to its last byte, too."""
    pieces = [b"x", b"y" * 16384, b"z" * 16385, b"", b"1" * 40000, b"2"]
    body = b"".join(pieces)

    def script(wire: Wire) -> None:
        while wire.read_request()[0]:
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            for piece in pieces:
                if piece:
                    wire.send(piece)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(3):
            assert client.get("https://tax/").content == body
        assert server.connections == 1


@pytest.mark.parametrize("size", [16384, 16385, 1_000_000], ids=str)
def test_long_requests_are_sealed_whole(
    authority: Authority, mesh: StaticMesh, driver: Driver, size: int
) -> None:
    """OpenSSL takes a record at a time: none is left out."""
    content, seen = bytes(range(256)) * (size // 256) + b"e" * (size % 256), []

    def script(wire: Wire) -> None:
        seen.append(wire.read_request()[1])
        wire.send(OK)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.request("PUT", "https://tax/", content=content).status_code == 200
    assert seen == [content]


class _RecordByRecord(GatedContext.sslobject_class):  # type: ignore[misc, name-defined]
    """TLS that takes one record at a time, as OpenSSL does where partial writes are allowed."""

    def write(self, data: Any) -> int:
        taken: int = super().write(memoryview(data)[:16384])
        return taken


@pytest.mark.parametrize("size", [16384, 16385, 100_000, 1_000_000], ids=str)
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_what_tls_does_not_take_at_once_is_given_again(
    authority: Authority,
    mesh: StaticMesh,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    loop: str,
) -> None:
    """However little OpenSSL takes of a write, all of it is sent, in order and once."""
    monkeypatch.setattr(GatedContext, "sslobject_class", _RecordByRecord)
    content, seen = bytes(range(251)) * (size // 251) + b"e" * (size % 251), []

    def script(wire: Wire) -> None:
        seen.append(wire.read_request()[1])
        wire.send(OK)

    with (
        Driver(loop).running() as driver,
        serving(authority, script) as server,
        driver.client(mesh) as client,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        assert client.request("PUT", "https://tax/", content=content).status_code == 200
    assert seen == [content]


class _Late(GatedContext.sslsocket_class):  # type: ignore[misc, name-defined]
    """A socket whose thread comes back from the handshake when the server's tickets are there."""

    def do_handshake(self, *args: Any, **options: Any) -> None:
        super().do_handshake(*args, **options)
        assert select.select([self], [], [], PATIENCE)[0]


def test_tickets_do_not_cost_a_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hands out tickets after the handshake, as Envoy does, is dialled once."""
    monkeypatch.setattr(GatedContext, "sslsocket_class", _Late)
    context = server_context(authority.root_pem, authority.issue(service_id("tax").uri))
    context.num_tickets = 2
    with ScriptServer(context, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert [client.get("https://tax/").text for _ in range(3)] == ["ok"] * 3
        assert server.connections == 1


async def _full(client: Any) -> Any:
    """Wait for the connection whose other end takes no more."""
    while True:
        carrier = client._transport._carrier
        for connection in () if carrier is None else carrier.live:
            if connection._full:
                return connection
        await yield_once()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_goodbye_that_nobody_takes_is_cut_off(
    authority: Authority, mesh: StaticMesh, loop: str
) -> None:
    """
    An answer that came before the request was taken: its connection is closed, and a second later
    cut, though the server goes on reading nothing.
    """
    full, over = threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        wire.read_head()
        assert full.wait(PATIENCE)
        wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        assert over.wait(PATIENCE)

    async def run() -> None:
        async with AsyncClient(mesh) as client:
            call = asyncio.ensure_future(client.post("https://tax/", content=b"x" * 16_000_000))
            async with asyncio.timeout(PATIENCE):
                connection = await _full(client)
                full.set()
                assert (await call).status_code == 413
                assert connection.transport.is_closing()
                assert connection.transport.get_write_buffer_size() > 0
                await asyncio.shield(connection.lost)
        over.set()

    with Driver(loop).running() as driver, serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)


def test_the_end_is_said(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """Closing says goodbye in TLS: to the server nothing looks cut off."""
    heard: list[bytes] = []
    over = threading.Event()

    def script(wire: Wire) -> None:
        wire.sock.suppress_ragged_eofs = False
        wire.read_request()
        wire.send(OK)
        try:
            heard.append(wire.sock.recv(1))
        finally:
            over.set()

    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client:
            assert client.get("https://tax/").status_code == 200
        assert over.wait(PATIENCE)
        assert heard == [b""]


def test_goodbye_from_the_server_ends_the_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """TLS's end, the TCP connection being open still, ends a body without a length, and its use."""

    def script(wire: Wire) -> None:
        wire.read_request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(2):
            assert client.get("https://tax/").content == b"all of it"
        assert server.connections == 2


def test_garbage_after_the_handshake_is_an_error(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Bytes that are no TLS end the call; what had come before them is no answer."""

    def script(wire: Wire) -> None:
        wire.read_request()
        wire.send(OK[:-1])
        socket.socket.sendall(wire.sock, b"plain text")
        with suppress(OSError):
            wire.sock.recv(1)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.ReadError):
            client.get("https://tax/")


def test_hanging_up_in_the_handshake_is_told(mesh: StaticMesh, driver: Driver) -> None:
    """Who closes before the handshake is done was not reached."""
    with socket.create_server(("127.0.0.1", 0)) as listener, driver.client(mesh) as client:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))

        def hang_up() -> None:
            sock, _ = listener.accept()
            sock.recv(100_000)
            sock.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(MeshConnectError) as caught:
            client.get("https://tax/")
        thread.join(PATIENCE)
    assert caught.value.address == f"127.0.0.1:{port}"


def test_who_was_not_verified_hears_nothing(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Somebody else with a good certificate never hears a byte of what was to be said."""
    heard: list[bytes | None] = []
    context = server_context(authority.root_pem, authority.issue(service_id("billing").uri))

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.settimeout(PATIENCE)
        try:
            with context.wrap_socket(sock, server_side=True) as secure:
                heard.append(secure.recv(100))
        except (ssl.SSLError, OSError):
            heard.append(None)

    with socket.create_server(("127.0.0.1", 0)) as listener, driver.client(mesh) as client:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with pytest.raises(UpstreamMismatchError):
            client.get("https://tax/")
        thread.join(PATIENCE)
    assert heard in ([None], [b""])
