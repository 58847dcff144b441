"""
A policy: every intention about this service, ready to judge.

Owns the way from a source to its judge (`program`). A policy never changes; a change of intentions
makes a new one, which takes over what stayed the same. Judging reads no lock, network or disk, and
a clock only where a token is demanded; what it remembers is bounded.

Source: reference 5.1 to 5.3.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from ..exceptions import IdentityError
from ..identity import ServiceId, SpiffeId, parse_spiffe_id
from . import sources
from .facts import RequestFacts
from .matchers import (
    PathTable,
    Test,
    envoy_refuses,
    full_match,
    permission_flaw,
    read_by_envoy,
    source_flaw,
)
from .model import Decision, Flaw, Intention, Normalization, decision, order
from .program import Program
from .reasons import Reason
from .sources import Candidates
from .terms import ReadingName, Terms

if TYPE_CHECKING:
    from .headers import HeaderView
    from .jwt import JwtProvider, Tokens

MAX_STRANGERS = 1024
"""Sources remembered beyond those with an intention of their own, where names are odd."""

WORDS = {
    "identity": "the caller is no service of this trust domain: refused, while Envoy's rules let "
    "it in",
    "partition": "an intention names a partition in upper case, as no partition is called: whom it "
    "is about is not known, so everyone is refused",
}
"""Names of readings that concern who calls, and what they mean."""

_TAKEN = (Reason.BAD_PATTERN, Reason.PATTERN_TOO_LARGE)
"""Flaws of a single permission that Envoy does not mind: it takes the pattern, or never gets it."""

EAGER = 64
"""Permissions of one intention from which on its table is made when the policy is."""


class Policy:
    """
    Judges requests and connections for one service; made by `compile_policy`.

    Immutable to its users, and safe to use from many threads.
    """

    __slots__ = (
        "_connections",
        "_fatal",
        "_groups",
        "_odd",
        "_programs",
        "_tables",
        "_terms",
        "_tests",
        "default_allow",
        "intentions",
        "protocol",
        "reading",
        "service",
        "trust_domain",
    )

    def __init__(
        self,
        intentions: tuple[Intention, ...],
        *,
        service: str,
        trust_domain: str,
        default_allow: bool | None,
        protocol: str,
        terms: Terms,
        previous: Policy | None,
    ) -> None:
        self.intentions = intentions
        self.service = service
        self.trust_domain = trust_domain
        self.default_allow = default_allow
        self.protocol = protocol
        self.reading = terms.reading
        self._terms = terms
        self._groups = sources.group(intentions)
        self._odd = sources.odd(self._groups)
        self._tests: list[tuple[Test, Intention]] | None = None
        self._programs: dict[object, Program] = {}
        self._connections: dict[object, Program] = {}
        self._tables: dict[Intention, PathTable] = {}
        self._fatal = _find_fatal(self)
        if self._fatal is None:
            self._prepare(previous)

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
            return self._refuse_stranger(source) if source else decision(Reason.NO_PEER)
        program = self._programs.get((source.name, source.namespace, source.partition))
        if program is None:
            program = self._program(source)
        if program.decision is not None:
            return program.decision
        return program.judge(facts)

    def is_settled(self, source: SpiffeId, facts: RequestFacts) -> bool:
        """
        Tell whether what `decide` said of *facts* holds for every request of *source* like it.

        That is: whether identity, method and path alone have decided. Then all requests with the
        same `RequestFacts.key` get the same answer.
        """
        return type(source) is ServiceId and self._program(source).is_settled(facts)

    def decide_connection(self, source: SpiffeId | None) -> Decision:
        """
        Judge a connection before any request: intentions with permissions count as denials.

        Source: reference 5.1, "decide(L7) on connection"; 5.2.
        """
        if type(source) is not ServiceId or source.trust_domain != self.trust_domain:
            return self._refuse_stranger(source) if source else decision(Reason.NO_PEER)
        answer = self._program(source, requests=False).decision
        assert answer is not None
        return answer

    def may_connect(self, source: SpiffeId | None) -> bool:
        """Tell whether any request of *source* could be allowed: for refusing early."""
        if type(source) is not ServiceId or source.trust_domain != self.trust_domain:
            return False
        answer = self._program(source).decision
        return answer is None or answer.allowed

    def candidates(self, source: ServiceId) -> Candidates:
        """Choose the intentions that have a say about *source*: for explaining."""
        if not self._odd:
            return sources.candidates(self._groups, source)
        text = source.uri.encode()
        matched = [item for test, item in self._odd_tests() if test(text)]
        return sources.odd_candidates(self._groups, source, matched)

    def _odd_tests(self) -> list[tuple[Test, Intention]]:
        """Compile what Envoy matches odd names with, once."""
        if self._tests is None:
            patterns = [(sources.pattern(item, self.trust_domain), item) for item in self._odd]
            found = [(full_match(pattern), item) for pattern, item in patterns]
            self._tests = [(test, item) for test, item in found if test is not None]
        return self._tests

    def _matcher(self, uri: str) -> Callable[[Intention], bool]:
        text = uri.encode("utf-8", "surrogateescape")

        def matches(intention: Intention) -> bool:
            test = full_match(sources.pattern(intention, self.trust_domain))
            return test is not None and test(text)

        return matches

    def decide_uri(self, uri: str, facts: RequestFacts | None) -> Decision:
        """
        Judge a request, or a connection when *facts* is ``None``, of whoever *uri* names.

        In the ``envoy`` reading this is Envoy's verdict for strangers too: any text is matched
        against the rules, and where none is about it, the default holds. `decide` refuses them.
        """
        source: SpiffeId | None = None
        with contextlib.suppress(IdentityError):
            source = parse_spiffe_id(uri)
        if type(source) is ServiceId and source.trust_domain == self.trust_domain:
            return self.decide_connection(source) if facts is None else self.decide(source, facts)
        let_in = self._decide_stranger(uri, facts)
        if self.reading == "envoy":
            return let_in
        differing = ("identity",) if let_in.allowed else let_in.readings
        return replace(self._refuse_stranger(source), readings=differing)

    def _decide_stranger(self, uri: str, facts: RequestFacts | None) -> Decision:
        """Judge as Envoy does, by rules that may or may not match the text of a SPIFFE ID."""
        found = sorted(filter(self._matcher(uri), self._groups.values()), key=order)
        envoy = Candidates(None, sources.standing(found))
        terms = replace(self._terms, reading="envoy")
        program = self._compile(envoy, facts is not None, terms)
        if program.decision is not None:
            return program.decision
        assert facts is not None
        return program.judge(facts)

    def _refuse_stranger(self, source: SpiffeId | None) -> Decision:
        if source is None:
            return decision(Reason.PEER_UNREADABLE)
        if source.trust_domain != self.trust_domain:
            return decision(Reason.FOREIGN_TRUST_DOMAIN)
        return decision(Reason.PEER_NOT_SERVICE)

    def _program(self, source: ServiceId, *, requests: bool = True) -> Program:
        known = self._programs if requests else self._connections
        own, namespace, _ = sources.keys_of(source)
        # Names without an intention of their own share the program of the wildcard above them:
        # what is kept is bounded by the intentions, not by the callers. Odd names break that.
        key: object = own if own in self._groups else namespace
        if self._odd:
            key = source.uri
        program = known.get(key)
        if program is None:
            if self._odd and len(known) > MAX_STRANGERS:
                known.clear()
            program = known[key] = self._compile(self.candidates(source), requests)
        return program

    def _compile(self, found: Candidates, requests: bool, terms: Terms | None = None) -> Program:
        terms = terms or self._terms
        connection = not requests or self.protocol == "tcp"
        if self._fatal is not None:
            return _constant(terms, self._fatal)
        for intention in found.all:
            taken = _TAKEN if terms.reading == "envoy" else ()
            if flaw := intention.flaw if connection else _flaw(intention, taken):
                readings = ("unreadable",) if flaw.reason in _TAKEN else ()
                answer = decision(flaw.reason, intention, readings=readings, detail=flaw.detail)
                return _constant(terms, answer)
        tables = {}
        for intention in found.all:
            if intention.allow is None and not connection:
                tables[id(intention)] = self._table(intention)
        return Program(found, terms, tables, connection=connection, requests=requests)

    def _table(self, intention: Intention) -> PathTable:
        table = self._tables.get(intention)
        if table is None:
            permissions = intention.permissions
            if self.reading == "envoy":
                permissions = read_by_envoy(permissions)
            table = self._tables[intention] = PathTable(permissions)
        return table

    def _prepare(self, previous: Policy | None) -> None:
        """Take over the tables that still hold, and make those that would delay a request."""
        # Readings differ in which permissions they leave out.
        same = previous is not None and previous.reading == self.reading
        known = previous._tables if previous is not None and same else {}
        if self.protocol == "tcp":
            return
        for intention in self._groups.values():
            if intention.allow is None:
                if intention in known:
                    self._tables[intention] = known[intention]
                elif len(intention.permissions) >= EAGER and _flaw(intention) is None:
                    self._table(intention)


def _constant(terms: Terms, answer: Decision) -> Program:
    program = Program(Candidates(None, ()), terms, {}, connection=True, requests=False)
    program.decision = answer
    return program


def _flaw(intention: Intention, taken: Collection[Reason] = ()) -> Flaw | None:
    if intention.flaw is not None:
        return intention.flaw
    flaws = filter(None, map(permission_flaw, intention.permissions))
    return next((flaw for flaw in flaws if flaw.reason not in taken), None)


def _find_fatal(policy: Policy) -> Decision | None:
    """Find what denies everyone: a source that cannot be read, a configuration Envoy refuses."""
    for intention in policy.intentions:
        if intention.flaw is not None and intention.flaw.everyone:
            return decision(intention.flaw.reason, intention, detail=intention.flaw.detail)
        if policy.reading == "strict" and intention.partition != intention.partition.lower():
            # Envoy's patterns tell such letters apart, Consul's own comparison does not.
            detail = f"SourcePartition {intention.partition!r}"
            answer = Reason.UNREADABLE_SOURCE
            return decision(answer, intention, readings=("partition",), detail=detail)
    tcp, default_allow = policy.protocol == "tcp", bool(policy.default_allow)
    for intention in sources.configured(policy._groups, policy._odd, default_allow, tcp=tcp):
        if flaw := source_flaw(sources.pattern(intention, policy.trust_domain)):
            return decision(flaw.reason, intention, detail=flaw.detail)
    if tcp:
        return None
    for intention in policy._groups.values():
        if intention.permissions:
            if flaw := envoy_refuses(intention.permissions, default_allow):
                return decision(flaw.reason, intention, detail=flaw.detail)
    return None


def compile_policy(
    intentions: Iterable[Intention],
    *,
    service: str,
    trust_domain: str,
    default_allow: bool | None,
    protocol: str = "http",
    reading: ReadingName = "strict",
    jwt_providers: Iterable[JwtProvider] = (),
    normalization: Normalization | None = None,
    clock: Callable[[], float] = time.time,
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
        jwt_providers: providers that intentions may name.
        normalization: the mesh entry's request normalization; Consul's default when ``None``.
        clock: seconds since the epoch; asked only where a token is demanded.
        previous: the policy this one replaces; what did not change is taken over.

    Returns:
        The policy. Intentions that cannot be read make it deny, not fail.
    """
    intentions = tuple(intentions)
    providers: Mapping[str, JwtProvider] = {item.name: item for item in jwt_providers}
    named = _named_providers(intentions)
    terms = Terms(
        _default_reason(default_allow),
        reading,
        normalization or Normalization(),
        _tokens(providers, named, clock),
        _token_headers(providers[name] for name in named if name in providers),
    )
    return Policy(
        intentions,
        service=service,
        trust_domain=trust_domain,
        default_allow=default_allow,
        protocol=protocol,
        terms=terms,
        previous=previous,
    )


