"""
Envoy as Consul would place it in front of the application.

Owns the static configuration: mutual TLS, RBAC compiled from the same intentions, the client
certificate forwarded as Consul asks for it. The compilation is the one that the differential tests
compare with the engine.

Source: Consul 1.21, public listener of a sidecar; `tests.differential.rbac`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.differential.rbac import http_filter

Json = dict[str, Any]

_TYPES = "type.googleapis.com/envoy.extensions"


def bootstrap(
    port: int, upstream: int, folder: Path, name: str, policy: list[Json], trust_domain: str
) -> Json:
    """
    Make the configuration.

    Args:
        port: that Envoy listens on.
        upstream: port of the application, plain HTTP.
        folder: with certificate, key and roots.
        name: of certificate and key in there.
        policy: intentions, as the agent's match endpoint tells them.
        trust_domain: of the callers.
    """
    listener = {
        "name": "public_listener",
        "address": _address(port),
        "filter_chains": [
            {
                "transport_socket": _mutual_tls(folder, name),
                "filters": [_connection_manager(policy, trust_domain)],
            }
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [_local_app(upstream)]}}


def _connection_manager(policy: list[Json], trust_domain: str) -> Json:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "local_app", "timeout": "0s"}}
    router = {"@type": f"{_TYPES}.filters.http.router.v3.Router"}
    kind = "filters.network.http_connection_manager.v3.HttpConnectionManager"
    config = {
        "@type": f"{_TYPES}.{kind}",
        "stat_prefix": "public_listener",
        "normalize_path": True,
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {
            "subject": True, "cert": True, "chain": True, "dns": True, "uri": True,
        },
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {
            "name": "public_listener",
            "virtual_hosts": [{"name": "public_listener", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            http_filter(policy, False, trust_domain),
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    }  # fmt: skip
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": config}


def _mutual_tls(folder: Path, name: str) -> Json:
    pair = {
        "certificate_chain": {"filename": str(folder / f"{name}.pem")},
        "private_key": {"filename": str(folder / f"{name}.key")},
    }
    roots = {"filename": str(folder / "roots.pem")}
    config = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificates": [pair],
            "validation_context": {"trusted_ca": roots},
            "alpn_protocols": ["http/1.1"],
        },
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _local_app(port: int) -> Json:
    endpoint = {"endpoint": {"address": _address(port)}}
    return {
        "name": "local_app",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "local_app",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
