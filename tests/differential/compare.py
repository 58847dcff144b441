"""
Asks the real Envoy and our engine the same, and tells where they differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from mesh_middleware.cli.batch import Batch

from . import envoy, rbac

Json = dict[str, Any]

_POLICY = ("intentions", "default_allow", "protocol", "trust_domain")


def ask_envoy(cases: Sequence[Json], normalization: Json | None = None) -> list[bool]:
    """
    Ask one Envoy about all cases; each policy gets a filter chain.

    Returns:
        Whether each request would reach the service: its answer is the service's own.
    """
    chains: dict[str, list[Json]] = {}
    names = []
    for case in cases:
        key = json.dumps([case[part] for part in _POLICY])
        names.append(key)
        if key not in chains:
            chains[key] = _filters(case, normalization or {})
    numbers = {key: f"p{number}" for number, key in enumerate(chains)}
    with envoy.running({numbers[key]: filters for key, filters in chains.items()}) as running:
        asker = _Asker(running)
        return [asker.ask(numbers[key], case) for key, case in zip(names, cases, strict=True)]


def _filters(case: Json, normalization: Json) -> list[Json]:
    rules = (case["intentions"], case["default_allow"], case["trust_domain"])
    if case["protocol"] == "tcp":
        return [rbac.network_filter(*rules), envoy.echo()]
    return [envoy.connection_manager([rbac.http_filter(*rules)], normalization)]


class _Asker:
    """Keeps one connection for each policy and source."""

    def __init__(self, running: envoy.Envoy) -> None:
        self._envoy = running
        self._connections: dict[tuple[str, str], envoy.Connection] = {}

    def ask(self, policy: str, case: Json) -> bool:
        uri = case["source_uri"]
        if case["protocol"] == "tcp":
            return self._envoy.connect(policy, uri).echoes()
        connection = self._connections.get((policy, uri))
        if connection is None:
            connection = self._connections[policy, uri] = self._envoy.connect(policy, uri)
        return connection.ask(raw(case["request"])).status == 200


def raw(request: Json) -> bytes:
    """Write a request as it stands on the wire."""
    lines = [f"{request['method']} {request['target']} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request["headers"]]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def ask_us(cases: Iterable[Json], reading: str, **options: Any) -> list[Json]:
    """Ask our engine, through the batch that users have."""
    batch = Batch(reading, clock=lambda: 0.0, **options)  # type: ignore[arg-type]
    return [batch.answer(json.dumps(case)) for case in cases]


def differences(
    cases: Sequence[Json], verdicts: Sequence[bool], answers: Sequence[Json]
) -> list[str]:
    """Describe each case that Envoy and the ``envoy`` reading judge differently."""
    return [
        f"envoy {'allows' if verdict else 'denies'}, we say {json.dumps(answer)}: {describe(case)}"
        for case, verdict, answer in zip(cases, verdicts, answers, strict=True)
        if verdict is not answer["allowed"]
    ]


def looser(cases: Sequence[Json], verdicts: Sequence[bool], answers: Sequence[Json]) -> list[str]:
    """Describe each case that we allow and Envoy does not, or deny alone without saying why."""
    found = []
    for case, verdict, answer in zip(cases, verdicts, answers, strict=True):
        if answer["allowed"] and not verdict:
            found.append(f"looser than envoy: {json.dumps(answer)}: {describe(case)}")
        if verdict and not answer["allowed"] and not answer["readings"]:
            found.append(f"stricter, unexplained: {json.dumps(answer)}: {describe(case)}")
    return found


def describe(case: Json) -> str:
    """Write a case on one line, ready for ``mesh explain --batch``."""
    return json.dumps(case)
