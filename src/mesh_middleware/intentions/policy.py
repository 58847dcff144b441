"""
A policy: every intention about this service, ready to judge.

Owns the way from a source and a request to a `Decision`. A policy never changes; a change of
intentions makes a new one, which takes over what stayed the same. Judging reads no clock, lock,
network or disk; what it remembers is bounded.

Theory: the source is found in a dictionary. An intention without permissions is a decision made
beforehand, and the request is not looked at. With permissions, the path is read in every way
(`paths`), each reading gives the *chain* of permissions whose path and method match, and what is
left depends on headers and tokens only: where nothing is left, the decision is remembered for that
method and target. ``strict`` allows what every reading allows; ``envoy`` asks Envoy's alone.

Source: reference 5.1 to 5.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..identity import ServiceId, SpiffeId
from . import paths, soundness
from .facts import RequestFacts
from .headers import Alternative, HeaderView
from .matchers import HeaderTest, PathTable, Step, permission_flaw
from .model import Decision, Flaw, Intention, decision
from .reasons import Reason
from .sources import Candidates, candidates, group, keys_of

ReadingName = Literal["strict", "envoy"]

MEMORY = 1024
"""Decisions remembered per source; a memory that is full starts again."""

MAX_REMEMBERED = 1024
"""Longest target, in bytes, whose decision is remembered."""


@dataclass(frozen=True, slots=True)
class _Branch:
    """One intention in one or more readings of the path: the chain they lead to."""

    readings: tuple[str, ...]
    intention: Intention | None
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What one branch says in one reading of the headers."""

    allowed: bool
    reason: Reason
    permission: int | None = None
    doubts: frozenset[str] = frozenset()


class _Program:
    """Judges the requests of one source."""

    __slots__ = ("_default", "_memory", "_reading", "_tables", "decision", "found")

    def __init__(
        self,
        found: Candidates,
        default: Reason,
        reading: ReadingName,
        tables: dict[Intention, PathTable],
        *,
        connections: bool = False,
    ) -> None:
        self.found = found
        self._default = default
        self._reading = reading
        self._tables = tables
        self._memory: dict[object, Decision | tuple[_Branch, ...]] = {}
        self.decision = self._constant(connections)

    def _constant(self, connections: bool) -> Decision | None:
        """Decide beforehand, where the request does not matter."""
        relevant = self.found.all
        for intention in relevant:
            if flaw := _flaw(intention, judged=not connections):
                return decision(flaw.reason, intention, detail=flaw.detail)
        if any(intention.allow is None or intention.jwt for intention in relevant):
            if not connections:
                return None
        return self._constant_of(self.found.first)

    def _constant_of(self, first: Intention | None) -> Decision:
        if self._reading == "envoy" or self._default.allows:
            for intention in self.found.envoy:
                verdict = _connection_verdict(intention)
                if verdict.allows is not self._default.allows:
                    return decision(verdict, intention)
        if first is None:
            return decision(self._default)
        return decision(_connection_verdict(first), first)

    def judge(self, facts: RequestFacts) -> Decision:
        """Decide about one request of this source."""
        key = facts.key
        outcome = self._memory.get(key)
        if outcome is None:
            outcome = self._read_path(facts)
            self._remember(key, facts, outcome)
        if type(outcome) is Decision:
            return outcome
        assert not isinstance(outcome, Decision)
        return self._conclude(outcome, HeaderView(facts))

    def _remember(
        self, key: object, facts: RequestFacts, outcome: Decision | tuple[_Branch, ...]
    ) -> None:
        target = facts.target
        if len(facts.path if target is None else target) > MAX_REMEMBERED:
            return
        if len(self._memory) >= MEMORY:
            self._memory.clear()
        self._memory[key] = outcome

    def _read_path(self, facts: RequestFacts) -> Decision | tuple[_Branch, ...]:
        method = facts.method
        if not soundness.sound_method(method):
            return decision(Reason.UNSOUND_METHOD, detail=repr(method))
        target = facts.target
        if target is None:
            views = paths.readings(facts.path)
        else:
            split = soundness.split_target(target)
            if split is None:
                return decision(Reason.UNSOUND_TARGET, detail=repr(target[:200]))
            views = self._views(split[0], facts.path)
        branches = self._branches(method, views)
        if any(step.headers for branch in branches for step in branch.steps):
            return branches
        return self._conclude(branches, None)

    def _views(self, path: bytes, app: bytes) -> tuple[paths.Reading, ...]:
        if self._reading == "envoy":
            return (paths.Reading("normalized", paths.normalize(path)),)
        return paths.readings(path, app if app != paths.decode(path) else None)

    def _branches(self, method: bytes, views: Iterable[paths.Reading]) -> tuple[_Branch, ...]:
        first = self.found.first
        intentions: Sequence[Intention | None] = (first,)
        if self._reading == "envoy" or self._default.allows:
            intentions = self.found.envoy or (None,)
        found: dict[tuple[Intention | None, tuple[Step, ...]], list[str]] = {}
        for view in views:
            for intention in intentions:
                steps: tuple[Step, ...] = ()
                if intention is not None and intention.allow is None:
                    steps = self._tables[intention].chain(method, view.path)
                found.setdefault((intention, steps), []).append(view.name)
        return tuple(_Branch(tuple(names), key[0], key[1]) for key, names in found.items())

    def _conclude(self, branches: tuple[_Branch, ...], view: HeaderView | None) -> Decision:
        if self._reading == "envoy":
            return self._conclude_envoy(branches, view)
        verdicts = [self._walk(branch, view) for branch in branches]
        for branch, verdict in zip(branches, verdicts, strict=True):
            if not verdict.allowed:
                return self._refuse(branches, verdicts, branch, verdict, view)
        return decision(verdicts[0].reason, branches[0].intention, verdicts[0].permission)

    def _refuse(
        self,
        branches: Sequence[_Branch],
        verdicts: Sequence[_Verdict],
        branch: _Branch,
        verdict: _Verdict,
        view: HeaderView | None,
    ) -> Decision:
        plain = [self._walk(item, view, doubt=False) for item in branches]
        names: dict[str, None] = {}
        for item, strictly, simply in zip(branches, verdicts, plain, strict=True):
            if not simply.allowed:
                names.update(dict.fromkeys(item.readings))
            elif not strictly.allowed:
                names.update(dict.fromkeys(sorted(strictly.doubts)))
        reason = verdict.reason
        if not any(item.allowed for item in plain):
            return decision(reason, branch.intention, verdict.permission)
        return decision(
            Reason.READINGS_DIFFER,
            branch.intention,
            verdict.permission,
            readings=tuple(names),
            detail=reason.value,
        )

    def _conclude_envoy(self, branches: tuple[_Branch, ...], view: HeaderView | None) -> Decision:
        verdicts = [self._walk(branch, view, doubt=False) for branch in branches]
        for branch, verdict in zip(branches, verdicts, strict=True):
            if verdict.allowed is not self._default.allows:
                return decision(verdict.reason, branch.intention, verdict.permission)
        return decision(verdicts[0].reason, branches[0].intention, verdicts[0].permission)

    def _walk(self, branch: _Branch, view: HeaderView | None, *, doubt: bool = True) -> _Verdict:
        """Find the permission that decides; with *doubt*, whatever any reading denies is denied."""
        intention = branch.intention
        if intention is None:
            return _Verdict(self._default.allows, self._default)
        if intention.jwt:
            return _Verdict(False, Reason.JWT_NO_ENGINE)
        if intention.allow is not None:
            reason = _connection_verdict(intention)
            return _Verdict(reason.allows, reason)
        doubts: set[str] = set()
        for step in branch.steps:
            must, may = _judge_headers(step.headers, view, doubts, doubt)
            if step.allow and must and step.jwt:
                return _Verdict(False, Reason.JWT_NO_ENGINE, step.index)
            if step.allow and must:
                return _Verdict(True, Reason.PERMISSION_ALLOW, step.index)
            if not step.allow and may:
                return _Verdict(False, Reason.PERMISSION_DENY, step.index, frozenset(doubts))
        return _Verdict(self._default.allows, self._default, None, frozenset(doubts))


