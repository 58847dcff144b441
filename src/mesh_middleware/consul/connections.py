"""
The connections to one agent: HTTP/1.1 over TCP, TLS or a unix socket, for one event loop.

Owns dialling, one exchange at a time on each connection, and those that nobody uses now. Knows
nothing of what is asked, and has no limit on time but for dialling.

Theory. httpx could do it, and does where it is asked to (`transport`). But httpx and what it stands
on took half of the time that a server of the mesh needed to start, and an agent needs little of it:
no proxy, no redirect, no cookie, no compression, no HTTP/2. h11, which httpx reads with, too,
is the judge of what an answer means. An answer is read as it comes, not as it is asked for, since
somebody always waits for it; so a limit on its size is all that bounds the memory it takes. A
connection is used again only when the answer has ended where h11 says, and not a byte came since.

Source: RFC 9112.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import quote, unquote, urlsplit

import h11

from ..exceptions import AgentAnswerError

CONNECT_TIMEOUT = 5.0
"""Seconds to reach the agent, which is on this machine or near."""
MAX_IDLE = 20
"""Connections kept for another question."""
IDLE_SECONDS = 5.0
"""Longest time a connection is kept so: proxies forget those that are silent, without a word."""
MAX_HEAD_BYTES = 100 * 1024
"""Longest head, chunk header or trailer of an answer."""

_IN_PATHS = "/%:@!$&'()*+,;=~"
"""What paths may hold besides letters and digits. Source: RFC 3986, 3.3."""


class Request(NamedTuple):
    """
    What is sent.

    Args:
        method: HTTP method.
        target: escaped path and query.
        headers: all but ``Host``.
        body: may be empty.
    """

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""


class Head(NamedTuple):
    """
    How an answer begins.

    Args:
        status: HTTP status.
        headers: by lower-case name; repeats joined by comma.
    """

    status: int
    headers: Mapping[str, str]


class Exchange(Protocol):
    """A question that was sent, and its answer as it comes."""

    async def head(self) -> Head:
        """
        Wait for the head of the answer.

        Raises:
            AgentAnswerError: the answer is over the limit.
            OSError: the connection broke, or what came is no HTTP/1.1.
        """
        ...

    async def body(self) -> bytes:
        """Wait for the end of the answer; raises as `head`."""
        ...


class Way(Protocol):
    """How an agent is reached."""

    def exchange(self, request: Request, most: int) -> AbstractAsyncContextManager[Exchange]:
        """
        Send *request*; the answer is read in the block, and given up at its end.

        Args:
            most: largest body in bytes that is read.

        Raises:
            OSError: the agent could not be reached.
        """
        ...

    async def close(self) -> None:
        """End all connections."""
        ...


class Connections:
    """
    The way to an agent over the network.

    Args:
        agent: ``http://``, ``https://`` or ``unix://`` address.
        context: for TLS; ``None`` for an agent without.
        server_name: verified in the agent's certificate; the host of *agent* unless given.
        connect_timeout: seconds for dialling.
        idle_seconds: that a connection is kept for another question.
        most_idle: connections that are kept so.
    """

    def __init__(
        self,
        agent: str,
        context: ssl.SSLContext | None = None,
        server_name: str = "",
        *,
        connect_timeout: float = CONNECT_TIMEOUT,
        idle_seconds: float = IDLE_SECONDS,
        most_idle: int = MAX_IDLE,
    ) -> None:
        parts = urlsplit(agent)
        self._context, self._path = context, ""
        self._idle, self._open = list[_Connection](), set[_Connection]()
        self._closed = False
        self._connect_timeout = connect_timeout
        self._idle_seconds, self._most_idle = idle_seconds, most_idle
        if parts.scheme == "unix":
            # Consul's own clients send Host: localhost there.
            self._path, self._host, self._prefix = unquote(parts.path), "localhost", ""
            return
        name, usual = parts.hostname or "", 443 if parts.scheme == "https" else 80
        # As bytes: text takes a codec to be resolved, and its loading takes longer than the agent.
        self._name = name.encode("ascii" if name.isascii() else "idna")
        self._port = parts.port or usual
        shown = f"[{name}]" if ":" in name else self._name.decode()
        self._host = shown if self._port == usual else f"{shown}:{self._port}"
        self._prefix = quote(parts.path.rstrip("/"), safe=_IN_PATHS)
        self._server_name = None
        if context is not None:
            context.set_alpn_protocols(["http/1.1"])
            self._server_name = server_name or self._name.decode()

    @asynccontextmanager
    async def exchange(self, request: Request, most: int) -> AsyncIterator[Exchange]:
        """Send *request*; as `Way` says."""
        connection = self._take_idle() or await self._connect()
        try:
            connection.ask(request, self._host, self._prefix, most)
            yield connection
        finally:
            if connection.reusable() and len(self._idle) < self._most_idle and not self._closed:
                connection.since = asyncio.get_running_loop().time()
                self._idle.append(connection)
            else:
                self._drop(connection)

    async def close(self) -> None:
        """End all connections, also those that are being made."""
        self._closed = True
        self._idle.clear()
        for connection in list(self._open):
            self._drop(connection)
        for _ in range(3):
            await asyncio.sleep(0)  # transports close in the next rounds of the loop

    def _drop(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.abort()

    def _take_idle(self) -> _Connection | None:
        until = asyncio.get_running_loop().time() - self._idle_seconds
        while self._idle:
            connection = self._idle.pop()
            if connection.since >= until and connection.reusable():
                return connection
            self._drop(connection)
        return None

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await (self._dial_path() if self._path else self._dial_host())
        except TimeoutError:
            raise ConnectionError("no connection in time") from None
        if self._closed:
            connection.abort()
            raise ConnectionError("closed while connecting")
        self._open.add(connection)
        return connection

    async def _dial_path(self) -> _Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_unix_connection(_Connection, self._path))[1]

    async def _dial_host(self) -> _Connection:
        loop = asyncio.get_running_loop()
        sock = await self._first_that_answers()
        _, connection = await loop.create_connection(
            _Connection, sock=sock, ssl=self._context, server_hostname=self._server_name
        )
        return connection

    async def _first_that_answers(self) -> socket.socket:
        addresses = await self._addresses()
        failed: OSError = ConnectionError("the host has no address")
        for family, _, protocol, _, address in addresses:
            try:
                # One that is silent must not use up the time of all.
                async with asyncio.timeout(self._connect_timeout / len(addresses)):
                    return await _dial(family, protocol, address)
            except OSError as error:
                failed = error
        raise failed

    async def _addresses(self) -> list[Any]:
        where = self._name, self._port
        try:
            numeric = socket.AI_NUMERICHOST  # asks nobody, so that it may be done here
            return socket.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=numeric)
        except socket.gaierror:
            loop = asyncio.get_running_loop()
            try:
                return await loop.getaddrinfo(*where, type=socket.SOCK_STREAM)
            except RuntimeError:
                # The process ends, and begins no threads any more: nobody else waits for this one.
                return socket.getaddrinfo(*where, type=socket.SOCK_STREAM)


class _Connection(asyncio.Protocol):
    """
    One connection, and the exchange that is on it.

    Attributes:
        since: moment of the loop at which it was put aside.
    """

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self.since = 0.0
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._lost = False
        self._most = 0
        self._head: Head | None = None
        self._body = bytearray()
        self._failed: Exception | None = None
        self._begun, self._ended = asyncio.Event(), asyncio.Event()
        self._ended.set()

    def ask(self, request: Request, host: str, prefix: str, most: int) -> None:
        """Send *request*, and take its answer from now on."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        self._most, self._head, self._body, self._failed = most, None, bytearray(), None
        self._begun.clear()
        self._ended.clear()
        headers = [("Host", host), *request.headers]
        if request.body:
            headers.append(("Content-Length", str(len(request.body))))
        asked = h11.Request(method=request.method, target=prefix + request.target, headers=headers)
        events = (asked, h11.Data(data=request.body), h11.EndOfMessage())
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    async def head(self) -> Head:
        await self._begun.wait()
        if self._failed is not None:
            raise self._failed
        assert self._head is not None
        return self._head

    async def body(self) -> bytes:
        await self._ended.wait()
        if self._failed is not None:
            raise self._failed
        return bytes(self._body)

    def reusable(self) -> bool:
        """Whether it can carry another exchange: the last one has ended, and nothing came since."""
        done = self._http.our_state is h11.DONE and self._http.their_state is h11.DONE
        return done and not self._lost and self._http.trailing_data == (b"", False)

    def abort(self) -> None:
        """End it at once."""
        self._lost = True
        self._transport.abort()

    # -- what asyncio tells --------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._ended.is_set():
            self.abort()  # nobody has asked
        else:
            self._read(data, "what came is no HTTP/1.1")

    def eof_received(self) -> None:
        if not self._ended.is_set():
            self._read(b"", "the connection ended before the answer did")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if not self._ended.is_set():
            self._fail(exc or ConnectionResetError("the connection ended before the answer did"))

    def _read(self, data: bytes, what: str) -> None:
        try:
            self._http.receive_data(data)
            while not self._ended.is_set():
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                self._take(event)
        except h11.ProtocolError as error:
            self._fail(ConnectionError(f"{what}: {error}"))

    def _take(self, event: Any) -> None:
        match event:
            case h11.Response():
                self._head = Head(event.status_code, _joined(event.headers))
                self._begun.set()
            case h11.Data():
                self._body += event.data
                if len(self._body) > self._most:
                    text = f"answer over {self._most} bytes (max_answer_bytes)"
                    self._fail(AgentAnswerError(text))
                    self.abort()
            case h11.EndOfMessage():
                self._ended.set()
            case h11.ConnectionClosed():  # pragma: no cover - h11 raises while an answer is due
                self._fail(ConnectionError("the connection ended before the answer did"))

    def _fail(self, error: Exception) -> None:
        self._failed = error
        self._begun.set()
        self._ended.set()


async def _dial(family: int, protocol: int, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    try:
        sock.setblocking(False)
        for level, name, value in _keepalive():
            sock.setsockopt(level, name, value)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _keepalive() -> Iterator[tuple[int, int, int]]:
    """A host that died without a word is noticed in half a minute, not at the end of the wait."""
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            yield socket.IPPROTO_TCP, getattr(socket, name), value


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found
