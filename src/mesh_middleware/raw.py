"""
Raw TCP to an upstream: a connection that is mutual TLS, and whose other end was verified.

Owns the dialling for protocols that are not HTTP: databases, queues. Which instance is tried, and
which next, is the course's; what is sent is the caller's. A connection counts as a call under way
until it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from .exceptions import NotReadyError, ResolveError
from .gate import GateError
from .identity import ServiceId
from .resolve import Upstream, sni
from .routing.calls import Attempt, Call, Outcome
from .routing.report import AttemptReport
from .routing.trip import Trip
from .upstreams import UpstreamWatch

STREAM_LIMIT = 64 * 1024
"""Bytes read ahead. Source: asyncio's default."""

Contexts = Callable[[ServiceId], ssl.SSLContext]
Told = Callable[[AttemptReport], None] | None


async def open_stream(
    upstream: UpstreamWatch, contexts: Contexts, within: float, told: Told = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """
    Connect for asyncio.

    Args:
        upstream: who is called.
        contexts: gives the TLS context for an identity.
        within: seconds, all attempts together.
        told: hears of each attempt.

    Raises:
        NoHealthyInstanceError: there is none.
        PeerMismatchError: the instances that answer are somebody else.
        OSError: none could be reached; ``TimeoutError`` when time was over.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(within):
        with contextlib.suppress(ResolveError):
            # A chain may know another place; the course says when there is none.
            await upstream.wait_async(within)
        tries = _Tries(upstream, within, told)
        while True:
            attempt = tries.next()
            reader = asyncio.StreamReader(STREAM_LIMIT, loop)
            protocol = _Protocol(reader, tries.trip)
            try:
                # One silent instance must not use up the time of all attempts.
                async with asyncio.timeout(attempt.connect_timeout):
                    transport, _ = await loop.create_connection(
                        lambda made=protocol: made,  # type: ignore[misc]
                        attempt.endpoint.host,
                        attempt.endpoint.port,
                        ssl=contexts(attempt.endpoint.expected),
                        server_hostname=sni(attempt.endpoint.expected) or attempt.endpoint.host,
                    )
            except BaseException as error:
                pause = tries.failed(error)
                await asyncio.sleep(pause)
                continue
            tries.opened()
            protocol.count()
            return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def open_socket(
    upstream: UpstreamWatch, contexts: Contexts, timeout: float, told: Told = None
) -> ssl.SSLSocket:
    """
    Connect for blocking code; as `open_stream`. The socket keeps no timeout.

    Raises:
        NoHealthyInstanceError, PeerMismatchError, OSError: as `open_stream`.
    """
    until = time.monotonic() + timeout
    with contextlib.suppress(ResolveError):
        upstream.wait(timeout)
    tries = _Tries(upstream, until - time.monotonic(), told)
    while True:
        attempt = tries.next()
        try:
            found = _dial(attempt, contexts, until)
        except BaseException as error:
            time.sleep(tries.failed(error))
            continue
        tries.opened()
        # An SSLSocket has no moment of closing of its own that anybody could hear of.
        weakref.finalize(found, tries.close)
        found.settimeout(None)
        return found


def _dial(attempt: Attempt, contexts: Contexts, until: float) -> ssl.SSLSocket:
    left = max(0.001, until - time.monotonic())
    endpoint = attempt.endpoint
    patience = left if attempt.connect_timeout is None else min(left, attempt.connect_timeout)
    sock = socket.create_connection((endpoint.host, endpoint.port), patience)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name = sni(endpoint.expected) or endpoint.host
        return contexts(endpoint.expected).wrap_socket(sock, server_hostname=name)
    except BaseException:
        sock.close()
        raise


class _Tries:
    """The attempts of one connection; as `httpx.journey` has those of a request."""

    def __init__(self, upstream: UpstreamWatch, timeout: float, told: Told) -> None:
        if upstream.endpoints is None:
            raise NotReadyError(f"{upstream}: {upstream.why}")
        name = Upstream(upstream.name, upstream.datacenter, kind=upstream.kind)
        self._name, self._told, self._began = str(name), told, time.monotonic()
        # Nothing has been said yet when a connection fails: whoever it is, another may be tried.
        call = Call("CONNECT", b"", deadline=self._began + timeout)
        self.trip: Trip = upstream.course.begin(call, self._began, random.random())
        self._attempt: Attempt

    def next(self) -> Attempt:
        """Learn whom to try."""
        self._began = time.monotonic()
        try:
            self._attempt = self.trip.next(self._began, random.random())
        except BaseException:
            self.trip.close(time.monotonic())
            raise
        return self._attempt

    def opened(self) -> None:
        """There is a connection."""
        self._heard(Outcome("answer", 200), None)

    def failed(self, error: BaseException) -> float:
        """Tell the trip; returns the pause before the next attempt, or raises what happened."""
        refused = isinstance(error, (GateError, ssl.SSLCertVerificationError))
        kind = Outcome("refused" if refused else "connect_failure", sent=False)
        if not isinstance(error, (OSError, ValueError)):
            kind = Outcome("given_up", sent=False)
        pause = self._heard(kind, error)
        if pause is None:
            self.trip.close(time.monotonic())
            _raise(error)
        return pause

    def close(self) -> None:
        """The connection is over."""
        self.trip.close(time.monotonic())

    def _heard(self, outcome: Outcome, error: BaseException | None) -> float | None:
        now, attempt = time.monotonic(), self._attempt
        pause = self.trip.heard(outcome, now, random.random())
        if self._told is not None:
            self._told(
                AttemptReport(
                    self._name,
                    "CONNECT",
                    attempt.endpoint,
                    attempt.number,
                    outcome.kind,
                    seconds=now - self._began,
                    final=pause is None,
                    to=attempt.to,
                    error="" if error is None else type(error).__name__,
                )
            )
        return pause


def _raise(error: BaseException) -> NoReturn:
    if isinstance(error, GateError) and error.mismatch is not None:
        raise error.mismatch from error
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        raise OSError(str(error)) from error  # no address at all
    raise error


class _Protocol(asyncio.StreamReaderProtocol):
    """asyncio's, which tells when the connection is over."""

    def __init__(self, reader: asyncio.StreamReader, trip: Trip) -> None:
        super().__init__(reader)
        self._trip = trip
        self._counted = self._lost = False

    def count(self) -> None:
        """It is a call under way, from now until it is over, which may have been already."""
        self._counted = True
        if self._lost:
            self._trip.close(time.monotonic())

    def connection_lost(self, exc: Exception | None) -> Any:
        """It is over."""
        self._lost = True
        if self._counted:
            self._trip.close(time.monotonic())
        super().connection_lost(exc)
