"""
SPIFFE IDs as Consul writes them: parse, print, compare.

Owns the five forms (service, agent, gateway, server, signing). Only the canonical spelling of a
form is accepted, so that two IDs are the same exactly when their text is: a comparison is
bytewise, trust domain included. Knows nothing of certificates or of who may do what.

Source: SPIFFE ID specification, section 2; Consul, "agent/connect/uri*.go" (reference 3.1, 3.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import quote, unquote_to_bytes

from .exceptions import IdentityError

MAX_URI_BYTES = 2048
"""Longest SPIFFE ID an implementation has to accept. Source: SPIFFE ID, 2.3."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_URI = re.compile(r"spiffe://([^/?#]*)((?:/[^?#]*)?)")
_SEGMENT = re.compile(r"(?:[A-Za-z0-9._~$&+,;=:@-]|%[0-9A-F]{2})+")
_UNESCAPED = "~$&+,;=:@"
_SERVICE = re.compile(r"(?:/ap/([^/]+))?/ns/([^/]+)/dc/([^/]+)/svc/([^/]+)")
_AGENT = re.compile(r"(?:/ap/([^/]+))?/agent/client/dc/([^/]+)/id/([^/]+)")
_GATEWAY = re.compile(r"(?:/ap/([^/]+))?/gateway/mesh/dc/([^/]+)")
_SERVER = re.compile(r"/agent/server/dc/([^/]+)")


@dataclass(frozen=True, slots=True)
class TrustDomain:
    """
    The authority part of SPIFFE IDs, lower case: ``<cluster uuid>.consul``.

    Raises:
        IdentityError: *name* has other characters than ``a-z 0-9 . - _``, or none.
    """

    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise IdentityError(f"{self.name!r}: a trust domain is 1 to 255 of a-z 0-9 . - _")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """
    Any SPIFFE ID that Consul issues; `parse_spiffe_id` makes the right form.

    Args:
        trust_domain: authority, lower case.
    """

    trust_domain: str
    kind: ClassVar[str] = "unknown"

    def _path(self) -> str:
        return ""

    @property
    def uri(self) -> str:
        """The one canonical spelling, as it stands in a certificate."""
        return f"spiffe://{self.trust_domain}{self._path()}"

    def __str__(self) -> str:
        return self.uri


@dataclass(frozen=True, slots=True)
class ServiceId(SpiffeId):
    """
    A service: ``/ns/<namespace>/dc/<datacenter>/svc/<name>``, ``/ap/<partition>`` before it when
    the partition is not ``default``. Parts are percent-decoded.
    """

    namespace: str
    datacenter: str
    name: str
    partition: str = "default"
    kind: ClassVar[str] = "service"

    def _path(self) -> str:
        return (
            f"{_partition(self.partition)}/ns/{_escape(self.namespace)}"
            f"/dc/{_escape(self.datacenter)}/svc/{_escape(self.name)}"
        )

    __str__ = SpiffeId.__str__


@dataclass(frozen=True, slots=True)
class AgentId(SpiffeId):
    """A client agent: ``/agent/client/dc/<datacenter>/id/<node>``."""

    datacenter: str
    node: str
    partition: str = "default"
    kind: ClassVar[str] = "agent"

    def _path(self) -> str:
        return (
            f"{_partition(self.partition)}/agent/client"
            f"/dc/{_escape(self.datacenter)}/id/{_escape(self.node)}"
        )

    __str__ = SpiffeId.__str__


@dataclass(frozen=True, slots=True)
class GatewayId(SpiffeId):
    """A mesh gateway: ``/gateway/mesh/dc/<datacenter>``."""

    datacenter: str
    partition: str = "default"
    kind: ClassVar[str] = "gateway"

    def _path(self) -> str:
        return f"{_partition(self.partition)}/gateway/mesh/dc/{_escape(self.datacenter)}"

    __str__ = SpiffeId.__str__


@dataclass(frozen=True, slots=True)
class ServerId(SpiffeId):
    """A Consul server: ``/agent/server/dc/<datacenter>``."""

    datacenter: str
    kind: ClassVar[str] = "server"

    def _path(self) -> str:
        return f"/agent/server/dc/{_escape(self.datacenter)}"

    __str__ = SpiffeId.__str__


