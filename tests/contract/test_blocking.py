"""Blocking queries: who wakes, when, and with what."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from .target import PATIENCE, Target, done_within, index_of

LIST = "/v1/connect/intentions"


def entry(name: str, protocol: str) -> dict[str, str]:
    """A service-defaults entry."""
    return {"Kind": "service-defaults", "Name": name, "Protocol": protocol}


def test_intention_write_wakes_the_list(agent: Target) -> None:
    """The blocked list answers with the new intention and a higher index."""
    source, target = agent.name(), agent.name()
    before = agent.index(LIST)
    with agent.blocked(LIST) as woken:
        identity = agent.deny(source, target)
        answer = woken.result(PATIENCE)
    agent.forget(identity)
    assert index_of(answer) > before
    assert identity in [item.get("ID") for item in answer.json()]


def test_intention_write_wakes_the_match(agent: Target) -> None:
    """match blocks on the index of the list (1.8 has no other), and wakes with the rule."""
    target = agent.name()
    path = f"{LIST}/match?by=destination&name={target}"
    with agent.blocked(path, agent.index(LIST)) as woken:
        identity = agent.deny("*", target)
        answer = woken.result(PATIENCE)
    agent.forget(identity)
    assert [item["Action"] for item in answer.json()[target]] == ["deny"]


def test_wake_up_follows_the_write_at_once(agent: Target) -> None:
    """The watcher has its answer within a tenth of a second of the writer's (usual: 1 ms)."""
    worst = 0.0
    for _ in range(5):
        with agent.blocked(LIST) as woken:
            identity = agent.deny(agent.name(), agent.name())
            wrote = time.perf_counter()
            woken.result(PATIENCE)
            worst = max(worst, time.perf_counter() - wrote)
        agent.forget(identity)
    assert worst < 0.1


def test_registration_wakes_the_health_query(agent: Target) -> None:
    """A watcher of a service that is not there wakes when it appears."""
    name = agent.name()
    with agent.blocked(f"/v1/health/connect/{name}") as woken:
        agent.register(Name=name, Port=1, Connect={"Native": True})
        answer = woken.result(PATIENCE)
    assert [item["Service"]["Service"] for item in answer.json()] == [name]


def test_change_of_status_wakes_the_health_query(agent: Target) -> None:
    """A check that turns passing wakes; the ``passing`` filter then lets the instance through."""
    name = agent.name()
    agent.register(Name=name, Port=1, Connect={"Native": True}, Check={"TTL": "60s"})
    path = f"/v1/health/connect/{name}?passing"
    assert agent.get(path).json() == []
    with agent.blocked(path) as woken:
        agent.put(f"/v1/agent/check/pass/service:{name}")
        answer = woken.result(PATIENCE)
    assert len(answer.json()) == 1


def test_deregistration_wakes_the_health_query(agent: Target) -> None:
    """A watcher learns that the last instance has gone."""
    name = agent.name()
    agent.register(Name=name, Port=1, Connect={"Native": True})
    with agent.blocked(f"/v1/health/connect/{name}") as woken:
        agent.put(f"/v1/agent/service/deregister/{name}")
        answer = woken.result(PATIENCE)
    assert answer.json() == []


def test_who_registers_anew_has_another_create_index(agent: Target) -> None:
    """It stays when a service is registered again, and changes when it had left in between."""
    name = agent.name()
    path, service = f"/v1/health/connect/{name}", {"Name": name, "Connect": {"Native": True}}

    def told(change: Callable[[], object]) -> list[int]:
        with agent.blocked(path) as woken:
            change()
            return [one["Service"]["CreateIndex"] for one in woken.result(PATIENCE).json()]

    first = told(lambda: agent.register(**service, Port=1))
    again = told(lambda: agent.register(**service, Port=2))
    gone = told(lambda: agent.put(f"/v1/agent/service/deregister/{name}"))
    anew = told(lambda: agent.register(**service, Port=2))
    assert first == again and gone == []
    assert anew[0] > first[0] > 0


def test_ttl_that_runs_out_wakes_the_health_query(agent: Target) -> None:
    """Nobody writes: time itself turns the check critical, with the last output in its text."""
    name = agent.name()
    agent.register(Name=name, Port=1, Connect={"Native": True}, Check={"TTL": "1s"})
    agent.put(f"/v1/agent/check/pass/service:{name}?note=fine")
    with agent.blocked(f"/v1/health/connect/{name}") as woken:
        answer = woken.result(PATIENCE)
    (instance,) = answer.json()
    (check,) = [check for check in instance["Checks"] if check["ServiceName"] == name]
    assert check["Status"] == "critical"
    assert check["Output"] == "TTL expired (last output before timeout follows): fine"


def test_missing_config_entry_wakes_when_it_appears(agent: Target) -> None:
    """A 404 has an index too, and blocking on it works."""
    name = agent.name()
    path = f"/v1/config/service-defaults/{name}"
    assert agent.get(path).status_code == 404
    with agent.blocked(path) as woken:
        agent.put("/v1/config", entry(name, "http"))
        answer = woken.result(PATIENCE)
    assert answer.json()["Protocol"] == "http"


