"""
Times the idle connections of Hypercorn (0.18), and forgets those that their peers have closed.

Owns the moment at which a connection has been idle for too long. Hypercorn starts two tasks after
each request and cancels them at the next, which is a tenth of what a small request costs; on
asyncio two values are written down instead, and one timer looks at them now and then. And it keeps
a connection that its peer has closed, 50 to 100 KiB each, until it would have been idle for too
long. How a connection is ended then is Hypercorn's matter, and `hypercorn_ends`'.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any


class IdleTimer:
    """
    In place of Hypercorn's idle timer of one connection on asyncio.

    Args:
        server: Hypercorn's object for the connection.
    """

    __slots__ = ("_deadline", "_group", "_handle", "_loop", "_server", "_term")

    def __init__(self, server: Any) -> None:
        self._server = server
        self._loop: asyncio.AbstractEventLoop = server.loop
        self._term: float = server.config.keep_alive_timeout
        self._deadline = math.inf
        self._group: Any = None
        self._handle: asyncio.TimerHandle | None = None

    async def restart(self, task_group: Any, _action: object) -> None:
        """It is idle from now on."""
        self._group = task_group
        self._deadline = self._loop.time() + self._term
        if self._server.context.terminated.is_set():
            self.end_idle()
        elif self._handle is None:
            self._handle = self._loop.call_at(self._deadline, self._look)

    async def stop(self) -> None:
        """It is used again, or has ended. The timer finds out by itself, if it is not cancelled."""
        self._deadline = math.inf

    def cancel(self) -> None:
        """Nothing holds the connection from now on."""
        self._deadline = math.inf
        if self._handle is not None:
            self._handle.cancel()

    def end_idle(self) -> None:
        """End the connection now, if it is idle."""
        if self._deadline == math.inf:
            return
        self._deadline = math.inf
        work = self._server._initiate_server_close()
        try:
            self._group._task_group.create_task(work)
        except RuntimeError:  # its tasks are being cancelled: it ends anyway
            work.close()

    def _look(self) -> None:
        self._handle = None
        if self._deadline <= self._loop.time():
            self.end_idle()
        elif self._deadline < math.inf:
            self._handle = self._loop.call_at(self._deadline, self._look)


def time_what_is_idle(protocol: Any) -> None:
    """
    Have three kinds of connection timed that Hypercorn takes for used for ever.

    One on which HTTP/2 was spoken without being negotiated, until its first request has ended; one
    whose last request was cancelled by its caller; and one whose last request was refused.

    Args:
        protocol: Hypercorn's class of connections of HTTP/2.
    """
    from h2.events import RequestReceived, StreamReset
    from hypercorn.events import Updated

    initiate, handle_events = protocol.initiate, protocol._handle_events

    async def time_if_idle(self: Any) -> None:
        if self.idle and not self.closed:
            await self.send(Updated(idle=True))

    async def begin(self: Any, *args: Any) -> None:
        await initiate(self, *args)
        await time_if_idle(self)

    async def _handle_events(self: Any, events: list[Any]) -> None:
        await handle_events(self, events)
        if any(isinstance(event, StreamReset | RequestReceived) for event in events):
            await time_if_idle(self)

    protocol.initiate, protocol._handle_events = begin, _handle_events


class _NoTimer:
    """In place of the idle timer of a connection that its peer has closed."""

    async def restart(self, *_: object) -> None:
        pass

    async def stop(self) -> None:
        pass


def forget_closed(server: Any) -> None:
    """
    Have connections that their peers have closed forgotten at once.

    Args:
        server: Hypercorn's class for a connection of one kind of worker.
    """
    from hypercorn.events import Closed

    original = server._read_data

    async def _read_data(self: Any) -> None:
        try:
            await original(self)
        except Exception:
            # Its applications are cancelled now, and asyncio's would wait for room to say goodbye.
            await self.protocol.handle(Closed())
            raise
        self.mesh_left = True
        timer, self.idle_task = self.idle_task, _NoTimer()
        await timer.stop()

    server._read_data = _read_data


def time_lightly(server: Any) -> None:
    """
    Have connections timed by `IdleTimer`.

    Args:
        server: Hypercorn's class for a connection of its asyncio workers.
    """
    original = server.run

    async def run(self: Any) -> None:
        timer = self.idle_task = IdleTimer(self)
        try:
            await original(self)
        finally:
            timer.cancel()

    server.run = run


def end_idle(server: Any) -> None:
    """The worker ends: so does this connection, if it is idle. On trio it has noticed itself."""
    if isinstance(server.idle_task, IdleTimer):
        server.idle_task.end_idle()
