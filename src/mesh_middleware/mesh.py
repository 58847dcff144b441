"""
The heart: one `Mesh` per process keeps a snapshot current and judges requests by it.

Owns the life of the watcher, and the TLS contexts handed to servers and clients. What it says of a
request is in `judging`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from .belief import Belief
from .calling import Calling
from .config import Settings, load_settings
from .exceptions import ConfigError, NotReadyError
from .identity import ServiceId, SpiffeId
from .judging import Judging
from .plugins import Plugins
from .refusals import Refusals
from .rhythm import USUAL, Rhythm
from .snapshot import Snapshot
from .tls import LiveContext, client_context, server_context
from .watcher import Watcher

if TYPE_CHECKING:
    import httpx

    from .routing.report import AttemptReport
    from .watched import Watched

_log = logging.getLogger("mesh_middleware.mesh")

_meshes: weakref.WeakSet[Mesh] = weakref.WeakSet()
_default: Mesh | None = None
_default_lock = threading.Lock()


class ServerStreams(Protocol):
    """
    What a server adapter tells of the answers that its server sends.

    A server with such an adapter answers each request in a task of its own.
    """

    def is_complete(self, send: object) -> bool:
        """
        Whether the last byte of an answer was handed to the network, or cannot be any more.

        Args:
            send: the callable that the server gave to the application.
        """


class Mesh(Judging, Calling):
    """
    Membership of this process in the mesh, as one service.

    Making one is inert; `start` begins to watch the agent, in this process, and `close` ends it.
    Works in ``with``; starts and closes twice without complaint.

    Args:
        service: name of this service in Consul; settings fill in what is not given.
        settings: ready-made settings, instead of *service* and *options*.
        transport: carries the requests to the agent; a network transport unless given.
        plugins: objects with hooks, besides the installed ones.
        clock: this moment in seconds since the epoch.
        rhythm: how long the watcher waits for what.
        options: any of `mesh_middleware.config.Settings`.

    Attributes:
        server: tells which answers are complete; set by the server adapter, ``None`` elsewhere.

    Raises:
        ConfigError: no service name, an unknown option or an unusable value.
    """

    def __init__(
        self,
        service: str | None = None,
        *,
        settings: Settings | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        plugins: Iterable[object] = (),
        clock: Callable[[], float] = time.time,
        rhythm: Rhythm = USUAL,
        **options: Any,
    ) -> None:
        if settings is not None and (service is not None or options):
            raise ConfigError("give settings, or a service name and options, not both")
        self.settings = settings or load_settings({"service": service, **options})
        self.server: ServerStreams | None = None
        super().__init__()
        self._refusals = Refusals()
        self._transport = transport
        self._plugins = Plugins(plugins, installed=self.settings.plugins)
        self._clock, self._rhythm = clock, rhythm
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], Callable[[], None] | None]] = []
        self._reset()
        _meshes.add(self)

    def __repr__(self) -> str:
        return f"<Mesh {self.settings.service} at {self.settings.agent}>"

    def _reset(self) -> None:
        self._belief = Belief(self.settings, self._now, self._swapped)
        self._watcher: Watcher | None = None
        self._watched: Watched | None = None
        self.ending = False
        self._server: LiveContext | None = None

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to watch the agent, unless that has begun; returns without waiting for it."""
        with self._lock:
            if self._watcher is None:
                watcher = Watcher(
                    self.settings,
                    self._belief,
                    self._plugins,
                    self._transport,
                    self._now,
                    self._sweep,
                    self._rhythm,
                )
                self._plugins.startup(self.settings.service, self.settings.agent)
                self._watcher, self.ending = watcher, False
                watcher.start()
                atexit.register(self.close)
        return self

    def withdraw(self) -> None:
        """
        Announce the end: the check turns critical and the instance is deregistered, for good.

        Requests are served and judged as before, until `close`. Returns at once.
        """
        watcher = self._watcher
        if watcher is not None:
            watcher.withdraw()

    def end_streams(self) -> None:
        """The server ends soon: end what is still in flight, WebSockets and streams above all."""
        self.ending = True
        self._tell_listeners()

    def hand_over_if(self, hands_over: Callable[[], bool]) -> None:
        """
        Leave the registration to the process that follows this one, instead of taking it away.

        Args:
            hands_over: asked when the mesh closes: whether another worker goes on.
        """
        if self._watcher is not None:
            self._watcher.keeper.hands_over = hands_over

    def close(self) -> None:
        """Deregister and stop watching. Afterwards nothing is allowed and no handshake succeeds."""
        with self._lock:
            watcher, self._watcher = self._watcher, None
            watched, self._watched = self._watched, None
        if watcher is None:
            return
        watcher.close()
        if watched is not None:
            watched.end("the mesh was closed")
        with self._lock:
            if self._watcher is None:  # else it was started again meanwhile, and goes on
                self._reset()
                atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether the agent is being watched by this process."""
        return self._watcher is not None

    # -- state ---------------------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What is believed now."""
        return self._belief.snapshot

    @property
    def generation(self) -> int:
        """Grows with every change of leaf or roots; connection pools are keyed by it."""
        return self._belief.snapshot.generation

    def ready(self, timeout: float | None = 0.0) -> bool:
        """
        Wait until requests can be judged and handshakes succeed.

        Args:
            timeout: seconds; ``None`` waits for ever.
        """
        return self.wait_for(self._serves, timeout)

    def _serves(self, snapshot: Snapshot) -> bool:
        watcher = self._watcher
        lives = watcher is None or not watcher.troubles()
        return snapshot.ready and self.outage_budget() > 0 and lives

    def wait_for(self, condition: Callable[[Snapshot], bool], timeout: float | None) -> bool:
        """
        Wait until a condition holds for the snapshot.

        Args:
            condition: called with each new snapshot, and with the present one.
            timeout: seconds; ``None`` waits for ever.

        Returns:
            Whether it held in time.
        """
        return self._belief.wait_for(condition, timeout)

    def status(self) -> dict[str, Any]:
        """
        Tell how things stand, as values fit for JSON. Holds no secret.

        Keys: ``service``, ``service_id``, ``agent``, ``running``, ``ready``, ``spiffe_id``,
        ``serial_number``, ``not_after``, ``outage_budget_seconds`` (how long the leaf serves
        without the agent), ``trust_domain``, ``roots``, ``intentions``, ``default_policy``,
        ``protocol`` (of this service in Consul), ``generation``, ``version``, ``registered`` (by
        this process), ``troubles`` (what the agent does not answer, and why),
        ``clock_skew_seconds`` (our clock against the agent's), ``notes`` (answers not simply
        taken), ``events`` (count per code of notes and troubles), ``decisions`` (count per reason),
        ``shadowed`` (those denied, and let through in shadow mode), ``handshakes_refused`` (count
        per code), ``plugins``.
        """
        snapshot, watcher = self._belief.snapshot, self._watcher
        leaf, roots = snapshot.leaf, snapshot.roots
        default = {True: "allow", False: "deny", None: None}[snapshot.default_allow]
        return {
            "service": self.settings.service,
            "service_id": self.settings.instance_id,
            "agent": self.settings.agent,
            "running": self.running,
            "ready": self._serves(snapshot),
            "spiffe_id": leaf.id.uri if leaf else None,
            "serial_number": leaf.serial_number if leaf else None,
            "not_after": leaf.not_after.isoformat() if leaf else None,
            "outage_budget_seconds": self.outage_budget(),
            "trust_domain": roots.trust_domain if roots else None,
            "roots": len(roots.certificates) if roots else 0,
            "intentions": None if snapshot.intentions is None else len(snapshot.intentions),
            "default_policy": default,
            "protocol": snapshot.conditions.protocol,
            "generation": snapshot.generation,
            "version": snapshot.version,
            "registered": bool(watcher and watcher.keeper.registered),
            "troubles": ({**watcher.follower.troubles, **watcher.troubles()} if watcher else {}),
            "clock_skew_seconds": watcher.follower.skew if watcher else 0.0,
            "notes": [[at.isoformat(), code, text] for at, code, text in self._belief.notes],
            "events": dict(self._belief.events),
            "decisions": {str(reason): count for reason, count in self.counts.items()},
            "shadowed": {str(reason): count for reason, count in self.shadowed.items()},
            "handshakes_refused": dict(self._refusals.counts),
            "plugins": self._plugins.names(),
        }

    def metrics(self) -> str:
        """The figures of `status` as Prometheus reads them; see `mesh_middleware.metrics`."""
        from .metrics import render_metrics

        return render_metrics(self.status())

    def outage_budget(self) -> float:
        """Seconds that calls go on without the agent: what is left of the leaf; 0 without one."""
        leaf = self._belief.snapshot.leaf
        return max(0.0, leaf.expires - self._clock()) if leaf else 0.0

    def after_change(self, told: Callable[[], None]) -> None:
        """
        Have *told* called, from the watcher's thread, soon after each change of the snapshot.

        The call comes `watcher.SWEEP_DELAY` seconds after the swap, once for changes in between,
        and also every `Rhythm.sweep_every` seconds, since a peer's certificate may have expired.
        Only a weak reference is kept to the owner of a bound method.
        """
        kept = weakref.WeakMethod(told) if hasattr(told, "__self__") else (lambda: told)
        self._listeners.append(kept)

    # -- edges ---------------------------------------------------------------------------------

    @property
    def attempt_told(self) -> Callable[[AttemptReport], None] | None:
        """Hears of each attempt of a call; ``None`` when no plugin wants to."""
        return self._plugins.attempt if self._plugins.watches_attempts else None

    def server_context(self) -> LiveContext:
        """
        The context for this service's TLS sockets, good for the whole life of the server.

        Every connection gets the newest leaf and exactly the newest roots, must show a
        certificate, and passes the gate. Before there is a leaf, handshakes fail.
        """
        if self._server is None:
            self._server = server_context(
                lambda: self._belief.generation,
                self._now,
                may_connect=self._may_connect if self.settings.deny_in_handshake else None,
                max_age=self.settings.max_connection_age or math.inf,
                refused=lambda error: self._refusals.note(error, self._belief.snapshot.joined),
            )
        return self._server

    def client_context(self, expected: ServiceId) -> LiveContext:
        """
        The context for connections to one upstream, good for any number of them.

        Args:
            expected: the only identity that may answer; checked before the first byte is sent.
        """
        return client_context(lambda: self._belief.generation, self._now, expected)

    def _watch(self) -> Watched:
        # A process that calls nobody does not load what calling takes.
        from .watched import Watched

        with self._lock:
            watcher = self._watcher
            if watcher is None:
                raise NotReadyError(f"{self!r} is not running: call start()")
            if self._watched is None:
                where = self.settings.datacenter or None
                self._watched = Watched(watcher.follow, watcher.leave, where)
            return self._watched

    # -- inside --------------------------------------------------------------------------------

    def _may_connect(self, source: SpiffeId) -> bool:
        policy = self._belief.snapshot.policy
        return policy is not None and policy.may_connect(source)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _swapped(self, old: Snapshot, new: Snapshot) -> None:
        if old.ready != new.ready or old.leaf != new.leaf:
            _log.info("%s: %s", self, "ready" if new.ready else "not ready")
        if self._watcher is not None:
            self._watcher.poke()
        self._plugins.snapshot(old, new)

    def _sweep(self) -> None:
        self._tell_listeners()
        if self._watched is not None:
            self._watched.sweep(time.monotonic())

    def _tell_listeners(self) -> None:
        for kept in list(self._listeners):
            told = kept()
            if told is None:
                self._listeners.remove(kept)
                continue
            try:
                told()
            except BaseException:  # of foreign code, in the watcher's thread
                _log.exception("a listener failed after a change")

    def _after_fork(self) -> None:
        # The watcher's thread does not exist in the child, and its locks may be held for ever:
        # forget all, so that nothing is judged by a snapshot that nobody renews.
        self._lock = threading.Lock()
        self._reset()


def default_mesh() -> Mesh:
    """
    The mesh of this process: the one its server runs, else one made from the environment.

    Raises:
        ConfigError: there is none yet and the environment does not name the service.
    """
    global _default
    with _default_lock:
        if _default is None:
            _default = Mesh()
        return _default.start()


def running_mesh() -> Mesh | None:
    """The mesh of this process, if one runs."""
    return _default if _default is not None and _default._watcher is not None else None


def set_default_mesh(mesh: Mesh | None) -> None:
    """Make *mesh* the one that doors and clients use when none is named."""
    global _default
    with _default_lock:
        _default = mesh


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for mesh in list(_meshes):
        with contextlib.suppress(Exception):
            mesh._after_fork()


os.register_at_fork(after_in_child=_after_fork)
