"""
What every carrier gives back, and the rules they share.

A *carrier* takes a journey, whose attempt names the instance, and returns an `Answer`: `stock` over
httpx's own transports, `sync` and `aio` over our own connections. Knows neither.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ..resolve import Endpoint
from ..routing.calls import Attempt
from .wire import Outgoing

Timeouts = Mapping[str, float | None]
"""httpx's four: ``connect``, ``read``, ``write``, ``pool``, in seconds."""

READ_BYTES = 64 * 1024
"""Bytes asked of a socket at once."""

REFUSED_HINT = (
    "{upstream} at {address} closed a new connection without an answer: it may not accept our "
    "certificate"
)
"""With TLS 1.3 a server's refusal comes after the client's handshake has succeeded."""


LEAST_PATIENCE = 0.001
"""Seconds that are waited where a deadline leaves none: 0 would mean another thing to a socket."""

OVER = "the time of this call is over"


@dataclass(slots=True)
class Patience:
    """
    How long one attempt may take, in seconds; ``None`` is for ever.

    Args:
        connect: for the connection, TLS included.
        read: without a byte of the answer.
        write: without a byte taken of the request.
        pool: in line for a connection.
        deadline: moment, on the monotonic clock, when all of it has to be done.
    """

    connect: float | None
    read: float | None
    write: float | None
    pool: float | None
    deadline: float | None = None

    @classmethod
    def of(cls, timeouts: Timeouts, attempt: Attempt, now: float) -> Self:
        """Take the shorter of what the caller and the route allow."""
        get = timeouts.get
        return cls(
            _shorter(get("connect"), attempt.connect_timeout),
            _shorter(get("read"), attempt.idle_timeout),
            get("write"),
            get("pool"),
            None if attempt.timeout is None else now + attempt.timeout,
        )

    def within(self, seconds: float | None) -> float | None:
        """Cut *seconds* at the deadline."""
        if self.deadline is None:
            return seconds
        left = max(LEAST_PATIENCE, self.deadline - time.monotonic())
        return left if seconds is None else min(seconds, left)

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline


def _shorter(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)


@dataclass(slots=True)
class Answer:
    """
    The head of a response, and where the rest comes from.

    Args:
        status: HTTP status.
        headers: as they came, in order.
        stream: the body; its ``ended`` is called at its end, unless it is ``over`` by then.
        extensions: httpx's, such as ``http_version``.
        endpoint: instance that answered.
        whole: the whole body, where it came with the head; *stream* has it too.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    stream: Any
    extensions: dict[str, Any]
    endpoint: Endpoint
    whole: bytes | None = None


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
