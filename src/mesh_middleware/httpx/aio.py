"""
Calling on asyncio and uvloop: our own HTTP/1.1 for `httpx.AsyncClient`.

Owns waiting in line and dialling; the connection itself is `protocol`'s, which one is used
`pool`'s. Other event loops are served by `stock`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from ..exceptions import MeshError
from .carrier import OVER, Answer, Patience, hinted, may_send_again
from .errors import explain_failure, too_many_wait
from .h1 import Reading
from .journey import Journey
from .library import httpx
from .pool import Lane, Pool
from .protocol import HIGH_WATER, Connection, Stream
from .sealed import CLOSING_PATIENCE
from .upstreams import MeshLike, Target


class _Turn:
    """A task in line."""

    def __init__(self, loop: asyncio.AbstractEventLoop, takes: Callable[[Lane[Any]], bool]) -> None:
        self._takes = takes
        self.future: asyncio.Future[Connection | None] = loop.create_future()

    def takes(self, lane: Lane[Any]) -> bool:
        return not self.future.done() and self._takes(lane)

    def give(self, connection: Connection | None) -> bool:
        if self.future.done():
            return False
        self.future.set_result(connection)
        return True


class _Line:
    """The connections to one upstream, for tasks of one loop."""

    def __init__(self, name: str, carrier: AsyncCarrier) -> None:
        self._name = name
        self._carrier = carrier
        self._pool: Pool[Connection] = Pool(carrier.mesh, carrier.limits)
        self.orphans: deque[Body] = deque()
        """Answers that were dropped without being closed."""

    def reuse(self, journey: Journey) -> Connection | None:
        """Take an idle connection, if there is one, to the instance that the attempt names."""
        pool, attempt = self._pool, journey.attempt
        while self.orphans:
            self.orphans.popleft().end()
        endpoints, begins = journey.course.endpoints, attempt.number == 1
        _close(pool.update(endpoints, attempt.limits, begins=begins))
        found, closed = pool.reuse(pool.lane(attempt.endpoint))
        _close(closed)
        return found

    async def acquire(self, journey: Journey) -> Connection:
        """
        Take a connection that no other task has, where there is none to `reuse`.

        Raises:
            MeshConnectError, MeshConnectTimeout: there is none to be had that may answer.
            UpstreamBusyError: as many wait as may.
        """
        pool, found = self._pool, None
        lane = pool.lane(journey.attempt.endpoint)
        if not pool.admit():
            found, closed = pool.reuse_any(journey.takes)
            _close(closed)
            if found is None and not pool.admit():
                found = await self._wait(journey)
        if found is None:
            found = await self.connect(lane, journey.patience)
        try:
            if await found.is_alive():
                return found
        except BaseException:
            self.drop(found)
            raise
        # It ended before anything was sent over it: this task came to its turn late.
        found.abort()
        return await self.connect(found.lane, journey.patience)

    async def _wait(self, journey: Journey) -> Connection | None:
        if not self._pool.may_queue():
            raise too_many_wait(self._name)
        turn = _Turn(asyncio.get_running_loop(), journey.takes)
        self._pool.queue(turn)
        patience = journey.patience
        try:
            async with asyncio.timeout(patience.within(patience.pool)):
                return await turn.future
        except BaseException as error:
            self._leave(turn)
            if isinstance(error, TimeoutError):
                message = f"{self._name}: no connection became free in time"
                raise httpx.PoolTimeout(message) from error
            raise

    def _leave(self, turn: _Turn) -> None:
        # The turn may have come in the very moment it was given up: pass on what was given.
        self._pool.leave(turn)
        if not turn.future.done():
            turn.future.cancel()
        elif not turn.future.cancelled():
            given = turn.future.result()
            if given is None:
                self._pool.forget()
            else:
                self.release(given, True)

    async def connect(self, lane: Lane[Connection], patience: Patience) -> Connection:
        """
        Make a connection, counted already.

        Raises:
            MeshConnectError, MeshConnectTimeout: there is none to be had that may answer.
        """
        try:
            return await self._dial(lane, patience.within(patience.connect))
        except (OSError, MeshError, ValueError) as error:  # the last: no address at all
            self._pool.forget()
            raise explain_failure(error, self._name, lane.endpoint) from error
        except BaseException:
            self._pool.forget()
            raise

    async def _dial(self, lane: Lane[Connection], patience: float | None) -> Connection:
        endpoint, carrier = lane.endpoint, self._carrier
        generation, loop = carrier.mesh.generation, asyncio.get_running_loop()
        connection = Connection(loop, lane, generation, carrier.live, carrier.buffer)
        async with asyncio.timeout(patience):
            await loop.create_connection(lambda: connection, endpoint.host, endpoint.port)
            await connection.shake_hands()
        return connection

    def release(self, connection: Connection, reusable: bool) -> None:
        """Give a connection back."""
        _close(self._pool.give_back(connection, reusable))

    def drop(self, connection: Connection) -> None:
        """Cut a connection in use."""
        connection.abort()
        self._pool.forget()

    def forget(self) -> None:
        """Tell that a connection is no more."""
        self._pool.forget()

    def close(self) -> None:
        """Close what is idle."""
        _close(self._pool.clear())


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


class AsyncCarrier:
    """
    Carries calls over connections of our own, on one event loop.

    Args:
        mesh: gives contexts and generations.
        limits: httpx's; they hold for each upstream.
        loop: all is done on it, but for `leave`.
    """

    def __init__(
        self, mesh: MeshLike, limits: httpx.Limits, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.mesh = mesh
        self.limits = limits
        self.loop = loop
        self.live: set[Connection] = set()
        self.buffer = memoryview(bytearray(HIGH_WATER))
        self._lines: dict[Target, _Line] = {}

    async def send(self, journey: Journey) -> Answer:
        """
        Send a request to the instance its attempt names.

        Raises:
            MeshConnectError, MeshConnectTimeout: it could not be reached.
            httpx.TransportError: as httpx.
        """
        outgoing, patience, target = journey.outgoing, journey.patience, journey.target
        line = self._lines.get(target)
        if line is None:
            line = self._lines[target] = _Line(target.name, self)
            for other in list(self._lines):
                if other.rests and other is not target:
                    self._lines.pop(other).close()
        connection = line.reuse(journey) or await line.acquire(journey)
        try:
            reading = await connection.exchange(outgoing, patience)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            outgoing.sent |= connection.wrote
            if not may_send_again(connection, outgoing):
                line.drop(connection)
                raise hinted(error, connection, target.name) from error
            connection.abort()
            connection = await line.connect(connection.lane, patience)
            reading = await self._exchange(connection, journey, line)
        except BaseException:
            outgoing.sent |= connection.wrote
            line.drop(connection)
            raise
        return _answer(reading, connection, journey, line)

    async def _exchange(self, connection: Connection, journey: Journey, line: _Line) -> Reading:
        try:
            return await connection.exchange(journey.outgoing, journey.patience)
        except BaseException:
            journey.outgoing.sent |= connection.wrote
            line.drop(connection)
            raise

    def retire(self) -> list[Any]:
        """Close what is idle now, and the rest when it is, from any thread; nothing is left."""
        self._soon(self._close_idle)
        return []

    def leave(self) -> None:
        """Close every connection, from any thread."""
        self._soon(self._cut)

    def _soon(self, work: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and took the connections with it
            self.loop.call_soon_threadsafe(work)

    def _close_idle(self) -> None:
        for line in self._lines.values():
            line.close()

    def _cut(self) -> None:
        self._close_idle()
        for connection in list(self.live):
            if connection.reading is not None:
                connection.abort()

    async def aclose(self) -> None:
        """Close every connection, and see that they are closed."""
        leaving = list(self.live)
        self._cut()
        if leaving:
            _, late = await asyncio.wait(
                [connection.lost for connection in leaving], timeout=CLOSING_PATIENCE
            )
            if late:
                for connection in leaving:
                    connection.abort()
                await asyncio.wait(late, timeout=CLOSING_PATIENCE)


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


class Body(httpx.AsyncByteStream):
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

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reading = self._reading
        try:
            while True:
                if reading.parts:
                    part = reading.take()
                    if self._connection is not None:
                        self._connection.resume(reading)
                    yield part
                elif reading.complete or reading.switched:
                    break
                elif self._connection is None:
                    raise httpx.ReadError("the answer was closed before its end")
                else:
                    patience = self._patience
                    if patience.is_over():
                        raise httpx.ReadTimeout(OVER)
                    await self._connection.receive(reading, patience.within(patience.read))
        except BaseException:
            self.end()
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
            connection.settle()
            self._line.release(connection, reusable)
        self._tell()

    def leave(self) -> None:
        """Count the connection no more, which its user has closed."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._line.forget()
        self._tell()

    def _tell(self) -> None:
        ended, self.ended = self.ended, None
        if ended is not None:
            ended()

    def end(self) -> None:
        """Give the connection back, or cut it when the answer was not read to its end."""
        if self._reading.complete:
            self.finish()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._line.drop(connection)
        self._tell()

    async def aclose(self) -> None:
        """Do as `end`."""
        self.end()
