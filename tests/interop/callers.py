"""
Callers from outside: connections that stay open, over HTTP/1.1, HTTP/2 and WebSocket.

Owns one connection each and the reading of its answers. Uses nothing of the package: OpenSSL,
asyncio, h2 and websockets are the outsiders' own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import h2.config
import h2.connection
import h2.events
import websockets
from cryptography import x509

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Identity:
    """A certificate that an outsider shows; its key stays out of the repr."""

    uri: str
    serial: str
    pem: str = field(repr=False)

    @classmethod
    def of(cls, chain: str, key: str) -> Identity:
        """Read what the certificate in *chain* says."""
        leaf = x509.load_pem_x509_certificate(chain.encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return cls(uri, f"{leaf.serial_number:x}", chain + key)


def outsider_context(
    pem: str | None, *, roots: str | None = None, alpn: str | None = None
) -> ssl.SSLContext:
    """
    An ordinary client context.

    Args:
        pem: certificate and key to show; ``None`` shows none.
        roots: PEM of those it trusts; ``None`` verifies nothing.
        alpn: the one protocol it offers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if roots is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=roots)
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    if pem is not None:
        descriptor, path = tempfile.mkstemp()
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(pem)
            context.load_cert_chain(path)
        finally:
            os.unlink(path)
    return context


@dataclass(frozen=True)
class Answer:
    """Status and body of one answer; a WebSocket's message counts as 200."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Caller(Protocol):
    """One open connection."""

    async def ask(self, *paths: str) -> list[Answer]:
        """Send one request per path, at once where the protocol can, and read the answers."""


class Http1:
    """HTTP/1.1, one request after the other; a new connection when the server closes the old."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port, self._tls = port, tls

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port, ssl=self._tls)

    @property
    def serial(self) -> int:
        """Serial number of the certificate that the server has shown."""
        tls = self._writer.get_extra_info("ssl_object")
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True)).serial_number

    async def close(self) -> None:
        """Disconnect."""
        # Not politely: Hypercorn's trio worker answers a TLS goodbye after the keep-alive timeout.
        self._writer.transport.abort()

    async def ask(self, *paths: str) -> list[Answer]:
        """Send one request after the other."""
        answers: list[Answer] = []
        for path in paths:
            if answers and answers[-1].headers.get("connection") == "close":
                await self.close()
                await self.open()
            answers.append(await self.send("GET", path))
        return answers

    async def send(self, method: str, path: str) -> Answer:
        """Send one request, and read its answer."""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: tax\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await self._body(headers)
        return Answer(int(head[0].split(" ")[1]), body, headers)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += await self._reader.readexactly(size)
            await self._reader.readline()
        await self._reader.readline()
        return body


class Http2:
    """HTTP/2, all requests at once. It always claims the scheme ``https``, plaintext or not."""

    def __init__(self, port: int, tls: ssl.SSLContext | None) -> None:
        self._port, self._tls = port, tls
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._h2.initiate_connection()

    async def open(self) -> None:
        """Connect; over plaintext with prior knowledge."""
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port, ssl=self._tls)

    async def close(self) -> None:
        """Disconnect."""
        # Not politely: Hypercorn's trio worker answers a TLS goodbye after the keep-alive timeout.
        self._writer.transport.abort()

    async def ask(self, *paths: str) -> list[Answer]:
        """Send all requests in streams of their own, then read all answers."""
        streams = [self._open(path) for path in paths]
        self._flush()
        heads: dict[int, dict[str, str]] = {}
        bodies = dict.fromkeys(streams, b"")
        open_streams = set(streams)
        while open_streams:
            data = await self._reader.read(65536)
            if not data:
                raise ConnectionResetError("the connection ended")
            for event in self._h2.receive_data(data):
                self._take(event, heads, bodies, open_streams)
            self._flush()
        return [Answer(int(heads[s][":status"]), bodies[s], heads[s]) for s in streams]

    def _open(self, path: str) -> int:
        stream = self._h2.get_next_available_stream_id()
        names = ((":method", "GET"), (":path", path), (":scheme", "https"))
        self._h2.send_headers(stream, [*names, (":authority", "tax")], end_stream=True)
        return stream

    def _take(
        self,
        event: h2.events.Event,
        heads: dict[int, dict[str, str]],
        bodies: dict[int, bytes],
        open_streams: set[int],
    ) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            heads[event.stream_id] = dict(event.headers)  # type: ignore[arg-type]
        elif isinstance(event, h2.events.DataReceived):
            bodies[event.stream_id] += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            open_streams.discard(event.stream_id)
        elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
            raise ConnectionResetError(f"{event}")

    def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())


class WebSocket:
    """One WebSocket: a path becomes a message, and its answer a message."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self._connection = connection

    async def ask(self, *paths: str) -> list[Answer]:
        """Send one message after the other."""
        answers = []
        for path in paths:
            await self._connection.send(path)
            answers.append(Answer(200, str(await self._connection.recv()).encode()))
        return answers


@asynccontextmanager
async def connect(
    protocol: str, port: int, tls: ssl.SSLContext | None, *, path: str = "/ws"
) -> AsyncIterator[Caller]:
    """
    Open a connection.

    Args:
        protocol: ``h1``, ``h2`` or ``ws``.
        tls: ``None`` for plaintext.
        path: of a WebSocket.
    """
    if protocol == "ws":
        scheme = "wss" if tls else "ws"
        async with websockets.connect(
            f"{scheme}://{HOST}:{port}{path}",
            ssl=tls,
            proxy=None,
            compression=None,
            open_timeout=None,  # in a crowd, on a busy machine: who calls sets the time
            ping_interval=None,
        ) as connection:
            yield WebSocket(connection)
        return
    caller = Http1(port, tls) if protocol == "h1" else Http2(port, tls)
    await caller.open()
    try:
        yield caller
    finally:
        await caller.close()


def knock(
    port: int,
    pem: str | None,
    *,
    path: str = "/who",
    method: str = "GET",
    version: ssl.TLSVersion | None = None,
    tls: bool = True,
) -> bytes:
    """
    Send one HTTP/1.1 request as an outsider who verifies nothing.

    Args:
        pem: certificate and key to show.
        version: the only version of TLS it speaks.
        tls: otherwise plaintext.

    Returns:
        All bytes of the answer; none when the connection ended without one.
    """
    context = outsider_context(pem)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    request = f"{method} {path} HTTP/1.1\r\nHost: tax\r\nConnection: close\r\n\r\n".encode()
    answer = b""
    with suppress(ssl.SSLError, ConnectionError):
        with socket.create_connection((HOST, port), timeout=10) as plain:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(plain) if tls else plain as connection:
                connection.sendall(request)
                while part := connection.recv(65536):
                    answer += part
    return answer
