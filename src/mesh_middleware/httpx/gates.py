"""
How many calls of threads go to one upstream at once, where each has a connection of its own.

Owns the count and the wait; the limits come with each call, as they may have changed.
"""

from __future__ import annotations

import math
import threading

from ..routing.calls import Limits
from .errors import too_many_wait


class Gate:
    """
    The way to one upstream.

    Args:
        name: of the upstream.
        most: httpx's limit of connections; ``None`` is none.
    """

    def __init__(self, name: str, most: int | None) -> None:
        self._name, self._most = name, most
        self._changed = threading.Condition()
        self._open = self._waiting = 0

    def enter(self, limits: Limits, seconds: float | None) -> bool:
        """
        Count a call, waiting for others to `leave` if need be.

        Args:
            limits: of the service that we are; the narrower ones, these or httpx's, hold.
            seconds: to wait at most.

        Returns:
            Whether there was room in time.

        Raises:
            UpstreamBusyError: as many wait as may.
        """
        given = [most for most in (self._most, limits.connections) if most is not None]
        most = max(1, min(given, default=math.inf))
        with self._changed:
            if self._open >= most and not self._wait(most, limits.pending, seconds):
                return False
            self._open += 1
            return True

    def _wait(self, most: float, longest: int | None, seconds: float | None) -> bool:
        if longest is not None and self._waiting >= longest:
            raise too_many_wait(self._name)
        self._waiting += 1
        try:
            return self._changed.wait_for(lambda: self._open < most, seconds)
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Count a call less."""
        with self._changed:
            self._open -= 1
            self._changed.notify()
