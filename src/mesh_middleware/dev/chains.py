"""
Discovery chains, compiled from config entries the way Consul does.

Owns the walk from router to splitter to resolver to target, and the refusals that Consul makes when
an entry is written whose chain would not compile. Pure functions of entries; its own reading of the
API, on purpose not the client's.

Source: Consul HTTP API, "Discovery Chain"; answers of Consul 1.8.7 and 1.10.1 (reference 7).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .http import Refusal, parse_duration

Entry = dict[str, Any]
Find = Callable[[str, str], Entry | None]
"""Kind and name of an entry to the entry, or None."""

CONNECT_TIMEOUT = "5s"


class _To(NamedTuple):
    """Where a call would go, before redirects and after."""

    service: str
    subset: str
    datacenter: str

    @property
    def id(self) -> str:
        subset = f"{self.subset}." if self.subset else ""
        return f"{subset}{self.service}.default.{self.datacenter}"

    def swap(self, part: Entry) -> _To:
        """What *part* of an entry (a redirect, a split, a failover) makes of it."""
        service = part.get("Service") or self.service
        subset = self.subset if service == self.service else ""
        return _To(
            service, part.get("ServiceSubset") or subset, part.get("Datacenter") or self.datacenter
        )


@dataclass(slots=True)
class _Chain:
    find: Find
    protocol: Callable[[str], str]
    name: str
    sni: str
    nodes: dict[str, Entry] = field(default_factory=dict)
    targets: dict[str, Entry] = field(default_factory=dict)


def compile_chain(
    name: str, datacenter: str, trust_domain: str, find: Find, protocol: Callable[[str], str]
) -> Entry:
    """
    Compile the chain of one service.

    Args:
        name: of the service.
        datacenter: it is compiled for.
        trust_domain: for the server names of targets.
        find: looks config entries up.
        protocol: tells that of a service.

    Returns:
        ``Chain`` of the endpoint's answer.

    Raises:
        Refusal: 500, the entries make no chain.
    """
    chain = _Chain(find, protocol, name, trust_domain)
    start = _router(chain, _To(name, "", datacenter))
    _drop_unreached(chain, start)
    return {
        "ServiceName": name, "Namespace": "default", "Datacenter": datacenter,
        "Protocol": protocol(name), "StartNode": start,
        "Nodes": dict(sorted(chain.nodes.items())),
        "Targets": dict(sorted(chain.targets.items())),
    }  # fmt: skip


def _router(chain: _Chain, to: _To) -> str:
    entry = chain.find("service-router", to.service)
    if entry is None:
        return _splitter(chain, to, ())
    routes = []
    for route in entry.get("Routes") or []:
        destination = {**(route.get("Destination") or {})}
        there = to.swap(destination)
        destination["Service"] = there.service
        destination["Namespace"] = "default"
        following = _resolver(chain, there) if there.subset else _splitter(chain, there, ())
        routes.append({
            "Definition": {"Match": route.get("Match"), "Destination": destination},
            "NextNode": following,
        })  # fmt: skip
    routes.append({
        "Definition": {
            "Match": {"HTTP": {"PathPrefix": "/"}},
            "Destination": {"Service": to.service, "Namespace": "default"},
        },
        "NextNode": _splitter(chain, to, ()),
    })  # fmt: skip
    label = f"{to.service}.default"
    chain.nodes[f"router:{label}"] = {"Type": "router", "Name": label, "Routes": routes}
    return f"router:{label}"


def _splitter(chain: _Chain, to: _To, above: tuple[str, ...]) -> str:
    entry = None if to.service in above else chain.find("service-splitter", to.service)
    if entry is None:
        return _resolver(chain, to)
    label = f"{to.service}.default"
    node = f"splitter:{label}"
    if node in chain.nodes:
        return node
    _same_protocol(chain, to.service)
    splits: list[Entry] = []
    for split in entry.get("Splits") or []:
        there = to.swap(split)
        inner = (*above, to.service)
        following = _resolver(chain, there) if there.subset else _splitter(chain, there, inner)
        splits += _flat(chain, split, following)
    found: Entry = {"Type": "splitter", "Name": label, "Splits": splits}
    chain.nodes[node] = _balanced(chain, to.service, found)
    return node


def _flat(chain: _Chain, split: Entry, following: str) -> list[Entry]:
    headers = {key: split[key] for key in ("RequestHeaders", "ResponseHeaders") if split.get(key)}
    definition = {"Definition": {**split}} if headers else {}
    weight = split.get("Weight") or 0
    inner = chain.nodes[following].get("Splits")
    if inner is None:
        return [{**definition, "Weight": weight, "NextNode": following}]
    return [{**one, "Weight": round(weight * one["Weight"] / 100, 2)} for one in inner]


def _resolver(chain: _Chain, to: _To, *, stands_in: bool = False) -> str:
    to, entry = _settle(chain, to)
    _same_protocol(chain, to.service)
    chain.targets[to.id] = _target(chain, to, entry)
    node = f"resolver:{to.id}"
    if stands_in:
        return to.id
    if node not in chain.nodes:
        resolver: Entry = {"ConnectTimeout": _written(entry.get("ConnectTimeout"))}
        if not entry:
            resolver["Default"] = True
        if entry.get("RequestTimeout"):
            resolver["RequestTimeout"] = round(parse_duration(entry["RequestTimeout"]) * 1e9)
        resolver["Target"] = to.id
        found: Entry = {"Type": "resolver", "Name": to.id, "Resolver": resolver}
        chain.nodes[node] = _balanced(chain, to.service, found)
        others = _failover(chain, to, entry)
        if others:
            resolver["Failover"] = {"Targets": others}
    return node


def _settle(chain: _Chain, to: _To) -> tuple[_To, Entry]:
    seen: list[_To] = []
    while True:
        if to in seen:
            raise Refusal(500, f"detected circular resolver redirect: {[one.id for one in seen]}")
        seen.append(to)
        entry = chain.find("service-resolver", to.service) or {}
        next_to = to.swap(entry.get("Redirect") or {})
        if next_to == to and not to.subset and entry.get("DefaultSubset"):
            next_to = to._replace(subset=entry["DefaultSubset"])
        if next_to == to:
            break
        to = next_to
    if to.subset and to.subset not in (entry.get("Subsets") or {}):
        raise Refusal(
            500, f"service {json.dumps(to.service)} does not have a subset named"
            f" {json.dumps(to.subset)}"
        )  # fmt: skip
    return to, entry


def _failover(chain: _Chain, to: _To, entry: Entry) -> list[str]:
    every = entry.get("Failover") or {}
    part = every.get(to.subset) or every.get("*") or {}
    wanted = [to.swap(one) for one in part.get("Targets") or []]
    if part and not wanted:
        there = to.swap(part)
        wanted = [there._replace(datacenter=dc) for dc in part.get("Datacenters") or []] or [there]
    found = [_resolver(chain, one, stands_in=True) for one in wanted]
    return [one for one in dict.fromkeys(found) if one != to.id]


def _target(chain: _Chain, to: _To, entry: Entry) -> Entry:
    subset = {**((entry.get("Subsets") or {}).get(to.subset) or {})} if to.subset else {}
    sni = f"{to.id}.internal.{chain.sni}"
    found = {"ID": to.id, "Service": to.service}
    if to.subset:
        found["ServiceSubset"] = to.subset
    return {
        **found, "Namespace": "default", "Datacenter": to.datacenter, "MeshGateway": {},
        "Subset": subset, "SNI": sni, "Name": sni,
    }  # fmt: skip


def _balanced(chain: _Chain, service: str, node: Entry) -> Entry:
    entry = chain.find("service-resolver", service) or {}
    return {**node, "LoadBalancer": entry["LoadBalancer"]} if entry.get("LoadBalancer") else node


def _same_protocol(chain: _Chain, service: str) -> None:
    ours, theirs = chain.protocol(chain.name), chain.protocol(service)
    if ours != theirs:
        raise Refusal(
            500, f"discovery chain {json.dumps(chain.name)} uses inconsistent protocols; service"
            f" {json.dumps(service)} has {json.dumps(theirs)} which is not {json.dumps(ours)}"
        )  # fmt: skip


def _drop_unreached(chain: _Chain, start: str) -> None:
    # Splitters that were flattened into others, and resolvers nobody is sent to.
    reached, left = set(), [start]
    while left:
        node = left.pop()
        if node not in reached:
            reached.add(node)
            steps = (*chain.nodes[node].get("Routes", ()), *chain.nodes[node].get("Splits", ()))
            left += [step["NextNode"] for step in steps]
    chain.nodes = {name: node for name, node in chain.nodes.items() if name in reached}


def _written(duration: object) -> str:
    """A duration as Go writes it: ``1m30s``, ``250ms``."""
    seconds = parse_duration(duration) if isinstance(duration, str | int | float) else 0.0
    if seconds <= 0:
        return CONNECT_TIMEOUT
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + (
        f"{rest:g}s"
    )  # fmt: skip
