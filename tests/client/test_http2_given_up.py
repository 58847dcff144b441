"""Calls that share an HTTP/2 connection with one that is given up, wherever that was."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import h2.events
import h2.settings
import httpx
import pytest
from anyio import to_thread

from mesh_middleware.httpx import AsyncClient

from ..support.servers import until
from ..support.steps import yield_times
from .driver import Driver
from .support import PATIENCE, Authority, ScriptServer, StaticMesh, serving
from .test_http2_ends import Script, Server, Talk

URL = "https://tax/"
HEADERS = {"Host": "tax", "Transfer-Encoding": "chunked"}
STEPS = 60
"""Steps of the loop that a call needs here at most, while two others are under way."""
ROOM = 2**26
"""Bytes that a server here allows on their way: more than sockets hold."""


def events(talk: Talk) -> Iterator[Any]:
    """What comes from a client that may send without asking."""
    talk.frames.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: ROOM})
    talk.frames.increment_flow_control_window(ROOM)
    talk.flush()
    yield from talk.events()


def answer(talk: Talk, stream: int) -> None:
    """Answer; the first call gets no end, so that its connection is not idle."""
    if stream > 1:
        talk.answer(stream)
        return
    talk.frames.send_headers(stream, [(":status", "200")])
    talk.flush()


@contextmanager
def one_server(
    authority: Authority, mesh: StaticMesh, script: Script, loop: str
) -> Iterator[tuple[ScriptServer, Driver]]:
    """Run the one instance of tax, and the loop of its callers."""
    with (
        serving(authority, Server(script), alpn=("h2",)) as server,
        Driver(loop).running() as driver,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        yield server, driver


async def cancel_one_of_three(client: AsyncClient, size: int, steps: int) -> None:
    """Make three calls, and cancel one so many steps later; the others are answered."""
    calls = [asyncio.ensure_future(client.post(URL, content=b"x" * size)) for _ in range(3)]
    await yield_times(steps)
    calls[steps % 3].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    del answers[steps % 3]
    assert [getattr(answer, "text", answer) for answer in answers] == ["ok", "ok"]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("size", [1, 40_000], ids=["short", "long"])
def test_a_call_that_is_cancelled_at_any_step_takes_no_other_with_it(
    authority: Authority, mesh: StaticMesh, loop: str, size: int
) -> None:
    """``Task.cancel`` ends no write half way: the others are answered over one connection."""

    def script(talk: Talk) -> None:
        for event in events(talk):
            if isinstance(event, h2.events.StreamEnded):
                answer(talk, event.stream_id)

    async def run() -> None:
        async with AsyncClient(mesh, http2=True) as client, client.stream("GET", URL):
            for steps in range(STEPS):
                await cancel_one_of_three(client, size, steps)

    with one_server(authority, mesh, script, loop) as (server, driver):
        driver.run(run)
        assert server.connections == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_that_others_wait_for_is_closed_in_the_end(
    authority: Authority, mesh: StaticMesh, loop: str
) -> None:
    """Who is cancelled while it is made does not make httpcore forget it, and its socket."""

    def script(talk: Talk) -> None:
        for event in events(talk):
            if isinstance(event, h2.events.StreamEnded):
                talk.answer(event.stream_id)

    async def run(server: ScriptServer) -> None:
        for steps in range(STEPS):
            async with AsyncClient(mesh, http2=True) as client:
                await cancel_one_of_three(client, 1, steps)
            await to_thread.run_sync(until, lambda: not server._open, "they end", PATIENCE)

    with one_server(authority, mesh, script, loop) as (server, driver):
        gc.disable()  # which closes what was lost, too, some time
        try:
            driver.run(run, server)
        finally:
            gc.enable()


class Endless(httpx.AsyncByteStream):
    """A body; no generator, which trio would miss the end of."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return bytes(ROOM // 64)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_a_call_can_be_given_up_while_the_server_reads_nothing(
    authority: Authority, mesh: StaticMesh, loop: str
) -> None:
    """At once, without any timeout; what was begun is written to its end, and others follow."""
    go_on, told = threading.Event(), list[tuple[str, int]]()

    def script(talk: Talk) -> None:
        for event in events(talk):
            if isinstance(event, h2.events.RequestReceived):
                assert event.stream_id != 3 or go_on.wait(PATIENCE)
            elif isinstance(event, h2.events.StreamReset):
                told.append(("reset", event.stream_id))
            elif isinstance(event, h2.events.StreamEnded):
                told.append(("ended", event.stream_id))
                answer(talk, event.stream_id)

    async def run() -> str:
        options: Any = {"http2": True, "timeout": None}
        async with AsyncClient(mesh, **options) as client, client.stream("GET", URL):
            call = httpx.Request("POST", URL, headers=HEADERS, stream=Endless())
            with anyio.fail_after(PATIENCE), anyio.move_on_after(0.3):
                await client.send(call)
            await to_thread.run_sync(go_on.set)
            with anyio.fail_after(PATIENCE):
                return (await client.post(URL, content=b"y")).text

    with one_server(authority, mesh, script, loop) as (server, driver):
        assert driver.run(run) == "ok"
        assert (told, server.connections) == ([("ended", 1), ("reset", 3), ("ended", 5)], 1)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
@pytest.mark.parametrize("first", ["short", "long"])
@pytest.mark.parametrize("head", [False, True], ids=["before the head", "after the head"])
def test_the_time_of_each_call_is_its_own(
    authority: Authority, mesh: StaticMesh, loop: str, first: str, head: bool
) -> None:
    """Whoever reads for all: who waits for less fails in time, and alone."""
    go_on, paths = threading.Event(), dict[str, int]()

    def finish(talk: Talk, stream: int) -> None:
        assert go_on.wait(PATIENCE)
        if not head:
            talk.frames.send_headers(stream, [(":status", "200")])
        talk.frames.send_data(stream, b"ok", end_stream=True)
        talk.flush()

    def script(talk: Talk) -> None:
        for event in events(talk):
            if isinstance(event, h2.events.RequestReceived):
                paths[dict(event.headers)[b":path"].decode()] = event.stream_id
            elif isinstance(event, h2.events.StreamEnded):
                if head or event.stream_id == 1:
                    talk.frames.send_headers(event.stream_id, [(":status", "200")])
                    talk.flush()
                if event.stream_id == 5:
                    finish(talk, paths["/long"])

    async def run() -> list[str]:
        found = []
        async with AsyncClient(mesh, http2=True) as client, client.stream("GET", URL):

            async def short() -> None:
                with pytest.raises(httpx.ReadTimeout):
                    await client.get(f"{URL}short", timeout=0.3)
                go_on.set()

            async def long() -> None:
                found.append((await client.get(f"{URL}long", timeout=PATIENCE)).text)

            calls = [short, long] if first == "short" else [long, short]
            async with anyio.create_task_group() as group:
                for call in calls:
                    group.start_soon(call)
        return found

    with one_server(authority, mesh, script, loop) as (server, driver):
        assert (driver.run(run), server.connections) == (["ok"], 1)
