"""``mesh agent``: the dev agent as a process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import httpx
import pytest

from mesh_middleware.dev import DevAgent
from tests.support.servers import Process, clean_environment

from .conftest import Run

AGENT = (sys.executable, "-m", "mesh_middleware.cli", "agent", "--port", "0")


def agent(folder: Path, *more: str) -> Process:
    return Process([*AGENT, *more], folder, clean_environment())


def address(process: Process) -> str:
    (found,) = process.wait_output(r"dev agent: (http://127\.0\.0\.1:\d+) ")
    process.wait_output("Ctrl-C")
    return found[1]


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    """Exit code 0 and a last line, no traceback."""
    with agent(tmp_path) as process:
        address(process)
        process.signal(number)
        assert process.wait_end() == 0
        assert process.lines[-1] == "dev agent: stopped"


@pytest.mark.process
def test_it_tells_what_it_is_and_what_is_written(tmp_path: Path) -> None:
    """Trust domain and policy at the start, one line per write, none per reading."""
    with agent(tmp_path, "--default-policy", "deny", "--datacenter", "here") as process:
        url = address(process)
        roots = httpx.get(f"{url}/v1/agent/connect/ca/roots", trust_env=False).json()
        exact = f"{url}/v1/connect/intentions/exact?source=a&destination=b&token=hush"
        httpx.put(exact, json={"Action": "deny"}, trust_env=False).raise_for_status()
        process.wait_output("PUT /v1/connect/intentions/exact")
        process.stop()
    assert f"  trust domain    {roots['TrustDomain']}" in process.lines
    assert "  default policy  deny" in process.lines
    assert "hush" not in process.output and "GET" not in process.output


@pytest.mark.process
def test_state_outlives_the_process(tmp_path: Path) -> None:
    """With --state the CA and the intentions are there again."""
    domains = []
    for _ in range(2):
        with agent(tmp_path, "--state", str(tmp_path / "agent.json")) as process:
            url = address(process)
            roots = httpx.get(f"{url}/v1/agent/connect/ca/roots", trust_env=False).json()
            domains.append(roots["TrustDomain"])
    assert domains[0] == domains[1]


def test_a_port_that_is_taken_is_one_line(run: Run, mesh_agent: DevAgent) -> None:
    """Exit code 2, the port is named."""
    code, _, err = run("agent", "--port", str(mesh_agent.port))
    assert code == 2
    assert str(mesh_agent.port) in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--port", "99999"],
        ["--port", "-1"],
        ["--state", "/nowhere/agent.json"],
        ["--state", "/"],
        ["--datacenter", ""],
        ["--datacenter", "a/b"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_one_line(run: Run, words: list[str]) -> None:
    """Exit code 2, nothing on standard output."""
    code, out, err = run("agent", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("mesh: ")
