"""
One HTTP/1.1 connection on asyncio.

Owns the exchange of requests and answers on a connection that TLS and the gate have passed, its
timeouts and its flow control both ways; TLS itself is `sealed`'s. Knows no pool: others decide who
may use it.

Theory. Bytes are parsed as they arrive, in the transport's callback, so that a short answer is
complete before the task that waits for it runs; the task wakes once. A connection between two
requests has no `reading`: whatever arrives then is nobody's, and ends it.
"""

from __future__ import annotations

import asyncio
import math
import select
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from .carrier import OVER, Patience, may_stop_sending
from .h1 import Reading
from .library import httpx
from .pool import Lane, retirement
from .sealed import Sealed
from .wire import Outgoing

HIGH_WATER = 256 * 1024
"""Bytes of a body, or to be sent, held before the other side is made to wait."""

LOW_WATER = 64 * 1024
"""Bytes left when it goes on."""


TURNS = 2
"""Of the loop until what the socket has was read: one to be told of it, one to be called."""


class Connection(Sealed):
    """
    One TLS connection to one instance, whose identity was verified.

    Args:
        loop: it belongs to.
        lane: the instance.
        generation: of leaf and roots when it was dialled.
        live: where it is counted while it is open.
        buffer: of the loop, see `Sealed`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        lane: Lane[Any],
        generation: int,
        live: set[Connection],
        buffer: memoryview,
    ) -> None:
        super().__init__(loop, lane.context(generation), lane.server_name, buffer)
        self.lane = lane
        self.generation = generation
        self.retire_at = 0.0
        self.idle_since = 0.0
        self.requests = 0
        self.wrote = False
        self.heard = False
        self.sent_all = False
        self.reading: Reading | None = None
        self._live = live
        self._failure: Exception | None = None
        self._waiters: list[tuple[asyncio.Future[None], float, type[httpx.TimeoutException]]] = []
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._poll = select.poll()
        self._full = False
        self._burst = 0
        self._reading_paused = False

    # -- what TLS and the transport tell -------------------------------------------------------

    def opened(self) -> None:
        """The handshake is done, and the gate passed."""
        self.transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self.retire_at = retirement(self.tls)
        self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._live.add(self)

    def take(self, data: bytes) -> None:
        """Bytes came."""
        reading = self.reading
        if reading is None:
            self.abort()
            return
        self.heard = True
        try:
            reading.feed(data)
        except httpx.RemoteProtocolError as error:
            self._fail(error)
            return
        if reading.size + len(reading.rest) > HIGH_WATER and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
        if reading.complete:
            self._wake()
        else:
            # One turn of the loop later: servers write head and body one after the other, and the
            # task that waits should be woken once for both.
            self._loop.call_soon(self._wake)

    def ended(self, error: Exception | None) -> None:
        """It is closed, by whomever."""
        self._live.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reading = self.reading
        if error is not None:
            self._failure = self._failure or httpx.ReadError(str(error))
        elif reading is not None and self._failure is None:
            try:
                reading.end()
            except httpx.RemoteProtocolError as error:
                self._failure = error
        self._wake()

    def pause_writing(self) -> None:
        """The other end takes no more for now."""
        self._full = True

    def resume_writing(self) -> None:
        """It does again."""
        self._full = False
        self._wake()

    # -- what callers ask ----------------------------------------------------------------------

    def is_usable(self) -> bool:
        """Whether neither end has closed it, and nothing came that nobody asked for."""
        # The loop may not have come round to what the socket has: an end, or a stray answer that
        # the next request must not be given. Half of one may be in TLS already.
        return not (self.torn or self.transport.is_closing() or self._poll.poll(0))

    async def is_alive(self) -> bool:
        """Do as `is_usable`, where on a new connection TLS's own business may have come."""
        if self.requests:
            return self.is_usable()
        if self._poll.poll(0):
            for _ in range(TURNS):
                await asyncio.sleep(0)
        return not self.transport.is_closing()

    async def exchange(self, outgoing: Outgoing, patience: Patience) -> Reading:
        """
        Send a request and read the head of its answer.

        Raises:
            httpx.TransportError: as httpx; the connection is of no more use.
        """
        self.requests += 1
        self.wrote = self.heard = self.sent_all = False
        reading = self.reading = Reading(outgoing.method, outgoing.upgrades)
        head, body = outgoing.head, outgoing.body
        try:
            if body is None:
                await self._send_stream(outgoing, reading, patience)
            elif len(head) + len(body) <= HIGH_WATER:
                self.write(head + body)
                self.sent_all = not self._full
            else:
                await self._send_slices(head + body, reading, patience)
        except httpx.WriteError:
            # The answer may have come before the other end stopped listening.
            pass
        while not reading.status:
            await self.receive(reading, patience.within(patience.read))
        return reading

    def receive(self, reading: Reading, patience: float | None) -> Awaitable[None]:
        """
        Wait until something has happened; callers look what, and come again.

        Raises:
            httpx.ReadTimeout: nothing has, for *patience* seconds.
            httpx.TransportError: nothing more will.
        """
        if self._failure is not None:
            raise self._failure
        if self.lost.done():
            raise httpx.ReadError("the connection was closed")
        if self._reading_paused:
            self.resume(reading)
        return self._wait(patience, httpx.ReadTimeout)

    def resume(self, reading: Reading) -> None:
        """Let the other end go on, when what has come was taken."""
        if self._reading_paused and reading.size + len(reading.rest) < LOW_WATER:
            self._reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """
        Hand bytes to the transport.

        Raises:
            httpx.WriteError: the connection is closing.
        """
        if self.transport.is_closing():
            raise httpx.WriteError("the connection was closed")
        try:
            self.send(data)
        except ssl.SSLError as error:
            raise httpx.WriteError(str(error)) from error
        self.wrote = True

    def settle(self) -> None:
        """Be between two requests."""
        self.reading = None
        if self._reading_paused:
            self._reading_paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def abort(self) -> None:
        """Cut it; what has not come of an answer by now is missing, not its end."""
        if self.reading is not None and self._failure is None:
            self._failure = httpx.ReadError("the connection was closed by us")
        super().abort()

    # -- inside --------------------------------------------------------------------------------

    async def _send_slices(self, data: bytes, reading: Reading, patience: Patience) -> None:
        # A transport that is given all at once never says that it is too much.
        view = memoryview(data)
        for at in range(0, len(data), LOW_WATER):
            if may_stop_sending(reading.status):
                return
            await self._offer(bytes(view[at : at + LOW_WATER]), reading, patience)
        self.sent_all = not self._full

    async def _send_stream(self, outgoing: Outgoing, reading: Reading, patience: Patience) -> None:
        self.write(outgoing.head)
        async for part in outgoing.stream:
            if may_stop_sending(reading.status):
                return
            if patience.is_over():
                raise httpx.WriteTimeout(OVER)
            if framed := outgoing.frame(part):
                await self._offer(framed, reading, patience)
        if end := outgoing.finish():
            self.write(end)
        self.sent_all = True

    async def _offer(self, data: bytes, reading: Reading, patience: Patience) -> None:
        self.write(data)
        self._burst += len(data)
        if self._full:
            await self.drain(reading, patience.within(patience.write))
        elif self._burst >= LOW_WATER:
            # Let the loop hear what the other end says meanwhile: it may be a refusal, and once
            # the connection was reset under a write, asyncio throws away what had come before.
            self._burst = 0
            await asyncio.sleep(0)

    async def drain(self, reading: Reading, patience: float | None) -> None:
        """
        Wait until the other end takes more, or has answered that it will not.

        Raises:
            httpx.WriteTimeout: it did neither, for *patience* seconds.
            httpx.WriteError: the connection is closing.
        """
        while self._full and not may_stop_sending(reading.status):
            if self.transport.is_closing():
                raise httpx.WriteError("the connection was closed")
            await self._wait(patience, httpx.WriteTimeout)

    def _wait(
        self, patience: float | None, kind: type[httpx.TimeoutException]
    ) -> asyncio.Future[None]:
        # Two at most wait: on an upgraded connection one task may read while another writes. Who
        # was cancelled is forgotten with those who are woken next.
        future: asyncio.Future[None] = self._loop.create_future()
        deadline = math.inf if patience is None else self._loop.time() + patience
        self._waiters.append((future, deadline, kind))
        if deadline < self._due:
            self._arm(deadline)
        return future

    def _arm(self, when: float) -> None:
        # One timer serves many waits: it is left running when a wait ends, and looks, when it
        # fires, whose time is really up. Setting one for each wait would cost more than the wait.
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = when, self._loop.call_at(when, self._expire)

    def _expire(self) -> None:
        self._due, self._timer = math.inf, None
        now, following = self._loop.time(), math.inf
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            future, deadline, kind = waiter
            if future.done():
                continue
            if deadline > now:
                following = min(following, deadline)
                self._waiters.append(waiter)
            else:
                future.set_exception(kind("the other end took too long"))
        if following < math.inf:
            self._arm(following)

    def _wake(self) -> None:
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            for future, _, _ in waiters:
                if not future.done():
                    future.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self.abort()
        self._wake()


