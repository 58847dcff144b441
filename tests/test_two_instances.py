"""A registration is known by its address and by who made it: two servers never feed one check."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh_middleware import Mesh
from mesh_middleware.config import INSTANCE_KEY, Settings, load_settings
from mesh_middleware.consul.client import ConsulClient
from mesh_middleware.consul.wire import Question
from mesh_middleware.dev import DevAgent
from mesh_middleware.dev.acl import service_token
from mesh_middleware.dev.http import Answer, Request
from mesh_middleware.exceptions import ConfigError, InstanceTakenError
from mesh_middleware.registration import OwnerLock, Registration

from .support.servers import PATIENCE, until

SHARED = Settings("tax", port=5003, address="10.0.0.5", service_id="tax-1", token="ours")


class Server:
    """
    One server of the service: its workers share a folder for locks.

    Args:
        agent: of both.
        folder: of the lock.
        settings: what it registers.
    """

    def __init__(self, agent: DevAgent, folder: Path, settings: Settings = SHARED) -> None:
        folder.mkdir(exist_ok=True)
        self.agent, self.settings = agent, settings
        self.client = ConsulClient(settings, httpx.ASGITransport(agent.app))
        self.lock = OwnerLock(settings.agent, settings.instance_id, folder)
        self.told: list[bool] = []
        self.registration = Registration(settings, self.client, self.lock, self.told.append)

    async def beat(self, status: str = "passing") -> None:
        """One heartbeat."""
        await self.registration.beat(status, "because")

    async def ask(self, path: str) -> Any:
        """What the agent says."""
        return (await self.client.ask(Question(path, "anything"))).body

    async def owner(self) -> str:
        """Token in the registration."""
        entry = (await self.ask("/v1/agent/services")).get(self.settings.instance_id, {})
        return str(entry.get("Meta", {}).get(INSTANCE_KEY, ""))

    async def output(self) -> str:
        """What the check says."""
        checks = await self.ask("/v1/agent/checks")
        return str(checks[f"mesh:{self.settings.instance_id}"]["Status"])


@asynccontextmanager
async def two(
    tmp_path: Path, other: Settings = SHARED, **options: Any
) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers with one agent, each in a container of its own."""
    agent = DevAgent(**options)
    first, second = Server(agent, tmp_path / "a"), Server(agent, tmp_path / "b", other)
    try:
        yield first, second
    finally:
        for server in (first, second):
            server.lock.release()
            await server.client.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run the coroutine of a test, with a limit."""
    asyncio.run(asyncio.wait_for(work, PATIENCE))


@pytest.mark.parametrize(
    ("settings", "id_"),
    [
        ({"address": "10.0.0.5"}, "tax-10.0.0.5-5003"),
        ({"address": "2001:db8::5"}, "tax-2001:db8::5-5003"),
        ({"address": "[2001:db8::5]"}, "tax-2001:db8::5-5003"),
        ({"address": "tax.internal"}, "tax-tax.internal-5003"),
        ({}, f"tax-{os.uname().nodename}-5003"),
        ({"address": "10.0.0.5", "service_id": "tax-1"}, "tax-1"),
        ({"port": 0}, "tax"),
    ],
)
def test_the_default_id_tells_instances_apart(settings: dict[str, Any], id_: str) -> None:
    """By address, else by the host's name; a given one stands."""
    assert Settings(**{"service": "tax", "port": 5003, **settings}).instance_id == id_


def test_the_owners_key_is_the_meshs_own() -> None:
    """Metadata of the user cannot take its place."""
    with pytest.raises(ConfigError, match=f"meta: the key '{INSTANCE_KEY}'"):
        load_settings({"service": "tax", "meta": {INSTANCE_KEY: "x"}}, environ={})


def test_the_second_server_stands_by_and_says_so(tmp_path: Path) -> None:
    """The first one's registration and check are not touched, also at the second's end."""

    async def scenario() -> None:
        async with two(tmp_path) as (first, second):
            await first.beat()
            owner = await first.owner()
            assert len(owner) == 32
            for _ in range(2):
                with pytest.raises(InstanceTakenError, match=r"tax-1 .*10\.0\.0\.5, port 5003"):
                    await second.beat("critical")
            assert (await first.owner(), await first.output()) == (owner, "passing")
            assert second.told == [] and not second.registration.registered
            await second.registration.end()
            await first.beat()
            assert (await first.owner(), await first.output()) == (owner, "passing")

    run(scenario())


