"""
One counter, one number per topic, and who waits for which.

Owns Consul's notion of an index: every write raises the counter, a topic's index is the counter's
value at its last change, and no number ever goes down. Watchers of different event loops and
threads are woken at the write. Knows nothing of what the topics mean.

Source: Consul HTTP API, "Blocking Queries" (reference 1.4, 10.1).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from typing import Any


class Watch:
    """
    One blocked request: registered before it looks, so that no write between is missed.

    Args:
        index: where the topics change.
        topics: any of these wakes it.
    """

    def __init__(self, index: Index, topics: tuple[str, ...]) -> None:
        self._index = index
        self.topics = topics
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()

    def __enter__(self) -> Watch:
        self._index.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._index.discard(self)

    def rearm(self) -> None:
        """Forget past wake-ups; what is read after this is at least as new as they are."""
        if self._woken.done():
            self._woken = self._loop.create_future()

    def wake(self) -> None:
        """Wake the request, from any thread."""
        with contextlib.suppress(RuntimeError):  # its loop has been closed: nobody waits
            self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

    async def wait(self, gone: asyncio.Future[Any], seconds: float) -> None:
        """
        Wait for a wake-up, for *gone*, or for *seconds*, whichever comes first.

        Args:
            gone: done when the client has hung up.
        """
        await asyncio.wait(
            {self._woken, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )


class Index:
    """
    The counter and the topics' indexes.

    Args:
        start: first value; above 1, because clients read 0 and 1 as "no index".
    """

    def __init__(self, start: int = 10) -> None:
        self._lock = threading.Lock()
        self._counter = start
        self._base = start
        self._topics: dict[str, int] = {}
        self._watches: defaultdict[str, set[Watch]] = defaultdict(set)

    @property
    def counter(self) -> int:
        """The highest index given so far."""
        return self._counter

    def of(self, *topics: str) -> int:
        """The index of *topics* together: that of the latest change to any of them."""
        with self._lock:
            return max((self._topics.get(topic, self._base) for topic in topics), default=1)

    def reserve(self) -> int:
        """Raise the counter for a change that is about to be made; `touch` publishes it."""
        with self._lock:
            self._counter += 1
            return self._counter

    def touch(self, index: int, *topics: str) -> None:
        """Set the topics' index to the reserved *index* and wake who watches them."""
        with self._lock:
            for topic in topics:
                self._topics[topic] = max(index, self._topics.get(topic, 0))
            watches = self._watching(topics)
        for watch in watches:
            watch.wake()

    def poke(self, *topics: str) -> None:
        """Make the watchers of *topics* look again, though no index has changed."""
        with self._lock:
            watches = self._watching(topics)
        for watch in watches:
            watch.wake()

    def poke_all(self) -> None:
        """Make every watcher look again."""
        with self._lock:
            watches = self._watching(tuple(self._watches))
        for watch in watches:
            watch.wake()

    def _watching(self, topics: tuple[str, ...]) -> set[Watch]:
        return {watch for topic in topics for watch in self._watches.get(topic, ())}

    def add(self, watch: Watch) -> None:
        """Let *watch* be woken from now on."""
        with self._lock:
            for topic in watch.topics:
                self._watches[topic].add(watch)

    def discard(self, watch: Watch) -> None:
        """Undo `add`."""
        with self._lock:
            for topic in watch.topics:
                self._watches[topic].discard(watch)
                if not self._watches[topic]:
                    del self._watches[topic]

    @property
    def watching(self) -> int:
        """How many requests are blocked now."""
        with self._lock:
            return len({watch for watches in self._watches.values() for watch in watches})