@dataclass(frozen=True, slots=True)
class SigningId(SpiffeId):
    """A CA certificate's own name: the trust domain alone, no path."""

    kind: ClassVar[str] = "signing"

    __str__ = SpiffeId.__str__


def parse_spiffe_id(uri: str) -> SpiffeId:
    """
    Read a SPIFFE ID in one of Consul's forms.

    Args:
        uri: text of the URI name, as in the certificate.

    Returns:
        The value of the form; its `uri` is *uri* again, to the byte.

    Raises:
        IdentityError: no SPIFFE ID, none of the five forms, or not the canonical spelling
            (upper-case trust domain, user, port, query, fragment, escapes, ``/ap/default``).

    Source: SPIFFE ID 2; Consul agent/connect/uri.go. Stricter than Consul, which ignores query
    and fragment and folds the scheme's case.
    """
    try:
        length = len(uri.encode("ascii"))
    except UnicodeEncodeError:
        raise IdentityError(f"{uri!r}: a SPIFFE ID is ASCII") from None
    if length > MAX_URI_BYTES:
        raise IdentityError(f"{uri[:64]!r}...: a SPIFFE ID has at most {MAX_URI_BYTES} bytes")
    found = _URI.fullmatch(uri)
    if not found:
        raise IdentityError(f"{uri!r}: a SPIFFE ID is spiffe://<trust domain>/<path>, no more")
    trust_domain = TrustDomain(found[1]).name
    value = _parse_path(uri, trust_domain, found[2])
    if value.uri != uri:
        raise IdentityError(f"{uri!r}: not the canonical spelling, which is {value.uri!r}")
    return value


def parse_service_id(uri: str) -> ServiceId:
    """
    Read a SPIFFE ID that has to be a service's.

    Raises:
        IdentityError: as `parse_spiffe_id`, or the form is another one.
    """
    value = parse_spiffe_id(uri)
    if not isinstance(value, ServiceId):
        raise IdentityError(f"{uri!r}: names a {value.kind}, service IDs end in /svc/<name>")
    return value


def _parse_path(uri: str, trust_domain: str, path: str) -> SpiffeId:
    if not path:
        if "." not in trust_domain[1:]:
            raise IdentityError(f"{uri!r}: a signing ID is spiffe://<cluster>.<domain>")
        return SigningId(trust_domain)
    if found := _SERVICE.fullmatch(path):
        ap, ns, dc, name = _parts(uri, found)
        return ServiceId(trust_domain, ns, dc, name, ap)
    if found := _AGENT.fullmatch(path):
        ap, dc, node = _parts(uri, found)
        return AgentId(trust_domain, dc, node, ap)
    if found := _GATEWAY.fullmatch(path):
        ap, dc = _parts(uri, found)
        return GatewayId(trust_domain, dc, ap)
    if found := _SERVER.fullmatch(path):
        return ServerId(trust_domain, _decode(uri, found[1]))
    raise IdentityError(f"{uri!r}: none of Consul's forms; service IDs end in /svc/<name>")


def _parts(uri: str, found: re.Match[str]) -> list[str]:
    return ["default" if part is None else _decode(uri, part) for part in found.groups()]


def _decode(uri: str, segment: str) -> str:
    if segment in (".", "..") or not _SEGMENT.fullmatch(segment):
        raise IdentityError(f"{uri!r}: {segment!r} is no path segment of a SPIFFE ID")
    if "%" not in segment:
        return segment
    try:
        value = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        raise IdentityError(f"{uri!r}: {segment!r} does not decode to UTF-8") from None
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        raise IdentityError(f"{uri!r}: {segment!r} decodes to a control character")
    return value


def _partition(partition: str) -> str:
    return "" if partition == "default" else f"/ap/{_escape(partition)}"


def _escape(part: str) -> str:
    # The characters Go's url.URL leaves alone in a path (EscapedPath): what Consul's CA writes.
    return quote(part, safe=_UNESCAPED)
