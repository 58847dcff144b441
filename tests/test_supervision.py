"""A watch that ends is started again and seen; one that stands still makes the mesh not ready."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware import Mesh, hookimpl
from mesh_middleware.dev import DevAgent
from mesh_middleware.doors import Door
from mesh_middleware.intentions import AsgiFacts, Reason
from mesh_middleware.supervision import (
    ENDED,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    SLACK,
    STALLED,
    TaskHealth,
    supervise,
)

from .support.doors import Exchange, Inside
from .support.servers import PATIENCE, until


class Panic(BaseException):
    """As what a Rust extension raises when it panics."""


RAISED = [Panic, asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit, ValueError]


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


# -- the moments -----------------------------------------------------------------------------------


def test_a_task_that_does_not_get_on_is_stalled_until_it_does() -> None:
    """From its own term and some slack on; whoever asks."""
    clock = Clock()
    health = TaskHealth(clock)
    health.expect("roots", 100.0)
    clock.seconds = 100.0 + SLACK
    assert health.troubles() == {}
    clock.seconds += 1
    assert health.troubles() == {"roots": f"{STALLED}: not getting on for 31 s"}
    health.expect("roots", 100.0)
    assert health.troubles() == {}
    health.rest("roots")
    clock.seconds += 1e9
    assert health.troubles() == {}


def test_a_task_that_ended_is_told_until_it_has_done_its_work() -> None:
    """And begins again after a pause that grows, to a bound."""
    counted: list[str] = []
    health = TaskHealth(Clock(), counted.append)
    pauses = [health.end("leaf", Panic()) for _ in range(12)]
    assert pauses[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE and counted == [ENDED] * 12
    assert health.troubles()["leaf"].startswith(f"{ENDED}: it ended by Panic")
    health.progress("leaf")
    assert health.troubles() == {} and health.end("leaf", None) == FIRST_PAUSE
    health.forget("leaf")
    assert health.troubles() == {}


@pytest.mark.parametrize("raised", [*RAISED, None])
def test_whatever_ends_a_task_it_begins_again(raised: type[BaseException] | None) -> None:
    """A return is an end, too; only a cancellation of the task itself ends it."""
    begun: list[int] = []

    async def scenario() -> None:
        again = asyncio.Event()

        async def work() -> None:
            begun.append(1)
            if len(begun) == 3:
                again.set()
                await asyncio.Event().wait()
            if raised is not None:
                raise raised

        health = TaskHealth(first_pause=0.0)
        task = asyncio.create_task(supervise("work", work, health))
        await asyncio.wait_for(again.wait(), PATIENCE)
        assert health.troubles()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert health.troubles() == {}

    asyncio.run(scenario())
    assert len(begun) == 3


# -- the mesh --------------------------------------------------------------------------------------


class Failing:
    """A plugin whose hooks raise once they are told to."""

    def __init__(self) -> None:
        self.raises: type[BaseException] | None = None
        self.raised = 0

    def _act(self) -> None:
        if self.raises is not None:
            self.raised += 1
            raise self.raises("on purpose")

    @hookimpl
    def mesh_snapshot(self, old: Any, new: Any) -> None:
        """Raises."""
        self._act()

    @hookimpl
    def mesh_registration(self, service_id: str, registered: bool) -> None:
        """Raises."""
        self._act()


@pytest.mark.parametrize("raised", RAISED)
def test_a_plugin_that_raises_anything_ends_no_watch(raised: type[BaseException]) -> None:
    """Denies written later act, and the mesh is ready and without trouble."""
    plugin = Failing()
    with Inside(plugins=[plugin]) as inside:
        door, peer = Door(inside.mesh), inside.peer()
        facts = AsgiFacts(Exchange("/x").scope)
        assert door.judge(peer, facts).passes
        plugin.raises = raised
        inside.agent.deny("someone", "tax")
        until(lambda: plugin.raised > 0, "the plugin to raise")
        inside.agent.deny("invoice", "tax")
        until(lambda: not door.judge(peer, facts).passes, "the deny to act")
        assert inside.mesh.ready() and inside.mesh.status()["troubles"] == {}
        plugin.raises = None


@pytest.mark.parametrize("raised", [*RAISED[:3], *RAISED[4:]])
def test_a_restriction_that_raises_anything_denies(raised: type[BaseException]) -> None:
    """And leaves the server's task alone."""

    class Restricting:
        @hookimpl
        def mesh_restrict(self, source: Any, facts: Any) -> bool:
            """Raises."""
            raise raised("on purpose")

    with Inside(plugins=[Restricting()]) as inside:
        verdict = Door(inside.mesh).judge(inside.peer(), AsgiFacts(Exchange("/x").scope))
        assert not verdict.passes and verdict.decision.reason is Reason.PLUGIN_ERROR


