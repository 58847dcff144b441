"""
What the inbound doors share: which mesh judges, what is exempt, and what shadow mode lets pass.

Knows nothing of ASGI or WSGI.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import re
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .certificates import Peer
from .config import Mode
from .exceptions import ConfigError
from .hosting import why_plain
from .intentions import Decision, Reason, RequestFacts, decision
from .mesh import Mesh, running_mesh
from .plugins import is_interrupt
from .snapshot import Snapshot

_log = logging.getLogger("mesh_middleware.door")

KNOWN = 1024
"""Verdicts kept for requests like those that got them."""
KNOWN_LENGTH = 256
"""Longest request target, in bytes, of which a verdict is kept."""

_PLAIN = re.compile(rb"/|(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?")
_NO_HEADERS: Mapping[str, str | None] = {}
_EXEMPT = decision(Reason.EXEMPT)
_NOBODY = decision(Reason.NO_PEER)
_NO_POLICY = decision(Reason.NO_POLICY)
_ERROR = decision(Reason.ERROR)


@dataclass(frozen=True, slots=True)
class Caller:
    """
    What the mesh knows of one request: ``request.state.mesh``.

    Args:
        peer: who sent it; ``None`` only where the path is exempt.
        decision: the verdict; denying only in shadow mode.
        mesh: the mesh that judged; ``None`` only where the path is exempt and none runs.
    """

    peer: Peer | None
    decision: Decision
    mesh: Mesh | None

    @property
    def claims(self) -> Mapping[str, Mapping[str, Any]]:
        """Verified token claims by jwt-provider; empty where no token was demanded."""
        return self.decision.claims or {}


class Verdict(NamedTuple):
    """
    What a door does with a request.

    Args:
        passes: whether the application sees it.
        caller: what is known of it; its decision denies although it passes in shadow mode.
        handed: headers to set for the application, ``None`` to take out: see `claim_headers`.
    """

    passes: bool
    caller: Caller
    handed: Mapping[str, str | None] = _NO_HEADERS

    @property
    def decision(self) -> Decision:
        """Why."""
        return self.caller.decision


_ONCE, _NEVER = Snapshot(), Snapshot()
"""In place of the snapshot: a request came once, and is kept the second time; it is never kept."""

_Entry = tuple[Snapshot, float, Verdict | Peer]
"""What made a verdict, until when it stands, and the verdict; a peer where none is kept."""


class Door:
    """
    Judges the requests of one application.

    Args:
        mesh: judges; the process's own mesh unless given.
        exempt: canonical paths that anyone may call, besides the configured ones; exact.
        mode: overrides the setting of the mesh.
        shadow: canonical paths; denials there and below are only logged.

    Attributes:
        options: names of those that may let a request pass which the settings would not.

    Raises:
        ConfigError: a path is not canonical, or the mode is unknown.
    """

    def __init__(
        self,
        mesh: Mesh | None = None,
        *,
        exempt: Iterable[str] = (),
        mode: Mode | None = None,
        shadow: Iterable[str] = (),
    ) -> None:
        self._mesh = mesh
        with one_line():
            self._exempt = frozenset(_canonical("exempt", path) for path in exempt)
            self._shadow = tuple(_canonical("shadow", path) for path in shadow)
            if mode not in (None, "enforce", "shadow"):
                raise ConfigError(f"mode = {mode!r}: one of enforce, shadow is expected")
        self._mode = mode
        self._told_plain = False
        self._told_overruled = False
        self.options = _options(mesh, self._exempt, mode, self._shadow)
        self._known: dict[tuple[int, Hashable], _Entry] = {}
        self._known_by: Snapshot | None = None
        self._heard: Mesh | None = None
        self._usual: Mesh | None = None
        if self._exempt:
            _log.warning("exempt from the intentions: %s", ", ".join(sorted(self._exempt)))

    @property
    def mesh(self) -> Mesh | None:
        """The mesh that judges; ``None`` while none runs in this process."""
        return self._mesh or running_mesh()

    def judge(
        self,
        peer: Peer | None,
        facts: RequestFacts,
        key: Hashable | None = None,
        *,
        booked: bool = True,
    ) -> Verdict:
        """
        Judge one request. Whatever fails here, fails closed.

        Args:
            key: of the request, so that `recall` can repeat the verdict; ``None``: it is not kept.
            booked: whether it counts as a request: not when a live one is judged anew.
        """
        mesh = self._mesh or running_mesh()
        try:
            if mesh is None or (mesh is not self._usual and not self._is_usual(mesh)):
                return self._judge_by_settings(mesh, peer, facts, booked)
            snapshot = mesh.snapshot
            found = mesh.decide(peer, facts, booked=booked)
            if found.allowed:
                verdict = _passing(Caller(peer, found, mesh))
                if key is not None:
                    self._keep(verdict, (id(peer), key), facts, snapshot)
                return verdict
            self._tell_plain(peer)
            return Verdict(False, Caller(peer, found, mesh))
        except BaseException as error:
            if is_interrupt(error):
                raise
            _log.exception("judging failed; the request is denied")
            return Verdict(False, Caller(peer, _ERROR, mesh))

    def recall(self, peer: Peer | None, key: Hashable) -> Verdict | None:
        """
        Repeat the verdict on a request like this one, while all it stands on is the same.

        Nearly every request is like one before it. The rules of such a verdict are those of
        `Mesh.repeats`.

        Args:
            key: see `RequestFacts.key`.

        Returns:
            ``None`` where the request has to be judged.
        """
        known = self._known.get((id(peer), key))
        if known is None:
            return None
        snapshot, until, verdict = known
        mesh = self._mesh or running_mesh()
        if type(verdict) is not Verdict or mesh is None:
            return None
        return verdict if mesh.repeats(verdict.caller.decision, snapshot, until) else None

    def judge_all(self, peer: Peer | None, readings: Sequence[RequestFacts]) -> Verdict:
        """
        Judge again a request that was let in further out; it is let in if every reading is.

        A verdict that lets it in is not counted: it was counted when it was judged first.

        Args:
            readings: the request as it is seen here; at least one.
        """
        verdict = None
        for facts in readings:
            found = self.judge(peer, facts, booked=False)
            if not found.passes:
                return self.judge(peer, facts)
            verdict = verdict or found
        assert verdict is not None
        return verdict

    def passes_still(self, peer: Peer | None, *readings: RequestFacts) -> bool:
        """Judge again a live request; it is counted again only when it has to end."""
        return self.judge_all(peer, readings).passes

    def holds(
        self, peer: Peer | None, readings: Sequence[RequestFacts]
    ) -> tuple[Snapshot, float] | None:
        """Tell until when a live request that was just judged need not be judged again."""
        mesh = self.mesh
        if mesh is None or peer is None or len(readings) != 1:
            return None
        snapshot = mesh.snapshot
        until = mesh.holds_until(peer, readings[0], snapshot)
        return None if until is None else (snapshot, until)

    def tell_overruled(self) -> None:
        """Say once that options of this middleware have no effect: the server judges before it."""
        if self.options and not self._told_overruled:
            self._told_overruled = True
            _log.warning("%s", overruled(self.options))

    def close(self) -> None:
        """The server ends: leave the mesh, unless it was given and is its giver's to end."""
        mesh = None if self._mesh else running_mesh()
        if mesh is not None:
            mesh.close()

    def _is_usual(self, mesh: Mesh) -> bool:
        """Whether settings neither exempt nor shadow anything; then it is remembered, for ever."""
        settings = mesh.settings
        if self._exempt or settings.exempt or self._shadow or settings.shadow:
            return False
        if (self._mode or settings.mode) == "shadow":
            return False
        self._usual = mesh
        return True

    def _judge_by_settings(
        self, mesh: Mesh | None, peer: Peer | None, facts: RequestFacts, booked: bool
    ) -> Verdict:
        if self._is_exempt(mesh, facts):
            return _passing(Caller(peer, _EXEMPT, mesh))
        if mesh is None:
            self._tell_plain(peer)
            return Verdict(False, Caller(peer, _NOBODY if peer is None else _NO_POLICY, None))
        found = mesh.decide(
            peer, facts, lambda denial: self._in_shadow(mesh, facts, denial), booked=booked
        )
        if found.allowed or self._in_shadow(mesh, facts, found):
            return _passing(Caller(peer, found, mesh))
        self._tell_plain(peer)
        return Verdict(False, Caller(peer, found, mesh))

    def _keep(
        self, verdict: Verdict, key: tuple[int, Hashable], facts: RequestFacts, snapshot: Snapshot
    ) -> None:
        peer, mesh = verdict.caller.peer, verdict.caller.mesh
        if peer is None or mesh is None or len(facts.target or facts.path) > KNOWN_LENGTH:
            return
        # Asked once: threads that come late write to what is thrown away.
        known = self._known
        # What was made by a snapshot that is gone does not come again.
        if snapshot is not self._known_by or len(known) >= KNOWN:
            known = self._known = {}
            self._known_by = snapshot
            if mesh is not self._heard:
                self._heard = mesh
                mesh.after_change(self._forget_old)
        # The id stays true, for the entry holds the peer.
        entry = known.get(key)
        if entry is None:
            known[key] = _ONCE, 0.0, peer
        elif entry[0] is _ONCE:
            until = mesh.holds_until(peer, facts, snapshot)
            known[key] = (snapshot, until, verdict) if until else (_NEVER, 0.0, peer)

    def _forget_old(self) -> None:
        """Keep no snapshot alive that is gone: it can be megabytes, and no request may come."""
        mesh = self.mesh
        if mesh is None or mesh.snapshot is not self._known_by:
            self._known, self._known_by = {}, None

    def _is_exempt(self, mesh: Mesh | None, facts: RequestFacts) -> bool:
        path = plain_path(facts)
        if path is None:
            return False
        return path in self._exempt or (mesh is not None and path in mesh.settings.exempt)

    def _in_shadow(self, mesh: Mesh, facts: RequestFacts, found: Decision) -> bool:
        if found.status != 403:
            return False
        if (self._mode or mesh.settings.mode) == "shadow":
            return True
        prefixes = (*self._shadow, *mesh.settings.shadow)
        path = plain_path(facts) if prefixes else None
        return path is not None and any(
            path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in prefixes
        )

    def _tell_plain(self, peer: Peer | None) -> None:
        if peer is None and not self._told_plain:
            self._told_plain = True
            _log.warning("a request without a mesh identity was refused: %s", plain_hint())


