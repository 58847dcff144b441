"""
Where the transports ask which way a call goes: the seam, and the plainest answer.

Owns two protocols. A *course* is one upstream: it begins a *trip* for each call. A trip names the
instance of each attempt, hears what became of it, and says whether there is another. The rules are
`mesh_middleware.routing`'s; `PlainCourse` serves where an upstream has none, and knows instances
and weights only. Transports, carriers and pools decide nothing of this themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..exceptions import ResolveError
from ..resolve import Endpoint
from ..routing.calls import Attempt, Call, Outcome

CONNECT_ATTEMPTS = 3
"""Instances dialled for one call before giving up; nothing is sent twice by that."""


class TripLike(Protocol):
    """One call on its way."""

    def next(self, now: float, dice: float) -> Attempt:
        """
        Name the instance to try.

        Args:
            now: this moment, monotonic seconds.
            dice: a number from 0 up to, not including, 1.

        Raises:
            ResolveError: there is none.
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

    def close(self, now: float) -> None:
        """The answer's body has ended, or was given up. May be called twice."""
        ...


class CourseLike(Protocol):
    """One upstream, as the calls to it see it."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Every instance an attempt may name; the same object until they change."""
        ...

    def begin(self, call: Call, now: float, dice: float) -> TripLike:
        """Begin a call."""
        ...


class PlainCourse:
    """
    Instances and their weights, and nothing else.

    Args:
        name: of the upstream, for errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.endpoints: Sequence[Endpoint] = ()

    def begin(self, call: Call, now: float, dice: float) -> PlainTrip:
        """Begin a call."""
        return PlainTrip(self, call.target)


class PlainTrip:
    """One call to a `PlainCourse`: another instance is dialled when one cannot be reached."""

    __slots__ = ("_course", "_endpoint", "_left", "_number", "_target")

    def __init__(self, course: PlainCourse, target: bytes) -> None:
        self._course = course
        self._target = target
        self._left: Sequence[Endpoint] = course.endpoints
        self._endpoint: Endpoint | None = None
        self._number = 0

    def next(self, now: float, dice: float) -> Attempt:
        """
        Draw an instance, by weight, that was not tried yet.

        Raises:
            ResolveError: there is none.
        """
        if not self._left:
            raise ResolveError(f"{self._course.name}: no healthy instance in the mesh")
        self._endpoint = choose(self._left, dice)
        self._number += 1
        return Attempt(self._endpoint, self._number, self._target)

    def heard(self, outcome: Outcome, now: float, dice: float) -> float | None:
        """Go on where nothing was sent, as long as there are others."""
        if outcome.kind not in ("connect_failure", "refused") or self._number >= CONNECT_ATTEMPTS:
            return None
        self._left = [one for one in self._left if one is not self._endpoint]
        return 0.0 if self._left else None

    def moved(self, endpoint: Endpoint) -> bool:
        """All instances are alike."""
        self._endpoint = endpoint
        return True

    def close(self, now: float) -> None:
        """Nothing is counted."""


def choose(endpoints: Sequence[Endpoint], dice: float) -> Endpoint:
    """
    Draw one instance, by weight.

    Args:
        endpoints: at least one.
        dice: a number from 0 up to, not including, 1.
    """
    if len(endpoints) == 1:
        return endpoints[0]
    point = dice * sum(endpoint.weight for endpoint in endpoints)
    for endpoint in endpoints:
        point -= endpoint.weight
        if point < 0:
            return endpoint
    return endpoints[-1]
