"""An agent that is another than before: who is asked anew, with what, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import pytest

from mesh_middleware.config import Settings
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.lookout import (
    RENEW_EVERY,
    RENEWALS,
    AgentReturnedError,
    Lookout,
)
from mesh_middleware.consul.shifts import Shift
from mesh_middleware.consul.watch import Cursor
from mesh_middleware.consul.wire import Question
from mesh_middleware.following import Follower

from .reliability import virtual
from .support.steps import yield_times

QUESTION = Question("/v1/thing", "nothing")
SOON = 0.5
"""Seconds in which a question that is not held is answered, and the next one asked."""


class Agents(httpx.AsyncBaseTransport):
    """
    One agent after the other behind the same connections, each with indexes of its own.

    An index that is not its present one it holds for ever: as one of a future that never comes.
    """

    def __init__(self) -> None:
        self._index, self._changed = 70, asyncio.Event()
        self.asked: list[int] = []

    def replace(self, index: int) -> None:
        """Another agent answers from now on; who is held by the old one stays held."""
        self._index, self._changed = index, asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer what has no index; hold what has one."""
        index = int(request.url.params.get("index", 0))
        self.asked.append(index)
        if index:
            await self._changed.wait()
        headers = {"X-Consul-Index": str(self._index), "Content-Type": "application/json"}
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(b"{}"))


class Watching:
    """One watch on such agents, in virtual time."""

    def __init__(self) -> None:
        loop, settings, self.agents = asyncio.get_running_loop(), Settings("tax"), Agents()
        client = ConsulClient(settings, self.agents)
        self.lookout = client.lookout = Lookout(loop.time)
        self.then: list[Callable[[], None]] = []
        follower = Follower(
            settings, client, lambda: datetime.now(UTC), bool, lambda: None, clock=loop.time
        )
        self._task = asyncio.ensure_future(follower.watch("thing", QUESTION, self._take))

    def _take(self, answer: Answer, regressed: bool) -> None:
        if self.then:
            self.then.pop()()

    async def end(self) -> None:
        """End the watch."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def pass_by(seconds: float) -> None:
    """Let virtual time pass."""
    reached = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, reached.set)
    await reached.wait()


@pytest.mark.parametrize(
    ("index", "asked"), [(700, [0, 70, 0, 700]), (7, [0, 70, 0, 0, 7])], ids=["ahead", "behind"]
)
def test_a_question_that_is_held_is_asked_anew_of_another_agent(
    index: int, asked: list[int]
) -> None:
    """
    Without the index that means nothing to it, and then with its own.

    One that is behind is asked from the start, as one that went backwards.
    """

    async def run() -> list[int]:
        watching = Watching()
        await pass_by(SOON)
        watching.agents.replace(index)
        watching.lookout.renew()
        await pass_by(SOON)
        await watching.end()
        return watching.agents.asked

    assert virtual.run(run()) == asked


def test_no_question_is_asked_with_the_index_of_an_earlier_agent() -> None:
    """
    The agent is replaced while a watch asks nothing: it has its answer, and is about to ask again.

    Nothing can be given up then. That its index is of an earlier era keeps it from being held, for
    minutes, by an agent that has never given that index.
    """

    async def run() -> list[int]:
        watching = Watching()

        def another() -> None:
            watching.agents.replace(700)
            assert watching.lookout.asking == 0
            watching.lookout.renew()

        watching.then.append(another)
        await pass_by(SOON)
        await watching.end()
        return watching.agents.asked

    assert virtual.run(run()) == [0, 0, 700]


class Held:
    """Questions that are held until they are given up, and asked anew then."""

    def __init__(self, lookout: Lookout) -> None:
        self._lookout, self.times = lookout, list[float]()
        self._task = asyncio.ensure_future(self._ask())

    async def _ask(self) -> None:
        while True:
            try:
                await self._lookout.attempt(asyncio.Event().wait())
            except AgentReturnedError:
                self.times.append(asyncio.get_running_loop().time())

    async def end(self) -> None:
        """Ask no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def given_up(suspicions: list[float], until: float) -> list[float]:
    """
    When a held question was given up.

    Args:
        suspicions: seconds from the start at which another agent was suspected.
        until: how long it is looked at.
    """

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        lookout = Lookout(loop.time)
        held = Held(lookout)
        await yield_times(2)
        for moment in suspicions:
            loop.call_at(moment, lookout.renew)
        await pass_by(until)
        await held.end()
        return held.times

    return virtual.run(run())


def test_a_burst_of_renewals_is_done_at_once() -> None:
    """As many as may be: an agent is replaced once, and told by a few watches."""
    moments = [1.0 + number for number in range(RENEWALS)]
    assert given_up(moments, RENEW_EVERY) == moments


def test_more_renewals_are_put_off_and_none_is_dropped() -> None:
    """
    Two agents that answer in turn would have everything asked anew at every answer.

    What comes behind the burst is done together, once, as soon as it may be.
    """
    burst = [1.0 + number / 10 for number in range(RENEWALS)]
    more = [2.0 + number / 10 for number in range(20)]
    assert given_up(burst + more, RENEW_EVERY) == burst
    assert given_up(burst + more, RENEW_EVERY * 3) == [*burst, burst[0] + RENEW_EVERY]


def test_so_many_renewals_in_so_many_seconds_and_no_more() -> None:
    """However long two agents answer in turn, and also right behind one that was put off."""
    moments = [number / 4 for number in range(4 * 300)]
    times = given_up(moments, 300.0)
    assert len(times) >= RENEWALS * 9
    for first, last in zip(times, times[RENEWALS:], strict=False):
        assert last - first >= RENEW_EVERY


def test_a_burst_may_come_again_after_a_while() -> None:
    """What was long ago does not count."""
    burst = [0.0, 0.1, 0.2]
    later = [RENEW_EVERY + 1.0 + moment for moment in burst]
    assert given_up(burst + later, RENEW_EVERY * 2) == burst + later


def test_who_asks_no_more_is_not_told_of_another_agent() -> None:
    """Only attempts that still wait are given up; who cancels one hears of its own cancellation."""

    async def run() -> None:
        lookout = Lookout(asyncio.get_running_loop().time)
        asking = asyncio.ensure_future(lookout.attempt(asyncio.Event().wait()))
        await yield_times(2)
        assert lookout.asking == 1
        asking.cancel()
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)
        assert lookout.asking == 0
        lookout.renew()
        assert lookout.era == 1

    virtual.run(run())


def test_who_is_cancelled_as_the_agent_is_replaced_ends() -> None:
    """The end of a watch that comes with a renewal is not taken for the renewal."""

    async def run() -> None:
        lookout = Lookout(asyncio.get_running_loop().time)
        asking = asyncio.ensure_future(lookout.attempt(asyncio.Event().wait()))
        await yield_times(2)
        lookout.renew()
        asking.cancel()
        (ended,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)

    virtual.run(run())


def test_who_is_cancelled_as_others_want_a_turn_ends() -> None:
    """So it is with a watch that is called from its place."""

    async def run() -> None:
        shift = Shift(held=1)
        with shift.member():
            work = shift.ask(Cursor(index=1), lambda wait: asyncio.Event().wait())
            asking = asyncio.ensure_future(work)
            await yield_times(3)
            with shift.member():
                asking.cancel()
                (ended,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(ended, asyncio.CancelledError)

    virtual.run(run())