def _options(
    mesh: Mesh | None, exempt: Iterable[str], mode: str | None, shadow: Iterable[str]
) -> tuple[str, ...]:
    given = {"mesh": mesh, "exempt": exempt, "mode": mode == "shadow", "shadow": shadow}
    return tuple(name for name, value in given.items() if value)


def overruled(options: Iterable[str]) -> str:
    """
    Say what to do about options of a middleware that is not outermost.

    Args:
        options: their names.
    """
    names = sorted(options)
    settings = [name for name in names if name != "mesh"]
    ways = ["add the middleware last, so that it is outermost"]
    if settings:
        ways.append(f"use the setting{'s' * (len(settings) > 1)} {', '.join(settings)} of the mesh")
    if "mesh" in names:
        ways.append("leave mesh out, since the process's own judges")
    return (
        f"{', '.join(names)} of a middleware that is not outermost has no effect, since the server "
        f"judges before it: {', or '.join(ways)}"
    )


def _passing(caller: Caller) -> Verdict:
    return Verdict(True, caller, claim_headers(caller))


def claim_headers(caller: Caller) -> Mapping[str, str | None]:
    """
    Find the headers in which jwt-providers hand their verified claims over.

    Returns:
        By lower-case name the value; ``None`` where no token was demanded or verified. Whatever the
        caller sent under such a name has to go: applications believe it.

    Source: Consul, jwt-provider, "Forwarding"; reference 8.
    """
    conditions = caller.mesh.snapshot.conditions if caller.mesh is not None else None
    if conditions is None or not (conditions.providers or conditions.withheld):
        return _NO_HEADERS
    found: dict[str, str | None] = dict.fromkeys(conditions.withheld)
    for provider in conditions.providers:
        if provider.forward_header:
            claims = caller.claims.get(provider.name)
            value = None if claims is None else _payload(claims, provider.forward_padded)
            found[provider.forward_header] = value or found.get(provider.forward_header)
    return found


