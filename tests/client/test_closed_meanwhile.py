"""Who closes while somebody else reads cuts the answer short: it is never taken for whole."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from anyio import to_thread

from mesh_middleware.httpx import AsyncClient, Client
from mesh_middleware.routing.chain import Retries

from ..support.steps import yield_times
from .driver import KINDS, Driver, drivers
from .support import PATIENCE, Authority, StaticMesh, Wire, client_context, service_id, serving

BEGINS = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "until the end": b"HTTP/1.1 200 OK\r\n\r\nhalf",
}


driver = drivers(("asyncio", "uvloop"))


def _begin(said: bytes) -> Any:
    def script(wire: Wire) -> None:
        wire.read_head()
        wire.send(said)
        wire.read_to_end()

    return script


async def _read_while(client: Any, url: str, what: str) -> None:
    """Read an answer to its end; another task closes it, or the client, in the middle."""
    async with client.stream("GET", url) as response:
        parts = response.aiter_raw()
        assert await anext(parts) == b"half"
        rest = asyncio.ensure_future(anext(parts))
        await yield_times(3)
        await (response if what == "answer" else client).aclose()
        with pytest.raises(httpx.ReadError):
            await asyncio.wait_for(rest, PATIENCE)


@pytest.mark.parametrize("what", ["answer", "client"])
@pytest.mark.parametrize("begin", BEGINS)
def test_an_answer_that_another_task_closed_is_an_error_for_its_reader(
    authority: Authority, mesh: StaticMesh, driver: Driver, begin: str, what: str
) -> None:
    """A ReadError as in httpx, also where the end of the connection would end the body."""
    context = client_context(
        authority.root_pem, authority.issue(service_id("order").uri), service_id("tax").uri
    )

    async def run(port: int) -> None:
        async with httpx.AsyncClient(verify=context, trust_env=False) as stock:
            await _read_while(stock, f"https://127.0.0.1:{port}/", what)
        async with AsyncClient(mesh) as client:
            await _read_while(client, "https://tax/", what)

    with serving(authority, _begin(BEGINS[begin])) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run, server.port)


@pytest.mark.parametrize("begin", BEGINS)
def test_an_answer_that_another_thread_closed_is_an_error_for_its_reader(
    authority: Authority, mesh: StaticMesh, begin: str
) -> None:
    """Between two reads: what is missing is missed."""
    with serving(authority, _begin(BEGINS[begin])) as server, Client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with client.stream("GET", "https://tax/") as response:
            parts = response.iter_raw()
            assert next(parts) == b"half"
            thread = threading.Thread(target=response.close)
            thread.start()
            thread.join(PATIENCE)
            with pytest.raises(httpx.ReadError):
                next(parts)


def test_a_client_whose_loop_is_elsewhere_cuts_answers_short(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``aclose`` on another loop: the reader is told so, the body has not ended."""

    async def run() -> None:
        client = AsyncClient(mesh)
        async with client.stream("GET", "https://tax/") as response:
            parts = response.aiter_raw()
            assert await anext(parts) == b"half"
            rest = asyncio.ensure_future(anext(parts))
            await to_thread.run_sync(lambda: asyncio.run(client.aclose()))
            with pytest.raises(httpx.ReadError):
                await asyncio.wait_for(rest, PATIENCE)

    with serving(authority, _begin(BEGINS["until the end"])) as server:
        mesh.tell("tax", server.endpoint("tax"))
        driver.run(run)


@pytest.mark.parametrize("http2", [False, True], ids=["1", "2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_is_tried_again_leaves_nothing_to_a_closed_client(
    authority: Authority, mesh: StaticMesh, kind: str, http2: bool
) -> None:
    """It ends well, and its new connection with it."""
    arrived, closed, ended = threading.Event(), threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        wire.read_head()
        if not arrived.is_set():
            arrived.set()
            assert closed.wait(PATIENCE)
            return
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        assert wire.read_to_end() == b""
        ended.set()

    retries, request = Retries(1, frozenset({"reset"})), httpx.Request("GET", "https://tax/")
    with (
        serving(authority, script) as server,
        ThreadPoolExecutor(1) as threads,
        Driver(kind).running() as driver,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        client = driver.transport(mesh, retries=retries, http2=http2)

        async def call() -> bytes:
            return await (await client.handle_async_request(request)).aread()

        def block() -> bytes:
            return client.handle_request(request).read()

        made = threads.submit(driver.run, call if driver.is_async else block)
        assert arrived.wait(PATIENCE)
        driver.run(client.aclose if driver.is_async else client.close)
        closed.set()
        assert made.result(PATIENCE) == b"ok"
        assert ended.wait(1)
