"""
An event loop whose time passes as soon as nobody has anything to do.

Hours of a thousand applications take seconds, and the same ones every time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Hurrying(selectors.SelectSelector):
    """Waits for nothing: the time it was to wait has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        """What is ready now; when nothing is, it is *timeout* seconds later."""
        ready = super().select(0)
        if not ready and timeout:
            self.passed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Counts seconds from zero."""

    def __init__(self) -> None:
        self._hurrying = _Hurrying()
        super().__init__(self._hurrying)

    def time(self) -> float:
        """Seconds that have passed."""
        return self._hurrying.passed


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
