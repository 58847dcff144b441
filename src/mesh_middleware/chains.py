"""
Follows the discovery chains of the upstreams that have one, and the places these lead to.

Owns three watches on lists of config entries, which tell who has a chain at all; one blocking query
per upstream that has one; and one per place that is not an upstream itself. Decides nothing: each
change goes to the upstream's `UpstreamWatch`. Lives on the watcher's loop.

Theory. Most upstreams have no router, splitter or resolver, and a blocking query each to learn that
again and again would double what the agent holds for us. The lists cost three. An upstream whose
name is in none has the default chain, which is all of its instances. Until the lists have answered
nobody is called, since nobody knows whether that would be the right way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from .consul.chains import chain_question, list_question, parse_names
from .consul.client import Answer
from .consul.shifts import Shift
from .exceptions import AgentRefusedError, MeshError
from .following import Follower
from .resolve import Upstream
from .routing import Locality, Manners, Place
from .routing.entries import KINDS, Entry, read_manners
from .routing.reading import parse_chain
from .supervision import Spawn
from .upstreams import UpstreamWatch

_log = logging.getLogger("mesh_middleware.watch")


class ChainWatch:
    """
    The chains of one mesh.

    Args:
        follower: keeps asking.
        spawn: starts a task of the watcher.
        follow: keeps the instances of a place told that nobody calls by its own name.
        leave: ends that.
        locality: where we stand, as the setting says it; empty when it does not.

    Attributes:
        shift: places at the agent that all questions about upstreams share.
    """

    def __init__(
        self,
        follower: Follower,
        spawn: Spawn,
        follow: Callable[[UpstreamWatch], None],
        leave: Callable[[UpstreamWatch], None],
        locality: str = "",
    ) -> None:
        self._plain = Manners(locality=Locality(*locality.split("/")) if locality else None)
        self._follower, self._spawn, self._follow, self._leave = follower, spawn, follow, leave
        self._upstreams: list[UpstreamWatch] = []
        self._names: dict[str, frozenset[str] | None] = {}
        self._tasks: dict[UpstreamWatch, asyncio.Task[None]] = {}
        self._places: dict[Place, UpstreamWatch] = {}
        self._defaults: Entry | None = None
        self._said: set[str] = set()
        self._started = False
        self.shift = Shift()

    def add(self, upstream: UpstreamWatch) -> None:
        """Follow the chain of *upstream* from now on; it waits for its chain."""
        upstream.await_chain()
        self._upstreams.append(upstream)
        upstream.behave(self._plain)
        self._behave(upstream)
        if not self._started:
            self._started = True  # a process that calls nobody asks nothing
            for kind in KINDS:
                self._spawn(kind, partial(self._watch_kind, kind))
        self._decide(upstream)

    def remove(self, upstream: UpstreamWatch) -> None:
        """Follow the chain of *upstream* no more, nor places that no other leads to."""
        if upstream in self._upstreams:
            self._upstreams.remove(upstream)
        self._end_chain(upstream)
        for place, watch in list(self._places.items()):
            if watch.untell(upstream):
                del self._places[place]
                self._leave(watch)

    def take_defaults(self, entry: object) -> None:
        """Take our own service-defaults: what they say about upstreams."""
        entry = entry if isinstance(entry, dict) else None
        if entry != self._defaults:
            self._defaults = entry
            for upstream in self._upstreams:
                self._behave(upstream)

    def _behave(self, upstream: UpstreamWatch) -> None:
        try:
            manners = read_manners(self._defaults, upstream.name, self._plain)
        except MeshError as error:
            self._say(f"service-defaults: UpstreamConfig cannot be read and has no effect: {error}")
            return
        upstream.behave(manners)

    # -- who has a chain -----------------------------------------------------------------------

    async def _watch_kind(self, kind: str) -> None:
        def take(answer: Answer, regressed: bool) -> None:
            self._told(kind, parse_names(answer.body) if answer.status == 200 else frozenset())

        def failed(error: MeshError) -> None:
            # Who may not read the list asks about each upstream instead.
            if isinstance(error, AgentRefusedError):
                self._told(kind, None)
            for upstream in self._upstreams:
                if upstream.endpoints is None:
                    upstream.fail(error)

        await self._follower.watch(kind, list_question(kind), take, failed)

    def _told(self, kind: str, names: frozenset[str] | None) -> None:
        if kind in self._names and self._names[kind] == names:
            return
        self._names[kind] = names
        for upstream in self._upstreams:
            self._decide(upstream)

    def _decide(self, upstream: UpstreamWatch) -> None:
        if len(self._names) < len(KINDS):
            return
        name = upstream.name.lower()
        chained = any(names is None or name in names for names in self._names.values())
        if chained and upstream not in self._tasks:
            self._tasks[upstream] = self._spawn(
                f"chain {upstream}", partial(self._watch_chain, upstream)
            )
        elif not chained:
            self._end_chain(upstream)
            upstream.take_chain(None)

    def _end_chain(self, upstream: UpstreamWatch) -> None:
        task = self._tasks.pop(upstream, None)
        if task is not None:
            task.cancel()
            self._follower.troubles.pop(f"chain {upstream}", None)

    # -- the chains ----------------------------------------------------------------------------

    async def _watch_chain(self, upstream: UpstreamWatch) -> None:
        question = chain_question(upstream.name, upstream.datacenter)

        def take(answer: Answer, regressed: bool) -> None:
            if answer.status == 404:
                upstream.take_chain(None)  # an agent without chains
                return
            chain = parse_chain(answer.body, own_datacenter=_compiled_in(answer.body, upstream))
            for place in chain.places():
                self._have(place, upstream)
            upstream.take_chain(chain)
            for what in chain.unhonoured:
                self._say(f"{upstream}: {what} is set and has no effect here")
            for what in upstream.course.flaws():
                self._say(f"{upstream}: {what}")

        name = f"chain {upstream}"
        await self._follower.watch(name, question, take, upstream.fail, self.shift)

    def _have(self, place: Place, upstream: UpstreamWatch) -> None:
        if place == upstream.course.place:
            return
        watch = self._places.get(place)
        if watch is None:
            watch = self._places[place] = UpstreamWatch(Upstream(place.service, place.datacenter))
            self._follow(watch)
        watch.tell(upstream)

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.warning("%s", what)


def _compiled_in(body: object, upstream: UpstreamWatch) -> str | None:
    """The datacenter whose name needs not be said when asking for instances."""
    if upstream.datacenter is not None or not isinstance(body, dict):
        return None
    chain = body.get("Chain")
    return chain.get("Datacenter") if isinstance(chain, dict) else None
