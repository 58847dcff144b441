"""Fixtures of the client's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .driver import KINDS, Driver
from .support import Authority, StaticMesh


@pytest.fixture(scope="session")
def authority() -> Authority:
    """A CA, made once: keys are its cost."""
    return Authority()


@pytest.fixture
def mesh(authority: Authority) -> StaticMesh:
    """A joined mesh that knows no upstream yet."""
    return StaticMesh(authority)


@pytest.fixture(params=KINDS)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    """Drives the sync client, and the async one on every event loop."""
    with Driver(request.param).running() as driver:
        yield driver
