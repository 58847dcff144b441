"""The life of connections: reuse, limits, waiting in line, timeouts, retries, ends."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvloop
from anyio import to_thread

from mesh_middleware.httpx import AsyncClient, Client, MeshNotReadyError
from mesh_middleware.identity import ServiceId
from mesh_middleware.routing.report import AttemptReport

from .driver import OWN, Driver, Session, drivers
from .support import (
    PATIENCE,
    Authority,
    GatedContext,
    ScriptServer,
    StaticMesh,
    Wire,
    answering,
    server_context,
    service_id,
    serving,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


driver = drivers(OWN)


def _limits(most: int | None = None, idle: int | None = None, expiry: float = 60) -> httpx.Limits:
    return httpx.Limits(
        max_connections=most, max_keepalive_connections=idle, keepalive_expiry=expiry
    )


def _body(driver: Driver, *parts: bytes) -> Any:
    if not driver.is_async:
        return iter(parts)

    async def stream() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return stream()


# -- idle connections --------------------------------------------------------------------------


def test_an_idle_connection_that_was_closed_is_not_used(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """When the server closes between two calls, the second, a POST even, takes a new one."""
    closed = threading.Event()

    def script(wire: Wire) -> None:
        wire.read_request()
        wire.send(OK)
        socket.socket.shutdown(wire.sock, socket.SHUT_WR)
        closed.set()

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(3):
            closed.clear()
            assert client.request("POST", "https://tax/", content=b"x").status_code == 200
            assert closed.wait(PATIENCE)
        assert server.connections == 3


def _hang_up(wire: Wire, closed: threading.Event) -> None:
    """End the first connection of all."""
    if not closed.is_set():
        socket.socket.shutdown(wire.sock, socket.SHUT_WR)
        closed.set()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_ended_before_its_turn_came_is_not_used(
    authority: Authority, mesh: StaticMesh, loop: Any
) -> None:
    """The loop was busy when who waited in line was given it: a POST takes a new one."""
    answered, closed = threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        wire.read_request()
        wire.send(OK)
        assert answered.wait(PATIENCE)
        _hang_up(wire, closed)

    async def call(client: AsyncClient) -> None:
        assert (await client.post("https://tax/", content=b"x")).status_code == 200
        answered.set()
        assert closed.wait(PATIENCE)  # and so does the whole loop

    async def both() -> None:
        async with AsyncClient(mesh, limits=_limits(1)) as client, asyncio.TaskGroup() as group:
            group.create_task(call(client))
            group.create_task(call(client))

    with (
        serving(authority, script) as server,
        asyncio.Runner(loop_factory=loop) as runner,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        runner.run(both())
        assert server.connections == 2


def test_a_new_connection_that_ended_before_its_request_is_not_used(
    authority: Authority,
) -> None:
    """The thread stood still after the handshake: a POST takes another."""
    closed = threading.Event()

    def script(wire: Wire) -> None:
        if closed.is_set():
            wire.read_request()
            wire.send(OK)
        _hang_up(wire, closed)

    class Slow(GatedContext.sslsocket_class):
        def do_handshake(self, *args: Any) -> None:
            super().do_handshake(*args)
            assert closed.wait(PATIENCE)

    class SlowMesh(StaticMesh):
        def client_context(self, expected: ServiceId) -> ssl.SSLContext:
            context = super().client_context(expected)
            context.sslsocket_class = Slow
            return context

    mesh = SlowMesh(authority)
    with serving(authority, script) as server, Client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.post("https://tax/", content=b"x").status_code == 200
        assert server.connections == 2


def _closing_after(reads: int, seen: list[bytes]) -> Any:
    """Answer one request per connection, then read *reads* more and hang up."""

    def script(wire: Wire) -> None:
        seen.append(wire.read_request()[0])
        wire.send(OK)
        for _ in range(reads):
            if head := wire.read_request()[0]:
                seen.append(head)

    return script


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_a_stale_connection_is_retried_once(
    authority: Authority, mesh: StaticMesh, driver: Driver, method: str
) -> None:
    """
    A server that hangs up on a used connection instead of answering gets a request that may
    arrive twice once more, on a new connection.
    """
    seen: list[bytes] = []
    ok = OK if method != "HEAD" else OK[:-2]

    def script(wire: Wire) -> None:
        seen.append(wire.read_request()[0])
        wire.send(ok)
        seen.append(wire.read_request()[0])

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.request(method, "https://tax/1")
        assert client.request(method, "https://tax/2").status_code == 200
        assert server.connections == 2
    assert [b" /2 " in head for head in seen[:3]] == [False, True, True]


def test_what_must_not_arrive_twice_is_not_retried(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A POST that was written is an error, and reached the server once."""
    seen: list[bytes] = []
    with serving(authority, _closing_after(1, seen)) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.get("https://tax/1")
        with pytest.raises(httpx.RemoteProtocolError):
            client.request("POST", "https://tax/2", content=b"x")
        assert client.get("https://tax/3").status_code == 200
    assert sum(b" /2 " in head for head in seen) == 1


