"""
Has a connection of HTTP/2 go on where one application of Hypercorn (0.18) does not read.

Owns what has come for an application that has more than it can queue. Hypercorn stops reading the
connection then: an upload in more than ten pieces to an application that is busy with something
else holds up every other request of a gateway, and the answers to those that wait for room. Here
the rest of that stream waits beside the queue, and its sender is given room on the stream only when
the application has taken it: what waits is never more than the window of one stream. The
connection's own window stays open for the others. Knows nothing of the mesh.

Source: RFC 9113, 5.2.2.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

Message = dict[str, Any]


class _Backlog:
    """
    In place of the function that puts something into an application's queue: it never waits.

    Args:
        protocol: the connection.
        number: of the stream.
        put: into the queue, as Hypercorn does.
    """

    def __init__(self, protocol: Any, number: int, put: Any) -> None:
        self.__self__ = put.__self__  # the queue, as of the function
        self.moving, self.unread = False, 0
        self._protocol, self._number, self._put = protocol, number, put
        self._waiting: deque[Message] = deque()

    async def __call__(self, message: Message) -> None:
        if not self.moving and not _is_full(self.__self__):
            await self._put(message)
            return
        last = self._waiting[-1] if self._waiting else None
        if last is not None and last["type"] == message["type"] == "http.request":
            last["body"] += message["body"]  # however small the pieces, one does for all
            last["more_body"] = message["more_body"]
        elif message["type"] == "http.request":
            self._waiting.append({**message, "body": bytearray(message["body"])})
        else:
            self._waiting.append(message)
        if not self.moving:
            self.moving = True
            self._protocol.task_group.spawn(self._move)

    async def _move(self) -> None:
        try:
            while self._waiting:
                message = self._waiting.popleft()
                if message["type"] == "http.request":
                    message["body"] = bytes(message["body"])
                await self._put(message)
                if not self._waiting:
                    await self._make_room()
        finally:
            self.moving = False

    async def _make_room(self) -> None:
        size, self.unread = self.unread, 0
        if size:
            _give_room(self._protocol, size, self._number)
            await self._protocol._flush()


def go_on_reading(protocol: Any) -> None:
    """
    Have connections read on while one of their applications does not.

    Args:
        protocol: Hypercorn's class of connections of HTTP/2.
    """
    original, create = protocol.__init__, protocol._create_stream

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        taken = self.connection.acknowledge_received_data
        self.connection.acknowledge_received_data = partial(_acknowledge, self, taken)

    async def _create_stream(self: Any, request: Any) -> None:
        await create(self, request)
        stream = self.streams.get(request.stream_id)
        put = getattr(stream, "app_put", None)
        if put is not None:
            stream.app_put = _Backlog(self, request.stream_id, put)

    protocol.__init__, protocol._create_stream = __init__, _create_stream


def _acknowledge(protocol: Any, taken: Callable[[int, int], None], size: int, number: int) -> None:
    """Give room for what has come: for what waits, on the connection only."""
    put = getattr(protocol.streams.get(number), "app_put", None)
    if not (isinstance(put, _Backlog) and put.moving):
        taken(size, number)
    elif size:
        put.unread += size
        _give_room(protocol, size)


def _give_room(protocol: Any, size: int, number: int | None = None) -> None:
    from h2.exceptions import ProtocolError

    with suppress(ProtocolError, KeyError):  # the connection, or the stream, has ended
        protocol.connection.increment_flow_control_window(size, number)


def _is_full(queue: Any) -> bool:
    if isinstance(queue, asyncio.Queue):
        return queue.full()
    state = queue._state
    return bool(len(state.data) >= state.max_buffer_size)
