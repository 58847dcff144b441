"""
The shapes of what may be written to the dev agent: data for `decode`.

Owns the field lists of service and check definitions, intentions and config entries. Parts that
the agent only stores and hands back are open (None). Knows no rule beyond names and types.

Source: Consul HTTP API and config entries (reference 4, 6.1, 7, 8).
"""

from __future__ import annotations

from typing import Any

_META = {"*": str}

CHECK: dict[str, Any] = {
    "ID": str, "CheckID": str, "Name": str, "Status": str, "Notes": str, "ServiceID": str,
    "ScriptArgs": [str], "Args": [str], "HTTP": str, "H2PING": str, "H2PingUseTLS": bool,
    "Header": None, "Method": str, "Body": str, "DisableRedirects": bool, "TCP": str,
    "TCPUseTLS": bool, "UDP": str, "Interval": "duration", "AliasNode": str, "AliasService": str,
    "DockerContainerID": str, "Shell": str, "GRPC": str, "GRPCUseTLS": bool, "OSService": str,
    "TLSServerName": str, "TLSSkipVerify": bool, "Timeout": "duration", "TTL": "duration",
    "SuccessBeforePassing": int, "FailuresBeforeWarning": int, "FailuresBeforeCritical": int,
    "DeregisterCriticalServiceAfter": "duration", "OutputMaxSize": int, "ProxyHTTP": str,
    "ProxyGRPC": str,
}  # fmt: skip

_PROXY: dict[str, Any] = {
    "DestinationServiceName": str, "DestinationServiceID": str, "LocalServiceAddress": str,
    "LocalServicePort": int, "LocalServiceSocketPath": str, "Mode": str, "Config": None,
    "Upstreams": None, "MeshGateway": None, "Expose": None, "TransparentProxy": None,
    "EnvoyExtensions": None, "MutualTLSMode": str,
}  # fmt: skip

SERVICE: dict[str, Any] = {
    "Kind": str, "ID": str, "Name": str, "Tags": [str], "Address": str, "SocketPath": str,
    "TaggedAddresses": {"*": {"Address": str, "Port": int}}, "Meta": _META, "Port": int,
    "Check": CHECK, "Checks": [CHECK], "Weights": {"Passing": int, "Warning": int},
    "Token": str, "EnableTagOverride": bool, "Proxy": _PROXY,
    "Connect": {"Native": bool, "SidecarService": lambda: SERVICE}, "Locality": None,
}  # fmt: skip

CHECK_UPDATE: dict[str, Any] = {"Status": str, "Output": str}

AUTHORIZE: dict[str, Any] = {"Target": str, "ClientCertURI": str, "ClientCertSerial": str}

CA_CONFIG: dict[str, Any] = {
    "Provider": str, "Config": None, "State": None, "ForceWithoutCrossSigning": bool,
    "CreateIndex": int, "ModifyIndex": int,
}  # fmt: skip

JWT = {"Providers": [{"Name": str, "VerifyClaims": [{"Path": [str], "Value": str}]}]}

PERMISSIONS = [
    {
        "Action": str,
        "HTTP": {
            "PathExact": str, "PathPrefix": str, "PathRegex": str,
            "Header": [
                {
                    "Name": str, "Present": bool, "Exact": str, "Prefix": str, "Suffix": str,
                    "Contains": str, "Regex": str, "Invert": bool, "IgnoreCase": bool,
                }
            ],
            "Methods": [str],
        },
        "JWT": JWT,
    }
]  # fmt: skip

INTENTION: dict[str, Any] = {
    "ID": str, "Description": str, "SourceNS": str, "SourceName": str, "DestinationNS": str,
    "DestinationName": str, "SourceType": str, "Action": str, "Permissions": PERMISSIONS,
    "JWT": JWT, "Meta": _META, "DefaultAddr": str, "DefaultPort": int, "Precedence": int,
    "CreatedAt": str, "UpdatedAt": str, "Hash": None, "SourcePartition": str,
    "DestinationPartition": str, "SourcePeer": str, "CreateIndex": int, "ModifyIndex": int,
}  # fmt: skip

QUERY: dict[str, Any] = {
    "ID": str, "Name": str, "Session": str, "Token": str, "DNS": {"TTL": "duration"},
    "Template": None,
    "Service": {
        "Service": str, "Failover": None, "OnlyPassing": bool, "IgnoreCheckIDs": [str],
        "Near": str, "Tags": [str], "NodeMeta": None, "ServiceMeta": None, "Connect": bool,
        "Peer": str, "SamenessGroup": str,
    },
}  # fmt: skip


def _entry(**fields: Any) -> dict[str, Any]:
    return {"Kind": str, "Name": str, **fields, "Meta": _META, "CreateIndex": int,
            "ModifyIndex": int}  # fmt: skip


ENTRIES: dict[str, dict[str, Any]] = {
    "service-intentions": _entry(
        JWT=JWT,
        Sources=[
            {
                "Name": str, "Action": str, "Permissions": PERMISSIONS, "Precedence": int,
                "LegacyID": str, "Type": str, "Description": str, "LegacyMeta": _META,
                "LegacyCreateTime": str, "LegacyUpdateTime": str, "Peer": str,
            }
        ],
    ),
    "service-defaults": _entry(
        Protocol=str, Mode=str, BalanceInboundConnections=str, MaxInboundConnections=int,
        LocalConnectTimeoutMs=int, LocalRequestTimeoutMs=int, ExternalSNI=str, MutualTLSMode=str,
        MeshGateway=None, Expose=None, UpstreamConfig=None, TransparentProxy=None,
        Destination=None, RateLimits=None, EnvoyExtensions=None,
    ),
    "proxy-defaults": _entry(
        Config=None, Mode=str, MeshGateway=None, Expose=None, AccessLogs=None,
        TransparentProxy=None, MutualTLSMode=str, EnvoyExtensions=None, FailoverPolicy=None,
        PrioritizeByLocality=None,
    ),
    "mesh": _entry(
        TransparentProxy=None, AllowEnablingPermissiveMutualTLS=bool, TLS=None, HTTP=None,
        Peering=None, ValidateClusters=bool,
    ),
    "jwt-provider": _entry(
        Issuer=str, JSONWebKeySet=None, Audiences=[str], Locations=None, Forwarding=None,
        ClockSkewSeconds=int, CacheConfig=None,
    ),
    "service-resolver": _entry(
        DefaultSubset=str, Subsets={"*": {"Filter": str, "OnlyPassing": bool}}, Redirect=None,
        Failover=None, ConnectTimeout="duration", RequestTimeout="duration", LoadBalancer=None,
        PrioritizeByLocality=None,
    ),
    "service-splitter": _entry(
        Splits=[
            {"Weight": float, "Service": str, "ServiceSubset": str, "Namespace": str,
             "Partition": str, "RequestHeaders": None, "ResponseHeaders": None}
        ],
    ),
    "service-router": _entry(Routes=[{"Match": None, "Destination": None}]),
}  # fmt: skip
