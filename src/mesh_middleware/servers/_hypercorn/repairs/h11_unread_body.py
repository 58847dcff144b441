"""
Reads, within a bound, the rest of a request that was answered before all of it had come.

Owns the rest of a body over HTTP/1.1 whose request has its response: refused by policy, too large,
or not of interest. Hypercorn closes such a connection. Here the rest is read and dropped: up to
``max_unread_body`` bytes, for up to ``unread_body_timeout`` seconds. When it is complete the
connection serves the next request; beyond the bound the connection ends (`h11_lingering_close`).
Where the caller had waited for leave to send the body (``Expect``, RFC 9110, 10.1.1) the
connection ends in any case, since what comes may be a body or, without leave, the next request.

`UnreadBody` takes the place of the answered stream, so that every event of h11 is handled once: the
reader may be within a body when the response ends.

Source: RFC 9112, 9.3 and 9.6.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import h11
import hypercorn.protocol
from hypercorn.events import Updated
from hypercorn.protocol.events import Body, EndBody, Event

from ..limits import unread_body_limits
from .h11_lingering_close import LingeringH11Protocol

LEAST_PIECE = 64
"""Bytes that a piece of a body counts at least: a chunk of one byte costs h11 as much time."""
PIECES_IN_A_TURN = 128
"""Pieces after which other connections have their turn: h11 finds 10,000 in one read."""


class UnreadBody:
    """
    Takes the place of an answered stream while the rest of its request comes.

    Args:
        protocol: the connection.
        limit: bytes to read and drop.
        expects: whether the caller waits for leave to send the body.
    """

    idle = True

    def __init__(self, protocol: UnreadBodyH11Protocol, limit: int, *, expects: bool) -> None:
        self._protocol, self._expects = protocol, expects
        self.left = limit
        self._pieces = 0

    async def handle(self, event: Event) -> None:
        """Drop a piece of the body, or find its end."""
        if isinstance(event, Body):
            self.left -= max(len(event.data), LEAST_PIECE)
            self._pieces += 1
            if self.left < 0:
                self._protocol.droppable = 1  # one bound for both
                await self._protocol.linger()
            elif self._pieces % PIECES_IN_A_TURN == 0:
                await self._protocol.context.sleep(0)
        elif isinstance(event, EndBody):
            if self._expects:
                await self._protocol.linger()
            else:
                await self._protocol._maybe_recycle()


class UnreadBodyH11Protocol(LingeringH11Protocol):
    """HTTP/1.1 that reads the rest of an answered request, within a bound."""

    _timing = False

    async def _maybe_recycle(self) -> None:
        stream = self.stream
        await self._close_stream()
        if not _is_unread(self.connection):
            self.stream = stream  # closed by now; what follows looks at its kind
            await super()._maybe_recycle()
            return
        limit, seconds = unread_body_limits()
        self.stream = UnreadBody(self, limit, expects=expects_continue(stream))
        await self.send(Updated(idle=True))
        if not self._timing:
            self._timing = True
            self.task_group.spawn(self._end_what_is_late, seconds)

    async def _end_what_is_late(self, seconds: float) -> None:
        """One at a time for each connection, however many bodies follow each other."""
        while isinstance(body := self.stream, UnreadBody) and not self._is_over(body):
            await self.wait_at_most(seconds, partial(self._is_over, body))
            if not self._is_over(body):
                self.droppable = max(1, body.left)
                await self.linger()
        self._timing = False

    def _is_over(self, body: UnreadBody) -> bool:
        return self.stream is not body or self.closing or self._peer_closed


def _is_unread(connection: Any) -> bool:
    answered = connection.our_state in (h11.DONE, h11.MUST_CLOSE)
    return answered and connection.their_state is h11.SEND_BODY


def expects_continue(stream: Any) -> bool:
    """
    Tell whether the caller of an answered stream waits for leave to send the body.

    Args:
        stream: Hypercorn's.
    """
    scope = getattr(stream, "scope", None) or {}
    # In any case of letters: `h11_pass_raw_headers` leaves them as they came.
    return any(name.lower() == b"expect" for name, _ in scope.get("headers", ()))


def install() -> None:
    """Bind it where Hypercorn looks the class up."""
    hypercorn.protocol.H11Protocol = UnreadBodyH11Protocol  # type: ignore[attr-defined]
