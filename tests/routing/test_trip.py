"""A call on its way: routes, splits, failover, retries, limits, deadlines."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from math import sqrt
from typing import Any

import pytest

from mesh_middleware.exceptions import BreakerOpenError, DeadlineError, ResolveError
from mesh_middleware.routing import (
    Breaking,
    Call,
    Course,
    HeaderChanges,
    Instance,
    Limits,
    Manners,
    Outcome,
    Place,
    Retries,
)
from mesh_middleware.routing.balance import FIRST_SHARE
from mesh_middleware.routing.entries import build_chain

from .support import course, dice, endpoint, get, instances

OK = Outcome("answer", 200)
BAD = Outcome("answer", 503)
DEAD = Outcome("connect_failure", sent=False)
AGAIN = Retries(3, frozenset({"5xx", "connect-failure"}))


def entry(kind: str, name: str = "tax", **fields: Any) -> dict[str, Any]:
    return {"Kind": f"service-{kind}", "Name": name, **fields}


def versions(*counts: int) -> tuple[Instance, ...]:
    """Instances with ``version`` 1, 2, ... in their metadata, that many of each."""
    found: list[Instance] = []
    for version, count in enumerate(counts, 1):
        for _ in range(count):
            told = {"Service": {"Meta": {"version": str(version)}}, "Node": {}, "Checks": []}
            found.append(Instance(endpoint(len(found)), told))
    return tuple(found)


SUBSETS = {f"v{version}": {"Filter": f'Service.Meta.version == "{version}"'} for version in (1, 2)}


def chained(entries: list[dict[str, Any]], *told: Instance, **manners: Any) -> Course:
    one = Course("tax", manners=Manners(**manners))
    one.learn_chain(build_chain("tax", entries), 0.0)
    one.learn_instances(Place("tax"), told, 0.0)
    return one


def split(canary: float, **headers: Any) -> list[dict[str, Any]]:
    return [
        entry("resolver", Subsets=SUBSETS),
        entry("splitter", Splits=[
            {"Weight": 100 - canary, "ServiceSubset": "v1"},
            {"Weight": canary, "ServiceSubset": "v2", **headers},
        ]),
    ]  # fmt: skip


@pytest.mark.parametrize("canary", [0, 0.01, 1, 10, 50, 100])
def test_splits_are_as_their_weights(canary: float) -> None:
    """10,000 calls; within five standard deviations."""
    one, calls, found = chained(split(canary), *versions(2, 1)), 10_000, 0
    for die in dice(1, calls):
        trip = one.begin(get(), 0.0, die)
        found += trip.next(0.0, 0.5).to == "v2.tax"
        trip.close(0.0)
    share = canary / 100
    assert abs(found - calls * share) <= 5 * sqrt(calls * share * (1 - share))


def test_a_split_sticks_to_its_key() -> None:
    """One key, one version, whatever the dice; many keys, the splitter's shares."""
    one, found = chained(split(20), *versions(1, 1)), Counter[str]()
    for number in range(2000):
        call = Call("GET", b"/", key=f"user {number}")
        seen = {one.begin(call, 0.0, die).next(0.0, die).to for die in (0.0, 0.5, 0.99)}
        assert len(seen) == 1
        found.update(seen)
    assert 300 < found["v2.tax"] < 500


def test_headers_of_split_and_route_are_changed() -> None:
    """The split's come before the route's, on the way there and on the way back."""
    router = entry("router", Routes=[{
        "Match": {"HTTP": {"PathPrefix": "/v2/"}},
        "Destination": {"PrefixRewrite": "/", "RequestHeaders": {"Set": {"x-r": "1"}},
                        "ResponseHeaders": {"Remove": ["x-r"]}},
    }])  # fmt: skip
    headers = {"RequestHeaders": {"Add": {"x-s": "2"}}, "ResponseHeaders": {"Set": {"x-s": "3"}}}
    one = chained([router, *split(100, **headers)], *versions(1, 1))
    attempt = one.begin(get("/v2/rates?y=1"), 0.0, 0.5).next(0.0, 0.5)
    assert attempt.target == b"/rates?y=1"
    there = (HeaderChanges(add=(("x-s", "2"),)), HeaderChanges(set=(("x-r", "1"),)))
    assert attempt.request_headers == there
    assert attempt.response_headers == (
        HeaderChanges(set=(("x-s", "3"),)), HeaderChanges(remove=("x-r",)),
    )  # fmt: skip


