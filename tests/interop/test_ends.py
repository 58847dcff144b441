"""
Servers that end connections, or themselves, under many calls at once.

The applications count what they are asked: nothing is lost, and nothing is done twice.
"""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived, StreamEnded

from mesh_middleware import AsyncClient, Client, Mesh
from mesh_middleware.dev import DevAgent
from mesh_middleware.httpx.goaway import Frames
from mesh_middleware.resolve import Endpoint, StaticResolver

from ..support.consul import free_ports
from ..support.servers import PATIENCE, Hypercorn, Process, clean_environment, until
from .callers import Http2, connect, outsider_context
from .conftest import Serve
from .test_hypercorn import caller
from .upstreams import ENVOY, Agent, _tls, cluster, listener

CALLERS, CALLS = 16, 800
HOST = "127.0.0.1"

COUNTING = """
import asyncio, collections, json, os

seen = collections.Counter()
log = os.open("../seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    body, more = b"", True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        body, more = body + event["body"], event["more_body"]
    if scope["path"] == "/seen":
        body = json.dumps(seen).encode()
    else:
        seen[scope["path"]] += 1
        os.write(log, scope["path"].encode() + b"\\n")
        await pause(0.002)
    head = {"type": "http.response.start", "status": 200, "headers": []}
    await send(head)
    await send({"type": "http.response.body", "body": body})
"""
ASYNCIO = COUNTING.replace("pause", "asyncio.sleep")
TRIO = "import trio\n" + COUNTING.replace("pause", "trio.sleep")
GUARDED = "\nfrom mesh_middleware import MeshAuthz\napp = MeshAuthz(app)\n"


def calls(numbers: Iterable[int]) -> Iterator[tuple[str, str, bytes]]:
    """Half of them are POSTs, which nobody may repeat on suspicion."""
    for number in numbers:
        method = "POST" if number % 2 else "GET"
        yield method, f"https://tax/{number}", str(number).encode() * (number % 2)


def call_all(
    kind: str, mesh: Mesh, numbers: Iterable[int], version: str = "HTTP/2", **options: Any
) -> dict[str, int]:
    """Make all the calls, `CALLERS` at once; returns what the application says it has seen."""
    if "resolver" not in options:
        until(lambda: registered(mesh), "tax to be registered")
    options = {"mesh": mesh, "http2": version == "HTTP/2", "timeout": 30, **options}
    waiting = calls(numbers)
    if kind == "sync":
        return _call_from_threads(waiting, version, options)
    return asyncio.run(_call_from_tasks(waiting, version, options))


def registered(mesh: Mesh) -> bool:
    """Whether callers find the service."""
    url = f"{mesh.settings.agent}/v1/health/connect/tax?passing=1"
    return bool(httpx.get(url, timeout=PATIENCE).json())


def _call_from_threads(
    waiting: Iterator[Any], version: str, options: dict[str, Any]
) -> dict[str, int]:
    lock = threading.Lock()

    def work(client: Client) -> None:
        while True:
            with lock:
                call = next(waiting, None)
            if call is None:
                return
            method, url, body = call
            answer = client.request(method, url, content=body)
            assert (answer.http_version, answer.content) == (version, body)

    with Client(**options) as client, ThreadPoolExecutor(CALLERS) as threads:
        for done in [threads.submit(work, client) for _ in range(CALLERS)]:
            done.result(60)
        return client.get("https://tax/seen").json()  # type: ignore[no-any-return]


async def _call_from_tasks(
    waiting: Iterator[Any], version: str, options: dict[str, Any]
) -> dict[str, int]:
    async with AsyncClient(**options) as client:

        async def work() -> None:
            for method, url, body in waiting:
                answer = await client.request(method, url, content=body)
                assert (answer.http_version, answer.content) == (version, body)

        await asyncio.gather(*(work() for _ in range(CALLERS)))
        return (await client.get("https://tax/seen")).json()  # type: ignore[no-any-return]


def each_once(count: int = CALLS) -> dict[str, int]:
    return {f"/{number}": 1 for number in range(count)}


@pytest.fixture
def order(agent: DevAgent) -> Iterator[Mesh]:
    """Who calls."""
    with Mesh("order", agent=agent.url) as mesh:
        assert mesh.ready(30)
        yield mesh


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("worker", "app"), [("asyncio", ASYNCIO), ("trio", TRIO)])
def test_connections_that_have_had_their_requests_lose_none(
    order: Mesh, serve: Serve, kind: str, worker: str, app: str
) -> None:
    """Our server says GOAWAY after 30 requests, answers what it has begun, refuses the rest."""
    serve(app + GUARDED, {"service": "tax"}, keep_alive_max_requests=30, worker_class=worker)
    assert call_all(kind, order, range(CALLS)) == each_once()


