"""
Keeps the registration alive: heartbeats while the process lives, and the end of it.

Owns the rhythm, and what the check says of us. How an instance is registered, and by which process
of several, is in `registration`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

from .belief import Belief
from .config import Settings
from .consul.client import ConsulClient
from .consul.lookout import AgentReturnedError
from .exceptions import InstanceTakenError
from .following import Follower, wait_at_most
from .registration import BEATS_PER_TTL, OwnerLock, Registration

_log = logging.getLogger("mesh_middleware.registration")

TAKEOVER_EVERY = 1.0
"""Seconds between attempts of a worker that is not the owner to become it."""
BEAT_TERM = 60.0
"""Seconds that one heartbeat takes at most: some questions, each with a term of its own."""
LEAVE_TIMEOUT = 3.0
"""Longest time in seconds that turning critical and deregistering take together."""


class Keeper:
    """
    Keeps one instance registered, if the settings want that at all.

    Args:
        settings: what is registered.
        client: the agent.
        follower: tells trouble with it.
        belief: what the check says is made of it; those who wait for it hear of registrations.
        told: called with ``True`` after registering, with ``False`` after deregistering.
        now: this moment, aware UTC.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        follower: Follower,
        belief: Belief,
        told: Callable[[bool], None],
        now: Callable[[], datetime],
    ) -> None:
        self.registered = False
        self.hands_over: Callable[[], bool] = lambda: False
        self._settings, self._follower, self._belief = settings, follower, belief
        self._told, self._now = told, now
        self._beat_now = asyncio.Event()
        self._said: tuple[str, str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._registration: Registration | None = None
        if settings.register and settings.port:
            place = f"{settings.address}\n{settings.port}"
            lock = OwnerLock(settings.agent, settings.instance_id, place=place)
            self._registration = Registration(settings, client, lock, self._tell)

    def start(self, spawn: Callable[..., asyncio.Task[None]]) -> None:
        """Begin, on the running loop."""
        if self._registration is not None:
            self._task = spawn("registration", partial(self._keep, self._registration))

    def beat_soon(self) -> None:
        """Report, and register if need be, without waiting for the next turn."""
        self._beat_now.set()

    def changed(self) -> None:
        """The snapshot changed: report at once what the check has to say otherwise now."""
        if self._registration is not None and self._health() != self._said:
            self._beat_now.set()

    def leave(self, *, hand_over: bool = False) -> asyncio.Task[None]:
        """
        Turn the check critical and deregister, for good; begun once, whoever asks.

        Args:
            hand_over: another process goes on in this one's place: only let go.
        """
        # A task of its own, which the end of all others does not cut short between turning critical
        # and deregistering.
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave(hand_over))
        return self._leaving

    async def _leave(self, hand_over: bool) -> None:
        if self._registration is None:
            return
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT):
                await self._registration.end(hand_over=hand_over)
        except TimeoutError:
            _log.warning(
                "deregistration of %s: no answer within %g s; its check turns critical by itself",
                self._settings.instance_id,
                LEAVE_TIMEOUT,
            )

    async def _keep(self, registration: Registration) -> None:
        failures = 0
        while True:
            self._beat_now.clear()
            self._follower.health.expect("registration", BEAT_TERM)
            try:
                health = self._health()
                await self._follower.lookout.attempt(registration.beat(*health))
                self._said = health
                self._follower.well("registration")
                failures = 0
                pause = self._settings.check_ttl / BEATS_PER_TTL
                if not registration.owner:
                    pause = min(pause, TAKEOVER_EVERY)
            except AgentReturnedError:
                pause = 0.0
            except InstanceTakenError as taken:
                self._follower.report("registration", taken.code, str(taken))
                failures, pause = 0, self._settings.check_ttl
            except Exception as caught:
                failures += 1
                error = self._follower.trouble("registration", caught)
                pause = self._follower.backoff(failures, error)
            self._follower.health.progress("registration")
            self._follower.health.expect("registration", pause)
            await wait_at_most(self._beat_now, pause)

    def _tell(self, registered: bool) -> None:
        self.registered = registered
        self._told(registered)
        self._belief.announce()

    def _health(self) -> tuple[str, str]:
        snapshot = self._belief.snapshot
        if snapshot.leaf is None or snapshot.roots is None:
            return "critical", "no leaf or roots yet"
        if self._now() > snapshot.leaf.not_after:
            return "critical", f"the leaf expired {snapshot.leaf.not_after:%FT%TZ}"
        if snapshot.policy is None:
            return "critical", "no policy yet"
        if snapshot.refused:
            return "critical", "OpenSSL refuses the leaf under the roots of the mesh"
        if stalled := sorted(self._follower.health.troubles()):
            return "critical", f"watches that ended or stand still: {', '.join(stalled)}"
        return "passing", f"ready; leaf valid until {snapshot.leaf.not_after:%FT%TZ}"
