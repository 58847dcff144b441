"""How long, and how often, an application may go on for a caller that is gone; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.asyncio.task_group
import hypercorn.asyncio.worker_context
import hypercorn.trio.task_group
import hypercorn.trio.worker_context
import pytest
import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.events import Body, EndBody, Request, StreamClosed
from hypercorn.typing import ConnectionState
from hypercorn.utils import UnexpectedMessageError
from starlette.requests import ClientDisconnect
from starlette.websockets import WebSocketDisconnect

from mesh_middleware.servers._hypercorn.application_run import (
    ClientDisconnected,
    is_disconnect,
    run_on_asyncio,
    run_on_trio,
)
from mesh_middleware.servers._hypercorn.repairs.disconnect import (
    LEFT_ALONE,
    SENDS_AFTER_DISCONNECT,
    SENDS_IN_A_TURN,
    DisconnectHTTPStream,
)

from ..reliability import virtual


@pytest.fixture(autouse=True)
def repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypercorn's tasks run applications as in a server."""
    monkeypatch.setattr(hypercorn.asyncio.task_group, "_handle", run_on_asyncio)
    monkeypatch.setattr(hypercorn.trio.task_group, "_handle", run_on_trio)


LONG = 10 * LEFT_ALONE
START = {"type": "http.response.start", "status": 200, "headers": []}
PIECE = {"type": "http.response.body", "body": b"x", "more_body": True}
END = {"type": "http.response.body", "body": b""}

App = Callable[["Request1", Any, Any], Awaitable[None]]


class Request1:
    """
    One request whose caller leaves when the application says so.

    Args:
        context: Hypercorn's for the worker.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.sent: list[object] = []
        self.told = 0
        self.ended: float | None = None
        self.stream: Any = None

    async def send(self, event: object) -> None:
        """What goes to the caller; it never waits."""
        self.sent.append(event)

    async def leave(self) -> None:
        """The caller goes."""
        self.stream.before_close()
        await self.stream.handle(StreamClosed(stream_id=1))

    async def work(self) -> None:
        """Something that takes long."""
        await self.context.sleep(LONG)


async def is_idle(request: Request1, receive: Any, send: Any) -> None:
    """Within its response it waits for something that never comes."""
    await send(START)
    await send(PIECE)
    await request.leave()
    await request.work()


async def begins_late(request: Request1, receive: Any, send: Any) -> None:
    """The same, begun when the caller was gone."""
    await request.leave()
    await send(START)
    await request.work()


async def listens(request: Request1, receive: Any, send: Any) -> None:
    """It has received that the caller is gone; what it does then is its own."""
    await send(START)
    await request.leave()
    while (await receive())["type"] != "http.disconnect":
        pass
    await request.work()


async def works(request: Request1, receive: Any, send: Any) -> None:
    """It has not begun its response."""
    await request.leave()
    await request.work()


async def completes(request: Request1, receive: Any, send: Any) -> None:
    """What comes after a response is the application's."""
    await send(START)
    await request.leave()
    await send(END)
    await request.work()


async def is_told(request: Request1, receive: Any, send: Any) -> None:
    """It was told by its send, and cleans up."""
    await send(START)
    await request.leave()
    with pytest.raises(ClientDisconnected):
        await send(PIECE)
    await request.work()


async def sends_on(request: Request1, receive: Any, send: Any) -> None:
    """It does not heed what it is told."""
    await send(START)
    await request.leave()
    while True:
        try:
            await send(PIECE)
        except OSError:
            request.told += 1


async def goes_on_after_the_end(request: Request1, receive: Any, send: Any) -> None:
    """Nor does it know that its response is complete."""
    await send(START)
    await send(END)
    await request.leave()
    while True:
        try:
            await send(PIECE)
        except UnexpectedMessageError:
            request.told += 1


CASES: dict[App, tuple[float, int]] = {
    is_idle: (LEFT_ALONE, 0),
    begins_late: (LEFT_ALONE, 0),
    listens: (LONG, 0),
    works: (LONG, 0),
    completes: (LONG, 0),
    is_told: (LONG, 0),
    sends_on: (0, SENDS_AFTER_DISCONNECT),
    goes_on_after_the_end: (0, SENDS_AFTER_DISCONNECT),
}
"""After how many seconds each has ended, and how often it was told."""


