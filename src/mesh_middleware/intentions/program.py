"""
The judge of one source: what its intentions say about a request.

Owns the reading of a request's path, the conclusion from what each reading leads to, and the memory
of past answers. Knows nothing of how a source is found; the walk through permissions is in `walk`.

Theory: the path is read in every way (`paths`); each reading gives the *chain* of permissions whose
method and path match. What is left depends on headers and tokens; where nothing is left, the
answer is remembered.

Source: reference 5.1 to 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from . import paths, wire
from .facts import RequestFacts
from .headers import HeaderView, TooMuchError
from .matchers import PathTable, Step
from .model import Decision, Intention, decision
from .reasons import Reason
from .sources import Candidates
from .terms import Request, Terms
from .walk import Branch, Verdict, walk, walk_plainly

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

_NORMALIZED = ("normalized",)


class Outcome(NamedTuple):
    """
    What a path leads to: the branches that decide, and what Envoy's rules would ask.

    It is *plain* where one branch, of an intention with permissions and without a demand for a
    token, decides alone.
    """

    branches: tuple[Branch, ...]
    envoy: tuple[Branch, ...]
    plain: bool = False

    @property
    def final(self) -> bool:
        """Whether neither headers nor tokens matter any more."""
        return all(branch.final for branch in (*self.branches, *self.envoy))


class Program:
    """
    Judges the requests of one source.

    Args:
        found: the intentions that have a say.
        terms: what all sources share.
        tables: permissions of each intention in *found* that has some, by `id`.
        connection: whether connections are judged, where permissions count as denials.
        requests: whether there are requests nevertheless, so that tokens can be demanded: a
            service that Consul takes for tcp still speaks HTTP to us.
    """

    __slots__ = (
        "_answers",
        "_asked",
        "_connection",
        "_lone",
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
        requests: bool = True,
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
        self._lone = self._find_lone()
        self.decision: Decision | None = self._beforehand(requests)

    def _beforehand(self, requests: bool) -> Decision | None:
        """Decide now, where no request matters."""
        # Consul has tokens ignored on tcp; only the strict reading asks for them all the same.
        paths_count = not self._connection
        tokens_count = paths_count or (requests and self._terms.reading == "strict")
        for one in self.found.all:
            if (paths_count and one.allow is None) or (tokens_count and one.jwt):
                return None
        nowhere = (paths.Reading("normalized", b"/"),)
        return self._conclude(self._outcome(b"GET", nowhere, nowhere), None)

    def _find_lone(self) -> tuple[Intention, PathTable] | None:
        """Find the one intention that decides all alone, by permissions and without a token."""
        first = self.found.first
        if not self._simple or first is None or first.jwt or id(first) not in self._tables:
            return None
        return first, self._tables[id(first)]

    def judge(self, facts: RequestFacts) -> Decision:
        """Decide about one request of this source."""
        key = facts.key
        outcome = self._memory.get(key)
        if outcome is None:
            outcome = self._read_path(key, facts)
        if type(outcome) is not Outcome:
            assert isinstance(outcome, Decision)
            return outcome
        terms = self._terms
        view = HeaderView(facts, terms.options, strict=terms.reading == "strict")
        try:
            if outcome.plain and not terms.token_headers:
                branch = outcome.branches[0]
                found = walk_plainly(branch.steps, terms.default, view)
                if found is not None:
                    return self._plain(found[0], branch.intention, found[1])
            return self._conclude(outcome, Request(facts, terms, view))
        except TooMuchError as error:
            return decision(Reason.UNSOUND_HEADER, readings=("headers_split",), detail=str(error))

    def is_settled(self, facts: RequestFacts) -> bool:
        """Whether every request with this `RequestFacts.key` gets the answer that this one got."""
        return self.decision is not None or type(self._memory.get(facts.key)) is Decision

    def _read_path(self, key: object, facts: RequestFacts) -> Decision | Outcome:
        """Find what method and path lead to; remembered under *key*, unless it is large."""
        method, app, target = facts.method, facts.path, facts.target
        if method not in wire.METHODS:
            return decision(Reason.UNSOUND_METHOD, detail=repr(method[:100]))
        size = len(app if target is None else target)
        if size > wire.MAX_HEAD:
            return decision(Reason.UNSOUND_TARGET, detail="a target that is too long")
        raw = app if target is None else target.partition(b"?")[0]
        if raw == app and app and paths.PLAIN.fullmatch(app) and not facts.odd_query:
            outcome = self._read_plain(method, paths.Reading("normalized", app))
        else:
            outcome = self._read_odd(facts, method, app)
        if size <= MAX_REMEMBERED:
            self._terms.memory.keep(self._memory, key, outcome)
        return outcome

    def _read_plain(self, method: bytes, view: paths.Reading) -> Decision | Outcome:
        """Read a path that all layers read alike: nearly every path there is."""
        if self._lone is None:
            return self._settle(self._outcome(method, (view,), (view,)))
        intention, table = self._lone
        steps = table.chain(method, view)
        if not steps:
            return self._plain(self._terms.default, intention)
        step = steps[0]
        if step.headers or step.jwt:
            return Outcome((Branch(_NORMALIZED, intention, steps),), (), True)
        return self._plain(step.reason, intention, step.index)

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
        answer = self._plain(verdict.reason, branch.intention, verdict.permission)
        if request is not None and request.claims:
            answer = replace(answer, claims=request.claims)
        return answer

    def _plain(
        self, reason: Reason, intention: Intention | None, permission: int | None = None
    ) -> Decision:
        """Make a decision without readings; equal ones of one program are the same object."""
        key = (permission, reason._value_, id(intention))
        known = self._answers.get(key)
        if known is None:
            known = self._answers[key] = decision(reason, intention, permission)
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
            return self._plain(verdict.reason, branch.intention, verdict.permission)
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
        default = self._terms.default
        return walk(branch, default, request, doubt=doubt, connection=self._connection)
