"""
Asks the real Envoy and our engine the same, and tells where they differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote

from mesh_middleware.cli.batch import Batch
from mesh_middleware.consul.intentions import parse_intentions
from mesh_middleware.intentions import AsgiFacts, Normalization, Policy, compile_policy
from mesh_middleware.intentions.wire import unsound

from . import envoy, rbac, tokens

Json = dict[str, Any]

_POLICY = ("intentions", "default_allow", "protocol", "trust_domain", "normalization")
_SLASHES = {
    "REJECT_REQUEST": "reject",
    "UNESCAPE_AND_REDIRECT": "redirect",
    "UNESCAPE_AND_FORWARD": "unescape",
}
_UNDERSCORES = {"REJECT_REQUEST": "reject", "DROP_HEADER": "drop"}


def ask_envoy(cases: Sequence[Json], vault: tokens.Vault) -> list[bool]:
    """
    Ask one Envoy about all cases; each policy gets a filter chain.

    Args:
        cases: filled by *vault*.
        vault: whose keys Envoy gets.

    Returns:
        Whether each request would reach the service: its answer is the service's own.
    """
    chains: dict[str, list[Json]] = {}
    names = []
    for case in cases:
        key = key_of(case)
        names.append(key)
        if key not in chains:
            chains[key] = filters(case, vault)
    numbers = {key: f"p{number}" for number, key in enumerate(chains)}
    with envoy.running({numbers[key]: chain for key, chain in chains.items()}) as running:
        asker = _Asker(running)
        try:
            return [asker.ask(numbers[key], case) for key, case in zip(names, cases, strict=True)]
        finally:
            asker.close()


def filters(case: Json, vault: tokens.Vault) -> list[Json]:
    """Compile a case's policy to the network filters of a listener."""
    rules = (case["intentions"], case["default_allow"], case["trust_domain"])
    if case["protocol"] == "tcp":
        return [rbac.network_filter(*rules), envoy.echo()]
    chain = [rbac.http_filter(*rules, tokens.ISSUERS)]
    if verifier := vault.http_filter(case["intentions"]):
        chain.insert(0, verifier)
    return [envoy.connection_manager(chain, case.get("normalization") or {})]


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

    def close(self) -> None:
        """End all connections."""
        for connection in self._connections.values():
            connection.close()


_LENGTH = re.compile(rb"\r\ncontent-length:[ +]*([0-9]{1,3})\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:.*chunked\r\n", re.IGNORECASE)


def raw(request: Json) -> bytes:
    """Write a request as it stands on the wire, with the body it announces."""
    lines = [f"{request['method']} {request['target']} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in request["headers"]]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    if _CHUNKED.search(head):
        return head + b"0\r\n\r\n"
    length = _LENGTH.search(head)
    return head + b"x" * int(length[1]) if length else head


def ask_us(cases: Iterable[Json], reading: str, vault: tokens.Vault, now: float) -> list[Json]:
    """Ask our engine, through the batch that users have."""
    batches: dict[Normalization, Batch] = {}
    answers = []
    for case in cases:
        options = normalization(case.get("normalization") or {})
        if options not in batches:
            batches[options] = Batch(
                reading,  # type: ignore[arg-type]
                providers=vault.providers(),
                normalization=options,
                clock=lambda: now,
            )
        answers.append(batches[options].answer(json.dumps(case)))
    return answers


def ask_asgi(cases: Iterable[Json], vault: tokens.Vault, now: float) -> list[bool]:
    """
    Ask our engine in strict as the door of ASGI does, on requests as Hypercorn hands them over.

    Heads that Envoy's codec refuses whatever the policy says are the server's affair: not allowed.
    """
    policies: dict[str, Policy] = {}
    return [_ask_asgi(case, vault, now, policies) for case in cases]


def _ask_asgi(case: Json, vault: tokens.Vault, now: float, known: dict[str, Policy]) -> bool:
    request, options = case["request"], normalization(case.get("normalization") or {})
    method, target = request["method"].encode("latin-1"), request["target"].encode("latin-1")
    lines = [(a.encode("latin-1"), b.encode("latin-1")) for a, b in request["headers"]]
    if unsound(method, target, lines, options):
        return False
    path, _, query = target.partition(b"?")
    facts = AsgiFacts(
        {
            "method": request["method"],
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "headers": [(name.lower(), value.strip(b" \t")) for name, value in lines],
        }
    )
    key = key_of(case)
    if key not in known:
        known[key] = policy_of(case, vault, now)
    return facts.sound and known[key].decide_uri(case["source_uri"], facts).allowed


def key_of(case: Json) -> str:
    """What of a case makes its policy."""
    return json.dumps([case.get(part) for part in _POLICY])


def policy_of(case: Json, vault: tokens.Vault, now: float) -> Policy:
    """Compile a case's policy, as the mesh does."""
    return compile_policy(
        parse_intentions(case["intentions"]),
        service="web",
        trust_domain=case["trust_domain"],
        default_allow=case["default_allow"],
        protocol=case["protocol"],
        jwt_providers=vault.providers(),
        normalization=normalization(case.get("normalization") or {}),
        clock=lambda: now,
    )


def normalization(options: Json) -> Normalization:
    """Read a mesh entry's ``RequestNormalization``."""
    slashes = options.get("PathWithEscapedSlashesAction", "")
    underscores = options.get("HeadersWithUnderscoresAction", "")
    return Normalization(
        paths=not options.get("InsecureDisablePathNormalization", False),
        merge_slashes=options.get("MergeSlashes", False),
        escaped_slashes=_SLASHES.get(slashes, "keep"),  # type: ignore[arg-type]
        underscores=_UNDERSCORES.get(underscores, "allow"),  # type: ignore[arg-type]
    )


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
