"""
The task in which Hypercorn runs an application for one request, as something that can be ended.

Owns the cancellation of one request's application, at once or after a while, on asyncio and trio.
Hypercorn starts the task and keeps no handle of it. It does not know why a request is ended.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

Predicate = Callable[[BaseException], bool]


class AsyncioTask:
    """
    Stands in for Hypercorn's wrapper of the application, for one request.

    Args:
        app: Hypercorn's wrapper.
        version: of the ASGI specification that the application is told.
        expected: tells which exceptions end the request without a word.
    """

    __slots__ = ("_app", "_expected", "_handle", "_task", "_version", "sends", "sends_after_end")

    def __init__(self, app: Any, version: str, expected: Predicate) -> None:
        self._app, self._version, self._expected = app, version, expected
        self._task: asyncio.Task[Any] | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.sends = self.sends_after_end = 0

    async def __call__(self, scope: Any, *rest: Any) -> None:
        """Run the application."""
        scope["asgi"]["spec_version"] = self._version
        self._task = asyncio.current_task()
        try:
            await self._app(scope, *rest)
        except BaseException as error:
            if not self._expected(error):
                raise
        finally:
            self._task = None
            self.stop_timer()

    def cancel(self) -> None:
        """Cancel the application, if it still runs."""
        if self._task is not None:
            self._task.cancel()

    def cancel_after(self, seconds: float, unless: Callable[[], bool]) -> None:
        """Cancel the application after a while, unless by then something holds."""
        if self._task is None or self._handle is not None:
            return

        def cancel() -> None:
            self._handle = None
            if not unless():
                self.cancel()

        self._handle = self._task.get_loop().call_later(seconds, cancel)

    def stop_timer(self) -> None:
        """Forget `cancel_after`."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class TrioTask:
    """
    The same on trio.

    Args:
        app: Hypercorn's wrapper.
        version: of the ASGI specification that the application is told.
        expected: tells which exceptions end the request without a word.
    """

    def __init__(self, app: Any, version: str, expected: Predicate) -> None:
        import trio

        self._app, self._version, self._expected = app, version, expected
        self._now = trio.current_time
        self._scope = trio.CancelScope()
        self.sends = self.sends_after_end = 0

    async def __call__(self, scope: Any, receive: Any, *rest: Any) -> None:
        """Run the application."""
        scope["asgi"]["spec_version"] = self._version
        with self._scope:
            try:
                await self._app(scope, self._noting(receive), *rest)
            except BaseExceptionGroup as group:
                _, others = group.split(self._expected)
                if others is not None:
                    raise
            except BaseException as error:
                if not self._expected(error):
                    raise

    def _noting(self, receive: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
        async def note() -> Any:
            message = await receive()
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                self.stop_timer()
            return message

        return note

    def cancel(self) -> None:
        """Cancel the application, if it still runs."""
        self._scope.cancel()

    def cancel_after(self, seconds: float, unless: Callable[[], bool]) -> None:
        """Cancel the application after a while, unless it has received that its caller is gone."""
        self._scope.deadline = min(self._scope.deadline, self._now() + seconds)

    def stop_timer(self) -> None:
        """Forget `cancel_after`."""
        self._scope.deadline = math.inf


def application_task(
    app: Any, task_group: Any, version: str, expected: Predicate
) -> AsyncioTask | TrioTask:
    """
    Make the one that fits the worker.

    Args:
        app: Hypercorn's wrapper of the application.
        task_group: of the connection, which starts the task.
        version: of the ASGI specification that the application is told.
        expected: tells which exceptions end the request without a word.
    """
    kind = TrioTask if type(task_group).__module__ == "hypercorn.trio.task_group" else AsyncioTask
    return kind(app, version, expected)
