"""What is believed of an upstream, and when; time passes as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from mesh_middleware.belief import Belief
from mesh_middleware.config import Settings
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.lookout import Lookout
from mesh_middleware.following import Follower
from mesh_middleware.outbound import CRITICAL_FOR, SHAKEN_FOR, Outbound
from mesh_middleware.plugins import Plugins
from mesh_middleware.resolve import Upstream
from mesh_middleware.routing import Call, Outcome
from mesh_middleware.upstreams import UpstreamWatch

from .reliability import virtual
from .support.certs import Ca

HAIR = 0.001
"""Seconds before and after a moment that something is to happen at."""


def told(status: str) -> list[dict[str, Any]]:
    """The agent's answer about two native instances of tax, which are both well or both not."""
    return [
        {
            "Node": {"Node": "n", "Address": "127.0.0.1", "Datacenter": "dc1"},
            "Service": {
                "ID": f"tax-{port}", "Service": "tax", "Address": "127.0.0.1", "Port": port,
                "Connect": {"Native": True}, "Weights": {"Passing": 1, "Warning": 1},
            },
            "Checks": [{"Status": status}],
        }
        for port in (1, 2)
    ]  # fmt: skip


WELL, CRITICAL = told("passing"), told("critical")
GONE: list[dict[str, Any]] = []


class Agent(httpx.AsyncBaseTransport):
    """An agent that says what the test has it say, and holds questions until it says more."""

    def __init__(self) -> None:
        self._body: object = WELL
        self._index, self.there = 1, True
        self._said = asyncio.Event()

    def say(self, body: object, *, there: bool = True) -> None:
        """Answer *body* from now on; or, no longer *there*, break every connection."""
        self._body, self.there = body, there
        self._index += 1
        self._said.set()
        self._said = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer as Consul does."""
        if request.url.params.get("index") == str(self._index):
            await self._said.wait()
        if not self.there:
            raise httpx.ConnectError("refused")
        headers = {"X-Consul-Index": str(self._index), "Content-Type": "application/json"}
        body = self._body if "health" in request.url.path else {}
        return httpx.Response(
            200, headers=headers, stream=httpx.ByteStream(json.dumps(body).encode())
        )


Plan = list[tuple[float, Callable[[Agent], None]]]


def follow(ca: Ca, plan: Plan, moments: list[float]) -> list[int]:
    """
    Follow tax while the agent does as planned.

    Args:
        plan: seconds from the start, and what the agent does then.
        moments: when it is looked at, in order.

    Returns:
        How many instances there were at those moments.
    """

    async def run() -> list[int]:
        loop, agent, settings = asyncio.get_running_loop(), Agent(), Settings("web")
        client = ConsulClient(settings, agent)
        client.lookout = Lookout(loop.time)
        follower = Follower(
            settings, client, lambda: datetime.now(UTC), bool, lambda: None, clock=loop.time
        )
        belief = Belief(settings, lambda: datetime.now(UTC), lambda old, new: None)
        belief.take_roots(ca.roots())
        joined, upstream = asyncio.Event(), UpstreamWatch(Upstream("tax"))
        joined.set()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(follower.scout())]

            def spawn(name: str, work: Any) -> asyncio.Task[None]:
                tasks.append(group.create_task(work()))
                return tasks[-1]

            plugins = Plugins([], installed=False)
            Outbound(follower, belief, plugins, spawn, joined).follow(upstream, chained=False)
            for moment, act in plan:
                loop.call_at(moment, act, agent)
            found = []
            for moment in moments:
                reached = asyncio.Event()
                loop.call_at(moment, reached.set)
                await reached.wait()
                found.append(len(upstream.endpoints or ()))
            for task in tasks:
                task.cancel()
        return found

    return virtual.run(run())


def say(body: object) -> Callable[[Agent], None]:
    return lambda agent: agent.say(body)


def go(agent: Agent) -> None:
    agent.say(WELL, there=False)


def test_all_critical_at_once_is_believed_after_two_seconds(ca: Ca) -> None:
    """An agent that was paused says so of everybody, until it has heard of them again."""
    end = 10.0 + CRITICAL_FOR
    assert follow(ca, [(10.0, say(CRITICAL))], [9.0, end - HAIR, end + HAIR]) == [2, 2, 0]


def test_all_critical_at_once_for_less_is_never_believed(ca: Ca) -> None:
    """Heard of in time: nobody was gone for a moment, nor is later."""
    plan = [(10.0, say(CRITICAL)), (10.0 + CRITICAL_FOR - HAIR, say(WELL))]
    assert follow(ca, plan, [10.5, 11.9, 12.1, 60.0]) == [2] * 4


def test_each_doubt_has_its_own_time(ca: Ca) -> None:
    """Critical, well, and critical again: two seconds count from the second time, not the first."""
    plan = [(10.0, say(CRITICAL)), (11.0, say(WELL)), (11.5, say(CRITICAL))]
    end = 11.5 + CRITICAL_FOR
    assert follow(ca, plan, [12.0 + HAIR, end - HAIR, end + HAIR]) == [2, 2, 0]


def test_who_is_watched_no_more_is_not_known_to_have_nobody(ca: Ca) -> None:
    """A doubt ends with the watch: who calls anew waits for an answer, and hears of no verdict."""

    upstream = UpstreamWatch(Upstream("tax"))
    assert upstream.take(WELL, ca.roots().trust_domain)
    assert not upstream.take(CRITICAL, ca.roots().trust_domain)
    upstream.rest("nobody calls")
    upstream.concede(upstream.doubt)
    assert upstream.endpoints is None


def test_who_was_critical_and_is_well_again_is_not_ejected(ca: Ca) -> None:
    """Nor where the agent's word was doubted: what comes back, well, counts as new."""
    upstream, domain = UpstreamWatch(Upstream("tax")), ca.roots().trust_domain
    upstream.take(WELL, domain)

    def ejected() -> int:
        return [one.state for one in upstream.course.look(1.0).instances].count("open")

    for _ in range(20):
        trip = upstream.course.begin(Call("POST", b"/"), 0.0, 0.1)
        trip.next(0.0, 0.1)
        trip.heard(Outcome("answer", 500), 0.0, 0.1)
        trip.close(0.0)
    assert ejected() == 1
    upstream.take(WELL, domain)
    assert ejected() == 1
    assert not upstream.take(CRITICAL, domain)
    assert ejected() == 1
    upstream.take(WELL, domain)
    assert ejected() == 0


