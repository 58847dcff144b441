"""
What every step of the demo stands on, and the questions that several of them ask.

Owns the order-to-tax call's reading: who saw whom, and whether a refusal came from tax's policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509

from ...exceptions import AgentError, MeshError
from ...identity import ServiceId
from ..rules import Rules
from .agents import Agent
from .evidence import Call, Evidence
from .screen import Screen
from .services import Service, is_healthy
from .shop import Shop, Tally
from .waiting import until

_REFUSED_BY_TAX = re.compile(r"\binvoice: tax\S*: denied by ")
"""How order tells that invoice told that tax's policy said no."""


class StepFailedError(MeshError):
    """Something the demo promises did not hold."""


class LeftOutError(MeshError):
    """A step is not done on an agent that is not the demo's own."""


@dataclass(frozen=True, slots=True)
class Shown:
    """
    What a step that held has shown.

    Args:
        says: one line.
        figures: what was measured.
    """

    says: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """
    Everything a step needs.

    Args:
        agent: control plane.
        services: order, invoice and tax.
        shop: who calls.
        rules: how intentions are written.
        evidence: takes what is seen.
        screen: shows it.
        extras: further instances, started by steps.
    """

    agent: Agent
    services: tuple[Service, ...]
    shop: Shop
    rules: Rules
    evidence: Evidence
    screen: Screen
    extras: list[Service] = field(default_factory=list)

    def service(self, name: str) -> Service:
        """The service of that name."""
        return next(service for service in self.services if service.name == name)

    def identity(self, name: str) -> ServiceId:
        """The SPIFFE ID a service of that name has in this mesh."""
        leaf = self.shop.mesh.snapshot.leaf
        if leaf is None:
            raise StepFailedError("the shop has no certificate")
        return replace(leaf.id, name=name)

    def certificates(self) -> dict[str, x509.Certificate]:
        """What each service shows on a new connection now; noted as evidence."""
        found = {}
        for service in self.services:
            certificate = self.shop.certificate_of(self.identity(service.name), service.port)
            self.evidence.certificate(
                service.name, serial(certificate), certificate.issuer.rfc4514_string()
            )
            found[service.name] = certificate
        return found

    def wait_healthy(self, timeout: float) -> None:
        """Wait until the agent knows all three as native and passing."""
        for service in self.services:

            def ask(service: Service = service) -> bool | None:
                try:
                    return True if is_healthy(self.agent.api, service) else None
                except AgentError:
                    return None

            until(ask, timeout=timeout, every=0.05, what=f"{service.name} registered and passing")


def serial(certificate: x509.Certificate) -> str:
    """A serial number as Consul writes it: ``0e:12``."""
    number = certificate.serial_number
    return number.to_bytes(max(1, (number.bit_length() + 7) // 8), "big").hex(":")


def is_refusal_of_tax(call: Call) -> bool:
    """Tell whether order's answer says that tax's policy refused invoice."""
    return call.status == 502 and bool(_REFUSED_BY_TAX.search(str(call.says)))


def expect_answer(call: Call) -> Call:
    """
    Demand that a call succeeded.

    Raises:
        StepFailedError: it did not; the message says what came instead.
    """
    if not call.answered:
        raise StepFailedError(
            f"{call.method} {call.url}: {call.status or 'no status'}, {call.says}"
        )
    return call


def expect_none_failed(tally: Tally) -> None:
    """
    Demand that background traffic lost nothing.

    Raises:
        StepFailedError: a call failed, or none was made.
    """
    if not tally.calls:
        raise StepFailedError("no call was made")
    if tally.failed:
        first = tally.failed[0]
        raise StepFailedError(
            f"{len(tally.failed)} of {tally.calls} calls failed, the first with "
            f"{first.status or 'no status'}: {first.says}"
        )
