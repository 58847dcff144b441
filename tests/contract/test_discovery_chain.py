"""Discovery chains: compiled alike by both agents, and read alike by the client's own reading."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesh_middleware.routing import Place, parse_chain
from mesh_middleware.routing.entries import build_chain

from .target import Target

KINDS = ("service-router", "service-splitter", "service-resolver")


def write(agent: Target, *entries: dict[str, Any]) -> None:
    """Write entries; each has to be taken."""
    for entry in entries:
        answer = agent.put("/v1/config", entry)
        assert answer.status_code == 200, answer.text


def entry(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"Kind": f"service-{kind}", "Name": name, **fields}


def chain_of(agent: Target, name: str) -> dict[str, Any]:
    found: dict[str, Any] = agent.get(f"/v1/discovery-chain/{name}").json()["Chain"]
    return found


def canary(agent: Target) -> tuple[str, str, list[dict[str, Any]]]:
    """A service with two versions, another it leads to, and the entries that say so."""
    name, other = agent.name("tax"), agent.name("ops")
    return name, other, [
        entry("defaults", name, Protocol="http"),
        entry("defaults", other, Protocol="http"),
        entry("resolver", name, DefaultSubset="v1", ConnectTimeout="1m30s", Subsets={
            "v1": {"Filter": "Service.Meta.version == v1"},
            "v2": {"Filter": "Service.Meta.version == v2", "OnlyPassing": True},
        }, Failover={"v2": {"Datacenters": ["dc2"]}, "*": {"Service": other}}),
        entry("splitter", name, Splits=[
            {"Weight": 90, "ServiceSubset": "v1"}, {"Weight": 10, "ServiceSubset": "v2"},
        ]),
        entry("router", name, Routes=[{
            "Match": {"HTTP": {"PathPrefix": "/admin/", "Methods": ["GET"], "Header": [
                {"Name": "x-a", "Exact": "1", "Invert": True}]}},
            "Destination": {"Service": other, "PrefixRewrite": "/", "RequestTimeout": "10s",
                            "NumRetries": 3, "RetryOnStatusCodes": [503]},
        }]),
    ]  # fmt: skip


def test_both_agents_compile_the_same_chain(dev: Target, real: Target) -> None:
    """Node by node, but for names of services and the trust domain."""
    found = []
    for agent in (dev, real):
        name, other, entries = canary(agent)
        write(agent, *entries)
        domain = agent.get("/v1/connect/ca/roots").json()["TrustDomain"]
        text = agent.get(f"/v1/discovery-chain/{name}").text
        for old, new in ((name, "tax"), (other, "ops"), (domain, "domain")):
            text = text.replace(old, new)
        found.append(json.loads(text)["Chain"])
    ours, theirs = found
    assert ours["Nodes"] == theirs["Nodes"]
    assert ours["Targets"] == theirs["Targets"]
    assert ours == theirs


def test_an_unknown_service_has_the_default_chain(agent: Target) -> None:
    """Never 404: one resolver that says it is the default."""
    name = agent.name()
    chain = chain_of(agent, name)
    (node,) = chain["Nodes"].values()
    assert node["Resolver"] == {
        "ConnectTimeout": "5s", "Default": True, "Target": f"{name}.default.dc1",
    }  # fmt: skip


def test_the_chain_read_is_the_chain_built(agent: Target) -> None:
    """What the agent compiles and what is built here from its entries sends calls alike."""
    name, other, entries = canary(agent)
    write(agent, *entries)
    body = agent.get(f"/v1/discovery-chain/{name}").json()
    read = parse_chain(body, own_datacenter="dc1")
    stored = [agent.get(f"/v1/config/{kind}/{name}").json() for kind in KINDS]
    built = build_chain(name, stored)
    assert read.unhonoured == built.unhonoured == ()
    assert read.places() == built.places() == {Place(name), Place(name, "dc2"), Place(other)}
    (reads,), (builds,) = read.routers.values(), built.routers.values()
    for one, two in zip(reads, builds, strict=True):
        assert (one.rewrite, one.timeout, one.retries) == (two.rewrite, two.timeout, two.retries)
    assert reads[0].match == builds[0].match
    (shares,), (built_shares,) = read.splitters.values(), built.splitters.values()
    assert [one.weight for one in shares] == [one.weight for one in built_shares]
    filters = {(one.place, one.filter, one.only_passing) for one in read.targets.values()}
    assert filters == {
        (one.place, one.filter, one.only_passing) for one in built.targets.values()
    }  # fmt: skip
    assert {one.connect_timeout for one in read.resolvers.values()} == {90.0, 5.0}


def test_a_splitter_that_leads_to_a_splitter_is_flattened(agent: Target) -> None:
    """50 % of 90 and 10: 45 and 5."""
    name, _, entries = canary(agent)
    first = agent.name("first")
    write(
        agent, *entries[:4], entry("defaults", first, Protocol="http"),
        entry("splitter", first, Splits=[{"Weight": 50}, {"Weight": 50, "Service": name}]),
    )  # fmt: skip
    chain = chain_of(agent, first)
    (splitter,) = [node for node in chain["Nodes"].values() if node["Type"] == "splitter"]
    assert [split["Weight"] for split in splitter["Splits"]] == [50, 45, 5]
    parse_chain({"Chain": chain})


def test_a_redirect_leads_to_the_other_services_target(agent: Target) -> None:
    """And to its default subset."""
    name, _, entries = canary(agent)
    old = agent.name("old")
    write(agent, *entries[:3], entry("defaults", old, Protocol="http"))
    write(agent, entry("resolver", old, Redirect={"Service": name}))
    chain = chain_of(agent, old)
    assert chain["StartNode"] == f"resolver:v1.{name}.default.dc1"


def test_a_chain_wakes_when_an_entry_is_written(agent: Target) -> None:
    """A blocking query on the chain of a service ends with its first resolver."""
    name = agent.name()
    with agent.blocked(f"/v1/discovery-chain/{name}") as waiting:
        write(agent, entry("resolver", name, ConnectTimeout="3s"))
    (node,) = waiting.result(20).json()["Chain"]["Nodes"].values()
    assert node["Resolver"]["ConnectTimeout"] == "3s"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"Splits": [{"Weight": 90}]}, "the sum of all split weights must be 100, not 90.000000"),
        (
            {"Splits": [{"Weight": 100, "ServiceSubset": "v9"}]},
            'service "{name}" does not have a subset named "v9"',
        ),
        (
            {"Splits": [{"Weight": 50}, {"Weight": 50, "Service": "tcp-one"}]},
            'discovery chain "{name}" uses inconsistent protocols; service "tcp-one" has "tcp"'
            ' which is not "http"',
        ),
    ],
    ids=["sum", "subset", "protocol"],
)
def test_entries_that_make_no_chain_are_not_stored(
    agent: Target, fields: dict[str, Any], text: str
) -> None:
    """500 with the reason, and the chain is what it was."""
    name = agent.name()
    write(agent, entry("defaults", name, Protocol="http"))
    answer = agent.put("/v1/config", entry("splitter", name, **fields))
    assert (answer.status_code, answer.text) == (500, text.format(name=name))
    assert len(chain_of(agent, name)["Nodes"]) == 1
