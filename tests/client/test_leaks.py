"""What is not given back by those who had it: dropped answers, closed clients, other loops."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from mesh_middleware.httpx import (
    AsyncClient,
    AsyncMeshTransport,
    Client,
    MeshTransport,
    UpstreamBusyError,
)
from mesh_middleware.routing import Limits, Manners
from mesh_middleware.routing.chain import Retries

from ..support.steps import yield_times
from .driver import OWN, Driver, Session, drivers
from .support import PATIENCE, Authority, StaticMesh, Wire, answering, serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"
ONE = httpx.Limits(max_connections=1)


driver = drivers(OWN)


def line_of(client: Session) -> Any:
    """The connections to the one upstream that was called."""
    (line,) = client.client._transport._carrier._lines.values()
    return line


# Python says so of the socket, rightly.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_answer_that_is_dropped_gives_its_connection_back(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """
    A response that was neither read nor closed holds its connection until it is collected; with a
    limit of one, the next call goes through then, and the instance counts no call under way.
    """

    def script(wire: Wire) -> None:
        while wire.read_head():
            wire.send(LONG)

    with serving(authority, script) as server, driver.client(mesh, limits=ONE) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for number in range(1, 4):
            request = client.client.build_request("GET", "https://tax/")
            response = driver.run(lambda sent=request: client.client.send(sent, stream=True))
            assert response.status_code == 200
            del response, request
            gc.collect()
            assert server.connections == number
        assert len(line_of(client).orphans) == 1
        assert mesh.watch_upstream("tax").course.look(0.0).outstanding == 1
        with pytest.raises(httpx.ReadTimeout):
            client.get("https://tax/", timeout=httpx.Timeout(PATIENCE, read=0.05))
        assert line_of(client)._pool.open == 0
        assert mesh.watch_upstream("tax").course.look(0.0).outstanding == 0


IN_TWO = (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok")
DENIED = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 19\r\n\r\n",
    b"RBAC: access denied",
)


@pytest.mark.parametrize("answer", [IN_TWO, DENIED], ids=["short", "denial"])
def test_an_answer_that_was_looked_into_and_dropped_is_no_call_under_way(
    authority: Authority, mesh: StaticMesh, driver: Driver, answer: tuple[bytes, ...]
) -> None:
    """Also where its body came after its head, and was read before the answer was handed over."""
    goes_on = threading.Semaphore(0)

    def script(wire: Wire) -> None:
        while wire.read_head():
            wire.send(answer[0])
            assert goes_on.acquire(timeout=PATIENCE)
            wire.send(answer[1])

    retries = Retries(1, frozenset({"reset"}))
    with (
        serving(authority, script) as server,
        driver.client(mesh, retries=retries) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))

        def drop() -> int:
            request = client.client.build_request("GET", "https://tax/")
            send = client.client.send
            response = driver.run(lambda: send(request, stream=True))
            return int(response.status_code)

        call = threads.submit(drop)
        head_came(client)
        goes_on.release()
        assert call.result(PATIENCE) in (200, 403)
        gc.collect()
        assert mesh.watch_upstream("tax").course.look(0.0).outstanding == 0


CHUNKED = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("answer", [(OK,), IN_TWO, CHUNKED], ids=["whole", "in two", "chunked"])
def test_an_answer_that_was_read_is_freed_at_once(
    authority: Authority, mesh: StaticMesh, answer: tuple[bytes, ...], asynchronous: bool
) -> None:
    """Nothing of a call is left to the garbage collector, whose stops would be felt by others."""

    def script(wire: Wire) -> None:
        while wire.read_head():
            for part in answer:
                wire.send(part)

    def kept(response: httpx.Response) -> Any:
        assert response.content == b"ok" and response.elapsed.total_seconds() > 0
        return weakref.ref(response)

    async def call() -> Any:
        async with AsyncClient(mesh) as client:
            found = kept(await client.get("https://tax/"))
            return found()

    with serving(authority, script) as server, Client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        gc.disable()
        try:
            if asynchronous:
                assert asyncio.run(call()) is None
            else:
                found = kept(client.get("https://tax/"))
                assert found() is None
        finally:
            gc.enable()


def test_a_body_that_breaks_names_its_request(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """The error of a body tells which request it was, as httpx's do."""

    def script(wire: Wire) -> None:
        wire.read_head()
        wire.send(LONG)

    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            client.get("https://tax/here")
        (where,) = caught.value.__notes__
        assert where.startswith(f"tax.service at {server.endpoint('tax').address}, spiffe://")
    assert str(caught.value.request.url) == "https://tax/here"


