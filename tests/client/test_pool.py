"""The pool's bookkeeping, by itself: whose turn it is, what is fit, what has to be closed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from mesh_middleware.httpx.pool import MAX_AGE, Lane, Pool
from mesh_middleware.httpx.upstreams import sni
from mesh_middleware.identity import ServiceId
from mesh_middleware.resolve import Endpoint
from mesh_middleware.routing.calls import Limits

from .support import TRUST_DOMAIN, service_id


@dataclass(eq=False)
class Plain:
    """A connection as the pool sees it."""

    lane: Lane[Any]
    generation: int = 1
    retire_at: float = MAX_AGE
    idle_since: float = 0.0
    usable: bool = True

    def is_usable(self) -> bool:
        """Whether the test says so."""
        return self.usable


@dataclass(eq=False)
class Waiting:
    """Somebody in line."""

    gone: bool = False
    only: Lane[Any] | None = None
    given: list[Plain | None] = field(default_factory=list)

    def takes(self, lane: Lane[Any]) -> bool:
        """Any instance, unless the test says which."""
        return self.only in (None, lane)

    def give(self, connection: Plain | None) -> bool:
        """Take it, unless gone."""
        if not self.gone:
            self.given.append(connection)
        return not self.gone


class Still:
    """A mesh whose generation the test sets."""

    generation = 1

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the pool has no business with {name}")


def _endpoint(port: int, weight: int = 1) -> Endpoint:
    return Endpoint("10.0.0.1", port, service_id("tax"), weight)


class Fixture:
    """A pool with a clock that stands still, and its mesh."""

    def __init__(self, most: int | None = 2, idle: int | None = None) -> None:
        self.mesh = Still()
        self.now = 0.0
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=idle)
        limits.keepalive_expiry = 10.0
        self.pool: Pool[Plain] = Pool(self.mesh, limits, lambda: self.now)
        self.pool.update((_endpoint(1), _endpoint(2)))

    def make(self, lane: Lane[Plain] | None = None) -> Plain:
        """Admit and make a connection."""
        assert self.pool.admit()
        return Plain(lane or self.pool.lane(_endpoint(1)), self.mesh.generation)


def test_the_connection_used_last_is_used_first() -> None:
    """So that the others can grow old and go."""
    at = Fixture()
    one, two = at.make(), at.make()
    assert at.pool.give_back(one, True) == at.pool.give_back(two, True) == []
    assert at.pool.reuse(one.lane) == (two, [])
    assert at.pool.reuse(one.lane) == (one, [])
    assert at.pool.reuse(one.lane) == (None, [])
    assert at.pool.open == 2


@pytest.mark.parametrize("case", ["generation", "lane", "age", "expiry", "closed", "used up"])
def test_a_connection_that_is_not_fit_is_closed(case: str) -> None:
    """Another generation, a gone instance, too old, idle too long, closed, or asked to close."""
    at = Fixture()
    connection = at.make()
    if case == "generation":
        at.mesh.generation = 2
    elif case == "lane":
        at.pool.update((_endpoint(2),))
    elif case == "age":
        at.now = MAX_AGE
    elif case in ("expiry", "closed"):
        assert at.pool.give_back(connection, True) == []
        at.now = 10.0 if case == "expiry" else 0.0
        connection.usable = case != "closed"
        assert at.pool.reuse(connection.lane) == (None, [connection])
    if case not in ("expiry", "closed"):
        assert at.pool.give_back(connection, case != "used up") == [connection]
    assert at.pool.open == 0


def test_a_long_request_does_not_expire() -> None:
    """Idle time counts from the end of a request, not from the last one's."""
    at = Fixture()
    connection = at.make()
    at.now = 1000.0
    assert at.pool.give_back(connection, True) == []
    assert at.pool.reuse(connection.lane) == (connection, [])


def test_a_rotation_closes_what_is_idle() -> None:
    """`update` hands out all idle connections of the generation before, of every instance."""
    at = Fixture(most=4)
    lanes = [at.pool.lane(_endpoint(port)) for port in (1, 2)]
    idle = [at.make(lane) for lane in lanes]
    busy = at.make()
    for connection in idle:
        at.pool.give_back(connection, True)
    at.mesh.generation = 2
    assert set(at.pool.update((_endpoint(1), _endpoint(2)))) == set(idle)
    assert at.pool.open == 1
    assert at.pool.give_back(busy, True) == [busy]
    assert at.pool.open == 0


def test_an_instance_that_stays_keeps_its_connections() -> None:
    """A change of instances closes those of the gone ones only."""
    at = Fixture()
    lane = at.pool.lane(_endpoint(1))
    connection = at.make(lane)
    at.pool.give_back(connection, True)
    assert at.pool.update((_endpoint(3), lane.endpoint)) == []
    assert at.pool.reuse(lane) == (connection, [])