@pytest.fixture
def joined() -> Iterator[tuple[DevAgent, Mesh]]:
    """A mesh that is ready."""
    with DevAgent() as agent, Mesh("tax", agent=agent.url, plugins=()) as mesh:
        assert mesh.ready(PATIENCE)
        yield agent, mesh


def test_a_watch_that_ended_shows_and_recovers(
    joined: tuple[DevAgent, Mesh], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not ready meanwhile, counted, logged; then it follows the policy as before."""
    agent, mesh = joined
    watcher = mesh._watcher
    assert watcher is not None
    watcher.health.first_pause = 0.3
    take, fails = watcher._belief.take_intentions, [True]

    def broken(*given: Any, **more: Any) -> bool:
        if fails:
            fails.clear()
            raise Panic("a defect")
        return take(*given, **more)

    monkeypatch.setattr(watcher._belief, "take_intentions", broken)
    with caplog.at_level(logging.ERROR, "mesh_middleware.watch"):
        agent.deny("order", "tax")
        until(lambda: "intentions" in mesh.status()["troubles"], "the trouble")
        status = mesh.status()
        assert status["troubles"]["intentions"].startswith(f"{ENDED}: ")
        assert not status["ready"] and 'mesh_ready{service="tax"} 0' in mesh.metrics()
        assert mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        until(mesh.ready, "ready again")
    assert mesh.status()["events"][ENDED] == 1 and mesh.status()["troubles"] == {}
    assert "watch task intentions ended unexpectedly" in caplog.text


def test_a_loop_that_stands_still_makes_the_mesh_not_ready(
    joined: tuple[DevAgent, Mesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although nothing of the watcher can say so: the reader's clock tells."""
    _, mesh = joined
    watcher = mesh._watcher
    assert watcher is not None and watcher._loop is not None
    clock = Clock()
    monkeypatch.setattr(watcher.health, "_clock", clock)
    until(lambda: "sweep" in watcher.health._due, "a term")
    release = threading.Event()
    blocked = threading.Event()

    def block() -> None:
        watcher.health.expect("sweep", 5.0)
        blocked.set()
        release.wait(PATIENCE)

    watcher._loop.call_soon_threadsafe(block)
    try:
        assert blocked.wait(PATIENCE) and mesh.ready()
        clock.seconds = 5.0 + SLACK + 1.0
        assert not mesh.ready()
        assert mesh.status()["troubles"]["sweep"].startswith(f"{STALLED}: ")
    finally:
        release.set()


def test_a_thread_that_ended_makes_the_mesh_not_ready(
    joined: tuple[DevAgent, Mesh], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ended it; the last snapshot goes on judging."""
    _, mesh = joined
    watcher = mesh._watcher
    assert watcher is not None
    ended = threading.Thread()
    ended.start()
    ended.join()
    monkeypatch.setattr(watcher, "_thread", ended)
    assert not mesh.ready()
    assert mesh.status()["troubles"]["watcher"].startswith(f"{ENDED}: ")
    assert mesh.snapshot.policy is not None
    monkeypatch.undo()
    assert mesh.ready()


def test_an_agent_that_is_away_is_no_stalled_watch(joined: tuple[DevAgent, Mesh]) -> None:
    """The last answers hold, and the mesh is ready, while every watch waits for it."""
    agent, mesh = joined
    agent.close()
    until(lambda: mesh.status()["troubles"], "the trouble")
    watcher = mesh._watcher
    assert watcher is not None
    assert watcher.troubles() == {} and mesh.ready()
