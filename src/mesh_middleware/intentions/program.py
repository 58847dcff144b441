"""
The judge of one source: what its intentions say about a request.

Owns the walk through permissions, in one reading and in all of them, and the memory of past
answers. Knows nothing of how a source is found.

Theory: the path is read in every way (`paths`); each reading gives the *chain* of permissions whose
method and path match. What is left depends on headers and tokens; where nothing is left, the
answer is remembered. A header criterion is judged in every reading of the header: it *must* match
when it does in all of them, it *may* when it does in any. An allowing permission decides when it
must match, a denying one when it may: so whatever any combination of readings denies is denied, in
one walk.

Source: reference 5.1 to 5.4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import quote_from_bytes

from . import paths, wire
from .facts import RequestFacts
from .headers import Alternative, HeaderView, TooMuchError
from .jwt import Tokens
from .matchers import HeaderTest, PathTable, Step
from .memory import Memory
from .model import Decision, Intention, JwtDemand, Normalization, decision
from .reasons import Reason
from .sources import Candidates

ReadingName = Literal["strict", "envoy"]

MAX_REMEMBERED = 512
"""Longest path, in bytes, whose answer is remembered."""

MAX_AMBIGUOUS = 8192
"""Longest path, in bytes, that is read in more than one way: longer ones are refused."""

WORDS = {
    "precedence": "by precedence alone: the highest intention decides",
    "envoy_rules": "by the rules Envoy is given: what any intention left standing says",
    "jwt": "a token by our terms: stricter than Envoy's, and enforced under a default of allow",
    "unreadable": "a pattern that Envoy takes, or leaves out of its rules, and we refuse",
    "too_long": f"a path that is not plain, of more than {MAX_AMBIGUOUS} bytes",
}
"""Names of readings that concern intentions, and what they mean."""


@dataclass(frozen=True, slots=True)
class Terms:
    """
    What all sources of a policy share.

    Args:
        default: what holds where nothing matched.
        reading: how requests are read.
        options: the mesh entry's request normalization.
        tokens: makes the tokens of a request.
        token_headers: headers that proxies may take out of a request for the token in them.
        memory: what is remembered together.
    """

    default: Reason
    reading: ReadingName
    options: Normalization
    tokens: Callable[[RequestFacts, HeaderView], Tokens]
    token_headers: frozenset[bytes] = frozenset()
    memory: Memory[Decision | Outcome] = field(default_factory=Memory, compare=False)


_REASONS = {
    True: Reason.INTENTION_ALLOW,
    False: Reason.INTENTION_DENY,
    None: Reason.PERMISSIONS_ON_CONNECTION,
}


_OUR_FAULT = (Reason.JWT_UNKNOWN_PROVIDER, Reason.JWT_NO_KEYS, Reason.JWT_NO_ENGINE)
"""Why tokens cannot be judged at all: denied whatever the default is."""


class Branch(NamedTuple):
    """One intention, or the default, and the permissions that some readings of a path lead to."""

    readings: tuple[str, ...]
    intention: Intention | None
    steps: tuple[Step, ...]


class Verdict(NamedTuple):
    """What a branch says; *doubts* name the readings that made it stricter."""

    allowed: bool
    reason: Reason
    permission: int | None = None
    doubts: frozenset[str] = frozenset()


class Outcome(NamedTuple):
    """What a path leads to: the branches that decide, and what Envoy's rules would ask."""

    branches: tuple[Branch, ...]
    envoy: tuple[Branch, ...]

    @property
    def final(self) -> bool:
        """Whether neither headers nor tokens matter any more."""
        for branch in (*self.branches, *self.envoy):
            if branch.intention is not None and branch.intention.jwt:
                return False
            for step in branch.steps:
                if step.headers or step.jwt:
                    return False
        return True


