"""
Consul's JSON to what a service is judged by beside its intentions: protocol, normalization, tokens.

Owns the config entries ``service-defaults`` and ``proxy-defaults`` (of which the protocol counts),
``mesh`` (request normalization) and ``jwt-provider``. What cannot be read becomes the strictest
value, or an error where there is none. Sends nothing, fetches no keys.

Source: reference 5.3, 5.6, 8.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..exceptions import AgentAnswerError
from ..intentions.jws import SKEW
from ..intentions.jwt import DEFAULT_LOCATIONS, JwtProvider, KeySet, Location, read_keys
from ..intentions.model import Normalization
from ..snapshot import Conditions

DEFAULT_PROTOCOL = "tcp"
"""Protocol of a service that no entry speaks of. Source: Consul, service-defaults."""

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
NORMALIZATION_FIELDS = {
    "InsecureDisablePathNormalization": "paths are judged as they are sent",
    "MergeSlashes": "repeated slashes are merged",
    "PathWithEscapedSlashesAction": "what is done about `%2f` and `%5c`; a redirect is a refusal",
    "HeadersWithUnderscoresAction": "what is done about `_` in header names",
}

_FORWARDING = ("HeaderName", "PadForwardPayloadHeader")
_STORED = ("Kind", "Meta", "Namespace", "Partition", "CreateIndex", "ModifyIndex", "Hash")
_SLASHES: dict[str, Literal["keep", "reject", "redirect", "unescape"]] = {
    "": "keep",
    "IMPLEMENTATION_SPECIFIC_DEFAULT": "keep",
    "KEEP_UNCHANGED": "keep",
    "REJECT_REQUEST": "reject",
    "UNESCAPE_AND_REDIRECT": "redirect",
    "UNESCAPE_AND_FORWARD": "unescape",
}
_UNDERSCORES: dict[str, Literal["allow", "reject", "drop"]] = {
    "": "allow",
    "ALLOW": "allow",
    "REJECT_REQUEST": "reject",
    "DROP_HEADER": "drop",
}
_STRICTEST = Normalization(escaped_slashes="reject", underscores="reject")
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

    uri: str
    timeout: float = 1.0
    every: float = 300.0
    ca_pem: str = field(default="", repr=False)
    ca_file: str = ""


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A provider as its entry says, and where its keys are to be read; *source* of local: none."""

    provider: JwtProvider
    source: KeySource | None


@dataclass(frozen=True, slots=True)
class ReadEntries:
    """
    What the entries say together.

    Args:
        conditions: what a policy is made under.
        sources: where the keys of which provider are to be read.
        unread: providers that cannot be read, and why: none of their tokens counts.
    """

    conditions: Conditions
    sources: Mapping[str, KeySource]
    unread: Mapping[str, str]


def parse_conditions(entries: Mapping[str, object], keys: Mapping[str, KeySet]) -> ReadEntries:
    """
    Read all entries that say how a service is judged.

    Args:
        entries: ``service-defaults`` of the service, ``proxy-defaults``, ``mesh``, and
            ``jwt-provider <name>``; ``None`` for those that do not exist.
        keys: read elsewhere, by provider.

    Raises:
        AgentAnswerError: protocol or normalization cannot be read.
    """
    providers, sources, unread = [], {}, {}
    withheld: list[str] = []
    for key, entry in sorted(entries.items()):
        kind, _, name = key.partition(" ")
        if kind != "jwt-provider" or entry is None:
            continue
        try:
            read = parse_provider(entry)
        except AgentAnswerError as error:
            unread[name] = str(error)
            withheld += _forward_header(entry)
            continue
        provider = read.provider
        if read.source is not None:
            sources[name] = read.source
            provider = replace(provider, keys=keys.get(name))
        providers.append(replace(provider, name=name))
    conditions = Conditions(
        parse_protocol(entries.get("service-defaults"), entries.get("proxy-defaults")),
        parse_normalization(entries.get("mesh")),
        tuple(providers),
        tuple(withheld),
    )
    return ReadEntries(conditions, sources, unread)


