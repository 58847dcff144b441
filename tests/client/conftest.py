"""Fixtures of the client's tests; with ``MESH_CLIENT_LIBRARY=httpx2`` they are about httpx2."""

from __future__ import annotations

import os
import sys

import pytest

if os.environ.get("MESH_CLIENT_LIBRARY") == "httpx2":
    import httpx2

    import mesh_middleware.httpx
    import mesh_middleware.httpx2
    import mesh_middleware.mesh  # asks the agent by httpx in any case

    mesh_middleware.httpx2.Client  # noqa: B018 - loads the modules
    sys.modules["httpx"] = httpx2
    for name in [name for name in sys.modules if name.startswith("mesh_middleware.httpx2")]:
        sys.modules[name.replace("httpx2", "httpx")] = sys.modules[name]
    mesh_middleware.httpx = mesh_middleware.httpx2

from .driver import KINDS, drivers
from .support import Authority, StaticMesh


@pytest.fixture(scope="session")
def authority() -> Authority:
    """A CA, made once: keys are its cost."""
    return Authority()


@pytest.fixture
def mesh(authority: Authority) -> StaticMesh:
    """A joined mesh that knows no upstream yet."""
    return StaticMesh(authority)


driver = drivers(KINDS)
