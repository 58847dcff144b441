"""More upstreams than an agent lets one address ask about at once."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from mesh_middleware import Mesh
from mesh_middleware.consul.lookout import AgentReturnedError
from mesh_middleware.consul.shifts import HELD, RATE, ROUND, Shift
from mesh_middleware.consul.watch import Cursor

from ..support.consul import RealConsul
from ..support.steps import yield_once
from .support import PATIENCE

COUNT = 240
"""More than the 200 connections that Consul grants an address."""


@pytest.mark.process
@pytest.mark.timeout(120)
def test_more_upstreams_than_the_agent_grants_connections() -> None:
    """
    240 upstreams at a real Consul as it is installed, which grants 200 connections: all are told,
    nothing is in trouble, a change is noticed within a round, with a handful of sockets and no
    thread more than for one upstream. (1,000: ``python -m bench.upstreams_scale``.)
    """
    with (
        RealConsul() as consul,
        httpx.Client(base_url=consul.url, trust_env=False) as agent,
        Mesh("order", agent=consul.url, register=False, plugins=()) as mesh,
    ):

        def register(name: str, port: int) -> None:
            native = {"Name": name, "ID": f"{name}-{port}", "Address": "127.0.0.1", "Port": port}
            body = native | {"Connect": {"Native": True}}
            agent.put("/v1/agent/service/register", json=body).raise_for_status()

        for number in range(COUNT):
            register(f"svc-{number}", 1000)
        assert mesh.wait_for(lambda snapshot: snapshot.ready, PATIENCE)
        mesh.upstream("svc-0").wait(PATIENCE)
        threads, files = threading.active_count(), open_files()
        upstreams = [mesh.upstream(f"svc-{number}") for number in range(COUNT)]
        for upstream in upstreams:
            assert len(upstream.wait(60)) == 1
        assert mesh.status()["troubles"] == {}
        assert threading.active_count() == threads
        assert open_files() - files <= 2 * HELD
        last, began = upstreams[-1], time.monotonic()
        register(f"svc-{COUNT - 1}", 1001)
        assert last.wait_for(lambda state: len(state.instances) == 2, 2 * ROUND)
        print("seconds until a change was noticed", time.monotonic() - began)
        assert mesh.status()["troubles"] == {}


def open_files() -> int:
    """Descriptors of this process."""
    return len(os.listdir(Path("/proc/self/fd")))


def test_turns_are_as_long_as_the_round_allows() -> None:
    """With a place for each, as long as the settings say; then shorter, but never nothing."""
    shift = Shift()
    members = [shift.member() for _ in range(100_000)]
    for member in members[:HELD]:
        member.__enter__()
    assert shift.hold(300.0) == 300.0
    for member in members[HELD : 2 * HELD]:
        member.__enter__()
    assert (shift.hold(300.0), shift.hold(1.0)) == (ROUND / 2, 1.0)
    for member in members[2 * HELD :]:
        member.__enter__()
    assert shift.hold(300.0) == HELD / RATE
    for member in members[HELD:]:
        member.__exit__(None, None, None)
    assert shift.hold(300.0) == 300.0


def test_who_sits_gets_up_when_there_are_more_than_places() -> None:
    """Two places, held for minutes: the third watch ends both, plain questions wait for neither,
    and all three have their turn."""

    async def run() -> None:
        shift, asked, ended = Shift(held=2), Cursor(index=7), asyncio.Event()
        held: list[float] = []

        async def send(wait: float) -> str:
            held.append(wait)
            await ended.wait()
            return "answer"

        async def at_once(wait: float) -> str:
            return "at once"

        with shift.member(), shift.member():
            first = [asyncio.ensure_future(shift.ask(asked, send)) for _ in range(2)]
            await in_turn(lambda: len(held) == 2)
            assert held == [300.0, 300.0]
            assert await shift.ask(Cursor(), at_once) == "at once"
            with shift.member():
                for one in first:
                    with pytest.raises(AgentReturnedError):
                        await one
                again = [asyncio.ensure_future(shift.ask(asked, send)) for _ in range(3)]
                await in_turn(lambda: len(held) == 4)
                assert held[2:] == [ROUND * 2 / 3] * 2
                again[0].cancel()
                await in_turn(lambda: len(held) == 5)
                ended.set()
                found = await asyncio.gather(*again, return_exceptions=True)
                assert isinstance(found[0], asyncio.CancelledError)
                assert found[1:] == ["answer", "answer"]

    asyncio.run(run())


async def in_turn(condition: object) -> None:
    """Let the loop go round until *condition* holds."""
    assert callable(condition)
    for _ in range(1000):
        if condition():
            return
        await yield_once()
    raise AssertionError("it never came")