def parse_protocol(own: object, shared: object) -> str:
    """
    Find the protocol of a service.

    Args:
        own: its ``service-defaults`` entry, or ``None``.
        shared: the ``proxy-defaults`` entry, or ``None``.

    Returns:
        Lower case: ``tcp``, ``http``, ``http2``, ``grpc``.

    Raises:
        AgentAnswerError: an entry has another shape.

    Source: reference 5.3; the service's own entry wins.
    """
    protocol = _text(_entry(own, "service-defaults"), "Protocol")
    if not protocol:
        config = _entry(_entry(shared, "proxy-defaults").get("Config"), "proxy-defaults Config")
        protocol = _text(config, "protocol")
    return protocol.lower() or DEFAULT_PROTOCOL


def parse_normalization(entry: object) -> Normalization:
    """
    Read the request normalization of a ``mesh`` entry.

    Args:
        entry: the entry, or ``None`` when there is none.

    Returns:
        Consul's defaults where the entry says nothing, the strictest choice for an action that is
        not known.

    Source: reference 5.6.
    """
    found: Any = entry
    for key in ("HTTP", "Incoming", "RequestNormalization"):
        if found is None:
            return Normalization()
        if not isinstance(found, Mapping):
            return _STRICTEST
        found = found.get(key)
    if found is None:
        return Normalization()
    if not isinstance(found, Mapping) or not set(found) <= set(NORMALIZATION_FIELDS):
        return _STRICTEST
    return Normalization(
        paths=found.get("InsecureDisablePathNormalization") is not True,
        merge_slashes=found.get("MergeSlashes") is True,
        escaped_slashes=_SLASHES.get(
            str(found.get("PathWithEscapedSlashesAction") or ""), "reject"
        ),
        underscores=_UNDERSCORES.get(
            str(found.get("HeadersWithUnderscoresAction") or ""), "reject"
        ),
    )


def parse_provider(entry: object) -> ProviderEntry:
    """
    Read a ``jwt-provider`` entry; local keys are read at once.

    Raises:
        AgentAnswerError: a part is unknown, missing or unusable: no token of it can be judged.

    Source: reference 8.
    """
    known = _known(entry, (*PROVIDER_FIELDS, *_STORED), "jwt-provider")
    name, issuer = _text(known, "Name"), _text(known, "Issuer")
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
        forward_header=_text(forwarding, "HeaderName").lower(),
        forward_padded=forwarding.get("PadForwardPayloadHeader") is True,
        skew=_skew(known.get("ClockSkewSeconds")),
    )
    return ProviderEntry(provider, source)


def _forward_header(entry: object) -> list[str]:
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
    inline, filename = _text(fields, "JWKS"), _text(fields, "Filename")
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
    uri = _text(fields, "URI")
    if not uri.startswith(("https://", "http://")):
        raise AgentAnswerError(f"Remote.URI {uri!r}: https:// or http:// is expected")
    timeout = fields.get("RequestTimeoutMs") or 1000
    if isinstance(timeout, bool) or not isinstance(timeout, int):
        raise AgentAnswerError(f"RequestTimeoutMs {timeout!r}: a whole number is expected")
    cluster = _entry(fields.get("JWKSCluster"), "JWKSCluster")
    pem, file = _trusted(_entry(cluster.get("TLSCertificates"), "TLSCertificates"))
    every = max(1.0, _duration(fields.get("CacheDuration")) or 300.0)
    return KeySource(uri, min(max(timeout / 1000, 0.1), 30.0), every, pem, file)


def _trusted(certificates: Mapping[str, Any]) -> tuple[str, str]:
    fields = {key: value for key, value in certificates.items() if value}
    if not fields:
        return "", ""
    trusted = _entry(fields.get("TrustedCA"), "TrustedCA")
    pem, file = _text(trusted, "InlineString"), _text(trusted, "Filename")
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
    name = _text(fields, "Name")
    if not name:
        raise AgentAnswerError(f"Locations: {kind} has no Name")
    if kind == "Header":
        return Location(
            "header", name, _text(fields, "ValuePrefix"), forward=fields.get("Forward") is True
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


def _entry(value: object, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise AgentAnswerError(f"{what}: an object is expected")
    return value


def _known(value: object, names: tuple[str, ...], what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise AgentAnswerError(f"{what}: an object is expected")
    for key in value:
        if key not in names:
            raise AgentAnswerError(f"{what}: {key!r} is not known")
    return value


def _text(fields: Mapping[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AgentAnswerError(f"{key}: a text is expected")
    return value


def _texts(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = fields.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise AgentAnswerError(f"{key}: a list of texts is expected")
    return tuple(value)
