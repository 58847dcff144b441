"""
Follows resources of the agent by blocking queries, one at a time, whatever comes.

Owns the loop around `consul.watch`: ask, take, wait, back off, and what is told of it once. Knows
nothing of what the answers mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime

from .config import Settings
from .consul import watch, wire
from .consul.client import Answer, ConsulClient
from .consul.lookout import AgentReturnedError, knock_backoff
from .consul.shifts import Shift
from .consul.watch import Cursor
from .exceptions import AgentRefusedError, AgentUnavailableError, MeshError
from .rhythm import USUAL, Rhythm
from .supervision import TaskHealth

_log = logging.getLogger("mesh_middleware.watch")

HELD_LONGER = 1.1
"""By which factor the agent holds a question longer than asked: a sixteenth, at random."""
MAX_SKEW = 60.0
"""Seconds by which our clock and the agent's may differ before it is told."""

Ask = Callable[[Cursor], Awaitable[Answer]]
Take = Callable[[Answer, bool], Awaitable[None]]


async def wait_at_most(event: asyncio.Event, seconds: float) -> bool:
    """
    Wait until *event* is set, *seconds* at most.

    Unlike ``asyncio.wait_for`` before Python 3.12, which takes a cancellation for the event when
    the two come together: the task would go on, as if nobody had ended it.

    Returns:
        Whether it is set.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class Follower:
    """
    Follows resources of one agent.

    Args:
        settings: address and rhythm.
        client: asks the agent.
        now: this moment, aware UTC.
        joined: whether there are leaf and roots already, for the log.
        recovered: called when something that failed works again.
        note: is told, under a stable code, what people should know.
        count: is told the code of each trouble, once.
        rhythm: how long is waited after a failure.
        clock: monotonic seconds.
        health: is told how each watch is getting on.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        now: Callable[[], datetime],
        joined: Callable[[], bool],
        recovered: Callable[[], None],
        note: Callable[[str, str], None] = lambda code, detail: None,
        count: Callable[[str], None] = lambda code: None,
        *,
        rhythm: Rhythm = USUAL,
        clock: Callable[[], float] = time.monotonic,
        health: TaskHealth | None = None,
    ) -> None:
        self.health = health or TaskHealth(clock)
        self.lookout = client.lookout
        self.troubles: dict[str, str] = {}
        self.skew = 0.0
        self._settings = settings
        self._client = client
        self._now = now
        self._joined = joined
        self._recovered = recovered
        self._note, self._count = note, count
        self._rhythm, self._clock = rhythm, clock

    async def watch(
        self,
        name: str,
        question: wire.Question,
        take: Callable[[Answer, bool], None],
        failed: Callable[[MeshError], None] | None = None,
        shift: Shift | None = None,
        longest: float = math.inf,
    ) -> None:
        """
        Follow what one question asks for.

        Args:
            name: of the resource, for log and status.
            question: asked again and again.
            take: is given each answer, and whether the index went backwards with it.
            failed: is told each failure.
            shift: watches that share places at the agent, this one among them.
            longest: seconds that it may be held, though the settings allow more.
        """

        async def ask(cursor: Cursor) -> Answer:
            def send(wait: float) -> Awaitable[Answer]:
                return self._client.ask(question, index=cursor.asked, wait=wait)

            return await (send(cursor.wait) if shift is None else shift.ask(cursor, send))

        async def take_it(answer: Answer, regressed: bool) -> None:
            take(answer, regressed)

        # Who takes turns with others may wait long for the next, and the others are seen.
        turns = shift is not None
        with contextlib.nullcontext() if shift is None else shift.member():
            await self.follow(name, ask, take_it, failed, longest, turns=turns)

    async def scout(self) -> None:
        """While the agent is away, ask whether it is back, for all who wait; for ever."""

        async def ask() -> None:
            await self._client.ask(wire.roots_question())

        await self.lookout.scout(ask, lambda knocks: knock_backoff(knocks, random.random()))

    async def follow(
        self,
        name: str,
        ask: Ask,
        take: Take,
        failed: Callable[[MeshError], None] | None = None,
        longest: float = math.inf,
        *,
        turns: bool = False,
    ) -> None:
        """
        Follow what *ask* asks for, for ever; as `watch`.

        Args:
            turns: whether it waits for its turn among others, for which there is no term.
        """
        wait = min(self._settings.wait, longest)
        cursor = Cursor(wait=wait, block=not self._settings.poll)
        era = self.lookout.era
        while True:
            began = self._clock()
            term = math.inf if turns else cursor.wait * HELD_LONGER + self._rhythm.answer_timeout
            self.health.expect(name, term)
            if era != self.lookout.era:
                era, cursor = self.lookout.era, watch.anew(cursor)
            try:
                answer = await self.lookout.attempt(ask(cursor))
                await take(answer, watch.regressed(cursor.index, answer.index))
                self.well(name)
                self.health.progress(name)
                self._compare_clocks(answer)
                took = self._clock() - began
                cursor = self._told(name, cursor, watch.answered(cursor, answer.index, took))
                pause = self._pause(cursor)
                if not answer.index:
                    cursor, pause = replace(cursor, index=0), watch.POLL_EVERY
            except AgentReturnedError:
                # It may hold what it was asked, or be dead: ask anew, for the present value.
                cursor, pause = replace(cursor, failures=cursor.failures + 1), 0.0
            except Exception as caught:
                took = self._clock() - began
                cursor = self._told(name, cursor, watch.failed(cursor, took))
                error = self.trouble(name, caught, quiet=cursor.polling)
                if failed is not None:
                    failed(error)
                pause = self.backoff(cursor.failures, error)
            self.health.expect(name, pause)
            await asyncio.sleep(pause)
            self.health.rest(name)  # while the agent is away, one task asks for all
            await self.lookout.reachable()

    def _pause(self, cursor: Cursor) -> float:
        if cursor.polling:
            return self._settings.poll or watch.POLL_EVERY
        return watch.pace(cursor)

    def _told(self, name: str, before: Cursor, after: Cursor) -> Cursor:
        if after.polls > before.polls:
            why = f"{name}: long questions fail or are not held; asked every second instead"
            self._note("agent_polled", why)
        if after.wait < before.wait:
            self._note("wait_shortened", f"{name}: cut before the end; {after.wait:.0f} s from now")
        return after

    def backoff(self, failures: int, error: MeshError) -> float:
        """Seconds to wait after *failures* in a row, the last being *error*."""
        refused = isinstance(error, AgentRefusedError)
        first = self._rhythm.first_backoff
        return watch.backoff(failures, random.random(), refused=refused, first=first)

    def trouble(self, name: str, caught: Exception, *, quiet: bool = False) -> MeshError:
        """
        Note that *name* failed; tell it the first time. Returns it as one of our errors.

        Args:
            quiet: it is known that this fails now and then.
        """
        error = _understood(caught)
        code = getattr(error, "code", "defect")
        known = self.troubles.get(name, "").partition(":")[0]
        self.troubles[name] = f"{code}: {error}"
        if known == code:
            return error
        self._count(code)
        # One line when the agent goes, or no token can be read, not one per watch and attempt.
        away = isinstance(error, AgentUnavailableError)
        others = [text for other, text in self.troubles.items() if other != name]
        shared = (away and others) or self.troubles[name] in others
        said, agent = str(error).removeprefix(f"{name}: "), self._settings.agent
        say = _log.info if quiet or shared else _log.warning
        say(
            "%s: %s: %s; asking%s again until it answers, %s",
            code,
            "no answer from the agent" if away else name,
            said,
            "" if agent in said else f" {agent}",
            "the last answers hold" if self._joined() else "until then no handshake succeeds",
            exc_info=caught if code == "defect" else None,
        )
        return error

    def report(self, name: str, code: str, text: str) -> None:
        """Note a state of *name* that is no failure of the agent; log it the first time."""
        if self.troubles.get(name, "").partition(":")[0] != code:
            self._count(code)
            _log.warning("%s: %s: %s", code, name, text)
        self.troubles[name] = f"{code}: {text}"

    def well(self, name: str) -> None:
        """Note that *name* works."""
        if self.troubles.pop(name, None) is not None:
            if not self.troubles:
                _log.warning("agent %s answers again", self._settings.agent)
            self._recovered()

    def _compare_clocks(self, answer: Answer) -> None:
        try:
            told = parsedate_to_datetime(answer.headers["date"])
            skew = (self._now() - told).total_seconds()
        except (KeyError, ValueError, TypeError, OverflowError):
            return  # none, or what is no moment: "-0000" has no time zone
        if abs(skew) > MAX_SKEW >= abs(self.skew):
            self._note(
                "clock_skew",
                f"our clock and the agent's differ by {skew:.0f} s; ours judges certificates",
            )
        self.skew = skew


def _understood(caught: Exception) -> MeshError:
    if isinstance(caught, MeshError):
        return caught
    # A defect of ours must not end the watch: the policy would stand still for ever.
    return MeshError(f"{type(caught).__name__} while taking an answer, which is a defect")
