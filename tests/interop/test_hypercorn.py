"""``hypercorn --config mesh``: workers, registration, reload, and policy on live connections."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mesh_middleware
from mesh_middleware.dev import DevAgent

from ..support.servers import PATIENCE, Hypercorn, mesh_file, until
from .apps import APPS, FLASK, STARLETTE
from .callers import HOST, Caller, Identity, connect, knock, outsider_context
from .conftest import Serve

COMBINATIONS = [
    ("starlette", "asyncio"),
    ("starlette", "uvloop"),
    ("starlette", "trio"),
    ("fastapi", "asyncio"),
    ("flask", "asyncio"),
    ("flask", "uvloop"),
]


def ask_agent(agent: DevAgent, path: str) -> Any:
    """What the agent answers to a GET."""
    with urllib.request.urlopen(agent.url + path, timeout=10) as answer:
        return json.load(answer)


def registered(agent: DevAgent) -> dict[str, Any]:
    """The agent's services by their IDs."""
    found: dict[str, Any] = ask_agent(agent, "/v1/agent/services")
    return found


def healthy(agent: DevAgent, count: int, name: str = "tax") -> list[dict[str, Any]]:
    """Wait until *count* instances pass their checks, and return them."""

    def passing() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = ask_agent(agent, f"/v1/health/connect/{name}?passing=1")
        return found if len(found) == count else []

    found: list[dict[str, Any]] = until(passing, f"{count} healthy {name}")
    return found


def caller(agent: DevAgent, name: str = "invoice") -> Identity:
    """A certificate for *name*."""
    return Identity.of(*agent.issue(name))


def body(answer: bytes) -> Any:
    """The JSON in an HTTP/1.1 answer, whose status has to be 200."""
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@dataclass
class Served:
    """One server that the tests of a combination share, with its own agent."""

    agent: DevAgent
    server: Hypercorn


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def served(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Served]:
    """Each application on each worker that can run it."""
    app, worker = request.param
    folder = tmp_path_factory.mktemp(f"{app}-{worker}")
    mesh = mesh_file({"service": "tax"}, worker_class=worker)
    with DevAgent() as agent, Hypercorn(folder, APPS[app], mesh, agent=agent.url) as server:
        server.wait_ready()
        yield Served(agent, server)
        server.stop()
    assert "Traceback" not in server.output, server.output


def test_a_caller_of_the_mesh_is_answered_and_named(served: Served) -> None:
    """The handler runs and knows who called."""
    invoice = caller(served.agent)
    assert body(knock(served.server.port(), invoice.pem))["peer"] == invoice.uri


def test_the_instance_is_registered_as_connect_native(served: Served) -> None:
    """At the address it is bound to, under an ID of its own, with a check that passes."""
    (instance,) = healthy(served.agent, 1)
    service, port = instance["Service"], served.server.port()
    assert service["Connect"]["Native"] is True
    assert service["ID"] == f"tax-127.0.0.1-{port}"
    assert (service["Address"], service["Port"]) == (HOST, port)


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_a_deny_acts_on_a_live_connection(
    protocol: str, served: Served, record_property: Any
) -> None:
    """Denied, then allowed again, on a connection that stays open."""
    took = asyncio.run(be_denied_and_allowed(served.agent, protocol, served.server.port()))
    record_property("deny_ms", round(took * 1000, 1))
    assert took < 1.0, "from the change to the first refusal"


def test_a_dropped_root_is_trusted_no_more(served: Served) -> None:
    """New connections meet the new leaf; those that the old root vouched for end."""
    asyncio.run(rotate(served.agent, served.server.port()))


async def rotate(agent: DevAgent, port: int) -> None:
    """Replace the CA while a connection is open."""
    old = caller(agent)
    async with connect("h1", port, outsider_context(old.pem, roots=agent.roots_pem)) as live:
        assert (await live.ask("/who"))[0].status == 200
        agent.rotate_ca()
        agent.prune_roots()
        new = caller(agent)
        # Trusts the new root alone: shaking hands means that the server has its new leaf, which may
        # come before the roots.
        tls = outsider_context(new.pem, roots=agent.roots_pem)
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(OSError, EOFError):
                    async with connect("h1", port, tls) as fresh:
                        assert (await fresh.ask("/who"))[0].json["peer"] == new.uri
                        break
        await asyncio.to_thread(
            until, lambda: knock(port, old.pem) == b"", "the end of the old root"
        )
        with pytest.raises((OSError, EOFError)):
            await live.ask("/who")