def test_a_doubt_is_not_prolonged_by_saying_it_again(ca: Ca) -> None:
    """Answers that change nothing come all the time."""
    plan = [(10.0 + number / 2, say(CRITICAL)) for number in range(8)]
    assert follow(ca, plan, [11.9, 10.0 + CRITICAL_FOR + HAIR]) == [2, 0]


@pytest.mark.parametrize("body", [GONE, WELL[:1]], ids=["none", "one"])
def test_what_is_deregistered_is_believed_at_once(ca: Ca, body: list[dict[str, Any]]) -> None:
    """Whoever is not listed any more has left."""
    assert follow(ca, [(10.0, say(body))], [10.0 + HAIR]) == [len(body)]


def test_one_that_is_critical_is_believed_at_once(ca: Ca) -> None:
    """While another is well the agent hears of them."""
    assert follow(ca, [(10.0, say([WELL[0], CRITICAL[1]]))], [10.0 + HAIR]) == [1]


@pytest.mark.parametrize("body", [GONE, CRITICAL], ids=["none", "critical"])
def test_none_is_not_believed_of_an_agent_that_was_away(ca: Ca, body: list[dict[str, Any]]) -> None:
    """One that restarts has heard of nobody yet; what it still says after half a minute is so."""
    plan: Plan = [(10.0, go), (12.0, say(body))]
    assert follow(ca, plan, [11.0, 40.0, 12.0 + SHAKEN_FOR + 5.0]) == [2, 2, 0]
