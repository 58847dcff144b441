"""R3: the agent goes down, half open and up, again and again."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable

import pytest

from mesh_middleware import Mesh
from mesh_middleware.consul.lookout import SUSPECT_AFTER
from mesh_middleware.consul.watch import BROKEN
from mesh_middleware.dev import DevAgent
from mesh_middleware.rhythm import Rhythm

from ..support.servers import HELD, PATIENCE, until
from ..support.wire import Mode, Wire
from .conftest import LONG

FLAPS = 50 if LONG else 4
UPSTREAMS = ("order", "invoice", "stock", "ledger")
RESOURCES = 12
"""As many are asked for by one mesh, at most: each tells its trouble once."""
CHAINED = 3
"""Questions more than `HELD` once there are upstreams: routers, splitters and resolvers."""
SETTLED = 0.3
SPACING = 0.1
RECOVERY = 5.0
TOLERANCE = 0.005
"""Seconds by which the relay's own clock may see two questions closer than they were sent."""

Join = Callable[..., Mesh]


def act(agent: DevAgent, mesh: Mesh, denied: bool) -> float:
    """Change the policy, and return the seconds until the mesh knows."""
    began = time.monotonic()
    agent.deny("web", "tax") if denied else agent.delete("web", "tax")
    assert mesh.wait_for(lambda s: bool(s.intentions) is denied, PATIENCE)
    return time.monotonic() - began


def all_held(agent: DevAgent, mesh: Mesh) -> bool:
    """
    Whether the agent holds all that the mesh asks, the upstreams among them.

    All, not only as many as it was asked: those that begin to wait together are asked one by one.
    """
    assert mesh._watcher is not None
    asking = mesh._watcher.follower.lookout.asking
    check = agent.state.services.checks.get("mesh:tax-4711")
    passing = check is not None and check.status == "passing"
    return passing and asking == agent.watching == HELD + CHAINED + len(UPSTREAMS)


def hold_all(agent: DevAgent, mesh: Mesh) -> None:
    """
    Wait until the agent holds all, and does so for a while.

    When all is asked anew the agent still has what was given up: as many, for a moment.
    """
    began = time.monotonic()

    def settled() -> bool:
        nonlocal began
        if not all_held(agent, mesh):
            began = time.monotonic()
        return time.monotonic() - began > SETTLED

    until(settled, "all questions held")


@pytest.mark.timeout(60 + 10 * FLAPS)
def test_r03_agent_down_half_open_and_up(
    agent: DevAgent, join: Join, record_property: Callable[[str, object], None]
) -> None:
    """
    While it is away: one request per 100 ms at most, over all that is watched; back: within 5 s.

    Half open is what a host that died looks like: connections are taken and nobody answers, and
    those that were open stay so for ever.
    """
    dice = random.Random(3)
    slowest = 0.0
    with Wire(agent.url) as wire:
        mesh = join(wire.url, port=4711, service_id="tax-4711")
        for name in UPSTREAMS:
            # Without instances it would be watched for a minute, as nobody calls it.
            agent.register({"Name": name, "Port": 1, "Connect": {"Native": True}})
            mesh.watch_upstream(name)
        assert mesh.ready(PATIENCE)
        for flap in range(FLAPS):
            # Whoever just connects when it breaks could not know.
            hold_all(agent, mesh)
            mode: Mode = dice.choice(["reset", "swallow"])
            wire.attempts.clear()
            wire.set(mode)
            wanted = dice.randrange(2, 7) if mode == "reset" else 2
            until(lambda w=wanted: len(wire.attempts) >= w, f"{wanted} attempts in {mode}")
            tried = list(wire.attempts)
            wire.set("pass")
            slowest = max(slowest, act(agent, mesh, flap % 2 == 0))
            gaps = [later - before for before, later in itertools.pairwise(tried)]
            assert min(gaps, default=1.0) >= SPACING - TOLERANCE, (mode, gaps)
            assert "agent_polled" not in mesh.status()["events"], "nothing cuts what is held"
    record_property("slowest_recovery_s", round(slowest, 2))
    print(f"slowest recovery of {FLAPS}: {slowest:.2f} s")
    assert slowest < RECOVERY


def test_r03_connections_that_die_unseen_are_found_out(agent: DevAgent, join: Join) -> None:
    """
    For an instant the wire swallows all, when nothing is asked: every held question is lost.

    The agent was never away for anybody who asked. Nothing was due but the canary's answer.
    """
    with Wire(agent.url) as wire:
        mesh = join(wire.url, rhythm=Rhythm(canary=1.0))
        assert mesh.ready(PATIENCE)
        until(lambda: agent.watching == HELD, "all questions held")
        wire.set("swallow")
        wire.set("pass")
        assert act(agent, mesh, True) < 1.3 + SUSPECT_AFTER + RECOVERY
        mesh.close()


def test_r03_agent_that_restarts_again_and_again_is_not_polled(agent: DevAgent, join: Join) -> None:
    """Questions break each time, soon after they were asked; but nobody cuts what is held."""
    with Wire(agent.url) as wire:
        mesh = join(wire.url)
        assert mesh.ready(PATIENCE)
        for _ in range(BROKEN + 1):
            until(lambda: agent.watching == HELD, "all questions held")
            wire.attempts.clear()
            wire.set("reset")
            until(lambda: wire.attempts, "an attempt in vain")
            wire.set("pass")
        assert act(agent, mesh, True) < RECOVERY
        assert "agent_polled" not in mesh.status()["events"]
        mesh.close()


@pytest.mark.parametrize("kind", ["fail", "busy", "forbid", "stall", "wrong", "truncated"])
def test_r03_agent_that_answers_nonsense_is_not_hammered(
    agent: DevAgent, join: Join, kind: str
) -> None:
    """500, 429, 403, silence and broken answers: what was believed holds, and it is told once."""
    mesh = join(port=4711)
    assert mesh.ready(PATIENCE)
    # Who asks while it lies is held as ever; who is held when it begins is lied to.
    until(lambda: agent.watching == HELD, "all questions held")
    before = mesh.snapshot
    fault = agent.faults.begin(kind)
    if kind != "stall":
        until(lambda: mesh.status()["troubles"].keys() >= {"roots", "leaf"}, "trouble")
    assert mesh.ready() and mesh.snapshot is before
    fault.end()
    assert act(agent, mesh, True) < RECOVERY
    until(lambda: not mesh.status()["troubles"], "the end of trouble", 20.0)
    assert max(mesh.status()["events"].values(), default=0) <= RESOURCES


def test_r03_restarted_agent_is_noticed_at_once(agent: DevAgent, join: Join) -> None:
    """A clean restart: the connections end, and everything is asked anew."""
    mesh = join()
    assert mesh.ready(PATIENCE)
    agent.close()
    until(lambda: mesh.status()["troubles"], "trouble")
    assert mesh.ready(), "and calls go on"
    agent.start()
    assert act(agent, mesh, True) < RECOVERY
