"""
Consul's JSON to intentions: the match endpoint's answers and ``service-intentions`` entries.

Owns which fields are known, and what it means when one is not: whatever cannot be read becomes a
`Flaw` on the value, never an exception and never a guess, so that judging can fail closed and
tell why. Only an answer that is no list of intentions at all is an error, because it must not
replace a good one. Knows nothing of requests.

Source: reference 4.1, 4.3, 4.5, 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict, get_args

from ..exceptions import AgentAnswerError
from ..intentions.model import (
    WILDCARD,
    Claim,
    Flaw,
    HeaderMatch,
    HeaderTest,
    Intention,
    JwtDemand,
    PathTest,
    Permission,
    precedence_of,
)
from ..intentions.reasons import Reason
from ..pauses import paced
from . import pieces

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE")
"""Methods that Consul stores in a permission. Source: reference 4.1."""

INTENTION_FIELDS = {
    "SourceName": "who calls; `*` is anyone",
    "SourceNS": "namespace of the source; `*` with a `*` name only",
    "SourcePartition": "partition of the source",
    "SourcePeer": "never matched: peered callers are of another trust domain",
    "SourceSamenessGroup": "only empty; a group cannot be resolved, so everyone is denied",
    "SourceType": "only `consul`",
    "DestinationName": "the service, or `*`; counts for precedence",
    "DestinationNS": "namespace of the destination",
    "DestinationPartition": "partition of the destination",
    "Action": "`allow` or `deny`",
    "Permissions": "ordered; the first that matches decides",
    "JWT": "token demanded on every request of the source",
    "Precedence": "1 to 9; computed when absent",
    "ID": "ignored",
    "Description": "ignored",
    "Meta": "ignored",
    "DefaultAddr": "ignored",
    "DefaultPort": "ignored",
    "CreatedAt": "ignored",
    "UpdatedAt": "ignored",
    "Hash": "ignored",
    "CreateIndex": "ignored",
    "ModifyIndex": "ignored",
}
PERMISSION_FIELDS = {
    "Action": "`allow` or `deny`",
    "HTTP": "criteria, all of which have to match; at least one",
    "JWT": "token demanded when the criteria match",
}
HTTP_FIELDS = {
    "PathExact": "equal to the path, without query",
    "PathPrefix": "plain string prefix of the path",
    "PathRegex": "RE2, full match, on bytes",
    "Methods": "any of the list: " + " ".join(METHODS),
    "Header": "every entry has to match",
}
HEADER_FIELDS = {
    "Name": "case-insensitive; `:authority`, `:method`, `:path`, `:scheme` too",
    "Present": "the header exists, an empty value counts",
    "Exact": "equal to the value",
    "Prefix": "prefix of the value",
    "Suffix": "suffix of the value",
    "Contains": "part of the value",
    "Regex": "RE2, full match, on bytes",
    "Invert": "negates the test of a header that exists; with Present, the header is absent",
    "IgnoreCase": "folds ASCII letters; not with Present or Regex",
}
JWT_FIELDS = {"Providers": "any of them satisfies; empty demands nothing"}
PROVIDER_FIELDS = {"Name": "of a jwt-provider entry", "VerifyClaims": "all of them have to hold"}
CLAIM_FIELDS = {"Path": "nested keys", "Value": "equal to the claim, which has to be a text"}
SOURCE_FIELDS = {
    "Name": "SourceName",
    "Namespace": "SourceNS",
    "Partition": "SourcePartition",
    "Peer": "SourcePeer",
    "SamenessGroup": "SourceSamenessGroup",
    "Type": "SourceType",
    "Action": "Action",
    "Permissions": "Permissions",
    "Precedence": "Precedence",
    "Description": "Description",
    "LegacyID": "ID",
    "LegacyMeta": "Meta",
    "LegacyCreateTime": "CreatedAt",
    "LegacyUpdateTime": "UpdatedAt",
}
"""Keys of one of an entry's ``Sources``, and the field of the flattened form each becomes."""

