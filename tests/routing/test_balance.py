"""Which instance a call goes to: distributions, keys, slow start, nearness."""

from __future__ import annotations

from collections import Counter
from math import sqrt

import pytest

from mesh_middleware.routing import Balancing, Call, Course, Instance, Locality, Manners, Place
from mesh_middleware.routing.balance import (
    SLOW_START,
    LeastRequest,
    Seat,
    Seats,
    make_balancer,
    near_shares,
)
from mesh_middleware.routing.chain import POLICIES, Policy
from mesh_middleware.routing.hashing import Maglev, Ring, hash_text

from .support import course, dice, endpoint, instances

CALLS = 20_000


def near(count: int, share: float, calls: int = CALLS) -> bool:
    """Within five standard deviations of a fair draw: once in two million by chance."""
    return abs(count - calls * share) < 5 * sqrt(calls * share * (1 - share))


def counted(policy: Policy, weights: list[int]) -> Counter[int]:
    """How often each instance is chosen, with nothing under way and a key for each call."""
    seats = [Seat(endpoint(number, weight=weight)) for number, weight in enumerate(weights)]
    balancer = make_balancer(Balancing(policy), seats)
    found, order = Seats(seats, 0.0), {id(seat): n for n, seat in enumerate(seats)}
    return Counter(
        order[id(balancer.pick(found, 0.0, die, hash_text(f"key {n}")))]
        for n, die in enumerate(dice(1, CALLS))
    )


@pytest.mark.parametrize("weights", [[1] * 5, [1, 2, 7], [100, 1]], ids=["equal", "mixed", "far"])
@pytest.mark.parametrize("policy", ["least_request", "random", "round_robin"])
def test_shares_are_as_the_weights(policy: Policy, weights: list[int]) -> None:
    """With nothing under way each balancer spreads calls by weight."""
    found = counted(policy, weights)
    for number, weight in enumerate(weights):
        assert near(found[number], weight / sum(weights)), found


@pytest.mark.parametrize("weights", [[1] * 5, [1, 2, 7]], ids=["equal", "mixed"])
@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
def test_keys_are_shared_about_as_the_weights(policy: Policy, weights: list[int]) -> None:
    """A ring is uneven by nature; a fifth more or less is what 128 points give, and maglev 3 %."""
    found = counted(policy, weights)
    slack = 0.35 if policy == "ring_hash" else 0.05
    for number, weight in enumerate(weights):
        share = weight / sum(weights)
        assert found[number] == pytest.approx(CALLS * share, rel=slack), found


def test_round_robin_spreads_the_heavy_ones() -> None:
    """Weights 3 and 1: never four of the heavy one in a row."""
    seats = [Seat(endpoint(0, weight=3)), Seat(endpoint(1))]
    balancer = make_balancer(Balancing("round_robin"), seats)
    found = Seats(seats, 0.0)
    turns = [balancer.pick(found, 0.0, 0.0, None).endpoint.weight for _ in range(8)]
    assert sorted(turns) == [1, 1, 3, 3, 3, 3, 3, 3] and turns[:4].count(1) == 1


def test_the_less_busy_of_two_is_taken() -> None:
    """With one of two instances busy, every call goes to the other; weight divides the load."""
    busy, free = Seat(endpoint(0)), Seat(endpoint(1))
    busy.outstanding = 1
    seats = Seats([busy, free], 0.0)
    assert all(LeastRequest().pick(seats, 0.0, die, None) is free for die in dice(2, 200))
    heavy, light = Seat(endpoint(0, weight=10)), Seat(endpoint(1))
    heavy.outstanding, light.outstanding = 5, 1
    seats = Seats([heavy, light], 0.0)
    assert all(LeastRequest().pick(seats, 0.0, die, None) is heavy for die in dice(2, 200))


def test_two_choices_keep_the_longest_line_short() -> None:
    """300 calls that never end on 100 instances: the busiest has 6 at most, by chance it had 9."""
    one = course(100)
    for die in dice(3, 300):
        one.begin(Call("GET", b"/"), 0.0, die).next(0.0, die)
    assert max(found.outstanding for found in one.look(0.0).instances) <= 6


@pytest.mark.parametrize("policy", POLICIES)
def test_one_instance_gets_all(policy: Policy) -> None:
    """Whatever the die says."""
    assert counted(policy, [1]) == {0: CALLS}


