"""
``make soak MINUTES=n``: a service under load for a while, and what it leaves behind.

Owns one Hypercorn worker on the dev agent, callers on kept and on new connections, a policy that
flips and a leaf that is renewed; and the judgement: no failed request, no growth of memory, files,
threads or tasks. Linux only: reads ``/proc``.

Source: reliability.md, R7.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import ssl
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mesh_middleware.dev import DevAgent

from .processes import Process, Processes, private_bytes

FLIP_EVERY = 5.0
LEAF_EVERY = 30.0
SAMPLE_EVERY = 5.0
SAYS_EVERY = 60.0
CALLERS = 20
RATE = 10.0
"""Requests per second of one caller."""
FRESH_EVERY = 0.5
"""Seconds between connections that are made for one request."""
FLIP_GRACE = 1.0
"""Seconds around a flip in which the flipped caller may be answered either way."""
WARM_PART = 0.3
"""Part of the run that counts as warm-up."""
HASTE = 8.0
"""How many times as much happens in it: an allocator that has seen many thousand requests, policies
and leafs has what it needs, and asks for more only when something leaks."""
MAX_SLOPE = 1.0
"""MiB per hour."""
SLOPE_SECONDS = 240.0
"""A shorter run does not tell a slope from the noise of the allocator: a page in a second is 14 MiB
in an hour."""
COUNTED = ("files", "threads", "tasks")
SPARE = 3
"""Files, threads or tasks that may come and go."""

APP = """
import asyncio
import gc

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz


async def who(request):
    return JSONResponse({"peer": request.state.mesh.peer.id.name})


async def inside(request):
    mesh = request.state.mesh.mesh
    return JSONResponse(
        {
            "tasks": len(asyncio.all_tasks()),
            "watches": len(mesh._watcher._tasks),
            "garbage": len(gc.garbage),
            "troubles": mesh.status()["troubles"],
        }
    )


app = Starlette(routes=[Route("/who", who), Route("/inside", inside)])
app.add_middleware(MeshAuthz)
"""
MESH = """
bind = "127.0.0.1:{port}"
certfile = "mesh"
keyfile = "mesh"
[mesh]
service = "tax"
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the worker held at one moment; memory in bytes."""

    at: float
    memory: int
    files: int
    threads: int
    tasks: int


@dataclass
class Tally:
    """What the callers saw."""

    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    connections: int = 0


class Connection:
    """One HTTP/1.1 connection, made anew when the server ends it."""

    def __init__(self, port: int, tls: ssl.SSLContext, tally: Tally) -> None:
        self._port, self._tls, self._tally = port, tls, tally
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, path: str) -> tuple[int, bytes]:
        """Send one request; status and body."""
        if self._open is None:
            self._tally.connections += 1
            self._open = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls)
        reader, writer = self._open
        writer.write(f"GET {path} HTTP/1.1\r\nHost: tax\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split("\r\n")[0])
        body = await reader.readexactly(length)
        if "connection: close" in head:
            self.close()
        return int(head.split(" ")[1]), body

    def close(self) -> None:
        """End it."""
        if self._open is not None:
            self._open[1].transport.abort()
            self._open = None


class Soak:
    """
    One run.

    Args:
        agent: changes policy and leaf.
        worker: process id that is watched.
        port: it serves at.
        seconds: how long.
    """

    def __init__(self, agent: DevAgent, worker: int, port: int, seconds: float) -> None:
        self._agent, self._worker, self._port, self._seconds = agent, worker, port, seconds
        # A short run has as many of everything as are needed to judge it.
        self._flip_every = min(FLIP_EVERY, seconds / 6)
        self._leaf_every = min(LEAF_EVERY, seconds / 6)
        self._sample_every = min(SAMPLE_EVERY, seconds / 16)
        self.tally, self.samples = Tally(), list[Sample]()
        self._denied, self._flipped = False, 0.0
        self.garbage = 0

    async def run(self) -> None:
        """Let everything happen until the time is over."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._call(f"source-{number}"))
            group.create_task(self._call("flipper"))
            group.create_task(self._call_anew())
            group.create_task(self._flip())
            group.create_task(self._renew())
            group.create_task(self._watch())

    async def _pause(self, seconds: float) -> None:
        warm = time.monotonic() - self._began < WARM_PART * self._seconds
        await asyncio.sleep(seconds / HASTE if warm else seconds)

    def _goes_on(self) -> bool:
        return time.monotonic() - self._began < self._seconds

    async def _call(self, name: str) -> None:
        connection = self._connection(name)
        while self._goes_on():
            await self._pause(random.expovariate(RATE))
            await self._once(connection, name)
        connection.close()

    async def _call_anew(self) -> None:
        while self._goes_on():
            await self._pause(FRESH_EVERY)
            connection = self._connection("fresh")
            await self._once(connection, "fresh")
            connection.close()

    async def _once(self, connection: Connection, name: str) -> None:
        self.tally.requests += 1
        try:
            status, body = await connection.ask("/who")
        except (OSError, EOFError, ValueError) as error:
            self.tally.failed[type(error).__name__] += 1
            connection.close()
            return
        wanted = 403 if name == "flipper" and self._denied else 200
        unsure = name == "flipper" and time.monotonic() - self._flipped < FLIP_GRACE
        if status != wanted and not unsure:
            self.tally.failed[f"{name} got {status}"] += 1
        elif status == 200 and json.loads(body)["peer"] != name:
            self.tally.failed["wrong identity"] += 1

    async def _flip(self) -> None:
        while self._goes_on():
            await self._pause(self._flip_every)
            self._denied, self._flipped = not self._denied, time.monotonic()
            (self._agent.deny if self._denied else self._agent.allow)("flipper", "tax")
            self._flipped = time.monotonic()

    async def _renew(self) -> None:
        while self._goes_on():
            await self._pause(self._leaf_every)
            self._agent.renew("tax")

    async def _watch(self) -> None:
        connection, said = self._connection("watcher"), -SAYS_EVERY
        while self._goes_on():
            await asyncio.sleep(self._sample_every)
            _, body = await connection.ask("/inside")
            connection.close()  # before the server does: it is idle until the next sample
            told = json.loads(body)
            self.garbage = max(self.garbage, told["garbage"])
            self._take(told["tasks"] + told["watches"])
            if time.monotonic() - said > SAYS_EVERY:
                said = time.monotonic()
                print("  " + self.line(), flush=True)

    def _take(self, tasks: int) -> None:
        proc = Path(f"/proc/{self._worker}")
        files, threads = len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))
        at = time.monotonic() - self._began
        self.samples.append(Sample(at, private_bytes(self._worker), files, threads, tasks))

    def line(self) -> str:
        """How it stands, in one line."""
        last, failed = self.samples[-1], self.tally.failed.total()
        return (
            f"{last.at:5.0f} s  {self.tally.requests} requests, {failed} failed; "
            f"{last.memory / 2**20:.1f} MiB, {last.files} files, {last.threads} threads, "
            f"{last.tasks} tasks"
        )

    def _connection(self, name: str) -> Connection:
        return Connection(self._port, _context(self._agent, name), self.tally)


