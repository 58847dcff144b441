"""
Which instance a call goes to.

Owns the live record of an instance (`Seat`), the balancers, slow start, and how much leaves the
nearest zone when it is not well. Knows neither ejection nor chains: it is given the instances that
may be chosen, and one die per choice.

Theory. *Least request* draws two instances by weight and takes the one with fewer calls under way
for its weight; with nothing under way the draw alone decides, so that weights hold exactly. One die
is enough for both draws: its leading part chooses the first, the rest the second. *Round robin*
with unequal weights is the smooth kind: it spreads the heavy ones. An instance that is new counts
for little at first, and for its full weight after `SLOW_START` seconds; where the policy goes by
keys it does not, as keys would move twice.

Source: Mitzenmacher, "The Power of Two Choices"; Envoy, "Supported load balancers", "Slow start",
"Priority levels".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from ..resolve import Endpoint
from .breaking import Health
from .chain import Balancing
from .hashing import Maglev, Ring

SLOW_START = 30.0
"""Seconds until a new instance counts for its full weight."""
FIRST_SHARE = 0.1
"""Part of its weight that a new instance begins with. Source: Envoy, ``min_weight_percent``."""
OVERPROVISIONED = 1.4
"""How much more than its share a zone can take. Source: Envoy's overprovisioning factor."""


class Seat:
    """
    One instance, as long as it is known.

    Attributes:
        endpoint: where it is, who has to answer, its weight.
        since: moment it was first told; ``None`` when it was there from the start.
        outstanding: calls under way.
        health: failures and ejection.
        trial: whether the one call that a half-open instance gets is under way.
        tier: 0 for the nearest.
        turn: its credit in a weighted round robin.
    """

    __slots__ = ("endpoint", "health", "outstanding", "since", "tier", "trial", "turn")

    def __init__(self, endpoint: Endpoint, since: float | None = None, tier: int = 0) -> None:
        self.endpoint = endpoint
        self.since = since
        self.outstanding = 0
        self.health = Health()
        self.trial = False
        self.tier = tier
        self.turn = 0.0

    def weight(self, now: float) -> float:
        """Its weight at this moment, slow start included."""
        return self.endpoint.weight * self.warmth(now)

    def warmth(self, now: float) -> float:
        """Part of its weight that counts: 1 but for new instances."""
        if self.since is None:
            return 1.0
        return min(1.0, max(FIRST_SHARE, (now - self.since) / SLOW_START))


class Seats:
    """
    Instances to choose from, with their weights summed up.

    Args:
        seats: the instances.
        now: this moment; weights hold for it, or until `valid_until` if that is later.
    """

    __slots__ = ("all", "equal", "sums", "valid_until")

    def __init__(self, seats: Sequence[Seat], now: float) -> None:
        self.all = tuple(seats)
        weights = [seat.weight(now) for seat in self.all]
        self.equal = len(set(weights)) <= 1
        self.sums = () if self.equal else tuple(accumulate(weights))
        warm = [seat.warmth(now) >= 1.0 for seat in self.all]
        self.valid_until = float("inf") if all(warm) else now + 1.0

    def __len__(self) -> int:
        return len(self.all)

    def draw(self, dice: float) -> tuple[int, float]:
        """Draw an index by weight; the second number is what is left of the die."""
        if self.equal:
            point = dice * len(self.all)
            index = int(point)
            return index, point - index
        point = dice * self.sums[-1]
        index = min(bisect_right(self.sums, point), len(self.sums) - 1)
        before = self.sums[index - 1] if index else 0.0
        return index, (point - before) / (self.sums[index] - before)

    def draw_other(self, but: int, dice: float) -> tuple[int, float]:
        """Draw an index by weight, never *but*; there have to be two at least."""
        if self.equal:
            point = dice * (len(self.all) - 1)
            index = int(point)
            return (index if index < but else index + 1), point - index
        before = self.sums[but - 1] if but else 0.0
        own = self.sums[but] - before
        point = dice * (self.sums[-1] - own)
        point += own if point >= before else 0.0
        index = min(bisect_right(self.sums, point), len(self.sums) - 1)
        start = self.sums[index - 1] if index else 0.0
        return index, min(1.0, max(0.0, (point - start) / (self.sums[index] - start)))


