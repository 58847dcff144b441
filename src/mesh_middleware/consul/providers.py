"""
Consul's JSON to who vouches for tokens: the config entries ``jwt-provider``.

Owns their reading; a part that is unknown, missing or unusable makes the whole entry unusable.
Loaded with the first such entry, since most services have none. Sends nothing, fetches no keys.

Source: reference 8.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..exceptions import AgentAnswerError
from ..intentions.jws import SKEW
from ..intentions.jwt import DEFAULT_LOCATIONS, JwtProvider, KeySet, Location, read_keys
from ..urls import redacted
from .entries import entry_of, text_of

PROVIDER_FIELDS = {
    "Name": "what intentions call it",
    "Issuer": "the only `iss` whose tokens count",
    "JSONWebKeySet": "`Local` (`JWKS` in base64, or `Filename`) or `Remote`",
    "Audiences": "a token has to name one of them; none given: it need not",
    "Locations": "`Header`, `QueryParam`, `Cookie`; none given: `Authorization: Bearer`, then the "
    "parameter `access_token`",
    "Forwarding": "`HeaderName`: what callers send under it is removed; verified claims that were "
    "demanded stand there, in base64url (`PadForwardPayloadHeader` for padding)",
    "ClockSkewSeconds": "at most 30, which is the default; 60 in `envoy`, as Envoy has it",
    "CacheConfig": "ignored",
}
REMOTE_FIELDS = {
    "URI": "`https://` or `http://`; redirects are not followed",
    "RequestTimeoutMs": "of one question, 0.1 to 30 s; 1 s unless given",
    "CacheDuration": "how long keys serve without asking again; 5 minutes unless given",
    "FetchAsynchronously": "ignored: keys are always fetched ahead of requests",
    "RetryPolicy": "ignored: failures are retried with a backoff of 1 to 60 s",
    "JWKSCluster": "`TLSCertificates.TrustedCA` as `InlineString` or `Filename`; else the system's",
}

_FORWARDING = ("HeaderName", "PadForwardPayloadHeader")
_STORED = ("Kind", "Meta", "Namespace", "Partition", "CreateIndex", "ModifyIndex", "Hash")
_NANOSECONDS = 1e-9
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class KeySource:
    """
    Where the keys of a provider are read.

    Args:
        uri: ``https://``, ``http://``, or ``file://`` and a path of this machine.
        timeout: seconds one question may take.
        every: seconds after which the keys are read again.
        ca_pem: certificates that verify the server; empty for the system's.
        ca_file: file with such certificates; empty for none.
    """

    uri: str = field(repr=False)
    timeout: float = 1.0
    every: float = 300.0
    ca_pem: str = field(default="", repr=False)
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A provider as its entry says, and where its keys are to be read; *source* of local: none."""

    provider: JwtProvider
    source: KeySource | None


def parse_provider(entry: object) -> ProviderEntry:
    """
    Read a ``jwt-provider`` entry; local keys are read at once.

    Raises:
        AgentAnswerError: a part is unknown, missing or unusable: no token of it can be judged.

    Source: reference 8.
    """
    known = _known(entry, (*PROVIDER_FIELDS, *_STORED), "jwt-provider")
    name, issuer = text_of(known, "Name"), text_of(known, "Issuer")
    if not name:
        raise AgentAnswerError("jwt-provider: Name is missing")
    keys, source = _keys(known.get("JSONWebKeySet"))
    forwarding = _known(known.get("Forwarding") or {}, _FORWARDING, "Forwarding")
    provider = JwtProvider(
        name,
        issuer,
        audiences=_texts(known, "Audiences"),
        locations=_locations(known.get("Locations")),
        keys=keys,
        jwks_uri=source.uri if source else "",
        cache_seconds=source.every if source else 0.0,
        timeout=source.timeout if source else 0.0,
        forward_header=text_of(forwarding, "HeaderName").lower(),
        forward_padded=forwarding.get("PadForwardPayloadHeader") is True,
        skew=_skew(known.get("ClockSkewSeconds")),
    )
    return ProviderEntry(provider, source)


def forward_header(entry: object) -> list[str]:
    """Find the header that hands claims over, in an entry of which something else is unreadable."""
    forwarding = entry.get("Forwarding") if isinstance(entry, Mapping) else None
    name = forwarding.get("HeaderName") if isinstance(forwarding, Mapping) else None
    return [name.lower()] if isinstance(name, str) and name else []


