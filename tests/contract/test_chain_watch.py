"""Chains and places followed from an agent, ours and a real one, as a mesh does it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware import Mesh
from mesh_middleware.exceptions import ResolveError
from mesh_middleware.routing import Call, Place, UpstreamState
from mesh_middleware.upstreams import UpstreamWatch

from .target import PATIENCE, Target


@pytest.fixture
def mesh(agent: Target) -> Iterator[Mesh]:
    """A service of the mesh that only calls others."""
    with Mesh("order", agent=agent.url, register=False, plugins=()) as mesh:
        assert mesh.wait_for(lambda snapshot: snapshot.joined, PATIENCE)
        yield mesh


def write(agent: Target, kind: str, name: str, **fields: Any) -> None:
    answer = agent.put("/v1/config", {"Kind": f"service-{kind}", "Name": name, **fields})
    assert answer.status_code == 200, answer.text


def forget(agent: Target, kind: str, name: str) -> None:
    assert agent.delete(f"/v1/config/service-{kind}/{name}").status_code == 200


def register(agent: Target, name: str, port: int, **meta: str) -> None:
    agent.register(
        Name=name, ID=f"{name}-{port}", Address="127.0.0.1", Port=port, Meta=meta,
        Connect={"Native": True},
        Check={"TTL": "10m", "Status": "passing", "CheckID": f"{name}-{port}"},
    )  # fmt: skip


def went(upstream: UpstreamWatch, target: bytes = b"/") -> set[int]:
    """Ports that 50 calls go to."""
    found = set()
    for number in range(50):
        trip = upstream.course.begin(Call("GET", target), 0.0, number / 50)
        try:
            found.add(trip.next(0.0, number * 7 % 50 / 50).endpoint.port)
        except ResolveError:
            found.add(0)
        trip.close(0.0)
    return found


def test_a_canary_comes_and_goes_with_its_entries(agent: Target, mesh: Mesh) -> None:
    """All instances; 100 % of version 1 by a splitter; then version 2; then all again."""
    name = agent.name("tax")
    register(agent, name, 1001, version="1")
    register(agent, name, 1002, version="2")
    upstream = mesh.upstream(name)
    assert len(upstream.wait(PATIENCE)) == 2
    assert went(upstream) == {1001, 1002} and not upstream.state.chained
    write(agent, "defaults", name, Protocol="http")
    subsets = {v: {"Filter": f'Service.Meta.version == "{v[1]}"'} for v in ("v1", "v2")}
    write(agent, "resolver", name, Subsets=subsets)
    write(agent, "splitter", name, Splits=[{"Weight": 100, "ServiceSubset": "v1"}])
    assert upstream.wait_for(lambda state: went(upstream) == {1001}, PATIENCE)
    write(agent, "splitter", name, Splits=[{"Weight": 100, "ServiceSubset": "v2"}])
    assert upstream.wait_for(lambda state: went(upstream) == {1002}, PATIENCE)
    forget(agent, "splitter", name)
    forget(agent, "resolver", name)
    assert upstream.wait_for(lambda state: not state.chained, PATIENCE)
    assert went(upstream) == {1001, 1002}


def test_the_first_call_knows_the_chain(agent: Target, mesh: Mesh) -> None:
    """A redirect written before anybody called is followed by the very first call."""
    old, new = agent.name("old"), agent.name("new")
    register(agent, old, 2001)
    register(agent, new, 2002)
    write(agent, "resolver", old, Redirect={"Service": new})
    upstream = mesh.upstream(old)
    (endpoint,) = upstream.wait(PATIENCE)
    assert (endpoint.port, endpoint.expected.name) == (2002, new)
    assert went(upstream) == {2002}


def test_failover_follows_the_health_of_both_places(agent: Target, mesh: Mesh) -> None:
    """Its last instance turns critical: calls go to the other service, and back when it is well."""
    name, backup = agent.name("tax"), agent.name("backup")
    register(agent, name, 3001)
    register(agent, backup, 3002)
    write(agent, "resolver", name, Failover={"*": {"Service": backup}})
    upstream = mesh.upstream(name)
    upstream.wait(PATIENCE)
    assert went(upstream) == {3001}
    agent.put(f"/v1/agent/check/fail/{name}-3001")
    assert upstream.wait_for(lambda state: went(upstream) == {3002}, PATIENCE)
    agent.put(f"/v1/agent/check/pass/{name}-3001")
    assert upstream.wait_for(lambda state: went(upstream) == {3001}, PATIENCE)


def test_a_datacenter_that_cannot_be_reached_keeps_nobody_waiting(
    agent: Target, mesh: Mesh
) -> None:
    """Failover to dc9, of which the agent knows no path: the chain holds with an empty dc9."""
    name = agent.name("tax")
    register(agent, name, 4001)
    write(agent, "resolver", name, Failover={"*": {"Datacenters": ["dc9"]}})
    upstream = mesh.upstream(name)
    upstream.wait(PATIENCE)
    assert upstream.course.places() == {Place(name), Place(name, "dc9")}
    assert went(upstream) == {4001}


def test_what_has_no_effect_is_told_once(
    agent: Target, mesh: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    """A filter that cannot be read and a mesh gateway: each one line, however often it is told."""
    name = agent.name("tax")
    register(agent, name, 5001)
    caplog.set_level(logging.WARNING, "mesh_middleware.watch")
    subsets = {"v1": {"Filter": "Service.Colour == red"}}
    write(agent, "resolver", name, Subsets=subsets, DefaultSubset="v1")
    upstream = mesh.upstream(name)
    with pytest.raises(ResolveError):
        upstream.wait(PATIENCE)
        upstream.course.begin(Call("GET", b"/"), 0.0, 0.0).next(0.0, 0.0)
    for seconds in (3, 4):
        timeout = f"{seconds}s"
        write(agent, "resolver", name, Subsets=subsets, DefaultSubset="v1", ConnectTimeout=timeout)

        def told(state: UpstreamState, seconds: float = seconds) -> bool:
            resolvers = upstream.course.chain.resolvers.values()
            return [one.connect_timeout for one in resolvers] == [seconds]

        assert upstream.wait_for(told, PATIENCE)
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert len([line for line in said if "counts as empty" in line]) == 1


def test_limits_of_our_own_entry_are_followed(dev: Target) -> None:
    """UpstreamConfig of the calling service: an override by name, as soon as it is written."""
    with Mesh("order", agent=dev.url, register=False, plugins=()) as mesh:
        name = dev.name("tax")
        register(dev, name, 6001)
        upstream = mesh.upstream(name)
        upstream.wait(PATIENCE)
        config = {"Overrides": [{"Name": name, "Limits": {"MaxConcurrentRequests": 7}}]}
        write(dev, "defaults", "order", UpstreamConfig=config)
        told = upstream.wait_for(
            lambda state: upstream.course.manners.limits.concurrent == 7, PATIENCE
        )
        assert told
        forget(dev, "defaults", "order")