def test_it_takes_over_once_the_check_is_critical(tmp_path: Path) -> None:
    """The first was killed; when it comes back all the same, it stands by in its turn."""

    async def scenario() -> None:
        async with two(tmp_path) as (first, second):
            await first.beat()
            before = await first.owner()
            await first.beat("critical")
            await second.beat()
            assert await first.owner() not in ("", before)
            assert second.registration.registered and await first.output() == "passing"
            with pytest.raises(InstanceTakenError):
                await first.beat()
            assert first.told == [True, False] and not first.registration.registered
            await first.registration.end()
            assert await second.output() == "passing"

    run(scenario())


def test_a_race_ends_with_the_next_heartbeat(tmp_path: Path) -> None:
    """Both have registered: the later one's entry stands, and the earlier stands by."""

    async def scenario() -> None:
        async with two(tmp_path) as (first, second):
            both = asyncio.Barrier(2)

            async def together(request: Request) -> Answer | None:
                if "/register" in request.path:
                    await both.wait()
                return None

            first.agent.interpose = together
            await asyncio.gather(first.beat(), second.beat())
            first.agent.interpose = None
            assert first.registration.registered and second.registration.registered
            found = await asyncio.gather(first.beat(), second.beat(), return_exceptions=True)
            taken = [isinstance(each, InstanceTakenError) for each in found]
            assert sorted(taken) == [False, True]
            assert first.registration.registered is taken[1]
            assert second.registration.registered is taken[0]

    run(scenario())


def test_a_server_that_ends_leaves_anothers_registration(tmp_path: Path) -> None:
    """Replaced since its last heartbeat, it has nothing to take away."""

    async def scenario() -> None:
        async with two(tmp_path) as (first, second):
            await first.beat()
            await first.beat("critical")
            await second.beat()
            await first.registration.end()
            assert await second.owner() and await second.output() == "passing"

    run(scenario())


def test_the_next_owner_reuses_the_token(tmp_path: Path) -> None:
    """After a kill: the registration is its own at once, with no gap in it."""

    async def scenario() -> None:
        async with two(tmp_path) as (first, _):
            await first.beat()
            owner = await first.owner()
            first.lock.release()
            again = Server(first.agent, tmp_path / "a")
            await again.beat()
            assert await first.owner() == owner and again.registration.registered
            again.lock.release()
            await again.client.close()

    run(scenario())


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 32, b"\xff" * 100])
def test_a_token_that_cannot_be_read_is_made_again(content: bytes, tmp_path: Path) -> None:
    """What lies there is nobody's word."""
    lock = OwnerLock("agent", "tax-1", tmp_path)
    assert lock.acquire()
    (file,) = tmp_path.glob("*.lock")
    file.with_suffix(".token").write_bytes(content)
    token = lock.token()
    assert len(token) == 32 and token.encode() != content
    assert lock.token() == token == file.with_suffix(".token").read_text()
    assert file.with_suffix(".token").stat().st_mode & 0o077 == 0
    lock.release()


def test_a_token_that_is_a_fifo_or_a_link_is_not_opened(tmp_path: Path) -> None:
    """A name in a folder leads neither elsewhere nor to a wait."""
    for number, make in enumerate((os.mkfifo, lambda path: os.symlink("/etc/hostname", path))):
        folder = tmp_path / str(number)
        folder.mkdir()
        lock = OwnerLock("agent", "tax-1", folder)
        assert lock.acquire()
        (file,) = folder.glob("*.lock")
        make(file.with_suffix(".token"))
        assert len(lock.token()) == 32
        lock.release()


