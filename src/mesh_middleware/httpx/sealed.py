"""
TLS of one connection that we dialled, on a plain transport of asyncio or uvloop.

Owns the handshake with its gate, sealing and opening, and the goodbye. Knows no HTTP: `protocol`
is told what came.

Theory. Asyncio's own TLS layer is a transport upon a transport: what it passes through cost more
than the encryption, and each connection kept a buffer of 256 KiB. Here bytes go from the socket
into OpenSSL and from there to whoever reads, in one callback. The buffer that sockets are read into
is one for all connections of a loop: it is filled and emptied in the same callback.

Source: RFC 8446, 6.1: each side closes its own direction.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import cast

MAX_RECORD = 16 * 1024
"""Most that one record holds: a read of as much leaves nothing of it. Source: RFC 8446, 5.1."""

HANDSHAKE_PATIENCE = 60.0
"""Longest handshake in seconds, where the caller set no timeout. Source: asyncio, as NGINX."""

CLOSING_PATIENCE = 1.0
"""Seconds that connections may take to say goodbye."""


class Sealed(asyncio.BufferedProtocol):
    """
    One TLS connection.

    Args:
        loop: it belongs to.
        context: its handshakes pass the gate.
        server_name: for SNI.
        buffer: of the loop, see above.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext,
        server_name: str,
        buffer: memoryview,
    ) -> None:
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.lost: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._buffer = buffer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self.torn = False
        """Whether what came last may have ended in the middle of a record: OpenSSL does not say."""
        self._shaken: asyncio.Future[Exception | None] = loop.create_future()

    # -- for whoever stands on it --------------------------------------------------------------

    def opened(self) -> None:
        """The handshake is done, and the gate passed."""

    def take(self, data: bytes) -> None:
        """Bytes came."""

    def ended(self, error: Exception | None) -> None:
        """It is closed, by whomever; *error* says why, if anything went wrong."""

    # -- what callers ask ----------------------------------------------------------------------

    async def shake_hands(self) -> None:
        """
        Wait until the handshake is done; the connection is cut where it fails.

        Raises:
            GateError: the other end is not who it has to be.
            OSError: the connection or TLS failed; ``TimeoutError`` when it took too long.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_PATIENCE):
                error = await self._shaken
        except BaseException:
            self.abort()
            raise
        if error is not None:
            raise error

    def send(self, data: bytes) -> None:
        """
        Seal bytes, and hand them to the transport.

        Raises:
            ssl.SSLError: OpenSSL refuses.
        """
        write = self.tls.write
        sent = write(data)
        while sent < len(data):
            sent += write(memoryview(data)[sent : sent + MAX_RECORD])
        self.transport.write(self._outgoing.read())

    def close(self) -> None:
        """Close it, saying goodbye, but not waiting for the other end's."""
        transport = self.transport
        if transport.is_closing():
            return
        with suppress(ssl.SSLError):  # that the other end has not said goodbye, as a rule
            self.tls.unwrap()
        self._flush()
        transport.close()
        if transport.get_write_buffer_size():
            self._loop.call_later(CLOSING_PATIENCE, transport.abort)

    def abort(self) -> None:
        """Cut it."""
        self.transport.abort()

    # -- what the transport tells --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a connection: the handshake begins."""
        self.transport = cast(asyncio.Transport, transport)
        self._shake()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes came."""
        self._incoming.write(self._buffer[:nbytes])
        if self._shaken.done() or self._shake():
            self._open()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whomever."""
        if not self.lost.done():
            self.lost.set_result(None)
        if self._shaken.done():
            self.ended(exc)
        else:
            self._shaken.set_result(exc or ConnectionResetError("closed during the handshake"))

    # -- inside --------------------------------------------------------------------------------

    def _shake(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            # Not a byte more: what OpenSSL would still send belongs to somebody else's connection.
            self._shaken.set_result(error)
            self.abort()
            return False
        self._flush()
        self.opened()
        self._shaken.set_result(None)
        return True

    def _open(self) -> None:
        incoming, parts, over = self._incoming, [], False
        self.torn = False
        try:
            while incoming.pending and not over:
                part = self.tls.read(MAX_RECORD)
                if part:
                    parts.append(part)
                else:
                    over = True
        except ssl.SSLWantReadError:
            self.torn = True  # a record that is not all there, or one that TLS kept for itself
        except ssl.SSLError as error:
            self._give_up(parts, error)
            return
        if self._outgoing.pending:
            self._flush()  # a new key, as TLS 1.3 has them
        if parts:
            self.take(parts[0] if len(parts) == 1 else b"".join(parts))
        if over:
            self.close()

    def _give_up(self, parts: list[bytes], error: ssl.SSLError) -> None:
        if parts:
            self.take(b"".join(parts))
        self.ended(error)
        self.abort()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.transport.write(self._outgoing.read())
