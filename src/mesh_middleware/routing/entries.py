"""
The discovery chain built here, from config entries, and what the caller's own entry asks for.

Owns the compiling of service-router, service-splitter and service-resolver into the values of
`chain`, for agents that do not compile them and for tables that are written by hand; and the
reading of ``UpstreamConfig`` (limits, passive health checks, timeouts) into `course.Manners`.

Theory. As Consul compiles: a router sends to splitters, a splitter to resolvers, or to another
service's splitter, never to its own again; a resolver redirects, then takes its default subset,
then stands. Redirects that lead in a circle, subsets that nobody defined, and weights that make no
sense are refused, as Consul refuses them when they are written.

Source: Consul agent/consul/discoverychain/compile.go as documented (reference 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..exceptions import AgentAnswerError
from .breaking import Breaking
from .calls import Limits
from .chain import Chain, Place, Resolution, Route, Split, Target, check_chain
from .course import Manners
from .fields import unhonoured
from .reading import limit, read_balancing, read_route, read_split, target_flaw
from .shapes import duration, flag, part, table, text

Entry = Mapping[str, Any]
KINDS = ("service-router", "service-splitter", "service-resolver")
"""Kinds a chain is made of; an upstream without one of them has the default chain."""


@dataclass(frozen=True, slots=True)
class _Aim:
    """A target that is not resolved yet."""

    service: str
    subset: str = ""
    datacenter: str | None = None
    flaw: str = ""

    @property
    def id(self) -> str:
        return ".".join(filter(None, (self.subset, self.service, self.datacenter, self.flaw)))

    def rewrite(self, to: Entry) -> _Aim:
        """Follow a redirect or failover; another service has other subsets."""
        service = text(to, "Service") or self.service
        kept = self.subset if service == self.service else ""
        return _Aim(
            service,
            text(to, "ServiceSubset") or kept,
            text(to, "Datacenter") or self.datacenter,
            target_flaw(to),
        )


def build_chain(service: str, entries: Iterable[Entry], datacenter: str | None = None) -> Chain:
    """
    Compile the chain of an upstream.

    Args:
        service: its name.
        entries: config entries of any kinds; other services' too, since a chain may lead there.
        datacenter: where its instances are; ``None`` means our own.

    Raises:
        AgentAnswerError: the entries cannot be read, or make no chain.
    """
    return _Compiler(entries).compile(service, datacenter)


class _Compiler:
    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = {
            (text(entry, "Kind"), text(entry, "Name").lower()): entry for entry in entries
        }
        self._routers: dict[str, tuple[Route, ...]] = {}
        self._splitters: dict[str, tuple[Split, ...]] = {}
        self._resolvers: dict[str, Resolution] = {}
        self._targets: dict[str, Target] = {}
        self._unhonoured: list[str] = []

    def compile(self, service: str, datacenter: str | None) -> Chain:
        aim = _Aim(service, datacenter=datacenter)
        router = self._entry("service-router", service)
        start = self._splitter_or_resolver(aim) if router is None else self._router(router, aim)
        chain = Chain(
            service,
            start,
            self._routers,
            self._splitters,
            self._resolvers,
            self._targets,
            unhonoured=tuple(dict.fromkeys(self._unhonoured)),
        )
        check_chain(chain)
        return chain

    def _entry(self, kind: str, name: str) -> Entry | None:
        entry = self._entries.get((kind, name.lower()))
        if entry is not None:
            self._unhonoured += unhonoured(kind, entry)
        return entry

    def _router(self, router: Entry, aim: _Aim) -> str:
        routes = []
        for value in part(router, "Routes", []):
            definition = table(value, "a route")
            to = aim.rewrite(part(definition, "Destination", {}))
            following = self._resolver(to) if to.subset else self._splitter_or_resolver(to)
            routes.append(read_route(definition, following))
        routes.append(read_route({}, self._splitter_or_resolver(aim)))
        name = f"router:{aim.id}"
        self._routers[name] = tuple(routes)
        return name

    def _splitter_or_resolver(self, aim: _Aim, above: tuple[str, ...] = ()) -> str:
        entry = None if aim.service in above else self._entry("service-splitter", aim.service)
        if entry is None:
            return self._resolver(aim)
        name = f"splitter:{aim.id}"
        if name not in self._splitters:
            self._splitters[name] = self._splits(entry, aim, (*above, aim.service))
        return name

    def _splits(self, entry: Entry, aim: _Aim, above: tuple[str, ...]) -> tuple[Split, ...]:
        found = []
        for value in part(entry, "Splits", []):
            definition = table(value, "a split")
            to = aim.rewrite(definition)
            following = self._resolver(to) if to.subset else self._splitter_or_resolver(to, above)
            found.append(read_split(definition, following))
        total = sum(split.weight for split in found)
        if abs(total - 100) > 0.01:
            raise AgentAnswerError(f"splits of {aim.service!r} sum up to {total:g}, not 100")
        return tuple(found)

    def _resolver(self, aim: _Aim) -> str:
        aim, entry = self._settle(aim, ())
        name = f"resolver:{aim.id}"
        if name not in self._resolvers:
            self._targets[aim.id] = self._target(aim, entry)
            # Noted before its failover is looked at, which may lead back here.
            self._resolvers[name] = Resolution(aim.id)
            self._resolvers[name] = replace(
                _resolution(aim, entry), failover=tuple(self._failover(aim, entry))
            )
        return name

    def _settle(self, aim: _Aim, seen: tuple[_Aim, ...]) -> tuple[_Aim, Entry]:
        """Follow redirects and default subsets."""
        if aim in seen:
            raise AgentAnswerError(f"redirects of {aim.service!r} lead in a circle")
        entry = self._entry("service-resolver", aim.service) or {}
        redirect = part(entry, "Redirect", {})
        to = aim.rewrite(redirect) if redirect else aim
        if to == aim and not aim.subset and text(entry, "DefaultSubset"):
            to = replace(aim, subset=text(entry, "DefaultSubset"))
        if to == aim or to.flaw:
            return to, entry
        return self._settle(to, (*seen, aim))

    def _target(self, aim: _Aim, entry: Entry) -> Target:
        subsets = part(entry, "Subsets", {})
        if aim.subset and aim.subset not in subsets:
            raise AgentAnswerError(f"{aim.service!r} has no subset {aim.subset!r}")
        subset = table(subsets.get(aim.subset) or {}, "a subset")
        return Target(
            aim.id,
            Place(aim.service, aim.datacenter),
            aim.subset,
            text(subset, "Filter"),
            flag(subset, "OnlyPassing"),
            flaw=aim.flaw,
        )

    def _failover(self, aim: _Aim, entry: Entry) -> Iterable[str]:
        failovers = part(entry, "Failover", {})
        failover = table(failovers.get(aim.subset) or failovers.get("*") or {}, "a failover")
        aims = [aim.rewrite(table(to, "a target")) for to in part(failover, "Targets", [])]
        if not aims and failover:
            plain = aim.rewrite(failover)
            others = part(failover, "Datacenters", [])
            aims = [replace(plain, datacenter=str(one)) for one in others] or [plain]
        for one in aims:
            settled, settled_entry = self._settle(one, ())
            if settled.id == aim.id:
                continue
            self._targets.setdefault(settled.id, self._target(settled, settled_entry))
            yield settled.id


def _resolution(aim: _Aim, entry: Entry) -> Resolution:
    plain = Resolution(aim.id)
    return Resolution(
        aim.id,
        connect_timeout=limit(duration(entry.get("ConnectTimeout"))) or plain.connect_timeout,
        request_timeout=limit(duration(entry.get("RequestTimeout"))),
        balancing=read_balancing(part(entry, "LoadBalancer", {})),
    )


def read_manners(entry: Entry | None, upstream: str, base: Manners) -> Manners:
    """
    Read what our own service-defaults says about an upstream.

    Args:
        entry: service-defaults of the service we are; ``None`` when there is none.
        upstream: name of the service we call.
        base: what holds where the entry says nothing.

    Raises:
        AgentAnswerError: its shape is another one.
    """
    config = part(entry or {}, "UpstreamConfig", {})
    chosen = dict(part(config, "Defaults", {}))
    for override in part(config, "Overrides", []):
        if text(override, "Name").lower() == upstream.lower() and not text(override, "Peer"):
            chosen |= {key: value for key, value in override.items() if value is not None}
    milliseconds = chosen.get("ConnectTimeoutMs") or 0
    return replace(
        base,
        connect_timeout=milliseconds / 1000 if milliseconds > 0 else base.connect_timeout,
        limits=_limits(part(chosen, "Limits", {}), base.limits),
        breaking=_breaking(part(chosen, "PassiveHealthCheck", {}), base.breaking),
    )


def _limits(value: Entry, base: Limits) -> Limits:
    def most(key: str, otherwise: int | None) -> int | None:
        found = value.get(key)
        return found if type(found) is int and found >= 0 else otherwise

    return Limits(
        most("MaxConnections", base.connections),
        most("MaxPendingRequests", base.pending),
        most("MaxConcurrentRequests", base.concurrent),
    )


def _breaking(value: Entry, base: Breaking) -> Breaking:
    def number(key: str, otherwise: int) -> int:
        found = value.get(key)
        return found if type(found) is int and found >= 0 else otherwise

    return Breaking(
        number("MaxFailures", 0) or base.max_failures,
        number("EnforcingConsecutive5xx", base.enforcing),
        number("MaxEjectionPercent", base.max_percent),
        duration(value.get("BaseEjectionTime")) or base.base_time,
        duration(value.get("Interval")) or base.interval,
    )
