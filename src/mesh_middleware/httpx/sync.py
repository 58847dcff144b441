"""
Calling over blocking sockets: our own HTTP/1.1 for `httpx.Client`.

Owns connections, bodies and waiting in line, for threads. Which connection is used is `pool`'s
business, what bytes mean is `wire`'s and `h1`'s.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import httpx

from ..exceptions import MeshError
from ..resolve import Endpoint
from .carrier import (
    CONNECT_ATTEMPTS,
    READ_BYTES,
    Answer,
    Timeouts,
    hinted,
    may_send_again,
    may_stop_sending,
)
from .errors import explain_failure
from .h1 import Reading
from .pool import Lane, Pool, retirement
from .upstreams import MeshLike, Target
from .wire import Outgoing


class Connection:
    """
    One TLS connection to one instance, whose identity was verified.

    Args:
        sock: after the handshake.
        lane: the instance.
        generation: of leaf and roots when it was dialled.
    """

    def __init__(self, sock: ssl.SSLSocket, lane: Lane[Any], generation: int) -> None:
        self.sock = sock
        self.lane = lane
        self.generation = generation
        self.retire_at = retirement(sock)
        self.idle_since = 0.0
        self.requests = 0
        self.wrote = False
        self.heard = False
        self.sent_all = False
        self._timeout: float | None = sock.gettimeout()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def is_usable(self) -> bool:
        """Whether the other end neither closed it nor said something unasked."""
        if not self._poll.poll(0):
            return True
        try:
            self._set_timeout(0.0)
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            # A ticket or a key update: TLS's own business.
            return True
        except OSError:
            return False
        return False

    def exchange(self, outgoing: Outgoing, timeouts: Timeouts) -> Reading:
        """
        Send a request and read the head of its answer.

        Raises:
            httpx.TransportError: as httpx; the connection is of no more use.
        """
        self.requests += 1
        self.wrote = self.heard = self.sent_all = False
        reading = Reading(outgoing.method, outgoing.upgrades)
        read_timeout = timeouts.get("read")
        try:
            self._send(outgoing, reading, timeouts.get("write"))
        except httpx.WriteError:
            # The answer may have come before the other end stopped listening.
            pass
        while not reading.status:
            self.receive(reading, read_timeout)
        return reading

    def receive(self, reading: Reading, timeout: float | None) -> None:
        """Read once."""
        self._set_timeout(timeout)
        try:
            data = self.sock.recv(READ_BYTES)
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpx.ReadError(str(error)) from error
        if data:
            self.heard = True
            reading.feed(data)
        else:
            reading.end()

    def write(self, data: bytes, timeout: float | None) -> None:
        """Write all of *data*."""
        self._set_timeout(timeout)
        try:
            sent = self.sock.send(data)
            self.wrote = True
            if sent < len(data):
                rest = memoryview(data)[sent:]
                while rest:
                    rest = rest[self.sock.send(rest) :]
        except TimeoutError as error:
            raise httpx.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpx.WriteError(str(error)) from error

    def close(self) -> None:
        """Close it, telling the other end if that costs no waiting."""
        with suppress(OSError, ValueError):
            self._set_timeout(0.0)
            self.sock.unwrap()
        with suppress(OSError):
            self.sock.close()

    def _send(self, outgoing: Outgoing, reading: Reading, timeout: float | None) -> None:
        if outgoing.body is not None:
            self._write_unless_answered(outgoing.head + outgoing.body, reading, timeout)
            self.sent_all = True
            return
        self.write(outgoing.head, timeout)
        for part in outgoing.stream:
            if self._is_answered(reading):
                return
            if framed := outgoing.frame(part):
                self._write_unless_answered(framed, reading, timeout)
        if end := outgoing.finish():
            self.write(end, timeout)
        self.sent_all = True

    def _write_unless_answered(self, data: bytes, reading: Reading, timeout: float | None) -> None:
        try:
            self.write(data, timeout)
        except httpx.WriteTimeout as error:
            # It does not take the rest; perhaps because it has said why already.
            if not self._is_answered(reading):
                raise
            raise httpx.WriteError(str(error)) from error

    def _is_answered(self, reading: Reading) -> bool:
        while not reading.status and self._poll.poll(0):
            try:
                self.receive(reading, 0.0)
            except httpx.ReadError as error:
                if isinstance(error.__cause__, ssl.SSLWantReadError):
                    break
                raise httpx.WriteError(str(error)) from error
        return may_stop_sending(reading.status)

    def _set_timeout(self, timeout: float | None) -> None:
        if timeout != self._timeout:
            self.sock.settimeout(timeout)
            self._timeout = timeout


class _Turn:
    """A thread in line. `give` is called under the pool's lock, and so is all that reads it."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.connection: Connection | None = None
        self.gone = False

    def give(self, connection: Connection | None) -> bool:
        if self.gone:
            return False
        self.connection = connection
        self.event.set()
        return True


