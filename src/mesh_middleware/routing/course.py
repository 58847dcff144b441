"""
One upstream: its chain, its instances, what became of its calls.

Owns what is known about one upstream at a moment, and begins trips over it. The watches teach it
(`Course.learn_chain`, `Course.learn_instances`), transports ask it (`Course.begin`), people look at
it (`Course.look`). Safe to use from several threads: one short lock, held for bookkeeping only.

Theory. What was learnt is compiled into a `Plan` that is swapped whole; a trip keeps the plan it
began with. Counters of an instance (`balance.Seat`) outlive plans, since its calls and its failures
do: a new chain, a new weight, another instance more must not make an ejected one look well. What
registered anew at the same address is another instance, and what came back from being critical
counts as one, also where the agent told both at once.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..identity import ServiceId
from ..resolve import Endpoint
from .balance import Seat
from .breaking import WELL, BreakerState, Breaking, Budget
from .calls import Call, Limits
from .chain import Chain, Place, Resolution, Retries, default_chain
from .goal import Goal
from .instances import FilterError, Instance, Locality, subset
from .matching import RouteTest, compile_route
from .retries import DEFAULT_RETRIES
from .trip import Plan, Trip

_Key = tuple[str, int, ServiceId, int]
"""Who is one instance: address, identity, registration."""


@dataclass(frozen=True, slots=True)
class Manners:
    """
    How calls to one upstream behave, as its caller's side says.

    Args:
        breaking: when an instance is ejected.
        limits: how much each target takes at once.
        connect_timeout: seconds; ``None`` leaves it to the chain.
        retries: where no route says otherwise.
        budget: part of the calls that may be tried again.
        locality: where we stand, to prefer what is near; ``None`` does not.
    """

    breaking: Breaking = Breaking()
    limits: Limits = Limits()
    connect_timeout: float | None = None
    retries: Retries = DEFAULT_RETRIES
    budget: float = 0.2
    locality: Locality | None = None


@dataclass(frozen=True, slots=True)
class InstanceState:
    """
    One instance, for people.

    Args:
        endpoint: the instance.
        state: ``closed`` is in use, ``open`` ejected, ``half-open`` on trial.
        outstanding: calls under way.
        failures: in a row.
        ejected_for: seconds until its trial; 0 when it is not ejected.
    """

    endpoint: Endpoint
    state: BreakerState
    outstanding: int
    failures: int
    ejected_for: float = 0.0


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """
    An upstream, for people.

    Args:
        name: of the upstream.
        state: ``open`` when every instance is ejected, ``half-open`` when none is in use but some
            are on trial, else ``closed``.
        outstanding: calls under way.
        instances: each of them.
        unhonoured: fields of Consul's configuration that have no effect here.
        chained: whether anything was written about its chain.
    """

    name: str
    state: BreakerState
    outstanding: int
    instances: tuple[InstanceState, ...]
    unhonoured: tuple[str, ...] = ()
    chained: bool = False


@dataclass(slots=True)
class _Known:
    """What the agent told."""

    chain: Chain
    chained: bool = False
    instances: dict[Place, tuple[Instance, ...]] = field(default_factory=dict)
    why: dict[Place, str] = field(default_factory=dict)


class Course:
    """
    One upstream.

    Args:
        service: its name.
        datacenter: where it is looked up; ``None`` means our own.
        manners: what the caller's side says.
    """

    def __init__(
        self, service: str, datacenter: str | None = None, manners: Manners | None = None
    ) -> None:
        self.place = Place(service, datacenter)
        # Taken again by its holder where the garbage collector, at work just then, ends a call.
        self.lock = threading.RLock()
        self.manners = manners or Manners()
        self.budget = Budget(self.manners.budget)
        self._last_call = -math.inf
        self.ejected = False
        self._known = _Known(default_chain(service, datacenter))
        self._seats: dict[_Key, Seat] = {}
        self.endpoints: tuple[Endpoint, ...] = ()
        self._plan = self._compile(0.0)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def chain(self) -> Chain:
        """The chain that holds now."""
        return self._known.chain

    def places(self) -> frozenset[Place]:
        """Everything whose instances have to be told to `learn_instances`."""
        return self._known.chain.places()

    def missing(self) -> frozenset[Place]:
        """Those of `places` that were not told yet; a call would not know where to go."""
        return frozenset(self.places() - self._known.instances.keys())

    def knows(self, places: frozenset[Place]) -> bool:
        """Whether the instances of all these were told, even that there are none."""
        return places <= self._known.instances.keys()

    def learn_chain(self, chain: Chain | None, now: float) -> None:
        """Take a chain; ``None`` is the default chain: nothing was written about the upstream."""
        with self.lock:
            self._known.chained = chain is not None
            self._known.chain = chain or default_chain(self.place.service, self.place.datacenter)
            self._plan = self._compile(now)
            self._tell_endpoints()

    def learn_instances(
        self,
        place: Place,
        instances: Sequence[Instance],
        now: float,
        why_none: str = "",
        *,
        anew: bool = False,
    ) -> None:
        """
        Take the instances of one place; those that are gone get no new call.

        Args:
            place: one of `places`; another is kept for a chain to come.
            instances: all of them.
            now: this moment: those that were not there before start slowly.
            why_none: told when there are none.
            anew: whether they were all said to be critical since: nobody is ejected any more.
        """
        with self.lock:
            if anew:
                self._forgive(place)
            known = self._known.instances.get(place)
            if known == tuple(instances) and self._known.why.get(place) == why_none:
                return
            self._known.instances[place] = tuple(instances)
            self._known.why[place] = why_none
            self._seat(place, now if known else None)
            self._plan = self._compile(now)

    def learn_manners(self, manners: Manners, now: float) -> None:
        """Take what the caller's side says now."""
        with self.lock:
            if manners != self.manners:
                self.manners = manners
                self._last_call = self.last_call
                self.budget = Budget(manners.budget)
                self._seat(self.place, None)  # who is near may be others now
                self._plan = self._compile(now)

    @property
    def last_call(self) -> float:
        """The moment when the last call began, to the second; long ago where there was none."""
        return max(self._last_call, self.budget.last)

    def begin(self, call: Call, now: float, dice: float) -> Trip:
        """
        Begin a call.

        Args:
            call: what is asked.
            now: this moment.
            dice: chooses the split; another one for each `Trip.next`.

        Raises:
            ResolveError: no route takes the call.
        """
        return Trip(self, self._plan, call, now, dice)

    def look(self, now: float) -> UpstreamState:
        """Tell how the upstream is."""
        with self.lock:
            chain, chained = self._known.chain, self._known.chained
            seats, busy = (
                self._seats_of(chain),
                sum(one.outstanding for one in self._seats.values()),
            )
        instances = tuple(_state(seat, now) for seat in seats)
        states = {instance.state for instance in instances}
        state: BreakerState = "closed"
        if states and "closed" not in states:
            state = "half-open" if "half-open" in states else "open"
        return UpstreamState(str(self.place), state, busy, instances, chain.unhonoured, chained)

    def _seats_of(self, chain: Chain) -> list[Seat]:
        # Others are known too: of places where an earlier chain led, or a later one will.
        told = (self._known.instances.get(place, ()) for place in sorted(chain.places(), key=str))
        keys = dict.fromkeys(_key(one) for instances in told for one in instances)
        return [self._seats[key] for key in keys]

    def refresh(self) -> None:
        """Note whether anybody is ejected; under the lock, after a failure or a passed trial."""
        self.ejected = any(seat.health.until is not None for seat in self._seats.values())

    # -- compiling, under the lock ------------------------------------------------------------

    def _forgive(self, place: Place) -> None:
        for instance in self._known.instances.get(place, ()):
            self._seats[_key(instance)].health = WELL
        self.refresh()

    def _seat(self, place: Place, since: float | None) -> None:
        old, self._seats = self._seats, {}
        tiers = _tiers(one for told in self._known.instances.values() for one in told)
        for told_at, instances in self._known.instances.items():
            for instance in instances:
                endpoint = instance.endpoint
                key = _key(instance)
                seat = self._seats.get(key) or old.get(key)
                if seat is None:
                    seat = Seat(endpoint, since if told_at == place else None)
                seat.endpoint = endpoint
                here = self.manners.locality
                seat.tier = tiers[endpoint.priority] + (here.tier(instance.locality) if here else 0)
                self._seats[key] = seat
        self.refresh()
        self._tell_endpoints()

    def _tell_endpoints(self) -> None:
        # Only of the chain's own targets: a pool has no use for the others.
        places = self._known.chain.places()
        told = (
            one for place in sorted(places, key=str) for one in self._known.instances.get(place, ())
        )
        found = tuple(dict.fromkeys(one.endpoint for one in told))
        if found != self.endpoints:
            self.endpoints = found

    def _compile(self, now: float) -> Plan:
        chain = self._known.chain
        tests = {node: tuple(map(compile_route, routes)) for node, routes in chain.routers.items()}
        old = self._plan.goals if hasattr(self, "_plan") else {}
        goals: dict[tuple[str, str], Goal] = {}
        for node, resolution in chain.resolvers.items():
            for target in (resolution.target, *resolution.failover):
                goal = goals[node, target] = self._goal(chain, resolution, target, now)
                if (node, target) in old:
                    goal.adopt(old[node, target])
        return Plan(chain, tests, goals)

    def _goal(self, chain: Chain, resolution: Resolution, name: str, now: float) -> Goal:
        target = chain.targets[name]
        seats: list[Seat] = []
        instances = self._known.instances.get(target.place, ())
        why = self._known.why.get(target.place) or "no healthy instance"
        if target.flaw:
            why = f"{name} is {target.flaw}"
        else:
            try:
                kept = subset(instances, target)
                seats = [self._seats[_key(one)] for one in kept]
                if instances and not kept:
                    why = f"no healthy instance in subset {target.subset!r}"
            except FilterError as error:
                why = f"subset {target.subset!r} counts as empty: {error}"
        manners = self.manners
        return Goal(
            target, seats, resolution.balancing, manners.breaking, manners.limits,
            bool(resolution.failover), now, why,
        )  # fmt: skip

    def flaws(self) -> tuple[str, ...]:
        """What of the chain cannot be done as it says, for the log."""
        chain = self._known.chain
        tests: Mapping[str, tuple[RouteTest, ...]] = self._plan.tests
        found = [
            f"route {number} of {node} never matches: {test.flaw}"
            for node, routes in tests.items()
            for number, test in enumerate(routes, 1)
            if test.flaw
        ]
        found += [
            f"target {t.id} counts as empty: {t.flaw}" for t in chain.targets.values() if t.flaw
        ]
        found += [
            goal.why_none
            for goal in self._plan.goals.values()
            if "counts as empty" in goal.why_none
        ]
        return tuple(dict.fromkeys(found))


def _tiers(instances: Iterable[Instance]) -> dict[int, int]:
    """The nearest tier of each priority: each has one for every tier of a locality."""
    priorities = sorted({instance.endpoint.priority for instance in instances})
    return {priority: rank * Locality.TIERS for rank, priority in enumerate(priorities)}


def _key(instance: Instance) -> _Key:
    endpoint = instance.endpoint
    return endpoint.host, endpoint.port, endpoint.expected, instance.created


def _state(seat: Seat, now: float) -> InstanceState:
    health = seat.health
    left = 0.0 if health.until is None else max(0.0, health.until - now)
    return InstanceState(seat.endpoint, health.state(now), seat.outstanding, health.failures, left)
