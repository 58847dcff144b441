"""
Follows resources of the agent by blocking queries, one at a time, whatever comes.

Owns the loop around `consul.watch`: ask, take, wait, back off, and what is told of it once. Knows
nothing of what the answers mean.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime

from .config import Settings
from .consul import watch, wire
from .consul.client import Answer, ConsulClient
from .exceptions import AgentRefusedError, AgentUnavailableError, MeshError

_log = logging.getLogger("mesh_middleware.watch")

MAX_SKEW = 60.0
"""Seconds by which our clock and the agent's may differ before it is told."""

Ask = Callable[[watch.Cursor], Awaitable[Answer]]
Take = Callable[[Answer, bool], Awaitable[None]]


class Follower:
    """
    Follows resources of one agent.

    Args:
        settings: address and rhythm.
        client: asks the agent.
        now: this moment, aware UTC.
        joined: whether there are leaf and roots already, for the log.
        recovered: called when something that failed works again.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        now: Callable[[], datetime],
        joined: Callable[[], bool],
        recovered: Callable[[], None],
    ) -> None:
        self.troubles: dict[str, str] = {}
        self.skew = 0.0
        self._settings = settings
        self._client = client
        self._now = now
        self._joined = joined
        self._recovered = recovered

    async def watch(
        self,
        name: str,
        question: wire.Question,
        take: Callable[[Answer, bool], None],
        failed: Callable[[MeshError], None] | None = None,
    ) -> None:
        """
        Follow what one question asks for.

        Args:
            name: of the resource, for log and status.
            question: asked again and again.
            take: is given each answer, and whether the index went backwards with it.
            failed: is told each failure.
        """

        async def ask(cursor: watch.Cursor) -> Answer:
            return await self._client.ask(question, index=cursor.asked, wait=cursor.wait)

        async def take_it(answer: Answer, regressed: bool) -> None:
            take(answer, regressed)

        await self.follow(name, ask, take_it, failed)

    async def follow(
        self, name: str, ask: Ask, take: Take, failed: Callable[[MeshError], None] | None = None
    ) -> None:
        """Follow what *ask* asks for, for ever; as `watch`."""
        cursor = watch.Cursor(wait=self._settings.wait)
        while True:
            began = time.monotonic()
            try:
                answer = await ask(cursor)
                await take(answer, watch.regressed(cursor.index, answer.index))
            except Exception as caught:
                cursor = watch.failed(cursor, time.monotonic() - began)
                error = self.trouble(name, caught)
                if failed is not None:
                    failed(error)
                await asyncio.sleep(self.backoff(cursor.failures, error))
                continue
            self.well(name)
            self._compare_clocks(answer)
            cursor = watch.answered(cursor, answer.index, time.monotonic() - began)
            if self._settings.poll or not answer.index:
                cursor = replace(cursor, index=0)
                await asyncio.sleep(self._settings.poll or watch.POLL_EVERY)
                continue
            await asyncio.sleep(watch.pace(cursor))

    def backoff(self, failures: int, error: MeshError) -> float:
        """Seconds to wait after *failures* in a row, the last being *error*."""
        refused = isinstance(error, AgentRefusedError)
        return watch.backoff(failures, random.random(), refused=refused)

    def trouble(self, name: str, caught: Exception) -> MeshError:
        """Note that *name* failed; tell it the first time. Returns it as one of our errors."""
        error = _understood(name, caught)
        if name not in self.troubles:
            # One line when the agent goes, not one per watch and attempt.
            away = isinstance(error, AgentUnavailableError)
            say = _log.info if away and self.troubles else _log.warning
            say(
                "%s: %s; asking again until it answers, %s",
                "no answer from the agent" if away else name,
                error,
                "the last answers hold" if self._joined() else "until then no handshake succeeds",
            )
        self.troubles[name] = f"{type(error).__name__}: {error}"
        return error

    def well(self, name: str) -> None:
        """Note that *name* works."""
        if self.troubles.pop(name, None) is not None:
            if not self.troubles:
                _log.warning("agent %s answers again", self._settings.agent)
            self._recovered()

    def _compare_clocks(self, answer: Answer) -> None:
        date = answer.headers.get("date")
        if date is None:
            return
        try:
            skew = (self._now() - parsedate_to_datetime(date)).total_seconds()
        except ValueError:
            return
        if abs(skew) > MAX_SKEW >= abs(self.skew):
            _log.warning(
                "our clock and the agent's differ by %.0f s; certificates are judged by ours", skew
            )
        self.skew = skew


def _understood(name: str, caught: Exception) -> MeshError:
    if isinstance(caught, MeshError):
        return caught
    # A defect of ours must not end the watch: the policy would stand still for ever.
    _log.error("%s: an answer could not be taken, which is a defect", name, exc_info=caught)
    return MeshError(f"{type(caught).__name__} while taking an answer")