def test_a_route_by_header_leads_to_another_version() -> None:
    """And everything else to the rest."""
    router = entry("router", Routes=[{
        "Match": {"HTTP": {"Header": [{"Name": "x-beta", "Exact": "yes"}]}},
        "Destination": {"ServiceSubset": "v2"},
    }])  # fmt: skip
    resolver = entry("resolver", Subsets=SUBSETS, DefaultSubset="v1")
    one = chained([router, resolver], *versions(1, 1))
    assert one.begin(get(X_Beta="yes"), 0.0, 0.5).next(0.0, 0.5).endpoint == endpoint(1)
    assert one.begin(get(x_beta="no"), 0.0, 0.5).next(0.0, 0.5).endpoint == endpoint(0)


@pytest.mark.parametrize("flaw", ["Weather == fine", "Service.Meta.version =="])
def test_a_subset_that_cannot_be_read_is_empty(flaw: str) -> None:
    """The canary nobody can read gets nobody's calls: a clear error, never all instances."""
    subsets = {"v1": {"Filter": flaw}}
    one = chained([entry("resolver", Subsets=subsets, DefaultSubset="v1")], *versions(2))
    with pytest.raises(ResolveError, match="counts as empty: filter"):
        one.begin(get(), 0.0, 0.5).next(0.0, 0.5)
    assert "counts as empty" in one.flaws()[0]


def test_only_passing_leaves_warnings_out() -> None:
    """Otherwise an instance that warns is called, with its weight for warnings."""
    subset = {"v1": {"OnlyPassing": True}}
    one = chained([entry("resolver", Subsets=subset, DefaultSubset="v1")])
    warning = Instance(endpoint(0), passing=False)
    one.learn_instances(Place("tax"), [warning], 0.0)
    with pytest.raises(ResolveError, match="no healthy instance in subset 'v1'"):
        one.begin(get(), 0.0, 0.5).next(0.0, 0.5)
    one.learn_chain(None, 0.0)
    assert one.begin(get(), 0.0, 0.5).next(0.0, 0.5).endpoint == endpoint(0)


def failover() -> Course:
    """``tax``, one instance, with ``backup`` standing in, another."""
    one = chained([entry("resolver", Failover={"*": {"Service": "backup"}})], *instances(1))
    one.learn_instances(Place("backup"), [Instance(endpoint(9, service="backup"))], 0.0)
    return one


def test_failover_takes_over_when_nobody_is_left_and_hands_back() -> None:
    """With its own identity expected; as soon as an instance is back, calls go there again."""
    one = failover()
    assert one.begin(get(), 0.0, 0.5).next(0.0, 0.5).endpoint == endpoint(0)
    one.learn_instances(Place("tax"), (), 1.0)
    attempt = one.begin(get(), 1.0, 0.5).next(1.0, 0.5)
    assert attempt.endpoint.expected.name == "backup"
    one.learn_instances(Place("tax"), instances(1), 2.0)
    assert one.begin(get(), 2.0, 0.5).next(2.0, 0.5).endpoint == endpoint(0)


def test_failover_takes_over_when_all_are_ejected() -> None:
    """Where others stand in, even the only instance is ejected; after 30 s it gets its trial."""
    one = failover()
    for _ in range(5):
        trip = one.begin(Call("POST", b"/"), 0.0, 0.5)
        assert trip.next(0.0, 0.5).endpoint == endpoint(0)
        assert trip.heard(Outcome("answer", 500), 0.0, 0.5) is None
        trip.close(0.0)
    assert one.begin(get(), 1.0, 0.5).next(1.0, 0.5).to == "backup"
    trial = one.begin(get(), 30.0, 0.5)
    assert trial.next(30.0, 0.5).to == "tax"
    assert one.begin(get(), 30.0, 0.5).next(30.0, 0.5).to == "backup", "one trial at a time"
    assert trial.heard(OK, 30.1, 0.5) is None
    assert one.begin(get(), 30.2, 0.5).next(30.2, 0.5).to == "tax"


