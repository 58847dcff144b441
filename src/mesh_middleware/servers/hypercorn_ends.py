"""
Ends the connections of Hypercorn (0.18) in order, so that their end loses no request.

Owns what is said when one ends, and how long one waits then. Hypercorn ends an HTTP/2 connection
that has had its requests (``keep_alive_max_requests``) under those that it has begun: they run, and
are never answered; so it does when the peer says that it will ask nothing more, and h2 when the
peer asks for too much at once. When the server ends, it closes what is idle at that moment without
a word, and the request that is on its way is lost, sometimes with the answer before it (TCP resets
a connection that is closed with something unread). Here HTTP/2 says GOAWAY first, answers what it
has begun, and refuses the rest in words by which every client may send it again; HTTP/1.1 says with
its last answer that it is the last; and an idle connection is closed a moment later, so that what
was on its way is heard. A connection that was idle for too long is closed only when nothing has
come over it meanwhile: a worker that was late finds its timers before what its sockets have. Knows
nothing of the mesh.

Source: RFC 9113, 6.8 and 8.7; RFC 9112, 9.6.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

LINGER = 1.0
"""Seconds from the last word until the connection is closed: some round trips of busy callers."""
LOOK_EVERY = 0.02
"""Seconds between two looks whether the other end has closed it, or has sent a request."""


def end_in_order(http2: Any, http1: Any) -> None:
    """
    Have connections that end answer what was begun.

    Args:
        http2: Hypercorn's class of connections of HTTP/2.
        http1: that of HTTP/1.1.
    """
    _count_streams(http2)
    _refuse_what_is_late(http2)
    _keep_answering(http2)
    _end_late_comers(http1)


def say_the_last(server: Any) -> None:
    """
    Have a connection of HTTP/1.1 say with its next answer that it is the last: the worker ends.

    Args:
        server: Hypercorn's object for the connection.
    """
    from hypercorn.protocol.h11 import H11Protocol

    # Not there yet where the connection has just begun.
    inner = getattr(getattr(server, "protocol", None), "protocol", None)
    if isinstance(inner, H11Protocol):
        _end_with_the_next(inner)


def close_in_order(server: Any) -> None:
    """
    Have idle connections that are closed say so, and wait a moment.

    Args:
        server: Hypercorn's class for a connection of one kind of worker.
    """
    from hypercorn.protocol.h2 import H2Protocol

    original = server._initiate_server_close

    async def _initiate_server_close(self: Any) -> None:
        inner, waits = self.protocol.protocol, self.context.terminated.is_set()
        if _is_used(inner):
            return  # a request came at the very moment
        if isinstance(inner, H2Protocol):
            waits = True
            # What is on its way just now has a right to be sent again.
            await _say_goaway(inner, inner.connection.highest_inbound_stream_id)
        # Once a request is answered, the connection is idle again, and comes here again.
        if waits and await _is_used_again(self, inner):
            return
        if has_unread(self) and await _is_used_again(self, inner):
            return  # it came in time; that the worker is late is not its fault
        _hear_no_more(self.protocol)
        await original(self)

    server._initiate_server_close = _initiate_server_close


def socket_of(server: Any) -> Any:
    """
    Tell the socket of a connection.

    Args:
        server: Hypercorn's object for the connection.
    """
    if hasattr(server, "writer"):
        return server.writer.get_extra_info("socket")
    return getattr(server.stream, "transport_stream", server.stream).socket


def has_unread(server: Any) -> bool:
    """
    Tell whether something has come that the worker has not read yet.

    Args:
        server: Hypercorn's object for the connection.
    """
    if getattr(server, "mesh_left", False) or is_closing(server):
        return False
    if hasattr(server, "reader") and server.reader._buffer:
        return True
    plain = socket_of(server)
    poll = select.poll()
    poll.register(plain, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


def is_closing(server: Any) -> bool:
    """
    Tell whether the socket of a connection is closed, or is being closed.

    Args:
        server: Hypercorn's object for the connection.
    """
    if hasattr(server, "writer"):
        return bool(server.writer.transport.is_closing())
    return bool(socket_of(server).fileno() < 0)


async def _is_used_again(server: Any, inner: Any) -> bool:
    before = inner.keep_alive_requests

    def used() -> bool:
        # One that was answered between two looks was a use, too.
        return _is_used(inner) or inner.keep_alive_requests != before

    for _ in range(round(LINGER / LOOK_EVERY)):
        if used() or getattr(server, "mesh_left", False):
            break
        await server.context.sleep(LOOK_EVERY)
    return used()


def _is_used(inner: Any) -> bool:
    from ._hypercorn.repairs.h11_unread_body import UnreadBody

    if not hasattr(inner, "stream"):
        return not inner.idle
    if isinstance(inner.stream, UnreadBody):
        return False
    # On trio others run between the coming of a request and its stream.
    state = getattr(getattr(inner, "connection", None), "their_state", None)
    return inner.stream is not None or str(state) in ("SEND_BODY", "DONE")


def _hear_no_more(protocol: Any) -> None:
    """What TLS still gives out while it closes could be done, but not be answered."""
    from hypercorn.events import RawData

    original = protocol.handle

    async def handle(event: object) -> None:
        if not isinstance(event, RawData):
            await original(event)

    protocol.handle = handle


def _refuse_what_is_late(protocol: Any) -> None:
    from h2.events import RequestReceived

    original = protocol._handle_events

    async def _handle_events(self: Any, events: list[Any]) -> None:
        # At least one: who says GOAWAY before any answer is asked again for ever.
        room = max(1, self.config.keep_alive_max_requests) - self.keep_alive_requests
        ends = _has_ended(self) or self.context.terminated.is_set()
        taken, refused, last = [], [], None
        beyond = _beyond_the_limit(self, events)
        for event in events:
            if isinstance(event, RequestReceived):
                if ends or room <= 0 or event.stream_id in beyond:
                    refused.append(event.stream_id)
                    continue
                room, last = room - 1, event.stream_id
            taken.append(event)
        if room <= 0 or ends:
            highest = self.connection.highest_inbound_stream_id
            await _say_goaway(self, last or max(0, min(refused, default=highest + 2) - 2))
        for stream in refused:
            self.connection.reset_stream(stream)
        await original(self, taken)

    protocol._handle_events = _handle_events


def _count_streams(protocol: Any) -> None:
    """Have h2 leave the count of streams to us: it ends the connection, and all that is on it."""
    from h2.settings import SettingCodes

    original = protocol.initiate

    async def initiate(self: Any, *args: Any) -> None:
        await original(self, *args)
        settings = self.connection.local_settings  # the peer has been told what they say
        settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 2**31 - 1
        settings.acknowledge()

    protocol.initiate = initiate


def _beyond_the_limit(protocol: Any, events: list[Any]) -> list[int]:
    """The streams begun by *events* that are more than the connection may have at once."""
    limit, connection = protocol.config.h2_max_concurrent_streams, protocol.connection
    # The first count is quick, and holds some that have ended.
    if len(connection.streams) <= limit or connection.open_inbound_streams <= limit:
        return []
    from h2.events import RequestReceived

    begun = [each.stream_id for each in events if isinstance(each, RequestReceived)]
    # What was answered takes no place, though its peer may never end it: it would be refused for
    # ever, where h2 made it connect anew.
    return begun[max(0, limit - len(protocol.streams)) :]


def _keep_answering(protocol: Any) -> None:
    from hyperframe.frame import GoAwayFrame

    original = protocol.__init__

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        table = self.connection._frame_dispatch_table
        table[GoAwayFrame] = partial(_hear_goaway, self.connection, table[GoAwayFrame])
        # After its own GOAWAY h2 can neither answer nor refuse; ours is said beside it.
        self.connection.close_connection = lambda: None
        self.connection.reset_stream = partial(_reset, self.connection.reset_stream)

    protocol.__init__ = __init__


def _hear_goaway(connection: Any, original: Callable[[Any], Any], frame: Any) -> Any:
    """Hear the peer's GOAWAY: it asks for nothing more, and waits for what it has asked."""
    if frame.error_code == 0 and connection.open_inbound_streams:
        return [], []
    return original(frame)  # h2 could neither send nor take anything after it


