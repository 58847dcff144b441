"""
Refuses HTTP/1.1 requests whose framing is faulty, and upgrades that TLS forbids.

Owns what is checked of a request's head before a stream is created for it. Two servers that read
one request differently can be made to see different requests on one connection (request
smuggling): a request with both ``Transfer-Encoding`` and ``Content-Length``, or with
``Transfer-Encoding`` in HTTP/1.0, gets 400 and the connection ends; h11 reads it by its transfer
coding and keeps the connection. Repeated lengths are h11's: equal ones count as one, others are
refused. A version that is neither 1.0 nor 1.1 gets 505, more than `MAX_HEADERS` header fields 431.

``Upgrade: h2c`` within TLS is ignored (Hypercorn honours it), with or without a body; over
plaintext it is Hypercorn's. HTTP/2 by its preface goes on being served on connections that have not
negotiated it: the identity is that of the connection whatever is spoken over it.

Source: RFC 9112, 6.1 and 6.3; RFC 7540, 3.2; RFC 9113, 3.1.
"""

from __future__ import annotations

import h11
import hypercorn.protocol
import hypercorn.protocol.h11
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID

from .h11_unread_body import UnreadBodyH11Protocol

MAX_HEADERS = 100
"""Header fields of one request, Envoy's default; each costs the application's side time."""

_VERSIONS = (b"1.0", b"1.1")


class FramingH11Protocol(UnreadBodyH11Protocol):
    """HTTP/1.1 that refuses requests with faulty framing."""

    _upgrades = False

    async def _check_protocol(self, event: h11.Request) -> None:
        names = [name for name, _ in event.headers]
        self._upgrades = b"upgrade" in names
        if is_preface(event):
            await super()._check_protocol(event)
        elif status := faulty_framing(event, names):
            raise h11.RemoteProtocolError("faulty framing", error_status_hint=status)
        elif self._upgrades and not self.ssl:
            await super()._check_protocol(event)

    async def _create_stream(self, request: h11.Request) -> None:
        if self._upgrades:
            await super()._create_stream(request)
            return
        # Written out again, without the search for an upgrade: it pays for the checks above.
        ends = (self.ssl, self.client, self.server, self.stream_send, STREAM_ID)
        kind = hypercorn.protocol.h11.HTTPStream  # type: ignore[attr-defined]
        self.stream = kind(self.app, self.config, self.context, self.task_group, *ends)
        raw = self.config.h11_pass_raw_headers
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=request.headers.raw_items() if raw else list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()


def is_preface(request: h11.Request) -> bool:
    """Whether this is the first line of the connection preface of HTTP/2 (RFC 9113, 3.4)."""
    line = (request.method, request.target, request.http_version)
    return line == (b"PRI", b"*", b"2.0") and not request.headers


def faulty_framing(request: h11.Request, names: list[bytes]) -> int:
    """
    Find what is wrong with the framing of a request.

    Args:
        request: its head.
        names: of its header fields, in lower case.

    Returns:
        The status to refuse it with; 0 when it is sound.
    """
    if request.http_version not in _VERSIONS:
        return 505
    if len(names) > MAX_HEADERS:
        return 431
    if b"transfer-encoding" in names:
        return 400 if b"content-length" in names or request.http_version == b"1.0" else 0
    return 0


def install() -> None:
    """Bind it where Hypercorn looks the class up."""
    hypercorn.protocol.H11Protocol = FramingH11Protocol  # type: ignore[attr-defined]