class Request:
    """What walking needs of one request: its headers and tokens, each read at most once."""

    __slots__ = ("_facts", "_terms", "_tokens", "_view", "claims")

    def __init__(self, facts: RequestFacts, terms: Terms) -> None:
        self._facts = facts
        self._terms = terms
        self._view: HeaderView | None = None
        self._tokens: Tokens | None = None
        self.claims: dict[str, Mapping[str, Any]] = {}

    @property
    def view(self) -> HeaderView:
        """The headers."""
        if self._view is None:
            strict = self._terms.reading == "strict"
            self._view = HeaderView(self._facts, self._terms.options, strict=strict)
        return self._view

    @property
    def tokens(self) -> Tokens:
        """The tokens."""
        if self._tokens is None:
            self._tokens = self._terms.tokens(self._facts, self.view)
        return self._tokens

    def alternatives(self, name: bytes) -> tuple[Alternative, ...]:
        """Read one header, Envoy's reading first; see `HeaderView.alternatives`."""
        found = (self._view or self.view).alternatives(name)
        if name in self._terms.token_headers and name in self.tokens.removed:
            return (Alternative("proxy", None), *found)
        return found

    def unmet(self, demands: Sequence[JwtDemand], *, lenient: bool = False) -> Reason | None:
        """
        Tell why no token satisfies any of *demands*; ``None`` when one does, or none is made.

        Args:
            lenient: whether tokens are judged as Envoy does, not as we do.
        """
        if not demands:
            return None
        found = self.tokens.satisfy(demands, lenient=lenient)
        if isinstance(found, Reason):
            return found
        self.claims.update(found)
        return None


