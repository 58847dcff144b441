"""The registration: kept by one process, renewed when it is lost, gone when that process ends."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware.config import Settings
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.wire import Question
from mesh_middleware.dev import DevAgent
from mesh_middleware.dev.acl import service_token
from mesh_middleware.dev.http import Answer, Request
from mesh_middleware.exceptions import (
    AgentRefusedError,
    AgentUnavailableError,
    ConfigError,
)
from mesh_middleware.registration import OwnerLock, Registration

PATIENCE = 10.0
AGENT = "http://127.0.0.1:8500"
HOLDER = """
import sys
from pathlib import Path
from mesh_middleware.registration import OwnerLock
lock = OwnerLock(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
print("held" if lock.acquire() else "free", flush=True)
sys.stdin.read()
"""


# -- the lock --------------------------------------------------------------------------------------


@contextmanager
def holder(folder: Path, instance: str = "tax-127.0.0.1-5003") -> Iterator[subprocess.Popen[str]]:
    """Another process that has tried to take the lock, and says whether it holds it."""
    command = [sys.executable, "-c", HOLDER, AGENT, instance, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE)


def said(process: subprocess.Popen[str]) -> str:
    """The one line that a holder prints."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
    assert ready, "the other process says nothing"
    return process.stdout.readline().strip()


@pytest.mark.process
def test_one_process_of_two_is_the_owner(tmp_path: Path) -> None:
    """The second gets no for an answer, without waiting."""
    mine = OwnerLock(AGENT, "tax-127.0.0.1-5003", tmp_path)
    assert mine.acquire() and mine.held
    with holder(tmp_path) as other:
        assert said(other) == "free"
    mine.release()
    with holder(tmp_path) as other:
        assert said(other) == "held"
        assert not mine.acquire() and not mine.held


@pytest.mark.process
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_ownership_dies_with_its_holder(tmp_path: Path, ending: signal.Signals) -> None:
    """A killed owner leaves no stale lock: the next attempt takes over."""
    mine = OwnerLock(AGENT, "tax-127.0.0.1-5003", tmp_path)
    with holder(tmp_path) as other:
        assert said(other) == "held"
        assert not mine.acquire()
        os.kill(other.pid, ending)
        other.wait(PATIENCE)
        assert mine.acquire()
    mine.release()


@pytest.mark.process
def test_one_process_owns_an_instance_once(tmp_path: Path) -> None:
    """Two meshes of one service in one process: the second stands by, and its end takes nothing."""
    first, second = (OwnerLock(AGENT, "tax-127.0.0.1-5003", tmp_path) for _ in range(2))
    assert first.acquire() and not second.acquire() and not second.held
    second.release()
    with holder(tmp_path) as other:
        assert first.held and said(other) == "free", "nobody else can have it still"
    first.release()
    assert second.acquire()
    second.release()
    with holder(tmp_path) as other:
        assert said(other) == "held" and not first.acquire()


@pytest.mark.process
@pytest.mark.parametrize("what", ["instance", "agent"])
def test_locks_of_different_registrations_do_not_touch(tmp_path: Path, what: str) -> None:
    """Two instances on one host, or one with two agents, each have an owner."""
    agent = "http://127.0.0.1:8501" if what == "agent" else AGENT
    instance = "tax-5004" if what == "instance" else "tax-127.0.0.1-5003"
    mine = OwnerLock(agent, instance, tmp_path)
    with holder(tmp_path) as other:
        assert said(other) == "held"
        assert mine.acquire()
    mine.release()


def test_lock_may_be_taken_and_released_twice(tmp_path: Path) -> None:
    """Each beat asks for it."""
    lock = OwnerLock(AGENT, "tax", tmp_path)
    lock.release()
    assert lock.acquire() and lock.acquire() and lock.held
    lock.release()
    lock.release()
    assert not lock.held


def test_odd_names_make_sound_file_names(tmp_path: Path) -> None:
    """An instance ID is Consul's to choose: it never becomes a path."""
    lock = OwnerLock(AGENT, "../../etc/passwd\n" + "x" * 500, tmp_path / "locks")
    (tmp_path / "locks").mkdir()
    assert lock.acquire()
    assert [path.parent for path in tmp_path.rglob("*.lock")] == [tmp_path / "locks"]
    lock.release()


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this user's session."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"mesh_middleware-{os.getuid()}"


def test_lock_lies_in_a_folder_of_this_user_alone(runtime: Path) -> None:
    """Nobody else may take the lock, or put something in its place."""
    lock = OwnerLock(AGENT, "tax")
    assert lock.acquire()
    assert stat.S_IMODE(runtime.stat().st_mode) & 0o077 == 0
    assert len(list(runtime.glob("*.lock"))) == 1
    lock.release()


@pytest.mark.parametrize("trap", ["link", "file", "writable"])
def test_folder_that_others_could_have_prepared_is_refused(runtime: Path, trap: str) -> None:
    """A link, a file, or a folder that others may write to: none is used."""
    elsewhere = runtime.parent / "elsewhere"
    elsewhere.mkdir()
    if trap == "link":
        runtime.symlink_to(elsewhere)
    elif trap == "file":
        runtime.touch()
    else:
        runtime.mkdir()
        runtime.chmod(0o777)
    with pytest.raises(ConfigError):
        OwnerLock(AGENT, "tax").acquire()
    assert list(elsewhere.iterdir()) == []


def test_runtime_folder_that_is_not_there_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session variable inherited by a service names a folder that is gone: /tmp will do."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lock = OwnerLock(AGENT, "tax")
    assert lock.acquire()
    assert len(list(tmp_path.rglob("*.lock"))) == 1
    lock.release()


def test_missing_folder_is_a_config_error(tmp_path: Path) -> None:
    """It is told, and can be mended while we run."""
    lock = OwnerLock(AGENT, "tax", tmp_path / "later")
    with pytest.raises(ConfigError, match="lock"):
        lock.acquire()
    (tmp_path / "later").mkdir()
    assert lock.acquire()
    lock.release()


# -- the registration ------------------------------------------------------------------------------

TAX = Settings("tax", port=5003, address="127.0.0.1", token="ours")


class Kept:
    """A registration with the dev agent, stepped by the test."""

    def __init__(self, agent: DevAgent, client: ConsulClient, folder: Path) -> None:
        self.agent = agent
        self.client = client
        self.lock = OwnerLock(AGENT, TAX.instance_id, folder)
        self.told: list[bool] = []
        self.registration = Registration(TAX, client, self.lock, self.told.append)

    async def beat(self, status: str = "passing") -> None:
        """One beat."""
        await self.registration.beat(status, "because")

    async def end(self) -> None:
        """The end."""
        await self.registration.end()

    async def ask(self, path: str, **params: str) -> Any:
        """What the agent says."""
        return (await self.client.ask(Question(path, "anything", params=params))).body

    async def services(self) -> dict[str, Any]:
        """What the agent has registered."""
        found: dict[str, Any] = await self.ask("/v1/agent/services")
        return found

    async def status(self) -> str:
        """State of our check."""
        checks = await self.ask("/v1/agent/checks")
        return str(checks["mesh:tax-127.0.0.1-5003"]["Status"])


@asynccontextmanager
async def kept(tmp_path: Path, **options: Any) -> AsyncIterator[Kept]:
    """A registration and its agent, in one process."""
    agent = DevAgent(**options)
    client = ConsulClient(TAX, httpx.ASGITransport(agent.app))
    try:
        mine = Kept(agent, client, tmp_path)
        yield mine
    finally:
        mine.lock.release()
        await client.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run the coroutine of a test, with a limit."""
    asyncio.run(asyncio.wait_for(work, PATIENCE))


def away(agent: DevAgent, says: Answer) -> Callable[[], None]:
    """Let the agent answer every request with *says*, until the returned function is called."""

    async def answer(request: Request) -> Answer:
        return says

    agent.interpose = answer

    def back() -> None:
        agent.interpose = None

    return back


def test_first_beat_registers_and_reports(tmp_path: Path) -> None:
    """Native, with our address; critical until we say otherwise, passing after."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat("critical")
            service = (await mine.services())["tax-127.0.0.1-5003"]
            assert (service["Service"], service["Port"]) == ("tax", 5003)
            assert service["Address"] == "127.0.0.1"
            assert service["Connect"] == {"Native": True}
            assert await mine.status() == "critical"
            assert await mine.ask("/v1/health/connect/tax", passing="1") == []
            await mine.beat()
            assert await mine.status() == "passing"
            assert len(await mine.ask("/v1/health/connect/tax", passing="1")) == 1
            assert mine.told == [True]
            assert mine.registration.owner and mine.registration.registered

    run(scenario())


@pytest.mark.process
def test_who_is_not_the_owner_registers_nothing(tmp_path: Path) -> None:
    """The other worker's registration is not touched, not by beats and not by the end."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            with holder(tmp_path) as other:
                assert said(other) == "held"
                await mine.beat()
                assert await mine.services() == {}
                assert not mine.registration.owner
                await mine.end()
                assert mine.told == []
            await mine.beat()
            assert set(await mine.services()) == {"tax-127.0.0.1-5003"}
            await mine.end()

    run(scenario())


@pytest.mark.parametrize("status", ["passing", "critical"])
def test_lost_registration_is_made_again(tmp_path: Path, status: str) -> None:
    """An agent that forgot us says so to the next beat, which registers anew at once."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat()
            mine.agent.deregister("tax-127.0.0.1-5003")
            await mine.beat(status)
            assert set(await mine.services()) == {"tax-127.0.0.1-5003"}
            assert await mine.status() == status
            assert mine.told == [True, True]

    run(scenario())


class Deaf(httpx.ASGITransport):
    """The way to an agent; while it is silent, every request ends as one to a paused agent does."""

    silent = False
    unheard = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self.silent:
            self.unheard += 1
            raise httpx.ReadTimeout("nothing came", request=request)
        return await super().handle_async_request(request)


def test_an_agent_that_says_nothing_is_asked_once_per_beat(tmp_path: Path) -> None:
    """Asked again within the beat it would take twice as long to be noticed; the next registers."""

    async def scenario() -> None:
        agent = DevAgent()
        way = Deaf(agent.app)
        mine = Kept(agent, ConsulClient(TAX, way), tmp_path)
        await mine.beat()
        way.silent = True
        with pytest.raises(AgentUnavailableError):
            await mine.beat()
        assert way.unheard == 1
        way.silent = False
        agent.deregister("tax-127.0.0.1-5003")
        await mine.beat()
        assert mine.told == [True, True]
        mine.lock.release()
        await mine.client.close()

    run(scenario())


def test_failure_is_told_and_the_next_beat_tries_anew(tmp_path: Path) -> None:
    """The agent away, and back."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            back = away(mine.agent, Answer("No cluster leader", 500))
            for _ in range(2):
                with pytest.raises(AgentUnavailableError, match="No cluster leader"):
                    await mine.beat()
            assert mine.told == []
            back()
            await mine.beat()
            assert await mine.status() == "passing"
            assert mine.told == [True]

    run(scenario())


def test_refusal_names_the_permission_that_is_missing(tmp_path: Path) -> None:
    """A token for another service: 403, and what is needed on what."""

    async def scenario() -> None:
        acl = {"ours": service_token("order")}
        async with kept(tmp_path, acl=acl, default_policy="deny") as mine:
            with pytest.raises(AgentRefusedError, match='needs service:write on "tax"'):
                await mine.beat()
            assert not mine.registration.registered

    run(scenario())


def test_end_takes_the_instance_away(tmp_path: Path) -> None:
    """Critical, deregistered, told, and the lock free for the next."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat()
            await mine.end()
            assert await mine.services() == {}
            assert await mine.ask("/v1/agent/checks") == {}
            assert mine.told == [True, False]
            assert not mine.lock.held
            await mine.end()
            assert mine.told == [True, False]

    run(scenario())


def test_end_turns_the_check_critical_before_it_deregisters(tmp_path: Path) -> None:
    """Callers that look in between are not sent here any more."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat()
            asked: list[tuple[str, bytes]] = []

            async def listen(request: Request) -> None:
                asked.append((request.path, request.body))

            mine.agent.interpose = listen
            await mine.end()
            _, (first, body), (second, _) = asked  # before them, whether it is still ours
            assert "/check/update/" in first and b"critical" in body
            assert "/service/deregister/tax-127.0.0.1-5003" in second

    run(scenario())


@pytest.mark.parametrize("what", ["update", "deregister", ""])
def test_end_with_an_agent_that_fails_is_no_error(tmp_path: Path, what: str) -> None:
    """Whatever it does not answer: we end, and the lock is free."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat()

            async def fail(request: Request) -> Answer | None:
                return Answer("No cluster leader", 500) if what in request.path else None

            mine.agent.interpose = fail
            await mine.end()
            assert not mine.lock.held
            mine.agent.interpose = None
            if what == "update":
                assert await mine.services() == {}

    run(scenario())


def test_end_that_is_given_up_frees_the_lock(tmp_path: Path) -> None:
    """An agent that hangs does not keep the next worker from taking over."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat()

            async def hang(request: Request) -> Answer | None:
                await asyncio.Event().wait()
                return None

            mine.agent.interpose = hang
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(mine.end(), 0.05)
            assert not mine.lock.held

    run(scenario())


def test_end_without_a_registration_asks_nothing(tmp_path: Path) -> None:
    """Who never registered has nothing to take away."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            asked: list[str] = []

            async def listen(request: Request) -> None:
                asked.append(request.path)

            mine.agent.interpose = listen
            await mine.end()
            assert asked == []

    run(scenario())


def test_registration_that_was_cut_short_is_taken_away_too(tmp_path: Path) -> None:
    """The agent may have taken what we never heard the answer of."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:

            async def take_and_hang(request: Request) -> Answer | None:
                if "/register" in request.path:
                    mine.agent.interpose = None
                    mine.agent.register(
                        {
                            "ID": "tax-127.0.0.1-5003",
                            "Name": "tax",
                            "Address": "127.0.0.1",
                            "Port": 5003,
                        }
                    )
                    await asyncio.Event().wait()
                return None

            mine.agent.interpose = take_and_hang
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(mine.beat(), 0.05)
            assert set(await mine.services()) == {"tax-127.0.0.1-5003"}
            await mine.end()
            assert await mine.services() == {}

    run(scenario())


def test_owner_that_hands_over_leaves_the_instance(tmp_path: Path) -> None:
    """A worker that is replaced lets go of the lock alone: no moment without the instance."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            await mine.beat()
            await mine.registration.end(hand_over=True)
            assert set(await mine.services()) == {"tax-127.0.0.1-5003"}
            assert not mine.registration.owner
            assert mine.told == [True]
            await mine.beat()
            await mine.end()
            assert await mine.services() == {}

    run(scenario())


@pytest.mark.process
def test_one_that_stood_by_takes_away_what_nobody_owns(tmp_path: Path) -> None:
    """The owner was killed, or handed over to nobody, and all end: the instance does not stay."""

    async def scenario() -> None:
        async with kept(tmp_path) as mine:
            with holder(tmp_path) as owner:
                assert said(owner) == "held"
                await mine.beat()
            mine.agent.register(
                {"ID": "tax-127.0.0.1-5003", "Name": "tax", "Address": "127.0.0.1", "Port": 5003}
            )
            await mine.end()
            assert await mine.services() == {}

    run(scenario())
