"""
What every carrier gives back, and the rules they share.

A *carrier* takes a request and the instances it may go to, and returns an `Answer`: `stock` over
httpx's own transports, `sync` and `aio` over our own connections. Knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..resolve import Endpoint
from .wire import Outgoing

Timeouts = Mapping[str, float | None]
"""httpx's four: ``connect``, ``read``, ``write``, ``pool``, in seconds."""

CONNECT_ATTEMPTS = 3
"""Instances dialled for one request before giving up; nothing is sent twice by that."""

READ_BYTES = 64 * 1024
"""Bytes asked of a socket at once."""

REFUSED_HINT = (
    "{upstream} at {address} closed a new connection without an answer: it may not accept our "
    "certificate"
)
"""With TLS 1.3 a server's refusal comes after the client's handshake has succeeded."""


@dataclass(slots=True)
class Answer:
    """
    The head of a response, and where the rest comes from.

    Args:
        status: HTTP status.
        headers: as they came, in order.
        stream: the body.
        extensions: httpx's, such as ``http_version``.
        endpoint: instance that answered.
        attempts: instances tried.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    stream: Any
    extensions: dict[str, Any]
    endpoint: Endpoint
    attempts: int


def may_stop_sending(status: int) -> bool:
    """
    Tell whether an answer that came before the whole request was sent makes the rest pointless.

    Source: RFC 9112, 9.5: on an error a client stops; other answers may want the rest.
    """
    return status >= 400


def may_send_again(connection: Any, outgoing: Outgoing) -> bool:
    """
    Tell whether a request may go out again after its connection broke.

    Only when the connection had been idle, no byte of an answer came, and either nothing was
    written or the request is one that may arrive twice.

    Source: RFC 9110, 9.2.2; RFC 9112, 9.3.1.
    """
    if connection.requests < 2 or connection.heard:
        return False
    return not connection.wrote or outgoing.repeatable


def hinted(error: Exception, connection: Any, upstream: str) -> Exception:
    """Add to *error*, when a new connection ended without a word, what that usually means."""
    if connection.requests > 1 or connection.heard:
        return error
    hint = REFUSED_HINT.format(upstream=upstream, address=connection.lane.endpoint.address)
    return type(error)(f"{error} ({hint})")
