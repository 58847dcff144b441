"""
Carries a response from the application's thread to the event loop.

Owns the pieces that were produced and not sent yet, and both waits: the thread's for room, the
loop's for pieces. Knows nothing of WSGI.

Theory. The thread appends; it wakes the loop only when the loop waits, and waits for room only when
more than the bounds is queued, so that most responses cross once. A piece that the application has
made already is queued whole, whatever its size, since it is in memory anyway; it is sent in slices,
so that the wait for each send can have a bound that also a slow reader of a large response meets.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

Send = Callable[[Any], Awaitable[None]]

MAX_PIECES = 256
"""Pieces that may be queued, however small."""

SLICE = 1 << 16
"""Largest body of one ASGI message; each must be taken within the timeout."""

LOOP_SLACK = 5.0
"""Seconds that the event loop may be late, before a thread does not wait for it any longer."""


class Head(NamedTuple):
    """
    Status and headers.

    Args:
        status: the code.
        headers: as ASGI has them.
    """

    status: int
    headers: list[tuple[bytes, bytes]]


class ResponseAbortedError(ConnectionAbortedError):
    """The response cannot be sent any more."""


class Request(Protocol):
    """What a queue needs of the request it belongs to."""

    loop: asyncio.AbstractEventLoop

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the peer, in the application's thread."""

    def response_timed_out(self) -> None:
        """The client did not read; called from any thread."""

    def disconnected(self) -> None:
        """The client has gone; called in the event loop."""


class _Batch(NamedTuple):
    head: Head | None
    pieces: list[bytes]
    last: bool
    failed: bool


class ResponseQueue:
    """
    The pieces of one response.

    Args:
        request: it belongs to.
        size: bytes that may be queued before the thread waits; as many may be just being sent.
        timeout: seconds in which each message must be sent.
    """

    def __init__(self, request: Request, *, size: int, timeout: float) -> None:
        self._request: Request | None = request
        self._loop, self._size, self._timeout = request.loop, size, timeout
        self._lock = threading.Lock()
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        self._queued = 0
        self._last = self._failed = self._aborted = self._idle = False
        self._room: threading.Event | None = None
        self._slices = 0  # sent; the thread sees by it that the reader reads
        # Of the event loop:
        self._waiter: asyncio.Future[None] | None = None
        self.begun = False
        """Whether the start of the response was given to the server."""

    @property
    def aborted(self) -> bool:
        """Whether nothing more can be sent."""
        return self._aborted

    # In the application's thread.

    def put(self, head: Head | None, pieces: list[bytes], *, last: bool) -> None:
        """
        Queue pieces; unless they are the last, wait until there is room for more.

        Raises:
            ResponseAbortedError: the response was aborted.
        """
        with self._lock:
            if self._aborted:
                raise ResponseAbortedError("the response was aborted")
            if head is not None:
                self._head = head
            self._pieces += pieces
            self._queued += sum(map(len, pieces))
            self._last = last
            full = self._queued >= self._size or len(self._pieces) >= MAX_PIECES
            room = self._room = threading.Event() if full and not last else None
            wakes, self._idle = self._idle, False
            request = self._request
        if wakes:
            self._wake()
        if room is not None and request is not None:
            self._wait_for(room, request)

    def fail(self) -> None:
        """The application failed: what is queued is sent, and the response ends incomplete."""
        with self._lock:
            self._failed = True
            wakes, self._idle = self._idle, False
        if wakes:
            self._wake()

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._notify)
        except RuntimeError:  # the loop is closed
            self.abort()

    def _wait_for(self, room: threading.Event, request: Request) -> None:
        seen = -1
        # The event loop has the timeout, and aborts; this one is for a loop that has ended.
        while not request.wait(room, self._timeout + LOOP_SLACK):
            if seen == self._slices:
                request.response_timed_out()
            seen = self._slices
        if self._aborted:
            raise ResponseAbortedError("the response was aborted")

    # From any thread.

    def abort(self) -> None:
        """Drop what is queued, and have the thread and the event loop stop."""
        with self._lock:
            if self._aborted:
                return
            self._aborted = True
            self._pieces, self._head, self._queued = [], None, 0
            room, self._room = self._room, None
            wakes, self._idle = self._idle, False
        if room is not None:
            room.set()
        if wakes:
            self._wake()

    # In the event loop.

    def end(self) -> None:
        """Send nothing more."""
        self.abort()
        self._request = None  # which holds this queue: a cycle for each request

    async def send_all(self, send: Send, streams: Callable[[], None]) -> bool:
        """
        Send pieces as they come, until the end.

        Args:
            send: of ASGI.
            streams: called once, when a response begins that has more than was there at once.

        Returns:
            Whether the response was sent whole.
        """
        while True:
            batch = self._take()
            if batch is None:
                if self._waiter is not None:
                    await self._waiter
                continue
            if self._aborted:
                return False
            first = not self.begun
            if (batch.head or batch.pieces or batch.last) and not await self._send(send, batch):
                return False
            if batch.last or batch.failed:
                return batch.last
            if first:
                streams()

    def _take(self) -> _Batch | None:
        """What there is; when there is nothing, `_waiter` is set, and the thread wakes it."""
        with self._lock:
            if not (self._head or self._pieces or self._last or self._failed or self._aborted):
                self._idle = True
                self._waiter = self._loop.create_future()
                return None
            batch = _Batch(self._head, self._pieces, self._last, self._failed)
            self._head, self._pieces, self._queued = None, [], 0
            room, self._room = self._room, None
        if room is not None:
            room.set()
        return batch

    async def _send(self, send: Send, batch: _Batch) -> bool:
        head, pieces = batch.head, batch.pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        start, end = 0, len(data)
        while True:
            part = data if end <= SLICE else data[start : start + SLICE]
            start += SLICE
            more = start < end or not batch.last
            if not await self._send_slice(send, head, part, more=more):
                return False
            head = None
            if start >= end:
                return True

    async def _send_slice(self, send: Send, head: Head | None, part: bytes, *, more: bool) -> bool:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                if head is not None:
                    self.begun = True
                    await send(
                        {
                            "type": "http.response.start",
                            "status": head.status,
                            "headers": head.headers,
                        }
                    )
                await send({"type": "http.response.body", "body": part, "more_body": more})
        except OSError:
            # ASGI 2.4: a send to a client that has gone raises. A timeout is an OSError as well.
            if self._request is not None and limit.expired():
                self._request.response_timed_out()
            elif self._request is not None:
                self._request.disconnected()
        self._slices += 1
        return not self._aborted

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
