"""Fixtures: an agent, a mesh on it, and how long the long scenarios are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import DevAgent

from ..interop.conftest import serve

LONG = bool(os.environ.get("RELIABILITY_LONG"))
"""Whether scenarios run in their full length (``make reliability``) or as CI has time for."""


@pytest.fixture
def agent() -> Iterator[DevAgent]:
    """A running agent that allows what no intention names."""
    with DevAgent() as agent:
        yield agent


@pytest.fixture
def join(agent: DevAgent) -> Iterator[Callable[..., Mesh]]:
    """Starts meshes as service tax, which are closed after the test."""
    with ExitStack() as stack:

        def start(url: str = "", **options: Any) -> Mesh:
            return stack.enter_context(Mesh("tax", agent=url or agent.url, **options))

        yield start


__all__ = ["serve"]
