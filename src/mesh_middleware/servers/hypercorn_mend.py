"""
Mends what lets one peer end the requests of others in Hypercorn (0.18), or fill its memory.

Owns eight repairs. In HTTP/2, bytes that arrive for a stream that has been answered already raise a
``KeyError``, which ends every other stream of the connection; each refused upload is such a stream.
So does a path, or a method, that is not ASCII, or no path; gateways put the requests of many
callers into one connection. A stream that Hypercorn refuses by itself never ends; nor does, for its
caller, one whose application fails in the middle of its answer. Who leaves before it has its answer
over HTTP/2 leaves the application waiting for ever for room to write, with all that belongs to the
connection. Who sends more of a body than fits into the queue of an application that answers without
it leaves both waiting for each other. And on the trio worker whatever a connection raises ends the
whole server: a ``:path`` that is not ASCII is enough, from a peer whom no intention allows. And a
server that ends waits without limit for a peer that does not read its answer, or that stops in the
middle of its upload. (What is said when a connection ends is `hypercorn_ends`', when it was idle
for too long `hypercorn_idle`'s.) Knows nothing of the mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

from ._hypercorn.repairs import install_repairs
from .hypercorn_backlog import go_on_reading
from .hypercorn_ends import close_in_order, end_in_order, say_the_last, socket_of
from .hypercorn_idle import end_idle, forget_closed, time_lightly, time_what_is_idle

_log = logging.getLogger("mesh_middleware.server")

_Open = WeakKeyDictionary[Any, Any]
"""Hypercorn's objects for connections, each with its socket."""


class _Answered:
    """A stream that is done: what still comes for it is dropped."""

    idle = True

    async def handle(self, event: object) -> None:
        pass


_ANSWERED = _Answered()

FAILED_RESPONSE_TIMEOUT = 5.0
"""Seconds for a peer to read what a failed application has sent; then its stream is reset."""

_ITS_OWN = (400, 404)
"""Errors that are Hypercorn's word; those of an application that fails or says no end with it."""


class _Streams(dict[int, Any]):
    def __missing__(self, stream: int) -> _Answered:
        return _ANSWERED


def mend() -> None:
    """Repair the parts of Hypercorn that this worker has loaded; to be called before it serves."""
    from hypercorn.protocol.h2 import H2Protocol
    from hypercorn.protocol.h11 import H11Protocol
    from hypercorn.protocol.http_stream import HTTPStream
    from hypercorn.protocol.ws_stream import WSStream

    install_repairs()
    if not hasattr(H2Protocol, "mesh_mended"):
        _keep_streams(H2Protocol)
        _refuse_malformed(H2Protocol)
        go_on_reading(H2Protocol)
        _let_writers_go(H2Protocol)
        _let_readers_go(H11Protocol, lambda self: self.stream)
        _let_readers_go(H2Protocol, lambda self, number: self.streams.get(number))
        _end_what_was_begun(H2Protocol)
        for kind in (HTTPStream, WSStream):
            _forget_refused(kind)
        end_in_order(H2Protocol, H11Protocol)
        time_what_is_idle(H2Protocol)
    for name in ("asyncio", "trio"):
        loaded = sys.modules.get(f"hypercorn.{name}.tcp_server")
        if loaded is not None and not hasattr(loaded.TCPServer, "mesh_mended"):
            loaded.TCPServer.mesh_mended = True
            forget_closed(loaded.TCPServer)
            close_in_order(loaded.TCPServer)
            _end_in_time(loaded.TCPServer)
            if name == "trio":
                _outlive_connections(loaded.TCPServer)
            else:
                time_lightly(loaded.TCPServer)


