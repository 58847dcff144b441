"""The same transport for httpx2: the client's suite once more, over the successor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import httpx2
import pytest

from mesh_middleware import httpx as door
from mesh_middleware import httpx2 as door2

HERE = Path(__file__).parent
SUITES = [
    "test_awkward.py",
    "test_cancel.py",
    "test_connections.py",
    "test_deadlines.py",
    "test_door.py",
    "test_errors.py",
    "test_leaks.py",
]


def test_the_names_are_the_same_and_the_classes_are_not() -> None:
    """What one package offers the other does, each over its own library."""
    assert door2.__all__ == door.__all__
    assert issubclass(door2.Client, httpx2.Client)
    assert issubclass(door2.MeshConnectError, httpx2.ConnectError)
    assert not issubclass(door2.MeshConnectError, httpx.ConnectError)
    assert door2.MeshInfo is not door.MeshInfo
    assert door2.Client.__module__ == "mesh_middleware.httpx2.client"


@pytest.mark.process
@pytest.mark.timeout(240)
@pytest.mark.parametrize("suite", SUITES)
def test_the_suite_holds_over_httpx2(suite: str) -> None:
    """Every claim about the client, made of httpx2's."""
    # Each kind of carrier once; loops and readers make no difference to the library.
    but = "not uvloop and not h11"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", but]
    done = subprocess.run(
        [*command, HERE / suite],
        cwd=HERE.parents[1],
        env=os.environ | {"MESH_CLIENT_LIBRARY": "httpx2"},
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