def test_a_body_that_was_drawn_is_not_retried(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A PUT whose body came from an iterator cannot be repeated, and is not."""
    seen: list[bytes] = []
    with serving(authority, _closing_after(1, seen)) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.get("https://tax/1")
        with pytest.raises(httpx.TransportError):
            client.request("PUT", "https://tax/2", content=_body(driver, b"x"))
    assert sum(b" /2 " in head for head in seen) == 1


def test_half_an_answer_is_not_retried(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A used connection that ends within an answer is an error: the request was handled."""
    heads: list[bytes] = []

    def script(wire: Wire) -> None:
        heads.append(wire.read_request()[0])
        wire.send(OK)
        heads.append(wire.read_request()[0])
        wire.send(b"HTTP/1.1 2")

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.get("https://tax/1")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("https://tax/2")
    assert len(heads) == 2


def test_a_new_connection_is_not_retried(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A server that hangs up on a new connection gets no second try; the error says why."""

    def script(wire: Wire) -> None:
        wire.read_request()

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.RemoteProtocolError, match="may not accept our certificate"):
            client.get("https://tax/")
        assert server.connections == 1


@pytest.mark.parametrize("limits", [_limits(idle=0), _limits(expiry=0)], ids=["none", "expired"])
def test_idle_connections_are_kept_within_limits(
    authority: Authority, mesh: StaticMesh, driver: Driver, limits: httpx.Limits
) -> None:
    """``max_keepalive_connections=0`` and ``keepalive_expiry=0`` keep none."""
    with serving(authority, answering()) as server, driver.client(mesh, limits=limits) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(3):
            client.get("https://tax/")
        assert server.connections == 3


def test_an_instance_that_is_gone_is_called_no_more(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """When an instance leaves, its idle connections are closed, not used."""
    ended = threading.Event()

    def leaving(wire: Wire) -> None:
        answering(b"old")(wire)
        ended.set()

    with (
        serving(authority, leaving) as old,
        serving(authority, answering(b"new")) as new,
        driver.client(mesh) as client,
    ):
        mesh.tell("tax", old.endpoint("tax"))
        assert client.get("https://tax/").text == "old"
        mesh.tell("tax", new.endpoint("tax"))
        assert client.get("https://tax/").text == "new"
        assert ended.wait(PATIENCE)


def test_closing_the_client_closes_its_connections(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """After close the server sees the end of every connection."""
    ended = threading.Event()

    def script(wire: Wire) -> None:
        answering()(wire)
        ended.set()

    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client:
            client.get("https://tax/")
        assert ended.wait(PATIENCE)


# -- limits and the line -----------------------------------------------------------------------


class Gate:
    """A script whose answers wait for the test."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()
        self.paths: list[bytes] = []

    def __call__(self, wire: Wire) -> None:
        while head := wire.read_request()[0]:
            self.paths.append(head.split(b" ", 2)[1])
            self.arrived.release()
            assert self.open.wait(PATIENCE)
            wire.send(OK)

    def wait(self) -> None:
        """Wait until one more request has arrived."""
        assert self.arrived.acquire(timeout=PATIENCE)


def _in_line(client: Session, count: int) -> None:
    """Wait until *count* requests are in line."""
    transport = client.client._transport
    (line,) = transport._carrier._lines.values()
    done = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if len(line._pool._line) == count:
            return
        done.wait(0.001)
    raise AssertionError("they never came")


def test_a_connection_more_than_allowed_is_waited_for(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``max_connections`` holds; those in line are served first in, first out."""
    gate = Gate()
    with (
        serving(authority, gate) as server,
        driver.client(mesh, limits=_limits(1)) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        calls = [threads.submit(client.get, "https://tax/0")]
        gate.wait()
        for number in range(1, 6):
            calls.append(threads.submit(client.get, f"https://tax/{number}"))
            _in_line(client, number)
        gate.open.set()
        assert {call.result(PATIENCE).status_code for call in calls} == {200}
        assert server.connections == 1
    assert gate.paths == [b"/%d" % number for number in range(6)]


def test_waiting_too_long_in_line_is_a_pool_timeout(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """httpx's PoolTimeout; those who left the line are skipped."""
    gate = Gate()
    with (
        serving(authority, gate) as server,
        driver.client(mesh, limits=_limits(1)) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        first = threads.submit(client.get, "https://tax/first")
        gate.wait()
        with pytest.raises(httpx.PoolTimeout, match=r"tax\.service"):
            client.get("https://tax/late", timeout=httpx.Timeout(5, pool=0.01))
        second = threads.submit(client.get, "https://tax/second")
        _in_line(client, 1)
        gate.open.set()
        assert first.result(PATIENCE).status_code == second.result(PATIENCE).status_code == 200
        assert client.get("https://tax/third").status_code == 200
    assert gate.paths == [b"/first", b"/second", b"/third"]


def test_whoever_is_first_in_line_may_make_a_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """When a connection ends instead of coming back, the first in line makes another."""
    gate = Gate()

    def script(wire: Wire) -> None:
        wire.read_request()
        gate.arrived.release()
        assert gate.open.wait(PATIENCE)
        wire.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    with (
        serving(authority, script) as server,
        driver.client(mesh, limits=_limits(1)) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        calls = [threads.submit(client.get, "https://tax/")]
        gate.wait()
        calls += [threads.submit(client.get, "https://tax/") for _ in range(2)]
        _in_line(client, 2)
        gate.open.set()
        assert {call.result(PATIENCE).status_code for call in calls} == {200}
        assert server.connections == 3


def test_a_failed_connection_does_not_use_up_the_limit(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """After failures of every kind a limit of one still lets one through."""

    def broken(wire: Wire) -> None:
        wire.read_request()
        wire.send(b"nonsense\r\n\r\n")

    with (
        serving(authority, broken) as bad,
        serving(authority, answering()) as good,
        driver.client(mesh, limits=_limits(1)) as client,
    ):
        mesh.tell("tax", bad.endpoint("other"))
        with pytest.raises(httpx.ConnectError):
            client.get("https://tax/")
        mesh.tell("tax", bad.endpoint("tax"))
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("https://tax/")
        with pytest.raises(httpx.LocalProtocolError):
            client.request("PUT", "https://tax/", content=_body(driver, b"long"), headers=_LONG)
        mesh.leave()
        with pytest.raises(MeshNotReadyError):
            client.get("https://tax/", timeout=0.01)
        mesh.join()
        mesh.tell("tax", good.endpoint("tax"))
        assert client.get("https://tax/").status_code == 200


_LONG = {"Content-Length": "2"}


def test_many_threads_share_few_connections(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Every call of many at once gets its own answer, over as few connections as allowed."""

    def script(wire: Wire) -> None:
        while head := wire.read_request()[0]:
            path = head.split(b" ", 2)[1]
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    with (
        serving(authority, script) as server,
        driver.client(mesh, limits=_limits(4)) as client,
        ThreadPoolExecutor(16) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        paths = [f"/{number}" for number in range(200)]
        texts = threads.map(lambda path: client.get(f"https://tax{path}").text, paths)
        assert list(texts) == paths
        assert server.connections <= 4


# -- timeouts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", OK[:-1]], ids=["", "head", "body"])
def test_a_silent_server_is_a_read_timeout(
    authority: Authority, mesh: StaticMesh, driver: Driver, said: bytes
) -> None:
    """Silence before, in the head or in the body: httpx's ReadTimeout, which notes at whom, and the
    connection ends."""

    def script(wire: Wire) -> None:
        wire.read_request()
        if said:
            wire.send(said)
        assert wire.read_to_end() == b""
        ended.set()

    ended = threading.Event()
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.ReadTimeout) as caught:
            client.get("https://tax/", timeout=httpx.Timeout(5, read=0.05))
        assert ended.wait(PATIENCE)
        endpoint = server.endpoint("tax")
        where = f"tax.service at {endpoint.address}, {endpoint.expected.uri}, attempt 1"
        assert caught.value.__notes__ == [where]


def test_a_slow_server_is_no_read_timeout(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """The read timeout is for each silence, not for the whole answer."""

    def script(wire: Wire) -> None:
        wire.read_request()
        pause = threading.Event()
        for at in range(len(OK)):
            wire.send(OK[at : at + 1])
            pause.wait(0.03)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        began = time.monotonic()
        assert client.get("https://tax/", timeout=httpx.Timeout(5, read=1.0)).text == "ok"
        assert time.monotonic() - began > 1.0, "all silences together are longer than it"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_server_that_does_not_read_is_a_write_timeout(
    authority: Authority, mesh: StaticMesh, driver: Driver, streamed: bool
) -> None:
    """A body that is not taken is httpx's WriteTimeout."""
    done = threading.Event()

    def script(wire: Wire) -> None:
        wire.read_head()
        assert done.wait(PATIENCE)

    parts = [b"x" * 1_000_000] * 32
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        content = _body(driver, *parts) if streamed else b"".join(parts)
        with pytest.raises(httpx.WriteTimeout):
            client.request(
                "POST", "https://tax/", content=content, timeout=httpx.Timeout(5, write=0.1)
            )
        done.set()


def test_no_timeout_means_none(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """``timeout=None`` waits as long as it takes."""
    with serving(authority, answering()) as server, driver.client(mesh, timeout=None) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.get("https://tax/").status_code == 200


# -- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "framed"),
    [({}, b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), ({"Content-Length": "11"}, b"hello world")],
    ids=["chunked", "length"],
)
def test_bodies_are_streamed_out(
    authority: Authority, mesh: StaticMesh, driver: Driver, headers: dict[str, str], framed: bytes
) -> None:
    """Parts go out as they come, chunked unless their length was told; empty ones not at all."""
    bodies: list[bytes] = []

    def script(wire: Wire) -> None:
        while True:
            head, body = wire.read_request()
            if not head:
                return
            bodies.append(body)
            wire.send(OK)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(2):
            content = _body(driver, b"hello", b"", b" world")
            client.request("POST", "https://tax/", content=content, headers=headers)
        assert server.connections == 1
    assert bodies == [framed] * 2


@pytest.mark.parametrize("parts", [(b"abc",), (b"a",), (b"a", b"bc")], ids=str)
def test_a_body_of_another_length_than_told_is_an_error(
    authority: Authority, mesh: StaticMesh, driver: Driver, parts: tuple[bytes, ...]
) -> None:
    """Too much or too little for the Content-Length is httpx's LocalProtocolError."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        content = _body(driver, *parts)
        with pytest.raises(httpx.LocalProtocolError):
            client.request("POST", "https://tax/", content=content, headers=_LONG)
        assert client.get("https://tax/").status_code == 200


MINE = [KeyError, httpx.ReadError, httpx.WriteError, httpx.ReadTimeout, httpx.ConnectError]


@pytest.mark.parametrize("http2", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize("kind", MINE, ids=[one.__name__ for one in MINE])
def test_a_body_that_raises_ends_the_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver, kind: type[Exception], http2: bool
) -> None:
    """An error in the caller's own iterator is the caller's, also one of httpx, where it passes on
    what another upstream sends; no half request stays behind, and no instance is to blame."""

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise kind("mine")

    async def abroken() -> AsyncIterator[bytes]:
        yield b"x"
        raise kind("mine")

    ended, told = threading.Event(), list[AttemptReport]()
    mesh.attempt_told = told.append

    def script(wire: Wire) -> None:
        wire.read_to_end()
        ended.set()

    options: Any = {"limits": _limits(1), "http2": http2}
    with serving(authority, script) as server, driver.client(mesh, **options) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(kind, match="mine") as caught:
            content: Any = abroken() if driver.is_async else broken()
            client.request("POST", "https://tax/", content=content)
        assert ended.wait(PATIENCE)
    assert not hasattr(caught.value, "__notes__")
    assert [(one.kind, one.error) for one in told] == [("given_up", kind.__name__)]
    assert mesh.watch_upstream("tax").course.look(0.0).instances[0].failures == 0


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("hangs_up", [False, True], ids=["stays", "hangs up"])
def test_an_early_refusal_ends_the_upload(
    authority: Authority, mesh: StaticMesh, driver: Driver, streamed: bool, hangs_up: bool
) -> None:
    """
    A 413 before the whole body was taken is the answer, not a timeout; then a new connection.

    When the server resets the connection as well, sync reads the answer that came before. asyncio
    drops it if a write notices first, with httpx's own transport too, so there the server stays.
    """
    hangs_up = hangs_up and not driver.is_async
    answered, done = threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        if b"POST" in wire.read_head():
            wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            answered.set()
            if not hangs_up:
                assert done.wait(PATIENCE)
        else:
            wire.send(OK)

    def parts() -> Iterator[bytes]:
        yield b"x"
        assert answered.wait(PATIENCE)
        for _ in range(64):
            yield b"x" * 500_000

    async def aparts() -> AsyncIterator[bytes]:
        yield b"x"
        assert await to_thread.run_sync(answered.wait, PATIENCE)
        for _ in range(64):
            yield b"x" * 500_000

    with serving(authority, script) as server, driver.client(mesh, limits=_limits(1)) as client:
        mesh.tell("tax", server.endpoint("tax"))
        content: Any = b"x" * 32_000_000
        if streamed:
            content = aparts() if driver.is_async else parts()
        timeout = httpx.Timeout(PATIENCE, write=0.5)
        response = client.request("POST", "https://tax/", content=content, timeout=timeout)
        assert (response.status_code, response.text) == (413, "big")
        done.set()
        assert client.get("https://tax/").status_code == 200
        assert server.connections == 2


def test_bodies_are_streamed_in(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """A part can be had before the next was sent."""
    second = threading.Event()

    def script(wire: Wire) -> None:
        wire.read_request()
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert second.wait(PATIENCE)
        wire.send(b"6\r\n world\r\n0\r\n\r\n")

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        parts = client.each("https://tax/", lambda part: second.set())
        assert parts == [b"hello", b" world"]


def test_a_slow_reader_slows_the_server(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """What is not read is not held: the server has to wait."""
    blocked = threading.Event()

    def script(wire: Wire) -> None:
        wire.read_request()
        wire.sock.settimeout(0.3)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
        try:
            for _ in range(64):
                wire.send(b"x" * 1_000_000)
        except TimeoutError:
            blocked.set()

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        seen: list[int] = []

        def take(part: bytes) -> None:
            if not seen:
                assert blocked.wait(PATIENCE)
            seen.append(len(part))

        with pytest.raises(httpx.TransportError):
            client.each("https://tax/", take)
        assert sum(seen) < 32_000_000


def test_an_answer_left_unread_ends_its_connection(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Closing a response before its end cuts the connection; one that has come whole is kept."""
    first = threading.Event()

    def script(wire: Wire) -> None:
        while head := wire.read_request()[0]:
            if b"/long" in head:
                wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
                assert wire.read_to_end() == b""
                first.set()
                return
            wire.send(OK)

    with serving(authority, script) as server, driver.client(mesh, limits=_limits(1)) as client:
        mesh.tell("tax", server.endpoint("tax"))
        client.leave("GET", "https://tax/short")
        client.leave("GET", "https://tax/long")
        assert first.wait(PATIENCE)
        assert server.connections == 1
        assert client.get("https://tax/").status_code == 200
        assert server.connections == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": "1\r\nX-Injected: 2"},
        {"X-A": "1\nX-Injected: 2"},
        {"X-A": "1\x00"},
        {"X-A": "\x01"},
        {"X-A": "a\x7f"},
        {"X-A\r\nX-B": "1"},
        {"X A": "1"},
        {"": "1"},
        {"X-A:": "1"},
        {"Host": "tax\r\nX-Injected: 2"},
        {"Content-Length": "1\r\n\r\nGET /admin HTTP/1.1"},
        {"Content-Length": "0x1"},
        {"Transfer-Encoding": "gzip"},
    ],
    ids=str,
)
def test_nothing_can_be_smuggled_into_a_request(
    authority: Authority, mesh: StaticMesh, driver: Driver, headers: dict[str, str]
) -> None:
    """Names and values that would break out of their line are refused before anything is sent."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.LocalProtocolError):
            client.request("POST", "https://tax/", content=b"x", headers=headers)
        assert server.connections == 0


@pytest.mark.parametrize("method", ["GET /admin HTTP/1.1\r\nX: ", "G T", "", "GÉT"])
def test_a_method_is_a_token(
    authority: Authority, mesh: StaticMesh, driver: Driver, method: str
) -> None:
    """A method that is none is refused before anything is sent."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.LocalProtocolError):
            client.request(method, "https://tax/")
        assert server.connections == 0


def test_secrets_stay_out_of_errors(authority: Authority, mesh: StaticMesh, driver: Driver) -> None:
    """An illegal Authorization value is not quoted."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.LocalProtocolError) as caught:
            client.get("https://tax/", headers={"Authorization": "Bearer canary\n"})
        assert "canary" not in str(caught.value)


# -- upgrades ----------------------------------------------------------------------------------


def _echo(wire: Wire) -> None:
    head = wire.read_head()
    if head.startswith(b"CONNECT"):
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
    else:
        wire.send(b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nhello")
    wire.send(wire.read_exactly(4))
    assert wire.read_to_end() == b""


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_a_connection_can_be_upgraded(
    authority: Authority, mesh: StaticMesh, driver: Driver, method: str
) -> None:
    """After 101, or 2xx to CONNECT, ``network_stream`` is the connection, out of the pool."""
    with serving(authority, _echo) as server, driver.client(mesh, limits=_limits(1)) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for _ in range(2):
            assert client.upgrade(method, "https://tax/", b"ping") == (b"hello", b"ping")
        assert server.connections == 2


def test_only_an_upgraded_connection_is_handed_out(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Of other answers, ``network_stream`` tells facts but neither reads nor writes."""
    with serving(authority, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        stream = client.get("https://tax/").extensions["network_stream"]
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
        assert stream.get_extra_info("ssl_object").version().startswith("TLS")
        assert stream.get_extra_info("other") is None
        for call in (lambda: stream.read(1), lambda: stream.write(b"x")):
            with pytest.raises(RuntimeError, match="upgraded"):
                driver.run(call)


def test_a_server_without_alpn_is_called(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Peers that negotiate no protocol speak HTTP/1.1."""
    with serving(authority, answering(), alpn=()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        assert client.get("https://tax/").status_code == 200


def test_a_refused_certificate_is_told(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """A server that ends the connection in its gate is an error that hints at the certificate."""
    other = Authority()
    leaf = authority.issue(service_id("tax").uri)
    context = server_context(other.root_pem, leaf)
    with ScriptServer(context, answering()) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.TransportError, match="certificate"):
            client.get("https://tax/")


# From Python 3.12 on a fork beside threads is warned of, and that is what this test is about.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sync", "asyncio"])
def test_a_child_process_makes_connections_of_its_own(
    authority: Authority, mesh: StaticMesh, kind: str
) -> None:
    """After a fork the parent's connections are the parent's, and go on to work."""
    with serving(authority, answering()) as server, Driver(kind).running() as driver:
        mesh.tell("tax", server.endpoint("tax"))
        with driver.client(mesh) as client:
            assert client.get("https://tax/").text == "ok"
            child = os.fork()
            if child == 0:
                os._exit(_call_in_child(client))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert client.get("https://tax/").text == "ok"
    assert server.connections == 2


def _call_in_child(client: Session) -> int:
    try:
        if client.driver.is_async:
            # The parent's loop is not the child's.
            answer = asyncio.run(client.client.get("https://tax/"))
        else:
            answer = client.get("https://tax/")
        return 0 if answer.text == "ok" else 1
    except BaseException:
        traceback.print_exc()
        return 2
