"""The client over a real `Mesh` on the dev agent: what the mesh's own life does to calls."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from mesh_middleware import Client, Mesh, hookimpl
from mesh_middleware.dev import DevAgent
from mesh_middleware.exceptions import ConfigError
from mesh_middleware.exceptions import NoHealthyInstanceError as NobodyError
from mesh_middleware.httpx import MeshNotReadyError, NoHealthyInstanceError
from mesh_middleware.mesh import set_default_mesh
from mesh_middleware.routing import Call
from mesh_middleware.routing.report import AttemptReport
from mesh_middleware.watched import IDLE_FOR

from ..support.servers import until
from .driver import Driver
from .support import PATIENCE, Script, ScriptServer, Wire, answering


@pytest.fixture
def join(mesh_agent: DevAgent) -> Iterator[Callable[..., Mesh]]:
    """Start a mesh on the agent in turn, and close it after the test."""
    with ExitStack() as stack:

        def join(name: str, **options: Any) -> Mesh:
            options = {"register": False} | options
            mesh = Mesh(name, agent=mesh_agent.url, plugins=(), **options)
            stack.enter_context(mesh)
            assert mesh.wait_for(lambda snapshot: snapshot.ready, PATIENCE), mesh.status()
            return mesh

        yield join


@contextmanager
def served(
    join: Callable[..., Mesh], name: str, script: Script, *, count: int = 1, **options: Any
) -> Iterator[ScriptServer]:
    """Serve *script* as an instance of *name* that registers itself, the *count*-th."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mesh = join(name, register=True, address="127.0.0.1", port=port, **options)
    health = f"{mesh.settings.agent}/v1/health/connect/{name}?passing=1"
    with ScriptServer(mesh.server_context(), script, port) as server, mesh:
        until(lambda: len(httpx.get(health, trust_env=False).json()) == count, f"{count} {name}")
        yield server


PLACES = {1001: ("eu", "a"), 1002: ("eu", "b"), 1003: ("us", "a")}


class Located(httpx.AsyncHTTPTransport):
    """What the agent says, and of instances beside it where they stand, as Consul 1.17 does."""

    def __init__(self, agent: str) -> None:
        super().__init__()
        self._agent = httpx.URL(agent)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host=self._agent.host, port=self._agent.port)
        request.headers["host"] = request.url.netloc.decode()
        answer = await super().handle_async_request(request)
        if not request.url.path.startswith("/v1/health/connect/"):
            return answer
        entries = json.loads(await answer.aread())
        for entry in entries:
            region, zone = PLACES[entry["Service"]["Port"]]
            entry["Service"]["Locality"] = {"Region": region, "Zone": zone}
        kept = ("X-Consul-Index", "Content-Type")
        headers = {name: answer.headers[name] for name in kept}
        body = httpx.ByteStream(json.dumps(entries).encode())
        return httpx.Response(200, headers=headers, stream=body)


def test_what_is_near_is_called_first(mesh_agent: DevAgent, join: Callable[..., Mesh]) -> None:
    """The setting ``locality`` and the instances' ``Locality``: our zone, then our region."""
    url = f"{mesh_agent.url}/v1/agent/service/register"
    for port in PLACES:
        body = {
            "Name": "tax", "ID": f"tax-{port}", "Address": "127.0.0.1", "Port": port,
            "Connect": {"Native": True},
        }  # fmt: skip
        httpx.put(url, json=body, trust_env=False).raise_for_status()

    def called(mesh: Mesh) -> set[int]:
        upstream = mesh.upstream("tax")
        upstream.wait(PATIENCE)
        trips = [upstream.course.begin(Call("GET", b"/"), 0.0, 0.5) for _ in range(50)]
        return {trip.next(0.0, at / 50).endpoint.port for at, trip in enumerate(trips)}

    def placed(locality: str) -> set[int]:
        return called(join("order", locality=locality, transport=Located(mesh_agent.url)))

    assert placed("eu/a") == {1001}
    assert placed("eu/c") == {1001, 1002}
    assert placed("us") == {1003}
    assert placed("asia/a") == placed("") == set(PLACES)
    for wrong in ("/", "eu/", "/a", "eu/a/b"):
        with pytest.raises(ConfigError, match="region or region/zone"):
            Mesh("order", locality=wrong)


@pytest.fixture
def default() -> Iterator[Callable[[Mesh], Mesh]]:
    """Make a mesh that of the process; none is after the test."""
    yield lambda mesh: set_default_mesh(mesh) or mesh
    set_default_mesh(None)


def test_nobody_registered_is_an_error_of_its_own_at_the_first_call(
    join: Callable[..., Mesh], driver: Driver
) -> None:
    """The very first call, which waits for the agent's answer, gets httpx's ConnectError and ours,
    at once; so do raw connections and who waits by hand."""
    mesh = join("order")
    began = time.monotonic()
    with driver.client(mesh) as client:
        for host in ("nobody", "nobody.connect.consul", "nothing.service.dc1.consul"):
            with pytest.raises(NoHealthyInstanceError, match="no healthy instance") as caught:
                client.get(f"https://{host}/")
            assert isinstance(caught.value, httpx.ConnectError)
            assert isinstance(caught.value, NobodyError)
    assert time.monotonic() - began < PATIENCE
    with pytest.raises(NobodyError):
        mesh.connect_socket("nobody")
    with pytest.raises(NobodyError):
        asyncio.run(mesh.connect("nobody"))
    with pytest.raises(NobodyError):
        mesh.upstream("nobody").wait(PATIENCE)


