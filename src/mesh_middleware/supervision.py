"""
Watches that end are started again, and watches that stand still are seen.

Owns one loop around each long-running task of the watcher, and the moments by which each task has
to have got on. Knows nothing of agents or policies.

Theory. A watch that ends unnoticed is fail-open: the policy it read stays in force for ever. So the
end of a task is an error whatever ended it, unless somebody cancelled the task: it is logged,
counted and shown, and the task begins again after a pause. And each task says when it will have got
on at the latest. Whoever asks, from whichever thread, compares these moments with the clock: a loop
that is blocked, or a thread that is dead, cannot keep it from being seen.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

_log = logging.getLogger("mesh_middleware.watch")

Spawn = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]
"""Starts a supervised task of this name, which does that work."""

ENDED, STALLED = "watch_ended", "watch_stalled"
"""Codes: a watch ended by an error of ours or of a plugin; a watch has not got on in time."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds before a task that ended begins again; doubled each time it ends before it got on."""

SLACK = 30.0
"""Seconds beyond its own wait after which a task counts as stalled."""


class TaskHealth:
    """
    How the tasks of one watcher are getting on.

    Written by the watcher's thread, read by any.

    Args:
        clock: monotonic seconds.
        count: is told the code of each end.
        first_pause: seconds before a task that ended begins again.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        count: Callable[[str], None] = lambda code: None,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self.first_pause = first_pause
        self._clock, self._count = clock, count
        self._due: dict[str, float] = {}
        self._ended: dict[str, str] = {}
        self._fails: dict[str, int] = {}

    def expect(self, name: str, seconds: float) -> None:
        """Task *name* lives, and gets on again within *seconds* and some slack."""
        self._due[name] = self._clock() + seconds + SLACK

    def progress(self, name: str) -> None:
        """Task *name* did what it is there for: it has recovered from earlier ends."""
        self._fails.pop(name, None)
        self._ended.pop(name, None)

    def rest(self, name: str) -> None:
        """Task *name* waits for something that has no term; another task looks after that."""
        self._due[name] = math.inf

    def forget(self, name: str) -> None:
        """Task *name* is wanted no more."""
        for table in (self._due, self._ended, self._fails):
            table.pop(name, None)

    def end(self, name: str, error: BaseException | None) -> float:
        """
        Task *name* ended by itself.

        Returns:
            Seconds after which it shall begin again.
        """
        fails = self._fails[name] = self._fails.get(name, 0) + 1
        what = "without an error" if error is None else f"by {type(error).__name__}"
        self._ended[name] = f"{ENDED}: it ended {what}, and begins again"
        self._count(ENDED)
        _log.error(
            "bug: watch task %s ended unexpectedly and is started again; please report",
            name,
            exc_info=error,
        )
        pause = min(LONGEST_PAUSE, self.first_pause * 2.0 ** min(fails - 1, 10))
        self._due[name] = self._clock() + pause + SLACK
        return pause

    def troubles(self) -> dict[str, str]:
        """What is wrong now, by task: each has ended and not recovered, or has not got on."""
        now = self._clock()
        stalled = {
            name: f"{STALLED}: not getting on for {now - due + SLACK:.0f} s"
            for name, due in list(self._due.items())
            if now > due
        }
        return {**dict(self._ended), **stalled}


async def supervise(name: str, work: Callable[[], Awaitable[None]], health: TaskHealth) -> None:
    """
    Do *work*, and do it again whenever it ends otherwise than by a cancellation of this task.

    Args:
        name: of the task, for log and status.
        work: does the task's work; a return is an end like any other.
        health: takes the ends.
    """
    while True:
        health.rest(name)  # until it says when it will have got on
        error: BaseException | None = None
        try:
            await work()
        except BaseException as caught:
            # A plugin can raise anything, a CancelledError included, while nobody cancels us.
            task = asyncio.current_task()
            if isinstance(caught, asyncio.CancelledError) and (task is None or task.cancelling()):
                health.forget(name)
                raise
            error = caught
        await asyncio.sleep(health.end(name, error))
