"""A wall clock that tests set; timers stay real."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """Seconds since the epoch when called; `set` moves it against the real one."""

    def __init__(self) -> None:
        self._began = time.time()
        self._shift = 0.0

    def __call__(self) -> float:
        return self._began + self._shift

    def now(self) -> datetime:
        """The same as an aware moment."""
        return datetime.fromtimestamp(self(), UTC)

    def set(self, shift: float) -> None:
        """Let so many seconds have passed since the clock was made; negative goes back."""
        self._shift = shift
