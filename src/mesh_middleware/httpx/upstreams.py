"""
From the host of a URL to the instances that may be dialled.

Owns the table of upstreams one transport has called, the choice among instances, and what the
transports need of a mesh (`MeshLike`). Shared by the sync and the async transport; waits for
nothing itself.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..exceptions import MeshError, NotReadyError, ResolveError
from ..identity import ServiceId
from ..resolve import Endpoint, Resolver, Upstream, parse_upstream
from ..resolve import sni as sni
from ..routing.course import Course
from ..routing.instances import Instance
from ..routing.report import AttemptReport
from .courses import CourseLike
from .denial import MeshInfo
from .errors import MeshConnectError, MeshNotReadyError, NoHealthyInstanceError, UpstreamNameError
from .library import httpx
from .wire import Heads

PATIENCE = 30.0
"""Longest wait, in seconds, for the mesh to be joined or an upstream to be told, where the caller
set no connect timeout."""


LEAST_KEPT = 256
"""Hosts that one transport keeps, before it looks whether it may forget some."""


class WatchLike(Protocol):
    """A blocking query on one upstream: `mesh_middleware.upstreams.UpstreamWatch`."""

    @property
    def course(self) -> CourseLike:
        """Which instance a call goes to."""
        ...

    @property
    def why(self) -> str:
        """What is in the way, where there is no instance or no answer."""
        ...

    @property
    def rests(self) -> bool:
        """Whether it was ended because nobody called."""
        ...

    @property
    def endpoints(self) -> Sequence[Endpoint] | None:
        """Instances of the last good answer; ``None`` before the first."""
        ...

    def wait(self, timeout: float) -> Sequence[Endpoint]:
        """Block until there is an answer, at most *timeout* seconds."""
        ...


class MeshLike(Protocol):
    """The part of `mesh_middleware.Mesh` that calling an upstream needs."""

    @property
    def generation(self) -> int:
        """Grows with each change of leaf or roots."""
        ...

    @property
    def snapshot(self) -> Any:
        """The snapshot: only ``joined`` is asked here."""
        ...

    def wait_for(self, condition: Callable[[Any], bool], timeout: float) -> bool:
        """Block until *condition* holds of the snapshot, at most *timeout* seconds."""
        ...

    def client_context(self, expected: ServiceId) -> ssl.SSLContext:
        """A live context whose handshakes only succeed with *expected*."""
        ...

    @property
    def attempt_told(self) -> Callable[[AttemptReport], None] | None:
        """Hears of each attempt; ``None`` when nobody does."""
        ...

    @property
    def settings(self) -> Any:
        """Settings: only ``domain`` is asked here."""
        ...

    def watch_upstream(self, upstream: Upstream) -> WatchLike:
        """Start, or find, the blocking query on *upstream*."""
        ...


def default_mesh() -> MeshLike:
    """
    Find the mesh of this process: the one its server door started, else one from settings.

    Raises:
        ConfigError: there is none, and the settings do not say how to make one.
    """
    # Late: a program that only parses names, or brings its own mesh, starts nothing.
    from ..mesh import default_mesh as find

    mesh: MeshLike = find()
    return mesh


class Target:
    """
    One upstream as a transport sees it.

    Args:
        upstream: its name, read.
        mesh: tells its instances, unless *resolver* does.
        resolver: another source of instances.
    """

    def __init__(self, upstream: Upstream, mesh: MeshLike, resolver: Resolver | None) -> None:
        self.upstream = upstream
        self.name = str(upstream)
        self.info: MeshInfo | None = None
        """The last answer's, for the next from the same instance."""
        self.heads: Heads = {}
        """Of requests, for the next ones that are alike."""
        self.told = mesh.attempt_told
        """Hears of each attempt, if anybody does."""
        self._mesh = mesh
        self._resolver = resolver
        # A resolver that has to look first, and whom one may wait for.
        self._patient: Any = resolver if hasattr(resolver, "wait") else None
        self._course = Course(upstream.name, upstream.datacenter)
        self._told: tuple[Endpoint, ...] | None = None
        self._watch: WatchLike | None = None
        if resolver is None:
            self._watch = _watch(mesh, upstream)

    def ready(self) -> bool:
        """Whether a call can be tried without waiting: joined, and instances told."""
        if self._watch is not None:
            told = self._watch.endpoints is not None
        else:
            told = self._patient is None or self._patient.ready(self.upstream)
        return told and bool(self._mesh.snapshot.joined)

    def wait(self, timeout: float) -> None:
        """
        Block until `ready`, at most about *timeout* seconds; which of the two is missing then,
        `endpoints` says.
        """
        if not self._mesh.wait_for(lambda snapshot: bool(snapshot.joined), timeout):
            return
        if self._watch is not None and self._watch.endpoints is None:
            with suppress(MeshError):
                self._watch.wait(timeout)
        elif self._patient is not None:
            self._patient.wait(self.upstream, timeout)

    @property
    def rests(self) -> bool:
        """Whether nothing is known of it that somebody would miss."""
        if self._watch is None:
            return not self._told
        return self._watch.rests

    def renew(self) -> None:
        """
        Watch again: the mesh may have been closed and begun anew since.

        Raises:
            MeshNotReadyError: it is closed.
        """
        if self._watch is not None:
            self._watch = _watch(self._mesh, self.upstream)

    def course(self) -> CourseLike:
        """
        Tell the course of a call that begins now.

        Raises:
            MeshNotReadyError: no leaf or roots, or no answer about this upstream, yet.
            NoHealthyInstanceError: the resolver knows no such upstream.
        """
        if not self._mesh.snapshot.joined:
            raise MeshNotReadyError(
                f"{self.name}: this process has no leaf or roots yet", upstream=self.name
            )
        if self._watch is None:
            return self._resolved()
        # One that was let go between the question and now is as good as a moment ago.
        if self._watch.endpoints is None and not self._watch.rests:
            raise MeshNotReadyError(
                f"{self.name}: its instances are not known: {self._watch.why}", upstream=self.name
            )
        return self._watch.course

    def _resolved(self) -> CourseLike:
        assert self._resolver is not None
        try:
            found = tuple(self._resolver.resolve(self.upstream))
        except ResolveError as error:
            raise NoHealthyInstanceError(str(error), upstream=self.name) from error
        course = self._course
        if found != self._told:
            instances = tuple(map(Instance, found))
            with course.lock:  # one for both: another thread that finds them told goes by them
                course.learn_instances(course.place, instances, time.monotonic())
                self._told = found
        return course


