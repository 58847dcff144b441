"""What the examples' tests share: an example served as its README says, and calls to it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from mesh_middleware import Client, Mesh
from mesh_middleware.dev import DevAgent

HERE = Path(__file__).parent
FOLDERS = {"order": "fastapi_order", "invoice": "flask_invoice", "tax": "flask_tax"}
PATIENCE = 30.0

Serve = Callable[..., None]
Call = Callable[[str, str, str], httpx.Response]


@pytest.fixture(autouse=True)
def no_mesh_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shell says of Consul is not for these tests."""
    for name in list(os.environ):
        if name.startswith(("CONSUL_", "MESH_")):
            monkeypatch.delenv(name)


@pytest.fixture
def serve(mesh_agent: DevAgent) -> Iterator[Serve]:
    """Serve examples by ``hypercorn --config mesh``, on free ports, until the test ends."""
    with contextlib.ExitStack() as stack:

        def start(*services: str) -> None:
            for service in services:
                command = [Path(sys.executable).with_name("hypercorn"), "--config", "mesh"]
                process = subprocess.Popen(
                    [*command, "--bind", "127.0.0.1:0", f"{service}:app"],
                    cwd=HERE / FOLDERS[service],
                    env={**os.environ, "MESH_AGENT": mesh_agent.url},
                    start_new_session=True,
                )
                stack.callback(process.wait, PATIENCE)
                stack.callback(process.terminate)
            for service in services:
                wait_until_passing(mesh_agent, service)

        yield start


def wait_until_passing(agent: DevAgent, service: str) -> None:
    url = f"{agent.url}/v1/health/connect/{service}?passing"
    end, pause = time.monotonic() + PATIENCE, threading.Event()
    while not httpx.get(url, trust_env=False).json():
        assert time.monotonic() < end, f"{service} is not registered"
        pause.wait(0.05)


@pytest.fixture
def call(mesh_agent: DevAgent) -> Iterator[Call]:
    """Call an upstream as some service: ``call("invoice", "GET", "https://tax/tax")``."""
    with contextlib.ExitStack() as stack:
        clients: dict[str, Client] = {}

        def send(source: str, method: str, url: str) -> httpx.Response:
            if source not in clients:
                mesh = stack.enter_context(Mesh(source, agent=mesh_agent.url, register=False))
                assert mesh.ready(PATIENCE)
                clients[source] = stack.enter_context(Client(mesh=mesh, timeout=PATIENCE))
            return clients[source].request(method, url)

        yield send


@pytest.fixture
def write_intentions(mesh_agent: DevAgent) -> Callable[[str], None]:
    """Write an example's ``intentions.json``, as ``mesh intention create --file`` does."""

    def write(service: str) -> None:
        file = HERE / FOLDERS[service] / "intentions.json"
        for entry in json.loads(file.read_text()):
            url = f"{mesh_agent.url}/v1/config"
            httpx.put(url, json=entry, trust_env=False).raise_for_status()

    return write
