"""
Keeps upstreams informed: their instances, by one blocking query each, and their chains.

Owns which upstreams of one mesh are followed, and what is believed of an answer that says "none".
Made with the first upstream that anybody asks for: a service that calls nobody loads nothing of
this. Lives on the watcher's loop.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from .belief import Belief
from .chains import ChainWatch
from .consul import watch
from .consul.client import Answer
from .exceptions import MeshError
from .following import Follower
from .plugins import Plugins
from .supervision import Spawn
from .upstreams import UpstreamWatch

_log = logging.getLogger("mesh_middleware.watch")

SHAKEN_FOR = 30.0
"""Seconds after the agent was away in which "no instance" is not believed: two TTLs of ours."""
CRITICAL_FOR = 2.0
"""Seconds in which it is not believed that all instances failed at once: an agent that was paused
for longer than their TTL says so before their heartbeats reach it again, which takes about one."""


class Outbound:
    """
    The upstreams of one mesh.

    Args:
        follower: keeps asking.
        belief: knows the trust domain that their identities are in.
        plugins: asked first where an upstream lives.
        spawn: starts a task of the watcher.
        joined: set once the trust domain is known.
        locality: where we stand, as the setting says it; empty when it does not.
    """

    def __init__(
        self,
        follower: Follower,
        belief: Belief,
        plugins: Plugins,
        spawn: Spawn,
        joined: asyncio.Event,
        locality: str = "",
    ) -> None:
        self._follower, self._belief, self._plugins = follower, belief, plugins
        self._spawn, self._joined = spawn, joined
        self._upstreams: list[UpstreamWatch] = []
        self._tasks: dict[UpstreamWatch, asyncio.Task[None]] = {}
        self._chains = ChainWatch(
            follower, spawn, lambda place: self.follow(place, chained=False), self.leave, locality
        )

    def follow(self, upstream: UpstreamWatch, *, chained: bool = True) -> None:
        """Keep *upstream* informed from now on; *chained* unless a chain led to it."""
        self._tasks[upstream] = self._spawn(
            f"upstream {upstream}", partial(self._watch, upstream, chained)
        )

    def leave(self, upstream: UpstreamWatch) -> None:
        """Keep *upstream* informed no more, nor what only its chain led to."""
        task = self._tasks.pop(upstream, None)
        if task is None:
            return
        task.cancel()
        if upstream in self._upstreams:
            self._upstreams.remove(upstream)
        self._chains.remove(upstream)
        self._follower.troubles.pop(f"upstream {upstream}", None)

    def follow_domain(self, trust_domain: str | None) -> None:
        """Expect identities of *trust_domain* from now on."""
        for upstream in self._upstreams:
            upstream.follow_domain(trust_domain)

    def take_defaults(self, entry: object) -> None:
        """Take our own service-defaults: what they say about upstreams."""
        self._chains.take_defaults(entry)

    async def _watch(self, upstream: UpstreamWatch, chained: bool) -> None:
        loop = asyncio.get_running_loop()
        shaken_until = 0.0

        def take(answer: Answer, regressed: bool) -> None:
            shaken = regressed or loop.time() < shaken_until
            # A query that is not there is answered by a text.
            gone = upstream.kind == "query" and answer.status == 404
            body = None if gone else answer.body
            if not upstream.take(body, self._belief.trust_domain, shaken=shaken):
                patience = SHAKEN_FOR if shaken else CRITICAL_FOR
                loop.call_later(patience, upstream.concede, upstream.doubt)

        def failed(error: MeshError) -> None:
            nonlocal shaken_until
            shaken_until = loop.time() + SHAKEN_FOR
            upstream.fail(error)

        while True:
            if not self._ask_plugins(upstream):
                break
            await asyncio.sleep(watch.POLL_EVERY)
        self._upstreams.append(upstream)
        if chained and upstream.has_chain:
            self._chains.add(upstream)
        # The expected identities are in our trust domain, which the roots tell.
        await self._joined.wait()
        name, shift = f"upstream {upstream}", self._chains.shift
        await self._follower.watch(name, upstream.question, take, failed, shift)

    def _ask_plugins(self, upstream: UpstreamWatch) -> bool:
        if upstream.kind == "query":
            return False
        try:
            found = self._plugins.resolve(upstream.name, upstream.datacenter)
        except BaseException as error:  # of foreign code, in the watcher's thread
            _log.exception("a plugin failed in mesh_resolve")
            upstream.give((), f"a plugin failed in mesh_resolve: {type(error).__name__}")
            return True
        if found is None:
            return False
        upstream.give(tuple(found), "a plugin says there is no instance")
        return True
