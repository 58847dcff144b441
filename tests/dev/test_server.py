"""The agent's socket: who has just called when it stops is not forgotten."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from contextlib import ExitStack, suppress

import pytest

from mesh_middleware.dev import DevAgent

from ..support.steps import yield_times


@pytest.mark.parametrize("steps", range(12))
def test_who_is_accepted_as_the_agent_stops_is_not_lost(steps: int) -> None:
    """
    asyncio loses connections that it accepts in the moment its server closes; the agent has stopped
    accepting by then, so that no socket of its is left to the collector.
    """
    server = DevAgent()._server

    async def scenario(callers: ExitStack) -> None:
        begun = asyncio.Event()
        server._app.on_startup = begun.set
        listening = server._bind()
        address = listening.getsockname()
        serving = asyncio.ensure_future(server._serve(listening))
        await begun.wait()
        await yield_times(20)
        server._release()
        await yield_times(steps)
        with suppress(ConnectionRefusedError):
            for _ in range(3):
                callers.enter_context(socket.create_connection(address, 5))
        await serving

    gc.collect()
    with warnings.catch_warnings(record=True) as told, ExitStack() as callers:
        warnings.simplefilter("always", ResourceWarning)
        asyncio.run(scenario(callers))
        gc.collect()
    assert [str(warning.message) for warning in told] == []
