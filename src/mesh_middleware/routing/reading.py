"""
The agent's discovery chain, read; and the fields its nodes share with config entries.

Owns the reading of ``/v1/discovery-chain/:service`` into the values of `chain`. A shape that breaks
the API is refused whole, so that the last good chain stays; a route whose match cannot be read in
full never matches, since it would catch what it was not meant for.

Source: Consul HTTP API, "Discovery Chain"; config entries (reference 7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..exceptions import AgentAnswerError
from .chain import (
    CONNECT_TIMEOUT,
    POLICIES,
    Balancing,
    Chain,
    Condition,
    ConditionTest,
    HashField,
    HashPolicy,
    HeaderChanges,
    Match,
    PathTest,
    Place,
    Resolution,
    Retries,
    Route,
    Split,
    Target,
    check_chain,
)
from .fields import unhonoured
from .shapes import duration, flag, part, table, text


def parse_chain(body: object, *, own_datacenter: str | None = None) -> Chain:
    """
    Read an answer of ``/v1/discovery-chain/:service``.

    Args:
        body: the answer, parsed as JSON.
        own_datacenter: targets there are looked up without naming it.

    Raises:
        AgentAnswerError: the shape is another one, or the nodes are no such graph.
    """
    chain = part(table(body, "the answer"), "Chain", {})
    reader = _Reader(own_datacenter)
    nodes = {name: table(node, name) for name, node in part(chain, "Nodes", {}).items()}
    for name, node in nodes.items():
        reader.read_node(name, node)
    targets = {
        name: reader.read_target(name, table(target, name))
        for name, target in part(chain, "Targets", {}).items()
    }
    found = Chain(
        text(chain, "ServiceName"),
        text(chain, "StartNode"),
        reader.routers,
        reader.splitters,
        reader.resolvers,
        targets,
        text(chain, "Protocol") or "tcp",
        tuple(dict.fromkeys(reader.unhonoured)),
    )
    check_chain(found)
    return found


class _Reader:
    """Reads the nodes of one answer, and gathers what has no effect."""

    def __init__(self, own_datacenter: str | None) -> None:
        self.own = own_datacenter
        self.routers: dict[str, tuple[Route, ...]] = {}
        self.splitters: dict[str, tuple[Split, ...]] = {}
        self.resolvers: dict[str, Resolution] = {}
        self.unhonoured: list[str] = []

    def read_node(self, name: str, node: Mapping[str, Any]) -> None:
        kind = text(node, "Type")
        if kind == "router":
            self.routers[name] = tuple(self._route(route) for route in part(node, "Routes", []))
        elif kind == "splitter":
            self.splitters[name] = tuple(self._split(split) for split in part(node, "Splits", []))
        elif kind == "resolver":
            resolver = {**part(node, "Resolver", {})}
            resolver["LoadBalancer"] = node.get("LoadBalancer")
            self.unhonoured += unhonoured("chain-resolver", resolver)
            self.resolvers[name] = read_resolution(resolver)
        else:
            raise AgentAnswerError(f"node {name!r} is a {kind!r}, which is unknown")

    def _route(self, value: object) -> Route:
        route = table(value, "a route")
        definition = part(route, "Definition", {})
        self.unhonoured += unhonoured("service-router", {"Routes": [definition]})
        return read_route(definition, text(route, "NextNode"))

    def _split(self, value: object) -> Split:
        split = table(value, "a split")
        definition = {**part(split, "Definition", {}), "Weight": split.get("Weight")}
        self.unhonoured += unhonoured("service-splitter", {"Splits": [definition]})
        return read_split(definition, text(split, "NextNode"))

    def read_target(self, name: str, value: Mapping[str, Any]) -> Target:
        self.unhonoured += unhonoured("chain-target", value)
        subset = part(value, "Subset", {})
        datacenter = text(value, "Datacenter")
        return Target(
            name,
            Place(text(value, "Service"), None if datacenter == self.own else datacenter or None),
            text(value, "ServiceSubset"),
            text(subset, "Filter"),
            flag(subset, "OnlyPassing"),
            text(value, "SNI"),
            target_flaw(value),
        )


def target_flaw(value: Mapping[str, Any]) -> str:
    """Tell why the target of these fields cannot be called; empty when it can."""
    if text(value, "Peer"):
        return f"in the peered cluster {text(value, 'Peer')!r}, which is not offered"
    for scope in ("Namespace", "Partition"):
        if text(value, scope) not in ("", "default"):
            return f"in {scope.lower()} {text(value, scope)!r}, which is not offered"
    if flag(value, "External"):
        return "external to the mesh, which is not offered"
    return ""


# -- fields that chain answers and config entries share -------------------------------------------


def read_route(definition: Mapping[str, Any], following: str) -> Route:
    """Read ``Match`` and ``Destination`` of one route."""
    match = read_match(part(part(definition, "Match", {}), "HTTP", {}))
    to = part(definition, "Destination", {})
    return Route(
        match,
        following,
        text(to, "PrefixRewrite") or None,
        limit(duration(to.get("RequestTimeout"))),
        limit(duration(to.get("IdleTimeout"))),
        read_retries(to, match.methods),
        read_header_changes(part(to, "RequestHeaders", {})),
        read_header_changes(part(to, "ResponseHeaders", {})),
    )


def read_match(http: Mapping[str, Any]) -> Match:
    """Read ``Match.HTTP``; what is not understood makes a match that never holds."""
    unknown = [*unhonoured("match", http)]
    tests: list[tuple[PathTest, str]] = [
        ("exact", text(http, "PathExact")),
        ("prefix", text(http, "PathPrefix")),
        ("regex", text(http, "PathRegex")),
    ]
    given = [(test, path) for test, path in tests if path]
    test, path = given[0] if given else ("any", "")
    try:
        headers = tuple(read_condition(table(one, "Header")) for one in part(http, "Header", []))
        query = tuple(
            read_condition(table(one, "QueryParam")) for one in part(http, "QueryParam", [])
        )
    except AgentAnswerError as error:
        headers = query = ()
        unknown.append(str(error))
    if len(given) > 1:
        unknown.append("more than one test of the path")
    return Match(
        test,
        path,
        flag(http, "CaseInsensitive"),
        headers,
        query,
        tuple(str(method).upper() for method in part(http, "Methods", [])),
        f"not understood: {', '.join(unknown)}" if unknown else "",
    )


def read_condition(value: Mapping[str, Any]) -> Condition:
    """
    Read a demand on a header or query parameter.

    Raises:
        AgentAnswerError: there is no test in it.
    """
    name, invert = text(value, "Name"), flag(value, "Invert")
    ignore_case = flag(value, "IgnoreCase")
    tests: tuple[ConditionTest, ...] = ("exact", "prefix", "suffix", "contains", "regex")
    for test in tests:
        wanted = text(value, test.capitalize())
        if wanted:
            return Condition(name, test, wanted, invert, ignore_case)
    if flag(value, "Present") and name:
        return Condition(name, "present", "", invert)
    raise AgentAnswerError(f"no test in the demand on {name!r}")


_ALWAYS = frozenset({"connect-failure"})


def read_retries(to: Mapping[str, Any], methods: tuple[str, ...] = ()) -> Retries | None:
    """
    Read the retry fields of a destination.

    Args:
        to: the destination.
        methods: those the route names: whoever names POST there and asks for retries means it.

    Returns:
        ``None`` when no field is set. Source: reference 7, "a policy exists if any field is set".
    """
    count = to.get("NumRetries") or 0
    statuses, named = part(to, "RetryOnStatusCodes", []), part(to, "RetryOn", [])
    on = {str(one) for one in named}
    if flag(to, "RetryOnConnectFailure"):
        on |= _ALWAYS
    if not (count or statuses or on):
        return None
    codes = frozenset(code for code in statuses if type(code) is int)
    return Retries(int(count) or 1, frozenset(on), codes, frozenset(methods))


def read_header_changes(value: Mapping[str, Any]) -> HeaderChanges:
    """Read ``Add``, ``Set`` and ``Remove``; headers that frame a message are left alone."""

    def pairs(key: str) -> tuple[tuple[str, str], ...]:
        found = part(value, key, {}).items()
        return tuple((name, str(to)) for name, to in found if may_change(name))

    removed = tuple(str(name) for name in part(value, "Remove", []) if may_change(str(name)))
    return HeaderChanges(pairs("Set"), pairs("Add"), removed)


_FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"}
)


def may_change(name: str) -> bool:
    """Whether a header may be changed: not those that say who is asked and where a message ends."""
    return bool(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)) and name.lower() not in _FRAMING


def read_split(definition: Mapping[str, Any], following: str) -> Split:
    """Read one split."""
    weight = definition.get("Weight") or 0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 100:
        raise AgentAnswerError(f"the weight of a split is {weight!r}, not 0 to 100")
    return Split(
        float(weight),
        following,
        read_header_changes(part(definition, "RequestHeaders", {})),
        read_header_changes(part(definition, "ResponseHeaders", {})),
    )


def read_resolution(value: Mapping[str, Any]) -> Resolution:
    """Read the ``Resolver`` of a node, its ``LoadBalancer`` put beside."""
    return Resolution(
        text(value, "Target"),
        tuple(str(one) for one in part(part(value, "Failover", {}), "Targets", [])),
        limit(duration(value.get("ConnectTimeout"))) or CONNECT_TIMEOUT,
        limit(duration(value.get("RequestTimeout"))),
        read_balancing(part(value, "LoadBalancer", {})),
    )


def read_balancing(value: Mapping[str, Any]) -> Balancing:
    """Read a ``LoadBalancer``; an unknown policy means ours."""
    named = text(value, "Policy")
    policy = next((one for one in POLICIES if one == named), POLICIES[0])
    ring = part(value, "RingHashConfig", {})
    least = part(value, "LeastRequestConfig", {})
    fallback = Balancing()
    return Balancing(
        policy,
        int(least.get("ChoiceCount") or fallback.choices),
        (
            int(ring.get("MinimumRingSize") or fallback.ring[0]),
            int(ring.get("MaximumRingSize") or fallback.ring[1]),
        ),
        tuple(_hash_policies(part(value, "HashPolicies", []))),
    )


def _hash_policies(values: list[Any]) -> Iterator[HashPolicy]:
    fields: tuple[HashField, ...] = ("header", "cookie", "query_parameter")
    for value in values:
        policy = table(value, "a hash policy")
        if flag(policy, "SourceIP"):
            yield HashPolicy("source_ip", "", flag(policy, "Terminal"))
            continue
        for one in fields:
            if text(policy, "Field") == one:
                yield HashPolicy(one, text(policy, "FieldValue"), flag(policy, "Terminal"))


def limit(seconds: float) -> float | None:
    """Read 0 (not set) and less (switched off) as no limit."""
    return seconds if seconds > 0 else None
