"""
Where the transports ask which way a call goes: the seam.

Owns two protocols. A *course* is one upstream: it begins a *trip* for each call. A trip names the
instance of each attempt, hears what became of it, and says whether there is another. The rules are
`mesh_middleware.routing`'s. Transports, carriers and pools decide nothing of this themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..resolve import Endpoint
from ..routing.calls import Attempt, Call, Outcome
from ..routing.chain import Chain


class TripLike(Protocol):
    """One call on its way."""

    def next(self, now: float, dice: float) -> Attempt:
        """
        Name the instance to try.

        Args:
            now: this moment, monotonic seconds.
            dice: a number from 0 up to, not including, 1.

        Raises:
            NoHealthyInstanceError: there is none.
            BreakerOpenError, DeadlineError: nothing may be tried.
        """
        ...

    def heard(self, outcome: Outcome, now: float, dice: float) -> float | None:
        """
        Hear what became of the attempt; called once for each.

        Returns:
            Seconds to wait before the next attempt; ``None`` when there is none.
        """
        ...

    def moved(self, endpoint: Endpoint) -> bool:
        """
        Tell whether the attempt may go to *endpoint* instead, to which a connection is free; from
        then on it does.
        """
        ...

    def repeats(self) -> bool:
        """Whether the attempt would be repeated if its connection broke in mid-answer."""
        ...

    def close(self, now: float) -> None:
        """The answer's body has ended, or was given up. May be called twice."""
        ...


class CourseLike(Protocol):
    """One upstream, as the calls to it see it."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Every instance an attempt may name; the same object until they change."""
        ...

    @property
    def chain(self) -> Chain:
        """The discovery chain: only ``protocol`` is asked here."""
        ...

    def begin(self, call: Call, now: float, dice: float) -> TripLike:
        """Begin a call."""
        ...