def _payload(claims: Mapping[str, Any], padded: bool) -> str:
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()
    return text if padded else text.rstrip("=")


def plain_path(facts: RequestFacts) -> str | None:
    """
    The path of a request, when it can be read in one way only.

    Returns:
        ``None`` for one with escapes, doubled slashes, dot segments, parameters or backslashes: no
        exemption holds for such a target.
    """
    path, target = facts.path, facts.target
    if target is not None and target.partition(b"?")[0] != path:
        return None
    return path.decode("ascii") if _PLAIN.fullmatch(path) else None


def plain_hint() -> str:
    """Say why this process serves plaintext, as far as it can be known."""
    return why_plain()


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """
    Let a mistake in how a door is made end the server that is about to serve, with one line.

    Servers would print a hundred lines, or say "continuing without Lifespan support" and go on.
    Elsewhere the `ConfigError` is raised as ever.
    """
    try:
        yield
    except ConfigError as error:
        # Loaded where this process runs under that server; a middleware imports no server.
        adapter = sys.modules.get(f"{__package__}.servers.hypercorn_tls")
        if adapter is not None:
            adapter.end_before_serving(error)
        raise


def _canonical(option: str, path: str) -> str:
    if not isinstance(path, str) or not _PLAIN.fullmatch(path.encode(errors="replace")):
        raise ConfigError(f"{option} = {path!r}: a canonical path such as /healthz is expected")
    return path
