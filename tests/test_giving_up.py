"""Questions to the agent that are given up: at whatever step, no socket stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh_middleware.config import Settings, load_settings
from mesh_middleware.consul.client import Answer, ConsulClient
from mesh_middleware.consul.wire import Question
from mesh_middleware.exceptions import AgentUnavailableError

from .support.certs import Ca, plain_context
from .support.listening import close_server
from .support.steps import yield_times

PATIENCE = 10.0
QUESTION = Question("/v1/thing", "nothing")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n"
STEPS = 400
"""More steps of the loop than any question here takes."""
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


class Agent:
    """Answers on the loop of its questions, in two pieces, and knows which connections are open."""

    def __init__(self) -> None:
        self.open: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Condition()
        self._serving: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the questions of one connection."""
        self._serving.add(asyncio.current_task())
        await self._count(self.open.add, writer)
        # uvloop calls it a RuntimeError to write where nobody reads any more.
        with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(ANSWER)
                await yield_times(2)
                writer.write(b"true")
        writer.transport.abort()
        await self._count(self.open.discard, writer)

    async def _count(self, change: Callable[[Any], None], writer: asyncio.StreamWriter) -> None:
        async with self._changed:
            change(writer)
            self._changed.notify_all()

    async def has_open(self, count: int) -> None:
        """Wait until *count* connections are open."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.open) == count)

    async def hang_up(self) -> None:
        """End what is open."""
        for writer in list(self.open):
            writer.transport.abort()
        await self.has_open(0)

    async def end(self) -> None:
        """End what is being served."""
        await asyncio.gather(*filter(None, self._serving), return_exceptions=True)


Scenario = Callable[[Agent, Settings], Awaitable[None]]
Meet = Callable[[Scenario], None]


@pytest.fixture(params=["plain", "tls", "unix"])
def way(request: pytest.FixtureRequest) -> str:
    """How the agent is reached."""
    return str(request.param)


@pytest.fixture(params=LOOPS)
def meet(request: pytest.FixtureRequest, way: str, ca: Ca, tmp_path: Path) -> Meet:
    """Runs a scenario of one agent and one client, and sees that nothing was left unclosed."""

    async def listen(agent: Agent) -> tuple[asyncio.Server, dict[str, str]]:
        if way == "unix":
            path = tmp_path / "agent.sock"
            server = await asyncio.start_unix_server(agent.serve, path)
            return server, {"agent": f"unix://{path}"}
        tls = None
        if way == "tls":
            made = ca.leaf("agent", dns=["consul.example"])
            tls = plain_context("server", [ca], made, verify_mode=ssl.CERT_NONE)
            (tmp_path / "ca.pem").write_text(ca.pem)
        server = await asyncio.start_server(agent.serve, "127.0.0.1", 0, ssl=tls)
        url = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if tls is None:
            return server, {"agent": f"http://{url}"}
        named = {"ca_file": str(tmp_path / "ca.pem"), "tls_server_name": "consul.example"}
        return server, {"agent": f"https://{url}", **named}

    async def run(scenario: Scenario) -> None:
        agent = Agent()
        server, where = await listen(agent)
        settings = load_settings({"service": "tax", **where}, environ={})
        async with asyncio.timeout(PATIENCE * 2):
            await scenario(agent, settings)
            await agent.has_open(0)
        await close_server(server)
        await agent.end()
        await yield_times(5)

    def meet(scenario: Scenario) -> None:
        gc.collect()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", ResourceWarning)
            with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
                runner.run(run(scenario))
            gc.collect()
        assert [str(warning.message) for warning in told] == []

    return meet


@contextlib.asynccontextmanager
async def asking(settings: Settings) -> AsyncIterator[ConsulClient]:
    """A client that is closed in the end."""
    client = ConsulClient(settings)
    try:
        yield client
    finally:
        await client.close()


async def give_up(question: Coroutine[Any, Any, Any], steps: int) -> bool:
    """Cancel *question* after so many *steps* of the loop; returns whether it was done before."""
    task = asyncio.ensure_future(question)
    await yield_times(steps)
    done = task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return done


def test_a_question_that_is_given_up_at_any_step_leaves_no_connection(meet: Meet) -> None:
    """
    While it connects, shakes hands, waits, reads or is done: the next question finds one
    connection, its own, and the agent sees the others end.
    """

    async def scenario(agent: Agent, settings: Settings) -> None:
        async with asking(settings) as client:
            for steps in range(STEPS):
                await agent.hang_up()
                done = await give_up(client.ask(QUESTION), steps)
                assert (await client.ask(QUESTION)).body is True
                await agent.has_open(1)
                if done:
                    return
            raise AssertionError("it was never done")

    meet(scenario)


def test_a_question_on_a_kept_connection_can_be_given_up_at_any_step(meet: Meet) -> None:
    """The connection goes with it, or serves the next question; there is never a second one."""

    async def scenario(agent: Agent, settings: Settings) -> None:
        async with asking(settings) as client:
            for steps in range(STEPS):
                await client.ask(QUESTION)
                done = await give_up(client.ask(QUESTION), steps)
                assert (await client.ask(QUESTION)).body is True
                await agent.has_open(1)
                if done:
                    return
            raise AssertionError("it was never done")

    meet(scenario)


def test_stale_connections_are_closed_also_by_a_question_that_is_given_up(meet: Meet) -> None:
    """An agent that was restarted ended them all; who finds that out may be cancelled over it."""

    async def scenario(agent: Agent, settings: Settings) -> None:
        async with asking(settings) as client:
            for steps in range(STEPS):
                await asyncio.gather(*(client.ask(QUESTION) for _ in range(4)))
                await agent.has_open(4)
                await agent.hang_up()
                done = await give_up(client.ask(QUESTION), steps)
                assert (await client.ask(QUESTION)).body is True
                await agent.has_open(1)
                await agent.hang_up()
                if done:
                    return
            raise AssertionError("it was never done")

    meet(scenario)


def test_two_cancellations_leave_no_connection_either(meet: Meet) -> None:
    """The second comes while the first is still clearing up."""

    async def scenario(agent: Agent, settings: Settings) -> None:
        async with asking(settings) as client:
            for steps in range(STEPS):
                task = asyncio.ensure_future(client.ask(QUESTION))
                await yield_times(steps)
                done = task.done()
                task.cancel()
                await yield_times(steps % 3)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert (await client.ask(QUESTION)).body is True
                await agent.has_open(1)
                await agent.hang_up()
                if done:
                    return
            raise AssertionError("it was never done")

    meet(scenario)


def test_closing_the_client_ends_a_question_at_any_step(meet: Meet) -> None:
    """What is being connected, and what is in use, ends as an agent that cannot be reached."""

    async def scenario(agent: Agent, settings: Settings) -> None:
        for steps in range(1, STEPS):
            client = ConsulClient(settings)
            task = asyncio.ensure_future(client.ask(QUESTION))
            await yield_times(steps)
            done = task.done()
            await client.close()
            async with asyncio.timeout(PATIENCE):
                (ended,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(ended, (Answer, AgentUnavailableError))
            await agent.has_open(0)
            if done:
                return
        raise AssertionError("it was never done")

    meet(scenario)