def test_config_entry_wakes_when_it_changes_and_goes(agent: Target) -> None:
    """Each write wakes; the deletion answers 404."""
    name = agent.name()
    path = f"/v1/config/service-defaults/{name}"
    agent.put("/v1/config", entry(name, "http"))
    with agent.blocked(path) as woken:
        agent.put("/v1/config", entry(name, "grpc"))
        assert woken.result(PATIENCE).json()["Protocol"] == "grpc"
    at = agent.index(path)
    agent.delete(path)
    # 1.8 may answer once more with the entry: an answer is no proof of a change.
    answers = (agent.get(f"{path}?index={at}&wait=1s") for _ in range(10))
    assert any(answer.status_code == 404 for answer in answers)


def test_hash_query_wakes_when_the_definition_changes(agent: Target) -> None:
    """agent/service blocks on a hash: same hash waits, another one answers at once."""
    name = agent.name()
    agent.register(Name=name, Port=1)
    first = agent.get(f"/v1/agent/service/{name}")
    digest = first.json()["ContentHash"]
    assert first.headers["X-Consul-ContentHash"] == digest
    waiting = agent.later(f"/v1/agent/service/{name}?hash={digest}&wait=15s")
    assert not done_within(waiting, 0.05)
    agent.register(Name=name, Port=2)
    assert waiting.result(PATIENCE).json()["Port"] == 2
    other = agent.get(f"/v1/agent/service/{name}?hash=other&wait=15s")
    assert other.elapsed.total_seconds() < 5


def test_hash_query_ends_with_404_when_the_service_goes(agent: Target) -> None:
    """The instance that was watched is deregistered."""
    name = agent.name()
    agent.register(Name=name, Port=1)
    digest = agent.get(f"/v1/agent/service/{name}").json()["ContentHash"]
    waiting = agent.later(f"/v1/agent/service/{name}?hash={digest}&wait=15s")
    assert not done_within(waiting, 0.05)
    agent.put(f"/v1/agent/service/deregister/{name}")
    answer = waiting.result(PATIENCE)
    assert (answer.status_code, answer.text) == (404, f"unknown service ID: {name}")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/connect/intentions",
        "/v1/connect/ca/roots",
        "/v1/agent/connect/ca/roots",
        "/v1/catalog/services",
        "/v1/catalog/nodes",
        "/v1/health/connect/none",
        "/v1/health/service/consul",
        "/v1/config/service-defaults",
    ],
)
def test_wait_ends_with_the_same_index(agent: Target, path: str) -> None:
    """Without a change the query ends after its wait and at most a sixteenth more, unchanged."""
    first = agent.get(path)
    again = agent.get(f"{path}?index={index_of(first)}&wait=160ms")
    assert 0.16 <= again.elapsed.total_seconds() < 1
    assert index_of(again) == index_of(first)
    assert settled(again.json()) == settled(first.json())


def settled(body: object) -> object:
    """An answer whose tags, which a real agent tells in any order, are in one."""
    if not isinstance(body, dict):
        return body
    return {key: sorted(told) if isinstance(told, list) else told for key, told in body.items()}


def test_index_from_the_future_waits_and_answers_the_present_one(agent: Target) -> None:
    """An index that is too high blocks until the wait ends, then the lower one is told."""
    now = agent.index(LIST)
    answer = agent.get(f"{LIST}?index={now + 100_000}&wait=160ms")
    assert answer.elapsed.total_seconds() >= 0.16
    assert index_of(answer) == now


def test_index_of_the_past_answers_at_once(agent: Target) -> None:
    """A caller that has missed something does not wait for more."""
    identity = agent.deny(agent.name(), agent.name())
    answer = agent.get(f"{LIST}?index={agent.index(LIST) - 1}&wait=15s")
    agent.forget(identity)
    assert answer.elapsed.total_seconds() < 5


def test_wait_without_index_does_not_wait(agent: Target) -> None:
    """Only an index blocks."""
    assert agent.get(f"{LIST}?wait=15s").elapsed.total_seconds() < 5


def test_many_watchers_wake_together(agent: Target) -> None:
    """One write, ten watchers, ten answers."""
    at = agent.index(LIST)
    waiting = [agent.later(f"{LIST}?index={at}&wait=15s") for _ in range(10)]
    assert not done_within(waiting[-1], 0.05)
    identity = agent.deny(agent.name(), agent.name())
    indexes = {index_of(future.result(PATIENCE)) for future in waiting}
    agent.forget(identity)
    assert len(indexes) == 1


def test_dev_agent_does_not_wake_for_others(dev: Target) -> None:
    """Every resource has its own index: unrelated writes leave a watcher asleep."""
    target = dev.name()
    path = f"{LIST}/match?by=destination&name={target}"
    with dev.blocked(path) as woken:
        identity = dev.deny("a", dev.name())
        dev.register(Name=dev.name(), Port=1)
        assert not done_within(woken, 0.1)
        dev.forget(identity)
        wildcard = dev.deny("a", "*")
        assert woken.result(PATIENCE).json()[target][0]["DestinationName"] == "*"
        dev.forget(wildcard)


def test_dev_agent_write_that_changes_nothing_wakes_nobody(dev: Target) -> None:
    """The same config entry again keeps its ModifyIndex, as in 1.21."""
    name = dev.name()
    path = f"/v1/config/service-defaults/{name}"
    dev.put("/v1/config", entry(name, "http"))
    before = dev.get(path)
    dev.put("/v1/config", entry(name, "http"))
    after = dev.get(path)
    assert (after.json(), index_of(after)) == (before.json(), index_of(before))
