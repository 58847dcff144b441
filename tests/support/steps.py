"""
One step of an event loop at a time.

Owns what tests use in order to get between two steps of asyncio's tasks; time passes nowhere here.
"""

from __future__ import annotations

import types
from collections.abc import Generator


@types.coroutine
def yield_once() -> Generator[None, None, None]:
    """Let everything else that is ready run once; for asyncio and uvloop."""
    yield


async def yield_times(count: int) -> None:
    """Let the loop take *count* steps."""
    for _ in range(count):
        await yield_once()
