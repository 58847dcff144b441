"""Leaving the mesh: what the agent knows afterwards, however the notices of the end interleave."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from typing import Any

import mesh_middleware
from mesh_middleware.dev import DevAgent
from mesh_middleware.dev.http import EMPTY, Answer

from ..support.servers import PATIENCE, clean_environment, until


def test_the_end_does_not_cut_a_withdrawal_short(agent: DevAgent) -> None:
    """`close` while `withdraw` is between turning critical and deregistering: both are done."""
    asked, release = threading.Event(), threading.Event()

    async def hold(request: Any) -> None:
        if b"critical" in request.body and not asked.is_set() and request.path.endswith("mesh:x"):
            asked.set()
            await asyncio.to_thread(release.wait, PATIENCE)

    mesh = mesh_middleware.Mesh("tax", agent=agent.url, port=4711, service_id="x").start()
    assert mesh.ready(PATIENCE)
    services = agent.state.services.services
    until(lambda: "x" in services and passing(agent), "the registration")
    agent.interpose = hold
    mesh.withdraw()
    assert asked.wait(PATIENCE)
    closing = threading.Thread(target=mesh.close)
    closing.start()
    release.set()
    closing.join(PATIENCE)
    assert "x" not in services


def test_a_registration_that_is_cut_short_is_taken_back(agent: DevAgent) -> None:
    """`close` when the agent has taken the registration but not answered: it does not stay."""
    asked, release = threading.Event(), threading.Event()

    async def hold(request: Any) -> Answer | None:
        if request.path != "/v1/agent/service/register":
            return None
        agent.register(json.loads(request.body))
        asked.set()
        await asyncio.to_thread(release.wait, PATIENCE)
        return EMPTY

    agent.interpose = hold
    mesh = mesh_middleware.Mesh("tax", agent=agent.url, port=4711, service_id="x").start()
    assert asked.wait(PATIENCE)
    assert "x" in agent.state.services.services
    mesh.close()
    release.set()
    assert "x" not in agent.state.services.services


def passing(agent: DevAgent) -> bool:
    """Whether the check of instance ``x`` passes."""
    return agent.state.services.checks["mesh:x"].status == "passing"


WITHOUT_CLOSE = """
import sys
from mesh_middleware import Mesh
mesh = Mesh("shop", port=7, agent=sys.argv[1]).start()
assert mesh.ready(10)
print("ready", flush=True)
sys.stdin.readline()
"""


def test_an_end_without_close_and_agent_is_one_line(agent: DevAgent) -> None:
    """An agent's name is looked up no more when the interpreter ends: no traceback of a thread."""
    address = agent.url.replace("127.0.0.1", "localhost")
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_CLOSE, address],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        agent.close()
        _, err = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in err and "deregistration of shop-" in err
