"""Short forms for intentions, policies and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mesh_middleware.cli.batch import judge
from mesh_middleware.consul.intentions import parse_intentions
from mesh_middleware.identity import ServiceId
from mesh_middleware.intentions import Decision, HttpFacts, Normalization, Policy, compile_policy
from tests.differential.written import header, permission

__all__ = [
    "TD",
    "Headers",
    "Json",
    "ask",
    "facts",
    "header",
    "intention",
    "permission",
    "policy",
    "source",
]

Json = dict[str, Any]
TD = "1234.consul"
Headers = Sequence[tuple[bytes, bytes]]


def source(name: str = "api", namespace: str = "default", **fields: str) -> ServiceId:
    """A service of our trust domain."""
    return ServiceId(TD, namespace, fields.pop("datacenter", "dc1"), name, **fields)


def intention(name: str = "api", destination: str = "web", **fields: Any) -> Json:
    """An intention in the flattened form; *allow* unless *fields* say otherwise."""
    item: Json = {"SourceName": name, "DestinationName": destination, **fields}
    if "Permissions" not in item:
        item.setdefault("Action", "allow")
    return item


def policy(*items: Json, default_allow: bool | None = False, **options: Any) -> Policy:
    """A policy of flattened intentions."""
    return compile_policy(
        parse_intentions(list(items)),
        service="web",
        trust_domain=TD,
        default_allow=default_allow,
        **options,
    )


def facts(target: str = "/", headers: Headers = (), method: str = "GET") -> HttpFacts:
    """A request as it stands on the wire, with a Host unless one is given."""
    pairs = list(headers)
    if not any(name.lower() == b"host" for name, _ in pairs):
        pairs.insert(0, (b"Host", b"web"))
    return HttpFacts(method.encode("latin-1"), target.encode("latin-1"), pairs)


def ask(
    judged_by: Policy,
    target: str = "/",
    headers: Headers = (),
    *,
    method: str = "GET",
    caller: ServiceId | None = None,
) -> Decision:
    """Judge a request as a whole: its head, then the intentions."""
    uri = (caller or source()).uri
    return judge(judged_by, uri, facts(target, headers, method), Normalization())
