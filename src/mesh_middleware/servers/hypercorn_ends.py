"""
Ends the HTTP/2 connections of Hypercorn (0.18) in order.

Owns what is said when one ends. Hypercorn ends a connection that has had its requests
(``keep_alive_max_requests``) under those that it has begun: they run, and are never answered; one
that is idle is closed without a word. Here it says GOAWAY first, answers what it has begun, and
refuses the rest in words by which every client may send it again. Knows nothing of the mesh.

Source: RFC 9113, 6.8 and 8.7.
"""

from __future__ import annotations

from typing import Any


def end_in_order(protocol: Any) -> None:
    """
    Have connections that have had their requests, or whose server ends, answer what was begun.

    Args:
        protocol: Hypercorn's class of them.
    """
    from h2.errors import ErrorCodes
    from h2.events import RequestReceived

    original = protocol._handle_events

    async def _handle_events(self: Any, events: list[Any]) -> None:
        # At least one: who says GOAWAY before any answer is asked again for ever.
        room = max(1, self.config.keep_alive_max_requests) - self.keep_alive_requests
        ends = _has_ended(self) or self.context.terminated.is_set()
        taken, refused, last = [], [], None
        for event in events:
            if isinstance(event, RequestReceived):
                if ends or room <= 0:
                    refused.append(event.stream_id)
                    continue
                room, last = room - 1, event.stream_id
            taken.append(event)
        if room <= 0 or ends:
            highest = self.connection.highest_inbound_stream_id
            await _say_goaway(self, last or max(0, min(refused, default=highest + 2) - 2))
        for stream in refused:
            self.connection.reset_stream(stream, ErrorCodes.REFUSED_STREAM)
        await original(self, taken)

    protocol._handle_events = _handle_events


def close_in_order(server: Any) -> None:
    """
    Have idle connections that are closed say so.

    Args:
        server: Hypercorn's class for a connection of one kind of worker.
    """
    from hypercorn.protocol.h2 import H2Protocol

    original = server._initiate_server_close

    async def _initiate_server_close(self: Any) -> None:
        inner = self.protocol.protocol
        if isinstance(inner, H2Protocol):
            # What is on its way just now has a right to be sent again.
            await _say_goaway(inner, inner.connection.highest_inbound_stream_id)
        await original(self)

    server._initiate_server_close = _initiate_server_close


def _has_ended(protocol: Any) -> bool:
    return getattr(protocol, "mesh_said_goaway", False)


async def _say_goaway(protocol: Any, last: int) -> None:
    from hypercorn.events import RawData
    from hyperframe.frame import GoAwayFrame

    if not _has_ended(protocol):
        protocol.mesh_said_goaway = True
        # Not by h2, which would let nothing follow: no answer either.
        await protocol.send(RawData(data=GoAwayFrame(0, last_stream_id=last).serialize()))
