"""
Where an upstream lives, and who has to answer there.

Owns the names an upstream goes by (`parse_upstream`), the reading of the agent's
``/v1/health/connect`` answers (`parse_health`), and the seam for other sources of instances
(`Resolver`). Address and expected SPIFFE ID are one value, an `Endpoint`, so that neither can be
had without the other. Asks nobody itself, and knows neither sockets nor the mesh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Literal, Protocol

from .exceptions import AgentAnswerError, IdentityError, ResolveError
from .identity import ServiceId, TrustDomain

UpstreamKind = Literal["service", "query", "connect"]
EndpointKind = Literal["native", "sidecar", "gateway"]

MAX_WEIGHT = 128
"""Highest weight of an instance. Source: Envoy's cap on what Consul sends (reference 6.4)."""

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62})")
_SCOPES = {"ns": "namespace", "ap": "partition", "dc": "datacenter"}


@dataclass(frozen=True, slots=True)
class Upstream:
    """
    A service we call, as its name says it.

    Args:
        name: service, or prepared query.
        datacenter: where to look; ``None`` means our own.
        namespace: of the service; ``default`` outside Consul Enterprise.
        partition: of the service; ``default`` outside Consul Enterprise.
        kind: ``service`` and ``connect`` name a service, ``query`` a prepared query.
    """

    name: str
    datacenter: str | None = None
    namespace: str = "default"
    partition: str = "default"
    kind: UpstreamKind = "service"

    def __str__(self) -> str:
        return f"{self.name}.{self.kind}{self.where}"

    @property
    def where(self) -> str:
        """What its name says of datacenter and scopes, as a name has it; empty without."""
        scopes = {"ns": self.namespace, "ap": self.partition}
        named = "".join(f".{one}.{mark}" for mark, one in scopes.items() if one != "default")
        if self.datacenter is None:
            return named
        return f"{named}.{self.datacenter}.dc" if named else f".{self.datacenter}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One instance of an upstream.

    Args:
        host: IP address or host name to dial.
        port: TCP port to dial.
        expected: the only SPIFFE ID that may answer there.
        weight: share of the calls, 1 to 128.
        kind: who terminates the connection: the service, its sidecar, or a gateway.
        priority: those of the lowest are called as long as enough of them are well.
    """

    host: str
    port: int
    expected: ServiceId
    weight: int = 1
    kind: EndpointKind = "native"
    priority: int = 0

    @property
    def address(self) -> str:
        """``host:port``, the host in brackets when it is IPv6."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Resolver(Protocol):
    """Another source of instances than the agent: files, tests, a registry of one's own."""

    def resolve(self, upstream: Upstream) -> Sequence[Endpoint]:
        """
        Tell the instances of *upstream* that may be called now; must not block.

        Raises:
            ResolveError: there is no such upstream.
        """
        ...


class StaticResolver:
    """
    A `Resolver` that knows its answers from the start.

    Args:
        endpoints: service name to instances.
    """

    def __init__(self, endpoints: Mapping[str, Sequence[Endpoint]]) -> None:
        self._endpoints = {name: tuple(known) for name, known in endpoints.items()}

    def resolve(self, upstream: Upstream) -> Sequence[Endpoint]:
        """
        Look *upstream* up by its name.

        Raises:
            ResolveError: the name is unknown, names a prepared query, or another datacenter,
                namespace or partition than the table's instances are in.
        """
        known = self._endpoints.get(upstream.name)
        if known is None or upstream.kind == "query":
            raise ResolveError(f"{upstream}: no such upstream in the static table")
        found = tuple(one for one in known if _is_there(upstream, one.expected))
        if known and not found:
            raise ResolveError(f"{upstream}: the static table has it elsewhere")
        return found


def _is_there(upstream: Upstream, expected: ServiceId) -> bool:
    # Only what the name says counts: one without a datacenter means whatever the table has.
    return (
        upstream.datacenter in (None, expected.datacenter)
        and upstream.namespace in ("default", expected.namespace)
        and upstream.partition in ("default", expected.partition)
    )


