"""
One upstream as the watcher sees it: its instances, and who waits for them.

Owns the last known instances of an upstream, its own and those of other places its chain leads to.
They stay when the agent goes away. A chain holds from the moment all its places are told, so that
no call goes where nobody is known yet.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import anyio.to_thread

from .consul import wire
from .exceptions import MeshError, NoHealthyInstanceError, NotReadyError
from .resolve import Endpoint, Upstream, parse_query
from .routing.chain import Chain, Place
from .routing.course import Course, Manners, UpstreamState
from .routing.instances import Instance, parse_instances

_NONE = "no healthy instance that speaks Connect is registered"
_NO_QUERY = "there is no prepared query of that name"


class UpstreamWatch:
    """
    The instances of one upstream, kept by a blocking query.

    Args:
        upstream: who is called.

    Attributes:
        course: which instance a call goes to, and what became of the calls.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.name, self.datacenter, self.kind = upstream.name, upstream.datacenter, upstream.kind
        self._upstream = upstream
        self.course = Course(self.name, self.datacenter)
        self.endpoints: tuple[Endpoint, ...] | None = None
        self._instances: tuple[Instance, ...] | None = None
        self._awaited = False
        self._waiting: Chain | None = None
        self._listeners: list[UpstreamWatch] = []
        self._emptied, self._doubt, self._doubted = False, 0, False
        self._body: object = None
        self._domain: str | None = None
        self._why = "the agent has not answered yet"
        self._changed = threading.Condition()
        self._used, self._awaiting, self._failing = -math.inf, 0, False
        self.rests = False
        """Whether nobody watches any more because nobody called; the next call watches anew."""

    def __str__(self) -> str:
        return f"{self.name}{self._upstream.where}"

    @property
    def question(self) -> wire.Question:
        """What the agent is asked."""
        if self.kind == "query":
            return wire.query_question(self.name, self.datacenter)
        scopes = {"namespace": self._upstream.namespace, "partition": self._upstream.partition}
        return wire.health_question(self.name, self.datacenter, **scopes)

    @property
    def has_chain(self) -> bool:
        """Whether config entries may speak of it: prepared queries and other scopes have none."""
        scope = (self._upstream.namespace, self._upstream.partition)
        return self.kind != "query" and scope == ("default", "default")

    @property
    def why(self) -> str:
        """What is in the way, where there is no instance or no answer."""
        return self._why

    @property
    def state(self) -> UpstreamState:
        """How the upstream is: its instances, who is ejected, the calls under way."""
        now = time.monotonic()
        self.touch(now)
        return self.course.look(now)

    def touch(self, now: float) -> None:
        """Note that somebody has a use for it."""
        self._used = max(self._used, now)

    @property
    def last_used(self) -> float:
        """The moment when somebody last had a use for it, or a call began, to the second."""
        return max(self._used, self.course.last_call)

    def is_needed(self) -> bool:
        """Whether calls are under way, or waited for, or nobody else would tell its instances."""
        if self._awaiting or (self._failing and self.endpoints):
            return True
        return self.course.look(0.0).outstanding > 0

    def wait(self, timeout: float) -> tuple[Endpoint, ...]:
        """
        Return the instances, waiting for the first answer if there is none yet.

        Args:
            timeout: seconds to wait at most.

        Raises:
            NotReadyError: no answer came in that time.
            NoHealthyInstanceError: there is none.
        """
        if self.endpoints is None:
            with self._changed:
                self._awaiting += 1
                try:
                    self._changed.wait_for(lambda: self.endpoints is not None, timeout)
                finally:
                    self._awaiting -= 1
        if self.endpoints is None:
            raise NotReadyError(f"{self}: {self._why}")
        if not self.endpoints:
            raise NoHealthyInstanceError(f"{self}: {self._why}")
        return self.endpoints

    def wait_for(self, condition: Callable[[UpstreamState], bool], timeout: float) -> bool:
        """
        Block until what the agent tells makes *condition* true of `state`.

        Args:
            condition: asked at once, and after every change the agent tells.
            timeout: seconds to wait at most.

        Returns:
            Whether it came true in that time.
        """
        with self._changed:
            return self._changed.wait_for(lambda: condition(self.state), timeout)

    async def wait_async(self, within: float) -> tuple[Endpoint, ...]:
        """Do as `wait`, for *within* seconds at most, without blocking the event loop."""
        if self.endpoints:
            return self.endpoints
        return await anyio.to_thread.run_sync(self.wait, within)

    def take(self, body: object, trust_domain: str | None, *, shaken: bool = False) -> bool:
        """
        Take an answer of the agent.

        Args:
            body: the answer, parsed as JSON; ``None`` where there is no such prepared query.
            trust_domain: of the roots.
            shaken: the agent was away until a moment ago. One that restarts tells every instance
                as failing until it has heard of them again; "none" is not believed then.

        Returns:
            ``False`` when the answer was "none", or all of them critical at once, and the old
            instances stay, until `concede`.

        Raises:
            AgentAnswerError: its shape breaks the API; the last instances stay.
        """
        if trust_domain is None:
            raise NotReadyError("the trust domain is not known yet")
        found = self._parse(body, trust_domain)
        self._failing = False
        self._body, self._domain = body, trust_domain
        self._emptied = not found
        # A doubt ends with the first answer that names somebody: the next one has its own time.
        self._doubt += bool(found)
        # All still listed, and all critical at once: see `outbound.CRITICAL_FOR`.
        if self._emptied and (shaken or self._lists(body)) and self._instances:
            self._doubted = True
            return False
        self._learn(found, _NO_QUERY if body is None else _NONE, anew=self._doubted)
        return True

    def follow_domain(self, trust_domain: str | None) -> None:
        """Expect the identities of *trust_domain* from now on; the instances are the same."""
        if self._domain is not None and trust_domain not in (None, self._domain):
            self.take(self._body, trust_domain, shaken=True)

    def _lists(self, body: object) -> bool:
        """Whether an answer names instances at all, well or not."""
        return self.kind != "query" and bool(body)

    def _parse(self, body: object, trust_domain: str) -> tuple[Instance, ...]:
        if self.kind == "query":
            if body is None:
                return ()
            return tuple(map(Instance, parse_query(body, trust_domain=trust_domain)))
        return parse_instances(body, trust_domain=trust_domain, service=self.name)

    def end(self, why: str) -> None:
        """Nobody watches any more: nothing is known, so that nobody goes by what was."""
        with self._changed:
            self._awaited, self._why = True, why
            self._emptied = False  # nothing is doubted any more, and nothing conceded later
            self.endpoints = self._instances = None
            self._changed.notify_all()

    def rest(self, why: str) -> None:
        """Nobody watches any more, since nobody calls; a call that begins just now still may."""
        with self._changed:
            self.rests = True
            self.end(why)

    @property
    def doubt(self) -> int:
        """Which doubt it is that `take` told of; another one after the agent named somebody."""
        return self._doubt

    def concede(self, doubt: int) -> None:
        """Believe that there is no instance, if the agent has said nothing else since *doubt*."""
        if self._emptied and doubt == self._doubt:
            self.give((), _NONE)

    def give(self, endpoints: tuple[Endpoint, ...], why_none: str) -> None:
        """Replace the instances; *why_none* is told when there are none."""
        self._learn(tuple(map(Instance, endpoints)), why_none)

    def _learn(self, instances: tuple[Instance, ...], why_none: str, *, anew: bool = False) -> None:
        self._instances, self._why, self._doubted = instances, why_none, False
        for one in (self, *self._listeners):
            one.take_place(self.course.place, instances, why_none, anew=anew)

    # -- its chain, told by `chains.ChainWatch` ------------------------------------------------

    def await_chain(self) -> None:
        """Nobody is to be called before `take_chain` has told which way."""
        self._awaited = True

    def take_chain(self, chain: Chain | None) -> None:
        """Take the chain, once all its places are told; ``None`` is the default chain."""
        self._waiting = chain
        self._awaited = False
        if chain is None:
            self.course.learn_chain(None, time.monotonic())
        self._publish()

    def take_place(
        self, place: Place, instances: tuple[Instance, ...], why_none: str, *, anew: bool = False
    ) -> None:
        """Take the instances of one place of the chain; *anew* as `Course.learn_instances`."""
        self.course.learn_instances(place, instances, time.monotonic(), why_none, anew=anew)
        self._publish()

    def behave(self, manners: Manners) -> None:
        """Take what our own service says about calls to this upstream."""
        self.course.learn_manners(manners, time.monotonic())
        self._publish()

    def tell(self, other: UpstreamWatch) -> None:
        """Tell *other* about our instances from now on: its chain leads here."""
        if other not in self._listeners:
            self._listeners.append(other)
            if self._instances is not None:
                other.take_place(self.course.place, self._instances, self._why)

    def untell(self, other: UpstreamWatch) -> bool:
        """Tell *other* no more; returns whether it was the last one to be told."""
        if other not in self._listeners:
            return False
        self._listeners.remove(other)
        return not self._listeners

    def _publish(self) -> None:
        if self._waiting is not None and self.course.knows(self._waiting.places()):
            self.course.learn_chain(self._waiting, time.monotonic())
            self._waiting = None
        known = not self._awaited and not self.course.missing()
        with self._changed:
            if known and not self.rests and (self._waiting is None or self.endpoints is not None):
                self.endpoints = self.course.endpoints
            self._changed.notify_all()

    def fail(self, error: MeshError) -> None:
        """The agent failed: the last instances stay, those who wait for the first learn why."""
        self._why, self._failing = str(error), True
        if self._instances is None:
            # Another datacenter that cannot be reached must not keep a whole chain waiting.
            for listener in self._listeners:
                listener.take_place(self.course.place, (), self._why)
