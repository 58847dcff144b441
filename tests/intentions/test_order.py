"""Which intention decides: precedence, wildcards, namespaces, partitions, peers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh_middleware.consul.intentions import parse_entry, parse_intention, parse_intentions
from mesh_middleware.intentions import Reason, precedence_of

from .support import Json, ask, intention, permission, policy, source

PRECEDENCE = [
    (9, "default", "api", "default", "web"),
    (8, "default", "*", "default", "web"),
    (7, "*", "*", "default", "web"),
    (6, "default", "api", "default", "*"),
    (5, "default", "*", "default", "*"),
    (4, "*", "*", "default", "*"),
    (3, "default", "api", "*", "*"),
    (2, "default", "*", "*", "*"),
    (1, "*", "*", "*", "*"),
]


@pytest.mark.parametrize(("rank", "ns", "name", "to_ns", "to"), PRECEDENCE)
def test_precedence_is_consuls_table(rank: int, ns: str, name: str, to_ns: str, to: str) -> None:
    """Destination before source, name before namespace: nine ranks. Source: reference 4.2."""
    item = parse_intention(intention(name, to, SourceNS=ns, DestinationNS=to_ns))
    assert precedence_of(item) == item.precedence == rank


NAMES = st.sampled_from(["api", "web", "*"])
ITEMS = st.builds(
    lambda name, to, ns, action: intention(
        name, to, SourceNS=ns if name == "*" or ns != "*" else "default", Action=action
    ),
    NAMES,
    st.sampled_from(["web", "*"]),
    st.sampled_from(["default", "team", "*"]),
    st.sampled_from(["allow", "deny"]),
)


def unique(items: list[Json]) -> list[Json]:
    """One intention for each pair of sides, as Consul stores them."""
    return list({(i["SourceNS"], i["SourceName"], i["DestinationName"]): i for i in items}.values())


def first_match(items: list[Json], name: str, namespace: str, default: bool) -> bool:
    """Consul's own walk: highest precedence first, the first that matches decides."""
    for item in sorted(items, key=lambda i: -precedence_of(parse_intention(i))):
        if item["SourceNS"] in ("*", namespace) and item["SourceName"] in ("*", name):
            return bool(item["Action"] == "allow")
    return default


@given(st.lists(ITEMS, max_size=6).map(unique), st.booleans(), st.data())
def test_strict_never_contradicts_a_deny_by_precedence(
    items: list[Json], default: bool, data: st.DataObject
) -> None:
    """
    What the first match denies, `strict` denies; what it denies beyond that names a reading.

    Source: reference 5.1, 5.2.
    """
    name = data.draw(st.sampled_from(["api", "web", "other"]))
    namespace = data.draw(st.sampled_from(["default", "team", "else"]))
    verdict = ask(policy(*items, default_allow=default), caller=source(name, namespace))
    if verdict.allowed:
        assert first_match(items, name, namespace, default)
    elif first_match(items, name, namespace, default):
        assert verdict.readings == ("envoy_rules",)


@given(st.lists(ITEMS, max_size=6).map(unique), st.booleans(), st.randoms())
def test_the_order_of_the_list_does_not_matter(
    items: list[Json], default: bool, random: Any
) -> None:
    """Intentions sort themselves: any order of the answer gives the same verdicts."""
    shuffled = list(items)
    random.shuffle(shuffled)
    for reading, name in itertools.product(("strict", "envoy"), ("api", "web", "other")):
        one = policy(*items, default_allow=default, reading=reading)
        two = policy(*shuffled, default_allow=default, reading=reading)
        assert ask(one, caller=source(name)) == ask(two, caller=source(name))


