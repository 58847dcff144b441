"""
Reads what an application of Hypercorn (0.18) did not want of a request, so that its answer arrives.

Owns the rest of a body over HTTP/1.1 whose request was answered already: refused by policy, too
large, or not of interest. Hypercorn closes such a connection at once, without having said so: TCP
resets it, since something is unread, and with the reset goes the answer that the caller has not
read yet; or the caller sends its next request over it, which is lost. Here the rest is read and
forgotten; the connection is used again, or closed where the answer said so, or where the caller had
waited for leave to send the body (``Expect``, RFC 9110, 10.1.1). It is idle meanwhile, and ends
like any other idle one when its caller does not come to the end. Knows nothing of the mesh.

Source: RFC 9112, 9.3 and 9.6.
"""

from __future__ import annotations

from typing import Any

MAX_UNREAD = 16 << 20
"""Bytes of one body that are read for nothing; with more to come, the connection is closed."""


def read_what_is_left(protocol: Any) -> None:
    """
    Have connections of HTTP/1.1 read the rest of a request that has its answer.

    Args:
        protocol: Hypercorn's class of connections of HTTP/1.1.
    """
    from hypercorn.events import Closed, RawData, Updated

    protocol.mesh_unread, protocol.mesh_expects = 0, False
    recycle, original = protocol._maybe_recycle, protocol.handle

    async def _maybe_recycle(self: Any) -> None:
        stream = self.stream
        await self._close_stream()
        if _is_left(self.connection):
            self.mesh_unread, self.mesh_expects = MAX_UNREAD, _expects(stream)
            await self.send(Updated(idle=True))
        else:
            await recycle(self)

    async def handle(self: Any, event: object) -> None:
        await original(self, event)
        while isinstance(event, RawData) and self.mesh_unread and await _read(self):
            if self.mesh_expects:
                await self.send(Closed())
            else:
                await recycle(self)
                await self._handle_events()  # what came behind it

    protocol._maybe_recycle, protocol.handle = _maybe_recycle, handle


def _is_left(connection: Any) -> bool:
    import h11

    answered = connection.our_state in (h11.DONE, h11.MUST_CLOSE)
    return answered and connection.their_state is h11.SEND_BODY


def _expects(stream: Any) -> bool:
    """Whether its caller may not send the body any more: what comes then may be no body."""
    scope = getattr(stream, "scope", None) or {}
    # In any case of letters: `h11_pass_raw_headers` leaves them as they came.
    return any(name.lower() == b"expect" for name, _ in scope.get("headers", ()))


async def _read(protocol: Any) -> bool:
    """Read what has come; returns whether the end of the request was in it."""
    import h11
    from hypercorn.events import Closed

    while protocol.mesh_unread > 0:
        try:
            event = protocol.connection.next_event()
        except h11.RemoteProtocolError:
            break
        if isinstance(event, h11.Data):
            protocol.mesh_unread -= len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            protocol.mesh_unread = 0
            return True
        else:
            return False
    protocol.mesh_unread = 0
    await protocol.send(Closed())
    return False