@pytest.mark.parametrize("count", [2, 3, 5, 10, 40])
@pytest.mark.parametrize("kind", [Ring, Maglev])
def test_few_keys_move_when_an_instance_leaves(kind: type[Ring] | type[Maglev], count: int) -> None:
    """At most 2/n of the keys go elsewhere when one of n leaves, and most of those were its own."""
    named = [(f"10.0.0.{number}", 1.0) for number in range(count)]
    before, after = kind(named), kind(named[1:])
    keys = [hash_text(str(number)) for number in range(5000)]
    moved = sum(before.find(key) != after.find(key) + 1 for key in keys)
    assert 0 < moved <= len(keys) * 2 / count


@pytest.mark.parametrize("kind", [Ring, Maglev])
def test_a_key_has_an_order_of_its_own(kind: type[Ring] | type[Maglev]) -> None:
    """Who stands in for an instance differs from key to key, so that its load spreads."""
    found = kind([(str(number), 1.0) for number in range(5)])
    orders = [found.following(hash_text(str(number))) for number in range(500)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert all(order[0] == found.find(hash_text(str(n))) for n, order in enumerate(orders))
    assert {order[1] for order in orders if order[0] == 0} == {1, 2, 3, 4}


def test_the_hash_is_the_same_everywhere() -> None:
    """Two processes agree on who has a key."""
    assert hash_text("alice") == hash_text(b"alice") == 5614559425216174729


def test_a_new_instance_starts_slowly() -> None:
    """A tenth of its share at first, half of it half-way, all of it after `SLOW_START`."""
    one = course(1)
    one.learn_instances(Place("tax"), instances(2), 1000.0)

    def share(now: float) -> float:
        new = 0
        for die in dice(4, 4000):
            trip = one.begin(Call("GET", b"/"), now, die)
            new += trip.next(now, die).endpoint == endpoint(1)
            trip.close(now)
        return new / 4000

    assert share(1000.0) == pytest.approx(0.1 / 1.1, abs=0.03)
    assert share(1000.0 + SLOW_START / 2) == pytest.approx(0.5 / 1.5, abs=0.04)
    assert share(1000.0 + SLOW_START + 1) == pytest.approx(0.5, abs=0.04)


def test_the_first_instances_start_at_once() -> None:
    """Nobody is new to a client that has just begun."""
    assert [seat.warmth(0.0) for seat in course(2)._seats.values()] == [1.0, 1.0]


def test_an_instance_that_is_gone_gets_no_call_and_keeps_its_count() -> None:
    """A call under way to it ends well; new ones go to those that are left."""
    one = course(2)
    trips = [one.begin(Call("GET", b"/"), 0.0, die) for die in dice(5, 50)]
    for trip, die in zip(trips, dice(6, 50), strict=True):
        trip.next(0.0, die)
    one.learn_instances(Place("tax"), instances(1), 1.0)
    assert one.endpoints == (endpoint(0),)
    for trip in trips:
        trip.close(1.0)
    for die in dice(7, 50):
        trip = one.begin(Call("GET", b"/"), 1.0, die)
        assert trip.next(1.0, die).endpoint == endpoint(0)
        trip.close(1.0)
    assert one.look(1.0).outstanding == 0


@pytest.mark.parametrize(
    ("total", "healthy", "shares"),
    [
        ((10, 10), (10, 10), (1, 0)),
        ((10, 10), (8, 10), (1, 0)),
        ((10, 10), (5, 10), (0.7, 0.3)),
        ((10, 10), (0, 10), (0, 1)),
        ((10, 0), (5, 0), (1, 0)),
        ((10, 10), (1, 1), (0.5, 0.5)),
        ((10, 10), (0, 0), (0, 0)),
    ],
)
def test_nearness(
    total: tuple[int, ...], healthy: tuple[int, ...], shares: tuple[float, ...]
) -> None:
    """The nearest tier keeps all until less than 1/1.4 of it is well."""
    assert near_shares(total, healthy) == pytest.approx(shares)


def test_the_same_zone_comes_first() -> None:
    """Instances elsewhere get nothing while those in our zone are well."""
    here, there = Locality("eu", "a"), Locality("eu", "b")
    one = Course("tax", manners=Manners(locality=here))
    told = [
        Instance(endpoint(0), locality=here), Instance(endpoint(1), locality=there),
        Instance(endpoint(2), locality=None),
    ]  # fmt: skip
    one.learn_instances(Place("tax"), told, 0.0)
    for die in dice(8, 100):
        assert one.begin(Call("GET", b"/"), 0.0, die).next(0.0, die).endpoint == endpoint(0)
    one.learn_instances(Place("tax"), told[1:], 0.0)
    for die in dice(8, 100):
        assert one.begin(Call("GET", b"/"), 0.0, die).next(0.0, die).endpoint == endpoint(1)
