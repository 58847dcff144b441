"""
Calling through httpx's own transports: HTTP/2, and loops other than asyncio's.

Owns the sending over a lane, and over another where the server did not process the request; which
lane is `stock_lanes`' business. Knows nothing of names and instances' choice.

Theory. What a native instance selects in the handshake is what it speaks. A sidecar may stand for
bytes: Consul's built-in proxy selects ``h2``, whatever the service behind it speaks (seen with
1.8.7). So sidecars are offered HTTP/2 only where Consul was told that the service speaks it, which
is also when Envoy would select it.
"""

from __future__ import annotations

import asyncio
import math
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio

from .carrier import OVER, Answer, Patience
from .errors import explain_failure
from .gates import Gate
from .journey import Journey
from .library import httpx
from .stock_lanes import (
    MOST_SENDINGS,
    MOST_TRIES,
    UNFIT,
    ImpatientError,
    Lane,
    LaneKey,
    Lanes,
    Sending,
)
from .upstreams import MeshLike, sni

_WAITS = "http2.receive_response_headers.started"
_HEARD = "http2.receive_response_headers.complete"


def _key(journey: Journey) -> LaneKey:
    endpoint = journey.attempt.endpoint
    told = journey.course.chain.protocol in ("http2", "grpc")
    if told or endpoint.kind == "native":
        return LaneKey(endpoint.expected, True, (endpoint.host, endpoint.port))
    return LaneKey(endpoint.expected, False)


def _direct(journey: Journey, trace: Any) -> httpx.Request:
    # Same method, headers (Host included) and body; where it goes and how long it may take is
    # ours. An ``sni_hostname`` of the caller would change nothing about who is believed, but is
    # not theirs.
    request, attempt, patience = journey.request, journey.attempt, journey.patience
    endpoint = attempt.endpoint
    url = httpx.URL(scheme="https", host=endpoint.host, port=endpoint.port, raw_path=attempt.target)
    extensions = {k: v for k, v in request.extensions.items() if k != "sni_hostname"}
    name = sni(endpoint.expected)
    if name is not None:
        extensions["sni_hostname"] = name
    extensions["trace"] = trace
    extensions["timeout"] = {
        "connect": patience.within(patience.connect),
        "read": patience.within(patience.read),
        "write": patience.within(patience.write),
        "pool": patience.within(patience.pool),
    }
    return httpx.Request(
        request.method,
        url,
        headers=journey.outgoing.aimed or journey.outgoing.fields,
        stream=_within(journey.outgoing.stream or request.stream, patience),
        extensions=extensions,
    )


def _within(stream: Any, patience: Patience) -> Any:
    """Let a body that is drawn end with the time of its call."""
    if patience.deadline is None or isinstance(stream, httpx.ByteStream):
        return stream
    return _Upload(stream, patience)