@pytest.mark.parametrize(
    ("app", "worker"), [("starlette", "asyncio"), ("starlette", "trio"), ("flask", "uvloop")]
)
def test_sigterm_takes_the_registration_away(
    app: str, worker: str, agent: DevAgent, serve: Serve
) -> None:
    """
    The server ends cleanly, and the agent forgets it at once.

    Callers that keep connections open do not hold it up: neither one that is silent, nor one whose
    next request crosses the server's goodbye.
    """
    server = serve(APPS[app], worker_class=worker)
    healthy(agent, 1)
    tls = outsider_context(caller(agent).pem)
    with open_session(server.port(), tls), open_session(server.port(), tls) as crossing:
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert crossing.recv(1) == b""
        with suppress(OSError):
            crossing.sendall(REQUEST)
        assert server.wait_end() == 0
        assert time.monotonic() - began < 3.0
    assert registered(agent) == {}
    assert "Traceback" not in server.output


REQUEST = b"GET /who HTTP/1.1\r\nHost: tax\r\n\r\n"


@contextmanager
def open_session(port: int, tls: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A keep-alive connection that has had one answer."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as plain:
        with tls.wrap_socket(plain) as session:
            session.sendall(REQUEST)
            answer = b""
            while not answer.rstrip().endswith(b"}"):
                answer += session.recv(65536)
            yield session


@pytest.mark.parametrize("app", ["starlette", "flask"])
def test_several_workers_are_one_instance(app: str, agent: DevAgent, serve: Serve) -> None:
    """They serve one port, register once, and leave together on SIGTERM."""
    requests: list[str] = []

    async def note(request: Any) -> None:
        requests.append(request.path)

    agent.interpose = note
    server = serve(APPS[app], workers=2, listeners=2)
    (instance,) = healthy(agent, 1)
    assert instance["Service"]["ID"] == f"tax-127.0.0.1-{server.port()}"
    invoice = caller(agent)
    for _ in range(10):
        assert body(knock(server.port(), invoice.pem))["peer"] == invoice.uri
    assert list(registered(agent)) == [f"tax-127.0.0.1-{server.port()}"]
    assert requests.count("/v1/agent/service/register") == 1
    server.stop()
    assert registered(agent) == {}
    assert "Traceback" not in server.output


def test_settings_may_come_from_the_environment_alone(agent: DevAgent, serve: Serve) -> None:
    """``--config python:mesh_middleware.servers.hypercorn`` needs no file."""
    server = serve(
        arguments=("--config", "python:mesh_middleware.servers.hypercorn", "app:app"),
        environment={"MESH_SERVICE": "tax", "MESH_BIND": "127.0.0.1:0"},
    )
    assert body(knock(server.port(), caller(agent).pem))["calls"] == 1
    (instance,) = healthy(agent, 1)
    assert instance["Service"]["Port"] == server.port()


def test_several_workers_may_take_the_environment_too(agent: DevAgent, serve: Serve) -> None:
    """Hypercorn pickles that configuration for its workers."""
    server = serve(
        FLASK,
        arguments=("--config", "python:mesh_middleware.servers.hypercorn", "-w", "2", "app:app"),
        environment={"MESH_SERVICE": "tax", "MESH_BIND": "127.0.0.1:0"},
        listeners=2,
    )
    assert body(knock(server.port(), caller(agent).pem))["calls"] == 1
    healthy(agent, 1)


def test_two_instances_on_one_host_have_different_ids(agent: DevAgent, serve: Serve) -> None:
    """The same file twice, on two ports: two instances, and the end of one leaves the other."""
    first, second = serve(), serve()
    ids = {instance["Service"]["ID"] for instance in healthy(agent, 2)}
    assert ids == {f"tax-127.0.0.1-{first.port()}", f"tax-127.0.0.1-{second.port()}"}
    first.stop()
    assert list(registered(agent)) == [f"tax-127.0.0.1-{second.port()}"]


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0"])
def test_a_wildcard_bind_registers_the_address_of_the_node(
    bind: str, agent: DevAgent, serve: Serve
) -> None:
    """Nobody can connect to 0.0.0.0: the address stays empty, so that the agent's own counts."""
    server = serve(bind=bind)
    (instance,) = healthy(agent, 1)
    assert instance["Service"]["Address"] == ""
    assert instance["Service"]["Port"] == server.port()
    assert instance["Node"]["Address"]
    with mesh_middleware.Mesh("invoice", agent=agent.url, register=False) as mesh:
        with mesh_middleware.Client(mesh=mesh) as client:
            assert client.get("https://tax/who").json()["calls"] == 1


def test_a_wildcard_bind_may_name_its_address(agent: DevAgent, serve: Serve) -> None:
    """What the ``[mesh]`` table says wins over what is bound."""
    serve(mesh={"service": "tax", "address": "127.0.0.2", "port": 4711}, bind="0.0.0.0:0")
    (instance,) = healthy(agent, 1)
    assert (instance["Service"]["Address"], instance["Service"]["Port"]) == ("127.0.0.2", 4711)


async def ask_until(caller: Caller, status: int) -> float:
    """Ask on one connection until the answer has *status*; return the seconds it took."""
    began = time.perf_counter()
    async with asyncio.timeout(PATIENCE):
        while True:
            (answer,) = await caller.ask("/who")
            if answer.status == status:
                return time.perf_counter() - began
            assert answer.status in (200, 403)


async def be_denied_and_allowed(agent: DevAgent, protocol: str, port: int) -> float:
    invoice = caller(agent)
    tls = outsider_context(invoice.pem, alpn="h2" if protocol == "h2" else None)
    async with connect(protocol, port, tls) as connection:
        await ask_until(connection, 200)
        agent.deny("invoice", "tax")
        took = await ask_until(connection, 403)
        agent.delete("invoice", "tax")
        await ask_until(connection, 200)
    return took


def change(file: Path) -> None:
    """Change the application; its ``calls`` start at a hundred from then on."""
    file.write_text(file.read_text().replace("calls = []", "calls = [None] * 100"))
    moment = time.time() + 2
    os.utime(file, (moment, moment))


@pytest.mark.parametrize("app", ["starlette", "flask"])
def test_reload_serves_the_changed_application(app: str, agent: DevAgent, serve: Serve) -> None:
    """``--reload``: the parent imports the application too, and must not join the mesh itself."""
    server = serve(APPS[app], arguments=("--config", "mesh", "--reload", "app:app"))
    invoice = caller(agent)
    assert body(knock(server.port(), invoice.pem))["calls"] == 1
    assert threads_of(server.pid) == 1, "the parent runs no watcher"
    change(server.folder / "app.py")
    # Between the workers a connection may end without an answer.
    until(lambda: b'"calls":101' in knock(server.port(), invoice.pem), "the new application")
    (instance,) = healthy(agent, 1)
    assert instance["Service"]["Port"] == server.port()
    assert server.stop() == 0
    assert registered(agent) == {}


def test_sighup_replaces_the_worker(agent: DevAgent, serve: Serve) -> None:
    """Hypercorn's reload by signal gives a new worker that joins anew."""
    server = serve()
    healthy(agent, 1)
    server.signal(signal.SIGHUP)
    server.wait_output(r"Running on https", count=2)
    assert body(knock(server.port(), caller(agent).pem))["calls"] == 1
    healthy(agent, 1)


def threads_of(pid: int) -> int:
    """How many threads a process has."""
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_an_exempt_path_needs_no_identity(agent: DevAgent, serve: Serve) -> None:
    """Over plaintext the exempt path is served with no peer; every other path is refused."""
    server = serve(
        STARLETTE,
        {"service": "tax", "exempt": ["/open"]},
        insecure_bind="127.0.0.1:0",
        listeners=2,
    )
    plain = server.port("http")
    assert body(knock(plain, None, path="/open", tls=False))["peer"] is None
    refused = knock(plain, None, path="/who", tls=False)
    assert refused.startswith(b"HTTP/1.1 403 ") and b"application/problem+json" in refused
    invoice = caller(agent)
    assert body(knock(server.port(), invoice.pem, path="/open"))["peer"] == invoice.uri
    assert body(knock(server.port(), invoice.pem))["calls"] == 3


COLLECTED = """
import gc

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from mesh_middleware import MeshAuthz


async def heap(request):
    return JSONResponse([gc.get_freeze_count(), len(gc.get_objects())])


app = Starlette(routes=[Route("/heap", heap)])
app.add_middleware(MeshAuthz)
"""


def test_the_collector_is_spared_what_a_worker_has_loaded(agent: DevAgent, serve: Serve) -> None:
    """Nearly all there is was there before the first request: no collection looks at it again."""
    server = serve(COLLECTED)
    kept, looked_at = body(knock(server.port(), caller(agent).pem, path="/heap"))
    assert kept > 10 * looked_at
