"""
The trace that the present request belongs to, for the calls made while it is served.

Owns the two headers of W3C Trace Context and where they are kept meanwhile. They are passed on as
they came: who makes spans of its own sets them itself, and is not overruled.

Source: W3C Trace Context, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar

from .gate import active_request

TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
MAX_TRACE_BYTES = 1024
"""Longer values are not passed on. Source: W3C Trace Context, 3.3.1.5, asks for 512 at least."""

Headers = Iterable[tuple[bytes, bytes]]
_current: ContextVar[Headers] = ContextVar("mesh_middleware.trace", default=())


remember_trace: Callable[[Headers], object] = _current.set
"""
Keep a trace for the calls made in this context, outside of a request that the middleware judged.

Takes the headers of a request, names in lower case. They are read when a call is made, since few
requests make one and all would pay.
"""


def current_trace() -> tuple[tuple[bytes, bytes], ...]:
    """The headers to pass on; empty outside a traced request, and once it has ended."""
    request = active_request()
    headers = _current.get() if request is None else request.headers if request.alive else ()
    if not headers:
        return ()
    found = [pair for pair in headers if pair[0] in TRACE_HEADERS]
    sound = sum(pair[0] == b"traceparent" for pair in found) == 1
    short = sum(len(value) for _, value in found) <= MAX_TRACE_BYTES
    return tuple(found) if sound and short else ()
