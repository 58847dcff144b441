"""
One attempt of one call, for those who watch: hooks, logs, metrics.

Owns the value, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..resolve import Endpoint
from .calls import OutcomeKind


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """
    What became of an attempt.

    Args:
        upstream: name that was called.
        method: of the request; ``CONNECT`` for a raw connection.
        endpoint: the instance, and who has to answer there.
        number: 1 for the first attempt of a call.
        kind: as `calls.Outcome`: ``answer``, ``connect_failure``, ``refused``, ``reset``,
            ``timeout`` or ``given_up``.
        status: of the answer; 0 without one.
        denied: whether the upstream's policy said no.
        seconds: from the choice of the instance to the answer's head, or the failure.
        final: whether no other attempt follows.
        to: target in the discovery chain: service, subset and datacenter.
        error: class of what was raised; empty with an answer.
    """

    upstream: str
    method: str
    endpoint: Endpoint
    number: int
    kind: OutcomeKind
    status: int = 0
    denied: bool = False
    seconds: float = 0.0
    final: bool = True
    to: str = ""
    error: str = ""