def test_who_registered_anew_is_not_ejected() -> None:
    """Restarted at the same address while it was ejected: it is called, slowly where not alone."""
    one = failover()
    before = Instance(endpoint(0), created=7)
    one.learn_instances(Place("tax"), [before], 0.0)
    for _ in range(5):
        trip = one.begin(Call("POST", b"/"), 0.0, 0.5)
        trip.next(0.0, 0.5)
        trip.heard(Outcome("answer", 500), 0.0, 0.5)
        trip.close(0.0)
    one.learn_instances(Place("tax"), [replace(before, passing=False)], 1.0)
    assert one.begin(get(), 1.0, 0.5).next(1.0, 0.5).to == "backup"
    others = [Instance(endpoint(number), created=number) for number in (1, 2)]
    one.learn_instances(Place("tax"), [replace(before, created=8), *others], 2.0)
    assert [found.state for found in one.look(2.0).instances] == ["closed"] * 4
    seat = next(seat for seat in one._seats.values() if seat.endpoint == before.endpoint)
    assert (seat.warmth(2.0), seat.warmth(32.0)) == (FIRST_SHARE, 1.0)


def test_a_call_that_could_not_connect_fails_over_at_once() -> None:
    """The instances this call has tried are not healthy for it."""
    trip = failover().begin(get(), 0.0, 0.5)
    assert trip.next(0.0, 0.5).to == "tax"
    assert trip.heard(DEAD, 0.0, 0.5) == 0.0
    assert trip.next(0.0, 0.5).to == "backup"


def test_a_failed_connection_goes_to_others_then_ends() -> None:
    """Three instances at most by default, each once; with none left the failure is final."""
    for count, tries in ((1, 1), (2, 2), (3, 3), (9, 3)):
        trip, seen = course(count).begin(Call("POST", b"/"), 0.0, 0.5), []
        while True:
            seen.append(trip.next(0.0, 0.3).endpoint)
            if trip.heard(DEAD, 0.0, 0.5) is None:
                break
        assert len(seen) == len(set(seen)) == tries


def test_a_router_says_how_often_and_the_same_instance_may_do() -> None:
    """One instance, 503 each time: NumRetries 2 makes three attempts there."""
    router = entry("router", Routes=[{"Destination": {"NumRetries": 2, "RetryOn": ["5xx"]}}])
    trip = chained([router], *instances(1)).begin(get(), 0.0, 0.5)
    for number in (1, 2):
        assert trip.next(0.0, 0.5).number == number
        assert trip.heard(BAD, 0.0, 0.5) is not None
    assert trip.next(0.0, 0.5).number == 3 and trip.heard(BAD, 0.0, 0.5) is None


def test_a_half_broken_instance_loses_no_repeatable_call() -> None:
    """One of three answers 503 half of the time: 2,000 calls with retries, none is lost."""
    one, rolls, lost = course(3, Manners(retries=AGAIN)), iter(dice(11, 50_000)), 0
    for number in range(2000):
        now = number / 100
        trip = one.begin(get(), now, next(rolls))
        while True:
            ill = trip.next(now, next(rolls)).endpoint == endpoint(0) and next(rolls) < 0.5
            final = trip.heard(BAD if ill else OK, now, next(rolls)) is None
            if final:
                lost += ill
                trip.close(now)
                break
    assert lost == 0


def test_a_total_outage_costs_no_more_than_the_budget() -> None:
    """1,000 calls in ten seconds to three dead instances: at most a fifth more, and ten."""
    one, sent, rolls = course(3, Manners(retries=AGAIN)), 0, iter(dice(12, 50_000))
    for number in range(1000):
        now = 100 + number / 100
        trip = one.begin(get(), now, 0.5)
        while True:
            trip.next(now, next(rolls))
            sent += 1
            if trip.heard(BAD, now, next(rolls)) is None:
                break
        trip.close(now)
    assert 1100 <= sent <= 1000 * 1.2 + 10