class _Upload(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body for threads or for tasks, or, as one of files is, for both."""

    def __init__(self, stream: Any, patience: Patience) -> None:
        self._stream, self._patience = stream, patience

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            if self._patience.is_over():
                raise httpx.WriteTimeout(OVER)
            yield part

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._stream)
        try:
            async for part in parts:
                if self._patience.is_over():
                    raise httpx.WriteTimeout(OVER)
                yield part
        finally:
            # What is left of a generator is trio's to complain about.
            await parts.aclose()


def _raise(error: BaseException, sending: Sending, journey: Journey) -> None:
    """Raise what the end of an attempt means, if that is not *error* itself."""
    name, endpoint = journey.target.name, journey.attempt.endpoint
    unfit = isinstance(error, UNFIT) and not sending.begun
    if unfit or isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        raise explain_failure(error, name, endpoint) from error
    journey.outgoing.sent = sending.processed
    if sending.begun and not sending.processed and isinstance(error, httpx.LocalProtocolError):
        text = f"{name} at {endpoint.address} refused the stream"
        raise httpx.RemoteProtocolError(text) from error
    if sending.opened and isinstance(error, httpx.LocalProtocolError):
        # What we sent was sent: the rule that was broken is one of what came since.
        text = f"{name} at {endpoint.address} broke the protocol: {error}"
        raise httpx.RemoteProtocolError(text) from error
    foreign = isinstance(error, Exception) and not isinstance(error, httpx.HTTPError)
    if foreign and journey.outgoing.stream is None:
        # httpcore's own, when a call beside this one was given up; a body's own errors stay.
        text = f"{name} at {endpoint.address}: {type(error).__name__}: {error}"
        raise httpx.RemoteProtocolError(text) from error


class StockCarrier:
    """
    Carries calls over `httpx.HTTPTransport`.

    Args:
        mesh: gives contexts and generations.
        http1: as httpx.
        limits: as httpx.
    """

    def __init__(self, mesh: MeshLike, *, http1: bool, limits: httpx.Limits) -> None:
        self._mesh, self._http1, self._limits = mesh, http1, limits
        self._lanes = Lanes(mesh, self._make, limits, shared=False)
        self._gates: dict[str, Gate] = {}

    def _make(self, key: LaneKey) -> tuple[Any, Any]:
        context = self._mesh.client_context(key.expected)
        transport = httpx.HTTPTransport(
            verify=context, trust_env=False, http1=self._http1, limits=self._limits
        )
        if not key.http2:
            return transport, None
        from .network import Backend, make_pool

        backend = Backend()
        transport._pool = make_pool(context, backend, self._limits, http1=self._http1)
        return transport, backend.known

    def send(self, journey: Journey) -> Answer:
        """
        Send a request to the instance its attempt names.

        Raises:
            MeshConnectError, MeshConnectTimeout: it could not be reached.
            httpx.TransportError: as httpx.
        """
        key, theirs = _key(journey), journey.request.extensions.get("trace")
        sent, begins = 0, journey.attempt.number == 1
        for left in reversed(range(MOST_TRIES)):
            sending = self._enter(key, journey, begins=begins)
            lane, begins = sending.lane, False

            def note(event: str, info: dict[str, Any], sending: Sending = sending) -> Any:
                sending.note(event, info)
                return theirs(event, info) if theirs else None

            try:
                request = _direct(journey, note)
                lane.limit(journey.patience.deadline)
                response = lane.transport.handle_request(request)
                break
            except BaseException as error:
                sending.failed(error)
                self._leave(key, lane, journey.target.name)
                sent += sending.begun
                if left and sent < MOST_SENDINGS and sending.may_repeat(error, journey):
                    continue
                _raise(error, sending, journey)
                raise

        def leave(whole: bool) -> None:
            lane.broken |= not whole
            self._leave(key, lane, journey.target.name)

        stream = _Stream(response.stream, leave, journey.patience, request.extensions["timeout"])
        headers, endpoint = response.headers.raw, journey.attempt.endpoint
        return Answer(response.status_code, headers, stream, response.extensions, endpoint)

    def _enter(self, key: LaneKey, journey: Journey, *, begins: bool) -> Sending:
        # A connection each: httpcore's limit would be each lane's own.
        patience, name = journey.patience, journey.target.name
        gate = self._gates.setdefault(name, Gate(name, self._limits.max_connections))
        if not gate.enter(journey.attempt.limits, patience.within(patience.pool)):
            raise httpx.PoolTimeout(f"{name}: no connection became free in time")
        try:
            sending, closed = self._lanes.enter(key, begins=begins)
        except BaseException:
            gate.leave()
            raise
        for lane in closed:
            lane.transport.close()
        return sending

    def _leave(self, key: LaneKey, lane: Lane, name: str) -> None:
        self._gates[name].leave()
        for gone in self._lanes.leave(key, lane):
            gone.transport.close()

    def close(self) -> None:
        """Close what is idle; what is in use closes with its last answer."""
        for lane in self._lanes.clear():
            lane.transport.close()


class AsyncStockCarrier:
    """
    Carries calls over `httpx.AsyncHTTPTransport`: asyncio and trio.

    Args:
        mesh: gives contexts and generations.
        loop: what the connections belong to.
        http1: as httpx.
        http2: whether HTTP/2 is offered at all.
        limits: as httpx.
    """

    def __init__(
        self, mesh: MeshLike, loop: Any, *, http1: bool, http2: bool, limits: httpx.Limits
    ) -> None:
        # Weak: whoever keeps carriers by their loop must not keep the loop by its carrier.
        self._loop = weakref.ref(loop)
        self._mesh, self._http1, self._http2, self._limits = mesh, http1, http2, limits
        self._lanes = Lanes(mesh, self._make, limits, shared=True)
        self._leaving: asyncio.Task[None] | None = None

    @property
    def loop(self) -> Any:
        """What the connections belong to; ``None`` when that has ended."""
        return self._loop()

    def _make(self, key: LaneKey) -> tuple[Any, Any]:
        context = self._mesh.client_context(key.expected)
        transport = httpx.AsyncHTTPTransport(
            verify=context, trust_env=False, http1=self._http1, limits=self._limits
        )
        if not key.http2:
            return transport, None
        from .network import AsyncBackend, make_async_pool

        backend = AsyncBackend(trio=not isinstance(self.loop, asyncio.AbstractEventLoop))
        transport._pool = make_async_pool(context, backend, self._limits, http1=self._http1)
        return transport, backend.known

    async def send(self, journey: Journey) -> Answer:
        """
        Send a request to the instance its attempt names.

        Raises:
            MeshConnectError, MeshConnectTimeout: it could not be reached.
            httpx.TransportError: as httpx.
        """
        key = _key(journey) if self._http2 else LaneKey(journey.attempt.endpoint.expected, False)
        theirs = journey.request.extensions.get("trace")
        sent, begins = 0, journey.attempt.number == 1
        for left in reversed(range(MOST_TRIES)):
            sending, closed = self._lanes.enter(key, begins=begins)
            lane, begins = sending.lane, False

            async def note(event: str, info: dict[str, Any], sending: Sending = sending) -> None:
                sending.note(event, info)
                if theirs:
                    await theirs(event, info)

            try:
                await _close(closed)
                request = _direct(journey, note)
                response = await _ask(lane.transport, request)
                break
            except BaseException as error:
                sending.failed(error)
                await self._leave(key, lane)
                sent += sending.begun
                if left and sent < MOST_SENDINGS and sending.may_repeat(error, journey):
                    continue
                _raise(error, sending, journey)
                raise

        async def leave(whole: bool) -> None:
            if not whole:
                sending.cancel()
            await self._leave(key, lane)

        # Each part of an answer over HTTP/1.1 is timed by httpcore; the call as a whole by none.
        patience = journey.patience
        read = patience.read if key.http2 else None
        stream = _AsyncStream(response.stream, leave, patience, read)
        headers, endpoint = response.headers.raw, journey.attempt.endpoint
        return Answer(response.status_code, headers, stream, response.extensions, endpoint)

    async def _leave(self, key: LaneKey, lane: Lane) -> None:
        await _close(self._lanes.leave(key, lane))

    async def aclose(self) -> None:
        """Close every connection."""
        await _close(self._lanes.clear())

    def leave(self) -> None:
        """Close every connection, from any thread."""
        loop = self.loop
        with suppress(RuntimeError):  # the loop has ended, and took the connections with it
            if isinstance(loop, asyncio.AbstractEventLoop):
                loop.call_soon_threadsafe(self._begin_leaving, loop)
            elif loop is not None:
                loop.run_sync_soon(sys.modules["trio"].lowlevel.spawn_system_task, self._leave_now)

    def _begin_leaving(self, loop: asyncio.AbstractEventLoop) -> None:
        self._leaving = loop.create_task(self._leave_now())

    async def _leave_now(self) -> None:
        with suppress(Exception):  # nobody is there to be told
            await self.aclose()

    def retire(self) -> list[AsyncStockCarrier]:
        """Tell what has to be closed later: this, with its connections."""
        return [self]


async def _ask(transport: Any, request: httpx.Request) -> httpx.Response:
    """
    Send a request, and wait for the head of its answer, for as long as *this* call may.

    Over HTTP/2 httpcore counts only while the call is the one that reads for all.
    """
    seconds, note = request.extensions["timeout"]["read"], request.extensions["trace"]

    async def heed(event: str, info: dict[str, Any]) -> None:
        await note(event, info)
        if event == _WAITS and seconds is not None:
            scope.deadline = anyio.current_time() + seconds
        elif event == _HEARD:
            scope.deadline = math.inf

    request.extensions["trace"] = heed
    try:
        with anyio.CancelScope() as scope:
            response: httpx.Response = await transport.handle_async_request(request)
            return response
    except ImpatientError as error:
        raise error.timeout("") from error
    raise httpx.ReadTimeout("")


async def _close(lanes: list[Lane]) -> None:
    ended: BaseException | None = None
    for lane in lanes:
        try:
            await lane.aclose()
        except BaseException as error:  # a cancellation: the others are to be closed all the same
            ended = error
    if ended is not None:
        raise ended


class _Stream(httpx.SyncByteStream):
    def __init__(
        self,
        stream: Any,
        done: Callable[[bool], None],
        patience: Patience,
        timeouts: dict[str, float | None],
    ) -> None:
        self._stream, self._patience, self._timeouts = stream, patience, timeouts
        self._done: Callable[[bool], None] | None = done
        self.over = False
        self.ended: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[bytes]:
        for part in self._stream:
            if self._patience.is_over():
                raise httpx.ReadTimeout(OVER)
            yield part
            # httpcore looks here before it reads on, over HTTP/2 each time.
            self._timeouts["read"] = self._patience.within(self._patience.read)
        self.over = True

    def close(self) -> None:
        done, self._done = self._done, None
        if self.ended is not None:
            self.ended()
        try:
            self._stream.close()
        finally:
            if done is not None:
                done(self.over)


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(
        self, stream: Any, done: Callable[[bool], Any], patience: Patience, read: float | None
    ) -> None:
        self._stream, self._patience, self._read = stream, patience, read
        self._done: Callable[[bool], Any] | None = done
        self.over = False
        self.ended: Callable[[], None] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._stream)
        while (part := await self._next(parts)) is not None:
            yield part
        self.over = True

    async def _next(self, parts: AsyncIterator[bytes]) -> bytes | None:
        try:
            if self._patience.is_over():
                raise httpx.ReadTimeout(OVER)
            with anyio.move_on_after(self._patience.within(self._read)):
                return await anext(parts, None)
        except ImpatientError as error:
            raise error.timeout("") from error
        raise httpx.ReadTimeout("")

    async def aclose(self) -> None:
        done, self._done = self._done, None
        if self.ended is not None:
            self.ended()
        try:
            await self._stream.aclose()
        finally:
            if done is not None:
                await done(self.over)
