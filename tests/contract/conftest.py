"""The agents under test: ours, and a private real Consul."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mesh_middleware.dev import DevAgent

from ..support.consul import RealConsul
from .target import Target


@pytest.fixture(scope="session")
def dev() -> Iterator[Target]:
    """The dev agent."""
    with DevAgent() as agent:
        target = Target("dev", agent.url, "")
        target.version = target.get("/v1/agent/self").json()["Config"]["Version"]
        yield target
        target.close()


@pytest.fixture(scope="session")
def real() -> Iterator[Target]:
    """A real Consul of its own; without a binary the suite fails."""
    with RealConsul() as consul:
        target = Target("real", consul.url, consul.version)
        yield target
        target.close()


@pytest.fixture(params=["dev", "real"])
def agent(request: pytest.FixtureRequest) -> Target:
    """Each agent in turn: what is asserted of one holds of the other."""
    target: Target = request.getfixturevalue(request.param)
    return target