def test_a_permission_that_misses_takes_the_default_not_the_next_intention() -> None:
    """A miss under an exact intention never falls through to the wildcard below it."""
    rules = [intention(Permissions=[permission(PathExact="/v1")]), intention("*")]
    assert ask(policy(*rules), "/other").reason is Reason.DEFAULT_DENY
    assert ask(policy(*rules), "/other", caller=source("else")).allowed
    rules[1]["Action"] = "deny"
    assert ask(policy(*rules, default_allow=True), "/other").reason is Reason.DEFAULT_ALLOW


def test_the_first_permission_that_matches_decides() -> None:
    """Order is as it stands: an earlier, wider allow beats a later deny, and the reverse."""
    admin = permission("deny", PathExact="/admin")
    assert ask(policy(intention(Permissions=[permission(), admin])), "/admin").permission == 0
    verdict = ask(policy(intention(Permissions=[admin, permission()])), "/admin")
    assert (verdict.reason, verdict.permission) == (Reason.PERMISSION_DENY, 0)


def test_where_precedence_and_envoys_rules_differ_both_have_to_allow() -> None:
    """``* -> web`` (8) and ``api -> *`` (6) both have a say; either deny is enough."""
    for wide, narrow, default in itertools.product(("allow", "deny"), ("allow", "deny"), (0, 1)):
        rules = [intention("*", Action=wide), intention("api", "*", Action=narrow)]
        verdict = ask(policy(*rules, default_allow=bool(default)))
        expected = wide == "allow" and (narrow == "allow" or not default)
        assert verdict.allowed is expected, (wide, narrow, default)
        if wide == "allow" and not verdict.allowed:
            assert verdict.readings == ("envoy_rules",)


def test_namespaces_and_partitions_are_part_of_the_source() -> None:
    """``*`` covers its namespace only, a wildcard namespace its partition only."""
    judged = policy(intention("*"), default_allow=False)
    assert ask(judged, caller=source("x")).allowed
    assert not ask(judged, caller=source("x", "team")).allowed
    assert not ask(judged, caller=source("x", partition="part")).allowed
    judged = policy(intention("*", SourceNS="*", SourcePartition="part"), default_allow=False)
    assert ask(judged, caller=source("x", "any", partition="part")).allowed
    assert not ask(judged, caller=source("x", "any")).allowed


def test_the_datacenter_of_a_caller_does_not_matter() -> None:
    """Intentions speak of services wherever they run. Source: reference 5.2."""
    assert ask(policy(intention()), caller=source(datacenter="dc9")).allowed


def test_a_peers_intention_is_never_matched_by_name() -> None:
    """``SourcePeer`` is about another trust domain: its allow opens nothing, its deny nothing."""
    judged = policy(intention(SourcePeer="cluster-02"))
    assert ask(judged).reason is Reason.DEFAULT_DENY
    judged = policy(intention(SourcePeer="c", Action="deny"), default_allow=True)
    assert ask(judged).reason is Reason.DEFAULT_ALLOW


def test_names_mean_to_envoy_what_patterns_do() -> None:
    """Envoy takes ``api.v1`` for a pattern: ``api-v1`` is let in by it, but not by us."""
    rules = [intention("api.v1")]
    assert ask(policy(*rules, reading="envoy"), caller=source("api-v1")).allowed
    verdict = ask(policy(*rules), caller=source("api-v1"))
    assert (verdict.allowed, verdict.readings) == (False, ("precedence",))
    denied = policy(intention("api.v1", Action="deny"), default_allow=True)
    assert not ask(denied, caller=source("api-v1")).allowed


@given(st.lists(ITEMS, max_size=4).map(unique))
def test_an_entry_reads_as_its_flattened_form(items: list[Json]) -> None:
    """Config entries and the match endpoint's list give equal intentions."""
    for destination in ("web", "*"):
        mine = [item for item in items if item["DestinationName"] == destination]
        sources = [
            {"Name": i["SourceName"], "Namespace": i["SourceNS"], "Action": i["Action"]}
            for i in mine
        ]
        entry = {"Kind": "service-intentions", "Name": destination, "Sources": sources}
        assert parse_entry(entry) == parse_intentions(mine)
