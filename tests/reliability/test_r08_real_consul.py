"""R8, R1: the real Consul is killed, loses its memory, is paused, and gets a new CA under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from mesh_middleware import Mesh
from mesh_middleware.dev import ca

from ..interop.callers import Identity, connect, outsider_context
from ..interop.conftest import Serve
from ..support.consul import RealConsul
from ..support.servers import PATIENCE, until
from .apps import STREAMS

RECOVERY = 5.0
ROTATION = 45.0
"""Seconds for a new leaf after a new root: a real Consul spreads them over 30."""


@pytest.fixture
def consul() -> Iterator[RealConsul]:
    """One that nobody else needs."""
    with RealConsul() as started:
        yield started


@pytest.fixture
def mesh(consul: RealConsul) -> Iterator[Mesh]:
    """Joined and registered."""
    with Mesh(
        "tax", agent=consul.url, port=4711, service_id="tax-4711", check_ttl="2s", plugins=()
    ) as mesh:
        assert mesh.ready(PATIENCE), mesh.status()
        until(lambda: passing(consul), "the registration")
        yield mesh


def passing(consul: RealConsul) -> bool:
    """Whether callers would find the instance."""
    try:
        found = httpx.get(f"{consul.url}/v1/health/connect/tax?passing=1", timeout=2.0)
    except httpx.HTTPError:
        return False
    return found.status_code == 200 and [each["Service"]["ID"] for each in found.json()] == [
        "tax-4711"
    ]


def deny(consul: RealConsul) -> None:
    """Write a deny, in the form that every version takes."""
    body = {"SourceName": "web", "DestinationName": "tax", "SourceType": "consul", "Action": "deny"}
    answer = httpx.post(f"{consul.url}/v1/connect/intentions", json=body, timeout=PATIENCE)
    assert answer.status_code == 200, answer.text


def test_r08_real_consul_killed_and_without_memory(consul: RealConsul, mesh: Mesh) -> None:
    """
    ``kill -9``: what is known serves. Back from nothing: a new CA, taken in one step.

    The registration and its check come back by themselves, and policy is followed as before.
    """
    deny(consul)
    assert mesh.wait_for(lambda s: bool(s.intentions), PATIENCE)
    domain = mesh.status()["trust_domain"]
    consul.kill()
    until(lambda: mesh.status()["troubles"], "the silence")
    assert mesh.ready() and mesh.snapshot.intentions and mesh.outage_budget() > 3600
    consul.start()
    back = time.monotonic()
    assert mesh.wait_for(lambda s: s.roots is not None and s.roots.trust_domain != domain, PATIENCE)
    leaf, roots = mesh.snapshot.leaf, mesh.snapshot.roots
    assert leaf is not None and roots is not None and leaf.id.trust_domain == roots.trust_domain
    assert mesh.wait_for(lambda s: s.intentions == (), PATIENCE), "told twice, and believed"
    until(lambda: passing(consul), "the registration again")
    assert time.monotonic() - back < RECOVERY + 10.0, "the second look included"
    deny(consul)
    assert mesh.wait_for(lambda s: bool(s.intentions), RECOVERY)
    assert mesh.status()["events"]["trust_domain_changed"] == 1


def test_r08_real_consul_paused(consul: RealConsul, mesh: Mesh) -> None:
    """SIGSTOP for longer than the check lives: it ages out, and is back after SIGCONT."""
    before = mesh.snapshot
    os.kill(consul.pid, signal.SIGSTOP)
    try:
        until(lambda: mesh.status()["troubles"], "the silence")
        assert mesh.ready() and mesh.snapshot is before
    finally:
        os.kill(consul.pid, signal.SIGCONT)
    deny(consul)
    assert mesh.wait_for(lambda s: bool(s.intentions), RECOVERY)
    until(lambda: passing(consul), "the check")
    until(lambda: not mesh.status()["troubles"], "the end of trouble")


async def load(consul: RealConsul, port: int, over: asyncio.Event) -> Counter[str]:
    """Callers on kept and on new connections, each with the newest roots; any failure raises."""
    counts = Counter[str]()
    async with httpx.AsyncClient(base_url=consul.url, timeout=PATIENCE) as agent:

        async def identity(name: str) -> tuple[Identity, str]:
            told = (await agent.get(f"/v1/agent/connect/ca/leaf/{name}")).json()
            roots = (await agent.get("/v1/agent/connect/ca/roots")).json()["Roots"]
            trusted = "".join(root["RootCert"] for root in roots)
            return Identity.of(told["CertPEM"], told["PrivateKeyPEM"]), trusted

        async def stay(kind: str) -> None:
            who, trusted = await identity("web")
            tls = outsider_context(
                who.pem, roots=trusted, alpn="h2" if kind == "h2" else "http/1.1"
            )
            async with connect(kind, port, tls) as caller:
                while not over.is_set():
                    await ask(caller, who, kind)

        async def come_and_go() -> None:
            while not over.is_set():
                who, trusted = await identity("web")
                tls = outsider_context(who.pem, roots=trusted, alpn="http/1.1")
                async with connect("h1", port, tls) as caller:
                    await ask(caller, who, "new")

        async def ask(caller: Any, who: Identity, kind: str) -> None:
            (answer,) = await caller.ask("/who")
            assert (answer.status, answer.json["peer"]) == (200, who.uri)
            counts[kind] += 1
            await asyncio.wait([asyncio.ensure_future(over.wait())], timeout=0.05)

        async with asyncio.TaskGroup() as group:
            for kind in ("h1", "h2", "ws"):
                group.create_task(stay(kind))
            group.create_task(come_and_go())
    return counts


def rotate(consul: RealConsul) -> int:
    """A new root by the API; how many there are afterwards."""
    roots = httpx.get(f"{consul.url}/v1/agent/connect/ca/roots", timeout=PATIENCE).json()
    cluster = roots["TrustDomain"].removesuffix(".consul")
    certificate, key = ca.make_root(cluster, 4711, datetime.now(UTC))
    config = {"PrivateKey": ca.key_to_pem(key), "RootCert": ca.to_pem(certificate)}
    body = {"Provider": "consul", "Config": config}
    done = httpx.put(f"{consul.url}/v1/connect/ca/configuration", json=body, timeout=PATIENCE)
    assert done.status_code == 200, done.text
    return len(roots["Roots"]) + 1


@pytest.mark.timeout(120)
def test_r01_real_consul_rotates_its_ca_under_load(consul: RealConsul, serve: Serve) -> None:
    """A new root by the API while requests come over every protocol: none fails, then or after."""
    with ExitStack() as stack:
        server = serve(STREAMS, agent=consul.url, keep_alive_max_requests=1_000_000)
        observer = stack.enter_context(Mesh("tax", agent=consul.url, register=False, plugins=()))
        assert observer.ready(PATIENCE)
        old = observer.status()["serial_number"]

        async def scenario() -> Counter[str]:
            over = asyncio.Event()
            loading = asyncio.ensure_future(load(consul, server.port(), over))
            count = await asyncio.to_thread(rotate, consul)
            changed = asyncio.to_thread(
                observer.wait_for,
                lambda s: (
                    len(s.roots.certificates) == count and observer.status()["serial_number"] != old
                ),
                ROTATION,
            )
            done, _ = await asyncio.wait(
                {loading, asyncio.ensure_future(changed)}, return_when=asyncio.FIRST_COMPLETED
            )
            assert loading not in done, await loading
            over.set()
            return await loading

        counts = asyncio.run(asyncio.wait_for(scenario(), 100))
        assert min(counts[kind] for kind in ("h1", "h2", "ws", "new")) > 5, counts
        assert "Traceback" not in server.output, server.output
