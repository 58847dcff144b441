"""
The httpx transports that speak mesh.

Owns the order of a call: name, instances, carrier, and what is made of the answer. How bytes
travel is the carriers' business, which name means what is `upstreams`'.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import anyio.to_thread

from ..resolve import Resolver
from ..routing.chain import Retries
from .aio import AsyncCarrier
from .denial import MAX_DENIAL_BYTES, MeshResponse, may_be_denial
from .drawn import BodyError
from .journey import MAX_HELD_BYTES, Journey, mark
from .library import httpx
from .redirects import keep_inside
from .stock import AsyncStockCarrier, StockCarrier
from .sync import SyncCarrier
from .upstreams import PATIENCE, MeshLike, Target, Targets
from .wishes import Wishes, check_retries, read_wishes

DEFAULT_LIMITS = httpx.Limits(
    max_connections=100, max_keepalive_connections=100, keepalive_expiry=60.0
)
"""httpx's own limits would close idle connections after 5 s and keep 20: a handshake costs more
than the requests that it saves a connection for."""


_made: weakref.WeakSet[MeshTransport | AsyncMeshTransport] = weakref.WeakSet()
_inherited: list[object] = []
"""What a child process got from its parent: kept, since even letting it go could say goodbye on
connections that the parent still uses."""


def _after_fork() -> None:
    # The parent keeps its connections: two processes on one TLS connection break both.
    _inherited.extend([transport._begin_anew() for transport in list(_made)])


os.register_at_fork(after_in_child=_after_fork)


class MeshTransport(httpx.BaseTransport):
    """
    Carries requests to upstreams over mutual TLS; ``httpx.Client(mounts={"mesh://": ...})``.

    ``https``, ``http`` and ``mesh`` URLs mean the same: the host names an upstream, the connection
    is mutual TLS to an instance that the mesh named, and its SPIFFE ID is verified before the
    first byte is sent. A port in the URL is ignored. No variable of the environment plays a part.

    Args:
        mesh: the mesh to call through; ``None`` takes this process's own, at the first request.
        resolver: tells instances instead of the agent.
        domain: Consul's DNS domain; the mesh's setting unless given.
        http1: as httpx.
        http2: whether HTTP/2 may be spoken; needs the ``h2`` package, as in httpx.
        limits: as httpx.
        retries: when a call is tried again, where neither it nor a route says otherwise.

    Raises:
        MeshConnectError: when a request is made; see `mesh_middleware.httpx.errors`.
    """

    def __init__(
        self,
        mesh: MeshLike | None = None,
        *,
        resolver: Resolver | None = None,
        domain: str | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = DEFAULT_LIMITS,
        retries: Retries | None = None,
    ) -> None:
        self._targets = Targets(mesh, resolver, domain)
        self._usual = Wishes(retries=check_retries(retries))
        self._options: dict[str, Any] = {"http1": http1, "http2": http2, "limits": limits}
        self._lock = threading.Lock()
        self._carrier: SyncCarrier | StockCarrier | None = None
        _made.add(self)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send *request* to an instance of the upstream it names.

        Raises:
            MeshConnectError: nobody could be reached who may answer.
            httpx.TransportError: as httpx.
        """
        began, wishes = time.monotonic(), read_wishes(request.extensions, self._usual)
        target = self._targets.find(request.url.host)
        if not target.ready():
            target = self._look_again(request.url.host)
            target.wait(_patience(request, wishes))
        journey, carrier = Journey(target, request, wishes, began), self._carry()
        while True:
            journey.depart()
            try:
                answer = carrier.send(journey)
                response = journey.dress(answer)
                if may_be_denial(answer.status, response.headers):
                    self._judge(response, MAX_DENIAL_BYTES)
                elif journey.waits_for_body(answer, response):
                    self._judge(response, MAX_HELD_BYTES)
            except BodyError as error:
                journey.lost(error)
                raise error.error from error.error.__cause__
            except BaseException as error:
                pause = journey.lost(error)
                if pause is None:
                    raise
            else:
                pause = journey.heard(response)
                if pause is None:
                    if answer.status // 100 == 3:
                        keep_inside(response, request.url, self.carries)
                    return journey.arrive(response, answer)
                response.close()
            if pause:
                time.sleep(pause)

    def _begin_anew(self) -> object:
        """Forget everything, in a child process; returns what was held."""
        held = (self._carrier, self._targets.forget())
        self._carrier, self._lock = None, threading.Lock()
        return held

    def carries(self, url: httpx.URL) -> bool:
        """Whether *url* names something in the mesh, so that nothing else may carry it."""
        return self._targets.name(url)

    def _look_again(self, host: str) -> Target:
        if self._targets.follow():
            self.close()
            self._carrier = None
        target = self._targets.find(host)
        target.renew()
        return target

    def _carry(self) -> SyncCarrier | StockCarrier:
        carrier = self._carrier
        if carrier is None:
            with self._lock:  # threads that come first together share one: limits are its own
                carrier = self._carrier
                if carrier is None:
                    carrier = self._carrier = self._new_carrier()
        return carrier

    def _new_carrier(self) -> SyncCarrier | StockCarrier:
        mesh, options = self._targets.mesh, self._options
        if options["http2"]:
            return StockCarrier(mesh, http1=options["http1"], limits=options["limits"])
        return SyncCarrier(mesh, options["limits"])

    def _judge(self, response: MeshResponse, most: int) -> None:
        rest = iter(response.stream)  # type: ignore[arg-type]
        stream = _Replayed(response.stream, rest)
        response.stream = stream
        try:
            while stream.size <= most:
                part = next(rest, None)
                if part is None:
                    if response.status_code == 403:
                        mark(response, b"".join(stream.parts))
                    return
                stream.add(part)
        except BaseException:
            response.stream.close()
            raise

    def close(self) -> None:
        """Close every connection; the mesh goes on."""
        if self._carrier is not None:
            self._carrier.close()


