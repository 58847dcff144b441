"""A cancelled request closes its connection and gives its place back, wherever it was."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from anyio import to_thread

from mesh_middleware.httpx import AsyncClient, AsyncMeshTransport
from mesh_middleware.resolve import Endpoint

from ..support.steps import yield_once, yield_times
from .driver import Driver, drivers
from .support import PATIENCE, Authority, StaticMesh, Wire, answering, service_id, serving

ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


driver = drivers(("asyncio", "uvloop"))


class Stage:
    """A server whose first connection gets as far as a test wants; later ones are answered."""

    def __init__(self, said: bytes, reads: bool = True) -> None:
        self.reached = threading.Event()
        self.ended = threading.Event()
        self._said = said
        self._reads = reads
        self._first = True

    def __call__(self, wire: Wire) -> None:
        if not self._first:
            answering()(wire)
            return
        self._first = False
        wire.read_head()
        wire.send(self._said)
        self.reached.set()
        if self._reads:
            wire.read_to_end()
            self.ended.set()
        else:
            assert self.ended.wait(PATIENCE)


async def _cancel_at(reached: threading.Event, call: Any) -> None:
    task = asyncio.ensure_future(call)
    assert await to_thread.run_sync(reached.wait, PATIENCE)
    # Let the client, too, come as far as the server: it may have to read what was said.
    await yield_once()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
    ],
    ids=["waiting", "in the head", "in the body", "in a chunk"],
)
def test_a_request_can_be_cancelled_while_it_waits_for_its_answer(
    authority: Authority, mesh: StaticMesh, driver: Driver, said: bytes
) -> None:
    """The server sees the end of the connection; the next request gets the place."""
    stage = Stage(said)

    async def run() -> None:
        async with AsyncClient(mesh, limits=ONE) as client:
            await _cancel_at(stage.reached, client.get("https://tax/"))
            assert await to_thread.run_sync(stage.ended.wait, PATIENCE)
            assert (await client.get("https://tax/")).text == "ok"

    with serving(authority, stage) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)
        assert server.connections == 2


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_request_can_be_cancelled_while_it_is_sent(
    authority: Authority, mesh: StaticMesh, driver: Driver, streamed: bool
) -> None:
    """Half a request is never continued by another."""
    stage = Stage(b"", reads=False)

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield b"x" * 1_000_000

    async def run() -> None:
        async with AsyncClient(mesh, limits=ONE) as client:
            content: Any = parts() if streamed else b"x" * 16_000_000
            call = client.post("https://tax/", content=content, timeout=PATIENCE)
            await _cancel_at(stage.reached, call)
            assert (await client.get("https://tax/")).text == "ok"
        stage.ended.set()

    with serving(authority, stage) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)
        assert server.connections == 2


def test_a_request_can_be_cancelled_while_it_connects(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A handshake that was given up leaves nothing behind."""
    accepted, ended = threading.Event(), threading.Event()

    def accept(silent: socket.socket) -> None:
        connection, _ = silent.accept()
        accepted.set()
        with connection:
            connection.settimeout(PATIENCE)
            while connection.recv(65536):
                pass
        ended.set()

    async def run(endpoint: Endpoint) -> None:
        async with AsyncClient(mesh, limits=ONE) as client:
            await _cancel_at(accepted, client.get("https://tax/"))
            assert await to_thread.run_sync(ended.wait, PATIENCE)
            mesh.tell("tax", endpoint)
            assert (await client.get("https://tax/")).text == "ok"

    with serving(authority, answering()) as server, socket.create_server(("", 0)) as silent:
        port = silent.getsockname()[1]
        mesh.tell("tax", Endpoint("127.0.0.1", port, service_id("tax")))
        thread = threading.Thread(target=accept, args=(silent,))
        thread.start()
        driver.run(run, server.endpoint("tax"))
        thread.join(PATIENCE)


