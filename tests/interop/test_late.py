"""Requests that come with others in one packet, in the middle of which their worker ends."""

from __future__ import annotations

import asyncio
from typing import Any

import h2.connection
from h2.errors import ErrorCodes
from h2.events import StreamReset
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState, LifespanState

from mesh_middleware.servers.hypercorn_ends import end_in_order

HEAD = [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", "tax")]


class Http2(H2Protocol):
    """One that is mended, for this test alone."""


class Http1(H11Protocol):
    """The same."""


class Tasks:
    """Begins an application, and at that moment the worker's end."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    def spawn(self, *_: object) -> None:
        """Begin a task."""

    async def spawn_app(self, *_: object) -> Any:
        """Begin an application; on trio others run meanwhile."""
        await self._context.terminated.set()
        return asyncio.Queue[Any]().put


def test_what_comes_in_the_middle_of_the_end_is_refused() -> None:
    """The first is begun; the others may be sent again, whatever they are: so they are told."""
    end_in_order(Http2, Http1)
    said: list[bytes] = []

    async def send(event: Any) -> None:
        if isinstance(event, RawData):
            said.append(event.data)

    async def come() -> None:
        context = WorkerContext(None)
        tasks: Any = Tasks(context)
        state = ConnectionState(LifespanState({}))
        app: Any = None
        server = Http2(app, Config(), context, tasks, state, True, None, None, send)
        await server.initiate()
        await server.handle(RawData(client.data_to_send()))

    client = h2.connection.H2Connection()
    client.initiate_connection()
    for stream in (1, 3, 5):
        client.send_headers(stream, HEAD, end_stream=True)
    client.reset_stream(5)
    asyncio.run(come())
    events = client.receive_data(b"".join(said))
    resets = [(one.stream_id, one.error_code) for one in events if isinstance(one, StreamReset)]
    assert resets == [(3, ErrorCodes.REFUSED_STREAM)]