def _keep_streams(protocol: Any) -> None:
    original = protocol.__init__

    def __init__(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.streams = _Streams(self.streams)

    protocol.__init__, protocol.mesh_mended = __init__, True


def _refuse_malformed(protocol: Any) -> None:
    from h2.errors import ErrorCodes

    original = protocol._create_stream

    async def _create_stream(self: Any, request: Any) -> None:
        try:
            await original(self, request)
        # Before anything was begun; unbound is the path of a CONNECT that is no WebSocket's.
        # Source: RFC 9113, 8.1.1 and 8.5.
        except (UnicodeError, UnboundLocalError):
            stream = request.stream_id
            if self.stream_buffers.pop(stream, None) is not None:
                del self.streams[stream]
                self.priority.remove_stream(stream)
            self.connection.reset_stream(stream, ErrorCodes.PROTOCOL_ERROR)

    protocol._create_stream = _create_stream


def _forget_refused(stream: Any) -> None:
    """Have a stream end that Hypercorn refuses itself; its connection would never be idle again."""
    from hypercorn.protocol.events import StreamClosed

    original = stream._send_error_response

    async def _send_error_response(self: Any, status_code: int) -> None:
        await original(self, status_code)
        if status_code in _ITS_OWN:
            # What has begun, for a WebSocket's handshake, is told: it would wait for ever.
            self.app_put = getattr(self, "app_put", None)
            await self.send(StreamClosed(stream_id=self.stream_id))

    stream._send_error_response = _send_error_response


def _let_writers_go(protocol: Any) -> None:
    from hypercorn.events import Closed
    from hypercorn.protocol.h2 import BufferCompleteError, StreamBuffer

    class Left(StreamBuffer):
        """Of a connection that has ended: nothing is waited for, and never is all of it sent."""

        complete = False

        def set_complete(self) -> None:
            pass

        async def push(self, data: bytes) -> None:
            raise BufferCompleteError

        async def drain(self) -> None:
            pass

    original = protocol.handle

    async def handle(self: Any, event: object) -> None:
        if isinstance(event, Closed):
            self.closed = True  # who empties the buffers ends now
            for buffer in self.stream_buffers.values():
                buffer.__class__, buffer.buffer = Left, bytearray()
                await buffer._is_empty.set()
                await buffer._paused.set()
        await original(self, event)

    protocol.handle = handle


def _let_readers_go(protocol: Any, stream_of: Callable[..., Any]) -> None:
    """Let the queue of an application take its last message, and tell its stream of the end."""
    from ._hypercorn.repairs.disconnect import DisconnectHTTPStream

    original = protocol._close_stream

    def _close_stream(self: Any, *number: int) -> Coroutine[Any, Any, None]:
        stream = stream_of(self, *number)
        put = getattr(stream, "app_put", None)
        if put is not None:
            _make_room(put.__self__)
            if isinstance(stream, DisconnectHTTPStream):
                stream.before_close()
        return original(self, *number)  # type: ignore[no-any-return]

    protocol._close_stream = _close_stream


def _end_what_was_begun(protocol: Any) -> None:
    """Have streams end whose application fails, or leaves a WebSocket, as HTTP/1.1 does."""
    from h2.errors import ErrorCodes

    original = protocol._close_stream

    def is_open(self: Any, number: int) -> bool:
        stream = self.connection.streams.get(number)
        return number in self.stream_buffers and stream is not None and not stream.closed

    def _close_stream(self: Any, number: int) -> Coroutine[Any, Any, None]:
        buffer = self.stream_buffers.get(number)
        if buffer is None or buffer._complete or self.closed or not is_open(self, number):
            return original(self, number)  # type: ignore[no-any-return]
        return end(self, number, buffer)

    async def end(self: Any, number: int, buffer: Any) -> None:
        handshake = getattr(self.streams.get(number), "handshake", None)
        if getattr(handshake, "accepted", False):
            buffer.set_complete()
        else:
            # In the application's task, which has gone: what it has said is sent before.
            self.priority.unblock(number)
            await self.has_data.set()
            await _drain_in_time(self, buffer)
            if is_open(self, number):
                self.connection.reset_stream(number, ErrorCodes.INTERNAL_ERROR)
                await self._flush()
            # Only after the reset: a closed buffer counts as a complete response.
            await buffer.close()
        if number in self.stream_buffers:
            self.priority.unblock(number)
        await original(self, number)

    protocol._close_stream = _close_stream


async def _drain_in_time(protocol: Any, buffer: Any) -> None:
    """Wait until the peer has read what is in *buffer*, `FAILED_RESPONSE_TIMEOUT` at most."""
    if not buffer.buffer:
        await buffer.drain()
        return

    async def give_up() -> None:
        await protocol.context.sleep(FAILED_RESPONSE_TIMEOUT)
        await buffer._is_empty.set()

    limit = protocol.context.single_task_class()
    await limit.restart(protocol.task_group, give_up)
    try:
        await buffer.drain()
    finally:
        await limit.stop()


def _make_room(queue: Any) -> None:
    """Let what an application is told last into its queue, and whoever waits to put something."""
    if isinstance(queue, asyncio.Queue):
        if queue.full():
            held: Any = queue
            held._maxsize = 0
            while held._putters:
                held._wakeup_next(held._putters)
        return
    state = queue._state
    if len(state.data) >= state.max_buffer_size:
        state.max_buffer_size = math.inf
        with sys.modules["trio"].MemoryReceiveChannel._create(state) as other:
            while state.send_tasks:  # taken in with what is taken out
                state.data.appendleft(other.receive_nowait())


def _outlive_connections(server: Any) -> None:
    original = server.run

    async def run(self: Any) -> None:
        try:
            await original(self)
        except* Exception as group:
            _log.warning("a connection ended by an error of the server: %s", _name(group))

    server.run = run


def _end_in_time(server: Any) -> None:
    # On asyncio, Hypercorn awaits `Server.wait_closed` before its graceful timeout begins. Until
    # Python 3.11 that returned at once; since 3.12.1 it waits until the last connection has ended.
    # On trio, what is sent is shielded from the end of that timeout.
    original = server.run

    async def run(self: Any) -> None:
        _open_of(self.context, self.config.graceful_timeout)[self] = socket_of(self)
        await original(self)

    server.run = run


def _open_of(context: Any, term: float) -> _Open:
    """The connections of one worker, which are cut *term* seconds after its end has begun."""
    found: _Open | None = getattr(context, "mesh_open", None)
    if found is not None:
        return found
    made: _Open = WeakKeyDictionary()
    context.mesh_open = made
    begin = context.terminated.set

    async def begin_end() -> None:
        for server in list(made):
            say_the_last(server)
        await begin()
        for server in list(made):
            end_idle(server)
        _cut_after(term, made)

    context.terminated.set = begin_end
    if context.terminated.is_set():  # the first of all, and its handshake outlasted the worker
        _cut_after(term, made)
    return made


def _cut_after(term: float, connections: _Open) -> None:
    try:
        asyncio.get_running_loop().call_later(term, _cut, connections)
    except RuntimeError:
        sys.modules["trio"].lowlevel.spawn_system_task(_cut_on_trio, term, connections)


async def _cut_on_trio(term: float, connections: _Open) -> None:
    await sys.modules["trio"].sleep(term)
    _cut(connections)


def _cut(connections: _Open) -> None:
    for server, plain in list(connections.items()):
        if hasattr(server, "writer"):
            server.writer.transport.abort()
        # Aborting is in vain at asyncio's TLS that was closed twice; uvloop's sockets refuse this.
        with contextlib.suppress(OSError, TypeError):
            plain.shutdown(socket.SHUT_RDWR)


def _name(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:200]