def _named_providers(intentions: Iterable[Intention]) -> tuple[str, ...]:
    """List the jwt-providers that intentions name, in the order proxies ask them."""
    demanding = [i for i in intentions if i.jwt or any(p.jwt for p in i.permissions)]
    names: dict[str, None] = {}
    for intention in sorted(demanding, key=order):
        for demands in (intention.jwt, *(p.jwt for p in intention.permissions)):
            names.update((demand.provider, None) for demand in demands)
    return tuple(names)


def _tokens(
    providers: Mapping[str, JwtProvider], named: Sequence[str], clock: Callable[[], float]
) -> Callable[[RequestFacts, HeaderView], Tokens]:
    """What makes the tokens of a request, loaded now if ever, and not while a request waits."""
    if not named:
        return _no_tokens
    from .jws import engine
    from .jwt import Tokens

    engine()
    return lambda facts, view: Tokens(facts, view, providers, named, clock())


def _no_tokens(facts: RequestFacts, view: HeaderView) -> NoReturn:
    raise AssertionError("a token is asked for, and no intention names a provider")


def _token_headers(providers: Iterable[JwtProvider]) -> frozenset[bytes]:
    return frozenset(
        place.name.encode().lower()
        for provider in providers
        if not provider.forward
        for place in provider.locations
        if place.kind == "header"
    )


def _default_reason(default_allow: bool | None) -> Reason:
    if default_allow is None:
        return Reason.DEFAULT_UNKNOWN
    return Reason.DEFAULT_ALLOW if default_allow else Reason.DEFAULT_DENY
