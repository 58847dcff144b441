"""HTTP/2 connections that their server ended without a word while they were idle."""

from __future__ import annotations

import anyio
import pytest

from mesh_middleware.httpx import AsyncClient

from .support import Authority, StaticMesh
from .test_http2_ends import Talk
from .test_http2_given_up import URL, one_server

CALLS = 3


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_all_calls_that_met_a_stale_connection_together_are_sent_again(
    authority: Authority, mesh: StaticMesh, loop: str
) -> None:
    """Not only the first of them; they may arrive twice."""

    def script(talk: Talk) -> None:
        came = 0
        for stream in talk.requests():
            came += 1
            if came == 1 or talk.number > 1:
                talk.answer(stream)
            elif came == 1 + CALLS:
                return

    async def run() -> None:
        async with AsyncClient(mesh, http2=True) as client:

            async def call() -> None:
                assert (await client.get(URL)).text == "ok"

            await call()
            async with anyio.create_task_group() as group:
                for _ in range(CALLS):
                    group.start_soon(call)

    with one_server(authority, mesh, script, loop) as (server, driver):
        driver.run(run)
        assert server.connections == 2
