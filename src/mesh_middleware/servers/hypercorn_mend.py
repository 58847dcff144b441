"""
Mends what lets one peer end the requests of others in Hypercorn (0.18), or fill its memory.

Owns three repairs. In HTTP/2, bytes that arrive for a stream that has been answered already raise a
``KeyError``, which ends every other stream of the connection; each refused upload is such a
stream. And on the trio worker whatever a connection raises ends the whole server: a ``:path`` that
is not ASCII is enough, from a peer whom no intention allows. And a server that ends waits without
limit for a peer that does not read its answer, or that stops in the middle of its upload. (What is
said when a connection ends is `hypercorn_ends`', and when it was idle for too long
`hypercorn_idle`'s.) Knows nothing of the mesh.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import Any
from weakref import WeakKeyDictionary

from .hypercorn_ends import close_in_order, end_in_order, say_the_last
from .hypercorn_idle import end_idle, forget_closed, time_lightly

_log = logging.getLogger("mesh_middleware.server")

_Open = WeakKeyDictionary[Any, Any]
"""Hypercorn's objects for connections, each with its socket."""


class _Answered:
    """A stream that is done: what still comes for it is dropped."""

    idle = True

    async def handle(self, event: object) -> None:
        pass


_ANSWERED = _Answered()


class _Streams(dict[int, Any]):
    def __missing__(self, stream: int) -> _Answered:
        return _ANSWERED


def mend() -> None:
    """Repair the parts of Hypercorn that this worker has loaded; to be called before it serves."""
    from hypercorn.protocol.h2 import H2Protocol
    from hypercorn.protocol.h11 import H11Protocol

    if not hasattr(H2Protocol, "mesh_mended"):
        _keep_streams(H2Protocol)
        end_in_order(H2Protocol, H11Protocol)
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
        _open_of(self.context, self.config.graceful_timeout)[self] = _socket_of(self)
        await original(self)

    server.run = run


def _socket_of(server: Any) -> Any:
    if hasattr(server, "writer"):
        return server.writer.get_extra_info("socket")
    return getattr(server.stream, "transport_stream", server.stream).socket


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
        try:
            asyncio.get_running_loop().call_later(term, _cut, made)
        except RuntimeError:
            sys.modules["trio"].lowlevel.spawn_system_task(_cut_on_trio, term, made)

    context.terminated.set = begin_end
    return made


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
