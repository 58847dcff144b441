"""
Whether the agent can be reached, and how often it is asked while it cannot.

Owns what all questions of one process have in common when the agent fails: they keep a distance
from each other, and those that wait for an agent that is gone are called when it is back. Asks
nothing itself.

Theory. Each resource has a watch with a backoff of its own, and a process has as many watches as
upstreams. When the agent is gone they would all knock in turn. So they wait, and one scout knocks
for all. And a connection that broke without a word (a host that died, a firewall that forgot)
looks like an agent that holds a question: when the scout has found the agent back, what was asked
before is asked again. So it is when one question hangs and the scout's, on another connection, is
answered. That one hangs is known soon only of a question that is due soon. So one of those that the
agent holds all the time is held for seconds, not for minutes: the canary.

Source: reliability.md, R3; Consul reference 1.4, rule 8.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
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
SUSPECT_AFTER = 2.5
"""Seconds after which the scout knocks, without an answer that was due."""
RENEWALS = 3
RENEW_EVERY = 30.0
"""Everything is asked anew on mere suspicion `RENEWALS` times in so many seconds, at the most."""


def knock_backoff(knocks: int, dice: float) -> float:
    """
    Seconds to wait after *knocks* in vain.

    Args:
        dice: uniform in 0 to 1: full jitter, so that a thousand apps do not return together.
    """
    return max(SPACING, min(SCOUT_BACKOFF, 2.0 ** min(knocks - 1, 10)) * dice)


def cancellations() -> int:
    """How often the end of this very task was asked for."""
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0


class AgentReturnedError(MeshError):
    """The agent was away and is back, or is another: what was asked has to be asked again."""


class Lookout:
    """
    One agent, for one event loop.

    Args:
        clock: monotonic seconds.

    Attributes:
        era: grows whenever what was known of the agent's indexes may be void. Who asks with an
            index of an earlier era may be held by an agent that has never given it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.failing = False
        self._clock = clock
        self._last = -SPACING
        self._turn = asyncio.Lock()
        self._away = asyncio.Event()
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._knock = asyncio.Event()
        self._suspected = False
        self.era = 0
        self._renewals: deque[float] = deque(maxlen=RENEWALS)
        self._later: asyncio.TimerHandle | None = None
        self._asking: set[asyncio.Future[Any]] = set()
        self._given_up: set[asyncio.Future[Any]] = set()

    @property
    def away(self) -> bool:
        """Whether the last question could not even be put to the agent."""
        return self._away.is_set()

    @property
    def asking(self) -> int:
        """How many attempts wait for an answer now."""
        return len(self._asking)

    async def turn(self) -> None:
        """Wait until a question may be sent: at once, unless the agent fails."""
        if not self.failing:
            return
        async with self._turn:
            if self.failing and (left := self._last + SPACING - self._clock()) > 0:
                await asyncio.sleep(left)
            self._last = self._clock()

    def answered(self) -> None:
        """The agent has answered what was asked."""
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
        if not lost:
            self._away.clear()
            self._reachable.set()
        else:
            self._away.set()
            self._reachable.clear()
            self._knock.set()

    def suspect(self) -> None:
        """A question has had no answer for long: its connection, and others, may be dead."""
        self._suspected = True
        self._knock.set()

    def renew(self) -> None:
        """
        Another agent answers than before: what is being asked has to be asked anew.

        It would hold a question with an index of the other's, which means nothing to it. Done at
        once, or as soon as it may be done again.
        """
        full = len(self._renewals) == RENEWALS
        left = self._renewals[0] + RENEW_EVERY - self._clock() if full else 0.0
        if left <= 0.0:
            self._renew_now()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(left, self._renew_now)

    def _renew_now(self) -> None:
        if self._later is not None:
            self._later.cancel()
        self._later = None
        self._renewals.append(self._clock())
        self._give_up(set(self._asking))

    async def reachable(self) -> None:
        """Wait until the agent is not away."""
        await self._reachable.wait()

    async def attempt(self, work: Awaitable[T]) -> T:
        """
        Await *work*, which asks the agent.

        Raises:
            AgentReturnedError: the agent was away meanwhile, or is another; *work* was cancelled.
        """
        asking, wanted = asyncio.ensure_future(work), cancellations()
        self._asking.add(asking)
        try:
            return await asking
        except asyncio.CancelledError:
            # Who is cancelled in that very moment is not to go on.
            if asking in self._given_up and cancellations() == wanted:
                raise AgentReturnedError("asked of the agent as it was before") from None
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
            ask: one small question; who sends it tells `answered` or `failed`.
            backoff: seconds to wait after that many knocks in vain.
        """
        while True:
            await self._knock.wait()
            self._knock.clear()
            knocks, suspected = 0, self._suspected
            self._suspected = False
            while True:
                before = set(self._asking)
                if await self._is_there(ask):
                    break
                knocks += 1
                await asyncio.sleep(backoff(knocks))
            if knocks:
                self._give_up(before)
            elif suspected:
                self.renew()

    async def _is_there(self, ask: Callable[[], Awaitable[object]]) -> bool:
        try:
            async with asyncio.timeout(SCOUT_TIMEOUT):
                await ask()
        except TimeoutError:
            self.failed(lost=True)
        except MeshError:
            pass  # an error of the agent's own is a sign of life
        return not self.away

    def _give_up(self, asked: set[asyncio.Future[Any]]) -> None:
        self.era += 1
        for asking in asked & self._asking:
            self._given_up.add(asking)
            asking.cancel()
