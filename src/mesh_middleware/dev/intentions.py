"""
The agent's view of intentions: what may be stored, their order, and the L4 answers.

Owns validation with Consul's own messages, precedence, the flattened form, match, check and the
reasons of authorize. Functions of config entries; knows neither storage nor HTTP. The evaluation
of permissions on a request is not here: no agent does that.

Source: Consul intentions (reference 4, 5.1).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .decode import without_empty
from .http import Refusal

Entry = dict[str, Any]

HTTP_PROTOCOLS = frozenset({"http", "http2", "grpc"})
_METHODS = frozenset("GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE".split())
_PATHS = ("PathExact", "PathPrefix", "PathRegex")
_MATCHERS = ("Present", "Exact", "Prefix", "Suffix", "Contains", "Regex")
MAX_META_PAIRS, MAX_META_KEY, MAX_META_VALUE = 64, 128, 512


def _refuse(text: str) -> None:
    raise Refusal(500, text)


def precedence(source: str, destination: str) -> int:
    """
    Rank of an intention, 9 the highest; the destination's exactness counts before the source's.

    Source: reference 4.2; the Community Edition has 9, 8, 6 and 5 only.
    """
    return (6 if destination == "*" else 9) - (source == "*")


def normalize_entry(entry: Entry) -> Entry:
    """Fill in types and precedences, upper-case methods, sort the sources by precedence."""
    sources = []
    for source in entry.get("Sources", []):
        source = without_empty(source)
        source["Precedence"] = precedence(source.get("Name", ""), entry.get("Name", ""))
        source.setdefault("Type", "consul")
        if "Permissions" in source:
            source["Permissions"] = [_permission(item) for item in source["Permissions"]]
        sources.append(_source_order(source))
    sources.sort(key=lambda source: -source["Precedence"])
    return {**entry, "Sources": sources}


def _source_order(source: dict[str, Any]) -> dict[str, Any]:
    order = ("Name", "Action", "Permissions", "Precedence", "LegacyID", "Type", "Description",
             "LegacyMeta", "LegacyCreateTime", "LegacyUpdateTime", "Peer")  # fmt: skip
    return {key: source[key] for key in order if key in source}


def _permission(permission: dict[str, Any]) -> dict[str, Any]:
    http = dict(permission["HTTP"])
    if "Methods" in http:
        http["Methods"] = [method.upper() for method in http["Methods"]]
    if "Header" in http:
        http["Header"] = [without_empty(header) for header in http["Header"]]
    return without_empty({**permission, "HTTP": without_empty(http)})


def validate_entry(entry: Entry, *, providers: Iterable[str] = ()) -> None:
    """
    Check a ``service-intentions`` entry, as decoded and not yet normalized.

    Args:
        providers: names of the JWT providers that exist.

    Raises:
        Refusal: 500 with the text of the first broken rule.
    """
    name = entry.get("Name", "")
    if not name:
        _refuse("Name is required")
    _check_wildcard("Name", name)
    check_meta(entry.get("Meta", {}))
    _check_jwt(entry.get("JWT", {}), providers)
    if not entry.get("Sources"):
        _refuse("At least one source is required")
    seen = set()
    for at, source in enumerate(entry["Sources"]):
        _check_source(f"Sources[{at}]", source, name, providers)
        key = (source["Name"], source.get("Peer", ""))
        if key in seen:
            _refuse(f"Sources[{at}] defines {json.dumps(source['Name'])} more than once")
        seen.add(key)


def _check_wildcard(what: str, name: str) -> None:
    if "*" in name and name != "*":
        _refuse(f"{what}: wildcard character '*' cannot be used with partial values")


def check_meta(meta: Mapping[str, str]) -> None:
    """
    Check the size of a ``Meta`` map.

    Raises:
        Refusal: 500, too many pairs, or one too long.
    """
    if len(meta) > MAX_META_PAIRS:
        _refuse(f"Meta exceeds maximum element count {MAX_META_PAIRS}")
    for key, value in meta.items():
        if len(key) > MAX_META_KEY:
            _refuse(f"Meta key {json.dumps(key)} exceeds maximum length {MAX_META_KEY}")
        if len(value) > MAX_META_VALUE:
            _refuse(f"Meta value for key {json.dumps(key)} exceeds maximum length {MAX_META_VALUE}")


def _check_source(
    at: str, source: dict[str, Any], destination: str, providers: Iterable[str]
) -> None:
    if not source.get("Name"):
        _refuse(f"{at}.Name is required")
    _check_wildcard(f"{at}.Name", source["Name"])
    if source.get("Peer") == "*":
        _refuse(f"{at}.Peer cannot be set to wildcard '*'")
    if len(source.get("Description", "")) > MAX_META_VALUE:
        _refuse(f"{at}.Description exceeds maximum length {MAX_META_VALUE}")
    action, permissions = source.get("Action", ""), source.get("Permissions", [])
    if permissions and action:
        _refuse(f"{at}.Action must be omitted if Permissions are specified")
    if not permissions and action not in ("allow", "deny"):
        _refuse(f"{at}.Action must be set to 'allow' or 'deny'")
    if permissions and destination == "*":
        _refuse(f"{at}.Permissions cannot be specified on intentions with wildcarded destinations")
    if source.get("Type", "consul") not in ("", "consul"):
        _refuse(f"{at}.Type must be set to 'consul'")
    for number, permission in enumerate(permissions):
        _check_permission(f"{at}.Permissions[{number}]", permission, providers)


def _check_permission(at: str, permission: dict[str, Any], providers: Iterable[str]) -> None:
    if permission.get("Action") not in ("allow", "deny"):
        _refuse(f"{at}.Action must be set to 'allow' or 'deny'")
    _check_jwt(permission.get("JWT", {}), providers)
    if "HTTP" not in permission:
        _refuse(f"{at}.HTTP is required")
    http = without_empty(permission["HTTP"])
    if not http:
        _refuse(f"{at}.HTTP should not be empty")
    _check_paths(f"{at}.HTTP", http)
    for number, header in enumerate(http.get("Header", [])):
        _check_header(f"{at}.HTTP.Header[{number}]", without_empty(header))
    methods: set[str] = set()
    for method in http.get("Methods", []):
        if method.upper() not in _METHODS:
            _refuse(f"{at}.HTTP.Methods contains an invalid method {json.dumps(method.upper())}")
        if method.upper() in methods:
            _refuse(f"{at}.HTTP.Methods contains {json.dumps(method.upper())} more than once")
        methods.add(method.upper())


def _check_paths(at: str, http: dict[str, Any]) -> None:
    for field in ("PathExact", "PathPrefix"):
        if field in http and not http[field].startswith("/"):
            _refuse(f"{at}.{field} doesn't start with '/': {json.dumps(http[field])}")
    if sum(field in http for field in _PATHS) > 1:
        _refuse(f"{at} should only contain at most one of PathExact, PathPrefix, or PathRegex")


def _check_header(at: str, header: dict[str, Any]) -> None:
    if "Name" not in header:
        _refuse(f"{at} missing required Name field")
    if sum(matcher in header for matcher in _MATCHERS) != 1:
        _refuse(
            f"{at} should only contain one of Present, Exact, Prefix, Suffix, Contains, or Regex"
        )
    if "IgnoreCase" in header and ("Present" in header or "Regex" in header):
        _refuse(f"{at} should set one of Exact, Prefix, Suffix, or Contains when using IgnoreCase")


def _check_jwt(jwt: dict[str, Any], providers: Iterable[str]) -> None:
    for provider in jwt.get("Providers", []):
        name = provider.get("Name", "")
        if name not in providers:
            _refuse(f"Referenced JWT Provider does not exist. Provider Name: {name}")


def jwt_providers(entry: Entry) -> set[str]:
    """Names of the JWT providers that *entry* refers to."""
    parts = [entry.get("JWT", {})]
    for source in entry.get("Sources", []):
        parts += [permission.get("JWT", {}) for permission in source.get("Permissions", [])]
    return {item.get("Name", "") for jwt in parts for item in jwt.get("Providers", [])}


def flatten(entry: Entry) -> list[dict[str, Any]]:
    """The intentions of one entry, in the form that match, list and exact answer."""
    return [_flat(entry, source) for source in entry["Sources"]]


def _flat(entry: Entry, source: dict[str, Any]) -> dict[str, Any]:
    legacy = "LegacyID" in source
    flat: dict[str, Any] = {"ID": source["LegacyID"]} if legacy else {}
    if legacy or "Description" in source:
        flat["Description"] = source.get("Description", "")
    if "Peer" in source:
        flat["SourcePeer"] = source["Peer"]
    flat |= {
        "SourceNS": "default", "SourceName": source["Name"],
        "DestinationNS": "default", "DestinationName": entry["Name"], "SourceType": "consul",
    }  # fmt: skip
    flat |= {key: source[key] for key in ("Action", "Permissions") if key in source}
    if entry.get("JWT"):
        flat["JWT"] = entry["JWT"]
    meta = source.get("LegacyMeta", {}) if legacy else entry.get("Meta")
    if meta is not None:
        flat["Meta"] = meta
    flat["Precedence"] = source["Precedence"]
    if legacy:
        flat["CreatedAt"] = source["LegacyCreateTime"]
        flat["UpdatedAt"] = source["LegacyUpdateTime"]
        content = json.dumps([entry["Name"], source], sort_keys=True).encode()
        flat["Hash"] = base64.b64encode(hashlib.sha256(content).digest()).decode()
    return flat | {"CreateIndex": entry["CreateIndex"], "ModifyIndex": entry["ModifyIndex"]}


def ranked(intentions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort by precedence, highest first; ties by peer and names. Source: reference 4.2."""
    return sorted(
        intentions,
        key=lambda item: (
            -item["Precedence"],
            item.get("SourcePeer", ""),
            item["SourceName"],
            item["DestinationName"],
        ),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """An L4 answer with the reason that ``authorize`` gives."""

    allowed: bool
    reason: str


def decide(candidates: list[dict[str, Any]], source: str, default: Verdict) -> Verdict:
    """
    Judge a connection from *source*: the first matching intention, else *default*.

    Args:
        candidates: `ranked` intentions of the destination.
    """
    for item in candidates:
        if item.get("SourcePeer"):
            continue
        if item["SourceName"] in ("*", source):
            return _verdict(item)
    return default


def _verdict(item: dict[str, Any]) -> Verdict:
    identity = f"ID: {item['ID']}, " if "ID" in item else ""
    pair = f"default/{item['SourceName']} => default/{item['DestinationName']}"
    rank = f"({identity}Precedence: {item['Precedence']}"
    if "Permissions" in item:
        count = len(item["Permissions"])
        return Verdict(False, f"Matched L7 intention: {pair} {rank}, Permissions: {count})")
    action = item["Action"]
    return Verdict(
        action == "allow", f"Matched L4 intention: {pair} {rank}, Action: {action.upper()})"
    )