def parse_upstream(host: str, *, domain: str = "consul", datacenter: str | None = None) -> Upstream:
    """
    Read the host of a URL as the name of an upstream.

    Args:
        host: ``tax``, ``tax.service.consul``, ``tax.connect.dc1.consul``, ``near.query.consul``, or
            with scopes, ``tax.service.team.ns.eu.ap.dc2.dc.consul``. Without a port.
        domain: Consul's DNS domain.
        datacenter: taken when the name has none.

    Returns:
        The upstream, its name in lower case.

    Raises:
        ResolveError: an IP address, another domain, a tag, or any other form. Such a name is never
            looked up elsewhere.

    Source: Consul DNS, "Service lookups"; connect/resolver.go (reference 3.4).
    """
    name = host.lower().removesuffix(".")
    _refuse_addresses(host, name)
    labels = name.split(".")
    if len(labels) == 1:
        found = Upstream(_label(host, name))
    else:
        suffix = "." + domain.lower().strip(".")
        if not name.endswith(suffix):
            raise ResolveError(f"{host!r}: not in the mesh; upstreams end in {suffix!r}")
        found = _parse_labels(host, name.removesuffix(suffix).split("."))
    if found.datacenter is None and datacenter is not None:
        return replace(found, datacenter=datacenter)
    return found


def _refuse_addresses(host: str, name: str) -> None:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        if name != "localhost":
            return
    raise ResolveError(f"{host!r}: an address, not the name of an upstream: it has no identity")


def _parse_labels(host: str, labels: list[str]) -> Upstream:
    kinds = [at for at, label in enumerate(labels) if label in ("service", "query", "connect")]
    if 1 not in kinds:
        if kinds and kinds[-1] > 1:
            raise ResolveError(f"{host!r}: tags cannot be asked for; {labels[kinds[-1] - 1]!r} can")
        raise ResolveError(f"{host!r}: upstreams are <name>.service, <name>.connect, <name>.query")
    kind: UpstreamKind = (
        "query" if labels[1] == "query" else "connect" if labels[1] == "connect" else "service"
    )
    return Upstream(_label(host, labels[0]), kind=kind, **_parse_scopes(host, labels[2:]))


def _parse_scopes(host: str, labels: list[str]) -> dict[str, str]:
    if not labels:
        return {}
    if len(labels) == 1:
        return {"datacenter": _label(host, labels[0])}
    found: dict[str, str] = {}
    for value, marker in zip(labels[::2], labels[1::2], strict=False):
        scope = _SCOPES.get(marker)
        if scope is None or scope in found:
            raise ResolveError(f"{host!r}: {marker!r} is no scope; <x>.ns, <x>.ap and <x>.dc are")
        found[scope] = _label(host, value)
    if len(labels) % 2:
        raise ResolveError(f"{host!r}: {labels[-1]!r} lacks its marker: ns, ap or dc")
    return found


def _label(host: str, label: str) -> str:
    if not _LABEL.fullmatch(label):
        raise ResolveError(f"{host!r}: {label!r} is not 1 to 63 of a-z 0-9 - _")
    return label


def sni(expected: ServiceId) -> str | None:
    """
    Tell the server name to send: what mesh and terminating gateways route by.

    Returns:
        ``<service>.<namespace>.<datacenter>.internal.<trust domain>``, with a partition
        ``….<partition>.<datacenter>.internal-v1.<trust domain>``; ``None`` when TLS could not
        carry it, since instances themselves ignore it.

    Source: Consul connect/sni.go, ``ServiceSNI`` (reference 3.5).
    """
    where = f"{expected.datacenter}.internal"
    if expected.partition != "default":
        where = f"{expected.partition}.{expected.datacenter}.internal-v1"
    name = f"{expected.name}.{expected.namespace}.{where}.{expected.trust_domain}"
    labels = name.split(".")
    if len(name) > 253 or not all(0 < len(label) < 64 for label in labels) or not name.isascii():
        return None
    return name


def parse_health(
    answer: object, *, trust_domain: str, service: str | None = None
) -> tuple[Endpoint, ...]:
    """
    Read an answer of ``/v1/health/connect/<service>``, or the ``Nodes`` of an executed query.

    A terminating gateway counts as an instance of the service that it stands for. Left out is what
    cannot be called: a failing check, weight 0, no port, another cluster's (``PeerName``), other
    gateways.

    Args:
        answer: the body, parsed as JSON.
        trust_domain: of the roots; the expected SPIFFE IDs are in it.
        service: name that was asked for; ``None`` when the answer may name any (prepared query).

    Returns:
        The instances in the agent's order (nearest first when it was asked so).

    Raises:
        AgentAnswerError: a shape that breaks the API, or instances of another service.

    Source: reference 6.4; Consul connect/resolver.go for identity and address.
    """
    entries = _typed(answer, list, "the answer")
    found = (_parse_entry(entry, trust_domain, service) for entry in entries)
    return tuple(endpoint for endpoint in found if endpoint is not None)


