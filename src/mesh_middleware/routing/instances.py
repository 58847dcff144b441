"""
Instances as the agent tells them, with what subsets and nearness ask of them.

Owns the reading of ``/v1/health/connect`` beyond addresses and identities, which are
`mesh_middleware.resolve`'s business. Keeps of an entry only what a filter can ask for.

Source: reference 6.4; Consul ``Locality`` (1.17).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..resolve import Endpoint, parse_health
from .chain import Target
from .filters import FilterError, compact, compile_filter


@dataclass(frozen=True, slots=True)
class Locality:
    """
    Where a machine stands.

    Args:
        region: such as ``eu-west-1``.
        zone: inside the region, such as ``eu-west-1a``.
    """

    region: str
    zone: str = ""
    TIERS: ClassVar[int] = 3

    def tier(self, other: Locality | None) -> int:
        """0 for the same zone, 1 for the same region, 2 for everywhere else."""
        if other is None or other.region != self.region:
            return 2
        return 0 if other.zone == self.zone else 1


@dataclass(frozen=True, slots=True)
class Instance:
    """
    One instance that may be called.

    Args:
        endpoint: address, expected SPIFFE ID, weight by health.
        entry: what filters may ask for; empty where no agent told it.
        passing: whether every check passes, none warns.
        locality: where it stands, if the agent says so.
        created: index at which it was registered; another one for one that deregistered in
            between. 0 where no agent told it.
    """

    endpoint: Endpoint
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)
    passing: bool = True
    locality: Locality | None = None
    created: int = 0


def parse_instances(body: object, *, trust_domain: str, service: str) -> tuple[Instance, ...]:
    """
    Read an answer of ``/v1/health/connect/<service>``, asked without ``passing``.

    Left out is what `resolve.parse_health` leaves out: critical instances, weight 0, gateways.

    Raises:
        AgentAnswerError: the shape breaks the API, or there are instances of another service.
    """
    if not isinstance(body, list):
        parse_health(body, trust_domain=trust_domain, service=service)
        return ()
    return tuple(
        Instance(endpoint, compact(entry), _passes(entry), _locality(entry), _created(entry))
        for entry in body
        for endpoint in parse_health([entry], trust_domain=trust_domain, service=service)
    )


def _passes(entry: Mapping[str, Any]) -> bool:
    return all(check.get("Status") == "passing" for check in entry.get("Checks") or ())


def _locality(entry: Mapping[str, Any]) -> Locality | None:
    for part in ("Service", "Node"):
        found = entry[part].get("Locality")
        if isinstance(found, Mapping) and isinstance(found.get("Region"), str):
            return Locality(found["Region"], str(found.get("Zone") or ""))
    return None


def _created(entry: Mapping[str, Any]) -> int:
    found = entry["Service"].get("CreateIndex")
    return found if isinstance(found, int) else 0


def subset(instances: Sequence[Instance], target: Target) -> tuple[Instance, ...]:
    """
    Keep the instances that belong to *target*.

    Raises:
        FilterError: its filter cannot be read.
    """
    if not target.filter and not target.only_passing:
        return tuple(instances)
    return tuple(_kept(instances, target))


def _kept(instances: Sequence[Instance], target: Target) -> Iterator[Instance]:
    keep = compile_filter(target.filter) if target.filter else lambda entry: True
    for instance in instances:
        if target.only_passing and not instance.passing:
            continue
        if keep(instance.entry):
            yield instance


__all__ = ["FilterError", "Instance", "Locality", "parse_instances", "subset"]
