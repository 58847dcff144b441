"""R12: SIGTERM with a hundred requests in flight."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from mesh_middleware.dev import Answer, DevAgent, Request

from ..interop.callers import HOST, Http1, outsider_context
from ..interop.conftest import Serve
from ..interop.test_hypercorn import caller, healthy, registered
from ..support.servers import Hypercorn, until
from .apps import SLOW

IN_FLIGHT = 100


class Order:
    """What the agent was told of the end, in order."""

    def __init__(self, agent: DevAgent) -> None:
        self.told: list[str] = []
        agent.interpose = self._note

    async def _note(self, request: Request) -> Answer | None:
        if b"stopping" in request.body:
            self.told.append("critical")
        elif "/service/deregister/" in request.path:
            self.told.append("deregistered")
        return None


async def hundred(agent: DevAgent, server: Hypercorn) -> tuple[list[int], float]:
    """Send all, then the signal; the statuses, and when the first answer was there."""
    tls = outsider_context(caller(agent).pem)
    connections = [Http1(server.port(), tls) for _ in range(IN_FLIGHT)]
    await asyncio.gather(*(connection.open() for connection in connections))
    asked = [asyncio.ensure_future(connection.ask("/slow")) for connection in connections]
    # Each takes a second: sent before the signal, answered after it.
    for connection in connections:
        await connection._writer.drain()
    server.signal(signal.SIGTERM)
    began = time.monotonic()
    statuses = [(await asking)[0].status for asking in asked]
    return statuses, time.monotonic() - began


@pytest.mark.timeout(90)
@pytest.mark.parametrize("workers", [1, 2])
def test_r12_all_in_flight_finish(workers: int, agent: DevAgent, serve: Serve) -> None:
    """
    None is lost, with one worker or two: critical first, then deregistered, then the drain.

    The server has ended by itself, well within its term, and nothing of it is left.
    """
    server = serve(SLOW, workers=workers, listeners=workers, backlog=1024, graceful_timeout=10)
    healthy(agent, 1)
    order = Order(agent)
    statuses, took = asyncio.run(hundred(agent, server))
    assert statuses == [200] * IN_FLIGHT
    assert server.wait_end() == 0
    until(lambda: registered(agent) == {}, "the deregistration")
    assert order.told[:2] == ["critical", "deregistered"]
    assert took < 10.0 and HOST
    assert "Traceback" not in server.output, server.output
