"""
Which upstreams one mesh watches, and until when.

Owns the table of watches, by name. A watch that nobody uses any more ends, so that a process which
calls names made of what its users type does not ask the agent about all of them for ever. Loaded
with the first upstream. Safe to use from several threads; a moment is always an argument.

Theory. A watch of an upstream that has instances is what calls live on while the agent is away, so
it ends late, never while the agent does not answer about it, and never to make room for another
name. One that knows no instance has nothing to lose. Whoever calls a name whose watch has ended
begins a new one, and waits for its first answer, as for the very first call. No call is asked or
slowed for this: the retry budget of an upstream knows when the last one began.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from .exceptions import NotReadyError, ResolveError
from .resolve import Upstream, UpstreamKind
from .upstreams import UpstreamWatch

IDLE_FOR = 1200.0
"""Seconds without a call after which an upstream is watched no more. Consul's agent keeps what it
was asked, and nobody asks again, for 3 days; it asks one server for all, and we ask it for each."""
UNKNOWN_FOR = 60.0
"""Seconds, where no instance is known: the name may be nobody's."""
MOST = 2048
"""Upstreams that are watched at once; the questions of so many take turns of 40 s."""


class Watched:
    """
    The watches of one mesh.

    Args:
        follow: keeps a watch informed from now on.
        leave: ends that.
        datacenter: where an upstream is looked up that names none; ``None`` is the agent's.
    """

    def __init__(
        self,
        follow: Callable[[UpstreamWatch], None],
        leave: Callable[[UpstreamWatch], None],
        datacenter: str | None = None,
    ) -> None:
        self._follow, self._leave, self._datacenter = follow, leave, datacenter
        self._watches: dict[Upstream, UpstreamWatch] = {}
        self._lock = threading.Lock()
        self._ended = ""

    @property
    def count(self) -> int:
        """How many upstreams are watched."""
        return len(self._watches)

    def find(self, upstream: Upstream | str, now: float) -> UpstreamWatch:
        """
        Tell the watch of *upstream*; one that is not there begins.

        Args:
            upstream: its name; a text is the name of a service. ``connect`` is another word for
                ``service``.
            now: this moment, in seconds that never go back.

        Raises:
            NotReadyError: they were ended.
            ResolveError: as many are watched as may, and all of them have instances.
        """
        if isinstance(upstream, str):
            upstream = Upstream(upstream)
        kind: UpstreamKind = "query" if upstream.kind == "query" else "service"
        where = upstream.datacenter or self._datacenter
        upstream = replace(upstream, datacenter=where, kind=kind)
        with self._lock:
            if self._ended:
                raise NotReadyError(f"{upstream}: {self._ended}")
            found = self._watches.get(upstream)
            if found is None:
                if len(self._watches) >= MOST:
                    self._make_room(upstream, now)
                found = self._watches[upstream] = UpstreamWatch(upstream)
                self._follow(found)
            found.touch(now)
        return found

    def sweep(self, now: float) -> None:
        """End the watches that nobody has used for long."""
        with self._lock:
            for upstream, watch in list(self._watches.items()):
                limit = IDLE_FOR if watch.endpoints else UNKNOWN_FOR
                # First what costs nothing to know.
                if now - watch.last_used >= limit and not watch.is_needed():
                    self._let_go(upstream, f"not called for {limit:.0f} s, and watched no more")

    def _make_room(self, wanted: Upstream, now: float) -> None:
        oldest = sorted(self._watches.items(), key=lambda each: each[1].last_used)
        for upstream, watch in oldest:
            if not watch.endpoints and not watch.is_needed():
                self._let_go(upstream, "watched no more: others were asked for")
                return
        raise ResolveError(
            f"{wanted}: {MOST} upstreams are watched already; are names made of what users send?"
        )

    def _let_go(self, upstream: Upstream, why: str) -> None:
        watch = self._watches.pop(upstream)
        watch.rest(why)
        self._leave(watch)

    def end(self, why: str) -> None:
        """End all, for good."""
        with self._lock:
            self._ended = why
            for watch in self._watches.values():
                watch.end(why)
