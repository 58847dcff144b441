"""
The watcher: one daemon thread with an event loop, one task per blocking query.

Owns the life of everything that talks to the agent, and the watches on roots, leaf, intentions and
upstreams. Hands answers to `belief`; decides nothing itself. The default policy is `probe`'s, the
registration `keeper`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import threading
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .belief import SECOND_LOOK, Belief
from .config import Settings, near_misses
from .consul import watch, wire
from .consul.client import Answer, ConsulClient
from .consul.intentions import parse_match
from .consul.rereading import MatchReader
from .entries import EntryWatch
from .exceptions import AgentAnswerError, MeshError
from .following import Follower, wait_at_most
from .intentions import Intention
from .keeper import LEAVE_TIMEOUT, Keeper
from .plugins import Plugins
from .probe import DefaultProbe
from .rhythm import USUAL, Rhythm
from .snapshot import Conditions
from .supervision import ENDED, TaskHealth, supervise

if TYPE_CHECKING:
    import httpx

    from .keepsake import Keepsake
    from .outbound import Outbound
    from .upstreams import UpstreamWatch

_log = logging.getLogger("mesh_middleware.watch")

SWEEP_DELAY = 0.3
"""Seconds from a change until long-lived requests are judged anew: ordinary ones are done then."""
KEEP_EVERY = 3600.0
"""Seconds after which the last known good is kept anew, though nothing has changed."""
SWEEP = "sweep"
"""Name of the task that looks at the clock now and then."""
TASKS_END = 1.0
"""Seconds that cancelled watches have to end."""


class Watcher:
    """
    The thread that keeps one mesh informed.

    Args:
        settings: agent, service and rhythm.
        belief: takes the answers.
        plugins: told of registrations, asked for upstreams.
        transport: carries the requests to the agent; a network transport unless given.
        now: this moment, aware UTC.
        swept: called `SWEEP_DELAY` after a change, and now and then without one.
        rhythm: how long is waited for what.

    Raises:
        ConfigError: a file that the settings name cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        belief: Belief,
        plugins: Plugins,
        transport: httpx.AsyncBaseTransport | None,
        now: Callable[[], datetime],
        swept: Callable[[], None] = lambda: None,
        rhythm: Rhythm = USUAL,
    ) -> None:
        self._settings = settings
        self._belief = belief
        self._plugins = plugins
        self._client = ConsulClient(settings, transport, rhythm)
        self._now = now
        self._swept, self._rhythm = swept, rhythm
        self._reader, self._unsure = MatchReader(settings.service), False
        self._told_domain = ""
        self._keepsake = open_keepsake(settings)
        self.health = TaskHealth(count=belief.count)
        self.follower = Follower(
            settings,
            self._client,
            now,
            lambda: belief.snapshot.joined,
            self._recovered,
            belief.note,
            belief.count,
            rhythm=rhythm,
            health=self.health,
        )
        self._entries = EntryWatch(
            settings.service,
            self._client,
            self.follower,
            self._take_entries,
            belief.note,
            self._spawn,
            rhythm=rhythm,
        )
        self._outbound: Outbound | None = None
        self._defaults: object = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = threading.Event()
        self._stop, self._joined = asyncio.Event(), asyncio.Event()
        self._changed, self._keep_now = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._probe = DefaultProbe(settings, self._client, self.follower, belief, self._joined)
        self.keeper = Keeper(
            settings,
            self._client,
            self.follower,
            belief,
            lambda registered: plugins.registration(settings.instance_id, registered),
            now,
        )
        self._started = False
        self._thread = threading.Thread(target=self._run, name="mesh_middleware", daemon=True)

    def start(self) -> None:
        """Start the thread and wait until its loop runs; what was kept is believed at once."""
        for miss in near_misses(os.environ):
            _log.warning("%s", miss)
        if self._keepsake is not None:
            try:
                kept = self._keepsake.load(self._now().timestamp())
                self._entries.restore(kept.entries)
                self._belief.restore(kept)
                self._belief.note("keepsake_restored", "serving from the last known good")
            except MeshError as error:
                self._belief.note("keepsake_refused", str(error))
        self._thread.start()
        self._running.wait()
        self._started = True

    def close(self) -> None:
        """Deregister, end every watch, and join the thread; within `LEAVE_TIMEOUT` or so."""
        if self._loop is None or not self._thread.is_alive():
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(LEAVE_TIMEOUT + TASKS_END)

    def troubles(self) -> dict[str, str]:
        """What is wrong with the watches themselves, by name; from any thread."""
        if self._started and not self._thread.is_alive():
            return {"watcher": f"{ENDED}: the thread of the watcher has ended"}
        return self.health.troubles()

    def follow(self, upstream: UpstreamWatch) -> None:
        """Keep *upstream* informed from now on."""
        # A service that calls nobody does not pay for it; and who does, loads it in its own thread:
        # the watcher's has leaf and policy to keep.
        from .outbound import Outbound

        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended, and all watches with it
            self._loop.call_soon_threadsafe(self._follow_now, upstream, Outbound)

    def _follow_now(self, upstream: UpstreamWatch, outbound: type[Outbound]) -> None:
        if self._outbound is None:
            self._outbound = outbound(
                self.follower,
                self._belief,
                self._plugins,
                self._spawn,
                self._joined,
                self._settings.locality,
            )
            self._outbound.take_defaults(self._defaults)
        self._outbound.follow(upstream)

    def leave(self, upstream: UpstreamWatch) -> None:
        """Keep *upstream* informed no more. From any thread."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # as above
            self._loop.call_soon_threadsafe(self._leave_now, upstream)

    def _leave_now(self, upstream: UpstreamWatch) -> None:
        if self._outbound is not None:
            self._outbound.leave(upstream)

    def withdraw(self) -> None:
        """Turn the check critical and deregister, for good; everything else goes on."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.keeper.leave)

    def refresh_keys(self) -> None:
        """A token was signed by a key that nobody knows: read keys again soon. From any thread."""
        self._entries.refresh_keys()

    def poke(self) -> None:
        """The snapshot changed, on the watcher's own thread: those who go by it look again."""
        self.keeper.changed()
        self._changed.set()
        self._keep_now.set()
        if self._belief.snapshot.joined:
            self._joined.set()
        self._entries.want(self._belief.snapshot.intentions)
        if self._outbound is not None:
            self._outbound.follow_domain(self._belief.trust_domain)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except RuntimeError as error:
            # All is done. Python 3.12 would only like a thread, to wait for those that looked up
            # names, and begins none at the end of the process.
            if "interpreter shutdown" not in str(error):
                raise
        finally:
            self._running.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running.set()
        # In this order: the question for intentions, which waits for the entries, goes out before
        # the leaf is judged; and a leaf that comes before the roots makes one context, not two.
        self._entries.start()
        self._entries.want(self._belief.snapshot.intentions)
        self._spawn("leaf", self._watch_leaf)
        self._spawn("roots", self._watch_roots)
        self._spawn("intentions", self._watch_intentions)
        self._spawn("agent", self.follower.scout)
        self._spawn("default policy", self._probe.run)
        self._spawn(SWEEP, self._sweep)
        if self._keepsake is not None:
            self._spawn("sealed file", partial(self._keep, self._keepsake))
        self.keeper.start(self._spawn)
        await self._stop.wait()
        await self._end()

    async def _end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TASKS_END)
        await self.keeper.leave(hand_over=self.keeper.hands_over())
        await self._client.close()

    def _spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(supervise(name, work, self.health))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the watches ---------------------------------------------------------------------------

    async def _watch_roots(self) -> None:
        def take(answer: Answer, regressed: bool) -> None:
            self._after_regress(regressed)
            roots = wire.parse_roots(answer.body)
            self._heard_of(roots.trust_domain)
            _demand_taken(self._belief.take_roots(roots))

        # The canary: agents answer it from memory. Not all processes together.
        longest = self._rhythm.canary * random.uniform(0.8, 1.2)
        await self.follower.watch("roots", wire.roots_question(), take, longest=longest)

    async def _watch_leaf(self) -> None:
        def take(answer: Answer, regressed: bool) -> None:
            pair = wire.parse_leaf(answer.body)
            self._heard_of(pair.leaf.id.trust_domain)
            _demand_taken(self._belief.take_leaf(pair))

        await self.follower.watch("leaf", wire.leaf_question(self._settings.service), take)

    async def _watch_intentions(self) -> None:
        # Under which protocol and normalization they are judged has to be known first.
        self.health.rest("intentions")
        await self._entries.told.wait()
        question = wire.match_question(self._settings.service)

        async def ask(cursor: watch.Cursor) -> Answer:
            answer = await self._client.ask(question, index=cursor.asked, wait=cursor.wait)
            return answer if answer.index else await self._index_from_list(question, answer)

        async def take(answer: Answer, regressed: bool) -> None:
            self._after_regress(regressed)
            if self._belief.snapshot.intentions is None:
                await self._entries.prepare(self._parse_intentions(answer))
            doubtful = regressed or self._unsure
            while not self._take_intentions(answer, doubtful):
                self.health.expect("intentions", SECOND_LOOK + self._rhythm.answer_timeout)
                await asyncio.sleep(SECOND_LOOK)
                answer, doubtful = await self._client.ask(question), True
            self._unsure = False

        await self.follower.follow("intentions", ask, take)

    def _take_intentions(self, answer: Answer, regressed: bool) -> bool:
        told = self._parse_intentions(answer)
        return self._belief.take_intentions(told, regressed=regressed, body=answer.body)

    def _parse_intentions(self, answer: Answer) -> tuple[Intention, ...]:
        if isinstance(answer.body, bytes):
            return self._reader.read(answer.body)
        return parse_match(answer.body, self._settings.service)

    async def _index_from_list(self, question: wire.Question, answer: Answer) -> Answer:
        """
        Complete an answer of an agent whose match has no index (Consul 1.8).

        The list's index serves: the match blocks on it. What was matched before the list was read
        may be older than its index, so it is matched again, unless the agent has no index at all.
        """
        # Should the list not be told, it stays unknown which index the denies had that were taken:
        # whether the next answer's is lower cannot be seen then.
        before, self._unsure = self._unsure, True
        self._belief.take_stricter(self._parse_intentions(answer), answer.body)
        index = (await self._client.ask(wire.intentions_question())).index
        again = await self._client.ask(question)
        self._unsure = before
        return Answer(again.status, index, again.body, again.headers)

    def _take_entries(self, conditions: Conditions, kept: Any) -> None:
        self._belief.take_conditions(conditions, kept)
        self._defaults = kept["entries"].get("service-defaults")
        if self._outbound is not None:
            self._outbound.take_defaults(self._defaults)

    async def _keep(self, keepsake: Keepsake) -> None:
        while True:
            self.health.rest("sealed file")
            await wait_at_most(self._keep_now, KEEP_EVERY)
            self._keep_now.clear()
            self.health.expect("sealed file", 0.0)
            kept = self._belief.keep()
            # Its age says when it was last known to be true: not while the agent is away.
            if kept is None or self.follower.troubles:
                continue
            try:
                await asyncio.to_thread(keepsake.save, kept, self._now().timestamp())
            except MeshError as error:
                self._belief.note("keepsake_not_saved", str(error))
            self.health.progress("sealed file")

    async def _sweep(self) -> None:
        while True:
            # It comes every few seconds whatever happens: so it also tells that the loop turns.
            self.health.expect(SWEEP, self._rhythm.sweep_every + SWEEP_DELAY)
            if await wait_at_most(self._changed, self._rhythm.sweep_every):
                await asyncio.sleep(SWEEP_DELAY)
            self._changed.clear()
            self._belief.reconsider()
            self._swept()
            self.health.progress(SWEEP)

    def _after_regress(self, regressed: bool) -> None:
        if regressed:
            self._belief.note("index_regressed", "the agent's index went backwards; starting over")
            self._probe.soon()
            self.follower.lookout.renew()

    def _heard_of(self, trust_domain: str) -> None:
        if self._told_domain not in ("", trust_domain):
            self.follower.lookout.renew()
        self._told_domain = trust_domain

    def _recovered(self) -> None:
        self._probe.soon()
        self.keeper.beat_soon()


def _demand_taken(why_not: str) -> None:
    # Held questions answer changes only: a right answer behind a wrong one of the same index would
    # not come before the wait ends. As a failure it is asked for again, from the start.
    if why_not:
        raise AgentAnswerError(why_not)


def open_keepsake(settings: Settings) -> Keepsake | None:
    """
    The sealed file that the settings name, if they do; touches no disk.

    Raises:
        ConfigError: its key is none.
    """
    if not settings.keep_file:
        return None
    from .keepsake import Keepsake  # and the ciphers it takes

    purpose = f"{settings.service}\n{settings.agent}"
    return Keepsake(Path(settings.keep_file), settings.keep_key, purpose, settings.keep_max_age)
