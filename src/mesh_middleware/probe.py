"""
Keeps the cluster's default policy known.

Owns when it is asked: at the start, when the agent was away or lost its state, and every
`PROBE_EVERY` besides, since no blocking query tells of a change. How it is asked is in
`consul.defaults`.
"""

from __future__ import annotations

import asyncio
import random

from .belief import Belief
from .config import Settings
from .consul.client import ConsulClient
from .consul.defaults import ask_about_nobody, ask_self
from .consul.lookout import AgentReturnedError
from .following import Follower, wait_at_most

NAME = "default policy"
PROBE_EVERY = 60.0
"""Seconds between probes of the default policy."""


class DefaultProbe:
    """
    The probe of one mesh.

    Args:
        settings: may fix the default policy; then nothing is asked.
        client: the agent.
        follower: tells trouble with it.
        belief: takes what is found.
        joined: set once there is a leaf, in whose name may be asked.
    """

    def __init__(
        self,
        settings: Settings,
        client: ConsulClient,
        follower: Follower,
        belief: Belief,
        joined: asyncio.Event,
    ) -> None:
        self._fixed = settings.default_policy
        self._client, self._follower, self._belief = client, follower, belief
        self._joined = joined
        self._now = asyncio.Event()

    def soon(self) -> None:
        """Ask without waiting for the next turn."""
        self._now.set()

    async def run(self) -> None:
        """Ask again and again, for ever; or once, where the settings know."""
        health = self._follower.health
        if self._fixed is not None:
            self._belief.take_default(self._fixed == "allow")
            health.progress(NAME)
            health.rest(NAME)
            await asyncio.Event().wait()
        failures = 0
        while True:
            self._now.clear()
            health.rest(NAME)  # each question has a term of its own, and the leaf may take long
            try:
                found = await self._follower.lookout.attempt(self._discover())
                self._belief.take_default(found)
                self._follower.well(NAME)
                # A thousand apps that were started together do not ask together for ever.
                failures, pause = 0, PROBE_EVERY * random.uniform(0.9, 1.1)
            except AgentReturnedError:
                pause = 0.0
            except Exception as caught:
                # The last verdict stays: an agent that is away has not changed its policy.
                failures += 1
                error = self._follower.trouble(NAME, caught)
                pause = self._follower.backoff(failures, error)
            else:
                health.progress(NAME)
            health.expect(NAME, pause)
            await wait_at_most(self._now, pause)

    async def _discover(self) -> bool | None:
        default = await ask_self(self._client)
        if default is not None:
            return default
        await self._joined.wait()
        leaf = self._belief.snapshot.leaf
        assert leaf is not None
        default = await ask_about_nobody(self._client, leaf.id)
        if default is None:
            self._belief.note(
                "default_unknown",
                "the default policy cannot be learnt (agent:read is missing, and a wildcard "
                "intention answers for it); requests that need it are denied; set default_policy",
            )
        return default
