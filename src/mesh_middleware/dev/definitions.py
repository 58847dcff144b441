"""
Definitions of services and checks: from what was written to values, or a refusal.

Owns defaults, check IDs and the rules of a definition. Knows nothing of what is registered.

Source: Consul agent API (reference 6.1).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from .http import Refusal, parse_duration

STATUSES = ("passing", "warning", "critical")
MIN_REAP = 60.0
"""Seconds: the shortest DeregisterCriticalServiceAfter; smaller ones are raised."""
_PROXY_KINDS = ("connect-proxy", "terminating-gateway")


@dataclass(frozen=True, slots=True)
class Check:
    """
    A check and its status.

    Args:
        kind: ``ttl``, ``http``, ``tcp``, ``alias``, ``maintenance`` ...
        ttl: seconds a TTL check stays as it was last set; 0 for other kinds.
        expires: when a TTL check turns critical.
        reap_after: seconds critical until its service is deregistered; 0 never.
        critical_since: since when it has been critical.
    """

    id: str
    name: str
    status: str
    kind: str
    service_id: str = ""
    output: str = ""
    notes: str = ""
    ttl: float = 0.0
    expires: datetime | None = None
    reap_after: float = 0.0
    critical_since: datetime | None = None
    created: int = 0
    modified: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A registered instance."""

    id: str
    name: str
    kind: str = ""
    tags: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)
    port: int = 0
    address: str = ""
    socket_path: str = ""
    tagged: dict[str, dict[str, Any]] = field(default_factory=dict)
    passing_weight: int = 1
    warning_weight: int = 1
    tag_override: bool = False
    native: bool = False
    proxy: dict[str, Any] | None = None
    sidecar_of: str = ""
    created: int = 0
    modified: int = 0

    @property
    def connects(self) -> str:
        """Name of the service that a connection to this instance reaches; ``""``: not in mesh."""
        if self.native:
            return self.name
        if self.kind in _PROXY_KINDS and self.proxy:
            return str(self.proxy.get("DestinationServiceName", ""))
        return ""

    @property
    def topics(self) -> tuple[str, ...]:
        """What changes when this instance does."""
        return (
            f"service/{self.name}",
            f"connect/{self.connects}",
            f"instance/{self.id}",
            "services",
            "checks",
        )


def read_service(wanted: dict[str, Any], index: int) -> Service:
    """
    Read a decoded service definition.

    Raises:
        Refusal: 400, a rule is broken.
    """
    name = wanted.get("Name", "")
    if not name:
        raise Refusal(400, "Missing service name")
    kind, connect = wanted.get("Kind", ""), wanted.get("Connect") or {}
    _check_service(wanted, kind, connect)
    weights = wanted.get("Weights") or {"Passing": 1, "Warning": 1}
    address, port = wanted.get("Address", ""), wanted.get("Port", 0)
    return Service(
        id=wanted.get("ID") or name, name=name, kind=kind, tags=tuple(wanted.get("Tags", ())),
        meta=wanted.get("Meta", {}), port=port, address=address,
        socket_path=wanted.get("SocketPath", ""),
        tagged={**_tagged(address, port), **wanted.get("TaggedAddresses", {})},
        passing_weight=weights.get("Passing", 0), warning_weight=weights.get("Warning", 0),
        tag_override=wanted.get("EnableTagOverride", False), native=connect.get("Native", False),
        proxy=wanted.get("Proxy") or None, created=index, modified=index,
    )  # fmt: skip


def _check_service(wanted: dict[str, Any], kind: str, connect: dict[str, Any]) -> None:
    address = wanted.get("Address", "")
    if address in ("0.0.0.0", "::", "[::]"):
        raise Refusal(400, "Invalid service address")
    broken = _broken_proxy_rules(wanted, connect) if kind == "connect-proxy" else []
    if broken:
        raise Refusal(400, several(broken))
    weights = wanted.get("Weights")
    if weights and weights.get("Passing", 0) < 1:
        raise Refusal(400, "Invalid Weights: Passing must be greater than 0")
    if weights and weights.get("Warning", 0) < 0:
        raise Refusal(400, "Invalid Weights: Warning must be greater or equal than 0")


def several(errors: list[str]) -> str:
    """Errors as Consul lists them when it found any number of them."""
    count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
    return f"{count} occurred:\n" + "".join(f"\t* {error}\n" for error in errors) + "\n"


def _broken_proxy_rules(wanted: dict[str, Any], connect: dict[str, Any]) -> list[str]:
    broken = []
    if not (wanted.get("Proxy") or {}).get("DestinationServiceName"):
        broken.append("Proxy.DestinationServiceName must be non-empty for Connect proxy services")
    if not wanted.get("Port") and not wanted.get("SocketPath"):
        broken.append("Port or SocketPath must be set for a Connect proxy")
    if connect.get("Native"):
        broken.append("A Proxy cannot also be Connect Native, only typical services")
    return broken


def _tagged(address: str, port: int) -> dict[str, dict[str, Any]]:
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return {}
    value = {"Address": address, "Port": port}
    return {f"lan_ipv{version}": value, f"wan_ipv{version}": value}


def check_definitions(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The check definitions inside a service definition: ``Check`` and ``Checks`` together."""
    single: list[dict[str, Any]] = [wanted["Check"]] if wanted.get("Check") else []
    return [*single, *wanted.get("Checks", ())]


def read_check(
    wanted: dict[str, Any], service: Service, at: int, count: int, now: datetime, index: int
) -> Check:
    """
    Read a decoded check definition.

    Args:
        at, count: which of how many checks of *service* it is: they are numbered from two on.

    Raises:
        Refusal: 400, a rule is broken.
    """
    suffix = f":{at}" if count > 1 else ""
    ttl = _seconds(wanted, "TTL")
    status = wanted.get("Status") or "critical"
    if status not in STATUSES:
        raise Refusal(400, "Status for checks must 'passing', 'warning', 'critical'")
    reap = _seconds(wanted, "DeregisterCriticalServiceAfter")
    return Check(
        id=wanted.get("CheckID") or f"service:{service.id}{suffix}",
        name=wanted.get("Name") or f"Service '{service.name}' check", status=status,
        kind=_check_kind(wanted, ttl), service_id=service.id, notes=wanted.get("Notes", ""),
        ttl=ttl, expires=now + timedelta(seconds=ttl) if ttl else None,
        output="No checks found." if "AliasService" in wanted else "",
        reap_after=max(reap, MIN_REAP) if reap else 0.0,
        critical_since=now if status == "critical" else None, created=index, modified=index,
    )  # fmt: skip


def _check_kind(wanted: dict[str, Any], ttl: float) -> str:
    if ttl:
        return "ttl"
    for field_name, kind in (("HTTP", "http"), ("TCP", "tcp"), ("UDP", "udp"), ("GRPC", "grpc"),
                             ("H2PING", "h2ping"), ("AliasService", "alias"),
                             ("AliasNode", "alias"), ("Args", "script"),
                             ("ScriptArgs", "script")):  # fmt: skip
        if wanted.get(field_name):
            return kind
    raise Refusal(400, "Invalid check: TTL must be > 0 for TTL checks")


def _seconds(wanted: dict[str, Any], name: str) -> float:
    value = wanted.get(name) or 0
    return parse_duration(value)
