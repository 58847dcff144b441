"""
Which of httpx's own transports carries the next call.

Owns the *lanes*: a transport each, whose context completes handshakes with one identity only. A
lane that takes no new call is closed with its last answer. Waits for nothing, and closes nothing
itself: what has to be closed is handed back.

Theory. Over HTTP/2 a lane has one connection, and ends before that does: a server that says GOAWAY
tells which calls it will not process, and some (Hypercorn 0.18) drop even those that they have
begun. So a lane is left after `MOST_REQUESTS`, as soon as GOAWAY came, and when anything came while
it was idle; what was not processed is sent again over another. Threads do not share a lane of
HTTP/2: httpcore's connection is safe for the tasks of one loop only.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..identity import ServiceId
from .journey import Journey
from .library import httpx
from .upstreams import MeshLike

MOST_REQUESTS = 900
"""Calls over one HTTP/2 connection: Hypercorn and nginx end it after 1,000."""
MOST_SENDINGS = 5
"""Times that one attempt is sent, where the server has processed none of the others."""
MOST_TRIES = 50
"""Times that a connection is asked for, where nothing was sent over any of the others: who shares
one with a call that is given up while it is made has to ask again."""
BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.LocalProtocolError)
"""What httpx raises when a connection ends under a request; the last, when its stream was reset."""

UNFIT = (httpx.InvalidURL, UnicodeError)
"""What is raised where an instance's address is none, before anything is sent to it."""
_FINAL = (httpx.ConnectError, httpx.TimeoutException, *UNFIT)
_OPENED, _UNSURE = "http2.send_request_headers.complete", "http2.send_request_headers.failed"
_BEGINS = "http2.send_connection_init.started"
_SENT = ("http2.send_request_body.complete", "http2.send_request_body.failed")


class SpentError(httpx.RemoteProtocolError):
    """The connection takes no more requests; this one was not sent."""


class ImpatientError(BaseException):
    """
    The time of one call is over; the connection that it shares goes on.

    No `Exception`: httpcore would take it for the end of the connection, and fail all others.

    Args:
        timeout: which of httpx's it is.
    """

    def __init__(self, timeout: type[httpx.TimeoutException]) -> None:
        super().__init__()
        self.timeout = timeout


@dataclass(frozen=True, slots=True)
class LaneKey:
    """
    What calls of one lane have in common.

    Args:
        expected: who has to answer.
        http2: whether HTTP/2 is offered.
        address: of the instance, over HTTP/2: one connection is one instance's.
    """

    expected: ServiceId
    http2: bool
    address: tuple[str, int] | None = None


class Lane:
    """
    One transport.

    Args:
        transport: of httpx.
        known: what is known of its HTTP/2 connection; ``None`` where that is not offered.
        generation: of leaf and roots when it was made.
    """

    def __init__(self, transport: Any, known: Any, generation: int) -> None:
        self.transport = transport
        self.generation = generation
        self.calls = self.count = 0
        self.retired = self.broken = False
        self.idle_since = 0.0
        self.idle_heard = -1
        """What its connection had heard when it was idle last."""
        self.first: Sending | None = None
        """The call that makes the connection, until it is sent."""
        self._known = known

    @property
    def frames(self) -> Any:
        """What came over its HTTP/2 connection, if it has one."""
        return None if self._known is None else self._known.frames

    def limit(self, deadline: float | None) -> None:
        """Have the call that is made now end by *deadline*; for lanes that are not shared."""
        if self._known is not None:
            self._known.deadline = deadline

    def is_fit(self, now: float, expiry: float) -> bool:
        """Whether it may carry one call more."""
        frames = self.frames
        if self._has_lost():
            return False
        if frames is None:
            return True  # httpcore knows what to do with connections of HTTP/1.1
        spent = self.broken or frames.last is not None or self.count >= MOST_REQUESTS
        if spent or now >= self._known.retire_at:
            return False
        return self.calls > 0 or (now - self.idle_since < expiry and self._known.is_quiet())

    def _has_lost(self) -> bool:
        # When a call is given up while several wait for one connection to be made, httpcore
        # forgets that connection, and it is made all the same.
        open_ = 0 if self._known is None else len(self._known.open)
        return open_ > 0 and open_ > len(self.transport._pool.connections)

    async def aclose(self) -> None:
        """Close all that an async transport has open, also what httpcore has lost."""
        try:
            await self.transport.aclose()
        finally:
            if self._known is not None:
                await self._known.aclose()


