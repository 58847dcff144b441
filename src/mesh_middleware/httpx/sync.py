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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..exceptions import MeshError
from .carrier import (
    READ_BYTES,
    Answer,
    Patience,
    hinted,
    may_send_again,
    may_stop_sending,
)
from .errors import explain_failure, too_many_wait
from .h1 import Reading
from .journey import Journey
from .library import httpx
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

    def exchange(self, outgoing: Outgoing, patience: Patience) -> Reading:
        """
        Send a request and read the head of its answer.

        Raises:
            httpx.TransportError: as httpx; the connection is of no more use.
        """
        self.requests += 1
        self.wrote = self.heard = self.sent_all = False
        reading = Reading(outgoing.method, outgoing.upgrades)
        try:
            self._send(outgoing, reading, patience)
        except httpx.WriteError:
            # The answer may have come before the other end stopped listening.
            pass
        while not reading.status:
            self.receive(reading, patience.within(patience.read))
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

    def _send(self, outgoing: Outgoing, reading: Reading, patience: Patience) -> None:
        timeout = patience.within(patience.write)
        if outgoing.body is not None:
            self._write_unless_answered(outgoing.head + outgoing.body, reading, timeout)
            self.sent_all = True
            return
        self.write(outgoing.head, timeout)
        for part in outgoing.stream:
            if self._is_answered(reading):
                return
            if framed := outgoing.frame(part):
                timeout = patience.within(patience.write)
                self._write_unless_answered(framed, reading, timeout)
        if end := outgoing.finish():
            self.write(end, patience.within(patience.write))
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

    def __init__(self, takes: Callable[[Lane[Any]], bool]) -> None:
        self._takes = takes
        self.event = threading.Event()
        self.connection: Connection | None = None
        self.gone = False

    def takes(self, lane: Lane[Any]) -> bool:
        return not self.gone and self._takes(lane)

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
        self.orphans: deque[Body] = deque()
        """Answers that were dropped without being closed."""

    def acquire(self, journey: Journey) -> Connection:
        """
        Take a connection that no other thread has.

        Raises:
            MeshConnectError, MeshConnectTimeout: there is none to be had that may answer.
            UpstreamBusyError: as many wait as may.
        """
        while self.orphans:
            with suppress(IndexError):  # another thread was faster
                self.orphans.popleft().close()
        with self._lock:
            closed = self._pool.update(journey.course.endpoints, journey.attempt.limits)
            lane = self._pool.lane(journey.attempt.endpoint)
            found, turn, more = self._take(lane, journey.takes)
        _close(closed)
        _close(more)
        if turn is not None:
            found = self._wait(turn, journey.patience)
        return found if found is not None else self.connect(lane, journey.patience)

    def _take(
        self, lane: Lane[Connection], takes: Callable[[Lane[Any]], bool]
    ) -> tuple[Connection | None, _Turn | None, list[Connection]]:
        found, closed = self._pool.reuse(lane)
        if found is not None or self._pool.admit():
            return found, None, closed
        found, more = self._pool.reuse_any(takes)
        closed += more
        if found is not None or self._pool.admit():
            return found, None, closed
        turn = _Turn(takes)
        turn.gone = not self._pool.may_queue()
        if not turn.gone:
            self._pool.queue(turn)
        return None, turn, closed

    def _wait(self, turn: _Turn, patience: Patience) -> Connection | None:
        if turn.gone:
            raise too_many_wait(self._name)
        try:
            turn.event.wait(patience.within(patience.pool))
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

    def connect(self, lane: Lane[Connection], patience: Patience) -> Connection:
        """
        Make a connection, counted already.

        Raises:
            MeshConnectError, MeshConnectTimeout: there is none to be had that may answer.
        """
        try:
            return self._dial(lane, patience.within(patience.connect))
        except (OSError, MeshError) as error:
            self.forget()
            raise explain_failure(error, self._name, lane.endpoint) from error
        except BaseException:
            self.forget()
            raise

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

    def send(self, journey: Journey) -> Answer:
        """
        Send a request to the instance its attempt names.

        Raises:
            MeshConnectError, MeshConnectTimeout: it could not be reached.
            httpx.TransportError: as httpx.
        """
        outgoing, patience, target = journey.outgoing, journey.patience, journey.target
        line = self._lines.get(target)
        if line is None:
            # Atomic: two threads that come first get the same one.
            line = self._lines.setdefault(target, _Line(target.name, self._mesh, self._limits))
        connection = line.acquire(journey)
        try:
            reading = connection.exchange(outgoing, patience)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            connection.close()
            outgoing.sent |= connection.wrote
            if not may_send_again(connection, outgoing):
                line.forget()
                raise hinted(error, connection, target.name) from error
            connection = line.connect(connection.lane, patience)
            reading = self._exchange(connection, journey, line)
        except BaseException:
            outgoing.sent |= connection.wrote
            connection.close()
            line.forget()
            raise
        return _answer(reading, connection, journey, line)

    def _exchange(self, connection: Connection, journey: Journey, line: _Line) -> Reading:
        try:
            return connection.exchange(journey.outgoing, journey.patience)
        except BaseException:
            journey.outgoing.sent |= connection.wrote
            connection.close()
            line.forget()
            raise

    def close(self) -> None:
        """Close every idle connection; those in use close when their response does."""
        for line in list(self._lines.values()):
            line.close()


def _answer(reading: Reading, connection: Connection, journey: Journey, line: _Line) -> Answer:
    body = Body(connection, reading, journey, line)
    extensions: dict[str, Any] = {
        "http_version": reading.version,
        "reason_phrase": reading.reason,
        "network_stream": Stream(connection, reading),
    }
    endpoint, whole = connection.lane.endpoint, None
    if reading.complete:
        body.finish()
        whole = reading.whole()
    return Answer(reading.status, reading.headers, body, extensions, endpoint, whole)


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
        journey: Journey,
        line: _Line,
    ) -> None:
        self._connection: Connection | None = connection
        self._reading = reading
        self._patience = journey.patience
        self._line = line
        self._closes = journey.outgoing.closes
        self.ended: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[bytes]:
        reading = self._reading
        try:
            while True:
                if reading.parts:
                    yield reading.take()
                elif reading.complete or self._connection is None or reading.switched:
                    break
                else:
                    patience = self._patience
                    self._connection.receive(reading, patience.within(patience.read))
        except BaseException:
            self.close()
            raise
        if reading.complete:
            self.finish()

    def __del__(self) -> None:
        # Not here: this may be any thread, in the middle of anything. An upgraded connection is
        # its user's, who need not keep the answer for it.
        if self._connection is not None and not self._reading.switched:
            self._line.orphans.append(self)

    def finish(self) -> None:
        """Give the connection back; the answer is all there."""
        connection, self._connection = self._connection, None
        if connection is not None:
            reusable = self._reading.reusable and connection.sent_all and not self._closes
            self._line.release(connection, reusable)
        self._end()

    def _end(self) -> None:
        ended, self.ended = self.ended, None
        if ended is not None:
            ended()

    def close(self) -> None:
        """Give the connection back, or close it when the answer was not read to its end."""
        if self._reading.complete:
            self.finish()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._line.forget()
        self._end()


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
