"""Fixtures that several test files use."""

from __future__ import annotations

import pytest
from hypothesis import settings

from .support.certs import Ca

# A slow machine is no failure, and a fresh checkout has no past examples.
settings.register_profile("mesh", deadline=None, database=None)
settings.load_profile("mesh")


@pytest.fixture(scope="session")
def ca() -> Ca:
    """A root of the tests' trust domain, made once: keys are its cost."""
    return Ca()


@pytest.fixture(scope="session")
def foreign_ca() -> Ca:
    """Another root for the same trust domain, which nobody trusts."""
    return Ca(name="Foreign CA")
