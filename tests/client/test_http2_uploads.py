"""Uploads that share an HTTP/2 connection, and what its server lets them send."""

from __future__ import annotations

import anyio
import h2.events
import pytest

from mesh_middleware.httpx import AsyncClient

from .support import Authority, StaticMesh
from .test_http2_ends import Talk
from .test_http2_given_up import ROOM, URL, one_server

FIRST = 65_535
"""Bytes that a server lets a connection send at first. Source: RFC 9113, 6.9.2."""
CALLS, SIZE = 3, 100_000


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_room_that_comes_while_another_call_reads_is_used(
    authority: Authority, mesh: StaticMesh, loop: str
) -> None:
    """All calls are told of it, also those that waited for their turn to read: none hangs."""

    def script(talk: Talk) -> None:
        begun, ended, size = list[int](), list[int](), 0
        for event in talk.events():
            if isinstance(event, h2.events.RequestReceived):
                begun.append(event.stream_id)
            elif isinstance(event, h2.events.DataReceived):
                size += len(event.data)
            elif isinstance(event, h2.events.StreamEnded):
                ended.append(event.stream_id)
            if size == FIRST and len(begun) == CALLS and not ended:
                for stream in (None, *begun):
                    talk.frames.increment_flow_control_window(ROOM, stream)
            if len(ended) == CALLS:
                for stream in ended:
                    talk.answer(stream)

    async def run() -> None:
        async with AsyncClient(mesh, http2=True) as client:

            async def call() -> None:
                assert (await client.post(URL, content=bytes(SIZE))).text == "ok"

            async with anyio.create_task_group() as group:
                for _ in range(CALLS):
                    group.start_soon(call)

    with one_server(authority, mesh, script, loop) as (server, driver):
        driver.run(run)
        assert server.connections == 1