class Sending:
    """
    A request on a lane: how far it came.

    Args:
        lane: the lane.
        idle: whether nothing came over the lane's connection, an older one, since it was idle.
    """

    def __init__(self, lane: Lane, idle: bool) -> None:
        self.lane = lane
        self.begun, self._opened, self._stream = False, False, 0
        self._heard: int | None = lane.frames.heard if idle and lane.frames else None

    def note(self, event: str, info: dict[str, Any]) -> None:
        """
        Hear what httpcore does; its ``trace`` extension.

        Raises:
            SpentError: the connection is not to be used.
        """
        if event == _BEGINS:
            self.lane.first = self
        elif event.endswith(".send_request_headers.started"):
            # httpcore counts streams wrongly when the first call was given up in that moment.
            if self.lane.first not in (None, self):
                raise SpentError("the connection was not made to its end")
            self.lane.first = None
            self.begun, self._stream = True, info.get("stream_id", 0)
        elif self.lane.frames is None:
            pass
        elif event == _OPENED or (
            event == _UNSURE and not isinstance(info["exception"], Exception)
        ):
            # Who was given up while it waited to write has its head written by the next.
            self._opened = True
            self.lane.frames.opened(self._stream)
        elif event in _SENT:
            self.lane.frames.sent(self._stream)

    def failed(self, error: BaseException) -> None:
        """Leave the lane, if *error* may have been the end of its connection."""
        self.lane.broken |= isinstance(error, Exception) or self.lane.first is self
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if self._opened:
            self.lane.frames.cancel(self._stream)

    @property
    def opened(self) -> bool:
        """Whether its head was sent."""
        return self._opened

    @property
    def processed(self) -> bool:
        """Whether the server may have processed anything of it."""
        frames = self.lane.frames
        return self.begun and (frames is None or frames.processed(self._stream))

    def may_repeat(self, error: BaseException, journey: Journey) -> bool:
        """
        Tell whether the request may be sent again, over another connection, after *error*.

        What the server did not process may, whatever its method, unless its body was drawn; and
        what came to a connection that had been idle, and was gone, if it may arrive twice.

        Source: RFC 9113, 6.8 and 8.7; RFC 9110, 9.2.2.
        """
        if not self.begun:
            # httpcore may raise anything here when the call that made the connection was given up.
            return isinstance(error, Exception) and not isinstance(error, _FINAL)
        if not isinstance(error, BROKEN):
            return False
        if not self.processed:
            return journey.outgoing.stream is None
        frames = self.lane.frames
        stale = frames is not None and frames.heard == self._heard
        return stale and journey.outgoing.repeatable


class Lanes:
    """
    The lanes of one carrier, counted under a lock: threads share a sync client.

    Args:
        mesh: tells the generation.
        make: makes a lane's transport, and what is known of its connection.
        limits: of httpx; how many idle lanes are kept, and how long.
        shared: whether calls share a lane of HTTP/2.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        mesh: MeshLike,
        make: Callable[[LaneKey], tuple[Any, Any]],
        limits: httpx.Limits,
        *,
        shared: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mesh, self._make, self._clock = mesh, make, clock
        self._expiry = math.inf if limits.keepalive_expiry is None else limits.keepalive_expiry
        most = limits.max_keepalive_connections
        self._most_idle = math.inf if most is None else most
        self._shared = shared
        self._lock = threading.Lock()
        self._lanes: dict[LaneKey, list[Lane]] = {}
        self._draining: set[Lane] = set()
        self._ended = False

    def enter(self, key: LaneKey, *, begins: bool) -> tuple[Sending, list[Lane]]:
        """Take a lane for a call that *begins*, or goes on; the second value has to be closed."""
        now, generation, closed = self._clock(), self._mesh.generation, list[Lane]()
        with self._lock:
            self._ended = self._ended and not begins
            found = None
            for lane in reversed(self._lanes.get(key, ())):
                if lane.calls and key.http2 and not self._shared:
                    continue
                if lane.generation == generation and lane.is_fit(now, self._expiry):
                    found = lane
                    break
                self._retire(key, lane, closed)
            if found is None:
                self._forget_idle(now, closed)
                found = Lane(*self._make(key), generation)
                self._lanes.setdefault(key, []).append(found)
            # Also beside others that came since: none of them has heard anything.
            idle = found.frames is not None and found.frames.heard == found.idle_heard
            found.calls += 1
            found.count += 1
            return Sending(found, idle), closed

    def leave(self, key: LaneKey, lane: Lane) -> list[Lane]:
        """Give the lane back; what is returned has to be closed."""
        closed: list[Lane] = []
        with self._lock:
            lane.calls -= 1
            lane.idle_since = self._clock()
            if lane.calls:
                return closed
            if lane.frames is not None:
                lane.idle_heard = lane.frames.heard
            if lane.retired:
                self._draining.discard(lane)
                return [lane]
            idle = [one for one in self._lanes.get(key, ()) if not one.calls]
            if self._ended and lane in idle:
                self._retire(key, lane, closed)
            elif len(idle) > self._most_idle:
                self._retire(key, idle[0], closed)
        return closed

    def _retire(self, key: LaneKey, lane: Lane, closed: list[Lane]) -> None:
        lane.retired = True
        lanes = self._lanes[key]
        lanes.remove(lane)
        if not lanes:
            del self._lanes[key]
        if lane.calls:
            self._draining.add(lane)
        else:
            closed.append(lane)

    def _forget_idle(self, now: float, closed: list[Lane]) -> None:
        # Of instances that are gone, or are not called any more.
        for key, lanes in list(self._lanes.items()):
            for lane in list(lanes):
                if not lane.calls and now - lane.idle_since >= self._expiry:
                    self._retire(key, lane, closed)

    def clear(self) -> list[Lane]:
        """
        End: tell the lanes to be closed now.

        Those that calls under way still take are closed after them, unless another call begins.
        Of threads, so are those in use: a socket that is closed under a thread which reads it may
        be another connection's by then.
        """
        closed: list[Lane] = []
        with self._lock:
            self._ended = True
            if not self._shared:
                for key, lanes_of in list(self._lanes.items()):
                    for lane in list(lanes_of):
                        self._retire(key, lane, closed)
                return closed
            lanes = [*(lane for each in self._lanes.values() for lane in each), *self._draining]
            self._lanes.clear()
            self._draining.clear()
            return lanes
