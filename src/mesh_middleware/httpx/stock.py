"""
Calling through httpx's own transport: HTTP/2, and loops other than asyncio's.

Owns a *lane* for each expected identity, protocol and certificate generation: a stock transport
whose context only completes handshakes with that identity. A lane of an older generation takes no
new call and is closed with its last response. Knows nothing of names and instances' choice.

Theory. What a native instance selects in the handshake is what it speaks. A sidecar may stand for
bytes: Consul's built-in proxy selects ``h2``, whatever the service behind it speaks (seen with
1.8.7). So sidecars are offered HTTP/2 only where Consul was told that the service speaks it, which
is also when Envoy would select it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ..identity import ServiceId
from .carrier import Answer
from .errors import explain_failure
from .journey import Journey
from .library import httpx
from .upstreams import MeshLike, sni


class _Lane:
    def __init__(self, transport: Any, generation: int) -> None:
        self.transport = transport
        self.generation = generation
        self.calls = 0
        self.retired = False


class _Lanes:
    """The lanes of one carrier, counted under a lock: threads share a sync client."""

    def __init__(self, mesh: MeshLike, make: Callable[[ServiceId, bool], Any]) -> None:
        self._mesh = mesh
        self._make = make
        self._lock = threading.Lock()
        self._lanes: dict[tuple[ServiceId, bool], _Lane] = {}
        self._draining: set[_Lane] = set()

    def enter(self, journey: Journey) -> tuple[_Lane, _Lane | None]:
        """Take the current lane; the second value, if any, has to be closed."""
        key = (journey.attempt.endpoint.expected, _may_speak_http2(journey))
        generation = self._mesh.generation
        with self._lock:
            lane, idle = self._lanes.get(key), None
            if lane is None or lane.generation != generation:
                if lane is not None:
                    idle = self._retire(lane)
                lane = self._lanes[key] = _Lane(self._make(*key), generation)
            lane.calls += 1
            return lane, idle

    def leave(self, lane: _Lane) -> _Lane | None:
        """Give the lane back; a value returned has to be closed."""
        with self._lock:
            lane.calls -= 1
            if lane.retired and not lane.calls:
                self._draining.discard(lane)
                return lane
        return None

    def _retire(self, lane: _Lane) -> _Lane | None:
        lane.retired = True
        if not lane.calls:
            return lane
        self._draining.add(lane)
        return None

    def clear(self) -> list[_Lane]:
        with self._lock:
            lanes = [*self._lanes.values(), *self._draining]
            self._lanes.clear()
            self._draining.clear()
            return lanes


def _may_speak_http2(journey: Journey) -> bool:
    told = journey.course.chain.protocol in ("http2", "grpc")
    return told or journey.attempt.endpoint.kind == "native"


def _direct(journey: Journey) -> httpx.Request:
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
        stream=request.stream,
        extensions=extensions,
    )


class StockCarrier:
    """
    Carries calls over `httpx.HTTPTransport`.

    Args:
        mesh: gives contexts and generations.
        options: ``http1``, ``http2`` and ``limits`` of the stock transport.
    """

    def __init__(self, mesh: MeshLike, **options: Any) -> None:
        self._lanes = _Lanes(
            mesh,
            lambda expected, http2: httpx.HTTPTransport(
                verify=mesh.client_context(expected),
                trust_env=False,
                **{**options, "http2": http2 and options["http2"]},
            ),
        )

    def send(self, journey: Journey) -> Answer:
        """
        Send a request to the instance its attempt names.

        Raises:
            MeshConnectError, MeshConnectTimeout: it could not be reached.
            httpx.TransportError: as httpx.
        """
        endpoint = journey.attempt.endpoint
        lane, idle = self._lanes.enter(journey)
        if idle is not None:
            idle.transport.close()
        try:
            response = lane.transport.handle_request(_direct(journey))
        except BaseException as error:
            self._leave(lane)
            if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                raise explain_failure(error, journey.target.name, endpoint) from error
            # What httpx has written is not known.
            journey.outgoing.sent = not isinstance(error, httpx.PoolTimeout)
            raise
        stream = _Stream(response.stream, lambda: self._leave(lane))
        headers = response.headers.raw
        return Answer(response.status_code, headers, stream, response.extensions, endpoint)

    def _leave(self, lane: _Lane) -> None:
        idle = self._lanes.leave(lane)
        if idle is not None:
            idle.transport.close()

    def close(self) -> None:
        """Close every connection."""
        for lane in self._lanes.clear():
            lane.transport.close()


class AsyncStockCarrier:
    """
    Carries calls over `httpx.AsyncHTTPTransport`: asyncio and trio.

    Args:
        mesh: gives contexts and generations.
        loop: what the connections belong to.
        options: ``http1``, ``http2`` and ``limits`` of the stock transport.
    """

    def __init__(self, mesh: MeshLike, loop: Any, **options: Any) -> None:
        # Weak: whoever keeps carriers by their loop must not keep the loop by its carrier.
        self._loop = weakref.ref(loop)
        self._lanes = _Lanes(
            mesh,
            lambda expected, http2: httpx.AsyncHTTPTransport(
                verify=mesh.client_context(expected),
                trust_env=False,
                **{**options, "http2": http2 and options["http2"]},
            ),
        )

    @property
    def loop(self) -> Any:
        """What the connections belong to; ``None`` when that has ended."""
        return self._loop()

    async def send(self, journey: Journey) -> Answer:
        """
        Send a request to the instance its attempt names.

        Raises:
            MeshConnectError, MeshConnectTimeout: it could not be reached.
            httpx.TransportError: as httpx.
        """
        endpoint = journey.attempt.endpoint
        lane, idle = self._lanes.enter(journey)
        if idle is not None:
            await idle.transport.aclose()
        try:
            response = await lane.transport.handle_async_request(_direct(journey))
        except BaseException as error:
            await self._leave(lane)
            if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
                raise explain_failure(error, journey.target.name, endpoint) from error
            # What httpx has written is not known.
            journey.outgoing.sent = not isinstance(error, httpx.PoolTimeout)
            raise

        async def leave() -> None:
            await self._leave(lane)

        stream = _AsyncStream(response.stream, leave)
        headers = response.headers.raw
        return Answer(response.status_code, headers, stream, response.extensions, endpoint)

    async def _leave(self, lane: _Lane) -> None:
        idle = self._lanes.leave(lane)
        if idle is not None:
            await idle.transport.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        for lane in self._lanes.clear():
            await lane.transport.aclose()

    def retire(self) -> list[AsyncStockCarrier]:
        """Tell what has to be closed later: this, with its connections."""
        return [self]


class _Stream(httpx.SyncByteStream):
    def __init__(self, stream: Any, done: Callable[[], None]) -> None:
        self._stream = stream
        self._done: Callable[[], None] | None = done
        self.ended: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        done, self._done = self._done, None
        if self.ended is not None:
            self.ended()
        try:
            self._stream.close()
        finally:
            if done is not None:
                done()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, stream: Any, done: Callable[[], Any]) -> None:
        self._stream = stream
        self._done: Callable[[], Any] | None = done
        self.ended: Callable[[], None] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            yield part

    async def aclose(self) -> None:
        done, self._done = self._done, None
        if self.ended is not None:
            self.ended()
        try:
            await self._stream.aclose()
        finally:
            if done is not None:
                await done()
