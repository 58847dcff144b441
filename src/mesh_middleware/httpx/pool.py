"""
Which connection carries the next request to one upstream.

Owns the pool of one upstream: its instances as *lanes*, their idle connections, the limit, and the
line of those who wait, first in first out. Pure bookkeeping: it never waits, locks or dials, and
hands back what has to be closed; the sync and the async carrier do the rest.

Theory. A connection belongs to a lane, that is to one instance with its expected identity, and to
one generation of leaf and roots. It is used again only while both are current; everything else is
closed when it comes back, so that a rotation never disturbs a request under way. All lanes share
one limit and one line. A connection that comes back is for the first in line, so nobody overtakes:
who waits for another instance either takes it all the same, where that makes no difference, or
takes its place.
"""

from __future__ import annotations

import math
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from ..gate import peer_of
from ..identity import ServiceId
from ..resolve import Endpoint
from ..routing.calls import Limits
from .library import httpx
from .upstreams import MeshLike, sni

MAX_AGE = 3600.0
"""Longest life of a connection in seconds, so that no identity is believed for ever."""


_NONE = Limits()


class Pooled(Protocol):
    """What the pool knows of a connection."""

    lane: Lane[Pooled]
    generation: int
    retire_at: float
    idle_since: float

    def is_usable(self) -> bool:
        """Whether the other end has not closed it."""
        ...


C = TypeVar("C", bound=Pooled)
Given = TypeVar("Given", bound=Pooled, contravariant=True)


class Waiter(Protocol[Given]):
    """Somebody in line."""

    def takes(self, lane: Lane[Any]) -> bool:
        """Whether a connection to *lane* would do."""
        ...

    def give(self, connection: Given | None) -> bool:
        """
        Hand over a connection, or with ``None`` the permission to make one.

        Returns:
            ``False`` when nobody waits there any more.
        """
        ...


class Lane(Generic[C]):
    """
    One instance of the upstream.

    Args:
        endpoint: where it is and who has to answer.
        mesh: gives contexts.
    """

    __slots__ = ("_context", "_generation", "_mesh", "current", "endpoint", "idle", "server_name")

    def __init__(self, endpoint: Endpoint, mesh: MeshLike) -> None:
        self.endpoint = endpoint
        self.server_name = sni(endpoint.expected) or endpoint.host
        self.idle: list[C] = []
        self.current = True
        self._mesh = mesh
        self._context: ssl.SSLContext | None = None
        self._generation = -1

    def context(self, generation: int) -> ssl.SSLContext:
        """The context for a new connection."""
        if self._context is None or generation != self._generation:
            self._context = self._mesh.client_context(self.endpoint.expected)
            self._context.set_alpn_protocols(["http/1.1"])
            self._generation = generation
        return self._context


