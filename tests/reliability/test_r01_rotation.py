"""R1: leaf and roots rotate while two hundred connections are in use."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from pathlib import Path

import pytest
from cryptography import x509

from mesh_middleware import AsyncClient, Mesh
from mesh_middleware.dev import DevAgent

from ..interop.callers import Caller, Http1, Identity, connect, outsider_context
from ..interop.conftest import Serve
from ..support.servers import PATIENCE
from .apps import STREAMS
from .conftest import LONG

CONNECTIONS = {"h1": 100, "h2": 50, "ws": 50}
IDENTITIES = 20
SECONDS = 300.0 if LONG else 8.0
"""Of each worker class: ten minutes in the long form."""
LEAF_EVERY = 2.0 if LONG else 0.5
RENEWALS = int(SECONDS / LEAF_EVERY)
PAUSE = 0.5
"""Seconds between the requests of one connection; the connections are what is many."""
WARM = 15.0 if LONG else 2.0
"""Seconds after which the memory of the worker is that of one at work."""
GROWTH = 1.25
"""How many times as much it may have in the end."""
GRACE = 2.0
"""Seconds after which no new connection is shown a leaf that was replaced."""


class Crowd:
    """Callers that never stop, on connections that stay open and on new ones."""

    def __init__(self, agent: DevAgent, port: int) -> None:
        self.agent, self.port = agent, port
        self.requests: Counter[str] = Counter()
        self.wrong: list[object] = []
        self.serials: list[tuple[float, int]] = []
        self.memory: list[float] = []
        self._stop = asyncio.Event()
        self._identities = [
            Identity.of(*agent.issue(f"source-{number}")) for number in range(IDENTITIES)
        ]

    async def run(self) -> None:
        """Call, and change certificates meanwhile."""
        async with asyncio.TaskGroup() as group:
            number = 0
            for kind, count in CONNECTIONS.items():
                for _ in range(count):
                    group.create_task(self._stay(kind, number))
                    number += 1
                group.create_task(self._come_and_go(kind))
            group.create_task(self._call_ourselves())
            group.create_task(self._rotate())
            group.create_task(self._weigh())

    async def _weigh(self) -> None:
        """How much memory the worker has, warm and in the end."""
        tls = self._tls("h1", self._identities[0])
        async with connect("h1", self.port, tls) as caller:
            pid = (await caller.ask("/who"))[0].json["pid"]
        for seconds in (WARM, SECONDS):
            await self._pause(seconds)
            self.memory.append(resident(pid))

    async def _rotate(self) -> None:
        rotations = {RENEWALS // 4, RENEWALS // 2, 3 * RENEWALS // 4}
        for renewal in range(RENEWALS):
            await self._pause(LEAF_EVERY)
            if renewal in rotations:
                self.agent.rotate_ca()
            for service in ("tax", "order"):
                self.agent.renew(service)
            newest = serial_of(self.agent.state.leaves["tax"].leaf.chain_pem)
            self.serials.append((time.monotonic(), newest))
        self._stop.set()

    async def _stay(self, kind: str, number: int) -> None:
        identity = self._identities[number % IDENTITIES]
        async with connect(kind, self.port, self._tls(kind, identity)) as caller:
            while not self._stop.is_set():
                await self._ask(kind, caller, identity)
                await self._pause(PAUSE)

    async def _come_and_go(self, kind: str) -> None:
        number = 0
        while not self._stop.is_set():
            identity = Identity.of(*self.agent.issue(f"source-{number % IDENTITIES}"))
            oldest = self._oldest(time.monotonic() - GRACE)
            async with connect(kind, self.port, self._tls(kind, identity)) as caller:
                if isinstance(caller, Http1) and caller.serial < oldest:
                    self.wrong.append(f"leaf {caller.serial}, {oldest} has replaced it")
                await self._ask(f"new {kind}", caller, identity)
            number += 1

    def _oldest(self, moment: float) -> int:
        """The leaf that was the newest at *moment*; serial numbers grow."""
        return max((serial for at, serial in self.serials if at <= moment), default=0)

    async def _call_ourselves(self) -> None:
        """Our own client, whose certificate and roots change like the server's."""
        with Mesh("order", agent=self.agent.url) as mesh:
            assert await asyncio.to_thread(mesh.ready, PATIENCE)
            leaf = mesh.snapshot.leaf
            assert leaf is not None
            async with AsyncClient(mesh) as client:
                while not self._stop.is_set():
                    answer = await client.get("https://tax/who")
                    self.requests["ours"] += 1
                    if (answer.status_code, answer.json()["peer"]) != (200, leaf.id.uri):
                        self.wrong.append((answer.status_code, answer.text))
                    await self._pause(0.02)

    async def _ask(self, kind: str, caller: Caller, identity: Identity) -> None:
        (answer,) = await caller.ask("/who")
        self.requests[kind] += 1
        if (answer.status, answer.json["peer"]) != (200, identity.uri):
            self.wrong.append((answer.status, answer.json, identity.uri))

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return

    def _tls(self, kind: str, identity: Identity) -> ssl.SSLContext:
        alpn = "h2" if kind == "h2" else "http/1.1"
        return outsider_context(identity.pem, roots=self.agent.roots_pem, alpn=alpn)


def resident(pid: int) -> float:
    """Memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def serial_of(pem: str) -> int:
    """The serial number of the first certificate."""
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("worker", ["asyncio", "uvloop"])
def test_r01_rotation_under_load(worker: str, agent: DevAgent, serve: Serve) -> None:
    """
    Leaf after leaf and three new roots: no failed request, no failed handshake, no wrong identity.

    Who connects anew trusts the roots of that very moment, and looks which leaf it is shown: one
    that is served too early, or too long, fails. So does any failure of a connection or request,
    those of our own client among them. Dozens of connections a second come and go: in the long
    form a worker that kept something of each would have a multiple of its memory in the end.
    """
    server = serve(STREAMS, worker_class=worker, backlog=1024, keep_alive_timeout=60,
                   keep_alive_max_requests=1_000_000)  # fmt: skip
    crowd = Crowd(agent, server.port())
    asyncio.run(asyncio.wait_for(crowd.run(), SECONDS + 40))
    assert crowd.wrong == []
    assert all(crowd.requests[kind] >= count for kind, count in CONNECTIONS.items())
    assert all(crowd.requests[f"new {kind}"] > 5 for kind in CONNECTIONS), crowd.requests
    assert crowd.requests["ours"] > 5
    assert len(agent.state.ca.roots) == 4
    warm, last = crowd.memory
    print(f"{dict(crowd.requests)}; {warm:.1f} MiB after {WARM:g} s, {last:.1f} MiB in the end")
    assert last < GROWTH * warm or not LONG
    assert "Traceback" not in server.output
