"""The waits of a watch: what wakes them, and what ends them."""

from __future__ import annotations

import asyncio

import pytest

from mesh_middleware.following import wait_at_most

from .support.steps import yield_times


def test_waiting_ends_with_the_event_or_the_time() -> None:
    """Whether it was set is told, also when it had been before."""

    async def run() -> None:
        event = asyncio.Event()
        assert await wait_at_most(event, 0.001) is False
        asyncio.get_running_loop().call_soon(event.set)
        assert await wait_at_most(event, 60.0) is True
        assert await wait_at_most(event, 0.0) is True

    asyncio.run(asyncio.wait_for(run(), 10))


def test_cancellation_that_comes_with_the_event_is_not_lost() -> None:
    """``asyncio.wait_for`` of Python 3.11 lost it: a mesh took a second to close, now and then."""

    async def run() -> None:
        event = asyncio.Event()
        waiting = asyncio.ensure_future(wait_at_most(event, 60.0))
        await yield_times(3)  # until it waits
        event.set()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(asyncio.wait_for(run(), 10))