def test_a_request_can_be_cancelled_in_line(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Whoever leaves the line is skipped, also when its turn comes in the same moment."""
    arrived, go_on = threading.Event(), threading.Event()
    paths: list[bytes] = []

    def script(wire: Wire) -> None:
        while head := wire.read_request()[0]:
            paths.append(head.split(b" ", 2)[1])
            arrived.set()
            assert go_on.wait(PATIENCE)
            wire.send(OK)

    async def run() -> None:
        async with AsyncClient(mesh, limits=ONE) as client:
            first = asyncio.ensure_future(client.get("https://tax/first"))
            assert await to_thread.run_sync(arrived.wait, PATIENCE)
            gone = [asyncio.ensure_future(client.get(f"https://tax/gone{n}")) for n in range(4)]
            last = asyncio.ensure_future(client.get("https://tax/last"))
            await _in_line(client, 5)
            for task in gone[:2]:
                task.cancel()
            # The other two leave in the moment the first comes back.
            first.add_done_callback(lambda _: [task.cancel() for task in gone[2:]])
            go_on.set()
            assert (await first).text == (await last).text == "ok"
            await asyncio.gather(*gone, return_exceptions=True)
            assert (await client.get("https://tax/after")).text == "ok"

    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)
    assert paths[0] == b"/first"
    assert paths[-2:] == [b"/last", b"/after"]
    assert b"/gone0" not in paths


async def _in_line(client: AsyncClient, count: int) -> None:
    carrier: Any = client._transport._carrier  # type: ignore[attr-defined]
    for _ in range(10_000):
        if carrier._lines and len(next(iter(carrier._lines.values()))._pool._line) == count:
            return
        await yield_once()
    raise AssertionError("they never came")


def test_a_turn_that_comes_as_its_task_is_cancelled_is_passed_on(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Many cancellations at random moments lose no place: a limit of two still lets two through."""

    async def run() -> None:
        async with AsyncClient(mesh, limits=httpx.Limits(max_connections=2)) as client:
            for turn in range(60):
                tasks = [asyncio.ensure_future(client.get("https://tax/")) for _ in range(6)]
                await yield_times(turn)
                for task in tasks[turn % 3 :: 2]:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            both = await asyncio.gather(client.get("https://tax/"), client.get("https://tax/"))
            assert [response.text for response in both] == ["ok", "ok"]
            (line,) = client._transport._carrier._lines.values()  # type: ignore[attr-defined]
            assert line._pool.open == len(client._transport._carrier.live) <= 2  # type: ignore[attr-defined]

    with serving(authority, answering()) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)


def test_closing_the_client_ends_what_is_under_way(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``aclose`` cuts connections whose answers were not read, and they fail rather than hang."""
    stage = Stage(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")

    async def run() -> None:
        client = AsyncClient(mesh)
        async with client.stream("GET", "https://tax/") as response:
            parts = response.aiter_raw()
            assert await anext(parts) == b"he"
            await client.aclose()
            with pytest.raises(httpx.TransportError):
                await anext(parts)
            await parts.aclose()  # type: ignore[attr-defined]
        assert await to_thread.run_sync(stage.ended.wait, PATIENCE)

    with serving(authority, stage) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)


def test_a_transport_can_move_to_another_loop(authority: Authority, mesh: StaticMesh) -> None:
    """One transport, one loop after the other: each loop makes its own connections."""
    transport = AsyncMeshTransport(mesh)

    async def run() -> str:
        request = httpx.Request("GET", "https://tax/")
        response = await transport.handle_async_request(request)
        await response.aread()
        await transport.aclose()
        return response.text

    with serving(authority, answering()) as server:
        mesh.tell("tax", server.endpoint("tax"))
        assert [asyncio.run(run()) for _ in range(3)] == ["ok"] * 3
        assert server.connections == 3


def test_the_loop_is_not_blocked_while_the_mesh_joins(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Until leaf and roots are there a thread waits; the loop goes on."""
    mesh.leave()

    async def run(join: Callable[[], None]) -> None:
        async with AsyncClient(mesh) as client:
            call = asyncio.ensure_future(client.get("https://tax/"))
            await yield_times(100)
            assert not call.done()
            join()
            assert (await call).text == "ok"

    with serving(authority, answering()) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run, mesh.join)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_call_over_httpcore_that_is_cancelled_at_any_step_leaves_no_socket(
    authority: Authority, mesh: StaticMesh, loop: str
) -> None:
    """Where HTTP/2 is wanted httpcore connects: a handshake that is given up is closed at once."""

    async def run() -> None:
        for steps in range(60):
            async with AsyncClient(mesh, http2=True) as client:
                call = asyncio.ensure_future(client.get("https://tax/"))
                await yield_times(steps)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            await yield_times(3)

    with serving(authority, answering()) as server, Driver(loop).running() as driver:
        mesh.tell("tax", server.endpoint("tax"))
        gc.collect()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ResourceWarning)
            driver.run(run)
            gc.collect()
        assert [str(warning.message) for warning in told] == []
