"""Who closes while somebody else reads cuts the answer short: it is never taken for whole."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest
from anyio import to_thread

from mesh_middleware.httpx import AsyncClient, Client

from ..support.steps import yield_times
from .driver import Driver, drivers
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
