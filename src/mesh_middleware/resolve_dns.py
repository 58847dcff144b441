"""
Instances told by DNS, where no agent can be asked about an upstream.

Owns the questions (SRV, or A and AAAA), their rhythm and what is made of the answers. Who has to
answer is said in the configuration and never by DNS, which proves nothing: a forged answer leads to
a handshake that fails.

Theory. One daemon thread with an event loop, a task for each name that was ever called, which asks
again when the answer's time is over. A call reads what was found last and waits for nothing; the
first call waits for the first answer. While DNS fails, the last instances stay.

Source: RFC 2782 (SRV); RFC 2308 (what does not exist); Consul DNS, "Service lookups".
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from .exceptions import ConfigError, MeshError, ResolveError
from .identity import ServiceId, parse_service_id
from .resolve import MAX_WEIGHT, Endpoint, EndpointKind, Upstream

try:
    import dns.asyncresolver
    import dns.exception
    import dns.resolver
except ImportError:  # pragma: no cover - the extra is installed where tests run
    dns = None  # type: ignore[assignment, unused-ignore]

LEAST_TTL = 1.0
"""Seconds until a name is asked for again at the soonest: Consul's answers say 0."""
MOST_TTL = 300.0
"""Seconds until it is asked for again at the latest."""
MOST_PAUSE = 30.0
"""Longest pause after failures, in seconds."""


@dataclass(frozen=True, slots=True)
class DnsName:
    """
    What is asked for one upstream, and who has to answer there.

    Args:
        name: domain name: of SRV records, or with *port* of addresses.
        expected: SPIFFE ID of a service, the only one that may answer; as a value or a text.
        port: where the instances listen; ``None`` asks for SRV records, which tell it.
        kind: who terminates the connection.
    """

    name: str
    expected: ServiceId | str
    port: int | None = None
    kind: EndpointKind = "native"


@dataclass(slots=True)
class _Found:
    """What is known of one name."""

    endpoints: tuple[Endpoint, ...] | None = None
    why: str = "DNS has not answered yet"


