"""What the attacks share: the dev agent, the servers, and a caller whom intentions know."""

from __future__ import annotations

import pytest

from mesh_middleware.dev import DevAgent

from ..interop.callers import Identity
from ..interop.conftest import Serve, agent, serve

__all__ = ["Serve", "agent", "invoice", "serve"]


@pytest.fixture
def invoice(agent: DevAgent) -> Identity:
    """A caller of the mesh."""
    return Identity.of(*agent.issue("invoice"))