def _judge_headers(
    tests: Sequence[HeaderTest], view: HeaderView | None, doubts: set[str], doubt: bool
) -> tuple[bool, bool]:
    """Tell whether all tests pass in every reading, and whether they do in any."""
    if not tests:
        return True, True
    assert view is not None
    must = may = True
    for test in tests:
        read = view.alternatives(test.name)
        first = test.matches(read[0].values)
        every = some = first
        if doubt:
            for alternative in read[1:]:
                every, some = _weigh(test, alternative, first, (every, some), doubts)
        must, may = must and every, may and some
        if not may:
            return False, False
    return must, may


def _weigh(
    test: HeaderTest,
    alternative: Alternative,
    first: bool,
    known: tuple[bool, bool],
    doubts: set[str],
) -> tuple[bool, bool]:
    result = test.matches(alternative.values)
    if result is not first:
        doubts.add(alternative.name)
    return known[0] and result, known[1] or result


def _connection_verdict(intention: Intention) -> Reason:
    if intention.allow is None:
        return Reason.PERMISSIONS_ON_CONNECTION
    return Reason.INTENTION_ALLOW if intention.allow else Reason.INTENTION_DENY


def _flaw(intention: Intention, *, judged: bool) -> Flaw | None:
    if intention.flaw is not None or not judged:
        return intention.flaw
    return next((flaw for p in intention.permissions if (flaw := permission_flaw(p))), None)


