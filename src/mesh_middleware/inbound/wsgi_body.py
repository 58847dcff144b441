"""
``wsgi.input`` of one request, filled from ASGI messages while the application reads it.

Owns the bytes that have arrived and were not read yet. Nothing is received before the application
reads for the first time, and never more than one message beyond the buffer's size is kept.

The application's thread reads; messages are received by a task in the event loop. A body that does
not arrive whole raises an `OSError`: a cut upload must not look like a complete one.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Protocol

Receive = Callable[[], Awaitable[Any]]


class Request(Protocol):
    """What a body needs of the request it belongs to."""

    loop: asyncio.AbstractEventLoop

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the peer, in the application's thread."""

    def body_too_large(self) -> None:
        """More than the allowed size has arrived; called in the event loop."""

    def body_timed_out(self) -> None:
        """Nothing has arrived for too long; called in the application's thread."""

    def disconnected(self) -> None:
        """The client has gone; called in the event loop."""


class RequestBody(io.BufferedIOBase):
    """
    A body that is read as it arrives.

    Args:
        request: it belongs to.
        receive: of ASGI.
        length: of the body, where it is known.
        limit: the largest body.
        buffer: bytes that may wait to be read.
        timeout: seconds in which the next piece must arrive.
    """

    def __init__(
        self,
        request: Request,
        receive: Receive,
        *,
        length: int | None,
        limit: int,
        buffer: int,
        timeout: float,
    ) -> None:
        self._request: Request | None = request
        self._loop, self._receive = request.loop, receive
        self._length, self._limit, self._timeout = length, limit, timeout
        self._size, self._received = buffer, 0
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._complete = length == 0
        self._failure: OSError | None = None
        self._arrived: threading.Event | None = None
        # Of the event loop:
        self._task: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._watching = False

    # In the application's thread.

    def readable(self) -> bool:
        """It is for reading."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """Read *size* bytes, fewer only at the end of the body; all of it by default."""
        return b"".join(self._parts(size, line=False))

    def read1(self, size: int | None = -1, /) -> bytes:
        """Read what has arrived, at most *size* bytes; wait only when there is nothing."""
        return next(self._parts(size, line=False), b"")

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read one line, or *size* bytes of it."""
        return b"".join(self._parts(size, line=True))

    def _parts(self, size: int | None, *, line: bool) -> Iterator[bytes]:
        left = self._size if size is None or size < 0 else size
        while left > 0 and (part := self._take(left, line=line)):
            yield part
            if line and part.endswith(b"\n"):
                return
            if size is not None and size >= 0:
                left -= len(part)

    def _take(self, size: int, *, line: bool) -> bytes:
        while True:
            with self._lock:
                if self._failure is not None:
                    raise type(self._failure)(*self._failure.args)
                if self._buffer:
                    return self._cut(size, line=line)
                if self._complete:
                    return b""
                arrived, request = threading.Event(), self._request
                self._arrived = arrived
            self._call(self._receive_more)
            if request is not None and not request.wait(arrived, self._timeout):
                self.fail(TimeoutError("the request body did not arrive in time"))
                request.body_timed_out()

    def _cut(self, size: int, *, line: bool) -> bytes:
        end = (self._buffer.find(b"\n", 0, size) + 1 if line else 0) or size
        full = len(self._buffer) >= self._size
        data = bytes(self._buffer[:end])
        del self._buffer[:end]
        if full and len(self._buffer) < self._size:
            self._call(self._receive_more)
        return data

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            raise ConnectionAbortedError("the server has ended") from None

    # In either.

    def fail(self, failure: OSError) -> None:
        """Have every further read raise."""
        with self._lock:
            self._failure = self._failure or failure
            self._buffer.clear()
            arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived.set()

    # In the event loop.

    def watch(self) -> None:
        """Find out when the client goes, also when the application does not read."""
        self._watching = True
        self._receive_more()

    def end(self) -> None:
        """Receive nothing more."""
        self.fail(ConnectionAbortedError("the request has ended"))
        self._request = None  # which holds this body: a cycle for each request
        if self._task is not None:
            self._task.cancel()

    def _receive_more(self) -> None:
        if self._room is not None and not self._room.done():
            if len(self._buffer) < self._size:
                self._room.set_result(None)
        elif (self._task is None or self._task.done()) and self._failure is None:
            self._task = self._loop.create_task(self._receive_all())

    async def _receive_all(self) -> None:
        while self._failure is None and (self._watching or not self._complete):
            try:
                message = await self._receive()
            except OSError:
                message = {"type": "http.disconnect"}
            if message["type"] != "http.request":
                self.fail(ConnectionResetError("the client disconnected"))
                if self._request is not None:
                    self._request.disconnected()
                return
            self._add(message.get("body", b""), more=message.get("more_body", False))
            while len(self._buffer) >= self._size:
                self._room = self._loop.create_future()
                await self._room

    def _add(self, data: bytes, *, more: bool) -> None:
        self._received += len(data)
        if self._received > self._limit:
            self.fail(OSError("the request body is too large"))
            if self._request is not None:
                self._request.body_too_large()
            return
        if not more and self._length not in (None, self._received):
            self.fail(ConnectionResetError("the request body ended before its Content-Length"))
            return
        with self._lock:
            self._buffer += data
            self._complete = self._complete or not more
            if not (data or self._complete):
                return
            arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived.set()