@pytest.mark.parametrize(("worker", "app"), [("asyncio", ASYNCIO), ("trio", TRIO)])
def test_who_gives_up_what_is_refused_disturbs_no_other(
    agent: DevAgent, serve: Serve, worker: str, app: str
) -> None:
    """Its head and its reset come in one piece when the server stood still: both are old then."""

    async def ask() -> bytes:
        async with connect("h2", server.port(), outsider_context(caller(agent).pem, alpn="h2")) as (
            connection
        ):
            assert isinstance(connection, Http2)
            begun = connection._open("/1")
            for _ in range(3):
                connection._h2.reset_stream(connection._open("/2"), ErrorCodes.CANCEL)
            connection._flush()
            frames, body = Frames(), b""
            while data := await connection._reader.read(65536):
                for event in connection._h2.receive_data(frames.take(data)):
                    if isinstance(event, DataReceived) and event.stream_id == begun:
                        body += event.data
                    elif isinstance(event, StreamEnded) and event.stream_id == begun:
                        return body
            raise AssertionError("the connection ended")

    echo = app.replace("seen[scope", "body = b'done'\n        seen[scope")
    server = serve(echo + GUARDED, keep_alive_max_requests=1, worker_class=worker)
    assert asyncio.run(ask()) == b"done"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_hypercorn_without_the_mesh_loses_none(
    order: Mesh, agent: DevAgent, tmp_path: Path, kind: str
) -> None:
    """It drops what it has begun when it ends a connection, after 1,000 requests: left before."""
    leaf, key, roots = Agent(agent.url).identity(tmp_path, "tax")
    (port,) = free_ports(1)
    top = {"bind": f"{HOST}:{port}", "certfile": leaf, "keyfile": key, "ca_certs": roots}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in top.items())
    arguments = ("--config", "plain.toml", "app:app")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "plain.toml").write_text(text)
    with Hypercorn(tmp_path / "app", ASYNCIO, "", arguments=arguments) as server:
        server.wait_ready()
        count = 2500 if kind == "async" else 1000
        found = call_all(kind, order, range(count), resolver=at(order, port))
        assert found == each_once(count)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize(("worker", "app"), [("asyncio", ASYNCIO), ("trio", TRIO)])
def test_a_server_that_ends_loses_none(
    order: Mesh, serve: Serve, tmp_path: Path, kind: str, version: str, worker: str, app: str
) -> None:
    """One instance of two is told to end while it is called; only what is idempotent may be seen
    twice, and over HTTP/2 not even that."""
    servers = [
        serve(app + GUARDED, {"service": "tax"}, worker_class=worker, folder=name)
        for name in ("one", "two")
    ]
    assert order.upstream("tax").wait_for(lambda state: len(state.instances) == 2, 30)

    def numbers() -> Iterator[int]:
        for number in range(CALLS):
            if number == CALLS // 3:
                servers[0].signal(signal.SIGTERM)
            yield number

    call_all(kind, order, numbers(), version)
    assert servers[0].wait_end() == 0
    seen = Counter((tmp_path / "seen").read_text().split())
    assert seen.keys() == each_once().keys()
    twice = [path for path, times in seen.items() if times > 1]
    assert [path for path in twice if version == "HTTP/2" or int(path[1:]) % 2] == []


def at(mesh: Mesh, port: int) -> StaticResolver:
    """Say where tax is."""
    leaf = mesh.snapshot.leaf
    assert leaf is not None
    expected = leaf.id.__class__(leaf.id.trust_domain, leaf.id.namespace, leaf.id.datacenter, "tax")
    return StaticResolver({"tax": [Endpoint(HOST, port, expected)]})


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_envoy_that_ends_connections_loses_none(
    order: Mesh, agent: DevAgent, tmp_path: Path, kind: str
) -> None:
    """``max_requests_per_connection``: it says GOAWAY, and drains."""
    tax = _tls(Agent(agent.url).identity(tmp_path, "tax"), alpn_protocols=["h2"])
    port, behind = free_ports(2)
    arguments = ("--bind", f"{HOST}:{behind}", "app:app")
    with Hypercorn(tmp_path / "app", ASYNCIO, "", arguments=arguments) as app:
        app.wait_ready()
        public = listener(port, "app", tax)
        manager = public["filter_chains"][0]["filters"][0]["typed_config"]
        manager["common_http_protocol_options"] = {"max_requests_per_connection": 30}
        static = {"listeners": [public], "clusters": [cluster("app", behind)]}
        (tmp_path / "envoy.json").write_text(json.dumps({"static_resources": static}))
        options = ["--concurrency", "1", "--disable-hot-restart"]
        command = [str(ENVOY), "-c", str(tmp_path / "envoy.json"), "-l", "info", *options]
        with Process(command, tmp_path, clean_environment()) as envoy:
            envoy.wait_output("starting main dispatch loop")
            assert call_all(kind, order, range(CALLS), resolver=at(order, port)) == each_once()
