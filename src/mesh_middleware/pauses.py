"""
How work beside a server's event loop lets that loop run.

Owns the rhythm. Python lets one thread run at a time, and takes the turn from it after five
milliseconds; a request that comes meanwhile waits as long. What the watcher's thread does at length
is therefore cut into turns of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

TURN = 0.0005
"""Seconds of work between two pauses."""

PAUSE = 0.0001
"""Seconds of a pause: long enough that a thread that waits for its turn gets it."""


def give_way() -> None:
    """Let other threads run."""
    time.sleep(PAUSE)


def paced(items: Iterable[T]) -> Iterator[T]:
    """Hand on *items*, and let other threads run now and then."""
    until = time.perf_counter() + TURN
    for item in items:
        yield item
        if time.perf_counter() > until:
            give_way()
            until = time.perf_counter() + TURN
