"""
The discovery chain of an upstream: where a call may go, as Consul compiles it.

Owns the values: `Chain` and its nodes. What each field does is written in `matching`, `balance`,
`retries` and `trip`; `reading` takes the values from an answer of the agent, `entries` from config
entries. Nothing here is looked up or called.

Theory. A chain is a small graph: routers send to splitters and resolvers, splitters to resolvers,
a resolver names one target, and others for failover. Node names are opaque. A chain that is not
such a graph is refused whole, so that the last good one stays; a route whose match cannot be read
in full never matches, since it would catch what it was not meant for.

Source: Consul HTTP API, "Discovery Chain" (reference 7).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..exceptions import AgentAnswerError

ConditionTest = Literal["present", "exact", "prefix", "suffix", "contains", "regex"]
PathTest = Literal["any", "exact", "prefix", "regex"]
Policy = Literal["least_request", "round_robin", "random", "ring_hash", "maglev"]
HashField = Literal["header", "cookie", "query_parameter", "source_ip"]

CONNECT_TIMEOUT = 5.0
"""Seconds. Source: Consul's default for resolvers."""
POLICIES: tuple[Policy, ...] = ("least_request", "round_robin", "random", "ring_hash", "maglev")


@dataclass(frozen=True, slots=True)
class Condition:
    """
    A demand on a header or query parameter.

    Args:
        name: of the header (any case) or parameter (exact).
        test: how *value* is compared; ``present`` needs none.
        value: to compare with.
        invert: whether the test has to fail.
        ignore_case: compare in lower case (ASCII).
    """

    name: str
    test: ConditionTest
    value: str = ""
    invert: bool = False
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class Match:
    """
    What a request must be to take a route; every part has to hold.

    Args:
        path_test: how *path* is compared with the raw path, without query.
        path: to compare with.
        ignore_case: for exact paths and prefixes.
        headers: demands on headers.
        query: demands on query parameters.
        methods: one of these; empty for any.
        flaw: why the match can never hold; empty when it can.
    """

    path_test: PathTest = "any"
    path: str = ""
    ignore_case: bool = False
    headers: tuple[Condition, ...] = ()
    query: tuple[Condition, ...] = ()
    methods: tuple[str, ...] = ()
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class HeaderChanges:
    """
    What to do to headers: remove, then set (replacing), then add.

    Args:
        set: name and value.
        add: name and value.
        remove: names.
    """

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.set or self.add or self.remove)


@dataclass(frozen=True, slots=True)
class Retries:
    """
    When a call is tried again.

    Args:
        count: tries after the first.
        on: Envoy's names: ``connect-failure``, ``reset``, ``5xx``, ...
        statuses: further statuses.
        methods: methods that may be repeated beside the idempotent ones (RFC 9110, 9.2.2).
        same: whether the same instance may be tried again when there is no other.
    """

    count: int = 0
    on: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    methods: frozenset[str] = frozenset()
    same: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """
    One route of a router.

    Args:
        match: which requests take it.
        next: node they go to.
        rewrite: takes the place of the path's matched part; ``None`` leaves it.
        timeout: seconds for the whole call; ``None`` for no limit of the route's own.
        idle_timeout: seconds without a byte; ``None`` for no limit of the route's own.
        retries: ``None`` leaves it to the caller.
        request_headers: changed on the way there.
        response_headers: changed on the way back.
    """

    match: Match
    next: str
    rewrite: str | None = None
    timeout: float | None = None
    idle_timeout: float | None = None
    retries: Retries | None = None
    request_headers: HeaderChanges = HeaderChanges()
    response_headers: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class Split:
    """
    One share of a splitter.

    Args:
        weight: share, relative to the others'.
        next: node it goes to.
        request_headers: changed on the way there.
        response_headers: changed on the way back.
    """

    weight: float
    next: str
    request_headers: HeaderChanges = HeaderChanges()
    response_headers: HeaderChanges = HeaderChanges()


@dataclass(frozen=True, slots=True)
class HashPolicy:
    """
    What a call's key is made of.

    Args:
        field: which part of the call.
        name: of the header, cookie or parameter.
        terminal: whether later policies are left out once this one gave something.
    """

    field: HashField
    name: str = ""
    terminal: bool = False