def test_a_body_that_breaks_is_told_without_a_client(
    authority: Authority, mesh: StaticMesh
) -> None:
    """The same error, where a transport was asked and no request is known to the answer."""

    def script(wire: Wire) -> None:
        wire.read_head()
        wire.send(LONG)

    with serving(authority, script) as server, MeshTransport(mesh) as transport:
        mesh.tell("tax", server.endpoint("tax"))
        response = transport.handle_request(httpx.Request("GET", "https://tax/"))
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
        response.close()


def test_an_upgraded_connection_outlives_its_answer(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """Who keeps the stream of an upgraded connection need not keep the response."""

    def script(wire: Wire) -> None:
        if b"/plain" in wire.read_head():
            wire.send(OK)
            return
        wire.send(b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        wire.send(wire.read_exactly(4))

    upgrade = {"Connection": "upgrade", "Upgrade": "echo"}
    with serving(authority, script) as server, driver.client(mesh) as client:
        mesh.tell("tax", server.endpoint("tax"))
        request = client.client.build_request("GET", "https://tax/", headers=upgrade)
        response = driver.run(lambda: client.client.send(request, stream=True))
        stream = response.extensions["network_stream"]
        del response
        gc.collect()
        assert client.get("https://tax/plain").text == "ok"
        driver.run(stream.write, b"ping")
        assert driver.run(stream.read, 4) == b"ping"
        driver.run(stream.aclose if driver.is_async else stream.close)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("closes", [True, False], ids=["closed", "dropped"])
def test_an_upgraded_connection_is_counted_until_its_user_leaves_it(
    authority: Authority, mesh: StaticMesh, driver: Driver, closes: bool
) -> None:
    """Who closes the stream, or drops it, need not close the answer: the limit has room again, the
    instance no call under way, and what was written before has arrived."""
    heard: queue.Queue[bytes] = queue.Queue()

    def script(wire: Wire) -> None:
        wire.read_head()
        wire.send(b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        heard.put(wire.read_to_end())

    def upgrade() -> Any:
        headers = {"Connection": "upgrade", "Upgrade": "echo"}
        request = client.client.build_request("GET", "https://tax/", headers=headers)
        response = driver.run(lambda: client.client.send(request, stream=True))
        assert response.status_code == 101
        return response.extensions["network_stream"]

    with serving(authority, script) as server, driver.client(mesh, limits=ONE) as client:
        mesh.tell("tax", server.endpoint("tax"))
        for number in range(1, 4):
            stream = upgrade()
            gc.collect()
            driver.run(stream.write, b"x" * 200_000)
            if closes:
                driver.run(stream.aclose if driver.is_async else stream.close)
                assert mesh.watch_upstream("tax").course.look(0.0).outstanding == 0
                assert line_of(client)._pool.open == 0
                assert heard.get(timeout=PATIENCE) == b"x" * 200_000
            del stream
            gc.collect()
            assert server.connections == number


@pytest.mark.parametrize("http2", [False, True], ids=["ours", "stock"])
def test_what_comes_back_after_the_close_is_closed(
    authority: Authority, mesh: StaticMesh, http2: bool
) -> None:
    """A call of another thread that is under way when the client closes ends well, and so does
    its connection."""
    arrived, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def script(wire: Wire) -> None:
        wire.read_head()
        arrived.set()
        assert go_on.wait(PATIENCE)
        wire.send(OK)
        assert wire.read_to_end() == b""
        ended.set()

    with serving(authority, script) as server, ThreadPoolExecutor(1) as threads:
        mesh.tell("tax", server.endpoint("tax"))
        client = Client(mesh, http2=http2)
        call = threads.submit(client.get, "https://tax/")
        assert arrived.wait(PATIENCE)
        client.close()
        go_on.set()
        assert call.result(PATIENCE).text == "ok"
        assert ended.wait(PATIENCE)


def test_two_loops_of_two_threads_share_a_client(authority: Authority, mesh: StaticMesh) -> None:
    """Each loop has connections of its own, keeps them, and closing ends both loops' ones."""
    turns = threading.Barrier(2)
    ended = threading.Semaphore(0)

    def script(wire: Wire) -> None:
        answering()(wire)
        ended.release()

    async def run(client: AsyncClient) -> list[str]:
        texts = []
        for _ in range(20):
            # In turns: the one that was here last must not take what the other has.
            turns.wait(PATIENCE)
            texts.append((await client.get("https://tax/")).text)
        turns.wait(PATIENCE)
        if threading.current_thread().name.endswith("_0"):
            await client.aclose()
            turns.wait(PATIENCE)
        else:
            turns.wait(PATIENCE)
            await yield_times(3)
        return texts

    with serving(authority, script) as server, ThreadPoolExecutor(2) as threads:
        mesh.tell("tax", server.endpoint("tax"))
        client = AsyncClient(mesh)
        both = [threads.submit(asyncio.run, run(client)) for _ in range(2)]
        assert [one.result(PATIENCE) for one in both] == [["ok"] * 20] * 2
        assert server.connections == 2
        assert all(ended.acquire(timeout=PATIENCE) for _ in range(2))


@pytest.mark.parametrize("kind", ["asyncio", "uvloop", "trio"])
def test_a_close_ends_the_connections_of_httpx_in_other_loops(
    authority: Authority, mesh: StaticMesh, kind: str
) -> None:
    """Those of a client with HTTP/2, and of trio, too."""
    ended = threading.Event()

    def script(wire: Wire) -> None:
        answering()(wire)
        ended.set()

    with serving(authority, script) as server, Driver(kind).running() as driver:
        mesh.tell("tax", server.endpoint("tax"))
        client = AsyncClient(mesh, http2=True)
        assert driver.run(client.get, "https://tax/").text == "ok"
        assert not ended.is_set()
        asyncio.run(client.aclose())
        assert ended.wait(PATIENCE)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_close_minds_no_loop_that_has_ended(authority: Authority, mesh: StaticMesh) -> None:
    """It took its connections with it."""
    with serving(authority, answering()) as server:
        mesh.tell("tax", server.endpoint("tax"))
        client = AsyncClient(mesh, http2=True)
        assert asyncio.run(client.get("https://tax/")).text == "ok"
        asyncio.run(client.aclose())
        del client
        gc.collect()


class _Late(AsyncMeshTransport):
    """A transport whose first call is overtaken by another loop's `aclose`."""

    def __init__(self, mesh: StaticMesh) -> None:
        super().__init__(mesh)
        self.overtaken = False

    def _carrier_of(self, loop: Any) -> Any:
        found = super()._carrier_of(loop)
        if not self.overtaken:
            self.overtaken = True
            thread = threading.Thread(target=lambda: asyncio.run(self.aclose()))
            thread.start()
            thread.join(PATIENCE)
        return found


def test_a_call_that_is_overtaken_by_a_close_leaves_nothing_open(
    authority: Authority, mesh: StaticMesh
) -> None:
    """The next close knows all that was made since: two connections, and both end."""
    ended = threading.Semaphore(0)

    def script(wire: Wire) -> None:
        answering()(wire)
        ended.release()

    async def run() -> None:
        transport = _Late(mesh)
        for _ in range(2):
            request = httpx.Request("GET", "https://tax/")
            response = await transport.handle_async_request(request)
            assert await response.aread() == b"ok"
        await transport.aclose()
        for _ in range(server.connections):
            assert ended.acquire(timeout=1)

    with serving(authority, script) as server:
        mesh.tell("tax", server.endpoint("tax"))
        asyncio.run(run())
        assert server.connections == 2


# A loop that ends with open connections leaves them to the collector, and Python says so.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("http2", [False, True], ids=["ours", "stock"])
def test_one_loop_after_the_other_uses_a_client(
    authority: Authority, mesh: StaticMesh, http2: bool
) -> None:
    """A client of a module serves ``asyncio.run`` again and again; nobody gets a dead loop's
    connections, and no loop is kept."""

    async def run(client: AsyncClient) -> str:
        return (await client.get("https://tax/")).text

    with serving(authority, answering()) as server:
        mesh.tell("tax", server.endpoint("tax"))
        client = AsyncClient(mesh, http2=http2)
        assert [asyncio.run(run(client)) for _ in range(4)] == ["ok"] * 4
        assert len(client._ours._carriers) == 1
        del client
        gc.collect()


class Gate:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, wire: Wire) -> None:
        while wire.read_head():
            self.arrived.release()
            assert self.open.wait(PATIENCE)
            wire.send(OK)


def test_the_limits_of_our_own_service_hold(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``MaxConnections`` 1 and ``MaxPendingRequests`` 2: two wait, the next is refused at once, by
    name; nobody is blamed, and afterwards all goes on."""
    gate = Gate()
    with (
        serving(authority, gate) as server,
        driver.client(mesh) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        course = mesh.watch_upstream("tax").course
        course.learn_manners(Manners(limits=Limits(1, 2)), 0.0)
        calls = [threads.submit(client.get, "https://tax/")]
        assert gate.arrived.acquire(timeout=PATIENCE)
        for number in (1, 2):
            calls.append(threads.submit(client.get, "https://tax/"))
            in_line(client, number)
        with pytest.raises(UpstreamBusyError, match="as many calls wait as may"):
            client.get("https://tax/")
        gate.open.set()
        assert {call.result(PATIENCE).status_code for call in calls} == {200}
        assert client.get("https://tax/").status_code == 200
        assert server.connections == 1
        (state,) = course.look(0.0).instances
        assert (state.failures, state.outstanding) == (0, 0)


def test_the_line_is_not_the_longer_for_those_who_left_it(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """``MaxPendingRequests`` counts who waits, not who gave up."""
    gate = Gate()
    with (
        serving(authority, gate) as server,
        driver.client(mesh) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        mesh.tell("tax", server.endpoint("tax"))
        course = mesh.watch_upstream("tax").course
        course.learn_manners(Manners(limits=Limits(1, 2)), 0.0)
        first = threads.submit(client.get, "https://tax/")
        assert gate.arrived.acquire(timeout=PATIENCE)
        for _ in range(4):
            with pytest.raises(httpx.PoolTimeout):
                client.get("https://tax/", timeout=httpx.Timeout(PATIENCE, pool=0.01))
            in_line(client, 0)
        gate.open.set()
        assert first.result(PATIENCE).status_code == 200


def head_came(client: Session) -> None:
    """Wait until the head of an answer was read; of threads each record is read alone."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        carrier = client.client._ours._carrier
        live = [] if carrier is None else list(getattr(carrier, "live", ()))
        if not client.driver.is_async or any(one.reading and one.reading.status for one in live):
            return
        pause.wait(0.001)
    raise AssertionError("it never came")


def in_line(client: Session, count: int) -> None:
    """Wait until *count* requests are in line."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if len(line_of(client)._pool._line) == count:
            return
        pause.wait(0.001)
    raise AssertionError("they never came")


def test_two_hundred_share_ten_connections_fairly(
    authority: Authority, mesh: StaticMesh, driver: Driver
) -> None:
    """200 callers of 5 calls each, ten connections: none fails, none is served twice before all
    that waited longer were served once."""
    order: list[int] = []
    lock = threading.Lock()

    def script(wire: Wire) -> None:
        while head := wire.read_head():
            with lock:
                order.append(int(head.split(b" ", 2)[1].rpartition(b"/")[2]))
            wire.send(OK)

    def call_sync(client: Any, caller: int) -> None:
        for _ in range(5):
            assert client.get(f"https://tax/{caller}").text == "ok"

    async def call_all(client: Any) -> None:
        async def call(caller: int) -> None:
            for _ in range(5):
                assert (await client.get(f"https://tax/{caller}")).text == "ok"

        await asyncio.gather(*map(call, range(200)))

    limits = httpx.Limits(max_connections=10)
    with serving(authority, script) as server, driver.client(mesh, limits=limits) as client:
        mesh.tell("tax", server.endpoint("tax"))
        if driver.is_async:
            driver.run(call_all, client.client)
        else:
            with ThreadPoolExecutor(200) as threads:
                list(threads.map(lambda caller: call_sync(client.client, caller), range(200)))
        assert server.connections == 10
        assert line_of(client)._pool.open == 10
    assert len(order) == 1000
    if driver.is_async:
        # All stand in line from the start: the first 200 to be served are 200 different ones.
        assert len(set(order[:190])) == 190
