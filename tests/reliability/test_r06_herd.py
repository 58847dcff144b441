"""R6: a thousand applications, and one agent that goes away and comes back."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import httpx
import pytest

from mesh_middleware.config import load_settings
from mesh_middleware.consul import wire
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.lookout import SPACING, Lookout
from mesh_middleware.following import Follower

from . import virtual
from .conftest import LONG

APPS = 1000
WATCHES = 2
GONE, BACK, END = (20.0, 80.0, 100.0) if LONG else (20.0, 28.0, 40.0)
SETTLED = 2.0
"""Seconds after which nobody can know any more when the agent went away."""
RECOVERY = 5.0
TENTH = 0.1
LATE = 1e-6


class Agent:
    """One agent in virtual time: who asked it, and when."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.asked: list[tuple[float, int]] = []
        self.away = asyncio.Event()
        self.there = True

    def go(self, *, there: bool) -> None:
        """Come, or go: then every connection breaks."""
        self.there = there
        if not there:
            self.away.set()
            self.away = asyncio.Event()


class Link(httpx.AsyncBaseTransport):
    """The connections of one application to the agent."""

    def __init__(self, agent: Agent, app: int) -> None:
        self._agent, self._app = agent, app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a plain question, hold a blocking one, refuse while the agent is away."""
        agent = self._agent
        agent.asked.append((asyncio.get_running_loop().time(), self._app))
        if not agent.there:
            raise httpx.ConnectError("refused")
        if "index" in request.url.params:
            await agent.away.wait()
            raise httpx.ReadError("reset")
        headers = {"X-Consul-Index": "7", "Content-Type": "application/json"}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"{}"))


async def application(agent: Agent, app: int, back: dict[int, float]) -> None:
    """What the watcher of one process asks."""
    loop = asyncio.get_running_loop()
    settings = load_settings({"service": f"app-{app}"}, environ={})
    client = ConsulClient(settings, Link(agent, app))
    client.lookout = Lookout(loop.time)
    told = Counter[str]()

    def note(name: str) -> None:
        told[name] += 1
        if told[name] == 2:
            back[app] = loop.time()

    follower = Follower(
        settings, client, lambda: datetime.now(UTC), bool, lambda: None, clock=loop.time
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.scout())
        for number in range(WATCHES):
            name = f"resource {number}"
            question = wire.roots_question()
            group.create_task(
                follower.watch(name, question, lambda _, __, name=name: note(name))  # type: ignore[misc]
            )


async def herd() -> tuple[Agent, dict[int, float]]:
    """All start at once; the agent goes, and comes back."""
    loop = asyncio.get_running_loop()
    agent, back = Agent(loop), dict[int, float]()
    loop.call_at(GONE, lambda: agent.go(there=False))
    loop.call_at(BACK, lambda: agent.go(there=True))
    with suppress(TimeoutError):
        async with asyncio.timeout_at(END), asyncio.TaskGroup() as group:
            for app in range(APPS):
                group.create_task(application(agent, app, back))
    return agent, back


def tenths(times: Iterable[float], begin: float, end: float) -> list[int]:
    """How many there were in each tenth of a second."""
    counts = Counter(int((at - begin) / TENTH) for at in times if begin <= at < end)
    return [counts[number] for number in range(round((end - begin) / TENTH))]


@pytest.mark.timeout(240)
def test_r06_a_thousand_apps_come_back_spread_out() -> None:
    """
    A thousand clients as processes have them; time is virtual, everything else is as it is.

    While the agent is away each knocks for all that it follows, 100 ms apart at least, and
    together they do so evenly. All are back within seconds, and not at once.
    """
    agent, back = virtual.run(herd())
    times = [at for at, _ in agent.asked]

    away = tenths(times, GONE + SETTLED, BACK)
    mean = sum(away) / len(away)
    assert APPS / 20 < mean * TENTH * 10 < APPS, "about one knock per app and second"
    assert max(away) <= 2 * mean and min(away) >= mean / 2

    assert len(back) == APPS and max(back.values()) < BACK + RECOVERY
    returning = tenths(times, BACK, BACK + 2.0)
    assert max(returning) <= 3 * sum(returning) / len(returning)
    assert max(tenths(times, BACK + RECOVERY, END), default=0) == 0, "all are held again"

    for app in range(0, APPS, 97):
        own = [at for at, who in agent.asked if who == app and GONE + LATE < at < BACK]
        assert min(b - a for a, b in itertools.pairwise(own)) >= SPACING - LATE