class Targets:
    """
    The upstreams one transport has called, by host.

    Args:
        mesh: joined by this process; ``None`` finds the process's own at the first call.
        resolver: tells instances instead of the mesh's blocking queries.
        domain: Consul's DNS domain; ``None`` takes the mesh's setting.
    """

    def __init__(
        self, mesh: MeshLike | None, resolver: Resolver | None, domain: str | None
    ) -> None:
        self._given = self._mesh = mesh
        self._resolver = resolver
        self._domain = domain
        self._found: dict[str, Target] = {}
        self._most = LEAST_KEPT

    @property
    def mesh(self) -> MeshLike:
        """The mesh; found, and started, at the first call."""
        if self._mesh is None:
            self._mesh = default_mesh()
        return self._mesh

    def name(self, url: httpx.URL) -> bool:
        """Whether *url* is of the mesh; asked without starting one."""
        domain = self._domain or known_domain(self._mesh)
        return bool(url.scheme == "mesh") or names_upstream(url.host, domain)

    def forget(self) -> object:
        """Begin anew, in a child process; returns what was known."""
        known, self._found, self._mesh = self._found, {}, self._given
        return known

    def follow(self) -> bool:
        """
        See whether another mesh is this process's now; the upstreams are those of that one then.

        One that was closed is not begun anew here: its server has ended, and would be registered.
        """
        from ..mesh import running_mesh

        running: MeshLike | None = running_mesh()
        if self._given is not None or running is None or running is self._mesh:
            return False
        self._mesh, self._found = running, {}
        return True

    def find(self, host: str) -> Target:
        """
        Look up the upstream that *host* names.

        Raises:
            UpstreamNameError: it names none.
            MeshConnectError: the mesh cannot watch it.
        """
        target = self._found.get(host)
        if target is None:
            try:
                upstream = parse_upstream(host, domain=self._domain or self.mesh.settings.domain)
            except ResolveError as error:
                raise UpstreamNameError(str(error), upstream=host) from error
            self._forget_resting()
            # Two threads may both come here, and watching is idempotent; but connections and their
            # limit belong to a target, so that the first one stored is everybody's.
            target = self._found.setdefault(host, Target(upstream, self.mesh, self._resolver))
        return target

    def _forget_resting(self) -> None:
        # A host may be anything that a user typed.
        if len(self._found) < self._most:
            return
        for host, target in list(self._found.items()):
            if target.rests:
                self._found.pop(host, None)
        self._most = max(LEAST_KEPT, 2 * len(self._found))


def _watch(mesh: MeshLike, upstream: Upstream) -> WatchLike:
    try:
        return mesh.watch_upstream(upstream)
    except NotReadyError as error:
        raise MeshNotReadyError(str(error), upstream=str(upstream)) from error
    except MeshError as error:
        raise MeshConnectError(str(error), upstream=str(upstream)) from error


def known_domain(mesh: MeshLike | None) -> str:
    """Tell Consul's DNS domain: the mesh's, the process's own mesh's, or the environment's."""
    from ..config import DEFAULT_DOMAIN
    from ..mesh import running_mesh

    found = mesh or running_mesh()
    return found.settings.domain if found else os.environ.get("MESH_DOMAIN") or DEFAULT_DOMAIN


def names_upstream(host: str, domain: str) -> bool:
    """Tell whether *host* is a name in the mesh, so that nothing else may carry its traffic."""
    try:
        parse_upstream(host, domain=domain)
    except ResolveError:
        return host.lower().rstrip(".").endswith("." + domain.lower().strip("."))
    return True