def _skew(value: object) -> float:
    # Consul writes 30 where nothing, or zero, is said.
    if not value:
        return SKEW
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise AgentAnswerError(f"ClockSkewSeconds {value!r}: a whole number is expected")
    return min(float(value), SKEW)


def _keys(value: object) -> tuple[KeySet | None, KeySource | None]:
    where = _known(value, ("Local", "Remote"), "JSONWebKeySet")
    local, remote = where.get("Local"), where.get("Remote")
    if (local is None) == (remote is None):
        raise AgentAnswerError("JSONWebKeySet: one of Local and Remote is expected")
    if remote is not None:
        return None, _remote(remote)
    fields = _known(local, ("JWKS", "Filename"), "Local")
    inline, filename = text_of(fields, "JWKS"), text_of(fields, "Filename")
    if bool(inline) == bool(filename):
        raise AgentAnswerError("Local: one of JWKS and Filename is expected")
    if filename:
        return None, KeySource(f"file://{filename}")
    try:
        return read_keys(base64.b64decode(inline, validate=True).decode()), None
    except (ValueError, binascii.Error, RecursionError) as error:
        raise AgentAnswerError(f"Local.JWKS: base64 of a JWKS is expected: {error}") from None


def _remote(value: object) -> KeySource:
    fields = _known(value, tuple(REMOTE_FIELDS), "Remote")
    uri = text_of(fields, "URI")
    if not uri.startswith(("https://", "http://")):
        raise AgentAnswerError(f"Remote.URI {redacted(uri)!r}: https:// or http:// is expected")
    timeout = fields.get("RequestTimeoutMs") or 1000
    if isinstance(timeout, bool) or not isinstance(timeout, int):
        raise AgentAnswerError(f"RequestTimeoutMs {timeout!r}: a whole number is expected")
    cluster = entry_of(fields.get("JWKSCluster"), "JWKSCluster")
    pem, file = _trusted(entry_of(cluster.get("TLSCertificates"), "TLSCertificates"))
    every = max(1.0, _duration(fields.get("CacheDuration")) or 300.0)
    return KeySource(uri, min(max(timeout / 1000, 0.1), 30.0), every, pem, file)


def _trusted(certificates: Mapping[str, Any]) -> tuple[str, str]:
    fields = {key: value for key, value in certificates.items() if value}
    if not fields:
        return "", ""
    trusted = entry_of(fields.get("TrustedCA"), "TrustedCA")
    pem, file = text_of(trusted, "InlineString"), text_of(trusted, "Filename")
    if set(fields) != {"TrustedCA"} or bool(pem) == bool(file):
        raise AgentAnswerError("TLSCertificates: TrustedCA with InlineString or Filename expected")
    return pem, file


def _locations(value: object) -> tuple[Location, ...]:
    if not value:
        return DEFAULT_LOCATIONS
    if not isinstance(value, list):
        raise AgentAnswerError("Locations: a list is expected")
    return tuple(map(_location, value))


def _location(value: object) -> Location:
    item = _known(value, ("Header", "QueryParam", "Cookie"), "Locations")
    found = [(kind, part) for kind, part in item.items() if part is not None]
    if len(found) != 1:
        raise AgentAnswerError("Locations: one of Header, QueryParam and Cookie is expected")
    [(kind, part)] = found
    fields = _known(part, ("Name", "ValuePrefix", "Forward"), kind)
    name = text_of(fields, "Name")
    if not name:
        raise AgentAnswerError(f"Locations: {kind} has no Name")
    if kind == "Header":
        return Location(
            "header", name, text_of(fields, "ValuePrefix"), forward=fields.get("Forward") is True
        )
    return Location("query" if kind == "QueryParam" else "cookie", name)


def _duration(value: object) -> float:
    """Read a Go duration in seconds: a text such as ``1m30s``, or nanoseconds."""
    if value is None or value == "":
        return 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        return value * _NANOSECONDS
    seconds, rest = 0.0, str(value)
    while rest:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(digits) :]
        unit = next((unit for unit in ("ms", "s", "m", "h") if rest.startswith(unit)), "")
        try:
            seconds += float(digits) * _UNITS[unit]
        except (ValueError, KeyError):
            raise AgentAnswerError(f"{value!r}: a duration is expected") from None
        rest = rest[len(unit) :]
    return seconds


def _known(value: object, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AgentAnswerError(f"{what}: an object is expected")
    for key in value:
        if key not in names:
            raise AgentAnswerError(f"{what}: {key!r} is not known")
    return value


def _texts(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = fields.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise AgentAnswerError(f"{key}: a list of texts is expected")
    return tuple(value)
