"""
Closes an HTTP/1.1 connection so that a TCP reset does not destroy the last response.

Owns the end of a connection whose peer may still be sending. Hypercorn closes the socket at once:
TCP answers what is unread, or comes later, with a reset, and the reset can destroy the response in
the peer's receive buffer before the peer reads it. Here the response is sent, the write side is
shut down where the transport can do that (not within TLS), input is read and dropped within a
bound, and the socket is closed when the peer has closed its side or after `LINGER` seconds.

The loop over h11's events is written out again, since Hypercorn's has no place where its end could
be changed. Two things differ: a WebSocket's header that is not ASCII gets 400 (it raised), and what
comes behind the last request of a connection waits (it replaced the response by a 400).

Source: RFC 9112, 9.6.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import h11
import hypercorn.protocol
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, Data, EndBody
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import WSStream
from wsproto.connection import ConnectionState

from ...hypercorn_ends import LINGER, has_unread, is_closing
from ..limits import unread_body_limits

LOOK_EVERY = 0.05
"""Seconds between two looks whether the peer has closed its side."""


class LingeringH11Protocol(H11Protocol):
    """
    HTTP/1.1 whose connections end with a lingering close.

    Attributes:
        closing: whether the last response was sent; input is dropped from then on.
        droppable: bytes of input that are still read and dropped; beyond it nothing is read.
    """

    stream: Any  # UnreadBody stands in for Hypercorn's streams
    closing = False
    droppable = 0
    _had_last = _peer_closed = _write_failed = False

    def handle(self, event: Event) -> Coroutine[Any, Any, None]:
        """Take input, or the end of it."""
        if isinstance(event, RawData):
            if self.closing:
                return self._drop(len(event.data))
        elif isinstance(event, Closed):
            # The first may only be the end of input; it is also how a failed write is reported.
            self._write_failed = self._peer_closed
            self._peer_closed = True
        return H11Protocol.handle(self, event)

    @property
    def is_gone(self) -> bool:
        """Whether nothing can reach the peer any more. One that shut down writing still reads."""
        return self._write_failed or (self._peer_closed and is_closing(self._server))

    @property
    def _server(self) -> Any:
        return self.send.__self__  # type: ignore[attr-defined]

    async def _handle_events(self) -> None:
        while not self.closing:
            if self._had_last and self.connection.trailing_data[0]:
                await self._pause()  # behind the last request: it would count as an error of it
                continue
            try:
                event = self.connection.next_event()
                if event is h11.NEED_DATA:
                    break
                if isinstance(event, h11.Request):
                    await self._begin(event)
                elif not await self._take(event):
                    break
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)

    async def _begin(self, request: h11.Request) -> None:
        await self.send(Updated(idle=False))
        await self._check_protocol(request)
        try:
            await self._create_stream(request)
        except UnicodeError:  # a WebSocket's header, before its application was started
            self.stream = None
            if isinstance(self.connection, H11WSConnection):
                self.connection = self.connection.h11_connection
            raise h11.RemoteProtocolError("a header is not ASCII") from None
        if self.connection.they_are_waiting_for_100_continue:
            head = self.config.response_headers("h11")
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=head))

    async def _take(self, event: Any) -> bool:
        """Take one event; returns whether there may be another one."""
        if event is h11.PAUSED:
            await self._pause()
        elif self.stream is None:
            return False
        elif isinstance(event, h11.EndOfMessage):
            self._had_last = self.connection.their_state is h11.MUST_CLOSE
            await self.stream.handle(EndBody(stream_id=STREAM_ID))
        elif isinstance(event, h11.Data):
            await self.stream.handle(Body(stream_id=STREAM_ID, data=bytes(event.data)))
        elif isinstance(event, Data):
            await self.stream.handle(event)
        else:
            return False
        return True

    async def _refuse(self, status: int) -> None:
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(status)
        await self.linger()

    async def _maybe_recycle(self) -> None:
        stream = self.stream
        await self._close_stream()
        done = self.connection.our_state is self.connection.their_state is h11.DONE
        if done and not self.context.terminated.is_set():
            self.connection.start_next_cycle()
            await self.can_read.set()
            await self.send(Updated(idle=True))
        elif self._may_receive_more(stream):
            await self.linger()
        else:
            self.closing = True
            await self.can_read.set()
            await self.send(Closed())

    def _may_receive_more(self, stream: Any) -> bool:
        if isinstance(self.connection, H11WSConnection):
            if getattr(stream, "failed", False):
                return True
            # The peer of a closing handshake waits for the end of TCP; what is unread is its reply.
            return not _is_closed(stream) and (bool(self.connection.buffer) or self._has_unread())
        more = self.connection.their_state is h11.SEND_BODY or self.connection.trailing_data[0]
        return bool(more) or self._has_unread()

    def _has_unread(self) -> bool:
        return has_unread(self._server)

    async def linger(self) -> None:
        """Close the connection, in such a way that the peer can read what was sent."""
        if self.closing:
            return
        self.closing = True
        self.droppable = self.droppable or unread_body_limits()[0]
        await self._close_stream()
        await self.can_read.set()
        await _shut_down_writing(self._server)
        self.task_group.spawn(self._close_later)

    async def _close_later(self) -> None:
        await self.wait_at_most(LINGER, lambda: self._peer_closed)
        await _close(self._server)
        await self.can_read.set()

    async def wait_at_most(self, seconds: float, condition: Callable[[], bool]) -> None:
        """Wait until *condition* holds."""
        for _ in range(round(seconds / LOOK_EVERY)):
            if condition():
                break
            await self.context.sleep(LOOK_EVERY)

    async def _drop(self, size: int) -> None:
        self.droppable -= size
        if not size:
            self._peer_closed = True
        elif self.droppable < 0:  # TCP holds the peer back until the socket is closed
            await self._pause()

    async def _pause(self) -> None:
        await self.can_read.clear()
        await self.can_read.wait()


def _is_closed(stream: Any) -> bool:
    """Whether a WebSocket has said its last word: the application's, or the reply to its peer's."""
    if not isinstance(stream, WSStream) or not stream.handshake.accepted:
        return False
    return stream.idle or stream.connection.state is ConnectionState.CLOSED


async def _shut_down_writing(server: Any) -> None:
    """Tell the peer that nothing follows, where the transport can say so and go on reading."""
    if hasattr(server, "writer"):
        with suppress(OSError, RuntimeError):
            if server.writer.can_write_eof():
                server.writer.write_eof()
    elif hasattr(server.stream, "send_eof"):
        import trio

        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            await server.stream.send_eof()


async def _close(server: Any) -> None:
    """Close, waiting for nothing: neither for a peer that does not read nor for its goodbye."""
    if hasattr(server, "writer"):
        server.writer.close()
        server.writer.transport.abort()
    else:
        import trio

        with trio.move_on_after(LOOK_EVERY):
            await server.stream.aclose()


def install() -> None:
    """Bind it where Hypercorn looks the class up."""
    hypercorn.protocol.H11Protocol = LingeringH11Protocol  # type: ignore[attr-defined]
