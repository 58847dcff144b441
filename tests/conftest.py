"""Fixtures that several test files use."""

from __future__ import annotations

import os
import sys

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


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--fast``: the tests that start no process, as `make test-fast` runs them."""
    parser.addoption("--fast", action="store_true", help="only tests that start no process")


def pytest_configure(config: pytest.Config) -> None:
    """Under ``--fast`` hold the tests to their marker."""
    if config.getoption("--fast"):
        sys.addaudithook(_refuse_processes)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked."""
    if config.getoption("--fast"):
        items[:] = [item for item in items if item.get_closest_marker("process") is None]


def _refuse_processes(event: str, args: tuple[object, ...]) -> None:
    if event == "subprocess.Popen" and "PYTEST_CURRENT_TEST" in os.environ:
        raise RuntimeError(f"this test starts {args[1]!r}: mark it with @pytest.mark.process")
