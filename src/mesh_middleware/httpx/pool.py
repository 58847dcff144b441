"""
Which connection carries the next request to one upstream.

Owns the pool of one upstream: its instances as *lanes*, their idle connections, the limit, and the
line of those who wait, first in first out. Pure bookkeeping: it never waits, locks or dials, and
hands back what has to be closed; the sync and the async carrier do the rest.

Theory. A connection belongs to a lane, that is to one instance with its expected identity, and to
one generation of leaf and roots. It is used again only while both are current; everything else is
closed when it comes back, so that a rotation never disturbs a request under way. Those who wait
wait for the upstream, not for an instance: a connection that comes back goes to the first of them,
so nobody overtakes.
"""

from __future__ import annotations

import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import httpx

from ..resolve import Endpoint
from ..tls import peer_of
from .upstreams import MeshLike, sni

MAX_AGE = 3600.0
"""Longest life of a connection in seconds, so that no identity is believed for ever."""


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
        draw: a number from 0 up to, not including, 1.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        mesh: MeshLike,
        limits: httpx.Limits,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mesh = mesh
        self._draw = draw
        self._clock = clock
        self._most = _or_inf(limits.max_connections)
        self._most_idle = _or_inf(limits.max_keepalive_connections)
        self._expiry = _or_inf(limits.keepalive_expiry)
        self._endpoints: Sequence[Endpoint] = ()
        self._lanes: list[Lane[C]] = []
        self._weight = 0
        self._idle = 0
        self._line: deque[Waiter[C]] = deque()
        self.generation = -1
        self.open = 0

    def update(self, endpoints: Sequence[Endpoint]) -> list[C]:
        """
        Follow the mesh: the instances and the generation that hold now.

        Returns:
            Idle connections that no longer belong here, to be closed.
        """
        generation = self._mesh.generation
        same = endpoints is self._endpoints or endpoints == self._endpoints
        if same and generation == self.generation:
            return []
        known = {lane.endpoint: lane for lane in self._lanes}
        kept = [known.pop(one) if one in known else Lane[C](one, self._mesh) for one in endpoints]
        for lane in known.values():
            lane.current = False
        stale = [*known.values(), *(kept if generation != self.generation else ())]
        self._endpoints, self.generation, self._lanes = endpoints, generation, kept
        self._weight = sum(endpoint.weight for endpoint in endpoints)
        return [connection for lane in stale for connection in self._empty(lane)]

    def choose(self, but: Sequence[Lane[C]] = ()) -> Lane[C] | None:
        """
        Draw an instance by weight.

        Args:
            but: instances that were tried already.
        """
        lanes, weight = self._lanes, self._weight
        if but:
            lanes = [lane for lane in lanes if lane not in but]
            weight = sum(lane.endpoint.weight for lane in lanes)
        if len(lanes) <= 1:
            return lanes[0] if lanes else None
        point = self._draw() * weight
        for lane in lanes:
            point -= lane.endpoint.weight
            if point < 0:
                return lane
        return lanes[-1]

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

    def reuse_any(self) -> tuple[C | None, list[C]]:
        """Do as `reuse`, to whatever instance."""
        unfit: list[C] = []
        for lane in self._lanes:
            connection, more = self.reuse(lane)
            unfit += more
            if connection is not None:
                return connection, unfit
        return None, unfit

    def admit(self) -> bool:
        """Count one connection more, if the limit and those in line leave room for it."""
        if self._line or self.open >= self._most:
            return False
        self.open += 1
        return True

    def queue(self, waiter: Waiter[C]) -> None:
        """Put somebody at the end of the line."""
        self._line.append(waiter)

    def give_back(self, connection: C, reusable: bool) -> list[C]:
        """
        Take back a connection whose request is done.

        Returns:
            Connections to be closed.
        """
        connection.idle_since = self._clock()
        if not reusable or not self._is_fit(connection):
            self.forget()
            return [connection]
        while self._line:
            if self._line.popleft().give(connection):
                return []
        connection.lane.idle.append(connection)
        self._idle += 1
        return self._trim()

    def forget(self) -> None:
        """Count one connection less; whoever is first in line may make one."""
        self.open -= 1
        while self._line and self.open < self._most:
            if self._line.popleft().give(None):
                self.open += 1

    def clear(self) -> list[C]:
        """Take every idle connection out, to be closed."""
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
            oldest = min(
                (lane for lane in self._lanes if lane.idle),
                key=lambda lane: lane.idle[0].idle_since,
            )
            closed.append(oldest.idle.pop(0))
            self._idle -= 1
            self.forget()
        return closed

    def _is_fit(self, connection: C) -> bool:
        now = self._clock()
        return (
            connection.generation == self._mesh.generation
            and connection.lane.current
            and now < connection.retire_at
            and now - connection.idle_since < self._expiry
        )


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