def test_a_prepared_query_that_is_not_there_is_told_at_once(
    mesh_agent: DevAgent, join: Callable[..., Mesh], driver: Driver
) -> None:
    """Nobody waits for its answer, nor is told of shapes; once it is written, it is followed."""
    mesh, began = join("order"), time.monotonic()
    with driver.client(mesh, timeout=PATIENCE) as client:
        with pytest.raises(NoHealthyInstanceError, match="no prepared query of that name"):
            client.get("https://near.query.consul/")
        assert time.monotonic() - began < PATIENCE
        with served(join, "tax", answering(b"tax")):
            query = {"Name": "near", "Service": {"Service": "tax", "Connect": True}}
            httpx.post(f"{mesh_agent.url}/v1/query", json=query, trust_env=False)
            watch = mesh.upstream("near.query.consul")
            assert watch.wait_for(lambda state: bool(state.instances), PATIENCE)
            assert client.get("https://near.query.consul/").text == "tax"


def test_a_mesh_that_was_closed_is_told_at_once(join: Callable[..., Mesh], driver: Driver) -> None:
    """No call goes by what a closed mesh knew, and none waits for it."""
    mesh = join("order")
    with served(join, "tax", answering()), driver.client(mesh) as client:
        assert client.get("https://tax/").text == "ok"
        mesh.close()
        with pytest.raises(MeshNotReadyError, match="not running"):
            client.get("https://tax/")


def test_a_mesh_that_begins_anew_is_followed(join: Callable[..., Mesh], driver: Driver) -> None:
    """Closed and started again, the same mesh knows the instances of now, and so does a client
    made before."""
    mesh = join("order")
    with driver.client(mesh) as client:
        with served(join, "tax", answering(b"old")):
            assert client.get("https://tax/").text == "old"
        mesh.close()
        with served(join, "tax", answering(b"new")) as server:
            mesh.start()
            assert client.get("https://tax/").text == "new"
            assert mesh.upstream("tax").wait(PATIENCE)[0].port == server.port


def test_the_mesh_of_the_process_may_become_another(
    join: Callable[..., Mesh], driver: Driver, default: Callable[[Mesh], Mesh]
) -> None:
    """A client of a module, made before any mesh, calls through the one that is the process's
    now: as test suites need it, which start the application again and again."""
    seen: list[Any] = []

    def script(wire: Wire) -> None:
        seen.append(wire.sock.getpeercert()["subjectAltName"][0][1].rpartition("/")[2])  # type: ignore[attr-defined]
        answering()(wire)

    with driver.client() as client, served(join, "tax", script):
        for name in ("order", "invoice"):
            mesh = default(join(name))
            assert client.get("https://tax/").text == "ok"
            assert client.get("https://tax/").text == "ok"
            mesh.close()
            # Closed and not replaced: not begun anew by a call, which would register it again.
            with pytest.raises(MeshNotReadyError, match="not running"):
                client.get("https://tax/")
            assert not mesh.running
    assert seen == ["order", "invoice"]


# From Python 3.12 on a fork beside threads is warned of, and that is what this test is about.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_process_finds_its_own_mesh(
    mesh_agent: DevAgent,
    join: Callable[..., Mesh],
    default: Callable[[Mesh], Mesh],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client used before a fork, as under a server that loads the application first, starts
    the child's mesh at the child's first call; the parent's goes on."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", mesh_agent.url)
    with served(join, "tax", answering()), Client() as client:
        default(join("order"))
        assert client.get("https://tax/").text == "ok"
        child = os.fork()
        if child == 0:
            os._exit(_call_in_child(client))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.get("https://tax/").text == "ok"


def _call_in_child(client: Client) -> int:
    try:
        return 0 if client.get("https://tax/", timeout=PATIENCE).text == "ok" else 1
    except BaseException:
        traceback.print_exc()
        return 2


def configure(agent: DevAgent, kind: str, name: str, **fields: Any) -> None:
    """Write a config entry."""
    body = {"Kind": kind, "Name": name, **fields}
    httpx.put(f"{agent.url}/v1/config", json=body, trust_env=False).raise_for_status()