@dataclass(frozen=True, slots=True)
class Balancing:
    """
    How an instance is chosen.

    Args:
        policy: the rule.
        choices: instances compared by ``least_request``.
        ring: least and greatest number of points on the ring of ``ring_hash``.
        hash_policies: make the key for ``ring_hash`` and ``maglev``.
    """

    policy: Policy = "least_request"
    choices: int = 2
    ring: tuple[int, int] = (1024, 8 << 20)
    hash_policies: tuple[HashPolicy, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolution:
    """
    What a resolver says.

    Args:
        target: ID of the target.
        failover: IDs of those that stand in, in order, when no instance of it is healthy.
        connect_timeout: seconds.
        request_timeout: seconds for the whole call when the chain starts here; ``None`` for none.
        balancing: how an instance is chosen.
    """

    target: str
    failover: tuple[str, ...] = ()
    connect_timeout: float = CONNECT_TIMEOUT
    request_timeout: float | None = None
    balancing: Balancing = Balancing()


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """
    What one blocking query tells the instances of.

    Args:
        service: its name.
        datacenter: where; ``None`` means our own, whatever its name is.
    """

    service: str
    datacenter: str | None = None

    def __str__(self) -> str:
        return self.service if self.datacenter is None else f"{self.service}.{self.datacenter}"


@dataclass(frozen=True, slots=True)
class Target:
    """
    Instances that a resolver may send to.

    Args:
        id: opaque name in the chain.
        place: where its instances are told.
        subset: name of the subset; empty for all.
        filter: go-bexpr expression an instance of the subset fulfils; empty for all.
        only_passing: leave out instances with a warning.
        sni: server name that gateways know it by.
        flaw: why it cannot be called; empty when it can.
    """

    id: str
    place: Place
    subset: str = ""
    filter: str = ""
    only_passing: bool = False
    sni: str = ""
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """
    The whole graph.

    Args:
        service: upstream it is for.
        start: node every call begins at.
        routers: by node name; the last route catches all.
        splitters: by node name.
        resolvers: by node name.
        targets: by ID.
        protocol: ``tcp``, ``http``, ``http2`` or ``grpc``.
        unhonoured: fields that were set and have no effect here, in words.
    """

    service: str
    start: str
    routers: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    splitters: Mapping[str, tuple[Split, ...]] = field(default_factory=dict)
    resolvers: Mapping[str, Resolution] = field(default_factory=dict)
    targets: Mapping[str, Target] = field(default_factory=dict)
    protocol: str = "http"
    unhonoured: tuple[str, ...] = ()

    def places(self) -> frozenset[Place]:
        """Everything whose instances have to be known to call this upstream."""
        return frozenset(target.place for target in self.targets.values() if not target.flaw)


def default_chain(service: str, datacenter: str | None = None) -> Chain:
    """Make the chain of an upstream that nothing was written about: all of its instances."""
    target = Target(service, Place(service, datacenter))
    return Chain(
        service, service, resolvers={service: Resolution(service)}, targets={service: target}
    )


def check_chain(chain: Chain) -> None:
    """
    See that every walk from the start ends at a target.

    Raises:
        AgentAnswerError: a node or target is missing, there is a cycle, or a router has no route.
    """
    _walk(chain, chain.start, ())


def _walk(chain: Chain, node: str, path: tuple[str, ...]) -> None:
    if node in path or len(path) > 32:
        raise AgentAnswerError(f"chain of {chain.service!r}: {node!r} leads back to itself")
    resolver = chain.resolvers.get(node)
    if resolver is not None:
        missing = [one for one in (resolver.target, *resolver.failover) if one not in chain.targets]
        if missing:
            raise AgentAnswerError(f"chain of {chain.service!r}: no target {missing[0]!r}")
        return
    steps = chain.routers.get(node) or chain.splitters.get(node)
    if not steps:
        raise AgentAnswerError(f"chain of {chain.service!r}: no node {node!r}, or an empty one")
    for following in {step.next for step in steps}:
        _walk(chain, following, (*path, node))
