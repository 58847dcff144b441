"""
The settings that Hypercorn's repairs read.

Owns the way from a repair, which knows only Hypercorn's objects, to the settings of the mesh that
serves in this process. They are read when they are needed: one process is one service.
"""

from __future__ import annotations

from ...config import H2_MAX_RESETS, MAX_UNREAD_BODY, UNREAD_BODY_TIMEOUT
from ...mesh import running_mesh


def unread_body_limits() -> tuple[int, float]:
    """Bytes and seconds for the rest of a request that has its response already."""
    mesh = running_mesh()
    if mesh is None:
        return MAX_UNREAD_BODY, UNREAD_BODY_TIMEOUT
    return mesh.settings.max_unread_body, mesh.settings.unread_body_timeout


def h2_max_resets() -> int:
    """Streams that one HTTP/2 connection may reset within ten seconds."""
    mesh = running_mesh()
    return H2_MAX_RESETS if mesh is None else mesh.settings.h2_max_resets
