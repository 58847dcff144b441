"""
Calling on asyncio and uvloop: our own HTTP/1.1 for `httpx.AsyncClient`.

Owns waiting in line and dialling; the connection itself is `protocol`'s, which one is used
`pool`'s. Other event loops are served by `stock`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx

from ..exceptions import MeshError
from ..resolve import Endpoint
from .carrier import CONNECT_ATTEMPTS, Answer, Timeouts, hinted, may_send_again
from .errors import explain_failure
from .h1 import Reading
from .pool import Lane, Pool
from .protocol import Connection, Stream
from .upstreams import MeshLike, Target
from .wire import Outgoing

CLOSING_PATIENCE = 1.0
"""Seconds that connections may take to say goodbye when the client is closed."""


class _Turn:
    """A task in line."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Connection | None] = loop.create_future()

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

    async def acquire(
        self, endpoints: Sequence[Endpoint], timeouts: Timeouts
    ) -> tuple[Connection, int]:
        """Take a connection that no other task has, and tell how many instances were tried."""
        pool = self._pool
        _close(pool.update(endpoints))
        lane = pool.choose()
        assert lane is not None, "an upstream without instances is refused before"
        found, closed = pool.reuse(lane)
        if found is None and not pool.admit():
            found, more = pool.reuse_any()
            closed += more
            if found is None and not pool.admit():
                found = await self._wait(timeouts.get("pool"))
        if closed:
            _close(closed)
        return (found, 1) if found is not None else await self.connect(timeouts, lane)

    async def _wait(self, patience: float | None) -> Connection | None:
        turn = _Turn(asyncio.get_running_loop())
        self._pool.queue(turn)
        try:
            async with asyncio.timeout(patience):
                return await turn.future
        except BaseException as error:
            self._leave(turn)
            if isinstance(error, TimeoutError):
                message = f"{self._name}: no connection became free in time"
                raise httpx.PoolTimeout(message) from error
            raise

    def _leave(self, turn: _Turn) -> None:
        # The turn may have come in the very moment it was given up: pass on what was given.
        if not turn.future.done():
            turn.future.cancel()
        elif not turn.future.cancelled():
            given = turn.future.result()
            if given is None:
                self._pool.forget()
            else:
                self.release(given, True)

    async def connect(
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
                lane = lane or self._pool.choose(tried)
                if lane is None:
                    break
                tried.append(lane)
                try:
                    return await self._dial(lane, timeouts.get("connect")), len(tried)
                except (OSError, MeshError) as error:
                    failure = explain_failure(error, self._name, lane.endpoint)
                    failure.__cause__ = error
                    lane = None
        except BaseException:
            self._pool.forget()
            raise
        self._pool.forget()
        assert failure is not None
        raise failure

    async def _dial(self, lane: Lane[Connection], patience: float | None) -> Connection:
        endpoint, generation = lane.endpoint, self._carrier.mesh.generation
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(patience):
            _, connection = await loop.create_connection(
                lambda: Connection(loop, lane, generation, self._carrier.live),
                endpoint.host,
                endpoint.port,
                ssl=lane.context(generation),
                server_hostname=lane.server_name,
                ssl_shutdown_timeout=CLOSING_PATIENCE,
            )
        return connection

    def release(self, connection: Connection, reusable: bool) -> None:
        """Give a connection back."""
        _close(self._pool.give_back(connection, reusable))

    def drop(self, connection: Connection) -> None:
        """Cut a connection in use."""
        connection.abort()
        self._pool.forget()

    def close(self) -> None:
        """Close what is idle."""
        _close(self._pool.clear())


def _close(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


class AsyncCarrier:
    """
    Carries calls over connections of our own, on one event loop at a time.

    Args:
        mesh: gives contexts and generations.
        limits: httpx's; they hold for each upstream.
    """

    def __init__(self, mesh: MeshLike, limits: httpx.Limits) -> None:
        self.mesh = mesh
        self.limits = limits
        self.live: set[Connection] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: dict[Target, _Line] = {}

    async def send(
        self, request: httpx.Request, target: Target, endpoints: Sequence[Endpoint]
    ) -> Answer:
        """
        Send *request* to one of *endpoints*; another is dialled when one cannot be reached.

        Raises:
            MeshConnectError, MeshConnectTimeout: none could be reached.
            httpx.TransportError: as httpx.
        """
        outgoing = Outgoing(request)
        timeouts: Timeouts = request.extensions.get("timeout") or {}
        line = self._line(target)
        connection, attempts = await line.acquire(endpoints, timeouts)
        try:
            reading = await connection.exchange(outgoing, timeouts)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as error:
            if not may_send_again(connection, outgoing):
                line.drop(connection)
                raise hinted(error, connection, target.name) from error
            connection.abort()
            connection, attempts = await line.connect(timeouts)
            reading = await self._exchange(connection, outgoing, timeouts, line)
        except BaseException:
            line.drop(connection)
            raise
        return _answer(reading, connection, outgoing, timeouts, line, attempts)

    async def _exchange(
        self, connection: Connection, outgoing: Outgoing, timeouts: Timeouts, line: _Line
    ) -> Reading:
        try:
            return await connection.exchange(outgoing, timeouts)
        except BaseException:
            line.drop(connection)
            raise

    def _line(self, target: Target) -> _Line:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Connections belong to the loop that made them; one that has ended took them with it.
            self._loop, self._lines, self.live = loop, {}, set()
        line = self._lines.get(target)
        if line is None:
            line = self._lines[target] = _Line(target.name, self)
        return line

    async def aclose(self) -> None:
        """Close every connection, and see that they are closed."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            return
        for line in self._lines.values():
            line.close()
        leaving = list(self.live)
        for connection in leaving:
            if connection.reading is not None:
                connection.abort()
        if leaving:
            _, late = await asyncio.wait(
                [connection.lost for connection in leaving], timeout=CLOSING_PATIENCE
            )
            if late:
                for connection in leaving:
                    connection.abort()
                await asyncio.wait(late, timeout=CLOSING_PATIENCE)


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
        timeout: float | None,
        line: _Line,
        closes: bool,
    ) -> None:
        self._connection: Connection | None = connection
        self._reading = reading
        self._timeout = timeout
        self._line = line
        self._closes = closes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reading = self._reading
        try:
            while True:
                if reading.parts:
                    part = reading.take()
                    if self._connection is not None:
                        self._connection.resume(reading)
                    yield part
                elif reading.complete or self._connection is None or reading.switched:
                    break
                else:
                    await self._connection.receive(reading, self._timeout)
        except BaseException:
            self._end()
            raise
        if reading.complete:
            self.finish()

    def finish(self) -> None:
        """Give the connection back; the answer is all there."""
        connection, self._connection = self._connection, None
        if connection is not None:
            reusable = self._reading.reusable and connection.sent_all and not self._closes
            connection.settle()
            self._line.release(connection, reusable)

    def _end(self) -> None:
        if self._reading.complete:
            self.finish()
        connection, self._connection = self._connection, None
        if connection is not None:
            self._line.drop(connection)

    async def aclose(self) -> None:
        """Give the connection back, or cut it when the answer was not read to its end."""
        self._end()
