"""
Requests that live long: found again when the policy changes, and ended when it denies them now.

Owns the register of what an ASGI application is doing. A request is judged when it comes; a
WebSocket or a stream can outlast that verdict by hours. After each change of policy the register is
swept, and what began under the old policy and is denied by the new one is cancelled, as is what
came over a connection that has lost what it stood on. Ordinary requests are done by the time of the
sweep. A request whose last byte was sent is over: what runs after it is the application's.

Runs in the server's event loop, asyncio or trio; only `sweep_soon` is called from other threads. A
sweep yields to the loop after `SLICE` bytes of request targets, so that many live requests with
targets that take long to judge hold up no other request.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import Any

from .inbound.judgement import Judgement

Handle = asyncio.Task[Any]
Denied = Callable[[Judgement], bool]
"""Whether a request that was let in would be denied now."""

SLICE = 4096
"""Bytes of request targets that one turn of the loop judges; at least one request."""
TARGET_COST = 64
"""Bytes that a request counts for besides its target."""


class Ended(Exception):
    """The request was ended because its caller is denied now."""


class LiveRequests:
    """
    What one application is doing at this moment.

    Args:
        denied: judges a live request again.
    """

    def __init__(self, denied: Denied) -> None:
        self._denied = denied
        self._live: dict[Any, Judgement] = {}
        self._ended: set[Any] = set()
        self._call_soon: Callable[[Callable[[], None]], Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._left: list[tuple[Any, Judgement]] = []
        self._again = False

    def __len__(self) -> int:
        return len(self._live)

    def enter(self, request: Judgement) -> Handle | None:
        """
        Enter a request that the present asyncio task works on from now on; `leave` must follow.

        Entering and leaving are plain calls, since every request pays for them.

        Returns:
            ``None`` on trio: nothing was entered, and `run_on_trio` does the work.
        """
        # Asking a known loop spares the search for the running one, which is half of the cost. The
        # thread tells that it cannot be another loop that runs; one that has ended has no task.
        task = current_task(self._loop) if get_ident() == self._thread else None
        if task is None:
            task = self._find_task()
            if task is None:
                return None
        live = self._live
        if task in live:
            request.nested = live[task]
        live[task] = request
        return task

    def _find_task(self) -> Handle | None:
        try:
            task = current_task()
        except RuntimeError:
            return None
        if task is not None:
            self._loop, self._thread = task.get_loop(), get_ident()
            self._call_soon = self._loop.call_soon_threadsafe
        return task

    def leave(self, task: Handle) -> None:
        """The request is done, one way or the other."""
        nested = self._live.pop(task).nested
        if nested is not None:
            self._live[task] = nested
        elif self._ended:
            self._ended.discard(task)

    def was_ended(self, task: Handle) -> bool:
        """Whether a sweep has cancelled the request; then the cancellation ends with it."""
        if task not in self._ended or self._live[task].nested is not None:
            return False
        task.uncancel()
        return True

    async def run_on_trio(self, work: Awaitable[None], request: Judgement) -> None:
        """
        Do the application's work on one request, until it is done or ended.

        Raises:
            Ended: a sweep found that the request is denied now; the application was cancelled.
        """
        trio = sys.modules["trio"]
        if self._call_soon is None:
            self._call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        with trio.CancelScope() as cancel:
            self._live[cancel] = request
            try:
                await work
            finally:
                del self._live[cancel]
        if cancel.cancelled_caught:
            raise Ended

    def sweep_soon(self) -> None:
        """Sweep in the server's event loop; called from any thread."""
        if self._call_soon is None or not self._live:
            return
        try:
            self._call_soon(self.sweep)
        except RuntimeError:  # the loop has ended, and with it every request
            self._call_soon = None

    def sweep(self) -> None:
        """Begin to end what is denied now; while a sweep is under way, another follows it."""
        if self._left:
            self._again = True
            return
        self._left = list(self._live.items())
        self._sweep_slice()

    def _sweep_slice(self) -> None:
        left, room = self._left, SLICE
        while left and room > 0:
            handle, request = left.pop()
            if self._live.get(handle) is not request or handle in self._ended:
                continue
            room -= TARGET_COST + len(request.scope.get("raw_path") or b"")
            if self._is_denied(request):
                if isinstance(handle, asyncio.Task):
                    self._ended.add(handle)
                handle.cancel()
        if left or self._again:
            if not left:
                self._again, self._left = False, list(self._live.items())
            self._go_on()

    def _go_on(self) -> None:
        if self._call_soon is None:
            self._left, self._again = [], False
            return
        try:
            self._call_soon(self._sweep_slice)
        except RuntimeError:  # the loop ends
            self._left, self._again = [], False

    def _is_denied(self, request: Judgement | None) -> bool:
        while request is not None:
            if self._denied(request):
                return True
            request = request.nested
        return False