class Balancer(Protocol):
    """Chooses one of several instances."""

    def pick(self, seats: Seats, now: float, dice: float, key: int | None) -> Seat:
        """
        Choose.

        Args:
            seats: at least one.
            now: this moment.
            dice: from 0 up to, not including, 1.
            key: of the call; ``None`` when it has none.
        """
        ...


class LeastRequest:
    """Compares several instances that are drawn, and takes the least busy."""

    def __init__(self, choices: int = 2) -> None:
        self._choices = max(2, choices)

    def pick(self, seats: Seats, now: float, dice: float, key: int | None) -> Seat:
        """Choose the least busy of some drawn by weight."""
        found = seats.all
        if len(found) == 1:
            return found[0]
        index, dice = seats.draw(dice)
        best = found[index]
        for _ in range(self._choices - 1):
            other, dice = seats.draw_other(index, dice)
            one = found[other]
            # Multiplied out: outstanding / weight, without the division.
            if one.outstanding * best.endpoint.weight < best.outstanding * one.endpoint.weight:
                best, index = one, other
        return best


class RandomChoice:
    """Draws by weight."""

    def pick(self, seats: Seats, now: float, dice: float, key: int | None) -> Seat:
        """Draw one."""
        return seats.all[seats.draw(dice)[0]]


class RoundRobin:
    """One after the other, the heavier more often."""

    def __init__(self) -> None:
        self._at = -1

    def pick(self, seats: Seats, now: float, dice: float, key: int | None) -> Seat:
        """Take the next one."""
        if seats.equal:
            # The first is drawn: clients that start together do not march in step.
            self._at = int(dice * len(seats)) if self._at < 0 else self._at + 1
            return seats.all[self._at % len(seats)]
        total = 0.0
        best = seats.all[0]
        for seat in seats.all:
            weight = seat.weight(now)
            seat.turn += weight
            total += weight
            if seat.turn > best.turn:
                best = seat
        best.turn -= total
        return best


class ByKey:
    """
    The same instance for the same key, as long as it can be had.

    Args:
        seats: all instances, chosen or not.
        balancing: ring or table.
    """

    def __init__(self, seats: Sequence[Seat], balancing: Balancing) -> None:
        self._seats = tuple(seats)
        named = [
            (f"{s.endpoint.address} {s.endpoint.expected.uri}", s.endpoint.weight) for s in seats
        ]
        self._finder: Ring | Maglev | None = None
        if named:
            ring = balancing.policy == "ring_hash"
            self._finder = Ring(named, *balancing.ring) if ring else Maglev(named)

    def pick(self, seats: Seats, now: float, dice: float, key: int | None) -> Seat:
        """Take the key's instance, or the next in the key's own order; by weight without a key."""
        if key is None or self._finder is None:
            return seats.all[seats.draw(dice)[0]]
        seat = self._seats[self._finder.find(key)]
        if len(seats) == len(self._seats) or seat in seats.all:
            return seat
        able = set(seats.all)
        for index in self._finder.following(key):
            if self._seats[index] in able:
                return self._seats[index]
        return seats.all[seats.draw(dice)[0]]


def make_balancer(balancing: Balancing, seats: Sequence[Seat]) -> Balancer:
    """Make the balancer that *balancing* asks for, over *seats*."""
    if balancing.policy in ("ring_hash", "maglev"):
        return ByKey(seats, balancing)
    if balancing.policy == "round_robin":
        return RoundRobin()
    if balancing.policy == "random":
        return RandomChoice()
    return LeastRequest(balancing.choices)


def near_shares(total: Sequence[int], healthy: Sequence[int]) -> list[float]:
    """
    Tell how calls are shared among tiers, the nearest first.

    A tier keeps all calls as long as `OVERPROVISIONED` times its healthy part is the whole; what it
    cannot take goes to the next. Where no tier can take it, each gets as much as it is well.

    Args:
        total: instances of each tier.
        healthy: those that can be called.

    Returns:
        Shares that sum up to 1, or all 0 when nobody is healthy.
    """
    able = [
        min(1.0, OVERPROVISIONED * well / known) if known else 0.0
        for known, well in zip(total, healthy, strict=True)
    ]
    shares, left = [], min(1.0, sum(able))
    for one in able:
        shares.append(min(one, left))
        left -= shares[-1]
    whole = sum(shares)
    return [share / whole for share in shares] if whole else shares
