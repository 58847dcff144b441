"""
Holds WebSocket messages to ``websocket_max_message_size`` after decompression, too.

Owns the size of a message. Hypercorn compares it when a piece of the message is decompressed whole:
half a megabyte of ``permessage-deflate`` becomes half a gigabyte first. After the limit it goes on
adding pieces to the message. And what is malformed ends the connection without a close frame. Here
decompression stops at the limit, text counts by its bytes, and a connection that breaks a rule is
closed with the code of that rule: 1009, 1002 or 1007.

Source: RFC 6455, 7.4.1 and 10.4; RFC 7692, 8.
"""

from __future__ import annotations

import zlib
from time import time
from typing import Any

import hypercorn.protocol.h2
import hypercorn.protocol.h11
import hypercorn.protocol.ws_stream
from hypercorn.protocol.events import Response, StreamClosed
from hypercorn.protocol.ws_stream import (
    ASGIWebsocketState,
    FrameTooLargeError,
    WebsocketBuffer,
    WSStream,
)
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason

DEFAULT_SIZE = 16 * 1024 * 1024
"""Bytes; Hypercorn's default."""


class BoundedDeflate(PerMessageDeflate):
    """
    ``permessage-deflate`` that decompresses no more than a message may have.

    Attributes:
        max_message_size: bytes of one message, decompressed.
    """

    max_message_size = DEFAULT_SIZE
    _size = 0

    def accept(self, offer: str) -> bool | None | str:
        """Accept an offer, or decline what cannot be read: it raised."""
        try:
            return super().accept(offer)
        except ValueError:
            return None

    def frame_inbound_payload_data(self, proto: Any, data: bytes) -> bytes | CloseReason:
        """Decompress one piece, up to the limit."""
        if not self._inbound_compressed or not self._inbound_is_compressible:
            return data
        assert self._decompressor is not None
        room = self.max_message_size - self._size + 1
        try:
            piece = self._decompressor.decompress(bytes(data), room)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._size += len(piece)
        return piece if len(piece) < room else CloseReason.MESSAGE_TOO_BIG

    def frame_inbound_complete(self, proto: Any, fin: bool) -> bytes | CloseReason | None:
        """Finish a frame."""
        if fin and self._inbound_is_compressible:
            self._size = 0
        return super().frame_inbound_complete(proto, fin)


class BoundedBuffer(WebsocketBuffer):
    """One message, whose text counts by its bytes in UTF-8."""

    def extend(self, event: Message[Any]) -> None:
        """
        Add a piece.

        Raises:
            FrameTooLargeError: the message would be too large with it.
        """
        data = event.data
        if isinstance(event, TextMessage) and not data.isascii():
            self.length += len(data.encode()) - len(data)
        if self.length + len(data) > self.max_length:
            raise FrameTooLargeError
        super().extend(event)


class BoundedWSStream(WSStream):
    """
    A WebSocket whose messages are bounded.

    Attributes:
        failed: whether its peer broke a rule, and may be sending on.
    """

    failed = False

    def __init__(self, app: Any, config: Any, *rest: Any) -> None:
        super().__init__(app, config, *rest)
        self.buffer = BoundedBuffer(config.websocket_max_message_size)

    async def _accept(self, message: Any) -> None:
        # Written out again: the extension gets its limit before the peer can send.
        self.state = ASGIWebsocketState.CONNECTED
        status, headers, self.connection = self.handshake.accept(
            message.get("subprotocol"), message.get("headers", [])
        )
        for extension in self.connection._proto.extensions:
            if isinstance(extension, BoundedDeflate):
                extension.max_message_size = self.config.websocket_max_message_size
        await self.send(Response(stream_id=self.stream_id, status_code=status, headers=headers))
        record: Any = {"status": status, "headers": []}
        await self.config.log.access(self.scope, record, time() - self.start_time)
        if self.config.websocket_ping_interval is not None:
            self.task_group.spawn(self._send_pings)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            if isinstance(event, Message):
                try:
                    self.buffer.extend(event)
                except FrameTooLargeError:
                    await self._fail(CloseReason.MESSAGE_TOO_BIG)
                    return
                if event.message_finished:
                    await self.app_put(self.buffer.to_message())  # type: ignore[misc]
                    self.buffer.clear()
            elif isinstance(event, Ping):
                await self._send_wsproto_event(event.response())
            elif isinstance(event, CloseConnection):
                await self._end(event)

    async def _end(self, event: CloseConnection) -> None:
        if self.connection.state is ConnectionState.OPEN:  # the peer said no such thing
            await self._fail(event.code)
            return
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            await self._send_wsproto_event(event.response())
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _fail(self, code: int) -> None:
        """Fail the connection: say why, and take nothing more."""
        self.failed = True
        await self._send_wsproto_event(CloseConnection(code=code))
        self.buffer.clear()
        await self.send(StreamClosed(stream_id=self.stream_id))


def install() -> None:
    """Bind them where Hypercorn looks the classes up."""
    hypercorn.protocol.ws_stream.PerMessageDeflate = BoundedDeflate  # type: ignore[attr-defined]
    for module in (hypercorn.protocol.h11, hypercorn.protocol.h2):
        module.WSStream = BoundedWSStream  # type: ignore[attr-defined]
