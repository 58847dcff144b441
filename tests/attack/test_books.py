"""What is counted and told of requests is one verdict each, however long they live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from mesh_middleware import MeshAuthz
from mesh_middleware.intentions import Decision, Reason
from mesh_middleware.plugins import hookimpl

from ..support.doors import Exchange, Inside


class Listener:
    """A plugin that hears of verdicts."""

    def __init__(self) -> None:
        self.told: list[Reason] = []

    @hookimpl
    def mesh_decision(self, decision: Decision) -> None:
        self.told.append(decision.reason)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def inside(listener: Listener) -> Iterator[Inside]:
    with Inside(plugins=[listener]) as inside:
        yield inside


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
def test_a_long_request_is_one_request_in_the_books(
    mode: Any, inside: Inside, listener: Listener
) -> None:
    """It is judged again and again while it lives; what stays is booked no second time."""
    if mode == "shadow":
        inside.agent.deny("invoice", "tax")
        assert inside.mesh.wait_for(lambda s: bool(s.intentions), 5)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(10):
            door._live.sweep()

    door = MeshAuthz(app, mesh=inside.mesh, mode=mode)
    inside.run(lambda: Exchange("/x").through(door))
    reason = Reason.DEFAULT_ALLOW if mode == "enforce" else Reason.INTENTION_DENY
    assert inside.mesh.counts == {reason: 1}
    assert listener.told == [reason]
    assert sum(inside.mesh.shadowed.values()) == (mode == "shadow")


def test_its_end_is_booked_once(inside: Inside, listener: Listener) -> None:
    """Where the second verdict is another one, it is told like any denial."""
    here = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        here.set()
        await asyncio.Event().wait()

    door = MeshAuthz(app, mesh=inside.mesh)

    async def work() -> None:
        task = asyncio.create_task(Exchange("/x").through(door))
        await here.wait()
        inside.agent.deny("invoice", "tax")
        await task

    inside.run(work)
    assert listener.told == [Reason.DEFAULT_ALLOW, Reason.INTENTION_DENY]
