"""R9: several workers, replaced while they serve: one registration, and no gap."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from mesh_middleware.dev import Answer, DevAgent, Request

from ..interop.callers import knock
from ..interop.conftest import Serve
from ..interop.test_hypercorn import body, caller, healthy, registered
from ..support.servers import PATIENCE, Hypercorn, until
from .apps import STREAMS
from .conftest import LONG

WORKERS = 4
READY = 2.0
"""Seconds that a worker may need from the first line of its application until it serves."""
BEGUN = """
import os
import time

# At once: what two workers print may be mixed, even within a line.
os.write(1, f"application of {os.getpid()} begins at {time.monotonic()}\\n".encode())
"""


class Watched:
    """What the agent was told of registrations, and the longest time without a passing instance."""

    def __init__(self, agent: DevAgent) -> None:
        self._agent = agent
        self.registers = self.deregisters = 0
        self.gap = 0.0
        self.ids: set[str] = set()
        self._over = threading.Event()
        agent.interpose = self._note
        self._thread = threading.Thread(target=self._look, daemon=True)

    async def _note(self, request: Request) -> Answer | None:
        self.registers += request.path.endswith("/service/register")
        self.deregisters += "/service/deregister/" in request.path
        return None

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)

    def _look(self) -> None:
        last = time.monotonic()
        while not self._over.wait(0.01):
            services, checks = (
                self._agent.state.services.services,
                self._agent.state.services.checks,
            )
            self.ids |= set(services)
            passing = any(check.status == "passing" for check in list(checks.values()))
            now = time.monotonic()
            if passing:
                self.gap, last = max(self.gap, now - last), now


@pytest.mark.timeout(120)
def test_r09_every_worker_is_ready_and_one_registers(agent: DevAgent, serve: Serve) -> None:
    """
    Four workers: one registration, and each serves within two seconds of its own application.

    Before it has joined it would wait for three seconds. The two are asserted in the long form, for
    which the machine has nothing else to do.
    """
    began = time.monotonic()
    server = serve(BEGUN + STREAMS, workers=WORKERS, listeners=0)
    with Watched(agent) as watched:
        took = [ready_after(server, worker) for worker in range(WORKERS)]
        print("seconds from a worker's application to its port:", *(f"{t:.2f}" for t in took))
        assert max(took) < READY if LONG else took
        healthy(agent, 1)
        started = time.monotonic()
        invoice = caller(agent)
        pids: set[int] = set()
        until(
            lambda: pids.add(pid_of(server.port(), invoice.pem)) or len(pids) == WORKERS, "all four"
        )
        assert time.monotonic() - started < 10.0, "from the first to the last, chance included"
    assert watched.ids == {f"tax-127.0.0.1-{server.port()}"} and watched.registers <= 1
    server.stop()
    assert registered(agent) == {}
    assert time.monotonic() - began < 60


def ready_after(server: Hypercorn, worker: int) -> float:
    """Seconds from the beginning of an application until its worker serves; the next to do so."""
    line = server.wait_output(r"\[(\d+)\] \[INFO\] Running on", count=worker + 1)[worker]
    now = time.monotonic()
    (begun,) = server.wait_output(rf"application of {line[1]} begins at (\S+)")
    return now - float(begun[1])


def pid_of(port: int, pem: str) -> Any:
    """Which worker has answered."""
    return body(knock(port, pem))["pid"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 2])
def test_r09_replaced_workers_leave_no_gap(workers: int, agent: DevAgent, serve: Serve) -> None:
    """
    ``max_requests``: each worker ends after some requests, the owner of the registration, too.

    The instance passes all the while: the next worker takes over what the last one left.
    """
    server = serve(
        STREAMS, workers=workers, listeners=workers, max_requests=5, max_requests_jitter=3
    )
    healthy(agent, 1)
    invoice, pids = caller(agent), set()

    def served() -> bool:
        answer = knock(server.port(), invoice.pem)
        if answer.startswith(b"HTTP/1.1 200"):
            pids.add(body(answer)["pid"])
        return len(pids) >= workers + 3

    with Watched(agent) as watched:
        until(served, "three replaced workers", 60.0)
        until(lambda: watched.registers >= 1, "an owner that was replaced", 60.0)
    assert watched.deregisters == 0
    assert watched.gap < 2.0
    assert watched.ids == {f"tax-127.0.0.1-{server.port()}"}
    # One that has just come: while the only worker is being replaced there is none to deregister.
    known = set(pids)
    until(lambda: (served() or True) and pids - known, "a fresh worker", 60.0)
    server.stop()
    assert registered(agent) == {}
    assert "Traceback" not in server.output, server.output
