"""
Calling over blocking sockets: our own HTTP/1.1 for `httpx.Client`.

Owns dialling, bodies and waiting in line, for threads; the connection itself is `sockets`', which
one is used `pool`'s.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..exceptions import MeshError
from .carrier import OVER, Answer, Patience, hinted, may_send_again
from .errors import explain_failure, too_many_wait
from .h1 import Reading
from .journey import Journey
from .library import httpx
from .pool import Lane, Pool
from .sockets import Connection, Stream
from .upstreams import MeshLike, Target


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
        endpoints, attempt = journey.course.endpoints, journey.attempt
        with self._lock:
            closed = self._pool.update(endpoints, attempt.limits, begins=attempt.number == 1)
            lane = self._pool.lane(attempt.endpoint)
            found, turn, more = self._take(lane, journey.takes)
        _close(closed)
        _close(more)
        if turn is not None:
            found = self._wait(turn, journey.patience)
        if found is None:
            found = self.connect(lane, journey.patience)
        elif turn is None:
            return found  # looked at already
        if found.is_alive():
            return found
        # It ended before anything was sent over it: this thread came to its turn late.
        found.close()
        return self.connect(found.lane, journey.patience)

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
            self._pool.leave(turn)
        raise httpx.PoolTimeout(f"{self._name}: no connection became free in time")

    def _leave(self, turn: _Turn) -> None:
        with self._lock:
            turn.gone = True
            self._pool.leave(turn)
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
        except (OSError, MeshError, ValueError) as error:  # the last: no address at all
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
            self._forget_resting(target)
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

    def _forget_resting(self, wanted: Target) -> None:
        for target in list(self._lines):
            rests = target.rests and target is not wanted
            line = self._lines.pop(target, None) if rests else None
            if line is not None:
                line.close()

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
        "network_stream": Stream(connection, reading, body.leave),
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
                elif reading.complete or reading.switched:
                    break
                elif self._connection is None:
                    raise httpx.ReadError("the answer was closed before its end")
                else:
                    patience = self._patience
                    if patience.is_over():
                        raise httpx.ReadTimeout(OVER)
                    self._connection.receive(reading, patience.within(patience.read))
        except BaseException:
            self.close()
            raise
        if reading.complete:
            self.finish()

    def __del__(self) -> None:
        # Not here: this may be any thread, in the middle of anything. Who uses an upgraded
        # connection need not keep the answer for it: its stream does.
        if self._connection is not None:
            self._line.orphans.append(self)

    @property
    def over(self) -> bool:
        """Whether the connection was given back, or closed."""
        return self._connection is None

    def finish(self) -> None:
        """Give the connection back; the answer is all there."""
        connection, self._connection = self._connection, None
        if connection is not None:
            reusable = self._reading.reusable and connection.sent_all and not self._closes
            self._line.release(connection, reusable)
        self._end()

    def leave(self) -> None:
        """Count the connection no more, which its user has closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._line.forget()
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
