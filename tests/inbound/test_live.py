"""A request is alive until the last byte of its answer; sweeps over live requests yield."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from mesh_middleware import MeshAuthz
from mesh_middleware.doors import Caller, Door, Verdict
from mesh_middleware.gate import UNBOUND, Bond, _bond
from mesh_middleware.inbound.judgement import SERVER_SEND, Judgement
from mesh_middleware.intentions import Reason, decision
from mesh_middleware.live import SLICE, TARGET_COST, LiveRequests

from ..support.doors import Exchange, Inside
from ..support.servers import PATIENCE


@pytest.fixture(scope="module")
def inside() -> Iterator[Inside]:
    """tax, which denies order; the default is allow."""
    with Inside() as inside:
        inside.agent.deny("order", "tax")
        assert inside.mesh.wait_for(lambda seen: bool(seen.intentions), PATIENCE)
        yield inside


class Over:
    """What a connection stands on that has lost it: its root was dropped, or its age reached."""

    def over(self) -> bool:
        """It is."""
        return True


class Afterwards:
    """An application that answers, and then goes on working."""

    def __init__(self, more: bool) -> None:
        self.more, self.begun, self.go = more, asyncio.Event(), asyncio.Event()
        self.done = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": self.more})
        self.begun.set()
        await self.go.wait()
        self.done = True


class Streams:
    """Tells the state of streams as a server does."""

    def __init__(self) -> None:
        self.complete: set[Any] = set()

    def is_complete(self, send: object) -> bool:
        """Whether the test said so."""
        return send in self.complete


def denied_meanwhile(inside: Inside, app: Afterwards, bond: Bond | None = None) -> None:
    """Let vat's answer begin, deny vat, sweep, and let the application go on."""

    async def work() -> None:
        if bond is not None:
            _bond.set(bond)
        door = MeshAuthz(app, mesh=inside.mesh)
        task = asyncio.create_task(Exchange(**{SERVER_SEND: object()}).through(door))
        await app.begun.wait()
        if bond is None:
            inside.agent.deny("vat", "tax")
            denies = lambda seen: len(seen.intentions or ()) == 2  # noqa: E731
            assert await asyncio.to_thread(inside.mesh.wait_for, denies, PATIENCE)
        door._live.sweep()
        app.go.set()
        await task

    try:
        inside.run(work, "vat")
    finally:
        inside.agent.delete("vat", "tax")
        assert inside.mesh.wait_for(lambda seen: len(seen.intentions or ()) == 1, PATIENCE)


@pytest.mark.parametrize("more", [False, True], ids=["complete", "under way"])
@pytest.mark.parametrize("lost", ["allowed", "connection"])
def test_what_runs_after_the_last_byte_is_the_applications(
    more: bool, lost: str, inside: Inside
) -> None:
    """It is cancelled only while the answer is under way; whatever the caller has lost."""
    app = Afterwards(more)
    bond = None if lost == "allowed" else Bond(inside.peer("vat"), Over())  # type: ignore[arg-type]
    denied_meanwhile(inside, app, bond)
    assert app.done is not more


@pytest.mark.parametrize("complete", [True, False])
def test_the_servers_word_on_its_streams_counts(complete: bool, inside: Inside) -> None:
    """Where it tells, what the application sends is not looked at."""
    streams = Streams()

    class Telling(Afterwards):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if complete:
                streams.complete.add(scope[SERVER_SEND])
            await super().__call__(scope, receive, send)

    inside.mesh.server = streams
    try:
        app = Telling(more=not complete)
        denied_meanwhile(inside, app)
    finally:
        inside.mesh.server = None
    assert app.done is complete


def request(path: bytes = b"/") -> Judgement:
    """A request that was let in, of nobody."""
    verdict = Verdict(True, Caller(None, decision(Reason.EXEMPT), None))
    return Judgement(UNBOUND, (), verdict, {"path": "/", "raw_path": path}, Door())


@pytest.mark.parametrize("length", [1, 100, 2000, 60_000])
def test_a_sweep_judges_so_many_in_one_turn_of_the_loop(length: int) -> None:
    """Others have their turn in between; each is judged, and newcomers do not stop it."""
    judged: list[int] = []
    turns: list[int] = []

    async def scenario() -> None:
        live = LiveRequests(lambda each: bool(judged.append(1)))
        waiting = [asyncio.create_task(wait(live)) for _ in range(380)]
        while len(live) < 380:
            await Turn()
        live.sweep()
        while len(judged) < 380:
            turns.append(len(judged))
            live.sweep()  # a policy that changes all the time
            await Turn()
        turns.append(len(judged))
        for task in waiting:
            task.cancel()

    async def wait(live: LiveRequests) -> None:
        task = live.enter(request(b"/" * length))
        assert task is not None
        try:
            await asyncio.Event().wait()
        finally:
            live.leave(task)

    asyncio.run(scenario())
    steps = [after - before for before, after in zip(turns, turns[1:], strict=False)]
    assert max(steps) <= -(-SLICE // (TARGET_COST + length))


class Turn:
    """One turn of the loop."""

    def __await__(self) -> Iterator[None]:
        yield


def test_a_sweep_on_trio_yields_too() -> None:
    """Judged in turns there, too, and each of them."""
    judged: list[Any] = []

    async def scenario() -> None:
        live = LiveRequests(lambda each: bool(judged.append(each)))

        async def wait() -> None:
            await live.run_on_trio(trio.Event().wait(), request(b"/" * 5000))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(wait)
            while len(live) < 20:
                await trio.lowlevel.checkpoint()
            live.sweep()
            assert len(judged) == 1
            with trio.fail_after(PATIENCE):
                while len(judged) < 20:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    trio.run(scenario)
    assert len({id(each) for each in judged}) == 20


def test_a_live_request_is_judged_once_for_each_snapshot(inside: Inside) -> None:
    """Sweeps that come every few seconds do no work for a policy that is the same."""
    judged: list[Any] = []
    app = Afterwards(more=True)

    async def work() -> None:
        door = MeshAuthz(app, mesh=inside.mesh)
        passes = door.door.passes_still
        door.door.passes_still = lambda *given: judged.append(given) or passes(*given)  # type: ignore[method-assign,func-returns-value]
        task = asyncio.create_task(Exchange("/long/" + "a/..;x//" * 100).through(door))
        await app.begun.wait()
        for _ in range(3):
            door._live.sweep()
        app.go.set()
        await task

    inside.run(work, "vat")
    assert len(judged) == 1
