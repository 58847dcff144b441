"""
The trace that the present request belongs to, for the calls made while it is served.

Owns the two headers of W3C Trace Context and where they are kept meanwhile. They are passed on as
they came: who makes spans of its own sets them itself, and is not overruled.

Source: W3C Trace Context, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar

TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
MAX_TRACE_BYTES = 1024
"""Longer values are not passed on. Source: W3C Trace Context, 3.3.1.5, asks for 512 at least."""

_Headers = tuple[tuple[bytes, bytes], ...]
_current: ContextVar[_Headers] = ContextVar("mesh_middleware.trace", default=())


def remember_trace(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """
    Keep the trace of the request that is served in this context; one without a trace ends it.

    Args:
        headers: of the request, names in lower case.
    """
    found = [pair for pair in headers if pair[0] in TRACE_HEADERS]
    if found or _current.get():
        sound = found and sum(pair[0] == b"traceparent" for pair in found) == 1
        short = sum(len(value) for _, value in found) <= MAX_TRACE_BYTES
        _current.set(tuple(found) if sound and short else ())


def current_trace() -> _Headers:
    """The headers to pass on; empty outside a traced request."""
    return _current.get()