def _reset(original: Callable[[int, int], None], stream: int, code: int | None = None) -> None:
    """Reset a stream; without a code, none of it was processed. Its caller may have, just now."""
    from h2.errors import ErrorCodes
    from h2.exceptions import StreamClosedError

    # Hypercorn names none where the worker's end begins between two requests of one packet.
    with suppress(StreamClosedError):
        original(stream, ErrorCodes.REFUSED_STREAM if code is None else code)


def _end_late_comers(protocol: Any) -> None:
    original = protocol.__init__

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        if self.context.terminated.is_set():
            _end_with_the_next(self)

    protocol.__init__ = __init__


def _end_with_the_next(protocol: Any) -> None:
    # As many as make it say "Connection: close".
    protocol.keep_alive_requests = math.inf
    protocol._maybe_recycle = partial(_keep_what_was_promised, protocol, protocol._maybe_recycle)


async def _keep_what_was_promised(
    protocol: Any, original: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    import h11
    from hypercorn.events import Updated

    connection = protocol.connection
    promised = getattr(connection, "our_state", None) is h11.DONE
    if not (promised and connection.their_state is h11.DONE):
        await original()
        return
    # Its answer began before the end, and did not say that it is the last.
    await protocol._close_stream()
    connection.start_next_cycle()
    protocol.response = protocol.scope = None
    await protocol.can_read.set()
    await protocol.send(Updated(idle=True))


def _has_ended(protocol: Any) -> bool:
    return getattr(protocol, "mesh_said_goaway", False)


async def _say_goaway(protocol: Any, last: int) -> None:
    from hypercorn.events import RawData
    from hyperframe.frame import GoAwayFrame

    if not _has_ended(protocol):
        protocol.mesh_said_goaway = True
        # Not by h2, which would let nothing follow: no answer either.
        await protocol.send(RawData(data=GoAwayFrame(0, last_stream_id=last).serialize()))
