"""
The sockets below httpcore, as far as HTTP/2 needs more of them than httpcore gives.

Owns a *backend* for each transport: it dials as httpcore does, and where HTTP/2 was agreed on it
puts `goaway.Frames` between the socket and httpcore. It makes one such connection and no second:
what is known about streams holds for that one alone.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from .carrier import LEAST_PATIENCE, OVER
from .goaway import Frames
from .library import httpx
from .pool import retirement
from .stock_lanes import ImpatientError, SpentError
from .writing import Writing

if TYPE_CHECKING or __package__ != "mesh_middleware.httpx2":
    import httpcore
else:
    import httpcore2 as httpcore

LOOK_EVERY = 0.05
"""Seconds between two looks, after GOAWAY, whether streams were opened that nobody will answer."""


class _Known:
    """What is known of the connection that a backend made."""

    def __init__(self) -> None:
        self.frames: Frames | None = None
        self.retire_at = 0.0
        self.open: set[httpcore.AsyncNetworkStream] = set()
        """Of those whose calls may share one: what was made and not closed."""
        self._stream: Any = None
        self.deadline: float | None = None
        """Of the call under way, on the monotonic clock; threads use a connection one by one."""

    def meet(self, stream: Any, made: Any) -> Any:
        """Take note of a connection after its handshake; returns what httpcore is to use."""
        tls = stream.get_extra_info("ssl_object")
        if tls is None or tls.selected_alpn_protocol() != "h2":
            return stream
        self.demand_unspent()
        self.frames, self.retire_at = Frames(), retirement(tls)
        self._stream = made(stream, self.frames)
        return self._stream

    def demand_unspent(self) -> None:
        """
        See that there is no connection yet.

        Raises:
            SpentError: there is.
        """
        if self.frames is not None:
            raise SpentError("the connection takes no more requests")

    async def aclose(self) -> None:
        """Close whatever httpcore has forgotten to close."""
        for stream in list(self.open):
            await stream.aclose()

    def within(self, seconds: float | None) -> float | None:
        """Cut *seconds* at the deadline of the call under way, where there is one."""
        if self.deadline is None:
            return seconds
        left = self.deadline - time.monotonic()
        return left if seconds is None else min(seconds, left)

    def is_quiet(self) -> bool:
        """Whether nothing came unasked; where it did, the server has probably closed."""
        return not self._stream.get_extra_info("is_readable")


class Backend(httpcore.SyncBackend):
    """Dials for one transport of threads, which uses its connection for one call at a time."""

    def __init__(self) -> None:
        self.known = _Known()

    def connect_tcp(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        """Connect, as httpcore does."""
        self.known.demand_unspent()
        return _Dialled(super().connect_tcp(*args, **options), self.known)


class _Wrapped(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Dialled(_Wrapped):
    """Before TLS."""

    def __init__(self, stream: httpcore.NetworkStream, known: _Known) -> None:
        super().__init__(stream)
        self._known = known

    def start_tls(self, *args: Any, **options: Any) -> httpcore.NetworkStream:
        found: httpcore.NetworkStream = self._known.meet(
            self._stream.start_tls(*args, **options), partial(_Framed, self._known)
        )
        return found


class _Framed(_Wrapped):
    """HTTP/2, for one call at a time."""

    def __init__(self, known: _Known, stream: httpcore.NetworkStream, frames: Frames) -> None:
        super().__init__(stream)
        self._known, self._frames = known, frames

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # What can be written at once is: that the time is over, the next read says.
        left = self._known.within(timeout)
        self._stream.write(buffer, None if left is None else max(left, LEAST_PATIENCE))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        # What comes may be nothing of this call's (PING, SETTINGS, WINDOW_UPDATE), without end.
        while True:
            left = self._known.within(timeout)
            if left is not None and left <= 0:
                raise httpcore.ReadTimeout(OVER)
            data = self._stream.read(max_bytes, left)
            if not data:
                return data
            if seen := self._frames.take(data) + self._frames.resets():
                return seen


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """
    Dials for one transport of an event loop, whose calls share its connection.

    Args:
        trio: whether that loop is trio's.
    """

    def __init__(self, *, trio: bool) -> None:
        self.known = _Known()
        self._trio = trio
        # As httpcore chooses.
        self._backend = httpcore.TrioBackend() if trio else httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect, as httpcore does."""
        self.known.demand_unspent()
        stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        return _AsyncDialled(stream, self.known, trio=self._trio)

    async def sleep(self, seconds: float) -> None:
        """Sleep."""
        await self._backend.sleep(seconds)


