"""
The trace that the present request belongs to, for the calls made while it is served.

Owns the two headers of W3C Trace Context and where they are kept meanwhile. They are passed on as
they came, where their syntax is that of the standard: who makes spans of its own sets them itself,
and is not overruled.

Source: W3C Trace Context, 2 and 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar

from .gate import active_request

_PARENT = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}((?:-[\x21-\x7e]{1,512})?)"
)
_STATE = re.compile(rb"[\x20-\x7e\t]*")
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
    parents = [value for name, value in headers if name == b"traceparent"]
    if len(parents) != 1 or not _is_parent(parents[0]):
        return ()
    states = [value for name, value in headers if name == b"tracestate"]
    if sum(map(len, (*parents, *states))) > MAX_TRACE_BYTES or not all(map(_is_state, states)):
        states = []  # the state may be dropped, and the parent kept
    return (
        (b"traceparent", parents[0]),
        *((b"tracestate", state) for state in states),
    )


def _is_parent(value: bytes) -> bool:
    found = _PARENT.fullmatch(value)
    if found is None or b"ff" == found[1] or not found[2].strip(b"0") or not found[3].strip(b"0"):
        return False
    return found[1] != b"00" or not found[4]


def _is_state(value: bytes) -> bool:
    return _STATE.fullmatch(value) is not None
