"""
Whether the agent can be reached, and how often it is asked while it cannot.

Owns what all questions of one process have in common when the agent fails: they keep a distance
from each other, and those that wait for an agent that is gone are called when it is back. Asks
nothing itself.

Theory. Each resource has a watch with a backoff of its own, and a process has as many watches as
upstreams. When the agent is gone they would all knock in turn. So they wait, and one scout knocks
for all. And a connection that broke without a word (a host that died, a firewall that forgot)
looks like an agent that holds a question: when the scout has found the agent back, what was asked
before is asked again.

Source: reliability.md, R3; Consul reference 1.4, rule 8.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from ..exceptions import MeshError

T = TypeVar("T")

SPACING = 0.1
"""Seconds between questions to an agent that fails."""
SCOUT_TIMEOUT = 2.0
"""Seconds for the scout's question; with the backoff below, recovery within 5 s (R3)."""
SCOUT_BACKOFF = 2.0
"""Longest wait in seconds between two of them."""


class AgentReturnedError(MeshError):
    """The agent was away and is back: what was asked before has to be asked again."""


class Lookout:
    """
    One agent, for one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failing = False
        self._clock = clock
        self._last = -SPACING
        self._turn = asyncio.Lock()
        self._away = asyncio.Event()
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._asking: set[asyncio.Future[Any]] = set()
        self._given_up: set[asyncio.Future[Any]] = set()

    @property
    def away(self) -> bool:
        """Whether the last question could not even be put to the agent."""
        return self._away.is_set()

    async def turn(self) -> None:
        """Wait until a question may be sent: at once, unless the agent fails."""
        if not self.failing:
            return
        async with self._turn:
            if self.failing and (left := self._last + SPACING - self._clock()) > 0:
                await asyncio.sleep(left)
            self._last = self._clock()

    def answered(self) -> None:
        """The agent has answered, and not by an error."""
        self.failing = False
        self._away.clear()
        self._reachable.set()

    def failed(self, *, lost: bool) -> None:
        """
        A question was in vain.

        Args:
            lost: there was no answer at all, rather than an error.
        """
        self.failing, self._last = True, self._clock()
        if lost:
            self._away.set()
            self._reachable.clear()

    async def reachable(self) -> None:
        """Wait until the agent is not away."""
        await self._reachable.wait()

    async def attempt(self, work: Awaitable[T]) -> T:
        """
        Await *work*, which asks the agent.

        Raises:
            AgentReturnedError: the agent was away meanwhile and is back; *work* was cancelled.
        """
        asking = asyncio.ensure_future(work)
        self._asking.add(asking)
        try:
            return await asking
        except asyncio.CancelledError:
            if asking in self._given_up:
                raise AgentReturnedError("asked before the agent was away") from None
            raise
        finally:
            self._asking.discard(asking)
            self._given_up.discard(asking)

    async def scout(
        self, ask: Callable[[], Awaitable[object]], backoff: Callable[[int], float]
    ) -> None:
        """
        Whenever the agent is away, knock until it is back; for ever.

        Args:
            ask: one small question, which tells `answered` itself.
            backoff: seconds to wait after that many knocks in vain.
        """
        while True:
            await self._away.wait()
            knocks = 0
            while self.away:
                before = set(self._asking)
                try:
                    async with asyncio.timeout(SCOUT_TIMEOUT):
                        await ask()
                except (MeshError, TimeoutError):
                    knocks += 1
                    if self.away:
                        await asyncio.sleep(max(SPACING, min(SCOUT_BACKOFF, backoff(knocks))))
            if knocks:
                self._give_up(before)

    def _give_up(self, asked: set[asyncio.Future[Any]]) -> None:
        for asking in asked & self._asking:
            self._given_up.add(asking)
            asking.cancel()