class _Line:
    """The connections to one upstream, for threads."""

    def __init__(self, name: str, mesh: MeshLike, limits: httpx.Limits) -> None:
        self._name = name
        self._mesh = mesh
        self._pool: Pool[Connection] = Pool(mesh, limits)
        self._lock = threading.Lock()

    def acquire(self, endpoints: Sequence[Endpoint], timeouts: Timeouts) -> tuple[Connection, int]:
        """Take a connection that no other thread has, and tell how many instances were tried."""
        with self._lock:
            closed = self._pool.update(endpoints)
            lane = self._pool.choose()
            assert lane is not None, "an upstream without instances is refused before"
            found, turn, more = self._take(lane)
        _close(closed)
        _close(more)
        if turn is not None:
            found = self._wait(turn, timeouts.get("pool"))
        return (found, 1) if found is not None else self.connect(timeouts, lane)

    def _take(
        self, lane: Lane[Connection]
    ) -> tuple[Connection | None, _Turn | None, list[Connection]]:
        found, closed = self._pool.reuse(lane)
        if found is not None or self._pool.admit():
            return found, None, closed
        found, more = self._pool.reuse_any()
        closed += more
        if found is not None or self._pool.admit():
            return found, None, closed
        turn = _Turn()
        self._pool.queue(turn)
        return None, turn, closed

    def _wait(self, turn: _Turn, timeout: float | None) -> Connection | None:
        try:
            turn.event.wait(timeout)
        except BaseException:
            self._leave(turn)
            raise
        with self._lock:
            turn.gone = True
            if turn.event.is_set():
                return turn.connection
        raise httpx.PoolTimeout(f"{self._name}: no connection became free in time")

    def _leave(self, turn: _Turn) -> None:
        with self._lock:
            turn.gone = True
            given = turn.event.is_set()
            if given and turn.connection is None:
                self._pool.forget()
        if given and turn.connection is not None:
            self.release(turn.connection, True)

    def connect(
        self, timeouts: Timeouts, lane: Lane[Connection] | None = None
    ) -> tuple[Connection, int]:
        """
        Make a connection, counted already, to *lane*, or else to another instance.

        Raises:
            MeshConnectError, MeshConnectTimeout: none could be reached that may answer.
        """
        tried: list[Lane[Connection]] = []
        failure: Exception | None = None
        try:
            while len(tried) < CONNECT_ATTEMPTS:
                with self._lock:
                    lane = lane or self._pool.choose(tried)
                if lane is None:
                    break
                tried.append(lane)
                try:
                    return self._dial(lane, timeouts.get("connect")), len(tried)
                except (OSError, MeshError) as error:
                    failure = explain_failure(error, self._name, lane.endpoint)
                    failure.__cause__ = error
                    lane = None
        except BaseException:
            self.forget()
            raise
        self.forget()
        assert failure is not None
        raise failure

    def _dial(self, lane: Lane[Connection], timeout: float | None) -> Connection:
        endpoint, generation = lane.endpoint, self._mesh.generation
        sock = socket.create_connection((endpoint.host, endpoint.port), timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            context = lane.context(generation)
            return Connection(
                context.wrap_socket(sock, server_hostname=lane.server_name), lane, generation
            )
        except BaseException:
            sock.close()
            raise

    def release(self, connection: Connection, reusable: bool) -> None:
        """Give a connection back."""
        with self._lock:
            closed = self._pool.give_back(connection, reusable)
        _close(closed)

    def forget(self) -> None:
        """Tell that a connection is no more."""
        with self._lock:
            self._pool.forget()

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            closed = self._pool.clear()
        _close(closed)


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


class SyncCarrier:
    """
    Carries calls over connections of our own.

    Args:
        mesh: gives contexts and generations.
        limits: httpx's; they hold for each upstream.
    """

    def __init__(self, mesh: MeshLike, limits: httpx.Limits) -> None:
        self._mesh = mesh
        self._limits = limits
        self._lines: dict[Target, _Line] = {}

    def send(self, request: httpx.Request, target: Target, endpoints: Sequence[Endpoint]) -> Answer:
        """
        Send *request* to one of *endpoints*; another is dialled when one cannot be reached.

        Raises:
            MeshConnectError, MeshConnectTimeout: none could be reached.
            httpx.TransportError: as httpx.
        """
        outgoing = Outgoing(request)
        timeouts: Timeouts = request.extensions.get("timeout") or {}
        line = self._lines.get(target)
        if line is None:
            # Atomic: two threads that come first get the same one.
            line = self._lines.setdefault(target, _Line(target.name, self._mesh, self._limits))
        connection, attempts = line.acquire(endpoints, timeouts)
        try:
            reading = connection.exchange(outgoing, timeouts)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            connection.close()
            if not may_send_again(connection, outgoing):
                line.forget()
                raise hinted(error, connection, target.name) from error
            connection, attempts = line.connect(timeouts)
            reading = self._exchange(connection, outgoing, timeouts, line)
        except BaseException:
            connection.close()
            line.forget()
            raise
        return _answer(reading, connection, outgoing, timeouts, line, attempts)

    def _exchange(
        self, connection: Connection, outgoing: Outgoing, timeouts: Timeouts, line: _Line
    ) -> Reading:
        try:
            return connection.exchange(outgoing, timeouts)
        except BaseException:
            connection.close()
            line.forget()
            raise

    def close(self) -> None:
        """Close every idle connection; those in use close when their response does."""
        for line in list(self._lines.values()):
            line.close()


def _answer(
    reading: Reading,
    connection: Connection,
    outgoing: Outgoing,
    timeouts: Timeouts,
    line: _Line,
    attempts: int,
) -> Answer:
    body = Body(connection, reading, timeouts.get("read"), line, outgoing.closes)
    extensions: dict[str, Any] = {
        "http_version": reading.version,
        "reason_phrase": reading.reason,
        "network_stream": Stream(connection, reading),
    }
    endpoint = connection.lane.endpoint
    if reading.complete:
        body.finish()
    return Answer(reading.status, reading.headers, body, extensions, endpoint, attempts)


class Body(httpx.SyncByteStream):
    """
    The body of an answer, read as it is asked for.

    The connection goes back to its pool as soon as all of it has come, which for a short answer is
    before anybody asks.
    """

    def __init__(
        self,
        connection: Connection,
        reading: Reading,
        timeout: float | None,
        line: _Line,
        closes: bool,
    ) -> None:
        self._connection: Connection | None = connection
        self._reading = reading
        self._timeout = timeout
        self._line = line
        self._closes = closes

    def __iter__(self) -> Iterator[bytes]:
        reading = self._reading
        try:
            while True:
                if reading.parts:
                    yield reading.take()
                elif reading.complete or self._connection is None or reading.switched:
                    break
                else:
                    self._connection.receive(reading, self._timeout)
        except BaseException:
            self.close()
            raise
        if reading.complete:
            self.finish()

    def finish(self) -> None:
        """Give the connection back; the answer is all there."""
        connection, self._connection = self._connection, None
        if connection is not None:
            reusable = self._reading.reusable and connection.sent_all and not self._closes
            self._line.release(connection, reusable)

    def close(self) -> None:
        """Give the connection back, or close it when the answer was not read to its end."""
        if self._reading.complete:
            self.finish()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._line.forget()


class Stream:
    """
    ``response.extensions["network_stream"]``: facts about the connection, and after an Upgrade or
    CONNECT the connection itself.
    """

    def __init__(self, connection: Connection, reading: Reading) -> None:
        self._connection = connection
        self._reading = reading

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """
        Read from an upgraded connection; empty at its end.

        Raises:
            RuntimeError: the connection was not upgraded.
        """
        reading = self._upgraded()
        if not reading.rest:
            self._connection.receive(reading, timeout)
        data, reading.rest = reading.rest[:max_bytes], reading.rest[max_bytes:]
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """
        Write to an upgraded connection.

        Raises:
            RuntimeError: the connection was not upgraded.
        """
        self._upgraded()
        if buffer:
            self._connection.write(buffer, timeout)

    def close(self) -> None:
        """Close an upgraded connection; of others the response is closed instead."""
        if self._reading.switched:
            self._connection.close()

    def get_extra_info(self, info: str) -> Any:
        """Tell ``ssl_object``, ``client_addr`` or ``server_addr``, as httpcore does."""
        sock = self._connection.sock
        known = {
            "ssl_object": lambda: sock,
            "client_addr": sock.getsockname,
            "server_addr": sock.getpeername,
        }
        return known[info]() if info in known else None

    def _upgraded(self) -> Reading:
        if not self._reading.switched:
            raise RuntimeError("only an upgraded connection is read and written directly")
        return self._reading