def test_a_denial_is_never_repeated_and_trips_nothing() -> None:
    """403 by intention, a hundred times: no retry, no failure counted."""
    one = course(2, Manners(retries=Retries(3, frozenset(), frozenset({403}))))
    for die in dice(13, 100):
        trip = one.begin(get(), 0.0, die)
        trip.next(0.0, die)
        assert trip.heard(Outcome("answer", 403, denied=True), 0.0, die) is None
        trip.close(0.0)
    assert {found.failures for found in one.look(0.0).instances} == {0}


def test_states_can_be_read() -> None:
    """Closed, open, half-open: of each instance, and of the upstream when nobody is in use."""
    one = course(1, Manners(breaking=Breaking(max_failures=1, max_percent=100)))
    assert one.look(0.0).state == "closed"
    trip = one.begin(get(), 0.0, 0.5)
    trip.next(0.0, 0.5)
    assert one.look(0.0).outstanding == 1
    trip.heard(Outcome("reset"), 0.0, 0.5)
    state = one.look(1.0)
    assert (state.state, state.instances[0].state, state.instances[0].ejected_for) == (
        "open", "open", 29.0,
    )  # fmt: skip
    with pytest.raises(BreakerOpenError, match="ejected"):
        one.begin(get(), 1.0, 0.5).next(1.0, 0.5)
    assert one.look(30.0).state == "half-open"
    trial = one.begin(get(), 30.0, 0.5)
    trial.next(30.0, 0.5)
    trial.heard(Outcome("given_up"), 31.0, 0.5)
    again = one.begin(get(), 32.0, 0.5)
    again.next(32.0, 0.5)
    again.heard(OK, 32.0, 0.5)
    assert one.look(32.0).state == "closed" and one.look(32.0).outstanding == 1
    again.close(32.0)
    again.close(32.0)
    assert one.look(32.0).outstanding == 0


def test_who_stood_in_once_does_not_count() -> None:
    """A chain that leads elsewhere no more leaves nobody there in the upstream's state."""
    one = failover()
    assert len(one.look(0.0).instances) == 2
    one.learn_chain(None, 0.0)
    assert [seat.endpoint for seat in one.look(0.0).instances] == [endpoint(0)]
    one.learn_manners(Manners(breaking=Breaking(max_failures=1, max_percent=100)), 0.0)
    trip = one.begin(get(), 0.0, 0.5)
    trip.next(0.0, 0.5)
    trip.heard(Outcome("reset"), 0.0, 0.5)
    assert one.look(1.0).state == "open"


def test_an_ejected_instance_stays_ejected_when_the_agent_says_something_new() -> None:
    """Another weight, another instance more, another chain: its failures are not forgotten."""
    one = course(2)
    for _ in range(30):
        trip = one.begin(get(), 0.0, 0.1)
        bad = trip.next(0.0, 0.1).endpoint == endpoint(0)
        trip.heard(Outcome("answer", 500) if bad else OK, 0.0, 0.1)
        trip.close(0.0)
    before = {found.state for found in one.look(1.0).instances}
    assert before == {"open", "closed"}
    heavier = (Instance(endpoint(0, weight=5)), *instances(3)[1:])
    one.learn_instances(Place("tax"), heavier, 1.0)
    one.learn_chain(build_chain("tax", []), 1.0)
    assert [found.state for found in one.look(1.0).instances].count("open") == 1


def test_the_ejected_are_called_when_the_others_are_gone() -> None:
    """What may fail is better than what must; unless all may be ejected (100 percent)."""
    for percent, called in ((10, True), (100, False)):
        one = course(2, Manners(breaking=Breaking(max_failures=1, max_percent=percent)))
        trip = one.begin(get(), 0.0, 0.1)
        ejected = trip.next(0.0, 0.1).endpoint
        trip.heard(Outcome("answer", 500), 0.0, 0.1)
        trip.close(0.0)
        left = [told for told in instances(2) if told.endpoint == ejected]
        one.learn_instances(Place("tax"), left, 0.0)
        if called:
            assert one.begin(get(), 1.0, 0.5).next(1.0, 0.5).endpoint == ejected
        else:
            with pytest.raises(BreakerOpenError):
                one.begin(get(), 1.0, 0.5).next(1.0, 0.5)


