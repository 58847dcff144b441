"""Fixtures of the tests of the bridge."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    """Name of the event loop."""
    return str(request.param)