def test_locks_of_other_hosts_and_places_do_not_touch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers may share the folder, and two servers of one host an ID."""
    locks = [OwnerLock("agent", "tax-1", tmp_path, place=place) for place in ("a", "b")]
    name = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "pod-2", *name[2:])))
    locks.append(OwnerLock("agent", "tax-1", tmp_path, place="a"))
    monkeypatch.undo()
    monkeypatch.setattr(os, "readlink", lambda path: "net:[1]")
    locks.append(OwnerLock("agent", "tax-1", tmp_path, place="a"))
    assert all(lock.acquire() for lock in locks)
    assert len({lock.token() for lock in locks}) == len(locks)
    for lock in locks:
        lock.release()


OTHERS = {
    "by a file, at our address": ({"Address": "10.0.0.5", "Port": 5003}, None, True),
    "by a file, elsewhere": ({"Address": "10.0.0.6", "Port": 5003}, None, False),
    "with a check that passes": ({"Address": "10.0.0.6", "Port": 5003}, "passing", False),
    "with a check that is critical": ({"Address": "10.0.0.6", "Port": 5003}, "critical", True),
    "of another owner, at our address": (
        {"Address": "10.0.0.5", "Port": 5003, "Meta": {INSTANCE_KEY: "another"}},
        "passing",
        False,
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_somebody_else_has_registered(case: str, tmp_path: Path) -> None:
    """Without a token, the same place is the same instance; elsewhere it is left while it lives."""
    entry, status, taken_over = OTHERS[case]
    checks = [{"CheckID": "own", "TTL": "10m", "Status": status}] if status else []

    async def scenario() -> None:
        async with two(tmp_path) as (first, _):
            first.agent.register({"ID": "tax-1", "Name": "tax", "Checks": checks, **entry})
            if taken_over:
                await first.beat()
                assert len(await first.owner()) == 32
            else:
                with pytest.raises(InstanceTakenError):
                    await first.beat()

    run(scenario())


REFUSALS: dict[str, Callable[[Request], Answer | None]] = {
    "error": lambda request: Answer("No cluster leader", 500),
    "no JSON": lambda request: Answer("<html>", 200),
    "refused": lambda request: Answer("Permission denied", 403),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_cannot_be_read_stops_no_heartbeat(kind: str, tmp_path: Path) -> None:
    """A token may write the service, and not read it; the check would run out."""

    async def scenario() -> None:
        async with two(tmp_path) as (first, _):

            async def refuse(request: Request) -> Answer | None:
                reads = request.path in ("/v1/agent/service/tax-1", "/v1/agent/checks")
                return REFUSALS[kind](request) if reads else None

            await first.beat("critical")
            first.agent.interpose = refuse
            await first.beat()
            first.agent.interpose = None
            assert await first.output() == "passing"

    run(scenario())


def test_a_service_identity_suffices(tmp_path: Path) -> None:
    """The token that Consul's own page recommends reads what has to be read."""

    async def scenario() -> None:
        acl = {"ours": service_token("tax")}
        async with two(tmp_path, acl=acl, default_policy="deny") as (first, second):
            await first.beat()
            with pytest.raises(InstanceTakenError):
                await second.beat()

    run(scenario())


def test_a_mesh_that_stands_by_is_not_registered_and_says_why() -> None:
    """In `status()`, its troubles and the count of events; and it serves all the same."""
    options = {"service_id": "tax-1", "port": 5003, "check_ttl": 3.0}
    with DevAgent() as agent:
        entry = {"Address": "10.0.0.6", "Port": 5003, "Meta": {INSTANCE_KEY: "another"}}
        agent.register({"ID": "tax-1", "Name": "tax", **entry})
        with Mesh("tax", agent=agent.url, address="10.0.0.5", **options) as mesh:
            until(lambda: "registration" in mesh.status()["troubles"], "the trouble")
            status = mesh.status()
            assert status["troubles"]["registration"].startswith("instance_taken: tax-1 is")
            assert status["registered"] is False
            assert status["events"]["instance_taken"] == 1
            assert mesh.ready(PATIENCE)
            agent.deregister("tax-1")
            until(lambda: mesh.status()["registered"], "the registration")
            until(lambda: "registration" not in mesh.status()["troubles"], "the end of the trouble")


def test_two_pods_with_one_port_are_two_instances(tmp_path: Path) -> None:
    """With the default ID each is listed, and each feeds its own check."""
    here = replace(SHARED, service_id="")
    there = replace(here, address="10.0.0.6")

    async def scenario() -> None:
        agent = DevAgent()
        servers = [Server(agent, tmp_path / each.address, each) for each in (here, there)]
        for server in servers:
            await server.beat()
        listed = await servers[0].ask("/v1/agent/services")
        assert sorted(listed) == ["tax-10.0.0.5-5003", "tax-10.0.0.6-5003"]
        assert len({await server.owner() for server in servers}) == 2
        for server in servers:
            server.lock.release()
            await server.client.close()

    run(scenario())
