"""
Services and checks as JSON, in each of the forms Consul has for them.

Owns the shapes of the agent, health and catalog endpoints. Pure functions of values.

Source: recorded answers of Consul 1.10.1; reference 6.3, 6.4.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from .definitions import Check, Service


@dataclass(frozen=True, slots=True)
class Node:
    """The one node of this cluster."""

    name: str
    id: str
    address: str
    datacenter: str
    index: int

    @property
    def _addresses(self) -> dict[str, str]:
        names = ("lan", "lan_ipv4", "wan", "wan_ipv4")
        return dict.fromkeys(names, self.address)

    def head(self, meta: str = "Meta") -> dict[str, Any]:
        """The fields every form of a node has."""
        return {
            "ID": self.id,
            "Node": self.name,
            "Address": self.address,
            "Datacenter": self.datacenter,
            "TaggedAddresses": self._addresses,
            meta: {"consul-network-segment": ""},
        }

    def full(self) -> dict[str, Any]:
        """The node as in health and catalog/nodes."""
        return {**self.head(), "CreateIndex": self.index, "ModifyIndex": self.index}

    def serf_check(self) -> dict[str, Any]:
        """The node's own check."""
        check = Check("serfHealth", "Serf Health Status", "passing", "", output=_ALIVE)
        return check_view(check, Service("", ""), self) | {
            "CreateIndex": self.index,
            "ModifyIndex": self.index,
        }


_ALIVE = "Agent alive and reachable"


def consul_service(node: Node) -> Service:
    """The service that every server registers."""
    return Service("consul", "consul", port=8300, created=node.index, modified=node.index)


def agent_service(service: Service, node: Node) -> dict[str, Any]:
    """The form of ``/v1/agent/services``."""
    view: dict[str, Any] = {"Kind": service.kind} if service.kind else {}
    view |= {
        "ID": service.id,
        "Service": service.name,
        "Tags": list(service.tags),
        "Meta": service.meta,
        "Port": service.port,
        "Address": service.address,
        "SocketPath": service.socket_path,
    }
    if service.tagged:
        view["TaggedAddresses"] = service.tagged
    view |= {"Weights": _weights(service), "EnableTagOverride": service.tag_override}
    if service.proxy is not None:
        view["Proxy"] = {**service.proxy, **_proxy_parts(service.proxy)}
    if service.native:
        view["Connect"] = {"Native": True}
    return {**view, "Datacenter": node.datacenter}


def content_hash(service: Service, node: Node) -> str:
    """What hash-blocking compares: 16 hex digits over the agent's view."""
    text = json.dumps(agent_service(service, node), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights(service: Service) -> dict[str, int]:
    return {"Passing": service.passing_weight, "Warning": service.warning_weight}


def _proxy_parts(proxy: dict[str, Any]) -> dict[str, Any]:
    return {"MeshGateway": proxy.get("MeshGateway", {}), "Expose": proxy.get("Expose", {})}


def _catalog_proxy(service: Service) -> dict[str, Any]:
    proxy = service.proxy or {}
    return {**proxy, "Mode": proxy.get("Mode", ""), **_proxy_parts(proxy)}


def health_service(service: Service) -> dict[str, Any]:
    """The ``Service`` part of a health entry."""
    view: dict[str, Any] = {"Kind": service.kind} if service.kind else {}
    view |= {
        "ID": service.id,
        "Service": service.name,
        "Tags": list(service.tags),
        "Address": service.address,
    }
    if service.tagged:
        view["TaggedAddresses"] = service.tagged
    view["Meta"] = service.meta or None
    if service.port:  # Consul leaves a port of 0 out here. Source: reference 6.4, traps.
        view["Port"] = service.port
    if service.socket_path:
        view["SocketPath"] = service.socket_path
    return view | {
        "Weights": _weights(service),
        "EnableTagOverride": service.tag_override,
        "Proxy": _catalog_proxy(service),
        "Connect": {"Native": True} if service.native else {},
        "CreateIndex": service.created,
        "ModifyIndex": service.modified,
    }


def catalog_service(service: Service, node: Node) -> dict[str, Any]:
    """The flat form of ``/v1/catalog/service``."""
    view = node.head("NodeMeta") | {
        "ServiceKind": service.kind,
        "ServiceID": service.id,
        "ServiceName": service.name,
        "ServiceTags": list(service.tags),
        "ServiceAddress": service.address,
    }
    if service.tagged:
        view["ServiceTaggedAddresses"] = service.tagged
    return view | {
        "ServiceWeights": _weights(service),
        "ServiceMeta": service.meta,
        "ServicePort": service.port,
        "ServiceSocketPath": service.socket_path,
        "ServiceEnableTagOverride": service.tag_override,
        "ServiceProxy": _catalog_proxy(service),
        "ServiceConnect": {"Native": True} if service.native else {},
        "CreateIndex": service.created,
        "ModifyIndex": service.modified,
    }


def check_view(check: Check, service: Service, node: Node) -> dict[str, Any]:
    """A check as in health and ``/v1/agent/checks``."""
    return {
        "Node": node.name,
        "CheckID": check.id,
        "Name": check.name,
        "Status": check.status,
        "Notes": check.notes,
        "Output": check.output,
        "ServiceID": check.service_id,
        "ServiceName": service.name,
        "ServiceTags": list(service.tags),
        "Type": check.kind,
        "ExposedPort": 0,
        "Definition": {},
        "CreateIndex": check.created,
        "ModifyIndex": check.modified,
    }


def health_entry(
    service: Service, checks: list[Check], node_checks: list[Check], node: Node
) -> dict[str, Any]:
    """One element of ``/v1/health/...``."""
    nobody = Service("", "")
    return {
        "Node": node.full(),
        "Service": health_service(service),
        "Checks": [
            node.serf_check(),
            *(check_view(check, nobody, node) for check in node_checks),
            *(check_view(check, service, node) for check in checks),
        ],
    }
