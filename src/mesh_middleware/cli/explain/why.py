"""
Why a request is allowed or denied, as values.

The verdict comes from the engine that judges live requests. Beside it stands what people want to
know: what each permission said in each reading of the path, and why every other intention lost.
Owns these sentences; prints nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import typer

from ...exceptions import IdentityError
from ...identity import ServiceId, parse_spiffe_id
from ...intentions import (
    Decision,
    HttpFacts,
    Intention,
    Permission,
    Policy,
    Reason,
    compile_policy,
    paths,
    wire,
)
from ...intentions.headers import HeaderView
from ...intentions.matchers import PathTable, permission_flaw
from ...intentions.model import HeaderMatch
from ...intentions.sources import Candidates, is_plain
from ...intentions.terms import ReadingName
from ..batch import judge
from .given import Given
from .losers import UNASKED, Loser, losers
from .words import DEFAULTS, header_words, meaning, permission_words, place_words

_TOKENS = (
    Reason.JWT_MISSING,
    Reason.JWT_INVALID,
    Reason.JWT_CLAIMS,
    Reason.JWT_NO_KEYS,
    Reason.JWT_NO_ENGINE,
    Reason.JWT_UNKNOWN_PROVIDER,
)
_NO_TOKEN = "matches, but the demand for a token is not met"


@dataclass(frozen=True, slots=True)
class Asked:
    """
    What became of one permission.

    Args:
        index: in the intention.
        text: the permission in words.
        matches: names of the readings in which it matches.
        why: why it did not decide; empty for the one that did.
    """

    index: int
    text: str
    matches: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Read:
    """One reading of the path, and what the permissions say to it."""

    name: str
    meaning: str
    path: bytes
    says: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """
    A verdict and everything that led to it.

    Args:
        given: what was judged by.
        reading: ``strict`` or ``envoy``.
        uri: SPIFFE ID of the caller.
        facts: the request.
        verdict: the engine's.
        decider: the intention that decided, or led to the default.
        default_used: whether the default policy decided.
        permissions: of the decider.
        readings: of the path, where it has more than one and they matter.
        differing: readings that deny what others allow, and what they mean.
        losers: the other intentions, in order.
        hints: what else helps to understand it, as sentences.
    """

    given: Given
    reading: str
    uri: str
    facts: HttpFacts
    verdict: Decision
    decider: Intention | None
    default_used: bool
    permissions: tuple[Asked, ...]
    readings: tuple[Read, ...]
    differing: tuple[tuple[str, str], ...]
    losers: tuple[Loser, ...]
    hints: tuple[str, ...]


def facts(given: Given, method: str, target: str, lines: Iterable[str]) -> HttpFacts:
    """
    Make a request of a command line; a Host is added as clients do.

    Raises:
        typer.BadParameter: a header has no colon.
    """
    pairs = []
    for line in lines:
        name, colon, value = os.fsencode(line).partition(b":")
        if not colon:
            raise typer.BadParameter(f"-H {line!r}: 'name: value' is expected")
        pairs.append((name, value.strip(b" \t")))
    if not any(name.lower() == b"host" for name, _ in pairs):
        pairs.insert(0, (b"host", given.service.replace(" ", "-").encode()))
    return HttpFacts(os.fsencode(method), os.fsencode(target), pairs)


def explain(given: Given, reading: str, source: str, request: HttpFacts) -> Explanation:
    """
    Judge a request, and tell why.

    Args:
        given: what it is judged by.
        reading: ``strict`` or ``envoy``.
        source: name of a service, ``namespace/name``, ``partition/namespace/name``, or a SPIFFE ID.
        request: the request.
    """
    name: ReadingName = "envoy" if reading == "envoy" else "strict"
    policy = compile_policy(
        given.intentions,
        service=given.service,
        trust_domain=given.trust_domain,
        default_allow=given.default_allow,
        protocol=given.protocol,
        reading=name,
        jwt_providers=given.providers,
        normalization=given.normalization,
        clock=time.time,
    )
    uri = source if "://" in source else _uri(source, given.trust_domain)
    connection = given.protocol == "tcp"
    # Envoy judges a connection then; strict asks for tokens all the same.
    asked = None if connection and name == "envoy" else request
    verdict = judge(policy, uri, asked, given.normalization)
    found = _candidates(policy, uri)
    decider = verdict.intention
    views = _views(given, request, name) if not connection and verdict.reason not in UNASKED else ()
    permissions, says = _ask_permissions(decider, request, views, verdict, given)
    return Explanation(
        given,
        reading,
        uri,
        request,
        verdict,
        decider,
        _default_used(verdict),
        permissions,
        _readings(views, says),
        tuple((word, meaning(word)) for word in verdict.readings),
        tuple(losers(policy, uri, verdict, found)),
        tuple(_hints(given, verdict, found)),
    )


def _uri(source: str, trust_domain: str) -> str:
    *above, name = source.split("/")
    if len(above) > 2:
        raise typer.BadParameter(f"{source!r}: [[PARTITION/]NAMESPACE/]SERVICE is expected")
    namespace = above.pop() if above else "default"
    partition = f"/ap/{above[0]}" if above and above[0] != "default" else ""
    uri = f"spiffe://{trust_domain}{partition}/ns/{namespace}/dc/dc1/svc/{name}"
    try:
        parse_spiffe_id(uri)
    except IdentityError as error:
        raise typer.BadParameter(f"{source!r} is no name of a service: {error}") from None
    return uri


def _candidates(policy: Policy, uri: str) -> Candidates | None:
    try:
        source = parse_spiffe_id(uri)
    except IdentityError:
        return None
    if not isinstance(source, ServiceId) or source.trust_domain != policy.trust_domain:
        return None
    return policy.candidates(source)


def _default_used(verdict: Decision) -> bool:
    return verdict.reason in DEFAULTS or verdict.detail in [str(item) for item in DEFAULTS]


def _views(given: Given, request: HttpFacts, reading: str) -> tuple[paths.Reading, ...]:
    parts = wire.split_target(request.target or b"")
    normal = paths.envoy_path(parts.path, given.normalization) if parts is not None else None
    if parts is None or normal is None:
        return ()
    if reading == "envoy" or paths.PLAIN.fullmatch(parts.path):
        return (paths.Reading("normalized", normal),)
    return paths.readings(parts.path, request.path, normal)


def _readings(views: Sequence[paths.Reading], says: Sequence[str]) -> tuple[Read, ...]:
    if len(set(says)) < 2:
        return ()
    pairs = zip(views, says, strict=True)
    return tuple(Read(view.name, meaning(view.name), view.path, said) for view, said in pairs)


def _ask_permissions(
    decider: Intention | None,
    request: HttpFacts,
    views: Sequence[paths.Reading],
    verdict: Decision,
    given: Given,
) -> tuple[tuple[Asked, ...], tuple[str, ...]]:
    """Tell of each permission why it decided or not, and of each reading what it leads to."""
    if decider is None or not decider.permissions or not views:
        return (), ()
    if any(permission_flaw(p) is not None for p in decider.permissions):
        return _ask_unreadable(decider.permissions), ()
    head = HeaderView(request, given.normalization)
    mismatches = [
        [_mismatch(permission, request.method, view, head) for view in views]
        for permission in decider.permissions
    ]
    firsts = [
        next((n for n, row in enumerate(mismatches) if not row[column]), None)
        for column in range(len(views))
    ]
    default = {True: "allow", False: "deny", None: "unknown"}[given.default_allow]
    asked = []
    for index, permission in enumerate(decider.permissions):
        row = mismatches[index]
        matches = tuple(view.name for view, why in zip(views, row, strict=True) if not why)
        why = row[0] or _preceded(index, firsts[0])
        if index == verdict.permission:
            why = _NO_TOKEN if verdict.reason in _TOKENS or verdict.detail in _TOKENS else ""
        asked.append(Asked(index, permission_words(permission), matches, why))
    says = tuple(
        f"none matches: default {default}"
        if first is None
        else f"permission {first} {'allows' if decider.permissions[first].allow else 'denies'}"
        for first in firsts
    )
    return tuple(asked), says


def _ask_unreadable(permissions: Sequence[Permission]) -> tuple[Asked, ...]:
    asked = []
    for index, permission in enumerate(permissions):
        flaw = permission_flaw(permission)
        why = f"cannot be read: {flaw.detail}" if flaw else "not asked"
        asked.append(Asked(index, permission_words(permission), (), why))
    return tuple(asked)


def _preceded(index: int, first: int | None) -> str:
    if first is not None and first < index:
        return f"matches too, but {first} stands before it"
    return "matches, but not in every reading, or the token it demands is missing"


def _mismatch(permission: Permission, method: bytes, view: paths.Reading, head: HeaderView) -> str:
    """Tell why a permission does not match in one reading of the path; empty when it does."""
    name = method.decode("latin-1")
    if permission.methods and name not in permission.methods:
        return f"the method is {name}, not {' or '.join(permission.methods)}"
    # One permission alone, so that nothing before it hides whether it matches.
    steps = PathTable((replace(permission, methods=()),)).chain(method, view)
    if not steps:
        tests = {"exact": "is not", "prefix": "does not begin with", "regex": "does not match"}
        shown = view.path.decode("latin-1")
        return f"the path {shown} {tests[permission.path_test]} {permission.path}"
    for test, match in zip(steps[0].headers, permission.headers, strict=True):
        results = [test.matches(item.values) for item in head.alternatives(test.name)]
        if not (all(results) if permission.allow else any(results)):
            return _header_mismatch(match, head)
    return ""


def _header_mismatch(match: HeaderMatch, head: HeaderView) -> str:
    first, *others = head.alternatives(match.name.encode())
    values, several = first.values, bool(others)
    if values is None:
        hint = ", and an absent header matches no inverted test" if match.invert else ""
        for other in others[:1]:
            hint = f" as proxies see it ({meaning(other.name)})"
        return f"there is no header {match.name}{hint}"
    shown = ", ".join(repr(value.decode("latin-1"))[:60] for value in values)
    wanted = f"wanted{' in every way of reading it' if several else ''}: {header_words(match)}"
    return f"the header {match.name} is {shown}; {wanted}"


def _hints(given: Given, verdict: Decision, found: Candidates | None) -> Iterable[str]:
    """Say what is easily overlooked: names that are patterns, places where a token is expected."""
    for intention in found.all if found is not None else ():
        if not is_plain(intention):
            yield f"The source {intention.source} is a regular expression to Envoy."
    if Reason.JWT_MISSING not in (verdict.reason, verdict.detail) or verdict.intention is None:
        return
    permissions = verdict.intention.permissions
    demands = list(verdict.intention.jwt)
    demands += permissions[verdict.permission].jwt if verdict.permission is not None else ()
    for provider in given.providers:
        if provider.name in [demand.provider for demand in demands]:
            yield f"A token of {provider.name} is looked for in {place_words(provider)}."