class _AsyncWrapped(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _AsyncDialled(_AsyncWrapped):
    """Before TLS."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, known: _Known, *, trio: bool) -> None:
        super().__init__(stream)
        self._known, self._trio = known, trio

    async def start_tls(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        try:
            made = await self._stream.start_tls(*args, **options)
            found = self._known.meet(made, partial(_AsyncFramed, trio=self._trio))
            return _AsyncOpen(found, self._known.open)
        except BaseException:
            # httpcore does so for errors; for a cancellation it forgets the socket.
            await self._stream.aclose()
            raise


class _AsyncOpen(_AsyncWrapped):
    """In the list of those that are open."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, among: set[Any]) -> None:
        super().__init__(stream)
        self._among = among
        among.add(self)

    async def aclose(self) -> None:
        self._among.discard(self)
        await self._stream.aclose()


class _AsyncFramed(_AsyncWrapped):
    """HTTP/2, shared by calls."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, frames: Frames, *, trio: bool) -> None:
        super().__init__(stream)
        self._frames, self._writing = frames, Writing(stream, trio=trio)
        self._looked: dict[int, int] = {}

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> None:
        if buffer:
            # Between two frames: httpcore writes whole ones.
            try:
                await self._writing.write(buffer + self._frames.cancelled(), timeout)
            except httpcore.WriteTimeout as error:
                raise ImpatientError(httpx.WriteTimeout) from error

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's signature
    ) -> bytes:
        frames, until = self._frames, None if timeout is None else time.monotonic() + timeout
        while True:
            if resets := frames.resets() or self._look_again():
                return resets
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                data = await self._stream.read(max_bytes, _shorter(left, frames))
            except httpcore.ReadTimeout as error:
                if until is not None and time.monotonic() >= until:
                    raise ImpatientError(httpx.ReadTimeout) from error
                continue
            if not data:
                return data
            if seen := frames.take(data):
                return seen

    def _look_again(self) -> bytes:
        """
        Have a task see once what others have read, before it waits here for more.

        httpcore's uploads do not: one that waits for room, and for its turn to read, would wait
        for ever where the room came to another's turn.
        """
        if not self._frames.uploading:
            self._looked.clear()
            return b""
        task, heard = anyio.get_current_task().id, self._frames.heard
        if self._looked.get(task) == heard:
            return b""
        self._looked[task] = heard
        return self._frames.nothing()


def make_pool(
    context: ssl.SSLContext, backend: Backend, limits: httpx.Limits, *, http1: bool
) -> httpcore.ConnectionPool:
    """Make what httpx makes for HTTP/2, but for the sockets."""
    return httpcore.ConnectionPool(
        context, network_backend=backend, **_limits(limits), http1=http1, http2=True
    )


def make_async_pool(
    context: ssl.SSLContext, backend: AsyncBackend, limits: httpx.Limits, *, http1: bool
) -> httpcore.AsyncConnectionPool:
    """Make what httpx makes for HTTP/2, but for the sockets."""
    return httpcore.AsyncConnectionPool(
        context, network_backend=backend, **_limits(limits), http1=http1, http2=True
    )


def _limits(limits: httpx.Limits) -> dict[str, Any]:
    return {
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
    }


def _shorter(left: float | None, frames: Frames) -> float | None:
    # One task reads for all: after GOAWAY it must not wait for an answer while another task has
    # opened a stream that will never have one.
    if frames.last is None:
        return left
    return LOOK_EVERY if left is None else min(left, LOOK_EVERY)