class AsyncMeshTransport(httpx.AsyncBaseTransport):
    """
    `MeshTransport` for `httpx.AsyncClient`: asyncio, uvloop and trio.

    Args:
        mesh: the mesh to call through; ``None`` takes this process's own, at the first request.
        resolver: tells instances instead of the agent.
        domain: Consul's DNS domain; the mesh's setting unless given.
        http1: as httpx.
        http2: whether HTTP/2 may be spoken; needs the ``h2`` package, as in httpx.
        limits: as httpx.
        retries: when a call is tried again, where neither it nor a route says otherwise.
    """

    def __init__(
        self,
        mesh: MeshLike | None = None,
        *,
        resolver: Resolver | None = None,
        domain: str | None = None,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = DEFAULT_LIMITS,
        retries: Retries | None = None,
    ) -> None:
        self._targets = Targets(mesh, resolver, domain)
        self._usual = Wishes(retries=check_retries(retries))
        self._options: dict[str, Any] = {"http1": http1, "http2": http2, "limits": limits}
        self._lock = threading.Lock()
        self._carrier: AsyncCarrier | AsyncStockCarrier | None = None
        self._left: list[AsyncStockCarrier] = []
        # Connections belong to the loop that made them, and threads may each run one.
        self._carriers: weakref.WeakKeyDictionary[Any, AsyncCarrier | AsyncStockCarrier] = (
            weakref.WeakKeyDictionary()
        )
        _made.add(self)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """
        Send *request* to an instance of the upstream it names.

        Raises:
            MeshConnectError: nobody could be reached who may answer.
            httpx.TransportError: as httpx.
        """
        began, wishes = time.monotonic(), read_wishes(request.extensions, self._usual)
        target = self._targets.find(request.url.host)
        if not target.ready():
            # Only until the first answers are there: a thread waits, the loop does not.
            target = await self._look_again(request.url.host)
            patience = _patience(request, wishes)
            await anyio.to_thread.run_sync(target.wait, patience, abandon_on_cancel=True)
        journey, carrier = Journey(target, request, wishes, began), self._carry()
        while True:
            journey.depart()
            try:
                answer = await carrier.send(journey)
                response = journey.dress(answer)
                if may_be_denial(answer.status, response.headers):
                    await self._judge(response, MAX_DENIAL_BYTES)
                elif journey.waits_for_body(answer, response):
                    await self._judge(response, MAX_HELD_BYTES)
            except BodyError as error:
                journey.lost(error)
                raise error.error from error.error.__cause__
            except BaseException as error:
                pause = journey.lost(error)
                if pause is None:
                    raise
            else:
                pause = journey.heard(response)
                if pause is None:
                    if answer.status // 100 == 3:
                        keep_inside(response, request.url, self.carries)
                    return journey.arrive(response, answer)
                await response.aclose()
            if pause:
                await anyio.sleep(pause)

    def _begin_anew(self) -> object:
        """Forget everything, in a child process; returns what was held."""
        held = (self._carrier, self._carriers, self._left, self._targets.forget())
        self._carrier, self._carriers, self._left = None, weakref.WeakKeyDictionary(), []
        self._lock = threading.Lock()
        return held

    def carries(self, url: httpx.URL) -> bool:
        """Whether *url* names something in the mesh, so that nothing else may carry it."""
        return self._targets.name(url)

    async def _look_again(self, host: str) -> Target:
        if self._targets.follow():
            for _, carrier in self._take_carriers():
                self._left += carrier.retire()
        target = self._targets.find(host)
        target.renew()
        return target

    def _carry(self) -> AsyncCarrier | AsyncStockCarrier:
        loop, carrier = _loop(), self._carrier
        if carrier is None or carrier.loop is not loop:
            carrier = self._carrier_of(loop)
        return carrier

    def _carrier_of(self, loop: Any) -> AsyncCarrier | AsyncStockCarrier:
        with self._lock:
            for gone in [one for one in self._carriers if _has_ended(one)]:
                del self._carriers[gone]  # it took its connections with it
            carrier = self._carriers.get(loop)
            if carrier is None:
                mesh, options = self._targets.mesh, self._options
                carrier = self._carriers[loop] = (
                    AsyncCarrier(mesh, options["limits"], loop)
                    if isinstance(loop, asyncio.AbstractEventLoop) and not options["http2"]
                    else AsyncStockCarrier(mesh, loop, **options)
                )
            # In here: what another thread has closed meanwhile is nobody's next carrier.
            self._carrier = carrier
            return carrier

    async def _judge(self, response: MeshResponse, most: int) -> None:
        rest = aiter(response.stream)  # type: ignore[arg-type]
        stream = _AsyncReplayed(response.stream, rest)
        response.stream = stream
        try:
            while stream.size <= most:
                part = await anext(rest, None)
                if part is None:
                    if response.status_code == 403:
                        mark(response, b"".join(stream.parts))
                    return
                stream.add(part)
        except BaseException:
            await response.stream.aclose()
            raise

    async def aclose(self) -> None:
        """Close every connection, those of other loops too; the mesh goes on."""
        here, left = _loop(), self._left
        self._left = []
        for loop, carrier in [*self._take_carriers(), *((one.loop, one) for one in left)]:
            if loop is here:
                await carrier.aclose()
            else:
                carrier.leave()

    def _take_carriers(self) -> list[tuple[Any, AsyncCarrier | AsyncStockCarrier]]:
        with self._lock:
            carriers = list(self._carriers.items())
            self._carrier, self._carriers = None, weakref.WeakKeyDictionary()
        return carriers


def _loop() -> Any:
    """What connections belong to: the running loop of asyncio, or of trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return sys.modules["trio"].lowlevel.current_trio_token()


def _has_ended(loop: Any) -> bool:
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_closed()


def _patience(request: httpx.Request, wishes: Wishes) -> float:
    connect = request.extensions.get("timeout", {}).get("connect")
    given = [one for one in (connect, wishes.timeout) if one is not None]
    return float(max(0.0, min(given, default=PATIENCE)))


class _Replayed(httpx.SyncByteStream):
    """A body whose beginning was read already."""

    def __init__(self, stream: Any, rest: Iterator[bytes]) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self._stream = stream
        self._rest = rest

    def add(self, part: bytes) -> None:
        self.parts.append(part)
        self.size += len(part)

    def __iter__(self) -> Iterator[bytes]:
        yield from self.parts
        yield from self._rest

    def close(self) -> None:
        self._stream.close()


class _AsyncReplayed(httpx.AsyncByteStream):
    """A body whose beginning was read already."""

    def __init__(self, stream: Any, rest: AsyncIterator[bytes]) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self._stream = stream
        self._rest = rest

    def add(self, part: bytes) -> None:
        self.parts.append(part)
        self.size += len(part)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        async for part in self._rest:
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