class DnsResolver:
    """
    A `mesh_middleware.resolve.Resolver` that asks DNS: ``Client(resolver=DnsResolver({...}))``.

    Making one is inert; its thread starts with the first call. Closes twice without complaint.

    Args:
        names: upstream to what is asked for it.
        nameservers: IP addresses to ask; the system's unless given.
        port: UDP and TCP port of the nameservers.
        timeout: seconds one question may take.

    Raises:
        ConfigError: dnspython is not installed, or an identity is none of a service.
    """

    def __init__(
        self,
        names: Mapping[str, DnsName],
        *,
        nameservers: Sequence[str] = (),
        port: int = 53,
        timeout: float = 2.0,
    ) -> None:
        if dns is None:  # pragma: no cover - as above
            raise ConfigError("DnsResolver needs its extra: pip install 'mesh-middleware[dns]'")
        self._names = {upstream.lower(): name for upstream, name in names.items()}
        self._expected = {upstream: _identity(name) for upstream, name in self._names.items()}
        self._nameservers, self._port = list(nameservers), port
        self._timeout = timeout
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._found: dict[str, _Found] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def resolve(self, upstream: Upstream) -> Sequence[Endpoint]:
        """
        Tell what DNS said last; waits for nothing.

        Raises:
            ResolveError: no such upstream, a datacenter or scope that DNS was not told of, or
                there was no answer yet.
        """
        found = self._follow(upstream)
        if found.endpoints is None:
            raise ResolveError(f"{upstream}: {found.why}")
        return found.endpoints

    def ready(self, upstream: Upstream) -> bool:
        """Whether there was an answer, or never will be one."""
        try:
            return self._follow(upstream).endpoints is not None
        except ResolveError:
            return True

    def wait(self, upstream: Upstream, timeout: float) -> None:
        """Block until `ready`, at most *timeout* seconds."""
        try:
            found = self._follow(upstream)
        except ResolveError:
            return
        with self._changed:
            self._changed.wait_for(lambda: found.endpoints is not None, timeout)

    def close(self) -> None:
        """Ask no more; the thread ends."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            self._found = {}
        if loop is not None and thread is not None and self._pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(self._timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the thread ----------------------------------------------------------------------------

    def _follow(self, upstream: Upstream) -> _Found:
        if self._pid != os.getpid():
            self._begin()  # a child process has no thread, and the lock may be held for ever
        found = self._found.get(upstream.name)
        if found is not None and upstream.kind != "query" and upstream.datacenter is None:
            return found
        name = self._names.get(upstream.name)
        if name is None or upstream != Upstream(upstream.name, kind=upstream.kind):
            raise ResolveError(f"{upstream}: DNS was not told of such an upstream")
        if upstream.kind == "query":
            raise ResolveError(f"{upstream}: only an agent executes prepared queries")
        with self._lock:
            found = self._found.get(upstream.name)
            if found is None:
                found = self._found[upstream.name] = _Found()
                self._run().call_soon_threadsafe(self._start, upstream.name, found)
        return found

    def _run(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            loop = self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_work, args=(loop, self._tasks), name="mesh_middleware_dns", daemon=True
            )
            self._thread.start()
        return self._loop

    def _start(self, upstream: str, found: _Found) -> None:
        task = asyncio.get_running_loop().create_task(self._keep(upstream, found))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, upstream: str, found: _Found) -> None:
        name, expected, failures = self._names[upstream], self._expected[upstream], 0
        while True:
            try:
                question = _Question(self._resolver(), name, expected, self._timeout)
                endpoints, ttl = await question.ask()
            except (dns.exception.DNSException, OSError, MeshError) as error:
                failures += 1
                found.why = f"DNS does not tell {name.name}: {error}"
                pause = min(MOST_PAUSE, LEAST_TTL * 2.0 ** min(failures - 1, 10))
            else:
                failures, pause = 0, min(MOST_TTL, max(LEAST_TTL, ttl))
                with self._changed:
                    if endpoints != found.endpoints:
                        found.endpoints = endpoints
                    self._changed.notify_all()
            # Not all processes at once.
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))

    def _resolver(self) -> Any:
        # Made each time: the system's nameservers may be others now.
        resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = list(self._nameservers)
        resolver.port = self._port
        return resolver


def _work(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[None]]) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = list(tasks)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()


class _Question:
    """One look at one name."""

    def __init__(self, resolver: Any, name: DnsName, expected: ServiceId, timeout: float) -> None:
        self._resolver = resolver
        self._name = name
        self._expected = expected
        self._until = time.monotonic() + timeout
        self._ttl = MOST_TTL

    async def ask(self) -> tuple[tuple[Endpoint, ...], float]:
        """
        Find the instances, and for how many seconds they hold.

        Raises:
            dns.exception.DNSException: no answer.
        """
        if self._name.port is not None:
            found = await self._addresses(self._name.name, self._name.port, 1, 0)
        else:
            found = await self._services()
        # What is not there may be there soon, whatever the zone says of how long it is not.
        ttl = self._ttl if found else LEAST_TTL
        return tuple(sorted(set(found), key=lambda one: (one.host, one.port))), ttl

    async def _services(self) -> list[Endpoint]:
        answer = await self._look(self._name.name, "SRV")
        records = [] if answer is None else [one for one in answer if str(one.target) != "."]
        top = max([MAX_WEIGHT, *(record.weight for record in records)])
        found: list[Endpoint] = []
        for record in records:
            weight = max(1, record.weight * MAX_WEIGHT // top)
            where = str(record.target), record.port
            found += await self._addresses(*where, weight, record.priority, answer)
        return found

    async def _addresses(
        self, name: str, port: int, weight: int, priority: int, beside: Any = None
    ) -> list[Endpoint]:
        hosts = _additional(beside, name) if beside is not None else []
        if not hosts:
            both = await asyncio.gather(self._look(name, "A"), self._look(name, "AAAA"))
            hosts = [record.address for answer in both for record in answer or ()]
        kind = self._name.kind
        return [Endpoint(host, port, self._expected, weight, kind, priority) for host in hosts]

    async def _look(self, name: str, kind: str) -> Any:
        """The answer; ``None`` where there is no such name or record."""
        left = max(0.001, self._until - time.monotonic())
        try:
            answer = await self._resolver.resolve(
                name, kind, lifetime=left, search=False, raise_on_no_answer=False
            )
        except dns.resolver.NXDOMAIN:
            return None
        if answer.rrset is None:
            return None
        self._ttl = min(self._ttl, answer.rrset.ttl)
        return answer


def _additional(answer: Any, name: str) -> list[str]:
    """The addresses of *name* that came with an SRV answer."""
    return [
        record.address
        for rrset in answer.response.additional
        if str(rrset.name).lower() == name.lower()
        for record in rrset
        if hasattr(record, "address")
    ]


def _identity(name: DnsName) -> ServiceId:
    try:
        expected = name.expected
        return parse_service_id(expected) if isinstance(expected, str) else expected
    except MeshError as error:
        raise ConfigError(f"{name.name}: who has to answer there? {error}") from error
