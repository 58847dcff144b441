"""
One target of a chain as it is now: its instances, who is ejected, how busy it is.

Owns the choice among the instances of one target. Is used under the lock of its `course.Course`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..resolve import Endpoint
from .balance import Balancer, ByKey, Seat, Seats, make_balancer, near_shares
from .breaking import Breaking, fail, succeed
from .calls import Limits
from .chain import Balancing, Target


class Load:
    """How many calls are under way to one target, across plans."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


class Goal:
    """
    The instances a resolver sends to.

    Args:
        target: what the chain says of it.
        seats: its instances.
        balancing: how one is chosen.
        breaking: when one is ejected.
        limits: how much it takes at once.
        stands_in: whether there are other targets to fail over to.
        now: this moment.
        why_none: told when there is no instance.
    """

    def __init__(
        self,
        target: Target,
        seats: Sequence[Seat],
        balancing: Balancing,
        breaking: Breaking,
        limits: Limits,
        stands_in: bool,
        now: float,
        why_none: str,
    ) -> None:
        self.target = target
        self.limits = limits
        self.most = limits.concurrent
        self.breaking = breaking
        self.load = Load()
        self.why_none = why_none
        self.balancing = balancing
        self._stands_in = stands_in
        self._seats = Seats(seats, now)
        self._tiers = max((seat.tier for seat in seats), default=0)
        self._balancer: Balancer = make_balancer(balancing, seats)

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def seats(self) -> tuple[Seat, ...]:
        """All instances, ejected or not."""
        return self._seats.all

    def find(self, endpoint: Endpoint) -> Seat | None:
        """The instance at *endpoint*; ``None`` when it is not one of this goal's."""
        return next((seat for seat in self._seats.all if seat.endpoint == endpoint), None)

    def adopt(self, old: Goal) -> None:
        """Go on where the goal that this one replaces stands."""
        # Shared, not copied: calls that began with the old one end there.
        self.load = old.load
        if old.balancing == self.balancing and not isinstance(self._balancer, ByKey):
            self._balancer = old._balancer

    def pick(
        self, now: float, dice: float, key: int | None, tried: Sequence[Seat], ejected: bool
    ) -> Seat | None:
        """
        Choose an instance.

        Args:
            now: this moment.
            dice: from 0 up to, not including, 1.
            key: of the call.
            tried: instances that are not wanted again.
            ejected: whether any instance of the upstream is ejected or on trial.

        Returns:
            ``None`` when there is none that may be called.
        """
        seats = self._seats
        if now >= seats.valid_until:
            seats = self._seats = Seats(seats.all, now)
        if ejected or tried or self._tiers:
            seats = self._able(seats, now, dice, tried)
        if not seats.all:
            return None
        return self._balancer.pick(seats, now, dice, key)

    def pick_ejected(
        self, now: float, dice: float, key: int | None, tried: Sequence[Seat]
    ) -> Seat | None:
        """
        Choose an instance though all are ejected: those that were well are gone meanwhile.

        Returns:
            ``None`` where all may be ejected, or there is none.
        """
        left = [seat for seat in self._seats.all if seat not in tried]
        if self.breaking.max_percent >= 100 or not left:
            return None
        return self._balancer.pick(Seats(left, now), now, dice, key)

    def offers(self, now: float, tried: Sequence[Seat]) -> bool:
        """Whether `pick` would find somebody."""
        return any(seat not in tried and _may_be_called(seat, now) for seat in self._seats.all)

    def _able(self, seats: Seats, now: float, dice: float, tried: Sequence[Seat]) -> Seats:
        able = [seat for seat in seats.all if seat not in tried and _may_be_called(seat, now)]
        if self._tiers and able:
            able = self._near(able, dice)
        return Seats(able, now) if len(able) < len(seats) else seats

    def _near(self, able: Sequence[Seat], dice: float) -> list[Seat]:
        count = self._tiers + 1
        total, well = [0] * count, [0] * count
        for seat in self._seats.all:
            total[seat.tier] += 1
        for seat in able:
            well[seat.tier] += 1
        # The die goes on to choose in the tier; its last digits do here, to be another one.
        point = dice * 65536 % 1
        chosen = count - 1
        for tier, share in enumerate(near_shares(total, well)):
            point -= share
            if point < 0:
                chosen = tier
                break
        return [seat for seat in able if seat.tier == chosen] or list(able)

    def failed(self, seat: Seat, now: float, dice: float) -> None:
        """Count a failure of one instance."""
        gone = sum(one.health.until is not None for one in self._seats.all)
        may = self.breaking.may_eject(gone, len(self._seats), self._stands_in)
        seat.health = fail(seat.health, self.breaking, now, dice, may)

    @staticmethod
    def succeeded(seat: Seat, now: float) -> None:
        """Count a success of one instance."""
        seat.health = succeed(seat.health, now)


def _may_be_called(seat: Seat, now: float) -> bool:
    state = seat.health.state(now)
    return state == "closed" or (state == "half-open" and not seat.trial)
