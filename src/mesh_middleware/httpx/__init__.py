"""
The outbound door: httpx clients and transports that call upstreams through the mesh.

Owns nothing itself; the public names of the package are gathered here. In the modules of this
package ``import httpx`` means the real httpx, because imports are absolute.
"""

from __future__ import annotations

from .client import AsyncClient, Client
from .denial import MeshInfo, MeshResponse
from .errors import (
    MeshConnectError,
    MeshConnectTimeout,
    MeshDeadlineError,
    MeshNotReadyError,
    NoHealthyInstanceError,
    UpstreamBusyError,
    UpstreamDeniedError,
    UpstreamMismatchError,
    UpstreamNameError,
    UpstreamUnverifiedError,
)
from .transport import AsyncMeshTransport, MeshTransport

__all__ = [
    "AsyncClient",
    "AsyncMeshTransport",
    "Client",
    "MeshConnectError",
    "MeshConnectTimeout",
    "MeshDeadlineError",
    "MeshInfo",
    "MeshNotReadyError",
    "MeshResponse",
    "MeshTransport",
    "NoHealthyInstanceError",
    "UpstreamBusyError",
    "UpstreamDeniedError",
    "UpstreamMismatchError",
    "UpstreamNameError",
    "UpstreamUnverifiedError",
]
