"""
What a line says: the hooks of mesh_middleware, made into JSON.

Owns the fields. Values that may hold secrets (queries, headers) stay out; keys never come here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mesh_middleware.plugins import hookimpl

from .sink import Sink

if TYPE_CHECKING:
    from mesh_middleware.identity import SpiffeId
    from mesh_middleware.intentions import Decision, RequestFacts
    from mesh_middleware.routing.report import AttemptReport
    from mesh_middleware.snapshot import Snapshot


class DecisionLog:
    """
    The plugin: each hook writes one line.

    Args:
        sink: takes the lines.
        now: this moment, aware UTC.
    """

    def __init__(self, sink: Sink, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._sink = sink
        self._now = now
        self._service = ""

    def _write(self, event: str, **fields: Any) -> None:
        line = {
            "time": self._now().isoformat(),
            "event": event,
            "service": self._service,
            "pid": os.getpid(),
        }
        self._sink.write(json.dumps(line | fields, separators=(", ", ": ")))

    @hookimpl
    def mesh_startup(self, service: str, agent: str) -> None:
        """Write that the mesh starts in this process."""
        self._service = service
        self._write("startup", agent=agent)

    @hookimpl
    def mesh_registration(self, service_id: str, registered: bool) -> None:
        """Write that the instance was registered, or taken away."""
        self._write("registration", service_id=service_id, registered=registered)

    @hookimpl
    def mesh_resolve(self, upstream: str, datacenter: str | None) -> Sequence[Any] | None:
        """Write that an upstream is looked up; have no opinion where it lives."""
        self._write("resolve", upstream=upstream, datacenter=datacenter)
        return None

    @hookimpl
    def mesh_snapshot(self, new: Snapshot) -> None:
        """Write what the process believes from now on."""
        leaf, roots, intentions = new.leaf, new.roots, new.intentions
        self._write(
            "snapshot",
            ready=new.ready,
            serial_number=leaf.serial_number if leaf else None,
            not_after=leaf.not_after.isoformat() if leaf else None,
            roots=len(roots.certificates) if roots else 0,
            intentions=None if intentions is None else len(intentions),
        )

    @hookimpl
    def mesh_decision(
        self, decision: Decision, source: SpiffeId | None, facts: RequestFacts
    ) -> None:
        """Write the verdict on a request."""
        self._write(
            "decision",
            source=source.uri if source else None,
            allowed=decision.allowed,
            reason=str(decision.reason),
            status=decision.status,
            intention=str(decision.intention) if decision.intention else None,
            permission=decision.permission,
            method=_text(facts.method),
            path=_text(facts.path),
        )

    @hookimpl
    def mesh_attempt(self, attempt: AttemptReport) -> None:
        """Write what became of an attempt to call an upstream."""
        self._write(
            "attempt",
            upstream=attempt.upstream,
            method=attempt.method,
            address=attempt.endpoint.address,
            expected=attempt.endpoint.expected.uri,
            number=attempt.number,
            outcome=attempt.kind,
            status=attempt.status or None,
            denied=attempt.denied,
            seconds=round(attempt.seconds, 6),
            final=attempt.final,
            to=attempt.to or None,
            error=attempt.error or None,
        )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