def test_those_in_line_come_in_order_and_nobody_overtakes() -> None:
    """First in, first out; who has gone is skipped; newcomers are not admitted meanwhile."""
    at = Fixture(most=1)
    connection = at.make()
    first, gone, second = Waiting(), Waiting(gone=True), Waiting()
    for waiting in (first, gone, second):
        at.pool.queue(waiting)
    assert at.pool.give_back(connection, True) == []
    assert first.given == [connection]
    assert not at.pool.admit()
    assert at.pool.give_back(connection, True) == []
    assert (second.given, gone.given) == ([connection], [])
    assert at.pool.give_back(connection, True) == []
    assert at.pool.reuse(connection.lane) == (connection, [])


def test_who_leaves_the_line_is_not_counted_in_it() -> None:
    """Leaving makes room at once, and leaving twice, or after one's turn, is no error."""
    fixture = Fixture(most=1)
    fixture.pool.update((_endpoint(1), _endpoint(2)), Limits(1, 1))
    connection = fixture.make()
    gone, waiting = Waiting(), Waiting()
    fixture.pool.queue(gone)
    assert not fixture.pool.may_queue()
    fixture.pool.leave(gone)
    assert fixture.pool.may_queue()
    fixture.pool.queue(waiting)
    fixture.pool.leave(gone)
    assert fixture.pool.give_back(connection, True) == []
    assert (gone.given, waiting.given) == ([], [connection])
    fixture.pool.leave(waiting)


def test_whoever_is_in_line_gets_no_connection_that_has_ended() -> None:
    """A connection that the other end has closed makes room for a new one."""
    fixture = Fixture(most=1)
    connection, waiting = fixture.make(), Waiting()
    connection.usable = False
    fixture.pool.queue(waiting)
    assert fixture.pool.give_back(connection, True) == [connection]
    assert waiting.given == [None]
    assert fixture.pool.open == 1


def test_the_end_of_a_connection_is_somebodys_turn() -> None:
    """When a connection ends, the first in line is told to make one, and is counted."""
    at = Fixture(most=1)
    connection = at.make()
    waiting = Waiting()
    at.pool.queue(waiting)
    assert at.pool.give_back(connection, False) == [connection]
    assert waiting.given == [None]
    assert at.pool.open == 1


def test_the_oldest_idle_connection_goes_first() -> None:
    """Above ``max_keepalive_connections`` whichever was used longest ago is closed."""
    at = Fixture(most=None, idle=2)
    lane = at.pool.lane(_endpoint(1))
    other = at.pool.lane(_endpoint(2)) if lane else None
    assert lane and other
    made = [at.make(lane), at.make(other), at.make(lane)]
    for number, connection in enumerate(made):
        at.now = float(number)
        closed = at.pool.give_back(connection, True)
    assert closed == [made[0]]
    assert at.pool.open == 2


def test_any_instance_will_do_when_all_connections_are_made() -> None:
    """At the limit an idle connection to another instance is taken rather than waited for."""
    at = Fixture(most=1)
    connection = at.make()
    at.pool.give_back(connection, True)
    assert not at.pool.admit()
    assert at.pool.reuse_any(lambda lane: True) == (connection, [])


def test_where_another_instance_will_not_do_an_idle_connection_makes_room() -> None:
    """At the limit the oldest idle connection is closed, and its place may be taken."""
    at = Fixture(most=2)
    one, two = at.make(), at.make(at.pool.lane(_endpoint(2)))
    for connection in (two, one):
        at.now += 1
        at.pool.give_back(connection, True)
    assert at.pool.reuse_any(lambda lane: False) == (None, [two])
    assert at.pool.admit() and not at.pool.admit()
    assert at.pool.reuse(one.lane) == (one, [])


def test_who_waits_for_another_instance_takes_the_place_of_the_connection() -> None:
    """The first in line is served though the connection that came back is not what it wants."""
    at = Fixture(most=1)
    connection = at.make()
    first, second = Waiting(only=at.pool.lane(_endpoint(2))), Waiting()
    at.pool.queue(first)
    at.pool.queue(second)
    assert at.pool.give_back(connection, True) == [connection]
    assert (first.given, second.given, at.pool.open) == ([None], [], 1)


def test_another_weight_is_no_other_instance() -> None:
    """A check that turns to warning changes the weight, and closes nothing."""
    at = Fixture()
    connection = at.make()
    at.pool.give_back(connection, True)
    assert at.pool.update((_endpoint(1, weight=7), _endpoint(2))) == []
    lane = at.pool.lane(_endpoint(1, weight=7))
    assert lane.endpoint.weight == 7
    assert at.pool.reuse(lane) == (connection, [])


@pytest.mark.parametrize(
    ("expected", "name"),
    [
        (service_id("tax"), f"tax.default.dc1.internal.{TRUST_DOMAIN}"),
        (
            ServiceId(TRUST_DOMAIN, "team", "dc2", "tax", "eu"),
            f"tax.team.eu.dc2.internal-v1.{TRUST_DOMAIN}",
        ),
        (service_id("t" * 64), None),
        (service_id("täx"), None),
        (ServiceId("a." * 120 + "a", "default", "dc1", "tax"), None),
    ],
    ids=["default", "partition", "label too long", "not ASCII", "name too long"],
)
def test_the_server_name_is_consuls(expected: ServiceId, name: str | None) -> None:
    """Gateways route by it; where TLS could not carry it, none is sent."""
    assert sni(expected) == name
