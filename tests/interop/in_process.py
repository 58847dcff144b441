"""
One connection of Hypercorn's asyncio worker in this process, with the protocol under test.

Owns a real pair of sockets. What the peer sends is given to the protocol directly, so that a test
decides what comes in one read; what the server says is read from the socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import RawData
from hypercorn.typing import ConnectionState

from .callers import HOST


class InProcess:
    """
    Both ends of one connection.

    Args:
        server: Hypercorn's object for it; its protocol is the one under test.
        reader: of the peer.
    """

    def __init__(self, server: Any, reader: asyncio.StreamReader) -> None:
        self.server, self.protocol = server, server.protocol
        self._reader, self._peer = reader, h11.Connection(h11.CLIENT)

    async def come(self, data: bytes) -> None:
        """One read of the server finds *data*."""
        await self.protocol.handle(RawData(data))

    async def answer(self) -> int:
        """Read one whole response; returns its status, 0 when the connection has ended."""
        peer, status = h11.Connection(h11.CLIENT), 0
        peer.send(h11.Request(method="GET", target="/", headers=[("host", "tax")]))
        peer.send(h11.EndOfMessage())
        while True:
            event = peer.next_event()
            if event is h11.NEED_DATA:
                # One byte: what follows is the next response's.
                peer.receive_data(data := await self._reader.read(1))
                if not data and not status:
                    return 0
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                return status


@asynccontextmanager
async def connected(
    kind: Any, app: Any, *, ssl: bool = False, **options: Any
) -> AsyncIterator[InProcess]:
    """
    Make a connection; it is cut at the end.

    Args:
        kind: the class of its protocol.
        app: an ASGI application.
        ssl: whether it claims to be within TLS.
        options: of Hypercorn's configuration.
    """
    config, loop = Config(), asyncio.get_running_loop()
    for name, value in options.items():
        setattr(config, name, value)
    accepted: asyncio.Future[Any] = loop.create_future()

    async def accept(*ends: Any) -> None:
        accepted.set_result(ends)

    listener = await asyncio.start_server(accept, HOST, 0)
    reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
    server = TCPServer(ASGIWrapper(app), loop, config, WorkerContext(None), {}, *await accepted)
    work: list[asyncio.Task[Any]] = []
    group: Any = TaskGroup(loop)
    group.spawn = lambda function, *args: work.append(loop.create_task(function(*args)))
    server._task_group = group
    async with group:
        state = ConnectionState({})
        ends = (None, None, server.protocol_send)
        server.protocol = kind(server.app, config, server.context, group, state, ssl, *ends)
        try:
            yield InProcess(server, reader)
        finally:
            await server.idle_task.stop()
            for task in work:
                task.cancel()
            writer.transport.abort()
            server.writer.transport.abort()
            listener.close()
