"""
What can go wrong on the way to an upstream, in httpx's words and in ours.

Owns the client's exceptions: each is one of httpx's, so that existing ``except`` clauses go on to
work, and one of the mesh's, so that the cause can be told apart. Owns the translation from what
sockets and TLS raise. Knows no transport.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any

from .. import exceptions
from ..exceptions import (
    BreakerOpenError,
    DeadlineError,
    IntentionDeniedError,
    MeshError,
    NotReadyError,
    PeerError,
    PeerMismatchError,
    PeerUnverifiedError,
    ResolveError,
)
from ..gate import GateError
from ..resolve import Endpoint
from .library import httpx


class _Portable(Exception):
    """An error that is pickled and copied whole, as those of httpx are: for pools of processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.args, vars(self).copy())


def _revive(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class MeshConnectError(_Portable, httpx.ConnectError, MeshError):
    """
    No connection to the upstream, or none that may be used; nothing of the request was sent.

    Args:
        message: what happened.
        upstream: name that was called.
        address: ``host:port`` tried last; empty when it did not come so far.
        expected: SPIFFE ID that had to answer; empty when it did not come so far.
        seen: SPIFFE ID that did answer, if one did.
    """

    def __init__(
        self,
        message: str,
        *,
        upstream: str,
        address: str = "",
        expected: str = "",
        seen: str = "",
    ) -> None:
        httpx.ConnectError.__init__(self, message)
        self.upstream = upstream
        self.address = address
        self.expected = expected
        self.seen = seen

    def __str__(self) -> str:
        return str(self.args[0])


class UpstreamNameError(MeshConnectError, ResolveError):
    """The URL names nothing in the mesh, and no ordinary transport is mounted for it."""


class NoHealthyInstanceError(MeshConnectError, exceptions.NoHealthyInstanceError):
    """The upstream has no instance that is healthy and in the mesh."""


class UpstreamBusyError(NoHealthyInstanceError, BreakerOpenError):
    """Every instance is ejected for its failures, or the upstream's limits are reached."""


class MeshNotReadyError(MeshConnectError, NotReadyError):
    """This process has no leaf or roots yet, or was not told where the upstream lives."""


class UpstreamUnverifiedError(MeshConnectError, PeerUnverifiedError):
    """The instance shows no certificate that the roots vouch for, or no SPIFFE ID."""


class UpstreamMismatchError(MeshConnectError, PeerMismatchError):
    """The instance is somebody else: `expected` had to answer, `seen` did."""

    def __init__(
        self, message: str, *, upstream: str, address: str, expected: str, seen: str
    ) -> None:
        # httpx's initialisers hand the message to the next in line, which here would be
        # PeerMismatchError's, who wants two names. So what httpx would set is set here.
        Exception.__init__(self, message)
        self._request = None
        self.upstream, self.address = upstream, address
        self.expected, self.seen, self.actual = expected, seen, seen


class MeshConnectTimeout(_Portable, httpx.ConnectTimeout, MeshError):
    """
    The instance did not take the connection in time.

    Args:
        message: what happened.
        upstream: name that was called.
        address: ``host:port`` that was dialled; empty when it did not come so far.
        expected: SPIFFE ID that had to answer; empty when it did not come so far.

    Attributes:
        seen: empty: nobody answered.
    """

    seen = ""

    def __init__(
        self, message: str, *, upstream: str, address: str = "", expected: str = ""
    ) -> None:
        httpx.ConnectTimeout.__init__(self, message)
        self.upstream = upstream
        self.address = address
        self.expected = expected


class MeshDeadlineError(MeshConnectTimeout, DeadlineError):
    """The time that this call may take was over before it was sent, or sent again."""


class UpstreamDeniedError(_Portable, httpx.HTTPStatusError, IntentionDeniedError):
    """
    The upstream's policy refused this call: an intention, or the default. Retrying is no use.

    Args:
        upstream: name that was called.
        request: the request.
        response: the 403.
    """

    def __init__(self, upstream: str, *, request: httpx.Request, response: httpx.Response) -> None:
        message = f"{upstream}: denied by intention or default policy, for {request.url}"
        httpx.HTTPStatusError.__init__(self, message, request=request, response=response)
        self.upstream = upstream


def explain_refusal(error: MeshError, upstream: str) -> ConnectFailure:
    """
    Tell why a call was not sent, in httpx's words.

    Args:
        error: what the course said.
        upstream: name that was called.
    """
    if isinstance(error, BreakerOpenError):
        return UpstreamBusyError(str(error), upstream=upstream)
    if isinstance(error, DeadlineError):
        return MeshDeadlineError(str(error), upstream=upstream)
    return NoHealthyInstanceError(str(error), upstream=upstream)


def too_many_wait(upstream: str) -> UpstreamBusyError:
    """Tell that the line for a connection is as long as ``MaxPendingRequests`` lets it be."""
    return UpstreamBusyError(f"{upstream}: as many calls wait as may", upstream=upstream)


ConnectFailure = MeshConnectError | MeshConnectTimeout


def explain_failure(error: BaseException, upstream: str, endpoint: Endpoint) -> ConnectFailure:
    """
    Tell what kept a connection from being made.

    Args:
        error: what the socket, TLS, the gate or httpx raised.
        upstream: name that was called.
        endpoint: the instance dialled.

    Returns:
        The error to raise, *error* being its cause.
    """
    where = f"{upstream} at {endpoint.address}"
    known = {"upstream": upstream, "address": endpoint.address}
    expected = endpoint.expected.uri
    causes = tuple(_causes(error))
    for cause in causes:
        found = cause.mismatch if isinstance(cause, GateError) else cause
        if isinstance(found, PeerMismatchError):
            return UpstreamMismatchError(
                f"{where}: {found}", **known, expected=expected, seen=found.actual
            )
    said = f"{where}: {str(causes[-1]) or type(causes[-1]).__name__}"
    if any(isinstance(cause, (PeerError, ssl.SSLCertVerificationError)) for cause in causes):
        return UpstreamUnverifiedError(said, **known, expected=expected)
    if any(isinstance(cause, (TimeoutError, httpx.ConnectTimeout)) for cause in causes):
        return MeshConnectTimeout(f"{where}: no connection in time", **known, expected=expected)
    return MeshConnectError(said, **known, expected=expected)


def note_where(error: BaseException, upstream: str, endpoint: Endpoint, attempt: int) -> None:
    """
    Note on one of httpx's own errors at whom it happened: its text does not say.

    Args:
        error: any; those of the mesh say so themselves.
        upstream: name that was called.
        endpoint: the instance.
        attempt: its number.
    """
    if isinstance(error, httpx.TransportError) and not isinstance(error, MeshError):
        where = f"{upstream} at {endpoint.address}, {endpoint.expected.uri}"
        error.add_note(f"{where}, attempt {attempt}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    # httpx and httpcore wrap what they caught, two deep; a bound keeps a cycle from being one.
    found: BaseException | None = error
    for _ in range(8):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__
