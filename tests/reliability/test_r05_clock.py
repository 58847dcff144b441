"""R5: clocks that differ, step, go backwards, or stood still while the machine slept."""

from __future__ import annotations

from collections.abc import Callable
from threading import Semaphore

import pytest

from mesh_middleware import Mesh, Reason
from mesh_middleware.consul import watch
from mesh_middleware.dev import Answer, DevAgent, Request
from mesh_middleware.rhythm import Rhythm

from ..support.servers import HELD, PATIENCE, until
from .clock import Clock
from .test_r04_outage import GET, peer

Join = Callable[..., Mesh]


@pytest.mark.parametrize("skew", [-300.0, 300.0, 86400.0], ids=["behind", "ahead", "a day"])
def test_r05_skew_is_told_once(agent: DevAgent, join: Join, skew: float) -> None:
    """Our clock against the agent's ``Date``: a code, once, and the seconds in the status."""
    clock = Clock()
    clock.set(skew)
    mesh = join(clock=clock)
    until(lambda: "clock_skew" in mesh.status()["events"], "the note")
    agent.allow("web", "tax")
    assert mesh.wait_for(lambda s: bool(s.intentions), PATIENCE)
    assert mesh.status()["events"]["clock_skew"] == 1
    assert mesh.status()["clock_skew_seconds"] == pytest.approx(skew, abs=5)


def test_r05_clock_behind_waits_for_the_first_moment_of_the_leaf(
    agent: DevAgent, join: Join
) -> None:
    """A leaf that is not valid yet is not served, and is taken as soon as the clock is right."""
    clock = Clock()
    clock.set(-300.0)
    mesh = join(clock=clock, rhythm=Rhythm(sweep_every=0.05))
    until(lambda: "leaf_waiting" in mesh.status()["events"], "the note")
    assert not mesh.ready()
    clock.set(0.0)
    assert mesh.ready(PATIENCE), "no new answer of the agent is needed"


def test_r05_steps_change_no_answer_and_start_no_loop(agent: DevAgent, join: Join) -> None:
    """Five minutes forward, back, an hour back: nothing is renewed, asked or dropped for it."""
    clock, sweeps = Clock(), Semaphore(0)
    mesh = join(clock=clock, rhythm=Rhythm(sweep_every=0.02))
    assert mesh.ready(PATIENCE)
    until(lambda: agent.watching == HELD, "all questions held")
    caller, before = peer(agent, clock), mesh.snapshot
    mesh.after_change(sweeps.release)
    asked: list[str] = []

    async def note(request: Request) -> Answer | None:
        asked.append(request.path)
        return None

    agent.interpose = note
    for step in (300.0, 0.0, -300.0, -3600.0, 300.0):
        clock.set(step)
        assert mesh.decide(caller, GET).allowed
        for _ in range(3):
            assert sweeps.acquire(timeout=PATIENCE), "what goes by the clock has looked at it"
    assert mesh.snapshot is before
    assert len(asked) <= 2, "a heartbeat or probe that was due"


def test_r05_resume_after_a_long_sleep(agent: DevAgent, join: Join) -> None:
    """The wall clock jumps by days, timers saw nothing: expired, at the first request."""
    clock = Clock()
    mesh = join(clock=clock)
    assert mesh.ready(PATIENCE)
    caller = peer(agent, clock)
    clock.set(4 * 86400.0)
    assert mesh.decide(caller, GET).reason is Reason.LEAF_EXPIRED
    assert mesh.outage_budget() == 0.0


@pytest.mark.parametrize(
    "date", ["", "nonsense", "Mon, 01 Jan 2024 00:00:00 -0000", "Mon, 99 Jan 20240 00:00:00 GMT"]
)
def test_r05_date_that_is_none_ends_no_watch(agent: DevAgent, join: Join, date: str) -> None:
    """Without a time zone, unreadable, or out of any calendar: the watch goes on."""
    from mesh_middleware.consul.client import Answer as Told
    from mesh_middleware.following import Follower

    mesh = join()
    assert mesh.ready(PATIENCE)
    assert mesh._watcher is not None
    follower: Follower = mesh._watcher.follower
    follower._compare_clocks(Told(200, 1, {}, {"date": date}))
    agent.deny("web", "tax")
    assert mesh.wait_for(lambda s: bool(s.intentions), PATIENCE)


def test_r05_waits_are_never_negative() -> None:
    """They depend on no clock at all."""
    assert all(watch.backoff(n, d / 10) > 0 for n in range(1, 50) for d in range(10))
