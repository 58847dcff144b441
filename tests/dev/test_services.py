"""TTLs, the reaper and registration, by a clock that is an argument."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from mesh_middleware.dev import DevAgent, Refusal
from mesh_middleware.dev.services import Services, statuses

from .clock import Clock


@pytest.fixture
def clock() -> Clock:
    """A clock that stands."""
    return Clock()


@pytest.fixture
def services(clock: Clock) -> Services:
    """Nothing registered."""
    return Services(clock())


def register(services: Services, clock: Clock, index: int = 1, **check: Any) -> None:
    """Register web with one check."""
    wanted = {"Name": "web", "Port": 1, "Connect": {"Native": True}, "Check": check}
    services.register(wanted, clock(), index)


def status(services: Services) -> tuple[str, str]:
    """Status and output of web's check."""
    check = services.checks["service:web"]
    return check.status, check.output


def test_ttl_expires_exactly_when_due(services: Services, clock: Clock) -> None:
    """Up to the last moment it holds; then it is critical and says so."""
    register(services, clock, TTL="10s", Status="passing")
    clock.forward(seconds=9.999)
    assert not services.expire(clock(), 2).topics
    clock.forward(seconds=0.001)
    assert "connect/web" in services.expire(clock(), 3).topics
    assert status(services) == ("critical", "TTL expired")
    assert services.checks["service:web"].modified == 3


def test_expiry_keeps_the_last_output(services: Services, clock: Clock) -> None:
    """What the check said last stands in the text."""
    register(services, clock, TTL="10s")
    services.update("service:web", "passing", "all well", clock(), 2)
    clock.forward(seconds=11)
    services.expire(clock(), 3)
    said = "TTL expired (last output before timeout follows): all well"
    assert status(services) == ("critical", said)


def test_heartbeat_puts_expiry_off(services: Services, clock: Clock) -> None:
    """Each update starts the TTL anew; an unchanged status touches no topic."""
    register(services, clock, TTL="10s", Status="passing")
    for _ in range(5):
        clock.forward(seconds=6)
        assert not services.update("service:web", "passing", "", clock(), 2).topics
        assert not services.expire(clock(), 2).topics
    assert services.next_due() == clock() + timedelta(seconds=10)


def test_recovery_after_expiry(services: Services, clock: Clock) -> None:
    """A late heartbeat brings the check back."""
    register(services, clock, TTL="10s", Status="passing")
    clock.forward(seconds=60)
    services.expire(clock(), 2)
    assert services.update("service:web", "passing", "back", clock(), 3).topics
    assert status(services) == ("passing", "back")
    assert services.checks["service:web"].critical_since is None


@pytest.mark.parametrize(
    ("after", "gone_at"),
    [("1m", 60), ("90s", 90), ("1s", 60), ("61s", 90)],
    ids=["a-minute", "ninety", "raised-to-a-minute", "next-round"],
)
def test_reaper_deregisters_what_stays_critical(
    services: Services, clock: Clock, after: str, gone_at: int
) -> None:
    """At its first round, every 30 s, after the time is up; at least a minute."""
    register(services, clock, TTL="600s", DeregisterCriticalServiceAfter=after)
    clock.forward(seconds=gone_at - 1)
    services.expire(clock(), 2)
    assert "web" in services.services
    clock.forward(seconds=1)
    assert "connect/web" in services.expire(clock(), 3).topics
    assert not services.services and not services.checks


def test_reaper_spares_the_recovered(services: Services, clock: Clock) -> None:
    """Time as critical does not add up over recoveries."""
    register(services, clock, TTL="600s", DeregisterCriticalServiceAfter="1m")
    clock.forward(seconds=59)
    services.update("service:web", "warning", "", clock(), 2)
    services.update("service:web", "critical", "", clock(), 3)
    clock.forward(seconds=59)
    services.expire(clock(), 4)
    assert "web" in services.services