class Policy:
    """
    Judges requests and connections for one service; made by `compile_policy`.

    Immutable to its users, and safe to use from many threads.
    """

    __slots__ = (
        "_connections",
        "_default",
        "_fatal",
        "_groups",
        "_programs",
        "_tables",
        "default_allow",
        "intentions",
        "protocol",
        "reading",
        "service",
        "trust_domain",
    )

    def __init__(
        self,
        intentions: Sequence[Intention],
        *,
        service: str,
        trust_domain: str,
        default_allow: bool | None,
        protocol: str,
        reading: ReadingName,
    ) -> None:
        self.intentions = tuple(intentions)
        self.service = service
        self.trust_domain = trust_domain
        self.default_allow = default_allow
        self.protocol = protocol
        self.reading: ReadingName = reading
        self._default = _default_reason(default_allow)
        self._groups = group(self.intentions)
        self._programs: dict[object, _Program] = {}
        self._connections: dict[object, _Program] = {}
        self._tables: dict[Intention, PathTable] = {}
        self._fatal = self._find_fatal()

    def __repr__(self) -> str:
        default = {True: "allow", False: "deny", None: "unknown"}[self.default_allow]
        return (
            f"Policy({self.service!r}, {len(self.intentions)} intentions, default {default}, "
            f"{self.protocol}, {self.reading})"
        )

    def decide(self, source: SpiffeId | None, facts: RequestFacts) -> Decision:
        """
        Judge one request.

        Args:
            source: the verified SPIFFE ID of the peer; ``None`` when it showed none.
            facts: the request; not touched when the identity alone decides.

        Returns:
            The verdict, never an exception for anything a caller can send.
        """
        if type(source) is not ServiceId or source.trust_domain != self.trust_domain:
            return self._refuse_stranger(source)
        program = self._programs.get((source.name, source.namespace, source.partition))
        if program is None:
            program = self._program(source)
        if program.decision is not None:
            return program.decision
        return program.judge(facts)

    def decide_connection(self, source: SpiffeId | None) -> Decision:
        """
        Judge a connection before any request: intentions with permissions count as denials.

        Source: reference 5.1, "decide(L7) on connection".
        """
        if type(source) is not ServiceId or source.trust_domain != self.trust_domain:
            return self._refuse_stranger(source)
        program = self._program(source, connections=True)
        assert program.decision is not None
        return program.decision

    def may_connect(self, source: SpiffeId | None) -> bool:
        """Tell whether any request of *source* could be allowed: for refusing early."""
        if type(source) is not ServiceId or source.trust_domain != self.trust_domain:
            return False
        program = self._program(source)
        return program.decision is None or program.decision.allowed

    def _refuse_stranger(self, source: SpiffeId | None) -> Decision:
        if source is None:
            return decision(Reason.NO_PEER)
        if source.trust_domain != self.trust_domain:
            return decision(Reason.FOREIGN_TRUST_DOMAIN)
        return decision(Reason.PEER_NOT_SERVICE)

    def _program(self, source: ServiceId, *, connections: bool = False) -> _Program:
        connections = connections or self.protocol == "tcp"
        known = self._connections if connections else self._programs
        keys = keys_of(source.name, source.namespace, source.partition)
        # Names without an intention of their own share the program of the wildcard above them:
        # what is kept is bounded by the intentions, not by the callers.
        key = keys[0] if keys[0] in self._groups else keys[1]
        program = known.get(key)
        if program is None:
            program = known[key] = self._compile(candidates(self._groups, keys), connections)
            if connections and self.protocol == "tcp":
                self._programs[key] = program
        return program

    def _compile(self, found: Candidates, connections: bool) -> _Program:
        if not connections and self._fatal is None:
            for intention in found.all:
                if intention.allow is None and intention not in self._tables:
                    if _flaw(intention, judged=True) is None:
                        self._tables[intention] = PathTable(intention.permissions)
        program = _Program(
            found, self._default, self.reading, self._tables, connections=connections
        )
        if self._fatal is not None:
            program.decision = self._fatal
        return program

    def _find_fatal(self) -> Decision | None:
        judged = self.protocol != "tcp"
        for intention in self.intentions:
            flaw = _flaw(intention, judged=judged)
            if flaw is not None and flaw.everyone:
                return decision(flaw.reason, intention, detail=flaw.detail)
        return None


def _default_reason(default_allow: bool | None) -> Reason:
    if default_allow is None:
        return Reason.DEFAULT_UNKNOWN
    return Reason.DEFAULT_ALLOW if default_allow else Reason.DEFAULT_DENY


def compile_policy(
    intentions: Iterable[Intention],
    *,
    service: str,
    trust_domain: str,
    default_allow: bool | None,
    protocol: str = "http",
    reading: ReadingName = "strict",
    previous: Policy | None = None,
) -> Policy:
    """
    Make a policy of intentions.

    Args:
        intentions: all that match this service as destination, in any order.
        service: name of this service.
        trust_domain: ours; callers of any other are refused.
        default_allow: the default policy; ``None`` when it is not known, which denies.
        protocol: of this service in Consul: ``tcp`` judges identities only.
        reading: ``strict`` allows what every reading of a request allows, ``envoy`` what Envoy
            would.
        previous: the policy this one replaces; what did not change is taken over.

    Returns:
        The policy. Intentions that cannot be read make it deny, not fail.
    """
    return Policy(
        tuple(intentions),
        service=service,
        trust_domain=trust_domain,
        default_allow=default_allow,
        protocol=protocol,
        reading=reading,
    )