def test_who_cannot_be_reached_costs_nothing_of_the_budget() -> None:
    """Two of five instances refuse connections, nobody may be ejected: no call is lost."""
    one, rolls = course(5, Manners(breaking=Breaking(enforcing=0))), iter(dice(21, 20_000))
    dead = {endpoint(0), endpoint(1)}
    for number in range(1000):
        trip = one.begin(Call("POST", b"/"), number / 1000, next(rolls))
        while trip.next(1.0, next(rolls)).endpoint in dead:
            assert trip.heard(DEAD, 1.0, 0.5) == 0.0
        assert trip.heard(OK, 1.0, 0.5) is None
        trip.close(1.0)


def test_limits_refuse_what_is_too_much_and_let_go() -> None:
    """MaxConcurrentRequests 2: the third call is refused before it is sent; one ends, one may."""
    one = course(3, Manners(limits=Limits(concurrent=2)))
    trips = [one.begin(get(), 0.0, die) for die in (0.1, 0.5)]
    for trip in trips:
        trip.next(0.0, 0.5)
    with pytest.raises(BreakerOpenError, match="its limit of 2 calls"):
        one.begin(get(), 0.0, 0.5).next(0.0, 0.5)
    # The agent tells something new meanwhile: the calls under way still count, and still end.
    one.learn_instances(Place("tax"), instances(4), 0.0)
    with pytest.raises(BreakerOpenError):
        one.begin(get(), 0.0, 0.5).next(0.0, 0.5)
    trips[0].heard(OK, 0.0, 0.5)
    trips[0].close(0.0)
    one.begin(get(), 0.0, 0.5).next(0.0, 0.5)


def test_a_deadline_is_told_and_refused_when_it_is_over() -> None:
    """The route's timeout, or the caller's if that is sooner; no retry that could not be read."""
    router = entry("router", Routes=[{
        "Destination": {"RequestTimeout": "2s", "NumRetries": 9, "RetryOnStatusCodes": [503]},
    }])  # fmt: skip
    one = chained([router], *instances(2))
    trip = one.begin(get(), 10.0, 0.5)
    assert trip.next(10.5, 0.5).timeout == 1.5
    assert trip.heard(Outcome("answer", 503, retry_after=3.0), 11.0, 0.5) is None
    trip = one.begin(Call("GET", b"/", deadline=11.0), 10.0, 0.5)
    assert trip.next(10.0, 0.5).timeout == 1.0
    assert trip.heard(BAD, 10.9, 0.5) is not None
    with pytest.raises(DeadlineError):
        trip.next(11.0, 0.5)


def test_a_resolvers_timeout_counts_where_the_chain_starts_there() -> None:
    """As in Consul: with a router before it, the router's routes decide."""
    resolver = entry("resolver", RequestTimeout="4s", ConnectTimeout="2s")
    attempt = chained([resolver], *instances(1)).begin(get(), 0.0, 0.5).next(0.0, 0.5)
    assert (attempt.timeout, attempt.connect_timeout) == (4.0, 2.0)
    one = chained([resolver, entry("router")], *instances(1))
    assert one.begin(get(), 0.0, 0.5).next(0.0, 0.5).timeout is None


@pytest.mark.parametrize(
    ("policy", "same", "other"),
    [
        ({"Field": "header", "FieldValue": "X-User"}, get(x_user="a"), get(x_user="b")),
        ({"Field": "query_parameter", "FieldValue": "u"}, get("/?u=a&x=1"), get("/?u=b")),
        ({"Field": "cookie", "FieldValue": "s"}, get(cookie="t=1; s=a"), get(cookie="s=b")),
        ({"SourceIP": True}, Call("GET", b"/", source="10.1.1.1"), Call("GET", b"/", source="::1")),
    ],
    ids=["header", "query", "cookie", "source"],
)
@pytest.mark.parametrize("balancer", ["ring_hash", "maglev"])
def test_hash_policies_keep_a_key_where_it_is(
    balancer: str, policy: dict[str, Any], same: Call, other: Call
) -> None:
    """The same key always goes to the same instance, and there is more than one for the others."""
    lb = {"Policy": balancer, "HashPolicies": [policy]}
    one = chained([entry("resolver", LoadBalancer=lb)], *instances(50))

    def where(call: Call) -> set[str]:
        found = set()
        for die in dice(14, 20):
            trip = one.begin(call, 0.0, die)
            found.add(trip.next(0.0, die).endpoint.address)
            trip.close(0.0)
        return found

    assert len(where(same)) == len(where(other)) == 1
    assert where(same) != where(other)
    assert len(where(get())) > 5, "without a key, by weight"


