"""The fixtures that users' tests get."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from mesh_middleware.dev import DevAgent, Faults


def test_mesh_agent_is_a_fresh_agent(mesh_agent: DevAgent) -> None:
    """It listens, and nothing is registered."""
    answer = httpx.get(mesh_agent.url + "/v1/agent/services", trust_env=False)
    assert answer.json() == {}


def test_mesh_agents_takes_options(mesh_agents: Callable[..., DevAgent]) -> None:
    """As many as wanted, each with its own."""
    one, two = mesh_agents(default_policy="deny"), mesh_agents(datacenter="dc2")
    assert one.port != two.port
    header = httpx.get(one.url + "/v1/agent/self", trust_env=False).headers
    assert header["X-Consul-Default-Acl-Policy"] == "deny"
    assert httpx.get(two.url + "/v1/catalog/datacenters", trust_env=False).json() == ["dc2"]


def test_mesh_identity_calls_as_a_service(
    mesh_agent: DevAgent, mesh_identity: Callable[..., ssl.SSLContext], tmp_path: Path
) -> None:
    """A server that demands a certificate sees the service; the key leaves no file behind."""
    client = mesh_identity("invoice")
    pair = tmp_path / "server.pem"
    pair.write_text("".join(mesh_agent.issue("tax")))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair)
    pair.unlink()
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(cadata=mesh_agent.roots_pem)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(to_client, to_server)
    callee = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for end in (caller, callee):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = callee.getpeercert()
    assert certificate and str(certificate["subjectAltName"]).count("/svc/invoice") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_plugin_costs_nothing_where_it_is_not_used() -> None:
    """Loading it imports no agent, no cryptography, no server."""
    code = (
        "import sys, mesh_middleware.pytest_plugin;"
        "heavy = {'mesh_middleware.dev', 'cryptography', 'hypercorn', 'httpx'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "[]\n", done.stderr


def test_mesh_faults_are_those_of_the_agent(mesh_agent: DevAgent, mesh_faults: Faults) -> None:
    """A fault that a test begins is met by whoever asks, and ends with its block."""
    with mesh_faults.begin("fail", "roots"):
        assert httpx.get(mesh_agent.url + "/v1/agent/connect/ca/roots").status_code == 500
    assert httpx.get(mesh_agent.url + "/v1/agent/connect/ca/roots").status_code == 200
