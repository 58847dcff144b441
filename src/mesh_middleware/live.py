"""
Requests that live long: found again when the policy changes, and ended when it denies them now.

Owns the register of what an ASGI application is doing. A request is judged when it comes; a
WebSocket or a stream can outlast that verdict by hours. After each change of policy the register is
swept, and what began under the old policy and is denied by the new one is cancelled, as is what
came over a connection that has lost what it stood on. Ordinary requests are done by the time of the
sweep.

Runs in the server's event loop, asyncio or trio; only `sweep_soon` is called from other threads.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import current_task
from collections.abc import Awaitable, Callable, Mapping
from threading import get_ident
from typing import Any

from .certificates import Peer
from .gate import Bond

Handle = asyncio.Task[Any]
Entry = tuple[Bond, Mapping[str, Any], Any]
"""What is bound to the connection of a request, its scope, and the entry of the request that the
task was at before."""
Denied = Callable[[Peer | None, Mapping[str, Any]], bool]
"""Whether a request that was let in would be denied now."""


class Ended(Exception):
    """The request was ended because its caller is denied now."""


class LiveRequests:
    """
    What one application is doing at this moment.

    Args:
        denied: judges a live request anew.
    """

    def __init__(self, denied: Denied) -> None:
        self._denied = denied
        self._live: dict[Any, Entry] = {}
        self._ended: set[Any] = set()
        self._call_soon: Callable[[Callable[[], None]], Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def __len__(self) -> int:
        return len(self._live)

    def enter(self, bond: Bond, scope: Mapping[str, Any]) -> Handle | None:
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
        # An application may call itself, in the task of the request it answers.
        live = self._live
        live[task] = (bond, scope, live.get(task))
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
        outer = self._live.pop(task)[2]
        if outer is not None:
            self._live[task] = outer
        elif self._ended:
            self._ended.discard(task)

    def was_ended(self, task: Handle) -> bool:
        """Whether a sweep has cancelled the request; then the cancellation ends with it."""
        if task not in self._ended or self._live[task][2] is not None:
            return False
        task.uncancel()
        return True

    async def run_on_trio(
        self, work: Awaitable[None], bond: Bond, scope: Mapping[str, Any]
    ) -> None:
        """
        Do the application's work on one request, until it is done or ended.

        Raises:
            Ended: a sweep found that the request is denied now; the application was cancelled.
        """
        trio = sys.modules["trio"]
        if self._call_soon is None:
            self._call_soon = trio.lowlevel.current_trio_token().run_sync_soon
        with trio.CancelScope() as cancel:
            self._live[cancel] = (bond, scope, None)
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
        """End what is denied now."""
        for handle, entry in list(self._live.items()):
            if handle not in self._ended and self._any_denied(entry):
                if isinstance(handle, asyncio.Task):
                    self._ended.add(handle)
                handle.cancel()

    def _any_denied(self, entry: Entry | None) -> bool:
        while entry is not None:
            (peer, standing), scope, outer = entry
            # Who only listens sends no bytes at whose coming the connection would end.
            if peer is not None and standing is not None and standing.over():
                return True
            if self._denied(peer, scope):
                return True
            entry = outer
        return False
