"""
Hypercorn 0.18: one HTTP/2 connection can take the event loop from all others.

Symptom: 1,600 streams that are begun and reset in a few packets, a flood of requests, or a thousand
PRIORITY frames hold up every other connection for seconds; beyond a thousand PRIORITY frames a
traceback is logged.

Cause: whatever comes in one read of the socket (64 KiB) is handled without a turn for others,
resets are not counted, and the tree of priorities takes streams that do not exist, up to its limit,
where it raises an error that nobody handles.

Fix: what is read is handled in slices, with a turn of the event loop after each. Resets, by the
peer or by h2 for the peer's errors on a stream in progress, are counted per connection; beyond a
limit in ten seconds the connection says GOAWAY (ENHANCE_YOUR_CALM), answers what it has begun, and
is closed at once if its peer goes on. Priorities are kept for streams that exist only.

Source: RFC 9113, 5.3.2, 5.4.1 and 10.5; CVE-2023-44487 (rapid reset), CVE-2025-8671.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any

from h2.errors import ErrorCodes
from h2.events import StreamReset
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import H2Protocol
from hyperframe.frame import GoAwayFrame, RstStreamFrame
from priority.priority import PriorityError

from ..limits import h2_max_resets

_log = logging.getLogger("mesh_middleware.server")

SLICE = 2048
"""Bytes of one read that are handled in one turn of the event loop: some dozen small frames."""
RESET_WINDOW = 10.0
"""Seconds over which resets are counted."""


class ResetCount:
    """
    Resets of one connection.

    Args:
        limit: how many are taken within `RESET_WINDOW`.
        clock: monotonic seconds.
    """

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._moments: deque[float] = deque(maxlen=limit + 1)
        self.warned = False

    def add(self) -> bool:
        """Count one; tells whether there are too many now."""
        now = self._clock()
        self._moments.append(now)
        full = len(self._moments) > self._limit
        return full and now - self._moments[0] <= RESET_WINDOW

    def start_again(self) -> None:
        """Count from zero."""
        self._moments.clear()


def install() -> None:
    """Bind the repair."""
    protocol: Any = H2Protocol
    protocol.__init__ = _counting(protocol.__init__)
    protocol.handle = _in_turns(protocol.handle)
    protocol._handle_events = _with_a_limit(protocol._handle_events)
    protocol._priority_updated = _priority_updated


def _counting(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.mesh_resets = ResetCount(h2_max_resets(), self.context.time)
        self.mesh_own_resets, self.mesh_broken = 0, False
        connection = self.connection
        connection.receive_data = partial(_receive, self, connection.receive_data)

    return __init__


def _receive(protocol: Any, original: Callable[[bytes], list[Any]], data: bytes) -> list[Any]:
    # h2 resets a stream by itself for an error of the peer's: no event tells, but what it has to
    # send by then does.
    sent = protocol.connection._data_to_send
    before, highest = len(sent), protocol.connection.highest_inbound_stream_id
    try:
        events = original(data)
    except ProtocolError:
        protocol.mesh_broken = True
        raise
    if len(sent) > before:
        # A stream that had ended before is not counted: h2 resets it again for each frame that its
        # peer had sent before it could know.
        protocol.mesh_own_resets += sum(
            stream > highest or stream in protocol.streams
            for stream in _streams_reset(bytes(sent[before:]))
        )
    return events


def _streams_reset(frames: bytes) -> set[int]:
    streams, place = set(), 0
    while place + 9 <= len(frames):
        if frames[place + 3] == RstStreamFrame.type:
            streams.add(int.from_bytes(frames[place + 5 : place + 9], "big"))
        place += 9 + int.from_bytes(frames[place : place + 3], "big")
    return streams


def _in_turns(original: Callable[[Any, Any], Awaitable[None]]) -> Any:
    @wraps(original)
    async def handle(self: Any, event: Any) -> None:
        if not isinstance(event, RawData):
            await original(self, event)
            return
        data = event.data
        for start in range(0, len(data), SLICE):
            if self.closed:
                return
            if start:
                await self.context.sleep(0)
            await original(self, RawData(data=data[start : start + SLICE]))
            if self.mesh_broken and not self.closed:
                # The peer broke the protocol: applications beside it are told at once, and do not
                # wait for the end of a socket that may take its time.
                await self.handle(Closed())

    return handle


def _with_a_limit(original: Callable[[Any, Any], Awaitable[None]]) -> Any:
    @wraps(original)
    async def _handle_events(self: Any, events: list[Any]) -> None:
        by_peer = [one for one in events if isinstance(one, StreamReset) and one.remote_reset]
        resets, self.mesh_own_resets = len(by_peer) + self.mesh_own_resets, 0
        await original(self, events)
        for _ in range(resets):
            if self.mesh_resets.add():
                await _calm(self)
                return

    return _handle_events


async def _calm(protocol: Any) -> None:
    counter = protocol.mesh_resets
    if counter.warned:
        await protocol.send(Closed())
        await protocol.handle(Closed())
        return
    counter.warned = True
    counter.start_again()
    _log.warning("a connection of %s has reset too many streams; it is ended", protocol.client)
    protocol.mesh_said_goaway = True  # what comes from now on is refused, as at any end
    last = protocol.connection.highest_inbound_stream_id
    frame = GoAwayFrame(0, last_stream_id=last, error_code=ErrorCodes.ENHANCE_YOUR_CALM)
    await protocol.send(RawData(data=frame.serialize()))


async def _priority_updated(self: Any, event: Any) -> None:
    if event.stream_id not in self.stream_buffers:
        return
    depends_on = event.depends_on or None
    if depends_on is not None and depends_on not in self.stream_buffers:
        depends_on = None
    try:
        self.priority.reprioritize(
            stream_id=event.stream_id,
            depends_on=depends_on,
            weight=event.weight,
            exclusive=event.exclusive,
        )
    except PriorityError:
        return  # one that is no longer in the tree, or a loop: it stays as it was
    await self.has_data.set()
