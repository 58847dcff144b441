"""
``mesh explain --batch``: JSON Lines in, JSON Lines out.

Owns the format of a case and of its answer. Every case gets an answer, whatever it holds: what
cannot be read is denied, with the reason, and the next line is read.

A case: ``{"id", "intentions": [...match JSON...], "default_allow": bool, "protocol": "http"|"tcp",
"trust_domain", "source_uri", "request": {"method", "target", "headers": [[name, value], ...]}}``;
the strings of the request are bytes, one Latin-1 character each. An answer: ``{"id", "allowed",
"reason", "intention", "permission", "readings"}``, where *intention* and *permission* are indexes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..consul.intentions import parse_intentions
from ..exceptions import MeshError
from ..intentions import (
    Decision,
    HttpFacts,
    Intention,
    JwtProvider,
    Normalization,
    Policy,
    Reason,
    compile_policy,
    decision,
)
from ..intentions.terms import ReadingName
from ..intentions.wire import unsound
from .options import PROTOCOLS

_ID = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*")')
_POLICIES = 256
MAX_TOLD = 200
"""Most characters that are told of why a line is no case: it may quote the line."""


class _UnreadableCaseError(Exception):
    """A case does not have the form; says which part."""


@dataclass
class Batch:
    """
    Answers cases one by one; policies that repeat are compiled once.

    Args:
        reading: ``strict`` or ``envoy``.
        providers: jwt-providers that intentions may name.
        normalization: the mesh entry's request normalization.
        clock: seconds since the epoch.
        tell: is given the number of each line that is no case, from 1, and why it is none.
    """

    reading: ReadingName
    providers: Sequence[JwtProvider] = ()
    normalization: Normalization = field(default_factory=Normalization)
    clock: Callable[[], float] = field(kw_only=True)
    tell: Callable[[int, str], None] = field(default=lambda number, why: None, kw_only=True)
    _known: dict[str, Policy] = field(default_factory=dict)

    def answers(self, lines: Iterable[str]) -> Iterator[str]:
        """Answer each line that is not blank with one line of JSON."""
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield json.dumps(self.answer(line, number))

    def answer(self, line: str, number: int = 1) -> dict[str, Any]:
        """Answer one case; never raises for what the line holds."""
        name = ""
        try:
            case = json.loads(line)
            if not isinstance(case, dict):
                raise _UnreadableCaseError("a case is a JSON object")
            name = _name(case)
            verdict, intentions = self._judge(case)
        except (_UnreadableCaseError, MeshError, ValueError, RecursionError) as error:
            name = name or _guess_name(line)
            self.tell(number, " ".join(str(error).split())[:MAX_TOLD])
            verdict, intentions = decision(Reason.UNREADABLE_CASE, detail=str(error)), ()
        return {"id": name, **_shown(verdict, intentions)}

    def _judge(self, case: Mapping[str, Any]) -> tuple[Decision, Sequence[Intention]]:
        policy = self._policy(case)
        facts = None if policy.protocol == "tcp" else _facts(case.get("request"))
        uri = case.get("source_uri")
        if uri is not None and not isinstance(uri, str):
            raise _UnreadableCaseError("source_uri is neither text nor null")
        return judge(policy, uri, facts, self.normalization), policy.intentions

    def _policy(self, case: Mapping[str, Any]) -> Policy:
        default_allow = case.get("default_allow")
        protocol = case.get("protocol", "http")
        trust_domain = case.get("trust_domain")
        if default_allow is not None and not isinstance(default_allow, bool):
            raise _UnreadableCaseError("default_allow is neither true nor false")
        if protocol not in PROTOCOLS:
            raise _UnreadableCaseError(f"protocol is none of {', '.join(PROTOCOLS)}")
        if not isinstance(trust_domain, str):
            raise _UnreadableCaseError("trust_domain is no text")
        if "intentions" not in case:
            # Null is what Consul answers where there are none; a misspelt key is no such answer.
            raise _UnreadableCaseError("intentions is missing")
        key = json.dumps([case["intentions"], default_allow, protocol, trust_domain])
        policy = self._known.get(key)
        if policy is None:
            if len(self._known) >= _POLICIES:
                self._known.clear()
            policy = self._known[key] = compile_policy(
                parse_intentions(case["intentions"]),
                service="",
                trust_domain=trust_domain,
                default_allow=default_allow,
                protocol=protocol,
                reading=self.reading,
                jwt_providers=self.providers,
                normalization=self.normalization,
                clock=self.clock,
            )
        return policy


def judge(
    policy: Policy, uri: str | None, facts: HttpFacts | None, normalization: Normalization
) -> Decision:
    """
    Judge a request as a whole: who calls, whether its head is sound, what the intentions say.

    Args:
        policy: the intentions, compiled.
        uri: SPIFFE ID of the caller; ``None`` when it shows no certificate.
        facts: the request; ``None`` when only the connection is judged.
        normalization: what proxies of this mesh do to requests.
    """
    if not uri:
        return decision(Reason.NO_PEER)
    if facts is not None:
        found = unsound(
            facts.method,
            facts.target or b"",
            facts.headers,
            normalization,
            strict=policy.reading == "strict",
        )
        if found is not None:
            return decision(found.reason, readings=found.readings, detail=found.detail)
    return policy.decide_uri(uri, facts)


def _facts(request: object) -> HttpFacts:
    if not isinstance(request, dict):
        raise _UnreadableCaseError("request is no object")
    headers = request.get("headers", [])
    if not isinstance(headers, list):
        raise _UnreadableCaseError("headers is no list")
    pairs = []
    for item in headers:
        if not isinstance(item, list) or len(item) != 2:
            raise _UnreadableCaseError("a header is a pair of name and value")
        pairs.append((_bytes(item[0], "header"), _bytes(item[1], "header")))
    return HttpFacts(_bytes(request.get("method"), "method"), _target(request), pairs)


def _target(request: Mapping[str, Any]) -> bytes:
    return _bytes(request.get("target"), "target")


def _bytes(value: object, what: str) -> bytes:
    if not isinstance(value, str):
        raise _UnreadableCaseError(f"{what} is no text")
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise _UnreadableCaseError(f"{what} has a character that is no byte") from None


def _name(case: Mapping[str, Any]) -> str:
    name = case.get("id", "")
    return name if isinstance(name, str) else json.dumps(name)


def _guess_name(line: str) -> str:
    """Find the id in a line that is no JSON, so that the answer can still be told apart."""
    found = _ID.search(line)
    try:
        return str(json.loads(found[1])) if found else ""
    except ValueError:
        return ""


def _shown(verdict: Decision, intentions: Sequence[Intention]) -> dict[str, Any]:
    place = None
    if verdict.intention is not None:
        place = next((n for n, item in enumerate(intentions) if item is verdict.intention), None)
    return {
        "allowed": verdict.allowed,
        "reason": verdict.reason.value,
        "intention": place,
        "permission": verdict.permission,
        "readings": list(verdict.readings),
    }
