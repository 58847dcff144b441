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
from .resolve import sni
from .routing.calls import Attempt, Call, Outcome
from .routing.trip import Trip
from .upstreams import UpstreamWatch

STREAM_LIMIT = 64 * 1024
"""Bytes read ahead. Source: asyncio's default."""

Contexts = Callable[[ServiceId], ssl.SSLContext]


async def open_stream(
    upstream: UpstreamWatch, contexts: Contexts, within: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """
    Connect for asyncio.

    Args:
        upstream: who is called.
        contexts: gives the TLS context for an identity.
        within: seconds, all attempts together.

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
        trip = _begin(upstream, within)
        while True:
            attempt = _next(trip)
            reader = asyncio.StreamReader(STREAM_LIMIT, loop)
            protocol = _Protocol(reader, trip)
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
                pause = _failed(trip, error)
                await asyncio.sleep(pause)
                continue
            _heard(trip, Outcome("answer", 200))
            protocol.count()
            return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def open_socket(upstream: UpstreamWatch, contexts: Contexts, timeout: float) -> ssl.SSLSocket:
    """
    Connect for blocking code; as `open_stream`. The socket keeps no timeout.

    Raises:
        NoHealthyInstanceError, PeerMismatchError, OSError: as `open_stream`.
    """
    until = time.monotonic() + timeout
    with contextlib.suppress(ResolveError):
        upstream.wait(timeout)
    trip = _begin(upstream, until - time.monotonic())
    while True:
        attempt = _next(trip)
        try:
            found = _dial(attempt, contexts, until)
        except BaseException as error:
            time.sleep(_failed(trip, error))
            continue
        _heard(trip, Outcome("answer", 200))
        # An SSLSocket has no moment of closing of its own that anybody could hear of.
        weakref.finalize(found, lambda: trip.close(time.monotonic()))
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


def _begin(upstream: UpstreamWatch, timeout: float) -> Trip:
    if upstream.endpoints is None:
        raise NotReadyError(f"{upstream}: {upstream.why}")
    now = time.monotonic()
    # Nothing has been said yet when a connection fails: whoever it is, another may be tried.
    call = Call("CONNECT", b"", deadline=now + timeout)
    return upstream.course.begin(call, now, random.random())


def _next(trip: Trip) -> Attempt:
    try:
        return trip.next(time.monotonic(), random.random())
    except BaseException:
        trip.close(time.monotonic())
        raise


def _heard(trip: Trip, outcome: Outcome) -> float | None:
    return trip.heard(outcome, time.monotonic(), random.random())


def _failed(trip: Trip, error: BaseException) -> float:
    """Tell the trip; returns the pause before the next attempt, or raises what happened."""
    refused = isinstance(error, (GateError, ssl.SSLCertVerificationError))
    kind = Outcome("refused" if refused else "connect_failure", sent=False)
    if not isinstance(error, OSError):
        kind = Outcome("given_up", sent=False)
    pause = _heard(trip, kind)
    if pause is None:
        trip.close(time.monotonic())
        _raise(error)
    return pause


def _raise(error: BaseException) -> NoReturn:
    if isinstance(error, GateError) and error.mismatch is not None:
        raise error.mismatch from error
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
