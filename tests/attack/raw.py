"""
Callers that keep no rule: bytes and frames that no sound client sends, over mutual TLS.

Owns blocking connections with a limit on every wait.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Any

import h2.config
import h2.connection
import h2.events

from ..interop.callers import HOST, outsider_context

PATIENCE = 10.0
"""Seconds for one answer."""

Header = tuple[bytes, bytes]

BASE: tuple[Header, ...] = ((b":scheme", b"https"), (b":authority", b"tax"))


def dial(port: int, pem: str, *, alpn: str | None = None) -> ssl.SSLSocket:
    """Connect and shake hands, verifying nobody."""
    plain = socket.create_connection((HOST, port), timeout=PATIENCE)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return outsider_context(pem, alpn=alpn).wrap_socket(plain)


def read_all(connection: ssl.SSLSocket) -> bytes:
    """Read until the other end has closed, politely or not."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except (ConnectionError, ssl.SSLError):
        pass
    return found


class Frames:
    """
    One HTTP/2 connection without the client's usual care; use it in ``with``.

    Attributes:
        ended: streams that are complete.
        statuses: by stream.
        bodies: by stream.
        lost: whether the connection or a stream was cut.
    """

    def __init__(self, port: int, pem: str) -> None:
        self._socket = dial(port, pem, alpn="h2")
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.statuses: dict[int, int] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.lost = False
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def flush(self) -> None:
        """Send what waits."""
        self._socket.sendall(self.h2.data_to_send())

    def ask(self, headers: Sequence[Header], *, end: bool = True) -> int:
        """Open a stream with exactly these headers; returns its number."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, list(headers), end_stream=end)
        self.flush()
        return stream

    def get(self, path: bytes, method: bytes = b"GET", *, end: bool = True) -> int:
        """Open a stream for an ordinary request."""
        return self.ask([(b":method", method), (b":path", path), *BASE], end=end)

    def until(self, *streams: int) -> None:
        """Read until these streams are complete, or anything is cut."""
        while not self.lost and not self.ended.issuperset(streams):
            self.read()

    def read(self) -> None:
        """Read once."""
        try:
            data = self._socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            data = b""
        self.lost = self.lost or not data
        for event in self.h2.receive_data(data):
            self._take(event)
        if not self.lost:
            self.flush()

    def _take(self, event: Any) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            assert event.stream_id is not None
            self.statuses[event.stream_id] = int(dict(event.headers or ())[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            known = self.bodies.get(event.stream_id, b"")
            self.bodies[event.stream_id] = known + (event.data or b"")
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
        elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
            self.lost = True