async def run(app: App, group: Any, request: Request1, now: Callable[[], float]) -> Any:
    """Run *app* to its end; returns what it noted."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        assert scope["asgi"]["spec_version"] == "2.4"
        try:
            await app(request, receive, send)
        finally:
            request.ended = now()

    async with group:
        arguments = (request.context, group, False, None, None, request.send, 1)
        request.stream = DisconnectHTTPStream(ASGIWrapper(inner), Config(), *arguments)  # type: ignore[arg-type]
        state = ConnectionState({})
        asked = Request(
            stream_id=1,
            headers=[(b"host", b"tax")],
            http_version="1.1",
            method="GET",
            raw_path=b"/",
            state=state,
        )
        await request.stream.handle(asked)
        await request.stream.handle(EndBody(stream_id=1))
    return request


def on_asyncio(app: App) -> Request1:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        group = hypercorn.asyncio.task_group.TaskGroup(loop)
        context = hypercorn.asyncio.worker_context.WorkerContext(None)
        return await run(app, group, Request1(context), loop.time)

    found: Request1 = virtual.run(main())
    return found


def on_trio(app: App) -> Request1:
    async def main() -> Any:
        began = trio.current_time()
        group = hypercorn.trio.task_group.TaskGroup()
        context = hypercorn.trio.worker_context.WorkerContext(None)
        return await run(app, group, Request1(context), lambda: trio.current_time() - began)

    found: Request1 = trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return found


@pytest.mark.parametrize("app", CASES, ids=lambda app: app.__name__)
@pytest.mark.parametrize("worker", [on_asyncio, on_trio], ids=["asyncio", "trio"])
def test_an_application_whose_caller_is_gone_ends(
    worker: Callable[[App], Request1], app: App, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is within its response and notices nothing is cancelled; no other one is."""
    request = worker(app)
    assert request.ended is not None
    assert (round(request.ended, 3), request.told) == CASES[app]
    assert caplog.messages == []


async def streams(request: Request1, receive: Any, send: Any) -> None:
    """It awaits nothing but its send."""
    await send(START)
    for _ in range(100 * SENDS_IN_A_TURN):
        await send(PIECE)
    await send(END)


def test_who_sends_and_awaits_nothing_else_gives_others_their_turns() -> None:
    """Also where the caller reads as fast as the application sends."""
    turns = 0

    async def counted(request: Request1, receive: Any, send: Any) -> None:
        nonlocal turns
        loop, goes_on = asyncio.get_running_loop(), True

        def count() -> None:
            nonlocal turns
            turns += 1
            if goes_on:
                loop.call_soon(count)

        loop.call_soon(count)
        await streams(request, receive, send)
        goes_on = False

    request = on_asyncio(counted)
    assert sum(isinstance(event, Body) for event in request.sent) == 100 * SENDS_IN_A_TURN
    assert turns >= 100


def within(error: BaseException, cause: BaseException) -> BaseException:
    """*error*, raised while *cause* was handled."""
    error.__context__ = cause
    return error


GONE = ClientDisconnected("gone")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GONE, True),
        (ExceptionGroup("", [GONE, ExceptionGroup("", [GONE])]), True),
        (within(ClientDisconnect(), GONE), True),
        (within(WebSocketDisconnect(1006), GONE), True),
        (within(ClientDisconnect(), ExceptionGroup("", [GONE])), True),
        (ClientDisconnect(), False),
        (WebSocketDisconnect(1006), False),
        (OSError(), False),
        (ExceptionGroup("", [GONE, ValueError()]), False),
        (within(ValueError(), GONE), False),
        (within(ClientDisconnect(), ValueError()), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_only_the_disconnect_ends_without_a_word(error: BaseException, expected: bool) -> None:
    """A fault of the application's is logged, also one in the handling of a disconnect."""
    assert is_disconnect(error) is expected
