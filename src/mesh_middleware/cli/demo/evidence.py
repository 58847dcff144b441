"""
What the demo saw, as data: every call, every process, every step.

Owns the shape of ``mesh demo --json``. Written while the demo runs, by its threads; read once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How a step ended."""

    HELD = "held"
    FAILED = "failed"
    NOT_OFFERED = "not offered by this Consul"
    LEFT_OUT = "left out"
    NOT_REACHED = "not reached"

    @property
    def counts_as_failed(self) -> bool:
        """Whether the demo as a whole has failed by it."""
        return self in (Outcome.FAILED, Outcome.NOT_REACHED)


@dataclass(frozen=True, slots=True)
class Call:
    """
    One call and how it ended.

    Args:
        at: when it was sent, aware UTC.
        step: number of the step it belongs to.
        caller: who called.
        method: HTTP method.
        url: of the request.
        status: of the answer; ``None`` when there was none.
        ms: milliseconds until the answer, or the failure.
        says: what the answer's body said, or the error.
    """

    at: datetime
    step: int
    caller: str
    method: str
    url: str
    status: int | None
    ms: float
    says: Any = None

    @property
    def answered(self) -> bool:
        """Whether it came back with a success."""
        return self.status is not None and self.status < 400


@dataclass(frozen=True, slots=True)
class Step:
    """
    One step and what it showed.

    Args:
        number: from 1.
        title: what it is about.
        outcome: how it ended.
        says: one line for people.
        started: when, aware UTC.
        seconds: how long it took.
        figures: what was measured.
    """

    number: int
    title: str
    outcome: Outcome
    says: str
    started: datetime
    seconds: float
    figures: Mapping[str, Any] = field(default_factory=dict)


class Evidence:
    """
    Everything one run of the demo saw.

    Attributes:
        steps: those that ended, in order.
        facts: what else is worth keeping.
        complete: whether every step had its turn; an interrupted demo has not held.
    """

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.steps: list[Step] = []
        self.facts: dict[str, Any] = {}
        self.complete = False
        self._calls: list[Call] = []
        self._certificates: list[dict[str, Any]] = []
        self._processes: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def call(self, call: Call) -> None:
        """Note a call."""
        with self._lock:
            self._calls.append(call)

    def process(self, name: str, pid: int, port: int, command: str) -> None:
        """Note a process that was started."""
        started = datetime.now(UTC)
        with self._lock:
            self._processes.append(
                {"name": name, "pid": pid, "port": port, "command": command, "started": started}
            )

    def certificate(self, service: str, serial: str, issuer: str) -> None:
        """Note a certificate that a service showed; the first sight of each counts."""
        found = {"service": service, "serial_number": serial, "issuer": issuer}
        with self._lock:
            if not any(found.items() <= known.items() for known in self._certificates):
                self._certificates.append(found | {"seen": datetime.now(UTC)})

    @property
    def held(self) -> bool:
        """Whether the story was told to its end, and no step failed."""
        return self.complete and not any(step.outcome.counts_as_failed for step in self.steps)

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON-able data; moments become ISO 8601 text."""
        with self._lock:
            data = {
                "held": self.held,
                "started": self.started,
                "ended": datetime.now(UTC),
                **self.facts,
                "steps": [asdict(step) for step in self.steps],
                "processes": list(self._processes),
                "certificates": list(self._certificates),
                "calls": [asdict(call) for call in self._calls],
            }
        return {key: _plain(value) for key, value in data.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
