"""
Runs an application for one request, as Hypercorn's task does, and can end it.

Owns the run: what ends it without a word in the log, and its cancellation, at once or after a
while, on asyncio and trio. Stands in for Hypercorn's ``_handle``, which keeps no handle of the
task. It does not know why a request is ended.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable
from typing import Any

ASGI_VERSION = "2.4"
"""Of the specification: the first in which ``send`` may raise."""


class ClientDisconnected(OSError):
    """Raised by ``send``: the caller is gone, and nothing more can reach it."""


def is_disconnect(error: BaseException) -> bool:
    """
    Tell whether an application has ended by `ClientDisconnected` and nothing else.

    Args:
        error: by which it has ended; groups of it, and what Starlette makes of it, count as well.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_disconnect, error.exceptions))
    if isinstance(error, ClientDisconnected):
        return True
    names = (("requests", "ClientDisconnect"), ("websockets", "WebSocketDisconnect"))
    known = (getattr(sys.modules.get(f"starlette.{module}"), name, None) for module, name in names)
    cause = error.__context__
    return (
        isinstance(error, tuple(filter(None, known))) and cause is not None and is_disconnect(cause)
    )


class Run:
    """
    What a stream knows of the run of its application; mutable, since each request pays for it.

    Attributes:
        handle: cancels the run: an asyncio task or a trio cancel scope; ``None`` when it has ended.
        timer: of `cancel_after`, on asyncio.
    """

    __slots__ = ("handle", "timer")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Cancel the application, if it still runs."""
        if self.handle is not None:
            self.handle.cancel()

    def cancel_after(self, seconds: float, unless: Callable[[], bool]) -> None:
        """
        Cancel the application after a while.

        Args:
            seconds: the while.
            unless: asked then. On trio it counts instead whether the application has received, by
                then, that its caller is gone.
        """
        if isinstance(self.handle, asyncio.Task) and self.timer is None:
            self.timer = self.handle.get_loop().call_later(seconds, self._cancel_unless, unless)
        elif self.handle is not None and hasattr(self.handle, "deadline"):
            self.handle.deadline = sys.modules["trio"].current_time() + seconds

    def keep(self) -> None:
        """Forget `cancel_after`."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        elif hasattr(self.handle, "deadline"):
            self.handle.deadline = math.inf

    def _cancel_unless(self, holds: Callable[[], bool]) -> None:
        self.timer = None
        if not holds():
            self.cancel()


async def run_on_asyncio(
    app: Any, config: Any, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any
) -> None:
    """Run an application for one request, in the task of that request."""
    stream = send.__self__
    scope["asgi"]["spec_version"] = ASGI_VERSION
    # Asking a known loop spares the search for the running one, most of the cost.
    stream.run = run = Run(asyncio.current_task(stream.task_group._loop))
    try:
        await app(scope, receive, send, sync_spawn, call_soon)
    except BaseException as error:
        await _end(config, error)
    finally:
        run.keep()
        run.handle = None
        await send(None)


async def run_on_trio(
    app: Any, config: Any, scope: Any, receive: Any, send: Any, sync_spawn: Any, call_soon: Any
) -> None:
    """Run an application for one request, in the task of that request."""
    trio = sys.modules["trio"]
    scope["asgi"]["spec_version"] = ASGI_VERSION
    try:
        with trio.CancelScope() as cancel:
            send.__self__.run = run = Run(cancel)
            try:
                await app(scope, _keeping(run, receive), send, sync_spawn, call_soon)
            except BaseExceptionGroup as group:
                cancelled, others = group.split(trio.Cancelled)
                if others is not None and not is_disconnect(others):
                    await _end(config, others)
                elif cancelled is not None:
                    raise cancelled from None
            except BaseException as error:
                await _end(config, error)
    finally:
        run.handle = None
        await send(None)


async def _end(config: Any, error: BaseException) -> None:
    """Log what an application has failed with, as Hypercorn does; raise what is no failure."""
    if is_disconnect(error):
        return
    if not isinstance(error, Exception):
        raise error
    await config.log.exception("Error in ASGI Framework")


def _keeping(run: Run, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """Have an application kept that receives that its caller is gone: it was told."""

    async def note() -> Any:
        message = await receive()
        if message["type"].endswith(".disconnect"):
            run.keep()
        return message

    return note
