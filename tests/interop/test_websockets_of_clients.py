"""WebSockets to an upstream with httpx-ws: a thread reads while another writes and closes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mesh_middleware.dev import DevAgent

from ..client.test_closed_by_another_thread import ECHO, PROGRAM
from ..support.servers import clean_environment, until
from .conftest import Serve

pytestmark = pytest.mark.process


def test_httpx_ws_opens_and_closes_without_a_crash(agent: DevAgent, serve: Serve) -> None:
    """In 16 of 32 runs the process died by SIGSEGV at the close, or hung."""
    serve(ECHO, {"service": "audit"})
    until(lambda: "audit" in str(agent.state.services.services), "the registration")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, agent.url],
        capture_output=True,
        text=True,
        timeout=55,
        env=clean_environment(),
    )
    assert (done.returncode, done.stdout) == (0, "lived\n"), done.stderr[-3000:]