def slope(samples: Sequence[Sample]) -> float:
    """Growth of memory in MiB per hour: the median of the slopes of all pairs (Theil and Sen)."""
    half = len(samples) // 2
    pairs = zip(samples[:half], samples[-half:], strict=True)
    found = [(b.memory - a.memory) / (b.at - a.at) for a, b in pairs]
    return statistics.median(found) * 3600 / 2**20


def growth(samples: Sequence[Sample], what: str) -> int:
    """
    How many more there are at the end: lowest of the last third less that of the first.

    What is in flight comes and goes; what leaks is never gone again.
    """
    third = max(1, len(samples) // 3)
    values = [getattr(sample, what) for sample in samples]
    return int(min(values[-third:]) - min(values[:third]))


def judge(soak: Soak) -> list[str]:
    """Tell the figures; returns what is wrong: nothing, when all is well."""
    settled = _settled(soak.samples)
    grown = {what: growth(settled, what) for what in COUNTED}
    print(f"  memory {slope(settled):+.2f} MiB/h after warm-up; growth " + json.dumps(grown))
    print(f"  {soak.tally.requests} requests, {soak.tally.connections} connections, "
          f"failed: {dict(soak.tally.failed) or 'none'}; gc.garbage {soak.garbage}")  # fmt: skip
    return faults(soak.samples, soak.tally.failed, soak.garbage)


def faults(samples: Sequence[Sample], failed: Mapping[str, int], garbage: int) -> list[str]:
    """
    What is wrong with a run.

    Args:
        failed: requests that did, per kind.
        garbage: objects that could not be collected.
    """
    settled = _settled(samples)
    wrong = [f"{what} grew by {by}" for what in COUNTED if (by := growth(settled, what)) > SPARE]
    climbs = slope(settled)
    if climbs > MAX_SLOPE and settled[-1].at - settled[0].at >= SLOPE_SECONDS:
        wrong.append(f"memory grows by {climbs:.2f} MiB/h, {MAX_SLOPE:g} are allowed")
    if failed:
        wrong.append(f"{sum(failed.values())} requests failed")
    if garbage:
        wrong.append("gc.garbage is not empty")
    return wrong


def _settled(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if sample.at >= WARM_PART * samples[-1].at]


def _context(agent: DevAgent, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=agent.roots_pem)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("".join(agent.issue(name)))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _serve(folder: Path, agent: DevAgent, started: Processes) -> tuple[Process, int]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "app.py").write_text(APP)
    (folder / "mesh").write_text(MESH.format(port=port))
    program = str(Path(sys.executable).with_name("hypercorn"))
    command = [program, "--config", "mesh", "app:app"]
    variables = {"MESH_AGENT": agent.url, "MESH_PLUGINS": "false"}
    process = started.start("soak", command, folder, variables)
    until = time.monotonic() + 20
    while "Running on" not in process.log():
        if time.monotonic() > until or not process.alive:
            raise SystemExit(f"the server did not start:\n{process.log()}")
        time.sleep(0.05)
    process.settle()
    return process, port


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; 0 when nothing failed and nothing grew."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES") or 10))
    minutes = parser.parse_args(arguments).minutes
    print(f"soak: {minutes:g} min, {CALLERS} callers at {RATE:g} requests/s, policy every "
          f"{FLIP_EVERY:g} s, leaf every {LEAF_EVERY:g} s")  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="mesh-soak-") as folder,
        DevAgent() as agent,
        Processes() as started,
    ):
        process, port = _serve(Path(folder), agent, started)
        (worker,) = process.workers()
        soak = Soak(agent, worker, port, minutes * 60)
        asyncio.run(soak.run())
    wrong = judge(soak)
    print("soak: " + ("; ".join(wrong) if wrong else "nothing failed, nothing grew"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