class Program:
    """
    Judges the requests of one source.

    Args:
        found: the intentions that have a say.
        terms: what all sources share.
        tables: permissions of each intention in *found* that has some, by `id`.
        connection: whether connections are judged, where permissions count as denials.
    """

    __slots__ = (
        "_answers",
        "_asked",
        "_connection",
        "_memory",
        "_simple",
        "_tables",
        "_terms",
        "decision",
        "found",
    )

    def __init__(
        self,
        found: Candidates,
        terms: Terms,
        tables: Mapping[int, PathTable],
        *,
        connection: bool = False,
    ) -> None:
        self.found = found
        self._connection = connection
        self._terms = terms
        self._tables = tables
        self._memory: dict[object, Decision | Outcome] = {}
        self._answers: dict[object, Decision] = {}
        # Whose permissions are walked; and whether Envoy's rules have to be asked beside them.
        cautious = terms.default is not Reason.DEFAULT_DENY
        envoy = terms.reading == "envoy"
        self._asked = found.envoy if envoy else found.strict(cautious)
        self._simple = not envoy and found.simple
        self.decision: Decision | None = self._beforehand()

    def _beforehand(self) -> Decision | None:
        """Decide now, where no request matters."""
        if not self._connection and any(i.allow is None or i.jwt for i in self.found.all):
            return None
        nowhere = (paths.Reading("normalized", b"/"),)
        return self._conclude(self._outcome(b"GET", nowhere, nowhere), None)

    def judge(self, facts: RequestFacts) -> Decision:
        """Decide about one request of this source."""
        key = facts.key
        outcome = self._memory.get(key)
        if outcome is None:
            outcome = self._read_path(facts)
            self._remember(key, facts, outcome)
        if type(outcome) is Outcome:
            try:
                return self._conclude(outcome, Request(facts, self._terms))
            except TooMuchError as error:
                return decision(
                    Reason.UNSOUND_HEADER, readings=("headers_split",), detail=str(error)
                )
        assert isinstance(outcome, Decision)
        return outcome

    def _remember(self, key: object, facts: RequestFacts, outcome: Decision | Outcome) -> None:
        target = facts.target
        if len(facts.path if target is None else target) > MAX_REMEMBERED:
            return
        if facts.method in wire.METHODS:
            self._terms.memory.keep(self._memory, key, outcome)

    def _read_path(self, facts: RequestFacts) -> Decision | Outcome:
        method, app, target = facts.method, facts.path, facts.target
        if method not in wire.METHODS:
            return decision(Reason.UNSOUND_METHOD, detail=repr(method[:100]))
        if len(app if target is None else target) > wire.MAX_HEAD:
            return decision(Reason.UNSOUND_TARGET, detail="a target that is too long")
        raw = app if target is None else target.partition(b"?")[0]
        if raw == app and app and paths.PLAIN.fullmatch(app) and not facts.odd_query:
            plain = (paths.Reading("normalized", app),)
            return self._settle(self._outcome(method, plain, plain))
        return self._read_odd(facts, method, app)

    def _read_odd(self, facts: RequestFacts, method: bytes, app: bytes) -> Decision | Outcome:
        """Read a path that layers may read differently."""
        path, options = self._raw_path(facts, app), self._terms.options
        strict = self._terms.reading == "strict"
        if strict and path is not None and len(path) > MAX_AMBIGUOUS:
            return decision(Reason.UNSOUND_TARGET, readings=("too_long",))
        normal = paths.envoy_path(path, options) if path is not None else None
        if path is None or normal is None:
            return decision(Reason.UNSOUND_TARGET, detail=repr((facts.target or app)[:200]))
        if strict and paths.has_nul(path):
            return decision(Reason.UNSOUND_TARGET, readings=("decoded",))
        first = (paths.Reading("normalized", normal),)
        views = paths.readings(path, app, normal) if strict else first
        return self._settle(self._outcome(method, views, first))

    def _settle(self, outcome: Outcome) -> Decision | Outcome:
        return self._conclude(outcome, None) if outcome.final else outcome

    def _raw_path(self, facts: RequestFacts, app: bytes) -> bytes | None:
        """Find the raw path; ``None`` when no sound client sends it."""
        target = facts.target
        if target is None:
            if not app.startswith(b"/") or b"\0" in app or facts.odd_query:
                return None
            return quote_from_bytes(app, safe="/!$&'()*+,;=:@").encode()
        parts = wire.split_target(target)
        return parts.path if parts is not None else None

    def _outcome(
        self, method: bytes, views: Sequence[paths.Reading], normal: Sequence[paths.Reading]
    ) -> Outcome:
        branches = self._branches(self._asked, method, views)
        if self._simple:
            return Outcome(branches, ())
        if self._terms.reading == "envoy":
            return Outcome(branches, branches)
        return Outcome(branches, self._branches(self.found.envoy, method, normal))

    def _branches(
        self,
        intentions: Sequence[Intention | None],
        method: bytes,
        views: Sequence[paths.Reading],
    ) -> tuple[Branch, ...]:
        found = []
        for intention in intentions:
            table = self._tables.get(id(intention))
            if len(views) == 1 or table is None:
                steps = table.chain(method, views[0]) if table is not None else ()
                found.append(Branch(tuple(view.name for view in views), intention, steps))
                continue
            chains: dict[tuple[Step, ...], list[str]] = {}
            for view in views:
                chains.setdefault(table.chain(method, view), []).append(view.name)
            found += [Branch(tuple(names), intention, steps) for steps, names in chains.items()]
        return tuple(found)

    def _conclude(self, outcome: Outcome, request: Request | None) -> Decision:
        if self._terms.reading == "envoy":
            return self._conclude_envoy(outcome.envoy, request)
        verdicts = [self._walk(branch, request, doubt=True) for branch in outcome.branches]
        for refused, verdict in enumerate(verdicts):
            if not verdict.allowed:
                return self._refuse(outcome, verdicts, refused, request)
        branch, verdict = outcome.branches[0], verdicts[0]
        answer = self._plain(verdict, branch.intention)
        if request is not None and request.claims:
            answer = replace(answer, claims=request.claims)
        return answer

    def _plain(self, verdict: Verdict, intention: Intention | None) -> Decision:
        """Make a decision without readings; equal ones of one program are the same object."""
        key = (verdict.permission, verdict.reason._value_, id(intention))
        known = self._answers.get(key)
        if known is None:
            known = decision(verdict.reason, intention, verdict.permission)
            self._answers[key] = known
        return known

    def _conclude_envoy(self, branches: Sequence[Branch], request: Request | None) -> Decision:
        """Find the rule that fires: one that differs from the default. Without any, the default."""
        default = self._terms.default
        verdicts = [self._walk(branch, request, doubt=False) for branch in branches]
        for branch, verdict in zip(branches, verdicts, strict=True):
            if verdict.allowed is not default.allows:
                answer = decision(verdict.reason, branch.intention, verdict.permission)
                if request is not None and request.claims and answer.allowed:
                    answer = replace(answer, claims=request.claims)
                return answer
        if not branches:
            return decision(default)
        return decision(verdicts[0].reason, branches[0].intention, verdicts[0].permission)

    def _refuse(
        self,
        outcome: Outcome,
        verdicts: Sequence[Verdict],
        refused: int,
        request: Request | None,
    ) -> Decision:
        """Tell whether it is plainly denied, or only in some readings, and name these."""
        branch, verdict = outcome.branches[refused], verdicts[refused]
        names = self._differing(outcome, verdicts, request)
        if not names:
            return self._plain(verdict, branch.intention)
        # What is wrong with a token tells more than that another reader would take it.
        reason = verdict.reason if names == ("jwt",) else Reason.READINGS_DIFFER
        return decision(
            reason,
            branch.intention,
            verdict.permission,
            readings=names,
            detail=verdict.reason.value,
        )

    def _differing(
        self, outcome: Outcome, verdicts: Sequence[Verdict], request: Request | None
    ) -> tuple[str, ...]:
        names: dict[str, None] = {}
        plain = [self._walk(branch, request, doubt=False) for branch in outcome.branches]
        # By identity: to compare intentions, or hash them, is work as large as they are.
        asked = {id(branch.intention): branch.intention for branch in outcome.branches}
        for intention in asked.values():
            own = [n for n, branch in enumerate(outcome.branches) if branch.intention is intention]
            some = any(plain[n].allowed for n in own)
            for n in own:
                if plain[n].allowed and not verdicts[n].allowed:
                    names.update(dict.fromkeys(sorted(verdicts[n].doubts)))
                elif some and not plain[n].allowed:
                    names.update(dict.fromkeys(outcome.branches[n].readings))
            if not some and any(verdict.allowed for verdict in plain):
                first = intention is self.found.first
                names["precedence" if first else "envoy_rules"] = None
        if not names and outcome.envoy and self._conclude_envoy(outcome.envoy, request).allowed:
            names["precedence"] = None
        return tuple(names)

    def _walk(self, branch: Branch, request: Request | None, *, doubt: bool) -> Verdict:
        """
        Find what decides in one branch.

        Args:
            doubt: whether what any reading of headers denies is denied, and tokens are always
                enforced; else Envoy's reading alone counts.
        """
        intention, default = branch.intention, self._terms.default
        if intention is None:
            return Verdict(default.allows, default)
        if self._connection or intention.allow is not None:
            reason = _REASONS[intention.allow]
            return self._with_tokens(Verdict(reason.allows, reason), intention.jwt, request, doubt)
        doubts: set[str] = set()
        for step in branch.steps:
            must = may = True
            if step.headers:
                must, may = _judge_headers(step.headers, request, doubts, doubt)
            if must if step.allow else may:
                reason = Reason.PERMISSION_ALLOW if step.allow else Reason.PERMISSION_DENY
                verdict = Verdict(step.allow, reason, step.index, frozenset(doubts))
                if not (intention.jwt or step.jwt):
                    return verdict
                for demands in (intention.jwt, step.jwt):
                    verdict = self._with_tokens(verdict, demands, request, doubt)
                return verdict
        verdict = Verdict(default.allows, default, None, frozenset(doubts))
        if not doubt:
            return verdict
        return self._with_tokens(verdict, intention.jwt, request, doubt)

    def _with_tokens(
        self,
        verdict: Verdict,
        demands: Sequence[JwtDemand],
        request: Request | None,
        doubt: bool,
    ) -> Verdict:
        """Put the demand for a token to a verdict; see reference 5.3, "JWT in RBAC"."""
        if not demands or request is None:
            return verdict
        default = self._terms.default
        if doubt:
            if not verdict.allowed:
                return verdict._replace(doubts=verdict.doubts | {"jwt"})
            unmet = request.unmet(demands)
            if unmet is None:
                return verdict
            return Verdict(False, unmet, verdict.permission, verdict.doubts | {"jwt"})
        if verdict.allowed is default.allows:
            return verdict
        unmet = request.unmet(demands, lenient=True)
        if unmet is None:
            return verdict
        if unmet in _OUR_FAULT:
            return Verdict(False, unmet, verdict.permission)
        return Verdict(default.allows, default if default.allows else unmet, verdict.permission)


def _judge_headers(
    tests: Sequence[HeaderTest], request: Request | None, doubts: set[str], doubt: bool
) -> tuple[bool, bool]:
    """Tell whether all tests pass in every reading, and whether they do in any."""
    assert request is not None
    must = may = True
    for test in tests:
        read = request.alternatives(test.name)
        every = some = first = test.matches(read[0].values)
        if doubt and read[0].made_up and test.test is not None:
            doubts.add("proxy")
            every, some = False, True
        elif doubt and len(read) > 1:
            for alternative in read:
                result = test.matches(alternative.values)
                if result is not first:
                    doubts.add(alternative.name)
                every, some = every and result, some or result
        must, may = must and every, may and some
        if not may:
            return False, False
    return must, may
