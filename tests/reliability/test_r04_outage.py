"""R4: the agent is away for the whole remaining life of a leaf. Time travels; nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from mesh_middleware import Mesh, Reason
from mesh_middleware.certificates import Peer
from mesh_middleware.dev import DevAgent
from mesh_middleware.identity import parse_spiffe_id
from mesh_middleware.intentions import HttpFacts

from ..support.servers import PATIENCE, until
from .clock import Clock

GET = HttpFacts(b"GET", b"/")
Join = Callable[..., Mesh]


def peer(agent: DevAgent, clock: Clock) -> Peer:
    """A caller whose own certificate outlives everything."""
    uri = f"spiffe://{agent.trust_domain}/ns/default/dc/dc1/svc/web"
    return Peer(parse_spiffe_id(uri), "1", clock.now() + timedelta(days=365))


@pytest.mark.parametrize("away", ["closed", "stalled", "refusing"])
def test_r04_calls_go_on_until_the_leaf_expires(agent: DevAgent, join: Join, away: str) -> None:
    """
    A minute, an hour, up to a minute before the end: allowed. A minute after it: nothing is.

    The default Consul leaf lives 72 h; the budget left is a number all the while.
    """
    clock = Clock()
    mesh = join(clock=clock, port=4711, service_id="tax-4711")
    assert mesh.ready(PATIENCE)
    caller = peer(agent, clock)
    leaf = mesh.snapshot.leaf
    assert leaf is not None
    if away == "closed":
        agent.close()
    else:
        agent.faults.begin("stall" if away == "stalled" else "forbid")
    whole = (leaf.not_after - clock.now()).total_seconds()
    assert whole == pytest.approx(72 * 3600, abs=120)
    for passed in (0.0, 60.0, 3600.0, whole - 3600.0, whole - 60.0):
        clock.set(passed)
        assert mesh.decide(caller, GET).allowed, passed
        assert mesh.outage_budget() == pytest.approx(whole - passed, abs=1.0)
    clock.set(whole + 60.0)
    verdict = mesh.decide(caller, GET)
    assert (verdict.allowed, verdict.reason, verdict.status) == (False, Reason.LEAF_EXPIRED, 503)
    assert mesh.outage_budget() == 0.0


def test_r04_check_turns_critical_when_the_leaf_has_expired(agent: DevAgent, join: Join) -> None:
    """The agent takes heartbeats but issues no leaf: those who look for instances learn of it."""
    clock = Clock()
    mesh = join(clock=clock, port=4711, service_id="tax-4711", check_ttl="0.3s")
    check = agent.state.services.checks
    until(
        lambda: "mesh:tax-4711" in check and check["mesh:tax-4711"].status == "passing", "passing"
    )
    agent.faults.begin("stall", "leaf")
    clock.set(73 * 3600.0)
    until(lambda: "expired" in check["mesh:tax-4711"].output, "the word of it")
    assert check["mesh:tax-4711"].status == "critical"
    assert mesh.decide(peer(agent, clock), GET).reason is Reason.LEAF_EXPIRED


def test_r04_the_end_is_told(agent: DevAgent, join: Join, caplog: pytest.LogCaptureFixture) -> None:
    """Once in the log, as a note, and in what is alarmed by: `ready` and its gauge."""
    clock = Clock()
    mesh = join(clock=clock)
    assert mesh.ready(PATIENCE) and "mesh_ready" in mesh.metrics()
    agent.close()
    clock.set(73 * 3600.0)
    assert not mesh.ready() and not mesh.status()["ready"]
    gauge = next(line for line in mesh.metrics().splitlines() if line.startswith("mesh_ready"))
    assert gauge.endswith(" 0")
    until(lambda: "leaf_expired" in mesh.status()["events"], "the note")
    mesh._belief.reconsider()
    assert caplog.text.count("leaf_expired: our leaf expired ") == 1


def test_r04_return_of_the_agent_ends_it(agent: DevAgent, join: Join) -> None:
    """A new leaf, and requests are judged as before, without a restart."""
    clock = Clock()
    mesh = join(clock=clock)
    assert mesh.ready(PATIENCE)
    clock.set(73 * 3600.0)
    assert mesh.decide(peer(agent, clock), GET).reason is Reason.LEAF_EXPIRED
    clock.set(0.0)
    old = mesh.snapshot.leaf
    assert old is not None
    agent.renew("tax")
    assert mesh.wait_for(
        lambda s: s.leaf is not None and s.leaf.serial_number != old.serial_number, PATIENCE
    )
    assert mesh.decide(peer(agent, clock), GET).allowed