class Pool(Generic[C]):
    """
    The connections to one upstream.

    Args:
        mesh: gives contexts and generations.
        limits: httpx's; they hold for each upstream.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        mesh: MeshLike,
        limits: httpx.Limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mesh = mesh
        self._clock = clock
        self._most = _or_inf(limits.max_connections)
        self._most_idle = _or_inf(limits.max_keepalive_connections)
        self._expiry = _or_inf(limits.keepalive_expiry)
        self._endpoints: Sequence[Endpoint] = ()
        self._lanes: list[Lane[C]] = []
        self._by_endpoint: dict[Endpoint, Lane[C]] = {}
        self._idle = 0
        self._line: deque[Waiter[C]] = deque()
        self._limits = _NONE
        self._ceiling, self._longest = self._most, math.inf
        self._ended = False
        self.generation = -1
        self.open = 0

    def update(
        self, endpoints: Sequence[Endpoint], limits: Limits = _NONE, *, begins: bool = True
    ) -> list[C]:
        """
        Follow the mesh: the instances, the generation and the limits that hold now.

        Args:
            endpoints: of the upstream.
            limits: of the service that we are; the narrower ones, these or httpx's, hold.
            begins: whether a call begins, and does not only go on: the pool is used again then.

        Returns:
            Idle connections that no longer belong here, to be closed.
        """
        generation = self._mesh.generation
        if limits is not self._limits:
            self._limits = limits
            self._ceiling = max(1, min(self._most, _or_inf(limits.connections)))
            self._longest = _or_inf(limits.pending)
        if begins:
            self._ended = False
        same = endpoints is self._endpoints or endpoints == self._endpoints
        if same and generation == self.generation:
            return []
        # Another weight is no other instance: its connections stay.
        known = {_place(lane.endpoint): lane for lane in self._lanes}
        lanes: dict[Place, Lane[C]] = {}
        for one in endpoints:
            place = _place(one)
            if place not in lanes:
                lanes[place] = known.pop(place) if place in known else Lane[C](one, self._mesh)
                lanes[place].endpoint = one
        for lane in known.values():
            lane.current = False
        stale = [*known.values(), *(lanes.values() if generation != self.generation else ())]
        self._endpoints, self.generation = endpoints, generation
        self._lanes = list(lanes.values())
        self._by_endpoint = {one: lanes[_place(one)] for one in endpoints}
        return [connection for lane in stale for connection in self._empty(lane)]

    def lane(self, endpoint: Endpoint) -> Lane[C]:
        """Find the lane of *endpoint*; one that is gone already gets one of its own."""
        found = self._by_endpoint.get(endpoint)
        if found is None:
            found = Lane[C](endpoint, self._mesh)
            found.current = False
        return found

    def reuse(self, lane: Lane[C]) -> tuple[C | None, list[C]]:
        """
        Take an idle connection to the instance, the one used last.

        Returns:
            The connection, if there is one, and others found unfit, to be closed.
        """
        unfit: list[C] = []
        while lane.idle:
            connection = lane.idle.pop()
            self._idle -= 1
            if self._is_fit(connection) and connection.is_usable():
                return connection, unfit
            self.open -= 1
            unfit.append(connection)
        return None, unfit

    def reuse_any(self, takes: Callable[[Lane[C]], bool]) -> tuple[C | None, list[C]]:
        """
        Do as `reuse`, to any instance that *takes* agrees to.

        Returns:
            As `reuse`; where it agrees to none, one idle connection is closed to make room.
        """
        unfit: list[C] = []
        for lane in self._lanes:
            connection, more = self.reuse(lane)
            unfit += more
            if connection is None:
                continue
            if takes(lane):
                return connection, unfit
            lane.idle.append(connection)
            self._idle += 1
        if self._idle and not self._line:
            unfit.append(self._drop_oldest())
            self.open -= 1
        return None, unfit

    def admit(self) -> bool:
        """Count one connection more, if the limit and those in line leave room for it."""
        if self._line or self.open >= self._ceiling:
            return False
        self.open += 1
        return True

    def may_queue(self) -> bool:
        """Whether the line may grow."""
        return len(self._line) < self._longest

    def queue(self, waiter: Waiter[C]) -> None:
        """Put somebody at the end of the line."""
        self._line.append(waiter)

    def leave(self, waiter: Waiter[C]) -> None:
        """Take somebody who gave up out of the line: it is not the longer for those who left."""
        with suppress(ValueError):  # had its turn
            self._line.remove(waiter)

    def give_back(self, connection: C, reusable: bool) -> list[C]:
        """
        Take back a connection whose request is done.

        Returns:
            Connections to be closed.
        """
        connection.idle_since = self._clock()
        stale = not reusable or self._ended or not self._is_fit(connection)
        # Who takes it out of the idle ones looks then; who stands in line gets it as it is.
        if stale or (self._line and not connection.is_usable()):
            self.forget()
            return [connection]
        while self._line:
            waiter = self._line.popleft()
            if not waiter.takes(connection.lane):
                if waiter.give(None):
                    return [connection]
            elif waiter.give(connection):
                return []
        connection.lane.idle.append(connection)
        self._idle += 1
        return self._trim()

    def forget(self) -> None:
        """Count one connection less; whoever is first in line may make one."""
        self.open -= 1
        while self._line and self.open < self._ceiling:
            if self._line.popleft().give(None):
                self.open += 1

    def clear(self) -> list[C]:
        """
        End: take every idle connection out, to be closed.

        What is in use is closed when it comes back, unless the pool is used again meanwhile.
        """
        self._ended = True
        return [connection for lane in self._lanes for connection in self._empty(lane)]

    def _empty(self, lane: Lane[C]) -> list[C]:
        found, lane.idle = lane.idle, []
        self._idle -= len(found)
        for _ in found:
            self.forget()
        return found

    def _trim(self) -> list[C]:
        closed: list[C] = []
        while self._idle > self._most_idle:
            closed.append(self._drop_oldest())
            self.forget()
        return closed

    def _drop_oldest(self) -> C:
        oldest = min(
            (lane for lane in self._lanes if lane.idle),
            key=lambda lane: lane.idle[0].idle_since,
        )
        self._idle -= 1
        return oldest.idle.pop(0)

    def _is_fit(self, connection: C) -> bool:
        now = self._clock()
        return (
            connection.generation == self._mesh.generation
            and connection.lane.current
            and now < connection.retire_at
            and now - connection.idle_since < self._expiry
        )


Place = tuple[str, int, ServiceId]


def _place(endpoint: Endpoint) -> Place:
    return endpoint.host, endpoint.port, endpoint.expected


def retirement(tls: object, clock: Callable[[], float] = time.monotonic) -> float:
    """
    Tell when a new connection has to end.

    Args:
        tls: its TLS object: the peer's certificate ends too.
    """
    peer = peer_of(tls)
    left = MAX_AGE if peer is None else min(MAX_AGE, peer.expires - time.time())
    return clock() + left


def _or_inf(limit: float | None) -> float:
    return math.inf if limit is None else limit
