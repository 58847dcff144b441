"""One HTTP/2 connection of Hypercorn in this process, without sockets: bytes in, bytes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hypercorn.trio.task_group
import hypercorn.trio.worker_context
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ConnectionState

from mesh_middleware.servers.hypercorn_mend import mend


class Turn:
    """One turn of the event loop."""

    def __await__(self) -> Any:
        yield


class H2Inside:
    """
    Both ends of a connection.

    Args:
        protocol: the server's.
        peer: the client's.
    """

    def __init__(self, protocol: Any, peer: Any) -> None:
        self.protocol, self.peer = protocol, peer
        self.closed = False
        self.events: list[Any] = []
        self.frames = b""
        self.reads = True  # not where the client speaks by hand

    async def take(self, event: Any) -> None:
        """What the server sends."""
        if isinstance(event, RawData):
            self.frames += event.data
            if self.reads:
                self.events += self.peer.receive_data(event.data)
        elif isinstance(event, Closed):
            self.closed = True

    async def flush(self) -> None:
        """Give the server, in one read, all that the client has to say."""
        await self.protocol.handle(RawData(self.peer.data_to_send()))

    def request(self, path: str = "/", **options: Any) -> int:
        """Begin a request; it is sent with the next `flush`."""
        stream: int = self.peer.get_next_available_stream_id()
        head = [(":method", "GET"), (":path", path), (":scheme", "https"), (":authority", "tax")]
        self.peer.send_headers(stream, head, end_stream=True, **options)
        return stream

    def of(self, kind: type) -> list[Any]:
        """Events of one kind that the client has seen."""
        return [event for event in self.events if isinstance(event, kind)]

    def waiting(self, stream: int) -> int:
        """Bytes in the server's buffer of a stream."""
        buffer = self.protocol.stream_buffers.get(stream)
        return 0 if buffer is None else len(buffer.buffer)


_CONTEXTS: dict[str, Any] = {
    "asyncio": WorkerContext,
    "trio": hypercorn.trio.worker_context.WorkerContext,
}


def _group(worker: str) -> Any:
    if worker == "trio":
        return hypercorn.trio.task_group.TaskGroup()
    return TaskGroup(asyncio.get_running_loop())


def _cancel(group: Any) -> None:
    if isinstance(group, TaskGroup):
        for task in list(group._task_group._tasks):
            task.cancel()
    else:
        group._nursery.cancel_scope.cancel()


@asynccontextmanager
async def h2_inside(
    app: Any, *, window: int = 65535, context: Any = None, worker: str = "asyncio", **options: Any
) -> AsyncIterator[H2Inside]:
    """
    Make a connection; it is closed at the end.

    Args:
        app: an ASGI application.
        window: of each stream, at the client.
        context: of the worker.
        worker: kind of the worker whose loop runs, asyncio or trio.
        options: of Hypercorn's configuration.
    """
    mend()
    config, group = Config(), _group(worker)
    for name, value in options.items():
        setattr(config, name, value)
    peer = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    values = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
    peer.local_settings = h2.settings.Settings(client=True, initial_values=values)
    peer.initiate_connection()
    ends: list[H2Inside] = []

    async def take(event: Any) -> None:
        await ends[0].take(event)

    async with group:
        protocol = H2Protocol(
            ASGIWrapper(app),
            config,
            context or _CONTEXTS[worker](None),
            group,
            ConnectionState({}),
            True,
            ("127.0.0.1", 1),
            ("127.0.0.1", 2),
            take,
        )
        ends.append(H2Inside(protocol, peer))
        await protocol.initiate()
        await ends[0].flush()
        try:
            yield ends[0]
        finally:
            await protocol.handle(Closed())
            _cancel(group)