def parse_query(answer: object, *, trust_domain: str) -> tuple[Endpoint, ...]:
    """
    Read an answer of ``/v1/query/<name>/execute?connect=true``.

    Raises:
        AgentAnswerError: as `parse_health`.
    """
    body = _typed(answer, dict, "the answer")
    return parse_health(body.get("Nodes"), trust_domain=trust_domain)


def _parse_entry(entry: object, trust_domain: str, asked: str | None) -> Endpoint | None:
    parts = _typed(entry, dict, "an entry")
    node = _typed(parts.get("Node"), dict, "Node")
    service = _typed(parts.get("Service"), dict, "Service")
    kind, name = _who(service, asked)
    if kind is None:
        return None
    if asked is not None and name.lower() != asked.lower():
        raise AgentAnswerError(f"asked for {asked!r}, the answer has an instance of {name!r}")
    host = _text(service, "Address") or _text(node, "Address")
    port = _port(service)
    weight = _weight(service, _part(parts, "Checks", list))
    expected = _expected(trust_domain, node, service, name)
    if port == 0 or weight == 0 or _text(service, "PeerName"):
        return None
    if not host:
        raise AgentAnswerError(f"an instance of {name!r} has neither service nor node address")
    return Endpoint(host, port, expected, weight, kind)


def _who(service: dict[str, Any], asked: str | None) -> tuple[EndpointKind | None, str]:
    kind = _text(service, "Kind")
    connect = _part(service, "Connect", dict)
    if kind == "" and connect.get("Native") is True:
        return "native", _text(service, "Service", required=True)
    if kind == "connect-proxy":
        # The address is the proxy's, the identity that of the service behind it.
        proxy = _typed(service.get("Proxy"), dict, "Proxy")
        return "sidecar", _text(proxy, "DestinationServiceName", required=True)
    if kind == "terminating-gateway" and asked is not None:
        # It stands for the service that was asked for, shows that service's leaf, and is told by
        # the server name which one is meant. A prepared query does not say which one.
        return "gateway", asked
    return None, ""


def _expected(
    trust_domain: str, node: dict[str, Any], service: dict[str, Any], name: str
) -> ServiceId:
    try:
        return ServiceId(
            TrustDomain(trust_domain).name,
            _text(service, "Namespace") or "default",
            _text(node, "Datacenter", required=True),
            name,
            _text(service, "Partition") or "default",
        )
    except IdentityError as error:
        raise AgentAnswerError(f"instance of {name!r}: {error}") from error


def _port(service: dict[str, Any]) -> int:
    port = service.get("Port", 0)
    if type(port) is not int or not 0 <= port <= 65535:
        raise AgentAnswerError(f"Service.Port is {port!r}, not a TCP port")
    return port


def _weight(service: dict[str, Any], checks: list[Any]) -> int:
    statuses = {_text(_typed(check, dict, "a check"), "Status") for check in checks}
    if statuses - {"passing", "warning"}:
        return 0
    weights = _part(service, "Weights", dict)
    weight = weights.get("Warning" if "warning" in statuses else "Passing", 1)
    if type(weight) is not int or weight < 0:
        raise AgentAnswerError(f"Service.Weights is {weights!r}, not of numbers")
    return min(weight, MAX_WEIGHT)


def _typed(value: object, kind: type[Any], what: str) -> Any:
    if not isinstance(value, kind):
        raise AgentAnswerError(f"{what} is {type(value).__name__}, not {kind.__name__}")
    return value


def _part(owner: dict[str, Any], key: str, kind: type[Any]) -> Any:
    # Go writes null for an empty map or list, and may leave the key out.
    value = owner.get(key)
    return kind() if value is None else _typed(value, kind, key)


def _text(owner: dict[str, Any], key: str, *, required: bool = False) -> str:
    value = owner.get(key)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        raise AgentAnswerError(f"{key} is {value!r}, not a text")
    return value