def test_same_registration_touches_nothing(services: Services, clock: Clock) -> None:
    """Registering again as it was wakes nobody, and keeps the indexes."""
    wanted = {"Name": "web", "Port": 1, "Check": {"TTL": "10s"}}
    assert services.register(wanted, clock(), 1).topics
    assert not services.register(wanted, clock(), 2).topics
    assert services.services["web"].modified == 1
    assert services.checks["service:web"].modified == 1


def test_change_keeps_the_create_index(services: Services, clock: Clock) -> None:
    """A changed definition is modified, not created."""
    services.register({"Name": "web", "Port": 1}, clock(), 1)
    services.register({"Name": "web", "Port": 2}, clock(), 5)
    assert (services.services["web"].created, services.services["web"].modified) == (1, 5)


def test_renamed_instance_touches_both_names(services: Services, clock: Clock) -> None:
    """An ID that moves to another service wakes the watchers of both."""
    services.register({"Name": "old", "ID": "x", "Port": 1}, clock(), 1)
    change = services.register({"Name": "new", "ID": "x", "Port": 1}, clock(), 2)
    assert {"service/old", "service/new"} <= change.topics


def test_sidecars_get_different_ports_until_none_is_left(services: Services, clock: Clock) -> None:
    """From 21000 on; 256 of them."""
    for number in range(256):
        wanted = {"Name": f"s{number}", "Port": 1, "Connect": {"SidecarService": {}}}
        services.register(wanted, clock(), 1)
    ports = {one.port for one in services.services.values() if one.kind}
    assert ports == set(range(21000, 21256))
    again = {"Name": "s3", "Port": 2, "Connect": {"SidecarService": {}}}
    services.register(again, clock(), 2)
    assert services.services["s3-sidecar-proxy"].port == 21003
    with pytest.raises(Refusal, match="no free port"):
        wanted = {"Name": "more", "Port": 1, "Connect": {"SidecarService": {}}}
        services.register(wanted, clock(), 1)


def test_sidecar_definition_wins_over_defaults(services: Services, clock: Clock) -> None:
    """Port, checks and proxy settings can be given."""
    sidecar = {"Port": 7, "Check": {"TTL": "9s"}, "Proxy": {"LocalServicePort": 8}}
    services.register({"Name": "web", "Connect": {"SidecarService": sidecar}}, clock(), 1)
    made = services.services["web-sidecar-proxy"]
    assert (made.port, made.proxy and made.proxy["LocalServicePort"]) == (7, 8)
    assert [check.kind for check in services.checks_of(made.id)] == ["ttl"]


def test_worst_status_counts(services: Services, clock: Clock) -> None:
    """Critical before warning before passing; nothing is passing."""
    definitions = [{"TTL": "9s", "Status": one} for one in ("passing", "warning")]
    services.register({"Name": "web", "Checks": definitions}, clock(), 1)
    assert statuses(services.checks_of("web")) == "warning"
    assert statuses([]) == "passing"


def test_dump_and_load_start_the_ttl_anew(services: Services, clock: Clock) -> None:
    """Definitions and statuses survive; the time to the next heartbeat begins again."""
    register(services, clock, TTL="10s", Status="passing")
    clock.forward(hours=1)
    again = Services(clock())
    again.load(services.dump(), clock(), 99)
    assert status(again) == ("passing", "")
    assert again.next_due() == clock() + timedelta(seconds=10)
    assert again.services["web"].connects == "web" and again.services["web"].modified == 99


def test_agent_acts_on_time_when_somebody_looks(clock: Clock) -> None:
    """Without a thread of its own the agent does what is overdue at the next look."""
    agent = DevAgent(now=clock)
    agent.register({"Name": "web", "Port": 1, "Check": {"TTL": "10s", "Status": "passing"}})
    clock.forward(seconds=11)
    agent.tick()
    assert agent.state.services.checks["service:web"].status == "critical"