Known = dict[str, tuple[Permission, ...]]
"""Permissions by the text of their JSON: services often share them."""

_PATHS: dict[str, PathTest] = {
    "PathExact": "exact",
    "PathPrefix": "prefix",
    "PathRegex": "regex",
}
_TESTS: dict[str, HeaderTest] = {
    test.capitalize(): test for test in get_args(HeaderTest) if test != "present"
}


class _Unread(Exception):
    """A part cannot be read; carries the flaw up to the part that takes the blame."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def parse_match(answer: object, name: str) -> tuple[Intention, ...]:
    """
    Read an answer of ``/v1/connect/intentions/match?by=destination``.

    Args:
        answer: the decoded JSON; or its text, which is then read in pieces. Either way other
            threads run meanwhile.
        name: the destination asked for; the answer is keyed by it as it was given.

    Returns:
        The intentions in the answer's order; those that cannot be read carry a flaw.

    Raises:
        AgentAnswerError: the answer is no object, has no such key, or no list there.

    Source: reference 4.3; an empty list is ``null``.
    """
    if isinstance(answer, bytes):
        return _parse_items(paced(pieces.list_under(name, answer)))
    if not isinstance(answer, Mapping) or name not in answer:
        raise AgentAnswerError(f"intentions match: no list for {name!r} in the answer")
    return _parse_items(paced(_list_of(answer[name])))


def parse_intentions(items: object) -> tuple[Intention, ...]:
    """
    Read a list of intentions in the flattened form.

    Raises:
        AgentAnswerError: *items* is neither a list nor ``null``.
    """
    return _parse_items(_list_of(items))


def _list_of(items: object) -> Sequence[object]:
    if items is None:
        return ()
    if not isinstance(items, list):
        raise AgentAnswerError("intentions match: a list of intentions was expected")
    return items


def _parse_items(items: Iterable[object]) -> tuple[Intention, ...]:
    known: Known = {}
    return tuple(parse_intention(item, known) for item in items)


def parse_entry(entry: object) -> tuple[Intention, ...]:
    """
    Read a ``service-intentions`` config entry, flattened as the match endpoint would.

    Raises:
        AgentAnswerError: *entry* is no such entry.

    Source: reference 4.1.
    """
    if not isinstance(entry, Mapping) or not isinstance(entry.get("Sources"), list):
        raise AgentAnswerError("service-intentions: an object with a list of Sources was expected")
    shared = {
        "DestinationName": entry.get("Name"),
        "DestinationNS": entry.get("Namespace") or "default",
        "DestinationPartition": entry.get("Partition") or "default",
        "JWT": entry.get("JWT"),
    }
    return tuple(parse_intention(_flatten(source, shared)) for source in entry["Sources"])


def _flatten(source: object, shared: dict[str, Any]) -> object:
    if not isinstance(source, Mapping):
        return source
    renamed: dict[str, Any] = {
        SOURCE_FIELDS.get(str(key), str(key)): value for key, value in source.items()
    }
    return renamed | shared


def parse_intention(item: object, known: Known | None = None) -> Intention:
    """
    Read one intention; what cannot be read becomes its `flaw`.

    Args:
        item: the decoded JSON.
        known: permissions read before, by their text; equal ones are then one object.

    Returns:
        The intention. When it cannot be told whom it is about, its flaw is on everyone.
    """
    try:
        fields = _object(item, INTENTION_FIELDS, "intention")
        sides = _sides(fields)
    except _Unread as unread:
        reason = unread.reason
        if reason is Reason.UNREADABLE_PERMISSION:
            reason = Reason.UNREADABLE_SOURCE
        flaw = Flaw(reason, unread.detail, everyone=True)
        return Intention(WILDCARD, WILDCARD, False, flaw=flaw)
    precedence = fields.get("Precedence")
    try:
        if not precedence:
            precedence = precedence_of(Intention(allow=False, **sides))
        elif type(precedence) is not int or not 1 <= precedence <= 9:
            raise _Unread(Reason.UNREADABLE_PERMISSION, f"Precedence {precedence!r}")
        allow, permissions, jwt = _verdict(fields, {} if known is None else known)
    except _Unread as unread:
        flawed = Intention(allow=False, flaw=Flaw(unread.reason, unread.detail), **sides)
        if type(precedence) is not int or not 1 <= precedence <= 9:
            precedence = precedence_of(flawed)
        return dataclasses.replace(flawed, precedence=precedence)
    return Intention(allow=allow, permissions=permissions, jwt=jwt, precedence=precedence, **sides)


class _Sides(TypedDict):
    """Whom an intention is about: fields of `Intention`."""

    source: str
    destination: str
    namespace: str
    partition: str
    peer: str
    destination_namespace: str
    destination_partition: str


def _sides(fields: Mapping[str, Any]) -> _Sides:
    if _text(fields, "SourceType", "consul") != "consul":
        raise _Unread(Reason.UNREADABLE_SOURCE, f"SourceType {fields['SourceType']!r}")
    if _text(fields, "SourceSamenessGroup", ""):
        raise _Unread(Reason.UNREADABLE_SOURCE, "SourceSamenessGroup cannot be resolved")
    sides: _Sides = {
        "source": _name(fields, "SourceName", None),
        "destination": _text(fields, "DestinationName", ""),
        "namespace": _name(fields, "SourceNS", "default"),
        "partition": _name(fields, "SourcePartition", "default"),
        "peer": _text(fields, "SourcePeer", ""),
        "destination_namespace": _name(fields, "DestinationNS", "default"),
        "destination_partition": _name(fields, "DestinationPartition", "default"),
    }
    if sides["namespace"] == WILDCARD != sides["source"]:
        raise _Unread(Reason.UNREADABLE_SOURCE, "an exact SourceName in any namespace")
    if WILDCARD in (sides["partition"], sides["peer"]):
        raise _Unread(Reason.UNREADABLE_SOURCE, "a wildcard partition or peer")
    return sides


def _name(fields: Mapping[str, Any], key: str, default: str | None) -> str:
    value = _text(fields, key, default or "", Reason.UNREADABLE_SOURCE) or default
    if value == "default":
        return value
    if not value:
        raise _Unread(Reason.UNREADABLE_SOURCE, f"{key} is missing")
    if WILDCARD in value and value != WILDCARD:
        raise _Unread(Reason.UNREADABLE_SOURCE, f"{key} {value!r}: a partial wildcard")
    return value


def _verdict(
    fields: Mapping[str, Any], known: Known
) -> tuple[bool | None, tuple[Permission, ...], tuple[JwtDemand, ...]]:
    permissions = _list(fields, "Permissions")
    jwt = _jwt(fields)
    if not permissions:
        return _allow(fields), (), jwt
    if fields.get("Action"):
        raise _Unread(Reason.UNKNOWN_ACTION, "Action beside Permissions")
    text = repr(permissions)
    read = known.get(text)
    if read is None:
        read = known[text] = tuple(map(_permission, permissions))
    return None, read, jwt


def _permission(item: object) -> Permission:
    try:
        fields = _object(item, PERMISSION_FIELDS, "permission")
        allow, http = _allow(fields), fields.get("HTTP")
        if http is None:
            raise _Unread(Reason.EMPTY_CRITERIA, "HTTP is missing")
        return _criteria(_object(http, HTTP_FIELDS, "HTTP"), allow, _jwt(fields))
    except _Unread as unread:
        return Permission(False, flaw=Flaw(unread.reason, unread.detail))


def _criteria(http: Mapping[str, Any], allow: bool, jwt: tuple[JwtDemand, ...]) -> Permission:
    paths = [(test, text) for key, test in _PATHS.items() if (text := _text(http, key, ""))]
    if len(paths) > 1:
        raise _Unread(Reason.CONFLICTING_CRITERIA, "more than one path")
    methods = tuple(_list(http, "Methods"))
    if not all(method in METHODS for method in methods):
        raise _Unread(Reason.UNREADABLE_PERMISSION, f"Methods {methods!r}")
    headers = tuple(map(_header, _list(http, "Header")))
    if not (paths or methods or headers):
        raise _Unread(Reason.EMPTY_CRITERIA, "HTTP has no criteria")
    test, text = paths[0] if paths else ("", "")
    return Permission(allow, test, text, methods, headers, jwt)


def _header(item: object) -> HeaderMatch:
    fields = _object(item, HEADER_FIELDS, "Header")
    # Of ASCII letters only: other letters have lower cases that are other names' letters.
    name = _text(fields, "Name", "").encode().lower().decode()
    if not name:
        raise _Unread(Reason.EMPTY_CRITERIA, "a Header without Name")
    tests: list[tuple[HeaderTest, str]] = [
        (test, text) for key, test in _TESTS.items() if (text := _text(fields, key, ""))
    ]
    if _flag(fields, "Present"):
        tests.append(("present", ""))
    if not tests:
        raise _Unread(Reason.EMPTY_CRITERIA, f"Header {name!r} tests nothing")
    if len(tests) > 1:
        raise _Unread(Reason.CONFLICTING_CRITERIA, f"Header {name!r} has more than one test")
    [(test, text)] = tests
    ignore_case = _flag(fields, "IgnoreCase")
    if ignore_case and test in ("present", "regex"):
        raise _Unread(Reason.CONFLICTING_CRITERIA, f"Header {name!r}: IgnoreCase with {test}")
    return HeaderMatch(name, test, text, _flag(fields, "Invert"), ignore_case)


def _jwt(fields: Mapping[str, Any]) -> tuple[JwtDemand, ...]:
    if fields.get("JWT") is None:
        return ()
    jwt = _object(fields["JWT"], JWT_FIELDS, "JWT")
    return tuple(map(_demand, _list(jwt, "Providers")))


def _demand(item: object) -> JwtDemand:
    fields = _object(item, PROVIDER_FIELDS, "JWT provider")
    name = _text(fields, "Name", "")
    if not name:
        raise _Unread(Reason.EMPTY_CRITERIA, "a JWT provider without Name")
    return JwtDemand(name, tuple(map(_claim, _list(fields, "VerifyClaims"))))


def _claim(item: object) -> Claim:
    fields = _object(item, CLAIM_FIELDS, "VerifyClaims")
    path = _list(fields, "Path")
    if not path or not all(isinstance(key, str) and key for key in path):
        raise _Unread(Reason.EMPTY_CRITERIA, "VerifyClaims without a Path of names")
    return Claim(tuple(path), _text(fields, "Value", ""))


def _object(item: object, known: Mapping[str, str], what: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise _Unread(Reason.UNREADABLE_PERMISSION, f"{what} is no object")
    if item.keys() <= known.keys():
        return item
    for key in item:
        if key not in known:
            raise _Unread(Reason.UNKNOWN_FIELD, f"{what} has an unknown field {key!r}")
    return item


def _text(
    fields: Mapping[str, Any],
    key: str,
    default: str,
    reason: Reason = Reason.UNREADABLE_PERMISSION,
) -> str:
    value = fields.get(key)
    if value is None or value == "":
        return default
    if not isinstance(value, str):
        raise _Unread(reason, f"{key} is no text")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Unread(reason, f"{key} is no Unicode text") from None
    return value


def _flag(fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _Unread(Reason.UNREADABLE_PERMISSION, f"{key} is neither true nor false")


def _list(fields: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = fields.get(key)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _Unread(Reason.UNREADABLE_PERMISSION, f"{key} is no list")
    return value


def _allow(fields: Mapping[str, Any]) -> bool:
    action = fields.get("Action")
    if action == "allow":
        return True
    if action == "deny":
        return False
    raise _Unread(Reason.UNKNOWN_ACTION, f"Action {action!r}")
