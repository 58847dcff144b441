"""
Join a Consul service mesh from Python, with no sidecar proxy.

The public names are fetched on first use, so that a program pays only for the doors it opens.
Importing this package under Hypercorn teaches that server what ``certfile = "mesh"`` means.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .asgi import MeshAuthz
    from .certificates import Peer
    from .doors import Caller
    from .flask import MeshNative, mesh_caller, mesh_peer
    from .httpx import AsyncClient, AsyncMeshTransport, Client, MeshTransport
    from .identity import ServiceId, SpiffeId, parse_spiffe_id
    from .intentions import Decision, Reason
    from .mesh import Mesh, default_mesh
    from .plugins import hookimpl
    from .wsgi import MeshAuthzWSGI

_HOMES = {
    "AsyncClient": "httpx",
    "AsyncMeshTransport": "httpx",
    "Caller": "doors",
    "Client": "httpx",
    "Decision": "intentions",
    "Mesh": "mesh",
    "MeshAuthz": "asgi",
    "MeshAuthzWSGI": "wsgi",
    "MeshNative": "flask",
    "MeshTransport": "httpx",
    "Peer": "certificates",
    "Reason": "intentions",
    "ServiceId": "identity",
    "SpiffeId": "identity",
    "default_mesh": "mesh",
    "hookimpl": "plugins",
    "mesh_caller": "flask",
    "mesh_peer": "flask",
    "parse_spiffe_id": "identity",
}

__all__ = [
    "AsyncClient",
    "AsyncMeshTransport",
    "Caller",
    "Client",
    "Decision",
    "Mesh",
    "MeshAuthz",
    "MeshAuthzWSGI",
    "MeshNative",
    "MeshTransport",
    "Peer",
    "Reason",
    "ServiceId",
    "SpiffeId",
    "default_mesh",
    "hookimpl",
    "mesh_caller",
    "mesh_peer",
    "parse_spiffe_id",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def _make_host() -> Any:
    """Compose what judges before the application of a server."""
    from .frameworks import RECOGNISERS
    from .inbound.host import Host

    def bridge(app: Any, **options: Any) -> Any:
        from .inbound.wsgi_bridge import WsgiBridge  # for WSGI applications only

        return WsgiBridge(app, **options)

    return Host(RECOGNISERS, asgi=__getattr__("MeshAuthz").by_server, bridge=bridge)


if "hypercorn.config" in sys.modules:
    from .servers.hypercorn_tls import teach

    teach(_make_host)
