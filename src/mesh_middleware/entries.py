"""
Follows the config entries that say how this service is judged: protocol, normalization, tokens.

Owns one watch per entry, and the keys of jwt-providers that are read elsewhere: fetched ahead of
requests, again when they grow old, and early when a token was signed by a key that nobody knows.
Decides nothing: each change becomes one `Conditions`, handed on whole.

Source: reference 5.3, 5.6, 8.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .consul import wire
from .consul.client import Answer, ConsulClient
from .consul.conditions import parse_conditions
from .consul.watch import Cursor
from .exceptions import AgentAnswerError, AgentRefusedError, MeshError
from .following import Follower, wait_at_most
from .intentions import Intention
from .rhythm import USUAL, Rhythm
from .snapshot import Conditions
from .supervision import Spawn

if TYPE_CHECKING:
    import httpx

    from .consul.providers import KeySource
    from .intentions.jwt import KeySet

_log = logging.getLogger("mesh_middleware.watch")

PROVIDER = "jwt-provider"
UNKNOWN_EVERY = 60.0
"""Seconds between questions for a kind that the agent does not know: it may be replaced."""
PREPARE = 1.0
"""Seconds the first intentions wait for providers and keys, so that a start denies nobody."""

_TELL_PROTOCOL = ("service-defaults", "proxy-defaults")
"""Refused, they do not count as absent: that would mean tcp, on which no token is asked for."""


class EntryWatch:
    """
    The config entries of one service.

    Args:
        service: name of the service.
        client: asks the agent.
        follower: keeps asking.
        publish: takes the conditions, and what of them is to be kept, as JSON.
        note: is told, under a stable code, what people should know.
        spawn: starts a task of the watcher.
        transport: carries the questions for keys; a network transport unless given.
        rhythm: how often keys are read.
    """

    def __init__(
        self,
        service: str,
        client: ConsulClient,
        follower: Follower,
        publish: Callable[[Conditions, Any], None],
        note: Callable[[str, str], None],
        spawn: Spawn,
        transport: httpx.AsyncBaseTransport | None = None,
        rhythm: Rhythm = USUAL,
    ) -> None:
        self.told, self._changed = asyncio.Event(), asyncio.Event()
        self._client, self._follower = client, follower
        self._publish_it, self._note, self._spawn = publish, note, spawn
        self._transport, self._rhythm = transport, rhythm
        self._fixed = {
            "service-defaults": service,
            "proxy-defaults": "global",
            "mesh": "mesh",
        }
        self._missing = set(self._fixed)
        self._entries: dict[str, Any] = {}
        self._keys: dict[str, KeySet] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._seen: tuple[Intention, ...] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life ----------------------------------------------------------------------------------

    def restore(self, kept: Any) -> None:
        """
        Believe what was kept, until the agent tells.

        Raises:
            AgentAnswerError: it cannot be read.
        """
        if not kept:
            return
        from .intentions.jwt import read_keys

        try:
            self._entries = dict(kept["entries"])
            self._keys = {name: read_keys(text) for name, text in kept["keys"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise AgentAnswerError(f"kept entries: {type(error).__name__}") from None
        self._publish()

    def start(self) -> None:
        """Begin to watch, on the running loop."""
        self._loop = asyncio.get_running_loop()
        for kind, name in self._fixed.items():
            self._spawn(kind, partial(self._follow, kind, kind, name))

    def want(self, intentions: tuple[Intention, ...] | None) -> None:
        """Watch the providers that *intentions* name, and no others."""
        if self._loop is None or intentions is None or intentions is self._seen:
            return
        self._seen = intentions
        names = set(_providers(intentions))
        for name in names - set(self._watches):
            key = f"{PROVIDER} {name}"
            self._watches[name] = self._spawn(key, partial(self._follow, key, PROVIDER, name))
        dropped = set(self._watches) - names
        for name in dropped:
            self._watches.pop(name).cancel()
            self._follower.troubles.pop(f"{PROVIDER} {name}", None)
            self._entries.pop(f"{PROVIDER} {name}", None)
            self._keys.pop(name, None)
        if dropped and self.told.is_set():
            self._publish()

    async def prepare(self, intentions: tuple[Intention, ...]) -> None:
        """Have the providers and keys that *intentions* demand, if they come within `PREPARE`."""
        self.want(intentions)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PREPARE):
                while not self._prepared(set(_providers(intentions))):
                    self._changed.clear()
                    await self._changed.wait()

    def _prepared(self, names: set[str]) -> bool:
        known = all(f"{PROVIDER} {name}" in self._entries for name in names)
        return known and all(name in self._keys for name in self._fetches)

    def refresh_keys(self) -> None:
        """A token is signed by no key we know: read the keys again soon. From any thread."""
        if self._loop is not None and self._fetches and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._refresh_now)

    # -- entries -------------------------------------------------------------------------------

    async def _follow(self, key: str, kind: str, name: str) -> None:
        question = wire.entry_question(kind, name)

        async def ask(cursor: Cursor) -> Answer:
            return await self._client.ask(question, index=cursor.asked, wait=cursor.wait)

        async def take(answer: Answer, regressed: bool) -> None:
            found = answer.status == 200
            if found and not isinstance(answer.body, Mapping):
                raise AgentAnswerError(f"{key}: {wire.no_object(answer.body)}")
            self._take(key, answer.body if found else None)
            if not answer.index and question.nothing in str(answer.body):
                _log.info("this agent knows no %s entries: there are none", kind)
                self._follower.health.expect(key, UNKNOWN_EVERY)
                await asyncio.sleep(UNKNOWN_EVERY)

        def failed(error: MeshError) -> None:
            refused = isinstance(error, AgentRefusedError) and key not in self._entries
            if refused and kind not in _TELL_PROTOCOL:
                self._note("entry_refused", str(error))
                self._take(key, None)

        await self._follower.follow(key, ask, take, failed)

    def _take(self, key: str, entry: Any) -> None:
        if key in self._entries and self._entries[key] == entry:
            self._answered(key)
            return
        before = dict(self._entries)
        self._entries[key] = entry
        try:
            self._answered(key)
            if self.told.is_set():
                self._publish()
        except MeshError:
            self._entries = before
            raise

    def _answered(self, key: str) -> None:
        self._missing.discard(key)
        if not self._missing and not self.told.is_set():
            self._publish()
            self.told.set()

    def _publish(self) -> None:
        found = parse_conditions(self._entries, self._keys)
        if self._drop_keys(found.sources):
            found = parse_conditions(self._entries, self._keys)
        for name, flaw in found.unread.items():
            self._note("jwt_provider_unread", f"{name}: {flaw}")
        if self._loop is not None:
            for name, source in found.sources.items():
                self._fetch(name, source)
        kept = {
            "entries": dict(self._entries),
            "keys": {name: keys.text for name, keys in self._keys.items()},
        }
        self._publish_it(found.conditions, kept)
        self._changed.set()

    def _drop_keys(self, sources: Mapping[str, KeySource]) -> bool:
        """Forget keys of another address: they vouch for nothing. Tells whether there were any."""
        dropped = False
        for name, fetch in list(self._fetches.items()):
            if sources.get(name) != fetch.source:
                fetch.task.cancel()
                del self._fetches[name]
                dropped = self._keys.pop(name, None) is not None or dropped
        return dropped

    # -- keys ----------------------------------------------------------------------------------

    def _fetch(self, name: str, source: KeySource) -> None:
        if name in self._fetches:
            return
        early = asyncio.Event()
        task = self._spawn(f"keys {name}", partial(self._keep_keys, name, source, early))
        self._fetches[name] = _Fetch(source, early, task)

    async def _keep_keys(self, name: str, source: KeySource, early: asyncio.Event) -> None:
        from .jwks import KeysError, fetch_keys  # with the first provider whose keys are elsewhere

        failures, health, task = 0, self._follower.health, f"keys {name}"
        while True:
            health.expect(task, source.timeout)
            try:
                keys = await fetch_keys(source, self._transport)
            except KeysError as error:
                failures += 1
                self._note("jwt_keys_unread", f"{name}: {error}")
                first, most = self._rhythm.keys_retry, self._rhythm.keys_retry_most
                longest = min(most, first * 2.0 ** min(failures - 1, 10))
                pause = longest * (0.5 + random.random() / 2)
            else:
                failures, pause = 0, source.every
                if self._keys.get(name) != keys:
                    self._keys[name] = keys
                    self._publish()
                health.progress(task)
            health.expect(task, pause)
            await self._until(pause, early)

    async def _until(self, pause: float, early: asyncio.Event) -> None:
        """Wait *pause* seconds, or until keys are wanted early; never less than is decent."""
        decent = min(pause, self._rhythm.keys_every)
        await asyncio.sleep(decent)
        await wait_at_most(early, pause - decent)
        early.clear()

    def _refresh_now(self) -> None:
        for fetch in self._fetches.values():
            fetch.early.set()


class _Fetch:
    """The task that keeps one provider's keys."""

    __slots__ = ("early", "source", "task")

    def __init__(self, source: KeySource, early: asyncio.Event, task: asyncio.Task[None]) -> None:
        self.source, self.early, self.task = source, early, task


def _providers(intentions: Iterable[Intention]) -> Iterable[str]:
    for intention in intentions:
        for demand in intention.jwt:
            yield demand.provider
        for permission in intention.permissions:
            for demand in permission.jwt:
                yield demand.provider
