"""The chain built from config entries."""

from __future__ import annotations

from typing import Any

import pytest

from mesh_middleware.exceptions import AgentAnswerError
from mesh_middleware.routing import Breaking, Chain, Limits, Manners, Place
from mesh_middleware.routing.entries import build_chain, read_manners


def resolver(name: str, **fields: Any) -> dict[str, Any]:
    return {"Kind": "service-resolver", "Name": name, **fields}


def splitter(name: str, *splits: dict[str, Any]) -> dict[str, Any]:
    return {"Kind": "service-splitter", "Name": name, "Splits": list(splits)}


SUBSETS = {"v1": {"Filter": "Service.Meta.v == 1"}, "v2": {"Filter": "Service.Meta.v == 2"}}


def reached(chain: Chain, node: str | None = None) -> set[str]:
    """Targets that a call can come to without failover."""
    node = node or chain.start
    if node in chain.resolvers:
        return {chain.resolvers[node].target}
    steps = [*chain.routers.get(node, ()), *chain.splitters.get(node, ())]
    return {target for step in steps for target in reached(chain, step.next)}


def test_without_entries_the_chain_is_all_instances() -> None:
    """One resolver, one target, no filter."""
    chain = build_chain("tax", [])
    assert chain.places() == {Place("tax")} and reached(chain) == {"tax"}


def test_a_canary_has_its_shares() -> None:
    """A splitter over two subsets leads to two targets with their filters."""
    chain = build_chain("tax", [
        resolver("tax", Subsets=SUBSETS),
        splitter("tax", {"Weight": 90, "ServiceSubset": "v1"},
                 {"Weight": 10, "ServiceSubset": "v2"}),
    ])  # fmt: skip
    assert [split.weight for split in chain.splitters[chain.start]] == [90, 10]
    assert {target.filter for target in chain.targets.values()} == {
        "Service.Meta.v == 1", "Service.Meta.v == 2",
    }  # fmt: skip


def test_redirects_are_followed_then_the_default_subset() -> None:
    """old -> tax -> tax's default subset."""
    chain = build_chain("old", [
        resolver("old", Redirect={"Service": "tax"}),
        resolver("tax", DefaultSubset="v2", Subsets=SUBSETS),
    ])  # fmt: skip
    (target,) = chain.targets.values()
    assert (target.place, target.subset) == (Place("tax"), "v2")


def test_a_splitter_leads_into_the_splitter_of_another_service() -> None:
    """But not into its own again: there the resolver is meant."""
    chain = build_chain("a", [
        splitter("a", {"Weight": 50, "Service": "a"}, {"Weight": 50, "Service": "b"}),
        splitter("b", {"Weight": 50, "Service": "b"}, {"Weight": 50, "Service": "c"}),
    ])  # fmt: skip
    assert reached(chain) == {"a", "b", "c"}


def test_a_router_ends_with_a_route_for_all_the_rest() -> None:
    """Requests that no route takes go where they would go without a router."""
    router = {
        "Kind": "service-router", "Name": "tax",
        "Routes": [{"Match": {"HTTP": {"PathPrefix": "/admin"}},
                    "Destination": {"Service": "ops"}}],
    }  # fmt: skip
    chain = build_chain("tax", [router])
    admin, rest = chain.routers[chain.start]
    assert reached(chain, admin.next) == {"ops"} and reached(chain, rest.next) == {"tax"}
    assert rest.match.path_test == "any"


@pytest.mark.parametrize(
    ("failover", "expected"),
    [
        ({"*": {"Datacenters": ["dc2", "dc3"]}}, ("tax.dc2", "tax.dc3")),
        ({"*": {"Service": "backup"}}, ("backup",)),
        ({"*": {"Targets": [{"Service": "backup"}, {"Datacenter": "dc2"}]}}, ("backup", "tax.dc2")),
        ({"other": {"Service": "backup"}}, ()),
    ],
    ids=["datacenters", "service", "targets", "another-subset"],
)
def test_failover_is_in_the_order_given(
    failover: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """Datacenters, another service, or a list of targets."""
    chain = build_chain("tax", [resolver("tax", Failover=failover)])
    assert chain.resolvers[chain.start].failover == expected


def test_two_services_may_stand_in_for_each_other() -> None:
    """Failover of failover is not followed, so there is no circle."""
    chain = build_chain("a", [
        resolver("a", Failover={"*": {"Service": "b"}}),
        resolver("b", Failover={"*": {"Service": "a"}}),
    ])  # fmt: skip
    assert chain.resolvers[chain.start].failover == ("b",)


@pytest.mark.parametrize(
    "entries",
    [
        [resolver("tax", Redirect={"Service": "b"}), resolver("b", Redirect={"Service": "tax"})],
        [resolver("tax", DefaultSubset="v9")],
        [splitter("tax", {"Weight": 90})],
        [{"Kind": "service-router", "Name": "tax", "Routes": [3]}],
    ],
    ids=["circle", "no-subset", "sum", "shape"],
)
def test_entries_that_make_no_chain_are_refused(entries: list[dict[str, Any]]) -> None:
    """As Consul refuses to store them."""
    with pytest.raises(AgentAnswerError):
        build_chain("tax", entries)


def test_a_redirect_to_a_peer_is_a_target_with_a_flaw() -> None:
    """And not our own service of that name."""
    chain = build_chain("tax", [resolver("tax", Redirect={"Peer": "east"})])
    (target,) = chain.targets.values()
    assert target.flaw and not chain.places()


def test_the_callers_own_entry_sets_limits_and_breaking() -> None:
    """Overrides of the upstream's name win over defaults, and defaults over ours."""
    entry = {
        "Kind": "service-defaults", "Name": "order",
        "UpstreamConfig": {
            "Defaults": {
                "ConnectTimeoutMs": 250,
                "Limits": {"MaxConnections": 3, "MaxPendingRequests": 4},
            },
            "Overrides": [
                {
                    "Name": "tax",
                    "PassiveHealthCheck": {
                        "Interval": "2s", "MaxFailures": 3, "EnforcingConsecutive5xx": 50,
                        "MaxEjectionPercent": 40, "BaseEjectionTime": "7s",
                    },
                }
            ],
        },
    }  # fmt: skip
    manners = read_manners(entry, "tax", Manners())
    assert manners.connect_timeout == 0.25
    assert manners.limits == Limits(3, 4)
    assert manners.breaking == Breaking(3, 50, 40, 7.0, 2.0)
    assert read_manners(entry, "rates", Manners()).breaking == Breaking()
    assert read_manners(None, "tax", Manners()) == Manners()
