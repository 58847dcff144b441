"""
Which fields of Consul's traffic configuration have an effect here, and which have none.

Owns one table, `FIELDS`: the readers name what a chain sets in vain, once in the log, and the
page ``reference/upstream_fields.md`` says the same to people. Knows no values.

Source: Consul config entries service-router, service-splitter, service-resolver, service-defaults
and proxy-defaults (reference 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Effect = Literal["yes", "partly", "no"]


@dataclass(frozen=True, slots=True)
class Field:
    """
    One field.

    Args:
        effect: ``yes``: as Consul says; ``partly``: see *note*; ``no``: named in the log when set.
        note: what differs, or why not.
    """

    effect: Effect
    note: str = ""


_YES = Field("yes")
_CE = Field("no", "Consul Enterprise")
_GATEWAY = Field("no", "instances are called directly, never through a mesh gateway")
_PROXY = Field("no", "about a proxy, which there is none of")
_INBOUND = Field("no", "about inbound traffic")
_HEADERS = Field("partly", "never those that frame a message; `%…%` of Envoy stays as it is")
_SHOWN = Field("partly", "read, has no effect on calls")


def _changes(prefix: str) -> dict[str, Field]:
    return {f"{prefix}.{one}.{act}": _HEADERS for one in ("RequestHeaders", "ResponseHeaders")
            for act in ("Add", "Set", "Remove")}  # fmt: skip


def _under(prefix: str, fields: Mapping[str, Field]) -> dict[str, Field]:
    return {f"{prefix}.{path}": found for path, found in fields.items()}


_HEAD = {path: _YES for path in ("Kind", "Name", "Meta", "CreateIndex", "ModifyIndex", "Hash")} | {
    "Namespace": _CE,
    "Partition": _CE,
}

_CONDITION = {
    path: _YES
    for path in (
        "Name", "Present", "Exact", "Prefix", "Suffix", "Contains", "Regex", "Invert", "IgnoreCase",
    )
}  # fmt: skip

_MATCH = {
    "PathExact": _YES, "PathPrefix": _YES,
    "PathRegex": Field("yes", "RE2, extra `re2`; without it the route never matches"),
    "CaseInsensitive": _YES, "Methods": _YES,
    **_under("Header", _CONDITION),
    **_under("QueryParam", {path: _YES for path in ("Name", "Present", "Exact", "Regex")}),
}  # fmt: skip

_RETRY_ON = Field(
    "partly", "`5xx`, `gateway-error`, `reset`, `connect-failure`, `retriable-4xx`, "
    "`refused-stream`; the gRPC ones and `envoy-ratelimited` have no effect",
)  # fmt: skip

_DESTINATION = {
    "Service": _YES, "ServiceSubset": _YES, "Namespace": _CE, "Partition": _CE,
    "PrefixRewrite": _YES, "RequestTimeout": Field("yes", "also told to the upstream"),
    "IdleTimeout": Field("partly", "as a bound of the read timeout"),
    "NumRetries": Field("yes", "within the retry budget"),
    "RetryOnConnectFailure": _YES, "RetryOn": _RETRY_ON,
    "RetryOnStatusCodes": Field(
        "partly", "for idempotent methods, and those that the route's `Methods` name"
    ),
}  # fmt: skip

_BALANCER = {
    "Policy": Field("yes", "empty is power of two choices by outstanding calls"),
    "RingHashConfig.MinimumRingSize": _YES, "RingHashConfig.MaximumRingSize": _YES,
    "LeastRequestConfig.ChoiceCount": _YES,
    "HashPolicies.Field": _YES, "HashPolicies.FieldValue": _YES, "HashPolicies.Terminal": _YES,
    "HashPolicies.SourceIP": Field("partly", "the address given with the call, there is none else"),
    "HashPolicies.CookieConfig.Session": Field("no", "no cookie is made; one that is sent counts"),
    "HashPolicies.CookieConfig.TTL": Field("no", "no cookie is made; one that is sent counts"),
    "HashPolicies.CookieConfig.Path": Field("no", "no cookie is made; one that is sent counts"),
}  # fmt: skip

_PASSIVE = {
    "Interval": Field("partly", "how fast earlier ejections are forgiven"),
    "MaxFailures": Field("yes", "consecutive 5xx, broken and refused connections"),
    "EnforcingConsecutive5xx": _YES,
    "MaxEjectionPercent": Field("yes", "at least one; the last one only at 100"),
    "BaseEjectionTime": Field("yes", "then one trial call at a time"),
}

_POOL = Field(
    "partly",
    "for the connections of one client to the upstream; tasks that share HTTP/2 have one to each "
    "instance",
)
_LIMITS = {
    "MaxConnections": _POOL, "MaxPendingRequests": _POOL, "MaxConcurrentRequests": _YES,
}  # fmt: skip

_UPSTREAM = {
    "ConnectTimeoutMs": _YES, **_under("Limits", _LIMITS),
    **_under("PassiveHealthCheck", _PASSIVE),
    "Protocol": Field("no", "the protocol is agreed on in the handshake"),
    "MeshGateway.Mode": _GATEWAY, "EnvoyListenerJSON": _PROXY, "EnvoyClusterJSON": _PROXY,
    "BalanceOutboundConnections": _PROXY,
}  # fmt: skip

_FAILOVER = {
    "Service": _YES, "ServiceSubset": _YES, "Datacenters": _YES, "Namespace": _CE,
    "Policy.Mode": _CE, "Policy.Regions": _CE, "SamenessGroup": _CE,
    "Targets.Service": _YES, "Targets.ServiceSubset": _YES, "Targets.Datacenter": _YES,
    "Targets.Namespace": _CE, "Targets.Partition": _CE,
    "Targets.Peer": Field("no", "peered clusters are not called; the target counts as empty"),
}  # fmt: skip

FIELDS: dict[str, dict[str, Field]] = {
    "service-router": {
        **_HEAD,
        **_under("Routes.Match.HTTP", _MATCH),
        **_under("Routes.Destination", _DESTINATION),
        **_changes("Routes.Destination"),
    },
    "service-splitter": {
        **_HEAD,
        **_under("Splits", {
            "Weight": _YES, "Service": _YES, "ServiceSubset": _YES, "Namespace": _CE,
            "Partition": _CE,
        }),
        **_changes("Splits"),
    },
    "service-resolver": {
        **_HEAD,
        "DefaultSubset": _YES,
        "Subsets.*.Filter": Field(
            "yes", "evaluated here; an expression that cannot be read makes the subset empty"
        ),
        "Subsets.*.OnlyPassing": _YES,
        "Redirect.Service": _YES, "Redirect.ServiceSubset": _YES, "Redirect.Datacenter": _YES,
        "Redirect.Namespace": _CE, "Redirect.Partition": _CE, "Redirect.SamenessGroup": _CE,
        "Redirect.Peer": Field("no", "peered clusters are not called; the target counts as empty"),
        **_under("Failover.*", _FAILOVER),
        "ConnectTimeout": _YES,
        "RequestTimeout": Field("yes", "where the chain starts at a resolver, as in Consul"),
        **_under("LoadBalancer", _BALANCER),
        "PrioritizeByLocality.Mode": _CE,
    },
    "service-defaults": {
        **_HEAD,
        "Protocol": Field("partly", "decides whether routers and splitters are allowed"),
        **_under("UpstreamConfig.Defaults", _UPSTREAM),
        "UpstreamConfig.Overrides.Name": _YES,
        "UpstreamConfig.Overrides.Namespace": _CE, "UpstreamConfig.Overrides.Partition": _CE,
        "UpstreamConfig.Overrides.Peer": _CE,
        **_under("UpstreamConfig.Overrides", _UPSTREAM),
        "Mode": _PROXY, "MeshGateway.Mode": _GATEWAY, "TransparentProxy": _PROXY,
        "Expose": _PROXY, "EnvoyExtensions": _PROXY, "ExternalSNI": _GATEWAY,
        "Destination": Field("no", "about services outside the mesh, through a gateway"),
        "MutualTLSMode": _INBOUND, "BalanceInboundConnections": _INBOUND, "RateLimits": _INBOUND,
        "MaxInboundConnections": _INBOUND, "LocalConnectTimeoutMs": _INBOUND,
        "LocalRequestTimeoutMs": _INBOUND,
    },
    "proxy-defaults": {
        **_HEAD,
        "Config.protocol": Field("partly", "the protocol of services without one of their own"),
        "Config.*": _PROXY, "Mode": _PROXY, "MeshGateway.Mode": _GATEWAY, "Expose": _PROXY,
        "TransparentProxy": _PROXY, "AccessLogs": _PROXY, "EnvoyExtensions": _PROXY,
        "MutualTLSMode": _INBOUND, "FailoverPolicy": _CE, "PrioritizeByLocality.Mode": _CE,
    },
}  # fmt: skip
"""Kind of entry, path of the field in it, effect. ``*`` stands for any key of a map."""

_CHAIN: dict[str, dict[str, Field]] = {
    "match": _MATCH,
    "chain-resolver": {
        "Default": _SHOWN, "Target": _YES, "ConnectTimeout": _YES, "RequestTimeout": _YES,
        "Failover.Targets": _YES, "Failover.Policy.Mode": _CE, "Failover.Policy.Regions": _CE,
        **_under("LoadBalancer", _BALANCER),
    },
    "chain-target": {
        "ID": _YES, "Service": _YES, "ServiceSubset": _YES, "Datacenter": _YES, "SNI": _YES,
        "Name": _SHOWN, "Subset.Filter": _YES, "Subset.OnlyPassing": _YES,
        "MeshGateway.Mode": _GATEWAY, "Namespace": _SHOWN, "Partition": _SHOWN, "Peer": _SHOWN,
        "External": _SHOWN, "TransparentProxy": _SHOWN, "ConnectTimeout": _SHOWN,
        "Locality": _CE,
    },
}  # fmt: skip


def unhonoured(kind: str, value: object) -> tuple[str, ...]:
    """
    Name the fields that are set in *value* and have no effect.

    Args:
        kind: of config entry, or of a part of a chain.
        value: parsed from JSON.

    Returns:
        Paths such as ``Routes.Destination.Namespace``, each once, with the reason in brackets.
    """
    fields = FIELDS.get(kind) or _CHAIN[kind]
    found = dict.fromkeys(_walk(fields, "", value))
    return tuple(found)


def _walk(fields: Mapping[str, Field], path: str, value: object) -> Iterator[str]:
    if value is None or value in ("", 0, False, [], {}, "default", "0s"):
        return
    known = fields.get(path)
    if known is not None:
        if known.effect == "no":
            yield f"{path} ({known.note})"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(fields, _below(fields, path, str(key)), item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(fields, path, item) if isinstance(item, Mapping) else (path,)
    else:
        yield f"{path} (unknown here)"


def _below(fields: Mapping[str, Field], path: str, key: str) -> str:
    here = f"{path}.{key}" if path else key
    if any(one == here or one.startswith(f"{here}.") for one in fields):
        return here
    any_key = f"{path}.*"
    if any(one == any_key or one.startswith(f"{any_key}.") for one in fields):
        return any_key
    return here