def test_a_terminal_hash_policy_ends_the_search() -> None:
    """A header, terminal, before a query parameter: the parameter counts only without it."""
    policies = [
        {"Field": "header", "FieldValue": "x", "Terminal": True},
        {"Field": "query_parameter", "FieldValue": "q"},
    ]
    lb = {"Policy": "ring_hash", "HashPolicies": policies}
    one = chained([entry("resolver", LoadBalancer=lb)], *instances(50))

    def where(call: Call) -> str:
        return one.begin(call, 0.0, 0.5).next(0.0, 0.5).endpoint.address

    assert where(get("/?q=1", x="a")) == where(get("/?q=2", x="a"))
    assert where(get("/?q=1")) != where(get("/?q=2"))


def test_a_free_connection_elsewhere_may_be_taken() -> None:
    """The counts move along; never where a key decides, nor to an ejected instance."""
    one = course(2)
    trip = one.begin(get(), 0.0, 0.1)
    first = trip.next(0.0, 0.1).endpoint
    (other,) = [found for found in one.endpoints if found != first]
    assert trip.moved(first) and trip.moved(other)
    busy = {found.endpoint: found.outstanding for found in one.look(0.0).instances}
    assert busy == {first: 0, other: 1}
    assert not trip.moved(endpoint(77))
    lb = {"Policy": "maglev", "HashPolicies": [{"Field": "header", "FieldValue": "x"}]}
    keyed = chained([entry("resolver", LoadBalancer=lb)], *instances(2)).begin(get(x="1"), 0.0, 0.5)
    keyed.next(0.0, 0.5)
    assert [keyed.moved(endpoint(0)), keyed.moved(endpoint(1))].count(False) == 1


def test_a_request_that_no_route_takes_is_refused() -> None:
    """Only a router whose every route has a flaw leaves one over."""
    one = course(1)
    router = entry("router", Routes=[])
    assert build_chain("tax", [router]).routers
    one.learn_chain(build_chain("tax", [router]), 0.0)
    assert one.begin(get(), 0.0, 0.5).next(0.0, 0.5).endpoint == endpoint(0)


def test_what_is_missing_is_told() -> None:
    """Places to be watched, before and after a chain names more."""
    one = Course("tax")
    assert one.missing() == {Place("tax")}
    one.learn_chain(build_chain("tax", [entry("resolver", Redirect={"Service": "new"})]), 0.0)
    assert one.missing() == {Place("new")}
    one.learn_instances(Place("new"), (), 0.0, "nobody is registered")
    assert not one.missing()
    with pytest.raises(ResolveError, match="nobody is registered"):
        one.begin(get(), 0.0, 0.5).next(0.0, 0.5)


def test_counts_hold_under_threads() -> None:
    """Eight threads, 500 calls each, while instances come and go: nothing is left under way."""
    one, stop = course(3), threading.Event()

    def call() -> None:
        for die in dice(threading.get_ident() & 0xFF, 500):
            trip = one.begin(get(), 0.0, die)
            trip.next(0.0, die)
            trip.heard(OK if die < 0.9 else Outcome("reset"), 0.0, die)
            trip.close(0.0)

    def teach() -> None:
        while not stop.is_set():
            for count in (3, 4, 2):
                one.learn_instances(Place("tax"), instances(count), 0.0)

    threads = [threading.Thread(target=call) for _ in range(8)]
    teacher = threading.Thread(target=teach)
    for thread in (*threads, teacher):
        thread.start()
    for thread in threads:
        thread.join(30)
    stop.set()
    teacher.join(30)
    assert one.look(0.0).outstanding == 0
    assert {goal.load.calls for goal in one._plan.goals.values()} == {0}
