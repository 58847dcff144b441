"""
Fixtures for tests of services in the mesh, for users' tests too.

Owns `mesh_agent` (a dev agent on a free port), `mesh_agents` (as many as wanted, with options),
`mesh_faults` (what goes wrong with it on purpose) and `mesh_identity` (a TLS context that calls as
some service). Nothing of this package is imported
until a test asks for one of them: the plugin costs nothing where it is not used.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .dev import DevAgent, Faults


@pytest.fixture
def mesh_agents() -> Iterator[Callable[..., DevAgent]]:
    """
    A function that starts dev agents with the options of `DevAgent`; all are closed after the test.

    Example:
        ``agent = mesh_agents(default_policy="deny", leaf_ttl=timedelta(minutes=2))``
    """
    from .dev import DevAgent

    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> DevAgent:
            return stack.enter_context(DevAgent(**options))

        yield start


@pytest.fixture
def mesh_agent(mesh_agents: Callable[..., DevAgent]) -> DevAgent:
    """A dev agent on a free port: default policy allow, ACLs off, nothing registered."""
    return mesh_agents()


@pytest.fixture
def mesh_faults(mesh_agent: DevAgent) -> Faults:
    """
    What goes wrong with `mesh_agent` on purpose.

    Example:
        ``with mesh_faults.begin("stall", "leaf"): ...``
    """
    return mesh_agent.faults


@pytest.fixture
def mesh_identity(mesh_agent: DevAgent, tmp_path: Path) -> Callable[..., ssl.SSLContext]:
    """
    A function that gives a client's TLS context with a certificate that `mesh_agent` issued: the
    options are those of `DevAgent.issue`, so that wrong certificates can be had as well.

    The server's chain is verified against the agent's roots, its name is not: in a mesh the
    identity is the SPIFFE ID, and a test's client has no need to doubt it.

    Example:
        ``httpx.get(url, verify=mesh_identity("invoice"))``
    """
    made = 0

    def context(service: str, **options: Any) -> ssl.SSLContext:
        nonlocal made
        made += 1
        chain, key = mesh_agent.issue(service, **options)
        path = tmp_path / f"mesh-identity-{made}.pem"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(chain + key)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname = False
        client.load_verify_locations(cadata=mesh_agent.roots_pem)
        client.load_cert_chain(path)
        path.unlink()
        return client

    return context
