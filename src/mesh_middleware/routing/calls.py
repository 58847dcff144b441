"""
What goes into the choice of a way, and what comes out of it.

Owns the values between a transport and this package: `Call` in, `Attempt` out, `Outcome` back.
These three are made for every call: nobody changes one, but to freeze them would make them five
times as dear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..resolve import Endpoint
from .chain import HeaderChanges, Retries

OutcomeKind = Literal["answer", "connect_failure", "refused", "reset", "timeout", "given_up"]

IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})
"""Methods that may reach the upstream twice. Source: RFC 9110, 9.2.2."""

DEADLINE_HEADER = "x-envoy-expected-rq-timeout-ms"
"""Tells the upstream how many milliseconds are left. Source: Envoy, router filter."""


@dataclass(slots=True)
class Call:
    """
    A request, as far as its way depends on it.

    Args:
        method: upper case.
        target: raw path with query, as it stands on the request line.
        headers: name and value, as they will be sent; names in any case.
        repeatable: whether its body can be sent again.
        deadline: moment at which the caller no longer waits; ``None`` for never.
        key: keeps calls of one kind together, for splits and hash policies that find nothing else.
        source: address of whom the call is made for, for the hash policy ``source_ip``.
        retries: what the caller asks for where no route says otherwise; ``None`` is the upstream's.
    """

    method: str
    target: bytes
    headers: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)
    repeatable: bool = True
    deadline: float | None = None
    key: str | None = None
    source: str | None = None
    retries: Retries | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How much one target takes at once.

    Args:
        connections: open connections; the pool's to keep.
        pending: calls that wait for one; the pool's to keep.
        concurrent: calls under way, waiting ones included.
    """

    connections: int | None = None
    pending: int | None = None
    concurrent: int | None = None


@dataclass(slots=True)
class Attempt:
    """
    One instance to try.

    Args:
        endpoint: where to send, and who has to answer.
        number: 1 for the first.
        target: raw path with query to send, rewritten if the route says so.
        request_headers: to be applied in order, see `matching.change_headers`.
        response_headers: to be applied to the answer.
        connect_timeout: seconds for the connection.
        timeout: seconds left for the whole call; ``None`` for no limit.
        idle_timeout: seconds without a byte; ``None`` for no limit.
        to: ID of the chain's target: service, subset and datacenter.
        limits: of that target, for the pool.
    """

    endpoint: Endpoint
    number: int
    target: bytes
    request_headers: tuple[HeaderChanges, ...] = ()
    response_headers: tuple[HeaderChanges, ...] = ()
    connect_timeout: float | None = None
    timeout: float | None = None
    idle_timeout: float | None = None
    to: str = ""
    limits: Limits = Limits()


@dataclass(slots=True)
class Outcome:
    """
    What became of an attempt.

    Args:
        kind: ``answer``: a head came; ``connect_failure``: nothing was sent; ``refused``: the
            instance is not who it has to be, nothing was sent; ``reset``: the connection broke
            before a head came; ``timeout``: nothing came in time; ``given_up``: the caller left.
        status: of the answer.
        denied: the upstream's policy said no: never tried again, and nobody's failure.
        retry_after: seconds the answer asked to wait, see `retries.read_retry_after`.
        sent: whether any byte of the request may have reached the instance.
    """

    kind: OutcomeKind
    status: int = 0
    denied: bool = False
    retry_after: float | None = None
    sent: bool = True

    @property
    def failed(self) -> bool:
        """Whether the instance is to blame."""
        if self.kind == "answer":
            return self.status >= 500 and not self.denied
        return self.kind != "given_up"