def test_a_canary_is_told_in_the_answer_and_sticks_to_its_key(
    mesh_agent: DevAgent, join: Callable[..., Mesh], driver: Driver
) -> None:
    """A router sends testers to version 2, a splitter halves the rest; who answered and by which
    way is in ``extensions["mesh"]``; a call with a key always goes the same way."""
    subsets = {f"v{number}": {"Filter": f"Service.Meta.version == {number}"} for number in (1, 2)}
    halves = [{"Weight": 50, "ServiceSubset": name} for name in subsets]
    tester = {"Match": {"HTTP": {"Header": [{"Name": "x-tester", "Present": True}]}}}
    configure(mesh_agent, "service-defaults", "tax", Protocol="http")
    configure(mesh_agent, "service-resolver", "tax", Subsets=subsets)
    configure(mesh_agent, "service-splitter", "tax", Splits=halves)
    to = {"ServiceSubset": "v2", "PrefixRewrite": "/new"}
    route = {**tester, "Destination": to}
    configure(mesh_agent, "service-router", "tax", Routes=[route])
    mesh = join("order")
    with (
        served(join, "tax", answering(b"v1"), meta={"version": "1"}),
        served(join, "tax", answering(b"v2"), count=2, meta={"version": "2"}),
        driver.client(mesh) as client,
    ):
        watched = mesh.upstream("tax")
        assert watched.wait_for(lambda state: len(state.instances) == 2, PATIENCE)
        found = [client.get("https://tax/") for _ in range(40)]
        assert {one.text for one in found} == {"v1", "v2"}
        assert all(one.extensions["mesh"].split.startswith(one.text + ".tax") for one in found)
        assert {client.get("https://tax/", headers={"x-tester": "1"}).text} == {"v2"}
        for key in ("ann", "bob", "cyd", "dan"):
            again = [client.get("https://tax/", extensions={"mesh": {"key": key}}) for _ in "12345"]
            assert len({one.text for one in again}) == 1


def test_a_silent_instance_does_not_use_up_the_time_of_a_raw_connection(
    mesh_agent: DevAgent, join: Callable[..., Mesh]
) -> None:
    """One that takes the connection and says nothing is left after ``ConnectTimeoutMs``, and
    another is asked; nothing is left under way."""
    upstreams = {"Defaults": {"ConnectTimeoutMs": 200}}
    configure(mesh_agent, "service-defaults", "order", UpstreamConfig=upstreams)
    mesh = join("order")

    def echo(wire: Wire) -> None:
        wire.send(wire.read_exactly(4))

    async def ask() -> bytes:
        reader, writer = await mesh.connect("db", timeout=PATIENCE)
        writer.write(b"ping")
        try:
            return await reader.readexactly(4)
        finally:
            writer.close()
            await writer.wait_closed()

    with served(join, "db", echo), socket.create_server(("127.0.0.1", 0)) as silent:
        body = {
            "Name": "db", "ID": "db-silent", "Address": "127.0.0.1",
            "Port": silent.getsockname()[1], "Connect": {"Native": True},
        }  # fmt: skip
        url = f"{mesh_agent.url}/v1/agent/service/register"
        httpx.put(url, json=body, trust_env=False).raise_for_status()
        watched = mesh.upstream("db")
        assert watched.wait_for(lambda state: len(state.instances) == 2, PATIENCE)
        assert watched.course.manners.connect_timeout == 0.2
        for _ in range(6):
            assert asyncio.run(ask()) == b"ping"
            with mesh.connect_socket("db", timeout=PATIENCE) as connection:
                connection.sendall(b"ping")
                assert connection.recv(4) == b"ping"
            del connection
        assert watched.state.outstanding == 0


def test_raw_connections_are_told_to_plugins(
    mesh_agent: DevAgent, join: Callable[..., Mesh]
) -> None:
    """Each attempt, as those of requests are; also the one that reached nobody."""
    told: list[AttemptReport] = []

    class Plugin:
        @hookimpl
        def mesh_attempt(self, attempt: AttemptReport) -> None:
            told.append(attempt)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    where = {"Address": "127.0.0.1", "Port": port, "Connect": {"Native": True}}
    mesh_agent.register({"Name": "gone", "ID": "gone-1", **where})
    mesh = Mesh("order", agent=mesh_agent.url, register=False, plugins=(Plugin(),))

    async def ask() -> None:
        _, writer = await mesh.connect("db", timeout=PATIENCE)
        writer.close()
        await writer.wait_closed()

    with served(join, "db", answering()), mesh:
        assert mesh.wait_for(lambda snapshot: snapshot.ready, PATIENCE)
        mesh.connect_socket("db", timeout=PATIENCE).close()
        asyncio.run(ask())
        with pytest.raises(ConnectionRefusedError):
            mesh.connect_socket("gone", timeout=PATIENCE)
    found = [(one.upstream, one.method, one.kind, one.final, one.error) for one in told]
    well = ("db.service", "CONNECT", "answer", True, "")
    refused = ("gone.service", "CONNECT", "connect_failure", True, "ConnectionRefusedError")
    assert found == [well, well, refused]


def test_an_upstream_that_was_let_go_is_found_again(
    join: Callable[..., Mesh], driver: Driver
) -> None:
    """Nobody called for long, so nobody watches; the next call watches anew, and is answered."""
    with served(join, "tax", answering()):
        mesh = join("order")
        with driver.client(mesh) as client:
            assert client.get("https://tax/").text == "ok"
            watch = mesh.upstream("tax")
            assert mesh._watched is not None
            mesh._watched.sweep(time.monotonic() + IDLE_FOR + 1)
            assert watch.rests
            assert client.get("https://tax/").text == "ok"
            assert mesh.upstream("tax") is not watch