class Stream:
    """
    ``response.extensions["network_stream"]``: facts about the connection, and after an Upgrade or
    CONNECT the connection itself.

    Args:
        connection: the connection.
        reading: of the answer.
        left: called when an upgraded connection was closed.
    """

    __slots__ = ("_connection", "_left", "_reading")

    def __init__(self, connection: Connection, reading: Reading, left: Callable[[], None]) -> None:
        self._connection = connection
        self._reading = reading
        self._left = left

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> bytes:
        """
        Read from an upgraded connection; empty at its end.

        Raises:
            RuntimeError: the connection was not upgraded.
        """
        reading, connection = self._upgraded(), self._connection
        while not reading.rest:
            if connection.lost.done():
                return b""
            await connection.receive(reading, timeout)
        data, reading.rest = reading.rest[:max_bytes], reading.rest[max_bytes:]
        connection.resume(reading)
        return data

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> None:
        """
        Write to an upgraded connection.

        Raises:
            RuntimeError: the connection was not upgraded.
        """
        reading = self._upgraded()
        if buffer:
            self._connection.write(buffer)
            await self._connection.drain(reading, timeout)

    async def aclose(self) -> None:
        """Close an upgraded connection; of others the response is closed instead."""
        if self._reading.switched:
            self._connection.close()
            self._left()

    def get_extra_info(self, info: str) -> Any:
        """Tell ``ssl_object``, ``client_addr`` or ``server_addr``, as httpcore does."""
        if info == "ssl_object":
            return self._connection.tls
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._connection.transport.get_extra_info(names.get(info, info))

    def _upgraded(self) -> Reading:
        if not self._reading.switched:
            raise RuntimeError("only an upgraded connection is read and written directly")
        return self._reading
